"""Sockets for tests, opened through the fixture `sockets`.

At the end of the test they are closed, and the context must terminate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import zmq

from tests.running import Mailbox, reactor
from tests.support import PATIENCE
from zroute.endpoints import parse_endpoint
from zroute.sockets.connection import Connection
from zroute.sockets.pubsub import SubConnection, XPubConnection
from zroute.transport import Receive

C = TypeVar("C")


class Sockets:
    """Makes zroute's connections and plain ZeroMQ sockets in one context."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.context.set(zmq.ContextOption.MAX_SOCKETS, 10_000)
        self._open: list[Any] = []

    def make(self, kind: Callable[..., C], *arguments: Any, **options: Any) -> C:
        """Return a connection of zroute."""
        connection = kind(reactor, *arguments, context=self.context, **options)
        self._open.append(connection)
        return connection

    def sub(self, drain: Receive | Mailbox[bytes]) -> SubConnection:
        """Return a SubConnection whose messages go to a drain or into a mailbox."""
        connection = self.make(SubConnection, list)
        connection.receive = into(drain) if isinstance(drain, Mailbox) else drain
        return connection

    def pub(self, on_change: Callable[[bytes, bool], None] | None = None) -> XPubConnection:
        """Return an XPubConnection."""
        return self.make(XPubConnection, on_change)

    def raw(self, kind: int) -> Any:
        """Return a plain ZeroMQ socket without high-water marks."""
        socket = self.context.socket(kind)
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.RCVTIMEO, int(PATIENCE * 1000))
        self._open.append(socket)
        return socket

    def close(self) -> None:
        """Close all open sockets; the context must then terminate."""
        for socket in self._open:
            socket.close(0)
        term = threading.Thread(target=self.context.term, daemon=True)
        term.start()
        term.join(PATIENCE)
        assert not term.is_alive(), "the context does not terminate"


def into(box: Mailbox[bytes]) -> Receive:
    """Return a drain that puts each part into ``box``."""

    def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            box.put(recv(zmq.DONTWAIT))

    return drain


def bound(connection: Connection | Any, kind: str = "tcp://127.0.0.1:*") -> str:
    """Bind a connection or a socket to a free port; return the address."""
    if isinstance(connection, Connection):
        return connection.open(parse_endpoint(kind, bind=True))
    connection.set(zmq.IPV6, "[" in kind)
    connection.bind(kind)
    return str(connection.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
