"""A publisher's socket that waits instead of dropping, and ends only when its subscribers have read all.

Two silences of PUB/SUB are ended here. A full queue: XPUB_NODROP (zmq_setsockopt(3)) makes it EAGAIN, for all
peers of a message or for none. The end: libzmq hands the last messages to the system and closes, and a
subscriber's next PING to the closed connection makes the system reset it and throw away what it had not sent
yet (RFC 1122, 4.2.2.13). So a duplicate of each connection's descriptor is kept, and when libzmq is done only
its sending side is shut down: the subscriber reads to the end and closes, which is seen here.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq
from twisted.internet.defer import Deferred

from zroute.options import MAX_SUBSCRIPTION_BYTES
from zroute.sockets.events import SocketEvent
from zroute.sockets.pubsub import XPubConnection

__all__ = ["LosslessPubConnection"]

_WATCHED = {"accepted", "connected", "disconnected"}  # their value is the connection's descriptor


class LosslessPubConnection(XPubConnection):
    """A publisher that drops nothing, in a ZeroMQ context of its own. End it with `finish`.

    `try_send` sends to nobody, and is False, while one subscriber's queue is full. A subscriber that subscribes to more
    than `MAX_SUBSCRIPTION_BYTES` is cut.
    """

    def __init__(self, reactor: Any, on_change: Callable[[bytes, bool], None] | None = None) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        super().__init__(reactor, on_change, context=self._context)
        self.refuse_when_full()
        self.limit_subscriptions(MAX_SUBSCRIPTION_BYTES, "Subscribe to fewer prefixes, or shorter ones")
        self._peers: dict[int, socket.socket] = {}
        self.watch(self._duplicate)

    def finish(self, seconds: float) -> Deferred[bool]:
        """Close; fires when all has been read, or after ``seconds``, with whether it was.

        A subscriber that goes away meanwhile is not waited for. 0 gives up what is queued.
        """
        if self._monitor is not None:
            self._monitor.doRead()  # also the connections that the reactor has not told of yet
        self.close(int(seconds * 1000))
        done: Deferred[bool] = Deferred()
        reactor, context, peers = self._reactor, self._context, list(self._peers.values())

        def wait() -> None:
            read = _end(context, peers, seconds)
            reactor.callFromThread(done.callback, read)

        # A thread of its own, since `term` blocks; a daemon, so that a second signal does not wait for it.
        threading.Thread(target=wait, name="zroute-finish", daemon=True).start()
        return done

    def _duplicate(self, event: SocketEvent) -> None:
        if event.name not in _WATCHED:
            return
        before = self._peers.pop(event.value, None)
        if before is not None:
            before.close()
        if event.name != "disconnected":
            with suppress(OSError):  # it is closed again, or the process has no descriptor left
                self._peers[event.value] = socket.socket(fileno=os.dup(event.value))


def _end(context: zmq.Context[Any], peers: list[socket.socket], seconds: float) -> bool:
    """Terminate the context, then wait for each peer to close; whether all did within ``seconds``."""
    deadline = time.monotonic() + seconds
    context.term()
    complete = time.monotonic() < deadline
    for peer in peers:
        with suppress(OSError):  # it has gone already
            peer.shutdown(socket.SHUT_WR)
    for peer in peers:
        with peer:
            complete = _closed(peer, deadline) and complete
    return complete


def _closed(peer: socket.socket, deadline: float) -> bool:
    """Read and discard until the peer closes; False if that is not before the deadline."""
    try:
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(4096):
                return True
    except TimeoutError:
        return False
    except OSError:  # reset: the subscriber has ended, and what it has not read it will not miss
        return True
    return False
