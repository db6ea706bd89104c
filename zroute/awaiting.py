"""Awaitables of both kinds: Twisted's Deferreds and asyncio's tasks.

With the asyncio reactor, coroutines run as asyncio tasks, so that they can use asyncio libraries. With any other
reactor, they run as Deferreds. zroute's own awaitables work in both.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from types import CoroutineType, FrameType
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.clock import Clock
from zroute.errors import RequestRefused, UsageError
from zroute.logs import text_of

__all__ = [
    "Ended",
    "Signal",
    "as_awaitable",
    "as_deferred",
    "awaitable_anywhere",
    "check_loop",
    "in_task",
    "is_awaitable",
    "loop_hint",
    "stepped",
    "was_cancelled",
    "way_to_the_reactor",
    "within",
]

T = TypeVar("T")

_GRACE = 1.0
"""The time in seconds within which a cancelled Deferred must end."""


def is_awaitable(result: object) -> bool:
    """Return True for a Deferred, a coroutine, a future or another awaitable."""
    return hasattr(result, "__await__")


def as_deferred(awaitable: Awaitable[T], *, asyncio_loop: bool) -> Deferred[T]:
    """Run an awaitable to its end; return a Deferred for its result.

    ``asyncio_loop`` is True if the reactor runs on an asyncio loop. A coroutine then becomes a task. Cancelling the
    Deferred cancels the awaitable.
    """
    if isinstance(awaitable, Deferred):
        return awaitable
    if asyncio_loop:
        return _OfTask(awaitable)
    if inspect.iscoroutine(awaitable):
        return Deferred.fromCoroutine(awaitable)
    return Deferred.fromCoroutine(_await(awaitable))


class Ended:
    """The result of an awaitable that has ended without waiting."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def stepped(awaitable: Awaitable[Any], context: Context | None = None, *, asyncio_loop: bool) -> Deferred[Any] | Ended:
    """Run an awaitable to its first wait; return a Deferred only if it waits.

    Most ``async`` functions that never wait thus need no Deferred, which takes ten times as long as such a call. A task
    of asyncio always begins later, so its result is a Deferred.

    Args:
        awaitable: See `as_deferred`, also for ``asyncio_loop``.
        context: The context for all steps, which nothing else may run in; None for a copy of the current one. With
            different contexts, a coroutine could not reset a context variable after a wait.

    Raises:
        BaseException: The error of a coroutine that has ended without waiting.
    """
    if asyncio_loop or type(awaitable) is not CoroutineType:
        if context is None:
            return as_deferred(awaitable, asyncio_loop=asyncio_loop)
        return context.run(as_deferred, awaitable, asyncio_loop=asyncio_loop)
    if context is None:
        context = copy_context()
    try:
        waits = context.run(awaitable.send, None)
    except StopIteration as end:
        return Ended(end.value)
    return Deferred.fromCoroutine(_resumed(awaitable, waits, context))


def _resumed(coroutine: Coroutine[Any, Any, T], waits: Any, context: Context) -> Generator[Any, Any, T]:
    """Run the rest of a coroutine, which is waiting for ``waits``.

    ``context`` is that of its first step.
    """
    while True:
        try:
            result = yield waits
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            go_on = partial(coroutine.throw, error)
        else:
            go_on = partial(coroutine.send, result)
        try:
            waits = context.run(go_on)
        except StopIteration as end:
            value: T = end.value
            return value


class _OfTask(Deferred[Any]):
    """The result of a task that runs ``awaitable``.

    It does the same as `Deferred.fromFuture` in a third of the time. After `cancel`, it fires only when the task has
    ended.
    """

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        super().__init__()
        self._awaitable = awaitable
        try:
            self._task = asyncio.get_running_loop().create_task(_guarded(awaitable))
        except RuntimeError:  # the loop does not run yet
            self._task = asyncio.ensure_future(_guarded(awaitable))
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel the task; the Deferred fires when it has ended."""
        if self.called:
            super().cancel()  # a Deferred that a callback has returned
        else:
            self._task.cancel()

    def _ended(self, task: asyncio.Future[Any]) -> None:
        # A coroutine or a step of an async generator that never began would cause a warning.
        if isinstance(self._awaitable, Coroutine):
            self._awaitable.close()
        try:
            result = task.result()
        except BaseException:
            result = Failure()  # type: ignore[no-untyped-call]
        self.callback(result)


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


def within(seconds: float, running: Deferred[T], clock: Clock, late: BaseException | None = None) -> Deferred[T]:
    """Return a Deferred for the result of ``running``, with a timeout.

    After ``seconds``, ``running`` is cancelled. The returned Deferred fails with ``late`` (default: Twisted's
    TimeoutError) if ``running`` ends because of the cancellation, or does not end within another second. A Deferred
    that can't be cancelled therefore does not block the caller. Cancelling the returned Deferred cancels ``running``.
    """
    if late is None:
        late = TimeoutError(seconds, "Deferred")

    def give_up(_: Deferred[T]) -> None:
        # The last timer is still active: when it fires, it also fires `waiting`, and `give_up` is not called any more.
        timers[-1].cancel()
        running.cancel()

    waiting: Deferred[T] = Deferred(give_up)

    def cancel() -> None:
        # Before the cancellation, which may call `ended` at once: the second timer tells it the reason.
        timers.append(clock.callLater(_GRACE, waiting.errback, late))
        running.cancel()

    def ended(result: Any) -> None:
        # Too late: the second after the timeout is over. Returning None keeps Twisted from logging a failure.
        if waiting.called:
            return
        if timers[-1].active():  # the timer of the timeout, or of the second after it
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
        if in_task() and not _on_deferred():
            return self._deferred.asFuture(asyncio.get_running_loop()).__await__()
        return self._deferred.__await__()


class Signal:
    """Wakes the coroutine that awaits it, under a Deferred or in an asyncio task.

    Only one coroutine at a time may await a signal. `fire` does nothing while no coroutine is waiting.
    """

    __slots__ = ("_wake",)

    def __init__(self) -> None:
        self._wake: Callable[[Any], object] | None = None

    def fire(self) -> None:
        """Wake the coroutine."""
        # Reset first, because the coroutine may await the signal again before `wake` returns.
        wake, self._wake = self._wake, None
        if wake is not None:
            wake(None)

    def __await__(self) -> Generator[Any, None, None]:
        try:
            loop = asyncio._get_running_loop()
            # The frame of the awaiting coroutine is the caller's.
            if loop is not None and asyncio.current_task(loop) and not _is_on_deferred(sys._getframe(1)):
                future = loop.create_future()
                self._wake = partial(_set, future)
                yield from future
            else:
                deferred: Deferred[None] = Deferred()
                self._wake = deferred.callback
                yield from deferred.__await__()
        finally:
            self._wake = None


def _set(future: asyncio.Future[None], _: None) -> None:
    if not future.done():  # the future may be cancelled before its coroutine is resumed
        future.set_result(None)


def as_awaitable(deferred: Deferred[T]) -> Awaitable[T]:
    """Return an awaitable for a Deferred that also works in asyncio tasks.

    A task of asyncio can't await a Deferred directly. For example, in an ``async`` handler under the asyncio reactor:

        (answer,) = await as_awaitable(req.request(b"EURUSD"))

    The result can also be awaited in coroutines that run as Deferreds.
    """
    return _Either(deferred)


def awaitable_anywhere(result: Any) -> Awaitable[Any]:
    """Return ``result`` as an awaitable that also works in asyncio tasks.

    A Deferred is converted; any other awaitable is returned unchanged.
    """
    return as_awaitable(result) if isinstance(result, Deferred) else result


def in_task() -> bool:
    """Return True if the caller runs in a task of an asyncio loop."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no running loop
        return False


def way_to_the_reactor(call: str) -> str:
    """Return advice for a caller outside the reactor's thread, for an error text.

    In a task of another loop, a blocking ``call`` of `App.from_thread` would be wrong.
    """
    if in_task():
        return (
            "this task and the app run on different event loops. Run both on one loop. For example, use "
            "httpx.ASGITransport instead of a test client that starts its own thread"
        )
    return f"use {call}"


def check_loop(reactor: Any) -> None:
    """Raise UsageError in an asyncio loop that blocks the reactor.

    An example is the loop of ``asyncio.run`` in a plain handler. The reactor waits until the handler returns, so
    neither a reply nor a timeout would ever arrive.
    """
    # `get_running_loop` would raise an error if no loop runs.
    loop = asyncio._get_running_loop()
    if loop is None or loop is getattr(reactor, "_asyncioEventloop", None) or not getattr(reactor, "running", False):
        return
    frame = sys._getframe(1)
    while frame.f_back and not frame.f_code.co_flags & _SUSPENDABLE:
        frame = frame.f_back
    if not _is_on_deferred(frame):
        raise UsageError(
            "this coroutine runs in its own asyncio loop, which blocks the app: make the handler, timer or hook "
            "`async def`, and await the call in this function, without asyncio.run()"
        )


def _on_deferred() -> bool:
    """Return True if a Deferred runs the awaiting coroutine.

    This can be the case inside an asyncio task: a Deferred that is fired in a task resumes its coroutine there.
    """
    # 0 is this function, 1 is the `__await__` that calls it, and 2 is the awaiting coroutine.
    return _is_on_deferred(sys._getframe(2))


def _is_on_deferred(frame: FrameType) -> bool:
    """Return True if a Deferred runs the coroutine of a frame."""
    while frame.f_back and frame.f_code.co_flags & _SUSPENDABLE:
        frame = frame.f_back
    # The caller of the outermost coroutine: `stepped` in this module, or Twisted, which resumes it.
    return frame.f_globals.get("__name__") in (Deferred.__module__, __name__)


_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR


def loop_hint(error: BaseException) -> str:
    """Return the remedy for an error of a user's function, or an empty text.

    The usual errors mix asyncio and Deferreds: asyncio code was awaited without its loop, or a Deferred was awaited in
    an asyncio task. The other errors are a wrong way to refuse a message, or to read a stream of replies.
    """
    if isinstance(error, BaseExceptionGroup):  # from a TaskGroup
        return next((hint for hint in map(loop_hint, error.exceptions) if hint), "")
    text = text_of(error)
    if type(error).__name__ in _LOOPLESS or (
        isinstance(error, RuntimeError) and ("no running event loop" in text or "await wasn't used with future" in text)
    ):
        return (
            " (to await asyncio code, run the app on asyncio: App(reactor='asyncio'), or zroute run --reactor asyncio)"
        )
    if isinstance(error, RequestRefused):
        return " (only handlers under @app.reply may raise RequestRefused: raise Reject instead)"
    if isinstance(error, TypeError) and "ReplyStream can't be used in 'await' expression" in text:
        return " (to read the replies, write: async for reply in app.request_stream(…))"
    if isinstance(error, RuntimeError) and "Task got bad yield: <Deferred" in text:
        return " (an asyncio task can't await a Deferred: await zroute.as_awaitable(deferred))"
    return ""


_LOOPLESS = ("AsyncLibraryNotFoundError", "NoEventLoopError")  # the errors of sniffio and anyio without a loop
