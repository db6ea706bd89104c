"""Run the apps of a test on the asyncio loop of the test, in virtual time.

The code of the apps runs in a context in which `_READS` is set. While a test uses the loop, each new timer of the loop
depends on this variable. Timers of the apps' code, for example of ``asyncio.sleep``, run in virtual time, and all other
timers in real time. One loop therefore serves both, and the apps can use objects that belong to the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any
from weakref import WeakSet

from twisted.internet.defer import Deferred

from zroute.awaiting import as_awaitable
from zroute.testing.reactor import PATIENCE, TURNS, VirtualReactor, restless, thread_hangs

__all__ = ["LoopDriver"]

_READS: ContextVar[VirtualLoopReactor] = ContextVar("zroute_test_time")
"""The reactor whose virtual time applies to the running code."""

_QUIET = 5
"""The number of turns of the loop without work after which the apps count as idle.

Each callback of a chain takes one turn.
"""

_POLL = 0.001
"""The real time in seconds between two checks of something outside the loop."""


class VirtualLoopReactor(VirtualReactor):
    """A reactor with virtual time that makes its calls in turns of a running loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(on_asyncio=False)
        self.loop = loop
        self.context: Context = copy_context()
        self.context.run(_READS.set, self)
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self.turns = 0
        self.raised: BaseException | None = None
        self._is_waking = self._is_closed = False

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:  # noqa: N802
        """Make a call after ``delay`` in virtual time; see Twisted's ``IReactorTime``."""
        call = super().callLater(delay, callable, *args, **kw)
        if call.getTime() <= self.seconds():
            self.wake()
        return call

    def callFromThread(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:  # noqa: N802
        """Make a call in the next turn; see Twisted's ``IReactorFromThreads``."""
        super().callFromThread(callable, *args, **kw)
        self.loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Schedule a turn of the loop in which the due calls are made."""
        if not self._is_waking and not self._is_closed:
            self._is_waking = True
            self.loop.call_soon(self._wake_up, context=self.context)

    def _wake_up(self) -> None:
        self._is_waking = False
        self.turns += 1
        try:
            self._turn()
        except BaseException as error:
            self.raised = error
        # One turn of the loop for each turn of the reactor, so that the tasks of the test run in between.
        if self.is_due:
            self.wake()

    @property
    def is_due(self) -> bool:
        """True if a call is due in this turn."""
        return self._is_waking or self._due() or not self._from_threads.empty()

    @property
    def is_busy(self) -> bool:
        """True if a thread is running."""
        return bool(self._pool.busy)

    @property
    def has_running_task(self) -> bool:
        """True if a task of the apps is not waiting for a future."""
        waited_for = [getattr(task, "_fut_waiter", None) for task in self.tasks if not task.done()]
        return any(future is None or future.done() for future in waited_for)

    def next_time(self) -> float | None:
        """Return the time of the next scheduled call, or None."""
        return self._next()

    def close(self) -> None:
        """Stop the threads, and make no more calls.

        Otherwise an app that never becomes idle would keep the loop busy.
        """
        self._is_closed = True
        super().close()

    def move_to(self, time: float) -> None:
        """Set virtual time."""
        self.rightNow = max(time, self.rightNow)
        self.wake()


class _Timer(asyncio.TimerHandle):
    """A timer of asyncio in virtual time."""

    __slots__ = ("_call",)

    def __init__(
        self, reactor: VirtualLoopReactor, when: float, callback: Any, args: Any, context: Context | None
    ) -> None:
        super().__init__(when, callback, args, reactor.loop, context)
        self._call = reactor.callLater(max(when - reactor.seconds(), 0.0), self._fire)

    def _fire(self) -> None:
        if not self.cancelled():
            self._run()

    def cancel(self) -> None:
        asyncio.Handle.cancel(self)  # TimerHandle.cancel would tell the loop, which does not know this timer
        if self._call.active():
            self._call.cancel()


_PATCHED = ("time", "call_at", "call_later", "create_task")
_users: dict[asyncio.AbstractEventLoop, int] = {}
"""The loops whose timers are replaced, and the number of tests that use each loop."""


def _replace_timers(loop: Any) -> None:
    """Replace the timers of ``loop`` for the code of apps, and record apps' tasks."""
    _users[loop] = _users.get(loop, 0) + 1
    # Replaced already for another test environment on this loop.
    if _users[loop] > 1:
        return
    time_, call_at, call_later, create_task = (getattr(loop, name) for name in _PATCHED)

    def virtual_time() -> float:
        reactor = _READS.get(None)
        return time_() if reactor is None else reactor.seconds()

    def virtual_call_at(when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        reactor = _READS.get(None)
        if reactor is None:
            return call_at(when, callback, *args, context=context)
        return _Timer(reactor, when, callback, args, context)

    def virtual_call_later(delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        reactor = _READS.get(None)
        if reactor is None:
            return call_later(delay, callback, *args, context=context)
        return _Timer(reactor, reactor.seconds() + delay, callback, args, context)

    def noting_create_task(coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = create_task(coroutine, **options)
        reactor = _READS.get(None)
        if reactor is not None:
            reactor.tasks.add(task)
        return task

    loop.time, loop.call_at, loop.call_later = virtual_time, virtual_call_at, virtual_call_later
    loop.create_task = noting_create_task


def _restore_timers(loop: Any) -> None:
    _users[loop] -= 1
    if not _users[loop]:
        del _users[loop]
        for name in _PATCHED:
            delattr(loop, name)


class LoopDriver:
    """See `zroute.testing.awaited.Driver`.

    The methods can be awaited in an asyncio task or in a Twisted coroutine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reactor = VirtualLoopReactor(loop)
        self._loop = loop
        _replace_timers(loop)

    async def do(self, call: Callable[[], object]) -> None:
        """Make a call in the context of the apps, then `settle`.

        Raises the error of the call.
        """
        made: Deferred[None] = Deferred()

        def make() -> None:
            try:
                call()
            except BaseException as error:
                made.errback(error)
            else:
                made.callback(None)

        self._loop.call_soon(make, context=self.reactor.context)
        await as_awaitable(made)
        await self.settle()

    async def settle(self) -> None:
        """Return when the apps have nothing left to do.

        Raises RestlessError if the apps never become idle.
        """
        reactor, quiet = self.reactor, 0
        first, deadline = reactor.turns, time.monotonic() + PATIENCE
        while quiet < _QUIET:
            if reactor.turns - first > TURNS or time.monotonic() > deadline:
                raise thread_hangs() if reactor.is_busy else restless()
            is_active = reactor.is_due or reactor.has_running_task
            await self._turn(_POLL if reactor.is_busy and not is_active else 0)
            quiet = 0 if is_active or reactor.is_busy else quiet + 1
        raised, reactor.raised = reactor.raised, None
        if raised is not None:
            raise raised

    async def advance_to(self, time: float) -> None:
        """Advance virtual time to ``time`` in seconds, from one due call to the next."""
        await self.settle()
        while (at := self.reactor.next_time()) is not None and at <= time:
            self.reactor.move_to(at)
            await self.settle()
        self.reactor.move_to(time)
        await self.settle()

    async def skip(self) -> bool:
        """Advance to the next scheduled call; return False if no call is scheduled."""
        at = self.reactor.next_time()
        if at is not None:
            await self.advance_to(at)
        return at is not None

    async def wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait in real time for ``done()``; return False after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                return False
            await self._turn(_POLL)
        return True

    def close(self) -> None:
        """Stop the threads, and restore the original timers of the loop."""
        _restore_timers(self._loop)
        self.reactor.close()

    async def _turn(self, seconds: float) -> None:
        """Wait for the next turn of the loop, or for ``seconds`` of real time."""
        turn: Deferred[None] = Deferred()
        if seconds:
            self._loop.call_later(seconds, turn.callback, None)
        else:
            self._loop.call_soon(turn.callback, None)
        await as_awaitable(turn)
