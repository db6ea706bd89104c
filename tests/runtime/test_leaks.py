"""An app keeps only the objects that it needs, and no others of the program."""

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
"""Before Python 3.13, reading the locals of a frame stores a copy of them in the frame."""


@pytest.fixture(autouse=True, scope="module")
def _without_older_objects() -> None:
    """Exclude the objects of earlier tests from the many collections of these tests."""
    gc.collect()
    gc.freeze()


class Weight:
    """An object in a local variable of the program."""


Weights = list["ref[Weight]"]


def alive(weights: Weights) -> int:
    """Return the number of weights that still exist."""
    gc.collect()
    return sum(weight() is not None for weight in weights)


# -- registration -----------------------------------------------------------------------------------------


def by_subscribe(app: App) -> ref[Weight]:
    """A handler whose annotations are strings."""
    weight = Weight()

    @app.subscribe("a")
    def handle(message: int, envelope: Envelope) -> None: ...

    return ref(weight)


def by_add_route(app: App) -> ref[Weight]:
    """A handler that is registered without a decorator."""
    weight = Weight()

    def handle(message: int) -> None: ...

    app.add_route(handle, "a")
    return ref(weight)


def by_resource(app: App) -> ref[Weight]:
    """A resource."""
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
    """Each kind of hook."""
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
    """A decorator that the program keeps for other functions."""
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
    """An app keeps only those local names that annotations mention."""
    app = App()
    weight = register(app)
    assert alive([weight]) == 0
    app.compile()
    stays.clear()


def test_names_that_annotations_mention_are_kept() -> None:
    """Annotations find local classes, also inside other types and beside a variable of the same name."""
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
        t.publish("a", [{"number": 1}])
        reading = Deferred.fromCoroutine(read())
        t.publish("b", [{"number": 2}])
        assert reading.called
    assert got == [[Mine(1)], [Mine(2)]]


def test_a_stopped_app_keeps_nothing_of_its_run() -> None:
    """A stopped app keeps no object of its run."""
    app, got = App(), list[int]()
    app.add_route(got.append, "a")
    app.publisher("b", int)
    with TestApp(app) as t:
        t.publish("a", 1)
        run = ref(app._live.run)  # type: ignore[arg-type]
    del t
    gc.collect()
    assert run() is None


# -- handlers and streams that come and go ----------------------------------------------------------------


async def streams_that_are_left(app: App, weights: Weights) -> None:
    """Leave a stream with a break, in a frame that continues."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        async with app.stream("ticks", int) as messages:
            async for _message in messages:
                break


async def streams_that_are_left_by_an_error(app: App, weights: Weights) -> None:
    """Leave a stream with an error that the frame catches."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        try:
            async with app.stream("ticks", list["int"]) as messages:
                raise ValueError(messages)
        except ValueError:
            pass


async def streams_that_are_never_entered(app: App, weights: Weights) -> None:
    """Create a stream and do not enter it."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        stream = app.stream("ticks", int)
        assert stream


async def readers_that_are_cancelled(app: App, weights: Weights) -> None:
    """Cancel a reader that waits for a message."""

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
    """Attach a handler, call it once, and close it."""
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
    """Raise errors, whose tracebacks reference frames."""
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
    """Wait for more publishers and subscribers than exist."""
    unheard = app.compile().parts.outlets[0].publication
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        with pytest.raises(NotReadyError):
            await app.ready(9, timeout=0.001)
        with pytest.raises(NotReadyError):
            await unheard.wait_for_subscribers(9, timeout=0.001)


async def messages_that_are_refused(app: App, weights: Weights) -> None:
    """Publish a message that the encoder refuses."""
    for _ in range(ROUNDS):
        weight = Weight()
        weights.append(ref(weight))
        with pytest.raises(EncodeError):
            app.publish("ticks", weight)


async def calls_from_threads_that_fail(app: App, weights: Weights) -> None:
    """Raise an error that passes from one thread to another."""

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
    """In a long-lived coroutine, no variable stays alive and no object of zroute is left.

    Markers stay for some seconds, at a few bytes each.
    """
    monkeypatch.setattr(logging.getLogger("zroute"), "disabled", True)  # pytest keeps log records with their tracebacks
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
        for _ in range(200):  # a busy machine may not run a thread for a moment
            await as_awaitable(turn())
            if (stayed := alive(weights)) <= SNAPSHOTS:
                break
        return stayed, ours()

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
    """Return the number of objects of zroute's classes."""
    gc.collect()
    kinds = (f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
    return Counter(kind for kind in kinds if kind.startswith("zroute."))
