"""A proxy between publishers and subscribers: XSUB, XPUB, and a thread.

Publishers connect to the front (XSUB), and subscribers connect to the back (XPUB). libzmq's own proxy
(zmq_proxy_steerable(3)) forwards messages from the front to the back, and subscriptions from the back to the front. The
proxy is C code that runs in its own thread, so Python code does not process the messages.

Only one thread at a time may use a ZeroMQ socket. While the proxy runs, the reactor's thread therefore uses only the
monitors of the two sockets, which report their connections. Before the reactor's thread binds, connects or closes a
socket, it ends the proxy's thread. Afterwards, the reactor's thread starts a new proxy thread. No message is lost
meanwhile, because messages wait in the sockets.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any

import attrs
import zmq
from twisted.internet.defer import Deferred

from zroute.endpoints import NO_KEYS, Access, Endpoint
from zroute.options import LINGER_ABORT, frame_limit, socket_options, with_options
from zroute.sockets.access import CurveGuard, guard_for
from zroute.sockets.connection import make_socket
from zroute.sockets.names import Names, has_addresses
from zroute.sockets.pair import SharedContext
from zroute.sockets.persistent import PersistentConnection
from zroute.stats import Stats

__all__ = ["Forwarded", "Proxy"]

_CONTROL = "inproc://zroute-proxy"
_COUNTER = Struct("=Q")
_ANSWER = 10_000  # the timeout in milliseconds for an answer of the proxy's thread; usually less than 1 ms is needed


@attrs.frozen
class Forwarded:
    """The counters of a proxy.

    Attributes:
        frames: The number of frames that were forwarded to the back: one for each message, or one for each part of a
            message with several parts. libzmq may have dropped some of these frames for subscribers with full queues.
        bytes: The total size of these frames in bytes.
        subscriptions: The number of subscriptions, withdrawals and markers that were forwarded to the front.
    """

    frames: int = 0
    bytes: int = 0
    subscriptions: int = 0

    def __add__(self, other: Forwarded) -> Forwarded:
        subscriptions = self.subscriptions + other.subscriptions
        return Forwarded(self.frames + other.frames, self.bytes + other.bytes, subscriptions)


class Proxy:
    """An XSUB and an XPUB socket, joined by libzmq's proxy.

    Args:
        reactor: The Twisted reactor that follows the connections.
        name: The first word of log lines.
        failed: Called in the reactor's thread if the proxy ends because of an error.
        max_message: The maximum size of a message body in bytes. A larger frame ends the connection of its publisher.
        send_queue: The maximum number of frames that wait for each subscriber. While a subscriber's queue is full,
            libzmq drops messages for this subscriber.
        access: The keys of the proxy, or that its endpoints may be open.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        failed: Callable[[BaseException], object],
        *,
        max_message: int,
        send_queue: int,
        access: Access = NO_KEYS,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self._names: list[Names] = []
        self._failed = failed
        self._context = SharedContext()
        self.context = context = self._context.acquire()
        limit = frame_limit(max_message)
        # The front sends only subscriptions, and all of them to each new peer. So unsent subscriptions can be dropped.
        front = with_options(socket_options("XSUB"), {"maxmsgsize": limit, "linger": LINGER_ABORT})
        # libzmq's proxy reads subscriptions in its own thread, so they need no limit that protects the reactor.
        back = with_options(socket_options("XPUB"), {"sndhwm": send_queue, "rcvhwm": 0})
        self.front = _End(reactor, make_socket(context, zmq.XSUB, front), self._halted)
        """The XSUB socket."""
        self.back = _End(reactor, make_socket(context, zmq.XPUB, back), self._halted)
        """The XPUB socket."""
        self.front.log.name = self.back.log.name = name
        self._access = access
        self._guard: CurveGuard | None = None
        self._control: zmq.Socket[Any] = context.socket(zmq.PAIR)
        self._steered: zmq.Socket[Any] = context.socket(zmq.PAIR)  # the control socket that the proxy's thread reads
        self._control.set(zmq.SocketOption.RCVTIMEO, _ANSWER)
        self._control.bind(_CONTROL)
        self._steered.connect(_CONTROL)
        self._thread: threading.Thread | None = None
        self._has_failed = False
        self.stats = Stats()
        """The counters of refused connections and failed handshakes."""
        self.forwarded = Forwarded()
        """The number of forwarded frames, bytes and subscriptions, up to date after `close`.

        Under load, the frames of the last millisecond are not counted.
        """

    def open(self, front: Endpoint, back: Endpoint) -> tuple[str, str]:
        """Bind or connect both sockets; return the resolved addresses.

        If an endpoint has a host name, `Names` follows the addresses of that name.

        Raises:
            EndpointError: An endpoint can't be opened, or a key file can't be used.
        """
        guard = guard_for(self._reactor, self._access, self._name, self.stats)
        if isinstance(guard, CurveGuard):
            guard.begin(self.context, (front, back))
            self._guard = guard
        self.front.guard = self.back.guard = guard
        return self._open(self.front, front), self._open(self.back, back)

    def _open(self, end: _End, endpoint: Endpoint) -> str:
        if not has_addresses(endpoint):
            return end.open(endpoint)
        names = Names(self._reactor, self._name, lambda address: end.open(names.endpoint_at(address)), end.disconnect)
        if end.guard is not None:
            end.guard.check(endpoint)
        names.follow(endpoint.address, endpoint.peer)
        self._names.append(names)
        return endpoint.address

    def start(self) -> None:
        """Start forwarding messages and subscriptions."""
        self._has_failed = False
        self._thread = threading.Thread(target=self._forward, name="zroute-proxy", daemon=True)
        self._thread.start()

    def close(self) -> Deferred[None]:
        """Stop forwarding and close the sockets.

        The Deferred fires when the queued messages for all subscribers have been sent, at the latest after
        `LINGER_DRAIN` milliseconds.
        """
        for names in self._names:
            names.close()
        if self._guard is not None:
            self._guard.end()
            self._guard = None
        self._halt()
        self.front.close(LINGER_ABORT)
        self.back.close()
        for control in (self._control, self._steered):
            control.close(LINGER_ABORT)
        return self._context.release(self._reactor)

    def _forward(self) -> None:
        """Run libzmq's proxy, in its thread, until `_halt`."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a signal would reset libzmq's counters
        try:
            zmq.proxy_steerable(self.front.socket, self.back.socket, None, self._steered)
        except BaseException as error:
            self._has_failed = True  # set before the call, so that `_halt` sends no command to the ended proxy
            self._reactor.callFromThread(self._failed, error)

    def _halt(self) -> bool:
        """End the proxy's thread, and add its counters; return True if the thread ran."""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        if thread.is_alive() and not self._has_failed:
            # The counters are lost when the proxy ends, so read them first. Frames that the proxy forwards between the
            # two commands are not counted. PAUSE would not help, because the proxy then still forwards frames.
            self._control.send(b"STATISTICS")
            self._control.send(b"TERMINATE")
            self.forwarded += _forwarded(self._control.recv_multipart())
            self._control.recv()
        thread.join()
        return True

    @contextmanager
    def _halted(self) -> Iterator[None]:
        """End the proxy's thread for the duration of a ``with`` block.

        Inside the block, the calling thread may use the sockets.
        """
        ran = self._halt()
        try:
            yield
        finally:
            if ran:
                self.start()


class _End(PersistentConnection):
    """A socket of a proxy: the reactor follows only its connections.

    The proxy's thread reads and sends the messages. ``halted`` returns a context manager for blocks in which the
    reactor's thread uses the socket.
    """

    def __init__(self, reactor: Any, socket: zmq.Socket[Any], halted: Callable[[], Any]) -> None:
        self._halted = halted
        super().__init__(reactor, socket, lambda recv, more, budget: None)
        reactor.removeReader(self)

    @property
    def socket(self) -> zmq.Socket[Any]:
        """The socket itself, for the proxy's thread."""
        return self._socket

    def poke(self, within: float = 0.0) -> None:
        """Do nothing: the proxy's thread checks the socket."""

    def open(self, endpoint: Endpoint | str) -> str:
        """See `PersistentConnection.open`."""
        with self._halted():
            return super().open(endpoint)

    def disconnect(self, address: str) -> None:
        """See `PersistentConnection.disconnect`."""
        with self._halted():
            super().disconnect(address)

    def unbind(self, address: str) -> None:
        """See `PersistentConnection.unbind`."""
        with self._halted():
            super().unbind(address)

    def _connect_again(self, endpoint: str) -> None:
        with self._halted():
            super()._connect_again(endpoint)

    def _rest(self, endpoint: str, seconds: float) -> None:
        with self._halted():
            super()._rest(endpoint, seconds)

    def _rested(self, endpoint: str) -> None:
        with self._halted():
            super()._rested(endpoint)

    def _connect_by_ipv6(self, endpoint: str) -> None:
        with self._halted():
            super()._connect_by_ipv6(endpoint)


def _forwarded(answer: list[bytes]) -> Forwarded:
    """Return the counters in an answer to STATISTICS.

    The answer contains four numbers for the front, and then four for the back: received frames, received bytes, sent
    frames, sent bytes.
    """
    numbers: list[int] = [_COUNTER.unpack(part)[0] for part in answer]
    return Forwarded(numbers[6], numbers[7], numbers[2])
