"""TestApp plays losses: they are counted, recovered, or followed by a snapshot."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from zroute import App, Envelope, Gap, History, UsageError
from zroute.testing import TestApp

ADDRESS = "tcp://127.0.0.1:5555"


def _apps(*, recover: bool = False, **options: Any) -> Any:
    feed, desk = App(pub=ADDRESS, name="feed"), App(sub=ADDRESS, name="desk", recover=recover)
    orders = feed.publisher("orders.{key}", int, **options)
    got: list[Any] = []

    @desk.subscribe("orders.{key}")
    def handle(body: int, envelope: Envelope) -> None:
        got.append(body if envelope.origin == "live" else (envelope.origin, body))

    @desk.on_gap
    def lost(gap: Gap) -> None:
        got.append(f"{gap.count} lost of {gap.subscription.decode()}")

    return feed, desk, orders, got


def test_a_loss_is_reported_before_the_next_message() -> None:
    """The next three messages of the pattern are lost; a message of another topic does not show that."""
    feed, desk, orders, got = _apps()
    other = feed.publisher("other", int)
    desk.add_route(lambda body: got.append(("other", body)), "other")
    with TestApp(feed, desk) as t:
        orders.publish(1, key="a")
        t.lose(3, "orders.>")
        other.publish(1)
        for number in range(2, 7):
            orders.publish(number, key="a")
        t.advance(0)
    assert got == [1, ("other", 1), "3 lost of orders.", 5, 6]
    assert (desk.stats.lost, desk.stats.gaps) == (3, 1)


def test_a_last_message_that_is_lost_is_noticed_after_half_a_second() -> None:
    """Nothing follows, so a beat would show the loss."""
    feed, desk, orders, got = _apps()
    with TestApp(feed, desk) as t:
        t.lose(1)
        orders.publish(1, key="a")
        t.advance(0.4)
        assert got == []
        t.advance(0.2)
        assert got == ["1 lost of orders."]


def test_lost_messages_come_back_from_a_history() -> None:
    """With recover=True and a history, they are handled in order, before the message that shows the loss."""
    feed, desk, orders, got = _apps(recover=True, history=History(messages=10))
    with TestApp(feed, desk) as t:
        t.lose(2, "orders.a")
        for number in range(4):
            orders.publish(number, key="a")
        t.advance(0)
    assert got == [("recovered", 0), ("recovered", 1), 2, 3]
    assert (desk.stats.lost, desk.stats.recovered) == (0, 2)


def test_a_history_that_is_too_small_leaves_a_loss() -> None:
    """A history of four messages has two of the lost messages when they are asked for, after the turn."""
    feed, desk, orders, got = _apps(recover=True, history=History(messages=4))
    with TestApp(feed, desk) as t:
        t.lose(3)
        for number in range(5):
            orders.publish(number, key="a")
        t.advance(0)
    assert got == ["1 lost of orders.", ("recovered", 1), ("recovered", 2), 3, 4]
    assert (desk.stats.lost, desk.stats.recovered) == (1, 2)


@pytest.mark.parametrize(("recover", "history"), [(True, None), (False, History(messages=10))])
def test_both_sides_must_take_part(recover: bool, history: History | None) -> None:
    """Without a history, or without recover, lost messages stay lost."""
    feed, desk, orders, got = _apps(recover=recover, history=history)
    with TestApp(feed, desk) as t:
        t.lose(1)
        orders.publish(1, key="a")
        orders.publish(2, key="a")
        t.advance(0)
    assert got == ["1 lost of orders.", 2]


def test_a_snapshot_follows_a_loss() -> None:
    """A message that stays lost brings the state again, behind the message that shows the loss."""
    state = {"a": 0}
    feed, desk, orders, got = _apps(snapshot=lambda key: state[key], topics=lambda: [{"key": "a"}])
    with TestApp(feed, desk) as t:
        t.lose(1)
        for number in (1, 2, 3):
            state["a"] = number
            orders.publish(number, key="a")
        t.advance(0)
    assert got == [("snapshot", 0), "1 lost of orders.", 2, 3, ("snapshot", 3)]


def test_messages_of_the_test_are_lost_too() -> None:
    """t.publish plays another program, whose messages can be lost."""
    _, desk, _, got = _apps()
    with TestApp(desk) as t:
        t.lose(1)
        t.publish("orders.a", 1, 2)
    assert got == ["1 lost of orders.", 2]


@pytest.mark.parametrize("many", [0, -1, True, 1.5])
def test_a_wrong_number_is_refused(many: Any) -> None:
    """At least one message is lost."""
    with TestApp(App()) as t, pytest.raises(UsageError, match=r"expected the number of messages to lose, 1 or more"):
        t.lose(many)


def test_swapped_arguments_are_refused_with_the_right_call() -> None:
    """The error of ``lose(pattern, many)`` shows the call to write."""
    swapped: Any = ("orders.>", 3)
    with TestApp(App()) as t, pytest.raises(UsageError, match=r"1 or more: write lose\(3, 'orders\.>'\)$"):
        t.lose(*swapped)


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("order.>", "no message with a matching topic was published after it"),
        ("other", "no app subscribes to the 2 matching messages"),
    ],
)
def test_a_loss_that_no_app_can_notice_fails_the_test(pattern: str, fault: str) -> None:
    """If nothing is lost because of a wrong pattern, the end of the test raises an error that names the call."""
    feed, desk, orders, got = _apps()
    other = feed.publisher("other", int)

    def play() -> None:
        with TestApp(feed, desk, raise_errors=False) as t:
            t.lose(3, pattern)
            for number in range(2):
                orders.publish(number, key="a")
                other.publish(number)
            t.advance(0)

    with pytest.raises(UsageError, match=rf"lose\(3, '{pattern}'\) at .*test_losses.py:\d+ lost nothing: {fault}"):
        play()
    assert got == [0, 1]


def test_a_loss_of_fewer_messages_than_asked_for_is_no_error() -> None:
    """A test may lose everything from now on."""
    feed, desk, orders, _ = _apps()
    with TestApp(feed, desk) as t:
        t.lose(1_000)
        orders.publish(1, key="a")
        t.advance(1)
    assert desk.stats.lost == 1


def test_an_error_of_the_test_has_a_note_of_a_loss_that_no_app_can_notice() -> None:
    """A test whose assert fails for a wrong pattern raises its own error, which names the pattern."""

    def play() -> None:
        feed, desk, orders, _ = _apps()
        with TestApp(feed, desk) as t:
            t.lose(1, "orders.>")
            orders.publish(1, key="a")
            t.lose(3, "order.>")
            raise ZeroDivisionError

    async def play_awaited() -> None:
        async with TestApp(_apps()[1]) as t:
            t.lose(3, "order.>")
            raise ZeroDivisionError

    def play_handler() -> None:
        app = App()

        @app.on_shutdown
        def fail() -> None:
            raise ZeroDivisionError

        with TestApp(app) as t:
            t.lose(3, "order.>")

    for fail in (play, play_handler, lambda: asyncio.run(play_awaited())):
        with pytest.raises(ZeroDivisionError) as raised:
            fail()
        (note,) = raised.value.__notes__
        assert re.fullmatch(r"lose\(3, 'order.>'\) at .*test_losses.py:\d+ lost nothing: .*", note)


def test_an_awaited_test_fails_for_a_loss_that_no_app_can_notice() -> None:
    """`async with TestApp` checks the losses too."""

    async def main() -> None:
        async with TestApp(_apps()[1]) as t:
            t.lose(1, "order.>")

    with pytest.raises(UsageError, match=r"lose\(1, 'order.>'\) at .*test_losses.py:\d+ lost nothing"):
        asyncio.run(main())
