"""Convert between bytes and envelopes: the three wire forms of zroute.

This module only converts bytes; it opens no socket. ``docs/reference/wire.md`` specifies the layout and the rules for
malformed input, with test vectors. `RouteTable.receive` implements the layout a second time: one more function call
per message would cost a tenth of its time.

========= ================================= ==================================================
wire      frames                            for
========= ================================= ==================================================
plain     ``topic NUL body``                txZMQ, and peers that split at the first NUL
multipart ``[topic, body]``                 ZeroMQ peers in any language
tracked   ``topic NUL header body``         zroute: codec, sequence numbers, time, headers
========= ================================= ==================================================

The tracked wire also has control frames (`zroute.messages.control`), coalesced frames (`zroute.messages.coalesced`),
and frames with kept messages. A publisher keeps a topic's last message for subscribers that join later.
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
"""The start of a tracked header. msgpack never uses the byte 0xC1, and no JSON or UTF-8 text starts with it."""
VERSION = 1

_HEAD = Struct(">3sBBBBBQ")  # magic, version, kind, codec, flags, span, epoch
FIXED = Struct(">16sQq")  # the head as one piece, sequence, time sent
_LENGTH = Struct(">I")
COUNTER = Struct(">BQ")  # length of the prefix, number
HEAD_SIZE = _HEAD.size
HEADER_SIZE = FIXED.size
SENT_AT = HEADER_SIZE - 8  # the offset of the time in a header
# The longest header: the fixed part, 15 further counters (four bits of the flags), and the application's headers.
HEADER_MAX = FIXED.size + 15 * COUNTER.size + _LENGTH.size + HEADERS_MAX


class Kind(IntEnum):
    """The kind of a tracked frame.

    DATA, COALESCED and KEPT carry messages; JOIN, BEAT and GOODBYE are control frames.
    """

    DATA = 0
    JOIN = 1
    BEAT = 2
    GOODBYE = 3
    COALESCED = 4
    KEPT = 5


class Flags(IntFlag):
    """The flags of a tracked header.

    HEADERS: the application's headers follow the counters. KEEPS: the publisher keeps this message for subscribers that
    join later. The four bits above hold the number of further counters.
    """

    HEADERS = 0x01
    KEEPS = 0x02


COUNTERS_SHIFT = 4


class Numbered(Protocol):
    """A counter in a frame: a subscription and the number of this message in it.

    ``length`` is the length of the subscription in bytes.
    """

    @property
    def length(self) -> int: ...  # noqa: D102

    @property
    def number(self) -> int: ...  # noqa: D102


@attrs.frozen(slots=True)
class Header:
    """A parsed and validated tracked header.

    Attributes:
        kind: the kind of the frame.
        codec: the number of the codec, or 0 if the publisher states none.
        epoch: the 64-bit number of this run of the publisher.
        counters: for each subscription that counts the frame, its length in bytes of the topic and the number of the
            frame. Shorter subscriptions come first. There is at least one pair; its number is 0 if no subscription
            counts the frame.
        sent_at: nanoseconds since the Unix epoch, by the publisher's clock.
        headers: the application's headers.
        size: the length of the header in bytes; the body starts there.
        keeps: True if the publisher keeps the message for subscribers that join later.
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
        """The length in bytes of the first counter's subscription."""
        return self.counters[0][0]

    @property
    def sequence(self) -> int:
        """The number of the frame in the first counter's subscription."""
        return self.counters[0][1]

    def number(self, length: int) -> int:
        """Return the number of this frame in the subscription of ``length`` bytes.

        The result is 0 if the frame carries no such number.
        """
        for span, number in self.counters:
            if span == length:
                return number
        return 0


@attrs.frozen(slots=True)
class Envelope:
    """A received message, for handlers with a parameter of this type.

    Attributes:
        topic: the topic as text; bytes that are not UTF-8 become surrogate escapes.
        body: the encoded message, without topic and header.
        frames: all parts of the message, unchanged.
        received_at: seconds since the Unix epoch, by the receiver's clock.
        codec: the number of the codec that the publisher stated, or 0 if it stated none. 1 is msgpack, 2 JSON, 3 text,
            4 raw; the application's own codecs are 128 to 255.
        sent_at: seconds since the Unix epoch, by the publisher's clock; None unless ``tracked``.
        sequence: the number of the message in the subscription; None unless ``tracked``. It is 0 for kept messages, and
            for messages that were sent before the publisher knew the subscription.
        publisher: the epoch of the publisher's run as 16 hexadecimal digits; None unless ``tracked``.
        tracked: True if the message arrived on the tracked wire.
        headers: the application's headers; empty unless ``tracked``.
        kept: True if the message was sent before this app joined. Its publisher keeps it for new subscribers.
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


# -- encode frames --------------------------------------------------------------------------------------


def pack_head(*, kind: Kind = Kind.DATA, codec: int, flags: int = 0, span: int = 0, epoch: int) -> bytes:
    """Return the first 16 bytes of a tracked header, which many messages share."""
    return _HEAD.pack(MAGIC, VERSION, kind, codec, flags, span, epoch)


def framer(wire: Wire, *, epoch: int, next_sequence: Callable[[], int], clock_ns: Callable[[], int]) -> Framer:
    """Return the function that packs a message into the frames of ``wire``.

    The function takes the topic, the codec number, the body and the headers. It raises EncodeError for headers that the
    wire can't carry. On the plain and multipart wires it also raises EncodeError for a body that starts with `MAGIC`.

    Args:
        wire: "plain", "multipart" or "tracked".
        epoch: the 64-bit number of this run of the publisher.
        next_sequence: counts a message and returns its number, from 1.
        clock_ns: returns nanoseconds since the Unix epoch.
    """
    if wire == "tracked":
        return _tracked_framer(epoch, next_sequence, clock_ns)
    join: Callable[[bytes, bytes], Frames] = _plain if wire == "plain" else _multipart

    def frame(topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> Frames:
        if headers:
            raise EncodeError(f"headers travel on the tracked wire only, but this publisher uses wire={wire!r}")
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
    heads = [pack_head(codec=codec, epoch=epoch) for codec in range(256)]  # once, not for each message

    def frame(topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> bytes:
        if headers:
            packed = pack_headers(headers)
            head = pack_head(codec=codec, flags=Flags.HEADERS, epoch=epoch)
            return topic + NUL + pack(head, next_sequence(), clock_ns()) + packed + body
        return topic + NUL + pack(heads[codec], next_sequence(), clock_ns()) + body

    return frame


def pack_headers(headers: Mapping[str, Any]) -> bytes:
    """Return the headers of a message with their length.

    Raises EncodeError if a name is not text, a value is not a msgpack type, or the headers exceed `HEADERS_MAX` bytes.
    """
    for key in headers:
        if not isinstance(key, str):
            raise EncodeError(f"header {key!r}: the name of a header is text, not {type(key).__name__}")
    try:
        packed: bytes = msgpack.packb(dict(headers), strict_types=True)
        msgpack.unpackb(packed)  # a reader refuses a key that is not text or bytes, at any depth
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodeError(f"headers {headers!r} can't be packed as msgpack: {error}") from error
    if len(packed) > HEADERS_MAX:
        raise EncodeError(f"the headers take {len(packed)} bytes of at most {HEADERS_MAX}: move data into the body")
    return _LENGTH.pack(len(packed)) + packed


def counted_framer(
    *, epoch: int, count: Callable[[bytes], Sequence[Numbered]], clock_ns: Callable[[], int], keeps: bool = False
) -> Framer:
    """Return a tracked framer that numbers each message per subscription.

    See `framer` for the arguments of the function.

    Args:
        epoch: the 64-bit number of this run of the publisher.
        count: ``count(topic)`` counts the message and returns up to `zroute.options.CARRIED` counters, by ascending
            length of their subscription. Without counters, the message has no number. It is called last, after
            everything that can fail.
        clock_ns: returns nanoseconds since the Unix epoch.
        keeps: True if the publisher keeps the messages for subscribers that join later.
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
        if len(counters) == 1 and not behind:  # the common case needs no join of optional parts
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
    """Return a function that packs the bytes before a body of one topic and codec.

    The function takes the number of the first counter (0 without counters), the time, and the length and number of each
    further counter. The header has no application headers.

    Args:
        topic: the topic.
        codec: the number of the codec.
        lengths: the lengths of the counted subscriptions, ascending.
        epoch: the 64-bit number of this run of the publisher.
        keeps: True if the publisher keeps the messages for subscribers that join later.
    """
    flags = max(len(lengths) - 1, 0) << COUNTERS_SHIFT | (Flags.KEEPS if keeps else 0)
    head = topic + NUL + _heads_of_data(epoch)[(lengths[0] << 16 if lengths else 0) | flags << 8 | codec]
    return partial(Struct(f">{len(head)}sQq" + "BQ" * (len(lengths) - 1)).pack, head)


HeaderMaker: TypeAlias = Callable[[Sequence[Numbered], int], bytes]


@lru_cache(maxsize=256)  # bounded, because subscribers choose the lengths
def several_numbers(lengths: Sequence[int]) -> Callable[[Callable[..., bytes]], HeaderMaker]:
    """Return a function that adapts a `topic_header` to counters of these lengths.

    The adapted function takes the counters and the time. The lengths are written into generated code. For four
    counters, that takes a third of the time of a loop over them.
    """
    further = "".join(f", {length}, c[{at}].number" for at, length in enumerate(lengths) if at)
    made: Callable[[Callable[..., bytes]], HeaderMaker] = eval(
        f"lambda header: lambda c, sent_at: header({'c[0].number' if lengths else 0}, sent_at{further})"
    )
    return made


class Heads(dict[int, bytes]):
    """The first 16 bytes of headers, by span, flags and codec.

    An entry is created when it is first needed. A run needs a few dozen of them.
    """

    def __init__(self, kind: Kind, epoch: int) -> None:
        self._kind = kind
        self._epoch = epoch

    def __missing__(self, key: int) -> bytes:
        span, flags, codec = key.to_bytes(3)
        head = self[key] = pack_head(kind=self._kind, codec=codec, flags=flags, span=span, epoch=self._epoch)
        return head


@lru_cache(maxsize=16)  # one entry per running publisher of this process, shared by its topics
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
    """Return the frame that sends the last message of ``topic`` to a new subscriber.

    Args:
        marker: the marker that the subscriber sent.
        number: the number of this frame in the answer to the marker, from 1. The frame after the last message has an
            empty topic.
        topic: the topic of the message.
        codec: the number of the codec.
        body: the encoded message.
        headers: the application's headers, if any.
        epoch: the 64-bit number of this run of the publisher.
        sent_at: nanoseconds since the Unix epoch at which the message was first sent.

    Raises:
        EncodeError: the wire can't carry the headers.
    """
    packed = pack_headers(headers) if headers else b""
    head = pack_head(kind=Kind.KEPT, codec=codec, flags=int(Flags.HEADERS) if packed else 0, epoch=epoch)
    return marker + NUL + FIXED.pack(head, number, sent_at) + packed + topic + NUL + body


# -- decode frames --------------------------------------------------------------------------------------


def split(frames: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Return the topic and the body of a message; a tracked body includes its header.

    A message of one frame is ``topic NUL body``. Of several frames, the first is the topic and the second the body; the
    others appear only in `Envelope.frames`.

    Raises EnvelopeError for anything else.
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
    """Return the Envelope of a message; ``received_at`` is in Unix seconds.

    Raises EnvelopeError if the message is malformed.
    """
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
    """Return when a valid message was sent, in Unix seconds by its publisher's clock.

    The result is None if the message does not carry a time.
    """
    body = split(frames)[1]
    return FIXED.unpack_from(body)[2] / 1e9 if body.startswith(MAGIC) else None


def parse_header(body: bytes) -> Header:
    """Parse and validate the tracked header at the start of ``body``.

    ``body`` starts with `MAGIC`. Raises EnvelopeError if the version, kind, flags, length or headers are invalid.
    """
    if len(body) < HEADER_SIZE:
        raise EnvelopeError(f"a tracked header of {len(body)} bytes, of {HEADER_SIZE}")
    head, sequence, sent_at = FIXED.unpack_from(body)
    _magic, version, kind, codec, flags, span, epoch = _HEAD.unpack(head)
    if version != VERSION:
        raise EnvelopeError(f"a tracked header of version {version}; this reader knows {VERSION}")
    if kind not in Kind.__members__.values():
        raise EnvelopeError(f"a tracked header of unknown kind {kind}")
    if flags & 0x0F & ~int(Flags.HEADERS | Flags.KEEPS):  # int(): ~ of a Flag keeps only the named members
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
    except Exception as error:  # msgpack raises many kinds of errors, and each means a malformed peer message
        raise EnvelopeError("headers that are no msgpack map") from error
    if not isinstance(headers, dict) or not all(isinstance(key, str) for key in headers):
        raise EnvelopeError("headers that are no msgpack map with text keys")
    return headers, end


def parse_kept(body: bytes) -> tuple[bytes, bytes]:
    """Return the topic and the body of the message in a KEPT frame.

    ``body`` follows the header. Raises EnvelopeError if the topic does not end.
    """
    topic, nul, message = body.partition(NUL)
    if not nul:
        raise EnvelopeError("a kept message without a NUL after its topic")
    return topic, message
