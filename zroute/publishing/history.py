"""The history: sent frames for subscribers that lost some of them.

Each publisher with ``history=`` has a `Ring`. Publishing a message only appends its frame to a deque. All other work is
done in each tick: frames move to blocks, whose sizes are then known, and the bounds of the history are enforced. A
history may therefore exceed its bounds by the messages of a tick. Frames of more than `LARGE` bytes are an exception:
a block is made as soon as they have `LARGE_BLOCK` bytes in total, because a few large frames could fill memory. A block
for each of them would make searches slow.

There is no index by subscription, because it would make each publish 20 to 30 % slower. `Search` scans the blocks for
the frames of a subscription, the newest block first, and stops at the first number that is wanted. The numbers are in
the headers of the frames. A subscription's numbers ascend in a ring, even over generations. Frames from before its
counter have the number 0.

The age of a block is measured from the first tick after it was made, with the reactor's clock. The times in the headers
jump when the clock of the machine is set.

This module sends nothing and reads no clock.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice, takewhile
from math import inf
from struct import Struct
from typing import Any

import attrs

from zroute.codegen import Inline
from zroute.errors import SignatureError
from zroute.messages.control import WITHDRAWN_SECONDS
from zroute.messages.recovery import numbers_of
from zroute.messages.wire import SENT_AT

__all__ = [
    "BLOCK",
    "BLOCK_COST",
    "HISTORY_BYTES",
    "LARGE",
    "LARGE_BLOCK",
    "Block",
    "History",
    "Numbered",
    "Ring",
    "Search",
    "check_history",
    "recording",
    "sent_at",
]

HISTORY_BYTES = 64 << 20
"""The default for the maximum size of a history in bytes."""

LARGE = 4096
"""The size in bytes from which a frame may count towards the bounds before the next tick."""

LARGE_BLOCK = 256 << 10
"""The size in bytes of large frames that may wait for the next tick; at most 1/16 of the maximum size of a history."""

BLOCK = 5_000
"""The maximum number of frames in a block. Scanning them takes about half a millisecond."""

BLOCK_COST = 50
"""The cost of scanning a block in addition to its frames, as a number of frames."""

Numbered = tuple[int, int, bytes]
"""The first and last number of a frame in a subscription, and the frame."""

_OBJECT = 41
"""The size in bytes of a frame in memory in addition to its length: the bytes object and its place in a list."""

_TIME = Struct(">q").unpack_from


@attrs.frozen(kw_only=True, repr=False)
class History:
    """The sent messages that a publisher keeps for subscribers that lost some.

    The publisher keeps the latest messages within all bounds that are set. It may exceed the bounds by the messages of
    a quarter of a second. At least one bound is required; ``app.publisher(history=…)`` checks the values, and raises
    SignatureError for a value out of range.

    Example:
        ```python
        orders = app.publisher("orders.{id}", Order, history=History(seconds=30))
        ```

    Attributes:
        messages: The maximum number of messages (1 or more; None for no limit). Coalesced messages of one frame count
            as one message.
        seconds: The maximum age in seconds (more than 0, at most 120; None for no limit). The limit is the time for
            which a publisher keeps counting for a subscriber that has lost its connection.
        bytes: The maximum size of all messages in memory, in bytes (1 or more). Default: None, which means 64 MiB. A
            message needs about 85 bytes in addition to its topic and body.
    """

    messages: int | None = None
    seconds: float | None = None
    bytes: int | None = None

    def __repr__(self) -> str:
        """Return the call with the bounds that are set."""
        bounds = attrs.asdict(self, filter=lambda _, value: value is not None)
        return f"History({', '.join(f'{name}={value!r}' for name, value in bounds.items())})"


def check_history(history: Any, where: str) -> History:
    """Return ``history`` unchanged if it is valid.

    ``where`` is the user's line (``file:line``), for the error.

    Raises:
        SignatureError: The value is not a `History`, has no bound, or has a bound out of range.
    """
    fault = None
    if not isinstance(history, History):
        fault = "expected History(messages=…), History(seconds=…) or History(bytes=…)"
    elif history == History():
        fault = "expected at least one bound, as in History(messages=50_000) or History(seconds=30)"
    elif not (history.messages is None or (type(history.messages) is int and history.messages >= 1)):
        fault = "expected messages of at least 1, as a whole number"
    elif not (
        history.seconds is None or (type(history.seconds) in (int, float) and 0 < history.seconds <= WITHDRAWN_SECONDS)
    ):
        fault = (
            f"expected a number of seconds of more than 0 and at most {WITHDRAWN_SECONDS:g}, because a publisher "
            "forgets a subscriber that is away for longer"
        )
    elif not (history.bytes is None or (type(history.bytes) is int and history.bytes >= 1)):
        fault = "expected bytes of at least 1, as a whole number"
    if fault is not None:
        raise SignatureError(f"history={history!r}: {fault}", parameter="history", where=where)
    kept: History = history
    return kept


def _last_number(span: int, frame: bytes) -> int:
    return numbers_of(frame, span)[1]


def _size(frames: list[bytes]) -> int:
    """Return the size of frames in memory."""
    return sum(map(len, frames)) + _OBJECT * len(frames)


def sent_at(frame: bytes) -> int:
    """Return the time in the header of a frame, in nanoseconds since the Unix epoch."""
    at: int = _TIME(frame, frame.index(0) + 1 + SENT_AT)[0]
    return at


@attrs.define(eq=False)
class Block:
    """Frames that were sent one after the other.

    ``number`` counts the blocks of a ring, and ``order`` those of all rings of a publisher. ``size`` is the size of the
    frames in bytes, ``last_at`` is the time in the header of the last frame, and ``dropped`` is the number of frames
    that the block no longer contains. ``since`` is the time of the first tick after the block was made, in seconds of
    the reactor's clock; infinite before.
    """

    number: int
    order: int
    frames: list[bytes]
    size: int
    last_at: int
    dropped: int = 0
    since: float = inf


class Ring:
    """The kept frames of one publication.

    Args:
        history: The bounds.
        orders: Counts the blocks of all rings of a publisher; see `Block.order`.

    Attributes:
        append: Keeps a sent frame of at most `LARGE` bytes: the fastest function for this purpose.
        count: The number of frames in blocks.
        size: The size of the frames in blocks, in bytes.
        added: The size of all frames that were ever kept, in bytes.
    """

    def __init__(self, history: History, orders: Iterator[int] | None = None) -> None:
        self._orders = count(1) if orders is None else orders
        self._messages = history.messages
        self._bytes = HISTORY_BYTES if history.bytes is None else history.bytes
        self._seconds = history.seconds
        most = None if history.messages is None else min(history.messages, sys.maxsize)
        self._fresh: deque[bytes] = deque(maxlen=most)
        self._blocks: deque[Block] = deque()
        self._next = 0
        self._large = 0  # the size of large frames since the last block
        self._large_max = min(LARGE_BLOCK, self._bytes // 16)
        self.append: Callable[[bytes], None] = self._fresh.append
        self.count = self.size = self.added = 0

    def keep(self, frame: bytes) -> None:
        """Keep a frame that was just sent."""
        self._fresh.append(frame)
        if len(frame) > LARGE:
            self._large += len(frame)
            if self._large >= self._large_max:
                self.seal()
                self._fit()

    def seal(self) -> None:
        """Move the frames since the last call into blocks, so that a search finds them."""
        if not self._fresh:
            return
        fresh = list(self._fresh)
        self._fresh.clear()
        self._large = 0
        for start in range(0, len(fresh), BLOCK):
            frames = fresh[start : start + BLOCK]
            size = _size(frames)
            self._blocks.append(Block(self._next, next(self._orders), frames, size, sent_at(frames[-1])))
            self._next += 1
            self.count += len(frames)
            self.size += size
            self.added += size

    def trim(self, now: float) -> None:
        """Enforce the bounds. ``now`` is the time of the reactor's clock, in seconds."""
        self.seal()
        if self._seconds is not None:
            for block in takewhile(lambda block: block.since == inf, reversed(self._blocks)):
                block.since = now
            while self._blocks and now - self._blocks[0].since >= self._seconds:
                self._drop(len(self._blocks[0].frames))
        self._fit()

    def _fit(self) -> None:
        if self._messages is not None:
            while self.count > self._messages:
                self._drop(min(self.count - self._messages, len(self._blocks[0].frames)))
        while self.size > self._bytes:
            excess, many = self.size - self._bytes, 0
            for frame in self._blocks[0].frames:
                many += 1
                excess -= len(frame) + _OBJECT
                if excess <= 0:
                    break
            self._drop(many)

    def _drop(self, many: int) -> None:
        """Drop the oldest frames; all of them are in the first block."""
        block = self._blocks[0]
        size = block.size if many == len(block.frames) else _size(block.frames[:many])
        self.count -= many
        self.size -= size
        if many == len(block.frames):
            self._blocks.popleft()
        else:
            del block.frames[:many]
            block.size -= size
            block.dropped += many

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks, the oldest first."""
        return self._blocks

    @property
    def first(self) -> int:
        """The number of the first block."""
        return self._blocks[0].number if self._blocks else self._next

    @property
    def next(self) -> int:
        """The number of the next block."""
        return self._next

    def block(self, number: int) -> list[bytes]:
        """Return the frames of a block that still exists."""
        return self._blocks[number - self.first].frames


def recording(send: Callable[[bytes], bool | None], ring: Ring) -> Callable[[bytes], bool | None]:
    """Return ``send`` with a step that keeps each sent frame in ``ring``.

    ``send`` returns False for a frame that could not be sent. Such a frame is not kept, because its number will be used
    again. A ``send`` with an attribute ``inline`` (`zroute.codegen.Inline`) always sends, and so does the result.
    """
    append, keep = ring.append, ring.keep

    def send_and_keep(frame: bytes) -> bool | None:
        if (sent := send(frame)) is not False:
            if len(frame) > LARGE:
                keep(frame)
            else:
                append(frame)
        return sent

    inline: Inline | None = getattr(send, "inline", None)
    if inline is not None:
        keeping = (f"if len(frame) > {LARGE}:", "    keep_large(frame)", "else:", "    append(frame)")
        names = {**inline.names, "keep_large": keep, "append": append}
        send_and_keep.inline = Inline((*inline.lines, *keeping), names)  # type: ignore[attr-defined]
    return send_and_keep


class Search:
    """The frames of one subscription in a ring, as far as they were needed.

    A search holds the frames that it has found, even if the ring has dropped them. It must therefore not live for long.

    Attributes:
        found: The number of frames.
    """

    def __init__(self, ring: Ring, prefix: bytes) -> None:
        self._ring = ring
        self._prefix = prefix
        self._parts: deque[list[bytes]] = deque()  # of blocks with such frames, the oldest first
        self._low = self._high = ring.next  # the scanned blocks
        self.found = 0
        self._last = partial(_last_number, len(prefix))

    def scan(self, first: int, last: int) -> int:
        """Scan one more block for the numbers ``first`` to ``last``.

        Return the cost, or 0 if all blocks that may contain these numbers have been scanned.
        """
        ring = self._ring
        # Blocks that the ring has dropped before they were scanned are skipped.
        self._high = max(self._high, ring.first)
        if self._high < ring.next and not self.reaches(last):
            scanned, found = self._matching(self._high)
            if found:
                self._parts.append(found)
            self._high += 1
            return scanned
        if self._low > ring.first and not (self._parts and self._number(self._parts[0][0]) <= first):
            self._low -= 1
            scanned, found = self._matching(self._low)
            if found:
                self._parts.appendleft(found)
            return scanned
        return 0

    def _matching(self, number: int) -> tuple[int, list[bytes]]:
        block, prefix = self._ring.block(number), self._prefix
        found = [frame for frame in block if frame.startswith(prefix)]
        self.found += len(found)
        return BLOCK_COST + len(block), found

    def _number(self, frame: bytes) -> int:
        return numbers_of(frame, len(self._prefix))[0]

    def reaches(self, last: int) -> bool:
        """Return True if newer blocks don't contain numbers up to ``last``."""
        return bool(self._parts) and self._last(self._parts[-1][-1]) >= last

    def between(self, first: int, last: int) -> Iterator[Numbered]:
        """Yield the frames with numbers from ``first`` to ``last``, ascending.

        Call `scan` before, until it returns 0. A coalesced frame may begin before ``first`` and end after ``last``.
        """
        span, at = len(self._prefix), bisect_left(self._parts, first, key=lambda part: self._last(part[-1]))
        for part in islice(self._parts, at, None):
            # In the first part the search begins at ``first``; all later parts are greater.
            for frame in islice(part, bisect_left(part, first, key=self._last), None):
                lowest, highest = numbers_of(frame, span)
                if lowest > last:
                    return
                if lowest:
                    yield lowest, highest, frame
