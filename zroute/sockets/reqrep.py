"""REQ and REP: concurrent requests, each with its own reply.

See the zguide, chapter 3, and RFC 28. A request on the wire is ``[id, b"", *parts]``, sent by a DEALER. Its reply has
the same id and empty part, as a REP sends them.

libzmq keeps messages that a peer has not accepted, and delivers them late, perhaps after the caller has given up. So
unsent requests are queued here: timeouts and cancellations can remove them. And no peer is sent more than a window of
unanswered requests.

The parts: `Requests` is the queue of unsent requests, and chooses a `Lane` for each. A `Lane` counts the unanswered
requests of one peer. `_Server` connects a lane to an endpoint.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count, takewhile
from struct import Struct
from typing import Any, ClassVar, Unpack

import attrs
import zmq
from twisted.internet.defer import Deferred, fail

from zroute.clock import Clock
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
    REQUEST_FORGOTTEN,
    REQUEST_WINDOW,
    SocketOptions,
    socket_options,
    with_options,
)
from zroute.sockets.events import OnEvent, SocketEvent
from zroute.sockets.parts import SendingConnection
from zroute.sockets.router_dealer import DealerConnection

__all__ = ["Lane", "RepConnection", "ReqConnection", "Request", "Requests"]

_log = logging.getLogger("zroute.sockets")

_REQUEST_TIMEOUT = 10.0  # seconds
_AGAIN, _AGAIN_MAX = 0.1, 5.0  # seconds until we connect again, doubled each time up to the maximum; as RECONNECT_IVL
_NUMBER = Struct(">Q")  # the second half of an id; the first half is random


@attrs.define(eq=False)
class _Unanswered:
    """A request without a reply.

    ``frames`` is emptied when the request is sent; ``reply`` becomes None when the caller has given up. ``counts`` is
    True if the request takes room in its lane.
    """

    id: bytes
    frames: Sequence[bytes]
    timeout: float | None
    reply: Deferred[list[bytes]] | None = None
    timer: Any = None
    lane: Lane | None = None
    counts: bool = True


class Lane:
    """The unanswered requests of one peer or one socket.

    ``send`` takes the frames of a request, and returns False if it can't send them now. The owner calls `writable` when
    that may have changed, `received` with each reply, and `lost` when the peer has disconnected.
    """

    def __init__(self, requests: Requests, send: Callable[[Sequence[bytes]], bool]) -> None:
        self._requests = requests
        self.send = send
        self.sent: dict[bytes, _Unanswered] = {}
        self.load = 0
        self.given_up = 0
        self.blocked = False
        self.down = False

    def up(self) -> None:
        """Use the lane again after ``down``, because the peer has reconnected.

        The owner sets ``down`` when libzmq reports the end of a connection. For a moment after that, libzmq's socket
        still accepts messages for this connection, and drops them.
        """
        self.down = False
        self._requests.pump()

    def writable(self) -> None:
        """Try to send requests again."""
        if self.blocked:
            self.blocked = False
            self._requests.pump()

    def received(self, id: bytes, parts: list[bytes]) -> bool:
        """Process a reply. Return False if no caller waits for it.

        The reply may be late or sent twice, or the request may be unknown.
        """
        request = self.sent.get(id)
        if request is None:
            self._requests.late += 1
            return False
        if self.given_up:
            self._requests.forget(self._given_up_before(request))
        self.drop(request)
        return self._requests.answered(request, parts)

    def _given_up_before(self, request: _Unanswered) -> Sequence[_Unanswered]:
        earlier = takewhile(lambda other: other is not request, self.sent.values())
        return [other for other in earlier if other.reply is None]

    def drop(self, request: _Unanswered) -> None:
        """Remove a request that was answered, forgotten or lost; make room for another."""
        del self.sent[request.id]
        request.lane = None
        self.load -= request.counts
        self.given_up -= request.reply is None

    def lost(self, error: Callable[[], Exception] | None) -> None:
        """Note that the peer has disconnected, and its requests with it.

        Each of its requests fails with a new ``error``. If ``error`` is None they stay until their timeout, since
        another peer of the same socket may have received them. Other requests get their room.
        """
        self._requests.lost(self, error)


class Requests:
    """A queue of requests, sent in order through several lanes.

    Each request goes to the lane with the fewest unanswered requests. A lane may have at most ``window`` of them.

    A request whose caller gave up after it was sent still counts. It counts until its reply or the reply to a later
    request
    arrives: a peer that has answered a later request has read this one. It counts for at most ``forgotten`` seconds.

    Args:
        clock: The reactor, or a test's clock.
        window: The number of unanswered requests that one lane may have.
        forgotten: Seconds after which a request without a caller no longer counts.
        timed_out: Makes the error of a timeout, from the id of the request and the timeout in seconds.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        window: int = REQUEST_WINDOW,
        forgotten: float = REQUEST_FORGOTTEN,
        timed_out: Callable[[bytes, float], Exception],
    ) -> None:
        self._clock = clock
        self._window = window
        self._forgotten = forgotten
        self._timed_out = timed_out
        self._waiting: dict[bytes, _Unanswered] = {}
        self._lanes: list[Lane] = []
        self._first = os.urandom(8)
        self._numbers = count()
        self.late = 0

    @property
    def waiting(self) -> int:
        """The number of requests that are not sent yet."""
        return len(self._waiting)

    @property
    def unanswered(self) -> int:
        """The number of requests that are sent, and neither answered nor forgotten."""
        return sum(len(lane.sent) for lane in self._lanes)

    def add(self, lane: Lane) -> None:
        """Add a lane, and send requests through it."""
        self._lanes.append(lane)
        self.pump()

    def remove(self, lane: Lane) -> None:
        """Remove a lane. Its owner calls `Lane.lost` separately."""
        self._lanes.remove(lane)

    def make(self, parts: Sequence[bytes], timeout: float | None, id: bytes | None = None) -> Deferred[list[bytes]]:
        """Send a request when a lane has room; fires with the parts of the reply.

        Args:
            parts: The parts of the request.
            timeout: Seconds until the Deferred fails, or None for no timeout. A request that is still unsent then is
                never sent. The same is true if the Deferred is cancelled.
            id: A unique id; by default a new one of 16 bytes.
        """
        if id is None:
            id = self._first + _NUMBER.pack(next(self._numbers))
        request = _Unanswered(id, (id, b"", *parts), timeout)
        reply: Deferred[list[bytes]] = Deferred(lambda _: self._give_up(request))
        request.reply = reply
        if timeout is not None:
            request.timer = self._clock.callLater(timeout, self._too_late, request)
        self._waiting[id] = request
        if len(self._waiting) == 1:  # else an earlier request already waits for room
            self.pump()
        return reply

    def pump(self) -> None:
        """Send as many waiting requests as the lanes have room for."""
        while self._waiting and (lane := self._free()) is not None:
            request = next(iter(self._waiting.values()))
            if not lane.send(request.frames):
                lane.blocked = True
                continue
            del self._waiting[request.id]
            request.frames, request.lane = (), lane
            lane.sent[request.id] = request
            lane.load += 1

    def _free(self) -> Lane | None:
        """Return the open lane with the fewest unanswered requests, or None.

        Lanes with the same number take turns.
        """
        found = None
        for lane in self._lanes:
            if not (lane.blocked or lane.down) and lane.load < (self._window if found is None else found.load):
                found = lane
        if found is not None and len(self._lanes) > 1:
            self._lanes.remove(found)
            self._lanes.append(found)
        return found

    def answered(self, request: _Unanswered, parts: list[bytes]) -> bool:
        """Deliver a reply; return False if the caller has given up.

        The request is already removed from its lane.
        """
        self._cancel_timer(request)
        reply, request.reply = request.reply, None
        self.pump()
        if reply is None:
            self.late += 1
            return False
        reply.callback(parts)
        return True

    def lost(self, lane: Lane, error: Callable[[], Exception] | None) -> None:
        """See `Lane.lost`."""
        failed = []
        for request in tuple(lane.sent.values()):
            if request.reply is None or error is not None:
                lane.drop(request)
                self._cancel_timer(request)
                failed.append(request)
            else:
                lane.load -= request.counts
                request.counts = False
        self.pump()
        self._fail(failed, error)

    def close(self, error: Callable[[], Exception] | None) -> None:
        """Drop all requests and stop their timers.

        Each request fails with a new ``error``, if ``error`` is not None.
        """
        left = [*self._waiting.values(), *(request for lane in self._lanes for request in lane.sent.values())]
        self._waiting.clear()
        self._lanes.clear()
        for request in left:
            self._cancel_timer(request)
            request.lane = None  # else a request that is cancelled in another's errback would start a timer
        self._fail(left, error)

    @staticmethod
    def _fail(requests: Iterable[_Unanswered], error: Callable[[], Exception] | None) -> None:
        for request in requests:
            reply, request.reply = request.reply, None
            if reply is not None and error is not None:
                reply.errback(error())

    def _too_late(self, request: _Unanswered) -> None:
        request.timer = None
        reply = request.reply
        self._give_up(request)
        if reply is not None:
            reply.errback(self._timed_out(request.id, request.timeout or 0.0))

    def _give_up(self, request: _Unanswered) -> None:
        """Note that the caller no longer waits for the reply."""
        self._cancel_timer(request)
        request.reply = None
        if self._waiting.pop(request.id, None) is None and request.lane is not None:
            request.lane.given_up += 1
            request.timer = self._clock.callLater(self._forgotten, self._forget, request)

    def _forget(self, request: _Unanswered) -> None:
        self.forget([request])
        self.pump()

    def forget(self, given_up: Iterable[_Unanswered]) -> None:
        """Stop waiting for the replies to these requests; make room for others."""
        for request in given_up:
            if request.timer.active():
                request.timer.cancel()
            request.timer = None
            if request.lane is not None:
                request.lane.drop(request)

    @staticmethod
    def _cancel_timer(request: _Unanswered) -> None:
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None


class _Server:
    """One endpoint of a `ReqConnection`, and the socket that connects to it.

    Each connection gets a new DEALER. If libzmq reconnected an old one, it would send the requests that are still in
    its queue, although these have failed here. (The option IMMEDIATE would drop them, but ends the process if a reply
    is being read at that moment.)
    """

    def __init__(
        self,
        reactor: Any,
        requests: Requests,
        endpoint: Endpoint,
        watchers: tuple[OnEvent, ...],
        context: zmq.Context[Any] | None,
        options: SocketOptions,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._watchers = watchers
        self._context = context
        self._options = options
        self._told = not endpoint.bind and not endpoint.address.startswith("inproc://")  # events name the connection
        self._pause = _AGAIN
        self._again: Any = None
        self._closed = False
        self.lane = Lane(requests, self._send)
        self._dealer, self.address = self._open()
        requests.add(self.lane)

    def _open(self) -> tuple[DealerConnection, str]:
        self._again = None
        dealer = DealerConnection(self._reactor, self._replied, context=self._context, **self._options)
        dealer.watch(lambda event: self._seen(dealer, event))
        for on_event in self._watchers:
            dealer.watch(on_event)
        self.lane.down = self._told
        try:
            return dealer, dealer.open(self._endpoint)
        except BaseException:
            dealer.close(LINGER_ABORT)
            raise

    def check(self) -> None:
        """Raise an error if the connection can't be used; see `Connection.check`."""
        if not self._dealer.closed:
            self._dealer.check()

    def close(self, linger: int | None) -> None:
        """Close the socket, and do not connect again."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._dealer.close(linger)

    def _send(self, frames: Sequence[bytes]) -> bool:
        dealer = self._dealer
        if dealer.try_send(frames):
            return True
        dealer.when_writable().addCallbacks(lambda _: self.lane.writable(), lambda _closed: None)
        return False

    def _replied(self, parts: list[bytes]) -> None:
        if len(parts) < 2 or parts[1]:
            raise EnvelopeError("not a reply: expected an id, an empty part and the parts of the reply")
        self._pause = _AGAIN
        self.lane.received(parts[0], parts[2:])

    def _seen(self, dealer: DealerConnection, event: SocketEvent) -> None:
        if event.name == "handshake_succeeded":
            self.lane.up()
        elif event.name == "disconnected" and not self._told:  # several peers connect here: which one is unknown
            self.lane.lost(None)
        elif event.name == "disconnected" and not dealer.closed:
            self.lane.down = True
            dealer.doRead()  # process the replies that have already arrived
            dealer.close(LINGER_ABORT)
            if not self._closed:
                self._again = self._reactor.callLater(self._pause, self._open_again)
                self._pause = min(self._pause * 2, _AGAIN_MAX)
            self.lane.lost(partial(_gone, event.address))

    def _open_again(self) -> None:
        try:
            self._dealer, self.address = self._open()
        except (EndpointError, zmq.ZMQError) as error:  # the context is terminated, or no descriptor is free
            _log.error("%s: can't connect again: %s", self._endpoint, error)


class ReqConnection:
    """Sends requests to servers; `request` returns a Deferred of the reply.

    Any number of requests may be unanswered at a time. Each endpoint has a DEALER socket of its own, and a request goes
    to the server with the fewest unanswered requests. A server that does not answer fills only its own window of 64
    requests.

    A request is sent once. If its server disconnects, it fails with `RequestLostError`; only the caller knows if it may
    be sent again. Endpoints connect unless they begin with ``bind:``. `close` may be called twice.

    Args:
        reactor: The Twisted reactor that the sockets are read on.
        context: The ZeroMQ context; by default the context of the process.
        options: The options of a DEALER socket, as libzmq's names in lower case; see `SocketOptions`.

    Raises:
        TypeError: An option is unknown, or its value has the wrong type.
    """

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        with_options(socket_options("DEALER"), options)  # raises for a wrong option now, not in the first `open`
        self._reactor = reactor
        self._context = context
        self._options = options
        self._requests = Requests(reactor, timed_out=_no_reply)
        self._servers: dict[str, _Server] = {}
        self._watchers: tuple[OnEvent, ...] = ()
        self.closed = False

    @property
    def endpoints(self) -> list[str]:
        """The addresses of the open endpoints."""
        return list(self._servers)

    @property
    def waiting(self) -> int:
        """The number of unsent requests.

        They wait because no server is connected, or because the windows of all servers are full.
        """
        return self._requests.waiting

    @property
    def unanswered(self) -> int:
        """The number of requests that are sent, and not answered, lost or forgotten."""
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
            raise NotRunningError("this ReqConnection is closed: open another one")
        if isinstance(endpoint, str):
            endpoint = parse_endpoint(endpoint, bind=False)
        if endpoint.address in self._servers:
            raise EndpointError(f"{endpoint} is already open: open each endpoint once", endpoint=str(endpoint))
        server = _Server(self._reactor, self._requests, endpoint, self._watchers, self._context, self._options)
        self._servers[server.address] = server
        return server.address

    def disconnect(self, address: str) -> None:
        """Disconnect from the server at ``address``, the result of `open`.

        Its unanswered requests fail with RequestLostError.

        Raises:
            EndpointError: The endpoint is not open.
        """
        if address not in self._servers:
            raise EndpointError(f"{address} is not open: give the address that open() returned", endpoint=address)
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

    def request(self, *parts: bytes, timeout: float | None = _REQUEST_TIMEOUT) -> Deferred[list[bytes]]:
        """Send a request; the Deferred fires with the parts of the reply.

        The Deferred may be cancelled. A request that times out or is cancelled before it was sent is never sent. If it
        was sent, its reply is discarded.

        Args:
            parts: The parts of the request, from 1 to `MAX_PARTS` - 2.
            timeout: Seconds to wait for the reply; None waits without a limit.

        Returns:
            A Deferred of the parts of the reply. It fails with RequestTimeoutError after ``timeout`` seconds, with
            RequestLostError if the server disconnects, and with NotRunningError if the connection is closed.

        Raises:
            TypeError: A part is not bytes.
            ValueError: No parts, or too many.
            WrongThreadError: The caller is not on the thread that opened the connection.
            ForkedContextError: The process was forked from the one that opened the connection.
        """
        for server in self._servers.values():
            server.check()
            break
        if self.closed:
            return fail(NotRunningError("this ReqConnection is closed"))
        if not 0 < len(parts) <= MAX_PARTS - 2:
            raise ValueError(f"a request has 1 to {MAX_PARTS - 2} parts, not {len(parts)}")
        for part in parts:
            if not isinstance(part, bytes):
                raise TypeError(f"the parts of a request are bytes, not {type(part).__name__}")
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
        f"the server at {address} disconnected, and may have handled the request: send it again only if that is safe"
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
            raise UsageError("this request is already answered: reply once")
        parts = tuple(part if isinstance(part, bytes) else bytes(memoryview(part)) for part in parts)
        envelope, self._envelope = self._envelope, None
        self._connection.answer(envelope, parts)


class RepConnection(SendingConnection):
    """Answers requests: ``on_request`` gets each `Request`.

    It may reply in any order, and to any number of clients. A client may be a REQ or DEALER socket, or txZMQ. A request
    that is never answered uses no memory here. Binds unless an endpoint begins with ``connect:``.
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
            body = parts.index(b"", 1) + 1
        except ValueError:
            raise EnvelopeError("not a request: no empty part before its parts") from None
        return self._on_request(Request(self, parts[:body], parts[body:]))
