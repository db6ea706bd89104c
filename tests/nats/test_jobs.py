"""Jobs between apps on real NATS servers, and with programs that do not use zroute."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nats
import pytest
from twisted.internet.task import Clock

from tests.nats.loops import run, until
from tests.nats.servers import NatsServer, cluster, known
from tests.support import PATIENCE
from zroute import App, Envelope, Limits, Reject, startswith
from zroute.errors import EncodeError, EndpointError, NoServerError, PatternError, TopicError
from zroute.jobs.queue import JobQueue
from zroute.messages.jobs import JOB, pack_job_meta
from zroute.nats import client as client_module
from zroute.nats import job_intake, worker_group
from zroute.nats.links import Hooks, Link, LinkOptions, RefusedError
from zroute.nats.servers import Server, parse_servers
from zroute.nats.worker_group import GROUP, JOBS
from zroute.transports import nats as transport_module

NAME = GROUP.decode()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job fails because a busy machine runs its worker or the server late."""
    monkeypatch.setattr(worker_group, "_CONFIRMED", PATIENCE)


@asynccontextmanager
async def plain(url: str) -> AsyncIterator[Any]:
    """Connect a client without zroute."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


def total(queue: JobQueue[Any]) -> int:
    """Return the sum of the counters that together count each job once."""
    stats = queue.stats
    return stats.waiting + stats.in_flight + stats.done + stats.failed + stats.dropped_at_shutdown


async def heard(app: App) -> None:
    """Wait until the NATS server knows the subscriptions of a worker: it has answered a PING after them."""
    await until(lambda: app._live.run.transport._intake._nats.connected)  # type: ignore[union-attr,attr-defined]
    client = app._live.run.transport._intake._nats  # type: ignore[union-attr,attr-defined]
    await client.ping().asFuture(asyncio.get_running_loop())


def worker(url: str, handler: Callable[[int], Awaitable[None] | None], pattern: str = "jobs.*", **options: Any) -> App:
    """Return an app that works on numbers."""
    app = App(nats=url, name="worker", codec="json")  # for bodies of other programs

    @app.work(pattern, thread=False, **options)
    async def work(number: int) -> None:
        result = handler(number)
        if result is not None:
            await result

    return app


# -- between apps ----------------------------------------------------------------------------------------


def test_jobs_wait_for_a_worker_and_are_done_once(server: NatsServer) -> None:
    """Jobs stay at the owner until a worker subscribes; workers share them, and each job is done once."""

    async def check() -> None:
        owner = App(nats=server.url)
        queue = owner.job_queue("jobs.{kind}", int)
        done: dict[str, list[int]] = {"a": [], "b": []}
        a, b = worker(server.url, done["a"].append), worker(server.url, done["b"].append)
        async with owner.running():
            await queue.put(0, kind="x")
            await until(lambda: owner.stats.workers == 1)
            await until(lambda: owner._live.run.transport._group._held)  # type: ignore[union-attr,attr-defined]
            assert (queue.stats.waiting, queue.stats.done, queue.stats.given_back) == (1, 0, 0)
            async with a.running(), b.running():
                await heard(a)
                await heard(b)
                for number in range(1, 500):
                    await queue.put(number, kind="x")
                await until(lambda: sum(map(len, done.values())) == 500)
        assert sorted(done["a"] + done["b"]) == list(range(500))
        assert min(map(len, done.values())) > 0
        assert (queue.stats.done, total(queue)) == (500, 500)

    run(check())


def test_captures_headers_and_attempts_arrive(server: NatsServer) -> None:
    """A handler receives the topic, the headers and the captures of its job, as on ZeroMQ."""

    async def check() -> None:
        app = App(nats=server.url)
        queue = app.job_queue("jobs.{kind}.{id}", int)
        got: list[Any] = []

        @app.work("jobs.{kind}.{id}", thread=False)
        def work(number: int, kind: str, id: int, envelope: Envelope) -> None:
            got.append((number, kind, id, str(envelope.topic), dict(envelope.headers)))

        async with app.running():
            await queue.put(1, kind="a", id=7, headers={"user": "ann"})
            await queue.put(2, kind="a", id=8)
            await until(lambda: len(got) == 2)
        # The first job is repeated, and passed by the second, if it arrives before the worker has subscribed.
        assert sorted(got) == [(1, "a", 7, "jobs.a.7", {"user": "ann"}), (2, "a", 8, "jobs.a.8", {})]

    run(check())


def test_topics_without_a_worker_do_not_delay_others(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs of a topic without a worker wait; jobs of other topics of the same queue pass them, and a line names it."""
    caplog.set_level(logging.INFO, "zroute")

    async def check() -> None:
        owner, done = App(nats=server.url, name="owner"), list[int]()
        queue = owner.job_queue("jobs.{kind}", int)
        only = worker(server.url, done.append, "jobs.a")
        async with owner.running(), only.running():
            for number in range(100):
                await queue.put(-1, kind="none")
                await queue.put(number, kind="a")
            await until(lambda: len(done) == 100)
            await until(lambda: queue.stats.done == 100)
            await until(lambda: queue.stats.waiting == 100)  # one may be on its way: the owner tries it each second
            assert sorted(done) == list(range(100))
            async with worker(server.url, done.append, "jobs.none").running():
                await until(lambda: len(done) == 200)

    run(check())
    assert "owner: jobs on NATS are sent at most once" in caplog.text


def test_a_full_worker_returns_jobs(server: NatsServer) -> None:
    """A worker whose handlers are busy keeps few further jobs; the others wait at the owner, or go to other workers."""

    async def check() -> None:
        owner, free = App(nats=server.url), asyncio.Event()
        queue = owner.job_queue("jobs.{kind}", int, waiting=5_000)
        done, most, now = list[int](), 0, 0

        async def busy(number: int) -> None:
            nonlocal most, now
            now += 1
            most = max(most, now)
            await free.wait()
            now -= 1
            done.append(number)

        slow, fast, others = worker(server.url, busy, max_in_flight=2), None, list[int]()
        async with owner.running(), slow.running():
            await heard(slow)
            for number in range(1_000):
                await queue.put(number, kind="x")
            await until(lambda: queue.stats.in_flight == 0 and queue.stats.done >= 4)
            given = queue.stats.done
            assert given == 4
            fast = worker(server.url, others.append)
            async with fast.running():
                await until(lambda: len(others) + given == 1_000)
                free.set()
                await until(lambda: len(done) == given)
                await until(lambda: queue.stats.done == 1_000)
        assert (most, total(queue), queue.stats.done) == (2, 1_000, 1_000)
        assert sorted(done + others) == list(range(1_000))

    run(check())


def test_full_workers_of_a_cluster_lose_no_jobs(tmp_path: Path) -> None:
    """Workers that are often full, at other servers than their owner, do each job once, and no job fails."""

    async def check() -> None:
        with cluster(tmp_path) as servers:
            owner, done = App(nats=servers[0].url), list[int]()
            queue = owner.job_queue("jobs.{kind}", int)

            async def work(number: int) -> None:
                await asyncio.sleep(0.01)
                done.append(number)

            async with owner.running(), AsyncExitStack() as stack:
                for server in servers:
                    await stack.enter_async_context(worker(server.url, work, max_in_flight=1).running())
                for number in range(600):
                    await queue.put(number, kind="ab"[number % 2])
                await until(lambda: queue.stats.done + queue.stats.failed == 600)
                await until(lambda: len(done) >= queue.stats.done)
            assert (sorted(done), queue.stats.failed) == (list(range(600)), 0)

    run(check())


def test_owners_let_topics_of_full_workers_rest(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """While all workers are full, their topics rest, and other topics are served; returned jobs are signs of life."""

    async def check() -> None:
        owner, free, done, others = App(nats=server.url), asyncio.Event(), list[int](), list[int]()
        queue = owner.job_queue("jobs.{kind}.{id}", int, silent_after=0.05)

        async def busy(number: int) -> None:
            await free.wait()
            done.append(number)

        full, other = (
            worker(server.url, busy, "jobs.a.*", max_in_flight=1),
            worker(server.url, others.append, "jobs.b.*"),
        )
        async with owner.running(), full.running(), other.running():
            await heard(full)
            await heard(other)
            for number in range(300):
                await queue.put(number, kind="a", id=number)
                await queue.put(number, kind="b", id=number)
            await until(lambda: len(others) == 300)
            group = owner._live.run.transport._group  # type: ignore[union-attr,attr-defined]
            await until(lambda: len(group._full) == 298)
            await until(lambda: group._rest == worker_group._REST_MAX)
            free.set()
            await until(lambda: len(done) == 300)
        assert (sorted(done), sorted(others), queue.stats.failed) == (list(range(300)), list(range(300)), 0)

    run(check())
    assert "silent" not in caplog.text


def test_overlapping_patterns_do_a_job_once(server: NatsServer) -> None:
    """Handlers of one app and of others share one group; within an app, the most specific handler does the job."""

    async def check() -> None:
        app, got = App(nats=server.url), list[tuple[str, int]]()
        queue = app.job_queue("jobs.{kind}", int)

        @app.work("jobs.>", thread=False)
        def anything(number: int) -> None:
            got.append(("anything", number))

        @app.work("jobs.a", thread=False)
        def exact(number: int) -> None:
            got.append(("exact", number))

        async with app.running(), worker(server.url, lambda n: got.append(("other", n)), "jobs.b").running():
            for number in range(300):
                await queue.put(number, kind="ab"[number % 2])
            await until(lambda: len(got) == 300)
        assert sorted(number for _, number in got) == list(range(300))
        assert {name for name, number in got if number % 2 == 0} == {"exact"}
        assert {name for name, number in got if number % 2} <= {"anything", "other"}

    run(check())


def test_failures_are_the_workers(server: NatsServer) -> None:
    """A failed or rejected job is counted at the worker; the owner has passed it on, and does not send it again."""

    async def check() -> None:
        owner, seen = App(nats=server.url), Counter[int]()
        queue = owner.job_queue("jobs.{kind}", int)

        def fails(number: int) -> None:
            seen[number] += 1
            raise Reject("no") if number % 2 else ValueError("bad")

        failing = worker(server.url, fails)
        async with owner.running(), failing.running():
            for number in range(10):
                await queue.put(number, kind="x")
            await until(lambda: sum(seen.values()) == 10)
            await until(lambda: queue.stats.done == 10)
        assert set(seen.values()) == {1}
        (stats,) = failing.stats.routes.values()
        assert (stats.handled, stats.handler_error) == (0, 10)
        assert (queue.stats.done, queue.stats.failed, queue.stats.retried) == (10, 0, 0)

    run(check())


@contextmanager
def single(folder: Path) -> Iterator[list[NatsServer]]:
    """Run one server, as `cluster` runs several."""
    with NatsServer(folder) as server:
        yield [server]


@pytest.mark.parametrize("size", [1, 3])
def test_a_killed_server_loses_counted_jobs_and_repeats_none(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a killed server, no job was done twice; each is done, or counted as failed and perhaps done."""
    monkeypatch.setattr(worker_group, "_CONFIRMED", 10.0)  # a job that only the worker's server had is not refused

    async def check() -> None:
        with cluster(tmp_path, size) if size > 1 else single(tmp_path) as servers:
            url = ",".join(each.url for each in servers)
            owner, seen = App(nats=url), Counter[int]()
            queue = owner.job_queue("jobs.{kind}", int, waiting=100)
            working = worker(url, lambda number: seen.update([number]))

            async with owner.running(), working.running():
                for number in range(1_000):
                    await queue.put(number, kind="x")
                    if number == 500:
                        transport = owner._live.run.transport  # type: ignore[union-attr]
                        mine = transport._group._nats.server  # type: ignore[attr-defined]
                        hit = next(each for each in servers if each.url == mine)
                        hit.kill()
                        hit.start()
                await until(lambda: queue.stats.done + queue.stats.failed == 1_000)
                await until(lambda: len(seen) >= queue.stats.done)
            assert set(seen.values()) == {1}
            assert queue.stats.done <= len(seen) <= queue.stats.done + queue.stats.failed
            assert total(queue) == 1_000
            # The owner and the worker lose their connections at different moments, so two windows may be unconfirmed.
            assert queue.stats.failed <= 2 * worker_group._CREDITS

    run(check())


@pytest.mark.parametrize("refused", ["job queues", "work", "requests"])
def test_a_connection_that_is_refused_after_the_start_is_tried_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """A server that refuses the connection for jobs or requests at first does not stop them for good."""
    caplog.set_level(logging.INFO, "zroute")
    opened, refusals = client_module.open_link, 3

    async def refusing(address: Server, options: LinkOptions, hooks: Hooks) -> Link:
        nonlocal refusals
        if refused in options.name and refusals:
            refusals -= 1
            raise RefusedError("it does not accept the credentials")
        return await opened(address, options, hooks)

    monkeypatch.setattr(client_module, "open_link", refusing)

    async def check() -> None:
        app, asks, done = App(nats=server.url, name="desk"), App(nats=server.url, name="desk"), list[int]()
        queue = app.job_queue("jobs.{kind}", int)
        app.work("jobs.*", thread=False)(done.append)
        async with app.running(), asks.running():
            await queue.put(1, kind="a")
            await until(lambda: done)
            with pytest.raises(NoServerError):
                await asks.request("none", 1, int, timeout=PATIENCE)

    run(check())
    assert refusals == 0
    assert f"desk ({refused}): connected to {server.url}" in caplog.text


def test_a_job_that_the_server_forbids_fails_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A job without permission fails with the reason, and other jobs are done."""

    async def check(url: str) -> None:
        owner, done = App(nats=url), list[int]()
        queue = owner.job_queue("jobs.{kind}", int)
        async with owner.running(), worker(url, done.append).running():
            await queue.put(1, kind="secret")
            await queue.put(2, kind="a")
            await until(lambda: (queue.stats.failed, queue.stats.done) == (1, 1))
        assert done == [2]

    denied = 'permissions: { publish: { deny: ["jobs.secret"] } }'
    with NatsServer(tmp_path, f"authorization {{ users: [{{ user: ann, password: secret, {denied} }}] }}") as server:
        run(check(server.url.replace("//", "//ann:secret@")))
    assert 'Permissions Violation for Publish to "jobs.secret"' in caplog.text


# -- the stop --------------------------------------------------------------------------------------------


def test_a_job_that_had_no_room_is_not_sent_after_the_stop(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for room in the send buffer at the stop is counted by its owner; no timer is left."""

    async def check() -> None:
        clock, sent, room = Clock(), list[Any](), False
        group = worker_group.WorkerGroup(clock, client_module.ClientOptions(parse_servers(server.url), "owner"))

        def publish(*given: Any) -> bool:
            if room:
                sent.append(given)
            return room

        send = group.open(Mock())
        await until(lambda: group._nats.connected)
        monkeypatch.setattr(group._nats, "publish", publish)
        send(b"", (JOB, bytes(16), b"jobs.a", b"", pack_job_meta(0, 1)))
        room = True
        await group.close(PATIENCE).asFuture(asyncio.get_running_loop())
        assert (len(group._unsent), sent, clock.getDelayedCalls()) == (1, [], [])

    run(check())


def test_a_stopping_worker_does_what_it_has(server: NatsServer) -> None:
    """A stop takes no further jobs, does those that have arrived, and leaves the others to the owner."""

    async def check() -> None:
        owner, done, go = App(nats=server.url), list[int](), asyncio.Event()
        queue = owner.job_queue("jobs.{kind}", int)

        async def wait(number: int) -> None:
            await go.wait()
            done.append(number)

        stopping = worker(server.url, wait, max_in_flight=1)
        async with owner.running():
            async with stopping.running():
                await heard(stopping)
                for number in range(50):
                    await queue.put(number, kind="x")
                await until(lambda: queue.stats.done >= 2 and not queue.stats.in_flight)
                asyncio.get_running_loop().call_later(0.05, go.set)
            await until(lambda: not queue.stats.in_flight)  # the owner may just have tried one again
            given = queue.stats.done
            assert (len(done), queue.stats.waiting) == (given, 50 - given)
            async with worker(server.url, done.append).running():
                await until(lambda: len(done) == 50)
        assert sorted(done) == list(range(50))

    run(check())


@pytest.mark.parametrize("others", [True, False])
def test_jobs_that_have_not_begun_go_to_other_workers(
    server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    """At the end of the drain timeout, jobs that have not begun go to another worker, or are logged as lost."""
    monkeypatch.setattr(transport_module, "LINGER_DRAIN", PATIENCE * 1000)

    async def check() -> None:
        owner, begun, done = App(nats=server.url), list[int](), list[int]()
        queue = owner.job_queue("jobs.{kind}", int)

        async def stuck(number: int) -> None:
            begun.append(number)
            await asyncio.Event().wait()

        async with owner.running(), AsyncExitStack() as stack:
            stopping = worker(server.url, stuck, max_in_flight=1)
            async with stopping.running(drain_timeout=0.2):
                await heard(stopping)
                for number in range(2):
                    await queue.put(number, kind="x")
                await until(lambda: queue.stats.done == 2)
                other = worker(server.url, done.append, "jobs.x" if others else "jobs.y")
                await stack.enter_async_context(other.running())
                await heard(other)
            if others:
                await until(lambda: done == [1])
        assert (begun, sorted(done)) == ([0], [1] if others else [])

    run(check())
    passed, lost = (1, 0) if others else (0, 1)
    assert f"jobs that had not begun at the end of the stop: {passed} passed to other workers, {lost} lost" in (
        caplog.text
    )


def test_jobs_that_cannot_be_passed_on_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the server accepts only smaller messages than before, a stop logs the job as lost, and ends."""

    async def check(server: NatsServer) -> None:
        owner, begun = App(nats=server.url, limits=Limits(max_message=1_000)), list[int]()
        queue = owner.job_queue("jobs.{kind}", str)
        app = App(nats=server.url, name="worker", limits=Limits(max_message=1_000))

        @app.work("jobs.*", thread=False, max_in_flight=1)
        async def stuck(text: str) -> None:
            begun.append(len(text))
            await asyncio.Event().wait()

        async with owner.running(), app.running(drain_timeout=0.2):
            await heard(app)
            for _ in range(2):
                await queue.put("x" * 900, kind="x")
            await until(lambda: queue.stats.done == 2)
            server.kill()
            server.configure("max_payload: 500")
            server.start()
            await until(lambda: app._live.run.transport._intake._nats.max_payload == 500)  # type: ignore[union-attr,attr-defined]
        assert begun == [900]

    with NatsServer(tmp_path) as server:
        run(check(server))
    assert "a job was not passed on: a message of" in caplog.text
    assert "0 passed to other workers, 1 lost" in caplog.text


def test_an_app_that_owns_and_does_its_jobs_stops_with_none_left(server: NatsServer) -> None:
    """A stop works off all jobs of an app whose own handlers do them."""

    async def check() -> None:
        app, done = App(nats=server.url), list[int]()
        queue = app.job_queue("jobs", int)

        @app.work("jobs", max_in_flight=2, thread=False)
        async def work(number: int) -> None:
            await asyncio.sleep(0)
            done.append(number)

        async with app.running(drain_timeout=PATIENCE):
            for number in range(200):
                await queue.put(number)
        assert (sorted(done), queue.stats.dropped_at_shutdown) == (list(range(200)), 0)

    run(check())


# -- other programs --------------------------------------------------------------------------------------


def test_a_worker_without_zroute_takes_part(server: NatsServer) -> None:
    """A plain client in the queue group gets jobs with clean bodies, also those that waited; its replies do no harm."""

    async def check() -> None:
        owner, got, bodies = App(nats=server.url, codec="json"), list[int](), list[bytes]()
        queue = owner.job_queue("jobs.{kind}", int)
        async with owner.running(), plain(server.url) as client:
            await queue.put(0, kind="x")
            await until(lambda: owner._live.run.transport._group._held)  # type: ignore[union-attr,attr-defined]

            async def take(message: Any) -> None:
                bodies.append(message.data)
                await message.respond(b"done")

            await client.subscribe("jobs.*", queue=NAME, cb=take)
            async with worker(server.url, got.append).running():
                for number in range(1, 100):
                    await queue.put(number, kind="x")
                await until(lambda: len(got) + len(bodies) == 100)
                await until(lambda: queue.stats.done == 100)
        assert sorted([*got, *map(int, bodies)]) == list(range(100))
        assert (queue.stats.done, queue.stats.failed) == (100, 0)

    run(check())


def test_a_subscriber_of_all_messages_is_no_worker(server: NatsServer) -> None:
    """NATS reports no missing receiver if a subscriber gets the job; without a worker's reply, the job fails."""

    async def check() -> None:
        owner, reader, heard_texts = App(nats=server.url), App(nats=server.url), list[str]()
        queue = owner.job_queue("jobs.{kind}", int)
        reader.subscribe(">")(lambda body: heard_texts.append("body"))
        async with owner.running(), reader.running():
            await until(lambda: owner.stats.workers == 1)
            await queue.put(1, kind="a")
            await until(lambda: queue.stats.failed == 1)
        assert (queue.stats.done, heard_texts) == (0, [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_group, "_CONFIRMED", 0.1)
        run(check())


def test_a_worker_without_zroute_refuses_jobs(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """The error 503 returns a job to the owner, another error ends the job."""

    async def check() -> None:
        owner, seen = App(nats=server.url), list[int]()
        queue = owner.job_queue("jobs.{kind}", int)
        async with owner.running(), plain(server.url) as client:

            async def take(message: Any) -> None:
                seen.append(message.data[0])
                code = {1: "503", 2: "503", 3: "422"}.get(len(seen))
                headers = {"Nats-Service-Error": "not now", "Nats-Service-Error-Code": code} if code else None
                await client.publish(message.reply, b"", headers=headers)

            await client.subscribe("jobs.*", queue=NAME, cb=take)
            await known(client)
            await queue.put(1, kind="a")
            await until(lambda: queue.stats.failed == 1)
            await queue.put(2, kind="a")
            await until(lambda: queue.stats.done == 1)
        assert seen == [1, 1, 1, 2]

    run(check())
    assert "not now" in caplog.text


def test_programs_without_zroute_submit_jobs(server: NatsServer) -> None:
    """A published message is a job; a request is a job whose sender learns the result."""

    async def check() -> None:
        done = list[int]()

        def work(number: int) -> None:
            if number < 0:
                raise ValueError("negative")
            done.append(number)

        async with worker(server.url, work).running(), plain(server.url) as client:
            reply = await _ask(client, "jobs.x", b"1")
            assert (reply.data, reply.headers) == (b"", None)
            await client.publish("jobs.x", b"2")
            await until(lambda: done == [1, 2])
            failed = await _ask(client, "jobs.x", b"-1")
            assert failed.headers["Nats-Service-Error"] == "ValueError: negative"
            wrong = await _ask(client, "jobs.x", b"{")
            assert wrong.headers["Nats-Service-Error-Code"] == "500"
            assert "DecodeError" in wrong.headers["Nats-Service-Error"]

    run(check())


async def _ask(client: Any, subject: str, body: bytes) -> Any:
    """Send a request, again while no worker has subscribed."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await client.request(subject, body, timeout=PATIENCE)
            except nats.errors.NoRespondersError:
                await asyncio.sleep(0.005)


def test_jobs_messages_and_requests_of_one_topic_are_apart(server: NatsServer) -> None:
    """Subscribers and servers get no jobs; workers get no published messages and no requests."""

    async def check() -> None:
        app, got = App(nats=server.url), list[tuple[str, str]]()
        queue, publisher = app.job_queue("x.{kind}", str), app.publisher("x.{kind}", str)

        @app.subscribe("x.>")
        def hear(text: str) -> None:
            got.append(("hear", text))

        @app.reply("x.reply")
        def reply(text: str) -> str:
            got.append(("reply", text))
            return text

        @app.work("x.>", thread=False)
        def work(text: str) -> None:
            got.append(("work", text))

        async with app.running():
            await heard(app)
            await app.ready()
            publisher.publish("published", kind="a")
            await queue.put("job", kind="a")
            await queue.put("job", kind="reply")
            assert await app.request("x.reply", "asked", str) == "asked"
            await until(lambda: len(got) == 4)
        assert sorted(got) == [("hear", "published"), ("reply", "asked"), ("work", "job"), ("work", "job")]
        assert app.stats.malformed == 0

    run(check())


def test_a_malformed_job_is_logged_and_does_no_harm(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs of a forger are dropped with a line; the next job is done."""

    async def check() -> None:
        done = list[int]()
        async with worker(server.url, done.append).running(), plain(server.url) as client:
            await _ask(client, "jobs.x", b"0")
            for value in ("zz", "00", "00" * 20, "00" * 16 + "09020001"):
                await client.publish("jobs.x", b"9", headers={"Zr-Job": value})
            await client.publish(JOBS.decode(), b"\xff")
            await _ask(client, "jobs.x", b"1")
        assert done == [0, 1]

    run(check())
    assert "a job was refused" in caplog.text


def test_waiting_jobs_with_one_id_do_not_block_the_worker(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """A forger's jobs with one id that wait behind others are done once, and the handler then has room again."""

    async def check() -> None:
        done, gate = list[int](), asyncio.Event()

        async def wait(number: int) -> None:
            await gate.wait()
            done.append(number)

        app = worker(server.url, wait, max_in_flight=1)
        async with app.running(), plain(server.url) as client:
            await heard(app)
            intake = app._live.run.transport._intake  # type: ignore[union-attr,attr-defined]
            (lane,) = intake._lanes
            for number in range(lane.credits):
                await client.publish("jobs.x", b"%d" % number)
            await client.flush()
            await until(lambda: lane.given == lane.credits)
            # These were sent before the worker left the group.
            for number in (97, 98, 99):
                block = b"NATS/1.0\r\nZr-Job: " + b"ab" * 16 + b"01020001\r\n\r\n"
                intake._take(b"jobs.x", None, block, b"%d" % number)
            gate.set()
            await until(lambda: lane.credits + 1 == len(done))
            await until(lambda: not lane.number)
            assert (lane.is_full, intake._size, intake._given) == (False, 0, {})
        assert done == [*range(lane.credits), 97]

    run(check())
    assert "a job that this worker already has" in caplog.text


# -- limits ----------------------------------------------------------------------------------------------


def test_a_worker_with_too_many_bytes_stops_reading(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a flood are held up to a number of bytes; all are done in the end."""
    monkeypatch.setattr(job_intake, "JOBS_HELD", 20_000)

    async def check() -> None:
        done, free = list[int](), asyncio.Event()

        async def wait(number: int) -> None:
            await free.wait()
            done.append(number)

        flooded = worker(server.url, wait, max_in_flight=1)
        async with flooded.running(), plain(server.url) as client:
            await heard(flooded)
            intake = flooded._live.run.transport._intake  # type: ignore[union-attr,attr-defined]
            for number in range(100):
                await client.publish("jobs.x", b"%d" % number)
            await client.flush()
            await until(lambda: intake._paused)
            free.set()
            await until(lambda: not intake._paused and not intake._size)
        assert done == list(range(len(done)))
        assert len(done) > 10

    run(check())


def test_what_nats_does_not_carry_is_refused_at_put(server: NatsServer) -> None:
    """Topics and headers that would not arrive raise errors at the caller."""

    async def check() -> None:
        app = App(nats=server.url)
        queue = app.job_queue("jobs.{kind}", int)
        async with app.running():
            with pytest.raises(TopicError):
                await queue.put(1, kind="a b")
            with pytest.raises(EncodeError, match="'user' can't be sent over NATS"):
                queue.put_nowait(1, kind="a", headers={"user": 7})
            assert queue.stats.put == 0

    run(check())


def test_what_cannot_work_is_refused_at_the_start() -> None:
    """A prefix inside a segment would lose jobs; retries and dead letters need an owner that learns of failures."""
    app = App(nats="nats://127.0.0.1:1")
    app.work(startswith("jobs.a"))(print)
    with pytest.raises(PatternError, match="ends inside a segment, but NATS filters by whole segments"):
        app.compile().endpoints()
    for options in ({"retry": (1,)}, {"dead": "dead.x"}):
        app = App(nats="nats://127.0.0.1:1")
        app.job_queue("jobs", int, **options)  # type: ignore[arg-type]
        with pytest.raises(EndpointError, match="no owner notices"):
            app.compile().endpoints()
