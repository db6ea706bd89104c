"""Context variables: what one call of a function sets is not seen by the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal

import pytest
from twisted.internet.defer import Deferred

from zroute import App
from zroute.testing import TestApp

Seen = list[tuple[str, Any]]
Reactor = Literal["twisted", "asyncio"]
REACTORS: tuple[Reactor, ...] = ("twisted", "asyncio")
variable: ContextVar[str | None] = ContextVar("variable", default=None)


def watched(app: App, seen: Seen, name: str) -> None:
    """Note the variable, then set it to ``name``."""
    seen.append((name, variable.get()))
    variable.set(name)


@pytest.mark.parametrize("reactor", REACTORS)
def test_nothing_reaches_a_later_read_a_timer_or_a_task(reactor: Reactor) -> None:
    """Plain, async and thread handlers, timers and generators each find the variable as the app was started with."""
    app, seen = App(), []

    @app.subscribe("plain")
    def plain(message: int) -> None:
        watched(app, seen, "plain")

    @app.subscribe("async")
    async def asynchronous(message: int) -> None:
        watched(app, seen, "async")

    @app.subscribe("thread", thread=True)
    def in_thread(message: int) -> None:
        watched(app, seen, "thread")

    @app.subscribe("gone.*", batch=10)
    def batched(messages: list[int]) -> None:
        watched(app, seen, "batch")

    @app.every(1.0)
    def timer() -> None:
        watched(app, seen, "timer")

    @app.every(1.0)
    async def async_timer() -> None:
        watched(app, seen, "async timer")

    token = variable.set("start")
    try:
        with TestApp(app, reactor=reactor) as t:
            for _ in range(2):
                for topic in ("plain", "async", "thread", "gone.a"):
                    t.publish(topic, 1)
                t.advance(1)
    finally:
        variable.reset(token)
    assert {name for name, _ in seen} == {"plain", "async", "thread", "batch", "timer", "async timer"}
    assert {value for _, value in seen} == {"start"}


@pytest.mark.parametrize("reactor", REACTORS)
def test_an_async_handler_keeps_its_context_over_an_await(reactor: Reactor) -> None:
    """Handlers that run side by side do not see each other's values."""
    app, seen, gates = App(), [], [Deferred[None](), Deferred[None]()]

    @app.subscribe("a.{name}")
    async def handle(message: int, name: str) -> None:
        variable.set(name)
        if reactor == "asyncio":
            await asyncio.sleep(message)
        else:
            await gates[message - 1]
        seen.append((name, variable.get()))

    with TestApp(app, reactor=reactor) as t:
        t.publish("a.x", 2)
        t.publish("a.y", 1)
        t.advance(3)
        for gate in gates:
            gate.callback(None)
    assert sorted(seen) == [("x", "x"), ("y", "y")]


def test_a_generator_keeps_its_context_from_value_to_value() -> None:
    """A timer's generator is one call, so it finds what it has set itself."""
    app, seen = App(), []

    @app.publisher("out", every=1.0)
    def values() -> Iterator[int]:
        while True:
            seen.append(variable.get())
            variable.set("mine")
            yield 1

    with TestApp(app) as t:
        t.advance(2)
    assert seen == [None, "mine", "mine"]


def test_from_thread_takes_the_context_of_the_thread_along() -> None:
    """What a thread handler has set is seen by the function that it has the reactor call, and by no other."""
    app, seen = App(), []

    @app.subscribe("a", thread=True)
    def handle(message: int) -> None:
        variable.set("thread")
        app.from_thread(lambda: watched(app, seen, "reactor"))

    with TestApp(app) as t:
        t.publish("a", 1)
        t.publish("a", 1)
    assert seen == [("reactor", "thread"), ("reactor", "thread")]
