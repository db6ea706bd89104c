"""Bytes to Envelope and back: the three wire forms and the rules for malformed input.

Sans-IO: frames come in as bytes and go out as bytes; whoever holds a socket moves them. The layout is
specified, with test vectors, in ``docs/reference/wire.md``; `RouteTable.receive` knows it too, because one
function call per message would cost a tenth of the message.

======== ======================================= ==========================================
wire     frames                                  for
======== ======================================= ==========================================
plain    ``topic NUL body``                      txZMQ, and whoever splits at the first NUL
multipart ``[topic, body]``                      ZeroMQ peers in any language
tracked  ``topic NUL header body``               zroute: codec, numbers, time, headers
======== ======================================= ==========================================

The tracked wire has frames of other kinds too: control frames (`zroute.messages.control`), and kept messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import lru_cache, partial
from itertools import pairwise
from struct import Struct
from typing import Any, Literal, Protocol, TypeAlias

import attrs
import msgpack

from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.topics import Topic
from zroute.options import HEADERS_MAX, MAX_PARTS

__all__ = [
    "COUNTER",
    "COUNTERS_SHIFT",
    "FIXED",
    "HEADER_MAX",
    "HEADER_SIZE",
    "HEAD_SIZE",
    "MAGIC",
    "NUL",
    "SENT_AT",
    "WIRES",
    "Envelope",
    "Flags",
    "Framer",
    "Frames",
    "Header",
    "Heads",
    "Kind",
    "Numbered",
    "Wire",
    "counted_framer",
    "framer",
    "pack_head",
    "pack_headers",
    "pack_kept",
    "parse",
    "parse_header",
    "parse_kept",
    "sent_at",
    "several_numbers",
    "split",
    "topic_header",
]

Wire: TypeAlias = Literal["plain", "multipart", "tracked"]
Frames: TypeAlias = "bytes | tuple[bytes, ...]"
Framer: TypeAlias = Callable[[bytes, int, bytes, "Mapping[str, Any] | None"], Frames]

WIRES: tuple[Wire, ...] = ("plain", "multipart", "tracked")

NUL = b"\0"
MAGIC = b"\xc1ZR"
"""0xC1 is the one byte msgpack never uses, and no JSON or UTF-8 text starts with it."""
VERSION = 1

_HEAD = Struct(">3sBBBBBQ")  # magic, version, kind, codec, flags, span, epoch
FIXED = Struct(">16sQq")  # the head as one piece, sequence, time sent
_LENGTH = Struct(">I")
COUNTER = Struct(">BQ")  # length of the prefix, number
HEAD_SIZE = _HEAD.size
HEADER_SIZE = FIXED.size
SENT_AT = HEADER_SIZE - 8  # where the time stands in it
HEADER_MAX = FIXED.size + 15 * COUNTER.size + _LENGTH.size + HEADERS_MAX


class Kind(IntEnum):
    """What a tracked frame is for: DATA, BATCH and KEPT bring messages, the others are control."""

    DATA = 0
    JOIN = 1
    BEAT = 2
    GOODBYE = 3
    COALESCED = 4
    KEPT = 5


class Flags(IntFlag):
    """HEADERS follow; the publisher KEEPS the message for those who join. Four bits above count further counters."""

    HEADERS = 0x01
    KEEPS = 0x02


COUNTERS_SHIFT = 4


class Numbered(Protocol):
    """A counter as a frame carries it: the length of its subscription in bytes, and the number of this message."""

    @property
    def length(self) -> int: ...  # noqa: D102

    @property
    def number(self) -> int: ...  # noqa: D102


@attrs.frozen(slots=True)
class Header:
    """A tracked header, validated. ``size`` is its length in bytes: the body starts there.

    ``counters`` holds one pair for each subscription that counts the frame, the shorter subscription first: its length
    in bytes of the topic, and the number of the frame. There is at least one; its number is 0 if nothing is counted.
    ``sent_at`` is in nanoseconds since the Unix epoch, by the publisher's clock. The publisher ``keeps`` the message
    for those who join.
    """

    kind: Kind
    codec: int
    epoch: int
    counters: tuple[tuple[int, int], ...]
    sent_at: int
    headers: Mapping[str, Any]
    size: int
    keeps: bool = False

    @property
    def span(self) -> int:
        """The length of the first counter's subscription."""
        return self.counters[0][0]

    @property
    def sequence(self) -> int:
        """The number of the frame by the first counter."""
        return self.counters[0][1]

    def number(self, length: int) -> int:
        """The number of this frame in the subscription of ``length`` bytes; 0 if it carries none."""
        for span, number in self.counters:
            if span == length:
                return number
        return 0


@attrs.frozen(slots=True)
class Envelope:
    """The parsed form of one message, as handlers that declare an `Envelope` parameter receive it.

    ``topic`` as text; bytes that are no UTF-8 stand in it as surrogate escapes.
    ``body`` without topic and header; ``frames`` all parts as they came.
    ``codec`` the number of the codec the publisher named (1 msgpack, 2 JSON, 3 text, 4 raw, 128 and up the
    application's own), or 0 where it named none.
    ``received_at`` and ``sent_at`` in seconds since the Unix epoch, each by its own host's clock;
    ``sent_at``, ``sequence`` and ``publisher`` (the epoch of its run, as 16 hex digits) are None, and
    ``headers`` empty, unless the message is ``tracked``. ``kept`` is true of one that was sent before this app
    joined, and that its publisher keeps for those who join. ``sequence`` is 0 for these, and for messages that were
    sent before the publisher knew of the subscription.
    """

    topic: Topic
    body: bytes
    frames: tuple[bytes, ...]
    received_at: float
    codec: int = 0
    sent_at: float | None = None
    sequence: int | None = None
    publisher: str | None = None
    tracked: bool = False
    headers: Mapping[str, Any] = attrs.field(factory=dict)
    kept: bool = False


# -- out ------------------------------------------------------------------------------------------------


def pack_head(*, kind: Kind = Kind.DATA, codec: int, flags: int = 0, span: int = 0, epoch: int) -> bytes:
    """The constant 16 bytes of a tracked header: all that stays the same from message to message."""
    return _HEAD.pack(MAGIC, VERSION, kind, codec, flags, span, epoch)


def framer(wire: Wire, *, epoch: int, next_sequence: Callable[[], int], clock_ns: Callable[[], int]) -> Framer:
    """What turns ``(topic, codec number, body, headers)`` into the frames of ``wire``.

    ``epoch`` (64 bits) names this run of the publisher; ``next_sequence()`` counts its messages from 1;
    ``clock_ns()`` gives nanoseconds since the Unix epoch. The framer raises EncodeError for headers that
    the wire can't carry, and on the plain wires for a body that starts with the tracked magic.
    """
    if wire == "tracked":
        return _tracked_framer(epoch, next_sequence, clock_ns)
    join: Callable[[bytes, bytes], Frames] = _plain if wire == "plain" else _multipart

    def frame(topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> Frames:
        if headers:
            raise EncodeError(f"headers travel on the tracked wire only, and this publisher's is {wire!r}")
        if body.startswith(MAGIC):
            raise EncodeError(
                "the body starts with C1 5A 52, which readers take for a tracked header: publish it with wire='tracked'"
            )
        return join(topic, body)

    return frame


def _plain(topic: bytes, body: bytes) -> bytes:
    return topic + NUL + body


def _multipart(topic: bytes, body: bytes) -> tuple[bytes, bytes]:
    return topic, body


def _tracked_framer(epoch: int, next_sequence: Callable[[], int], clock_ns: Callable[[], int]) -> Framer:
    pack = FIXED.pack
    heads = [pack_head(codec=codec, epoch=epoch) for codec in range(256)]

    def frame(topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> bytes:
        if headers:
            packed = pack_headers(headers)
            head = pack_head(codec=codec, flags=Flags.HEADERS, epoch=epoch)
            return topic + NUL + pack(head, next_sequence(), clock_ns()) + packed + body
        return topic + NUL + pack(heads[codec], next_sequence(), clock_ns()) + body

    return frame


def pack_headers(headers: Mapping[str, Any]) -> bytes:
    """The headers of a message with their length; raises EncodeError for what the wire can't carry."""
    for key in headers:
        if not isinstance(key, str):
            raise EncodeError(f"header {key!r}: the name of a header is text, not {type(key).__name__}")
    try:
        packed: bytes = msgpack.packb(dict(headers), strict_types=True)
        msgpack.unpackb(packed)  # a reader would refuse the message for a key that is not text, at any depth
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodeError(f"headers {headers!r} can't be packed as msgpack: {error}") from error
    if len(packed) > HEADERS_MAX:
        raise EncodeError(f"the headers take {len(packed)} bytes, of at most {HEADERS_MAX}: put data into the body")
    return _LENGTH.pack(len(packed)) + packed


def counted_framer(
    *, epoch: int, count: Callable[[bytes], Sequence[Numbered]], clock_ns: Callable[[], int], keeps: bool = False
) -> Framer:
    """A tracked framer that numbers each message by the subscriptions that cover it.

    ``count(topic)`` counts the message and returns the counters it carries (up to `zroute.options.CARRIED`), the
    shorter subscription first; none: the message has no number. It is called last, when nothing can fail any more.
    """
    pack, pack_counter, heads = FIXED.pack, COUNTER.pack, Heads(Kind.DATA, epoch)
    always = int(Flags.KEEPS) if keeps else 0

    def frame(topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> bytes:
        flags, behind = always, b""
        if headers:
            flags, behind = always | Flags.HEADERS, pack_headers(headers)
        sent_at = clock_ns()
        counters = count(topic)
        if not counters:
            return topic + NUL + pack(heads[flags << 8 | codec], 0, sent_at) + behind + body
        first = counters[0]
        if len(counters) == 1 and not behind:
            head = heads[first.length << 16 | flags << 8 | codec]
            return topic + NUL + pack(head, first.number, sent_at) + body
        if len(counters) > 1:
            flags |= len(counters) - 1 << COUNTERS_SHIFT
            behind = b"".join([pack_counter(other.length, other.number) for other in counters[1:]]) + behind
        head = heads[first.length << 16 | flags << 8 | codec]
        return topic + NUL + pack(head, first.number, sent_at) + behind + body

    return frame


def topic_header(
    topic: bytes, codec: int, lengths: Sequence[int], *, epoch: int, keeps: bool = False
) -> Callable[..., bytes]:
    """What makes all that stands before a body of one topic and codec, without headers.

    ``lengths`` are those of the counters that it carries. It takes the number of the first (0 if there is none), the
    time, and the length and number of each further one.
    """
    flags = max(len(lengths) - 1, 0) << COUNTERS_SHIFT | (Flags.KEEPS if keeps else 0)
    head = topic + NUL + _heads_of_data(epoch)[(lengths[0] << 16 if lengths else 0) | flags << 8 | codec]
    return partial(Struct(f">{len(head)}sQq" + "BQ" * (len(lengths) - 1)).pack, head)


HeaderMaker: TypeAlias = Callable[[Sequence[Numbered], int], bytes]


@lru_cache(maxsize=256)  # which lengths there are, subscribers decide
def several_numbers(lengths: Sequence[int]) -> Callable[[Callable[..., bytes]], HeaderMaker]:
    """What has a `topic_header` take counters of these ``lengths``, and the time.

    Lengths are written into it: for four counters that is a third of what going through them takes.
    """
    further = "".join(f", {length}, c[{at}].number" for at, length in enumerate(lengths) if at)
    made: Callable[[Callable[..., bytes]], HeaderMaker] = eval(
        f"lambda header: lambda c, sent_at: header({'c[0].number' if lengths else 0}, sent_at{further})"
    )
    return made


class Heads(dict[int, bytes]):
    """The constant 16 bytes by span, flags and codec, made when they are first needed: a few dozen in practice."""

    def __init__(self, kind: Kind, epoch: int) -> None:
        self._kind = kind
        self._epoch = epoch

    def __missing__(self, key: int) -> bytes:
        span, flags, codec = key.to_bytes(3)
        head = self[key] = pack_head(kind=self._kind, codec=codec, flags=flags, span=span, epoch=self._epoch)
        return head


@lru_cache(maxsize=16)  # runs of publishers in this process: topics share them
def _heads_of_data(epoch: int) -> Heads:
    return Heads(Kind.DATA, epoch)


def pack_kept(
    marker: bytes,
    number: int,
    topic: bytes,
    codec: int,
    body: bytes,
    headers: Mapping[str, Any] | None,
    *,
    epoch: int,
    sent_at: int,
) -> bytes:
    """The frame that brings the latest message of ``topic`` to whoever sent ``marker``.

    ``number`` counts what it is given, from 1; with an empty topic that was all. Raises EncodeError.
    """
    packed = pack_headers(headers) if headers else b""
    head = pack_head(kind=Kind.KEPT, codec=codec, flags=int(Flags.HEADERS) if packed else 0, epoch=epoch)
    return marker + NUL + FIXED.pack(head, number, sent_at) + packed + topic + NUL + body


# -- in -------------------------------------------------------------------------------------------------


def split(frames: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Topic and body (with a tracked header, if it has one) of a whole message.

    One frame is ``topic NUL body``; in several, the first is the topic and the second the body, and what
    follows is kept in `Envelope.frames`. Raises EnvelopeError for anything else.
    """
    if len(frames) > MAX_PARTS:
        raise EnvelopeError(f"more than {MAX_PARTS} parts", frames=frames)
    if len(frames) > 1:
        topic, body = frames[0], frames[1]
        if NUL in topic:
            raise EnvelopeError("a part after one that was whole (it holds a NUL)", frames=frames)
        return topic, body
    topic, nul, body = frames[0].partition(NUL)
    if not nul:
        raise EnvelopeError("an empty frame" if not frames[0] else "no NUL after the topic", frames=frames)
    return topic, body


def parse(frames: tuple[bytes, ...], received_at: float) -> Envelope:
    """The Envelope of a whole message; ``received_at`` is in Unix seconds. Raises EnvelopeError."""
    topic, body = split(frames)
    if not body.startswith(MAGIC):
        return Envelope(Topic.from_wire(topic), body, frames, received_at)
    header = parse_header(body)
    body = body[header.size :]
    if kept := header.kind is Kind.KEPT:
        topic, body = parse_kept(body)
    return Envelope(
        Topic.from_wire(topic),
        body,
        frames,
        received_at,
        codec=header.codec,
        sent_at=header.sent_at / 1e9,
        sequence=0 if kept else header.counters[0][1],
        publisher=f"{header.epoch:016x}",
        tracked=True,
        headers=header.headers,
        kept=kept,
    )


def sent_at(frames: tuple[bytes, ...]) -> float | None:
    """When a valid message was sent, in Unix seconds by its publisher's clock; None if it does not say."""
    body = split(frames)[1]
    return FIXED.unpack_from(body)[2] / 1e9 if body.startswith(MAGIC) else None


def parse_header(body: bytes) -> Header:
    """Validate the tracked header at the start of ``body``, which starts with `MAGIC`.

    Raises EnvelopeError with what is broken: version, kind, flags, length or headers.
    """
    if len(body) < HEADER_SIZE:
        raise EnvelopeError(f"a tracked header of {len(body)} bytes, of {HEADER_SIZE}")
    head, sequence, sent_at = FIXED.unpack_from(body)
    _magic, version, kind, codec, flags, span, epoch = _HEAD.unpack(head)
    if version != VERSION:
        raise EnvelopeError(f"a tracked header of version {version}; this reader knows {VERSION}")
    if kind not in Kind.__members__.values():
        raise EnvelopeError(f"a tracked header of unknown kind {kind}")
    if flags & 0x0F & ~int(Flags.HEADERS | Flags.KEEPS):  # of a Flag, ~ gives only the members that have names
        raise EnvelopeError(f"a tracked header with unknown flags 0x{flags:02x}")
    counters, size = _unpack_counters(body, flags >> COUNTERS_SHIFT, span, sequence)
    headers, size = _unpack_headers(body, size) if flags & Flags.HEADERS else ({}, size)
    return Header(Kind(kind), codec, epoch, counters, sent_at, headers, size, bool(flags & Flags.KEEPS))


def _unpack_counters(body: bytes, count: int, span: int, sequence: int) -> tuple[tuple[tuple[int, int], ...], int]:
    first, end = (span, sequence), HEADER_SIZE + count * COUNTER.size
    if not count:
        return (first,), end
    if len(body) < end:
        raise EnvelopeError(f"a tracked header that ends inside its {count} further counters")
    counters = (first, *COUNTER.iter_unpack(body[HEADER_SIZE:end]))
    if any(longer <= shorter for (shorter, _), (longer, _) in pairwise(counters)):
        raise EnvelopeError("further counters whose lengths do not ascend")
    if not all(number for _, number in counters):
        raise EnvelopeError("further counters with the number 0")
    return counters, end


def _unpack_headers(body: bytes, offset: int) -> tuple[dict[str, Any], int]:
    start = offset + _LENGTH.size
    if len(body) < start:
        raise EnvelopeError("a tracked header that ends inside the length of its headers")
    (length,) = _LENGTH.unpack_from(body, offset)
    end = start + length
    if length > HEADERS_MAX or end > len(body):
        raise EnvelopeError(f"headers that claim {length} bytes, of {len(body) - start} left and {HEADERS_MAX} allowed")
    try:
        headers = msgpack.unpackb(body[start:end])
    except Exception as error:  # msgpack raises half a dozen kinds, all of them the peer's fault
        raise EnvelopeError("headers that are no msgpack map") from error
    if not isinstance(headers, dict) or not all(isinstance(key, str) for key in headers):
        raise EnvelopeError("headers that are no msgpack map with text keys")
    return headers, end


def parse_kept(body: bytes) -> tuple[bytes, bytes]:
    """Topic and body of the message in a KEPT frame, behind the header. Raises EnvelopeError."""
    topic, nul, message = body.partition(NUL)
    if not nul:
        raise EnvelopeError("a kept message without a NUL after its topic")
    return topic, message
