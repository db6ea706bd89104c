"""The lists of handlers with ``batch=``: what takes their messages one by one, and when they are handed over.

A list is a job of its route's `BatchFlow`, so that order, bounds and stops are those of every call that is unfinished.
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

Stale = Callable[[BoundRoute, RawFrames], bool]


@attrs.define(eq=False)
class BatchJob:
    """A call with a list of messages, which grows until its turn has come.

    ``delivery`` is that of the first, and ``first`` makes its frames; ``raws`` are those of all, where age matters.
    """

    delivery: BoundRoute
    key: Hashable
    function: Callable[[list[Any]], Any]
    first: Callable[[], RawFrames]
    messages: list[Any] = attrs.field(factory=list)
    raws: list[RawFrames] = attrs.field(factory=list)
    many: int = 0

    def close(self) -> None:
        """Count: from now on the list is the function's, which may change it."""
        self.many = len(self.messages)

    @property
    def call(self) -> Callable[[], Any]:
        """What is to be done."""
        return partial(self.function, self.messages)

    @property
    def raw(self) -> RawFrames:
        """The frames of the first message."""
        return self.raws[0] if self.raws else self.first()

    def is_stale(self, stale: Stale) -> bool:
        """Leave out what is too old by now; whether that is all."""
        fresh = [pair for pair in zip(self.messages, self.raws, strict=True) if not stale(self.delivery, pair[1])]
        self.messages, self.raws = [message for message, _ in fresh], [raw for _, raw in fresh]
        self.close()
        return not fresh


class Batcher:
    """The lists of one run that are held. ``waits`` is told of a route with a new one, ``go_on`` that some are due."""

    def __init__(
        self, clock: Clock, waits: Callable[[CompiledRoute], None], go_on: Callable[[CompiledRoute], None]
    ) -> None:
        self._clock = clock
        self._waits = waits
        self._go_on = go_on
        self._routes: dict[CompiledRoute, None] = {}
        self._timer: Any = None

    def gather(self, delivery: BoundRoute, function: Callable[..., Any]) -> BatchCall:
        """What takes the messages of one topic for the lists of its route; ``function`` is given these."""
        taking = _Taking(self, delivery, function)
        return BatchCall(taking.make_one(), taking.several, taking.room)

    def hold(self, route: CompiledRoute, flow: BatchFlow[BatchJob], job: BatchJob) -> None:
        """A new list, until `release`."""
        flow.begin(job)
        self._routes[route] = None
        self._waits(route)

    def due(self, route: CompiledRoute, flow: BatchFlow[BatchJob], job: BatchJob, *, complete: bool) -> None:
        """A list is as long as may be (``complete``), or as many messages wait as may."""
        if complete:
            flow.end(job)
        if flow.full:
            flow.release()
        self._go_on(route)

    def release(self) -> None:
        """Hand over all lists: nothing more waits to be read, or that will take its time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        routes, self._routes = self._routes, {}
        for route in routes:
            _flow_of(route).release()
            self._go_on(route)

    def release_soon(self, seconds: float = BATCH_SECONDS) -> None:
        """Hand them over within so many seconds, unless that happens before."""
        if self._routes and self._timer is None:
            self._timer = self._clock.callLater(seconds, self._on_time)
        elif self._routes and not seconds:
            self._timer.reset(0)

    def forget(self, route: CompiledRoute) -> None:
        """Its lists are dropped."""
        self._routes.pop(route, None)
        if not self._routes:
            self.release()

    def _on_time(self) -> None:
        self._timer = None
        self.release()


class _Taking:
    """What takes the messages of one topic."""

    def __init__(self, gathering: Batcher, delivery: BoundRoute, function: Callable[..., Any]) -> None:
        route = self._route = delivery.route
        assert route.lists is not None
        self._gathering = gathering
        self._most = route.lists.most
        self._flow = _flow_of(route)
        self._ages = route.options.stale_after is not None
        self._key = delivery.topic if route.lists.one_topic else None
        self._delivery = delivery if route.lists.one_topic else attrs.evolve(delivery, captures={})
        keyword = route.lists.keyword
        self._function = function if keyword is None else partial(_by_name, function, keyword)

    def make_one(self) -> Callable[[Any, RawFrames], None]:
        """What takes a message: a closure, since it is called for each that comes alone."""
        gathering, route, flow, begin = self._gathering, self._route, self._flow, self._begin
        stats, growing, key, ages = route.stats, flow.open, self._key, self._ages
        most, queue = self._most, route.options.queue

        def one(message: Any, raw: RawFrames) -> None:
            job = growing.get(key)
            if job is None:
                job = begin(lambda: raw)
            messages = job.messages
            messages.append(message)
            if ages:
                job.raws.append(raw)
            stats.queued += 1
            flow.queued += 1
            if len(messages) >= most or flow.queued >= queue:
                gathering.due(route, flow, job, complete=len(messages) >= most)

        return one

    def several(self, messages: list[Any], frames: Callable[[], Sequence[bytes]], at: int) -> None:
        """Take messages that came in one frame, no more than there is `room` for."""
        flow = self._flow
        job = flow.open.get(self._key)
        if job is None:
            job = self._begin(lambda: frames()[at])
        job.messages += messages
        if self._ages:
            job.raws += frames()[at : at + len(messages)]
        self._route.stats.queued += len(messages)
        flow.queued += len(messages)
        complete = len(job.messages) >= self._most
        if complete or flow.full:
            self._gathering.due(self._route, flow, job, complete=complete)

    def room(self) -> int:
        """How many messages may be added at once."""
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


def _by_name(function: Callable[..., Any], name: str, messages: list[Any]) -> Any:
    return function(**{name: messages})
