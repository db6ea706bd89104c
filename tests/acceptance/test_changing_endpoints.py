"""Endpoints that are added and removed while an app runs, over real sockets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.running import Mailbox, reactor, running, turns
from tests.support import free_endpoint
from zroute import App, EndpointError, Frames, NotRunningError, WrongThreadError, as_awaitable
from zroute.testing import TestApp


def ignore(message: Any) -> None:
    """Handle a message."""


def feed(name: str) -> tuple[App, Any]:
    """Return an app that publishes numbers, and its publication."""
    app = App(pub="tcp://127.0.0.1:*", name=name)
    return app, app.publisher("numbers", int)


@pytest_twisted.ensureDeferred
async def test_an_added_endpoint_is_received_from_and_a_removed_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """Messages of an added publisher are handled and counted; after the removal nothing of it is lost."""
    one, numbers = feed("one")
    two, others = feed("two")
    box = Mailbox[int]()
    async with running(one), running(two):
        (first,), (second,) = one.addresses.pub, two.addresses.pub
        reader = App(sub=first, name="reader")
        reader.add_route(box.put, "numbers")
        with caplog.at_level(logging.INFO, "zroute"):
            async with running(reader):
                await reader.ready(1)
                reader.add_endpoints(sub=second)
                assert reader.addresses.sub == (first, second)
                await reader.ready(2)
                assert others.subscribers == 1
                for number in range(100):
                    numbers.publish(number)
                    others.publish(1000 + number)
                await box.until(200)
                others.publish(5000)
                await box.until(201)  # it has arrived, and is handled
                await reader.remove_endpoints(sub=second)
                assert reader.addresses.sub == (first,)
                await turns(lambda: others.subscribers == 0)
                others.publish(6000)
                numbers.publish(100)
                await box.until(202)
                await reader.ready(1)
                reader.add_endpoints(sub=second)
                await reader.ready(2)
                others.publish(7000)
                await box.until(203)
                reader.remove_endpoints(sub=second)
        assert box.items[-1] == 7000
        assert 6000 not in box.items
        stats = reader.stats
        assert (stats.received - stats.control, stats.lost, stats.gaps, stats.unknown_losses) == (203, 0, 0, 0)
    assert f"reader: subscribes, connects to {second}" in caplog.text
    assert f"reader: no longer connected to {second}" in caplog.text


@pytest_twisted.ensureDeferred
async def test_an_app_publishes_at_an_added_endpoint_until_it_is_removed() -> None:
    """A subscriber at an added endpoint receives; a removed endpoint can be bound by another program."""
    app, numbers = feed("feed")
    box = Mailbox[int]()
    async with running(app):
        (first,) = app.addresses.pub
        second = free_endpoint()  # stays free until another program binds it
        app.add_endpoints(pub=second)
        assert app.addresses.pub == (first, second)
        reader = App(sub=second, name="reader")
        reader.add_route(box.put, "numbers")
        async with running(reader):
            await reader.ready(1)
            numbers.publish(1)
            await box.until(1)
            await app.remove_endpoints(pub=second)
            assert app.addresses.pub == (first,)
            await turns(lambda: numbers.subscribers == 0)
            other = App(pub=second, name="other")
            async with running(other):
                assert other.addresses.pub == (second,)


@pytest_twisted.ensureDeferred
async def test_a_handler_may_change_the_endpoints() -> None:
    """Both calls are allowed inside a handler."""
    one, numbers = feed("one")
    two, others = feed("two")
    async with running(one), running(two):
        reader, box = App(sub=one.addresses.pub, name="reader"), Mailbox[int]()

        @reader.subscribe("numbers")
        def change(number: int) -> None:
            if number == 1:
                reader.add_endpoints(sub=two.addresses.pub)
            if number == 2:
                reader.remove_endpoints(sub=two.addresses.pub)
            box.put(number)

        async with running(reader):
            await reader.ready(1)
            numbers.publish(1)
            await box.until(1)
            await reader.ready(2)
            others.publish(2)
            await box.until(2)
            await turns(lambda: len(reader.addresses.sub) == 1)


@pytest_twisted.ensureDeferred
async def test_mistakes_name_the_endpoint() -> None:
    """Each mistake raises EndpointError with my line and the endpoint, and changes nothing."""
    address, other, third = free_endpoint(), free_endpoint(), free_endpoint()
    app = App(pub=address, name="feed")
    for change in (app.add_endpoints, app.remove_endpoints):
        with pytest.raises(NotRunningError, match="endpoints"):
            change(pub=other)
    async with running(app):
        for wrong, change, text in (
            ({"pub": address}, app.add_endpoints, "already has this endpoint"),
            ({"pub": [other, other]}, app.add_endpoints, "given twice"),
            ({"pub": "nonsense"}, app.add_endpoints, "no transport"),
            ({"pub": "nonsense"}, app.remove_endpoints, "no transport"),
            ({"pub": 5}, app.add_endpoints, "not 5"),
            ({"sub": 5}, app.remove_endpoints, "not 5"),
            ({"sub": other}, app.add_endpoints, r"without an endpoint to receive from.*App\(sub=…\)"),
            ({"sub": {other: Frames(whole=True, topic="x")}}, app.add_endpoints, "without an endpoint to receive"),
            ({"pub": [other, "tcp://192.0.2.1:5555"]}, app.add_endpoints, "192.0.2.1"),
            ({"pub": third}, app.remove_endpoints, f"does not have this endpoint.*{address}"),
            ({"sub": "inproc://elsewhere"}, app.add_endpoints, "context"),
        ):
            with pytest.raises(EndpointError, match=rf"test_changing_endpoints\.py:\d+: .*{text}"):
                change(**wrong)  # type: ignore[operator]
            assert app.addresses.pub == (address,)
        with pytest.raises(WrongThreadError):
            await as_awaitable(deferToThread(app.add_endpoints, pub=other))
    async with running(app):
        assert app.addresses.pub == (address,)


@pytest_twisted.ensureDeferred
async def test_an_app_without_a_publishing_endpoint_gets_none() -> None:
    """The app has no socket to publish with."""
    app = App(sub=free_endpoint(), name="reader")
    async with running(app):
        with pytest.raises(EndpointError, match=r"without an endpoint to publish to.*App\(pub=…\)"):
            app.add_endpoints(pub="tcp://127.0.0.1:*")


@pytest_twisted.ensureDeferred
async def test_a_removal_while_reading_is_paused_is_an_unknown_loss() -> None:
    """Messages that a full handler leaves in the socket are dropped at the removal, and reported."""
    app, numbers = feed("feed")
    async with running(app):
        reader, box, hold = App(sub=app.addresses.pub, name="reader"), Mailbox[int](), Deferred[None]()

        @reader.subscribe("numbers", queue=1)
        async def wait(number: int) -> None:
            box.put(number)
            await as_awaitable(hold)

        async with running(reader):
            await reader.ready(1)
            for number in range(10):
                numbers.publish(number)
            await turns(lambda: reader.stats.paused_since)
            await reader.remove_endpoints(sub=app.addresses.pub)
            assert reader.stats.unknown_losses == 1
            hold.callback(None)


@pytest_twisted.ensureDeferred
async def test_an_endpoint_of_a_stated_form_can_be_added_to_others_of_it() -> None:
    """The socket of a form takes further endpoints of the same form."""
    form = Frames(separator=b" ")
    feeds = [App(pub="tcp://127.0.0.1:*", wire=form, codec="json", name=name) for name in ("one", "two")]
    async with running(feeds[0]), running(feeds[1]):
        (first,), (second,) = (app.addresses.pub for app in feeds)
        reader, box = App(sub={first: form}, codec="json", name="reader"), Mailbox[int]()
        reader.add_route(box.put, "numbers")
        async with running(reader):
            reader.add_endpoints(sub={second: form})
            assert reader.addresses.sub == (first, second)
            await reader.ready(2)
            while not box.items:  # ready() knows the connection, not the subscription, of such a publisher
                feeds[1].publish("numbers", 1)
                await deferLater(reactor, 0.01)
            await reader.remove_endpoints(sub=second)
            assert reader.addresses.sub == (first,)


@pytest_twisted.ensureDeferred
async def test_a_bound_endpoint_to_receive_from_can_come_and_go() -> None:
    """Publishers may connect to an added endpoint that the subscriber binds."""
    reader, box = App(sub="bind:tcp://127.0.0.1:*", name="reader"), Mailbox[int]()
    reader.add_route(box.put, "numbers")
    async with running(reader):
        reader.add_endpoints(sub="bind:tcp://127.0.0.1:*")
        first, second = reader.addresses.sub
        app = App(pub=f"connect:{second}", name="feed")
        numbers = app.publisher("numbers", int)
        async with running(app):
            await numbers.wait_for_subscribers()
            numbers.publish(1)
            await box.until(1)
            await reader.ready(1)
            await reader.remove_endpoints(sub=f"bind:{second}")
            assert reader.addresses.sub == (first,)
        assert reader.stats.unknown_losses == 0


def test_endpoints_change_under_a_test_app() -> None:
    """Under TestApp the addresses change, and messages with the stated form of an added endpoint arrive."""
    app, got = App(sub="tcp://127.0.0.1:5555", name="reader"), list[int]()

    @app.subscribe("numbers")
    def on_number(number: int) -> None:
        got.append(number)
        if number == 1:
            app.add_endpoints(sub="tcp://127.0.0.1:5556")
        else:
            app.remove_endpoints(sub="tcp://127.0.0.1:5556")

    with TestApp(app) as t:
        t.publish("numbers", 1)
        assert app.addresses.sub == ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556")
        t.publish("numbers", 2)
        assert app.addresses.sub == ("tcp://127.0.0.1:5555",)
    assert got == [1, 2]
