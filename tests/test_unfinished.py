"""Handlers that are unfinished when they return: turns, bounds, pausing, and what a stop makes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.pure import Wired, plain
from zroute import App, Envelope
from zroute.delivery.stats import RouteStats


class Handler:
    """Hands a Deferred out for each message, for the test to fire."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.open: list[Deferred[Any]] = []

    def __call__(self, message: Any) -> Deferred[Any]:
        self.begun.append(message)
        waiting: Deferred[Any] = Deferred()
        self.open.append(waiting)
        return waiting

    def end(self, index: int = 0, result: Any = None) -> None:
        """The oldest, or another, of those that are open comes to its end."""
        self.open.pop(index).callback(result)


def deliveries(stats: RouteStats) -> int:
    """What became of all messages that a route was given."""
    ended = stats.handled + stats.handler_error + stats.decode_error + stats.dropped_at_shutdown
    return ended + stats.queued + stats.in_flight


def wired(handler: Any, *patterns: str, **options: Any) -> tuple[Wired, RouteStats]:
    """An app with one handler, and the counters of its route."""
    app = App()
    app.add_route(handler, *(patterns or ("a.*",)), **options)
    made = Wired(app)
    return made, next(iter(made.stats.routes.values()))


def test_the_first_deferred_of_a_plain_function_makes_its_topics_wait() -> None:
    """A function that is not `async` may be unfinished; from then on its messages take turns, in one drain too."""
    handler = Handler()
    made, stats = wired(handler)
    made.feed(*(plain("a.x", number) for number in range(4)), plain("a.y", 10))
    assert handler.begun == [0, 10]
    assert (stats.in_flight, stats.queued) == (2, 3)
    for _ in range(5):
        handler.end()
    assert [message for message in handler.begun if message < 10] == [0, 1, 2, 3]
    assert (stats.handled, deliveries(stats)) == (5, 5)


def test_a_function_that_is_finished_at_once_now_and_then_keeps_the_order() -> None:
    """None, a Deferred, None: the third waits for the second."""
    order: list[Any] = []
    handler = Handler()

    def sometimes(message: int) -> Any:
        order.append(message)
        return handler(message) if message == 1 else None

    made, stats = wired(sometimes)
    made.feed(*(plain("a.x", number) for number in range(3)))
    assert order == [0, 1]
    handler.end()
    assert order == [0, 1, 2]
    assert (stats.handled, deliveries(stats)) == (3, 3)


def test_coroutines_that_never_wait_are_handled_in_the_same_turn() -> None:
    """An `async def` that awaits nothing costs no turn of the reactor, and a thousand of them no recursion."""
    seen: list[int] = []

    async def quick(message: int) -> None:
        seen.append(message)

    made, stats = wired(quick)
    made.feed(*(plain("a.x", number) for number in range(2000)))
    assert seen == list(range(2000))
    assert (stats.handled, stats.in_flight, stats.queued) == (2000, 0, 0)


def test_many_that_waited_for_one_follow_without_recursion() -> None:
    """A thousand quick ones behind a slow one begin in order when it ends."""
    seen: list[int] = []
    gate: Deferred[None] = Deferred()

    async def handler(message: int) -> None:
        if message == 0:
            await gate
        seen.append(message)

    made, stats = wired(handler, queue=5000)
    made.feed(*(plain("a.x", number) for number in range(3000)))
    assert stats.queued == 2999
    gate.callback(None)
    made.clock.advance(0)
    assert seen == list(range(3000))
    assert stats.handled == 3000


def test_a_failure_lets_the_next_one_begin() -> None:
    """An error ends the turn of its message only."""
    handler = Handler()
    made, stats = wired(handler)
    made.feed(plain("a.x", 1), plain("a.x", 2), plain("a.x", 3))
    handler.open.pop(0).errback(ValueError("no"))
    assert handler.begun == [1, 2]
    handler.end()
    handler.end()
    assert (stats.handled, stats.handler_error, deliveries(stats)) == (2, 1, 3)


def test_raising_at_once_in_a_queue_does_not_stop_it() -> None:
    """A function that raises when its turn comes is counted like any other."""
    first: Deferred[None] = Deferred()

    def handler(message: int) -> Any:
        if message == 0:
            return first
        raise ValueError(message)

    made, stats = wired(handler)
    made.feed(*(plain("a.x", number) for number in range(4)))
    first.callback(None)
    assert (stats.handled, stats.handler_error, deliveries(stats)) == (1, 3, 4)


def test_what_a_queued_handler_returns_is_published() -> None:
    """A derived stream keeps its captures and its order, however long it waited; generators too."""
    app, handler = App(), Handler()
    first = app.publisher("b.{x}", int)
    many = app.publisher("c.{x}", int)
    app.subscribe("a.{x}")(first(handler))

    @many
    @app.subscribe("a.{x}")
    def several(message: int) -> Iterator[int]:
        yield message
        yield message + 1

    made = Wired(app).feed(plain("a.k", 1), plain("a.k", 5))
    assert made.published == [("c.k", 1), ("c.k", 2), ("c.k", 5), ("c.k", 6)]
    handler.end(result=7)
    handler.end(result=8)
    assert made.published[4:] == [("b.k", 7), ("b.k", 8)]


def test_a_full_route_pauses_and_says_so_and_again_when_it_flows(caplog: pytest.LogCaptureFixture) -> None:
    """One line names the route with its place; reading goes on at half of the bound."""
    handler = Handler()
    made, stats = wired(handler, queue=4, max_in_flight=1)
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            made.feed(plain(f"a.{number}", number))
        assert not made.paused
        made.feed(plain("a.4", 4))
        assert made.paused
        handler.end()
        assert made.paused
        handler.end()
        assert not made.paused
    full, flows = (record.getMessage() for record in caplog.records)
    assert "is full: 4 messages wait, and no more are read until half of them are handled" in full
    assert "test_unfinished.py:" in full
    assert "flows again: 2 messages wait" in flows
    assert deliveries(stats) == 5


def test_a_drain_ends_with_the_message_that_fills_a_route() -> None:
    """Not one message more than the bound waits inside."""
    handler = Handler()
    made, stats = wired(handler, queue=2)
    made.queue(*(plain("a.x", number) for number in range(10)))
    assert made.drain(10) is False
    assert (stats.queued, made.stats.received, made.paused) == (2, 3, True)


def test_two_full_routes_pause_until_both_have_eased() -> None:
    """The socket is one: it is read again when nobody needs the pause any more."""
    app, one, two = App(), Handler(), Handler()
    app.add_route(one, "a", queue=2)
    app.add_route(two, "a", queue=2)
    made = Wired(app).feed(plain("a", 1), plain("a", 2), plain("a", 3))
    assert made.paused
    one.end()
    assert made.paused
    two.end()
    assert not made.paused


def test_a_route_that_is_full_again_and_again_floods_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """The first lines are shown, the others counted."""
    handler = Handler()
    made, _ = wired(handler, queue=1)
    with caplog.at_level(logging.WARNING):
        made.feed(plain("a.x", 0))
        for number in range(50):
            made.feed(plain("a.x", number))
            handler.end()
        made.outcomes.close()
    assert len(caplog.records) == 6
    assert "95 more like these, not shown" in caplog.records[-1].getMessage()


def test_the_time_of_a_turn_is_bounded() -> None:
    """A queue whose handlers are quick, but not that quick, gives the reactor its turns."""
    first: Deferred[None] = Deferred()
    seen: list[int] = []

    def handler(message: int) -> Any:
        seen.append(message)
        if message == 0:
            return first
        made.clock.rightNow += 0.002
        return None

    made, _ = wired(handler)
    made.feed(*(plain("a.x", number) for number in range(10)))
    first.callback(None)
    assert 1 < len(seen) < 10
    while len(seen) < 10:
        before = len(seen)
        made.clock.advance(0)
        assert len(seen) > before
    assert seen == list(range(10))


def test_giving_up_counts_what_runs_and_what_waits() -> None:
    """Every message that a route was given stands in one of its counters, also then."""
    handler = Handler()
    made, stats = wired(handler, max_in_flight=2)
    made.feed(*(plain(f"a.{number % 3}", number) for number in range(9)))
    handler.end()
    assert made.outcomes.unfinished.give_up() == {next(iter(made.stats.routes)): 8}
    assert (stats.handled, stats.dropped_at_shutdown, stats.queued, stats.in_flight) == (1, 8, 0, 0)
    assert made.outcomes.unfinished.idle().called


def test_envelopes_and_several_types_take_turns_too() -> None:
    """The general closure gives the same calls away as the quick one."""
    app, order = App(), []

    @app.subscribe("a")
    async def one(message: int, envelope: Envelope) -> None:
        order.append(("one", message, envelope.topic))

    @app.subscribe("a")
    async def two() -> None:
        order.append(("two",))

    Wired(app).feed(plain("a", 1))
    assert sorted(order) == [("one", 1, "a"), ("two",)]
