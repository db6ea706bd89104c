"""The ZeroMQ sockets of an app's jobs.

There is one socket for the owner of the app's jobs, and one for each owner from which the app takes jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed

from zroute.endpoints import Endpoint
from zroute.options import LINGER_ABORT, LINGER_DRAIN, frame_limit
from zroute.sockets.connection import Guard
from zroute.sockets.names import Names, has_addresses
from zroute.transport import JobOwner, JobWorker, MakeWorker, OwnerLink, SendJob, TransportRequest

if TYPE_CHECKING:
    from zroute.sockets.jobs import JobsConnection, WorkConnection

__all__ = ["JobSockets"]


class JobSockets:
    """The sockets of one app's jobs. `hand_out` and `take_jobs` create them."""

    def __init__(self, request: TransportRequest) -> None:
        self._app = app = request.app
        self._reactor = request.reactor
        self._ends = request.ends
        self._acquired: Any = None
        self._owner: JobsConnection | None = None
        self._make: MakeWorker
        self._works: dict[str, tuple[WorkConnection, JobWorker]] = {}
        self._leaving: list[tuple[WorkConnection, JobWorker]] = []
        self._addresses: list[str] = []
        self.guard: Guard | None = None
        """Sets the keys of each endpoint; see `zroute.sockets.access`."""
        prefer_ipv6 = bool(app.options.get("ipv6"))
        self._names = Names(request.reactor, app.name, self._connect, self._leave, prefer_ipv6=prefer_ipv6)

    def hand_out(self, owner: JobOwner) -> SendJob:
        """See `zroute.transport.Transport`, also for the methods below."""
        from zroute.sockets.jobs import JobsConnection  # here, because most apps have no jobs

        connection = self._owner = JobsConnection(self._reactor, context=self._context, **self._app.options)
        connection.owner = owner
        connection.log.name, connection.guard = self._app.name, self.guard
        for endpoint in self._ends.jobs:
            connection.open(endpoint)
        return connection.tell

    def take_jobs(self, make: MakeWorker) -> None:
        """Connect to all owners; a host name may have an owner at each address."""
        self._make = make
        for endpoint in self._ends.work:
            if has_addresses(endpoint):
                self._names.follow(endpoint.address, endpoint.peer)
                self._addresses.append(endpoint.address)
            else:
                address = self._add(endpoint)
                self._names.keep(address, endpoint.peer)
                self._addresses.append(address)

    def _add(self, endpoint: Endpoint) -> str:
        """Connect to an owner; return its address."""
        from zroute.sockets.jobs import WorkConnection

        given = {"name": self._app.name, "context": self._context, "maxmsgsize": frame_limit(self._app.max_message)}
        work = WorkConnection(self._reactor, endpoint, **{**given, **self._app.options})
        work.guard = self.guard
        worker = work.worker = self._make(OwnerLink(endpoint.address, work.tell, work.reconnect, work.peer))
        address = work.open()
        self._works[address] = work, worker
        return address

    def _connect(self, address: str) -> None:
        """Take jobs from another address of a host name too."""
        if address not in self._works:
            self._add(self._names.endpoint_at(address))

    def _leave(self, address: str) -> None:
        """Take no further jobs from an address to which a host name no longer resolves.

        The jobs that have not begun are given back. The socket is closed when the running jobs are reported.
        """
        left = self._works.pop(address, None)
        if left is None:
            return

        def close(_: None) -> None:
            if left in self._leaving:
                self._leaving.remove(left)
                work, worker = left
                worker.close()
                work.close(LINGER_DRAIN)  # the last reports may be unsent

        self._leaving.append(left)
        left[1].stop().addCallback(close)

    @property
    def workers(self) -> Sequence[JobWorker]:
        """The workers of all connections."""
        return [worker for _, worker in (*self._works.values(), *self._leaving)]

    @property
    def jobs(self) -> tuple[str, ...]:
        """The addresses of the owner, or of the endpoints if there is no owner."""
        return tuple(self._owner.endpoints if self._owner is not None else map(_address, self._ends.jobs))

    @property
    def work(self) -> tuple[str, ...]:
        """The addresses of the owners from which the app takes jobs."""
        return tuple(self._addresses or map(_address, self._ends.work))

    @property
    def _context(self) -> Any:
        if self._acquired is None:
            self._acquired = self._app.context.acquire()
        return self._acquired

    def close(self, linger: int = LINGER_ABORT) -> Deferred[None]:
        """Close all sockets. The Deferred fires when all messages are sent or dropped."""
        self._names.close()
        works = [*self._works.values(), *self._leaving]
        # Before the loop, so that `close` in `_leave` does not close these sockets a second time.
        self._works.clear()
        self._leaving.clear()
        for work, worker in works:
            worker.close()
            work.close(linger)
        if self._owner is not None:
            self._owner.close(linger)
            self._owner = None
        if self._acquired is None:
            return succeed(None)
        self._acquired = None
        released: Deferred[None] = self._app.context.release(self._reactor)
        return released


def _address(endpoint: Endpoint) -> str:
    return endpoint.address
