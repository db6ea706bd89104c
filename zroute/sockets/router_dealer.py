"""ROUTER, DEALER and PAIR: messages in both directions.

See the zguide, chapter 3, RFC 28 and RFC 31.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import zmq

from zroute.errors import EnvelopeError, UnknownPeerError
from zroute.options import SocketOptions
from zroute.sockets.parts import SendingConnection

__all__ = ["DealerConnection", "PairConnection", "RouterConnection"]


class DealerConnection(SendingConnection):
    """A DEALER socket: sends to its peers in rotation, and receives from all of them.

    Connects to each endpoint, or binds if the endpoint begins with ``bind:``.
    """

    kind: ClassVar[int] = zmq.DEALER


class PairConnection(SendingConnection):
    """A PAIR socket: exchanges messages with one peer at a time.

    PAIR sockets are intended for ``inproc://``. Further peers are refused. Binds each endpoint, or connects if the
    endpoint begins with ``connect:``.
    """

    kind: ClassVar[int] = zmq.PAIR
    binds: ClassVar[bool] = True


class RouterConnection(SendingConnection):
    """A ROUTER socket: exchanges messages with peers that it addresses by identity.

    ``on_message`` gets the identity of the sender, followed by the parts of the message. The identity is either set by
    the peer, or five bytes from libzmq, which begin with NUL and change with each connection. Binds each endpoint, or
    connects if the endpoint begins with ``connect:``.
    """

    kind: ClassVar[int] = zmq.ROUTER
    binds: ClassVar[bool] = True

    def __init__(
        self,
        reactor: Any,
        on_message: Callable[[bytes, list[bytes]], object],
        *,
        context: zmq.Context[Any] | None = None,
        **options: Unpack[SocketOptions],
    ) -> None:
        self._on_identified = on_message
        super().__init__(reactor, self._identified, context=context, **options)

    def send(self, *parts: bytes) -> None:
        """Send a message to the peer whose identity is the first of ``parts``.

        Raises:
            UnknownPeerError: No peer with this identity is connected (zmq_setsockopt(3), ZMQ_ROUTER_MANDATORY).
            HighWaterMarkError: The queue of that peer is full.

        All other errors are the same as for `SendingConnection.send`.
        """
        try:
            super().send(*parts)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
        else:
            return
        raise UnknownPeerError(
            f"no peer {parts[0]!r} is connected to {', '.join(self.endpoints)}: the peer has disconnected, or has "
            "never connected"
        )

    def _identified(self, parts: list[bytes]) -> object:
        if len(parts) < 2:
            raise EnvelopeError("expected an identity and at least one part, got only an identity")

        return self._on_identified(parts[0], parts[1:])
