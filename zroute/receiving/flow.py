"""Flow: which of a route's messages may be handled now, and how many wait for it. Pure bookkeeping.

Messages of one topic are handled one after the other, those of different topics side by side up to a
bound. A message that waits is in exactly one place: the queue of its topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["BatchFlow", "Flow", "Growing"]

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


class Growing(Protocol):
    """A job of several messages, to which more are added until its turn has come."""

    @property
    def key(self) -> Hashable:
        """The messages of one key are in one list at a time."""

    many: int
    """How many messages it holds, once it is closed."""

    def close(self) -> None:
        """It grows no more."""


Listed = TypeVar("Listed", bound=Growing)


class BatchFlow(Flow[Listed]):
    """A flow whose jobs are lists: what waits is counted in messages, what runs in calls.

    A list is held until `release`, while more messages may come for it at once; then it waits for its turn like any
    job, and still grows: behind a slow handler a list fills up, and lists do not queue up. ``open`` has the
    list that grows, by key. It is the caller's part to add to ``queued`` for each message.
    """

    def __init__(self, max_in_flight: int, *, ordered: bool = True, queue: int = 1) -> None:
        super().__init__(max_in_flight, ordered=ordered, queue=queue)
        self.open: dict[Hashable, Listed] = {}
        self._held: dict[Hashable, Listed] = {}

    def begin(self, job: Listed) -> None:
        """A list that holds nothing yet."""
        self.open[job.key] = self._held[job.key] = job

    def end(self, job: Listed) -> None:
        """The list is as long as may be; the next message of its key begins another."""
        del self.open[job.key]
        if self._held.pop(job.key, None) is not None:
            self.put(job.key, job)

    def release(self) -> None:
        """Let all lists that are held wait for their turns."""
        held, self._held = self._held, {}
        for key, job in held.items():
            self.put(key, job)

    def put(self, key: Hashable, job: Listed) -> None:
        """See `Flow.put`; its messages are counted already."""
        super().put(key, job)
        self.queued -= 1

    def take(self) -> tuple[Hashable, Listed] | None:
        """See `Flow.take`; the list is closed."""
        taken = super().take()
        if taken is not None:
            job = taken[1]
            self._close(job)
            self.queued += 1 - job.many
        return taken

    def clear(self) -> list[Listed]:
        """See `Flow.clear`; also those that are held."""
        jobs = [*super().clear(), *self._held.values()]
        self._held.clear()
        for job in jobs:
            self._close(job)
        return jobs

    def _close(self, job: Listed) -> None:
        job.close()
        if self.open.get(job.key) is job:
            del self.open[job.key]
