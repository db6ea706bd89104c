"""``zroute run --reload``: run apps, and restart them when a file changes.

The apps run in a child process. The parent only watches files and restarts the child, so each start uses a new process.
A pipe connects the two processes: the parent has the writing end, and the child waits until this end is closed. The
parent closes the pipe to stop the child, and the system closes it if the parent dies.

Signals would not work for this purpose: Ctrl-C and timeout(1) signal both processes, and a second signal would end the
child without a drain.
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
_PERIOD = 0.5  # seconds between two checks of all files, without watchfiles
_GRACE = 5.0  # seconds after the drain timeout, to handle received messages and flush sockets; 1 s is a reserve
_HURRY = 1.0  # seconds that a child has after a second signal: a terminal sends the signal to the child too
_IGNORED = {"__pycache__", "node_modules", "venv"}

_log = logging.getLogger("zroute")

Snapshot = dict[Path, tuple[int, int]]
"""The modification time (in ns) and size (in bytes) of Python files, by path."""


def supervise(arguments: Sequence[str], folders: Iterable[Path], seconds: float | None) -> int:
    """Run ``zroute run`` with ``arguments`` until a signal, and return the exit code.

    A change of a Python file in ``folders`` restarts the child. If the child has ended by itself, the next change
    starts it again. The command ends after ``seconds`` seconds. The first child has the same limit, and ends by itself.

    Returns:
        The exit code of the last child, or 128 + n after a second signal with the number n.
    """
    return _Supervisor(arguments, tuple(folders), seconds).run()


def end_with_parent(drain_timeout: float) -> None:
    """Make this child process stop when its parent requests a stop or has ended.

    If the stop takes longer than ``drain_timeout`` and a few more seconds, the process ends with exit code 75.
    Does nothing in a process that is not a child of ``zroute run --reload``.
    """
    descriptor = os.environ.pop(_VARIABLE, None)
    if descriptor is not None:
        os.set_inheritable(int(descriptor), False)
        arguments = (int(descriptor), drain_timeout + _GRACE)
        threading.Thread(target=_end, args=arguments, name="zroute-parent", daemon=True).start()


def _end(descriptor: int, patience: float) -> None:
    """Wait until the pipe is closed, then stop the apps.

    If the process is still running ``patience`` seconds later, end it.
    """
    from zroute.runtime.exit_codes import EXIT_DRAIN
    from zroute.runtime.runner import end_now, stop

    os.read(descriptor, 1)  # returns when the parent, which writes nothing, closes the pipe or dies
    if not stop("--reload"):
        os.kill(os.getpid(), signal.SIGTERM)  # no app runs yet, so there is nothing to drain
    time.sleep(patience)
    end_now(EXIT_DRAIN, f"the apps have not stopped within {patience:g} s: ending the process now")


class _Child:
    """A child process that runs the apps.

    When the process ends, ``ended`` is called with its exit code, in a thread. The code is -n if a signal with the
    number n ended the process.
    """

    def __init__(self, command: Sequence[str], ended: Callable[[int], None]) -> None:
        reading, self._pipe = os.pipe()
        environment = {**os.environ, _VARIABLE: str(reading)}
        # Otherwise the child would supervise a child of its own.
        environment.pop("ZROUTE_RELOAD", None)
        self._process = subprocess.Popen(command, env=environment, pass_fds=(reading,))
        # Only the child reads. No other process inherits the writing end, so the death of this process closes the pipe.
        os.close(reading)
        self.stopping = False
        _start_thread(lambda: ended(self._process.wait()))

    def stop(self) -> None:
        """Ask the process to drain and end. Further calls have no effect."""
        if not self.stopping:
            self.stopping = True
            os.close(self._pipe)

    def end_now(self) -> None:
        """Wait a second for the process to end, then kill it."""
        try:
            self._process.wait(_HURRY)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Supervisor:
    """The parent process, which handles one event after the other.

    Events are signals, changed files, the end of the run time, and the end of the child. Other threads put events into
    a queue. Only the main thread starts and stops the child.
    """

    def __init__(self, arguments: Sequence[str], folders: tuple[Path, ...], seconds: float | None) -> None:
        # Python identifies cached bytecode by the file's size and its modification time in seconds. Without -B, a file
        # that is saved twice in a second, with the same size, would run as it was compiled the first time.
        self._command = [sys.executable, "-B", "-m", "zroute", "run", *arguments]
        self._folders = folders
        self._events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._child: _Child | None = None
        self._code = 0
        self._seconds = seconds
        self._over = self._restarted = False
        self._ending = threading.Event()

    def run(self) -> int:
        """Watch, run and restart the child, and return the exit code."""
        woken = waking_descriptor()
        for number in ENDING:
            signal.signal(number, lambda number, _frame: self._events.put(("signal", number)))
        _start_thread(lambda: self._wake(woken))
        before = snapshot(self._folders)  # the child may read files before the thread watches them
        watching = _start_thread(lambda: _watch(self._folders, before, self._changed, self._ending))
        _log.info("watching the Python files in %s", ", ".join(map(str, self._folders)))
        if self._seconds is not None:
            _start_thread(self._wait_for_end)
        self._start()
        try:
            return self._supervise()
        finally:
            self._ending.set()
            watching.join(_HURRY)  # a thread inside watchfiles can delay the end of the process

    def _supervise(self) -> int:
        """Handle events until the command and the child have ended."""
        signalled = None
        while self._child is not None or not (self._over or signalled is not None):
            event, value = self._events.get()
            if event == "signal" and signalled is not None and self._child is not None:
                self._child.end_now()
                return 128 + int(value)
            elif event == "signal":
                signalled = value
                self._stop()
            elif event == "over":
                self._over = True
                if self._restarted:
                    self._stop()
            elif event == "changed" and signalled is None and not self._over:
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
        """Wake the main thread on each signal.

        This is needed because Python runs signal handlers in the main thread, which is waiting for the queue.
        """
        while os.read(woken, 1):
            self._events.put(("woken", None))

    def _wait_for_end(self) -> None:
        self._ending.wait(self._seconds)
        self._events.put(("over", None))

    def _changed(self, path: Path) -> None:
        self._events.put(("changed", path))

    def _change(self, path: Path) -> None:
        """Restart the child, because the file ``path`` has changed."""
        if self._child is None:
            _log.info("%s has changed: restarting", path)
            self._start()
        elif not self._child.stopping:  # otherwise the restart that has begun will include this change
            _log.info("%s has changed: restarting", path)
            self._child.stop()

    def _ended(self, code: int, signalled: int | None) -> None:
        """Keep the exit code of the child.

        Start a new child if a change has stopped this one.
        """
        assert self._child is not None
        stopped = self._child.stopping
        self._child.stop()  # close the pipe if the child ended by itself
        self._child = None
        self._code = 128 + (signalled or -code) if code < 0 else code  # the code that a shell shows
        if self._over and stopped and code == -signal.SIGTERM:  # the child had not begun to run its apps
            self._code = 0
        if self._over or signalled is not None:
            return
        self._restarted = True
        if stopped:
            self._start()
        else:
            _log.warning("the program ended with exit code %d: waiting for a file to change", self._code)


def _start_thread(work: Callable[[], None]) -> threading.Thread:
    """Start and return a thread that receives no signals.

    If signals arrive in quick succession, the system may deliver one of them to another thread. The main thread, which
    runs Python's signal handlers, would then not wake up.
    """
    thread = threading.Thread(target=work, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


def _watch(
    folders: tuple[Path, ...], before: Snapshot, changed: Callable[[Path], None], ending: threading.Event
) -> None:
    """Call ``changed`` with one file of each change since ``before``.

    The function returns when ``ending`` is set. If several files have changed at once, the first by name is passed.
    Uses watchfiles if it is installed.
    """
    try:
        from watchfiles import watch
    except ImportError:
        _log.debug(
            "watchfiles is not installed, so zroute checks the files every %g s. To install watchfiles: "
            "pip install 'zroute[reload]'",
            _PERIOD,
        )
        _poll(folders, before, changed, ending)
        return
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it would also log each change
    watched = watch(
        *folders,
        watch_filter=lambda _, path: _is_source(Path(path), folders),
        stop_event=ending,
        rust_timeout=round(_PERIOD * 1000),
        yield_on_timeout=True,
    )
    for number, changes in enumerate(watched):
        paths = {Path(path) for _, path in changes}
        if number == 0 and (missed := difference(before, snapshot(folders))):  # before watchfiles began to watch
            paths.add(missed)
        if paths:
            changed(min(paths))


def _poll(
    folders: tuple[Path, ...], before: Snapshot, changed: Callable[[Path], None], ending: threading.Event
) -> None:
    """Watch folders like `_watch`, by comparing all files every ``_PERIOD`` seconds."""
    while not ending.wait(_PERIOD):
        now = snapshot(folders)
        path = difference(before, now)
        if path is not None:
            changed(path)
        before = now


def snapshot(folders: Iterable[Path]) -> Snapshot:
    """Return the current state of the Python files in ``folders``.

    Subfolders are included, except hidden folders, ``__pycache__``, ``venv`` and ``node_modules``.
    """
    found: Snapshot = {}
    for folder in folders:
        for place, inner, files in os.walk(folder):
            # Changed in place: os.walk enters only the folders that are left in this list.
            inner[:] = [name for name in inner if not _is_ignored(name)]
            for path in (Path(place, name) for name in files if name.endswith(".py")):
                try:
                    status = path.stat()
                except OSError:  # the file was just deleted
                    continue
                found[path] = (status.st_mtime_ns, status.st_size)
    return found


def difference(before: Snapshot, now: Snapshot) -> Path | None:
    """Return the first file, by name, that was added, removed or changed; else None."""
    return min((path for path in before.keys() | now.keys() if before.get(path) != now.get(path)), default=None)


def _is_source(path: Path, folders: tuple[Path, ...]) -> bool:
    """Return True if ``path`` is a Python file that is not in an ignored folder."""
    folder = next((folder for folder in folders if path.is_relative_to(folder)), None)
    parts = path.relative_to(folder).parts if folder else path.parts
    return path.suffix == ".py" and not any(map(_is_ignored, parts[:-1]))


def _is_ignored(name: str) -> bool:
    """Return True if folders with this name are not watched."""
    return name.startswith(".") or name in _IGNORED
