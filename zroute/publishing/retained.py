"""Kept: the latest message of each topic, for those who join late.

A join is answered with what is kept of its topics, a little at a time: it neither fills the queue of the subscriber
that asked nor holds up the others. All walk through the same topics in order, and each only notes where it is, so that
a subscriber costs the same whether ten topics are kept or 100,000. The protocol is in ``docs/reference/wire.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.messages.control import Marker
from zroute.options import KEPT_MAX
from zroute.publishing.ordered import Ordered, apart
from zroute.publishing.pacing import Allowance

__all__ = ["LastValue", "LastValueCache"]

_AT_A_TIME = 200
_PERIOD = 0.01  # seconds: 20,000 messages a second, over all who join
_SENT = 20
"""What a message costs, measured by the cost of a look at a topic whose message is not sent."""
_WALKS_MAX = 4
"""Unfinished walks of one subscriber that are remembered: beyond that it is sent some messages twice."""
_SOON = 3.0
"""Seconds: readers let a marker stand for 6 after they have replaced it."""

Send = Callable[[Marker, int, bytes, "LastValue | None"], bool]
"""Sends ``(to whom, number, topic, message)``, at the end an empty topic and None; False while there is no room."""


@attrs.frozen(slots=True, eq=False)
class LastValue:
    """The latest message of a topic; ``sent_at`` in nanoseconds since the Unix epoch."""

    codec: int
    body: bytes
    headers: Mapping[str, Any] | None
    sent_at: int


@attrs.define(eq=False)
class _Joining:
    """A subscriber that is given what is kept: the topics in order, behind ``after``, as they stood when it asked.

    ``since`` is the number of messages that had been kept then, and ``asked`` when it asked for the same once more. A
    walk that begins in the middle, at ``start``, goes on at the first topic when it has come to the last. ``before`` is
    what the subscriber had asked for before.
    """

    marker: Marker
    since: int
    prefixes: tuple[bytes, ...] = attrs.field(init=False)
    asked: int = attrs.field(init=False)
    before: _Joining | None = attrs.field(init=False, default=None)
    start: bytes | None = attrs.field(init=False, default=None)
    after: bytes | None = attrs.field(init=False, default=None)
    wrapped: bool = attrs.field(init=False, default=False)
    next: int = attrs.field(init=False, default=1)
    walks: int = attrs.field(init=False, default=1)
    answered: dict[bytes, float] = attrs.field(init=False, factory=dict)
    """When it asked: by the markers of the last `_SOON` seconds."""

    def __attrs_post_init__(self) -> None:
        self.prefixes, self.asked = apart(self.marker.prefixes), self.since

    def was_given(self, topic: bytes, at: int) -> bool:
        """Return True if the message of ``topic`` that was kept as number ``at`` was sent already, as far as is known.

        It is not where a marker is a summary, which does not say what was wanted. Readers know what they have.
        """
        if at <= self.since and not self.marker.summary and self._has_passed(topic) and self.marker.wants(topic):
            return True
        return self.before is not None and self.before.was_given(topic, at)

    def is_asked_again(self, marker: Marker) -> bool:
        """Return True if ``marker`` wants the same, as far as is known: this walk is what it asks for, then.

        A walk may take longer than its subscriber waits until it asks again: walks that began again each time would
        never end.
        """
        return marker.wanted == self.marker.wanted and not (marker.summary or self.marker.summary)

    def _has_passed(self, topic: bytes) -> bool:
        begun = self.start is None or topic > self.start
        passed = self.after is not None and topic <= self.after
        return (begun or passed) if self.wrapped else (begun and passed)


class LastValueCache:
    """What one run of a publisher keeps. ``said`` is called once, when it keeps too much."""

    def __init__(self, clock: Clock, send: Send, said: Callable[[], None]) -> None:
        self._clock = clock
        self._send = send
        self._said = said
        self._full = False
        self._number = 0
        self.messages: dict[bytes, tuple[int, int, bytes, Mapping[str, Any] | None, int]] = {}
        """By topic, as `keep` was given it, behind its number. A tuple: it is made for each message."""
        self._topics = Ordered()
        self._joining: dict[int, _Joining] = {}
        self._busy: dict[int, None] = {}  # subscribers that are still to be given something, the next one first
        self._allowance = Allowance(clock, _AT_A_TIME * _SENT, _PERIOD, self._give)

    def keep(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None, sent_at: int) -> None:
        """Keep this message, which was sent now, as the latest of ``topic``; ``sent_at`` as in its header."""
        self._number += 1
        if topic not in self.messages:
            self._topics.add(topic)
        self.messages[topic] = self._number, codec, body, headers, sent_at
        if len(self.messages) > KEPT_MAX:
            oldest = next(iter(self.messages))
            del self.messages[oldest]
            self._topics.discard(oldest)
            if not self._full:
                self._full = True
                self._said()

    def join(self, marker: Marker) -> None:
        """Give the sender of ``marker`` what is kept; if it has asked before, what is new since or was not wanted."""
        before = self._joining.get(marker.subscriber)
        if marker.subscriber in self._busy and before is not None and before.is_asked_again(marker):
            before.marker, before.asked = marker, self._number
            self._note(before)
            return
        self._begin(marker, self._number, before)
        self._give()

    def _begin(self, marker: Marker, since: int, before: _Joining | None) -> None:
        joining = _Joining(marker, since)
        if before is not None:
            if before.walks == _WALKS_MAX:
                before.before, before.walks = None, 1
            joining.walks = before.walks + 1
            joining.before, joining.next = before, before.next
            joining.start = joining.after = before.after
            joining.answered = before.answered
        self._note(joining)
        self._joining[marker.subscriber] = joining
        self._busy[marker.subscriber] = None

    def _note(self, joining: _Joining) -> None:
        now = self._clock.seconds()
        recent = {topic: at for topic, at in joining.answered.items() if now - at < _SOON}
        joining.answered = {**recent, joining.marker.topic: now}

    def leave(self, marker: Marker) -> None:
        """Its sender has withdrawn ``marker``; a subscriber that has sent a newer one stays.

        If it does so soon, ``marker`` was an old one, which libzmq sends again with a new connection before the
        subscriber says what it wants now. What was sent to it was dropped there, so all is sent again.
        """
        joining = self._joining.get(marker.subscriber)
        if joining is None:
            return
        if joining.marker.topic == marker.topic:
            del self._joining[marker.subscriber]
            self._busy.pop(marker.subscriber, None)
        elif self._clock.seconds() - joining.answered.pop(marker.topic, -_SOON) < _SOON:
            self._begin(joining.marker, self._number, None)
            self._give()

    def close(self) -> None:
        """Nobody is given anything any more."""
        self._allowance.close()
        self._joining.clear()
        self._busy.clear()

    def _give(self) -> None:
        """Some to each, in turn, as long as the allowance of this period lasts."""
        turn = tuple(islice(self._busy, _AT_A_TIME))
        for others, subscriber in zip(range(len(turn), 0, -1), turn, strict=True):
            left = self._allowance.left
            if left <= 0:
                break
            del self._busy[subscriber]
            if not self._give_some(self._joining[subscriber], left // others):
                self._busy[subscriber] = None

    def _give_some(self, joining: _Joining, share: int) -> bool:
        """Go on with a walk until ``share`` is spent, or there is no room; True at its end."""
        least = self._allowance.left - max(share, _SENT)
        while True:
            for topic in self._topics.below(joining.prefixes, joining.after):
                if joining.wrapped and joining.start is not None and topic > joining.start:
                    break
                if self._allowance.left <= least or not self._give_one(joining, topic):
                    return False
                joining.after = topic
            if joining.wrapped or joining.start is None:
                return self._end(joining)
            joining.wrapped, joining.after = True, None

    def _give_one(self, joining: _Joining, topic: bytes) -> bool:
        """Send what is kept of ``topic``, if it is wanted; False while there is no room."""
        at, codec, body, headers, sent_at = self.messages[topic]
        newer = at > joining.since  # and has reached the subscriber itself
        if newer or (joining.before is not None and joining.before.was_given(topic, at)):
            self._allowance.spend(1)
            return True
        self._allowance.spend(_SENT)
        if not self._send(joining.marker, joining.next, topic, LastValue(codec, body, headers, sent_at)):
            return False
        joining.next += 1
        return True

    def _end(self, joining: _Joining) -> bool:
        """Tell the end behind each join: the one before may have been lost. It uses up no number."""
        self._allowance.spend(_SENT)
        if not self._send(joining.marker, joining.next, b"", None):
            return False
        joining.wrapped, joining.before, joining.walks = True, None, 1
        joining.start = joining.after = None
        if joining.asked > joining.since:  # a proxy may have dropped its subscription until it asked again
            self._begin(joining.marker, joining.asked, joining)
        return True
