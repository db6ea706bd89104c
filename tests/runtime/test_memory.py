"""The memory that peers can make an app use is bounded, as the documentation states."""

from __future__ import annotations

import gc
import logging
import struct
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import attrs
import pytest
import zmq

from benchmarks.receive import StillReactor
from tests.pure import Wired, plain, tracked
from zroute import App, Topic, startswith
from zroute.cli.top import Traffic
from zroute.clock import TICK
from zroute.endpoints import Endpoint
from zroute.messages.control import Statement, pack_marker, parse_marker
from zroute.messages.topics import any_of
from zroute.messages.wire import FIXED, Envelope, Flags, Kind, pack_head
from zroute.options import MAX_TOPIC, PUBLISHERS_KEPT, TOPIC_CACHE, TOPICS_NOTED
from zroute.publishing import counters as counting
from zroute.publishing.counters import COVERS, Counters
from zroute.publishing.publication import CompiledPublication
from zroute.receiving.latest import Latest
from zroute.receiving.tracker import STREAMS_MAX, Tracker
from zroute.runtime.service import AppService

pytestmark = pytest.mark.slow

MIB = 2**20
SMALL = MIB // 2
"""A budget for tests in place of `TOPIC_CACHE`; a few hundred topics fill it."""

BODY = b'{"symbol":"A","price":1.5}'


@attrs.frozen
class Quote:
    symbol: str
    price: float


class Grown:
    """The bytes that a block has added."""

    bytes = 0


@contextmanager
def grown() -> Iterator[Grown]:
    """Measure the bytes that a block leaves behind."""
    found = Grown()
    gc.collect()
    tracemalloc.start()
    try:
        yield found
        gc.collect()
        found.bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def handler(kind: Any) -> Callable[[Any], None]:
    """Return a new handler function."""

    def handle(body: Any) -> None: ...

    handle.__annotations__["body"] = kind
    return handle


def reader(handlers: int = 1, pattern: Any = "desk.{symbol}") -> Wired:
    """Return an app with several handlers, each its own function."""
    app = App(codec="json")
    for _ in range(handlers):
        app.add_route(handler(Quote), pattern)
    wired = Wired(app)
    wired.feed(plain("desk.first", body=BODY), tracked("desk.first", body=BODY, codec=2))
    return wired


# -- received topics ----------------------------------------------------------------------------------------


def raw_frames(form: str, topic: str) -> Any:
    """Return the frames of a message of ``topic``."""
    if form == "plain":
        return plain(topic, body=BODY)
    if form == "multipart":
        return topic.encode(), BODY
    if form == "tracked":
        return tracked(topic, body=BODY, codec=2)
    head = pack_head(kind=Kind.DATA, codec=2, flags=int(Flags.KEEPS), epoch=7)
    return topic.encode() + b"\0" + FIXED.pack(head, 0, 1) + BODY


@pytest.mark.parametrize("form", ["plain", "multipart", "tracked", "kept"])
@pytest.mark.parametrize("routed", [True, False])
def test_long_topics_leave_nothing(form: str, routed: bool) -> None:
    """400 first parts of 200 kB each, 80 MB in total, leave less than 0.1 MiB."""
    wired = reader(pattern=startswith("desk") if routed else "other")
    with grown() as found:
        for number in range(400):
            wired.feed(raw_frames(form, f"desk{number}." + "x" * 200_000))
    assert found.bytes < 0.1 * MIB
    assert wired.stats.handled == 400 * routed + 2 * routed
    assert wired.stats.cache_misses == 401
    assert wired.balanced()


def test_long_topics_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log explains once why a stream with long first parts is slow, without their contents."""
    wired = reader(pattern=startswith("desk"))
    for number in range(5):
        wired.feed(plain(f"desk{number}." + "x" * 200_000, body=BODY))
    (said,) = [record for record in caplog.records if "cache_misses" in record.message]
    assert said.levelno == logging.WARNING
    assert " has 200006 bytes, but zroute does not cache topics of more than 255 bytes" in said.message
    assert all(len(record.getMessage()) < 1_000 for record in caplog.records)


def test_a_refused_body_of_a_long_topic_makes_no_long_line(caplog: pytest.LogCaptureFixture) -> None:
    """A log line shows only the beginning of a long topic."""
    reader(pattern=startswith("desk")).feed(plain("desk." + "x" * 200_000, body=b"?"))
    assert "(200005 characters)" in caplog.text
    assert all(len(record.getMessage()) < 2_000 for record in caplog.records)


def shapes() -> dict[str, tuple[Callable[[], Wired], Callable[[str], list[Any]], str]]:
    """Return the kinds of cache entries: the app, the frames that create one, and the topics' prefix."""

    def captures() -> Wired:
        app = App(codec="json")

        @app.subscribe("desk.{a}.{b}.{c}.{d}")
        def handle(quote: Quote, a: str, b: str, c: str, d: str) -> None: ...

        return Wired(app)

    def capture_and_topic() -> Wired:
        app = App(codec="json")

        @app.subscribe("desk.{symbol}")
        def handle(quote: Quote, symbol: str, topic: Topic) -> None: ...

        return Wired(app)

    def several_types() -> Wired:
        app = App(codec="json")
        for kind in (Quote, dict, bytes, str):
            app.add_route(handler(kind), "desk.{x}")
        return Wired(app)

    def results() -> Wired:
        app = App(codec="json")
        published = app.publisher("copies", Quote)

        @published
        @app.subscribe("desk.{symbol}")
        def handle(quote: Quote, topic: Topic) -> Quote:
            return quote

        wired = Wired(app)
        wired.sent = deque(maxlen=1)  # type: ignore[assignment]
        return wired

    def own_codec() -> Wired:
        app = App()  # the app's codec is msgpack, so each topic may turn out to send JSON

        @app.subscribe("desk.{symbol}")
        def handle(quote: Quote, symbol: str) -> None: ...

        return Wired(app)

    def surrounded(handlers: int, kind: str = "", **options: Any) -> Callable[[], Wired]:
        """Return an app whose calls are made later, in a context of their own, or by middleware."""

        def make() -> Wired:
            app = App(codec="json", isolate=kind == "isolate")
            if kind == "middleware":
                app.middleware(lambda call, route: lambda message: call(message))
            for _ in range(handlers):
                if kind == "async":

                    async def handle(body: Quote) -> None: ...

                    app.add_route(handle, "desk.{symbol}")
                else:
                    app.add_route(handler(list[Quote] if options else Quote), "desk.{symbol}", **options)
            return Wired(app)

        return make

    def wide(handlers: int) -> Callable[[], Wired]:
        """Return an app whose handlers take captured text and the topic."""

        def make() -> Wired:
            app = App(codec="json")
            for _ in range(handlers):

                def handle(quote: Quote, symbol: str, topic: Topic) -> None: ...

                app.add_route(handle, "desk.{symbol}")
            return Wired(app)

        return make

    def one(form: str) -> Callable[[str], list[Any]]:
        return lambda topic: [raw_frames(form, topic)]

    def counted(topic: str) -> list[Any]:
        """Return the frame of a publisher that counts the messages of our subscription."""
        head = pack_head(kind=Kind.DATA, codec=2, span=len("desk."), epoch=7)
        return [topic.encode() + b"\0" + FIXED.pack(head, 0, 1) + BODY]

    def coalesced(topic: str) -> list[Any]:
        """Return a frame of two messages of such a publisher."""
        head = pack_head(kind=Kind.COALESCED, codec=2, span=len("desk."), epoch=7)
        content = struct.pack(">3H", 2, 1 + len(BODY), 2 + 2 * len(BODY)) + b"[" + BODY + b"," + BODY + b"]"
        return [topic.encode() + b"\0" + FIXED.pack(head, 0, 1) + content]

    def codecs(topic: str) -> list[Any]:
        return [tracked(topic, body=BODY, codec=codec) for codec in range(256)]

    def publishers(topic: str) -> list[Any]:
        return [tracked(topic, body=BODY, codec=2, epoch=epoch) for epoch in range(100)]

    return {
        "plain": (reader, one("plain"), "desk."),
        "tracked": (reader, one("tracked"), "desk."),
        "counted": (reader, counted, "desk."),
        "counted, with captures": (captures, counted, "desk.a.b.c."),
        "frames": (reader, coalesced, "desk."),
        "frames, with captures": (captures, coalesced, "desk.a.b.c."),
        "turns": (reader, lambda topic: counted(topic) + coalesced(topic), "desk."),
        "results": (results, one("plain"), "desk."),
        "json for msgpack": (own_codec, lambda topic: 2 * one("plain")(topic), "desk."),
        "kept": (reader, one("kept"), "desk."),
        "both": (reader, lambda topic: [*one("plain")(topic), *one("tracked")(topic)], "desk."),
        "unrouted": (reader, one("tracked"), "other."),
        "ten handlers": (lambda: reader(10), one("tracked"), "desk."),
        "captures": (captures, one("tracked"), "desk.a.b.c."),
        "capture and topic": (capture_and_topic, one("plain"), "desk."),
        "several types": (several_types, one("plain"), "desk."),
        "middleware": (surrounded(1, "middleware"), one("plain"), "desk."),
        "middleware, frames": (surrounded(1, "middleware"), coalesced, "desk."),
        "middleware, three handlers": (surrounded(3, "middleware"), one("tracked"), "desk."),
        "isolated": (surrounded(3, "isolate"), one("plain"), "desk."),
        "async": (surrounded(1, "async"), coalesced, "desk."),
        "batches": (surrounded(1, batch=10), one("plain"), "desk."),
        "batches, two handlers": (surrounded(2, batch=10), one("plain"), "desk."),
        "two handlers, frames": (lambda: reader(2), coalesced, "desk."),
        "wide characters": (wide(1), one("plain"), "desk.\U0001f600"),
        "wide characters, two handlers": (wide(2), one("plain"), "desk.\U0001f600"),
        "codecs": (reader, codecs, "desk."),
        "publishers": (reader, publishers, "desk."),
    }


@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("length", [0, 200])
@pytest.mark.parametrize("wide", ["", "\N{GRINNING FACE}"])
def test_entries_take_no_more_than_is_counted(
    shape: str, length: int, wide: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The bytes that the cache counts are a close upper limit of what Python uses."""
    caplog.set_level(logging.CRITICAL)
    make, frames, start = shapes()[shape]
    wired, number = make(), {"codecs": 4, "publishers": 20}.get(shape, 500)
    wired.feed(*frames(f"{start}warm"))
    messages = [frames(f"{start}{each:05}{wide}" + "x" * length) for each in range(number)]
    before = wired.table._entries._budget.used
    with grown() as found:
        for each in messages:
            wired.feed(*each)
        wired.errors.clear()
    latest = sum(sum(map(len, (topic, at))) + 400 for (_, topic), at in wired.table._latest.times.items())
    counted = wired.table._entries._budget.used - before
    assert found.bytes - latest <= counted <= 2.1 * found.bytes, (found.bytes / number, counted / number)


def takes_body() -> Callable[..., None]:
    """Return a handler of the body."""

    def handle(quote: Quote) -> None: ...

    return handle


def takes_capture() -> Callable[..., None]:
    """Return a handler of the body and a captured segment."""

    def handle(quote: Quote, symbol: str) -> None: ...

    return handle


@pytest.mark.parametrize("make", [takes_body, takes_capture])
@pytest.mark.parametrize("wire", ["plain", "tracked"])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_the_cache_has_room_for_200_000_topics(make: Callable[[], Callable[..., None]], wire: str, codec: Any) -> None:
    """200,000 topics of a handler fit, also with JSON where msgpack was expected."""
    app = App(codec=codec)
    app.add_route(make(), "desk.{symbol}")
    wired = Wired(app)
    head = pack_head(kind=Kind.DATA, codec=2, span=len("desk."), epoch=7)
    header = FIXED.pack(head, 0, 1) if wire == "tracked" else b""
    wired.feed(*[b"desk.symbol%06d\0" % number + header + BODY for number in range(200)])
    entries = wired.table._entries
    assert wired.stats.handled == len(entries) == wired.stats.cache_misses == 200
    assert entries._budget.used * 1_000 <= TOPIC_CACHE


def test_an_entry_counts_what_it_takes_while_its_dicts_are_least_full() -> None:
    """The count includes the unused room of the dicts directly after they have grown."""
    wired, number = reader(), 21_846  # a dict grows to 65,536 places for this key
    frames = [plain(f"desk.{each:05}", body=BODY) for each in range(number)]
    before = wired.table._entries._budget.used
    with grown() as found:
        wired.feed(*frames)
    assert found.bytes <= wired.table._entries._budget.used - before <= 1.15 * found.bytes


@pytest.mark.parametrize("shape", shapes())
def test_topics_fill_no_more_than_the_budget(
    shape: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Varying topics, codecs or epochs can't exceed the budget of the topic cache."""
    monkeypatch.setattr("zroute.receiving.topic_cache.TOPIC_CACHE", SMALL)
    for module in ("table", "latest"):
        monkeypatch.setattr(f"zroute.receiving.{module}.TOPICS_NOTED", 100)
    caplog.set_level(logging.CRITICAL)
    make, frames, start = shapes()[shape]
    wired, topics = make(), {"codecs": 4, "publishers": 40, "ten handlers": 100}.get(shape, 400)
    wired.feed(*frames(f"{start}warm"))
    with grown() as found:
        for each in range(topics):
            wired.feed(*frames(f"{start}{each:05}" + "x" * 100))
            wired.errors.clear()
    entries = wired.table._entries
    assert found.bytes < SMALL + 0.15 * MIB
    assert 0 < entries._budget.used <= SMALL
    assert sum(entry.size + entry.heads for entry in entries._entries.values()) == entries._budget.used
    assert entries.tracked.keys() | entries.direct.keys() <= entries._entries.keys()
    assert wired.balanced()


def test_nothing_is_counted_of_what_was_forgotten() -> None:
    """Entries that are dropped or replaced leave no bytes counted in the budget."""
    wired = reader()
    wired.feed(*[tracked(f"desk.{each}", body=BODY, codec=2, epoch=each % 3) for each in range(100)])
    entries = wired.table._entries
    wired.table.forget_accounts()
    assert sum(entry.size for entry in entries._entries.values()) == entries._budget.used > 0
    for topic in list(entries._entries):
        entries.forget(topic)
    assert entries._budget.used == 0
    wired.feed(plain("desk.a", body=BODY))
    wired.table.reclassify()
    assert entries._budget.used == len(entries) == 0


def test_a_cache_a_little_too_small_misses_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 5 % more topics than fit, used in a cycle, most messages still find their entry."""
    monkeypatch.setattr("zroute.receiving.topic_cache.TOPIC_CACHE", SMALL)
    wired, numbers = reader(), count()
    while wired.table._entries._budget.used < SMALL - 3_000:
        wired.feed(plain(f"desk.{next(numbers):06}", body=BODY))
    topics = next(numbers) * 105 // 100
    for _ in range(4):
        before = wired.stats.cache_misses
        wired.feed(*[plain(f"desk.{number:06}", body=BODY) for number in range(topics)])
    assert wired.stats.cache_misses - before < topics / 4


def test_misses_are_counted_and_too_many_topics_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """app.stats counts the cache misses, and the log explains them once."""
    monkeypatch.setattr("zroute.receiving.topic_cache.TOPIC_CACHE", SMALL)
    wired = reader()
    before = wired.stats.cache_misses
    wired.feed(*[tracked(f"desk.{number}", body=BODY, codec=2) for number in range(100)] * 2)
    assert wired.stats.cache_misses - before == 100
    assert not caplog.records
    wired.feed(*[tracked(f"desk.{number}", body=BODY, codec=2) for number in range(2_000)])
    (said,) = caplog.records
    assert "topics, and the topic cache of" in said.message
    assert "stats.cache_misses" in said.message


def test_many_publishers_of_a_topic_are_known_and_more_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of publishers of one topic are as fast as one; beyond the limit some are dropped."""
    wired = reader()
    sensors = [tracked("desk.a", body=BODY, codec=2, epoch=epoch, sequence=0) for epoch in range(PUBLISHERS_KEPT)]
    wired.feed(*sensors)
    before = wired.stats.cache_misses
    wired.feed(*sensors)
    assert wired.stats.cache_misses == before
    assert not [record for record in caplog.records if "publishers send" in record.message]
    wired.feed(*[tracked("desk.a", body=BODY, codec=2, epoch=epoch, sequence=0) for epoch in range(10**6, 10**6 + 100)])
    assert len(wired.table._entries.tracked[b"desk.a"]) <= PUBLISHERS_KEPT
    (said,) = [record for record in caplog.records if "publishers send" in record.message]
    assert f"more than {PUBLISHERS_KEPT} publishers send to 'desk.a'" in said.message


def test_times_of_kept_messages_take_20_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of kept messages use at most 20 MiB, whatever topics and publishers a peer invents."""
    monkeypatch.setattr("zroute.receiving.latest.TOPICS_NOTED", TOPICS_NOTED // 8)
    latest = Latest()
    fixed = bytes(32)
    with grown() as found:
        for number in range(3 * TOPICS_NOTED // 8):
            latest.note(2**60 + number, b"%0255d" % number, bytes([*fixed]))
            latest.note(2**60 + number, b"%0256d" % number, bytes([*fixed]))
    assert found.bytes < 20 * MIB / 8


def test_topics_in_parts_take_8_mib() -> None:
    """Topics of messages in parts use at most 8 MiB, for any number of topics."""
    wired = reader(pattern=startswith("d"))
    known = wired.table._parts.multipart
    with grown() as found:
        for number in range(TOPICS_NOTED):
            known[b"%0255d" % number] = None
    assert found.bytes < 8 * MIB
    frame = plain("d" * 255, body=b"?")
    wired.feed(frame, (frame, b"rest"))
    assert len(known) == TOPICS_NOTED


def test_accounts_take_250_mb() -> None:
    """1,000,000 accounts of subscriptions of 20 bytes use at most 250 MB."""
    names = [b"%020d" % number for number in range(10_000)]
    tracker = Tracker()
    tracker.subscribe(names)
    tracker.join(b"M", 0.0)
    tracker.stated(1, b"M", Statement(0, 1, "", False, tuple((name, 2**40 + 5) for name in names)))
    with grown() as found:
        numbers = tuple((b"%020d" % number, 2**40 + number) for number in range(10_000))
        tracker.stated(2, b"M", Statement(0, 1, "", False, numbers))
        del numbers
        for number in range(1, 200):  # all of them are busy
            for account in tracker._publishers[2].streams.values():
                tracker.admit(account, account.expected)
            tracker.check(number * TICK, emptied=True)
    assert found.bytes / 10_000 < 250e6 / STREAMS_MAX


# -- published topics ---------------------------------------------------------------------------------------


class Publisher:
    """An app that publishes to a real socket on a reactor that does not run."""

    def __init__(
        self, wire: Any = "tracked", overflow: Any = "drop", subscriptions: tuple[bytes, ...] = (b"",)
    ) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.clock = StillReactor()
        self.app = App(pub="inproc://o", codec="json", wire=wire, overflow=overflow, context=self.context)
        self.quotes = self.app.publisher("stocks.{symbol}", Quote)
        self.service = AppService(self.app.compile(), self.clock, pub=(Endpoint("inproc://o", bind=True),))
        self.service.startService()
        self.sub = self.context.socket(zmq.SUB)
        for prefix in subscriptions:
            self.sub.subscribe(prefix)
        self.sub.connect("inproc://o")
        self.turn()

    @property
    def outlet(self) -> CompiledPublication:
        """The only publication."""
        return self.quotes._outlets[0]

    def publish(self, first: int, last: int, length: int = 0, mark: str = "") -> None:
        """Publish one quote for each symbol with these numbers."""
        for number in range(first, last):
            self.quotes.publish(Quote(f"s{number:05}{mark}{'x' * length}", 1.5))
            if number % 100 == 0:
                self.turn()
        self.turn()

    def turn(self) -> None:
        """Let the app read its socket, and read the messages that it sent."""
        self.clock.advance(0.5)
        while self.sub.poll(0):
            self.sub.recv()

    def close(self) -> None:
        """Stop without a goodbye."""
        assert self.service.transport is not None
        assert self.service.transport.pub is not None
        self.service.transport.pub.close(0)
        self.context.destroy(linger=0)


WIRES = [("plain", "drop"), ("tracked", "drop"), ("tracked", "wait"), ("multipart", "drop")]


@pytest.mark.parametrize(("wire", "overflow"), WIRES)
@pytest.mark.parametrize(("length", "mark"), [(0, ""), (200, ""), (200, "\U0001f600")])
def test_published_topics_take_no_more_than_is_counted(wire: str, overflow: str, length: int, mark: str) -> None:
    """The bytes that a publication counts are an upper limit of what Python uses."""
    publisher = Publisher(wire, overflow)
    try:
        publisher.publish(0, 10, length, mark)
        covers = publisher.service._run._publisher.session.counters._budget if wire == "tracked" else None  # type: ignore[union-attr]
        before = publisher.outlet._budget.used + (covers.used if covers is not None else 0)
        with grown() as found:
            for _ in range(2):  # the second message looks up the counters of its topic
                publisher.publish(10, 1_010, length, mark)
        counted = publisher.outlet._budget.used + (covers.used if covers is not None else 0) - before
        assert found.bytes <= counted <= 3 * found.bytes, (found.bytes / 1_000, counted / 1_000)
        assert publisher.app.stats.cache_misses == 1_010
    finally:
        publisher.close()


@pytest.mark.parametrize(("wire", "overflow"), WIRES[:3])
def test_the_garbage_collector_visits_one_object_of_a_published_topic(wire: str, overflow: str) -> None:
    """Topics with the same counters share these, so a full collection is short."""
    publisher = Publisher(wire, overflow)
    try:
        if wire == "tracked":
            publisher.sub.subscribe(pack_marker(1, [b""]))
        publisher.publish(0, 101)
        publisher.publish(101, 201)
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(2):  # the second message looks up the counters of its topic
            publisher.publish(201, 401)
        gc.collect()
        assert publisher.app.stats.cache_misses == 401
        assert (len(gc.get_objects()) - before) / 200 <= 1.1
    finally:
        publisher.close()


@pytest.mark.parametrize("wire", ["plain", "tracked"])
@pytest.mark.parametrize("overflow", ["drop", "wait"])
def test_published_topics_have_room_for_100_000(wire: str, overflow: str) -> None:
    """100,000 topics of a publisher fit into its caches, by the bytes that these count."""
    publisher = Publisher(wire, overflow)
    try:
        if wire == "tracked":
            publisher.sub.subscribe(pack_marker(1, [b""]))
        publisher.publish(0, 1)  # the app reads the marker after it
        before = publisher.outlet._budget.used
        publisher.publish(1, 101)
        assert publisher.app.stats.cache_misses == 101
        assert (publisher.outlet._budget.used - before) * 1_000 <= TOPIC_CACHE
        session = publisher.service._run._publisher.session if wire == "tracked" else None  # type: ignore[union-attr]
        if session is not None:
            assert len(session.counters._covers) == 100
            assert session.counters._budget.used * 1_000 <= COVERS
    finally:
        publisher.close()


def test_a_published_topic_counts_what_it_takes_while_its_dicts_are_least_full() -> None:
    """The count includes the unused room of the dicts directly after they have grown."""
    publisher, number = Publisher(overflow="wait"), 10_923  # a dict grows to 32,768 places for this key
    try:
        before = publisher.outlet._budget.used
        with grown() as found:
            publisher.publish(0, number)
        assert found.bytes <= publisher.outlet._budget.used - before
    finally:
        publisher.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_cover_counts_what_it_takes_while_its_dict_is_least_full(*, shared: bool) -> None:
    """The count of a topic's counters includes the unused room of the dict directly after it has grown."""
    counters, topics = Counters(), [b"stocks.%06d" % number for number in range(21_846)]
    for subscription in [b"stocks."] if shared else topics:
        counters.subscribe(subscription, 0.0)
    for counter in counters._counters.values():
        counter.wanted = True
    with grown() as found:
        for topic in topics:
            counters.count(topic)
    # Covers are counted as if no other topic shared them.
    assert found.bytes <= counters._budget.used <= (4 if shared else 1.8) * found.bytes


@pytest.mark.parametrize(("wire", "overflow"), WIRES)
def test_published_topics_fill_no_more_than_the_budget(
    wire: str, overflow: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All publications of an app share one budget, which captures from peers can't exceed."""
    monkeypatch.setattr("zroute.publishing.publisher.TOPIC_CACHE", SMALL)
    monkeypatch.setattr(counting, "COVERS", SMALL // 4)
    publisher = Publisher(wire, overflow)
    try:
        number = 2_000 if wire == "multipart" else 600
        with grown() as found:
            publisher.publish(0, number)
        assert found.bytes < SMALL + SMALL // 4 + 0.15 * MIB
        outlet = publisher.outlet
        assert 0 < outlet._budget.used <= SMALL
        assert sum(map(outlet._size, outlet._topics.values())) == outlet._budget.used
        assert {(value,) for value in outlet._states} <= outlet._topics.keys()
        assert publisher.app.stats.published == number
        (said,) = [record for record in caplog.records if "cache_misses" in record.message]
        assert "the topic cache of" in said.message
    finally:
        publisher.close()


def test_publications_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many publications of one app share one limit, and each of them drops entries."""
    monkeypatch.setattr("zroute.publishing.publisher.TOPIC_CACHE", SMALL)
    publisher = Publisher()
    try:
        other = publisher.outlet
        publisher.publish(0, 600)
        assert len(other._topics) < 600
        budget = other._budget
        budget.share(lambda: None)
        budget.take(SMALL // 2)
        assert budget.used <= SMALL
        assert len(other._topics) <= SMALL // 2 // other._size(b"stocks.s00000")
    finally:
        publisher.close()


def test_topics_of_a_run_end_with_it() -> None:
    """A stopped app keeps no topics."""
    app = App()
    made = app.publisher("a.{x}", int)
    Wired(app)
    made.publish(1, x="b")
    (outlet,) = app.compile().parts.outlets
    assert outlet._topics
    outlet.close()
    assert not outlet._topics


@pytest.mark.parametrize("subscriptions", [1, 16, 200])
def test_counters_of_topics_take_no_more_than_is_counted(subscriptions: int) -> None:
    """Topics with hundreds of subscribed prefixes are larger, and are counted as such."""
    counters, prefix = Counters(), b"p" * 200
    for length in range(subscriptions):
        counters.subscribe(prefix[:length], 0.0)
    with grown() as found:
        for number in range(500):
            counters.count(b"%s.%05d" % (prefix, number))
        counters.beats(0.0)
    assert found.bytes <= counters._budget.used + 0.05 * MIB


def test_counters_of_topics_fill_no_more_than_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters of any number of topics and subscriptions stay within their budget."""
    monkeypatch.setattr(counting, "COVERS", MIB)
    counters, prefix = Counters(), b"p" * 200
    for length in range(200):
        counters.subscribe(prefix[:length], 0.0)
    dict(
        counters.numbers(parse_marker(pack_marker(1, [b"", b"p"])))
    )  # all subscriptions are wanted, so all are counted
    with grown() as found:
        for number in range(400):
            counters.count(b"%s.%05d" % (prefix, number))
            counters.beats(number / 4)
    assert 0.9 * MIB < counters._budget.used <= MIB
    assert found.bytes < 1.1 * MIB
    (last,) = counters.count(b"p")[-1:]
    assert last.number == 400 + 1


# -- command line -------------------------------------------------------------------------------------------


def test_patterns_of_the_command_line_remember_no_long_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    """zroute tail, record and replay with patterns do not cache long topics."""
    monkeypatch.setattr("zroute.messages.topics.TOPICS_NOTED", TOPICS_NOTED // 8)
    wanted = any_of(["news.*"])
    with grown() as found:
        for number in range(200):
            assert not wanted(b"%d." % number + b"x" * 200_000)
    assert found.bytes < 0.1 * MIB
    with grown() as found:
        for number in range(TOPICS_NOTED // 8 + 500):
            assert not wanted(b"%0255d" % number)
    assert found.bytes < 10 * MIB / 8


def test_top_remembers_no_long_topics() -> None:
    """zroute top counts topics longer than 255 characters as others."""
    traffic = Traffic(kept=10)

    def take(number: int) -> None:
        topic = Topic(f"{number}." + "x" * 200_000)
        traffic.take(Envelope(topic, b"", (topic.wire,), 1.0))

    with grown() as found:
        for number in range(50):
            take(number)
    assert found.bytes < 0.1 * MIB
    measured = traffic.measure()
    assert not measured.topics
    assert measured.others is not None
    assert measured.others.messages == 50


def test_the_documented_limits() -> None:
    """The limits in the code match the documented figures."""
    assert (TOPIC_CACHE, COVERS, TOPICS_NOTED, MAX_TOPIC) == (128 * MIB, 32 * MIB, 16_384, 255)


def test_a_handler_takes_little_memory() -> None:
    """A plain handler takes at most 3.3 KB: its declaration, its plan and its part of a run, which is made once."""
    handlers = [handler(Quote) for _ in range(2_000)]
    app = App(codec="json")
    for number, each in enumerate(handlers):
        app.add_route(each, f"desk.{number}")
    app.compile()  # what all handlers share
    app = App(codec="json")
    with grown() as found:
        for number, each in enumerate(handlers):
            app.add_route(each, f"desk.{number}")
        wired = Wired(app)
    assert len(wired.stats.routes) == len(handlers)
    assert found.bytes < 3_300 * len(handlers)
