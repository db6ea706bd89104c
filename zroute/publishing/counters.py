"""Counting: the numbers that a publisher gives its messages on the tracked wire. Pure; the clock is an argument.

The other side is `zroute.receiving.tracker`, where the way of a message and the memory of both are described.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.budget import Budget, part
from zroute.messages.control import MARKER, Marker, parse_marker
from zroute.messages.wire import NUL
from zroute.options import CARRIED, MAX_SUBSCRIPTIONS, MAX_TOPIC
from zroute.publishing.ordered import Ordered, apart

__all__ = [
    "BEATS",
    "COUNT_BITS",
    "COVERS",
    "GRACE",
    "WITHDRAWN_MAX",
    "WITHDRAWN_SECONDS",
    "Beat",
    "Counter",
    "Counters",
    "Cover",
    "is_counted",
]

BEATS = (0.5, 2.0, 10.0)
"""Seconds after the last message of a subscription at which beats say its number: soon, and again in case of loss."""

WITHDRAWN_SECONDS = 120.0
"""How long a withdrawn counter goes on: as long as TCP keep-alive takes to find out that a peer is gone."""

WITHDRAWN_MAX = 10_000
"""Withdrawn counters at a time: about 2 MB."""

GRACE = 2.0
"""Seconds that a beat may be late, and that a plain reader is waited for to send a marker."""

COVERS = 32 * 1024 * 1024
"""Bytes of what is known about which counters a topic moves: some 70,000 topics."""

COUNT_BITS = 40  # a number: 24 bits of generation, 40 of count


def is_counted(prefix: bytes) -> bool:
    """Return True if a publisher has a counter for the subscription ``prefix``: a number names it by its length.

    Subscriptions with a NUL are those of plain readers, which match topic and NUL together.
    """
    return len(prefix) <= MAX_TOPIC and NUL not in prefix


@attrs.define(eq=False, slots=True)
class Counter:
    """The messages of one live subscription; ``number`` is that of the last.

    It counts from the first marker on that has ``wanted`` it: nobody else knows its number.
    """

    prefix: bytes
    length: int
    number: int
    noticed: int
    withdrawn: bool = False
    wanted: bool = False


@attrs.define(eq=False, slots=True)
class Cover:
    """The counters of one topic, those of them that its messages carry, and whether `beats` has to look at them."""

    counters: tuple[Counter, ...]
    carried: tuple[Counter, ...]
    moved: bool = False


def _size(topic: bytes, cover: Cover) -> int:
    """The bytes of a cover, from above: the subscribers decide how many counters it has."""
    return 400 + len(topic) + 16 * len(cover.counters)


@attrs.frozen
class Beat:
    """A beat that is due: the last ``number`` of ``prefix``, and when the next follows (milliseconds; 0: none)."""

    prefix: bytes
    number: int
    next_ms: int


class Counters:
    """The counters of one run of a publisher.

    Give it what the XPUB socket tells (`subscribe`, `withdraw`), count each message right before it is sent,
    and send what `beats` returns, each `TICK` while it is `active`.
    """

    def __init__(self) -> None:
        self.markers: dict[bytes, Marker] = {}
        self.partial = False
        """Whether there ever were more live subscriptions than are counted."""
        self.version = 0
        """Changes when topics may have got other counters: until then a `Cover` is that of its topic."""
        self._counters: dict[bytes, Counter] = {}
        self._ordered = Ordered()  # their prefixes
        self._lengths: dict[int, int] = {}  # how many counters have a prefix of this length
        self._covers: dict[bytes, Cover] = {}
        self._budget = Budget(COVERS)
        self._budget.share(self._drop_covers)
        self._moved: list[Cover] = []
        self._due: tuple[deque[tuple[float, Counter, int]], ...] = tuple(deque() for _ in BEATS)
        self._withdrawn: dict[bytes, float] = {}  # when to forget it; the oldest first
        self._generation = 0
        self._unmarked: dict[bytes, float] | None = {}  # since when there are those that are still to be judged

    # -- subscriptions

    def subscribe(self, prefix: bytes, now: float) -> Marker | None:
        """``prefix`` is live from now on. A marker is returned, and is to be answered with `numbers`."""
        if prefix.startswith(MARKER):
            return self._marked(prefix)
        if self._unmarked is not None and len(self._unmarked) < MAX_SUBSCRIPTIONS:
            self._unmarked[prefix] = now
        counter = self._counters.get(prefix)
        if counter is not None:  # it never stopped counting
            counter.withdrawn = False
            self._withdrawn.pop(prefix, None)
        elif not is_counted(prefix):
            pass  # no number could name it
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
            return None  # a plain reader's subscription that looks like one
        if marker.is_ping:  # it is answered before joins, and comes behind a marker that stands for its subscriber
            return marker
        if len(self.markers) < MAX_SUBSCRIPTIONS:
            self.markers[topic] = marker
        return marker

    def withdraw(self, prefix: bytes, now: float) -> None:
        """Nobody subscribes to ``prefix`` any more. It goes on counting for `WITHDRAWN_SECONDS`."""
        self.markers.pop(prefix, None)
        if self._unmarked is not None:
            self._unmarked.pop(prefix, None)
        counter = self._counters.get(prefix)
        if counter is None or counter.withdrawn:
            return
        counter.withdrawn = True
        self._withdrawn[prefix] = now + WITHDRAWN_SECONDS
        if len(self._withdrawn) > WITHDRAWN_MAX:
            self._forget(list(self._withdrawn)[: WITHDRAWN_MAX // 10])

    def _forget(self, prefixes: Iterable[bytes]) -> None:
        for prefix in prefixes:
            del self._withdrawn[prefix], self._counters[prefix]
            self._lengths[len(prefix)] -= 1
            if not self._lengths[len(prefix)]:
                del self._lengths[len(prefix)]
            self._ordered.discard(prefix)
        self._forget_covers()
        self._generation += 1

    def plain_reader(self, now: float) -> bool:
        """Return True, once, if a subscription is `GRACE` seconds old that no marker wants: that of a plain reader."""
        old = [] if self._unmarked is None else list(self._older(self._unmarked, now - GRACE))
        if self._unmarked is None or not old:
            return False
        wanted = apart(chain.from_iterable(marker.prefixes for marker in self.markers.values()))
        for prefix in old:
            del self._unmarked[prefix]
            at = bisect_right(wanted, prefix)
            if not at or not prefix.startswith(wanted[at - 1]):
                self._unmarked = None  # no more are looked for
                return True
        return False

    @staticmethod
    def _older(since: dict[bytes, float], limit: float) -> Iterator[bytes]:
        return takewhile(lambda prefix: since[prefix] <= limit, since)

    # -- messages

    def count(self, topic: bytes, many: int = 1) -> tuple[Counter, ...]:
        """Count ``many`` messages that are sent now; the counters they carry, the shorter subscription first."""
        cover = self._covers.get(topic) or self._cover(topic)
        for counter in cover.counters:
            counter.number += many
        if not cover.moved:
            self.note(cover)
        return cover.carried

    def cover(self, topic: bytes) -> Cover:
        """Return the counters of ``topic``, for a caller that counts on its own what it sends, and calls `note`."""
        return self._covers.get(topic) or self._cover(topic)

    def note(self, cover: Cover) -> None:
        """Have `beats` look at a cover that has not ``moved`` since it did so last, and moves now."""
        cover.moved = True
        self._moved.append(cover)

    def take_back(self, topic: bytes, many: int = 1) -> None:
        """The messages that were counted last, ``many`` of ``topic``, were not sent."""
        for counter in self.cover(topic).counters:
            counter.number -= many

    def _cover(self, topic: bytes) -> Cover:
        found = [self._counters.get(topic[:length]) for length in sorted(self._lengths) if length <= len(topic)]
        counters = tuple(counter for counter in found if counter is not None and counter.wanted)
        cover = Cover(counters, counters[:CARRIED], moved=not counters)
        self._budget.take(_size(topic, cover))  # first: it drops none that is to be taken back
        self._covers[topic] = cover
        return cover

    def _drop_covers(self) -> None:
        for topic in part(self._covers):
            self._budget.give_back(_size(topic, self._covers.pop(topic)))

    def _forget_covers(self) -> None:
        self.version += 1
        self._covers.clear()
        self._budget.give_back(self._budget.used)

    def numbers(self, marker: Marker) -> Iterator[tuple[bytes, int]]:
        """Yield what a statement to ``marker`` says: each wanted subscription that is live, and its last number."""
        named = self._ordered.below(apart(marker.prefixes)) if marker.summary else marker.prefixes
        for prefix in named:
            counter = self._counters.get(prefix)
            if counter is not None and not counter.withdrawn:
                if not counter.wanted:
                    counter.wanted = True
                    self._forget_covers()
                yield prefix, counter.number

    # -- time

    @property
    def active(self) -> bool:
        """Whether `beats` has something to do, now or later."""
        return bool(self._moved or self._withdrawn or any(self._due))

    def beats(self, now: float) -> list[Beat]:
        """The beats that are due; forgets withdrawn counters whose time is over. To be called each `TICK`."""
        if expired := list(takewhile(lambda prefix: self._withdrawn[prefix] <= now, self._withdrawn)):
            self._forget(expired)
        self._notice(now)
        beats = []
        for stage, waiting in enumerate(self._due):
            pause = BEATS[stage + 1] - BEATS[stage] if stage + 1 < len(BEATS) else 0.0
            while waiting and waiting[0][0] <= now:
                _, counter, number = waiting.popleft()
                if counter.number != number or counter.withdrawn:
                    continue  # a later message has its own beats; nobody hears this one
                if pause:
                    self._due[stage + 1].append((now + pause, counter, number))
                beats.append(Beat(counter.prefix, number, round(pause * 1000)))
        return beats

    def _notice(self, now: float) -> None:
        """Let beats follow the messages since the last call."""
        moved, self._moved = self._moved, []
        for cover in moved:
            cover.moved = False
            for counter in cover.counters:
                if counter.number != counter.noticed:
                    counter.noticed = counter.number
                    self._due[0].append((now + BEATS[0], counter, counter.number))
