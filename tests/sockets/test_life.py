"""Connections that open and close leave no resources behind."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.threads import deferToThread

from tests.running import reactor
from tests.sockets.life import KINDS, cycles
from tests.sockets.opened import Sockets, bound
from tests.support import PATIENCE, free_endpoint
from zroute.errors import EndpointError

pytestmark = pytest.mark.slow

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest_twisted.ensureDeferred
async def test_cycles_of_open_and_close_leave_nothing(kind: str) -> None:
    """No descriptor, thread, reader or call is left, and memory does not grow."""
    before, after = await cycles(reactor, kind, 200)
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads
    assert (after.readers, after.calls) == (before.readers, before.calls)
    assert after.memory - before.memory < 4_000


@every_kind
@pytest_twisted.ensureDeferred
async def test_an_end_with_an_unreachable_peer_does_not_hang(kind: str) -> None:
    """close returns at once; the context ends within the linger given to it, not that of the option."""
    context: zmq.Context[Any] = zmq.Context()
    options: dict[str, Any] = {"linger": int(10_000 * PATIENCE)}  # ms: longer than this test waits
    if kind not in ("PUB", "XPUB", "REQ"):
        options["immediate"] = 0
    connection = KINDS[kind](reactor, context=context, **options)
    connection.open("connect:" + free_endpoint())
    if kind == "REQ":
        connection.request(b"x").addErrback(lambda _: None)
    elif kind in ("PUSH", "DEALER", "PAIR", "PUB", "XPUB"):
        connection.send(b"queued without a peer")
    connection.close(100)
    connection.close(100)
    await deferToThread(context.term).addTimeout(PATIENCE, reactor)


@every_kind
@pytest_twisted.ensureDeferred
async def test_a_failed_bind_that_is_remembered_holds_nothing(sockets: Sockets, kind: str) -> None:
    """With the exception kept, the connection still closes, and the context terminates."""
    taken, context = bound(sockets.raw(zmq.PUSH)), zmq.Context[Any]()
    connection = KINDS[kind](reactor, context=context)
    with pytest.raises(EndpointError, match="this address is in use") as caught:
        connection.open("bind:" + taken)
    connection.close()
    del connection
    await deferToThread(context.term).addTimeout(PATIENCE, reactor)
    assert caught.value.endpoint == "bind:" + taken
