"""Awaitables of both kinds: Twisted's Deferreds and asyncio's tasks.

With the asyncio reactor, coroutines run as asyncio tasks, so that asyncio libraries work in them. With any other
reactor they run as Deferreds. zroute's own awaitables work in both.
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
"""Seconds that a cancelled Deferred has to end."""


def is_awaitable(result: object) -> bool:
    """Return True for a Deferred, a coroutine, a future or another awaitable."""
    return hasattr(result, "__await__")


def as_deferred(awaitable: Awaitable[T], *, asyncio_loop: bool) -> Deferred[T]:
    """Run an awaitable to its end; return a Deferred of its result.

    ``asyncio_loop`` is True if the reactor runs on an asyncio loop. A coroutine then becomes a task. Cancelling the
    Deferred cancels the awaitable.
    """
    if isinstance(awaitable, Deferred):
        return awaitable
    if asyncio_loop:
        task = asyncio.ensure_future(_guarded(awaitable))
        if inspect.iscoroutine(awaitable):  # a task cancelled before its start would cause a "never awaited" warning
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
    except (SystemExit, KeyboardInterrupt):  # a task raises these two in the loop, which would end it
        return Failure()  # type: ignore[no-untyped-call, return-value]  # the Deferred fails with it


def was_cancelled(error: BaseException | None) -> bool:
    """Return True for the error of a cancelled Deferred or task."""
    return isinstance(error, CancelledError | asyncio.CancelledError)


def within(seconds: float, running: Deferred[T], clock: Clock) -> Deferred[T]:
    """Return a Deferred of the same result, with a timeout.

    Cancels ``running`` after ``seconds``. The result fails with TimeoutError if ``running`` ends because of that, or
    does not end within another second. So a Deferred that can't be cancelled blocks no caller.
    """
    waiting: Deferred[T] = Deferred()
    late = TimeoutError(seconds, "Deferred")

    def cancel() -> None:
        timers.append(clock.callLater(_GRACE, waiting.errback, late))
        running.cancel()

    def ended(result: Any) -> None:
        if waiting.called:
            return
        timers[-1].cancel()  # the timeout, or the second after it
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
    """Return an awaitable for a Deferred that also works in asyncio tasks.

    A task of asyncio can't await a Deferred directly. For example, in an ``async`` handler under the asyncio reactor:

        (answer,) = await as_awaitable(req.request(b"EURUSD"))

    The result can be awaited in Deferred coroutines as well.
    """
    return _Either(deferred)


def _in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no running loop
        return False


def _on_deferred() -> bool:
    """Return True if a Deferred runs the awaiting coroutine.

    A Deferred may be fired inside an asyncio task, and resumes its coroutine there.
    """
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_flags & _SUSPENDABLE:
        frame = frame.f_back
    return frame.f_globals.get("__name__") == Deferred.__module__


_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR


def loop_hint(error: BaseException) -> str:
    """Return the remedy for an error of mixing asyncio and Deferreds; else "".

    The two errors: asyncio was awaited without its loop, or a Deferred was awaited in an asyncio task.
    """
    if isinstance(error, BaseExceptionGroup):  # from a TaskGroup
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


_LOOPLESS = ("AsyncLibraryNotFoundError", "NoEventLoopError")  # the errors of sniffio and anyio without a loop
