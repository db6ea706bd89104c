"""``zroute run --reload``: run the apps in a child process, and anew whenever a file of theirs changes.

The parent only watches and restarts, so that every start is a clean one. The child ends when its parent does,
however that ends: it holds the reading end of a pipe that nobody ever writes to.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click

__all__ = ["Snapshot", "difference", "end_with_parent", "snapshot", "supervise"]

_VARIABLE = "ZROUTE_PARENT_PIPE"
_PERIOD = 0.5  # seconds between two looks at all files, without watchfiles
_IGNORED = {"__pycache__", "node_modules", "venv"}

_log = logging.getLogger("zroute")

Snapshot = dict[Path, tuple[int, int]]
"""The Python files of some folders, with the time they were changed (ns) and their size."""


def supervise(arguments: Sequence[str], folders: Iterable[Path]) -> int:
    """Run ``zroute run`` with ``arguments`` until a signal, and again at each change in ``folders``; the exit code.

    A child that ends by itself is waited on: the next change starts it again.
    """
    return _Supervisor(arguments, tuple(folders)).run()


def end_with_parent() -> None:
    """In the child: stop as after SIGTERM when the parent is gone."""
    descriptor = os.environ.pop(_VARIABLE, None)
    if descriptor is None:
        return

    def wait() -> None:
        os.read(int(descriptor), 1)  # returns at the end of the file
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="zroute-parent", daemon=True).start()


class _Supervisor:
    def __init__(self, arguments: Sequence[str], folders: tuple[Path, ...]) -> None:
        self._command = [sys.executable, "-m", "zroute", "run", *arguments]
        self._folders = folders
        self._events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe = os.pipe()

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: self._events.put(("signal", number)))
        threading.Thread(target=_watch, args=(self._folders, self._changed), daemon=True).start()
        _say(f"watching the Python files in {', '.join(map(str, self._folders))}")
        self._start()
        signalled = restarting = False
        while True:
            event, value = self._events.get()
            if event == "signal":
                if self._child is None:
                    return 0
                signalled = True
                self._child.send_signal(value)
            elif event == "changed" and not signalled:
                _say(f"{value} has changed: starting anew")
                restarting = True
                if self._child is None:
                    restarting = False
                    self._start()
                else:
                    self._child.terminate()
            elif event == "ended":
                self._child = None
                if signalled:
                    return int(value)
                if restarting:
                    restarting = False
                    self._start()
                else:
                    _say(f"the program has ended with {value}: waiting for a change")

    def _start(self) -> None:
        environment = {**os.environ, _VARIABLE: str(self._pipe[0])}
        environment.pop("ZROUTE_RELOAD", None)
        # A process group of its own, so that Ctrl-C reaches it once, through here.
        self._child = child = subprocess.Popen(
            self._command, env=environment, pass_fds=(self._pipe[0],), process_group=0
        )
        threading.Thread(target=lambda: self._events.put(("ended", _code(child.wait()))), daemon=True).start()

    def _changed(self, path: Path) -> None:
        self._events.put(("changed", path))


def _code(returned: int) -> int:
    """As a shell tells it: 128 + n after signal n."""
    return 128 - returned if returned < 0 else returned


def _watch(folders: tuple[Path, ...], changed: Callable[[Path], None]) -> None:
    try:
        from watchfiles import watch
    except ImportError:
        _log.debug("watchfiles is not installed, so files are looked at every %g s", _PERIOD)
        _poll(folders, changed)
        return
    for changes in watch(*folders, watch_filter=lambda _, path: _is_source(Path(path), folders)):
        changed(Path(sorted(path for _, path in changes)[0]))


def _poll(folders: tuple[Path, ...], changed: Callable[[Path], None]) -> None:
    before = snapshot(folders)
    while True:
        time.sleep(_PERIOD)
        now = snapshot(folders)
        path = difference(before, now)
        if path is not None:
            changed(path)
        before = now


def snapshot(folders: Iterable[Path]) -> Snapshot:
    """How the Python files in ``folders`` are now."""
    found: Snapshot = {}
    for folder in folders:
        for place, inner, files in os.walk(folder):
            inner[:] = [name for name in inner if not _is_ignored(name)]
            for path in (Path(place, name) for name in files if name.endswith(".py")):
                try:
                    status = path.stat()
                except OSError:  # it has just gone
                    continue
                found[path] = (status.st_mtime_ns, status.st_size)
    return found


def difference(before: Snapshot, now: Snapshot) -> Path | None:
    """The first file that is new, gone or changed."""
    return min((path for path in before.keys() | now.keys() if before.get(path) != now.get(path)), default=None)


def _is_source(path: Path, folders: tuple[Path, ...]) -> bool:
    folder = next((folder for folder in folders if path.is_relative_to(folder)), None)
    parts = path.relative_to(folder).parts if folder else path.parts
    return path.suffix == ".py" and not any(map(_is_ignored, parts[:-1]))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def _say(text: str) -> None:
    click.echo(f"zroute: {text}", err=True)
