"""`stale_after`: messages that come too late are counted, not handled."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.pure import Wired, packed, plain
from zroute import App, Envelope, SignatureError
from zroute.messages.wire import framer


def sent(at: float, topic: str = "a", message: Any = 1) -> bytes:
    """A tracked message that was sent then; the readers of these tests have 100.0."""
    frame = framer("tracked", epoch=7, next_sequence=lambda: 0, clock_ns=lambda: int(at * 1e9))
    made = frame(topic.encode(), 1, packed(message), None)
    assert isinstance(made, bytes)
    return made


def balanced(wired: Wired, name: str, given: int) -> bool:
    """Whether what the route was given is all accounted for."""
    one = wired.stats.routes[name]
    ended = one.handled + one.handler_error + one.decode_error + one.stale + one.dropped_at_shutdown
    return ended + one.queued + one.in_flight == given


def test_an_old_message_is_counted_and_the_next_one_handled() -> None:
    """I get what is at most as old as I said."""
    app, got = App(), []

    @app.subscribe("a", stale_after=2.0)
    def handle(message: int) -> None:
        got.append(message)

    wired = Wired(app).feed(sent(97.9, message=1), sent(98.1, message=2), sent(50.0, message=3), sent(99.9, message=4))
    assert got == [2, 4]
    route = next(iter(wired.stats.routes.values()))
    assert (route.stale, route.handled) == (2, 2)
    assert wired.stats.routed == 4
    assert balanced(wired, next(iter(wired.stats.routes)), 4)


def test_each_route_has_its_own_patience() -> None:
    """Two handlers of one message: it is too old for one, and the other gets it."""
    app, got = App(), []

    @app.subscribe("a", stale_after=1)
    def hasty(message: int) -> None:
        got.append(("hasty", message))

    @app.subscribe("a")
    def patient(message: int, envelope: Envelope) -> None:
        got.append(("patient", message))

    Wired(app).feed(sent(90.0, message=1), sent(99.5, message=2))
    assert sorted(got) == [("hasty", 2), ("patient", 1), ("patient", 2)]


def test_the_age_counts_when_the_turn_has_come() -> None:
    """A message that grew old behind a handler that takes long is not handled either."""
    app, gate, got = App(), Deferred[None](), []

    @app.subscribe("a", stale_after=2.0)
    async def handle(message: int) -> None:
        got.append(message)
        await gate

    wired = Wired(app).feed(sent(99.0, message=1), sent(99.0, message=2), sent(50.0, message=3))
    wired.outcomes._wall = lambda: 110.0
    gate.callback(None)
    route = next(iter(wired.stats.routes.values()))
    assert got == [1]
    assert (route.handled, route.stale, route.queued, route.in_flight) == (1, 2, 0, 0)


def test_a_message_from_the_future_is_handled_and_told_of() -> None:
    """Where the publisher's clock is ahead, I see it in a counter."""
    app, got = App(), []

    @app.subscribe("a", stale_after=2.0)
    def handle(message: int) -> None:
        got.append(message)

    wired = Wired(app).feed(sent(150.0))
    assert (got, wired.stats.negative_ages) == ([1], 1)


def test_a_message_that_does_not_say_when_it_was_sent_is_handled() -> None:
    """Plain publishers have no time, and lose nothing by it; also where one topic has both."""
    app, got = App(), []

    @app.subscribe("a", stale_after=2.0)
    def handle(message: int) -> None:
        got.append(message)

    wired = Wired(app).feed(plain("a", 1), sent(50.0, message=2), plain("a", 3), sent(99.0, message=4))
    assert got == [1, 3, 4]
    assert next(iter(wired.stats.routes.values())).stale == 1


@pytest.mark.parametrize("wrong", [0, -1.0, "2"])
def test_a_time_that_is_none_is_refused_at_my_line(wrong: Any) -> None:
    """The error names the parameter and what it takes."""
    app = App()
    with pytest.raises(SignatureError, match=r"stale_after=.*a number of seconds, more than 0"):
        app.subscribe("a", stale_after=wrong)(print)
