"""The ZeroMQ sockets of an app's jobs.

There is one for the owner of its jobs, and one for each owner that it works for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from zroute.endpoints import Endpoint
from zroute.options import LINGER_ABORT, frame_limit
from zroute.sockets.jobs import JobsConnection, WorkConnection
from zroute.sockets.pair import SharedContext
from zroute.transport import JobOwner, JobWorker, MakeWorker, OwnerLink, SendJob, TransportRequest

__all__ = ["JobSockets"]


class JobSockets:
    """The sockets of one app's jobs. They are made by `hand_out` and `take_jobs`."""

    def __init__(self, request: TransportRequest) -> None:
        self._app = request.app
        self._reactor = request.reactor
        self._ends = request.ends
        self._context: SharedContext = request.app.context
        self._users = 0
        self._owner: JobsConnection | None = None
        self._works: dict[str, tuple[WorkConnection, JobWorker]] = {}

    def hand_out(self, owner: JobOwner) -> SendJob:
        """See `zroute.transport.Transport`, also for the methods below."""
        connection = self._owner = JobsConnection(self._reactor, context=self._acquire(), **self._app.options)
        connection.owner = owner
        connection.log.name = self._app.name
        for endpoint in self._ends.jobs:
            connection.open(endpoint)
        return connection.tell

    def take_jobs(self, make: MakeWorker) -> None:
        """Connect to all owners."""
        name, limit = self._app.name, frame_limit(self._app.max_message)
        for endpoint in self._ends.work:
            given = {"name": name, "context": self._acquire()}
            work = WorkConnection(self._reactor, endpoint, **given, maxmsgsize=limit, **self._app.options)
            worker = work.worker = make(OwnerLink(endpoint.address, work.tell, work.reconnect))
            self._works[work.open()] = work, worker

    @property
    def workers(self) -> Sequence[JobWorker]:
        """The workers of all connections."""
        return [worker for _, worker in self._works.values()]

    @property
    def jobs(self) -> tuple[str, ...]:
        """The addresses of the owner; those of the endpoints if there is none."""
        return tuple(self._owner.endpoints if self._owner is not None else map(_address, self._ends.jobs))

    @property
    def work(self) -> tuple[str, ...]:
        """The addresses of the owners that the app works for, or would work for."""
        return tuple(self._works or map(_address, self._ends.work))

    def _acquire(self) -> Any:
        self._users += 1
        return self._context.acquire()

    def close(self, linger: int = LINGER_ABORT) -> Deferred[None]:
        """Close all sockets. The Deferred fires when all messages are sent or dropped."""
        works, self._works = self._works, {}
        for work, worker in works.values():
            worker.close()
            work.close(linger)
        if self._owner is not None:
            self._owner.close(linger)
            self._owner = None
        users, self._users = self._users, 0
        released = [self._context.release(self._reactor) for _ in range(users)]
        return gatherResults(released).addCallback(lambda _: None)


def _address(endpoint: Endpoint) -> str:
    return endpoint.address
