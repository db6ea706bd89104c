"""The sockets of an app and the context they share: each open socket is closed, even after errors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred

from tests.running import Mailbox, reactor, turns
from tests.sockets.opened import Sockets, bound, into
from tests.sockets.test_connection import bindable, told
from tests.support import PATIENCE, ROOT, Way, free_endpoint, sized, spans
from zroute.endpoints import parse_endpoints
from zroute.errors import EndpointError
from zroute.options import MAX_SUBSCRIPTION_BYTES
from zroute.sockets import pair as module
from zroute.sockets.pair import SharedContext, SocketPair
from zroute.transport import AppOptions


def transport(context: SharedContext, *, sub: Any = (), pub: Any = ()) -> SocketPair:
    """Return a transport that subscribes and publishes at these endpoints."""
    return SocketPair(
        reactor,
        AppOptions("app", 1000, True, MAX_SUBSCRIPTION_BYTES, context),
        subscribe_to=parse_endpoints(sub, bind=False),
        publish_to=parse_endpoints(pub, bind=True),
    )


@pytest.fixture
def context() -> Iterator[SharedContext]:
    """A context of this test, which must have no users at the end."""
    shared = SharedContext()
    yield shared
    assert shared._users == 0


def terminating() -> bool:
    """Return True while a context is being terminated."""
    return any(thread.name == "zroute-term" for thread in threading.enumerate())


@pytest_twisted.ensureDeferred
async def test_what_i_listen_to_is_received_and_what_i_leave_is_not(context: SharedContext) -> None:
    """`subscribe` replaces the subscriptions: new ones begin, removed ones end, the others stay."""
    box, both = Mailbox[bytes](), transport(context, sub="inproc://x", pub="inproc://x")
    both.open(into(box))
    publisher, changes = both.pub, Mailbox[tuple[bytes, bool]]()
    assert publisher is not None
    publisher._on_change = lambda prefix, there: changes.put((prefix, there))
    both.subscribe([b"a", b"b"])
    await changes.until(2)
    both.subscribe([b"b", b"c"])
    await changes.until(4)
    assert sorted(changes.items[2:]) == [(b"a", False), (b"c", True)]
    for message in (b"a1", b"b1", b"c1"):
        publisher.send(message)
    assert await box.until(2) == [b"b1", b"c1"]
    await both.close()


@pytest_twisted.ensureDeferred
async def test_one_side_alone_opens_one_socket(context: SharedContext) -> None:
    """An app that only publishes has no SUB socket, and an app that only subscribes has no XPUB socket."""
    writer, reader = transport(context, pub=free_endpoint()), transport(context, sub=free_endpoint())
    for one in (writer, reader):
        one.open(into(Mailbox[bytes]()))
        one.subscribe([b"a"])
    assert (writer.sub, reader.pub) == (None, None)
    await writer.close()
    await reader.close()


@pytest_twisted.ensureDeferred
async def test_a_failed_start_that_is_remembered_leaves_nothing_open(sockets: Sockets, context: SharedContext) -> None:
    """After a failed start no socket, context or thread is left, even if the exception is kept."""
    address = bound(sockets.raw(zmq.XPUB))
    kept = []
    for _ in range(3):
        with pytest.raises(EndpointError, match="this address is in use") as caught:
            transport(context, sub=free_endpoint(), pub=[free_endpoint(), address]).open(into(Mailbox[bytes]()))
        kept.append(caught.value)
    await turns(lambda: not terminating())
    assert context._context is None


@pytest_twisted.ensureDeferred
async def test_a_thousand_starts_leave_no_descriptor_behind(context: SharedContext) -> None:
    """A thousand opened and closed connections (200 in the quick profile) leave no descriptor, in any context."""
    names = count()
    folder = Path("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd")

    def descriptors() -> int:
        return len(list(folder.iterdir()))

    async def cycle() -> None:
        address = f"inproc://{next(names)}"
        both = transport(context, sub=address, pub=address)
        both.open(into(Mailbox[bytes]()))
        both.subscribe([b"a"])
        await both.close(0)

    for _ in range(3):
        await cycle()
    await turns(lambda: not terminating())
    before, readers = descriptors(), len(reactor.getReaders())
    for _ in range(50):
        await cycle()
    context.acquire()
    for _ in range(sized(1000, 200)):
        await cycle()
    await context.release(reactor)
    await turns(lambda: descriptors() <= before)
    assert len(reactor.getReaders()) == readers


@pytest_twisted.ensureDeferred
async def test_a_stop_does_not_wait_for_publishers_that_are_away(context: SharedContext) -> None:
    """With an unreachable publisher and thousands of unsent subscriptions, closing ends at once."""
    for linger in spans(module.LINGER_DRAIN / 1000):
        reader = transport(context, sub=free_endpoint())
        reader.open(into(Mailbox[bytes]()))
        reader.subscribe(b"%d" % number for number in range(5000))
        began = reactor.seconds()
        await reader.close(int(linger * 1000)).addTimeout(PATIENCE, reactor)
        if (passed := reactor.seconds() - began) < linger:
            break
    assert passed < linger


@pytest_twisted.ensureDeferred
async def test_a_stop_waits_no_longer_than_its_linger_for_a_frozen_subscriber(
    sockets: Sockets, context: SharedContext, way: Way
) -> None:
    """A subscriber that reads nothing delays a publisher's end for the linger at most."""
    joined: Deferred[None] = Deferred()
    writer = transport(context, pub=way.wildcard)
    writer.open(into(Mailbox[bytes]()))
    assert writer.pub is not None
    writer.pub._on_change = lambda *_: joined.callback(None)
    frozen = sockets.context.socket(zmq.SUB)
    frozen.set(zmq.RCVHWM, 1)
    frozen.subscribe(b"")
    frozen.set(zmq.IPV6, way.name == "ipv6")
    frozen.connect(way.to(writer.pub.endpoints[0]))
    await joined
    for _ in range(200):
        writer.pub.send(bytes(200_000))
    await writer.close(linger=200).addTimeout(PATIENCE, reactor)
    frozen.close(0)


@pytest_twisted.ensureDeferred
async def test_what_was_sent_before_the_close_arrives(sockets: Sockets, context: SharedContext, way: Way) -> None:
    """9,000 messages of 1 KiB, sent just before the close, are all received."""
    sent = [number.to_bytes(4, "big") * 256 for number in range(9000)]
    for linger in ((), (int(PATIENCE * 1000),)):  # the default may be too short if the machine stands still
        joined: Deferred[None] = Deferred()
        writer = transport(context, pub=way.wildcard)
        writer.open(into(Mailbox[bytes]()))
        assert writer.pub is not None
        writer.pub._on_change = lambda *_, joined=joined: joined.callback(None)
        peer = sockets.raw(zmq.SUB)
        peer.subscribe(b"")
        peer.set(zmq.IPV6, way.name == "ipv6")
        peer.connect(way.to(writer.pub.endpoints[0]))
        await joined
        for message in sent:
            writer.pub.send(message)
        began = reactor.seconds()
        await writer.close(*linger)
        if linger or reactor.seconds() - began < module.LINGER_DRAIN / 1000:
            break
    assert [peer.recv() for _ in sent] == sent


@pytest_twisted.ensureDeferred
async def test_a_shared_context_lives_as_long_as_one_uses_it(context: SharedContext) -> None:
    """The last user terminates the context, and the next one gets a new one."""
    first = context.acquire()
    assert context.acquire() is first
    await context.release(reactor)
    assert not first.closed
    await context.release(reactor)
    assert first.closed
    second = context.acquire()
    assert second is not first
    await context.release(reactor)


@pytest_twisted.ensureDeferred
async def test_a_context_of_my_own_is_never_terminated() -> None:
    """zroute does not terminate a context that the program has passed."""
    mine: zmq.Context[Any] = zmq.Context()
    shared = SharedContext(mine)
    assert shared.acquire() is mine
    await shared.release(reactor)
    assert not mine.closed
    mine.term()


@pytest_twisted.ensureDeferred
async def test_a_context_that_does_not_terminate_is_said(
    context: SharedContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A context that can't terminate because of an open socket is a log line, not a silent hang."""
    monkeypatch.setattr(module, "LINGER_DRAIN", -1990)
    left = context.acquire().socket(zmq.PUB)
    done = context.release(reactor)
    await turns(lambda: caplog.records)
    assert "another part of the program has an open socket in this context" in caplog.text
    left.close(0)
    await done.addTimeout(PATIENCE, reactor)
    gc.collect()


def test_an_old_libzmq_is_refused_with_what_to_do() -> None:
    """An old libzmq raises ImportError with the remedy, instead of losing subscriptions."""
    program = "import zmq; zmq.zmq_version_info = lambda: (4, 3, 4); import zroute.sockets.connection"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "ImportError: zroute needs libzmq 4.3.5 or newer" in done.stderr
    assert "install the pyzmq wheel" in done.stderr


@pytest_twisted.ensureDeferred
async def test_who_is_silent_is_named_by_endpoint_also_where_it_is_a_host_name(
    sockets: Sockets, context: SharedContext
) -> None:
    """A publisher that reconnects under its resolved address counts as connected at its host name."""
    address, absent = free_endpoint(), free_endpoint()
    name = address.replace("127.0.0.1", "localhost")
    reader, connected = transport(context, sub=[name, absent]), Mailbox[int]()
    reader.on_connected = lambda: connected.put(reader.peers)
    reader.open(into(Mailbox[bytes]()))
    for number in range(1, 3):
        raw = sockets.raw(zmq.XPUB)
        await turns(lambda raw=raw: bindable(raw, address))
        assert await connected.until(number) == [1] * number
        assert reader.silent([f"feed@here {address}"]) == [f"connect:{absent} (not connected)"]
        assert reader.silent(["feed@here tcp://127.0.0.1:1"])[0] == f"connect:{absent} (not connected)"
        raw.close(0)
        await turns(lambda: not reader.links)
    assert len(reader.silent([])) == 2
    await reader.close()
    assert (reader.cut(1), reader.dialled(1), reader.came_by) == (None, None, None)
    assert (reader.heard(), reader.links) == (set(), frozenset())


@pytest_twisted.ensureDeferred
async def test_subscribing_again_is_told_to_publishers(sockets: Sockets, context: SharedContext) -> None:
    """`resubscribe` withdraws and subscribes to each prefix at once; other prefixes are not affected."""
    raw = sockets.raw(zmq.XPUB)
    reader = transport(context, sub=bound(raw))
    reader.open(into(Mailbox[bytes]()))
    reader.subscribe([b"a", b"b"])
    await told(raw, b"\1a", b"\1b")
    reader.resubscribe([b"b", b"never", b"a"])
    await told(raw, b"\0b", b"\1b", b"\0a", b"\1a")
    await reader.close()
    reader.resubscribe([b"a"])
