"""The owner of jobs: keeps each job until a worker has done it.

A job is in one of four states:

- It waits for a worker.
- It is in flight: a worker has the job.
- It waits for the next attempt.
- It has ended.

A job ends when a worker reports that the job is done, or when the last attempt fails. If a worker ends, falls silent or
gives a job back, that job waits again, before all others.

This module uses no socket: the caller passes the workers' messages to `JobOwner.received`, and the function that sends
is an argument. Peers may send any bytes, so the number of workers and the sizes of offers and texts are limited. Texts
from workers are escaped before they are logged.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import count
from struct import Struct
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed

from zroute.awaiting import as_awaitable, check_loop
from zroute.clock import Clock
from zroute.errors import EnvelopeError, HighWaterMarkError, NotRunningError, UnknownPeerError
from zroute.jobs.scheduler import Lane, Scheduler
from zroute.logs import peer_name, printable
from zroute.messages.jobs import (
    ACCEPTED,
    ALIVE,
    CHANGED,
    DONE,
    FAILED,
    GIVEN_BACK,
    JOB,
    OFFER,
    REJECTED,
    STOPPED,
    UNKNOWN,
    pack_job_meta,
    pack_terms,
    parse_offer,
    parse_report,
    with_attempt,
)
from zroute.messages.topics import Topic
from zroute.options import JOB_LOSSES, JOBS_WAITING, MAX_WORKERS, REGROUP_SECONDS, REGROUP_STEPS, SILENT_AFTER
from zroute.publishing.publication import DONE as SENT
from zroute.stats import JobStats
from zroute.throttle import ThrottledLog

__all__ = ["Job", "JobOwner", "OwnedQueue", "Settings"]

_NUMBER = Struct(">QQ")  # the run; queue and number of the job
_QUEUE_SHIFT = 48
_ALIVE_SECONDS = 1.0  # the longest time between two signs of life
_NO_WORKER_SECONDS = 3.0
_REPORTS = (DONE, FAILED, REJECTED, GIVEN_BACK)


@attrs.frozen
class Settings:
    """The options of a queue of jobs.

    Attributes:
        name: The pattern of the jobs, for errors and logs.
        where: The line of the queue's declaration.
        retry: The delays in seconds before each further attempt after a failure.
        waiting: The maximum number of jobs that may wait.
        silent_after: The seconds without a sign of life after which a worker loses its jobs. The smallest value of all
            queues applies to all workers.
    """

    name: str
    where: str = ""
    retry: Sequence[float] = ()
    waiting: int = JOBS_WAITING
    silent_after: float = SILENT_AFTER


class Job:
    """A job of an owner.

    Attributes:
        attempt: The number of the current attempt, from 1.
        losses: The number of workers that had the job and ended or fell silent.
        was_lost: True if the owner has lost a worker that had the job. That worker may still report that the job is
            done.
        is_reported: True if a worker that does not have the job has reported that the job is done. If the owner loses
            the worker that has the job, this report counts.
        lane: The lane of the worker that has the job.
        next: The next waiting job of the same topic. The scheduler uses ``next`` and ``order``.
        reason: The text of the last failure.
        timer: The timer of the next attempt; None unless the job waits for it.
    """

    __slots__ = (
        "attempt", "body", "codec", "ended", "id", "is_reported", "lane", "losses", "meta", "next", "order",
        "queue", "reason", "timer", "topic", "was_lost",
    )  # fmt: skip

    def __init__(self, queue: OwnedQueue, topic: bytes, codec: int, body: bytes, meta: bytes) -> None:
        self.queue = queue
        self.id = b""
        self.topic = topic
        self.codec = codec
        self.body = body
        self.meta = meta
        self.attempt = 1
        self.losses = 0
        self.order = 0
        self.reason = ""
        self.ended = self.was_lost = self.is_reported = False
        self.lane: Lane | None = None
        self.next: Job | None = None
        self.timer: Any = None


GivenUp = Callable[[Job, str], object]
"""A function that the owner calls with a job whose last attempt has failed, and the reason."""


@attrs.define(eq=False)
class OwnedQueue:
    """The jobs of one declaration.

    `put` and `put_nowait` take encoded messages. ``stats`` contains the counters. ``putting`` contains the jobs that
    wait for room, each with the Deferred of its caller.
    """

    _owner: JobOwner
    settings: Settings
    given_up: GivenUp
    numbers: count[int]
    stats: JobStats = attrs.field(factory=JobStats)
    putting: deque[tuple[Job, Deferred[None]]] = attrs.field(factory=deque)

    def put(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None = None) -> Awaitable[None]:
        """Add a job, now or when there is room.

        Returns:
            An awaitable that is done when the job has been added. If the caller cancels the awaitable before that, the
            job is not added.

        Raises:
            EncodeError: The headers are invalid.
            NotRunningError: The owner has stopped.
        """
        return self._owner.put(self, self._made(topic, codec, body, headers))

    def put_nowait(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None = None) -> None:
        """Add a job if there is room.

        Raises:
            HighWaterMarkError: There is no room. Other errors are those of `put`.
        """
        job = self._made(topic, codec, body, headers)  # an invalid job is an error whether or not there is room
        if self.full:
            raise HighWaterMarkError(
                f"the job queue {self.settings.name!r} is full ({self.stats.waiting} waiting jobs): await put(), "
                "start more workers, or increase waiting="
            )
        self._owner.put(self, job)

    @property
    def full(self) -> bool:
        """True if a further job has to wait for room."""
        return self.stats.waiting >= self.settings.waiting or bool(self.putting)

    def _made(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> Job:
        self._owner.check(topic, body, headers)
        return Job(self, topic, codec, body, pack_job_meta(codec, 1, headers))


class _Worker:
    """A connected worker: its lanes, and its unfinished jobs by id."""

    __slots__ = ("heard", "id", "jobs", "kind", "lanes", "quiet", "told")

    def __init__(self, id: bytes) -> None:
        self.id = id
        self.lanes: tuple[Lane, ...] = ()
        self.kind: tuple[Any, ...] = ()
        self.jobs: dict[bytes, Job] = {}
        self.quiet = 0.0
        self.heard = self.told = True


class JobOwner:
    """The jobs and the workers of one owner.

    Args:
        clock: The reactor's clock.
        send: Sends the parts of a message to the worker with the given identity. Raises UnknownPeerError or
            HighWaterMarkError if it can't send.
        reports: The log.
        name: The name of the app, for the log.

    Attributes:
        malformed: The number of malformed messages.
        unknown: The number of reports for jobs of other runs, or of jobs that the worker never had.
        logs_workers: False if the only worker is in the same app, so that no line reports that a worker joins or
            leaves.
        admitted: A function that the owner calls with each added job, or None. Tests set it.
        check: A function that the owner calls with the topic, the body and the headers of each new job. It raises an
            error if the transport does not carry such a job.
        watches_workers: False if the transport decides when a worker loses its jobs, instead of ``silent_after``.
        workers_changed: A function that the owner calls with the number of workers when that number has changed.
    """

    def __init__(
        self, clock: Clock, send: Callable[[bytes, Sequence[bytes]], object], reports: ThrottledLog, name: str
    ) -> None:
        self._clock = clock
        self._send = send
        self._reports = reports
        self._name = name
        self._run = int.from_bytes(os.urandom(8))
        self._queues: list[OwnedQueue] = []
        self._jobs: dict[bytes, Job] = {}
        self._workers: dict[bytes, _Worker] = {}
        self._scheduler: Scheduler[Job] = Scheduler()
        self._unserved: dict[bytes, float] = {}
        self._answered: set[bytes] = set()
        self._idle: list[Deferred[None]] = []
        self._timer: Any = None
        self._regroup_steps = REGROUP_STEPS
        self._regrouping: Any = None
        self._ticked = 0.0
        self._stopping = self._closed = False
        self.malformed = self.unknown = 0
        self.logs_workers = self.watches_workers = True
        self.admitted: Callable[[Job], object] | None = None
        self.check: Callable[[bytes, bytes, Mapping[str, Any] | None], object] = lambda topic, body, headers: None
        self.workers_changed: Callable[[int], object] = lambda number: None

    # -- jobs ------------------------------------------------------------------------------------------------

    def add(self, settings: Settings, given_up: GivenUp) -> OwnedQueue:
        """Add a queue.

        The owner calls ``given_up`` with each job whose last attempt has failed.
        """
        number = len(self._queues) << _QUEUE_SHIFT
        queue = OwnedQueue(self, settings, given_up, count(number))
        self._queues.append(queue)
        return queue

    def put(self, queue: OwnedQueue, job: Job) -> Awaitable[None]:
        """Add a job; see `OwnedQueue.put`."""
        if self._closed:
            raise NotRunningError(f"cannot put a job into the job queue {queue.settings.name!r}: the app has stopped")
        if not queue.full:
            self._admit(queue, job)
            self._send_ready()
            return SENT
        check_loop(self._clock)

        def give_up(_: Deferred[None]) -> None:
            queue.putting.remove(entry)
            self._tell_idle()

        put: Deferred[None] = Deferred(give_up)
        entry = job, put
        queue.putting.append(entry)
        return as_awaitable(put)

    def _admit(self, queue: OwnedQueue, job: Job) -> None:
        job.id = _NUMBER.pack(self._run, next(queue.numbers))
        self._jobs[job.id] = job
        stats = queue.stats
        stats.put += 1
        stats.waiting += 1
        self._scheduler.put(job)
        if self.admitted is not None:
            self.admitted(job)

    def _admit_waiting(self, queue: OwnedQueue) -> None:
        """Add the jobs that have waited for room."""
        putting, stats, most = queue.putting, queue.stats, queue.settings.waiting
        while putting and stats.waiting < most:
            job, put = putting.popleft()
            self._admit(queue, job)
            put.callback(None)  # before any other call: from now on, the caller can't cancel the put
            self._send_ready()

    def _send_ready(self) -> None:
        """Send waiting jobs while lanes have credit for them."""
        take = self._scheduler.take
        while (taken := take()) is not None:
            job, lane = taken
            worker: _Worker = lane.owner
            stats = job.queue.stats
            stats.waiting -= 1
            stats.in_flight += 1
            worker.jobs[job.id] = job
            # A job is a sign of life, so the next tick need not send another.
            worker.told = True
            try:
                self._send(worker.id, (JOB, job.id, job.topic, job.body, job.meta))
            except (UnknownPeerError, HighWaterMarkError) as error:
                del worker.jobs[job.id]  # the worker never had this job, so it is no loss of the job
                self._leave(job)
                stats.in_flight -= 1
                self._again(job)
                self._lose(worker, _reason(error))

    def unserved(self) -> Iterator[tuple[bytes, int]]:
        """Yield topics that no worker accepts, each with the number of waiting jobs."""
        return self._scheduler.unserved()

    def drop_unserved(self) -> None:
        """Drop the waiting jobs that no worker accepts. Tests call this at their end."""
        for job in tuple(self._jobs.values()):
            if job.lane is None and job.timer is None and not self._scheduler.is_served(job.topic):
                self._withdraw(job)
                job.queue.stats.dropped_at_shutdown += 1
                job.ended = True
                del self._jobs[job.id]

    # -- messages of workers ---------------------------------------------------------------------------------

    def received(self, id: bytes, parts: Sequence[bytes]) -> None:
        """Process a message from the worker with the identity ``id``.

        Raises:
            EnvelopeError: The message is malformed.
        """
        worker = self._workers.get(id)
        if worker is None:
            self._stranger(id, parts)
            return
        worker.heard = True
        kind = parts[0]
        if kind == DONE and len(parts) == 2 and (job := worker.jobs.pop(parts[1], None)) is not None:
            queue = job.queue
            self._leave(job)
            if job.ended:
                queue.stats.done_twice += 1
            else:
                queue.stats.in_flight -= 1
                self._end(job, "done")
            self._send_ready()
            if queue.putting:
                self._admit_waiting(queue)
        elif kind in _REPORTS:
            self._report(worker, kind, *self._checked(parse_report, parts))
        elif kind == CHANGED:
            self._offer(worker, parts)
        elif kind == OFFER:  # from another process with this identity, or from this worker after it has lost its jobs
            self._checked(parse_offer, parts)
            self._lose(worker, "has joined again", counts=False)
            self._join(id, parts)
        elif kind != ALIVE or len(parts) != 1:
            self.malformed += 1
            raise EnvelopeError("a message of an unknown kind")

    def _checked(self, parse: Callable[[Sequence[bytes]], Any], parts: Sequence[bytes]) -> Any:
        try:
            return parse(parts)
        except EnvelopeError:
            self.malformed += 1
            raise

    def _stranger(self, id: bytes, parts: Sequence[bytes]) -> None:
        """Process a message from a worker that has made no offer, or has lost its jobs.

        A worker that continues after a freeze sends many reports at once. One answer is enough until the worker makes
        an offer, or until the next tick.
        """
        if parts[0] == OFFER:
            self._answered.discard(id)
            if self._closed:
                self._try(id, (STOPPED,))
            else:
                self._join(id, parts)
            return
        if parts[0] in _REPORTS:
            job_id, _ = self._checked(parse_report, parts)
            if parts[0] == DONE:
                self._late(job_id)
                self._settle()
        if id not in self._answered:
            self._answered.add(id)
            self._try(id, (UNKNOWN,))

    def _join(self, id: bytes, parts: Sequence[bytes]) -> None:
        if len(self._workers) >= MAX_WORKERS:
            text = "%s: worker %s refused: the limit of %d workers is reached"
            self._say("workers", "refused workers", logging.WARNING, text, self._name, peer_name(id), MAX_WORKERS)
            return
        worker = _Worker(id)
        # Before the offer is read, because `_offer` sends an answer, and a failed send must find the worker to lose it.
        self._workers[id] = worker
        try:
            self._offer(worker, parts)
        except EnvelopeError:
            self._workers.pop(id, None)
            raise
        self.workers_changed(len(self._workers))
        # The worker is gone again if the answer to its offer could not be sent.
        if id in self._workers and self.logs_workers:
            text = "%s: worker %s has joined (%s)"
            self._say("joined", "workers that joined", logging.INFO, text, self._name, peer_name(id), self._count())

    def _offer(self, worker: _Worker, parts: Sequence[bytes]) -> None:
        """Replace the lanes of a worker."""
        offered = self._checked(parse_offer, parts)
        kind = tuple(each.patterns for each in offered)
        # The patterns are the same, so the lanes can stay: only their credits have changed.
        if kind == worker.kind:
            for lane, each in zip(worker.lanes, offered, strict=True):
                lane.limit = each.credits
                self._scheduler.freed(lane)
        else:
            self._scheduler.close(worker.lanes)
            worker.kind, worker.lanes = kind, self._scheduler.open(worker, offered)
            self._regroup()
            for job in worker.jobs.values():  # the worker keeps its unfinished jobs
                job.lane = self._scheduler.lane_for(job.topic, worker, worker.lanes)
                job.lane.unfinished += 1
        # The answer comes before any job, because a worker ignores jobs that arrive before the answer to its offer.
        if self._try(worker.id, (ACCEPTED, pack_terms(self._silent_after))):
            self._settle()

    def _regroup(self) -> None:
        """Match waiting topics with new patterns, in limited slices.

        A slice takes at most `REGROUP_STEPS` steps, and the next one begins `REGROUP_SECONDS` later. For this reason,
        workers that offer new patterns all the time can't block the owner.
        """
        self._regroup_steps = self._scheduler.regroup(self._regroup_steps)
        if self._regrouping is None and self._regroup_steps < REGROUP_STEPS:
            self._regrouping = self._clock.callLater(REGROUP_SECONDS, self._regroup_more)

    def _regroup_more(self) -> None:
        self._regrouping, self._regroup_steps = None, REGROUP_STEPS
        self._regroup()
        self._settle()

    def _report(self, worker: _Worker, kind: bytes, id: bytes, text: str) -> None:
        """Process any report about a job except the usual report that the job is done."""
        job = worker.jobs.pop(id, None)
        if job is None:
            if kind == DONE:
                self._late(id)
                self._settle()
            else:
                self.unknown += 1
            return
        self._leave(job)
        if not job.ended:
            stats = job.queue.stats
            stats.in_flight -= 1
            # The handler did not fail, so the attempt keeps its number.
            if kind == GIVEN_BACK:
                stats.given_back += 1
                self._again(job)
            else:
                self._failed(job, text, peer_name(worker.id), rejected=kind == REJECTED)
        self._send_ready()
        if job.queue.putting:
            self._admit_waiting(job.queue)

    def returned(self, id: bytes, job_id: bytes) -> None:
        """Let a job wait again, because no worker has received it."""
        worker = self._workers.get(id)
        job = None if worker is None else worker.jobs.pop(job_id, None)
        if job is None:
            return
        self._leave(job)
        if not job.ended:
            job.queue.stats.in_flight -= 1
            self._again(job)
        self._settle()

    def hold(self, topic: bytes) -> None:
        """Send no jobs of a topic until `release`, because no worker accepts it."""
        self._scheduler.hold(topic)

    def release(self, topic: bytes) -> None:
        """Send the jobs of a topic again."""
        self._scheduler.release(topic)
        self._settle()

    def _late(self, id: bytes) -> None:
        """Process the DONE report of a worker that no longer has the job."""
        job = self._jobs.get(id)
        if job is None:
            run, number = _NUMBER.unpack(id)
            index = number >> _QUEUE_SHIFT
            if run != self._run or index >= len(self._queues) or not self._was_put(self._queues[index], number):
                self.unknown += 1
            else:
                self._queues[index].stats.done_twice += 1
        elif not job.was_lost:  # perhaps the worker has reconnected, and its old connection is not lost yet
            job.is_reported = True
            self.unknown += 1
        else:
            self._withdraw(job)
            self._end(job, "done")

    def _was_put(self, queue: OwnedQueue, number: int) -> bool:
        # A queue numbers its jobs from 0, so a number of at least ``put`` was never given to a job.
        return number & (1 << _QUEUE_SHIFT) - 1 < queue.stats.put

    # -- the ends of jobs ------------------------------------------------------------------------------------

    def _leave(self, job: Job) -> None:
        """Free the room of a job in its lane, because the worker no longer has the job."""
        lane, job.lane = job.lane, None
        if lane is not None:
            lane.unfinished -= 1
            self._scheduler.freed(lane)

    def _withdraw(self, job: Job) -> None:
        """Remove an unfinished job from the queue and from the counters.

        If another worker has the job, the job takes room in the lane of that worker until the worker reports.
        """
        stats = job.queue.stats
        if job.lane is not None:
            stats.in_flight -= 1
            return
        stats.waiting -= 1
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
        else:
            self._scheduler.remove(job)

    def _end(self, job: Job, counter: str) -> None:
        """Count a job as ``counter``, and forget the job.

        A stop that waits for the last job continues in a later reactor turn, not inside the calls that end the job.
        """
        stats = job.queue.stats
        if counter == "done":
            stats.done += 1
        else:
            stats.failed += 1
        job.ended = True
        self._jobs.pop(job.id, None)
        if self._idle and not self._jobs:
            self._clock.callLater(0, self._tell_idle)

    def _again(self, job: Job) -> None:
        """Let a job wait for another worker, ahead of all other jobs."""
        job.queue.stats.waiting += 1
        self._scheduler.put_back((job,))

    def _failed(self, job: Job, text: str, worker: str, *, rejected: bool = False) -> None:
        """Schedule the next attempt of a failed job, or give up on the job."""
        retry = job.queue.settings.retry
        if rejected or job.attempt > len(retry) or self._stopping:
            self._give_up(job, text, logging.WARNING if rejected else logging.ERROR, worker)
            return
        job.reason, delay = text, retry[job.attempt - 1]
        self._say_failed(job, text, logging.WARNING, f", next attempt in {delay:g} s", worker)
        job.queue.stats.waiting += 1
        job.timer = self._clock.callLater(delay, self._retry, job)

    def _retry(self, job: Job) -> None:
        job.timer = None
        job.attempt += 1
        job.meta = with_attempt(job.meta, job.attempt)
        job.queue.stats.retried += 1
        self._scheduler.put_back((job,))
        self._settle()

    def _give_up(self, job: Job, text: str, level: int = logging.ERROR, worker: str = "") -> None:
        self._say_failed(job, text, level, ", no further attempt", worker)
        job.queue.given_up(job, text)
        self._end(job, "failed")

    def _say_failed(self, job: Job, text: str, level: int, next_one: str, worker: str) -> None:
        settings = job.queue.settings
        attempts = f"attempt {job.attempt} of {len(settings.retry) + 1}"
        self._say(
            ("failed", settings.name, level),
            f"failed jobs of {settings.name!r}",
            level,
            "%s: a job of %r (%s) failed%s: %s; %s%s",
            self._name,
            str(Topic.from_wire(job.topic)),
            settings.where,
            f" at worker {worker}" if worker else "",
            printable(text),
            attempts,
            next_one,
        )

    # -- the ends of workers ---------------------------------------------------------------------------------

    def ended(self, id: bytes) -> None:
        """Process the end of a worker's connection."""
        worker = self._workers.get(id)
        if worker is not None:
            self._lose(worker, "has disconnected")
            self._settle()

    def _lose(self, worker: _Worker, reason: str, *, counts: bool = True) -> None:
        """Forget a worker, and let its unfinished jobs wait for other workers.

        ``counts`` is False if the worker is still alive, so that none of its jobs can have crashed the worker.
        """
        if self._workers.pop(worker.id, None) is None:  # already lost, during a call of ``given_up``
            return
        self.workers_changed(len(self._workers))
        self._scheduler.close(worker.lanes)
        # A list, because ``given_up`` runs other code, which may report or put jobs.
        jobs = [job for job in worker.jobs.values() if not job.ended]
        back = []
        for job in jobs:
            job.lane = None
            job.losses += counts
            job.was_lost = True
            stats = job.queue.stats
            stats.in_flight -= 1
            if job.is_reported:
                self._end(job, "done")
            elif job.losses > JOB_LOSSES:
                self._give_up(job, f"{JOB_LOSSES + 1} workers that had the job disconnected or were silent")
            else:
                stats.redelivered += 1
                stats.waiting += 1
                back.append(job)
        self._scheduler.put_back(back)
        name, left = peer_name(worker.id), self._count()
        if jobs:
            text = "%s: worker %s %s: %d unfinished jobs wait for other workers (%s remaining)"
            self._say("lost", "lost workers", logging.WARNING, text, self._name, name, reason, len(back), left)
        elif self.logs_workers:
            text = "%s: worker %s %s (%s remaining)"
            self._say("left", "workers that left", logging.INFO, text, self._name, name, reason, left)

    def _count(self) -> str:
        number = len(self._workers)
        return f"{number} worker{'s' * (number != 1)}"

    def _settle(self) -> None:
        """Send jobs to workers with credit, and add jobs that have waited for room."""
        self._send_ready()
        for queue in self._queues:
            if queue.putting:
                self._admit_waiting(queue)

    def probe(self) -> None:
        """Send a sign of life to all workers, to find connections that have ended."""
        for id in tuple(self._workers):
            self._try(id, (ALIVE,))
        self._settle()

    # -- time ------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """The number of workers."""
        return len(self._workers)

    @property
    def _silent_after(self) -> float:
        return min([queue.settings.silent_after for queue in self._queues], default=SILENT_AFTER)

    @property
    def _period(self) -> float:
        return min(_ALIVE_SECONDS, self._silent_after / 4)

    def start(self) -> None:
        """Start to send signs of life, and to look for workers that send none."""
        if self._timer is None and not self._closed:
            self._ticked = self._clock.seconds()
            self._timer = self._clock.callLater(self._period, self._tick)

    def _tick(self) -> None:
        """Send signs of life, and look for silent workers.

        Also look for jobs that no worker accepts.
        """
        period, now = self._period, self._clock.seconds()
        # If this process was frozen, it has not yet read the workers' signs of life, so count at most two periods.
        passed, self._ticked = min(now - self._ticked, 2 * period), now
        self._timer = self._clock.callLater(period, self._tick)
        self._answered.clear()
        silent_after = self._silent_after
        for worker in tuple(self._workers.values()) if self.watches_workers else ():
            worker.quiet = 0.0 if worker.heard else worker.quiet + passed
            worker.heard = False
            if worker.quiet > silent_after:
                self._lose(worker, f"was silent for {silent_after:g} s")
            elif not worker.told and worker.id in self._workers:
                self._try(worker.id, (ALIVE,))
            worker.told = False
        self._look_for_unserved(passed)
        self._settle()

    def _try(self, id: bytes, parts: Sequence[bytes]) -> bool:
        """Send a message other than a job. Return False if the send fails."""
        try:
            self._send(id, parts)
        except (UnknownPeerError, HighWaterMarkError) as error:
            if (worker := self._workers.get(id)) is not None:
                self._lose(worker, _reason(error))
            return False
        return True

    def _look_for_unserved(self, passed: float) -> None:
        """Log once if no worker has accepted waiting jobs for some seconds."""
        before, self._unserved = self._unserved, {}
        for topic, number in self._scheduler.unserved():
            since = before.get(topic, 0.0) + passed
            self._unserved[topic] = since
            # True only in the tick in which the time exceeds the limit.
            if since >= _NO_WORKER_SECONDS > since - passed:
                text = "%s: no worker accepts %r: %d jobs wait; start a worker with an @app.work handler for this topic"
                name = str(Topic.from_wire(topic))
                self._say("unserved", "jobs without workers", logging.INFO, text, self._name, name, number)

    def _say(self, key: Any, subject: str, level: int, text: str, *facts: object) -> None:
        self._reports(key, f"{self._name}: {subject}", level, text, *facts)

    # -- the stop --------------------------------------------------------------------------------------------

    def drain(self) -> Deferred[None]:
        """Return a Deferred that fires when all jobs have ended.

        The owner gives up on jobs that wait for their next attempt.
        """
        self._stopping = True
        for job in tuple(self._jobs.values()):
            if job.timer is not None:
                job.timer.cancel()
                job.timer = None
                job.queue.stats.waiting -= 1
                self._give_up(job, job.reason)
        self._settle()
        if not self._jobs and not any(queue.putting for queue in self._queues):
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        return waiting

    def _tell_idle(self) -> None:
        if not self._jobs and not any(queue.putting for queue in self._queues):
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)

    def close(self) -> dict[str, int]:
        """Drop all jobs, and tell the workers that the owner is stopping.

        Returns:
            The number of dropped jobs of each queue that dropped any; the keys describe the queues.
        """
        self._closed = True
        for timer in (self._timer, self._regrouping):
            if timer is not None:
                timer.cancel()
        self._timer = self._regrouping = None
        left: dict[str, int] = {}
        for queue in self._queues:
            stats, putting = queue.stats, len(queue.putting)
            dropped = stats.waiting + stats.in_flight
            stats.dropped_at_shutdown += dropped
            stats.waiting = stats.in_flight = 0
            while queue.putting:  # an errback may cancel other puts
                _, put = queue.putting.popleft()
                error = NotRunningError(f"a job of {queue.settings.name!r} was not put: the app has stopped")
                put.errback(error)
            if dropped + putting:
                left[f"jobs of {queue.settings.name!r} that were not done"] = dropped + putting
        for job in self._jobs.values():
            job.ended = True
        self._jobs.clear()
        self._scheduler.clear()
        for worker in tuple(self._workers.values()):
            self._scheduler.close(worker.lanes)
            # Before the send: if it fails, `_lose` must find no jobs that could wait for other workers.
            worker.jobs.clear()
            self._try(worker.id, (STOPPED,))
        self._workers.clear()
        self.workers_changed(0)
        self._tell_idle()
        return left


def _reason(error: Exception) -> str:
    return "has disconnected" if isinstance(error, UnknownPeerError) else "reads no messages (its queue is full)"
