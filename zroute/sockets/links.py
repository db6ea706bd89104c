"""The connections of one socket, derived from its monitor's events.

Pure bookkeeping, without ZeroMQ. The addresses in events do not identify a connection:

- libzmq names an endpoint as it was given (``tcp://localhost:5555``) until its first connection ends. From then on it
  uses the resolved address (``tcp://127.0.0.1:5555``).
- Two names can have the same address.
- All connections to a bound endpoint have the same address.

So a connection is found by its descriptor if the event carries one (``connected``, ``accepted``, ``disconnected``).
The addresses decide only for the other events.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from zroute.sockets.events import SocketEvent

__all__ = ["Link", "Links"]


@attrs.define(eq=False)
class Link:
    """One connection of a socket, from ``connected`` or ``accepted`` to its end.

    ``id`` is unique; the descriptor ``fd`` is reused by the system. ``address`` is the address in the first event.
    ``endpoint`` is the endpoint as it was opened, or None if the peer connected to us. ``ready`` is True after the
    handshake; ``fault`` is the event of a failed handshake. ``doubtful`` is True while messages of an earlier
    connection with the same descriptor may be unread.
    """

    id: int
    fd: int
    address: str
    endpoint: str | None
    ready: bool = False
    fault: SocketEvent | None = None
    doubtful: bool = False


@attrs.define(eq=False)
class _Dialled:
    """An endpoint that the socket connects to, and the addresses of its events."""

    address: str
    texts: set[str]
    link: Link | None = None
    resolved: bool = False
    lost: bool = False
    """True after the connection has ended, until libzmq reports its next attempt."""

    def fits(self, text: str) -> int:
        """Return how well an event's address matches this endpoint.

        0: as it was opened; 1: a known address; 2: only the port matches; 3: no match.
        """
        if text == self.address:
            return 0
        if text in self.texts:
            return 1
        return 2 if not self.resolved and _port(text) == _port(self.address) else 3


class Links:
    """The connections of one socket.

    The owner reports the endpoints that it opens and closes, and passes on each `SocketEvent`.
    """

    def __init__(self) -> None:
        self._ids = count(1)
        self._links: dict[int, Link] = {}  # by id, so in the order of connecting
        self._by_fd: dict[int, Link] = {}
        self._dialled: list[_Dialled] = []
        self._unread: set[int] = set()

    # -- calls of the socket's owner -------------------------------------------------------------------------

    def dial(self, endpoint: str) -> None:
        """Add an endpoint that the socket connects to."""
        self._dialled.append(_Dialled(endpoint, {endpoint}))

    def hang_up(self, endpoint: str) -> None:
        """Forget an endpoint and its connections.

        libzmq sends no event when the owner itself disconnects.
        """
        self._dialled = [each for each in self._dialled if each.address != endpoint]
        self._end(link for link in self._links.values() if link.endpoint == endpoint)

    def unbind(self, address: str) -> None:
        """Forget the connections that were accepted at ``address``.

        libzmq ends them when the address is unbound, and sends no event.
        """
        self._end(link for link in self._links.values() if link.endpoint is None and link.address == address)

    def learn(self, link: Link, text: str) -> None:
        """Note the resolved address of a connection's endpoint.

        libzmq will use it in later events.
        """
        for each in self._dialled:
            if each.link is link:
                each.texts.add(text)
                each.resolved = True

    def read_all(self) -> None:
        """Note that all received messages are read.

        No unread message can belong to an ended connection then, so no connection is ``doubtful``.
        """
        self._unread.clear()
        for link in self._links.values():
            link.doubtful = False

    # -- events of libzmq ------------------------------------------------------------------------------------

    def seen(self, event: SocketEvent) -> Link | None:
        """Process an event; return the connection that it concerns, if any.

        That is a connection that has begun or ended, or whose handshake has ended.
        """
        if event.name == "connected":
            return self._connected(event)
        if event.name == "accepted":
            return self._begin(event, None)
        if event.name == "handshake_succeeded":
            return self._greeted(event.address)
        if event.name.startswith("handshake_failed"):
            return self._failed(event)
        if event.name == "disconnected":
            return self._disconnected(event)
        return None

    def trying(self, text: str) -> str | None:
        """Return the unconnected endpoint that this address fits best, or None."""
        found = _best((each for each in self._dialled if each.link is None), text)
        return None if found is None else found.address

    def attempted(self, text: str) -> str | None:
        """Return the endpoint that libzmq will try to connect to next.

        If several endpoints fit the address, it is the first that lost its connection and was not tried since. None if
        no endpoint fits.
        """
        free = [each for each in self._dialled if each.link is None]
        found = _best((each for each in free if each.lost), text) or _best(free, text)
        if found is None:
            return None
        found.lost = False
        return found.address

    def _connected(self, event: SocketEvent) -> Link | None:
        free = (each for each in self._dialled if each.link is None)
        found = _best(free, event.address) or _best(self._dialled, event.address)
        if found is None:  # its endpoint was disconnected in the meantime
            return None
        if found.link is not None:  # the endpoint was opened again, and libzmq sent no event of the first one's end
            self._end([found.link])
        found.link = self._begin(event, found.address)
        found.texts, found.resolved, found.lost = {found.address, event.address}, False, False
        return found.link

    def _begin(self, event: SocketEvent, endpoint: str | None) -> Link:
        before = self._by_fd.get(event.value)
        if before is not None:
            self._end([before])
        link = Link(next(self._ids), event.value, event.address, endpoint, doubtful=event.value in self._unread)
        self._links[link.id] = self._by_fd[link.fd] = link
        return link

    def _greeted(self, text: str) -> Link | None:
        link = self._greeting(text)
        if link is not None:
            link.ready = True
        return link

    def _failed(self, event: SocketEvent) -> Link | None:
        link = self._greeting(event.address)
        if link is not None:
            link.fault = event
        return link

    def _greeting(self, text: str) -> Link | None:
        """Return the connection whose handshake this event reports.

        The event has no descriptor. Of the connections in their handshake, it is the oldest with this address, or else
        the oldest of all.
        """
        pending = [link for link in self._links.values() if not link.ready and link.fault is None]
        return next((link for link in pending if link.address == text), pending[0] if pending else None)

    def _disconnected(self, event: SocketEvent) -> Link | None:
        link = self._by_fd.get(event.value)
        if link is None:
            return None
        for each in self._dialled:
            if each.link is link:
                each.texts.add(event.address)
                each.lost = True
        self._end([link])
        return link

    def _end(self, links: Iterable[Link]) -> None:
        for link in tuple(links):
            del self._links[link.id], self._by_fd[link.fd]
            self._unread.add(link.fd)
            for each in [each for each in self._dialled if each.link is link]:
                each.link = None
                self._dialled.remove(each)
                self._dialled.append(each)  # after those that were lost earlier: libzmq tries these first

    # -- queries ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of connections that have finished their handshake."""
        return len(self.ready)

    @property
    def alive(self) -> frozenset[int]:
        """The ids of all connections, including those in their handshake."""
        return frozenset(self._links)

    @property
    def ready(self) -> tuple[int, ...]:
        """The ids of the connections after their handshake, oldest first."""
        return tuple(link.id for link in self._links.values() if link.ready)

    def at(self, fd: int) -> Link | None:
        """Return the current connection with this descriptor, or None."""
        return self._by_fd.get(fd)

    def get(self, id: int) -> Link | None:
        """Return the connection with this id, or None if it has ended."""
        return self._links.get(id)

    def is_dialled(self, endpoint: str) -> bool:
        """Return True if an endpoint has a connection, in its handshake or after it.

        ``endpoint`` is the endpoint as it was opened.
        """
        return any(link.endpoint == endpoint for link in self._links.values())

    def connected(self, address: str) -> bool:
        """Return True if a connection at ``address`` has finished its handshake.

        ``address`` is the result of `Connection.open`.
        """
        return any(link.ready and address == (link.endpoint or link.address) for link in self._links.values())


def _port(text: str) -> str:
    return text.rpartition(":")[2]


def _best(among: Iterable[_Dialled], text: str) -> _Dialled | None:
    """Return the endpoint that an event's address fits best, or None if it fits none."""
    found = min(among, key=lambda each: each.fits(text), default=None)
    return None if found is None or found.fits(text) == 3 else found
