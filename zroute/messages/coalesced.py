"""Coalesced frames: several messages of one topic in one tracked frame.

The bodies form one list in the codec's own format, so a reader can decode all of them in one call. An index before the
list holds the end of each body. A reader can use the index to decode each body separately, so one invalid message does
not affect the others.

Like `zroute.messages.wire`, this module only converts bytes. ``docs/reference/wire.md`` specifies the layout.
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

__all__ = ["END", "LISTS", "Coalesced", "CoalescedFramer", "coalesced_framer", "parse_coalesced", "split_frame"]

CoalescedFramer: TypeAlias = Callable[[bytes, int, Sequence[bytes], int], bytes]

END = Struct(">H")
"""The number of messages at the start of a frame's content, and the end of each message."""
# msgpack's array 16. It is used for every length, so the first body always starts at the same offset.
_ARRAY = Struct(">BH")
_ARRAY_16 = 0xDC
_64_BITS = 2**64 - 1
_KIND_AT = 4  # the offset of the kind in a header; codec and flags follow


@attrs.define(eq=False)  # not frozen: a frozen instance takes three times as long to create
class Coalesced:
    """The parsed content of a COALESCED frame, without its header.

    Attributes:
        codec: the number of the codec of all messages.
        many: the number of messages.
        ends: the end of each body as an offset into ``listing``, 16 bits each.
        listing: the list of the bodies.
    """

    codec: int
    many: int
    ends: bytes
    listing: bytes

    @property
    def bodies(self) -> list[bytes]:
        """The encoded messages, as separate bytes objects.

        In a malformed frame, an end may be smaller than the previous end. Such an end is raised to the previous one. No
        byte then belongs to two messages, so all messages together never exceed the frame.
        """
        before, between = _LAYOUT.get(self.codec, (0, 0))
        ends = list(accumulate(unpack(f">{self.many}H", self.ends), max))
        starts = (before, *(end + between for end in ends))
        listing = self.listing
        return [listing[start:end] for start, end in zip(starts, ends, strict=False)]


_LAYOUT = {JSON.number: (1, 1), MSGPACK.number: (_ARRAY.size, 0)}
"""By codec number: the number of bytes before the first body, and after each body.

With other codecs, the bodies follow each other directly.
"""


def coalesced_framer(
    *, epoch: int, count: Callable[[bytes, int], Sequence[Numbered]], keeps: bool = False
) -> CoalescedFramer:
    """Return the function that packs several messages of one topic into one frame.

    The function takes the topic, the codec number, the bodies, and the time of the first message in nanoseconds since
    the Unix epoch.

    Args:
        epoch: the 64-bit number of this run of the publisher.
        count: ``count(topic, many)`` counts ``many`` messages and returns the counters for the frame, with their values
            after the last message. ``count`` is called last, after all steps that can fail.
        keeps: True if the publisher keeps the messages for new subscribers.
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
        # The counters hold the numbers of the last message, and the frame carries those of the first one.
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
    """Parse the content of a COALESCED frame.

    Args:
        codec: the number of the codec in the header.
        body: the bytes after the header.

    Raises:
        EnvelopeError: the number of messages, the index and the list do not match.
    """
    if len(body) < END.size:
        raise EnvelopeError(f"a coalesced frame with a body of {len(body)} bytes; expected at least {END.size}")
    (many,) = END.unpack_from(body)
    start = END.size * (many + 1)
    if not 0 < many <= COALESCED_MAX or len(body) < start:
        raise EnvelopeError(f"a coalesced frame with an invalid number of messages: {many} in {len(body)} bytes")
    (end,) = END.unpack_from(body, start - END.size)
    listing = body[start:]
    if len(listing) != end + _LAYOUT.get(codec, (0, 0))[1] or not _is_list(codec, many, listing):
        raise EnvelopeError(
            f"a coalesced frame of {many} messages with an index that does not match the frame's length"
        )
    return Coalesced(codec, many, body[END.size : start], listing)


def _is_list(codec: int, many: int, listing: bytes) -> bool:
    """Return True if ``listing`` begins and ends like a list of ``many`` items."""
    if codec == JSON.number:
        return listing[:1] == b"[" and listing[-1:] == b"]"
    return codec != MSGPACK.number or listing[: _ARRAY.size] == _ARRAY.pack(_ARRAY_16, many)


LISTS = {
    JSON.number: (_LAYOUT[JSON.number][1], "body[0] == 0x5B and body[-1] == 0x5D"),  # [ and ]
    MSGPACK.number: (_LAYOUT[MSGPACK.number][1], f"body[0] == {_ARRAY_16:#x}"),  # its length is checked when decoded
}
"""How generated code checks the list ``body`` of a frame, by codec number.

The first item is the number of bytes after the end of the last message. The second item is an expression. If ``body``
can also be decoded and has the announced number of messages, `parse_coalesced` accepts the list.
"""


def split_frame(topic: bytes, header: bytes, bodies: Sequence[bytes]) -> list[bytes]:
    """Return one DATA frame for each of ``bodies``.

    Each frame is the same as if its message had been sent alone. ``header`` is the header of the coalesced frame.
    Sequence numbers wrap at 64 bits; only a forged header can reach that limit.
    """
    head, sequence, sent_at = FIXED.unpack_from(header)
    start = topic + NUL
    head = head[:_KIND_AT] + bytes((Kind.DATA, head[_KIND_AT + 1], 0)) + head[_KIND_AT + 3 :]
    return [
        start + FIXED.pack(head, sequence and (sequence + number) & _64_BITS, sent_at) + body
        for number, body in enumerate(bodies)
    ]
