"""Growth: CPU per message with a growing number of topics, publishers, patterns or subscribers.

Topics are received or published; publishers share one topic; patterns are matched without a cache; subscribers all get
the messages of one publisher. The measurement begins after each topic and publisher has been seen, so it shows the
lasting cost of a stream. The curve is flat while the caches hold all of them. With a million topics in turn, each
message misses: its cost is that of a first message, including the removal of old entries. ``cache misses`` is the share
of messages that miss.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice, repeat
from typing import Any

import attrs
import zmq

from benchmarks import matching, publish, workloads
from benchmarks.feeds import Feed
from benchmarks.publish import ALONE, BY_SYMBOL, ENDPOINT, arrived, in_bursts, publishing, quotes_of, subscriber
from benchmarks.receive import Counter, StillReactor, by_hand, read_all, reading
from benchmarks.running import Contestant, Figures, Group, measured
from benchmarks.workloads import BY_HAND, NUL, PLAIN, QUOTE, TOPIC, TRACKED, Quote, Scale, encoder
from tests.pure import Wired
from zroute import App
from zroute.messages.codecs import JSON
from zroute.messages.control import Statement
from zroute.messages.wire import FIXED, Kind, pack_head

__all__ = ["MISSES", "groups"]

TOPICS = (1, 100, 10_000, 50_000, 100_000, 1_000_000)
PEERS = (1, 10, 100, 1_000)
"""The numbers of publishers and of subscribers."""
PATTERNS = (10, 1_000, 100_000)

ROUNDS = 3

_HELD = 100_000
"""The largest number of topics that the caches hold. Only the plain wire is measured with more."""
_FILLS = 200_000
"""The number of topics that fill the caches. More topics are not seen twice: each message then misses."""
_MISSING = 50_000
"""The measured messages if each message misses."""
_PUBLISHED = 500
"""The least number of messages to many subscribers, each of whom gets all of them."""

MISSES = "cache misses"
"""Misses per message: 0 while the caches hold everything."""


def received_by_hand(topics: int, count: int) -> Figures:
    """Read the quotes with the hand-written loop, and a dict of all topics."""
    return by_hand(attrs.evolve(workloads.many_topics(_messages(topics, count), topics), first=min(topics, _FILLS)))


def received(topics: int, count: int, wire: str) -> Figures:
    """Read quotes to ``topics`` topics from a socket."""
    work = attrs.evolve(workloads.many_topics(_messages(topics, count), topics), first=min(topics, _FILLS))
    feed = Feed(work)
    app = App(sub=feed.endpoint, codec=work.codec, context=feed.context)
    counter = Counter()
    app.subscribe(*work.patterns)(counter.handler(work.schema))
    with reading(app, StillReactor(), feed.endpoint) as sub:
        feed.fill_counted() if wire == "tracked" else feed.fill()
        read_all(sub, lambda: counter.seen, work.first)
        before, misses = counter.seen, app.stats.cache_misses
        figures = measured(partial(read_all, sub, lambda: counter.seen, work.total), work.total - before)
        missed = (app.stats.cache_misses - misses) / (work.total - before)
    feed.close()
    return {**figures, MISSES: missed}


def published(topics: int, count: int, wire: Any) -> Figures:
    """Publish quotes of ``topics`` symbols to one subscriber.

    The quotes are frozen, so that collections of garbage visit the objects of zroute, and not a million quotes.
    """
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ENDPOINT, codec="json", wire=wire, context=context)
    publication, quotes = app.publisher(BY_SYMBOL, Quote), cycle(quotes_of(topics))
    gc.collect()
    gc.freeze()
    first, count = min(2 * topics, _FILLS), _messages(topics, count)  # a topic's second message looks up its counters
    with publishing(app, context, joined=wire == "tracked") as (clock, sub):
        in_bursts(publication.publish, islice(quotes, first), clock)
        misses = app.stats.cache_misses
        figures = measured(lambda: in_bursts(publication.publish, islice(quotes, count), clock), count)
        missed = (app.stats.cache_misses - misses) / count
        assert len(arrived(sub)) == first + count
    gc.unfreeze()
    return {**figures, MISSES: missed}


def published_by_hand(topics: int, count: int) -> Figures:
    """Publish the quotes with the hand-written loop."""
    return publish.by_hand(_messages(topics, count), "json", of_message=True, topics=topics)


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


def subscribers_by_hand(number: int, count: int) -> Figures:
    """Publish quotes to ``number`` subscribers of one topic with a hand-written loop."""
    context = _context(number)
    pub = context.socket(zmq.PUB)
    pub.bind(ENDPOINT)
    subs = [subscriber(context, ALONE) for _ in range(number)]
    for sub in subs:
        sub.connect(ENDPOINT)
    pub.get(zmq.EVENTS)  # libzmq reads the subscriptions now, not at a later message
    encode, send, start, count = encoder("json"), pub.send, TOPIC + NUL, max(count // number, _PUBLISHED)

    def publish() -> None:
        for _ in range(count):
            send(start + encode(QUOTE))

    figures = measured(publish, count)
    _check(subs, count)
    context.destroy(linger=0)
    return figures


def subscribers(number: int, count: int) -> Figures:
    """Publish quotes to ``number`` subscribers of one topic, on the tracked wire."""
    context, count = _context(number), max(count // number, _PUBLISHED)
    app = App(pub=ENDPOINT, codec="json", context=context)
    publication = app.publisher(TOPIC.decode(), Quote)
    others = [subscriber(context, ALONE) for _ in range(number - 1)]
    with publishing(app, context, joined=True, others=others) as (clock, sub):
        figures = measured(lambda: in_bursts(publication.publish, repeat(QUOTE, count), clock), count)
        _check([sub, *others], count)
    return figures


def _context(number: int) -> zmq.Context[Any]:
    """Return a context for ``number`` subscribers and a publisher."""
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, number + 10)
    return context


def _check(subs: Iterable[zmq.Socket[bytes]], count: int) -> None:
    """Check that each subscriber has all messages."""
    assert {len(arrived(sub)) for sub in subs} == {count}


def _too_few_files() -> str | None:
    """Raise the limit of open files of this process; return a reason if it stays too low, or None."""
    if sys.platform == "win32":
        return None
    import resource

    needed = 2 * max(PEERS) + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or soft >= needed:
        return None
    if hard < needed:
        return f"this process may open only {hard} files, not {needed}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return None


def _messages(topics: int, count: int) -> int:
    """Return the number of measured messages: at least one of each topic, unless each message misses."""
    return max(count, topics) if topics <= _HELD else min(count, _MISSING)


def _curve(
    name: str, title: str, curve: str, what: str, numbers: Sequence[int], measure: Callable[[int], Figures]
) -> Group:
    made = tuple(
        Contestant(f"{number:,} {what}{'s' * (number > 1)}", partial(measure, number), at=number, curve=curve)
        for number in numbers
    )
    return Group(f"growth-{name}", title, made, made[0].name, rounds=ROUNDS)


def _subscribers(numbers: Sequence[int], count: int) -> Group:
    made = tuple(
        Contestant(
            f"{name}, {number:,} subscriber{'s' * (number > 1)}",
            partial(measure, number, count),
            absent=_too_few_files(),
            at=number,
            curve=name,
        )
        for name, measure in ((BY_HAND, subscribers_by_hand), (TRACKED, subscribers))
        for number in numbers
    )
    return Group("growth-subscribers", "publish, subscribers of one topic", made, made[0].name, rounds=ROUNDS)


def groups(scale: Scale) -> list[Group]:
    """Return the curves of received topics, published topics, publishers, patterns and subscribers."""
    count, topics = scale.count, [number for number in TOPICS if number <= scale.topics_seen]
    held = [number for number in topics if number <= _HELD]
    peers = [number for number in PEERS if number <= scale.topics_seen // 10]
    patterns = [number for number in PATTERNS if number <= scale.patterns]

    def of_topics(what: str, way: str, name: str, measure: Callable[..., Figures], **options: str) -> Group:
        numbers = topics if name == PLAIN else held
        return _curve(
            f"{what}-{way}",
            f"{what}, topics in turn, {name}",
            name,
            "topic",
            numbers,
            partial(measure, count=count, **options),
        )

    return [
        of_topics("received", "by-hand", BY_HAND, received_by_hand),
        of_topics("received", "plain", PLAIN, received, wire="plain"),
        of_topics("received", "tracked", TRACKED, received, wire="tracked"),
        of_topics("published", "by-hand", BY_HAND, published_by_hand),
        of_topics("published", "plain", PLAIN, published, wire="plain"),
        of_topics("published", "tracked", TRACKED, published, wire="tracked"),
        _curve(
            "publishers",
            "received, publishers of one topic in turn, tracked wire, without sockets",
            TRACKED,
            "publisher",
            peers,
            partial(publishers, count=count),
        ),
        _curve(
            "patterns-by-hand",
            "look-up of a scattered topic in a dict, and call of its handler",
            BY_HAND,
            "pattern",
            patterns,
            matching.by_hand,
        ),
        _curve(
            "patterns",
            "route match, topic not in the cache, topics of all desks alike",
            "zroute",
            "pattern",
            patterns,
            partial(matching.measure, stream="scattered"),
        ),
        _subscribers(peers, count),
    ]
