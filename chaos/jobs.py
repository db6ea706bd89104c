"""Send invalid messages of jobs: ``python -m chaos.jobs --frames 1000000 --seed 1``.

Strangers send broken and forged messages to an owner of jobs, and to a worker. The apps are in this process, without
sockets, so a million messages take minutes. After each lot, good jobs must be done, and the counters must match. No
handler may be called with invalid data.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

import attrs

from chaos.frames import Mutations
from zroute import App
from zroute.errors import EnvelopeError
from zroute.jobs.owner import JobOwner
from zroute.jobs.worker import JobWorker
from zroute.messages.jobs import (
    ACCEPTED,
    ALIVE,
    CHANGED,
    DONE,
    FAILED,
    GIVEN_BACK,
    JOB,
    OFFER,
    REJECTED,
    STOPPED,
    UNKNOWN,
    pack_job_meta,
    pack_offer,
    pack_terms,
)
from zroute.messages.topics import parse, startswith
from zroute.testing import TestApp

__all__ = ["play"]

LOT = 500
"""Messages between two checks."""


@attrs.frozen
class Job:
    """A job with a value that broken bytes rarely have."""

    number: int
    text: str


def _to_owner(chance: random.Random, ids: list[bytes]) -> list[list[bytes]]:
    """Return good messages of a worker, whose ids are real ones of other workers, or not."""
    id = chance.choice([*ids[-50:], chance.randbytes(16)])
    offer = pack_offer(
        [(chance.choice((0, 1, 5, 65535)), [parse("jobs.*"), startswith("x")]), (2, [parse("a/>", "/")])]
    )
    return [
        [OFFER, offer],
        [CHANGED, offer],
        [DONE, id],
        [FAILED, id, b"text"],
        [REJECTED, id, b""],
        [GIVEN_BACK, id],
        [ALIVE],
    ]


def _to_worker(chance: random.Random) -> list[list[bytes]]:
    """Return good messages of an owner."""
    body = chance.choice((b'{"number":1,"text":"a"}', b"\x82\xa6number\x01\xa4text\xa1a", b"", b"null"))
    meta = pack_job_meta(chance.choice((0, 1, 2, 3, 200)), chance.choice((1, 9)), chance.choice((None, {"a": 1})))
    job = [JOB, chance.randbytes(16), chance.choice((b"jobs.a", b"jobs.b", b"other")), body, meta]
    return [job, job, job, [ACCEPTED, pack_terms(chance.choice((0, 1, 10)))], [UNKNOWN], [STOPPED], [ALIVE]]


def _changed(chance: random.Random, good: list[list[bytes]]) -> list[bytes]:
    """Return one of the messages, with changed, missing or further parts."""
    parts = [*chance.choice(good)]
    mutations = Mutations(chance, [part for message in good for part in message])
    for _ in range(chance.choice((0, 1, 1, 2))):
        at = chance.randrange(len(parts))
        parts[at] = mutations.frame()
    if chance.random() < 0.1:
        parts.insert(chance.randrange(len(parts) + 1), chance.randbytes(chance.choice((0, 1, 16, 9000))))
    if chance.random() < 0.1 and len(parts) > 1:
        del parts[chance.randrange(len(parts))]
    return parts


def play(frames: int, seed: int) -> dict[str, Any]:
    """Send this number of messages, and return the counters.

    Raises AssertionError if a handler gets invalid data, or if a good job is not done.
    """
    chance, calls = random.Random(seed), Counter[str]()
    owner, worker = App(jobs="tcp://127.0.0.1:1", name="owner"), App(work="tcp://127.0.0.1:1", name="worker")
    queue = owner.job_queue("jobs.{kind}", Job, retry=(0.1,) * 5, waiting=10**6)
    puts: list[int] = []

    @owner.every(0.5)
    async def put() -> None:
        puts.append(len(puts))
        await queue.put(Job(len(puts), "good"), kind="a")

    @worker.work("jobs.{kind}", thread=False, max_in_flight=50)
    def run(job: Job, kind: str) -> None:
        assert type(job) is Job
        assert type(job.number) is int
        assert type(job.text) is str
        calls[job.text] += 1

    with TestApp(owner, worker, raise_errors=False) as t:
        (engine,) = t._bus.jobs._owners.values()
        assert isinstance(engine, JobOwner)
        refused = 0
        ids: list[bytes] = []
        for lot in range(0, frames, LOT):
            (connection,) = [each for _, _, each in t._bus.jobs._connections.values()]
            target = connection.worker
            assert isinstance(target, JobWorker)
            ids = [*ids, *engine._jobs][-100:]
            for number in range(lot, min(lot + LOT, frames)):
                if number % 100 == 0:  # strangers with an offer get some of the jobs
                    puts.append(number)
                    t._do(lambda: queue.put_nowait(Job(1, "good"), kind="a"))
                try:
                    if chance.random() < 0.5:
                        name = connection.id if chance.random() < 0.05 else b"stranger %d" % chance.randrange(20)
                        engine.received(name, _changed(chance, _to_owner(chance, ids)) or [b""])
                    else:
                        target.received(_changed(chance, _to_worker(chance)) or [b""])
                except EnvelopeError:
                    refused += 1
            # Strangers leave; the messages in the name of the worker may have taken its jobs, or ended its offer.
            for number in range(20):
                engine.ended(b"stranger %d" % number)
            with suppress(EnvelopeError):
                target.received([ACCEPTED, pack_terms(10.0)])
                target.received([UNKNOWN])
            t.advance(1.0)
            t.advance(1.0)
            stats = queue.stats
            states = stats.waiting + stats.in_flight + stats.done + stats.failed
            assert states == stats.put == len(puts), stats
            assert stats.waiting + stats.in_flight <= 2, stats
            t.failures.clear()
        kinds = len(engine._scheduler._kinds)
    assert kinds < 50
    assert calls["good"]
    return {
        "frames": frames,
        "refused": refused,
        "calls": dict(calls.most_common(3)),
        "jobs": attrs.asdict(queue.stats),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(play(options.frames, options.seed)) + "\n")


if __name__ == "__main__":
    main()
