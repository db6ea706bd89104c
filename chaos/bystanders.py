"""Seeds in which publisher A is in trouble and B and C must not be affected.

B and C stream steadily, far below the limits of any queue. After the subscribers have joined, each message of B and C
must be handled once and in order. No gap and no unknown loss may name B or C, and their connections must stay open. A
liar beside A may disturb them for a moment, but not permanently. `Bystanders.judge` compares the files that the
processes write.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.keyed import STRANGER
from chaos.liar import FORGED, LIES
from chaos.play import PATIENCE, Play, whole_lines
from chaos.proxy import TroubleProxy
from tests.support import Child, free_port, has_ipv6

TOPOLOGIES = ("alone", "several", "several", "bound", "proxy", "proxies", "mixed")
CONNECTION_TROUBLES = ("stall", "cut", "reset")
LIES_TOLD = ("lie_beside", "lie_in_place")
TROUBLES = (
    "kill_and_stay_away",
    "kill_and_return",
    "kill_and_replace",
    "freeze",
    "stop_and_return",
    *CONNECTION_TROUBLES,
    *LIES_TOLD,
)

JUDGED = 12.0
"""Seconds in which a subscriber reports a publisher that streamed and fell silent, with a margin."""

JUDGED_IDLE = 42.0
"""The same for a publisher that was idle before: its heartbeats had ended, so this takes longer."""

RECOVERED = 15.0
"""Seconds after the last forged frame in which a subscriber must recover."""

CAUGHT_UP = 30.0
"""Seconds at the end for handling the last messages; only a failing seed waits for all of them."""


HOSTS = ("127.0.0.1", "localhost", *(["::1"] if has_ipv6() else []))


@dataclass
class Run:
    """One process of a publisher."""

    process: Child
    record: Path
    epoch: str
    name: str
    ending: str = ""
    """How it ended before the end of the seed: ``killed``, ``stopped``, or empty if it did not."""

    @property
    def last(self) -> int:
        """The number of its last message."""
        numbers = self.sent()
        return numbers[-1] if numbers else 0

    def sent(self) -> list[int]:
        """Return the numbers of all its messages, in order."""
        return [int(line.split()[1]) for line in whole_lines(self.record)]

    def cuts(self) -> list[str]:
        """Return the disconnect events that its socket printed."""
        return [line for line in self.process.out if line.startswith("event disconnected")]


@dataclass
class Publisher:
    """A, B or C: its endpoints and its runs."""

    letter: str
    wire: str
    period: float
    endpoints: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def now(self) -> Run:
        return self.runs[-1]


@dataclass
class Subscriber:
    """One subscriber and the letters of its publishers.

    ``base`` has the publishers' numbers when it had joined.
    """

    letters: str
    endpoints: list[str]
    record: Path
    process: Child | None = None
    base: dict[str, int] = field(default_factory=dict)
    recovered: dict[str, int] = field(default_factory=dict)
    """The publishers' numbers when it must have recovered from lies."""

    def told(self) -> dict[str, Any]:
        """Return the last counters that it printed."""
        assert self.process is not None
        lines = [line for line in self.process.out if line.startswith("{")]
        return dict(json.loads(lines[-1])) if lines else {"joined": [], "stats": {}}

    def lines(self, kind: str) -> list[list[str]]:
        """Return the words of its record's lines of this kind: ``m`` or ``g``."""
        return [words for words in map(str.split, whole_lines(self.record)) if words[0] == kind]

    def seen(self, letter: str, epoch: str | None = None) -> list[int]:
        """Return the numbers that its handler received from a publisher, or from one run.

        Forged messages are left out.
        """
        lines = [words for words in self.lines("m") if words[-2] == f"s.{letter}" and int(words[-1]) > 0]
        return [int(words[-1]) for words in lines if epoch is None or words[2] == epoch]

    def lost(self, epoch: str) -> int:
        """Return the number of lost messages of a run, by its gaps."""
        return sum(int(words[4]) - int(words[3]) + 1 for words in self.lines("g") if words[2] == epoch)


@dataclass
class Bystanders(Play):
    """The trouble of one seed; parameters that are not given are drawn from the seed."""

    names = ("feed-A", "feed-B", "feed-C", "reader", "relay-0", "relay-1", "liar")

    topology: str = ""
    trouble: str = ""
    host: str = ""
    watched: float = 0.0
    """Seconds for which the bystanders are watched after each step."""
    strange: bool = False
    """True if the liar has a key that no process knows."""
    steady: bool = False
    """True if B and C must have fast streams, which show a loss within little time."""
    publishers: dict[str, Publisher] = field(default_factory=dict)
    subscribers: list[Subscriber] = field(default_factory=list)
    forwarders: list[Child] = field(default_factory=list)
    proxies: list[TroubleProxy] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    """The disconnects of the bystanders, until the seed itself ends their connections."""

    def perform(self) -> None:
        """Start all streams, make trouble for A, watch, and stop."""
        self._draw()
        self._build()
        self._start()
        self._watch(self.chance.uniform(1, 2))
        getattr(self, self.trouble)()
        self._end()

    def _draw(self) -> None:
        self.topology = self.topology or self.chance.choice(TOPOLOGIES)
        self.trouble = self.trouble or self.chance.choice(TROUBLES)
        self.host = self.host or self.chance.choice(HOSTS)
        # A's past decides when it is reported: an idle publisher no longer sends heartbeats.
        self.idle = not self.watched and self.trouble not in LIES_TOLD and self.chance.random() < 0.3
        self.watched = self.watched or (JUDGED_IDLE if self.idle else self.chance.choice((JUDGED, JUDGED, 20.0)))
        letters = "ABC" if self.topology == "mixed" else self.chance.choice(("AB", "ABC"))
        plain = not self.lying and self.chance.random() < 0.2
        periods = {"A": (0.02, 0.1), "B": (0.02, 0.02, 0.05, 1.0, 4.0), "C": (0.05, 0.5, 7.0)}
        for letter in letters:
            wire = "plain" if plain and letter == "B" else "tracked"
            period = 0.02 if self.steady else self.chance.choice(periods[letter])
            self.publishers[letter] = Publisher(letter, wire, period)
        told = ", ".join(f"{each.letter} {each.wire} {each.period}" for each in self.publishers.values())
        self.done.append(
            f"{self.trouble}, {self.topology} at {self.host}; {told}; watched {self.watched:g}; A idle: {self.idle}"
        )

    @property
    def lying(self) -> bool:
        """True if forged frames are part of the trouble."""
        return self.trouble in LIES_TOLD

    @property
    def deceived(self) -> bool:
        """True if forged frames reach the subscribers."""
        return self.lying and not self.strange

    # -- topologies ---------------------------------------------------------------------------------------

    def _bound(self, port: int) -> str:
        host = "127.0.0.1" if self.host == "localhost" else self.host
        return f"bind:tcp://[{host}]:{port}" if ":" in host else f"bind:tcp://{host}:{port}"

    def _dialled(self, port: int, peer: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.ring.at(peer, f"connect:tcp://{host}:{port}")

    def _to(self, letter: str, port: int, peer: str) -> str:
        """Return the endpoint that connects a publisher to ``peer`` at ``port``, or the peer to the publisher.

        ``peer`` is the name of the key there. A's connection goes through a proxy if the trouble needs one.
        """
        if letter == "A" and self.trouble in CONNECTION_TROUBLES:
            self.proxies.append(self.proxy(port, "::1" if ":" in self.host else "127.0.0.1"))
            port = self.proxies[-1].port
        return self._dialled(port, peer)

    def _build(self) -> None:
        beside = "L" if self.trouble == "lie_beside" else ""
        self.slots: dict[str, list[str]] = {letter: [] for letter in (*self.publishers, *beside)}
        getattr(self, f"_build_{self.topology}")()

    def _serving(self, letters: Iterable[str]) -> list[str]:
        """Bind these publishers; return the endpoints to connect to."""
        far = []
        for letter in letters:
            port = free_port()
            self.slots[letter] = [self._bound(port)]
            far.append(self._to(letter, port, _key_of(letter)))
        return far

    def _subscriber(self, letters: Iterable[str], endpoints: list[str]) -> None:
        record = self.folder / f"seen-{len(self.subscribers)}"
        known = "".join(letter for letter in letters if letter in self.publishers)
        self.subscribers.append(Subscriber(known, endpoints, record))

    def _some_subscribers(self, letters: Iterable[str], endpoints: list[str]) -> None:
        for _ in range(self.chance.choice((1, 1, 2))):
            self._subscriber(letters, endpoints)

    def _build_alone(self) -> None:
        """Give each publisher a subscriber of its own."""
        for letter in self.publishers:
            letters = [letter, "L"] if letter == "A" and "L" in self.slots else [letter]
            self._subscriber(letters, self._serving(letters))

    def _build_several(self) -> None:
        """Connect each subscriber to all publishers."""
        self._some_subscribers(self.slots, self._serving(self.slots))

    def _build_bound(self) -> None:
        """Connect each publisher to all subscribers."""
        for _ in range(self.chance.choice((1, 1, 2))):
            port = free_port()
            self._subscriber(self.slots, [self._bound(port)])
            for letter in self.slots:
                self.slots[letter].append(self._to(letter, port, "reader"))

    def _build_proxy(self) -> None:
        """Put all publishers behind one forwarder."""
        self._some_subscribers(self.slots, [self._forwarded(self.slots)])

    def _build_proxies(self) -> None:
        """Put all publishers behind two forwarders in a row."""
        self._some_subscribers(self.slots, [self._forwarder([self._forwarded(self.slots)])])

    def _build_mixed(self) -> None:
        """Connect C directly, and put all others behind a forwarder."""
        behind = [letter for letter in self.slots if letter != "C"]
        self._some_subscribers(self.slots, [self._forwarded(behind), *self._serving("C")])

    def _forwarded(self, letters: Iterable[str]) -> str:
        """Start a forwarder for these publishers; return the endpoint to connect to.

        The publishers connect to the forwarder, or the forwarder connects to them.
        """
        if self.chance.random() < 0.5:
            return self._forwarder(self._serving(letters))
        port = free_port()
        for letter in letters:
            self.slots[letter] = [self._to(letter, port, f"relay-{len(self.forwarders)}")]
        return self._forwarder([self._bound(port)])

    def _forwarder(self, fronts: list[str]) -> str:
        back, key = free_port(), f"relay-{len(self.forwarders)}"
        forwarder = self.child("-m", "chaos.forwarder", self._bound(back), *fronts, key=key)
        forwarder.line_with("forwarding")
        self.forwarders.append(forwarder)
        return self._dialled(back, key)

    # -- the beginning and the end ------------------------------------------------------------------------

    def _start(self) -> None:
        starts: list[Callable[[], None]] = [
            *(lambda letter=letter: self._publish(letter, f"feed-{letter}") for letter in self.publishers),
            *(lambda each=each: self._subscribe(each) for each in self.subscribers),
        ]
        self.chance.shuffle(starts)
        for start in starts:
            start()
        self.wait("the joins", lambda: all(map(self._has_joined, self.subscribers)))
        for each in self.subscribers:
            each.base = {letter: self.publishers[letter].now.last for letter in each.letters}
        if self.idle:
            self._order("A", "pause")

    def _publish(self, letter: str, name: str) -> None:
        publisher = self.publishers[letter]
        record = self.folder / f"sent-{letter}-{len(publisher.runs)}"
        endpoints = ",".join(self.slots[letter])
        process = self.child(
            "-m",
            "chaos.streamer",
            endpoints,
            str(record),
            letter,
            name,
            publisher.wire,
            str(publisher.period),
            key=_key_of(letter),
        )
        epoch = process.line_with("epoch").removeprefix("epoch").strip()
        called = process.line_with("name").removeprefix("name").strip()
        publisher.runs.append(Run(process, record, epoch, called))
        process.write("go\n")

    def _subscribe(self, each: Subscriber) -> None:
        arguments = str(each.record), ",".join(each.endpoints), "s.", "none"
        each.process = self.child("-m", "chaos.subscriber", *arguments, key="reader")

    def _has_joined(self, each: Subscriber) -> bool:
        publishers = [self.publishers[letter] for letter in each.letters]
        joined = set(each.told()["joined"])
        tracked = {publisher.now.epoch for publisher in publishers if publisher.wire == "tracked"}
        return joined >= tracked and all(each.seen(publisher.letter) for publisher in publishers)

    def _order(self, letter: str, word: str) -> None:
        run = self.publishers[letter].now
        before = len([line for line in run.process.out if line.startswith("paused at")])
        run.process.write(f"{word}\n")
        if word == "pause":
            self.wait(
                f"{letter} to pause",
                lambda: len([line for line in run.process.out if line.startswith("paused at")]) > before,
            )

    def _watch(self, seconds: float) -> None:
        time.sleep(seconds)  # a subscriber may report A, but not B and C, at any moment of this time

    def _end(self) -> None:
        living = [each for each in self.publishers.values() if not each.now.ending]
        for publisher in living:
            self._order(publisher.letter, "pause")
        deadline = time.monotonic() + CAUGHT_UP
        while not all(map(self._has_all, self.subscribers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._note_cuts()
        for number, each in enumerate(self.subscribers):
            assert each.process is not None
            code = each.process.end(signal.SIGINT, PATIENCE)
            self.expect(code == 0, f"subscriber {number} ended with {code}: {each.process.err[-5:]}")
        for publisher in living:
            self._stop(publisher)

    def _has_all(self, each: Subscriber) -> bool:
        """Return True if the last messages of all running publishers were handled."""
        runs = [self.publishers[letter] for letter in each.letters if not self.publishers[letter].now.ending]
        return all(run.now.last in each.seen(run.letter, _epoch(run)) for run in runs)

    def _stop(self, publisher: Publisher) -> None:
        publisher.now.process.write("stop\n")
        code = publisher.now.process.end(None, PATIENCE)
        self.expect(code == 0, f"{publisher.letter} ended with {code}: {publisher.now.process.err[-5:]}")

    def _note_cuts(self) -> None:
        for letter, publisher in self.publishers.items():
            if letter != "A":
                self.before += [f"{letter}: {cut}" for cut in publisher.now.cuts()]
        for number, forwarder in enumerate(self.forwarders):
            told = [line for line in forwarder.out if line.startswith("event back disconnected")]
            self.before += [f"forwarder {number}: {line}" for line in told]

    # -- the trouble of A ---------------------------------------------------------------------------------

    def _kill(self) -> None:
        run = self.publishers["A"].now
        run.ending = "killed"
        run.process.end(signal.SIGKILL)

    def _return(self, name: str = "feed-A") -> None:
        self._publish("A", name)
        run = self.publishers["A"].now
        there = [each for each in self.subscribers if "A" in each.letters]
        self.wait("A's new run to be handled", lambda: all(each.seen("A", run.epoch) for each in there))
        self._watch(self.watched)

    def _away(self) -> None:
        """Keep A away: a moment, longer than a reconnect, or until it is reported."""
        self._watch(self.chance.choice((0.3, 3.0, self.watched)))

    def kill_and_stay_away(self) -> None:
        self._kill()
        self._watch(self.watched)

    def kill_and_return(self) -> None:
        self._kill()
        self._away()
        self._return()

    def kill_and_replace(self) -> None:
        """Kill A and let another app take its address."""
        self._kill()
        self._away()
        self._return("another")

    def stop_and_return(self) -> None:
        publisher = self.publishers["A"]
        self._stop(publisher)
        publisher.now.ending = "stopped"
        self._away()
        self._return()

    def freeze(self) -> None:
        process = self.publishers["A"].now.process.process
        process.send_signal(signal.SIGSTOP)
        self._away()
        process.send_signal(signal.SIGCONT)
        self._watch(self.watched / 2)

    def stall(self) -> None:
        for proxy in self.proxies:
            proxy.stall()
        self._away()
        for proxy in self.proxies:
            proxy.flow()
        self._watch(self.watched / 2)

    def cut(self) -> None:
        self._break(TroubleProxy.cut)

    def reset(self) -> None:
        self._break(TroubleProxy.reset)

    def _break(self, break_one: Callable[[TroubleProxy], None]) -> None:
        for _ in range(self.chance.randint(1, 5)):
            break_one(self.chance.choice(self.proxies))
            self._watch(self.chance.uniform(0.05, 1.5))
        self._watch(self.watched / 2)

    def lie_beside(self) -> None:
        self._lie("L")

    def lie_in_place(self) -> None:
        self._kill()
        self._lie("A")

    def _lie(self, slot: str) -> None:
        liar = self.child("-m", "chaos.liar", *self.slots[slot], key=self._key_of_liar(slot))
        liar.line_with("epoch")
        self._watch(1)
        for _ in range(self.chance.randint(3, 8)):
            self._forge(liar, self.chance.choice(sorted(LIES)))
            self._watch(self.chance.uniform(0.2, 2))
        if self.chance.random() < 0.5:
            liar.end(signal.SIGKILL)
        if not self.strange:
            self._watch(RECOVERED)
        for each in self.subscribers:
            each.recovered = {letter: self.publishers[letter].now.last for letter in each.letters}
        self._watch(self.watched / 2)

    def _key_of_liar(self, slot: str) -> str:
        """Return the key of a liar: the one of its place, so that its lies are received, or that of a stranger.

        A liar in the place of A that binds has a stolen key, since readers check the key at this address.
        """
        if self.ring and random.Random(f"stranger {self.seed}").random() < 1 / 3:
            self.strange = True
            self.done.append("the liar's key is unknown")
            return STRANGER
        return _key_of(slot)

    def _forge(self, liar: Child, kind: str) -> None:
        run = self.publishers["B"].now
        self.done.append(kind)
        told = len([line for line in liar.out if line.startswith("lied")])
        liar.write(f"lie {kind} {run.epoch} {run.last} {run.name or 'B@nowhere'}\n")
        self.wait("a lie", lambda: len([line for line in liar.out if line.startswith("lied")]) > told)

    # -- the verdict --------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Compare the handled and counted messages with the sent ones."""
        many = len(self.before)
        self.expect(not many, f"the bystanders' connections ended {many} times: {'; '.join(self.before[:3])}")
        self.figures["cuts"] += len(self.before)
        if self.strange:
            forged = sum(words[-1] == str(FORGED) for each in self.subscribers for words in each.lines("m"))
            self.expect(not forged, f"{forged} messages of a liar with an unknown key were handled")
            self.figures["strange liars"] += 1
        for number, each in enumerate(self.subscribers):
            for letter in each.letters:
                if letter != "A":
                    self._judge_bystander(f"subscriber {number}, {letter}", each, self.publishers[letter])
            if "A" in each.letters:
                self._judge_trouble(f"subscriber {number}, A", each)
            self._judge_counters(f"subscriber {number}", each)

    def _judge_bystander(self, who: str, each: Subscriber, publisher: Publisher) -> None:
        run, letter = publisher.now, publisher.letter
        seen = each.seen(letter, _epoch(publisher))
        self.expect(seen == sorted(set(seen)), f"{who}: messages out of order or handled twice")
        disturbed = self.deceived and letter == "B"  # all forged frames are in the name of B
        base = each.recovered[letter] if disturbed else each.base[letter]
        sent = [number for number in run.sent() if number > base]
        missing = sorted(set(sent) - set(seen))
        self.expect(not missing, f"{who}: {len(missing)} of {len(sent)} not handled: {missing[:5]} to {missing[-3:]}")
        self.figures["seen"] += len(seen)
        self.figures["missing"] += len(missing)
        if disturbed or publisher.wire == "plain":
            return
        told = each.lost(run.epoch)
        self.expect(told == 0, f"{who}: a gap of {told} messages names this publisher")
        if self.deceived:  # invented publishers may have displaced it from the accounts
            return
        assert each.process is not None
        named = [line for line in each.process.err if run.epoch in line and ("WARNING" in line or "ERROR" in line)]
        self.expect(not named, f"{who}: the log names this publisher: {named}")

    def _judge_trouble(self, who: str, each: Subscriber) -> None:
        """Check that A's missing messages are counted, or reported as an unknown loss."""
        runs = self.publishers["A"].runs
        tails = each.told()["stats"]["unknown_losses"]
        self.figures["unknown losses"] += tails
        untold = 0
        for run in runs:
            untold += self._judge_run(f"{who} {run.epoch}", each, run)
        killed = any(run.ending == "killed" for run in runs)
        self.expect(tails >= 1 or not (killed or untold), f"{who}: {untold} lost at the end, unknown loss not reported")
        if not self.deceived:
            bound = len(runs) if killed or self.trouble in ("freeze", "stall") else 0
            self.expect(tails <= bound, f"{who}: {tails} unknown losses, expected at most {bound}")

    def _judge_run(self, who: str, each: Subscriber, run: Run) -> int:
        """Compare one run of A.

        Returns the number of messages that are neither handled nor counted.
        """
        seen = each.seen("A", run.epoch)
        self.expect(seen == sorted(set(seen)), f"{who}: messages out of order or handled twice")
        if not seen:
            return 0
        missing = [number for number in run.sent() if number > seen[0] and number not in set(seen)]
        inside = [number for number in missing if number < seen[-1]]
        lost = each.lost(run.epoch)
        self.figures["lost of A"] += lost
        self.expect(
            len(inside) <= lost <= len(missing),
            f"{who}: {lost} counted as lost; {len(inside)} missing before the last seen, {len(missing)} in all",
        )
        return len(missing) - lost

    def _judge_counters(self, who: str, each: Subscriber) -> None:
        stats = each.told()["stats"]
        parts = sum(stats[part] for part in ("routed", "unrouted", "malformed", "duplicate", "control"))
        self.expect(stats["received"] == parts, f"{who}: received {stats['received']}, but the parts are {parts}")
        self.expect(stats["malformed"] == 0, f"{who}: {stats['malformed']} malformed")
        if self.deceived:
            self._judge_sum(who, each, stats["lost"])

    def _judge_sum(self, who: str, each: Subscriber, lost: int) -> None:
        """Check after lies that the messages seen and lost are those that B and C sent."""
        bystanders = [self.publishers[letter] for letter in each.letters if letter != "A"]
        if not bystanders:  # without bystanders, all its losses come from the liar
            return
        epochs = {publisher.now.epoch for publisher in bystanders}
        others = sum(int(words[4]) - int(words[3]) + 1 for words in each.lines("g") if words[2] not in epochs)
        missing = 0
        for publisher in bystanders:
            after = {number for number in publisher.now.sent() if number > each.base[publisher.letter]}
            missing += len(after - set(each.seen(publisher.letter)))
        told = lost - others
        self.expect(told == missing, f"{who}: {missing} of the bystanders not handled, but {told} counted as lost")


def _key_of(letter: str) -> str:
    """Return the name of the key of a publisher, or of the liar."""
    return "liar" if letter == "L" else f"feed-{letter}"


def _epoch(publisher: Publisher) -> str | None:
    """Return the epoch of a publisher's runs in a record.

    A plain publisher has one run and no epoch.
    """
    return publisher.now.epoch if publisher.wire == "tracked" else None
