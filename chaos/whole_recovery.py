"""Trouble that histories cover, so that subscribers recover every message, in every topology.

Publishers keep all their messages, and send at a moderate rate. They are killed only when nothing is missing. No
connection stalls for as long as the two seconds after which a recovery gives up. Each message must therefore be handled
once, in the order of its topic. The queues of publishers and connections are short, so that pauses lose messages, and
do not only delay them.

On a machine that is too busy, a subscriber may be too slow. zroute then ends a recovery by its rules, and logs a
warning. Such a seed counts as ``gave up``: there, each message must be handled once or counted as lost.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chaos.proxy import TroubleProxy
from chaos.publisher import TOPICS
from chaos.scenario import PREFIXES, Publisher, Run, Scenario, Subscriber, compare_identities, compare_messages
from tests.support import Child, free_port, has_ipv6

__all__ = ["TOPOLOGIES", "WholeRecovery"]

TOPOLOGIES = ("several", "bound", "proxy", "proxies", "mixed")
HOSTS = ("127.0.0.1", "localhost", "::1" if has_ipv6() else "127.0.0.1")

RATES = (500, 1_000, 2_000)
"""The messages per second of all publishers together."""

BUFFER = 64 << 10
"""The size of the buffers of a connection in bytes; with those of the system, a pause of seconds would lose nothing."""

MATCHING = tuple(prefix for prefix in PREFIXES if any(topic.startswith(prefix) for topic in TOPICS))
"""The prefixes that match a topic, so that each subscriber shows that its connections work."""

SUBSCRIBERS = 4
"""The maximum number of subscribers that run at a time."""

_GAVE_UP = "stopped recovering messages"


@dataclass
class Relay:
    """A forwarder that can be started again; the endpoints are its own."""

    key: str
    back: str
    fronts: list[str]
    process: Child


@dataclass
class WholeRecovery(Scenario):
    """The trouble of one seed. Parameters that are not given are drawn from the seed."""

    history = ("200000",)

    topology: str = ""
    trouble: str = ""
    """The first trouble."""
    troubles: int = 0
    relays: list[Relay] = field(default_factory=list)
    free: list[str] = field(default_factory=list)
    """The endpoints of subscribers that do not run, if subscribers bind."""
    gave_up: list[str] = field(default_factory=list)
    """The log lines of recoveries that gave up."""

    def perform(self) -> None:
        """Make troubles in a row: two to four if the seed decides. After each, every message must arrive."""
        self._set_up()
        for number in range(self.troubles or self.chance.randint(2, 4)):
            self._settle()
            self._trouble(self._kinds() if number else self._first())
        self._settle()
        self._end()

    # -- topologies ---------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self.topology = self.topology or self.chance.choice(TOPOLOGIES)
        self.host = self.chance.choice(HOSTS)
        publishers = self.chance.choice((2, 3)) if self.topology == "mixed" else self.chance.choice((1, 2, 2, 3))
        self.rate = self.chance.choice(RATES) // publishers
        self.pace = str(self.rate), str(self.chance.choice((100, 1_000)))
        self.done.append(f"{self.topology} at {self.host}; {self.rate} messages/s each, send queue {self.pace[1]}")
        subscribers = self.chance.randint(1, 3)
        self.slots: list[list[str]] = [[] for _ in range(publishers)]
        self.endpoints: list[str] = []
        if self.topology == "bound":
            self._bind_subscribers(subscribers)
        else:
            self.endpoints = self._connected()
        self.publishers += [Publisher(self, name, slots) for name, slots in enumerate(self.slots)]
        self.done += [f"publisher {each.name}: {each.overflow}, {each.travel}" for each in self.publishers]
        for name in range(subscribers):
            self._add(str(name), since=self.chance.random() < 0.3)
        self.wait("the first joins", lambda: all(each.has_joined() for each in self.subscribers))

    def _bind_subscribers(self, subscribers: int) -> None:
        """Connect each publisher to all subscribers."""
        for _ in range(subscribers):
            port = free_port()
            self.free.append(self._bound(port))
            dialled = self._dialled(port, "reader")
            for slots in self.slots:
                slots.append(dialled)

    def _connected(self) -> list[str]:
        """Return the endpoints of subscribers that connect to publishers, or to forwarders."""
        names = range(len(self.slots))
        if self.topology == "several":
            return self._serving(names)
        if self.topology == "proxy":
            return [self._relayed(names)]
        if self.topology == "proxies":
            return [self._relay([self._relayed(names)])]
        return [self._relayed(names[:-1]), *self._serving(names[-1:])]

    def _serving(self, names: Sequence[int]) -> list[str]:
        """Bind these publishers; return the endpoints to connect to."""
        dialled = []
        for name in names:
            port = free_port()
            self.slots[name] = [self._bound(port)]
            dialled.append(self._dialled(port, f"feed-{name}"))
        return dialled

    def _relayed(self, names: Sequence[int]) -> str:
        """Start a forwarder for these publishers; return the endpoint to connect to.

        The publishers connect to the forwarder, or the forwarder connects to them.
        """
        if self.chance.random() < 0.5:
            return self._relay(self._serving(names))
        port = free_port()
        dialled = self._dialled(port, f"relay-{len(self.relays)}")
        for name in names:
            self.slots[name] = [dialled]
        return self._relay([self._bound(port)])

    def _relay(self, fronts: list[str]) -> str:
        port, key = free_port(), f"relay-{len(self.relays)}"
        back = self._bound(port)
        self.relays.append(Relay(key, back, fronts, self._start_relay(back, fronts, key)))
        return self._dialled(port, key)

    def _start_relay(self, back: str, fronts: list[str], key: str) -> Child:
        process = self.child("-m", "chaos.forwarder", back, *fronts, key=key)
        process.line_with("forwarding")
        return process

    def _bound(self, port: int) -> str:
        host = {"localhost": "127.0.0.1", "::1": "[::1]"}.get(self.host, self.host)
        return f"bind:tcp://{host}:{port}"

    def _dialled(self, port: int, key: str) -> str:
        """Return the endpoint that connects to ``port``, through a proxy; ``key`` is the name of the key there."""
        front = self.proxy(port, "::1" if ":" in self.host else "127.0.0.1", BUFFER)
        self.fronts.append(front)
        endpoint = front.endpoint.replace("127.0.0.1", "localhost") if self.host == "localhost" else front.endpoint
        return self.ring.at(key, f"connect:{endpoint}")

    def proxies(self) -> list[TroubleProxy]:
        """Return the proxies of all connections."""
        return self.fronts

    def _add(self, name: str, *, since: bool) -> None:
        """Start a subscriber; with ``since``, it begins with all messages of the running publishers."""
        endpoints = [self.free.pop()] if self.topology == "bound" else self.endpoints
        prefixes = self.chance.sample(MATCHING, self.chance.randint(1, 3))
        trouble = self.chance.choice(("none", "raises", "waits"))
        self.subscribers.append(Subscriber(self, name, endpoints, prefixes, trouble, since=since))
        past = ", since the beginning" if since else ""
        self.done.append(f"subscriber {name}: {' '.join(prefixes)}; its handlers: {trouble}{past}")

    def _remove(self, subscriber: Subscriber) -> None:
        subscriber.stop(self.chance.choice((signal.SIGINT, signal.SIGTERM)))
        self.subscribers.remove(subscriber)
        self.departed.append(subscriber)
        if self.topology == "bound":
            self.free += subscriber.endpoints

    # -- trouble ------------------------------------------------------------------------------------------

    def _first(self) -> list[Callable[[], object]]:
        return [getattr(self, self.trouble)] if self.trouble else self._losing()

    def _losing(self) -> list[Callable[[], object]]:
        """Return the troubles that lose the most messages. A seed begins with one of them."""
        losing = [self.cut, self.reset, self.refuse, self.freeze_subscriber]
        return losing + [self.kill_forwarder] * 3 if self.relays else losing

    def _kinds(self) -> list[Callable[[], object]]:
        return [
            *self._losing(),
            self.slow,
            self.stall,
            self.freeze_publisher,
            self.kill_publisher,
            self.restart_publisher,
            self.stop_publisher,
            self.restart_subscriber,
            self.begin_late,
            self.attach_late,
        ]

    def _stream(self, seconds: float) -> None:
        """Let all publishers send for at least this time."""
        for publisher in self.publishers:
            publisher.burst(int(self.rate * (seconds + self.chance.uniform(0, 1))))

    def _pause(self, longest: float = 0.5) -> None:
        time.sleep(self.chance.uniform(0, longest))  # trouble comes at any moment, which the seed decides

    def _break(self, how: Callable[[TroubleProxy], None]) -> None:
        self._stream(1.5)
        # With keys, a second cut may end a handshake. The connection is then not made again for seconds.
        for _ in range(1 if self.ring else self.chance.randint(1, 3)):
            self._pause()
            how(self.chance.choice(self.fronts))

    def cut(self) -> None:
        """Close connections."""
        self._break(TroubleProxy.cut)

    def reset(self) -> None:
        """Reset connections."""
        self._break(TroubleProxy.reset)

    def refuse(self) -> None:
        """Close the connections of a proxy, and refuse new ones for up to 2 s."""
        self._stream(2.5)
        self._pause()
        front = self.chance.choice(self.fronts)
        front.refuse()
        time.sleep(self.chance.uniform(0.5, 2))
        front.flow()

    def slow(self) -> None:
        """Slow down a connection for a second."""
        front = self.chance.choice(self.fronts)
        front.slow(self.chance.uniform(0.001, 0.005), 20_000)
        self._stream(1)
        time.sleep(1)
        front.flow()

    def stall(self) -> None:
        """Stop a connection for at most 1.2 s, which is shorter than the time for four requests."""
        self._stream(2)
        self._pause()
        front = self.chance.choice(self.fronts)
        front.stall()
        time.sleep(self.chance.uniform(0.2, 1.2))
        front.flow()

    def freeze_subscriber(self) -> None:
        """Pause a subscriber for 1 to 3 s; perhaps a connection ends meanwhile."""
        self._stream(3)
        self._pause()
        frozen = self.chance.choice(self.subscribers).process.process
        frozen.send_signal(signal.SIGSTOP)
        if self.chance.random() < 0.5:
            self.chance.choice(self.fronts).cut()
        time.sleep(self.chance.uniform(1, 3))
        frozen.send_signal(signal.SIGCONT)

    def freeze_publisher(self) -> None:
        """Pause a publisher for at most 1.2 s, which is shorter than the time for four requests."""
        self._stream(1)
        self._pause()
        frozen = self.chance.choice(self.publishers).now.process.process
        frozen.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.2, 1.2))
        frozen.send_signal(signal.SIGCONT)

    def kill_publisher(self) -> None:
        """Kill a publisher whose messages have all arrived, while the others send."""
        publisher = self.chance.choice(self.publishers)
        for other in self.publishers:
            if other is not publisher:
                other.burst(self.rate)
        publisher.now.process.end(signal.SIGKILL)
        publisher.now.killed = True
        publisher.start()
        self._await_joins()
        self._stream(0.5)

    def restart_publisher(self) -> None:
        """Stop a publisher whose messages have all arrived, and start it again."""
        publisher = self.chance.choice(self.publishers)
        publisher.stop()
        publisher.start()
        self._await_joins()
        self._stream(0.5)

    def stop_publisher(self) -> None:
        """Stop a publisher while it sends: its messages until then must arrive."""
        publisher = self.chance.choice(self.publishers)
        self._stream(2)
        self._pause(1)
        publisher.stop()
        publisher.start()
        self._await_joins()

    def restart_subscriber(self) -> None:
        """Replace a subscriber. The next one begins with new messages."""
        old = self.chance.choice(self.subscribers)
        self._remove(old)
        self._add(old.name + "'", since=False)
        self._await_joins()
        self._stream(0.5)

    def begin_late(self) -> None:
        """Start a subscriber in a stream, which begins with all earlier messages.

        It takes the place of another one if there are many, or if subscribers bind.
        """
        if self.topology == "bound" or len(self.subscribers) >= SUBSCRIBERS:
            self._remove(self.chance.choice(self.subscribers))
        self._stream(1.5)
        self._pause()
        self._add(f"late-{len(self.departed) + len(self.subscribers)}", since=True)
        self._await_joins()

    def attach_late(self) -> None:
        """Attach a handler in a stream, which begins with all earlier messages."""
        self._stream(1.5)
        self._pause()
        subscriber = self.chance.choice(self.subscribers)
        prefixes = [each for each in MATCHING if _is_apart(each, subscriber.prefixes)]
        if prefixes:
            subscriber.attach(self.chance.choice(prefixes))
            self.done.append(f"subscriber {subscriber.name} attaches {subscriber.prefixes[-1]}")

    def kill_forwarder(self) -> None:
        """Kill a forwarder, and start another one in its place after up to 2 s."""
        self._stream(2.5)
        self._pause()
        relay = self.chance.choice(self.relays)
        relay.process.end(signal.SIGKILL)
        time.sleep(self.chance.uniform(0, 2))
        relay.process = self._start_relay(relay.back, relay.fronts, relay.key)

    def _await_joins(self) -> None:
        self.wait("the joins", lambda: all(each.has_joined() for each in self.subscribers))

    def _settle(self) -> None:
        """Wait until all messages have arrived, and all connections work.

        If a message of each topic arrives that was sent after all others, each connection works.
        """
        self._await_all("all that was sent")
        for publisher in self.publishers:
            publisher.each()
        self._await_all("a message of each topic")
        told = [f"{each.name}: {line}" for each in self._all() for line in each.process.err if _GAVE_UP in line]
        self.done += (Counter(told) - Counter(self.gave_up)).elements()
        self.gave_up = told

    def _all(self) -> tuple[Subscriber, ...]:
        return *self.departed, *self.subscribers

    def _await_all(self, what: str) -> None:
        self._finish()
        self.wait(what, lambda: all(each.has_all() for each in self.subscribers))

    # -- the verdict --------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Compare the records: each message was handled once, and in order."""
        for each in self._all():
            self._judge(each)
        self.figures["gave up"] += bool(self.gave_up)
        self.figures["seeds with recovery"] += any(each.told()["stats"]["recovered"] for each in self._all())
        self.figures[f"seeds, {self.topology}"] += 1

    def _judge(self, subscriber: Subscriber) -> None:
        lines = subscriber.lines()
        stats = subscriber.told()["stats"]
        missing = 0
        for run in self.runs():
            compare_messages(self, subscriber, run, lines)
            for subscription in subscriber.cover:
                missing += self._missing(subscriber, run, subscription, lines)
        for name in ("recovered", "replayed", "lost"):
            self.figures[name] += stats[name]
        self.figures["missing"] += missing
        who, killed = subscriber.name, any(run.killed for run in self.runs())
        self.expect(missing == stats["lost"], f"{who}: {missing} are missing, but {stats['lost']} counted as lost")
        self.expect(not missing or bool(self.gave_up), f"{who}: {missing} are missing, but no recovery gave up")
        self.expect(
            not stats["unknown_losses"] or killed,
            f"{who}: {stats['unknown_losses']} unknown losses, but no publisher was killed",
        )
        compare_identities(self, subscriber, stats, lines)

    def _missing(self, subscriber: Subscriber, run: Run, subscription: str, lines: list[list[str]]) -> int:
        """Return the number of messages of one run that a subscription did not receive, but should have."""
        sent = run.sent(subscription)
        if subscriber.left is not None:
            del sent[subscriber.left.get(run.epoch, {}).get(subscription, 0) :]
        del sent[: subscriber.past.get(run.epoch, {}).get(subscription, 0)]
        seen = {int(words[4]) for words in lines if words[:3] == ["m", subscription, run.epoch]}
        self.figures["seen"] += len(seen)
        return len(set(sent) - seen)


def _is_apart(prefix: str, others: list[str]) -> bool:
    """Return True if no topic can match ``prefix`` and one of the others."""
    return not any(prefix.startswith(each) or each.startswith(prefix) for each in others)
