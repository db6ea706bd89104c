"""ROUTER and DEALER sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from zroute.txzmq.connection import ZmqConnection

__all__ = ["ZmqBase", "ZmqDealerConnection", "ZmqRouterConnection"]


class ZmqBase(ZmqConnection):
    """The base class of ROUTER and DEALER; subclasses implement `gotMessage`."""

    def sendMsg(self, message: bytes | str) -> None:
        """Send a message of one part."""
        self.send(message)

    def sendMultipart(self, parts: Sequence[bytes | str]) -> None:
        """Send a message of several parts."""
        self.send(parts)

    def messageReceived(self, message: list[bytes]) -> Any:
        """Call `gotMessage` with the parts of the message as arguments."""
        return self.gotMessage(*message)

    def gotMessage(self, *args: Any, **kwargs: Any) -> Any:
        """Handle the parts of a message; implemented by subclasses.

        At a ROUTER, the first part is the identity of the sender.
        """
        raise NotImplementedError(self)


class ZmqDealerConnection(ZmqBase):
    """A DEALER socket."""

    socketType = zmq.DEALER


class ZmqRouterConnection(ZmqBase):
    """A ROUTER socket; libzmq drops messages to a peer that is not connected."""

    socketType = zmq.ROUTER

    def sendMsg(self, recipientId: bytes | str, message: bytes | str) -> None:  # type: ignore[override]
        """Send a message of one part to the peer with this identity."""
        self.send([recipientId, message])

    def sendMultipart(self, recipientId: bytes | str, parts: Sequence[bytes | str]) -> None:  # type: ignore[override]
        """Send a message of several parts to the peer with this identity."""
        self.send([recipientId, *parts])
