"""Measure the cost of shared work: ``python benchmarks/bench_jobs.py [--count N] [--rounds N] [--json FILE]``.

An owner and two workers, each in a process of its own over tcp, share jobs whose handlers do nothing. The figures are
the CPU of the owner and of both workers for each job, including libzmq's threads, and the rate. The jobs are objects of
two fields in msgpack. Each figure is the lowest of the rounds, because other programs only add to it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import attrs

from tests.support import free_endpoint
from zroute import App

WORKERS = 2
IN_FLIGHT = (1, 5, 50, 84)
"""The values of ``max_in_flight``; a worker asks for up to 16 jobs more, so the last one makes 100 credits."""


@attrs.frozen
class Job:
    """A small job."""

    path: str
    width: int


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def own(endpoint: str, count: int) -> None:
    """Put ``count`` jobs when the workers are there; print the figures of the owner."""
    owner = App(jobs=endpoint, name="owner")
    jobs = owner.job_queue("jobs.{kind}", Job)

    @owner.every(3600)
    async def put() -> None:
        from twisted.internet import reactor
        from twisted.internet.task import deferLater

        while owner.stats.workers < WORKERS:
            await deferLater(reactor, 0.05)
        began, cpu = time.perf_counter(), _cpu()
        job = Job("pictures/cat.png", 640)
        for _ in range(count):
            await jobs.put(job, kind="resize")
        while jobs.stats.done < count:
            await deferLater(reactor, 0.002)
        seconds = time.perf_counter() - began
        print(json.dumps({"cpu": (_cpu() - cpu) / count * 1e6, "rate": count / seconds}), flush=True)
        owner.stop()

    owner.run(log_level="warning")


def work(endpoint: str, in_flight: int) -> None:
    """Do jobs until the process is stopped; print the CPU of each job."""
    worker = App(work=endpoint, name="worker")
    cpu: list[float] = []

    @worker.work("jobs.{kind}", thread=False, max_in_flight=in_flight)
    def run(job: Job, kind: str) -> None:
        if not cpu:
            cpu.append(_cpu())

    @worker.on_shutdown
    def report() -> None:
        done = max(worker.stats.handled, 1)
        print(json.dumps({"done": worker.stats.handled, "cpu": (_cpu() - cpu[0]) / done * 1e6}), flush=True)

    worker.run(log_level="warning")


def measure(in_flight: int, count: int) -> dict[str, float]:
    """Run an owner and its workers once."""
    endpoint = free_endpoint()

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)

    workers = [start("work", endpoint, str(in_flight)) for _ in range(WORKERS)]
    owner = start("own", endpoint, str(count))
    try:
        owned = json.loads(owner.communicate(timeout=120)[0])
    finally:
        owner.kill()
        for worker in workers:
            worker.terminate()
    worked = [json.loads(worker.communicate(timeout=30)[0]) for worker in workers]
    assert sum(each["done"] for each in worked) == count
    return {"owner": owned["cpu"], "worker": sum(each["cpu"] * each["done"] for each in worked) / count, **owned}


def main() -> None:
    """Run from the command line."""
    if sys.argv[1:2] == ["own"]:
        return own(sys.argv[2], int(sys.argv[3]))
    if sys.argv[1:2] == ["work"]:
        return work(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for in_flight in IN_FLIGHT:
        rounds = [measure(in_flight, options.count) for _ in range(options.rounds)]
        credits = in_flight + min(in_flight, 16)
        best = {name: min(each[name] for each in rounds) for name in ("owner", "worker")}
        best["rate"] = max(each["rate"] for each in rounds)
        found[str(credits)] = best
        print(
            f"credits {credits:3}: owner {best['owner']:5.1f} µs, worker {best['worker']:5.1f} µs CPU a job, "
            f"{best['rate']:7,.0f} jobs/s",
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
    return None


if __name__ == "__main__":
    main()
