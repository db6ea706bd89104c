"""`Counters` and `Tracker`: what they count as lost, compared with a model that knows all sent and dropped messages."""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support import sized
from zroute.clock import TICK
from zroute.messages import control
from zroute.messages.control import (
    BEATS,
    GRACE,
    WITHDRAWN_SECONDS,
    Marker,
    Statement,
    pack_beat,
    pack_marker,
    pack_statements,
    parse_beat,
    parse_marker,
    parse_statement,
)
from zroute.messages.wire import NUL, Header, Kind, counted_framer, parse_header
from zroute.options import CARRIED
from zroute.publishing import counters as counting
from zroute.publishing.counters import WITHDRAWN_MAX, Beat, Counters
from zroute.receiving import tracker as tracking
from zroute.receiving.events import (
    DUPLICATE,
    Corrected,
    Ended,
    Gap,
    Joined,
    LostKept,
    Missing,
    Namesake,
    Overdue,
    Quiet,
    Restarted,
    Returned,
    Silent,
    UnknownLoss,
)
from zroute.receiving.hearing import ANSWER_SECONDS, ASKED_MAX, AWAY_SECONDS, QUIET_SECONDS
from zroute.receiving.tracker import EARLIER_MAX, PUBLISHERS_MAX, Tracker

# Reasons of unknown losses, as the log gives them.
GONE = "disconnected without sending a goodbye"
SILENT = "is silent"
AWAY = "was silent for 120 s, so this app treats it as ended"
REPLACED = "was replaced by a new run without sending a goodbye"
ENDED = "has ended; some of its answers were lost"
UNANSWERED = "did not answer when this app stopped"
FORGOTTEN = "no longer knows how many messages it sent"
GIVEN_UP = f"was evicted because of the limit of {PUBLISHERS_MAX} publishers"

# -- a network in which all is known ----------------------------------------------------------------------

PREFIXES = [b"", b"a", b"a.", b"a.b", b"a.b.c", b"b.", b"c"]
COVERS = [
    {b""},
    {b"a"},
    {b"a.", b"b."},
    {b"a.b", b"b.", b"c"},
    {b"a.b.c", b"c"},
    {b"a.b"},
    {b"b."},
    {b"a.b.c", b"b.", b"c"},
]
TOPICS = [b"a", b"ax", b"a.x", b"a.b", b"a.b.c", b"a.b.c.d", b"b.x", b"c", b"d"]


@attrs.define
class Frame:
    """A frame in transit, with the true numbers when it was sent: messages and counter lives by prefix."""

    frame: bytes
    sent: dict[bytes, int]
    lives: dict[bytes, int]


@attrs.define(eq=False)
class Link:
    """One connection as libzmq at the publisher sees it: a frame arrives in order, or is dropped."""

    pipe: deque[Frame]
    known: set[bytes] = attrs.field(factory=set)
    dropping: bool = False


class Publisher:
    """One run of a publisher. Its XPUB socket reports the first subscriber of a prefix and the end of the last."""

    def __init__(self, epoch: int, name: str) -> None:
        self.epoch, self.name = epoch, name
        self.counters = Counters()
        self.frame = counted_framer(epoch=epoch, count=self.counters.count, clock_ns=lambda: 5)
        self.links: list[Link] = []
        self.told: deque[tuple[bool, bytes]] = deque()
        self.sent: Tally[bytes] = Tally()
        # The model's own record of counters: how often each has begun, and when its subscription ended.
        self.lives: Tally[bytes] = Tally()
        self.gone: dict[bytes, float] = {}

    def live(self, prefix: bytes) -> bool:
        return any(prefix in link.known for link in self.links)

    def subscribe(self, link: Link, prefix: bytes) -> None:
        if not self.live(prefix):
            self.told.append((True, prefix))
        link.known.add(prefix)

    def withdraw(self, link: Link, prefix: bytes) -> None:
        link.known.discard(prefix)
        if not self.live(prefix):
            self.told.append((False, prefix))

    def send(self, frame: bytes) -> None:
        topic = frame.partition(NUL)[0]
        for link in self.links:
            if not link.dropping and any(topic.startswith(prefix) for prefix in link.known):
                link.pipe.append(Frame(frame, dict(self.sent), dict(self.lives)))

    def publish(self, topic: bytes) -> None:
        frame = self.frame(topic, 1, b"", None)
        assert isinstance(frame, bytes)
        for prefix in PREFIXES:
            self.sent[prefix] += topic.startswith(prefix)
        self.send(frame)

    def read(self, now: float) -> None:
        """Read one report of the socket."""
        there, prefix = self.told.popleft()
        if there:
            if prefix in PREFIXES and prefix not in self.gone and self.lives[prefix] <= 0:
                self.lives[prefix] = 1 - self.lives[prefix]
            self.gone.pop(prefix, None)
            marker = self.counters.subscribe(prefix, now)
            if marker is not None:
                self.state(Kind.JOIN, marker)
        else:
            if prefix in PREFIXES:
                self.gone[prefix] = now
            self.counters.withdraw(prefix, now)

    def state(self, kind: Kind, marker: Marker) -> None:
        for frame in pack_statements(
            kind,  # type: ignore[arg-type]
            marker.topic,
            self.counters.numbers(marker),
            epoch=self.epoch,
            name=self.name,
            partial=False,
            sent_at=5,
        ):
            self.send(frame)

    def tick(self, now: float) -> None:
        for prefix, since in list(self.gone.items()):
            if since + WITHDRAWN_SECONDS <= now:
                del self.gone[prefix]
                self.lives[prefix] = -self.lives[prefix]  # forgotten; the next life has the next number
        for beat in self.counters.beats(now):
            self.send(pack_beat(beat.prefix, beat.number, epoch=self.epoch, next_ms=beat.next_ms, sent_at=5))


@attrs.define
class Account:
    """The model's record of one subscription at one publisher since its join."""

    at: int
    life: int
    lost: int = 0
    counted: int = 0
    unknown: int = 0


class Subscriber:
    """A subscriber with a tracker, and a model of what the tracker should find."""

    def __init__(self, name: int) -> None:
        self.ids = count(name << 32)
        self.tracker = Tracker()
        self.wanted: set[bytes] = set()
        self.marker = b""
        self.pipes: list[deque[Frame]] = []
        self.accounts: dict[tuple[int, bytes], Account] = {}
        self.known: set[int] = set()
        self.tails: list[UnknownLoss] = []
        """The unknown losses that the model expected."""
        self.found: list[UnknownLoss] = []
        """All unknown losses that the tracker found."""
        self.earlier: deque[bytes] = deque(maxlen=EARLIER_MAX)
        """The earlier markers of the same subscriptions."""
        self.parts: dict[int, tuple[bytes, int]] = {}
        """By publisher, an answer of which some parts have arrived in order: its marker, and the number of parts."""

    @property
    def subscribed(self) -> frozenset[bytes]:
        """The subscriptions of the socket: the wanted ones, and earlier ones that still account for messages."""
        return self.tracker.leaving | self.wanted

    def leaving(self, epoch: int) -> set[bytes]:
        """Return the earlier subscriptions that still account for messages of this publisher."""
        publisher = self.tracker._publishers.get(epoch)
        return set(publisher.leaving) if publisher else set()

    def own(self, epoch: int, topic: bytes) -> bytes | None:
        """Return the subscription that accounts for a message."""
        candidates = [*self.leaving(epoch), *self.wanted]
        return next((prefix for prefix in candidates if topic.startswith(prefix)), None)

    def find(self, events: Iterable[object]) -> list[Any]:
        """Record the unknown losses among ``events``, and return all events."""
        events = list(events)
        self.found += [event for event in events if isinstance(event, UnknownLoss)]
        return events

    def take(self, event: object, *, tails: bool) -> None:
        """Record what the tracker found. ``tails``: the model expects unknown losses."""
        if isinstance(event, Gap):
            self.accounts[event.epoch, event.subscription].counted += event.count
        elif isinstance(event, UnknownLoss):
            assert tails, f"a tail that is known was called unknown: {event}"
            self.tails.append(event)

    def settle(self, epoch: int, prefix: bytes, now: Frame, events: list[object], *, counts: int) -> None:
        """Compare the tracker with the model after a frame that states a number.

        ``counts`` is the number of messages that the frame itself contains for this subscription.
        """
        life = now.lives.get(prefix, 0)
        account = self.accounts.setdefault((epoch, prefix), Account(now.sent.get(prefix, 0), life))
        reborn = account.life != life
        for event in events:
            self.take(event, tails=reborn)
        if reborn:
            assert any(isinstance(event, UnknownLoss) for event in events), "a counter was forgotten without a word"
            account.life = life
        else:
            account.lost += now.sent.get(prefix, 0) - account.at - counts
        account.at = now.sent.get(prefix, 0)
        assert account.counted == account.lost, (epoch, prefix, account)

    def read(self, pipe: deque[Frame]) -> None:
        arrived = pipe.popleft()
        topic, _, body = arrived.frame.partition(NUL)
        header = parse_header(body)
        rest = body[header.size :]
        if header.kind is Kind.DATA:
            self.data(topic, header, arrived)
        elif header.kind is Kind.BEAT:
            known = (header.epoch, topic) in self.accounts
            found = self.find(self.tracker.beat(header.epoch, topic, header.number(len(topic)), parse_beat(rest)))
            if known:
                self.settle(header.epoch, topic, arrived, found, counts=0)
            else:
                assert found == []
        else:
            self.statement(topic, header.epoch, parse_statement(rest), arrived, header.kind is Kind.GOODBYE)

    def data(self, topic: bytes, header: Header, arrived: Frame) -> None:
        prefix = self.own(header.epoch, topic)
        if prefix is None:
            return  # of a subscription that was withdrawn meanwhile
        wanted = next((prefix for prefix in self.wanted if topic.startswith(prefix)), b"")
        stream = self.tracker.account(header.epoch, topic, wanted)
        assert stream is not None
        assert stream.prefix == prefix
        number = header.number(len(prefix))
        if number and number == stream.expected:
            stream.expected = number + 1
            found = None
        else:
            (found,) = self.find([self.tracker.admit(stream, number)])
        assert found is not DUPLICATE
        account = self.accounts.get((header.epoch, prefix))
        if account is None:
            assert found is None
        elif number:
            self.settle(header.epoch, prefix, arrived, [found], counts=1)
        elif account.life == arrived.lives.get(prefix):
            account.at += 1  # one of the sent messages was received; the next number tells which were lost

    def statement(self, marker: bytes, epoch: int, stated: Statement, arrived: Frame, goodbye: bool) -> None:
        leaving_before = self.leaving(epoch)
        before, known = epoch in self.tracker.complete, epoch in self.known
        events = self.find(self.tracker.stated(epoch, marker, stated, goodbye=goodbye))
        if goodbye and not known and len(events) > 1 and isinstance(events[-2], UnknownLoss):
            self.tails.append(events.pop(-2))  # it ended without an answer, so that its losses are unknown
        leaving = leaving_before if marker == self.marker else set()
        named = {prefix for prefix, _ in stated.numbers} & (self.wanted | leaving)
        latest = marker == self.marker
        if not latest and (marker not in self.earlier or known):
            assert events == []  # an answer to another subscriber, or to an earlier marker after the account has begun
            return
        if stated.part and (marker, stated.part) != self.parts.get(epoch):
            assert events == []  # after a lost part: it is ignored, and the publisher is asked again
            return
        self.parts[epoch] = (marker, stated.part + 1)
        complete = stated.part + 1 == stated.parts
        if latest and not any(isinstance(event, Joined | Ended) for event in events):
            assert not named or before or not complete
        of_counters = [each for each in events if isinstance(each, Gap | UnknownLoss)]
        for prefix in named:
            if (epoch, prefix) in self.accounts or self.joined(epoch, prefix):
                mine = [each for each in of_counters if self.concerns(each, epoch, prefix)]
                self.settle(epoch, prefix, arrived, mine, counts=0)
        if complete:
            self.known.add(epoch)
            for prefix in leaving:  # counted to the last message before the answer
                account = self.accounts.pop((epoch, prefix))
                assert account.at == arrived.sent.get(prefix, 0)
                assert account.counted == account.lost
            assert not self.leaving(epoch)
            for prefix in self.wanted:
                self.accounts.setdefault(
                    (epoch, prefix), Account(arrived.sent.get(prefix, 0), arrived.lives.get(prefix, 0))
                )
        for event in events:
            if isinstance(event, UnknownLoss) and event.epoch != epoch:
                self.take(event, tails=True)

    def joined(self, epoch: int, prefix: bytes) -> bool:
        stream = self.tracker.stream(epoch, prefix)
        return stream is not None and stream.expected > 0

    @staticmethod
    def concerns(event: Gap | UnknownLoss, epoch: int, prefix: bytes) -> bool:
        subscriptions = (event.subscription,) if isinstance(event, Gap) else event.subscriptions
        return event.epoch == epoch and prefix in subscriptions


class Network(RuleBasedStateMachine):
    """Two publishers of the same topics and two subscribers, with every kind of trouble."""

    @initialize(first=st.sampled_from(COVERS), second=st.sampled_from(COVERS))
    def begin(self, first: set[bytes], second: set[bytes]) -> None:
        self.now = 1000.0
        self.epochs = count(1)
        self.subscribers = [Subscriber(1), Subscriber(2)]
        self.publishers = [Publisher(next(self.epochs), f"p{slot}") for slot in range(2)]
        self.links: list[list[Link]] = []  # by subscriber and publisher
        for subscriber in self.subscribers:
            subscriber.pipes = [deque() for _ in self.publishers]
            self.links.append([Link(pipe) for pipe in subscriber.pipes])
        for slot, publisher in enumerate(self.publishers):
            publisher.links = [links[slot] for links in self.links]
        self.subscribe(0, first)
        self.subscribe(1, second)

    who = st.integers(0, 1)

    @rule(who=who, wanted=st.sampled_from(COVERS))
    def subscribe(self, who: int, wanted: set[bytes]) -> None:
        subscriber = self.subscribers[who]
        before, subscriber.wanted = subscriber.subscribed, set(wanted)
        subscriber.tracker.subscribe(wanted)
        for epoch, prefix in list(subscriber.accounts):
            if prefix not in wanted and prefix not in subscriber.leaving(epoch):
                del subscriber.accounts[epoch, prefix]
        for slot, publisher in enumerate(self.publishers):
            for prefix in sorted(subscriber.subscribed - before):
                publisher.subscribe(self.links[who][slot], prefix)
        self.leave(who, before)
        self.join(who)
        subscriber.earlier.clear()

    def leave(self, who: int, before: frozenset[bytes]) -> None:
        """Withdraw the subscriptions of the socket that are no longer needed."""
        for slot, publisher in enumerate(self.publishers):
            for prefix in sorted(before - self.subscribers[who].subscribed):
                publisher.withdraw(self.links[who][slot], prefix)

    @rule(who=who)
    def join(self, who: int) -> None:
        subscriber = self.subscribers[who]
        before, subscriber.marker = subscriber.marker, pack_marker(next(subscriber.ids), subscriber.subscribed)
        subscriber.parts.clear()
        if before:
            subscriber.earlier.append(before)
        for slot, publisher in enumerate(self.publishers):
            publisher.subscribe(self.links[who][slot], subscriber.marker)
            if before:
                publisher.withdraw(self.links[who][slot], before)
        subscriber.tracker.join(subscriber.marker, self.now)

    @rule(slot=who, topics=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=6))
    def publish(self, slot: int, topics: list[bytes]) -> None:
        for topic in topics:
            self.publishers[slot].publish(topic)

    @rule(slot=who, things=st.integers(1, 6))
    def publisher_reads(self, slot: int, things: int) -> None:
        publisher = self.publishers[slot]
        for _ in range(min(things, len(publisher.told))):
            publisher.read(self.now)

    @rule(who=who, slot=who, frames=st.integers(1, 12))
    def subscriber_reads(self, who: int, slot: int, frames: int) -> None:
        subscriber = self.subscribers[who]
        pipe, before = subscriber.pipes[slot], subscriber.subscribed
        for _ in range(min(frames, len(pipe))):
            subscriber.read(pipe)
        self.leave(who, before)

    @rule(who=who, slot=who, dropping=st.booleans())
    def fill(self, who: int, slot: int, dropping: bool) -> None:
        """Begin or stop to drop frames, as a full queue does."""
        self.links[who][slot].dropping = dropping

    @rule(who=who, slot=who, data=st.data())
    def lose(self, who: int, slot: int, data: st.DataObject) -> None:
        """Lose one frame, preferably a control frame."""
        pipe = self.subscribers[who].pipes[slot]
        control = [at for at, each in enumerate(pipe) if parse_header(each.frame.partition(NUL)[2]).kind != Kind.DATA]
        if control and data.draw(st.booleans()):
            del pipe[data.draw(st.sampled_from(control))]
        elif pipe:
            del pipe[data.draw(st.integers(0, len(pipe) - 1))]

    @rule(who=who, slot=who, data=st.data(), noticed=st.booleans())
    def reconnect(self, who: int, slot: int, data: st.DataObject, noticed: bool) -> None:
        """Break a connection; the publisher notices this before or after the new one is made."""
        link, publisher, subscriber = self.links[who][slot], self.publishers[slot], self.subscribers[who]
        self.cut(link, data.draw(st.integers(0, len(link.pipe))))
        if noticed:
            self.end(publisher, link)
            for _ in range(data.draw(st.integers(0, len(publisher.told)))):
                publisher.read(self.now)
            if data.draw(st.booleans()):
                publisher.publish(data.draw(st.sampled_from(TOPICS)))
            self.pass_time(data.draw(st.sampled_from([TICK, WITHDRAWN_SECONDS - 1, WITHDRAWN_SECONDS])))
        fresh = self.links[who][slot] = Link(subscriber.pipes[slot])
        publisher.links.append(fresh)
        for prefix in sorted({*subscriber.subscribed, subscriber.marker}):
            publisher.subscribe(fresh, prefix)
        if not noticed:
            self.end(publisher, link)
        self.join(who)

    @rule(who=who, slot=who, arrived=st.integers(0, 5), topics=st.lists(st.sampled_from(TOPICS), max_size=3))
    def be_away(self, who: int, slot: int, arrived: int, topics: list[bytes]) -> None:
        """Keep a subscriber away until its counters are forgotten, unless another one has its subscriptions."""
        self.calm(who, slot)
        link, publisher = self.links[who][slot], self.publishers[slot]
        self.publish(slot, topics)
        self.cut(link, arrived)
        self.end(publisher, link)
        self.publisher_reads(slot, len(publisher.told))
        self.publish(slot, topics)
        self.pass_time(WITHDRAWN_SECONDS)
        self.publish(slot, topics)
        fresh = self.links[who][slot] = Link(self.subscribers[who].pipes[slot])
        publisher.links.append(fresh)
        for prefix in sorted({*self.subscribers[who].subscribed, self.subscribers[who].marker}):
            publisher.subscribe(fresh, prefix)
        self.publish(slot, topics)
        self.calm(who, slot)

    def calm(self, who: int, slot: int) -> None:
        """Let both sides read all that has arrived."""
        self.publisher_reads(slot, len(self.publishers[slot].told))
        self.subscriber_reads(who, slot, len(self.subscribers[who].pipes[slot]))

    @rule(
        who=who,
        slot=who,
        wanted=st.sampled_from(COVERS),
        topics=st.lists(st.sampled_from(TOPICS), max_size=3),
        data=st.data(),
    )
    def join_in_part(self, who: int, slot: int, wanted: set[bytes], topics: list[bytes], data: st.DataObject) -> None:
        """Lose one part of an answer."""
        self.calm(who, slot)
        self.subscribe(who, wanted)
        self.publisher_reads(slot, len(self.publishers[slot].told))
        pipe = self.subscribers[who].pipes[slot]
        if pipe:
            del pipe[data.draw(st.integers(0, len(pipe) - 1))]
        self.publish(slot, topics)
        self.calm(who, slot)

    def cut(self, link: Link, arrived: int) -> None:
        while len(link.pipe) > arrived:
            link.pipe.pop()
        link.pipe = deque()  # later frames on this connection go nowhere

    def end(self, publisher: Publisher, link: Link) -> None:
        for prefix in sorted(link.known):
            publisher.withdraw(link, prefix)
        publisher.links.remove(link)

    @rule(slot=who, goodbye=st.booleans(), data=st.data())
    def restart(self, slot: int, goodbye: bool, data: st.DataObject) -> None:
        """Kill or stop a publisher, and start another run of it."""
        old = self.publishers[slot]
        if goodbye:
            for marker in old.counters.markers.values():
                old.state(Kind.GOODBYE, marker)
        new = self.publishers[slot] = Publisher(next(self.epochs), old.name)
        for who, subscriber in enumerate(self.subscribers):
            pipe = subscriber.pipes[slot]
            if not goodbye:
                self.cut(self.links[who][slot], data.draw(st.integers(0, len(pipe))))
            self.links[who][slot] = Link(pipe)
            new.links.append(self.links[who][slot])
            for prefix in sorted({*subscriber.subscribed, subscriber.marker}):
                new.subscribe(self.links[who][slot], prefix)

    @rule(seconds=st.sampled_from([TICK, BEATS[0], BEATS[1], BEATS[2], WITHDRAWN_SECONDS / 2]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for publisher in self.publishers:
            publisher.tick(self.now)
        for subscriber in self.subscribers:
            before = subscriber.subscribed
            for event in subscriber.find(subscriber.tracker.check(self.now, emptied=not any(subscriber.pipes))):
                if isinstance(event, UnknownLoss):  # of a publisher that is silent or away
                    subscriber.tails.append(event)
                    for prefix in event.subscriptions:
                        subscriber.accounts.pop((event.epoch, prefix), None)
                else:
                    assert isinstance(event, Silent | Overdue | Quiet | Restarted | Returned), event
            self.leave(self.subscribers.index(subscriber), before)

    @invariant()
    def every_unknown_loss_is_expected(self) -> None:
        for subscriber in getattr(self, "subscribers", ()):
            assert Tally(subscriber.found) == Tally(subscriber.tails)

    def teardown(self) -> None:
        """End the trouble: all join, and the number of lost messages is exact."""
        for who, subscriber in enumerate(getattr(self, "subscribers", ())):
            for slot in range(2):
                self.links[who][slot].dropping = False
                self.publisher_reads(slot, len(self.publishers[slot].told))
            self.join(who)
            for slot in range(2):
                self.publisher_reads(slot, len(self.publishers[slot].told))
                self.subscriber_reads(who, slot, len(subscriber.pipes[slot]))
            assert subscriber.tracker.complete.keys() == {publisher.epoch for publisher in self.publishers}
            for publisher in self.publishers:
                for prefix in subscriber.wanted:
                    account = subscriber.accounts[publisher.epoch, prefix]
                    assert account.at == publisher.sent[prefix]
                    assert account.counted == account.lost


@pytest.fixture(autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `Network`, let one counter fill a message, and two a statement, so that tests reach these bounds."""
    if "Network" in request.node.nodeid:
        monkeypatch.setattr(counting, "CARRIED", 1)
        monkeypatch.setattr(control, "STATEMENT_MAX", 30)


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=sized(200, 15), stateful_step_count=60)


STEPS = st.tuples(
    st.sampled_from([1, 2, 4, 12, 44]),  # ticks
    st.lists(st.sampled_from([b"a.x", b"b.x"]), max_size=3),
    st.booleans(),  # the subscriber does not read, and the queue is full
    st.booleans(),  # the subscriber sends a ping
)
LONG, SHORT, PING = (44, [b"a.x", b"b.x"], True, False), (1, [], False, False), (1, [], False, True)


@pytest.mark.parametrize("busy", [False, True])
@settings(max_examples=sized(500, 30), deadline=None)
@given(steps=st.lists(STEPS, max_size=8))
@example(steps=[LONG, SHORT, PING])
@example(steps=[SHORT, LONG, PING, SHORT])
@example(steps=[(1, [b"b.x"], False, False), LONG, SHORT, PING])
def test_each_loss_is_found_if_no_message_follows(busy: bool, steps: list[Any]) -> None:
    """The tracker asks by itself for what no beat has stated, also while another stream is busy."""
    subscriber, publisher = Subscriber(1), Publisher(7, "p")
    tracker = subscriber.tracker = Tracker(chance=lambda: 0.0)
    subscriber.wanted, pings = {b"a.", b"b."}, count(1)
    link = Link(deque())
    publisher.links, now, away = [link], 1000.0, False

    def join() -> None:
        before, subscriber.marker = subscriber.marker, pack_marker(next(subscriber.ids), subscriber.wanted)
        publisher.subscribe(link, subscriber.marker)
        if before:
            publisher.withdraw(link, before)
            subscriber.earlier.append(before)
        tracker.join(subscriber.marker, now)
        while publisher.told:
            publisher.read(now)

    def ping() -> None:
        topic = b"ping %d" % next(pings)
        tracker.ping(topic, now)
        if not link.dropping:
            tracker.stated(publisher.epoch, topic, stated(name="p"))

    def tick() -> bool:
        publisher.tick(now)
        while link.pipe and not link.dropping:
            subscriber.read(link.pipe)
        silent = False
        for event in tracker.check(now, emptied=not link.pipe):
            if isinstance(event, Overdue):
                join()
            elif isinstance(event, Quiet):
                ping()
            silent |= isinstance(event, Silent)
        return silent

    tracker.subscribe(subscriber.wanted)
    for prefix in subscriber.wanted:
        publisher.subscribe(link, prefix)
    join()
    tick()
    for ticks, topics, is_full, pinged in [*steps, (1, [], False, False)]:
        if is_full and not link.dropping:
            publisher.publish(b"a.x")  # a queue is full because there are messages in it
            topics = [b"a.x", *topics]  # and it also drops messages like these
        link.dropping = is_full
        for topic in topics:
            publisher.publish(topic)
        if pinged:
            ping()
        for _ in range(ticks):
            now += TICK
            away |= tick()
    if away:
        join()  # the session connects again
    for number in range(int((2 * (BEATS[-1] + GRACE) + ANSWER_SECONDS) / TICK) + 4):
        now += TICK
        if busy and number % 2:
            publisher.publish(b"a.x")
        tick()
    account = subscriber.accounts[publisher.epoch, b"b."]
    assert (account.at, account.counted) == (publisher.sent[b"b."], account.lost)


# -- a publisher's counters -------------------------------------------------------------------------------


def numbers(counters: Counters, topic: bytes) -> list[tuple[int, int]]:
    """Count a message of ``topic``; return length and number of each counter that it carries."""
    return [(each.length, each.number) for each in counters.count(topic)]


def marker(*subscriptions: bytes, number: int = 1) -> Marker:
    """Return a marker that a subscriber sends after ``subscriptions``."""
    return parse_marker(pack_marker(number, subscriptions))


def answer_all(counters: Counters) -> None:
    """Answer a marker that wants every subscription, so that all are counted from then on."""
    dict(counters.numbers(parse_marker(pack_marker(1, [b"", b"a"]))))


def test_each_live_subscription_counts_what_it_covers() -> None:
    """A message carries one number for each overlapping subscription that covers its topic."""
    counters = Counters()
    for prefix in (b"stocks.", b"", b"stocks.A", b"news."):
        assert counters.subscribe(prefix, 0) is None
    answer_all(counters)
    assert numbers(counters, b"stocks.A") == [(0, 1), (7, 1), (8, 1)]
    assert numbers(counters, b"news.x") == [(0, 2), (5, 1)]
    assert numbers(counters, b"stocks.B") == [(0, 3), (7, 2)]
    assert dict(counters.numbers(marker(b"stocks.", b"x."))) == {b"stocks.": 2}
    everything = parse_marker(pack_marker(1, [b"", b"a"]))
    assert dict(counters.numbers(everything)) == {b"": 3, b"news.": 1, b"stocks.": 2, b"stocks.A": 1}


def test_a_message_that_nobody_subscribes_to_has_no_number() -> None:
    """A message without subscribers has no number, and uses no memory."""
    counters = Counters()
    assert numbers(counters, b"a") == []
    assert counters.beats(0) == []
    assert not counters.active


def test_a_message_that_was_not_sent_gives_its_number_back() -> None:
    """If publish raises at the high-water mark, the message's number is used again, and no reader sees a gap."""
    counters = Counters()
    counters.subscribe(b"a", 0)
    answer_all(counters)
    numbers(counters, b"ab")
    counters.count(b"ab")
    counters.take_back(b"ab")
    assert numbers(counters, b"ac") == [(1, 2)]


def test_more_counters_than_a_message_carries_still_count() -> None:
    """If more subscriptions cover a topic than a message carries, it carries the shortest, and all are counted."""
    counters = Counters()
    topic = b"x" * (CARRIED + 5)
    for length in range(len(topic) + 1):
        counters.subscribe(topic[:length], 0)
    answer_all(counters)
    assert numbers(counters, topic) == [(length, 1) for length in range(CARRIED)]
    assert dict(counters.numbers(marker(topic))) == {topic: 1}


@pytest.mark.parametrize("prefix", [b"news\0", b"x" * 256, b"\xff\xffzr", b"\xff\xffzrnonsense"])
def test_subscriptions_of_plain_readers_that_no_number_can_name_are_not_counted(prefix: bytes) -> None:
    """Prefixes that no number can name, such as `news NUL` or an invalid marker, do not affect other readers."""
    counters = Counters()
    assert counters.subscribe(prefix, 0) is None
    assert numbers(counters, b"news") == []
    counters.withdraw(prefix, 0)
    assert not counters.active


def test_prefixes_of_plain_readers_are_not_carried() -> None:
    """The 120 prefixes of a plain reader add nothing to the header: only prefixes in a marker are counted."""
    counters = Counters()
    topic = b"x" * 120
    for length in range(len(topic)):
        counters.subscribe(topic[:length], 0)
    counters.subscribe(topic, 0)
    assert numbers(counters, topic) == []
    assert dict(counters.numbers(marker(topic))) == {topic: 0}
    assert numbers(counters, topic) == [(120, 1)]
    assert [beat.prefix for beat in (*counters.beats(0), *counters.beats(1))] == [topic]


def test_beats_follow_the_last_message_three_times() -> None:
    """The last number is repeated 0.5, 2 and 10 seconds after the last message, and then no more."""
    counters, beats = Counters(), []
    counters.subscribe(b"a", 0)
    answer_all(counters)
    counters.count(b"a")
    for tick in range(60):
        beats += [(tick * TICK, beat) for beat in counters.beats(tick * TICK)]
    assert beats == [(0.5, Beat(b"a", 1, 1500)), (2.0, Beat(b"a", 1, 8000)), (10.0, Beat(b"a", 1, 0))]
    assert not counters.active


def test_a_busy_subscription_sends_no_beats() -> None:
    """While messages arrive no beats are sent, since each message carries the number."""
    counters = Counters()
    counters.subscribe(b"a", 0)
    answer_all(counters)
    for tick in range(40):
        counters.count(b"a")
        assert counters.beats(tick * TICK) == []
        assert sum(map(len, counters._due)) <= 3
    assert [each.number for tick in range(40, 100) for each in counters.beats(tick * TICK)] == [40, 40, 40]


def test_withdrawn_counters_are_bounded_in_time_and_number() -> None:
    """Subscriptions that come and go use bounded memory, and a new counter differs from the forgotten one."""
    counters = Counters()
    for number in range(WITHDRAWN_MAX + 1):
        counters.subscribe(b"%d" % number, 0)
        dict(counters.numbers(marker(b"%d" % number)))
        counters.count(b"%d" % number)
        counters.withdraw(b"%d" % number, 0)
    assert len(counters._counters) == len(counters._withdrawn) <= WITHDRAWN_MAX
    counters.subscribe(b"0", 1)  # was forgotten, and returns in another generation
    answer_all(counters)
    (counter,) = counters.count(b"0")
    assert counter.number >> 40 == 1
    counters.withdraw(b"0", 1)
    assert counters.beats(WITHDRAWN_SECONDS + 1) == []
    assert counters.beats(WITHDRAWN_SECONDS + 2) == []
    assert counters._counters == counters._withdrawn == counters._lengths == {}
    assert not counters.active


def test_topics_that_are_forgotten_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher remembers a bounded number of topics, and loses no number of a forgotten one."""
    monkeypatch.setattr(counting, "COVERS", 4_000)
    counters = Counters()
    counters.subscribe(b"", 0)
    answer_all(counters)
    for number in range(100):
        counters.count(b"%d" % number)
    assert 10 < len(counters._covers) < 30
    assert numbers(counters, b"x") == [(0, 101)]


def test_too_many_live_subscriptions_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscriptions beyond the limit are not counted, and every answer says so instead of stating zero."""
    monkeypatch.setattr(counting, "MAX_SUBSCRIPTIONS", 2)
    counters = Counters()
    for prefix in (b"a", b"b", b"c"):
        counters.subscribe(prefix, 0)
    assert counters.partial
    assert numbers(counters, b"c") == []


def test_a_reader_without_a_marker_is_a_plain_one() -> None:
    """A publisher recognises a plain reader once, as a subscriber that sends no marker for some seconds."""
    counters = Counters()
    counters.subscribe(b"a", 0)
    counters.subscribe(marker(b"a").topic, 0.1)
    assert not counters.plain_reader(GRACE + 1)
    counters.subscribe(b"b", 5)
    assert not counters.plain_reader(5 + GRACE / 2)
    assert counters.plain_reader(5 + GRACE)
    assert not counters.plain_reader(50)


# -- a subscriber's tracker -------------------------------------------------------------------------------


def stated(*entries: tuple[bytes, int], name: str = "", partial: bool = False) -> Statement:
    """Return a statement of one part."""
    return Statement(0, 1, name, partial, entries)


def joined(*subscriptions: bytes, epochs: tuple[int, ...] = (7,), name: str = "", link: int | None = None) -> Tracker:
    """Return a tracker whose publishers have answered its marker ``M`` before their first message."""
    tracker = Tracker(chance=lambda: 0.0)
    tracker.subscribe(subscriptions)
    tracker.join(b"M", 0)
    for epoch in epochs:
        tracker.stated(epoch, b"M", stated(*((each, 0) for each in subscriptions), name=name), link=link)
    return tracker


def losses(*events: object) -> tuple[int, int]:
    """Return the lost messages and the unknown losses that events report, without those taken back."""
    corrected = [event for event in events if isinstance(event, Corrected)]
    lost = sum(event.count for event in events if isinstance(event, Gap)) - sum(each.wrong for each in corrected)
    unknown = sum(isinstance(event, UnknownLoss) for event in events) - sum(each.unknown for each in corrected)
    return lost, unknown


def received(tracker: Tracker, number: int, prefix: bytes = b"a", epoch: int = 7) -> object:
    """Return the tracker's finding for a message with ``number`` of ``prefix``."""
    stream = tracker.stream(epoch, prefix)
    assert stream is not None
    return tracker.admit(stream, number)


def test_a_gap_names_what_is_missing() -> None:
    """A gap names the subscription, the publisher, and the first and last lost message."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    assert received(tracker, 5) == Gap(b"a", 7, 2, 4)


def test_the_first_message_after_a_join_can_be_missed() -> None:
    """Messages lost between the join and the first received message are counted."""
    assert received(joined(b"a"), 3) == Gap(b"a", 7, 1, 2)


def test_a_message_that_comes_twice_is_delivered_once() -> None:
    """A message that arrives on two paths to one publisher is delivered once."""
    tracker = joined(b"a")
    assert [received(tracker, number) for number in (1, 1, 2, 1)] == [None, DUPLICATE, None, DUPLICATE]


def test_publishers_of_one_topic_do_not_disturb_each_other() -> None:
    """Two publishers of one topic have separate numbers."""
    tracker = joined(b"a", epochs=(7, 8))
    assert [received(tracker, n, epoch=e) for n, e in ((1, 7), (1, 8), (2, 8), (2, 7))] == [None] * 4


def test_nothing_is_judged_before_the_join() -> None:
    """Before a publisher has answered a marker, its messages are delivered whatever their numbers."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    assert [received(tracker, number) for number in (9, 3, 100)] == [None] * 3


def test_a_goodbye_counts_the_tail_and_ends_the_publisher() -> None:
    """A goodbye counts the last messages before a clean stop; the restart is not a loss."""
    tracker = joined(b"a", name="p")
    assert tracker.stated(7, b"M", stated((b"a", 2), name="p"), goodbye=True) == [Gap(b"a", 7, 1, 2), Ended(7, "p")]
    assert tracker.stated(8, b"M", stated((b"a", 0), name="p")) == [Joined(8, "p", False)]
    assert tracker.complete.keys() == {8}


def test_a_publisher_that_was_killed_leaves_an_unknown_tail() -> None:
    """When a publisher was killed and its new run joins, the end of the old run is an unknown loss."""
    tracker = joined(b"a", name="p")
    watched(tracker, 0, TICK)
    received(tracker, 1)
    found = tracker.stated(8, b"M", stated((b"a", 0), name="p"))
    assert found == [Overdue(7), Joined(8, "p", False)]  # unless the old one shows that it lives
    tracker.join(b"N", TICK, again=True)
    tracker.stated(8, b"N", stated((b"a", 0), name="p"))
    assert watched(tracker, TICK, ANSWER_SECONDS + 2 * TICK) == [
        UnknownLoss(7, (b"a",), REPLACED),
        Restarted(8, "p", 7),
    ]


def test_a_new_run_ends_the_old_one_at_once_where_its_connection_has_ended() -> None:
    """If the connection of the old run has ended, the new run ends its account at once."""
    tracker = joined(b"a", name="p", link=5)
    tracker.links.update(frozenset({6}), (), 1)
    found = tracker.stated(8, b"M", stated((b"a", 0), name="p"), link=6)
    assert found == [UnknownLoss(7, (b"a",), REPLACED), Restarted(8, "p", 7), Joined(8, "p", False)]


def test_a_publisher_whose_last_answer_came_by_a_connection_that_is_not_known_is_waited_for() -> None:
    """A publisher whose last answer came on an unknown connection is still waited for at the stop."""
    tracker = joined(b"a", name="p", link=5)
    tracker.links.update(frozenset({6}), (), 1)
    tracker.join(b"N", 1)
    tracker.stated(7, b"N", stated((b"a", 0), name="p"), link=None)
    tracker.join(b"O", 2)
    assert tracker.awaited
    assert tracker.close() == []


def test_a_forged_run_of_the_same_name_does_not_end_the_account_of_the_real_one() -> None:
    """If two publishers have the same name, both accounts continue, and the log names both."""
    tracker = joined(b"a", name="p")
    watched(tracker, 0, TICK)
    assert tracker.stated(8, b"M", stated((b"a", 0), name="p")) == [Overdue(7), Joined(8, "p", False)]
    received(tracker, 1)
    assert watched(tracker, TICK, TICK) == [Namesake(7, "p", 8)]
    assert received(tracker, 3) == Gap(b"a", 7, 2, 2)


def test_publishers_without_a_name_are_no_restarts_of_each_other() -> None:
    """Two publishers without a name are not taken for two runs of one."""
    tracker = joined(b"a")
    assert tracker.stated(8, b"M", stated((b"a", 0))) == [Joined(8, "", False)]
    assert tracker.complete.keys() == {7, 8}


def test_a_publisher_that_does_not_count_everything_is_not_trusted() -> None:
    """Subscriptions that a partial statement does not name are not tracked, instead of taken as zero."""
    tracker = joined(b"a")
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"N", stated(partial=True)) == [Joined(7, "", True)]
    assert received(tracker, 9, b"b") is None


def test_an_account_begins_with_the_first_answer_and_readiness_with_the_last() -> None:
    """The account begins with the first answer, even if the last one, after a reconnection, is lost."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"M", stated((b"a", 5))) == []
    assert tracker.complete == {}
    assert received(tracker, 8) == Gap(b"a", 7, 6, 7)
    assert tracker.stated(7, b"M", stated((b"a", 9))) == []  # it may be from before a reconnection
    assert tracker.stated(7, b"N", stated((b"a", 9)), goodbye=True) == [Gap(b"a", 7, 9, 9), Ended(7, "")]


@pytest.mark.parametrize(("before", "after"), [(b"a.b", b"a."), (b"a.", b"a.b")])
def test_a_subscription_that_gives_way_is_accounted_for_until_the_other_is_joined(before: bytes, after: bytes) -> None:
    """If a pattern is replaced under load, the old one counts to the last message before the new one is joined."""
    tracker = joined(before)
    assert received(tracker, 1, before) is None
    tracker.subscribe([after])
    assert tracker.leaving == {before}
    tracker.join(b"N", 1)
    account = tracker.account(7, b"a.b.c", after)
    assert account is not None
    assert account.prefix == before
    assert tracker.admit(account, 4) == Gap(before, 7, 2, 3)
    answer = [(before, 6), (after, 60)]
    assert tracker.stated(7, b"N", Statement(0, 2, "", False, (answer[1],))) == []
    assert tracker.account(7, b"a.b.c", after) is account  # until all parts have arrived
    assert tracker.stated(7, b"N", Statement(0, 2, "", False, (answer[1],))) == []
    found = tracker.stated(7, b"N", Statement(1, 2, "", False, (answer[0],)))
    assert found == [Gap(before, 7, 5, 6), Joined(7, "", False)]
    assert not tracker.leaving
    account = tracker.account(7, b"a.b.c", after)
    assert account is not None
    assert (account.prefix, tracker.admit(account, 63)) == (after, Gap(after, 7, 61, 62))


def test_a_subscription_of_which_nothing_came_yet_is_accounted_for_likewise() -> None:
    """A replaced subscription without messages so far counts from zero, since its first message may be lost."""
    tracker = joined(b"a.b")
    tracker.subscribe([b"a"])
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"N", stated((b"a", 9), (b"a.b", 2))) == [Gap(b"a.b", 7, 1, 2), Joined(7, "", False)]


def test_a_change_that_is_taken_back_has_changed_nothing() -> None:
    """If a change of subscriptions is reversed, the account of the first subscription continues."""
    tracker = joined(b"a.b")
    received(tracker, 1, b"a.b")
    tracker.subscribe([b"a"])
    tracker.subscribe([b"a.b"])
    assert not tracker.leaving
    assert received(tracker, 3, b"a.b") == Gap(b"a.b", 7, 2, 2)


def test_subscriptions_of_other_topics_are_given_up_at_once() -> None:
    """A subscription that no other one replaces is given up at once."""
    tracker = joined(b"a", b"b")
    tracker.subscribe([b"b", b"c"])
    assert not tracker.leaving


def test_who_is_silent_does_not_keep_subscriptions_alive() -> None:
    """A silent publisher does not keep old subscriptions active: its loss is unknown, and others continue."""
    tracker = joined(b"a.b")
    watched(tracker, 0, 1)
    received(tracker, 1, b"a.b")
    tracker.subscribe([b"a"])
    tracker.join(b"N", 1)
    assert Overdue(7) in watched(tracker, 1, 20)
    tracker.join(b"O", 21, again=True)
    assert watched(tracker, 21, 5)[:2] == [UnknownLoss(7, (b"a.b",), SILENT), silent(7)]
    assert not tracker.leaving


def test_an_answer_about_other_subscriptions_begins_no_account() -> None:
    """An answer to a marker of earlier subscriptions begins no account, since it may not name the new ones."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"M", stated()) == []
    assert received(tracker, 50, b"b") is None


def test_a_last_answer_that_is_lost_behind_the_first_is_asked_for_again() -> None:
    """If the last answer is lost after an earlier one, the app is not ready, and asks again."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    tracker.join(b"N", 0)
    tracker.stated(7, b"M", stated((b"a", 0)))
    assert watched(tracker, 0, ANSWER_SECONDS + 3 * TICK) == [Overdue(7)]


def test_parts_of_two_answers_make_no_join() -> None:
    """Parts of answers to two markers do not complete a join, since numbers may have changed between them."""
    tracker = Tracker()
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"M", 0)
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"M", Statement(0, 2, "", False, ((b"a", 5),))) == []
    assert tracker.stated(7, b"N", Statement(1, 2, "", False, ((b"c", 5),))) == []
    assert tracker.complete == {}


def test_a_join_with_a_missing_part_is_not_complete() -> None:
    """A lost part of an answer does not count as zeros; a new marker asks again."""
    tracker = Tracker()
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"M", 0)
    tracker.stated(7, b"M", Statement(0, 3, "", False, ((b"a", 5),)))
    tracker.stated(7, b"M", Statement(2, 3, "", False, ()))
    assert tracker.complete == {}
    assert received(tracker, 50, b"b") is None
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"N", stated((b"a", 6), (b"b", 50))) == [Gap(b"a", 7, 6, 6), Joined(7, "", False)]


# -- silence ----------------------------------------------------------------------------------------------


def watched(tracker: Tracker, start: float, seconds: float, *, emptied: bool = True) -> list[object]:
    """Return the events of the checks at each tick of ``seconds``."""
    return [
        event
        for tick in range(1, round(seconds / TICK) + 1)
        for event in tracker.check(start + tick * TICK, emptied=emptied)
    ]


def silent(epoch: int, *links: int) -> Silent:
    """Return the event that a publisher without a name is silent, with the connections that may be cut."""
    return Silent(epoch, "", frozenset(links))


def test_a_frozen_publisher_is_asked_and_then_found_silent() -> None:
    """A publisher that sends no beat and answers neither of two markers is silent, reported once."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    received(tracker, 1)
    assert watched(tracker, 1, 5) == [Overdue(7)]
    tracker.join(b"N", 6, again=True)
    assert watched(tracker, 6, ANSWER_SECONDS + 2 * TICK) == [Overdue(7)]
    tracker.join(b"O", 9, again=True)
    assert watched(tracker, 9, ANSWER_SECONDS + 2 * TICK) == [silent(7)]
    for number in range(10):  # one silence is reported once, even if others connect
        tracker.join(b"%d" % number, 12 + number)
        assert watched(tracker, 12 + number, 1) == []
    assert tracker.close() == [UnknownLoss(7, (b"a",), SILENT)]


def test_a_publisher_that_does_not_answer_at_the_stop_leaves_an_unknown_loss() -> None:
    """At a stop, a publisher that does not answer the last question is an unknown loss; the other is not."""
    tracker = joined(b"a", epochs=(7, 8))
    watched(tracker, 0, 1)
    tracker.join(b"N", 2, again=True)
    tracker.stated(8, b"N", stated((b"a", 0)))
    assert tracker.close(asked=True) == [UnknownLoss(7, (b"a",), UNANSWERED)]


def test_a_publisher_whose_answer_is_lost_is_asked_again_and_never_cut() -> None:
    """A publisher whose messages arrive is alive: if its answers are lost, it is asked again, and not cut."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    for number in range(1, 11):
        tracker.join(b"%d" % number, 4 * number, again=True)
        received(tracker, number)
        assert watched(tracker, 4 * number, ANSWER_SECONDS + 2 * TICK) == [Overdue(7)]
    assert tracker.stated(7, b"9", stated((b"a", 10))) == [Joined(7, "", False)]


def test_a_first_answer_that_is_lost_is_asked_for_again() -> None:
    """A publisher that sends messages but no answer is asked again, a bounded number of times."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    received(tracker, 5)
    asked = 0
    for number in range(20):
        found = watched(tracker, 10 * number, 9)
        assert found in ([Overdue(7)], [])
        asked += len(found)
        tracker.join(b"%d" % number, 10 * number + 9, again=True)
    assert asked == ASKED_MAX - 1
    assert tracker.stated(7, b"3", stated((b"a", 5))) == [Joined(7, "", False)]
    assert received(tracker, 7) == Gap(b"a", 7, 6, 6)


def test_a_publisher_that_ends_without_having_answered_leaves_an_unknown_tail() -> None:
    """A publisher that says goodbye without a received answer is an unknown loss, not zero."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    received(tracker, 5)
    found = tracker.stated(7, b"M", stated((b"a", 9)), goodbye=True)
    assert found == [UnknownLoss(7, (b"a",), ENDED), Ended(7, "", False)]
    assert tracker.stated(7, b"M", stated((b"a", 9)), goodbye=True) == []


def test_who_is_alone_at_the_end_has_tails_that_nobody_knows() -> None:
    """If no publisher is connected at the stop, and none has said goodbye, each is an unknown loss."""
    tracker = joined(b"a")
    received(tracker, 1)
    assert tracker.close() == []
    assert tracker.close(alone=True) == [UnknownLoss(7, (b"a",), GONE)]


def test_a_publisher_that_has_nothing_to_say_is_asked_for_a_sign_of_life_now_and_then() -> None:
    """After its last beat a publisher is pinged now and then, so that a dead path is noticed."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    received(tracker, 1)
    assert watched(tracker, 1, BEATS[0]) == []
    for at, (beat, following) in zip(BEATS, ((1, 1500), (1, 8000), (1, 0)), strict=True):
        tracker.beat(7, b"a", beat, following)
        assert watched(tracker, 1 + at, max(following / 1000, TICK)) == []
    heard = 1 + BEATS[-1] + TICK  # the tick that noted the last beat
    assert watched(tracker, 20, heard + QUIET_SECONDS - 21) == []
    assert watched(tracker, heard + QUIET_SECONDS - 1, 2) == [Quiet(7)]
    for number in range(3):
        tracker.ping(b"%d" % number, 100 * number + 100)
        tracker.stated(7, b"%d" % number, stated())
        assert watched(tracker, 100 * number + 100, QUIET_SECONDS) == []
        assert watched(tracker, 100 * number + 100 + QUIET_SECONDS, 1) == [Quiet(7)]
    assert tracker.complete.keys() == {7}


def test_a_quiet_publisher_that_answers_no_ping_is_found_silent() -> None:
    """A quiet publisher that answers neither of two pings is silent."""
    tracker = joined(b"a", link=3)
    tracker.links.update(frozenset({3}), (), 0)
    assert watched(tracker, 0, QUIET_SECONDS + 1) == [Quiet(7)]
    tracker.ping(b"P", 21)
    assert watched(tracker, 21, ANSWER_SECONDS + 2 * TICK) == [Quiet(7)]
    tracker.ping(b"Q", 24)
    assert watched(tracker, 24, ANSWER_SECONDS + 2 * TICK) == [silent(7, 3)]
    assert watched(tracker, 27, 60) == []


def test_a_publisher_that_freezes_right_after_its_join_is_asked() -> None:
    """A publisher that freezes right after its answer and its first messages is asked, since a beat is due."""
    tracker = joined(b"a")
    received(tracker, 1)
    assert watched(tracker, 0, 4) == [Overdue(7)]


def test_only_connections_by_which_nothing_is_heard_are_named() -> None:
    """A connection on which another publisher is heard is not named for a cut."""
    tracker = joined(b"a", epochs=(7, 8), link=3)
    tracker.links.update(frozenset({3, 4}), (), 0)
    watched(tracker, 0, 1)
    received(tracker, 1)
    assert watched(tracker, 1, 4) == [Overdue(7)]
    tracker.join(b"N", 5, again=True)
    tracker.stated(8, b"N", stated((b"a", 0)), link=3)
    tracker.links.update(frozenset({3, 4}), {3}, 5.25)
    assert watched(tracker, 5, 3) == [Overdue(7)]
    tracker.join(b"O", 8, again=True)
    tracker.stated(8, b"O", stated((b"a", 0)), link=3)
    assert watched(tracker, 8, 3) == [silent(7)]


def test_the_answer_to_a_ping_does_not_stand_for_the_beats_of_a_message() -> None:
    """If all beats of the last messages are lost, answers to pings do not hide it."""
    tracker = joined(b"a", link=1)
    tracker.links.update(frozenset({1}), (), 0)
    assert received(tracker, 1) is None
    assert watched(tracker, 0, TICK) == []
    tracker.ping(b"P", TICK)
    assert tracker.stated(7, b"P", stated(), link=1) == []
    assert watched(tracker, 2 * TICK, BEATS[0] + GRACE) == [Overdue(7)]
    tracker.join(b"N", 4)
    assert losses(*tracker.stated(7, b"N", stated((b"a", 5)), link=1)) == (4, 0)


def test_a_part_of_an_answer_does_not_stand_for_the_beats_of_a_message() -> None:
    """Only a whole answer states the numbers of all subscriptions."""
    tracker = joined(b"a", b"b", link=1)
    tracker.links.update(frozenset({1}), (), 0)
    assert received(tracker, 1) is None
    assert watched(tracker, 0, TICK) == []
    tracker.stated(7, b"M", Statement(0, 2, "", False, ((b"b", 0),)), link=1)
    assert watched(tracker, 2 * TICK, BEATS[0] + GRACE) == [Overdue(7)]


def test_messages_of_other_subscriptions_do_not_hide_that_beats_are_lost() -> None:
    """If the beats of one subscription are lost while another is busy, the publisher is asked, once."""
    tracker = joined(b"a", b"b", link=1)
    tracker.links.update(frozenset({1}), (), 0)
    assert received(tracker, 1, b"b") is None
    found: list[tuple[float, object]] = []
    for number in range(1, 1 + int(60 / TICK)):
        assert received(tracker, number) is None
        found += [(number * TICK, event) for event in tracker.check(number * TICK, emptied=True)]
    ((asked, event),) = found
    assert event == Overdue(7)
    assert BEATS[-1] + GRACE < asked <= 2 * (BEATS[-1] + GRACE) + 3 * TICK


def test_an_account_beyond_all_answers_causes_one_question() -> None:
    """If each answer states less than the account, as after a forged message, this is asked once."""
    tracker, found = joined(b"a", link=1), list[float]()
    tracker.links.update(frozenset({1}), (), 0)
    assert received(tracker, 1) is None
    tracker.beat(7, b"a", 5, 0)
    assert received(tracker, 6) is None
    for number in range(1, 1 + int(300 / TICK)):
        for event in tracker.check(number * TICK, emptied=True):
            if event == Overdue(7):
                found.append(number * TICK)
                tracker.join(b"%d" % number, number * TICK, again=True)
                tracker.stated(7, b"%d" % number, stated((b"a", 2)), link=1)
    assert len(found) <= 2  # for the beat of the last message, and for the loss before


def test_a_subscription_whose_number_was_stated_needs_no_question() -> None:
    """One of the beats is enough, and so is a statement."""
    for beat in (True, False):
        tracker = joined(b"a", b"b", link=1)
        tracker.links.update(frozenset({1}), (), 0)
        assert received(tracker, 1, b"b") is None
        found: list[object] = []
        for number in range(1, 1 + int(60 / TICK)):
            assert received(tracker, number) is None
            if number == 4 and beat:
                assert tracker.beat(7, b"b", 1, 0) == []
            elif number == 4:
                tracker.stated(7, b"M", stated((b"a", number), (b"b", 1)), link=1)
            found += tracker.check(number * TICK, emptied=True)
        assert found == []


def test_a_publisher_that_stays_away_is_closed_as_an_unknown_loss() -> None:
    """A publisher that stays away until its counters are forgotten is an unknown loss, and may join again."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    received(tracker, 1)
    found = watched(tracker, 1, 5)
    for number in range(2):
        tracker.join(b"%d" % number, 6 + 3 * number, again=True)
        found += watched(tracker, 6 + 3 * number, 3)
    assert silent(7) in found
    assert watched(tracker, 12, AWAY_SECONDS - 15) == []
    assert watched(tracker, AWAY_SECONDS - 3, 10) == [UnknownLoss(7, (b"a",), AWAY)]
    assert tracker.close() == []
    tracker.join(b"O", 200)
    assert tracker.stated(7, b"O", stated((b"a", 50))) == [Joined(7, "", False)]
    assert received(tracker, 52) == Gap(b"a", 7, 51, 51)


def test_a_reader_that_is_behind_judges_nobody() -> None:
    """A slow or paused reader with unread beats and answers judges no publisher, however late it is."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    received(tracker, 1)
    tracker.join(b"N", 1)
    assert watched(tracker, 1, 100, emptied=False) == []
    tracker.stated(7, b"N", stated((b"a", 1)))  # it was waiting there
    assert watched(tracker, 101, 10) == []


def test_a_frozen_publisher_that_comes_back_is_counted_on() -> None:
    """If a silent publisher answers again, its account continues, and its loss is exact."""
    tracker = joined(b"a")
    tracker.join(b"N", 1)
    assert watched(tracker, 1, 5) == [Overdue(7)]
    tracker.join(b"O", 6, again=True)
    assert watched(tracker, 6, 6) == [silent(7)]
    tracker.join(b"O", 12)
    assert tracker.stated(7, b"O", stated((b"a", 4))) == [Gap(b"a", 7, 1, 4), Joined(7, "", False)]
    assert [type(event) for event in watched(tracker, 12, 1)] == [Returned]
    assert watched(tracker, 13, 1) == []
    assert tracker.close() == []


def test_a_silent_publisher_that_is_heard_again_is_told() -> None:
    """When a silent publisher is heard again, an event says for how many seconds it was silent."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    found = watched(tracker, 1, 21)
    for number in range(2):
        tracker.ping(b"%d" % number, 22 + 3 * number)
        found += watched(tracker, 22 + 3 * number, 3)
    assert silent(7) in found
    received(tracker, 1)
    assert Returned(7, "", 39.0) in watched(tracker, 39, 1)


def test_a_former_subscription_of_a_closed_publisher_is_lost_with_the_reason() -> None:
    """A publisher whose key was revoked no longer holds the account of a subscription that was replaced."""
    tracker = joined(b"a", link=1)
    tracker.links.update(frozenset({1}), (), 0)
    tracker.subscribe([b"a.b"])
    tracker.closed(frozenset({1, 5}), "the key of p was revoked")
    tracker.links.update(frozenset(), (), 1)
    tracker.join(b"N", 1)
    found = watched(tracker, 1, 5)
    tracker.join(b"O", 6, again=True)
    found += watched(tracker, 6, 6)
    assert UnknownLoss(7, (b"a",), "was disconnected, because the key of p was revoked") in found
    assert Silent(7, "", frozenset(), "the key of p was revoked") in found


# -- lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "corrected"),
    [(100, Corrected(7, b"a", 97, 0)), (2**40 - 1, Corrected(7, b"a", 2**40 - 4, 0))],
)
def test_a_forged_number_is_put_right_by_the_answer_to_the_newest_marker(lie: int, corrected: Corrected) -> None:
    """The answer to the newest marker corrects a forged number; only the refused messages count as lost."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    assert received(tracker, lie) == Gap(b"a", 7, 2, lie - 1)
    assert received(tracker, 2) is DUPLICATE
    assert tracker.check(1, emptied=True) == [Overdue(7)]
    tracker.join(b"N", 1, again=True)
    found = tracker.stated(7, b"N", stated((b"a", 2)))
    assert found == [corrected, Joined(7, "", False)]
    assert received(tracker, 3) is None
    assert losses(Gap(b"a", 7, 2, lie - 1), *found) == (1, 0)


def test_a_forged_generation_is_put_right_too() -> None:
    """It corrects a forged generation as well: the unknown loss is removed, and refused messages count as lost."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    assert received(tracker, 2**64 - 1) == UnknownLoss(7, (b"a",), FORGOTTEN)
    assert [received(tracker, number) for number in (2, 3, 4)] == [DUPLICATE] * 3
    assert tracker.check(1, emptied=True) == [Overdue(7)]
    tracker.join(b"N", 1, again=True)
    found = tracker.stated(7, b"N", stated((b"a", 4)))
    assert found == [Gap(b"a", 7, 2, 4), Corrected(7, b"a", 0, 1), Joined(7, "", False)]
    assert received(tracker, 5) is None
    assert losses(UnknownLoss(7, (b"a",), FORGOTTEN), *found) == (3, 0)


def test_a_forged_beat_is_put_right_too() -> None:
    """It corrects a forged beat as well."""
    tracker = joined(b"a")
    assert tracker.beat(7, b"a", 2**63, 0) == [UnknownLoss(7, (b"a",), FORGOTTEN)]
    assert received(tracker, 1) is DUPLICATE
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"N", stated((b"a", 1)))[-1] == Joined(7, "", False)
    assert received(tracker, 2) is None


def test_several_lies_are_all_taken_back() -> None:
    """Several forged numbers are all corrected; true losses and refused messages stay counted."""
    tracker = joined(b"a")
    found = [received(tracker, 3)]
    for lie in (1000, 2**30, 2**63):
        found += tracker.beat(7, b"a", lie, 0)
        assert received(tracker, 4) is DUPLICATE
    assert received(tracker, 5) is DUPLICATE
    tracker.join(b"N", 1, again=True)
    found += tracker.stated(7, b"N", stated((b"a", 5)))
    assert found[-1] == Joined(7, "", False)
    assert losses(*found) == (2 + 2, 0)
    assert received(tracker, 6) is None


def test_a_lie_that_a_lie_confirms_is_taken_back_too() -> None:
    """A forged answer that confirms a forged number is believed until the publisher's own answer arrives."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    found = tracker.beat(7, b"a", 1000, 0) + tracker.beat(7, b"a", 2**63, 0)
    assert received(tracker, 2) is DUPLICATE
    tracker.join(b"N", 1, again=True)
    found += tracker.stated(7, b"N", stated((b"a", 1000)))
    assert received(tracker, 3) is DUPLICATE
    tracker.join(b"O", 2, again=True)
    found += tracker.stated(7, b"O", stated((b"a", 3)))
    assert losses(*found) == (2, 0)
    assert received(tracker, 4) is None


def test_a_lie_is_taken_back_by_the_next_answer_where_nothing_has_come_since() -> None:
    """If the last frame before the stop was forged, the answer to the last question corrects the count."""
    tracker = joined(b"a", link=1)
    assert received(tracker, 1) is None
    assert received(tracker, 1000) == Gap(b"a", 7, 2, 999)
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"N", stated((b"a", 1)), link=1)[0] == Corrected(7, b"a", 998, 0)


def test_the_second_copy_of_an_answer_sets_nothing_back() -> None:
    """An answer that arrives again on a slower path does not reset the account: no message is repeated."""
    tracker = joined(b"a")
    tracker.join(b"N", 1, again=True)
    for number in range(1, 4):
        received(tracker, number)
    tracker.stated(7, b"N", stated((b"a", 3)))
    for number in range(4, 9):
        received(tracker, number)
    assert received(tracker, 3) is DUPLICATE
    tracker.stated(7, b"N", stated((b"a", 3)))
    assert [received(tracker, number) for number in range(4, 9)] == [DUPLICATE] * 5


def test_a_late_answer_sets_nothing_back() -> None:
    """A question was asked before a loss; its answer arrives behind later messages, which took a faster path."""
    tracker = joined(b"a")
    received(tracker, 1)
    tracker.join(b"N", 1, again=True)  # the publisher answers: 1
    assert received(tracker, 5) == Gap(b"a", 7, 2, 4)
    assert received(tracker, 5) is DUPLICATE
    assert tracker.stated(7, b"N", stated((b"a", 1))) == [Joined(7, "", False)]
    assert [received(tracker, number) for number in range(2, 7)] == [DUPLICATE] * 4 + [None]


def test_one_refused_message_is_one_question() -> None:
    """A duplicate leads to one question; after its answer the publisher is not asked again."""
    tracker = joined(b"a")
    received(tracker, 1)
    received(tracker, 1)
    assert tracker.check(1, emptied=True) == [Overdue(7)]
    tracker.join(b"N", 1, again=True)
    tracker.stated(7, b"N", stated((b"a", 1)))
    assert watched(tracker, 1, 13) == []


def test_a_forged_goodbye_of_a_quiet_publisher_heals_by_its_answer_to_a_ping() -> None:
    """After a forged goodbye, the publisher's answer to the next ping starts its account again."""
    tracker = joined(b"a")
    watched(tracker, 0, TICK)
    tracker.stated(7, b"M", stated((b"a", 0)), goodbye=True)
    assert watched(tracker, 1, 10) == []
    tracker.ping(b"P", 11)
    tracker.stated(7, b"P", stated())
    assert watched(tracker, 11, 4) == [Overdue(7)]
    tracker.join(b"N", 15, again=True)
    assert tracker.stated(7, b"N", stated((b"a", 2))) == [Gap(b"a", 7, 1, 2), Joined(7, "", False)]


def test_a_goodbye_of_one_that_never_knew_all_subscriptions_is_an_unknown_loss() -> None:
    """A goodbye from a publisher that never knew all subscriptions is an unknown loss."""
    tracker = Tracker()
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"M", 0)
    tracker.stated(7, b"M", stated((b"a", 5)))
    found = tracker.stated(7, b"M", stated((b"a", 5)), goodbye=True)
    assert found == [UnknownLoss(7, (b"a", b"b"), ENDED), Ended(7, "", False)]


def test_a_publisher_that_streams_without_an_account_is_not_silent() -> None:
    """A publisher whose messages arrive but whose answers are lost is not silent, and is asked again."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    tracker.subscribe([b"b"])
    tracker.join(b"N", 1)
    found = []
    for tick in range(80):
        received(tracker, tick + 5, b"b")
        found += tracker.check(1 + tick * TICK, emptied=True)
    assert not [event for event in found if isinstance(event, Silent)]
    assert found


def test_a_publisher_that_returns_by_itself_after_it_was_given_up_is_asked() -> None:
    """A publisher that returns after it was given up is asked for its numbers when its messages arrive."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    received(tracker, 1)
    found = watched(tracker, 1, 5)
    for number in range(2):
        tracker.join(b"%d" % number, 6 + 3 * number, again=True)
        found += watched(tracker, 6 + 3 * number, 3)
    found += watched(tracker, 12, AWAY_SECONDS)
    assert found.count(UnknownLoss(7, (b"a",), AWAY)) == 1
    received(tracker, 50)
    again = watched(tracker, 140, 5)
    assert Overdue(7) in again
    assert UnknownLoss(7, (b"a",), AWAY) not in again


def test_a_forged_answer_below_what_was_received_sets_nothing_back() -> None:
    """A forged answer with too low a number causes no loss, and no message is delivered twice."""
    tracker = joined(b"a", link=1)
    assert received(tracker, 3) == Gap(b"a", 7, 1, 2)
    for number in range(4, 100):
        received(tracker, number)
    assert received(tracker, 5) is DUPLICATE
    tracker.join(b"N", 1, again=True)
    for lie in (0, 2, 50):
        assert tracker.stated(7, b"N", stated((b"a", lie)), link=2) in ([Joined(7, "", False)], [])
    assert received(tracker, 50) is DUPLICATE
    assert received(tracker, 100) is None


def test_an_answer_that_names_what_i_do_not_subscribe_to_is_not_kept() -> None:
    """An answer with invented prefixes uses no memory."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    for part in range(50):
        invented = tuple((b"%d.%d" % (part, number), 1) for number in range(100))
        tracker.stated(7, b"M", Statement(part, 65_535, "", False, invented))
    assert not tracker._publishers[7].named


def test_a_publisher_that_is_heard_after_its_connection_has_ended_has_not_gone() -> None:
    """A publisher with a second connection is waited for at the stop when the first one has ended."""
    tracker = joined(b"a", link=1)
    tracker.links.update(frozenset({1}), (), 0)
    watched(tracker, 0, TICK)
    tracker.links.update(frozenset({2}), (), 1)
    received(tracker, 1)  # it was read late
    watched(tracker, 1, TICK)
    tracker.join(b"N", 2)
    assert not tracker.awaited
    received(tracker, 2)
    watched(tracker, 2, TICK)
    assert tracker.awaited
    assert tracker.close() == []


def test_a_forged_goodbye_ends_nothing() -> None:
    """If a publisher's messages arrive after a forged goodbye, it is asked, and its account continues."""
    tracker = joined(b"a")
    watched(tracker, 0, TICK)
    assert tracker.stated(7, b"M", stated((b"a", 0)), goodbye=True) == [Ended(7, "")]
    watched(tracker, 1, TICK)
    assert received(tracker, 1) is None
    assert watched(tracker, 2, 4) == [Overdue(7)]
    assert received(tracker, 3) == Gap(b"a", 7, 2, 2)


def test_an_answer_that_says_less_sets_nothing_back_where_nothing_was_refused() -> None:
    """An old answer on a slower path does not reset the account, and no message is delivered twice."""
    tracker = joined(b"a")
    received(tracker, 1)
    received(tracker, 2)
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"N", stated((b"a", 1))) == [Joined(7, "", False)]
    assert received(tracker, 2) is DUPLICATE


def test_a_second_path_that_is_late_is_no_lie() -> None:
    """Duplicates from a slower path, while the faster one delivers, cause no question."""
    tracker = joined(b"a")
    for number in range(1, 9):
        assert received(tracker, number) is None
        if number < 8:
            assert received(tracker, max(number - 2, 1)) is DUPLICATE
    assert tracker.check(1, emptied=True) == []


def test_a_forged_number_of_kept_messages_claims_no_loss() -> None:
    """A forged number of kept messages above the limit of kept messages is not counted as a loss."""
    tracker = joined(b"a")
    assert tracker.kept(7, 2**63) is None


# -- what a publisher does not know -----------------------------------------------------------------------


def test_a_publisher_that_does_not_name_a_subscription_has_not_joined() -> None:
    """A subscription that an answer does not name is missing; others are counted, and the next answer joins."""
    tracker = Tracker(chance=lambda: 0.0)
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"M", 0)
    assert tracker.stated(7, b"M", stated((b"a", 5))) == [Missing(7, frozenset({b"b"}), 1)]
    assert tracker.complete == {}
    assert received(tracker, 7) == Gap(b"a", 7, 6, 6)
    assert received(tracker, 9, b"b") is None
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"N", stated((b"a", 7), (b"b", 9))) == [Joined(7, "", False)]
    assert received(tracker, 11, b"b") == Gap(b"b", 7, 10, 10)


def test_one_that_never_knows_a_subscription_is_asked_less_and_less_often() -> None:
    """A publisher that never learns a subscription is asked less and less often, and is not joined."""
    tracker = Tracker(chance=lambda: 0.0)
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"M", 0)
    asked, now = [], 0.0
    while now < 120:
        tracker.stated(7, b"M", stated((b"a", 0)))
        now += TICK
        if Overdue(7) in tracker.check(now, emptied=True):
            asked.append(now)
            tracker.join(b"M", now, again=True)
        if now > 20:
            tracker.stated(7, b"M", stated((b"a", 0)))
    assert len(asked) < 12
    assert tracker.complete == {}


def test_subscriptions_that_no_publisher_counts_are_not_missed() -> None:
    """Subscriptions that no number can name, with a NUL or too long, are not missing in an answer."""
    tracker = Tracker()
    tracker.subscribe([b"a", b"b\0", b"c" * 256])
    tracker.join(b"M", 0)
    assert tracker.stated(7, b"M", stated((b"a", 5))) == [Joined(7, "", False)]


# -- bounds -----------------------------------------------------------------------------------------------


def test_kept_messages_that_are_given_anew_were_not_lost() -> None:
    """Kept messages counted as lost are taken back when the publisher sends them again."""
    tracker = joined(b"a")
    assert tracker.kept(7, 151, end_of=b"M") == LostKept(7, 150)
    assert tracker.kept(7, 1) == LostKept(7, -150)
    for number in range(2, 151):
        assert tracker.kept(7, number) is None
    assert tracker.kept(7, 151, end_of=b"M") is None


def test_a_publisher_whose_connection_has_ended_is_not_taken_for_ready() -> None:
    """A publisher whose connection has ended does not count for ready()."""
    tracker = joined(b"a", link=3)
    tracker.links.update(frozenset({3}), (), 0)
    tracker.kept(7, 1, end_of=b"M")
    assert (tracker.complete.keys(), tracker.given) == ({7}, 1)
    tracker.links.update(frozenset(), (), 1)
    assert (tracker.complete, tracker.given, tracker.giving) == ({}, 0, {})


def test_invented_publishers_fill_no_memory_and_drive_out_no_real_one() -> None:
    """A flood of invented publishers is bounded, and does not replace those that answered a marker."""
    tracker = joined(b"a")
    for epoch in range(1000, 1000 + 3 * PUBLISHERS_MAX):
        received(tracker, 5, epoch=epoch)
    assert len(tracker._publishers) == PUBLISHERS_MAX
    assert tracker.complete.keys() == {7}
    assert received(tracker, 2) == Gap(b"a", 7, 1, 1)


def test_invented_publishers_are_found_cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a flood of invented publishers, choosing one to give up does not compare all of them each time."""
    looks: list[Publisher] = []
    worth = tracking._worth

    def looking(publisher: Publisher) -> tuple[int, float]:
        looks.append(publisher)
        return worth(publisher)

    monkeypatch.setattr(tracking, "_worth", looking)
    tracker = joined(b"a")
    for epoch in range(1000, 1000 + 2 * PUBLISHERS_MAX):
        received(tracker, 5, epoch=epoch)
    assert len(looks) < 20 * PUBLISHERS_MAX
    assert tracker.complete.keys() == {7}


def test_one_that_was_to_be_given_up_and_is_heard_stays() -> None:
    """A publisher chosen to be given up stays if it is heard before its turn."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    for epoch in range(PUBLISHERS_MAX + 1):  # the first of them is given up, and the next ones are chosen
        received(tracker, 5, epoch=epoch)
    tracker.stated(1, b"M", stated((b"a", 5)))
    received(tracker, 5, epoch=PUBLISHERS_MAX + 1)
    assert tracker.complete.keys() == {1}


def test_accounts_of_many_subscriptions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of accounts is bounded; invented publishers are given up before the one in use."""
    monkeypatch.setattr(tracking, "STREAMS_MAX", 200)
    names = [b"%02d" % number for number in range(50)]
    tracker = joined(*names)
    for name in names:
        received(tracker, 1, prefix=name)
    tracker.check(1, emptied=True)
    for epoch in range(1000, 1010):
        tracker.stated(epoch, b"M", stated(*((name, 1) for name in names)))
    tracker.check(2, emptied=True)
    assert sum(len(each.streams) for each in tracker._publishers.values()) <= 200
    assert 7 in tracker._publishers


def test_a_publisher_that_had_to_go_leaves_an_unknown_tail() -> None:
    """A real publisher that is given up is an unknown loss, and its old accounts judge no later message."""
    tracker = joined(b"a")
    old = tracker.stream(7, b"a")
    assert old is not None
    for epoch in range(1000, 1000 + PUBLISHERS_MAX):
        tracker.stated(epoch, b"M", stated())
    assert UnknownLoss(7, (b"a",), GIVEN_UP) in tracker.check(1, emptied=True)
    assert tracker.admit(old, 9) is None
    assert tracker.admit(old, 3) is None


def test_a_subscription_that_is_withdrawn_is_forgotten() -> None:
    """Messages of a withdrawn subscription are not judged, and a later one begins with its own join."""
    tracker = joined(b"a")
    old = tracker.stream(7, b"a")
    assert old is not None
    tracker.subscribe([b"b"])
    assert tracker.admit(old, 9) is None
    assert tracker.stream(7, b"a") is None
    tracker.subscribe([b"a"])
    assert received(tracker, 50) is None
