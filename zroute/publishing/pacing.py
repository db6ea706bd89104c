"""Rate limits for work that peers request.

A flood of requests must not block the reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zroute.clock import Clock

__all__ = ["Allowance"]


class Allowance:
    """A budget of ``amount`` units of work per ``period`` seconds.

    A larger piece of work is allowed, but also uses the units of the following periods. Unused units expire. When units
    are available again, a timer of the reactor calls ``renewed``. The timer limits the work in one turn of the reactor,
    even on a slow machine.
    """

    def __init__(self, clock: Clock, amount: int, period: float, renewed: Callable[[], None]) -> None:
        self._clock = clock
        self.amount = amount
        """The units of each period, which the owner may change."""
        self._period = period
        self._renewed = renewed
        self._timer: Any = None
        self.left = amount
        """The units that may be spent now; negative after work that cost more than the available units."""

    def spend(self, units: int) -> None:
        """Subtract ``units`` for completed work."""
        self.left -= units
        if self._timer is None:
            self._renew_later()

    def close(self) -> None:
        """Cancel the timer and restore the full budget."""
        self.left = self.amount
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _renew_later(self) -> None:
        self._timer = self._clock.callLater(self._period, self._renew)

    def _renew(self) -> None:
        self._timer = None
        self.left = min(self.amount, self.left + self.amount)
        if self.left > 0:
            self._renewed()
        else:
            self._renew_later()
