"""Subscriber count: how many subscribers a publication has, and who waits for them.

Each subscriber that tracks sends a marker of its own, so these can be told apart, also behind a proxy. ZeroMQ tells of
a plain subscription once, however many have it (zmq_setsockopt(3), ZMQ_XPUB_VERBOSE): plain readers count as one.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from zroute.clock import Clock
from zroute.errors import EnvelopeError
from zroute.messages.control import MARKER, Marker, parse_marker
from zroute.messages.topics import Pattern

__all__ = ["SubscriberCount"]

_PLAIN_AFTER = 0.25
"""Seconds after which a subscription whose subscriber sent no marker is taken for that of a plain reader."""


class SubscriberCount:
    """The subscribers of one publishing socket, as far as it knows them."""

    def __init__(self, clock: Clock, *, tracked: bool) -> None:
        self._clock = clock
        self._patience = _PLAIN_AFTER if tracked else 0.0
        self._live: dict[bytes, float] = {}  # since when
        self._markers: dict[bytes, Marker] = {}
        self._waiting: list[tuple[Pattern, int, Deferred[None]]] = []
        self._looking: Any = None

    def subscription(self, prefix: bytes, there: bool) -> None:
        """One has come or gone."""
        marker = _marker(prefix) if there else None
        if marker is not None:
            self._markers[prefix] = marker
        elif there:
            self._live[prefix] = self._clock.seconds()
        elif self._markers.pop(prefix, None) is None:
            self._live.pop(prefix, None)
        if self._waiting:
            self._look_later(0.0)

    def number(self, pattern: Pattern) -> int:
        """How many subscribe to topics of ``pattern``; all plain readers together count as one."""
        prefix, overlaps = pattern.subscription, _covers if not pattern.captures else _overlaps
        subscribed = [each for each in self._live if overlaps(each, prefix)]
        tracking = [marker for marker in self._markers.values() if any(map(marker.wants, subscribed))]
        known = self._clock.seconds() - self._patience
        old = [each for each in subscribed if self._live[each] <= known]
        plain = any(not any(marker.wants(each) for marker in tracking) for each in old)
        return len({marker.subscriber for marker in tracking}) + plain

    def wait_for(self, pattern: Pattern, number: int) -> Deferred[None]:
        """Fires when there are so many; may be cancelled."""
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append((pattern, number, waiting))
        if self._looking is not None:
            self._looking.cancel()
        self._look()
        return waiting

    def close(self) -> None:
        """Nobody comes any more."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        left, self._waiting = self._waiting, []
        for _, _, waiting in left:
            waiting.cancel()

    def _look_later(self, seconds: float) -> None:
        """Once for all that came in this turn: a join brings thousands."""
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._looking = None
        for one in tuple(self._waiting):
            pattern, number, waiting = one
            if self.number(pattern) >= number:
                self._waiting.remove(one)
                waiting.callback(None)
        if self._waiting and self._patience and self._looking is None:
            self._look_later(self._patience)

    def _forget(self, waiting: Deferred[None]) -> None:
        self._waiting = [one for one in self._waiting if one[2] is not waiting]


def _marker(prefix: bytes) -> Marker | None:
    if not prefix.startswith(MARKER):
        return None
    try:
        return parse_marker(prefix)
    except EnvelopeError:
        return None  # a plain reader's subscription that looks like one


def _covers(subscription: bytes, topic: bytes) -> bool:
    return topic.startswith(subscription)


def _overlaps(subscription: bytes, prefix: bytes) -> bool:
    """Whether some of the topics with ``prefix`` are subscribed to."""
    return prefix.startswith(subscription) or subscription.startswith(prefix)
