"""Run apps on the running asyncio loop of a program: ``app.running()``.

A `LoopReactor` implements Twisted's interfaces on the loop of the program. It is not installed as the global reactor,
and handles no signals. A program can therefore run apps on several loops, one after the other or in several threads.
All apps on one loop share one reactor, which closes with the last app.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.python.failure import Failure

from zroute.awaiting import was_cancelled
from zroute.errors import NotRunningError, UsageError
from zroute.planning.plan import Plan
from zroute.runtime.service import AppService

__all__ = ["LoopReactor", "run_on_loop"]

T = TypeVar("T")

_THREADS = 1.0
"""The maximum time in seconds to wait for threads of the reactor's pool. Threads can't be cancelled."""

_log = logging.getLogger("zroute")

_reactors: dict[asyncio.AbstractEventLoop, LoopReactor] = {}
"""The reactor of each loop on which an app runs."""


class LoopReactor(AsyncioSelectorReactor):
    """A running reactor on a loop that belongs to the program.

    Attributes:
        users: the number of apps that run on this reactor.
    """

    _registerAsIOThread = False  # noqa: N815  # Twisted has one such thread in a process; that is for the global reactor

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.users = 0
        self.startRunning(installSignalHandlers=False)

    def crash(self) -> None:
        """Do nothing: Twisted's method would stop the loop."""

    def callFromThread(self, callable: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]  # noqa: N802
        """See Twisted's ``IReactorFromThreads``; drop the call if the loop is closed."""
        with suppress(RuntimeError):  # a thread may end after the loop; the result of the call is then not needed
            super().callFromThread(callable, *args, **kwargs)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Release the resources that the reactor uses in the loop and the system.

        The reactor's threads have one second to end.
        """
        waker: Any = self.waker
        self.removeReader(waker)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        waker.connectionLost(None)
        self.waker = None  # a late call must not write to a new file with the same descriptor number
        for call in self.getDelayedCalls():
            call.cancel()
        timer: Any = self._timerHandle
        if timer is not None:
            timer.cancel()
        await self._end_threads()

    async def _end_threads(self) -> None:
        pool = self.threadpool
        if pool is None:
            return
        self.threadpool = None
        loop, ended = self._asyncioEventloop, asyncio.Event()

        def end() -> None:
            pool.stop()  # this call joins the threads, so it would block the loop
            with suppress(RuntimeError):  # the loop may already be closed
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=end, name="zroute-threads", daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), _THREADS)
        except TimeoutError:
            _log.error(
                "threads are still running after the drain timeout: the process can't end before these threads end"
            )


@asynccontextmanager
async def run_on_loop(plan: Plan, drain_timeout: float) -> AsyncIterator[AppService]:
    """Run an app during an ``async with`` block; see `zroute.app.App.running`."""
    loop = _running_loop()
    reactor = _reactors.get(loop)
    if reactor is None:
        reactor = _reactors[loop] = LoopReactor(loop)
    reactor.users += 1
    try:
        service = AppService(plan, reactor, drain_timeout=drain_timeout)
        service.owns_pool = True
        service.logs_failed_start = False  # the error is raised instead
        try:
            await _start(service, loop)
            yield service
        finally:
            await _stop(service, loop)
    finally:
        reactor.users -= 1
        if not reactor.users:
            del _reactors[loop]
            await reactor.close()


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "running() needs a running asyncio loop: use running() in a coroutine under asyncio.run(). To run the app "
            "without such a loop, use app.run(), or app.service(reactor) on a reactor"
        ) from None


async def _start(service: AppService, loop: asyncio.AbstractEventLoop) -> None:
    def explain(failure: Failure) -> Failure:
        if not was_cancelled(failure.value):
            return failure
        code = service.exit_code
        how = "was stopped" if code is None else f"was stopped with exit code {code}"
        raise NotRunningError(f"{service.plan.name!r} {how} before the app had started")

    service.startService()
    await service.started.addErrback(explain).asFuture(loop)


async def _stop(service: AppService, loop: asyncio.AbstractEventLoop) -> None:
    """Stop the app, and wait for its end even if the task is cancelled.

    The sockets of the app must be closed before the loop.
    """
    await _to_the_end(service.stopService().asFuture(loop))


async def _to_the_end(ending: asyncio.Future[T]) -> T:
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            # `wait` does not cancel the future if this task is cancelled.
            await asyncio.wait((ending,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        ending.exception()  # mark the error as retrieved, so that asyncio does not log it
        raise cancelled
    return ending.result()
