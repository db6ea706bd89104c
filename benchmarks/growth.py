"""Growth: CPU per message with a growing number of topics, publishers or patterns.

Topics are received or published; publishers share one topic; patterns are matched without a cache. The measurement
begins after each topic and publisher has been seen once, so it shows the lasting cost of a stream. The curve is flat
while the caches hold all of them. With a million topics in turn, each message misses: its cost is that of a first
message, including the removal of old entries. ``cache misses`` is the share of messages that miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from typing import Any

import attrs
import zmq

from benchmarks import matching, workloads
from benchmarks.feeds import Feed
from benchmarks.publish import ALONE, BURST, ENDPOINT, arrived, join, subscriber
from benchmarks.receive import Counter, StillReactor, read_all, reading
from benchmarks.running import Contestant, Figures, Group, measured
from benchmarks.workloads import NUL, TOPIC, Quote, Scale
from tests.pure import Wired
from zroute import App
from zroute.endpoints import Endpoint
from zroute.messages.codecs import JSON
from zroute.messages.control import Statement
from zroute.messages.wire import FIXED, Kind, pack_head
from zroute.runtime.service import AppService

__all__ = ["MISSES", "groups"]

TOPICS = (1, 100, 10_000, 50_000, 100_000, 1_000_000)
PUBLISHERS = (1, 10, 100, 1_000)
PATTERNS = (10, 1_000, 100_000)

_FILLS = 200_000
"""The number of topics that fill the caches. More topics are not seen twice: each message then misses."""

MISSES = "cache misses"
"""Misses per message: 0 while the caches hold everything."""


def received(topics: int, count: int, wire: str) -> Figures:
    """Read quotes to ``topics`` topics from a socket."""
    first = min(topics, _FILLS)
    work = attrs.evolve(workloads.many_topics(max(count, first), topics), first=first)
    feed = Feed(work)
    app = App(sub=feed.endpoint, codec=work.codec, context=feed.context)
    counter = Counter()
    app.subscribe(*work.patterns)(counter.handler(work.schema))
    with reading(app, StillReactor(), feed.endpoint) as sub:
        feed.fill_counted(()) if wire == "tracked" else feed.fill()
        read_all(sub, lambda: counter.seen, work.first)
        before, misses = counter.seen, app.stats.cache_misses
        figures = measured(partial(read_all, sub, lambda: counter.seen, work.total), work.total - before)
        missed = (app.stats.cache_misses - misses) / (work.total - before)
    feed.close()
    return {**figures, MISSES: missed}


def published(topics: int, count: int, wire: Any) -> Figures:
    """Publish quotes of ``topics`` symbols to one subscriber."""
    context: zmq.Context[Any] = zmq.Context()
    app, clock = App(pub=ENDPOINT, codec="json", wire=wire, context=context), StillReactor()
    publication = app.publisher("stocks.{symbol}", Quote)
    service = AppService(app.compile(), clock, pub=(Endpoint(ENDPOINT, bind=True),))
    service.startService()
    sub = subscriber(context, ALONE)
    sub.connect(ENDPOINT)
    clock.advance(0)  # the app receives the subscription
    if wire == "tracked":
        join(sub, clock, service, ALONE)
    first = min(topics, _FILLS)
    count = max(count, first)
    quotes = cycle([Quote(f"s{number}", 187.23, 1200) for number in range(topics)])

    def publish(number: int) -> None:
        for _ in range(0, number, BURST):
            for quote in islice(quotes, BURST):
                publication.publish(quote)
            clock.advance(0)  # the turn ends

    publish(first)
    misses = app.stats.cache_misses
    figures = measured(partial(publish, count), count)
    missed = (app.stats.cache_misses - misses) / count
    assert len(arrived(sub)) >= count + first
    assert service.transport is not None
    assert service.transport.pub is not None
    service.transport.pub.close(0)
    context.destroy(linger=0)
    return {**figures, MISSES: missed}


def publishers(number: int, count: int) -> Figures:
    """Read quotes to one topic from ``number`` publishers, without sockets.

    All publishers are joined and counted.
    """
    app, counter = App(codec="json"), Counter()
    app.subscribe("stocks.*")(counter.handler(Quote))
    wired = Wired(app)
    prefix, marker = b"stocks.", b"marker"
    tracker = wired.accounts._tracker
    tracker.subscribe([prefix])
    tracker.join(marker, 0.0)
    for epoch in range(number):
        tracker.stated(epoch, marker, Statement(0, 1, f"p{epoch}", False, ((prefix, 0),)))
    heads = [pack_head(kind=Kind.DATA, codec=JSON.number, span=len(prefix), epoch=epoch) for epoch in range(number)]
    body, rounds = workloads.quotes(1).body, -(-count // number)

    def frames() -> Iterator[bytes]:
        for round_ in range(1, rounds + 2):
            for head in heads:
                yield TOPIC + NUL + FIXED.pack(head, round_, 1) + body

    waiting = iter(list(frames()))

    def drain(messages: int) -> None:
        for at in range(0, messages, 256):
            wired.table.receive(lambda _flags: next(waiting), lambda: 0, min(256, messages - at))

    drain(number)
    misses = wired.stats.cache_misses
    figures = measured(partial(drain, rounds * number), rounds * number)
    assert counter.seen == (rounds + 1) * number
    assert wired.stats.lost == wired.stats.duplicate == 0
    return {**figures, MISSES: (wired.stats.cache_misses - misses) / (rounds * number)}


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}"


def groups(scale: Scale) -> list[Group]:
    """Return the curves of received topics, published topics, publishers and patterns."""
    topics = [number for number in TOPICS if number <= scale.topics_seen]
    senders = [number for number in PUBLISHERS if number <= scale.topics_seen // 10]

    def curve(measure: Any, wire: str) -> tuple[Contestant, ...]:
        return tuple(
            Contestant(_many(number, "topic"), partial(measure, number, scale.count, wire)) for number in topics
        )

    return [
        *(
            Group(f"growth-received-{wire}", f"receive, topics in turn, {wire} wire", curve(received, wire), "1 topic")
            for wire in ("plain", "tracked")
        ),
        *(
            Group(
                f"growth-published-{wire}", f"publish, topics in turn, {wire} wire", curve(published, wire), "1 topic"
            )
            for wire in ("plain", "tracked")
        ),
        Group(
            "growth-publishers",
            "receive, publishers of one topic in turn, tracked wire, without sockets",
            tuple(
                Contestant(_many(number, "publisher"), partial(publishers, number, scale.count)) for number in senders
            ),
            _many(1, "publisher"),
        ),
        Group(
            "growth-patterns",
            "route match, topic not in the cache, topics of all desks alike",
            tuple(
                Contestant(_many(number, "pattern"), partial(matching.measure, number, "scattered"))
                for number in PATTERNS
                if number <= scale.patterns
            ),
            _many(10, "pattern"),
        ),
    ]
