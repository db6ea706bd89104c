"""The table of combined options: each row is an app that is refused, or that handles a message."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import zroute
from tests.running import Mailbox, running, turns
from tests.support import ROOT, free_endpoint
from tests.test_snippets import quoted
from zroute import App, Envelope, Limits, Publication, Topic
from zroute.declarations.options import PUBLISHER_DEFAULTS, ROUTE_DEFAULTS
from zroute.errors import SetupError
from zroute.testing import TestApp

PAGE = ROOT / "docs" / "reference" / "combining-options.md"

ASYNC = {"an `async` handler", "an `async` function"}
GENERATOR = {"a generator as handler", "a generator"}
ENVELOPE, TOPIC, CAPTURE = "a handler with an `Envelope`", "a handler with a `Topic`", "a handler with a capture"
SINGLE = "a handler of single messages"
SECOND, WIDER = "a second handler of the pattern", "a handler of a wider pattern"
TAKES = "a function with a parameter for a message"
NO_FUNCTION, NO_PUBLISHER = "no function", "no `publisher` above it"
SUBSCRIBED, TWO_PERIODS = "`subscribe()` of the same function", "`publisher(every=2.0)` of the same function"
SAYS_NOTHING = {
    "a plain handler",
    "a handler of `int`",
    "neither `sub` nor `pub`",
    "no `context` of another app",
    "no `every`",
}
IN_CHECK = {"`ready(state=True)`", "`stream(queue=1)`", "`subscribe()` in the same app"}
"""What only the checks of `INTERACTIONS` know how to do."""

KNOWN = {
    *ASYNC, *GENERATOR, ENVELOPE, TOPIC, CAPTURE, SINGLE, SECOND, WIDER, TAKES, NO_FUNCTION, NO_PUBLISHER,
    SUBSCRIBED, TWO_PERIODS, *SAYS_NOTHING, *IN_CHECK,
}  # fmt: skip

_OPTION = re.compile(r"`(App|subscribe|publisher|publish)\((.+)\)`")


@attrs.frozen
class Pair:
    """A row of the table: the combined options, and the outcome."""

    first: str
    second: str
    outcome: str

    def options(self, call: str) -> dict[str, Any]:
        """Return the keywords of the row for ``App``, ``subscribe``, ``publisher`` or ``publish``."""
        given: dict[str, Any] = {}
        names = {"dict": dict, "Limits": Limits, "other": App(pub="inproc://feed")}
        for cell in (self.first, self.second):
            found = _OPTION.fullmatch(cell)
            if found is not None and found[1] == call:
                given |= eval(f"dict({found[2]})", names)
        return given

    def says(self, *words: str) -> bool:
        """Return True if one of the cells is one of ``words``."""
        return self.first in words or self.second in words


def pairs() -> list[Pair]:
    """Return all rows of the page."""
    rows = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [Pair(*(cell.strip() for cell in row[:3])) for row in rows if row[0].strip() != "option"]


PAIRS = pairs()


# -- the app of a row ------------------------------------------------------------------------------------


class Made:
    """An app of a row; ``got`` holds the messages of its handler, those of batches one by one."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.got: list[Any] = []
        self.lists: list[list[Any]] = []
        self.others: list[Any] = []
        self.wait: Callable[[], Awaitable[object] | None] = lambda: None
        self.app = App(**pair.options("App"))
        self.publication: Publication[Any] | None = None
        self.publishes = not (self.app.sub or pair.says(NO_PUBLISHER))
        self.timed = "every" in pair.options("publisher")
        if self.publishes:
            self.publication = self.app.publisher("out", int, **pair.options("publisher"))
            if self.timed:
                self._add_timer(self.publication)
        self._add_handler()
        if pair.says(SECOND, WIDER):
            self.app.add_route(self._other(), "in.{key}" if pair.says(SECOND) else "in.>")

    def _add_timer(self, publication: Publication[Any]) -> None:
        pair = self.pair
        if pair.says(NO_FUNCTION):
            return
        tick: Any = lambda: 7  # noqa: E731
        if pair.says(*ASYNC):

            async def tick() -> int:
                return 7

        elif pair.says(*GENERATOR):

            def tick() -> Iterator[int]:
                while True:
                    yield 7

        elif pair.says(TAKES):

            def tick(message: int) -> int:
                return message

        publication(tick)
        if pair.says(SUBSCRIBED):
            self.app.subscribe("ticks")(tick)
        if pair.says(TWO_PERIODS):
            self.app.publisher("ticks", int, every=2.0)(tick)

    def _add_handler(self) -> None:
        options = self.pair.options("subscribe")
        body: Any = list[int] if "batch" in options and not self.pair.says(SINGLE) else int
        handler = self._handler(thread=options.get("thread", False))
        handler.__annotations__["message"] = body
        if self.pair.says(*GENERATOR) and not self.timed and self.publication is not None:
            handler = self.publication(handler)
        self.app.subscribe("in.{key}", **options)(handler)

    def _handler(self, *, thread: bool) -> Any:
        def take(message: Any) -> list[Any]:
            many = message if isinstance(message, list) else [message]
            self.got.extend(many)
            self.lists.append(many)
            return many

        def publish(many: list[Any]) -> None:
            if self.publication is None or self.timed:
                return
            for each in many:
                publishing = self.publication.publish
                self.app.from_thread(publishing, each) if thread else publishing(each, **self.pair.options("publish"))

        if self.pair.says(*ASYNC) and not self.timed:

            async def handle(message):
                many = take(message)
                if (waiting := self.wait()) is not None:
                    await waiting
                publish(many)

        elif self.pair.says(*GENERATOR) and not self.timed:

            def handle(message) -> Iterator[int]:
                yield from take(message)

        elif self.pair.says(ENVELOPE):

            def handle(message, envelope: Envelope):
                publish(take(message))

        elif self.pair.says(TOPIC):

            def handle(message, topic: Topic):
                publish(take(message))

        elif self.pair.says(CAPTURE):

            def handle(message, key: str):
                publish(take(message))

        else:

            def handle(message):
                many = take(message)
                if (waiting := self.wait()) is not None:
                    return waiting
                publish(many)
                return None

        return handle

    def _other(self) -> Any:
        def other(message: int) -> None:
            self.others.append(message)

        return other


# -- what a row says -------------------------------------------------------------------------------------


def refused(pair: Pair, error: type[Exception]) -> None:
    """Check that the app is refused at a line of this file, or that publish is while it runs."""
    with pytest.raises(error) as raised:
        publish_once(pair)
    if isinstance(raised.value, SetupError):
        assert __file__.rpartition("/")[2] in str(raised.value.where)


def publish_once(pair: Pair) -> None:
    """Make and run the app, as far as possible, and publish."""
    made = Made(pair)
    made.app.service(Clock())
    with TestApp(made.app):
        assert made.publication is not None
        made.publication.publish(7, **pair.options("publish"))


def passes(pair: Pair) -> None:
    """Check that the app compiles, receives a message, and publishes one."""
    made = Made(pair)
    if made.app.sub:
        made.app.service(Clock())
    with TestApp(made.app) as t:
        t.publish("in.a", 7)
        t.advance(1)
        assert made.got == [7]
        assert len(made.others) == pair.says(SECOND, WIDER)
        if made.publishes:
            assert t.published("out", int)[:1] == [7]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("pair", [pytest.param(pair, id=f"{pair.first} with {pair.second}") for pair in PAIRS])
async def test_two_options_combine_as_the_table_says(pair: Pair) -> None:
    """Two options combine, or are refused, as the table says."""
    for cell in (pair.first, pair.second):
        assert _OPTION.fullmatch(cell) or cell in KNOWN, f"this test does not know how to make {cell!r}"
    key = (pair.first, pair.second)
    assert (key in INTERACTIONS) == (pair.outcome == "interacts")
    if pair.outcome == "works":
        passes(pair)
    elif pair.outcome == "interacts":
        await INTERACTIONS[key](pair)
    else:
        refused(pair, getattr(zroute, quoted(pair.outcome)[0]))


def test_each_pair_stands_in_the_table_once() -> None:
    """No pair has two rows, and no check is left of a removed row."""
    keys = [frozenset((pair.first, pair.second)) for pair in PAIRS]
    assert len(set(keys)) == len(keys) > 50
    assert {(pair.first, pair.second) for pair in PAIRS} >= set(INTERACTIONS)


def test_each_option_is_in_the_table() -> None:
    """I add an option, and have to say how it combines with others."""
    app = set(inspect.signature(App).parameters) - {"pub", "name"}  # an address and a name change nothing else
    options = {"App": app, "subscribe": set(ROUTE_DEFAULTS), "publisher": set(PUBLISHER_DEFAULTS)}
    for call, names in options.items():
        assert names - {name for pair in PAIRS for name in pair.options(call)} == set(), call


# -- how two options interact ----------------------------------------------------------------------------

Check = Callable[[Pair], Awaitable[None]]
INTERACTIONS: dict[tuple[str, str], Check] = {}


def interaction(first: str, second: str) -> Callable[[Check], Check]:
    """Register the check of the row with these cells."""

    def register(check: Check) -> Check:
        INTERACTIONS[first, second] = check
        return check

    return register


class Reader:
    """A plain ZeroMQ subscriber at the ``address`` of an app's publisher."""

    def __init__(self, address: str, socket: zmq.Socket[bytes]) -> None:
        self.address = address
        self._socket = socket

    async def read(self, number: int) -> list[bytes]:
        """Wait for at least that many frames."""
        frames: list[bytes] = []

        def arrived() -> bool:
            while self._socket.poll(0):
                frames.append(self._socket.recv())
            return len(frames) >= number

        await turns(arrived)
        return frames


@asynccontextmanager
async def read_by_a_socket(made: Made) -> AsyncIterator[Reader]:
    """Run the app over TCP with a plain ZeroMQ subscriber to "out"."""
    assert made.publication is not None
    endpoints = App(sub=free_endpoint(), pub=free_endpoint())
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    try:
        async with running(made.app, sub=endpoints.sub, pub=endpoints.pub):
            address = endpoints.pub[0].address
            socket.connect(address)
            socket.subscribe(b"out")
            await made.publication.wait_for_subscribers()
            yield Reader(address, socket)
    finally:
        socket.close(0)
        context.term()


async def raw_frames(pair: Pair, **options: Any) -> int:
    """Return the number of frames for five messages that are published in one turn."""
    made = Made(pair)
    async with read_by_a_socket(made) as reader:
        assert made.publication is not None
        for number in range(5):
            made.publication.publish(number, **options)
        least = 5 if pair.outcome == "interacts" else 2
        return len(await reader.read(least))


@interaction('`App(wire="plain")`', "`publisher(coalesce=True)`")
@interaction("`App(coalesce=True)`", "`publisher(coalesce=False)`")
@interaction("`App(coalesce=True)`", '`publish(headers={"a": 1})`')
async def _travel_alone(pair: Pair) -> None:
    together = Pair("`App(coalesce=True)`", "`publisher(coalesce=True)`", "works")
    assert await raw_frames(together) == 2  # the first message is sent at once
    assert await raw_frames(pair, **pair.options("publish")) == 5


@interaction('`App(codec="json")`', '`publisher(codec="msgpack")`')
async def _publisher_has_its_codec(pair: Pair) -> None:
    made = Made(pair)
    with TestApp(made.app) as t:
        t.publish("in.a", 7)
        assert [envelope.body for envelope in t.envelopes("out")] == [b"\x07"]


@interaction('`App(codec="json")`', '`subscribe(codec="msgpack")`')
async def _route_reads_what_states_nothing(pair: Pair) -> None:
    made = Made(pair)
    with TestApp(made.app) as t:
        t.receive(b"in.a\0\x07")
        t.publish("in.a", 8, codec="json")
    assert made.got == [7, 8]


@interaction('`App(dispatch="most_specific")`', WIDER)
async def _most_specific_alone(pair: Pair) -> None:
    made = Made(pair)
    with TestApp(made.app) as t:
        t.publish("in.a", 7)
        assert (made.got, made.others) == ([7], [])


def plainly(pair: Pair) -> Pair:
    """Run the first option of a row alone, to see the difference."""
    return Pair(pair.first, "a plain handler", "")


@interaction("`subscribe(batch=10)`", CAPTURE)
@interaction("`subscribe(batch=10)`", TOPIC)
async def _lists_of_one_topic(pair: Pair) -> None:
    for row, lists in ((pair, [[1, 3], [2]]), (plainly(pair), [[1, 2, 3]])):
        made = Made(row)

        @made.app.subscribe("go")
        def go(message: int, app: App) -> None:
            for topic, number in (("in.a", 1), ("in.b", 2), ("in.a", 3)):
                app.publish(topic, number)

        with TestApp(made.app) as t:
            t.publish("go", 0)
        assert made.lists == lists


class Held:
    """Handlers of ``made`` that wait until they are released."""

    def __init__(self, made: Made) -> None:
        self._waiting: list[Deferred[None]] = []
        made.wait = self._wait

    def _wait(self) -> Deferred[None]:
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def let_go(self, t: TestApp) -> None:
        """Release all handlers, also those that are called later."""
        while self._waiting:
            self._waiting.pop().callback(None)
            t.advance(0)


def called(pair: Pair, *sent: tuple[str, int]) -> list[int]:
    """Return the messages of the handler calls while none of them has ended."""
    made = Made(pair)
    held = Held(made)
    with TestApp(made.app) as t:
        for topic, number in sent:
            t.publish(topic, number)
        got = list(made.got)
        held.let_go(t)
    assert sorted(made.got) == sorted(number for _, number in sent)
    return got


@interaction("`subscribe(batch=10)`", "`subscribe(ordered=False)`")
async def _lists_side_by_side(pair: Pair) -> None:
    assert called(pair, ("in.a", 1), ("in.a", 2)) == [1, 2]
    assert called(plainly(pair), ("in.a", 1), ("in.b", 2)) == [1]


@interaction("`subscribe(ordered=False)`", "an `async` handler")
async def _messages_side_by_side(pair: Pair) -> None:
    assert called(pair, ("in.a", 1), ("in.a", 2)) == [1, 2]
    assert called(Pair(pair.second, pair.second, ""), ("in.a", 1), ("in.a", 2)) == [1]


@interaction("`subscribe(max_in_flight=1)`", "`subscribe(ordered=False)`")
async def _one_call_at_a_time(pair: Pair) -> None:
    assert called(pair, ("in.a", 1), ("in.b", 2), ("in.a", 3)) == [1]


@interaction("`subscribe(max_in_flight=5)`", "`subscribe(ordered=True)`")
async def _topics_side_by_side(pair: Pair) -> None:
    assert called(pair, ("in.a", 1), ("in.b", 2), ("in.a", 3)) == [1, 2]


@interaction("`subscribe(batch=10)`", "`subscribe(stale_after=2.0)`")
@interaction("`subscribe(stale_after=2.0)`", "an `async` handler")
async def _judged_when_its_turn_has_come(pair: Pair) -> None:
    made = Made(pair)
    held = Held(made)
    with TestApp(made.app) as t:
        t.publish("in.a", 1)
        t.publish("in.a", 2)
        t.advance(5)
        t.publish("in.a", 3)
        held.let_go(t)
        assert [route.stale for route in made.app.stats.routes.values()] == [1]
    assert made.got == [1, 3]


@interaction("`subscribe(queue=1)`", WIDER)
async def _full_queue_pauses_all(pair: Pair) -> None:
    made = Made(pair)
    held = Held(made)
    with TestApp(made.app) as t:
        t.publish("in.a", 1, 2, 3, 4)
        assert len(made.others) < 4
        held.let_go(t)
        assert made.got == made.others == [1, 2, 3, 4]


@interaction("`stream(queue=1)`", "`subscribe()` in the same app")
async def _full_stream_pauses_all(pair: Pair) -> None:
    made = Made(pair)
    with TestApp(made.app) as t:
        stream = made.app.stream("in.a", int, queue=1)
        Deferred.fromCoroutine(stream.__aenter__())
        t.publish("in.a", 1, 2, 3, 4)
        assert len(made.got) < 4
        Deferred.fromCoroutine(stream.__aexit__(None, None, None))
        t.advance(0)
        assert made.got == [1, 2, 3, 4]


@interaction("`subscribe(stale_after=2.0)`", '`publisher(keep="last")`')
async def _kept_messages_grow_old(pair: Pair) -> None:
    for options, expected in ((pair.options("subscribe"), []), ({}, [7])):
        made = Made(pair)
        got: list[int] = []
        with TestApp(made.app) as t:
            t.publish("in.a", 7)  # its handler publishes it
            t.advance(5)
            made.app.attach("out", got.append, **options)
            t.advance(0)
            assert got == expected


@interaction("`subscribe(copy=True)`", SECOND)
async def _own_object(pair: Pair) -> None:
    app = App()
    got: dict[str, dict[str, int]] = {}

    @app.subscribe("in", **pair.options("subscribe"))
    def alone(message: dict[str, int]) -> None:
        got["alone"] = message

    @app.subscribe("in")
    def shared(message: dict[str, int]) -> None:
        got["shared"] = message

    @app.subscribe("in")
    def sharing(message: dict[str, int]) -> None:
        got["sharing"] = message

    with TestApp(app) as t:
        t.publish("in", {"n": 1})
    assert got["alone"] == got["shared"]
    assert got["shared"] is got["sharing"] is not got["alone"]


@interaction('`publisher(keep="last")`', "`publisher(coalesce=True)`")
@interaction('`publisher(keep="last")`', '`publish(headers={"a": 1})`')
@interaction('`publisher(keep="last")`', "`ready(state=True)`")
async def _joins(pair: Pair) -> None:
    made = Made(pair)
    async with read_by_a_socket(made) as reader:
        assert made.publication is not None
        for number in range(5):
            made.publication.publish(number, **pair.options("publish"))
        await reader.read(2 if "coalesce" in pair.options("publisher") else 5)
        joining = App(sub=reader.address)
        box = Mailbox[Envelope]()

        @joining.subscribe("out")
        def take(envelope: Envelope) -> None:
            box.put(envelope)

        async with running(joining):
            await joining.ready(1, state=True)
            assert [(envelope.body, envelope.headers) for envelope in box.items] == [
                (b"\x04", pair.options("publish").get("headers", {}))
            ]
