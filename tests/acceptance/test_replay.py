"""The past of a subscription: apps with since=, and publishers with a history."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.acceptance.test_recovery import Counted, Loss, is_message
from tests.acceptance.test_recovery_processes import proxy
from tests.keyed import Keys
from tests.running import Mailbox, running, turns
from tests.support import PATIENCE, free_endpoint, sized
from zroute import App, Coalesce, Envelope, History, SignatureError
from zroute.messages.control import Kind
from zroute.messages.recovery import BOX
from zroute.publishing import publisher
from zroute.receiving import replay
from zroute.testing import TestApp

LONG = History(messages=100_000)


class Reader(Counted):
    """An app that replays, and the messages that it handles."""

    def __init__(self, address: Any, since: Any, pattern: str = "orders.{key}", **options: Any) -> None:
        self.app = App(sub=address, codec="json", name="reader", **options)
        self.got: Mailbox[int] = Mailbox()
        self.origins: list[str] = []

        @self.app.subscribe(pattern, since=since)
        def handle(number: int, envelope: Envelope) -> None:
            self.origins.append(envelope.origin)
            self.got.put(number)


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
        never, last = datetime.now(UTC) + timedelta(seconds=50), 19
        for since, first in (("last", 19), (middle, 10), (never, 22)):
            reader = Reader(address, since)
            async with running(reader.app):
                await reader.app.ready(1, state=True)
                assert reader.got.items == list(range(first, last + 1))
                last += 1
                publish(orders, last)
                assert await reader.got.until(last + 1 - first) == list(range(first, last + 1))


@pytest.mark.parametrize("coalesce", [False, Coalesce(seconds=0.001)])
@pytest_twisted.ensureDeferred
async def test_the_past_comes_first_although_frames_are_lost(coalesce: Any) -> None:
    """With recover, lost live messages come back behind the past; lost answers are asked for again."""
    many, chance = sized(3_000, 900), random.Random(3)
    async with feed(coalesce=coalesce) as (address, orders, _, network):
        publish(orders, *range(many))
        reader = Reader(address, "all", recover=True)
        network.drops = lambda frame, kind: (is_message(kind) or frame.startswith(BOX)) and chance.random() < 0.3
        async with running(reader.app):
            await turns(lambda: reader.stats.joins)
            publish(orders, *range(many, 2 * many))
            network.drops = lambda frame, kind: False
            publish(orders, *range(2 * many, 2 * many + 3))
            await reader.got.until(2 * many + 3)
            for place in range(3):  # coalescing keeps the order of a topic only
                assert [number for number in reader.got.items if number % 3 == place] == list(
                    range(place, 2 * many + 3, 3)
                )
            assert reader.stats.replayed >= many
            assert reader.stats.recovered > 0
            assert reader.stats.lost == reader.stats.unknown_losses == 0
            await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_a_publisher_without_a_history_is_not_asked() -> None:
    """since= has no effect for it: messages are delivered as without the option, also those before the join."""
    async with feed(history=None) as (address, orders, _, network):
        reader = Reader(address, "all")
        async with running(reader.app):
            await reader.app.ready(1, state=True)
            publish(orders, 1, 2)
            assert await reader.got.until(2) == [1, 2]
            assert reader.origins == ["live"] * 2
            assert network.answers == 0
            assert (reader.stats.lost, reader.stats.unknown_losses, reader.stats.replayed) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_each_publisher_that_joins_sends_its_past() -> None:
    """Two publishers, and one that starts later, each send their past before their live messages."""
    addresses = [free_endpoint() for _ in range(3)]
    apps = [App(pub=f"bind:{address}", codec="json", name=f"feed{at}") for at, address in enumerate(addresses)]
    orders = [app.publisher("orders.{key}", int, history=LONG) for app in apps]
    reader = Reader(addresses, "all")
    async with running(apps[0]), running(apps[1]):
        for at in (0, 1):
            publish(orders[at], *range(1000 * at, 1000 * at + 50))
        async with running(reader.app):
            await reader.app.ready(2, state=True)
            async with running(apps[2]):
                publish(orders[2], *range(2000, 2050))
                await reader.got.until(150)
                publish(orders[0], 50)
                await reader.got.until(151)
            for at, many in ((0, 51), (1, 50), (2, 50)):
                mine = [number for number in reader.got.items if number // 1000 == at]
                assert mine == list(range(1000 * at, 1000 * at + many))
            assert reader.stats.replayed == 150
            assert reader.stats.lost == reader.stats.unknown_losses == 0


@pytest_twisted.ensureDeferred
async def test_a_new_connection_does_not_bring_the_past_again() -> None:
    """A join of the same publisher continues its account."""
    async with feed() as (address, orders, _, _):
        publish(orders, *range(20))
        reader = Reader(address, "all")
        async with running(reader.app):
            await reader.app.ready(1, state=True)
            joins = reader.stats.joins
            reader.app._live.run._accounts._join_soon()  # type: ignore[union-attr]
            await turns(lambda: reader.stats.joins > joins)
            publish(orders, 20)
            assert await reader.got.until(21) == list(range(21))


@pytest_twisted.ensureDeferred
async def test_a_kept_message_that_the_past_contains_is_not_handled_twice() -> None:
    """Kept messages wait for the past, and are dropped if it contains them or newer ones."""
    address = free_endpoint()
    app = App(pub=f"bind:{address}", codec="json", name="feed")
    orders = app.publisher("orders.{key}", int, keep="last", history=History(messages=100))
    status = app.publisher("orders.status.{key}", int, keep="last")
    async with running(app):
        status.publish(100, key="x")
        publish(orders, *range(30))
        reader = Reader(address, "all", "orders.>")
        async with running(reader.app):
            await reader.app.ready(1, state=True)
            assert reader.got.items == [*range(30), 100]
            assert reader.origins == ["replayed"] * 30 + ["kept"]
            publish(orders, 30)
            await reader.got.until(32)
            await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_stops_in_the_middle_sends_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A goodbye waits until the past has arrived."""
    # A goodbye waits no longer than the sockets do, which is too short on a busy machine.
    monkeypatch.setattr(publisher, "LINGER_DRAIN", PATIENCE * 1000)
    many = 20_000
    address = free_endpoint()
    app = App(pub=f"bind:{address}", codec="json", name="feed")
    orders = app.publisher("orders.{key}", int, history=LONG)
    reader = Reader(address, "all")
    async with running(reader.app):
        async with running(app, drain_timeout=PATIENCE):
            publish(orders, *range(many))
            await turns(lambda: reader.stats.replayed > 0)
        assert await reader.got.until(many) == list(range(many))
        assert reader.stats.lost == reader.stats.unknown_losses == 0


@pytest_twisted.ensureDeferred
async def test_a_past_that_never_arrives_is_an_unknown_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer the replay ends after some tries, and live messages that have waited are handled."""
    monkeypatch.setattr(replay, "TRIES_OF_PAST", 2)
    async with feed() as (address, orders, _, network):
        publish(orders, *range(20))
        reader = Reader(address, "all")
        network.drops = lambda frame, kind: frame.startswith(BOX)
        async with running(reader.app):
            await turns(lambda: reader.stats.joins)
            publish(orders, 20, 21)
            assert await reader.got.until(2) == [20, 21]
            assert (reader.stats.unknown_losses, reader.stats.lost) == (1, 0)
            await reader.app.ready(1, state=True)


@pytest_twisted.ensureDeferred
async def test_attach_and_stream_get_the_past_of_their_own_subscription() -> None:
    """An attached handler and a stream begin with the past; other handlers are not affected."""
    async with feed() as (address, orders, app, _):
        trades = app.publish
        publish(orders, *range(30))
        reader = App(sub=address, codec="json", name="reader")
        others: Mailbox[int] = Mailbox()
        reader.subscribe("trades.{key}")(others.put)
        async with running(reader):
            await reader.ready(1)
            got: Mailbox[int] = Mailbox()
            attached = reader.attach("orders.a", got.put, since="all")
            assert await got.until(10) == list(range(0, 30, 3))
            await reader.ready(1, state=True)
            publish(orders, 30, 31)
            trades("trades.x", 1)
            await others.until(1)
            assert await got.until(11) == list(range(0, 31, 3))
            with pytest.raises(SignatureError, match=r"orders\.a.*Both share one subscription.*no since= for"):
                reader.attach("orders.>", print, since="all")
            attached.close()
            for _ in range(2):  # each block begins with the past
                async with reader.stream("orders.>", int, since=timedelta(hours=1)) as messages:
                    found = [await anext(messages) for _ in range(32)]
                    assert found == list(range(32))
            assert reader.stats.lost == reader.stats.unknown_losses == 0


@pytest.mark.parametrize("since", ["all", None])
@pytest_twisted.ensureDeferred
async def test_what_arrived_for_a_closed_handler_is_not_for_the_next_one(since: Any) -> None:
    """A handler closed in its past leaves nothing to the next handler of the pattern, which has its own past."""
    many = 1_000
    async with feed() as (address, orders, _, _):
        publish(orders, *range(many))
        reader, first, second = App(sub=address, codec="json", name="reader"), list[int](), Mailbox[int]()
        async with running(reader):

            def handle(number: int) -> None:
                first.append(number)
                if number == 10:
                    attached.close()
                    reader.attach("orders.>", second.put, since=since)

            attached = reader.attach("orders.>", handle, since="all")
            await turns(lambda: len(first) > 10)
            await reader.ready(1, state=True)
            publish(orders, many)
            expected = [many] if since is None else [*range(many + 1)]
            assert await second.until(len(expected)) == expected
            assert first == list(range(11))
            assert reader.stats.lost == reader.stats.unknown_losses == 0


@pytest_twisted.ensureDeferred
async def test_the_past_that_is_left_at_a_stop_counts_as_lost() -> None:
    """An app that stops in the middle handles what has arrived, and counts the rest."""
    many = 3_000
    async with feed() as (address, orders, _, network):
        publish(orders, *range(many))
        reader = Reader(address, "all")
        answers = 0

        def drops(frame: bytes, kind: Kind) -> bool:
            nonlocal answers
            answers += frame.startswith(BOX)
            return frame.startswith(BOX) and answers > 1

        network.drops = drops
        async with running(reader.app, drain_timeout=1.0):
            await turns(lambda: answers > 2)
        assert reader.got.items == list(range(len(reader.got.items)))
        assert 0 < len(reader.got.items) < many
        assert reader.stats.lost == many - len(reader.got.items)
        assert reader.balances()


@pytest_twisted.ensureDeferred
async def test_the_past_passes_proxies_and_keys(tmp_path: Path) -> None:
    """With CURVE, behind a stock proxy, and behind both, a late subscriber gets the past."""
    back, front, secret = free_endpoint(), free_endpoint(), Keys(tmp_path)
    secret.authorize("desk", "feed")
    keyed = free_endpoint()
    app = App(pub=(f"connect:{front}",), codec="json", name="behind")
    own = App(pub=f"bind:{keyed}", codec="json", name="keyed", keys=secret.secret("feed"), peers="anyone")
    orders = [each.publisher("orders.{key}", int, history=LONG) for each in (app, own)]
    readers = [
        Reader(back, "all"),
        Reader(f"feed@{keyed}", "all", keys=secret.secret("desk")),
    ]
    with proxy(back, front):
        async with running(app), running(own):
            for each in orders:
                publish(each, *range(500))
            for each, reader in zip(orders, readers, strict=True):
                async with running(reader.app):
                    await turns(lambda reader=reader: reader.stats.joins)  # type: ignore[misc]
                    publish(each, 500)
                    assert await reader.got.until(501) == list(range(501))
                    assert reader.stats.lost == reader.stats.unknown_losses == 0


def test_routes_that_share_a_subscription_have_the_same_past() -> None:
    """Different values of since, in one subscription, are an error that names both routes."""
    app = App(sub="tcp://127.0.0.1:1")
    app.subscribe("orders.>", since="all")(print)
    app.subscribe("orders.{key}", since="last")(lambda body: None)
    with pytest.raises(SignatureError, match=r"orders\.>.*orders\.\{key\}.*the same since= for both"):
        app.compile()
    app = App(sub="tcp://127.0.0.1:1")
    app.subscribe("orders.>", since="all")(print)
    app.subscribe("orders.{key}", since="all")(lambda body: None)
    app.subscribe("trades.{key}")(lambda body: None)
    app.compile()


@pytest.mark.parametrize(
    "since", [60, 0.5, True, "first", timedelta(0), timedelta(seconds=-1), datetime(2026, 1, 1), "2026-01-01"]
)
def test_a_wrong_since_is_refused(since: Any) -> None:
    """Numbers, unknown words, and times without a zone are errors that show the right ones."""
    app = App(sub="tcp://127.0.0.1:1")
    with pytest.raises(SignatureError, match=r"since=.*expected"):
        app.subscribe("orders.>", since=since)(print)


def test_an_age_of_nothing_is_refused_with_a_way_to_receive_only_live_messages() -> None:
    """The error of ``timedelta(0)`` says to remove ``since``."""
    app = App(sub="tcp://127.0.0.1:1")
    with pytest.raises(SignatureError, match=r"remove since= to receive only live messages"):
        app.subscribe("orders.>", since=timedelta(0))(print)


@pytest.mark.parametrize("since", [datetime.now(UTC) + timedelta(hours=1), datetime.max.replace(tzinfo=UTC)])
def test_a_time_in_the_future_is_refused_where_it_is_given(since: datetime) -> None:
    """A past that begins in the future is an error that tells the time, at the line that gives it."""
    app, idle = App(sub="tcp://127.0.0.1:1"), App(sub="tcp://127.0.0.1:1")

    async def loop() -> None:
        async with app.stream("orders.>", int, since=since):
            raise AssertionError("the stream was opened")

    with TestApp(app):
        ways: list[Callable[[], object]] = [
            lambda: idle.subscribe("orders.>", since=since)(print),
            lambda: idle.add_route(print, "orders.>", since=since),
            lambda: app.attach("orders.>", lambda body: None, since=since),
            lambda: loop().send(None),
        ]
        for give in ways:
            with pytest.raises(
                SignatureError, match=r"since=\d+-.*expected a time in the past.*it is 20\d\d-"
            ) as raised:
                give()
            assert "test_replay.py:" in str(raised.value)


def test_the_clock_of_a_publisher_may_be_a_little_ahead() -> None:
    """The time of a message whose publisher has a clock ahead of this machine is accepted as since."""
    app = App(sub="tcp://127.0.0.1:1")
    app.subscribe("orders.>", since=datetime.now(UTC) + timedelta(seconds=30))(print)


@pytest_twisted.ensureDeferred
async def test_a_wider_handler_without_a_past_repeats_none() -> None:
    """If a handler without since is attached to a wider subscription, the other one does not get its past again."""
    address = free_endpoint()
    feed = App(pub=f"bind:{address}", codec="json", name="feed")
    orders = feed.publisher("orders.{key}", int, history=History(messages=1000))
    reader, got, wide = App(sub=address, codec="json", name="reader"), Mailbox[int](), Mailbox[int]()
    reader.subscribe("orders.a", since="all")(got.put)
    async with running(feed):
        orders.publish(0, key="a")
        async with running(reader):
            await reader.ready(1, state=True)
            orders.publish(1, key="a")
            await got.until(2)
            reader.attach("orders.>", wide.put)
            await reader.ready(1, state=True)
            orders.publish(2, key="a")
            assert await got.until(3) == [0, 1, 2]
            assert await wide.until(1) == [2]
            assert reader.stats.replayed == 1
