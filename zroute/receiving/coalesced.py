"""What is done with a frame that brings several messages of one topic.

Where every handler is given the body and all share one type, the whole list is decoded in one call and handed out in
a loop of its own. Where that does not go through (other handlers, a message that is broken, or that is two), each
message takes the way of one that came alone, in a frame as it would have had. Either way it is counted, handled and
reported like one.

A frame takes no longer than a read may: every few messages the clock is looked at. What is left when time is over, or
when reading is held in the middle of a frame, waits in `Remainder`, and is first at the next call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import length_hint
from time import perf_counter
from typing import Any

import attrs

from zroute.messages.coalesced import Coalesced
from zroute.options import READ_SECONDS, READ_SLICE
from zroute.receiving.dispatch import BatchCall, DispatchCallbacks, Step

__all__ = ["HandOut", "Remainder", "Single", "make_hand_out"]

Single = tuple[bytes, int, bytes, bytes]
"""A message that came with others: topic, codec number, body, and the frame it would have had alone."""

HandOut = Callable[[Coalesced, Callable[[], Sequence[bytes]]], int]
"""Calls the handlers with each message of ``(coalesced, its frames)``; how many messages that were.

0: the list is not what it should be, and no handler was called. Fewer than all after `Remainder.hold`, or when time is
over.
"""


@attrs.define(eq=False)
class Remainder:
    """What is left of frames of several messages.

    While messages are handed out, `hold` ends the loop at no cost for those before: it takes away what the
    loop goes over.
    """

    rest: deque[Single] = attrs.field(factory=deque)
    _messages: list[Any] = attrs.field(factory=list)
    _loop: Iterator[Any] = attrs.field(factory=lambda: iter(()))
    _left: int | None = None

    def slices(self, messages: list[Any]) -> Iterator[Iterator[Any]]:
        """``messages``, a few at a time, for as long as a read may take (see `zroute.sockets.connection`)."""
        self._messages, self._loop, self._left = messages, iter(messages), None
        began, size = perf_counter(), READ_SLICE
        while length_hint(self._loop):
            yield islice(self._loop, size)
            spent = perf_counter() - began
            if spent > READ_SECONDS:
                break
            if spent < READ_SECONDS / 32:
                size = READ_SLICE * 4

    @property
    def left(self) -> int:
        """How many messages the loops have not come to."""
        return length_hint(self._loop) if self._left is None else self._left

    def hold(self) -> None:
        """End the loops after the message at hand."""
        self._left = self.left
        self._messages.clear()


def make_hand_out(
    steps: Sequence[Step], decode: Callable[[bytes], Any], unpacked: Remainder, outcomes: DispatchCallbacks
) -> HandOut:
    """What does ``steps``, which share one type and are given the body by position; ``decode`` reads a list of them."""
    if len(steps) == 1 and steps[0].gather is not None:
        return _make_hand_over(steps[0].gather, decode, unpacked)
    if len(steps) > 1:
        return _several(steps, decode, unpacked, outcomes)
    (step,) = steps
    function, delivery, stats, settle = step.function, step.delivery, step.delivery.route.stats, step.settle

    def dispatch_all(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        unhandled = 0
        for some in unpacked.slices(messages):
            while True:
                try:
                    for message in some:
                        if (result := function(message)) is not None:
                            unhandled += 1
                            settle(delivery, result, frames()[many - unpacked.left - 1])
                    break
                except BaseException as error:
                    unhandled += 1
                    outcomes.failed(delivery, error, frames()[many - unpacked.left - 1])
        done = many - unpacked.left
        stats.handled += done - unhandled
        return done

    return dispatch_all


def _decoded(coalesced: Coalesced, decode: Callable[[bytes], Any]) -> list[Any] | None:
    """The messages; None where they are not as many as they should be, or one of them can't be read."""
    try:
        messages: list[Any] = decode(coalesced.listing)
    except BaseException:  # whichever message it is, it will be met again alone
        return None
    return messages if len(messages) == coalesced.many else None


def _several(
    steps: Sequence[Step], decode: Callable[[bytes], Any], unpacked: Remainder, outcomes: DispatchCallbacks
) -> HandOut:
    calls = tuple((step.function, step.delivery, step.delivery.route.stats, step.settle) for step in steps)

    def dispatch_all(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        for some in unpacked.slices(messages):
            for message in some:
                for function, delivery, stats, settle in calls:
                    try:
                        result = function(message)
                    except BaseException as error:
                        outcomes.failed(delivery, error, frames()[many - unpacked.left - 1])
                    else:
                        if result is None:
                            stats.handled += 1
                        else:
                            settle(delivery, result, frames()[many - unpacked.left - 1])
        return many - unpacked.left

    return dispatch_all


def _make_hand_over(gather: BatchCall, decode: Callable[[bytes], Any], unpacked: Remainder) -> HandOut:
    """What puts the messages of a frame into the lists of one route, as many at a time as there is room for."""

    def hand_over(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        for some in unpacked.slices(messages):
            while taken := list(islice(some, gather.room())):
                gather.several(taken, frames, many - unpacked.left - len(taken))
        return many - unpacked.left

    return hand_over
