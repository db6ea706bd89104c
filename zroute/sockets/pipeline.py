"""PUSH and PULL: jobs for whoever is free (zguide, chapter 1, "Divide and Conquer"; RFC 30)."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import zmq

from zroute.options import SocketOptions
from zroute.sockets.parts import PartsConnection, SendingConnection

__all__ = ["PullConnection", "PushConnection"]


class PushConnection(SendingConnection):
    """A PUSH socket: each message goes to one of the connected peers, by turns.

    A peer is given jobs as long as its queues have room, whether it works or not: with both high-water marks at 1,
    12,516 jobs of 60 bytes went to one that read none. Who must share work fairly lets the workers ask for it.
    Binds unless an endpoint says ``connect:``.
    """

    kind: ClassVar[int] = zmq.PUSH
    binds: ClassVar[bool] = True

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        super().__init__(reactor, list, context=context, **options)


class PullConnection(PartsConnection):
    """A PULL socket: ``on_message`` gets the parts of each message, of all connected peers in fair turns.

    Connects unless an endpoint says ``bind:``.
    """

    kind: ClassVar[int] = zmq.PULL
