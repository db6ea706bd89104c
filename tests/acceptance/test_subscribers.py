"""The number of subscribers of a publication, its events, and the addresses of a running app."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.running import Mailbox, reactor, running, turns
from zroute import App, AppFrozenError, NotRunningError, Routes, SignatureError, as_awaitable
from zroute.testing import TestApp


class Camera:
    """A resource."""


def ignore(message: Any) -> None:
    """Handle a message."""


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wire", ["tracked", "plain"])
async def test_the_number_and_its_events(wire: Any) -> None:
    """The function is called for the first subscriber and the last, and not for a second one."""
    app, box, camera = App(pub="tcp://127.0.0.1:*", wire=wire), Mailbox[tuple[int, object]](), Camera()
    frames = app.publisher("camera.{side}", int)

    @app.resource
    def open_camera() -> Iterator[Camera]:
        yield camera

    @frames.on_subscribers
    async def switch(number: int, camera: Camera) -> None:
        later: Deferred[None] = Deferred()
        reactor.callLater(0, later.callback, None)
        await as_awaitable(later)
        box.put((number, camera))

    assert frames.subscribers == 0
    async with running(app):
        (address,) = app.addresses.pub
        first, second, other = (App(sub=address, name=name) for name in ("first", "second", "other"))
        first.add_route(ignore, "camera.left")
        second.add_route(ignore, "camera.>")
        other.add_route(ignore, "lidar")
        async with running(other), running(first):
            await box.until(1)
            await turns(lambda: frames.subscribers == 1)
            async with running(second):
                await turns(lambda: frames.subscribers == (2 if wire == "tracked" else 1))
            await turns(lambda: frames.subscribers == 1)
        assert await box.until(2) == [(1, camera), (0, camera)]
    assert frames.subscribers == 0
    assert app.stats.hook_errors == 0


@pytest_twisted.ensureDeferred
async def test_the_number_is_the_sum_over_the_apps_that_include_it() -> None:
    """A publication in two running apps has the subscribers of both."""
    routes = Routes()
    news = routes.publisher("news", str)
    apps = [App(pub="tcp://127.0.0.1:*", name=name) for name in ("one", "two")]
    for app in apps:
        app.include(routes)
    async with running(apps[0]), running(apps[1]):
        readers = [App(sub=app.addresses.pub, name="reader") for app in apps]
        for reader in readers:
            reader.add_route(ignore, "news")
        async with running(readers[0]), running(readers[1]):
            await turns(lambda: news.subscribers == 2)


def test_events_under_a_test_app() -> None:
    """Under TestApp the apps of the test are counted, and the functions are called."""
    app, told = App(pub="tcp://127.0.0.1:5555", name="camera"), list[int]()
    frames = app.publisher("frames", int)
    frames.on_subscribers(told.append)
    screen = App(sub="tcp://127.0.0.1:5555", name="screen")

    @screen.subscribe("shown")
    def start(message: int) -> None:
        attached = screen.attach("frames", ignore)
        reactor_numbers.append(frames.subscribers)
        attached.close()

    reactor_numbers: list[int] = []
    with TestApp(app, screen) as t:
        assert app.addresses.pub == ("tcp://127.0.0.1:5555",)
        assert screen.addresses.sub == ("tcp://127.0.0.1:5555",)
        assert frames.subscribers == 0
        t.publish("shown", 1)
    assert reactor_numbers == [1]
    assert told == [1, 0]


def test_a_failing_function_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An error in an on_subscribers function is a hook error, and the app runs on."""
    app = App(name="loop")
    frames = app.publisher("frames", int)
    app.add_route(ignore, "frames")

    @frames.on_subscribers
    def fail(number: int) -> None:
        raise ValueError("no camera")

    with TestApp(app, raise_errors=False) as t:
        t.publish("frames", 1)
        assert app.stats.hook_errors == 1
        assert app.stats.handled == 1
    assert "an on_subscribers function failed" in caplog.text


def test_set_up_errors() -> None:
    """A function is registered before the app is compiled, and takes only what the app can give."""
    app = App()
    frames = app.publisher("frames", int)
    with pytest.raises(SignatureError, match="on_subscribers"):
        frames.on_subscribers(1)  # type: ignore[type-var]

    def needs(number: int, camera: Camera) -> None: ...

    frames.on_subscribers(needs)
    with pytest.raises(SignatureError, match="camera"):
        app.compile()
    other = App()
    frames = other.publisher("frames", int)
    other.compile()
    with pytest.raises(AppFrozenError, match="on_subscribers"):
        frames.on_subscribers(ignore)


def test_addresses_exist_only_while_the_app_runs() -> None:
    """Before the start, addresses raise NotRunningError."""
    with pytest.raises(NotRunningError, match="on_startup"):
        App(pub="tcp://127.0.0.1:*").addresses  # noqa: B018  # the access is under test
