"""Random trouble, drawn from a seed: peers, faults and the final checks.

Publishers and subscribers are processes that record the messages they send and see; `compare` compares the files. A
scenario that fails prints its actions and keeps its files.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from chaos.play import PATIENCE, Play, whole_lines
from chaos.proxy import TroubleProxy
from chaos.publisher import TOPICS
from tests.support import Child, free_port
from zroute.messages.topics import minimal_cover

PREFIXES = ("a", "a.", "a.b", "a.b.", "a.b.x", "c.", "c.x", "d", "b")
RECONNECTED = 1.0
"""Seconds after which a cut connection is made again: ten times the interval between attempts."""

RECONNECTED_WITH_KEYS = 5.0
"""The same with keys, where a connection that ends in its handshake may be a refusal: pauses of 1 and 2 seconds follow.
"""

_INDEX = (1 << 40) - 1  # the counting part of a number: see docs/reference/wire.md


@dataclass
class Run:
    """One process of a publisher: its record, and how it ended."""

    process: Child
    record: Path
    epoch: str = ""
    bursts: int = 0
    killed: bool = False
    """True if it was killed, or stopped with a subscriber paused or cut off: its last number may be unknown."""

    def sent(self, subscription: str) -> list[int]:
        """Return the numbers of sent messages that ``subscription`` matches, in order."""
        lines = (line.split() for line in whole_lines(self.record))
        return [int(number) for topic, number in lines if topic.startswith(subscription)]


class Publisher:
    """One publisher and its runs; ``endpoints`` are its own."""

    def __init__(self, scenario: Scenario, name: int, endpoints: Sequence[str]) -> None:
        self.scenario = scenario
        self.name = name
        self.endpoints = endpoints
        self.overflow = scenario.chance.choice(("drop", "drop", "wait"))
        self.travel = scenario.chance.choice(("alone", "together"))
        self.runs: list[Run] = []
        self.start()

    @property
    def now(self) -> Run:
        return self.runs[-1]

    def start(self) -> None:
        record = self.scenario.folder / f"sent-{self.name}-{len(self.runs)}"
        process = self.scenario.child(
            "-m",
            "chaos.publisher",
            ",".join(self.endpoints),
            str(record),
            str(self.scenario.chance.random()),
            self.overflow,
            self.travel,
            *self.scenario.history,
            *self.scenario.pace,
            key=f"feed-{self.name}",
        )
        run = Run(process, record)
        run.epoch = process.line_with("epoch").split()[1]
        self.runs.append(run)

    def burst(self, count: int) -> None:
        self.now.bursts += 1
        self.now.process.write(f"burst {count}\n")

    def each(self) -> None:
        """Publish one message of each topic."""
        self.now.bursts += len(TOPICS)
        self.now.process.write("each\n")

    def finish(self) -> None:
        """Wait until all requested messages are sent."""
        run = self.now
        self.scenario.wait(f"publisher {self.name} to send it all", lambda: run.process.out.count("done") >= run.bursts)

    def stop(self) -> None:
        self.now.process.write("stop\n")
        code = self.now.process.end(None, PATIENCE)
        unread = any("have not confirmed the goodbye" in line for line in self.now.process.err)
        self.now.killed = unread or self.scenario.shaken
        expected = 75 if unread and self.overflow == "wait" else 0
        self.scenario.expect(code == expected, f"publisher {self.name} ended with {code}: {self.now.process.err[-5:]}")


class Subscriber:
    """One process of a subscriber. With ``since``, it begins with all messages of the running publishers."""

    def __init__(
        self,
        scenario: Scenario,
        name: str,
        endpoints: list[str],
        prefixes: list[str],
        trouble: str,
        *,
        since: bool = False,
    ) -> None:
        self.scenario, self.name, self.prefixes, self.trouble = scenario, name, prefixes, trouble
        self.endpoints = endpoints
        self.record = scenario.folder / f"seen-{name}"
        self.cover = [each.decode() for each in minimal_cover(prefix.encode() for prefix in prefixes)]
        self.past = self._ended() if since else self._sent_until_now()
        """The number of messages that it does not expect because they were sent before, by epoch and subscription."""
        self.left: dict[str, dict[str, int]] | None = None
        """The number of messages sent before it was stopped; None while it runs."""
        self._before = [*scenario.departed, *scenario.subscribers]
        arguments = str(self.record), ",".join(endpoints), ",".join(prefixes), trouble
        options = [*(["recover"] if scenario.history else []), *(["since"] if since else [])]
        self.process = scenario.child("-m", "chaos.subscriber", *arguments, *options, key="reader")

    def _sent_until_now(self) -> dict[str, dict[str, int]]:
        return {run.epoch: {each: len(run.sent(each)) for each in self.cover} for run in self.scenario.runs()}

    def _ended(self) -> dict[str, dict[str, int]]:
        """Return the numbers of messages of the runs that have ended."""
        current = {publisher.now.epoch for publisher in self.scenario.publishers}
        return {epoch: counts for epoch, counts in self._sent_until_now().items() if epoch not in current}

    def attach(self, prefix: str) -> None:
        """Attach a handler that begins with all messages of the running publishers.

        No other prefix may cover this one, or be covered by it.
        """
        self.prefixes.append(prefix)
        self.cover.append(prefix)
        for epoch, counts in self._ended().items():
            self.past.setdefault(epoch, {})[prefix] = counts[prefix]
        self.process.write(f"{prefix}\n")

    def told(self) -> dict[str, Any]:
        """Return the last counters that it printed."""
        lines = [line for line in self.process.out if line.startswith("{")]
        return dict(json.loads(lines[-1])) if lines else {"totals": {}, "joined": [], "stats": {}}

    def lines(self) -> list[list[str]]:
        """Return the words of each line of its record."""
        return [line.split() for line in whole_lines(self.record)]

    def has_joined(self) -> bool:
        return set(self.told()["joined"]) >= {publisher.now.epoch for publisher in self.scenario.publishers}

    def has_all(self) -> bool:
        """Return True if all messages of the current runs are seen or counted as lost."""
        totals = self.told()["totals"]
        runs = [publisher.now for publisher in self.scenario.publishers]
        return all(
            totals.get(f"{each} {run.epoch}", 0) >= len(run.sent(each)) - self.past.get(run.epoch, {}).get(each, 0)
            for run in runs
            for each in self.cover
        )

    def base(self, epoch: str, subscription: str) -> int:
        """Return the number of messages sent before the publisher began to count.

        It begins with the first subscriber, which may be this one.
        """
        for each in self._before:
            if subscription in each.cover and (each.left is None or epoch in each.left):
                return each.base(epoch, subscription)
        return self.past.get(epoch, {}).get(subscription, 0)

    def stop(self, number: signal.Signals) -> None:
        self.left = self._sent_until_now()
        code = self.process.end(number, PATIENCE)
        self.scenario.expect(code == 0, f"subscriber {self.name} ended with {code}: {self.process.err[-5:]}")


@dataclass
class Scenario(Play):
    """The trouble of one seed; `play` runs it."""

    names = ("feed-0", "feed-1", "feed-2", "reader", "relay-0", "relay-1")
    history: ClassVar[tuple[str, ...]] = ()
    """The number of messages that publishers keep, if subscribers recover lost ones."""

    pace: tuple[str, ...] = ()
    """The rate of the publishers and the length of their send queues, if they are limited."""
    publishers: list[Publisher] = field(default_factory=list)
    fronts: list[TroubleProxy] = field(default_factory=list)
    """The proxies in front of the publishers."""
    subscribers: list[Subscriber] = field(default_factory=list)
    departed: list[Subscriber] = field(default_factory=list)
    shaken: bool = False
    """True if a connection was cut and may not be back."""

    def perform(self) -> None:
        """Make two to four troubles in a row, then check that losses have ended."""
        self._set_up()
        for _ in range(self.chance.randint(2, 4)):
            self._trouble(self._kinds())
        self._settle()
        self._last_words()
        self._end()

    def judge(self) -> None:
        """Compare the records; see `compare`."""
        compare(self)

    def runs(self) -> Iterator[Run]:
        for publisher in self.publishers:
            yield from publisher.runs

    def proxies(self) -> list[TroubleProxy]:
        return self.fronts + ([self.outlet] if self.forwarded else [])

    # -- before

    def _set_up(self) -> None:
        for name in range(self.chance.choice((1, 2, 2, 3))):
            port = free_port()
            self.publishers.append(Publisher(self, name, [f"tcp://127.0.0.1:{port}"]))
            self.fronts.append(self.proxy(port))
        self.done += [f"publisher {each.name}: {each.overflow}, {each.travel}" for each in self.publishers]
        self.forwarded = self.chance.random() < 0.4
        endpoints = self._publishing()
        if self.forwarded:
            self.forwarder_port = free_port()
            self._forward()
            self.outlet = self.proxy(self.forwarder_port)
            endpoints = [self.ring.at("relay-0", self.outlet.endpoint)]
            if self.chance.random() < 0.3:
                endpoints = [self._second_forwarder(endpoints[0])]
        if self.chance.random() < 0.5:  # by name: libzmq then reports an address that differs from the endpoint
            endpoints = [endpoint.replace("127.0.0.1", "localhost") for endpoint in endpoints]
            self.done.append("by name")
        for name in range(self.chance.randint(1, 3)):
            self._subscribe(str(name), endpoints)
        self.wait("the first joins", lambda: all(each.has_joined() for each in self.subscribers))

    def _publishing(self) -> list[str]:
        """Return the endpoints to connect to the publishers, through the proxies."""
        return [self.ring.at(f"feed-{name}", front.endpoint) for name, front in enumerate(self.fronts)]

    def _forward(self) -> None:
        back = f"tcp://127.0.0.1:{self.forwarder_port}"
        self.forwarder = self._forwarder(back, self._publishing(), "relay-0")

    def _second_forwarder(self, front: str) -> str:
        """Start a forwarder behind the forwarder, and return its publishing endpoint."""
        back = f"tcp://127.0.0.1:{free_port()}"
        self._forwarder(back, [front], "relay-1")
        self.done.append("two proxies")
        return self.ring.at("relay-1", back)

    def _forwarder(self, back: str, fronts: list[str], key: str) -> Child:
        dialled = [f"connect:{front}" for front in fronts]
        forwarder = self.child("-m", "chaos.forwarder", f"bind:{back}", *dialled, key=key)
        forwarder.line_with("forwarding")
        return forwarder

    def _subscribe(self, name: str, endpoints: list[str]) -> None:
        prefixes = self.chance.sample(PREFIXES, self.chance.randint(1, 4))
        trouble = self.chance.choice(("none", "none", "raises", "slow", "hangs"))
        self.subscribers.append(Subscriber(self, name, endpoints, prefixes, trouble))
        self.done.append(f"subscriber {name}: {' '.join(prefixes)}; its handlers: {trouble}; at {len(endpoints)}")

    # -- trouble

    def _trouble(self, kinds: list[Callable[[], object]]) -> None:
        kind = self.chance.choice(kinds)
        self.done.append(kind.__name__)
        kind()

    def _kinds(self) -> list[Callable[[], object]]:
        kinds: list[Callable[[], object]] = [
            self.flood,
            self.cut,
            self.reset,
            self.slow,
            self.stall,
            self.freeze_subscriber,
            self.freeze_publisher,
            self.kill_publisher,
            self.restart_publisher,
            self.stop_publisher,
            self.restart_subscriber,
            self.come_and_go,
        ]
        if self.forwarded:
            kinds.append(self.kill_forwarder)
        return kinds

    def _burst(self, smallest: int = 1_000, largest: int = 20_000) -> None:
        for publisher in self.publishers:
            publisher.burst(self.chance.randint(smallest, largest))

    def _finish(self) -> None:
        for publisher in self.publishers:
            publisher.finish()

    def flood(self) -> None:
        self._burst(20_000, 60_000)
        self._finish()

    def cut(self) -> None:
        self._burst()
        for _ in range(self.chance.randint(1, 3)):
            time.sleep(self.chance.uniform(0, 0.2))  # trouble comes at any moment, which the seed decides
            self.chance.choice(self.proxies()).cut()
        self.shaken = True
        self._finish()

    def reset(self) -> None:
        self._burst()
        for _ in range(self.chance.randint(1, 3)):
            time.sleep(self.chance.uniform(0, 0.2))
            self.chance.choice(self.proxies()).reset()
        self.shaken = True
        self._finish()

    def slow(self) -> None:
        proxy = self.chance.choice(self.proxies())
        proxy.slow(self.chance.uniform(0.001, 0.02), self.chance.choice((100, 1_000, 20_000)))
        self._burst(500, 3_000)
        time.sleep(1)
        proxy.flow()
        self._finish()

    def stall(self) -> None:
        proxy = self.chance.choice(self.proxies())
        self._burst()
        proxy.stall()
        time.sleep(self.chance.choice((0.5, 1.5, 6)))  # the longest outlasts the answer to a marker
        proxy.flow()
        self._finish()

    def freeze_subscriber(self) -> None:
        frozen = self.chance.choice(self.subscribers).process.process
        self._burst(5_000, 30_000)
        frozen.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.choice((0.5, 2)))
        frozen.send_signal(signal.SIGCONT)
        self._finish()

    def freeze_publisher(self) -> None:
        frozen = self.chance.choice(self.publishers).now.process.process
        self._burst()
        time.sleep(self.chance.uniform(0, 0.2))
        frozen.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.choice((0.5, 2, 7)))
        frozen.send_signal(signal.SIGCONT)
        self._finish()

    def kill_publisher(self) -> None:
        publisher = self.chance.choice(self.publishers)
        self._burst()
        time.sleep(self.chance.uniform(0, 0.3))
        publisher.now.process.end(signal.SIGKILL)
        publisher.now.killed = True
        publisher.start()
        self._finish()
        self.wait("a join to the new run", lambda: all(each.has_joined() for each in self.subscribers))

    def restart_publisher(self) -> None:
        self._settle()
        publisher = self.chance.choice(self.publishers)
        publisher.stop()
        publisher.start()
        self.wait("a join to the new run", lambda: all(each.has_joined() for each in self.subscribers))

    def stop_publisher(self) -> None:
        """Stop a publisher during a burst: its messages until then are seen or counted."""
        publisher = self.chance.choice(self.publishers)
        self._burst(5_000, 20_000)
        time.sleep(self.chance.uniform(0, 0.3))
        publisher.stop()
        publisher.start()
        self._finish()
        self.wait("a join to the new run", lambda: all(each.has_joined() for each in self.subscribers))

    def restart_subscriber(self) -> None:
        self._settle()
        old = self.subscribers.pop(self.chance.randrange(len(self.subscribers)))
        old.stop(self.chance.choice((signal.SIGINT, signal.SIGTERM)))
        self.departed.append(old)
        self._subscribe(old.name + "'", old.endpoints)
        self.wait("the joins of the new one", self.subscribers[-1].has_joined)

    def come_and_go(self) -> None:
        """Add a subscriber whose handler closes its own app during a stream.

        The others must not be affected.
        """
        self._settle()
        endpoints = self.subscribers[0].endpoints
        guest = Subscriber(self, f"guest-{len(self.departed)}", endpoints, ["a", "a.b."], "closes")
        self.wait("the guest's joins", guest.has_joined)
        self._burst(5_000, 20_000)
        code = guest.process.end(None, PATIENCE)
        self.expect(code == 0, f"the guest ended with {code}: {guest.process.err[-5:]}")
        self.departed.append(guest)
        self._finish()

    def kill_forwarder(self) -> None:
        self._burst()
        time.sleep(self.chance.uniform(0, 0.2))
        self.forwarder.end(signal.SIGKILL)
        self._forward()
        self.shaken = True
        self._finish()

    # -- after

    def situation(self) -> str:
        """Return the present counters and log of the subscribers."""
        return "\n".join(f"{each.name} {each.told()} {each.process.err[-5:]}" for each in self.subscribers)

    def _settle(self) -> None:
        """Wait until all subscribers are connected and have accounted for all messages."""
        self._finish()
        if self.shaken:
            time.sleep(
                RECONNECTED_WITH_KEYS if self.ring else RECONNECTED
            )  # a peer that is away and received nothing seems to have accounted for everything
            self.shaken = False
        self.wait("all that was sent", lambda: all(each.has_all() for each in self.subscribers))

    def _last_words(self) -> None:
        """Check that soon after the trouble, every subscriber sees a whole burst."""
        deadline = time.monotonic() + PATIENCE
        while True:
            before = {run.epoch: len(whole_lines(run.record)) for run in self.runs()}
            self._burst(100, 300)
            self._settle()
            if all(self._saw_all_since(each, before) for each in self.subscribers):
                return
            self.figures["last words repeated"] += 1
            assert time.monotonic() < deadline, "messages are still lost after the end of the trouble"
            time.sleep(0.3)

    def _saw_all_since(self, subscriber: Subscriber, before: dict[str, int]) -> bool:
        seen = {
            (words[1], words[2], int(words[4]))
            for words in map(str.split, whole_lines(subscriber.record))
            if words[0] == "m"
        }
        return all(
            (prefix, run.epoch, number) in seen
            for run in (publisher.now for publisher in self.publishers)
            for prefix in subscriber.prefixes
            for number in run.sent(prefix)
            if number > before[run.epoch]
        )

    def _end(self) -> None:
        for subscriber in self.subscribers:
            subscriber.stop(self.chance.choice((signal.SIGINT, signal.SIGTERM)))
        for publisher in self.publishers:
            publisher.stop()


# -- the verdict ------------------------------------------------------------------------------------------


class Recovery(Scenario):
    """The same trouble, with publishers that keep their messages and subscribers that recover lost ones."""

    history = ("200000",)


class ShortRecovery(Scenario):
    """The same, with histories that are often too short."""

    history = ("300",)


def compare(scenario: Scenario) -> None:
    """Compare the seen messages with the sent ones."""
    for subscriber in (*scenario.departed, *scenario.subscribers):
        lines = subscriber.lines()
        unknown = 0
        for run in scenario.runs():
            for subscription in subscriber.cover:
                unknown += _compare_sums(scenario, subscriber, run, subscription, lines)
            compare_messages(scenario, subscriber, run, lines)
        stats = subscriber.told()["stats"]
        bounded = subscriber.trouble == "closes" or any(run.killed for run in scenario.runs())
        tails = stats["unknown_losses"]
        scenario.figures["unknown losses"] += tails
        scenario.figures["recovered"] += stats["recovered"]
        scenario.expect(tails == 0 or bounded, f"{subscriber.name}: {tails} unknown losses, but no process was killed")
        scenario.expect(
            tails > 0 or not unknown or subscriber.trouble == "closes",
            f"{subscriber.name}: {unknown} lost, not reported",
        )
        compare_identities(scenario, subscriber, stats, lines)


def _compare_sums(
    scenario: Scenario, subscriber: Subscriber, run: Run, subscription: str, lines: list[list[str]]
) -> int:
    """Check that each message of ``run`` was seen or is in a gap.

    Returns the length of the tail: the messages after the last one that are in neither.
    """
    who = f"{subscriber.name}, {subscription!r} of {run.epoch}"
    sent = run.sent(subscription)
    past = subscriber.past.get(run.epoch, {}).get(subscription, 0)
    if subscriber.left is not None:
        del sent[subscriber.left.get(run.epoch, {}).get(subscription, 0) :]
    seen = {int(words[4]) for words in lines if words[:3] == ["m", subscription, run.epoch]}
    missing = {index for index, number in enumerate(sent, 1) if index > past and number not in seen}
    base = subscriber.base(run.epoch, subscription)
    told: set[int] = set()
    for words in lines:
        if words[:3] == ["g", subscription, run.epoch]:
            told |= set(range(base + (int(words[3]) & _INDEX), base + (int(words[4]) & _INDEX) + 1))
    scenario.figures["seen"] += len(seen)
    scenario.figures["lost"] += len(told)
    false = told - missing
    scenario.expect(not false, f"{who}: {len(false)} counted as lost but seen: {_few(false)}")
    tail = missing - told
    if run.killed or subscriber.trouble == "closes":
        last = max(told | {index for index, number in enumerate(sent, 1) if number in seen}, default=0)
        tail = {index for index in tail if index <= last}
    scenario.expect(not tail, f"{who}: {len(tail)} lost but not counted: {_few(tail)}; sent {len(sent)}, past {past}")
    return len(missing - told) - len(tail)


def compare_messages(scenario: Scenario, subscriber: Subscriber, run: Run, lines: list[list[str]]) -> None:
    """Check that no message was seen twice and each topic is in order.

    Handlers with overlapping patterns must have seen the same messages.
    """
    by_prefix: dict[str, list[tuple[str, int]]] = {prefix: [] for prefix in subscriber.prefixes}
    for words in lines:
        if words[0] == "m" and words[2] == run.epoch:
            by_prefix[words[1]].append((words[3], int(words[4])))
    for prefix, seen in by_prefix.items():
        who = f"{subscriber.name}, {prefix!r} of {run.epoch}"
        numbers = [number for _, number in seen]
        scenario.expect(len(set(numbers)) == len(numbers), f"{who}: some messages were handled twice")
        for topic in TOPICS:
            ordered = [number for each, number in seen if each == topic]
            scenario.expect(ordered == sorted(ordered), f"{who}: {topic} out of order")
        cover = next(each for each in subscriber.cover if prefix.startswith(each))
        expected = [each for each in by_prefix[cover] if each[0].startswith(prefix)]
        scenario.expect(sorted(seen) == sorted(expected), f"{who}: {len(seen)} seen, but {len(expected)} by {cover!r}")


def compare_identities(
    scenario: Scenario, subscriber: Subscriber, stats: dict[str, Any], lines: list[list[str]]
) -> None:
    """Check the sums of the counters of a subscriber."""
    who = subscriber.name
    parts = ("routed", "unrouted", "malformed", "duplicate", "control")
    total = sum(stats[part] for part in parts)
    scenario.expect(stats["received"] == total, f"{who}: received {stats['received']}, but the parts are {total}")
    scenario.expect(stats["malformed"] == 0, f"{who}: {stats['malformed']} malformed")
    lost = sum((int(words[4]) - int(words[3]) + 1) for words in lines if words[0] == "g")
    scenario.expect(stats["lost"] == lost, f"{who}: lost {stats['lost']}, but {lost} in gaps")
    calls = sum(words[0] == "m" for words in lines)
    routes = stats["routes"].values()
    given = sum(sum(route.values()) for route in routes)
    scenario.expect(calls == given, f"{who}: {calls} calls, but the routes received {given}: {stats['routes']}")
    covers = sum(words[0] == "m" and words[1] in subscriber.cover for words in lines)
    scenario.expect(stats["routed"] == covers, f"{who}: routed {stats['routed']}, but {covers} seen")
    unfinished = sum(route["queued"] + route["in_flight"] for route in routes)
    scenario.expect(unfinished == 0, f"{who}: {unfinished} unfinished at the end")


def _few(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    return f"{ordered[:5]}…{ordered[-3:]}" if len(ordered) > 8 else str(ordered)
