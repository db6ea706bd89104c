"""Find the connection that delivered a message, and the key of its peer.

libzmq reports only the descriptor of a message's connection; see `Origins` and `PeerNames`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from zroute.sockets.links import Link, Links

__all__ = ["Origins", "PeerNames", "user_id"]

_SRCFD = zmq.SRCFD.value  # zmq_msg_get(3): the descriptor of the connection that delivered a part


class Origins:
    """Reads parts, and records the connection that delivered each part.

    ``recv`` reads a part, ``links`` contains the connections, and ``look`` processes the events that have arrived.

    A part carries the descriptor of its connection. libzmq sends the event that announces this descriptor before the
    first part, but on another socket. `Origins` therefore reads events first. The system may reuse the descriptor of a
    closed connection while parts of that connection are still unread. Until all parts are read, a part with this
    descriptor is not assigned to either connection.
    """

    def __init__(self, recv: Callable[[int, bool], Any], links: Links, look: Callable[[], None]) -> None:
        self._recv = recv
        self._links = links
        self._look = look
        self._emptied = True
        self._heard: set[int] = set()
        self.link: Link | None = None
        """The current connection with the descriptor of the last part.

        A part may be older than this connection; see `came_by`.
        """
        self.fd: int | None = None
        """The descriptor that delivered the last part; None over ``inproc``."""

    @property
    def came_by(self) -> int | None:
        """The id of the connection that delivered the last part, or None if unknown."""
        return None if self.link is None or self.link.doubtful else self.link.id

    def recv(self, flags: int, copy: bool = True) -> Any:
        """Read a part as bytes, or as a Frame if ``copy`` is False.

        This method replaces the ``recv`` of the socket. Raises zmq.Again if no message has arrived.
        """
        if self._emptied:
            self._emptied = False
            self._look()
        try:
            frame = self._recv(flags, False)
        except zmq.Again:
            self._emptied, self.link = True, None
            self._links.read_all()
            raise
        self._note(frame)
        return frame.bytes if copy else frame

    def heard(self) -> set[int]:
        """Return the ids of connections that delivered a part since the last call."""
        heard, self._heard = self._heard, set()
        return heard

    def _note(self, frame: zmq.Frame) -> None:
        self.link = self.fd = None
        try:
            self.fd = fd = frame.get(_SRCFD)
        except zmq.ZMQError:  # a part over inproc has no descriptor
            return
        link = self._links.at(fd)
        if link is None:
            self._look()
            link = self._links.at(fd)
        if link is not None:
            if not link.ready:
                self._links.heard(link)
            self._heard.add(link.id)
            self.link = link


def user_id(frame: zmq.Frame) -> str | None:
    """Return the name of the key of a peer that connected to us, or None.

    The ZAP handler gives the name to libzmq, which adds it to each frame of the connection. On a connection that this
    side has opened, the peer itself could choose the name, so ask only for accepted connections.
    """
    try:
        return str(frame.get("User-Id")) or None
    except zmq.ZMQError:
        return None


class PeerNames:
    """Reads parts, and states the name of the peer's key in each of them.

    Args:
        recv: Reads a part.
        links: The connections.
        sender_of: Returns the name of the key of the peer that sent a frame; see `PersistentConnection.sender_of`.
        named: Returns a part with the name of its peer.
    """

    def __init__(
        self,
        recv: Callable[[int, bool], Any],
        links: Links,
        sender_of: Callable[[zmq.Frame], str | None],
        named: Callable[[bytes, str | None], bytes],
    ) -> None:
        self._recv = recv
        self._links = links
        self._sender_of = sender_of
        self._named = named

    def recv(self, flags: int, copy: bool = True) -> bytes:
        """Read a part; this method replaces the ``recv`` of the socket.

        The part is copied even if ``copy`` is False. Raises zmq.Again if no message has arrived.
        """
        try:
            frame = self._recv(flags, False)
        except zmq.Again:
            self._links.read_all()
            raise
        return self._named(frame.bytes, self._sender_of(frame))
