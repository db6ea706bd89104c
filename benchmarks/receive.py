"""Receiving: CPU per message of the reading thread, with a full socket queue.

Each contestant decodes the bodies and calls a handler that counts. The others are compared with the hand-written loop,
which has no other features and stops at the first unexpected message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import attrs
import msgpack
import zmq
from twisted.internet.task import Clock

from benchmarks import peers_c, peers_nats, workloads
from benchmarks.feeds import Feed, plain_subscriber
from benchmarks.running import THREAD, Contestant, Figures, Group, measured
from benchmarks.workloads import (
    ASYNCIO,
    BY_HAND,
    MULTIPART,
    NUL,
    PLAIN,
    TRACKED,
    TXZMQ,
    Scale,
    Workload,
    decoder,
)
from zroute import App
from zroute.endpoints import Endpoint
from zroute.runtime.service import AppService

__all__ = [
    "PLAIN_HANDLER",
    "Counter",
    "StillReactor",
    "by_hand",
    "groups",
    "loop",
    "read",
    "read_all",
    "reading",
    "zroute_receive",
]

_TURNS = 100
"""The turns of reading without a message after which a message counts as missing."""

PLAIN_HANDLER = f"{TRACKED}, plain handler"
"""The reference of an async handler that does not wait."""

OVERLAPPING = (b"stocks", b"stocks.A", b"s")
"""Subscriptions of others: with the reader's own ``stocks.``, four live subscriptions cover the topic."""


# -- the hand-written loop ----------------------------------------------------------------------------------


class Counter:
    """Handlers that only count; all contestants use them."""

    def __init__(self) -> None:
        self.seen = 0

    def handler(self, schema: Any = Any, *, is_async: bool = False) -> Callable[[Any], Any]:
        """Return a plain or async handler, as a user would write it."""

        def handler(message: Any) -> None:
            self.seen += 1

        async def handler_async(message: Any) -> None:
            self.seen += 1

        chosen = handler_async if is_async else handler
        chosen.__annotations__["message"] = schema
        return chosen


def by_hand(work: Workload) -> Figures:
    """Measure a loop of recv, partition, decode and call."""
    feed = Feed(work)
    sub = plain_subscriber(feed)
    feed.fill()
    counter = Counter()
    run = loop if work.handlers == 1 else loop_for_many
    handlers = [counter.handler() for _ in range(work.handlers)]
    run(sub, work, handlers, work.first)
    figures = measured(partial(run, sub, work, handlers, work.count), work.count)
    assert counter.seen == work.total * work.handlers
    feed.close()
    return figures


def loop(sub: zmq.Socket[bytes], work: Workload, handlers: list[Callable[[Any], None]], count: int) -> None:
    """Run the hand-written loop."""
    recv, decode, dontwait = sub.recv, decoder(work.schema, work.codec), zmq.DONTWAIT
    called = dict.fromkeys(work.topics, handlers[0])
    if work.schema is bytes:
        for _ in range(count):
            topic, _, body = recv(dontwait).partition(NUL)
            called[topic](body)
        return
    for _ in range(count):
        topic, _, body = recv(dontwait).partition(NUL)
        called[topic](decode(body))


def by_hand_multipart(work: Workload) -> Figures:
    """Measure a loop of recv_multipart, decode and call, as most users of pyzmq write it."""
    feed, counter = Feed(work), Counter()
    sub = plain_subscriber(feed)
    feed.fill_multipart()
    decode, called = decoder(work.schema, work.codec), dict.fromkeys(work.topics, counter.handler())

    def loop(count: int) -> None:
        recv_multipart, dontwait = sub.recv_multipart, zmq.DONTWAIT
        for _ in range(count):
            topic, body = recv_multipart(dontwait)
            called[topic](decode(body))

    loop(work.first)
    figures = measured(partial(loop, work.count), work.count)
    assert counter.seen == work.total
    assert not sub.poll(0), "messages are left"
    feed.close()
    return figures


def by_hand_asyncio(work: Workload, *, is_async: bool = False) -> Figures:
    """Measure the hand-written loop with ``await`` before recv and, with ``is_async``, before the handler."""
    import asyncio

    import zmq.asyncio

    feed, counter = Feed(work), Counter()
    sub = zmq.asyncio.Socket(shadow=plain_subscriber(feed))
    feed.fill()
    decode, called = decoder(work.schema, work.codec), dict.fromkeys(work.topics, counter.handler(is_async=is_async))

    async def loop(count: int) -> None:
        for _ in range(count):
            topic, _, body = (await sub.recv()).partition(NUL)
            called[topic](decode(body))

    async def loop_async(count: int) -> None:
        for _ in range(count):
            topic, _, body = (await sub.recv()).partition(NUL)
            await called[topic](decode(body))

    run = loop_async if is_async else loop
    with asyncio.Runner() as runner:
        runner.run(run(work.first))
        figures = measured(lambda: runner.run(run(work.count)), work.count)
    assert counter.seen == work.total
    sub.close(0)
    feed.close()
    return figures


def loop_for_many(sub: zmq.Socket[bytes], work: Workload, handlers: list[Callable[[Any], None]], count: int) -> None:
    """Run the hand-written loop for several functions that want each message."""
    recv, decode, dontwait = sub.recv, decoder(work.schema, work.codec), zmq.DONTWAIT
    called = dict.fromkeys(work.topics, tuple(handlers))
    for _ in range(count):
        topic, _, body = recv(dontwait).partition(NUL)
        message = decode(body)
        for handler in called[topic]:
            handler(message)


# -- zroute -------------------------------------------------------------------------------------------------


class StillReactor(Clock):
    """A reactor that never turns by itself: the benchmark calls `doRead`."""

    def addReader(self, reader: object) -> None:
        """Ignore the reader, because no descriptor is watched here."""

    def removeReader(self, reader: object) -> None:
        """Ignore the reader; see `addReader`."""


@contextmanager
def reading(app: App, clock: StillReactor, endpoint: str) -> Iterator[Any]:
    """Run ``app`` with its subscriptions and marker sent; yield its connection."""
    service = AppService(app.compile(), clock, sub=(Endpoint(endpoint, bind=False),))
    service.startService()
    assert service.transport is not None
    clock.advance(0)
    sub = service.transport.sub
    assert sub is not None
    yield sub
    sub.close(0)


def read(sub: Any, seen: Callable[[], int], work: Workload) -> Figures:
    """Read everything and measure the messages after the first ``work.first``."""
    read_all(sub, seen, work.first)
    return measured(partial(read_all, sub, seen, work.total), work.total - seen())


def read_all(sub: Any, seen: Callable[[], int], total: int) -> None:
    """Read until ``total`` messages are handled.

    Raises LookupError if a message is missing. A busy machine may end a turn of reading before its first message.
    """
    while (before := seen()) < total:
        for _ in range(_TURNS):
            sub.doRead()
            if seen() > before:
                break
        else:
            raise LookupError(f"only {before} of {total} messages arrived")


def zroute_receive(
    work: Workload, wire: str = "plain", *, others: Iterable[bytes] = (), is_async: bool = False, many: int = 1
) -> Figures:
    """Measure the connection, the table and the handlers, as in a running app.

    ``many`` is the number of messages in each tracked frame.
    """
    feed = Feed(work)
    app = App(sub=feed.endpoint, codec=work.codec, context=feed.context)
    counter = Counter()
    for _ in range(work.handlers):
        app.subscribe(*work.patterns)(counter.handler(work.schema, is_async=is_async))
    with reading(app, StillReactor(), feed.endpoint) as sub:
        if wire == "plain":
            feed.fill()
        elif many == 1:
            feed.fill_counted(others)
        else:
            feed.fill_coalesced(many)
        figures = read(sub, lambda: counter.seen // work.handlers, work)
        assert counter.seen == work.total * work.handlers
        assert app.stats.joins == (wire == "tracked"), "a tracked figure needs a subscriber that has joined"
        assert app.stats.lost == 0
    feed.close()
    return figures


# -- txZMQ --------------------------------------------------------------------------------------------------


def txzmq_receive(work: Workload, library: str = "txzmq", *, parse: Callable[[bytes], Any] | None = None) -> Figures:
    """Measure a SUB connection with a dict of handlers, as its users write it.

    ``library`` is txZMQ, or zroute's module with the same API.
    """
    module: Any = import_module(library)
    feed = Feed(work)
    counter = Counter()
    handlers = {topic: [counter.handler() for _ in range(work.handlers)] for topic in work.topics}
    read_body = parse or {"json": json.loads, "msgpack": msgpack.unpackb, "raw": bytes}[work.codec]

    class Subscriber(module.ZmqSubConnection):  # type: ignore[misc]
        highWaterMark = 0  # noqa: N815

        def gotMessage(self, message: bytes, tag: bytes) -> None:
            parsed = read_body(message)
            for handler in handlers[tag]:
                handler(parsed)

    factory = module.ZmqFactory()
    own, factory.context = factory.context, feed.context
    sub = Subscriber(factory, module.ZmqEndpoint("connect", feed.endpoint))
    for prefix in {pattern.rstrip("*").encode() for pattern in work.patterns}:
        sub.subscribe(prefix)
    feed.fill()
    figures = read(sub, lambda: counter.seen // work.handlers, work)
    sub.shutdown()
    feed.close()
    own.term()
    return figures


# -- groups -------------------------------------------------------------------------------------------------


def _txzmq(name: str, measure: Callable[[], Figures]) -> Contestant:
    return Contestant(name, measure, absent=None if find_spec("txzmq") else "txZMQ is not installed (the extra `dev`)")


def _ours(work: Workload) -> tuple[Contestant, ...]:
    return (
        Contestant(BY_HAND, partial(by_hand, work)),
        Contestant(PLAIN, partial(zroute_receive, work)),
        Contestant(TRACKED, partial(zroute_receive, work, "tracked")),
    )


def _typed(name: str, title: str, work: Workload) -> Group:
    """Return a group of zroute and all other contestants."""
    txzmq = {"json": TXZMQ, "msgpack": "txZMQ with msgpack", "raw": "txZMQ"}[work.codec]
    return Group(
        name,
        f"receive, {title}",
        (
            *((peers_c.contestant("receive", work.count, work.size),) if len(work.topics) == 1 else ()),
            *_ours(work),
            Contestant(MULTIPART, partial(by_hand_multipart, work)),
            _txzmq(txzmq, partial(txzmq_receive, attrs.evolve(work, first=0))),  # it reads all messages at once
            Contestant(ASYNCIO, partial(by_hand_asyncio, work)),
            *peers_nats.receivers(work),
        ),
        BY_HAND,
    )


def groups(scale: Scale) -> list[Group]:
    """Return all groups of receiving."""
    quotes = workloads.quotes(scale.count)
    return [
        _typed("receive-json", "46-byte quotes typed from JSON", quotes),
        _typed("receive-100-topics", "the same quotes, 100 topics in turn", workloads.many_topics(scale.count, 100)),
        _typed("receive-msgpack", "the same quotes typed from msgpack", workloads.quotes(scale.count, "msgpack")),
        _typed("receive-1kb", "1 KB typed from JSON", workloads.news(scale.count)),
        _typed("receive-1mb", "1,000,000 bytes as they are", workloads.large(scale.count)),
        _few("topics", f"{scale.topics:,} topics in turn", workloads.many_topics(scale.count, scale.topics)),
        _few("new-topics", f"the first of each of {scale.topics:,} topics", workloads.new_topics(scale.topics)),
        _few("patterns", f"{scale.patterns:,} patterns", workloads.many_patterns(scale.count, scale.patterns)),
        _handlers(quotes),
        _async(quotes),
        _overlapping(quotes),
        _names_of_txzmq(quotes),
    ]


def _few(name: str, title: str, work: Workload) -> Group:
    return Group(name, f"receive, JSON quotes, {title}", _ours(work), BY_HAND)


def _handlers(quotes: Workload) -> Group:
    one, ten = quotes, Workload(quotes.count, quotes.schema, quotes.codec, quotes.body, handlers=10)
    contestants = (
        Contestant(f"{BY_HAND}, one handler", partial(by_hand, one)),
        Contestant(BY_HAND, partial(by_hand, ten)),
        Contestant(f"{PLAIN}, one handler", partial(zroute_receive, one)),
        Contestant(PLAIN, partial(zroute_receive, ten)),
        Contestant(TRACKED, partial(zroute_receive, ten, "tracked")),
        _txzmq(TXZMQ, partial(txzmq_receive, ten)),
    )
    return Group("handlers", "receive, JSON quotes, ten handlers on each", contestants, BY_HAND)


def _async(quotes: Workload) -> Group:
    work = Workload(quotes.count // 2, quotes.schema, quotes.codec, quotes.body)
    contestants = (
        Contestant(BY_HAND, partial(by_hand, work)),
        Contestant("hand-written loop, zmq.asyncio", partial(by_hand_asyncio, work, is_async=True)),
        Contestant(PLAIN, partial(zroute_receive, work, is_async=True)),
        Contestant(TRACKED, partial(zroute_receive, work, "tracked", is_async=True)),
        Contestant(PLAIN_HANDLER, partial(zroute_receive, work, "tracked")),
        *peers_nats.receivers(work),
    )
    return Group("async", "receive, JSON quotes, async def handlers beside plain ones", contestants, BY_HAND)


def _overlapping(quotes: Workload) -> Group:
    contestants = (
        Contestant(BY_HAND, partial(by_hand, quotes)),
        Contestant(TRACKED, partial(zroute_receive, quotes, "tracked")),
        *(
            Contestant(f"{TRACKED}, {word}", partial(zroute_receive, quotes, "tracked", others=OVERLAPPING[:others]))
            for word, others in (("two", 1), ("four", 3))
        ),
    )
    title = "receive, JSON quotes, two and four live subscriptions cover the topic"
    return Group("overlapping", title, contestants, BY_HAND)


def _names_of_txzmq(quotes: Workload) -> Group:
    contestants = (
        Contestant(BY_HAND, partial(by_hand, quotes)),
        Contestant("zroute.txzmq, body unread", partial(txzmq_receive, quotes, "zroute.txzmq", parse=bytes), THREAD),
        _txzmq("txZMQ, body unread", partial(txzmq_receive, quotes, parse=bytes)),
    )
    return Group("txzmq", "receive, JSON quotes, a program of txZMQ's", contestants, BY_HAND)
