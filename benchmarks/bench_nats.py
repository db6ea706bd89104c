"""Measure the CPU time that messages and requests take on NATS, in zroute and with nats-py.

``python benchmarks/bench_nats.py --count 100000 --rounds 5``

Each measurement has two processes and one nats-server:

- **Messages** have a publisher and a subscriber. Both subscribers receive the same messages, decode them to the same
  class with msgspec, and call a handler: quotes of zroute with its header, and quotes without headers. Both publishers
  encode the same quotes; that of nats-py sends a header of the same size.
- **Requests** have a client and a server of the same library, with `WINDOW` requests in flight and a timeout. Both
  sides encode and decode. nats-py uses its ``request``, a subscription with a callback, and ``respond``.

The benchmark prints the nanoseconds of CPU time of the process for a message or request, and the ratios within a round.

Times vary on a busy machine. ``python benchmarks/bench_nats.py --instructions`` therefore counts the executed
instructions of a request with valgrind's callgrind, of a client and a server in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))

import attrs
import nats

from benchmarks.children import leave
from benchmarks.workloads import QUOTE, Quote, decoder, encoder
from tests.nats.servers import NatsServer, known
from tests.support import PATIENCE, Child
from zroute import App

TOPIC = "stocks.AAPL"
HEADERS = {"Zr": "0" * 64}
LIBRARIES = ("zroute", "nats-py")
KINDS = ("tracked", "plain")
WINDOW = 64
TIMEOUT = 10.0
COUNTED = 1_000
"""The number of requests whose instructions are counted."""


@attrs.frozen
class Ask:
    """A request: 17 bytes as JSON."""

    symbol: str


ASK = Ask("AAPL")
Request: TypeAlias = Callable[[], Awaitable[Any]]


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


@asynccontextmanager
async def server_of_zroute(url: str) -> AsyncIterator[None]:
    """Answer requests with a typed handler."""
    app = App(nats=url, codec="json")

    @app.reply("stocks.{symbol}")
    def quote(_ask: Ask) -> Quote:
        return QUOTE

    async with app.running():
        yield


@asynccontextmanager
async def server_of_nats_py(url: str) -> AsyncIterator[None]:
    """Answer requests with a callback that decodes and encodes with msgspec."""
    decode, encode = decoder(Ask, "json"), encoder("json")

    async def callback(message: Any) -> None:
        decode(message.data)
        await message.respond(encode(QUOTE))

    client = await nats.connect(url)
    await client.subscribe("stocks.*", cb=callback)
    await known(client)
    yield


@asynccontextmanager
async def client_of_zroute(url: str) -> AsyncIterator[Request]:
    """Send requests with a typed requester."""
    app = App(nats=url, codec="json")
    quotes = app.requester("stocks.{symbol}", Ask, Quote, timeout=TIMEOUT)
    async with app.running():
        yield lambda: quotes.request(ASK)


@asynccontextmanager
async def client_of_nats_py(url: str) -> AsyncIterator[Request]:
    """Send requests that are encoded and decoded with msgspec."""
    client, decode, encode = await nats.connect(url), decoder(Quote, "json"), encoder("json")

    async def request() -> Any:
        return decode((await client.request(TOPIC, encode(ASK), timeout=TIMEOUT)).data)

    yield request


SERVERS = {"zroute": server_of_zroute, "nats-py": server_of_nats_py}
CLIENTS = {"zroute": client_of_zroute, "nats-py": client_of_nats_py}


async def answer(who: str, url: str, count: int, _kind: str) -> None:
    """Answer requests, and print the CPU time of each between two lines of the parent process."""
    async with SERVERS[who](url):
        say("ready")
        await told()
        cpu = time.process_time()
        await told()
        say((time.process_time() - cpu) / count * 1e9)


async def ask(who: str, url: str, count: int, _kind: str) -> None:
    """Send requests, and print the CPU time of each."""
    async with CLIENTS[who](url) as request:
        await in_flight(request, WINDOW)
        say("ready")
        await told()
        cpu = time.process_time()
        await in_flight(request, count)
        say((time.process_time() - cpu) / count * 1e9)


async def ask_and_answer(who: str, url: str, count: int, _kind: str) -> None:
    """Send requests to a server in the same process, between two lines of the parent process."""
    async with SERVERS[who](url), CLIENTS[who](url) as request:
        await in_flight(request, 5 * WINDOW)
        say("ready")
        await told()
        await in_flight(request, count)
        say("done")
        await told()
        leave()


async def in_flight(request: Request, count: int) -> None:
    """Send ``count`` requests, with `WINDOW` in flight."""
    left = count

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await request()

    await asyncio.gather(*(some() for _ in range(WINDOW)))


ROLES = {
    "read zroute": read_zroute,
    "read nats-py": read_nats_py,
    "publish zroute": publish_zroute,
    "publish nats-py": publish_nats_py,
    **{f"{role.__name__} {who}": partial(role, who) for role in (answer, ask, ask_and_answer) for who in LIBRARIES},
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


def measure_requests(url: str, who: str, count: int) -> float:
    """Return the nanoseconds of CPU time for a request, of both processes."""

    def started(role: str) -> Child:
        return Child(__file__, "--role", f"{role} {who}", "--url", url, "--count", str(count), fresh=True)

    with started("answer") as answering:
        answering.line_with("ready")
        with started("ask") as asking:
            asking.line_with("ready")
            figures = []
            for child in (answering, asking):
                child.write("go\n")
            for child in (asking, answering):
                child.wait_for(lambda lines: len(lines) > 1, patience=2 * PATIENCE)
                figures.append(float(child.out[1]))
                answering.write("end\n")
    return sum(figures)


def instructions(url: str, who: str) -> float:
    """Return the number of executed instructions for a request, of its client and server."""
    role = ("--role", f"ask_and_answer {who}", "--url", url, "--count", str(COUNTED))
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null"]
    with subprocess.Popen(
        [*command, sys.executable, __file__, *role],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for switch in ("on", "off"):  # count from the first line to the second one
            if not process.stdout.readline():
                raise RuntimeError(f"valgrind failed: {process.stderr.read()[-2000:]}")
            subprocess.run(["callgrind_control", "-i", switch, str(process.pid)], check=True, capture_output=True)
            process.stdin.write("go\n")
            process.stdin.flush()
        found = re.search(r"Collected : (\d+)", process.stderr.read())
    assert found
    return int(found[1]) / COUNTED


def main() -> None:
    """Measure all in turn and print the medians, or play a role in a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="messages; a tenth of this number of requests")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instructions", action="store_true", help="count the instructions of requests instead")
    parser.add_argument("--role", choices=ROLES)
    parser.add_argument("--url")
    parser.add_argument("--kind", choices=KINDS)
    given = parser.parse_args()
    if given.role:
        asyncio.run(ROLES[given.role](given.url, given.count, given.kind))
        return
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        if given.instructions:
            ours, theirs = (instructions(server.url, who) for who in LIBRARIES)
            print(f"instructions of a request: zroute {ours:,.0f}, nats-py {theirs:,.0f}, ratio {ours / theirs:.2f}")
            return
        compare(server.url, given.count, given.rounds)


def compare(url: str, count: int, rounds: int) -> None:
    """Measure all in turn, and print the medians."""
    figures: dict[tuple[str, str], list[float]] = {}

    def note(row: str, who: str, figure: float) -> None:
        figures.setdefault((row, who), []).append(figure)

    for _ in range(rounds):
        for kind in KINDS:
            for who in LIBRARIES:
                cpu, sent = measure(url, who, "zroute", kind, count)
                note(f"received {kind}", who, cpu)
                if who == "nats-py":  # the publisher of zroute has no further work for this subscriber
                    note(f"published {kind}", "zroute", sent)
            note(f"published {kind}", "nats-py", measure(url, "nats-py", "nats-py", kind, count)[1])
        for who in LIBRARIES:
            note("requests", who, measure_requests(url, who, count // 10))
    for row in dict.fromkeys(row for row, _ in figures):
        ours, theirs = (figures[row, who] for who in LIBRARIES)
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        print(
            f"{row:17}: zroute {statistics.median(ours):7,.0f} ns, "
            f"nats-py {statistics.median(theirs):7,.0f} ns, ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
