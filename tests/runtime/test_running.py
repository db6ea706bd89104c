"""``async with app.running()``: an app on the asyncio loop of a program that runs already."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from tests.support import PATIENCE, Child, free_endpoint
from zroute import App, EndpointError, NotRunningError, UsageError
from zroute.runtime import on_loop

THREE_TIMES = """
import asyncio, os, signal, sys, warnings
warnings.simplefilter("error")
sys.modules["twisted.internet.reactor"] = None  # importing the global reactor raises an error
from zroute import App

app = App()
seen = set()

@app.publisher("x", every=0.02)
def tick() -> int: return 1
@app.subscribe("x")
def plain(n: int): seen.add("plain")
@app.subscribe("x")
async def later(n: int):
    await asyncio.sleep(0.001)
    seen.add("async")
@app.subscribe("x", thread=True)
def in_thread(n: int):
    app.from_thread(app.publish, "y", 2)
    seen.add("thread")
@app.subscribe("y")
async def stop(n: int):
    async with app.stream("x", int) as numbers:
        async for _ in numbers:
            break
    if len(seen) == 3:
        app.stop(3)

async def main():
    asyncio.get_running_loop().slow_callback_duration = 100  # a busy machine is no fault
    async with app.running() as running:
        assert running is app and app.exit_code is None
        await app.ready(timeout=100)
        assert await app.stopped() == 3
        assert asyncio.get_running_loop().is_running()

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return handlers, len(os.listdir("/dev/fd"))

before = None
for _ in range(3):
    seen.clear()
    if LOOP == "uvloop":
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main(), debug=LOOP == "debug")
    print(sorted(seen), app.exit_code, before in (None, state()), flush=True)
    before = state()
"""


@pytest.mark.parametrize("loop", ["asyncio", "debug", "uvloop"])
def test_an_app_runs_in_three_loops_of_one_process(loop: str) -> None:
    """Plain, async and thread handlers work; nothing is installed, and no file descriptor is left open."""
    with Child("-c", f"LOOP = {loop!r}\n{THREE_TIMES}") as child:
        assert child.end(None) == 0, child.err
        assert child.out == ["['async', 'plain', 'thread'] 3 True"] * 3
        assert child.err == []


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a loop of its own, and look at what it leaves behind."""

    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await main

    asyncio.run(limited())
    assert on_loop._reactors == {}


def test_two_apps_on_one_loop_share_a_reactor_and_talk_over_tcp() -> None:
    """One reactor serves both; it closes with the second."""
    endpoint = free_endpoint()
    feed, desk = App(pub=endpoint), App(sub=endpoint)
    got: asyncio.Queue[int] = asyncio.Queue()
    desk.subscribe("x")(got.put_nowait)
    desk.subscribe("x")(answer_nothing)

    async def main() -> None:
        async with feed.running():
            async with desk.running():
                (reactor,) = on_loop._reactors.values()
                assert reactor.users == 2
                await desk.ready(1, timeout=PATIENCE)
                await feed.publish("x", 5)
                assert await got.get() == 5
            assert reactor.users == 1
            await feed.publish("x", 6)

    run(main())


async def answer_nothing(number: int) -> None:
    """An async handler, which runs as a task."""
    assert asyncio.current_task() is not None


def test_two_loops_in_two_threads_run_an_app_each() -> None:
    """A loop needs not to be that of the main thread."""
    ended: list[str] = []

    def work(name: str) -> None:
        app = App(name=name)

        @app.subscribe("x")
        async def on(n: int) -> None:
            await meet.wait()
            app.stop(n)

        meet = asyncio.Event()

        async def main() -> None:
            async with app.running():
                await app.publish("x", 7)
                both.wait(PATIENCE)
                meet.set()
                assert await app.stopped() == 7
            ended.append(name)

        asyncio.run(main())

    both = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(ended) == ["a", "b"]


# -- the start -------------------------------------------------------------------------------------------


class Database: ...


def failing(how: str) -> App:
    """Return an app whose start fails in the given way."""
    app = App(pub="tcp://192.0.2.1:5555", insecure=True) if how == "endpoint" else App()
    app.publisher("x", int)

    @app.resource
    async def database() -> AsyncIterator[Database]:
        await asyncio.sleep(0)
        if how == "resource":
            raise ConnectionError("no database")
        yield Database()

    @app.on_startup
    async def load(database: Database) -> None:
        await asyncio.sleep(0)
        if how == "hook":
            raise LookupError("no prices")
        if how == "stop":
            app.stop(3)
            await asyncio.sleep(PATIENCE)

    return app


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("endpoint", EndpointError, r"test_running\.py:\d+: can't bind tcp://192\.0\.2\.1"),
        ("resource", ConnectionError, "no database"),
        ("hook", LookupError, "no prices"),
        ("stop", NotRunningError, "was stopped with exit code 3 before the app had started"),
    ],
)
def test_running_raises_the_error_of_the_start(
    how: str, error: type[Exception], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The block is not entered; the error is raised and not logged as well; the app can be started again."""
    app = failing(how)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(error, match=text):
                async with app.running():
                    pytest.fail("the block was entered")

    run(main())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert app.exit_code == (3 if how == "stop" else None)


def test_a_start_that_is_cancelled_closes_what_it_opened() -> None:
    """A timeout around the start ends it."""
    app = App()
    closed: list[bool] = []

    @app.resource
    async def database() -> AsyncIterator[Database]:
        yield Database()
        closed.append(True)

    @app.on_startup
    async def never(database: Database) -> None:
        waiting.set()
        await asyncio.Event().wait()

    waiting = asyncio.Event()

    async def start() -> None:
        async with app.running():
            pytest.fail("the block was entered")

    async def main() -> None:
        starting = asyncio.create_task(start())
        await waiting.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert closed == [True]

    run(main())


def test_running_is_refused_without_a_loop_twice_and_with_a_wrong_option() -> None:
    """Each refusal says what to do."""
    app = App()

    async def main() -> None:
        with pytest.raises(UsageError, match="drain_timeout is '2s', but running expects a number of seconds"):
            await app.running(drain_timeout="2s").__aenter__()  # type: ignore[arg-type]
        async with app.running():
            with pytest.raises(UsageError, match=r"already running: leave its `async with app\.running"):
                await app.running().__aenter__()
            app.publish("x", 1)

    run(main())
    entering = app.running().__aenter__()
    with pytest.raises(UsageError, match=r"needs a running asyncio loop.*app\.run\(\)"):
        entering.__await__().__next__()
    with pytest.raises(NotRunningError, match="stopped"):
        run(App().stopped())  # type: ignore[arg-type]


# -- the end ---------------------------------------------------------------------------------------------


def slow_app() -> tuple[App, list[str]]:
    """Return an app with a handler that takes a moment, and a list of what has happened."""
    app = App()
    happened: list[str] = []

    @app.subscribe("x")
    async def on(n: int) -> None:
        happened.append("called")
        await asyncio.sleep(0.05)
        happened.append("handled")

    @app.on_shutdown
    def closing() -> None:
        happened.append("closed")

    return app, happened


@pytest.mark.parametrize("end", ["plain", "error", "cancelled", "cancelled twice"])
def test_the_end_of_the_block_drains(end: str) -> None:
    """Unfinished handlers are awaited however the block ends, also if the task is cancelled during the drain."""
    app, happened = slow_app()

    async def block(inside: asyncio.Event) -> None:
        async with app.running():
            await app.publish("x", 1)
            while not happened:
                await asyncio.sleep(0)
            inside.set()
            if end == "error":
                raise LookupError
            if end.startswith("cancelled"):
                await asyncio.Event().wait()

    async def main() -> None:
        inside = asyncio.Event()
        task = asyncio.create_task(block(inside))
        await inside.wait()
        if end.startswith("cancelled"):
            task.cancel()
        if end == "cancelled twice":
            await asyncio.sleep(0.01)
            task.cancel()
        with suppress(LookupError, asyncio.CancelledError):
            await task
        assert task.cancelled() == end.startswith("cancelled")
        assert happened == ["called", "handled", "closed"]

    run(main())


def test_unfinished_handlers_are_logged_after_the_drain_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """The block ends in time, and the log names the handler; so it does if a thread is at work."""
    app = App(name="desk")
    release, called = threading.Event(), threading.Event()

    @app.subscribe("x")
    async def hang(n: int) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    @app.subscribe("x", thread=True)
    def work(n: int) -> None:
        called.set()
        release.wait(PATIENCE)

    async def main() -> None:
        async with app.running(drain_timeout=0.05):
            await app.publish("x", 1)
            while not called.is_set():
                await asyncio.sleep(0.001)

    began = time.monotonic()
    run(main())
    release.set()
    assert time.monotonic() - began < PATIENCE / 2
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert texts[0].startswith("desk: abandoned after the drain timeout: ")
    assert "work(): 1" in texts[0]
    assert "threads are still running" in texts[1]


def test_the_block_continues_when_the_app_stops() -> None:
    """The program decides; publish raises, and exit_code and stopped() tell the code."""
    app = App()

    @app.subscribe("x")
    async def on(n: int) -> None:
        raise SystemExit(n)

    async def main() -> None:
        async with app.running():
            await app.publish("x", 9)
            watching = asyncio.create_task(app.stopped())  # type: ignore[arg-type, var-annotated]
            assert await watching == 9
            with pytest.raises(NotRunningError):
                app.publish("x", 1)
            assert await app.stopped() == app.exit_code == 9
        async with app.running():
            assert app.exit_code is None
            app.publish("y", 1)
        assert await app.stopped() is None

    run(main())


def test_a_handler_in_a_task_of_the_program_may_use_the_app() -> None:
    """Streams, attached handlers and ready() work in tasks of the program."""
    app = App()

    async def main() -> None:
        got: list[int] = []
        async with app.running(), asyncio.TaskGroup() as tasks:
            open_ = asyncio.Event()

            async def listen() -> None:
                async with app.stream("x", int) as numbers:
                    open_.set()
                    async for number in numbers:
                        got.append(number)
                        if number == 2:
                            return

            tasks.create_task(listen())
            await open_.wait()
            attached = app.attach("x", got.append)
            for number in (1, 2):
                await app.publish("x", number)
        attached.close()
        assert sorted(got) == [1, 1, 2, 2]

    app.subscribe("x")(lambda n: None)
    run(main())


def test_a_fast_loop_leaves_no_descriptors() -> None:
    """Twenty runs on one loop keep no file descriptor."""
    app = App()
    app.subscribe("x")(lambda n: None)

    async def main() -> None:
        async with app.running():
            pass
        before = len(os.listdir("/dev/fd"))
        for _ in range(20):
            async with app.running():
                await app.publish("x", 1)
        assert len(os.listdir("/dev/fd")) <= before

    run(main())
