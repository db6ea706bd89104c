"""CPU per received message: typed JSON quotes on the plain wire, against a hand-written loop and txZMQ.

Run ``python tests/benchmarks/bench_receive.py [--rounds N] [--count N] [--json FILE]``. In each round every
contestant in turn reads the same messages, which wait in its socket's queue, so that only receiving is
measured: thread CPU time from the first to the last message. They come over inproc, where a message that was
sent is in the queue; over tcp there is no event for "all has arrived". The figures to quote are the ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from typing import Any
from unittest import mock

import attrs
import msgspec
import zmq
from twisted.internet.task import Clock

from zroute import App, options
from zroute.delivery.tracking import Counters
from zroute.endpoints import Endpoint
from zroute.messages.control import pack_statements
from zroute.messages.wire import Kind, counted_framer
from zroute.service import AppService

TOPIC = b"stocks.AAPL"
BODY = b'{"symbol":"AAPL","price":187.23,"volume":1200}'
NUL = b"\0"


@attrs.frozen
class Quote:
    """What every contestant but txZMQ makes of a body."""

    symbol: str
    price: float
    volume: int


class Feed:
    """A publisher whose subscriber has room for everything, so that nothing is lost or waited for."""

    def __init__(self, total: int, frame: bytes) -> None:
        self.context = zmq.Context()
        self.total = total
        self.frame = frame
        self.pub = self.context.socket(zmq.XPUB)
        self.pub.set(zmq.SNDHWM, 0)
        self.endpoint = f"inproc://bench-{id(self)}"
        self.pub.bind(self.endpoint)

    def fill(self) -> None:
        """Put everything into the subscriber's queue (which must be unlimited)."""
        self.pub.recv()  # its subscription
        for _ in range(self.total):
            self.pub.send(self.frame)

    def fill_counted(self) -> None:
        """The same from a tracked publisher: the subscriber's marker is answered, each message has its own number."""
        counters = Counters()
        frame = counted_framer(epoch=7, count=counters.count, clock_ns=time.time_ns)
        marker = None
        while marker is None:
            marker = counters.subscribe(self.pub.recv()[1:], 0.0)
        numbers = list(counters.numbers(marker))
        answer = pack_statements(Kind.JOIN, marker.topic, numbers, epoch=7, name="feed", partial=False, sent_at=0)
        for each in answer:
            self.pub.send(each)
        for _ in range(self.total):
            self.pub.send(frame(TOPIC, 2, BODY, None))


def measured(run: Callable[[], int], total: int) -> float:
    """Nanoseconds of this thread per message."""
    began = time.thread_time_ns()
    seen = run()
    spent = time.thread_time_ns() - began
    assert seen == total, (seen, total)
    return spent / total


def by_hand(total: int) -> float:
    """recv, partition, msgspec, call: what somebody writes who wants nothing else."""
    feed = Feed(total, TOPIC + NUL + BODY)
    sub = feed.context.socket(zmq.SUB)
    sub.set(zmq.RCVHWM, 0)
    sub.connect(feed.endpoint)
    sub.subscribe(b"stocks.")
    feed.fill()
    decode = msgspec.json.Decoder(Quote).decode
    seen = count(1)
    last = 0

    def handler(quote: Quote) -> None:
        nonlocal last
        last = next(seen)

    handlers = {TOPIC: handler}

    def run() -> int:
        recv, dontwait = sub.recv, zmq.DONTWAIT
        while last < total:
            topic, _, body = recv(dontwait).partition(NUL)
            handlers[topic](decode(body))
        return last

    result = measured(run, total)
    feed.context.destroy(linger=0)
    return result


@contextmanager
def unlimited_queue() -> Iterator[None]:
    """Let a subscriber queue everything, as the other contestants' sockets do here."""
    unlimited = options.Option("RCVHWM", 0, "a benchmark fills the queue before it reads")
    chosen = (*options.subscriber_options(), unlimited)
    with mock.patch.object(options, "subscriber_options", return_value=chosen):
        yield


def zroute_receive(total: int, wire: str = "plain") -> float:
    """A zroute app: the connection, the table and the handler, as in a running app."""
    feed = Feed(total, TOPIC + NUL + BODY)
    app = App(sub=feed.endpoint, codec="json", context=feed.context)
    seen = count(1)
    last = 0

    @app.subscribe("stocks.*")
    def handler(quote: Quote) -> None:
        nonlocal last
        last = next(seen)

    class Reactor(Clock):
        """A reactor that never turns: the benchmark calls `doRead` itself, as often as it is needed."""

        def addReader(self, reader: object) -> None: ...

        def removeReader(self, reader: object) -> None: ...

    clock = Reactor()
    service = AppService(app, clock, sub=(Endpoint(feed.endpoint, bind=False),))
    with unlimited_queue():
        service.startService()
    assert service.transport is not None
    sub = service.transport.sub
    assert sub is not None
    clock.advance(0)  # the marker is sent
    feed.fill_counted() if wire == "tracked" else feed.fill()

    def run() -> int:
        while last < total:
            sub.doRead()
        return last

    result = measured(run, total)
    assert app.stats.joins == (wire == "tracked")
    sub.close(0)
    feed.context.destroy(linger=0)
    return result


def txzmq_receive(total: int, library: str = "txzmq", parse: Callable[[bytes], Any] = json.loads) -> float | None:
    """A SUB connection of txZMQ with a dict of handlers, as its users write it; ``library`` is it or zroute's."""
    try:
        module: Any = import_module(library)
    except ImportError:
        return None
    feed = Feed(total, TOPIC + NUL + BODY)
    seen = count(1)
    last = 0

    def handler(quote: Any) -> None:
        nonlocal last
        last = next(seen)

    handlers = {TOPIC: handler}

    class Subscriber(module.ZmqSubConnection):  # type: ignore[misc]
        highWaterMark = 0  # noqa: N815

        def gotMessage(self, message: bytes, tag: bytes) -> None:
            handlers[tag](parse(message))

    factory = module.ZmqFactory()
    own, factory.context = factory.context, feed.context
    sub = Subscriber(factory, module.ZmqEndpoint("connect", feed.endpoint))
    sub.subscribe(b"stocks.")
    feed.fill()

    def run() -> int:
        while last < total:
            sub.doRead()
        return last

    result = measured(run, total)
    sub.shutdown()
    feed.context.destroy(linger=0)
    own.term()
    return result


def main() -> None:
    """Measure, print the medians and their ratios to the hand-written loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    contestants: dict[str, Callable[[], float | None]] = {
        "hand-written loop": lambda: by_hand(arguments.count),
        "zroute, plain wire": lambda: zroute_receive(arguments.count),
        "zroute, tracked wire": lambda: zroute_receive(arguments.count, "tracked"),
        "txZMQ with json.loads": lambda: txzmq_receive(arguments.count),
        "txZMQ, body unread": lambda: txzmq_receive(arguments.count, parse=bytes),
        "zroute.txzmq, body unread": lambda: txzmq_receive(arguments.count, "zroute.txzmq", bytes),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, contestant in contestants.items():
            taken = contestant()
            if taken is not None:
                times[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in times.items() if taken}
    base = medians["hand-written loop"]
    print(
        f"{platform.python_implementation()} {platform.python_version()}, pyzmq {zmq.__version__}, "
        f"libzmq {zmq.zmq_version()}, {arguments.rounds} rounds of {arguments.count} messages, interleaved"
    )
    for name, median in medians.items():
        print(f"{name:24} {median:7.0f} ns of CPU a message   {median / base:5.2f} times the loop")
    if "txZMQ with json.loads" in medians:
        print(f"zroute, plain wire / txZMQ: {medians['zroute, plain wire'] / medians['txZMQ with json.loads']:.3f}")
        print(f"zroute.txzmq / txZMQ: {medians['zroute.txzmq, body unread'] / medians['txZMQ, body unread']:.3f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"ns": times, "median": medians}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
