"""Mending: subscriptions that were lost on their way to a publisher are sent again, a slice at a time.

A stock proxy drops subscriptions over its high-water mark in silence, and passes the marker behind them. So a publisher
names in its answer what it knows, and what it does not name is withdrawn and subscribed to again: a proxy hides a
subscription that it has passed on once. Each slice has a ping behind it, and the next slice waits for the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from zroute.clock import Clock
from zroute.options import SUBSCRIPTIONS_SLICE
from zroute.receiving.hearing import ANSWER_SECONDS

__all__ = ["Mender"]


class Mender:
    """Sends what is missing again.

    ``resubscribe`` withdraws subscriptions and subscribes to them again, ``ping`` asks all publishers for a sign of
    life and returns the ping's topic, and ``done`` is called when everything was sent: ask what is known now.
    """

    def __init__(
        self,
        clock: Clock,
        resubscribe: Callable[[Collection[bytes]], None],
        ping: Callable[[], bytes],
        done: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._resubscribe = resubscribe
        self._ping = ping
        self._done = done
        self._left: dict[bytes, None] = {}
        self._publishers: set[int] = set()  # who does not know them
        self._asked = b""
        self._waiting: set[int] = set()
        self._timer: Any = None

    def add(self, publisher: int, missing: Iterable[bytes]) -> None:
        """``publisher`` does not know these subscriptions."""
        self._left.update(dict.fromkeys(sorted(missing)))
        self._publishers.add(publisher)
        if self._timer is None:  # the answers of other publishers may be there in this turn
            self._timer = self._clock.callLater(0, self._next)

    def answered(self, publisher: int, ping: bytes) -> None:
        """A publisher has answered a ping, and so has read everything before it that was not dropped."""
        if self._asked and ping == self._asked:
            self._waiting.discard(publisher)
            if not self._waiting:
                self._asked = b""
                self._timer.reset(0)

    def close(self) -> None:
        """Send nothing any more."""
        self._rest()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        self._left.clear()
        self._publishers.clear()
        self._waiting.clear()
        self._asked = b""

    def _next(self) -> None:
        self._timer = None
        if not self._left:
            self._rest()
            self._done()
            return
        some = list(self._left)[:SUBSCRIPTIONS_SLICE]
        for prefix in some:
            del self._left[prefix]
        self._resubscribe(some)
        self._asked, self._waiting = self._ping(), set(self._publishers)
        self._timer = self._clock.callLater(ANSWER_SECONDS, self._next)  # a ping that is dropped holds up the rest
