"""Convert between bytes and envelopes, in the three wire formats of zroute.

This module only converts bytes; it opens no socket. ``docs/reference/wire.md`` specifies the layout and the rules for
malformed input, with test vectors. `RouteTable.receive` implements the layout again, because another function call
would add a tenth to the time per message.

========= ================================= ==================================================
wire      frames                            for
========= ================================= ==================================================
plain     ``topic NUL body``                txZMQ, and peers that split at the first NUL
multipart ``[topic, body]``                 ZeroMQ peers in any language
tracked   ``topic NUL header body``         zroute: codec, sequence numbers, time, headers
========= ================================= ==================================================

The tracked wire also has control frames (`zroute.messages.control`), coalesced frames (`zroute.messages.coalesced`),
and frames with kept messages. A kept message is the last message of a topic, which the publisher stores for subscribers
that join later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import cache, lru_cache, partial
from itertools import pairwise
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeAlias

import attrs
import msgpack

from zroute.codegen import define
from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.compression import compression_of
from zroute.messages.frames import Frames, StatedMessage
from zroute.messages.topics import MAX_TOPIC, Topic
from zroute.options import HEADERS_MAX, MAX_PARTS

__all__ = [
    "CODEC_AT",
    "COUNTER",
    "COUNTERS_SHIFT",
    "FIXED",
    "HEADERS_LENGTH",
    "HEADER_MAX",
    "HEADER_SIZE",
    "HEAD_SIZE",
    "MAGIC",
    "NUL",
    "SENT_AT",
    "SNAPSHOT_NUMBERS",
    "VERSION",
    "WIRES",
    "Envelope",
    "Flags",
    "Framer",
    "Header",
    "Heads",
    "Kind",
    "NamedFrame",
    "Numbered",
    "Origin",
    "Parts",
    "RecoveredFrame",
    "ReplayedFrame",
    "Wire",
    "counted_framer",
    "framer",
    "headers_of",
    "lazy_envelopes",
    "may_have_headers",
    "pack_head",
    "pack_headers",
    "pack_kept",
    "parse",
    "parse_header",
    "parse_kept",
    "peer_of",
    "sent_at",
    "several_numbers",
    "skip_headers",
    "snapshot_number",
    "split",
    "topic_header",
]

Wire: TypeAlias = Literal["plain", "multipart", "tracked"]
Parts: TypeAlias = "bytes | tuple[bytes, ...]"
Origin: TypeAlias = Literal["live", "kept", "snapshot", "recovered", "replayed"]
"""A message to send: one frame, or its parts."""
Framer: TypeAlias = Callable[[bytes, int, bytes, "Mapping[str, Any] | None"], Parts]

WIRES: tuple[Wire, ...] = ("plain", "multipart", "tracked")

NUL = b"\0"
_UNNAMED = (
    "if the message has no topic, set one with App(sub={endpoint: Frames(topic='name')}), or with zroute tail --frames "
    "topic=name"
)
_SPACED = (
    "if a space ends the topic, write App(sub={endpoint: Frames(separator=b' ')}), or zroute tail "
    "--frames 'separator= '"
)
_COMPRESSED = (
    "the message looks compressed; if so, write Frames(topic='…', decompress='{0}'), or zroute tail "
    "--frames 'topic=…,decompress={0}'"
)
MAGIC = b"\xc1ZR"
"""The start of a tracked header. msgpack never uses the byte 0xC1, and no JSON or UTF-8 text starts with it."""
VERSION = 1

_HEAD = Struct(">3sBBBBBQ")  # magic, version, kind, codec, flags, span, epoch
FIXED = Struct(">16sQq")  # the head as one piece, sequence, time sent
_LENGTH = Struct(">I")
COUNTER = Struct(">BQ")  # length of the prefix, number
HEADERS_LENGTH = _LENGTH.size  # the bytes of the length before the application's headers
HEAD_SIZE = _HEAD.size
HEADER_SIZE = FIXED.size
CODEC_AT = 5  # the offset of the codec in a header
SENT_AT = HEADER_SIZE - 8  # the offset of the time in a header
_FLAGS = 6  # the offset of the flags in a header
_MAGIC_BYTE = MAGIC[0]
SNAPSHOT_NUMBERS = 15
"""The maximum number of subscriptions whose numbers a snapshot carries."""
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
    join later; in a frame of kind KEPT, the message is a snapshot. The upper four bits contain the number of further
    counters.
    """

    HEADERS = 0x01
    KEEPS = 0x02


COUNTERS_SHIFT = 4
_HEADERS, _KEEPS = int(Flags.HEADERS), int(Flags.KEEPS)  # an operation with a Flag takes ten times as long
_UNKNOWN_FLAGS = 0x0F & ~(_HEADERS | _KEEPS)
_KINDS = {int(kind): kind for kind in Kind}


class Numbered(Protocol):
    """A counter in a frame: the number of the message within a subscription.

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
        codec: the number of the codec, or 0 if the header does not name a codec.
        epoch: the 64-bit number of this run of the publisher.
        counters: one pair of numbers for each subscription that counts the frame. A pair contains the length of the
            subscription in bytes, and the number of the frame within the subscription. Shorter subscriptions come
            first. If no subscription counts the frame, there is one pair with the number 0.
        sent_at: nanoseconds since the Unix epoch, by the publisher's clock.
        headers: the application's headers.
        size: the length of the header in bytes; the body starts there.
        keeps: True if the publisher keeps the message for subscribers that join later; in a frame of kind KEPT, True if
            the message is a snapshot.
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
        """The number of the frame within the first counter's subscription."""
        return self.counters[0][1]

    def number(self, length: int) -> int:
        """Return the number of this frame in the subscription of ``length`` bytes.

        The result is 0 if the frame has no number for this subscription.
        """
        for span, number in self.counters:
            if span == length:
                return number
        return 0


class NamedFrame(bytes):
    """A received frame with the name of the peer's key.

    Attributes:
        peer: The name; None if it is unknown.
    """

    peer: str | None

    @classmethod
    def of(cls, frame: bytes, peer: str | None) -> NamedFrame:
        """Return a frame with a name."""
        made = cls(frame)
        made.peer = peer
        return made


class RecoveredFrame(bytes):
    """A frame from the history of its publisher.

    Attributes:
        peer: The name of the key of the peer that sent the frame. The attribute is missing if the peer is not stated.
    """

    origin: ClassVar[Origin] = "recovered"
    peer: str | None

    @classmethod
    def of(cls, frame: bytes, source: Any) -> Self:
        """Return a frame that arrived in the frames ``source``."""
        made, first = cls(frame), source[0] if isinstance(source, tuple) else source
        if hasattr(first, "peer"):
            made.peer = first.peer
        return made

    @classmethod
    def maker(cls, source: Any) -> Callable[[bytes], Self]:
        """Return a function that is faster than `of` for many frames from one ``source``."""
        first = source[0] if isinstance(source, tuple) else source
        return partial(cls.of, source=first) if hasattr(first, "peer") else cls


class ReplayedFrame(RecoveredFrame):
    """A frame of the past, from the history of its publisher."""

    origin: ClassVar[Origin] = "replayed"


def peer_of(raw: Any, default: str | None = None) -> str | None:
    """Return the name of the peer's key; ``default`` if the frames do not state one.

    ``raw`` is a tuple of all parts, or a single frame.
    """
    peer: str | None = getattr(raw[0] if isinstance(raw, tuple) else raw, "peer", default)
    return peer


class _Undecoded:
    """The base of `Envelope`, which decodes the message on first use of a field.

    Handlers that take an envelope usually read one field, or read a field only for a few messages. Decoding takes ten
    times as long as creating the object.
    """

    __slots__ = ("_source",)

    if not TYPE_CHECKING:  # a type checker would then accept any attribute

        def __getattr__(self, name: str) -> Any:
            """Decode the message. Python calls this method for a field without a value."""
            if name not in _FIELDS:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            raw, received_at, peer = self._source
            frames = raw if isinstance(raw, tuple) else (raw[:],)
            values = (*_decoded(frames, received_at, getattr(raw, "origin", "live")), peer_of(raw, peer))
            for keep, value in zip(_FIELDS.values(), values, strict=True):
                keep(self, value)
            return getattr(self, name)


@attrs.frozen(slots=True)
class Envelope(_Undecoded):
    """A received message, for handlers with a parameter of this type.

    The message is decoded when a field is first read. Reading a field raises EnvelopeError if the headers of the
    message are malformed.

    Attributes:
        topic: the topic as text; bytes that are not UTF-8 become surrogate escapes.
        body: the encoded message, without topic and header.
        frames: all parts of the message, unchanged.
        received_at: seconds since the Unix epoch, by the receiver's clock.
        codec: the number of the codec that the publisher stated, or 0 if it stated none. The numbers are 1 (msgpack), 2
            (JSON), 3 (text), 4 (raw), and 128 to 255 for the application's own codecs.
        sent_at: seconds since the Unix epoch, by the publisher's clock; None unless ``tracked``.
        sequence: the number of the message within the subscription; None unless ``tracked``. The number is 0 for kept
            messages, and for messages that were sent before the subscription reached the publisher.
        publisher: the 64-bit number of the publisher's run as 16 hexadecimal digits; None unless ``tracked``.
        tracked: True if the message arrived on the tracked wire.
        headers: the application's headers; empty unless ``tracked``.
        origin: how the message arrived: "live"; "kept" if it was sent before this app joined, and its publisher had
            kept it for new subscribers; "snapshot" if its publisher made it for this app (``snapshot=``); "recovered"
            if it was lost first, and then received from the history of its publisher (``App(recover=True)``); or
            "replayed" if it was sent before this app joined, and received from that history (``subscribe(since=…)``).
        peer: the name of the key of the program that sent the message, such as ``"feed"``. None without keys, over
            inproc, and if the connection of the message has ended and can't be identified. A handler that decides by
            the name must therefore refuse None. Behind a proxy, the name is that of the proxy.
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
    origin: Origin = "live"
    peer: str | None = None

    @property
    def kept(self) -> bool:
        """True if the ``origin`` is "kept"."""
        return self.origin == "kept"


_FIELDS = {field.name: Envelope.__dict__[field.name].__set__ for field in attrs.fields(Envelope)}
_keep_source = _Undecoded.__dict__["_source"].__set__  # a frozen class refuses setattr()


def lazy_envelopes(
    clock: Callable[[], float], peer: Callable[[], str | None] | None = None
) -> Callable[[Any], Envelope]:
    """Return a function that creates the `Envelope` of a valid message.

    The function takes a tuple of all parts, or a single frame. The envelope is decoded when a field is first read.
    ``clock`` returns the time in Unix seconds. ``peer`` returns the name of the peer for frames that do not state one.
    """
    new = Envelope.__new__

    def envelope(raw: Any) -> Envelope:
        made = new(Envelope)
        _keep_source(made, (raw, clock(), peer and peer()))
        return made

    return envelope


# -- encode frames --------------------------------------------------------------------------------------


def pack_head(*, kind: Kind = Kind.DATA, codec: int, flags: int = 0, span: int = 0, epoch: int) -> bytes:
    """Return the first 16 bytes of a tracked header, which many messages share."""
    return _HEAD.pack(MAGIC, VERSION, kind, codec, flags, span, epoch)


def framer(wire: Wire | Frames, *, epoch: int, next_sequence: Callable[[], int], clock_ns: Callable[[], int]) -> Framer:
    """Return the function that packs a message into the frames of ``wire``.

    The function takes the topic, the codec number, the body and the headers. The function raises EncodeError for
    headers that the wire can't carry. On the plain and multipart wires it also raises EncodeError for a body that
    starts with `MAGIC`. In a stated form, it raises TopicError for a topic that a reader could not recover from the
    message.

    Args:
        wire: "plain", "multipart", "tracked", or a stated form.
        epoch: the 64-bit number of this run of the publisher.
        next_sequence: a function that counts a message and returns its number, from 1.
        clock_ns: a function that returns nanoseconds since the Unix epoch.
    """
    if wire == "tracked":
        return _tracked_framer(epoch, next_sequence, clock_ns)
    stated = isinstance(wire, Frames)
    join: Callable[[bytes, bytes], Parts] = wire.framer() if isinstance(wire, Frames) else _JOINS[wire]

    def frame(topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> Parts:
        if headers:
            raise EncodeError(
                f"only the tracked wire carries headers, but this publisher uses wire={wire!r}: set wire='tracked'; or "
                "send no headers"
            )
        if body.startswith(MAGIC) and not stated:
            raise EncodeError(
                "the body starts with C1 5A 52, like a tracked header, so readers would misread the body: use "
                "wire='tracked'"
            )
        return join(topic, body)

    return frame


def _plain(topic: bytes, body: bytes) -> bytes:
    return topic + NUL + body


def _multipart(topic: bytes, body: bytes) -> tuple[bytes, bytes]:
    return topic, body


_JOINS: Mapping[Wire, Callable[[bytes, bytes], Parts]] = {"plain": _plain, "multipart": _multipart}


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
    """Return the packed headers of a message, preceded by their length.

    Raises EncodeError if a name is not text, a value is not a msgpack type, or the headers exceed `HEADERS_MAX` bytes.
    """
    for key in headers:
        if not isinstance(key, str):
            raise EncodeError(f"header {key!r}: the name of a header must be text, not {type(key).__name__}")
    try:
        packed: bytes = msgpack.packb(dict(headers), strict_types=True)
        msgpack.unpackb(packed)  # a reader refuses a key that is not text or bytes, at any depth
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodeError(f"headers {headers!r} can't be packed as msgpack: {error}") from error
    if len(packed) > HEADERS_MAX:
        raise EncodeError(
            f"the headers have {len(packed)} bytes; expected at most {HEADERS_MAX}: move data into the body"
        )
    return _LENGTH.pack(len(packed)) + packed


def counted_framer(
    *, epoch: int, count: Callable[[bytes], Sequence[Numbered]], clock_ns: Callable[[], int], keeps: bool = False
) -> Framer:
    """Return a tracked framer that numbers messages separately per subscription.

    See `framer` for the arguments of the returned function.

    Args:
        epoch: the 64-bit number of this run of the publisher.
        count: ``count(topic)`` counts the message and returns up to `zroute.options.CARRIED` counters, sorted by the
            length of their subscriptions. Without counters, the message has no number. ``count`` is called last, after
            all steps that can fail.
        clock_ns: a function that returns nanoseconds since the Unix epoch.
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
) -> partial[bytes]:
    """Return a function that packs topic and header for one topic and codec.

    The function takes the number of the first counter (0 without counters), the time, and the length and number of each
    further counter. The packed header contains no application headers.

    Args:
        topic: the topic.
        codec: the number of the codec.
        lengths: the lengths of the counted subscriptions, ascending.
        epoch: the 64-bit number of this run of the publisher.
        keeps: True if the publisher keeps the messages for subscribers that join later.
    """
    flags = max(len(lengths) - 1, 0) << COUNTERS_SHIFT | (Flags.KEEPS if keeps else 0)
    head = topic + NUL + _heads_of_data(epoch)[(lengths[0] << 16 if lengths else 0) | flags << 8 | codec]
    return partial(_topic_packer(len(head), max(len(lengths) - 1, 0)), head)


@cache  # the lengths of topics and the number of counters have a limit
def _topic_packer(size: int, further: int) -> Callable[..., bytes]:
    """Return the function that packs a header and the topic before it.

    Its arguments are topic and head, the number, the time, and the ``further`` counters.
    ``size`` is the number of bytes of topic and head. For a topic of 6 bytes and two counters, the format is
    ">23sQqBQ".
    """
    packer: Callable[..., bytes] = Struct(f">{size}sQq" + "BQ" * further).pack
    return packer


HeaderMaker: TypeAlias = Callable[[Sequence[Numbered], int], bytes]


def several_numbers(lengths: Sequence[int]) -> Callable[[Callable[..., bytes]], HeaderMaker]:
    """Return a function that adapts a `topic_header` to counters of these lengths.

    The adapted function takes the counters and the time. Its code is generated, because a loop over four counters would
    take three times as long.
    """
    made: Callable[[Callable[..., bytes]], HeaderMaker] = _numbers_maker(len(lengths))(*lengths)
    return made


@cache  # the number of counters has a limit; subscribers choose the lengths, so these are not part of the code
def _numbers_maker(many: int) -> Callable[..., Any]:
    names = ", ".join(f"l{at}" for at in range(many))
    further = "".join(f", l{at}, c[{at}].number" for at in range(1, many))
    first = "c[0].number" if many else 0
    made: Callable[..., Any] = define(
        # For two counters: lambda l0, l1: lambda header: lambda c, sent_at:
        # header(c[0].number, sent_at, l1, c[1].number)
        f"several_numbers = lambda {names}: lambda header: lambda c, sent_at: header({first}, sent_at{further})",
        "several_numbers",
        {},
    )
    return made


class Heads(dict[int, bytes]):
    """The first 16 bytes of headers, by span, flags and codec.

    An entry is created when it is first needed. A run usually needs a few dozen entries.
    """

    def __init__(self, kind: Kind, epoch: int) -> None:
        self._kind = kind
        self._epoch = epoch

    def __missing__(self, key: int) -> bytes:
        # The key is span << 16 | flags << 8 | codec.
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
    numbers: Sequence[tuple[int, int]] | None = None,
) -> bytes:
    """Return the frame that sends the last message or a snapshot of ``topic``.

    Args:
        marker: the marker that the subscriber sent.
        number: the number of this frame in the answer to the marker, from 1. The last frame of an answer contains no
            message and has an empty topic.
        topic: the topic of the message.
        codec: the number of the codec.
        body: the encoded message.
        headers: the application's headers, if any.
        epoch: the 64-bit number of this run of the publisher.
        sent_at: nanoseconds since the Unix epoch at which the message was first sent.
        numbers: of a snapshot: the length of each subscription, ascending, with the number of the last message before
            the snapshot. None: the message is not a snapshot.

    Raises:
        EncodeError: the wire can't carry the headers.
    """
    packed = pack_headers(headers) if headers else b""
    flags, behind = int(Flags.HEADERS) if packed else 0, b""
    if numbers is not None:
        # Spans must ascend, and the first one is 0. A counter must not have the number 0, so its absence means 0.
        counted = [COUNTER.pack(length + 1, last) for length, last in numbers if last and length < MAX_TOPIC]
        counted = counted[:SNAPSHOT_NUMBERS]
        flags |= _KEEPS | len(counted) << COUNTERS_SHIFT
        behind = b"".join(counted)
    head = pack_head(kind=Kind.KEPT, codec=codec, flags=flags, epoch=epoch)
    return marker + NUL + FIXED.pack(head, number, sent_at) + behind + packed + topic + NUL + body


# -- decode frames --------------------------------------------------------------------------------------


def split(frames: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Return the topic and the body of a message; a tracked body includes its header.

    A message of one frame is ``topic NUL body``. In a message of several frames, the first is the topic and the second
    the body; further frames appear only in `Envelope.frames`. A `StatedMessage` has its topic and body as attributes.

    Raises EnvelopeError for any other message.
    """
    if isinstance(frames, StatedMessage):
        return frames.topic, frames.body
    if len(frames) > MAX_PARTS:
        raise EnvelopeError(f"more than {MAX_PARTS} parts", frames=frames)
    if len(frames) > 1:
        topic, body = frames[0], frames[1]
        if NUL in topic:
            raise EnvelopeError("a message of several parts with a NUL in the first part", frames=frames)
        return topic, body
    topic, nul, body = frames[0].partition(NUL)
    if not nul:
        raise EnvelopeError(_without_nul(frames[0]), frames=frames)
    return topic, body


def _without_nul(frame: bytes) -> str:
    """Return the error text for a frame that contains no NUL.

    Many programs send a topic, a space and a body as one text (zguide, chapter 1). A topic may itself contain spaces,
    so zroute can't know where it ends.
    """
    if not frame:
        return "an empty frame"
    if frame[:1] in (b"{", b"["):  # JSON without a topic, as `send_json` of pyzmq sends it
        return f"no NUL after the topic ({_UNNAMED})"
    compression = compression_of(frame)
    if compression is not None:
        return f"no NUL after the topic ({_COMPRESSED.format(compression)})"
    spaced = b" " in frame[:MAX_TOPIC]
    return "no NUL after the topic" + (f" ({_SPACED})" if spaced else "")


def parse(frames: tuple[bytes, ...], received_at: float, peer: str | None = None) -> Envelope:
    """Return the Envelope of a message; ``received_at`` is in Unix seconds.

    ``peer`` is the name of the peer's key.

    Raises EnvelopeError if the message is malformed.
    """
    values = (*_decoded(frames, received_at), peer)
    return Envelope(*values)


def _decoded(frames: tuple[bytes, ...], received_at: float, origin: Origin = "live") -> tuple[Any, ...]:
    """Return the values of the fields of an `Envelope`, without ``peer``."""
    topic, body = split(frames)
    if isinstance(frames, StatedMessage) or not body.startswith(MAGIC):
        return Topic.from_wire(topic), body, tuple(frames), received_at, 0, None, None, None, False, {}, origin
    header = parse_header(body)
    body = body[header.size :]
    if kept := header.kind is Kind.KEPT:
        topic, body = parse_kept(body)
    return (
        Topic.from_wire(topic),
        body,
        frames,
        received_at,
        header.codec,
        header.sent_at / 1e9,
        0 if kept else header.counters[0][1],
        f"{header.epoch:016x}",
        True,
        header.headers,
        ("snapshot" if header.keeps else "kept") if kept else origin,
    )


def sent_at(frames: tuple[bytes, ...]) -> float | None:
    """Return the time in Unix seconds at which a valid message was sent.

    The time is from the publisher's clock. The result is None if the message does not carry a time.
    """
    body = split(frames)[1]
    tracked = body.startswith(MAGIC) and not isinstance(frames, StatedMessage)
    return FIXED.unpack_from(body)[2] / 1e9 if tracked else None


def may_have_headers(frame: bytes) -> bool:
    """Return False if a valid message of one frame certainly has no headers.

    The function checks only two bytes, because it runs for each received message that leads to a published one.
    """
    start = frame.find(0) + 1
    try:
        return frame[start] == _MAGIC_BYTE and bool(frame[start + _FLAGS] & _HEADERS)
    except IndexError:  # an empty body
        return False


def headers_of(frame: bytes) -> Mapping[str, Any]:
    """Return the application's headers of a message of one frame.

    ``frame`` may end inside the body.

    Raises EnvelopeError if the message has headers and its header is malformed.
    """
    start = frame.find(NUL) + 1
    if not may_have_headers(frame) or not frame.startswith(MAGIC, start):
        return {}
    return parse_header(frame[start : start + HEADER_MAX]).headers


def parse_header(body: bytes) -> Header:
    """Parse and validate the tracked header at the start of ``body``.

    ``body`` must start with `MAGIC`. Raises EnvelopeError if the version, kind, flags, length or headers are invalid.
    """
    if len(body) < HEADER_SIZE:
        raise EnvelopeError(f"a tracked header of {len(body)} bytes; expected at least {HEADER_SIZE}")
    head, sequence, sent_at = FIXED.unpack_from(body)
    _magic, version, kind, codec, flags, span, epoch = _HEAD.unpack(head)
    if version != VERSION:
        raise EnvelopeError(f"a tracked header of version {version}; expected version {VERSION}")
    if kind not in _KINDS:
        raise EnvelopeError(f"a tracked header with the unknown kind {kind}")
    if flags & _UNKNOWN_FLAGS:
        raise EnvelopeError(f"a tracked header with the unknown flags 0x{flags:02x}")
    counters, size = _unpack_counters(body, flags >> COUNTERS_SHIFT, span, sequence)
    headers, size = _unpack_headers(body, size) if flags & _HEADERS else ({}, size)
    return Header(_KINDS[kind], codec, epoch, counters, sent_at, headers, size, bool(flags & _KEEPS))


def _unpack_counters(body: bytes, count: int, span: int, sequence: int) -> tuple[tuple[tuple[int, int], ...], int]:
    first, end = (span, sequence), HEADER_SIZE + count * COUNTER.size
    if not count:
        return (first,), end
    if len(body) < end:
        raise EnvelopeError(f"a tracked header that ends in the middle of its {count} further counters")
    counters = (first, *COUNTER.iter_unpack(body[HEADER_SIZE:end]))
    if any(longer <= shorter for (shorter, _), (longer, _) in pairwise(counters)):
        raise EnvelopeError("further counters whose lengths are not in ascending order")
    if not all(number for _, number in counters):
        raise EnvelopeError("further counters with the number 0")
    return counters, end


def skip_headers(body: bytes, offset: int = 0) -> int:
    """Return the end of the application's headers, without decoding them.

    ``offset`` is the position of their length field.

    Raises EnvelopeError if the length is incomplete or too large.
    """
    start = offset + HEADERS_LENGTH
    if len(body) < start:
        raise EnvelopeError("a tracked header that ends in the middle of the length of its headers")
    (length,) = _LENGTH.unpack_from(body, offset)
    end: int = start + length
    if length > HEADERS_MAX or end > len(body):
        raise EnvelopeError(
            f"headers with a length of {length} bytes; expected at most {HEADERS_MAX}, and at most the remaining "
            f"{len(body) - start} bytes of the message"
        )
    return end


def _unpack_headers(body: bytes, offset: int) -> tuple[dict[str, Any], int]:
    end = skip_headers(body, offset)
    try:
        headers = msgpack.unpackb(body[offset + HEADERS_LENGTH : end])
    except Exception as error:  # msgpack raises many kinds of errors, and each means a malformed peer message
        raise EnvelopeError("headers that are not a msgpack map") from error
    if not isinstance(headers, dict) or not all(isinstance(key, str) for key in headers):
        raise EnvelopeError("headers that are not a msgpack map with text keys")
    return headers, end


def snapshot_number(header: Header, length: int) -> int | None:
    """Return the number of the last message before a snapshot.

    It is the number in the subscription of ``length`` bytes. The result is None if the snapshot does not carry it.
    """
    for span, number in header.counters[1:]:
        if span == length + 1:
            return number
    return None if len(header.counters) > SNAPSHOT_NUMBERS or length >= MAX_TOPIC else 0


def parse_kept(body: bytes) -> tuple[bytes, bytes]:
    """Return the topic and the body of the message in a KEPT frame.

    ``body`` is the content of the frame without the header. Raises EnvelopeError if no NUL ends the topic.
    """
    topic, nul, message = body.partition(NUL)
    if not nul:
        raise EnvelopeError("a kept message without a NUL after its topic")
    return topic, message
