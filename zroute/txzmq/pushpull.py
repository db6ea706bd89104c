"""PUSH and PULL sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from zroute.txzmq.connection import ZmqConnection

__all__ = ["ZmqPullConnection", "ZmqPushConnection"]


class ZmqPushConnection(ZmqConnection):
    """A PUSH socket."""

    socketType = zmq.PUSH

    def push(self, message: bytes | str | Sequence[bytes | str]) -> None:
        """Send a message to one of the peers. Raises zmq.Again if no peer has room."""
        self.send(message)


class ZmqPullConnection(ZmqConnection):
    """A PULL socket; subclasses implement `onPull`."""

    socketType = zmq.PULL

    def messageReceived(self, message: list[bytes]) -> Any:
        """Call `onPull` with the parts of the message."""
        return self.onPull(message)

    def onPull(self, message: list[bytes]) -> Any:
        """Handle the parts of a message; implemented by subclasses."""
        raise NotImplementedError(self)
