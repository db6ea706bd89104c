"""Handlers of requests: each kind with each outcome, one answer for each request, and exact counters."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from weakref import ref

import attrs
import pytest
from twisted.internet.defer import Deferred, execute

from tests.requests.wired import begun, result
from zroute import App, Envelope, Limits, Reject, RequestRefused, RouteInfo, Routes, Topic, WithHeaders
from zroute.errors import (
    BadRequestError,
    BusyError,
    NoHandlerError,
    RequestError,
    RequestRefusedError,
    RequestTimeoutError,
    ServerError,
    SignatureError,
)
from zroute.messages.requests import Kind, pack_reply, request_packer
from zroute.messages.wire import pack_head
from zroute.requests.asked import Asked, Listener
from zroute.stats import Stats
from zroute.testing import TestApp

Act = Callable[[int], Any]
LIMIT = 2_000


class Session:
    """A resource of a message."""


def sum_of_answers(stats: Stats) -> int:
    """Return the number of requests that have an end, or run."""
    routes = [
        each.handled + each.handler_error + each.decode_error + each.cancelled + each.skipped + each.dropped_at_shutdown
        for each in stats.routes.values()
    ]
    running = [each.queued + each.in_flight for each in stats.routes.values()]
    return stats.bad_requests + stats.no_handler + stats.busy + sum(routes) + sum(running)


def counted(app: App) -> dict[str, int]:
    """Return the counters of the only route that are not 0."""
    (stats,) = app.stats.routes.values()
    return {name: count for name, count in attrs.asdict(stats).items() if count}


# -- each kind of handler --------------------------------------------------------------------------------


def plain(app: App, act: Act, **options: Any) -> None:
    """Add a plain handler."""

    @app.reply("n.{key}", **options)
    def handle(n: int, key: str) -> int | None:
        return act(n)


def async_(app: App, act: Act, **options: Any) -> None:
    """Add an async handler."""

    @app.reply("n.{key}", **options)
    async def handle(n: int, key: str) -> int | None:
        return act(n)


def deferred(app: App, act: Act) -> None:
    """Add a plain handler that returns a Deferred."""

    @app.reply("n.{key}")
    def handle(n: int, key: str) -> Deferred[int | None]:
        return execute(act, n)


def threaded(app: App, act: Act) -> None:
    """Add a handler in a thread."""
    plain(app, act, thread=True)


def timed(app: App, act: Act) -> None:
    """Add an async handler with a timeout."""
    async_(app, act, timeout=5.0)


def timed_thread(app: App, act: Act) -> None:
    """Add a handler in a thread with a timeout."""
    plain(app, act, thread=True, timeout=5.0)


def _middleware(app: App, *, later: bool) -> None:
    @app.middleware
    def around(call: Any, route: RouteInfo) -> Any:
        async def around_later(message: int) -> Any:
            return await call(message)

        return around_later if later else lambda message: call(message)


def surrounded(app: App, act: Act) -> None:
    """Add a plain handler with middleware."""
    _middleware(app, later=False)
    plain(app, act)


def surrounded_async(app: App, act: Act) -> None:
    """Add an async handler with middleware."""
    _middleware(app, later=True)
    async_(app, act)


def surrounded_deferred(app: App, act: Act) -> None:
    """Add a handler that returns a Deferred, with middleware."""
    _middleware(app, later=False)
    deferred(app, act)


def scoped(app: App, act: Act) -> None:
    """Add a handler with a resource of its message."""

    @app.resource(scope="message")
    def session() -> Iterator[Session]:
        yield Session()

    @app.reply("n.{key}")
    def handle(n: int, session: Session) -> int | None:
        return act(n)


def scoped_later(app: App, act: Act) -> None:
    """Add a handler with an async resource of its message."""

    @app.resource(scope="message")
    async def session() -> AsyncIterator[Session]:
        yield Session()

    @app.reply("n.{key}")
    def handle(n: int, session: Session) -> int | None:
        return act(n)


def published(app: App, act: Act) -> None:
    """Add a handler whose replies are published too."""

    @app.publisher("out", int)
    @app.reply("n.{key}")
    def handle(n: int) -> int | None:
        return act(n)


def enveloped(app: App, act: Act) -> None:
    """Add a handler with an envelope and a topic."""

    @app.reply("n.{key}")
    def handle(n: int, envelope: Envelope, topic: Topic) -> int | None:
        assert str(topic) == str(envelope.topic) == "n.a"
        return act(n)


KINDS = [
    plain, async_, deferred, threaded, timed, timed_thread, surrounded, surrounded_async, surrounded_deferred, scoped,
    scoped_later, published, enveloped,
]  # fmt: skip

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def value(n: int) -> Any:
    """Return a number."""
    return n + 1


def none(n: int) -> Any:
    """Return None."""
    return None


def wrong(n: int) -> Any:
    """Return another type."""
    return "text"


def refused(n: int) -> Any:
    """Refuse the request."""
    raise RequestRefused(409, "no such\x1b number")


def rejected(n: int) -> Any:
    """Reject the request."""
    raise Reject("not this one")


def failed(n: int) -> Any:
    """Fail."""
    raise ValueError("bad\x1b value")


def odd(n: int) -> Any:
    """Return an object whose attributes raise an error."""

    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise ValueError("odd")

    return Odd()


def outcome(t: TestApp, reply: Any = int | None) -> Any:
    """Send a request, and return the reply or the error."""
    try:
        return t.request("n.a", 1, reply)
    except RequestError as error:
        return error


@kinds
@pytest.mark.parametrize(
    ("act", "expected", "counters"),
    [
        (value, 2, {"handled": 1}),
        (none, None, {"handled": 1}),
        (refused, (RequestRefusedError, "no such\\u001b number"), {"handled": 1, "refused": 1}),
        (rejected, (ServerError, "Reject: not this one"), {"handler_error": 1}),
        (failed, (ServerError, "ValueError: bad\\u001b value"), {"handler_error": 1}),
    ],
)
def test_each_outcome_is_one_answer(kind: Any, act: Act, expected: Any, counters: dict[str, int]) -> None:
    """Values, None, refusals and errors reach the caller once, and each request is counted once."""
    app = App()
    kind(app, act)
    with TestApp(app, raise_errors=False) as t:
        got = [outcome(t), outcome(t)]
        for each in got:
            if isinstance(expected, tuple):
                assert (type(each), each.reason) == expected
                assert each.code == (409 if act is refused else 500)
            else:
                assert each == expected
        if kind is published:
            assert t.published("out") == [2, 2] * (act is value)
    assert counted(app) == {name: 2 * count for name, count in counters.items()}
    assert app.stats.requests == 2 == sum_of_answers(app.stats)


@kinds
def test_a_reply_of_another_type_is_an_error_of_the_handler(kind: Any) -> None:
    """The caller gets a ServerError with the type; nothing is published."""
    app = App()
    kind(app, wrong)
    with TestApp(app, raise_errors=False) as t:
        got = outcome(t)
        assert isinstance(got, ServerError)
        assert got.reason.startswith("EncodeError: ")
        assert t.published("out") == []
    assert counted(app) == {"handler_error": 1}
    assert app.stats.requests == 1 == sum_of_answers(app.stats)


@kinds
def test_a_result_whose_attributes_raise_is_an_error_of_the_handler(kind: Any) -> None:
    """It is answered, and raises nothing into the reactor."""
    app = App()
    kind(app, odd)
    with TestApp(app, raise_errors=False) as t:
        assert isinstance(outcome(t), ServerError)
        assert isinstance(outcome(t), ServerError)
    assert counted(app)["handler_error"] == 2
    assert app.stats.requests == 2 == sum_of_answers(app.stats)


@kinds
def test_a_system_exit_stops_the_app_and_is_answered(kind: Any) -> None:
    """The caller gets a ServerError, because the handler has begun; the code is the app's."""

    def leave(n: int) -> Any:
        raise SystemExit(3)

    app = App()
    kind(app, leave)
    with TestApp(app, raise_errors=False) as t:
        assert isinstance(outcome(t), ServerError)
        assert t.exit_code == 3
    assert counted(app) == {"handled": 1}
    assert sum_of_answers(app.stats) == 1


@kinds
def test_a_body_of_another_type_is_refused_with_its_path(kind: Any) -> None:
    """The handler is not called; the caller gets a BadRequestError."""
    app = App()
    kind(app, failed)
    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(BadRequestError, match="int"):
            t.request("n.a", "text", int)
        with pytest.raises(BadRequestError):
            t.request("n.a", None, int)
    assert counted(app) == {"decode_error": 2}
    assert app.stats.requests == 2 == sum_of_answers(app.stats)


def test_the_path_of_the_fault_is_in_the_reason() -> None:
    """The caller sees which field is wrong."""

    @attrs.frozen
    class Ask:
        sizes: list[int]

    app = App()

    @app.reply("ask")
    def handle(ask: Ask) -> int:
        return len(ask.sizes)

    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(BadRequestError) as raised:
            t.request("ask", {"sizes": [1, "x"]}, int)
        assert "$.sizes[1]" in raised.value.reason
        assert t.request("ask", {"sizes": [1, 2]}, int) == 2


@pytest.mark.parametrize("kind", [plain, async_, threaded, surrounded], ids=lambda kind: kind.__name__)
def test_a_reply_over_the_limit_is_an_error_and_the_connection_stays(kind: Any) -> None:
    """The caller gets a ServerError that names the limit."""
    app = App(limits=Limits(max_message=LIMIT))

    def act(n: int) -> Any:
        return 7 if n else None

    @app.reply("big")
    def big(n: int) -> str:
        return "x" * n

    kind(app, act)
    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(
            ServerError, match=rf"EncodeError: the reply has {LIMIT + 1} bytes, more than max_message={LIMIT}"
        ):
            t.request("big", LIMIT + 1, str)
        assert len(t.request("big", LIMIT, str)) == LIMIT
        assert outcome(t) == 7


@pytest.mark.parametrize("kind", [async_, threaded, surrounded_async], ids=lambda kind: kind.__name__)
def test_isolated_handlers_answer_too(kind: Any) -> None:
    """Context variables of one request are not seen by another."""
    app, variable, seen = App(isolate=True), ContextVar[int]("variable", default=0), list[int]()

    def act(n: int) -> Any:
        seen.append(variable.get())
        variable.set(n)
        return n

    kind(app, act)
    with TestApp(app) as t:
        assert [outcome(t), outcome(t)] == [1, 1]
    assert seen == [0, 0]


# -- None, no type, no body ------------------------------------------------------------------------------


def test_none_is_a_reply_if_it_is_declared() -> None:
    """A handler that declares a type and returns None has failed; one without a type, or with None, has not."""
    app = App()

    @app.reply("declared")
    def declared(n: int) -> int:
        return None  # type: ignore[return-value]

    @app.reply("declared.later")
    async def declared_later(n: int) -> int:
        return None  # type: ignore[return-value]

    @app.reply("undeclared")
    def undeclared(n: int):  # type: ignore[no-untyped-def]
        return None

    @app.reply("nothing")
    def nothing() -> None: ...

    with TestApp(app, raise_errors=False) as t:
        for topic in ("declared", "declared.later"):
            with pytest.raises(ServerError, match="the handler returned None, but declares int"):
                t.request(topic, 1, int)
        assert t.request("undeclared", 1) is None
        assert t.request("nothing") is None
        assert t.request("nothing", {"any": "body"}, None) is None
    assert [each.handler_error for each in app.stats.routes.values()] == [1, 1, 0, 0]
    assert [each.handled for each in app.stats.routes.values()] == [0, 0, 1, 2]
    assert app.stats.requests == 5 == sum_of_answers(app.stats)


def test_a_reply_carries_no_headers() -> None:
    """WithHeaders is refused when it is returned."""
    app = App()

    @app.reply("a")
    def handle(n: int) -> Any:
        return WithHeaders(n, {"a": 1})

    with TestApp(app, raise_errors=False) as t, pytest.raises(ServerError, match="a reply can't have headers"):
        t.request("a", 1)


def test_headers_of_the_request_reach_the_envelope() -> None:
    """The handler reads headers, codec and topic of the request."""
    app = App()

    @app.reply("a.{name}")
    def handle(n: int, envelope: Envelope, name: str) -> list[Any]:
        return [n, dict(envelope.headers), str(envelope.topic), name]

    with TestApp(app) as t:
        assert t.request("a.b", 1, list[Any], headers={"trace": "x"}) == [1, {"trace": "x"}, "a.b", "b"]


# -- which handler answers -------------------------------------------------------------------------------


def test_the_most_specific_handler_answers() -> None:
    """One handler answers, whatever the order of registration; a value that a capture can't take goes to the next."""
    app, group = App(), Routes("g")

    @app.reply(">")
    def everything() -> str:
        return "everything"

    @app.reply("a.{n}")
    def number(n: int) -> str:
        return f"number {n}"

    @app.reply("*.{name}")
    def name(name: str) -> str:
        return f"name {name}"

    @app.reply("a.b")
    def exact() -> str:
        return "exact"

    @group.reply("a.b")
    def grouped() -> str:
        return "grouped"

    app.include(group)
    with TestApp(app) as t:
        asked = ["a.b", "a.7", "a.x", "a", "a.b.c", "g.a.b"]
        expected = ["exact", "number 7", "name x", "everything", "everything", "grouped"]
        assert [t.request(topic, None, str) for topic in asked] == expected


def test_subscribers_receive_no_requests_and_handlers_no_messages() -> None:
    """The two kinds of routes share patterns, and nothing else."""
    app, seen = App(), list[int]()

    @app.subscribe("a")
    def on_message(n: int) -> None:
        seen.append(n)

    @app.reply("a")
    def on_request(n: int) -> int:
        seen.append(-n)
        return n

    with TestApp(app) as t:
        t.publish("a", 1)
        assert t.request("a", 2, int) == 2
    assert seen == [1, -2]
    assert (app.stats.received, app.stats.requests) == (1, 1)


def test_no_handler_is_an_error_of_its_own() -> None:
    """The topic is named, and counted."""
    app = App()
    plain(app, value)
    with TestApp(app) as t, pytest.raises(NoHandlerError, match=r"no handler for 'other\.topic'"):
        t.request("other.topic")
    assert (app.stats.requests, app.stats.no_handler) == (1, 1)


# -- streams ---------------------------------------------------------------------------------------------


async def collected(stream: Any, into: list[Any]) -> list[Any]:
    """Read a stream to its end."""
    async for each in stream:
        into.append(each)  # noqa: PERF401  # after an error, it has the items before it
    return into


class Streams:
    """An app with a plain and an async generator, which note their ends."""

    def __init__(self, **options: Any) -> None:
        self.app = App(**options)
        self.made: list[int] = []
        self.closed: list[str] = []
        self.paused: Deferred[None] | None = None

        @self.app.reply("plain")
        def plain(n: int) -> Iterator[int]:
            try:
                yield from self._values(n)
            finally:
                self.closed.append("plain")

        @self.app.reply("async")
        async def later(n: int) -> AsyncIterator[int]:
            try:
                for each in self._values(n):
                    yield each
                if self.paused is not None:
                    await self.paused
            finally:
                self.closed.append("async")

    def _values(self, n: int) -> Iterator[int]:
        for each in range(abs(n)):
            self.made.append(each)
            yield each
        if n < 0:
            raise ValueError("in the middle")


both = pytest.mark.parametrize("topic", ["plain", "async"])


@both
@pytest.mark.parametrize("many", [0, 1, 127, 128, 129, 1000])
def test_a_generator_answers_with_a_stream(topic: str, many: int) -> None:
    """All values arrive in order, also far more than the window, and the stream ends."""
    case = Streams()
    with TestApp(case.app) as t:
        reading = begun(collected(case.app.request_stream(topic, many, int), []))
        t.advance(1)
        assert result(reading) == list(range(many))
    assert case.closed == [topic]
    assert [each.handled for each in case.app.stats.routes.values()] == [topic == "plain", topic == "async"]
    assert case.app.stats.requests == 1 == sum_of_answers(case.app.stats)


@both
def test_an_error_in_the_middle_comes_after_the_values(topic: str) -> None:
    """The loop gets the values before it, then a ServerError."""
    case, seen = Streams(), list[int]()
    with TestApp(case.app, raise_errors=False) as t:
        reading = begun(collected(case.app.request_stream(topic, -3, int), seen))
        t.advance(1)
        with pytest.raises(ServerError, match="ValueError: in the middle"):
            result(reading)
    assert (seen, case.closed) == ([0, 1, 2], [topic])
    assert sum_of_answers(case.app.stats) == 1


@both
@pytest.mark.parametrize("taken", [0, 1, 2, 64, 127, 128, 129, 200])
def test_a_loop_that_is_left_at_any_item_leaves_no_generator(topic: str, taken: int) -> None:
    """The handler is closed, has run at most a window ahead, and counts as cancelled."""
    case, seen = Streams(), list[int]()

    async def leave() -> None:
        async with case.app.request_stream(topic, 100_000, int) as stream:
            while len(seen) < taken:
                seen.append(await anext(stream))

    with TestApp(case.app) as t:
        reading = begun(leave())
        t.advance(1)
        result(reading)
        assert seen == list(range(taken))
        if taken:
            assert case.closed == [topic]
        assert len(case.made) <= taken + 128 + 64
    (stats,) = [each for name, each in case.app.stats.routes.items() if each.cancelled]
    assert (stats.cancelled, stats.in_flight, stats.queued) == (1, 0, 0)
    assert case.app.stats.requests == 1 == sum_of_answers(case.app.stats)


def test_a_client_that_does_not_read_holds_the_handler() -> None:
    """The generator waits after the window; it goes on when items are taken."""
    case = Streams()
    with TestApp(case.app) as t:
        stream = case.app.request_stream("plain", 1000, int)
        t.advance(1)
        assert len(case.made) == 128
        for _ in range(64):
            result(begun(stream.__anext__()))
        t.advance(1)
        assert len(case.made) == 192
        begun(stream.aclose())
        t.advance(1)
    assert case.closed == ["plain"]


def test_values_of_a_stream_may_be_none() -> None:
    """None is an item as any other; if it is not declared, it is an error."""
    app = App()

    @app.reply("optional")
    def optional() -> Iterator[int | None]:
        yield from (1, None, 2)

    @app.reply("declared")
    async def declared() -> AsyncIterator[int]:
        yield 1
        yield None  # type: ignore[misc]

    with TestApp(app, raise_errors=False) as t:
        reading = begun(collected(app.request_stream("optional", None, Any), []))
        failing = begun(collected(app.request_stream("declared", None, Any), []))
        t.advance(1)
        assert result(reading) == [1, None, 2]
        with pytest.raises(ServerError, match="returned None, but declares int"):
            result(failing)


def test_one_reply_and_many_are_asked_for_differently() -> None:
    """A stream for a single reply is an error at once; a stream of a plain handler has one item."""
    case = Streams()

    @case.app.reply("one")
    def one(n: int) -> int:
        return n

    with TestApp(case.app, raise_errors=False) as t:
        with pytest.raises(BadRequestError, match=r"answers with a stream: use app\.request_stream"):
            t.request("plain", 1)
        reading = begun(collected(case.app.request_stream("one", 7, int), []))
        t.advance(1)
        assert result(reading) == [7]
    assert case.made == []
    assert case.app.stats.requests == 2 == sum_of_answers(case.app.stats)


def test_a_function_may_return_an_iterator() -> None:
    """A plain or async function that returns one answers with its values."""
    app = App()

    @app.reply("plain")
    def plain(n: int) -> Any:
        return iter(range(n))

    with TestApp(app, raise_errors=False) as t:
        reading = begun(collected(app.request_stream("plain", 300, int), []))
        t.advance(1)
        assert result(reading) == list(range(300))
        with pytest.raises(ServerError, match="the handler returned an iterator"):
            t.request("plain", 3)
    assert app.stats.requests == 2 == sum_of_answers(app.stats)


def test_a_stream_is_refused_before_and_between_its_values() -> None:
    """RequestRefused in a generator reaches the loop."""
    app, seen = App(), list[int]()

    @app.reply("rows")
    def rows(n: int) -> Iterator[int]:
        if n:
            yield n
        raise RequestRefused(410, "gone")

    with TestApp(app) as t:
        for n in (0, 1):
            reading = begun(collected(app.request_stream("rows", n, int), seen))
            t.advance(1)
            with pytest.raises(RequestRefusedError, match="gone"):
                result(reading)
    assert seen == [1]
    assert counted(app) == {"handled": 2, "refused": 2}


def test_the_time_of_a_stream_is_that_of_its_first_item() -> None:
    """A generator that gives items in time may run longer than the timeout; one that stops giving them is closed."""
    app, closed = App(reactor="asyncio"), list[str]()

    @app.reply("ticks")
    async def ticks(n: int) -> AsyncIterator[int]:
        try:
            for each in range(n):
                await asyncio.sleep(0.9)
                yield each
            await asyncio.sleep(1000)
        finally:
            closed.append("ticks")

    seen: list[int] = []

    @app.on_startup
    def begin() -> None:
        async def read() -> None:
            with pytest.raises(RequestTimeoutError):
                await collected(app.request_stream("ticks", 5, int, timeout=1.0), seen)
            seen.append(-1)

        tasks.append(asyncio.ensure_future(read()))

    tasks: list[Any] = []
    with TestApp(app) as t:
        t.advance(10)
        assert seen == [0, 1, 2, 3, 4, -1]
        assert closed == ["ticks"]


# -- the end of the caller -------------------------------------------------------------------------------


class Held:
    """An app whose handlers wait until the test lets them go."""

    def __init__(self, *, max_in_flight: int = 1, queue: int = 2, swallows: bool = False, **options: Any) -> None:
        self.app = App()
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.waiting: list[Deferred[None]] = []

        @self.app.reply("n", max_in_flight=max_in_flight, queue=queue, **options)
        async def handle(n: int) -> int:
            self.begun.append(n)
            self.waiting.append(Deferred())
            try:
                await self.waiting[-1]
            except BaseException:
                if not swallows:
                    raise
            finally:
                self.ended.append(n)
            return n

    def ask(self, n: int, timeout: float | None = 10.0) -> Deferred[Any]:
        """Send a request."""
        return begun(self.app.request("n", n, int, timeout=timeout))

    def release(self) -> None:
        """Let the oldest call end."""
        self.waiting.pop(0).callback(None)


def test_a_cancelled_caller_cancels_its_handler() -> None:
    """A running call is cancelled at once, and makes room; one that waits never begins."""
    case = Held()
    with TestApp(case.app) as t:
        running, waiting, other = case.ask(1), case.ask(2), case.ask(3)
        t.advance(0)
        assert case.begun == [1]
        waiting.cancel()
        running.cancel()
        t.advance(0)
        assert (case.begun, case.ended) == ([1, 3], [1])
        case.waiting.pop(0)
        case.release()
        t.advance(0)
        assert result(other) == 3
    assert counted(case.app) == {"cancelled": 2, "handled": 1}
    assert case.app.stats.requests == 3 == sum_of_answers(case.app.stats)


def test_a_handler_that_ignores_its_cancellation_is_not_answered() -> None:
    """Its value goes nowhere, and the request counts once."""
    case = Held(swallows=True)
    with TestApp(case.app) as t:
        case.ask(1).cancel()
        running = case.ask(2)
        t.advance(0)
        running.cancel()
        t.advance(0)
        assert case.ended in ([1, 2], [2])
    assert sum_of_answers(case.app.stats) == case.app.stats.requests


def test_what_is_over_is_dropped_before_it_begins() -> None:
    """A request whose time is over in the queue calls no handler; one that runs is cancelled."""
    case = Held()
    with TestApp(case.app) as t:
        running, waiting, patient = case.ask(1, 2.0), case.ask(2, 1.0), case.ask(3, 100.0)
        t.advance(1.5)
        with pytest.raises(RequestTimeoutError):
            result(waiting)
        assert case.ended == []
        t.advance(1)
        with pytest.raises(RequestTimeoutError):
            result(running)
        assert (case.begun, case.ended) == ([1, 3], [1])
        case.waiting.pop(0)
        case.release()
        t.advance(0)
        assert result(patient) == 3
    assert counted(case.app) == {"cancelled": 2, "handled": 1}
    assert case.app.stats.requests == 3 == sum_of_answers(case.app.stats)


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_what_is_over_takes_no_room_in_the_queue(end: str) -> None:
    """While a call does not end, requests are refused only if the queue is full of requests that are still wanted."""
    case = Held(swallows=True, queue=5)
    with TestApp(case.app) as t:
        asked = [case.ask(0, None)]
        for _ in range(3):
            waiting = [case.ask(n, 1.0) for n in range(1, 6)]
            t.advance(0)
            (stats,) = case.app.stats.routes.values()
            assert stats.queued == 5
            if end == "cancel":
                for each in waiting:
                    each.cancel()
            t.advance(1)
            assert stats.queued == 0
        asked += [case.ask(n, None) for n in range(6, 12)]
        t.advance(0)
        with pytest.raises(BusyError):
            result(asked.pop())
        while case.waiting:
            case.release()
            t.advance(0)
        assert [result(each) for each in asked] == [0, 6, 7, 8, 9, 10]
    assert (case.app.stats.busy, counted(case.app)) == (1, {"cancelled": 15, "handled": 6})
    assert case.app.stats.requests == 22 == sum_of_answers(case.app.stats)


class OddError(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@kinds
def test_an_error_without_a_text_is_answered_too(kind: Any) -> None:
    """An error whose __str__ fails is named by its type, and counts once."""
    app = App()

    def act(n: int) -> int:
        raise OddError

    kind(app, act)
    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(ServerError, match="OddError, whose text can't be created: RuntimeError"):
            t.request("n.a", 1, int)
        assert [type(error) for error in t.failures] == [OddError]
    assert counted(app) == {"handler_error": 1}


@pytest.mark.parametrize("cleans_up", [True, False])
def test_an_error_after_the_caller_has_gone_is_logged(cleans_up: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A handler whose cleanup fails is cancelled, and its error is logged and passed to the hook."""
    app, hooked = App(), list[Exception]()

    @app.reply("n")
    async def handle() -> None:
        try:
            await Deferred()
        finally:
            if not cleans_up:
                raise OSError("the disk is full")

    @app.on_error(Exception)
    def failed(error: Exception, envelope: Envelope) -> None:
        hooked.append(error)

    with TestApp(app) as t:
        running = begun(app.request("n", None, None))
        t.advance(0)
        running.cancel()
        t.advance(0)
    assert counted(app) == {"cancelled": 1}
    assert [str(error) for error in hooked] == ([] if cleans_up else ["the disk is full"])
    lines = [text for text in caplog.messages if "the client no longer waits" in text]
    assert len(lines) == len(hooked)


@pytest.mark.parametrize("thread", [False, True])
def test_a_caller_that_leaves_during_a_pause_ends_the_attempts(thread: bool) -> None:
    """The handler is not called again, in a thread or not."""
    app, calls = App(), list[int]()

    @app.reply("n", retry=(1, 2), thread=thread)
    def handle() -> None:
        calls.append(1)
        raise ValueError("x")

    with TestApp(app, raise_errors=False) as t:
        asked = begun(app.request("n", None, None, timeout=0.5))
        t.advance(0.5)
        with pytest.raises(RequestTimeoutError):
            result(asked)
        t.advance(10)
    assert calls == [1]
    assert counted(app) == {"cancelled": 1}


@pytest.mark.parametrize("is_async", [False, True])
def test_the_items_of_a_stream_are_published_too(is_async: bool) -> None:
    """A generator under `reply` and `publisher` sends each value to its caller and to the subscribers."""
    app, items = App(), list[int]()

    if is_async:

        @app.reply("rows.{name}")
        @app.publisher("copies.{name}", int)
        async def rows_later(name: str) -> AsyncIterator[int]:
            for number in range(200):
                yield number
    else:

        @app.reply("rows.{name}")
        @app.publisher("copies.{name}", int)
        def rows(name: str) -> Iterator[int]:
            yield from range(200)

    @app.subscribe("go")
    async def go() -> None:
        items.extend([item async for item in app.request_stream("rows.a", None, int)])

    with TestApp(app) as t:
        t.publish("go", None)
        assert items == list(range(200))
        assert t.published("copies.a") == items


def test_the_shorter_time_counts() -> None:
    """The handler's own timeout ends a call before the caller's does, and is an error of the handler."""
    case = Held(timeout=1.0)
    with TestApp(case.app, raise_errors=False) as t:
        asked = case.ask(1, 10.0)
        t.advance(1.5)
        with pytest.raises(ServerError, match="TimeoutError: handle\\(\\) did not end within 1 s"):
            result(asked)
    assert counted(case.app) == {"handler_error": 1, "timed_out": 1}


def test_a_full_handler_refuses_at_once() -> None:
    """Beyond the bound and the queue, requests get a BusyError while the others wait."""
    case = Held(max_in_flight=2, queue=3)
    with TestApp(case.app) as t:
        asked = [case.ask(n, None) for n in range(8)]
        t.advance(0)
        busy = [each for each in asked if each.called]
        assert len(busy) == 3
        for each in busy:
            with pytest.raises(BusyError, match="the queue of the handler is full"):
                result(each)
        while case.waiting:
            case.release()
            t.advance(0)
        assert [result(each) for each in asked if each not in busy] == [0, 1, 2, 3, 4]
    assert (case.app.stats.busy, counted(case.app)) == (3, {"handled": 5})
    assert case.app.stats.requests == 8 == sum_of_answers(case.app.stats)


@pytest.mark.parametrize("end", ["answered", "cancelled", "stopped"])
def test_waiting_requests_are_bounded_in_bytes_over_all_handlers(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Beyond the bytes, requests get a BusyError although their handlers have room; each end makes room again."""
    monkeypatch.setattr("zroute.receiving.replying.REQUESTS_WAITING_BYTES", 500)
    case = Held(queue=100)

    @case.app.reply("other")
    async def other(text: bytes) -> int:
        return len(text)

    with TestApp(case.app, raise_errors=False) as t:
        asked = [case.ask(n, None) for n in range(20)]
        t.advance(0)
        busy = [each for each in asked if each.called]
        assert 0 < len(busy) < 19
        at_once = begun(case.app.request("other", b"x" * 600, int))
        t.advance(0)
        assert result(at_once) == 600
        for each in busy:
            with pytest.raises(BusyError, match="the waiting requests exceed the limit in bytes"):
                result(each)
        kept = [each for each in asked if each not in busy]
        if end == "cancelled":
            for each in kept[1:]:
                each.cancel()
            t.advance(0)
        elif end == "answered":
            while case.waiting:
                case.release()
                t.advance(0)
            assert [result(each) for each in kept] == list(range(len(kept)))
        if end != "stopped":
            more = [case.ask(n, None) for n in range(len(kept) - 1)]
            t.advance(0)
            assert not any(each.called for each in more)
    assert case.app.stats.requests == sum_of_answers(case.app.stats)


def test_a_flood_of_quick_calls_is_bounded() -> None:
    """Async calls that end at once take turns with the reactor; meanwhile the queue does not grow beyond its bound."""
    app = App()

    @app.reply("n", queue=10)
    async def handle(n: int) -> int:
        (stats,) = app.stats.routes.values()
        most.append(stats.queued)
        return n

    most: list[int] = []
    with TestApp(app) as t:
        asked = [begun(app.request("n", n, int)) for n in range(500)]
        t.advance(1)
        assert all(each.called for each in asked)
    assert max(most) <= 10
    assert app.stats.requests == 500 == sum_of_answers(app.stats)


# -- attempts and dead letters ---------------------------------------------------------------------------


def test_a_failed_handler_is_called_again_while_the_caller_waits() -> None:
    """With ``retry``, the last result is the answer; a refusal and a rejection are final."""
    app, calls = App(), list[int]()

    @app.reply("n", retry=(1, 2))
    async def handle(n: int) -> int:
        calls.append(n)
        if n == 1 and calls.count(1) < 3:
            raise ValueError("again")
        if n == 2:
            raise RequestRefused(409, "no")
        if n == 3:
            raise Reject("never")
        if n == 4:
            raise ValueError("always")
        return n

    with TestApp(app, raise_errors=False) as t:
        assert t.request("n", 1, int) == 1
        with pytest.raises(RequestRefusedError):
            t.request("n", 2, int)
        with pytest.raises(ServerError, match="Reject: never"):
            t.request("n", 3, int)
        with pytest.raises(ServerError, match="ValueError: always"):
            t.request("n", 4, int)
        with pytest.raises(RequestTimeoutError):
            t.request("n", 4, int, timeout=2.0)
        t.advance(10)
    assert [calls.count(n) for n in (1, 2, 3, 4)] == [3, 1, 1, 5]
    assert counted(app) == {"handled": 2, "refused": 1, "handler_error": 2, "cancelled": 1, "retried": 5}
    assert app.stats.requests == 5 == sum_of_answers(app.stats)


def test_dead_letters_are_requests_that_failed() -> None:
    """A failed, a rejected and an undecodable request are published; a refused one is not."""
    app = App()

    @app.reply("n.{key}", dead="dead.{key}")
    def handle(n: int, key: str) -> int:
        if key == "refused":
            raise RequestRefused(409, "no")
        if key == "rejected":
            raise Reject("never")
        raise ValueError("always")

    with TestApp(app, raise_errors=False) as t:
        for key, body in (("refused", 1), ("rejected", 2), ("failed", 3), ("undecodable", "x")):
            with pytest.raises(RequestError):
                t.request(f"n.{key}", body, int)
        assert [str(each.topic) for each in t.envelopes("dead.>")] == [
            "dead.rejected",
            "dead.failed",
            "dead.undecodable",
        ]
        assert t.envelopes("dead.failed")[0].headers["zr-error"] == "ValueError: always"
    assert counted(app) == {"handled": 1, "refused": 1, "handler_error": 2, "decode_error": 1, "dead": 3}


def test_errors_reach_hooks_and_refusals_do_not() -> None:
    """``on_error`` gets errors of handlers and bodies that can't be decoded."""
    app, seen = App(), list[str]()

    @app.on_error()
    def failed(error: Exception, envelope: Envelope) -> None:
        seen.append(f"{type(error).__name__} {envelope.topic}")

    @app.reply("n")
    def handle(n: int) -> int:
        if n == 1:
            raise RequestRefused(409, "no")
        raise ValueError("always")

    with TestApp(app) as t:
        for body in (1, 2, "x"):
            with pytest.raises(RequestError):
                t.request("n", body, int)
    assert seen == ["ValueError n", "DecodeError n"]


def test_a_refusal_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It is an answer of the application; an error is logged with its traceback, which the caller does not get."""
    app = App()

    @app.reply("n")
    def handle(n: int) -> int:
        if n == 1:
            raise RequestRefused(409, "no")
        raise ValueError("always")

    with caplog.at_level(logging.WARNING), TestApp(app, raise_errors=False) as t:
        for body in (1, 2):
            with pytest.raises(RequestError) as raised:
                t.request("n", body, int)
            assert "Traceback" not in str(raised.value)
    (record,) = caplog.records
    assert "handle()" in record.getMessage()
    assert record.exc_info


# -- middleware ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
def test_a_middleware_may_answer_refuse_and_change(later: bool) -> None:
    """Its result is the reply, without a call of the handler too."""
    app, calls = App(), list[int]()

    @app.middleware
    def around(call: Any, route: RouteInfo) -> Any:
        def before(n: int) -> int | None:
            if n == 0:
                raise RequestRefused(401, "who?")
            return 100 if n == 1 else None

        def around(n: int) -> Any:
            early = before(n)
            return call(n) + 1 if early is None else early

        async def around_later(n: int) -> Any:
            early = before(n)
            return await call(n) + 1 if early is None else early

        return around_later if later else around

    if later:

        @app.reply("n")
        async def handle_later(n: int) -> int:
            calls.append(n)
            return n

    else:

        @app.reply("n")
        def handle(n: int) -> int:
            calls.append(n)
            return n

    with TestApp(app) as t:
        with pytest.raises(RequestRefusedError, match="who"):
            t.request("n", 0, int)
        assert t.request("n", 1, int) == 100
        assert t.request("n", 2, int) == 3
    assert calls == [2]
    assert counted(app) == {"handled": 2, "refused": 1, "skipped": 1}
    assert app.stats.requests == 3 == sum_of_answers(app.stats)


# -- raw frames ------------------------------------------------------------------------------------------


class Raw:
    """A client that sends raw frames to an app of a test, and collects what comes back."""

    def __init__(self, t: TestApp) -> None:
        self._t = t
        bus = t._bus.requests
        (self._member,) = [each for each in bus._members if each.answers]
        self.got: list[list[bytes]] = []
        listener = self._member.listener
        assert isinstance(listener, Listener)
        self._listener = listener
        original = listener.send

        def send(asked: Asked, kind: Kind, number: int, body: bytes) -> Any:
            parts = asked.parts(kind, number, body)
            if parts[0] == b"raw":
                self.got.append(list(parts[1:]))
                return True
            return original(asked, kind, number, body)

        listener.send = send

    def ask(self, *parts: bytes) -> list[list[bytes]]:
        """Send a message, and return the answers to it."""
        self.got.clear()
        self._t._do(lambda: self._listener.received([b"raw", *parts]))
        self._t.advance(0)
        return list(self.got)


def test_plain_clients_get_plain_answers() -> None:
    """A REQ sends topic and body; it gets the body of the reply, or empty part, code and text."""
    app = App()
    plain(app, value)

    @app.reply("sum")
    def add(numbers: list[int]) -> dict[str, int]:
        return {"sum": sum(numbers)}

    @app.reply("bytes")
    def raw_bytes(numbers: list[int]) -> bytes:
        return b"\xff\0"

    @app.reply("any")
    def untyped(numbers: list[int]) -> Any:
        return b"\xff\0"

    @app.reply("text")
    def text(numbers: list[int]) -> str:
        return "text"

    with TestApp(app, raise_errors=False) as t:
        raw = Raw(t)
        assert raw.ask(b"", b"n.a", b"\x01") == [[b"", b"\x02"]]
        assert raw.ask(b"", b"sum", b"[1, 2]") == [[b"", b'{"sum":3}']], "JSON to JSON"
        assert raw.ask(b"", b"bytes", b"[1]") == raw.ask(b"", b"any", b"[1]") == [[b"", b"\xff\0"]]
        assert raw.ask(b"", b"text", b"[1]") == [[b"", b'"text"']]
        assert raw.ask(b"", b"sum", b"\x92\x01\x02") == [[b"", b"\x81\xa3sum\x03"]]
        assert raw.ask(b"id", b"", b"n.a", b"\x01") == [[b"id", b"", b"\x02"]]
        id = b"i" * 16
        framed = request_packer(7, lambda: 5)(id, b"n.a", 1, b"\x01", None, 1.0, 0)
        assert raw.ask(b"", framed) == [[b"", pack_reply(id, Kind.REPLY, 1, b"\x02")]]
        ((*head, text),) = raw.ask(b"", b"x", b"")
        assert (head, text) == ([b"", b"", b"404"], b"no handler for 'x'")
        ((*head, text),) = raw.ask(b"", b"n.a", b"\xa1x")
        assert head == [b"", b"", b"400"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xc1ZR", b"a tracked header of 3 bytes"),
        (b"\xc1ZR" + b"\x09" * 40, b"a tracked header of version 9"),
        (bytes.fromhex("c15a52010001f0") + b"\0" * 40, b"further counters"),
        (bytes.fromhex("c15a5201010100") + b"\0" * 40, b"a tracked header of the kind"),
        (bytes.fromhex("c15a5201000101") + b"\0" * 25 + b"\xff" * 4, b"headers with a length of 4294967295 bytes"),
        (b"x" * (LIMIT + 1), b"a body of 2001 bytes; expected at most max_message=2000"),
    ],
)
def test_malformed_bodies_get_a_400(body: bytes, reason: bytes) -> None:
    """Broken headers and too large bodies are answered, counted once, and call no handler."""
    app = App(limits=Limits(max_message=LIMIT))
    plain(app, failed)
    with TestApp(app, raise_errors=False) as t:
        ((_, _, code, text),) = Raw(t).ask(b"", b"n.a", body)
        assert code == b"400"
        assert reason in text
    assert (app.stats.requests, sum_of_answers(app.stats)) == (1, 1)
    assert counted(app).get("handled") is None


@pytest.mark.parametrize("topic", [b"\xff\xfe", b"n.\xff"])
def test_a_topic_that_is_not_utf8_gets_a_400(topic: bytes) -> None:
    """No handler is called with it."""
    app = App()

    @app.reply("n.{key}")
    def handle(n: int, key: str) -> int:
        raise AssertionError

    with TestApp(app, raise_errors=False) as t:
        ((_, _, code, _),) = Raw(t).ask(b"", topic, b"\x01")
        assert code in (b"400", b"404")
    assert sum_of_answers(app.stats) == 1


def test_a_body_with_two_headers_is_answered() -> None:
    """The second header is a part of the body, which no type accepts."""
    app = App()
    plain(app, failed)
    with TestApp(app, raise_errors=False) as t:
        head = pack_head(codec=1, epoch=7) + b"\0" * 16
        ((_, _, code, _),) = Raw(t).ask(b"", b"n.a", head + head + b"\x01")
        assert code == b"400"
    assert sum_of_answers(app.stats) == 1


# -- a stop ----------------------------------------------------------------------------------------------


def test_a_stop_answers_what_it_has_taken() -> None:
    """Running and waiting requests are answered; new ones get a BusyError; the callers of the app wait for them."""
    server = Held(queue=10)
    client = App(req="tcp://127.0.0.1:1")
    server_app = server.app
    replies: list[Any] = []

    @client.on_startup
    def begin() -> None: ...

    with TestApp(server_app, client) as t:
        asked = [begun(client.request("n", n, int)) for n in range(3)]
        t.advance(0)
        stopping = begun(_stopped(t, server_app))
        t.advance(0)
        late = begun(client.request("n", 9, int))
        t.advance(0)
        with pytest.raises(BusyError, match="the server is stopping"):
            result(late)
        assert not stopping.called
        while server.waiting:
            server.release()
            t.advance(0)
        replies = [result(each) for each in asked]
    assert replies == [0, 1, 2]


async def _stopped(t: TestApp, app: App) -> None:
    service = next(each for each in t._services if each.plan is app.compile())
    await service.stopService()


def test_what_is_not_done_at_the_end_of_a_stop_is_refused() -> None:
    """After the drain timeout, a caller whose handler ran gets a ServerError, and the others a BusyError."""
    server, client = Held(queue=10), App(req="tcp://127.0.0.1:1")
    with TestApp(server.app, client, raise_errors=False) as t:
        asked = [begun(client.request("n", n, int, timeout=None)) for n in range(3)]
        t.advance(0)
        stopping = begun(_stopped(t, server.app))
        t.advance(30)
        assert stopping.called
        with pytest.raises(ServerError, match="the server stopped before the handler ended"):
            result(asked[0])
        for each in asked[1:]:
            with pytest.raises(BusyError, match="the server is stopping"):
                result(each)
        assert counted(server.app) == {"dropped_at_shutdown": 3}
        assert server.app.stats.requests == 3 == sum_of_answers(server.app.stats)


# -- nothing is left -------------------------------------------------------------------------------------


def test_answered_requests_leave_nothing() -> None:
    """Replies and messages of ended requests are freed."""

    @attrs.define(eq=False, weakref_slot=True)
    class Body:
        n: int

    app, bodies = App(), list[Any]()

    @app.reply("n")
    async def handle(body: Body) -> int:
        bodies.append(ref(body))
        if body.n % 2:
            raise RequestRefused(409, "no")
        return body.n

    with TestApp(app) as t:
        for n in range(10):
            asked = begun(app.request("n", {"n": n}, int))
            t.advance(0)
            assert asked.called
            del asked
        gc.collect()
        assert not any(isinstance(each, Asked) for each in gc.get_objects())
    assert [each() for each in bodies] == [None] * 10


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (int, r"a generator, but has the return type int: .* -> Iterator\[int\]"),
        (list[int], r"a generator, but has the return type list\[int\]: .* -> Iterator\[int\]"),
        (int | None, r"a generator, but has the return type int \| None"),
        (None, "a generator, but has the return type None"),
        (AsyncIterator[int], r"a generator, but has the return type AsyncIterator\[int\]: .* -> Iterator\[int\]"),
    ],
)
def test_a_generator_declares_an_iterator_of_its_values(annotation: Any, says: str) -> None:
    """The annotation of a generator is checked when the app is compiled, not at the first request."""

    def values() -> Any:
        yield 1

    values.__annotations__["return"] = annotation
    app = App()
    app.reply("a")(values)
    with pytest.raises(SignatureError, match=says) as error:
        app.compile()
    assert error.value.where is not None


def test_an_async_generator_declares_an_async_iterator() -> None:
    """The error names the iterator that fits."""

    async def values() -> Any:
        yield 1

    for wrong in (int, Iterator[int]):
        values.__annotations__["return"] = wrong
        app = App()
        app.reply("a")(values)
        with pytest.raises(
            SignatureError, match=r"async generator, but has the return type .* -> AsyncIterator\[int\]"
        ):
            app.compile()


@pytest.mark.parametrize(
    "kind", [Iterator[int], Iterable[int], Generator[int, None, None], Any, object, Iterator[int] | None]
)
def test_each_annotation_of_an_iterator_fits_a_generator(kind: Any) -> None:
    """Vague annotations are no contradiction."""

    def values() -> Any:
        yield 1

    values.__annotations__["return"] = kind
    app = App()
    app.reply("a")(values)
    app.compile()


def test_a_function_that_declares_an_iterator_answers_with_a_stream() -> None:
    """It is refused before the call, as a generator is; a list in place of the iterator is explained."""
    app = App()
    calls: list[str] = []

    @app.reply("right")
    def right() -> Iterator[int]:
        calls.append("right")
        return iter([1, 2])

    @app.reply("wrong")
    def wrong() -> Iterator[int]:
        return [1, 2]  # type: ignore[return-value]

    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(BadRequestError, match="answers with a stream"):
            t.request("right")
        assert calls == []
        reading = begun(collected(app.request_stream("right", None, int), []))
        failing = begun(collected(app.request_stream("wrong", None, int), []))
        t.advance(1)
        assert result(reading) == [1, 2]
        with pytest.raises(ServerError, match=r"got list.*declares an iterator: yield the values, or return iter"):
            result(failing)


def test_a_handler_that_declares_none_answers_none() -> None:
    """A value is an error, as None is for a handler that declares a value."""
    app = App()

    @app.reply("value")
    def value() -> None:
        return 5  # type: ignore[return-value]

    @app.reply("later")
    async def later() -> None:
        return 5  # type: ignore[return-value]

    @app.reply("none")
    def none() -> None: ...

    with TestApp(app, raise_errors=False) as t:
        for topic in ("value", "later"):
            with pytest.raises(ServerError, match="EncodeError: the handler returned int, but declares None"):
                t.request(topic)
        assert t.request("none") is None


def test_the_answers_to_wrong_requests_say_what_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """A missing body, a capture of another type and a request for one reply of a stream differ."""
    app = App()

    @app.reply("a.{n}")
    def typed(ask: dict[str, int], n: int) -> int:
        return n

    @app.reply("rows")
    def rows() -> Iterator[int]:
        yield 1

    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(BadRequestError, match=r"the request has no body, but the handler expects dict\[str, int\]"):
            t.request("a.1")
        with pytest.raises(NoHandlerError, match=r"no handler for 'a.x': .*typed\(\) .* \{n\} expects int, not 'x'"):
            t.request("a.x", {})
        with pytest.raises(NoHandlerError, match=r"no handler for 'b'$"):
            t.request("b")
        with pytest.raises(BadRequestError, match=r"refused the request: this handler .* or zroute request --stream"):
            t.request("rows")
        assert "malformed" not in caplog.text
    stats = app.stats
    assert stats.requests == 4 == sum_of_answers(stats)
    assert (stats.bad_requests, stats.no_handler, stats.failed) == (1, 2, 1)


@pytest.mark.parametrize("kind", ["subscribe", "work"])
def test_a_refusal_without_a_caller_names_reject(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """RequestRefused is for replies; elsewhere, the log names the other exception."""
    app = App(reactor="twisted", sub="tcp://127.0.0.1:1", work="tcp://127.0.0.1:2")

    def handle() -> None:
        raise RequestRefused(409, "no")

    getattr(app, kind)("a")(handle)
    with TestApp(app, raise_errors=False) as t:
        t.publish("a", 1) if kind == "subscribe" else t.put("a", 1)
    assert "(only handlers under @app.reply may raise RequestRefused: raise Reject instead)" in caplog.text
