"""Publishing: CPU per message of the publishing thread.

The subscriber is real, has room for everything and is in the same context. It reads only after the measurement, to
check all messages. On the tracked wire its subscriptions are live, so each message carries its numbers. zroute
publishes in bursts, because an app checks its socket once in each turn of the reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
    "ENDPOINT",
    "FOUR",
    "KEPT",
    "ONE",
    "WITH_HISTORY",
    "arrived",
    "groups",
    "subscriber",
    "texts",
]

ENDPOINT = "inproc://published"
BURST = 256
"""Messages published in one turn."""

ALONE = (b"stocks.",)
OVERLAPPING = (b"s", b"stocks", b"stocks.", TOPIC)
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
    while sub.poll(0):
        found.append(sub.recv().partition(NUL)[2])
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


def by_hand(count: int, codec: str, *, of_message: bool = False) -> Figures:
    """Encode and send; with ``of_message``, to a topic that the message names."""
    context: zmq.Context[Any] = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.bind(ENDPOINT)
    sub = subscriber(context, ALONE)
    sub.connect(ENDPOINT)
    encode, send = encoder(codec), pub.send

    def constant() -> None:
        start = TOPIC + NUL
        for _ in range(count):
            send(start + encode(QUOTE))

    def named() -> None:
        for _ in range(count):
            send(b"stocks." + QUOTE.symbol.encode() + NUL + encode(QUOTE))

    figures = measured(named if of_message else constant, count)
    assert len(arrived(sub)) == count
    context.destroy(linger=0)
    return figures


def zroute_publish(
    count: int,
    codec: str,
    wire: Any,
    subscriptions: Sequence[bytes] = ALONE,
    *,
    pattern: str = TOPIC.decode(),
    burst: int = BURST,
    beside: Mapping[str, Any] | None = None,
) -> Figures:
    """Measure ``publication.publish`` of a running app.

    ``beside`` has the options of a second publisher in the app.
    """
    context: zmq.Context[Any] = zmq.Context()
    app, clock = App(pub=ENDPOINT, codec=codec, wire=wire, context=context), StillReactor()
    publication = app.publisher(pattern, Quote)
    other = app.publisher("orders.{symbol}", Quote, **beside) if beside is not None else None
    service = AppService(app.compile(), clock, pub=(Endpoint(ENDPOINT, bind=True),))
    service.startService()
    sub = subscriber(context, subscriptions)
    sub.connect(ENDPOINT)
    clock.advance(0)  # the app receives the subscriptions
    if wire == "tracked":
        join(sub, clock, service, subscriptions)
    if other is not None:
        other.publish(QUOTE)

    def publish() -> None:
        left = count
        while left:
            now = min(left, burst)
            for _ in range(now):
                publication.publish(QUOTE)
            left -= now
            clock.advance(0)  # the turn ends

    figures = measured(publish, count)
    _check(arrived(sub), count, len(subscriptions) if wire == "tracked" else 0)
    assert service.transport is not None
    assert service.transport.pub is not None
    service.transport.pub.close(0)
    context.destroy(linger=0)
    return figures


def texts(count: int, size: int, *, kept: int = 0) -> Figures:
    """Measure ``publish`` of JSON texts of ``size`` bytes, to one subscriber.

    ``kept`` is the number of messages in the publisher's history, which is full when the measurement begins; 0 for no
    history.
    """
    context: zmq.Context[Any] = zmq.Context()
    app, clock = App(pub=ENDPOINT, codec="json", context=context), StillReactor()
    publication = app.publisher(TOPIC.decode(), str, history=History(messages=kept) if kept else None)
    service = AppService(app.compile(), clock, pub=(Endpoint(ENDPOINT, bind=True),))
    service.startService()
    sub, text = subscriber(context, ALONE), "x" * (size - 2)
    sub.connect(ENDPOINT)
    clock.advance(0)
    join(sub, clock, service, ALONE)

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
    assert service.transport is not None
    assert service.transport.pub is not None
    service.transport.pub.close(0)
    context.destroy(linger=0)
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
    ours: list[tuple[str, Callable[[], Figures]]] = [
        (BY_HAND, partial(by_hand, count, codec)),
        (PLAIN, partial(zroute_publish, count, codec, "plain")),
        (ONE, partial(zroute_publish, count, codec, "tracked")),
        (FOUR, partial(zroute_publish, count, codec, "tracked", OVERLAPPING)),
        (f"{BY_HAND}, topic from the message", partial(by_hand, count, codec, of_message=True)),
        (f"{PLAIN}, topic from the message", partial(zroute_publish, count, codec, "plain", pattern="stocks.{symbol}")),
        (f"{TRACKED}, one message a turn", partial(zroute_publish, count // 2, codec, "tracked", burst=1)),
    ]
    size = workloads.quotes(1, codec).size
    return Group(
        f"publish-{codec}",
        f"publish, 46-byte quotes as {'JSON' if codec == 'json' else codec}, {BURST} a turn",
        (peers_c.contestant("publish", count, size), *(Contestant(name, measure) for name, measure in ours)),
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
        *(_group(scale.count, codec) for codec in ("json", "msgpack")),
        _beside(scale.count),
        *(_with_history(scale.count, size) for size in (60, 1_024)),
    ]
