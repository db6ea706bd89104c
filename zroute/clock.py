"""The interface of a clock, and a periodic timer that runs on one.

A clock is an argument everywhere, so tests replace it by a virtual one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["TICK", "Clock", "Ticking"]

TICK = 0.25
"""Seconds between two ticks, of `Counters.beats` and of `Tracker.check`.

It is half of the shortest time that they measure.
"""


class Clock(Protocol):
    """The methods that a reactor and a virtual clock have in common.

    See `twisted.internet.interfaces.IReactorTime`.
    """

    def seconds(self) -> float:
        """Return the time in seconds since an arbitrary origin."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:  # noqa: N802
        """Call ``callable`` after ``delay`` seconds; return a timer with ``cancel()``."""


class Ticking:
    """Calls `tick` every `TICK` seconds between `start` and `stop`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timer: Any = None

    def start(self) -> None:
        """Start to tick."""
        if self._timer is None:
            self._timer = self._clock.callLater(TICK, self._ticked)

    def stop(self) -> None:
        """Stop ticking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ticked(self) -> None:
        self._timer = None
        self.start()
        self.tick()

    def tick(self) -> None:
        """Do the periodic work. Subclasses implement it."""
        raise NotImplementedError
