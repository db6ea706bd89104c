"""The wire of requests: its bytes, and frames that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.requests import (
    MAGIC,
    Kind,
    Message,
    Reply,
    check_topic,
    pack_cancel,
    pack_credits,
    pack_failure,
    pack_reply,
    parse,
    parse_credits,
    parse_plain_reply,
    parse_reply,
    parse_request,
    plain_failure,
    request_packer,
    topic_of,
)
from zroute.messages.wire import parse as parse_frames
from zroute.options import MAX_CREDIT, MAX_TOPIC, REFUSAL_TEXT

Parts = tuple[bytes, ...]

ID = bytes(range(16))
START = "c15a51" + "01"


def prefix(kind: int, codec: int = 0, version: int = 1, magic: bytes = MAGIC) -> bytes:
    """Return the prefix of a frame."""
    return magic + bytes((version, kind, codec)) + ID


def request(
    seconds: float | None = 2.0, window: int = 0, headers: dict[str, Any] | None = None, codec: int = 1
) -> bytes:
    """Return a request for ``a.b``."""
    return request_packer(7, lambda: 5)(ID, b"a.b", codec, b"\x03", headers, seconds, window)


# -- bytes -----------------------------------------------------------------------------------------------


def test_a_request_has_these_bytes() -> None:
    """Prefix, milliseconds, window, then a frame of the tracked wire with the number 0."""
    tracked = b"a.b\0".hex() + "c15a52" + "0100010000" + f"{7:016x}" + f"{0:016x}" + f"{5:016x}" + "03"
    expected = START + "0000" + ID.hex() + "000007d0" + "0000" + tracked
    assert request().hex() == expected


@pytest.mark.parametrize(
    ("seconds", "window", "expected"),
    [
        (None, 0, "ffffffff0000"),
        (0.25, 128, "000000fa0080"),
        (0.0001, 0, "000000010000"),
        (-5.0, 0, "000000010000"),
        (1e12, 0, "fffffffe0000"),
        (1e307, 0xFFFF, "fffffffeffff"),
    ],
)
def test_limits_are_six_bytes(seconds: float | None, window: int, expected: str) -> None:
    """Less than a millisecond counts as one, and no time is too long."""
    assert request(seconds, window)[22:28].hex() == expected


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (pack_cancel(ID), START + "0100" + ID.hex()),
        (pack_credits(ID, 64), START + "0200" + ID.hex() + "00000040"),
        (pack_reply(ID, Kind.REPLY, 1, b"\x05"), START + "0301" + ID.hex() + "05"),
        (pack_reply(ID, Kind.ITEM, 2, b"5"), START + "0402" + ID.hex() + "35"),
        (pack_reply(ID, Kind.END, 0, b""), START + "0500" + ID.hex()),
        (pack_failure(ID, 404, "no"), START + "0600" + ID.hex() + "0194" + "6e6f"),
    ],
)
def test_the_other_frames_have_these_bytes(made: bytes, expected: str) -> None:
    """Cancellations, credits, replies, items, ends and failures, to the byte."""
    assert made.hex() == expected


def test_a_failure_of_a_plain_client_has_three_parts() -> None:
    """An empty part, the code as digits, and the text."""
    assert plain_failure(404, "no handler for 'a'") == (b"", b"404", b"no handler for 'a'")


def test_headers_travel_with_the_request() -> None:
    """The frame behind the limits is a message of the tracked wire."""
    seconds, window, frame = parse_request(parse(request(headers={"trace": "x"}, codec=2)))
    assert (seconds, window) == (2.0, 0)
    envelope = parse_frames((frame,), 1.0)
    assert (str(envelope.topic), envelope.codec, envelope.headers) == ("a.b", 2, {"trace": "x"})
    assert envelope.body == b"\x03"


def test_headers_that_the_wire_can_not_carry_are_refused_in_the_client() -> None:
    """Too large headers raise EncodeError."""
    with pytest.raises(EncodeError):
        request(headers={"a": "x" * 100_000})


# -- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_a_frame_is_read_in_its_parts(kind: Kind) -> None:
    """Kind, codec, id and the rest."""
    assert parse(prefix(kind, 9) + b"rest") == Message(kind, 9, ID, b"rest")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "a frame of 0 bytes; expected at least 22"),
        (prefix(0)[:-1], "a frame of 21 bytes"),
        (prefix(0, magic=b"\xc1ZR"), "without the magic number"),
        (prefix(0, version=0), "a frame of version 0; expected version 1"),
        (prefix(0, version=2), "a frame of version 2"),
        (prefix(7), "a frame of the unknown kind 7"),
        (prefix(255), "a frame of the unknown kind 255"),
    ],
)
def test_a_frame_of_another_form_is_refused(frame: bytes, reason: str) -> None:
    """Another length, magic, version or kind."""
    with pytest.raises(EnvelopeError, match=reason):
        parse(frame)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (pack_reply(ID, Kind.REPLY, 1, b"body"), Reply(Kind.REPLY, b"body", 1)),
        (pack_reply(ID, Kind.REPLY, 0, b""), Reply(Kind.REPLY, b"", 0)),
        (pack_reply(ID, Kind.ITEM, 255, b""), Reply(Kind.ITEM, b"", 255)),
        (pack_reply(ID, Kind.END, 0, b""), Reply(Kind.END, b"", 0)),
        (pack_failure(ID, 409, "no such symbol"), Reply(Kind.FAILED, b"no such symbol", 409)),
        (prefix(Kind.FAILED) + pack(">H", 500) + b"x" * 5000, Reply(Kind.FAILED, b"x" * REFUSAL_TEXT, 500)),
    ],
)
def test_a_reply_is_one_of_four_kinds(frame: bytes, expected: Reply) -> None:
    """A client reads replies, items, ends and failures; a long text is cut."""
    assert parse_reply(parse(frame)) == expected


@pytest.mark.parametrize(
    "frame",
    [
        request(),
        pack_cancel(ID),
        pack_credits(ID, 1),
        prefix(Kind.FAILED),
        prefix(Kind.FAILED) + b"\1",
        prefix(Kind.FAILED) + pack(">H", 0),
        prefix(Kind.FAILED) + pack(">H", 99),
        prefix(Kind.FAILED) + pack(">H", 1000),
    ],
)
def test_anything_else_is_no_reply(frame: bytes) -> None:
    """Frames of clients, and failures without a code of three digits, are refused."""
    with pytest.raises(EnvelopeError):
        parse_reply(parse(frame))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((b"body",), Reply(Kind.REPLY, b"body", 0)),
        ((b"",), Reply(Kind.REPLY, b"", 0)),
        ((b"", b"409", b"no"), Reply(Kind.FAILED, b"no", 409)),
        ((b"", b"500", b"x" * 5000), Reply(Kind.FAILED, b"x" * REFUSAL_TEXT, 500)),
    ],
)
def test_a_plain_server_replies_or_fails(parts: Parts, expected: Reply) -> None:
    """One part is a reply; an empty part, three digits and a text are a failure."""
    assert parse_plain_reply(parts) == expected


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"body", b"more"),
        (b"body", b"400", b"text"),
        (b"", b"40", b"text"),
        (b"", b"4000", b"text"),
        (b"", b"-40", b"text"),
        (b"", "٤٠".encode(), b"text"),
        (b"", b"404", b"text", b"more"),
    ],
)
def test_other_parts_are_no_plain_reply(parts: Parts) -> None:
    """Codes that are not three digits, and further parts, are refused."""
    with pytest.raises(EnvelopeError):
        parse_plain_reply(parts)


@pytest.mark.parametrize("seconds", [None, 0.001, 2.0, 4_294_967.294])
@pytest.mark.parametrize("window", [0, 1, 128, 0xFFFF])
def test_limits_are_read_as_they_were_packed(seconds: float | None, window: int) -> None:
    """The time to the millisecond, and the window."""
    assert parse_request(parse(request(seconds, window)))[:2] == (seconds, window)


@pytest.mark.parametrize("rest", [b"", b"\0\0\0\1", b"\0\0\0\1\0", pack(">IH", 0, 0) + b"a\0"])
def test_limits_of_another_form_are_refused(rest: bytes) -> None:
    """They are incomplete, or leave no time."""
    with pytest.raises(EnvelopeError):
        parse_request(parse(prefix(Kind.REQUEST) + rest))


@pytest.mark.parametrize(
    ("number", "allowed"),
    [(0, 0), (1, 1), (MAX_CREDIT, MAX_CREDIT), (MAX_CREDIT + 1, MAX_CREDIT), (0xFFFFFFFF, MAX_CREDIT)],
)
def test_credits_are_bounded(number: int, allowed: int) -> None:
    """A client allows any number, of which the server takes at most MAX_CREDIT."""
    assert parse_credits(parse(pack_credits(ID, number))) == allowed


@pytest.mark.parametrize("rest", [b"", b"\0" * 3, b"\0" * 8])
def test_credits_of_another_length_are_refused(rest: bytes) -> None:
    """They have four bytes."""
    with pytest.raises(EnvelopeError, match=f"credits of {len(rest)} bytes"):
        parse_credits(parse(prefix(Kind.CREDITS) + rest))


@pytest.mark.parametrize("topic", [b"", b"a\0b", b"x" * (MAX_TOPIC + 1)])
def test_a_topic_that_no_request_has_is_refused(topic: bytes) -> None:
    """An empty topic, a NUL and too many bytes are malformed; other bytes are a topic."""
    check_topic(b"\xff" * MAX_TOPIC)
    with pytest.raises(EnvelopeError):
        check_topic(topic)


@pytest.mark.parametrize("frame", [b"", b"a", b"\0", b"\0a", b"x" * (MAX_TOPIC + 1) + b"\0"])
def test_a_frame_without_a_topic_is_refused(frame: bytes) -> None:
    """A topic ends at the first NUL, and has 1 to 255 bytes."""
    assert topic_of(b"x" * MAX_TOPIC + b"\0body\0") == b"x" * MAX_TOPIC
    with pytest.raises(EnvelopeError):
        topic_of(frame)


def test_the_text_of_a_failure_is_cut_between_characters() -> None:
    """The text has at most REFUSAL_TEXT bytes, and stays UTF-8, also with lone surrogates."""
    for made in (plain_failure(500, "é" * REFUSAL_TEXT)[2], pack_failure(ID, 500, "é" * REFUSAL_TEXT)[24:]):
        assert len(made) <= REFUSAL_TEXT
        assert set(made.decode()) == {"é"}
    assert plain_failure(500, "x" + "é" * REFUSAL_TEXT)[2].decode().startswith("xé")
    assert plain_failure(500, "\udcff")[2] == pack_failure(ID, 500, "\udcff")[24:] == b"\\udcff"


# -- any bytes -------------------------------------------------------------------------------------------

READERS: list[Callable[[bytes], object]] = [
    parse,
    topic_of,
    check_topic,
    *(
        lambda given, read=read, kind=kind: read(parse(prefix(kind) + given))  # type: ignore[misc]
        for read in (parse_reply, parse_request, parse_credits)
        for kind in Kind
    ),
    lambda given: parse(MAGIC + given),
    lambda given: topic_of(parse_request(parse(prefix(0) + b"\1" * 6 + given))[2]),
]


@pytest.mark.parametrize("read", READERS)
@given(frame=st.one_of(st.binary(max_size=60), st.sampled_from([b"a\0b", MAGIC, request(), b""])))
def test_no_bytes_raise_another_error(read: Callable[[bytes], object], frame: bytes) -> None:
    """Each reader accepts any bytes, or raises EnvelopeError."""
    with suppress(EnvelopeError):
        read(frame)


@given(parts=st.lists(st.one_of(st.binary(max_size=9), st.sampled_from([b"", b"400"])), max_size=5))
def test_no_parts_raise_another_error(parts: list[bytes]) -> None:
    """A plain reply is any one part, a failure, or malformed."""
    with suppress(EnvelopeError):
        parse_plain_reply(parts)


@given(seconds=st.floats(allow_nan=False), window=st.integers(0, 0xFFFF))
def test_any_time_can_be_packed(seconds: float, window: int) -> None:
    """Negative and huge times become a time that a server accepts."""
    found, room, _ = parse_request(parse(request(seconds, window)))
    assert found is not None
    assert found >= 0.001
    assert room == window


@given(code=st.integers(100, 999), text=st.text())
def test_a_failure_is_read_as_it_was_made(code: int, text: str) -> None:
    """Code and text arrive in both forms; the text may be cut and escaped."""
    for read in (parse_reply(parse(pack_failure(ID, code, text))), parse_plain_reply(plain_failure(code, text))):
        assert (read.kind, read.number) == (Kind.FAILED, code)
        read.body.decode()
