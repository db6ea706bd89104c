"""Bind ``ipc://`` paths, and take none over.

libzmq removes what is at the path before it binds: a regular file, or the socket of another program, which then serves
nobody and is told nothing. It leaves its own socket there at the end, so that one that nobody serves is usual.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import zmq

__all__ = ["bind"]

_LOCKING = 1.0
"""Seconds to wait for another program that binds in the same directory; then we bind all the same."""

_CLOSING = 1.0
"""Seconds that a socket of this process has to end: libzmq closes it in a thread, after the call."""

_PERIOD = 0.01


def bind(zmq_socket: zmq.Socket[Any], address: str) -> None:
    """Bind ``zmq_socket`` to ``address``, and replace nothing but a socket that nobody serves.

    Raises zmq.ZMQError: EADDRINUSE if a program serves an ipc path, EEXIST if what is there is no socket, EACCES if
    that can't be told, and what libzmq raises.
    """
    path = _path(address)
    if path is None:
        zmq_socket.bind(address)
        return
    with _alone_in(os.path.dirname(path) or os.curdir):
        _refuse_taken(path)
        zmq_socket.bind(address)


def _path(address: str) -> str | None:
    """Return the path of a socket in the file system.

    None for other transports, for abstract names (``@…``), which the system gives out once, and for ``*``.
    """
    transport, _, rest = address.partition("://")
    return rest if transport == "ipc" and rest[:1] not in ("@", "*") else None


@contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Hold the lock of a directory: of two that start at once and find nobody, the later one finds the earlier one."""
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # bind says what is wrong with it, if anything is
        yield
        return
    try:
        _lock(held)
        yield
    finally:
        os.close(held)


def _lock(directory: int) -> None:
    deadline = time.monotonic() + _LOCKING
    while time.monotonic() < deadline:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PERIOD)
        except OSError:  # a file system without locks
            return
        else:
            return


def _refuse_taken(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing is there, or bind says what is wrong
        return
    if not stat.S_ISSOCK(mode):
        raise zmq.ZMQError(errno.EEXIST)
    deadline = time.monotonic() + _CLOSING
    while (server := _server(path)) is not None:
        if server != os.getpid() or time.monotonic() > deadline:
            raise zmq.ZMQError(errno.EADDRINUSE)
        time.sleep(_PERIOD)


def _server(path: str) -> int | None:
    """Return the process that serves the socket at ``path``, 0 if that can't be told; None if there is none.

    Raises zmq.ZMQError (EACCES) if we may not ask.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except PermissionError:
            raise zmq.ZMQError(errno.EACCES) from None
        except OSError:  # its queue is full, or it is a socket of another type
            return 0
        with suppress(OSError, AttributeError):  # a system that does not tell
            process, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(process)
    return 0
