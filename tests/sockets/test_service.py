"""A connection as a service of a Twisted program."""

from __future__ import annotations

import pytest
import pytest_twisted
import zmq
from twisted.application.service import MultiService

from tests.running import Mailbox, reactor
from tests.sockets.opened import Sockets, bound
from zroute.errors import EndpointError
from zroute.sockets.pipeline import PullConnection, PushConnection
from zroute.sockets.service import ConnectionService


@pytest_twisted.ensureDeferred
async def test_a_service_opens_and_closes_its_connection_as_often_as_it_runs(sockets: Sockets) -> None:
    """The connection opens and closes with its service, which can be started again."""
    box, parent = Mailbox[list[bytes]](), MultiService()  # type: ignore[no-untyped-call]
    service = ConnectionService(
        lambda: PullConnection(reactor, box.put, context=sockets.context), "bind:tcp://127.0.0.1:*"
    )
    service.setServiceParent(parent)  # type: ignore[no-untyped-call]
    for number in (1, 2):
        assert service.connection is None
        parent.startService()  # type: ignore[no-untyped-call]
        push = sockets.make(PushConnection)
        assert service.connection is not None
        push.open(f"connect:{service.connection.endpoints[0]}")
        await push.when_writable()
        push.send(b"job")
        assert len(await box.until(number)) == number
        await parent.stopService()  # type: ignore[no-untyped-call]
        service.stopService()
    assert service.connection is None


@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_leaves_nothing_open(sockets: Sockets) -> None:
    """If the second address is in use, the start fails and the first address is free again."""
    taken = bound(sockets.raw(zmq.PUSH))
    made: list[PullConnection] = []

    def make() -> PullConnection:
        made.append(PullConnection(reactor, list, context=sockets.context))
        return made[-1]

    service = ConnectionService(make, "bind:tcp://127.0.0.1:*", f"bind:{taken}")
    with pytest.raises(EndpointError, match="this address is in use"):
        service.startService()
    assert made[0].closed
    assert service.connection is None
