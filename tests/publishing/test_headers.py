"""Headers of results, and headers that travel on from a received message."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from tests.pure import LOG, Wired, packed, plain, tracked
from tests.running import Mailbox, running
from tests.support import PATIENCE, free_endpoint
from zroute import App, EncodeError, Envelope, EnvelopeError, SchemaError, SignatureError, Topic, WithHeaders
from zroute.messages import wire
from zroute.messages.wire import HEADER_MAX, MAGIC, NUL, headers_of, pack_kept, parse
from zroute.options import HEADERS_MAX, LARGE_FRAME
from zroute.publishing.headers import PROPAGATED, propagated
from zroute.receiving.dispatch import BoundRoute
from zroute.receiving.frames import ZeroCopyFrame, head_of
from zroute.testing import TestApp

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
OWN = {"priority": "high"}


@attrs.frozen
class Alert:
    text: str


def one(message: str) -> WithHeaders[Alert]:
    """Return a message with headers."""
    return WithHeaders(Alert(message), OWN)


async def later(message: str) -> WithHeaders[Alert]:
    """Return it from a coroutine."""
    return WithHeaders(Alert(message), OWN)


def deferred(message: str) -> Deferred[WithHeaders[Alert]]:
    """Return it in a Deferred."""
    return succeed(WithHeaders(Alert(message), OWN))


def several(message: str) -> Iterator[WithHeaders[Alert]]:
    """Yield two messages with headers."""
    yield WithHeaders(Alert(message), OWN)
    yield WithHeaders(Alert(message), OWN)


async def several_later(message: str) -> AsyncIterator[WithHeaders[Alert]]:
    """Yield two from an async generator."""
    yield WithHeaders(Alert(message), OWN)
    yield WithHeaders(Alert(message), OWN)


def of_list(messages: list[str]) -> Iterator[WithHeaders[Alert]]:
    """Yield one for each message of a list."""
    for message in messages:
        yield WithHeaders(Alert(message), OWN)


def one_of_list(messages: list[str]) -> WithHeaders[Alert]:
    """Return one for a list."""
    return WithHeaders(Alert(messages[0]), OWN)


HANDLERS: list[Any] = [
    pytest.param(one, {}, 1, id="plain"),
    pytest.param(one, {"thread": True}, 1, id="thread"),
    pytest.param(later, {}, 1, id="async"),
    pytest.param(deferred, {}, 1, id="Deferred"),
    pytest.param(several, {}, 2, id="generator"),
    pytest.param(several_later, {}, 2, id="async generator"),
]
LISTS: list[Any] = [
    pytest.param(one_of_list, {"batch": 10}, 1, id="list"),
    pytest.param(of_list, {"batch": 10}, 1, id="generator for a list"),
]


def derived(handler: Callable[..., Any], options: dict[str, Any], **of_app: Any) -> App:
    """Return an app that publishes the results of ``handler`` to "out"."""
    app = App(**of_app)
    app.publisher("out", Alert)(app.subscribe("in", **options)(handler))
    return app


# -- headers of results ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("handler", "options", "number"), [*HANDLERS, *LISTS])
def test_each_result_is_sent_with_its_headers(handler: Any, options: dict[str, Any], number: int) -> None:
    """A handler of any kind returns or yields WithHeaders, and each message has the headers."""
    with TestApp(derived(handler, options)) as t:
        t.publish("in", "a")
        assert [envelope.headers for envelope in t.envelopes("out")] == [OWN] * number
        assert t.published("out") == [Alert("a")] * number


@pytest.mark.parametrize("kind", ["plain", "async", "generator", "async generator", "free generator"])
def test_the_messages_of_timers_and_generators_have_headers(kind: str) -> None:
    """A timer returns WithHeaders, and a generator yields it, with and without a period."""
    app = App()
    publisher = app.publisher("out", Alert, every=None if kind == "free generator" else 1.0)

    async def call_later() -> WithHeaders[Alert]:
        return one("a")

    async def generate_later() -> AsyncIterator[WithHeaders[Alert]]:
        yield one("a")
        yield one("a")

    functions: dict[str, Callable[[], Any]] = {
        "plain": lambda: one("a"),
        "async": call_later,
        "generator": (lambda: (yield from several("a"))),
        "async generator": generate_later,
        "free generator": (lambda: (yield from several("a"))),
    }
    publisher(functions[kind])
    with TestApp(app) as t:
        t.advance(1.5)
        assert [envelope.headers for envelope in t.envelopes("out")] == [OWN] * 2


def test_a_test_sees_what_the_handler_returned() -> None:
    """TestApp.results holds the WithHeaders, and published the decoded message."""
    with TestApp(derived(one, {})) as t:
        t.publish("in", "a")
        assert t.results(one) == [WithHeaders(Alert("a"), OWN)]
        assert t.results(one) != [WithHeaders(Alert("a"), {})]
        assert t.results(one) != [Alert("a")]
        assert repr(t.results(one)[0]) == "WithHeaders(Alert(text='a'), {'priority': 'high'})"
        assert t.published("out") == [Alert("a")]


@pytest.mark.parametrize("handler", [one, later, deferred, several, several_later])
def test_the_annotation_declares_the_type_of_the_messages(handler: Any) -> None:
    """WithHeaders[Alert] declares Alert, alone and inside other types."""
    app = App()
    app.publisher("out")(app.subscribe("in")(handler))
    assert app.compile().parts.outlets[0].schema is Alert


def test_an_annotation_of_another_type_is_refused() -> None:
    """WithHeaders[Alert] contradicts a publisher of another schema, and a bare WithHeaders does not."""
    app = App()
    app.publisher("out", int)(app.subscribe("in")(one))
    with pytest.raises(SignatureError, match=r"one\(\) returns Alert, but publisher\('out', int\) publishes int"):
        app.compile()

    def bare(message: str) -> WithHeaders:  # type: ignore[type-arg]
        return WithHeaders(message, OWN)

    app = App()
    app.publisher("out", str)(app.subscribe("in")(bare))
    app.compile()


def test_a_message_with_headers_fills_captures() -> None:
    """Captures come from the attributes of the message inside WithHeaders."""
    app = App()

    @app.publisher("out.{text}", Alert)
    @app.subscribe("in")
    def handle(message: str) -> WithHeaders[Alert]:
        return WithHeaders(Alert(message), OWN)

    with TestApp(app) as t:
        t.publish("in", "a")
        assert [str(envelope.topic) for envelope in t.envelopes("out.>")] == ["out.a"]


@pytest.mark.parametrize("schema", [None, Any, Alert, dict[str, Any]])
def test_publish_takes_headers_as_an_argument(schema: Any) -> None:
    """publish(WithHeaders(…)) raises an error that names the argument, for any schema."""
    app = App()
    alerts = app.publisher("out", schema)
    wired = Wired(app)
    for publish in (alerts.publish, lambda message: app.publish("out", message)):
        with pytest.raises(EncodeError, match=r"pass the headers to this call instead, as headers=\{…\}"):
            publish(WithHeaders(Alert("a"), OWN))
    assert wired.sent == []


@pytest.mark.parametrize("schema", [WithHeaders, WithHeaders[Alert]])
def test_it_is_no_type_of_messages(schema: Any) -> None:
    """A publisher or handler of WithHeaders is refused before the start."""
    app = App()
    app.publisher("out", schema)
    with pytest.raises(SchemaError, match="no codec supports"):
        app.compile()


@pytest.mark.parametrize(
    ("headers", "of_app", "reason"),
    [
        ({1: "a"}, {}, "header 1: the name of a header must be text, not int"),
        ({"a": "x" * HEADERS_MAX}, {}, f"bytes; expected at most {HEADERS_MAX}"),
        (OWN, {"wire": "plain"}, "only the tracked wire carries headers"),
        (OWN, {"wire": "multipart"}, "only the tracked wire carries headers"),
    ],
)
def test_headers_that_cannot_be_sent_are_counted_and_logged(
    headers: Any, of_app: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A result with such headers is not published; the log says why, and the app goes on."""

    def handler(message: str) -> Any:
        return WithHeaders(Alert(message), headers if message == "bad" else {})

    app = derived(handler, {}, **of_app)
    with TestApp(app, raise_errors=False) as t:
        t.publish("in", "bad")
        t.publish("in", "good")
        assert t.published("out") == [Alert("good")]
        assert app.stats.publish_errors == 1
    assert reason in caplog.text


@pytest.mark.parametrize("headers", ["a", 5, None, [("a", 1)]])
def test_headers_are_a_map(headers: Any) -> None:
    """Other headers are refused at the line that makes the result."""
    with pytest.raises(EncodeError, match="a map with text keys"):
        WithHeaders(1, headers)


# -- headers that travel on ------------------------------------------------------------------------------


@pytest.mark.parametrize(("handler", "options", "number"), HANDLERS)
def test_headers_of_tracing_travel_on(handler: Any, options: dict[str, Any], number: int) -> None:
    """Each result takes over the headers of tracing, and no others; its own headers are added."""
    with TestApp(derived(handler, options)) as t:
        t.publish("in", "a", headers={**TRACE, "tracestate": "a=b", "baggage": "c=d", "correlation-id": 7, "other": 1})
        expected = {**TRACE, "tracestate": "a=b", "baggage": "c=d", "correlation-id": 7, **OWN}
        assert [envelope.headers for envelope in t.envelopes("out")] == [expected] * number


def test_they_travel_on_without_headers_of_the_result() -> None:
    """A plain result takes over the headers too, and a message without headers gets none."""

    def handler(message: str) -> Alert:
        return Alert(message)

    with TestApp(derived(handler, {})) as t:
        t.publish("in", "a", headers=TRACE)
        t.publish("in", "a", headers={"other": 1})
        t.publish("in", "a")
        t.receive(plain("in", body=b"a"))
        t.receive(b"in", b"a")
        assert [envelope.headers for envelope in t.envelopes("out")] == [TRACE, {}, {}, {}, {}]


def test_the_headers_of_the_result_win() -> None:
    """A header of the result replaces the one that travels on."""

    def handler(message: str) -> WithHeaders[Alert]:
        return WithHeaders(Alert(message), {"traceparent": "own"})

    with TestApp(derived(handler, {})) as t:
        t.publish("in", "a", headers={**TRACE, "baggage": "c=d"})
        assert t.envelopes("out")[0].headers == {"traceparent": "own", "baggage": "c=d"}


@pytest.mark.parametrize(("handler", "options", "number"), LISTS)
def test_a_list_of_messages_hands_nothing_on(handler: Any, options: dict[str, Any], number: int) -> None:
    """The messages of a list may belong to several traces, so none of their headers travels on."""
    with TestApp(derived(handler, options)) as t:
        t.publish("in", "a", headers=TRACE)
        assert [envelope.headers for envelope in t.envelopes("out")] == [OWN] * number


def test_an_app_names_further_headers() -> None:
    """propagate_headers adds names to the usual ones."""
    with TestApp(derived(one, {}, propagate_headers=["x-tenant"])) as t:
        t.publish("in", "a", headers={**TRACE, "x-tenant": "acme", "x-other": 1})
        assert t.envelopes("out")[0].headers == {**TRACE, "x-tenant": "acme", **OWN}


@pytest.mark.parametrize("names", ["x-tenant", 5, None, ("a", 5), ("",), (b"a",)])
def test_names_of_headers_are_texts(names: Any) -> None:
    """Other values of propagate_headers are refused at the line of the app."""
    with pytest.raises(
        SignatureError, match=r"test_headers.py:\d+: propagate_headers=.*: expected the names"
    ) as raised:
        App(propagate_headers=names)
    assert raised.value.parameter == "propagate_headers"


@pytest.mark.parametrize("wire", ["plain", "multipart"])
def test_an_app_whose_wire_has_no_headers_publishes_without_them(wire: Any) -> None:
    """An app receives the headers and publishes on another wire: its messages are sent without them."""

    def handler(message: str) -> Alert:
        return Alert(message)

    with TestApp(derived(handler, {}, wire=wire)) as t:
        t.publish("in", "a", headers=TRACE)
        assert t.published("out") == [Alert("a")]


@pytest.mark.parametrize("own", ["plain", "multipart", "tracked"])
@pytest.mark.parametrize("other", ["plain", "multipart", "tracked"])
def test_headers_travel_on_over_a_bridge_if_its_wire_carries_them(own: Any, other: Any) -> None:
    """Each of two apps publishes the result, with the headers if its wire carries any."""
    a = App(sub="tcp://127.0.0.1:5001", pub="tcp://127.0.0.1:5002", name="a", wire=own)
    b = App(pub="tcp://127.0.0.1:5003", name="b", wire=other)

    @b.publisher("other", str)
    @a.publisher("own", str)
    @a.subscribe("in")
    def handler(message: str) -> str:
        return message

    with TestApp(a, b) as t:
        t.publish("in", "a", headers=TRACE)
        for topic, wire in (("own", own), ("other", other)):
            assert [each.headers for each in t.envelopes(topic)] == [TRACE if wire == "tracked" else {}]


def test_the_headers_of_a_kept_message_travel_on() -> None:
    """A message that was kept for this app hands its headers on, although its frame begins with a marker."""
    app = App()
    values = app.publisher("in", str, keep="last")

    @app.on_startup
    def publish() -> None:
        values.publish("a", headers=TRACE)

    app.publisher("out", Alert)(app.subscribe("in")(one))
    with TestApp(app) as t:
        assert [envelope.headers for envelope in t.envelopes("out")] == [{**TRACE, **OWN}]


def test_what_a_peer_sends_cannot_keep_a_result_from_being_sent() -> None:
    """Long and nested headers of a peer are left out, so the headers of the result have their room."""
    room = HEADERS_MAX // 2
    own = {"own": "x" * (room - 100)}

    def handler(message: str) -> WithHeaders[Alert]:
        return WithHeaders(Alert(message), own)

    with TestApp(derived(handler, {})) as t:
        t.publish("in", "a", headers={"baggage": "x" * (HEADERS_MAX - 100)})
        t.publish("in", "a", headers={"baggage": "ä" * (room // 2 - 20), "correlation-id": "y" * 100, **TRACE})
        t.publish("in", "a", headers={"baggage": [1], "tracestate": {"a": 1}, "correlation-id": None, **TRACE})
        sent = [set(envelope.headers) - {"own"} for envelope in t.envelopes("out")]
        assert sent == [set(), {"traceparent", "correlation-id"}, {"traceparent"}]


VALUES = st.one_of(st.text(max_size=300), st.binary(max_size=300), st.integers(-(2**63), 2**64 - 1), st.floats())


@given(st.dictionaries(st.sampled_from([*PROPAGATED, "x-tenant", "other"]), VALUES | st.lists(st.text())))
def test_no_more_than_half_of_the_room_travels_on(headers: dict[str, Any]) -> None:
    """What travels on never takes more than half of the bytes that headers may have."""
    taken = propagated(headers, (*PROPAGATED, "x-tenant"))
    assert taken.items() <= headers.items()
    assert "other" not in taken
    assert len(packed(taken)) <= HEADERS_MAX // 2 + 5


def test_malformed_headers_do_not_travel_on(caplog: pytest.LogCaptureFixture) -> None:
    """The result goes without them. The fault of the peer is logged and given to on_error, and nothing is raised."""
    caplog.set_level(logging.WARNING, logger=LOG.name)
    app, errors = derived(one, {}), []

    @app.on_error(EnvelopeError)
    def on_error(error: EnvelopeError, envelope: Envelope) -> None:
        errors.append(error)

    wired = Wired(app)
    (route,) = wired.table.routes
    frame = tracked("in", "a", headers=TRACE)
    map_of_one = frame.index(b"\x81\xabtraceparent")
    malformed = frame[:map_of_one] + b"\xc1" + frame[map_of_one + 1 :]
    wired.outcomes.settle(BoundRoute(route, b"in"), one("a"), malformed)
    assert [headers for *_, headers in wired.sent] == [OWN]
    assert wired.errors == [(errors[0], True)]
    assert "so zroute copies no headers to the results: headers that are not a msgpack map" in caplog.text
    assert route.stats.handled == 1


# -- the short way to headers ----------------------------------------------------------------------------


@attrs.frozen
class Number:
    length: int
    number: int


@pytest.mark.parametrize("headers", [None, TRACE])
@pytest.mark.parametrize("counters", [0, 3])
def test_headers_are_the_ones_of_the_envelope(headers: Any, counters: int) -> None:
    """The short way returns what a full parse does."""
    numbers = tuple(Number(length, 5) for length in range(counters))
    pack = wire.counted_framer(epoch=7, count=lambda topic: numbers, clock_ns=lambda: 1)
    frame = pack(b"in", 1, b"body\0\xc1ZR", headers)
    assert isinstance(frame, bytes)
    assert headers_of(frame) == parse((frame,), 0.0).headers == (headers or {})
    assert headers_of(head_of((b"in", frame[3:], b"more"), Topic("in"))) == (headers or {})


@pytest.mark.parametrize("topic", ["in", "in" * 3000])
def test_a_large_message_is_not_copied_for_its_headers(topic: str) -> None:
    """Only the beginning of a large message is copied, also behind a long topic."""
    frame = tracked(topic, body=b"x" * 10 * LARGE_FRAME, headers=TRACE)
    head = head_of(ZeroCopyFrame(memoryview(frame)), Topic(topic))
    assert len(head) < 255 + len(topic) + 1 + HEADER_MAX < len(frame)
    assert headers_of(head) == TRACE


def test_a_message_without_headers_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of the header tells that there are none."""
    kept = pack_kept(b"marker", 1, b"in", 1, b"body", None, epoch=7, sent_at=1)
    frames = [tracked("in", "a"), plain("in", "a"), plain("in", body=b""), b"in", b"", kept]
    monkeypatch.setattr(wire, "parse_header", None)
    assert [headers_of(frame) for frame in frames] == [{}] * len(frames)


@pytest.mark.parametrize("size", range(60))
def test_a_cut_header_is_malformed(size: int) -> None:
    """A header that ends behind its flags raises EnvelopeError and no other error; before them, it names no headers."""
    frame = tracked("in", "a", headers=TRACE)[: len(b"in\0") + size]
    if size <= 6:
        assert headers_of(frame) == {}
        return
    with pytest.raises(EnvelopeError):
        headers_of(frame)


@given(st.binary(max_size=40), st.sampled_from([b"", MAGIC[:1], MAGIC, MAGIC + b"\1\0\1\1"]))
def test_any_body_has_headers_or_is_malformed(body: bytes, begin: bytes) -> None:
    """Any bytes have the headers that a full parse finds, or raise EnvelopeError as it does."""
    frame = b"in" + NUL + begin + body
    try:
        expected = parse((frame,), 0.0).headers
    except EnvelopeError:
        with suppress(EnvelopeError):
            assert headers_of(frame) == {}
    else:
        assert headers_of(frame) == expected


# -- over real sockets -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_trace_travels_through_two_apps() -> None:
    """A message with a traceparent passes two apps over TCP, and the last one sees the same traceparent."""
    first, second = free_endpoint(), free_endpoint()
    source, middle, end = App(pub=first), App(sub=first, pub=second), App(sub=second)
    quotes = source.publisher("quotes.{symbol}", str)
    box = Mailbox[Envelope]()

    @middle.publisher("alerts.{symbol}", Alert)
    @middle.subscribe("quotes.{symbol}")
    async def alert(quote: str) -> WithHeaders[Alert]:
        return WithHeaders(Alert(quote), OWN)

    @end.subscribe("alerts.*")
    def take(envelope: Envelope) -> None:
        box.put(envelope)

    async with running(source), running(middle), running(end):
        await middle.ready(1, timeout=PATIENCE)
        await end.ready(1, timeout=PATIENCE)
        quotes.publish("high", symbol="ACME", headers={**TRACE, "local": "stays"})
        quotes.publish("low", symbol="ACME")
        got = await box.until(2)
    assert [envelope.headers for envelope in got] == [{**TRACE, **OWN}, OWN]
