"""Calls between the reactor's thread and other threads, in one run of an app."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Lock, get_ident
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from zroute.awaiting import is_awaitable, way_to_the_reactor
from zroute.errors import ForkedContextError, NotRunningError, UsageError, WrongThreadError
from zroute.functions import name_of
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.in_flight import error_of

__all__ = ["Threads"]

_log = logging.getLogger("zroute")

_FORKED = (
    "{}: this process is a fork of the process that runs the app. ZeroMQ sockets do not work in a fork: start "
    "processes before the app, or with multiprocessing's 'spawn', and create an app in each process"
)


class Threads:
    """The thread and the process of a run, and its calls to and from other threads.

    The object belongs to the thread that creates the object.

    Args:
        name: The name of the app, for errors.
        reactor: The reactor of the run.
        start: Runs an awaitable, and returns a Deferred for the result.
    """

    def __init__(self, name: str, reactor: Any, start: Callable[[Awaitable[Any]], Deferred[Any]]) -> None:
        self._name = name
        self._reactor = reactor
        self._start = start
        self._thread, self._process = get_ident(), os.getpid()
        self._calls: set[Future[Any]] = set()
        self._closed = False

    @property
    def is_here(self) -> bool:
        """True in the reactor's thread."""
        return get_ident() == self._thread

    def close(self) -> None:
        """End all calls of `call_from_thread` with NotRunningError."""
        self._closed = True
        for call in tuple(self._calls):
            if not call.done():
                call.set_exception(self._stopped())

    def check_process(self, what: str) -> None:
        """Raise ForkedContextError in a child of the process that runs the app."""
        if os.getpid() != self._process:
            raise ForkedContextError(_FORKED.format(what))

    def check_thread(self, what: str) -> None:
        """Raise WrongThreadError outside the reactor's thread; see also `check_process`."""
        self.check_process(what)
        if not self.is_here:
            advice = way_to_the_reactor("app.from_thread")
            raise WrongThreadError(f"{what} was called outside the reactor's thread: {advice}")

    def call_from_thread(self, call: Callable[[], Any]) -> Any:
        """Call ``call`` in the reactor's thread, and return its result to this thread.

        Raises:
            WrongThreadError: The caller is on the reactor's thread.
            ForkedContextError: The caller is in a child of the process that runs the app.
            NotRunningError: The app has stopped, or stops before the call ends.
            BaseException: Any error of ``call``.
        """
        self.check_process("from_thread was called")
        if self.is_here:
            raise WrongThreadError(
                "from_thread was called in the reactor's own thread, so this thread would wait for itself: call "
                f"{name_of(call)} directly"
            )
        future: Future[Any] = Future()
        self._calls.add(future)  # before the check below, so that a concurrent stop finds this call
        try:
            if self._closed:
                raise self._stopped()
            self._reactor.callFromThread(copy_context().run, self._call, future, call)
            return future.result()
        finally:
            self._calls.discard(future)

    def _call(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Call ``call`` in the reactor's thread, for a thread that waits for ``future``."""
        if future.done():
            return  # the app has stopped; the waiting thread already got the error

        def begin() -> Any:
            result = call()
            return self._start(result) if is_awaitable(result) else result

        def end(result: Any) -> None:
            if future.done():
                return  # the app stopped during the call; the waiting thread already got the error
            if isinstance(result, Failure):
                future.set_exception(error_of(result))
            else:
                future.set_result(result)

        maybeDeferred(begin).addBoth(end)

    def make_room(self, route: CompiledRoute, *, grow: bool) -> None:
        """Let the thread pool of the reactor run all calls of a handler at the same time.

        Other calls in threads, such as the look-up of host names, keep their threads.

        Args:
            route: A handler that runs in threads.
            grow: False if the pool belongs to the program. If the pool is too small, a warning is then logged.
        """
        pool, most = self._reactor.getThreadPool(), route.options.max_in_flight
        if grow:
            pool.adjustPoolsize(maxthreads=pool.max + most)
        elif most > pool.max:
            _log.warning(
                "%s at %s: max_in_flight=%d exceeds the %d threads of the reactor's thread pool: call "
                "reactor.suggestThreadPoolSize(%d) before the start, or lower max_in_flight",
                route.name,
                route.route.where,
                most,
                pool.max,
                most,
            )

    def call_in_thread(self, call: Callable[[], Any]) -> Deferred[Any]:
        """Return a Deferred for the result of ``call`` in a thread of the pool.

        If the Deferred is cancelled before a thread is free, ``call`` is not called. Later, cancelling has no effect,
        because a thread can't be interrupted.
        """
        reactor, waiting = self._reactor, _InThread()

        def work() -> Any:
            return _finished(call()) if waiting.claim() else None

        def deliver(well: bool, result: Any) -> None:
            reactor.callFromThread(waiting.callback if well else waiting.errback, result)

        reactor.getThreadPool().callInThreadWithCallback(deliver, work)
        return waiting

    def _stopped(self) -> NotRunningError:
        return NotRunningError(
            f"{self._name!r} has stopped, so from_thread can no longer call functions in its reactor"
        )


class _InThread(Deferred[Any]):
    """The result of a call in a thread, which either begins or is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self._claimed = Lock()

    def claim(self) -> bool:
        """Return True for the first caller.

        This is the thread that makes the call, or the reactor's thread, which cancels it.
        """
        return self._claimed.acquire(blocking=False)

    def cancel(self) -> None:
        """Cancel the call if it has not begun."""
        if self.called or self.claim():
            super().cancel()


def _finished(result: Any) -> Any:
    if is_awaitable(result):
        raise UsageError(
            f"a function returned a {type(result).__name__} in a thread, but zroute can't await results in threads. In "
            "the thread, call app.from_thread(function, …), which awaits the result on the reactor's thread"
        )
    return result
