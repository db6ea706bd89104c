"""The guards of sockets: who may connect, without keys or with CURVE keys.

CURVE is the encryption and authentication of ZeroMQ (RFC 26).

Each socket of an app has a guard, which sets libzmq's options before each bind and connect. libzmq copies them into the
new listener or connection, so one socket can have several endpoints with different keys. `OpenGuard` is for apps
without keys. It refuses to bind an address that other hosts can reach. `CurveGuard` is for apps with keys:

- A bound endpoint requires CURVE. Its domain, ZAP_ENFORCE_DOMAIN and the `ZapHandler` together refuse every key that is
  not in the directory of peers. Without any one of the three, libzmq lets everybody in.
- A connected endpoint names its peer, and requires the key of that peer. CURVE can't trust a key on first use, because
  a client needs the key of the server before it can send anything.
- ``inproc`` needs no keys, because both ends are in one process.

libzmq puts the name of a key into the queue of received messages, where it takes the room of one message for ever
(measured with 4.3.5). A queue of one message would therefore never receive anything, so it gets room for two.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any
from weakref import WeakSet

import zmq

from zroute.endpoints import Access, Endpoint
from zroute.sockets.accepted import ACCEPTED
from zroute.sockets.admissions import Admissions
from zroute.sockets.connection import Guarded
from zroute.sockets.events import SocketEvent
from zroute.sockets.keys import PUBLIC, Key, read_secret
from zroute.sockets.peers import PeerKeys
from zroute.sockets.zap import FULL, REFUSED, ZapHandler
from zroute.stats import Stats
from zroute.throttle import ThrottledLog

__all__ = ["CurveGuard", "KeyFiles", "OpenGuard", "guard_for"]

_log = logging.getLogger("zroute")

_LOOK = 0.5
"""The time in seconds between two looks into the directory of peers. A removed key is refused within a second."""

_LOOK_AGAIN = 0.1
"""The shortest time in seconds between two looks for unknown keys. With 1,000 keys, a look takes 3 ms."""

_SUMMARIZED = 60.0
"""The time in seconds in which a refusal of one key is logged once. A program that is refused tries every 30 s."""

_SEPARATE = 20
"""The number of keys whose refusals are logged separately. An attacker can create any number of keys."""

_MORE_KEYS = "give further programs a key of their own"
_EPIPE = 32
_MISMATCH = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
_WRONG_KEY = (zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC, zmq.PROTOCOL_ERROR_ZMTP_KEY_EXCHANGE)
_numbers = count(1)


class KeyFiles:
    """The key files of an app: its own secret file, and the directory of its peers.

    Args:
        access: The paths.
        fault: Called with a text for each fault in the directory that does not stop the app.

    Raises:
        KeyFileError: The secret file can't be used, or other users can write to the directory.
    """

    def __init__(self, access: Access, fault: Callable[[str], object]) -> None:
        assert access.keys is not None
        assert access.directory is not None
        self._access = access
        self.own: Key = read_secret(access.keys)
        self.anyone = access.peers == "anyone"
        self.peers = PeerKeys(access.directory, fault, optional=self.anyone)

    def check(self, endpoint: Endpoint) -> None:
        """Raise EndpointError if the endpoint connects to an unknown peer."""
        if not endpoint.bind and not endpoint.address.startswith("inproc://"):
            self.key_at(endpoint)

    def key_at(self, endpoint: Endpoint) -> Key:
        """Return the key of the peer to which an endpoint connects.

        Raises:
            EndpointError: The endpoint names no peer, or the directory does not contain its key.
        """
        self._access.check(endpoint)
        assert endpoint.peer is not None
        self.peers.look()  # the file may be new
        return self.peers.key_of(endpoint.peer)

    @property
    def described(self) -> str:
        """The name and the fingerprint of the own key."""
        return f"{self.own.name} ({self.own.fingerprint})"

    @property
    def admitted(self) -> str:
        """The programs that may connect, as text."""
        if self.anyone:
            return "accepts any key (peers='anyone')"
        names = ", ".join(key.name for key in self.peers)
        return f"may connect: {names or 'no program, because no key is there'} ({self.peers.path})"

    def rights(self, ends: Iterable[Endpoint]) -> str:
        """Return who may connect to these endpoints, as text.

        If no endpoint binds, no program can connect, and the keys are those of the programs to which the app connects.
        """
        needing = [endpoint for endpoint in ends if not endpoint.address.startswith("inproc://")]
        if not needing or any(endpoint.bind for endpoint in needing):
            return self.admitted
        names = sorted({endpoint.peer for endpoint in needing if endpoint.peer is not None})
        return f"connects only to: {', '.join(names) or 'no program'} ({self.peers.path})"


class OpenGuard:
    """The guard of an app without keys.

    ``access`` tells whether the app may bind addresses that other hosts can reach. In ``stats``, the counter
    ``refused`` is increased.
    """

    secure = False

    def __init__(self, access: Access, stats: Stats) -> None:
        self._access = access
        self._stats = stats

    def check(self, endpoint: Endpoint) -> None:
        """Raise EndpointError if the endpoint names a peer, which needs keys."""
        self._access.check(endpoint)

    def protect(self, socket: zmq.Socket[Any], endpoint: Endpoint) -> None:
        """Refuse an endpoint that names a peer; see `check`."""
        self.check(endpoint)

    def check_bound(self, endpoint: Endpoint, resolved: str) -> None:
        """Raise EndpointError if other hosts can reach the address."""
        self._access.check_open(endpoint.resolved(resolved))

    def watch(self, connection: Guarded) -> None:
        """Without keys, no connection is closed."""

    def fault(self, endpoint: Endpoint, event: SocketEvent) -> None:
        """Without keys, the connection itself explains failed handshakes."""

    def failed(self, event: SocketEvent) -> str | None:
        """Return cause and remedy if the peer has keys, else None.

        Other failures are not logged without keys: any scan of the ports causes them.
        """
        if event.name == "handshake_failed_protocol" and event.value == _MISMATCH:
            return "the peer has keys or a password, but this app has no keys: set keys=…, or start the peer without"
        return None

    def limited(self) -> None:
        """Count a connection that was closed because of a limit."""
        self._stats.refused += 1

    def known(self, name: str) -> None:
        """Without keys, no key has connections."""


class CurveGuard:
    """The guard of an app with keys.

    Args:
        reactor: The reactor of the sockets.
        access: The paths of the app's secret file and of the directory of peers.
        name: The name of the app, for log lines.
        stats: Its counters ``refused`` and ``handshakes_failed`` are increased.

    Raises:
        KeyFileError: The secret file can't be used.
    """

    secure = True

    def __init__(self, reactor: Any, access: Access, name: str, stats: Stats) -> None:
        self._reactor = reactor
        self._name = name
        self._stats = stats
        self._reports = ThrottledLog(_log, reactor)
        self._refusals = ThrottledLog(_log, reactor, burst=1, window=_SUMMARIZED)
        self._files = KeyFiles(access, self._report_fault)
        self.peers = self._files.peers
        # Two apps of one context share the handler, and the domain tells their sockets apart.
        self._domain = b"zroute-%d" % next(_numbers)
        self._handler: ZapHandler | None = None
        self._next_look: Any = None
        self._looked = -_LOOK_AGAIN
        self._watched: WeakSet[Guarded] = WeakSet()
        self._admissions = Admissions()
        self._binds = False  # True if programs can connect

    def begin(self, context: zmq.Context[Any], ends: Iterable[Endpoint] = ()) -> None:
        """Start to decide about keys, in the context of the sockets.

        The log line says who may connect to ``ends``, the first endpoints of the sockets.

        Raises:
            EndpointError: The context has a ZAP handler of another library.
        """
        self._handler = ZapHandler.join(self._reactor, context, self._domain, self._decide)
        _log.info("%s: encrypts as %s; %s", self._name, self._files.described, self._files.rights(ends))
        self._next_look = self._reactor.callLater(_LOOK, self._look_again)

    def end(self) -> None:
        """Refuse all further connections."""
        # Before the sockets have closed: a connection that comes now finds no handler, and is refused.
        if self._handler is not None:
            self._handler.leave(self._domain)
            self._handler = None
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        self._reports.close()
        self._refusals.close()

    def check(self, endpoint: Endpoint) -> None:
        """Raise EndpointError if the endpoint connects to an unknown peer."""
        self._files.check(endpoint)

    def protect(self, socket: zmq.Socket[Any], endpoint: Endpoint) -> None:
        """Set the keys of an endpoint.

        Raises:
            EndpointError: The endpoint connects, and the key of its peer is unknown.
        """
        if endpoint.address.startswith("inproc://"):
            return
        if endpoint.bind:
            self._binds = True
            # Each of the three is needed: without domain or enforcement, libzmq asks no handler in some cases.
            socket.set(zmq.SocketOption.CURVE_SERVER, 1)
            socket.set(zmq.SocketOption.ZAP_DOMAIN, self._domain)
            socket.set(zmq.SocketOption.ZAP_ENFORCE_DOMAIN, 1)
            if socket.get(zmq.SocketOption.RCVHWM) == 1:
                socket.set(zmq.SocketOption.RCVHWM, 2)
        else:
            # The last bind of this socket may have made it a server.
            socket.set(zmq.SocketOption.CURVE_SERVER, 0)
            socket.set(zmq.SocketOption.CURVE_SERVERKEY, self._files.key_at(endpoint).public)
        own = self._files.own
        socket.set(zmq.SocketOption.CURVE_PUBLICKEY, own.public)
        socket.set(zmq.SocketOption.CURVE_SECRETKEY, own.secret or b"")

    def check_bound(self, endpoint: Endpoint, resolved: str) -> None:
        """An address with keys may be open."""

    def watch(self, connection: Guarded) -> None:
        """Close connections of ``connection`` when a key is revoked."""
        self._watched.add(connection)

    def fault(self, endpoint: Endpoint, event: SocketEvent) -> str | None:
        """Return the reason and the remedy for a failed handshake, or None."""
        if event.name == "handshake_failed_auth":
            if event.value == 500:
                return f"the peer could not check the key of {self._files.described}: see the log of the peer"
            public = f"{self._files.own.name}{PUBLIC}"
            return (
                f"the peer refuses the key of {self._files.described}: give {public} to the peer, and run there: "
                f"zroute keys authorize {public} --peers DIR"
            )
        if event.name == "handshake_failed_protocol" and event.value == _MISMATCH:
            return "the peer has no keys: start it with keys=…, or connect without keys"
        if event.name == "handshake_failed_no_detail" and event.value == _EPIPE:
            return (
                f"the peer closes the connection during the handshake: it does not have the key in "
                f"{self.peers.path}/{endpoint.peer}{PUBLIC}, it has no keys, its socket has an incompatible "
                "type, or our key has too many connections there"
            )
        return None

    def failed(self, event: SocketEvent) -> str | None:
        """Count a failed handshake of an accepted peer; return cause and remedy.

        If libzmq's event does not show the cause, the likely causes are in their order of likelihood. The result is
        None for a refusal, which `_decide` has counted and logged.
        """
        if event.name == "handshake_failed_auth":
            return None
        self._stats.handshakes_failed += 1
        public = f"{self._files.own.name}{PUBLIC}"
        if event.name == "handshake_failed_protocol" and event.value == _MISMATCH:
            return "the peer has no keys: start it with keys=…"
        if event.name == "handshake_failed_protocol" and event.value in _WRONG_KEY:
            return f"the peer expects the key of another program here: give {public} to the peer"
        if event.value == errno.EAGAIN:
            return "the peer has sent no complete handshake in time: it is not a ZeroMQ program, or it was suspended"
        return (
            f"the peer has no keys, or it is not a ZeroMQ program, or it expects the key of another program here (give "
            f"{public} to the peer)"
        )

    def limited(self) -> None:
        """Count a connection that was closed because of a limit."""
        self._stats.refused += 1

    def known(self, name: str) -> tuple[str, str] | None:
        """Record the key of a connection.

        Return a reason and a remedy if the key has too many connections, else None.
        """
        self._admissions.known(name)
        most = ACCEPTED.most_per_key
        if name and self._connections_of(name) > most:
            return f"its key {name} has more than {most} connections", _MORE_KEYS
        return None

    def _connections_of(self, name: str) -> int:
        return sum(socket.connections_of(name) for socket in self._watched) + self._admissions.of(name)

    def _decide(self, public: bytes, host: str) -> str | int:
        name = self.peers.name_of(public)
        if name is None and self._files.anyone:
            return ""
        if name is None and self._reactor.seconds() - self._looked >= _LOOK_AGAIN:
            self._look()
            name = self.peers.name_of(public)
        if name is None:
            self._stats.refused += 1
            key = Key("", zmq.utils.z85.encode(public))
            text = (
                "%s: refused a connection from %s: its key %s (%s) is not in %s. To accept it: zroute keys authorize "
                "FILE --peers %s"
            )
            facts = self._name, host, key.public.decode(), key.fingerprint, self.peers.path, self.peers.path
            self._report_refusal("refused", key, text, *facts)
            return REFUSED
        return self._admit(Key(name, zmq.utils.z85.encode(public)), host)

    def _report_refusal(self, kind: str, key: Key, text: str, *facts: object) -> None:
        """Log a refusal, once a minute for each key.

        The refusals of further keys share a few lines.
        """
        if (kind, key.public) in self._refusals or len(self._refusals) < _SEPARATE:
            subject = f"{self._name}: refused connections of the key {key.fingerprint}"
            self._refusals((kind, key.public), subject, logging.WARNING, text, *facts)
        else:
            self._reports(kind, f"{self._name}: refused connections", logging.WARNING, text, *facts)

    def _admit(self, key: Key, host: str) -> str | int:
        """Let a known key connect, unless it has too many connections.

        ZAP does not tell which connection the key belongs to. It is known if only one connection from the host is in
        its handshake; otherwise, it becomes known with the first frame (see `PersistentConnection.learn`), and until
        then its admission counts.
        """
        name, sockets = key.name, tuple(self._watched)
        now = self._reactor.seconds()
        unknown = [socket.unknown_keys() for socket in sockets]
        self._admissions.trim(sum(each.settled for each in unknown), sum(each.greeting for each in unknown), now)
        if self._connections_of(name) >= ACCEPTED.most_per_key:
            self._stats.refused += 1
            text = "%s: refused a connection from %s: its key %s has %d connections: %s"
            facts = self._name, host, name, ACCEPTED.most_per_key, _MORE_KEYS
            self._report_refusal("full", key, text, *facts)
            return FULL
        # Only now, because a search among thousands of connections is the largest part of a decision.
        found = [(socket, id) for socket in sockets for id in socket.unnamed(host)]
        self._admissions.add(name, now + max((each.handshake for each in unknown), default=0.0))
        if len(found) == 1 and all(socket.is_clear(host) for socket in sockets):
            socket, id = found[0]
            socket.name(id, name)
        return name

    def _look_again(self) -> None:
        self._next_look = self._reactor.callLater(_LOOK, self._look_again)
        self._look()

    def _look(self) -> None:
        self._looked = self._reactor.seconds()
        changed = self.peers.look()
        for key in (*changed.came, *changed.went):
            self._refusals.end(("refused", key.public))  # the next refusal has another cause, so it is logged
        new = {key.name: key for key in changed.came}
        # Old keys first: the connections of a replaced key end before the endpoints are opened with the new key.
        for key in changed.went:
            after = new.pop(key.name, None)
            if after is None:
                why = f"the key of {key.name} was revoked"
                _log.info("%s: %s (%s)", self._name, why, key.fingerprint)
            else:
                why = f"the key of {key.name} was replaced"
                _log.info("%s: %s (%s, before: %s)", self._name, why, after.fingerprint, key.fingerprint)
            for connection in tuple(self._watched):
                if not self._files.anyone:
                    connection.end_accepted(key.name, why)
                connection.end_dialled(key.name, why)
        for key in new.values():
            if self._files.anyone or not self._binds:
                _log.info("%s: the key of %s was added (%s)", self._name, key.name, key.fingerprint)
            else:
                _log.info("%s: %s may connect now (%s)", self._name, key.name, key.fingerprint)
        for key in changed.came:
            for connection in tuple(self._watched):
                connection.dial_again(key.name)

    def _report_fault(self, text: str) -> None:
        self._reports("file", f"{self._name}: key files", logging.WARNING, "%s: %s", self._name, text)


def guard_for(reactor: Any, access: Access, name: str, stats: Stats) -> OpenGuard | CurveGuard:
    """Return the guard of an app.

    Raises:
        KeyFileError: The secret file of the app can't be used.
    """
    if access.keys is None:
        return OpenGuard(access, stats)
    return CurveGuard(reactor, access, name, stats)
