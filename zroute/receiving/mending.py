"""Repeat subscriptions that were lost on their way to a publisher.

A standard ZeroMQ proxy silently drops subscriptions above its high-water mark, but forwards the marker after them. A
publisher's answer therefore lists the subscriptions that the publisher knows. Missing subscriptions are withdrawn and
sent again, because a proxy forwards each subscription only once. The subscriptions are sent in slices. A ping follows
each slice, and the next slice is sent after the answers to that ping.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from zroute.clock import Clock
from zroute.options import SUBSCRIPTIONS_SLICE
from zroute.receiving.hearing import ANSWER_SECONDS

__all__ = ["Mender"]


class Mender:
    """Sends missing subscriptions again.

    ``resubscribe`` withdraws subscriptions and sends them again. ``ping`` asks all publishers for a sign of life and
    returns the topic of the ping. ``done`` is called when all subscriptions were sent, so that the publishers can be
    asked for their subscriptions again.
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
        self._publishers: set[int] = set()  # the publishers that do not know the subscriptions
        self._asked = b""
        self._waiting: set[int] = set()
        self._timer: Any = None

    def add(self, publisher: int, missing: Iterable[bytes]) -> None:
        """Queue the subscriptions that ``publisher`` does not know."""
        self._left.update(dict.fromkeys(sorted(missing)))
        self._publishers.add(publisher)
        if self._timer is None:  # wait for answers of other publishers that arrive in this turn
            self._timer = self._clock.callLater(0, self._next)

    def answered(self, publisher: int, ping: bytes) -> None:
        """Handle the answer to a ping: the publisher has read everything sent before it."""
        # `_asked` is empty while no answer is awaited.
        if self._asked and ping == self._asked:
            self._waiting.discard(publisher)
            if not self._waiting:
                self._asked = b""
                # The timer runs as long as an answer is awaited.
                self._timer.reset(0)

    def close(self) -> None:
        """Stop sending."""
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
        # After the subscriptions: the answer proves that the publisher has read them.
        self._asked, self._waiting = self._ping(), set(self._publishers)
        self._timer = self._clock.callLater(ANSWER_SECONDS, self._next)  # the ping may be dropped
