"""What an app is given, and what comes and goes while it runs, keeps nothing else of my program alive."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread

from tests.running import Mailbox, reactor, running
from tests.support import PATIENCE
from zroute import App, EncodeError, Envelope, Gap, NotReadyError, as_awaitable
from zroute.testing import TestApp

ROUNDS = 30

SNAPSHOTS = int(sys.version_info < (3, 13))
"""Before Python 3.13 a frame whose local names were read keeps a copy of them: that of its last reading."""


class Weight:
    """What a program holds in a local variable."""


Weights = list["ref[Weight]"]


def alive(weights: Weights) -> int:
    """How many weights are still there."""
    gc.collect()
    return sum(weight() is not None for weight in weights)


# -- what is registered -----------------------------------------------------------------------------------


def by_subscribe(app: App) -> ref[Weight]:
    """A handler, whose annotations are texts."""
    weight = Weight()

    @app.subscribe("a")
    def handle(message: int, envelope: Envelope) -> None: ...

    return ref(weight)


def by_add_route(app: App) -> ref[Weight]:
    """The same without a decorator."""
    weight = Weight()

    def handle(message: int) -> None: ...

    app.add_route(handle, "a")
    return ref(weight)


def by_resource(app: App) -> ref[Weight]:
    """What handlers need."""
    weight = Weight()

    class Own: ...

    @app.resource
    def own() -> Iterator[Own]:
        yield Own()

    return ref(weight)


def by_publisher(app: App) -> ref[Weight]:
    """A publication, called and as a decorator."""
    weight = Weight()
    app.publisher("a", int)

    @app.publisher("b", every=1)
    def publish() -> int:
        return 1

    return ref(weight)


def by_every(app: App) -> ref[Weight]:
    """A timer."""
    weight = Weight()

    @app.every(1)
    def tick(app: App) -> None: ...

    return ref(weight)


def by_hooks(app: App) -> ref[Weight]:
    """All hooks."""
    weight = Weight()

    @app.on_error()
    def failed(error: Exception, envelope: Envelope) -> None: ...

    @app.on_startup
    @app.on_shutdown
    def turn(app: App) -> None: ...

    @app.on_unrouted
    def unrouted(envelope: Envelope) -> None: ...

    @app.on_gap
    def gap(gap: Gap) -> None: ...

    return ref(weight)


def by_a_decorator_that_stays(app: App) -> ref[Weight]:
    """A decorator that I keep for other functions."""
    weight = Weight()
    stays.append(app.subscribe("a"))
    stays.append(app.every(1))
    return ref(weight)


stays: list[Any] = []


@pytest.mark.parametrize(
    "register",
    [by_subscribe, by_add_route, by_resource, by_publisher, by_every, by_hooks, by_a_decorator_that_stays],
)
def test_what_is_registered_in_a_function_keeps_its_other_variables_not_alive(
    register: Callable[[App], ref[Weight]],
) -> None:
    """An app lives as long as the process: it keeps the names that annotations mention, and no more."""
    app = App()
    weight = register(app)
    assert alive([weight]) == 0
    app.compile()
    stays.clear()


def test_names_that_annotations_mention_are_kept() -> None:
    """A local class is found by its name, inside other types as well, and also where a variable of the same name is."""
    app, got = App(), list[Any]()

    @attrs.frozen
    class Mine:
        number: int

    def handle(messages: list[Mine], found: Mine | None = None) -> None:
        got.append(messages)

    mine = app.stream("b", list["Mine"])

    async def read() -> None:
        async with mine as stream:
            got.append(await anext(stream))

    app.add_route(handle, "a")
    with TestApp(app) as t:
        t.publish("a", [Mine(1)])
        reading = Deferred.fromCoroutine(read())
        t.publish("b", [Mine(2)])
        assert reading.called
    assert got == [[Mine(1)], [Mine(2)]]


def test_a_stopped_app_keeps_nothing_of_its_run() -> None:
    """A program may hold an app for long after it has stopped."""
    app, got = App(), list[int]()
    app.add_route(got.append, "a")
    app.publisher("b", int)
    with TestApp(app) as t:
        t.publish("a", 1)
        run = ref(app._live.run)  # type: ignore[arg-type]
    del t
    gc.collect()
    assert run() is None


# -- what comes and goes ----------------------------------------------------------------------------------


async def streams_that_are_left(app: App, weights: Weights) -> None:
    """By a break, in a frame that lives on."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        async with app.stream("ticks", int) as messages:
            async for _message in messages:
                break


async def streams_that_are_left_by_an_error(app: App, weights: Weights) -> None:
    """Which the frame catches."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        try:
            async with app.stream("ticks", list["int"]) as messages:
                raise ValueError(messages)
        except ValueError:
            pass


async def streams_that_are_never_entered(app: App, weights: Weights) -> None:
    """Made, and not used."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        stream = app.stream("ticks", int)
        assert stream


async def readers_that_are_cancelled(app: App, weights: Weights) -> None:
    """While they wait for a message."""

    async def read() -> None:
        weight = Weight()
        weights.append(ref(weight))
        async with app.stream("never", int) as messages:
            async for _ in messages:
                pass

    for _ in range(ROUNDS):
        reading = Deferred.fromCoroutine(read())
        reading.addErrback(lambda failure: failure.trap(CancelledError, asyncio.CancelledError) and None)
        reading.cancel()
        await reading


async def handlers_that_come_and_go(app: App, weights: Weights) -> None:
    """Attached, called once, and closed."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        box = Mailbox[int]()

        async def handle(message: int, box: Any = box) -> None:
            box.put(message)

        attached = app.attach("ticks", handle)
        await box.until(1)
        attached.close()


async def handlers_that_fail(app: App, weights: Weights) -> None:
    """Their errors have tracebacks, and these have their frames."""
    for number in range(ROUNDS):
        box = Mailbox[int]()

        async def fail(message: int, box: Any = box) -> None:
            weight = Weight()
            weights.append(ref(weight))
            box.put(message)
            raise ValueError(weight)

        attached = app.attach("fail", fail)
        await app.ready(1, timeout=PATIENCE)
        app.publish("fail", number)
        await box.until(1)
        attached.close()


async def waits_that_time_out(app: App, weights: Weights) -> None:
    """For more publishers and subscribers than there are."""
    unheard = app.compile().parts.outlets[0].publication
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        with pytest.raises(NotReadyError):
            await app.ready(9, timeout=0.001)
        with pytest.raises(NotReadyError):
            await unheard.wait_for_subscribers(9, timeout=0.001)


async def messages_that_are_refused(app: App, weights: Weights) -> None:
    """By the publisher's encoder."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        with pytest.raises(EncodeError):
            app.publish("ticks", weight)


async def calls_from_threads_that_fail(app: App, weights: Weights) -> None:
    """The error goes from one thread to the other."""

    def fail() -> None:
        weight = Weight()
        weights.append(ref(weight))
        raise ValueError(weight)

    def call() -> None:
        assert threading.current_thread() is not threading.main_thread()
        with pytest.raises(ValueError, match="Weight"):
            app.from_thread(fail)

    for _ in range(ROUNDS):
        await deferToThread(call)


@pytest.mark.parametrize(
    "loop",
    [
        streams_that_are_left,
        streams_that_are_left_by_an_error,
        streams_that_are_never_entered,
        readers_that_are_cancelled,
        handlers_that_come_and_go,
        handlers_that_fail,
        waits_that_time_out,
        messages_that_are_refused,
        calls_from_threads_that_fail,
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_comes_and_goes_leaves_nothing_behind(
    tmp_path: Path, loop: Callable[[App, Weights], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over sockets, in a coroutine that lives on: no variable stays alive, and no object of zroute's is left over.

    Markers stand for some seconds, and are few bytes each.
    """
    monkeypatch.setattr(logging.getLogger("zroute"), "disabled", True)  # pytest keeps all records, and their tracebacks
    endpoint = f"ipc://{tmp_path}/s"
    app, numbers = App(pub=endpoint, sub=endpoint), iter(range(10**9))
    app.publisher("ticks", int)
    app.add_route(lambda message: None, "static")

    @app.every(0.002)
    def tick() -> None:
        app.publish("ticks", next(numbers))

    async def looped() -> Any:
        weights: Weights = []
        await loop(app, weights)
        assert len(weights) == ROUNDS
        await as_awaitable(turn())
        return alive(weights), ours()

    async with running(app):
        await app.ready(1, timeout=PATIENCE)
        await looped()
        before = ours()
        stayed, after = await looped()
    assert stayed <= SNAPSHOTS
    grown = {kind: number - before[kind] for kind, number in after.items() if number - before[kind] > ROUNDS // 3}
    assert set(grown) <= {"zroute.messages.control.Marker"}


def turn() -> Deferred[None]:
    """Let the reactor turn."""
    turned: Deferred[None] = Deferred()
    reactor.callLater(0.01, turned.callback, None)  # type: ignore[attr-defined]
    return turned


def ours() -> Counter[str]:
    """How many objects of zroute's classes there are."""
    gc.collect()
    kinds = (f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
    return Counter(kind for kind in kinds if kind.startswith("zroute."))
