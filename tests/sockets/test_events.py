"""The events of a socket's connections from libzmq's monitor."""

from __future__ import annotations

import pytest
import pytest_twisted
import zmq
from twisted.python.failure import Failure

from tests.running import Mailbox, turns
from tests.sockets.opened import Sockets, bound
from tests.support import Way, free_endpoint
from zroute.errors import EndpointError
from zroute.sockets.events import SocketEvent
from zroute.sockets.pipeline import PullConnection, PushConnection


@pytest_twisted.ensureDeferred
async def test_the_life_of_a_connection_is_told_on_both_sides(sockets: Sockets, way: Way) -> None:
    """Both sides receive the events of a connection, with the address of the endpoint."""
    server, client = Mailbox[SocketEvent](), Mailbox[SocketEvent]()
    push, pull = sockets.make(PushConnection), sockets.make(PullConnection, list)
    push.watch(server.put)
    pull.watch(client.put)
    address = push.open(way.wildcard)
    pull.open(way.to(address))
    await turns(lambda: any(event.name == "handshake_succeeded" for event in client.items))
    pull.close()
    await turns(lambda: any(event.name == "disconnected" for event in server.items))
    names = [event.name for event in server.items]
    assert names[0] == "listening"
    assert names.index("accepted") < names.index("handshake_succeeded") < names.index("disconnected")
    names = [event.name for event in client.items]
    assert names.index("connected") < names.index("handshake_succeeded")
    assert {event.address for event in client.items} == {way.to(address)}
    assert str(server.items[0]) == f"{address}: listening"


@pytest_twisted.ensureDeferred
async def test_attempts_in_vain_are_told_with_the_time_of_the_next(sockets: Sockets) -> None:
    """Each failed attempt to connect is an event, with the milliseconds until the next attempt."""
    seen, pull = Mailbox[SocketEvent](), sockets.make(PullConnection, list, reconnect_ivl=10)
    pull.watch(seen.put)
    pull.open(free_endpoint())
    await turns(lambda: any(event.name == "connect_retried" for event in seen.items))
    (event, *_) = (event for event in seen.items if event.name == "connect_retried")
    assert str(event).endswith(f"connect_retried, next attempt in {event.value} ms")


@pytest_twisted.ensureDeferred
async def test_a_failed_bind_is_told_and_raised_with_the_same_reason(sockets: Sockets) -> None:
    """Watching a connection does not change the error that open raises."""
    address, seen = bound(sockets.raw(zmq.PUSH)), Mailbox[SocketEvent]()
    push = sockets.make(PushConnection)
    push.watch(seen.put)
    with pytest.raises(EndpointError, match="this address is in use"):
        push.open(address)
    assert any(str(event).endswith(": bind_failed (Address already in use)") for event in seen.items)
    assert push.endpoints == []


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_fails_is_told(sockets: Sockets) -> None:
    """A peer that requires encryption is reported as a failed handshake."""
    seen, pull = Mailbox[SocketEvent](), sockets.make(PullConnection, list)
    pull.watch(seen.put)
    raw = sockets.raw(zmq.PUSH)
    public, raw.curve_secretkey = zmq.curve_keypair()
    raw.curve_publickey = raw.curve_serverkey = public
    raw.connect(pull.open("bind:tcp://127.0.0.1:*"))
    await turns(lambda: any(event.name.startswith("handshake_failed") for event in seen.items))
    (event, *_) = (event for event in seen.items if event.name.startswith("handshake_failed"))
    assert str(event).endswith("handshake_failed_protocol (PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)")


@pytest_twisted.ensureDeferred
async def test_a_reactor_that_stops_may_give_up_the_monitor_first(sockets: Sockets) -> None:
    """A stopping reactor that drops the monitor first closes both in the right order, without a hang."""
    push = sockets.make(PushConnection)
    push.watch(lambda event: None)
    push.open("tcp://127.0.0.1:*")
    monitor = push._monitor
    assert monitor is not None
    monitor.connectionLost(Failure(OSError("the reactor stops")))
    assert (push.closed, monitor.closed) == (True, True)
    push.close()


@pytest_twisted.ensureDeferred
async def test_a_watcher_that_fails_spoils_nothing(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a watcher is logged, and the other watchers still get the event."""
    seen, push = Mailbox[SocketEvent](), sockets.make(PushConnection)

    def fails(event: SocketEvent) -> None:
        raise ValueError("mine")

    push.watch(fails)
    push.watch(seen.put)
    push.open("tcp://127.0.0.1:*")
    assert [event.name for event in await seen.until(1)] == ["listening"]
    assert "a function that watches the connections of" in caplog.text


@pytest_twisted.ensureDeferred
async def test_unbind_cuts_those_who_have_connected_there_and_tells_no_end(sockets: Sockets, way: Way) -> None:
    """unbind ends the connections of its peers without an event here; other addresses are not affected."""
    server, here, there = Mailbox[SocketEvent](), Mailbox[SocketEvent](), Mailbox[SocketEvent]()
    read, other = Mailbox[bytes](), Mailbox[bytes]()
    pub = sockets.pub()
    pub.watch(server.put)
    first, second = pub.open(way.wildcard), pub.open(way.wildcard)
    for address, seen, box in ((first, here, read), (second, there, other)):
        sub = sockets.sub(box)
        sub.watch(seen.put)
        sub.subscribe(b"")
        sub.open(way.to(address))
    await turns(lambda: pub.send_frame(b"before") or (read.items and other.items))
    pub.unbind(first)
    await turns(lambda: any(event.name == "disconnected" for event in here.items))
    pub.send_frame(b"after")
    await turns(lambda: b"after" in other.items)
    assert b"after" not in read.items
    assert "disconnected" not in {event.name for event in [*server.items, *there.items]}
    assert pub.endpoints == [second]


@pytest.mark.parametrize("method", ["disconnect", "unbind"])
@pytest_twisted.ensureDeferred
async def test_what_is_not_open_cannot_be_taken_back(sockets: Sockets, method: str) -> None:
    """The error says which address is expected."""
    push = sockets.make(PushConnection)
    with pytest.raises(
        EndpointError, match=rf"can't {method} tcp://127.0.0.1:1: this address is not open: pass the address"
    ):
        getattr(push, method)("tcp://127.0.0.1:1")
