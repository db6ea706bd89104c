"""A clock for reactors that does not jump when the machine's clock is set.

Twisted's reactors measure time with `time.time`. If the machine's clock is set back by an hour, no timer fires for an
hour. If it is set forward by an hour, all timeouts of the next hour expire at once. A reactor that runs an app
therefore measures time with `time.monotonic`.

The new clock starts at the current Unix time. Calls that are already scheduled therefore stay correct. Programs that
use ``reactor.seconds()`` as Unix time also stay correct, until the machine's clock is set.
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
"""The time in seconds between two calls of `SteadyClock.look`."""

_STEP = 0.5
"""The smallest jump of the machine's clock that is logged, in seconds. A leap second is larger."""

_log = logging.getLogger("zroute")


class SteadyClock:
    """A clock that starts at the time of ``wall`` and then never jumps.

    ``wall`` returns Unix time in seconds, and may jump.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._ahead = self._wall_ahead = wall() - monotonic()

    def seconds(self) -> float:
        """Return the time in seconds; it never jumps."""
        return self._ahead + monotonic()

    def look(self) -> None:
        """Log a warning if the machine's clock has jumped since the last call.

        The times in messages have jumped with it.
        """
        ahead = self._wall() - monotonic()
        step, far = ahead - self._wall_ahead, abs(ahead - self._wall_ahead)
        if far < _STEP:
            return
        self._wall_ahead = ahead
        _log.warning(
            "the clock of this machine was set %s: timers and timeouts are not affected; times in messages (sent_at, "
            "received_at, stale_after) follow the new time",
            f"back by {far:.1f} s" if step < 0 else f"forward by {far:.1f} s, or the machine slept that long",
        )


def steady_clock(reactor: Any) -> SteadyClock | None:
    """Make ``reactor`` use a steady clock, and return the clock.

    Calls that are already scheduled use the new clock too. Call this function in the reactor's thread, or before the
    reactor runs.

    If the reactor does not use the machine's clock, for example a reactor with a virtual clock, change nothing and
    return None.
    """
    # An earlier app on this reactor has replaced ``seconds`` by a method of a SteadyClock.
    clock = getattr(reactor.seconds, "__self__", None)
    if isinstance(clock, SteadyClock):
        return clock
    if not isinstance(reactor, ReactorBase) or abs(reactor.seconds() - time.time()) > _STEP:
        return None
    clock = SteadyClock(reactor.seconds)
    reactor.seconds = clock.seconds
    for call in reactor.getDelayedCalls():
        call.seconds = clock.seconds  # type: ignore[attr-defined]  # `DelayedCall.delay` and `reset` use it
    return clock
