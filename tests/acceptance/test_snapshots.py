"""Snapshots over real sockets: late joiners, losses, reconnects, restarts, proxies and keys.

Each change contains the publisher's book, so that the subscriber compares its own book after every message.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.acceptance.test_ready_state import proxy
from tests.acceptance.test_recovery import Loss, is_message
from tests.keyed import Keys
from tests.running import Mailbox, reactor, running, turns
from tests.support import PATIENCE, free_endpoint, sized
from zroute import App, Coalesce, Envelope, Gap, History
from zroute.messages.control import Kind


@attrs.frozen
class Book:
    """The whole state of a symbol."""

    sizes: dict[str, int]


@attrs.frozen
class Delta:
    """A change, and the book that it makes."""

    price: str
    size: int
    book: dict[str, int]


class Feed:
    """A publisher with three books."""

    def __init__(self, address: str, *, history: History | None = None, **options: Any) -> None:
        self.books: dict[str, dict[str, int]] = {symbol: {"0": 1} for symbol in "ABC"}
        self.app = App(pub=address, name="feed", codec="json", **options)
        self.calls = 0
        self.random = random.Random(3)
        self.deltas = self.app.publisher(
            "book.{symbol}",
            Book | Delta,
            snapshot=self.full,
            topics=lambda: [{"symbol": symbol} for symbol in self.books],
            history=history,
        )

    def full(self, symbol: str) -> Book:
        """Return the present state."""
        self.calls += 1
        return Book(dict(self.books[symbol]))

    async def change(self, many: int) -> None:
        """Publish changes, a few in each turn of the reactor."""
        for number in range(many):
            symbol, price = self.random.choice("ABC"), str(self.random.randrange(5))
            book = self.books[symbol]
            book[price] = self.random.randrange(1000)
            self.deltas.publish(Delta(price, book[price], dict(book)), symbol=symbol)
            if number % 5 == 0:
                await deferLater(reactor, 0.001)


class Desk:
    """A subscriber, written as the documentation says."""

    def __init__(self, address: str, pattern: str = "book.{symbol}", **options: Any) -> None:
        self.app = App(sub=address, name="desk", codec="json", **options)
        self.books: dict[str, dict[str, int]] = {}
        self.sources: dict[str, str | None] = {}
        self.changes: Mailbox[str] = Mailbox()
        self.snapshots = self.wrong = self.gaps = 0
        self.app.add_route(self.on_change, pattern)
        self.app.on_gap(self.forget)

    def on_change(self, change: Book | Delta, symbol: str, envelope: Envelope) -> None:
        """Apply a message."""
        if isinstance(change, Book):
            assert envelope.origin == "snapshot"
            self.snapshots += 1
            self.books[symbol], self.sources[symbol] = dict(change.sizes), envelope.publisher
        elif self.sources.get(symbol) == envelope.publisher:
            self.books[symbol][change.price] = change.size
            self.wrong += self.books[symbol] != change.book
            self.changes.put(symbol)

    def forget(self, gap: Gap) -> None:
        """Forget all books of a publisher."""
        self.gaps += 1
        for symbol in [symbol for symbol, source in self.sources.items() if source == gap.publisher]:
            del self.books[symbol], self.sources[symbol]

    async def follows(self, feed: Feed) -> None:
        """Wait until all books are those of the publisher; none was wrong on the way."""
        await turns(lambda: self.books == feed.books)
        assert self.wrong == 0
        stats = self.app.stats
        assert stats.received == stats.routed + stats.unrouted + stats.malformed + stats.duplicate + stats.control


@pytest.mark.parametrize("options", [{}, {"overflow": "wait"}, {"coalesce": Coalesce(seconds=0.005)}])
@pytest_twisted.ensureDeferred
async def test_a_late_subscriber_has_all_books_when_it_is_ready(options: dict[str, Any]) -> None:
    """ready(state=True) waits for the snapshots; after that, each change makes the publisher's book."""
    address = free_endpoint()
    feed = Feed(f"bind:{address}", **options)
    async with running(feed.app):
        await feed.change(100)
        desk, other = Desk(address), Desk(address, "*.{symbol}")
        async with running(desk.app), running(other.app):
            changing = feed.change(200)
            for each in (desk, other):
                await each.app.ready(1, state=True, timeout=PATIENCE)
                assert set(each.books) == {"A", "B", "C"}
                assert each.snapshots == 3
            await changing
            await desk.follows(feed)
            await other.follows(feed)


@pytest.mark.parametrize("history", [None, History(messages=3), History(messages=10_000)])
@pytest_twisted.ensureDeferred
async def test_losses_never_make_a_wrong_book(history: History | None) -> None:
    """Frames are lost at random; lost messages that do not come back cause new snapshots."""
    address, chance = free_endpoint(), random.Random(5)
    feed, desk = Feed(f"bind:{address}", history=history), Desk(address, recover=history is not None)
    async with running(feed.app) as service, running(desk.app):
        await desk.app.ready(1, state=True, timeout=PATIENCE)
        network = Loss(service)
        network.drops = lambda frame, kind: kind is not Kind.JOIN and chance.random() < 0.03
        await feed.change(sized(3000, 600))
        network.drops = lambda frame, kind: False
        await feed.change(20)
        await desk.follows(feed)
        if history is None:
            assert desk.gaps > 1
            assert desk.snapshots > 3
        assert feed.app.stats.snapshots >= desk.snapshots


@pytest_twisted.ensureDeferred
async def test_a_lost_last_message_brings_snapshots() -> None:
    """Nothing follows the lost message: a beat shows the loss, and ready(state=True) waits for the new snapshots."""
    address = free_endpoint()
    feed, desk = Feed(f"bind:{address}"), Desk(address)
    async with running(feed.app) as service, running(desk.app):
        await desk.app.ready(1, state=True, timeout=PATIENCE)
        network = Loss(service, lambda frame, kind: is_message(kind))
        await feed.change(1)
        network.drops = lambda frame, kind: False
        await turns(lambda: desk.gaps)
        await desk.app.ready(1, state=True, timeout=PATIENCE)
        assert desk.books == feed.books
        assert desk.snapshots == 6


@pytest_twisted.ensureDeferred
async def test_lost_snapshots_are_requested_again() -> None:
    """Snapshots and ends that are lost on the way count as lost, and arrive later."""
    address = free_endpoint()
    feed, desk = Feed(f"bind:{address}"), Desk(address)
    async with running(feed.app) as service:
        kept: list[bytes] = []

        def drops(frame: bytes, kind: Kind) -> bool:
            if kind is Kind.KEPT:
                kept.append(frame)
            return kind is Kind.KEPT and len(kept) <= 2

        Loss(service, drops)
        async with running(desk.app):
            await desk.follows(feed)
            assert desk.app.stats.lost == 2


@pytest_twisted.ensureDeferred
async def test_a_restarted_publisher_sends_its_own_state() -> None:
    """The books of a new run replace those of the old one; a change of the new run never meets an old book."""
    address = free_endpoint()
    desk = Desk(address)
    async with running(desk.app):
        for _ in range(3):
            feed = Feed(f"bind:{address}")
            async with running(feed.app):
                await feed.change(50)
                await desk.follows(feed)
                before = len(desk.changes.items)
                await feed.change(50)
                await desk.changes.until(before + 40)
                await desk.follows(feed)


@pytest_twisted.ensureDeferred
async def test_through_a_proxy_that_restarts(tmp_path: Path) -> None:
    """Behind a proxy, and after its restart in the middle of a stream, the books are right."""
    front, back = f"ipc://{tmp_path}/front", f"ipc://{tmp_path}/back"
    feed, desk = Feed(f"bind:{front}"), Desk(back)
    async with running(feed.app), running(desk.app):
        for _ in range(2):
            with proxy(front, back, lambda frame: True):
                await feed.change(10)
                await turns(lambda: set(desk.books) == {"A", "B", "C"})
                await feed.change(100)
                await desk.follows(feed)
            await feed.change(50)  # lost


@pytest_twisted.ensureDeferred
async def test_with_keys(tmp_path: Path) -> None:
    """Requests for snapshots pass with keys, too."""
    keys = Keys(tmp_path)
    keys.introduce("feed", "desk")
    address = free_endpoint()
    feed = Feed(f"bind:{address}", keys=keys.secret("feed"), peers=keys.peers("feed"))
    desk = Desk(f"feed@{address}", keys=keys.secret("desk"), peers=keys.peers("desk"))
    async with running(feed.app) as service, running(desk.app):
        await desk.app.ready(1, state=True, timeout=PATIENCE)
        network = Loss(service, lambda frame, kind: is_message(kind))
        await feed.change(5)
        network.drops = lambda frame, kind: False
        await feed.change(20)
        await turns(lambda: desk.snapshots == 6)
        await desk.follows(feed)


@pytest_twisted.ensureDeferred
async def test_a_function_that_fails_is_called_again_later(caplog: pytest.LogCaptureFixture) -> None:
    """The joiner counts a lost message and asks again; meanwhile everything else goes on.

    The log contains one traceback, with only the error of the function, not the end of the read that led to the call.
    """
    address = free_endpoint()
    feed = Feed(f"bind:{address}")
    fails = [True, True]

    def full(symbol: str) -> Book:
        if symbol == "B" and fails:
            fails.pop()
            raise ZeroDivisionError
        return Book(dict(feed.books[symbol]))

    assert feed.deltas.snapshot is not None
    feed.deltas.snapshot = attrs.evolve(feed.deltas.snapshot, make=full)
    desk = Desk(address)
    async with running(feed.app), running(desk.app):
        await desk.app.ready(1, state=True, timeout=PATIENCE)
        assert desk.app.stats.lost == 1
        await desk.follows(feed)
        assert feed.app.stats.snapshot_errors == 2
        assert desk.app.stats.lost == 2
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [(type(error), error.__context__) for error in errors if error] == [(ZeroDivisionError, None)]
