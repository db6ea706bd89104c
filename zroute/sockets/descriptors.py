"""Close one connection of libzmq from outside, through its descriptor.

libzmq has no call that closes one connection and then reconnects. ``zmq_disconnect`` drops received messages, and ends
the process if a message of several parts is being read. If a duplicate of the descriptor is shut down, libzmq sees a
lost connection, and reconnects.

The system reuses the number of a closed descriptor. Before the shutdown, this module therefore compares the identity of
the descriptor with the identity at the start of the connection. This comparison protects all other connections.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

import attrs

__all__ = ["Identity", "identify", "shut_down"]


_CHUNK = 1 << 16
"""The number of bytes per read while received data is discarded."""


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
        with socket.socket(fileno=os.dup(fd)) as copy:  # closing the duplicate leaves libzmq's descriptor open
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

    The function uses a duplicate of the descriptor. The duplicate refers to the same connection even after libzmq has
    closed the original.

    Args:
        fd: The descriptor.
        identity: The result of `identify` when the connection began.
        discard: True to also discard the data that the system has received but libzmq has not read. There may be
            several MiB, and libzmq would otherwise read all of them.

    Returns:
        True if the connection was shut down; False if the descriptor is closed or belongs to another connection.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
        if _identity(copy) == identity:
            copy.shutdown(socket.SHUT_RDWR)
            if discard:
                _discard(copy)
            return True
    return False


def _discard(copy: socket.socket) -> None:
    with suppress(OSError):  # BlockingIOError once all received data is read
        while copy.recv(_CHUNK, socket.MSG_DONTWAIT):
            pass


def _identity(copy: socket.socket) -> Identity:
    stat = os.fstat(copy.fileno())
    return Identity(stat.st_dev, stat.st_ino, copy.getsockname(), copy.getpeername())
