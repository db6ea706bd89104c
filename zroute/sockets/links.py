"""The connections of one socket, kept from its monitor's events. Plain bookkeeping: it knows no ZeroMQ.

Why events are not matched by their text: libzmq names an endpoint as it was given (``tcp://localhost:5555``) until
its first connection ends, and from then on as the name was resolved (``tcp://127.0.0.1:5555``). Two names can have
one address, and all connections to a bound endpoint have its text. So a connection is found by its descriptor
where an event carries one (``connected``, ``accepted``, ``disconnected``), and the texts decide only the rest.
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

    ``id`` is never used twice, unlike the descriptor ``fd``. ``address`` is the text of the first event.
    ``endpoint`` is the dialled endpoint as it was opened, or None if the peer has connected to us. ``ready`` is
    True once the handshake is done, and ``fault`` is the event if it has failed. ``doubtful`` is True while
    messages of an earlier connection with the same descriptor may still be unread.
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
    """An endpoint that the socket connects to, and the texts that its events may have."""

    address: str
    texts: set[str]
    link: Link | None = None
    resolved: bool = False
    lost: bool = False
    """Its connection has ended, and libzmq has told of no attempt to connect again since."""

    def fits(self, text: str) -> int:
        """Return how well ``text`` fits: 0 as it was opened, 1 as it is known, 2 by the port alone, 3 not at all."""
        if text == self.address:
            return 0
        if text in self.texts:
            return 1
        return 2 if not self.resolved and _port(text) == _port(self.address) else 3


class Links:
    """The connections of one socket: tell it what is dialled, and feed it with `SocketEvent`s."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._links: dict[int, Link] = {}  # by id, so in the order of connecting
        self._by_fd: dict[int, Link] = {}
        self._dialled: list[_Dialled] = []
        self._unread: set[int] = set()

    # -- what the socket's owner tells ---------------------------------------------------------------------

    def dial(self, endpoint: str) -> None:
        """From now on the socket connects to ``endpoint``."""
        self._dialled.append(_Dialled(endpoint, {endpoint}))

    def hang_up(self, endpoint: str) -> None:
        """Forget ``endpoint`` and its connections: libzmq tells of no end that the socket's owner has asked for."""
        self._dialled = [each for each in self._dialled if each.address != endpoint]
        self._end(link for link in self._links.values() if link.endpoint == endpoint)

    def unbind(self, address: str) -> None:
        """Forget the connections that were accepted at ``address``: libzmq cuts them and tells nothing."""
        self._end(link for link in self._links.values() if link.endpoint is None and link.address == address)

    def learn(self, link: Link, text: str) -> None:
        """Note ``text`` as the one that libzmq will have for this connection's endpoint: its resolved address."""
        for each in self._dialled:
            if each.link is link:
                each.texts.add(text)
                each.resolved = True

    def read_all(self) -> None:
        """All messages that had arrived are read, so that none of an ended connection is left."""
        self._unread.clear()
        for link in self._links.values():
            link.doubtful = False

    # -- what libzmq tells -----------------------------------------------------------------------------------

    def seen(self, event: SocketEvent) -> Link | None:
        """Take an event; return the connection that has begun, or whose handshake or life has ended, with it."""
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
        """Return the dialled endpoint without a connection that this text fits best; None if it fits none."""
        found = _best((each for each in self._dialled if each.link is None), text)
        return None if found is None else found.address

    def attempted(self, text: str) -> str | None:
        """Return the dialled endpoint that libzmq has just planned to connect to again under this text.

        Of several that it may be, it is the first that was lost and has not been tried since; None if it fits none.
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
        if found is None:  # of an endpoint that was taken back meanwhile
            return None
        if found.link is not None:  # of the same one, opened again: libzmq has ended that without a word
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
        """The event has no descriptor: of those whose handshake is under way, take the oldest that fits best."""
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
                self._dialled.append(each)  # behind those that were lost before: libzmq tries these first

    # -- what it answers -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many connections have finished their handshake."""
        return len(self.ready)

    @property
    def alive(self) -> frozenset[int]:
        """The ids of all connections, those whose handshake is under way included."""
        return frozenset(self._links)

    @property
    def ready(self) -> tuple[int, ...]:
        """The ids of all connections with a finished handshake, in the order of connecting."""
        return tuple(link.id for link in self._links.values() if link.ready)

    def at(self, fd: int) -> Link | None:
        """Return the connection that has this descriptor now."""
        return self._by_fd.get(fd)

    def get(self, id: int) -> Link | None:
        """Return the connection with this id, unless it has ended."""
        return self._links.get(id)

    def is_dialled(self, endpoint: str) -> bool:
        """Return True if a connection to this endpoint, as it was opened, is there; its handshake may be under way."""
        return any(link.endpoint == endpoint for link in self._links.values())

    def connected(self, address: str) -> bool:
        """Return True if a connection at ``address``, as `Connection.open` returned it, has finished its handshake."""
        return any(link.ready and address == (link.endpoint or link.address) for link in self._links.values())


def _port(text: str) -> str:
    return text.rpartition(":")[2]


def _best(among: Iterable[_Dialled], text: str) -> _Dialled | None:
    found = min(among, key=lambda each: each.fits(text), default=None)
    return None if found is None or found.fits(text) == 3 else found
