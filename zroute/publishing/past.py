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

**Work.** Peers choose their requests, so `PastSearch.work` counts what an answer had to look at. Each part has the
running total of its row, so sums of messages take no time that grows with the history. A row follows its ring: it scans
the new blocks, and forgets the dropped ones. New messages therefore don't delay a replay.

This module sends nothing and reads no clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import accumulate, islice

import attrs

from zroute.messages.recovery import Past, PastAnswer, SinceMode, many_of, numbers_of
from zroute.publishing.history import BLOCK_COST, Block, Ring, sent_at

__all__ = ["INDEX_BITS", "PastSearch"]

INDEX_BITS = 16
"""The number of low bits of a position that contain the index of a frame in its block."""

PART_FOUND = 10
"""The number of frames that need as much memory as a part in addition to its frames."""

_PART_COST = 10
"""The cost of a look at a part, as a number of frames."""

_END = 2**64 << INDEX_BITS
"""A position after all others."""

_Place = tuple[int, int]
"""A place in a row: the index of a part, and that of a frame in it."""


@attrs.define(eq=False)
class _Part:
    """The frames of a subscription in one block.

    ``indexes`` are those of the frames in the block, ``total`` is the number of messages, and ``last`` is the number of
    the last frame. ``sums`` are the numbers of messages before each frame; empty if each frame is one message.
    ``before`` is the number of messages in the parts before, from any beginning. ``cost`` is that of the scan.
    """

    block: Block
    span: int
    indexes: Sequence[int]
    frames: list[bytes]
    total: int = attrs.field(init=False, default=0)
    last: int = attrs.field(init=False, default=0)
    sums: Sequence[int] = attrs.field(init=False, default=())
    before: int = attrs.field(init=False, default=0)
    cost: int = attrs.field(init=False, default=0)

    @classmethod
    def of(cls, block: Block, prefix: bytes) -> _Part:
        found = [(index, frame) for index, frame in enumerate(block.frames, block.dropped) if frame.startswith(prefix)]
        part = cls(block, len(prefix), [index for index, _ in found], [frame for _, frame in found])
        sums = list(accumulate(map(many_of, part.frames), initial=0))
        part.total = sums[-1]
        part.sums = sums if part.total > len(part.frames) else ()
        part.last = part.number(part.frames[-1]) if part.frames else 0
        part.cost = BLOCK_COST + len(block.frames) + 2 * len(found)
        return part

    @property
    def order(self) -> int:
        return self.block.order

    def number(self, frame: bytes) -> int:
        return numbers_of(frame, self.span)[0]

    def follow(self) -> int:
        """Forget the frames that the block has dropped; return their number."""
        gone = bisect_left(self.indexes, self.block.dropped)
        if gone:
            many = self.between(0, gone)
            self.total -= many
            self.before += many
            self.indexes, self.frames, self.sums = self.indexes[gone:], self.frames[gone:], self.sums[gone:]
        return gone

    def end(self, upto: int) -> int:
        """Return the number of frames up to the message ``upto``."""
        return len(self.frames) if self.last <= upto else bisect_right(self.frames, upto, key=self.number)

    def between(self, first: int, end: int) -> int:
        """Return the number of messages in the frames from ``first`` to before ``end``."""
        return self.sums[end] - self.sums[first] if self.sums else end - first

    def messages(self, upto: int) -> int:
        """Return the number of messages up to the message ``upto``."""
        return self.between(0, self.end(upto))


class _Row:
    """The frames of a subscription in one ring, as far as they were scanned.

    The scanned blocks follow each other without gaps, and ``parts`` contains those with such frames, the oldest first.
    """

    def __init__(self, ring: Ring, prefix: bytes) -> None:
        self.ring = ring
        self.parts: deque[_Part] = deque()
        self.found = 0
        self._prefix = prefix
        self._low = self._high = ring.next  # the scanned blocks

    def follow(self) -> None:
        """Forget what the ring has dropped since the last call."""
        first = self.ring.first
        while self.parts and self.parts[0].block.number < first:
            self.found -= PART_FOUND + len(self.parts.popleft().frames)
        if self.parts:
            self.found -= self.parts[0].follow()
        self._low, self._high = max(self._low, first), max(self._high, first)

    @property
    def newer(self) -> int:
        """The order of the next block after the scanned ones, or 0."""
        ring = self.ring
        return ring.blocks[self._high - ring.first].order if self._high < ring.next else 0

    @property
    def older(self) -> int:
        """The order of the next block before the scanned ones, or 0."""
        ring = self.ring
        return ring.blocks[self._low - 1 - ring.first].order if self._low > ring.first else 0

    def scan_newer(self) -> _Part:
        """Scan the next block after the scanned ones."""
        part = _Part.of(self.ring.blocks[self._high - self.ring.first], self._prefix)
        self._high += 1
        if part.frames:
            part.before = self.parts[-1].before + self.parts[-1].total if self.parts else 0
            self.parts.append(part)
            self.found += PART_FOUND + len(part.frames)
        return part

    def scan_older(self) -> _Part:
        """Scan the next block before the scanned ones."""
        self._low -= 1
        part = _Part.of(self.ring.blocks[self._low - self.ring.first], self._prefix)
        if part.frames:
            part.before = (self.parts[0].before if self.parts else 0) - part.total
            self.parts.appendleft(part)
            self.found += PART_FOUND + len(part.frames)
        return part

    def start(self, position: int) -> _Place:
        """Return the place of the first frame from a position on."""
        order, index = position >> INDEX_BITS, position & ((1 << INDEX_BITS) - 1)
        at = bisect_left(self.parts, order, key=lambda part: part.order)
        inside = at < len(self.parts) and self.parts[at].order == order
        return at, bisect_left(self.parts[at].indexes, index) if inside else 0

    def end(self, upto: int) -> _Place:
        """Return the place after the last frame up to the message ``upto``."""
        at = bisect_right(self.parts, upto, key=lambda part: part.last)
        return at, self.parts[at].end(upto) if at < len(self.parts) else 0

    def between(self, start: _Place, end: _Place) -> int:
        """Return the number of messages between two places, or 0."""
        return self._before(end) - self._before(start) if start < end else 0

    def _before(self, place: _Place) -> int:
        at, frame = place
        if at < len(self.parts):
            return self.parts[at].before + self.parts[at].between(0, frame)
        return self.parts[-1].before + self.parts[-1].total

    def slices(self, start: _Place, end: _Place) -> Iterator[tuple[_Part, range]]:
        """Yield the parts between two places, and the indexes of their frames."""
        for at, part in enumerate(islice(self.parts, start[0], end[0] + 1), start[0]):
            first = start[1] if at == start[0] else 0
            yield part, range(first, end[1] if at == end[0] else len(part.frames))


class PastSearch:
    """The frames of one subscription in all rings, as far as they were needed.

    The blocks of all rings are scanned in their order, from the newest to the oldest. A search holds only frames that
    the rings contained at the last call of `prepare`.

    Attributes:
        work: The cost of all looks, without the costs that `prepare` has yielded. The caller may set it to 0.
    """

    def __init__(self, rings: Sequence[Ring], prefix: bytes) -> None:
        self._rows = [_Row(ring, prefix) for ring in rings]
        self.work = 0

    @property
    def found(self) -> int:
        """The number of frames that need as much memory as the search."""
        return sum(row.found for row in self._rows)

    def prepare(self, past: Past, now: int) -> Iterator[int]:
        """Scan the blocks that the answer to a request needs, the newest first.

        Yield 0 before the first step, and then the cost of each step. The caller may stop at any time, and call this
        method again later.

        Args:
            past: The request.
            now: The time of the headers, in nanoseconds.
        """
        for row in self._rows:
            row.follow()
        self.work += BLOCK_COST * len(self._rows)
        if not past.position:  # otherwise the subscriber has had an answer, and newer blocks are not in its past
            for row in self._rows:
                while row.newer:
                    yield 0
                    yield row.scan_newer().cost
        begin, least = self._begin(past, now), 1
        counts = past.since.mode is SinceMode.LAST and not past.position
        if counts:
            least = past.since.value - sum(row.between((0, 0), row.end(past.upto)) for row in self._rows)
        while least > 0 and (row := max(self._rows, key=_older)).older >= begin:
            yield 0
            part = row.scan_older()
            if counts:
                least -= part.messages(past.upto)
            yield part.cost + len(self._rows)

    def _begin(self, past: Past, now: int) -> int:
        """Return the order of the first block that may be needed."""
        if past.position:
            return max(past.position >> INDEX_BITS, 1)
        if past.since.mode in (SinceMode.AGE, SinceMode.TIME):
            time, begin = _time(past, now), _END
            for row in self._rows:
                self.work += len(row.ring.blocks)
                first = next((block for block in row.ring.blocks if block.last_at >= time), None)
                begin = begin if first is None else min(begin, first.order)
            return begin
        return 1

    def window(self, past: Past, now: int, size: int) -> tuple[PastAnswer, list[tuple[int, bytes]], bool]:
        """Return what an answer says, its messages, and True if there are more.

        Call `prepare` before, until it ends. The messages have up to ``size`` bytes, and one message more.
        """
        position = self._first(past, now)
        left, slices = 0, []
        for row in self._rows:
            start, end = row.start(position), row.end(past.upto)
            if start < end:  # a peer chooses the position
                left += row.between(start, end)
                slices.append(row.slices(start, end))
        answer = PastAnswer(past.position, left)
        entries: list[tuple[int, bytes]] = []
        for part, places in merge(*slices, key=lambda each: each[0].order):
            self.work += _PART_COST
            for place in places:
                if size <= 0:
                    return answer, entries, True
                entries.append((part.order << INDEX_BITS | part.indexes[place], part.frames[place]))
                size -= len(part.frames[place])
        return answer, entries, False

    def _first(self, past: Past, now: int) -> int:
        """Return the position at which the answer to a request begins, or one before it."""
        if past.position or past.since.mode is SinceMode.ALL:
            return past.position
        if past.since.mode is SinceMode.LAST:
            return self._latest(past)
        time = _time(past, now)
        for part in merge(*(row.parts for row in self._rows), key=lambda part: part.order):
            self.work += _PART_COST
            if part.block.last_at >= time:
                self.work += len(part.frames)
                for index, frame in zip(part.indexes, part.frames, strict=True):
                    if sent_at(frame) >= time:
                        return part.order << INDEX_BITS | index
        return _END

    def _latest(self, past: Past) -> int:
        least, position = past.since.value, _END
        for part in merge(*(reversed(row.parts) for row in self._rows), key=lambda part: part.order, reverse=True):
            self.work += _PART_COST
            if least <= 0:
                break
            end = part.end(past.upto)
            if end:
                # The last frame before which the part has too many messages.
                before = part.between(0, end) - least
                place = bisect_right(range(end), before, key=lambda frame: part.between(0, frame)) - 1
                place = max(place, 0)
                least -= part.between(place, end)
                position = part.order << INDEX_BITS | part.indexes[place]
        return position


def _older(row: _Row) -> int:
    return row.older


def _time(past: Past, now: int) -> int:
    """Return the time at which the past begins."""
    return past.since.value if past.since.mode is SinceMode.TIME else now - past.since.value
