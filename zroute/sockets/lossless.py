"""A publisher that waits instead of dropping messages.

`LosslessPubConnection.finish` waits until the subscribers have read all messages. PUB/SUB sockets lose messages
silently in two cases, which this module prevents:

- **A full queue.** With XPUB_NODROP (zmq_setsockopt(3)), a send fails with EAGAIN, and no subscriber receives the
  message.
- **The end.** libzmq passes the last messages to the system and closes the connection. If the subscriber then sends a
  PING, the system resets the connection and discards the unsent data (RFC 1122, 4.2.2.13). The publisher therefore
  keeps a duplicate of each descriptor. When libzmq has closed its descriptors, the publisher shuts down only the
  sending side of the connection. The subscriber reads to the end and closes its side. The publisher then reads
  end-of-file from the duplicate.

A subscriber that closes its connection before it has read all data resets the connection. There are two possible
reasons. The subscriber may have ended, as ``tail -n 1`` does, and needs no more messages. Or the subscriber's own
heartbeat has closed the connection while its queue was full, and the messages on the way are lost. Both cases look the
same on the connection, but only in the second case does the subscriber reconnect at once. Resets are therefore recorded
by host. A connection from the same host within a second means that a subscriber has lost messages.
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

from zroute.endpoints import Access, Endpoint
from zroute.options import MAX_SUBSCRIPTION_BYTES
from zroute.sockets.access import CurveGuard, guard_for
from zroute.sockets.events import SocketEvent, parse_event
from zroute.sockets.ipc import bind
from zroute.sockets.pubsub import XPubConnection
from zroute.stats import Stats

__all__ = ["LosslessPubConnection"]

_WATCHED = {"accepted", "connected", "disconnected"}  # events whose value is the descriptor of the connection

_RETURN = 1.0
"""The time in seconds within which a running subscriber reconnects.

This time is ten times the reconnect interval of libzmq and zroute.
"""


@attrs.frozen(eq=False)
class _Peer:
    """A duplicate of a connection's descriptor, and the host of the peer."""

    socket: socket.socket
    host: str

    @property
    def reset(self) -> bool:
        """True if the connection was reset. Always False over ipc."""
        try:
            self.socket.getpeername()
        except OSError:
            return True
        return False


def _peer(descriptor: int) -> _Peer:
    """Return the peer of a connection.

    Raises OSError if the descriptor is closed, or if the process has no free descriptor.
    """
    duplicate = socket.socket(fileno=os.dup(descriptor))
    try:
        return _Peer(duplicate, _host(duplicate.getpeername()))
    except OSError:
        duplicate.close()
        raise


def _host(address: Any) -> str:
    return address[0] if isinstance(address, tuple) else ""  # ipc: this machine


class LosslessPubConnection(XPubConnection):
    """A publisher that drops no message. `finish` closes it without a loss.

    While the queue of one subscriber is full, `try_send` returns False, and no subscriber receives the message. A
    subscriber with subscriptions of more than `MAX_SUBSCRIPTION_BYTES` is disconnected. The publisher has its own
    ZeroMQ context.
    """

    cost = 2  # libzmq's descriptor, and the duplicate

    def __init__(self, reactor: Any, on_change: Callable[[bytes, bool], None] | None = None) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        super().__init__(reactor, on_change, context=self._context)
        self.refuse_when_full()
        self.limit_subscriptions(MAX_SUBSCRIPTION_BYTES, "Use fewer or shorter prefixes in the subscriber")
        self._peers: dict[int, _Peer] = {}
        self._opened: list[Endpoint] = []
        self._ends_guard: Callable[[], object] = lambda: None
        self._resets: list[tuple[str, float]] = []  # host, and time in seconds of the reactor
        self.lost_to = 0
        """The number of subscribers that have lost messages.

        These subscribers reset their connection before they had read all messages, and reconnected.
        """
        self.watch(self._follow_peer)

    def protect(self, access: Access) -> None:
        """Use the keys of ``access``, or refuse addresses that are open.

        Call this before `open`.

        Raises:
            KeyFileError: The secret file can't be used.
        """
        self.guard = guard_for(self._reactor, access, self.log.name, Stats())
        if isinstance(self.guard, CurveGuard):
            self.guard.begin(self._context)
            self._ends_guard = self.guard.end

    def open(self, endpoint: Endpoint | str) -> str:
        """See `Connection.open`."""
        resolved = super().open(endpoint)
        self._opened.append(Endpoint(resolved, bind=self._parsed(endpoint).bind))
        return resolved

    def finish(self, seconds: float) -> Deferred[bool]:
        """Close the connection when all messages are read, or after ``seconds``.

        The publisher does not wait for a subscriber that disconnects. If the subscriber reconnects, the publisher
        counts it in ``lost_to``, because this subscriber has lost messages and is still running. With 0 seconds, queued
        messages are dropped.

        Returns a Deferred that fires with True if all messages were read, else with False.
        """
        if self._monitor is not None:
            self._monitor.doRead()  # process the events that the reactor has not delivered yet
        self.close(int(seconds * 1000))
        self._ends_guard()
        done: Deferred[bool] = Deferred()
        before = self._recent_resets()

        def wait() -> None:
            read, resets = _end(self._context, list(self._peers.values()), seconds)
            resets += before
            returned = _returned(self._opened, resets, self.ipc_mode) if resets and seconds else 0
            self._reactor.callFromThread(finished, read, returned)

        def finished(read: bool, returned: int) -> None:
            self.lost_to += returned
            done.callback(read and not self.lost_to)

        # A separate thread, because `term` blocks; a daemon, so that a second signal does not wait for the thread.
        threading.Thread(target=wait, name="zroute-finish", daemon=True).start()
        return done

    def _follow_peer(self, event: SocketEvent) -> None:
        if event.name not in _WATCHED:
            return
        before = self._peers.pop(event.value, None)
        if before is not None:
            if before.reset and event.value not in self._cut_fds:  # a connection that we cut is logged elsewhere
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
        """Delete resets that are too old; return the hosts of the other resets."""
        earliest = self._reactor.seconds() - _RETURN
        self._resets = [(host, at) for host, at in self._resets if at >= earliest]
        return [host for host, _ in self._resets]


def _end(context: zmq.Context[Any], peers: list[_Peer], seconds: float) -> tuple[bool, list[str]]:
    """Terminate the context, then wait for each peer to close.

    Returns two values: True if all peers closed within ``seconds``, and the hosts of the peers that reset their
    connection.
    """
    deadline = time.monotonic() + seconds
    context.term()
    complete = time.monotonic() < deadline
    resets = [peer for peer in peers if peer.reset]  # each connection looks reset after the shutdown
    for peer in peers:
        with suppress(OSError):  # the peer has disconnected
            peer.socket.shutdown(socket.SHUT_WR)
    for peer in peers:
        with peer.socket:
            try:
                complete = _closed(peer.socket, deadline) and complete
            except OSError:
                resets += [peer] * (peer not in resets)
    return complete, [peer.host for peer in resets]


def _closed(peer: socket.socket, deadline: float) -> bool:
    """Read and discard data until the peer closes.

    Returns False if the peer has not closed before the deadline. Raises OSError if the peer resets the connection.
    """
    try:
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(4096):
                return True
    except TimeoutError:
        pass
    return False


def _returned(endpoints: list[Endpoint], resets: list[str], ipc_mode: int) -> int:
    """Listen again for `_RETURN` seconds; return the number of hosts that reconnect."""
    waiting, deadline = list(resets), time.monotonic() + _RETURN
    with zmq.Context() as context, context.socket(zmq.XPUB) as again, again.get_monitor_socket() as monitor:
        for endpoint in endpoints:
            with suppress(zmq.ZMQError):  # another program uses the address
                if endpoint.bind:
                    bind(again, endpoint.address, ipc_mode)
                else:
                    again.connect(endpoint.address)
        # One millisecond more, because a remainder of less than a millisecond would be a poll without waiting.
        while waiting and (left := deadline - time.monotonic()) > 0 and monitor.poll(int(left * 1000) + 1):
            event = parse_event(*monitor.recv_multipart())
            if event.name in ("accepted", "connected"):
                with suppress(OSError, ValueError):  # it has disconnected again, or is from another host
                    waiting.remove(_host_of(event.value))
        again.disable_monitor()
    return len(resets) - len(waiting)


def _host_of(descriptor: int) -> str:
    peer = _peer(descriptor)
    peer.socket.close()
    return peer.host
