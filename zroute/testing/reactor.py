"""A reactor with virtual time for tests: it runs until nothing is left to do, and then stands still.

Threads are real and are waited for. With ``asyncio`` an asyncio loop drives it, on the same virtual time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.task import Clock
from twisted.python.threadpool import ThreadPool

__all__ = ["RestlessError", "VirtualReactor"]

_TURNS = 1_000
"""Turns after which something is said to go on without end; in a turn a generator publishes up to 256 values."""

_PATIENCE = 30.0
"""Seconds of real time that a thread may take."""


class RestlessError(AssertionError):
    """The app did not come to rest: a thread hangs, or something calls itself without end."""


class VirtualReactor(Clock):
    """What a run needs of a reactor; `settle` and `advance` make it turn."""

    def __init__(self, *, on_asyncio: bool) -> None:
        super().__init__()
        self._from_threads: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._pool = _Pool(self)
        self._loop = _Loop(self.seconds) if on_asyncio else None

    # -- what a run calls -----------------------------------------------------------------------------

    def callFromThread(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:  # noqa: N802
        """Call it in the next turn (`twisted.internet.interfaces.IReactorFromThreads`)."""
        self._from_threads.put(partial(callable, *args, **kw))

    def getThreadPool(self) -> _Pool:  # noqa: N802  # Twisted's name
        """Threads, started when the first is needed."""
        return self._pool

    # -- what makes it turn ---------------------------------------------------------------------------

    def do(self, call: Callable[[], object]) -> None:
        """Call on this reactor, inside its loop if it has one, then `settle`."""
        self._inside(call)
        self.settle()

    def settle(self) -> None:
        """Run what is due now, until nothing is. Raises RestlessError."""
        for _ in range(_TURNS):
            if self._due() or not self._from_threads.empty():
                self._inside(self._turn)
            elif self._pool.busy:
                self._await_thread()
            else:
                return
        raise RestlessError(
            f"the app still has something to do after {_TURNS} turns: a generator that publishes without end needs "
            "every=, and handlers that publish to each other need an end"
        )

    def advance_to(self, time: float) -> None:
        """Let virtual time pass, from one due call to the next."""
        self.settle()
        while (at := self._next()) is not None and at <= time:
            self._pass_to(at)
        self._pass_to(time)

    def _pass_to(self, time: float) -> None:
        self.rightNow = max(time, self.rightNow)
        self._inside(self._turn)
        self.settle()

    def skip(self) -> bool:
        """Let time pass until the next call is due; whether there was one."""
        at = self._next()
        if at is not None:
            self.advance_to(at)
        return at is not None

    def close(self) -> None:
        """End threads and loop."""
        self._pool.stop()
        if self._loop is not None:
            self._loop.close()

    def _inside(self, call: Callable[[], object]) -> None:
        if self._loop is None:
            call()
        else:
            self._loop.run(call)

    def _turn(self) -> None:
        """Make the calls that are due, but not those that they add: `Clock.advance` would, without end."""
        due: list[Any] = sorted(self.calls, key=DelayedCall.getTime)
        for call in due:
            if call.active() and call.getTime() <= self.seconds():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        for _ in range(self._from_threads.qsize()):
            self._from_threads.get()()

    def _due(self) -> bool:
        return any(call.getTime() <= self.seconds() for call in self.getDelayedCalls())

    def _next(self) -> float | None:
        times = [call.getTime() for call in self.getDelayedCalls()]
        if self._loop is not None and self._loop.next is not None:
            times.append(self._loop.next)
        return min(times, default=None)

    def _await_thread(self) -> None:
        try:
            call = self._from_threads.get(timeout=_PATIENCE)
        except Empty:
            raise RestlessError(f"a handler in a thread has not ended within {_PATIENCE:g} s") from None
        self._inside(call)


class _Pool:
    """Twisted's thread pool, with the number of calls that have not been told yet."""

    def __init__(self, reactor: VirtualReactor) -> None:
        self.busy = 0
        self._reactor = reactor
        self._threads = ThreadPool(0, 10, "zroute-test")

    def callInThreadWithCallback(  # noqa: N802  # Twisted's name
        self, on_result: Callable[[bool, Any], object], function: Callable[..., Any], *args: Any, **kw: Any
    ) -> None:
        """See `twisted.python.threadpool.ThreadPool`."""
        if not self._threads.started:
            self._threads.start()
        self.busy += 1

        def told(well: bool, result: Any) -> None:
            on_result(well, result)
            self._reactor.callFromThread(self._ended)

        self._threads.callInThreadWithCallback(told, function, *args, **kw)

    def stop(self) -> None:
        """Wait for the threads to end."""
        if self._threads.started:
            self._threads.stop()

    def _ended(self) -> None:
        self.busy -= 1


class _Selector(selectors.DefaultSelector):
    """Never waits: how long the loop would have waited is when its next timer is due."""

    def __init__(self) -> None:
        super().__init__()
        self.would_wait: float | None = None
        self.idle: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        self.would_wait = timeout
        if not ready and timeout != 0:
            self.idle()
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """An asyncio loop on the reactor's time, which runs until it would wait."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._selecting = _Selector()
        super().__init__(self._selecting)
        self._selecting.idle = self.stop

    def time(self) -> float:
        """Virtual time (`asyncio.AbstractEventLoop.time`)."""
        return self._seconds()

    def run(self, call: Callable[[], object]) -> None:
        """Call inside the running loop, then run until it would wait; what ``call`` raises is raised."""
        raised: list[BaseException] = []

        def guarded() -> None:
            try:
                call()
            except BaseException as error:
                raised.append(error)

        self.call_soon(guarded)
        self.run_forever()
        if raised:
            raise raised[0]

    @property
    def next(self) -> float | None:
        """When the next timer is due."""
        would_wait = self._selecting.would_wait
        return None if would_wait is None else self.time() + would_wait
