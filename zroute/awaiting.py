"""Two kinds of awaiting, one kind of result: Twisted's Deferreds and asyncio's tasks.

Under the asyncio reactor coroutines run as tasks, so that asyncio libraries work in them; under every
other reactor they run on Deferreds. zroute's own awaitables work in both.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.clock import Clock

__all__ = ["as_awaitable", "as_deferred", "is_awaitable", "loop_hint", "was_cancelled", "within"]

T = TypeVar("T")

_GRACE = 1.0
"""Seconds that what was cancelled is given to end."""


def is_awaitable(result: object) -> bool:
    """Whether ``result`` is a Deferred, a coroutine, a future or another awaitable."""
    return hasattr(result, "__await__")


def as_deferred(awaitable: Awaitable[T], *, asyncio_loop: bool) -> Deferred[T]:
    """Run ``awaitable`` to its end; the Deferred fires with its result.

    ``asyncio_loop`` says that the reactor runs on an asyncio loop: a coroutine then becomes a task.
    Cancelling the Deferred cancels what it waits for.
    """
    if isinstance(awaitable, Deferred):
        return awaitable
    if asyncio_loop:
        task = asyncio.ensure_future(_guarded(awaitable))
        if inspect.iscoroutine(awaitable):  # a task that is cancelled before it begins would leave it "never awaited"
            task.add_done_callback(lambda _: awaitable.close())
        return Deferred.fromFuture(task)
    if inspect.iscoroutine(awaitable):
        return Deferred.fromCoroutine(awaitable)
    return Deferred.fromCoroutine(_await(awaitable))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _guarded(awaitable: Awaitable[T]) -> T:
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt):  # a task lets these two out into the loop, which would end with them
        return Failure()  # type: ignore[no-untyped-call, return-value]  # with which the Deferred fails


def was_cancelled(error: BaseException | None) -> bool:
    """Whether ``error`` is what a cancelled Deferred or task fails with."""
    return isinstance(error, CancelledError | asyncio.CancelledError)


def within(seconds: float, running: Deferred[T], clock: Clock) -> Deferred[T]:
    """Fires as ``running`` does; cancels it after ``seconds``, and fails with TimeoutError if that ends it.

    It fails so as well when even that has not ended it a second later: nobody waits for ever for
    what can't be cancelled.
    """
    waiting: Deferred[T] = Deferred()
    late = TimeoutError(seconds, "Deferred")

    def cancel() -> None:
        timers.append(clock.callLater(_GRACE, waiting.errback, late))
        running.cancel()

    def ended(result: Any) -> None:
        if waiting.called:
            return
        timers[-1].cancel()
        if len(timers) > 1 and isinstance(result, Failure) and was_cancelled(result.value):
            waiting.errback(late)
        else:
            waiting.callback(result)

    timers = [clock.callLater(seconds, cancel)]
    running.addBoth(ended)
    return waiting


class _Either(Generic[T]):
    def __init__(self, deferred: Deferred[T]) -> None:
        self._deferred = deferred

    def __await__(self) -> Generator[Any, None, T]:
        if _in_task() and not _on_deferred():
            return self._deferred.asFuture(asyncio.get_running_loop()).__await__()
        return self._deferred.__await__()


def as_awaitable(deferred: Deferred[T]) -> Awaitable[T]:
    """What can be awaited where ``deferred`` can't: in an asyncio task, and in a Deferred coroutine as well."""
    return _Either(deferred)


def _in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no running loop
        return False


def _on_deferred() -> bool:
    """Whether a Deferred drives the coroutine that awaits: it may have been fired, and so resumed, inside a task."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_flags & _SUSPENDABLE:
        frame = frame.f_back
    return frame.f_globals.get("__name__") == Deferred.__module__


_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR


def loop_hint(error: BaseException) -> str:
    """What to do where asyncio was awaited without its loop, or a Deferred in one of its tasks."""
    if isinstance(error, BaseExceptionGroup):  # as a TaskGroup raises them
        return next((hint for hint in map(loop_hint, error.exceptions) if hint), "")
    text = str(error)
    if type(error).__name__ in _LOOPLESS or (
        isinstance(error, RuntimeError) and ("no running event loop" in text or "await wasn't used with future" in text)
    ):
        return (
            " (to await asyncio, run on its loop: zroute run --reactor asyncio, app.run(reactor='asyncio'), in a test "
            "TestApp(app, reactor='asyncio'))"
        )
    if isinstance(error, RuntimeError) and "Task got bad yield: <Deferred" in text:
        return " (a task of asyncio can't await a Deferred: await zroute.as_awaitable(deferred))"
    return ""


_LOOPLESS = ("AsyncLibraryNotFoundError", "NoEventLoopError")  # what sniffio and anyio raise without a loop
