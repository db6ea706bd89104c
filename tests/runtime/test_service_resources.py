"""Resources of a service on a real reactor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from tests.running import Mailbox, reactor, running, subscribed
from tests.runtime.test_resources import CLOSED, OPENED, Cache, Database, Settings, with_three
from zroute import App, as_awaitable
from zroute.errors import NotRunningError
from zroute.runtime.service import AppService


@pytest_twisted.ensureDeferred
async def test_the_sockets_open_after_the_resources_and_are_still_open_when_the_shutdown_runs() -> None:
    """Messages arrive only after resources are open; publishing in a resource is an error."""
    app, transports, refused = App(), list[Any](), list[str]()

    @app.resource
    def settings() -> Iterator[Settings]:
        transports.append(service.transport)
        with pytest.raises(NotRunningError) as caught:
            app.publish("a", 1)
        refused.append(str(caught.value))
        yield Settings()
        with pytest.raises(NotRunningError):
            app.publish("a", 1)

    app.on_shutdown(lambda: app.publish("a", 1))
    service = AppService(app.compile(), reactor)
    service.startService()
    await service.started
    assert transports == [None]
    assert service.transport is not None
    assert (await service.stopService()).complete
    assert app.stats.hook_errors == 0
    assert "on_startup" in refused[0]


@pytest_twisted.ensureDeferred
async def test_a_restarted_service_opens_anew() -> None:
    """Over real sockets, the handler of the second run gets the second object."""
    app, events, box = App(), list[str](), Mailbox[Cache]()
    with_three(app, events)

    @app.subscribe("a")
    def handle(message: int, cache: Cache) -> None:
        box.put(cache)

    service = AppService(app.compile(), reactor)
    for number in (1, 2):
        service.startService()
        await service.started
        await subscribed(service, b"a")
        app.publish("a", 1)
        await box.until(number)
        assert (await service.stopService()).complete
    assert events == [*OPENED, *CLOSED] * 2
    assert box.items[0] is not box.items[1]


@pytest_twisted.ensureDeferred
async def test_what_is_still_closing_after_the_drain_timeout_is_told_by_the_stop() -> None:
    """StopReport names unfinished resources like handlers."""
    app = App()

    @app.resource
    async def slow() -> AsyncIterator[Database]:
        yield Database()
        await as_awaitable(Deferred())

    service = AppService(app.compile(), reactor, drain_timeout=0.01)
    service.startService()
    await service.started
    assert (await service.stopService()).unfinished == {"slow()": 1}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("swallows", [False, True])
async def test_a_start_that_is_stopped_while_a_resource_opens(swallows: bool) -> None:
    """A stop cancels an opening resource, waits for its cleanup, then closes the others.

    A resource that opens despite the cancellation is closed like the others.
    """
    app, events = App(), list[str]()
    with_three(app, events)

    class Last:
        """A resource that opens slowly."""

    @app.resource
    async def last(cache: Cache) -> AsyncIterator[Last]:
        opening.callback(None)
        try:
            await as_awaitable(Deferred())
        except (CancelledError, asyncio.CancelledError):
            for _ in range(3):
                await as_awaitable(deferLater(reactor, 0))
            events.append("cleaned")
            if not swallows:
                raise
        yield Last()
        events.append("last closes")

    opening = Deferred[None]()
    app.on_startup(lambda: events.append("start up"))
    service = AppService(app.compile(), reactor)
    service.startService()
    outcome: list[Any] = []
    service.started.addBoth(outcome.append)
    await opening
    assert (await service.stopService()).complete
    assert events == [*OPENED, "cleaned", *(["last closes"] if swallows else []), *CLOSED]
    assert swallows or outcome[0].check(CancelledError)


@pytest_twisted.ensureDeferred
async def test_an_app_with_resources_runs_in_a_twisted_program() -> None:
    """The handlers of an embedded app get its resources."""
    app, events, box = App(), list[str](), Mailbox[Any]()
    with_three(app, events)

    @app.subscribe("a")
    async def handle(message: int, cache: Cache) -> None:
        box.put(cache)

    async with running(app):
        app.publish("a", 1)
        await box.until(1)
    assert events == [*OPENED, *CLOSED]
