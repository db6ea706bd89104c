"""Jobs on NATS under faults: servers and workers are killed, restarted, frozen, retired and stopped.

Each seed starts one server or a cluster, owners and workers as processes. The owners put jobs while one or two faults
happen. At the end, the outcome of every job must be known, as the page "Run on NATS" says:

- No job is begun twice, even if its owner counts it as failed.
- A job that its owner does not count as failed has begun at a worker. The only exceptions are the few jobs of a killed
  worker, and those that a stopped worker logs as lost, or counts as dropped: asyncio may cancel a task before the first
  line of its handler.
- A job that has begun is done, unless its worker was killed or stopped.
- The counters of an owner add up to the jobs that were put, and a handler of errors has received each failed job.
- When the faults are over, all waiting jobs are done.

    python -m chaos.nats_jobs --seeds 100
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from chaos.nats import SERVER_FAULTS, SOON, Lines, Process, disturb, freeze, running_servers
from tests.support import PATIENCE
from zroute import App, Envelope, JobFailedError

FAULTS = (*SERVER_FAULTS, "freeze_worker", "freeze_owner", "kill_worker", "stop_worker")

_LONG = 12.0
"""A time in seconds after which an owner gives up on a job that no worker has confirmed."""

_WAITING = 100
"""The jobs that may wait at an owner."""

_PASSED_ON = re.compile(r"(\d+) passed to other workers, (\d+) lost")


async def own(url: str, name: str, pause: float) -> None:
    """Put jobs until the parent says "stop"; wait until they have ended, and print the outcome."""
    app, lines, stopped = App(nats=url, name=name), Lines(), asyncio.Event()
    queue = app.job_queue("jobs.{kind}", str, waiting=_WAITING)
    failed: list[str] = []

    @app.on_error(JobFailedError)
    def give_up(error: JobFailedError, envelope: Envelope) -> None:
        failed.append(envelope.body.decode())

    async def put() -> None:
        while not stopped.is_set():
            number = queue.stats.put
            await queue.put(f"{name}.{number}", kind="ab"[number % 2])
            await asyncio.sleep(pause)

    async with app.running():
        print("running", flush=True)
        await lines.next()
        putting = asyncio.create_task(put())
        await lines.next()
        stopped.set()
        stats, until = queue.stats, time.monotonic() + PATIENCE
        while time.monotonic() < until and not (putting.done() and stats.waiting == stats.in_flight == 0):
            await asyncio.sleep(0.05)
        putting.cancel()
        report = {"put": stats.put, "done": stats.done, "left": stats.waiting + stats.in_flight, "failed": failed}
        print(json.dumps(report | {"counted_failed": stats.failed}), flush=True)
        await lines.next()


async def work(url: str, name: str, seconds: float, at_once: int, record: Path, drain: float) -> None:
    """Do jobs until the parent says "stop"; note the beginning and the end of each job in a file.

    Then print the numbers of jobs that were lost before the worker began them, and that were dropped after it.
    """
    app, lines = App(nats=url, name=name, reactor="asyncio"), Lines()
    chosen, lost = random.Random(name), 0

    class Losses(logging.Handler):
        def emit(self, line: logging.LogRecord) -> None:
            nonlocal lost
            if found := _PASSED_ON.search(line.getMessage()):
                lost += int(found[2])

    logging.getLogger("zroute").addHandler(Losses())
    with record.open("a", buffering=1) as file:

        @app.work("jobs.{kind}", max_in_flight=at_once)
        async def do(job: str) -> None:
            file.write(f"begun {job}\n")
            await asyncio.sleep(chosen.uniform(0, seconds))
            file.write(f"done {job}\n")

        async with app.running(drain_timeout=drain):
            print("running", flush=True)
            await lines.next()
    dropped = sum(each.dropped_at_shutdown for each in app.stats.routes.values())
    print(json.dumps({"lost": lost, "dropped": dropped}), flush=True)


@attrs.define(eq=False)
class Worker:
    """A worker of a seed.

    Attributes:
        process: The process.
        record: The file with the beginning and the end of each job.
        room: The number of jobs that it can have.
        killed: True if it was killed.
        lost: The number of lost jobs in its log.
        dropped: The number of jobs that it dropped at its stop.
    """

    process: Process
    record: Path
    room: int
    killed: bool = False
    lost: int = 0
    dropped: int = 0

    def stop(self) -> None:
        """Stop the worker in order."""
        self.process.say("stop")
        report = json.loads(self.process.read())
        self.lost, self.dropped = report["lost"], report["dropped"]
        self.process.process.wait()

    @property
    def unfinished(self) -> set[str]:
        """The jobs that have begun, and are not done."""
        return set(self.noted("begun")) - set(self.noted("done"))

    @property
    def may_leave(self) -> int:
        """The number of jobs that it may have begun without an end: those that ran when it ended."""
        return self.room // 2 if self.killed else self.dropped

    @property
    def may_lose(self) -> int:
        """The number of jobs that may have got lost with this worker before they began."""
        return self.room if self.killed else self.lost + self.dropped - len(self.unfinished)

    def noted(self, kind: str) -> Iterator[str]:
        """Yield the jobs that have begun, or are done."""
        for line in self.record.read_text().splitlines():
            found, _, job = line.partition(" ")
            if found == kind:
                yield job


@attrs.frozen
class Found:
    """The result of a seed.

    Attributes:
        faults: the faults that were caused.
        put: the number of jobs.
        failed: the number of jobs that owners counted as failed.
        lost: the number of jobs that were lost with a worker that was killed or stopped.
        wrong: what must not be.
    """

    faults: tuple[str, ...]
    put: int
    failed: int
    lost: int
    wrong: list[str]


def play(seed: int, *faults: str) -> Found:
    """Play a seed.

    Args:
        seed: decides the numbers of servers, owners and workers, their speed, and the faults and their times.
        faults: the faults, instead of those that the seed chooses.
    """
    chosen = random.Random(seed)
    kinds = faults or tuple(chosen.choices(FAULTS, k=chosen.choice((1, 1, 2))))
    retired = sum(kind in ("member", "lame_duck") for kind in kinds)
    size = 3 if retired else chosen.choice((1, 3))
    # A cluster can lose only one of three servers for good.
    kinds = kinds[:1] if retired > 1 else kinds
    seconds, at_once = chosen.choice((0.0, 0.005, 0.05)), chosen.choice((1, 2, 8))
    pause, drain = chosen.choice((0.0, 0.002)), chosen.choice((0.0, 0.02, 8.0))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers = stack.enter_context(running_servers(folder, size, SOON))
        urls = [server.url for server in servers]

        def started(role: str, name: str, *arguments: object) -> Process:
            url = ",".join(chosen.sample(urls, len(urls)))
            given = (role, "--name", name, "--url", url, *arguments)
            process = Process("chaos.nats_jobs", *given, log=folder / f"{name}.log")
            stack.callback(process.end)
            return process

        owners = [started("own", f"o{at}", "--pause", pause) for at in range(chosen.choice((1, 2)))]
        workers = []
        for at in range(chosen.choice((2, 3))):
            record = folder / f"w{at}"
            options = ("--seconds", seconds, "--at-once", at_once, "--record", record, "--drain", drain)
            workers.append(Worker(started("work", f"w{at}", *options), record, 2 * at_once))
        for process in (*owners, *(worker.process for worker in workers)):
            process.read()
        for owner in owners:
            owner.say("go")
        gone: set[Any] = set()
        for kind in kinds:
            time.sleep(chosen.uniform(0.3, 1.0))
            if kind in SERVER_FAULTS:
                longest = chosen.choice((1.5, 1.5, _LONG))
                disturb(kind, chosen, [each for each in servers if each not in gone], gone, longest)
            else:
                _disturb(kind, chosen, owners, workers)
        time.sleep(chosen.uniform(1.0, 2.0))
        for owner in owners:
            owner.say("stop")
        reports = [json.loads(owner.read()) for owner in owners]
        for worker in workers:
            if worker.process.process.poll() is None:
                worker.stop()
        found = _judge(kinds, reports, workers)
        if found.wrong:
            found.wrong.extend(f"{path.name}: {path.read_text()[-4000:]}" for path in sorted(folder.glob("*.log")))
        return found


def _disturb(kind: str, chosen: random.Random, owners: list[Process], workers: list[Worker]) -> None:
    """Cause a fault of a worker or an owner. One worker stays."""
    alive = [worker for worker in workers if worker.process.process.poll() is None]
    worker = chosen.choice(alive)
    match kind:
        case "freeze_worker":
            freeze(worker.process, chosen.choice((0.5, 3.0, _LONG)))
        case "freeze_owner":
            freeze(chosen.choice(owners), chosen.choice((0.5, 3.0, _LONG)))
        case "kill_worker" if len(alive) > 1:
            worker.killed = True
            worker.process.process.kill()
            worker.process.process.wait()
        case "stop_worker" if len(alive) > 1:
            worker.stop()


def _judge(kinds: tuple[str, ...], reports: list[dict[str, Any]], workers: list[Worker]) -> Found:
    put = {f"o{at}.{number}" for at, report in enumerate(reports) for number in range(report["put"])}
    failed = Counter(job for report in reports for job in report["failed"])
    begun = Counter(job for worker in workers for job in worker.noted("begun"))
    done = Counter(job for worker in workers for job in worker.noted("done"))
    lost = put - failed.keys() - begun.keys()
    may_lose = sum(worker.may_lose for worker in workers)
    wrong = [f"{name}: counters {report}" for name, report in enumerate(reports) if not _adds_up(report)]
    for what, jobs in {
        "begun twice": [job for job, times in begun.items() if times > 1],
        "failed twice": [job for job, times in failed.items() if times > 1],
        "never put": (begun.keys() | failed.keys()) - put,
        f"lost without a word, with {may_lose} that may be": lost if len(lost) > may_lose else (),
    }.items():
        if jobs:
            wrong.append(f"{what}: {sorted(jobs)}")
    wrong += [
        f"{worker.record.name}: begun and not done: {sorted(worker.unfinished)}"
        for worker in workers
        if len(worker.unfinished) > worker.may_leave
    ]
    return Found(kinds, len(put), failed.total(), len(put - failed.keys() - done.keys()), wrong)


def _adds_up(report: dict[str, Any]) -> bool:
    """Return True if each job of an owner has ended, and each failed one was reported."""
    failed = report["counted_failed"]
    return not report["left"] and report["done"] + failed == report["put"] and failed == len(report["failed"])


def main() -> None:
    """Play seeds, or be one of their processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--role", choices=("own", "work"))
    parser.add_argument("--url")
    parser.add_argument("--name")
    parser.add_argument("--pause", type=float)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--drain", type=float)
    given = parser.parse_args()
    if given.role == "own":
        asyncio.run(own(given.url, given.name, given.pause))
    elif given.role == "work":
        asyncio.run(work(given.url, given.name, given.seconds, given.at_once, given.record, given.drain))
    else:
        _campaign(range(given.first, given.first + given.seeds))


def _campaign(seeds: range) -> None:
    broken, put, failed, lost = [], 0, 0, 0
    for seed in seeds:
        found = play(seed)
        print(
            f"seed {seed}: {' and '.join(found.faults)}: {found.put} put, {found.failed} failed, "
            f"{found.lost} lost with a worker",
            flush=True,
        )
        for line in found.wrong:
            print(f"  {line}", flush=True)
        broken += [seed] * bool(found.wrong)
        put, failed, lost = put + found.put, failed + found.failed, lost + found.lost
    print(f"{len(seeds)} seeds, broken {broken}; {put} jobs, {failed} failed, {lost} lost with a worker")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
