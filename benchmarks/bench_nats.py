"""Measure the CPU time that a message takes on NATS, in zroute and in a callback of nats-py.

``python benchmarks/bench_nats.py --count 100000 --rounds 5``

Each measurement has a publisher and a subscriber in processes of their own, with one nats-server. Both subscribers
receive the same messages, decode them to the same class with msgspec, and call a handler: quotes of zroute with its
header, and quotes without headers. Both publishers encode the same quotes; that of nats-py sends a header of the same
size. The benchmark prints the nanoseconds of CPU time of the process for a message, and the ratios within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import nats

from benchmarks.workloads import QUOTE, Quote, decoder, encoder
from tests.nats.servers import NatsServer, known
from tests.support import PATIENCE, Child
from zroute import App

TOPIC = "stocks.AAPL"
HEADERS = {"Zr": "0" * 64}
READERS = ("zroute", "nats-py")
KINDS = ("tracked", "plain")


def say(value: object) -> None:
    """Tell the parent process."""
    print(value, flush=True)


async def told() -> None:
    """Wait for a line of the parent process."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


class Stretch:
    """The CPU time between the first message and the last one."""

    def __init__(self, count: int) -> None:
        self._left = self._count = count
        self._cpu = 0.0
        self.done = asyncio.Event()

    def message(self, quote: Any) -> None:
        """Count a message."""
        if self._left == self._count:
            self._cpu = time.process_time()
        self._left -= 1
        if not self._left:
            say((time.process_time() - self._cpu) / (self._count - 1) * 1e9)
            self.done.set()


async def read_zroute(url: str, count: int, _kind: str) -> None:
    """Subscribe with a typed handler."""
    app, stretch = App(nats=url, codec="json"), Stretch(count)

    @app.subscribe("stocks.{symbol}")
    def handle(quote: Quote) -> None:
        stretch.message(quote)

    async with app.running():
        say("ready")
        await stretch.done.wait()
        if app.stats.lost:
            raise SystemExit(f"{app.stats.lost} messages were lost")


async def read_nats_py(url: str, count: int, _kind: str) -> None:
    """Subscribe with a callback that decodes with msgspec."""
    stretch, decode = Stretch(count), decoder(Quote, "json")

    async def callback(message: Any) -> None:
        stretch.message(decode(message.data))

    client = await nats.connect(url)
    await client.subscribe("stocks.*", cb=callback)
    await known(client)
    say("ready")
    await stretch.done.wait()


async def publish_zroute(url: str, count: int, kind: Any) -> None:
    """Publish with a typed publisher."""
    app = App(nats=url, codec="json", wire=kind, overflow="wait")
    quotes = app.publisher(TOPIC, Quote)
    async with app.running():
        say("ready")
        await told()
        cpu = time.process_time()
        for number in range(count):
            await quotes.publish(QUOTE)
            if number % 256 == 255:
                await asyncio.sleep(0)  # write to the socket
        say((time.process_time() - cpu) / count * 1e9)
        await told()


async def publish_nats_py(url: str, count: int, kind: str) -> None:
    """Publish with nats-py, with a header of the same size if ``kind`` is "tracked"."""
    client, encode = await nats.connect(url, pending_size=64 << 20), encoder("json")
    headers = HEADERS if kind == "tracked" else None
    say("ready")
    await told()
    cpu = time.process_time()
    for number in range(count):
        await client.publish(TOPIC, encode(QUOTE), headers=headers)
        if number % 256 == 255:
            await asyncio.sleep(0)
    say((time.process_time() - cpu) / count * 1e9)
    await known(client)
    await told()


ROLES = {
    "read zroute": read_zroute,
    "read nats-py": read_nats_py,
    "publish zroute": publish_zroute,
    "publish nats-py": publish_nats_py,
}


def measure(url: str, reader: str, publisher: str, kind: str, count: int) -> tuple[float, float]:
    """Return the nanoseconds of CPU time for a message, of the subscriber and of the publisher."""

    def started(role: str) -> Child:
        return Child(__file__, "--role", role, "--url", url, "--kind", kind, "--count", str(count), fresh=True)

    with started(f"read {reader}") as reading, started(f"publish {publisher}") as publishing:
        for child in (reading, publishing):
            child.line_with("ready")
        publishing.write("go\n")
        figures = []
        for child in (reading, publishing):
            child.wait_for(lambda lines: len(lines) > 1, patience=2 * PATIENCE)
            figures.append(float(child.out[1]))
        publishing.write("end\n")
        publishing.end(None)
        reading.end(None)
    return figures[0], figures[1]


def main() -> None:
    """Measure all in turn and print the medians, or play a role in a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--role", choices=ROLES)
    parser.add_argument("--url")
    parser.add_argument("--kind", choices=KINDS)
    given = parser.parse_args()
    if given.role:
        asyncio.run(ROLES[given.role](given.url, given.count, given.kind))
        return
    reads: dict[tuple[str, str], list[float]] = {(kind, who): [] for kind in KINDS for who in READERS}
    sends: dict[tuple[str, str], list[float]] = {(kind, who): [] for kind in KINDS for who in READERS}
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        for _ in range(given.rounds):
            for kind in KINDS:
                for who in READERS:
                    cpu, sent = measure(server.url, who, "zroute", kind, given.count)
                    reads[kind, who].append(cpu)
                    if who == "nats-py":  # the publisher of zroute has no further work for this subscriber
                        sends[kind, "zroute"].append(sent)
                sends[kind, "nats-py"].append(measure(server.url, "nats-py", "nats-py", kind, given.count)[1])
    for title, figures in (("received", reads), ("published", sends)):
        for kind in KINDS:
            ours, theirs = figures[kind, "zroute"], figures[kind, "nats-py"]
            ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
            print(
                f"{title:9} {kind:7}: zroute {statistics.median(ours):6,.0f} ns, "
                f"nats-py {statistics.median(theirs):6,.0f} ns, ratio {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
