"""Replay: random runs over a network that loses, delays, doubles and cuts.

Both ends are the real ones: a table with its session, and sessions of publishers with histories. Only the network and
the clock are simulated. The runs know all messages that were sent, and compare.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import attrs
import pytest

from tests.pure import Wired, packed
from tests.support import sized
from zroute import App, Envelope, History
from zroute.messages.control import MARKER, Statement, pack_marker, pack_statements
from zroute.messages.recovery import BOX, REQUEST, Past, PastAnswer, RecoveryAnswer, Since, SinceMode
from zroute.messages.wire import NUL, Kind, framer, pack_kept, parse_header
from zroute.publishing import recovery as publishing_recovery
from zroute.publishing.history import BLOCK
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.receiving import recovery_session, replay, stream_recovery, tracker
from zroute.receiving.accounts import SubscriptionState
from zroute.receiving.events import Gap, LostKept, LostPast, UnknownLoss, Verdict
from zroute.receiving.replay import PastLoss
from zroute.receiving.stream_recovery import Ready

LOG = logging.getLogger("zroute.tests")
PREFIXES = (b"a.", b"b.")
TOPICS = (b"a.1", b"a.2", b"b.1", b"b.2")
OTHER = pack_marker(5 << 16, PREFIXES)
START = 1_700_000_000
NEVER = 10**9
SEEDS = range(sized(50, 12))


class Noted(list[int]):
    """A list that calls a function before it grows."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def append(self, number: int) -> None:
        self.call()
        super().append(number)


class Publisher:
    """One run of a publisher with two publications, whose frames are put into the network."""

    def __init__(self, net: Network, history: History) -> None:
        self.net = net
        queue = SendQueue(net.clock, limit=1000, timeout=30, lost=lambda *_: None)
        self.session = PublisherSession(net.clock, queue, self._send, net.now_ns, "feed", f"p{len(net.runs)}", LOG)
        self.epoch = self.session.epoch
        self.rings = [self.session.ring(history) for _ in range(2)]
        self._one = self.session.framer(net.now_ns, keeps=False)
        self._several = self.session.coalesced_framer(keeps=False)
        self.sent: dict[bytes, int] = dict.fromkeys(TOPICS, 0)
        self.wanted: set[bytes] = set()
        for topic in net.wanted:
            self.hear(topic, True)

    def publish(self, topic: bytes, many: int) -> None:
        bodies = [packed(self.sent[topic] + each) for each in range(1, many + 1)]
        self.sent[topic] += many
        frame = self._several(topic, 1, bodies, self.net.now_ns()) if many > 1 else self._one(topic, 1, bodies[0], None)
        assert isinstance(frame, bytes)
        self.rings[topic[-1] % 2].keep(frame)
        self._send(frame)

    def hear(self, topic: bytes, there: bool) -> None:
        """Receive a subscription."""
        (self.wanted.add if there else self.wanted.discard)(topic)
        self.session.subscription(topic, there)

    def _send(self, frame: bytes) -> bool:
        topic = frame.partition(NUL)[0]
        if any(topic.startswith(each) for each in self.wanted):
            self.net.send(frame)
        return True


class Network:
    """The network of one subscriber, which implements `zroute.receiving.session.Subscriptions`."""

    def __init__(self, chance: random.Random, since: Any, *, suffices: bool, recover: bool) -> None:
        self.chance = chance
        app = App(name="reader", recover=recover)
        self.handled: dict[tuple[str, bytes], list[int]] = defaultdict(list)
        self.origins: dict[tuple[str, bytes], list[str]] = defaultdict(list)

        def handle(number: int, envelope: Envelope) -> None:
            key = envelope.publisher or "", envelope.topic.wire
            self.handled[key].append(number)
            self.origins[key].append(envelope.origin)

        for prefix in PREFIXES:
            app.subscribe(prefix.decode() + ">", since=since)(handle)
        self.wired = Wired(app)
        self.clock = self.wired.clock
        self.losses: list[Any] = []
        self.session = self.wired.accounts
        self.session._found = self.losses.append
        self.session.moved = self.wired.table.forget_accounts
        self.lost = chance.choice((0, 0.05, 0.2)) if recover else 0
        self.answers_lost = chance.choice((0, 0.1, 0.4))
        self.requests_lost = chance.choice((0, 0.2))
        self.doubled = chance.choice((0, 0.1))
        self.batches = chance.choice((1, 1, 4))
        self.down_until = 0.0
        self.wanted: tuple[bytes, ...] = ()
        self.live: deque[bytes] = deque()
        self.second: list[tuple[float, bytes]] = []
        self.requests: deque[tuple[bytes, bool]] = deque()
        self.history = History(seconds=120) if suffices else History(messages=chance.choice((5, 40, 200)))
        self.runs: list[Publisher] = []
        self.links = frozenset({1})
        self.came_by = None
        self.unread = False

    # -- the subscriber's transport

    peers = 1

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        before, self.wanted = self.wanted, tuple(subscriptions)
        self.requests += [(each, True) for each in self.wanted if each not in before]
        self.requests += [(each, False) for each in before if each not in self.wanted]

    def request(self, topic: bytes) -> None:
        assert topic.startswith(REQUEST)
        if not self.down and self.chance.random() >= self.requests_lost:
            self.requests += (topic, True), (topic, False)

    def resubscribe(self, subscriptions: Collection[bytes]) -> None:
        raise AssertionError("no subscription is lost")

    def read_soon(self) -> None: ...

    def emptied(self) -> bool:
        emptied, self.unread = not self.unread, bool(self.live)
        return emptied

    def listen_closely(self, closely: bool) -> None: ...

    def heard(self) -> set[int]:
        return set()

    def dialled(self, link: int) -> None: ...

    def cut(self, link: int) -> None: ...

    # -- the network

    def now_ns(self) -> int:
        return round((START + self.clock.seconds()) * 1e9)

    @property
    def down(self) -> bool:
        return self.clock.seconds() < self.down_until

    def start(self) -> Publisher:
        publisher = Publisher(self, self.history)
        self.runs.append(publisher)
        return publisher

    def send(self, frame: bytes) -> None:
        lost = self.answers_lost if frame.startswith(BOX) else 0 if frame.startswith(MARKER) else self.lost
        if not self.down and self.chance.random() >= lost:
            self.live.append(frame)
        kind = parse_header(frame.partition(NUL)[2]).kind
        numbered = kind is Kind.BEAT or parse_header(frame.partition(NUL)[2]).sequence
        if numbered and not frame.startswith(MARKER) and self.chance.random() < self.doubled:
            self.second.append((self.clock.seconds() + self.chance.random() * 2, frame))

    def step(self, most: int | None = None) -> None:
        """Let 10 ms pass; both ends read some of what has arrived."""
        self.clock.advance(0.01)
        for _ in range(len(self.requests) if most is None else min(most, len(self.requests))):
            topic, there = self.requests.popleft()
            for run in self.runs:
                run.hear(topic, there)
        for due in [each for each in self.second if each[0] <= self.clock.seconds()]:
            self.second.remove(due)
            self.live.append(due[1])
        for _ in range(len(self.live) if most is None else min(most, len(self.live))):
            self.wired.queue(self.live.popleft())
        self.unread |= bool(self.live)
        for _ in range(1000 if most is None else most + 1):
            if self.wired.receive():
                break

    @property
    def recoveries(self) -> Any:
        return self.session._recoveries

    @property
    def idle(self) -> bool:
        return not (self.live or self.second or self.requests or self.recoveries.busy)


@attrs.define
class Result:
    """What the runs have seen."""

    replayed: int = 0
    recovered: int = 0
    live: int = 0
    lost: int = 0
    evicted: int = 0
    duplicates: int = 0

    def add(self, other: Result) -> None:
        for field in attrs.fields(Result):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def play(seed: int, monkeypatch: pytest.MonkeyPatch, *, suffices: bool, recover: bool, since: Any = "all") -> Result:
    """Play one random run, and check it."""
    chance = random.Random(seed)
    replays: dict[tuple[int, bytes], replay.Replay] = {}
    begin = recovery_session.RecoverySession.begin

    def noted(self: Any, admit: Any, account: Any, now: float) -> Any:
        begun = begin(self, admit, account, now)
        key = account.publisher, account.prefix
        assert key not in replays, (seed, "a second replay")
        replays[key] = self._streams[key].replay
        return begun

    monkeypatch.setattr(recovery_session.RecoverySession, "begin", noted)
    monkeypatch.setattr(publishing_recovery, "WINDOW", chance.choice((1, 300, 5_000)))
    monkeypatch.setattr(recovery_session, "ASKED_PASTS", chance.choice((1, 16)))
    net = Network(chance, since, suffices=suffices, recover=recover)
    hold = net.wired.accounts._recoveries._session._hold  # type: ignore[union-attr]
    hold._messages = chance.choice((3, 50, NEVER))
    publishers = [net.start() for _ in range(chance.choice((1, 2)))]

    def publish() -> None:
        for publisher in publishers:
            for _ in range(chance.choice((0, 1, 3))):
                publisher.publish(chance.choice(TOPICS), chance.randrange(1, net.batches + 1))

    for _ in range(chance.choice((0, 100, 300))):  # the past, before the first subscription
        publish()
        net.clock.advance(0.01)
    if chance.random() < 0.5:  # another subscriber has the same subscriptions, so the past has numbers
        for publisher in publishers:
            for topic in (*PREFIXES, OTHER):
                publisher.session.subscription(topic, True)
        for _ in range(50):
            publish()
            net.clock.advance(0.01)
    net.session.listen(net, PREFIXES)
    for at in range(400):
        publish()
        if chance.random() < 0.01:
            net.down_until = net.clock.seconds() + chance.choice((0.05, 0.5)) if recover else 0.0
        net.step(chance.choice((0, 2, 8)) if at else None)
    # The network heals, and the publishers say goodbye; they answer requests until nothing is missing.
    net.lost = net.answers_lost = net.requests_lost = net.doubled = net.down_until = 0
    while len(net.session._tracker.complete) < len(publishers):  # a slow reader may not have read any statement
        net.step()
    for publisher in publishers:
        publisher.session.subscription(OTHER, False)
        publisher.session.goodbye()
    for _ in range(20_000):
        net.step()
        if net.idle and not any(publisher.session.unread for publisher in publishers):
            break
    else:
        raise AssertionError((seed, "never ends"))
    assert (hold.messages, hold.size) == (0, 0), seed
    assert net.wired.balanced(), seed
    return _checked(net, publishers, replays, seed, suffices=suffices)


def _checked(net: Network, publishers: Any, replays: Any, seed: int, *, suffices: bool) -> Result:
    stats, result = net.wired.stats, Result(duplicates=net.wired.stats.duplicate)
    assert (stats.malformed, stats.unknown_losses) == (0, 0), (seed, net.losses)
    for publisher in publishers:
        for prefix in PREFIXES:
            topics = [topic for topic in TOPICS if topic.startswith(prefix)]
            handled = 0
            for topic in topics:
                numbers = net.handled[f"{publisher.epoch:016x}", topic]
                assert numbers == sorted(set(numbers)), (seed, topic, "order, or twice")
                handled += len(numbers)
                origins = net.origins[f"{publisher.epoch:016x}", topic]
                past = origins.count("replayed")
                assert origins[:past] == ["replayed"] * past, (seed, "the past comes first")
                result.replayed += past
                result.recovered += origins.count("recovered")
                result.live += origins.count("live")
            key = publisher.epoch, prefix
            counter = publisher.session.counters._counters[prefix]
            sent, live = sum(publisher.sent[topic] for topic in topics), counter.number - replays[key].upto
            evicted = sent - live - replays[key].total  # before the first answer
            gaps = [loss for loss in net.losses if isinstance(loss, Gap)]
            pasts = [loss for loss in net.losses if isinstance(loss, LostPast)]
            lost = sum(gap.count for gap in gaps if (gap.epoch, gap.subscription) == key)
            lost_past = sum(loss.count for loss in pasts if (loss.epoch, loss.subscription) == key)
            assert handled + lost + lost_past + evicted == sent, (seed, key)
            if suffices:
                assert (lost, lost_past, evicted) == (0, 0, 0), (seed, key, lost, lost_past, evicted)
            result.lost += lost
            result.evicted += lost_past
    assert stats.lost == result.lost + result.evicted, seed
    assert (stats.replayed, stats.recovered) == (result.replayed, result.recovered), seed
    assert stats.received >= stats.replayed + stats.recovered, seed
    return result


def runs(monkeypatch: pytest.MonkeyPatch, *, suffices: bool, recover: bool) -> Result:
    """Play the seeds, and return the sum of their results."""
    total = Result()
    for seed in SEEDS:
        with monkeypatch.context() as patch:
            total.add(play(seed, patch, suffices=suffices, recover=recover))
    return total


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recoveries and replays without a limit of time."""
    monkeypatch.setattr(stream_recovery, "TRIES", NEVER)
    monkeypatch.setattr(stream_recovery, "_SECOND", NEVER)
    monkeypatch.setattr(replay, "TRIES_OF_PAST", NEVER)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("recover", [False, True])
def test_nothing_is_missing_if_the_history_suffices(monkeypatch: pytest.MonkeyPatch, recover: bool) -> None:
    """The past and the live messages arrive once and in order, although requests and answers are lost."""
    result = runs(monkeypatch, suffices=True, recover=recover)
    assert min(result.replayed, result.live) > 50 * len(SEEDS)
    assert result.duplicates > 0
    assert (result.recovered > 0) or not recover


def test_replayed_messages_count_as_received_when_they_are_delivered() -> None:
    """While a part of a frame waits, replayed is ahead of received; at the end, received includes it."""
    net = network()
    net.runs[0].publish(b"a.1", 10)
    stats, ahead = net.wired.stats, list[int]()
    net.handled[f"{net.runs[0].epoch:016x}", b"a.1"] = Noted(lambda: ahead.append(stats.replayed - stats.received))
    net.session.listen(net, PREFIXES)
    pass_time(net, 1)
    assert handled(net) == list(range(1, 31))
    assert max(ahead) > 0
    assert (stats.replayed, stats.received) == (30, 30 + stats.control)
    assert net.wired.balanced()


@pytest.mark.usefixtures("patient")
def test_what_a_small_history_has_no_more_is_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that are evicted between two requests count as lost; all others arrive."""
    result = runs(monkeypatch, suffices=False, recover=True)
    assert min(result.replayed, result.live, result.lost, result.evicted) > len(SEEDS)


# -- single cases --------------------------------------------------------------------------------------------


def network(publishers: int = 1, since: Any = "all", **options: Any) -> Network:
    """Return a network that loses nothing, with publishers that have sent some messages."""
    net = Network(random.Random(1), since, suffices=True, recover=False, **options)
    net.answers_lost = net.requests_lost = net.doubled = 0
    net.batches = 1
    for publisher in [net.start() for _ in range(publishers)]:
        for _ in range(20):
            publisher.publish(b"a.1", 1)
    return net


def handled(net: Network, topic: bytes = b"a.1") -> list[int]:
    """Return the numbers of a topic that the app has handled, of the first publisher."""
    return net.handled[f"{net.runs[0].epoch:016x}", topic]


def pass_time(net: Network, seconds: float) -> None:
    """Let both ends work for some seconds."""
    for _ in range(round(seconds / 0.01)):
        net.step()


class Holding(list[int]):
    """A list that ends the reading of ``net`` whenever something is appended to it."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def append(self, number: int) -> None:
        super().append(number)
        self.net.wired.table.hold()


@pytest.mark.parametrize("holds", [True, False])
def test_a_call_delivers_no_more_messages_than_it_may(holds: bool) -> None:
    """Released messages end a call at its budget and after `hold`, as read ones do, also within a coalesced frame."""
    net = network()
    for many in (1, 4, 1, 4, 4, 1):
        net.runs[0].publish(b"a.1", many)
    if holds:
        net.handled = defaultdict(partial(Holding, net))
    receive, delivered = net.wired.receive, [0]

    def receive_few(budget: int = 3) -> bool:
        before = len(handled(net))
        ended = receive(budget)
        delivered.append(len(handled(net)) - before)
        return ended

    net.wired.receive = receive_few  # type: ignore[method-assign]
    net.session.listen(net, PREFIXES)
    pass_time(net, 1)
    assert handled(net) == list(range(1, 36))
    assert max(delivered) == (1 if holds else 3)
    assert net.wired.stats.replayed == 35
    assert net.wired.balanced()


def test_messages_of_a_publisher_that_never_answers_are_delivered() -> None:
    """What arrives before the join waits for the statement for ten seconds, and is then delivered."""
    net = network()
    publisher = net.runs[0]
    send = net.send
    net.send = lambda frame: None if frame.startswith(MARKER) else send(frame)  # type: ignore[method-assign]
    net.session.listen(net, PREFIXES)
    pass_time(net, 0.1)
    publisher.publish(b"a.1", 1)
    pass_time(net, replay.EARLY_SECONDS - 1)
    assert handled(net) == []
    pass_time(net, 2)
    assert handled(net) == [21]
    publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    assert handled(net) == [21, 22]
    assert net.wired.balanced()


def test_a_publisher_that_ends_in_the_middle_leaves_a_counted_loss() -> None:
    """What is left of the past when a run ends counts as lost, and live messages are then delivered."""
    net = network()
    publisher = net.runs[0]
    boxes = 0
    send = net.send

    def some(frame: bytes) -> None:
        nonlocal boxes
        boxes += frame.startswith(BOX)
        if boxes < 3 or not frame.startswith(BOX):
            send(frame)

    net.send = some  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing_recovery, "WINDOW", 1)
        net.session.listen(net, PREFIXES)
        pass_time(net, 0.3)
        publisher.publish(b"a.1", 1)
        pass_time(net, 0.1)
        arrived = len(handled(net))
        assert 0 < arrived < 20
        net.recoveries.end(publisher.epoch)
        pass_time(net, 0.1)
    assert handled(net) == [*range(1, arrived + 1), 21]
    assert LostPast(publisher.epoch, b"a.", 20 - arrived, 20) in net.losses
    assert net.wired.stats.lost == 20 - arrived
    assert net.wired.balanced()


@pytest.mark.parametrize("seed", range(sized(60, 30)))
def test_forged_answers_are_counted_and_change_nothing(seed: int) -> None:
    """Answers without a request, twice, cut, or with other entries: the past is still complete, or counted."""
    net, chance = network(), random.Random(seed)
    publisher = net.runs[0]
    send = net.send

    def forge(frame: bytes) -> None:
        send(frame)
        if frame.startswith(BOX):
            for _ in range(chance.randrange(4)):
                at = chance.randrange(len(BOX) + 13, len(frame))
                net.live.append(chance.choice((frame, frame[:at], frame[:at] + b"\xff" + frame[at + 1 :])))

    net.send = forge  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing_recovery, "WINDOW", chance.choice((1, 500, 1 << 20)))
        net.session.listen(net, PREFIXES)
        for _ in range(100):
            if chance.random() < 0.3:
                publisher.publish(b"a.1", 1)
            net.step()
        pass_time(net, 8)
    assert net.wired.balanced()
    assert not net.recoveries.busy
    numbers = handled(net)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == publisher.sent[b"a.1"]


def test_a_replay_ends_after_some_tries() -> None:
    """Without answers, the live messages are delivered after a few seconds, and the loss is unknown."""
    net = network()
    net.answers_lost = 1
    net.session.listen(net, PREFIXES)
    pass_time(net, 0.3)
    net.runs[0].publish(b"a.1", 1)
    pass_time(net, replay.TRIES_OF_PAST * replay.TRY_SECONDS - 0.5)
    assert handled(net) == []
    pass_time(net, 3.5)
    assert handled(net) == [21]
    assert net.wired.stats.unknown_losses == 2  # for both subscriptions
    assert net.wired.stats.lost == 0


def test_a_replay_waits_while_the_publisher_searches() -> None:
    """A search that takes longer than all tries delays the past, and loses nothing of it."""
    net = network()
    publisher = net.runs[0]
    publisher.session._histories._frames.spend(int(3 * replay.TRIES_OF_PAST * replay.TRY_SECONDS / 0.01) * BLOCK)
    net.session.listen(net, PREFIXES)
    pass_time(net, 2 * replay.TRIES_OF_PAST * replay.TRY_SECONDS)
    publisher.publish(b"a.1", 1)
    assert handled(net) == []
    assert net.recoveries.busy
    pass_time(net, 2 * replay.TRIES_OF_PAST * replay.TRY_SECONDS)
    assert handled(net) == list(range(1, 22))
    assert net.wired.stats.unknown_losses == net.wired.stats.lost == 0


def test_a_recovery_waits_while_the_publisher_searches() -> None:
    """A search that takes longer than all tries, as for many subscriptions at once, loses nothing."""
    net = network()
    net.recoveries.change(frozenset(PREFIXES), net.recoveries._session.since)
    net.session.listen(net, PREFIXES)
    pass_time(net, 1)
    publisher, send = net.runs[0], net.send
    seconds = 3 * stream_recovery.TRIES * replay.TRY_SECONDS
    publisher.session._histories._frames.spend(int(seconds / 0.01) * BLOCK)
    net.send = lambda frame: None  # type: ignore[method-assign,assign]
    publisher.publish(b"a.1", 1)
    net.send = send  # type: ignore[method-assign]
    publisher.publish(b"a.1", 1)
    pass_time(net, seconds - 1)
    assert handled(net) == list(range(1, 21))
    assert net.recoveries.busy
    pass_time(net, 2)
    assert handled(net) == list(range(1, 23))
    assert (net.wired.stats.lost, net.wired.stats.recovered) == (0, 1)


def test_a_replay_does_not_wait_forever_for_a_search() -> None:
    """A publisher that only promises more is given up after a number of answers; messages begin the count again."""
    waiting = replay.Replay(Since(SinceMode.ALL), 9)
    promise = PastAnswer(0, 0)

    def promised() -> int:
        many, position = 0, waiting._position
        while waiting.tick(float(many), emptied=True):
            waiting.ask(1, float(many))
            assert list(waiting.answer(1, promise._replace(position=position), [], last=True, more=True)) == []
            many += 1
        return many

    assert waiting.ask(1, 0.0) is not None
    assert list(waiting.answer(1, PastAnswer(0, 9), [(70_000, 1)], last=True, more=True)) == [0]
    assert promised() == replay.SEARCHES_OF_PAST
    assert waiting.loss == replay.PastLoss(8, 9)
    waiting._asked_at = 0.0
    assert list(waiting.answer(1, PastAnswer(70_001, 8), [(70_001, 1)], last=True, more=True)) == [0]
    assert promised() == replay.SEARCHES_OF_PAST


def test_a_reader_that_pauses_before_the_statement_still_gets_the_past() -> None:
    """Messages before the join wait until everything that had arrived was read, however long that takes."""
    net = network()
    publisher, send, late = net.runs[0], net.send, list[bytes]()
    net.send = lambda frame: (late if frame.startswith(MARKER) else net.live).append(frame)  # type: ignore[method-assign]
    net.session.listen(net, PREFIXES)
    pass_time(net, 0.1)
    publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    assert handled(net) == []
    net.live.extend(late)
    net.clock.pump([0.25] * round(2 * replay.EARLY_SECONDS / 0.25))  # nothing is read meanwhile
    net.send = send  # type: ignore[method-assign]
    pass_time(net, 1)
    assert handled(net) == list(range(1, 22))
    assert net.origins[f"{publisher.epoch:016x}", b"a.1"] == ["replayed"] * 20 + ["live"]
    assert net.wired.balanced()


FEW = 40
"""The maximum number of publishers in the tests of forged ones, instead of `tracker.PUBLISHERS_MAX`."""


def forged_answer(net: Network, epoch: int) -> list[bytes]:
    """Return the answer of an invented publisher with a history to the last marker."""
    marker, numbers = net.session._marker[0], [(prefix, 5) for prefix in PREFIXES]
    given = {"epoch": epoch, "name": f"forged{epoch}", "partial": False, "sent_at": 5, "history": True}
    return pack_statements(Kind.JOIN, marker, numbers, **given)


def test_forged_publishers_take_nothing_from_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers invent publishers with a history: a real one keeps its recovery, and its past does not come twice."""
    monkeypatch.setattr(tracker, "PUBLISHERS_MAX", FEW)
    net = network()
    net.recoveries.change(frozenset(PREFIXES), net.recoveries._session.since)
    net.session.listen(net, PREFIXES)
    pass_time(net, 1)
    publisher = net.runs[0]
    publisher.publish(b"a.1", 1)
    pass_time(net, 1)
    assert handled(net) == list(range(1, 22))
    forged = itertools.count(1)
    for _ in range(3):
        for epoch in itertools.islice(forged, FEW):
            net.live.extend(forged_answer(net, epoch))
        net.step()
        net.session.rejoin()
        pass_time(net, 0.5)
    session = net.recoveries._session
    known = len(net.session._tracker._publishers)
    assert known <= FEW
    assert max(map(len, (session._publishers, session._settled, session._streams))) <= len(PREFIXES) * known
    send = net.send
    net.send = lambda frame: None  # type: ignore[method-assign,assign]
    publisher.publish(b"a.1", 1)
    net.send = send  # type: ignore[method-assign]
    publisher.publish(b"a.1", 1)
    pass_time(net, 1)
    assert handled(net) == list(range(1, 24))
    assert net.wired.stats.recovered == 1


def evict(net: Network) -> None:
    """Evict the first publisher, whose closures stay in the cache of the table."""
    tracked = net.session._tracker
    tracked._part(tracked._publishers[net.runs[0].epoch])
    net.session._tell(tracked.check(net.clock.seconds(), emptied=True))
    net.losses.clear()


def test_an_evicted_publisher_that_returns_is_judged_by_its_next_account() -> None:
    """The closures in the cache have its old account; its messages are counted and recovered as before."""
    net = network()
    net.recoveries.change(frozenset(PREFIXES), {})
    net.session.listen(net, PREFIXES)
    pass_time(net, 1)
    publisher, send = net.runs[0], net.send
    publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    assert handled(net) == [21]
    evict(net)
    publisher.publish(b"a.1", 1)  # before the next join: it is delivered, but not counted
    pass_time(net, 0.1)
    net.session.rejoin()
    pass_time(net, 0.5)
    publisher.publish(b"a.1", 1)
    net.send = lambda frame: None  # type: ignore[method-assign,assign]
    publisher.publish(b"a.1", 1)
    net.send = lambda frame: (send(frame), send(frame))  # type: ignore[method-assign,assign]
    publisher.publish(b"a.1", 1)
    net.send = send  # type: ignore[method-assign]
    pass_time(net, 1)
    assert handled(net) == [21, 22, 23, 24, 25]
    assert (net.wired.stats.recovered, net.wired.stats.lost, net.wired.stats.duplicate) == (1, 0, 1)
    assert net.wired.balanced()


def test_the_past_of_an_evicted_publisher_that_returns_comes_before_its_messages() -> None:
    """Its messages wait for its next statement, although the closures in the cache have its old account."""
    net = network()
    net.session.listen(net, PREFIXES)
    pass_time(net, 1)
    publisher = net.runs[0]
    publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    assert handled(net) == list(range(1, 22))
    evict(net)
    publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    net.session.rejoin()
    pass_time(net, 1)
    publisher.publish(b"a.1", 1)
    pass_time(net, 1)
    assert handled(net)[21:] == list(range(1, 24))
    assert (net.losses, net.wired.stats.duplicate) == ([], 1)
    assert net.wired.balanced()


def test_forged_messages_before_a_join_are_not_held_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message of an invented publisher takes room only until the tracker evicts the publisher."""
    monkeypatch.setattr(tracker, "PUBLISHERS_MAX", FEW)
    net = network()
    net.session.listen(net, PREFIXES)
    pass_time(net, 1)
    hold, forged = net.recoveries._session._hold, 10 * FEW
    for epoch in range(1, forged + 1):
        frame = framer("tracked", epoch=epoch, next_sequence=lambda: 5, clock_ns=lambda: 5)(b"a.1", 1, packed(1), None)
        assert isinstance(frame, bytes)
        net.live.append(frame)
        if epoch % 10 == 0:
            pass_time(net, 0.1)
            assert hold.messages <= FEW + 40  # those of a tick in addition
    pass_time(net, 0.3)
    assert sum(map(len, net.handled.values())) >= 20 + forged - FEW
    pass_time(net, replay.EARLY_SECONDS + 0.5)
    assert sum(map(len, net.handled.values())) == 20 + forged
    assert (hold.messages, hold.size) == (0, 0)
    assert net.wired.balanced()


def kept_before_the_statement(net: Network, *topics: bytes) -> Callable[[], None]:
    """Let kept messages arrive before the statement; return what lets the statement follow.

    The kept message of a.1 is in the history, and those of other topics are not.
    """
    publisher, slow = net.runs[0], list[bytes]()
    publisher._one = publisher.session.framer(net.now_ns, keeps=True)
    at = net.now_ns()
    publisher.publish(b"a.1", 1)
    send = net.send
    net.send = lambda frame: slow.append(frame) if frame.startswith(MARKER) else send(frame)  # type: ignore[method-assign]
    net.session.listen(net, PREFIXES)
    pass_time(net, 0.1)
    marker = net.session._marker[0]
    for number, topic in enumerate(topics, 1):
        send(pack_kept(marker, number, topic, 1, packed(21), None, epoch=publisher.epoch, sent_at=at))
    pass_time(net, 0.1)

    def answer() -> None:
        net.send = send  # type: ignore[method-assign]
        for frame in slow:
            send(frame)
        pass_time(net, 1)

    return answer


def test_a_kept_message_before_the_statement_waits_for_the_past() -> None:
    """It is skipped if the past contains it, and otherwise it follows the past."""
    net = network()
    answer = kept_before_the_statement(net, b"a.1", b"a.2")
    assert (handled(net), handled(net, b"a.2")) == ([], [])
    answer()
    assert handled(net) == list(range(1, 22))
    assert handled(net, b"a.2") == [21]
    assert net.losses == []
    assert net.wired.stats.duplicate == 0
    assert net.wired.balanced()


@pytest.mark.parametrize("end", ["no history", "no answer"])
def test_a_kept_message_does_not_wait_for_a_past_that_does_not_come(end: str) -> None:
    """It is delivered when the statement says that there is no history, or after ten seconds."""
    net = network()
    if end == "no history":
        net.runs[0].session._histories._rings.clear()
    answer = kept_before_the_statement(net, b"a.1", b"a.2")
    assert handled(net) == []
    if end == "no history":
        answer()
    else:
        pass_time(net, replay.EARLY_SECONDS + 1)
    assert (handled(net), handled(net, b"a.2")) == ([21], [21])
    assert net.losses == []
    assert net.wired.balanced()


def test_a_kept_message_without_room_before_the_statement_is_lost() -> None:
    """It counts as a lost kept message, because no past needs to contain it."""
    net = network()
    net.recoveries._session._hold._size = 300
    kept_before_the_statement(net, b"a.1", b"a.2")()
    assert handled(net) == list(range(1, 22))
    assert handled(net, b"a.2") == []
    assert net.losses == [LostKept(net.runs[0].epoch, 1)]
    assert net.wired.stats.lost == 1
    assert net.wired.balanced()


def without_room(net: Network) -> Callable[[], None]:
    """Let ten messages arrive before the statement, with room for three; return what lets the statement follow."""
    net.recoveries._session._hold._messages = 3
    publisher = net.runs[0]
    hear, late = publisher.hear, list[tuple[bytes, bool]]()
    publisher.hear = lambda topic, there: (  # type: ignore[method-assign]
        late.append((topic, there)) if topic.startswith(MARKER) else hear(topic, there)
    )
    net.session.listen(net, PREFIXES)
    pass_time(net, 0.1)
    for _ in range(10):
        publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    assert net.recoveries._session._hold.messages == 3

    def answer() -> None:
        publisher.hear = hear  # type: ignore[method-assign]
        for topic, there in late:
            hear(topic, there)
        pass_time(net, 1)

    return answer


@pytest.mark.parametrize("end", ["no history", "no answer", "close"])
def test_messages_without_room_and_without_a_past_are_lost(end: str) -> None:
    """What arrives before the join is either handled or counted as lost, if no history contains it."""
    net = network()
    if end == "no history":
        net.runs[0].session._histories._rings.clear()
    answer = without_room(net)
    assert net.wired.stats.duplicate == 0
    if end == "no answer":
        pass_time(net, replay.EARLY_SECONDS + 2)
    elif end == "close":
        net.recoveries.close()
        pass_time(net, 0.1)
    else:
        answer()
    epoch = net.runs[0].epoch
    assert handled(net) == [21, 22, 23]
    assert net.losses == [LostPast(epoch, b"a.", 7, 10)]
    assert (net.wired.stats.lost, net.wired.stats.duplicate) == (7, 0)
    assert net.wired.balanced()


def test_messages_without_room_that_overtake_the_statement_are_missing() -> None:
    """They are no duplicates of the past: they come from the history once, behind it."""
    net = network()
    net.recoveries._session._hold._messages = 3
    publisher, send, slow = net.runs[0], net.send, list[bytes]()
    net.send = lambda frame: slow.append(frame) if frame.startswith(MARKER) else send(frame)  # type: ignore[method-assign]
    net.session.listen(net, PREFIXES)
    pass_time(net, 0.1)
    for _ in range(10):
        publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    net.send = send  # type: ignore[method-assign]
    for frame in slow:
        send(frame)
    publisher.publish(b"a.1", 1)
    pass_time(net, 2)
    assert handled(net) == list(range(1, 32))
    assert (net.wired.stats.lost, net.wired.stats.duplicate) == (0, 0)
    assert net.wired.balanced()


def test_messages_before_the_join_have_a_limited_room() -> None:
    """Without room they are dropped, because the past contains them."""
    net = network()
    without_room(net)()
    assert handled(net) == list(range(1, 31))
    assert net.wired.stats.duplicate == 10
    assert net.wired.stats.replayed == 30
    assert net.wired.balanced()


def test_ready_with_state_waits_for_the_past() -> None:
    """The Deferred fires when the past, and what has waited for it, was handled."""
    net = network()
    fired: list[int] = []
    net.session.listen(net, PREFIXES)
    net.session.ready(1, state=True).addCallback(lambda _: fired.append(len(handled(net))))
    net.session.ready(None, state=True).addCallback(lambda _: fired.append(len(handled(net))))
    net.requests_lost = 1
    pass_time(net, 2)
    assert net.wired.stats.joins == 1
    assert fired == []
    net.requests_lost = 0
    net.runs[0].publish(b"a.1", 1)
    pass_time(net, 1)
    assert fired == [21, 21]


def test_a_gap_behind_the_join_is_recovered_until_the_past_was_handled() -> None:
    """Also without recover, a stream that replays asks for lost messages; later losses count at once."""
    net = network()
    net.session.listen(net, PREFIXES)
    net.answers_lost = 1
    pass_time(net, 0.2)
    publisher, send = net.runs[0], net.send
    net.send = lambda frame: None  # type: ignore[method-assign,assign]
    publisher.publish(b"a.1", 1)
    net.send = send  # type: ignore[method-assign]
    publisher.publish(b"a.1", 1)
    pass_time(net, 2.5)  # longer than the time in which a recovery must get on
    net.answers_lost = 0
    pass_time(net, 1)
    assert handled(net) == list(range(1, 23))
    assert (net.wired.stats.lost, net.wired.stats.recovered) == (0, 1)
    net.send = lambda frame: None  # type: ignore[method-assign,assign]
    publisher.publish(b"a.1", 1)
    net.send = send  # type: ignore[method-assign]
    publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    assert handled(net)[-2:] == [22, 24]
    assert (net.wired.stats.lost, net.wired.stats.recovered) == (1, 1)


def test_a_message_that_overtakes_the_statement_is_live() -> None:
    """Over a faster path, a message behind the cut may arrive first: it follows the past."""
    net = network()
    publisher, send, slow = net.runs[0], net.send, list[bytes]()
    net.send = lambda frame: slow.append(frame) if frame.startswith(MARKER) else send(frame)  # type: ignore[method-assign]
    net.session.listen(net, PREFIXES)
    pass_time(net, 0.1)
    publisher.publish(b"a.1", 1)
    pass_time(net, 0.1)
    assert handled(net) == []
    net.send = send  # type: ignore[method-assign]
    for frame in slow:
        send(frame)
    pass_time(net, 1)
    assert handled(net) == list(range(1, 22))
    assert net.origins[f"{publisher.epoch:016x}", b"a.1"] == ["replayed"] * 20 + ["live"]
    assert net.wired.stats.lost == 0


class Asked:
    """A replay that has asked once, in request 1."""

    def __init__(self) -> None:
        self.replay = replay.Replay(Since(SinceMode.ALL), 9)
        assert self.replay.ask(1, 0.0) == Past(9, 0, Since(SinceMode.ALL))

    def answer(self, position: int, left: int, *positions: int, number: int = 1, more: bool = True) -> list[Any]:
        """Answer with messages at these positions."""
        messages = [(each, 1) for each in positions]
        return list(self.replay.answer(number, PastAnswer(position, left), messages, last=True, more=more))


def test_only_answers_to_own_requests_count() -> None:
    """An answer to another request, or at another position, changes nothing."""
    asked = Asked()
    assert asked.answer(0, 5, 1, 2, number=2) == []
    assert asked.answer(3, 5, 3, 4) == []
    assert asked.replay.asked
    assert asked.answer(0, 5, 1, 2) == [0, 1]
    assert not asked.replay.asked
    assert asked.answer(0, 5, 1, 2) == []
    assert asked.replay.ask(2, 1.0) == Past(9, 3, Since(SinceMode.ALL))


def test_what_a_publisher_does_not_send_counts_as_lost() -> None:
    """Messages that were dropped between two answers, or that an end leaves out, are counted in their place."""
    asked = Asked()
    assert asked.answer(0, 9, 1, 2) == [0, 1]
    assert asked.replay.loss == replay.PastLoss(7, 9)
    asked.replay.ask(2, 1.0)
    assert asked.answer(3, 4, 5, number=2) == [replay.PastLoss(3, 9), 0]
    asked.replay.ask(3, 1.0)
    assert asked.answer(6, 3, 6, number=3, more=False) == [0, replay.PastLoss(2, 9), None]


def test_a_forged_number_of_messages_does_not_count_as_lost() -> None:
    """The past does not grow, so no more is lost than it contained."""
    asked = Asked()
    assert asked.answer(0, 9, 1, 2) == [0, 1]
    asked.replay.ask(2, 1.0)
    assert asked.answer(3, 2**40 - 1, number=2, more=False) == [replay.PastLoss(7, 9), None]


def test_the_past_is_asked_for_when_everything_was_handled() -> None:
    """While messages of the past wait for handlers, no more of them are asked for."""
    asked: list[bytes] = []
    session = recovery_session.RecoverySession(5, asked.append)
    session.change(frozenset(), {b"a.": Since(SinceMode.ALL)})
    session.stated(7, history=True)
    account = SubscriptionState(7, b"a.", 1)
    session.begin(lambda *_: None, account, 0.0)
    session.ask(0.0)
    frame = framer("tracked", epoch=7, next_sequence=lambda: 0, clock_ns=lambda: 5)(b"a.1", 1, b"x", None)
    assert isinstance(frame, bytes)
    answer = RecoveryAnswer(1, b"a.", True, True, False, ((70_000, frame),), (), PastAnswer(0, 5))
    session.answer(7, answer, 0.0)
    session.ask(0.0)
    assert len(asked) == 1
    assert [ready.first for _, _, ready in session.ready() if isinstance(ready, stream_recovery.Ready)] == [1]
    session.ask(0.0)
    assert len(asked) == 2


@pytest.mark.parametrize("later", [2, 2**40 + 8])
def test_a_number_of_another_count_before_the_statement_ends_the_replay(later: int) -> None:
    """The publisher has begun to count again; the messages behind are handled, and the past counts as lost."""
    known = tracker.Tracker()
    known.subscribe([b"a."])
    known.join(b"marker", 0.0)
    found = recovery_session.RecoverySession(1, lambda topic: None)
    found.change((), {b"a.": Since(SinceMode.ALL)})
    before = SubscriptionState(7, b"a.")
    for number in (2**40 + 7, later):  # the upper bits are those of the count
        assert found.early(before, number, 1, b"%d" % number, 8, 0.0) is Verdict.HELD
    found.stated(7, history=True)
    known.stated(7, b"marker", Statement(0, 1, "", False, ((b"a.", 3),), history=True))
    account = known.stream(7, b"a.")
    assert account is not None
    dropped, losses = found.begin(known.admit, account, 0.0)
    entries = [entry for _, _, entry in found.ready()]
    handled = [int(entry.frame) for entry in entries if isinstance(entry, Ready) and entry.frame is not None]
    assert handled == [number for number in (2**40 + 7, later) if number > 3]
    assert dropped == 2 - len(handled)
    assert [type(loss) for loss in losses] == [UnknownLoss]
    assert [entry for entry in entries if isinstance(entry, PastLoss)] == [PastLoss(None, 0)]
    assert found._hold.messages == found._hold.size == 0
