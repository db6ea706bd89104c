"""A reactor with virtual time for tests.

The reactor runs all calls that are due, and stops when no more calls are due. Threads are real, and the reactor waits
for them. With ``on_asyncio``, an asyncio loop runs the calls in the same virtual time.
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

__all__ = ["PATIENCE", "TURNS", "RestlessError", "VirtualReactor", "restless", "thread_hangs"]

TURNS = 1_000
"""The number of turns after which an app is assumed to loop forever. A generator publishes up to 256 values per turn.
"""

PATIENCE = 30.0
"""The maximum real time of a thread in seconds."""


class RestlessError(AssertionError):
    """The app never became idle: a thread hangs, or a call repeats forever."""


def restless() -> RestlessError:
    """Return the error for an app that still has something to do after `TURNS` turns."""
    return RestlessError(
        f"the app still has something to do after {TURNS} turns: add every= to an endless generator, or break the "
        "loop of handlers that publish to each other"
    )


def thread_hangs() -> RestlessError:
    """Return the error for a thread that takes longer than `PATIENCE`."""
    return RestlessError(f"a handler in a thread has not ended within {PATIENCE:g} s")


class VirtualReactor(Clock):
    """The parts of a reactor that a run needs, driven by `settle` and `advance_to`."""

    def __init__(self, *, on_asyncio: bool) -> None:
        super().__init__()
        self._from_threads: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._pool = _Pool(self)
        self._loop = _Loop(self.seconds) if on_asyncio else None
        self.running = False
        """True while the reactor makes a call."""
        self._asyncioEventloop: asyncio.AbstractEventLoop | None = None  # the loop that makes the call; see check_loop

    # -- methods for the run --------------------------------------------------------------------------

    def callFromThread(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:  # noqa: N802
        """Make a call in the next turn; see Twisted's ``IReactorFromThreads``."""
        self._from_threads.put(partial(callable, *args, **kw))

    def getThreadPool(self) -> _Pool:  # noqa: N802  # Twisted's name
        """Return the thread pool; its threads start at the first call."""
        return self._pool

    # -- methods for the test -------------------------------------------------------------------------

    def do(self, call: Callable[[], object]) -> None:
        """Make a call on this reactor, inside its loop if it has a loop, then `settle`."""
        self._inside(call)
        self.settle()

    def settle(self) -> None:
        """Run calls until no more calls are due.

        Raises RestlessError if the calls do not end.
        """
        for _ in range(TURNS):
            if self._due() or not self._from_threads.empty():
                self._inside(self._turn)
            elif self._pool.busy:  # only if there is no other call: a thread takes real time
                self._await_thread()
            else:
                return
        raise restless()

    def advance_to(self, time: float) -> None:
        """Advance virtual time to ``time`` in seconds, from one due call to the next."""
        self.settle()
        while (at := self._next()) is not None and at <= time:
            self._pass_to(at)
        self._pass_to(time)

    def _pass_to(self, time: float) -> None:
        self.rightNow = max(time, self.rightNow)
        self._inside(self._turn)
        self.settle()

    def skip(self) -> bool:
        """Advance to the next scheduled call; return False if no call is scheduled."""
        at = self._next()
        if at is not None:
            self.advance_to(at)
        return at is not None

    def close(self) -> None:
        """Stop the threads and close the loop."""
        self._pool.stop()
        if self._loop is not None:
            self._loop.close()

    def _inside(self, call: Callable[[], object]) -> None:
        if self._loop is not None:
            self._loop.run(call)
            return
        # Restored at the end, because a call may settle the reactor again from inside.
        before = self.running, self._asyncioEventloop
        self.running, self._asyncioEventloop = True, asyncio._get_running_loop()
        try:
            call()
        finally:
            self.running, self._asyncioEventloop = before

    def _turn(self) -> None:
        """Make the calls that are due now.

        Calls that these calls schedule wait for the next turn. `Clock.advance` would make those calls too, and could
        run forever.
        """
        due: list[Any] = sorted(self.calls, key=DelayedCall.getTime)
        for call in due:
            if call.active() and call.getTime() <= self.seconds():
                # As in `Clock.advance`: a call that is under way can't be cancelled or made again.
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        # Only the calls that are waiting now: those that they add wait for the next turn.
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
            call = self._from_threads.get(timeout=PATIENCE)
        except Empty:
            raise thread_hangs() from None
        self._inside(call)


class _Pool:
    """A Twisted thread pool that counts the calls with undelivered results."""

    def __init__(self, reactor: VirtualReactor) -> None:
        self.busy = 0
        self._reactor = reactor
        self._threads = ThreadPool(0, 10, "zroute-test")
        self.adjustPoolsize = self._threads.adjustPoolsize

    def callInThreadWithCallback(  # noqa: N802  # Twisted's name
        self, on_result: Callable[[bool, Any], object], function: Callable[..., Any], *args: Any, **kw: Any
    ) -> None:
        """See `twisted.python.threadpool.ThreadPool`."""
        if not self._threads.started:
            self._threads.start()
        self.busy += 1

        def deliver(well: bool, result: Any) -> None:
            on_result(well, result)
            # After the call with the result, so that the pool is busy until the result is delivered.
            self._reactor.callFromThread(self._ended)

        self._threads.callInThreadWithCallback(deliver, function, *args, **kw)

    @property
    def max(self) -> int:
        """The maximum number of threads; see Twisted's ``ThreadPool``."""
        return self._threads.max

    def stop(self) -> None:
        """Wait until all threads have ended."""
        if self._threads.started:
            self._threads.stop()

    def _ended(self) -> None:
        self.busy -= 1


class _Selector(selectors.DefaultSelector):
    """A selector that never waits.

    The selector records the requested waiting time, which shows when the next timer of the loop is due.
    """

    def __init__(self) -> None:
        super().__init__()
        self.would_wait: float | None = None
        self.idle: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        self.would_wait = timeout
        # With a timeout of 0, callbacks are ready to run, so the loop is not idle.
        if not ready and timeout != 0:
            self.idle()
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """An asyncio loop that uses the reactor's time, and runs until it would wait."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._selecting = _Selector()
        super().__init__(self._selecting)
        self._selecting.idle = self.stop

    def time(self) -> float:
        """Return the virtual time in seconds; see `asyncio.AbstractEventLoop.time`."""
        return self._seconds()

    def run(self, call: Callable[[], object]) -> None:
        """Make a call inside the running loop, then run until the loop would wait.

        If the call raises an error, this method raises the error again. Another loop may already be running, but none
        of the tasks of that loop. pytest-twisted runs tests in this state on asyncio's reactor.
        """
        raised: list[BaseException] = []

        def guarded() -> None:
            try:
                call()
            except BaseException as error:
                raised.append(error)

        self.call_soon(guarded)
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)  # otherwise run_forever() would raise an error
        try:
            self.run_forever()
        finally:
            asyncio._set_running_loop(outer)
        if raised:
            raise raised[0]

    @property
    def next(self) -> float | None:
        """The time at which the next timer is due, or None."""
        would_wait = self._selecting.would_wait
        return None if would_wait is None else self.time() + would_wait
