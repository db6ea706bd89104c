"""Timers and generators: what publishes without being asked by a message. The clock is an argument.

Periods never overlap, and an exception never ends a schedule; `twisted.internet.task.LoopingCall` keeps the
time and counts what was missed.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall

from zroute.awaiting import as_awaitable, is_awaitable, was_cancelled
from zroute.clock import Clock
from zroute.publishing.publication import Schedule
from zroute.stats import Stats

__all__ = ["BACK_OFF_MAX", "TURN_SECONDS", "CompiledProducer", "Producers", "Start", "drive"]

Start = Callable[[Awaitable[Any]], "Deferred[Any]"]

Publish = Callable[[Any], "Deferred[None] | None"]
"""Publishes a value; None, or what fires when that need not wait any more for subscribers that have no room."""

TURN_SECONDS = 0.005
"""Seconds a generator may run before the reactor is given its turn."""

TURN_VALUES = 256
"""Values a generator may yield in one turn, for clocks that stand still (tests)."""

BACK_OFF_MAX = 60.0
"""Seconds between two starts of a generator that keeps failing: 1, 2, 4 … up to this."""


@attrs.frozen(eq=False)
class CompiledProducer:
    """A function, ready: ``call()`` runs it, ``publish`` takes each value and neither raises nor fails."""

    name: str
    where: str
    call: Callable[[], Any]
    publish: Publish
    schedule: Schedule | None
    generator: bool


class ProducerOutcomes(Protocol):
    """Where a producer's failures go. It doesn't raise."""

    def producer_failed(self, producer: CompiledProducer, error: BaseException, remedy: str) -> None:
        """The function or its publication raised; ``remedy`` says what happens next."""

    def producer_finished(self, producer: CompiledProducer) -> None:
        """A generator came to its end."""


def drive(
    values: Generator[Any, None, None] | AsyncGenerator[Any, None],
    publish: Publish,
    clock: Clock,
    start: Start,
) -> Deferred[None]:
    """Publish all that ``values`` yields, a few milliseconds a turn.

    The Deferred fires when the generator ends and fails when it or ``publish`` raises; cancelling it closes
    the generator.
    """
    return start(_drive(values, publish, clock))


async def _drive(values: Any, publish: Publish, clock: Clock) -> None:
    deadline, count = clock.seconds() + TURN_SECONDS, 0
    try:
        async for value in values if hasattr(values, "__anext__") else _asynchronous(values):
            sent = publish(value) if value is not None else None
            if sent is not None:
                await as_awaitable(sent)
            count += 1
            if count >= TURN_VALUES or clock.seconds() >= deadline:
                await as_awaitable(_later(clock, 0))
                deadline, count = clock.seconds() + TURN_SECONDS, 0
    finally:
        await _close(values)


async def _asynchronous(values: Generator[Any, None, None]) -> AsyncGenerator[Any, None]:
    for value in values:
        yield value


async def _close(values: Any) -> None:
    if hasattr(values, "aclose"):
        await values.aclose()
    else:
        values.close()


def _later(clock: Clock, delay: float) -> Deferred[None]:
    call: Any = None

    def cancel(_deferred: Deferred[None]) -> None:
        call.cancel()

    waiting: Deferred[None] = Deferred(cancel)
    call = clock.callLater(delay, waiting.callback, None)
    return waiting


class Producers:
    """All producers of one run, started together and stopped together."""

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
        """Run what has no delay, schedule the rest."""
        for running in self._running:
            running.begin()

    def stop(self) -> list[tuple[str, Deferred[None]]]:
        """Call nothing any more, cancel what runs, close generators: their names, and what fires at their ends."""
        return [(running.name, running.stop()) for running in self._running]


class _Running:
    """One producer while the app runs."""

    def __init__(
        self, producer: CompiledProducer, clock: Clock, start: Start, stats: Stats, outcomes: ProducerOutcomes
    ) -> None:
        self.name = producer.name
        self._producer = producer
        self._clock = clock
        self._start = start
        self._stats = stats
        self._outcomes = outcomes
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
        """Fires, and never fails, when nothing of it runs any more."""
        self._stopped = True
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._waiting.cancel()
        return self._waiting.addCallback(lambda _: self._close())  # a task ends later than it is cancelled

    def _close(self) -> Deferred[None]:
        if self._values is None:
            return succeed(None)
        return self._start(_close(self._values)).addErrback(self._not_closed)

    def _not_closed(self, failure: Any) -> None:
        self._failed_to_stop(failure.value)

    def _failed_to_stop(self, error: BaseException) -> None:
        if not was_cancelled(error):
            self._outcomes.producer_failed(self._producer, error, "it was being stopped")

    # -- a period at a time ----------------------------------------------------------------------------

    def _loop_every(self, schedule: Schedule) -> None:
        self._loop = LoopingCall.withCount(self._tick)
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
        """Call the function or take the generator's next value; never raises, never fails."""
        try:
            result = self._next() if self._producer.generator else self._producer.call()
            if is_awaitable(result):
                running = self._start(result).addCallback(self._publish)
                return self._keep(running.addErrback(self._call_failed))
            sent = self._publish(result)
            if sent is not None:
                return self._keep(sent.addErrback(self._call_failed))
        except BaseException as error:  # also SystemExit, as for handlers: it would end the schedule in silence
            self._failed(error)
        return None

    def _next(self) -> Any:
        if self._values is None:
            self._values = self._producer.call()
        return next(self._values) if hasattr(self._values, "__next__") else anext(self._values)

    def _publish(self, value: Any) -> Deferred[None] | None:
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
        """What the function raised, or the generator that is asked for one value a period."""
        if self._stopped:
            self._failed_to_stop(error)
        elif not self._producer.generator:
            self._outcomes.producer_failed(self._producer, error, "the schedule goes on")
        elif isinstance(error, StopIteration | StopAsyncIteration):
            self._finish()
        else:
            self._values = None
            if self._loop is not None and self._loop.running:
                self._loop.stop()
            self._restart(error)

    # -- as fast as it yields --------------------------------------------------------------------------

    def _drive(self) -> None:
        try:
            values = self._producer.call()
        except Exception as error:
            self._restart(error)
            return
        driven = drive(values, self._publish, self._clock, self._start)
        self._keep(driven.addCallbacks(lambda _: self._finish(), self._drive_failed))

    def _drive_failed(self, failure: Any) -> None:
        if self._stopped:
            self._failed_to_stop(failure.value)
        else:
            self._restart(failure.value)

    def _restart(self, error: BaseException) -> None:
        """Begin anew with a new generator, after 1, 2, 4 … seconds."""
        delay = min(2.0**self._failures, BACK_OFF_MAX)
        self._failures += 1
        self._outcomes.producer_failed(self._producer, error, f"it starts anew in {delay:g} s")
        schedule = self._producer.schedule
        self._wait(delay, self._drive if schedule is None else lambda: self._loop_every(schedule))

    # -- waiting ---------------------------------------------------------------------------------------

    def _wait(self, delay: float, then: Callable[[], None]) -> None:
        self._keep(_later(self._clock, delay).addCallbacks(lambda _: then(), lambda _: None))

    def _keep(self, waiting: Deferred[Any]) -> Deferred[Any]:
        """Remember what to cancel at a stop."""
        if not waiting.called:
            self._waiting = waiting
        return waiting
