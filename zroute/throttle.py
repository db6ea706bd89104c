"""Throttled log lines for faults that can occur thousands of times.

The first lines of each kind are logged in full; further lines are counted. The count is logged when the time window
ends, or by `ThrottledLog.close`, so no line is dropped silently. The clock is an argument.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

import attrs

from zroute.clock import Clock

__all__ = ["BURST", "WINDOW", "ThrottledLog"]

BURST = 5
"""The number of lines of one kind that are logged in full per window. This is enough to see a pattern."""

WINDOW = 10.0
"""The length of a window in seconds. It is short enough to follow the count in the log."""


@attrs.define
class _Window:
    subject: str
    level: int
    timer: Any
    burst: int
    lines: int = 0
    held_back: int = 0


class ThrottledLog:
    """A logger that limits the number of lines of each kind.

    In ``window`` seconds (default `WINDOW`), it logs ``burst`` lines of each kind (default `BURST`), and then the
    number of further lines.
    """

    def __init__(
        self, log: logging.Logger, clock: Clock, *, burst: int | None = None, window: float | None = None
    ) -> None:
        self._log = log
        self._clock = clock
        self._burst = BURST if burst is None else burst
        self._seconds = WINDOW if window is None else window
        self._windows: dict[Hashable, _Window] = {}  # by kind, each until its timer fires

    def __call__(
        self,
        key: Hashable,
        subject: str,
        level: int,
        text: str,
        *args: object,
        error: BaseException | None = None,
        once_in: float | None = None,
    ) -> None:
        """Log ``text % args``, with the traceback of ``error``.

        Args:
            key: The kind of the line. It must not contain data from a peer, because each key uses memory until its
                window ends.
            subject: The name of the kind in the summary.
            level: The level, as in `logging`.
            text: The text of the line.
            args: The values in the text.
            error: The exception to log with its traceback.
            once_in: The length in seconds of a window with a single line, for faults that are repeated for as long as
                their cause exists. Default: the window and the lines of this log.
        """
        window = self._windows.get(key)
        if window is None:
            timer = self._clock.callLater(self._seconds if once_in is None else once_in, self._close, key)
            window = self._windows[key] = _Window(subject, level, timer, self._burst if once_in is None else 1)
        if window.lines < window.burst:
            window.lines += 1
            self._log.log(level, text, *args, exc_info=error)
        else:
            window.held_back += 1

    def __len__(self) -> int:
        """Return the number of kinds with a line in the current window."""
        return len(self._windows)

    def __contains__(self, key: Hashable) -> bool:
        """Return True if a line of this kind was logged in the current window."""
        return key in self._windows

    def end(self, key: Hashable) -> None:
        """End the window of a kind, and log its count.

        The next line of this kind is logged in full.
        """
        window = self._windows.get(key)
        if window is not None:
            window.timer.cancel()
            self._close(key)

    def close(self) -> None:
        """Log the remaining counts, and stop all timers."""
        for key in tuple(self._windows):
            self.end(key)

    def _close(self, key: Hashable) -> None:
        window = self._windows.pop(key)
        if window.held_back:
            self._log.log(window.level, "%s: %d more lines like these were not shown", window.subject, window.held_back)
