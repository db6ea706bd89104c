"""An owner and a worker that exchange all their messages, in memory and with a virtual clock."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence

from twisted.internet.task import Clock

from tests.jobs.bench import Bench
from zroute.jobs.worker import JobWorker, WorkerJob, WorkLane
from zroute.messages.jobs import ALIVE, OFFER, UNKNOWN
from zroute.messages.topics import parse
from zroute.stats import JobStats
from zroute.throttle import ThrottledLog

ID = b"worker"


class Farm(Bench):
    """An owner, and one real worker. Messages stay in their queues until `deliver`."""

    def __init__(self, max_in_flight: int, **settings: object) -> None:
        self.to_owner: deque[list[bytes]] = deque()
        self.to_worker: deque[list[bytes]] = deque()
        self.kinds_sent: Counter[bytes] = Counter()
        self.running: list[WorkerJob] = []
        super().__init__("jobs.x", **settings)
        self.own_clock = Clock()  # of the worker: its process can freeze
        self.lane = WorkLane("h", "farm.py:3", [parse("jobs.x")], max_in_flight, self.running.extend)
        log = ThrottledLog(logging.getLogger("zroute"), self.clock)
        self.worker = JobWorker(
            self.own_clock, self.tell, [self.lane], lambda topic: self.lane, log, "tcp://owner:1", "app"
        )
        self.worker.connected()
        self.deliver()

    def send(self, worker: bytes, parts: Sequence[bytes]) -> None:
        """Send a message of the owner."""
        self.kinds_sent[parts[0]] += 1
        self.to_worker.append(list(parts))

    def tell(self, parts: Sequence[bytes]) -> bool:
        """Send a message of the worker."""
        self.kinds_sent[parts[0]] += 1
        self.to_owner.append(list(parts))
        return True

    def deliver(self) -> None:
        """Deliver messages until there are none, first all that wait in one direction, then all in the other."""
        rounds = 0
        while self.to_owner or self.to_worker:
            rounds += 1
            assert rounds < 1000, "the messages do not end"
            for _ in range(len(self.to_owner)):
                self.owner.received(ID, self.to_owner.popleft())
            for _ in range(len(self.to_worker)):
                self.worker.received(self.to_worker.popleft())

    def end_all(self) -> None:
        """End all jobs that run."""
        running = list(self.running)
        self.running.clear()
        for job in running:
            job.done()

    def work_off(self) -> None:
        """Do jobs until there are none."""
        while self.running:
            self.end_all()
            self.deliver()


def woken(reports: int) -> Farm:
    """Return a farm whose worker was frozen, and has just ended this number of jobs; others wait at the owner.

    If the number is 0, its 50 jobs still run.
    """
    farm = Farm(reports or 50)
    farm.put(*[b"jobs.x"] * 200)
    farm.deliver()
    assert len(farm.running) == (reports or 50)
    farm.clock.pump([1.0] * 15)
    assert farm.owner.workers == 0
    farm.kinds_sent.clear()
    farm.to_worker.clear()
    if reports:
        farm.own_clock.rightNow += 15.0
        farm.end_all()
    return farm


def test_a_worker_that_wakes_up_with_many_reports_makes_one_offer() -> None:
    """All its reports together are answered once, and no job is given up."""
    farm = woken(reports=50)
    farm.deliver()
    assert (farm.kinds_sent[UNKNOWN], farm.kinds_sent[OFFER]) == (1, 1)
    farm.work_off()
    assert farm.given_up == []
    assert (farm.queue.stats.put, farm.queue.stats.done, farm.queue.stats.failed) == (200, 200, 0)
    assert farm.worker.malformed == 0


def test_a_worker_that_is_told_many_times_makes_one_offer() -> None:
    """It does not offer again while the owner has not read its offer."""
    farm = woken(reports=50)
    farm.to_worker.extend([UNKNOWN] for _ in range(50))
    farm.deliver()
    assert farm.kinds_sent[OFFER] == 1
    farm.work_off()
    assert (farm.queue.stats.done, farm.given_up) == (200, [])


def test_jobs_that_end_while_they_are_given_to_their_worker_again_are_done_once() -> None:
    """The worker does not begin them again: its reports and the jobs cross on their way."""
    farm = woken(reports=0)
    assert farm.queue.stats.done == 0
    farm.worker.received([UNKNOWN])
    while farm.to_owner:
        farm.owner.received(ID, farm.to_owner.popleft())
    assert farm.queue.stats.in_flight > len(farm.running)
    farm.end_all()
    farm.deliver()
    farm.work_off()
    stats = farm.queue.stats
    assert (stats.done, stats.done_twice, stats.given_back) == (200, 0, 0)


def test_a_report_over_a_new_connection_counts_when_the_old_one_is_lost() -> None:
    """The worker reconnects and ends its job before the owner notices the end of the old connection."""
    farm = Farm(1)
    farm.put(b"jobs.x")
    farm.deliver()
    farm.worker.disconnected()
    farm.worker.connected()
    farm.end_all()
    while farm.to_owner:
        farm.owner.received(b"new connection", farm.to_owner.popleft())
    assert farm.queue.stats.in_flight == 1
    farm.owner.ended(ID)
    assert farm.queue.stats == JobStats(put=1, done=1)


def test_a_worker_that_begins_again_many_times_ends_no_job() -> None:
    """Its process lives, so that its jobs can't have ended it."""
    bench = Bench()
    bench.put(b"jobs.1")
    for _ in range(50):
        bench.offer(ID, (1, "jobs.*"))
    bench.done(ID, bench.jobs()[-1])
    assert (bench.given_up, bench.queue.stats) == ([], JobStats(put=1, done=1, redelivered=49))


def test_a_worker_that_was_refused_offers_again_after_a_while() -> None:
    """An owner with too many workers never answers an offer."""
    farm = Farm(1)
    farm.owner.ended(ID)
    farm.worker.connected()
    farm.to_owner.clear()  # refused
    for _ in range(12):
        farm.own_clock.advance(1.0)
        farm.clock.advance(1.0)
        farm.deliver()
    assert farm.owner.workers == 1
    assert farm.kinds_sent[ALIVE] > 0
