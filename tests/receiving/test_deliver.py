"""The deliver closures: each outcome of a handler is counted, and the other handlers are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred

from tests.pure import Wired, plain, tracked
from zroute import App, Envelope, startswith
from zroute.receiving.frames import raw_frames


@attrs.frozen
class One:
    a: int


@attrs.frozen
class Two:
    b: int


def positional(handle: Callable[[Any], Any]) -> Any:
    """A handler of the shortest form."""

    def on_message(message: Any) -> Any:
        return handle(message)

    return on_message


def with_envelope(handle: Callable[[Any], Any]) -> Any:
    """A handler of the general form."""

    def on_message(message: Any, envelope: Envelope) -> Any:
        return handle(message)

    return on_message


def without_body(handle: Callable[[Any], Any]) -> Any:
    """A handler without a body parameter."""

    def on_message() -> Any:
        return handle(None)

    return on_message


FORMS = pytest.mark.parametrize("form", [positional, with_envelope, without_body])
COMPANY = pytest.mark.parametrize("company", [0, 1, 2])


def build(app: App, handle: Any, form: Any, company: int, seen: list[Any]) -> None:
    """Return the route of ``handle``, followed by other handlers of the same type and of another."""
    app.add_route(form(handle), "a")
    if company:
        app.add_route(lambda message: seen.append("same"), startswith("a"))
    if company > 1:

        def other(message: dict) -> None:
            seen.append("other")

        app.add_route(other, startswith("a"))


@FORMS
@COMPANY
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_handler_that_raises_is_counted_and_stops_nobody(form: Any, company: int, error: type) -> None:
    """If a handler raises, the error is counted, the others are called, and the next message is handled."""
    app, seen = App(), []

    def handle(message: Any) -> None:
        raise error("no")

    build(app, handle, form, company, seen)
    wired = Wired(app).feed(plain("a", {}), plain("a", {}))
    ends = error is SystemExit  # which asks the app to stop, and is no failure
    assert wired.stats.routes["on_message()"].handler_error == (0 if ends else 2)
    assert len(seen) == 2 * company
    assert (wired.stats.failed, len(wired.exits)) == ((0, 2) if ends else (2, 0))


@FORMS
@COMPANY
def test_a_handler_that_returns_a_deferred_is_in_flight(form: Any, company: int) -> None:
    """A Deferred that a handler returns is in flight, and counted when it ends."""
    app, seen, waiting = App(), [], Deferred()
    build(app, lambda message: waiting, form, company, seen)
    wired = Wired(app).feed(plain("a", {}))
    assert wired.stats.in_flight == 1
    waiting.callback(None)
    assert (wired.stats.in_flight, wired.stats.handled) == (0, 1 + company)


@FORMS
@COMPANY
def test_a_handler_that_returns_none_is_handled(form: Any, company: int) -> None:
    """A handler that returns None counts as handled, in each form."""
    app, seen = App(), []
    build(app, lambda message: None, form, company, seen)
    assert Wired(app).feed(plain("a", {}), tracked("a", {})).stats.handled == 2 * (1 + company)


@pytest.mark.parametrize("frame", [plain, tracked])
def test_a_body_that_no_handler_of_its_type_can_read_is_counted_for_each(frame: Any) -> None:
    """A body that cannot be decoded is an error for each handler of its type; other types are handled."""
    app, seen = App(), []

    def one(message: One) -> None:
        raise AssertionError

    def another_one(message: One) -> None:
        raise AssertionError

    def two(message: Two, envelope: Envelope) -> None:
        seen.append((message, envelope.topic))

    def nothing() -> None:
        seen.append("nothing")

    for function in (one, another_one, two, nothing):
        app.add_route(function, "a")
    wired = Wired(app).feed(frame("a", {"b": 1}), frame("a", {"b": 2}))
    assert seen == [(Two(1), "a"), "nothing", (Two(2), "a"), "nothing"]
    assert [stats.decode_error for stats in wired.stats.routes.values()] == [2, 2, 0, 0]


def test_handlers_of_one_type_share_a_refused_body() -> None:
    """On the fast path too, each handler of a type counts the decode error."""
    app = App()

    def one(message: One) -> None:
        raise AssertionError

    def another_one(message: One) -> None:
        raise AssertionError

    app.add_route(one, "a")
    app.add_route(another_one, "a")
    wired = Wired(app).feed(plain("a", "x"), tracked("a", "x"), plain("a", "x"))
    assert [stats.decode_error for stats in wired.stats.routes.values()] == [3, 3]
    assert wired.stats.received == wired.stats.routed == 3


@pytest.mark.parametrize("error", [RecursionError, MemoryError, SystemExit, ValueError])
def test_whatever_a_decoder_raises_is_a_decode_error(error: type) -> None:
    """Any exception of a decoder is a decode error; no handler is called, and the next message is handled."""
    app, got = App(), []

    def check(instance: Any, attribute: Any, value: int) -> None:
        if value < 0:
            raise error("negative")

    @attrs.frozen
    class Positive:
        value: int = attrs.field(validator=check)

    @app.subscribe("a")
    def handle(message: Positive) -> None:
        got.append(message.value)

    wired = Wired(app).feed(plain("a", {"value": -1}), plain("a", {"value": 1}))
    assert got == [1]
    assert wired.stats.routes["handle()"].decode_error == 1


def test_frames_are_always_a_tuple() -> None:
    """Hooks see the frames as a tuple, whether one or several."""
    assert raw_frames(b"a") == (b"a",)
    assert raw_frames((b"a", b"b")) == (b"a", b"b")
