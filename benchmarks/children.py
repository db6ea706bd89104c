"""Processes of the benchmark's own: they print a line of JSON when they have something to say, and never outlive it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.running import CPU, RATE, WALL, Figures
from tests.support import ROOT

__all__ = ["Stretch", "leave", "line", "python", "say", "started"]

PATIENCE = 180.0
"""Seconds until a process is given up that says nothing: messages were lost, or it hangs."""


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of the benchmark."""
    return [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process, which is killed in the end if it has not ended by itself."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> Any:
    """The JSON of the next line it prints. Raises RuntimeError when it ends without, or takes too long."""
    assert process.stdout is not None
    watch = threading.Timer(PATIENCE, process.kill)
    watch.start()
    try:
        found = process.stdout.readline()
    finally:
        watch.cancel()
    if not found:
        raise RuntimeError(f"a process ended, or was ended, without its figures (exit {process.wait()})")
    return json.loads(found)


def say(what: Any) -> None:
    """In a process: tell the benchmark."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Stretch:
    """In a process: what ``total`` messages take.

    CPU (all threads) from the making of this object, when the process waits for the first message, since a library may
    read thousands before it hands one out; wall time from the first message to the last.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen = 0
        self._wall = 0.0
        self._cpu = time.process_time()

    def message(self) -> bool:
        """One more; whether it was the last."""
        if not self.seen:
            self._wall = time.perf_counter()
        self.seen += 1
        return self.seen == self.total

    def figures(self) -> Figures:
        """By message."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        between = self.seen - 1
        return {CPU: cpu / self.seen * 1e9, WALL: wall / between * 1e9, RATE: between / wall}


def leave() -> None:
    """End at once: what was measured is said, and how a library closes is not what is measured."""
    sys.stdout.flush()
    os._exit(0)
