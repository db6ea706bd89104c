"""Names of publishers: unique, and the same in the next run of an app.

An app that binds addresses is identified by these addresses, if other processes can reach them. An app that only
connects takes the lowest instance number that is free for its name on this host. The number is reserved by an abstract
socket (unix(7)). An abstract socket needs no file, and the kernel frees it when the process ends for any reason.
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
"""The maximum number of numbered instances. Further processes are identified by their pid."""

_INSIDE = "inproc://"


class Instance:
    """An instance number of an app, reserved on this host until `release` is called.

    The number is unique within the network namespace, so containers with the same hostname need different app names.
    If no number is free, or on systems without abstract sockets (all but Linux), the process id is used instead.
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
        """Return ``#1``, ``pid 4242``, or ``pid 4242.2`` for a second run in a process."""
        return self._text

    def release(self) -> None:
        """Free the number for the next run. A second call does nothing."""
        if self._socket is not None:
            self._socket.close()
        else:
            _in_process.discard(self._key)


_held: WeakSet[socket.socket] = WeakSet()
_in_process: set[tuple[str, str]] = set()
"""The app name and process id of each run without a number."""


def _close_in_child() -> None:
    """Close the inherited sockets in a forked child.

    Otherwise the child would keep the number reserved after its parent has ended. A child that executes another program
    inherits no socket.
    """
    for held in tuple(_held):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _address(app: str, number: int) -> str:
    """Return the name of the abstract socket for an instance number.

    The app's name is hashed because the name of a socket is limited to 107 bytes.
    """
    return f"\0zroute/{blake2b(app.encode(errors='surrogateescape'), digest_size=16).hexdigest()}/{number}"


def _hold(address: str) -> socket.socket | None:
    """Return an abstract socket with this name, or None if the name is in use.

    The socket does not listen.
    """
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:  # no file descriptor is left
        return None
    try:
        held.bind(address)
    except OSError:
        held.close()
        return None
    return held


def publisher_name(app: str, endpoints: Iterable[Endpoint], bound: Iterable[str]) -> tuple[str, Instance | None]:
    """Return the name of a publisher, and its instance number if it needs one.

    The caller must release the instance number at the end of the run.

    Args:
        app: The app's name.
        endpoints: All endpoints that the app publishes to.
        bound: The addresses that the app has bound, as ZeroMQ resolved them.

    Returns:
        ``app@host tcp://127.0.0.1:5555`` or ``app@host #1``. The name is empty if no other process can receive the
            app's messages. This is the case if the app has no endpoint to publish to, or only connects to ``inproc``.
    """
    addresses = list(bound)
    outside = [address for address in addresses if not address.startswith(_INSIDE)]
    connects = any(not (endpoint.bind or endpoint.address.startswith(_INSIDE)) for endpoint in endpoints)
    instance = Instance(app) if connects and not outside else None
    if instance is not None:
        return _named(app, str(instance)), instance
    return (_named(app, ", ".join(addresses)) if addresses else ""), None


def _named(app: str, identity: str) -> str:
    """Return ``app@host identity``, with a long app name shortened for the wire."""
    rest = f"@{socket.gethostname()} {identity}"
    room = max(MAX_TOPIC - len(rest.encode()), 0)
    # The cut may be inside a character, whose first bytes are then ignored.
    return app.encode()[:room].decode(errors="ignore") + rest
