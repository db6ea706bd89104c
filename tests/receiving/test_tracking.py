"""`Counters` and `Tracker`: what was lost, held against a model that knows what was sent and what was dropped."""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from itertools import count

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support import sized
from zroute.clock import TICK
from zroute.messages import control
from zroute.messages.control import (
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
from zroute.publishing.counters import BEATS, GRACE, WITHDRAWN_MAX, WITHDRAWN_SECONDS, Beat, Counters
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

# Why a loss is unknown, as the log says it.
GONE = "has gone without a goodbye"
SILENT = "is silent"
AWAY = "was silent for 120 s, and is given up"
REPLACED = "was replaced by a new run, without a goodbye"
ENDED = "has ended; some of its answers were lost"
UNANSWERED = "did not answer at the stop"
FORGOTTEN = "has forgotten what it had sent here"
GIVEN_UP = f"was given up for others: no more than {PUBLISHERS_MAX} publishers are followed"

# -- a network in which everything is known ---------------------------------------------------------------

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
    """A frame on its way, and the truth at the time it was sent: messages of each prefix, and lives of counters."""

    frame: bytes
    sent: dict[bytes, int]
    lives: dict[bytes, int]


@attrs.define(eq=False)
class Link:
    """One connection, as libzmq at the publisher sees it. What it is sent arrives in order, or is dropped."""

    pipe: deque[Frame]
    known: set[bytes] = attrs.field(factory=set)
    dropping: bool = False


class Publisher:
    """One run of a publisher behind an XPUB socket, which tells of the first subscriber and of the last to go."""

    def __init__(self, epoch: int, name: str) -> None:
        self.epoch, self.name = epoch, name
        self.counters = Counters()
        self.frame = counted_framer(epoch=epoch, count=self.counters.count, clock_ns=lambda: 5)
        self.links: list[Link] = []
        self.told: deque[tuple[bool, bytes]] = deque()
        self.sent: Tally[bytes] = Tally()
        # What the model itself knows of counters: how often each was begun, and when its subscription went.
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
        """Learn one thing of what the socket tells."""
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
    """What the model knows of one subscription at one publisher since its join."""

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
        self.earlier: deque[bytes] = deque(maxlen=EARLIER_MAX)
        """The markers before, for the same subscriptions."""
        self.parts: dict[int, tuple[bytes, int]] = {}
        """Of an answer that came in part, by publisher: its marker, and how many parts, in a row."""

    @property
    def subscribed(self) -> frozenset[bytes]:
        """What the socket subscribes to: what is wanted, and what is accounted for by earlier subscriptions still."""
        return self.tracker.leaving | self.wanted

    def leaving(self, epoch: int) -> set[bytes]:
        """Earlier subscriptions by which this publisher's messages are accounted for."""
        publisher = self.tracker._publishers.get(epoch)
        return set(publisher.leaving) if publisher else set()

    def own(self, epoch: int, topic: bytes) -> bytes | None:
        """The subscription that a message is accounted for by."""
        candidates = [*self.leaving(epoch), *self.wanted]
        return next((prefix for prefix in candidates if topic.startswith(prefix)), None)

    def take(self, event: object, *, tails: bool) -> None:
        """Account for what the tracker found: a tail only where the model knows that it can't be counted."""
        if isinstance(event, Gap):
            self.accounts[event.epoch, event.subscription].counted += event.count
        elif isinstance(event, UnknownLoss):
            assert tails, f"a tail that is known was called unknown: {event}"
            self.tails.append(event)

    def settle(self, epoch: int, prefix: bytes, now: Frame, events: list[object], *, counts: int) -> None:
        """The tracker was told where a subscription stands: compare. ``counts``: messages it received by this."""
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
            found = self.tracker.beat(header.epoch, topic, header.number(len(topic)), parse_beat(rest))
            if known:
                self.settle(header.epoch, topic, arrived, list(found), counts=0)
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
            found = self.tracker.admit(stream, number)
        assert found is not DUPLICATE
        account = self.accounts.get((header.epoch, prefix))
        if account is None:
            assert found is None
        elif number:
            self.settle(header.epoch, prefix, arrived, [found], counts=1)
        elif account.life == arrived.lives.get(prefix):
            account.at += 1  # one was received, whichever: the next number tells

    def statement(self, marker: bytes, epoch: int, stated: Statement, arrived: Frame, goodbye: bool) -> None:
        leaving_before = self.leaving(epoch)
        before, known = epoch in self.tracker.complete, epoch in self.known
        events = self.tracker.stated(epoch, marker, stated, goodbye=goodbye)
        if goodbye and not known and len(events) > 1 and isinstance(events[-2], UnknownLoss):
            self.tails.append(events.pop(-2))  # it ended without ever having been joined: nobody knows
        leaving = leaving_before if marker == self.marker else set()
        named = {prefix for prefix, _ in stated.numbers} & (self.wanted | leaving)
        latest = marker == self.marker
        if not latest and (marker not in self.earlier or known):
            assert events == []  # to another, or to a marker before the last where the account has begun
            return
        if stated.part and (marker, stated.part) != self.parts.get(epoch):
            assert events == []  # behind a part that was lost: it says nothing, and is asked for anew
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
            for prefix in leaving:  # to the last message before the answer, and what follows is others'
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
    """Two publishers of the same topics and two subscribers, whom everything happens to that can."""

    @initialize(first=st.sampled_from(COVERS), second=st.sampled_from(COVERS))
    def begin(self, first: set[bytes], second: set[bytes]) -> None:
        self.now = 1000.0
        self.epochs = count(1)
        self.subscribers = [Subscriber(1), Subscriber(2)]
        self.publishers = [Publisher(next(self.epochs), f"p{slot}") for slot in range(2)]
        self.links: list[list[Link]] = []  # of each subscriber, to each publisher
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
        """The socket withdraws what is needed no more."""
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
        """The queue is full from now on, or has room again."""
        self.links[who][slot].dropping = dropping

    @rule(who=who, slot=who, data=st.data())
    def lose(self, who: int, slot: int, data: st.DataObject) -> None:
        """One frame here and there never arrives."""
        pipe = self.subscribers[who].pipes[slot]
        control = [at for at, each in enumerate(pipe) if parse_header(each.frame.partition(NUL)[2]).kind != Kind.DATA]
        if control and data.draw(st.booleans()):
            del pipe[data.draw(st.sampled_from(control))]
        elif pipe:
            del pipe[data.draw(st.integers(0, len(pipe) - 1))]

    @rule(who=who, slot=who, data=st.data(), noticed=st.booleans())
    def reconnect(self, who: int, slot: int, data: st.DataObject, noticed: bool) -> None:
        """The connection breaks; the publisher may see it at once, or only after the new one is there."""
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
        """A subscriber is away for so long that its counters are forgotten, if nobody else has its subscriptions."""
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
        """Everybody reads everything."""
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
        """One part of an answer is lost."""
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
        link.pipe = deque()  # what is sent to it goes nowhere

    def end(self, publisher: Publisher, link: Link) -> None:
        for prefix in sorted(link.known):
            publisher.withdraw(link, prefix)
        publisher.links.remove(link)

    @rule(slot=who, goodbye=st.booleans(), data=st.data())
    def restart(self, slot: int, goodbye: bool, data: st.DataObject) -> None:
        """A publisher is killed, or stops, and another run of it begins."""
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
            for event in subscriber.tracker.check(self.now, emptied=not any(subscriber.pipes)):
                if isinstance(event, UnknownLoss):  # of one that is silent, or away: others do not wait for it
                    subscriber.tails.append(event)
                    for prefix in event.subscriptions:
                        subscriber.accounts.pop((event.epoch, prefix), None)
                else:
                    assert isinstance(event, Silent | Overdue | Quiet | Restarted | Returned), event
            self.leave(self.subscribers.index(subscriber), before)

    @invariant()
    def nothing_is_a_duplicate(self) -> None:
        for subscriber in getattr(self, "subscribers", ()):
            assert subscriber.tracker.duplicates == 0
            counted = sum(account.counted for account in subscriber.accounts.values())
            assert subscriber.tracker.lost >= counted
            assert subscriber.tracker.unknown_losses == len(subscriber.tails)

    def teardown(self) -> None:
        """The trouble ends: all join, and what was lost is known to the message."""
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
    """In the network one counter fills a message and one or two entries a statement, so that the bounds matter."""
    if "Network" in request.node.nodeid:
        monkeypatch.setattr(counting, "CARRIED", 1)
        monkeypatch.setattr(control, "STATEMENT_MAX", 30)


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=sized(200, 20), stateful_step_count=60)


# -- a publisher's counters -------------------------------------------------------------------------------


def numbers(counters: Counters, topic: bytes) -> list[tuple[int, int]]:
    """Length and number of each counter that a message of ``topic`` carries, which is counted by this."""
    return [(each.length, each.number) for each in counters.count(topic)]


def marker(*subscriptions: bytes, number: int = 1) -> Marker:
    """A marker that a subscriber sends behind ``subscriptions``."""
    return parse_marker(pack_marker(number, subscriptions))


def answer_all(counters: Counters) -> None:
    """Answer a marker that wants every subscription: from then on they count."""
    dict(counters.numbers(parse_marker(pack_marker(1, [b"", b"a"]))))


def test_each_live_subscription_counts_what_it_covers() -> None:
    """Overlapping subscribers find the number of their own in a message, and no other message takes one away."""
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
    """Without subscribers nothing is counted and nothing is kept."""
    counters = Counters()
    assert numbers(counters, b"a") == []
    assert counters.beats(0) == []
    assert not counters.active


def test_a_message_that_was_not_sent_gives_its_number_back() -> None:
    """publish raised at the high-water mark: the message is the caller's again, and no reader misses it."""
    counters = Counters()
    counters.subscribe(b"a", 0)
    answer_all(counters)
    numbers(counters, b"ab")
    counters.count(b"ab")
    counters.take_back(b"ab")
    assert numbers(counters, b"ac") == [(1, 2)]


def test_more_counters_than_a_message_carries_still_count() -> None:
    """A topic under too many subscriptions carries the shortest, and the others know their number all the same."""
    counters = Counters()
    topic = b"x" * (CARRIED + 5)
    for length in range(len(topic) + 1):
        counters.subscribe(topic[:length], 0)
    answer_all(counters)
    assert numbers(counters, topic) == [(length, 1) for length in range(CARRIED)]
    assert dict(counters.numbers(marker(topic))) == {topic: 1}


@pytest.mark.parametrize("prefix", [b"news\0", b"x" * 256, b"\xff\xffzr", b"\xff\xffzrnonsense"])
def test_subscriptions_of_plain_readers_that_no_number_can_name_are_not_counted(prefix: bytes) -> None:
    """A txZMQ reader of `news NUL`, or whoever plays at markers, changes nothing for others."""
    counters = Counters()
    assert counters.subscribe(prefix, 0) is None
    assert numbers(counters, b"news") == []
    counters.withdraw(prefix, 0)
    assert not counters.active


def test_prefixes_of_plain_readers_are_not_carried() -> None:
    """A reader with 120 prefixes of one topic changes no header of mine: only what a marker wants is counted."""
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
    """0.5, 2 and 10 seconds after the last message its number is said again, and then the publisher is quiet."""
    counters, beats = Counters(), []
    counters.subscribe(b"a", 0)
    answer_all(counters)
    counters.count(b"a")
    for tick in range(60):
        beats += [(tick * TICK, beat) for beat in counters.beats(tick * TICK)]
    assert beats == [(0.5, Beat(b"a", 1, 1500)), (2.0, Beat(b"a", 1, 8000)), (10.0, Beat(b"a", 1, 0))]
    assert not counters.active


def test_a_busy_subscription_sends_no_beats() -> None:
    """While messages come the next one says what a beat would."""
    counters = Counters()
    counters.subscribe(b"a", 0)
    answer_all(counters)
    for tick in range(40):
        counters.count(b"a")
        assert counters.beats(tick * TICK) == []
        assert sum(map(len, counters._due)) <= 3
    assert [each.number for tick in range(40, 100) for each in counters.beats(tick * TICK)] == [40, 40, 40]


def test_withdrawn_counters_are_bounded_in_time_and_number() -> None:
    """Subscriptions that come and go fill no memory, and a counter begun anew can be told from the old one."""
    counters = Counters()
    for number in range(WITHDRAWN_MAX + 1):
        counters.subscribe(b"%d" % number, 0)
        dict(counters.numbers(marker(b"%d" % number)))
        counters.count(b"%d" % number)
        counters.withdraw(b"%d" % number, 0)
    assert len(counters._counters) == len(counters._withdrawn) <= WITHDRAWN_MAX
    counters.subscribe(b"0", 1)  # was forgotten, and comes back in another generation
    answer_all(counters)
    (counter,) = counters.count(b"0")
    assert counter.number >> 40 == 1
    counters.withdraw(b"0", 1)
    assert counters.beats(WITHDRAWN_SECONDS + 1) == []
    assert counters.beats(WITHDRAWN_SECONDS + 2) == []
    assert counters._counters == counters._withdrawn == counters._lengths == {}
    assert not counters.active


def test_topics_that_are_forgotten_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many topics I publish, only so many are remembered, and no number is lost."""
    monkeypatch.setattr(counting, "COVERS", 10_000)
    counters = Counters()
    counters.subscribe(b"", 0)
    answer_all(counters)
    for number in range(100):
        counters.count(b"%d" % number)
    assert 10 < len(counters._covers) < 30
    assert numbers(counters, b"x") == [(0, 101)]


def test_too_many_live_subscriptions_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit nothing is counted, and every answer says so instead of stating a zero."""
    monkeypatch.setattr(counting, "MAX_SUBSCRIPTIONS", 2)
    counters = Counters()
    for prefix in (b"a", b"b", b"c"):
        counters.subscribe(prefix, 0)
    assert counters.partial
    assert numbers(counters, b"c") == []


def test_a_reader_without_a_marker_is_a_plain_one() -> None:
    """A tracked publisher can say once that a plain reader is there; tracked ones send a marker at once."""
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
    """A statement of one part."""
    return Statement(0, 1, name, partial, entries)


def joined(*subscriptions: bytes, epochs: tuple[int, ...] = (7,), name: str = "", link: int | None = None) -> Tracker:
    """A tracker whose publishers have answered its marker ``M``, by ``link``, when nothing was published yet."""
    tracker = Tracker(chance=lambda: 0.0)
    tracker.subscribe(subscriptions)
    tracker.join(b"M", 0)
    for epoch in epochs:
        tracker.stated(epoch, b"M", stated(*((each, 0) for each in subscriptions), name=name), link=link)
    return tracker


def received(tracker: Tracker, number: int, prefix: bytes = b"a", epoch: int = 7) -> object:
    """What a message with ``number`` of ``prefix`` tells."""
    stream = tracker.stream(epoch, prefix)
    assert stream is not None
    return tracker.admit(stream, number)


def test_a_gap_names_what_is_missing() -> None:
    """I am told the subscription, the publisher, the first and the last that I did not get."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    assert received(tracker, 5) == Gap(b"a", 7, 2, 4)
    assert (tracker.lost, tracker.gaps) == (3, 1)


def test_the_first_message_after_a_join_can_be_missed() -> None:
    """What was lost between the join and the first message that came is counted too."""
    assert received(joined(b"a"), 3) == Gap(b"a", 7, 1, 2)


def test_a_message_that_comes_twice_is_delivered_once() -> None:
    """Two ways to one publisher give me each message once."""
    tracker = joined(b"a")
    assert [received(tracker, number) for number in (1, 1, 2, 1)] == [None, DUPLICATE, None, DUPLICATE]
    assert tracker.duplicates == 2


def test_publishers_of_one_topic_do_not_disturb_each_other() -> None:
    """Each has its own numbers."""
    tracker = joined(b"a", epochs=(7, 8))
    assert [received(tracker, n, epoch=e) for n, e in ((1, 7), (1, 8), (2, 8), (2, 7))] == [None] * 4


def test_nothing_is_judged_before_the_join() -> None:
    """A publisher that answers no marker is served as before, whatever its numbers."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    assert [received(tracker, number) for number in (9, 3, 100)] == [None] * 3
    assert tracker.lost == 0


def test_a_goodbye_counts_the_tail_and_ends_the_publisher() -> None:
    """The last messages before a clean stop are not lost without a word, and its restart is no loss."""
    tracker = joined(b"a", name="p")
    assert tracker.stated(7, b"M", stated((b"a", 2), name="p"), goodbye=True) == [Gap(b"a", 7, 1, 2), Ended(7, "p")]
    assert tracker.stated(8, b"M", stated((b"a", 0), name="p")) == [Joined(8, "p", False)]
    assert tracker.complete.keys() == {8}


def test_a_publisher_that_was_killed_leaves_an_unknown_tail() -> None:
    """The new run of a publisher says that the old one has ended, and that its end is not known."""
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
    assert tracker.unknown_losses == 1


def test_a_new_run_ends_the_old_one_at_once_where_its_connection_has_ended() -> None:
    """The process was killed, and the system closed its connection: there is nothing to wait for."""
    tracker = joined(b"a", name="p", link=5)
    tracker.links.update(frozenset({6}), (), 1)
    found = tracker.stated(8, b"M", stated((b"a", 0), name="p"), link=6)
    assert found == [UnknownLoss(7, (b"a",), REPLACED), Restarted(8, "p", 7), Joined(8, "p", False)]


def test_a_publisher_whose_last_answer_came_by_a_connection_that_is_not_known_is_waited_for() -> None:
    """Its connection has ended, and by which one it answers now can't be told: it has not gone."""
    tracker = joined(b"a", name="p", link=5)
    tracker.links.update(frozenset({6}), (), 1)
    tracker.join(b"N", 1)
    tracker.stated(7, b"N", stated((b"a", 0), name="p"), link=None)
    tracker.join(b"O", 2)
    assert tracker.awaited
    assert tracker.close() == []


def test_a_forged_run_of_the_same_name_does_not_end_the_account_of_the_real_one() -> None:
    """Two publishers call themselves the same, honestly or not: the account of each goes on, and I am told."""
    tracker = joined(b"a", name="p")
    watched(tracker, 0, TICK)
    tracker.stated(8, b"M", stated((b"a", 0), name="p"))
    received(tracker, 1)
    assert watched(tracker, TICK, TICK) == [Namesake(7, "p", 8)]
    assert received(tracker, 3) == Gap(b"a", 7, 2, 2)
    assert tracker.unknown_losses == 0


def test_publishers_without_a_name_are_no_restarts_of_each_other() -> None:
    """Two publishers that have no name of their own are two publishers."""
    tracker = joined(b"a", epochs=(7, 8))
    assert tracker.complete.keys() == {7, 8}
    assert tracker.unknown_losses == 0


def test_a_publisher_that_does_not_count_everything_is_not_trusted() -> None:
    """What a partial statement does not name stays unjudged, instead of being taken for zero."""
    tracker = joined(b"a")
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"N", stated(partial=True)) == [Joined(7, "", True)]
    assert received(tracker, 9, b"b") is None
    assert tracker.lost == 0


def test_an_account_begins_with_the_first_answer_and_readiness_with_the_last() -> None:
    """A connection came up and I asked anew: where only the first answer gets through, nothing behind it is unknown."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"M", stated((b"a", 5))) == []
    assert tracker.complete == {}
    assert received(tracker, 8) == Gap(b"a", 7, 6, 7)
    assert tracker.stated(7, b"M", stated((b"a", 9))) == []  # of before a reconnection, it could be
    assert tracker.stated(7, b"N", stated((b"a", 9)), goodbye=True) == [Gap(b"a", 7, 9, 9), Ended(7, "")]


@pytest.mark.parametrize(("before", "after"), [(b"a.b", b"a."), (b"a.", b"a.b")])
def test_a_subscription_that_gives_way_is_accounted_for_until_the_other_is_joined(before: bytes, after: bytes) -> None:
    """I attach a wider pattern, or take one away, under load: what I had joined is counted to the last message."""
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
    assert tracker.account(7, b"a.b.c", after) is account  # as long as a part may be lost
    assert tracker.stated(7, b"N", Statement(0, 2, "", False, (answer[1],))) == []
    found = tracker.stated(7, b"N", Statement(1, 2, "", False, (answer[0],)))
    assert found == [Gap(before, 7, 5, 6), Joined(7, "", False)]
    assert not tracker.leaving
    account = tracker.account(7, b"a.b.c", after)
    assert account is not None
    assert (account.prefix, tracker.admit(account, 63)) == (after, Gap(after, 7, 61, 62))


def test_a_subscription_of_which_nothing_came_yet_is_accounted_for_likewise() -> None:
    """It stood at zero when it was joined, so the first message may be missing."""
    tracker = joined(b"a.b")
    tracker.subscribe([b"a"])
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"N", stated((b"a", 9), (b"a.b", 2))) == [Gap(b"a.b", 7, 1, 2), Joined(7, "", False)]


def test_a_change_that_is_taken_back_has_changed_nothing() -> None:
    """The account of the first subscription goes on as if nothing had been."""
    tracker = joined(b"a.b")
    received(tracker, 1, b"a.b")
    tracker.subscribe([b"a"])
    tracker.subscribe([b"a.b"])
    assert not tracker.leaving
    assert received(tracker, 3, b"a.b") == Gap(b"a.b", 7, 2, 2)


def test_subscriptions_of_other_topics_are_given_up_at_once() -> None:
    """What I no longer subscribe to is not waited for."""
    tracker = joined(b"a", b"b")
    tracker.subscribe([b"b", b"c"])
    assert not tracker.leaving


def test_who_is_silent_does_not_keep_subscriptions_alive() -> None:
    """A dead publisher never answers: what is lost of it is unknown, and the others are not held up."""
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
    """It does not know what I subscribe to now: what it doesn't name may be anywhere."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"M", stated()) == []
    assert received(tracker, 50, b"b") is None


def test_a_last_answer_that_is_lost_behind_the_first_is_asked_for_again() -> None:
    """The account goes on, but I am not ready: that publisher is asked as any other."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    tracker.join(b"N", 0)
    tracker.stated(7, b"M", stated((b"a", 0)))
    assert watched(tracker, 0, ANSWER_SECONDS + 3 * TICK) == [Overdue(7)]


def test_parts_of_two_answers_make_no_join() -> None:
    """What the second answer said in its lost part may have moved since the first."""
    tracker = Tracker()
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"M", 0)
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"M", Statement(0, 2, "", False, ((b"a", 5),))) == []
    assert tracker.stated(7, b"N", Statement(1, 2, "", False, ((b"c", 5),))) == []
    assert tracker.complete == {}


def test_a_join_with_a_missing_part_is_not_complete() -> None:
    """A part that was lost does not make zeros of what it said; a new marker asks again."""
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
    """What checks at each tick of ``seconds`` find."""
    return [
        event
        for tick in range(1, round(seconds / TICK) + 1)
        for event in tracker.check(start + tick * TICK, emptied=emptied)
    ]


def silent(epoch: int, *links: int) -> Silent:
    """What says that a publisher without a name is silent, and which connections may be cut."""
    return Silent(epoch, "", frozenset(links))


def test_a_frozen_publisher_is_asked_and_then_found_silent() -> None:
    """After a message no beat comes, and no answer to two markers: that connection is dead, and I am told once."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    received(tracker, 1)
    assert watched(tracker, 1, 5) == [Overdue(7)]
    tracker.join(b"N", 6, again=True)
    assert watched(tracker, 6, ANSWER_SECONDS + 2 * TICK) == [Overdue(7)]
    tracker.join(b"O", 9, again=True)
    assert watched(tracker, 9, ANSWER_SECONDS + 2 * TICK) == [silent(7)]
    for number in range(10):  # one silence has one judgement, whoever else connects
        tracker.join(b"%d" % number, 12 + number)
        assert watched(tracker, 12 + number, 1) == []
    assert tracker.close() == [UnknownLoss(7, (b"a",), SILENT)]


def test_a_publisher_that_does_not_answer_at_the_stop_leaves_an_unknown_loss() -> None:
    """I asked once more before I stopped; of two publishers one answered, and the other may have sent more."""
    tracker = joined(b"a", epochs=(7, 8))
    watched(tracker, 0, 1)
    tracker.join(b"N", 2, again=True)
    tracker.stated(8, b"N", stated((b"a", 0)))
    assert tracker.close(asked=True) == [UnknownLoss(7, (b"a",), UNANSWERED)]


def test_a_publisher_whose_answer_is_lost_is_asked_again_and_never_cut() -> None:
    """Its messages arrive, so it lives: an answer that a full queue has dropped is no reason to connect anew."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    for number in range(1, 11):
        tracker.join(b"%d" % number, 4 * number, again=True)
        received(tracker, number)
        assert watched(tracker, 4 * number, ANSWER_SECONDS + 2 * TICK) == [Overdue(7)]
    assert tracker.stated(7, b"9", stated((b"a", 10))) == [Joined(7, "", False)]


def test_a_first_answer_that_is_lost_is_asked_for_again() -> None:
    """Messages come of a publisher that has not answered: it is asked, a bounded number of times."""
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
    """Its answers were lost, and with them what its last numbers could be compared with: that is not zero."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    received(tracker, 5)
    found = tracker.stated(7, b"M", stated((b"a", 9)), goodbye=True)
    assert found == [UnknownLoss(7, (b"a",), ENDED), Ended(7, "", False)]
    assert tracker.stated(7, b"M", stated((b"a", 9)), goodbye=True) == []


def test_who_is_alone_at_the_end_has_tails_that_nobody_knows() -> None:
    """No publisher is connected when I stop, and none said goodbye: each may have sent more."""
    tracker = joined(b"a")
    received(tracker, 1)
    assert tracker.close() == []
    assert tracker.close(alone=True) == [UnknownLoss(7, (b"a",), GONE)]


def test_a_publisher_that_has_nothing_to_say_is_asked_for_a_sign_of_life_now_and_then() -> None:
    """After the last beat nothing is promised; a path that swallows everything must be noticed all the same."""
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
    """Nothing was promised, and the path swallows everything: two pings without an answer tell."""
    tracker = joined(b"a", link=3)
    tracker.links.update(frozenset({3}), (), 0)
    assert watched(tracker, 0, QUIET_SECONDS + 1) == [Quiet(7)]
    tracker.ping(b"P", 21)
    assert watched(tracker, 21, ANSWER_SECONDS + 2 * TICK) == [Quiet(7)]
    tracker.ping(b"Q", 24)
    assert watched(tracker, 24, ANSWER_SECONDS + 2 * TICK) == [silent(7, 3)]
    assert watched(tracker, 27, 60) == []


def test_a_publisher_that_freezes_right_after_its_join_is_asked() -> None:
    """It sent messages behind the answer, in the same moment, and no beat: that was a promise."""
    tracker = joined(b"a")
    received(tracker, 1)
    assert watched(tracker, 0, 4) == [Overdue(7)]


def test_only_connections_by_which_nothing_is_heard_are_named() -> None:
    """Another publisher is heard by the same connection: it works, and must not be cut."""
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


def test_a_publisher_that_stays_away_is_closed_as_an_unknown_loss() -> None:
    """As long as its counters live, it may come back and be counted on; then I am told, and it begins a new account."""
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
    """A slow or paused reader has beats and answers waiting unread: it cuts no connection, however late it is."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    received(tracker, 1)
    tracker.join(b"N", 1)
    assert watched(tracker, 1, 100, emptied=False) == []
    tracker.stated(7, b"N", stated((b"a", 1)))  # it was waiting there
    assert watched(tracker, 101, 10) == []


def test_a_frozen_publisher_that_comes_back_is_counted_on() -> None:
    """It was silent, it answers again, and what was lost meanwhile is known to the message."""
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
    """Who was called to a frozen publisher learns that it is back, and for how long it was away."""
    tracker = joined(b"a")
    watched(tracker, 0, 1)
    found = watched(tracker, 1, 21)
    for number in range(2):
        tracker.ping(b"%d" % number, 22 + 3 * number)
        found += watched(tracker, 22 + 3 * number, 3)
    assert silent(7) in found
    received(tracker, 1)
    assert Returned(7, "", 39.0) in watched(tracker, 39, 1)


# -- lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "corrected"),
    [(100, Corrected(7, b"a", 97, 0)), (2**40 - 1, Corrected(7, b"a", 2**40 - 4, 0))],
)
def test_a_forged_number_is_put_right_by_the_answer_to_the_newest_marker(lie: int, corrected: Corrected) -> None:
    """One frame claims what was never sent: what followed was refused, and counts as lost; nothing else does."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    assert received(tracker, lie) == Gap(b"a", 7, 2, lie - 1)
    assert received(tracker, 2) is DUPLICATE
    assert tracker.check(1, emptied=True) == [Overdue(7)]
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"N", stated((b"a", 2))) == [corrected, Joined(7, "", False)]
    assert received(tracker, 3) is None
    assert (tracker.lost, tracker.unknown_losses) == (1, 0)


def test_a_forged_generation_is_put_right_too() -> None:
    """The lie was an unknown loss: what was refused meanwhile is counted, and nothing is unknown."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    assert received(tracker, 2**64 - 1) == UnknownLoss(7, (b"a",), FORGOTTEN)
    assert [received(tracker, number) for number in (2, 3, 4)] == [DUPLICATE] * 3
    assert tracker.check(1, emptied=True) == [Overdue(7)]
    tracker.join(b"N", 1, again=True)
    found = tracker.stated(7, b"N", stated((b"a", 4)))
    assert found == [Gap(b"a", 7, 2, 4), Corrected(7, b"a", 0, 1), Joined(7, "", False)]
    assert received(tracker, 5) is None
    assert (tracker.lost, tracker.unknown_losses) == (3, 0)


def test_a_forged_beat_is_put_right_too() -> None:
    """Whatever frame lies."""
    tracker = joined(b"a")
    assert tracker.beat(7, b"a", 2**63, 0) == [UnknownLoss(7, (b"a",), FORGOTTEN)]
    assert received(tracker, 1) is DUPLICATE
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"N", stated((b"a", 1)))[-1] == Joined(7, "", False)
    assert received(tracker, 2) is None


def test_several_lies_are_all_taken_back() -> None:
    """A liar goes on: what was truly lost before stays counted, and what was refused meanwhile."""
    tracker = joined(b"a")
    assert received(tracker, 3) == Gap(b"a", 7, 1, 2)
    for lie in (1000, 2**30, 2**63):
        tracker.beat(7, b"a", lie, 0)
        assert received(tracker, 4) is DUPLICATE
    assert received(tracker, 5) is DUPLICATE
    tracker.join(b"N", 1, again=True)
    found = tracker.stated(7, b"N", stated((b"a", 5)))
    assert found[-1] == Joined(7, "", False)
    assert (tracker.lost, tracker.unknown_losses) == (2 + 2, 0)
    assert received(tracker, 6) is None


def test_a_lie_that_a_lie_confirms_is_taken_back_too() -> None:
    """The liar answers my marker in the name of the publisher: its answer is believed until the real one comes."""
    tracker = joined(b"a")
    assert received(tracker, 1) is None
    tracker.beat(7, b"a", 1000, 0)
    tracker.beat(7, b"a", 2**63, 0)
    assert received(tracker, 2) is DUPLICATE
    tracker.join(b"N", 1, again=True)
    tracker.stated(7, b"N", stated((b"a", 1000)))
    assert received(tracker, 3) is DUPLICATE
    tracker.join(b"O", 2, again=True)
    tracker.stated(7, b"O", stated((b"a", 3)))
    assert (tracker.lost, tracker.unknown_losses) == (2, 0)
    assert received(tracker, 4) is None


def test_a_lie_is_taken_back_by_the_next_answer_where_nothing_has_come_since() -> None:
    """The last frame before my app stops was forged: the answer to the last question puts the count right."""
    tracker = joined(b"a", link=1)
    assert received(tracker, 1) is None
    assert received(tracker, 1000) == Gap(b"a", 7, 2, 999)
    tracker.join(b"N", 1)
    assert tracker.stated(7, b"N", stated((b"a", 1)), link=1)[0] == Corrected(7, b"a", 998, 0)
    assert tracker.lost == 0


def test_the_second_copy_of_an_answer_sets_nothing_back() -> None:
    """Two paths, and the slower one brings messages and the answer once more: nothing is delivered a second time."""
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


def test_one_refused_message_is_one_question() -> None:
    """A duplicate of an idle publisher: it is asked, the answer says that all is well, and it is not asked again."""
    tracker = joined(b"a")
    received(tracker, 1)
    received(tracker, 1)
    assert tracker.check(1, emptied=True) == [Overdue(7)]
    tracker.join(b"N", 1, again=True)
    tracker.stated(7, b"N", stated((b"a", 1)))
    assert watched(tracker, 1, 13) == []


def test_a_forged_goodbye_of_a_quiet_publisher_heals_by_its_answer_to_a_ping() -> None:
    """No message shows that it lives: the answer to the next ping does, and it is asked."""
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
    """It ended before what was dropped on the way could be sent again: what it published there is not known."""
    tracker = Tracker()
    tracker.subscribe([b"a", b"b"])
    tracker.join(b"M", 0)
    tracker.stated(7, b"M", stated((b"a", 5)))
    found = tracker.stated(7, b"M", stated((b"a", 5)), goodbye=True)
    assert found == [UnknownLoss(7, (b"a", b"b"), ENDED), Ended(7, "", False)]


def test_a_publisher_that_streams_without_an_account_is_not_silent() -> None:
    """Its answers are lost, its messages are not: it lives, and is asked on."""
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
    """It was frozen for three minutes, and its connection lived: its messages come, so it is asked for its numbers."""
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
    """An old number is refused, and a forged answer says zero: nothing is lost, and nothing is delivered twice."""
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
    assert tracker.lost == 2


def test_an_answer_that_names_what_i_do_not_subscribe_to_is_not_kept() -> None:
    """Invented prefixes without end fill no memory."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    for part in range(50):
        invented = tuple((b"%d.%d" % (part, number), 1) for number in range(100))
        tracker.stated(7, b"M", Statement(part, 65_535, "", False, invented))
    assert not tracker._publishers[7].named


def test_a_publisher_that_is_heard_after_its_connection_has_ended_has_not_gone() -> None:
    """It has a second path, by which it has not answered yet: its last answer is waited for."""
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
    """Its messages go on, so it is asked again, and its account with them."""
    tracker = joined(b"a")
    watched(tracker, 0, TICK)
    assert tracker.stated(7, b"M", stated((b"a", 0)), goodbye=True) == [Ended(7, "")]
    watched(tracker, 1, TICK)
    assert received(tracker, 1) is None
    assert watched(tracker, 2, 4) == [Overdue(7)]
    assert received(tracker, 3) == Gap(b"a", 7, 2, 2)


def test_an_answer_that_says_less_sets_nothing_back_where_nothing_was_refused() -> None:
    """By a slower path an old answer arrives: the account knows better, and no message is delivered twice."""
    tracker = joined(b"a")
    received(tracker, 1)
    received(tracker, 2)
    tracker.join(b"N", 1, again=True)
    assert tracker.stated(7, b"N", stated((b"a", 1))) == [Joined(7, "", False)]
    assert received(tracker, 2) is DUPLICATE


def test_a_second_path_that_is_late_is_no_lie() -> None:
    """All of the slower path is refused while the faster one goes on: no question, and nothing is set back."""
    tracker = joined(b"a")
    for number in range(1, 9):
        assert received(tracker, number) is None
        if number < 8:
            assert received(tracker, max(number - 2, 1)) is DUPLICATE
    assert tracker.check(1, emptied=True) == []


def test_a_forged_number_of_kept_messages_claims_no_loss() -> None:
    """There are no more kept messages than a publisher keeps."""
    tracker = joined(b"a")
    assert tracker.kept(7, 2**63) is None
    assert tracker.lost == 0


# -- what a publisher does not know -----------------------------------------------------------------------


def test_a_publisher_that_does_not_name_a_subscription_has_not_joined() -> None:
    """A proxy dropped it on the way: it is missing, the others are counted, and the next answer completes the join."""
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
    """What can't be mended makes no endless work, and is never called joined."""
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
    """A topic with a NUL, or one that is too long, can't be named by a number."""
    tracker = Tracker()
    tracker.subscribe([b"a", b"b\0", b"c" * 256])
    tracker.join(b"M", 0)
    assert tracker.stated(7, b"M", stated((b"a", 5))) == [Joined(7, "", False)]


# -- bounds -----------------------------------------------------------------------------------------------


def test_kept_messages_that_are_given_anew_were_not_lost() -> None:
    """What a publisher sent to an old marker was dropped, and only the end came; then it gives all anew."""
    tracker = joined(b"a")
    assert tracker.kept(7, 151, end_of=b"M") == LostKept(7, 150)
    assert tracker.lost == 150
    assert tracker.kept(7, 1) == LostKept(7, -150)
    for number in range(2, 151):
        assert tracker.kept(7, number) is None
    assert tracker.kept(7, 151, end_of=b"M") is None
    assert tracker.lost == 0


def test_a_publisher_whose_connection_has_ended_is_not_taken_for_ready() -> None:
    """ready() may be called right after it died, and another one starts in its place."""
    tracker = joined(b"a", link=3)
    tracker.links.update(frozenset({3}), (), 0)
    tracker.kept(7, 1, end_of=b"M")
    assert (tracker.complete.keys(), tracker.given) == ({7}, 1)
    tracker.links.update(frozenset(), (), 1)
    assert (tracker.complete, tracker.given, tracker.giving) == ({}, 0, {})


def test_invented_publishers_fill_no_memory_and_drive_out_no_real_one() -> None:
    """A flood of epochs is bounded; those that answered my marker stay."""
    tracker = joined(b"a")
    for epoch in range(1000, 1000 + 3 * PUBLISHERS_MAX):
        received(tracker, 5, epoch=epoch)
    assert len(tracker._publishers) == PUBLISHERS_MAX
    assert tracker.complete.keys() == {7}
    assert received(tracker, 2) == Gap(b"a", 7, 1, 1)


def test_invented_publishers_are_found_cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame of a flood may name another publisher: whom to give up is not looked for among all each time."""
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
    """Whom to give up next is noted, and holds only for those of whom nothing was heard since."""
    tracker = Tracker()
    tracker.subscribe([b"a"])
    tracker.join(b"M", 0)
    for epoch in range(PUBLISHERS_MAX + 1):  # the first of them has to go, and the next are noted
        received(tracker, 5, epoch=epoch)
    tracker.stated(1, b"M", stated((b"a", 5)))
    received(tracker, 5, epoch=PUBLISHERS_MAX + 1)
    assert tracker.complete.keys() == {1}


def test_accounts_of_many_subscriptions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishers that are invented and name all of my subscriptions fill no memory; the one that is used stays."""
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
    """Even where the account of a real publisher is given up, that is said, and its old streams mislead nobody."""
    tracker = joined(b"a")
    old = tracker.stream(7, b"a")
    assert old is not None
    for epoch in range(1000, 1000 + PUBLISHERS_MAX):
        tracker.stated(epoch, b"M", stated())
    assert UnknownLoss(7, (b"a",), GIVEN_UP) in tracker.check(1, emptied=True)
    assert tracker.admit(old, 9) is None
    assert tracker.admit(old, 3) is None


def test_a_subscription_that_is_withdrawn_is_forgotten() -> None:
    """What still arrives of it is not judged, and a later one to the same prefix begins with its own join."""
    tracker = joined(b"a")
    old = tracker.stream(7, b"a")
    assert old is not None
    tracker.subscribe([b"b"])
    assert tracker.admit(old, 9) is None
    assert tracker.stream(7, b"a") is None
    tracker.subscribe([b"a"])
    assert received(tracker, 50) is None
    assert tracker.lost == 0
