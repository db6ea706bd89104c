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
from types import FrameType
from typing import Any

import twisted
import zmq

from zroute.functions import PACKAGE, short_path

__all__ = ["BLOCKED", "Watchdog"]

BLOCKED = 1.0
"""Seconds without a turn after which somebody is said to block: far more than any turn should take."""

_BEAT = 0.25

_log = logging.getLogger("zroute")

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_FRAMEWORK = (
    "<zroute",  # generated code
    "<frozen ",
    PACKAGE,
    *(os.path.dirname(str(package.__file__)) + os.sep for package in (twisted, zmq)),
)


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
        seen, silent = self._beaten, 0
        while not self._ended.wait(_BEAT):
            # Looks are counted, and not time: while the process is stopped or starved this thread does not look either.
            seen, silent = self._beaten, silent + 1 if self._beaten == seen else 0
            if silent * _BEAT >= BLOCKED and not self._told:
                frame = _users(sys._current_frames().get(self._thread))
                if frame is not None:  # else the reactor waits for something to happen
                    self._told = True
                    self._say(frame, time.monotonic() - seen)

    def _say(self, frame: FrameType, silent: float) -> None:
        code, line = frame.f_code, frame.f_lineno
        source = linecache.getline(code.co_filename, line).strip()
        _log.warning(
            "%s() at %s:%d has kept the reactor for %.1f s%s: nothing is received or sent meanwhile; await something "
            "asynchronous there, or run it in a thread: @app.subscribe(…, thread=True)",
            code.co_qualname,
            short_path(code.co_filename),
            line,
            silent,
            f" in `{source}`" if source else "",
        )


def _users(frame: FrameType | None) -> FrameType | None:
    """Who is at work: the innermost frame of the user's own code, else what the reactor called of an installed package.

    None when the reactor waits, or has called nobody but Twisted and zroute.
    """
    installed = None
    while frame is not None and not _runs_the_reactor(frame):
        name = frame.f_code.co_filename
        if any(part in name for part in _INSTALLED):
            installed = installed if name.startswith(_FRAMEWORK) else frame
        elif not name.startswith((_STDLIB, *_FRAMEWORK)):
            return frame
        frame = frame.f_back
    return installed


def _runs_the_reactor(frame: FrameType) -> bool:
    """Whether this is `zroute.runtime.runner` at its ``reactor.run()``; what stands outside of it waits for the end."""
    return frame.f_code.co_name == "run" and frame.f_globals.get("__name__") == "zroute.runtime.runner"
