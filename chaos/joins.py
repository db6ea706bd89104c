"""Join a running stream many times: ``python -m chaos.joins --joins 1000``.

A publisher in another process never stops. Each reader waits until it is ready; from then on it must see all of its
topics without a gap. This finds joins that are reported as complete too early. The command prints the join times.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from tests.support import PATIENCE, Child, free_endpoint
from zroute import App
from zroute.runtime.service import AppService

TOPICS = 20
ROUNDS = 3
"""Messages of each topic that a reader waits for once it is ready."""

PUBLISHER = f"""
import sys
from itertools import count
from zroute import App

app = App(pub=sys.argv[1], codec="json", name="stream")
numbers = count()

@app.every(0.005)
def publish() -> None:
    for _ in range(20):
        number = next(numbers)
        app.publish(f"stream.{{number % {TOPICS}}}.x", number)

@app.on_startup
def begin() -> None:
    print("publishing", flush=True)

app.run()
"""


class Reader:
    """One join; `seen` has the numbers that arrived after it was ready."""

    def __init__(self, endpoint: str) -> None:
        self.app = App(sub=endpoint, codec="json", name="reader")
        self.seen: list[int] = []
        self.is_ready = False
        self.enough: Deferred[None] = Deferred()
        for topic in range(TOPICS):
            self.app.subscribe(f"stream.{topic}.{{x}}")(self._handler())

    def _handler(self) -> Any:
        def handle(number: int) -> None:
            if self.is_ready:
                self.seen.append(number)
                if len(self.seen) == TOPICS * ROUNDS:
                    self.enough.callback(None)

        return handle


async def join(reactor: Any, endpoint: str) -> tuple[float, bool]:
    """Start and stop one reader.

    Returns the seconds until it was ready, and True if it missed no message since.
    """
    reader = Reader(endpoint)
    service = AppService(reader.app.compile(), reactor)
    began = reactor.seconds()
    service.startService()
    try:
        await service.started
        await reader.app.ready(1, timeout=PATIENCE)
        reader.is_ready = True
        took = reactor.seconds() - began
        reader.enough.addTimeout(PATIENCE, reactor)
        await reader.enough
    finally:
        await service.stopService()
    first = reader.seen[0]
    whole = reader.seen == list(range(first, first + len(reader.seen)))
    return took, whole and reader.app.stats.lost == 0


async def play(reactor: Any, joins: int, together: int) -> dict[str, Any]:
    """Join ``joins`` times, with ``together`` readers at a time."""
    endpoint, times, incomplete = free_endpoint(), [], 0
    with Child("-c", PUBLISHER, endpoint) as publisher:
        publisher.line_with("publishing")

        async def some(number: int) -> None:
            nonlocal incomplete
            for _ in range(number):
                took, whole = await join(reactor, endpoint)
                times.append(took)
                incomplete += not whole
                await deferLater(reactor, 0)

        running = [Deferred.fromCoroutine(some(joins // together)) for _ in range(together)]
        for each in running:
            await each
    cuts = statistics.quantiles(times, n=100)
    return {"joins": len(times), "incomplete": incomplete, "p50 ms": cuts[49] * 1000, "p99 ms": cuts[98] * 1000}


def main() -> None:
    """Print the figures of `play`; exit with 1 if a join was incomplete."""
    parser = argparse.ArgumentParser(prog="python -m chaos.joins", description=__doc__)
    parser.add_argument("--joins", type=int, default=1_000)
    parser.add_argument("--together", type=int, default=4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    found: dict[str, Any] = {}

    async def run(reactor: Any) -> None:
        found.update(await play(reactor, options.joins, options.together))

    try:
        react(run)
    except SystemExit as end:
        if end.code:
            raise
    print(json.dumps(found))
    sys.exit(bool(found["incomplete"]))


if __name__ == "__main__":
    main()
