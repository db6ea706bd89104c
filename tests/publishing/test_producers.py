"""Timers and generators, on a test clock."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from zroute import App, SignatureError
from zroute.awaiting import as_awaitable, as_deferred
from zroute.functions import is_generator_function
from zroute.publishing.producers import BACK_OFF_MAX, TURN_SECONDS, TURN_VALUES, CompiledProducer, Producers
from zroute.publishing.publication import Schedule
from zroute.stats import Stats
from zroute.testing import TestApp


class Run:
    """A function as a producer on a Clock; ``out`` has the published values."""

    def __init__(
        self,
        function: Callable[[], Any],
        *,
        every: float | None = None,
        jitter: float = 0.0,
        initial_delay: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.out: list[Any] = []
        self.failures: list[tuple[BaseException, str]] = []
        self.finished = 0
        self.stats = Stats()
        schedule = Schedule(every, jitter, initial_delay) if every is not None else None
        producer = CompiledProducer(
            "f()", "app.py:1", function, self.out.append, schedule, is_generator_function(function)
        )
        self.producers = Producers(
            (producer,), self.clock, lambda awaitable: as_deferred(awaitable, asyncio_loop=False), self.stats, self
        )
        self.producers.start()

    def producer_failed(self, producer: CompiledProducer, error: BaseException, remedy: str) -> None:
        """Called by what is tested."""
        self.failures.append((error, remedy))

    def producer_finished(self, producer: CompiledProducer) -> None:
        """Called by what is tested."""
        self.finished += 1

    def pump(self, seconds: int) -> None:
        """Advance the clock in steps of a second."""
        self.clock.pump([1.0] * seconds)

    @property
    def remedies(self) -> list[str]:
        """The remedy of each failure, as in the log."""
        return [remedy for _, remedy in self.failures]


# -- periods ---------------------------------------------------------------------------------------------


def test_a_function_is_called_at_once_and_each_period() -> None:
    """With every=1.0 the first value is published at the start, then one each second."""
    counter = iter(range(100))
    run = Run(lambda: next(counter), every=1.0)
    assert run.out == [0]
    run.pump(3)
    assert run.out == [0, 1, 2, 3]


def test_an_initial_delay_comes_before_the_first() -> None:
    """initial_delay=5 delays the first value by five seconds."""
    run = Run(lambda: "x", every=1.0, initial_delay=5.0)
    run.pump(4)
    assert run.out == []
    run.pump(2)
    assert run.out == ["x", "x"]


def test_none_publishes_nothing() -> None:
    """A timer that returns None publishes nothing."""
    run = Run(lambda: None, every=1.0)
    run.pump(3)
    assert run.out == []


def test_missed_periods_are_skipped_and_counted() -> None:
    """After a stall the timer runs once, and the counter has the skipped periods."""
    run = Run(lambda: "x", every=1.0)
    run.clock.advance(5.5)
    assert run.out == ["x", "x"]
    assert run.stats.skipped_periods == 4


def test_periods_never_overlap() -> None:
    """An async function is not called again before it has ended."""
    waiting: list[Deferred[str]] = []

    async def slow() -> str:
        waiting.append(Deferred())
        return await waiting[-1]

    run = Run(slow, every=1.0)
    run.pump(3)
    assert len(waiting) == 1
    waiting[0].callback("done")
    assert run.out == ["done"]
    run.pump(1)
    assert len(waiting) == 2
    assert run.stats.skipped_periods == 3


def test_jitter_spreads_within_its_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """jitter=0.5 delays a call by up to half a period."""
    monkeypatch.setattr("random.random", lambda: 0.5)
    times: list[float] = []
    run = Run(lambda: times.append(run.clock.seconds()), every=10.0, jitter=0.5)
    assert times == []
    run.clock.pump([0.5] * 50)
    assert times == [2.5, 12.5, 22.5]


def test_jitter_holds_for_async_functions() -> None:
    """An async function with jitter is awaited before the next call."""
    waiting: list[Deferred[str]] = []

    async def slow() -> str:
        waiting.append(Deferred())
        return await waiting[-1]

    run = Run(slow, every=1.0, jitter=0.1)
    run.pump(5)
    assert len(waiting) == 1
    waiting[0].callback("x")
    assert run.out == ["x"]


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_does_not_end_the_schedule(error: type, is_async: bool) -> None:
    """A timer that raises an error, also StopIteration, is called again after a period."""
    calls: list[int] = []

    def once_bad() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return len(calls)

    async def async_once_bad() -> int:
        return once_bad()

    run = Run(async_once_bad if is_async else once_bad, every=1.0)
    run.pump(2)
    assert run.out == [2, 3]
    assert run.remedies == ["the schedule continues"]
    assert run.finished == 0


def test_a_deferred_is_awaited() -> None:
    """The result of a timer's Deferred is published."""
    later: Deferred[str] = Deferred()
    run = Run(lambda: later, every=1.0)
    assert run.out == []
    later.callback("x")
    assert run.out == ["x"]


# -- generators with a period ----------------------------------------------------------------------


def count_to(end: int) -> Callable[[], Iterator[int]]:
    """Return a plain generator function that yields 0 … end - 1."""

    def values() -> Iterator[int]:
        yield from range(end)

    return values


def async_count_to(end: int) -> Callable[[], AsyncIterator[int]]:
    """Return an async generator function that yields 0 … end - 1."""

    async def values() -> AsyncIterator[int]:
        for number in range(end):
            yield number

    return values


KINDS = pytest.mark.parametrize("count", [count_to, async_count_to])


@KINDS
def test_a_generator_gives_one_value_a_period_and_is_then_finished(count: Any) -> None:
    """A generator is created once, and its end stops the timer and is logged."""
    run = Run(count(3), every=1.0)
    assert run.out == [0]
    run.pump(10)
    assert run.out == [0, 1, 2]
    assert (run.finished, run.failures) == (1, [])
    assert run.clock.getDelayedCalls() == []


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("every", [None, 0.25])
def test_a_generator_that_keeps_failing_is_started_again_ever_later(is_async: bool, every: float | None) -> None:
    """A failing generator restarts after 1, 2, 4 … seconds, at most a minute."""

    def values() -> Iterator[int]:
        raise ValueError("no")
        yield

    async def async_values() -> AsyncIterator[int]:
        raise ValueError("no")
        yield

    run = Run(async_values if is_async else values, every=every)
    run.clock.pump([0.25] * 4 * 200)
    delays = [float(remedy.split()[-2]) for remedy in run.remedies]
    assert delays == [1, 2, 4, 8, 16, 32, BACK_OFF_MAX, BACK_OFF_MAX, BACK_OFF_MAX]


@pytest.mark.parametrize("every", [None, 1.0])
def test_a_generator_that_yielded_again_starts_its_back_off_anew(every: float | None) -> None:
    """A failure after published values restarts after one second."""

    def values() -> Iterator[int]:
        yield 1
        raise ValueError("no")

    run = Run(values, every=every)
    run.clock.pump([0.5] * 40)
    assert set(run.remedies) == {"restarting in 1 s"}
    assert len(run.out) > 5


def test_a_generator_that_cannot_be_made_is_tried_again() -> None:
    """A generator function that raises an error when called is retried in the same way."""
    calls: list[int] = []

    def values() -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("not yet")
        return count_to(2)()

    run = Run(count_to(0))
    run.producers.stop()
    producer = CompiledProducer("f()", "app.py:1", values, run.out.append, None, True)
    Producers(
        (producer,), run.clock, lambda awaitable: as_deferred(awaitable, asyncio_loop=False), run.stats, run
    ).start()
    run.pump(5)
    assert run.out == [0, 1]
    assert run.remedies == ["restarting in 1 s", "restarting in 2 s"]


# -- generators without a period --------------------------------------------------------------------


@KINDS
def test_without_a_period_all_values_are_published(count: Any) -> None:
    """A generator without every= runs to its end."""
    run = Run(count(10))
    run.pump(1)
    assert run.out == list(range(10))
    assert run.finished == 1


class Turns(Clock):
    """A clock that counts calls in the reactor's next turn."""

    turns = 0

    def callLater(self, when: float, what: Callable[..., object], *a: Any, **kw: Any) -> Any:
        self.turns += when == 0
        return super().callLater(when, what, *a, **kw)


@KINDS
def test_turns_are_bounded_by_values(count: Any) -> None:
    """An endless generator yields to the reactor, also with a stopped clock."""
    clock = Turns()
    run = Run(count(TURN_VALUES * 3 - 1), clock=clock)
    assert len(run.out) == TURN_VALUES
    clock.advance(0)
    assert len(run.out) == TURN_VALUES * 3 - 1
    assert clock.turns == 2


def test_turns_are_bounded_by_time() -> None:
    """A slow generator yields to the reactor after 5 ms."""
    clock = Turns()

    def slow() -> Iterator[int]:
        for number in range(7):
            clock.rightNow += TURN_SECONDS / 2
            yield number

    run = Run(slow, clock=clock)
    assert run.out == [0, 1]
    clock.advance(0)
    assert run.out == list(range(7))
    assert clock.turns == 3


def test_none_from_a_generator_publishes_nothing() -> None:
    """A generator that yields None publishes nothing."""

    def values() -> Iterator[int | None]:
        yield None
        yield 1

    assert Run(values).out == [1]


def test_a_generator_may_await_twisted() -> None:
    """An async generator that awaits a Deferred continues when it fires."""
    gate: Deferred[int] = Deferred()

    async def values() -> AsyncIterator[int]:
        yield 1
        yield await gate

    run = Run(values)
    assert run.out == [1]
    gate.callback(2)
    assert run.out == [1, 2]


# -- stopping --------------------------------------------------------------------------------------------


def closing(closed: list[str], endless: Deferred[int]) -> dict[str, Callable[[], Any]]:
    """Return a producer of each kind that records its closing."""

    def plain_values() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append("closed")

    async def async_values() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append("closed")

    async def waiting_values() -> AsyncIterator[int]:
        try:
            yield await endless
        finally:
            closed.append("closed")

    async def function() -> int:
        try:
            return await endless
        finally:
            closed.append("closed")

    return {"plain": plain_values, "async": async_values, "waiting": waiting_values, "function": function}


@pytest.mark.parametrize("every", [None, 1.0])
@pytest.mark.parametrize("kind", ["plain", "async", "waiting", "function"])
def test_a_stop_closes_what_runs_and_leaves_no_timer(every: float | None, kind: str) -> None:
    """A stop runs the finally blocks of generators, and calls no function afterwards."""
    closed: list[str] = []
    if kind == "function" and every is None:
        every = 2.0
    run = Run(closing(closed, Deferred())[kind], every=every)
    run.producers.stop()
    assert closed == ["closed"]
    out = list(run.out)
    run.pump(5)
    assert run.out == out
    assert (run.failures, run.clock.getDelayedCalls()) == ([], [])


@pytest.mark.parametrize("options", [{"jitter": 1.0}, {"initial_delay": 3.0}, {}])
def test_a_stop_while_waiting_is_silent(options: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    """A stop during a delay leaves no timer and no unhandled error."""
    run = Run(lambda: "x", every=10.0, **options)
    run.producers.stop()
    out = list(run.out)
    errors: list[Any] = []
    from twisted.logger import globalLogPublisher

    globalLogPublisher.addObserver(errors.append)
    try:
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(errors.append)
    run.pump(30)
    assert (run.out, run.clock.getDelayedCalls(), errors) == (out, [], [])


def test_a_stop_between_two_starts_of_a_failing_generator_is_silent() -> None:
    """A stop during the back-off cancels the restart."""

    def values() -> Iterator[int]:
        raise ValueError("no")
        yield

    run = Run(values)
    run.producers.stop()
    run.pump(5)
    assert len(run.failures) == 1


def test_a_generator_that_fails_while_it_is_closed_says_so() -> None:
    """An error in a finally block is reported."""

    def values() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("at the end")

    run = Run(values, every=1.0)
    run.producers.stop()
    assert run.remedies == ["the app is stopping"]


def test_an_async_function_that_is_stopped_reports_nothing() -> None:
    """Cancellation by a stop is not reported as a failure."""
    endless: Deferred[int] = Deferred()
    run = Run(lambda: endless, every=1.0)
    run.producers.stop()
    assert run.failures == []


# -- combinations ------------------------------------------------------------------------


def test_a_slow_generator_is_not_asked_again_before_it_has_answered() -> None:
    """A slow async generator publishes one value, and the skipped periods are counted."""
    gate: Deferred[int] = Deferred()

    async def values() -> AsyncIterator[int]:
        yield 0
        yield await gate
        yield 2

    run = Run(values, every=1.0)
    run.pump(4)
    assert run.out == [0]
    gate.callback(1)
    assert run.out == [0, 1]
    run.pump(1)
    assert run.out == [0, 1, 2]
    assert run.stats.skipped_periods == 3


@KINDS
def test_generators_know_delay_and_jitter(count: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """initial_delay applies once and jitter to each value."""
    monkeypatch.setattr("random.random", lambda: 0.5)
    run = Run(count(3), every=2.0, jitter=0.5, initial_delay=4.0)
    times: list[float] = []
    while run.clock.seconds() < 12:
        before = len(run.out)
        run.clock.advance(0.25)
        times += [run.clock.seconds()] * (len(run.out) - before)
    assert times == [4.5, 6.5, 8.5]
    assert run.finished == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_none_from_a_generator_takes_its_period_and_publishes_nothing(is_async: bool) -> None:
    """A generator with a period that yields None publishes nothing in that period."""

    def values() -> Iterator[int | None]:
        yield from (1, None, 3)

    async def async_values() -> AsyncIterator[int | None]:
        for value in (1, None, 3):
            yield value

    run = Run(async_values if is_async else values, every=1.0)
    run.pump(1)
    assert run.out == [1]
    run.pump(1)
    assert run.out == [1, 3]


def test_jitter_moves_no_period() -> None:
    """Jitter does not shift later periods."""
    times: list[float] = []
    run = Run(lambda: times.append(run.clock.seconds()), every=10.0, jitter=1.0)
    run.clock.pump([0.5] * 2000)
    assert 80 <= len(times) <= 100
    periods = [int(time // 10) for time in times]
    assert periods == sorted(set(periods))
    assert len({round(time % 10, 1) for time in times}) > 10
    assert run.stats.skipped_periods + len(times) >= 99


def test_what_cleans_up_badly_while_it_is_stopped_is_reported() -> None:
    """An error in a finally block during a stop is reported and does not disturb the stop."""

    async def function() -> int:
        try:
            return await Deferred()
        finally:
            raise ValueError("in finally")

    async def values() -> AsyncIterator[int]:
        try:
            yield await Deferred()
        finally:
            raise ValueError("in finally")

    for run in (Run(function, every=1.0), Run(values), Run(values, every=1.0)):
        endings = run.producers.stop()
        assert [name for name, ending in endings if ending.called] == ["f()"]
        assert [(str(error), remedy) for error, remedy in run.failures] == [("in finally", "the app is stopping")]


# -- in an app ----------------------------------------------------------------------

REACTORS = pytest.mark.parametrize("kind", ["twisted", "asyncio"])


def sources(app: App, kind: str) -> dict[str, Callable[..., Any]]:
    """Return a function of each kind that produces 0, None, 2 …."""
    counters = {name: itertools.count() for name in ("plain", "async", "deferred")}

    def nothing_at_one(number: int) -> int | None:
        return None if number == 1 else number

    def plain() -> int | None:
        return nothing_at_one(next(counters["plain"]))

    async def asynchronous() -> int | None:
        if kind == "asyncio":
            await asyncio.sleep(0.01)
        return nothing_at_one(next(counters["async"]))

    def deferred() -> Deferred[int | None]:
        return succeed(nothing_at_one(next(counters["deferred"])))

    def generator() -> Iterator[int | None]:
        yield from (0, None, 2)

    async def async_generator() -> AsyncIterator[int | None]:
        for number in (0, None, 2):
            if kind == "asyncio":
                await asyncio.sleep(0.01)
            yield number

    return {
        "plain": plain,
        "async": asynchronous,
        "deferred": deferred,
        "generator": generator,
        "asyncgenerator": async_generator,
    }


@REACTORS
@pytest.mark.parametrize("source", ["plain", "async", "deferred", "generator", "asyncgenerator"])
def test_with_a_period_each_kind_publishes_a_value_a_period(kind: Any, source: str) -> None:
    """With every=1.0 each kind of function publishes a value each second, except None."""
    app = App()
    app.publisher("out", every=1.0)(sources(app, kind)[source])
    with TestApp(app, reactor=kind) as t:
        seen = []
        for _ in range(5):
            t.advance(0.5)
            seen.append(t.published("out"))
            t.advance(0.5)
        more = [3, 4] if "generator" not in source else []
        assert seen == [[0], [0], [0, 2], [0, 2, *more[:1]], [0, 2, *more]]


@REACTORS
@pytest.mark.parametrize("source", ["generator", "asyncgenerator"])
def test_without_a_period_a_generator_publishes_all_it_has(kind: Any, source: str) -> None:
    """A generator without every= is created at the start and runs to its end."""
    app = App()
    app.publisher("out")(sources(app, kind)[source])
    with TestApp(app, reactor=kind) as t:
        t.advance(1)
        assert t.published("out") == [0, 2]


@REACTORS
@pytest.mark.parametrize("source", ["plain", "async", "deferred", "generator", "asyncgenerator"])
@pytest.mark.parametrize("publisher_first", [False, True])
def test_under_subscribe_each_message_makes_its_values(kind: Any, source: str, publisher_first: bool) -> None:
    """The results of a handler are published, for both orders of the decorators."""
    app = App()
    function = sources(app, kind)[source]
    decorators = [app.publisher("out"), app.publisher("too"), app.subscribe("in")]
    for decorator in decorators if publisher_first else reversed(decorators):
        assert decorator(function) is function
    with TestApp(app, reactor=kind) as t:
        for _ in range(3):
            t.publish("in", 7)
            t.advance(1)
        expected = [0, 2] * 3 if "generator" in source else [0, 2]
        assert t.published("out") == t.published("too") == expected


@pytest.mark.parametrize("make", ["plain", "async", "deferred"])
def test_a_publisher_that_nothing_calls_is_refused(make: str) -> None:
    """A publisher's function without a trigger is refused."""
    app = App()
    app.publisher("out")(sources(app, "twisted")[make])
    with pytest.raises(SignatureError, match=r"nothing calls .*: set every= in its publisher"):
        app.compile()


def test_a_list_is_one_message() -> None:
    """A list from a timer is published as one message."""
    app = App()
    app.publisher("out", every=1.0)(lambda: [1, 2])
    with TestApp(app) as t:
        assert t.published("out") == [[1, 2]]


@REACTORS
def test_in_an_app_failures_back_off_and_ends_are_told(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Failures are logged with their remedy and counted, and the schedule continues."""
    caplog.set_level("INFO")
    app, starts = App(), list[float]()

    @app.publisher("values")
    async def values() -> AsyncIterator[int]:
        starts.append(t._running.seconds() if t._reactor else 0)
        if len(starts) < 4:
            raise ValueError("not yet")
        yield len(starts)

    @app.every(1.0)
    def timer() -> None:
        raise ValueError("never")

    @app.every(1.0)
    async def slow() -> None:
        waiting: Deferred[None] = Deferred()
        t._running.callLater(2.5, waiting.callback, None)
        await as_awaitable(waiting)

    t = TestApp(app, reactor=kind, raise_errors=False)
    with t:
        t.advance(10.2)
        assert t.published("values") == [4]
        assert [round(start) for start in starts] == [0, 1, 3, 7]
        assert app.stats.skipped_periods == 6  # periods 1 and 2 of every three
        assert app.stats.publish_errors == 3 + 11
        assert t.results(slow) == [None] * 3
    said = [record.getMessage() for record in caplog.records]
    assert [line.rpartition("; ")[2] for line in said if "not yet" in line] == [
        f"restarting in {seconds} s" for seconds in (1, 2, 4)
    ]
    assert any("never" in line and line.endswith("; the schedule continues") for line in said)
    assert sum("values() has no more values" in line for line in said) == 1
