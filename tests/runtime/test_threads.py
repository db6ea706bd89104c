"""Calls in the thread pool: begun, or cancelled before they begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from tests.requests.wired import result
from zroute.runtime.threads import Threads


class OneThread:
    """A reactor with a pool whose only thread takes the calls when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[..., None], Callable[[], Any]]] = []

    def getThreadPool(self) -> OneThread:
        """Return the pool; see Twisted's ``IReactorThreads``."""
        return self

    def callInThreadWithCallback(self, deliver: Callable[..., None], call: Callable[[], Any]) -> None:
        """Add a call; see Twisted's ``ThreadPool``."""
        self.waiting.append((deliver, call))

    def callFromThread(self, call: Callable[..., Any], *given: Any) -> None:
        """Make a call at once."""
        call(*given)

    def run(self, during: Callable[[], object] = lambda: None) -> None:
        """Make the oldest call; ``during`` is called before its result is delivered."""
        deliver, call = self.waiting.pop(0)
        value = call()
        during()
        deliver(True, value)


def test_a_call_that_was_cancelled_in_time_is_not_made() -> None:
    """Its Deferred fails at once, and the thread that comes to it does nothing."""
    reactor, calls = OneThread(), list[str]()
    threads = Threads("app", reactor, lambda awaitable: awaitable)  # type: ignore[arg-type, return-value]
    cancelled, kept = (threads.call_in_thread(partial(calls.append, name)) for name in "ab")
    failures: list[Failure] = []
    cancelled.addErrback(failures.append)
    cancelled.cancel()
    assert [failure.type for failure in failures] == [CancelledError]
    reactor.run()
    reactor.run()
    assert calls == ["b"]
    assert result(kept) is None


def test_a_call_that_runs_can_not_be_cancelled() -> None:
    """A thread can't be interrupted: the Deferred waits for the result, so the call still takes its room."""
    reactor = OneThread()
    threads = Threads("app", reactor, lambda awaitable: awaitable)  # type: ignore[arg-type, return-value]
    running = threads.call_in_thread(lambda: 5)
    reactor.run(during=running.cancel)
    assert result(running) == 5
    running.cancel()
