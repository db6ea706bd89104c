"""Instructions for 10,000 messages, counted by valgrind's callgrind: the figure that no other process disturbs.

A run that reads is compared with one that is the same but reads nothing. It takes minutes, so it has to be asked for.

``python -m tests.benchmarks.instructions KIND READ`` is what callgrind runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from typing import Any

from tests.benchmarks import receive, workloads
from tests.benchmarks.children import python
from tests.benchmarks.feeds import Feed, plain_subscriber
from tests.benchmarks.running import THREAD, Contestant, Figures, Group
from tests.benchmarks.workloads import BY_HAND, PLAIN, TRACKED, Scale
from tests.support import ROOT
from zroute import App

__all__ = ["INSTRUCTIONS", "groups"]

INSTRUCTIONS = "instructions"
MESSAGES = 10_000


def absent(scale: Scale) -> str | None:
    """Why they are not counted."""
    if not scale.instructions:
        return "only with --instructions: it takes minutes"
    return None if shutil.which("valgrind") else "valgrind is not installed"


def _counted(kind: str, read: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = f"--callgrind-out-file={folder}/out"
        command = ["valgrind", "--tool=callgrind", out, *python("instructions", kind, read)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode or not found:
        raise RuntimeError(f"valgrind failed: {ran.stderr[-300:]}")
    return int(found[1])


def _measure(kind: str) -> Figures:
    return {INSTRUCTIONS: (_counted(kind, MESSAGES) - _counted(kind, 0)) / MESSAGES}


def groups(scale: Scale) -> list[Group]:
    """One group."""
    contestants = tuple(
        Contestant(kind, partial(_measure, kind), THREAD, absent(scale)) for kind in (BY_HAND, PLAIN, TRACKED)
    )
    title = f"instructions for a message received, of {MESSAGES:,} JSON quotes"
    return [Group(INSTRUCTIONS, title, contestants, BY_HAND, main=INSTRUCTIONS, rounds=1)]


def run(kind: str, read: int) -> None:
    """Fill a queue with all messages, and read so many."""
    work = workloads.quotes(MESSAGES)
    feed = Feed(work)
    if kind == BY_HAND:
        sub = plain_subscriber(feed)
        feed.fill()
        counter = receive.Counter()
        receive.loop(sub, work, [counter.handler()], read)
        assert counter.seen == read
        return
    app = App(sub=feed.endpoint, codec="json", context=feed.context)
    seen = 0

    @app.subscribe("stocks.*")
    def handler(_quote: workloads.Quote) -> None:
        nonlocal seen
        seen += 1

    with receive.reading(app, receive.StillReactor(), feed.endpoint) as sub_connection:
        _read(sub_connection, feed, kind, read, lambda: seen)


def _read(sub: Any, feed: Feed, kind: str, read: int, seen: Any) -> None:
    feed.fill_counted() if kind == TRACKED else feed.fill()
    receive.read_all(sub, seen, read)
    assert seen() >= read


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
    os._exit(0)  # how sockets close is not counted
