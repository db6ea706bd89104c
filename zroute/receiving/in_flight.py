"""Run handlers that may be unfinished when they return.

This module keeps the order and the limits of calls, and ends the calls at a stop. It executes the decisions of each
route's `Flow`: it makes calls in order, waits for their results, and pauses reading while the queue of a route is full.
No function in this module raises an error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextvars import Context
from types import CoroutineType
from typing import Any, ClassVar, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.awaiting import is_awaitable
from zroute.messages.wire import may_have_headers
from zroute.publishing.producers import TURN_SECONDS, Publish, drive
from zroute.receiving.around import Skipped, Waiting
from zroute.receiving.attempts import Attempts, Executor, Job, last_of
from zroute.receiving.batching import Batcher, BatchJob, Stale
from zroute.receiving.dispatch import BoundRoute, CompiledRoute, DispatchCallbacks
from zroute.receiving.frames import RawFrames
from zroute.throttle import ThrottledLog

__all__ = ["InFlight", "PendingCall", "Reading", "error_of"]

Dropped = Callable[[], None]


class Reading(Protocol):
    """The source of messages, which is paused while the queue of a route is full."""

    def pause(self, by: Iterable[CompiledRoute]) -> None:
        """Stop reading until `resume`, because the queues of the routes ``by`` are full.

        Messages that have arrived are kept.
        """

    def resume(self) -> None:
        """Resume reading."""

    def reclassify(self) -> None:
        """Create the deliver closures again, because a flow has become active."""


@attrs.define(eq=False)  # not frozen: a frozen instance takes three times as long to create
class PendingCall:
    """A waiting or running call."""

    delivery: BoundRoute
    call: Callable[[], Any]
    raw: RawFrames
    many: ClassVar[int] = 1

    @property
    def attempt(self) -> Callable[[], Any]:
        """The call to make; it may be made several times."""
        return self.call

    @property
    def raws(self) -> Sequence[RawFrames]:
        """The frames of the message."""
        return (self.raw,)

    def is_stale(self, stale: Stale) -> bool:
        """Return True if the message has become too old."""
        return stale(self.delivery.route, self.raw)


class InFlight:
    """The unfinished and the waiting calls of one run of an app."""

    def __init__(
        self, outcomes: DispatchCallbacks, reports: ThrottledLog, executor: Executor, reading: Reading
    ) -> None:
        self._outcomes = outcomes
        self._reports = reports
        self._clock = clock = executor.clock
        self._step = executor.step
        self._context = executor.context
        self._reading = reading
        self._unfinished: dict[Deferred[Any], tuple[str, Dropped, int]] = {}
        self._queued: set[CompiledRoute] = set()
        self._full: dict[CompiledRoute, None] = {}
        self._pumping: set[CompiledRoute] = set()
        self._idle: list[Deferred[None]] = []
        self._gathering = Batcher(clock, self._queued.add, self._go_on)
        self._attempts = Attempts(outcomes, executor)
        self.end_retries = self._attempts.end_retries
        self.gather = self._gathering.gather
        self.release, self.release_soon = self._gathering.release, self._gathering.release_soon

    def settle(self, delivery: BoundRoute, result: Any, raw: RawFrames) -> None:
        """Handle a result of a handler, or queue the call of an active flow."""
        route = delivery.route
        if route.flow.active:
            self._enqueue(delivery, result, raw)
            return
        try:
            running = self._begun(delivery, result, raw)
        except BaseException as error:  # the result may be any object, and reading its attributes may raise an error
            self._outcomes.failed(delivery, error, raw)
            return
        if running is None:
            route.stats.handled += 1
        else:  # a plain function returned its first Deferred: from now on, its messages wait for each other
            route.flow.activate()
            self._reading.reclassify()
            route.flow.start(delivery.wire)
            self._await(PendingCall(delivery, _begun_already, raw), delivery.wire, running)

    def _call(self, delivery: BoundRoute, call: Callable[[], Any], raw: RawFrames | None) -> Deferred[Any] | None:
        """Make the call of a job, in a context of its own.

        An ``async`` function and a generator keep the context of the call. Results are published outside of that
        context, like the results of calls that do not wait.
        """
        context = self._context.copy()
        result = context.run(call)
        if type(result) is CoroutineType:  # most calls that come here
            return self._await_value(delivery, result, raw, context)
        if result is None or is_awaitable(result) or hasattr(result, "__next__") or hasattr(result, "__anext__"):
            return context.run(self._begun, delivery, result, raw)
        return self._context.copy().run(self._begun, delivery, result, raw)

    def _begun(self, delivery: BoundRoute, result: Any, raw: RawFrames | None) -> Deferred[Any] | None:
        """Return a Deferred if ``result`` is not yet available or published; else None.

        Headers of the message ``raw`` are copied to published messages; ``raw`` is None for a list of messages.
        """
        if type(result) is Waiting:
            return result.context.run(self._begun, delivery, result.result, raw)
        if type(result) is Skipped:
            return self._skip(delivery.route, result, self._begun(delivery, result.result, raw))
        if is_awaitable(result):
            return self._await_value(delivery, result, raw)
        if delivery.route.takes_values and (hasattr(result, "__next__") or hasattr(result, "__anext__")):
            return self._drive(delivery, result, raw)
        return self._publish(delivery, result, raw)

    def _await_value(
        self, delivery: BoundRoute, awaitable: Awaitable[Any], raw: RawFrames | None, context: Context | None = None
    ) -> Deferred[Any] | None:
        """Publish the value of an awaitable.

        It runs in ``context``; see `zroute.awaiting.stepped`. Return a Deferred if the value is not yet available or
        published.
        """
        started = self._step(awaitable, context)
        if isinstance(started, Deferred):
            return started.addCallback(lambda value: self._publish(delivery, value, raw))
        value = started.value
        if not delivery.route.takes_values and type(value) is not Skipped:
            return None
        return self._context.copy().run(self._publish, delivery, value, raw)

    def _drive(self, delivery: BoundRoute, result: Any, raw: RawFrames | None) -> Deferred[Any] | None:
        """Publish the values of a generator."""
        driving = self._step(drive(result, self._publishing(delivery, raw), self._clock), None)
        return driving if isinstance(driving, Deferred) else None

    def _enqueue(self, delivery: BoundRoute, call: Callable[[], Any], raw: RawFrames) -> None:
        """Make the call now if it need not wait, else queue it."""
        route, key, job = delivery.route, delivery.wire, PendingCall(delivery, call, raw)
        if route in self._pumping or not route.flow.try_start(key):
            self._put(key, job)
            return
        # As for a call that was queued: messages that arrive during the call wait, and the app is not idle.
        self._pumping.add(route)
        self._queued.add(route)
        self._run(key, job)
        if route.flow.queued:
            self._begin_some(route)
        else:
            self._pumping.discard(route)
            self._queued.discard(route)
            if self._idle:
                self._tell_if_idle()

    def _put(self, key: Hashable, job: PendingCall) -> None:
        """Add a call to the queue of ``key``."""
        route = job.delivery.route
        route.flow.put(key, job)
        route.stats.queued += 1  # another route with the same name may share these counters
        self._queued.add(route)
        self._pump(route)
        if route.flow.full and route not in self._full:
            self._pause(route)

    def _go_on(self, route: CompiledRoute) -> None:
        """Continue with a route whose batches have become ready or longer."""
        self._pump(route)
        if route.flow.full and route not in self._full:
            self._pause(route)

    def _pause(self, route: CompiledRoute) -> None:
        self._full[route] = None
        self._reading.pause(self._full)
        self._say_flow(route, "queue full (%d messages): reading is paused until half of them are handled")
        # Further messages for the held batches are not read before `resume`, so waiting longer is useless.
        self._gathering.release_soon(0)

    def _pump(self, route: CompiledRoute) -> None:
        """Begin the calls that may run, unless another call of `_begin_some` begins them.

        That call is further up the stack, or is scheduled for the reactor's next turn.
        """
        if route not in self._pumping:
            self._pumping.add(route)
            self._begin_some(route)

    def _begin_some(self, route: CompiledRoute) -> None:
        """Begin calls that may run, for a limited time; begin the rest in the next turn."""
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

    def _run(self, key: Hashable, job: PendingCall | BatchJob) -> None:
        delivery = job.delivery
        if delivery.route.may_be_stale and job.is_stale(self._outcomes.stale):
            delivery.route.flow.done(key)
            return
        try:
            # The messages of a list may have different headers, so none are copied.
            raw = job.raw if isinstance(job, PendingCall) else None
            if delivery.route.direct:
                running = self._call(delivery, job.call, raw)
            else:
                running = self._begun(delivery, self._attempts.begin(job), raw)
        except BaseException as error:  # also SystemExit, as for plain functions
            delivery.route.flow.done(key)
            self._outcomes.failed(delivery, error, job.raw, job.many, raws=job.raws)
            return
        if running is None:
            delivery.route.flow.done(key)
            delivery.route.stats.handled += job.many
        else:
            self._await(job, key, running)

    def begin(self, job: Job, raw: RawFrames | None) -> Deferred[Any] | None:
        """Make the call for a job that the caller counts and reports.

        ``raw`` is the message whose headers are copied to published results. All errors are raised.

        Returns:
            A Deferred if the call is unfinished, or None. A failure of the Deferred may contain an error that `last_of`
                unpacks.
        """
        if job.delivery.route.direct:
            return self._call(job.delivery, job.attempt, raw)
        return self._begun(job.delivery, self._attempts.begin(job), raw)

    def _await(self, job: PendingCall | BatchJob, key: Hashable, running: Deferred[Any]) -> None:
        route, many = job.delivery.route, job.many
        stats = route.stats
        stats.in_flight += many

        def ended(result: Any) -> None:
            stats.in_flight -= many
            route.flow.done(key)
            if isinstance(result, Failure):
                error, attempts = last_of(error_of(result))
                self._outcomes.failed(job.delivery, error, job.raw, many, raws=job.raws, attempts=attempts)
            else:
                stats.handled += many
            if route.flow.queued:
                self._pump(route)

        def dropped() -> None:
            stats.in_flight -= many
            stats.dropped_at_shutdown += many
            self._lost(job, begun=True)

        self.watch(running, route.name, ended, dropped, many)

    def _lost(self, job: PendingCall | BatchJob, *, begun: bool) -> None:
        """Process a job that is dropped at a stop. Messages need no action; requests do."""

    def watch(
        self, running: Deferred[Any], name: str, ended: Callable[[Any], None], dropped: Dropped, many: int = 1
    ) -> None:
        """Call ``ended`` with the result of ``running``, a call with ``many`` messages.

        If the app drops the call before it ends, ``dropped`` is called instead.
        """
        if running in self._unfinished:
            running = _also(running)
        self._unfinished[running] = (name, dropped, many)

        def tell(result: Any) -> None:
            # None: `discard` or `give_up` has dropped the call, and has counted it.
            if self._unfinished.pop(running, None) is not None:
                ended(result)
                self._tell_if_idle()

        running.addBoth(tell)

    def _flows_again(self, route: CompiledRoute) -> None:
        del self._full[route]
        self._say_flow(route, "reading resumed: %d messages are waiting")
        if self._full:
            # Reading is paused already: this only updates the names of the routes that pause it.
            self._reading.pause(self._full)
        else:
            self._reading.resume()

    def _say_flow(self, route: CompiledRoute, text: str) -> None:
        where, queued = route.route.where, route.flow.queued
        key = ("flow", route.name, where)
        self._reports(key, route.name, logging.WARNING, f"%s at %s: {text}", route.name, where, queued)

    def _publish(self, delivery: BoundRoute, value: Any, raw: RawFrames | None) -> Deferred[None] | None:
        route = delivery.route
        if type(value) is Skipped:
            return self._skip(route, value, self._publish(delivery, value.result, raw))
        if value is None or not route.outlets:
            return None
        headers = None
        if raw is not None and (type(raw) is not bytes or may_have_headers(raw)):
            headers = self._outcomes.propagated(delivery, raw)
        return self._outcomes.publish(route.outlets, value, delivery.captures, route.name, headers)

    def _skip(self, route: CompiledRoute, skipped: Skipped, sent: Deferred[Any] | None) -> Deferred[Any] | None:
        """Count messages as skipped when their result has been ``sent``.

        The caller has counted these messages as handled.
        """

        def count(_: Any = None) -> None:
            route.stats.skipped += skipped.many
            route.stats.handled -= skipped.many

        if sent is not None:
            return sent.addCallback(count)
        count()
        return None

    def _publishing(self, delivery: BoundRoute, raw: RawFrames | None) -> Publish:
        """Return the function that publishes the values of a generator.

        Headers of the message ``raw`` are copied to each value.
        """
        route, publish = delivery.route, self._outcomes.publish
        headers = None if raw is None else self._outcomes.propagated(delivery, raw)

        def send(value: Any) -> Deferred[None] | None:
            return None if value is None else publish(route.outlets, value, delivery.captures, route.name, headers)

        return send

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None = None) -> int:
        """Drop the waiting calls of ``route``, and the call ``unfinished`` if it is set.

        Returns:
            The number of dropped messages, which are counted.
        """
        jobs = route.flow.clear()
        dropped: int = sum([job.many for job in jobs])
        for job in jobs:
            self._lost(job, begun=False)
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
        """Return a Deferred that fires when no call is unfinished or waiting."""
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
        """Drop all waiting calls, and cancel the unfinished calls.

        Returns:
            The names of the handlers, with their numbers of dropped messages, which are counted.
        """
        names: Counter[str] = Counter()
        self._full.clear()  # during a stop, do not log that reading resumes
        # A copy: `discard` removes the route.
        for route in tuple(self._queued):
            names[route.name] += self.discard(route)
        # Emptied first: a cancelled Deferred calls `tell`, which must not count its messages a second time.
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
    """The placeholder for the call of a job that has already begun."""


def _also(running: Deferred[Any]) -> Deferred[None]:
    """Return a Deferred that fires after ``running``, but without the result.

    A function may return the same Deferred for several messages. Only the first message gets the result.
    """
    waiting: Deferred[None] = Deferred()
    running.addCallback(lambda _: waiting.callback(None))
    return waiting


def error_of(failure: Failure) -> BaseException:
    """Return the error of ``failure``."""
    return failure.value or RuntimeError("a failure without an error")
