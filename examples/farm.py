"""Share work among workers, which may be slow, fail, or come and go.

zroute run --app-dir examples farm:worker

In a second terminal, start a slow worker. In a third, start the office, which has the jobs:

zroute run --app-dir examples farm:slow
zroute run --app-dir examples farm:office --for 5s

Workers may run as often as you like, also on other machines, and may start before the office.
"""

import time
from itertools import count
from zlib import crc32

import attrs

from zroute import App, Envelope, Reject

JOBS, DEAD = "tcp://127.0.0.1:5765", "tcp://127.0.0.1:5766"


@attrs.frozen
class Checksum:
    text: str


office = App(jobs=JOBS, pub=DEAD, name="office")
checksums = office.job_queue("jobs.{customer}", Checksum, retry=(0.1, 1), dead="dead.{customer}", waiting=100)
orders = count(1)


@office.every(0.25)
async def order() -> None:
    """Put some jobs; it waits while a hundred jobs wait already."""
    for _ in range(5):
        number = next(orders)
        await checksums.put(Checksum("" if number % 20 == 0 else f"order {number}"), customer="ann")


def show(name: str, customer: str, job: Checksum) -> None:
    """Print one line; other threads print too, so the line and its end are one text."""
    print(f"{name:8}{customer}: {job.text} {crc32(job.text.encode())}\n", end="")


worker = App(work=JOBS, sub=DEAD, name="worker")


@worker.work("jobs.{customer}", max_in_flight=2)
def compute(job: Checksum, customer: str) -> None:
    """Compute a checksum, in a thread. Jobs of other workers run at the same time."""
    if not job.text:
        raise Reject("nothing to compute")
    time.sleep(0.02)
    show("worker", customer, job)


@worker.subscribe("dead.{customer}")
def complain(letter: Envelope, customer: str) -> None:
    print(f"dead    {customer}: {letter.headers['zr-error']}, attempts: {letter.headers['zr-attempts']}")


slow = App(work=JOBS, name="slow")


@slow.work("jobs.{customer}", max_in_flight=1)
def compute_slowly(job: Checksum, customer: str) -> None:
    """Do the same at a tenth of the speed: this worker gets fewer jobs."""
    if not job.text:
        raise Reject("nothing to compute")
    time.sleep(0.2)
    show("slow", customer, job)
