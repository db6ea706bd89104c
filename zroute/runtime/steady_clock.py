"""The clock of a reactor, which has to run on when the clock of the machine is set.

Twisted's reactors measure time by `time.time`. If that is set back by an hour, no timer fires for an hour; if it is set
forward, all timeouts of the next hour expire at once. So a reactor that runs an app measures time by `time.monotonic`.
Its clock still reads Unix time, until that is set: calls that were scheduled before stay right, and so does a program
that takes ``reactor.seconds()`` for Unix time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.internet.base import ReactorBase

__all__ = ["LOOK", "SteadyClock", "steady_clock"]

LOOK = 1.0
"""Seconds between two calls of `SteadyClock.look`."""

_STEP = 0.5
"""Seconds by which the clock of the machine is off before that is logged; a leap second is more."""

_log = logging.getLogger("zroute")


class SteadyClock:
    """Reads what ``wall`` read when it was made, plus the time since then.

    ``wall`` returns Unix time in seconds, and may jump.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._ahead = self._wall_ahead = wall() - monotonic()

    def seconds(self) -> float:
        """Return the time in seconds; it never jumps."""
        return self._ahead + monotonic()

    def look(self) -> None:
        """Log it if the clock of the machine has jumped since the last call: times in messages have jumped with it."""
        ahead = self._wall() - monotonic()
        step, far = ahead - self._wall_ahead, abs(ahead - self._wall_ahead)
        if far < _STEP:
            return
        self._wall_ahead = ahead
        _log.warning(
            "the clock of this machine was set %s: timers and timeouts go on as before, times in messages (sent_at, "
            "received_at, stale_after) follow the new time",
            f"back by {far:.1f} s" if step < 0 else f"forward by {far:.1f} s, or the machine slept for so long",
        )


def steady_clock(reactor: Any) -> SteadyClock | None:
    """Return the clock by which ``reactor`` measures time from now on, also in calls that are scheduled already.

    Returns None, and changes nothing, if the reactor does not run on the clock of the machine: a virtual one, or one
    that has a clock of its own. Call it in the reactor's thread, or before it runs.
    """
    clock = getattr(reactor.seconds, "__self__", None)
    if isinstance(clock, SteadyClock):
        return clock
    if not isinstance(reactor, ReactorBase) or abs(reactor.seconds() - time.time()) > _STEP:
        return None
    clock = SteadyClock(reactor.seconds)
    reactor.seconds = clock.seconds
    for call in reactor.getDelayedCalls():
        call.seconds = clock.seconds  # type: ignore[attr-defined]  # by which it is put off
    return clock
