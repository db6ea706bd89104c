"""Run handlers that may be unfinished when they return.

It keeps their order and bounds, and ends them at a stop. It executes the decisions of each route's `Flow`: it makes
calls in their turn, waits for their results, and pauses reading while a route is full. Nothing here raises.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.awaiting import is_awaitable
from zroute.clock import Clock
from zroute.publishing.producers import TURN_SECONDS, Start, drive
from zroute.receiving.batching import Batcher, BatchJob, Stale
from zroute.receiving.dispatch import BoundRoute, CompiledRoute, DispatchCallbacks
from zroute.receiving.frames import RawFrames
from zroute.throttle import ThrottledLog

__all__ = ["Executor", "InFlight", "Reading", "error_of"]

Dropped = Callable[[], None]


class Reading(Protocol):
    """The source of messages, which is paused while a route is full."""

    def pause(self, by: Iterable[CompiledRoute]) -> None:
        """Stop reading until `resume`, because the routes ``by`` are full.

        Messages that have arrived are kept.
        """

    def resume(self) -> None:
        """Read again."""

    def reclassify(self) -> None:
        """Build the deliver closures again: a flow has become active."""


@attrs.frozen(eq=False)
class _Job:
    """A call that waits for its turn, or runs."""

    delivery: BoundRoute
    call: Callable[[], Any]
    raw: RawFrames
    many: ClassVar[int] = 1

    def is_stale(self, stale: Stale) -> bool:
        """Return True if the message is too old by now."""
        return stale(self.delivery, self.raw)


@attrs.frozen(eq=False)
class Executor:
    """The means to run the functions of an app.

    ``clock`` is the reactor. ``start`` runs an awaitable and returns its Deferred. ``in_thread`` runs a function in a
    thread. ``supply`` binds the resources that a hook takes.
    """

    clock: Clock
    start: Start
    in_thread: Callable[[Callable[[], Any]], Deferred[Any]]
    supply: Callable[[Callable[..., Any]], Callable[..., Any]]


class InFlight:
    """The unfinished and the waiting calls of one run of an app."""

    def __init__(
        self, outcomes: DispatchCallbacks, reports: ThrottledLog, executor: Executor, reading: Reading
    ) -> None:
        self._outcomes = outcomes
        self._reports = reports
        self._clock = clock = executor.clock
        self._start = executor.start
        self._in_thread = executor.in_thread
        self._reading = reading
        self._unfinished: dict[Deferred[Any], tuple[str, Dropped, int]] = {}
        self._queued: set[CompiledRoute] = set()
        self._full: dict[CompiledRoute, None] = {}
        self._pumping: set[CompiledRoute] = set()
        self._idle: list[Deferred[None]] = []
        self._gathering = Batcher(clock, self._queued.add, self._go_on)
        self.gather = self._gathering.gather
        self.release, self.release_soon = self._gathering.release, self._gathering.release_soon

    def settle(self, delivery: BoundRoute, result: Any, raw: RawFrames) -> None:
        """Handle a result of a handler, or queue the call of an active flow."""
        route = delivery.route
        if route.flow.active:
            self._enqueue(delivery, result, raw)
            return
        running = self._begun(delivery, result)
        if running is None:
            route.stats.handled += 1
        else:  # the first Deferred of a plain function: from now on its messages take turns
            route.flow.active = True
            self._reading.reclassify()
            route.flow.start(delivery.topic)
            self._await(_Job(delivery, _begun_already, raw), delivery.topic, running)

    def _begun(self, delivery: BoundRoute, result: Any) -> Deferred[Any] | None:
        """Return a Deferred if ``result`` is not available or not published at once."""
        if is_awaitable(result):
            return self._start(result).addCallback(lambda value: self._publish(delivery, value))
        if delivery.route.outlets and (hasattr(result, "__next__") or hasattr(result, "__anext__")):
            return drive(result, lambda value: self._publish(delivery, value), self._clock, self._start)
        return self._publish(delivery, result)

    def _enqueue(self, delivery: BoundRoute, call: Callable[[], Any], raw: RawFrames) -> None:
        route = delivery.route
        route.flow.put(delivery.topic, _Job(delivery, call, raw))
        route.stats.queued += 1  # which another route of the same name may share
        self._queued.add(route)
        self._pump(route)
        if route.flow.full and route not in self._full:
            self._pause(route)

    def _go_on(self, route: CompiledRoute) -> None:
        """Continue with a route whose batches are ready, or have grown."""
        self._pump(route)
        if route.flow.full and route not in self._full:
            self._pause(route)

    def _pause(self, route: CompiledRoute) -> None:
        self._full[route] = None
        self._reading.pause(self._full)
        self._say_flow(route, "is full: %d messages wait, and no more are read until half of them are handled")
        self._gathering.release_soon(0)

    def _pump(self, route: CompiledRoute) -> None:
        """Begin the calls that may run, unless this is under way.

        It is under way in `_begin_some` further up the stack, or will be in the reactor's next turn.
        """
        if route not in self._pumping:
            self._pumping.add(route)
            self._begin_some(route)

    def _begin_some(self, route: CompiledRoute) -> None:
        """Begin the calls that may run, for a bounded time; the rest in the next turn."""
        flow = route.flow
        deadline = self._clock.seconds() + TURN_SECONDS
        while (taken := flow.take()) is not None:
            key, job = taken
            route.stats.queued -= job.many
            self._run(key, job)
            if flow.queued and self._clock.seconds() >= deadline:
                self._clock.callLater(0, self._begin_some, route)
                break
        else:
            self._pumping.discard(route)
        if not flow.queued:
            self._queued.discard(route)
        if route in self._full and flow.eased:
            self._flows_again(route)
        self._tell_if_idle()

    def _run(self, key: Hashable, job: _Job | BatchJob) -> None:
        delivery = job.delivery
        if delivery.route.options.stale_after is not None and job.is_stale(self._outcomes.stale):
            delivery.route.flow.done(key)
            return
        try:
            call = job.call
            result = self._in_thread(call) if delivery.route.options.thread else call()
            running = self._begun(delivery, result)
        except BaseException as error:  # also SystemExit, as for plain functions
            delivery.route.flow.done(key)
            self._outcomes.failed(delivery, error, job.raw, job.many)
            return
        if running is None:
            delivery.route.flow.done(key)
            delivery.route.stats.handled += job.many
        else:
            self._await(job, key, running)

    def _await(self, job: _Job | BatchJob, key: Hashable, running: Deferred[Any]) -> None:
        route, many = job.delivery.route, job.many
        stats = route.stats
        stats.in_flight += many

        def ended(result: Any) -> None:
            stats.in_flight -= many
            route.flow.done(key)
            if isinstance(result, Failure):
                self._outcomes.failed(job.delivery, error_of(result), job.raw, many)
            else:
                stats.handled += many
            self._pump(route)

        def dropped() -> None:
            stats.in_flight -= many
            stats.dropped_at_shutdown += many

        self.watch(running, route.name, ended, dropped, many)

    def watch(
        self, running: Deferred[Any], name: str, ended: Callable[[Any], None], dropped: Dropped, many: int = 1
    ) -> None:
        """Call ``ended`` with the result of ``running``, unless it is given up before.

        ``running`` is a call with ``many`` messages. ``dropped`` is called if it is given up.
        """
        if running in self._unfinished:
            running = _also(running)
        self._unfinished[running] = (name, dropped, many)

        def tell(result: Any) -> None:
            if self._unfinished.pop(running, None) is not None:
                ended(result)
                self._tell_if_idle()

        running.addBoth(tell)

    def _flows_again(self, route: CompiledRoute) -> None:
        del self._full[route]
        self._say_flow(route, "flows again: %d messages wait")
        if self._full:
            self._reading.pause(self._full)
        else:
            self._reading.resume()

    def _say_flow(self, route: CompiledRoute, text: str) -> None:
        where, queued = route.route.where, route.flow.queued
        key = ("flow", route.name, where)
        self._reports(key, route.name, logging.WARNING, f"%s at %s {text}", route.name, where, queued)

    def _publish(self, delivery: BoundRoute, value: Any) -> Deferred[None] | None:
        if value is None or not delivery.route.outlets:
            return None
        return self._outcomes.publish(delivery.route.outlets, value, delivery.captures, delivery.route.name)

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None = None) -> int:
        """Drop the waiting calls of ``route``, and the call ``unfinished`` if given.

        Returns:
            The number of dropped messages, which are counted.
        """
        dropped: int = sum([job.many for job in route.flow.clear()])
        route.stats.queued -= dropped
        route.stats.dropped_at_shutdown += dropped
        if unfinished is not None and unfinished in self._unfinished:
            _, drop, many = self._unfinished.pop(unfinished)
            drop()
            dropped += many
        self._queued.discard(route)
        self._gathering.forget(route)
        if route in self._full:
            self._flows_again(route)
        self._tell_if_idle()
        return dropped

    def idle(self) -> Deferred[None]:
        """Return a Deferred that fires when no handler is unfinished or waits."""
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        self._tell_if_idle()
        return waiting

    def names(self) -> dict[str, int]:
        """Return the names of unfinished and waiting handlers, with their message counts."""
        names: Counter[str] = Counter()
        for name, _, many in self._unfinished.values():
            names[name] += many
        for route in self._queued:
            names[route.name] += route.flow.queued
        return names

    def give_up(self) -> dict[str, int]:
        """Drop all waiting calls, and cancel the unfinished ones.

        Returns:
            The names of the handlers, with their numbers of dropped messages, which are counted.
        """
        names: Counter[str] = Counter()
        self._full.clear()  # a stop does not report that routes flow again
        for route in tuple(self._queued):
            names[route.name] += self.discard(route)
        unfinished, self._unfinished = self._unfinished, {}
        for running, (name, dropped, many) in unfinished.items():
            names[name] += many
            dropped()
            running.addErrback(lambda _: None)
            running.cancel()
        self._tell_if_idle()
        return names

    def _tell_if_idle(self) -> None:
        if not self._unfinished and not self._queued:
            waiting, self._idle = self._idle, []
            for deferred in waiting:
                deferred.callback(None)


def _begun_already() -> None:
    """The call of a job that has already begun."""


def _also(running: Deferred[Any]) -> Deferred[None]:
    """Return a Deferred that fires after ``running``, without its result.

    A function may return one Deferred for several messages. Only the first message gets the result.
    """
    waiting: Deferred[None] = Deferred()
    running.addCallback(lambda _: waiting.callback(None))
    return waiting


def error_of(failure: Failure) -> BaseException:
    """Return the error of ``failure``."""
    return failure.value or RuntimeError("a failure without an error")
