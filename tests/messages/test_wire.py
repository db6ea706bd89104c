"""The wire format: test vectors for implementations in other languages, and round trips."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import wire_vectors
from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.control import (
    MARKER,
    pack_beat,
    pack_marker,
    pack_statements,
    parse_beat,
    parse_marker,
    parse_statement,
)
from zroute.messages.topics import Topic
from zroute.messages.wire import (
    HEADER_SIZE,
    MAGIC,
    NUL,
    WIRES,
    Framer,
    Kind,
    Wire,
    counted_framer,
    framer,
    pack_kept,
    parse,
    parse_header,
    parse_kept,
    split,
)
from zroute.options import CARRIED, HEADERS_MAX, MAX_PARTS, MAX_TOPIC, STATEMENT_MAX, frame_limit

VECTORS = wire_vectors()
NOW = 1_700_000_001.5


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    """Return each vector as a test parameter with the vector's name."""
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def raw_frames(vector: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the frames of a vector."""
    return tuple(bytes.fromhex(frame) for frame in vector["frames"])


def made(wire: Wire, *, epoch: int = 7, sequence: int = 1, sent_at: int = 0) -> Framer:
    """Return a framer with a known next sequence number and clock."""
    return framer(wire, epoch=epoch, next_sequence=count(sequence).__next__, clock_ns=lambda: sent_at)


def whole(frames: bytes | tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the frames of a message as a tuple."""
    return (frames,) if isinstance(frames, bytes) else frames


# -- test vectors ----------------------------------------------------------------------------------------


@attrs.frozen
class Counted:
    """A counter as a frame carries it."""

    length: int
    number: int


@pytest.mark.parametrize("vector", named([*VECTORS["messages"], *VECTORS["control"]]))
def test_each_vector_is_read_as_it_says(vector: dict[str, Any]) -> None:
    """zroute reads each test vector as documented."""
    frames = raw_frames(vector)
    envelope = parse(frames, NOW)
    assert envelope.topic.wire == bytes.fromhex(vector.get("message_topic", vector["topic"]))
    assert envelope.body == bytes.fromhex(vector.get("message_body", vector["body"]))
    assert envelope.kept == (vector.get("kind") == "kept")
    assert envelope.frames == frames
    assert envelope.received_at == NOW
    assert envelope.tracked == vector["tracked"]
    if vector["tracked"]:
        assert envelope.codec == vector["codec"]
        assert envelope.sequence == (0 if envelope.kept else vector["sequence"])
        assert envelope.publisher == vector["epoch"]
        assert envelope.sent_at == pytest.approx(vector["sent_at_ns"] / 1e9)
        assert envelope.headers == vector["headers"]
    else:
        assert (envelope.codec, envelope.sequence, envelope.publisher, envelope.sent_at) == (0, None, None, None)
        assert envelope.headers == {}


@pytest.mark.parametrize(
    "vector", named([each for each in VECTORS["messages"] if each["tracked"]] + VECTORS["control"])
)
def test_the_header_of_each_tracked_vector_is_read_to_the_bit(vector: dict[str, Any]) -> None:
    """Each field of a tracked header has the value that the vector states."""
    _topic, body = split(raw_frames(vector))
    header = parse_header(body)
    assert header.kind is Kind[vector["kind"].upper()]
    assert (header.codec, header.span, header.epoch) == (vector["codec"], vector["span"], int(vector["epoch"], 16))
    assert (header.sequence, header.sent_at) == (vector["sequence"], vector["sent_at_ns"])
    assert header.headers == vector["headers"]
    assert header.counters[1:] == tuple((length, number) for length, number in vector.get("further", ()))
    assert body[header.size :] == bytes.fromhex(vector["body"])


def sendable(vector: dict[str, Any]) -> bool:
    """Return True if zroute itself would send a message in exactly this form."""
    if vector["tracked"]:
        usual = (vector["span"], len(vector["frames"])) == (0, 1) and "further" not in vector
        return usual and "empty map" not in vector["name"]
    return len(vector["frames"]) <= 2


@pytest.mark.parametrize("vector", named([each for each in VECTORS["messages"] if sendable(each)]))
def test_each_vector_is_sent_as_it_says(vector: dict[str, Any]) -> None:
    """zroute sends each test vector byte for byte."""
    topic, body, frames = bytes.fromhex(vector["topic"]), bytes.fromhex(vector["body"]), raw_frames(vector)
    if vector["tracked"]:
        epoch, sequence, sent_at = int(vector["epoch"], 16), vector["sequence"], vector["sent_at_ns"]
        frame = made("tracked", epoch=epoch, sequence=sequence, sent_at=sent_at)
        assert whole(frame(topic, vector["codec"], body, vector["headers"])) == frames
    else:
        frame = made("plain" if len(frames) == 1 else "multipart")
        assert whole(frame(topic, 0, body, None)) == frames


@pytest.mark.parametrize("vector", named(VECTORS["malformed"]))
def test_each_malformed_vector_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    """Each malformed vector is refused with the documented reason."""
    with pytest.raises(EnvelopeError) as caught:
        parse(raw_frames(vector), NOW)
    assert caught.value.reason == vector["reason"]


UNNAMED = (
    "if the message has no topic, set one with App(sub={endpoint: Frames(topic='name')}), or with zroute tail --frames "
    "topic=name"
)
SPACED = (
    "if a space ends the topic, write App(sub={endpoint: Frames(separator=b' ')}), or zroute tail "
    "--frames 'separator= '"
)
COMPRESSED = (
    "the message looks compressed; if so, write Frames(topic='…', decompress='zlib'), or zroute tail "
    "--frames 'topic=…,decompress=zlib'"
)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"stocks.ACME 990.5", f"no NUL after the topic ({SPACED})"),
        (b"x" * MAX_TOPIC + b" 990.5", "no NUL after the topic"),  # no topic is that long
        (b"stocks.ACME", "no NUL after the topic"),
        (b'{"n": 0}', f"no NUL after the topic ({UNNAMED})"),
        (b"[1, 2]", f"no NUL after the topic ({UNNAMED})"),
        (b"x\x9c\x8a\x05 a", f"no NUL after the topic ({COMPRESSED})"),
        (b"", "an empty frame"),
    ],
)
def test_a_message_of_another_form_is_refused_with_a_hint(frame: bytes, reason: str) -> None:
    """A frame of another form, as `send_string(f"{topic} {body}")` sends it, is refused; the reason says what to do."""
    with pytest.raises(EnvelopeError) as refused:
        split((frame,))
    assert refused.value.reason == reason


@pytest.mark.parametrize("vector", named([each for each in VECTORS["messages"] if "further" in each]))
def test_each_vector_with_counters_is_sent_as_it_says(vector: dict[str, Any]) -> None:
    """A message carries the numbers of its subscriptions, byte for byte as in the vectors."""
    counters = [Counted(vector["span"], vector["sequence"]), *(Counted(*each) for each in vector["further"])]
    counted = counters if vector["sequence"] else []
    frame = counted_framer(
        epoch=int(vector["epoch"], 16), count=lambda _topic: counted, clock_ns=lambda: vector["sent_at_ns"]
    )
    topic, body = bytes.fromhex(vector["topic"]), bytes.fromhex(vector["body"])
    assert whole(frame(topic, vector["codec"], body, vector["headers"])) == raw_frames(vector)


def control_frames(vector: dict[str, Any]) -> list[bytes]:
    """Return the frames that zroute sends for a vector of a control frame."""
    topic, body = bytes.fromhex(vector["topic"]), bytes.fromhex(vector.get("message_body", ""))
    epoch, sent_at = int(vector["epoch"], 16), vector["sent_at_ns"]
    if vector["kind"] == "beat":
        return [pack_beat(topic, vector["sequence"], epoch=epoch, next_ms=vector["next_ms"], sent_at=sent_at)]
    if vector["kind"] == "kept":
        name, headers = bytes.fromhex(vector["message_topic"]), vector["headers"]
        return [
            pack_kept(topic, vector["sequence"], name, vector["codec"], body, headers, epoch=epoch, sent_at=sent_at)
        ]
    return pack_statements(
        Kind.JOIN if vector["kind"] == "join" else Kind.GOODBYE,
        topic,
        numbers_of(vector),
        epoch=epoch,
        name=vector["publisher_name"],
        partial=vector["partial"],
        history=vector["history"],
        sent_at=sent_at,
    )


def numbers_of(vector: dict[str, Any]) -> tuple[tuple[bytes, int], ...]:
    """Return the subscriptions in a statement with their numbers."""
    return tuple((bytes.fromhex(prefix), number) for prefix, number in vector["numbers"])


@pytest.mark.parametrize("vector", named([each for each in VECTORS["control"] if each.get("parts", 1) == 1]))
def test_each_control_frame_is_sent_as_it_says(vector: dict[str, Any]) -> None:
    """Control frames and kept messages are sent byte for byte as in the vectors."""
    assert tuple(control_frames(vector)) == raw_frames(vector)


@pytest.mark.parametrize("vector", named(VECTORS["control"]))
def test_what_a_control_frame_carries_is_read_as_it_says(vector: dict[str, Any]) -> None:
    """The bodies of control frames and kept messages are read as in the vectors."""
    body = bytes.fromhex(vector["body"])
    if vector["kind"] == "beat":
        assert parse_beat(body) == vector["next_ms"]
    elif vector["kind"] == "kept":
        assert parse_kept(body) == (bytes.fromhex(vector["message_topic"]), bytes.fromhex(vector["message_body"]))
    else:
        stated = parse_statement(body)
        assert (stated.part, stated.parts) == (vector["part"], vector["parts"])
        assert (stated.name, stated.partial) == (vector["publisher_name"], vector["partial"])
        assert stated.history == vector["history"]
        assert stated.numbers == numbers_of(vector)


@pytest.mark.parametrize("vector", named(VECTORS["markers"]))
def test_each_marker_is_read_as_it_says(vector: dict[str, Any]) -> None:
    """A publisher reads the id and the subscriptions of each marker vector."""
    marker = parse_marker(bytes.fromhex(vector["topic"]))
    assert marker.id == int(vector["id"], 16)
    assert marker.wanted == tuple(bytes.fromhex(prefix) for prefix in vector["wanted"])
    assert pack_marker(marker.id, marker.wanted) == marker.topic


READERS: dict[str, Any] = {
    "join": parse_statement,
    "beat": parse_beat,
    "kept": parse_kept,
    "marker": parse_marker,
}


@pytest.mark.parametrize("vector", named(VECTORS["malformed_control"]))
def test_each_malformed_control_frame_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    """Each malformed control frame is refused with the documented reason."""
    with pytest.raises(EnvelopeError) as caught:
        READERS[vector["kind"]](bytes.fromhex(vector["body"]))
    assert caught.value.reason == vector["reason"]


# -- generated messages ------------------------------------------------------------------------------------

TOPICS = st.binary(max_size=255).filter(lambda topic: NUL not in topic)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
BODIES = st.binary(max_size=300).filter(lambda body: not body.startswith(MAGIC))
HEADERS = st.none() | st.dictionaries(st.text(max_size=20), VALUES, max_size=4)


@given(TOPICS, st.integers(0, 255), st.binary(max_size=300), HEADERS, st.integers(0, 2**64 - 1))
def test_what_the_tracked_wire_takes_it_gives_back(
    topic: bytes, codec: int, body: bytes, headers: dict[str, Any] | None, number: int
) -> None:
    """Every field of a tracked message arrives unchanged."""
    frame = made("tracked", epoch=number, sequence=number, sent_at=number // 2)
    envelope = parse(whole(frame(topic, codec, body, headers)), NOW)
    assert (envelope.topic.wire, envelope.codec, envelope.body) == (topic, codec, body)
    assert (envelope.sequence, envelope.publisher, envelope.tracked) == (number, f"{number:016x}", True)
    assert envelope.sent_at == number // 2 / 1e9
    assert envelope.headers == (headers or {})


NUMBERS = st.integers(1, 2**64 - 1)
PREFIXES = TOPICS


@given(TOPICS, st.dictionaries(st.integers(0, 255), NUMBERS, max_size=CARRIED), HEADERS, st.binary(max_size=300))
def test_a_message_carries_as_many_counters_as_it_is_given(
    topic: bytes, counters: dict[int, int], headers: dict[str, Any] | None, body: bytes
) -> None:
    """Each of several overlapping subscriptions finds its own number in a message."""
    counted = [Counted(length, counters[length]) for length in sorted(counters)]
    frame = counted_framer(epoch=7, count=lambda _topic: counted, clock_ns=lambda: 5)(topic, 1, body, headers)
    assert isinstance(frame, bytes)
    header = parse_header(frame.partition(NUL)[2])
    assert {length: header.number(length) for length in range(256) if header.number(length)} == counters
    envelope = parse((frame,), NOW)
    assert (envelope.topic.wire, envelope.body, envelope.headers) == (topic, body, headers or {})


@given(st.lists(st.tuples(PREFIXES, NUMBERS), max_size=60), st.text(max_size=400), st.booleans())
def test_what_a_publisher_states_arrives_whatever_its_size(
    numbers: list[tuple[bytes, int]], name: str, partial: bool
) -> None:
    """A long statement arrives in ordered parts, each small enough for any reader."""
    marker = pack_marker(9, [b""])
    frames = pack_statements(Kind.JOIN, marker, numbers, epoch=7, name=name, partial=partial, sent_at=5)
    found: list[tuple[bytes, int]] = []
    for part, frame in enumerate(frames):
        topic, body = split((frame,))
        stated = parse_statement(body[parse_header(body).size :])
        assert (topic, stated.part, stated.parts, stated.partial) == (marker, part, len(frames), partial)
        assert name.startswith(stated.name)
        assert len(body) <= HEADER_SIZE + STATEMENT_MAX
        assert len(frame) <= frame_limit(1)
        found += stated.numbers
    assert found == numbers


@given(st.integers(0, 2**64 - 1), st.lists(PREFIXES, min_size=1, max_size=40, unique=True))
def test_a_marker_is_about_all_subscriptions_of_its_sender(number: int, subscriptions: list[bytes]) -> None:
    """A marker for many or long subscriptions is still a valid topic and covers all of them."""
    topic = pack_marker(number, subscriptions)
    assert len(topic) <= MAX_TOPIC
    assert NUL not in topic
    marker = parse_marker(topic)
    assert marker.id == number
    assert all(marker.wants(prefix) for prefix in subscriptions)


@given(TOPICS, TOPICS, st.integers(0, 255), st.binary(max_size=300), HEADERS)
def test_a_kept_message_arrives_as_it_was(
    marker: bytes, topic: bytes, codec: int, body: bytes, headers: dict[str, Any] | None
) -> None:
    """A late subscriber receives the last message with its topic, codec, headers and time."""
    _topic, rest = split((pack_kept(marker, 3, topic, codec, body, headers, epoch=7, sent_at=5),))
    header = parse_header(rest)
    assert (header.kind, header.codec, header.sent_at, header.sequence) == (Kind.KEPT, codec, 5, 3)
    assert header.headers == (headers or {})
    assert parse_kept(rest[header.size :]) == (topic, body)


@given(
    st.sampled_from(sorted(READERS)), st.binary(max_size=80) | st.binary(max_size=40).map(lambda rest: MARKER + rest)
)
def test_no_control_frame_does_more_than_raise_envelope_error(kind: str, body: bytes) -> None:
    """Any bytes in a control frame are parsed or raise EnvelopeError."""
    with suppress(EnvelopeError):
        READERS[kind](body)


@given(st.sampled_from(VECTORS["control"]), st.data())
def test_a_control_frame_with_flipped_bits_does_no_more_than_raise_envelope_error(
    vector: dict[str, Any], data: st.DataObject
) -> None:
    """A damaged or cut control frame is parsed or raises EnvelopeError."""
    frame = bytearray(raw_frames(vector)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    body = bytes(frame[: data.draw(st.integers(0, len(frame)))]).partition(NUL)[2]
    with suppress(EnvelopeError):
        if body.startswith(MAGIC):
            READERS[vector["kind"].replace("goodbye", "join")](body[parse_header(body).size :])


@given(st.sampled_from(["plain", "multipart"]), TOPICS, BODIES)
def test_what_the_other_wires_take_they_give_back(wire: Wire, topic: bytes, body: bytes) -> None:
    """On the plain and multipart wires, topic and body arrive unchanged."""
    envelope = parse(whole(made(wire)(topic, 0, body, None)), NOW)
    assert (envelope.topic.wire, envelope.body, envelope.tracked) == (topic, body, False)


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=20))
def test_no_frames_do_more_than_raise_envelope_error(frames: list[bytes]) -> None:
    """Any bytes from a peer are a message or raise EnvelopeError."""
    _read_or_refused(tuple(frames))


@given(st.binary(max_size=80))
def test_no_header_does_more_than_raise_envelope_error(rest: bytes) -> None:
    """Any bytes after the magic are a header or raise EnvelopeError."""
    _read_or_refused((b"a\0" + MAGIC + b"\1\0" + rest,))


def _read_or_refused(frames: tuple[bytes, ...]) -> None:
    try:
        envelope = parse(frames, NOW)
    except EnvelopeError:
        return
    assert envelope.frames == frames


@pytest.mark.parametrize("headers", [None, {"trace": "ab12"}])
def test_a_tracked_frame_cut_at_any_byte_is_never_taken_for_another_message(headers: dict[str, Any] | None) -> None:
    """A cut frame is refused if its header is incomplete; otherwise its body is shorter."""
    body = b"\x92\x01\x02"
    frame = made("tracked")(b"a", 1, body, headers)
    assert isinstance(frame, bytes)
    start = len(frame) - len(body)
    for length in range(len(frame)):
        cut = frame[:length]
        if length < 2 or 5 <= length < start:
            with pytest.raises(EnvelopeError):
                parse((cut,), NOW)
        elif length < 5:  # the magic is incomplete, so the rest is a plain body
            assert parse((cut,), NOW).body == frame[2:length]
        else:
            assert parse((cut,), NOW).body == body[: length - start]


# -- messages that can't be sent ----------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["plain", "multipart"])
def test_headers_are_refused_where_they_can_not_travel(wire: Wire) -> None:
    """Headers on a wire without headers raise EncodeError."""
    with pytest.raises(EncodeError, match=f"only the tracked wire carries headers.*{wire}"):
        made(wire)(b"a", 1, b"x", {"trace": "1"})


@pytest.mark.parametrize("wire", ["plain", "multipart"])
def test_a_body_that_looks_tracked_is_refused(wire: Wire) -> None:
    """A body that readers would take for a tracked header raises EncodeError."""
    with pytest.raises(EncodeError, match="C1 5A 52"):
        made(wire)(b"a", 1, MAGIC + b"rest", None)


def test_the_tracked_wire_carries_a_body_that_looks_tracked() -> None:
    """On the tracked wire, a body may start with the magic bytes."""
    assert parse(whole(made("tracked")(b"a", 4, MAGIC, None)), NOW).body == MAGIC


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({1: "x"}, "name of a header must be text, not int"),
        ({"a": object()}, "can't be packed"),
        ({"a": (1, 2)}, "can't be packed"),
        ({"a": 2**64}, "can't be packed"),
        ({"a": {1: 2}}, "can't be packed"),
        ({"a": "\ud800"}, "can't be packed"),
        ({"a": "x" * HEADERS_MAX}, f"expected at most {HEADERS_MAX}"),
    ],
    ids=["name", "object", "tuple", "integer", "key inside", "surrogate", "size"],
)
def test_headers_that_would_not_arrive_are_refused(headers: dict[Any, Any], fault: str) -> None:
    """Headers that would not arrive unchanged raise EncodeError, and no message is counted."""
    frame = made("tracked", sequence=1)
    with pytest.raises(EncodeError, match=fault):
        frame(b"a", 1, b"", headers)
    assert parse(whole(frame(b"a", 1, b"", None)), NOW).sequence == 1


def test_a_message_that_can_not_be_sent_is_not_counted() -> None:
    """Invalid headers are refused before the message gets a number, so no number is skipped."""
    counted: list[bytes] = []

    def count(topic: bytes) -> list[Counted]:
        counted.append(topic)
        return []

    frame = counted_framer(epoch=7, count=count, clock_ns=lambda: 5)
    with pytest.raises(EncodeError):
        frame(b"a", 1, b"", {"a": object()})
    assert counted == []


def test_the_largest_message_passes_a_reader() -> None:
    """The largest body with the longest header fits into the limit of a reader's socket."""
    counted = [Counted(length, 2**64 - 1) for length in range(CARRIED)]
    headers = {"a": "x" * (HEADERS_MAX - len(b"\x81\xa1a\xda\0\0"))}
    topic, body = b"t" * MAX_TOPIC, b"x" * 1000
    frame = counted_framer(epoch=7, count=lambda _topic: counted, clock_ns=lambda: 5)(topic, 1, body, headers)
    kept = pack_kept(b"m" * MAX_TOPIC, 1, topic, 1, body, headers, epoch=7, sent_at=5)
    assert len(frame) <= frame_limit(len(body))
    assert len(kept) <= frame_limit(len(body))


def test_headers_may_fill_their_limit() -> None:
    """Headers of exactly the maximum size are accepted."""
    overhead = len(b"\x81\xa1a\xda\0\0")
    headers = {"a": "x" * (HEADERS_MAX - overhead)}
    assert parse(whole(made("tracked")(b"a", 1, b"", headers)), NOW).headers == headers


def test_each_message_has_the_next_sequence() -> None:
    """A publisher numbers its messages from 1, across all topics."""
    frame = made("tracked")
    sequences = [parse(whole(frame(topic, 1, b"", None)), NOW).sequence for topic in (b"a", b"b", b"a")]
    assert sequences == [1, 2, 3]


def test_a_topic_that_is_no_text_comes_back_as_its_bytes() -> None:
    """A topic that is not UTF-8 arrives as text from which its bytes can be restored."""
    envelope = parse((b"\xff\xfe\0x",), NOW)
    assert isinstance(envelope.topic, Topic)
    assert envelope.topic.wire == b"\xff\xfe"


def test_the_sizes_of_the_specification() -> None:
    """The sizes in docs/reference/wire.md match the code."""
    assert (32, 16, 4096, bytes.fromhex("c15a52")) == (HEADER_SIZE, MAX_PARTS, HEADERS_MAX, MAGIC)
    assert WIRES == ("plain", "multipart", "tracked")
    assert [(kind.name, kind.value) for kind in Kind] == [
        ("DATA", 0),
        ("JOIN", 1),
        ("BEAT", 2),
        ("GOODBYE", 3),
        ("COALESCED", 4),
        ("KEPT", 5),
    ]
