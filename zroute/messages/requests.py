"""The wire format of requests and replies; see docs/reference/wire.md.

A message begins with the identities and the empty part that ROUTER sockets use. The rest has one of two forms:

- **plain**, for REQ, DEALER and REP sockets in any language: a request is ``topic, body``; a reply is ``body``; a
  failure is ``"", code, text``. The plain form has no timeouts, no streams and no cancellation.
- **one frame**, between zroute apps: a prefix with a magic number, the kind, the codec and the id of the request. The
  fields that the kind needs follow. A request ends with a frame of the tracked wire (`zroute.messages.wire`).

A message with several parts costs much more than a message with one, so the second form uses a single frame. Peers
choose the bytes of a message, so the functions that parse bytes raise only EnvelopeError. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from zroute.errors import EnvelopeError
from zroute.logs import printable
from zroute.messages.wire import FIXED, NUL, Flags, pack_head, pack_headers
from zroute.options import MAX_CREDIT, MAX_TOPIC, REFUSAL_TEXT

__all__ = [
    "MAGIC",
    "Kind",
    "Message",
    "Reply",
    "check_topic",
    "milliseconds",
    "pack_cancel",
    "pack_credits",
    "pack_failure",
    "pack_reply",
    "parse",
    "parse_credits",
    "parse_plain_reply",
    "parse_reply",
    "parse_request",
    "plain_failure",
    "refusal_text",
    "request_packer",
    "seconds_left",
    "topic_of",
]

MAGIC = b"\xc1ZQ"
"""The start of a frame. msgpack never uses the byte 0xC1, and no JSON or UTF-8 text starts with it."""
_VERSION = 1
_NO_LIMIT = 0xFFFFFFFF  # the milliseconds field of a request without a timeout

_PREFIX = Struct(">3sBBB16s")  # magic number, version, kind, codec, id
_START = Struct(">6s16s")  # the same, but with the first four fields as one field
_REQUEST = Struct(">6s16sIH")  # the first four fields, id, milliseconds, window of a stream
_LIMITS = Struct(">IH")
_CREDITS = Struct(">I")
_CODE = Struct(">H")


class Kind(IntEnum):
    """The kind of a frame.

    A client sends the first three kinds, and a server sends the others.
    """

    REQUEST = 0
    CANCEL = 1
    CREDITS = 2
    REPLY = 3
    ITEM = 4
    END = 5
    FAILED = 6


_REPLY_KIND, _FAILED_KIND = int(Kind.REPLY), int(Kind.FAILED)


def _start(kind: Kind, codec: int = 0) -> bytes:
    return MAGIC + bytes((_VERSION, kind, codec))


class Message(NamedTuple):
    """A frame without its prefix.

    Attributes:
        kind: The kind, as a number.
        codec: The number of the codec; 0 if none is stated.
        id: The id of the request.
        rest: The bytes after the prefix.
    """

    kind: int
    codec: int
    id: bytes
    rest: bytes


class Reply(NamedTuple):
    """A message from a server about a request.

    Attributes:
        kind: REPLY, ITEM, END or FAILED, as a number.
        body: The encoded value, or the text of a failure as UTF-8.
        number: The number of the codec, or the code of a failure; 0 if no codec is stated.
    """

    kind: int
    body: bytes
    number: int


def parse(frame: bytes) -> Message:
    """Split a frame into its fields.

    Raises:
        EnvelopeError: The frame is too short, or the magic number, version or kind is unknown.
    """
    if len(frame) < _PREFIX.size:
        raise EnvelopeError(f"a frame of {len(frame)} bytes; expected at least {_PREFIX.size}")
    magic, version, kind, codec, id = _PREFIX.unpack_from(frame)
    if magic != MAGIC:
        raise EnvelopeError("a frame without the magic number of requests (C1 5A 51)")
    if version != _VERSION:
        raise EnvelopeError(f"a frame of version {version}; expected version {_VERSION}")
    if kind > _FAILED_KIND:
        raise EnvelopeError(f"a frame of the unknown kind {kind}")
    return Message(kind, codec, id, frame[_PREFIX.size :])


# -- the client ------------------------------------------------------------------------------------------


def request_packer(epoch: int, clock_ns: Callable[[], int]) -> Callable[..., bytes]:
    """Return a function that packs requests.

    The function raises EncodeError for headers that the wire can't carry. The arguments are:

    - the id,
    - the topic,
    - the number of the codec,
    - the encoded message,
    - the headers, or None,
    - the seconds left, or None,
    - the maximum number of unconsumed items (0 for a single reply).

    Args:
        epoch: The 64-bit number of this run of the client.
        clock_ns: A function that returns nanoseconds since the Unix epoch.
    """
    start, pack, pack_fixed = _start(Kind.REQUEST), _REQUEST.pack, FIXED.pack
    heads = [pack_head(codec=codec, epoch=epoch) for codec in range(256)]

    def pack_request(
        id: bytes,
        topic: bytes,
        number: int,
        body: bytes,
        headers: Mapping[str, Any] | None,
        seconds: float | None,
        window: int,
    ) -> bytes:
        head, behind = heads[number], b""
        if headers:
            head, behind = pack_head(codec=number, flags=Flags.HEADERS, epoch=epoch), pack_headers(headers)
        return (
            pack(start, id, milliseconds(seconds), window)
            + topic
            + NUL
            + pack_fixed(head, 0, clock_ns())
            + behind
            + body
        )

    return pack_request


@lru_cache  # most requests of a program have the same timeout
def milliseconds(seconds: float | None) -> int:
    """Return the time left as the wire states it.

    It is at least 1, because a server refuses a request with 0 milliseconds left.
    """
    return _NO_LIMIT if seconds is None else int(min(max(seconds * 1000, 1), _NO_LIMIT - 1))


def pack_cancel(id: bytes) -> bytes:
    """Return the frame that cancels a request: its caller no longer waits."""
    return _START.pack(_start(Kind.CANCEL), id)


def pack_credits(id: bytes, number: int) -> bytes:
    """Return the frame that allows a server to send ``number`` more items."""
    return _START.pack(_start(Kind.CREDITS), id) + _CREDITS.pack(number)


def parse_reply(message: Message) -> Reply:
    """Return the reply in a message from a server.

    Raises:
        EnvelopeError: The message is not from a server, or the code of a failure is malformed.
    """
    kind, codec, _, rest = message
    if kind == _FAILED_KIND:
        if len(rest) < _CODE.size:
            raise EnvelopeError("a failure without a code")
        code = _CODE.unpack_from(rest)[0]
        if not 100 <= code <= 999:
            raise EnvelopeError(f"a failure with the code {code}; expected three digits")
        return Reply(kind, rest[_CODE.size : _CODE.size + REFUSAL_TEXT], code)
    if kind < _REPLY_KIND:
        raise EnvelopeError(f"a frame of the kind {Kind(kind).name}, which only a client sends")
    return Reply(kind, rest, codec)


def parse_plain_reply(parts: Sequence[bytes]) -> Reply:
    """Return the reply or failure from a plain server.

    Raises:
        EnvelopeError: The parts are neither a reply nor a failure.
    """
    if len(parts) == 1:
        return Reply(_REPLY_KIND, parts[0], 0)
    if len(parts) == 3 and not parts[0]:
        if len(parts[1]) == 3 and parts[1].isdigit():
            return Reply(int(Kind.FAILED), parts[2][:REFUSAL_TEXT], int(parts[1]))
        raise EnvelopeError(f"a failure with the code {printable(parts[1], 20)!r}; expected three digits")
    raise EnvelopeError(f"a reply of {len(parts)} parts; expected 1, or 3 for a failure")


# -- the server ------------------------------------------------------------------------------------------


def parse_request(message: Message) -> tuple[float | None, int, bytes]:
    """Return the seconds left, the window and the tracked frame of a request.

    The seconds are None if the client waits without a limit. The window is the maximum number of unconsumed items; 0
    asks for a single reply.

    Raises:
        EnvelopeError: The limits are incomplete, or no time is left.
    """
    rest = message.rest
    if len(rest) < _LIMITS.size:
        raise EnvelopeError(f"a request with {len(rest)} bytes after the prefix; expected at least {_LIMITS.size}")
    ms, window = _LIMITS.unpack_from(rest)
    return seconds_left(ms), window, rest[_LIMITS.size :]


def seconds_left(ms: int) -> float | None:
    """Return the seconds left of a request; see `milliseconds`.

    Raises:
        EnvelopeError: No time is left.
    """
    if not ms:
        raise EnvelopeError("a request with 0 milliseconds left; expected at least 1")
    return None if ms == _NO_LIMIT else ms / 1000


def topic_of(frame: bytes) -> bytes:
    """Return the topic of a tracked frame.

    Raises:
        EnvelopeError: The frame has no topic, or a topic that is too long.
    """
    end = frame.find(NUL, 0, MAX_TOPIC + 1)
    if end < 1:
        raise EnvelopeError(
            f"a request without a valid topic; expected a topic of 1 to {MAX_TOPIC} bytes, followed by a NUL"
        )
    return frame[:end]


def check_topic(topic: bytes) -> None:
    """Raise EnvelopeError if the topic of a plain request is not a valid topic."""
    if not 0 < len(topic) <= MAX_TOPIC or NUL in topic:
        raise EnvelopeError(f"a topic of {len(topic)} bytes; expected 1 to {MAX_TOPIC} bytes without NUL")


def parse_credits(message: Message) -> int:
    """Return the number of credits in a message.

    Raises:
        EnvelopeError: The number is incomplete.
    """
    if len(message.rest) != _CREDITS.size:
        raise EnvelopeError(f"credits of {len(message.rest)} bytes; expected {_CREDITS.size}")
    number: int = _CREDITS.unpack(message.rest)[0]
    return min(number, MAX_CREDIT)


def pack_reply(id: bytes, kind: Kind, number: int, body: bytes) -> bytes:
    """Return the frame of a reply, an item or an end."""
    return _START.pack(_STARTS[kind][number], id) + body


_STARTS = {kind: [_start(kind, codec) for codec in range(256)] for kind in (Kind.REPLY, Kind.ITEM, Kind.END)}


def pack_failure(id: bytes, code: int, text: str) -> bytes:
    """Return the frame of a failure. This function escapes and cuts the text."""
    return _START.pack(_start(Kind.FAILED), id) + _CODE.pack(code) + refusal_text(text)


def plain_failure(code: int, text: str) -> tuple[bytes, bytes, bytes]:
    """Return the parts of a failure for a plain client."""
    return b"", b"%03d" % code, refusal_text(text)


def refusal_text(text: str) -> bytes:
    """Return the text of a failure as UTF-8, escaped and cut."""
    return text.encode("utf-8", "backslashreplace")[:REFUSAL_TEXT].decode("utf-8", "ignore").encode()
