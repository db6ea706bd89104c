"""Batches: several messages of one topic in one frame of the tracked wire. Sans-IO, as `zroute.messages.wire`.

The bodies stand in the frame as one list of their codec, so that a reader decodes all of them in one call, and what
stands before it says where each ends, so that it can be found without trusting the others: one that is broken, or that
is two, costs itself only. The layout is specified in ``docs/reference/wire.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from struct import Struct, pack, unpack
from typing import TypeAlias

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.codecs import JSON, MSGPACK
from zroute.messages.wire import COUNTER, COUNTERS_SHIFT, FIXED, NUL, Flags, Heads, Kind, Numbered
from zroute.options import COALESCED_MAX

__all__ = ["Coalesced", "CoalescedFramer", "coalesced_framer", "parse_coalesced", "split_frame"]

CoalescedFramer: TypeAlias = Callable[[bytes, int, Sequence[bytes], int], bytes]

_COUNT = Struct(">H")
_ARRAY = Struct(">BH")  # msgpack's array 16: one form for all lengths, so that the list begins at a known place
_ARRAY_16 = 0xDC
_64_BITS = 2**64 - 1
_KIND_AT = 4  # in a header; codec and flags follow


@attrs.define(eq=False)  # frozen ones take three times as long to make
class Coalesced:
    """The body of a BATCH, behind the header: ``many`` messages, their ``ends``, and the ``listing`` they stand in."""

    codec: int
    many: int
    ends: bytes
    listing: bytes

    @property
    def bodies(self) -> list[bytes]:
        """The messages, each as its publisher wrote it.

        An end that lies before another is that one: so no byte is in two messages, and they are no larger than the
        frame, whatever it says.
        """
        before, between = _LAYOUT.get(self.codec, (0, 0))
        ends = list(accumulate(unpack(f">{self.many}H", self.ends), max))
        starts = (before, *(end + between for end in ends))
        listing = self.listing
        return [listing[start:end] for start, end in zip(starts, ends, strict=False)]


_LAYOUT = {JSON.number: (1, 1), MSGPACK.number: (_ARRAY.size, 0)}
"""By codec: the bytes before the first message, and those behind each. Lists of other codecs are their messages."""


def coalesced_framer(
    *, epoch: int, count: Callable[[bytes, int], Sequence[Numbered]], keeps: bool = False
) -> CoalescedFramer:
    """What turns ``(topic, codec number, bodies, time of the first in ns)`` into one frame.

    ``count(topic, many)`` counts so many messages and returns the counters that the frame carries, as they
    stand behind the last of them. It is called last, when nothing can fail any more.
    """
    heads = Heads(Kind.COALESCED, epoch)
    always = (Flags.KEEPS << 8) if keeps else 0

    def frame(topic: bytes, codec: int, bodies: Sequence[bytes], sent_at: int) -> bytes:
        many = len(bodies)
        listing = _LISTINGS.get(codec, b"".join)(bodies)
        before, between = _LAYOUT.get(codec, (0, 0))
        ends = [end + between * number for number, end in enumerate(accumulate(map(len, bodies), initial=before))][1:]
        packed = pack(f">{many + 1}H", many, *(end - between for end in ends)) + listing
        counters = count(topic, many)
        if not counters:
            return topic + NUL + FIXED.pack(heads[always | codec], 0, sent_at) + packed
        first, *others = counters
        key = first.length << 16 | len(others) << COUNTERS_SHIFT + 8 | always | codec
        further = b"".join([COUNTER.pack(other.length, other.number - many + 1) for other in others])
        return topic + NUL + FIXED.pack(heads[key], first.number - many + 1, sent_at) + further + packed

    return frame


def _json_list(bodies: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(bodies) + b"]"


def _msgpack_list(bodies: Sequence[bytes]) -> bytes:
    return _ARRAY.pack(_ARRAY_16, len(bodies)) + b"".join(bodies)


_LISTINGS: dict[int, Callable[[Sequence[bytes]], bytes]] = {JSON.number: _json_list, MSGPACK.number: _msgpack_list}


def parse_coalesced(codec: int, body: bytes) -> Coalesced:
    """The body of a BATCH, behind the header, whose messages are in ``codec``. Raises EnvelopeError."""
    if len(body) < _COUNT.size:
        raise EnvelopeError("a coalesced frame that ends inside its number of messages")
    (many,) = _COUNT.unpack_from(body)
    start = _COUNT.size * (many + 1)
    if not 0 < many <= COALESCED_MAX or len(body) < start:
        raise EnvelopeError(f"a coalesced frame of {len(body)} bytes that claims {many} messages")
    (end,) = _COUNT.unpack_from(body, start - _COUNT.size)
    listing = body[start:]
    if len(listing) != end + _LAYOUT.get(codec, (0, 0))[1] or not _is_list(codec, many, listing):
        raise EnvelopeError(f"a coalesced frame of {many} messages that does not end where the last of them does")
    return Coalesced(codec, many, body[_COUNT.size : start], listing)


def _is_list(codec: int, many: int, listing: bytes) -> bool:
    """Whether what stands around the messages is what stands around a list."""
    if codec == JSON.number:
        return listing[:1] == b"[" and listing[-1:] == b"]"
    return codec != MSGPACK.number or listing[: _ARRAY.size] == _ARRAY.pack(_ARRAY_16, many)


def split_frame(topic: bytes, header: bytes, bodies: Sequence[bytes]) -> list[bytes]:
    """Each of ``bodies`` in the frame that it would have come in alone; the frame begins with ``header``.

    Numbers past 64 bits, which only an invented header leads to, begin anew.
    """
    head, sequence, sent_at = FIXED.unpack_from(header)
    start = topic + NUL
    head = head[:_KIND_AT] + bytes((Kind.DATA, head[_KIND_AT + 1], 0)) + head[_KIND_AT + 3 :]
    return [
        start + FIXED.pack(head, sequence and (sequence + number) & _64_BITS, sent_at) + body
        for number, body in enumerate(bodies)
    ]
