"""The scheduler: who gets which job, compared with a naive model; and how much work a message can cause."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import attrs
import pytest

from tests.jobs.bench import Bench
from zroute.jobs.pattern_index import PatternIndex
from zroute.jobs.scheduler import Lane, Scheduler, _Group
from zroute.messages.jobs import CHANGED, OFFER, Offered
from zroute.messages.topics import matches, parse
from zroute.options import REGROUP_SECONDS, REGROUP_STEPS

OFFERS = (
    "a.*",
    "a.1; a.*",
    "a.*; a.1",
    ">",
    "b.*; *.2",
    "*.1; a.>; b.3",
    "b.1 a.2; b.2 a.1; >",
    "c.* c.1",
    "a.*; a.*",
)
"""Entries with their patterns."""


@attrs.define(eq=False)
class Job:
    """A job of the scheduler."""

    topic: bytes
    order: int = 0
    lane: Lane | None = None
    next: Any = None


@attrs.define(eq=False)
class Worker:
    """A worker of the model."""

    kind: str
    entries: list[Offered]
    lanes: tuple[Lane, ...] = ()

    def lane(self, topic: bytes) -> Lane | None:
        """Return the lane of the first entry that accepts a topic."""
        pairs = zip(self.lanes, self.entries, strict=True)
        return next((lane for lane, each in pairs if any(matches(p, topic) is not None for p in each.patterns)), None)


class Model:
    """A scheduler, and a list of all jobs and workers that judges each decision."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.scheduler: Scheduler[Job] = Scheduler()
        self.waiting: list[Job] = []
        self.taken: list[Job] = []
        self.workers: list[Worker] = []
        self.kinds: dict[str, list[Offered]] = {}
        self.turns: dict[Lane, int] = {}
        self.held: set[bytes] = set()
        self.left = False

    def topic(self) -> bytes:
        """Return a random topic."""
        return b"%c.%d" % (self.random.choice(b"abc"), self.random.randint(1, 3))

    def offer(self, kind: str) -> list[Offered]:
        """Return an offer with random credits."""
        entries = [tuple(map(parse, texts.split())) for texts in kind.split("; ")]
        return [Offered(self.random.randrange(4), patterns) for patterns in entries]

    def act(self) -> None:
        """Do anything that may happen."""
        random = self.random
        action = random.randrange(12)
        if action <= 3:
            job = Job(self.topic())
            self.scheduler.put(job)
            self.waiting.append(job)
        elif action == 4 and self.taken:
            random.shuffle(self.taken)
            back = [self.taken.pop() for _ in range(random.randint(1, min(3, len(self.taken))))]
            for job in back:
                self.leave(job)
            self.scheduler.put_back(back)
            self.waiting[:0] = back
        elif action == 5 and self.waiting:
            job = self.waiting.pop(random.randrange(len(self.waiting)))
            self.scheduler.remove(job)
        elif action == 6:
            kind = random.choice(OFFERS)
            worker = Worker(kind, self.offer(kind))
            worker.lanes = self.scheduler.open(worker, worker.entries)
            self.workers.append(worker)
            self.kinds[kind] = worker.entries
        elif action == 7 and self.workers:
            worker = self.workers.pop(random.randrange(len(self.workers)))
            self.scheduler.close(worker.lanes)
            self.left = True
        elif action == 10:
            topic = self.topic()
            self.held.add(topic)
            self.scheduler.hold(topic)
        elif action == 11:
            for topic in self.held & {self.topic(), self.topic(), self.topic()}:
                self.held.discard(topic)
                self.scheduler.release(topic)
        elif self.taken:
            self.leave(self.taken.pop(random.randrange(len(self.taken))))

    def leave(self, job: Job) -> None:
        """End a job at its worker."""
        assert job.lane is not None
        job.lane.unfinished -= 1
        self.scheduler.freed(job.lane)
        job.lane = None

    def take_all(self, *, complete: bool) -> None:
        """Take jobs while the scheduler finds any, and check each decision.

        If ``complete``, all waiting topics were looked up, so that no job may be left that a lane has credit for.
        """
        while True:
            free = {lane: lane.unfinished < lane.limit for worker in self.workers for lane in worker.lanes}
            taken = self.scheduler.take()
            if taken is None:
                break
            job, lane = taken
            accepting = [each for worker in self.workers if (each := worker.lane(job.topic)) is not None]
            assert lane in accepting
            assert job.topic not in self.held
            assert free[lane]
            assert job is next(each for each in self.waiting if each.topic == job.topic)
            if complete:
                assert self.turns.get(lane, 0) == min(self.turns.get(each, 0) for each in accepting if free[each])
                if not self.left:
                    same = self.slots(job.topic)
                    assert job is next(each for each in self.waiting if self.slots(each.topic) == same)
            self.waiting.remove(job)
            self.taken.append(job)
            self.turns[lane] = max(self.turns.values(), default=0) + 1
        if complete:
            for job in (each for each in self.waiting if each.topic not in self.held):
                lanes = [worker.lane(job.topic) for worker in self.workers]
                assert not [each for each in lanes if each is not None and each.unfinished < each.limit]

    def slots(self, topic: bytes) -> list[int | None]:
        """Return the first entry that accepts a topic, for each kind of worker."""
        if topic in self.held:
            return []
        return [
            next((n for n, each in enumerate(kind) if any(matches(p, topic) is not None for p in each.patterns)), None)
            for kind in self.kinds.values()
        ]

    def unserved(self) -> int:
        """Return the number of waiting jobs that no worker accepts."""
        return sum(
            job.topic in self.held or all(worker.lane(job.topic) is None for worker in self.workers)
            for job in self.waiting
        )


@pytest.mark.parametrize("seed", range(60))
def test_each_decision_equals_that_of_a_naive_model(seed: int) -> None:
    """Whatever workers do, a job goes to the right lane, in the right order, and no job waits beside a free lane."""
    model = Model(Random(seed))
    for _ in range(400):
        model.act()
        assert model.scheduler.regroup(10**6) > 0
        model.take_all(complete=True)
        assert sum(number for _, number in model.scheduler.unserved()) == model.unserved()
        assert sum(group.number for group in model.scheduler._groups.values()) == len(model.waiting)
    assert len(model.scheduler._kinds) <= len(OFFERS)


@pytest.mark.parametrize("seed", range(60))
def test_slow_look_ups_lose_no_job(seed: int) -> None:
    """While topics wait for their look-up, each decision is allowed; after the last look-up, no job is forgotten."""
    model = Model(Random(seed))
    for _ in range(400):
        model.act()
        model.scheduler.regroup(model.random.randrange(4))
        model.take_all(complete=False)
    assert model.scheduler.regroup(10**6) > 0
    model.take_all(complete=True)
    assert sum(number for _, number in model.scheduler.unserved()) == model.unserved()


def test_topics_take_turns_at_a_worker_with_one_credit() -> None:
    """Jobs that only one kind of worker accepts do not wait for all jobs that two kinds accept."""
    scheduler: Scheduler[Job] = Scheduler()
    (closed,) = scheduler.open("closed", [Offered(0, (parse("a"),))])
    (lane,) = scheduler.open("open", [Offered(1, (parse("*"),))])
    for topic in (b"a", b"a", b"a", b"b", b"b", b"b"):
        scheduler.put(Job(topic))
    topics = []
    while (taken := scheduler.take()) is not None:
        topics.append(taken[0].topic)
        lane.unfinished -= 1
        scheduler.freed(lane)
    assert topics == [b"a", b"b"] * 3
    assert not closed.unfinished


def test_a_new_worker_gets_later_jobs_of_a_known_topic_at_once() -> None:
    """A topic without jobs is looked up for new patterns at its next job, not when its turn comes."""
    scheduler: Scheduler[Job] = Scheduler()
    (first,) = scheduler.open("first", [Offered(1, (parse("a"),))])
    scheduler.put(Job(b"a"))
    assert scheduler.take() is not None
    (second,) = scheduler.open("second", [Offered(1, (parse("*"),))])
    scheduler.put(Job(b"a"))
    taken = scheduler.take()
    assert taken is not None
    assert taken[1] is second
    assert first.unfinished == 1


# -- the work that a message causes ----------------------------------------------------------------------


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The topics that were looked up."""
    topics: list[bytes] = []
    find = PatternIndex.find

    def noted(self: PatternIndex[Any], topic: bytes) -> Any:
        topics.append(topic)
        return find(self, topic)

    monkeypatch.setattr(PatternIndex, "find", noted)
    return topics


def patterns(number: int, many: int = 100) -> str:
    """Return patterns that no other worker has."""
    return " ".join(f"zzz.{number}.{place}" for place in range(many))


def test_offers_of_new_patterns_cause_a_limited_number_of_look_ups(look_ups: list[bytes]) -> None:
    """However many workers change their patterns, topics are looked up in slices, and each once for all changes."""
    bench, waiting, workers = Bench(waiting=10**6), 10_000, 50
    bench.put(*[b"jobs.%d" % number for number in range(waiting)])
    assert len(look_ups) == waiting  # one for each new topic, with any number of patterns
    look_ups.clear()
    for number in range(3 * workers):
        bench.offer(b"w%d" % (number % workers), (0, patterns(number)), kind=CHANGED if number >= workers else OFFER)
        assert len(look_ups) <= REGROUP_STEPS
    bench.offer(b"good", (10, "jobs.9999"))
    slices = []
    for _ in range(20):
        before = len(look_ups)
        bench.clock.advance(REGROUP_SECONDS)
        slices.append(len(look_ups) - before)
    assert max(slices) <= REGROUP_STEPS
    assert len(look_ups) <= 2 * waiting
    assert bench.topics(b"good") == [b"jobs.9999"]


def test_workers_that_change_their_patterns_all_the_time_delay_others_for_a_limited_time(look_ups: list[bytes]) -> None:
    """A worker with a new pattern gets its job after one look-up of each topic, even if offers never end."""
    bench, waiting, turns = Bench(waiting=10**6), 10_000, 0
    bench.put(*[b"jobs.%d" % number for number in range(waiting)])
    bench.offer(b"liar", (0, patterns(0)))
    bench.offer(b"good", (10, "jobs.777"))
    look_ups.clear()
    while not any(to == b"good" and kind == b"J" for to, kind, _ in bench.sent):
        turns += 1
        bench.offer(b"liar", (0, patterns(turns)), kind=CHANGED)
        bench.clock.advance(REGROUP_SECONDS)
    assert len(look_ups) <= waiting + REGROUP_STEPS


def test_an_offer_of_known_patterns_causes_no_look_up(look_ups: list[bytes]) -> None:
    """More workers of a known kind, other credits, and a stop look at no waiting topic."""
    bench = Bench(waiting=10**6)
    bench.offer(b"a", (0, "jobs.*"), (0, "other.*"))
    bench.put(*[b"jobs.%d" % number for number in range(1000)])
    look_ups.clear()
    for number in range(100):
        bench.offer(b"w%d" % number, (0, "jobs.*"), (0, "other.*"))
        bench.offer(b"w%d" % number, (1, "jobs.*"), (0, "other.*"), kind=CHANGED)
    bench.offer(b"a", kind=CHANGED)
    bench.clock.advance(1.0)
    assert not look_ups
    assert bench.queue.stats.in_flight == 100


def test_a_report_does_not_look_at_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that divides the topics into thousands of groups does not make the jobs of others more expensive."""
    bench, tried = Bench(waiting=10**6), Counter[Any]()
    bench.offer(b"good", (1, "jobs.*"))
    for number in range(20):
        bench.offer(b"w%d" % number, *[(0, f"jobs.{100 * number + place}") for place in range(100)])
    bench.put(*[b"jobs.%d" % number for number in range(2000)])
    scheduler = bench.owner._scheduler
    assert len(scheduler._groups) == 2000
    first = _Group.first

    def counted(group: Any) -> Any:
        tried[group] += 1
        return first(group)

    monkeypatch.setattr(_Group, "first", counted)
    for _ in range(100):
        (id,) = bench.jobs(b"good")
        bench.done(b"good", id)
    assert tried.total() == 100


def test_changes_of_patterns_leave_nothing_behind() -> None:
    """Topics that move between groups with each offer leave no groups and no entries in heaps behind."""
    bench = Bench(waiting=10**6)
    bench.offer(b"good", (1, "jobs.*"))
    bench.put(*[b"jobs.%d" % number for number in range(100)])
    for number in range(200):
        bench.offer(b"liar", (0, f"jobs.{number % 100} {patterns(number, 99)}"), kind=CHANGED if number else OFFER)
        bench.clock.advance(REGROUP_SECONDS)
    scheduler = bench.owner._scheduler
    assert len(scheduler._kinds) <= 3
    assert len(scheduler._keys) == len(scheduler._kinds)
    assert len(scheduler._groups) <= 3
    assert sum(len(group.heap) for group in scheduler._groups.values()) < 250
    assert len(bench.owner._workers[b"good"].lanes[0].slot.waiting) <= 3


def test_topics_without_jobs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of topics is bounded, and waiting topics stay in it."""
    monkeypatch.setattr("zroute.jobs.scheduler.TOPICS_NOTED", 50)
    bench = Bench(waiting=10**6)
    bench.put(*[b"jobs.wait.%d" % number for number in range(30)])
    bench.offer(b"a", (1, "jobs.*"))
    for number in range(1000):
        bench.put(b"jobs.%d" % number)
        bench.done(b"a", bench.jobs(b"a")[-1])
    assert len(bench.owner._scheduler._topics) <= 100
    bench.offer(b"b", (100, "jobs.wait.*"))
    assert len(bench.jobs(b"b")) == 30
