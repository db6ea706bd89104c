"""Bind ``ipc://`` paths with an exact mode, and replace no file in use.

Before libzmq binds a path, it removes any file at this path. This may be a regular file, or the socket of another
program. That program then waits for peers that never connect, and gets no error. When libzmq closes its own socket, the
socket file remains. An unused socket file is therefore normal, and may be replaced.

libzmq creates the socket file with the mode 0777 minus the umask. All users with permission to write to the file can
connect. zroute therefore lets libzmq create the file for its owner only, under a umask of 077, and then sets the exact
mode. At no time does the file have a wider mode.

The umask belongs to the whole process, so it also affects files that another thread creates during the bind. With 077,
the owner can still use them. A umask of 177, which would give the file the mode 0600 at once, would also remove the
permission to search a new directory: that of another thread, and the one that libzmq creates for ``ipc://*``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import zmq

from zroute.options import IPC_MODE

__all__ = ["bind"]

_LOCKING = 1.0
"""The time in seconds to wait for another program that binds in the same directory.

After that time, the path is bound anyway.
"""

_CLOSING = 1.0
"""The time in seconds to wait for a socket of this process to close.

libzmq closes a socket in a thread, after the call has returned.
"""

_PERIOD = 0.01
"""The time in seconds between two attempts to get the lock, or two checks of the path."""

_OWNER_ONLY = 0o077

_umask_changes = threading.Lock()
"""Held while the umask is changed, because `LosslessPubConnection.finish` binds in a thread of its own.

Without the lock, a bind of another thread could take the changed umask for that of the process, and restore it last.
"""


def bind(zmq_socket: zmq.Socket[Any], address: str, mode: int | None = IPC_MODE) -> None:
    """Bind a socket; replace a socket file at an ipc path only if it is unused.

    ``mode`` is the mode of the socket file; None for that of the umask. It has no effect for other transports and for
    abstract names (``@…``), which have no file.

    Raises:
        zmq.ZMQError: EADDRINUSE if a program serves the ipc path, EEXIST if the file at the path is not a socket,
            EACCES if permission to check the path is denied, the error of the system if the file can't get its mode,
            and all errors of libzmq's bind.
    """
    transport, _, path = address.partition("://")
    if transport != "ipc" or path.startswith("@"):  # the system never assigns an abstract name twice
        zmq_socket.bind(address)
    elif path.startswith("*"):
        _create(zmq_socket, address, mode)
    else:
        with _alone_in(os.path.dirname(path) or os.curdir):
            _refuse_taken(path)
            _create(zmq_socket, address, mode)


def _create(zmq_socket: zmq.Socket[Any], address: str, mode: int | None) -> None:
    """Bind an ipc address, and set the mode of the socket file."""
    if mode is None:
        zmq_socket.bind(address)
        return
    with _umask_changes:
        before = os.umask(_OWNER_ONLY)
        try:
            zmq_socket.bind(address)
        finally:
            os.umask(before)
    last: Any = zmq_socket.get(zmq.SocketOption.LAST_ENDPOINT)
    bound: str = last.rstrip(b"\0").decode()
    failed: int | None = None
    try:
        os.chmod(bound.removeprefix("ipc://"), mode)
    except OSError as error:
        failed = error.errno
    if failed is not None:
        zmq_socket.unbind(bound)
        raise zmq.ZMQError(failed)


@contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Hold the lock of a directory.

    If two programs start at the same time, the lock ensures that the second program finds the socket of the first.
    """
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # bind will raise a clearer error, if the path is wrong
        yield
        return
    try:
        _lock(held)
        yield
    finally:
        # Closing the directory also releases the lock.
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
    """Raise zmq.ZMQError if the path is a socket in use, or another kind of file."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # the path is free, or bind will raise a clearer error
        return
    if not stat.S_ISSOCK(mode):
        raise zmq.ZMQError(errno.EEXIST)
    deadline = time.monotonic() + _CLOSING
    while (server := _server(path)) is not None:
        if server != os.getpid() or time.monotonic() > deadline:
            raise zmq.ZMQError(errno.EADDRINUSE)
        time.sleep(_PERIOD)


def _server(path: str) -> int | None:
    """Return the id of the process that serves the socket at ``path``.

    The result is 0 if the id of that process is unknown, and None if no process serves the socket. Raises zmq.ZMQError
    (EACCES) if permission is denied.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except PermissionError:
            raise zmq.ZMQError(errno.EACCES) from None
        except OSError:  # the queue of the socket is full, or the socket has another type
            return 0
        with suppress(OSError, AttributeError):  # a system without SO_PEERCRED
            # struct ucred of unix(7): process, user and group
            process, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return int(process)
    return 0
