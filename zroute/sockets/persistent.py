"""A connection that reconnects even when libzmq gives up.

libzmq reconnects after a lost connection, but not after a protocol error, such as a part that exceeds MAXMSGSIZE. After
a protocol error, libzmq ends the session without an event. If no connection attempt follows a disconnection, this
module therefore logs a warning and reconnects.

The time at which the connection ends shows the kind of error:

- a required key: ``handshake_failed_protocol``;
- an incompatible socket type: the connection ends during the handshake, without that event;
- an invalid or oversized frame: the connection ends after the handshake.

`Links` finds the endpoint of each attempt, and `ConnectionLog` logs the connections.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import Any

import zmq

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError
from zroute.options import LINGER_DRAIN
from zroute.sockets.accepted import ACCEPTED, LACK
from zroute.sockets.admissions import UnknownKeys
from zroute.sockets.connection import Connection
from zroute.sockets.connection_log import ConnectionLog
from zroute.sockets.descriptors import Identity, identify, shut_down
from zroute.sockets.events import OnEvent, SocketEvent
from zroute.sockets.links import Link, Links
from zroute.sockets.names import Lookups
from zroute.sockets.origins import user_id
from zroute.sockets.refusals import PAUSE, PAUSE_MAX, Refusals
from zroute.transport import Receive

__all__ = ["PersistentConnection"]

_log = logging.getLogger("zroute.sockets")

_NEEDS_KEY = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
_FITTING = {
    zmq.SUB: "PUB or XPUB",
    zmq.XSUB: "PUB or XPUB",
    zmq.PUB: "SUB or XSUB",
    zmq.XPUB: "SUB or XSUB",
    zmq.PULL: "PUSH",
    zmq.PUSH: "PULL",
    zmq.PAIR: "PAIR",
    zmq.REQ: "REP or ROUTER",
    zmq.REP: "REQ or DEALER",
    zmq.DEALER: "ROUTER, REP or DEALER",
    zmq.ROUTER: "DEALER, REQ or ROUTER",
}

_PUBSUB = (zmq.SUB, zmq.XSUB, zmq.PUB, zmq.XPUB)
_SRCFD = zmq.MessageOption.SRCFD.value
_REST_AFTER = 0.03  # seconds; less than the 0.1 s after which libzmq reconnects (RECONNECT_IVL)
_MARGIN = 1.0  # seconds between the end of a handshake by libzmq and the time when it is over for sure
_FEW = 16  # connections in their handshake among which the host of a failed one is searched
_GIVEN_UP_AFTER = 1.0  # seconds without an attempt to connect; libzmq reports each attempt as soon as it is planned


class PersistentConnection(Connection):
    """A `Connection` that keeps its open endpoints connected.

    The endpoints stay connected until `disconnect` or `close`. ``links`` contains the connections while the socket is
    watched or has connected to an endpoint. ``log`` logs the connections that this side opens.
    """

    cost: int = 1
    """The number of descriptors of each accepted connection."""

    def __init__(self, reactor: Any, socket: zmq.Socket[Any], receive: Receive) -> None:
        super().__init__(reactor, socket, receive)
        self.links = Links()
        self.log = ConnectionLog(reactor, _log, type(self).__name__)
        self.size_option: str | None = "maxmsgsize"
        """The option that log lines recommend to increase for larger frames, or None."""
        self.endpoint_option = "the endpoint"
        """The argument that log lines recommend to check if the peer has an incompatible socket."""
        self.dialled: list[str] = []
        """The items of ``endpoints`` to which the socket connects."""
        self.on_closed: Callable[[frozenset[int], str], object] = lambda links, why: None
        """Called with the ids of connections that were closed because of a key, and the reason."""
        self.keys: dict[int, str] = {}
        """The names of the keys of accepted connections, as far as they are known, by id."""
        self._number_of: Counter[str] = Counter()  # the connections of each key in `keys`
        self._handshake = math.inf  # the time in seconds after which libzmq has ended an unfinished handshake
        self._sure: set[int] = set()  # connections whose frames have told their key
        self._as_given: dict[str, Endpoint] = {}
        self._revoked: set[str] = set()  # endpoints whose connection is being closed, because the key was revoked
        self._faults = Refusals()  # failed handshakes of a socket with keys
        self._identities: dict[int, Identity] = {}
        self._given_up: dict[str, Any] = {}
        self._ends: dict[str, Link] = {}  # the last connection that ended, by endpoint
        self._resting: dict[str, Any] = {}
        self._lookups = Lookups(reactor, self._connect_by_ipv6)
        self._by_ipv6: set[str] = set()
        self._follows = False

    def open(self, endpoint: Endpoint | str) -> str:
        """See `Connection.open`."""
        endpoint = self._parsed(endpoint)
        if self.guard is not None and self.guard.secure and not self.closed:
            self._follow()
            self.guard.watch(self)
        if self.closed:
            return super().open(endpoint)
        if endpoint.bind:
            if not endpoint.address.startswith("inproc://"):
                self._follow()
                ACCEPTED.begin(self._reactor)
                limit = int(self._socket.get(zmq.SocketOption.HANDSHAKE_IVL)) / 1000
                self._handshake = limit + _MARGIN if limit else math.inf
            return super().open(endpoint)
        self._follow()
        address = super().open(endpoint)
        self._as_given[address] = endpoint
        self.dialled.append(address)
        self.links.dial(address)
        self.log.dial(address)
        self._lookups.begin(address)
        return address

    def watch(self, on_event: OnEvent) -> None:
        """See `Connection.watch`. ``links`` is up to date when ``on_event`` is called."""
        self._follow()
        super().watch(on_event)

    def _follow(self) -> None:
        if not self._follows:
            super().watch(self._seen)
            self._follows = True

    def close(self, linger: int = LINGER_DRAIN) -> None:
        """See `Connection.close`."""
        for calls in (self._given_up, self._resting):
            for endpoint in tuple(calls):
                _cancel(calls, endpoint)
        self.log.close()
        ACCEPTED.left(self)
        super().close(linger)

    def disconnect(self, address: str) -> None:
        """See `Connection.disconnect`."""
        # During the pause, libzmq does not know the endpoint, and could not disconnect it below.
        if address in self._resting:
            _cancel(self._resting, address)
            self._redial(address)
        super().disconnect(address)
        self._read_events()  # forget the connections in unread events too
        self._hang_up(address)
        self.log.forget(address)
        self.dialled = [other for other in self.dialled if other != address]
        self._as_given.pop(address, None)
        self._faults.forget(address)
        self._revoked.discard(address)
        self._cancel(address)
        self._ends.pop(address, None)
        self._lookups.forget(address)
        self._by_ipv6.discard(address)

    def unbind(self, address: str) -> None:
        """See `Connection.unbind`."""
        super().unbind(address)
        self._read_events()
        self.links.unbind(address)
        self._forget_ended()

    def cut(self, id: int) -> str | None:
        """Close the connection with this id, so that libzmq reconnects.

        Messages that have arrived are still delivered, and libzmq sends all subscriptions again after the reconnection.
        Returns the endpoint. If the connection is unknown, has ended, or was opened by the peer, the method does
        nothing and returns None.
        """
        self._read_events()
        link = self.links.get(id)
        return link.endpoint if link is not None and link.endpoint is not None and self.end(id) else None

    def end(self, id: int, *, discard: bool = False) -> bool:
        """Close the connection with this id, even if the peer has opened it.

        The side that opened the connection reconnects. With ``discard``, data that libzmq has not read is dropped.
        Returns True if the connection was open.
        """
        self._read_events()
        link = self.links.get(id)
        if link is None or not self._shut_down(link, discard=discard):
            return False
        if link.endpoint is not None:
            self.log.told(link.endpoint)  # the caller logs the end of the connection
        return True

    def _shut_down(self, link: Link, *, discard: bool) -> bool:
        identity = self._identities.get(link.id)
        return not self.closed and identity is not None and shut_down(link.fd, identity, discard=discard)

    @property
    def greeting(self) -> int:
        """The number of unfinished handshakes, according to libzmq's events."""
        return self.links.greeting

    @property
    def alive(self) -> frozenset[int]:
        """The ids of all connections."""
        return self.links.alive

    @property
    def encrypts(self) -> bool:
        """True if a peer that connects needs a key."""
        return self.guard is not None and self.guard.secure

    def refuse(self, id: int, reason: str, remedy: str) -> None:
        """Close an accepted connection because of a limit; log and count it."""
        link = self.links.get(id)
        # Without reading events first, because this is called for an event.
        if link is not None and self._shut_down(link, discard=True):
            if self.guard is not None:
                self.guard.limited()
            self.log.warn(link.address, reason, f"closed a new connection: {reason}: {remedy}")

    def learn(self, frame: zmq.Frame) -> None:
        """Record the key of the connection that delivered a frame.

        libzmq names the key only in the frames of a connection. A frame may be older than the current connection with
        its descriptor; such a connection is ``doubtful``.
        """
        try:
            fd = frame.get(_SRCFD)
            link = self.links.at(fd)
            if link is None:
                self._read_events()
                link = self.links.at(fd)
            if link is not None and link.endpoint is None and link.id not in self._sure and not link.doubtful:
                self._sure.add(link.id)
                ACCEPTED.proved(self, link.id)
                name = user_id(frame) or ""
                if self.keys.get(link.id) != name:
                    self.name(link.id, name)
        except zmq.ZMQError:  # over inproc, a frame has neither
            return

    def sender_of(self, frame: zmq.Frame) -> str | None:
        """Return the name of the key of the peer that sent a frame, or None.

        libzmq tells the descriptor of a frame, and for an accepted connection also the name. For an endpoint to which
        this side connects, the name is that of the endpoint. The events of connections are read first: the event that
        announces a descriptor comes before the first frame, so the endpoint is never that of an older connection. The
        name is None over inproc, and if connections with different peers have had the descriptor.
        """
        try:
            fd = frame.get(_SRCFD)
        except zmq.ZMQError:
            return None
        self._read_events()
        endpoints = self.links.endpoints_at(fd)
        if endpoints == {None}:
            self.learn(frame)
            return user_id(frame)
        names = {None if each is None else self.peer_at(each) for each in endpoints}
        return names.pop() if len(names) == 1 else None

    def connections_of(self, name: str) -> int:
        """Return the number of accepted connections that are known to have a key."""
        return self._number_of[name]

    def unnamed(self, host: str) -> list[int]:
        """Return up to two new connections from ``host`` whose key is unknown, by id."""
        self._read_events()
        found = ACCEPTED.in_handshake(self, host)
        return list(islice((id for id in found if id not in self.keys), 2))

    def unknown_keys(self) -> UnknownKeys:
        """Return the number of accepted connections whose key is unknown."""
        self._read_events()
        greeting = self.links.greeting
        return UnknownKeys(ACCEPTED.number_of(self) - len(self.keys) - greeting, greeting, self._handshake)

    def is_clear(self, host: str) -> bool:
        """Return True if no request of an ended connection can wait for an answer.

        The connection was from ``host``, and the request was about its key.
        """
        return ACCEPTED.is_clear(self, host, self._reactor.seconds())

    def name(self, id: int, name: str) -> None:
        """Record the key of a connection."""
        if id in self._identities:
            self._unname((id,))
            self.keys[id] = name
            self._number_of[name] += 1
            if self.guard is not None and (fault := self.guard.known(name)):
                self.refuse(id, *fault)

    def _unname(self, ids: Iterable[int]) -> None:
        for id in ids:
            name = self.keys.pop(id, None)
            if name is not None:
                self._number_of[name] -= 1
                if not self._number_of[name]:
                    del self._number_of[name]

    def end_accepted(self, name: str, why: str) -> int:
        """Close the accepted connections of a key, and those without a known key.

        A connection of another key reconnects. ``why`` is the reason, for the log. Return the number of connections.
        """
        self._read_events()
        links = [link for link in map(self.links.get, self.links.alive) if link is not None and link.endpoint is None]
        ended = [link for link in links if self.keys.get(link.id, name) == name and self.end(link.id, discard=True)]
        self._told_why(ended, why)
        return len(ended)

    def _told_why(self, links: Iterable[Link], why: str) -> None:
        self.on_closed(frozenset(link.id for link in links), why)

    def end_dialled(self, name: str, why: str) -> None:
        """Close the connections to endpoints whose peer has this name.

        ``why`` is the reason, for the log. After a pause, the socket connects again if the key of the peer is known by
        then. If the key was replaced, the new connection needs the new key.
        """
        for endpoint in [each for each, given in self._as_given.items() if given.peer == name]:
            links = [link for link in map(self.links.get, self.links.alive) if link is not None]
            ended = [link for link in links if link.endpoint == endpoint and self.end(link.id, discard=True)]
            self._told_why(ended, why)
            if ended:
                self._revoked.add(endpoint)
            elif endpoint not in self._resting:
                self._rest_soon(endpoint, PAUSE)

    def dial_again(self, name: str) -> None:
        """End the pauses of endpoints whose peer has this name, and a new key."""
        for endpoint in [
            each for each, given in self._as_given.items() if given.peer == name and each in self._resting
        ]:
            self._faults.forget(endpoint)
            self._rest_soon(endpoint, 0.0)

    def peer_at(self, endpoint: str) -> str | None:
        """Return the name of the peer whose key is used at a dialled endpoint."""
        given = self._as_given.get(endpoint)
        return None if given is None else given.peer

    def peer(self, id: int) -> str:
        """Return the address of a peer for log lines, if it is known."""
        link, identity = self.links.get(id), self._identities.get(id)
        known = None if identity is None else identity.text
        return known or (link.address if link is not None else "a disconnected peer")

    def _rest_soon(self, endpoint: str, seconds: float) -> None:
        """Pause an endpoint whose connection has ended, and reconnect after ``seconds``.

        The pause begins after a short delay, in which received messages are read, but before libzmq reconnects.
        """
        self._cancel(endpoint)
        _cancel(self._resting, endpoint)
        self._resting[endpoint] = self._reactor.callLater(_REST_AFTER, self._rest, endpoint, seconds)

    def _rest(self, endpoint: str, seconds: float) -> None:
        del self._resting[endpoint]
        self._drop_rest()
        self._let_go(endpoint)
        self._read_events()
        self._hang_up(endpoint)
        self._cancel(endpoint)
        # The endpoint stays open for the user, and `_hang_up` has removed it.
        self.links.dial(endpoint)
        self.log.rests(endpoint)  # the caller of `_rest_soon` logs the reason
        self._resting[endpoint] = self._reactor.callLater(seconds, self._rested, endpoint)
        self.poke()

    def _let_go(self, endpoint: str) -> None:
        """Stop libzmq from connecting to this endpoint.

        With the linger time of the socket, libzmq would reconnect during the pause to send the queue, ten times a
        second. Each failure would make the next pause longer, and a successful connection would end at once. Linger is
        therefore 0 for this call, if the socket publishes or subscribes: subscriptions are sent again on each new
        connection, and a subscriber counts lost messages.
        """
        linger = self._socket.linger
        if self._socket.type in _PUBSUB:
            self._socket.linger = 0
        try:
            with suppress(zmq.ZMQError):  # libzmq may have dropped the endpoint with its session
                self._socket.disconnect(endpoint)
        finally:
            self._socket.linger = linger

    def _rested(self, endpoint: str) -> None:
        del self._resting[endpoint]
        self._redial(endpoint)

    def _hang_up(self, endpoint: str) -> None:
        self.links.hang_up(endpoint)
        self._forget_ended()

    def _forget_ended(self) -> None:
        """Remove the connections that ended without an event of libzmq."""
        alive = self.links.alive
        ACCEPTED.keep(self, alive)
        self._identities = {id: identity for id, identity in self._identities.items() if id in alive}
        self._unname(self.keys.keys() - alive)
        self._sure &= alive

    # -- events of libzmq ------------------------------------------------------------------------------------

    def _seen(self, event: SocketEvent) -> None:
        link = self.links.seen(event)
        endpoint = None if link is None else link.endpoint
        if event.name == "connect_retried":
            endpoint = self.links.attempted(event.address)
            self._attempted(endpoint)
        elif event.name in ("connect_delayed", "closed"):
            endpoint = self.links.trying(event.address)
        elif event.name == "connected" and link is not None:
            self._connected(link)
        elif event.name == "disconnected" and link is not None:
            self._disconnected(link)
        elif event.name == "accepted" and link is not None:
            self._accepted(link)
        elif event.name == "accept_failed" and event.value in LACK:
            self.log.warn(event.address, "descriptors", "can't accept a connection: the process has no free descriptor")
            ACCEPTED.exhausted(self._reactor.seconds())
        elif event.name.startswith("handshake_failed") and self.guard is not None and endpoint is None:
            self._greeting_failed(event, link)
        if endpoint is not None and not self.closed:
            self._note(event, endpoint, link)

    def _greeting_failed(self, event: SocketEvent, link: Link | None) -> None:
        """Count and log a failed handshake of a peer that has connected to this socket.

        libzmq does not tell which connection has failed. The line names the host if few connections are in their
        handshake, and all of them come from one host.
        """
        why = None if self.guard is None else self.guard.failed(event)
        if why is None:
            return
        ids: set[int] = set()
        if self.links.greeting <= _FEW:  # a search among thousands would take longer than the handshakes
            ids = self.links.greeting_at(event.address)
            if link is not None:
                ids.add(link.id)
        identities = [self._identities.get(id) for id in ids]
        hosts = {None if each is None else each.host for each in identities}
        host = hosts.pop() if len(hosts) == 1 else None
        begin = f"a connection from {host}" if host is not None else "a connection"
        self.log.warn(event.address, why, f"{begin} has failed in its handshake ({event.reason}): {why}")

    def _accepted(self, link: Link) -> None:
        identity = identify(link.fd, link.address, accepted=True)
        if identity is None or self.closed:  # the connection has ended
            return
        self._identities[link.id] = identity
        if not link.address.startswith("inproc://"):
            ACCEPTED.admit(self, link.id, link.fd, identity, self._reactor.seconds(), self._handshake)

    def _note(self, event: SocketEvent, endpoint: str, link: Link | None) -> None:
        """Log an event of a dialled endpoint."""
        if event.name == "handshake_succeeded":
            self._faults.forget(endpoint)
            self.log.connected(endpoint)
        elif event.name != "disconnected":
            self.log.attempted(endpoint, event)
        elif link is not None and link.ready:
            self.log.lost(endpoint)

    def _attempted(self, endpoint: str | None) -> None:
        if endpoint is not None:
            self._cancel(endpoint)
            self._lookups.again(endpoint)

    def _connected(self, link: Link) -> None:
        assert link.endpoint is not None
        self._cancel(link.endpoint)
        identity = identify(link.fd, link.address)
        if identity is not None:
            self._identities[link.id] = identity
            self.links.learn(link, identity.text or link.address)

    def _disconnected(self, link: Link) -> None:
        identity = self._identities.pop(link.id, None)
        if link.endpoint is None and identity is not None and identity.host is not None and link.id not in self.keys:
            ACCEPTED.note_unknown(self, identity.host, self._reactor.seconds(), self._handshake)
        self._unname((link.id,))
        self._sure.discard(link.id)
        ACCEPTED.ended(self, (link.id,))
        self._read_again()  # when all messages have been read, no message of this connection is left
        if link.endpoint is not None and not self.closed:
            self._cancel(link.endpoint)
            if link.endpoint in self._revoked:
                self._revoked.discard(link.endpoint)
                self._rest_soon(link.endpoint, PAUSE)
                return
            if self._rest_after_fault(link.endpoint, link.fault):
                return
            self._ends[link.endpoint] = link
            again = self._reactor.callLater(_GIVEN_UP_AFTER, self._connect_again, link.endpoint)
            self._given_up[link.endpoint] = again

    def _rest_after_fault(self, endpoint: str, fault: SocketEvent | None) -> bool:
        """Pause an endpoint after a failed handshake, if the socket has keys.

        The reason is logged. libzmq never reconnects to a peer that has refused our key, and reconnects ten times a
        second to a peer that has closed the connection. The pause is 1 s at first, and doubles up to 30 s. Return False
        without a pause.
        """
        if self.guard is None or not self.guard.secure or fault is None or endpoint not in self._as_given:
            return False
        reason = self.guard.fault(self._as_given[endpoint], fault)
        if reason is None:
            return False
        self.log.refused(endpoint, self._faults.reason(endpoint, fault, reason), handshake=True)
        ended = self._ends.get(endpoint)
        if ended is not None and ended.ready and fault.name == "handshake_failed_auth":
            self.on_closed(frozenset({ended.id}), "the peer no longer accepts the key of this app")
        self._rest_soon(endpoint, self._faults.refuse(endpoint))
        return True

    # -- connecting again ------------------------------------------------------------------------------------

    def _cancel(self, endpoint: str) -> None:
        _cancel(self._given_up, endpoint)

    def _connect_again(self, endpoint: str) -> None:
        judged = self._given_up[endpoint]
        self._read_events()  # a slow turn of the reactor may have delayed the event of an attempt
        if self.closed or self._given_up.get(endpoint) is not judged or self.links.is_dialled(endpoint):
            return
        del self._given_up[endpoint]
        link = self._ends.pop(endpoint)
        self.log.refused(endpoint, self._disagreement(link), handshake=not link.ready)
        self._redial(endpoint)

    def _disagreement(self, link: Link) -> str:
        """Return the reason why libzmq has given up on a connection, and the remedy."""
        if link.ready:
            limit = int(self._socket.get(zmq.SocketOption.MAXMSGSIZE))
            remedy = (
                f": increase {self.size_option} here, or send smaller messages from the peer"
                if self.size_option
                else ""
            )
            return f"connection closed: the peer sent a frame of more than {limit} bytes, or invalid ZMTP{remedy}"
        if link.fault is not None and link.fault.value == _NEEDS_KEY:
            return (
                "the peer requires authentication (CURVE, PLAIN or GSSAPI): for CURVE, create a key with zroute keys "
                "new NAME, set keys= (--keys), and write the name of the peer before its address (feed@tcp://…); "
                "zroute does not support PLAIN and GSSAPI, so disable them at the peer (plain_server)"
            )
        if link.fault is not None:
            return f"the handshake failed ({link.fault.reason})"
        kind = zmq.SocketType(int(self._socket.type))
        return (
            f"the peer's socket has an incompatible type: {kind.name} expects "
            f"{_FITTING.get(kind, 'a compatible socket')}; check {self.endpoint_option}"
        )

    def _connect_by_ipv6(self, endpoint: str) -> None:
        """Reconnect to an endpoint whose host has only IPv6 addresses.

        libzmq does not look up IPv6 addresses by default.
        """
        if self.closed or endpoint not in self.dialled or self.links.is_dialled(endpoint):
            return
        self._by_ipv6.add(endpoint)
        self._redial(endpoint)

    def _redial(self, endpoint: str) -> None:
        self._drop_rest()
        # libzmq ignores a second connect of a SUB or DEALER socket to an endpoint that it still knows.
        self._let_go(endpoint)
        if self.guard is not None and endpoint in self._as_given:
            try:
                self.guard.protect(self._socket, self._as_given[endpoint])  # another endpoint may have another key
            except EndpointError as error:
                self.log.refused(endpoint, str(error), handshake=True)
                self._resting[endpoint] = self._reactor.callLater(PAUSE_MAX, self._rested, endpoint)
                return
        with self._family(endpoint):
            self._socket.connect(endpoint)
        self.log.redialled(endpoint)
        self.poke()

    def _needs_ipv6(self, address: str) -> bool:
        return address in self._by_ipv6 or super()._needs_ipv6(address)


def _cancel(calls: dict[str, Any], endpoint: str) -> None:
    call = calls.pop(endpoint, None)
    if call is not None and call.active():
        call.cancel()
