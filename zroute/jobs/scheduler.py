"""Decide which worker gets which job.

A worker has one lane for each of its handlers. A lane has credit while its number of unfinished jobs is below its
limit. A job goes to the lane that has credit and was served least recently.

Many workers run the same code, so their offers are equal, and equal lanes share a `_Slot`. The topic of a job
determines the slots that accept the job. Jobs with the same slots wait in one queue, a `_Group`. For this reason, a
decision takes the same time with ten thousand topics or workers as with one. This module does no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import attrs

from zroute.messages.jobs import Offered
from zroute.messages.topics import Pattern, matches
from zroute.options import TOPICS_NOTED

__all__ = ["Assignable", "Lane", "Scheduler"]

_PURGED = 16  # the number of surplus entries up to which a heap is not purged


class Assignable(Protocol):
    """The attributes of a job that the scheduler needs.

    ``order`` is the place of the job among the waiting jobs: a job with a smaller number is older. The scheduler sets
    ``lane`` when it assigns the job.
    """

    topic: bytes
    order: int
    lane: Lane | None


J = TypeVar("J", bound=Assignable)


class _Slot:
    """The equal lanes of equal workers.

    ``free`` is a heap of lanes with credit, ordered by their last turn. The heap may also contain lanes without credit.
    `next` drops such a lane when it finds one, and `purge` drops all of them when they are the majority. ``lanes`` is
    the number of open lanes.
    """

    __slots__ = ("free", "groups", "lanes", "patterns")

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = patterns
        self.free: list[tuple[int, Lane]] = []
        self.groups: list[_Group[Any]] = []
        self.lanes = 0

    def next(self) -> tuple[int, Lane] | None:
        """Return the last turn of the lane that has credit and was served least recently.

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


class _Group(Generic[J]):
    """The waiting jobs of all topics that the same slots accept."""

    __slots__ = ("jobs", "slots")

    def __init__(self, slots: tuple[_Slot, ...]) -> None:
        self.slots = slots
        self.jobs: deque[J] = deque()

    def slot(self) -> _Slot | None:
        """Return the slot whose next lane was served least recently."""
        found = None
        best = 0
        for slot in self.slots:
            first = slot.next()
            if first is not None and (found is None or first[0] < best):
                found, best = slot, first[0]
        return found


class Scheduler(Generic[J]):
    """The waiting jobs and the lanes of one owner."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[tuple[Pattern, ...], ...], tuple[_Slot, ...]] = {}
        self._groups: dict[tuple[_Slot, ...], _Group[J]] = {}
        self._topics: dict[bytes, _Group[J]] = {}
        self._ready: dict[_Group[J], None] = {}
        self._turns = count(1)

    # -- jobs ------------------------------------------------------------------------------------------------

    def put(self, job: J) -> None:
        """Add a job after all other waiting jobs."""
        group = self._topics.get(job.topic) or self._group(job.topic)
        group.jobs.append(job)
        self._ready[group] = None

    def put_back(self, jobs: Iterable[J]) -> None:
        """Add jobs before all other waiting jobs, in the order of ``jobs``."""
        for job in reversed(list(jobs)):
            group = self._topics.get(job.topic) or self._group(job.topic)
            group.jobs.appendleft(job)
            self._ready[group] = None

    def remove(self, job: J) -> None:
        """Remove a waiting job."""
        (self._topics.get(job.topic) or self._group(job.topic)).jobs.remove(job)

    def clear(self) -> list[J]:
        """Remove and return all waiting jobs."""
        jobs = [job for group in self._groups.values() for job in group.jobs]
        for group in self._groups.values():
            group.jobs.clear()
        self._ready.clear()
        return jobs

    def take(self) -> tuple[J, Lane] | None:
        """Assign the next job to a lane.

        Groups take turns, so a group with many waiting jobs does not delay the other groups.

        Returns:
            The job and the lane; None if no job can be assigned.
        """
        ready = self._ready
        while ready:
            group = next(iter(ready))
            del ready[group]
            slot = group.slot() if group.jobs else None
            if slot is None:
                continue
            job, lane = group.jobs.popleft(), heappop(slot.free)[1]
            job.lane = lane
            lane.unfinished += 1
            lane.turn, lane.queued = next(self._turns), False
            if lane.unfinished < lane.limit:
                self._queue(lane)
            if group.jobs:
                ready[group] = None
            return job, lane
        return None

    # -- lanes -----------------------------------------------------------------------------------------------

    def open(self, owner: Any, offered: Sequence[Offered]) -> tuple[Lane, ...]:
        """Return a lane for each entry of an offer from the worker ``owner``."""
        key = tuple(each.patterns for each in offered)
        slots = self._kinds.get(key)
        if slots is None:
            slots = self._kinds[key] = tuple(map(_Slot, key))
            self._regroup(slots)
        lanes = tuple(Lane(owner, slot, each.credits) for slot, each in zip(slots, offered, strict=True))
        for lane in lanes:
            lane.slot.lanes += 1
            self.freed(lane)
        return lanes

    def close(self, lanes: Iterable[Lane]) -> None:
        """Assign no more jobs to these lanes."""
        for lane in lanes:
            lane.limit = 0
            lane.slot.lanes -= 1
            lane.slot.purge()

    def freed(self, lane: Lane) -> None:
        """Make a lane available again if it has credit."""
        if lane.unfinished < lane.limit:
            if not lane.queued:
                self._queue(lane)
            for group in lane.slot.groups:
                if group.jobs:
                    self._ready[group] = None

    def lane_for(self, topic: bytes, owner: Any, lanes: Sequence[Lane]) -> Lane:
        """Return the first of ``lanes`` that accepts ``topic``.

        If none of the lanes accepts the topic, return a closed lane of the worker ``owner``.
        """
        return next((lane for lane in lanes if _accepts(lane.slot, topic)), None) or Lane(owner, _Slot(()), 0)

    def unserved(self) -> Iterator[tuple[bytes, int]]:
        """Yield topics that no worker accepts, each with the number of waiting jobs."""
        for group in self._groups.values():
            if group.jobs and not any(slot.lanes for slot in group.slots):
                yield group.jobs[0].topic, len(group.jobs)

    def is_served(self, topic: bytes) -> bool:
        """Return True if a worker accepts jobs of ``topic``."""
        group = self._topics.get(topic) or self._group(topic)
        return any(slot.lanes for slot in group.slots)

    def _queue(self, lane: Lane) -> None:
        lane.queued = True
        heappush(lane.slot.free, (lane.turn, lane))

    # -- groups ----------------------------------------------------------------------------------------------

    def _group(self, topic: bytes) -> _Group[J]:
        """Find the group of a topic that is not cached, and cache it."""
        found = (next((slot for slot in slots if _accepts(slot, topic)), None) for slots in self._kinds.values())
        slots = tuple(slot for slot in found if slot is not None)
        group = self._groups.get(slots)
        if group is None:
            group = self._groups[slots] = _Group(slots)
            for slot in slots:
                slot.groups.append(group)
        if len(self._topics) >= TOPICS_NOTED:
            self._topics.clear()
        self._topics[topic] = group
        return group

    def _regroup(self, new: tuple[_Slot, ...]) -> None:
        """Distribute the waiting jobs to groups again.

        Called when a worker with the slots ``new`` has joined. Slots without workers are forgotten, so that they do not
        use memory for ever.
        """
        waiting = self.clear()
        kinds: Mapping[Any, tuple[_Slot, ...]] = self._kinds
        self._kinds = {key: slots for key, slots in kinds.items() if slots is new or any(slot.lanes for slot in slots)}
        for slots in self._kinds.values():
            for slot in slots:
                slot.groups.clear()
        self._groups.clear()
        self._topics.clear()
        for job in sorted(waiting, key=lambda job: job.order):
            self.put(job)


def _accepts(slot: _Slot, topic: bytes) -> bool:
    return any(matches(pattern, topic) is not None for pattern in slot.patterns)
