"""Control frames of the tracked wire: the messages that account for losses.

A subscriber and a publisher exchange these frames; `zroute.receiving.tracker` uses their contents:

- A marker asks a publisher for its counters. A subscriber sends it as a subscription.
- A statement answers a marker, when a subscriber joins (JOIN) and when a publisher stops (GOODBYE).
- A farewell confirms a GOODBYE. A subscriber sends it as a subscription.
- A ping is a marker that asks about no real subscription. The answer only shows that the publisher is alive.
- A beat repeats the last number of a subscription that has no new messages.

Like `zroute.messages.wire`, this module only converts bytes. ``docs/reference/wire.md`` specifies the layout, with
test vectors.
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
    "FAREWELL",
    "MARKER",
    "Marker",
    "Statement",
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
"""The first bytes of a marker's topic. They are not UTF-8, so no segment pattern of an app matches them."""
FAREWELL = b"\xff\xffzg"
"""The first bytes of a farewell."""

_BEAT = Struct(">I")  # milliseconds until the next beat
_STATEMENT = Struct(">HHBB")  # part, parts, flags, length of the name
_NUMBER = Struct(">Q")
_ID_SIZE = 16  # 64 bits as hexadecimal digits: a marker is a topic, so it must not contain NUL
_WANTED_MAX = MAX_TOPIC - len(MARKER) - _ID_SIZE  # bytes for the list of subscriptions in a marker
_SUMMARY = b"\xff"  # greater than the length of any listed prefix, so it can't be taken for one
_ALL = (b"",)


@attrs.frozen(slots=True)
class Marker:
    """A subscription by which a subscriber asks a publisher for its counters.

    The subscriber sends it after its real subscriptions. libzmq keeps that order, so the publisher knows them by then.

    Attributes:
        topic: the bytes of the marker itself.
        id: a 64-bit number that is used only once.
        wanted: the subscriptions that the answer is about. Without any, it is about the subscription to everything.
        summary: True if ``wanted`` is not a list of subscriptions, but at most one prefix that all of them share.
    """

    topic: bytes
    id: int
    wanted: tuple[bytes, ...]
    summary: bool = False

    @property
    def subscriber(self) -> int:
        """The upper 48 bits of the id, equal in all markers of one subscriber."""
        return self.id >> 16

    @property
    def is_ping(self) -> bool:
        """True if the marker asks only for a sign of life.

        Counted subscriptions never begin with `MARKER`, so it serves as a wanted subscription that matches none.
        """
        return self.wanted == (MARKER,)

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """The wanted subscriptions, or the prefix of a summary."""
        return self.wanted or _ALL

    def wants(self, prefix: bytes) -> bool:
        """Return True if ``prefix`` begins with a wanted subscription.

        ``prefix`` is a topic or a subscription.
        """
        return not self.wanted or prefix.startswith(self.wanted)


@attrs.frozen(slots=True)
class Statement:
    """One part of a list of a publisher's counters: the body of a JOIN or GOODBYE.

    All parts together name every wanted subscription that is live at the publisher, also those with the number 0.

    Attributes:
        part: the index of this part, from 0.
        parts: the number of parts.
        name: the publisher's name, which survives a restart, or "" without one.
        partial: True if the publisher has subscriptions that it does not count.
        numbers: each subscription in this part with the number of its last message.
    """

    part: int
    parts: int
    name: str
    partial: bool
    numbers: tuple[tuple[bytes, int], ...]


# -- encode frames --------------------------------------------------------------------------------------


def pack_marker(number: int, subscriptions: Iterable[bytes]) -> bytes:
    """Return the topic of a marker for these subscriptions.

    The marker lists the subscriptions if they fit into a topic. Otherwise it is a summary with their common prefix. A
    prefix of no bytes can't be listed: alone, it becomes a marker that lists none; with others, a summary of all.

    Args:
        number: the 64-bit id, used only once; see `Marker.subscriber`.
        subscriptions: the subscriptions that the answer is to be about.
    """
    wanted, summary = sorted(subscriptions), b""
    if sum(1 + len(prefix) for prefix in wanted) > _WANTED_MAX or (b"" in wanted and len(wanted) > 1):
        wanted, summary = [_in_common(wanted[0], wanted[-1])[: _WANTED_MAX - 2]], _SUMMARY
    if b"" in wanted:
        wanted = []
    listed = b"".join([bytes([len(prefix)]) + prefix for prefix in wanted])
    return MARKER + b"%016x" % number + listed + summary


def pack_ping(number: int) -> bytes:
    """Return the topic of a marker that asks only for a sign of life.

    ``number`` is the 64-bit id, as in `pack_marker`.
    """
    return pack_marker(number, (MARKER,))


def _in_common(first: bytes, last: bytes) -> bytes:
    """Return the common prefix of the first and last of sorted values.

    All values between them share it.
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
) -> list[bytes]:
    """Return the frames that answer ``marker`` with the publisher's counters.

    Args:
        kind: JOIN or GOODBYE.
        marker: the topic of the marker.
        numbers: each subscription with the number of its last message.
        epoch: the 64-bit number of this run of the publisher.
        name: the publisher's name, cut to `MAX_TOPIC` bytes.
        partial: True if the publisher has subscriptions that it does not count.
        sent_at: nanoseconds since the Unix epoch.
    """
    # Cut in bytes, but never inside a character: a reader refuses a name that is not UTF-8.
    encoded_name = name.encode()[:MAX_TOPIC].decode(errors="ignore").encode()
    bodies = list(_packed(numbers, STATEMENT_MAX - _STATEMENT.size - len(encoded_name)))
    start = marker + NUL + FIXED.pack(pack_head(kind=kind, codec=0, epoch=epoch), 0, sent_at)
    return [
        start + _STATEMENT.pack(part, len(bodies), int(partial), len(encoded_name)) + encoded_name + body
        for part, body in enumerate(bodies)
    ]


def _packed(numbers: Iterable[tuple[bytes, int]], size: int) -> Iterator[bytes]:
    """Yield the entries of a statement in pieces of at most ``size`` bytes.

    Without entries it yields one empty piece.
    """
    piece = b""
    for prefix, number in numbers:
        entry = bytes([len(prefix)]) + prefix + _NUMBER.pack(number)
        if len(piece) + len(entry) > size:
            yield piece
            piece = b""
        piece += entry
    yield piece


def pack_farewell(subscriber: int, epoch: int) -> bytes:
    """Return the subscription that confirms the goodbye of ``epoch``.

    ``subscriber`` is the number from `Marker.subscriber`.
    """
    return FAREWELL + b"%012x%016x" % (subscriber, epoch)


def pack_beat(prefix: bytes, number: int, *, epoch: int, next_ms: int, sent_at: int) -> bytes:
    """Return the frame that repeats the number of the last message of ``prefix``.

    Args:
        prefix: the subscription.
        number: the number of its last message.
        epoch: the 64-bit number of this run of the publisher.
        next_ms: milliseconds until the next beat, or 0 if none will follow.
        sent_at: nanoseconds since the Unix epoch.
    """
    head = pack_head(kind=Kind.BEAT, codec=0, span=len(prefix), epoch=epoch)
    return prefix + NUL + FIXED.pack(head, number, sent_at) + _BEAT.pack(next_ms)


# -- decode frames --------------------------------------------------------------------------------------


def parse_marker(topic: bytes) -> Marker:
    """Parse a subscription that starts with `MARKER`.

    Raises EnvelopeError if the id is malformed or the list of subscriptions is cut off.
    """
    try:
        number = int(topic[len(MARKER) : len(MARKER) + _ID_SIZE].decode("ascii"), 16)
    except ValueError as error:
        raise EnvelopeError("a marker without an id") from error
    if topic[: len(MARKER) + _ID_SIZE] != MARKER + b"%016x" % number:  # int() also accepts signs and spaces
        raise EnvelopeError("a marker without an id")
    wanted, at, summary = [], len(MARKER) + _ID_SIZE, False
    while at < len(topic):
        if topic[at:] == _SUMMARY:
            summary = True
            break
        end = at + 1 + topic[at]
        if end > len(topic) or topic[at] == 0:
            raise EnvelopeError("a marker that ends inside a prefix")
        wanted.append(topic[at + 1 : end])
        at = end
    return Marker(topic, number, tuple(wanted), summary)


def parse_farewell(topic: bytes) -> tuple[int, int]:
    """Return the subscriber and epoch of a subscription that starts with `FAREWELL`.

    Raises EnvelopeError for anything but 12 and 16 lower-case hexadecimal digits.
    """
    digits = topic[len(FAREWELL) :]
    try:
        subscriber, epoch = int(digits[:12], 16), int(digits[12:], 16)
    except ValueError as error:
        raise EnvelopeError("a farewell without a subscriber and an epoch") from error
    if topic != pack_farewell(subscriber, epoch):
        raise EnvelopeError("a farewell without a subscriber and an epoch")
    return subscriber, epoch


def parse_statement(body: bytes) -> Statement:
    """Parse the body of a JOIN or a GOODBYE, after the header.

    Raises EnvelopeError if the body is cut off, or its numbers contradict each other.
    """
    if len(body) < _STATEMENT.size:
        raise EnvelopeError(f"a statement of {len(body)} bytes, of at least {_STATEMENT.size}")
    part, parts, flags, length = _STATEMENT.unpack_from(body)
    if part >= parts:
        raise EnvelopeError(f"part {part} of a statement of {parts}, counted from 0")
    at = _STATEMENT.size + length
    if at > len(body):
        raise EnvelopeError("a statement that ends inside its name")
    try:
        name = body[_STATEMENT.size : at].decode()
    except UnicodeDecodeError as error:
        raise EnvelopeError("a statement whose name is not UTF-8") from error
    numbers = []
    while at < len(body):
        start, end = at + 1, at + 1 + body[at]
        at = end + _NUMBER.size
        if at > len(body):
            raise EnvelopeError("a statement that ends inside an entry")
        numbers.append((body[start:end], _NUMBER.unpack_from(body, end)[0]))
    return Statement(part, parts, name, bool(flags & 1), tuple(numbers))


def parse_beat(body: bytes) -> int:
    """Return the milliseconds until the next beat, or 0 if none will follow.

    ``body`` is that of a BEAT, after the header. Raises EnvelopeError if it is too short.
    """
    if len(body) < _BEAT.size:
        raise EnvelopeError(f"a beat of {len(body)} bytes, of at least {_BEAT.size}")
    milliseconds: int = _BEAT.unpack_from(body)[0]
    return milliseconds
