"""TestApp plays the past: since= brings the messages in the histories of the other apps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from zroute import App, Envelope, History, SignatureError
from zroute.testing import TestApp

ADDRESS = "tcp://127.0.0.1:5555"


def _attached(desk: App, since: Any, pattern: str = "orders.{key}") -> tuple[list[Any], Any]:
    """Attach a handler, and return what it receives."""
    got: list[Any] = []

    def handle(body: int, envelope: Envelope) -> None:
        got.append(body if envelope.origin == "live" else (envelope.origin, body))

    return got, desk.attach(pattern, handle, since=since)


def _feed(**options: Any) -> tuple[App, App, Any]:
    feed, desk = App(pub=ADDRESS, name="feed"), App(sub=ADDRESS, name="desk")
    return feed, desk, feed.publisher("orders.{key}", int, **options)


HISTORY = {"history": History(seconds=60)}


@pytest.mark.parametrize(
    ("since", "first"),
    [
        (lambda: "all", 1),
        (lambda: "last", 4),
        (lambda: timedelta(seconds=15), 3),
        (lambda: datetime.now(UTC) + timedelta(seconds=25), 4),  # the virtual time is 35 s ahead
        (lambda: datetime.now(UTC) + timedelta(seconds=80), 5),
    ],
)
def test_the_past_comes_before_live_messages(since: Callable[[], Any], first: int) -> None:
    """A handler that is attached later receives earlier messages from where it wants, once, and then live ones."""
    feed, desk, orders = _feed(**HISTORY)
    with TestApp(feed, desk) as t:
        for number in range(1, 5):
            orders.publish(number, key="a")
            t.advance(10 if number < 4 else 5)
        got, _ = _attached(desk, since())
        orders.publish(5, key="a")
        t.advance(0)
        assert got == [("replayed", number) for number in range(first, 5)] + [5]
    assert desk.stats.replayed == 5 - first
    assert desk.stats.received == desk.stats.routed == 6 - first


@pytest.mark.parametrize(
    ("history", "first"),
    [
        (History(messages=2), 4),
        (History(seconds=25), 4),
        (History(seconds=25, messages=1), 5),
        (History(bytes=350), 2),  # 84 bytes for each message
        (History(bytes=50), 6),
        (History(seconds=60, messages=10), 1),
    ],
)
def test_a_history_keeps_its_bounds_in_virtual_time(history: History, first: int) -> None:
    """A handler receives what a publisher would still have: the latest messages within all bounds."""
    feed, desk, orders = _feed(history=history)
    with TestApp(feed, desk) as t:
        for number in range(1, 6):
            orders.publish(number, key="a")
            t.advance(10)
        got, _ = _attached(desk, "all")
        t.advance(0)
    assert got == [("replayed", number) for number in range(first, 6)]


def test_each_publication_has_a_history_of_its_own() -> None:
    """A bound counts the messages of its publication, and the past has the order of publishing."""
    feed, desk, orders = _feed(history=History(messages=1))
    trades = feed.publisher("trades.{key}", int, history=History(messages=10))
    got: list[int] = []
    with TestApp(feed, desk) as t:
        for number in range(5):
            trades.publish(number, key="a")
            orders.publish(10 + number, key="a")
        trades.publish(5, key="a")
        desk.attach(">", got.append, since="all")
        t.advance(0)
    assert got == [0, 1, 2, 3, 4, 14, 5]


def test_a_time_in_the_future_is_judged_by_the_clock_of_the_test() -> None:
    """After an hour of virtual time, this hour is in the past, and later times are in the future."""
    feed, desk, orders = _feed(**HISTORY)
    later = datetime.now(UTC) + timedelta(minutes=50)
    with TestApp(feed, desk) as t:
        with pytest.raises(SignatureError, match=r"since=.*expected a time in the past"):
            _attached(desk, later)
        t.advance(3600)
        orders.publish(1, key="a")
        got, _ = _attached(desk, later)
        t.advance(0)
        assert got == [("replayed", 1)]


def test_an_app_that_starts_later_receives_the_past() -> None:
    """A declared handler receives what the first app has published on startup; ready(state=True) waits for it."""
    feed, desk, orders = _feed(**HISTORY)
    got: list[tuple[str, int]] = []
    at_ready: list[int] = []
    feed.on_startup(lambda: orders.publish(1, key="a"))

    @desk.subscribe("orders.{key}", since="all")
    def handle(body: int, envelope: Envelope) -> None:
        got.append((envelope.origin, body))

    async def wait() -> None:
        await desk.ready(state=True)
        at_ready.append(len(got))

    desk.on_startup(lambda: [Deferred.fromCoroutine(wait()), None][1])
    with TestApp(feed, desk) as t:
        t.advance(1)
        orders.publish(2, key="a")
        t.advance(0)
    assert got == [("replayed", 1), ("live", 2)]
    assert at_ready == [1]


def test_only_histories_contain_the_past() -> None:
    """Publishers without a history, and messages of the test, have no past; without since, a handler gets none."""
    feed, desk, orders = _feed()
    kept = feed.publisher("kept.{key}", int, **HISTORY)  # type: ignore[arg-type]
    with TestApp(feed, desk) as t:
        orders.publish(1, key="a")
        kept.publish(2, key="a")
        t.publish("orders.a", 3)
        t.publish("kept.a", 4)
        t.advance(0)
        assert _attached(desk, "all")[0] == []
        without, attached = _attached(desk, None, "kept.{key}")
        attached.close()
        got, _ = _attached(desk, "all", "kept.{key}")
        t.advance(0)
        assert (without, got) == ([], [("replayed", 2)])


def test_the_past_contains_messages_that_were_lost() -> None:
    """A message that was lost on its way to another app is in the history."""
    feed, desk, orders = _feed(**HISTORY)
    screen = App(sub=ADDRESS, name="screen")
    screen.subscribe("orders.>")(lambda body: None)
    with TestApp(feed, desk, screen) as t:
        t.lose(1)
        orders.publish(1, key="a")
        t.advance(1)
        got, _ = _attached(desk, "all")
        t.advance(0)
        assert got == [("replayed", 1)]
    assert (desk.stats.lost, screen.stats.lost) == (0, 1)


@pytest.mark.parametrize("since", ["all", "last", None])
def test_a_kept_message_is_not_handled_twice(since: Any) -> None:
    """A kept message that the past contains is skipped; others follow the past."""
    feed, desk, orders = _feed(**HISTORY, keep="last")
    with TestApp(feed, desk) as t:
        orders.publish(1, key="a")
        orders.publish(2, key="b")
        got, _ = _attached(desk, since)
        t.advance(0)
        assert (
            got
            == {
                "all": [("replayed", 1), ("replayed", 2)],
                "last": [("replayed", 2), ("kept", 1)],
                None: [("kept", 1), ("kept", 2)],
            }[since]
        )


def test_a_second_handler_gets_the_past_of_its_own_subscription() -> None:
    """The past of another subscription is not delivered again, and each handler is asked about once."""
    feed, desk, orders = _feed(**HISTORY)
    with TestApp(feed, desk) as t:
        for key in "aba":
            orders.publish(1, key=key)
        first, _ = _attached(desk, "all", "orders.a")
        second, attached = _attached(desk, "all", "orders.b")
        t.advance(0)
        attached.close()
        again, _ = _attached(desk, "all", "orders.b")
        t.advance(0)
        assert (len(first), len(second), len(again)) == (2, 1, 1)


def test_a_wider_handler_without_a_past_repeats_none() -> None:
    """A handler without since that is attached to a wider subscription receives live messages only."""
    feed, desk, orders = _feed(**HISTORY)
    with TestApp(feed, desk) as t:
        orders.publish(1, key="a")
        got, _ = _attached(desk, "all", "orders.a")
        t.advance(0)
        wide, _ = _attached(desk, None, ">")
        orders.publish(2, key="a")
        t.advance(0)
        assert (got, wide) == ([("replayed", 1), 2], [2])


def test_a_history_contains_only_the_messages_of_its_publisher() -> None:
    """Other publishers of the same topics are not in it, and each keeps to its own bounds."""
    feed, desk, got = App(pub=ADDRESS), App(sub=ADDRESS), list[Any]()
    wide = feed.publisher("a.{x}", int, history=History(messages=1))
    narrow = feed.publisher("a.b", int, history=History(messages=10))
    without = feed.publisher("a.c", int)
    with TestApp(feed, desk) as t:
        for number in range(3):
            narrow.publish(number)
            without.publish(10 + number)
            wide.publish(20 + number, x="d")
            feed.publish("a.e", 30 + number)
        desk.attach("a.*", got.append, since="all")
        t.advance(1)
    assert got == [0, 1, 2, 22]
