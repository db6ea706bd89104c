"""One run of an app on a reactor: start, delivery, drain and close, over real sockets."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred

from tests.running import Mailbox, reactor, running, subscribed, turns
from tests.support import free_endpoint
from zroute import App, EncodeError, EndpointError, Limits, NotRunningError, Topic, as_awaitable, startswith
from zroute.endpoints import SIDES, ResolvedAddresses, Side
from zroute.errors import UsageError
from zroute.runtime.run import Environment, MessageLimit, Run, StopReport, Transport
from zroute.runtime.service import AppService
from zroute.testing import TestApp


@attrs.frozen
class Quote:
    symbol: str
    price: float


# -- delivery --------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
async def test_an_app_without_endpoints_feeds_its_own_handlers(wire: Any) -> None:
    """Without endpoints, messages reach the app's own handlers, typed and in order, on every wire."""
    app, box = App(wire=wire), Mailbox[tuple[Quote, str]]()
    quotes = app.publisher("stocks.{symbol}", Quote)

    @app.subscribe("stocks.{symbol}")
    def on_quote(quote: Quote, symbol: str) -> None:
        box.put((quote, symbol))

    async with running(app):
        for number in range(3):
            quotes.publish(Quote(f"s{number}", float(number)))
        assert await box.until(3) == [(Quote(f"s{n}", float(n)), f"s{n}") for n in range(3)]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_two_apps_in_one_process_meet_over_an_endpoint(transport: str, endpoint: str) -> None:
    """Two apps in one Twisted program connect over an endpoint."""
    if transport == "tcp":
        endpoint = free_endpoint()
    box = Mailbox[int]()
    sender, receiver = App(pub=endpoint, name="sender"), App(sub=endpoint, name="receiver")
    receiver.add_route(box.put, "n.>")
    async with running(sender) as service, running(receiver):
        await subscribed(service, b"n.")
        for number in range(50):
            sender.publish(f"n.{number}", number)
        assert await box.until(50) == list(range(50))


def test_inproc_without_a_common_context_is_an_error() -> None:
    """Connecting to inproc:// without a shared context fails the start; ZeroMQ would wait silently."""
    receiver = App(sub="inproc://shared-by-two")
    with pytest.raises(EndpointError, match=r"py:\d+: can't connect to inproc://shared-by-two: .*context="):
        receiver.service(reactor)
    App(pub="inproc://alone").service(reactor)  # an app that binds may wait for subscribers
    App(sub="inproc://own", pub="inproc://own").service(reactor)
    with zmq.Context() as context:
        App(sub="inproc://elsewhere", context=context).service(reactor)  # bound by other code of the program


@pytest_twisted.ensureDeferred
async def test_two_apps_share_a_context_over_inproc() -> None:
    """context=other.context connects two apps over inproc://."""
    box = Mailbox[str]()
    sender = App(pub="inproc://shared-by-two")
    receiver = App(sub="inproc://shared-by-two", context=sender.context)
    receiver.add_route(box.put, "a")
    async with running(sender) as service, running(receiver):
        await subscribed(service, b"a")
        sender.publish("a", {"x": 1})
        assert await box.until(1) == [{"x": 1}]


@pytest_twisted.ensureDeferred
async def test_the_empty_topic_travels() -> None:
    """A message to the empty topic reaches startswith("") and no other handler."""
    app, box = App(), Mailbox[str]()

    @app.subscribe(startswith(""))
    def handle(message: Any, topic: Topic) -> None:
        box.put(str(topic))

    async with running(app):
        app.publish("", 1)
        app.publish("a", 1)
        assert await box.until(2) == ["", "a"]


@pytest_twisted.ensureDeferred
async def test_handlers_of_every_kind_work_under_this_reactor() -> None:
    """Plain, async and Deferred handlers run, and their published results arrive."""
    app, box = App(), Mailbox[tuple[str, Any]]()

    @app.publisher("done.plain")
    @app.subscribe("go")
    def plain_handler(message: int) -> int:
        return message

    @app.publisher("done.async")
    @app.subscribe("go")
    async def async_handler(message: int) -> int:
        later: Deferred[int] = Deferred()
        reactor.callLater(0, later.callback, message)
        return await as_awaitable(later)

    @app.publisher("done.deferred")
    @app.subscribe("go")
    def deferred_handler(message: int) -> Deferred[int]:
        later: Deferred[int] = Deferred()
        reactor.callLater(0, later.callback, message)
        return later

    @app.publisher("done.generator")
    @app.subscribe("go")
    def generator_handler(message: int) -> Any:
        yield message

    @app.subscribe("done.{kind}")
    def done(message: int, kind: str) -> None:
        box.put((kind, message))

    async with running(app):
        app.publish("go", 5)
        assert sorted(await box.until(4)) == [("async", 5), ("deferred", 5), ("generator", 5), ("plain", 5)]


@pytest_twisted.ensureDeferred
async def test_timers_and_generators_run_with_the_app_and_end_with_it() -> None:
    """every= and generators publish from the subscription until the stop."""
    app, box, closed = App(), Mailbox[str](), []

    @app.publisher("beat", every=0.01)
    def beat() -> str:
        return "beat"

    @app.publisher("numbers", str)
    def numbers() -> Any:
        try:
            while True:
                yield "number"
        finally:
            closed.append(1)

    @app.subscribe("beat", "numbers")
    def handle(text: str) -> None:
        if text not in box.items or text == "beat":
            box.put(text)

    async with running(app):
        await box.until(4)
    assert set(box.items) == {"beat", "number"}
    assert closed == [1]


# -- start -----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_start_up_functions_run_in_order_and_before_the_first_message() -> None:
    """on_startup may be async and publish; no message is received until all have ended."""
    app, order = App(), []
    gate: Deferred[None] = Deferred()

    @app.on_startup
    async def first() -> None:
        order.append("first")
        await as_awaitable(gate)
        order.append("first ended")

    @app.on_startup
    def second() -> None:
        app.publish("a", 1)
        order.append("second")

    service = AppService(app.compile(), reactor)
    service.startService()
    started = service.started
    assert not started.called
    gate.callback(None)
    await started
    assert order == ["first", "first ended", "second"]
    await service.stopService()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_start_up_that_fails_ends_the_start_and_closes_everything(is_async: bool, endpoint: str) -> None:
    """An error in on_startup reaches ``started``, and the sockets are closed."""
    app = App(pub=endpoint)

    def broken() -> None:
        raise RuntimeError("no database")

    async def async_broken() -> None:
        broken()

    app.on_startup(async_broken if is_async else broken)
    service = AppService(app.compile(), reactor)
    service.startService()
    with pytest.raises(RuntimeError, match="no database"):
        await service.started
    await service.stopService()
    assert service.transport is None
    async with running(App(pub=endpoint)):
        pass


@pytest_twisted.ensureDeferred
async def test_an_endpoint_that_is_in_use_fails_the_start_and_leaves_nothing_open(endpoint: str) -> None:
    """A tcp address in use fails the start; after the first publisher stops, it succeeds."""
    endpoint = free_endpoint()
    first, second = App(pub=endpoint), AppService(App(pub=endpoint).compile(), reactor)
    async with running(first):
        with pytest.raises(EndpointError, match="this address is in use"):
            second.startService()
        assert not second.running
    second.startService()
    await second.started
    await second.stopService()


def test_a_start_that_raises_leaves_no_timer() -> None:
    """After a failed start, the reactor holds no reference to the app."""

    def broken(run: Run) -> Transport:
        raise RuntimeError("no transport")

    service, before = (
        AppService(App().compile(), reactor, environment=Environment(broken, asyncio=False)),
        reactor.getDelayedCalls(),
    )
    with pytest.raises(RuntimeError, match="no transport"):
        service.startService()
    assert reactor.getDelayedCalls() == before


@pytest_twisted.ensureDeferred
async def test_a_second_running_service_of_one_app_is_refused_and_a_restart_is_not() -> None:
    """An app runs once at a time, and can restart with counters at zero."""
    app, box = App(), Mailbox[int]()
    app.add_route(box.put, "a")
    service, other = AppService(app.compile(), reactor), AppService(app.compile(), reactor)
    service.startService()
    await service.started
    with pytest.raises(UsageError, match="is already running"):
        other.startService()
    await subscribed(service, b"a")
    app.publish("a", 1)
    await box.until(1)
    await service.stopService()
    assert app.stats.routed == 1
    for again in (service, other):
        again.startService()
        await again.started
        assert app.stats.received == app.stats.published == 0
        await subscribed(again, b"a")
        app.publish("a", 2)
        await box.until(len(box.items) + 1)
        await again.stopService()
    assert box.items == [1, 2, 2]


def test_a_stop_of_what_never_ran_is_complete() -> None:
    """Stopping a service that never started succeeds."""
    results: list[StopReport] = []
    AppService(App().compile(), reactor).stopService().addCallback(results.append)
    assert results == [StopReport({})]
    assert results[0].complete


@pytest_twisted.ensureDeferred
async def test_any_twisted_program_can_parent_it() -> None:
    """app.service(reactor) is an IService that a MultiService starts and stops."""
    app, box = App(), Mailbox[int]()
    app.add_route(box.put, "a")
    parent = MultiService()
    service = app.service(reactor)
    service.setServiceParent(parent)
    parent.startService()
    await service.started
    await subscribed(service, b"a")
    app.publish("a", 1)
    await box.until(1)
    await parent.stopService()
    with pytest.raises(NotRunningError):
        app.publish("a", 1)


# -- while it runs ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_body_over_the_limit_is_refused_at_the_caller() -> None:
    """A body larger than max_message is refused before it is sent."""
    app = App(limits=Limits(max_message=10), codec="raw")
    made = app.publisher("a", bytes)
    async with running(app):
        made.publish(bytes(10))
        with pytest.raises(EncodeError, match="more than max_message=10"):
            made.publish(bytes(11))
        assert app.stats.published == 1


@pytest_twisted.ensureDeferred
async def test_publishing_without_an_endpoint_says_what_to_add(endpoint: str) -> None:
    """Publishing without an endpoint raises an error that names App(pub=…)."""
    app = App(sub=endpoint)
    app.add_route(lambda message: None, "a")
    async with running(app):
        with pytest.raises(UsageError, match=r"add App\(pub=…\)"):
            app.publish("a", 1)


@pytest_twisted.ensureDeferred
async def test_after_the_limit_no_more_is_read() -> None:
    """With --max-messages 3, three messages are handled and the limit is reported once."""
    app, box, reached = App(), Mailbox[int](), []
    app.add_route(box.put, "a")
    async with running(app, limit=MessageLimit(3, lambda: reached.append(1))) as service:
        for number in range(10):
            app.publish("a", number)
        await box.until(3)
        await turns(lambda: service.transport.sub.paused)
    assert (box.items, reached, app.stats.received) == ([0, 1, 2], [1], 3)


def test_a_limit_is_shared_and_reached_once() -> None:
    """Several apps share one --max-messages, which is reported once."""
    reached: list[int] = []
    limit = MessageLimit(3, lambda: reached.append(1))
    for messages in (0, 2, 0, 5, 1):
        limit.take(messages)
    assert (limit.left, reached) == (0, [1])


@pytest_twisted.ensureDeferred
async def test_the_counters_balance() -> None:
    """received = routed + unrouted + malformed + duplicate + control, after all kinds of messages."""
    app, box, unrouted = App(), Mailbox[int](), Mailbox[Any]()

    @app.subscribe("a.*")
    def handle(message: int) -> None:
        box.put(message)

    app.on_unrouted(unrouted.put)
    async with running(app) as service:
        app.publish("a.b", 1)
        app.publish("a.b.c", 2)
        service.transport.pub.send(b"a.")
        app.publish("a.b", "text")
        app.publish("a.c", 3)
        await box.until(2)
        stats = app.stats
    assert (stats.received - stats.control, stats.routed, stats.unrouted, stats.malformed) == (5, 3, 1, 1)
    assert (stats.duplicate, stats.lost) == (0, 0)
    assert (stats.failed, stats.handled, stats.published) == (1, 2, 4)
    assert len(unrouted.items) == 1


# -- stop ------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_stop_waits_for_unfinished_handlers() -> None:
    """Unfinished handlers end before on_shutdown, which can still publish."""
    app, box, order = App(), Mailbox[int](), []
    gate: Deferred[None] = Deferred()

    @app.subscribe("a")
    async def handle(message: int) -> None:
        box.put(message)
        await as_awaitable(gate)
        order.append("handled")

    @app.on_shutdown
    async def close() -> None:
        app.publish("bye", 1)
        order.append("shut down")

    service = AppService(app.compile(), reactor)
    service.startService()
    await service.started
    await subscribed(service, b"a")
    app.publish("a", 1)
    await box.until(1)
    stopped, again = service.stopService(), service.stopService()
    reactor.callLater(0.05, gate.callback, None)
    assert (await stopped, await again) == (StopReport({}), StopReport({}))
    assert order == ["handled", "shut down"]


@pytest_twisted.ensureDeferred
async def test_a_handler_that_does_not_end_is_named_by_the_stop() -> None:
    """After drain_timeout the stop continues, and reports the unfinished handlers."""
    app, box = App(), Mailbox[int]()

    @app.subscribe("a")
    async def endless(message: int) -> None:
        box.put(message)
        await as_awaitable(Deferred())

    service = AppService(app.compile(), reactor, drain_timeout=0.05)
    service.startService()
    await service.started
    await subscribed(service, b"a")
    app.publish("a", 1)
    app.publish("a", 2)
    await box.until(1)
    await turns(lambda: app.stats.routed == 2)
    drained = await service.stopService()
    assert (dict(drained.unfinished), drained.complete) == ({"endless()": 2}, False)
    assert app.stats.routes["endless()"].dropped_at_shutdown == 2


@pytest_twisted.ensureDeferred
async def test_a_shutdown_function_that_fails_is_counted_and_the_stop_goes_on(caplog: Any) -> None:
    """An error in one on_shutdown function does not prevent the others."""
    app, order = App(), []

    @app.on_shutdown
    def broken() -> None:
        raise RuntimeError("no")

    @app.on_shutdown
    def fine() -> None:
        order.append("fine")

    async with running(app):
        pass
    assert order == ["fine"]
    assert app.stats.hook_errors == 1
    assert "failed; the stop continues" in caplog.text


@pytest_twisted.ensureDeferred
async def test_what_had_arrived_is_handled_before_the_end() -> None:
    """Messages that wait in the socket at the stop are handled."""
    app, got = App(), []
    app.add_route(got.append, "a")
    async with running(app):
        for number in range(2000):
            app.publish("a", number)
    assert got == list(range(len(got)))
    assert len(got) >= 1000  # the size of the subscriber's queue; ZeroMQ may drop the others


@pytest_twisted.ensureDeferred
async def test_a_handler_may_stop_its_own_app_and_is_waited_for() -> None:
    """A handler that stops its app ends before the sockets close."""
    app, order, stopped = App(), [], Deferred()

    @app.subscribe("stop")
    async def handle(message: int) -> None:
        service.stopService().chainDeferred(stopped)
        later: Deferred[None] = Deferred()
        reactor.callLater(0.02, later.callback, None)
        await as_awaitable(later)
        order.append("handled")
        app.publish("bye", 1)

    app.on_shutdown(lambda: order.append("shut down"))
    service = AppService(app.compile(), reactor)
    service.startService()
    await service.started
    await subscribed(service, b"stop")
    app.publish("stop", 1)
    assert (await stopped).complete
    assert order == ["handled", "shut down"]
    assert app.stats.failed == 0


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
async def test_an_app_with_endpoints_on_one_side_starts_and_stops(side: Side) -> None:
    """An app needs no other sockets than those of its only side; it runs its functions, and is open."""
    app, box = App(**{side.name: free_endpoint()}, loop=False), Mailbox[ResolvedAddresses]()
    app.on_startup(lambda: box.put(app.addresses))
    app.every(0.001)(lambda: box.put(app.addresses))
    async with running(app) as service:
        await box.until(2)
        assert service.transport is not None
        assert service.transport.is_open
        assert [each for each in SIDES if service.ends.of(each)] == [side]
    with pytest.raises(NotRunningError):
        _ = app.addresses


@pytest_twisted.ensureDeferred
async def test_whoever_asks_late_whether_it_started_is_told_too() -> None:
    """Each ``started`` fires, also after the start, with the error if it failed."""
    fine, broken = App(), App()

    @broken.on_startup
    def fail() -> None:
        raise RuntimeError("no")

    for app in (fine, broken):
        service = AppService(app.compile(), reactor)
        service.startService()
        for _ in range(2):
            if app is broken:
                with pytest.raises(RuntimeError, match="no"):
                    await service.started
            else:
                assert await service.started is None
        await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_stop_during_the_start_subscribes_to_nothing() -> None:
    """A stop during a slow on_startup prevents the subscription."""
    app, gate = App(), Deferred()

    @app.on_startup
    async def slow() -> None:
        await as_awaitable(gate)

    app.add_route(lambda message: None, "a")
    service = AppService(app.compile(), reactor)
    service.startService()
    await service.stopService()
    gate.callback(None)
    assert service.transport is None


@pytest_twisted.ensureDeferred
async def test_a_stop_during_a_slow_start_up_cancels_it() -> None:
    """A stop cancels a waiting on_startup, and the log says so."""
    app = App()
    never: Deferred[None] = Deferred()
    app.on_startup(lambda: never)
    app.subscribe("a")(lambda body: None)
    service = AppService(app.compile(), reactor)
    service.startService()
    started = service.started
    assert (await service.stopService()).complete
    assert never.called
    with pytest.raises(CancelledError):
        await started


# -- log lines -------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_service_logs_its_start_and_its_counters(caplog: pytest.LogCaptureFixture, endpoint: str) -> None:
    """A service logs the lines of ``zroute run``: routes, endpoints, the stop, and the counters as fields."""
    app = App(pub=endpoint, name="logged")
    app.publisher("a", int)
    with caplog.at_level(logging.INFO, "zroute"):
        async with running(app):
            app.publish("a", 1)
    lines = [record.getMessage() for record in caplog.records if record.name == "zroute"]
    assert lines[0] == "logged: routes 0, publications 1, timers and generators 0"
    assert lines[1] == f"logged: publishes, bound to {endpoint}"
    assert lines[-2:] == ["logged: stopping", "logged: published 1, publish_errors 0"]
    assert vars(caplog.records[-1])["published"] == 1


@pytest_twisted.ensureDeferred
async def test_a_service_that_does_not_start_logs_no_counters(caplog: pytest.LogCaptureFixture) -> None:
    """A failed start is one line, with neither start lines nor counters."""
    app = App(name="broken")

    @app.on_startup
    def fail() -> None:
        raise OSError("no disk")

    service = app.service(reactor)
    with caplog.at_level(logging.INFO, "zroute"):
        service.startService()
        with pytest.raises(OSError, match="no disk"):
            await service.started
        await service.stopService()
    assert [record.getMessage() for record in caplog.records] == ["broken did not start: no disk"]


@pytest_twisted.ensureDeferred
async def test_a_service_names_the_handlers_that_it_abandons(caplog: pytest.LogCaptureFixture) -> None:
    """A service whose stop is incomplete logs the unfinished handlers."""
    app, box = App(name="slow"), Mailbox[int]()

    @app.subscribe("a")
    async def never(message: int) -> None:
        box.put(message)
        await as_awaitable(Deferred())

    async with running(app, drain_timeout=0.05):
        app.publish("a", 1)
        await box.until(1)
    assert "slow: abandoned after the drain timeout: never(): 1" in caplog.messages


def test_a_test_app_logs_neither_start_nor_counters(caplog: pytest.LogCaptureFixture) -> None:
    """TestApp logs no lines about the start and the end."""
    app = App(name="tested")
    app.publisher("a", int)
    with caplog.at_level(logging.INFO, "zroute"), TestApp(app) as t:
        t.publish("a", 1)
    assert not [text for text in caplog.messages if text.startswith("tested: ")]
