"""Count the subscribers of a publication, and wait for a number of subscribers.

Each subscriber on the tracked wire sends its own marker, so these subscribers are counted individually, even behind a
proxy. ZeroMQ reports a plain subscription only once for all its subscribers (zmq_setsockopt(3), ZMQ_XPUB_VERBOSE), so
all plain readers count as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from zroute.clock import Clock
from zroute.errors import EnvelopeError
from zroute.messages.control import MARKER, Marker, parse_marker
from zroute.messages.topics import Pattern

__all__ = ["SubscriberCount"]

_PLAIN_AFTER = 0.25
"""The time in seconds after which a subscription without a marker counts as a plain reader's."""


class SubscriberCount:
    """The known subscribers of one publishing socket.

    ``tracked`` is True if the publisher uses the tracked wire, whose subscribers send markers.
    """

    def __init__(self, clock: Clock, *, tracked: bool) -> None:
        self._clock = clock
        self._patience = _PLAIN_AFTER if tracked else 0.0
        self._live: dict[bytes, float] = {}  # the time at which each subscription arrived
        self._markers: dict[bytes, Marker] = {}
        self._waiting: list[tuple[Pattern, int, Deferred[None]]] = []
        self._looking: Any = None
        self.changed: Callable[[], None] | None = None
        """A function that is called when the number of subscribers of any publication has changed, or None."""

    def subscription(self, prefix: bytes, there: bool) -> None:
        """Handle a new subscription, or a withdrawn one if ``there`` is False."""
        marker = _marker(prefix) if there else None
        if marker is not None:
            self._markers[prefix] = marker
        elif there:
            self._live[prefix] = self._clock.seconds()
        elif self._markers.pop(prefix, None) is None:
            self._live.pop(prefix, None)
        if self._waiting or self.changed is not None:
            self._look_later(0.0)

    def number(self, pattern: Pattern) -> int:
        """Return the number of subscribers to topics of ``pattern``.

        All plain readers together count as one.
        """
        prefix, overlaps = pattern.subscription, _covers if not pattern.captures else _overlaps
        subscribed = [each for each in self._live if overlaps(each, prefix)]
        tracking = [marker for marker in self._markers.values() if any(map(marker.wants, subscribed))]
        # The marker follows the subscriptions, so a new subscription may still turn out to be a tracked subscriber's.
        known = self._clock.seconds() - self._patience
        old = [each for each in subscribed if self._live[each] <= known]
        plain = any(not any(marker.wants(each) for marker in tracking) for each in old)
        return len({marker.subscriber for marker in tracking}) + plain

    def wait_for(self, pattern: Pattern, number: int) -> Deferred[None]:
        """Return a Deferred that fires when there are ``number`` subscribers.

        The caller may cancel the Deferred.
        """
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append((pattern, number, waiting))
        if self._looking is not None:
            self._looking.cancel()
        self._look()
        return waiting

    def close(self) -> None:
        """Cancel the Deferreds of all waiting callers."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self.changed = None
        left, self._waiting = self._waiting, []
        for _, _, waiting in left:
            waiting.cancel()

    def _look_later(self, seconds: float) -> None:
        """Schedule one check for all changes of this turn; a join may cause thousands."""
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
        if self.changed is not None:
            self.changed()
        if self._patience and self._looking is None and (self._waiting or self._has_new()):
            self._look_later(self._patience)

    def _has_new(self) -> bool:
        """Return True if a new subscription may turn out to be that of a plain reader."""
        known = self._clock.seconds() - self._patience
        return self.changed is not None and any(arrived > known for arrived in self._live.values())

    def _forget(self, waiting: Deferred[None]) -> None:
        self._waiting = [one for one in self._waiting if one[2] is not waiting]


def _marker(prefix: bytes) -> Marker | None:
    if not prefix.startswith(MARKER):
        return None
    try:
        return parse_marker(prefix)
    except EnvelopeError:
        return None  # a plain reader's subscription that only looks like a marker


def _covers(subscription: bytes, topic: bytes) -> bool:
    return topic.startswith(subscription)


def _overlaps(subscription: bytes, prefix: bytes) -> bool:
    """Return True if ``subscription`` covers some topics with ``prefix``."""
    return prefix.startswith(subscription) or subscription.startswith(prefix)
