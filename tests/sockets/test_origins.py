"""The connection that delivered a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox, reactor, turns
from tests.sockets.opened import Sockets, bound
from tests.sockets.test_connection import bindable, told, turn
from tests.support import free_endpoint
from zroute.endpoints import parse_endpoints
from zroute.options import MAX_SUBSCRIPTION_BYTES
from zroute.sockets.links import Links
from zroute.sockets.origins import Origins
from zroute.sockets.pair import SharedContext, SocketPair
from zroute.transport import AppOptions, Receive

Noted = tuple[bytes, int | None]


@pytest.fixture
def opened(sockets: Sockets) -> Iterator[Callable[..., SocketPair]]:
    """Open a transport that subscribes to all messages of these endpoints."""
    made: list[SocketPair] = []

    def make(drain: Callable[[SocketPair], Receive], *endpoints: str) -> SocketPair:
        transport = SocketPair(
            reactor,
            AppOptions("app", 1000, True, MAX_SUBSCRIPTION_BYTES, SharedContext(sockets.context)),
            subscribe_to=parse_endpoints(endpoints, bind=False),
            publish_to=(),
        )
        made.append(transport)
        transport.open(drain(transport))
        transport.subscribe([b""])
        return transport

    yield make
    for transport in made:
        transport.close(0)


def noting(box: Mailbox[Noted], *, copy: bool = True) -> Callable[[SocketPair], Receive]:
    """Return a drain that puts each message and the id of its connection into ``box``."""

    def of(transport: SocketPair) -> Receive:
        def drain(recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
            for _ in range(budget):
                part = recv(1) if copy else recv(1, False).bytes
                box.put((part, transport.came_by))

        return drain

    return of


def id_of(transport: SocketPair, endpoint: str) -> int:
    """Return the id of the connection to ``endpoint``."""
    (found,) = (id for id in transport.links if transport.dialled(id) == endpoint)
    return found


@pytest.mark.parametrize("copy", [True, False])
@pytest_twisted.ensureDeferred
async def test_messages_of_two_publishers_are_told_apart(sockets: Sockets, opened: Any, copy: bool) -> None:
    """While `listen_closely` is on, each message has the connection of its publisher; otherwise none."""
    raws = [sockets.raw(zmq.XPUB) for _ in range(2)]
    addresses = [bound(raw) for raw in raws]
    box = Mailbox[Noted]()
    transport = opened(noting(box, copy=copy), *addresses)
    for raw in raws:
        await told(raw, b"\1")
    await turns(lambda: len(transport.links) == transport.peers == 2)
    ids = [id_of(transport, address) for address in addresses]

    async def one_of_each() -> list[Noted]:
        await turn()  # leave the doRead that delivered the last message
        before = len(box.items)
        for raw, name in zip(raws, (b"first", b"second"), strict=True):
            raw.send(name)
        await box.until(before + 2)
        return sorted(box.items[before:])

    assert await one_of_each() == [(b"first", None), (b"second", None)]
    assert transport.heard() == set()
    transport.listen_closely(True)
    transport.listen_closely(True)
    assert await one_of_each() == [(b"first", ids[0]), (b"second", ids[1])]
    assert (transport.heard(), transport.heard()) == (set(ids), set())
    raws[1].send(b"x")
    await box.until(5)
    assert transport.heard() == {ids[1]}
    transport.listen_closely(False)
    assert await one_of_each() == [(b"first", None), (b"second", None)]


@pytest_twisted.ensureDeferred
async def test_what_comes_over_inproc_has_no_connection(sockets: Sockets, opened: Any) -> None:
    """A message over inproc is delivered without a connection, and the endpoint counts as a peer."""
    raw, box = sockets.raw(zmq.XPUB), Mailbox[Noted]()
    raw.bind("inproc://near")
    transport = opened(noting(box), "inproc://near")
    transport.listen_closely(True)
    await told(raw, b"\1")
    raw.send(b"x")
    assert await box.until(1) == [(b"x", None)]
    assert (transport.heard(), transport.links, transport.peers) == (set(), frozenset(), 1)
    assert transport.silent(["feed@here inproc://near"]) == []


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_came_back_is_known_from_its_first_message(sockets: Sockets, opened: Any) -> None:
    """The first message of a new connection is assigned to it, even if its event is unread."""
    address, box = free_endpoint(), Mailbox[Noted]()
    transport = opened(noting(box), address)
    transport.listen_closely(True)
    assert transport.sub is not None
    transport.sub.subscribed = None  # a publisher that returns too quickly would be paused for a second
    known: list[int] = []
    for number in range(1, 4):
        raw = sockets.raw(zmq.XPUB)
        await turns(lambda raw=raw: bindable(raw, address))
        await told(raw, b"\1")
        raw.send(b"x")
        (_, came_by) = (await box.until(number))[-1]
        assert came_by == id_of(transport, address)
        known.append(came_by)
        raw.close(0)
        await turns(lambda: not transport.links)
    assert len(set(known)) == 3


@pytest_twisted.ensureDeferred
async def test_what_an_ended_connection_has_left_is_not_that_of_the_next(sockets: Sockets, opened: Any) -> None:
    """A publisher ends during a pause: its messages are not assigned to the next publisher."""
    address, box = free_endpoint(), Mailbox[Noted]()
    transport = opened(noting(box), address)
    transport.listen_closely(True)
    first, second = sockets.raw(zmq.XPUB), sockets.raw(zmq.XPUB)
    first.bind(address)
    await told(first, b"\1")
    transport.pause()
    first.send(b"of the first")
    await turns(transport.readable)
    first.close(0)
    await turns(lambda: not transport.links)
    await turns(lambda: bindable(second, address))
    await told(second, b"\1")
    await turns(lambda: transport.links)
    transport.resume()
    assert await box.until(1) == [(b"of the first", None)]
    second.send(b"of the second")
    assert (await box.until(2))[1] == (b"of the second", id_of(transport, address))


class Part:
    """A part of a message, with the descriptor of its connection."""

    def __init__(self, fd: int) -> None:
        self.bytes = b"x"
        self._fd = fd

    def get(self, option: int) -> int:
        assert option == zmq.SRCFD
        return self._fd


def test_the_number_of_an_ended_connection_is_doubtful_until_all_is_read() -> None:
    """While old parts wait, a new connection with the same descriptor is heard, but is not the origin."""
    from zroute.sockets.events import SocketEvent

    links, waiting = Links(), [Part(7), Part(7)]
    for _ in range(2):
        links.seen(SocketEvent("accepted", "tcp://127.0.0.1:1", 7))
    link = links.at(7)
    assert link is not None

    def recv(flags: int, copy: bool) -> Any:
        if not waiting:
            raise zmq.Again
        return waiting.pop()

    origins = Origins(recv, links, lambda: None)
    for _ in range(2):
        assert (origins.recv(1), origins.came_by, origins.heard()) == (b"x", None, {link.id})
    with pytest.raises(zmq.Again):
        origins.recv(1)
    waiting.append(Part(7))
    assert (origins.recv(1), origins.came_by) == (b"x", link.id)
