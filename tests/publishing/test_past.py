"""Requests for the past: what a publisher answers, compared with all frames that its histories contain."""

from __future__ import annotations

import random

import attrs
import pytest

from tests.publishing.test_history import Publisher, answered_in_slices
from tests.support import sized
from zroute.clock import TICK
from zroute.messages.coalesced import parse_coalesced
from zroute.messages.recovery import Past, PastAnswer, Since, SinceMode, many_of, numbers_of, pack_past_request
from zroute.messages.wire import HEADER_SIZE, NUL
from zroute.options import CARRIED
from zroute.publishing import history as histories
from zroute.publishing import recovery
from zroute.publishing.history import LARGE, LARGE_BLOCK, History, sent_at
from zroute.publishing.past import INDEX_BITS, PART_FOUND, PastSearch
from zroute.publishing.recovery import KNOWN_SECONDS, WAITING, WINDOW

ALL = Since(SinceMode.ALL)
FROM_1970 = Since(SinceMode.TIME, 0)


@attrs.define
class Answered:
    """The content of an answer about the past."""

    messages: list[tuple[int, bytes]]
    left: int
    more: bool
    refused: bool

    @property
    def bodies(self) -> list[int]:
        """Return the bodies of all messages, which must be numbers."""
        bodies = [
            parse_coalesced(2, body).bodies if many_of(frame) > 1 else [body]
            for _, frame in self.messages
            for body in [frame.partition(NUL)[2][HEADER_SIZE + _further(frame) :]]
        ]
        return [int(each) for several in bodies for each in several]


def _further(frame: bytes) -> int:
    """Return the size of the further counters in the header of a frame."""
    return 9 * (frame[frame.index(0) + 1 + 6] >> 4)


def asked(
    publisher: Publisher, prefix: bytes, upto: int, since: Since = ALL, position: int = 0, who: int = 1
) -> Answered:
    """Ask for the past, and return what the answer contains."""
    publisher.requests += 1
    publisher.answers.request(pack_past_request(who, publisher.requests, 7, prefix, Past(upto, position, since)))
    answers = publisher.take(who)
    assert {answer.number for answer in answers} == {publisher.requests & 0xFFFF}
    assert answers[0].past is not None
    assert answers[0].past.position == position
    messages = [each for answer in answers for each in answer.messages]
    return Answered(messages, answers[0].past.left, answers[0].more, answers[0].refused)


def publish(publisher: Publisher, *numbers: int, topic: bytes = b"a.1", ring: int = 0) -> None:
    """Publish numbers in frames of their own."""
    for number in numbers:
        publisher.publish(topic, b"%d" % number, ring=ring)


def test_the_past_contains_what_was_sent_before_the_join() -> None:
    """Messages from before the counter, and up to the number in the statement, in order; later ones are live."""
    publisher = Publisher(History(messages=100))
    publish(publisher, 1, 2)
    publish(publisher, 50, topic=b"b.1")
    publisher.subscribe(b"a.")
    publish(publisher, 3, 4, 5)
    assert asked(publisher, b"a.", 2).bodies == [1, 2, 3, 4]
    assert asked(publisher, b"a.", 0).bodies == [1, 2]
    found = asked(publisher, b"a.", 3)
    assert (found.bodies, found.left, found.more) == ([1, 2, 3, 4, 5], 5, False)
    # From a position on; the position after the last one is the end.
    assert asked(publisher, b"a.", 3, position=found.messages[2][0]).bodies == [3, 4, 5]
    end = asked(publisher, b"a.", 3, position=found.messages[-1][0] + 1)
    assert (end.bodies, end.left, end.more) == ([], 0, False)


def test_the_past_begins_where_the_mode_says() -> None:
    """The last messages, an age, or a time; the mode has no effect at a later position."""
    publisher = Publisher(History(messages=100))
    publisher.subscribe(b"a.")
    for number in range(1, 11):
        publish(publisher, number)
        publisher.clock.advance(1)
    publisher.publish(b"a.1", b"11", b"12", b"13")
    for mode, value, first in (
        (SinceMode.LAST, 3, 11),
        (SinceMode.LAST, 4, 10),
        (SinceMode.LAST, 1, 11),  # a coalesced frame is sent as a whole
        (SinceMode.LAST, 2**64 - 1, 1),
        (SinceMode.AGE, 3_500_000_000, 8),
        (SinceMode.AGE, 2**64 - 1, 1),
        (SinceMode.TIME, 4_000_000_000, 5),
        (SinceMode.TIME, 4_000_000_001, 6),
        (SinceMode.TIME, 2**64 - 1, 14),
    ):
        found = asked(publisher, b"a.", 13, Since(mode, value))
        assert (found.bodies, found.left) == (list(range(first, 14)), 14 - first), (mode, value)
    position = asked(publisher, b"a.", 13).messages[1][0]
    assert asked(publisher, b"a.", 13, Since(SinceMode.LAST, 1), position).bodies == list(range(2, 14))


def test_a_window_says_that_there_is_more() -> None:
    """A long past arrives in windows, each with the number of messages that are left."""
    publisher = Publisher(History(messages=10_000))
    publisher.subscribe(b"a.")
    for _ in range(3):
        for number in range(1000):
            publisher.publish(b"a.1", b"%0300d" % number)
        publisher.tick()
    position, left, windows, found = 0, 3000, 0, list[int]()
    while True:
        answer = asked(publisher, b"a.", 3000, position=position)
        assert answer.left == left
        found += answer.bodies
        left -= len(answer.messages)
        windows += 1
        position = answer.messages[-1][0] + 1
        assert sum(len(frame) for _, frame in answer.messages) < WINDOW + 1000
        if not answer.more:
            break
    assert (found, left) == ([*range(1000)] * 3, 0)
    assert windows > 1


@pytest.mark.parametrize("seed", range(sized(100, 60)))
def test_an_answer_is_what_the_histories_contain(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For random messages, bounds, joins and requests, an answer has all kept frames, or the first of them."""
    chance = random.Random(seed)
    monkeypatch.setattr(recovery, "WINDOW", chance.choice((1, 500, 1 << 30)))
    monkeypatch.setattr(histories, "LARGE_BLOCK", chance.choice((1, LARGE_BLOCK)))
    publisher = Publisher(*(History(messages=chance.choice((5, 60, 10_000))) for _ in range(chance.choice((1, 2)))))
    counted, position, upto = 0, 0, 0
    for _ in range(300):
        topic = chance.choice((b"a.1", b"a.2", b"b.1"))
        bodies = [b"1"] * chance.choice((1, 1, 4)) if chance.random() < 0.95 else [b"1" * (LARGE + 1)]
        publisher.publish(topic, *bodies, ring=chance.randrange(len(publisher.rings)))
        if chance.random() < 0.05:
            publisher.tick()
        if not counted and chance.random() < 0.05:
            publisher.subscribe(b"a.")
            counted = 1
        if not counted or chance.random() < 0.7:
            continue
        if not position or chance.random() < 0.3:
            position, upto = 0, (publisher.counters.carried(b"a.") or 0) - chance.choice((0, 0, 7))
        mode = chance.choice(list(SinceMode))
        value = chance.choice((0, 1, 30, int(TICK * 4e9)))
        found = asked(publisher, b"a.", max(upto, 0), Since(mode, value), position, who=chance.randrange(2))
        kept = _kept(publisher, max(upto, 0))
        if position:
            kept = [each for each in kept if each[0] >= position]
        elif mode is SinceMode.LAST:
            first, total = len(kept), 0
            while first and total < value:
                first -= 1
                total += many_of(kept[first][1])
            kept = kept[first:]
        elif mode is not SinceMode.ALL:
            since = value if mode is SinceMode.TIME else publisher.now_ns() - value
            first = next((at for at, each in enumerate(kept) if sent_at(each[1]) >= since), len(kept))
            kept = kept[first:]
        assert found.messages == kept[: len(found.messages)], seed
        assert found.left == sum(many_of(frame) for _, frame in kept), seed
        assert found.more == (len(found.messages) < len(kept)), seed
        assert found.messages or not kept
        position = found.messages[-1][0] + 1 if found.more else 0


def _kept(publisher: Publisher, upto: int) -> list[tuple[int, bytes]]:
    """Return all frames of "a." up to a number in the blocks of all rings, with their positions."""
    blocks = sorted((block for ring in publisher.rings for block in ring.blocks), key=lambda block: block.order)
    return [
        (block.order << INDEX_BITS | index, frame)
        for block in blocks
        for index, frame in enumerate(block.frames, block.dropped)
        if frame.startswith(b"a.") and numbers_of(frame, 2)[0] <= upto
    ]


# -- long searches -------------------------------------------------------------------------------------------


def searching(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """Return a publisher with 300 blocks of one frame, of which it scans about four in each 10 ms."""
    monkeypatch.setattr(recovery, "BLOCK", 250)
    publisher = Publisher(History(messages=100_000))
    publisher.subscribe(b"a.", b"a.1", b"b.")
    for number in range(300):
        publish(publisher, number)
        publisher.rings[0].seal()
    return publisher


def request(publisher: Publisher, prefix: bytes, position: int = 0, who: int = 1) -> None:
    """Ask for the past, without waiting for the answer."""
    publisher.answers.request(pack_past_request(who, 1, 7, prefix, Past(300, position, ALL)))


@pytest.mark.parametrize("position", [0, 1])
def test_new_blocks_do_not_delay_a_replay(monkeypatch: pytest.MonkeyPatch, position: int) -> None:
    """A new block in each 10 ms makes the publisher scan only this block again, and none for later requests."""
    publisher = searching(monkeypatch)
    request(publisher, b"a.", position)
    spent: list[int] = []
    spend = publisher.answers._frames.spend
    publisher.answers._frames.spend = lambda units: (spent.append(units), spend(units))[1]  # type: ignore[method-assign]
    periods = 0
    while not publisher.sent and periods < 1_000:
        publish(publisher, 300 + periods)
        publisher.rings[0].seal()
        publisher.clock.advance(0.01)
        periods += 1
    (answer,) = publisher.take()
    assert len(answer.messages) == 300
    blocks = 300 + (periods if position == 0 else 0)
    looks = periods * 50 + 300 * 10
    assert 60 < periods < 300
    assert sum(spent) <= blocks * 54 + looks + 100


def test_a_request_that_continues_does_not_wait_for_other_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a search for another subscription is under way, a subscriber gets the rest of what was found."""
    publisher = searching(monkeypatch)
    request(publisher, b"a.")
    (first,) = publisher.take()
    for who, prefix in enumerate((b"a.1", b"b.", b"a.1"), 2):
        request(publisher, prefix, who=who)
    assert not publisher.sent
    request(publisher, b"a.", first.messages[9][0] + 1)
    for _ in range(30):
        publisher.clock.advance(0.01)
    (rest,) = publisher.take()
    assert len(rest.messages) == 290
    assert len(publisher.answers._waiting) == 3


def test_requests_that_continue_have_a_limit_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such requests about blocks that were not scanned cost a bounded number of looks in each 10 ms."""
    publisher = searching(monkeypatch)
    request(publisher, b"a.")
    looks: list[int] = []
    prepare = PastSearch.prepare
    monkeypatch.setattr(PastSearch, "prepare", lambda *args: (looks.append(1), prepare(*args))[1])
    for who in range(2, 500):
        request(publisher, b"a.", 1, who=who)
    assert 1 < len(looks) < 10
    for _ in range(50):
        looks.clear()
        publisher.clock.advance(0.01)
        assert len(looks) <= 5
    assert len(publisher.answers._waiting) == 499


def test_a_request_that_waits_gets_empty_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """About every second, an empty answer promises more; the request stays, and is answered in the end."""
    publisher = searching(monkeypatch)
    for who in (1, 2):
        request(publisher, b"a.", 1, who=who)
    publisher.ask(b"a.", (1, 1), who=3)
    publisher.answers._frames.spend(250 * 300)
    for _ in range(8):
        publisher.tick()
    publisher.sent.sort()
    notices = [publisher.take(who)[0] for who in (1, 1, 2, 2, 3, 3)]
    assert publisher.sent == []
    for notice in notices:
        assert (notice.messages, notice.last, notice.more, notice.refused) == ((), True, True, False)
        assert notice.gone == ()
    assert [notice.past for notice in notices] == [PastAnswer(1, 0)] * 4 + [None] * 2
    publisher.clock.pump([0.01] * 1_000)
    assert [len(publisher.take(who)[0].messages) for who in (1, 2, 3)] == [300, 300, 1]


# -- bad peers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [1, 1 << INDEX_BITS, (1 << INDEX_BITS) + 50, 2**63, 2**64 - 1])
@pytest.mark.parametrize("upto", [0, 3, 2**64 - 1])
def test_a_position_that_was_never_sent_is_answered(position: int, upto: int) -> None:
    """Any position and number of the statement give an answer, and raise nothing."""
    publisher = Publisher(History(messages=100), History(messages=100))
    publisher.subscribe(b"a.")
    publish(publisher, 1, 2, 3)
    publish(publisher, 4, 5, ring=1)
    for since in (ALL, FROM_1970, Since(SinceMode.LAST, 0), Since(SinceMode.AGE, 2**64 - 1)):
        found = asked(publisher, b"a.", upto, since, position)
        assert set(found.bodies) <= {1, 2, 3, 4, 5}
        assert found.left >= len(found.messages)


def test_a_subscription_without_numbers_is_refused() -> None:
    """Unknown and uncounted subscriptions, and those beyond the counters of a header, get a refusal."""
    publisher = Publisher(History(messages=100))
    publish(publisher, 1)
    assert asked(publisher, b"a.", 0).refused
    prefixes = [b"a" * length for length in range(1, CARRIED + 2)]
    publisher.subscribe(*prefixes)
    publisher.publish(prefixes[-1], b"1")
    assert asked(publisher, prefixes[-1], 1).refused
    assert not asked(publisher, prefixes[0], 1).refused


def test_each_subscription_of_a_subscriber_has_one_waiting_request() -> None:
    """A newer request takes the place of an earlier one; requests of invented subscribers are limited."""
    publisher = Publisher(History(messages=9))
    publisher.subscribe(b"a.", b"b.")
    publisher.answers._bytes.spend(10_000_000)
    past = Past(0, 0, ALL)
    for number in range(3):
        for prefix in (b"a.", b"b."):
            publisher.answers.request(pack_past_request(1, number, 7, prefix, past))
    publisher.ask(b"a.", (1, 1))
    assert len(publisher.answers._waiting) == 3
    for who in range(WAITING + 50):
        publisher.answers.request(pack_past_request(who, 1, 7, b"a.", past))
    assert len(publisher.answers._waiting) == WAITING


def test_scans_for_the_past_take_a_bounded_part_of_each_period() -> None:
    """Requests about 50 subscriptions scan a few blocks in each 10 ms, and all are answered."""
    publisher = Publisher(History(messages=100_000))
    prefixes = [b"a.%03d" % each for each in range(50)]
    publisher.subscribe(*prefixes)
    for prefix in prefixes:
        publisher.publish(prefix)
    for _ in range(50_000):
        publisher.publish(b"b")
    for who, prefix in enumerate(prefixes):
        publisher.answers.request(pack_past_request(who, 1, 7, prefix, Past(1, 0, ALL)))
    answered_in_slices(publisher, len(prefixes))


def test_requests_make_few_blocks_and_searches_are_forgotten() -> None:
    """Requests at any rate make 20 blocks a second; the result of a search is dropped after two seconds."""
    publisher = Publisher(History(messages=100_000))
    publisher.subscribe(b"a.")
    for number in range(300):
        publish(publisher, number)
        publisher.answers.request(pack_past_request(1, number, 7, b"a.", Past(number, 0, ALL)))
        publisher.clock.advance(0.01)
    assert len(list(publisher.rings[0].blocks)) <= 300 * 0.01 / 0.05 + 2
    assert publisher.answers._pasts
    for _ in range(int(KNOWN_SECONDS / TICK) + 1):
        publisher.tick()
    assert publisher.answers._pasts == publisher.answers._past_used == {}


def test_the_results_of_searches_for_the_past_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of many subscriptions hold a bounded number of frames."""
    monkeypatch.setattr(recovery, "FOUND", 100)
    publisher = Publisher(History(messages=1000))
    prefixes = [b"a" * length for length in range(1, 9)]
    publisher.subscribe(*prefixes)
    for _ in range(40):
        publisher.publish(prefixes[-1])
    for prefix in prefixes:
        assert len(asked(publisher, prefix, 40).messages) == 40
        assert sum(known.found for known in publisher.answers._pasts.values()) <= 100


def test_the_limit_includes_the_memory_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame in a block of its own counts as several, and a block without frames of a subscription as none."""
    publisher = searching(monkeypatch)
    for prefix in (b"a.", b"b."):
        request(publisher, prefix)
        publisher.take()
    assert PART_FOUND > 5
    assert [search.found for search in publisher.answers._pasts.values()] == [300 * (1 + PART_FOUND), 0]
    publisher.rings[0]._drop(1)
    asked(publisher, b"a.", 300)
    assert publisher.answers._pasts[b"a."].found == 299 * (1 + PART_FOUND)
    publish(publisher, *range(9))
    asked(publisher, b"a.", 310)
    for many in (*[1] * 299, 4):
        publisher.rings[0]._drop(many)
    asked(publisher, b"a.", 310)
    assert publisher.answers._pasts[b"a."].found == 5 + PART_FOUND
