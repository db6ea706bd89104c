"""Processes of the benchmark, which print their figures as lines of JSON."""

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
"""Seconds until the benchmark kills a silent process, which has lost messages or hangs."""


def python(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of the benchmark."""
    return [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process, and kill it at the end of the ``with`` block if it still runs."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> Any:
    """Return the parsed JSON of the next line that the process prints.

    Raises RuntimeError if the process ends first, or if it prints nothing within `PATIENCE` seconds.
    """
    assert process.stdout is not None
    watch = threading.Timer(PATIENCE, process.kill)
    watch.start()
    try:
        found = process.stdout.readline()
    finally:
        watch.cancel()
    if not found:
        raise RuntimeError(f"a process ended, or timed out, without figures (exit {process.wait()})")
    return json.loads(found)


def say(what: Any) -> None:
    """Print ``what`` as JSON for the benchmark; called in a child process."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Stretch:
    """Measure the cost of ``total`` messages; used in a child process.

    CPU time (all threads) begins with the creation of this object, when the process waits for the first message. A
    library may read thousands of messages before it delivers one. Wall time runs from the first message to the last.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen = 0
        self._wall = 0.0
        self._cpu = time.process_time()

    def message(self) -> bool:
        """Count one message; return True if it was the last."""
        if not self.seen:
            self._wall = time.perf_counter()
        self.seen += 1
        return self.seen == self.total

    def figures(self) -> Figures:
        """Return the figures per message."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        between = self.seen - 1
        return {CPU: cpu / self.seen * 1e9, WALL: wall / between * 1e9, RATE: between / wall}


def leave() -> None:
    """Exit at once, because closing the library is not part of the measurement."""
    sys.stdout.flush()
    os._exit(0)
