"""Lost messages come back: an app with recover=True, a publisher with a history, and a network that loses frames."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted

from tests.running import Mailbox, running, turns
from tests.support import PATIENCE, free_endpoint, sized
from zroute import App, Coalesce, Envelope, Frames, History, SignatureError
from zroute.messages.control import Kind
from zroute.messages.recovery import BOX
from zroute.messages.wire import NUL, parse_header
from zroute.publishing import publisher
from zroute.receiving.table import RouteTable
from zroute.runtime.service import AppService


class Loss:
    """Drops some of the frames that a publisher sends.

    Attributes:
        drops: Returns True for a frame to drop. It is called with the frame and its kind.
        answers: The number of answer frames that were sent.
    """

    def __init__(self, service: AppService, drops: Callable[[bytes, Kind], bool] = lambda frame, kind: False) -> None:
        assert service.transport is not None
        pub: Any = service.transport.pub
        self.drops = drops
        self.answers = 0
        self._send = pub._send
        pub._send = self.send

    def send(self, frame: bytes, flags: int) -> None:
        """Send or drop a frame."""
        kind = parse_header(frame.partition(NUL)[2]).kind
        if self.drops(frame, kind):
            return
        self.answers += frame.startswith(BOX)
        self._send(frame, flags)


def is_message(kind: Kind) -> bool:
    """Return True for frames with messages."""
    return kind in (Kind.DATA, Kind.COALESCED)


class Counted:
    """A reader with an ``app``, whose counters must balance."""

    app: App

    @property
    def stats(self) -> Any:
        """The counters of the app."""
        return self.app.stats

    def balances(self) -> bool:
        """Return True if each received message was counted once."""
        stats = self.stats
        return bool(stats.received == stats.routed + stats.unrouted + stats.malformed + stats.duplicate + stats.control)


class Reader(Counted):
    """An app that recovers, and the messages that it handles."""

    def __init__(self, address: str, pattern: str = "orders.{key}", **options: Any) -> None:
        self.app = App(sub=address, codec="json", name="reader", recover=True, **options)
        self.got: Mailbox[tuple[str, int]] = Mailbox()
        self.origins: list[str] = []
        self.gaps: list[Any] = []

        @self.app.subscribe(pattern)
        def handle(number: int, key: str, envelope: Envelope) -> None:
            self.origins.append(envelope.origin)
            self.got.put((key, number))

        self.app.on_gap(lambda gap: self.gaps.append(gap))


@asynccontextmanager
async def both(
    history: History | None, *, publisher: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Any, Reader, Loss]]:
    """Run a publisher and a reader; yield the publication, the reader and the network."""
    address = free_endpoint()
    feed = App(pub=f"bind:{address}", codec="json", name="feed", **options)
    orders = feed.publisher("orders.{key}", int, history=history, **(publisher or {}))
    reader = Reader(address)
    async with running(feed) as service, running(reader.app):
        await reader.app.ready(1)
        yield orders, reader, Loss(service)


@pytest.mark.parametrize("coalesce", [False, Coalesce(seconds=0.001)])
@pytest.mark.parametrize("overflow", ["drop", "wait"])
@pytest_twisted.ensureDeferred
async def test_lost_messages_are_handled_in_order_and_once(overflow: Any, coalesce: Any) -> None:
    """Frames lost at random come back, in the order of sending; none is lost, and none is handled twice."""
    many, chance = sized(3000, 600), random.Random(1)
    async with both(History(messages=10_000), overflow=overflow, coalesce=coalesce) as (orders, reader, network):
        network.drops = lambda frame, kind: is_message(kind) and chance.random() < 0.2
        for number in range(many):
            orders.publish(number, key="abc"[number % 3])
            if number % 50 == 0:  # not far ahead: a reader that can't keep up counts losses
                await reader.got.until(number - 250)
                await turns(lambda: True)
        await reader.got.until(many)
        network.drops = lambda frame, kind: False
        for place, key in enumerate("abc"):
            assert [number for each, number in reader.got.items if each == key] == list(range(place, many, 3))
        if not coalesce:  # coalescing keeps the order of a topic only
            assert [number for _, number in reader.got.items] == list(range(many))
        assert len(reader.got.items) == many
        assert reader.stats.lost == 0
        assert reader.stats.recovered == reader.origins.count("recovered") > 0
        assert reader.gaps == []
        await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_only_messages_that_the_history_no_longer_contains_count_as_lost() -> None:
    """With a short history, the oldest messages of a gap are lost, exactly; a hook hears of them once, in order."""
    many = 400
    async with both(History(messages=100)) as (orders, reader, network):
        orders.publish(0, key="a")
        await reader.got.until(1)
        network.drops = lambda frame, kind: is_message(kind)
        for number in range(1, many):
            orders.publish(number, key="a")
        await turns(lambda: reader.app.stats.control > 3)  # a tick ends, so the bound of the history applies
        network.drops = lambda frame, kind: False
        orders.publish(many, key="a")
        await turns(lambda: reader.got.items[-1] == ("a", many))
        kept = [number for _, number in reader.got.items]
        assert kept[0] == 0
        assert kept[1:] == list(range(many + 1 - len(kept[1:]), many + 1))
        (gap,) = reader.gaps
        assert gap.count == reader.stats.lost == many + 1 - len(kept)
        assert 0 < gap.count < many
        await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_a_publisher_without_a_history_is_never_asked(caplog: pytest.LogCaptureFixture) -> None:
    """Losses of a publisher without a history count at once, no request is sent, and the log says why."""
    caplog.set_level(logging.INFO)
    async with both(None) as (orders, reader, network):
        orders.publish(0, key="a")
        await reader.got.until(1)
        network.drops = lambda frame, kind: is_message(kind)
        orders.publish(1, key="a")
        network.drops = lambda frame, kind: False
        orders.publish(2, key="a")
        await reader.got.until(2)
        assert (reader.stats.lost, reader.stats.recovered, network.answers) == (1, 0, 0)
        assert reader.app._live.run is not None
        assert reader.app._live.run._accounts._recoveries._session.requests == 0
        reader.app._live.run._accounts._join_soon()
        orders.publish(3, key="a")
        await reader.got.until(3)
    (line,) = [each.getMessage() for each in caplog.records if "history" in each.getMessage()]
    assert line.startswith("reader: publisher feed@")
    assert "has no history, so its lost messages do not come back" in line


@pytest_twisted.ensureDeferred
async def test_a_loss_that_only_the_goodbye_shows_comes_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher answers requests until the subscriber has what was missing; only then the goodbye is confirmed.

    The log is in this order, too.
    """
    caplog.set_level(logging.INFO, "zroute")
    # A goodbye waits no longer than the sockets do, which is too short on a busy machine.
    monkeypatch.setattr(publisher, "LINGER_DRAIN", PATIENCE * 1000)
    address = free_endpoint()
    feed = App(pub=f"bind:{address}", codec="json", name="feed")
    orders = feed.publisher("orders.{key}", int, history=History(messages=1000))
    reader = Reader(address)
    async with running(reader.app):
        async with running(feed, drain_timeout=PATIENCE) as service:
            await reader.app.ready(1)
            orders.publish(0, key="a")
            await reader.got.until(1)
            network = Loss(service, lambda frame, kind: is_message(kind) or (kind is Kind.BEAT and BOX not in frame))
            for number in range(1, 300):
                orders.publish(number, key="a")
        assert [number for _, number in reader.got.items] == list(range(300))
        assert network.answers > 0
        assert reader.stats.lost == reader.stats.unknown_losses == 0
        await turns(lambda: "has ended" in caplog.text)
        assert 0 < caplog.text.index("recovered 299 messages") < caplog.text.index("has ended")


@pytest_twisted.ensureDeferred
async def test_answers_that_are_lost_are_asked_for_again() -> None:
    """A lost answer delays a recovery, but loses nothing."""
    async with both(History(seconds=60)) as (orders, reader, network):
        orders.publish(0, key="a")
        await reader.got.until(1)
        answers = 0

        def drops(frame: bytes, kind: Kind) -> bool:
            nonlocal answers
            answers += frame.startswith(BOX)
            return is_message(kind) or (frame.startswith(BOX) and answers < 3)

        network.drops = drops
        for number in range(1, 20):
            orders.publish(number, key="a")
        await turns(lambda: answers > 2)
        await reader.got.until(20)
        assert [number for _, number in reader.got.items] == list(range(20))
        assert reader.stats.lost == 0


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_stops_answering_ends_a_recovery(caplog: pytest.LogCaptureFixture) -> None:
    """Without answers, the messages count as lost after a few tries, and what was held is handled.

    One warning says that the stream rests, and for how long.
    """
    async with both(History(seconds=60)) as (orders, reader, network):
        orders.publish(0, key="a")
        await reader.got.until(1)
        network.drops = lambda frame, kind: is_message(kind)
        orders.publish(1, key="a")
        network.drops = lambda frame, kind: frame.startswith(BOX)
        orders.publish(2, key="b")
        orders.publish(3, key="a")
        await reader.got.until(3)
        assert [number for _, number in reader.got.items] == [0, 2, 3]
        assert (reader.stats.lost, reader.stats.recovered, reader.stats.gaps) == (1, 0, 1)
        await turns(reader.balances)
        await turns(lambda: "stopped recovering" in caplog.text)
        rests = [each for each in caplog.messages if "stopped recovering messages of 'orders.' from " in each]
        assert len(rests) == 1
        assert " for 1 s, because " in rests[0]


@pytest.mark.parametrize("headers", [None, {"by": "test"}])
@pytest_twisted.ensureDeferred
async def test_the_slow_path_sees_only_the_first_message_of_a_recovery(
    headers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a stream recovers, and after it, only the first message of a topic takes the slow path."""
    slow, receive = list[bytes](), RouteTable._receive

    def note(table: RouteTable, raw: Any) -> None:
        if is_message(parse_header(raw.partition(NUL)[2]).kind):
            slow.append(raw)
        receive(table, raw)

    async with both(History(seconds=60)) as (orders, reader, network):
        orders.publish(0, key="a", headers=headers)
        await reader.got.until(1)
        monkeypatch.setattr(RouteTable, "_receive", note)
        network.drops = lambda frame, kind: is_message(kind)
        orders.publish(1, key="a", headers=headers)
        network.drops = lambda frame, kind: frame.startswith(BOX)
        for number in range(2, 102):
            orders.publish(number, key="a", headers=headers)
        await turns(lambda: reader.app._live.run._accounts._recoveries._session._hold.messages == 100)  # type: ignore[union-attr]
        assert len(slow) == 1  # one more finds the gap, in the loop
        network.drops = lambda frame, kind: False
        await reader.got.until(102)
        slow.clear()
        for number in range(102, 202):
            orders.publish(number, key="a", headers=headers)
        await reader.got.until(202)
        assert len(slow) == 1
        assert [number for _, number in reader.got.items] == list(range(202))
        assert (reader.stats.lost, reader.stats.recovered) == (0, 1)
        await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_a_recovery_leaves_other_publishers_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the messages of one publisher are held, those of another one take no slow path."""
    slow, receive = list[bytes](), RouteTable._receive
    monkeypatch.setattr(RouteTable, "_receive", lambda table, raw: (slow.append(raw), receive(table, raw))[1])
    other = App(pub=f"bind:{(address := free_endpoint())}", codec="json", name="other")
    others = other.publisher("orders.{key}", int, history=History(seconds=60))
    async with both(History(seconds=60)) as (orders, reader, network), running(other):
        reader.app.add_endpoints(sub=address)
        await reader.app.ready(2)
        orders.publish(0, key="a")
        others.publish(0, key="b")
        await reader.got.until(2)
        network.drops = lambda frame, kind: is_message(kind)
        orders.publish(1, key="a")
        network.drops = lambda frame, kind: frame.startswith(BOX)
        orders.publish(2, key="a")
        await turns(lambda: reader.app._live.run._accounts._recoveries.busy)  # type: ignore[union-attr]
        slow.clear()
        for number in range(1, 50):
            others.publish(number, key="b")
        await reader.got.until(51)
        assert not [frame for frame in slow if frame.startswith(b"orders.b\0")]
        network.drops = lambda frame, kind: False
        await reader.got.until(53)
        assert (reader.stats.lost, reader.stats.recovered) == (0, 1)


@pytest_twisted.ensureDeferred
async def test_a_stop_in_a_recovery_loses_nothing_that_had_arrived() -> None:
    """An app that stops during a recovery handles what it has held, and counts the rest."""
    async with both(History(seconds=60)) as (orders, reader, network):
        orders.publish(0, key="a")
        await reader.got.until(1)
        network.drops = lambda frame, kind: is_message(kind)
        orders.publish(1, key="a")
        network.drops = lambda frame, kind: frame.startswith(BOX)
        for number in range(2, 10):
            orders.publish(number, key="a")
        await turns(lambda: reader.app._live.run._accounts._recoveries.busy)  # type: ignore[union-attr]
    assert [number for _, number in reader.got.items] == [0, *range(2, 10)]
    assert reader.stats.lost == 1
    assert reader.balances()


@pytest_twisted.ensureDeferred
async def test_a_kept_message_does_not_overtake_what_is_recovered() -> None:
    """A join during a recovery brings kept messages; they wait, and are skipped if they were recovered."""
    async with both(History(seconds=60), publisher={"keep": "last"}) as (orders, reader, network):
        orders.publish(0, key="a")
        await reader.got.until(1)
        network.drops = lambda frame, kind: is_message(kind) or frame.startswith(BOX)
        for number in range(1, 5):
            orders.publish(number, key="a")
        orders.publish(5, key="b")
        reader.app._live.run._accounts._join_soon()  # type: ignore[union-attr]
        await turns(lambda: reader.app._live.run._accounts._recoveries.busy)  # type: ignore[union-attr]
        network.drops = lambda frame, kind: False
        await reader.got.until(6)
        orders.publish(6, key="a")
        await reader.got.until(7)
        assert [number for _, number in reader.got.items] == list(range(7))
        assert reader.stats.lost == 0
        await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_a_new_subscription_in_a_recovery_keeps_the_order() -> None:
    """If attach changes the subscriptions, what is missing counts as lost, and what was held is handled first."""
    async with both(History(seconds=60)) as (orders, reader, network):
        orders.publish(0, key="a")
        await reader.got.until(1)
        network.drops = lambda frame, kind: is_message(kind)
        orders.publish(1, key="a")
        network.drops = lambda frame, kind: frame.startswith(BOX)
        orders.publish(2, key="a")
        await turns(lambda: reader.app._live.run._accounts._recoveries.busy)  # type: ignore[union-attr]
        attached = []
        reader.app.attach(">", lambda message: attached.append(message))
        for number in range(3, 6):
            orders.publish(number, key="a")
        await reader.got.until(5)
        assert [number for _, number in reader.got.items] == [0, 2, 3, 4, 5]
        assert reader.stats.lost == 1
        await turns(reader.balances)


@pytest_twisted.ensureDeferred
async def test_a_list_of_messages_contains_recovered_ones_in_order() -> None:
    """A handler with batch receives recovered messages in its lists."""
    address = free_endpoint()
    feed = App(pub=f"bind:{address}", codec="json", name="feed")
    orders = feed.publisher("orders.a", int, history=History(messages=1000))
    app, got = App(sub=address, codec="json", name="reader", recover=True), Mailbox[int]()

    @app.subscribe("orders.a", batch=7)
    def handle(numbers: list[int]) -> None:
        for number in numbers:
            got.put(number)

    async with running(feed) as service, running(app):
        await app.ready(1)
        chance = random.Random(2)
        Loss(service, lambda frame, kind: is_message(kind) and chance.random() < 0.3)
        for number in range(200):
            orders.publish(number)
        assert await got.until(200) == list(range(200))
        assert app.stats.lost == 0


def test_recover_needs_an_endpoint_of_the_tracked_wire() -> None:
    """With forms for all endpoints, recover= and since= have no effect; one tracked endpoint is enough."""
    foreign, tracked = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"
    options: dict[str, Any]
    for options in ({"recover": True}, {"since": "all"}):
        app = App(sub={foreign: Frames(separator=b" ")})
        app.add_route(print, "a", **options)
        with pytest.raises(SignatureError, match=r"has no effect: all messages arrive in the forms .* add an endpoint"):
            app.compile()
        both = App(sub={foreign: "plain", tracked: "tracked"})
        both.add_route(print, "a", **options)
        both.compile()
    app = App(sub={foreign: "multipart"}, recover=True)
    app.add_route(print, "a", recover=False)
    app.compile()


@pytest_twisted.ensureDeferred
async def test_an_attached_handler_needs_an_endpoint_of_the_tracked_wire() -> None:
    """While an app runs, since= and recover= are refused as at its start; beside a tracked endpoint they work."""
    foreign = free_endpoint()
    app = App(sub={foreign: Frames(separator=b" ")})
    expected = r"has no effect: all messages arrive in the forms .* add an endpoint"
    async with running(app):
        for options in ({"recover": True}, {"since": "all"}):
            with pytest.raises(SignatureError, match=expected) as refused:
                app.attach("a", print, **options)  # type: ignore[arg-type]
            assert "test_recovery.py" in str(refused.value)
        with pytest.raises(SignatureError, match=expected):
            await app.stream("a", int, since="all").__aenter__()
        app.attach("a", print).close()
    both = App(sub={foreign: "plain", free_endpoint(): "tracked"})
    async with running(both):
        both.attach("a", print, since="all", recover=True).close()


def test_routes_that_share_a_subscription_must_agree() -> None:
    """A route that recovers beside one that does not, in one subscription, is an error that names both."""
    app = App(sub="tcp://127.0.0.1:1", recover=True)
    app.subscribe("orders.>")(print)
    app.subscribe("orders.{key}", recover=False)(lambda body: None)
    with pytest.raises(SignatureError, match=r"orders\.>.*recover=False"):
        app.compile()


@pytest_twisted.ensureDeferred
async def test_a_route_without_recover_counts_its_losses() -> None:
    """Only the subscriptions of routes that recover get lost messages back."""
    address = free_endpoint()
    feed = App(pub=f"bind:{address}", codec="json", name="feed")
    history = History(messages=1000)
    orders, trades = (
        feed.publisher("orders.{key}", int, history=history),
        feed.publisher("trades", int, history=history),
    )
    reader = Reader(address)
    counted: Mailbox[int] = Mailbox()
    reader.app.subscribe("trades", recover=False)(counted.put)
    async with running(feed) as service, running(reader.app):
        await reader.app.ready(1)
        network = Loss(service)
        for number in range(3):
            network.drops = lambda frame, kind, number=number: is_message(kind) and number == 1
            orders.publish(number, key="a")
            trades.publish(number)
        await reader.got.until(3)
        assert await counted.until(2) == [0, 2]
        assert (reader.stats.lost, reader.stats.recovered) == (1, 1)
