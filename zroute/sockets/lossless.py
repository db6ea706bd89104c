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
from struct import Struct
from typing import Any

import zmq
from twisted.internet.defer import Deferred

from zroute.options import LINGER_ABORT
from zroute.sockets.connection import Connection
from zroute.sockets.pubsub import PubConnection

__all__ = ["LosslessPubConnection"]

_EVENT = Struct("=Hi")  # a monitor's first part: the event and its value, here the connection's descriptor
_WATCHED = zmq.Event.ACCEPTED | zmq.Event.CONNECTED | zmq.Event.DISCONNECTED


class LosslessPubConnection(PubConnection):
    """A PubConnection that drops nothing, in a ZeroMQ context of its own. End it with `finish`."""

    def __init__(self, reactor: Any, on_change: Callable[[bytes, bool], None] | None = None) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        super().__init__(reactor, self._context, on_change)
        self._socket.set(zmq.SocketOption.XPUB_NODROP, 1)  # before the first send: one that drops spoils the pipe
        self._peers: dict[int, socket.socket] = {}
        self._monitor = Connection(reactor, self._socket.get_monitor_socket(_WATCHED), self._watch)

    def try_send(self, frames: tuple[bytes, ...]) -> bool:
        """Send one message; False, and nothing is sent to anybody, while a subscriber's queue is full."""
        try:
            if len(frames) == 1:
                self.send(frames[0])
            else:
                self.send_parts(frames)
        except zmq.Again:
            self.poke()
            return False
        return True

    def finish(self, seconds: float) -> Deferred[bool]:
        """Close; fires when all has been read, or after ``seconds``, with whether it was.

        A subscriber that goes away meanwhile is not waited for. 0 gives up what is queued.
        """
        self._monitor.doRead()  # also the connections that the reactor has not told of yet
        self._socket.disable_monitor()
        self._monitor.close(LINGER_ABORT)
        self.close(int(seconds * 1000))
        done: Deferred[bool] = Deferred()
        reactor, context, peers = self._reactor, self._context, list(self._peers.values())

        def wait() -> None:
            read = _end(context, peers, seconds)
            reactor.callFromThread(done.callback, read)

        # A thread of its own, since `term` blocks; a daemon, so that a second signal does not wait for it.
        threading.Thread(target=wait, name="zroute-finish", daemon=True).start()
        return done

    def _watch(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            (event, descriptor), _address = _EVENT.unpack(recv(zmq.DONTWAIT)), recv(zmq.DONTWAIT)
            before = self._peers.pop(descriptor, None)
            if before is not None:
                before.close()
            if event != zmq.Event.DISCONNECTED:
                with suppress(OSError):  # it is closed again, or the process has no descriptor left
                    self._peers[descriptor] = socket.socket(fileno=os.dup(descriptor))


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
