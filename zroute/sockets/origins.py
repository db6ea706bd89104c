"""Which connection a message came by: what a socket with several publishers does not say by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from zroute.sockets.links import Link, Links

__all__ = ["Origins"]

_SRCFD = zmq.SRCFD.value


class Origins:
    """Reads parts by ``recv``, and notes by which of ``links`` each came; ``look`` reads the events that wait.

    A part carries the descriptor of its connection. libzmq sends the event that gives this number a meaning before
    the first part, but on another socket, so that events are read first. An ended connection's number goes to the
    next one while parts of the first are still unread: until all are read, such a part came by neither.
    """

    def __init__(self, recv: Callable[[int, bool], Any], links: Links, look: Callable[[], None]) -> None:
        self._recv = recv
        self._links = links
        self._look = look
        self._emptied = True
        self._heard: set[int] = set()
        self.link: Link | None = None
        """The connection that has the descriptor by which the part that was read last came: perhaps a later one."""
        self.fd: int | None = None
        """That descriptor; None over ``inproc``."""

    @property
    def came_by(self) -> int | None:
        """The id of the connection by which the part that was read last came; None if that can't be told."""
        return None if self.link is None or self.link.doubtful else self.link.id

    def recv(self, flags: int, copy: bool = True) -> Any:
        """Read a part, as the socket's own method does: bytes, or with ``copy`` False a Frame."""
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
        """Return the ids of the connections by which anything came since the last call."""
        heard, self._heard = self._heard, set()
        return heard

    def _note(self, frame: zmq.Frame) -> None:
        self.link = self.fd = None
        try:
            self.fd = fd = frame.get(_SRCFD)
        except zmq.ZMQError:  # it came over inproc
            return
        link = self._links.at(fd)
        if link is None:
            self._look()
            link = self._links.at(fd)
        if link is not None:
            link.ready = True  # whatever the events said: a message comes behind the handshake
            self._heard.add(link.id)
            self.link = link
