"""Measure what keys cost for a message: ``python benchmarks/bench_keys.py``.

Two pairs of a publisher and a subscriber run in one process, over TCP: one without keys, and one with keys. The pairs
are apps on one reactor, or bare sockets of pyzmq, which encode and decode nothing. They take turns, and each ratio
divides two figures of the same round. The benchmark prints, for both ends together:

- the CPU time of the Python thread, which is the reactor's thread for apps;
- the CPU time of the whole process, with the threads of libzmq, in which libsodium encrypts and decrypts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import attrs
import msgspec
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from zmq.auth.thread import ThreadAuthenticator

from benchmarks.workloads import NEWS, NUL, QUOTE, TOPIC
from tests.keyed import Keys
from tests.support import PATIENCE
from zroute import App
from zroute.runtime.service import AppService

WINDOW = 256
"""Messages that are published before the subscriber reads, so that no queue is full."""

WITHOUT, WITH = "without keys", "with keys"
SENDER, READER = "feed", "desk"


@attrs.frozen
class Cost:
    """Nanoseconds of CPU time for a message, of both ends."""

    thread: float
    process: float


Pair = Callable[[int], Awaitable[object]]
"""A pair of a publisher and a subscriber: passes a number of messages."""


async def measure(pair: Pair, count: int) -> Cost:
    """Return what the messages of a pair cost."""
    thread, process = time.thread_time_ns(), time.process_time_ns()
    await pair(count)
    return Cost((time.thread_time_ns() - thread) / count, (time.process_time_ns() - process) / count)


class Apps:
    """A publisher and a subscriber on the tracked wire."""

    def __init__(self, reactor: Any, body: Any, keys: Keys | None) -> None:
        self._reactor = reactor
        self._body = body
        own: dict[str, dict[str, Any]] = {
            name: {"name": name} if keys is None else keys.of(name) for name in (SENDER, READER)
        }
        self._feed = App(pub="tcp://127.0.0.1:*", codec="json", **own[SENDER])
        self._quotes = self._feed.publisher(TOPIC.decode(), type(body))
        self._reader = own[READER]
        self._peer = "" if keys is None else f"{SENDER}@"
        self._waits: Deferred[None] | None = None
        self._left = 0
        self._services: list[AppService] = []

    async def begin(self) -> None:
        """Start both apps, and wait until the subscriber has joined."""
        await self._start(self._feed)
        (address,) = self._feed.addresses.pub
        reader = App(sub=f"{self._peer}{address}", codec="json", **self._reader)

        def receive(_body: Any) -> None:
            self._left -= 1
            if not self._left and self._waits is not None:
                self._waits.callback(None)

        receive.__annotations__["_body"] = type(self._body)
        reader.subscribe("stocks.*")(receive)
        await self._start(reader)
        await reader.ready(1, timeout=PATIENCE)
        await self._quotes.wait_for_subscribers(1, timeout=PATIENCE)

    async def _start(self, app: App) -> None:
        service = AppService(app.compile(), self._reactor)
        self._services.append(service)
        service.startService()
        await service.started

    async def end(self) -> None:
        """Stop both apps."""
        for service in reversed(self._services):
            await service.stopService()

    async def __call__(self, count: int) -> None:
        """Publish in bursts, and wait until the handler has received each burst."""
        publish, body = self._quotes.publish, self._body
        for _ in range(count // WINDOW):
            self._left, self._waits = WINDOW, Deferred()
            for _ in range(WINDOW):
                publish(body)
            await self._waits


class Bare:
    """An XPUB and a SUB socket of pyzmq, which pass frames of the same size."""

    def __init__(self, body: Any, keys: Keys | None) -> None:
        self._contexts: tuple[zmq.Context[Any], ...] = zmq.Context(), zmq.Context()
        self._pub, self._sub = (
            context.socket(kind) for context, kind in zip(self._contexts, (zmq.XPUB, zmq.SUB), strict=True)
        )
        self._zap: Any = None
        if keys is not None:
            self._zap = ThreadAuthenticator(self._contexts[0])
            self._zap.start()
            self._zap.configure_curve(domain="*", location=str(keys.peers(SENDER)))
            own = keys.key(SENDER)
            self._pub.curve_publickey, self._pub.curve_secretkey = own.public, own.secret
            self._pub.curve_server = True
            keys.use(self._sub, READER, SENDER)
        self._pub.sndhwm = self._sub.rcvhwm = 0
        self._pub.bind("tcp://127.0.0.1:*")
        self._sub.subscribe(b"stocks.")
        self._sub.connect(self._pub.LAST_ENDPOINT)
        self._pub.recv()
        self._frame = TOPIC + NUL + msgspec.json.encode(body)

    async def __call__(self, count: int) -> None:
        """Send in bursts, and receive each burst."""
        send, recv, frame = self._pub.send, self._sub.recv, self._frame
        for _ in range(count // WINDOW):
            for _ in range(WINDOW):
                send(frame)
            for _ in range(WINDOW):
                recv()

    def close(self) -> None:
        """Close the sockets."""
        if self._zap is not None:
            self._zap.stop()
        for context in self._contexts:
            context.destroy(0)


async def compare(pairs: dict[str, Pair], count: int, rounds: int) -> dict[str, list[Cost]]:
    """Return the costs of each round; the pairs take turns, and the first one changes."""
    costs: dict[str, list[Cost]] = {name: [] for name in pairs}
    for pair in pairs.values():
        await measure(pair, count)  # fills the caches
    for number in range(rounds):
        for name in sorted(pairs, reverse=bool(number % 2)):
            costs[name].append(await measure(pairs[name], count))
    return costs


def show(title: str, costs: dict[str, list[Cost]]) -> None:
    """Print the medians, and the ratios within rounds."""
    print(title)
    for figure, name in (("thread", "Python thread"), ("process", "whole process")):
        found = {each: [getattr(cost, figure) for cost in costs[each]] for each in (WITHOUT, WITH)}
        ratios = sorted(one / other for one, other in zip(found[WITH], found[WITHOUT], strict=True))
        medians = ", ".join(f"{each} {statistics.median(values):6,.0f} ns" for each, values in found.items())
        spread = f"{ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f}"
        print(f"  {name}: {medians}; ratio {statistics.median(ratios):.2f} (middle half {spread})", flush=True)


async def run(reactor: Any, count: int, rounds: int, bodies: Sequence[Any]) -> None:
    """Measure apps and bare sockets, with small and large bodies."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Keys(Path(folder))
        keys.introduce(SENDER, READER)
        for body in bodies:
            size = len(msgspec.json.encode(body))
            apps = {WITHOUT: Apps(reactor, body, None), WITH: Apps(reactor, body, keys)}
            for each in apps.values():
                await each.begin()
            show(f"apps, bodies of {size:,} bytes", await compare({**apps}, count, rounds))
            for each in apps.values():
                await each.end()
            bare = {WITHOUT: Bare(body, None), WITH: Bare(body, keys)}
            show(f"bare sockets, bodies of {size:,} bytes", await compare({**bare}, count, rounds))
            for sockets in bare.values():
                sockets.close()


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20 * WINDOW, help="messages of a pair in a round (default 5,120)")
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, options.count, options.rounds, (QUOTE, NEWS))))


if __name__ == "__main__":
    main()
