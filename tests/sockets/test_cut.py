"""Cutting one connection loses no received message, leaves the others alone, and libzmq reconnects."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox, turns
from tests.sockets.opened import Sockets, bound, into
from tests.sockets.test_connection import bindable, told
from tests.support import PATIENCE, free_endpoint
from zroute.errors import EndpointError
from zroute.sockets.descriptors import identify, shut_down
from zroute.sockets.pubsub import SubConnection


async def linked(connection: SubConnection, number: int = 1) -> tuple[int, ...]:
    """Wait until this number of connections have finished their handshake; return their ids."""
    await turns(lambda: len(connection.links) == number)
    return connection.links.ready


def by_name(address: str) -> str:
    """Return the same endpoint with a host name."""
    return address.replace("127.0.0.1", "localhost")


def publisher(sockets: Sockets, kind: str = "tcp://127.0.0.1:*") -> tuple[Any, str]:
    """Return a bound raw XPUB and its address; skip the test without IPv6."""
    raw = sockets.raw(zmq.XPUB)
    raw.set(zmq.IPV6, int("[" in kind))
    try:
        return raw, bound(raw, kind)
    except zmq.ZMQError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.parametrize("kind", ["address", "name", "IPv6", "ipc"])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_cut_comes_back(
    sockets: Sockets, kind: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """libzmq reconnects and sends all subscriptions; the old id can't be cut again; nothing is logged."""
    bind = {"IPv6": "tcp://[::1]:*", "ipc": f"ipc://{tmp_path}/s"}.get(kind, "tcp://127.0.0.1:*")
    raw, address = publisher(sockets, bind)
    box = Mailbox[bytes]()
    reader = sockets.sub(box)
    endpoint = reader.open(by_name(address) if kind == "name" else address)
    reader.subscribe(b"a")
    await told(raw, b"\1a")
    for _ in range(2):  # the second time, libzmq uses the resolved address
        (id,) = await linked(reader)
        assert reader.cut(id) == endpoint
        await told(raw, b"\0a", b"\1a")
        await turns(lambda id=id: id not in reader.links.ready)
        (again,) = await linked(reader)
        assert again > id
        assert (reader.cut(id), reader.cut(again + 1), reader._given_up) == (None, None, {})
    raw.send(b"a1")
    assert await box.until(1) == [b"a1"]
    assert not caplog.records


@pytest_twisted.ensureDeferred
async def test_what_has_arrived_is_delivered_though_its_connection_is_cut(sockets: Sockets) -> None:
    """A cut after 1 of 500 parts still delivers the other 499, then the next connection's messages."""
    raw, address = publisher(sockets)
    box = Mailbox[bytes]()
    reader = sockets.sub(lambda recv, more, budget: None)

    def first(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        box.put(recv(zmq.DONTWAIT))
        assert reader.cut(reader.links.ready[0]) == address
        reader.pause()

    reader.receive = first
    reader.open(address)
    reader.subscribe(b"")
    await told(raw, b"\1")
    await linked(reader)
    parts = [b"%d" % number for number in range(500)]
    raw.send_multipart(parts)
    await told(raw, b"\0", b"\1")
    raw.send(b"after")
    reader.receive = into(box)
    reader.resume()
    assert await box.until(501) == [*parts, b"after"]


@pytest_twisted.ensureDeferred
async def test_the_other_connection_is_not_touched(sockets: Sockets) -> None:
    """Cutting one of two endpoints leaves the connection, id and subscription of the other unchanged."""
    (first, address), (second, other) = publisher(sockets), publisher(sockets)
    reader = sockets.sub(Mailbox[bytes]())
    reader.open(address)
    reader.open(by_name(other))
    reader.subscribe(b"a")
    await told(first, b"\1a")
    await told(second, b"\1a")
    ids = await linked(reader, 2)
    link = next(found for id in ids if (found := reader.links.get(id)) is not None and found.endpoint == address)
    assert reader.cut(link.id) == address
    await told(first, b"\0a", b"\1a")
    await turns(lambda: link.id not in reader.links.ready)
    ready = await linked(reader, 2)
    assert set(ids) - set(ready) == {link.id}
    assert second.poll(0) == 0


@pytest_twisted.ensureDeferred
async def test_who_has_connected_to_me_is_not_cut(sockets: Sockets) -> None:
    """A connection that the peer has made is not cut: this side could not make it again."""
    raw, reader = sockets.raw(zmq.XPUB), sockets.sub(Mailbox[bytes]())
    reader.watch(lambda event: None)
    address = bound(reader)
    raw.connect(address)
    (id,) = await linked(reader)
    assert reader.cut(id) is None
    assert (reader.links.connected(address), reader.links.ready) == (True, (id,))
    reader.unbind(address)
    assert reader.links.ready == ()


@pytest_twisted.ensureDeferred
async def test_an_end_that_is_not_read_yet_is_seen_before_anything_is_cut(sockets: Sockets) -> None:
    """If the publisher has disconnected, cut reads that event first: the descriptor may be reused."""
    raw, address = publisher(sockets)
    reader = sockets.sub(Mailbox[bytes]())
    reader.open(address)
    (id,) = await linked(reader)
    raw.close(0)
    assert reader._monitor is not None
    assert reader._monitor._socket.poll(PATIENCE * 1000)  # the event has arrived, but the reactor has not read it
    assert reader.cut(id) is None
    reader.close()
    assert reader.cut(id) is None


@pytest_twisted.ensureDeferred
async def test_what_is_taken_back_has_no_connection_any_more(sockets: Sockets) -> None:
    """A disconnected endpoint has no connection, although libzmq sends no event; it can be opened again."""
    raw, address = publisher(sockets)
    reader = sockets.sub(Mailbox[bytes]())
    reader.open(address)
    reader.subscribe(b"a")
    await told(raw, b"\1a")
    (id,) = await linked(reader)
    reader.disconnect(address)
    assert (reader.links.ready, reader.cut(id)) == ((), None)
    await told(raw, b"\0a")
    reader.open(address)
    await told(raw, b"\1a")
    (again,) = await linked(reader)
    assert again > id


# -- a host name -------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_publisher_that_i_know_by_name_is_no_protocol_error(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher known by host name ends twice: libzmq's attempts are recognized under both addresses."""
    address = free_endpoint()
    reader = sockets.sub(Mailbox[bytes]())
    reader.open(by_name(address))
    before = 0
    for _ in range(3):
        raw = sockets.raw(zmq.XPUB)
        await turns(lambda raw=raw: bindable(raw, address))
        (id,) = await linked(reader)
        assert id > before
        assert reader.links.connected(by_name(address))
        before = id
        raw.close(0)
        await linked(reader, 0)
        await turns(lambda: not reader._given_up)
    assert not caplog.records


@pytest_twisted.ensureDeferred
async def test_a_protocol_error_at_a_name_is_mended_once(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """A part over the limit ends the connection, which is logged and made again, also with a host name."""
    raw, address = publisher(sockets)
    box = Mailbox[list[bytes]]()
    reader = sockets.make(SubConnection, box.put, maxmsgsize=1000)
    endpoint = reader.open(by_name(address))
    reader.subscribe(b"")
    for _ in range(2):  # the second time, after a connection with the resolved address
        await told(raw, b"\1")
        (id,) = await linked(reader)
        assert reader.cut(id) == endpoint
        await told(raw, b"\0", b"\1")
        raw.send(b"x" * 1001)
        await told(raw, b"\0")
        await turns(lambda: f"{endpoint}: connection closed" in caplog.text)
    await told(raw, b"\1")
    raw.send(b"small")
    assert await box.until(1) == [[b"small"]]


# -- descriptors -------------------------------------------------------------------------------------------


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """A function that makes connected pairs of sockets: the connecting and the accepting side."""
    made: list[socket.socket] = []

    def pair() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            made.append(socket.create_connection(server.getsockname()))
            made.append(server.accept()[0])
        return made[-2], made[-1]

    yield pair
    for each in made:
        each.close()


def endpoint_of(one: socket.socket) -> str:
    """Return the endpoint that the socket is connected to."""
    return f"tcp://127.0.0.1:{one.getpeername()[1]}"


def test_a_descriptor_that_has_become_another_connection_is_left_alone(pairs: Any) -> None:
    """A reused descriptor is recognized as another connection, which is not shut down."""
    (here, _there), (other, far) = pairs(), pairs()
    identity = identify(here.fileno(), endpoint_of(here))
    assert identity is not None
    os.dup2(other.fileno(), here.fileno())
    assert not shut_down(here.fileno(), identity)
    other.sendall(b"on")
    assert far.recv(2) == b"on"
    own = identify(other.fileno(), endpoint_of(other))
    assert own is not None
    assert own.text == endpoint_of(other)
    assert shut_down(other.fileno(), own)
    assert far.recv(1) == b""


def test_a_connection_to_elsewhere_has_no_identity(pairs: Any, tmp_path: Any) -> None:
    """Another port, another transport, a file and a closed descriptor are not taken for the endpoint's."""
    here, _there = pairs()
    number = here.fileno()
    assert identify(number, endpoint_of(here)[:-1]) is None
    assert identify(number, "ipc:///some/path") is None
    with (tmp_path / "file").open("w") as file:
        assert identify(file.fileno(), endpoint_of(here)) is None
    address = endpoint_of(here)
    here.close()
    assert identify(number, address) is None


@pytest_twisted.ensureDeferred
async def test_an_ipv6_endpoint_leaves_names_to_ipv4(sockets: Sockets) -> None:
    """Connecting to [::1] first does not stop localhost from connecting to a publisher at 127.0.0.1."""
    (six, address), (four, other) = publisher(sockets, "tcp://[::1]:*"), publisher(sockets)
    reader = sockets.sub(Mailbox[bytes]())
    try:
        reader.open(address)
    except EndpointError:
        pytest.skip("this machine has no IPv6")
    reader.open(by_name(other))
    reader.subscribe(b"a")
    await told(six, b"\1a")
    await told(four, b"\1a")
    assert len(await linked(reader, 2)) == 2
