"""Decide which worker gets which job.

A worker has one lane for each of its handlers. A lane has credit while its number of unfinished jobs is below its
limit. A job goes to the lane that has credit and was served least recently.

Many workers run the same code, so their offers are equal, and equal lanes share a `_Slot`. The slots of equal offers
have the same number, their *kind*. The topic of a job determines the slots that accept the job. Topics with the same
slots form a `_Group`, whose jobs are assigned in the order in which they were put. For this reason, a decision takes
the same time with ten thousand topics or workers as with one.

A worker may offer any patterns, and may change them with each message. Therefore no message may cause work for all
waiting jobs:

- An offer of a known kind only adds lanes.
- An offer of a new kind adds its patterns to an index. Topics of new jobs are looked up in the index.
- `regroup` looks up the topics that already wait, in the order of their last look-up. The caller limits the steps of
  each call. One look-up considers all kinds, so any number of new kinds costs only one look-up per waiting topic.
- A kind without workers stays in the index until other kinds are added. The slots of such a kind never have credit.

This module does no I/O.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, islice
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import attrs

from zroute.jobs.pattern_index import PatternIndex
from zroute.messages.jobs import Offered
from zroute.messages.topics import Pattern
from zroute.options import TOPICS_NOTED

__all__ = ["Assignable", "Lane", "Scheduler"]

_PURGED = 16  # the number of surplus entries up to which a heap is not purged
_FORGOTTEN = 2  # kinds without workers that are removed for each new kind


class Assignable(Protocol):
    """The attributes of a job that the scheduler needs.

    The scheduler sets all attributes except the topic. ``order`` is the place of the job among the waiting jobs: a job
    with a smaller number is assigned earlier. ``next`` is the next waiting job of the same topic. ``lane`` is the lane
    to which the job is assigned.
    """

    topic: bytes
    order: int
    next: Any
    lane: Lane | None


J = TypeVar("J", bound=Assignable)


class _Slot:
    """The equal lanes of equal workers.

    ``free`` is a heap of lanes with credit, ordered by their last turn. The heap may also contain lanes without credit.
    `next` drops such a lane when it finds one, and `purge` drops all of them when they are the majority. ``lanes`` is
    the number of open lanes. ``waiting`` contains the groups with waiting jobs; the group that was served least
    recently is the first. ``place`` is the place of the slot in the offers of its kind. ``listed`` is True if the
    scheduler will look for jobs of this slot.
    """

    __slots__ = ("free", "kind", "lanes", "listed", "place", "waiting")

    def __init__(self, kind: int, place: int) -> None:
        self.kind = kind
        self.place = place
        self.free: list[tuple[int, Lane]] = []
        self.waiting: OrderedDict[_Group[Any], None] = OrderedDict()
        self.lanes = 0
        self.listed = False

    def next(self) -> tuple[int, Lane] | None:
        """Return the least recently served lane with credit, and its last turn.

        Returns:
            The turn and the lane; None if no lane has credit.
        """
        free = self.free
        while free and not free[0][1].has_credit:
            heappop(free)[1].queued = False
        return free[0] if free else None

    def purge(self) -> None:
        """Drop lanes without credit from the heap if they are the majority."""
        if len(self.free) <= 2 * self.lanes + _PURGED:
            return
        kept = []
        for entry in self.free:
            if entry[1].has_credit:
                kept.append(entry)
            else:
                entry[1].queued = False
        heapify(kept)
        self.free = kept


@attrs.define(eq=False)
class Lane:
    """The jobs of one handler of one worker.

    Attributes:
        owner: the worker that the lane belongs to.
        slot: the slot that equal lanes share.
        limit: the number of unfinished jobs that the lane accepts; 0 if the lane is closed.
        unfinished: the number of unfinished jobs.
        turn: the number of the turn in which the lane was served last; 0 if never.
        queued: True if the lane is in the heap of its slot.
    """

    owner: Any
    slot: _Slot = attrs.field(repr=False)
    limit: int
    unfinished: int = 0
    turn: int = 0
    queued: bool = False

    @property
    def has_credit(self) -> bool:
        """True if the lane accepts another job."""
        return self.unfinished < self.limit

    def __lt__(self, other: Lane) -> bool:
        return False  # in the heap, lanes with the same turn are equal


class _Topic(Generic[J]):
    """The waiting jobs of one topic, a linked list of ``number`` jobs.

    ``seen`` is the newest kind that was considered in the choice of ``group``.
    """

    __slots__ = ("first", "group", "last", "name", "number", "seen")

    def __init__(self, name: bytes, group: _Group[J], seen: int) -> None:
        self.name = name
        self.group = group
        self.seen = seen
        self.first: J | None = None
        self.last: J | None = None
        self.number = 0

    def __lt__(self, other: _Topic[J]) -> bool:
        return False  # in the heap, entries with the same job are equal


class _Group(Generic[J]):
    """The topics that the same slots accept.

    ``heap`` contains each topic with waiting jobs, ordered by its first job. The heap may also contain entries that are
    out of date. `first` drops such an entry when it finds one, and `push` drops all of them when they are the majority.
    ``topics`` is the number of topics with waiting jobs, and ``number`` is the number of these jobs.
    """

    __slots__ = ("__weakref__", "heap", "number", "slots", "topics")

    def __init__(self, slots: tuple[_Slot, ...]) -> None:
        self.slots = slots
        self.heap: list[tuple[int, _Topic[J]]] = []
        self.topics = self.number = 0

    def slot(self) -> _Slot | None:
        """Return the slot whose next lane was served least recently, or None."""
        found = None
        best = 0
        for slot in self.slots:
            first = slot.next()
            if first is not None and (found is None or first[0] < best):
                found, best = slot, first[0]
        return found

    def push(self, order: int, topic: _Topic[J]) -> None:
        """Add an entry for a topic whose first job has changed."""
        heappush(self.heap, (order, topic))
        if len(self.heap) > 2 * self.topics + _PURGED:
            kept = {topic: None for _, topic in self.heap if topic.group is self and topic.first is not None}
            self.heap = [(topic.first.order, topic) for topic in kept if topic.first is not None]
            heapify(self.heap)

    def first(self) -> _Topic[J]:
        """Return the topic with the first job. The group must have waiting jobs."""
        while True:
            order, topic = self.heap[0]
            if topic.group is self and (first := topic.first) is not None and first.order == order:
                return topic
            heappop(self.heap)


class Scheduler(Generic[J]):
    """The waiting jobs and the lanes of one owner."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[tuple[Pattern, ...], ...], tuple[_Slot, ...]] = {}
        self._keys: dict[int, tuple[tuple[Pattern, ...], ...]] = {}
        self._unused: dict[int, None] = {}  # the kinds without workers
        self._patterns: PatternIndex[_Slot] = PatternIndex()
        self._newest = 0
        self._groups: WeakValueDictionary[tuple[_Slot, ...], _Group[J]] = WeakValueDictionary()
        self._topics: OrderedDict[bytes, _Topic[J]] = OrderedDict()  # in the order of their last look-up
        self._ready: deque[_Slot] = deque()  # the slots that may have jobs and credit
        self._held: set[bytes] = set()
        self._turns = count(1)
        self._behind, self._ahead = count(), count(-1, -1)

    # -- jobs ------------------------------------------------------------------------------------------------

    def put(self, job: J) -> None:
        """Add a job after all other waiting jobs."""
        job.order = next(self._behind)
        topic = self._topics.get(job.topic) or self._new(job.topic)
        last = topic.last
        topic.last = job
        if last is None:
            topic.first = job
            self._join(topic, 1)
        else:
            # The first job of the topic is the same, so the group needs no new entry.
            last.next = job
            topic.number += 1
            topic.group.number += 1

    def put_back(self, jobs: Iterable[J]) -> None:
        """Add jobs before all other waiting jobs, in the order of ``jobs``."""
        # From the last to the first, because each job gets a smaller number than the one before.
        for job in reversed(list(jobs)):
            job.order = next(self._ahead)
            topic = self._topics.get(job.topic) or self._new(job.topic)
            job.next = topic.first
            topic.first = job
            if topic.last is None:
                topic.last = job
                self._join(topic, 1)
            else:
                topic.number += 1
                topic.group.number += 1
                topic.group.push(job.order, topic)

    def remove(self, job: J) -> None:
        """Remove a waiting job."""
        topic = self._topics[job.topic]
        if topic.first is job:
            topic.first = job.next
            if topic.first is not None:
                topic.group.push(topic.first.order, topic)
        else:
            before: Any = topic.first
            # A short search, because a job that is removed was put back, so it is near the beginning.
            while before.next is not job:
                before = before.next
            before.next = job.next
            if topic.last is job:
                topic.last = before
        job.next = None
        if topic.first is None:
            self._empty(topic)
        else:
            topic.number -= 1
            topic.group.number -= 1

    def clear(self) -> None:
        """Remove all waiting jobs."""
        for topic in self._topics.values():
            if topic.number:
                self._leave(topic)
        self._topics.clear()

    def take(self) -> tuple[J, Lane] | None:
        """Assign the next job to a lane.

        Groups take turns, so a group with many waiting jobs does not delay the other groups.

        Returns:
            The job and the lane; None if no job can be assigned.
        """
        ready = self._ready
        while ready:
            slot = ready.popleft()
            if not slot.waiting or slot.next() is None:
                slot.listed = False
                continue
            # Still listed: the slot is removed when it has no jobs or no credit at its next turn.
            ready.append(slot)
            group: _Group[J] = next(iter(slot.waiting))
            # Another slot of the group may have a lane that was served less recently.
            if len(group.slots) > 1:
                slot = group.slot() or slot
            slot.waiting.move_to_end(group)
            # The top of the heap has credit, because `next` has just dropped all lanes without credit before it.
            job, lane = self._first(group), heappop(slot.free)[1]
            job.lane = lane
            lane.unfinished += 1
            lane.turn, lane.queued = next(self._turns), False
            if lane.unfinished < lane.limit:
                self._queue(lane)
            return job, lane
        return None

    def _first(self, group: _Group[J]) -> J:
        """Remove and return the first job of a group."""
        topic = group.first()
        job: Any = topic.first
        after: J | None = job.next
        topic.first, job.next = after, None
        if after is not None:
            # `first` has left the entry of this topic at the top of the heap.
            heapreplace(group.heap, (after.order, topic))
            topic.number -= 1
            group.number -= 1
        else:
            heappop(group.heap)
            self._empty(topic)
        return job  # type: ignore[no-any-return]

    def _empty(self, topic: _Topic[J]) -> None:
        """Update the counters after the last job of a topic was removed."""
        self._leave(topic)
        topic.last, topic.number = None, 0

    def hold(self, topic: bytes) -> None:
        """Assign no job of a topic until `release`."""
        self._held.add(topic)
        self._move(topic)

    def release(self, topic: bytes) -> None:
        """Assign the jobs of a topic again."""
        self._held.discard(topic)
        self._move(topic)

    def _move(self, name: bytes) -> None:
        """Look up a topic again."""
        topic = self._topics.get(name)
        if topic is None:
            return
        if topic.number:
            self._leave(topic)
        self._topics.move_to_end(name)
        topic.group, topic.seen = self._look_up(name)[0], self._newest
        if topic.number:
            self._join(topic, topic.number)

    # -- lanes -----------------------------------------------------------------------------------------------

    def open(self, owner: Any, offered: Sequence[Offered]) -> tuple[Lane, ...]:
        """Return a lane for each entry of an offer from the worker ``owner``.

        If the patterns are new, call `regroup` until steps remain.
        """
        if not offered:
            return ()
        key = tuple(each.patterns for each in offered)
        slots = self._kinds.get(key)
        if slots is None:
            slots = self._add(key)
        self._unused.pop(slots[0].kind, None)
        lanes = tuple(Lane(owner, slot, each.credits) for slot, each in zip(slots, offered, strict=True))
        for lane in lanes:
            lane.slot.lanes += 1
            self.freed(lane)
        return lanes

    def close(self, lanes: Sequence[Lane]) -> None:
        """Assign no more jobs to these lanes, which are all lanes of one worker."""
        for lane in lanes:
            lane.limit = 0
            lane.slot.lanes -= 1
            lane.slot.purge()
        if lanes and not lanes[0].slot.lanes:
            self._unused[lanes[0].slot.kind] = None

    def freed(self, lane: Lane) -> None:
        """Make a lane available again if it has credit."""
        if lane.unfinished < lane.limit:
            if not lane.queued:
                self._queue(lane)
            self._list(lane.slot)

    def lane_for(self, topic: bytes, owner: Any, lanes: Sequence[Lane]) -> Lane:
        """Return the first of ``lanes`` that accepts ``topic``.

        If none of the lanes accepts the topic, return a closed lane of the worker ``owner``.
        """
        slot = self._patterns.find(topic)[0].get(lanes[0].slot.kind) if lanes else None
        return lanes[slot.place] if slot is not None else Lane(owner, _Slot(0, 0), 0)

    def unserved(self) -> Iterator[tuple[bytes, int]]:
        """Yield topics that no worker accepts, each with the number of waiting jobs."""
        for group in self._groups.values():
            if group.number and not any(slot.lanes for slot in group.slots):
                yield group.first().name, group.number

    def is_served(self, topic: bytes) -> bool:
        """Return True if a worker accepts jobs of ``topic``."""
        return topic not in self._held and any(slot.lanes for slot in self._patterns.find(topic)[0].values())

    def _queue(self, lane: Lane) -> None:
        lane.queued = True
        heappush(lane.slot.free, (lane.turn, lane))

    def _list(self, slot: _Slot) -> None:
        """Let `take` look for a job of a slot that has jobs and may have credit."""
        if slot.waiting and not slot.listed:
            slot.listed = True
            self._ready.append(slot)

    # -- topics and kinds ------------------------------------------------------------------------------------

    def regroup(self, steps: int) -> int:
        """Look up the waiting topics again that were not matched with the newest kinds.

        Returns:
            The number of remaining steps. If no step remains, some topics may still have to be looked up.
        """
        topics = self._topics
        # Topics are sorted by their last look-up: if the first one has seen the newest kind, all have.
        while steps > 0 and topics and next(iter(topics.values())).seen != self._newest:
            steps -= self._visit()
        return steps

    def _visit(self) -> int:
        """Update the topic whose last look-up was longest ago.

        If the topic has no jobs, forget it.

        Returns:
            The number of steps.
        """
        topic = next(iter(self._topics.values()))
        if not topic.number:
            del self._topics[topic.name]
            return 1
        self._topics.move_to_end(topic.name)
        if topic.seen == self._newest:
            return 1
        group, steps = self._look_up(topic.name)
        topic.seen = self._newest
        if group is not topic.group:
            self._leave(topic)
            topic.group = group
            self._join(topic, topic.number)
        return steps

    def _new(self, name: bytes) -> _Topic[J]:
        """Add a topic.

        If there are many topics, visit two others, so that topics without jobs are forgotten.
        """
        if len(self._topics) >= TOPICS_NOTED:
            self._visit()
            self._visit()
        topic = self._topics[name] = _Topic(name, self._look_up(name)[0], self._newest)
        return topic

    def _join(self, topic: _Topic[J], number: int) -> None:
        """Add a topic with waiting jobs to the counters of its group."""
        if topic.seen != self._newest:  # the topic had no jobs until now, so `regroup` has not looked it up
            self._topics.move_to_end(topic.name)
            topic.group, topic.seen = self._look_up(topic.name)[0], self._newest
        topic.number = number
        group, first = topic.group, topic.first
        group.topics += 1
        group.number += number
        assert first is not None
        group.push(first.order, topic)
        if group.topics == 1:
            for slot in group.slots:
                slot.waiting[group] = None
                if slot.free:
                    self._list(slot)

    def _leave(self, topic: _Topic[J]) -> None:
        """Subtract a topic with waiting jobs from the counters of its group."""
        group = topic.group
        group.topics -= 1
        group.number -= topic.number
        if not group.topics:
            # No topic of the group has jobs, so all its entries are out of date.
            group.heap.clear()
            for slot in group.slots:
                del slot.waiting[group]

    def _look_up(self, topic: bytes) -> tuple[_Group[J], int]:
        """Return the group of a topic, and the number of steps to find it."""
        found, steps = ({}, 1) if topic in self._held else self._patterns.find(topic)
        slots = tuple([found[kind] for kind in sorted(found)])
        group = self._groups.get(slots)
        if group is None:
            group = self._groups[slots] = _Group(slots)
        return group, steps

    def _add(self, key: tuple[tuple[Pattern, ...], ...]) -> tuple[_Slot, ...]:
        """Add a kind.

        Forget some kinds without workers, so that they do not use memory for ever.
        """
        # Two for each new kind, so that their number can't grow however often workers change their patterns.
        for kind in tuple(islice(self._unused, _FORGOTTEN)):
            del self._unused[kind]
            old = self._keys.pop(kind)
            del self._kinds[old]
            for pattern in {pattern for patterns in old for pattern in patterns}:
                self._patterns.remove(pattern, kind)
        self._newest += 1
        self._keys[self._newest] = key
        slots = self._kinds[key] = tuple([_Slot(self._newest, place) for place in range(len(key))])
        for slot, patterns in zip(slots, key, strict=True):
            for pattern in patterns:
                self._patterns.add(pattern, slot)
        return slots
