"""Collect messages into batches for handlers with ``batch=``.

A batch is a job of its route's `BatchFlow`. The rules for order, limits and stopping are therefore the same as for all
other unfinished calls.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.options import BATCH_SECONDS
from zroute.receiving.dispatch import BatchCall, BoundRoute, CompiledRoute
from zroute.receiving.flow import BatchFlow
from zroute.receiving.frames import RawFrames

__all__ = ["BatchJob", "Batcher", "Stale"]

Stale = Callable[[CompiledRoute, RawFrames], bool]


@attrs.define(eq=False)
class BatchJob:
    """A call with a list of messages, which grows until the call is made.

    ``delivery`` is the delivery of the first message, and ``first`` returns the frames of that message. If the route
    has ``stale_after`` or ``dead``, ``raws`` contains the frames of all messages; otherwise it is empty.
    """

    delivery: BoundRoute
    key: Hashable
    function: Callable[[list[Any]], Any]
    first: Callable[[], RawFrames]
    messages: list[Any] = attrs.field(factory=list)
    raws: list[RawFrames] = attrs.field(factory=list)
    many: int = 0

    def close(self) -> None:
        """Fix the number of messages. From now on, the handler owns the list."""
        self.many = len(self.messages)

    @property
    def call(self) -> Callable[[], Any]:
        """The call to make."""
        return partial(self.function, self.messages)

    @property
    def attempt(self) -> Callable[[], Any]:
        """The call to make if it may be repeated. The handler gets a copy of the list."""
        return partial(self.function, self.messages.copy())

    @property
    def raw(self) -> RawFrames:
        """The frames of the first message."""
        return self.raws[0] if self.raws else self.first()

    def is_stale(self, stale: Stale) -> bool:
        """Remove the stale messages. Return True if no message is left."""
        fresh = [pair for pair in zip(self.messages, self.raws, strict=True) if not stale(self.delivery.route, pair[1])]
        self.messages, self.raws = [message for message, _ in fresh], [raw for _, raw in fresh]
        self.close()
        return not fresh


class Batcher:
    """The held batches of one run.

    Args:
        clock: Schedules the release of held batches.
        waits: Called with a route when one of its batches begins.
        go_on: Called with a route when some of its batches may be ready to run.
    """

    def __init__(
        self, clock: Clock, waits: Callable[[CompiledRoute], None], go_on: Callable[[CompiledRoute], None]
    ) -> None:
        self._clock = clock
        self._waits = waits
        self._go_on = go_on
        self._routes: dict[CompiledRoute, None] = {}
        self._timer: Any = None

    def gather(self, delivery: BoundRoute, function: Callable[..., Any]) -> BatchCall:
        """Return the functions that add messages of a topic to its route's batches.

        Each batch is passed to ``function``.
        """
        taking = _Taking(self, delivery, function)
        return BatchCall(taking.make_one(), taking.several, taking.room)

    def hold(self, route: CompiledRoute, flow: BatchFlow[BatchJob], job: BatchJob) -> None:
        """Hold a new batch until `release`."""
        flow.begin(job)
        self._routes[route] = None
        self._waits(route)

    def due(self, route: CompiledRoute, flow: BatchFlow[BatchJob], job: BatchJob, *, complete: bool) -> None:
        """Handle a batch that is complete, or the full queue of its route.

        ``complete`` is True if the batch has its full length.
        """
        if complete:
            flow.end(job)
        if flow.full:
            flow.release()
        self._go_on(route)

    def release(self) -> None:
        """Hand over all held batches.

        This method is called when no message waits to be read, or when the next read would take too long.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Emptied first: `_go_on` calls handlers, which may detach a route and so change the dict.
        routes, self._routes = self._routes, {}
        for route in routes:
            _flow_of(route).release()
            self._go_on(route)

    def release_soon(self, seconds: float = BATCH_SECONDS) -> None:
        """Hand over all held batches after at most ``seconds``."""
        if self._routes and self._timer is None:
            self._timer = self._clock.callLater(seconds, self._on_time)
        elif self._routes and not seconds:
            self._timer.reset(0)

    def forget(self, route: CompiledRoute) -> None:
        """Forget the route, after its batches were dropped."""
        self._routes.pop(route, None)
        if not self._routes:
            # No batch is held any more: this only cancels the timer.
            self.release()

    def _on_time(self) -> None:
        self._timer = None
        self.release()


class _Taking:
    """Adds the messages of one topic to the batches of its route."""

    def __init__(self, gathering: Batcher, delivery: BoundRoute, function: Callable[..., Any]) -> None:
        route = self._route = delivery.route
        assert route.lists is not None
        self._gathering = gathering
        self._most = route.lists.most
        self._flow = _flow_of(route)
        self._frames = route.options.stale_after is not None or route.options.dead is not None
        self._key = delivery.wire if route.lists.one_topic else None
        # A list of several topics has no captures: those of its first message are wrong for the others.
        self._delivery = delivery if route.lists.one_topic else attrs.evolve(delivery, pattern=None, kept=None)
        self._function = function

    def make_one(self) -> Callable[[Any, RawFrames], None]:
        """Return the function that adds one message.

        The function is a closure because it is called for each message that arrives alone.
        """
        gathering, route, flow, begin = self._gathering, self._route, self._flow, self._begin
        stats, growing, key, keeps_frames = route.stats, flow.open, self._key, self._frames
        most, queue = self._most, route.options.queue

        def one(message: Any, raw: RawFrames) -> None:
            job = growing.get(key)
            if job is None:
                job = begin(lambda: raw)
            messages = job.messages
            messages.append(message)
            if keeps_frames:
                job.raws.append(raw)
            stats.queued += 1
            flow.queued += 1
            if len(messages) >= most or flow.queued >= queue:
                gathering.due(route, flow, job, complete=len(messages) >= most)

        return one

    def several(self, messages: list[Any], frames: Callable[[], Sequence[bytes]], at: int) -> None:
        """Add messages of one coalesced frame; at most `room` messages."""
        flow = self._flow
        job = flow.open.get(self._key)
        if job is None:
            # The frames are needed only for a failure, so the coalesced frame is not split before that.
            job = self._begin(lambda: frames()[at])
        job.messages += messages
        if self._frames:
            job.raws += frames()[at : at + len(messages)]
        self._route.stats.queued += len(messages)
        flow.queued += len(messages)
        complete = len(job.messages) >= self._most
        if complete or flow.full:
            self._gathering.due(self._route, flow, job, complete=complete)

    def room(self) -> int:
        """Return the number of messages that can be added at once, at least 1."""
        job = self._flow.open.get(self._key)
        left = self._most - (len(job.messages) if job is not None else 0)
        return max(min(left, self._route.options.queue - self._flow.queued), 1)

    def _begin(self, first: Callable[[], RawFrames]) -> BatchJob:
        job = BatchJob(self._delivery, self._key, self._function, first)
        self._gathering.hold(self._route, self._flow, job)
        return job


def _flow_of(route: CompiledRoute) -> BatchFlow[BatchJob]:
    assert isinstance(route.flow, BatchFlow)
    return route.flow
