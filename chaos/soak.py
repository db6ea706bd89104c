"""Run all features at once for long: ``python -m chaos.soak --minutes 30``.

Two processes, a publisher and a reader, run apps that use every option and every kind of handler. Meanwhile other peers
come and go: readers without tracking, readers of long topics, and senders of invalid frames.

Each app prints every ten seconds its memory, descriptors, threads and objects. Caches fill in the first third of the
time. From the second to the last third, memory and objects may grow by `GROWTH`, descriptors and threads by `COMING`.
The command exits with 1 if they grow more, or if an app has ended.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from chaos.parent import end_with_parent
from tests.support import Child, free_endpoint
from zroute import App, Envelope, Gap, Limits, startswith
from zroute.messages.control import MARKER, pack_marker, pack_ping
from zroute.publishing import counters as counting
from zroute.publishing import publisher as publishing
from zroute.receiving import topic_cache as entries
from zroute.runtime.exit_codes import EXIT_DRAIN

GROWTH = 0.03
"""Allowed growth of the median from the second third to the last, as a share."""

COMING = 2
"""Allowed growth of descriptors and threads: a peer may just be connecting, or a thread working."""

CACHE = 2 * 1024 * 1024
"""Bytes of topic caches, instead of `TOPIC_CACHE`, so that new topics fill them soon."""

PERIOD = 10.0
"""Seconds between two measurements."""


@attrs.frozen
class Tick:
    """The body of a message."""

    number: int
    text: str = ""


class Totals(Counter[str]):
    """A resource: counts of handled messages."""


def tell(app: App, **more: Any) -> None:
    """Print the resources of this process every `PERIOD` seconds."""

    @app.every(PERIOD)
    def look() -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        objects = gc.get_objects()
        held = {
            "kilobytes": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "objects": len(objects),
            "kinds": dict(Counter(type(each).__qualname__ for each in objects).most_common(12)),
            "stats": app.stats.as_dict(),
            **more,
        }
        del objects
        print(json.dumps(held, default=str), flush=True)


def publish(endpoint: str) -> None:
    """Publish messages with every option.

    Some are kept or coalesced, and some have headers, long topics or topics that are always new.
    """
    chance = random.Random(1)
    limits = Limits(max_subscription_bytes=20_000)
    app = App(pub=endpoint, codec="json", name="feed", overflow="wait", coalesce=True, limits=limits)
    kept = app.publisher("kept.{n}", Tick, keep="last", coalesce=False)
    numbers = app.publisher("numbers.{n}", Tick)
    ever_new = app.publisher("new.{n}", Tick, coalesce=False)
    alone = app.publisher("alone.{n}", Tick, coalesce=False)
    count = 0

    @app.every(0.05)
    async def burst() -> None:
        nonlocal count
        sent = []
        for _ in range(10):
            count += 1
            sent.append(numbers.publish(Tick(count), n=str(chance.randrange(50))))
            sent.append(alone.publish(Tick(count), n=str(chance.randrange(10))))
        sent.append(kept.publish(Tick(count), n=str(chance.randrange(200))))
        sent.append(ever_new.publish(Tick(count), n=str(count)))
        sent.append(app.publish("headed.x", Tick(count), headers={"trace": "x" * chance.randrange(500)}))
        if count % 400 == 0:
            sent.append(app.publish("new." + "y" * chance.randrange(200, 250), Tick(count, "a long topic")))
        for each in sent:
            await each

    tell(app)
    app.run()


def read(feed: str, foreign: str, own: str) -> None:
    """Receive with every kind of handler, and publish some of the results."""
    from twisted.internet import reactor

    clock: Any = reactor
    app = App(sub=[feed, foreign, own], pub="bind:" + own, codec="json", name="reader")
    copies = app.publisher("copies.{n}", Tick)

    @app.resource
    def totals() -> Iterator[Totals]:
        yield Totals()

    @app.subscribe("numbers.{n}")
    def plain(tick: Tick, n: str, totals: Totals) -> None:
        totals[n] += 1

    @app.publisher("derived.{n}", Tick)
    @app.subscribe("alone.{n}")
    def derived(tick: Tick, n: str) -> Tick:
        return attrs.evolve(tick, text=n)

    @app.subscribe("numbers.{n}", max_in_flight=4, queue=50)
    async def waits(tick: Tick) -> None:
        if tick.number % 50 == 0:
            await deferLater(clock, 0.01)

    @app.subscribe("alone.{n}", ordered=False)
    def deferred(tick: Tick) -> Deferred[None]:
        return deferLater(clock, 0.001)

    @app.subscribe("alone.1", thread=True)
    def threaded(tick: Tick) -> None:
        app.from_thread(copies.publish, Tick(tick.number), n="1")

    @app.subscribe("numbers.{n}", batch=100)
    def lists(ticks: list[Tick]) -> None: ...

    @app.subscribe("alone.{n}", stale_after=0.000_001)
    def too_late(tick: Tick) -> None: ...

    @app.subscribe("headed.>")
    def whole(envelope: Envelope) -> None:
        assert envelope.headers

    @app.subscribe("kept.{n}")
    def state(tick: Tick, n: str) -> None: ...

    @app.subscribe(startswith("new."))
    def fresh(tick: Tick, envelope: Envelope) -> None: ...

    @app.subscribe("alone.2")
    def fails(tick: Tick) -> None:
        raise ValueError("one of many")  # the error hook handles it

    @app.on_error(ValueError)
    def failed(error: ValueError, envelope: Envelope) -> None: ...

    @app.on_unrouted
    def unrouted(envelope: Envelope) -> None: ...

    @app.on_gap
    def gap(gap: Gap) -> None: ...

    @app.every(0.05)
    async def loops() -> None:
        """Leave a stream that still contains messages, with large locals alive."""
        large = bytearray(100_000)
        async with app.stream("numbers.{n}", Tick, queue=500) as messages:
            async for message in messages:
                if message.number % 10 == 0:
                    break
        del large

    @app.every(0.1)
    async def come_and_go() -> None:
        attached = app.attach(f"alone.{random.randrange(10)}", lambda tick: None)
        await deferLater(clock, 0.05)
        attached.close()

    @app.every(1.0)
    async def ready() -> None:
        await app.ready(2, timeout=60, state=True)

    tell(app)
    app.run()


def disturb(endpoint: str, foreign: zmq.Socket[bytes], until: float) -> int:
    """Start and stop readers until ``until``, and publish random frames.

    Returns the number of readers.
    """
    chance, peers = random.Random(2), 0
    while time.monotonic() < until:
        for _ in range(50):
            topic = b"new." + os.urandom(chance.choice((5, 300, 20_000)))
            foreign.send(chance.choice((topic, topic + b"\0{}", topic + b'\0{"number": 1}')))
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.connect(endpoint)
            identity = chance.getrandbits(48) << 16
            too_many = [os.urandom(200) for _ in range(200)]
            for prefix in chance.choice(([b""], [b"kept."], [b"numbers.1", b"alone."], too_many)):
                socket.subscribe(prefix)
            asks = (pack_marker(identity | 1, [b"kept."]), pack_ping(identity | 2), MARKER + os.urandom(20), b"plain")
            socket.subscribe(chance.choice(asks))
            for _ in range(chance.randrange(50)):
                if socket.poll(20):
                    socket.recv()
            peers += 1
    return peers


def soak(minutes: float) -> dict[str, Any]:
    """Run the whole soak test and return the figures.

    Raises AssertionError if a resource has grown.
    """
    feed, own = free_endpoint(), free_endpoint()
    program = ("-m", "chaos.soak")
    with ExitStack() as stack:
        foreign = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.PUB))
        foreign.linger = 0
        port = foreign.bind_to_random_port("tcp://127.0.0.1")
        publisher = stack.enter_context(Child(*program, "--publish", feed))
        reader = stack.enter_context(Child(*program, "--read", feed, f"tcp://127.0.0.1:{port}", own))
        peers = disturb(feed, foreign, time.monotonic() + 60 * minutes)
        for child in (publisher, reader):
            assert child.process.poll() is None, f"has ended with {child.process.poll()}: {child.err[-20:]}"
        told = {"publisher": list(map(json.loads, publisher.out)), "reader": list(map(json.loads, reader.out))}
        codes = {reader.end(), publisher.end()}
        assert codes <= {0, EXIT_DRAIN}, reader.err[-20:] + publisher.err[-20:]
    figures: dict[str, Any] = {"minutes": minutes, "peers": peers}
    faults = []
    for name, looks in told.items():
        third = len(looks) // 3
        for what in ("kilobytes", "objects", "descriptors", "threads"):
            before = statistics.median(look[what] for look in looks[third : 2 * third])
            after = statistics.median(look[what] for look in looks[2 * third :])
            figures[f"{name}: {what}"] = f"{before:,.0f} -> {after:,.0f}"
            if after > (before * (1 + GROWTH) if what in ("kilobytes", "objects") else before + COMING):
                was, now = looks[third]["kinds"], looks[-1]["kinds"]
                faults.append(f"{name}: {what} grew from {before} to {after}; objects {was} -> {now}")
        figures[f"{name}: stats"] = looks[-1]["stats"]
    figures["warnings"] = [line for child in (publisher, reader) for line in child.err if " DEBUG " not in line][-400:]
    assert not faults, "\n".join([json.dumps(figures, indent=1, default=str), *faults])
    return figures


def main() -> None:
    """Run the soak test and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--publish", metavar="ENDPOINT", help="be the publisher")
    parser.add_argument("--read", nargs=3, metavar="ENDPOINT", help="be the reader")
    options = parser.parse_args()
    if options.publish or options.read:
        end_with_parent()
        vars(entries)["TOPIC_CACHE"] = vars(publishing)["TOPIC_CACHE"] = counting.COVERS = CACHE
        publish(options.publish) if options.publish else read(*options.read)
        return
    try:
        print(json.dumps(soak(options.minutes), indent=1, default=str))
    except AssertionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
