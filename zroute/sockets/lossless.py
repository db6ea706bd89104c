"""A publisher's socket that waits instead of dropping, and ends only when its subscribers have read all.

Two silences of PUB/SUB are ended here. A full queue: XPUB_NODROP (zmq_setsockopt(3)) makes it EAGAIN, for all
peers of a message or for none. The end: libzmq hands the last messages to the system and closes, and a
subscriber's next PING to the closed connection makes the system reset it and throw away what it had not sent
yet (RFC 1122, 4.2.2.13). So a duplicate of each connection's descriptor is kept, and when libzmq is done only
its sending side is shut down: the subscriber reads to the end and closes, which is seen here.

A subscriber that closes before it has read everything resets its connection. It may have ended, as ``tail -n 1`` does,
and misses nothing. Or its own heartbeat cut the connection while its queue was full, and it has lost what was under
way. The bytes on the connection are the same, and the next step is not: the second one connects again, at once. So
resets are noted by host, and a connection from that host within a second means that a subscriber has lost messages.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import zmq
from twisted.internet.defer import Deferred

from zroute.endpoints import Endpoint
from zroute.options import MAX_SUBSCRIPTION_BYTES
from zroute.sockets.events import SocketEvent, parse_event
from zroute.sockets.pubsub import XPubConnection

__all__ = ["LosslessPubConnection"]

_WATCHED = {"accepted", "connected", "disconnected"}  # their value is the connection's descriptor

_RETURN = 1.0
"""Seconds in which a subscriber that lives connects again: ten times the interval of libzmq, and of zroute."""


@attrs.frozen(eq=False)
class _Peer:
    """A duplicate of a connection's descriptor, and the ``host`` at its other end."""

    socket: socket.socket
    host: str

    @property
    def reset(self) -> bool:
        """True if the connection was reset. Of a closed ipc connection the system does not tell it."""
        try:
            self.socket.getpeername()
        except OSError:
            return True
        return False


def _peer(descriptor: int) -> _Peer:
    """Raises OSError: it is closed again, or the process has no descriptor left."""
    duplicate = socket.socket(fileno=os.dup(descriptor))
    try:
        return _Peer(duplicate, _host(duplicate.getpeername()))
    except OSError:
        duplicate.close()
        raise


def _host(address: Any) -> str:
    return address[0] if isinstance(address, tuple) else ""  # of an ipc connection: this machine


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
        self._peers: dict[int, _Peer] = {}
        self._opened: list[Endpoint] = []
        self._resets: list[tuple[str, float]] = []  # host and time
        self.lost_to = 0
        """Subscribers that reset their connection before they had read everything, and connected again."""
        self.watch(self._follow_peer)

    def open(self, endpoint: Endpoint | str) -> str:
        """See `Connection.open`."""
        resolved = super().open(endpoint)
        self._opened.append(Endpoint(resolved, bind=self._parsed(endpoint).bind))
        return resolved

    def finish(self, seconds: float) -> Deferred[bool]:
        """Close; fires when all has been read, or after ``seconds``, with whether it was.

        A subscriber that goes away meanwhile is not waited for, unless it connects again: that it has lost messages is
        seen then, and counted in ``lost_to``. 0 gives up what is queued.
        """
        if self._monitor is not None:
            self._monitor.doRead()  # also the connections that the reactor has not told of yet
        self.close(int(seconds * 1000))
        done: Deferred[bool] = Deferred()
        before = self._recent_resets()

        def wait() -> None:
            read, resets = _end(self._context, list(self._peers.values()), seconds)
            resets += before
            returned = _returned(self._opened, resets) if resets and seconds else 0
            self._reactor.callFromThread(finished, read, returned)

        def finished(read: bool, returned: int) -> None:
            self.lost_to += returned
            done.callback(read and not self.lost_to)

        # A thread of its own, since `term` blocks; a daemon, so that a second signal does not wait for it.
        threading.Thread(target=wait, name="zroute-finish", daemon=True).start()
        return done

    def _follow_peer(self, event: SocketEvent) -> None:
        if event.name not in _WATCHED:
            return
        before = self._peers.pop(event.value, None)
        if before is not None:
            if before.reset and event.value not in self._cut_fds:  # that it was cut here is logged
                self._resets.append((before.host, self._reactor.seconds()))
            before.socket.close()
        if event.name != "disconnected":
            with suppress(OSError):
                peer = self._peers[event.value] = _peer(event.value)
                self._came(peer.host)

    def _came(self, host: str) -> None:
        hosts = self._recent_resets()
        if host in hosts:
            del self._resets[hosts.index(host)]
            self.lost_to += 1

    def _recent_resets(self) -> list[str]:
        """Forget those after which no subscriber has come back; return the hosts of the others."""
        earliest = self._reactor.seconds() - _RETURN
        self._resets = [(host, at) for host, at in self._resets if at >= earliest]
        return [host for host, _ in self._resets]


def _end(context: zmq.Context[Any], peers: list[_Peer], seconds: float) -> tuple[bool, list[str]]:
    """Terminate the context, then wait for each peer to close.

    Returns True if all did within ``seconds``, and the hosts of those that reset their connection.
    """
    deadline = time.monotonic() + seconds
    context.term()
    complete = time.monotonic() < deadline
    resets = [peer for peer in peers if peer.reset]  # before the shutdown: a connection that is closed looks the same
    for peer in peers:
        with suppress(OSError):  # it has gone already
            peer.socket.shutdown(socket.SHUT_WR)
    for peer in peers:
        with peer.socket:
            try:
                complete = _closed(peer.socket, deadline) and complete
            except OSError:
                resets += [peer] * (peer not in resets)
    return complete, [peer.host for peer in resets]


def _closed(peer: socket.socket, deadline: float) -> bool:
    """Read and discard until the peer closes; False if that is not before the deadline. Raises OSError for a reset."""
    try:
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(4096):
                return True
    except TimeoutError:
        pass
    return False


def _returned(endpoints: list[Endpoint], resets: list[str]) -> int:
    """Be there once more for `_RETURN` seconds; how many of the hosts in ``resets`` connect again."""
    waiting, deadline = list(resets), time.monotonic() + _RETURN
    with zmq.Context() as context, context.socket(zmq.XPUB) as again, again.get_monitor_socket() as monitor:
        for endpoint in endpoints:
            with suppress(zmq.ZMQError):  # another program has taken the address
                (again.bind if endpoint.bind else again.connect)(endpoint.address)
        while waiting and (left := deadline - time.monotonic()) > 0 and monitor.poll(int(left * 1000) + 1):
            event = parse_event(*monitor.recv_multipart())
            if event.name in ("accepted", "connected"):
                with suppress(OSError, ValueError):  # it has gone again, or is another host's
                    waiting.remove(_host_of(event.value))
        again.disable_monitor()
    return len(resets) - len(waiting)


def _host_of(descriptor: int) -> str:
    peer = _peer(descriptor)
    peer.socket.close()
    return peer.host
