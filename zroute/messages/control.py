"""The control frames of the tracked wire, which subscribers need to count losses.

Subscribers and publishers exchange these frames, and `zroute.receiving.tracker` evaluates them:

- A marker asks a publisher for its counters. A subscriber sends the marker as a subscription.
- A statement lists a publisher's counters. The publisher sends one to answer a marker (JOIN), and one when the app
  stops (GOODBYE).
- A farewell confirms a GOODBYE. A subscriber sends the farewell as a subscription.
- A ping is a marker that names no real subscription. The answer only shows that the publisher is alive.
- A beat repeats the last number of a subscription that has no new messages.

This module also defines the times and numbers on which both sides must agree. Like `zroute.messages.wire`, it only
converts bytes. ``docs/reference/wire.md`` specifies the layout, with test vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Literal

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.wire import FIXED, NUL, Kind, pack_head
from zroute.options import MAX_TOPIC, STATEMENT_MAX

__all__ = [
    "BEATS",
    "COUNT_BITS",
    "FAREWELL",
    "GRACE",
    "MARKER",
    "WITHDRAWN_SECONDS",
    "Marker",
    "Statement",
    "cut_name",
    "entry",
    "is_counted",
    "named_numbers",
    "pack_beat",
    "pack_farewell",
    "pack_marker",
    "pack_ping",
    "pack_statements",
    "parse_beat",
    "parse_farewell",
    "parse_marker",
    "parse_statement",
]

MARKER = b"\xff\xffzr"
"""The first bytes of a marker's topic. These bytes are not UTF-8, so no segment pattern matches a marker."""
FAREWELL = b"\xff\xffzg"
"""The first bytes of a farewell."""

BEATS = (0.5, 2.0, 10.0)
"""The times of the beats, in seconds after the last message of a subscription.
"""

GRACE = 2.0
"""The maximum delay in seconds of a beat, and of a subscriber's marker."""

WITHDRAWN_SECONDS = 120.0
"""The time in seconds for which a publisher keeps counting for a withdrawn subscription.

TCP keep-alive needs this time to detect a lost peer, and until then the peer may reconnect.
"""

COUNT_BITS = 40
"""The number of low bits that count messages. The upper 24 bits are the counter's generation.

A new counter gets a new generation, so it never repeats the numbers of a counter that the publisher has dropped.
"""

_BEAT = Struct(">I")  # milliseconds until the next beat
_STATEMENT = Struct(">HHBB")  # part, parts, flags, length of the name
_PARTIAL, _HISTORY, _SNAPSHOTS = 0x01, 0x02, 0x04  # the flags of a statement
_NUMBER = Struct(">Q")
_ID_SIZE = 16  # 64 bits as hexadecimal digits: a marker is a topic, so it must not contain NUL
_WANTED_MAX = MAX_TOPIC - len(MARKER) - _ID_SIZE  # bytes for the list of subscriptions in a marker
_SUMMARY = b"\xff"  # greater than the length of any listed prefix, so it can't be confused with one
_ALL = (b"",)


def is_counted(prefix: bytes) -> bool:
    """Return True if a publisher counts messages for the subscription ``prefix``.

    A header identifies a subscription by its length, so a counted subscription must not be longer than a topic. A
    subscription that contains a NUL comes from a plain reader, which subscribes to the topic and the NUL together.
    """
    return len(prefix) <= MAX_TOPIC and NUL not in prefix


@attrs.frozen(slots=True)
class Marker:
    """A subscription by which a subscriber asks a publisher for its counters.

    The subscriber sends its real subscriptions first. libzmq keeps this order, so the publisher already knows them when
    the marker arrives.

    Attributes:
        topic: the complete marker as bytes.
        id: a 64-bit number that is used only once.
        wanted: the subscriptions that the answer must list. If empty, the answer lists the subscription to everything.
        summary: True if ``wanted`` does not list the subscriptions, but at most one prefix that all of them share.
    """

    topic: bytes
    id: int
    wanted: tuple[bytes, ...]
    summary: bool = False

    @property
    def subscriber(self) -> int:
        """The upper 48 bits of the id, which are the same in all markers of a subscriber."""
        return self.id >> 16

    @property
    def is_ping(self) -> bool:
        """True if the marker only asks whether the publisher is alive.

        The only wanted subscription of a ping is `MARKER`. No counted subscription begins with `MARKER`, so none is
        listed.
        """
        return self.wanted == (MARKER,)

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """The wanted subscriptions, or the shared prefix of a summary."""
        return self.wanted or _ALL

    def wants(self, prefix: bytes) -> bool:
        """Return True if ``prefix`` begins with a wanted subscription.

        ``prefix`` is a topic or a subscription.
        """
        return not self.wanted or prefix.startswith(self.wanted)


@attrs.frozen(slots=True)
class Statement:
    """The body of a JOIN or GOODBYE: one part of the list of a publisher's counters.

    All parts together list every wanted subscription that is active at the publisher, including those with the number
    0.

    Attributes:
        part: the index of this part, from 0.
        parts: the number of parts.
        name: the publisher's name, which stays the same after a restart, or "" if it has no name.
        partial: True if the publisher has subscriptions that it does not count.
        numbers: each subscription in this part with the number of its last message.
        history: True if the publisher answers requests for lost messages; see `zroute.messages.recovery`.
        snapshots: True if the publisher answers requests for snapshots; see `zroute.messages.snapshots`.
    """

    part: int
    parts: int
    name: str
    partial: bool
    numbers: tuple[tuple[bytes, int], ...]
    history: bool = False
    snapshots: bool = False


# -- encode frames --------------------------------------------------------------------------------------


def pack_marker(number: int, subscriptions: Iterable[bytes]) -> bytes:
    """Return the topic of a marker for ``subscriptions``.

    The marker lists the subscriptions if the list fits into a topic. Otherwise the marker is a summary with their
    common prefix. The empty prefix can't be listed. If it is the only subscription, the marker has no list. If there
    are others, the marker is a summary with an empty prefix.

    Args:
        number: the 64-bit id, used only once; see `Marker.subscriber`.
        subscriptions: the subscriptions that the answer must list.
    """
    wanted, summary = sorted(subscriptions), b""
    if sum(1 + len(prefix) for prefix in wanted) > _WANTED_MAX or (b"" in wanted and len(wanted) > 1):
        # - 2: the byte with the length of the prefix, and the byte that marks a summary.
        wanted, summary = [_in_common(wanted[0], wanted[-1])[: _WANTED_MAX - 2]], _SUMMARY
    if b"" in wanted:
        wanted = []
    listed = b"".join([bytes([len(prefix)]) + prefix for prefix in wanted])
    return MARKER + b"%016x" % number + listed + summary


def pack_ping(number: int) -> bytes:
    """Return the topic of a marker that only asks whether the publisher is alive.

    ``number`` is the 64-bit id, as in `pack_marker`.
    """
    return pack_marker(number, (MARKER,))


def _in_common(first: bytes, last: bytes) -> bytes:
    """Return the common prefix of sorted values, given the first and the last value.

    All values between the two have this prefix too.
    """
    length = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        length += 1
    return first[:length]


def pack_statements(
    kind: Literal[Kind.JOIN, Kind.GOODBYE],
    marker: bytes,
    numbers: Iterable[tuple[bytes, int]],
    *,
    epoch: int,
    name: str,
    partial: bool,
    sent_at: int,
    history: bool = False,
    snapshots: bool = False,
) -> list[bytes]:
    """Return the frames that answer ``marker`` with the publisher's counters.

    Args:
        kind: JOIN or GOODBYE.
        marker: the topic of the marker.
        numbers: each subscription with the number of its last message.
        epoch: the 64-bit number of this run of the publisher.
        name: the publisher's name, which is cut to `MAX_TOPIC` bytes.
        partial: True if the publisher has subscriptions that it does not count.
        sent_at: nanoseconds since the Unix epoch.
        history: True if the publisher answers requests for lost messages.
        snapshots: True if the publisher answers requests for snapshots.
    """
    flags = partial * _PARTIAL | history * _HISTORY | snapshots * _SNAPSHOTS
    encoded_name = cut_name(name)
    bodies = list(_packed(numbers, STATEMENT_MAX - _STATEMENT.size - len(encoded_name)))
    start = marker + NUL + FIXED.pack(pack_head(kind=kind, codec=0, epoch=epoch), 0, sent_at)
    return [
        start + _STATEMENT.pack(part, len(bodies), flags, len(encoded_name)) + encoded_name + body
        for part, body in enumerate(bodies)
    ]


def _packed(numbers: Iterable[tuple[bytes, int]], size: int) -> Iterator[bytes]:
    """Yield the entries of a statement in pieces of at most ``size`` bytes.

    Without entries, yield one empty piece.
    """
    piece = b""
    for prefix, number in numbers:
        packed = entry(prefix, number)
        if len(piece) + len(packed) > size:
            yield piece
            piece = b""
        piece += packed
    yield piece


def pack_farewell(subscriber: int, epoch: int) -> bytes:
    """Return the subscription that confirms the GOODBYE of a publisher's run.

    Args:
        subscriber: the number from `Marker.subscriber`.
        epoch: the 64-bit number of this run of the publisher.
    """
    return FAREWELL + b"%012x%016x" % (subscriber, epoch)


def pack_beat(prefix: bytes, number: int, *, epoch: int, next_ms: int, sent_at: int) -> bytes:
    """Return the frame that repeats the number of the last message of ``prefix``.

    Args:
        prefix: the subscription.
        number: the number of the subscription's last message.
        epoch: the 64-bit number of this run of the publisher.
        next_ms: milliseconds until the next beat, or 0 if none will follow.
        sent_at: nanoseconds since the Unix epoch.
    """
    head = pack_head(kind=Kind.BEAT, codec=0, span=len(prefix), epoch=epoch)
    return prefix + NUL + FIXED.pack(head, number, sent_at) + _BEAT.pack(next_ms)


# -- decode frames --------------------------------------------------------------------------------------


def parse_marker(topic: bytes) -> Marker:
    """Parse a subscription that starts with `MARKER`.

    Raises EnvelopeError if the id is missing or malformed, or the list of subscriptions is incomplete.
    """
    try:
        number = int(topic[len(MARKER) : len(MARKER) + _ID_SIZE].decode("ascii"), 16)
    except ValueError as error:
        raise EnvelopeError("a marker without a valid id") from error
    if topic[: len(MARKER) + _ID_SIZE] != MARKER + b"%016x" % number:  # int() also accepts signs and spaces
        raise EnvelopeError("a marker without a valid id")
    wanted, at, summary = [], len(MARKER) + _ID_SIZE, False
    while at < len(topic):
        if topic[at:] == _SUMMARY:
            summary = True
            break
        end = at + 1 + topic[at]
        if end > len(topic) or topic[at] == 0:
            raise EnvelopeError("a marker that ends in the middle of a subscription")
        wanted.append(topic[at + 1 : end])
        at = end
    return Marker(topic, number, tuple(wanted), summary)


def parse_farewell(topic: bytes) -> tuple[int, int]:
    """Return the subscriber and epoch of a subscription that starts with `FAREWELL`.

    Raises EnvelopeError unless 12 and then 16 lower-case hexadecimal digits follow.
    """
    digits = topic[len(FAREWELL) :]
    try:
        subscriber, epoch = int(digits[:12], 16), int(digits[12:], 16)
    except ValueError as error:
        raise EnvelopeError("a farewell without a valid subscriber and epoch") from error
    if topic != pack_farewell(subscriber, epoch):
        raise EnvelopeError("a farewell without a valid subscriber and epoch")
    return subscriber, epoch


def parse_statement(body: bytes) -> Statement:
    """Parse the body of a JOIN or a GOODBYE, after the header.

    Raises EnvelopeError if the body is incomplete or its numbers are inconsistent.
    """
    if len(body) < _STATEMENT.size:
        raise EnvelopeError(f"a statement of {len(body)} bytes; expected at least {_STATEMENT.size}")
    part, parts, flags, length = _STATEMENT.unpack_from(body)
    if part >= parts:
        raise EnvelopeError(
            f"a statement with the part number {part} of {parts} parts; expected a number below the number of parts"
        )
    name, numbers = named_numbers(body, _STATEMENT.size, length)
    facts = [bool(flags & each) for each in (_HISTORY, _SNAPSHOTS)]
    return Statement(part, parts, name, bool(flags & _PARTIAL), numbers, *facts)


def named_numbers(body: bytes, at: int, length: int) -> tuple[str, tuple[tuple[bytes, int], ...]]:
    """Return the name and the numbers at the end of a statement, on ZeroMQ and NATS.

    Raises EnvelopeError if they are incomplete, or if the name is not UTF-8.

    Args:
        body: the body of the statement.
        at: the beginning of the name.
        length: the size of the name in bytes.
    """
    start, at = at, at + length
    if at > len(body):
        raise EnvelopeError("a statement that ends in the middle of its name")
    try:
        name = body[start:at].decode()
    except UnicodeDecodeError as error:
        raise EnvelopeError("a statement whose name is not UTF-8") from error
    numbers = []
    while at < len(body):
        start, end = at + 1, at + 1 + body[at]
        at = end + _NUMBER.size
        if at > len(body):
            raise EnvelopeError("a statement that ends in the middle of an entry")
        numbers.append((body[start:end], _NUMBER.unpack_from(body, end)[0]))
    return name, tuple(numbers)


def entry(prefix: bytes, number: int) -> bytes:
    """Return an entry of a statement: a subscription or topic, with its number."""
    return bytes([len(prefix)]) + prefix + _NUMBER.pack(number)


def cut_name(name: str) -> bytes:
    """Return the name of a publisher for a statement, cut to `MAX_TOPIC` bytes.

    It is never cut inside a character, because a reader refuses a name that is not UTF-8.
    """
    return name.encode()[:MAX_TOPIC].decode(errors="ignore").encode()


def parse_beat(body: bytes) -> int:
    """Return the milliseconds until the next beat, or 0 if none will follow.

    ``body`` is the body of a BEAT without the header. Raises EnvelopeError if the body is too short.
    """
    if len(body) < _BEAT.size:
        raise EnvelopeError(f"a beat of {len(body)} bytes; expected at least {_BEAT.size}")
    milliseconds: int = _BEAT.unpack_from(body)[0]
    return milliseconds
