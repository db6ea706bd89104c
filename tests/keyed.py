"""Key files for tests, and a raw client that shows how its handshakes end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.running import turns
from zroute.sockets.events import SocketEvent, parse_event
from zroute.sockets.keys import Key, create_keys, read_public, read_secret, write_public

__all__ = ["Caller", "Keys"]


class Keys:
    """The keys of several programs.

    Each program has a folder with its key pair, and the folder ``peers`` with the keys that it knows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def secret(self, name: str) -> Path:
        """Return the secret file of a program, which is created at the first call."""
        path = self.folder / name / f"{name}.key_secret"
        if not path.exists():
            create_keys(name, path.parent)
            self.peers(name).mkdir(0o755, exist_ok=True)  # for any umask
        return path

    def renew(self, name: str) -> None:
        """Replace the key pair of a program; its directory of peers stays."""
        for path in (self.secret(name), self.public(name)):
            path.unlink()
        self.secret(name)

    def public(self, name: str) -> Path:
        """Return the public file of a program."""
        return self.secret(name).with_suffix(".key")

    def key(self, name: str) -> Key:
        """Return the key pair of a program."""
        return read_secret(self.secret(name))

    def peers(self, name: str) -> Path:
        """Return the directory with the keys that a program knows."""
        return self.folder / name / "peers"

    def authorize(self, at: str, *names: str) -> None:
        """Add keys to those that the program ``at`` knows."""
        self.secret(at)
        for name in names:
            write_public(self.peers(at) / f"{name}.key", read_public(self.public(name)))

    def revoke(self, at: str, name: str) -> None:
        """Remove a key from those that the program ``at`` knows."""
        (self.peers(at) / f"{name}.key").unlink()

    def introduce(self, one: str, *others: str) -> None:
        """Add the key of one program to the other programs, and their keys to it."""
        for other in others:
            self.authorize(one, other)
            self.authorize(other, one)

    def of(self, name: str) -> dict[str, Any]:
        """Return the options of an App with this name and its key."""
        return {"keys": self.secret(name), "name": name}

    def use(self, socket: Any, name: str, server: str) -> Any:
        """Set the options of a raw client with the key of ``name``; return the socket."""
        own = self.key(name)
        socket.curve_publickey, socket.curve_secretkey = own.public, own.secret
        socket.curve_serverkey = self.key(server).public
        return socket


class Caller:
    """A raw socket that connects, and the events of its handshakes."""

    def __init__(self, socket: Any, address: str) -> None:
        self.socket = socket
        self._monitor = socket.get_monitor_socket()
        self._events: list[SocketEvent] = []
        socket.linger = 0
        socket.reconnect_ivl = 20
        socket.connect(address)

    @property
    def events(self) -> list[SocketEvent]:
        """All events so far."""
        while self._monitor.poll(0):
            self._events.append(parse_event(*self._monitor.recv_multipart()))
        return self._events

    def count(self, name: str) -> int:
        """Return the number of events with this name."""
        return sum(event.name == name for event in self.events)

    @property
    def outcome(self) -> str:
        """Return "open" after a handshake, "refused" after three that failed or one that is final, else ""."""
        if self.count("handshake_succeeded"):
            return "open"
        final = self.count("handshake_failed_auth") or self.count("handshake_failed_protocol")
        return "refused" if final or self.count("disconnected") + self.count("closed") >= 3 else ""

    async def end(self) -> str:
        """Wait for the outcome, close the socket and return the outcome."""
        try:
            await turns(lambda: self.outcome)
            return self.outcome
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket and its monitor."""
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)
