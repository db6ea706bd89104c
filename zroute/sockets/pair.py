"""The ZeroMQ sockets of one app: a SUB and an XPUB socket in a context.

`zroute.transports.zeromq` makes a transport of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import zmq
from twisted.internet.defer import Deferred, succeed

from zroute.endpoints import Endpoint
from zroute.options import LINGER_ABORT, LINGER_DRAIN, MAX_SUBSCRIPTION_BYTES, frame_limit
from zroute.sockets.connection import Connection
from zroute.sockets.events import SocketEvent
from zroute.sockets.links import Links
from zroute.sockets.pubsub import SubConnection, XPubConnection
from zroute.transport import Receive

__all__ = ["SharedContext", "SocketPair"]

_log = logging.getLogger("zroute.sockets")

C = TypeVar("C", bound=Connection)


class SharedContext:
    """A ZeroMQ context that lives while it has users.

    Apps that connect over ``inproc://`` use the same one. It is terminated after its last user, and a new context is
    made for the next one. A ``zmq.Context`` of the caller is used as it is, and never terminated here.
    """

    def __init__(self, context: zmq.Context[Any] | None = None) -> None:
        self._context = context
        self._foreign = context is not None
        self._shared = False
        self._users = 0

    def share(self) -> SharedContext:
        """Mark the context as shared with another app; return it."""
        self._shared = True
        return self

    @property
    def is_private(self) -> bool:
        """True if only one app can use the context."""
        return not (self._foreign or self._shared)

    def acquire(self) -> zmq.Context[Any]:
        """Return the context, for one more user."""
        if self._context is None:
            self._context = zmq.Context()
            # Apps in tests would reach libzmq's default of 1,023 sockets before any limit of the system.
            self._context.set(zmq.ContextOption.MAX_SOCKETS, self._context.get(zmq.ContextOption.SOCKET_LIMIT))
        self._users += 1
        return self._context

    def release(self, reactor: Any) -> Deferred[None]:
        """Remove one user; terminate the context if it was the last.

        The Deferred fires when the context is terminated: all messages are sent or dropped. For other users it fires at
        once.
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

        # A separate thread: `term` blocks until all is sent, and the reactor's thread pool may be full or stopped.
        threading.Thread(target=terminate, name="zroute-term", daemon=True).start()
        return done


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _ports(name: str) -> set[str]:
    """Return the ports of the addresses at the end of a publisher's name."""
    return {_port(word.rstrip(",")) for word in name.split()}


def _warn_of_hang() -> None:
    _log.warning("the ZeroMQ context does not terminate: another part of the program has an open socket in it")


class SocketPair:
    """The sockets of one app: one to subscribe, one to publish.

    A socket without endpoints is not made.

    Args:
        reactor: The Twisted reactor that the sockets are read on.
        context: The ZeroMQ context.
        subscribe_to: The endpoints of the SUB socket.
        publish_to: The endpoints of the XPUB socket.
        max_message: The bytes of the largest message body that is received.
        max_subscription_bytes: The bytes of live subscriptions that one peer may have.
        drops: False if `try_sender` must refuse a message that a subscriber has no room for.
        name: The first word of log lines about the connections.
    """

    def __init__(
        self,
        reactor: Any,
        context: SharedContext,
        *,
        subscribe_to: Iterable[Endpoint],
        publish_to: Iterable[Endpoint],
        max_message: int,
        max_subscription_bytes: int = MAX_SUBSCRIPTION_BYTES,
        drops: bool = True,
        name: str = "zroute",
    ) -> None:
        self._drops = drops
        self._name = name
        self._reactor = reactor
        self._context = context
        self._subscribe_to = tuple(subscribe_to)
        self._publish_to = tuple(publish_to)
        self._max_message = max_message
        self._max_subscription_bytes = max_subscription_bytes
        self._acquired = False
        self._subscriptions: tuple[bytes, ...] = ()
        self._links = Links()
        self._opened: dict[Endpoint, str] = {}
        self.on_connected: Callable[[], None] = lambda: None
        """Called when a publisher has connected, for the first time or again."""
        self.bound: list[str] = []
        """The resolved addresses that the XPUB socket is bound to."""
        self.sub: SubConnection | None = None
        self.pub: XPubConnection | None = None

    @property
    def is_open(self) -> bool:
        """True if a socket is open."""
        return self.sub is not None or self.pub is not None

    def open(self, receive: Receive) -> None:
        """Open the sockets; bind and connect all endpoints.

        Messages go to ``receive``, the first of them after `subscribe`.

        Raises:
            EndpointError: An endpoint can't be opened. All sockets are closed again.
        """
        context = self._context.acquire()
        self._acquired = True
        try:
            # Publishers first: over inproc, a connect before the bind would have to wait for it.
            if self._publish_to:
                self.pub = self._watched(XPubConnection(self._reactor, context=context))
                self.pub.log.name, self.pub.endpoint_option, self.pub.size_option = self._name, "pub=", None
                self.pub.limit_subscriptions(self._max_subscription_bytes)
                if not self._drops:
                    self.pub.refuse_when_full()
                opened = [(endpoint.bind, self.pub.open(endpoint)) for endpoint in self._publish_to]
                self.bound = [address for bind, address in opened if bind]
            if self._subscribe_to:
                limit = frame_limit(self._max_message)
                self.sub = self._watched(SubConnection(self._reactor, list, context=context, maxmsgsize=limit))
                self.sub.log.name, self.sub.endpoint_option = self._name, "sub="
                self.sub.size_option = f"max_message={self._max_message}"
                self.sub.receive = receive
                self.sub.watch(self._seen)
                self.sub.subscribed = lambda: self._subscriptions
                self._links = self.sub.links
                for endpoint in self._subscribe_to:
                    self._opened[endpoint] = self.sub.open(endpoint)
        except BaseException:
            self.close(LINGER_ABORT)
            raise

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that sends a message, or None without a publishing socket.

        It takes one frame, or the parts of a message if ``multipart``.
        """
        if self.pub is None:
            return None
        if not multipart:
            return self.pub.send_frame
        send = self.pub.send
        return lambda parts: send(*parts)

    def _watched(self, connection: C) -> C:
        if _log.isEnabledFor(logging.DEBUG):  # checked once: events that are not shown cost nothing
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
        """Read again."""
        if self.sub is not None:
            self.sub.resume()

    def readable(self) -> bool:
        """Return True if a message waits to be read, also while paused."""
        return self.sub is not None and self.sub.readable()

    def read(self) -> None:
        """Read some of the messages that wait, even while paused."""
        if self.sub is not None:
            self.sub.paused = False
            self.sub.doRead()

    def discard(self, most: int) -> int:
        """Discard up to ``most`` messages that wait; return their number."""
        return 0 if self.sub is None else self.sub.discard(most)

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Replace the subscriptions by these prefixes, in this order."""
        if self.sub is None:
            return
        wanted, before = dict.fromkeys(subscriptions), dict.fromkeys(self._subscriptions)
        for prefix in wanted:
            if prefix not in before:
                self.sub.subscribe(prefix)
        for prefix in before:
            if prefix not in wanted:
                self.sub.unsubscribe(prefix)
        self._subscriptions = tuple(wanted)

    def resubscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Unsubscribe and subscribe again to the live ones of these prefixes."""
        if self.sub is None:
            return
        known = set(self._subscriptions)
        for prefix in subscriptions:
            if prefix in known:
                self.sub.unsubscribe(prefix)
                self.sub.subscribe(prefix)

    # -- connections ------------------------------------------------------------------------------------

    @property
    def peers(self) -> int:
        """The number of connected publishers.

        libzmq sends no events of ``inproc`` connections, so each ``inproc`` endpoint counts as connected.
        """
        inside = sum(endpoint.address.startswith("inproc://") for endpoint in self._subscribe_to)
        return inside + len(self._links)

    @property
    def links(self) -> frozenset[int]:
        """The ids of all connections except those over ``inproc``. An id is never reused."""
        return self._links.alive

    def silent(self, answered: Iterable[str]) -> list[str]:
        """Return the endpoints from which no publisher has answered.

        These are the endpoints without a connection, and the endpoints whose port is in no name of ``answered``, the
        names of the publishers that have answered. If one of these names has none of our ports, a proxy is in between:
        then only the endpoints without a connection are returned.
        """
        names = [_ports(name) for name in answered]
        ports = {_port(endpoint.address) for endpoint in self._subscribe_to}
        plain = all(each & ports for each in names)
        heard: set[str] = set().union(*names)
        silent = []
        for endpoint in self._subscribe_to:
            if not self._is_connected(endpoint):
                silent.append(f"{endpoint} (not connected)")
            elif plain and _port(endpoint.address) not in heard:
                silent.append(str(endpoint))
        return silent

    def _is_connected(self, endpoint: Endpoint) -> bool:
        opened = self._opened.get(endpoint, endpoint.address)
        return opened.startswith("inproc://") or self._links.connected(opened)

    def expect_end(self, name: str, links: Iterable[int]) -> None:
        """Note that a publisher is stopping, so the end of its connection is no news.

        ``name`` is the name of the publisher, and ``links`` are the connections that delivered its message. Other hosts
        may use the same ports, and the publisher may be behind a proxy. So ``links`` decide. If they are unknown, the
        port of the publisher decides, unless several endpoints have it.
        """
        if self.sub is None:
            return
        ports = _ports(name)
        dialled = [address for each, address in self._opened.items() if not each.bind and _port(address) in ports]
        heard = {self.dialled(link) for link in links} - {None}
        if heard or len(dialled) > 1:
            dialled = [address for address in dialled if address in heard]
        for address in dialled:
            self.sub.log.ended(address)

    def dialled(self, link: int) -> str | None:
        """Return the endpoint of the connection with this id, or None.

        None if the publisher has connected to us, or if the connection has ended.
        """
        found = self._links.get(link)
        return None if found is None else found.endpoint

    def cut(self, link: int) -> str | None:
        """End the connection with this id, so that libzmq connects again.

        See `PersistentConnection.cut`.
        """
        return None if self.sub is None else self.sub.cut(link)

    def listen_closely(self, closely: bool) -> None:
        """Start or stop recording the connection that delivers each message.

        See `came_by` and `heard`. If all endpoints are ``inproc``, connections are unknown, and nothing is noted.
        """
        if self.sub is not None and not all(each.address.startswith("inproc://") for each in self._subscribe_to):
            self.sub.listen_closely(closely)

    @property
    def came_by(self) -> int | None:
        """The id of the connection that delivered the current message, or None.

        None over ``inproc``, while `listen_closely` is off, and for a connection that is unknown or has ended.
        """
        origins = None if self.sub is None else self.sub.origins
        return None if origins is None else origins.came_by

    def heard(self) -> set[int]:
        """Return the ids of connections that delivered anything since the last call.

        Empty while `listen_closely` is off.
        """
        origins = None if self.sub is None else self.sub.origins
        return set() if origins is None else origins.heard()

    def _seen(self, event: SocketEvent) -> None:
        if event.name == "handshake_succeeded":
            self.on_connected()

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that sends a message and returns True, or returns False.

        False means that the queue of a subscriber is full; no subscriber receives the message then. Without a
        publishing socket the function is None. Arguments as with `sender`.
        """
        if self.pub is None:
            return None
        return self.pub.try_send if multipart else self.pub.try_frame

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Report each change of a subscription at the publishing socket.

        ``on_subscription`` is called with the prefix and True if it is live now. Returns False without a publishing
        socket.
        """
        if self.pub is None:
            return False
        self.pub.on_subscription = on_subscription
        return True

    def emptied(self) -> bool:
        """Return True if all messages have been read since the last call."""
        if self.sub is None:
            return True
        emptied, self.sub.emptied = self.sub.emptied, False
        self.sub.poke()  # if no message arrives, nothing else looks at the socket
        return emptied

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[None]:
        """Close the sockets.

        The Deferred fires when queued messages are sent, at the latest after ``linger`` milliseconds.
        """
        if self.sub is not None:
            self.sub.close(LINGER_ABORT)  # it can only have subscriptions to send, for peers that are away
        if self.pub is not None:
            self.pub.close(linger)
        self.sub = self.pub = None
        if not self._acquired:
            return succeed(None)
        self._acquired = False
        return self._context.release(self._reactor)
