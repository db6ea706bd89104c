"""Router and dealer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from zroute.txzmq.connection import ZmqConnection

__all__ = ["ZmqBase", "ZmqDealerConnection", "ZmqRouterConnection"]


class ZmqBase(ZmqConnection):
    """What router and dealer share; subclasses implement `gotMessage`."""

    def sendMsg(self, message: bytes | str) -> None:
        """Send a message of one part."""
        self.send(message)

    def sendMultipart(self, parts: Sequence[bytes | str]) -> None:
        """Send a message of several parts."""
        self.send(parts)

    def messageReceived(self, message: list[bytes]) -> Any:
        """Calls `gotMessage` with the parts as arguments."""
        return self.gotMessage(*message)

    def gotMessage(self, *args: Any, **kwargs: Any) -> Any:
        """Is called with the parts of each message; at a router the first is the sender's identity."""
        raise NotImplementedError(self)


class ZmqDealerConnection(ZmqBase):
    """A DEALER socket."""

    socketType = zmq.DEALER


class ZmqRouterConnection(ZmqBase):
    """A ROUTER socket. What is sent to a peer that is not there is dropped, as libzmq has it."""

    socketType = zmq.ROUTER

    def sendMsg(self, recipientId: bytes | str, message: bytes | str) -> None:  # type: ignore[override]
        """Send a message of one part to the peer with this identity."""
        self.send([recipientId, message])

    def sendMultipart(self, recipientId: bytes | str, parts: Sequence[bytes | str]) -> None:  # type: ignore[override]
        """Send a message of several parts to the peer with this identity."""
        self.send([recipientId, *parts])
