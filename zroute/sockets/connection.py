"""Connection: a ZeroMQ socket in a Twisted reactor.

ZeroMQ's descriptor is edge-triggered, and any call on the socket can use the edge up (zmq_getsockopt(3),
ZMQ_FD). So the laws of this module: reading goes on until EAGAIN or until the budget is used; the last call
on the socket in `doRead` is a look at EVENTS; whatever else touches the socket is followed by a `poke`,
which is a coalesced call of `doRead` in the reactor's next turn. Pausing is a flag, never `removeReader`:
libzmq needs this thread's calls to resend subscriptions to a publisher that came back.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, cast
from weakref import WeakSet

import zmq
import zmq.backend
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, ForkedContextError
from zroute.options import LINGER_ABORT, LINGER_DRAIN, READ_BUDGET, READ_SECONDS, READ_SLICE, Option

__all__ = ["Connection", "Drain", "make_socket"]

Drain = Callable[[Callable[[int], bytes], Callable[[], int], int], None]
"""Reads and handles up to a number of messages: ``(recv, more, budget)``, see `RouteTable.drain`."""

_log = logging.getLogger("zroute.sockets")

_OLDEST_LIBZMQ = (4, 3, 5)  # what the algorithm and the options were measured with
_GONE = (zmq.ENOTSOCK, zmq.ETERM)

# The Cython methods themselves: pyzmq's Python layer over them costs half a send again.
_recv = zmq.backend.Socket.recv
_get = zmq.backend.Socket.get
_send = zmq.backend.Socket.send

if zmq.zmq_version_info() < _OLDEST_LIBZMQ:
    raise ImportError(
        f"zroute needs libzmq {'.'.join(map(str, _OLDEST_LIBZMQ))} or newer, and pyzmq {zmq.__version__} "
        f"uses {zmq.zmq_version()}: install the pyzmq wheel, or build it against a newer libzmq"
    )


def make_socket(context: zmq.Context[Any], kind: int, options: Iterable[Option]) -> zmq.Socket[Any]:
    """A socket of ``kind`` (``zmq.SUB`` …), with ``options`` set before it is bound or connected."""
    socket: zmq.Socket[Any] = context.socket(kind)
    for option in options:
        socket.set(getattr(zmq.SocketOption, option.name), option.value)
    return socket


@implementer(IReadDescriptor)
class Connection:
    """``socket`` on ``reactor``; from now on it belongs to the connection.

    What it receives goes to ``drain``, which may be set anew. The connection is its owner's to `close`;
    closing twice is nothing. All calls belong on the reactor's thread.
    """

    def __init__(self, reactor: Any, socket: zmq.Socket[Any], drain: Drain) -> None:
        self._reactor = reactor
        self.drain = drain
        self._poke: Any = None
        self.paused = False
        self.closed = False
        self.endpoints: list[str] = []
        self._socket = socket
        self._recv = _recv.__get__(self._socket)
        self._send = _send.__get__(self._socket)
        self._fd: int = self._socket.FD
        _connections.add(self)
        reactor.addReader(self)
        self.poke()  # libzmq wakes only a reader that has met an empty queue

    # -- endpoints ------------------------------------------------------------------------------------

    def open(self, endpoint: Endpoint) -> str:
        """Bind or connect; returns the address as libzmq resolved it (a bound ``*`` becomes a port).

        Raises EndpointError: the address is in use, not of this machine, or not understood.
        """
        if "[" in endpoint.address:
            self._socket.set(zmq.SocketOption.IPV6, 1)
        failed: str | None = None
        try:
            if endpoint.bind:
                self._socket.bind(endpoint.address)
            else:
                self._socket.connect(endpoint.address)
        except zmq.ZMQError as error:
            # Raised anew below: an exception that is kept alive would hold the frame, and with it the socket.
            failed = _explain(endpoint, error)
        if failed is not None:
            raise EndpointError(failed, endpoint=str(endpoint))
        last: Any = self._socket.get(zmq.SocketOption.LAST_ENDPOINT)
        resolved: str = last.rstrip(b"\0").decode()
        self.endpoints.append(resolved)
        self.poke()
        return resolved

    # -- what the reactor calls -------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor, asked for once; -1 when closed (`twisted.internet.interfaces.IFileDescriptor`)."""
        return -1 if self.closed else self._fd

    def logPrefix(self) -> str:  # noqa: N802  # Twisted's name
        """How Twisted's log names this connection."""
        return f"zroute {self.endpoints}"

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802  # Twisted's name
        """The reactor gave the descriptor up: the connection is closed."""
        self.close()

    def doRead(self) -> None:  # noqa: N802  # Twisted's name
        """Deliver what there is, for a bounded time, and leave no edge unseen."""
        recv, more = self._recv, self.more
        began, left, size = perf_counter(), READ_BUDGET, READ_SLICE
        try:
            while left > 0 and not self.closed and not self.paused:
                self.drain(recv, more, size)
                left -= size
                spent = perf_counter() - began
                if spent > READ_SECONDS:
                    break
                if spent < READ_SECONDS / 32:  # quick handlers: so many more will not make the turn too long
                    size = READ_SLICE * 4
        except zmq.Again:
            if self._poke is None:  # nothing has touched the socket since
                return
        except zmq.ZMQError as error:
            self._failed(error)
        except Exception:  # the reactor would drop the socket for it
            _log.exception("zroute itself failed over a message; please report this. Reading goes on")
        if self.readable() and not self.paused:
            self.poke()

    def _failed(self, error: zmq.ZMQError) -> None:
        """Another error than EAGAIN: where the socket or its context is gone, so is the connection."""
        if error.errno not in _GONE:
            raise error
        self.close(LINGER_ABORT)

    def more(self) -> int:
        """Whether the part read last has another behind it (zmq_getsockopt(3), ZMQ_RCVMORE)."""
        return 0 if self.closed else int(_get(self._socket, zmq.SocketOption.RCVMORE.value))

    def _events(self) -> int:
        try:
            return int(_get(self._socket, zmq.SocketOption.EVENTS.value))
        except zmq.ZMQError as error:
            self._failed(error)
            return 0

    def readable(self) -> bool:
        """Whether a message waits, whatever `paused` says."""
        return not self.closed and bool(self._events() & zmq.PollEvent.POLLIN)

    # -- state ----------------------------------------------------------------------------------------

    def poke(self) -> None:
        """Look at the socket in the reactor's next turn, because this turn touched it."""
        if self._poke is None and not self.closed:
            self._poke = self._reactor.callLater(0, self._poked)

    def _poked(self) -> None:
        self._poke = None
        self.doRead()

    def pause(self) -> None:
        """Read no more until `resume`; the socket goes on processing its peers' commands."""
        self.paused = True

    def resume(self) -> None:
        """Read again, from the next turn on."""
        self.paused = False
        self.poke()

    def close(self, linger: int = LINGER_DRAIN) -> None:
        """Close the socket; what is queued may still be sent for ``linger`` milliseconds."""
        if self.closed:
            return
        self.closed = True
        self._reactor.removeReader(self)
        if self._poke is not None:
            self._poke.cancel()
            self._poke = None
        self._socket.close(linger)

    def forked(self) -> None:
        """This is a child of the process that opened the socket: refuse everything, and touch nothing.

        The child has copies of descriptors and memory, but not libzmq's threads: a send would return and the
        message be gone, and even removing the descriptor from an epoll set would remove the parent's.
        """
        self.closed = True
        self._parents = self._socket  # kept, so that it is not closed here by the garbage collector
        self._socket = cast("zmq.Socket[Any]", _Refusing())
        self._recv = self._send = _refuse


class _Refusing:
    def __getattr__(self, name: str) -> Any:
        return _refuse


def _refuse(*_args: Any) -> Any:
    raise ForkedContextError(
        f"process {os.getpid()} was forked from the one that opened this socket, and ZeroMQ's sockets don't survive "
        "that: start processes before the app, or with multiprocessing's 'spawn', and give each an app of its own"
    )


def _poison() -> None:
    for connection in tuple(_connections):
        connection.forked()


_connections: WeakSet[Connection] = WeakSet()

os.register_at_fork(after_in_child=_poison)  # checking the process at each send would cost a third of it


def _explain(endpoint: Endpoint, error: zmq.ZMQError) -> str:
    verb = "bind" if endpoint.bind else "connect"
    reasons = {
        errno.EADDRINUSE: "another program uses it: stop that, or choose another address",
        errno.EADDRNOTAVAIL: "this machine has no such address: bind to one it has, or to 127.0.0.1",
        errno.ENODEV: "this machine has no such address or interface: bind to one it has, or to 127.0.0.1",
        errno.EACCES: "not allowed: choose a port above 1023, or a path that you may write",
        errno.EINVAL: "libzmq does not understand it: write tcp://host:port, ipc://path or inproc://name",
        errno.ENOENT: "there is no such directory: create it, or choose another path",
        errno.ECONNREFUSED: "nobody has bound it in this context: bind first, and share the context",
    }
    text = zmq.strerror(error.errno or 0)
    return f"can't {verb} {endpoint.address}: {reasons.get(error.errno or 0, 'libzmq refuses it')} ({text})"
