"""ROUTER, DEALER and PAIR: messages in both directions (zguide, chapter 3; RFC 28, RFC 31)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import zmq

from zroute.errors import EnvelopeError, UnknownPeerError
from zroute.options import SocketOptions
from zroute.sockets.parts import SendingConnection

__all__ = ["DealerConnection", "PairConnection", "RouterConnection"]


class DealerConnection(SendingConnection):
    """A DEALER socket: sends to its peers by turns, and ``on_message`` gets what they send.

    Connects unless an endpoint says ``bind:``.
    """

    kind: ClassVar[int] = zmq.DEALER


class PairConnection(SendingConnection):
    """A PAIR socket: one peer at a time, which is best over ``inproc://``; a second one is turned away.

    Binds unless an endpoint says ``connect:``.
    """

    kind: ClassVar[int] = zmq.PAIR
    binds: ClassVar[bool] = True


class RouterConnection(SendingConnection):
    """A ROUTER socket: ``on_message`` gets the identity of the peer and the parts of its message.

    The identity is what the peer has chosen, or five bytes of libzmq's that begin with NUL and are new with
    each connection. Binds unless an endpoint says ``connect:``.
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
        """Send to the peer whose identity is the first of ``parts``, as `SendingConnection.send` does.

        Raises UnknownPeerError if no such peer is connected (zmq_setsockopt(3), ZMQ_ROUTER_MANDATORY).
        """
        try:
            super().send(*parts)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
        else:
            return
        raise UnknownPeerError(f"no peer {parts[0]!r} is connected to {', '.join(self.endpoints)}: it has gone")

    def _identified(self, parts: list[bytes]) -> object:
        if len(parts) < 2:
            raise EnvelopeError("an identity and nothing behind it")
        return self._on_identified(parts[0], parts[1:])
