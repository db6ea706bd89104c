"""Jobs over real sockets: owners, workers of zroute, and workers in other words."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox, reactor, turns
from tests.sockets.opened import Sockets
from tests.support import ROOT, Way, free_endpoint
from zroute.endpoints import parse_endpoint
from zroute.errors import EndpointError
from zroute.jobs.owner import JobOwner, OwnedQueue, Settings
from zroute.jobs.worker import JobWorker, WorkerJob, WorkLane
from zroute.messages.jobs import ACCEPTED, ALIVE, DONE, JOB, OFFER, pack_offer, pack_terms
from zroute.messages.topics import parse
from zroute.sockets.events import SocketEvent
from zroute.sockets.jobs import JobsConnection, WorkConnection
from zroute.throttle import ThrottledLog

LOG = logging.getLogger("zroute.test")


class Owner:
    """An owner with one queue, at a real socket."""

    def __init__(self, sockets: Sockets, endpoint: str = "tcp://127.0.0.1:*", **settings: Any) -> None:
        self.connection = sockets.make(JobsConnection)
        self.log = ThrottledLog(LOG, reactor)
        self.engine = JobOwner(reactor, self.connection.tell, self.log, "farm")
        self.connection.owner = self.engine
        self.queue: OwnedQueue = self.engine.add(Settings("jobs.{kind}", **settings), lambda job, text: None)
        self.address = self.connection.open(endpoint)
        self.engine.start()

    def close(self) -> None:
        """Stop the owner and its timers."""
        self.engine.close()
        self.connection.close()
        self.log.close()


async def opened_again(sockets: Sockets, address: str) -> Owner:
    """Return an owner at the address of a closed one, which libzmq frees a moment later."""
    opened: list[Owner] = []

    def opens() -> bool:
        with suppress(EndpointError):
            opened.append(Owner(sockets, address))
        return bool(opened)

    await turns(opens)
    return opened[0]


class Worker:
    """A worker with one handler, at a real socket."""

    def __init__(
        self, sockets: Sockets, address: str, begin: Callable[[WorkerJob], object], most: int = 2, bind: bool = False
    ) -> None:
        self.events = Mailbox[SocketEvent]()
        self.log = ThrottledLog(LOG, reactor)
        self.connection = WorkConnection(
            reactor, parse_endpoint(address, bind=bind), watchers=(self.events.put,), context=sockets.context
        )
        lane = WorkLane("work", "here", (parse("jobs.*"),), most, lambda jobs: begin(jobs[0]))
        self.engine = JobWorker(reactor, self.connection.tell, (lane,), lambda _: lane, self.log, address, "app")
        self.engine.reconnect = self.connection.reconnect
        self.connection.worker = self.engine
        self.address = self.connection.open()

    def close(self) -> None:
        """Disconnect at once, like a process that is killed."""
        self.engine.close()
        self.connection.close(0)
        self.log.close()


@pytest.fixture
def opened() -> Any:
    """Return a list of owners and workers, which are closed at the end."""
    made: list[Any] = []
    yield made
    for each in made:
        each.close()


@pytest_twisted.ensureDeferred
async def test_jobs_are_done_by_two_workers(sockets: Sockets, way: Way, opened: list[Any]) -> None:
    """All jobs are done, and both workers get a part of them."""
    owner = Owner(sockets, way.wildcard)
    boxes = [Mailbox[bytes](), Mailbox[bytes]()]

    def doing(box: Mailbox[bytes]) -> Callable[[WorkerJob], None]:
        def begin(job: WorkerJob) -> None:
            box.put(job.frame.body)
            job.done()

        return begin

    opened += [owner, *(Worker(sockets, way.to(owner.address), doing(box)) for box in boxes)]
    await turns(lambda: owner.engine.workers == 2)
    for number in range(500):
        await owner.queue.put(b"jobs.x", 1, b"%d" % number)
    await turns(lambda: owner.queue.stats.done == 500)
    assert sorted(int(body) for box in boxes for body in box.items) == list(range(500))
    assert all(len(box.items) > 50 for box in boxes)


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_connection_gives_its_jobs_to_others_at_once(sockets: Sockets, opened: list[Any]) -> None:
    """They do not wait for the time of silence, nor for the next sign of life."""
    owner = Owner(sockets, silent_after=1000.0)
    dying = Worker(sockets, owner.address, lambda job: None, 4)
    opened.append(owner)
    for number in range(6):
        await owner.queue.put(b"jobs.x", 1, b"%d" % number)
    await turns(lambda: owner.queue.stats.in_flight == 6)
    dying.close()
    box = Mailbox[bytes]()

    def begin(job: WorkerJob) -> None:
        box.put(job.frame.body)
        job.done()

    opened.append(Worker(sockets, owner.address, begin))
    assert sorted(await box.until(6)) == [b"%d" % number for number in range(6)]
    assert (owner.queue.stats.redelivered, owner.engine.workers) == (6, 1)


@pytest_twisted.ensureDeferred
async def test_a_worker_finds_a_restarted_owner(sockets: Sockets, opened: list[Any]) -> None:
    """It makes its offer again, and a report about a job of the former owner changes nothing."""
    owner = Owner(sockets, free_endpoint())
    held: list[WorkerJob] = []
    box = Mailbox[WorkerJob]()
    opened.append(Worker(sockets, owner.address, box.put, 1))
    await owner.queue.put(b"jobs.x", 1, b"old")
    held += await box.until(1)
    owner.close()
    again = await opened_again(sockets, owner.address)
    opened.append(again)
    await again.queue.put(b"jobs.x", 1, b"new")
    await turns(lambda: again.engine.workers == 1)
    held[0].done()
    await box.until(2)
    box.items[1].done()
    await turns(lambda: again.queue.stats.done == 1)
    assert [job.frame.body for job in box.items] == [b"old", b"new"]


@pytest_twisted.ensureDeferred
async def test_a_worker_may_bind_and_its_owner_connect(sockets: Sockets, opened: list[Any]) -> None:
    """The sides of a connection do not matter."""
    box = Mailbox[bytes]()

    def begin(job: WorkerJob) -> None:
        box.put(job.frame.body)
        job.done()

    worker = Worker(sockets, "tcp://127.0.0.1:*", begin, bind=True)
    owner = Owner(sockets, f"connect:{worker.address}")
    opened += [owner, worker]
    await owner.queue.put(b"jobs.x", 1, b"one")
    assert await box.until(1) == [b"one"]


@pytest_twisted.ensureDeferred
async def test_a_worker_written_from_the_specification_works(sockets: Sockets, opened: list[Any]) -> None:
    """The worker in the documentation of the wire does jobs, and its failures are failures."""
    (source,) = re.findall(
        r"```python\n(import struct\nimport time.*?)```", (ROOT / "docs/reference/wire.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(source, names)
    owner = Owner(sockets)
    opened.append(owner)
    done: list[tuple[str, bytes]] = []

    def do(topic: str, body: bytes) -> None:
        done.append((topic, body))
        if topic == "jobs.bad":
            raise ValueError("bad job")

    ended = threading.Event()
    names["time"] = SimpleNamespace(monotonic=lambda: float(ended.is_set()))  # its time is over when the test says so
    thread = threading.Thread(target=names["work"], args=(owner.address, "jobs.*", do, 0.5), daemon=True)
    thread.start()
    for topic in (b"jobs.a", b"jobs.bad", b"jobs.b"):
        await owner.queue.put(topic, 2, b"{}")
    await turns(lambda: owner.queue.stats.done == 2 and owner.queue.stats.failed == 1)
    assert sorted(done) == [("jobs.a", b"{}"), ("jobs.b", b"{}"), ("jobs.bad", b"{}")]
    ended.set()
    await turns(lambda: not thread.is_alive())


@pytest_twisted.ensureDeferred
async def test_an_owner_survives_strangers(sockets: Sockets, opened: list[Any]) -> None:
    """Malformed messages are counted and logged, an oversized one ends its connection, and good workers go on."""
    owner = Owner(sockets, silent_after=1000.0)  # the good one sends no signs of life
    opened.append(owner)
    stranger, good = sockets.raw(zmq.DEALER), sockets.raw(zmq.DEALER)
    for socket in (stranger, good):
        socket.connect(owner.address)
    for parts in ([b""], [b"x"] * 20, [OFFER], [OFFER, b"\1\0"], [DONE, b""], [b"\xff" * 8000], [b"F", b"x", b"y"]):
        stranger.send_multipart(parts)
    stranger.send(bytes(100_000))
    good.send_multipart([OFFER, pack_offer([(1, [parse("jobs.*")])])])
    await turns(lambda: owner.engine.workers == 1)
    await owner.queue.put(b"jobs.x", 1, b"one")

    def work() -> None:
        while True:
            kind, *rest = good.recv_multipart()
            if kind == JOB:
                good.send_multipart([DONE, rest[0]])
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    await turns(lambda: owner.queue.stats.done == 1)
    thread.join()
    await turns(lambda: owner.connection.malformed >= 4)  # of another connection, which may be slower


@pytest_twisted.ensureDeferred
async def test_an_owner_drops_a_worker_that_reads_nothing(sockets: Sockets, opened: list[Any]) -> None:
    """What is queued for it is bounded: its jobs wait for others."""
    owner = Owner(sockets, waiting=10, silent_after=1000.0)
    owner.connection.close()
    owner.connection = sockets.make(JobsConnection, sndhwm=10, sndbuf=4096)
    owner.engine._send = owner.connection.tell
    owner.connection.owner = owner.engine
    opened.append(owner)
    deaf = sockets.raw(zmq.DEALER)
    deaf.rcvhwm, deaf.rcvbuf = 1, 4096
    deaf.connect(owner.connection.open("tcp://127.0.0.1:*"))
    deaf.send_multipart([OFFER, pack_offer([(1000, [parse("jobs.*")])])])
    await turns(lambda: owner.engine.workers == 1)
    for _ in range(1000):
        if not owner.engine.workers:
            break
        await owner.queue.put(b"jobs.x", 1, bytes(100_000))
    assert owner.engine.workers == 0
    assert owner.queue.stats.waiting == owner.queue.stats.redelivered + 1 > 1, "it never had the last one"


@pytest_twisted.ensureDeferred
async def test_a_worker_survives_a_hostile_owner(sockets: Sockets, opened: list[Any]) -> None:
    """Malformed messages of an owner are counted, and the next good job is done."""
    router, box = sockets.raw(zmq.ROUTER), Mailbox[bytes]()
    port = router.bind_to_random_port("tcp://127.0.0.1")
    worker = Worker(sockets, f"tcp://127.0.0.1:{port}", lambda job: box.put(job.frame.body))
    opened.append(worker)

    def own() -> None:
        identity, *_ = router.recv_multipart()
        for parts in ([b""], [b"J"], [b"A"], [b"J", b"i" * 16, b"t"], [b"?", b"x"], [b"\xff"] * 20, [ALIVE]):
            router.send_multipart([identity, *parts])
        router.send_multipart([identity, ACCEPTED, pack_terms(10.0)])
        router.send_multipart([identity, JOB, b"i" * 16, b"jobs.x", b"good", b"\1\0\0\1"])

    thread = threading.Thread(target=own, daemon=True)
    thread.start()
    assert await box.until(1) == [b"good"]
    thread.join()
    assert worker.engine.malformed == 5
