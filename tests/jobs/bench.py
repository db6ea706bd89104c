"""An owner of jobs and workers without sockets, for tests."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from twisted.internet.task import Clock

from zroute.errors import UnknownPeerError
from zroute.jobs.owner import Job, JobOwner, OwnedQueue, Settings
from zroute.messages.jobs import DONE, FAILED, GIVEN_BACK, JOB, OFFER, REJECTED, pack_offer
from zroute.messages.topics import parse
from zroute.throttle import ThrottledLog

__all__ = ["Bench"]


class Bench:
    """An owner with one queue, whose workers are played by the test.

    Messages to a worker that is in ``gone`` can't be sent.
    """

    def __init__(self, pattern: str = "jobs.{kind}", **settings: object) -> None:
        self.clock = Clock()
        self.sent: list[tuple[bytes, bytes, tuple[bytes, ...]]] = []
        self.gone: set[bytes] = set()
        self.given_up: list[tuple[bytes, int, str]] = []
        log = ThrottledLog(logging.getLogger("zroute"), self.clock)
        self.owner = JobOwner(self.clock, self.send, log, "farm")
        self.queue = self.add(pattern, **settings)
        self.owner.start()

    def add(self, pattern: str, **settings: object) -> OwnedQueue:
        """Add a queue."""
        return self.owner.add(Settings(pattern, **settings), self.give_up)  # type: ignore[arg-type]

    def give_up(self, job: Job, text: str) -> None:
        """Note a job that was given up."""
        self.given_up.append((job.topic, job.attempt, text))

    def send(self, worker: bytes, parts: Sequence[bytes]) -> None:
        """Send a message of the owner."""
        if worker in self.gone:
            raise UnknownPeerError("gone")
        self.sent.append((worker, parts[0], tuple(parts[1:])))

    # -- the workers -----------------------------------------------------------------------------------------

    def offer(self, worker: bytes, *offered: tuple[int, str], kind: bytes = OFFER) -> None:
        """Send an offer: credits and patterns."""
        packed = pack_offer([(credits, [parse(text) for text in texts.split()]) for credits, texts in offered])
        self.owner.received(worker, [kind, packed])

    def jobs(self, worker: bytes | None = None) -> list[bytes]:
        """Return the ids of the jobs that were sent to a worker, or to all, since the last call; forget all others."""
        found = [parts[0] for to, kind, parts in self.sent if kind == JOB and worker in (None, to)]
        self.sent.clear()
        return found

    def topics(self, worker: bytes | None = None) -> list[bytes]:
        """Return the topics of the jobs that were sent, like `jobs`."""
        found = [parts[1] for to, kind, parts in self.sent if kind == JOB and worker in (None, to)]
        self.sent.clear()
        return found

    def kinds(self, worker: bytes) -> list[bytes]:
        """Return the kinds of all messages to a worker, and forget all others."""
        found = [kind for to, kind, _ in self.sent if to == worker]
        self.sent.clear()
        return found

    def done(self, worker: bytes, id: bytes) -> None:
        """Report a job as done."""
        self.owner.received(worker, [DONE, id])

    def fail(self, worker: bytes, id: bytes, text: bytes = b"OSError: no") -> None:
        """Report a failure."""
        self.owner.received(worker, [FAILED, id, text])

    def reject(self, worker: bytes, id: bytes, text: bytes = b"no") -> None:
        """Reject a job."""
        self.owner.received(worker, [REJECTED, id, text])

    def give_back(self, worker: bytes, id: bytes) -> None:
        """Give a job back."""
        self.owner.received(worker, [GIVEN_BACK, id])

    def put(self, *topics: bytes) -> None:
        """Put a job of each topic."""
        for topic in topics:
            self.queue.put(topic, 2, b"{}")
