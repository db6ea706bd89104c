"""A connection that knows its peers one by one, and connects again also where libzmq gives up.

libzmq connects again after a lost connection, but not after a protocol error, to which it counts a part over
MAXMSGSIZE: it ends the session without an event. So if no attempt to connect follows a disconnection, this module
logs a warning and connects again. What the peer and this socket do not agree about is told by when it ends: over a
key with ``handshake_failed_protocol``, over the kinds of the sockets in the handshake and without that, over a frame
behind it. `Links` finds out which endpoint an attempt belongs to, and `ConnectionLog` logs.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import zmq

from zroute.endpoints import Endpoint
from zroute.options import LINGER_DRAIN
from zroute.sockets.connection import Connection
from zroute.sockets.connection_log import ConnectionLog
from zroute.sockets.descriptors import Identity, identify, shut_down
from zroute.sockets.events import OnEvent, SocketEvent
from zroute.sockets.links import Link, Links
from zroute.sockets.names import Lookups
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

_REST_AFTER = 0.03  # seconds; libzmq waits for 0.1 s (RECONNECT_IVL)
_GIVEN_UP_AFTER = 1.0  # seconds without an attempt to connect; libzmq says of one at once when it plans it


class PersistentConnection(Connection):
    """A `Connection` whose `open` endpoints stay connected until `disconnect` or `close`.

    ``links`` holds its connections while it is watched, or connects to anything, and ``log`` logs those that it makes.
    """

    def __init__(self, reactor: Any, socket: zmq.Socket[Any], receive: Receive) -> None:
        super().__init__(reactor, socket, receive)
        self.links = Links()
        self.log = ConnectionLog(reactor, _log, type(self).__name__)
        self.size_option: str | None = "maxmsgsize"
        """What a log line advises to raise for larger frames; None where there is no option."""
        self.endpoint_option = "the endpoint"
        """What a log line advises to check where another kind of socket answers."""
        self.dialled: list[str] = []
        """Those of ``endpoints`` that it connects to."""
        self._identities: dict[int, Identity] = {}
        self._given_up: dict[str, Any] = {}
        self._ends: dict[str, Link] = {}  # of an endpoint: the connection that has ended last
        self._resting: dict[str, Any] = {}
        self._lookups = Lookups(reactor, self._connect_by_ipv6)
        self._by_ipv6: set[str] = set()
        self._follows = False

    def open(self, endpoint: Endpoint | str) -> str:
        """See `Connection.open`."""
        endpoint = self._parsed(endpoint)
        if endpoint.bind or self.closed:
            return super().open(endpoint)
        self._follow()
        address = super().open(endpoint)
        self.dialled.append(address)
        self.links.dial(address)
        self.log.dial(address)
        self._lookups.begin(address)
        return address

    def watch(self, on_event: OnEvent) -> None:
        """See `Connection.watch`; ``links`` is up to date whenever ``on_event`` is called."""
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
        super().close(linger)

    def disconnect(self, address: str) -> None:
        """See `Connection.disconnect`."""
        if address in self._resting:
            _cancel(self._resting, address)
            self._redial(address)
        super().disconnect(address)
        self._read_events()  # a connection of which libzmq has told already is forgotten with the others
        self._hang_up(address)
        self.log.forget(address)
        self.dialled = [other for other in self.dialled if other != address]
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
        """End the connection with this id in ``links``, so that libzmq connects again; return its endpoint.

        What has arrived is still delivered, and libzmq sends all subscriptions again. None, and nothing is done, for
        a connection that the peer has made, that is unknown, or that has ended.
        """
        self._read_events()
        link = self.links.get(id)
        return link.endpoint if link is not None and link.endpoint is not None and self.end(id) else None

    def end(self, id: int, *, discard: bool = False) -> bool:
        """End the connection with this id in ``links``, whichever side has made it; return True if it was there.

        With ``discard`` what libzmq has not read of it is thrown away. libzmq connects again if this side has made it,
        and so does the peer if it has.
        """
        self._read_events()
        link, identity = self.links.get(id), self._identities.get(id)
        if self.closed or link is None or identity is None or not shut_down(link.fd, identity, discard=discard):
            return False
        if link.endpoint is not None:
            self.log.told(link.endpoint)  # by who wants it cut
        return True

    def peer(self, id: int) -> str:
        """Return the address of the peer of the connection with this id, as far as it is known: for log lines."""
        link, identity = self.links.get(id), self._identities.get(id)
        known = None if identity is None else identity.text
        return known or (link.address if link is not None else "a connection that has ended")

    def _rest_soon(self, endpoint: str, seconds: float) -> None:
        """Leave ``endpoint``, whose connection has ended, without one for ``seconds``, and then connect again.

        Before libzmq does so by itself, but not at once: what has arrived is read first.
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
        self.links.dial(endpoint)
        self.log.rests(endpoint)  # the reason is logged by the caller of `_rest_soon`
        self._resting[endpoint] = self._reactor.callLater(seconds, self._rested, endpoint)
        self.poke()

    def _let_go(self, endpoint: str) -> None:
        """Have libzmq connect no more; also not once more to send what waits, if that is subscriptions.

        They are sent to each new connection anyway. With the socket's linger libzmq would connect in the pause, after a
        connection that has ended before it had them all.
        """
        linger = self._socket.linger
        if self._socket.type == zmq.SUB:
            self._socket.linger = 0
        try:
            with suppress(zmq.ZMQError):  # libzmq may have forgotten the endpoint with the session
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
        """Forget connections of whose end libzmq does not tell."""
        alive = self.links.alive
        self._identities = {id: identity for id, identity in self._identities.items() if id in alive}

    # -- what libzmq tells -----------------------------------------------------------------------------------

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
        if endpoint is not None and not self.closed:
            self._note(event, endpoint, link)

    def _accepted(self, link: Link) -> None:
        identity = identify(link.fd, link.address, accepted=True)
        if identity is not None:
            self._identities[link.id] = identity

    def _note(self, event: SocketEvent, endpoint: str, link: Link | None) -> None:
        """Have what an event says of a dialled endpoint logged."""
        if event.name == "handshake_succeeded":
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
        self._identities.pop(link.id, None)
        self._read_again()  # to the end, behind which no message is of this connection
        if link.endpoint is not None and not self.closed:
            self._cancel(link.endpoint)
            self._ends[link.endpoint] = link
            again = self._reactor.callLater(_GIVEN_UP_AFTER, self._connect_again, link.endpoint)
            self._given_up[link.endpoint] = again

    # -- connecting again ------------------------------------------------------------------------------------

    def _cancel(self, endpoint: str) -> None:
        _cancel(self._given_up, endpoint)

    def _connect_again(self, endpoint: str) -> None:
        judged = self._given_up[endpoint]
        self._read_events()  # the reactor may have been held up for longer than the attempt took
        if self.closed or self._given_up.get(endpoint) is not judged or self.links.is_dialled(endpoint):
            return
        del self._given_up[endpoint]
        link = self._ends.pop(endpoint)
        self.log.refused(endpoint, self._disagreement(link), handshake=not link.ready)
        self._redial(endpoint)

    def _disagreement(self, link: Link) -> str:
        """Return why libzmq has given a connection up, and what to do about it."""
        if link.ready:
            limit = int(self._socket.get(zmq.SocketOption.MAXMSGSIZE))
            remedy = f": raise {self.size_option} here, or send less" if self.size_option else ""
            return f"cut off, since the peer sent a frame of more than {limit} bytes, or one that is no ZMTP{remedy}"
        if link.fault is not None and link.fault.value == _NEEDS_KEY:
            return (
                "the peer asks for a key (CURVE, PLAIN or GSSAPI), and this version of zroute has no encryption: let "
                "the peer do without (curve_server, plain_server), or put a program that has the key between"
            )
        if link.fault is not None:
            return f"the handshake failed ({link.fault.reason})"
        kind = zmq.SocketType(int(self._socket.type))
        return (
            f"another kind of socket is there, and {kind.name} needs {_FITTING.get(kind, 'one that fits')}: check "
            f"{self.endpoint_option}"
        )

    def _connect_by_ipv6(self, endpoint: str) -> None:
        """The host of ``endpoint`` has IPv6 addresses only, which libzmq does not look for by itself."""
        if self.closed or endpoint not in self.dialled or self.links.is_dialled(endpoint):
            return
        self._by_ipv6.add(endpoint)
        self._redial(endpoint)

    def _redial(self, endpoint: str) -> None:
        self._drop_rest()
        self._let_go(endpoint)
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
