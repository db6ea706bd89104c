"""End to end: messages from one process to another over TCP, at full speed.

The figures are the CPU of both processes, libzmq's threads included. No message is lost: hand-written sockets have no
high-water mark, and zroute's publisher waits for room.

``python -m benchmarks.two_processes publish|subscribe KIND ENDPOINT COUNT``
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import attrs
import zmq

from benchmarks import peers_c, peers_nats, workloads
from benchmarks.children import Stretch, leave, line, python, say, started
from benchmarks.running import CPU, WHOLE, Contestant, Figures, Group
from benchmarks.workloads import BY_HAND, NUL, PLAIN, QUOTE, TOPIC, TRACKED, TXZMQ, Quote, Scale, decoder, encoder
from tests.support import free_endpoint

__all__ = ["PUBLISHER_CPU", "groups"]

PUBLISHER_CPU = "publisher CPU ns"
BURST = 256
"""Messages that zroute publishes in one turn."""

COALESCED = f"{TRACKED}, coalesced"


# -- in the benchmark ---------------------------------------------------------------------------------------


def _measure(subscriber: list[str], publisher: list[str]) -> Figures:
    with started(publisher) as publishing, started(subscriber) as receiving:
        figures = dict(line(receiving))
        figures[PUBLISHER_CPU] = line(publishing)[CPU]
    return figures


def _python(kind: str, publisher: str, count: int) -> Figures:
    endpoint = free_endpoint()
    return _measure(
        python("two_processes", "subscribe", kind, endpoint, count),
        python("two_processes", "publish", publisher, endpoint, count),
    )


def _c(count: int) -> Figures:
    endpoint = free_endpoint()
    size = workloads.quotes(1).size
    return _measure(peers_c.command("sub", endpoint, count), peers_c.command("pub", endpoint, count, size))


def groups(scale: Scale) -> list[Group]:
    """Return the group of end-to-end streams."""
    work = workloads.quotes(scale.count)
    fewer = attrs.evolve(work, count=max(scale.count // peers_nats.SLOWER, 2))
    contestants = (
        Contestant(peers_c.NAME, partial(_c, work.count), WHOLE, peers_c.absent()),
        Contestant(BY_HAND, partial(_python, BY_HAND, BY_HAND, work.count), WHOLE),
        Contestant(PLAIN, partial(_python, PLAIN, PLAIN, work.count), WHOLE),
        Contestant(TRACKED, partial(_python, TRACKED, TRACKED, work.count), WHOLE),
        Contestant(COALESCED, partial(_python, TRACKED, COALESCED, work.count), WHOLE),
        Contestant(
            f"{TXZMQ}, publisher by hand",
            partial(_python, TXZMQ, BY_HAND, work.count),
            WHOLE,
            None if find_spec("txzmq") else "txZMQ is not installed (the extra `dev`)",
        ),
        *(
            Contestant(kind, partial(peers_nats.end_to_end, kind, fewer), WHOLE, peers_nats.absent(kind))
            for kind in (peers_nats.NATS_PY, peers_nats.FASTSTREAM)
        ),
    )
    return [Group("end-to-end", "end to end over TCP, JSON quotes from one process to another", contestants, BY_HAND)]


# -- in their processes -------------------------------------------------------------------------------------


def subscribe_by_hand(endpoint: str, count: int) -> None:
    """Subscribe with a blocking loop."""
    sub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    sub.set(zmq.RCVHWM, 0)
    sub.connect(endpoint)
    sub.subscribe(b"stocks.")
    recv, decode, message = sub.recv, decoder(Quote, "json"), Stretch(count)
    done = False

    def handler(_quote: Quote) -> None:
        nonlocal done
        done = message.message()

    handlers = {TOPIC: handler}
    while not done:
        topic, _, body = recv().partition(NUL)
        handlers[topic](decode(body))
    say(message.figures())


def publish_by_hand(endpoint: str, count: int) -> None:
    """Publish in a loop without a pause, after the first subscription."""
    pub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
    pub.set(zmq.SNDHWM, 0)
    pub.bind(endpoint)
    pub.recv()
    encode, send, start = encoder("json"), pub.send, TOPIC + NUL
    cpu = time.process_time()
    for _ in range(count):
        send(start + encode(QUOTE))
    pub.close(linger=60_000)
    zmq.Context.instance().term()  # returns when all messages have left
    say({CPU: (time.process_time() - cpu) / count * 1e9})


def subscribe_zroute(endpoint: str, count: int) -> None:
    """Subscribe with an app that has a typed handler."""
    from twisted.internet import reactor

    from zroute import App

    app, stretch = App(sub=endpoint, codec="json"), Stretch(count)

    @app.on_startup
    def begin() -> None:
        nonlocal stretch
        stretch = Stretch(count)  # the start is not part of the measurement

    @app.subscribe("stocks.*")
    def handler(_quote: Quote) -> None:
        if stretch.message():
            say(stretch.figures())
            leave()

    app.service(reactor).startService()
    reactor.run()


def publish_zroute(wire: Any, endpoint: str, count: int, *, coalesce: bool = False) -> None:
    """Publish with an app that waits for a subscriber, and for room in its queue.

    It waits after each message or, with ``coalesce``, after each burst.
    """
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater

    from zroute import App

    app = App(pub=endpoint, codec="json", wire=wire, overflow="wait", coalesce=coalesce)
    quotes = app.publisher(TOPIC.decode(), Quote)
    service = app.service(reactor)
    began = 0.0

    async def publish() -> None:
        nonlocal began
        await quotes.wait_for_subscribers(1)
        began = time.process_time()
        for number in range(count):
            sent = quotes.publish(QUOTE)
            if not coalesce:
                await sent
            if number % BURST == BURST - 1:
                await sent
                await deferLater(reactor, 0)
        await service.stopService()  # returns when all messages have left
        say({CPU: (time.process_time() - began) / count * 1e9})
        reactor.stop()

    service.startService()
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(publish()))
    reactor.run()


def subscribe_txzmq(endpoint: str, count: int) -> None:
    """Subscribe with a txZMQ connection and a dict of handlers."""
    import txzmq
    from twisted.internet import reactor

    def handler(_quote: Any) -> None:
        if stretch.message():
            say(stretch.figures())
            leave()

    handlers = {TOPIC: handler}

    class Subscriber(txzmq.ZmqSubConnection):  # type: ignore[misc]
        highWaterMark = 0  # noqa: N815

        def gotMessage(self, message: bytes, tag: bytes) -> None:
            handlers[tag](json.loads(message))

    sub = Subscriber(txzmq.ZmqFactory(), txzmq.ZmqEndpoint("connect", endpoint))
    sub.subscribe(b"stocks.")
    stretch = Stretch(count)
    reactor.run()


ROLES: dict[tuple[str, str], Callable[[str, int], None]] = {
    ("subscribe", BY_HAND): subscribe_by_hand,
    ("publish", BY_HAND): publish_by_hand,
    ("subscribe", PLAIN): subscribe_zroute,
    ("publish", PLAIN): partial(publish_zroute, "plain"),
    ("subscribe", TRACKED): subscribe_zroute,
    ("publish", TRACKED): partial(publish_zroute, "tracked"),
    ("publish", COALESCED): partial(publish_zroute, "tracked", coalesce=True),
    ("subscribe", TXZMQ): subscribe_txzmq,
}

if __name__ == "__main__":
    ROLES[sys.argv[1], sys.argv[2]](sys.argv[3], int(sys.argv[4]))
