"""Scale: CPU per message with a growing number of topics or publishers.

Topics are received or published; publishers share one topic. The measurement begins after each topic and publisher has
been seen once, so it shows the lasting cost of a stream. The curve is flat while the caches hold all of them, and
rises beyond that. ``cache misses`` is the share of messages that miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from typing import Any

import zmq

from benchmarks import workloads
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

TOPICS = (100, 1_000, 5_000, 20_000, 50_000, 70_000, 100_000)
PUBLISHERS = (1, 10, 64, 100, 500, 1_000)

MISSES = "cache misses"
"""Misses per message: 0 while the caches hold everything."""


def received(topics: int, count: int, wire: str) -> Figures:
    """Read quotes to ``topics`` topics from a socket."""
    work = workloads.many_topics(max(count, topics), topics)
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
    count = max(count, topics)
    quotes = cycle([Quote(f"s{number}", 187.23, 1200) for number in range(topics)])

    def publish(number: int) -> None:
        for _ in range(0, number, BURST):
            for quote in islice(quotes, BURST):
                publication.publish(quote)
            clock.advance(0)  # the turn ends

    publish(topics)
    misses = app.stats.cache_misses
    figures = measured(partial(publish, count), count)
    missed = (app.stats.cache_misses - misses) / count
    assert len(arrived(sub)) >= count + topics
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


def _publishers(number: int) -> str:
    return f"{number:,} publisher{'s' * (number > 1)}"


def groups(scale: Scale) -> list[Group]:
    """Return the curves of received topics, published topics and publishers."""
    topics = [number for number in TOPICS if number <= scale.topics_seen]
    senders = [number for number in PUBLISHERS if number <= scale.topics_seen // 10]

    def curve(measure: Any, wire: str) -> tuple[Contestant, ...]:
        return tuple(Contestant(f"{number:,} topics", partial(measure, number, scale.count, wire)) for number in topics)

    return [
        *(
            Group(
                f"scale-received-{wire}", f"receive, topics in turn, {wire} wire", curve(received, wire), "100 topics"
            )
            for wire in ("plain", "tracked")
        ),
        *(
            Group(
                f"scale-published-{wire}", f"publish, topics in turn, {wire} wire", curve(published, wire), "100 topics"
            )
            for wire in ("plain", "tracked")
        ),
        Group(
            "scale-publishers",
            "receive, publishers of one topic in turn, tracked wire, without sockets",
            tuple(Contestant(_publishers(number), partial(publishers, number, scale.count)) for number in senders),
            _publishers(1),
        ),
    ]
