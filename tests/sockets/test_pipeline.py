"""PUSH and PULL: each job is done once."""

from __future__ import annotations

import pytest_twisted
import zmq

from tests.running import Mailbox, turns
from tests.sockets.opened import Sockets, bound
from tests.support import Way, free_endpoint
from zroute.errors import HighWaterMarkError
from zroute.sockets.events import SocketEvent
from zroute.sockets.pipeline import PullConnection, PushConnection


@pytest_twisted.ensureDeferred
async def test_every_job_goes_to_one_worker(sockets: Sockets, way: Way) -> None:
    """10,000 jobs for three workers, one of plain pyzmq: each job is done once, and all workers share."""
    box, events = Mailbox[tuple[int, bytes]](), Mailbox[SocketEvent]()
    push = sockets.make(PushConnection)
    push.watch(events.put)
    address = way.to(push.open(way.wildcard))
    for number in range(3):
        worker = sockets.make(PullConnection, lambda parts, number=number: box.put((number, parts[0])))
        worker.open(address)
        await push.when_writable()
    await turns(lambda: sum(event.name == "handshake_succeeded" for event in events.items) >= 3)
    jobs = [b"%d" % number for number in range(10_000)]
    for job in jobs:
        while True:
            try:
                push.send(job)
                break
            except HighWaterMarkError:
                await push.when_writable()
    done = await box.until(len(jobs))
    assert sorted(job for _, job in done) == sorted(jobs)
    for number in range(3):
        own = [int(job) for worker, job in done if worker == number]
        assert own == sorted(own)
        assert own


@pytest_twisted.ensureDeferred
async def test_both_sides_bind_and_connect_as_i_say(sockets: Sockets, way: Way) -> None:
    """A PULL that binds collects from a PUSH of zroute and from one of pyzmq."""
    box = Mailbox[list[bytes]]()
    sink = sockets.make(PullConnection, box.put)
    address = way.to(sink.open(f"bind:{way.wildcard}"))
    push, raw = sockets.make(PushConnection), sockets.raw(zmq.PUSH)
    push.open(f"connect:{address}")
    raw.set(zmq.IPV6, "[" in address)
    raw.connect(address)
    await push.when_writable()
    push.send(b"ours")
    raw.send(b"theirs")
    assert sorted(await box.until(2)) == [[b"ours"], [b"theirs"]]


@pytest_twisted.ensureDeferred
async def test_one_connection_has_several_endpoints(sockets: Sockets) -> None:
    """A connection mixes bound and connected endpoints; each can be closed by the result of open."""
    box = Mailbox[list[bytes]]()
    pull, bound_push, raw = sockets.make(PullConnection, box.put), sockets.make(PushConnection), sockets.raw(zmq.PUSH)
    here, there = pull.open(f"bind:{free_endpoint()}"), pull.open(bound(raw))
    later = pull.open(f"connect:{free_endpoint()}")
    assert pull.endpoints == [here, there, later]
    bound_push.open(f"connect:{here}")
    await bound_push.when_writable()
    bound_push.send(b"bound")
    raw.send(b"connected")
    await box.until(2)
    pull.disconnect(later)
    pull.unbind(here)
    assert pull.endpoints == [there]
    other = sockets.raw(zmq.PULL)

    def free() -> bool:
        try:
            other.bind(here)
        except zmq.ZMQError:  # libzmq's own thread may not have closed it yet
            return False
        return True

    await turns(free)
    raw.send(b"still connected")
    assert (await box.until(3))[2] == [b"still connected"]
