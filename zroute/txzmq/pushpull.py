"""Push and pull."""

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
        """Send to one of the peers; raises zmq.Again where none takes it."""
        self.send(message)


class ZmqPullConnection(ZmqConnection):
    """A PULL socket; subclasses implement `onPull`."""

    socketType = zmq.PULL

    def messageReceived(self, message: list[bytes]) -> Any:
        """Calls `onPull`."""
        return self.onPull(message)

    def onPull(self, message: list[bytes]) -> Any:
        """Is called with the parts of each message."""
        raise NotImplementedError(self)
