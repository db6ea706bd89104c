"""ROUTER, DEALER, PAIR: messages in both directions."""

from __future__ import annotations

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox
from tests.sockets.opened import Sockets, bound
from tests.support import Way
from zroute.errors import HighWaterMarkError, UnknownPeerError
from zroute.sockets.router_dealer import DealerConnection, PairConnection, RouterConnection


@pytest_twisted.ensureDeferred
async def test_a_router_knows_its_peers_by_their_identity(sockets: Sockets, way: Way) -> None:
    """Each DEALER sets its identity, and receives its own replies."""
    asked, answers = Mailbox[tuple[bytes, list[bytes]]](), Mailbox[tuple[bytes, list[bytes]]]()

    def ask(identity: bytes, parts: list[bytes]) -> None:
        asked.put((identity, parts))
        router.send(identity, b"for", identity, *parts)

    router = sockets.make(RouterConnection, ask)
    address = way.to(router.open(way.wildcard))
    for name in (b"ann", b"bob"):
        dealer = sockets.make(DealerConnection, lambda parts, name=name: answers.put((name, parts)), identity=name)
        dealer.open(address)
        await dealer.when_writable()
        dealer.send(b"hello", b"")
    assert sorted(await asked.until(2)) == [(b"ann", [b"hello", b""]), (b"bob", [b"hello", b""])]
    assert sorted(await answers.until(2)) == [
        (b"ann", [b"for", b"ann", b"hello", b""]),
        (b"bob", [b"for", b"bob", b"hello", b""]),
    ]


@pytest_twisted.ensureDeferred
async def test_a_message_to_nobody_is_an_error_and_no_silence(sockets: Sockets) -> None:
    """A message to an unknown peer is an error, and the next message is sent."""
    router, raw = sockets.make(RouterConnection, lambda identity, parts: None), sockets.raw(zmq.DEALER)
    address = router.open("tcp://127.0.0.1:*")
    with pytest.raises(
        UnknownPeerError, match=r"no peer b'unknown' is connected to tcp://127\.0\.0\.1:\d+: the peer has disconnected"
    ):
        router.send(b"unknown", b"x")
    heard = Mailbox[bytes]()
    router._on_identified = lambda identity, parts: heard.put(identity)
    raw.connect(address)
    raw.send(b"here i am")
    (identity,) = await heard.until(1)
    router.send(identity, b"welcome")
    assert raw.recv() == b"welcome"


@pytest_twisted.ensureDeferred
async def test_a_peer_that_takes_nothing_is_an_error_for_it_alone(sockets: Sockets) -> None:
    """send raises for a peer with a full queue, and not for another peer."""
    heard = Mailbox[bytes]()
    router = sockets.make(RouterConnection, lambda identity, parts: heard.put(identity), sndhwm=1)
    address = router.open("inproc://router")
    slow, quick = sockets.make(DealerConnection, list, identity=b"slow", rcvhwm=1), Mailbox[list[bytes]]()
    other = sockets.make(DealerConnection, quick.put, identity=b"quick")
    for dealer in (slow, other):
        dealer.open(address)
        dealer.send(b"hello")
    slow.pause()
    await heard.until(2)
    while router.try_send([b"slow", b"x"]):
        pass
    with pytest.raises(HighWaterMarkError):
        router.send(b"slow", b"x")
    router.send(b"quick", b"y")
    assert await quick.until(1) == [[b"y"]]


@pytest_twisted.ensureDeferred
async def test_a_pair_talks_both_ways(sockets: Sockets) -> None:
    """Two PAIR connections exchange messages over inproc, and one with plain pyzmq over tcp."""
    left, right = Mailbox[list[bytes]](), Mailbox[list[bytes]]()
    one, two = sockets.make(PairConnection, left.put), sockets.make(PairConnection, right.put)
    two.open("connect:" + one.open("inproc://pair"))
    one.send(b"ping", b"1")
    assert await right.until(1) == [[b"ping", b"1"]]
    two.send(b"pong")
    assert await left.until(1) == [[b"pong"]]
    raw, third = sockets.raw(zmq.PAIR), sockets.make(PairConnection, left.put)
    third.open("connect:" + bound(raw))
    await third.when_writable()
    third.send(b"to pyzmq")
    assert raw.recv() == b"to pyzmq"
