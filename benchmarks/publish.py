"""Publishing: CPU per message of the publishing thread.

The subscriber is real, has room for everything and is in the same context. It reads only after the measurement, to
check all messages. On the tracked wire its subscriptions are live, so each message carries its numbers. zroute
publishes in bursts, because an app checks its socket once in each turn of the reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle, islice
from typing import Any

import zmq

from benchmarks import peers_c, workloads
from benchmarks.receive import StillReactor
from benchmarks.running import Contestant, Figures, Group, measured
from benchmarks.workloads import BY_HAND, NUL, PLAIN, QUOTE, TOPIC, TRACKED, Quote, Scale, encoder
from zroute import App, History
from zroute.endpoints import Endpoint
from zroute.messages.control import pack_marker
from zroute.messages.wire import parse_header
from zroute.runtime.service import AppService

__all__ = [
    "ALONE",
    "BESIDE_COALESCED",
    "BESIDE_KEPT",
    "BURST",
    "BY_SYMBOL",
    "ENDPOINT",
    "FOUR",
    "KEPT",
    "ONE",
    "SEND_MULTIPART",
    "WITH_HISTORY",
    "arrived",
    "groups",
    "in_bursts",
    "publishing",
    "quotes_of",
    "subscriber",
    "texts",
]

ENDPOINT = "inproc://published"
BY_SYMBOL = "stocks.{symbol}"
BURST = 256
"""Messages published in one turn."""

ALONE = (b"stocks.",)
OVERLAPPING = (b"s", b"stocks", b"stocks.", TOPIC)
OVERLAPPING_ALL = (b"s", b"stocks", b"stocks.", b"stocks.s")
"""Four subscriptions that all cover each of several topics."""

SEND_MULTIPART = "send_multipart by hand"
ONE, FOUR = f"{TRACKED}, one live subscription", f"{TRACKED}, four overlapping ones"
BESIDE_KEPT, BESIDE_COALESCED = f"{TRACKED}, beside keep='last'", f"{TRACKED}, beside coalesce=True"

WITH_HISTORY = f"{TRACKED}, with a history"
KEPT = 10_000
"""The messages that a history keeps."""
_A_MESSAGE = 1e-4
"""The seconds between two messages of a publisher with a history, whose ticks move its messages to blocks."""


def subscriber(context: zmq.Context[Any], subscriptions: Sequence[bytes]) -> zmq.Socket[bytes]:
    """Return an unconnected SUB socket that has room for everything."""
    sub: zmq.Socket[bytes] = context.socket(zmq.SUB)
    sub.set(zmq.RCVHWM, 0)  # inproc has one queue, and it is unbounded if one end has no mark
    for prefix in subscriptions:
        sub.subscribe(prefix)
    return sub


def arrived(sub: zmq.Socket[bytes]) -> list[bytes]:
    """Return the bodies of all messages that arrived, without the topic."""
    found = []
    with suppress(zmq.Again):
        while True:
            found.append(sub.recv(zmq.DONTWAIT).partition(NUL)[2])
    return found


def join(sub: zmq.Socket[bytes], clock: StillReactor, service: AppService, subscriptions: Sequence[bytes]) -> None:
    """Send a marker and read its answer.

    The publisher counts the subscriptions from then on.
    """
    sub.subscribe(pack_marker(1 << 16, subscriptions))
    assert service.transport is not None
    assert service.transport.pub is not None
    for _ in range(100):
        service.transport.pub.poke()  # this reactor watches no sockets
        clock.advance(0)
        if arrived(sub):
            return
    raise AssertionError("the marker was not answered")


def quotes_of(topics: int) -> list[Quote]:
    """Return one quote for each topic."""
    return [QUOTE] if topics == 1 else [Quote(f"s{number}", 187.23, 1200) for number in range(topics)]


def by_hand(count: int, codec: str, *, of_message: bool = False, topics: int = 1, multipart: bool = False) -> Figures:
    """Encode and send; with ``of_message``, to a topic that the message names.

    With ``multipart``, topic and body are two parts of a message.
    """
    context: zmq.Context[Any] = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.bind(ENDPOINT)
    sub = subscriber(context, ALONE)
    sub.connect(ENDPOINT)
    encode, send, send_multipart, quotes = encoder(codec), pub.send, pub.send_multipart, cycle(quotes_of(topics))

    def constant() -> None:
        start = TOPIC + NUL
        for _ in range(count):
            send(start + encode(QUOTE))

    def named() -> None:
        for quote in islice(quotes, count):
            send(b"stocks." + quote.symbol.encode() + NUL + encode(quote))

    def parts() -> None:
        for _ in range(count):
            send_multipart((TOPIC, encode(QUOTE)))

    def named_parts() -> None:
        for quote in islice(quotes, count):
            send_multipart((b"stocks." + quote.symbol.encode(), encode(quote)))

    loops = {(False, False): constant, (True, False): named, (False, True): parts, (True, True): named_parts}
    figures = measured(loops[of_message, multipart], count)
    assert len(arrived(sub)) == count * (1 + multipart)
    context.destroy(linger=0)
    return figures


@contextmanager
def publishing(
    app: App,
    context: zmq.Context[Any],
    subscriptions: Sequence[bytes] = ALONE,
    *,
    joined: bool,
    others: Iterable[zmq.Socket[bytes]] = (),
) -> Iterator[tuple[StillReactor, zmq.Socket[bytes]]]:
    """Run ``app``; yield its clock and a subscriber, which has ``joined`` or only subscribed.

    The ``others`` are further subscribers. Closes the sockets of the context at the end.
    """
    clock = StillReactor()
    service = AppService(app.compile(), clock, pub=(Endpoint(ENDPOINT, bind=True),))
    service.startService()
    sub = subscriber(context, subscriptions)
    for each in (*others, sub):
        each.connect(ENDPOINT)
    clock.advance(0)  # the app receives the subscriptions
    if joined:
        join(sub, clock, service, subscriptions)
    yield clock, sub
    assert service.transport is not None
    assert service.transport.pub is not None
    service.transport.pub.close(0)
    context.destroy(linger=0)


def in_bursts(
    publish: Callable[[Any], object], messages: Iterable[Any], clock: StillReactor, burst: int = BURST
) -> None:
    """Publish the messages, and end the reactor's turn after each ``burst``."""
    waiting = iter(messages)
    while some := tuple(islice(waiting, burst)):
        for message in some:
            publish(message)
        clock.advance(0)


def zroute_publish(
    count: int,
    codec: str,
    wire: Any,
    subscriptions: Sequence[bytes] = ALONE,
    *,
    pattern: str = TOPIC.decode(),
    topics: int = 1,
    burst: int = BURST,
    beside: Mapping[str, Any] | None = None,
) -> Figures:
    """Measure ``publication.publish`` of a running app.

    With several ``topics``, the measurement begins after two messages of each: the first two create what the others
    share. ``beside`` has the options of a second publisher in the app.
    """
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ENDPOINT, codec=codec, wire=wire, context=context)
    publication = app.publisher(pattern, Quote)
    other = app.publisher("orders.{symbol}", Quote, **beside) if beside is not None else None
    tracked, first, quotes = wire == "tracked", 2 * topics if topics > 1 else 0, cycle(quotes_of(topics))
    with publishing(app, context, subscriptions, joined=tracked) as (clock, sub):
        if other is not None:
            other.publish(QUOTE)
        in_bursts(publication.publish, islice(quotes, first), clock)
        figures = measured(lambda: in_bursts(publication.publish, islice(quotes, count), clock, burst), count)
        _check(arrived(sub), first + count, len(subscriptions) if tracked else 0)
    return figures


def texts(count: int, size: int, *, kept: int = 0) -> Figures:
    """Measure ``publish`` of JSON texts of ``size`` bytes, to one subscriber.

    ``kept`` is the number of messages in the publisher's history, which is full when the measurement begins; 0 for no
    history.
    """
    context: zmq.Context[Any] = zmq.Context()
    app, text = App(pub=ENDPOINT, codec="json", context=context), "x" * (size - 2)
    publication = app.publisher(TOPIC.decode(), str, history=History(messages=kept) if kept else None)
    with publishing(app, context, joined=True) as (clock, sub):

        def publish(many: int) -> None:
            for done in range(0, many, BURST):
                now = min(BURST, many - done)
                for _ in range(now):
                    publication.publish(text)
                clock.advance(now * _A_MESSAGE)

        publish(KEPT)
        before = len(arrived(sub))
        figures = measured(partial(publish, count), count)
        assert len(arrived(sub)) >= count, before  # with beats
    return figures


def _check(arrived: list[bytes], count: int, counted: int) -> None:
    """Check that all messages arrived.

    The last one must have the last number of each counted subscription.
    """
    assert len(arrived) == count, (len(arrived), count)
    if counted and count:
        numbers = [number for _, number in parse_header(arrived[-1]).counters]
        assert numbers == [count] * counted, numbers


def _group(count: int, codec: str) -> Group:
    hand, zroute = partial(by_hand, count, codec), partial(zroute_publish, count, codec)
    ours: list[tuple[str, Callable[[], Figures]]] = [
        (BY_HAND, hand),
        (PLAIN, partial(zroute, "plain")),
        (ONE, partial(zroute, "tracked")),
        (FOUR, partial(zroute, "tracked", OVERLAPPING)),
        (SEND_MULTIPART, partial(hand, multipart=True)),
        (f"{BY_HAND}, topic from the message", partial(hand, of_message=True)),
        (f"{PLAIN}, topic from the message", partial(zroute, "plain", pattern=BY_SYMBOL)),
        (f"{TRACKED}, one message a turn", partial(zroute_publish, count // 2, codec, "tracked", burst=1)),
    ]
    size = workloads.quotes(1, codec).size
    return Group(
        f"publish-{codec}",
        f"publish, 46-byte quotes as {'JSON' if codec == 'json' else codec}, {BURST} a turn",
        (peers_c.contestant("publish", count, size), *(Contestant(name, measure) for name, measure in ours)),
        BY_HAND,
    )


def _many_topics(count: int, topics: int) -> Group:
    """Compare publishers to several topics, which the messages name."""
    hand = partial(by_hand, count, "json", of_message=True, topics=topics)
    zroute = partial(zroute_publish, count, "json", pattern=BY_SYMBOL, topics=topics)
    ours: list[tuple[str, Callable[[], Figures]]] = [
        (BY_HAND, hand),
        (PLAIN, partial(zroute, "plain")),
        (ONE, partial(zroute, "tracked")),
        (FOUR, partial(zroute, "tracked", OVERLAPPING_ALL)),
        (SEND_MULTIPART, partial(hand, multipart=True)),
    ]
    return Group(
        f"publish-{topics}-topics",
        f"publish, 46-byte quotes as JSON, {topics} topics in turn, topic from the message",
        tuple(Contestant(name, measure) for name, measure in ours),
        BY_HAND,
    )


def _beside(count: int) -> Group:
    """Compare a publisher alone in its app with one beside others.

    The other publishers have unrelated topics, and their messages take more steps.
    """
    others: dict[str, Mapping[str, Any] | None] = {
        TRACKED: None,
        BESIDE_KEPT: {"keep": "last"},
        BESIDE_COALESCED: {"coalesce": True},
    }
    return Group(
        "publish-beside",
        "publish, 46-byte quotes as JSON, to topics that another publisher of the app has nothing to do with",
        tuple(
            Contestant(name, partial(zroute_publish, count, "json", "tracked", beside=options))
            for name, options in others.items()
        ),
        TRACKED,
    )


def _with_history(count: int, size: int) -> Group:
    kept = {TRACKED: 0, WITH_HISTORY: KEPT}
    return Group(
        f"publish-history-{size}",
        f"publish, texts of {size:,} bytes as JSON, {KEPT:,} of them kept in a history",
        tuple(Contestant(name, partial(texts, count, size, kept=many)) for name, many in kept.items()),
        TRACKED,
    )


def groups(scale: Scale) -> list[Group]:
    """Return all groups of publishing."""
    return [
        _group(scale.count, "json"),
        _many_topics(scale.count, 100),
        _group(scale.count, "msgpack"),
        _beside(scale.count),
        *(_with_history(scale.count, size) for size in (60, 1_024)),
    ]
