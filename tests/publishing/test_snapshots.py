"""Snapshots: order books over a network that loses, delays, doubles and cuts.

The publisher's and the subscriber's sides are the real ones, with their apps; only the network and the clock are
simulated. After each message, each book that a subscriber has is compared with the publisher's book of that moment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import pytest

from tests.lossy import LossyTransport, Network
from tests.support import sized
from zroute import App, Coalesce, Envelope, Gap, History
from zroute.errors import HighWaterMarkError
from zroute.publishing.counters import Counters
from zroute.publishing.publisher import Publisher
from zroute.receiving.recoveries import Recoveries
from zroute.receiving.session import SubscriberSession
from zroute.receiving.snapshots import SnapshotRequests
from zroute.receiving.stream_recovery import StreamRecovery
from zroute.receiving.tracker import Tracker
from zroute.runtime.run import Environment
from zroute.runtime.service import AppService
from zroute.testing.reactor import VirtualReactor
from zroute.testing.transport import Bus

ADDRESS = "tcp://127.0.0.1:1"


@attrs.frozen
class Book:
    """The whole state of a symbol, and the number of changes before."""

    number: int
    sizes: dict[str, int]


@attrs.frozen
class Delta:
    """A change of a symbol, and its number."""

    number: int
    price: str
    size: int


class NeverWholeError(AssertionError):
    """A subscriber has not received all books, although the network works again."""


class Feed:
    """The publisher's books, and all their states."""

    def __init__(self, world: World, run: int, symbols: list[str], **options: Any) -> None:
        self.world, self.symbols = world, symbols
        self.books: dict[str, dict[str, int]] = {symbol: {} for symbol in symbols}
        self.states: dict[str, list[dict[str, int]]] = {symbol: [{}] for symbol in symbols}
        self.app = App(pub=f"bind:{ADDRESS}", name=f"feed{run}", codec="json", **options)
        history = History(messages=world.random.choice([5, 50, 10_000])) if world.random.random() < 0.5 else None
        self.deltas = self.app.publisher(
            "book.{symbol}", Book | Delta, snapshot=self.full, topics=self.topics, history=history
        )
        self.service = world.start(self.app)

    def topics(self) -> list[dict[str, str]]:
        """Return the captures of all topics."""
        return [{"symbol": symbol} for symbol in self.symbols]

    def full(self, symbol: str) -> Book | None:
        """Return the present state."""
        return Book(len(self.states[symbol]) - 1, dict(self.books[symbol]))

    def change(self) -> None:
        """Change a book, and publish the change."""
        chance = self.world.random
        symbol, price, size = chance.choice(self.symbols), str(chance.randrange(5)), chance.randrange(1000)
        before = self.books[symbol].copy()
        self.books[symbol][price] = size
        self.states[symbol].append(dict(self.books[symbol]))
        try:
            self.deltas.publish(Delta(len(self.states[symbol]) - 1, price, size), symbol=symbol)
        except HighWaterMarkError:  # not published, so not changed
            self.books[symbol] = before
            self.states[symbol].pop()


class Desk:
    """A subscriber that follows all books, written as the documentation says."""

    def __init__(self, world: World, number: int, *, recover: bool) -> None:
        self.world = world
        self.books: dict[str, dict[str, int]] = {}
        self.sources: dict[str, str | None] = {}
        self.wrong = self.snapshots = 0
        pattern = world.random.choice(["book.{symbol}", "*.{symbol}", "book.{symbol}"])
        self.app = App(sub=ADDRESS, name=f"desk{number}", codec="json", recover=recover)
        self.app.add_route(self.on_change, pattern)
        self.app.on_gap(self.on_gap)
        self.service = world.start(self.app)

    def on_change(self, change: Book | Delta, symbol: str, envelope: Envelope) -> None:
        """Apply a message."""
        if isinstance(change, Book):
            self.snapshots += envelope.origin == "snapshot"
            self.books[symbol], self.sources[symbol] = dict(change.sizes), envelope.publisher
        elif self.sources.get(symbol) == envelope.publisher:
            self.books[symbol][change.price] = change.size
        else:
            return
        feed = next(feed for feed in self.world.feeds if feed.epoch == envelope.publisher)
        self.wrong += self.books[symbol] != feed.states[symbol][change.number]

    def on_gap(self, gap: Gap) -> None:
        """Forget all books of a publisher."""
        for symbol in [symbol for symbol, source in self.sources.items() if source == gap.publisher]:
            del self.sources[symbol], self.books[symbol]


class World:
    """One random run.

    ``waits`` says if messages wait at the publisher: coalesced, and for room.
    """

    def __init__(self, seed: int, *, paths: int = 1, waits: bool = False, recover: bool | None = None) -> None:
        self.network = Network(seed, paths=paths)
        self.random = self.network.random
        self.reactor = VirtualReactor(on_asyncio=False)
        self.began = time.time()
        self.transport = type("Transport", (LossyTransport,), {"network": self.network})
        self.waits, self.recover = waits, recover
        self.feeds: list[Any] = []
        self.desks: list[Desk] = []

    def start(self, app: App) -> AppService:
        """Start an app."""
        make = partial(self.transport, bus=Bus(), reactor=self.reactor, plan=app.compile())
        service = AppService(
            app.compile(),
            self.reactor,
            environment=Environment(make, False, wall=lambda: self.began + self.reactor.seconds()),
        )
        service.reports, service.owns_pool = False, True
        self.reactor.do(service.startService)
        return service

    def feed(self) -> None:
        """Start a publisher."""
        options: dict[str, Any] = {}
        if self.waits:
            options["coalesce"] = Coalesce(seconds=0.02, messages=self.random.choice([2, 5, 100]))
            options["overflow"] = self.random.choice(["wait", "drop"])
        feed: Any = Feed(self, len(self.feeds), ["A", "B", "C", "D"][: self.random.choice([1, 3, 4])], **options)
        feed.epoch = f"{feed.service._run._publisher.session.epoch:016x}"
        self.feeds.append(feed)

    def desk(self) -> None:
        """Start a subscriber."""
        recover = self.random.random() < 0.5 if self.recover is None else self.recover
        self.desks.append(Desk(self, len(self.desks), recover=recover))

    def stop(self, service: AppService) -> None:
        """Stop an app."""
        stopped: list[Any] = []
        self.reactor.do(lambda: service.stopService().addBoth(stopped.append))
        while not stopped and self.reactor.skip():
            self.network.deliver()

    def run(self, steps: int) -> tuple[int, int, int]:
        """Return the number of wrong books, of snapshots, and of losses."""
        chance, network = self.random, self.network
        self.feed()
        network.held = True
        network.loss = chance.choice([0, 0.05, 0.2])
        network.answer_loss = chance.choice([0, 0.3])
        network.room = chance.choice([3, 20, 10**6]) if self.waits else 10**6
        for _ in range(steps):
            if len(self.desks) < 3 and chance.random() < 0.1:
                self.desk()
            if chance.random() < 0.01:
                self.stop(self.feeds[-1].service)
                self.feed()
            for _ in range(chance.choice([0, 1, 2])):
                self.reactor.do(self.feeds[-1].change)
            for desk in self.desks:
                if chance.random() < 0.02:
                    self.reactor.do(lambda desk=desk: network.reconnect(desk.service.transport))
            self.reactor.do(lambda: network.deliver(lambda: chance.choice([0, 0, 1, 3])))
            self.reactor.advance_to(self.reactor.seconds() + chance.choice([0.0, 0.005, 0.1, 0.6]))
        network.loss = network.answer_loss = 0.0
        network.room = 10**9
        for _ in range(100):
            self.reactor.do(network.deliver)
            self.reactor.advance_to(self.reactor.seconds() + 1)
        truth = self.feeds[-1].books
        for desk in self.desks:
            if {symbol: desk.books.get(symbol) for symbol in truth} != truth:
                raise NeverWholeError
        # No frame was forged, so no account was set back, however late an answer came over a slow path.
        assert not any(desk.service.transport.corrected for desk in self.desks)  # type: ignore[union-attr]
        found = sum(desk.wrong for desk in self.desks), sum(desk.snapshots for desk in self.desks)
        lost = sum(desk.app.stats.lost for desk in self.desks)
        for service in [desk.service for desk in self.desks] + [self.feeds[-1].service]:
            self.stop(service)
        self.reactor.close()
        return *found, lost


CASES: dict[str, dict[str, Any]] = {
    "one path": {},
    "two paths": {"paths": 2},
    "messages wait": {"waits": True},
    "two paths, messages wait": {"paths": 2, "waits": True},
}


@pytest.mark.parametrize("case", CASES)
def test_books_equal_those_of_the_publisher_after_every_message(case: str) -> None:
    """Losses, late joins, reconnects, restarts, doubled frames and waiting messages never make a wrong book."""
    snapshots = lost = 0
    for seed in range(sized(30, 15)):
        wrong, made, gone = World(seed, **CASES[case]).run(60)
        assert wrong == 0, seed
        snapshots += made
        lost += gone
    assert snapshots > 100
    assert lost > 100


def _report_at_once(recoveries: Recoveries, many: int | None = None) -> Any:
    """Report losses before the messages that precede them are delivered."""
    taken = list(_take(recoveries, many))
    for ready in taken:
        if callable(ready):
            ready()
    yield from (ready for ready in taken if not callable(ready))


def _lose_whole(self: StreamRecovery, lost: Sequence[tuple[int, int]]) -> bool:
    for first, last in lost:
        self._put(first, last, None)
    return bool(lost)


_take, _numbers_of = Recoveries.take, Counters.numbers_of

MUTANTS: dict[str, tuple[dict[str, Any], type, dict[str, Any]]] = {
    "held messages are not sent first": (
        {"waits": True},
        Publisher,
        {"_flush": lambda self, topic: None, "_waits": lambda self, topic: False},
    ),
    "a snapshot does not wait for the queue": ({"waits": True}, Publisher, {"_waits": lambda self, topic: False}),
    "a late snapshot is delivered": ({"paths": 2}, SubscriberSession, {"snapshot": lambda self, account, header: True}),
    "a snapshot before the join is delivered": ({}, Tracker, {"has_joined": lambda self, epoch: True}),
    "losses ask for nothing": ({}, SnapshotRequests, {"lost": lambda self, *given, **named: None}),
    "requests are not sent": ({}, SnapshotRequests, {"_ask": lambda self, *given: None}),
    "losses are reported too early": ({"recover": True, "waits": True}, Recoveries, {"take": _report_at_once}),
    "a loss moves over a snapshot": (
        {"recover": True, "waits": True},
        StreamRecovery,
        {"_lose": _lose_whole},
    ),
    "a snapshot has a smaller number": (
        {},
        Counters,
        {"numbers_of": lambda *given: [(length, max(number - 1, 0)) for length, number in _numbers_of(*given)]},
    ),
}
"""Changes of the code that break a rule: the case that shows it, and the changed methods of a class."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_rule_makes_a_wrong_book(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule is needed: without it, a book of some run is wrong, or never comes back."""
    options, owner, methods = MUTANTS[mutant]
    for name, method in methods.items():
        monkeypatch.setattr(owner, name, method)
    for seed in range(300):
        try:
            wrong, _, _ = World(seed, **options).run(60)
        except NeverWholeError:
            return
        if wrong:
            return
    raise AssertionError("no run shows the broken rule")
