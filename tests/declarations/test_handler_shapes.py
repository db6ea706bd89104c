"""Functions of all shapes as handlers: decorated, bound, partial, cached, and those that end in an unusual way."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from zroute import App, Envelope, SignatureError
from zroute.testing import TestApp


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain wrapper, as most decorators are written."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def traced_async(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an async wrapper."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def test_a_decorated_handler_gets_what_it_declares() -> None:
    """A wrapper with functools.wraps passes body, captures and envelope on."""
    app, got = App(), []

    @app.subscribe("a.{x}")
    @traced
    def handle(body: int, x: str, envelope: Envelope) -> None:
        got.append((body, x, str(envelope.topic)))

    with TestApp(app) as t:
        t.publish("a.b", 1)
    assert got == [(1, "b", "a.b")]


@pytest.mark.parametrize("decorator", [traced, traced_async])
def test_a_decorated_async_handler_is_awaited(decorator: Callable[..., Any]) -> None:
    """The wrapper may be async, or a plain function that returns the coroutine."""
    app, got = App(), []

    @app.subscribe("x")
    @decorator
    async def handle(body: int) -> None:
        await asyncio.sleep(0.1)
        got.append(body)

    with TestApp(app, reactor="asyncio") as t:
        t.publish("x", 1)
        t.advance(1)
    assert got == [1]
    (route,) = app.stats.routes.values()
    assert route.handled == 1


def test_methods_partials_and_cached_functions_are_handlers_of_their_own() -> None:
    """Two instances, two partials of one function, a cached function, and an object with an async __call__."""
    app, got = App(), []

    class Service:
        def __init__(self, name: str) -> None:
            self.name = name
            app.subscribe("x")(self.handle)

        def handle(self, body: int) -> None:
            got.append((self.name, body))

    class Called:
        async def __call__(self, body: int) -> None:
            got.append(("called", body))

    def tagged(body: int, tag: str) -> None:
        got.append((tag, body))

    Service("one"), Service("two")
    app.subscribe("x")(functools.partial(tagged, tag="A"))
    app.subscribe("x")(functools.partial(tagged, tag="B"))
    app.subscribe("x")(functools.lru_cache(lambda body: got.append(("cached", body))))
    app.subscribe("x")(Called())
    with TestApp(app) as t:
        t.publish("x", 1)
    assert sorted(got) == [(name, 1) for name in ("A", "B", "cached", "called", "one", "two")]
    assert len(app.stats.routes) == 6


def test_a_static_method_may_be_decorated_on_either_side() -> None:
    """`@staticmethod` above or below `@app.subscribe` makes no difference; a class method has no class yet."""
    app, got = App(), []

    class Service:
        @staticmethod
        @app.subscribe("x")
        def inner(body: int) -> None:
            got.append(("inner", body))

        @app.subscribe("x")
        @staticmethod
        def outer(body: int) -> None:
            got.append(("outer", body))

    with pytest.raises(SignatureError, match="subscribe decorates a function, not <classmethod"):

        class Wrong:
            @app.subscribe("x")  # type: ignore[arg-type]
            @classmethod
            def handle(cls, body: int) -> None:
                raise AssertionError

    with TestApp(app) as t:
        t.publish("x", 1)
    assert sorted(got) == [("inner", 1), ("outer", 1)]


def test_an_async_generator_publishes_each_of_its_values() -> None:
    """The values of a handler that yields are published in order."""
    app = App()

    @app.publisher("out")
    @app.subscribe("x")
    async def count(number: int) -> AsyncIterator[int]:
        for each in range(number):
            yield each

    with TestApp(app) as t:
        t.publish("x", 3)
        assert t.published("out") == [0, 1, 2]


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_an_unusual_exception_is_an_error_of_its_message(error: type[BaseException]) -> None:
    """A handler that raises CancelledError or GeneratorExit fails for that message, and the app goes on."""
    app, got = App(), []

    @app.subscribe("x")
    async def handle(body: int) -> None:
        if body:
            raise error
        got.append(body)

    with TestApp(app, raise_errors=False, reactor="asyncio") as t:
        for body in (1, 1, 0):
            t.publish("x", body)
        assert [type(failure) for failure in t.failures] == [error, error]
    (route,) = app.stats.routes.values()
    assert (route.handled, route.handler_error, got) == (1, 2, [0])
