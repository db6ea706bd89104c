"""A connection that connects again also where libzmq gives up.

libzmq connects again after a lost connection, but not after a protocol error, to which it counts a part over
MAXMSGSIZE: it ends the session and says nothing. So a disconnection that is followed by no attempt to
connect is mended here, and said.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import zmq

from zroute.endpoints import Endpoint
from zroute.options import LINGER_DRAIN
from zroute.sockets.connection import Connection, Drain
from zroute.sockets.events import SocketEvent

__all__ = ["PersistentConnection"]

_log = logging.getLogger("zroute.sockets")

_GIVEN_UP_AFTER = 1.0  # seconds without an attempt to connect; libzmq says of one at once when it plans it


class PersistentConnection(Connection):
    """A `Connection` whose `open` endpoints stay connected until `disconnect` or `close`."""

    def __init__(self, reactor: Any, socket: zmq.Socket[Any], drain: Drain) -> None:
        super().__init__(reactor, socket, drain)
        self._connected: dict[
            int, str
        ] = {}  # by the descriptors of connections made from here; accepted ones are the peer's
        self._given_up: dict[str, Any] = {}
        self.dialled: list[str] = []
        """Those of ``endpoints`` that it connects to."""
        self._persists = False

    def open(self, endpoint: Endpoint | str) -> str:
        """See `Connection.open`."""
        endpoint = self._parsed(endpoint)
        if not (endpoint.bind or self._persists or self.closed):
            self._persists = True
            self.watch(self._seen)
        address = super().open(endpoint)
        if not endpoint.bind:
            self.dialled.append(address)
        return address

    def close(self, linger: int = LINGER_DRAIN) -> None:
        """See `Connection.close`."""
        for call in self._given_up.values():
            call.cancel()
        self._given_up.clear()
        super().close(linger)

    def disconnect(self, address: str) -> None:
        """See `Connection.disconnect`."""
        super().disconnect(address)
        self.dialled = [other for other in self.dialled if other != address]
        self._forget(address)

    def reconnect(self, address: str) -> None:
        """Give up the connection to ``address``, as `open` returned it, for a new one: the peer is gone, or seems so.

        What is queued from it and to it is lost. Raises EndpointError for one that is not connected.
        """
        self.disconnect(address)
        self.open(Endpoint(address, bind=False))

    def _forget(self, address: str) -> None:
        """libzmq does not tell of the end of a connection that is taken back here."""
        self._cancel(address)
        self._connected = {number: other for number, other in self._connected.items() if other != address}

    def _cancel(self, address: str) -> None:
        call = self._given_up.pop(address, None)
        if call is not None:
            call.cancel()

    def _seen(self, event: SocketEvent) -> None:
        self._cancel(event.address)
        if event.name == "connected":
            self._connected[event.value] = event.address
        elif event.name == "disconnected" and event.value in self._connected:
            del self._connected[event.value]
            if not self.closed:
                again = self._reactor.callLater(_GIVEN_UP_AFTER, self._connect_again, event.address)
                self._given_up[event.address] = again

    def _connect_again(self, address: str) -> None:
        del self._given_up[address]
        _log.warning(
            "%s: the connection was ended by a protocol error, such as a part of more than %d bytes, or a socket of a "
            "kind that does not fit; what was under way is lost, connecting again",
            address,
            self._socket.get(zmq.SocketOption.MAXMSGSIZE),
        )
        with suppress(zmq.ZMQError):  # libzmq may have forgotten the endpoint with the session
            self._socket.disconnect(address)
        self._socket.connect(address)
        self.poke()
