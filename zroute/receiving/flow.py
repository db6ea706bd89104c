"""Decide which messages of a route may be handled now, and which wait.

Messages of one topic are handled one after the other. Those of different topics are handled side by side, up to a
bound. A message that waits is in exactly one place: the queue of its topic. This module does no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["BatchFlow", "Flow", "Growing"]

Job = TypeVar("Job")


class Flow(Generic[Job]):
    """The waiting and the running jobs of one route.

    At most ``max_in_flight`` jobs run at a time, and if ``ordered``, only one of each key. Topics take turns, so a
    topic with a long queue does not delay the others. The flow is `full` when ``queue`` jobs wait; the caller must not
    `put` more then.

    ``active`` is True if a call of this route may return before its job is done, so that every call must go through the
    flow. The route of a plain function becomes active when the function first returns a Deferred.
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
        """True if the queue is full."""
        return self.queued >= self._queue

    @property
    def eased(self) -> bool:
        """True if the queue is at most half full.

        Reading resumes at this mark, and not at each message that leaves a full queue.
        """
        return self.queued <= self._queue // 2

    def put(self, key: Hashable, job: Job) -> None:
        """Add ``job`` to the queue of ``key``."""
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
        """Take the next job that may run.

        Returns:
            The key to call `done` with when the job ends, and the job. None if no job may run.
        """
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
        """Count a running job of ``key`` that never waited."""
        self._running.add(key)
        self.in_flight += 1

    def done(self, key: Hashable) -> None:
        """Note that the job that was taken under ``key`` has ended."""
        self.in_flight -= 1
        self._running.discard(key)
        if key in self._waiting:
            self._ready.append(key)

    def clear(self) -> list[Job]:
        """Remove and return all waiting jobs."""
        jobs = [job for waiting in self._waiting.values() for job in waiting]
        self._waiting.clear()
        self._ready.clear()
        self.queued = 0
        return jobs


class Growing(Protocol):
    """A job that collects several messages until its turn comes."""

    @property
    def key(self) -> Hashable:
        """The key of the job. At most one open batch has this key."""

    many: int
    """The number of its messages, once it is closed."""

    def close(self) -> None:
        """Accept no more messages."""


Listed = TypeVar("Listed", bound=Growing)


class BatchFlow(Flow[Listed]):
    """A flow whose jobs are batches.

    The queue counts messages, ``in_flight`` counts calls.

    A batch is held until `release`, since more messages for it may arrive at once. Then it waits for its turn like any
    job, and still grows: behind a slow handler a batch fills up, instead of a queue of small batches. ``open`` holds
    the growing batch of each key. The caller adds to ``queued`` for each message.
    """

    def __init__(self, max_in_flight: int, *, ordered: bool = True, queue: int = 1) -> None:
        super().__init__(max_in_flight, ordered=ordered, queue=queue)
        self.open: dict[Hashable, Listed] = {}
        self._held: dict[Hashable, Listed] = {}

    def begin(self, job: Listed) -> None:
        """Hold a new, empty batch."""
        self.open[job.key] = self._held[job.key] = job

    def end(self, job: Listed) -> None:
        """Queue a batch that has its full length.

        The next message of its key begins another one.
        """
        del self.open[job.key]
        if self._held.pop(job.key, None) is not None:
            self.put(job.key, job)

    def release(self) -> None:
        """Queue all held batches."""
        held, self._held = self._held, {}
        for key, job in held.items():
            self.put(key, job)

    def put(self, key: Hashable, job: Listed) -> None:
        """Add the batch to the queue. See `Flow.put`; its messages are counted already."""
        super().put(key, job)
        self.queued -= 1

    def take(self) -> tuple[Hashable, Listed] | None:
        """Take the next batch, and close it. See `Flow.take`."""
        taken = super().take()
        if taken is not None:
            job = taken[1]
            self._close(job)
            self.queued += 1 - job.many
        return taken

    def clear(self) -> list[Listed]:
        """Remove, close and return all waiting and held batches. See `Flow.clear`."""
        jobs = [*super().clear(), *self._held.values()]
        self._held.clear()
        for job in jobs:
            self._close(job)
        return jobs

    def _close(self, job: Listed) -> None:
        job.close()
        if self.open.get(job.key) is job:
            del self.open[job.key]
