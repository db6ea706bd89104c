"""The name of a publisher: the same in the next run of the app, and no other publisher's that is alive.

Where the app binds addresses that others can reach, those tell it apart. Where it only connects, it takes the lowest
instance number of its app that is free on this host. The number is the name of an abstract socket (unix(7)), which
the kernel frees when the process dies, however it dies, and which needs no file.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain, count
from weakref import WeakSet

from zroute.endpoints import Endpoint
from zroute.options import MAX_TOPIC

__all__ = ["INSTANCES", "Instance", "publisher_name"]

INSTANCES = 1000
"""Numbers that are tried: more processes of one app on one host are told apart by their pids."""

_INSIDE = "inproc://"


class Instance:
    """A number of the app of this name that no other run on this host has, from here to `release`.

    It belongs to the network namespace: containers with one hostname need different app names. Without a free number,
    or without abstract sockets, which only Linux has, the process identifies it.
    """

    def __init__(self, app: str, most: int = INSTANCES if sys.platform == "linux" else 0) -> None:
        self._socket: socket.socket | None = None
        for number in range(1, most + 1):
            self._socket = _hold(_address(app, number))
            if self._socket is not None:
                self._text = f"#{number}"
                _held.add(self._socket)
                return
        texts = chain([f"pid {os.getpid()}"], (f"pid {os.getpid()}.{further}" for further in count(2)))
        self._text = next(text for text in texts if (app, text) not in _in_process)
        self._key = app, self._text
        _in_process.add(self._key)

    def __str__(self) -> str:
        """Return ``#1``, or ``pid 4242`` (``pid 4242.2`` for a second run in that process)."""
        return self._text

    def release(self) -> None:
        """Let the next run have the number. A second call does nothing."""
        if self._socket is not None:
            self._socket.close()
        else:
            _in_process.discard(self._key)


_held: WeakSet[socket.socket] = WeakSet()
_in_process: set[tuple[str, str]] = set()
"""Apps' names and what tells their runs apart, of those that have no number."""


def _close_in_child() -> None:
    """A forked child would keep the number of a parent that has died. A child that is another program inherits none."""
    for held in tuple(_held):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _address(app: str, number: int) -> str:
    """The name of an abstract socket: hashed, since an app's name may be longer than the 107 bytes there are."""
    return f"\0zroute/{blake2b(app.encode(errors='surrogateescape'), digest_size=16).hexdigest()}/{number}"


def _hold(address: str) -> socket.socket | None:
    """A socket that has this name, and does not listen; None if another one has it."""
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:  # no descriptor is left
        return None
    try:
        held.bind(address)
    except OSError:
        held.close()
        return None
    return held


def publisher_name(app: str, endpoints: Iterable[Endpoint], bound: Iterable[str]) -> tuple[str, Instance | None]:
    """Return the name of a publisher of ``app``, and the number to release at its end, if it needed one.

    Args:
        app: The app's name.
        endpoints: All that it publishes to.
        bound: The addresses that it has bound, as ZeroMQ resolved them.

    Returns:
        ``app@host tcp://127.0.0.1:5555`` or ``app@host #1``. The name is empty if the app publishes to nothing, or
        only connects to ``inproc``: no other process can mistake it.
    """
    addresses = list(bound)
    outside = [address for address in addresses if not address.startswith(_INSIDE)]
    connects = any(not (endpoint.bind or endpoint.address.startswith(_INSIDE)) for endpoint in endpoints)
    instance = Instance(app) if connects and not outside else None
    if instance is not None:
        return _named(app, str(instance)), instance
    return (_named(app, ", ".join(addresses)) if addresses else ""), None


def _named(app: str, identity: str) -> str:
    """``app@host identity``, with the app's name cut where the wire has no room for all of it."""
    rest = f"@{socket.gethostname()} {identity}"
    room = max(MAX_TOPIC - len(rest.encode()), 0)
    return app.encode()[:room].decode(errors="ignore") + rest
