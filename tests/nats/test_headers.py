"""Headers of NATS messages: what zroute sends, what it reads, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.test_wire import Counted
from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.wire import NUL, counted_framer, parse
from zroute.nats.headers import (
    BLOCK_MAX,
    check_headers,
    frame_of,
    message_of,
    pack_service_error,
    parse_block,
)
from zroute.options import HEADERS_MAX

NOW = 1_700_000_000_000_000_000


def framed(headers: dict[str, Any] | None = None, body: bytes = b"body", *, keeps: bool = False) -> bytes:
    """Return a frame of the tracked wire with the number of its topic."""
    count = lambda topic: (Counted(len(topic), 7),)  # noqa: E731
    frame = counted_framer(epoch=5, count=count, clock_ns=lambda: NOW, keeps=keeps)(b"a.b", 2, body, headers)
    assert isinstance(frame, bytes)
    return frame


def read(block: bytes | None, payload: bytes = b"B") -> bytes:
    """Return the frame of a received message with the subject ``a``."""
    return frame_of(b"a", block, payload, lambda: NOW)


def refused(block: bytes) -> bool:
    """Return True if a message with these headers becomes a malformed frame."""
    with pytest.raises(EnvelopeError):
        parse((read(block),), 1.0)
    return True


NAMES = st.text("abcXYZ019-_.!", min_size=1, max_size=12).filter(lambda name: name.lower() != "zr")
VALUES = st.text(max_size=20).map(str.strip).filter(lambda text: not set("\r\n\0") & set(text) and text.isprintable())


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.binary(max_size=50), st.booleans())
def test_a_message_arrives_as_it_was_framed(headers: dict[str, str], body: bytes, keeps: bool) -> None:
    """Number, time, codec, headers and body survive, and the payload is the clean body."""
    frame = framed(headers, body, keeps=keeps)
    subject, block, payload = message_of(frame)
    assert (subject, payload) == (b"a.b", body)
    assert frame_of(subject, block, payload, lambda: 0) == frame


def test_the_own_header_is_first_and_readable() -> None:
    """The tracked header travels as 64 hexadecimal digits in the first line."""
    lines = message_of(framed({"user": "ann"}))[1].split(b"\r\n")
    assert lines[0] == b"NATS/1.0"
    assert lines[1] == b"Zr: c15a520100020003" + b"%016x%016x%016x" % (5, 7, NOW)
    assert lines[2:] == [b"user: ann", b"", b""]


def test_a_plain_frame_has_no_headers() -> None:
    """A frame of the plain wire becomes a message without headers, and back."""
    assert message_of(b"a\0body") == (b"a", b"", b"body")
    assert read(None) == read(b"") == b"a\0B"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"a b": "x"}, "expected a name of ASCII letters"),
        ({"": "x"}, "expected a name of ASCII letters"),
        ({"é": "x"}, "expected a name of ASCII letters"),
        ({"a:": "x"}, "expected a name of ASCII letters"),
        ({"a\r\nb": "x"}, "expected a name of ASCII letters"),
        ({5: "x"}, "the name must be text, not int"),
        ({"zr": "x"}, "choose another name"),
        ({"a": 5}, "the value 5 is not text"),
        ({"a": b"x"}, "is not text"),
        ({"a": "x\r\ny"}, "contains a line break"),
        ({"a": "x\ny"}, "contains a line break"),
        ({"a": " x"}, "begins or ends with white space"),
        ({"a": "x\t"}, "begins or ends with white space"),
        ({"a": "\udc80"}, "lone surrogates"),
    ],
)
def test_headers_that_nats_would_change_are_refused(headers: dict[Any, Any], reason: str) -> None:
    """The error at the caller names the header and the reason."""
    with pytest.raises(EncodeError, match=reason) as caught:
        check_headers(headers)
    assert repr(next(iter(headers))) in str(caught.value)


def test_too_many_headers_are_refused() -> None:
    """The limit is that of the tracked wire."""
    with pytest.raises(EncodeError, match=r"have 4100 bytes; expected at most 4096"):
        check_headers({"a": "x" * (HEADERS_MAX - 1)})


def test_headers_of_other_programs_are_read() -> None:
    """A foreign message with headers has the time of arrival, and no number."""
    envelope = parse((read(b"NATS/1.0\r\nA: x\r\nB:y\r\nA:\tz \r\nC: \xff\r\nD:\r\n\r\n"),), 1.0)
    assert envelope.headers == {"A": ["x", "z"], "B": "y", "C": b"\xff", "D": ""}
    assert (envelope.body, envelope.sequence, envelope.sent_at, envelope.publisher) == (b"B", 0, NOW / 1e9, "0" * 16)


@pytest.mark.parametrize(
    ("line", "status", "description"),
    [(b"NATS/1.0 503", 503, ""), (b"NATS/1.0 100 Idle Heartbeat", 100, "Idle Heartbeat"), (b"NATS/1.0", None, "")],
)
def test_status_lines_are_read(line: bytes, status: int | None, description: str) -> None:
    """A status line has three digits and a text, or neither."""
    block = parse_block(line + b"\r\n\r\n")
    assert (block.status, block.description) == (status, description)
    assert read(line + b"\r\n\r\n") == b"a\0B"


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0",
        b"NATS/1.0\r\n",
        b"NATS/2.0\r\n\r\n",
        b"NATS/1.0 5\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\n: x\r\n\r\n",
        b"NATS/1.0\r\nA: x\r\n y\r\n\r\n",
        b"NATS/1.0\r\nA : x\r\n\r\n",
        b"NATS/1.0\r\n\xff: x\r\n\r\n",
        b"NATS/1.0\r\nA: x\r\n",
        b"NATS/1.0\r\nZr: " + b"zz" * 32 + b"\r\n\r\n",
        b"NATS/1.0\r\nZr: c15a52" + b"zz" * 29 + b"\r\n\r\n",
        b"NATS/1.0\r\nZr: c15a52\r\n\r\n",
        b"NATS/1.0\r\nA: x\r\nZr: c15a52010001" + b"00" * 26 + b"\r\n\r\n" + b"x",
        b"NATS/1.0\r\nA: x\r\nZr: c15a520100010100" + b"00" * 24 + b"\r\n\r\n",
        b"NATS/1.0\r\nA: " + b"x" * BLOCK_MAX + b"\r\n\r\n",
        b"NATS/1.0\r\nA: " + b"x" * HEADERS_MAX + b"\r\n\r\n",
    ],
)
def test_malformed_headers_make_a_malformed_frame(block: bytes) -> None:
    """The receiving loop refuses the frame, and nothing else is raised."""
    assert refused(block)


@given(
    st.binary(max_size=120)
    | st.lists(st.sampled_from([b"NATS/1.0", b"\r\n", b"Zr: ", b"c15a52", b"00" * 29, b":", b"A", b" "])).map(b"".join)
)
def test_any_bytes_are_read_or_refused(block: bytes) -> None:
    """No input raises anything but EnvelopeError."""
    try:
        parse_block(block)
    except EnvelopeError:
        assert not block or refused(block)
    assert read(block).startswith(b"a" + NUL)


def test_failures_of_services_go_both_ways() -> None:
    """zroute writes and reads the error headers of NATS services."""
    assert parse_block(pack_service_error(404, "no\r\nhandler")).service_error == (404, "no handler")
    assert len(pack_service_error(500, "é" * 5000)) < 1200
    assert parse_block(b"NATS/1.0\r\nNats-Service-Error: x\r\n\r\n").service_error == (500, "x")
    assert parse_block(b"NATS/1.0\r\nNats-Service-Error-Code: 9x\r\n\r\n").service_error == (500, "")
    assert parse_block(b"NATS/1.0\r\nA: x\r\n\r\n").service_error is None
