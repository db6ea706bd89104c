"""Results of handlers: awaited, published, counted, logged, and given to hooks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from tests.pure import Wired, plain, tracked
from zroute import App, DecodeError, Envelope, EnvelopeError, RouteInfo, Routes, SignatureError, WithHeaders
from zroute.messages.codecs import JSON
from zroute.publishing.producers import CompiledProducer
from zroute.throttle import WINDOW


@attrs.frozen
class Quote:
    price: float


class CustomError(ValueError):
    """An error class of the user."""


def failing(app: Any, error: BaseException, pattern: str = "a") -> None:
    """Register a handler that raises ``error``."""

    @app.subscribe(pattern)
    def handle(message: Any) -> None:
        raise error


def handler_of(schema: Any) -> Any:
    """Return a handler of messages of ``schema``."""

    def handle(message: Any) -> None:
        raise AssertionError

    handle.__annotations__["message"] = schema
    return handle


# -- asynchronous handlers -------------------------------------------------------------------------------


def test_an_async_handler_is_handled_when_it_ends() -> None:
    """An async handler is in flight until it returns."""
    app, gate, got = App(), Deferred(), []

    @app.subscribe("a")
    async def handle(message: int) -> None:
        got.append(await gate)

    wired = Wired(app).feed(plain("a", 1))
    assert (wired.stats.in_flight, wired.stats.handled) == (1, 0)
    gate.callback("x")
    assert (wired.stats.in_flight, wired.stats.handled, got) == (0, 1, ["x"])


@pytest.mark.parametrize("way", ["async", "deferred", "plain"])
def test_a_failure_is_counted_logged_with_its_traceback_and_given_to_the_hook(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of failing handler is counted, logged with its traceback, and reported to the hook."""
    app, got = App(), []

    def broken() -> None:
        raise CustomError("no")

    if way == "async":

        async def handle(message: int) -> None:
            broken()
    elif way == "deferred":

        def handle(message: int) -> Any:
            return Deferred.fromCoroutine(deferred())

        async def deferred() -> None:
            broken()
    else:

        def handle(message: int) -> None:
            broken()

    app.add_route(handle, "a.{x}")
    app.on_error()(lambda error, envelope: got.append((type(error), envelope.topic)))
    wired = Wired(app).feed(plain("a.b", 1))
    assert got == [(CustomError, "a.b")]
    assert wired.stats.failed == 1
    assert "failed on 'a.b': CustomError: no" in caplog.text
    assert "in broken" in caplog.text
    assert "test_outcomes.py:" in caplog.text


# -- return values ---------------------------------------------------------------------------------------


def derived(function: Any, *publishers: str) -> App:
    """Return an app that publishes the results of ``function`` on topic ``in.{x}`` to ``publishers``."""
    app = App()
    app.subscribe("in.{x}")(function)
    for pattern in publishers or ("out",):
        app.publisher(pattern)(function)
    return app


def plain_handler(message: int) -> int:
    """A handler that returns its result at once."""
    return message + 1


async def async_handler(message: int) -> int:
    """A handler that is a coroutine function."""
    return message + 1


def deferred_handler(message: int) -> Any:
    """A handler that returns a Deferred."""
    later: Deferred[int] = Deferred()
    later.callback(message + 1)
    return later


@pytest.mark.parametrize("function", [plain_handler, async_handler, deferred_handler])
def test_what_a_handler_returns_is_published(function: Any) -> None:
    """publisher above subscribe: the result is published, for each kind of function."""
    assert Wired(derived(function)).feed(plain("in.a", 1)).published == [("out", 2)]


def generator(message: int) -> Iterator[int | None]:
    """A handler that yields two messages and, between them, None."""
    yield message
    yield None
    yield message + 1


async def async_generator(message: int) -> AsyncIterator[int | None]:
    """The same handler as an async generator."""
    yield message
    yield None
    yield message + 1


@pytest.mark.parametrize("function", [generator, async_generator])
def test_each_value_a_handler_yields_is_published(function: Any) -> None:
    """A generator under subscribe runs once per message; None publishes nothing."""
    wired = Wired(derived(function)).feed(plain("in.a", 1), plain("in.a", 5))
    wired.clock.advance(1)
    assert wired.published == [("out", 1), ("out", 2), ("out", 5), ("out", 6)]
    assert wired.stats.handled == 2


def test_none_publishes_nothing_and_a_list_is_one_message() -> None:
    """A handler that returns None publishes nothing; a list is one message."""
    app = derived(lambda message: message)
    assert Wired(app).feed(plain("in.a", None), plain("in.a", [1, 2])).published == [("out", [1, 2])]


def test_several_publishers_publish_to_each_in_any_order_of_decorators() -> None:
    """publisher and subscribe have the same effect in any order."""
    app = App()

    @app.publisher("one")
    @app.subscribe("in")
    @app.publisher("two.{x}")
    def handle(message: dict) -> dict:
        return message

    wired = Wired(app).feed(plain("in", {"x": "y"}))
    assert sorted(wired.published) == [("one", {"x": "y"}), ("two.y", {"x": "y"})]


def test_what_cannot_be_published_is_counted_and_logged_and_the_rest_is_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If one publisher refuses a result, the error is counted and logged, and the others publish it."""
    app = derived(lambda message: message, "bad.{missing}", "good")
    wired = Wired(app).feed(plain("in.a", 1))
    assert wired.published == [("good", 1)]
    assert (wired.stats.publish_errors, wired.stats.handled) == (1, 1)
    assert "was not published to 'bad.{missing}': TopicError" in caplog.text


class Countdown:
    """An async iterator that is no generator, so it has no aclose()."""

    def __init__(self, begin: int) -> None:
        self.left = begin

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise StopAsyncIteration
        return self.left


ITERATORS: dict[str, Callable[[int], Any]] = {
    "list": lambda message: iter([1, 0]),
    "map": lambda message: map(int, "10"),
    "reversed": lambda message: reversed([0, 1]),
    "async": Countdown,
}


@pytest.mark.parametrize("kind", ITERATORS)
@pytest.mark.parametrize("lists", [False, True])
def test_each_value_of_an_iterator_that_is_no_generator_is_published(kind: str, lists: bool) -> None:
    """Iterators need not have close(), as the results of map() have not."""
    app = App()

    def one(message: int) -> Any:
        return ITERATORS[kind](message)

    def several(messages: list[int]) -> Any:
        return ITERATORS[kind](messages[0])

    app.publisher("out", int)(app.subscribe("a", **({"batch": 1} if lists else {}))(several if lists else one))
    wired = Wired(app).feed(plain("a", 2))
    assert (wired.published, wired.stats.handled, wired.stats.failed) == ([("out", 1), ("out", 0)], 1, 0)


class Unreadable:
    """An object each of whose attributes raises an error, like a proxy of an object that is not there."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


class UnreadableMap(Mapping[str, Any]):
    """A map that can't be read."""

    def __getitem__(self, key: str) -> Any:
        raise LookupError(key)

    def __iter__(self) -> Iterator[str]:
        raise LookupError

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("shape", ["alone", "two of one type", "two of two types", "surrounded", "isolated"])
@pytest.mark.parametrize("has_publisher", [False, True])
def test_a_result_whose_attributes_raise_is_an_error_of_the_handler(shape: str, has_publisher: bool) -> None:
    """It is counted once, leaves no call of a handler early, and the next message is handled."""
    app, got = App(isolate=shape == "isolated"), []

    def handle(message: int) -> Any:
        got.append(message)
        return Unreadable() if message < 3 else None

    if shape == "surrounded":
        app.middleware(lambda call, route: lambda message: call(message))
    app.subscribe("a")(handle)
    if has_publisher:
        app.publisher("out")(handle)
    if "two" in shape:

        @app.subscribe("a")
        def other(message: int) -> None:
            got.append(message)

    if shape == "two of two types":

        @app.subscribe("a")
        def whole(envelope: Envelope) -> None:
            got.append(0)

    wired = Wired(app).feed(plain("a", 1), plain("a", 2), plain("a", 3))
    route = wired.stats.routes[next(iter(wired.stats.routes))]
    assert (route.handler_error, route.handled, wired.stats.routed, wired.balanced()) == (2, 1, 3, True)
    assert [message for message in got if message] == sorted([1, 2, 3] * (2 if "two" in shape else 1))


@pytest.mark.parametrize("kind", ["plain", "async", "generator"])
def test_headers_that_cannot_be_read_are_counted_like_headers_that_cannot_be_sent(kind: str) -> None:
    """The message is not published, and the handler has handled its message."""
    app = App()

    def plainly(message: int) -> Any:
        return WithHeaders(message, UnreadableMap())

    async def later(message: int) -> Any:
        return plainly(message)

    def values(message: int) -> Iterator[Any]:
        yield plainly(message)

    function: Any = {"async": later, "generator": values}.get(kind, plainly)
    app.publisher("out", int)(app.subscribe("a")(function))
    wired = Wired(app).feed(plain("a", 1), plain("a", 2))
    assert (wired.stats.handled, wired.stats.publish_errors, wired.sent) == (2, 2, [])


def test_a_generator_that_fails_half_way_has_published_what_it_yielded() -> None:
    """Values yielded before an error are published, and the error is the handler's."""

    def broken(message: int) -> Iterator[int]:
        yield message
        raise CustomError("no")

    wired = Wired(derived(broken)).feed(plain("in.a", 1))
    assert wired.published == [("out", 1)]
    assert wired.stats.routes["broken()"].handler_error == 1


# -- hooks -----------------------------------------------------------------------------------------------


def test_the_nearest_class_is_called() -> None:
    """on_error functions are chosen by the class of the error, the nearest class first."""
    app, got = App(), []
    for kind in (Exception, ValueError, LookupError):
        app.on_error(kind)(lambda error, envelope, kind=kind: got.append(kind))
    failing(app, CustomError())
    failing(app, KeyError(), "b")
    failing(app, RuntimeError(), "c")
    Wired(app).feed(plain("a", 1), plain("b", 1), plain("c", 1))
    assert got == [ValueError, LookupError, Exception]


def test_the_group_goes_before_the_app() -> None:
    """A group's hook is chosen before the app's, even if the app's class is nearer."""
    app, group, got = App(), Routes("g"), []
    app.on_error(CustomError)(lambda error, envelope: got.append("app"))
    group.on_error(ValueError)(lambda error, envelope: got.append("group"))
    failing(group, CustomError(), "a")
    app.include(group)
    failing(app, CustomError())
    Wired(app).feed(plain("g.a", 1), plain("a", 1))
    assert got == ["group", "app"]


def test_an_error_of_the_group_that_its_hooks_do_not_take_goes_to_the_app() -> None:
    """An error without a matching hook in the group goes to the app's hook."""
    app, group, got = App(), Routes(), []
    app.on_error(KeyError, IndexError)(lambda error, envelope: got.append("app"))
    group.on_error(ValueError)(lambda error, envelope: got.append("group"))
    failing(group, IndexError(), "a")
    app.include(group)
    Wired(app).feed(plain("a", 1))
    assert got == ["app"]


def test_without_a_hook_an_error_is_counted_only() -> None:
    """Without a hook an error is only counted; KeyboardInterrupt is no Exception and reaches no general hook."""
    app, got = App(), []
    app.on_error()(lambda error, envelope: got.append(error))
    failing(app, KeyboardInterrupt())
    assert Wired(app).feed(plain("a", 1)).stats.failed == 1
    assert got == []


def test_system_exit_asks_the_app_to_stop_and_is_no_failure() -> None:
    """A handler that calls sys.exit has handled its message; no error hook is called, also not one for SystemExit."""
    app, got = App(), []
    app.on_error(BaseException)(lambda error, envelope: got.append(error))
    failing(app, SystemExit(3))
    wired = Wired(app).feed(plain("a", 1))
    assert (wired.stats.handled, wired.stats.failed, got, wired.errors) == (1, 0, [], [])
    assert [error.code for error in wired.exits] == [3]


def test_dead_letters_reach_the_hook_with_topic_route_and_body() -> None:
    """on_error(DecodeError) works as a dead-letter queue: topic, route and body, once per message."""
    app, got = App(), []

    def one(quote: Quote) -> None:
        raise AssertionError

    def two(quote: Quote) -> None:
        raise AssertionError

    app.add_route(one, "a")
    app.add_route(two, "a")
    app.on_error(DecodeError)(lambda error, envelope: got.append((error, envelope)))
    Wired(app).feed(plain("a", "text"), tracked("a", "text"))
    assert len(got) == 2
    error, envelope = got[0]
    assert (error.topic, error.route, envelope.body) == ("a", "one(), two()", b"\xa4text")
    assert "float" in error.reason or "object" in error.reason
    assert isinstance(error.__cause__, Exception)
    assert got[1][1].tracked


def test_malformed_messages_reach_the_hook_of_the_app() -> None:
    """on_error(EnvelopeError) receives malformed frames, with the parts that could be read."""
    app, got = App(), []
    app.add_route(lambda message: None, "a")
    app.on_error(EnvelopeError)(lambda error, envelope: got.append((error.reason, envelope.topic, envelope.frames)))
    Wired(app).feed(b"no nul", (b"a\0b", b"x"), plain("a", body=b"\xc1ZR"))
    assert [frames for _, _, frames in got] == [(b"no nul",), (b"a\0b", b"x"), (b"a\0\xc1ZR",)]
    assert got[0][1] == "no nul"


def test_a_hook_may_ask_which_route_failed_and_how_often() -> None:
    """Of two handlers of a topic I learn which one failed."""
    app, group, got = App(), Routes("desk"), []

    @group.subscribe("a", "b")
    async def first(message: int) -> None:
        raise CustomError

    @group.subscribe("a")
    def second() -> None:
        raise CustomError

    @group.on_error(ValueError)
    def hook(error: ValueError, envelope: Envelope, *, attempts: int, route: RouteInfo) -> None:
        got.append((route, attempts))

    app.include(group)
    Wired(app).feed(plain("desk.a", 1))
    (one, one_attempt), (two, two_attempts) = got
    assert (one.name, one.kind, one.patterns, one.schema, one.is_async) == (
        "first()", "subscribe", ("desk.a", "desk.b"), int, True,
    )  # fmt: skip
    assert (two.name, two.schema, two.is_async) == ("second()", None, False)
    assert one.where.startswith("test_outcomes.py:") or "/test_outcomes.py:" in one.where
    assert (one_attempt, two_attempts) == (1, 1)


def test_a_message_that_cannot_be_read_was_never_attempted() -> None:
    """A refused body has a route and no attempt; frames that are no message have no route."""
    app, got = App(), []
    app.subscribe("a")(handler_of(int))

    @app.on_error()
    def hook(error: Exception, envelope: Envelope, where: RouteInfo | None, attempts: int = 7) -> None:
        got.append((type(error), where and where.name, attempts))

    Wired(app).feed(plain("a", "x"), b"no nul")
    assert got == [(DecodeError, "handle()", 0), (EnvelopeError, None, 0)]


def test_a_parameter_that_no_fact_fills_is_refused() -> None:
    """The error says what a function for errors may ask for."""
    app = App()
    app.on_error()(lambda error, envelope, more: None)
    with pytest.raises(SignatureError, match="with the type of a resource; or name it attempts"):
        app.compile()


def test_an_async_hook_is_awaited() -> None:
    """A hook may be async, and a stop waits for it."""
    app, gate, got = App(), Deferred(), []

    @app.on_error(ValueError)
    async def hook(error: ValueError, envelope: Any) -> None:
        await gate
        got.append(error)

    failing(app, CustomError())
    wired = Wired(app).feed(plain("a", 1))
    idle = wired.outcomes.unfinished.idle()
    assert not idle.called
    gate.callback(None)
    assert idle.called
    assert len(got) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_hook_that_fails_itself_is_counted_and_logged(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    """An error in an on_error function does not call on_error again."""
    app = App()

    async def async_hook(*_: Any) -> None:
        raise RuntimeError("again")

    def plain_hook(*_: Any) -> None:
        raise RuntimeError("again")

    app.on_error()(async_hook if is_async else plain_hook)
    app.on_unrouted(plain_hook)
    failing(app, CustomError())
    wired = Wired(app).feed(plain("a", 1), plain("b", 1))
    assert wired.stats.hook_errors == 2
    assert "error hook or fallback, failed: RuntimeError: again" in caplog.text


# -- the log ---------------------------------------------------------------------------------------------


def test_a_flood_of_one_fault_is_a_few_lines_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand bad bodies are logged as a few full lines, and then a number."""
    app = App()

    @app.subscribe("a")
    def handle(quote: Quote) -> None:
        raise AssertionError

    wired = Wired(app).feed(*[plain("a", "x")] * 1000)
    assert len(caplog.messages) == 5
    wired.clock.advance(WINDOW)
    assert caplog.messages[5:] == ["handle(): 995 more lines like these were not shown"]


@pytest.mark.parametrize(("error", "says"), [(RecursionError(), "nested too deeply"), (MemoryError(), "more memory")])
def test_bombs_are_named(error: BaseException, says: str, caplog: pytest.LogCaptureFixture) -> None:
    """A body that exhausts the stack or memory is logged with that reason."""
    app = App()

    def check(*_: Any) -> None:
        raise error

    @attrs.frozen
    class Bomb:
        x: int = attrs.field(validator=check)

    @app.subscribe("a")
    def handle(message: Bomb) -> None:
        raise AssertionError

    Wired(app).feed((b"a", b"\x81\xa1x\x01"))
    assert says in caplog.text


def test_the_codec_hint_stays_away_where_the_publisher_named_its_codec(caplog: pytest.LogCaptureFixture) -> None:
    """A tracked message names its codec, so the log does not guess one."""
    app = App()

    @app.subscribe("a", codec="msgpack")
    def handle(message: Quote) -> None:
        raise AssertionError

    Wired(app).feed(tracked("a", body=b"{}", codec=2), (b"a", b"{}"))
    assert ["the body looks like json" in line for line in caplog.messages] == [False, True]


class Own:
    """A codec of the user, which reads JSON."""

    name = "own"
    number = 130

    def encoder(self, schema: Any) -> Any:
        return JSON.encoder(schema)

    def decoder(self, schema: Any) -> Any:
        return JSON.decoder(schema)


def test_the_codec_hint_stays_away_where_a_codec_of_the_user_refused(caplog: pytest.LogCaptureFixture) -> None:
    """zroute does not know the format of a codec of the user, so it does not advise another one."""
    app = App(codec=Own())

    @app.subscribe("a")
    def of_app(message: Quote) -> None:
        raise AssertionError

    @app.subscribe("b", codec="msgpack")
    def of_route(message: Quote) -> None:
        raise AssertionError

    Wired(app).feed((b"a", b"{}"), (b"b", b"{}"))
    assert ["the body looks like json" in line for line in caplog.messages] == [False, True]


def test_awaiting_asyncio_without_its_loop_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """If a handler awaits asyncio.sleep under another reactor, the log line names the required flag."""
    app = App()

    @app.subscribe("a")
    async def handle(message: int) -> None:
        await asyncio.sleep(1)

    Wired(app).feed(plain("a", 1))
    assert (
        "no running event loop (to await asyncio code, run the app on asyncio: App(reactor='asyncio'), " in caplog.text
    )


def test_awaiting_a_deferred_in_an_asyncio_task_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """If a handler awaits a Deferred under the asyncio reactor, the log line names code that works in both."""
    app = App()

    async def use() -> None:
        await Deferred()

    async def main() -> BaseException:
        return (await asyncio.gather(use(), return_exceptions=True))[0]

    loop = asyncio.new_event_loop()
    failing(app, ThreadPoolExecutor(1).submit(loop.run_until_complete, main()).result())
    loop.close()
    Wired(app).feed(plain("a", 1))
    assert "await zroute.as_awaitable(deferred)" in caplog.text


def test_a_producer_that_fails_or_ends_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A timer or generator that fails or ends logs its name, its line, the error, and what follows."""
    producer = CompiledProducer("tick()", "app.py:3", lambda: None, lambda value: None, None, False)
    wired = Wired(App())
    with caplog.at_level(logging.INFO):
        wired.outcomes.producer_failed(producer, CustomError("no"), "the schedule continues")
        wired.outcomes.producer_finished(producer)
    assert caplog.messages == [
        "tick() at app.py:3 failed: CustomError: no; the schedule continues",
        "tick() has no more values",
    ]
    assert wired.stats.publish_errors == 1


# -- the stop --------------------------------------------------------------------------------------------


def test_giving_up_names_the_unfinished_and_balances_the_counters() -> None:
    """Giving up cancels running handlers, drops waiting messages, and returns their numbers by name."""
    app, cancelled = App(), []

    @app.subscribe("a")
    def endless(message: int) -> Any:
        return Deferred(cancelled.append)

    @app.on_unrouted
    async def hook(envelope: Any) -> None:
        await Deferred()

    wired = Wired(app).feed(plain("a", 1), plain("a", 2), plain("b", 3))
    idle = wired.outcomes.unfinished.idle()
    assert wired.outcomes.unfinished.give_up() == {"endless()": 2, "hook()": 1}
    assert wired.stats.hook_errors == 0
    assert idle.called
    assert len(cancelled) == 1  # the other one waited for its turn
    stats = wired.stats.routes["endless()"]
    assert (stats.in_flight, stats.queued, stats.dropped_at_shutdown, stats.handler_error) == (0, 0, 2, 0)


def test_what_is_held_back_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """A stop logs the number of lines that were held back in the current window."""
    app = App()
    failing(app, CustomError())
    wired = Wired(app).feed(*[plain("a", 1)] * 7)
    with caplog.at_level(logging.ERROR):
        wired.close()
    assert caplog.messages[-1] == "handle(): 2 more lines like these were not shown"
    assert wired.clock.getDelayedCalls() == []
