"""NATS: nats-py and FastStream in their own processes, with a local nats-server.

The CPU of a process includes the reading of the network, because the two cannot be separated there. So a ratio to
reading a full ZeroMQ queue compares whole programs, not decoding alone. `benchmarks.two_processes` measures all
contestants over TCP and with the same clock, and `benchmarks.on_nats` compares them with zroute on NATS.

``python -m benchmarks.peers_nats subscribe|publish KIND SERVER COUNT CODEC SIZE TOPICS``
"""

from __future__ import annotations

import asyncio
import atexit
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.children import Stretch, leave, line, python, say, started
from benchmarks.running import CPU, WHOLE, Contestant, Figures
from benchmarks.workloads import Workload, decoder
from tests.nats.servers import BINARY, NatsServer, known

__all__ = [
    "FASTSTREAM",
    "NATS_PY",
    "absent",
    "end_to_end",
    "publish_nats",
    "receivers",
    "server",
    "subscribe_faststream",
    "subscribe_nats",
    "version",
]

NATS_PY, FASTSTREAM = "nats-py on NATS", "FastStream on NATS"
SLOWER = 5
"""These contestants read 1/SLOWER of the messages, because each message takes them 20 to 50 times as long."""


# -- in the benchmark ---------------------------------------------------------------------------------------


def absent(name: str) -> str | None:
    """Return the reason why the contestant is missing, or None."""
    if BINARY is None:
        return "nats-server is not installed (the extra `dev`, or Debian: nats-server)"
    missing = [each for each in ("nats", "faststream")[: 1 + (name == FASTSTREAM)] if find_spec(each) is None]
    packages = {"nats": "nats-py", "faststream": "faststream[nats]"}
    return f"{packages[missing[0]]} is not installed (the extra `bench`)" if missing else None


def version() -> str | None:
    """Return the version of the server."""
    if BINARY is None:
        return None
    said = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=False).stdout
    return said.split("v")[-1].strip()


@cache
def server() -> str:
    """Return the address of a server that lives as long as this process."""
    folder = tempfile.TemporaryDirectory()
    running = NatsServer(Path(folder.name))
    running.start()
    atexit.register(folder.cleanup)
    atexit.register(running.kill)
    return running.url


def end_to_end(kind: str, work: Workload) -> Figures:
    """Send messages between two processes.

    Returns the receiver's figures and the publisher's CPU.
    """
    rest = (kind, server(), work.count, work.codec if len(work.body) < 1_000_000 else "raw", len(work.body))
    rest += (len(work.topics),)
    with started(python("peers_nats", "subscribe", *rest)) as receiver:
        line(receiver)
        with started(python("peers_nats", "publish", *rest)) as publisher:
            figures = dict(line(receiver))
            figures["publisher CPU ns"] = line(publisher)[CPU]
    return figures


def _receive(kind: str, work: Workload) -> Figures:
    figures = dict(end_to_end(kind, work))
    del figures["publisher CPU ns"]
    return figures


def receivers(work: Workload) -> list[Contestant]:
    """Return the NATS contestants of a group; FastStream decodes only JSON."""
    import attrs

    fewer = attrs.evolve(work, count=max(work.count // (SLOWER if work.schema is not bytes else 1), 2))
    kinds = [NATS_PY, FASTSTREAM] if work.codec == "json" else [NATS_PY]
    return [Contestant(kind, partial(_receive, kind, fewer), WHOLE, absent(kind)) for kind in kinds]


# -- in their processes -------------------------------------------------------------------------------------


def _workload(codec: str, size: int, count: int, topics: int) -> Workload:
    if codec == "raw":
        return Workload(count, bytes, "raw", b"x" * size)
    if size > 500:
        return workloads.news(count)
    return workloads.quotes(count, codec) if topics == 1 else workloads.many_topics(count, topics, codec)


def _subjects(work: Workload) -> Iterator[str]:
    """Return the subject of each message."""
    return islice(cycle([topic.decode() for topic in work.topics]), work.count)


async def subscribe_nats(server: str, work: Workload) -> None:
    """Subscribe with a callback that decodes with msgspec and calls a handler."""
    import nats

    done = asyncio.Event()
    decode = decoder(work.schema, work.codec)

    async def handler(_message: Any) -> None:
        if stretch.message():
            say(stretch.figures())
            done.set()

    async def callback(message: Any) -> None:
        await handler(decode(message.data))

    client = await nats.connect(server)
    await client.subscribe("stocks.*", cb=callback)
    await known(client)
    stretch = Stretch(work.count)
    say("ready")
    await done.wait()
    leave()


async def subscribe_faststream(server: str, work: Workload) -> None:
    """Subscribe with a typed handler on pydantic.

    The code follows the start of FastStream's documentation. Unlike the default, it does not log each message.
    """
    from faststream.nats import NatsBroker
    from pydantic import BaseModel

    class Quote(BaseModel):
        symbol: str
        price: float
        volume: int

    class News(BaseModel):
        symbol: str
        text: str

    done = asyncio.Event()
    broker = NatsBroker(server, logger=None)

    async def handler(message: Any) -> None:
        if stretch.message():
            say(stretch.figures())
            done.set()

    handler.__annotations__["message"] = Quote if work.schema is workloads.Quote else News
    broker.subscriber("stocks.*")(handler)
    await broker.start()
    await known(broker.connection)
    stretch = Stretch(work.count)
    say("ready")
    await done.wait()
    leave()


async def publish_nats(server: str, work: Workload, headers: dict[str, str] | None = None) -> None:
    """Publish as fast as the client accepts messages."""
    import nats

    client = await nats.connect(server, pending_size=64 * 1024 * 1024)
    message = workloads.NEWS if work.schema is workloads.News else workloads.QUOTE
    encode = workloads.encoder(work.codec)
    cpu = time.process_time()
    for number, subject in enumerate(_subjects(work)):
        await client.publish(subject, work.body if work.schema is bytes else encode(message), headers=headers)
        if number % 256 == 255:
            await asyncio.sleep(0)  # let its own tasks send the buffer
    await known(client)
    say({CPU: (time.process_time() - cpu) / work.count * 1e9})
    leave()


async def publish_faststream(server: str, work: Workload) -> None:
    """Publish a pydantic model with the broker's ``publish``."""
    from faststream.nats import NatsBroker
    from pydantic import BaseModel

    class Quote(BaseModel):
        symbol: str
        price: float
        volume: int

    broker = NatsBroker(server, logger=None)
    await broker.start()
    quote = Quote(symbol="AAPL", price=187.23, volume=1200)
    cpu = time.process_time()
    for number, subject in enumerate(_subjects(work)):
        await broker.publish(quote if work.schema is workloads.Quote else work.body, subject)
        if number % 256 == 255:
            await asyncio.sleep(0)
    await broker.stop()  # drains
    say({CPU: (time.process_time() - cpu) / work.count * 1e9})
    leave()


def main(role: str, kind: str, server: str, count: str, codec: str, size: str, topics: str) -> None:
    """Run the part of this process in the benchmark."""
    work = _workload(codec, int(size), int(count), int(topics))
    roles = {
        ("subscribe", NATS_PY): subscribe_nats,
        ("subscribe", FASTSTREAM): subscribe_faststream,
        ("publish", NATS_PY): publish_nats,
        ("publish", FASTSTREAM): publish_faststream,
    }
    asyncio.run(roles[role, kind](server, work))


if __name__ == "__main__":
    main(*sys.argv[1:])
