"""The behaviour that all transports share: ZeroMQ, memory, NATS, and the line protocol of this suite.

NATS needs asyncio's reactor, so its tests run only with ``pytest --reactor asyncio``; see
`tests.nats.test_conformance`.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, redirect_stdout
from importlib import import_module
from typing import Any
from uuid import UUID

import pytest
import pytest_twisted
import zmq
from attrs import evolve
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from tests.nats.servers import NatsServer
from tests.pure import Wired, plain
from tests.running import Mailbox, reactor, turns
from tests.support import PATIENCE, ROOT, free_endpoint
from tests.transports.lines import LineTransport
from zroute import App, Envelope, Topic, startswith
from zroute.endpoints import Cluster, Ends, parse_endpoint
from zroute.errors import EndpointError, NotReadyError, NotRunningError
from zroute.options import READ_BUDGET
from zroute.runtime.run import Environment
from zroute.runtime.service import AppService
from zroute.sockets.pubsub import SubConnection
from zroute.testing.transport import Bus, MemoryTransport
from zroute.transport import Transport, TransportRequest
from zroute.transports.nats import NatsTransport
from zroute.transports.zeromq import ZmqTransport

Make = Callable[[TransportRequest], Transport]


class OnNats:
    """Creates transports of one NATS server, which replaces all endpoints."""

    def __init__(self, url: str) -> None:
        self.cluster = Cluster(url, url)

    def __call__(self, asked: TransportRequest) -> Transport:
        return NatsTransport(evolve(asked, ends=evolve(asked.ends, nats=self.cluster)))


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a NATS server for all tests of this module."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server.url


KINDS = ["zeromq", "memory", "lines"]
if isinstance(reactor, AsyncioSelectorReactor):
    KINDS.append("nats")


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    """Return a function that creates transports which connect to each other."""
    if request.param == "nats":
        return OnNats(request.getfixturevalue("nats_url"))
    bus = Bus()
    bus.requests.begin(reactor, time.time)
    made: dict[str, Make] = {
        "zeromq": ZmqTransport,
        "memory": lambda asked: MemoryTransport(asked, bus, reactor),
        "lines": LineTransport,
    }
    return made[request.param]


@asynccontextmanager
async def met(make: Make, *apps: App, publishers: int | None = 1) -> AsyncIterator[list[AppService]]:
    """Run the apps until the block ends, and wait until the subscribers are ready."""
    services = [AppService(app.compile(), reactor, environment=Environment(make, asyncio=False)) for app in apps]
    try:
        for service in services:
            service.startService()
            await service.started
        for app, service in zip(apps, services, strict=True):
            if service.ends.sub:
                await app.ready(publishers, timeout=PATIENCE)
        yield services
    finally:
        for service in reversed(services):
            await service.stopService()


@pytest_twisted.ensureDeferred
async def test_each_kind_of_pattern_takes_its_topics_and_no_others(make: Make) -> None:
    """Each kind of pattern receives the same topics on every transport."""
    endpoint = free_endpoint()
    feed, reader = App(pub=endpoint), App(sub=endpoint)
    got, all_of = Mailbox[tuple[Any, ...]](), Mailbox[str]()

    @reader.subscribe("news.sport")
    def exact(text: str) -> None:
        got.put(("exact", text))

    @reader.subscribe("news.*")
    def segment(text: str, topic: Topic) -> None:
        got.put(("segment", str(topic)))

    @reader.subscribe("orders.{number}.{id}")
    def captures(text: str, number: int, id: UUID) -> None:
        got.put(("captures", number, id))

    # NATS filters by whole segments, so it refuses a prefix that ends inside the first one.
    begin, begun = ("log.", ["log.x"]) if isinstance(make, OnNats) else ("log", ["logs", "log.x"])

    @reader.subscribe(startswith(begin))
    def prefix(text: str, topic: Topic) -> None:
        got.put(("prefix", str(topic)))

    @reader.subscribe(">")
    def everything(text: str, topic: Topic) -> None:
        all_of.put(str(topic))

    topics = [
        "news.sport",
        "news.local",
        "news.local.late",
        "logs",
        "log.x",
        "orders.7.not",
        f"orders.7.{UUID(int=1)}",
        "end",
    ]
    async with met(make, feed, reader):
        for topic in topics:
            feed.publish(topic, "text")
        assert await all_of.until(len(topics)) == topics
    assert got.items == [
        ("exact", "text"),
        ("segment", "news.sport"),
        ("segment", "news.local"),
        *[("prefix", topic) for topic in begun],
        ("captures", 7, UUID(int=1)),
    ]
    assert (reader.stats.lost, reader.stats.duplicate, reader.stats.malformed) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_overlapping_patterns_bring_a_message_once(make: Make) -> None:
    """A handler with two matching patterns is called once per message."""
    endpoint = free_endpoint()
    feed, reader, got = App(pub=endpoint), App(sub=endpoint), Mailbox[int]()
    reader.add_route(got.put, "a.*", "a.b", "a.>")
    reader.add_route(lambda message: None, "a.b")
    async with met(make, feed, reader):
        for number in range(100):
            feed.publish("a.b", number)
        assert await got.until(100) == list(range(100))
    assert (reader.stats.received - reader.stats.control, got.items) == (100, list(range(100)))


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
@pytest_twisted.ensureDeferred
async def test_each_wire_arrives_as_it_was_sent(make: Make, wire: Any) -> None:
    """Topic, body and headers arrive unchanged, in one frame or in two parts."""
    if wire == "multipart" and isinstance(make, OnNats):
        pytest.skip("a message of NATS has one body")
    endpoint = free_endpoint()
    feed, reader, got = App(pub=endpoint, wire=wire, codec="json"), App(sub=endpoint, codec="json"), Mailbox[Envelope]()

    @reader.subscribe("a.{x}")
    def handle(envelope: Envelope) -> None:
        got.put(envelope)

    async with met(make, feed, reader, publishers=1 if wire == "tracked" else None):
        headers = {"user": "ann"} if wire == "tracked" else None
        while not got.items:  # publishers of the other wires do not answer a join
            feed.publish("a.b", [1, "ü"], headers=headers)
            await deferLater(reactor, 0.01)
        envelope = got.items[0]
    assert (str(envelope.topic), envelope.body, dict(envelope.headers)) == ("a.b", '[1,"ü"]'.encode(), headers or {})


@pytest_twisted.ensureDeferred
async def test_a_full_route_loses_nothing_and_keeps_the_order(make: Make) -> None:
    """A slow handler pauses reading, and receives all messages in order."""
    endpoint = free_endpoint()
    feed, reader, got = App(pub=endpoint), App(sub=endpoint), Mailbox[int]()

    @reader.subscribe("a", max_in_flight=1, queue=2)
    async def handle(number: int) -> None:
        await deferLater(reactor, 0.0)
        got.put(number)

    async with met(make, feed, reader):
        for number in range(500):
            feed.publish("a", number)
        assert await got.until(500) == list(range(500))
    assert reader.stats.lost == 0


@pytest_twisted.ensureDeferred
async def test_what_is_attached_is_received_and_what_is_closed_is_not(make: Make) -> None:
    """Patterns can change at run time without disturbing other handlers."""
    endpoint = free_endpoint()
    feed, reader = App(pub=endpoint), App(sub=endpoint)
    always, awhile = Mailbox[int](), Mailbox[int]()
    reader.add_route(always.put, "a")
    async with met(make, feed, reader):
        attached = reader.attach("b", awhile.put)
        await reader.ready(1, timeout=PATIENCE)
        feed.publish("b", 1)
        feed.publish("a", 1)
        await awhile.until(1)
        attached.close()
        await reader.ready(1, timeout=PATIENCE)
        feed.publish("b", 2)
        feed.publish("a", 2)
        assert await always.until(2) == [1, 2]
    assert (awhile.items, reader.stats.lost, reader.stats.unrouted) == ([1], 0, 0)


@pytest_twisted.ensureDeferred
async def test_a_stop_reads_what_was_sent_before(make: Make) -> None:
    """A reader that stops right after a publish handles all published messages."""
    endpoint = free_endpoint()
    feed, reader, got = App(pub=endpoint), App(sub=endpoint), list[int]()
    reader.add_route(got.append, "a")
    async with met(make, feed, reader) as (_, reading):
        for number in range(2_000):
            feed.publish("a", number)
        await reading.stopService()
    assert got == list(range(2_000))
    assert (reader.stats.lost, reader.stats.unknown_losses) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_one_reader_hears_several_publishers(make: Make) -> None:
    """A reader of several publishers receives each one's messages in order."""
    first, second = free_endpoint(), free_endpoint()
    feeds, got = [App(pub=first, name="one"), App(pub=second, name="two")], Mailbox[tuple[int, int]]()
    reader = App(sub=[first, second])
    reader.add_route(got.put, "a")
    async with met(make, *feeds, reader, publishers=2):
        for number in range(200):
            for index, feed in enumerate(feeds):
                feed.publish("a", [index, number])
        await got.until(400)
    for index in range(2):
        assert [number for each, number in map(tuple, got.items) if each == index] == list(range(200))


async def outcome(waiting: Awaitable[None]) -> Exception | None:
    """Return the error that ``waiting`` fails with, or None."""
    try:
        await waiting
    except Exception as error:
        return error
    return None


def readies(app: App, **options: Any) -> list[Deferred[Exception | None]]:
    """Return the outcome of each kind of `App.ready`."""
    kinds = [{"publishers": number, "state": state} for number in (None, 1) for state in (False, True)]
    return [Deferred.fromCoroutine(outcome(app.ready(**kind, **options))) for kind in kinds]


@pytest_twisted.ensureDeferred
async def test_ready_waits_for_the_first_subscriptions(make: Make) -> None:
    """ready() may be called before the app subscribes, and then waits for that too."""
    endpoint = free_endpoint()
    feed, reader, got, gate = App(pub=endpoint), App(sub=endpoint), Mailbox[int](), Deferred[None]()
    reader.add_route(got.put, "a")
    reader.on_startup(lambda: gate)
    async with met(make, feed):
        service = AppService(reader.compile(), reactor, environment=Environment(make, asyncio=False))
        service.startService()
        asked = readies(reader, timeout=PATIENCE)
        await deferLater(reactor, 0.1)
        assert not any(each.called for each in asked)
        gate.callback(None)
        assert [await each for each in asked] == [None] * len(asked)
        feed.publish("a", 1)
        assert await got.until(1) == [1]
        await service.stopService()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("listens", [False, True])
async def test_a_stop_ends_each_wait_for_publishers(make: Make, listens: bool) -> None:
    """ready() fails with NotRunningError when the app stops, long before its timeout."""
    reader, gate = App(sub=free_endpoint()), Deferred[None]()
    reader.add_route(lambda message: None, "a")
    reader.on_startup(lambda: None if listens else gate)
    bus_has_no_publisher_to_wait_for = listens and make not in (ZmqTransport, LineTransport)
    service = AppService(reader.compile(), reactor, environment=Environment(make, asyncio=False))
    service.startService()
    asked = readies(reader, timeout=100 * PATIENCE)
    stopping = service.stopService()
    asked += readies(reader, timeout=100 * PATIENCE)
    await stopping
    for each in asked:
        error = await each
        assert isinstance(error, NotRunningError) or (bus_has_no_publisher_to_wait_for and error is None)


@pytest_twisted.ensureDeferred
async def test_what_is_to_be_kept_is_kept_or_refused(make: Make) -> None:
    """keep="last" is refused on a transport that can't give kept messages to new subscribers."""
    endpoint = free_endpoint()
    feed, reader, got = App(pub=endpoint, name="feed"), App(sub=endpoint), Mailbox[int]()
    reader.add_route(got.put, "a")
    kept = feed.publisher("a", int, keep="last")
    if make is LineTransport:
        with pytest.raises(EndpointError, match=r"test_conformance.py:\d+: keep='last' needs a transport that reports"):
            async with met(make, feed):
                pass
        assert feed.stats.published == 0
        return
    async with met(make, feed):
        kept.publish(7)
        async with met(make, reader):
            await got.until(1)
    assert got.items == [7]


@pytest_twisted.ensureDeferred
async def test_an_app_waits_for_subscribers_or_is_refused(make: Make) -> None:
    """wait_for_subscribers() is refused on a transport that reports no subscribers, and never ends early."""
    feed = App(pub=free_endpoint())
    a = feed.publisher("a", int)
    async with met(make, feed):
        error = await outcome(a.wait_for_subscribers(1, timeout=0.1))
    kind = type(make) if isinstance(make, OnNats) else make
    reported = {ZmqTransport: NotReadyError, OnNats: NotReadyError, LineTransport: EndpointError}
    assert isinstance(error, reported.get(kind, type(None)))  # type: ignore[call-overload]


@pytest_twisted.ensureDeferred
async def test_the_number_of_subscribers_is_known_or_refused(make: Make) -> None:
    """A publication's number of subscribers is right, or raises on a transport that does not know it."""
    endpoint = free_endpoint()
    feed, reader = App(pub=endpoint), App(sub=endpoint)
    a, b = feed.publisher("a", int), feed.publisher("b.{x}", int)
    reader.add_route(print, "a")
    async with met(make, feed, reader):
        if make is LineTransport:
            with pytest.raises(EndpointError, match="reports new subscribers"):
                a.subscribers  # noqa: B018  # the access is under test
            return
        assert (a.subscribers, b.subscribers) == (1, 0)
    assert a.subscribers == 0


@pytest_twisted.ensureDeferred
async def test_endpoints_can_change_or_are_refused(make: Make) -> None:
    """An added endpoint is among the addresses until it is removed; a fixed transport refuses both."""
    endpoint, further = free_endpoint(), free_endpoint()
    feed = App(pub=endpoint)
    async with met(make, feed):
        if make is LineTransport or isinstance(make, OnNats):
            with pytest.raises(EndpointError, match="can't change endpoints during a run"):
                feed.add_endpoints(pub=further)
            with pytest.raises(EndpointError, match="can't change endpoints during a run"):
                feed.remove_endpoints(pub=endpoint)
        else:
            feed.add_endpoints(pub=further)
            assert feed.addresses.pub == (endpoint, further)
            feed.remove_endpoints(pub=further)
        assert feed.addresses.pub == (endpoint,)


@pytest_twisted.ensureDeferred
async def test_it_can_run_again(make: Make) -> None:
    """Apps that were stopped can start again and connect."""
    endpoint = free_endpoint()
    feed, reader, got = App(pub=endpoint), App(sub=endpoint), Mailbox[int]()
    reader.add_route(got.put, "a")
    for number in (1, 2):
        async with met(make, feed, reader):
            feed.publish("a", number)
            await got.until(number)
    assert got.items == [1, 2]


def test_a_transport_of_two_sockets_receives_from_each_what_was_sent_to_it() -> None:
    """A message with too many parts at one socket is refused, and each other message of both sockets is delivered."""
    app, got, context = App(), list[int](), zmq.Context()
    app.add_route(got.append, "a")
    wired, clock = Wired(app), Clock()
    clock.addReader = clock.removeReader = lambda reader: None  # type: ignore[attr-defined]
    with ExitStack() as stack:
        stack.callback(context.term)
        pairs = []
        for name in "one", "other":
            publisher = stack.enter_context(context.socket(zmq.XPUB))
            publisher.linger = 0
            publisher.bind(f"inproc://{name}")
            connection = SubConnection(clock, list, context=context)
            stack.callback(connection.close, 0)
            connection.receive = wired.table.receive
            connection.open(parse_endpoint(f"inproc://{name}", bind=False))
            connection.subscribe(b"a")
            assert publisher.poll(PATIENCE * 1000)
            publisher.recv()
            pairs.append((publisher, connection))
        (feed, reading), (other_feed, other) = pairs
        feed.send_multipart([b"a", *[plain("a", 0)] * (2 * READ_BUDGET)])
        feed.send(plain("a", 1))
        other_feed.send(plain("a", 2))
        for connection in (reading, other) * 100:  # on a busy machine, each may end after a few parts
            connection.doRead()
    assert got == [2, 1]
    assert (wired.stats.received, wired.stats.malformed) == (3, 1)


@pytest_twisted.ensureDeferred
async def test_an_example_runs_unchanged_over_the_line_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticker example runs unchanged over the line protocol."""
    monkeypatch.syspath_prepend(os.fspath(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "ticker", raising=False)
    ticker = import_module("ticker")
    address = free_endpoint()
    for app in (ticker.feed, ticker.screen):
        app._ends = Ends(*(tuple(_at(each, address) for each in given) for given in (app.sub, app.pub)))
    shown = io.StringIO()
    with redirect_stdout(shown):
        async with met(LineTransport, ticker.feed, ticker.screen):
            ticker.tick()
            await turns(lambda: "market open" in shown.getvalue())
    assert [line.split()[0] for line in shown.getvalue().splitlines()][:4] == ["AAPL", "MSFT", "ACME", "market"]


def _at(endpoint: Any, address: str) -> Any:
    return type(endpoint)(address, bind=endpoint.bind)
