"""Pacing: how much work may be done at once for peers that can ask for any amount of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zroute.clock import Clock

__all__ = ["Allowance"]


class Allowance:
    """``amount`` units of work in each ``period`` seconds.

    A piece of work that is larger is paid for by the periods behind it. ``renewed`` is called when there is something
    to spend again. Since that is a timer of the reactor, the work of one turn is bounded, however slow the machine is.
    What is not spent is not added.
    """

    def __init__(self, clock: Clock, amount: int, period: float, renewed: Callable[[], None]) -> None:
        self._clock = clock
        self._amount = amount
        self._period = period
        self._renewed = renewed
        self._timer: Any = None
        self.left = amount
        """Units that may be spent now; below 0 if the last piece of work was larger than that."""

    def spend(self, units: int) -> None:
        """Note that work was done."""
        self.left -= units
        if self._timer is None:
            self._renew_later()

    def close(self) -> None:
        """Call nothing any more, until something is spent again."""
        self.left = self._amount
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _renew_later(self) -> None:
        self._timer = self._clock.callLater(self._period, self._renew)

    def _renew(self) -> None:
        self._timer = None
        self.left = min(self._amount, self.left + self._amount)
        if self.left > 0:
            self._renewed()
        else:
            self._renew_later()
