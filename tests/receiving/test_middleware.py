"""Middleware: functions around the handlers of an app."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NewType
from weakref import ref

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed

from tests.pure import Wired, plain
from tests.running import Mailbox, running, turns
from tests.support import PATIENCE, free_endpoint
from zroute import App, Envelope, RouteInfo, Routes, SignatureError, Topic, WithHeaders
from zroute.awaiting import as_awaitable
from zroute.errors import AppFrozenError, UsageError
from zroute.testing import TestApp

Call = Callable[[Any], Any]
Seen = list[Any]
Reactor = Literal["twisted", "asyncio"]
REACTORS: tuple[Reactor, ...] = ("twisted", "asyncio")
both = pytest.mark.parametrize("reactor", REACTORS)
variable: ContextVar[str | None] = ContextVar("variable", default=None)


def around_both(before: Callable[[Any], object], *, passes: Callable[[Any], bool] = lambda _: True) -> Any:
    """Return a factory for plain and async handlers: it calls ``before``, and the handler if ``passes`` is true."""

    def factory(call: Call, route: RouteInfo) -> Any:
        async def around_async(message: Any) -> Any:
            before(message)
            return await call(message) if passes(message) else None

        def around(message: Any) -> Any:
            before(message)
            return call(message) if passes(message) else None

        return around_async if route.is_async else around

    return factory


def noted(group: Routes, seen: Seen, name: str) -> None:
    """Add a middleware that notes its name before and after each message."""

    @group.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(message: Any) -> Any:
            seen.append(name)
            try:
                return call(message)
            finally:
                seen.append(f"/{name}")

        return around


def counted(app: App, name: str) -> dict[str, int]:
    """Return the counters of a route that are not 0."""
    stats = app.stats.routes[name]
    return {key: value for key in stats.__slots__ if not key.startswith("_") and (value := getattr(stats, key))}


# -- factories and order ---------------------------------------------------------------------------------


def test_the_first_one_is_outermost_and_those_of_the_app_are_around_those_of_groups() -> None:
    """The order of registration is the order of calls; the app's are outside, those of inner groups inside."""
    app, outer, inner, seen = App(), Routes("outer"), Routes("inner"), Seen()
    noted(inner, seen, "inner")
    noted(app, seen, "first")
    noted(outer, seen, "outer")
    noted(app, seen, "second")
    outer.include(inner)
    app.include(outer)

    @inner.subscribe("a")
    def handle(message: int) -> None:
        seen.append("handler")

    @app.subscribe("b")
    def of_the_app(message: int) -> None:
        seen.append("handler")

    with TestApp(app) as t:
        t.publish("outer.inner.a", 1)
        assert seen == ["first", "second", "outer", "inner", "handler", "/inner", "/outer", "/second", "/first"]
        seen.clear()
        t.publish("b", 1)
        assert seen == ["first", "second", "handler", "/second", "/first"]


def test_a_factory_is_called_once_for_each_route_with_its_facts() -> None:
    """It learns the name, patterns, type and kind of each route of its group, when the app is compiled."""
    app, group, facts = App(), Routes("g"), list[RouteInfo]()

    @group.middleware
    def facts_of(call: Call, route: RouteInfo) -> Call:
        facts.append(route)
        return call

    @app.subscribe("elsewhere")
    def elsewhere(message: int) -> None: ...

    @group.subscribe("a", "b")
    def one(message: int) -> None: ...

    @group.subscribe("c.{x}", batch=5)
    async def two(messages: list[str]) -> None: ...

    @group.subscribe("d")
    def three() -> None: ...

    @group.publisher("out", int)
    @group.subscribe("e")
    def four(message: int) -> Iterator[int]:
        yield message

    @group.publisher("out.later", int)
    @group.subscribe("f")
    async def five(message: int) -> AsyncIterator[int]:
        yield message

    app.include(group)
    app.compile()
    app.compile()
    assert [(each.name, each.is_batch, each.is_generator) for each in facts] == [
        ("one()", False, False),
        ("two()", True, False),
        ("three()", False, False),
        ("four()", False, True),
        ("five()", False, True),
    ]
    assert [(each.name, each.kind, each.patterns, each.schema, each.is_async) for each in facts] == [
        ("one()", "subscribe", ("g.a", "g.b"), int, False),
        ("two()", "subscribe", ("g.c.{x}",), str, True),
        ("three()", "subscribe", ("g.d",), None, False),
        ("four()", "subscribe", ("g.e",), int, False),
        ("five()", "subscribe", ("g.f",), int, False),
    ]


def test_a_group_that_is_included_twice_is_surrounded_twice() -> None:
    """Each route gets a call of its own, so its facts and its messages do not mix with those of the other."""
    app, group, seen = App(), Routes(), Seen()

    @group.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            seen.append((route.patterns, message))
            return call(message)

        return around

    @group.subscribe("a")
    def handle(message: int) -> None: ...

    app.include(group, prefix="x")
    app.include(group, prefix="y")
    with TestApp(app) as t:
        t.publish("x.a", 1)
        t.publish("y.a", 2)
    assert seen == [(("x.a",), 1), (("y.a",), 2)]


def test_it_is_registered_before_the_app_is_compiled() -> None:
    """A late middleware, and a factory that is async, a generator or no function, are refused at their line."""
    app = App()

    async def later(call: Call, route: RouteInfo) -> Call:
        return call

    def generator(call: Call, route: RouteInfo) -> Iterator[Call]:
        yield call

    for function in (later, generator):
        with pytest.raises(SignatureError, match=r"the function around the handler.*write def \w+\(call, route\)"):
            app.middleware(function)
    with pytest.raises(SignatureError, match="middleware decorates a function"):
        app.middleware(5)  # type: ignore[type-var]
    app.compile()
    with pytest.raises(AppFrozenError):
        app.middleware(lambda call, route: call)


# -- what it costs ---------------------------------------------------------------------------------------


def test_returning_call_itself_costs_nothing() -> None:
    """A route whose factories return call is compiled and called as one without middleware."""

    def made(middlewares: int) -> Any:
        app = App()
        for _ in range(middlewares):
            app.middleware(lambda call, route: call)

        @app.subscribe("a")
        def handle(message: int) -> None: ...

        wired = Wired(app)
        wired.feed(plain("a", b"1"))
        (route,) = app.compile().parts.routes
        return route.around.chain, route.around.isolated, route.flow.active, route.info

    chain, isolated, active, info = made(0)
    assert (chain, isolated, active) == (None, False, False)
    for middlewares in (1, 3):
        assert made(middlewares)[:3] == (None, False, False)
        assert made(middlewares)[3].name == info.name


# -- arguments -------------------------------------------------------------------------------------------


Place = NewType("Place", str)


class Database:
    """A resource of the app."""


def test_it_takes_the_topic_the_envelope_and_resources_by_type() -> None:
    """Parameters of around are filled like those of handlers, in any order, also the app itself."""
    app, seen = App(), Seen()
    database = Database()

    @app.resource
    def open_database() -> Iterator[Database]:
        yield database

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(db: Database, topic: Topic, message: Any, envelope: Envelope, running: App) -> Any:
            seen.append((db is database, topic, message, envelope.topic, dict(envelope.headers), running is app))
            return call(message)

        return around

    @app.subscribe("a.{x}")
    def handle(message: int, x: str, db: Database) -> None:
        seen.append((message, x, db is database))

    @app.subscribe("a.*", "none.*")
    def without_body() -> None:
        seen.append("no body")

    with TestApp(app) as t:
        t.publish("a.1", 1, headers={"h": 1})
        t.publish("a.2", 2)
    assert seen == [
        (True, "a.1", 1, "a.1", {"h": 1}, True), (1, "1", True),
        (True, "a.1", None, "a.1", {"h": 1}, True), "no body",
        (True, "a.2", 2, "a.2", {}, True), (2, "2", True),
        (True, "a.2", None, "a.2", {}, True), "no body",
    ]  # fmt: skip


def test_a_resource_that_only_middleware_takes_is_opened_and_replaced() -> None:
    """It opens before the first message, and a test replaces it like any other."""
    app, seen = App(), Seen()

    @app.resource
    def open_database() -> Iterator[Database]:
        seen.append("open")
        yield Database()
        seen.append("close")

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(message: int, db: Database) -> Any:
            seen.append(type(db).__name__)
            return call(message)

        return around

    @app.subscribe("a")
    def handle(message: int) -> None: ...

    with TestApp(app) as t:
        t.publish("a", 1)
    assert seen == ["open", "Database", "close"]
    seen.clear()

    class Fake(Database):
        """A replacement."""

    with TestApp(app, {Database: Fake()}) as t:
        t.publish("a", 1)
    assert seen == ["Fake"]


def test_around_may_take_keywords_and_defaults() -> None:
    """A keyword-only resource and a parameter with a default of its own work as in handlers."""
    app, seen = App(), Seen()

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(message: int, *, topic: Topic, seen: Seen = seen) -> Any:
            seen.append(topic)
            return call(message)

        return around

    @app.subscribe("a.*")
    def handle(message: int) -> None: ...

    with TestApp(app) as t:
        t.publish("a.b", 1)
    assert seen == ["a.b"]


def test_it_may_pass_on_another_message() -> None:
    """The handler gets what call gets; the next middleware sees it too."""
    app, seen = App(), Seen()
    app.middleware(lambda call, route: lambda message: call(message + 1))
    app.middleware(lambda call, route: lambda message: call(message * 10))

    @app.subscribe("a")
    def handle(message: int) -> None:
        seen.append(message)

    with TestApp(app) as t:
        t.publish("a", 1)
    assert seen == [20]


# -- results ---------------------------------------------------------------------------------------------


@both
def test_what_it_returns_replaces_the_result(reactor: Reactor) -> None:
    """The result of around is published, of plain, async and thread handlers, with headers, and for a batch."""
    app = App()

    @app.middleware
    def replace(call: Call, route: RouteInfo) -> Any:
        async def around_async(message: Any) -> Any:
            return WithHeaders(await call(message) + 1, {"by": route.name})

        def around(message: Any) -> Any:
            return WithHeaders(call(message) + 1, {"by": route.name})

        return around_async if route.is_async else around

    @app.publisher("out.plain", int)
    @app.subscribe("plain")
    def on_plain(message: int) -> int:
        return message

    @app.publisher("out.async", int)
    @app.subscribe("async")
    async def on_async(message: int) -> int:
        return message

    @app.publisher("out.thread", int)
    @app.subscribe("thread", thread=True)
    def on_thread(message: int) -> int:
        return message

    @app.publisher("out.batch", int)
    @app.subscribe("batch", batch=10)
    def on_batch(messages: list[int]) -> int:
        return sum(messages)

    with TestApp(app, reactor=reactor) as t:
        for name in ("plain", "async", "thread", "batch"):
            t.publish(name, 1, 2)
            by = {"by": f"on_{name}()"}
            wanted = [(4, by)] if name == "batch" else [(2, by), (3, by)]
            sent = zip(t.published(f"out.{name}"), t.envelopes(f"out.{name}"), strict=True)
            assert [(value, dict(envelope.headers)) for value, envelope in sent] == wanted


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "async": {},
    "thread": {"thread": True},
    "batch": {"batch": 10},
    "async batch": {"batch": 10},
    "thread batch": {"thread": True, "batch": 10},
    "unordered": {"ordered": False},
    "retry": {"retry": (1,)},
    "timeout": {"timeout": 5.0},
    "thread timeout": {"timeout": 5.0, "thread": True},
    "deferred": {},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def handler_of(kind: str, take: Callable[[Any], Any]) -> Any:
    """Return a handler of the kind, which calls ``take`` with each message."""
    options = KINDS[kind]

    def each(message: Any) -> Any:
        return [take(one) for one in message][-1] if isinstance(message, list) else take(message)

    if kind.startswith("async") or kind == "timeout":

        async def handle(message: Any) -> Any:
            return each(message)

    elif kind == "deferred":

        def handle(message: Any) -> Any:
            waiting: Deferred[Any] = Deferred()
            waiting.callback(each(message))
            return waiting

    else:

        def handle(message: Any) -> Any:
            return each(message)

    handle.__annotations__ = {"message": list[int] if "batch" in options else int}
    return handle


@both
@pytest.mark.parametrize("is_async", [False, True])
def test_it_may_add_headers_to_those_of_the_handler(is_async: bool, reactor: Reactor) -> None:
    """The headers of both are sent, and those of the outer one win."""
    app = App()

    @app.middleware
    def stamp(call: Call, route: RouteInfo) -> Any:
        def stamped(result: Any) -> Any:
            return WithHeaders(result, {"by": "around", "v": 1})

        async def around_async(message: int) -> Any:
            return stamped(await call(message))

        return around_async if route.is_async else lambda message: stamped(call(message))

    def handle(message: int) -> WithHeaders[int]:
        return WithHeaders(message, {"by": "handler", "id": message})

    async def handle_async(message: int) -> WithHeaders[int]:
        return handle(message)

    app.publisher("out", int)(app.subscribe("in")(handle_async if is_async else handle))
    with TestApp(app, reactor=reactor) as t:
        t.publish("in", 7)
        assert [each.headers for each in t.envelopes("out")] == [{"by": "around", "v": 1, "id": 7}]


@both
@kinds
def test_a_message_whose_handler_is_not_called_counts_as_skipped(kind: str, reactor: Reactor) -> None:
    """Each message is counted once: as handled, skipped or failed."""
    app, got = App(), Seen()

    def passes(message: Any) -> bool:
        return 9 not in message if isinstance(message, list) else message != 9

    def take(message: int) -> None:
        if message == 5:
            raise ValueError("five")
        got.append(message)

    app.middleware(around_both(lambda _: None, passes=passes))
    handle = handler_of(kind, take)
    app.subscribe("a", **KINDS[kind])(handle)
    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        for message in (1, 9, 5, 9, 2):
            t.publish("a", message)
        t.advance(10)
        assert got == [1, 2]
        wanted = {"handled": 2, "skipped": 2, "handler_error": 1}
        assert counted(app, "handle()") == wanted | ({"retried": 1} if kind == "retry" else {})
        t.publish("a", 9, 9, 9)
        assert counted(app, "handle()")["skipped"] == 5


@both
@kinds
def test_a_skipped_message_may_have_a_result(kind: str, reactor: Reactor) -> None:
    """What around returns instead of calling the handler is published."""
    app = App()

    @app.middleware
    def answer(call: Call, route: RouteInfo) -> Any:
        async def around_async(message: Any) -> int:
            return 7

        return around_async if route.is_async else lambda message: 7

    handle = handler_of(kind, lambda _: pytest.fail("called"))
    app.publisher("out", int)(app.subscribe("a", **KINDS[kind])(handle))
    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
        assert t.published("out") == [7]
        assert counted(app, "handle()") == {"skipped": 1}


@both
def test_a_call_that_fails_or_is_late_is_not_skipped(reactor: Reactor) -> None:
    """Without a call, an error of around, of its Deferred, and a timeout count as what they are."""
    app = App()

    @app.middleware
    def fail(call: Call, route: RouteInfo) -> Any:
        async def never(message: int) -> None:
            await as_awaitable(Deferred())

        def around(message: int) -> Any:
            failed: Deferred[None] = Deferred()
            failed.errback(ValueError("later"))
            if route.name == "deferred()":
                return failed
            failed.addErrback(lambda _: None)
            raise ValueError("at once")

        return never if route.is_async else around

    @app.subscribe("plain")
    def at_once(message: int) -> None: ...

    @app.subscribe("deferred")
    def deferred(message: int) -> None: ...

    @app.subscribe("async", timeout=1.0)
    async def late(message: int) -> None: ...

    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        for topic in ("plain", "deferred", "async"):
            t.publish(topic, 1)
        t.advance(5)
        assert counted(app, "at_once()") == counted(app, "deferred()") == {"handler_error": 1}
        assert counted(app, "late()") == {"handler_error": 1, "timed_out": 1}


@both
def test_a_handler_that_returns_an_awaitable_is_called_in_its_context(reactor: Reactor) -> None:
    """A plain around may return a coroutine that calls the handler later, from the first message on."""
    app, gates, got = App(), list[Deferred[Any]](), Seen()

    @app.middleware
    def wait(call: Call, route: RouteInfo) -> Any:
        async def later(message: int, topic: Topic) -> Any:
            await as_awaitable(gates[-1])
            result = call(message)
            got.append((topic, variable.get()))
            return result

        def around(message: int, topic: Topic) -> Any:
            variable.set(topic)
            gates.append(Deferred())
            return later(message, topic)

        return around

    @app.publisher("out", int)
    @app.subscribe("a.{key}")
    def handle(message: int, key: str, envelope: Envelope) -> int:
        got.append((message, key, envelope.topic, variable.get()))
        return message

    with TestApp(app, reactor=reactor) as t:
        for key, message in (("x", 1), ("x", 2), ("y", 3)):
            t.publish(f"a.{key}", message)
            assert got == []
            gates[-1].callback(None)
            t.advance(0)
            assert got == [(message, key, f"a.{key}", f"a.{key}"), (f"a.{key}", f"a.{key}")]
            got.clear()
        assert t.published("out") == [1, 2, 3]
        assert counted(app, "handle()") == {"handled": 3}


@both
@pytest.mark.parametrize("asks", [False, True])
def test_call_works_only_in_the_context_of_its_message(asks: bool, reactor: Reactor) -> None:
    """In a callback or in another thread it raises UsageError, which says where to call it."""
    app, gates = App(), list[Deferred[Any]]()

    @app.middleware
    def outer(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            gates.append(gate := Deferred())
            return gate.addCallback(lambda _: call(message))

        return around

    @app.middleware
    def inner(call: Call, route: RouteInfo) -> Any:
        def around(message: int, topic: Topic) -> Any:
            return call(message)

        return around if asks else call

    @app.subscribe("a")
    def handle(message: int) -> None:
        pytest.fail("called")

    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        for number in (1, 2):
            t.publish("a", number)
            gates[-1].callback(None)
            t.advance(0)
        assert [type(error) for error in t.failures] == [UsageError] * 2
        assert "outside the context of its message" in str(t.failures[0])
        assert counted(app, "handle()") == {"handler_error": 2}


@pytest.mark.parametrize("kind", ["plain", "async", "deferred", "batch", "thread", "retry"])
def test_a_result_is_published_outside_the_context_of_its_message(kind: str) -> None:
    """A publish middleware sees no variable of the handler, however the handler is called."""
    app, seen = App(isolate=True), []

    @app.publish_middleware
    def look(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            seen.append((message, variable.get()))
            return call(message)

        return around

    def plainly(message: int) -> Any:
        variable.set("set")
        return succeed(message) if kind == "deferred" and message == 1 else message

    async def later(message: int) -> int:
        return int(plainly(message))

    def lists(messages: list[int]) -> int:
        return int(plainly(sum(messages)))

    function: Any = {"async": later, "batch": lists}.get(kind, plainly)
    options: Any = {"batch": {"batch": 1}, "thread": {"thread": True}, "retry": {"retry": (0,)}}.get(kind, {})
    app.publisher("out", int)(app.subscribe("a", **options)(function))
    with TestApp(app) as t:
        t.publish("a", 1, 2)
    assert seen == [(1, None), (2, None)]


class Opened:
    """A resource of a message."""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("takes", ["message", "envelope"])
@pytest.mark.parametrize("kind", ["plain", "async", "deferred", "retry", "batch", "resource"])
def test_a_call_after_the_middleware_has_ended_is_refused(kind: str, takes: str, fails: bool) -> None:
    """A callback of asyncio runs in the context of the message, when its message is counted and others have come."""
    app, got, refused = App(), [], []

    @app.resource(scope="message")
    def opened() -> Iterator[Opened]:
        yield Opened()

    @app.middleware
    def late(call: Any, route: RouteInfo) -> Any:
        def begin(message: Any) -> None:
            def again() -> None:
                try:
                    result = call(message)
                    getattr(result, "close", int)()  # of a coroutine
                except UsageError as error:
                    refused.append(error)

            asyncio.get_running_loop().call_later(0.1, again)
            if fails:
                raise ValueError

        async def later(message: Any) -> None:
            begin(message)

        def around_body(message: Any) -> Any:
            return later(message) if kind == "deferred" else begin(message)

        def around_envelope(message: Any, envelope: Envelope) -> Any:
            return around_body(message)

        def around_resource(message: Any, opened: Opened) -> Any:
            return around_body(message)

        async def around_later(message: Any) -> None:
            begin(message)

        async def around_envelope_later(message: Any, envelope: Envelope) -> None:
            begin(message)

        if kind == "async":
            return around_later if takes == "message" else around_envelope_later
        if kind == "resource":
            return around_resource
        return around_envelope if takes == "envelope" and kind != "batch" else around_body

    def plainly(message: int) -> None:
        got.append(message)

    async def later(message: int) -> None:
        got.append(message)

    def lists(messages: list[int]) -> None:
        got.append(messages)

    function: Any = {"async": later, "batch": lists}.get(kind, plainly)
    options: Any = {"retry": {"retry": (0,)}, "batch": {"batch": 2}}.get(kind, {})
    app.subscribe("a", **options)(function)
    with TestApp(app, reactor="asyncio", raise_errors=False) as t:
        t.publish("a", 1, 2)
        t.publish("a", 3)
        t.advance(1)
        (stats,) = app.stats.routes.values()
        assert (got, stats.handler_error if fails else stats.skipped, stats.handled) == ([], 3, 0)
        expected = 2 if kind == "batch" else 3
        assert len(refused) == expected * (2 if kind == "retry" and fails else 1)
        assert "after around(message) had ended" in str(refused[0])


@pytest_twisted.ensureDeferred
async def test_a_thread_that_is_late_is_not_skipped() -> None:
    """A call that ends after its timeout without calling the handler counts as failed."""
    app, free, late = App(), threading.Event(), Mailbox[str]()

    @app.middleware
    def wait(call: Call, route: RouteInfo) -> Any:
        return lambda message: free.wait(PATIENCE) and None

    @app.subscribe("a", thread=True, timeout=0.01)
    def handle(message: int) -> None: ...

    @app.on_error(TimeoutError)
    def on_error(error: TimeoutError, envelope: Envelope) -> None:
        late.put(str(error))

    async with running(app):
        app.publish("a", 1)
        await turns(lambda: app.stats.routes["handle()"].timed_out == 1)
        free.set()
        assert await late.until(1) == ["handle() did not end within 0.01 s"]
        assert counted(app, "handle()") == {"handler_error": 1, "timed_out": 1}


# -- errors ----------------------------------------------------------------------------------------------


@both
@kinds
def test_an_error_of_around_is_an_error_of_the_handler(kind: str, reactor: Reactor) -> None:
    """It reaches on_error with the route, and counts as handler_error for each message."""
    app, errors = App(), Seen()

    def fail(message: Any) -> None:
        raise ValueError("around")

    app.middleware(around_both(fail))
    handle = handler_of(kind, lambda _: pytest.fail("called"))
    app.subscribe("a", **KINDS[kind])(handle)

    @app.on_error(ValueError)
    def on_error(error: ValueError, envelope: Envelope, route: RouteInfo, attempts: int) -> None:
        errors.append((str(error), route.name, attempts))

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1, 2)
        t.advance(10)
        many = 1 if "batch" in kind else 2
        attempts = 2 if kind == "retry" else 1
        assert errors == [("around", "handle()", attempts)] * many
        assert counted(app, "handle()")["handler_error"] == 2


@both
@kinds
def test_around_sees_the_error_of_the_handler_and_may_handle_it(kind: str, reactor: Reactor) -> None:
    """An error that around catches is no error of the message."""
    app, seen = App(), Seen()

    @app.middleware
    def catch(call: Call, route: RouteInfo) -> Any:
        async def around_async(message: Any) -> Any:
            try:
                return await call(message)
            except ValueError as error:
                seen.append(str(error))

        def around(message: Any) -> Any:
            try:
                return call(message)
            except ValueError as error:
                seen.append(str(error))

        return around_async if route.is_async else around

    def fail(message: int) -> None:
        raise ValueError("handler")

    handle = handler_of(kind, fail)
    app.subscribe("a", **KINDS[kind])(handle)
    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
        assert seen == ["handler"]
        assert counted(app, "handle()") == {"handled": 1}


# -- other handlers --------------------------------------------------------------------------------------


@both
def test_each_attempt_and_each_list_is_surrounded_once(reactor: Reactor) -> None:
    """Retry calls around again; a list of a batch is one call with the list."""
    app, seen = App(), Seen()
    app.middleware(around_both(seen.append))
    fails = [ValueError("1"), ValueError("2")]

    @app.subscribe("retry", retry=(1, 5))
    async def again(message: int) -> None:
        if fails:
            raise fails.pop()

    @app.subscribe("batch", batch=10)
    def batched(messages: list[int]) -> None: ...

    with TestApp(app, reactor=reactor) as t:
        t.publish("retry", 1)
        t.advance(10)
        assert seen == [1, 1, 1]
        seen.clear()
        t.publish("batch", 1, 2, 3)
        assert seen == [[1, 2, 3]]


@both
@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_is_surrounded_while_it_is_created(is_async: bool, reactor: Reactor) -> None:
    """Its values are published after around has returned."""
    app, seen = App(), Seen()
    noted(app, seen, "around")

    def values(message: int) -> Iterator[int]:
        for number in range(message):
            seen.append(number)
            yield number

    async def async_values(message: int) -> AsyncIterator[int]:
        for number in range(message):
            seen.append(number)
            yield number

    function: Any = async_values if is_async else values
    app.publisher("out", int)(app.subscribe("a")(function))
    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 2)
        assert seen == ["around", "/around", 0, 1]
        assert t.published("out") == [0, 1]
        assert counted(app, app.compile().parts.routes[0].name) == {"handled": 1}


def test_streams_are_not_surrounded_and_attached_handlers_are() -> None:
    """app.attach has the middleware of the app; app.stream has none."""
    app, seen, streamed, attached = App(), Seen(), Seen(), Seen()
    noted(app, seen, "around")

    with TestApp(app) as t:
        app.attach("attached", lambda message: attached.append(message))

        async def read() -> None:
            async with app.stream("streamed", int) as stream:
                async for each in stream:
                    streamed.append(each)
                    break

        reading = Deferred.fromCoroutine(read())
        t.publish("streamed", 1)
        assert (seen, streamed) == ([], [1])
        t.publish("attached", 2)
        assert (seen, attached) == (["around", "/around"], [2])
        assert reading.called


@both
def test_several_handlers_of_a_topic_keep_apart(reactor: Reactor) -> None:
    """Handlers of one type, of other types and with frames share a closure, and each has its own topic and count."""
    app, seen = App(), Seen()

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(message: Any, topic: Topic, envelope: Envelope) -> Any:
            seen.append((route.name, topic, message, envelope.topic))
            return None if route.name == "two()" else call(message)

        def body_only(message: Any) -> Any:
            seen.append((route.name, message))
            return call(message)

        return around if route.name in ("two()", "other()") else body_only

    @app.subscribe("a.{x}")
    def one(message: int, x: str) -> None:
        seen.append(("one", x))

    @app.subscribe("a.*")
    def two(message: int) -> None: ...

    @app.subscribe("a.>")
    def three(message: int) -> None: ...

    with TestApp(app, reactor=reactor) as t:
        t.publish("a.1", 1)
        t.publish("a.2", 2)
        assert seen == [
            item
            for key, message in (("1", 1), ("2", 2))
            for item in (
                ("one()", message), ("one", key), ("two()", f"a.{key}", message, f"a.{key}"), ("three()", message)
            )
        ]  # fmt: skip
        assert [counted(app, f"{name}()") for name in ("one", "two", "three")] == [
            {"handled": 2}, {"skipped": 2}, {"handled": 2}
        ]  # fmt: skip


def test_handlers_of_one_type_share_the_object() -> None:
    """Two surrounded handlers that take only the body decode it once."""
    app, seen = App(), Seen()
    noted(app, seen, "around")

    @app.subscribe("a")
    def one(message: dict[str, int]) -> None:
        seen.append(message)

    @app.subscribe("a")
    def two(message: dict[str, int]) -> None:
        seen.append(message)

    with TestApp(app) as t:
        t.publish("a", {"x": 1})
    messages = [each for each in seen if isinstance(each, dict)]
    assert len(messages) == 2
    assert messages[0] is messages[1]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("takes", ["body", "envelope"])
async def test_messages_of_a_coalesced_frame_are_surrounded_one_by_one(takes: str) -> None:
    """Each message in a frame passes the middleware, in order and in a context of its own."""
    address = free_endpoint()
    app, seen = App(sub=address, pub=address, coalesce=True), Seen()
    box = Mailbox[int]()

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            seen.append(variable.get())
            variable.set(str(message))
            return None if message == 5 else call(message)

        def with_envelope(message: int, envelope: Envelope) -> Any:
            seen.append(variable.get())
            assert envelope.body.decode() == str(message)
            variable.set(str(message))
            return None if message == 5 else call(message)

        return around if takes == "body" else with_envelope

    numbers = app.publisher("numbers", int, codec="json")

    @app.subscribe("numbers")
    def handle(message: int) -> None:
        assert variable.get() == str(message)
        box.put(message)

    async with running(app):
        await app.ready(1, timeout=PATIENCE)
        for number in range(10):
            numbers.publish(number)
        assert await box.until(9) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
        await turns(lambda: counted(app, "handle()") == {"handled": 9, "skipped": 1})
    assert seen == [None] * 10


# -- contexts --------------------------------------------------------------------------------------------


@both
@kinds
def test_a_variable_that_around_sets_is_seen_by_the_handler_only(kind: str, reactor: Reactor) -> None:
    """The handler sees the variable of its message; around finds it unset for the next one."""
    app, seen = App(), Seen()

    def before(message: Any) -> None:
        seen.append(("around", variable.get()))
        variable.set(str(message[0] if isinstance(message, list) else message))

    app.middleware(around_both(before))
    handle = handler_of(kind, lambda message: seen.append((message, variable.get())))
    app.subscribe("a", **KINDS[kind])(handle)

    @app.every(1.0)
    def timer() -> None:
        seen.append(("timer", variable.get()))

    with TestApp(app, reactor=reactor) as t:
        t.advance(1)
        seen.clear()
        t.publish("a", 1)
        t.publish("a", 2)
        t.advance(1)
        assert seen == [("around", None), (1, "1"), ("around", None), (2, "2"), ("timer", None)]


@both
def test_async_handlers_side_by_side_keep_their_variables(reactor: Reactor) -> None:
    """A variable that an async around sets lasts over the awaits of its handler, and around sees what it sets."""
    app, seen, gates = App(), Seen(), {"x": Deferred[None](), "y": Deferred[None]()}

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        async def around(message: int, topic: Topic) -> Any:
            variable.set(topic)
            await call(message)
            seen.append(("after", topic, variable.get()))

        return around

    @app.subscribe("a.{key}")
    async def handle(message: int, key: str) -> None:
        if reactor == "asyncio":
            await asyncio.sleep(message)
        else:
            await gates[key]
        seen.append((key, variable.get()))
        variable.set(f"{variable.get()}!")

    with TestApp(app, reactor=reactor) as t:
        t.publish("a.x", 2)
        t.publish("a.y", 1)
        t.advance(3)
        gates["y"].callback(None)
        gates["x"].callback(None)
        t.advance(0)
    assert seen == [("y", "a.y"), ("after", "a.y", "a.y!"), ("x", "a.x"), ("after", "a.x", "a.x!")]


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("handlers", [1, 2])
def test_isolate_gives_each_message_a_context(isolate: bool, handlers: int) -> None:
    """Without it, plain handlers see what the messages before have set in the same read."""
    app, seen = App(isolate=isolate), Seen()

    def handle(message: int, *, name: str) -> None:
        seen.append(variable.get())
        variable.set(f"{name}{message}")

    for name in "ab"[:handlers]:
        app.subscribe("a")(partial(handle, name=name))
    with TestApp(app) as t:
        t.publish("a", 1, 2)
    assert set(seen) == {None} if isolate else seen[-1] is not None
    assert len(seen) == 2 * handlers


def test_isolate_covers_handlers_with_and_without_frames() -> None:
    """Handlers with an envelope, without a body, and with captures get contexts, too."""
    app, seen = App(isolate=True), Seen()

    def note() -> None:
        seen.append(variable.get())
        variable.set("set")

    @app.subscribe("a.{x}")
    def one(message: int, x: str, envelope: Envelope) -> None:
        note()

    @app.subscribe("a.*")
    def two() -> None:
        note()

    with TestApp(app) as t:
        t.publish("a.1", 1, 2)
    assert seen == [None] * 4


def test_a_message_that_around_publishes_to_the_same_topic_does_not_mix() -> None:
    """In an app that hears itself, a message that is published meanwhile has its own envelope and count."""
    app, seen = App(), Seen()

    @app.middleware
    def again(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            if message < 3:
                app.publish("a", message + 1, headers={"n": message + 1})
            return call(message)

        return around

    @app.subscribe("a")
    def handle(message: int, envelope: Envelope) -> None:
        seen.append((message, envelope.headers["n"]))

    with TestApp(app) as t:
        t.publish("a", 1, headers={"n": 1})
        assert sorted(seen) == [(1, 1), (2, 2), (3, 3)]
        assert counted(app, "handle()") == {"handled": 3}


# -- what is refused -------------------------------------------------------------------------------------


def plain_around(message: object) -> None:
    """A plain function."""


async def async_around(message: object) -> None:
    """An async function."""


def yielding(message: object) -> Iterator[int]:
    """A generator."""
    yield 1


def without_message() -> None:
    """No parameter."""


def without_body(topic: Topic) -> None:
    """A parameter, but none for the message."""


def two_messages(message: object, other: object) -> None:
    """Two parameters that nothing tells apart."""


def unknown_type(message: object, database: Database) -> None:
    """A resource that no function provides."""


def with_envelope(messages: object, envelope: Envelope) -> None:
    """An envelope, which a list has not."""


def with_topic(messages: object, topic: Topic) -> None:
    """A topic, which a list of several topics has not."""


REFUSED: list[tuple[str, Any, str]] = [
    (
        "plain",
        None,
        r"stamp\(\) returned None for handle\(\), not a function: return a function such as def around\(message\)",
    ),
    ("plain", 5, r"stamp\(\) returned 5 for handle\(\)"),
    (
        "plain",
        async_around,
        r"returned async_around\(\), which is async, but handle\(\) at .* is not async: write def",
    ),
    ("thread", async_around, r"which is async, but handle\(\) at .* is not async: write def around\(message\)"),
    ("deferred", async_around, r"which is async, but handle\(\) at .* is not async"),
    ("async", plain_around, r"which is not async, but handle\(\) at .* is async, so .*write async def"),
    ("async batch", plain_around, r"is async, so plain_around\(\) would end before the handler ends"),
    ("plain", yielding, r"returned yielding\(\), which is a generator: write a function that returns call\(message\)"),
    ("plain", without_message, r"without_message\(\), which has no parameter for the message: write def around"),
    ("plain", without_body, r"without_body\(\), which has no parameter for the message"),
    ("plain", two_messages, r"'message' and 'other'"),
    ("plain", unknown_type, r"'message' and 'database'"),
    ("batch", with_envelope, r"parameter 'envelope' of with_envelope\(\) needs a single message, but handle\(\)"),
    (
        "batch",
        with_topic,
        r"parameter 'topic' of with_topic\(\) needs a single message, but handle\(\)",
    ),
]


@pytest.mark.parametrize(("kind", "around", "text"), REFUSED)
def test_a_function_that_cannot_be_around_is_refused(kind: str, around: Any, text: str) -> None:
    """Compiling the app names the line of the factory and says what to write."""
    app = App()

    @app.middleware
    def stamp(call: Call, route: RouteInfo) -> Any:
        return around

    app.subscribe("in.*", **KINDS[kind])(handler_of(kind, lambda _: None))
    with pytest.raises(SignatureError, match=text) as raised:
        app.compile()
    assert str(raised.value.where).startswith("tests/receiving/test_middleware.py:")


def test_a_factory_takes_call_and_route() -> None:
    """A factory with other parameters is refused when the app is compiled."""
    app = App()

    @app.middleware
    def stamp(message: int) -> None: ...

    @app.subscribe("a")
    def handle(message: int) -> None: ...

    with pytest.raises(SignatureError, match=r"stamp\(\) can't be called as middleware: too many .*; write def timed"):
        app.compile()


def test_a_list_of_one_topic_has_a_topic() -> None:
    """A batch handler with a capture gets lists of one topic, so around may ask for it."""
    app, seen = App(), Seen()

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(messages: list[int], topic: Topic) -> Any:
            seen.append((topic, messages))
            return call(messages)

        return around

    @app.subscribe("a.{x}", batch=5)
    def handle(messages: list[int], x: str) -> None:
        seen.append((x, messages))

    with TestApp(app) as t:
        t.publish("a.1", 1, 2)
        t.publish("a.2", 3)
    assert seen == [("a.1", [1, 2]), ("1", [1, 2]), ("a.2", [3]), ("2", [3])]


def test_an_app_runs_again_with_its_middleware() -> None:
    """A second run uses the same functions, with new counters."""
    app, seen = App(), Seen()
    noted(app, seen, "around")

    @app.subscribe("a")
    def handle(message: int) -> None: ...

    for run in (1, 2):
        with TestApp(app) as t:
            t.publish("a", 1)
            assert counted(app, "handle()") == {"handled": 1}
        assert seen == ["around", "/around"] * run


class Session:
    """The resource of a message."""


@pytest.mark.parametrize("ends", ["well", "with an error", "without call"])
@pytest.mark.parametrize("takes", ["envelope", "session", "both"])
def test_a_topic_keeps_nothing_of_its_last_message(takes: str, ends: str, caplog: pytest.LogCaptureFixture) -> None:
    """Frames and resources of a message are freed when its handler has ended, for any number of topics."""
    caplog.set_level(logging.CRITICAL, "zroute")  # a log line with a traceback keeps the message
    app, kept = App(), list[ref[Any]]()

    @app.resource(scope="message")
    def session() -> Iterator[Session]:
        session = Session()
        kept.append(ref(session))
        yield session

    @app.middleware
    def around_all(call: Any, route: RouteInfo) -> Any:
        def with_envelope(message: bytes, envelope: Envelope) -> Any:
            return call(message) if ends != "without call" else None

        def with_session(message: bytes, session: Session) -> Any:
            return call(message) if ends != "without call" else None

        def with_both(message: bytes, envelope: Envelope, session: Session) -> Any:
            return call(message) if ends != "without call" else None

        return {"envelope": with_envelope, "session": with_session}.get(takes, with_both)

    @app.subscribe("a.*")
    def handle(message: bytes) -> None:
        if ends == "with an error":
            raise ValueError("no")

    with TestApp(app, raise_errors=False) as t:
        t.publish("a.0", b"")
        t.clear()
        kept.clear()
        tracemalloc.start()
        try:
            for number in range(20):
                t.publish(f"a.{number}", bytes(100_000))
            t.clear()
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 1_000_000
        finally:
            tracemalloc.stop()
        assert len(kept) == (0 if takes == "envelope" else 20)
        assert [each for each in kept if each() is not None] == []


# -- results with headers --------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("outer", [False, True])
def test_headers_that_are_added_to_a_result_with_headers_win(outer: bool, reactor: Reactor) -> None:
    """The headers of the handler, and those that travel on, stay; a result of None publishes nothing."""
    app, inner = App(), Routes()

    def stamp(group: Routes, number: int) -> None:
        @group.middleware
        def factory(call: Call, route: RouteInfo) -> Any:
            headers = {"v": number, str(number): True}

            async def around_async(message: Any) -> Any:
                return WithHeaders(await call(message), headers)

            return around_async if route.is_async else lambda message: WithHeaders(call(message), headers)

    stamp(inner, 1)
    if outer:
        stamp(app, 2)

    @inner.publisher("out", int)
    @inner.subscribe("plain")
    def plain_handler(message: int) -> WithHeaders[int] | None:
        return WithHeaders(message, {"v": 0, "own": "x"}) if message else None

    @inner.publisher("out", int)
    @inner.subscribe("async")
    async def async_handler(message: int) -> WithHeaders[int] | None:
        return WithHeaders(message, {"v": 0, "own": "x"}) if message else None

    app.include(inner)
    with TestApp(app, reactor=reactor) as t:
        for topic in ("plain", "async"):
            t.publish(topic, 0, 1, headers={"correlation-id": "c"})
        expected: dict[str, Any] = {"correlation-id": "c", "own": "x", "v": 1, "1": True}
        if outer:
            expected |= {"v": 2, "2": True}
        assert [each.headers for each in t.envelopes("out")] == [expected, expected]
    assert app.stats.publish_errors == 0


# -- mistakes that show only when a message is there ------------------------------------------------------


@both
@pytest.mark.parametrize("outer", [False, True])
def test_an_async_one_that_does_not_await_the_handler_is_an_error_that_names_it(
    outer: bool, reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is no handled one, because its handler never ran. Python has nothing to warn of."""

    def play() -> None:
        app = App()

        if outer:
            app.middleware(around_both(lambda _: None))  # another one does not hide it

        @app.middleware
        def careless(call: Call, route: RouteInfo) -> Any:
            async def around(message: int) -> Any:
                return call(message)

            return around

        @app.publisher("out", int)
        @app.subscribe("in")
        async def handle(message: int) -> int:
            return message

        with TestApp(app, reactor=reactor, raise_errors=False) as t:
            t.publish("in", 1)
            (failure,) = t.failures
            assert isinstance(failure, UsageError)
            assert "careless() at tests/receiving/test_middleware.py:" in str(failure)
            assert "without awaiting it" in str(failure)
            assert counted(app, "handle()") == {"handler_error": 1}

    play()
    caplog.clear()  # the traceback in the log holds the coroutine, too
    gc.collect()  # a coroutine that was not closed would warn now


def test_captures_are_not_passed() -> None:
    """A parameter with the name of a capture is refused, and the error names the middleware."""
    app = App()

    @app.middleware
    def by_symbol(call: Call, route: RouteInfo) -> Any:
        def around(message: Any, symbol: str) -> Any:
            return call(message)

        return around

    @app.subscribe("q.{symbol}")
    def handle(message: int, symbol: str) -> None: ...

    with pytest.raises(
        SignatureError,
        match=r"by_symbol\(\) returned .*'message' and 'symbol' would both .*: middleware does not "
        r"receive captures such as 'symbol' of handle\(\); replace 'symbol' with a parameter topic: Topic",
    ):
        app.compile()


def test_two_parameters_for_the_message_are_refused() -> None:
    """The error names the middleware, and the types that it can take."""
    app = App()

    @app.middleware
    def two(call: Call, route: RouteInfo) -> Any:
        return lambda message, other: call(message)

    @app.subscribe("q")
    def handle(message: int) -> None: ...

    with pytest.raises(SignatureError, match=r"two\(\) returned .*'message' and 'other' would both receive .* Topic"):
        app.compile()


def test_a_parameter_with_a_default_may_have_the_name_of_a_capture() -> None:
    """It binds a value of the factory, and the message may have such a name, too."""
    app, seen = App(), Seen()

    @app.middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(symbol: Any, name: str = route.name) -> Any:
            seen.append((symbol, name))
            return call(symbol)

        return around

    @app.subscribe("q.{symbol}.{name}")
    def handle(message: int) -> None: ...

    with TestApp(app) as t:
        t.publish("q.a.b", 1)
    assert seen == [(1, "handle()")]
