"""Count the instructions of messages as ratios to the hand-written loop, in one process and two minutes.

``python -m benchmarks.instruction_ratios`` prints the ratios as JSON. `benchmarks.instructions` needs two processes for
each figure; this module starts Python under callgrind only once, so a test can use it. The hand-written loops run in
the same process, so the ratios depend on the build of Python much less than the counts.

Callgrind counts only between two *client requests* (``valgrind.h``): a few machine instructions that do nothing on a
processor, but that valgrind understands. `_request` runs them without a C compiler.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path

from benchmarks import publish, receive, workloads
from benchmarks.children import python
from benchmarks.coalesced import FRAMES
from benchmarks.running import Figures
from benchmarks.workloads import BY_HAND, PLAIN, TRACKED
from tests.support import ROOT
from zroute.receiving import coalesced as frames
from zroute.sockets import connection

__all__ = ["MACHINE", "ratios"]

MACHINE = "x86_64"
"""The only machine whose client requests this module knows."""

_MESSAGES, _TOPICS = 4_500, 100

# rax = the address of the request; rdx = 0; rol rdi, 3, 13, 61 and 51; xchg rbx, rbx; rax = rdx; ret
_CODE = bytes.fromhex("4889f8 4831d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
_ZERO, _DUMP = (int.from_bytes(b"CT\0\0") + number for number in (1, 0))  # of callgrind.h


def _request(number: int) -> None:
    """Send a client request to callgrind."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        memory.write(_CODE)
        code = ctypes.c_char.from_buffer(memory)
        try:
            words = (ctypes.c_uint64 * 6)(number)
            ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(ctypes.addressof(code))(ctypes.addressof(words))
        finally:
            del code  # otherwise the memory can't be freed


def _loops() -> dict[str, Mapping[str, Callable[[], Figures]]]:
    """Return the loops to count, by group; the first of each group is written by hand."""
    received: dict[str, Mapping[str, Callable[[], Figures]]] = {
        f"received, {topics} topics" if topics > 1 else "received, one topic": {
            BY_HAND: partial(receive.by_hand, work),
            PLAIN: partial(receive.zroute_receive, work),
            TRACKED: partial(receive.zroute_receive, work, "tracked"),
        }
        for topics, work in (
            (1, workloads.many_topics(_MESSAGES, 1)),  # its first message is not counted
            (_TOPICS, workloads.many_topics(_MESSAGES, _TOPICS)),
        )
    }
    quotes = workloads.many_topics(_MESSAGES, 1)
    for many in FRAMES:
        received[f"received, {many} a frame"] = {
            BY_HAND: partial(receive.by_hand, quotes),
            TRACKED: partial(receive.zroute_receive, quotes, "tracked", many=many),
        }
    zroute = partial(publish.zroute_publish, _MESSAGES, "json")
    published = {
        "published, one topic": {
            BY_HAND: partial(publish.by_hand, _MESSAGES, "json"),
            PLAIN: partial(zroute, "plain"),
            TRACKED: partial(zroute, "tracked"),
        },
        "published, topic from the message": {
            BY_HAND: partial(publish.by_hand, _MESSAGES, "json", of_message=True),
            PLAIN: partial(zroute, "plain", pattern="stocks.{symbol}"),
            TRACKED: partial(zroute, "tracked", pattern="stocks.{symbol}"),
        },
    }
    return {**received, **published}


def _counted(run: Callable[[], object], messages: int) -> Figures:
    """Run a loop between two requests; the stand-in for `benchmarks.running.measured`.

    Print the number of its ``messages``, because a reader may have read some of them before.
    """
    gc.collect()  # do not charge a loop for the garbage of the one before
    _request(_ZERO)
    run()
    _request(_DUMP)
    print(messages, flush=True)
    return {}


def _run() -> None:
    """Run all loops once; called inside valgrind.

    Valgrind makes a handler fifty times slower. The clocks of `Connection.doRead` and of coalesced frames stand still,
    so that a turn of the reactor reads as many messages as on a fast machine, and the same number in each run.
    """
    publish.measured = receive.measured = _counted  # type: ignore[attr-defined]
    connection.perf_counter = frames.perf_counter = repeat(0.0).__next__  # type: ignore[attr-defined]
    for group in _loops().values():
        for loop in group.values():
            loop()


def ratios() -> dict[str, float]:
    """Return the instructions of each row, as a ratio to the hand-written loop of its group.

    Raises RuntimeError if valgrind fails.
    """
    rows = [(group, name) for group, loops in _loops().items() for name in loops]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        ran = subprocess.run(
            [*command, *python("instruction_ratios", "run")],
            cwd=ROOT,
            env={**environment, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        dumps = [
            path.read_text() for path in (Path(folder, f"out.{at + 1}") for at in range(len(rows))) if path.exists()
        ]
    found = [re.search(r"^(?:summary|totals): (\d+)", dump, re.MULTILINE) for dump in dumps]
    counts = [int(each[1]) / int(messages) for each, messages in zip(found, ran.stdout.split(), strict=False) if each]
    if ran.returncode or len(counts) != len(rows):
        raise RuntimeError(f"valgrind counted {len(counts)} of {len(rows)} loops: {ran.stderr[-300:]}")
    by_hand = {group: count for (group, name), count in zip(rows, counts, strict=True) if name == BY_HAND}
    return {
        f"{group}: {name}": round(count / by_hand[group], 3)
        for (group, name), count in zip(rows, counts, strict=True)
        if name != BY_HAND
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        _run()
        os._exit(0)  # valgrind need not count how sockets close
    print(json.dumps({"python": sys.version, "ratios": ratios()}, indent=2))
