"""A timer that calls the same thing each `TICK` seconds: both ends of the tracked wire have one."""

from __future__ import annotations

from typing import Any

from zroute.delivery.counting import TICK
from zroute.delivery.reports import Clock

__all__ = ["Ticking"]


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
