"""PUB, SUB, XPUB and XSUB without an app."""

from __future__ import annotations

import logging

import pytest
import pytest_twisted
import zmq
from twisted.internet.task import deferLater

from tests.running import Mailbox, reactor, turns
from tests.sockets.opened import Sockets, bound
from tests.support import Way
from zroute.sockets.pubsub import PubConnection, SubConnection, XPubConnection, XSubConnection


@pytest_twisted.ensureDeferred
async def test_a_pub_is_heard_by_who_subscribes(sockets: Sockets, way: Way) -> None:
    """A SUB receives messages with its prefix, of one or several parts; subscriptions are counted."""
    box = Mailbox[list[bytes]]()
    pub, sub = sockets.make(PubConnection), sockets.make(SubConnection, box.put)
    sub.open(way.to(pub.open(way.wildcard)))
    sub.subscribe(b"a")
    sub.subscribe(b"a")
    sub.unsubscribe(b"a")
    while not box.items:  # PUB does not report when a subscription has arrived
        pub.send(b"a0")
        await deferLater(reactor, 0.001)
    before = len(box.items)
    pub.send(b"b", b"not for us")
    pub.send(b"a1", b"", b"x")
    await turns(lambda: box.items[-1] == [b"a1", b"", b"x"])
    assert all(parts == [b"a0"] for parts in box.items[before:-1])


@pytest_twisted.ensureDeferred
async def test_an_xsub_subscribes_by_messages_and_can_send_others(sockets: Sockets, way: Way) -> None:
    """An XPUB reports subscriptions of an XSUB, and passes its other messages to on_message."""
    changes, others, box = Mailbox[tuple[bytes, bool]](), Mailbox[list[bytes]](), Mailbox[list[bytes]]()
    xpub = sockets.make(XPubConnection, lambda prefix, there: changes.put((prefix, there)), others.put)
    xsub = sockets.make(XSubConnection, box.put)
    xsub.open(way.to(xpub.open(way.wildcard)))
    xsub.subscribe(b"a")
    assert await changes.until(1) == [(b"a", True)]
    assert xpub.subscriptions == {b"a"}
    xsub.send(b"\2hello")
    assert await others.until(1) == [[b"\2hello"]]
    xpub.send(b"a", b"body")
    xpub.send(b"b")
    xsub.unsubscribe(b"a")
    assert (await changes.until(2))[1] == (b"a", False)
    assert await box.until(1) == [[b"a", b"body"]]


@pytest_twisted.ensureDeferred
async def test_an_xsub_and_an_xpub_make_a_proxy(sockets: Sockets, way: Way) -> None:
    """A proxy passes subscriptions up and messages down."""
    box, publisher = Mailbox[list[bytes]](), sockets.raw(zmq.XPUB)
    front = sockets.make(XSubConnection, lambda parts: back.send(*parts))
    back = sockets.make(XPubConnection, lambda prefix, there: (front.subscribe if there else front.unsubscribe)(prefix))
    front.open(way.to(bound(publisher, way.wildcard)))
    sub = sockets.make(SubConnection, box.put)
    sub.open(way.to(back.open(way.wildcard)))
    sub.subscribe(b"x")
    await turns(lambda: publisher.poll(0))
    assert publisher.recv() == b"\1x"
    publisher.send_multipart([b"x1", b"body"])
    assert await box.until(1) == [[b"x1", b"body"]]


def cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about connections that were cut."""
    return [record.getMessage() for record in caplog.records if "closed the connection" in record.getMessage()]


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_connects_cuts_too_and_connects_again_later(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """A connecting publisher cuts a greedy subscriber, and reconnects after a second to cut it again.

    Each return is logged, and so is the absence after the last cut.
    """
    caplog.set_level(logging.INFO, "zroute.sockets")
    told = list[tuple[bytes, bool]]()
    pub, peer = sockets.pub(lambda prefix, there: told.append((prefix, there))), sockets.raw(zmq.XSUB)
    pub.limit_subscriptions(4096)
    address = bound(peer)
    pub.open(f"connect:{address}")
    for number in range(300):
        peer.send(b"\1topic.number.%06d" % number)
    await turns(lambda: peer.poll(0) or pub._resting)  # libzmq sends subscriptions in a later call on the peer's socket
    assert len(cuts(caplog)) == 1
    assert f"closed the connection of {address}: " in cuts(caplog)[0]
    assert "max_subscription_bytes=4,096" in cuts(caplog)[0]
    await turns(lambda: peer.poll(0) or len(cuts(caplog)) == 2)
    peer.unbind(address)
    await turns(lambda: not pub.subscriptions)
    assert {prefix for prefix, there in told if there} == {prefix for prefix, there in told if not there}
    await turns(lambda: "no answer" in caplog.text)
    connections = [
        record.getMessage() for record in caplog.records if "closed the connection" not in record.getMessage()
    ]
    assert [line.partition(": ")[2] for line in connections[:-1]] == [
        f"connected to {address}",
        *[f"connected to {address} again"] * (len(cuts(caplog)) - 1),
    ]
    assert f"no answer from {address} for 3 s" in connections[-1]


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_being_left_alone_can_be_taken_back(sockets: Sockets) -> None:
    """`disconnect` and `close` end the pause of a publisher that waits to reconnect."""
    pub, peer = sockets.pub(), sockets.raw(zmq.XSUB)
    pub.limit_subscriptions(4096)
    address = bound(peer)
    pub.open(f"connect:{address}")
    for number in range(300):
        peer.send(b"\1topic.number.%06d" % number)
    await turns(lambda: peer.poll(0) or (pub._resting and not pub.links))
    pub.disconnect(address)
    assert not pub._resting
    assert not pub.endpoints


@pytest_twisted.ensureDeferred
async def test_peers_of_this_process_have_no_limit(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """Peers over inproc have no limit: they are in this process, and have no descriptors."""
    pub, peer = sockets.pub(), sockets.raw(zmq.XSUB)
    pub.limit_subscriptions(4096)
    pub.open("inproc://limits")
    peer.connect("inproc://limits")
    for number in range(300):
        peer.send(b"\1topic.number.%06d" % number)
    await turns(lambda: len(pub.subscriptions) == 300)
    assert not cuts(caplog)


@pytest_twisted.ensureDeferred
async def test_a_peer_that_changes_its_mind_all_the_time_holds_up_no_other(sockets: Sockets) -> None:
    """A peer that subscribes, unsubscribes and sends messages in turn fills no queue here."""
    told, waiting = set[tuple[bytes, bool]](), list[int]()
    pub, peer, honest = sockets.pub(lambda prefix, there: told.add((prefix, there))), *map(sockets.raw, [zmq.XSUB] * 2)
    pub.limit_subscriptions(4096)
    address = pub.open("tcp://127.0.0.1:*")
    peer.connect(address)
    honest.connect(address)

    def joined() -> bool:
        for _ in range(1000):
            for message in (b"\1topic", b"\0topic", b"\2hello"):
                peer.send(message)
        waiting.append(len(pub._untold))
        return (b"honest", True) in told

    await turns(lambda: joined() or pub.received > 2000)
    honest.send(b"\1honest")
    await turns(joined)
    assert max(waiting) <= 3
    assert not pub.failed


@pytest_twisted.ensureDeferred
async def test_what_comes_and_goes_is_told_as_it_is_in_the_end(sockets: Sockets) -> None:
    """A short-lived subscription may go unreported; one that returns is reported: it may be a marker."""
    told = list[tuple[bytes, bool]]()
    pub, peer = sockets.pub(lambda prefix, there: told.append((prefix, there))), sockets.raw(zmq.XSUB)
    pub.limit_subscriptions(4096)
    peer.connect(pub.open("tcp://127.0.0.1:*"))
    peer.send(b"\1a")
    await turns(lambda: told)
    for message in (b"\0a", b"\1a", b"\0a", b"\1a", b"\1b"):
        peer.send(message)
    await turns(lambda: (b"b", True) in told)
    changes = [there for prefix, there in told if prefix == b"a"]
    assert changes == [bool((number + 1) % 2) for number in range(len(changes))]
    assert changes[:2] == [True, False]
    assert changes[-1]
    assert pub.subscriptions == {b"a", b"b"}


@pytest_twisted.ensureDeferred
async def test_a_fleeting_subscription_is_reported_although_it_is_withdrawn(sockets: Sockets) -> None:
    """A subscription that is a message is reported once, even if its withdrawal is read first."""
    told = list[tuple[bytes, bool]]()
    pub, peer = sockets.pub(lambda prefix, there: told.append((prefix, there))), sockets.raw(zmq.XSUB)
    pub.limit_subscriptions(4096)
    pub.fleeting = b"?"
    peer.connect(pub.open("tcp://127.0.0.1:*"))
    for message in (b"\1first", b"\1?1", b"\0?1", b"\1other", b"\0other", b"\1?2", b"\0?2"):
        peer.send(message)
    await turns(lambda: {(b"first", True), (b"?1", True), (b"?2", True)} <= set(told))
    # The other one is reported only if the reading pauses before its withdrawal. After a pause, a fleeting one that
    # was not yet withdrawn is reported before one that was.
    assert sorted(prefix for prefix, there in told if there and prefix != b"other") == [b"?1", b"?2", b"first"]
    assert pub.subscriptions == {b"first"}


@pytest_twisted.ensureDeferred
async def test_fleeting_subscriptions_use_a_limited_amount_of_memory(sockets: Sockets) -> None:
    """A peer that sends many fleeting subscriptions in one read can't make the socket store all of them."""
    pub, peer = sockets.pub(), sockets.raw(zmq.XSUB)
    pub.limit_subscriptions(4096)
    pub.fleeting = b"?"
    peer.connect(pub.open("tcp://127.0.0.1:*"))
    most = 0

    def read(prefix: bytes, there: bool) -> None:
        nonlocal most
        most = max(most, len(pub._passed))

    pub.on_subscription = read
    peer.send(b"\1first")
    for number in range(3000):
        peer.send(b"\1?%d" % number)
        peer.send(b"\0?%d" % number)
    peer.send(b"\1last")
    await turns(lambda: b"last" in pub.subscriptions and not pub._passed)
    assert most <= 1000


@pytest_twisted.ensureDeferred
async def test_connections_that_i_end_by_an_endpoint_leave_no_account_behind(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`unbind` and `disconnect` remove the accounts of connections, also of one that is being cut."""
    pub, *peers = sockets.pub(), *map(sockets.raw, [zmq.XSUB] * 3)
    pub.limit_subscriptions(4096)
    bind, connect = pub.open("tcp://127.0.0.1:*"), bound(peers[1])
    pub.open(f"connect:{connect}")
    peers[0].connect(bind)
    for number, peer in enumerate(peers[:2]):
        peer.send(b"\1topic%d" % number)
    await turns(lambda: peers[1].poll(0) or len(pub.subscriptions) == 2)
    monkeypatch.setattr(pub, "end", lambda id, discard: True)
    peers[2].connect(bind)
    for number in range(300):
        peers[2].send(b"\1topic.number.%06d" % number)
    await turns(lambda: pub._cut)
    pub.unbind(bind)
    pub.disconnect(connect)
    assert not pub.links
    assert not pub._budgets.links
    assert not pub._cut
