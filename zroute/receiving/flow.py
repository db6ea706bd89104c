"""Decide which messages of a route may be handled now, and which must wait.

Messages of one topic are handled one after the other. Messages of different topics are handled concurrently, up to a
limit. A waiting message is in exactly one place: the queue of its topic. This module does no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["BatchFlow", "Flow", "Growing", "ReplyFlow", "WaitingBytes"]

Job = TypeVar("Job")


class Flow(Generic[Job]):
    """The waiting and the running jobs of one route.

    At most ``max_in_flight`` jobs run at the same time; if ``ordered`` is True, also at most one job per key. Topics
    take turns, so a topic with a long queue does not delay the others. The flow is `full` when ``queue`` jobs are
    waiting; the caller must then not call `put`.

    ``active`` is True if a call of this route may return before its job is done, so that every call must go through the
    flow. The route of a plain function becomes active when the function first returns a Deferred; see `activate`. Until
    then its flow holds nothing, and takes little memory.
    """

    __slots__ = (
        "_max_in_flight",
        "_ordered",
        "_queue",
        "_ready",
        "_running",
        "_waiting",
        "active",
        "in_flight",
        "queued",
    )

    def __init__(self, max_in_flight: int, *, ordered: bool = True, queue: int = 1, active: bool = True) -> None:
        self.active = False
        self.queued = 0
        self.in_flight = 0
        self._max_in_flight = max_in_flight
        self._ordered = ordered
        self._queue = queue
        if active:
            self.activate()

    def activate(self) -> None:
        """Let jobs wait and run from now on."""
        if self.active:
            return
        self.active = True
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

        Reading resumes at this level, instead of resuming for each single message that leaves a full queue.
        """
        return self.queued <= self._queue // 2

    def put(self, key: Hashable, job: Job) -> None:
        """Add ``job`` to the queue of ``key``."""
        if not self._ordered:
            # A key that no other job has, so the job waits for none.
            key = object()
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = deque()
            # While a job of this key runs, `done` adds the key when the job ends.
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
        """Record that a job of ``key`` has started without waiting."""
        self._running.add(key)
        self.in_flight += 1

    def try_start(self, key: Hashable) -> bool:
        """Record that a job of ``key`` starts now; return False if the job must wait."""
        if self.queued or self.in_flight >= self._max_in_flight or (self._ordered and key in self._running):
            return False
        self.start(key)
        return True

    def done(self, key: Hashable) -> None:
        """Record that a running job of ``key`` has ended."""
        self.in_flight -= 1
        self._running.discard(key)
        if key in self._waiting:
            self._ready.append(key)

    def clear(self) -> list[Job]:
        """Remove and return all waiting jobs."""
        if not self.active:
            return []
        jobs = [job for waiting in self._waiting.values() for job in waiting]
        self._waiting.clear()
        self._ready.clear()
        self.queued = 0
        return jobs


class ReplyFlow(Flow[Job]):
    """The waiting and the running requests of one route.

    Requests from one client are not kept in order, and clients take turns. The flow is never `full`, because the server
    continues to read and refuses requests without room.
    """

    @property
    def full(self) -> bool:
        """False, because the server never pauses reading."""
        return False

    @property
    def has_room(self) -> bool:
        """True if another request may wait."""
        return self.queued < self._queue

    @property
    def begins_at_once(self) -> bool:
        """True if another request can begin without waiting."""
        return not self.queued and self.in_flight < self._max_in_flight

    def done(self, key: Hashable) -> None:
        """Record that a running request has ended."""
        self.in_flight -= 1

    def start(self, key: Hashable) -> None:
        """Record that a request has started."""
        self.in_flight += 1

    def take(self) -> tuple[Hashable, Job] | None:
        """Take the next request from the client whose turn it is."""
        taken = super().take()
        # `Flow.take` leaves out the key until `done`, but requests of one client do not wait for each other.
        if taken is not None and taken[0] in self._waiting:
            self._ready.append(taken[0])
        return taken

    def last_of_longest(self, key: Hashable) -> Job | None:
        """Remove and return the newest request of the client with the longest queue.

        The result is None if no client has a longer queue than ``key``.
        """
        if not self._waiting:
            return None
        own = len(self._waiting.get(key, ()))
        longest = max(self._waiting, key=lambda each: len(self._waiting[each]))
        # The new request counts too: the other client must have more requests than this one would then have.
        if len(self._waiting[longest]) <= own + 1:
            return None
        self.queued -= 1
        # At least one request of that client is left, so its key stays in `_ready`.
        return self._waiting[longest].pop()

    def remove(self, key: Hashable, job: Job) -> bool:
        """Remove an ended request from the queue; return False if it is not queued."""
        waiting = self._waiting.get(key, deque())
        try:
            if waiting and waiting[-1] is job:  # a request that is refused is the newest one of its client
                waiting.pop()
            else:
                waiting.remove(job)
        except ValueError:
            return False
        if not waiting:
            del self._waiting[key]
            self._ready.remove(key)
        self.queued -= 1
        return True


class WaitingBytes(Generic[Job]):
    """The size in bytes of the requests that wait for all routes of an app.

    Args:
        most: The maximum size. A single request may be larger.
    """

    def __init__(self, most: int) -> None:
        self.total = 0
        self._most = most
        self._clients: dict[Hashable, int] = {}
        self._sizes: dict[Hashable, dict[Job, int]] = {}

    def add(self, key: Hashable, job: Job, size: int) -> None:
        """Count a request of the client ``key``."""
        self._sizes.setdefault(key, {})[job] = size
        self._clients[key] = self._clients.get(key, 0) + size
        self.total += size

    def remove(self, key: Hashable, job: Job) -> None:
        """Stop counting a request."""
        sizes = self._sizes[key]
        size = sizes.pop(job)
        self._clients[key] -= size
        self.total -= size
        if not sizes:
            del self._sizes[key], self._clients[key]

    def has_room(self, size: int) -> bool:
        """Return True if a request of ``size`` bytes may wait."""
        return not self.total or self.total + size <= self._most

    def last_of_largest(self, key: Hashable, size: int) -> Job | None:
        """Return the newest request of the client whose requests have the most bytes.

        The result is None if no client has more bytes than ``key`` would have with a further request of ``size`` bytes.
        """
        # Not empty: the caller has found no room, so requests are waiting.
        largest = max(self._clients, key=self._clients.__getitem__)
        if self._clients[largest] <= self._clients.get(key, 0) + size:
            return None
        return next(reversed(self._sizes[largest]))


class Growing(Protocol):
    """A job that collects several messages until it begins."""

    @property
    def key(self) -> Hashable:
        """The key of the job. At most one open batch has a given key."""

    many: int
    """The number of messages of the job, once it is closed."""

    def close(self) -> None:
        """Accept no more messages."""


Listed = TypeVar("Listed", bound=Growing)


class BatchFlow(Flow[Listed]):
    """A flow whose jobs are batches.

    The length of the queue is counted in messages, but ``in_flight`` counts calls.

    A batch is held until `release`, because more messages for it may arrive immediately. It then waits for its turn
    like any other job, and continues to grow. While a handler is slow, its batch fills up instead of a queue of small
    batches. ``open`` contains the growing batch of each key. The caller must increment ``queued`` for each message.
    """

    def __init__(self, max_in_flight: int, *, ordered: bool = True, queue: int = 1) -> None:
        super().__init__(max_in_flight, ordered=ordered, queue=queue)
        # Never replaced, only changed: the closures of `Batcher` hold a reference to this dict.
        self.open: dict[Hashable, Listed] = {}
        self._held: dict[Hashable, Listed] = {}

    def begin(self, job: Listed) -> None:
        """Hold a new, empty batch."""
        self.open[job.key] = self._held[job.key] = job

    def end(self, job: Listed) -> None:
        """Queue a batch that is full.

        The next message of the same key begins a new batch.
        """
        del self.open[job.key]
        # A released batch is queued already, and was filled while it waited.
        if self._held.pop(job.key, None) is not None:
            self.put(job.key, job)

    def release(self) -> None:
        """Queue all held batches."""
        held, self._held = self._held, {}
        for key, job in held.items():
            self.put(key, job)

    def put(self, key: Hashable, job: Listed) -> None:
        """Add the batch to the queue; its messages are already counted. See `Flow.put`."""
        super().put(key, job)
        self.queued -= 1

    def take(self) -> tuple[Hashable, Listed] | None:
        """Take the next batch, and close it. See `Flow.take`."""
        taken = super().take()
        if taken is not None:
            job = taken[1]
            self._close(job)
            # `Flow.take` has subtracted 1 for the job, but this queue is counted in messages.
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
        # A full batch has left `open` already, and a newer one may have its key.
        if self.open.get(job.key) is job:
            del self.open[job.key]
