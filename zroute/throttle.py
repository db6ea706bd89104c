"""Log lines about faults that can come by the thousand: the first few in full, the rest counted.

Nothing is lost in silence here either: what a window held back is said when the window closes, and what
is held back at the end is said by `ThrottledLog.close`. The clock is an argument.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

import attrs

from zroute.clock import Clock

__all__ = ["BURST", "WINDOW", "ThrottledLog"]

BURST = 5
"""Lines in full for one kind of fault in one window: enough to see a pattern in them."""

WINDOW = 10.0
"""Seconds of a window: short enough that somebody who watches the log sees the count grow."""


@attrs.define
class _Window:
    subject: str
    level: int
    timer: Any
    lines: int = 0
    held_back: int = 0


class ThrottledLog:
    """A logger that says the same kind of thing ``burst`` times in ``window`` seconds, and then how often.

    By default that is `BURST` times in `WINDOW` seconds.
    """

    def __init__(
        self, log: logging.Logger, clock: Clock, *, burst: int | None = None, window: float | None = None
    ) -> None:
        self._log = log
        self._clock = clock
        self._burst = BURST if burst is None else burst
        self._seconds = WINDOW if window is None else window
        self._windows: dict[Hashable, _Window] = {}

    def __call__(
        self, key: Hashable, subject: str, level: int, text: str, *args: object, error: BaseException | None = None
    ) -> None:
        """Log ``text % args``, with the traceback of ``error``; ``key`` is the kind, ``subject`` its name.

        Keys must come from the program, never from a peer: each costs a window's memory.
        """
        window = self._windows.get(key)
        if window is None:
            timer = self._clock.callLater(self._seconds, self._close, key)
            window = self._windows[key] = _Window(subject, level, timer)
        if window.lines < self._burst:
            window.lines += 1
            self._log.log(level, text, *args, exc_info=error)
        else:
            window.held_back += 1

    def close(self) -> None:
        """Say what is still held back, and leave no timer behind."""
        for key, window in tuple(self._windows.items()):
            window.timer.cancel()
            self._close(key)

    def _close(self, key: Hashable) -> None:
        window = self._windows.pop(key)
        if window.held_back:
            self._log.log(window.level, "%s: %d more like these, not shown", window.subject, window.held_back)
