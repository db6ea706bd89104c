"""The sockets for requests: a ROUTER answers requests, and DEALERs send them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import attrs
import zmq
from twisted.internet.defer import Deferred, succeed

from zroute.endpoints import Endpoint
from zroute.errors import NotRunningError
from zroute.logs import peer_name
from zroute.options import (
    LINGER_ABORT,
    REPLIES_HELD,
    REPLIES_HELD_BYTES,
    REPLIES_HELD_TOTAL,
    REPLIES_SENT,
    REPLY_AGAIN,
    SocketOptions,
    frame_limit,
)
from zroute.requests.asked import Asked, Listener
from zroute.requests.client import Client
from zroute.sockets.connection import Guard
from zroute.sockets.names import Names, has_addresses
from zroute.sockets.parts import SendingConnection
from zroute.sockets.reqrep import Server
from zroute.stats import Stats
from zroute.transport import AppOptions

__all__ = ["RequestSockets"]

_LOOK = 1.0
"""The time in seconds between two checks of the unanswered requests to removed addresses."""


@attrs.define(eq=False)
class _Held:
    """The replies that wait for one client, and their total size in bytes.

    ``reads`` is True if the client has had room since the timer last tried all clients.
    """

    replies: deque[tuple[Sequence[bytes], Deferred[None]]] = attrs.field(factory=deque)
    size: int = 0
    reads: bool = False


class _ReplySocket(SendingConnection):
    """A ROUTER that passes the messages of clients to a `Listener`.

    libzmq queues only `REPLIES_SENT` replies for each client, because libzmq can't limit the size of its queue. Further
    replies are held here, up to a number and a total size. When a queue in libzmq has room again, the descriptor
    signals it, but does not show which client has the room. At each signal, the socket therefore tries the clients that
    have read lately. A timer tries all clients, in case the socket has missed a signal, but less often, because many
    clients may read nothing.
    """

    kind: ClassVar[int] = zmq.ROUTER
    binds: ClassVar[bool] = True
    names_sender = True

    def __init__(
        self, reactor: Any, stats: Stats, on_request: Callable[[Asked], object], context: Any, options: SocketOptions
    ) -> None:
        self.listener = Listener(reactor, stats, on_request, self._answer)
        self._stats = stats
        self._held: dict[bytes, _Held] = {}
        self._reading: set[bytes] = set()
        self._held_size = 0
        self._next_try: Any = None
        given: SocketOptions = {"sndhwm": REPLIES_SENT, **options}
        super().__init__(reactor, self._received, context=context, **given)

    def _received(self, parts: list[bytes]) -> None:
        self.listener.received(parts, self.sender)

    def close(self, linger: int | None = None) -> None:
        """Close the socket; see `Connection.close`.

        Held replies that still can't be sent are counted as undelivered.
        """
        if self._next_try is not None:
            self._next_try.cancel()
            self._send_held()
        # `_send_held` has started the timer again if a client still has no room.
        if self._next_try is not None:
            self._next_try.cancel()
            self._next_try = None
        self._stats.replies_undelivered += sum(len(held.replies) for held in self._held.values())
        self._held.clear()
        self._reading.clear()
        self._held_size = 0
        super().close(linger)

    def doRead(self) -> None:  # noqa: N802  # Twisted's name
        """Read messages, and send held replies; see `Connection.doRead`."""
        super().doRead()
        self._send_to_readers()

    def _poked(self) -> None:
        super()._poked()
        self._send_to_readers()

    def _answer(self, asked: Asked, *message: Any) -> bool | Deferred[None]:
        """Send a message to a client, or hold it while the client's queue is full."""
        parts = asked.parts(*message)
        held = self._held.get(parts[0])
        if held is None:
            sent = self._send_now(parts)
            if sent is not None:
                return sent
        return self._hold(parts, held or _Held())

    def _hold(self, parts: Sequence[bytes], held: _Held) -> bool | Deferred[None]:
        """Hold a message until the client has room; refuse it if a limit is exceeded."""
        peer, number, size = parts[0], len(held.replies), _size(parts)
        if number >= REPLIES_HELD or (number and held.size + size > REPLIES_HELD_BYTES):
            return self._undelivered(peer, f"does not read its replies: {number} replies ({held.size} bytes) wait")
        if self._held_size and self._held_size + size > REPLIES_HELD_TOTAL:
            return self._undelivered(
                peer, f"has a full queue, and {self._held_size} bytes of replies already wait for slow clients"
            )
        room: Deferred[None] = Deferred(lambda _: None)
        held.replies.append((parts, room))
        held.size += size
        self._held_size += size
        if not number:
            self._held[peer] = held
            self._reading.add(peer)
        if self._next_try is None:
            self._next_try = self._reactor.callLater(REPLY_AGAIN, self._send_held)
        return room

    def _send_now(self, parts: Sequence[bytes], *, poke: bool = True) -> bool | None:
        """Send a message; return True if libzmq has queued the message.

        Return None if the queue of the client is full, and False if the client has disconnected.
        """
        if self.closed:
            self._stats.replies_undelivered += 1
            return False
        try:
            return self.try_send_bytes(parts, poke=poke) or None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return self._undelivered(parts[0], "has disconnected")

    def _undelivered(self, peer: bytes, reason: str) -> bool:
        self._stats.replies_undelivered += 1
        text = "a reply was not delivered: client %s %s"
        self._report("undelivered", logging.WARNING, text, peer_name(peer), reason)
        return False

    def _send_held(self) -> None:
        """Send held replies to all clients that have room, and note which clients read."""
        self._next_try = None
        self._send_to(tuple(self._held))
        self.poke()
        for peer, held in self._held.items():
            (self._reading.add if held.reads else self._reading.discard)(peer)
            held.reads = False
        if self._held and self._next_try is None:
            self._next_try = self._reactor.callLater(REPLY_AGAIN, self._send_held)

    def _send_to_readers(self) -> None:
        """Send held replies to the clients that read and have room."""
        if self._reading:
            self._send_to(tuple(self._reading))
            if not self.closed:
                self._look()

    def _send_to(self, peers: Iterable[bytes]) -> None:
        """Send held replies to those of ``peers`` that have room."""
        for peer in peers:
            held = self._held.get(peer) or _Held()
            while held.replies and (sent := self._send_now(held.replies[0][0], poke=False)) is not None:
                held.reads = True
                ended = [held.replies.popleft()]
                if not sent:  # the client has gone
                    self._stats.replies_undelivered += len(held.replies)
                    ended += held.replies
                    held.replies.clear()
                size = sum(_size(parts) for parts, _ in ended)
                held.size -= size
                self._held_size -= size
                if not held.replies:
                    self._held.pop(peer, None)  # before the handlers continue, because they may send again
                    self._reading.discard(peer)
                for _, room in ended:
                    if not room.called:
                        room.callback(None)
                if self.closed:  # one of the handlers may have closed the socket
                    return


def _size(parts: Sequence[bytes]) -> int:
    return sum(map(len, parts))


class RequestSockets:
    """All sockets for the requests of one run.

    Args:
        reactor: The reactor.
        app: The options of the app.
        stats: The counters of the run.
    """

    def __init__(self, reactor: Any, app: AppOptions, stats: Stats) -> None:
        self._reactor = reactor
        self._app = app
        self._stats = stats
        limits: SocketOptions = {"maxmsgsize": frame_limit(app.max_message)}
        self._options = cast("SocketOptions", {**limits, **app.options})
        self._replies: _ReplySocket | None = None
        self._client: Client | None = None
        self._context: Any = None
        self._servers: dict[str, Server] = {}
        self._leaving: list[Server] = []
        self._next_look: Any = None
        self._addresses: list[str] = []
        prefer_ipv6 = bool(app.options.get("ipv6"))
        self._names = Names(reactor, app.name, self._connect, self._leave, prefer_ipv6=prefer_ipv6)
        self._is_open = False
        self.guard: Guard | None = None
        """Sets the keys of each endpoint; see `zroute.sockets.access`."""

    def open(
        self,
        client: Client | None,
        req: Iterable[Endpoint],
        on_request: Callable[[Asked], object] | None,
        rep: Iterable[Endpoint],
    ) -> None:
        """Bind and connect the sockets. Requests are not read before `listen`.

        Args:
            client: The client of the app, which gets a lane for each endpoint in ``req``.
            req: The endpoints to send requests to.
            on_request: Called with each request of a client.
            rep: The endpoints at which the app answers requests.

        Raises:
            EndpointError: An endpoint can't be opened. All other endpoints are closed again.
        """
        self._client = client
        self._context = self._app.context.acquire()
        self._is_open = True
        try:
            if on_request is not None:
                self._replies = _ReplySocket(self._reactor, self._stats, on_request, self._context, self._options)
                self._describe(self._replies, "rep=")
                # Clients may connect now, but no handler is ready before `listen`.
                self._replies.pause()
                for endpoint in rep:
                    self._replies.open(endpoint)
            if client is not None:
                client.check = self._check
                for endpoint in req:
                    if has_addresses(endpoint):
                        self._names.follow(endpoint.address, endpoint.peer)
                        self._addresses.append(endpoint.address)
                    else:
                        address = self._add(endpoint).address
                        self._names.keep(address, endpoint.peer)
                        self._addresses.append(address)
        except BaseException:
            self.close(LINGER_ABORT)
            raise

    def _add(self, endpoint: Endpoint) -> Server:
        assert self._client is not None
        given = self._client.queue, endpoint, (), self._context, self._options
        server = Server(self._reactor, *given, partial(self._describe, side="req="))
        self._servers[server.address] = server
        return server

    def _describe(self, connection: SendingConnection, side: str) -> None:
        """Use the name of the app and the names of its options in a socket's log lines."""
        connection.guard = self.guard
        connection.log.name, connection.endpoint_option = self._app.name, side
        connection.size_option = f"App(limits=Limits(max_message={self._app.max_message}))"

    def _connect(self, address: str) -> None:
        """Also send requests to a new address of a host name."""
        if address not in self._servers:
            self._add(self._names.endpoint_at(address))

    def _leave(self, address: str) -> None:
        """Send no further requests to an address that a host name no longer has."""
        server = self._servers.pop(address, None)
        if server is not None and self._client is not None:
            self._client.queue.remove(server.lane)
            self._leaving.append(server)
            if self._next_look is None:
                self._close_left()

    def _close_left(self) -> None:
        """Close the sockets of removed addresses.

        Each socket stays open until its requests are answered or lost.
        """
        self._next_look = None
        for server in tuple(self._leaving):
            if not server.lane.sent:
                self._leaving.remove(server)
                server.close(LINGER_ABORT)
        if self._leaving:
            self._next_look = self._reactor.callLater(_LOOK, self._close_left)

    def _check(self) -> None:
        # One server is enough: all sockets belong to the same thread and process.
        for server in self._servers.values():
            server.check()
            break

    def listen(self) -> None:
        """Start to read the requests of clients."""
        if self._replies is not None:
            self._replies.resume()

    @property
    def rep(self) -> list[str]:
        """The addresses at which the app answers requests."""
        return self._replies.endpoints if self._replies is not None else []

    @property
    def req(self) -> list[str]:
        """The addresses to which the app sends requests."""
        return list(self._addresses)

    def close(self, linger: int) -> Deferred[None]:
        """Close all sockets.

        The Deferred fires when the replies have been sent, at the latest after ``linger`` milliseconds.
        """
        if not self._is_open:
            return succeed(None)
        self._is_open = False
        if self._replies is not None:
            self._replies.listener.close()
            self._replies.close(linger)
        self._names.close()
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        for server in (*self._servers.values(), *self._leaving):
            server.close(linger)  # a cancellation may be unsent
        for server in self._leaving:
            server.lane.lost(lambda: NotRunningError("the app stopped before the reply arrived"))
        self._servers.clear()
        self._leaving.clear()
        released: Deferred[None] = self._app.context.release(self._reactor)
        return released
