"""Requesters, and ``app.request``: topics, types, timeouts, further attempts, and apps that do not run."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from tests.requests.wired import begun, result
from zroute import App, Envelope, Routes
from zroute.errors import (
    AppFrozenError,
    BusyError,
    EncodeError,
    EndpointError,
    NoHandlerError,
    NoServerError,
    NotRunningError,
    PatternError,
    RequestLostError,
    RequestTimeoutError,
    SchemaError,
    SignatureError,
    TopicError,
    UsageError,
)
from zroute.messages.codecs import MSGPACK, Codecs
from zroute.requests.client import Client
from zroute.requests.requester import Requester
from zroute.stats import Stats
from zroute.testing import TestApp
from zroute.testing.bed import UnfinishedError

ADDRESS = "tcp://127.0.0.1:1"


@attrs.frozen
class Ask:
    size: int
    symbol: str = "x"


def echoing(**options: Any) -> App:
    """Return an app that answers with topic, size and headers."""
    app = App(**options)

    @app.reply("prices.{symbol}")
    def price(ask: Ask, envelope: Envelope) -> list[Any]:
        return [str(envelope.topic), ask.size, dict(envelope.headers)]

    return app


def ask(requester: Requester[Any, Any], *given: Any, **options: Any) -> Any:
    """Send a request in the loop of a test, and return the reply."""
    return result(begun(requester.request(*given, **options)))


# -- topics and messages ---------------------------------------------------------------------------------


class Symbol(StrEnum):
    """A symbol as an enum."""

    ACME = "ACME"


def test_captures_are_given_or_read_from_the_message() -> None:
    """A keyword fills a capture, else an attribute or a key; each call may have another topic."""
    app = echoing()
    prices = app.requester("prices.{symbol}", Ask, list[Any])
    loose = app.requester("prices.{symbol}")
    with TestApp(app) as t:

        def asked(*given: Any, **options: Any) -> Any:
            running = begun(prices.request(*given, **options))
            t.advance(0)
            return result(running)

        for _ in range(2):
            assert asked(Ask(1)) == ["prices.x", 1, {}]
            assert asked(Ask(2), symbol="EURUSD") == ["prices.EURUSD", 2, {}]
            assert asked(Ask(3), symbol=Symbol.ACME)[0] == "prices.ACME"
            assert asked(Ask(3), symbol=7)[0] == "prices.7"
            assert asked(Ask(4, "y"), headers={"trace": 1}) == ["prices.y", 4, {"trace": 1}]
        running = begun(loose.request({"size": 5, "symbol": "key"}))
        t.advance(0)
        assert result(running)[0] == "prices.key"


@pytest.mark.parametrize(
    ("given", "options", "kind", "text"),
    [
        (Ask(1), {"symbols": "a"}, TopicError, "has no capture 'symbols'; it has symbol"),
        ({"size": 1}, {}, TopicError, "needs a value for 'symbol'"),
        (Ask(1), {"symbol": "a.b"}, TopicError, "a.b"),
        (Ask(1), {"symbol": ""}, TopicError, "symbol"),
        (Ask(1), {"timeout": 0}, SignatureError, "timeout=0: expected a number of seconds"),
        (Ask(1), {"timeout": float("nan")}, SignatureError, "timeout=nan"),
        (Ask(1), {"timeout": -1}, SignatureError, "timeout=-1"),
        (Ask(1), {"timeout": "1 s"}, SignatureError, "timeout='1 s'"),
    ],
)
def test_a_wrong_call_sends_nothing(given: Any, options: dict[str, Any], kind: type[Exception], text: str) -> None:
    """Errors of the caller are raised at once, and nothing waits for a reply."""
    app = echoing()
    prices = app.requester("prices.{symbol}", None, Any)
    with TestApp(app):
        with pytest.raises(kind, match=text):
            ask(prices, given, **options)
        if kind is SignatureError:
            with pytest.raises(kind, match=text):
                result(begun(app.request("prices.a", given, **options)))
            with pytest.raises(kind, match=text):
                app.request_stream("prices.a", given, **options)
            with pytest.raises(kind, match=text):
                prices.stream(given, **options)
    assert app.stats.requests_sent == 0


def test_a_message_of_another_type_is_not_sent() -> None:
    """The requester names itself in the EncodeError."""
    app = echoing()
    prices = app.requester("prices.{symbol}", Ask, Any)
    with TestApp(app), pytest.raises(EncodeError, match=r"<Requester 'prices\.\{symbol\}' at .*> can't send"):
        ask(prices, "text", symbol="a")


def test_a_message_may_be_left_out() -> None:
    """None is a request without a body, for handlers without one."""
    app = App()
    pings = app.requester("ping", None, str)

    @app.reply("ping")
    def ping() -> str:
        return "pong"

    with TestApp(app) as t:
        running = begun(pings.request(None))
        t.advance(0)
        assert result(running) == "pong"


@pytest.mark.parametrize("topic", ["a.*", "", "a..b", "x" * 300])
def test_a_topic_that_can_not_be_asked_is_refused(topic: str) -> None:
    """Wildcards, empty and too long topics raise an error of the caller."""
    app = echoing()
    with TestApp(app), pytest.raises((TopicError, PatternError)):
        result(begun(app.request(topic, 1)))


# -- declarations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "options", "kind", "text"),
    [
        ("a.*", {}, PatternError, "can't send a request to several topics"),
        ("a.>", {}, PatternError, "can't send a request to several topics"),
        ("a", {"timeout": 0}, SignatureError, "timeout=0"),
        ("a", {"timeout": float("inf")}, SignatureError, "timeout=inf"),
        ("a", {"retry": 5}, SignatureError, "retry=5"),
        ("a", {"retry": (1,) * 21}, SignatureError, "at most 20"),
        ("a", {"codec": "xml"}, SchemaError, "xml"),
    ],
)
def test_a_wrong_requester_is_refused_at_its_line(
    pattern: str, options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """Before the app starts."""
    with pytest.raises(kind, match=text) as raised:
        App().requester(pattern, int, int, **options)
    assert "test_requester.py" in str(raised.value)


def test_types_that_no_codec_carries_are_refused_when_the_app_is_compiled() -> None:
    """Both types of a requester, and that of a reply."""

    class Odd:
        __slots__ = ("a",)

        def __init__(self, a: complex) -> None: ...

    for schemas in ((Odd, int), (int, Odd)):
        app = App()
        app.requester("a", *schemas)
        with pytest.raises(SchemaError, match=r"requester 'a'"):
            app.compile()


def test_a_requester_of_a_group_has_its_prefix() -> None:
    """It sends to the topics of the group; a wildcard prefix is refused, and so is a late requester."""
    app, group, wild = App(), Routes("g"), Routes("*")
    asked = group.requester("n", int, int)

    @group.reply("n")
    def handle(n: int) -> int:
        return n + 1

    app.include(group)
    with TestApp(app) as t:
        running = begun(asked.request(1))
        t.advance(0)
        assert result(running) == 2
        assert [str(each.topic) for each in t.requests()] == ["g.n"]
    with pytest.raises(AppFrozenError):
        app.requester("late", int, int)
    other = App()
    wild.requester("n", int, int)
    other.include(wild)
    with pytest.raises(PatternError, match="wildcard"):
        other.compile()


def test_an_app_with_requesters_needs_an_endpoint() -> None:
    """With other endpoints, ``req`` is missing; without any, the app asks itself."""
    app = App(sub=ADDRESS)
    app.requester("n", int, int)
    with pytest.raises(EndpointError, match=r"requester\('n'\) at .* has no endpoint to send requests to"):
        app.compile().endpoints()
    alone = App()
    asked = alone.requester("n", int, int)
    with TestApp(alone) as t:
        running = begun(asked.request(1))
        t.advance(0)
        with pytest.raises(NoHandlerError):
            result(running)


def test_an_app_without_an_endpoint_for_requests_says_so() -> None:
    """``app.request`` names the parameter to add."""
    app = App(sub=ADDRESS)

    @app.subscribe("a")
    def handle(n: int) -> None: ...

    with TestApp(app), pytest.raises(EndpointError, match=r"as in App\(req="):
        result(begun(app.request("n", 1)))


def test_requests_need_a_running_app() -> None:
    """Before the start and after the stop they raise NotRunningError; two running apps are ambiguous."""
    group = Routes()
    asked = group.requester("n", int, int)
    first, second = echoing(), echoing()
    first.include(group)
    second.include(group)
    with pytest.raises(NotRunningError, match="no running app includes this requester"):
        ask(asked, 1)
    with pytest.raises(NotRunningError):
        result(begun(first.request("n", 1)))
    with TestApp(first, second), pytest.raises(UsageError, match="belongs to 2 running apps"):
        ask(asked, 1)
    with pytest.raises(NotRunningError):
        ask(asked, 1)


# -- in a test -------------------------------------------------------------------------------------------


def test_two_apps_are_joined_and_their_requests_recorded() -> None:
    """The server of one app answers the other; ``requests`` has what apps sent, not what the test sent."""
    server, client = echoing(rep=ADDRESS), App(req=ADDRESS)
    prices = client.requester("prices.{symbol}", Ask, list[Any])

    @client.reply("unused")
    def unused() -> None: ...

    client = App(req=ADDRESS)
    prices = client.requester("prices.{symbol}", Ask, list[Any])
    with TestApp(server, client) as t:
        running = begun(prices.request(Ask(1), headers={"trace": 1}))
        t.advance(0)
        assert result(running) == ["prices.x", 1, {"trace": 1}]
        assert t.request("prices.b", {"size": 2, "symbol": "b"}, list[Any]) == ["prices.b", 2, {}]
        (sent,) = t.requests("prices.{any}")
        assert (str(sent.topic), sent.headers, t.requests("other")) == ("prices.x", {"trace": 1}, [])
        t.clear()
        assert t.requests() == []
    assert (server.stats.requests, client.stats.requests_sent, client.stats.requests_failed) == (2, 1, 0)


def test_timeouts_pass_in_virtual_time() -> None:
    """A test does not wait for them."""
    app = App()

    @app.reply("never")
    async def never() -> None:
        from twisted.internet.defer import Deferred

        await Deferred()

    with TestApp(app) as t:
        with pytest.raises(RequestTimeoutError, match="no reply within 3600 s"):
            t.request("never", timeout=3600.0)
        with pytest.raises(UsageError, match="no app of the test answers requests"), TestApp(App(sub=ADDRESS)) as other:
            other.request("n")
    assert app.stats.routes["never()"].cancelled == 1


@pytest.mark.parametrize("retry", [(), (1, 2)])
def test_a_requester_tries_again_within_its_timeout(retry: tuple[float, ...]) -> None:
    """Busy servers are asked again; the last error is the caller's."""
    server, client = App(rep=ADDRESS), App(req=ADDRESS)
    asked = client.requester("n", int, int, timeout=10.0, retry=retry)
    busy: list[Any] = []

    @server.reply("n", max_in_flight=1, queue=1)
    async def handle(n: int) -> int:
        from twisted.internet.defer import Deferred

        busy.append(Deferred())
        await busy[-1]
        return n

    with TestApp(server, client) as t:
        begun(client.request("n", 1, timeout=None))
        begun(client.request("n", 2, timeout=None))
        running = begun(asked.request(3))
        t.advance(0.5)
        if retry:
            busy[0].callback(None)
            t.advance(0)
            busy[1].callback(None)
            t.advance(0.5)
            busy[2].callback(None)
            t.advance(0)
            assert result(running) == 3
        else:
            with pytest.raises(BusyError):
                result(running)
            for each in range(2):
                busy[each].callback(None)
                t.advance(0)


def test_a_stopped_server_loses_what_it_has() -> None:
    """Without a server there is NoServerError after the timeout."""
    client = App(req=ADDRESS)
    with TestApp(client) as t:
        running = begun(client.request("n", 1, timeout=5.0))
        t.advance(5)
        with pytest.raises(NoServerError):
            result(running)
    assert not issubclass(NoServerError, RequestLostError)


def test_a_stream_of_a_requester() -> None:
    """It fills captures as a request does, and may be used in ``async with``."""
    app = App()
    rows = app.requester("rows.{table}", int, int)

    @app.reply("rows.{table}")
    def handle(n: int, table: str) -> Iterator[int]:
        yield from range(n)

    async def read() -> list[int]:
        async with rows.stream(200, table="a") as stream:
            return [row async for row in stream]

    with TestApp(app) as t:
        running = begun(read())
        t.advance(1)
        assert result(running) == list(range(200))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda app: app.request("a.1", int),
            EncodeError,
            r"int is a type, not a message: write request\('a.1', message, int\), or request\('a.1', None, int\)",
        ),
        (
            lambda app: app.request("a.1", 1, retry=(1,)),
            SignatureError,
            r"no argument 'retry'; .*: declare app\.requester\(pattern, T, Reply, retry=…\)",
        ),
        (
            lambda app: app.request("a.{x}", 1, x=1),
            SignatureError,
            r"no argument 'x'; .*: write the whole topic, or declare app\.requester\(.*\.request\(message, x=…\)",
        ),
        (lambda app: app.request("a.{x}", 1), TopicError, r"app\.requester\('a\.\{x\}', T, Reply\)\.request"),
    ],
)
def test_arguments_that_belong_elsewhere_are_explained(call: Any, kind: type[Exception], text: str) -> None:
    """A wrong argument of a request raises an error that names the right place for it."""
    app = echoing()
    requester = app.requester("a.{x}")
    with TestApp(app) as t:
        with pytest.raises(kind, match=text):
            result(begun(call(app)))
        with pytest.raises(TopicError, match=r"has no capture 'retry'; it has x; retry is an option of"):
            result(begun(requester.request(1, x=1, retry=(1,))))
        with pytest.raises(EncodeError, match="int is a type, not a message"):
            t.request("a.1", int)
    assert app.stats.requests_sent == 0


def test_a_requester_and_a_stream_explain_how_to_use_them(caplog: pytest.LogCaptureFixture) -> None:
    """Calling a requester, or looping over a stream without async, names the right form."""
    app = echoing()
    requester: Any = app.requester("a.{x}")
    with pytest.raises(UsageError, match=r"call its methods request\(\) or stream\(\)"):
        requester(1)

    @app.subscribe("await")
    async def wrong() -> None:
        stream: Any = app.request_stream("a.1", 1)
        await stream

    with TestApp(app, raise_errors=False) as t:
        stream: Any = app.request_stream("a.1", 1)
        with pytest.raises(UsageError, match="async for reply in"):
            list(stream)
        begun(stream.aclose())
        t.publish("await", 1)
    assert "to read the replies, write: async for reply in app.request_stream" in caplog.text


def test_an_app_that_asks_itself_in_on_startup_is_told_why() -> None:
    """An app answers only after on_startup, so the test can't start, and a timeout names the reason."""
    app = App()

    @app.reply("a")
    def answer() -> int:
        return 1

    @app.on_startup
    async def begin() -> None:
        await app.request("a", None, int)

    reason = "it waits for a reply: an app answers requests only after its on_startup"
    with pytest.raises(UnfinishedError, match=reason), TestApp(app):
        pass


def test_the_timeout_of_a_request_in_on_startup_names_the_reason() -> None:
    """The client knows that the app does not answer yet."""
    client = Client(
        Clock(), Stats(), "app", Codecs(MSGPACK, {}), max_message=100, clock_ns=lambda: 0, later=lambda call: None
    )
    client.answers_later = True
    assert "only after on_startup has ended" in str(client.timed_out(b"", 2.0))
    client.answers_later = False
    assert str(client.timed_out(b"", 2.0)).endswith("not overloaded")
