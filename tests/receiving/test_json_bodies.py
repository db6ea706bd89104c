"""JSON bodies where msgpack is only the app's default: they are recognised, and remembered for each handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import msgpack
import pytest

from tests.pure import Wired, plain, tracked
from zroute import App, DecodeError, Envelope
from zroute.messages.codecs import JSON, detect


@attrs.frozen
class Quote:
    bid: int


@attrs.frozen
class Order:
    id: int
    note: str = attrs.field(converter=str.strip, default="")  # structured by cattrs


def alone(app: App, put: Callable[[Any], None]) -> None:
    """One handler of a topic."""

    @app.subscribe("a.*")
    def handle(quote: Quote) -> None:
        put(quote)


def beside_its_type(app: App, put: Callable[[Any], None]) -> None:
    """A handler beside others of the same type."""

    @app.subscribe("a.*")
    def other(quote: Quote) -> None: ...

    alone(app, put)


def beside_another_type(app: App, put: Callable[[Any], None]) -> None:
    """A handler beside one of another type, which takes an envelope."""

    @app.subscribe("a.*")
    def other(quote: Quote | bytes, envelope: Envelope) -> None:
        assert isinstance(quote, Quote) == (not envelope.body.startswith(b"garbage"))

    alone(app, put)


def in_batches(app: App, put: Callable[[Any], None]) -> None:
    """A handler of batches."""

    @app.subscribe("a.*", batch=1)
    def handle(quotes: list[Quote]) -> None:
        for quote in quotes:
            put(quote)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("add", [alone, beside_its_type, beside_another_type, in_batches])
def test_json_and_msgpack_of_one_topic_reach_a_typed_handler(add: Any, large: bool) -> None:
    """Bodies of either codec are decoded in any order, and each handler is called once for each."""
    app, got = App(), []
    add(app, got.append)
    wired = Wired(app)
    space = b" " * 20_000 if large else b""
    bodies = [b'{"bid": 1' + space + b"}", msgpack.packb({"bid": 2, "more": space}), b'{"bid": 3}' + space]
    wired.feed(*(plain("a.x", body=body) for body in [*bodies, b"garbage", *bodies]))
    assert [quote.bid for quote in got] == [1, 2, 3, 1, 2, 3]
    assert sum(route.decode_error for route in wired.stats.routes.values()) >= 1 - (add is in_batches)


def test_a_class_that_cattrs_structures_is_read_from_json() -> None:
    """The rule holds for both engines."""
    app, got = App(), []

    @app.subscribe("o")
    def handle(order: Order) -> None:
        got.append(order)

    Wired(app).feed(plain("o", body=b'{"id": 1, "note": " 5"}'), plain("o", body=msgpack.packb({"id": 2})))
    assert got == [Order(1, "5"), Order(2)]


def test_a_handler_that_receives_json_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first JSON body of a handler raises an error of the msgpack decoder."""
    app, refused, in_json, in_msgpack = App(), list[bytes](), b'{"bid": 1}', msgpack.packb({"bid": 1})

    def noting(body: bytes) -> Any:
        if body == in_json:  # not a body that only tests the decoder
            refused.append(body)
        return detect(body)

    monkeypatch.setattr("zroute.messages.bodies.detect", noting)

    @app.subscribe("a.*")
    def handle(quote: Quote) -> None: ...

    @app.subscribe("b.*")
    def other(quote: Quote) -> None: ...

    @app.subscribe("c.*")
    def later(quote: Quote) -> None: ...

    wired = Wired(app)
    wired.feed(*[plain(topic, body=in_msgpack) for topic in ("a.x", "a.y", "b.x")], plain("a.x", body=in_json))
    assert refused == [in_json]
    wired.feed(*[plain(f"a.{name}", body=body) for name in "xyz" * 2 for body in (in_json, in_msgpack)])
    assert refused == [in_json]
    # One closure serves both codecs, and one function all topics.
    remembered = dict(wired.table._entries.direct)
    wired.feed(*[plain(f"a.{name}", body=body) for name in "xyz" for body in (in_json, in_msgpack)])
    assert wired.table._entries.direct == remembered
    of_a = {deliver.__code__ for topic, deliver in remembered.items() if topic[:2] == b"a."}  # type: ignore[attr-defined]
    assert len(of_a) == 1
    wired.feed(plain("b.x", body=in_json))
    assert refused == [in_json] * 2
    # A handler without a message follows the others.
    wired.feed(plain("c.x", body=in_json))
    assert refused == [in_json] * 2
    assert [stats.handled for stats in wired.stats.routes.values()] == [21, 2, 1]


def test_json_for_an_entry_that_was_dropped_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of a full cache stays right if the first JSON body of a topic follows the drop of its entry."""
    monkeypatch.setattr("zroute.receiving.topic_cache.TOPIC_CACHE", 1_000)  # too small for the closure of the head
    app = App()

    @app.subscribe("a.*")
    def handle(quote: Quote) -> None: ...

    wired = Wired(app).feed(*[tracked("a.x", body=b'{"bid": 1}', codec=0)] * 2)
    entries = wired.table._entries
    assert wired.stats.handled == 2
    assert len(entries) == entries._budget.used == 0


@pytest.mark.parametrize("known", [False, True], ids=["first message", "known topic"])
def test_the_error_of_a_body_that_is_neither_has_both_reasons(known: bool) -> None:
    """A body that is JSON is judged as JSON first; the codec of the app comes second."""
    app, errors = App(), []

    @app.subscribe("a")
    def handle(quote: Quote) -> None: ...

    @app.on_error(DecodeError)
    def note(error: DecodeError, envelope: Envelope) -> None:
        errors.append(error.reason)

    Wired(app).feed(*[plain("a", body=b'{"bid": 1}')] * known, plain("a", body=b'{"bid": "x"}'))
    (reason,) = errors
    assert reason.startswith("ValidationError: Expected `int`, got `str` - at `$.bid` (the body is JSON; as msgpack: ")
    assert reason.endswith("ValidationError: Expected `object`, got `int`)")
    assert "subscribe with codec" not in reason


@pytest.mark.parametrize("named", ["app", "route"])
def test_a_codec_that_the_program_names_is_not_guessed(named: str) -> None:
    """JSON is refused where the route names msgpack, and msgpack where the app names JSON."""
    app = App(codec="json" if named == "app" else "msgpack")

    @app.subscribe("a", codec=None if named == "app" else "msgpack")
    def handle(quote: Quote) -> None: ...

    wired = Wired(app)
    wired.feed(plain("a", body=msgpack.packb({"bid": 1}) if named == "app" else b'{"bid": 1}'))
    (stats,) = wired.stats.routes.values()
    assert (stats.handled, stats.decode_error) == (0, 1)


def test_a_deep_json_body_is_refused_before_a_decoder_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the nesting depth holds for JSON that is recognised, in the first message and later."""
    monkeypatch.setattr("zroute.messages.bodies.sys.getrecursionlimit", lambda: 10**6)
    app, errors = App(), []

    @app.subscribe("a")
    def handle(quote: Quote) -> None: ...

    @app.on_error(DecodeError)
    def note(error: DecodeError, envelope: Envelope) -> None:
        errors.append(error.reason)

    bomb = plain("a", body=b'{"more": ' + b"[" * 20_000 + b"]" * 20_000 + b"}")
    Wired(app).feed(bomb, plain("a", body=b'{"bid": 1}'), bomb)
    assert [reason.count("deeper than 1000") for reason in errors] == [2, 2]


def test_bodies_that_only_look_like_json_make_one_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends invalid JSON makes the app compile the decoder of the type once only."""
    app, made, original = App(), list[str](), type(JSON).decoder
    monkeypatch.setattr(type(JSON), "decoder", lambda self, kind: (made.append(self.name), original(self, kind))[1])

    @app.subscribe("a.*")
    def handle(quote: Quote) -> None: ...

    Wired(app).feed(*(plain(f"a.{number % 3}", body=b'{"bid": "x"}') for number in range(9)))
    assert made.count("json") == 1
