"""Awaiting Deferreds, coroutines and asyncio tasks, with both kinds of reactor."""

from __future__ import annotations

import asyncio
import gc
import textwrap
import warnings
from collections.abc import AsyncIterator, Generator
from contextvars import ContextVar
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.support import Child
from zroute import App, Envelope
from zroute.awaiting import Ended, as_awaitable, as_deferred, is_awaitable, loop_hint, stepped
from zroute.errors import UsageError, WrongThreadError
from zroute.testing import TestApp


class Awaitable:
    """A user's own awaitable."""

    def __await__(self) -> Generator[Any, Any, str]:
        return "mine"
        yield


def result_of(deferred: Deferred[Any]) -> list[Any]:
    """Return the result, if there is one."""
    results: list[Any] = []
    deferred.addCallback(results.append)
    return results


async def text() -> str:
    """A user's coroutine."""
    return "text"


def test_what_can_be_awaited_is_known() -> None:
    """Deferreds, coroutines and custom awaitables are awaitable; other objects are not."""
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
    """Coroutines and custom awaitables run with every reactor."""
    assert result_of(as_deferred(make(), asyncio_loop=False)) == [expected]


def test_a_coroutine_that_ends_without_waiting_is_only_stepped() -> None:
    """Its value or its error is there at once; a custom awaitable and a Deferred run on Deferreds."""

    async def fails() -> None:
        raise KeyError("no")

    ended = stepped(text(), asyncio_loop=False)
    assert isinstance(ended, Ended)
    assert ended.value == "text"
    with pytest.raises(KeyError):
        stepped(fails(), asyncio_loop=False)
    running = stepped(Awaitable(), asyncio_loop=False)
    assert isinstance(running, Deferred)
    assert result_of(running) == ["mine"]


def test_a_coroutine_that_waits_goes_on_as_a_deferred() -> None:
    """Values and errors reach a coroutine that was stepped, and its own error and value come out."""
    gates: list[Deferred[Any]] = [Deferred() for _ in range(3)]
    got: list[Any] = []

    async def handler() -> str:
        got.append(await gates[0])
        try:
            await gates[1]
        except KeyError as error:
            got.append(error)
        return str(await gates[2])

    running = stepped(handler(), asyncio_loop=False)
    assert isinstance(running, Deferred)
    results = result_of(running)
    gates[0].callback(1)
    gates[1].errback(error := KeyError("no"))
    assert (got, results) == ([1, error], [])
    gates[2].callback(3)
    assert results == ["3"]


@pytest.mark.parametrize("ends", [True, False])
def test_cancelling_a_stepped_coroutine_cancels_what_it_awaits(ends: bool) -> None:
    """The coroutine sees CancelledError, and its last value or the cancellation is the result."""
    gate: Deferred[None] = Deferred()

    async def handler() -> str:
        try:
            await gate
        except CancelledError:
            if not ends:
                raise
        return "cleaned up"

    running = stepped(handler(), asyncio_loop=False)
    assert isinstance(running, Deferred)
    results = result_of(running.addErrback(lambda failure: failure.type))
    running.cancel()
    assert results == ["cleaned up" if ends else CancelledError]
    assert gate.called


@pytest.mark.parametrize("cancels", [False, True])
def test_a_stepped_coroutine_has_one_context(cancels: bool) -> None:
    """A coroutine can reset a context variable after a wait, and does not change it for its caller."""
    gate: Deferred[None] = Deferred()
    variable = ContextVar("variable", default="")
    seen: list[str] = []

    async def handler() -> None:
        token = variable.set("inside")
        try:
            await gate
        finally:
            seen.append(variable.get())
            variable.reset(token)
            seen.append(variable.get())

    running = stepped(handler(), asyncio_loop=False)
    assert isinstance(running, Deferred)
    assert variable.get() == ""
    results = result_of(running.addErrback(lambda failure: failure.type))
    if cancels:
        running.cancel()
    else:
        gate.callback(None)
    assert seen == ["inside", ""]
    assert results == [CancelledError if cancels else None]


def test_the_first_step_knows_that_no_task_runs_it() -> None:
    """In an asyncio task, too, zroute's own awaitables wait on Deferreds in the first step of a coroutine."""

    async def handler(gate: Deferred[str]) -> str:
        return await as_awaitable(gate)

    async def main() -> list[Any]:
        gate: Deferred[str] = Deferred()
        running = stepped(handler(gate), asyncio_loop=False)
        assert isinstance(running, Deferred)
        results = result_of(running)
        gate.callback("there")
        return results

    assert asyncio.run(main()) == ["there"]


def test_with_a_loop_coroutines_are_tasks() -> None:
    """With an asyncio loop, asyncio functions work in a handler."""

    async def handler() -> str:
        await asyncio.sleep(0)
        return "slept"

    async def main() -> str:
        return await as_deferred(handler(), asyncio_loop=True).asFuture(asyncio.get_running_loop())

    assert asyncio.run(main()) == "slept"


async def words() -> AsyncIterator[str]:
    """A user's async generator."""
    yield "word"


@pytest.mark.parametrize("make", [text, lambda: anext(words())])
def test_a_task_cancelled_before_it_begins_says_nothing(make: Any) -> None:
    """A stop in the turn in which a timer was due causes no "coroutine was never awaited" warning."""

    async def main() -> None:
        deferred = as_deferred(make(), asyncio_loop=True).addErrback(
            lambda failure: failure.trap(asyncio.CancelledError)
        )
        deferred.cancel()
        await deferred.asFuture(asyncio.get_running_loop())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_cancelling_cancels_what_is_awaited() -> None:
    """Cancelling reaches the innermost await."""
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
    """With the asyncio reactor, handlers, timers, generators and on_startup may await asyncio."""
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


# -- which of the two runs a coroutine ---------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_would_end_the_loop_is_an_error_of_the_task(error: type[BaseException]) -> None:
    """sys.exit() in an async handler reaches its caller, as in a plain one, and the loop continues."""

    async def handler() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> list[Any]:
        failures: list[Any] = []
        as_deferred(handler(), asyncio_loop=True).addErrback(lambda failure: failures.append(failure.type))
        while not failures:
            await asyncio.sleep(0)
        return failures

    assert asyncio.run(main()) == [error]


def test_a_coroutine_on_deferreds_that_goes_on_inside_a_task_stays_on_deferreds() -> None:
    """A Deferred coroutine that is resumed inside an asyncio task still awaits Deferreds."""
    gate, later, got = Deferred[None](), Deferred[str](), list[str]()

    async def deeper() -> str:
        return await as_awaitable(later)

    async def on_deferreds() -> None:
        await as_awaitable(gate)
        got.append(await deeper())

    async def values() -> AsyncIterator[str]:
        yield await as_awaitable(later)

    async def looping() -> None:
        async for value in values():
            got.append(value)

    async def main() -> None:
        running = [Deferred.fromCoroutine(on_deferreds())]
        gate.callback(None)
        running.append(Deferred.fromCoroutine(looping()))
        assert got == []
        later.callback("x")
        await asyncio.gather(*(one.asFuture(asyncio.get_running_loop()) for one in running))

    asyncio.run(main())
    assert got[0] == "x"
    assert len(got) == 2


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("no running event loop"), "zroute run --reactor asyncio"),
        (RuntimeError("await wasn't used with future"), "zroute run --reactor asyncio"),
        (type("AsyncLibraryNotFoundError", (RuntimeError,), {})("unknown async library"), "--reactor asyncio"),
        (type("NoEventLoopError", (RuntimeError,), {})("not in a loop"), "zroute run --reactor asyncio"),
        (RuntimeError("Task got bad yield: <Deferred at 0x1>"), "await zroute.as_awaitable(deferred)"),
        (
            ExceptionGroup("tasks", [ValueError(), RuntimeError("Task got bad yield: <Deferred at 0x1>")]),
            "as_awaitable",
        ),
        (RuntimeError("Task got bad yield: 3"), ""),
        (ValueError("no running event loop"), ""),
        (ExceptionGroup("tasks", [ValueError()]), ""),
    ],
)
def test_the_wrong_kind_of_await_is_known_by_its_error(error: BaseException, remedy: str) -> None:
    """The errors of asyncio, anyio, sniffio and task groups are recognized, and no others."""
    hint = loop_hint(error)
    assert remedy in hint
    assert bool(remedy) == bool(hint)


# -- in an app, under both kinds of reactor ----------------------------------------------------------------

REACTORS = pytest.mark.parametrize("kind", ["twisted", "asyncio"])


@REACTORS
def test_async_functions_are_tasks_under_asyncio_and_on_deferreds_elsewhere(kind: Any) -> None:
    """Handlers, timers, generators and hooks have a current task only with the asyncio reactor."""
    app, tasks = App(), dict[str, Any]()

    def note(who: str) -> None:
        try:
            tasks[who] = asyncio.current_task()
        except RuntimeError:
            tasks[who] = None

    @app.on_startup
    async def start() -> None:
        note("on_startup")

    @app.on_shutdown
    async def stop() -> None:
        note("on_shutdown")

    @app.subscribe("a")
    async def handle(message: int) -> None:
        note("handler")
        raise ValueError(message)

    @app.on_error(ValueError)
    async def failed(error: ValueError, envelope: Envelope) -> None:
        note("on_error")

    @app.publisher("b")
    @app.subscribe("a")
    async def derived(message: int) -> AsyncIterator[int]:
        note("generator under subscribe")
        yield 1

    @app.every(1.0)
    async def timer() -> None:
        note("timer")

    @app.publisher("c", every=1.0)
    async def periodic() -> AsyncIterator[int]:
        while True:
            note("periodic generator")
            yield 1

    @app.publisher("d")
    async def driven() -> AsyncIterator[int]:
        note("generator")
        yield 1

    with TestApp(app, reactor=kind) as t:
        t.publish("a", 1)
    assert len(tasks) == 8
    assert {task is not None for task in tasks.values()} == {kind == "asyncio"}
    assert len(set(map(id, tasks.values()))) == (8 if kind == "asyncio" else 1)


def test_asyncios_own_things_work_in_a_handler() -> None:
    """sleep, TaskGroup, timeout, Event and Queue work on the virtual time of a TestApp."""
    app, said = App(), list[Any]()

    @app.subscribe("a")
    async def handle(message: int) -> None:
        await asyncio.sleep(1)
        done: asyncio.Queue[int] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            for number in (2, 1):
                group.create_task(asyncio.sleep(number)).add_done_callback(lambda _, n=number: done.put_nowait(n))
        said.append([await done.get(), await done.get()])
        try:
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        except TimeoutError:
            said.append("timed out")

    with TestApp(app, reactor="asyncio") as t:
        t.publish("a", 1)
        t.advance(3)
        assert said == [[1, 2]]
        t.advance(4.9)
        assert said == [[1, 2]]
        t.advance(0.1)
        assert said == [[1, 2], "timed out"]
        assert t.results(handle) == [None]


@REACTORS
def test_every_awaitable_of_zroute_works_in_both(kind: Any) -> None:
    """publish, stream, as_awaitable and from_thread work with both kinds of reactor."""
    app, said = App(), list[Any]()
    made = app.publisher("out.{n}", int)

    @app.subscribe("go")
    async def handle(message: int) -> None:
        said.append(await made.publish(1, n=1))
        said.append(await app.publish("out.2", 2))
        later: Deferred[str] = Deferred()
        async with app.stream("in", int) as messages:
            t._running.callLater(1, later.callback, "fired")
            said.append(await as_awaitable(later))
            async for number in messages:
                said.append(number)
                if number == 2:
                    break

    async def slow(number: int) -> int:
        waiting: Deferred[int] = Deferred()
        t._running.callLater(0, waiting.callback, number)
        return await as_awaitable(waiting)

    def deferred(number: int) -> Deferred[int]:
        waiting: Deferred[int] = Deferred()
        t._running.callLater(0, waiting.callback, number)
        return waiting

    @app.subscribe("threaded", thread=True)
    def threaded(message: int) -> list[Any]:
        return [
            app.from_thread(slow, 3),
            app.from_thread(deferred, 4),
            app.from_thread(made.publish, 5, n=5),
            app.from_thread(int, "6"),
        ]

    with TestApp(app, reactor=kind) as t:
        t.publish("go", 0)
        t.advance(1)
        t.publish("in", 1)
        t.publish("in", 2)
        assert said == [None, None, "fired", 1, 2]
        t.publish("threaded", 1)
        assert t.results(threaded) == [[3, 4, None, 6]]
        assert t.published("out.*") == [1, 2, 5]


def wrong(kind: str) -> Any:
    """A coroutine that awaits the wrong kind for this reactor."""
    return asyncio.sleep(1) if kind == "twisted" else deferred_in_a_task()


async def deferred_in_a_task() -> None:
    """A plain Deferred, which asyncio can't await."""
    await Deferred()


REMEDIES = {"twisted": "zroute run --reactor asyncio", "asyncio": "await zroute.as_awaitable(deferred)"}


@REACTORS
@pytest.mark.parametrize(
    "where", ["handler", "attached", "timer", "generator", "on_error", "on_unrouted", "on_startup", "on_shutdown"]
)
def test_the_wrong_kind_of_await_says_what_to_do(kind: Any, where: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log line of a wrong await in any kind of function names the remedy."""
    app = App()

    async def mistaken(*_: Any) -> None:
        await wrong(kind)

    async def values() -> AsyncIterator[int]:
        await wrong(kind)
        yield 1

    def failing(message: int) -> None:
        raise ValueError

    match where:
        case "handler":
            app.subscribe("a")(mistaken_handler(kind))
        case "timer":
            app.every(1.0)(mistaken)
        case "generator":
            app.publisher("b")(values)
        case "on_error":
            app.subscribe("a")(failing)
            app.on_error(ValueError)(mistaken)
        case "on_unrouted":
            app.on_unrouted(mistaken)
            app.subscribe("a.b")(failing)
        case "on_startup" | "on_shutdown":
            getattr(app, where)(mistaken)
    t = TestApp(app, reactor=kind, raise_errors=False)
    if where == "on_startup":
        with pytest.raises(RuntimeError), t:
            pass
    else:
        with t:
            if where == "attached":
                app.attach("a", mistaken_handler(kind))
            t.publish("a.bc" if where == "on_unrouted" else "a", 1)
    said = [record.getMessage() for record in caplog.records]
    assert any(REMEDIES[kind] in line for line in said), said


def mistaken_handler(kind: str) -> Any:
    """A handler that awaits the wrong kind."""

    async def handle(message: int) -> None:
        await wrong(kind)

    return handle


@pytest.mark.parametrize("kind", ["epoll", "asyncio"])
def test_started_can_be_awaited_in_both(kind: str) -> None:
    """as_awaitable(service.started) works in a Twisted program with either kind of coroutine."""
    program = textwrap.dedent(
        f"""
        import asyncio
        from zroute.runtime.runner import install_reactor
        reactor = install_reactor({kind!r})
        from twisted.internet.defer import Deferred
        from zroute import App, as_awaitable
        from zroute.awaiting import as_deferred

        app = App()
        app.add_route(print, "a")
        service = app.service(reactor)

        async def main():
            service.startService()
            await as_awaitable(service.started)
            print("started")
            drained = await as_awaitable(service.stopService())
            print("complete", drained.complete)
            reactor.stop()

        reactor.callWhenRunning(lambda: as_deferred(main(), asyncio_loop={kind == "asyncio"}))
        reactor.run()
        """
    )
    with Child("-W", "error", "-c", program) as child:
        assert child.end(None) == 0, child.err
        assert child.out == ["started", "complete True"]
        assert child.err == []


def test_asyncio_run_in_a_plain_function_never_waits_for_the_app() -> None:
    """Under asyncio.run, the app could never answer: all that would wait for it raise an error at once."""
    app = App(reactor="twisted")
    queue = app.job_queue("jobs", int, waiting=1)
    refused: list[str] = []

    async def ask() -> None:
        await app.request("a", None, int)

    async def ask_for_stream() -> None:
        app.request_stream("a", None, int)

    async def put_two() -> None:
        await queue.put(1)
        await queue.put(2)

    async def ready() -> None:
        await app.ready()

    async def listen() -> None:
        async with app.stream("a", int):
            pass

    @app.reply("a")
    def answer() -> int:
        return 1

    @app.subscribe("b")
    def handler(message: int) -> None:
        for call in (ask, ask_for_stream, put_two, ready, listen):
            with pytest.raises(
                UsageError, match="its own asyncio loop, which blocks the app: make the handler"
            ) as error:
                asyncio.run(call())
            refused.append(str(error.value))

    with TestApp(app, raise_errors=False) as t:  # the first job is not done
        t.publish("b", 1)
        assert len(refused) == 5
        assert t.request("a", None, int) == 1  # the app still works
        assert app.stats.requests_sent == 0


@pytest.mark.parametrize("on_asyncio", [False, True])
def test_asyncio_run_around_a_request_fails_at_once_in_a_real_app(*, on_asyncio: bool) -> None:
    """A plain timer that calls asyncio.run neither blocks the app nor its stop, with both kinds of reactor."""
    program = textwrap.dedent(
        f"""
        import asyncio
        from zroute import App

        app = App(reactor={"asyncio" if on_asyncio else "twisted"!r})

        @app.reply("a")
        def answer() -> int: return 1

        @app.every(0.05)
        def ask():
            coroutine = app.request("a", None, int, timeout=30)
            try:
                asyncio.run(coroutine)
            except Exception as error:
                coroutine.close()
                print(type(error).__name__, error)
            app.stop()

        app.run()
        """
    )
    with Child("-c", program) as child:
        line = child.line_with("Error")
        expected = "cannot be called from a running event loop" if on_asyncio else "UsageError this coroutine runs in"
        assert expected in line
        assert child.end(None) == 0


def test_a_request_in_another_thread_names_from_thread() -> None:
    """The error of a request in a thread names the call that works, not a socket of zroute."""
    app = App()
    said: list[object] = []

    @app.reply("a")
    def answer() -> int:
        return 1

    @app.subscribe("b", thread=True)
    def handler(message: int) -> None:
        with pytest.raises(WrongThreadError, match=r"use app\.from_thread\(app\.request, topic, message\)"):
            asyncio.run(app.request("a", None, int))
        said.append(app.from_thread(app.request, "a", None, int))

    with TestApp(app) as t:
        t.publish("b", 1)
    assert said == [1]
