"""The ZeroMQ sockets of one app: a SUB and an XPUB socket in a context.

`zroute.transports.zeromq` builds a transport from these sockets.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import zmq
from twisted.internet.defer import Deferred, succeed

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError
from zroute.options import LINGER_ABORT, LINGER_DRAIN, frame_limit
from zroute.sockets.access import CurveGuard, OpenGuard
from zroute.sockets.connection import Connection
from zroute.sockets.events import SocketEvent
from zroute.sockets.links import Links
from zroute.sockets.names import Names, has_addresses
from zroute.sockets.pubsub import SubConnection, XPubConnection
from zroute.transport import AppOptions, Receive

__all__ = ["SharedContext", "SocketPair"]

_log = logging.getLogger("zroute.sockets")

C = TypeVar("C", bound=Connection)


class SharedContext:
    """A ZeroMQ context that exists while apps use it.

    Apps that connect over ``inproc://`` share one context. The context is terminated when its last user has released
    it, and a new context is created for the next user. A ``zmq.Context`` that the caller passes is used unchanged, and
    never terminated here.
    """

    def __init__(self, context: zmq.Context[Any] | None = None) -> None:
        self._context = context
        self._foreign = context is not None
        self._shared = False
        self._users = 0

    def share(self) -> SharedContext:
        """Mark this context as shared with another app; return this object."""
        self._shared = True
        return self

    @property
    def is_private(self) -> bool:
        """True if only one app can use the context."""
        return not (self._foreign or self._shared)

    def acquire(self) -> zmq.Context[Any]:
        """Add a user, and return the context."""
        if self._context is None:
            self._context = zmq.Context()
            # Apps in tests would reach libzmq's default of 1,023 sockets before any limit of the system.
            self._context.set(zmq.ContextOption.MAX_SOCKETS, self._context.get(zmq.ContextOption.SOCKET_LIMIT))
        self._users += 1
        return self._context

    def release(self, reactor: Any) -> Deferred[None]:
        """Remove one user; terminate the context if no user is left.

        The Deferred fires when the context is terminated, after all messages were sent or dropped. If other users
        remain, the Deferred fires at once.
        """
        self._users -= 1
        done: Deferred[None] = Deferred()
        if self._users or self._foreign or self._context is None:
            done.callback(None)
            return done
        context, self._context = self._context, None
        watch = reactor.callLater(LINGER_DRAIN / 1000 + 2, _warn_of_hang)

        def terminated() -> None:
            if watch.active():
                watch.cancel()
            done.callback(None)

        def terminate() -> None:
            context.term()
            reactor.callFromThread(terminated)

        # A separate thread, because `term` blocks until all is sent, and the reactor's pool may be full or stopped.
        threading.Thread(target=terminate, name="zroute-term", daemon=True).start()
        return done


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _ports(name: str) -> set[str]:
    """Return the ports of the addresses at the end of a publisher's name."""
    return {_port(word.rstrip(",")) for word in name.split()}


def _without(endpoints: tuple[Endpoint, ...], endpoint: Endpoint) -> tuple[Endpoint, ...]:
    at = endpoints.index(endpoint)
    return endpoints[:at] + endpoints[at + 1 :]


def _warn_of_hang() -> None:
    _log.warning("can't terminate the ZeroMQ context: another part of the program has an open socket in this context")


class SocketPair:
    """The sockets of one app: one to subscribe, and one to publish.

    A socket without endpoints is not created.

    Args:
        reactor: The Twisted reactor that reads the sockets.
        app: The options of the app. The name of the app is the first word of log lines about the connections.
        subscribe_to: The endpoints of the SUB socket.
        publish_to: The endpoints of the XPUB socket.
    """

    def __init__(
        self,
        reactor: Any,
        app: AppOptions,
        *,
        subscribe_to: Iterable[Endpoint],
        publish_to: Iterable[Endpoint],
    ) -> None:
        self._app = app
        self._reactor = reactor
        self._context: SharedContext = app.context
        self._subscribe_to = tuple(subscribe_to)
        self._publish_to = tuple(publish_to)
        self._acquired = False
        self._subscriptions: tuple[bytes, ...] = ()
        self._links = Links()
        self._opened: list[tuple[Endpoint, str]] = []  # each endpoint of the SUB socket, and its resolved address
        self._names = Names(reactor, app.name, self._dial, self._vanish, prefer_ipv6=bool(app.options.get("ipv6")))
        self._vanishing: set[str] = set()
        self.on_vanished: Callable[[str], object] = self.hang_up
        """Called with an address that a host name no longer has. The function calls `hang_up` after reading."""
        self.on_closed: Callable[[frozenset[int], str], object] = lambda links, why: None
        """Called with the ids of connections that were closed because of a key, and the reason."""
        self.on_connected: Callable[[], None] = lambda: None
        """Called when a publisher has connected, for the first time or again."""
        self.bound: list[str] = []
        """The resolved addresses to which the XPUB socket is bound."""
        self.sub: SubConnection | None = None
        self.pub: XPubConnection | None = None
        self.guard: OpenGuard | CurveGuard | None = None
        """Sets the keys of each endpoint; see `zroute.sockets.access`."""

    @property
    def is_open(self) -> bool:
        """True if a socket is open."""
        return self.sub is not None or self.pub is not None

    def open(self, receive: Receive) -> None:
        """Open the sockets; bind and connect all endpoints.

        Messages are passed to ``receive``. The first message arrives after `subscribe`.

        Raises:
            EndpointError: An endpoint can't be opened. All sockets are closed again.
        """
        app, context = self._app, self._context.acquire()
        self._acquired = True
        try:
            # Open the publishing socket first: over inproc, a connect before the bind would have to wait for the bind.
            if self._publish_to:
                self.pub = self._watched(
                    XPubConnection(self._reactor, context=context, sndhwm=app.send_queue, **app.options)
                )
                self.pub.log.name, self.pub.endpoint_option, self.pub.size_option = app.name, "pub=", None
                self.pub.limit_subscriptions(app.max_subscription_bytes)
                if not app.drops:
                    self.pub.refuse_when_full()
                opened = [(endpoint.bind, self.pub.open(endpoint)) for endpoint in self._publish_to]
                self.bound = [address for bind, address in opened if bind]
            if self._subscribe_to:
                limit, queue = frame_limit(app.max_message), app.receive_queue
                self.sub = self._watched(
                    # ``list`` is never called, because ``receive`` below replaces the function that would call it.
                    SubConnection(self._reactor, list, context=context, maxmsgsize=limit, rcvhwm=queue, **app.options)
                )
                self.sub.log.name, self.sub.endpoint_option = app.name, "sub="
                self.sub.size_option = f"App(limits=Limits(max_message={app.max_message}))"
                self.sub.receive = receive
                self.sub.watch(self._seen)
                self.sub.on_closed = self.on_closed
                self.sub.subscribed = lambda: self._subscriptions
                self._links = self.sub.links
                for endpoint in self._subscribe_to:
                    self._opened.append((endpoint, self._open(endpoint)))
        except BaseException:
            self.close(LINGER_ABORT)
            raise

    # -- changes of endpoints

    def add_subscribed(self, endpoint: Endpoint) -> str:
        """Open a further endpoint of the SUB socket; return its resolved address."""
        address = self._open(endpoint)
        self._opened.append((endpoint, address))
        self._subscribe_to += (endpoint,)
        return address

    def _open(self, endpoint: Endpoint) -> str:
        """Open an endpoint of the SUB socket, or follow its host name."""
        assert self.sub is not None
        if not has_addresses(endpoint):
            self._names.check_peer(endpoint.address, endpoint.peer)
            address = self.sub.open(endpoint)
            self._names.keep(address, endpoint.peer)
            return address
        self._names.follow(endpoint.address, endpoint.peer)
        return endpoint.address

    def drop_subscribed(self, endpoint: Endpoint, address: str) -> None:
        """Close an endpoint of the SUB socket; its queued messages are dropped."""
        assert self.sub is not None
        if has_addresses(endpoint):
            for each in self._names.forget(address):
                self._vanishing.add(each)
                self.hang_up(each)
        else:
            (self.sub.unbind if endpoint.bind else self.sub.disconnect)(address)
            self._names.release(address)
        self._subscribe_to = _without(self._subscribe_to, endpoint)
        self._opened = [(each, at) for each, at in self._opened if at != address]

    @property
    def subscribed(self) -> list[str]:
        """The addresses of the SUB socket, in the order of its endpoints.

        For an endpoint with a host name, the result contains the name instead of the addresses.
        """
        return [address for _, address in self._opened]

    # -- addresses of host names

    def _dial(self, address: str) -> None:
        """Connect the SUB socket to an address of a host name."""
        endpoint = self._names.endpoint_at(address)
        if address in self._vanishing:  # the socket is still connected to this address
            if self.sub is not None and self.sub.peer_at(address) != endpoint.peer:
                raise EndpointError("it is still connected, with the key of another peer", endpoint=str(endpoint))
            self._vanishing.discard(address)
        elif self.sub is not None:
            self.sub.open(endpoint)

    def _vanish(self, address: str) -> None:
        self._vanishing.add(address)
        self.on_vanished(address)

    def hang_up(self, address: str) -> bool:
        """Disconnect an address that its host name no longer has.

        The queued messages of the connection are dropped. Returns False, and does nothing, if the name has the address
        again.
        """
        if address not in self._vanishing or self.sub is None:
            return False
        self._vanishing.discard(address)
        self.sub.disconnect(address)
        return True

    def add_published(self, endpoint: Endpoint) -> str:
        """Open a further endpoint of the XPUB socket; return its resolved address."""
        if self.pub is None:
            raise EndpointError(
                f"can't add {endpoint}: {self._app.name!r} was started without an endpoint to publish to, so it has no "
                "socket for this endpoint: set at least one endpoint in App(pub=…)",
                endpoint=str(endpoint),
            )
        address = self.pub.open(endpoint)
        self._publish_to += (endpoint,)
        if endpoint.bind:
            self.bound.append(address)
        return address

    def drop_published(self, endpoint: Endpoint, address: str) -> None:
        """Close an endpoint of the XPUB socket, and the connections of its subscribers."""
        assert self.pub is not None
        (self.pub.unbind if endpoint.bind else self.pub.disconnect)(address)
        self._publish_to = _without(self._publish_to, endpoint)
        self.bound = [each for each in self.bound if each != address]

    def links_at(self, address: str) -> frozenset[int]:
        """Return the connections of the SUB socket at an address.

        ``address`` is an item of `subscribed`, or an address of a host name.
        """
        alive = ((id, self._links.get(id)) for id in self._links.alive)
        at = (address, *self._names.of(address))
        return frozenset(id for id, link in alive if link is not None and (link.endpoint or link.address) in at)

    @property
    def readers(self) -> list[SubConnection]:
        """The sockets that receive."""
        return [] if self.sub is None else [self.sub]

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that sends a message, or None without a publishing socket.

        The function takes one frame, or the parts of a message if ``multipart`` is True.
        """
        if self.pub is None:
            return None
        if not multipart:
            return self.pub.send_frame
        send = self.pub.send
        return lambda parts: send(*parts)

    def _watched(self, connection: C) -> C:
        connection.guard = self.guard
        if _log.isEnabledFor(logging.DEBUG):  # checked once, so that events cost nothing unless they are logged
            connection.watch(lambda event: _log.debug("%s %s", type(connection).__name__, event))
        return connection

    def use(self, receive: Receive) -> None:
        """Pass messages to ``receive`` from now on."""
        if self.sub is not None:
            self.sub.receive = receive

    def pause(self) -> None:
        """Stop reading until `resume`; subscriptions and connections stay."""
        if self.sub is not None:
            self.sub.pause()

    def resume(self) -> None:
        """Resume reading."""
        if self.sub is not None:
            self.sub.resume()

    def readable(self) -> bool:
        """Return True if a message is waiting to be read, even while paused."""
        return self.sub is not None and self.sub.readable()

    def read(self) -> None:
        """Read some of the waiting messages, even while paused."""
        if self.sub is not None:
            self.sub.paused = False
            self.sub.doRead()

    def discard(self, most: int) -> int:
        """Discard up to ``most`` waiting messages; return their number."""
        return 0 if self.sub is None else self.sub.discard(most)

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Replace the subscriptions with these prefixes, in this order."""
        if self.sub is None:
            return
        wanted, before = dict.fromkeys(subscriptions), dict.fromkeys(self._subscriptions)
        # New prefixes first: topics that an old and a new prefix cover would otherwise be unsubscribed for a moment.
        for prefix in wanted:
            if prefix not in before:
                self.sub.subscribe(prefix)
        for prefix in before:
            if prefix not in wanted:
                self.sub.unsubscribe(prefix)
        self._subscriptions = tuple(wanted)

    def resubscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Unsubscribe from the prefixes that are active, and subscribe to them again."""
        if self.sub is None:
            return
        known = set(self._subscriptions)
        for prefix in subscriptions:
            if prefix in known:
                # A proxy hides a subscription that it already knows, so it is withdrawn first.
                self.sub.unsubscribe(prefix)
                self.sub.subscribe(prefix)

    def request(self, topic: bytes) -> None:
        """Send a message to all publishers: subscribe to ``topic``, then unsubscribe."""
        if self.sub is not None:
            self.sub.subscribe(topic)
            self.sub.unsubscribe(topic)

    def read_soon(self) -> None:
        """Read in the next turn of the reactor, even if no message has arrived."""
        if self.sub is not None and not self.sub.paused:
            self.sub.resume()

    # -- connections ------------------------------------------------------------------------------------

    @property
    def peers(self) -> int:
        """The number of connected publishers.

        libzmq sends no events for ``inproc`` connections, so each ``inproc`` endpoint counts as connected.
        """
        inside = sum(endpoint.address.startswith("inproc://") for endpoint in self._subscribe_to)
        return inside + len(self._links)

    @property
    def links(self) -> frozenset[int]:
        """The ids of all connections except those over ``inproc``. An id is never reused."""
        return self._links.alive

    def silent(self, answered: Iterable[str]) -> list[str]:
        """Return the endpoints from which no publisher has answered.

        ``answered`` contains the names of the publishers that have answered. The result contains the endpoints without
        a connection, and the endpoints whose port does not occur in these names. If a name contains none of our ports,
        its publisher is behind a proxy, and the result contains only the endpoints without a connection.
        """
        names = [_ports(name) for name in answered]
        ports = {_port(endpoint.address) for endpoint in self._subscribe_to}
        plain = all(each & ports for each in names)
        heard: set[str] = set().union(*names)
        silent = []
        for endpoint, address in self._each_end():
            if not self._is_connected(address):
                silent.append(f"{endpoint} (not connected)")
            elif plain and _port(endpoint.address) not in heard:
                silent.append(str(endpoint))
        return silent

    def _each_end(self) -> Iterator[tuple[Endpoint, str]]:
        """Yield each endpoint of the SUB socket and its resolved address.

        Each address of a host name counts as an endpoint. A name without an address counts as one endpoint.
        """
        for endpoint, address in self._opened:
            at = self._names.of(address)
            yield from ((Endpoint(each, bind=False), each) for each in at)
            if not at:
                yield endpoint, address

    def unconnected(self) -> list[str]:
        """Return the endpoints without a connected publisher."""
        return [str(endpoint) for endpoint, address in self._each_end() if not self._is_connected(address)]

    def _is_connected(self, address: str) -> bool:
        return address.startswith("inproc://") or self._links.connected(address)

    def expect_end(self, name: str, links: Iterable[int]) -> None:
        """Record that a publisher is stopping, so that its disconnection is expected.

        ``name`` is the name of the publisher, and ``links`` contains the connections that delivered its goodbye. The
        connections identify the endpoint, because other hosts may use the same ports, and the publisher may be behind a
        proxy. If these connections are unknown, the publisher's port identifies the endpoint, unless several endpoints
        have this port.
        """
        if self.sub is None:
            return
        ports = _ports(name)
        dialled = [address for address in self.sub.dialled if _port(address) in ports]
        heard = {self.dialled(link) for link in links} - {None}
        if heard or len(dialled) > 1:
            dialled = [address for address in dialled if address in heard]
        for address in dialled:
            self.sub.log.ended(address)

    def dialled(self, link: int) -> str | None:
        """Return the endpoint of the connection with this id, or None.

        The result is None if the publisher has connected to us, or if the connection has ended.
        """
        found = self._links.get(link)
        return None if found is None else found.endpoint

    def cut(self, link: int) -> str | None:
        """Close the connection with this id, so that libzmq reconnects.

        See `PersistentConnection.cut`.
        """
        return None if self.sub is None else self.sub.cut(link)

    def listen_closely(self, closely: bool) -> None:
        """Start or stop recording the connection that delivers each message.

        See `came_by` and `heard`. If all endpoints are ``inproc``, connections are unknown and can't be recorded.
        """
        if self.sub is not None and not all(each.address.startswith("inproc://") for each in self._subscribe_to):
            self.sub.listen_closely(closely)

    @property
    def came_by(self) -> int | None:
        """The id of the connection that delivered the current message, or None.

        The result is None over ``inproc``, while `listen_closely` is off, and if the connection is unknown or has
        ended.
        """
        origins = None if self.sub is None else self.sub.origins
        return None if origins is None else origins.came_by

    def heard(self) -> set[int]:
        """Return the ids of connections that delivered a part since the last call.

        The result is empty while `listen_closely` is off.
        """
        origins = None if self.sub is None else self.sub.origins
        return set() if origins is None else origins.heard()

    def _seen(self, event: SocketEvent) -> None:
        if event.name == "handshake_succeeded":
            self.on_connected()

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that tries to send a message, or None.

        The function returns True if it has sent the message. If the queue of a subscriber is full, the function returns
        False, and no subscriber receives the message.
        Without a publishing socket, the result is None. The arguments are the same as for `sender`.
        """
        if self.pub is None:
            return None
        return self.pub.try_send if multipart else self.pub.try_frame

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Report each change of a subscription at the publishing socket.

        ``on_subscription`` is called with the prefix, and with True if the subscription is now active. Returns False
        without a publishing socket.
        """
        if self.pub is None:
            return False
        self.pub.on_subscription = on_subscription
        return True

    def emptied(self) -> bool:
        """Return True if no message was left to read at some time since the last call."""
        if self.sub is None:
            return True
        emptied, self.sub.emptied = self.sub.emptied, False
        self.sub.poke()  # if no message arrives, nothing else checks the socket
        return emptied

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[None]:
        """Close the sockets.

        The Deferred fires when all queued messages are sent, or after ``linger`` milliseconds.
        """
        # Before the sockets, so that a look-up that ends now can't connect a closed socket.
        self._names.close()
        if self.sub is not None:
            self.sub.close(LINGER_ABORT)  # its only unsent messages are subscriptions for absent peers
        if self.pub is not None:
            self.pub.close(linger)
        self.sub = self.pub = None
        if not self._acquired:
            return succeed(None)
        self._acquired = False
        return self._context.release(self._reactor)
