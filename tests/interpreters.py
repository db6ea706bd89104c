"""Start Python programs: in the thorough profile as new interpreters, in the quick profile as forks.

A fork (`tests/template.py`) is a process of its own, with the arguments, streams, folder, variables and process group
that a new interpreter would have. It does not repeat the imports. Programs whose start or imports are what a test is
about need ``fresh=True``. A program gets a new interpreter too if an option or a variable concerns the interpreter
itself, if it inherits file descriptors, and if coverage measures it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0
"""Seconds until a waiting test fails. The limit is long because machines are busy; a passing test never reaches it."""

THOROUGH = os.environ.get("TESTS") == "thorough"
"""True if tests run with the sizes of CI: all examples, all ways to connect, floods of full length."""

FORKED = {"PYTHONPATH", "PYTHONUNBUFFERED"}
"""Variables of the interpreter that a fork can follow."""

UNMEASURED = dict.fromkeys(("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"))
"""Variables for `start`, so that coverage does not measure the program.

Measured code takes several times as long. A program that must keep up with others runs without.
"""

_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
"""The variables of the template."""

OF_THE_START = ("COVERAGE_", "DYLD_", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ")
"""How the names of variables begin that only a new process follows."""


def start(
    *arguments: str,
    cwd: Path | str = ROOT,
    env: Mapping[str, str | None] | None = None,
    fresh: bool = False,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start ``python ARGUMENTS`` with this environment and ``env``, in which None removes a variable.

    ``options`` are those of Popen.

    A program that is ``fresh`` has a new interpreter, which imports everything itself.
    """
    wanted = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    environment = {name: value for name, value in wanted.items() if value is not None}
    forks = not fresh and not options.get("pass_fds") and can_fork(arguments, environment)
    return (Fork if forks else subprocess.Popen)([sys.executable, *arguments], cwd=cwd, env=environment, **options)


def run(
    *arguments: str, given: str | bytes | None = None, text: bool = True, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run ``python ARGUMENTS`` to its end, with the input ``given``; ``options`` are those of `start`."""
    pipes = dict.fromkeys(("stdout", "stderr", *(() if given is None else ("stdin",))), subprocess.PIPE)
    with start(*arguments, text=text, **pipes, **options) as process:
        try:
            output = process.communicate(given, PATIENCE)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def can_fork(arguments: tuple[str, ...], environment: Mapping[str, str]) -> bool:
    """Return True if a fork would see what a new interpreter sees."""
    if THOROUGH or "COVERAGE_PROCESS_CONFIG" in environment or "COVERAGE_PROCESS_START" in environment:
        return False
    changed = {name for name, value in environment.items() ^ _ENVIRONMENT.items()} - FORKED
    plain = arguments[0] in ("-c", "-m") or not arguments[0].startswith("-")
    return plain and not any(name.startswith(OF_THE_START) for name in changed)


class Fork(subprocess.Popen[Any]):
    """A fork of the template. It replaces the three methods of Popen that reach the operating system."""

    def _execute_child(self, args: list[str], *options: Any) -> None:
        _, _, _, _, cwd, env, _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest = options
        session, group = rest[-2:]
        streams = [number if theirs == -1 else theirs for number, theirs in enumerate((p2cread, c2pwrite, errwrite))]
        request = {
            "arguments": list(map(os.fspath, args[1:])),
            "folder": str(cwd),
            "environment": env,
            "group": {"session": session, "group": group},
        }
        self.pid = template().ask(request, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        while True:
            process, status = template().ask({"process": self.pid})
            if process or wait_flags & os.WNOHANG:
                return process, status
            time.sleep(0.005)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                process, status = self._try_wait(os.WNOHANG)
                if process:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


@cache
def _template() -> Template:
    return Template()


_beginning = threading.Lock()


def template() -> Template:
    """Return the process to fork; it ends with this process, which holds the other end of its socket."""
    with _beginning:  # two threads must not start one each, because a template knows only its own forks
        return _template()


def has_template() -> bool:
    """Return True if the process to fork was started."""
    return bool(_template.cache_info().currsize)


class Template:
    """A process of `tests/template.py`."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "template.py", str(theirs.fileno())],
            cwd=ROOT,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # no Ctrl-C of a terminal
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._lines = self._socket.makefile("rw")
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], streams: list[int] | None = None) -> Any:
        """Return the id of a new process with these ``streams``, or without them, what waitpid() returns."""
        with self._lock:
            socket.send_fds(self._socket, [b"!"], streams or [])
            print(json.dumps(request), file=self._lines, flush=True)
            return json.loads(self._lines.readline())

    def end(self) -> None:
        """End the process."""
        self._lines.close()
        self._socket.close()
        self._process.communicate()
