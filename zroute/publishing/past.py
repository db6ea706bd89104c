"""Find the messages of the past for a subscriber that has joined.

`zroute.publishing.recovery` answers the requests, ``docs/reference/wire.md`` describes them, and
`zroute.publishing.history` keeps the frames.

**The past** of a subscription consists of all its kept frames up to the number in the statement that completed the join
of the subscriber. Frames from before the counter of the subscription have no number, and belong to the past too.

**Positions.** A frame is identified by its position in the histories: the order of its block, and its index in the
block. A subscriber asks for the frames from a position on. The publisher therefore stores nothing between two requests.
The frames of a publication are in the order of sending. Blocks of several publications follow each other as they were
made, in each tick, so the frames of two publications are in order to within a quarter of a second.

Each answer says how many messages are left. The subscriber thus notices messages that a history has dropped between two
requests.

**Work.** Peers choose their requests, so `PastSearch.work` counts the blocks and frames that an answer had to look at.
Sums of messages take constant time, because each part has the running total of its frames.

This module sends nothing and reads no clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from operator import attrgetter

import attrs

from zroute.messages.recovery import Past, PastAnswer, SinceMode, many_of, numbers_of
from zroute.publishing.history import Block, Ring, sent_at

__all__ = ["INDEX_BITS", "PastSearch"]

INDEX_BITS = 16
"""The number of low bits of a position that contain the index of a frame in its block."""

_LIVE_MAX = 16
"""The number of subscribers for which a search remembers the messages behind their numbers."""

_order = attrgetter("order")


@attrs.define(eq=False)
class _Part:
    """The frames of a subscription in one block.

    ``indexes`` are those of the frames in the block, ``total`` is the number of messages, and ``last`` is the number of
    the last frame. ``sums`` are the numbers of messages before each frame; empty if each frame is one message.
    """

    block: Block
    span: int
    indexes: Sequence[int]
    frames: list[bytes]
    total: int = 0
    last: int = 0
    sums: Sequence[int] = ()

    @classmethod
    def of(cls, block: Block, prefix: bytes) -> _Part:
        found = [(index, frame) for index, frame in enumerate(block.frames, block.dropped) if frame.startswith(prefix)]
        part = cls(block, len(prefix), [index for index, _ in found], [frame for _, frame in found])
        sums = list(accumulate(map(many_of, part.frames), initial=0))
        part.total = sums[-1]
        part.sums = sums if part.total > len(part.frames) else ()
        part.last = part.number(part.frames[-1]) if part.frames else 0
        return part

    def number(self, frame: bytes) -> int:
        return numbers_of(frame, self.span)[0]

    def follow(self) -> None:
        """Forget the frames that the block has dropped since the last call."""
        gone = bisect_left(self.indexes, self.block.dropped)
        if gone:
            self.total -= self.between(0, gone)
            self.indexes, self.frames, self.sums = self.indexes[gone:], self.frames[gone:], self.sums[gone:]

    def end(self, upto: int) -> int:
        """Return the number of frames up to the message ``upto``."""
        return len(self.frames) if self.last <= upto else bisect_right(self.frames, upto, key=self.number)

    def between(self, first: int, end: int) -> int:
        """Return the number of messages in the frames from ``first`` to before ``end``."""
        return self.sums[end] - self.sums[first] if self.sums else end - first

    def messages(self, upto: int) -> int:
        """Return the number of messages up to the message ``upto``."""
        return self.between(0, self.end(upto))


class PastSearch:
    """The frames of one subscription in all rings, as far as they were needed.

    A search holds only frames that the rings still contain. Large messages have a block of their own, so there may be
    many blocks. Lists of them are therefore made again only if the rings have changed.

    Attributes:
        work: The number of frames and blocks that were looked at, without those that `prepare` has yielded. The caller
            may set it to 0.
    """

    def __init__(self, rings: Sequence[Ring], prefix: bytes) -> None:
        self._rings = rings
        self._prefix = prefix
        self._version = -1
        self._blocks: list[Block] = []  # of all rings, in their order
        self._parts: dict[int, _Part] = {}  # of scanned blocks, by their order
        self._low = 0  # all blocks from this index on are scanned
        self._left: list[int] = []  # the messages in the last n blocks, for each n
        self._live: dict[int, list[tuple[int, int]]] = {}  # see `_behind`
        self.work = 0

    @property
    def found(self) -> int:
        """The number of frames."""
        return sum(len(part.frames) for part in self._parts.values())

    def prepare(self, past: Past, now: int) -> Iterator[int]:
        """Scan the blocks that the answer to a request needs, the newest first.

        Yield the number of scanned frames after each step. The caller may stop at any time, and call this method again
        later.

        Args:
            past: The request.
            now: The time of the headers, in nanoseconds.
        """
        if self._follow():
            yield len(self._blocks)
        begin = self._begin(past, now)
        least = past.since.value if not past.position and past.since.mode is SinceMode.LAST else None
        for at in range(len(self._blocks) - 1 if least is not None else self._low - 1, begin - 1, -1):
            block = self._blocks[at]
            self.work += 1
            part = self._parts.get(block.order)
            if part is None:
                part = self._parts[block.order] = _Part.of(block, self._prefix)
                yield len(block.frames) + 2 * len(part.frames)
            if at < self._low:
                self._low = at
                self._left.append(self._left[-1] + part.total)
                self._live.clear()
            if least is not None:
                least -= part.messages(past.upto)
                if least <= 0:
                    break

    def _follow(self) -> bool:
        """Follow the changes of the rings; return False if there were none."""
        version = sum(ring.version for ring in self._rings)
        if version == self._version:
            return False
        self._version = version
        self._blocks = sorted(chain.from_iterable(ring.blocks for ring in self._rings), key=_order)
        parts = self._parts
        self._parts = {block.order: parts[block.order] for block in self._blocks if block.order in parts}
        for part in self._parts.values():
            part.follow()
        self._low, self._left = len(self._blocks), [0]
        self._live.clear()
        return True

    def _begin(self, past: Past, now: int) -> int:
        """Return the index of the first block that may be needed."""
        if past.position:
            return bisect_left(self._blocks, past.position >> INDEX_BITS, key=_order)
        if past.since.mode in (SinceMode.AGE, SinceMode.TIME):
            time, blocks = _time(past, now), self._blocks
            self.work += len(blocks)
            return next((at for at, block in enumerate(blocks) if block.last_at >= time), len(blocks))
        return 0

    def window(self, past: Past, now: int, size: int) -> tuple[PastAnswer, list[tuple[int, bytes]], bool]:
        """Return what an answer says, its messages, and True if there are more.

        Call `prepare` before, until it ends. The messages have up to ``size`` bytes, and one message more.
        """
        position = self._first(past, now)
        order, index = position >> INDEX_BITS, position & ((1 << INDEX_BITS) - 1)
        begin = max(bisect_left(self._blocks, order, key=_order), self._low)
        left = self._left[len(self._blocks) - begin]
        behind = self._behind(past.upto)
        left -= sum(many for block, many in behind if block >= order)
        self.work += len(behind)
        entries: list[tuple[int, bytes]] = []
        for at in range(begin, len(self._blocks)):
            part = self._parts[self._blocks[at].order]
            first = bisect_left(part.indexes, index) if part.block.order == order else 0
            left = max(left - part.between(0, first), 0)  # a peer chooses the position
            self.work += 1
            for place in range(first, part.end(past.upto)):
                if size <= 0:
                    return PastAnswer(past.position, left), entries, True
                entries.append((part.block.order << INDEX_BITS | part.indexes[place], part.frames[place]))
                size -= len(part.frames[place])
        return PastAnswer(past.position, left), entries, False

    def _behind(self, upto: int) -> list[tuple[int, int]]:
        """Return the blocks with messages behind the message ``upto``.

        Each entry contains the order of a block, and the number of these messages. Each subscriber has its own number,
        so the results are stored until a block changes.
        """
        if upto not in self._live:
            parts = [self._parts[block.order] for block in self._blocks[self._low :]]
            self.work += len(parts)
            if len(self._live) >= _LIVE_MAX:
                del self._live[next(iter(self._live))]
            self._live[upto] = [
                (part.block.order, part.total - part.messages(upto)) for part in parts if part.last > upto
            ]
        return self._live[upto]

    def _first(self, past: Past, now: int) -> int:
        """Return the position at which the answer to a request begins, or one before it."""
        if past.position or past.since.mode is SinceMode.ALL:
            return past.position
        parts = [self._parts[block.order] for block in self._blocks[self._low :]]
        self.work += len(parts)
        if past.since.mode is SinceMode.LAST:
            return self._latest(past, parts)
        time = _time(past, now)
        for part in parts:
            if part.block.last_at >= time:
                self.work += len(part.frames)
                for index, frame in zip(part.indexes, part.frames, strict=True):
                    if sent_at(frame) >= time:
                        return part.block.order << INDEX_BITS | index
        return ((parts[-1].block.order if parts else 0) + 1) << INDEX_BITS

    @staticmethod
    def _latest(past: Past, parts: list[_Part]) -> int:
        least, position = past.since.value, (parts[-1].block.order + 1 if parts else 1) << INDEX_BITS
        for part in reversed(parts):
            end = part.end(past.upto)
            if least <= 0:
                break
            if end:
                # The last frame before which the part has too many messages.
                before = part.between(0, end) - least
                place = bisect_right(range(end), before, key=lambda frame: part.between(0, frame)) - 1
                place = max(place, 0)
                least -= part.between(place, end)
                position = part.block.order << INDEX_BITS | part.indexes[place]
        return position


def _time(past: Past, now: int) -> int:
    """Return the time at which the past begins."""
    return past.since.value if past.since.mode is SinceMode.TIME else now - past.since.value
