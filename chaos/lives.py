"""Start and stop apps many times in one process, and print what remains.

``python -m chaos.lives --lives 1000``
"""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

import attrs
from twisted.internet.task import react

from tests.running import Mailbox
from tests.sockets.life import Held, held, settled
from tests.support import PATIENCE, free_endpoint
from zroute import App
from zroute.runtime.service import AppService


async def live(reactor: Any, endpoint: str) -> None:
    """Start a publisher and a reader, exchange messages of several kinds, and stop."""
    box: Mailbox[int] = Mailbox()
    feed, reader = App(pub=endpoint, name="feed"), App(sub=endpoint, name="reader")
    numbers = feed.publisher("numbers.{x}", int, keep="last")
    reader.subscribe("numbers.{x}")(box.put)
    feed.every(60.0)(lambda: None)
    services = [AppService(app.compile(), reactor) for app in (feed, reader)]
    for service in services:
        service.startService()
    try:
        for service in services:
            await service.started
        await reader.ready(1, timeout=PATIENCE)
        await numbers.wait_for_subscribers(1, timeout=PATIENCE)
        numbers.publish(1, x="a")
        numbers.publish(2, x="b")
        assert await box.until(2) == [1, 2]
    finally:
        for service in services:
            await service.stopService()
    stats = reader.stats
    assert (stats.lost, stats.unknown_losses, stats.malformed) == (0, 0, 0), stats
    assert stats.joins >= 1, stats  # 2 if the first answer arrives before the connection event


async def lives(reactor: Any, number: int) -> tuple[Held, Held]:
    """Return the resources held before and after ``number`` lives.

    A tenth more lives, at least ten, run before the first look.
    """
    warm = max(10, number // 10)
    endpoints = [free_endpoint() for _ in range(warm + number)]  # before the first look, because each holds a socket
    before = held(reactor)
    for done, endpoint in enumerate(endpoints):
        if done == warm:
            await settled(reactor)
            before = held(reactor)
        await live(reactor, endpoint)
    await settled(reactor, before.descriptors)
    return before, held(reactor)


def main() -> None:
    """Print the resources held before and after."""
    parser = argparse.ArgumentParser(prog="python -m chaos.lives", description=__doc__)
    parser.add_argument("--lives", type=int, default=1_000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)

    async def run(reactor: Any) -> None:
        before, after = await lives(reactor, options.lives)
        print(json.dumps({"lives": options.lives, "before": attrs.asdict(before), "after": attrs.asdict(after)}))

    react(run)


if __name__ == "__main__":
    main()
