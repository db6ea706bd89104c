"""``async with TestApp(app) as t``: an app in an async test, on the loop of the test and in virtual time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.support import PATIENCE
from tests.testing.test_plugin import pytest_run
from zroute import App, SignatureError, UsageError
from zroute.testing import AsyncTestApp, RestlessError, TestApp, UnfinishedError

Loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def run(main: Callable[[], Coroutine[Any, Any, None]], loop: str = "asyncio") -> None:
    """Run a coroutine in a loop of its own, which keeps its own timers."""

    async def checked() -> None:
        before = set(vars(asyncio.get_running_loop()))
        await main()
        assert set(vars(asyncio.get_running_loop())) <= before

    if loop == "uvloop":
        pytest.importorskip("uvloop").run(checked())
    else:
        asyncio.run(checked())


def beating() -> tuple[App, list[int]]:
    """Return an app with a timer and a handler that sleeps, and the list of handled messages."""
    app = App()
    seen: list[int] = []

    @app.subscribe("x")
    async def on(n: int) -> None:
        await asyncio.sleep(0.1)
        seen.append(n)

    @app.publisher("beat", every=10.0)
    def beat() -> int:
        return 1

    return app, seen


# -- time ------------------------------------------------------------------------------------------------


@Loops
def test_time_of_the_app_is_virtual_and_that_of_the_test_is_real(loop: str) -> None:
    """Timers and asyncio.sleep of the app wait for advance(); those of the test and its tasks do not."""

    async def main() -> None:
        app, seen = beating()
        running = asyncio.get_running_loop()
        async with TestApp(app) as t:
            await t.publish("x", 1)
            assert (seen, t.published("beat")) == ([], [1])
            async with asyncio.timeout(PATIENCE):
                before = running.time()
                await asyncio.sleep(0.15)
                assert running.time() - before >= 0.14  # the clock of uvloop counts milliseconds
            assert seen == []
            await t.advance(0.1)
            assert seen == [1]
            await t.advance(35.9)
            assert t.published("beat") == [1] * 4

    run(main, loop)


@Loops
def test_retries_and_timeouts_of_asyncio_follow_virtual_time(loop: str) -> None:
    """asyncio.timeout, wait_for and TaskGroup in a handler use the time of the test, and errors are raised."""

    async def main() -> None:
        app = App()
        calls: list[str] = []

        @app.subscribe("x", retry=(1, 5, 30))
        async def on(n: int) -> None:
            calls.append("called")
            async with asyncio.timeout(0.5), asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(0.1))
                await asyncio.wait_for(asyncio.sleep(100), 200)

        async with TestApp(app) as t:
            await t.publish("x", 1)
            await t.advance(1.4)
            assert len(calls) == 1
            with pytest.raises(TimeoutError):
                await t.advance(40)
            assert len(calls) == 4

    run(main, loop)


def test_two_tests_on_one_loop_have_a_time_each() -> None:
    """Blocks may overlap, and end in any order."""

    async def main() -> None:
        (one, ones), (two, twos) = beating(), beating()
        first, second = TestApp(one), TestApp(two)
        a = await first.__aenter__()
        b = await second.__aenter__()
        await a.publish("x", 1)
        await b.publish("x", 2)
        await a.advance(1)
        assert (ones, twos) == ([1], [])
        await first.__aexit__(None, None, None)
        await b.advance(1)
        assert twos == [2]
        await second.__aexit__(None, None, None)

    run(main)


# -- the loop --------------------------------------------------------------------------------------------


class Pool:
    """A client of a test fixture: a lock and a future of the loop."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()


@Loops
def test_a_handler_uses_what_belongs_to_the_loop(loop: str) -> None:
    """handled() waits, in real time, for what handlers await outside the test."""

    async def main() -> None:
        app = App()
        seen: list[int] = []

        @app.resource
        def pool() -> Iterator[Pool]:
            yield Pool()

        @app.subscribe("x")
        async def on(n: int, pool: Pool) -> None:
            async with pool.lock:
                seen.append(await pool.answer + n)

        given = Pool()
        async with TestApp(app, {Pool: given}) as t:
            await t.publish("x", 1)
            assert seen == []
            with pytest.raises(UnfinishedError, match=r"handlers still running after 0.01 s: on\(\): 1"):
                await t.handled(timeout=0.01)
            asyncio.get_running_loop().call_later(0.02, given.answer.set_result, 5)
            await t.handled()
            assert seen == [6]

    run(main, loop)


def test_the_apps_run_while_the_test_awaits_something_else() -> None:
    """A message that the code under test publishes is handled without a method of the test."""

    async def main() -> None:
        app = App()
        handled = asyncio.Event()

        @app.publisher("y")
        @app.subscribe("x")
        async def on(n: int) -> int:
            return n + 1

        @app.subscribe("y")
        def end(n: int) -> None:
            handled.set()

        async with TestApp(app) as t:
            app.publish("x", 1)
            async with asyncio.timeout(PATIENCE):
                await handled.wait()
            assert t.published("y") == [2]
            assert t.results(on) == [2]

    run(main)


@Loops
def test_threads_and_streams_work(loop: str) -> None:
    """A method returns when threads have ended, and a task of the test may read a stream."""

    async def main() -> None:
        app = App()
        names: list[str] = []

        @app.publisher("y")
        @app.subscribe("x", thread=True)
        def on(n: int) -> int:
            names.append(threading.current_thread().name)
            app.from_thread(app.publish, "z", n)
            return n

        async with TestApp(app) as t:
            opened = asyncio.Event()

            async def first() -> int:
                async with app.stream("y", int) as numbers:
                    opened.set()
                    async for number in numbers:
                        return number
                raise AssertionError

            reading = asyncio.create_task(first())
            await opened.wait()
            await t.publish("x", 7)
            assert t.published("z") == [7]
            assert await reading == 7
            assert names != ["MainThread"]

    run(main, loop)


# -- errors and the end ----------------------------------------------------------------------------------


def test_errors_are_raised_by_the_method_that_causes_them() -> None:
    """As in a with block: one error, a group, SystemExit with its code, or none if they are only collected."""

    async def main() -> None:
        app = App()

        @app.subscribe("x")
        async def bad(n: int) -> None:
            if n == 3:
                raise SystemExit(3)
            raise LookupError(n)

        @app.subscribe("y")
        def bad_too(n: int) -> None:
            raise KeyError(n)

        async with TestApp(app) as t:
            with pytest.raises(LookupError, match="1"):
                await t.publish("x", 1)
            with pytest.raises(ExceptionGroup, match="several"):
                await t.publish("x", 1, 2)
            with pytest.raises(SystemExit):
                await t.publish("x", 3)
            assert t.exit_code == app.exit_code == 3
        async with TestApp(app, raise_errors=False) as t:
            await t.receive(b"y", b"\x01")
            assert [type(error) for error in t.failures] == [KeyError]

    run(main)


def test_the_end_names_unfinished_handlers_and_gives_real_work_its_time() -> None:
    """A handler that only waits for virtual time is unfinished; one that waits for something real may end."""

    async def main() -> None:
        app = App()
        ended: list[int] = []

        @app.subscribe("virtual")
        async def sleep(n: int) -> None:
            await asyncio.sleep(1000)

        @app.subscribe("real")
        async def wait(n: int) -> None:
            await answer
            ended.append(n)

        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with TestApp(app) as t:
            await t.publish("real", 1)
            asyncio.get_running_loop().call_later(0.02, answer.set_result, None)
        assert ended == [1]
        with pytest.raises(UnfinishedError, match=r"sleep\(\): 1"):
            async with TestApp(app) as t:
                await t.publish("virtual", 1)

    run(main)


def test_a_start_that_fails_or_waits_for_ever_is_an_error() -> None:
    """The block is not entered, and the loop has its own timers again."""

    async def main() -> None:
        fails, waits = App(), App(name="waits")

        @fails.on_startup
        async def fail() -> None:
            raise LookupError("no prices")

        @waits.on_startup
        async def wait() -> None:
            await asyncio.sleep(5)

        for app, error, text in ((fails, LookupError, "no prices"), (waits, UnfinishedError, "waits has not started")):
            with pytest.raises(error, match=text):
                async with TestApp(app):
                    pytest.fail("the block was entered")

    run(main)


def test_an_app_without_rest_is_an_error() -> None:
    """A generator that never ends is named, as in a with block."""

    async def main() -> None:
        app = App()

        @app.publisher("x")
        def numbers() -> Iterator[int]:
            yield from count()

        with pytest.raises(RestlessError, match="still has something to do"):
            async with TestApp(app):
                pytest.fail("the block was entered")

    run(main)


# -- the kind of reactor ---------------------------------------------------------------------------------


def in_task() -> bool:
    """Return True inside a task of asyncio."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def telling(**options: Any) -> tuple[App, list[bool]]:
    """Return an app that notes if its async handler runs as a task."""
    app = App(**options)
    tasks: list[bool] = []

    @app.subscribe("x")
    async def on(n: int) -> None:
        tasks.append(in_task())

    return app, tasks


@pytest.mark.parametrize(
    ("needs", "asks", "is_task"),
    [(None, None, False), ("asyncio", None, True), (None, "asyncio", True), ("twisted", None, False)],
)
def test_a_with_block_uses_the_reactor_that_the_app_needs(needs: Any, asks: Any, is_task: bool) -> None:
    """An app with reactor="asyncio" needs no option of its tests."""
    app, tasks = telling(reactor=needs)
    with TestApp(app, reactor=asks) as t:
        t.publish("x", 1)
    assert tasks == [is_task]


def test_contradicting_reactors_are_refused() -> None:
    """An option that an app can't work with, and two apps that can't share a reactor, are errors."""
    (one, _), (two, _) = telling(reactor="asyncio"), telling(reactor="twisted")
    with pytest.raises(SignatureError, match="remove reactor= from TestApp"):
        TestApp(one, reactor="twisted")
    with pytest.raises(UsageError, match=r"needs reactor='asyncio' and .* needs reactor='twisted'"):
        TestApp(one, two)
    with pytest.raises(SignatureError, match="use 'twisted' or 'asyncio'"):
        TestApp(one, reactor="trio")  # type: ignore[arg-type]
    with pytest.raises(SignatureError, match="reactor='epoll' is unknown"):
        App(reactor="epoll")  # type: ignore[arg-type]


def test_an_async_test_app_in_a_plain_with_block_names_async_with() -> None:
    """The error shows both ways to write it."""
    with pytest.raises(UsageError, match="write `async with TestApp"), AsyncTestApp(beating()[0]):
        pass


def test_a_with_block_in_a_running_loop_names_async_with() -> None:
    """The error says what to write, and nothing is left open."""

    async def main() -> None:
        app, _ = telling()
        with pytest.raises(UsageError, match=r"async with TestApp\(app\) as t"), TestApp(app):
            pytest.fail("the block was entered")
        async with TestApp(app) as t:
            await t.publish("x", 1)

    run(main)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("needs", ["twisted", "asyncio", None])
async def test_a_deferred_coroutine_awaits_the_methods(needs: Any) -> None:
    """Under pytest-twisted the methods run the app themselves."""
    app, tasks = telling(reactor=needs)
    app.publisher("beat", every=10.0)(lambda: 1)
    async with TestApp(app) as t:
        await t.publish("x", 1)
        await t.advance(36)
        await t.handled()
        assert len(t.published("beat")) == 4
    assert tasks == [needs == "asyncio"]


# -- the plugins of pytest -------------------------------------------------------------------------------

HEAD = """
import asyncio
from collections.abc import Iterator
import pytest
from zroute import App
from zroute.testing import TestApp

class Pool:
    def __init__(self):
        self.lock = asyncio.Lock()
        self.answer = asyncio.get_running_loop().create_future()

app, seen = App(), []

@app.resource
def pool() -> Iterator[Pool]:
    yield Pool()

@app.publisher("beat", every=10.0)
def beat() -> int:
    return 1

@app.subscribe("x", retry=(1, 5, 30))
async def on(n: int, pool: Pool):
    async with pool.lock:
        await asyncio.sleep(0.1)
        seen.append(n)
        if n == 2:
            await pool.answer
        if n == 3:
            raise LookupError(n)
"""

BODY = """
    seen.clear()
    await t.publish("x", 1)
    assert seen == []
    await t.advance(36)
    assert seen == [1] and t.published("beat") == [1] * 4
    with pytest.raises(LookupError):
        await t.publish("x", 3)
        await t.advance(60)
    assert seen == [1, 3, 3, 3, 3]
"""

REAL = """
    await t.publish("x", 2)
    await t.advance(1)
    asyncio.get_running_loop().call_later(0.02, pool.answer.set_result, None)
    await t.handled()
"""

FIXTURE = """
@FIXTURE
async def pool():
    return Pool()

@FIXTURE
async def t(pool):
    async with TestApp(app, {Pool: pool}) as t:
        yield t

@MARK
async def test_it(t, pool):
"""


def plugin_run(folder: Path, fixture: str, mark: str, *flags: str) -> None:
    """Run the test above as a user of a plugin has it, with fixtures of the loop."""
    source = (HEAD + FIXTURE + BODY + REAL).replace("@FIXTURE", f"@{fixture}").replace("@MARK", f"@{mark}")
    if "anyio" in mark:
        source = source.replace("app, seen", "@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n\napp, seen")
    if "pytest_asyncio" in fixture:
        source = source.replace("import pytest\n", "import pytest, pytest_asyncio\n")
    done = pytest_run(folder, source, *flags)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed")
def test_a_test_of_pytest_asyncio(tmp_path: Path) -> None:
    """Fixtures and tests of pytest-asyncio share their loop with the app."""
    unset = "ignore::pytest.PytestDeprecationWarning"  # the scope of its loop is not configured
    plugin_run(tmp_path, "pytest_asyncio.fixture", "pytest.mark.asyncio", "-W", unset)


@pytest.mark.skipif(find_spec("anyio") is None, reason="anyio is not installed")
def test_a_test_of_anyio(tmp_path: Path) -> None:
    """Fixtures and tests of anyio's plugin share their loop with the app."""
    disabled = ("-p", "no:asyncio")
    plugin_run(tmp_path, "pytest.fixture", "pytest.mark.anyio", *disabled)


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_a_test_of_pytest_twisted(tmp_path: Path, reactor: str) -> None:
    """A coroutine of Twisted awaits the methods, also on asyncio's reactor."""
    body = "".join(f"    {line}\n" if line else "\n" for line in BODY.splitlines())
    source = HEAD.replace("import pytest\n", "import pytest, pytest_twisted\n").replace(
        "self.answer = asyncio.get_running_loop().create_future()", "pass"
    )
    source += "\n@pytest_twisted.ensureDeferred\nasync def test_it():\n"
    source += "    async with TestApp(app, reactor='asyncio') as t:\n" + body
    done = pytest_run(tmp_path, source, f"--reactor={reactor}", "-p", "no:asyncio")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


PLAIN = """
from zroute import App
from zroute.testing import TestApp

app, log = App(), []

@app.subscribe("a")
async def on_a(message: int) -> int:
    await asyncio.sleep(5) if KIND == "asyncio" else None
    return message + 1

HEADER test_it():
    with TestApp(app, reactor=KIND) as t:
        t.publish("a", 1)
        t.advance(5)
        assert t.results(on_a) == [2]
    with TestApp(app, reactor=KIND) as t:
        t.publish("a", 2)
"""


@pytest.mark.parametrize("kind", ["twisted", "asyncio"])
@pytest.mark.parametrize("header", ["def", "@pytest_twisted.ensureDeferred\nasync def"])
def test_a_with_block_works_on_asyncios_reactor(tmp_path: Path, header: str, kind: str) -> None:
    """pytest-twisted calls tests while asyncio's loop runs, but outside of its tasks."""
    source = "import asyncio, pytest_twisted\n" + PLAIN.replace("HEADER", header).replace("KIND", repr(kind))
    done = pytest_run(tmp_path, source, "--reactor=asyncio", "-p", "no:asyncio")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_jobs_of_an_owner_are_listed() -> None:
    """``t.jobs`` works in an asynchronous block, too, and lets it end while the jobs wait."""
    app = App(jobs="tcp://127.0.0.1:1", sub="tcp://127.0.0.1:2")
    queue = app.job_queue("jobs", int)

    @app.subscribe("numbers")
    async def on_number(number: int) -> None:
        await queue.put(number)

    async def main() -> None:
        async with TestApp(app) as t:
            await t.publish("numbers", 5)
            assert [job.topic for job in t.jobs()] == ["jobs"]

    run(main)
