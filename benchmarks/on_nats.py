"""zroute on NATS beside nats-py and FastStream: messages and requests, with one local nats-server.

Each program is a process of its own, and the figures are CPU time of whole processes. Subscribers with the same wire
receive the same messages of the same publisher, decode them to the same class, and call a handler. On the tracked wire,
the messages have zroute's header, and a publisher of nats-py sends a header of the same size. FastStream receives
messages without headers.

``python -m benchmarks.on_nats subscribe|publish|answer|ask KIND SERVER COUNT``
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import msgspec

from benchmarks import peers_nats, workloads
from benchmarks.children import Stretch, leave, line, python, say, started
from benchmarks.peers_nats import FASTSTREAM, NATS_PY, SLOWER, SUBJECT
from benchmarks.running import CPU, WHOLE, Contestant, Figures, Group
from benchmarks.workloads import PLAIN, QUOTE, TRACKED, Quote, Scale, Workload
from tests.nats.servers import known

__all__ = ["WITH_HEADER", "groups"]

WITH_HEADER = f"{NATS_PY}, with a header"
SERVER_CPU, REQUESTS = "server CPU ns", "requests/s"
WINDOW = 64
"""Requests under way."""

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
    quotes = app.publisher(SUBJECT, Quote)
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


async def answer_zroute(url: str, work: Workload) -> None:
    """Answer with a typed handler."""
    from zroute import App

    app, answers = App(nats=url, codec="json"), Answers(work.count)

    @app.reply("prices.{symbol}")
    def price(ask: Ask, symbol: str) -> Price:
        return answers.price(ask, symbol)

    async with app.running():
        say("ready")
        await answers.tell()


async def ask_zroute(url: str, work: Workload) -> None:
    """Ask with a typed requester."""
    from zroute import App

    app = App(nats=url, codec="json")
    prices = app.requester(TOPIC, Ask, Price, timeout=60)
    async with app.running():

        async def ask() -> None:
            price: Price = await prices.request(Ask(3))
            assert price.symbol == "AAPL"

        say(await asked(ask, work.count))
        leave()


async def answer_nats(url: str, work: Workload) -> None:
    """Answer with a callback that decodes and encodes with msgspec."""
    import nats

    answers, decode, encode = Answers(work.count), workloads.decoder(Ask, "json"), msgspec.json.Encoder().encode

    def price(ask: Ask, symbol: str) -> Price:
        return answers.price(ask, symbol)

    async def callback(message: Any) -> None:
        await message.respond(encode(price(decode(message.data), message.subject.partition(".")[2])))

    client = await nats.connect(url)
    await client.subscribe("prices.*", queue="prices", cb=callback)
    await known(client)
    say("ready")
    await answers.tell()


async def ask_nats(url: str, work: Workload) -> None:
    """Ask with the client's ``request``."""
    import nats

    decode, encode = workloads.decoder(Price, "json"), msgspec.json.Encoder().encode
    client = await nats.connect(url)

    async def ask() -> None:
        price: Price = decode((await client.request(TOPIC, encode(Ask(3)), timeout=60)).data)
        assert price.symbol == "AAPL"

    say(await asked(ask, work.count))
    leave()


async def asked(ask: Callable[[], Awaitable[None]], count: int) -> Figures:
    """Send ``count`` requests, `WINDOW` at a time; return the figures for a request."""
    left = WARM

    async def one_after_the_other() -> None:
        nonlocal left
        while left:
            left -= 1
            await ask()

    await asyncio.gather(*(one_after_the_other() for _ in range(WINDOW)))
    left, wall, cpu = count, time.perf_counter(), time.process_time()
    await asyncio.gather(*(one_after_the_other() for _ in range(WINDOW)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {CPU: cpu / count * 1e9, REQUESTS: count / wall}


ROLES: dict[tuple[str, str], Callable[[str, Workload], Any]] = {
    ("subscribe", TRACKED): subscribe_zroute,
    ("subscribe", PLAIN): subscribe_zroute,
    ("subscribe", NATS_PY): peers_nats.subscribe_nats,
    ("subscribe", FASTSTREAM): peers_nats.subscribe_faststream,
    ("publish", TRACKED): partial(publish_zroute, wire="tracked"),
    ("publish", PLAIN): partial(publish_zroute, wire="plain"),
    ("publish", NATS_PY): peers_nats.publish_nats,
    ("publish", WITH_HEADER): partial(peers_nats.publish_nats, headers=HEADER),
    ("answer", TRACKED): answer_zroute,
    ("answer", NATS_PY): answer_nats,
    ("ask", TRACKED): ask_zroute,
    ("ask", NATS_PY): ask_nats,
}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1], sys.argv[2]](sys.argv[3], workloads.quotes(int(sys.argv[4]))))
