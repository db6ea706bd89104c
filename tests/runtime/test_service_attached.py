"""Attached handlers and streams of a service on a real reactor, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.running import Mailbox, reactor, running, subscribed, turns
from tests.support import sized
from zroute import (
    App,
    Topic,
    as_awaitable,
)
from zroute.messages.control import MARKER


@pytest_twisted.ensureDeferred
async def test_the_publisher_sees_what_is_subscribed_and_no_longer(endpoint: str) -> None:
    """Subscriptions follow the attached handlers; one that another handler needs stays."""
    publisher, app = App(pub=endpoint), App(sub=endpoint)
    app.add_route(lambda message: None, "news.sports.*")

    async def sees(service: Any, *prefixes: bytes) -> None:
        pub = service.transport.pub
        await turns(lambda: {each for each in pub.subscriptions if not each.startswith(MARKER)} == set(prefixes))

    async with running(publisher) as service, running(app):
        await sees(service, b"news.sports.")
        wide = app.attach("news.>", lambda message: None)
        await sees(service, b"news.")
        same = app.attach("news.{x}", lambda message: None)
        other = app.attach("a", lambda message: None)
        await sees(service, b"news.", b"a")
        wide.close()
        other.close()
        await sees(service, b"news.")
        same.close()
        await sees(service, b"news.sports.")
        async with app.stream(">") as messages:
            await sees(service, b"")
            assert messages is not None
        await sees(service, b"news.sports.")


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_a_running_stream_of_messages_is_not_disturbed_by_a_thousand_cycles(endpoint: str) -> None:
    """While others attach and close, a handler gets each message once and in order."""
    publisher, app = App(pub=endpoint), App(sub=endpoint)
    quick, slow, attached = Mailbox[int](), Mailbox[int](), list[int]()

    @app.subscribe("n.{x}")
    def plain_handler(number: int) -> None:
        quick.put(number)

    @app.subscribe("n.*", queue=50)
    async def async_handler(number: int) -> None:
        if number % 97 == 0:
            await as_awaitable(deferLater(reactor, 0))
        slow.put(number)

    async def churn() -> None:
        for cycle in range(1000):
            pattern = ("n.>", "n.a", "m.>", ">")[cycle % 4]
            if cycle % 8 < 6:
                handle = app.attach(pattern, attached.append)
                await deferLater(reactor, 0)
                handle.close()
            else:
                async with app.stream(pattern, int, queue=5) as messages:
                    if pattern != "m.>":
                        await anext(messages)

    async def publish() -> int:
        number = 0
        while not churning.called or number <= 1000:
            number += 1
            publisher.publish("n.a", number)
            if number % 16 == 0:
                await slow.until(number - 500)  # otherwise ZeroMQ's queues would overflow
                await deferLater(reactor, 0)
        return number

    async with running(publisher) as service, running(app):
        await subscribed(service, b"n.")
        churning = Deferred.fromCoroutine(churn())
        last = await Deferred.fromCoroutine(publish())
        await churning
        await quick.until(last)
        await slow.until(last)
    assert last > 1000
    assert quick.items == slow.items == list(range(1, last + 1))
    assert attached
    assert app.stats.malformed == app.stats.failed == 0
    assert app.stats.routed == last
    assert (app.stats.lost, app.stats.gaps, app.stats.duplicate, app.stats.unknown_losses) == (0, 0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_a_handler_may_close_itself_in_the_middle_of_a_drain() -> None:
    """A handler that closes itself receives one message, however many have arrived."""
    app, got, others = App(), list[int](), Mailbox[int]()
    app.add_route(others.put, "a")

    def once(message: int) -> None:
        got.append(message)
        handle.close()

    async with running(app):
        handle = app.attach("a", once)
        for number in range(500):
            app.publish("a", number)
        await others.until(500)
    assert got == [0]


@pytest_twisted.ensureDeferred
async def test_a_stop_under_a_flood_does_not_cut_a_stream_short() -> None:
    """At a stop, a stream gives thousands of waiting messages before its loop ends."""
    app, got, ended = App(), list[int](), Deferred[None]()

    async def read() -> None:
        async with app.stream("a", int, queue=100_000) as messages:
            async for message in messages:
                got.append(message)
                sum(range(2000))  # some work, so that one turn of the reactor can't take all messages
        ended.callback(None)

    async with running(app) as service:
        Deferred.fromCoroutine(read())
        await subscribed(service, b"a")
        for number in range(900):
            app.publish("a", number)
    await ended
    assert got == list(range(900))
    assert [stats.dropped_at_shutdown for stats in app.stats.routes.values()] == [0]


@pytest_twisted.ensureDeferred
async def test_a_publisher_keeps_nothing_of_handlers_that_came_and_went(endpoint: str) -> None:
    """After thousands of subscriptions, a publisher knows only the current one."""
    publisher, app = App(pub=endpoint), App(sub=endpoint)
    app.add_route(lambda message: None, "static")
    async with running(publisher) as service, running(app):
        await subscribed(service, b"static")
        for number in range(sized(10_000, 1_000)):
            app.attach(f"rooms.{number}", lambda message: None).close()
        app.attach("end", lambda message: None)
        await subscribed(service, b"end")
        live = {each for each in service.transport.pub.subscriptions if not each.startswith(MARKER)}
        assert live == {b"static", b"end"}


@pytest_twisted.ensureDeferred
async def test_messages_of_a_topic_reach_what_is_attached_for_it() -> None:
    """An attached handler of an embedded service receives messages once it has subscribed."""
    app, box = App(), Mailbox[tuple[str, Any]]()

    async with running(app) as service:

        def said(message: str, room: str, topic: Topic) -> None:
            box.put((room, message))

        handle = app.attach("rooms.{room}", said)
        await subscribed(service, b"rooms.")
        app.publish("rooms.lobby", "hello")
        assert await box.until(1) == [("lobby", "hello")]
        async with app.stream("rooms.*", str) as messages:
            app.publish("rooms.lobby", "again")
            assert await anext(messages) == "again"
        handle.close()
