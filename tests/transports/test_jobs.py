"""Apps that share jobs over real sockets, on the reactor of the tests."""

from __future__ import annotations

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.running import Mailbox, running, turns
from zroute import App

WILDCARD = "tcp://127.0.0.1:*"


@pytest_twisted.ensureDeferred
async def test_two_apps_share_jobs_over_tcp() -> None:
    """Jobs of one app are done by another, and the addresses are those of the sockets."""
    owner, done = App(jobs=WILDCARD), Mailbox[int]()
    queue = owner.job_queue("jobs", int)
    async with running(owner):
        (address,) = owner.addresses.jobs
        assert not address.endswith("*")
        worker = App(work=address)
        worker.work("jobs", thread=False)(_putting(done))
        async with running(worker):
            assert worker.addresses.work == (address,)
            for number in range(100):
                await queue.put(number)
            assert sorted(await done.until(100)) == list(range(100))
        await turns(lambda: owner.stats.workers == 0)
    assert queue.stats.done == 100


def _putting(box: Mailbox[int]):  # type: ignore[no-untyped-def]
    def run(job: int) -> None:
        box.put(job)

    return run


@pytest_twisted.ensureDeferred
async def test_endpoints_without_jobs_are_not_opened() -> None:
    """An app may have addresses for jobs and work, and neither queues nor handlers."""
    app = App(jobs="tcp://127.0.0.1:1", work="tcp://127.0.0.1:2", sub="tcp://127.0.0.1:3")
    app.subscribe("a")(lambda body: None)
    async with running(app):
        assert (app.addresses.jobs, app.addresses.work) == (("tcp://127.0.0.1:1",), ("tcp://127.0.0.1:2",))


@pytest_twisted.ensureDeferred
async def test_jobs_are_put_from_threads_and_done_in_a_loop() -> None:
    """An app without endpoints does its own jobs over inproc; a put of another thread needs `from_thread`."""
    app, done = App(), Mailbox[int]()
    queue = app.job_queue("jobs", int)
    app.work("jobs", thread=False)(_putting(done))
    errors: list[BaseException] = []

    def put() -> None:
        try:
            queue.put_nowait(1)
        except Exception as error:
            errors.append(error)
        app.from_thread(queue.put, 2)

    async with running(app):
        await deferToThread(put)
        assert await done.until(1) == [2]
    assert "call app.from_thread(queue.put, job) in that thread" in str(errors[0])
