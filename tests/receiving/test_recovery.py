"""Recovery: random runs of both ends over a network that loses, delays, doubles and cuts.

`Tracker`, `RecoverySession`, `Counters` and `HistoryAnswers` are the real ones; only the network, the clock and the
table of routes are simulated. The runs know all messages that were sent, and compare.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from tests.publishing.test_history import EPOCH
from tests.publishing.test_history import Publisher as Answering
from tests.receiving.test_tracking import joined, received, stated, watched
from tests.support import sized
from zroute.clock import TICK
from zroute.errors import EnvelopeError
from zroute.messages.coalesced import coalesced_framer, parse_coalesced
from zroute.messages.control import (
    COUNT_BITS,
    pack_beat,
    pack_marker,
    pack_statements,
    parse_beat,
    parse_marker,
    parse_statement,
)
from zroute.messages.recovery import (
    BOX,
    RecoveryAnswer,
    RecoveryRequest,
    Since,
    SinceMode,
    pack_recovery_answers,
    parse_recovery_answer,
    parse_recovery_request,
)
from zroute.messages.wire import HEADER_SIZE, NUL, Kind, counted_framer, parse_header, split
from zroute.publishing import recovery as publishing_recovery
from zroute.publishing.counters import Counters
from zroute.publishing.history import History
from zroute.publishing.recovery import HistoryAnswers
from zroute.receiving import recovery_session, stream_recovery
from zroute.receiving.events import Ended, Gap, Joined, Overdue, UnknownLoss, Verdict
from zroute.receiving.hearing import AWAY_SECONDS
from zroute.receiving.recoveries import Recoveries, RecoveryCalls
from zroute.receiving.recovery_session import RecoverySession
from zroute.receiving.replay import Replay
from zroute.receiving.stream_recovery import (
    REST_MAX,
    SEARCHES,
    TRIES,
    WAITING_COST,
    WHOLE_SECONDS,
    Arrival,
    Hold,
    NumberRanges,
    Ready,
    StreamRecovery,
)
from zroute.receiving.tracker import Tracker
from zroute.stats import Stats
from zroute.throttle import ThrottledLog

SUBSCRIBER = 0xC0FFEE
PREFIXES = (b"a.", b"b.")
TOPICS = (b"a.1", b"a.2", b"b.1", b"b.2")
MARKER = pack_marker(SUBSCRIBER << 16, PREFIXES)
KEPT = b"\xff\xffkept"
"""How a kept message of the model begins. Its subscription follows."""
NEVER = 10**9


class Publisher:
    """One run of a publisher, whose frames are put into the links of a network."""

    def __init__(self, net: Network, epoch: int, history: History) -> None:
        self.net, self.epoch = net, epoch
        self.counters = Counters()
        self.answers = HistoryAnswers(net.clock, net.now_ns, self.counters, epoch, self._answer)
        self.ring = self.answers.ring(history)
        self._one = counted_framer(epoch=epoch, count=self.counters.count, clock_ns=net.now_ns)
        self._several = coalesced_framer(epoch=epoch, count=self.counters.count)
        for prefix in PREFIXES:
            self.counters.subscribe(prefix, net.now)
        self.counters.subscribe(MARKER, net.now)
        self.state(Kind.JOIN)
        self.sent: dict[bytes, int] = dict.fromkeys(PREFIXES, 0)

    def publish(self, topic: bytes, many: int) -> None:
        bodies = [b"%d" % (self.sent[topic[:2]] + each) for each in range(1, many + 1)]
        self.sent[topic[:2]] += many
        if many > 1:
            frame = self._several(topic, 2, bodies, self.net.now_ns())
        else:
            made = self._one(topic, 2, bodies[0], None)
            assert isinstance(made, bytes)
            frame = made
        self.ring.keep(frame)
        self.net.send(frame)

    def keep(self, prefix: bytes) -> None:
        """Send a message without a number, as a kept message or a snapshot is."""
        self.net.send(KEPT + prefix)

    def state(self, kind: Any) -> None:
        marker = parse_marker(MARKER)
        numbers = list(self.counters.numbers(marker))
        for frame in pack_statements(
            kind, MARKER, numbers, epoch=self.epoch, name="p", partial=False, sent_at=5, history=True
        ):
            self.net.send(frame)

    def tick(self) -> None:
        self.answers.tick(self.net.now)
        for beat in self.counters.beats(self.net.now):
            self.net.send(pack_beat(beat.prefix, beat.number, epoch=self.epoch, next_ms=beat.next_ms, sent_at=5))

    def _answer(self, box: bytes, frames: list[bytes]) -> None:
        for frame in frames:
            self.net.answer(frame)


class Subscriber:
    """The subscribing end; it does what a session does with the findings of the tracker."""

    def __init__(self, net: Network, hold: Hold) -> None:
        self.net, self.hold = net, hold
        self.tracker = Tracker(chance=lambda: 0.0)
        self.tracker.subscribe(PREFIXES)
        self.tracker.join(MARKER, 0.0)
        self.recovery = RecoverySession(SUBSCRIBER, net.requests.append, hold)
        self.delivered: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self.lost: dict[tuple[int, bytes], int] = defaultdict(int)
        self.before: dict[tuple[int, bytes], int] = {}
        self.duplicates = self.joins = 0
        self.behind: dict[tuple[int, bytes], int] = defaultdict(int)  # the number that the last kept message follows
        self.ended: set[int] = set()
        self.final: dict[tuple[int, bytes], int] = {}

    def read(self, frame: bytes) -> None:
        if frame.startswith(KEPT):
            self._kept(self.net.publisher.epoch, frame[len(KEPT) :])
            return
        topic, _, rest = frame.partition(NUL)
        header = parse_header(rest)
        body, epoch = rest[header.size :], header.epoch
        if header.kind in (Kind.DATA, Kind.COALESCED):
            self._message(topic, header, body, frame)
        elif header.kind is Kind.BEAT and topic.startswith(BOX):
            assert topic == self.recovery.box
            self.recovery.answer(epoch, parse_recovery_answer(body), self.net.now)
        elif header.kind is Kind.BEAT:
            self._tell(self.tracker.beat(epoch, topic, header.sequence, parse_beat(body)))
        else:
            statement = parse_statement(body)
            self.recovery.stated(epoch, history=statement.history)
            self._tell(self.tracker.stated(epoch, topic, statement, goodbye=header.kind is Kind.GOODBYE))
            for prefix in PREFIXES:  # the count begins with the first answer
                self.before.setdefault((epoch, prefix), self.expected(epoch, prefix) - 1)

    def expected(self, epoch: int, prefix: bytes) -> int:
        """Return the next number that the tracker expects; 1 if the account has not begun."""
        known = self.tracker._publishers.get(epoch)
        account = None if known is None else known.streams.get(prefix)
        return 1 if account is None else account.expected

    def _message(self, topic: bytes, header: Any, body: bytes, frame: bytes) -> None:
        prefix = topic[:2]
        account = self.tracker.account(header.epoch, topic, prefix)
        assert account is not None
        many = parse_coalesced(2, body).many if header.kind is Kind.COALESCED else 1
        number = header.number(len(prefix))
        if not account.expected:
            return  # before the join, messages are not counted
        verdict, loss = self.recovery.admit(self.tracker.admit, account, number, many, frame, len(frame), self.net.now)
        if loss is not None:
            self._tell([loss])
        if verdict is Verdict.DELIVER:
            self._deliver((header.epoch, prefix), frame, 0, many)
        self.duplicates += verdict is Verdict.DUPLICATE

    def _kept(self, epoch: int, prefix: bytes) -> None:
        key, account = (epoch, prefix), self.tracker.account(epoch, prefix + b"1", prefix)
        if account is None or not account.expected:
            return
        stream, number = self.recovery.active_stream(account), account.expected - 1
        if stream is None:
            self._deliver_kept(key, number)
        else:
            stream.wait(number, KEPT, 1)

    def _deliver_kept(self, key: tuple[int, bytes], number: int) -> None:
        assert max(self.delivered[key], default=0) <= number, (key, number, "a kept message came too late")
        self.behind[key] = number

    def _deliver(self, key: tuple[int, bytes], frame: bytes, first: int, last: int) -> None:
        """Handle the messages of a frame from index ``first``, up to and without ``last``."""
        rest = frame.partition(NUL)[2]
        header = parse_header(rest)
        body = rest[header.size :]
        bodies = parse_coalesced(2, body).bodies if header.kind is Kind.COALESCED else [body]
        numbers = [int(each) for each in bodies[first:last]]
        assert min(numbers) > self.behind[key], (key, numbers, "a kept message came too early")
        self.delivered[key] += numbers

    def _tell(self, events: Any) -> None:
        for event in events:
            if isinstance(event, Gap):
                if not self.recovery.missed(event, self.net.now):
                    self.lost[event.epoch, event.subscription] += event.count
            elif isinstance(event, UnknownLoss):
                for prefix in event.subscriptions:
                    self.recovery.end_stream(event.epoch, prefix)
            elif isinstance(event, Ended):
                self.ended.add(event.publisher)
                self.final = {(event.publisher, prefix): self.expected(event.publisher, prefix) for prefix in PREFIXES}
            self.joins += isinstance(event, Joined)

    def handle(self, most: int) -> None:
        """Deliver up to ``most`` entries of the streams that recover."""
        for key, _, ready in self.recovery.ready():
            self._ready(key, ready)
            most -= 1
            if most <= 0:
                break

    def _ready(self, key: tuple[int, bytes], ready: Ready) -> None:
        if ready.arrival is None:
            self.lost[key] += ready.last - ready.first + 1
        elif ready.arrival.frame is KEPT:
            self._deliver_kept(key, ready.first)
        else:
            start = ready.arrival.first
            self._deliver(key, ready.arrival.frame, ready.first - start, ready.last - start + 1)

    @property
    def is_ready(self) -> bool:
        return any(stream.ready for stream in self.recovery._streams.values())


class Network:
    """A connection for messages and answers, a second path for late copies, and the way of the requests."""

    def __init__(self, chance: random.Random, *, suffices: bool) -> None:
        self.chance = chance
        self.clock = Clock()
        self.loss = chance.choice((0, 0.05, 0.3))
        self.answers_lost = chance.choice((0, 0.1, 0.4))
        self.requests_lost = chance.choice((0, 0.2))
        self.doubled = chance.choice((0, 0.1))
        self.own_path = chance.random() < 0.3  # answers overtake messages, or are overtaken
        self.batches = chance.choice((1, 1, 4))
        self.restarts = 0 if suffices else chance.choice((0, 0.003))
        self.down_until = 0.0
        self.live: deque[bytes] = deque()
        self.second: list[tuple[float, bytes]] = []
        self.back: deque[bytes] = deque()
        self.requests: list[bytes] = []
        self.history = History(seconds=120) if suffices else History(messages=chance.choice((3, 20, 100)))
        self.publisher = Publisher(self, 1, self.history)
        self.subscriber = Subscriber(self, Hold(chance.choice((2, 5, 50, NEVER))))
        self.runs = [self.publisher]

    @property
    def now(self) -> float:
        return self.clock.seconds()

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    @property
    def down(self) -> bool:
        return self.now < self.down_until

    @property
    def busy(self) -> bool:
        return bool(self.live or self.back or self.second)

    def send(self, frame: bytes) -> None:
        if not self.down and self.chance.random() >= self.loss:
            self.live.append(frame)
        if not frame.startswith(MARKER) and self.chance.random() < self.doubled:
            self.second.append((self.now + self.chance.random() * 2, frame))

    def answer(self, frame: bytes) -> None:
        if not self.down and self.chance.random() >= self.answers_lost:
            (self.back if self.own_path else self.live).append(frame)

    def restart(self) -> None:
        """Kill the publisher, and start its next run; nothing of the earlier one arrives any more."""
        before = self.publisher
        before.answers.close()
        self.live.clear()
        self.back.clear()
        self.requests.clear()
        self.second.clear()
        self.subscriber.recovery.end(before.epoch)
        self.publisher = Publisher(self, before.epoch + 1, self.history)
        self.runs.append(self.publisher)

    def step(self, at: int, *, healed: bool = False) -> None:
        chance = self.chance
        self.clock.advance(0.01)
        for topic in self.requests:
            if healed or not (self.down or chance.random() < self.requests_lost):
                self.publisher.answers.request(topic)
        self.requests.clear()
        for due in [each for each in self.second if each[0] <= self.now]:
            self.second.remove(due)
            self.live.append(due[1])
        for queue, most in ((self.live, chance.choice((0, 2, 8))), (self.back, chance.choice((0, 2)))):
            for _ in range(len(queue) if healed else min(most, len(queue))):
                self.subscriber.read(queue.popleft())
        self.subscriber.handle(NEVER if healed else chance.choice((0, 3, 20)))
        emptied = not (self.live or self.back)
        if emptied and not self.subscriber.is_ready:
            self.subscriber.recovery.ask(self.now)
        if at % round(TICK / 0.01) == 0:
            self.publisher.tick()
            self.subscriber.recovery.tick(self.now, emptied=emptied)
            self.subscriber._tell(self.subscriber.tracker.check(self.now, emptied=False))


@attrs.define
class Result:
    """What a run has seen."""

    recovered: int = 0
    lost: int = 0
    handled: int = 0
    duplicates: int = 0

    def __add__(self, other: Result) -> Result:
        return Result(*(one + two for one, two in zip(attrs.astuple(self), attrs.astuple(other), strict=True)))


def play(seed: int, *, suffices: bool) -> Result:
    """Play one random run, and check it."""
    chance = random.Random(seed)
    net = Network(chance, suffices=suffices)
    for at in range(600):
        if chance.random() < 0.01:
            net.down_until = net.now + chance.choice((0.05, 0.5))
        if chance.random() < net.restarts:
            net.restart()
        for _ in range(chance.choice((0, 1, 3))):
            net.publisher.publish(chance.choice(TOPICS), chance.randrange(1, net.batches + 1))
        if chance.random() < 0.05:
            net.publisher.state(Kind.JOIN)
        if chance.random() < 0.1:
            net.publisher.keep(chance.choice(PREFIXES))
        net.step(at)
    heal(net, 600)
    return checked(net, seed, suffices=suffices)


def heal(net: Network, at: int) -> None:
    """Let the network heal, and the publisher say goodbye; it answers requests until nothing is missing."""
    net.loss = net.answers_lost = net.requests_lost = net.doubled = net.down_until = 0
    net.publisher.state(Kind.JOIN)
    net.publisher.state(Kind.GOODBYE)
    subscriber, end = net.subscriber, at + 20_000
    while (
        net.live or net.back or net.second or subscriber.is_ready or subscriber.recovery.recovers(net.publisher.epoch)
    ):
        net.step(at, healed=True)
        at += 1
        assert at < end, "it never ends"
    subscriber.recovery.close()
    subscriber.handle(NEVER)


def checked(net: Network, seed: int, *, suffices: bool) -> Result:
    """Check what the subscriber has received and counted. ``seed`` is for the error."""
    subscriber, lost, handled = net.subscriber, 0, 0
    assert subscriber.ended == {net.publisher.epoch}, seed
    assert (subscriber.hold.messages, subscriber.hold.size) == (0, 0), seed
    for run in net.runs:
        for prefix in PREFIXES:
            key = run.epoch, prefix
            numbers = subscriber.delivered[key]
            assert numbers == sorted(set(numbers)), (seed, key, "order, or twice")
            if key not in subscriber.before:
                continue  # its join never arrived
            # The end of a killed run is unknown, and what was sent before the join is not counted.
            expected = subscriber.final.get(key) or subscriber.expected(*key)
            tail = run.sent[prefix] - (expected - 1)
            assert tail == 0 or run is not net.publisher, (seed, key, tail)
            known = len(numbers) + subscriber.lost[key] + tail + subscriber.before[key]
            assert known == run.sent[prefix], (seed, key)
            if suffices:
                assert subscriber.lost[key] == 0, (seed, key)
            lost += subscriber.lost[key]
            handled += len(numbers)
    recovered = sum(stream.recovered for stream in subscriber.recovery._streams.values())
    return Result(recovered, lost, handled, subscriber.duplicates)


def runs(seeds: range, *, suffices: bool) -> Result:
    """Play these seeds, and return the sum of their results."""
    total = Result()
    for seed in seeds:
        total += play(seed, suffices=suffices)
    return total


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recoveries without a limit of time: only messages that the publisher no longer has are lost."""
    monkeypatch.setattr(stream_recovery, "TRIES", NEVER)
    monkeypatch.setattr(stream_recovery, "_SECOND", NEVER)


SEEDS = range(sized(500, 150))


@pytest.mark.usefixtures("patient")
def test_nothing_is_lost_if_the_history_suffices() -> None:
    """Each message arrives once and in order, over a network that loses and doubles frames of all kinds."""
    result = runs(SEEDS, suffices=True)
    assert result.lost == 0
    assert result.recovered > 50 * len(SEEDS)
    assert result.duplicates > len(SEEDS)


@pytest.mark.usefixtures("patient")
def test_what_a_small_history_has_no_more_is_counted_exactly() -> None:
    """With a small history and restarts, handled and lost messages add up to all that were sent."""
    result = runs(SEEDS, suffices=False)
    assert min(attrs.astuple(result)) > 10 * len(SEEDS)


def test_what_takes_too_long_is_counted_exactly() -> None:
    """With all limits of time, handled and lost messages add up to all that were sent."""
    result = runs(SEEDS, suffices=False)
    assert min(attrs.astuple(result)) > 10 * len(SEEDS)


# -- ranges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_ranges_are_a_set_of_numbers(seed: int) -> None:
    """Adding and taking ranges gives the same numbers as with a set, and the ranges neither overlap nor touch."""
    chance, ranges, model = random.Random(seed), NumberRanges(), set[int]()
    end = 1
    for _ in range(3_000 if seed < 2 else 300):
        first = end if chance.random() < 0.9 else chance.randrange(1, end + 5)
        last = first + chance.choice((0, 0, 1, 5, 40))
        if chance.random() < (0.9 if seed % 2 else 0.5):
            ranges.add(first, last)
            model |= set(range(first, last + 1))
            end = max(end, last + 1 + chance.choice((0, 1, 2)))
        else:
            first = ranges.first if chance.random() < 0.5 and ranges.first else chance.randrange(1, end + 2)
            last = first + chance.choice((0, 0, 1, 5, 40))
            taken = {number for lowest, highest in ranges.take(first, last) for number in range(lowest, highest + 1)}
            assert taken == model & set(range(first, last + 1))
            model -= taken
        found = list(ranges)
        assert {number for lowest, highest in found for number in range(lowest, highest + 1)} == model
        assert found == sorted(found)
        assert (ranges.total, len(ranges)) == (len(model), len(found))
        assert (ranges.first, ranges.last) == (min(model, default=None), max(model, default=None))
    assert sum(highest - lowest + 1 for lowest, highest in ranges.clear()) == len(model)
    assert (ranges.total, len(ranges), list(ranges)) == (0, 0, [])


def test_removed_ranges_use_no_memory() -> None:
    """Ranges that come and go at both ends stay right, and the list does not grow."""
    ranges = NumberRanges()
    for number in range(5_000):
        ranges.add(2 * number + 1, 2 * number + 1)
        if number >= 10:
            assert ranges.take(2 * number - 19, 2 * number - 19) == [(2 * number - 19, 2 * number - 19)]
        assert (ranges.first, ranges.last) == (max(1, 2 * number - 17), 2 * number + 1)
        assert ranges.total == len(ranges) == min(number + 1, 10)
    assert len(ranges._ranges) < 2_100


# -- many streams ------------------------------------------------------------------------------------------


class Many:
    """A subscriber with many subscriptions that have each lost a message, and their publisher."""

    def __init__(self, many: int) -> None:
        self.publisher, self.most_waiting = Answering(History(seconds=120)), 0
        self.session = RecoverySession(SUBSCRIBER, self._request)
        self.session.stated(EPOCH, history=True)
        self.prefixes = [b"%d." % number for number in range(many)]
        self.publisher.subscribe(*self.prefixes)
        self.frames = {prefix: self.publisher.publish(prefix + b"1") for prefix in self.prefixes}
        self.publisher.tick()
        for prefix in self.prefixes:
            assert self.session.missed(Gap(prefix, EPOCH, 1, 1), 0.0)
        self.found: list[bytes] = []
        self.lost = 0

    def _request(self, topic: bytes) -> None:
        self.publisher.answers.request(topic)
        self.most_waiting = max(self.most_waiting, len(self.publisher.answers._waiting))

    def play(self, seconds: float) -> None:
        """Let both ends work, until nothing is missing or the time is over."""
        for at in range(round(seconds / 0.01)):
            clock, sent = self.publisher.clock, self.publisher.sent
            clock.advance(0.01)
            for _, frames in sent:
                for frame in frames:
                    answer = parse_recovery_answer(split((frame,))[1][HEADER_SIZE:])
                    self.session.answer(EPOCH, answer, clock.seconds())
            sent.clear()
            for key, _, ready in self.session.ready():
                assert isinstance(ready, Ready)
                self.found += [key[1]] * (ready.arrival is not None)
                self.lost += ready.arrival is None
            self.session.ask(clock.seconds())
            if at % round(TICK / 0.01) == 0:
                self.publisher.answers.tick(clock.seconds())
                self.session.tick(clock.seconds(), emptied=True)
            if not self.session.is_active:
                break


def test_more_subscriptions_recover_at_once_than_requests_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are sent in portions, in turns; none is dropped or given up while the publisher searches for others."""
    monkeypatch.setattr(publishing_recovery, "WAITING", 20)
    monkeypatch.setattr(publishing_recovery, "BLOCK", 20)  # each search takes about 80 ms
    monkeypatch.setattr(recovery_session, "ASKED_RECOVERIES", 10)
    many = Many(100)
    many.play(60)
    assert (many.lost, sorted(many.found)) == (0, sorted(many.prefixes))
    assert many.most_waiting == 10
    assert many.publisher.clock.seconds() > 5


def test_streams_that_are_whole_again_are_forgotten() -> None:
    """10 s after a recovery, its stream takes no memory. What came back is in the next report of a loss."""
    many, lost = Many(5), list[Gap]()
    clock, session = many.publisher.clock, many.session
    ignored: Any = lambda *_: None  # noqa: E731
    calls = RecoveryCalls(ignored, ignored, ignored, ignored, lost.append, ignored, str)
    recoveries = Recoveries(SUBSCRIBER, clock, Stats(), calls, "reader", ThrottledLog(logging.getLogger(), clock))
    recoveries._session = session
    many.play(5)
    assert len(many.found) == len(list(session.streams())) == 5
    for _ in range(round(WHOLE_SECONDS / TICK) + 1):
        clock.advance(TICK)
        recoveries.tick(clock.seconds(), emptied=True)
    assert not list(session.streams())
    assert recoveries.missed(Gap(b"0.", EPOCH, 2, 3))
    recoveries.end_stream(EPOCH, b"0.")
    for report in recoveries.take():
        assert callable(report)
        report()
    assert [(each.first, each.last, each.recovered) for each in lost] == [(2, 3, 1)]


@pytest.mark.parametrize("is_gone", [True, False])
def test_the_log_says_which_losses_are_outside_the_history(caplog: pytest.LogCaptureFixture, is_gone: bool) -> None:
    """The line is before the report of the loss; a loss for another reason has no such line."""
    ignored: Any = lambda *_: None  # noqa: E731
    lost: Any = lambda gap: logging.getLogger().warning("lost %d to %d", gap.first, gap.last)  # noqa: E731
    calls, clock = RecoveryCalls(ignored, ignored, ignored, ignored, lost, ignored, str), Clock()
    recoveries = Recoveries(SUBSCRIBER, clock, Stats(), calls, "reader", ThrottledLog(logging.getLogger(), clock))
    recoveries.stated(EPOCH, history=True)
    assert recoveries.missed(Gap(b"a.", EPOCH, 2, 4))
    recoveries.ask()
    if is_gone:
        stream = recoveries._session._streams[EPOCH, b"a."]
        stream.answer(1, [], [(1, 2), (4, 4)], last=True, refused=False, now=0.0)
    recoveries.end(EPOCH)
    for report in recoveries.take():
        assert callable(report)
        report()
    *before, last = caplog.messages
    assert last == "lost 2 to 4"
    assert len(before) == is_gone
    assert all(f"reader: 2 lost messages of 'a.' are not in the history of {EPOCH}: " in line for line in before)


def test_streams_take_turns_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that keeps losing messages does not keep others from asking."""
    monkeypatch.setattr(recovery_session, "ASKED_RECOVERIES", 2)
    asked: list[bytes] = []
    session = RecoverySession(SUBSCRIBER, lambda topic: asked.append(parse_recovery_request(topic).prefix))
    session.stated(EPOCH, history=True)
    for round_ in range(1, 6):
        for prefix in (b"a", b"b", b"c", b"d"):
            session.missed(Gap(prefix, EPOCH, round_, round_), 0.0)
        session.ask(0.0)
        session.ask(0.0)
        assert len(asked) == 2 * round_
        for _, stream in session.streams():
            if stream.asked:
                stream.answer(session.requests, [], [(1, round_)], last=True, refused=False, now=0.0)
                stream.answer(session.requests - 1, [], [(1, round_)], last=True, refused=False, now=0.0)
        assert list(session.ready())
    assert asked == [b"a", b"b", b"c", b"d", b"a", b"b", b"c", b"d", b"a", b"b"]


# -- one stream --------------------------------------------------------------------------------------------


class Stream:
    """A recovery on a virtual clock, whose entries are taken at once."""

    def __init__(self, hold: Hold | None = None) -> None:
        self.hold = hold or Hold()
        self.recovery = StreamRecovery(self.hold)
        self.now = 0.0
        self.number = 0

    def miss(self, first: int, last: int) -> bool:
        return self.recovery.miss(first, last, self.now)

    def arrive(self, first: int, last: int | None = None, size: int = 1) -> None:
        last = last or first
        self.recovery.arrive(Arrival(first, last, f"{first}-{last}", size), self.now)

    def fill(self, first: int, last: int | None = None, size: int = 1) -> bool:
        last = last or first
        return self.recovery.fill(Arrival(first, last, f"{first}-{last}", size))

    def ask(self) -> list[tuple[int, int]]:
        self.number += 1
        return self.recovery.ask(self.number, self.now)

    def answer(
        self,
        *numbers: int,
        gone: tuple[tuple[int, int], ...] = (),
        last: bool = True,
        refused: bool = False,
        of: int = 0,
    ) -> None:
        arrivals = [Arrival(number, number, f"{number}", 1) for number in numbers]
        number = of or self.number
        self.recovery.answer(number, arrivals, gone, last=last, refused=refused, now=self.now)

    def tick(self, times: int = 1, *, emptied: bool = True) -> None:
        for _ in range(times):
            self.now += TICK
            self.recovery.tick(self.now, emptied=emptied)

    def take(self) -> list[tuple[int, int, bool]]:
        """Return the ready entries: first and last number, and False for a loss."""
        found = []
        while self.recovery.ready:
            ready = self.recovery.pop()
            found.append((ready.first, ready.last, ready.arrival is not None))
        return found


def test_an_answer_waits_for_the_past() -> None:
    """What an answer brings during a replay is delivered behind it, before the messages that were held."""
    stream = Stream()
    stream.miss(5, 7)
    stream.arrive(8)
    stream.ask()
    stream.recovery.replay = Replay(Since(SinceMode.ALL), 4)
    stream.answer(5, 6, 7)
    assert stream.take() == []
    stream.recovery.end_replay(None)
    assert stream.take() == [(number, number, True) for number in (5, 6, 7, 8)]
    assert (stream.hold.messages, stream.hold.size) == (0, 0)


def test_later_messages_are_held_until_the_missing_ones_arrive() -> None:
    """Messages behind a gap are delivered in order when the gap is filled."""
    stream = Stream()
    assert stream.miss(5, 6)
    stream.arrive(7)
    stream.miss(8, 8)
    stream.arrive(9)
    assert stream.take() == []
    assert stream.ask() == [(5, 6), (8, 8)]
    assert stream.fill(6)
    assert stream.take() == []
    stream.answer(5)
    assert stream.take() == [(5, 5, True), (6, 6, True), (7, 7, True)]
    assert stream.fill(8)
    assert stream.take() == [(8, 8, True), (9, 9, True)]
    assert (stream.recovery.active, stream.recovery.recovered, stream.hold.messages) == (False, 3, 0)
    assert not stream.fill(8)


def test_only_the_missing_messages_of_a_coalesced_frame_are_delivered() -> None:
    """A frame that contains received and missing messages gives only the missing ones."""
    stream = Stream()
    stream.miss(5, 6)
    stream.miss(8, 8)
    stream.arrive(9)
    assert stream.fill(3, 9)
    assert stream.take() == [(5, 6, True), (8, 8, True), (9, 9, True)]


def test_a_loss_is_reported_in_its_place_and_once() -> None:
    """Numbers that are not available are one loss between the messages around them."""
    stream = Stream()
    stream.miss(5, 9)
    stream.arrive(10)
    stream.ask()
    stream.answer(5, 8, gone=((6, 6), (7, 7)), last=False)
    assert stream.take() == [(5, 5, True), (6, 7, False), (8, 8, True)]
    stream.answer(gone=((9, 9),))
    assert stream.take() == [(9, 9, False), (10, 10, True)]
    assert stream.hold.messages == 0


def test_without_room_messages_are_missing_and_the_next_one_still_passes() -> None:
    """The history has a message for which there is no room, and the first missing message needs none."""
    stream = Stream(Hold(messages=2, size=10))
    stream.miss(1, 3)
    stream.arrive(4, size=9)
    stream.arrive(5, size=2)
    assert list(stream.recovery.missing) == [(1, 3), (5, 5)]
    stream.arrive(6)
    stream.arrive(7)
    assert list(stream.recovery.missing) == [(1, 3), (5, 5), (7, 7)]
    assert not stream.fill(2)
    assert stream.fill(1)
    assert stream.take() == [(1, 1, True)]
    for number in (2, 3, 5, 7):
        assert stream.fill(number)
    assert [first for first, _, _ in stream.take()] == [2, 3, 4, 5, 6, 7]
    assert (stream.hold.messages, stream.hold.size) == (0, 0)


def test_a_message_without_a_number_waits_behind_the_last_one() -> None:
    """A kept message stays behind the messages before it, even if the last of them is recovered later."""
    stream = Stream()
    stream.miss(5, 6)
    stream.recovery.wait(6, "kept", 1)
    stream.arrive(7)
    stream.fill(6)
    stream.fill(5)
    ready = [stream.recovery.pop() for _ in range(4)]
    assert [each.arrival and each.arrival.frame for each in ready] == ["5-5", "6-6", "kept", "7-7"]


def test_a_snapshot_stays_between_two_gaps_that_one_answer_fills() -> None:
    """A snapshot precedes the deltas that were lost behind it, although one range contains both gaps."""
    stream = Stream()
    stream.miss(5, 6)
    stream.recovery.wait(6, "snapshot", 1)
    stream.miss(7, 8)
    stream.recovery.wait(8, "kept", 1)
    stream.recovery.wait(8, "kept too", 1)
    stream.arrive(9)
    assert stream.ask() == [(5, 8)]
    stream.answer(5, 6, 7, 8)
    ready = [stream.recovery.pop() for _ in range(len(stream.recovery.ready))]
    frames = [each.arrival.frame for each in ready if isinstance(each, Ready) and each.arrival is not None]
    assert frames == ["5", "6", "snapshot", "7", "8", "kept", "kept too", "9-9"]
    assert (stream.recovery.active, stream.hold.messages, stream.hold.size) == (False, 0, 0)


def test_waiting_messages_are_limited_by_their_bytes() -> None:
    """Kept messages that find no room are refused, however many a publisher sends behind a gap."""
    stream = Stream(Hold(messages=2, size=10_000))
    stream.miss(5, 6)
    held = sum(stream.recovery.wait(6, "kept", 1_000 - WAITING_COST) for _ in range(100))
    assert held == 10
    stream.fill(5)
    stream.fill(6)
    assert len(stream.take()) == 2 + held
    assert (stream.hold.messages, stream.hold.size) == (0, 0)


def test_lost_ranges_and_waiting_messages_are_looked_at_once() -> None:
    """The end of a stream with many gaps and many snapshots between them takes linear work, and splits the losses."""
    looked = 0

    class Watched(deque[int]):
        def __iter__(self) -> Iterator[int]:
            nonlocal looked
            for number in super().__iter__():
                looked += 1
                yield number

    stream = Stream()
    stream.recovery._waiting = Watched()
    for first in range(1, 3_000, 6):
        stream.miss(first, first + 3)
        stream.recovery.wait(first + 1, "snapshot", 1)
        stream.arrive(first + 4)
        stream.arrive(first + 5)
    stream.recovery.end()
    assert looked == 500
    first, second, *_ = [ready for ready in stream.take() if not ready[2]]
    assert (first, second) == ((1, 2, False), (3, 4, False))


def test_a_stream_asks_once_and_only_when_all_was_delivered() -> None:
    """There is one open request, and none while entries are ready."""
    stream = Stream()
    stream.miss(1, 2)
    stream.fill(1)
    assert stream.ask() == []
    stream.take()
    assert stream.ask() == [(2, 2)]
    assert stream.recovery.asked
    stream.miss(4, 4)
    assert stream.ask() == []
    stream.number -= 1
    stream.answer(2, last=False)
    stream.take()
    assert stream.ask() == []
    stream.number -= 1
    stream.answer()
    assert stream.ask() == [(4, 4)]


def test_a_request_without_an_answer_is_repeated_and_then_given_up() -> None:
    """After four requests without an answer, the missing messages are lost."""
    stream = Stream()
    stream.miss(1, 2)
    stream.arrive(3)
    asked = 0
    while len(stream.recovery.missing):
        asked += bool(stream.ask())
        stream.tick()
    assert asked == TRIES
    assert 2.0 <= stream.now <= 4.0
    assert stream.take() == [(1, 2, False), (3, 3, True)]


def test_a_request_whose_answer_is_cut_off_is_repeated() -> None:
    """If a connection ends within an answer, and takes more messages along, the stream asks again."""
    stream = Stream()
    stream.miss(1, 10)
    assert stream.ask()
    stream.answer(1, 2, 3, last=False)
    stream.take()
    stream.miss(20, 40)
    asked = 0
    while stream.now < 1.5:
        stream.tick()
        asked += bool(stream.ask())
    assert asked == 2
    stream.answer(*range(4, 11), *range(20, 41))
    assert all(delivered for _, _, delivered in stream.take())
    assert not stream.recovery.active


def test_an_answer_that_is_cut_off_begins_the_tries_again_once() -> None:
    """After an answer that was cut off, a stream gives up if four requests have no answer."""
    stream, asked = Stream(), 0
    stream.miss(1, 10)
    stream.ask()
    stream.answer(1, 2, 3, last=False)
    stream.take()
    stream.miss(20, 40)
    while len(stream.recovery.missing):
        stream.tick()
        asked += bool(stream.ask())
    assert asked == TRIES - 1
    assert 2.0 <= stream.now <= 4.0


def test_a_publisher_that_only_promises_more_is_given_up() -> None:
    """Each promise begins the tries again, and messages begin the promises again; their number is bounded."""
    stream = Stream()
    stream.miss(1, 9)
    promises = request = 0
    while len(stream.recovery.missing):
        for _ in range(4):
            request = stream.number if stream.ask() else request
            stream.tick()
        stream.recovery.search(7_000, stream.now)  # of another request
        stream.recovery.search(request, stream.now)
        promises += 1
        if promises == SEARCHES - 1 and stream.recovery.missing.first == 1:
            stream.answer(1, of=request)
            assert stream.take() == [(1, 1, True)]
            promises = 0
    assert promises == SEARCHES
    assert stream.take() == [(2, 9, False)]


def test_an_answer_that_brings_nothing_is_a_failed_request() -> None:
    """A publisher that answers without a message cannot hold a stream."""
    stream = Stream()
    stream.miss(1, 2)
    for _ in range(TRIES):
        assert stream.ask()
        stream.answer()
    assert stream.take() == [(1, 2, False)]


def test_progress_begins_the_tries_again() -> None:
    """As long as answers bring messages, a stream does not give up."""
    stream = Stream()
    stream.miss(1, 99)
    for number in range(1, 50):
        for _ in range(TRIES - 1):
            assert stream.ask()
            stream.answer()
        stream.ask()
        stream.answer(number)
        assert stream.take() == [(number, number, True)]


def test_answers_that_were_not_asked_for_are_ignored() -> None:
    """Only answers to recent requests count; a late answer to a repeated request does."""
    stream = Stream()
    stream.miss(1, 4)
    stream.answer(1, of=7)
    stream.answer(gone=((1, 4),), of=7)
    assert stream.recovery.missing.total == 4
    stream.ask()
    stream.tick(3)
    assert stream.ask()
    stream.answer(1, of=1)
    assert stream.recovery.missing.total == 3
    assert stream.recovery.asked  # the newer request is still open
    stream.answer(2)
    assert not stream.recovery.asked


def test_a_refused_stream_is_lost_at_once() -> None:
    """A publisher that cannot answer for a subscription ends the recovery, which then rests."""
    stream = Stream()
    stream.miss(1, 4)
    stream.arrive(5)
    stream.ask()
    stream.answer(refused=True)
    assert stream.take() == [(1, 4, False), (5, 5, True)]
    assert not stream.miss(6, 6)


def test_a_stream_that_does_not_catch_up_gives_up_and_rests_longer_each_time() -> None:
    """If the missing messages do not decrease in a second, they are lost; the rests are 1, 2, 4 … 60 s."""
    stream, rests, number = Stream(), [], 1
    for _ in range(8):
        assert stream.miss(number, number + 9)
        begun = stream.now
        while len(stream.recovery.missing):
            stream.tick()
            number += 10
            if len(stream.recovery.missing):
                stream.miss(number, number + 9)
        assert 1.0 <= stream.now - begun <= 2.0
        stream.take()
        ended = stream.now
        number += 20
        while not stream.miss(number, number):
            stream.tick()
            number += 10
        rests.append(stream.now - ended)
        stream.recovery.end()
        stream.take()
        number += 20
    assert rests == [1, 2, 4, 8, 16, 32, REST_MAX, REST_MAX]
    stream.tick(int(WHOLE_SECONDS / TICK) + 1)
    stream.miss(number, number)
    stream.tick(5)
    stream.take()
    begun = stream.now
    while not stream.miss(number + 10, number + 10):
        stream.tick()
    assert stream.now - begun <= 1.0


def test_answers_do_not_help_a_stream_that_falls_behind() -> None:
    """Answers that bring less than is lost meanwhile do not prevent the end after a second or two."""
    stream, end = Stream(), 100
    stream.miss(1, end)
    stream.ask()
    for number in range(1, 100):
        stream.answer(number)
        stream.take()
        stream.miss(end + 1, end + 10)
        end += 10
        assert stream.ask()
        stream.tick()
        if not len(stream.recovery.missing):
            break
    assert 1.0 <= stream.now <= 2.0


def test_each_recovery_is_judged_from_its_beginning() -> None:
    """A large gap that was filled does not give a later, small one more time."""
    stream = Stream()
    stream.miss(1, 1000)
    stream.tick()
    assert stream.fill(1, 1000)
    stream.take()
    stream.miss(2000, 2000)
    begun, number = stream.now, 2000
    while len(stream.recovery.missing):
        number += 2
        stream.miss(number, number)
        stream.tick()
    assert stream.now - begun == 1.0


def test_a_stream_that_cannot_ask_and_loses_more_is_given_up() -> None:
    """A subscriber that never reads everything, and has no room, does not stay behind for ever."""
    stream = Stream(Hold(messages=1))
    stream.miss(1, 1)
    number = 2
    while len(stream.recovery.missing):
        stream.arrive(number)
        number += 1
        stream.tick(emptied=False)
        assert stream.now < 3


def test_a_gap_after_a_whole_stream_is_asked_for_at_once() -> None:
    """A second path may fill a gap before the answer; the open request does not delay the next one."""
    stream = Stream()
    stream.miss(1, 1)
    stream.ask()
    stream.fill(1)
    stream.take()
    stream.miss(3, 3)
    assert stream.ask() == [(3, 3)]


def test_a_late_answer_to_an_ended_recovery_is_ignored() -> None:
    """After the end of a recovery, an answer to its requests does not end the next one."""
    stream = Stream()
    stream.miss(1, 1)
    stream.ask()
    stream.recovery.end()
    stream.take()
    stream.miss(3, 3)
    stream.answer(refused=True)
    assert stream.recovery.missing.total == 1


def test_a_long_catch_up_is_not_given_up() -> None:
    """A recovery may take minutes, as long as each second brings more than it loses."""
    stream = Stream()
    stream.miss(1, 10_000)
    end = 10_000
    for second in range(60):
        first = 1 + second * 100
        stream.ask()
        stream.answer(*range(first, first + 100))
        stream.take()
        stream.miss(end + 1, end + 50)
        end += 50
        stream.tick(4)
        assert len(stream.recovery.missing)
    assert not stream.recovery.ready


def test_a_steady_small_loss_is_not_given_up() -> None:
    """Losses that are filled within a second do not count as overload, although some are always missing."""
    stream = Stream()
    for number in range(1, 400):
        stream.miss(2 * number, 2 * number)
        if number > 2:
            assert stream.fill(2 * (number - 2))
        stream.tick()
        assert all(delivered for _, _, delivered in stream.take())
    assert stream.recovery.missing.total == 2


def catch_up(stream: Stream, seconds: int, *, live: int, filled: int, waits: bool = False) -> None:
    """Let ``live`` messages arrive, and ``filled`` missing ones be filled and delivered, in each tick."""
    end = 100_000
    stream.miss(1, end)
    for _ in range(seconds * round(1 / TICK)):
        first = stream.recovery.missing.first
        if first is None:
            break
        if not stream.recovery.asked:
            stream.ask()
        stream.answer(*range(first, first + filled))
        stream.take()
        for number in range(end + 1, end + live + 1):
            stream.arrive(number)
        end += live
        if waits:
            stream.ask()
        stream.tick()


def test_held_messages_are_no_second_queue() -> None:
    """If handlers are slower than the live messages, a stream gives up, although ever less is missing."""
    stream = Stream()
    catch_up(stream, 10, live=60, filled=30)
    assert not len(stream.recovery.missing)
    assert stream.now == 1.0


def test_messages_that_are_ready_count_as_delivered_once() -> None:
    """An answer just before the end of a second counts in this second, and not again when handlers take it."""
    stream, end = Stream(), 100_000
    stream.miss(1, end)
    for filled, left in (
        (50, False),
        (50, False),
        (50, False),
        (100, True),
        (50, False),
        (50, False),
        (50, False),
        (0, False),
    ):
        assert len(stream.recovery.missing)
        stream.take()
        if filled:
            stream.ask()
            first = stream.recovery.missing.first or 0
            stream.answer(*range(first, first + filled))
        if not left:
            stream.take()
        for number in range(end + 1, end + 61):
            stream.arrive(number)
        end += 60
        stream.tick()
    assert not len(stream.recovery.missing)


def test_ready_messages_are_not_visited_for_each_gap() -> None:
    """A gap takes no longer if thousands of messages are ready: a peer can send one with each message."""
    visited = 0

    class Watched(deque[Any]):
        def __iter__(self) -> Iterator[Any]:
            nonlocal visited
            for each in super().__iter__():
                visited += 1
                yield each

    stream = Stream()
    stream.recovery.ready = Watched()
    stream.miss(1, 1)
    for number in range(2, 1_000):
        stream.arrive(number)
    assert stream.fill(1)
    for number in range(1_000, 1_020, 2):
        stream.miss(number, number)
        stream.arrive(number + 1)
        assert stream.fill(number)
        stream.tick()
    assert visited == 0
    assert [first for first, _, _ in stream.take()] == list(range(1, 1_020))


def test_held_messages_count_as_a_backlog() -> None:
    """A stream gives up too if little is missing, but more is held than a second delivers."""
    stream = Stream()
    stream.miss(1, 60)
    for tick in range(round(1 / TICK)):
        stream.ask()
        stream.answer(*range(12 * tick + 1, 12 * tick + 13))
        assert len(stream.take()) == 12
        for number in range(60 * tick + 61, 60 * tick + 121):
            stream.arrive(number)
        assert len(stream.recovery.missing)
        stream.tick()
    assert not len(stream.recovery.missing)


@pytest.mark.parametrize(("live", "filled", "waits"), [(60, 30, True), (30, 60, False)])
def test_a_stream_that_waits_for_its_publisher_or_catches_up_is_not_given_up(
    live: int, filled: int, waits: bool
) -> None:
    """Slow answers do not end a recovery, and neither do handlers that are faster than the live messages."""
    stream = Stream()
    catch_up(stream, 60, live=live, filled=filled, waits=waits)
    assert stream.recovery.missing.total == 100_000 - 60 * round(1 / TICK) * filled


def test_a_small_backlog_is_not_overload() -> None:
    """In some seconds of a steady loss, a little more arrives than is delivered; nothing is given up."""
    stream, filled = Stream(), 0
    for at in range(400):
        stream.miss(10 * at + 1, 10 * at + 2)
        for number in range(10 * at + 3, 10 * at + 11):
            stream.arrive(number)
        due = at - 1 - at // 4 % 2  # answers take one tick or two, second by second
        if filled < due:
            stream.ask()
            stream.answer(*(10 * each + number for each in range(filled, due) for number in (1, 2)))
            filled = due
        assert all(delivered for _, _, delivered in stream.take())
        stream.tick()
    assert stream.recovery.missing.total == 2 * (400 - filled)


def test_a_rest_becomes_short_again_only_if_everything_is_read() -> None:
    """With a backlog in the socket, losses are not known yet, so the stream does not count as whole."""
    for emptied, rests in ((True, 1), (False, 2)):
        stream = Stream()
        stream.miss(1, 1)
        stream.ask()
        stream.answer(refused=True)
        stream.take()
        stream.tick(int((1 + WHOLE_SECONDS) / TICK) + 1, emptied=emptied)
        assert stream.miss(2, 2)
        stream.ask()
        stream.answer(refused=True)
        stream.take()
        begun = stream.now
        while not stream.miss(3, 3):
            stream.tick()
        assert stream.now - begun == rests


def test_a_subscriber_that_was_stopped_is_not_judged_for_this_time() -> None:
    """After a pause of the process, or while it still reads, no second has passed and no request is late."""
    stream = Stream()
    stream.miss(1, 4)
    stream.ask()
    stream.now += 30
    stream.tick()
    assert stream.recovery.asked
    stream.tick(40, emptied=False)
    assert stream.recovery.asked
    assert stream.recovery.missing.total == 4


def test_a_loss_during_a_rest_is_reported_behind_ready_messages() -> None:
    """While entries are ready, a loss of a resting stream keeps its place."""
    stream = Stream()
    stream.miss(1, 1)
    stream.arrive(2)
    stream.recovery._give_up(0.0)
    assert stream.miss(3, 4)
    stream.arrive(5)
    assert stream.take() == [(1, 1, False), (2, 2, True), (3, 4, False), (5, 5, True)]
    assert not stream.miss(6, 6)


def test_a_resting_stream_without_room_loses_messages() -> None:
    """What does not fit behind ready messages is lost, because a resting stream does not recover."""
    stream = Stream(Hold(messages=2))
    stream.miss(1, 1)
    stream.arrive(2)
    stream.recovery._give_up(0.0)
    stream.arrive(3)
    assert not len(stream.recovery.missing)
    assert stream.take() == [(1, 1, False), (2, 2, True), (3, 3, False)]


def test_the_number_of_missing_ranges_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forger of gaps cannot fill memory with ranges."""
    monkeypatch.setattr(stream_recovery, "RANGES_MAX", 5)
    stream = Stream()
    for number in range(6):
        stream.miss(3 * number + 1, 3 * number + 1)
    assert len(stream.recovery.missing) == 0


# -- all streams -------------------------------------------------------------------------------------------


def session(*epochs: int) -> tuple[RecoverySession, list[RecoveryRequest]]:
    """Return a session that knows publishers with a history, and the list of its requests."""
    asked: list[RecoveryRequest] = []
    found = RecoverySession(SUBSCRIBER, lambda topic: asked.append(parse_recovery_request(topic)))
    for epoch in epochs:
        found.stated(epoch, history=True)
    return found, asked


def test_the_end_of_one_recovery_is_told_while_another_goes_on() -> None:
    """What waits for one publisher, such as its goodbye, does not wait for the recovery of another."""
    ended: list[bool] = []
    whole: Any = lambda: ended.append(recoveries.recovers(1))  # noqa: E731
    ignored: Any = lambda *_: None  # noqa: E731
    calls = RecoveryCalls(ignored, ignored, ignored, ignored, ignored, whole, str)
    clock = Clock()
    recoveries = Recoveries(SUBSCRIBER, clock, Stats(), calls, "reader", ThrottledLog(logging.getLogger(), clock))
    for epoch in (1, 2):
        recoveries.stated(epoch, history=True)
        assert recoveries.missed(Gap(b"a.", epoch, 5, 9))
    recoveries.ask()
    assert ended[-1]
    recoveries.end_stream(1, b"a.")
    list(recoveries.take())
    recoveries.ask()
    assert recoveries.busy
    assert not ended[-1]


def test_messages_of_an_ended_publisher_are_signs_of_life() -> None:
    """A publisher that said goodbye is asked again if messages arrive, even long after its goodbye."""
    tracker = joined(b"a.")
    watched(tracker, 0, 1)
    received(tracker, 1, b"a.")
    watched(tracker, 1, 1)
    assert tracker.stated(7, b"M", stated((b"a.", 1)), goodbye=True) == [Ended(7, "")]
    assert watched(tracker, 2, 2 * AWAY_SECONDS) == []
    ignored: Any = lambda *_: None  # noqa: E731
    calls = RecoveryCalls(tracker.admit, tracker.stream, ignored, ignored, ignored, ignored, str)
    clock = Clock()
    recoveries = Recoveries(SUBSCRIBER, clock, Stats(), calls, "reader", ThrottledLog(logging.getLogger(), clock))
    account = tracker.account(7, b"a.1", b"a.")
    assert recoveries.admit(account, 9, 1, message(9)) is Verdict.DELIVER
    assert Overdue(7) in watched(tracker, 2 + 2 * AWAY_SECONDS, 5)


def test_a_publisher_without_history_is_never_asked() -> None:
    """Gaps of a publisher whose statement has no flag are losses at once."""
    recoveries, asked = session(1)
    recoveries.stated(2, history=False)
    assert not recoveries.missed(Gap(b"a.", 2, 5, 9), 0.0)
    assert not recoveries.missed(Gap(b"a.", 3, 5, 9), 0.0)
    recoveries.ask(0.0)
    assert asked == []


def test_each_stream_asks_its_publisher_with_a_unique_request() -> None:
    """Requests name subscriber, publisher, subscription and ranges, and no two are the same."""
    recoveries, asked = session(1, 2)
    for gap in (Gap(b"a.", 1, 5, 9), Gap(b"a.", 2, 5, 9), Gap(b"b.", 1, 7, 7), Gap(b"a.", 1, 20, 20)):
        assert recoveries.missed(gap, 0.0)
    recoveries.ask(0.0)
    recoveries.ask(0.0)
    assert asked == [
        RecoveryRequest(SUBSCRIBER, 1, 1, b"a.", ((5, 9), (20, 20))),
        RecoveryRequest(SUBSCRIBER, 2, 2, b"a.", ((5, 9),)),
        RecoveryRequest(SUBSCRIBER, 3, 1, b"b.", ((7, 7),)),
    ]
    assert recoveries.recovers(2)
    recoveries.end(2)
    assert not recoveries.recovers(2)
    assert recoveries.recovers(1)


def test_the_end_of_a_publisher_or_subscription_ends_its_recoveries() -> None:
    """Everything that is missing then is lost, and what was held is delivered; other streams go on."""
    recoveries, _ = session(1, 2)
    for epoch in (1, 2):
        for prefix in PREFIXES:
            recoveries.missed(Gap(prefix, epoch, 1, 3), 0.0)
    recoveries.change((b"b.",), {})
    recoveries.end(1)
    found = [(key, ready.first, ready.last) for key, _, ready in recoveries.ready()]
    assert sorted(found) == [((1, b"a."), 1, 3), ((1, b"b."), 1, 3), ((2, b"a."), 1, 3)]
    recoveries.tick(1.0, emptied=True)
    assert set(recoveries._streams) == {(2, b"a."), (2, b"b.")}
    recoveries.close()
    assert [key for key, _, _ in recoveries.ready()] == [(2, b"b.")]


def message(number: int, *, epoch: int = 1, topic: bytes = b"a.1") -> bytes:
    """Return a message with a number in the subscription ``a.``."""

    @attrs.frozen
    class Counted:
        length: int
        number: int

    made = counted_framer(epoch=epoch, count=lambda _: [Counted(2, number)] if number else [], clock_ns=lambda: 5)
    frame = made(topic, 2, b"1", None)
    assert isinstance(frame, bytes)
    return frame


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (message(5, epoch=2), "an answer with a message of another publisher"),
        (message(5, topic=b"b.1"), "an answer with a message of another subscription"),
        (b"a.", "an answer with a message of another subscription"),
        (b"a\0", "an answer with a message of another subscription"),
        (message(5).replace(b"ZR", b"ZX"), "an answer with a message of another subscription"),
        (message(5)[:30], "an answer with a message of another publisher"),
        (message(6), "an answer with a message of another number"),
        (message(0), "an answer with a message of another number"),
        (pack_beat(b"a.", 5, epoch=1, next_ms=0, sent_at=5), "an answer with a message of another number"),
        (message(5).replace(b"ZR\1\0", b"ZR\1\4")[:36], "an answer with an incomplete message"),
    ],
)
def test_foreign_messages_in_an_answer_are_refused(frame: bytes, reason: str) -> None:
    """An answer contains only messages of its publisher and subscription, with their own numbers."""
    recoveries, asked = session(1)
    recoveries.missed(Gap(b"a.", 1, 5, 6), 0.0)
    recoveries.ask(0.0)
    (answer,) = pack_recovery_answers(asked[0], [(5, frame)], epoch=1, sent_at=5)
    parsed: RecoveryAnswer = parse_recovery_answer(answer.partition(NUL)[2][32:])
    with pytest.raises(EnvelopeError) as caught:
        recoveries.answer(1, parsed, 0.0)
    assert caught.value.reason == reason
    assert list(recoveries.ready()) == []


def test_a_new_generation_ends_the_recovery_and_is_an_unknown_loss() -> None:
    """A counter that began again cannot say what was lost before, so the missing messages are lost."""
    recoveries, _ = session(1)
    tracker = Tracker()
    tracker.subscribe((b"a.",))
    account = tracker.stream(1, b"a.")
    assert account is not None
    account.expected = 5
    first = (1 << COUNT_BITS) + 1
    admitted = [
        recoveries.admit(tracker.admit, account, number, 1, str(number), 1, 0.0) for number in (5, 7, first, first + 1)
    ]
    assert [verdict for verdict, _ in admitted] == [Verdict.DELIVER, Verdict.HELD, Verdict.HELD, Verdict.HELD]
    assert [type(loss) for _, loss in admitted] == [type(None), type(None), UnknownLoss, type(None)]
    found = [(ready.first, ready.arrival and ready.arrival.frame) for _, _, ready in recoveries.ready()]
    assert found == [(6, None), (7, "7"), (first, str(first)), (first + 1, str(first + 1))]


def test_late_originals_and_messages_without_a_number_keep_their_places() -> None:
    """A late copy from a second path fills its gap, and a message without a number follows the last one."""
    recoveries, _ = session(1)
    tracker = Tracker()
    tracker.subscribe((b"a.",))
    account = tracker.stream(1, b"a.")
    assert account is not None
    account.expected = 5
    verdicts = [
        recoveries.admit(tracker.admit, account, number, 1, frame, 1, 0.0)[0]
        for number, frame in ((7, "7"), (0, "8"), (9, "9"), (5, "5"), (5, "5 again"), (6, "6"))
    ]
    held = Verdict.HELD
    assert verdicts == [held, held, held, held, Verdict.DUPLICATE, held]
    assert [ready.arrival and ready.arrival.frame for _, _, ready in recoveries.ready()] == ["5", "6", "7", "8", "9"]
    assert recoveries.admit(tracker.admit, account, 10, 1, "10", 1, 0.0) == (Verdict.DELIVER, None)
