"""`stale_after`: messages that are too old are counted and not handled."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.pure import Wired, packed, plain
from zroute import App, Envelope, SignatureError
from zroute.messages.wire import framer


def sent(at: float, topic: str = "a", message: Any = 1) -> bytes:
    """Return a tracked message with this send time; the readers of these tests are at 100.0."""
    frame = framer("tracked", epoch=7, next_sequence=lambda: 0, clock_ns=lambda: int(at * 1e9))
    made = frame(topic.encode(), 1, packed(message), None)
    assert isinstance(made, bytes)
    return made


def balanced(wired: Wired, name: str, given: int) -> bool:
    """Return True if all messages given to the route are accounted for."""
    one = wired.stats.routes[name]
    ended = one.handled + one.handler_error + one.decode_error + one.stale + one.dropped_at_shutdown
    return ended + one.queued + one.in_flight == given


def test_an_old_message_is_counted_and_the_next_one_handled() -> None:
    """A message older than the limit is counted as stale, and the next one is handled."""
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
    """Of two handlers with different limits, only the one with the longer limit gets an old message."""
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
    """A message that grows too old while it waits behind a slow handler is not handled."""
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
    """A message from a publisher whose clock is ahead is handled and counted in `negative_ages`."""
    app, got = App(), []

    @app.subscribe("a", stale_after=2.0)
    def handle(message: int) -> None:
        got.append(message)

    wired = Wired(app).feed(sent(150.0))
    assert (got, wired.stats.negative_ages) == ([1], 1)


def test_a_message_that_does_not_say_when_it_was_sent_is_handled() -> None:
    """A message without a send time is handled, also if other messages of its topic have one."""
    app, got = App(), []

    @app.subscribe("a", stale_after=2.0)
    def handle(message: int) -> None:
        got.append(message)

    wired = Wired(app).feed(plain("a", 1), sent(50.0, message=2), plain("a", 3), sent(99.0, message=4))
    assert got == [1, 3, 4]
    assert next(iter(wired.stats.routes.values())).stale == 1


@pytest.mark.parametrize("wrong", [0, -1.0, "2"])
def test_a_time_that_is_none_is_refused_at_my_line(wrong: Any) -> None:
    """An invalid `stale_after` raises an error that names the line, the parameter and the accepted values."""
    app = App()
    with pytest.raises(SignatureError, match=r"stale_after=.*a number of seconds, more than 0"):
        app.subscribe("a", stale_after=wrong)(print)
