"""libzmq in C: ``peer.c``, built once where there are a compiler and ``zmq.h``."""

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
    """The program, and why there is none."""
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
    """Why it can't take part."""
    return _built()[1]


def command(*arguments: object) -> list[str]:
    """What runs it."""
    return [str(_built()[0]), *map(str, arguments)]


def version() -> str | None:
    """That of its libzmq, which is the system's and not that of pyzmq; None where it is absent."""
    if absent() is not None:
        return None
    with started(command("version")) as process:
        return str(line(process))


def _measure(mode: str, count: int, size: int) -> Figures:
    with started(command(mode, count, size)) as process:
        figures: Figures = line(process)
        return figures


def contestant(mode: str, count: int, size: int) -> Contestant:
    """One of ``peer.c``'s two inproc modes; it neither decodes nor encodes."""
    return Contestant(NAME, partial(_measure, mode, count, size), THREAD, absent())
