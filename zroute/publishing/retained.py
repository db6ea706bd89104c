"""The last-value cache: the latest message of each topic for new subscribers.

When a subscriber joins, the publisher sends it the kept messages of its topics. The messages are sent in small
portions, which neither fill the subscriber's queue nor delay other subscribers. Each subscriber has a walk through the
sorted topics, which stores only a position. A walk therefore needs the same memory for 10 topics and for 100,000.
``docs/reference/wire.md`` describes the protocol.

A snapshot is a kept message that is made when a walk reaches its topic (`zroute.publishing.snapshots`). A walk sends it
even if the subscriber has received later messages of the topic, because these do not contain the whole state. If a
subscriber has lost messages, it asks for snapshots again. It then has a walk that sends snapshots only: a *renewal*. A
renewal begins when the present walk of the subscriber has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Protocol

import attrs

from zroute.clock import Clock
from zroute.options import KEPT_MAX
from zroute.publishing.ordered import Ordered, apart
from zroute.publishing.pacing import Allowance
from zroute.publishing.snapshots import Made, NoSnapshot, Snapshots

__all__ = ["Asking", "LastValue", "LastValueCache"]

# The rate limit: 200 messages in each period of 10 ms, for all subscribers together.
_AT_A_TIME = 200
_PERIOD = 0.01  # seconds
_SENT = 20
"""The cost of sending a message, relative to the cost of checking a topic without sending."""
_WALKS_MAX = 4
"""The maximum number of stored, unfinished walks per subscriber.

If a subscriber starts more walks, it receives some messages twice.
"""
_SNAPSHOT_SECONDS = 0.005
"""The time in each period that snapshots may take to make. A slower one uses the time of the following periods."""
_RENEWALS_MAX = 16
"""The maximum number of renewals that wait for each subscriber. Subscribers repeat their requests."""
_SOON = 3.0
"""A marker that is withdrawn within this time in seconds after its arrival counts as an old marker.

The time must be less than the 6 seconds for which subscribers keep a replaced marker.
"""


class Asking(Protocol):
    """A request for kept messages: a `Marker`, or a join on NATS.

    Attributes:
        topic: identifies the request; the answers go there.
        subscriber: the same number in all requests of a subscriber.
        wanted: the same value in two requests for the same topics.
        prefixes: the beginnings of all wanted topics.
        summary: True if ``wanted`` does not list exactly the wanted subscriptions.
    """

    @property
    def topic(self) -> bytes: ...  # noqa: D102

    @property
    def subscriber(self) -> int: ...  # noqa: D102

    @property
    def wanted(self) -> tuple[bytes, ...]: ...  # noqa: D102

    @property
    def prefixes(self) -> tuple[bytes, ...]: ...  # noqa: D102

    @property
    def summary(self) -> bool: ...  # noqa: D102

    def wants(self, prefix: bytes, /) -> bool:
        """Return True if a topic is wanted."""


Send = Callable[["Any", int, bytes, "LastValue | Made | int | None"], bool]
"""A function that sends ``(marker, number, topic, message)`` to the sender of the marker.

The end message has an empty topic, and None as the message, or the number of the request that it answers. The function
returns False while the subscriber's queue is full.
"""


@attrs.frozen(slots=True, eq=False)
class LastValue:
    """The latest message of a topic.

    ``sent_at`` is in nanoseconds since the Unix epoch.
    """

    codec: int
    body: bytes
    headers: Mapping[str, Any] | None
    sent_at: int


@attrs.define(eq=False)
class _Joining:
    """The walk of one subscriber through the kept messages of its topics.

    A walk may start in the middle. After the last topic, it then continues with the first topic.

    Attributes:
        marker: The subscriber's latest marker.
        since: The number of the last message that was kept before the walk. The subscriber receives later messages
            directly.
        prefixes: The wanted subscriptions.
        asked: The same number as ``since``, but for the latest repetition of the request.
        before: The previous, unfinished walk of the subscriber.
        start: The topic after which the walk started; None for the first topic.
        after: The last topic that the walk has passed.
        wrapped: True if the walk has continued with the first topic.
        next: The number of the next message to the subscriber.
        walks: The number of unfinished walks, including this one.
        states_since: The number of the last topic with a snapshot when the walk began; None before it begins.
        refresh: The number of the refresh of the topics with snapshots that the walk needs; None before it begins.
        renewal: The prefix and the number of the answered request for snapshots; None for another walk.
        waiting: The renewals that follow this walk: the number of each request by its prefix.
    """

    marker: Asking
    since: int
    prefixes: tuple[bytes, ...] = attrs.field(init=False)
    asked: int = attrs.field(init=False)
    before: _Joining | None = attrs.field(init=False, default=None)
    start: bytes | None = attrs.field(init=False, default=None)
    after: bytes | None = attrs.field(init=False, default=None)
    wrapped: bool = attrs.field(init=False, default=False)
    next: int = attrs.field(init=False, default=1)
    walks: int = attrs.field(init=False, default=1)
    states_since: int | None = attrs.field(init=False, default=None)
    refresh: int | None = attrs.field(init=False, default=None)
    renewal: tuple[bytes, int] | None = attrs.field(init=False, default=None)
    waiting: dict[bytes, int] = attrs.field(init=False, factory=dict)
    answered: dict[bytes, float] = attrs.field(init=False, factory=dict)
    """The arrival times of the markers in the last `_SOON` seconds, by their topics."""

    def __attrs_post_init__(self) -> None:
        self.prefixes, self.asked = apart(self.marker.prefixes), self.since

    def was_given(self, topic: bytes, at: int) -> bool:
        """Return True if message number ``at`` of ``topic`` was certainly sent before.

        The result is False for a summary marker, because it does not list the wanted subscriptions. The message is then
        sent again, and a subscriber that already has the message ignores it.
        """
        if at <= self.since and not self.marker.summary and self._has_passed(topic) and self.marker.wants(topic):
            return True
        return self.before is not None and self.before.was_given(topic, at)

    def had_state(self, topic: bytes, at: int) -> bool:
        """Return True if the snapshot of ``topic`` was certainly sent before.

        ``at`` is the number of the topic. See also `was_given`.
        """
        known = self.states_since is not None and at <= self.states_since
        if known and not self.marker.summary and self._has_passed(topic) and self.marker.wants(topic):
            return True
        return self.before is not None and self.before.had_state(topic, at)

    def is_asked_again(self, marker: Asking) -> bool:
        """Return True if ``marker`` certainly repeats the request of this walk.

        The walk then continues. If each repeated request restarted the walk, a long walk would never end.
        """
        return marker.wanted == self.marker.wanted and not (marker.summary or self.marker.summary)

    def _has_passed(self, topic: bytes) -> bool:
        begun = self.start is None or topic > self.start
        passed = self.after is not None and topic <= self.after
        return (begun or passed) if self.wrapped else (begun and passed)


class LastValueCache:
    """The kept messages of one run of a publisher.

    Args:
        clock: The reactor's clock.
        send: A function that sends a kept message to a subscriber.
        said: A function that is called once, when the cache is full and drops a topic for the first time.
    """

    def __init__(self, clock: Clock, send: Send, said: Callable[[], None]) -> None:
        self._clock = clock
        self._send = send
        self._said = said
        self._full = False
        self._number = 0
        self.messages: dict[bytes, tuple[int, int, bytes, Mapping[str, Any] | None, int]] = {}
        """The kept messages by topic, as tuples of a number and the arguments of `keep`.

One object is created for each message, and tuples are the fastest to create.
        """
        self.snapshots: Snapshots | None = None
        """The snapshots, if a publication has some."""
        self._states: dict[bytes, int] = {}  # topics with a snapshot: as the number of a kept message
        self._topics = Ordered()  # those of `messages` and `_states`
        self._joining: dict[int, _Joining] = {}
        self._busy: dict[int, None] = {}  # subscribers with an unfinished walk, the next one first
        self._allowance = Allowance(clock, _AT_A_TIME * _SENT, _PERIOD, self._give)

    def keep(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None, sent_at: int) -> None:
        """Keep a message that was just sent as the latest of ``topic``.

        ``sent_at`` is the time in its header. The oldest topic is dropped when the cache is full.
        """
        self._number += 1
        if topic not in self.messages and topic not in self._states:
            self._topics.add(topic)
        self.messages[topic] = self._number, codec, body, headers, sent_at
        if len(self.messages) > KEPT_MAX:
            # An update does not move a topic in a dict, so this is the topic that was kept first.
            oldest = next(iter(self.messages))
            del self.messages[oldest]
            if oldest not in self._states:
                self._topics.discard(oldest)
            self._say_full()

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            self._said()

    def add_state(self, topic: bytes) -> None:
        """Add a topic with a snapshot.

        The oldest such topic is dropped when there are too many.
        """
        self._number += 1
        if topic not in self.messages and topic not in self._states:
            self._topics.add(topic)
        self._states[topic] = self._number
        if len(self._states) > KEPT_MAX:
            oldest = next(iter(self._states))
            assert self.snapshots is not None
            self.snapshots.forget(oldest)
            self.discard_state(oldest)
            self._say_full()

    def discard_state(self, topic: bytes) -> None:
        """Remove a topic with a snapshot."""
        del self._states[topic]
        if topic not in self.messages:
            self._topics.discard(topic)

    def join(self, marker: Asking) -> None:
        """Send the kept messages to the sender of ``marker``.

        If the sender has asked before, it receives only messages that it has not received yet.
        """
        before = self._joining.get(marker.subscriber)
        if marker.subscriber in self._busy and before is not None and before.is_asked_again(marker):
            # The walk continues; `_end` begins another one for the messages that were kept between the two requests.
            before.marker, before.asked = marker, self._number
            self._note(before)
            return
        self._begin(marker, self._number, before)
        self._give()

    def renew(self, subscriber: int, prefix: bytes, number: int) -> None:
        """Send snapshots again to a subscriber that has lost messages.

        A request that is being answered is ignored. So is one of a subscriber without a marker, because it will join.

        Args:
            subscriber: The number of the subscriber.
            prefix: The beginning of the wanted topics.
            number: The number of the request. A repeated request has the same number.
        """
        joining = self._joining.get(subscriber)
        if joining is None or joining.renewal == (prefix, number):
            return
        if len(joining.waiting) < _RENEWALS_MAX or prefix in joining.waiting:
            joining.waiting[prefix] = number
        if subscriber not in self._busy:
            self._begin_renewal(joining)
            self._give()

    def _begin_renewal(self, before: _Joining) -> None:
        prefix = next(iter(before.waiting))
        number = before.waiting.pop(prefix)
        # As old as the walk before, because a renewal sends no kept messages.
        joining = self._begin(before.marker, before.since, before)
        joining.renewal, joining.prefixes = (prefix, number), (prefix,)
        joining.asked, joining.answered = before.asked, before.answered
        joining.start = joining.after = None

    def _begin(self, marker: Asking, since: int, before: _Joining | None) -> _Joining:
        joining = _Joining(marker, since)
        if before is not None:
            if before.walks == _WALKS_MAX:
                # The subscriber's earlier walks are forgotten, so a peer that asks all the time uses bounded memory.
                before.before, before.walks = None, 1
            joining.walks = before.walks + 1
            # Numbers continue: with a number that is not greater than the last, a subscriber starts its count again.
            joining.before, joining.next = before, before.next
            # If each request began at the first topic, a subscriber that asks often would never get the last ones.
            joining.start = joining.after = before.after
            joining.answered = before.answered
            joining.waiting = before.waiting
        self._note(joining)
        self._joining[marker.subscriber] = joining
        self._busy[marker.subscriber] = None
        return joining

    def _note(self, joining: _Joining) -> None:
        now = self._clock.seconds()
        recent = {topic: at for topic, at in joining.answered.items() if now - at < _SOON}
        joining.answered = {**recent, joining.marker.topic: now}

    def leave(self, marker: Asking) -> None:
        """Handle the withdrawal of ``marker``, unless the subscriber has a newer marker.

        A marker that is withdrawn soon after it arrived was an old marker: libzmq repeats old subscriptions on a new
        connection. The subscriber has dropped the messages that answered the old marker, so all of them are sent again.
        """
        joining = self._joining.get(marker.subscriber)
        if joining is None:
            return
        if joining.marker.topic == marker.topic:
            del self._joining[marker.subscriber]
            self._busy.pop(marker.subscriber, None)
        # A marker that is not in ``answered`` counts as old: with this default, its age is at least `_SOON`.
        elif self._clock.seconds() - joining.answered.pop(marker.topic, -_SOON) < _SOON:
            # Without an earlier walk, the messages are numbered from 1, and none counts as sent before.
            self._begin(joining.marker, self._number, None)
            self._give()

    def close(self) -> None:
        """Stop all walks."""
        if self.snapshots is not None:
            self.snapshots.close()
        self._allowance.close()
        self._joining.clear()
        self._busy.clear()

    def _give(self) -> None:
        """Send a portion to each subscriber, within the allowance of this period."""
        turn = tuple(islice(self._busy, _AT_A_TIME))
        # ``others`` counts down, so the next subscribers share what this one has not used.
        for others, subscriber in zip(range(len(turn), 0, -1), turn, strict=True):
            left = self._allowance.left
            if left <= 0:
                break
            # Removed and added again, so that an unfinished walk goes behind those of the other subscribers.
            del self._busy[subscriber]
            if not self._give_some(self._joining[subscriber], left // others):
                self._busy[subscriber] = None

    def _give_some(self, joining: _Joining, share: int) -> bool:
        """Continue a walk until ``share`` is spent or the queue is full.

        Return True at the end of the walk.
        """
        if self.snapshots is not None and joining.states_since is None:
            if joining.refresh is None:
                joining.refresh = self.snapshots.next_refresh()
            seconds, ended = self.snapshots.refresh(joining.refresh)
            self._allowance.spend(1 + self._cost(seconds))
            if not ended:
                return False
            joining.states_since = self._number
        # At least one message, so that each walk advances even if many subscribers share the allowance.
        least = self._allowance.left - max(share, _SENT)
        while True:
            for topic in self._topics.below(joining.prefixes, joining.after):
                # The walk is back at the topic after which it started.
                if joining.wrapped and joining.start is not None and topic > joining.start:
                    break
                if self._allowance.left <= least or not self._give_one(joining, topic):
                    return False
                joining.after = topic
            if joining.wrapped or joining.start is None:
                return self._end(joining)
            joining.wrapped, joining.after = True, None

    def _give_one(self, joining: _Joining, topic: bytes) -> bool:
        """Send the kept message of ``topic``, unless the subscriber already has it.

        Return False while the subscriber's queue is full.
        """
        if topic in self._states:
            return self._give_state(joining, topic)
        # A snapshot function may have published so much that the kept message was dropped.
        if joining.renewal is not None or topic not in self.messages:
            self._allowance.spend(1)
            return True
        at, codec, body, headers, sent_at = self.messages[topic]
        newer = at > joining.since  # the subscriber has received this message directly
        given = newer or (joining.before is not None and joining.before.was_given(topic, at))
        if given or not joining.marker.wants(topic):  # a prefix may cover topics that the subscriber does not want
            self._allowance.spend(1)
            return True
        self._allowance.spend(_SENT)
        if not self._send(joining.marker, joining.next, topic, LastValue(codec, body, headers, sent_at)):
            return False
        joining.next += 1
        return True

    def _give_state(self, joining: _Joining, topic: bytes) -> bool:
        """Send the snapshot of ``topic``, unless the subscriber already has one.

        A failed snapshot uses a number, so the subscriber counts it as lost. Return False while the snapshot can't be
        made or sent.
        """
        assert self.snapshots is not None
        before = joining.before if joining.renewal is None else None
        given = before is not None and before.had_state(topic, self._states[topic])
        if given or not joining.marker.wants(topic):
            self._allowance.spend(1)
            return True
        made, seconds = self.snapshots.make(topic)
        self._allowance.spend(max(_SENT, self._cost(seconds)))
        if made is NoSnapshot.WAITS:
            return False
        if isinstance(made, Made) and not self._send(joining.marker, joining.next, topic, made):
            return False
        joining.next += made is not NoSnapshot.NOTHING
        return True

    def _cost(self, seconds: float) -> int:
        """Return the units of user functions that have run for ``seconds``."""
        return int(seconds / _SNAPSHOT_SECONDS * self._allowance.amount)

    def _end(self, joining: _Joining) -> bool:
        """Send the end message of the walk, which uses no number.

        An end message is sent after each join, because an earlier one may have been lost.
        """
        self._allowance.spend(_SENT)
        if not self._send(joining.marker, joining.next, b"", joining.renewal and joining.renewal[1]):
            return False
        joining.wrapped, joining.before, joining.walks = True, None, 1
        joining.start = joining.after = joining.renewal = None
        joining.prefixes = apart(joining.marker.prefixes)
        if joining.asked > joining.since:  # messages until the repeated request may have been lost in a proxy
            self._begin(joining.marker, joining.asked, joining)
        elif joining.waiting:
            self._begin_renewal(joining)
        return True
