"""A collector: one app binds to receive, and several publishers connect to it."""

from __future__ import annotations

import pytest_twisted
from twisted.internet.defer import Deferred

from tests.running import Mailbox, running
from tests.support import PATIENCE, free_endpoint
from zroute import App

NUMBER = 200


@pytest_twisted.ensureDeferred
async def test_a_collector_receives_everything_of_publishers_that_connect_to_it() -> None:
    """ready(publishers=3) waits for all three; each one's messages arrive complete, in order, and counted."""
    endpoint, box = free_endpoint(), Mailbox[tuple[str, int]]()
    collector = App(sub=f"bind:{endpoint}", name="collector")
    workers = [App(pub=f"connect:{endpoint}", name=f"worker{index}") for index in range(3)]
    logs = [worker.publisher("log.{name}", int) for worker in workers]

    @collector.subscribe("log.{name}")
    def handle(number: int, name: str) -> None:
        box.put((name, number))

    async with running(collector), running(workers[0]), running(workers[1]), running(workers[2]):
        await Deferred.fromCoroutine(collector.ready(publishers=3, timeout=PATIENCE))
        for number in range(NUMBER):
            for index, log in enumerate(logs):
                log.publish(number, name=f"w{index}")
        got = await box.until(3 * NUMBER)
    for index in range(3):
        assert [number for name, number in got if name == f"w{index}"] == list(range(NUMBER))
    assert (collector.stats.lost, collector.stats.unknown_losses, collector.stats.malformed) == (0, 0, 0)
