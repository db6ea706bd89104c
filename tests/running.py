"""Run apps on the reactor of the tests, over real sockets, and await events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.support import PATIENCE
from zroute import App
from zroute.runtime.service import AppService

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A list that handlers fill; ``await box.until(3)`` waits for the third item."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def put(self, item: T) -> None:
        """Add an item."""
        self.items.append(item)
        for number, deferred in tuple(self._waiting):
            if len(self.items) >= number and not deferred.called:
                deferred.callback(None)

    async def until(self, number: int) -> list[T]:
        """Wait for the item with that number and return all items."""
        if len(self.items) < number:
            deferred: Deferred[None] = Deferred()
            deferred.addTimeout(PATIENCE, reactor)
            self._waiting.append((number, deferred))
            await deferred
        return self.items


async def subscribed(service: AppService, *prefixes: bytes) -> None:
    """Wait until the app's publisher knows these subscriptions."""
    assert service.transport is not None
    pub = service.transport.pub
    assert pub is not None
    changed: Deferred[None] = Deferred()

    def look(*_: Any) -> None:
        if pub.subscriptions >= set(prefixes) and not changed.called:
            changed.callback(None)

    pub._on_change = look
    look()
    changed.addTimeout(PATIENCE, reactor)
    await changed


async def turns(done: Callable[[], object]) -> None:
    """Let the reactor turn until ``done()`` is true; for conditions without an event."""
    for _ in range(int(PATIENCE / 0.01)):
        if done():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError(f"the condition was still false after {PATIENCE:g} s")


@asynccontextmanager
async def running(app: App, **options: Any) -> AsyncIterator[AppService]:
    """Start ``app``, wait for its own subscriptions, and stop it at the end."""
    service = AppService(app.compile(), reactor, **options)
    service.startService()
    try:
        await service.started
        looped = any(endpoint.address.startswith("inproc://") for endpoint in service.ends.pub)
        if looped and service.transport is not None:
            await subscribed(service, *service._run._table.subscriptions)
        yield service
    finally:
        await service.stopService()


__all__ = ["Mailbox", "reactor", "running", "subscribed", "turns"]
