"""Measure the start of ``zroute run``: CPU time, or instructions, beside the imports that it can't avoid.

::

    python benchmarks/bench_start.py [--rounds 15] [--instructions] [--handlers 10000]

``zroute run`` starts a small app and stops it at once. Beside it, a new Python imports only the reactor, click, zmq,
msgspec and attrs. The rounds are interleaved; the figures are the lowest of all rounds, and the ratio is the median of
the ratios of a round. Both read compiled modules, as an installed package does.

With ``--instructions``, callgrind counts instructions once instead, which other processes do not disturb.

With ``--handlers``, an app with that many handlers, each with its own pattern, is registered, compiled and started. The
figures are CPU times of the thread, and the memory that is used afterwards.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SMALL = """
import attrs
from zroute import App

app = App(sub="tcp://127.0.0.1:9", pub="tcp://127.0.0.1:*")

@attrs.frozen
class Quote:
    symbol: str
    price: float

alerts = app.publisher("alerts.{level}", str)

@app.subscribe("stocks.{symbol}")
def on_quote(quote: Quote, symbol: str) -> None:
    alerts.publish(symbol, level="high")
"""
"""The app, as a module: one handler and one publisher."""

IMPORTS = ("-c", "from twisted.internet import reactor; import click, zmq, msgspec, attrs")
RUN = ("-m", "zroute", "run", "small:app", "--for", "0s")


@contextmanager
def prepared() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a folder with the app and the variables for `cpu` and `instructions`; all modules are compiled.

    Coverage, which would measure zroute but not the other imports, is left out.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small.py").write_text(SMALL)
        # Not the folder of the project: each file that another program adds there makes Python list the folder again.
        (folder / "packages").mkdir()
        (folder / "packages" / "zroute").symlink_to(ROOT / "zroute")
        ours = {
            "PYTHONPATH": str(folder / "packages"),
            "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
            "PYTHONHASHSEED": "0",
        }
        unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        environment = {**unmeasured, **ours}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for arguments in (IMPORTS, RUN):
            cpu(arguments, folder, environment)
        yield folder, environment


def cpu(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> float:
    """Return the CPU time of a new Python in seconds, user and system."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {child.returncode}")
    return used.ru_utime + used.ru_stime


def instructions(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> int:
    """Return the instructions of a new Python, counted by callgrind."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, *arguments]
    ran = subprocess.run(valgrind, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode or not found:
        raise RuntimeError(f"valgrind failed: {ran.stderr[-300:]}")
    return int(found[1])


def many_handlers(number: int) -> str:
    """Return the CPU times and the memory of the start of an app with ``number`` handlers."""
    import zmq

    from benchmarks.memory import function, resident
    from benchmarks.receive import StillReactor
    from zroute import App
    from zroute.endpoints import Endpoint
    from zroute.runtime.service import AppService

    functions, before = [function() for _ in range(number)], resident()
    times = [time.thread_time()]
    app = App(sub="inproc://handlers", codec="json", context=zmq.Context())
    for desk, each in enumerate(functions):
        app.add_route(each, f"desk{desk}.*")
    times.append(time.thread_time())
    compiled = app.compile()
    times.append(time.thread_time())
    service = AppService(compiled, StillReactor(), sub=(Endpoint("inproc://handlers", bind=True),))
    service.startService()
    times.append(time.thread_time())
    registered, compiled_in, started = (later - earlier for earlier, later in pairwise(times))
    return (
        f"{number:,} handlers: registered in {registered:.2f} s, compiled in {compiled_in:.2f} s, started in "
        f"{started:.2f} s: {times[-1] - times[0]:.2f} s CPU; {resident() - before:.0f} MiB"
    )


def main() -> None:
    """Print the figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--instructions", action="store_true")
    arguments.add_argument("--handlers", type=int)
    options = arguments.parse_args()
    if options.handlers:
        print(many_handlers(options.handlers), flush=True)
        os._exit(0)  # the service would have to be stopped before its sockets are
    if options.instructions and not shutil.which("valgrind"):
        raise SystemExit("valgrind is not installed")
    with prepared() as (folder, environment):
        if options.instructions:
            imports, run = (instructions(each, folder, environment) for each in (IMPORTS, RUN))
            print(f"imports {imports / 1e6:,.0f} M, zroute run {run / 1e6:,.0f} M instructions: x {run / imports:.2f}")
            return
        pairs = [tuple(cpu(each, folder, environment) for each in (IMPORTS, RUN)) for _ in range(options.rounds)]
    ratio = statistics.median(run / imports for imports, run in pairs)
    imports, run = (min(figures) * 1000 for figures in zip(*pairs, strict=True))
    print(f"imports {imports:.0f} ms, zroute run {run:.0f} ms CPU: x {ratio:.2f}")


if __name__ == "__main__":
    main()
