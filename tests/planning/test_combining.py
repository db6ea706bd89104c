"""The table of combined options: each row is an app that is refused, or that handles a message."""

from __future__ import annotations

import inspect
import re
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import zroute
from tests.running import Mailbox, running, turns
from tests.support import PATIENCE, ROOT, free_endpoint
from tests.test_snippets import quoted
from zroute import App, Envelope, Frames, History, Limits, Publication, RouteInfo, Routes, Topic, WithHeaders
from zroute.declarations.options import JOB_QUEUE_DEFAULTS, PUBLISHER_DEFAULTS, ROUTE_DEFAULTS, WORK_DEFAULTS
from zroute.errors import SetupError
from zroute.messages.codecs import find_codec
from zroute.messages.wire import framer
from zroute.testing import TestApp

PAGE = ROOT / "docs" / "reference" / "combining-options.md"

ASYNC = {"an `async` handler", "an `async` function"}
GENERATOR = {"a generator as handler", "a generator"}
ENVELOPE, TOPIC, CAPTURE = "a handler with an `Envelope`", "a handler with a `Topic`", "a handler with a capture"
SINGLE, VIEW = "a handler of single messages", "a handler of `memoryview`"
SECOND, WIDER = "a second handler of the pattern", "a handler of a wider pattern"
TAKES = "a function with a parameter for a message"
NO_FUNCTION, NO_PUBLISHER = "no function", "no `publisher` above it"
OTHER_GROUP = "a group without the separator"
HEADED, AROUND = "a result with headers", "a publish middleware"
SURROUNDED, PLAINLY, LATER = "a middleware", "a plain middleware", "an `async` middleware"
SCOPED, LATE, TAKING = "a message-scoped resource", "an `async` message-scoped resource", "a middleware that takes it"
RETRIED = "`subscribe(retry=(1, 5))` of the same function"
SUBSCRIBED, TWO_PERIODS = "`subscribe()` of the same function", "`publisher(every=2.0)` of the same function"
SAYS_NOTHING = {
    "a plain handler",
    "a handler of `int`",
    "neither `sub` nor `pub`",
    "no `snapshot`",
    "no `context` of another app",
    "no `every`",
    "no `keys`",
    "no `nats`",
}
IN_CHECK = {
    "`ready(state=True)`",
    "`stream(queue=1)`",
    "`subscribe()` in the same app",
    "a stop of the app",
    "`on_error()`",
    "`on_subscribers()`",
}
"""What only the checks of `INTERACTIONS` know how to do."""

KNOWN = {
    *ASYNC, *GENERATOR, ENVELOPE, TOPIC, CAPTURE, SINGLE, VIEW, SECOND, WIDER, TAKES, NO_FUNCTION, NO_PUBLISHER,
    SUBSCRIBED, RETRIED, TWO_PERIODS, HEADED, AROUND, OTHER_GROUP,
    SURROUNDED, PLAINLY, LATER, SCOPED, LATE, TAKING, *SAYS_NOTHING, *IN_CHECK,
}  # fmt: skip

REQUESTS = ("`reply(", "`request(", "`request_stream(")
"""How the rows about requests begin, which `tests.planning.test_combining_requests` checks."""

_OPTION = re.compile(r"`(App|subscribe|publisher|publish|work|job_queue)\((.+)\)`")


@attrs.frozen
class Pair:
    """A row of the table: the combined options, and the outcome."""

    first: str
    second: str
    outcome: str

    def options(self, call: str) -> dict[str, Any]:
        """Return the keywords of the row for one of the calls."""

        def state() -> int:
            return 7

        def topics() -> list[dict[str, object]]:
            return []

        given: dict[str, Any] = {}
        names = {
            "dict": dict, "Frames": Frames, "History": History, "Limits": Limits,
            "other": App(pub="inproc://feed"), "own": Own(), "state": state, "topics": topics,
        }  # fmt: skip
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
    found = [Pair(*(cell.strip() for cell in row[:3])) for row in rows if row[0].strip() != "option"]
    return [pair for pair in found if not pair.first.startswith(REQUESTS)]


PAIRS = pairs()


# -- the app of a row ------------------------------------------------------------------------------------


class Session:
    """The resource of a message."""


class Own:
    """A codec of the user."""

    name, number = "own", 130

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        """Return the encoder."""
        return lambda message: b"own %d" % message

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        """Return the decoder."""
        return lambda body: int(bytes(body).removeprefix(b"own "))


class Made:
    """An app of a row; ``got`` holds the messages of its handler, those of batches one by one."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.got: list[Any] = []
        self.lists: list[list[Any]] = []
        self.others: list[Any] = []
        self.done: list[int] = []
        self.views: list[memoryview] = []
        self.wait: Callable[[], Awaitable[object] | None] = lambda: None
        self.app = App(**pair.options("App"))
        if pair.says(OTHER_GROUP):
            self.app.include(Routes())
        self.publication: Publication[Any] | None = None
        self.publishes = not (self.app.sub or pair.says(NO_PUBLISHER))
        self.timed = "every" in pair.options("publisher")
        if self.publishes:
            self.publication = self.app.publisher("out", int, **pair.options("publisher"))
            if self.timed:
                self._add_timer(self.publication)
        self.fails = False
        self.events: list[str] = []
        self.threads: set[int] = set()
        self._surround()
        if pair.says(AROUND):
            self._add_middleware(is_async=pair.says(*ASYNC))
        self._add_handler()
        self.works = "work(" in pair.first + pair.second or "job_queue(" in pair.first + pair.second
        if self.works:
            self._add_worker()
        if pair.says(SECOND, WIDER):
            self.app.add_route(self._other(), "in.{key}" if pair.says(SECOND) else "in.>")

    def _add_middleware(self, *, is_async: bool) -> None:
        @self.app.publish_middleware
        def stamp(call: Any, route: RouteInfo) -> Any:
            async def around_later(message: int) -> None:
                call(message)

            return around_later if is_async else lambda message: call(WithHeaders(message, {"v": 1}))

    def _surround(self) -> None:
        """Add middleware and a resource that note what they do, if the row has them."""
        pair, app = self.pair, self.app
        if pair.says(SURROUNDED, PLAINLY, LATER, TAKING):
            around_later = pair.says(LATER) or (pair.says(*ASYNC, LATE) and not pair.says(PLAINLY))
            app.middleware(lambda call, route: self._around(call, later=around_later))
        if pair.says(LATE):
            app.resource(scope="message")(self._late_session)
        elif pair.says(SCOPED, TAKING):
            app.resource(scope="message")(self._session)

    def _around(self, call: Any, *, later: bool) -> Any:
        def around(message: Any) -> Any:
            self._note("around")
            try:
                return call(message)
            finally:
                self._note("/around")

        async def around_later(message: Any) -> Any:
            self._note("around")
            try:
                return await call(message)
            finally:
                self._note("/around")

        def taking(message: Any, session: Session) -> Any:
            return around(message)

        async def taking_later(message: Any, session: Session) -> Any:
            return await around_later(message)

        if self.pair.says(TAKING):
            return taking_later if later else taking
        return around_later if later else around

    def _session(self) -> Iterator[Session]:
        self._note("open")
        try:
            yield Session()
        finally:
            self._note("close")

    async def _late_session(self) -> AsyncIterator[Session]:
        for each in self._session():
            yield each

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    def _add_timer(self, publication: Publication[Any]) -> None:
        pair = self.pair
        if pair.says(NO_FUNCTION):
            return
        tick: Any = lambda: WithHeaders(7, {"a": 0}) if pair.says(HEADED) else 7  # noqa: E731
        if pair.says(*ASYNC):

            async def tick() -> int:
                return 7

        elif pair.says(*GENERATOR):

            def tick() -> Iterator[int]:
                while True:
                    yield 7

        elif pair.says(SCOPED):

            def tick(session: Session) -> int:
                return 7

        elif pair.says(TAKES):

            def tick(message: int) -> int:
                return message

        publication(tick)
        if pair.says(SUBSCRIBED):
            self.app.subscribe("ticks")(tick)
        if pair.says(RETRIED):
            self.app.subscribe("ticks", retry=(1, 5))(tick)
        if pair.says(TWO_PERIODS):
            self.app.publisher("ticks", int, every=2.0)(tick)

    def _add_handler(self) -> None:
        options = self.pair.options("subscribe")
        body: Any = list[int] if "batch" in options and not self.pair.says(SINGLE) else int
        if self.pair.says(VIEW):
            body = memoryview
        handler = self._handler(thread=options.get("thread", False))
        handler.__annotations__["message"] = body
        if self.pair.says(SCOPED, LATE):
            handler.__annotations__["session"] = Session
        if self.pair.says(*GENERATOR, HEADED) and not self.timed and self.publication is not None:
            handler = self.publication(handler)
        self.app.subscribe("in.{key}", **options)(handler)

    def _add_worker(self) -> None:
        """Add a job queue, and a handler of its jobs."""
        options = self.pair.options("work")

        def work(message):
            self.done += message if isinstance(message, list) else [message]

        async def work_later(message):
            work(message)

        handler = work_later if self.pair.says(*ASYNC) else work
        handler.__annotations__["message"] = list[int] if "batch" in options else int
        self.app.job_queue("jobs.{key}", int, **self.pair.options("job_queue"))
        self.app.work("jobs.{key}", **options)(handler)

    def _handler(self, *, thread: bool) -> Any:
        def take(message: Any) -> list[Any]:
            self.views += [message] if isinstance(message, memoryview) else []
            many = message if isinstance(message, list) else [message[0]] if self.pair.says(VIEW) else [message]
            self._note("handle")
            if self.fails:
                raise ValueError("the handler")
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

            async def handle(message, session=None):
                many = take(message)
                if (waiting := self.wait()) is not None:
                    await waiting
                publish(many)

        elif self.pair.says(*GENERATOR) and not self.timed:

            def handle(message, session=None) -> Iterator[Any]:
                for each in take(message):
                    yield WithHeaders(each, {"a": 0}) if self.pair.says(HEADED) else each

        elif self.pair.says(HEADED) and not self.timed:

            def handle(message, session=None):
                return WithHeaders(take(message)[0], {"a": 0})

        elif self.pair.says(ENVELOPE):

            def handle(message, envelope: Envelope, session=None):
                publish(take(message))

        elif self.pair.says(TOPIC):

            def handle(message, topic: Topic, session=None):
                publish(take(message))

        elif self.pair.says(CAPTURE):

            def handle(message, key: str, session=None):
                publish(take(message))

        else:

            def handle(message, session=None):
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
        if made.works:
            t.put("jobs.a", 8)
            assert made.done == [8]


def test_each_refusal_of_an_app_that_is_compiled_is_an_error_of_its_setup() -> None:
    """A SetupError has a line, and each command ends with the exit code for it."""
    refusals = 0
    for pair in PAIRS:
        if pair.outcome not in ("works", "interacts"):
            with suppress(SetupError):
                refusals += 1
                Made(pair).app.compile()
                refusals -= 1
    assert refusals > 30


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
    neutral = {"pub", "rep", "req", "jobs", "work", "name"}  # an address and a name change nothing else
    app = set(inspect.signature(App).parameters) - neutral
    options = {"App": app, "subscribe": set(ROUTE_DEFAULTS), "publisher": set(PUBLISHER_DEFAULTS)}
    options |= {"work": set(WORK_DEFAULTS), "job_queue": set(JOB_QUEUE_DEFAULTS)}
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


@interaction('`App(separator="/")`', "a handler with a capture")
async def _slashes_separate(pair: Pair) -> None:
    app, got = App(**pair.options("App")), []
    app.add_route(lambda body, key: got.append((key, body)), "/in/{key}")
    with TestApp(app) as t:
        t.publish("/in/a.b", 7)
    assert got == [("a.b", 7)]


@interaction("`App(recover=True)`", "`subscribe(recover=False)`")
async def _one_route_counts_its_losses(pair: Pair) -> None:
    app = App(**pair.options("App"))
    app.add_route(print, "in.{key}", **pair.options("subscribe"))
    app.add_route(print, "other.{key}")
    assert [route.options.recover for route in app.compile().parts.routes] == [False, True]


@interaction("`publisher(snapshot=state)`", "`publisher(topics=topics)`")
async def _the_function_names_the_topics(pair: Pair) -> None:
    app, desk, got = App(pub="tcp://127.0.0.1:1"), App(sub="tcp://127.0.0.1:1"), list[int]()
    app.publisher("out", int, **pair.options("publisher"))
    app.publisher("other", int, snapshot=pair.options("publisher")["snapshot"])
    desk.add_route(lambda body: got.append(body), ">")
    with TestApp(app, desk):
        pass
    assert got == [7]  # of "other", whose only topic is known


@contextmanager
def past_and_live(pair: Pair, begin: Callable[[App, dict[str, Any]], object]) -> Iterator[tuple[Any, App]]:
    """Publish 1, 2 and 3, then call ``begin`` with an app and the options of the row, and publish 4."""
    feed, desk = App(pub="tcp://127.0.0.1:1"), App(sub="tcp://127.0.0.1:1", name="desk")
    past = feed.publisher("out.{key}", int, history=History(messages=10), **pair.options("publisher"))
    with TestApp(feed, desk, raise_errors=False) as t:
        for number in (1, 2, 3):
            past.publish(number, key="a")
        begin(desk, pair.options("subscribe"))
        past.publish(4, key="a")
        t.advance(0.5)
        yield t, desk


def attaching(function: Callable[..., Any]) -> Callable[[App, dict[str, Any]], object]:
    """Return a function that attaches ``function`` to an app."""
    return lambda app, options: app.attach("out.{key}", function, **options)


PAST = '`subscribe(since="all")`'


@interaction(PAST, "`publisher(snapshot=state)`")
async def _snapshots_behind_the_past(pair: Pair) -> None:
    got = list[tuple[str, int]]()

    def take(number: int, envelope: Envelope) -> None:
        got.append((envelope.origin, number))

    with past_and_live(pair, attaching(take)) as (_, desk):
        assert got == [("replayed", 1), ("replayed", 2), ("replayed", 3), ("snapshot", 7), ("live", 4)]
        assert desk.stats.lost == 0


@interaction(PAST, "`subscribe(retry=(1, 5))`")
async def _attempts_of_the_past(pair: Pair) -> None:
    calls = list[int]()

    def take(number: int) -> None:
        calls.append(number)
        if calls.count(2) == 1:
            raise ValueError("of the first attempt")

    with past_and_live(pair, attaching(take)) as (t, desk):
        assert calls == [1, 2]
        t.advance(1)
        assert calls == [1, 2, 2, 3, 4]
        assert (desk.stats.replayed, desk.stats.lost) == (3, 0)


@interaction(PAST, "`subscribe(thread=True)`")
async def _the_past_in_threads(pair: Pair) -> None:
    calls = list[tuple[int, bool]]()

    def take(number: int) -> None:
        calls.append((number, threading.get_ident() == here))

    here = threading.get_ident()
    with past_and_live(pair, attaching(take)):
        assert calls == [(number, False) for number in (1, 2, 3, 4)]


@interaction(PAST, "`stream(queue=1)`")
async def _the_past_in_a_stream(pair: Pair) -> None:
    got, handled = list[int](), Deferred[None]()

    async def read(app: App, options: dict[str, Any]) -> None:
        async with app.stream("out.{key}", int, queue=1, **options) as numbers:
            async for number in numbers:
                got.append(number)
                await handled

    with past_and_live(pair, lambda app, options: Deferred.fromCoroutine(read(app, options))) as (t, desk):
        assert got == [1]
        for number in (2, 3, 4):
            handled, done = Deferred[None](), handled
            done.callback(None)
            t.advance(0.5)
            assert got == list(range(1, number + 1))
        assert (desk.stats.replayed, desk.stats.lost) == (3, 0)
        handled.callback(None)


@interaction("`publisher(snapshot=state)`", AROUND)
async def _snapshots_bypass_the_middleware(pair: Pair) -> None:
    app, desk, got = App(pub="tcp://127.0.0.1:1"), App(sub="tcp://127.0.0.1:1"), list[int]()
    out = app.publisher("out", int, **pair.options("publisher"))
    app.publish_middleware(lambda call, route: lambda message: call(message + 1))
    desk.add_route(lambda body: got.append(body), ">")
    with TestApp(app, desk) as t:
        out.publish(1)
        t.advance(1)
    assert got == [7, 2]


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
async def read_by_a_socket(made: Made, *, hears_itself: bool = False) -> AsyncIterator[Reader]:
    """Run the app over TCP with a plain ZeroMQ subscriber to "out"."""
    assert made.publication is not None
    address = free_endpoint()
    endpoints = App(sub=address if hears_itself else free_endpoint(), pub=address)
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    try:
        async with running(made.app, sub=endpoints.sub, pub=endpoints.pub):
            address = endpoints.pub[0].address
            socket.connect(address)
            socket.subscribe(b"out")
            await made.publication.wait_for_subscribers(timeout=PATIENCE)
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


@pytest_twisted.ensureDeferred
async def test_messages_in_a_codec_of_the_user_share_a_frame() -> None:
    """The codec encodes single messages, which travel together."""
    assert await raw_frames(Pair("`publisher(coalesce=True)`", "`App(codec=own)`", "works")) == 2


@interaction('`App(wire=Frames(separator=b" "))`', "`publisher(coalesce=True)`")
@interaction('`App(wire="plain")`', "`publisher(coalesce=True)`")
@interaction("`App(coalesce=True)`", "`publisher(coalesce=False)`")
@interaction("`App(coalesce=True)`", '`publish(headers={"a": 1})`')
async def _travel_alone(pair: Pair) -> None:
    together = Pair("`App(coalesce=True)`", "`publisher(coalesce=True)`", "works")
    assert await raw_frames(together) == 2  # the first message is sent at once
    assert await raw_frames(pair, **pair.options("publish")) == 5


async def counted_subscribers(pair: Pair) -> int:
    """Return the number of subscribers while two apps receive, and check the calls of ``on_subscribers``."""
    made, told, got = Made(pair), list[int](), list[App]()
    publication = made.publication
    assert publication is not None
    publication.on_subscribers(told.append)
    endpoint = App(pub=free_endpoint()).pub
    forms = {endpoint[0].address: pair.options("App").get("wire", "tracked")}
    first, second = App(sub=forms), App(sub=forms)
    for app in (first, second):

        def take(message: int, app: App) -> None:
            got.append(app)

        app.add_route(take, "out")

    def both_receive() -> bool:
        publication.publish(7)
        return {first, second} <= set(got)

    async with running(made.app, sub=App(sub=free_endpoint()).sub, pub=endpoint):
        async with running(first), running(second):
            await turns(both_receive)
            if set(forms.values()) == {"tracked"}:  # the publisher may read what they say of themselves a turn later
                for app in (first, second):
                    await app.ready(1, timeout=PATIENCE)
            number = publication.subscribers
        await turns(lambda: [each > 0 for each in told] == [True, False])
        assert publication.subscribers == 0
    return number


@interaction("`on_subscribers()`", '`App(wire="plain")`')
@interaction("`on_subscribers()`", '`App(wire=Frames(separator=b" "))`')
async def _count_as_one(pair: Pair) -> None:
    assert await counted_subscribers(pair) == 1
    assert await counted_subscribers(Pair("a plain handler", "a plain handler", "")) == 2


@interaction(VIEW, SECOND)
async def _share_a_copy(pair: Pair) -> None:
    for kind in (bytes, memoryview):
        made, endpoint, others = Made(Pair(VIEW, "a plain handler", "")), free_endpoint(), list[Any]()

        def other(message: Any, others: list[Any] = others) -> None:
            others.append(message)

        other.__annotations__["message"] = kind
        made.app.add_route(other, "in.{key}")
        async with running(made.app, sub=App(sub=endpoint).sub, pub=App(pub=endpoint).pub):
            await made.app.ready(1, timeout=PATIENCE)
            made.app.publish("in.a", bytes(100_000))
            await turns(lambda others=others: others)
        assert made.views == others == [bytes(100_000)]
        assert isinstance(made.views[0].obj, bytes) is (kind is bytes)


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


@interaction(
    '`App(sub={"tcp://127.0.0.1:1": Frames(topic="a", decompress="zlib")})`',
    "`App(limits=Limits(max_message=100))`",
)
async def _limited_after_decompression(pair: Pair) -> None:
    app = App(**pair.options("App"))
    got: list[bytes] = []

    @app.subscribe("a")
    def take(body: bytes) -> None:
        got.append(body)

    with TestApp(app, raise_errors=False) as t:
        t.receive(zlib.compress(bytes(100)))
        t.receive(zlib.compress(bytes(101)))
        assert (len(got), app.stats.malformed) == (1, 1)


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


RETRY, DEAD = "`subscribe(retry=(1, 5))`", '`subscribe(dead="dead.{key}")`'


def failing(made: Made, times: int) -> Made:
    """Let the first calls of the handler fail; ``made.lists`` has all calls."""

    def fail() -> None:
        if len(made.lists) <= times:
            raise ValueError("of the handler")

    made.wait = fail
    return made


@interaction(RETRY, "`subscribe(ordered=True)`")
@interaction(RETRY, "`subscribe(ordered=False)`")
@interaction(RETRY, "`subscribe(max_in_flight=1)`")
async def _attempts_take_their_place(pair: Pair) -> None:
    match pair.options("subscribe"):
        case {"max_in_flight": 1}:
            expected = [1]
        case {"ordered": True}:
            expected = [1, 3]
        case _:
            expected = [1, 2, 3]
    made = failing(Made(pair), 1)
    with TestApp(made.app) as t:
        t.publish("in.a", 1)
        t.publish("in.a", 2)
        t.publish("in.b", 3)
        assert made.got == expected
        t.advance(1)
        assert sorted(made.got) == [1, 1, 2, 3]


@interaction(RETRY, "`subscribe(batch=10)`")
async def _whole_list_again(pair: Pair) -> None:
    made = failing(Made(pair), 1)
    with TestApp(made.app) as t:
        t.publish("in.a", 1, 2)
        t.advance(1)
    assert made.lists == [[1, 2], [1, 2]]


@interaction(RETRY, "`subscribe(stale_after=2.0)`")
async def _age_before_the_first_attempt(pair: Pair) -> None:
    made = failing(Made(pair), 2)
    with TestApp(made.app) as t:
        t.publish("in.a", 1)
        t.advance(6)
        assert [route.handled for route in made.app.stats.routes.values()] == [1]
    assert made.got == [1, 1, 1]


@interaction(RETRY, "a stop of the app")
async def _no_attempt_at_a_stop(pair: Pair) -> None:
    made = failing(Made(pair), 1)
    with TestApp(made.app, raise_errors=False) as t:
        t.publish("in.a", 1)
    assert (made.got, [route.handler_error for route in made.app.stats.routes.values()]) == ([1], [1])


@interaction(DEAD, RETRY)
@interaction(DEAD, "`subscribe(batch=10)`")
@interaction(DEAD, "`on_error()`")
async def _dead_letters(pair: Pair) -> None:
    made, called = failing(Made(pair), 10), []
    if pair.says("`on_error()`"):
        made.app.on_error()(lambda error, envelope: called.append(error))
    with TestApp(made.app) as t:
        t.publish("in.a", 1, 2)
        at_once = t.published("dead.>")
        t.advance(20)
        assert t.published("dead.>") == [1, 2]
        assert at_once == ([] if pair.says(RETRY) else [1, 2])
        assert called == []


@interaction(AROUND, DEAD)
async def _dead_letters_pass_by(pair: Pair) -> None:
    made = failing(Made(pair), 10)
    with TestApp(made.app) as t:
        t.publish("in.a", 1)
        (letter,) = t.envelopes("dead.a")
        assert "v" not in letter.headers
        assert made.app.stats.publish_errors == 0


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
            await joining.ready(1, timeout=PATIENCE, state=True)
            assert [(envelope.body, envelope.headers) for envelope in box.items] == [
                (b"\x04", pair.options("publish").get("headers", {}))
            ]


@interaction('`App(propagate_headers=("x-tenant",))`', "`subscribe(batch=10)`")
async def _lists_hand_on_no_headers(pair: Pair) -> None:
    for row, headers in ((pair, {}), (plainly(pair), {"x-tenant": "acme"})):
        made = Made(row)
        made.app.publisher("derived")(made.app.subscribe("in", **row.options("subscribe"))(lambda message: message))
        with TestApp(made.app) as t:
            t.publish("in", 7, headers={"x-tenant": "acme"})
            assert [envelope.headers for envelope in t.envelopes("derived")] == [headers]


def sent_with(pair: Pair) -> tuple[list[tuple[Any, dict[str, Any]]], Made]:
    """Return the messages and headers that the app publishes for one received message, or for a period."""
    made = Made(pair)
    with TestApp(made.app, raise_errors=False) as t:
        t.publish("in.a", 7, headers={"x-tenant": "acme"})
        headers = [dict(envelope.headers) for envelope in t.envelopes("out")][:1]
        return list(zip(t.published("out", int), headers, strict=False)), made


@interaction(HEADED, "`publisher(every=0.5)`")
@interaction(HEADED, "a generator as handler")
@interaction(HEADED, "`subscribe(batch=10)`")
async def _each_has_its_headers(pair: Pair) -> None:
    assert sent_with(pair)[0] == [(7, {"a": 0})]


@interaction(HEADED, '`App(propagate_headers=("x-tenant",))`')
async def _beside_those_that_travel_on(pair: Pair) -> None:
    assert sent_with(pair)[0] == [(7, {"a": 0, "x-tenant": "acme"})]


@interaction(HEADED, AROUND)
async def _both_headers(pair: Pair) -> None:
    assert sent_with(pair)[0] == [(7, {"a": 0, "v": 1})]


@interaction(AROUND, "`publisher(every=0.5)`")
@interaction(AROUND, "a generator as handler")
async def _each_passes_the_middleware(pair: Pair) -> None:
    assert sent_with(pair)[0] == [(7, {"v": 1})]


@interaction(HEADED, '`App(wire="plain")`')
async def _no_headers_on_the_wire(pair: Pair) -> None:
    sent, made = sent_with(pair)
    assert (sent, made.got, made.app.stats.publish_errors) == ([], [7], 1)


@interaction(AROUND, '`publish(headers={"a": 1})`')
async def _headers_of_both(pair: Pair) -> None:
    assert sent_with(pair)[0] == [(7, {"a": 1, "v": 1})]


@interaction(HEADED, '`publisher(keep="last")`')
@interaction(AROUND, '`publisher(keep="last")`')
async def _kept_with_headers(pair: Pair) -> None:
    made, got = Made(pair), list[Any]()

    def take(message: int, envelope: Envelope) -> None:
        got.append((message, envelope.headers))

    with TestApp(made.app) as t:
        t.publish("in.a", 7)
        made.app.attach("out", take)
        t.advance(0)
    assert got == [(7, {"a": 0} if pair.says(HEADED) else {"v": 1})]


@interaction(AROUND, "`publisher(coalesce=True)`")
@interaction(HEADED, "`App(coalesce=True)`")
async def _headers_travel_alone(pair: Pair) -> None:
    for row, least in ((pair, 5), (Pair("`App(coalesce=True)`", "a plain handler", ""), 2)):
        made = Made(row)
        async with read_by_a_socket(made, hears_itself=True) as reader:
            await made.app.ready(1, timeout=PATIENCE)
            for number in range(5):
                made.app.publish("in.a", number)
            # The messages may be handled in two turns, and each turn sends its first message at once.
            assert (len(await reader.read(least)) == 5) is (row is pair)


def events_of(pair: Pair, *messages: int, fails: bool = False) -> tuple[list[str], Made]:
    """Return what happened around the handler for these messages, which arrive together."""
    made = Made(pair)
    made.fails = fails
    with TestApp(made.app, raise_errors=False) as t:
        t.publish("in.a", *messages)
        t.advance(10)
        made.events += [f"dead {each}" for each in t.published("dead.>", int)]
    return made.events, made


ONE = ["around", "handle", "/around"]
OPEN = ["open", "handle", "close"]


@interaction(SURROUNDED, "`subscribe(batch=10)`")
@interaction(SCOPED, "`subscribe(batch=10)`")
async def _once_for_a_list(pair: Pair) -> None:
    one = ONE if pair.says(SURROUNDED) else OPEN
    assert events_of(pair, 1, 2)[0] == one
    assert events_of(plainly(pair), 1, 2)[0] == one * 2


@interaction(SURROUNDED, "`subscribe(thread=True)`")
@interaction(SCOPED, "`subscribe(thread=True)`")
async def _in_the_thread(pair: Pair) -> None:
    for row, elsewhere in ((pair, True), (plainly(pair), False)):
        events, made = events_of(row, 1)
        assert events == (ONE if pair.says(SURROUNDED) else OPEN)
        (thread,) = made.threads
        assert (thread != threading.get_ident()) is elsewhere


@interaction(SURROUNDED, "`subscribe(retry=(1, 5))`")
@interaction(SCOPED, "`subscribe(retry=(1, 5))`")
async def _once_for_an_attempt(pair: Pair) -> None:
    one = ONE if pair.says(SURROUNDED) else OPEN
    assert events_of(pair, 1, fails=True)[0] == one * 3
    assert events_of(plainly(pair), 1, fails=True)[0] == one


@interaction(SURROUNDED, "a generator as handler")
async def _while_the_generator_is_created(pair: Pair) -> None:
    assert events_of(pair, 1)[0] == ["around", "/around", "handle"]


@interaction(LATE, "a generator as handler")
@interaction(SCOPED, "a generator as handler")
async def _open_until_the_last_value(pair: Pair) -> None:
    made = Made(pair)

    @made.app.publish_middleware
    def note(call: Any, route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            made.events.append(f"publish {message}")
            return call(message)

        return around

    with TestApp(made.app) as t:
        t.publish("in.a", 7)
        assert t.published("out") == [7]
    assert made.events == ["open", "handle", "publish 7", "close"]


@interaction(SURROUNDED, "`subscribe(stale_after=2.0)`")
@interaction(SCOPED, "`subscribe(stale_after=2.0)`")
async def _not_for_a_stale_message(pair: Pair) -> None:
    for row, handled in ((pair, False), (plainly(pair), True)):
        made = Made(row)
        with TestApp(made.app) as t:
            frame = framer("tracked", epoch=1, next_sequence=lambda: 1, clock_ns=lambda: 1)
            sent = frame(b"in.a", find_codec("msgpack").number, b"\x07", None)
            t.receive(*([sent] if isinstance(sent, bytes) else sent))
        assert (made.events != []) is handled


@interaction(SURROUNDED, '`subscribe(dead="dead.{key}")`')
@interaction(SCOPED, '`subscribe(dead="dead.{key}")`')
async def _before_the_dead_letter(pair: Pair) -> None:
    events, made = events_of(pair, 7, fails=True)
    assert events == [*(ONE if pair.says(SURROUNDED) else OPEN), "dead 7"]
    made = Made(pair)
    with TestApp(made.app) as t:
        t.publish("in.a", "no number")
        assert len(t.envelopes("dead.a")) == 1
    assert made.events == []


@interaction(SURROUNDED, SECOND)
async def _around_each_handler(pair: Pair) -> None:
    events, made = events_of(pair, 1)
    assert (events, made.others) == ([*ONE, "around", "/around"], [1])


@interaction(LATE, SURROUNDED)
@interaction(SCOPED, SURROUNDED)
async def _open_around_the_handler_only(pair: Pair) -> None:
    assert events_of(pair, 1)[0] == ["around", *OPEN, "/around"]


@interaction(LATE, TAKING)
@interaction(SCOPED, TAKING)
async def _open_around_the_middleware(pair: Pair) -> None:
    assert events_of(pair, 1)[0] == ["open", *ONE, "close"]


@interaction(LATE, "a plain handler")
async def _messages_take_turns(pair: Pair) -> None:
    events, made = events_of(pair, 1, 2)
    assert events == OPEN * 2
    (route,) = made.app.compile().parts.routes
    assert route.flow.active


@interaction(SURROUNDED, "`stream(queue=1)`")
async def _not_for_a_stream(pair: Pair) -> None:
    made, streamed = Made(pair), list[int]()
    with TestApp(made.app) as t:

        async def read() -> None:
            async with made.app.stream("streamed", int, queue=1) as stream:
                async for each in stream:
                    streamed.append(each)
                    break

        reading = Deferred.fromCoroutine(read())
        t.publish("streamed", 1)
        assert reading.called
        assert (streamed, made.events) == ([1], [])
        t.publish("in.a", 1)
        assert made.events == ONE


@interaction("`App(isolate=True)`", "a plain handler")
async def _sees_no_variable_of_another(pair: Pair) -> None:
    for row, isolated in ((pair, True), (Pair("a plain handler", "a plain handler", ""), False)):
        made, variable, seen = Made(row), ContextVar[int]("variable", default=0), list[int]()

        def note(made: Made = made, variable: ContextVar[int] = variable, seen: list[int] = seen) -> None:
            seen.append(variable.get())
            variable.set(made.got[-1])

        made.wait = note
        with TestApp(made.app) as t:
            t.publish("in.a", 1, 2)
        assert seen == ([0, 0] if isolated else [0, 1])
