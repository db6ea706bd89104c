"""Dispatch the messages of a coalesced frame: several messages of one topic.

If all handlers take the body by position, and as the same type, one call decodes the whole list and one loop calls the
handlers. This is not possible with other handlers, or if a body is malformed or consists of two JSON values. In that
case, each message is dispatched as if it had arrived alone, in a frame of its own. In both cases, each message is
counted, handled and reported individually.

Handling a frame must not take longer than one read (`READ_SECONDS`), so the loop checks the clock every few messages.
Messages that remain when the time is up, or when reading is paused, wait in `Remainder`. The next read of the socket
delivers them first.
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
from zroute.receiving.frames import RawFrames

__all__ = ["DeliverCoalesced", "Loss", "Remainder", "Single", "make_deliver_coalesced"]

Single = tuple[bytes, int, bytes, RawFrames]
"""A message of a coalesced frame: topic, codec number, body, and the frame as if the message had been sent alone.

Messages that a recovery has held have the same form.
"""

Loss = tuple[None, Callable[[], None]]
"""A loss between such messages: a function that reports it."""

DeliverCoalesced = Callable[[Coalesced, Callable[[], Sequence[bytes]]], int]
"""A function that takes ``(coalesced, its frames)``, calls the handlers, and returns the number of delivered messages.

If the list cannot be decoded, or does not have the announced length, the function calls no handler and returns 0. After
`Remainder.hold`, or when the time is up, it returns less than the length of the list.
"""


@attrs.define(eq=False)
class Remainder:
    """The messages of coalesced frames that are not delivered yet.

    `hold` empties the list over which the delivering loop iterates, which ends the loop. The loop therefore needs no
    check for each message.
    """

    rest: deque[Single | Loss] = attrs.field(factory=deque)
    _messages: list[Any] = attrs.field(factory=list)
    _loop: Iterator[Any] = attrs.field(factory=lambda: iter(()))
    _left: int | None = None

    def slices(self, messages: list[Any]) -> Iterator[Iterator[Any]]:
        """Yield ``messages`` a few at a time, for up to `READ_SECONDS`.

        See `zroute.sockets.connection`.
        """
        self._messages, self._loop, self._left = messages, iter(messages), None
        began, size = perf_counter(), READ_SLICE
        while length_hint(self._loop):
            yield islice(self._loop, size)
            spent = perf_counter() - began
            if spent > READ_SECONDS:
                break
            # The handlers are fast: look at the clock after every 64 messages instead of 16.
            if spent < READ_SECONDS / 32:
                size = READ_SLICE * 4

    @property
    def left(self) -> int:
        """The number of messages that the loops have not delivered yet."""
        # The length hint of a list iterator is exact.
        return length_hint(self._loop) if self._left is None else self._left

    def hold(self) -> None:
        """End the loops after the current message."""
        # Before the list is emptied: the length hint is 0 afterwards.
        self._left = self.left
        self._messages.clear()


def make_deliver_coalesced(
    steps: Sequence[Step], decode: Callable[[bytes], Any], unpacked: Remainder, outcomes: DispatchCallbacks
) -> DeliverCoalesced:
    """Return a function that passes the messages of coalesced frames to ``steps``.

    Args:
        steps: The steps. Their functions take the body by position, and as the same type.
        decode: Decodes the list of messages.
        unpacked: Stores the messages that are left when the loop ends early.
        outcomes: Called with results and errors of the functions.
    """
    if len(steps) == 1 and steps[0].gather is not None:
        return _batched(steps[0].gather, decode, unpacked)
    if len(steps) > 1:
        return _several(steps, decode, unpacked, outcomes)
    (step,) = steps
    function, delivery, stats, settle = step.call.of_message(), step.delivery, step.delivery.route.stats, step.settle

    def deliver_coalesced(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        unhandled = 0
        for some in unpacked.slices(messages):
            # An error leaves the `for` loop; the next pass continues after the failed message.
            while True:
                try:
                    for message in some:
                        if (result := function(message)) is not None:
                            unhandled += 1
                            # `left` does not include the current message, so this is its index among the frames.
                            settle(delivery, result, frames()[many - unpacked.left - 1])
                    break
                except BaseException as error:
                    unhandled += 1
                    outcomes.failed(delivery, error, frames()[many - unpacked.left - 1])
        done = many - unpacked.left
        stats.handled += done - unhandled
        return done

    return deliver_coalesced


def _decoded(coalesced: Coalesced, decode: Callable[[bytes], Any]) -> list[Any] | None:
    """Return the messages, or None if a message is malformed or the number is wrong."""
    try:
        messages: list[Any] = decode(coalesced.listing)
    except BaseException:  # each message is then decoded separately, which finds the malformed one
        return None
    return messages if len(messages) == coalesced.many else None


def _several(
    steps: Sequence[Step], decode: Callable[[bytes], Any], unpacked: Remainder, outcomes: DispatchCallbacks
) -> DeliverCoalesced:
    calls = tuple((step.call.of_message(), step.delivery, step.delivery.route.stats, step.settle) for step in steps)

    def deliver_coalesced(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
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

    return deliver_coalesced


def _batched(gather: BatchCall, decode: Callable[[bytes], Any], unpacked: Remainder) -> DeliverCoalesced:
    """Return a function that adds the messages of a frame to batches.

    In each step, it adds as many messages as the batch has room for.
    """

    def deliver_coalesced(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        for some in unpacked.slices(messages):
            while taken := list(islice(some, gather.room())):
                gather.several(taken, frames, many - unpacked.left - len(taken))
        return many - unpacked.left

    return deliver_coalesced
