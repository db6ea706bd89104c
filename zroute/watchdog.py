"""Watchdog: says which line keeps the reactor from turning, while it does.

A handler that blocks stops everything: no message is received or sent, no timer runs, no signal is obeyed.
Timing each call would cost every message; a thread that looks now and then at a beat costs next to nothing.
"""

from __future__ import annotations

import linecache
import logging
import os
import sys
import sysconfig
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["BLOCKED", "Watchdog"]

BLOCKED = 1.0
"""Seconds without a turn after which somebody is said to block: far more than any turn should take."""

_BEAT = 0.25

_log = logging.getLogger("zroute")

_NOT_THE_USERS = (
    "<",  # generated code
    sysconfig.get_path("stdlib") + os.sep,
    str(Path(__file__).parent) + os.sep,
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_TURNS = ("mainLoop", "run_forever", "startRunning")  # what calls all else in Twisted's reactors and asyncio's loops


class Watchdog:
    """Watches ``reactor`` from `start` to `stop`, both called on its thread."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._thread = threading.get_ident()
        self._beaten = time.monotonic()
        self._told = False
        self._call: Any = None
        self._ended = threading.Event()

    def start(self) -> None:
        """From now on a turn that takes too long is said."""
        self._beat()
        threading.Thread(target=self._watch, name="zroute-watchdog", daemon=True).start()

    def stop(self) -> None:
        """No longer."""
        self._ended.set()
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        if self._told:
            self._told = False
            _log.warning("the reactor turns again, after %.1f s", now - self._beaten)
        self._beaten = now
        self._call = self._reactor.callLater(_BEAT, self._beat)

    def _watch(self) -> None:
        looked, spent, since = time.monotonic(), time.process_time(), 0.0
        while not self._ended.wait(_BEAT):
            now, cpu = time.monotonic(), time.process_time()
            if now - looked > 2 * _BEAT and cpu - spent < _BEAT:
                since = now  # the process itself was not running: stopped, or the machine slept
            looked, spent = now, cpu
            silent = now - max(self._beaten, since)
            if silent >= BLOCKED and not self._told:
                frame = _users(sys._current_frames().get(self._thread))
                if frame is not None:
                    self._told = True
                    self._say(frame, silent)

    def _say(self, frame: FrameType, silent: float) -> None:
        code, line = frame.f_code, frame.f_lineno
        source = linecache.getline(code.co_filename, line).strip()
        _log.warning(
            "%s() at %s:%d has kept the reactor for %.1f s%s: nothing is received or sent meanwhile; await something "
            "asynchronous there, or run it in a thread: @app.subscribe(…, thread=True)",
            code.co_qualname,
            os.path.relpath(code.co_filename),
            line,
            silent,
            f" in `{source}`" if source else "",
        )


def _users(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's code that the reactor has called."""
    found = None
    while frame is not None and frame.f_code.co_name not in _TURNS:
        name = frame.f_code.co_filename
        if found is None and not name.startswith(_NOT_THE_USERS) and not any(part in name for part in _INSTALLED):
            found = frame
        frame = frame.f_back
    return found if frame is not None else None
