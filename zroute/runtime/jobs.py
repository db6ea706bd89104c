"""The jobs of one run: its job queues with their owner, and its workers.

A stop of the app has these steps:

1. If owners in the same process are stopping too, the workers continue until the jobs of those owners are done. One of
   these owners may belong to the same app.
2. The workers give back the jobs that have not begun.
3. The app waits for its handlers.
4. The owner waits until its own jobs are done. It is last, because handlers may still add jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import time_ns
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, TimeoutError

from zroute.awaiting import within
from zroute.clock import Clock
from zroute.endpoints import LOOP, Ends, ResolvedAddresses
from zroute.errors import JobFailedError
from zroute.messages.codecs import Codecs
from zroute.messages.topics import Topic, matches
from zroute.planning.plan import Plan
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.results import Results
from zroute.stats import Stats
from zroute.throttle import ThrottledLog
from zroute.transport import OwnerLink, SendJob, Transport

if TYPE_CHECKING:
    from zroute.jobs.owner import Job, JobOwner
    from zroute.jobs.queue import CompiledJobQueue
    from zroute.jobs.worker import JobWorker
    from zroute.receiving.working import Working

__all__ = ["Jobs"]

_STOPPING = 1.0
"""The maximum time in seconds that a stop waits for owners to confirm that they send no more jobs."""


_LOCAL = ("127.0.0.1", "localhost", "*", "0.0.0.0", "[::1]", "[::]")
_owners: dict[str, set[Jobs]] = {}
"""The owners of this process, by the place at which they bind."""


def _place(address: str) -> str:
    """Return a text that is equal for all addresses of the same socket.

    The addresses may name this machine in different ways.
    """
    transport, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    return f"tcp:{port}" if transport == "tcp" and host in _LOCAL else address


class Jobs:
    """The job queues and the workers of one run.

    Args:
        plan: The compiled app.
        clock: The reactor.
        transport: The transport of the run.
        ends: The endpoints of the run.
        results: Publishes dead letters, and handles errors.
        stats: The counters of the run.
        reports: The log.

    Attributes:
        stopping: True after the stop of the app has begun.
    """

    def __init__(
        self,
        plan: Plan,
        clock: Clock,
        transport: Transport,
        ends: Ends,
        results: Results,
        stats: Stats,
        reports: ThrottledLog,
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._transport = transport
        self._ends = ends
        self._results = results
        self._stats = stats
        self._reports = reports
        self._owner: JobOwner | None = None
        self._working: Working | None = None
        self._stopped: Deferred[Any] | None = None
        self._places: set[str] = set()
        self.stopping = False

    # -- the owner -------------------------------------------------------------------------------------------

    def open_owner(self) -> None:
        """Enable `JobQueue.put`, and open the endpoints for workers.

        Raises:
            EndpointError: An endpoint can't be opened.
        """
        queues = self._plan.parts.queues
        if not queues:
            return
        from zroute.jobs.owner import JobOwner  # here, because most apps have no jobs

        # ``send`` is assigned in the next line, because `hand_out` needs the owner; the owner sends nothing before.
        owner = self._owner = JobOwner(self._clock, lambda id, parts: send(id, parts), self._reports, self._plan.name)
        send: SendJob = self._transport.hand_out(owner)
        owner.workers_changed = self._workers_changed
        inside = any(each.address.startswith(LOOP) for each in self._ends.jobs)
        owner.logs_workers = not inside and self._ends.nats is None  # all workers on NATS are one to the owner
        owner.start()
        for queue in queues:
            owned = owner.add(queue.settings, self._giving_up(queue))
            self._stats.jobs[queue.pattern.text] = owned.stats
            queue.open(owned, self._plan.choices.max_message)
        self._places = set(map(_place, self._addresses.jobs))
        for place in self._places:
            _owners.setdefault(place, set()).add(self)

    @property
    def _addresses(self) -> ResolvedAddresses:
        return self._transport.addresses or self._ends.addresses

    def _workers_changed(self, number: int) -> None:
        self._stats.workers = number

    def _giving_up(self, queue: CompiledJobQueue) -> Callable[[Job, str], None]:
        from zroute.messages.jobs import as_message, headers_of_meta

        def given_up(job: Job, reason: str) -> None:
            error = JobFailedError(reason, topic=str(Topic.from_wire(job.topic)), attempts=job.attempt)
            captured = matches(queue.pattern, job.topic) or {}
            captures = {name: value.decode() for name, value in captured.items()}
            message = as_message(job.topic, job.codec, job.body, headers_of_meta(job.meta), time_ns())
            self._results.given_up_job(queue, error, captures, message)

        return given_up

    async def drain(self, timeout: float) -> dict[str, int]:
        """Wait up to ``timeout`` seconds for the owner's jobs, and then close the queues.

        Returns:
            The number of unfinished jobs of each queue that has any. The keys are descriptions for the log.
        """
        owner = self._owner
        if owner is None:
            return {}
        with suppress(TimeoutError):
            await within(timeout, owner.drain(), self._clock)
        # No longer an owner that `work_off` of another app waits for.
        self._owner = None
        left = owner.close()
        for place in self._places:
            _owners[place].discard(self)
            if not _owners[place]:
                del _owners[place]
        for queue in self._plan.parts.queues:
            queue.close()
        return left

    # -- the workers -----------------------------------------------------------------------------------------

    def open_workers(self, routes: Sequence[CompiledRoute], codecs: Codecs) -> None:
        """Start to take jobs for ``routes``, the handlers of jobs.

        Raises:
            EndpointError: An endpoint can't be opened.
        """
        if not routes:
            return
        from zroute.receiving.working import Working

        most = self._plan.choices.max_message
        self._working = Working(routes, codecs, self._results, max_message=most, stats=self._stats)
        self._transport.take_jobs(self._make_worker)

    def _make_worker(self, link: OwnerLink) -> JobWorker:
        from zroute.jobs.worker import JobWorker

        assert self._working is not None
        lanes, find = self._working.lanes, self._working.find
        worker = JobWorker(self._clock, link.tell, lanes, find, self._reports, link.address, self._plan.name)
        worker.reconnect, worker.peer = link.reconnect, link.peer
        if self._stopped is not None:  # the host name got this address after the stop had begun
            worker.stop()
        return worker

    async def work_off(self, timeout: float) -> None:
        """Work until the stopping owners of this process have no jobs left.

        The work ends after at most ``timeout`` seconds.
        """
        if self._working is None:
            return
        here = {each for address in self._addresses.work for each in _owners.get(_place(address), ())}
        draining = [each._owner.drain() for each in here if each.stopping and each._owner is not None]
        with suppress(TimeoutError):
            await within(timeout, DeferredList(draining, consumeErrors=True), self._clock)

    def stop_workers(self) -> None:
        """Give back the jobs that have not begun, and accept no more jobs."""
        self._stopped = DeferredList([worker.stop() for worker in self._transport.workers], consumeErrors=True)

    async def end_workers(self, timeout: float) -> None:
        """Wait until all results are reported and no owner sends more jobs.

        The wait ends after at most ``timeout`` seconds.
        """
        if self._stopped is not None:
            with suppress(TimeoutError):
                await within(min(timeout, _STOPPING), self._stopped, self._clock)
