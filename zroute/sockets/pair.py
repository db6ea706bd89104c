"""The ZeroMQ sockets of one app: a SUB and an XPUB socket in a context, with what connects at them.

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
    """A ZeroMQ context that lives while somebody uses it, and starts anew for the next user.

    Apps that are to meet over ``inproc://`` are given the same one. A ``zmq.Context`` of the caller's own
    is used as it is and never terminated here.
    """

    def __init__(self, context: zmq.Context[Any] | None = None) -> None:
        self._context = context
        self._foreign = context is not None
        self._shared = False
        self._users = 0

    def share(self) -> SharedContext:
        """For one app more."""
        self._shared = True
        return self

    @property
    def is_private(self) -> bool:
        """Whether only one app can use it."""
        return not (self._foreign or self._shared)

    def acquire(self) -> zmq.Context[Any]:
        """The context, for one user more."""
        if self._context is None:
            self._context = zmq.Context()
            # The default of 1,023 sockets would be reached by an app in tests before any limit of the system.
            self._context.set(zmq.ContextOption.MAX_SOCKETS, self._context.get(zmq.ContextOption.SOCKET_LIMIT))
        self._users += 1
        return self._context

    def release(self, reactor: Any) -> Deferred[None]:
        """One user less; fires when the last one's context is terminated, all messages sent or given up."""
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

        # A thread of its own, since `term` blocks until all is sent, and the reactor's pool may be full or gone.
        threading.Thread(target=terminate, name="zroute-term", daemon=True).start()
        return done


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _ports(name: str) -> set[str]:
    """Those of the addresses that a publisher's name ends with."""
    return {_port(word.rstrip(",")) for word in name.split()}


def _warn_of_hang() -> None:
    _log.warning("the ZeroMQ context does not terminate: a socket of it is open somewhere else")


class SocketPair:
    """Sockets for ``subscribe_to`` and ``publish_to``; those with endpoints are opened.

    ``name`` begins the log lines about their connections.
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
        """The addresses that are bound to publish at, as they were resolved."""
        self.sub: SubConnection | None = None
        self.pub: XPubConnection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self.sub is not None or self.pub is not None

    def open(self, receive: Receive) -> None:
        """Bind and connect everything; messages will go to ``receive``, of which none comes before `subscribe`.

        Raises EndpointError; nothing is left open then.
        """
        context = self._context.acquire()
        self._acquired = True
        try:
            # Publishers first: over inproc a connect would else wait for a bind.
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
        """What sends a frame, or with ``multipart`` the parts of a message; None without an endpoint to publish at."""
        if self.pub is None:
            return None
        if not multipart:
            return self.pub.send_frame
        send = self.pub.send
        return lambda parts: send(*parts)

    def _watched(self, connection: C) -> C:
        if _log.isEnabledFor(logging.DEBUG):  # asked once: nobody pays for events that are not shown
            connection.watch(lambda event: _log.debug("%s %s", type(connection).__name__, event))
        return connection

    def use(self, receive: Receive) -> None:
        """Give what is received from now on to ``receive``."""
        if self.sub is not None:
            self.sub.receive = receive

    def pause(self) -> None:
        """Read no more until `resume`; subscriptions and connections live on."""
        if self.sub is not None:
            self.sub.pause()

    def resume(self) -> None:
        """Read again."""
        if self.sub is not None:
            self.sub.resume()

    def readable(self) -> bool:
        """Whether a message waits to be read, also while paused."""
        return self.sub is not None and self.sub.readable()

    def read(self) -> None:
        """Read some of what waits, now, also while paused."""
        if self.sub is not None:
            self.sub.paused = False
            self.sub.doRead()

    def discard(self, most: int) -> int:
        """Throw away up to so many of the messages that wait; how many that were."""
        return 0 if self.sub is None else self.sub.discard(most)

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Subscribe to these prefixes in this order, and no longer to those before."""
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
        """Withdraw each of these that is subscribed, and subscribe to it again at once."""
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
        """Publishers that are connected; over ``inproc``, of which libzmq tells nothing, all endpoints."""
        inside = sum(endpoint.address.startswith("inproc://") for endpoint in self._subscribe_to)
        return inside + len(self._links)

    @property
    def links(self) -> frozenset[int]:
        """The ids of all connections; an id is never used again. None over ``inproc``."""
        return self._links.alive

    def silent(self, answered: Iterable[str]) -> list[str]:
        """The endpoints without a connection, and those that none of these publishers binds, by their names.

        Where a name has none of the ports of our endpoints, a proxy is between, and the latter can't be told.
        """
        names = [_ports(name) for name in answered]
        ports = {_port(endpoint.address) for endpoint in self._subscribe_to}
        plain = all(each & ports for each in names)
        heard: set[str] = set().union(*names)
        silent = []
        for endpoint in self._subscribe_to:
            if not self._is_connected(endpoint):
                silent.append(f"{endpoint} (nobody is connected)")
            elif plain and _port(endpoint.address) not in heard:
                silent.append(str(endpoint))
        return silent

    def _is_connected(self, endpoint: Endpoint) -> bool:
        opened = self._opened.get(endpoint, endpoint.address)
        return opened.startswith("inproc://") or self._links.connected(opened)

    def expect_end(self, name: str, links: Iterable[int]) -> None:
        """A publisher of this name has said goodbye: that a connection to what it binds ends is no news.

        Other hosts may have the same ports, and it may be behind a proxy: ``links``, by which it was heard, decide. If
        they are not known, its port does, unless several endpoints have that.
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
        """Return the endpoint of the connection with this id; None if a publisher has made it, or it has ended."""
        found = self._links.get(link)
        return None if found is None else found.endpoint

    def cut(self, link: int) -> str | None:
        """End the connection with this id, and have libzmq connect again; see `PersistentConnection.cut`."""
        return None if self.sub is None else self.sub.cut(link)

    def listen_closely(self, closely: bool) -> None:
        """Note by which connection each message comes, or no longer: see `came_by` and `heard`.

        Where all endpoints are ``inproc`` there is nothing to note, and nothing to pay for.
        """
        if self.sub is not None and not all(each.address.startswith("inproc://") for each in self._subscribe_to):
            self.sub.listen_closely(closely)

    @property
    def came_by(self) -> int | None:
        """The id of the connection by which the message that is being handled came.

        None unless we listen closely, over ``inproc``, and for a connection that is not known, or has ended.
        """
        origins = None if self.sub is None else self.sub.origins
        return None if origins is None else origins.came_by

    def heard(self) -> set[int]:
        """Return the ids of the connections by which anything came since the last call, while we listen closely."""
        origins = None if self.sub is None else self.sub.origins
        return set() if origins is None else origins.heard()

    def _seen(self, event: SocketEvent) -> None:
        if event.name == "handshake_succeeded":
            self.on_connected()

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """As `sender`, but what it returns gives False while a subscriber has no room, and then sends to nobody."""
        if self.pub is None:
            return None
        return self.pub.try_send if multipart else self.pub.try_frame

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Tell of each subscription that comes or goes at the publishing socket; False where nobody can."""
        if self.pub is None:
            return False
        self.pub.on_subscription = on_subscription
        return True

    def emptied(self) -> bool:
        """Whether all there was to read has been read since this was asked last."""
        if self.sub is None:
            return True
        emptied, self.sub.emptied = self.sub.emptied, False
        self.sub.poke()  # where nothing arrives, nobody else would look
        return emptied

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[None]:
        """Close the sockets; fires when what was sent has left, or ``linger`` milliseconds are over."""
        if self.sub is not None:
            self.sub.close(LINGER_ABORT)  # all it could still send are subscriptions, to peers that are away
        if self.pub is not None:
            self.pub.close(linger)
        self.sub = self.pub = None
        if not self._acquired:
            return succeed(None)
        self._acquired = False
        return self._context.release(self._reactor)
