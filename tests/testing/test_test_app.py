"""`TestApp`, with both kinds of reactors if they can differ."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import attrs
import msgspec
import pytest
from twisted.internet.defer import Deferred

from zroute import App, DecodeError, EncodeError, Envelope, NotRunningError, Routes, TopicError, UsageError
from zroute.endpoints import SIDES
from zroute.errors import EnvelopeError, SchemaError, SignatureError
from zroute.testing import RestlessError, TestApp, UnfinishedError

Reactor = Literal["twisted", "asyncio"]

both = pytest.mark.parametrize("reactor", ["twisted", "asyncio"])


@attrs.frozen
class Quote:
    symbol: str
    price: float


@attrs.frozen
class Alert:
    text: str


class Database:
    def __init__(self) -> None:
        self.rows: list[Quote] = []


def alerting(**options: Any) -> App:
    """Return an app that answers high quotes with an alert."""
    app = App(**options)
    alerts = app.publisher("alerts.{level}", Alert)

    @app.subscribe("stocks.{symbol}")
    def on_quote(quote: Quote, symbol: str) -> None:
        if quote.price > 1000:
            alerts.publish(Alert(f"{symbol} at {quote.price}"), level="high", headers={"by": "test"})

    return app


# -- messages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_what_is_published_comes_back_as_the_same_objects(wire: Any, codec: Any) -> None:
    """Published messages are returned as objects of their types, for each wire and codec."""
    app = App(wire=wire, codec=codec)
    alerts = app.publisher("alerts.{level}", Alert)

    @app.subscribe("stocks.{symbol}")
    def on_quote(quote: Quote, symbol: str) -> None:
        alerts.publish(Alert(f"{symbol} at {quote.price}"), level="high")

    with TestApp(app) as t:
        t.publish("stocks.A", Quote("A", 1.5))
        assert t.published("alerts.>") == [Alert("A at 1.5")]
        assert t.published("other") == []
        assert app.stats.handled == 1


def test_messages_that_arrive_together_are_one_list() -> None:
    """A batch handler gets messages of one publish call as one list."""
    app = App(sub="tcp://127.0.0.1:1")

    @app.subscribe("trades.*", batch=3)
    def on_trades(trades: list[int]) -> list[int]:
        return trades

    with TestApp(app) as t:
        t.publish("trades.a", 1, 2, 3, 4)
        t.publish("trades.a", 5)
        assert t.results(on_trades) == [[1, 2, 3], [4], [5]]


def test_envelopes_show_topics_headers_and_times() -> None:
    """Envelopes show topics, headers and times; virtual time starts at the current time."""
    with TestApp(alerting()) as t:
        t.advance(60)
        t.publish("stocks.A", Quote("A", 2000.0), headers={"from": "me"})
        (envelope,) = t.envelopes("alerts.high")
    assert (envelope.topic, envelope.headers, envelope.tracked) == ("alerts.high", {"by": "test"}, True)
    assert envelope.sent_at is not None
    assert envelope.received_at - envelope.sent_at >= 0


def test_headers_reach_the_handler() -> None:
    """A handler's envelope has the headers that the test published."""
    app, seen = App(), []

    @app.subscribe("a")
    def on_a(envelope: Envelope) -> None:
        seen.append((envelope.headers, envelope.sequence, msgspec.msgpack.decode(envelope.body)))

    with TestApp(app) as t:
        t.publish("a", 1, headers={"k": "v"})
        t.publish("a", 2)
    assert seen == [({"k": "v"}, 1, 1), ({}, 2, 2)]


def test_an_app_that_is_given_its_endpoints_when_it_is_run() -> None:
    """An app with loop=False can be tested without endpoints."""
    app = alerting(loop=False)

    @app.subscribe("alerts.>")
    def echo(alert: Alert) -> str:
        return alert.text

    with TestApp(app) as t:
        t.publish("stocks.A", Quote("A", 2000.0))
        assert t.published("alerts.high") == [Alert("A at 2000.0")]
        assert all(app.addresses.of(side) for side in SIDES)
        assert t.results(echo) == []
        t.publish("alerts.low", Alert("from outside"))
        assert t.results(echo) == ["from outside"]


def test_addresses_are_those_of_the_app() -> None:
    """Under TestApp, an app has the addresses that it declares, on every side."""
    texts = {side.name: (f"tcp://127.0.0.1:{port}", f"ipc://{side.name}") for port, side in enumerate(SIDES, 1)}
    app = App(**texts)
    with TestApp(app):
        assert {side.name: app.addresses.of(side) for side in SIDES} == texts


def test_undeclared_messages_are_decoded_as_asked() -> None:
    """Messages without a declared type are plain values, or decoded to the type that the test names."""
    app = App()

    @app.subscribe("a")
    def on_a(message: int) -> None:
        app.publish("b", Quote("A", 1.0))

    with TestApp(app) as t:
        t.publish("a", 1)
        assert t.published("b") == [{"symbol": "A", "price": 1.0}]
        assert t.published("b", Quote) == [Quote("A", 1.0)]


def test_frames_from_anywhere_can_be_received(caplog: pytest.LogCaptureFixture) -> None:
    """Tests can send frames of other publishers, also malformed ones."""
    app, seen = App(codec="json"), []

    @app.subscribe("stocks.{symbol}")
    def on_quote(quote: Quote, symbol: str) -> None:
        seen.append(quote)

    with TestApp(app) as t:
        t.receive(b'stocks.A\0{"symbol": "A", "price": 1.0}')
        t.receive(b"stocks.B", b'{"symbol": "B", "price": 2.0}')
        with pytest.raises(DecodeError):
            t.receive(b"stocks.A\0{")
        with pytest.raises(EnvelopeError):
            t.receive(b"stocks.A")
        t.publish("stocks.C", Quote("C", 3.0), codec="msgpack")
        assert [type(failure) for failure in t.failures] == [DecodeError, EnvelopeError]
    assert [quote.symbol for quote in seen] == ["A", "B", "C"]


def test_what_nobody_subscribes_to_is_unheard() -> None:
    """``unheard`` holds messages that no app subscribes to."""
    app, unrouted = App(), []

    @app.subscribe("stocks.{symbol}")
    def on_quote(quote: Quote) -> None: ...

    @app.on_unrouted
    def fallback(envelope: Envelope) -> None:
        unrouted.append(envelope.topic)

    with TestApp(app) as t:
        t.publish("stock.A", Quote("A", 1.0))
        t.publish("stocks.A.B", Quote("A", 1.0))  # the subscription is the prefix "stocks."
        assert [envelope.topic for envelope in t.unheard] == ["stock.A"]
        assert unrouted == ["stocks.A.B"]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (([b"a", b"1"],), r"not \[b'a', b'1'\]: unpack the parts, as in receive\(\*parts\)"),
        (("a", b"1"), r"not 'a': encode the text, as in receive\('a'.encode\(\)\)"),
        ((b"a", 1), "not 1: pass bytes"),
        ((), r"as in receive\(b'topic', b'body'\)"),
    ],
)
def test_parts_that_are_not_bytes_are_refused(parts: tuple[Any, ...], says: str) -> None:
    """The error shows what to write, and the app goes on."""
    with TestApp(alerting()) as t:
        with pytest.raises(UsageError, match=says):
            t.receive(*parts)
        t.receive(b"stocks.A", b'{"symbol": "A", "price": 1.0}')

    async def main() -> None:
        async with TestApp(alerting()) as t:
            with pytest.raises(UsageError, match=says):
                await t.receive(*parts)

    asyncio.run(main())


def test_a_message_that_no_handler_receives_is_unheard() -> None:
    """It is in ``unheard`` if no app has a handler whose pattern and captures fit, also among other messages."""
    app, other, got = App(), App(), list[Any]()

    @app.subscribe("a.{n}")
    def number(n: int, body: Any) -> None:
        got.append(n)

    @other.subscribe("a.*.*")
    @other.subscribe("a.y")
    def several(body: Any) -> None:
        got.append(body)

    with TestApp(app, other) as t:
        t.publish("a.x", "one", "two")
        t.publish("a.y", "three")  # of one app only
        t.publish("a.1", "four")
        t.receive(b"a.x\0five")
        t.receive(b"a.x", b"six")
        assert [(envelope.topic, envelope.body) for envelope in t.unheard] == [
            ("a.x", b"one"),
            ("a.x", b"two"),
            ("a.x", b"five"),
            ("a.x", b"six"),
        ]
    assert got == ["three", 1]


class Color(Enum):
    RED = "red"


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Decimal, Decimal("1.5")),
        (UUID, UUID(int=5)),
        (Color, Color.RED),
        (date, date(2026, 1, 2)),
        (timedelta, timedelta(1)),
        (set[int], {1, 2}),
        (tuple[int, str], (1, "a")),
        (list[Quote], [Quote("A", 1.0)]),
        (dict[int, Quote], {1: Quote("A", 1.0)}),
        (list[Path], [Path("a")]),
        (Quote | None, Quote("A", 1.0)),
    ],
    ids=repr,
)
def test_a_message_is_published_as_its_handler_declares(schema: Any, message: Any, codec: Any) -> None:
    """The test needs no publisher to publish a message whose own type is ambiguous."""
    app, got = App(codec=codec, types={Path: (str, Path)}), list[Any]()

    @app.subscribe("a")
    def without_a_body() -> None: ...

    @app.subscribe("a")
    @app.subscribe("b.{n}")
    def handler(body: Any) -> None:
        got.append(body)

    handler.__annotations__["body"] = schema
    with TestApp(app) as t:
        t.publish("a", message)
        t.publish("b.1", message, message)
        t.publish("b.1", message, schema=schema)
    assert got == [message] * 4
    assert type(got[0]) is type(message)


def test_an_ambiguous_message_without_a_handler_needs_a_schema() -> None:
    """The error names the parameter; a stated schema is obeyed."""
    app = App()

    @app.subscribe("a.{n}")
    def handler(body: list[Quote]) -> None: ...

    with TestApp(app) as t:
        for topic, message in (("a.1", [Decimal(1)]), ("b", [Quote("A", 1.0)])):
            with pytest.raises(EncodeError, match=r"untyped message: .*in a test.*schema=list\[Quote\]"):
                t.publish(topic, message)
        t.publish("b", [Quote("A", 1.0)], schema=list[Quote])
        assert len(t.unheard) == 1
        with pytest.raises(EncodeError, match="expected int, got str"):
            t.publish("a.1", "x", schema=int)
        with pytest.raises(SchemaError):
            t.publish("a.1", 1j, schema=complex)


def test_what_can_not_be_published_raises_at_the_line_of_the_test() -> None:
    """A bad topic or message raises in the test's own line."""
    with TestApp(alerting()) as t:
        with pytest.raises(TopicError):
            t.publish("stocks.*", 1)
        with pytest.raises(EncodeError):
            t.publish("stocks.A", object())


def test_clear_forgets_what_was_so_far() -> None:
    """clear() deletes the records, so a test can look at one step at a time."""
    app = alerting()
    with TestApp(app) as t:
        t.publish("stocks.A", Quote("A", 2000.0))
        t.clear()
        assert (t.published(), t.failures, t.unheard) == ([], [], [])
        t.publish("stocks.A", Quote("A", 3000.0))
        assert len(t.published()) == 1


# -- results and failures --------------------------------------------------------------------------------


@both
def test_results_are_what_functions_returned(reactor: Reactor) -> None:
    """Results of functions, coroutines, Deferreds and timers are awaited and in order."""
    app = App()

    @app.subscribe("a")
    def plain(message: int) -> int:
        return message + 1

    @app.subscribe("a")
    async def coroutine(message: int) -> int:
        return message + 2

    @app.subscribe("a")
    def deferred(message: int) -> Any:
        waiting: Deferred[int] = Deferred()
        waiting.callback(message + 3)
        return waiting

    @app.every(1.0)
    def tick() -> str:
        return "tick"

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
        t.publish("a", 2)
        assert (t.results(plain), t.results(coroutine), t.results(deferred)) == ([2, 3], [3, 4], [4, 5])
        assert t.results(tick) == ["tick"]
        assert t.results(print) == []


def test_the_results_of_methods_are_found_by_the_bound_method() -> None:
    """The results of a method are found by any bound method object of it."""

    class Desk:
        def on_a(self, message: int) -> int:
            return message

    app, desk = App(), Desk()
    app.subscribe("a")(desk.on_a)
    with TestApp(app) as t:
        t.publish("a", 5)
        assert t.results(desk.on_a) == [5]


@both
def test_errors_of_handlers_are_raised_in_the_test(reactor: Reactor) -> None:
    """The error of a handler is raised by t.publish."""
    app = App()

    @app.subscribe("a")
    def plain(message: int) -> None:
        raise ValueError("plain")

    @app.subscribe("b")
    async def coroutine(message: int) -> None:
        raise ValueError("coroutine")

    with TestApp(app, reactor=reactor) as t:
        with pytest.raises(ValueError, match="plain"):
            t.publish("a", 1)
        with pytest.raises(ValueError, match="coroutine"):
            t.publish("b", 1)
        assert [str(failure) for failure in t.failures] == ["plain", "coroutine"]


def test_several_errors_come_as_a_group() -> None:
    """Errors of two handlers are raised as a group."""
    app = App()

    @app.subscribe("a")
    def one(message: int) -> None:
        raise ValueError("one")

    @app.subscribe("a")
    def two(message: int) -> None:
        raise KeyError("two")

    with TestApp(app) as t, pytest.raises(ExceptionGroup) as raised:
        t.publish("a", 1)
    assert [type(error) for error in raised.value.exceptions] == [ValueError, KeyError]


def test_errors_are_only_collected_when_asked() -> None:
    """With raise_errors=False, errors of handlers, timers and hooks are only collected."""
    app = App()

    @app.subscribe("a")
    def one(message: int) -> None:
        raise ValueError("one")

    @app.every(1.0)
    def tick() -> None:
        raise KeyError("tick")

    @app.on_shutdown
    def leave() -> None:
        raise OSError("leave")

    with TestApp(app, raise_errors=False) as t:
        t.publish("a", 1)
    assert [type(failure) for failure in t.failures] == [KeyError, ValueError, OSError]


def test_an_error_that_a_hook_took_is_not_raised() -> None:
    """An error that on_error handles is not raised, but is in ``failures``."""
    app, taken = App(), []

    @app.subscribe("a")
    def one(message: int) -> None:
        raise ValueError("one")

    @app.on_error(ValueError)
    def on_error(error: ValueError, envelope: Envelope) -> None:
        taken.append((str(error), envelope.topic))

    with TestApp(app) as t:
        t.publish("a", 1)
        assert len(t.failures) == 1
    assert taken == [("one", "a")]


def test_errors_of_timers_hooks_and_the_shutdown_are_raised_where_they_come_up() -> None:
    """Errors are raised at the start, in advance(), or at the end of the block."""
    app = App()

    @app.publisher("beat", every=1.0, initial_delay=1.0)
    def beat() -> object:
        return object()  # can't be encoded

    @app.on_shutdown
    def leave() -> None:
        raise OSError("leave")

    t = TestApp(app)
    t.__enter__()
    with pytest.raises(EncodeError):
        t.advance(1)
    with pytest.raises(OSError, match="leave"):
        t.__exit__(None, None, None)


def test_what_the_test_raises_is_not_hidden_by_the_stop() -> None:
    """A failed assertion of the test is not replaced by an error of the stop."""
    app = App()

    @app.on_shutdown
    def leave() -> None:
        raise OSError("leave")

    with pytest.raises(AssertionError, match="mine"), TestApp(app):
        raise AssertionError("mine")


# -- time ------------------------------------------------------------------------------------------------


@both
def test_time_passes_as_the_test_says(reactor: Reactor) -> None:
    """Timers run once per virtual period, in order, without real waiting."""
    app = App()

    @app.publisher("fast", every=1.0)
    def fast() -> int:
        return 1

    @app.publisher("slow", every=2.5, initial_delay=0.25)
    async def slow() -> int:
        return 2

    with TestApp(app, reactor=reactor) as t:
        assert t.published() == [1]
        t.advance(3)
        assert t.published() == [1, 2, 1, 1, 2, 1]
        t.advance(600)
        assert app.stats.skipped_periods == 0
        assert len(t.published("fast")) == 604


def test_asyncio_sleeps_on_virtual_time() -> None:
    """``await asyncio.sleep(60)`` takes a minute of virtual time only."""
    app, woken = App(), []

    @app.subscribe("a")
    async def on_a(message: float) -> None:
        async with asyncio.timeout(100):
            await asyncio.sleep(message)
        woken.append(message)

    with TestApp(app, reactor="asyncio") as t:
        t.publish("a", 60.0)
        t.advance(59)
        assert woken == []
        t.advance(1)
        assert woken == [60.0]


def test_messages_of_one_topic_wait_for_each_other() -> None:
    """Order and bounds are those of a real run."""
    app, log = App(), []

    @app.subscribe("a.*", max_in_flight=2)
    async def on_a(message: int) -> None:
        log.append(("begin", message))
        await asyncio.sleep(1)
        log.append(("end", message))

    with TestApp(app, reactor="asyncio") as t:
        for number, topic in enumerate(["a.x", "a.x", "a.y", "a.z"]):
            t.publish(topic, number)
        assert log == [("begin", 0), ("begin", 2)]
        assert app.stats.routes[next(iter(app.stats.routes))].queued == 2
        t.advance(1)
        assert set(log[4:]) == {("begin", 1), ("begin", 3)}
        t.advance(1)
        assert app.stats.handled == 4


def test_a_full_route_pauses_and_nothing_is_lost() -> None:
    """Messages beyond the queue's bound wait outside and are delivered later."""
    app, seen = App(), []

    @app.subscribe("a", queue=2)
    async def on_a(message: int) -> None:
        await asyncio.sleep(1)
        seen.append(message)

    with TestApp(app, reactor="asyncio") as t:
        for number in range(10):
            t.publish("a", number)
        assert app.stats.received == 3
        t.advance(10)
    assert seen == list(range(10))


def test_the_counters_say_since_when_reading_is_paused_and_by_which_routes() -> None:
    """app.stats shows since when reading is paused, and by which routes."""
    app = App()

    @app.subscribe("a", queue=1)
    async def slow(message: int) -> None:
        await asyncio.sleep(30)

    @app.subscribe("a", queue=1)
    async def slower(message: int) -> None:
        await asyncio.sleep(60)

    with TestApp(app, reactor="asyncio") as t:
        t.publish("a", 0)
        assert (app.stats.paused_since, app.stats.paused_by) == (None, ())
        began = time.time()
        t.advance(10)
        t.publish("a", 1)
        since = app.stats.paused_since
        assert since is not None
        assert 9 < since - began < 60
        assert app.stats.paused_by == ("slow()", "slower()")
        t.publish("a", 2)
        t.advance(25)
        assert (app.stats.paused_since, app.stats.paused_by) == (since, ("slower()",))
        assert app.stats.as_dict()["paused_by"] == ("slower()",)
        t.advance(240)
        assert app.stats.handled == 6
        assert (app.stats.paused_since, app.stats.paused_by) == (None, ())
        t.publish("a", 3, 4, 5)
        assert app.stats.paused_by
        t.advance(300)
    assert (app.stats.paused_since, app.stats.paused_by) == (None, ())


# -- resources, threads, streams -------------------------------------------------------------------------


@both
def test_resources_open_and_close_with_the_block(reactor: Reactor) -> None:
    """Sync and async resources open in the order of their dependencies."""
    app, log = App(), []

    class Cache:
        def __init__(self, database: Database) -> None:
            self.database = database

    @app.resource
    async def cache(database: Database) -> AsyncIterator[Cache]:
        log.append("cache")
        yield Cache(database)
        log.append("cache closed")

    @app.resource
    def database() -> Iterator[Database]:
        log.append("database")
        yield Database()
        log.append("database closed")

    @app.subscribe("stocks.*")
    def on_quote(quote: Quote, cache: Cache, database: Database) -> bool:
        database.rows.append(quote)
        return cache.database is database

    with TestApp(app, reactor=reactor) as t:
        t.publish("stocks.A", Quote("A", 1.0))
        assert t.results(on_quote) == [True]
    assert log == ["database", "cache", "cache closed", "database closed"]


def test_a_replaced_resource_is_never_opened() -> None:
    """Neither a replaced resource nor one that only it needs is opened."""
    app, log, fake = App(), [], Database()

    class Settings: ...

    @app.resource
    def settings() -> Iterator[Settings]:
        log.append("settings")
        yield Settings()

    @app.resource
    def database(settings: Settings) -> Iterator[Database]:
        log.append("database")
        yield Database()

    @app.subscribe("stocks.*")
    def on_quote(quote: Quote, database: Database) -> None:
        database.rows.append(quote)

    with TestApp(app, {Database: fake}) as t:
        t.publish("stocks.A", Quote("A", 1.0))
    assert (log, fake.rows) == ([], [Quote("A", 1.0)])


def test_replacing_what_is_no_resource_says_what_is() -> None:
    """A wrong type in the mapping is an error that lists the resources."""
    app = App()

    @app.resource
    def database() -> Iterator[Database]:
        yield Database()

    with pytest.raises(
        SignatureError,
        match="can't replace Quote, because it is not a resource of the app; resources of the app: Database",
    ):
        TestApp(app, {Quote: 1})


def test_a_resource_that_fails_to_open_fails_the_test() -> None:
    """The test gets the resource's own error after the earlier ones have closed."""
    app, log = App(), []

    class Second: ...

    @app.resource
    def database() -> Iterator[Database]:
        yield Database()
        log.append("closed")

    @app.resource
    def second(database: Database) -> Iterator[Second]:
        raise OSError("no disk")
        yield Second()

    with pytest.raises(OSError, match="no disk"), TestApp(app):
        raise AssertionError("the block must not run")
    assert log == ["closed"]


def test_a_start_that_waits_for_the_outside_says_what_to_do() -> None:
    """A start that waits for a real network fails with a remedy."""
    app = App()

    @app.resource
    async def database() -> AsyncIterator[Database]:
        await Deferred()
        yield Database()

    with pytest.raises(UnfinishedError, match=r"has not started.*TestApp\(app, \{Database: fake\}\)"), TestApp(app):
        raise AssertionError("the block must not run")


@both
def test_threads_are_real_and_waited_for(reactor: Reactor) -> None:
    """publish returns after a threaded handler has ended and its messages are published."""
    app = App()
    done = app.publisher("done", str)

    @app.subscribe("work.*", thread=True)
    def work(message: int) -> str:
        app.from_thread(done.publish, f"done {message}")
        return threading.current_thread().name

    with TestApp(app, reactor=reactor) as t:
        t.publish("work.a", 1)
        t.publish("work.a", 2)
        assert t.published("done") == ["done 1", "done 2"]
        assert all(name != threading.current_thread().name for name in t.results(work))


@both
def test_streams_and_attached_handlers_work(reactor: Reactor) -> None:
    """Streams and attached handlers work in a test."""
    app, heard = App(), []

    @app.subscribe("listen")
    async def listen(room: str) -> None:
        async with app.stream(f"rooms.{room}", str) as messages:
            async for message in messages:
                heard.append((room, message))
                if message == "bye":
                    break

    with TestApp(app, reactor=reactor) as t:
        t.publish("listen", "lobby")
        t.publish("rooms.lobby", "hello")
        handle = app.attach("rooms.*", heard.append)
        t.publish("rooms.lobby", "bye")
        handle.close()
        t.publish("rooms.lobby", "no reader")
        assert [envelope.topic for envelope in t.unheard] == ["rooms.lobby"]
    assert heard == [("lobby", "hello"), "bye", ("lobby", "bye")] or heard == [
        ("lobby", "hello"),
        ("lobby", "bye"),
        "bye",
    ]


# -- several apps ----------------------------------------------------------------------------------------


def test_two_apps_are_joined() -> None:
    """Each app receives the messages of the other; with endpoints, none receives its own."""
    asking, answering, heard = (
        App(sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2"),
        App(sub="tcp://127.0.0.1:2", pub="tcp://127.0.0.1:1"),
        [],
    )
    questions = asking.publisher("question", str)

    @asking.on_startup
    def ask() -> None: ...

    @asking.subscribe("start")
    def start(message: str) -> None:
        questions.publish(message)

    @asking.subscribe("question")
    def own(message: str) -> None:
        raise AssertionError("it has no endpoint of its own to hear itself")

    @asking.subscribe("answer")
    def on_answer(message: str) -> None:
        heard.append(message)

    @answering.publisher("answer", str)
    @answering.subscribe("question")
    def answer(message: str) -> str:
        return message.upper()

    with TestApp(asking, answering) as t:
        t.publish("start", "why")
        assert t.published("answer") == ["WHY"]
    assert heard == ["WHY"]


def test_a_loop_inside_the_app_is_a_loop_in_the_test() -> None:
    """An app without endpoints receives its own messages."""
    app = App()

    @app.publisher("b", int)
    @app.subscribe("a")
    def first(message: int) -> int:
        return message + 1

    @app.subscribe("b")
    def second(message: int) -> int:
        return message

    with TestApp(app) as t:
        t.publish("a", 1)
        assert t.results(second) == [2]


# -- the block -------------------------------------------------------------------------------------------


def test_an_app_can_be_tested_again_and_again() -> None:
    """Each block is a run with its own counters."""
    app = alerting()
    for _ in range(3):
        with TestApp(app) as t:
            t.publish("stocks.A", Quote("A", 2000.0))
            assert len(t.published()) == 1
            assert app.stats.received == 2 or app.stats.received == 1


def test_outside_the_block_nothing_runs() -> None:
    """Using a TestApp without `with` raises an error that explains it."""
    app = alerting()
    t = TestApp(app)
    with pytest.raises(UsageError, match="in a with block"):
        t.publish("stocks.A", Quote("A", 1.0))
    with t:
        pass
    with pytest.raises(NotRunningError):
        app.publish("a", 1)


def test_unfinished_handlers_fail_the_test() -> None:
    """A handler that never ends fails the test."""
    app = App()

    @app.subscribe("a")
    def on_a(message: int) -> Any:
        return Deferred()

    t = TestApp(app)
    t.__enter__()
    t.publish("a", 1)
    t.publish("a", 2)
    with pytest.raises(UnfinishedError, match=r"on_a\(\): 2"):
        t.__exit__(None, None, None)
    with TestApp(app, raise_errors=False) as t:
        t.publish("a", 1)


def test_what_never_comes_to_rest_is_said() -> None:
    """An endless generator without every= fails the test instead of blocking it."""
    app = App()

    @app.publisher("a", int)
    def endless() -> Iterator[int]:
        while True:
            yield None  # type: ignore[misc]

    with pytest.raises(RestlessError, match="every="), TestApp(app):
        raise AssertionError("the block must not run")


def test_an_async_test_is_refused_with_the_way() -> None:
    """TestApp in a running loop is refused, and the error says what to write."""

    async def inside() -> None:
        with pytest.raises(UsageError, match="plain `def test_"), TestApp(App()):
            pass

    asyncio.run(inside())


@pytest.mark.parametrize(
    "wrong", [lambda: TestApp(), lambda: TestApp(App(), {}, {}), lambda: TestApp(App(), reactor="x")]
)  # type: ignore[arg-type]
def test_wrong_use_says_what_it_takes(wrong: Callable[[], Any]) -> None:
    """No app, two mappings and an unknown reactor are errors that name valid arguments."""
    with pytest.raises(SignatureError):
        wrong()


def test_groups_and_hooks_take_part(caplog: pytest.LogCaptureFixture) -> None:
    """Included groups, and startup and shutdown hooks with resources, run in a test."""
    app, desk, log = App(), Routes(prefix="desk"), []

    @desk.resource
    def database() -> Iterator[Database]:
        yield Database()

    @desk.subscribe("quotes")
    def on_quote(quote: Quote, database: Database) -> None:
        database.rows.append(quote)

    @app.on_startup
    async def begin(database: Database) -> None:
        log.append(len(database.rows))

    @app.on_shutdown
    def end(database: Database, app: App) -> None:
        log.append(len(database.rows))

    app.include(desk)
    with caplog.at_level(logging.WARNING), TestApp(app) as t:
        t.publish("desk.quotes", Quote("A", 1.0))
    assert log == [0, 1]
    assert caplog.text == ""


@both
def test_handlers_of_lists_run_as_they_would(reactor: Reactor) -> None:
    """A batch handler gets the messages of one turn as one list, and may return lists."""
    app = App()

    @app.publisher("quotes", Quote)
    @app.subscribe("burst")
    def burst(count: int) -> Iterator[Quote]:
        yield from (Quote("A", float(number)) for number in range(count))

    @app.subscribe("quotes", batch=10)
    async def on_quotes(quotes: list[Quote]) -> list[float]:
        return [quote.price for quote in quotes]

    with TestApp(app, reactor=reactor) as t:
        t.publish("quotes", Quote("A", 5.0))
        assert t.results(on_quotes) == [[5.0]]
        t.clear()
        t.publish("burst", 12)
        prices = [price for each in t.results(on_quotes) for price in each]
        assert prices == [float(number) for number in range(12)]
        assert max(map(len, t.results(on_quotes))) == 10
