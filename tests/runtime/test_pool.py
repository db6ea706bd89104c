"""The size of the thread pool: each handler in threads gets the threads that ``max_in_flight`` promises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.python.threadpool import ThreadPool

from tests.support import PATIENCE
from zroute import App
from zroute.errors import SignatureError
from zroute.runtime.service import AppService
from zroute.testing import TestApp

MANY = 20  # more than the ten threads of Twisted's pool


def meeting() -> Callable[[], object]:
    """Return a function that ends only when `MANY` threads are in it at the same time."""
    barrier = threading.Barrier(MANY)
    return lambda: barrier.wait(PATIENCE)


@pytest.mark.parametrize("kind", ["work", "subscribe", "attach"])
def test_max_in_flight_calls_run_at_the_same_time(kind: str) -> None:
    """All kinds of handlers in threads get more threads than the pool has by default."""
    app, meet, met = App(), meeting(), list[int]()
    app.job_queue("a.{n}", int)

    def run(number: int) -> None:
        meet()
        met.append(number)

    if kind == "work":
        app.work("a.{n}", max_in_flight=MANY)(run)
    elif kind == "subscribe":
        app.subscribe("a.{n}", thread=True, max_in_flight=MANY, ordered=False)(run)
    with TestApp(app) as t:
        if kind == "attach":
            app.attach("a.{n}", run, thread=True, max_in_flight=MANY, ordered=False)
        if kind == "work":
            t.put("a.b", *range(MANY))
        else:
            t.publish("a.b", *range(MANY))
    assert sorted(met) == list(range(MANY))


def test_the_pool_of_a_program_on_asyncio_grows_too() -> None:
    """``app.running()`` has a reactor of its own, so its pool may grow."""
    app, meet = App(), meeting()
    queue = app.job_queue("a", int)

    @app.work("a", max_in_flight=MANY)
    def run(number: int) -> None:
        meet()

    async def main() -> None:
        async with app.running():
            for number in range(MANY):
                await queue.put(number)

    asyncio.run(main())
    assert queue.stats.done == MANY


@pytest_twisted.ensureDeferred
async def test_the_pool_of_another_program_is_not_changed(caplog: pytest.LogCaptureFixture) -> None:
    """A program that runs the reactor decides about its threads: a warning names the handler and the remedy."""
    app, pool = App(), reactor.getThreadPool()  # type: ignore[attr-defined]
    most = pool.max
    app.subscribe("a", thread=True, max_in_flight=most + 1)(_job)
    app.subscribe("b", thread=True, max_in_flight=most)(_other)
    service = AppService(app.compile(), reactor)
    service.startService()
    await service.started
    await service.stopService()
    assert pool.max == most
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("_job() at ")
    assert f"max_in_flight={most + 1} exceeds the {most} threads of the reactor's thread pool" in line
    assert f"call reactor.suggestThreadPoolSize({most + 1})" in line


def test_a_handler_in_threads_has_another_default() -> None:
    """A handler in threads runs ten calls at a time unless it says otherwise, so that no flood starts 100 threads."""
    app = App()
    app.subscribe("a", thread=True)(_job)
    app.reply("a", thread=True)(_other)
    app.subscribe("a")(_other)
    app.work("a")(_job)
    routes = app.compile().parts.handlers
    assert sorted((route.route.kind, route.options.max_in_flight) for route in routes) == [
        ("reply", 10),
        ("subscribe", 10),
        ("subscribe", 100),
        ("work", 4),
    ]
    with pytest.raises(SignatureError, match="max_in_flight=0"):
        app.subscribe("b", max_in_flight=0)(_job)


def test_an_app_without_threads_leaves_the_pool_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only handlers in threads enlarge the pool."""
    made = list[Any]()
    monkeypatch.setattr(ThreadPool, "adjustPoolsize", lambda self, **sizes: made.append(sizes))
    app = App()
    app.subscribe("a")(_job)
    with TestApp(app):
        pass
    assert not made


def _job(number: int) -> None: ...


def _other(number: int) -> None: ...
