"""Publish middleware: functions around everything that is sent."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred, succeed

from tests.publishing.joined import ADDRESS, joined
from tests.pure import Wired, tracked
from tests.running import Mailbox, running
from tests.support import PATIENCE, free_endpoint
from tests.test_house import counted
from zroute import (
    App,
    EncodeError,
    Envelope,
    HighWaterMarkError,
    NotRunningError,
    RouteInfo,
    Routes,
    SignatureError,
    Topic,
    TopicError,
    UsageError,
    WithHeaders,
    WrongThreadError,
)
from zroute.publishing.middleware import SurroundedPublication
from zroute.publishing.publication import DONE, CompiledPublication
from zroute.testing import TestApp

Call = Callable[[Any], Awaitable[None]]


@attrs.frozen
class Alert:
    text: str
    level: str = "low"


def stamped(app: Routes, **headers: Any) -> None:
    """Add a middleware that adds headers."""

    @app.publish_middleware
    def stamp(call: Call, route: RouteInfo) -> Any:
        return lambda message: call(WithHeaders(message, headers))


def noted(app: Routes, seen: list[Any], name: str = "") -> None:
    """Add a middleware that notes each message with its topic."""

    @app.publish_middleware
    def note(call: Call, route: RouteInfo) -> Any:
        def around(message: object, topic: Topic) -> Awaitable[None]:
            seen.append((name, topic, message) if name else (topic, message))
            return call(message)

        return around


# -- what passes it --------------------------------------------------------------------------------------


def test_everything_that_is_sent_passes_the_middleware() -> None:
    """Publications, app.publish, results, generators, lists, threads, timers and on_startup pass it, each once."""
    app, seen = App(), list[Any]()
    noted(app, seen)
    direct = app.publisher("direct.{level}", Alert)
    text = app.publisher("text", str)

    @app.publisher("result", Alert)
    @app.subscribe("one")
    def one(message: str) -> WithHeaders[Alert]:
        return WithHeaders(Alert(message), {"a": 1})

    @app.publisher("later", Alert)
    @app.subscribe("one")
    async def later(message: str) -> Alert:
        return Alert(message)

    @app.publisher("yielded", Alert)
    @app.subscribe("one")
    def several(message: str) -> Iterator[Alert]:
        yield Alert(message)

    @app.publisher("list", list[str])
    @app.subscribe("one", batch=10)
    def of_list(messages: list[str]) -> list[str]:
        return messages

    @app.subscribe("one", thread=True)
    def in_thread(message: str) -> None:
        app.from_thread(text.publish, message)

    @app.publisher("timer", int, every=1.0)
    def timer() -> int:
        return 7

    @app.publisher("free")
    def free() -> Iterator[int]:
        yield 8

    @app.on_startup
    def start() -> None:
        direct.publish(Alert("x"), level="high")
        app.publish("any", 9)

    with TestApp(app) as t:
        t.publish("one", "a")
        expected = {
            ("direct.high", Alert("x")),
            ("any", 9),
            ("result", Alert("a")),
            ("later", Alert("a")),
            ("yielded", Alert("a")),
            ("text", "a"),
            ("timer", 7),
            ("free", 8),
        }
        assert ("list", ["a"]) in seen
        assert {each for each in seen if each[0] != "list"} == expected
        assert len(seen) == len(expected) + 1 == len(t.envelopes())
        assert app.stats.publish_skipped == 0


def test_a_factory_is_called_once_for_each_publication_with_its_facts() -> None:
    """At compile time, with the whole pattern, the type and the line; once more for app.publish."""
    app, desks, facts = App(), Routes("desk.{room}"), list[RouteInfo]()

    @app.publish_middleware
    def look(call: Call, route: RouteInfo) -> Call:
        facts.append(route)
        return call

    app.publisher("alerts.{level}", Alert)
    app.publisher("anything")
    desks.publisher("fills", int)
    app.include(desks)
    app.include(desks, prefix="top")
    app.compile()
    app.compile()
    assert [(each.name, each.kind, each.patterns, each.schema, each.is_async) for each in facts] == [
        ("alerts.{level}", "publish", ("alerts.{level}",), Alert, False),
        ("anything", "publish", ("anything",), None, False),
        ("desk.{room}.fills", "publish", ("desk.{room}.fills",), int, False),
        ("top.desk.{room}.fills", "publish", ("top.desk.{room}.fills",), int, False),
        ("app.publish", "publish", (), None, False),
    ]
    assert all(each.where.startswith("tests/publishing/test_middleware.py:") for each in facts)
    assert not any(each.is_batch or each.is_generator for each in facts)


def test_the_first_one_is_outermost_and_the_app_is_around_its_groups() -> None:
    """Middleware nests in the order of registration, app before group; a group's is around its publications only."""
    app, group, inner, seen = App(), Routes(), Routes(), list[Any]()
    noted(group, seen, "group")
    noted(app, seen, "first")
    noted(inner, seen, "inner")
    noted(app, seen, "second")
    publications = [each.publisher(name, int) for each, name in ((app, "a"), (group, "b"), (inner, "c"))]
    group.include(inner)
    app.include(group)
    Wired(app)
    for publication in publications:
        publication.publish(1)
    app.publish("d", 1)
    assert [(name, topic) for name, topic, _ in seen] == [
        ("first", "a"),
        ("second", "a"),
        *(("first", "b"), ("second", "b"), ("group", "b")),
        *(("first", "c"), ("second", "c"), ("group", "c"), ("inner", "c")),
        *(("first", "d"), ("second", "d")),
    ]


# -- messages and headers --------------------------------------------------------------------------------


def test_it_adds_headers() -> None:
    """Headers of the middleware are added to those of publish, of WithHeaders, and those that travel on, and win."""
    app = App()
    stamped(app, v=2, outer="kept")
    noted(app, [])
    stamped(app, v=1, inner=1)
    made = app.publisher("out", int)

    @app.publisher("derived", int)
    @app.subscribe("in")
    def handle(message: int) -> WithHeaders[int]:
        return WithHeaders(message, {"own": 1, "v": 0})

    wired = Wired(app)
    made.publish(1)
    made.publish(1, headers={"a": 1, "inner": 0})
    app.publish("any", 1, headers={"a": 1})
    wired.feed(tracked("in", 1, headers={"traceparent": "t", "x": 1}))
    added = {"outer": "kept", "v": 1, "inner": 1}
    assert [headers for *_, headers in wired.sent] == [
        added,
        {"a": 1, **added},
        {"a": 1, **added},
        {"traceparent": "t", "own": 1, **added},
    ]


def test_it_replaces_messages_and_the_topic_stays() -> None:
    """The topic is that of the message that was published; what the middleware passes on is encoded."""
    app = App()

    @app.publish_middleware
    def louder(call: Call, route: RouteInfo) -> Any:
        return lambda message: call(attrs.evolve(message, text=message.text.upper(), level="other"))

    alerts = app.publisher("alerts.{level}", Alert)
    wired = Wired(app)
    alerts.publish(Alert("a", "high"))
    alerts.publish(Alert("b"), level="given")
    app.publish("any", Alert("c"))
    assert wired.published == [
        ("alerts.high", {"text": "A", "level": "other"}),
        ("alerts.given", {"text": "B", "level": "other"}),
        ("any", {"text": "C", "level": "other"}),
    ]


@pytest.mark.parametrize("times", [0, 2])
def test_it_decides_how_often_a_message_is_sent(times: int) -> None:
    """Not at all, which is counted, or several times."""
    app = App()

    @app.publish_middleware
    def repeat(call: Call, route: RouteInfo) -> Any:
        def around(message: object) -> None:
            for _ in range(times):
                call(message)

        return around

    made = app.publisher("out", int)
    app.publisher("derived", int)(app.subscribe("in")(lambda message: message))
    wired = Wired(app)
    assert made.publish(1) is DONE
    assert app.publish("any", 1) is DONE
    wired.feed(tracked("in", 1))
    assert len(wired.sent) == 3 * times
    assert app.stats.publish_skipped == (0 if times else 3)
    assert app.stats.as_dict()["publish_skipped"] == app.stats.publish_skipped


def test_each_call_has_its_own_headers() -> None:
    """A middleware that sends a message twice with other headers mixes nothing."""
    app = App()

    @app.publish_middleware
    def twice(call: Call, route: RouteInfo) -> Any:
        def around(message: object) -> Awaitable[None]:
            call(WithHeaders(message, {"first": 1}))
            return call(WithHeaders(message, {"second": 2}))

        return around

    stamped(app, v=1)
    numbers = app.publisher("numbers", int)
    wired = Wired(app)
    numbers.publish(1, headers={"own": 0})
    assert [headers for *_, headers in wired.sent] == [{"own": 0, "first": 1, "v": 1}, {"own": 0, "second": 2, "v": 1}]


def test_a_middleware_may_publish_itself() -> None:
    """It may publish to the same publication; each message keeps its own topic and headers."""
    app = App()

    @app.publish_middleware
    def copy(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Awaitable[None]:
            if message > 0:
                numbers.publish(message - 1, level=f"l{message - 1}", headers={"of": message - 1})
            return call(message)

        return around

    numbers = app.publisher("numbers.{level}", int)
    wired = Wired(app)
    numbers.publish(2, level="l2", headers={"of": 2})
    assert [(topic, headers) for topic, _, _, headers in wired.sent] == [
        (f"numbers.l{number}", {"of": number}) for number in range(3)
    ]


# -- what publish returns and raises ---------------------------------------------------------------------


def test_publish_returns_what_the_middleware_returns() -> None:
    """An awaitable of its own, or the one of call; None becomes an awaitable that is done."""
    app, own = App(), succeed(None)

    @app.publish_middleware
    def stamp(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            sent = call(message)
            return {0: None, 1: own, 2: sent}.get(message, message)

        return around

    made = app.publisher("out", int)
    Wired(app)
    assert made.publish(0) is DONE
    assert made.publish(1) is own
    assert made.publish(2) is DONE
    with pytest.raises(
        UsageError, match=r"publish middleware of 'out' \(.*\) returned 3: return the awaitable from call\(message\)"
    ):
        made.publish(3)


class RefusedError(Exception):
    """An error of a middleware."""


def refusing(app: App, error: BaseException) -> None:
    """Add a middleware that raises ``error``."""

    @app.publish_middleware
    def refuse(call: Call, route: RouteInfo) -> Any:
        def around(message: object) -> None:
            raise error

        return around


def test_an_error_reaches_the_caller_of_publish() -> None:
    """An exception of the middleware is raised by publish, and nothing is sent or counted."""
    app = App()
    refusing(app, RefusedError("no"))
    made = app.publisher("out", int)
    wired = Wired(app)
    with pytest.raises(RefusedError):
        made.publish(1)
    with pytest.raises(RefusedError):
        app.publish("any", 1)
    assert (wired.sent, app.stats.publish_skipped, wired.stats.publish_errors) == ([], 0, 0)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
@pytest.mark.parametrize("source", ["handler", "timer", "generator"])
def test_an_exit_for_a_result_ends_the_app(source: str, kind: str) -> None:
    """sys.exit in a middleware does what it does in a handler that publishes: no error is counted."""
    app = App()

    @app.publish_middleware
    def leave(call: Call, route: RouteInfo) -> Any:
        def around(message: object) -> Any:
            raise SystemExit(3)

        async def later() -> None:
            raise SystemExit(3)

        return around if kind == "plain" else lambda message: later()

    def values() -> Iterator[int]:
        yield 7

    if source == "handler":
        app.publisher("out", int)(app.subscribe("in")(lambda message: message))
    elif source == "timer":
        app.publisher("out", int, every=1.0, initial_delay=1.0)(lambda: 7)
    else:
        app.publisher("out", int, every=1.0, initial_delay=1.0)(values)
    with TestApp(app) as t, pytest.raises(SystemExit):
        t.publish("in", 1) if source == "handler" else t.advance(1)
    assert (t.exit_code, app.stats.publish_errors, app.stats.published) == (3, 0, 0)


def test_an_error_for_a_result_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """For results of handlers, timers and generators it is like any message that can't be published."""
    app, error = App(), RefusedError("no")
    refusing(app, error)
    app.publisher("derived", int)(app.subscribe("in")(lambda message: message))
    app.publisher("timer", int, every=1.0)(lambda: 7)
    with TestApp(app, raise_errors=False) as t:
        t.publish("in", 1)
        t.advance(0.5)
        assert t.failures == [error, error]
        assert app.stats.publish_errors == 2
        assert app.stats.handled == 1
    assert f"the result was not published to 'derived': {type(error).__name__}" in caplog.text


@pytest.mark.parametrize("kind", ["coroutine", "Deferred"])
def test_an_awaitable_of_its_own_that_fails_is_counted_for_a_result(kind: str) -> None:
    """A middleware may return its own awaitable; its failure is counted and does not fail the handler."""
    app = App()

    async def fail() -> None:
        raise RefusedError("late")

    @app.publish_middleware
    def late(call: Call, route: RouteInfo) -> Any:
        def around(message: object) -> Any:
            call(message)
            return fail() if kind == "coroutine" else Deferred.fromCoroutine(fail())

        return around

    app.publisher("derived", int)(app.subscribe("in")(lambda message: message))
    with TestApp(app, raise_errors=False) as t:
        t.publish("in", 1)
        assert [str(error) for error in t.failures] == ["late"]
        assert t.published("derived") == [1]
        assert (app.stats.publish_errors, app.stats.handled, app.stats.failed) == (1, 1, 0)


def test_errors_of_publishing_pass_through_it() -> None:
    """The middleware sees the errors of publish, and so does the caller."""
    app, seen = App(), list[str]()

    @app.publish_middleware
    def watch(call: Call, route: RouteInfo) -> Any:
        def around(message: object) -> Awaitable[None]:
            try:
                return call(message)
            except EncodeError as error:
                seen.append(str(error))
                raise

        return around

    alerts = app.publisher("alerts.{level}", Alert)
    wired = Wired(app)
    with pytest.raises(EncodeError, match="expected Alert, got str"):
        alerts.publish("x", level="high")  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="None is not a message"):
        app.publish("any", None)
    with pytest.raises(TopicError, match="has no capture 'lvl'"):
        alerts.publish(Alert("x"), lvl="high")
    with pytest.raises(TopicError):
        app.publish("a.*", 1)
    assert len(seen) == 2
    for publish in (partial(alerts.publish, level="a"), partial(app.publish, "a")):
        with pytest.raises(EncodeError, match=r"pass the headers to this call instead, as headers=\{…\}"):
            publish(WithHeaders(Alert("x"), {}))  # type: ignore[arg-type]
    assert wired.sent == []
    wired.close()
    with pytest.raises(NotRunningError):
        alerts.publish(Alert("x"), level="high")
    with pytest.raises(NotRunningError):
        app.publish("any", 1)
    with pytest.raises(NotRunningError):
        wired._outlets[0].publish(Alert("x"), None, {"level": "high"})
    assert len(seen) == 2


def test_call_works_only_inside_the_middleware() -> None:
    """A call that is kept for later raises an error that says what to do."""
    app, calls = App(), list[Call]()

    @app.publish_middleware
    def keep(call: Call, route: RouteInfo) -> Any:
        calls.append(call)
        return lambda message: call(message)

    app.publisher("out", int)
    Wired(app)
    for call in calls:
        with pytest.raises(UsageError, match=r"called call\(message\) after around\(message\) had returned"):
            call(1)


def test_other_threads_are_refused_as_without_it() -> None:
    """publish in another thread raises WrongThreadError, and does not disturb the message of this one."""
    app, errors = App(), list[BaseException]()

    @app.publish_middleware
    def stamp(call: Call, route: RouteInfo) -> Any:
        def around(message: int) -> Awaitable[None]:
            if message == 1:
                thread = threading.Thread(target=publish, args=(2,))
                thread.start()
                thread.join()
            return call(message)

        return around

    numbers = app.publisher("numbers", int)

    def publish(number: int) -> None:
        try:
            numbers.publish(number, headers={"number": number})
        except WrongThreadError as error:
            errors.append(error)

    @app.subscribe("go")
    def go(message: int) -> None:
        publish(message)

    with TestApp(app) as t:
        t.publish("go", 1)
        assert [(envelope.body, envelope.headers) for envelope in t.envelopes("numbers")] == [(b"\x01", {"number": 1})]
    assert len(errors) == 1


# -- what costs nothing ----------------------------------------------------------------------------------


def steps(middlewares: int) -> list[tuple[str, str]]:
    """Return the calls of zroute's functions for a message by a publication, and one by app.publish."""
    context = zmq.Context()
    app, calls = App(pub=ADDRESS, codec="json", context=context), list[tuple[str, str]]()
    for _ in range(middlewares):

        @app.publish_middleware
        def nothing(call: Call, route: RouteInfo) -> Call:
            return call

    numbers = app.publisher("numbers", int)
    assert [type(outlet) for outlet in app.compile().parts.outlets] == [CompiledPublication]
    with joined(app, context):
        assert numbers._fast_path is not None
        for _ in range(3):  # the first message of a topic takes the slow path
            calls.clear()
            sys.setprofile(lambda frame, event, _: counted(frame, calls) if event == "call" else None)
            try:
                numbers.publish(1)
                app.publish("any", 1)
            finally:
                sys.setprofile(None)
    return calls


def test_returning_call_itself_costs_nothing() -> None:
    """A message takes the same steps as without middleware: nothing is around its publication or app.publish."""
    without = steps(0)
    assert 5 < len(without) < 20
    assert steps(1) == steps(3) == without


def test_only_the_publications_that_it_surrounds_lose_their_fast_path() -> None:
    """A factory that returns call for some publications leaves their fast path."""
    context = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context)

    @app.publish_middleware
    def some(call: Call, route: RouteInfo) -> Any:
        return (lambda message: call(message)) if route.name == "around" else call

    around, plain = app.publisher("around", int), app.publisher("plain", int)
    assert [type(outlet) for outlet in app.compile().parts.outlets] == [SurroundedPublication, CompiledPublication]
    with joined(app, context) as run:
        for number in range(3):
            around.publish(number)
            plain.publish(number)
        assert around._fast_path is None
        assert plain._fast_path is not None
        assert [(frame.topic, frame.messages) for frame in run.read()] == [
            (topic, [number]) for number in range(3) for topic in ("around", "plain")
        ]


def test_an_app_runs_again_with_its_middleware() -> None:
    """A second run of the app uses the same functions and new counters."""
    app, seen = App(), list[Any]()
    noted(app, seen)
    numbers = app.publisher("numbers", int)

    @app.on_startup
    def start() -> None:
        numbers.publish(1)
        app.publish("any", 2)

    for run in (1, 2):
        with TestApp(app) as t:
            assert len(t.envelopes()) == 2
        assert seen == [("numbers", 1), ("any", 2)] * run


# -- with other options ----------------------------------------------------------------------------------


def test_a_message_of_a_middleware_is_kept() -> None:
    """With keep, a new subscriber receives the message and headers that the middleware passed on."""
    app, got = App(), list[Any]()

    @app.publish_middleware
    def double(call: Call, route: RouteInfo) -> Any:
        return lambda message: call(WithHeaders(2 * message, {"v": 1}))

    values = app.publisher("values", int, keep="last")

    @app.on_startup
    def start() -> None:
        values.publish(1)
        values.publish(2)

    @app.subscribe("values")
    def take(value: int, envelope: Envelope) -> None:
        got.append((value, envelope.headers))

    with TestApp(app):
        assert got == [(4, {"v": 1})]


@pytest.mark.parametrize("headers", [{}, {"v": 1}])
def test_messages_are_coalesced_behind_it(headers: dict[str, Any]) -> None:
    """Each message passes the middleware before it is held; one with headers travels alone."""
    context = zmq.Context()
    app, seen = App(pub=ADDRESS, codec="json", context=context), list[Any]()
    noted(app, seen)
    stamped(app, **headers)
    numbers = app.publisher("numbers", int, coalesce=True)
    with joined(app, context) as run:
        for number in range(4):
            numbers.publish(number)
        run.turn()
        frames = [frame.messages for frame in run.read()]
    assert len(seen) == 4
    assert frames == ([[0], [1], [2], [3]] if headers else [[0], [1, 2, 3]])


def test_a_full_subscriber_raises_through_it() -> None:
    """With overflow="raise", publish raises HighWaterMarkError through the middleware."""
    context = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context, overflow="raise")
    stamped(app, v=1)
    numbers = app.publisher("numbers", int)
    with joined(app, context, room=1), pytest.raises(HighWaterMarkError):
        deque(map(numbers.publish, range(100_000)))


# -- what is refused -------------------------------------------------------------------------------------


async def around_later(message: object) -> None:
    """Middleware that waits."""


def around_generator(message: object) -> Iterator[int]:
    """Middleware that yields."""
    yield 1


async def around_async_generator(message: object) -> AsyncIterator[int]:
    """Middleware that yields later."""
    yield 1


def without_message() -> None:
    """Middleware without a parameter."""


def with_envelope(message: object, envelope: Envelope) -> None:
    """Middleware with a parameter that nothing fills."""


def two_arguments(message: object, other: object) -> None:
    """Middleware with two messages."""


@pytest.mark.parametrize(
    ("around", "text"),
    [
        (
            None,
            r"stamp\(\) returned None for 'out', not a function: return a function such as def around\(message\); or",
        ),
        (5, r"stamp\(\) returned 5 for 'out'"),
        (around_later, r"stamp\(\) returned around_later\(\), which is async or a generator, but publish.. can't wait"),
        (around_generator, "which is async or a generator"),
        (around_async_generator, "which is async or a generator"),
        (without_message, r"without_message\(\) can't be called as publish middleware: too many .*; write def around"),
        (with_envelope, r"missing a required argument: 'envelope'; write def around\(message\), or def around"),
        (two_arguments, r"missing a required argument: 'other'"),
    ],
)
def test_a_function_that_cannot_be_around_is_refused(around: Any, text: str) -> None:
    """Compiling the app names the line of the factory and says what to write."""
    app = App()

    @app.publish_middleware
    def stamp(call: Call, route: RouteInfo) -> Any:
        return around

    app.publisher("out", int)
    with pytest.raises(SignatureError, match=text) as raised:
        app.compile()
    assert str(raised.value.where).startswith("tests/publishing/test_middleware.py:")


def test_a_factory_takes_call_and_route() -> None:
    """A factory with other parameters is refused when the app is compiled, and an async one at its line."""
    app = App()

    @app.publish_middleware
    def stamp(call: Call) -> Call:
        return call

    with pytest.raises(SignatureError, match=r"stamp\(\) can't be called as publish middleware: too many positional"):
        app.compile()

    async def later(call: Call, route: RouteInfo) -> Call:
        return call

    def generator(call: Call, route: RouteInfo) -> Iterator[Call]:
        yield call

    app = App()
    for function in (later, generator):
        with pytest.raises(SignatureError, match=r"write def \w+\(call, route\), and return a function"):
            app.publish_middleware(function)
    for value in (5, Alert):
        with pytest.raises(SignatureError, match="publish_middleware decorates a function"):
            app.publish_middleware(value)  # type: ignore[type-var]


# -- over real sockets -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_trace_begins_in_one_app_and_reaches_the_third() -> None:
    """A middleware begins a trace, the headers pass a second app by themselves, and a third one reads them."""
    first, second = free_endpoint(), free_endpoint()
    source, middle, end = App(pub=first), App(sub=first, pub=second), App(sub=second)
    stamped(source, traceparent="00-1-2-01")
    stamped(middle, via="middle")
    quotes = source.publisher("quotes", int)
    box = Mailbox[tuple[int, Any]]()

    @middle.publisher("doubled", int)
    @middle.subscribe("quotes")
    def double(quote: int) -> int:
        return 2 * quote

    @end.subscribe("doubled")
    def take(quote: int, envelope: Envelope) -> None:
        box.put((quote, envelope.headers))

    async with running(source), running(middle), running(end):
        await middle.ready(1, timeout=PATIENCE)
        await end.ready(1, timeout=PATIENCE)
        quotes.publish(1)
        source.publish("quotes", 2)
        assert await box.until(2) == [
            (2, {"traceparent": "00-1-2-01", "via": "middle"}),
            (4, {"traceparent": "00-1-2-01", "via": "middle"}),
        ]


# -- the headers so far ----------------------------------------------------------------------------------


def test_one_with_a_parameter_headers_adds_what_is_missing() -> None:
    """It sees the headers of publish, of WithHeaders, those that travel on, and those of outer middleware."""
    app, seen = App(propagate_headers=("id",)), list[dict[str, Any]]()
    stamped(app, v=1)
    out = app.publisher("out", int)

    @app.publish_middleware
    def identify(call: Call, route: RouteInfo) -> Any:
        def around(message: Any, headers: Any) -> Any:
            seen.append(dict(headers))
            with pytest.raises(TypeError):
                headers["id"] = "changed"
            return call(message if "id" in headers else WithHeaders(message, {"id": "new"}))

        return around

    @app.publisher("derived", int)
    @app.subscribe("in")
    def handle(message: int) -> Any:
        return WithHeaders(message, {"own": 1}) if message else message

    with TestApp(app) as t:
        given = {"id": "given"}
        out.publish(1)
        out.publish(2, headers=given)
        app.publish("out", 3, headers=given)
        t.publish("in", 0, 1, headers={"id": "travels"})
        assert [each.headers["id"] for each in t.envelopes("out")] == ["new", "given", "given"]
        assert [each.headers["id"] for each in t.envelopes("derived")] == ["travels", "travels"]
    assert given == {"id": "given"}
    assert seen[0] == {"v": 1}
    assert seen[-1] == {"id": "travels", "own": 1, "v": 1}


def test_a_default_keeps_a_parameter_headers_for_the_middleware() -> None:
    """Only a parameter without a default, after the message, receives the headers."""
    app = App()
    out = app.publisher("out", str)

    @app.publish_middleware
    def stamp(call: Call, route: RouteInfo) -> Any:
        def around(message: Any, headers: Any = {"v": 1}) -> Any:  # noqa: B006  # a value bound at set-up
            return call(WithHeaders(message, headers))

        return around

    @app.publish_middleware
    def shout(call: Call, route: RouteInfo) -> Any:
        return lambda headers: call(headers.upper())

    with TestApp(app) as t:
        out.publish("a", headers={"w": 2})
        (envelope,) = t.envelopes("out")
    assert envelope.headers == {"v": 1, "w": 2}
    assert envelope.body == b"A"


def test_headers_of_headers_are_merged() -> None:
    """WithHeaders of WithHeaders has the headers of both; the last ones win."""
    both = WithHeaders(WithHeaders("a", {"x": 1, "y": 1}), {"y": 2})
    assert both == WithHeaders("a", {"x": 1, "y": 2})


@pytest.mark.parametrize("kind", ["middleware", "publish_middleware"])
def test_an_error_of_a_factory_names_it_and_the_line(kind: str) -> None:
    """Middleware of other frameworks, which takes the message itself, is refused with one line."""
    app = App()

    @getattr(app, kind)  # type: ignore[untyped-decorator]
    def other(message: Any, call_next: Any) -> Any:
        return call_next(message)

    @app.publisher("out", int)
    @app.subscribe("in")
    def handle(message: int) -> int:
        return message

    with pytest.raises(
        SignatureError,
        match=r"other\(\) failed for .*: TypeError: 'RouteInfo' object is not callable "
        r"\(tests/publishing/test_middleware.py:\d+\).*: write def \w+\(call, route\), and return a function around",
    ):
        app.compile()


@pytest.mark.parametrize("inner", [False, True])
def test_headers_as_an_argument_of_call_are_refused_with_a_hint(inner: bool) -> None:
    """The error says how to add headers, also if call is another middleware."""
    app = App()
    out = app.publisher("out", str)

    @app.publish_middleware
    def stamp(call: Any, route: RouteInfo) -> Any:
        return lambda message: call(message, headers={"v": 1})

    if inner:
        stamped(app, w=1)
    with TestApp(app), pytest.raises(UsageError, match=r"'out' .*write call\(WithHeaders\(message, \{…\}\)\)"):
        out.publish("a")


def test_other_type_errors_stay() -> None:
    """A TypeError of the middleware itself is raised as it is."""
    app = App()
    out = app.publisher("out", str)

    @app.publish_middleware
    def broken(call: Any, route: RouteInfo) -> Any:
        return lambda message: call(message + 1)

    with TestApp(app), pytest.raises(TypeError, match="concatenate"):
        out.publish("a")
