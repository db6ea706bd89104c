"""End one connection of libzmq's from outside, by its descriptor, and never another one.

libzmq has no call that ends one connection and connects again: ``zmq_disconnect`` drops what has arrived, and ends
the process while a message of several parts is being read. Shutting down a duplicate of the descriptor is a lost
connection to libzmq, from which it recovers by itself. But a number is given to another connection as soon as its
own has ended, so that a descriptor is compared with what it was when the connection began.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

import attrs

__all__ = ["Identity", "identify", "shut_down"]


_CHUNK = 1 << 16


@attrs.frozen
class Identity:
    """What tells one open socket from any other: its inode, and both its addresses."""

    device: int
    inode: int
    here: Any
    there: Any

    @property
    def text(self) -> str | None:
        """The peer's address as libzmq writes it when it has resolved it; None if it is not tcp."""
        if not isinstance(self.there, tuple):
            return None
        host, port = self.there[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def identify(fd: int, address: str, *, accepted: bool = False) -> Identity | None:
    """Return the identity of the connection to ``address`` that has this descriptor, or of one ``accepted`` there.

    None if the descriptor is closed or is no such connection: it has ended meanwhile.
    """
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            found = _identity(copy)
    except OSError:
        return None
    end = found.here if accepted else found.there
    tcp = isinstance(end, tuple)
    if tcp != address.startswith("tcp://") or (tcp and str(end[1]) != address.rpartition(":")[2]):
        return None
    return found


def shut_down(fd: int, identity: Identity, *, discard: bool = False) -> bool:
    """Shut the connection down if the descriptor is still that of ``identity``; return True if it was.

    Both happen on a duplicate, which stays the same connection whatever libzmq does meanwhile. ``discard`` throws away
    what the system has received and libzmq has not read, which may be some MiB: libzmq would read it to the end.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
        if _identity(copy) == identity:
            copy.shutdown(socket.SHUT_RDWR)
            if discard:
                _discard(copy)
            return True
    return False


def _discard(copy: socket.socket) -> None:
    with suppress(OSError):  # BlockingIOError at the end of what there is
        while copy.recv(_CHUNK, socket.MSG_DONTWAIT):
            pass


def _identity(copy: socket.socket) -> Identity:
    stat = os.fstat(copy.fileno())
    return Identity(stat.st_dev, stat.st_ino, copy.getsockname(), copy.getpeername())
