"""The differences between a TestApp and sockets: each row of the table in how-to/test-your-app.md."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from zroute import App, Envelope
from zroute.testing import TestApp


def test_nothing_is_asked_answered_or_lost() -> None:
    """There are no joins, beats and goodbyes, so their counters and the losses stay at 0."""
    one, other = App(pub="tcp://127.0.0.1:5555"), App(sub="tcp://127.0.0.1:5555")
    numbers = one.publisher("numbers", int, keep="last")
    other.add_route(lambda number: None, "numbers")
    with TestApp(one, other) as t:
        for number in range(20_000):
            numbers.publish(number)
        t.advance(60)
        stats = other.stats
        assert (stats.received, stats.handled) == (20_000, 20_000)
        assert (stats.joins, stats.join_retries, stats.peers, stats.control) == (0, 0, 0, 0)
        assert (stats.lost, stats.gaps, stats.unknown_losses, stats.duplicate) == (0, 0, 0, 0)


def test_waits_for_peers_are_over_at_once() -> None:
    """ready() and wait_for_subscribers() return at once."""
    app, over = App(pub="tcp://127.0.0.1:5556", sub="tcp://127.0.0.1:5555"), list[str]()
    numbers = app.publisher("numbers", int)

    async def wait() -> None:
        await app.ready(5)
        await app.ready(5, state=True)
        await numbers.wait_for_subscribers(5)
        over.append("all")

    with TestApp(app) as t:
        Deferred.fromCoroutine(wait())
        t.advance(0)
        assert over == ["all"]


def test_endpoints_are_not_opened_and_say_nothing_about_who_hears_whom() -> None:
    """Apps connect to each other whatever their endpoints are."""
    apps = [App(pub="tcp://127.0.0.1:1"), App(pub="tcp://127.0.0.1:1"), App(sub="tcp://192.0.2.1:7")]
    got: list[int] = []
    first, second = (app.publisher("numbers", int) for app in apps[:2])
    apps[2].add_route(got.append, "numbers")
    with TestApp(*apps) as t:
        first.publish(1)
        second.publish(2)
        t.advance(0)
    assert got == [1, 2]


def test_each_message_travels_alone_and_has_one_row_of_numbers() -> None:
    """Messages are not coalesced, and a publisher has one sequence for all topics."""
    app = App(pub="tcp://127.0.0.1:5555", coalesce=True)
    numbers = app.publisher("numbers.{n}", int)
    with TestApp(app) as t:
        for n in range(3):
            numbers.publish(n, n=n)
        assert [envelope.sequence for envelope in t.envelopes()] == [1, 2, 3]


@pytest.mark.parametrize("overflow", ["raise", "wait"])
def test_there_is_room_for_each_message(overflow: str) -> None:
    """Queues are unbounded for every overflow, even if a subscriber reads no message."""
    one, other = App(pub="tcp://127.0.0.1:5555", overflow=overflow), App(sub="tcp://127.0.0.1:5555")  # type: ignore[arg-type]
    numbers = one.publisher("numbers", int)

    @other.subscribe("numbers", queue=1)
    def handle(number: int) -> Deferred[None]:
        return Deferred()

    with TestApp(one, other, raise_errors=False) as t:
        for number in range(12_000):  # over sockets, there is room for 11,000
            numbers.publish(number)
        t.advance(60)
        assert one.stats.published == 12_000
        assert one.stats.send_retries == 0


def test_what_the_test_publishes_is_not_kept() -> None:
    """t.publish acts as a publisher that keeps no messages."""
    app, got = App(), list[Envelope]()
    app.publisher("numbers", int, keep="last")
    with TestApp(app) as t:
        t.publish("numbers", 1)
        app.attach("numbers", got.append, codec="json")
        t.advance(0)
    assert got == []
