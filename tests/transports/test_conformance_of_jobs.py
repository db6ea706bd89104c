"""The behaviour of requests and jobs that ZeroMQ, memory and NATS share.

As in `tests.transports.test_conformance`, the tests over NATS run only with ``pytest --reactor asyncio``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.running import Mailbox, reactor, turns
from tests.support import PATIENCE, free_endpoint, spans
from tests.transports.test_conformance import KINDS, Make, OnNats, make, met, nats_url
from zroute import App, Envelope, Reject, RequestRefused, RequestRefusedError
from zroute.errors import (
    BadRequestError,
    HighWaterMarkError,
    NoHandlerError,
    NoServerError,
    RequestTimeoutError,
    ServerError,
)
from zroute.transports.nats import NatsTransport

__all__ = ["make", "nats_url"]  # fixtures

pytestmark = pytest.mark.parametrize("make", [kind for kind in KINDS if kind != "lines"], indirect=True)


@attrs.frozen
class Order:
    """A job or a request."""

    number: int
    text: str = ""


@asynccontextmanager
async def reached(make: Make, *apps: App) -> AsyncIterator[None]:
    """Run the apps; on NATS, wait until the server knows what they answer, as a connection shows on ZeroMQ."""
    async with met(make, *apps) as services:
        for service in services:
            assert service._run is not None
            transport = service._run.transport
            if isinstance(transport, NatsTransport):
                for client in (transport._requests._nats, transport._intake and transport._intake._nats):
                    if client is not None and client._task is not None:  # it was started
                        await turns(lambda client=client: client.connected)
                        await client.ping()
        yield


# -- requests --------------------------------------------------------------------------------------------


def pair() -> tuple[App, App]:
    """Return a server and a client."""
    endpoint = free_endpoint()
    return App(rep=endpoint), App(req=endpoint)


@pytest_twisted.ensureDeferred
async def test_requests_are_answered_refused_or_fail(make: Make) -> None:
    """A reply has its type, headers arrive, and each failure is the same error on every transport."""
    server, client = pair()

    @server.reply("prices.{symbol}")
    def price(order: Order, symbol: str, envelope: Envelope) -> Order:
        if order.number == 0:
            raise RequestRefused(409, "sold out")
        if order.number < 0:
            raise ValueError("negative")
        return Order(order.number * 2, f"{symbol} for {envelope.headers.get('user')}")

    async with reached(make, server, client):
        reply = await client.request("prices.a", Order(3), Order, headers={"user": "ann"}, timeout=PATIENCE)
        assert reply == Order(6, "a for ann")
        with pytest.raises(RequestRefusedError, match="409: sold out"):
            await client.request("prices.a", Order(0), Order, timeout=PATIENCE)
        with pytest.raises(ServerError, match="ValueError: negative"):
            await client.request("prices.a", Order(-1), Order, timeout=PATIENCE)
        with pytest.raises(BadRequestError, match="number"):
            await client.request("prices.a", {"number": "x"}, Order, timeout=PATIENCE)
        with pytest.raises(NoServerError if isinstance(make, OnNats) else NoHandlerError):
            await client.request("other", None, Order, timeout=PATIENCE)
    assert client.stats.replies_late == 0


@pytest_twisted.ensureDeferred
async def test_streams_are_whole_and_end_early(make: Make) -> None:
    """The items of a stream arrive in order; a reader that stops early closes the generator."""
    server, client = pair()
    closed = Mailbox[str]()

    @server.reply("rows.{count}")
    def rows(count: int) -> Iterator[int]:
        try:
            yield from range(count)
        finally:
            closed.put("closed")

    async with reached(make, server, client):
        assert [each async for each in client.request_stream("rows.500", None, int)] == list(range(500))
        stream = client.request_stream("rows.100000", None, int)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        await stream.aclose()
        await closed.until(2)


@pytest_twisted.ensureDeferred
async def test_a_request_ends_with_its_timeout(make: Make) -> None:
    """A client that waits too long gets an error, and the call at the server is cancelled."""
    server, client = pair()
    begun, cancelled = list[int](), Mailbox[str]()

    @server.reply("slow")
    async def slow() -> int:
        begun.append(1)
        await Deferred(lambda _: cancelled.put("cancelled"))
        return 1

    async with reached(make, server, client):
        for seconds in spans(0.1):  # a request whose time is over before it has a connection is not sent
            with pytest.raises(RequestTimeoutError):
                await client.request("slow", None, int, timeout=seconds)
            if begun:
                break
        await cancelled.until(1)


@pytest_twisted.ensureDeferred
async def test_a_stopping_server_answers_what_it_has(make: Make) -> None:
    """Requests that have begun are answered although the server stops."""
    server, client = pair()
    begun, free = Mailbox[int](), Deferred[None]()

    @server.reply("slow", max_in_flight=5)
    async def slow(number: int) -> int:
        begun.put(number)
        waiting: Deferred[None] = Deferred()
        free.addCallback(lambda _: waiting.callback(None))
        await waiting
        return number

    replies: list[int] = []
    async with reached(make, client):
        async with reached(make, server):
            asked = [Deferred.fromCoroutine(client.request("slow", each, int, timeout=PATIENCE)) for each in range(5)]
            for each in asked:
                each.addCallback(replies.append)
            await begun.until(5)
            reactor.callLater(0.05, free.callback, None)
        for each in asked:
            await each
    assert sorted(replies) == list(range(5))


# -- jobs ------------------------------------------------------------------------------------------------


def farm(number: int, **options: Any) -> tuple[App, list[App]]:
    """Return an owner, and some workers without handlers."""
    endpoint = free_endpoint()
    return App(jobs=endpoint, **options), [App(work=endpoint) for _ in range(number)]


@pytest_twisted.ensureDeferred
async def test_workers_share_jobs_and_do_each_once(make: Make) -> None:
    """Each job is done once, by one of the workers, and is counted once at the owner."""
    owner, workers = farm(2)
    queue, done = owner.job_queue("jobs.{kind}", Order), Mailbox[tuple[int, int]]()
    for number, worker in enumerate(workers):

        @worker.work("jobs.*", thread=False)
        def work(order: Order, number: int = number) -> None:
            done.put((number, order.number))

    async with reached(make, owner, *workers):
        if not isinstance(make, OnNats):
            await turns(lambda: owner.stats.workers == 2)
        for number in range(300):
            await queue.put(Order(number), kind="a")
        await done.until(300)
        await turns(lambda: queue.stats.done == 300)
    assert sorted(number for _, number in done.items) == list(range(300))
    assert {worker for worker, _ in done.items} == {0, 1}
    stats = queue.stats
    assert (stats.put, stats.done, stats.failed, stats.waiting, stats.in_flight) == (300, 300, 0, 0, 0)
    assert [next(iter(each.stats.routes.values())).handler_error for each in workers] == [0, 0]


@pytest_twisted.ensureDeferred
async def test_jobs_arrive_as_they_were_put(make: Make) -> None:
    """A job has its topic, captures, headers and type, and the most specific handler does it."""
    owner, (worker,) = farm(1)
    queue, got = owner.job_queue("jobs.{kind}.{id}", Order), Mailbox[Any]()

    @worker.work("jobs.{kind}.{id}", thread=False)
    def work(order: Order, kind: str, id: int, envelope: Envelope) -> None:
        got.put((order, kind, id, str(envelope.topic), dict(envelope.headers)))

    @worker.work("jobs.special.*", thread=False)
    def special(order: Order) -> None:
        got.put(("special", order))

    async with reached(make, owner, worker):
        await queue.put(Order(1, "ä"), kind="a", id=7, headers={"user": "ann"})
        await got.until(1)
        await queue.put(Order(2), kind="special", id=8)
        await got.until(2)
    assert got.items == [(Order(1, "ä"), "a", 7, "jobs.a.7", {"user": "ann"}), ("special", Order(2))]


@pytest_twisted.ensureDeferred
async def test_jobs_are_bounded_and_listed(make: Make) -> None:
    """No more than max_in_flight jobs run, and a handler of lists gets lists."""
    owner, (worker,) = farm(1)
    queue, lists = owner.job_queue("one", int), owner.job_queue("many", int)
    running, most, free = 0, 0, list[Deferred[None]]()
    begun, got = Mailbox[int](), Mailbox[int]()

    @worker.work("one", max_in_flight=2)
    async def one(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        waiting: Deferred[None] = Deferred()
        free.append(waiting)
        begun.put(number)
        await waiting
        running -= 1

    @worker.work("many", batch=5, thread=False)
    def many(numbers: list[int]) -> None:
        for number in numbers:
            got.put(number)

    async with reached(make, owner, worker):
        for number in range(20):
            await queue.put(number)
            await lists.put(number)
        for number in range(20):
            await begun.until(min(number + 2, 20))
            free[number].callback(None)
        assert sorted(await got.until(20)) == list(range(20))
    assert (most, sorted(begun.items)) == (2, list(range(20)))


@pytest_twisted.ensureDeferred
async def test_failures_are_counted_at_the_worker(make: Make) -> None:
    """Failed, rejected and undecodable jobs do not run again, and the next jobs are done."""
    owner, (worker,) = farm(1)
    queue, done = owner.job_queue("jobs", Any), Mailbox[int]()

    @worker.work("jobs", thread=False)
    def work(number: int) -> None:
        done.put(number)
        if number == 1:
            raise ValueError("bad")
        if number == 2:
            raise Reject("never")

    async with reached(make, owner, worker):
        for job in (1, 2, "text", 3):
            await queue.put(job)
        await done.until(3)
        await turns(lambda: not queue.stats.in_flight and not queue.stats.waiting)
        (stats,) = worker.stats.routes.values()
        await turns(lambda: stats.handled)  # on NATS, a job may be done later than the owner thinks
        assert (stats.handled, stats.handler_error, stats.decode_error) == (1, 2, 1)
    assert done.items == [1, 2, 3]
    # On NATS, the owner is not told of failures: "done" counts the jobs that were passed to a worker.
    assert (queue.stats.done, queue.stats.failed) == ((4, 0) if isinstance(make, OnNats) else (1, 3))


@pytest_twisted.ensureDeferred
async def test_jobs_wait_for_a_worker_and_the_queue_is_bounded(make: Make) -> None:
    """Without a worker, jobs wait up to a limit; then put_nowait raises, and put waits until a worker joins."""
    owner, (worker,) = farm(1)
    queue, done = owner.job_queue("jobs", int, waiting=5), Mailbox[int]()

    @worker.work("jobs", thread=False)
    def work(number: int) -> None:
        done.put(number)

    number = 0

    def fill() -> None:
        nonlocal number
        while True:
            queue.put_nowait(number)
            number += 1

    async with reached(make, owner):
        await turns(lambda: owner.stats.workers == isinstance(make, OnNats))
        with pytest.raises(HighWaterMarkError):
            fill()
        await turns(lambda: queue.stats.waiting == number)
        put = Deferred.fromCoroutine(queue.put(number))
        assert not put.called
        async with reached(make, worker):
            await put
            assert sorted(await done.until(number + 1)) == list(range(number + 1))


@pytest_twisted.ensureDeferred
async def test_a_stopping_worker_leaves_the_other_jobs(make: Make) -> None:
    """A worker that stops ends what runs; what it does not do is done by the next worker, and nothing twice."""
    owner, (first, second) = farm(2)
    queue, done, free = owner.job_queue("jobs", int), Mailbox[int](), Deferred[None]()

    @first.work("jobs", max_in_flight=1)
    async def slow(number: int) -> None:
        waiting: Deferred[None] = Deferred()
        free.addCallback(lambda _: waiting.callback(None))
        begun.put(number)
        await waiting
        done.put(number)

    begun = Mailbox[int]()

    @second.work("jobs", thread=False)
    def fast(number: int) -> None:
        done.put(number)

    async with reached(make, owner):
        async with reached(make, first):
            for number in range(30):
                await queue.put(number)
            await begun.until(1)
            reactor.callLater(0.05, free.callback, None)
        assert len(done.items) < 30
        async with reached(make, second):
            assert sorted(await done.until(30)) == list(range(30))
    assert (queue.stats.done, queue.stats.dropped_at_shutdown) == (30, 0)


@pytest_twisted.ensureDeferred
async def test_an_app_does_its_own_jobs_before_it_ends(make: Make) -> None:
    """A stop works off the jobs of an app that is owner and worker."""
    endpoint = free_endpoint()
    app = App(jobs=endpoint, work=f"connect:{endpoint}")
    queue, done = app.job_queue("jobs", int), list[int]()

    @app.work("jobs", max_in_flight=2)
    async def work(number: int) -> None:
        await turns(lambda: True)
        done.append(number)

    async with reached(make, app):
        for number in range(40):
            await queue.put(number)
    assert (sorted(done), queue.stats.dropped_at_shutdown) == (list(range(40)), 0)
