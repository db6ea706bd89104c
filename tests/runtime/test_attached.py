"""Attached handlers and streams of a running app; see test_service_attached.py for real reactors."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.pure import plain, tracked
from tests.support import sized
from zroute import (
    App,
    DuplicateRouteError,
    Envelope,
    NotRunningError,
    PatternError,
    SchemaError,
    SignatureError,
    WrongThreadError,
    as_awaitable,
)
from zroute.errors import EndpointError, UsageError
from zroute.messages.codecs import Codec
from zroute.testing import TestApp

REACTORS = pytest.mark.parametrize("kind", ["twisted", "asyncio"])


@attrs.frozen
class Quote:
    symbol: str
    price: float


def table(app: App) -> Any:
    """Return the route table of the running app."""
    return app._live.run._table  # type: ignore[union-attr]


# -- attach and close --------------------------------------------------------------------------------------


@REACTORS
def test_an_attached_handler_is_called_until_it_is_closed(kind: Any) -> None:
    """An attached handler works like a decorated one until it is closed; a second close has no effect."""
    app, got = App(), list[Any]()

    async def on_quote(quote: Quote, symbol: str) -> None:
        got.append((quote, symbol))

    with TestApp(app, reactor=kind) as t:
        t.publish("stocks.A", Quote("A", 1.0))
        handle = app.attach("stocks.{symbol}", on_quote)
        assert repr(handle) == "<Attached on_quote()>"
        t.publish("stocks.B", Quote("B", 2.0))
        handle.close()
        handle.close()
        assert repr(handle) == "<Attached closed>"
        t.publish("stocks.C", Quote("C", 3.0))
        assert [envelope.topic for envelope in t.unheard] == ["stocks.A", "stocks.C"]
    handle.close()
    assert got == [(Quote("B", 2.0), "B")]


def test_what_is_left_attached_at_the_stop_is_gone_in_the_next_run() -> None:
    """A stop detaches all handlers; a close after it has no effect."""
    app, got = App(), list[int]()
    with TestApp(app) as t:
        handle = app.attach("a", got.append)
        t.publish("a", 1)
    with TestApp(app) as t:
        handle.close()
        t.publish("a", 2)
        assert len(t.unheard) == 1
    assert got == [1]


def test_attached_handlers_come_after_those_that_were_there() -> None:
    """Handlers of equal rank run in the order of their registration."""
    app, got = App(), list[str]()

    def named(name: str) -> Callable[[int], None]:
        return lambda message: got.append(name)

    app.subscribe("a")(named("static"))
    first, second = named("first"), named("second")
    with TestApp(app) as t:
        handle = app.attach("a", first)
        app.attach("a", second)
        app.attach(">", named("less specific"))
        t.publish("a", 1)
        assert got == ["static", "first", "second", "less specific"]
        got.clear()
        handle.close()
        app.attach("a", first)
        t.publish("a", 1)
        assert got == ["static", "second", "first", "less specific"]


def test_the_same_function_twice_is_refused_and_changes_nothing() -> None:
    """DuplicateRouteError names both lines, and the app continues; after a close the function is accepted."""
    app, got = App(), list[int]()

    @app.subscribe("a")
    def handle(message: int) -> None:
        got.append(message)

    def other(message: int) -> None:
        got.append(-message)

    with TestApp(app) as t:
        before = table(app)
        with pytest.raises(DuplicateRouteError, match=r"handle\(\) subscribes to 'a' twice: .* at .*test_attached.py"):
            app.attach("a", handle)
        attached = app.attach("a", other)
        with pytest.raises(DuplicateRouteError):
            app.attach("a", other)
        attached.close()
        attached = app.attach("a", other)
        t.publish("a", 1)
        attached.close()
        assert table(app).routes == before.routes
    assert got == [1, -1]


def test_with_most_specific_dispatch_one_handler_has_a_pattern() -> None:
    """dispatch="most_specific" refuses a second handler of equal rank at run time."""
    app = App(dispatch="most_specific")
    app.add_route(lambda message: None, "a.{x}")
    with TestApp(app), pytest.raises(DuplicateRouteError, match="match the same topics"):
        app.attach("a.*", lambda message: None)


@REACTORS
def test_an_attached_handler_may_be_of_every_kind(kind: Any) -> None:
    """Plain, async, Deferred, threaded and bound-method handlers can be attached."""
    app, got = App(), list[str]()

    class Room:
        """A class with a handler method."""

        def said(self, message: str) -> None:
            got.append("method")

    async def asynchronous(message: str) -> None:
        got.append("async")

    def deferred(message: str) -> Deferred[None]:
        got.append("deferred")
        waiting = Deferred[None]()
        t._running.callLater(1, waiting.callback, None)
        return waiting

    def threaded(message: str) -> None:
        got.append("thread" if threading.current_thread() is not threading.main_thread() else "main")

    with TestApp(app, reactor=kind) as t:
        one, other = Room(), Room()
        handles = [app.attach("a", room.said) for room in (one, other)]
        app.attach("a", asynchronous, max_in_flight=1, ordered=False, queue=3)
        app.attach("a", deferred)
        app.attach("a", threaded, thread=True)
        t.publish("a", "x")
        assert sorted(got) == ["async", "deferred", "method", "method", "thread"]
        handles[0].close()
        t.advance(1)
        assert app.stats.in_flight == 0
        assert app.stats.routes["Room.said()"].handled == 2


class Doubling:
    """A user's own codec."""

    def __init__(self, number: int = 200, name: str = "doubling") -> None:
        self.number = number
        self.name = name

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        return lambda message: str(message // 2).encode()

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        return lambda body: int(body) * 2


class Halving(Doubling):
    """Another codec with the same number."""


def test_a_codec_is_known_while_what_names_it_is_attached() -> None:
    """attach(…, codec=mine) makes the codec known until it is closed; then its number is free again."""
    app, got = App(), list[int]()
    assert isinstance(Doubling(), Codec)
    with TestApp(app) as t:
        handle = app.attach("a", got.append, codec=Doubling())
        t.receive(plain("a", body=b"21"))
        t.publish("a", 84, codec=Doubling())
        assert got == [42, 84]
        with pytest.raises(SchemaError, match="the same number 200"):
            app.attach("b", got.append, codec=Halving(name="halving"))
        handle.close()
        app.attach("b", got.append, codec=Halving(name="halving"))
        t.receive(tracked("b", body=b"1", codec=200))
    assert got == [42, 84, 2]


def test_a_codec_of_the_app_outlives_what_is_attached() -> None:
    """A codec stays known as long as any route names it."""
    app, got = App(codec=Doubling()), list[int]()
    app.add_route(got.append, "a")
    with TestApp(app) as t:
        app.attach("b", got.append, codec=Doubling()).close()
        t.receive(tracked("a", body=b"1", codec=200))
    assert got == [2]


# -- misuse ------------------------------------------------------------------------------------------------


def test_misuse_of_attach_says_what_to_do(endpoint: str) -> None:
    """Each wrong call of attach raises an error that says what to do."""
    app, publisher = App(), App(pub=endpoint)
    with pytest.raises(
        NotRunningError, match=r"can't call attach\('a'\): 'app' is not running\. Register .* @app.subscribe"
    ):
        app.attach("a", print)
    with TestApp(app), TestApp(publisher):
        handle = app.attach("a", lambda message: None)
        raised: list[Any] = []

        def elsewhere() -> None:
            for call in (lambda: app.attach("b", lambda message: None), handle.close):
                try:
                    call()
                except WrongThreadError as error:
                    raised.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(raised) == 2
        assert all("app.from_thread" in text for text in raised)
        with pytest.raises(PatternError, match=r"test_attached\.py"):
            app.attach("a.", lambda message: None)
        with pytest.raises(SignatureError, match=r"test_attached.py:\d+"):
            app.attach("a", lambda one, two: None)
        wanted = "expected a pattern and a function, as in app.attach"
        with pytest.raises(SignatureError, match=rf"attach\('a', 3\): {wanted}"):
            app.attach("a", 3)  # type: ignore[arg-type]
        with pytest.raises(SignatureError, match=rf"attach\('a', <class 'int'>\): {wanted}"):
            app.attach("a", int)
        with pytest.raises(SignatureError, match=rf"attach\(print\(\), 'a'\): the arguments are swapped; {wanted}"):
            app.attach(print, "a")  # type: ignore[arg-type]
        with pytest.raises(SignatureError, match="queue=0"):
            app.attach("a", lambda message: None, queue=0)
        with pytest.raises(
            EndpointError, match=r"can't call attach\('a'\): .* has no endpoint to subscribe to\. .* as in App\(sub="
        ):
            publisher.attach("a", lambda message: None)


def test_a_task_of_another_loop_is_told_to_use_the_loop_of_the_app() -> None:
    """`from_thread` would block that loop, as in an endpoint under a test client with a thread of its own."""
    app, raised = App(), list[str]()
    publisher = app.publisher("a", int)

    async def endpoint() -> None:
        for call in (lambda: publisher.publish(1), lambda: app.attach("b", print)):
            try:
                call()
            except WrongThreadError as error:
                raised.append(str(error))

    with TestApp(app):
        thread = threading.Thread(target=lambda: asyncio.run(endpoint()))
        thread.start()
        thread.join()
    assert len(raised) == 2
    assert all("different event loops" in text and "from_thread" not in text for text in raised)


def test_a_close_from_another_thread_may_be_done_again_on_the_right_one() -> None:
    """A close in the wrong thread has no effect; a second close in the right thread works."""
    app, got = App(), list[int]()
    with TestApp(app) as t:
        handle = app.attach("a", got.append)

        def elsewhere() -> None:
            with pytest.raises(WrongThreadError):
                handle.close()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        t.publish("a", 1)
        handle.close()
        t.publish("a", 2)
    assert got == [1]


# -- changes during reading ---------------------------------------------------------------------------------


@REACTORS
def test_attaching_and_closing_in_the_middle_of_a_drain(kind: Any) -> None:
    """A handler may attach and close others between two messages of one read."""
    app, got = App(), list[tuple[str, int]]()
    handles: dict[int, Any] = {}

    @app.subscribe("a")
    def conduct(number: int) -> None:
        got.append(("static", number))
        if number % 2 == 0:
            handles[number] = app.attach("a", lambda message: got.append(("attached", message)))
        else:
            handles[number - 1].close()

    with TestApp(app, reactor=kind) as t:
        for number in range(6):
            t._bus.receive((plain("a", number),))
        t._do(lambda: None)
    assert got == [
        *(("static", 0), ("static", 1), ("attached", 1), ("static", 2), ("static", 3), ("attached", 3)),
        *(("static", 4), ("static", 5), ("attached", 5)),
    ]


@pytest.mark.parametrize("parts", [3, 40])
def test_attaching_in_the_middle_of_a_message_of_several_parts(parts: int) -> None:
    """A change of routes between two parts of a message does not lose the position."""
    app, got, errors = App(), list[Any](), list[str]()

    @app.subscribe("a")
    def first(message: int, envelope: Envelope) -> None:
        got.append(("first", message, len(envelope.frames)))
        if message > 1:
            app.attach("b", lambda message: got.append(("b", message))).close()

    @app.on_error()
    def failed(error: Exception, envelope: Envelope) -> None:
        errors.append(type(error).__name__)
        app.attach("c", lambda message: None).close()

    with TestApp(app, raise_errors=False) as t:
        t.receive(plain("a", 1))
        # The first part looks complete and can't be decoded, so the rest of its message is skipped.
        for frames in (
            (plain("a", body=b"\xc1"), *(plain("a", 9),) * (parts - 1)),
            (plain("a", 2),),
            (b"a", b"\x03", *(plain("a", 9),) * (parts - 2)),
            (plain("a", 4),),
        ):
            t._bus.receive(frames)
        t._do(lambda: None)
    wanted = [("first", 1, 1), ("first", 2, 1), ("first", 3, parts), ("first", 4, 1)]
    if parts > 16:
        wanted.remove(("first", 3, parts))
    assert got == wanted
    assert errors == ["DecodeError", *(["EnvelopeError"] if parts > 16 else [])]


@REACTORS
def test_what_has_arrived_for_a_closed_handler_is_still_handled(kind: Any) -> None:
    """Messages that wait when their handler is closed are still handled, in order."""
    app, got, gate = App(), list[int](), Deferred[None]()

    async def slow(message: int) -> None:
        if message == 0:
            await as_awaitable(gate)
        got.append(message)

    with TestApp(app, reactor=kind) as t:
        handle = app.attach("a", slow)
        for number in range(5):
            t.publish("a", number)
        handle.close()
        t.publish("a", 5)
        assert app.stats.routes[next(iter(app.stats.routes))].queued == 4
        t._running.do(lambda: gate.callback(None))
        assert got == [0, 1, 2, 3, 4]
        assert next(iter(app.stats.routes.values())).queued == 0


def test_handlers_of_one_name_share_their_counters() -> None:
    """Two handlers with one name share counters, and closing one keeps the other's queued messages."""
    app, gate = App(), Deferred[None]()

    def room() -> Any:
        async def said(message: int) -> None:
            await as_awaitable(gate)

        return said

    with TestApp(app) as t:
        for topic in ("a", "b"):
            app.attach(topic, room())
            for number in range(3):
                t.publish(topic, number)
        (stats,) = app.stats.routes.values()
        assert (stats.queued, stats.in_flight) == (4, 2)
        t._running.do(lambda: gate.callback(None))
        assert (stats.queued, stats.in_flight, stats.handled) == (0, 0, 6)


# -- streams -----------------------------------------------------------------------------------------------


def consume(t: TestApp, kind: str, coroutine: Any) -> Deferred[Any]:
    """Run a consumer in the way of this kind of reactor."""
    from zroute.awaiting import as_deferred

    started: list[Deferred[Any]] = []
    t._running.do(lambda: started.append(as_deferred(coroutine, asyncio_loop=kind == "asyncio")))
    return started[0]


@REACTORS
def test_a_stream_gives_message_after_message(kind: Any) -> None:
    """A stream gives decoded messages in order, or envelopes on request."""
    app, got = App(), list[Any]()

    async def read(schema: Any) -> None:
        async with app.stream("stocks.*", schema) as messages:
            async for message in messages:
                got.append(message)
                if len(got) % 2 == 0:
                    break

    with TestApp(app, reactor=kind) as t:
        t.publish("stocks.A", Quote("A", 0.0))
        for schema in (Quote, Envelope):
            consume(t, kind, read(schema))
            for number in range(3):
                t.publish("stocks.A", Quote("A", float(number)))
    assert got[:2] == [Quote("A", 0.0), Quote("A", 1.0)]
    assert [(one.topic, one.sequence - got[2].sequence) for one in got[2:]] == [("stocks.A", 0), ("stocks.A", 1)]
    assert len(got) == 4


@REACTORS
def test_two_streams_of_one_pattern_each_get_everything(kind: Any) -> None:
    """Two streams and a handler of one pattern each receive every message."""
    app, got = App(), dict[str, list[int]]()
    app.add_route(lambda message: got.setdefault("handler", []).append(message), "a")

    async def read(name: str) -> None:
        async with app.stream("a", int) as messages:
            async for message in messages:
                got.setdefault(name, []).append(message)

    with TestApp(app, reactor=kind) as t:
        for name in ("one", "two"):
            consume(t, kind, read(name))
        for number in range(10):
            t.publish("a", number)
    assert got == {name: list(range(10)) for name in ("handler", "one", "two")}


@REACTORS
def test_a_full_stream_pauses_reading_until_half_are_taken(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A full stream pauses reading until half of its queue is free, and no message is lost."""
    app, got, gates = App(), list[int](), dict[int, Deferred[None]]()

    async def read() -> None:
        async with app.stream("a", int, queue=4) as messages:
            async for message in messages:
                got.append(message)
                gates[message] = Deferred()
                await as_awaitable(gates[message])

    with TestApp(app, reactor=kind) as t:
        consume(t, kind, read())
        transport = app._live.run.transport  # type: ignore[union-attr]
        for number in range(12):
            t.publish("a", number)
        (stats,) = app.stats.routes.values()
        assert (got, stats.queued, app.stats.received, transport._paused) == ([0], 4, 5, True)
        for number in range(12):
            t._running.do(lambda number=number: gates[number].callback(None))
            assert stats.queued <= 4
        assert got == list(range(12))
        assert not transport._paused
        assert stats.handled == 12
    said = [record.getMessage() for record in caplog.records]
    assert sum("queue full (4 messages)" in line for line in said) >= 1
    assert sum("reading resumed" in line for line in said) >= 1


@REACTORS
def test_leaving_a_stream_drops_and_counts_what_waits_and_lets_others_flow(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaving a full stream drops its messages, counts and logs them, and resumes reading."""
    caplog.set_level("INFO")
    app, got, gate = App(), list[int](), Deferred[None]()
    app.add_route(got.append, "a")

    async def read() -> None:
        async with app.stream("a", int, queue=4) as messages:
            async for _ in messages:
                await as_awaitable(gate)
                return

    with TestApp(app, reactor=kind) as t:
        consume(t, kind, read())
        for number in range(10):
            t.publish("a", number)
        assert got == [0, 1, 2, 3, 4]
        t._running.do(lambda: gate.callback(None))
        assert got == list(range(10))
        stats = next(one for name, one in app.stats.routes.items() if "stream" in name)
        assert (stats.handled, stats.dropped_at_shutdown, stats.queued, stats.in_flight) == (1, 4, 0, 0)
    assert "was closed: 4 waiting messages were dropped" in caplog.text


@REACTORS
def test_a_message_that_was_offered_and_never_taken_is_dropped_and_counted(kind: Any) -> None:
    """A stream that is never read handles no message."""
    app, gate = App(), Deferred[None]()

    async def idle() -> None:
        async with app.stream("a", int):
            await as_awaitable(gate)

    with TestApp(app, reactor=kind) as t:
        consume(t, kind, idle())
        for number in range(3):
            t.publish("a", number)
        t._running.do(lambda: gate.callback(None))
        (stats,) = app.stats.routes.values()
        assert (stats.handled, stats.dropped_at_shutdown, stats.queued, stats.in_flight) == (0, 3, 0, 0)


@REACTORS
def test_a_consumer_that_fails_leaves_its_stream(kind: Any) -> None:
    """An exception in the loop closes the stream, unsubscribes, and reaches the consumer."""
    app, raised = App(), list[Any]()

    async def read() -> None:
        async with app.stream("a", int) as messages:
            async for message in messages:
                raise ValueError(message)

    with TestApp(app, reactor=kind) as t:
        consume(t, kind, read()).addErrback(lambda failure: raised.append(failure.value))
        t.publish("a", 7)
        assert table(app).subscriptions == ()
    assert [str(error) for error in raised] == ["7"]


@REACTORS
def test_the_loop_ends_when_the_app_stops_after_what_had_arrived(kind: Any) -> None:
    """At a stop, a slow consumer receives all waiting messages before its loop ends."""
    app, got = App(), list[Any]()

    async def read() -> None:
        async with app.stream("a", int) as messages:
            async for message in messages:
                waiting = Deferred[None]()
                t._reactor_of_test.callLater(0.01, waiting.callback, None)  # type: ignore[attr-defined]
                await as_awaitable(waiting)
                got.append(message)
        got.append("ended")

    t = TestApp(app, reactor=kind)
    with t:
        t._reactor_of_test = t._reactor  # type: ignore[attr-defined]
        consume(t, kind, read())
        for number in range(50):
            t._bus.receive((plain("a", number),))
    assert got == [*range(50), "ended"]


@REACTORS
def test_a_handler_that_reads_a_stream_is_waited_for_by_the_stop(kind: Any) -> None:
    """A handler that reads a stream finishes during the drain."""
    app, got = App(), list[Any]()

    @app.subscribe("open")
    async def room(name: str) -> None:
        async with app.stream(name, int) as messages:
            async for message in messages:
                got.append(message)
        got.append("left")

    with TestApp(app, reactor=kind) as t:
        t.publish("open", "lobby")
        t.publish("lobby", 1)
        t.publish("lobby", 2)
    assert got == [1, 2, "left"]
    assert app.stats.handled == 3


@REACTORS
def test_a_stream_can_be_opened_in_on_startup_and_read_in_the_background(kind: Any) -> None:
    """A stream that on_startup opens receives from the first subscription on."""
    app, got = App(), list[int]()

    async def read() -> None:
        async with app.stream("a", int) as messages:
            async for message in messages:
                got.append(message)

    @app.on_startup
    async def start() -> None:
        if kind == "asyncio":
            background.append(asyncio.create_task(read()))
        else:
            background.append(Deferred.fromCoroutine(read()))

    background: list[Any] = []
    with TestApp(app, reactor=kind) as t:
        t.publish("a", 1)
    assert got == [1]


@REACTORS
def test_a_cancelled_consumer_leaves_its_stream_and_can_be_followed_by_another(kind: Any) -> None:
    """Cancelling a waiting consumer closes its stream; another can be opened."""
    app, raised, got = App(), list[str](), list[int]()

    async def read() -> None:
        async with app.stream("a", int) as messages:
            async for message in messages:
                got.append(message)

    with TestApp(app, reactor=kind) as t:
        for number in range(2):
            consumer = consume(t, kind, read())
            consumer.addErrback(lambda failure: raised.append(failure.type.__name__))
            t.publish("a", number)
            t._running.do(consumer.cancel)
            assert table(app).subscriptions == ()
        t.publish("a", 2)
        assert len(t.unheard) == 1
    assert got == [0, 1]
    assert raised == ["CancelledError", "CancelledError"]


def test_waiting_for_a_message_for_a_time_loses_none() -> None:
    """A message that arrives after a timeout of anext() is still delivered."""
    app, got = App(), list[Any]()

    async def read() -> None:
        async with app.stream("a", int) as messages:
            for _ in range(3):
                try:
                    async with asyncio.timeout(5):
                        got.append(await anext(messages))
                except TimeoutError:
                    got.append("nothing")

    with TestApp(app, reactor="asyncio") as t:
        consume(t, "asyncio", read())
        t.publish("a", 1)
        t.advance(5)
        t.publish("a", 2)
    assert got == [1, "nothing", 2]


@REACTORS
def test_misuse_of_a_stream_says_what_to_do(kind: Any) -> None:
    """Each wrong use of a stream raises an error that says what to do."""
    app, said = App(), list[str]()

    async def misuse() -> None:
        stream = app.stream("a", int)
        for wrong in (lambda: anext(stream), lambda: enter_twice(stream), two_loops):
            try:
                await wrong()
            except UsageError as error:
                said.append(str(error))
        try:
            async with app.stream("a", set[Codec]):
                pass
        except SchemaError as error:
            said.append(str(error))

    async def enter_twice(stream: Any) -> None:
        async with stream:
            pass
        async with stream:
            pass

    async def two_loops() -> None:
        async with app.stream("a", int) as messages:
            first = Deferred.fromCoroutine(messages.__anext__())
            first.addErrback(lambda failure: failure.trap(CancelledError))
            try:
                await anext(messages)
            finally:
                first.cancel()

    with TestApp(app, reactor=kind) as t:
        consume(t, kind, misuse())
        assert "not open: use `async with app.stream(…) as messages`" in said[0]
        assert "already used: call app.stream(…) once for each `async with` block" in said[1]
        assert "another loop already reads this stream" in said[2]
        assert "test_attached.py:" in said[3]
        assert table(app).routes == ()
        with pytest.raises(PatternError, match=r"test_attached\.py"):
            app.stream("a.")
        with pytest.raises(SignatureError, match="queue=0"):
            app.stream("a", queue=0)
        raised = list[Any]()

        def elsewhere() -> None:
            raised.append(Deferred.fromCoroutine(app.stream("a").__aenter__()))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        raised[0].addErrback(lambda failure: raised.append(failure.value))
        assert isinstance(raised[1], WrongThreadError)
        assert "app.from_thread" in str(raised[1])
    entering = Deferred.fromCoroutine(app.stream("a").__aenter__())
    entering.addErrback(lambda failure: said.append(str(failure.value)))
    assert "can't open stream('a'): 'app' has stopped. Open streams in a handler or a timer" in said[-1]


# -- leaks -------------------------------------------------------------------------------------------------


CYCLES = sized(9_000, 900)


def growth(cycle: Callable[[], None]) -> tuple[int, int]:
    """Return the additional objects after all cycles, and the bytes of the last ninth of them."""
    for _ in range(200):
        cycle()
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(CYCLES):
        cycle()
    tracemalloc.start()
    try:
        cycle()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(CYCLES // 9):
            cycle()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return len(gc.get_objects()) - objects, after - before


@pytest.mark.slow
def test_thousands_attached_and_closed_leave_nothing_behind() -> None:
    """After thousands of attached handlers, objects, memory and subscriptions are as before."""
    app = App()
    app.add_route(lambda message: None, "static")
    number = 0

    def cycle() -> None:
        nonlocal number
        number += 1

        def said(message: int) -> None:
            pass

        app.attach(f"rooms.{number}", said, codec=Doubling()).close()

    with TestApp(app) as t:
        objects, size = growth(cycle)
        assert objects < 100
        assert size < 20_000
        run: Any = app._live.run
        assert run._table.subscriptions == (b"static",)
        assert run.transport._subscriptions == (b"static",)
        assert len(run._table.routes) == 1
        assert len(app.stats.routes) == 2
        assert set(run._codecs.by_number) == set(app.compile().parts.codecs.by_number)
        t.publish("static", 1)


@pytest.mark.slow
@REACTORS
def test_thousands_of_streams_leave_nothing_behind(kind: Any) -> None:
    """After thousands of streams with a message each, objects and memory are as before."""
    app = App()
    app.add_route(lambda message: None, "static")
    number = 0

    async def once() -> None:
        async with app.stream(f"rooms.{number}", int) as messages:
            app.publish(f"rooms.{number}", number)
            app.publish(f"rooms.{number}", number)
            assert await anext(messages) == number

    def cycle() -> None:
        nonlocal number
        number += 1
        consume(t, kind, once())
        t.clear()

    with TestApp(app, reactor=kind) as t:
        objects, size = growth(cycle)
        assert objects < 100
        assert size < 20_000
        run: Any = app._live.run
        assert run._table.subscriptions == (b"static",)
        assert len(run._table.routes) == 1
        assert len(app.stats.routes) == 2
        assert not run._streams
        (stats,) = (one for name, one in app.stats.routes.items() if "stream" in name)
        assert stats.handled >= CYCLES
        assert (stats.queued, stats.in_flight) == (0, 0)


# -- batches -----------------------------------------------------------------------------------------------


@REACTORS
def test_an_attached_handler_of_lists_is_given_what_came_before_it_was_closed(kind: Any) -> None:
    """A batch handler that is closed during a read still receives its last batch."""
    app, got = App(), list[Any]()

    @app.subscribe("go")
    def go(count: int) -> None:
        for number in range(count):
            app.publish("numbers", number)
        app.publish("end", 0)
        app.publish("numbers", count)

    def on_numbers(numbers: list[int]) -> None:
        got.append(numbers)

    @app.on_startup
    def attach() -> None:
        attached = app.attach("numbers", on_numbers, batch=2000)  # larger than the default queue of single messages
        app.attach("end", lambda message: attached.close())

    with TestApp(app, reactor=kind) as t:
        t.publish("go", 3)
    assert got == [[0, 1, 2]]
