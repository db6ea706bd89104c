"""REQ and REP: concurrent requests, each with its own reply.

See the zguide, chapter 3, and RFC 28. A request on the wire is ``[id, b"", *parts]``, sent by a DEALER. A reply has the
same id and form, as sent by a REP.

The queue of unsent requests and the lanes are in `zroute.requests.lanes`. `Server` connects a lane to an endpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Unpack

import zmq
from twisted.internet.defer import Deferred, fail

from zroute.endpoints import Endpoint, parse_endpoint
from zroute.errors import (
    EndpointError,
    EnvelopeError,
    NotRunningError,
    RequestLostError,
    RequestTimeoutError,
    UsageError,
)
from zroute.options import (
    LINGER_ABORT,
    MAX_PARTS,
    REQUEST_TIMEOUT,
    SocketOptions,
    socket_options,
    with_options,
)
from zroute.requests.lanes import Lane, Requests, split_reply
from zroute.sockets.events import OnEvent, SocketEvent
from zroute.sockets.parts import SendingConnection
from zroute.sockets.reopening import Reopening
from zroute.sockets.router_dealer import DealerConnection

__all__ = ["RepConnection", "ReqConnection", "Request", "Server"]


class Server:
    """One endpoint of a `ReqConnection`, and the socket that connects to it.

    Each connection gets a new DEALER. If libzmq reconnected the old DEALER, libzmq would send the requests in the old
    queue, although these requests have already failed here. (The option IMMEDIATE would drop these requests, but ends
    the process if a reply is being read at that time.)

    ``describe`` sets the names that the log lines of a new socket use.
    """

    def __init__(
        self,
        reactor: Any,
        requests: Requests,
        endpoint: Endpoint,
        watchers: tuple[OnEvent, ...],
        context: zmq.Context[Any] | None,
        options: SocketOptions,
        describe: Callable[[DealerConnection], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._describe = describe
        self._watchers = watchers
        self._context = context
        self._options = options
        self._told = not endpoint.bind and not endpoint.address.startswith("inproc://")  # events name the connection
        self._reopening = Reopening(reactor, endpoint, self._open_again)
        self._closed = self._connected_before = False
        self.lane = Lane(requests, self._send)
        self._dealer, self.address = self._open()
        requests.add(self.lane)

    def _open(self) -> tuple[DealerConnection, str]:
        dealer = DealerConnection(self._reactor, self._replied, context=self._context, **self._options)
        if self._describe is not None:
            self._describe(dealer)
        self.lane.down = self._told
        try:
            dealer.watch(lambda event: self._seen(dealer, event))
            for on_event in self._watchers:
                dealer.watch(on_event)
            address = dealer.open(self._endpoint)
        except BaseException:
            dealer.close(LINGER_ABORT)
            raise
        if self._connected_before:
            dealer.log.connected_before(address)
        return dealer, address

    def check(self) -> None:
        """Raise an error if the connection can't be used; see `Connection.check`."""
        if not self._dealer.closed:
            self._dealer.check()

    @property
    def reason(self) -> str | None:
        """The reason why no server is connected, if it is known."""
        return self._dealer.log.reason(self.address)

    def close(self, linger: int | None) -> None:
        """Close the socket permanently."""
        self._closed = True
        self._reopening.cancel()
        self._dealer.close(linger)

    def _send(self, frames: Sequence[bytes]) -> bool:
        dealer = self._dealer
        if dealer.try_send_bytes(frames):
            return True
        # The error means that the socket was closed: its requests end with the lane, not here.
        dealer.when_writable().addCallbacks(lambda _: self.lane.writable(), lambda _closed: None)
        return False

    def _replied(self, parts: list[bytes]) -> None:
        self._reopening.reset()
        self.lane.received(*split_reply(parts))

    def _seen(self, dealer: DealerConnection, event: SocketEvent) -> None:
        if event.name == "handshake_succeeded":
            self._connected_before = True
            self.lane.up()
        elif event.name == "disconnected" and not self._told:  # several peers connect here, and one of them has ended
            self.lane.lost(None)
        elif event.name == "disconnected" and not (dealer.closed or self.lane.down):
            # While the lane is down, the handshake has failed: `PersistentConnection` logs why, and reconnects.
            self.lane.down = True
            dealer.doRead()  # process the replies that have already arrived
            dealer.close(LINGER_ABORT)
            if not self._closed:
                self._reopening.later()
            self.lane.lost(partial(_gone, event.address))

    def _open_again(self) -> None:
        self._dealer, self.address = self._open()


class ReqConnection:
    """Sends requests to servers; `request` returns a Deferred for the reply.

    Any number of requests may be unanswered at the same time. Each endpoint has its own DEALER socket, and a request is
    sent to the server with the fewest unanswered requests. A server that does not answer fills only its own window of
    64 requests.

    A request is sent only once. If the server disconnects, the request fails with `RequestLostError`. Only the caller
    can decide whether it is safe to send the request again. `open` connects to an endpoint unless the endpoint begins
    with ``bind:``. `close` may be called more than once.

    Args:
        reactor: The Twisted reactor that reads the sockets.
        context: The ZeroMQ context; the default is the context of the process.
        options: The options of a DEALER socket, with libzmq's names in lower case; see `SocketOptions`.

    Raises:
        TypeError: An option is unknown, or its value has the wrong type.
    """

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        with_options(socket_options("DEALER"), options)  # raise an error for a wrong option now, not in `open`
        self._reactor = reactor
        self._context = context
        self._options = options
        self._requests = Requests(reactor, timed_out=_no_reply)
        self._servers: dict[str, Server] = {}
        self._watchers: tuple[OnEvent, ...] = ()
        self.closed = False

    @property
    def endpoints(self) -> list[str]:
        """The addresses of the open endpoints."""
        return list(self._servers)

    @property
    def waiting(self) -> int:
        """The number of unsent requests.

        Requests wait if no server is connected, or if the windows of all servers are full.
        """
        return self._requests.waiting

    @property
    def unanswered(self) -> int:
        """The number of sent requests that are not answered, lost or forgotten."""
        return self._requests.unanswered

    @property
    def late(self) -> int:
        """The number of replies that arrived after the caller had given up."""
        return self._requests.late

    def open(self, endpoint: Endpoint | str) -> str:
        """Connect to a server; return the resolved address. See `Connection.open`.

        Raises:
            EndpointError: The endpoint can't be opened, or is open already.
            NotRunningError: The connection is closed.
        """
        if self.closed:
            raise NotRunningError("this ReqConnection is closed: create a new one")
        if isinstance(endpoint, str):
            endpoint = parse_endpoint(endpoint, bind=False)
        if endpoint.address in self._servers:
            raise EndpointError(f"{endpoint} is already open: open each endpoint once", endpoint=str(endpoint))
        server = Server(self._reactor, self._requests, endpoint, self._watchers, self._context, self._options)
        self._servers[server.address] = server
        return server.address

    def disconnect(self, address: str) -> None:
        """Disconnect from the server at ``address``, the result of `open`.

        Unanswered requests to this server fail with RequestLostError.

        Raises:
            EndpointError: The endpoint is not open.
        """
        if address not in self._servers:
            raise EndpointError(f"{address} is not open: pass the address that open() returned", endpoint=address)
        server = self._servers.pop(address)
        self._requests.remove(server.lane)
        server.close(LINGER_ABORT)
        server.lane.lost(partial(_gone, address))

    unbind = disconnect

    def watch(self, on_event: OnEvent) -> None:
        """Call a function with each event of endpoints opened from now on.

        See `Connection.watch`.
        """
        self._watchers += (on_event,)

    def request(self, *parts: bytes, timeout: float | None = REQUEST_TIMEOUT) -> Deferred[list[bytes]]:
        """Send a request; the Deferred fires with the parts of the reply.

        The caller may cancel the Deferred. A request that times out or is cancelled before it was sent is never sent.
        If the request was already sent, the reply is discarded.

        Args:
            parts: The parts of the request, from 1 to `MAX_PARTS` - 2.
            timeout: The time in seconds to wait for the reply; None waits without a limit.

        Returns:
            A Deferred that fires with the parts of the reply. The Deferred fails with RequestTimeoutError after
                ``timeout`` seconds, with RequestLostError if the server disconnects, and with NotRunningError if the
                connection is closed.

        Raises:
            TypeError: A part is not bytes.
            ValueError: There are no parts, or too many parts.
            WrongThreadError: The caller is not in the thread that opened the connection.
            ForkedContextError: This process is a fork of the process that opened the connection.
        """
        # One server is enough: all sockets belong to the same thread and process.
        for server in self._servers.values():
            server.check()
            break
        if self.closed:
            return fail(NotRunningError("this ReqConnection is closed"))
        if not 0 < len(parts) <= MAX_PARTS - 2:
            raise ValueError(f"a request must have 1 to {MAX_PARTS - 2} parts, not {len(parts)}")
        for part in parts:
            if not isinstance(part, bytes):
                raise TypeError(f"the parts of a request must be bytes, not {type(part).__name__}")
        return self._requests.make(parts, timeout)

    def close(self, linger: int | None = None) -> None:
        """Close all sockets. Unanswered requests fail with NotRunningError.

        ``linger`` is in milliseconds, as in `Connection.close`.
        """
        if self.closed:
            return
        self.closed = True
        for server in self._servers.values():
            server.close(linger)
        self._servers.clear()
        self._requests.close(lambda: NotRunningError("the ReqConnection was closed before the reply"))


def _no_reply(id: bytes, seconds: float) -> Exception:
    return RequestTimeoutError(f"no reply within {seconds:g} s: check that the server is running and answers")


def _gone(address: str) -> Exception:
    return RequestLostError(
        f"the server at {address} disconnected, and may have handled the request: send the request again only if "
        "handling it twice is safe"
    )


class Request:
    """A request of a client: ``parts``, to be answered once with `reply`."""

    __slots__ = ("_connection", "_envelope", "parts")

    def __init__(self, connection: RepConnection, envelope: list[bytes] | None, parts: list[bytes]) -> None:
        self._connection = connection
        self._envelope = envelope
        self.parts = parts

    def reply(self, *parts: bytes) -> None:
        """Send the reply, now or later.

        If the client has disconnected, or its queue is full, the reply is logged and counted in ``undelivered``.

        Args:
            parts: The parts of the reply.

        Raises:
            UsageError: The request is already answered.
            TypeError: A part is not bytes-like. The request can still be answered.
            NotRunningError: The connection is closed.
        """
        if self._envelope is None:
            raise UsageError("this request is already answered: call reply() only once")
        parts = tuple(part if isinstance(part, bytes) else bytes(memoryview(part)) for part in parts)
        envelope, self._envelope = self._envelope, None
        self._connection.answer(envelope, parts)


class RepConnection(SendingConnection):
    """Answers requests: ``on_request`` gets each `Request`.

    Any number of clients may connect, and requests may be answered in any order. A client may be a REQ or DEALER
    socket, or txZMQ. A request that is never answered uses no memory in this object. Binds each endpoint, or connects
    if the endpoint begins with ``connect:``.
    """

    kind: ClassVar[int] = zmq.ROUTER
    binds: ClassVar[bool] = True

    def __init__(
        self,
        reactor: Any,
        on_request: Callable[[Request], object],
        *,
        context: zmq.Context[Any] | None = None,
        **options: Unpack[SocketOptions],
    ) -> None:
        super().__init__(reactor, self._request, context=context, **options)
        self._on_request = on_request
        self.undelivered = 0

    def answer(self, envelope: list[bytes], parts: Sequence[bytes]) -> None:
        """Send ``parts`` to the client with this ``envelope``. Used by `Request.reply`."""
        if self.closed:
            raise NotRunningError("this RepConnection is closed: it can no longer answer its clients")
        try:
            if self.try_send([*envelope, *parts]):
                return
            reason = "has a full queue (sndhwm)"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            reason = "has disconnected"
        self.undelivered += 1
        self._report("undelivered", logging.WARNING, "a reply was not delivered: client %r %s", envelope[0], reason)

    def _request(self, parts: list[bytes]) -> object:
        try:
            # From 1, because the first part is the identity of the client's connection.
            body = parts.index(b"", 1) + 1
        except ValueError:
            raise EnvelopeError("not a request: expected an empty part before the parts of the request") from None
        return self._on_request(Request(self, parts[:body], parts[body:]))
