"""Results: what is awaited, published, counted, logged, and given to hooks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from tests.pure import Wired, plain, tracked
from zroute import App, DecodeError, EnvelopeError, Routes
from zroute.publishing.producers import CompiledProducer
from zroute.throttle import WINDOW


@attrs.frozen
class Quote:
    price: float


class CustomError(ValueError):
    """An error of the user's own."""


def failing(app: Any, error: BaseException, pattern: str = "a") -> None:
    """Register a handler that raises ``error``."""

    @app.subscribe(pattern)
    def handle(message: Any) -> None:
        raise error


# -- handlers that take their time -----------------------------------------------------------------------


def test_an_async_handler_is_handled_when_it_ends() -> None:
    """async def handlers are in flight until they return."""
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
    """However my handler fails, I find counter, traceback and hook call."""
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


# -- what is returned ------------------------------------------------------------------------------------


def derived(function: Any, *publishers: str) -> App:
    """An app in which what ``function`` makes of topic ``in.{x}`` is published to ``publishers``."""
    app = App()
    app.subscribe("in.{x}")(function)
    for pattern in publishers or ("out",):
        app.publisher(pattern)(function)
    return app


def plain_handler(message: int) -> int:
    """A handler that answers at once."""
    return message + 1


async def async_handler(message: int) -> int:
    """One that may await."""
    return message + 1


def deferred_handler(message: int) -> Any:
    """One that returns a Deferred."""
    later: Deferred[int] = Deferred()
    later.callback(message + 1)
    return later


@pytest.mark.parametrize("function", [plain_handler, async_handler, deferred_handler])
def test_what_a_handler_returns_is_published(function: Any) -> None:
    """publisher above subscribe: the answer goes out, whatever kind of function it is."""
    assert Wired(derived(function)).feed(plain("in.a", 1)).published == [("out", 2)]


def generator(message: int) -> Iterator[int | None]:
    """One that answers several times, and once not."""
    yield message
    yield None
    yield message + 1


async def async_generator(message: int) -> AsyncIterator[int | None]:
    """The same, async."""
    yield message
    yield None
    yield message + 1


@pytest.mark.parametrize("function", [generator, async_generator])
def test_each_value_a_handler_yields_is_published(function: Any) -> None:
    """A generator under subscribe is run per message; None publishes nothing."""
    wired = Wired(derived(function)).feed(plain("in.a", 1), plain("in.a", 5))
    wired.clock.advance(1)
    assert wired.published == [("out", 1), ("out", 2), ("out", 5), ("out", 6)]
    assert wired.stats.handled == 2


def test_none_publishes_nothing_and_a_list_is_one_message() -> None:
    """A handler that has nothing to say returns None."""
    app = derived(lambda message: message)
    assert Wired(app).feed(plain("in.a", None), plain("in.a", [1, 2])).published == [("out", [1, 2])]


def test_several_publishers_publish_to_each_in_any_order_of_decorators() -> None:
    """Stacked decorators mean the same in any order."""
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
    """One publisher that refuses keeps nothing from the others."""
    app = derived(lambda message: message, "bad.{missing}", "good")
    wired = Wired(app).feed(plain("in.a", 1))
    assert wired.published == [("good", 1)]
    assert (wired.stats.publish_errors, wired.stats.handled) == (1, 1)
    assert "was not published to 'bad.{missing}': TopicError" in caplog.text


def test_a_generator_that_fails_half_way_has_published_what_it_yielded() -> None:
    """What was yielded before the error is out, and the error is the handler's."""

    def broken(message: int) -> Iterator[int]:
        yield message
        raise CustomError("no")

    wired = Wired(derived(broken)).feed(plain("in.a", 1))
    assert wired.published == [("out", 1)]
    assert wired.stats.routes["broken()"].handler_error == 1


# -- hooks -----------------------------------------------------------------------------------------------


def test_the_nearest_class_is_called() -> None:
    """on_error goes by the error's class hierarchy, the nearest first."""
    app, got = App(), []
    for kind in (Exception, ValueError, LookupError):
        app.on_error(kind)(lambda error, envelope, kind=kind: got.append(kind))
    failing(app, CustomError())
    failing(app, KeyError(), "b")
    failing(app, RuntimeError(), "c")
    Wired(app).feed(plain("a", 1), plain("b", 1), plain("c", 1))
    assert got == [ValueError, LookupError, Exception]


def test_the_group_goes_before_the_app() -> None:
    """A group's hook is asked first, even where the app's class is nearer; else the app's is called."""
    app, group, got = App(), Routes("g"), []
    app.on_error(CustomError)(lambda error, envelope: got.append("app"))
    group.on_error(ValueError)(lambda error, envelope: got.append("group"))
    failing(group, CustomError(), "a")
    app.include(group)
    failing(app, CustomError())
    Wired(app).feed(plain("g.a", 1), plain("a", 1))
    assert got == ["group", "app"]


def test_an_error_of_the_group_that_its_hooks_do_not_take_goes_to_the_app() -> None:
    """What the group has no hook for is the app's."""
    app, group, got = App(), Routes(), []
    app.on_error(KeyError, IndexError)(lambda error, envelope: got.append("app"))
    group.on_error(ValueError)(lambda error, envelope: got.append("group"))
    failing(group, IndexError(), "a")
    app.include(group)
    Wired(app).feed(plain("a", 1))
    assert got == ["app"]


def test_without_a_hook_an_error_is_counted_only() -> None:
    """No hook is needed; SystemExit is no Exception and goes to no hook for all."""
    app, got = App(), []
    app.on_error()(lambda error, envelope: got.append(error))
    failing(app, SystemExit())
    assert Wired(app).feed(plain("a", 1)).stats.failed == 1
    assert got == []


def test_dead_letters_reach_the_hook_with_topic_route_and_body() -> None:
    """on_error(DecodeError) is my dead-letter queue: it has everything, once per message."""
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
    """on_error(EnvelopeError) sees frames that are no message, as far as they can be read."""
    app, got = App(), []
    app.add_route(lambda message: None, "a")
    app.on_error(EnvelopeError)(lambda error, envelope: got.append((error.reason, envelope.topic, envelope.frames)))
    Wired(app).feed(b"no nul", (b"a\0b", b"x"), plain("a", body=b"\xc1ZR"))
    assert [frames for _, _, frames in got] == [(b"no nul",), (b"a\0b", b"x"), (b"a\0\xc1ZR",)]
    assert got[0][1] == "no nul"


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
    """An error in on_error does not call on_error again."""
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
    assert "failed itself: RuntimeError: again" in caplog.text


# -- the log ---------------------------------------------------------------------------------------------


def test_a_flood_of_one_fault_is_a_few_lines_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand bad bodies don't fill my disk: the first few in full, then how many more."""
    app = App()

    @app.subscribe("a")
    def handle(quote: Quote) -> None:
        raise AssertionError

    wired = Wired(app).feed(*[plain("a", "x")] * 1000)
    assert len(caplog.messages) == 5
    wired.clock.advance(WINDOW)
    assert caplog.messages[5:] == ["handle(): 995 more like these, not shown"]


@pytest.mark.parametrize(("error", "says"), [(RecursionError(), "nests too deep"), (MemoryError(), "more memory")])
def test_bombs_are_named(error: BaseException, says: str, caplog: pytest.LogCaptureFixture) -> None:
    """A body that exhausts stack or memory says so in words."""
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
    """A tracked message says its codec: no guess is made."""
    app = App()

    @app.subscribe("a")
    def handle(message: Quote) -> None:
        raise AssertionError

    Wired(app).feed(tracked("a", body=b"{}", codec=2), (b"a", b"{}"))
    assert ["it starts like json" in line for line in caplog.messages] == [False, True]


def test_awaiting_asyncio_without_its_loop_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio.sleep in a handler under another reactor: the line names the flag that makes it work."""
    app = App()

    @app.subscribe("a")
    async def handle(message: int) -> None:
        await asyncio.sleep(1)

    Wired(app).feed(plain("a", 1))
    assert "no running event loop (to await asyncio, run on its loop: zroute run --reactor asyncio, " in caplog.text


def test_awaiting_a_deferred_in_an_asyncio_task_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """A bare Deferred under the asyncio reactor: the line names what makes it work in both."""
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
    """Timers and generators name themselves, their line, the error, and what comes next."""
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


# -- the end ---------------------------------------------------------------------------------------------


def test_giving_up_names_the_unfinished_and_balances_the_counters() -> None:
    """Handlers that don't end are cancelled, those that wait are dropped; counted, and named with their number."""
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
    """A stop inside the window still says how many more there were."""
    app = App()
    failing(app, CustomError())
    wired = Wired(app).feed(*[plain("a", 1)] * 7)
    with caplog.at_level(logging.ERROR):
        wired.close()
    assert caplog.messages[-1] == "handle(): 2 more like these, not shown"
    assert wired.clock.getDelayedCalls() == []
