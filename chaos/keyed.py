"""Keys for the processes of a seed, so that the chaos suite also runs over encrypted connections.

Each process of a seed has a key, and knows the keys of the others. A *stranger* has a key that no process knows. The
path of a secret file reaches a process in its environment, so programs take the same arguments with and without keys.
Sockets of pyzmq use its own ZAP handler (`zmq.auth`), so that apps also meet peers that are not zroute.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from tests.keyed import Keys
from zroute.sockets.keys import read_public, read_secret

__all__ = ["STRANGER", "VARIABLE", "Ring", "attach", "drawn", "own", "release"]

VARIABLE = "CHAOS_KEY"
"""The environment variable with the secret file of a process."""

STRANGER = "stranger"
"""The name of a key that knows all others, but that no other process knows."""

_DOMAIN = b"chaos"


def drawn(seed: int) -> bool:
    """Return True if a seed uses keys: a third of all seeds.

    The choice has a generator of its own, so it does not change the other choices of the seed.
    """
    return random.Random(f"keys {seed}").random() < 1 / 3


class Ring:
    """The keys of all processes of a seed, in ``folder``; without a folder, no process has a key."""

    def __init__(self, folder: Path | None, names: Sequence[str] = ()) -> None:
        self._keys = None if folder is None else Keys(folder)
        if self._keys is not None:
            for one, other in combinations(names, 2):
                self._keys.introduce(one, other)
            self._keys.authorize(STRANGER, *names)

    def __bool__(self) -> bool:
        """Return True if the processes have keys."""
        return self._keys is not None

    def of(self, name: str) -> dict[str, str]:
        """Return the environment of a process with this key."""
        return {} if self._keys is None else {VARIABLE: str(self._keys.secret(name))}

    def at(self, name: str, endpoint: str) -> str:
        """Return an endpoint that connects to the process with this key."""
        if self._keys is None:
            return endpoint
        verb, separator, address = endpoint.rpartition("connect:")
        return f"{verb}{separator}{name}@{address}"


def own() -> dict[str, Any]:
    """Return the options of an App that uses the key of this process, if it has one."""
    path = os.environ.get(VARIABLE)
    return {"keys": path} if path else {}


def attach(socket: zmq.Socket[Any], endpoint: str, path: str | None = None) -> None:
    """Bind or connect a socket of pyzmq, as the prefix of the endpoint says.

    ``path`` is a secret file. The default is that of this process, if it has one.
    """
    verb, _, rest = endpoint.partition(":")
    peer, _, address = rest.rpartition("@")
    if "[" in address:
        socket.set(zmq.IPV6, 1)
    path = path or os.environ.get(VARIABLE)
    if path:
        key = read_secret(Path(path))
        socket.curve_publickey, socket.curve_secretkey = key.public, key.secret
        known = Path(path).parent / "peers"
        socket.curve_server = verb == "bind"
        if verb == "bind":
            _authenticate(socket.context, known)
            socket.zap_domain = _DOMAIN
        else:
            socket.curve_serverkey = read_public(known / f"{peer}.key").public
    socket.bind(address) if verb == "bind" else socket.connect(address)


_handlers: dict[int, ThreadAuthenticator] = {}


def _authenticate(context: zmq.Context[Any], known: Path) -> None:
    """Let only these keys connect to the sockets of a context, from its first bind on."""
    if id(context) not in _handlers:
        _handlers[id(context)] = handler = ThreadAuthenticator(context)
        handler.start()
        handler.configure_curve(domain=_DOMAIN.decode(), location=str(known))


def release(context: zmq.Context[Any]) -> None:
    """Stop the ZAP handler of a context, before the context is terminated."""
    handler = _handlers.pop(id(context), None)
    if handler is not None:
        handler.stop()
