"""Flow: which of a route's messages may be handled now, and how many wait for it. Pure bookkeeping.

Messages of one topic are handled one after the other, those of different topics side by side up to a
bound. A message that waits is in exactly one place: the queue of its topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Flow"]

Job = TypeVar("Job")


class Flow(Generic[Job]):
    """The waiting and the running jobs of one route.

    At most ``max_in_flight`` jobs run at a time; with ``ordered``, of one key one after the other. Topics
    take turns: one with a long queue does not keep the others waiting. ``queue`` jobs may wait before the
    flow is `full`; it is the caller's part to put no more then.

    ``active`` says that jobs of this route may be unfinished when they return, so that they must go through
    here. A plain function's route becomes active with the first Deferred that it returns.
    """

    def __init__(self, max_in_flight: int, *, ordered: bool = True, queue: int = 1, active: bool = True) -> None:
        self.active = active
        self.queued = 0
        self.in_flight = 0
        self._max_in_flight = max_in_flight
        self._ordered = ordered
        self._queue = queue
        self._waiting: dict[Hashable, deque[Job]] = {}
        self._ready: deque[Hashable] = deque()
        self._running: set[Hashable] = set()

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""
        return self.queued >= self._queue

    @property
    def eased(self) -> bool:
        """Whether at most half as many wait as may: the mark to go on at, so that it is not at each message."""
        return self.queued <= self._queue // 2

    def put(self, key: Hashable, job: Job) -> None:
        """Let ``job`` wait for its turn."""
        if not self._ordered:
            key = object()
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = deque()
            if key not in self._running:
                self._ready.append(key)
        waiting.append(job)
        self.queued += 1

    def take(self) -> tuple[Hashable, Job] | None:
        """The next job that may run, and the key to call `done` with when it has ended; None if none may."""
        if not self._ready or self.in_flight >= self._max_in_flight:
            return None
        key = self._ready.popleft()
        waiting = self._waiting[key]
        job = waiting.popleft()
        if not waiting:
            del self._waiting[key]
        self.queued -= 1
        self.start(key)
        return key, job

    def start(self, key: Hashable) -> None:
        """A job of ``key`` runs that never waited."""
        self._running.add(key)
        self.in_flight += 1

    def done(self, key: Hashable) -> None:
        """The job that was taken under ``key`` has ended."""
        self.in_flight -= 1
        self._running.discard(key)
        if key in self._waiting:
            self._ready.append(key)

    def clear(self) -> list[Job]:
        """Take all that wait, to be given up."""
        jobs = [job for waiting in self._waiting.values() for job in waiting]
        self._waiting.clear()
        self._ready.clear()
        self.queued = 0
        return jobs
