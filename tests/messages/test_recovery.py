"""The frames of recovery: test vectors, round trips, and earlier versions, which ignore these frames."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.test_wire import named, raw_frames
from tests.pure import Wired
from tests.support import wire_vectors
from zroute import App
from zroute.errors import EnvelopeError
from zroute.messages.control import pack_beat, pack_marker, parse_marker
from zroute.messages.recovery import (
    ANSWER_BYTES,
    BOX,
    REQUEST,
    REQUEST_MAX,
    Entry,
    Past,
    PastAnswer,
    RecoveryRequest,
    Since,
    SinceMode,
    checked_past,
    entry_size,
    numbers_of,
    pack_box,
    pack_past_request,
    pack_recovery_answers,
    pack_recovery_request,
    parse_recovery_answer,
    parse_recovery_request,
)
from zroute.messages.wire import HEADER_SIZE, NUL, Kind, counted_framer, parse_header, split
from zroute.options import CARRIED, HEADERS_MAX, MAX_TOPIC, frame_limit
from zroute.publishing.counters import Counters

VECTORS = wire_vectors()
PREFIXES = st.binary(max_size=MAX_TOPIC).filter(lambda prefix: NUL not in prefix)
SUBSCRIBERS = st.integers(0, 2**48 - 1)
NUMBERS = st.integers(1, 2**64 - 1)


def of_kind(*kinds: str) -> list[Any]:
    """Return the vectors of these kinds as test parameters."""
    return named([each for each in VECTORS["recovery"] if each["kind"] in kinds])


def read(frames: tuple[bytes, ...] | list[bytes]) -> tuple[list[tuple[int, bytes]], list[tuple[int, int]]]:
    """Return the messages and the missing ranges in all frames of an answer."""
    answers = [parse_recovery_answer(split((frame,))[1][HEADER_SIZE:]) for frame in frames]
    assert [answer.last for answer in answers] == [False] * (len(answers) - 1) + [True]
    return [each for answer in answers for each in answer.messages], [each for one in answers for each in one.gone]


# -- test vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", of_kind("box", "request"))
def test_each_box_and_request_is_sent_and_read_as_it_says(vector: dict[str, Any]) -> None:
    """The facts of a vector make its topic, and a request gives the facts."""
    topic, subscriber = bytes.fromhex(vector["topic"]), int(vector["subscriber"], 16)
    if vector["kind"] == "box":
        assert (pack_box(subscriber), len(topic)) == (topic, 17)
        return
    ranges = tuple((int(first), int(last)) for first, last in vector["ranges"])
    epoch, prefix = int(vector["epoch"], 16), bytes.fromhex(vector["prefix"])
    assert pack_recovery_request(subscriber, vector["number"], epoch, prefix, ranges) == (topic, len(ranges))
    assert parse_recovery_request(topic) == RecoveryRequest(subscriber, vector["number"], epoch, prefix, ranges)


@pytest.mark.parametrize("vector", of_kind("past_request"))
def test_each_request_for_the_past_is_sent_and_read_as_it_says(vector: dict[str, Any]) -> None:
    """The facts of a vector make its topic, and a request gives the facts."""
    since = Since(SinceMode[vector["mode"].upper()], int(vector["value"]))
    past = Past(int(vector["upto"]), int(vector["position"]), since)
    topic, subscriber, number = bytes.fromhex(vector["topic"]), int(vector["subscriber"], 16), vector["number"]
    epoch, prefix = int(vector["epoch"], 16), bytes.fromhex(vector["prefix"])
    assert pack_past_request(subscriber, number, epoch, prefix, past) == topic
    assert parse_recovery_request(topic) == RecoveryRequest(subscriber, number, epoch, prefix, (), past)


@pytest.mark.parametrize("vector", of_kind("past_answer"))
def test_each_answer_about_the_past_is_sent_and_read_as_it_says(vector: dict[str, Any]) -> None:
    """The facts of a vector make its frames, and the frames give the facts."""
    frames, epoch = raw_frames(vector), int(vector["epoch"], 16)
    entries: list[Entry] = [(int(position), bytes.fromhex(frame)) for position, frame in vector["messages"]]
    past, prefix = PastAnswer(int(vector["position"]), int(vector["left"])), bytes.fromhex(vector["prefix"])
    request = RecoveryRequest(int(vector["subscriber"], 16), vector["number"], epoch, prefix, ())
    kinds = {"more": vector["more"], "refused": vector["refused"]}
    made = pack_recovery_answers(request, entries, epoch=epoch, sent_at=vector["sent_at_ns"], past=past, **kinds)
    assert made == list(frames)
    assert read(frames) == (entries, [])
    answer = parse_recovery_answer(split(frames)[1][HEADER_SIZE:])
    assert (answer.number, answer.prefix, answer.past) == (vector["number"], prefix, past)
    assert (answer.more, answer.refused) == (vector["more"], vector["refused"])


@pytest.mark.parametrize("vector", of_kind("answer"))
def test_each_answer_is_sent_and_read_as_it_says(vector: dict[str, Any]) -> None:
    """The facts of a vector make its frames, and the frames give the facts."""
    frames, epoch = raw_frames(vector), int(vector["epoch"], 16)
    messages = [(int(number), bytes.fromhex(frame)) for number, frame in vector["messages"]]
    gone = [(int(first), int(last)) for first, last in vector["gone"]]
    entries: list[Entry] = sorted([*messages, *gone], key=lambda entry: entry[0])
    prefix = bytes.fromhex(vector["prefix"])
    request = RecoveryRequest(int(vector["subscriber"], 16), vector["number"], epoch, prefix, ())
    kinds = {"more": vector["more"], "refused": vector["refused"]}
    assert pack_recovery_answers(request, entries, epoch=epoch, sent_at=vector["sent_at_ns"], **kinds) == list(frames)
    assert read(frames) == (messages, gone)
    for frame in frames:
        topic, body = split((frame,))
        header, answer = parse_header(body), parse_recovery_answer(body[HEADER_SIZE:])
        assert (topic.hex(), header.kind, header.size) == (vector["topic"], Kind.BEAT, HEADER_SIZE)
        assert (header.span, header.sequence, header.epoch) == (0, vector["number"], epoch)
        assert (answer.number, answer.prefix.hex()) == (vector["number"], vector["prefix"])
        assert (answer.more, answer.refused) == (vector["more"], vector["refused"])


@pytest.mark.parametrize("vector", named(VECTORS["malformed_recovery"]))
def test_each_malformed_frame_of_recovery_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    """Each malformed request and answer is refused with the documented reason."""
    parse = {"request": parse_recovery_request, "answer": parse_recovery_answer}[vector["kind"]]
    with pytest.raises(EnvelopeError) as caught:
        parse(bytes.fromhex(vector["body"]))
    assert caught.value.reason == vector["reason"]


@pytest.mark.parametrize("vector", of_kind("box", "request", "past_request"))
def test_a_publisher_of_an_earlier_version_takes_no_box_or_request_for_a_marker(vector: dict[str, Any]) -> None:
    """A box and a request begin like a marker, so they are not counted, but they are no valid marker."""
    with pytest.raises(EnvelopeError):
        parse_marker(bytes.fromhex(vector["topic"]))


# -- generated frames ------------------------------------------------------------------------------------


@st.composite
def ascending(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Ranges in ascending order."""
    numbers = sorted(draw(st.lists(st.integers(1, 2**64 - 1), max_size=90, unique=True)))
    return list(zip(numbers[::2], numbers[1::2], strict=False))


@given(SUBSCRIBERS, st.integers(0, 2**20), NUMBERS, PREFIXES, ascending())
def test_a_request_contains_as_many_ranges_as_fit(
    subscriber: int, number: int, epoch: int, prefix: bytes, ranges: list[tuple[int, int]]
) -> None:
    """A request has at most 440 bytes, and names the first ranges, of which one may be cut."""
    topic, listed = pack_recovery_request(subscriber, number, epoch, prefix, ranges)
    assert len(topic) <= REQUEST_MAX
    assert listed == len(ranges) or len(topic) > REQUEST_MAX - 12
    assert listed >= min(len(ranges), 13)
    if listed:
        found = parse_recovery_request(topic)
        assert (found.subscriber, found.number, found.epoch) == (subscriber, number % 2**16, epoch)
        cut = tuple((first, min(last, first + 2**32 - 2)) for first, last in ranges[:listed])
        assert (found.prefix, found.ranges) == (prefix, cut)


@st.composite
def entries_of(draw: st.DrawFn) -> list[Entry]:
    """Messages, some of them larger than a frame of an answer, and ranges."""
    entries: list[Entry] = []
    for first, last in draw(ascending()):
        size = draw(st.sampled_from((0, 0, 1, 100, 30_000, ANSWER_BYTES, ANSWER_BYTES + 7)))
        entries.append((first, b"x" * size if size else last))
    return entries


@given(SUBSCRIBERS, PREFIXES, entries_of(), st.booleans())
def test_an_answer_arrives_in_frames_of_a_bounded_size(
    subscriber: int, prefix: bytes, entries: list[Entry], more: bool
) -> None:
    """All entries arrive in order, in as few frames of at most 60,000 bytes as their order allows."""
    request = RecoveryRequest(subscriber, 5, 7, prefix, ())
    frames = pack_recovery_answers(request, entries, epoch=7, sent_at=5, more=more)
    messages, gone = read(frames)
    assert sorted([*messages, *gone], key=lambda entry: entry[0]) == entries
    most = max([ANSWER_BYTES, *map(entry_size, entries)])
    overhead = 18 + HEADER_SIZE + 5 + len(prefix)
    assert all(len(frame) <= overhead + most for frame in frames)
    sizes = [len(frame) - overhead for frame in frames]
    assert all(one + other > ANSWER_BYTES for one, other in pairwise(sizes))
    assert {parse_recovery_answer(split((frame,))[1][HEADER_SIZE:]).more for frame in frames} == {more}


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from((1, 100, 30_000, 70_000))), max_size=30), st.booleans())
def test_each_frame_about_the_past_says_where_it_continues(sent: list[tuple[int, int]], more: bool) -> None:
    """The positions and numbers of the frames continue each other, whatever their sizes are."""
    frame = counted_framer(epoch=7, count=lambda _topic: (), clock_ns=lambda: 5)
    entries: list[Entry] = []
    position = 10
    for step, size in sent:
        position += step
        made = frame(b"a.b", 1, b"x" * size, None)
        assert isinstance(made, bytes)
        entries.append((position, made))
    request = RecoveryRequest(1, 5, 7, b"a.", ())
    past = PastAnswer(3, len(entries) + 4)
    frames = pack_recovery_answers(request, entries, epoch=7, sent_at=5, more=more, past=past)
    found: list[Entry] = []
    expected = past
    for each in frames:
        answer = parse_recovery_answer(split((each,))[1][HEADER_SIZE:])
        assert answer.past == expected
        found += answer.messages
        assert all(checked_past(message, 7, b"a.", 0) == 1 for _, message in answer.messages)
        if answer.messages:
            expected = PastAnswer(answer.messages[-1][0] + 1, expected.left - len(answer.messages))
    assert found == entries


def test_only_messages_of_the_past_pass_the_check() -> None:
    """A frame of another publisher, subscription, kind or number is refused."""
    (vector,) = (each for each in VECTORS["recovery"] if each["kind"] == "past_answer" and len(each["messages"]) == 2)
    frame, epoch = bytes.fromhex(vector["messages"][0][1]), int(vector["epoch"], 16)
    assert checked_past(frame, epoch, b"stocks.", 2**64 - 1) == 1
    number = numbers_of(frame, 7)[0]
    beat = pack_beat(b"stocks.", 5, epoch=epoch, next_ms=0, sent_at=5)
    for message, of, prefix, upto in (
        (frame, epoch + 1, b"stocks.", number),
        (frame, epoch, b"bonds.", number),
        (frame, epoch, b"stocks.", number - 1),
        (frame[:30], epoch, b"stocks.", number),
        (b"stocks.A" + beat[beat.index(NUL) :], epoch, b"stocks.", 2**64 - 1),
        (b"stocks.A", epoch, b"stocks.", number),
    ):
        with pytest.raises(EnvelopeError):
            checked_past(message, of, prefix, upto)


@given(st.binary(max_size=460))
def test_no_box_or_request_does_more_than_raise_envelope_error(rest: bytes) -> None:
    """Any bytes after the first ones are parsed or refused."""
    for parse, start in ((parse_recovery_request, REQUEST), (parse_recovery_answer, b""), (parse_marker, BOX)):
        with suppress(EnvelopeError):
            parse(start + rest)


@given(st.sampled_from(of_kind("answer")), st.data())
def test_an_answer_cut_anywhere_is_refused_or_shorter(vector: Any, data: st.DataObject) -> None:
    """An answer without its end is refused, or gives the entries before the cut."""
    body = split(raw_frames(vector.values[0]))[1][HEADER_SIZE:]
    whole = parse_recovery_answer(body)
    with suppress(EnvelopeError):
        found = parse_recovery_answer(body[: data.draw(st.integers(0, len(body)))])
        assert found.messages == whole.messages[: len(found.messages)]
        assert found.gone == whole.gone[: len(found.gone)]


def test_an_answer_with_the_largest_message_passes_a_reader() -> None:
    """The largest message with the longest header and subscription fits into the limit of a reader's socket."""

    class Counted:
        def __init__(self, length: int) -> None:
            self.length, self.number = length, 2**64 - 1

    counted = [Counted(length) for length in range(MAX_TOPIC + 1 - CARRIED, MAX_TOPIC + 1)]
    headers = {"a": "x" * (HEADERS_MAX - len(b"\x81\xa1a\xda\0\0"))}
    topic, body = b"t" * MAX_TOPIC, b"x" * 100_000
    frame = counted_framer(epoch=7, count=lambda _topic: counted, clock_ns=lambda: 5)(topic, 1, body, headers)
    assert isinstance(frame, bytes)
    request = RecoveryRequest(2**48 - 1, 5, 7, topic, ())
    (answer,) = pack_recovery_answers(request, [(2**64 - 1, frame)], epoch=7, sent_at=5)
    assert len(answer) == frame_limit(len(body))


# -- earlier versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", of_kind("box", "request", "past_request"))
def test_the_counters_of_a_publisher_ignore_boxes_and_requests(vector: dict[str, Any]) -> None:
    """A publisher without recovery counts nothing for a box or a request, and forgets no cover."""
    counters = Counters()
    counters.subscribe(b"stocks.", 0.0)
    (*_,) = counters.numbers(parse_marker(pack_marker(1, [b"stocks."])))
    numbers, version = counters.count(b"stocks.ACME"), counters.version
    topic = bytes.fromhex(vector["topic"])
    assert counters.subscribe(topic, 0.0) is None
    if vector["kind"] != "box":
        counters.withdraw(topic, 0.0)
    assert counters.count(b"stocks.ACME") == numbers
    assert (counters.version, counters.markers) == (version, {})
    counters.withdraw(b"stocks.", 0.0)
    assert not counters.plain_reader(9.0)


@pytest.mark.parametrize("vector", of_kind("answer", "past_answer"))
@pytest.mark.parametrize("pattern", [">", "stocks.>"])
def test_a_reader_that_did_not_ask_counts_an_answer_as_control(vector: dict[str, Any], pattern: str) -> None:
    """A reader without recovery ignores an answer, even if it subscribes to everything."""
    app = App()
    app.subscribe(pattern)(lambda message: pytest.fail("not a message"))
    wired = Wired(app)
    wired.feed(*raw_frames(vector), *raw_frames(vector))
    assert (wired.stats.control, wired.stats.malformed, wired.stats.routed) == (2, 0, 0)
    assert wired.balanced()
