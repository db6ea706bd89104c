"""Time as an argument: what is asked of a clock, and a timer on it that both ends of the tracked wire have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["TICK", "Clock", "Ticking"]

TICK = 0.25
"""Seconds between two calls of `Counters.beats` and of `Tracker.check`: half of the shortest time that they measure."""


class Clock(Protocol):
    """What a reactor and a virtual clock have in common (`twisted.internet.interfaces.IReactorTime`)."""

    def seconds(self) -> float:
        """Now, in seconds of an arbitrary origin."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:  # noqa: N802
        """Call ``callable`` after ``delay`` seconds; what is returned has ``cancel()``."""


class Ticking:
    """Calls `tick` each `TICK` seconds between `start` and `stop`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timer: Any = None

    def start(self) -> None:
        """Tick from now on."""
        if self._timer is None:
            self._timer = self._clock.callLater(TICK, self._ticked)

    def stop(self) -> None:
        """Tick no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ticked(self) -> None:
        self._timer = None
        self.start()
        self.tick()

    def tick(self) -> None:
        """Do what is due."""
        raise NotImplementedError
