"""Numbering of messages on the tracked wire, on the publisher's side.

A publisher has one counter for each subscription, because a subscriber receives only the messages of its own
subscriptions. A gap in the numbers of a subscription therefore means a loss. After the last message, beats repeat the
number of that message, so that the subscriber also notices its loss.

The subscriber's side is `zroute.receiving.tracker`, which also describes the protocol and the memory on both sides.
This module opens no socket and reads no clock; the caller passes times as arguments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.budget import Budget, part
from zroute.messages.control import (
    BEATS,
    COUNT_BITS,
    GRACE,
    MARKER,
    WITHDRAWN_SECONDS,
    Marker,
    is_counted,
    parse_marker,
)
from zroute.options import CARRIED, MAX_SUBSCRIPTIONS
from zroute.publishing.ordered import Ordered, apart

__all__ = [
    "COVERS",
    "WITHDRAWN_MAX",
    "Beat",
    "Counter",
    "Counters",
    "Cover",
]

WITHDRAWN_MAX = 10_000
"""The maximum number of withdrawn counters, which use about 2 MB."""

_SHARED = 1_000
"""The maximum number of covers that further topics can share."""

COVERS = 32 * 1024 * 1024
"""The maximum size in bytes of the cache of counters by topic, enough for about 160,000 topics."""


@attrs.define(eq=False, slots=True)
class Counter:
    """The counter of one subscription.

    The number increases only after a marker has asked for it. Before that, no subscriber knows the number.

    Attributes:
        prefix: The subscription.
        length: The length of the prefix.
        number: The number of the last message.
        noticed: The last number for which beats have been scheduled.
        withdrawn: True if no peer has the subscription any longer.
        wanted: True if a marker has asked for the number.
        carried: False if a message did not carry the number, because 16 shorter subscriptions covered its topic.
    """

    prefix: bytes
    length: int
    number: int
    noticed: int
    withdrawn: bool = False
    wanted: bool = False
    carried: bool = True


@attrs.define(eq=False, slots=True)
class Cover:
    """The counters of one topic, or of several topics with the same counters.

    Attributes:
        counters: All counters that a message of the topic increments.
        carried: The counters whose numbers are in the header of a message.
        moved: True if `Counters.beats` has already been informed that the counters have changed.
    """

    counters: tuple[Counter, ...]
    carried: tuple[Counter, ...]
    moved: bool = False


def _size(topic: bytes, cover: Cover) -> int:
    """Return an upper bound for a cover in bytes, as if no other topic shared it."""
    return 160 + len(topic) + 16 * len(cover.counters)


@attrs.frozen
class Beat:
    """A beat to send now.

    Attributes:
        prefix: The subscription.
        number: The number of the subscription's last message.
        next_ms: The time until the next beat in milliseconds; 0 if there is no next beat.
    """

    prefix: bytes
    number: int
    next_ms: int


class Counters:
    """The counters of one run of a publisher.

    The caller reports the subscriptions that the XPUB socket receives (`subscribe`, `withdraw`), and counts each
    message directly before sending it. While `active` is True, the caller also sends the result of `beats` at each
    `TICK`.
    """

    def __init__(self) -> None:
        self.markers: dict[bytes, Marker] = {}
        self.partial = False
        """True if the number of subscriptions has ever exceeded the maximum number of counters."""
        self.version = 0
        """The version of all covers: a `Cover` is valid until this number changes."""
        self._counters: dict[bytes, Counter] = {}
        self._ordered = Ordered()  # the prefixes of all counters
        self._lengths: dict[int, int] = {}  # the number of counters for each prefix length
        self._covers: dict[bytes, Cover] = {}
        self._shared: dict[tuple[Counter, ...], Cover] = {}  # the covers by their counters
        self._budget = Budget(COVERS)
        self._budget.share(self._drop_covers)
        self._moved: list[Cover] = []
        self._due: tuple[deque[tuple[float, Counter, int]], ...] = tuple(deque() for _ in BEATS)
        self._withdrawn: dict[bytes, float] = {}  # the time at which to forget each counter, the earliest first
        self._generation = 0
        self._unmarked: dict[bytes, float] | None = {}  # the arrival times of subscriptions that no marker has claimed

    # -- subscriptions

    def subscribe(self, prefix: bytes, now: float) -> Marker | None:
        """Add the subscription ``prefix``.

        If the subscription is a marker, return the `Marker`, which the caller must answer with `numbers`.
        """
        if prefix.startswith(MARKER):
            return self._marked(prefix)
        if self._unmarked is not None and len(self._unmarked) < MAX_SUBSCRIPTIONS:
            self._unmarked[prefix] = now
        counter = self._counters.get(prefix)
        if counter is not None:  # it is withdrawn and still counts
            counter.withdrawn = False
            self._withdrawn.pop(prefix, None)
        elif not is_counted(prefix):
            pass  # a header cannot name it
        # Withdrawn counters have a limit of their own: `WITHDRAWN_MAX`.
        elif len(self._counters) - len(self._withdrawn) >= MAX_SUBSCRIPTIONS:
            self.partial = True
        else:
            number = self._generation << COUNT_BITS
            self._counters[prefix] = Counter(prefix, len(prefix), number, number)
            self._lengths[len(prefix)] = self._lengths.get(len(prefix), 0) + 1
            self._ordered.add(prefix)
            self._forget_covers()
        return None

    def _marked(self, topic: bytes) -> Marker | None:
        try:
            marker = parse_marker(topic)
        except EnvelopeError:
            return None  # a plain reader's subscription that only looks like a marker
        if marker.is_ping:  # a ping asks for numbers only; an earlier marker represents its subscriber
            return marker
        if len(self.markers) < MAX_SUBSCRIPTIONS:
            self.markers[topic] = marker
        return marker

    def withdraw(self, prefix: bytes, now: float) -> None:
        """Remove the subscription ``prefix``, which its last subscriber has withdrawn.

        The counter keeps counting for `WITHDRAWN_SECONDS`, in case the subscriber reconnects.
        """
        self.markers.pop(prefix, None)
        if self._unmarked is not None:
            self._unmarked.pop(prefix, None)
        counter = self._counters.get(prefix)
        if counter is None or counter.withdrawn:
            return
        counter.withdrawn = True
        self._withdrawn[prefix] = now + WITHDRAWN_SECONDS
        if len(self._withdrawn) > WITHDRAWN_MAX:
            # A tenth of them at once, because each call of `_forget` makes all covers invalid.
            self._forget(list(self._withdrawn)[: WITHDRAWN_MAX // 10])

    def _forget(self, prefixes: Iterable[bytes]) -> None:
        for prefix in prefixes:
            del self._withdrawn[prefix], self._counters[prefix]
            self._lengths[len(prefix)] -= 1
            if not self._lengths[len(prefix)]:
                del self._lengths[len(prefix)]
            self._ordered.discard(prefix)
        self._forget_covers()
        # A new counter of a forgotten subscription gets this generation, which tells subscribers of an unknown loss.
        self._generation += 1

    def plain_reader(self, now: float) -> bool:
        """Return True if a subscription belongs to a plain reader, but only once per run.

        A subscription belongs to a plain reader if no marker has asked for its number within `GRACE` seconds.
        """
        # Subscriptions are in the order of their arrival, so only the old ones at the beginning are looked at.
        old = [] if self._unmarked is None else list(self._older(self._unmarked, now - GRACE))
        if self._unmarked is None or not old:
            return False
        wanted = apart(chain.from_iterable(marker.prefixes for marker in self.markers.values()))
        for prefix in old:
            del self._unmarked[prefix]
            # Prefixes in ``wanted`` do not contain each other, so only the last one before ``prefix`` can cover it.
            at = bisect_right(wanted, prefix)
            if not at or not prefix.startswith(wanted[at - 1]):
                self._unmarked = None  # found: the search ends
                return True
        return False

    @staticmethod
    def _older(since: dict[bytes, float], limit: float) -> Iterator[bytes]:
        return takewhile(lambda prefix: since[prefix] <= limit, since)

    # -- messages

    def count(self, topic: bytes, many: int = 1) -> tuple[Counter, ...]:
        """Count ``many`` messages that are sent now.

        Return the counters for the header of these messages, sorted from the shortest to the longest subscription.
        """
        cover = self._covers.get(topic) or self._cover(topic)
        for counter in cover.counters:
            counter.number += many
        if not cover.moved:
            self.note(cover)
        return cover.carried

    def cover(self, topic: bytes) -> Cover:
        """Return the counters of ``topic``.

        The caller increments them itself, and calls `note`.
        """
        return self._covers.get(topic) or self._cover(topic)

    def note(self, cover: Cover) -> None:
        """Inform `beats` that the counters of a cover have changed.

        Call this method only if ``moved`` is False.
        """
        cover.moved = True
        self._moved.append(cover)

    def take_back(self, topic: bytes, many: int = 1) -> None:
        """Undo the last `count`: the ``many`` messages of ``topic`` were not sent."""
        for counter in self.cover(topic).counters:
            counter.number -= many

    def _cover(self, topic: bytes) -> Cover:
        # Shortest first: a header carries only the numbers of the shortest subscriptions.
        found = [self._counters.get(topic[:length]) for length in sorted(self._lengths) if length <= len(topic)]
        counters = tuple(counter for counter in found if counter is not None and counter.wanted)
        for counter in counters[CARRIED:]:
            counter.carried = False
        cover = self._shared.get(counters)
        if cover is None:
            # A cover without counters never causes a beat, so it begins as if it were noted already.
            cover = Cover(counters, counters[:CARRIED], moved=not counters)
            if len(self._shared) >= _SHARED:
                for each in part(self._shared):
                    del self._shared[each]
            self._shared[counters] = cover
        self._budget.take(_size(topic, cover))  # before the cover is stored, so that the budget does not drop it
        self._covers[topic] = cover
        return cover

    def _drop_covers(self) -> None:
        # ``version`` does not change: a fast path may keep a dropped cover, because its counters are the same objects.
        self._budget.give_back(sum(_size(topic, self._covers.pop(topic)) for topic in part(self._covers)))

    def _forget_covers(self) -> None:
        self.version += 1
        self._covers.clear()
        self._shared.clear()
        self._budget.give_back(self._budget.used)

    def carried(self, prefix: bytes) -> int | None:
        """Return the last number of a subscription, or None.

        The result is None unless the subscription is active and counted, and all its messages carry their numbers.
        """
        counter = self._counters.get(prefix)
        known = counter is not None and counter.wanted and counter.carried and not counter.withdrawn
        return counter.number if known and counter is not None else None

    def numbers(self, marker: Marker) -> Iterator[tuple[bytes, int]]:
        """Yield each active subscription that ``marker`` asks for, with its last number."""
        named = self._ordered.below(apart(marker.prefixes)) if marker.summary else marker.prefixes
        for prefix in named:
            counter = self._counters.get(prefix)
            if counter is not None and not counter.withdrawn:
                if not counter.wanted:
                    counter.wanted = True
                    # Covers contain only wanted counters.
                    self._forget_covers()
                yield prefix, counter.number

    def last_numbers(self, topic: bytes) -> list[int]:
        """Return the last number of each counter of ``topic``."""
        return [counter.number for counter in self.cover(topic).counters]

    def numbers_of(self, marker: Marker, topic: bytes) -> list[tuple[int, int]]:
        """Return the length and the last number of each subscription of ``topic``.

        These are the subscriptions that ``marker`` wants; for a summary, all of them. The shortest ones come first.
        """
        if marker.summary:
            counters: Iterable[Counter] = self.cover(topic).counters
        else:
            wanted = sorted({prefix for prefix in marker.prefixes if topic.startswith(prefix)})
            counters = [self._counters[prefix] for prefix in wanted if prefix in self._counters]
        return [(counter.length, counter.number) for counter in counters]

    # -- time

    @property
    def active(self) -> bool:
        """True if `beats` has work to do, now or later."""
        return bool(self._moved or self._withdrawn or any(self._due))

    def beats(self, now: float) -> list[Beat]:
        """Return the beats that are due, and delete expired withdrawn counters.

        Call this method at each `TICK`; ``now`` is in seconds.
        """
        if expired := list(takewhile(lambda prefix: self._withdrawn[prefix] <= now, self._withdrawn)):
            self._forget(expired)
        self._notice(now)
        beats = []
        for stage, waiting in enumerate(self._due):
            # All entries of a stage wait equally long, so its deque stays sorted by time.
            pause = BEATS[stage + 1] - BEATS[stage] if stage + 1 < len(BEATS) else 0.0
            while waiting and waiting[0][0] <= now:
                _, counter, number = waiting.popleft()
                if counter.number != number or counter.withdrawn:
                    continue  # a later message has its own beats, or no subscriber is left
                if pause:
                    self._due[stage + 1].append((now + pause, counter, number))
                beats.append(Beat(counter.prefix, number, round(pause * 1000)))
        return beats

    def _notice(self, now: float) -> None:
        """Schedule beats for the messages that were sent since the last call."""
        moved, self._moved = self._moved, []
        for cover in moved:
            cover.moved = False
            for counter in cover.counters:
                # A counter may belong to several covers, or its message may have been taken back.
                if counter.number != counter.noticed:
                    counter.noticed = counter.number
                    self._due[0].append((now + BEATS[0], counter, counter.number))
