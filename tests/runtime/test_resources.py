"""Resources of a running app: opened before the sockets, and closed after the drain in every case."""

from __future__ import annotations

import asyncio
import gc
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import Clock

from tests.support import Child
from zroute import App, Envelope, Routes, as_awaitable
from zroute.awaiting import within
from zroute.errors import UsageError
from zroute.testing import TestApp, UnfinishedError

REACTORS = pytest.mark.parametrize("reactor_kind", ["twisted", "asyncio"])


class Settings:
    """The first resource to open."""


class Database:
    """The second resource to open."""


class Cache:
    """The last resource to open."""


def with_three(app: App, events: list[str]) -> None:
    """Return an app with three dependent resources; ``events`` records opening and closing."""

    @app.resource
    async def cache(database: Database) -> AsyncIterator[Cache]:
        events.append("cache opens")
        yield Cache()
        events.append("cache closes")

    @app.resource
    def database(settings: Settings) -> Iterator[Database]:
        events.append("database opens")
        yield Database()
        events.append("database closes")

    @app.resource
    async def settings() -> AsyncIterator[Settings]:
        events.append("settings opens")
        yield Settings()
        events.append("settings closes")


OPENED = ["settings opens", "database opens", "cache opens"]
CLOSED = ["cache closes", "database closes", "settings closes"]


# -- order -----------------------------------------------------------------------------------------------


@REACTORS
def test_resources_open_before_everything_and_close_after_it(reactor_kind: Any) -> None:
    """Resources open first and close last, in reverse order, and all functions get the same objects."""
    app, events, seen = App(), list[str](), list[object]()
    with_three(app, events)

    @app.on_startup
    def start(database: Database) -> None:
        events.append("start up")
        seen.append(database)

    @app.subscribe("a")
    async def handle(message: int, database: Database, settings: Settings) -> None:
        await as_awaitable(gate)
        events.append("handled")
        seen.append(database)

    @app.on_shutdown
    async def stop(database: Database, cache: Cache) -> None:
        events.append("shut down")
        seen.append(database)

    gate: Deferred[None] = Deferred()
    with TestApp(app, reactor=reactor_kind) as t:
        assert events == [*OPENED, "start up"]
        t.publish("a", 1)
        t._running.callLater(1, gate.callback, None)
    assert events == [*OPENED, "start up", "handled", "shut down", *CLOSED]
    assert len(set(map(id, seen))) == 1


@REACTORS
def test_everyone_gets_the_object_by_its_type(reactor_kind: Any) -> None:
    """Handlers of all kinds, timers, generators, publishers and hooks get the resource by its type."""
    app, got = App(), dict[str, set[Any]]()

    def note(who: str, database: Database) -> None:
        got.setdefault(who, set()).add(database)

    @app.resource
    def database() -> Iterator[Database]:
        yield Database()

    @app.subscribe("a.{n}")
    def plain(message: int, database: Database, n: int) -> None:
        note("plain", database)

    @app.subscribe("a.{n}")
    async def asynchronous(database: Database, envelope: Envelope) -> None:
        note("async", database)

    @app.publisher("out.derived")
    @app.subscribe("a.*")
    def generator(message: int, database: Database) -> Iterator[int]:
        note("generator", database)
        yield message

    @app.subscribe("a.*", thread=True)
    def threaded(message: int, database: Database) -> None:
        note("thread", database)

    @app.subscribe("a.*")
    def keyword(message: int, *, database: Database) -> None:
        note("keyword", database)

    @app.subscribe("bad")
    def failing(message: int) -> None:
        raise ValueError(message)

    @app.every(1.0)
    def timer(database: Database) -> None:
        note("timer", database)

    @app.publisher("out.timer", every=1.0)
    async def publishing(database: Database) -> int:
        note("publisher", database)
        return 1

    @app.publisher("out.once")
    def yielding(database: Database) -> Iterator[int]:
        note("yielding", database)
        yield 1

    @app.on_error(ValueError)
    async def failed(error: ValueError, envelope: Envelope, database: Database) -> None:
        note("on_error", database)

    @app.on_unrouted
    def lost(envelope: Envelope, database: Database) -> None:
        note("on_unrouted", database)

    with TestApp(app, reactor=reactor_kind) as t:
        t.publish("a.1", 1)
        t.publish("bad", 1)
        t.publish("badly", 1)  # it passes the socket's filter, but matches no pattern
        t.advance(1)
    assert set(got) == {
        *("plain", "async", "generator", "thread", "keyword"),
        *("timer", "publisher", "yielding", "on_error", "on_unrouted"),
    }
    assert len({database for seen in got.values() for database in seen}) == 1


def test_a_group_that_is_included_twice_opens_its_resource_once() -> None:
    """A group with two prefixes opens its resource once."""
    app, desk, opened = App(), Routes(), list[Settings]()

    @desk.resource
    def settings() -> Iterator[Settings]:
        opened.append(Settings())
        yield opened[-1]

    @desk.subscribe("a")
    def handle(message: int, settings: Settings) -> Settings:
        return settings

    app.include(desk, prefix="eu")
    app.include(desk, prefix="us")
    with TestApp(app) as t:
        t.publish("eu.a", 1)
        t.publish("us.a", 1)
        assert t.results(handle) == [opened[0], opened[0]]
    assert len(opened) == 1


@REACTORS
def test_a_restart_opens_anew(reactor_kind: Any) -> None:
    """The second run of an app gets new objects."""
    app, events, seen = App(), list[str](), list[Any]()
    with_three(app, events)

    @app.subscribe("a")
    def handle(message: int, cache: Cache) -> None:
        seen.append(cache)

    for _ in range(2):
        with TestApp(app, reactor=reactor_kind) as t:
            t.publish("a", 1)
    assert events == [*OPENED, *CLOSED] * 2
    assert seen[0] is not seen[1]


def test_under_asyncio_a_resource_opens_and_closes_in_one_task() -> None:
    """Task groups and cancel scopes around the yield work, because one task opens and closes."""
    app, tasks, ended = App(), list[Any](), list[str]()

    @app.resource
    async def database() -> AsyncIterator[Database]:
        tasks.append(asyncio.current_task())
        async with asyncio.TaskGroup() as group:
            background = group.create_task(asyncio.sleep(3600))
            async with asyncio.timeout(7200):
                yield Database()
            background.cancel()
        tasks.append(asyncio.current_task())
        ended.append("closed")

    with TestApp(app, reactor="asyncio") as t:
        t.advance(60)
        assert not ended
    assert ended == ["closed"]
    assert tasks[0] is tasks[1] is not None


# -- failures --------------------------------------------------------------------------------------------


@REACTORS
@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_fails_to_open_closes_those_before_it_and_ends_the_start(reactor_kind: Any, is_async: bool) -> None:
    """If a resource fails to open, the earlier ones close in reverse and no hook runs."""
    app, events = App(), list[str]()
    with_three(app, events)

    class Last:
        """A resource that fails to open."""

    if is_async:

        @app.resource
        async def last(cache: Cache) -> AsyncIterator[Last]:
            raise OSError("no disk")
            yield Last()

    else:

        @app.resource
        def last(cache: Cache) -> Iterator[Last]:
            raise OSError("no disk")
            yield Last()

    app.on_startup(lambda: events.append("start up"))
    app.on_shutdown(lambda: events.append("shut down"))
    with pytest.raises(OSError, match="no disk") as caught, TestApp(app, reactor=reactor_kind):
        raise AssertionError("it has not started")
    assert events == [*OPENED, *CLOSED]
    assert "while opening the resource " in caught.value.__notes__[0]
    assert "last() at tests/runtime/test_resources.py:" in caught.value.__notes__[0]


@REACTORS
def test_one_that_fails_to_close_does_not_keep_the_others_from_closing(
    reactor_kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in closing is logged with its line and counted, and the other resources close."""
    app, events = App(), list[str]()
    with_three(app, events)

    class Last:
        """A resource that fails to close."""

    class Other:
        """A resource that raises SystemExit when it closes."""

    @app.resource
    def last(cache: Cache) -> Iterator[Last]:
        yield Last()
        raise OSError("no disk")

    @app.resource
    async def other(last: Last) -> AsyncIterator[Other]:
        yield Other()
        raise SystemExit(3)

    with TestApp(app, reactor=reactor_kind, raise_errors=False) as t:
        pass
    assert events == [*OPENED, *CLOSED]
    assert [type(error) for error in t.failures] == [SystemExit, OSError]
    assert (app.stats.hook_errors, t.exit_code) == (1, 3)
    assert "the resource last() at tests/runtime/test_resources.py:" in caplog.text


@REACTORS
@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_never_yields_ends_the_start(reactor_kind: Any, is_async: bool) -> None:
    """A generator that ends before its yield fails the start with an explanation."""
    app = App()

    def plain() -> Iterator[Database]:
        if app.loop:
            return
        yield Database()

    async def asynchronous() -> AsyncIterator[Database]:
        if app.loop:
            return
        yield Database()

    app.resource(asynchronous if is_async else plain)
    with (
        pytest.raises(
            RuntimeError, match="a resource must yield its object exactly once, but this resource ended without a yield"
        ),
        TestApp(app, reactor=reactor_kind),
    ):
        pass


@REACTORS
@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_yields_twice_is_told_and_closed(reactor_kind: Any, is_async: bool) -> None:
    """A second yield closes the generator at once, and the error explains it."""
    app, closed = App(), list[str]()

    def plain() -> Iterator[Database]:
        try:
            yield Database()
            yield Database()
        finally:
            closed.append("closed")

    async def asynchronous() -> AsyncIterator[Database]:
        try:
            yield Database()
            yield Database()
        finally:
            closed.append("closed")

    app.resource(asynchronous if is_async else plain)
    with (
        pytest.raises(RuntimeError, match="yielded twice"),
        TestApp(app, reactor=reactor_kind),
    ):
        pass
    assert closed == ["closed"]


# -- slow closing -----------------------------------------------------------------------------------------


@REACTORS
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_close_that_takes_too_long_is_named_and_the_others_close(
    reactor_kind: Any, stubborn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A resource that exceeds the drain timeout is cancelled and named, and the stop continues."""
    app, events, never = App(), list[str](), list[Deferred[None]]()
    with_three(app, events)

    class Slow:
        """A resource that never closes."""

    @app.resource
    async def slow(cache: Cache) -> AsyncIterator[Slow]:
        yield Slow()
        while True:
            never.append(Deferred())
            try:
                await as_awaitable(never[-1])
            except (CancelledError, asyncio.CancelledError):
                events.append("cancelled")
                if not stubborn:
                    raise

    with pytest.raises(UnfinishedError, match=r"slow\(\): 1"), TestApp(app, reactor=reactor_kind):
        pass
    assert events == [*OPENED, "cancelled", *CLOSED]
    never.clear()  # it keeps the stubborn task
    gc.collect()  # asyncio logs an error about this task when it is collected: not later, in another test
    destroyed = [record for record in caplog.records if "Task was destroyed" in record.getMessage()]
    assert len(destroyed) == (stubborn and reactor_kind == "asyncio")


# -- replaced resources -----------------------------------------------------------------------------------


def test_a_replaced_resource_does_not_open_nor_what_only_it_needed() -> None:
    """With a fake Database, neither the real one nor its own settings open."""
    app, events = App(), list[str]()
    with_three(app, events)
    fake = object()

    @app.subscribe("a")
    def handle(message: int, database: Database, cache: Cache) -> object:
        return database

    with TestApp(app, {Database: fake}) as t:
        assert events == ["cache opens"]
        t.publish("a", 1)
        assert t.results(handle) == [fake]
    assert events == ["cache opens", "cache closes"]


def test_what_somebody_else_needs_is_opened_all_the_same() -> None:
    """Settings that a handler takes open even if the database that also needs them is replaced."""
    app, events = App(), list[str]()
    with_three(app, events)

    @app.subscribe("a")
    def handle(message: int, settings: Settings) -> None: ...

    with TestApp(app, {Database: Database(), Cache: Cache()}):
        assert events == ["settings opens"]


def test_what_is_attached_may_need_only_what_is_open() -> None:
    """An attached handler gets open resources; the error for an unopened one names the fix."""
    app, events = App(), list[str]()
    with_three(app, events)
    fake = object()

    def handle(message: int, database: Database) -> object:
        return database

    def needy(message: int, settings: Settings) -> None: ...

    with TestApp(app, {Database: fake}) as t:
        app.attach("a", handle)
        t.publish("a", 1)
        assert t.results(handle) == [fake]
        with pytest.raises(
            UsageError, match=r"Settings, .* Replace Settings too, as in TestApp\(app, \{Settings: fake\}\)"
        ):
            app.attach("b", needy)


# -- as a program ------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio
from collections.abc import AsyncIterator, Iterator
from zroute import App, as_awaitable
from twisted.internet.defer import Deferred

class Settings: pass
class Database: pass

app = App(name="desk")

@app.resource
def settings() -> Iterator[Settings]:
    print("settings open")
    yield Settings()
    print("settings closed")

@app.resource
async def database(settings: Settings) -> AsyncIterator[Database]:
    {opening}
    print("database open")
    yield Database()
    {closing}
    print("database closed")

@app.subscribe("a")
def handle(message: int, database: Database) -> None:
    print("handled")

@app.publisher("a", every=0.01)
def beat() -> int:
    return 1
"""


def program(folder: Path, kind: str, *more: str, opening: str = "", closing: str = "") -> Child:
    """Run the app above with ``zroute run``."""
    (folder / "desk.py").write_text(PROGRAM.format(opening=opening or "pass", closing=closing or "pass"))
    options = () if kind == "epoll" else ("--reactor", kind)
    return Child("-m", "zroute", "run", "--app-dir", str(folder), "desk", *options, *more)


RUN_REACTORS = pytest.mark.parametrize("kind", ["epoll", "asyncio"])


@RUN_REACTORS
def test_as_a_program_it_opens_and_closes_in_order(kind: str, tmp_path: Path) -> None:
    """zroute run opens, handles, closes, and exits with 0."""
    with program(tmp_path, kind) as child:
        child.line_with("handled")
        assert child.end(signal.SIGTERM) == 0, child.err
    assert [line for line in child.out if line != "handled"] == [
        "settings open",
        "database open",
        "database closed",
        "settings closed",
    ]


@RUN_REACTORS
def test_as_a_program_that_can_not_open_it_exits_with_1_and_names_it(kind: str, tmp_path: Path) -> None:
    """The log names the failed resource and its line, open ones close, and the exit code is 1."""
    with program(tmp_path, kind, opening="raise OSError('no disk')") as child:
        assert child.end(None) == 1
    assert child.out == ["settings open", "settings closed"]
    said = "\n".join(child.err)
    assert "desk did not start: no disk" in said
    assert re.search(r"while opening the resource database\(\) at .*desk.py:\d+", said)
    frames = [line for line in child.err if line.startswith('  File "')]
    assert len(frames) == 1, frames
    assert "desk.py" in frames[0], frames


@RUN_REACTORS
def test_as_a_program_that_has_a_last_word_it_says_just_that(kind: str, tmp_path: Path) -> None:
    """SystemExit with a text logs one line without a traceback, as in any script."""
    with program(tmp_path, kind, opening="raise SystemExit('DESK_LIMIT is not set')") as child:
        assert child.end(None) == 1
    assert child.out == ["settings open", "settings closed"]
    assert any(line.endswith("desk did not start: DESK_LIMIT is not set") for line in child.err)
    assert not any("Traceback" in line for line in child.err), child.err


@RUN_REACTORS
def test_as_a_program_that_can_not_close_in_time_it_exits_with_75(kind: str, tmp_path: Path) -> None:
    """A resource that exceeds the drain timeout is named, the others close, and the exit code is 75."""
    with program(tmp_path, kind, "--drain-timeout", "50ms", closing="await as_awaitable(Deferred())") as child:
        child.line_with("handled")
        assert child.end() == 75
    assert child.out[-1] == "settings closed"
    assert any("abandoned after the drain timeout: database(): 1" in line for line in child.err)


@RUN_REACTORS
def test_as_a_program_that_is_stopped_while_it_opens(kind: str, tmp_path: Path) -> None:
    """Ctrl-C during a slow opening closes the open resources and exits with 0."""
    waiting = "print('waiting'); await as_awaitable(Deferred())"
    with program(tmp_path, kind, opening=waiting) as child:
        child.line_with("waiting")
        assert child.end() == 0, child.err
    assert child.out == ["settings open", "waiting", "settings closed"]
    assert any("was stopped before the app had started" in line for line in child.err)


@pytest.mark.parametrize(
    ("kind", "wait", "told"),
    [
        ("epoll", "await asyncio.sleep(0.01)", "zroute run --reactor asyncio"),
        ("asyncio", "await Deferred()", "await zroute.as_awaitable(deferred)"),
    ],
)
def test_as_a_program_the_wrong_kind_of_await_says_what_to_do(kind: str, wait: str, told: str, tmp_path: Path) -> None:
    """An await of the wrong kind in a resource ends the start with an explanation."""
    with program(tmp_path, kind, opening=wait) as child:
        assert child.end(None) == 1
    assert any("did not start" in line and told in line for line in child.err)


CLEANING = """
    try:
        print("opening")
        await asyncio.sleep(1000)
    finally:
        for _ in range(10):
            await asyncio.sleep(0)
        print("cleaned")
"""


def test_under_asyncio_a_start_that_is_stopped_waits_for_what_cleans_up(tmp_path: Path) -> None:
    """Resources close after a cancelled task has cleaned up."""
    with program(tmp_path, "asyncio", opening=CLEANING) as child:
        child.line_with("opening")
        assert child.end() == 0, child.err
    assert child.out == ["settings open", "opening", "cleaned", "settings closed"]


# -- within() ---------------------------------------------------------------------------------------------


def test_what_can_not_be_cancelled_is_not_waited_for() -> None:
    """within() cancels after its time, and stops waiting a second later."""
    clock, results = Clock(), list[Any]()

    async def stubborn() -> None:
        while True:
            with suppress(CancelledError):
                await Deferred()

    quick, slow, tidy = Deferred[str](), Deferred[str](), Deferred[str](lambda it: it.callback("tidied up"))
    for one in (quick, slow, tidy, Deferred.fromCoroutine(stubborn())):
        within(5, one, clock).addBoth(lambda result: results.append(getattr(result, "type", result)))
    quick.callback("in time")
    clock.advance(5)
    assert results == ["in time", TimeoutError, "tidied up"]
    clock.advance(1)
    assert results == ["in time", TimeoutError, "tidied up", TimeoutError]
    assert clock.getDelayedCalls() == []
