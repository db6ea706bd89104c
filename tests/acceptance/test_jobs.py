"""Jobs between processes: workers that are killed, frozen, slow or stopped, and no job is lost."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support import Child, free_endpoint, sized, spans

TOTAL = sized(3_000, 1_500)
SILENT = sized(10, 2)  # seconds
NEVER = 1_000.0
"""A time of silence that no worker reaches, even if a busy machine does not run it for some seconds."""

OWNER = """
import json, sys
from zroute import App
from zroute.awaiting import as_deferred

TOTAL, SILENT, workers = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
owner = App(jobs=sys.argv[1], name="owner")
jobs = owner.job_queue("jobs.{kind}", int, retry=(0.1,) * 5, waiting=500, silent_after=SILENT)
told = set()

def tell(what):
    if what not in told:
        told.add(what)
        print(what, flush=True)

@owner.every(3600)
async def put():
    from twisted.internet import reactor
    from twisted.internet.task import deferLater
    print("open", flush=True)
    while owner.stats.workers < workers:
        await deferLater(reactor, 0.02)
    for number in range(TOTAL):
        await jobs.put(number, kind="work")
        if number == TOTAL // 3:
            tell("a third")

@owner.every(0.05)
def look():
    stats = jobs.stats
    if stats.done > TOTAL // 20:
        tell("some are done")
    if stats.in_flight >= 8:
        tell("eight in flight")
    if stats.redelivered:
        tell("redelivered")
    if stats.given_back:
        tell("given back")
    if stats.done_twice:
        tell("done twice")
    if stats.done == TOTAL:
        tell("all are done")

@owner.on_shutdown
def report():
    stats = jobs.stats
    print(json.dumps({name: getattr(stats, name) for name in stats.__slots__ if not name.startswith("_")}), flush=True)

owner.run(drain_timeout=float(sys.argv[5]) if len(sys.argv) > 5 else 8.0)
"""

WORKER = """
import json, sys, threading, time
from zroute import App

seconds, max_in_flight, thread = float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "thread"
free = int(sys.argv[5])
worker = App(work=sys.argv[1], name="worker")
done, go_on = [], threading.Event()

def listen():
    sys.stdin.readline()
    go_on.set()

threading.Thread(target=listen, daemon=True).start()

@worker.work("jobs.{kind}", max_in_flight=max_in_flight, thread=thread)
def run(number: int, kind: str) -> None:
    if len(done) >= free and not go_on.is_set():
        print("holds", number, flush=True)
        go_on.wait()
    if seconds:
        time.sleep(seconds)
    done.append(number)

@worker.on_shutdown
def report():
    print(json.dumps(done), flush=True)

worker.run(drain_timeout=120)
"""

FREE = 20
"""The number of jobs after which a worker of a test holds its jobs until the test writes a line.

The worker then has unfinished jobs when the test kills, freezes or stops it, however late that is.
"""


@contextmanager
def owner(
    endpoint: str, total: int = TOTAL, silent: float = NEVER, workers: int = 1, drain: float = 8
) -> Iterator[Child]:
    """Run an owner that puts ``total`` jobs once this number of workers is there."""
    with Child("-c", OWNER, endpoint, str(total), str(silent), str(workers), str(drain)) as child:
        child.line_with("open")
        yield child


def worker(
    endpoint: str, seconds: float = 0.0, max_in_flight: int = 4, *, thread: bool = True, free: int = 10**9
) -> Child:
    """Start a worker whose jobs take some seconds; after ``free`` jobs, they wait until the test writes a line."""
    kind = "thread" if thread else "reactor"
    return Child("-c", WORKER, endpoint, str(seconds), str(max_in_flight), kind, str(free))


def report(child: Child, code: int = 0) -> Any:
    """Stop an app, and return what it reports."""
    assert child.end() == code, child.err
    return json.loads(child.out[-1])


def test_a_killed_and_a_frozen_worker_lose_no_job() -> None:
    """Of three workers one is killed and one is frozen and woken; each job is done, and the lost ones are counted."""
    endpoint = free_endpoint()
    with (
        owner(endpoint, silent=SILENT, workers=3) as jobs,
        worker(endpoint, 0.002, free=FREE) as killed,
        worker(endpoint, 0.002, free=FREE) as frozen,
        worker(endpoint, 0.002) as good,
    ):
        killed.line_with("holds")
        frozen.line_with("holds")
        killed.process.send_signal(signal.SIGKILL)
        jobs.line_with("redelivered")
        frozen.process.send_signal(signal.SIGSTOP)
        jobs.line_with("all are done")
        frozen.process.send_signal(signal.SIGCONT)
        frozen.write("go on\n")
        jobs.line_with("done twice")
        done = [*report(good), *report(frozen)]
        stats = report(jobs)
    assert stats["put"] == stats["done"] == TOTAL
    assert stats["failed"] == stats["dropped_at_shutdown"] == 0
    # On a busy machine, the good worker may be silent for a moment too.
    assert 1 <= stats["redelivered"] <= 3 * 8, "more than the workers had"
    assert 1 <= stats["done_twice"] <= 2 * 8, "more than the frozen and the good worker had"
    assert len(set(done)) <= TOTAL
    assert len(done) - len(set(done)) <= stats["done_twice"]


def test_a_long_job_in_a_thread_is_not_given_to_another_worker() -> None:
    """It takes longer than the time of silence, but the worker goes on sending signs of life."""
    for silent in spans(sized(10, 1)):
        endpoint = free_endpoint()
        with (
            owner(endpoint, total=1, silent=silent, workers=2) as jobs,
            worker(endpoint, 1.5 * silent) as one,
            worker(endpoint, 1.5 * silent) as other,
        ):
            jobs.line_with("all are done")
            done = report(one) + report(other)
            stats = report(jobs)
        if done == [0]:
            break
    assert done == [0]
    assert (stats["done"], stats["redelivered"], stats["done_twice"]) == (1, 0, 0)


def test_a_function_that_blocks_the_reactor_is_warned_of() -> None:
    """Its worker loses the job while it runs, and the log says why; the job is done nevertheless."""
    for seconds in spans(3.0):  # the job may be done before an owner that stands still finds its worker silent
        endpoint = free_endpoint()
        with owner(endpoint, total=1, silent=0.5) as jobs, worker(endpoint, seconds, thread=False) as blocked:
            jobs.line_with("all are done")
            line = blocked.line_with("no sign of life", stream="err")
            assert "run() at <string>" in line
            assert "After 0.5 s without one, the owner gives the jobs to other workers" in line
            stats = report(jobs)
        if stats["redelivered"] == 1:
            break
    assert (stats["done"], stats["redelivered"]) == (1, 1)


def test_fast_and_slow_workers_share_by_speed() -> None:
    """A worker that is ten times as fast does most of the jobs, and none waits for the slow one at the end."""
    total = TOTAL // 5
    for _ in range(3):  # a machine that does not run the fast worker for some seconds makes it a slow one
        endpoint = free_endpoint()
        with (
            owner(endpoint, total=total, workers=2) as jobs,
            worker(endpoint, 0.002, 1) as fast,
            worker(endpoint, 0.05, 1) as slow,
        ):
            jobs.line_with("all are done")
            by_fast, by_slow = report(fast), report(slow)
            report(jobs)
        assert len(by_fast) + len(by_slow) == total
        if len(by_fast) > 3 * len(by_slow):
            break
    assert len(by_fast) > 3 * len(by_slow)
    assert by_slow


def test_a_worker_that_is_stopped_in_the_middle_loses_nothing() -> None:
    """It finishes what it runs and gives the rest back; no job is done twice."""
    endpoint = free_endpoint()
    with owner(endpoint) as jobs, worker(endpoint, 0.003, free=FREE) as stopped:
        stopped.line_with("holds")
        jobs.line_with("eight in flight")  # four of them run, so the others wait
        stopped.process.send_signal(signal.SIGINT)
        jobs.line_with("given back")
        stopped.write("go on\n")
        assert stopped.end(None) == 0, stopped.err
        first = json.loads(stopped.out[-1])
        with worker(endpoint, 0.003) as good:
            jobs.line_with("all are done")
            second = report(good)
        stats = report(jobs)
    assert sorted(first + second) == list(range(TOTAL))
    assert first
    assert (stats["done"], stats["redelivered"], stats["done_twice"]) == (TOTAL, 0, 0)
    assert stats["given_back"] > 0


def test_an_owner_that_stops_works_off_what_it_has() -> None:
    """Jobs that wait or run at the stop are done within the drain timeout."""
    endpoint = free_endpoint()
    with owner(endpoint, total=300, drain=30) as jobs, worker(endpoint, 0.01) as good:
        jobs.line_with("some are done")
        stats = report(jobs)
        done = report(good)
    assert stats["put"] == stats["done"] == len(done)
    assert stats["dropped_at_shutdown"] == 0


def test_an_owner_names_what_was_not_done() -> None:
    """Without a worker the jobs are left at the end of the drain timeout: they are named, and the exit code is 75."""
    endpoint = free_endpoint()
    with owner(endpoint, total=30, workers=0, drain=0.5) as jobs:
        assert jobs.line_with("no worker accepts 'jobs.work': 30 jobs wait", stream="err")
        stats = report(jobs, 75)
        assert any("jobs of 'jobs.{kind}' that were not done: 30" in line for line in jobs.err)
    assert stats["put"] == 30


def test_workers_wait_for_an_owner_and_find_the_next_one() -> None:
    """Workers may start first; an owner that is restarted gets them again."""
    endpoint = free_endpoint()
    with worker(endpoint) as one, worker(endpoint) as other:
        for _ in range(2):
            with owner(endpoint, total=200, workers=2) as jobs:
                jobs.line_with("all are done")
                stats = report(jobs)
            assert stats["done"] == 200
        assert len(report(one)) + len(report(other)) == 400


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_restarted_worker_goes_on(number: int) -> None:
    """A worker that is killed and started again gets jobs at once."""
    endpoint = free_endpoint()
    began = time.monotonic()
    with owner(endpoint, total=TOTAL // 3) as jobs:
        with worker(endpoint, 0.002, free=FREE) as killed:
            killed.line_with("holds")
            killed.process.send_signal(number)
        with worker(endpoint, 0.002) as good:
            jobs.line_with("all are done")
            report(good)
        stats = report(jobs)
    assert stats["done"] == TOTAL // 3
    assert stats["redelivered"] >= 1
    assert time.monotonic() - began < NEVER
