"""``zroute run --reload``: run the apps in a child process, and anew whenever a file of theirs changes.

The parent only watches and restarts, so that every start is a clean one. It holds the writing end of a pipe whose
end the child waits for: closing it is how the parent asks for a stop, and what happens when the parent dies. A
signal would not do, because Ctrl-C and `timeout` signal both, and a second one ends the child without a drain.
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

from zroute.runtime.signals import ENDING, waking_descriptor

__all__ = ["Snapshot", "difference", "end_with_parent", "snapshot", "supervise"]

_VARIABLE = "ZROUTE_PARENT_PIPE"
_PERIOD = 0.5  # seconds between two looks at all files, without watchfiles
_GRACE = 5.0  # seconds beyond the drain timeout: to catch up, for sockets to be flushed, and one to spare
_HURRY = 1.0  # seconds for a child to end at a second signal, which a terminal sends to it too
_IGNORED = {"__pycache__", "node_modules", "venv"}

_log = logging.getLogger("zroute")

Snapshot = dict[Path, tuple[int, int]]
"""The Python files of some folders, with the time they were changed (ns) and their size."""


def supervise(arguments: Sequence[str], folders: Iterable[Path]) -> int:
    """Run ``zroute run`` with ``arguments`` until a signal, and again at each change in ``folders``; the exit code.

    It is that of the last child, and 128 + n after a second signal n. A child that ends by itself is waited on: the
    next change starts it again.
    """
    return _Supervisor(arguments, tuple(folders)).run()


def end_with_parent(drain_timeout: float) -> None:
    """In the child: stop when the parent asks for it or is gone, and end when ``drain_timeout`` seconds did not do."""
    descriptor = os.environ.pop(_VARIABLE, None)
    if descriptor is not None:
        os.set_inheritable(int(descriptor), False)
        arguments = (int(descriptor), drain_timeout + _GRACE)
        threading.Thread(target=_end, args=arguments, name="zroute-parent", daemon=True).start()


def _end(descriptor: int, patience: float) -> None:
    from zroute.runtime.runner import EXIT_DRAIN, end_now, stop

    os.read(descriptor, 1)  # nobody writes: it returns when the other end is closed
    if not stop("--reload"):
        os.kill(os.getpid(), signal.SIGTERM)  # a module that is being imported has nothing to drain
    time.sleep(patience)
    end_now(EXIT_DRAIN, f"still at work {patience:g} s after it was to stop: ending at once")


class _Child:
    """The apps in a process of their own; ``ended`` is called with its exit code, in a thread."""

    def __init__(self, command: Sequence[str], ended: Callable[[int], None]) -> None:
        reading, self._pipe = os.pipe()
        environment = {**os.environ, _VARIABLE: str(reading)}
        environment.pop("ZROUTE_RELOAD", None)
        self._process = subprocess.Popen(command, env=environment, pass_fds=(reading,))
        os.close(reading)
        self.stopping = False
        _start_thread(lambda: ended(self._process.wait()))

    def stop(self) -> None:
        """Ask it to drain and end; as often as one likes."""
        if not self.stopping:
            self.stopping = True
            os.close(self._pipe)

    def end_now(self) -> None:
        """Return when it has ended."""
        try:
            self._process.wait(_HURRY)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Supervisor:
    def __init__(self, arguments: Sequence[str], folders: tuple[Path, ...]) -> None:
        # Without -B a file saved twice in a second, with as many bytes, would run as it was compiled the first time.
        self._command = [sys.executable, "-B", "-m", "zroute", "run", *arguments]
        self._folders = folders
        self._events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._child: _Child | None = None
        self._code = 0
        self._ending = threading.Event()

    def run(self) -> int:
        woken = waking_descriptor()
        for number in ENDING:
            signal.signal(number, lambda number, _frame: self._events.put(("signal", number)))
        _start_thread(lambda: self._wake(woken))
        watching = _start_thread(lambda: _watch(self._folders, self._changed, self._ending))
        _log.info("watching the Python files in %s", ", ".join(map(str, self._folders)))
        self._start()
        try:
            return self._supervise()
        finally:
            self._ending.set()
            watching.join(_HURRY)  # a thread in the middle of watchfiles' own code can hold up the end of the process

    def _supervise(self) -> int:
        signalled = None
        while self._child is not None or signalled is None:
            event, value = self._events.get()
            if event == "signal" and signalled is not None and self._child is not None:
                self._child.end_now()
                return 128 + int(value)
            elif event == "signal":
                signalled = value
                self._stop()
            elif event == "changed" and signalled is None:
                self._change(value)
            elif event == "ended":
                self._ended(value, signalled)
        return self._code

    def _start(self) -> None:
        self._child = _Child(self._command, lambda code: self._events.put(("ended", code)))

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def _wake(self, woken: int) -> None:
        """Wake the main thread at each signal, so that it runs the handler."""
        while os.read(woken, 1):
            self._events.put(("woken", None))

    def _changed(self, path: Path) -> None:
        self._events.put(("changed", path))

    def _change(self, path: Path) -> None:
        if self._child is None:
            _log.info("%s has changed: starting anew", path)
            self._start()
        elif not self._child.stopping:  # else it starts anew anyway, with this change too
            _log.info("%s has changed: starting anew", path)
            self._child.stop()

    def _ended(self, code: int, signalled: int | None) -> None:
        assert self._child is not None
        stopped = self._child.stopping
        self._child.stop()  # closes the pipe, if it ended by itself
        self._child = None
        self._code = 128 + (signalled or -code) if code < 0 else code  # as a shell tells it
        if signalled is None and stopped:
            self._start()
        elif signalled is None:
            _log.warning("the program has ended with %d: waiting for a change", self._code)


def _start_thread(work: Callable[[], None]) -> threading.Thread:
    """A thread that takes no signals: the system gives it a second one that comes at once, and the main thread, whose
    work Python's handlers are, sleeps on."""
    thread = threading.Thread(target=work, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


def _watch(folders: tuple[Path, ...], changed: Callable[[Path], None], ending: threading.Event) -> None:
    try:
        from watchfiles import watch
    except ImportError:
        _log.debug(
            "watchfiles is not installed, so files are looked at every %g s: pip install 'zroute[reload]'", _PERIOD
        )
        _poll(folders, changed, ending)
        return
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of each change, and so do we
    for changes in watch(*folders, watch_filter=lambda _, path: _is_source(Path(path), folders), stop_event=ending):
        changed(Path(sorted(path for _, path in changes)[0]))


def _poll(folders: tuple[Path, ...], changed: Callable[[Path], None], ending: threading.Event) -> None:
    before = snapshot(folders)
    while not ending.wait(_PERIOD):
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
