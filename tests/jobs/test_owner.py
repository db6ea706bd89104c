"""The owner of jobs: who gets them, and what happens to them when workers fail, end or lie."""

from __future__ import annotations

import logging
import os
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.jobs.bench import Bench
from zroute.errors import EncodeError, EnvelopeError, HighWaterMarkError, NotRunningError
from zroute.messages.jobs import ACCEPTED, ALIVE, CHANGED, DONE, JOB, OFFER, STOPPED, UNKNOWN, pack_job_meta, parse_job
from zroute.options import JOB_LOSSES
from zroute.stats import JobStats

A, B, C = b"a", b"b", b"c"


def sum_of(stats: JobStats) -> int:
    """Return the sum of the states of all jobs."""
    return stats.waiting + stats.in_flight + stats.done + stats.failed + stats.dropped_at_shutdown


# -- sharing ---------------------------------------------------------------------------------------------


def test_a_worker_gets_jobs_up_to_its_credits() -> None:
    """A worker never has more unfinished jobs than it accepts, and gets the next one with its report."""
    bench = Bench()
    bench.offer(A, (2, "jobs.*"))
    bench.put(*[b"jobs.%d" % i for i in range(4)])
    first, second = bench.jobs(A)
    assert (bench.queue.stats.in_flight, bench.queue.stats.waiting) == (2, 2)
    bench.done(A, second)
    (third,) = bench.jobs(A)
    bench.done(A, first)
    bench.done(A, third)
    (fourth,) = bench.jobs(A)
    bench.done(A, fourth)
    assert bench.queue.stats == JobStats(put=4, done=4)


def test_a_job_is_sent_as_it_was_put() -> None:
    """A job carries topic, body, codec, attempt and headers."""
    bench = Bench()
    bench.queue.put(b"jobs.a", 2, b"{}", {"trace": "7"})
    bench.offer(A, (1, "jobs.*"))
    (sent,) = [parts for _, kind, parts in bench.sent if kind == JOB]
    job = parse_job([JOB, *sent])
    assert (job.topic, job.body, job.codec, job.attempt, job.headers) == (
        b"jobs.a",
        b"{}",
        2,
        1,
        b"\x81\xa5trace\xa17",
    )


def test_the_least_recently_served_worker_gets_the_job() -> None:
    """Workers with credit take turns, also if one of them finishes earlier."""
    bench = Bench()
    for worker in (A, B, C):
        bench.offer(worker, (10, "jobs.*"))
    bench.sent.clear()
    bench.put(*[b"jobs.x"] * 6)
    assert [to for to, _, _ in bench.sent] == [A, B, C, A, B, C]
    bench.done(B, bench.jobs(B)[0])
    bench.put(b"jobs.x", b"jobs.x")
    assert [to for to, _, _ in bench.sent] == [A, B]


def test_a_worker_only_gets_jobs_of_its_patterns() -> None:
    """A job waits until a worker comes that accepts its topic; others overtake it."""
    bench = Bench("{rest}.{kind}")
    bench.offer(A, (5, "jobs.resize"))
    bench.put(b"jobs.crop", b"jobs.resize", b"other.x")
    assert bench.topics() == [b"jobs.resize"]
    bench.offer(B, (5, "jobs.*"))
    assert bench.topics() == [b"jobs.crop"]
    bench.offer(C, (5, ">"))
    assert bench.topics() == [b"other.x"]


def test_the_first_matching_entry_of_an_offer_counts() -> None:
    """A handler for one topic and one for all have credits of their own."""
    bench = Bench()
    bench.offer(A, (1, "jobs.resize"), (1, "jobs.*"))
    bench.put(b"jobs.resize", b"jobs.resize", b"jobs.crop")
    assert bench.topics() == [b"jobs.resize", b"jobs.crop"]


def test_queues_take_turns_at_a_worker() -> None:
    """A queue of many jobs does not delay the jobs of another one."""
    bench = Bench("a.{x}")
    other = bench.add("b.{x}")
    bench.put(*[b"a.1"] * 10)
    for _ in range(2):
        other.put(b"b.1", 1, b"")
    bench.offer(A, (4, "a.*"))
    bench.offer(B, (4, "b.* a.*"))
    assert bench.topics(B).count(b"b.1") == 2


def test_an_offer_with_other_credits_counts_at_once() -> None:
    """A worker may accept more or fewer jobs later; those that it has still count."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.put(*[b"jobs.x"] * 6)
    first = bench.jobs(A)
    bench.offer(A, (3, "jobs.*"), kind=CHANGED)
    more = bench.jobs(A)
    assert (len(first), len(more)) == (1, 2)
    bench.offer(A, (1, "jobs.*"), kind=CHANGED)
    for id in (*first, *more):
        assert bench.jobs(A) == []
        bench.done(A, id)
    assert len(bench.jobs(A)) == 1


def test_an_offer_with_other_patterns_keeps_unfinished_jobs() -> None:
    """Unfinished jobs count against the credits of the new entry that accepts them."""
    bench = Bench()
    bench.offer(A, (2, "jobs.*"))
    bench.put(*[b"jobs.x"] * 5)
    ids = bench.jobs(A)
    bench.offer(A, (3, "jobs.x"), (1, "jobs.*"), kind=CHANGED)
    ids += bench.jobs(A)
    assert len(ids) == 3
    for id in ids:
        bench.done(A, id)
    assert bench.queue.stats.done == 3


# -- room ------------------------------------------------------------------------------------------------


def test_a_job_waits_for_room() -> None:
    """`put` is done when the job is added; `put_nowait` raises an error that says what to do."""
    bench = Bench(waiting=2)
    bench.put(b"jobs.1", b"jobs.2")
    put = Deferred.fromCoroutine(_awaited(bench.queue.put(b"jobs.3", 1, b"")))
    assert not put.called
    with pytest.raises(
        HighWaterMarkError, match=r"the job queue 'jobs\.{kind}' is full \(2 waiting jobs\): await put\(\)"
    ):
        bench.queue.put_nowait(b"jobs.4", 1, b"")
    bench.offer(A, (1, "jobs.*"))
    bench.done(A, bench.jobs(A)[0])
    assert put.called
    assert bench.queue.stats.put == 3


def test_a_cancelled_put_adds_nothing() -> None:
    """A job whose `put` was cancelled is not added when there is room."""
    bench = Bench(waiting=1)
    bench.put(b"jobs.1")
    put = Deferred.fromCoroutine(_awaited(bench.queue.put(b"jobs.2", 1, b"")))
    put.addErrback(lambda _: None)
    put.cancel()
    bench.offer(A, (5, "jobs.*"))
    assert bench.topics() == [b"jobs.1"]


@pytest.mark.parametrize("end", ["close", "room"])
def test_a_put_may_be_cancelled_while_another_one_ends(end: str) -> None:
    """A callback of one put that cancels the next one changes only that one."""
    bench = Bench(waiting=1)
    bench.put(b"jobs.1")
    ended: list[object] = []
    puts = [Deferred.fromCoroutine(_awaited(bench.queue.put(b"jobs.%d" % number, 1, b""))) for number in (2, 3, 4)]
    puts[0].addBoth(lambda _: puts[1].cancel())
    for put in puts:
        put.addBoth(lambda result: ended.append(getattr(result, "type", None)))
    if end == "close":
        bench.owner.close()
        assert ended == [CancelledError, None, NotRunningError]
    else:
        bench.offer(A, (9, "jobs.*"))
        assert bench.topics() == [b"jobs.1", b"jobs.2", b"jobs.4"]


def test_a_late_report_makes_room_at_once() -> None:
    """A job that a lost worker has done leaves its place to one that waits for room."""
    for late in (b"stranger", b"other"):
        bench = Bench(waiting=1)
        bench.offer(A, (1, "jobs.*"))
        bench.put(b"jobs.1")
        (id,) = bench.jobs(A)
        bench.owner.ended(A)
        put = Deferred.fromCoroutine(_awaited(bench.queue.put(b"jobs.2", 1, b"")))
        if late == b"other":
            bench.offer(late, (1, "other"))
        assert not put.called
        bench.done(late, id)
        assert put.called


def test_headers_are_those_of_the_put() -> None:
    """What the caller does with its dictionary later changes no further attempt."""
    bench = Bench(retry=(1,))
    headers: dict[str, Any] = {"a": 1}
    bench.queue.put_nowait(b"jobs.1", 2, b"{}", headers)
    bench.offer(A, (1, "jobs.*"))
    headers["b"] = object()
    first = bench.sent[-1][2]
    bench.fail(A, first[0])
    bench.clock.advance(2.0)
    assert bench.sent[-1][2][-1] == pack_job_meta(2, 2, {"a": 1})


def test_invalid_headers_are_an_error_of_the_caller() -> None:
    """Nothing is added for a job that can't be sent."""
    bench = Bench()
    with pytest.raises(EncodeError):
        bench.queue.put(b"jobs.1", 1, b"", {"x": object()})
    assert bench.queue.stats.put == 0


async def _awaited(put: Any) -> None:
    await put


# -- failures --------------------------------------------------------------------------------------------


def test_a_failed_job_is_tried_again_after_its_delays() -> None:
    """Each attempt has its number, and after the last one the job is given up."""
    bench = Bench(retry=(1, 5))
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.x")
    for attempt, delay in ((1, 1.0), (2, 5.0), (3, 0.0)):
        (sent,) = [parts for _, kind, parts in bench.sent if kind == JOB]
        bench.sent.clear()
        assert parse_job([JOB, *sent]).attempt == attempt
        bench.fail(A, sent[0])
        bench.owner.received(A, [ALIVE])
        assert bench.jobs() == []
        bench.clock.advance(delay)
    assert bench.given_up == [(b"jobs.x", 3, "OSError: no")]
    assert bench.queue.stats == JobStats(put=1, failed=1, retried=2)


def test_a_job_that_is_tried_again_is_before_younger_ones() -> None:
    """A retry does not go behind all waiting jobs."""
    bench = Bench(retry=(1,))
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1", b"jobs.2", b"jobs.3")
    bench.fail(A, bench.jobs()[0])
    second = bench.jobs()[0]
    bench.clock.advance(1)
    bench.sent.clear()
    bench.done(A, second)
    assert bench.topics() == [b"jobs.1"]


def test_a_rejected_job_is_given_up_at_once() -> None:
    """A worker can say that further attempts are useless."""
    bench = Bench(retry=(1, 5))
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.x")
    bench.reject(A, bench.jobs()[0])
    assert bench.given_up == [(b"jobs.x", 1, "no")]


def test_a_hostile_text_is_escaped_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The text of a failure can't control a terminal or forge a line."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.x")
    bench.fail(A, bench.jobs()[0], b"\x1b[2J\nERROR forged" + b"x" * 5000)
    (line,) = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert "\x1b" not in line
    assert "\n" not in line
    assert len(line) < 1500


def test_a_given_back_job_is_the_next_one() -> None:
    """A stopping worker gives a job back, and another worker gets it, as the same attempt."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1", b"jobs.2")
    (first,) = bench.jobs(A)
    bench.offer(A, kind=CHANGED)
    bench.give_back(A, first)
    bench.offer(B, (2, "jobs.*"))
    assert bench.topics(B) == [b"jobs.1", b"jobs.2"]
    assert bench.queue.stats.given_back == 1


# -- lost workers ----------------------------------------------------------------------------------------


def test_the_jobs_of_a_worker_that_disconnects_are_given_to_others() -> None:
    """They are given at once, in their order, and counted."""
    bench = Bench()
    bench.offer(A, (2, "jobs.*"))
    bench.put(b"jobs.1", b"jobs.2", b"jobs.3")
    bench.offer(B, (1, "jobs.*"))
    bench.sent.clear()
    bench.owner.ended(A)
    bench.done(B, bench.owner._workers[B].jobs.copy().popitem()[0])
    assert bench.topics(B) == [b"jobs.1"]
    assert (bench.queue.stats.redelivered, bench.owner.workers) == (2, 1)


def test_a_worker_that_begins_again_has_no_jobs() -> None:
    """A process that was restarted with the same identity gets the jobs of its predecessor again."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1")
    first = bench.jobs(A)
    bench.offer(A, (1, "jobs.*"))
    assert bench.jobs(A) == first
    assert bench.queue.stats.redelivered == 1


def test_a_worker_that_can_not_be_sent_to_is_lost() -> None:
    """A failed send means that the connection has ended; the job goes to another worker."""
    bench = Bench()
    for worker in (A, B, C):
        bench.offer(worker, (1, "jobs.*"))
    bench.gone |= {A, B}
    bench.sent.clear()
    bench.put(b"jobs.1")
    assert [to for to, _, _ in bench.sent] == [C]
    assert bench.owner.workers == 1


def test_a_thousand_workers_that_end_together_are_no_problem() -> None:
    """All jobs wait again when no send succeeds any more."""
    bench = Bench()
    workers = [b"w%d" % i for i in range(1000)]
    for worker in workers:
        bench.offer(worker, (2, "jobs.*"))
    bench.put(*[b"jobs.x"] * 3000)
    bench.gone.update(workers)
    bench.clock.pump([1.0] * 3)
    assert bench.owner.workers == 0
    assert bench.queue.stats.waiting == 3000


def test_a_silent_worker_loses_its_jobs() -> None:
    """A worker without a sign of life loses its jobs after ``silent_after``; one that gives signs keeps them."""
    bench = Bench(silent_after=10.0)
    bench.offer(A, (1, "jobs.*"))
    bench.offer(B, (1, "jobs.*"))
    bench.put(b"jobs.1", b"jobs.2")
    for _ in range(13):
        bench.clock.advance(1.0)
        bench.owner.received(B, [ALIVE])
    assert (bench.owner.workers, bench.queue.stats.redelivered) == (1, 1)


def test_an_owner_that_was_frozen_judges_no_worker() -> None:
    """Signs of life that arrived meanwhile are still unread."""
    bench = Bench(silent_after=10.0)
    bench.offer(A, (1, "jobs.*"))
    bench.clock.advance(60.0)
    assert bench.owner.workers == 1


def test_an_owner_that_does_not_watch_its_workers_waits_for_the_transport() -> None:
    """A silent worker keeps its jobs if the transport decides when it loses them."""
    bench = Bench(silent_after=10.0)
    bench.owner.watches_workers = False
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.x")
    bench.clock.pump([1.0] * 60)
    assert (bench.queue.stats.in_flight, bench.queue.stats.redelivered, bench.owner.workers) == (1, 0, 1)


def test_a_silent_worker_that_wakes_up_is_told() -> None:
    """It gets a question, and its report counts once."""
    bench = Bench(silent_after=2.0)
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1")
    (id,) = bench.jobs(A)
    bench.clock.pump([0.5] * 6)
    bench.offer(B, (1, "jobs.*"))
    assert bench.jobs(B) == [id]
    bench.owner.received(A, [ALIVE])
    assert bench.kinds(A) == [UNKNOWN]
    bench.done(B, id)
    bench.done(A, id)
    assert bench.queue.stats == JobStats(put=1, done=1, redelivered=1, done_twice=1)
    bench.offer(A, (1, "jobs.*"))
    assert bench.kinds(A) == [ACCEPTED]


@pytest.mark.parametrize("state", ["waiting", "in flight", "delayed"])
def test_a_late_report_ends_a_job_that_is_not_done_yet(state: str) -> None:
    """The work of a worker that had lost a job counts, wherever the job is meanwhile."""
    bench = Bench(silent_after=2.0, retry=(60,))
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1")
    (id,) = bench.jobs(A)
    bench.owner.ended(A)
    if state != "waiting":
        bench.offer(B, (1, "jobs.*"))
    if state == "delayed":
        bench.fail(B, id)
    bench.done(A, id)
    assert bench.queue.stats.done == 1
    assert sum_of(bench.queue.stats) == 1
    if state == "in flight":
        bench.done(B, id)
        assert bench.queue.stats.done_twice == 1
        bench.put(b"jobs.2")
        assert bench.topics(B)[-1:] == [b"jobs.2"]
    bench.clock.advance(100)
    assert sum_of(bench.queue.stats) == bench.queue.stats.put


def test_a_job_that_ends_its_workers_is_given_up() -> None:
    """A job that ends each process that works on it does not end all of them for ever."""
    bench = Bench()
    bench.put(b"jobs.x")
    for number in range(JOB_LOSSES + 5):
        worker = b"w%d" % number
        bench.offer(worker, (1, "jobs.*"))
        bench.owner.ended(worker)
    assert bench.given_up == [(b"jobs.x", 1, f"{JOB_LOSSES + 1} workers that had the job disconnected or were silent")]
    assert bench.queue.stats.redelivered == JOB_LOSSES


def test_a_job_that_no_worker_received_has_lost_none() -> None:
    """If many workers end together, jobs that can't be sent to them are neither given up nor counted as redelivered."""
    bench = Bench()
    workers = [b"w%d" % number for number in range(JOB_LOSSES + 5)]
    for worker in workers:
        bench.offer(worker, (1, "jobs.*"))
    bench.gone |= set(workers)
    bench.put(b"jobs.x")
    assert bench.given_up == []
    assert (bench.queue.stats.waiting, bench.queue.stats.redelivered, bench.owner.workers) == (1, 0, 0)
    bench.offer(A, (1, "jobs.*"))
    assert bench.topics(A) == [b"jobs.x"]


def test_a_closed_owner_tells_a_newcomer_that_it_has_stopped() -> None:
    """Between its close and that of its socket, a worker that offers is not accepted."""
    bench = Bench()
    bench.owner.close()
    bench.offer(A, (1, "jobs.*"))
    assert (bench.kinds(A), bench.owner.workers) == ([STOPPED], 0)
    assert bench.clock.getDelayedCalls() == []


# -- strangers and liars ---------------------------------------------------------------------------------


def test_reports_about_jobs_that_the_worker_does_not_have_change_nothing() -> None:
    """A worker can't end the jobs of others, nor jobs of another run."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.offer(B, (1, "jobs.*"))
    bench.put(b"jobs.1")
    (id,) = bench.jobs(A)
    for report in ([DONE, id], [b"F", id, b""], [b"R", id, b""], [b"G", id], [DONE, os.urandom(16)]):
        bench.owner.received(B, report)
    bench.owner.received(C, [DONE, id])
    assert (bench.queue.stats.in_flight, bench.queue.stats.done_twice, bench.owner.unknown) == (1, 0, 6)
    bench.done(A, id)
    bench.done(A, id)
    assert bench.queue.stats == JobStats(put=1, done=1, done_twice=1)


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"x"],
        [b"W"],
        [CHANGED],
        [b"D"],
        [DONE, b""],
        [ALIVE, b"x"],
        [OFFER, b"\2"],
        [b"F", b"i" * 16],
        [b"\xff" * 9000],
    ],
)
def test_malformed_messages_are_refused_and_counted(parts: list[bytes]) -> None:
    """A malformed message raises EnvelopeError only, and the worker keeps its jobs."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1")
    with pytest.raises(EnvelopeError):
        bench.owner.received(A, parts)
    assert (bench.owner.malformed, bench.queue.stats.in_flight) == (1, 1)
    if parts[0] == OFFER:
        with pytest.raises(EnvelopeError):
            bench.owner.received(B, parts)
        assert bench.owner.workers == 1


def test_workers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that pretend to be workers can't fill memory."""
    monkeypatch.setattr("zroute.jobs.owner.MAX_WORKERS", 3)
    bench = Bench()
    for number in range(10):
        bench.offer(b"w%d" % number, (1, "jobs.*"))
    assert bench.owner.workers == 3


def test_patterns_that_come_and_go_leave_nothing_behind() -> None:
    """Workers with a pattern of their own each are forgotten with their connection."""
    bench = Bench()
    bench.put(b"jobs.x")
    for number in range(200):
        bench.offer(b"w%d" % number, (1, f"p{number}"))
        bench.owner.ended(b"w%d" % number)
    assert len(bench.owner._scheduler._kinds) <= 2
    assert len(bench.owner._scheduler._groups) <= 2


# -- waiting without workers, and the stop ---------------------------------------------------------------


def test_workers_that_begin_again_leave_no_lanes_behind() -> None:
    """The heap of free lanes is bounded by the number of workers."""
    bench = Bench()
    for number in range(1000):
        bench.offer(A, (1, "other.*"))
        bench.offer(b"w%d" % number, (1, "other.*"))
        bench.owner.ended(b"w%d" % number)
    slot = bench.owner._workers[A].lanes[0].slot
    assert len(slot.free) < 50


def test_jobs_without_a_worker_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line after three seconds, and again only after a worker has come."""
    caplog.set_level(logging.INFO)
    bench = Bench()
    bench.put(b"jobs.1", b"jobs.2")
    bench.clock.pump([1.0] * 8)
    said = [record.getMessage() for record in caplog.records if "no worker" in record.getMessage()]
    assert said == [
        "farm: no worker accepts 'jobs.1': 2 jobs wait; start a worker with an @app.work handler for this topic"
    ]


def test_signs_of_life_are_sent_to_idle_workers() -> None:
    """A worker hears from its owner each second."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.sent.clear()
    bench.clock.pump([1.0] * 3)
    assert bench.kinds(A) == [ALIVE, ALIVE]


def test_a_stop_waits_for_all_jobs() -> None:
    """Jobs that wait or are in flight are worked off; a job that waits for its next attempt is given up."""
    bench = Bench(retry=(60,))
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1", b"jobs.2")
    bench.fail(A, bench.jobs()[0])
    drained = bench.owner.drain()
    assert bench.given_up == [(b"jobs.1", 1, "OSError: no")]
    assert not drained.called
    bench.done(A, bench.jobs()[0])
    bench.clock.advance(0)
    assert drained.called
    assert bench.owner.close() == {}
    assert bench.kinds(A)[-1:] == [STOPPED]


@pytest.mark.parametrize("way", ["failed", "rejected", "lost"])
def test_a_stop_goes_on_after_the_last_job_was_given_up(way: str) -> None:
    """Its dead letter can still be published: the stop does not go on inside the calls that end the job."""
    bench = Bench()
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1")
    (id,) = bench.jobs()
    stopped: list[int] = []
    bench.owner.drain().addCallback(lambda _: stopped.append(len(bench.given_up)))
    if way == "failed":
        bench.fail(A, id)
    elif way == "rejected":
        bench.reject(A, id)
    else:
        bench.owner._jobs[id].losses = JOB_LOSSES
        bench.owner.ended(A)
    assert (len(bench.given_up), stopped) == (1, [])
    bench.clock.advance(0)
    assert stopped == [1]


def test_a_stop_names_what_was_not_done() -> None:
    """Jobs that were not done are counted, also those that waited for room; their callers get an error."""
    bench = Bench(waiting=1)
    bench.offer(A, (1, "jobs.*"))
    bench.put(b"jobs.1", b"jobs.2")
    put = Deferred.fromCoroutine(_awaited(bench.queue.put(b"jobs.3", 1, b"")))
    errors: list[Any] = []
    put.addErrback(errors.append)
    drained = bench.owner.drain()
    assert bench.owner.close() == {"jobs of 'jobs.{kind}' that were not done": 3}
    assert drained.called
    assert bench.queue.stats.dropped_at_shutdown == 2
    assert errors[0].check(NotRunningError)
    with pytest.raises(NotRunningError):
        bench.put(b"jobs.4")


@pytest.mark.parametrize("seed", range(20))
def test_each_job_ends_exactly_once_whatever_workers_do(seed: int) -> None:
    """Workers join, report, fail, give back, end, fall silent and wake up in any order; the sums always hold."""
    random, bench = Random(seed), Bench(retry=(0.5, 1), silent_after=3.0, waiting=10**6)
    held: dict[bytes, list[bytes]] = {}
    number = 0

    def settle() -> None:
        for to, kind, parts in bench.sent:
            if kind == JOB:
                held.setdefault(to, []).append(parts[0])
            elif kind == UNKNOWN:
                held.pop(to, None)
                offered.append(to)
        bench.sent.clear()

    offered: list[bytes] = []
    for _ in range(600):
        stats = bench.queue.stats
        assert sum_of(stats) == stats.put
        action = random.randrange(9)
        if action <= 2:
            bench.put(b"jobs.%d" % random.randrange(3))
        elif action == 3:
            number += 1
            bench.offer(b"w%d" % number, (random.randint(1, 5), random.choice(["jobs.*", "jobs.1", "jobs.0 jobs.2"])))
        elif action == 4 and bench.owner._workers:
            bench.owner.ended(random.choice(list(bench.owner._workers)))
        elif action == 5:
            bench.clock.advance(random.random() * 2)
        elif offered and action == 6:
            bench.offer(offered.pop(), (3, "jobs.*"))
        elif held:
            worker = random.choice(list(held))
            for id in held.pop(worker):
                random.choice([bench.done, bench.done, bench.fail, bench.reject, bench.give_back])(worker, id)
        settle()
    bench.offer(b"last", (1000, "jobs.*"))
    for worker in [*bench.owner._workers]:
        if worker != b"last":
            bench.owner.ended(worker)
    while bench.queue.stats.waiting or bench.queue.stats.in_flight:
        for id in bench.jobs(b"last"):
            bench.done(b"last", id)
        bench.clock.advance(0.5)
        bench.owner.received(b"last", [ALIVE])
    stats = bench.queue.stats
    assert stats.done + stats.failed == stats.put
    assert len(bench.given_up) == stats.failed
    assert all(lane.unfinished == 0 for lane in bench.owner._workers[b"last"].lanes)


# -- the log ---------------------------------------------------------------------------------------------


def test_the_log_names_workers_that_join_fail_and_leave(caplog: pytest.LogCaptureFixture) -> None:
    """Each line has the owner's name and the worker's: libzmq's identity in hexadecimal, another one as text."""
    caplog.set_level(logging.INFO)
    bench = Bench(retry=(1,))
    raw, named = b"\x00k\x8bEg", b"rust\x1b"
    bench.offer(raw, (1, "jobs.*"))
    bench.offer(named, (0, "jobs.*"))
    bench.put(b"jobs.x")
    (id,) = bench.jobs(raw)
    bench.fail(raw, id, b"ValueError: no")
    bench.gone.update([raw, named])
    bench.owner.ended(raw)
    bench.owner.ended(named)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == [
        "farm: worker 6b8b4567 has joined (1 worker)",
        r"farm: worker rust\u001b has joined (2 workers)",
    ]
    assert lines[2].startswith("farm: a job of 'jobs.x' (")
    assert lines[2].endswith(") failed at worker 6b8b4567: ValueError: no; attempt 1 of 2, next attempt in 1 s")
    assert lines[3:] == [
        "farm: worker 6b8b4567 has disconnected (1 worker remaining)",
        r"farm: worker rust\u001b has disconnected (0 workers remaining)",
    ]


def test_a_storm_of_workers_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Workers that all connect again after a restart of the network do not fill the log."""
    caplog.set_level(logging.INFO)
    bench = Bench()
    for number in range(1000):
        bench.offer(b"w%d" % number, (1, "jobs.*"))
    bench.clock.advance(0.5)
    assert len(caplog.records) == 5


def test_a_held_topic_waits_and_others_pass() -> None:
    """A job that the transport returns waits first in its topic; after a release, it is sent before later jobs."""
    bench = Bench()
    bench.offer(b"w", (2, "jobs.*"))
    bench.put(b"jobs.a", b"jobs.a", b"jobs.a", b"jobs.b")
    first, second = bench.jobs()
    bench.owner.hold(b"jobs.a")
    bench.owner.returned(b"w", first)
    assert bench.topics() == [b"jobs.b"]
    stats = bench.queue.stats
    assert (stats.waiting, stats.in_flight, stats.given_back) == (2, 2, 0)
    bench.put(b"jobs.a")
    bench.done(b"w", second)
    assert bench.jobs() == []
    assert list(bench.owner.unserved()) == [(b"jobs.a", 3)]
    bench.owner.release(b"jobs.a")
    assert bench.jobs() == [first]
    bench.owner.returned(b"w", b"unknown")
    bench.owner.returned(b"gone", first)
    assert stats.in_flight == 2


def test_a_transport_may_refuse_jobs() -> None:
    """The check of a transport raises its error in put, and the job is not added."""
    bench = Bench()

    def check(topic: bytes, body: bytes, headers: object) -> None:
        raise EncodeError("no such topic")

    bench.owner.check = check
    with pytest.raises(EncodeError):
        bench.queue.put_nowait(b"jobs.a", 2, b"{}")
    assert bench.queue.stats.put == 0


def test_held_topics_survive_new_patterns() -> None:
    """An offer of new patterns sends no job of a held topic, also if the topic is new."""
    bench = Bench()
    bench.owner.hold(b"jobs.a")
    bench.put(b"jobs.a")
    bench.offer(b"w", (2, "jobs.*"))
    bench.offer(b"v", (2, ">"))
    assert bench.jobs() == []
    bench.owner.release(b"jobs.a")
    assert len(bench.jobs()) == 1
