"""The frames of recovery: requests for lost messages, and their answers.

A subscriber asks a publisher for the messages that it misses, and receives them again.

- A **request** names the numbers of lost messages, or asks for the messages of the past (`Past`) that were sent before
  the subscriber joined. It is a subscription that the subscriber withdraws at once, so it
  leaves no state at publishers and proxies, and libzmq does not repeat it on a new connection. Each request is unique,
  because a proxy would hide a repeated subscription.
- An **answer** is a frame of kind BEAT that contains whole messages, as they were sent. Queues count frames, so 10,000
  lost messages need only about 20 places in a queue.
- A **box** is the topic of all answers to one subscriber. The subscriber subscribes to its box before it asks.

A box and a request begin like a marker, but are not valid markers, so a publisher of an earlier version ignores them. A
reader of an earlier version ignores an answer as a beat of an unknown subscription.

Like `zroute.messages.control`, this module only converts bytes. ``docs/reference/wire.md`` specifies the layout, with
test vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from itertools import islice
from struct import Struct, error
from typing import NamedTuple, TypeAlias

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.control import MARKER
from zroute.messages.wire import COUNTER, COUNTERS_SHIFT, FIXED, HEADER_SIZE, MAGIC, NUL, Kind, pack_head

__all__ = [
    "ANSWER_BYTES",
    "BOX",
    "REQUEST",
    "REQUEST_MAX",
    "Entry",
    "Past",
    "PastAnswer",
    "Range",
    "RecoveryAnswer",
    "RecoveryRequest",
    "Since",
    "SinceMode",
    "checked_numbers",
    "checked_past",
    "entry_size",
    "many_of",
    "numbers_of",
    "pack_box",
    "pack_past_request",
    "pack_recovery_answers",
    "pack_recovery_request",
    "parse_recovery_answer",
    "parse_recovery_request",
]

BOX = MARKER + b"!"
"""The first bytes of a box. "!" precedes all digits, so libzmq repeats the box before the markers."""

REQUEST = MARKER + b"?"
"""The first bytes of a request."""

REQUEST_MAX = 440
"""The maximum length of a request in bytes.

With CURVE, an XPUB socket with MAXMSGSIZE 512 receives subscriptions of up to 460 bytes.
"""

ANSWER_BYTES = 60_000
"""The maximum size in bytes of the entries in one frame of an answer. A longer message has a frame of its own."""

Range: TypeAlias = tuple[int, int]
"""The first and the last number of consecutive messages."""

Entry: TypeAlias = "tuple[int, bytes | int]"
"""An entry of an answer: the number and the frame of a message, or the `Range` of messages that are not available."""

_LOST_MESSAGES, _PAST_MESSAGES = 0, 1  # what a request asks for
_REQUEST = Struct(">6sHQB")  # subscriber, number, epoch, length of the prefix
_RANGE = Struct(">QI")  # the first number, and how many
_RANGE_MAX = 2**32 - 1
_PAST = Struct(">QQBQ")  # the number of the statement, the position, the mode, and its value
_ANSWER = Struct(">HBBB")  # number of the request, flags, 0, length of the prefix
_PAST_ANSWER = Struct(">QQ")  # behind the prefix: the position, and how many messages are left
_ENTRY = Struct(">QI")  # the number, and the length of the frame; 0: the last number of a range follows
_NUMBER = Struct(">Q")
_MANY = Struct(">H")
_KIND, _FLAGS, _SPAN, _EPOCH, _SEQUENCE = 4, 6, 7, 8, 16  # offsets in a header
_SOURCE = Struct(">3sxBxxBQQ").unpack_from  # magic, kind, span, epoch, sequence
_DATA, _COALESCED = int(Kind.DATA), int(Kind.COALESCED)  # comparing with a member of an Enum takes longer
_FRAME_MAX = 2**31 - 1
_LAST, _MORE, _REFUSED, _OF_PAST = 0x01, 0x02, 0x04, 0x08
_NUMBER_MAX = 2**64 - 1
_LEFT_MAX = 2**40 - 1  # more messages fit into no memory, so the number is forged


class SinceMode(IntEnum):
    """The ways to state where the past begins: the meanings of `Since.value`."""

    ALL = 0  # with the oldest message; the value is 0
    LAST = 1  # with the latest messages; the value is their number
    AGE = 2  # with the messages of the last nanoseconds
    TIME = 3  # with the messages from a time on, in nanoseconds since the Unix epoch


_MODES = frozenset(SinceMode)


class Since(NamedTuple):
    """The beginning of the past that a subscriber asks for.

    Attributes:
        mode: What ``value`` means.
        value: A number of messages or nanoseconds, from 0 to 2**64 - 1; see `SinceMode`.
    """

    mode: SinceMode
    value: int = 0

    @property
    def text(self) -> str:
        """The beginning as text: ``all``, ``last``, ``60s`` or a time."""
        if self.mode is SinceMode.AGE:
            return f"{self.value / 1e9:g}s"
        if self.mode is SinceMode.TIME:
            return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.value // 1000)).isoformat()
        return self.mode.name.lower() if self.value <= 1 else f"last {self.value}"


class Past(NamedTuple):
    """The part of a request that asks for messages of the past.

    Attributes:
        upto: The number of the subscription in the statement that completed the join. Later messages are not asked for,
            because the subscriber has received them or knows that they are lost.
        position: The first position to send; 0 in the first request, for which ``since`` decides.
        since: The beginning of the past.
    """

    upto: int
    position: int
    since: Since


@attrs.frozen(slots=True)
class RecoveryRequest:
    """A parsed request.

    Attributes:
        subscriber: The 48 bits that identify the subscriber; see `zroute.messages.control.Marker.subscriber`.
        number: The number of the request, which the answer repeats.
        epoch: The publisher that is asked. All publishers receive the request.
        prefix: The subscription whose messages were lost.
        ranges: The numbers of the lost messages, ascending. Empty if the request asks for the past.
        past: What the request asks for instead of lost messages, or None.
    """

    subscriber: int
    number: int
    epoch: int
    prefix: bytes
    ranges: tuple[Range, ...]
    past: Past | None = None


class PastAnswer(NamedTuple):
    """What a frame of an answer says about the past.

    Attributes:
        position: The position at which this frame continues: that of the request, or the one behind the last message of
            the frame before.
        left: The number of messages from there on, including those in this frame.
    """

    position: int
    left: int


@attrs.frozen(slots=True)
class RecoveryAnswer:
    """The body of one frame of an answer.

    Attributes:
        number: The number of the request.
        prefix: The subscription.
        last: True if this is the last frame that answers the request.
        more: True if the publisher has more of the messages, so that the subscriber must ask again.
        refused: True if the publisher cannot answer for this subscription.
        messages: The number and the frame of each message, ascending. A coalesced frame has the number of its first
            message. In an answer about the past, positions take the place of numbers.
        gone: The ranges that are not available, ascending.
        past: The part of an answer about the past; None for lost messages.
    """

    number: int
    prefix: bytes
    last: bool
    more: bool
    refused: bool
    messages: tuple[tuple[int, bytes], ...]
    gone: tuple[Range, ...]
    past: PastAnswer | None = None


# -- encode frames --------------------------------------------------------------------------------------


def pack_box(subscriber: int) -> bytes:
    """Return the topic of the answers to a subscriber."""
    return BOX + b"%012x" % subscriber


def pack_recovery_request(
    subscriber: int, number: int, epoch: int, prefix: bytes, ranges: Iterable[Range]
) -> tuple[bytes, int]:
    """Return a request, and how many of the ``ranges`` it contains.

    A request contains the first ranges, up to `REQUEST_MAX` bytes. A range of more than 2**32 - 1 messages is cut.

    Args:
        subscriber: The 48 bits that identify the subscriber.
        number: The number of the request, of which the lower 16 bits are used.
        epoch: The publisher to ask.
        prefix: The subscription.
        ranges: The first and last number of each range, ascending.
    """
    head = _REQUEST.pack(subscriber.to_bytes(6), number & 0xFFFF, epoch, len(prefix))
    packed = REQUEST + head + prefix + bytes([_LOST_MESSAGES])
    room = (REQUEST_MAX - len(packed)) // _RANGE.size
    listed = [_RANGE.pack(first, min(last - first + 1, _RANGE_MAX)) for first, last in islice(ranges, room)]
    return packed + b"".join(listed), len(listed)


def pack_past_request(subscriber: int, number: int, epoch: int, prefix: bytes, past: Past) -> bytes:
    """Return a request for messages of the past.

    See `pack_recovery_request` for the other arguments.
    """
    head = _REQUEST.pack(subscriber.to_bytes(6), number & 0xFFFF, epoch, len(prefix))
    asked = _PAST.pack(past.upto, past.position, past.since.mode, past.since.value)
    return REQUEST + head + prefix + bytes([_PAST_MESSAGES]) + asked


def entry_size(entry: Entry) -> int:
    """Return the size of an entry in bytes."""
    return _ENTRY.size + (len(entry[1]) if isinstance(entry[1], bytes) else _NUMBER.size)


def pack_recovery_answers(
    request: RecoveryRequest,
    entries: Sequence[Entry],
    *,
    epoch: int,
    sent_at: int,
    more: bool = False,
    refused: bool = False,
    past: PastAnswer | None = None,
) -> list[bytes]:
    """Return the frames that answer ``request``.

    Args:
        request: The request.
        entries: The messages and ranges, ascending. A frame contains as many as fit into `ANSWER_BYTES`.
        epoch: The 64-bit number of this run of the publisher.
        sent_at: Nanoseconds since the Unix epoch.
        more: True if the subscriber must ask again for the rest.
        refused: True if this publisher cannot answer for the subscription.
        past: The part of an answer about the past, for the first frame. ``entries`` then contain only messages, with
            their positions.
    """
    head = pack_head(kind=Kind.BEAT, codec=0, epoch=epoch)
    start = pack_box(request.subscriber) + NUL + FIXED.pack(head, request.number, sent_at)
    pieces = list(_pieces(entries, past))
    flags = more * _MORE | refused * _REFUSED | (past is not None) * _OF_PAST
    prefix = request.prefix
    return [
        start
        + _ANSWER.pack(request.number, flags | (_LAST if at == len(pieces) else 0), 0, len(prefix))
        + prefix
        + piece
        for at, piece in enumerate(pieces, 1)
    ]


def _pieces(entries: Iterable[Entry], past: PastAnswer | None) -> Iterator[bytes]:
    """Yield the entries in pieces of at most `ANSWER_BYTES`, or of one message.

    Without entries, yield one piece without entries. In an answer about the past, each piece says where it begins.
    """
    piece: list[bytes] = []
    position, left = (0, 0) if past is None else (past.position, past.left)

    def finished() -> bytes:
        return (b"" if past is None else _PAST_ANSWER.pack(begins, before)) + b"".join(piece)

    begins, before = position, left
    size = 0
    for entry in entries:
        more = entry_size(entry)
        if piece and size + more > ANSWER_BYTES:
            yield finished()
            piece, size, begins, before = [], 0, position, left
        number, what = entry
        if isinstance(what, bytes):
            piece += _ENTRY.pack(number, len(what)), what
            if past is not None:
                position, left = number + 1, left - many_of(what)
        else:
            piece += _ENTRY.pack(number, 0), _NUMBER.pack(what)
        size += more
    yield finished()


# -- decode frames --------------------------------------------------------------------------------------


def parse_recovery_request(topic: bytes) -> RecoveryRequest:
    """Parse a subscription that starts with `REQUEST`.

    Raises EnvelopeError if the request is incomplete, asks for something unknown, or has invalid ranges.
    """
    at = len(REQUEST) + _REQUEST.size
    if len(topic) <= at or len(topic) > REQUEST_MAX:
        raise EnvelopeError(f"a request of {len(topic)} bytes; expected {at + 1} to {REQUEST_MAX}")
    subscriber, number, epoch, length = _REQUEST.unpack_from(topic, len(REQUEST))
    prefix, at = topic[at : at + length], at + length
    if at >= len(topic):
        raise EnvelopeError("a request that ends in the middle of its subscription")
    if topic[at] == _PAST_MESSAGES:
        past = _parse_past(topic[at + 1 :])
        return RecoveryRequest(int.from_bytes(subscriber), number, epoch, prefix, (), past)
    if topic[at] != _LOST_MESSAGES:
        raise EnvelopeError(f"a request of the unknown kind {topic[at]}")
    rest = topic[at + 1 :]
    if not rest or len(rest) % _RANGE.size:
        raise EnvelopeError(f"a request with {len(rest)} bytes of ranges; expected a multiple of {_RANGE.size}")
    ranges, before = [], 0
    for first, count in _RANGE.iter_unpack(rest):
        last = first + count - 1
        if not before < first <= last <= _NUMBER_MAX:
            raise EnvelopeError("a request with ranges that are empty, too large, or not in ascending order")
        ranges.append((first, last))
        before = last
    return RecoveryRequest(int.from_bytes(subscriber), number, epoch, prefix, tuple(ranges))


def _parse_past(rest: bytes) -> Past:
    if len(rest) != _PAST.size:
        raise EnvelopeError(f"a request for the past with {len(rest)} bytes; expected {_PAST.size}")
    upto, position, mode, value = _PAST.unpack(rest)
    if mode not in _MODES:
        raise EnvelopeError(f"a request for the past of the unknown mode {mode}")
    return Past(upto, position, Since(SinceMode(mode), value))


def parse_recovery_answer(body: bytes) -> RecoveryAnswer:
    """Parse the body of an answer, after the header.

    Raises EnvelopeError if the body is incomplete or its entries are not in ascending order.
    """
    if len(body) < _ANSWER.size:
        raise EnvelopeError(f"an answer of {len(body)} bytes; expected at least {_ANSWER.size}")
    request, flags, _, length = _ANSWER.unpack_from(body)
    at = _ANSWER.size + length
    if at > len(body):
        raise EnvelopeError("an answer that ends in the middle of its subscription")
    prefix = body[_ANSWER.size : at]
    past: PastAnswer | None = None
    if flags & _OF_PAST:
        if at + _PAST_ANSWER.size > len(body):
            raise EnvelopeError("an answer about the past that ends in the middle of its position")
        past = PastAnswer(*_PAST_ANSWER.unpack_from(body, at))
        if past.left > _LEFT_MAX:
            raise EnvelopeError(f"an answer about the past with {past.left} messages; expected at most {_LEFT_MAX}")
        at += _PAST_ANSWER.size
    messages: list[tuple[int, bytes]] = []
    gone: list[Range] = []
    before, size = 0, len(body)
    while at < size:
        if at + _ENTRY.size > size:
            raise EnvelopeError("an answer that ends in the middle of an entry")
        number, count = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size
        end = at + (count or _NUMBER.size)
        if count > _FRAME_MAX or end > size:
            raise EnvelopeError("an answer that ends in the middle of an entry")
        last = number
        if count:
            messages.append((number, body[at:end]))
        else:
            (last,) = _NUMBER.unpack_from(body, at)
            gone.append((number, last))
        if not before < number <= last:
            raise EnvelopeError("an answer whose entries are not in ascending order")
        before, at = last, end
    return RecoveryAnswer(
        request,
        prefix,
        last=bool(flags & _LAST),
        more=bool(flags & _MORE),
        refused=bool(flags & _REFUSED),
        messages=tuple(messages),
        gone=tuple(gone),
        past=past,
    )


def numbers_of(frame: bytes, span: int) -> tuple[int, int]:
    """Return the first and the last number of a frame in a subscription.

    ``span`` is the length of the subscription. The numbers are 0 and 0 if the frame has no number for it. The frame
    must be a valid one with a message; see `checked_numbers`.
    """
    at = frame.index(0) + 1
    further = frame[at + _FLAGS] >> COUNTERS_SHIFT
    if frame[at + _SPAN] == span:
        (number,) = _NUMBER.unpack_from(frame, at + _SEQUENCE)
    else:
        for place in range(at + HEADER_SIZE, at + HEADER_SIZE + COUNTER.size * further, COUNTER.size):
            if frame[place] == span:
                (number,) = _NUMBER.unpack_from(frame, place + 1)
                break
        else:
            return 0, 0
    if not number:
        return 0, 0
    if frame[at + _KIND] == _COALESCED:  # such a frame has no headers
        return number, number + _MANY.unpack_from(frame, at + HEADER_SIZE + COUNTER.size * further)[0] - 1
    return number, number


def many_of(frame: bytes) -> int:
    """Return the number of messages in a valid frame with messages."""
    at = frame.index(0) + 1
    if frame[at + _KIND] != _COALESCED:
        return 1
    further = frame[at + _FLAGS] >> COUNTERS_SHIFT
    many: int = _MANY.unpack_from(frame, at + HEADER_SIZE + COUNTER.size * further)[0]
    return many


def checked_past(frame: bytes, epoch: int, prefix: bytes, upto: int) -> int:
    """Return the number of messages in a frame of the past, after a check.

    Raises EnvelopeError unless the frame contains messages of the publisher ``epoch`` and the subscription ``prefix``
    that were sent before the message ``upto``, or are that message.
    """
    _check_source(frame, epoch, prefix)
    try:
        first, many = numbers_of(frame, len(prefix))[0], many_of(frame)
    except (IndexError, error) as broken:
        raise EnvelopeError("an answer with an incomplete message") from broken
    if frame[frame.index(0) + 1 + _KIND] not in (Kind.DATA, Kind.COALESCED) or first > upto or not many:
        raise EnvelopeError("an answer about the past with another message")
    return many


def checked_numbers(number: int, frame: bytes, epoch: int, prefix: bytes) -> tuple[int, int]:
    """Return the first and last number of a frame in an answer, after a check.

    Raises EnvelopeError unless the frame is a message of the publisher ``epoch``, and has this ``number`` in the
    subscription ``prefix``. The rest of the frame is checked when it is delivered.
    """
    at = frame.find(NUL) + 1
    if len(prefix) < at <= len(frame) - HEADER_SIZE and frame.startswith(prefix):
        magic, kind, span, source, first = _SOURCE(frame, at)
        # Most messages: the same checks as below, at once.
        if magic == MAGIC and kind == _DATA and source == epoch and span == len(prefix) and 0 < first == number:
            return first, first
    at = _check_source(frame, epoch, prefix)
    try:
        first, last = numbers_of(frame, len(prefix))
    except (IndexError, error) as broken:
        raise EnvelopeError("an answer with an incomplete message") from broken
    if frame[at + _KIND] not in (Kind.DATA, Kind.COALESCED) or not 0 < first == number <= last:
        raise EnvelopeError("an answer with a message of another number")
    return first, last


def _check_source(frame: bytes, epoch: int, prefix: bytes) -> int:
    """Return the offset of the header of a frame in an answer.

    Raises EnvelopeError if the frame is not from the publisher ``epoch``, or not of the subscription ``prefix``.
    """
    at = frame.find(NUL) + 1
    if not frame.startswith(prefix) or not frame.startswith(MAGIC, at) or at <= len(prefix):
        raise EnvelopeError("an answer with a message of another subscription")
    if len(frame) < at + HEADER_SIZE or _NUMBER.unpack_from(frame, at + _EPOCH)[0] != epoch:
        raise EnvelopeError("an answer with a message of another publisher")
    return at
