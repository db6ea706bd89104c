"""zroute on NATS beside nats-py and FastStream: messages and requests, with one local nats-server.

Each program is a process of its own, and the figures are CPU time of whole processes. Subscribers with the same wire
receive the same messages of the same publisher, decode them to the same class, and call a handler. On the tracked wire,
the messages have zroute's header, and a publisher of nats-py sends a header of the same size. FastStream receives
messages without headers.

``python -m benchmarks.on_nats subscribe|publish|answer|ask|ask_itself KIND SERVER COUNT``
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import attrs
import msgspec

from benchmarks import instructions, peers_nats, workloads
from benchmarks.children import Stretch, leave, line, python, say, started
from benchmarks.peers_nats import FASTSTREAM, NATS_PY, SLOWER
from benchmarks.running import CPU, WHOLE, Contestant, Figures, Group
from benchmarks.workloads import PLAIN, QUOTE, TRACKED, Quote, Scale, Workload
from tests.nats.servers import known

__all__ = ["WITH_HEADER", "groups"]

WITH_HEADER = f"{NATS_PY}, with a header"
SERVER_CPU, REQUESTS = "server CPU ns", "requests/s"
WINDOW = 64
"""Requests under way."""

COUNTED = (500, 2_500)
"""The numbers of requests in the two runs whose instructions are compared."""

HEADER = {"Zr": "0" * 64}
"""A header of the size of zroute's."""


# -- in the benchmark ---------------------------------------------------------------------------------------


def _stream(reader: str, publisher: str, count: int) -> Figures:
    """Send messages between two processes; return the reader's figures and the publisher's CPU."""
    url = peers_nats.server()
    with started(python("on_nats", "subscribe", reader, url, count)) as reading:
        line(reading)
        with started(python("on_nats", "publish", publisher, url, count)) as publishing:
            figures = dict(line(reading))
            figures["publisher CPU ns"] = line(publishing)[CPU]
    return figures


def _receive(reader: str, publisher: str, count: int) -> Figures:
    figures = dict(_stream(reader, publisher, count))
    del figures["publisher CPU ns"]
    return figures


def _publish(publisher: str, count: int) -> Figures:
    return {CPU: _stream(NATS_PY, publisher, count)["publisher CPU ns"]}


def _ask(kind: str, count: int) -> Figures:
    """Send requests from one process to another.

    The main figure is the CPU of both for a request.
    """
    url = peers_nats.server()
    with started(python("on_nats", "answer", kind, url, count)) as answering:
        line(answering)
        with started(python("on_nats", "ask", kind, url, count)) as asking:
            figures, server = line(asking), line(answering)[CPU]
    return {CPU: figures[CPU] + server, REQUESTS: figures[REQUESTS], SERVER_CPU: server}


def _instructions(kind: str) -> Figures:
    """Count the instructions of a request, of its client and server in one process."""
    few, many = (
        instructions.counted(python("on_nats", "ask_itself", kind, peers_nats.server(), count)) for count in COUNTED
    )
    return {instructions.INSTRUCTIONS: (many - few) / (COUNTED[1] - COUNTED[0])}


def groups(scale: Scale) -> list[Group]:
    """Return the groups of messages and requests on NATS."""
    readers = [
        (WITH_HEADER, NATS_PY, TRACKED, scale.count),
        (TRACKED, TRACKED, TRACKED, scale.count),
        (NATS_PY, NATS_PY, PLAIN, scale.count),
        (PLAIN, PLAIN, PLAIN, scale.count),
        (FASTSTREAM, FASTSTREAM, PLAIN, max(scale.count // SLOWER, 2)),
    ]
    return [
        Group(
            "nats-receive",
            "receive on NATS, JSON quotes",
            tuple(_contestant(name, partial(_receive, *rest)) for name, *rest in readers),
            WITH_HEADER,
        ),
        Group(
            "nats-publish",
            "publish on NATS, JSON quotes, to a subscriber with nats-py",
            tuple(
                _contestant(name, partial(_publish, name, scale.count))
                for name in (WITH_HEADER, TRACKED, NATS_PY, PLAIN)
            ),
            WITH_HEADER,
        ),
        Group(
            "nats-requests",
            f"requests and replies on NATS, JSON, {WINDOW} under way, CPU of both processes",
            tuple(_contestant(name, partial(_ask, name, scale.requests)) for name in (NATS_PY, TRACKED)),
            NATS_PY,
        ),
        Group(
            "instructions-nats",
            f"instructions for a request and its reply on NATS, {WINDOW} under way, in one process",
            tuple(
                Contestant(
                    name, partial(_instructions, name), WHOLE, instructions.absent(scale) or peers_nats.absent(name)
                )
                for name in (NATS_PY, TRACKED)
            ),
            NATS_PY,
            main=instructions.INSTRUCTIONS,
            rounds=1,
        ),
    ]


def _contestant(name: str, measure: Callable[[], Figures]) -> Contestant:
    return Contestant(name, measure, WHOLE, peers_nats.absent(name))


# -- in their processes: messages ---------------------------------------------------------------------------


async def subscribe_zroute(url: str, work: Workload) -> None:
    """Subscribe with an app that has a typed handler."""
    from zroute import App

    app, done = App(nats=url, codec="json"), asyncio.Event()

    @app.subscribe("stocks.{symbol}")
    def handler(_quote: Quote) -> None:
        if stretch.message():
            say(stretch.figures())
            done.set()

    async with app.running():
        stretch = Stretch(work.count)
        say("ready")
        await done.wait()
        if app.stats.lost:
            raise SystemExit(f"{app.stats.lost} messages were lost")
        leave()


async def publish_zroute(url: str, work: Workload, wire: Any) -> None:
    """Publish with an app that waits for room in the client's buffer."""
    from zroute import App

    app = App(nats=url, codec="json", wire=wire, overflow="wait")
    quotes = app.publisher(workloads.TOPIC.decode(), Quote)
    async with app.running():
        cpu = time.process_time()
        for number in range(work.count):
            await quotes.publish(QUOTE)
            if number % 256 == 255:
                await asyncio.sleep(0)  # write to the socket
        say({CPU: (time.process_time() - cpu) / work.count * 1e9})


# -- in their processes: requests ---------------------------------------------------------------------------


@attrs.frozen
class Ask:
    """A request."""

    size: int


@attrs.frozen
class Price:
    """A reply."""

    symbol: str
    total: float


Request: TypeAlias = Callable[[], Awaitable[Any]]

TOPIC = "prices.AAPL"
WARM = 4 * WINDOW
"""Requests before the measurement: the first ones open a connection, and compile the handler."""


class Answers:
    """Measure the CPU of a server from its request number `WARM` on."""

    def __init__(self, count: int) -> None:
        self.done = asyncio.Event()
        self._warm = WARM
        self._stretch = Stretch(count)

    def price(self, ask: Ask, symbol: str) -> Price:
        """Return the reply to a request."""
        if self._warm:
            self._warm -= 1
            if not self._warm:
                self._stretch = Stretch(self._stretch.total)
        elif self._stretch.message():
            self.done.set()
        return Price(symbol, ask.size * 187.23)

    async def tell(self) -> None:
        """Print the figures; the parent ends this process when the last reply has arrived."""
        await self.done.wait()
        say(self._stretch.figures())
        await asyncio.Event().wait()


@asynccontextmanager
async def zroute_server(url: str, answer: Callable[[Ask, str], Price]) -> AsyncIterator[None]:
    """Answer with a typed handler."""
    from zroute import App

    app = App(nats=url, codec="json")

    @app.reply("prices.{symbol}")
    def price(ask: Ask, symbol: str) -> Price:
        return answer(ask, symbol)

    async with app.running():
        yield


@asynccontextmanager
async def zroute_client(url: str) -> AsyncIterator[Request]:
    """Ask with a typed requester."""
    from zroute import App

    app = App(nats=url, codec="json")
    prices = app.requester(TOPIC, Ask, Price, timeout=60)
    async with app.running():
        yield lambda: prices.request(Ask(3))


@asynccontextmanager
async def nats_server(url: str, answer: Callable[[Ask, str], Price]) -> AsyncIterator[None]:
    """Answer with a callback that decodes and encodes with msgspec."""
    import nats

    decode, encode = workloads.decoder(Ask, "json"), msgspec.json.Encoder().encode

    async def callback(message: Any) -> None:
        await message.respond(encode(answer(decode(message.data), message.subject.partition(".")[2])))

    client = await nats.connect(url)
    await client.subscribe("prices.*", queue="prices", cb=callback)
    await known(client)
    yield


@asynccontextmanager
async def nats_client(url: str) -> AsyncIterator[Request]:
    """Ask with the client's ``request``."""
    import nats

    client = await nats.connect(url)
    decode, encode = workloads.decoder(Price, "json"), msgspec.json.Encoder().encode

    async def request() -> Any:
        return decode((await client.request(TOPIC, encode(Ask(3)), timeout=60)).data)

    yield request


SERVERS = {TRACKED: zroute_server, NATS_PY: nats_server}
CLIENTS = {TRACKED: zroute_client, NATS_PY: nats_client}


async def answer(url: str, work: Workload, kind: str) -> None:
    """Answer the requests of another process."""
    answers = Answers(work.count)
    async with SERVERS[kind](url, answers.price):
        say("ready")
        await answers.tell()


async def ask(url: str, work: Workload, kind: str) -> None:
    """Send requests to another process."""
    async with CLIENTS[kind](url) as request:
        say(await asked(request, work.count))
        leave()


async def ask_itself(url: str, work: Workload, kind: str) -> None:
    """Send requests to a server in the same process."""
    async with SERVERS[kind](url, Answers(work.count).price), CLIENTS[kind](url) as request:
        await asked(request, work.count)
        leave()


async def asked(request: Request, count: int) -> Figures:
    """Send ``count`` requests, `WINDOW` at a time; return the figures for a request."""
    left = WARM

    async def one_after_the_other() -> None:
        nonlocal left
        while left:
            left -= 1
            price: Price = await request()
            assert price.symbol == "AAPL"

    await asyncio.gather(*(one_after_the_other() for _ in range(WINDOW)))
    left, wall, cpu = count, time.perf_counter(), time.process_time()
    await asyncio.gather(*(one_after_the_other() for _ in range(WINDOW)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {CPU: cpu / count * 1e9, REQUESTS: count / wall}


ROLES: dict[tuple[str, str], Callable[..., Any]] = {
    ("subscribe", TRACKED): subscribe_zroute,
    ("subscribe", PLAIN): subscribe_zroute,
    ("subscribe", NATS_PY): peers_nats.subscribe_nats,
    ("subscribe", FASTSTREAM): peers_nats.subscribe_faststream,
    ("publish", TRACKED): partial(publish_zroute, wire="tracked"),
    ("publish", PLAIN): partial(publish_zroute, wire="plain"),
    ("publish", NATS_PY): peers_nats.publish_nats,
    ("publish", WITH_HEADER): partial(peers_nats.publish_nats, headers=HEADER),
    **{
        (role.__name__, kind): partial(role, kind=kind)
        for role in (answer, ask, ask_itself)
        for kind in (TRACKED, NATS_PY)
    },
}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1], sys.argv[2]](sys.argv[3], workloads.quotes(int(sys.argv[4]))))
