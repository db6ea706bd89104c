"""Awaiting: Deferreds, coroutines and asyncio's tasks, under both kinds of reactor."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Generator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.support import Child
from zroute.awaiting import as_awaitable, as_deferred, is_awaitable


class Awaitable:
    """An awaitable of the user's own."""

    def __await__(self) -> Generator[Any, Any, str]:
        return "mine"
        yield


def result_of(deferred: Deferred[Any]) -> list[Any]:
    """The result, if there is one."""
    results: list[Any] = []
    deferred.addCallback(results.append)
    return results


async def text() -> str:
    """A coroutine of the user's."""
    return "text"


def test_what_can_be_awaited_is_known() -> None:
    """Deferreds, coroutines and awaitables of one's own; nothing else."""
    coroutine = text()
    assert all(map(is_awaitable, [Deferred(), coroutine, Awaitable()]))
    assert not any(map(is_awaitable, [None, 1, "x", text, iter([])]))
    coroutine.close()


def test_a_deferred_is_itself() -> None:
    """A Deferred is not wrapped."""
    deferred: Deferred[None] = Deferred()
    assert as_deferred(deferred, asyncio_loop=False) is deferred


@pytest.mark.parametrize(("make", "expected"), [(text, "text"), (Awaitable, "mine")])
def test_without_a_loop_awaitables_run_on_deferreds(make: Any, expected: str) -> None:
    """Coroutines and awaitables of one's own run under every reactor."""
    assert result_of(as_deferred(make(), asyncio_loop=False)) == [expected]


def test_with_a_loop_coroutines_are_tasks() -> None:
    """Under an asyncio loop asyncio's own things work in a handler."""

    async def handler() -> str:
        await asyncio.sleep(0)
        return "slept"

    async def main() -> str:
        return await as_deferred(handler(), asyncio_loop=True).asFuture(asyncio.get_running_loop())

    assert asyncio.run(main()) == "slept"


def test_cancelling_cancels_what_is_awaited() -> None:
    """A stop that gives up reaches the innermost await."""
    inner: Deferred[None] = Deferred()
    failures: list[Any] = []

    async def handler() -> None:
        await inner

    running = as_deferred(handler(), asyncio_loop=False)
    running.addErrback(lambda failure: failures.append(failure.type))
    running.cancel()
    assert failures == [CancelledError]
    assert inner.called


def test_a_deferred_can_be_awaited_in_both_worlds() -> None:
    """as_awaitable(d) works in a Deferred coroutine and in an asyncio task."""
    deferred: Deferred[str] = Deferred()

    async def use(awaitable: Any) -> str:
        return await awaitable

    results = result_of(Deferred.fromCoroutine(use(as_awaitable(deferred))))
    assert results == []
    deferred.callback("x")
    assert results == ["x"]

    async def main() -> str:
        later: Deferred[str] = Deferred()
        asyncio.get_running_loop().call_soon(later.callback, "y")
        return await use(as_awaitable(later))

    assert asyncio.run(main()) == "y"


def test_under_the_asyncio_reactor_handlers_are_tasks() -> None:
    """With the asyncio reactor my handler, my timer, my generator and my start may await asyncio."""
    program = textwrap.dedent(
        """
        import asyncio
        from twisted.internet import asyncioreactor
        asyncioreactor.install()
        from twisted.internet import reactor
        from zroute import App

        app, seen = App(), set()

        def note(what):
            seen.add(what)
            if seen == {"start", "handler", "timer", "generator", "stop"} - {"stop"}:
                service.stopService().addCallback(lambda drained: (print("complete", drained.complete), reactor.stop()))

        @app.on_startup
        async def start():
            await asyncio.sleep(0)
            note("start")

        @app.on_shutdown
        async def stop():
            await asyncio.sleep(0)
            print("stopped in", type(asyncio.current_task()).__name__)

        @app.subscribe("beat")
        async def handler(message: int) -> None:
            await asyncio.sleep(0)
            note("handler")

        @app.publisher("beat", every=0.01)
        async def timer() -> int:
            await asyncio.sleep(0)
            note("timer")
            return 1

        @app.publisher("numbers")
        async def generator():
            while True:
                await asyncio.sleep(0.001)
                note("generator")
                yield 1

        service = app.service(reactor)
        reactor.callWhenRunning(service.startService)
        reactor.run()
        print("errors", app.stats.hook_errors + app.stats.publish_errors + app.stats.failed)
        """
    )
    with Child("-W", "error", "-c", program) as child:
        assert child.line_with("errors") == "errors 0", child.err
        assert child.end(None) == 0
        assert child.out[:2] == ["stopped in Task", "complete True"]
        assert child.err == []
