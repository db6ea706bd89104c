"""Connections in memory between the owners and the workers of one test.

The connections carry the same messages as real connections.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import Any

from zroute.clock import Clock
from zroute.errors import EnvelopeError, UnknownPeerError, UsageError
from zroute.jobs.owner import Job, JobOwner, OwnedQueue, Settings
from zroute.messages.jobs import as_message, headers_of_meta
from zroute.messages.topics import Topic
from zroute.messages.wire import Envelope
from zroute.messages.wire import parse as parse_frames
from zroute.planning.plan import Plan
from zroute.throttle import ThrottledLog
from zroute.transport import JobOwner as Owner
from zroute.transport import JobWorker, MakeWorker, OwnerLink, SendJob

__all__ = ["JobBus", "TestOwner"]


class _Connection:
    """A connection between an owner and a worker.

    Messages arrive in the next turn, in order.
    """

    def __init__(self, bus: JobBus, id: bytes, owner: Owner, make: MakeWorker, peer: str | None) -> None:
        self._bus = bus
        self.id = id
        self.owner = owner
        self.is_open = True
        self.has_owner = True  # what a worker has sent before its end still arrives
        # Reconnecting does nothing, because no connection of a test breaks.
        self.worker: JobWorker = make(OwnerLink("another app of the test", self.tell, lambda: None, lambda: peer))

    def tell(self, parts: Sequence[bytes]) -> bool:
        """Send a message to the owner."""
        if self.is_open:
            self._bus.later(self._to_owner, list(parts))
        return self.is_open

    def send(self, parts: Sequence[bytes]) -> None:
        """Send a message to the worker."""
        self._bus.later(self._to_worker, list(parts))

    def _to_owner(self, parts: list[bytes]) -> None:
        if self.has_owner:
            # `JobOwner` has counted the malformed message; only a socket would log the error.
            with suppress(EnvelopeError):
                self.owner.received(self.id, parts)

    def _to_worker(self, parts: list[bytes]) -> None:
        if self.is_open:
            with suppress(EnvelopeError):
                self.worker.received(parts)


class JobBus:
    """The owners and the workers of one test.

    Each worker is connected to each owner, but to the owner in its own app only if ``loops`` is True.

    Attributes:
        put: The envelopes of the jobs that the apps have put, each with the plan of the app.
        wall: Returns the time in Unix seconds.
    """

    def __init__(self) -> None:
        self.put: list[tuple[Plan, Envelope]] = []
        self.wall: Callable[[], float] = lambda: 0.0
        self._clock: Clock | None = None
        self._context = copy_context()
        self._ids = count(1)
        self._owners: dict[object, Owner] = {}
        self._makers: dict[object, tuple[MakeWorker, bool]] = {}
        self._connections: dict[bytes, tuple[object, object, _Connection]] = {}
        self._names: dict[object, str | None] = {}

    def later(self, call: Callable[..., object], *arguments: Any) -> None:
        """Make a call in the next turn."""
        assert self._clock is not None
        self._clock.callLater(0, self._context.copy().run, call, *arguments)

    def hand_out(
        self, member: object, owner: Owner, clock: Clock, plan: Plan | None, peer: str | None = None
    ) -> SendJob:
        """Add the owner of an app; return the function that sends messages to a worker.

        ``plan`` is the compiled app; None for the test itself, whose jobs are not recorded. ``peer`` is the name of the
        owner's key.
        """
        self._clock = clock
        self._names[member] = peer
        self._owners[member] = owner
        if plan is not None and isinstance(owner, JobOwner):
            owner.admitted = partial(self._record, plan)
        for other, (make, loops) in self._makers.items():
            self._connect(member, owner, other, make, loops=loops)
        return self._send

    def _record(self, plan: Plan, job: Job) -> None:
        now = self.wall()
        message = as_message(job.topic, job.codec, job.body, headers_of_meta(job.meta), int(now * 1e9))
        self.put.append((plan, parse_frames((message,), now)))

    def unserved(self) -> list[str]:
        """Return topics of waiting jobs that no worker accepts."""
        owners = [owner for owner in self._owners.values() if isinstance(owner, JobOwner)]
        return [str(Topic.from_wire(topic)) for owner in owners for topic, _ in owner.unserved()]

    def drop_unserved(self) -> None:
        """Drop the waiting jobs that no worker accepts."""
        for owner in self._owners.values():
            if isinstance(owner, JobOwner):
                owner.drop_unserved()

    def take_jobs(self, member: object, make: MakeWorker, clock: Clock, *, loops: bool) -> None:
        """Add an app that takes jobs; if ``loops`` is True, also its own jobs."""
        self._clock = clock
        self._makers[member] = make, loops
        for other, owner in self._owners.items():
            self._connect(other, owner, member, make, loops=loops)

    def _connect(self, owning: object, owner: Owner, member: object, make: MakeWorker, *, loops: bool) -> None:
        if owning is member and not loops:
            return
        id = b"worker %d" % next(self._ids)
        connection = _Connection(self, id, owner, make, self._names.get(owning))
        self._connections[id] = owning, member, connection
        self.later(connection.worker.connected)

    def _send(self, id: bytes, parts: Sequence[bytes]) -> None:
        if id not in self._connections:
            raise UnknownPeerError(f"no worker {id!r} is connected")
        self._connections[id][2].send(parts)

    def workers(self, member: object) -> list[JobWorker]:
        """Return the workers of an app."""
        return [connection.worker for _, mine, connection in self._connections.values() if mine is member]

    def leave(self, member: object) -> None:
        """End all connections of an app."""
        self._owners.pop(member, None)
        self._makers.pop(member, None)
        for id, (owning, mine, connection) in tuple(self._connections.items()):
            if member is owning or member is mine:
                del self._connections[id]
                connection.is_open = False
                connection.has_owner = member is not owning
                if member is mine:
                    connection.worker.close()
                    # The id is deleted, so the probe fails, and the owner loses this worker.
                    self.later(connection.owner.probe)
                else:
                    connection.worker.disconnected()


class TestOwner:
    """The owner of the jobs that the test itself puts.

    Args:
        bus: The connections of the test.
        clock: The reactor of the test.
        given_up: A function that is called with each job that was given up, and the reason.
        peer: The name of the owner's key.
    """

    __test__ = False  # keeps pytest from collecting this class as tests

    def __init__(
        self, bus: JobBus, clock: Clock, given_up: Callable[[Job, str], object], peer: str | None = None
    ) -> None:
        self._reports = ThrottledLog(logging.getLogger("zroute"), clock)
        self._engine = JobOwner(clock, lambda id, parts: send(id, parts), self._reports, "the test")
        send = bus.hand_out(self, self._engine, clock, None, peer)
        self._given_up = given_up
        self._queues: dict[tuple[float, ...], OwnedQueue] = {}

    def put(
        self,
        topic: bytes,
        bodies: Iterable[tuple[int, bytes]],
        headers: Mapping[str, Any] | None,
        retry: Sequence[float],
    ) -> None:
        """Add jobs; ``bodies`` contains the codec number and the body of each job."""
        key = tuple(retry)
        if key not in self._queues:
            self._queues[key] = self._engine.add(Settings("a job of the test", "t.put", key), self._given_up)
        for number, body in bodies:
            self._queues[key].put_nowait(topic, number, body, headers)

    def check(self) -> None:
        """Raise UsageError if jobs wait with a topic that no handler accepts."""
        for topic, _ in self._engine.unserved():
            name = str(Topic.from_wire(topic))
            raise UsageError(f"put({name!r}): no app of the test works on this topic")

    def close(self) -> None:
        """Drop all jobs."""
        self._engine.close()
        self._reports.close()
