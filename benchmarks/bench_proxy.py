"""Measure the CPU time that a proxy takes to forward a message.

``python benchmarks/bench_proxy.py --count 200000 --rounds 5``

One publisher and one subscriber of plain ZeroMQ are connected through `zroute proxy`, and through a proxy of a few
lines of pyzmq with the same socket options. The benchmark prints the nanoseconds of each proxy's process for a
message, with libzmq's threads, and the ratio. It needs Linux, where a process can read the CPU clock of another one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import zmq

from tests.support import PATIENCE, Child, free_endpoint

BARE = """
import sys, zmq

context = zmq.Context()
front, back = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
front.sndhwm, front.rcvhwm, back.sndhwm, back.rcvhwm = 0, 1000, 1_000_000, 0
front.bind(sys.argv[1])
back.bind(sys.argv[2])
print("for subscribers", file=sys.stderr, flush=True)
zmq.proxy(front, back)
"""

MESSAGE = b"stocks.ACME\0" + b"x" * 82
WINDOW = 20_000
"""Messages that may be on their way, so that no queue is full."""


def cpu_of(process: int) -> float:
    """Return the CPU seconds of another process: its clock has a number of its own (clock_getcpuclockid(3))."""
    return time.clock_gettime((~process << 3) | 2)


def measure(command: list[str], count: int) -> tuple[float, float]:
    """Return the nanoseconds of CPU time of a proxy for a message, and its rate in messages a second."""
    front, back = free_endpoint(), free_endpoint()
    with (
        Child(*(each.format(front=front, back=back) for each in command), fresh=True) as proxy,
        zmq.Context() as context,
    ):
        proxy.line_with("for subscribers", stream="err")
        publisher, subscriber = context.socket(zmq.XPUB), context.socket(zmq.SUB)
        publisher.set(zmq.SNDHWM, 0)
        subscriber.set(zmq.RCVHWM, 0)
        subscriber.set(zmq.RCVTIMEO, int(PATIENCE * 1000))
        subscriber.connect(back)
        subscriber.subscribe(b"stocks.")
        publisher.connect(front)
        publisher.recv()
        room = threading.Semaphore(WINDOW)

        def publish(socket: zmq.Socket[Any]) -> None:
            for _ in range(count):
                room.acquire()
                socket.send(MESSAGE)

        cpu, wall = cpu_of(proxy.process.pid), time.perf_counter()
        thread = threading.Thread(target=publish, args=(publisher,))
        thread.start()
        for _ in range(count):
            subscriber.recv()
            room.release()
        thread.join()
        cpu, wall = cpu_of(proxy.process.pid) - cpu, time.perf_counter() - wall
        publisher.close(0)
        subscriber.close(0)
    return cpu / count * 1e9, count / wall


def main() -> None:
    """Measure both proxies in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    commands = {
        "bare": ["-c", BARE.replace("{", "{{").replace("}", "}}"), "{front}", "{back}"],
        "zroute": ["-m", "zroute", "proxy", "{front}", "{back}", "--send-queue", "1000000"],
    }
    rounds = [
        {name: measure(command, options.count) for name, command in commands.items()} for _ in range(options.rounds)
    ]
    for name in commands:
        cpu, rate = (statistics.median(each[name][figure] for each in rounds) for figure in (0, 1))
        print(f"{name:7} {cpu:6.0f} ns CPU a message, {rate:9,.0f} messages/s")
    print(f"ratio   {statistics.median(each['zroute'][0] / each['bare'][0] for each in rounds):6.2f}")


if __name__ == "__main__":
    main()
