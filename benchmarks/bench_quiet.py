"""Measure what subscribers without messages cost their publisher.

``python benchmarks/bench_quiet.py --subscribers 1000``

Each subscriber has joined and hears nothing, so it pings its publisher about every 17 seconds. The benchmark prints
the share of a core that the publisher's process uses, with libzmq's threads, with and without pings.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import zmq

from tests.support import Child, free_endpoint
from zroute.messages.control import GRACE, MARKER, pack_marker, pack_ping
from zroute.receiving.hearing import QUIET_SECONDS

PUBLISHER = """
import sys
from zroute import App
app = App(pub=sys.argv[1], name="quiet")
app.run()
"""


class Subscriber:
    """A SUB socket that sends the same markers as zroute's subscribers."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, number: int) -> None:
        self._id, self._asked = number << 16, 0
        self.socket = context.socket(zmq.SUB)
        self.socket.connect(endpoint)
        self.socket.subscribe(b"room.%d." % number)
        self.socket.subscribe(pack_marker(self._id, [b"room.%d." % number]))

    def ping(self) -> bytes:
        """Ask for a sign of life."""
        self._asked += 1
        ping = pack_ping(self._id | self._asked)
        self.socket.subscribe(ping)
        return ping

    def read(self) -> int:
        """Read all answers and return their number."""
        answers = 0
        while self.socket.poll(0):
            answers += self.socket.recv().startswith(MARKER)
        return answers


def cpu(process: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spend(subscribers: list[Subscriber], process: int, seconds: float, *, pings: bool) -> tuple[float, int]:
    """Return the publisher's share of a core, and the number of answered pings."""
    chance, began, before, answers = random.Random(1), time.monotonic(), cpu(process), 0
    due = sorted((chance.uniform(0.0, QUIET_SECONDS), number) for number in range(len(subscribers)))
    waiting, standing = deque(due), deque[tuple[float, Subscriber, bytes]]()
    while (now := time.monotonic() - began) < seconds:
        while pings and waiting and waiting[0][0] <= now:
            at, number = waiting.popleft()
            standing.append((now + GRACE, subscribers[number], subscribers[number].ping()))
            waiting.append((at + QUIET_SECONDS * 0.85, number))
        while standing and standing[0][0] <= now:
            _, subscriber, ping = standing.popleft()
            answers += subscriber.read()
            subscriber.socket.unsubscribe(ping)
        time.sleep(0.005)
    return (cpu(process) - before) / seconds, answers


def main() -> None:
    """Print the share without pings and the share with pings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    endpoint, context = free_endpoint(), zmq.Context()
    context.set(zmq.MAX_SOCKETS, options.subscribers + 10)
    with Child("-c", PUBLISHER, endpoint) as publisher:
        publisher.line_with("publishes as", stream="err")
        subscribers = [Subscriber(context, endpoint, number) for number in range(options.subscribers)]
        joined = 0
        while joined < options.subscribers:
            joined += sum(subscriber.read() for subscriber in subscribers)
        quiet, _ = spend(subscribers, publisher.process.pid, options.seconds / 2, pings=False)
        pinged, answers = spend(subscribers, publisher.process.pid, options.seconds, pings=True)
        print(f"{options.subscribers} quiet subscribers: {quiet:.2%} of a core without pings, {pinged:.2%} with them")
        print(f"pings answered: {answers} in {options.seconds:g} s")
        context.destroy(linger=0)


if __name__ == "__main__":
    main()
