"""One-way latency between two processes over TCP, at a given rate.

Both processes use Twisted's default reactor. Latency is the time from the publisher's call to the handler, by the
monotonic clock that all processes of a machine share. Each millisecond, the publisher sends the messages that are due.
The hand-written contestant is pyzmq with the least code around ZeroMQ's descriptor that is correct.

``python -m benchmarks.latency publish|subscribe KIND ENDPOINT RATE SKIPPED TOTAL``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import zmq

from benchmarks.children import leave, line, python, say, started
from benchmarks.running import WHOLE, Contestant, Figures, Group
from benchmarks.workloads import NUL, PLAIN, TOPIC, TRACKED, Scale, decoder, encoder
from tests.support import free_endpoint

__all__ = ["BARE", "READING", "groups"]

BARE = "hand-written, pyzmq in the same reactor"
READING = f"{PLAIN}, publisher by hand"
"""Only the subscriber is an app: a difference to `BARE` is the reader's. In the other rows, a part of it is the
publisher's: each millisecond, it sends the messages that are due one after the other."""
TOGETHER = f"{TRACKED}, coalesced"
RATES = (1_000, 50_000)
PERIOD = 0.001
WARM = 8.75
"""The time in seconds before the counted messages.

A subscriber asks its publishers for a sign of life after 2, 6, 14 and 30 s, and then each minute. For 2.5 s after each
question, it records the connection of each message, which costs several microseconds at a low rate.
"""


@attrs.frozen
class Tick:
    """A message with its sending time, in nanoseconds of the monotonic clock."""

    symbol: str
    price: float
    sent: int


# -- in the benchmark ---------------------------------------------------------------------------------------


def _measure(kind: str, rate: int, seconds: float) -> Figures:
    endpoint = free_endpoint()
    counted = max(int(rate * seconds), 100)
    # A short run only shows that the programs work.
    skipped = int(rate * WARM) if seconds >= 1 else counted // 10
    rest = (kind, endpoint, rate, skipped, skipped + counted)
    with started(python("latency", "publish", *rest)), started(python("latency", "subscribe", *rest)) as receiving:
        figures: Figures = line(receiving)
        return figures


def groups(scale: Scale) -> list[Group]:
    """Return one group for each rate."""
    return [
        Group(
            f"latency-{rate}",
            f"one-way latency over TCP, {rate:,} messages a second",
            tuple(
                Contestant(kind, partial(_measure, kind, rate, scale.seconds), WHOLE)
                for kind in (BARE, READING, PLAIN, TRACKED, TOGETHER)
            ),
            BARE,
            main="p50 us",
        )
        for rate in RATES
    ]


# -- in their processes -------------------------------------------------------------------------------------


class Latencies:
    """The latencies of ``total`` messages without the first ``skipped``, and the CPU of the process meanwhile."""

    def __init__(self, skipped: int, total: int) -> None:
        self._total, self._skipped = total, skipped
        self._taken: list[int] = []
        self._cpu = 0.0

    def tick(self, tick: Tick) -> None:
        """Handle one message; after the last one, end the process."""
        taken = self._taken
        taken.append(time.monotonic_ns() - tick.sent)
        if len(taken) == self._skipped + 1:
            self._cpu = time.process_time()
        elif len(taken) == self._total:
            self._end(time.process_time() - self._cpu)

    def _end(self, cpu: float) -> None:
        taken = sorted(self._taken[self._skipped :])
        percents = {"p50 us": 0.5, "p99 us": 0.99, "p99.9 us": 0.999}
        figures = {name: taken[int(len(taken) * share)] / 1000 for name, share in percents.items()}
        say({**figures, "CPU ns": cpu / (len(taken) - 1) * 1e9})
        leave()


def pace(reactor: Any, rate: int, total: int, send: Callable[[Tick], object]) -> None:
    """Send the messages that are due, each millisecond.

    The benchmark kills this process when the subscriber has all messages.
    """
    began, sent = time.perf_counter(), 0

    def due() -> None:
        nonlocal sent
        now = min(int((time.perf_counter() - began) * rate) + 1, total)
        for _ in range(now - sent):
            send(Tick("AAPL", 187.23, time.monotonic_ns()))
        sent = now
        if sent < total:
            reactor.callLater(PERIOD, due)

    due()


class BareReader:
    """A SUB socket in the reactor that reads until EAGAIN, but at most 256 messages.

    After 256 messages it checks EVENTS, because the descriptor reports a change only once.
    """

    def __init__(self, reactor: Any, endpoint: str, handler: Callable[[Tick], object]) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self.socket.connect(endpoint)
        self.socket.subscribe(b"stocks.")
        self.reactor, self.handlers = reactor, {TOPIC: handler}
        self.decode = decoder(Tick, "json")
        self.descriptor: Any = self.socket.FD
        reactor.addReader(self)
        reactor.callLater(0, self.doRead)

    def fileno(self) -> Any:
        """Return the descriptor, which never changes."""
        return self.descriptor

    def logPrefix(self) -> str:
        """Return the name for Twisted's log."""
        return "bare"

    def connectionLost(self, reason: object) -> None:
        """Do nothing: the reactor never calls this here."""

    def doRead(self) -> None:
        """Read messages; called by the reactor."""
        recv, decode, handlers = self.socket.recv, self.decode, self.handlers
        try:
            for _ in range(256):
                topic, _, body = recv(zmq.NOBLOCK).partition(NUL)
                handlers[topic](decode(body))
        except zmq.Again:
            return
        events: Any = self.socket.get(zmq.EVENTS)
        if events & zmq.POLLIN:
            self.reactor.callLater(0, self.doRead)


def subscribe_bare(reactor: Any, endpoint: str, latencies: Latencies) -> object:
    """Subscribe with hand-written code."""
    return BareReader(reactor, endpoint, latencies.tick)


def publish_bare(reactor: Any, endpoint: str, rate: int, total: int) -> None:
    """Publish with hand-written code."""
    pub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
    pub.set(zmq.SNDHWM, 10_000)
    pub.bind(endpoint)
    pub.recv()  # its subscription
    encode, start = encoder("json"), TOPIC + NUL
    reactor.callWhenRunning(pace, reactor, rate, total, lambda tick: pub.send(start + encode(tick), zmq.NOBLOCK))


def subscribe_zroute(reactor: Any, endpoint: str, latencies: Latencies) -> object:
    """Subscribe with an app that has a typed handler."""
    from zroute import App

    app = App(sub=endpoint, codec="json")

    @app.subscribe("stocks.*")
    def handler(tick: Tick) -> None:
        latencies.tick(tick)

    app.service(reactor).startService()
    return app


def publish_zroute(kind: str, reactor: Any, endpoint: str, rate: int, total: int) -> None:
    """Publish with an app that begins after the first subscription."""
    from twisted.internet.defer import Deferred

    from zroute import App

    app = App(pub=endpoint, codec="json", wire="plain" if kind == PLAIN else "tracked", coalesce=kind == TOGETHER)
    ticks = app.publisher(TOPIC.decode(), Tick)
    app.service(reactor).startService()

    async def begin() -> None:
        await ticks.wait_for_subscribers(1)
        pace(reactor, rate, total, ticks.publish)

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(begin()))


def main(role: str, kind: str, endpoint: str, rate: str, skipped: str, total: str) -> None:
    """Run the part of this process in the benchmark."""
    from twisted.internet import reactor

    if role == "subscribe":
        _kept = (subscribe_bare if kind == BARE else subscribe_zroute)(
            reactor, endpoint, Latencies(int(skipped), int(total))
        )
    elif kind in (BARE, READING):
        publish_bare(reactor, endpoint, int(rate), int(total))
    else:
        publish_zroute(kind, reactor, endpoint, int(rate), int(total))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
