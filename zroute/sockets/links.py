"""The connections of one socket, derived from its monitor's events.

This module does not use ZeroMQ. The addresses in events do not identify a connection:

- libzmq uses the address as it was opened (``tcp://localhost:5555``) until the first connection ends. From then on,
  libzmq uses the resolved address (``tcp://127.0.0.1:5555``).
- Two names can have the same address.
- All connections to a bound endpoint have the same address.

This module therefore finds a connection by its descriptor if the event contains a descriptor (``connected``,
``accepted``, ``disconnected``). The events of a handshake have no descriptor: each belongs to the oldest connection
whose address fits and whose handshake has no event yet. If a message has shown before its event that the handshake of
a dialled connection succeeded, the next success belongs to that connection.
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

    ``id`` is unique, but the system reuses the descriptor ``fd``. ``address`` is the address in the first event.
    ``endpoint`` is the endpoint as it was opened, or None if the peer connected to us. ``ready`` is True after the
    handshake, and ``fault`` is the event of a failed handshake. ``doubtful`` is True while messages from an earlier
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
    """True after the connection has ended, until libzmq reports the next attempt."""

    def fits(self, text: str) -> int:
        """Return how well an event's address matches this endpoint, from 0 to 3.

        0: equal to the address as it was opened; 1: another known address; 2: only the port matches; 3: no match.
        """
        if text == self.address:
            return 0
        if text in self.texts:
            return 1
        return 2 if not self.resolved and _port(text) == _port(self.address) else 3


class _Handshakes:
    """Connections whose handshake has no event yet.

    They are grouped by the address in their first event, oldest first.
    """

    def __init__(self) -> None:
        self._at: dict[str, dict[int, Link]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._at.values()))

    def add(self, link: Link) -> None:
        self._at.setdefault(link.address, {})[link.id] = link

    def discard(self, link: Link) -> bool:
        """Remove a connection. Return False if it was not here."""
        among = self._at.get(link.address, {})
        if among.pop(link.id, None) is None:
            return False
        if not among:
            del self._at[link.address]
        return True

    def ids(self, address: str) -> set[int]:
        return set(self._at.get(address, ()))

    def oldest_at(self, address: str) -> Link | None:
        return next(iter(self._at.get(address, {}).values()), None)

    def oldest(self) -> Link | None:
        return min((next(iter(links.values())) for links in self._at.values()), key=lambda link: link.id, default=None)


class Links:
    """The connections of one socket.

    The owner reports the endpoints that it opens and closes, and passes on each `SocketEvent`.
    """

    def __init__(self) -> None:
        self._ids = count(1)
        self._links: dict[int, Link] = {}  # by id, so in the order of connecting
        self._by_fd: dict[int, Link] = {}
        self._greeting = _Handshakes()
        self._early = _Handshakes()  # dialled: a message was read before the event of the handshake
        self._dialled: list[_Dialled] = []
        # The endpoints of ended connections with unread messages, by descriptor; None for a peer that connected to us.
        self._unread: dict[int, set[str | None]] = {}

    # -- calls of the socket's owner -------------------------------------------------------------------------

    def dial(self, endpoint: str) -> None:
        """Add an endpoint that the socket connects to."""
        self._dialled.append(_Dialled(endpoint, {endpoint}))

    def hang_up(self, endpoint: str) -> None:
        """Remove an endpoint and its connections.

        libzmq sends no event when the owner itself disconnects.
        """
        self._dialled = [each for each in self._dialled if each.address != endpoint]
        self._end(link for link in self._links.values() if link.endpoint == endpoint)

    def unbind(self, address: str) -> None:
        """Remove the connections that were accepted at ``address``.

        When the address is unbound, libzmq closes these connections without an event.
        """
        self._end(link for link in self._links.values() if link.endpoint is None and link.address == address)

    def learn(self, link: Link, text: str) -> None:
        """Record the resolved address of a connection's endpoint.

        libzmq uses this address in later events.
        """
        for each in self._dialled:
            if each.link is link:
                each.texts.add(text)
                each.resolved = True

    def read_all(self) -> None:
        """Record that all received messages have been read.

        No unread message can then belong to a closed connection, so no connection is ``doubtful``.
        """
        self._unread.clear()
        for link in self._links.values():
            link.doubtful = False

    def heard(self, link: Link) -> None:
        """Record a message of a connection. Messages arrive only after the handshake.

        The event of the handshake may be read after the message. If this side has opened the connection, the event
        still belongs to it.
        """
        link.ready = True
        # The connections of a bound endpoint have one address: an earlier one may have been taken for this one.
        if self._greeting.discard(link) and link.endpoint is not None:
            self._early.add(link)

    # -- events of libzmq ------------------------------------------------------------------------------------

    def seen(self, event: SocketEvent) -> Link | None:
        """Process an event, and return the connection that it affects, or None.

        An event affects a connection that has begun or ended, or whose handshake has ended.
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
        """Return the unconnected endpoint that matches this address best, or None."""
        found = _best((each for each in self._dialled if each.link is None), text)
        return None if found is None else found.address

    def attempted(self, text: str) -> str | None:
        """Return the endpoint that libzmq will try to connect to next.

        If several endpoints match the address, the result is the endpoint that lost its connection first and has not
        been tried since. The result is None if no endpoint matches.
        """
        free = [each for each in self._dialled if each.link is None]
        found = _best((each for each in free if each.lost), text) or _best(free, text)
        if found is None:
            return None
        found.lost = False
        return found.address

    def _connected(self, event: SocketEvent) -> Link | None:
        free = (each for each in self._dialled if each.link is None)
        # An endpoint with a connection may match too: it may have been opened again; see below.
        found = _best(free, event.address) or _best(self._dialled, event.address)
        if found is None:  # the endpoint was disconnected in the meantime
            return None
        if found.link is not None:  # the endpoint was opened again, and libzmq did not report the end of the first link
            self._end([found.link])
        found.link = self._begin(event, found.address)
        found.texts, found.resolved, found.lost = {found.address, event.address}, False, False
        return found.link

    def _begin(self, event: SocketEvent, endpoint: str | None) -> Link:
        before = self._by_fd.get(event.value)
        # The system has reused the descriptor, so the earlier connection has ended without an event.
        if before is not None:
            self._end([before])
        link = Link(next(self._ids), event.value, event.address, endpoint, doubtful=event.value in self._unread)
        self._links[link.id] = self._by_fd[link.fd] = link
        self._greeting.add(link)
        return link

    def _greeted(self, text: str) -> Link | None:
        early, greeting = self._early, self._greeting
        link = early.oldest_at(text) or greeting.oldest_at(text) or early.oldest() or greeting.oldest()
        if link is not None:
            link.ready = True
            self._ends_handshake(link)
        return link

    def _failed(self, event: SocketEvent) -> Link | None:
        link = self._greeting.oldest_at(event.address) or self._greeting.oldest()
        if link is not None:
            link.fault = event
            self._ends_handshake(link)
        return link

    def _ends_handshake(self, link: Link) -> None:
        self._greeting.discard(link)
        self._early.discard(link)

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
        # A copy, because callers pass generators over the dict that this loop changes.
        for link in tuple(links):
            del self._links[link.id], self._by_fd[link.fd]
            self._ends_handshake(link)
            self._unread.setdefault(link.fd, set()).add(link.endpoint)
            for each in [each for each in self._dialled if each.link is link]:
                each.link = None
                self._dialled.remove(each)
                self._dialled.append(each)  # after endpoints that were lost earlier, which libzmq tries first

    # -- queries ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of connections that have finished their handshake."""
        return len(self.ready)

    @property
    def greeting(self) -> int:
        """The number of connections in their handshake."""
        return len(self._greeting)

    def greeting_at(self, address: str) -> set[int]:
        """Return the ids of the connections in their handshake with this address."""
        return self._greeting.ids(address)

    @property
    def alive(self) -> frozenset[int]:
        """The ids of all connections, including those in their handshake."""
        return frozenset(self._links)

    @property
    def ready(self) -> tuple[int, ...]:
        """The ids of the connections that have finished their handshake, oldest first."""
        return tuple(link.id for link in self._links.values() if link.ready)

    def at(self, fd: int) -> Link | None:
        """Return the current connection with this descriptor, or None."""
        return self._by_fd.get(fd)

    def endpoints_at(self, fd: int) -> set[str | None]:
        """Return the endpoints of connections that may have delivered a message.

        The message has this descriptor, and may be from a connection that has ended. A peer that connected to us has
        the endpoint None.
        """
        found = set(self._unread.get(fd, ()))
        if fd in self._by_fd:
            found.add(self._by_fd[fd].endpoint)
        return found

    def get(self, id: int) -> Link | None:
        """Return the connection with this id, or None if it has ended."""
        return self._links.get(id)

    def is_dialled(self, endpoint: str) -> bool:
        """Return True if an endpoint has a connection, even one still in the handshake.

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
    """Return the endpoint that matches the address of an event best, or None."""
    found = min(among, key=lambda each: each.fits(text), default=None)
    return None if found is None or found.fits(text) == 3 else found
