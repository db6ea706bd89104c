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
    """A PUSH socket: sends each message to one of the connected peers, in rotation.

    Binds each endpoint, or connects if the endpoint begins with ``connect:``.

    A peer receives jobs as long as its queues have room, even if the peer does not process the jobs. In a test with
    both high-water marks at 1, a peer that read no messages was sent 12,516 jobs of 60 bytes. To share work fairly, let
    the workers request their jobs; see `zroute.sockets.reqrep`.
    """

    kind: ClassVar[int] = zmq.PUSH
    binds: ClassVar[bool] = True

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        super().__init__(reactor, list, context=context, **options)


class PullConnection(PartsConnection):
    """A PULL socket: ``on_message`` gets the parts of each message.

    Reads from all connected peers in rotation. Connects to each endpoint, or binds if the endpoint begins with
    ``bind:``.
    """

    kind: ClassVar[int] = zmq.PULL
