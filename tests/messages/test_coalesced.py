"""Coalesced frames: test vectors, round trips, and malformed frames."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import sized, wire_vectors
from zroute.errors import EnvelopeError
from zroute.messages.coalesced import coalesced_framer, parse_coalesced, split_frame
from zroute.messages.codecs import JSON, MSGPACK, RAW, TEXT
from zroute.messages.control import pack_marker, parse_marker
from zroute.messages.wire import HEADER_SIZE, NUL, Kind, parse, parse_header, split
from zroute.options import COALESCED_BYTES, COALESCED_MAX
from zroute.publishing.counters import Counters

VECTORS = wire_vectors()["batches"]
EPOCH = 0x1122334455667788
AT = 1_700_000_000_123_456_789

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(), st.lists(st.integers(0, 9), max_size=3)
)
BODIES: dict[int, st.SearchStrategy[bytes]] = {
    JSON.number: VALUES.map(msgspec.json.encode),
    MSGPACK.number: VALUES.map(msgspec.msgpack.encode),
    TEXT.number: st.text().map(str.encode),
    RAW.number: st.binary(),
    200: st.binary(),
}


@attrs.frozen
class Numbered:
    length: int
    number: int


def framed(codec: int, bodies: Sequence[bytes], counters: Sequence[Numbered] = (), *, keeps: bool = False) -> bytes:
    """Return a frame of ``bodies``; the counters hold the numbers of the last body."""
    frame = coalesced_framer(epoch=EPOCH, count=lambda topic, many: counters, keeps=keeps)
    return frame(b"stocks.ACME", codec, bodies, AT)


def body_of(frame: bytes) -> bytes:
    """Return the bytes after the header."""
    _, body = split((frame,))
    return body[parse_header(body).size :]


def lists_of_bodies(codec: int) -> st.SearchStrategy[tuple[int, list[bytes]]]:
    """Generate a codec and one or more bodies in it."""
    return st.tuples(st.just(codec), st.lists(BODIES[codec], min_size=1, max_size=20))


BATCHES = st.sampled_from(sorted(BODIES)).flatmap(lists_of_bodies)


# -- round trips -----------------------------------------------------------------------------------------


@given(BATCHES, st.booleans())
def test_what_was_put_into_a_batch_comes_out_of_it(batch: tuple[int, list[bytes]], keeps: bool) -> None:
    """Every message of a coalesced frame is read back unchanged and in order, in each codec."""
    codec, bodies = batch
    frame = framed(codec, bodies, [Numbered(7, 40 + len(bodies)), Numbered(11, len(bodies))], keeps=keeps)
    header = parse_header(split((frame,))[1])
    assert (header.kind, header.codec, header.epoch, header.sent_at) == (Kind.COALESCED, codec, EPOCH, AT)
    assert (header.span, header.sequence, header.counters[1:], header.keeps) == (7, 41, ((11, 1),), keeps)
    found = parse_coalesced(codec, body_of(frame))
    assert (found.many, found.bodies) == (len(bodies), bodies)


@given(BATCHES)
def test_the_list_is_read_in_one_call(batch: tuple[int, list[bytes]]) -> None:
    """Any JSON or msgpack reader decodes all messages of a frame as one list."""
    codec, bodies = batch
    listing = parse_coalesced(codec, body_of(framed(codec, bodies))).listing
    if codec == JSON.number:
        assert msgspec.json.decode(listing) == [msgspec.json.decode(body) for body in bodies]
    elif codec == MSGPACK.number:
        assert msgspec.msgpack.decode(listing) == [msgspec.msgpack.decode(body) for body in bodies]
    else:
        assert listing == b"".join(bodies)


@given(BATCHES, st.integers(0, 2**64 - 1))
def test_each_message_has_a_frame_as_if_it_had_come_alone(batch: tuple[int, list[bytes]], first: int) -> None:
    """Error hooks and recordings get single messages, each with its own number."""
    codec, bodies = batch
    header = split((framed(codec, bodies, [Numbered(7, first + len(bodies) - 1)] if 0 < first < 2**63 else []),))[1]
    made = split_frame(b"stocks.ACME", header[:HEADER_SIZE], bodies)
    for place, (frame, body) in enumerate(zip(made, bodies, strict=True)):
        envelope = parse((frame,), 5.0)
        assert (str(envelope.topic), envelope.body, envelope.codec) == ("stocks.ACME", body, codec)
        assert envelope.sequence == (first + place if 0 < first < 2**63 else 0)
        assert (envelope.publisher, envelope.sent_at) == (f"{EPOCH:016x}", AT / 1e9)
        assert parse_header(split((frame,))[1]).kind is Kind.DATA


def test_numbers_past_64_bits_begin_anew() -> None:
    """A forged header with the highest possible number gives frames and no error."""
    header = bytearray(split((framed(2, [b"1", b"2"], [Numbered(7, 9)]),))[1][:HEADER_SIZE])
    header[16:24] = b"\xff" * 8
    made = [parse((frame,), 5.0).sequence for frame in split_frame(b"a", bytes(header), [b"1", b"2"])]
    assert made == [2**64 - 1, 0]


def test_a_full_batch_has_room_for_where_its_messages_end() -> None:
    """Two bytes hold every end of the largest frame, in each codec."""
    size = COALESCED_BYTES // COALESCED_MAX
    for codec in BODIES:
        bodies = [b"x" * size] * COALESCED_MAX
        assert parse_coalesced(codec, body_of(framed(codec, bodies))).bodies == bodies
        assert parse_coalesced(codec, body_of(framed(codec, [b"x" * COALESCED_BYTES]))).many == 1


def test_a_batch_is_counted_by_all_its_subscriptions_at_once() -> None:
    """Each counter grows by the number of messages, and the frame carries the first numbers."""
    counters = Counters()
    for prefix in (b"", b"a", b"a.b", b"x"):
        counters.subscribe(prefix, 0.0)
    dict(counters.numbers(parse_marker(pack_marker(1, [b"", b"a"]))))
    counters.count(b"a.b")
    frame = coalesced_framer(epoch=EPOCH, count=counters.count)(b"a.b", 2, [b"1", b"2", b"3"], AT)
    header = parse_header(split((frame,))[1])
    assert [header.number(length) for length in (0, 1, 3)] == [2, 2, 2]
    assert [counter.number for counter in counters.count(b"a.b")] == [5, 5, 5]
    assert [counter.number for counter in counters.count(b"x")] == [6, 1]


def test_a_batch_that_could_not_be_sent_gives_all_its_numbers_back() -> None:
    """A frame that a full queue refused has the same numbers at the next attempt."""
    counters = Counters()
    counters.subscribe(b"a", 0.0)
    dict(counters.numbers(parse_marker(pack_marker(1, [b"a"]))))
    frame = coalesced_framer(epoch=EPOCH, count=counters.count)
    first = frame(b"a", 2, [b"1", b"2", b"3"], AT)
    counters.take_back(b"a", 3)
    assert frame(b"a", 2, [b"1", b"2", b"3"], AT) == first


# -- test vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS])
def test_each_vector_of_a_batch_is_read_as_it_says(vector: dict[str, Any]) -> None:
    """zroute reads every message in each coalesced test vector."""
    frame = bytes.fromhex(vector["frame"])
    topic, rest = split((frame,))
    header = parse_header(rest)
    assert topic.hex() == vector["topic"]
    assert (header.kind, header.codec, header.span) == (Kind.COALESCED, vector["codec"], vector["span"])
    assert (header.sequence, header.sent_at) == (vector["sequence"], vector["sent_at_ns"])
    assert [list(each) for each in header.counters[1:]] == vector["further"]
    assert (header.keeps, f"{header.epoch:016x}") == (vector["keeps"], vector["epoch"])
    bodies = [bytes.fromhex(body) for body in vector["bodies"]]
    assert parse_coalesced(header.codec, rest[header.size :]).bodies == bodies


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS])
def test_each_vector_of_a_batch_is_what_is_sent(vector: dict[str, Any]) -> None:
    """zroute sends each coalesced test vector byte for byte."""
    bodies = [bytes.fromhex(body) for body in vector["bodies"]]
    counters = [Numbered(vector["span"], vector["sequence"] + len(bodies) - 1)] if vector["sequence"] else []
    counters += [Numbered(span, number + len(bodies) - 1) for span, number in vector["further"]]
    frame = coalesced_framer(epoch=EPOCH, count=lambda topic, many: counters, keeps=vector["keeps"])
    assert frame(bytes.fromhex(vector["topic"]), vector["codec"], bodies, vector["sent_at_ns"]).hex() == vector["frame"]


# -- malformed frames ------------------------------------------------------------------------------------


def harmless(codec: int, body: bytes) -> bool:
    """Return True if ``body`` is refused with EnvelopeError, or is N separate messages."""
    try:
        batch = parse_coalesced(codec, body)
    except EnvelopeError:
        return False
    bodies = batch.bodies
    assert len(bodies) == batch.many <= COALESCED_MAX
    assert sum(map(len, bodies)) <= len(body)
    assert all(type(each) is bytes and each in batch.listing for each in bodies)
    return True


@given(BATCHES, st.data())
def test_a_batch_that_is_cut_anywhere_is_refused(batch: tuple[int, list[bytes]], data: st.DataObject) -> None:
    """A frame that is cut at any byte is refused, and none of its messages is delivered."""
    codec, bodies = batch
    body = body_of(framed(codec, bodies))
    at = data.draw(st.integers(0, len(body) - 1))
    assert not harmless(codec, body[:at])


@given(st.sampled_from(sorted(BODIES)), st.binary(max_size=200))
def test_bytes_that_are_no_batch_harm_nobody(codec: int, body: bytes) -> None:
    """Random bytes after the header are refused, or become messages that fail alone."""
    harmless(codec, body)


@given(BATCHES, st.integers(0, 0xFFFF))
def test_a_count_that_lies_is_refused_or_harmless(batch: tuple[int, list[bytes]], many: int) -> None:
    """A frame with a wrong number of messages reserves no memory for them."""
    codec, bodies = batch
    harmless(codec, struct.pack(">H", many) + body_of(framed(codec, bodies))[2:])


@given(BATCHES, st.data())
def test_ends_that_lie_are_refused_or_harmless(batch: tuple[int, list[bytes]], data: st.DataObject) -> None:
    """Ends that overlap, descend or exceed the list produce no messages from other bytes."""
    codec, bodies = batch
    body = body_of(framed(codec, bodies))
    ends = data.draw(st.lists(st.integers(0, 0xFFFF), min_size=len(bodies), max_size=len(bodies)))
    if data.draw(st.booleans()):  # a correct last end, so that the check of the others runs
        ends[-1] = struct.unpack_from(">H", body, 2 * len(bodies))[0]
    harmless(codec, body[:2] + struct.pack(f">{len(ends)}H", *ends) + body[2 + 2 * len(ends) :])


def test_ends_that_go_back_and_forth_fill_no_memory() -> None:
    """1,000 messages that all claim the whole frame are no larger than the frame."""
    listing = b"x" * 0xFFFF
    ends = [0xFFFF, 0] * 499 + [0xFFFF, 0xFFFF]
    batch = parse_coalesced(RAW.number, struct.pack(f">{len(ends) + 1}H", len(ends), *ends) + listing)
    assert sum(map(len, batch.bodies)) == len(listing)


@pytest.mark.parametrize(
    ("codec", "body", "reason"),
    [
        (2, "", "a coalesced frame with a body of 0 bytes; expected at least 2"),
        (2, "00", "a coalesced frame with a body of 1 bytes; expected at least 2"),
        (2, "0000", "a coalesced frame with an invalid number of messages: 0 in 2 bytes"),
        (2, "0000 5b5d", "a coalesced frame with an invalid number of messages: 0 in 4 bytes"),
        (2, "0002 0002", "a coalesced frame with an invalid number of messages: 2 in 4 bytes"),
        (2, "0001 0002 5b31", "a coalesced frame of 1 messages with an index that does not match the frame's length"),
        (
            2,
            "0001 0002 5b315d5d",
            "a coalesced frame of 1 messages with an index that does not match the frame's length",
        ),
        (2, "0001 0002 7b317d", "a coalesced frame of 1 messages with an index that does not match the frame's length"),
        (2, "0001 0002 5b3132", "a coalesced frame of 1 messages with an index that does not match the frame's length"),
        (
            1,
            "0001 0004 dc000201",
            "a coalesced frame of 1 messages with an index that does not match the frame's length",
        ),
        (1, "0001 0002 9101", "a coalesced frame of 1 messages with an index that does not match the frame's length"),
        (1, "0001 0000", "a coalesced frame of 1 messages with an index that does not match the frame's length"),
        (3, "0001 0002 61", "a coalesced frame of 1 messages with an index that does not match the frame's length"),
    ],
)
def test_what_a_broken_batch_is_refused_for(codec: int, body: str, reason: str) -> None:
    """The reason names what is wrong with a frame of another implementation."""
    with pytest.raises(EnvelopeError, match=reason):
        parse_coalesced(codec, bytes.fromhex(body))


def test_more_messages_than_travel_together_are_refused() -> None:
    """A frame of more than 1,000 messages is refused, so it can't block the reactor."""
    many: Callable[[int], bytes] = lambda number: struct.pack(f">{number + 1}H", number, *[0] * number)  # noqa: E731
    assert parse_coalesced(RAW.number, many(1000)).many == 1000
    with pytest.raises(EnvelopeError, match="an invalid number of messages: 1001"):
        parse_coalesced(RAW.number, many(1001))


def test_coalesced_frames_that_were_damaged_at_random_harm_nobody() -> None:
    """Frames with one changed byte, 100,000 in CI, are refused, or give slices of their bodies."""
    chance = random.Random(5)
    good = [
        (codec, body_of(framed(codec, [encode(n) for n in range(chance.randrange(1, 9))])))
        for codec, encode in ((1, msgspec.msgpack.encode), (2, msgspec.json.encode), (4, bytes))
    ]
    kept, frames = 0, sized(100_000, 20_000)
    for _ in range(frames):
        codec, body = chance.choice(good)
        changed = bytearray(body)
        changed[chance.randrange(len(body))] = chance.randrange(256)
        kept += harmless(codec, bytes(changed))
    assert 0 < kept < frames


def test_a_frame_begins_as_all_frames_do() -> None:
    """A reader of the plain wire finds the topic, a NUL, and the rest as the body."""
    assert framed(2, [b"1"]).startswith(b"stocks.ACME" + NUL + b"\xc1ZR\1\4\2")
