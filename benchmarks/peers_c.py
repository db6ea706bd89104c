"""libzmq in C: ``peer.c``, built once if a compiler and ``zmq.h`` are installed."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

from benchmarks.children import line, started
from benchmarks.running import THREAD, Contestant, Figures

__all__ = ["NAME", "absent", "command", "contestant", "version"]

NAME = "libzmq in C"


@cache
def _built() -> tuple[Path, str | None]:
    """Return the path of the program, and the reason if it could not be built."""
    compiler = shutil.which("cc")
    folder = Path(tempfile.mkdtemp(prefix="zroute-benchmarks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = folder / "peer"
    if compiler is None:
        return program, "no C compiler (cc) is installed"
    source = Path(__file__).with_name("peer.c")
    built = subprocess.run([compiler, "-O2", "-o", program, source, "-lzmq"], capture_output=True, check=False)
    if built.returncode:
        return program, "zmq.h and libzmq are not installed for C (Debian: libzmq3-dev)"
    return program, None


def absent() -> str | None:
    """Return the reason why the C program is missing, or None."""
    return _built()[1]


def command(*arguments: object) -> list[str]:
    """Return the command line of the C program."""
    return [str(_built()[0]), *map(str, arguments)]


def version() -> str | None:
    """Return the version of the system's libzmq, which is not pyzmq's.

    Returns None if the program is missing.
    """
    if absent() is not None:
        return None
    with started(command("version")) as process:
        return str(line(process))


def _measure(mode: str, count: int, size: int) -> Figures:
    with started(command(mode, count, size)) as process:
        figures: Figures = line(process)
        return figures


def contestant(mode: str, count: int, size: int) -> Contestant:
    """Return an inproc mode of ``peer.c``, which neither decodes nor encodes."""
    return Contestant(NAME, partial(_measure, mode, count, size), THREAD, absent())
