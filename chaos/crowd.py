"""A crowd of hostile connections at a publisher with keys: what it costs the publisher and an honest reader.

``python -m chaos.crowd`` starts a publisher, a reader with a key, and one of these crowds, and prints the figures:

- ``silent``: connections that send nothing, or only the beginning of a greeting, and stay open.
- ``strangers``: handshakes with unknown keys, as fast as the machine allows.
- ``hoard``: as many connections as possible of one authorized key.

With ``--descriptors``, the publisher may have only that many descriptors. Load goes to this machine only, and ends
after ``--seconds``.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import zmq

from tests.keyed import Keys
from tests.support import Child, free_port

__all__ = ["CROWDS", "Figures", "run"]

CROWDS = ("silent", "strangers", "hoard")

Figures = dict[str, Any]

_OPENING = 150.0  # the longest time in seconds for opening connections
_BATCH = 50  # strangers that call at the same time

PUBLISHER = """
import json, os, resource, sys, time
port, keys, descriptors = sys.argv[1], sys.argv[2], int(sys.argv[3])
if descriptors:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
from zroute import App

app = App(pub=f"tcp://127.0.0.1:{port}", keys=keys, name="feed")
numbers = app.publisher("numbers", int)
number, last, worst, failed, peak = 0, time.perf_counter(), 0.0, 0, 0

@app.every(0.01)
def tick():
    global number, last, worst, peak
    now = time.perf_counter()
    worst, last = max(worst, now - last - 0.01), now
    for _ in range(10):
        numbers.publish(number)
        number += 1

@app.on_startup
def watch():
    def seen(event):
        global failed
        failed += event.name == "accept_failed"
    app._live.run.transport.pub.watch(seen)

@app.every(0.25)
def say():
    global worst
    stats = app.stats
    print(json.dumps({
        "published": number, "late_ms": round(worst * 1e3), "accept_failed": failed, "refused": stats.refused,
        "handshakes_failed": stats.handshakes_failed, "descriptors": len(os.listdir("/proc/self/fd")),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "cpu": round(time.process_time(), 2),
    }), flush=True)
    worst = 0.0

app.run()
"""

READER = """
import json, sys
from zroute import App

app = App(sub=f"feed@tcp://127.0.0.1:{sys.argv[1]}", keys=sys.argv[2], name="desk")
got = 0

@app.subscribe("numbers")
def take(number: int):
    global got
    got += 1

@app.every(0.25)
def say():
    stats = app.stats
    losses = {"lost": stats.lost, "unknown": stats.unknown_losses, "joins": stats.joins}
    print(json.dumps({"got": got, **losses}), flush=True)

app.run()
"""


def _last(child: Child) -> Figures:
    lines = [line for line in child.out if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def _silent(port: int, many: int, seconds: float, ended: Callable[[], bool]) -> int:
    """Open connections that send nothing, or half of a greeting, and hold them; return how many were opened."""
    held: list[socket.socket] = []
    last = time.monotonic() + _OPENING
    with ExitStack() as stack:
        while len(held) < many and time.monotonic() < last:
            with suppress(OSError):
                held.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1)))
                if len(held) % 2:
                    held[-1].send(b"\xff" + bytes(8) + b"\x7f\x03")
        time.sleep(seconds)
        while not ended():
            time.sleep(0.1)
    return len(held)


def _strangers(keys: Keys, port: int, ended: Callable[[], bool]) -> int:
    """Begin handshakes with an unknown key; return their number."""
    number = 0
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 10_000)
        while not ended():
            with _callers(context, keys, "stranger", port, _BATCH):
                time.sleep(0.02)
            number += _BATCH
    return number


def _hoard(keys: Keys, port: int, many: int, ended: Callable[[], bool]) -> int:
    """Hold connections of one authorized key that subscribe; return their number."""
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 20_000)
        with _callers(context, keys, "hoarder", port, many):
            while not ended():
                time.sleep(0.1)
    return many


@contextmanager
def _callers(context: zmq.Context[Any], keys: Keys, name: str, port: int, many: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(many):
            caller = context.socket(zmq.SUB)
            stack.callback(caller.close, 0)
            keys.use(caller, name, "feed").subscribe(b"another topic")
            caller.connect(f"tcp://127.0.0.1:{port}")
        yield


def run(crowd: str, *, many: int, seconds: float, folder: Path, descriptors: int = 0, refused: int = 0) -> Figures:
    """Run a crowd, and return the figures.

    The crowd stays for ``seconds`` seconds, and then until the publisher has refused ``refused`` of its connections.

    ``late_ms`` is how late a timer of 10 ms was at worst, ``accept_failed`` how often libzmq found no descriptor, and
    ``stopped`` how many published messages the reader had handled when the publisher stopped.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    keys, port = Keys(folder), free_port()
    keys.introduce("feed", "desk", "hoarder")
    keys.secret("stranger")
    sources = {"feed": (str(descriptors),), "desk": ()}
    command = {
        name: ["-c", source, str(port), str(keys.secret(name)), *sources[name]]
        for name, source in (("feed", PUBLISHER), ("desk", READER))
    }
    with Child(*command["feed"], fresh=True) as feed, Child(*command["desk"], fresh=True) as desk:
        desk.wait_for(lambda _: _last(desk).get("got", 0) > 100)
        before, mark, began = _last(feed), len(feed.out), time.monotonic()

        def ended() -> bool:
            enough = _last(feed)["refused"] - before["refused"] >= refused
            return time.monotonic() > began + (seconds if enough else _OPENING)

        if crowd == "silent":
            opened = _silent(port, many, seconds, ended)
        elif crowd == "strangers":
            opened = _strangers(keys, port, ended)
        else:
            opened = _hoard(keys, port, many, ended)
        took = time.monotonic() - began
        feed.wait_for(lambda lines: len(lines) > mark)
        during = [json.loads(line) for line in feed.out[mark:] if line.startswith("{")]
        feed.wait_for(lambda _: _last(feed).get("published", 0) > during[-1]["published"])
        number = _last(feed)["published"]
        desk.wait_for(lambda _: _last(desk).get("got", 0) + _last(desk)["lost"] >= number - 1000)
        after, read = _last(feed), _last(desk)
        feed.end()
        desk.end()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {
        "crowd": crowd,
        "opened": opened,
        "limit": after["limit"],
        "descriptors": max(each["descriptors"] for each in during),
        "late_ms": max(json.loads(line)["late_ms"] for line in feed.out[mark:] if line.startswith("{")),
        "accept_failed": after["accept_failed"] - before["accept_failed"],
        "refused": after["refused"] - before["refused"],
        "handshakes_failed": after["handshakes_failed"] - before["handshakes_failed"],
        "cpu_share": round((during[-1]["cpu"] - before["cpu"]) / took, 2),
        "handled": read["got"],
        "lost": read["lost"],
        "unknown": read["unknown"],
        "joins": read["joins"],
    }


def main() -> int:
    """Run the crowds of the command line; the exit code is 1 if an honest message was lost."""
    parser = argparse.ArgumentParser(prog="python -m chaos.crowd")
    parser.add_argument("--crowd", choices=CROWDS, action="append")
    parser.add_argument("--many", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--descriptors", type=int, default=0, help="the limit of the publisher; 0 is the system's")
    given = parser.parse_args()
    lost = 0
    for crowd in given.crowd or CROWDS:
        with tempfile.TemporaryDirectory() as folder:
            found = run(
                crowd, many=given.many, seconds=given.seconds, folder=Path(folder), descriptors=given.descriptors
            )
        print(json.dumps(found), flush=True)
        lost += found["lost"] + found["unknown"]
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
