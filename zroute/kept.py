"""Kept: the latest message of each topic, for those who join late.

A join is answered with what is kept of its topics, a little at a time, so that it neither fills the queue of the one
who asked nor holds up the others. The protocol stands in ``docs/reference/wire.md``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from zroute.delivery.reports import Clock
from zroute.messages.control import Marker
from zroute.options import KEPT_MAX

__all__ = ["Kept", "Last"]

_AT_A_TIME = 200
_PERIOD = 0.01  # seconds: 20,000 messages a second, over all who join

Send = Callable[[Marker, int, bytes, "Last | None"], bool]
"""Sends ``(to whom, number, topic, message)``, at the end an empty topic and None; False while there is no room."""


@attrs.frozen(slots=True, eq=False)
class Last:
    """The latest message of a topic; ``sent_at`` in nanoseconds since the Unix epoch."""

    codec: int
    body: bytes
    headers: Mapping[str, Any] | None
    sent_at: int


@attrs.define(eq=False)
class _Joining:
    """A subscriber that is given what is kept: ``waiting`` are topics and their messages when it asked at ``since``."""

    marker: Marker
    since: int
    waiting: deque[tuple[bytes, Last]]
    next: int = 1
    ended: bool = False


class Kept:
    """What one run of a publisher keeps. ``said`` is called once, when it keeps too much."""

    def __init__(self, clock: Clock, send: Send, said: Callable[[], None]) -> None:
        self._clock = clock
        self._send = send
        self._said = said
        self._full = False
        self._last: dict[bytes, Last] = {}
        self._joining: dict[int, _Joining] = {}
        self._timer: Any = None

    def __contains__(self, topic: bytes) -> bool:
        return topic in self._last

    def keep(self, topic: bytes, last: Last) -> None:
        """``last`` was sent now."""
        self._last[topic] = last
        if len(self._last) > KEPT_MAX:
            del self._last[next(iter(self._last))]
            if not self._full:
                self._full = True
                self._said()

    def join(self, marker: Marker, now: int) -> None:
        """Its sender was answered: give it what is kept; if it has asked before, what is new since or was not wanted.

        Then tell it the end, also if that is told for the second time: the first end may have been lost.
        More than that where a marker is a summary, which does not say what was wanted. Readers know what they have.
        """
        before = self._joining.get(marker.subscriber)

        def was_given(topic: bytes, last: Last) -> bool:
            if before is None or before.marker.summary:
                return False
            return last.sent_at < before.since and before.marker.wants(topic)

        wanted = [each for each in self._last.items() if marker.wants(each[0]) and not was_given(*each)]
        if before is None:
            self._joining[marker.subscriber] = _Joining(marker, now, deque(wanted))
        else:
            before.marker, before.since, before.ended = marker, now, False
            still = {topic for topic, _ in before.waiting}
            before.waiting.extend((topic, last) for topic, last in wanted if topic not in still)
        self._give()

    def leave(self, marker: Marker) -> None:
        """Its sender has withdrawn ``marker``; a subscriber that has sent a newer one stays."""
        joining = self._joining.get(marker.subscriber)
        if joining is not None and joining.marker.topic == marker.topic:
            del self._joining[marker.subscriber]

    def close(self) -> None:
        """Nobody is given anything any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._joining.clear()

    def _give(self) -> None:
        """Some to each, in turn."""
        left = _AT_A_TIME
        busy = [joining for joining in self._joining.values() if not joining.ended]
        for joining in busy:
            share = max(1, left // len(busy))
            while share and not joining.ended and self._give_one(joining):
                share -= 1
        if self._timer is None and any(not joining.ended for joining in busy):
            self._timer = self._clock.callLater(_PERIOD, self._given)

    def _given(self) -> None:
        self._timer = None
        self._give()

    def _give_one(self, joining: _Joining) -> bool:
        """The next message that is still the latest, else the end; False while there is no room."""
        while joining.waiting:
            topic, last = joining.waiting[0]
            if self._last.get(topic) is last:  # a newer one has reached the subscriber itself
                break
            joining.waiting.popleft()
        topic, message = joining.waiting[0] if joining.waiting else (b"", None)
        if not self._send(joining.marker, joining.next, topic, message):
            return False
        if message is None:
            joining.ended = True
        else:
            joining.next += 1
            joining.waiting.popleft()
        return True
