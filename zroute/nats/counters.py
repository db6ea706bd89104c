"""Number the messages of each topic, on the publisher's side of NATS.

A NATS server does not tell a publisher which subjects are subscribed to. A publisher therefore counts each exact topic,
and a message carries one number: that of its topic. A subscriber with any pattern receives all messages of a topic or
none, so a gap in the numbers of a topic means a loss.

**Memory.** A publisher stores at most `TOPICS_MAX` counters, which use about 45 MB. If a further topic appears, it
drops 1,000 counters that were used least recently. Before the new topic's first message, it sends the last numbers of
the dropped counters to the subscribers that it knows, so the messages of these topics stay counted exactly. A counter
that starts later has a higher **generation**: the upper 24 bits of its numbers count how often the publisher has
dropped counters. A subscriber that did not receive the last numbers finds the higher generation, and reports an unknown
loss.

**Turns.** `order` divides the run into turns, at each tick and each statement. It moves the topics that were used since
the last turn to the end of the dict, so that the dict is in the order of the last use, and `changed` finds all topics
used after a turn without visiting the others. A message costs the same as on ZeroMQ: a look-up, an addition, and a
note once per topic and turn.

This module has the methods of `zroute.publishing.counters.Counters` that the paths of a publisher use. It does no I/O
and reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, takewhile

from zroute.messages.control import COUNT_BITS
from zroute.publishing.counters import Counter, Cover

__all__ = ["TOPICS_MAX", "TopicCounters"]

TOPICS_MAX = 100_000
"""The maximum number of topics that a publisher counts at a time. Each takes about 450 bytes."""

_DROPPED = 100
"""One in this number of counters is dropped at a time.

Each time, all fast paths look up their counters again.
"""


class TopicCounters:
    """The counters of one run of a publisher, by topic.

    Attributes:
        version: a `Cover` is valid until this number changes.
        generation: the number of times that counters were dropped.
        turn: the number of the current turn, from 1.
        added: called with each new topic, before its first message is counted.
        dropped: called with dropped counters, before the generation changes.
    """

    def __init__(self) -> None:
        self.version = 0
        self.generation = 0
        self.turn = 1
        self.added: Callable[[bytes], None] = lambda topic: None
        self.dropped: Callable[[Sequence[Counter]], None] = lambda counters: None
        self._covers: dict[bytes, Cover] = {}  # in the order of the turns of their last messages
        self._moved: list[Cover] = []

    def __len__(self) -> int:
        return len(self._covers)

    def count(self, topic: bytes, many: int = 1) -> tuple[Counter, ...]:
        """Count ``many`` messages of ``topic``; return its counter, alone in a tuple."""
        cover = self._covers.get(topic) or self._add(topic)
        cover.counters[0].number += many
        if not cover.moved:
            self.note(cover)
        return cover.carried

    def cover(self, topic: bytes) -> Cover:
        """Return the counter of ``topic``; the caller increments it and calls `note`."""
        return self._covers.get(topic) or self._add(topic)

    def note(self, cover: Cover) -> None:
        """Record that a counter has changed in this turn.

        Call this only if ``moved`` is False.
        """
        cover.moved = True
        self._moved.append(cover)

    def take_back(self, topic: bytes, many: int = 1) -> None:
        """Undo the last `count`: the ``many`` messages of ``topic`` were not sent."""
        self.cover(topic).counters[0].number -= many

    def order(self) -> int:
        """End the current turn, and return its number."""
        ended, covers = self.turn, self._covers
        for cover in self._moved:
            cover.moved = False
            (counter,) = cover.counters
            if counter.withdrawn:  # dropped since
                continue
            counter.noticed = ended
            covers[counter.prefix] = covers.pop(counter.prefix)
        self._moved.clear()
        self.turn = ended + 1
        return ended

    def changed(self, since: int) -> list[Counter]:
        """Return the counters that have changed after the turn ``since``.

        Changes count up to the last `order`. With 0, all counters are returned. A counter that is dropped later has
        ``withdrawn`` set.
        """
        used = (cover.counters[0] for cover in reversed(self._covers.values()))
        return list(takewhile(lambda counter: counter.noticed > since, used) if since else used)

    def _add(self, topic: bytes) -> Cover:
        if len(self._covers) >= TOPICS_MAX:
            self._drop()
        self.added(topic)
        counter = Counter(topic, len(topic), self.generation << COUNT_BITS, self.turn)
        cover = self._covers[topic] = Cover((counter,), (counter,))
        return cover

    def _drop(self) -> None:
        """Drop the counters that were used least recently."""
        self.order()
        dropped = []
        for topic in list(islice(self._covers, max(len(self._covers) // _DROPPED, 1))):
            (counter,) = self._covers.pop(topic).counters
            counter.withdrawn = True
            dropped.append(counter)
        # Before the generation changes: the numbers belong to the generations up to now.
        self.dropped(dropped)
        self.generation += 1
        self.version += 1
