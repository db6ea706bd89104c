"""A watchdog that logs the line that is blocking the reactor.

A handler that blocks stops everything: no message is received or sent, no timer runs, and no signal is handled.

The watchdog is a thread. Four times a second, it checks a timestamp that the reactor renews. Measuring each call
instead would cost time for every message.
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
"""The time in seconds without a turn of the reactor after which a warning names the running code. Turns should be much
faster.
"""

_BEAT = 0.25  # seconds between two renewals of the timestamp, and between two checks

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
    """A thread that watches ``reactor``.

    Call `start` and `stop` in the thread of the reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._thread = threading.get_ident()
        self._last_beat = time.monotonic()
        self._warned = False
        self._call: Any = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Log a warning for each turn of the reactor that takes too long."""
        self._beat()
        threading.Thread(target=self._watch, name="zroute-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._ended.set()
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        if self._warned:
            self._warned = False
            _log.warning("the reactor is running again after %.1f s", now - self._last_beat)
        self._last_beat = now
        self._call = self._reactor.callLater(_BEAT, self._beat)

    def _watch(self) -> None:
        seen, silent = self._last_beat, 0
        while not self._ended.wait(_BEAT):
            # Count checks instead of time: while the process is suspended or starved, this thread makes no checks.
            seen, silent = self._last_beat, silent + 1 if self._last_beat == seen else 0
            if silent * _BEAT >= BLOCKED and not self._warned:
                frame = _users_frame(sys._current_frames().get(self._thread))
                if frame is not None:  # None means that the reactor waits for events
                    self._warned = True
                    self._warn(frame, time.monotonic() - seen)

    def _warn(self, frame: FrameType, silent: float) -> None:
        code, line = frame.f_code, frame.f_lineno
        source = linecache.getline(code.co_filename, line).strip()
        _log.warning(
            "%s() at %s:%d has blocked the reactor for %.1f s%s: the app receives and sends nothing meanwhile. "
            "Await an asynchronous call instead, or run the handler in a thread (thread=True)",
            code.co_qualname,
            short_path(code.co_filename),
            line,
            silent,
            f" in `{source}`" if source else "",
        )


def _users_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of the user's code.

    If there is no such frame, return the frame of the installed package that the reactor called. Return None if the
    reactor is waiting, or only runs code of Twisted and zroute.
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
    """Return True if ``frame`` is the call that runs the reactor.

    This is the function ``run`` in `zroute.runtime.runner`. Its callers only wait for the end of the run.
    """
    return frame.f_code.co_name == "run" and frame.f_globals.get("__name__") == "zroute.runtime.runner"
