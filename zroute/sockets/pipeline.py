"""PUSH and PULL: distribute jobs among workers.

See the zguide, chapter 1, "Divide and Conquer", and RFC 30.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import zmq

from zroute.options import SocketOptions
from zroute.sockets.parts import PartsConnection, SendingConnection

__all__ = ["PullConnection", "PushConnection"]


class PushConnection(SendingConnection):
    """A PUSH socket: each message goes to one of the connected peers, in turn.

    Binds unless an endpoint begins with ``connect:``.

    A peer receives jobs as long as its queues have room, even if it does not work on them. With both high-water marks
    at 1, one peer that reads nothing was sent 12,516 jobs of 60 bytes. To share work fairly, let the workers request
    their jobs; see `zroute.sockets.reqrep`.
    """

    kind: ClassVar[int] = zmq.PUSH
    binds: ClassVar[bool] = True

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        super().__init__(reactor, list, context=context, **options)


class PullConnection(PartsConnection):
    """A PULL socket: ``on_message`` gets the parts of each message.

    Reads from all connected peers in turn. Connects unless an endpoint begins with ``bind:``.
    """

    kind: ClassVar[int] = zmq.PULL
