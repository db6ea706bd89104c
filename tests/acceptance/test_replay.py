"""The past of a subscription: apps with since=, and publishers with a history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_twisted

from tests.acceptance.test_recovery import Loss
from tests.running import Mailbox, running, turns
from tests.support import free_endpoint, sized
from zroute import App, Envelope, History

LONG = History(messages=100_000)


class Reader:
    """An app that replays, and the messages that it handles."""

    def __init__(self, address: Any, since: Any, pattern: str = "orders.{key}", **options: Any) -> None:
        self.app = App(sub=address, codec="json", name="reader", **options)
        self.got: Mailbox[int] = Mailbox()
        self.origins: list[str] = []

        @self.app.subscribe(pattern, since=since)
        def handle(number: int, envelope: Envelope) -> None:
            self.origins.append(envelope.origin)
            self.got.put(number)

    @property
    def stats(self) -> Any:
        """The counters of the app."""
        return self.app.stats

    def balances(self) -> bool:
        """Return True if each received message was counted once."""
        stats = self.stats
        return bool(stats.received == stats.routed + stats.unrouted + stats.malformed + stats.duplicate + stats.control)


@asynccontextmanager
async def feed(history: History | None = LONG, **options: Any) -> AsyncIterator[tuple[str, Any, Any, Loss]]:
    """Run a publisher; yield its address, its publication, its app and the network."""
    address = free_endpoint()
    app = App(pub=f"bind:{address}", codec="json", name="feed", **options)
    orders = app.publisher("orders.{key}", int, history=history)
    async with running(app) as service:
        yield address, orders, app, Loss(service)


def publish(orders: Any, *numbers: int) -> None:
    """Publish numbers on three topics in turn."""
    for number in numbers:
        orders.publish(number, key="abc"[number % 3])


@pytest.mark.parametrize("since", ["all", timedelta(hours=1), datetime(2020, 1, 1, tzinfo=UTC)])
@pytest_twisted.ensureDeferred
async def test_a_late_subscriber_handles_the_past_and_then_live_messages(since: Any) -> None:
    """All kept messages arrive first, in order and once; ready(state=True) returns when they were handled."""
    many = sized(20_000, 3_000)
    async with feed() as (address, orders, _, _):
        publish(orders, *range(many))
        reader = Reader(address, since)
        async with running(reader.app):
            live = many

            def joined() -> bool:
                """Publish between the subscription and the end of the past."""
                nonlocal live
                publish(orders, live)
                live += 1
                return bool(reader.stats.replayed >= many // 2)

            await turns(joined)
            await reader.app.ready(1, state=True)
            assert reader.got.items[:many] == list(range(many))
            publish(orders, *range(live, live + 100))
            assert await reader.got.until(live + 100) == list(range(live + 100))
            assert reader.origins[:many] == ["replayed"] * many
            assert reader.origins[-100:] == ["live"] * 100
            assert reader.stats.replayed == reader.origins.count("replayed")
            assert (reader.stats.lost, reader.stats.unknown_losses, reader.stats.recovered) == (0, 0, 0)
            await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_the_past_begins_where_since_says() -> None:
    """ "last" is the latest message, and a time leaves out what was sent before it."""
    async with feed() as (address, orders, _, _):
        publish(orders, *range(10))
        middle = datetime.now(UTC)
        publish(orders, *range(10, 20))
        never, last = datetime.max.replace(tzinfo=UTC), 19
        for since, first in (("last", 19), (middle, 10), (never, 22)):
            reader = Reader(address, since)
            async with running(reader.app):
                await reader.app.ready(1, state=True)
                assert reader.got.items == list(range(first, last + 1))
                last += 1
                publish(orders, last)
                assert await reader.got.until(last + 1 - first) == list(range(first, last + 1))
