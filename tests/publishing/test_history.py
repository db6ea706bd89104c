"""`Ring` and `HistoryAnswers`: what a publisher keeps, and what it answers, compared with a list of all messages."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from tests.support import sized
from zroute.clock import TICK
from zroute.errors import SignatureError
from zroute.messages.coalesced import coalesced_framer, parse_coalesced
from zroute.messages.control import COUNT_BITS, WITHDRAWN_SECONDS, pack_marker, parse_marker
from zroute.messages.recovery import (
    RecoveryAnswer,
    numbers_of,
    pack_box,
    pack_recovery_request,
    parse_recovery_answer,
)
from zroute.messages.wire import HEADER_SIZE, NUL, Kind, counted_framer, parse_header, split
from zroute.options import CARRIED
from zroute.publishing import history as histories
from zroute.publishing import recovery
from zroute.publishing.counters import Counters
from zroute.publishing.history import (
    BLOCK,
    BLOCK_COST,
    HISTORY_BYTES,
    LARGE,
    LARGE_BLOCK,
    History,
    Ring,
    Search,
    check_history,
)
from zroute.publishing.recovery import KNOWN_SECONDS, WAITING, WINDOW, HistoryAnswers

EPOCH = 7


class Publisher:
    """A publisher without sockets: counters, histories and the answers that it sends."""

    def __init__(self, *bounds: History) -> None:
        self.clock = Clock()
        self.ahead = 0.0  # of the machine's clock, in seconds
        self.counters = Counters()
        self.sent: list[tuple[bytes, list[bytes]]] = []
        self.answers = HistoryAnswers(
            self.clock, self.now_ns, self.counters, EPOCH, lambda box, frames: self.sent.append((box, frames))
        )
        self.rings = [self.answers.ring(each) for each in bounds]
        self._one = counted_framer(epoch=EPOCH, count=self.counters.count, clock_ns=self.now_ns)
        self._several = coalesced_framer(epoch=EPOCH, count=self.counters.count)
        self.requests = 0

    def now_ns(self) -> int:
        return int((self.clock.seconds() + self.ahead) * 1e9)

    def subscribe(self, *prefixes: bytes) -> None:
        for prefix in prefixes:
            self.counters.subscribe(prefix, self.clock.seconds())
            assert dict(self.counters.numbers(parse_marker(pack_marker(1, [prefix]))))

    def publish(
        self, topic: bytes, *bodies: bytes, ring: int | None = 0, headers: dict[str, Any] | None = None
    ) -> bytes:
        """Publish ``bodies`` in one frame, and keep it in a ring."""
        if len(bodies) > 1:
            frame = self._several(topic, 2, bodies, self.now_ns())
        else:
            made = self._one(topic, 2, bodies[0] if bodies else b"1", headers)
            assert isinstance(made, bytes)
            frame = made
        if ring is not None:
            self.rings[ring].keep(frame)
        return frame

    def tick(self) -> None:
        self.clock.advance(TICK)
        self.answers.tick(self.clock.seconds())

    def ask(self, prefix: bytes, *ranges: tuple[int, int], who: int = 1, epoch: int = EPOCH) -> None:
        self.requests += 1
        self.answers.request(pack_recovery_request(who, self.requests, epoch, prefix, ranges)[0])

    def take(self, who: int = 1) -> list[RecoveryAnswer]:
        """Return the frames of the next answer, which must be for this subscriber."""
        for _ in range(1000):
            if self.sent:
                break
            self.clock.advance(0.01)
        box, frames = self.sent.pop(0)
        assert box == pack_box(who)
        return [parse_recovery_answer(split((frame,))[1][HEADER_SIZE:]) for frame in frames]

    def asked(self, prefix: bytes, *ranges: tuple[int, int], who: int = 1) -> Answered:
        """Ask, and return what the answer contains."""
        self.ask(prefix, *ranges, who=who)
        answers = self.take(who)
        assert {answer.number for answer in answers} == {self.requests}
        return Answered(
            [each for answer in answers for each in answer.messages],
            [each for answer in answers for each in answer.gone],
            answers[0].more,
            answers[0].refused,
        )


@attrs.define
class Answered:
    """The content of an answer."""

    messages: list[tuple[int, bytes]]
    gone: list[tuple[int, int]]
    more: bool
    refused: bool

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.messages]


# -- the options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (True, "expected History(messages=…)"),
        (50_000, "expected History(messages=…)"),
        (History(), "expected at least one bound"),
        (History(messages=0), "expected messages of at least 1"),
        (History(messages=True), "expected messages of at least 1"),
        (History(messages=1.5), "expected messages of at least 1"),  # type: ignore[arg-type]
        (History(seconds=0), "expected a number of seconds of more than 0 and at most 120"),
        (History(seconds=120.5), "expected a number of seconds of more than 0 and at most 120"),
        (History(seconds=float("nan")), "expected a number of seconds of more than 0 and at most 120"),
        (History(seconds=timedelta(seconds=30)), "expected a number of seconds of more than 0"),  # type: ignore[arg-type]
        (History(bytes=0), "expected bytes of at least 1"),
        (History(messages=5, bytes=-1), "expected bytes of at least 1"),
    ],
)
def test_a_history_out_of_bounds_is_refused_with_the_line(value: Any, fault: str) -> None:
    """An invalid history raises SignatureError that names the value, the fault and the line."""
    with pytest.raises(SignatureError) as caught:
        check_history(value, "app.py:7")
    assert fault in str(caught.value)
    assert f"history={value!r}" in str(caught.value)
    assert (caught.value.parameter, caught.value.where) == ("history", "app.py:7")


@pytest.mark.parametrize(
    "history",
    [
        History(messages=1),
        History(messages=2**70),
        History(seconds=120),
        History(seconds=0.5),
        History(bytes=1),
        History(bytes=2**70),
    ],
)
def test_each_bound_may_stand_alone(history: History) -> None:
    """One bound is enough, whatever its value."""
    assert check_history(history, "app.py:7") is history
    publisher = Publisher(history)
    publisher.subscribe(b"a")
    publisher.publish(b"a")
    assert kept(publisher) == [1]


# -- what is kept ------------------------------------------------------------------------------------------


def kept(publisher: Publisher) -> list[int]:
    """Return the numbers of all available messages."""
    (last,) = (number for number in [publisher.counters.carried(b"a")] if number is not None)
    return [] if not last else publisher.asked(b"a", (1, last)).numbers


@pytest.mark.parametrize("text", ["History()", "History(seconds=0.5)", "History(messages=5, seconds=30, bytes=100)"])
def test_the_text_of_a_history_names_only_its_bounds(text: str) -> None:
    """Errors show what the user wrote."""
    assert repr(eval(text, {"History": History})) == text


def test_a_history_keeps_the_latest_messages() -> None:
    """With ``messages=``, the latest N are available, and the others are not."""
    publisher = Publisher(History(messages=5))
    publisher.subscribe(b"a")
    for _ in range(3):
        for _ in range(4):
            publisher.publish(b"a")
        publisher.tick()
    assert kept(publisher) == [8, 9, 10, 11, 12]
    assert publisher.asked(b"a", (1, 12)).gone == [(1, 7)]


def test_a_burst_in_one_tick_does_not_exceed_the_number_of_messages_twice() -> None:
    """Messages that no tick has seen yet are bounded too."""
    publisher = Publisher(History(messages=5))
    for _ in range(1000):
        publisher.publish(b"a")
    publisher.rings[0].seal()
    assert publisher.rings[0].count == 5


def test_a_history_keeps_messages_for_some_seconds() -> None:
    """With ``seconds=``, messages are kept for this time, to within a tick."""
    publisher = Publisher(History(seconds=2))
    publisher.subscribe(b"a")
    for _ in range(20):
        publisher.publish(b"a")
        publisher.tick()
    assert kept(publisher) == list(range(13, 21))


@pytest.mark.parametrize("step", [3600, -3600])
def test_a_history_does_not_follow_a_clock_that_is_set(step: int) -> None:
    """If the machine's clock jumps, messages are kept neither shorter nor longer."""
    publisher = Publisher(History(seconds=2))
    publisher.subscribe(b"a")
    for number in range(20):
        publisher.ahead = step * (number >= 16)
        publisher.publish(b"a")
        publisher.tick()
    assert len(kept(publisher)) == 8
    for _ in range(9):
        publisher.tick()
    assert publisher.rings[0].count == 0


def test_a_history_keeps_a_number_of_bytes() -> None:
    """With ``bytes=``, the size of all frames in memory has this limit after each tick."""
    publisher = Publisher(History(bytes=10_000))
    publisher.subscribe(b"a")
    chance = random.Random(1)
    for _ in range(50):
        for _ in range(chance.randrange(9)):
            publisher.publish(b"a", b"x" * chance.randrange(2_000))
        publisher.tick()
        assert publisher.rings[0].size <= 10_000
    assert len(kept(publisher)) >= 4
    ring = publisher.rings[0]
    numbers = range(ring.first, ring.next)
    assert ring.size == sum(len(frame) + histories._OBJECT for number in numbers for frame in ring.block(number))
    assert ring.count == sum(len(ring.block(number)) for number in numbers)


def test_large_messages_count_at_once() -> None:
    """A frame of more than 4 KB is never kept beyond the limit, not even until the next tick."""
    publisher = Publisher(History(bytes=100_000))
    publisher.subscribe(b"a")
    for _ in range(200):
        publisher.publish(b"a", b"x" * LARGE)
        assert publisher.rings[0].size <= 100_000
    assert kept(publisher)[-1] == 200


def test_large_messages_share_blocks() -> None:
    """Large frames are collected up to 256 KB, because a block for each would make searches slow."""
    publisher = Publisher(History(messages=10_000))
    for _ in range(1_000):
        publisher.publish(b"a", b"x" * 4_500)
    ring = publisher.rings[0]
    assert 4_500_000 - ring.size <= LARGE_BLOCK
    assert len(ring.blocks) <= 4_600_000 / LARGE_BLOCK
    publisher.publish(b"a", b"x" * LARGE_BLOCK)
    assert ring.count == 1_001


def test_the_default_bounds_the_bytes_of_every_history() -> None:
    """Without ``bytes=``, a history has at most 64 MiB."""
    ring = Ring(History(messages=10_000_000))
    body = b"x" * (HISTORY_BYTES // 4)
    publisher = Publisher()
    publisher.rings.append(ring)
    for _ in range(5):
        publisher.publish(b"a", body)
    assert ring.count == 3


# -- answers -----------------------------------------------------------------------------------------------


def test_an_answer_contains_the_frames_as_they_were_sent() -> None:
    """Headers, times, counters and bodies of recovered messages are unchanged."""
    publisher = Publisher(History(messages=99))
    publisher.subscribe(b"", b"a", b"a.b")
    frames = [publisher.publish(b"a.b", b"%d" % each, headers={"n": each}) for each in range(9)]
    assert publisher.asked(b"a", (2, 4), (8, 9)).messages == [(n, frames[n - 1]) for n in (2, 3, 4, 8, 9)]
    assert publisher.asked(b"", (9, 9)).messages == [(9, frames[8])]
    assert publisher.asked(b"a.b", (1, 1)).messages == [(1, frames[0])]


def test_messages_without_a_history_are_not_available() -> None:
    """A message of another publisher of the app counts in the subscription, but is not kept."""
    publisher = Publisher(History(messages=99), History(messages=99))
    publisher.subscribe(b"a")
    for ring in (0, None, 1, None, None, 0):
        publisher.publish(b"a", ring=ring)
    answered = publisher.asked(b"a", (1, 6))
    assert (answered.numbers, answered.gone) == ([1, 3, 6], [(2, 2), (4, 5)])


def test_a_coalesced_frame_is_given_once_for_all_its_messages() -> None:
    """A frame that contains the end of one range and the beginning of the next is in the answer once."""
    publisher = Publisher(History(messages=99))
    publisher.subscribe(b"a")
    publisher.publish(b"a", b"1")
    frame = publisher.publish(b"a", *[b"%d" % each for each in range(2, 8)])
    last = publisher.publish(b"a", b"8")
    answered = publisher.asked(b"a", (3, 4), (6, 6), (7, 8))
    assert (answered.messages, answered.gone) == ([(2, frame), (8, last)], [])
    assert publisher.asked(b"a", (7, 7)).messages == [(2, frame)]


def test_numbers_that_were_never_sent_are_not_available() -> None:
    """A request for 2**63 messages is answered at once, and costs no more than one for those that exist."""
    publisher = Publisher(History(messages=99))
    publisher.subscribe(b"a")
    publisher.publish(b"a")
    answered = publisher.asked(b"a", (1, 1), (2, 2**32 - 1), (2**63, 2**63 + 5))
    assert (answered.numbers, answered.gone) == ([1], [(2, 2**32 - 1), (2**63, 2**63 + 5)])
    assert publisher.asked(b"a", (5, 9)).gone == [(5, 9)]


def test_a_subscription_that_is_not_counted_is_refused() -> None:
    """Only live subscriptions that a marker has named can be asked about."""
    publisher = Publisher(History(messages=99))
    publisher.subscribe(b"a")
    publisher.counters.subscribe(b"b", 0.0)
    publisher.publish(b"a")
    assert [publisher.asked(prefix, (1, 1)).refused for prefix in (b"a", b"b", b"")] == [False, True, True]
    publisher.counters.withdraw(b"a", 0.0)
    assert publisher.asked(b"a", (1, 1)).refused


def test_a_subscription_whose_numbers_were_not_carried_is_refused() -> None:
    """Messages carry 16 numbers, so the messages of a 17th subscription cannot be found."""
    publisher = Publisher(History(messages=99))
    prefixes = [b"a" * length for length in range(CARRIED + 1)]
    publisher.subscribe(*prefixes)
    publisher.publish(prefixes[-1])
    assert publisher.asked(prefixes[-1], (1, 1)).refused
    assert publisher.asked(prefixes[-2], (1, 1)).numbers == [1]


def test_messages_from_before_a_counter_are_not_found() -> None:
    """Messages without a number, and those of an earlier generation, do not hide the others."""
    publisher = Publisher(History(messages=99))
    publisher.publish(b"a")
    publisher.subscribe(b"a")
    publisher.publish(b"a")
    publisher.counters.withdraw(b"a", 0.0)
    publisher.counters.beats(WITHDRAWN_SECONDS)
    publisher.publish(b"a")
    publisher.subscribe(b"a")
    frames = [publisher.publish(b"a") for _ in range(3)]
    first = (1 << COUNT_BITS) + 1
    answered = publisher.asked(b"a", (first, first + 2))
    assert (answered.messages, answered.gone) == ([(first + at, frame) for at, frame in enumerate(frames)], [])
    assert publisher.asked(b"a", (1, 2), (first, first)).numbers in ([1, first], [first])


def test_an_answer_has_a_window_and_says_that_there_is_more() -> None:
    """An answer has about 256 KB, in frames of 60 KB; the next request gets the rest."""
    publisher = Publisher(History(messages=10_000))
    publisher.subscribe(b"a")
    for _ in range(1000):
        publisher.publish(b"a", b"x" * 1000)
    numbers: list[int] = []
    more = True
    while more:
        answered = publisher.asked(b"a", (len(numbers) + 1, 1000))
        assert sum(len(frame) + 12 for _, frame in answered.messages) < WINDOW + 1100
        numbers += answered.numbers
        more = answered.more
        assert answered.gone == []
    assert numbers == list(range(1, 1001))


def test_requests_to_other_runs_and_malformed_ones_are_ignored() -> None:
    """A request names the epoch of the publisher that it asks."""
    publisher = Publisher(History(messages=9))
    publisher.subscribe(b"a")
    publisher.publish(b"a")
    publisher.ask(b"a", (1, 1), epoch=8)
    publisher.answers.request(pack_recovery_request(1, 1, EPOCH, b"a", [(1, 1)])[0][:-1])
    publisher.clock.advance(9)
    assert publisher.sent == []


def test_a_publisher_without_history_does_not_answer() -> None:
    """Without a history, requests cost nothing."""
    publisher = Publisher()
    publisher.subscribe(b"a")
    publisher.ask(b"a", (1, 1))
    assert not publisher.answers.active
    publisher.clock.advance(9)
    assert publisher.sent == []


# -- a model -----------------------------------------------------------------------------------------------

TOPICS = [b"a", b"a.x", b"a.y", b"b.x", b"c"]
PREFIXES = [b"", b"a", b"a.", b"b.", b"b.x"]


@pytest.mark.parametrize("small", [False, True])
def test_answers_are_what_a_list_of_all_messages_gives(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In random runs, each requested number is in exactly one entry, and no kept message is called unavailable."""
    if small:
        monkeypatch.setattr(histories, "BLOCK", 3)
        monkeypatch.setattr(recovery, "BLOCK", 2)
        monkeypatch.setattr(histories, "BLOCK_COST", 1)  # else scanning takes longer than the test waits
        monkeypatch.setattr(recovery, "WINDOW", 400)
    for seed in range(sized(400, 60)):
        _play(random.Random(seed), small)


def _play(chance: random.Random, small: bool) -> None:
    bounds = [
        chance.choice([History(messages=5), History(messages=50), History(seconds=1), History(bytes=3_000)])
        for _ in range(chance.choice((1, 1, 2, 3)))
    ]
    publisher = Publisher(*bounds)
    sent: dict[bytes, dict[int, tuple[bytes, bool]]] = {prefix: {} for prefix in PREFIXES}
    live: set[bytes] = set()
    for _ in range(120):
        draw = chance.random()
        if draw < 0.1 and (new := set(PREFIXES) - live):
            prefix = chance.choice(sorted(new))
            publisher.subscribe(prefix)
            live.add(prefix)
        elif draw < 0.7:
            ring = chance.choice([None, *range(len(bounds)), *range(len(bounds))])
            topic = chance.choice(TOPICS)
            bodies = [b"%d" % each for each in range(chance.choice((1, 1, 1, 2, 5)))]
            frame = publisher.publish(topic, *bodies, ring=ring)
            for prefix in live:
                if topic.startswith(prefix):
                    first, last = numbers_of(frame, len(prefix))
                    assert last - first + 1 == len(bodies)
                    sent[prefix].update(dict.fromkeys(range(first, last + 1), (frame, ring is not None)))
        elif draw < 0.8:
            publisher.tick()
        elif live:
            _check(publisher, chance, chance.choice(sorted(live)), sent)


def _check(publisher: Publisher, chance: random.Random, prefix: bytes, sent: dict[bytes, dict[int, Any]]) -> None:
    last = max(sent[prefix], default=0) + 2
    ends = sorted(chance.sample(range(1, last + 9), min(last, 2 * chance.randrange(1, 5)) // 2 * 2))
    ranges = list(zip(ends[::2], ends[1::2], strict=True))
    if not ranges:
        return
    wanted = {number for lowest, highest in ranges for number in range(lowest, highest + 1)}
    in_rings = set[int]()
    for ring in publisher.rings:
        in_rings |= {id(frame) for at in range(ring.first, ring.next) for frame in ring.block(at)}
        in_rings |= {id(frame) for frame in ring._fresh}
    answered = publisher.asked(prefix, *ranges)
    found: dict[int, bytes] = {}
    for number, frame in answered.messages:
        header = parse_header(frame.partition(NUL)[2])
        body = frame.partition(NUL)[2][header.size :]
        many = parse_coalesced(2, body).many if header.kind is Kind.COALESCED else 1
        assert header.number(len(prefix)) == number
        for each in range(number, number + many):
            assert each not in found
            found[each] = frame
            assert sent[prefix][each] == (frame, True)
    gone = {number for lowest, highest in answered.gone for number in range(lowest, highest + 1)}
    assert gone <= wanted
    assert not gone & found.keys()
    if answered.more:
        assert found
        assert gone | found.keys() >= {number for number in wanted if number < max(found)}
    else:
        assert gone | found.keys() >= wanted
    # A message is unavailable only if the ring has dropped it: then the older ones of its ring are dropped too.
    available = {number for number, (frame, _) in sent[prefix].items() if id(frame) in in_rings}
    assert not gone & available


# -- bad peers ---------------------------------------------------------------------------------------------


def test_each_subscription_of_a_subscriber_has_one_waiting_request() -> None:
    """While the budget is used up, only the newest request for a subscription waits, and it keeps its place."""
    publisher = Publisher(History(messages=9))
    publisher.subscribe(b"a")
    publisher.publish(b"a")
    publisher.answers._bytes.spend(10_000_000)
    for _ in range(3):
        publisher.ask(b"a", (1, 1), who=1)
    publisher.ask(b"a", (1, 1), who=2)
    publisher.ask(b"a", (1, 1), who=1)
    publisher.clock.pump([0.01] * 100)
    boxes = [box for box, _ in publisher.sent]
    assert boxes == [pack_box(1), pack_box(2)]
    assert publisher.take(1)[0].number == 5


def test_requests_for_several_subscriptions_are_all_answered() -> None:
    """A subscriber that asks for many subscriptions in one turn gets an answer to each, in order."""
    publisher = Publisher(History(messages=9_000))
    prefixes = [b"a%d." % number for number in range(50)]
    publisher.subscribe(*prefixes)
    for _ in range(100):
        for prefix in prefixes:
            publisher.publish(prefix)
    publisher.tick()
    for prefix in prefixes:
        publisher.ask(prefix, (1, 100), who=1)
    publisher.clock.pump([0.01] * 200)
    answered = [
        parse_recovery_answer(frame.partition(NUL)[2][HEADER_SIZE:]) for _, sent in publisher.sent for frame in sent
    ]
    assert list(dict.fromkeys(answer.prefix for answer in answered)) == prefixes
    assert sum(len(answer.messages) for answer in answered) == 5_000


def test_the_number_of_waiting_requests_is_limited() -> None:
    """A peer that invents subscribers cannot fill memory; requests over the limit are dropped."""
    publisher = Publisher(History(messages=9))
    publisher.subscribe(b"a")
    publisher.publish(b"a")
    publisher.answers._bytes.spend(10_000_000)
    for who in range(WAITING + 50):
        publisher.ask(b"a", (1, 1), who=who)
    assert len(publisher.answers._waiting) == WAITING


def test_the_bytes_of_all_answers_have_a_budget() -> None:
    """A hundred subscribers that ask for everything get 20 MB per second, in turns."""
    publisher = Publisher(History(bytes=8_000_000))
    publisher.subscribe(b"a")
    for _ in range(1000):
        publisher.publish(b"a", b"x" * 4_000)
    publisher.tick()
    publisher.tick()  # the second tick has seen no new messages, so the budget is the minimum
    for _ in range(100):
        for who in range(100):
            publisher.ask(b"a", (1, 1000), who=who)
        publisher.clock.advance(0.01)
    size = sum(len(frame) for _, frames in publisher.sent for frame in frames)
    assert 19_000_000 < size < 21_000_000
    assert {box for box, _ in publisher.sent} >= {pack_box(who) for who in range(70)}


def test_the_budget_grows_with_what_is_published() -> None:
    """Answers may have twice the rate of new messages, so a subscriber can catch up with a fast publisher."""
    publisher = Publisher(History(bytes=90_000_000))
    publisher.subscribe(b"a")
    for _ in range(1000):
        publisher.publish(b"a", b"x" * 15_000)
    publisher.tick()
    assert publisher.answers._bytes.amount == pytest.approx(2 * 15_000_000 / TICK * 0.01, rel=0.02)
    publisher.tick()
    assert publisher.answers._bytes.amount == 200_000


def answered_in_slices(publisher: Publisher, number: int) -> None:
    """Wait for a number of answers, with a bounded number of scanned frames in each 10 ms."""
    spent: list[int] = []
    spend: Callable[[int], None] = publisher.answers._frames.spend
    publisher.answers._frames.spend = lambda units: (spent.append(units), spend(units))[1]  # type: ignore[method-assign]
    periods = 0
    while len(publisher.sent) < number and periods < 5_000:
        spent.clear()
        publisher.clock.advance(0.01)
        assert sum(spent) <= 2 * BLOCK
        periods += 1
    assert len(publisher.sent) == number


def test_scans_take_a_bounded_part_of_each_period() -> None:
    """Requests about 50 subscriptions scan at most two blocks in each 10 ms, and all are answered."""
    publisher = Publisher(History(messages=100_000))
    prefixes = [b"a.%03d" % each for each in range(50)]
    publisher.subscribe(*prefixes)
    for prefix in prefixes:
        publisher.publish(prefix)
    for _ in range(50_000):
        publisher.publish(b"b")
    for who, prefix in enumerate(prefixes):
        publisher.ask(prefix, (1, 1), who=who)
    answered_in_slices(publisher, len(prefixes))


def test_small_blocks_cost_more_than_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of 1,000 blocks of one frame looks at no more than 100 blocks in each 10 ms."""
    publisher = Publisher(History(messages=100_000))
    publisher.subscribe(b"a")
    for _ in range(1_000):
        publisher.publish(b"a")
        publisher.rings[0].seal()
    looks: list[int] = []
    matching = Search._matching
    monkeypatch.setattr(Search, "_matching", lambda search, number: (looks.append(number), matching(search, number))[1])
    publisher.ask(b"a", (1, 1))
    periods = 0
    while not publisher.sent and periods < 100:
        assert len(looks) <= 2 * BLOCK / BLOCK_COST
        looks.clear()
        publisher.clock.advance(0.01)
        periods += 1
    assert 5 < periods < 100
    assert [number for answer in publisher.take() for number, _ in answer.messages] == [1]


def test_requests_for_lost_messages_make_few_blocks() -> None:
    """Requests about the newest message, at any rate, make 20 blocks a second; each gets this message."""
    publisher = Publisher(History(messages=100_000))
    topics = [b"a%03d" % each for each in range(300)]
    publisher.subscribe(b"a", *topics)
    for who, topic in enumerate(topics):
        publisher.publish(topic)
        publisher.ask(topic, (1, 1), who=who)
        publisher.ask(b"a", (who + 1, who + 1), who=1_000 + who)
        publisher.clock.advance(0.01)
    publisher.clock.pump([0.01] * 10)
    assert len(publisher.rings[0].blocks) <= 300 * 0.01 / 0.05 + 2
    answers = [parse_recovery_answer(split(frames)[1][HEADER_SIZE:]) for _, frames in publisher.sent]
    found = {(answer.prefix, number) for answer in answers for number, _ in answer.messages}
    assert found == {(topic, 1) for topic in topics} | {(b"a", number) for number in range(1, 301)}


def test_a_search_is_used_for_all_subscribers_and_then_forgotten() -> None:
    """Twenty subscribers that lost the same messages cause one scan; its result is dropped after two seconds."""
    publisher = Publisher(History(messages=100_000))
    publisher.subscribe(b"a")
    for _ in range(BLOCK):
        publisher.publish(b"a")
    spent: list[int] = []
    spend: Callable[[int], None] = publisher.answers._frames.spend
    publisher.answers._frames.spend = lambda units: (spent.append(units), spend(units))[1]  # type: ignore[method-assign]
    for who in range(20):
        assert publisher.asked(b"a", (10, 11), who=who).numbers == [10, 11]
    assert sum(spent) == BLOCK + BLOCK_COST
    for _ in range(int(KNOWN_SECONDS / TICK) + 1):
        publisher.tick()
    assert publisher.answers._known == {}


def test_the_results_of_searches_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of many subscriptions hold a bounded number of frames."""
    monkeypatch.setattr(recovery, "FOUND", 100)
    publisher = Publisher(History(messages=1000))
    prefixes = [b"a" * length for length in range(1, 9)]
    publisher.subscribe(*prefixes)
    for _ in range(40):
        publisher.publish(prefixes[-1])
    for prefix in prefixes:
        assert publisher.asked(prefix, (1, 40)).numbers == list(range(1, 41))
        assert sum(known.found for known in publisher.answers._known.values()) <= 100
