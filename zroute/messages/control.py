"""Control frames of the tracked wire, which carry the bookkeeping of loss (`zroute.receiving.tracker`).

Markers ask; statements answer them at a join and at a goodbye; farewells answer a goodbye. A ping is a marker that
wants nothing: its answer is a sign of life. Beats say where a quiet subscription stands.
Sans-IO, as `zroute.messages.wire`; ``docs/reference/wire.md`` specifies the layout, with test vectors.
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
"""What the topic of a marker begins with: no UTF-8, so that it is no topic of an app's."""
FAREWELL = b"\xff\xffzg"
"""What a farewell begins with."""

_BEAT = Struct(">I")
_STATEMENT = Struct(">HHBB")  # part, parts, flags, length of the name
_NUMBER = Struct(">Q")
_ID_SIZE = 16  # 64 bits in hexadecimal, since a marker is a topic, and holds no NUL
_WANTED_MAX = MAX_TOPIC - len(MARKER) - _ID_SIZE
_SUMMARY = b"\xff"
_ALL = (b"",)


@attrs.frozen(slots=True)
class Marker:
    """What a subscriber sends behind its subscriptions, as a subscription itself, to be answered.

    ``wanted`` are the subscriptions that the answer is about, or, in a ``summary``, the one prefix that all of them
    have in common. Without any it is the subscription to everything, or a summary of all.
    """

    topic: bytes
    id: int
    wanted: tuple[bytes, ...]
    summary: bool = False

    @property
    def subscriber(self) -> int:
        """What the markers of one subscriber have in common: the upper 48 bits of their ids."""
        return self.id >> 16

    @property
    def is_ping(self) -> bool:
        """True if it wants nothing but a sign of life: no subscription that is counted begins with `MARKER`."""
        return self.wanted == (MARKER,)

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """The wanted subscriptions, or the prefix of a summary."""
        return self.wanted or _ALL

    def wants(self, prefix: bytes) -> bool:
        """Return True if ``prefix``, a topic or a subscription, begins with one that is wanted."""
        return not self.wanted or prefix.startswith(self.wanted)


@attrs.frozen(slots=True)
class Statement:
    """One part of where a publisher's counters stand: the body of a JOIN and of a GOODBYE.

    ``part`` of ``parts``, from 0; ``name`` is the publisher's own, the same after a restart, or empty;
    ``partial`` says that there are subscriptions that it does not count; ``numbers`` are those of the subscriptions of
    this part. All parts together name every wanted subscription that is live at the publisher, also those at 0.
    """

    part: int
    parts: int
    name: str
    partial: bool
    numbers: tuple[tuple[bytes, int], ...]


# -- out ------------------------------------------------------------------------------------------------


def pack_marker(number: int, subscriptions: Iterable[bytes]) -> bytes:
    """The topic of a marker with this id (64 bits, never used before; see `Marker.subscriber`) for these subscriptions.

    It names them where they fit, else what they have in common. A prefix of no bytes can't be named: alone it is a
    marker that names none, with others a summary of all.
    """
    wanted, summary = sorted(subscriptions), b""
    if sum(1 + len(prefix) for prefix in wanted) > _WANTED_MAX or (b"" in wanted and len(wanted) > 1):
        wanted, summary = [_in_common(wanted[0], wanted[-1])[: _WANTED_MAX - 2]], _SUMMARY
    if b"" in wanted:
        wanted = []
    listed = b"".join([bytes([len(prefix)]) + prefix for prefix in wanted])
    return MARKER + b"%016x" % number + listed + summary


def pack_ping(number: int) -> bytes:
    """Return the topic of a marker that wants nothing but a sign of life; ``number`` as in `pack_marker`."""
    return pack_marker(number, (MARKER,))


def _in_common(first: bytes, last: bytes) -> bytes:
    """What both begin with, and so all that stands between them in order."""
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
    """The frames of an answer to ``marker`` (of a goodbye to it): where ``numbers`` of subscriptions stand."""
    called = name.encode()[:MAX_TOPIC].decode(errors="ignore").encode()
    bodies = list(_packed(numbers, STATEMENT_MAX - _STATEMENT.size - len(called)))
    start = marker + NUL + FIXED.pack(pack_head(kind=kind, codec=0, epoch=epoch), 0, sent_at)
    return [
        start + _STATEMENT.pack(part, len(bodies), int(partial), len(called)) + called + body
        for part, body in enumerate(bodies)
    ]


def _packed(numbers: Iterable[tuple[bytes, int]], size: int) -> Iterator[bytes]:
    """The entries of a statement in pieces of at most ``size`` bytes; one, though empty, if there are none."""
    piece = b""
    for prefix, number in numbers:
        entry = bytes([len(prefix)]) + prefix + _NUMBER.pack(number)
        if len(piece) + len(entry) > size:
            yield piece
            piece = b""
        piece += entry
    yield piece


def pack_farewell(subscriber: int, epoch: int) -> bytes:
    """The subscription by which ``subscriber`` (see `Marker.subscriber`) says that it has read ``epoch``'s goodbye."""
    return FAREWELL + b"%012x%016x" % (subscriber, epoch)


def pack_beat(prefix: bytes, number: int, *, epoch: int, next_ms: int, sent_at: int) -> bytes:
    """The frame that says: ``number`` was the last message of ``prefix``; the next beat is in ``next_ms``, 0: none."""
    head = pack_head(kind=Kind.BEAT, codec=0, span=len(prefix), epoch=epoch)
    return prefix + NUL + FIXED.pack(head, number, sent_at) + _BEAT.pack(next_ms)


# -- in -------------------------------------------------------------------------------------------------


def parse_marker(topic: bytes) -> Marker:
    """A subscription that starts with `MARKER`, as a marker. Raises EnvelopeError."""
    try:
        number = int(topic[len(MARKER) : len(MARKER) + _ID_SIZE].decode("ascii"), 16)
    except ValueError as error:
        raise EnvelopeError("a marker without an id") from error
    if topic[: len(MARKER) + _ID_SIZE] != MARKER + b"%016x" % number:  # int() takes signs and spaces too
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
    """Subscriber and epoch of a subscription that starts with `FAREWELL`. Raises EnvelopeError."""
    told = topic[len(FAREWELL) :]
    try:
        subscriber, epoch = int(told[:12], 16), int(told[12:], 16)
    except ValueError as error:
        raise EnvelopeError("a farewell that names nobody") from error
    if topic != pack_farewell(subscriber, epoch):
        raise EnvelopeError("a farewell that names nobody")
    return subscriber, epoch


def parse_statement(body: bytes) -> Statement:
    """The body of a JOIN or a GOODBYE, behind the header. Raises EnvelopeError."""
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
    """The body of a BEAT, behind the header: milliseconds until the next, 0 for none. Raises EnvelopeError."""
    if len(body) < _BEAT.size:
        raise EnvelopeError(f"a beat of {len(body)} bytes, of at least {_BEAT.size}")
    milliseconds: int = _BEAT.unpack_from(body)[0]
    return milliseconds
