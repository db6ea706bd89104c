"""Close one connection of libzmq from outside, through its descriptor.

libzmq has no call that closes one connection and then reconnects. ``zmq_disconnect`` drops received messages, and ends
the process if a message of several parts is being read. If a duplicate of the descriptor is shut down, libzmq sees a
lost connection, and reconnects.

The system reuses the number of a closed descriptor. Before the shutdown, this module therefore compares the identity of
the descriptor with the identity at the start of the connection. This comparison protects all other connections.

All functions use a duplicate of the descriptor, which refers to the same connection even after libzmq has closed the
original. If the process has no free descriptor for a duplicate, they use the original. Between the comparison and the
shutdown, another connection could then get the number, and would have to reconnect.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from struct import Struct
from typing import Any

import attrs

__all__ = ["Identity", "Passed", "bytes_passed", "identify", "is_open", "shut_down"]


_CHUNK = 1 << 16
"""The number of bytes per read while received data is discarded."""

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_BYTES = Struct("=QQ")
_BYTES_AT = 120
"""The place of ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` in ``struct tcp_info`` (linux/tcp.h, Linux 4.1)."""


@attrs.frozen
class Identity:
    """The properties that identify an open socket: inode and both addresses."""

    device: int
    inode: int
    here: Any
    there: Any

    @property
    def text(self) -> str | None:
        """The peer's address in libzmq's resolved form, or None if it is not tcp."""
        if not isinstance(self.there, tuple):
            return None
        host, port = self.there[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    @property
    def host(self) -> str | None:
        """The peer's numeric host, or None if it is not tcp."""
        return self.there[0] if isinstance(self.there, tuple) else None


def identify(fd: int, address: str, *, accepted: bool = False) -> Identity | None:
    """Return the identity of the connection behind a descriptor.

    Args:
        fd: The descriptor, as reported by an event of libzmq.
        address: The address that the connection must have: the address of the peer, or our own address if the
            connection was ``accepted``.
        accepted: True if the peer connected to us.

    Returns:
        The identity, or None if the connection has ended: the descriptor is closed, or belongs to another connection.
    """
    try:
        with _copy(fd) as copy:
            found = _identity(copy)
    except OSError:
        return None
    end = found.here if accepted else found.there
    tcp = isinstance(end, tuple)
    if tcp != address.startswith("tcp://") or (tcp and str(end[1]) != address.rpartition(":")[2]):
        return None
    return found


def shut_down(fd: int, identity: Identity, *, discard: bool = False) -> bool:
    """Shut the connection down if the descriptor still has this identity.

    Args:
        fd: The descriptor.
        identity: The result of `identify` when the connection began.
        discard: True to also discard the data that the system has received but libzmq has not read. There may be
            several MiB, and libzmq would otherwise read all of them.

    Returns:
        True if the connection was shut down; False if the descriptor is closed or belongs to another connection.
    """
    with suppress(OSError), _copy(fd) as copy:
        if _identity(copy) == identity:
            copy.shutdown(socket.SHUT_RDWR)
            if discard:
                _discard(copy)
            return True
    return False


def is_open(fd: int, identity: Identity) -> bool:
    """Return True if the descriptor still has this identity."""
    with suppress(OSError), _copy(fd) as copy:
        return _identity(copy) == identity
    return False


@attrs.frozen
class Passed:
    """The bytes of a connection since it began.

    Attributes:
        acknowledged: The number of bytes that this side has sent and the peer has acknowledged.
        received: The number of bytes that this side has received.
    """

    acknowledged: int
    received: int


def bytes_passed(fd: int, identity: Identity) -> Passed | None:
    """Return how many bytes have passed over a connection.

    The result is None over ipc, if the connection has ended, and on systems other than Linux.
    """
    with suppress(OSError), _copy(fd) as copy:
        if _TCP_INFO is not None and _identity(copy) == identity and identity.host is not None:
            size = _BYTES_AT + _BYTES.size
            info = copy.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, size)
            if len(info) == size:
                return Passed(*_BYTES.unpack_from(info, _BYTES_AT))
    return None


@contextmanager
def _copy(fd: int) -> Iterator[socket.socket]:
    try:
        copy = os.dup(fd)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        copy = fd
    found = socket.socket(fileno=copy)
    try:
        yield found
    finally:
        if copy == fd:
            found.detach()  # libzmq closes its descriptor itself
        else:
            found.close()


def _discard(copy: socket.socket) -> None:
    with suppress(OSError):  # BlockingIOError once all received data is read
        while copy.recv(_CHUNK, socket.MSG_DONTWAIT):
            pass


def _identity(copy: socket.socket) -> Identity:
    stat = os.fstat(copy.fileno())
    return Identity(stat.st_dev, stat.st_ino, copy.getsockname(), copy.getpeername())
