"""A worker: does the jobs of its owners.

A `WorkLane` has the jobs of one handler, from all owners. Some of these jobs run. A few others wait, so that the next
job can begin without a round trip. A `JobWorker` is the connection to one owner: it gives credits, receives jobs,
reports results and sends signs of life.

This module uses no socket and no thread: the functions that send messages and begin jobs are arguments.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from zroute.clock import Clock
from zroute.endpoints import LOOP
from zroute.errors import EnvelopeError
from zroute.logs import text_of
from zroute.messages.jobs import (
    ACCEPTED,
    ALIVE,
    CHANGED,
    DONE,
    FAILED,
    GIVEN_BACK,
    ID_SIZE,
    JOB,
    OFFER,
    REJECTED,
    STOPPED,
    UNKNOWN,
    JobFrame,
    pack_offer,
    pack_text,
    parse_job,
    parse_terms,
)
from zroute.messages.topics import Pattern, Topic
from zroute.options import CREDITS_MAX, SILENT_AFTER
from zroute.throttle import ThrottledLog

__all__ = ["JobWorker", "WorkLane", "WorkerJob"]

_ALIVE_SECONDS = 1.0  # the longest time between two signs of life
_AHEAD_MAX = 16  # with a longer queue at one worker, other workers might be idle


class WorkerJob:
    """A job that a worker has, with methods that report the handler's result.

    ``frame`` is the job as it arrived, and ``peer`` is the name of the owner's key, or None. ``unended`` is a list that
    jobs share if they begin together. The only item of the list is the number of these jobs that are unfinished. Only
    the first report counts.
    """

    __slots__ = ("_ended", "begun", "frame", "lane", "peer", "unended", "worker")

    def __init__(self, worker: JobWorker, lane: WorkLane, frame: JobFrame) -> None:
        self.worker = worker
        self.lane = lane
        self.frame = frame
        self.peer = worker.peer()
        self.unended = [1]
        self.begun = self._ended = False

    def done(self) -> None:
        """Report that the job is done."""
        self._report(DONE)

    def failed(self, text: str) -> None:
        """Report a failure. The owner retries the job, or gives up on the job."""
        self._report(FAILED, pack_text(text))

    def rejected(self, text: str) -> None:
        """Report a failure after which the owner must not retry the job."""
        self._report(REJECTED, pack_text(text))

    def give_back(self) -> None:
        """Return the job to the owner, for another worker."""
        self._report(GIVEN_BACK)

    def _report(self, *parts: bytes) -> None:
        if not self._ended:
            self._ended = True
            self.worker.report(self, parts)
            self.unended[0] -= 1
            if not self.unended[0]:
                self.lane.ended()


@attrs.define(eq=False)
class WorkLane:
    """The jobs of one handler.

    Attributes:
        name: The name of the handler, for logs.
        where: The line of the handler's declaration.
        patterns: The patterns of the jobs.
        max_in_flight: The maximum number of lists of jobs that run at the same time.
        begin: A function that begins a list of jobs. The function reports each result by a method of the job, now or
            later.
        lists: The maximum number of jobs in a list, and a function that takes a job. Only jobs for which the function
            returns equal values may be in the same list. By default a list has one job.
        running: The number of lists that run.
        waiting: The jobs that have not begun.
    """

    name: str
    where: str
    patterns: Sequence[Pattern]
    max_in_flight: int
    begin: Callable[[list[WorkerJob]], object]
    lists: tuple[int, Callable[[JobFrame], Hashable]] = (1, lambda frame: None)
    running: int = attrs.field(init=False, default=0)
    waiting: deque[WorkerJob] = attrs.field(init=False, factory=deque)
    _beginning: bool = attrs.field(init=False, default=False)

    @property
    def credits(self) -> int:
        """The number of unfinished jobs that each owner may give to this lane."""
        most, _ = self.lists
        return min(most * (self.max_in_flight + min(self.max_in_flight, _AHEAD_MAX)), CREDITS_MAX)

    def ended(self) -> None:
        """Process the end of a list of jobs."""
        self.running -= 1
        self.begin_more()

    def begin_more(self) -> None:
        """Begin waiting jobs, unless another call of this method is doing so."""
        # A job that ends at once calls this method again: the loop below begins the next one, without a deeper stack.
        if self._beginning:
            return
        self._beginning = True
        try:
            while self.waiting and self.running < self.max_in_flight:
                self.running += 1
                jobs = self._next()
                if len(jobs) > 1:
                    unended = [len(jobs)]
                    for job in jobs:
                        job.unended = unended
                jobs[0].worker.begin(jobs)
        finally:
            self._beginning = False

    def _next(self) -> list[WorkerJob]:
        """Remove and return the jobs of the next list; all are from one owner."""
        first = self.waiting.popleft()
        most, key_of = self.lists
        jobs, key, others = [first], key_of(first.frame), deque[WorkerJob]()
        while self.waiting and len(jobs) < most:
            job = self.waiting.popleft()
            (jobs if job.worker is first.worker and key_of(job.frame) == key else others).append(job)
        others.extend(self.waiting)
        self.waiting = others
        return jobs


class JobWorker:
    """The connection of a worker to one owner.

    The code that uses this class calls `connected`, `disconnected` and `received`.

    Args:
        clock: The reactor's clock.
        send: Sends the parts of a message. Returns False if the socket is not connected, or its queue is full.
        lanes: The lanes, with the most specific patterns first.
        find: Returns the lane for a topic; None if there is none.
        reports: The log.
        owner: The address of the owner, for logs.
        name: The name of the app, for logs.

    Attributes:
        reconnect: A function that the `JobWorker` calls if the owner is silent or reads nothing. The code that uses
            this class sets the function.
        peer: A function that returns the name of the owner's key, set in the same way.
        malformed: The number of malformed messages.
    """

    def __init__(
        self,
        clock: Clock,
        send: Callable[[Sequence[bytes]], bool],
        lanes: Sequence[WorkLane],
        find: Callable[[bytes], WorkLane | None],
        reports: ThrottledLog,
        owner: str,
        name: str,
    ) -> None:
        self._clock = clock
        self._send = send
        self._lanes = lanes
        self._find = find
        self._reports = reports
        self._owner = owner
        self._name = name
        self._most = sum(lane.credits for lane in lanes)
        self._jobs: dict[bytes, WorkerJob] = {}
        self._running: dict[bytes, WorkerJob] = {}
        self._done_late: dict[bytes, None] = {}
        self._silent_after = SILENT_AFTER
        self._timer: Any = None
        self._quiet = 0.0
        self._heard = self._told = True
        self._failed_to_send = False
        self._ticked = self._told_at = 0.0
        self._offers = 0
        self._offered_at: float | None = None
        self._warned: set[WorkLane] = set()
        self._gathering: dict[WorkLane, Any] = {}
        self._stopping: Deferred[None] | None = None
        self.is_connected = self._owner_stopped = False
        self.reconnect: Callable[[], object] = lambda: None
        self.peer: Callable[[], str | None] = lambda: None
        self.malformed = 0

    # -- the connection --------------------------------------------------------------------------------------

    def connected(self) -> None:
        """Make an offer to the owner, because the connection has been made."""
        self.is_connected = True
        self._quiet, self._heard, self._offers, self._owner_stopped = 0.0, True, 0, False
        self._told_at = self._ticked = self._clock.seconds()
        self._offered_at, self._failed_to_send = None, False
        self._done_late.clear()
        if self._timer is None:
            self._timer = self._clock.callLater(self._period, self._tick)
        self._offer()

    def disconnected(self) -> None:
        """Forget all jobs, because the owner reassigns them. Running jobs continue."""
        self.is_connected = False
        self._forget()
        self._tell_if_stopped()

    def close(self) -> None:
        """Stop all timers."""
        self.is_connected = False
        for timer in (self._timer, *self._gathering.values()):
            if timer is not None:
                timer.cancel()
        self._timer = None
        self._gathering.clear()

    def _offer(self, kind: bytes = OFFER) -> None:
        lanes = () if self._stopping is not None else self._lanes
        if self._tell(kind, pack_offer((lane.credits, lane.patterns) for lane in lanes)):
            self._offers += 1
            if kind == OFFER:
                self._offered_at = self._clock.seconds()

    def _tell(self, *parts: bytes) -> bool:
        if not self.is_connected:
            return False
        # Before the next line, which renews the time from which `_was_frozen` measures the silence.
        self._was_frozen()
        self._told, self._told_at = True, self._clock.seconds()
        if self._send(parts):
            return True
        self._failed_to_send = True
        return False

    def _was_frozen(self) -> bool:
        """Return True if this worker has sent no sign of life for too long.

        The process was frozen, or a function blocked the reactor. The owner has given the jobs of this worker to
        others, or will soon do so. For this reason the worker gives back the jobs that have not begun.
        """
        now = self._clock.seconds()
        if now - self._told_at <= self._silent_after:
            return False
        # Before the calls below, because each of them sends a message and calls this method again.
        self._told_at = now
        self._give_back_waiting()
        return True

    def _give_back_waiting(self) -> None:
        for lane in self._lanes:
            mine = [job for job in lane.waiting if job.worker is self]
            lane.waiting = deque(job for job in lane.waiting if job.worker is not self)
            for job in mine:
                del self._jobs[job.frame.id]
                self._tell(GIVEN_BACK, job.frame.id)

    # -- messages of the owner -------------------------------------------------------------------------------

    def received(self, parts: Sequence[bytes]) -> None:
        """Process a message from the owner.

        Raises:
            EnvelopeError: The message is malformed. The worker rejects a malformed job if the job has an id.
        """
        self._heard = True
        kind = parts[0]
        try:
            if kind == JOB:
                self._job(parts)
            elif kind == ACCEPTED:
                # The owner chooses this number; with 0, the timer of `_tick` would call it all the time.
                self._silent_after = max(parse_terms(parts), 0.01)
                # An owner may send an answer without an offer.
                self._offers = max(self._offers - 1, 0)
                self._offered_at = None
                self._tell_if_stopped()
            elif len(parts) != 1 or kind not in (ALIVE, UNKNOWN, STOPPED):
                raise EnvelopeError("a message of an unknown kind")
            elif kind == UNKNOWN:
                self._unknown()
            elif kind == STOPPED:
                self._forget()
                self._owner_stopped = True
                self._tell_if_stopped()
                if not self._owner.startswith(LOOP):  # else, the owner is in the same app
                    self._say_of_owner("stopped", logging.INFO, "has stopped")
        except EnvelopeError:
            self.malformed += 1
            raise

    def _unknown(self) -> None:
        """Make a new offer, because the owner does not know this worker.

        The worker makes no new offer while the owner may still read the last offer. An owner with too many workers does
        not answer an offer, so the worker repeats the offer after ``silent_after`` seconds.
        """
        if self._offered_at is not None and self._clock.seconds() - self._offered_at < self._silent_after:
            return
        self._forget()
        self._offers = 0
        self._offer()

    def _job(self, parts: Sequence[bytes]) -> None:
        try:
            frame = parse_job(parts)
        except EnvelopeError as error:
            if len(parts) > 1 and len(parts[1]) == ID_SIZE:
                self._tell(REJECTED, parts[1], pack_text(error.reason))
            raise
        if self._offered_at is not None:  # sent before the owner read the offer: the owner will assign the job again
            return
        if frame.id in self._done_late:  # the report that the job is done is already sent, and ends the job
            del self._done_late[frame.id]
            return
        if frame.id in self._jobs:
            raise EnvelopeError("a job that this worker already has")
        if frame.id in self._running:  # the owner had lost this worker, and now assigns the same job to it again
            self._jobs[frame.id] = self._running[frame.id]
            return
        lane = self._find(frame.topic)
        if lane is None:
            text = "%s: job from the owner at %s refused: no handler of this worker accepts the topic %r"
            self._say("refused", logging.WARNING, text, self._name, self._owner, str(Topic.from_wire(frame.topic)))
            self._tell(REJECTED, frame.id, b"no handler of this worker accepts the topic")
        elif self._stopping is not None or len(self._jobs) >= self._most:
            self._tell(GIVEN_BACK, frame.id)
        else:
            job = self._jobs[frame.id] = WorkerJob(self, lane, frame)
            lane.waiting.append(job)
            if lane.lists[0] == 1:
                lane.begin_more()
            elif lane not in self._gathering:  # more jobs for the same list may have arrived with this one
                self._gathering[lane] = self._clock.callLater(0, self._gathered, lane)

    def _gathered(self, lane: WorkLane) -> None:
        del self._gathering[lane]
        lane.begin_more()

    # -- jobs ------------------------------------------------------------------------------------------------

    def begin(self, jobs: list[WorkerJob]) -> None:
        """Begin jobs of this owner. The lane of the jobs calls this method."""
        if self._was_frozen():
            for job in jobs:
                job.give_back()
            return
        lane = jobs[0].lane
        for job in jobs:
            job.begun = True
            self._running[job.frame.id] = job
        began = self._clock.seconds()
        try:
            lane.begin(jobs)
        except BaseException as error:  # without reports, the jobs would take room in the lane for ever
            name = f"{type(error).__name__}: {text_of(error)}"
            self._say("failed", logging.ERROR, "%s: bug in zroute, please report it: %s", lane.name, name)
            for job in jobs:
                job.failed(name)
        took = self._clock.seconds() - began
        if took > self._silent_after / 2 and lane not in self._warned:
            self._warned.add(lane)
            self._say(
                "blocked",
                logging.WARNING,
                "%s at %s blocked the reactor for %.1f s, so this worker sent no sign of life. After %g s "
                "without one, the owner gives the jobs to other workers: run the handler in a thread (remove "
                "thread=False), or increase silent_after of the job queue",
                lane.name,
                lane.where,
                took,
                self._silent_after,
            )

    def report(self, job: WorkerJob, parts: Sequence[bytes]) -> None:
        """Send the result of a job.

        If the owner has taken the job from this worker, the worker still reports that the job is done, but no other
        result.
        """
        id = job.frame.id
        if self._running.get(id) is job:
            del self._running[id]
        # The id may belong to another `WorkerJob` if the owner has given the job to this worker again.
        if self._jobs.get(id) is job:
            del self._jobs[id]
        elif parts[0] != DONE:
            return
        else:
            self._done_late[id] = None
            # The owner may never assign these jobs to this worker again, so the oldest id is forgotten.
            if len(self._done_late) > self._most:
                del self._done_late[next(iter(self._done_late))]
        self._tell(parts[0], id, *parts[1:])
        self._tell_if_stopped()

    def _forget(self) -> None:
        """Forget all jobs, because the owner has reassigned them. Running jobs continue."""
        jobs, self._jobs = self._jobs, {}
        for lane in {job.lane for job in jobs.values() if not job.begun}:
            lane.waiting = deque(job for job in lane.waiting if job.worker is not self)

    # -- time ------------------------------------------------------------------------------------------------

    @property
    def _period(self) -> float:
        return min(_ALIVE_SECONDS, self._silent_after / 4)

    def _tick(self) -> None:
        """Send a sign of life, and check that the owner sends signs of life."""
        now, period = self._clock.seconds(), self._period
        # If this process was frozen, it has not yet read the owner's signs of life, so count at most two periods.
        passed, self._ticked = min(now - self._ticked, 2 * period), now
        self._timer = self._clock.callLater(period, self._tick)
        if not self.is_connected:
            return
        self._quiet = 0.0 if self._heard else self._quiet + passed
        self._heard = False
        if not self._told:
            self._tell(ALIVE)
        self._told = False
        if self._quiet > self._silent_after:
            if self._offered_at is None:
                self._connect_again("silent", f"was silent for {self._silent_after:g} s:")
            else:
                hint = "check that work= is the address in jobs= of a running app"
                self._connect_again("no answer", f"has not answered for {self._silent_after:g} s: {hint};")
        elif self._failed_to_send:  # the lost message may be a report, and the owner would wait for it for ever
            self._connect_again("full", "reads no messages (its queue is full):")

    def _connect_again(self, key: str, reason: str) -> None:
        self._say_of_owner(key, logging.WARNING, f"{reason} connecting again")
        self.disconnected()
        self.reconnect()

    def _say_of_owner(self, key: str, level: int, what: str) -> None:
        self._say(key, level, "%s: the owner of jobs at %s %s", self._name, self._owner, what)

    def _say(self, key: str, level: int, text: str, *facts: object) -> None:
        subject = f"{self._name}: {key} ({self._owner})"
        self._reports((key, self._owner), subject, level, text, *facts)

    # -- the stop --------------------------------------------------------------------------------------------

    def stop(self) -> Deferred[None]:
        """Accept no more jobs, and give back those that have not begun.

        The Deferred fires when all running jobs of this owner have ended, and the owner sends no more jobs.
        """
        if self._stopping is None:
            self._stopping = Deferred()
            # Before the offer without lanes, after which the worker accepts no more jobs.
            self._give_back_waiting()
            self._offer(CHANGED)
            self._tell_if_stopped()
        return self._stopping

    @property
    def _awaits_answer(self) -> bool:
        """True if an answer of the owner to the last offer is still expected."""
        return self.is_connected and self._offers > 0 and not self._owner_stopped

    def _tell_if_stopped(self) -> None:
        if self._stopping is not None and not self._running and not self._awaits_answer:
            waiting = self._stopping
            if not waiting.called:
                waiting.callback(None)
