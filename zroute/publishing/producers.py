"""Timers and generators: functions that publish without a received message.

Calls of one timer never overlap, and an exception never ends a schedule. `twisted.internet.task.LoopingCall` schedules
the calls and counts the skipped periods. The clock is an argument, so tests can use virtual time.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import copy_context
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall

from zroute.awaiting import as_awaitable, is_awaitable, was_cancelled
from zroute.clock import Clock, Looping
from zroute.publishing.publication import Schedule
from zroute.stats import Stats

__all__ = ["BACK_OFF_MAX", "TURN_SECONDS", "CompiledProducer", "Producers", "Publish", "Start", "close_values", "drive"]

Start = Callable[[Awaitable[Any]], "Deferred[Any]"]
"""A function that runs an awaitable, and returns a Deferred for its result."""

Publish = Callable[[Any], "Deferred[None] | None"]
"""A function that publishes a value.

It returns a Deferred that fires when the value is sent, or None if no subscriber's queue is full.
"""

TURN_SECONDS = 0.005
"""The time in seconds for which a generator may run before the reactor continues with other work."""

TURN_VALUES = 256
"""The maximum number of values of a generator in one turn. The limit ends turns in tests, where the clock does not
advance.
"""

BACK_OFF_MAX = 60.0
"""The maximum delay in seconds before a failed generator restarts. The delays are 1, 2, 4 … up to this value."""


@attrs.frozen(eq=False)
class CompiledProducer:
    """A timer function or generator function that is ready to run.

    Attributes:
        name: The name of the function, for logs.
        where: The user's line, as ``file:line``.
        call: A function that calls the user's function with its resources.
        publish: A function that publishes one value. It never raises an error, and its Deferred never fails.
        schedule: The schedule; None for a generator that runs without a timer.
        generator: True for a generator function.
    """

    name: str
    where: str
    call: Callable[[], Any]
    publish: Publish
    schedule: Schedule | None
    generator: bool


class ProducerOutcomes(Protocol):
    """The receiver of the outcomes of producers. Its methods do not raise errors."""

    def producer_failed(self, producer: CompiledProducer, error: BaseException, remedy: str) -> None:
        """Handle an error of the function or of its publication.

        ``remedy`` describes what happens next, for the log.
        """

    def producer_finished(self, producer: CompiledProducer) -> None:
        """Handle the end of a generator."""


async def drive(values: Any, publish: Publish, clock: Clock) -> None:
    """Publish all values of a generator, for a few milliseconds in each turn.

    If this coroutine is cancelled, it closes the generator. It raises the errors of the generator and of ``publish``.

    Args:
        values: The plain or async generator.
        publish: A function that publishes one value, which may be None.
        clock: The reactor's clock.
    """
    deadline, count = clock.seconds() + TURN_SECONDS, 0
    try:
        async for value in values if hasattr(values, "__anext__") else _asynchronous(values):
            sent = publish(value)
            if sent is not None:
                await as_awaitable(sent)
            count += 1
            if count >= TURN_VALUES or clock.seconds() >= deadline:
                await as_awaitable(_later(clock, 0))
                deadline, count = clock.seconds() + TURN_SECONDS, 0
    finally:
        await close_values(values)


async def _asynchronous(values: Generator[Any, None, None]) -> AsyncGenerator[Any, None]:
    for value in values:
        yield value


async def close_values(values: Any) -> None:
    """Close a plain or async generator.

    Other iterators, such as a ``map``, are not closed.
    """
    if hasattr(values, "aclose"):
        await values.aclose()
    elif hasattr(values, "close"):
        values.close()


def _later(clock: Clock, delay: float) -> Deferred[None]:
    call: Any = None

    def cancel(_deferred: Deferred[None]) -> None:
        call.cancel()

    waiting: Deferred[None] = Deferred(cancel)
    call = clock.callLater(delay, waiting.callback, None)
    return waiting


class Producers:
    """All producers of one run."""

    def __init__(
        self,
        producers: tuple[CompiledProducer, ...],
        clock: Clock,
        start: Start,
        stats: Stats,
        outcomes: ProducerOutcomes,
    ) -> None:
        self._running = [_Running(producer, clock, start, stats, outcomes) for producer in producers]

    def start(self) -> None:
        """Start all producers: at once, or after their delay."""
        for running in self._running:
            running.begin()

    def stop(self) -> list[tuple[str, Deferred[None]]]:
        """Stop all producers: cancel timers and running calls, and close generators.

        Return the name of each producer, with a Deferred that fires when it has ended.
        """
        return [(running.name, running.stop()) for running in self._running]


class _Running:
    """The state of one producer while the app runs."""

    def __init__(
        self, producer: CompiledProducer, clock: Clock, start: Start, stats: Stats, outcomes: ProducerOutcomes
    ) -> None:
        self.name = producer.name
        self._producer = producer
        self._clock = clock
        self._start = start
        self._stats = stats
        self._outcomes = outcomes
        self._context = self._calling = copy_context()
        self._values: Any = None
        self._failures = 0
        self._waiting: Deferred[Any] = succeed(None)
        self._loop: LoopingCall | None = None
        self._stopped = False

    def begin(self) -> None:
        schedule = self._producer.schedule
        if schedule is None:
            self._drive()
        elif schedule.initial_delay:
            self._wait(schedule.initial_delay, lambda: self._loop_every(schedule))
        else:
            self._loop_every(schedule)

    def stop(self) -> Deferred[None]:
        """Stop the producer; the Deferred fires when it has ended, and never fails."""
        self._stopped = True
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._waiting.cancel()
        return self._waiting.addCallback(lambda _: self._close())  # a cancelled task ends in a later turn

    def _close(self) -> Deferred[None]:
        if self._values is None:
            return succeed(None)
        return self._start(close_values(self._values)).addErrback(self._not_closed)

    def _not_closed(self, failure: Any) -> None:
        self._failed_to_stop(failure.value)

    def _failed_to_stop(self, error: BaseException) -> None:
        if not was_cancelled(error):
            self._outcomes.producer_failed(self._producer, error, "the app is stopping")

    # -- timers ----------------------------------------------------------------------------------------

    def _loop_every(self, schedule: Schedule) -> None:
        self._loop = Looping.withCount(self._tick)
        self._loop.clock = self._clock  # type: ignore[assignment]  # any clock with seconds and callLater
        self._loop.start(schedule.every)

    def _tick(self, periods: int) -> Deferred[Any] | None:
        self._stats.skipped_periods += periods - 1
        schedule = self._producer.schedule
        if schedule is not None and schedule.jitter:
            delay = random.random() * schedule.jitter * schedule.every
            return self._keep(_later(self._clock, delay).addCallbacks(lambda _: self._once(), lambda _: None))
        return self._once()

    def _once(self) -> Deferred[Any] | None:
        """Call the function, or publish the generator's next value.

        Each call of a function runs in its own context. A generator has one context for all its values. This method
        never raises an error, and its Deferred never fails.
        """
        if self._values is None:
            self._calling = self._context.copy()
        return self._calling.run(self._once_here)

    def _once_here(self) -> Deferred[Any] | None:
        try:
            result = self._next() if self._producer.generator else self._producer.call()
            if is_awaitable(result):
                running = self._start(result).addCallback(self._publish)
                return self._keep(running.addErrback(self._call_failed))
            sent = self._publish(result)
            if sent is not None:
                return self._keep(sent.addErrback(self._call_failed))
        except BaseException as error:  # SystemExit too, as in handlers: it would end the schedule silently
            self._failed(error)
        return None

    def _next(self) -> Any:
        if self._values is None:
            self._values = self._producer.call()
        return next(self._values) if hasattr(self._values, "__next__") else anext(self._values)

    def _publish(self, value: Any) -> Deferred[None] | None:
        # The generator works again, so the next failure waits only 1 s.
        self._failures = 0
        return self._producer.publish(value) if value is not None else None

    def _finish(self) -> None:
        self._values = None
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._outcomes.producer_finished(self._producer)

    def _call_failed(self, failure: Any) -> None:
        self._failed(failure.value)

    def _failed(self, error: BaseException) -> None:
        """Handle an error of a timer function, or of a generator with a timer."""
        if self._stopped:
            self._failed_to_stop(error)
        elif not self._producer.generator:
            self._outcomes.producer_failed(self._producer, error, "the schedule continues")
        elif isinstance(error, StopIteration | StopAsyncIteration):
            self._finish()
        else:
            self._values = None
            if self._loop is not None and self._loop.running:
                self._loop.stop()
            self._restart(error)

    # -- generators without a timer --------------------------------------------------------------------

    def _drive(self) -> None:
        context = self._context.copy()
        try:
            values = context.run(self._producer.call)
        except Exception as error:
            self._restart(error)
            return
        driven = context.run(self._start, drive(values, self._publish, self._clock))
        self._keep(driven.addCallbacks(lambda _: self._finish(), self._drive_failed))

    def _drive_failed(self, failure: Any) -> None:
        if self._stopped:
            self._failed_to_stop(failure.value)
        else:
            self._restart(failure.value)

    def _restart(self, error: BaseException) -> None:
        """Restart with a new generator, after 1, 2, 4 … seconds."""
        delay = min(2.0**self._failures, BACK_OFF_MAX)
        self._failures += 1
        self._outcomes.producer_failed(self._producer, error, f"restarting in {delay:g} s")
        if self._stopped:  # the error was SystemExit, which stops the app
            return
        schedule = self._producer.schedule
        self._wait(delay, self._drive if schedule is None else lambda: self._loop_every(schedule))

    # -- waiting ---------------------------------------------------------------------------------------

    def _wait(self, delay: float, then: Callable[[], None]) -> None:
        self._keep(_later(self._clock, delay).addCallbacks(lambda _: then(), lambda _: None))

    def _keep(self, waiting: Deferred[Any]) -> Deferred[Any]:
        """Store a Deferred that `stop` must cancel."""
        if not waiting.called:
            self._waiting = waiting
        return waiting
