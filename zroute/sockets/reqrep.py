"""REQ and REP: many requests at a time, each with its reply (zguide, chapter 3; RFC 28).

On the wire a request is ``[id, b"", *parts]`` of a DEALER, and its reply the same with other parts, as a REP
gives it back. libzmq keeps what a peer has not taken, and delivers it late, when nobody waits any more. So what
is not sent yet is kept here, where timeout and cancellation still reach it, and no peer is sent more than a
window of requests that it has not answered.
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

_REQUEST_TIMEOUT = 10.0
_AGAIN, _AGAIN_MAX = 0.1, 5.0  # seconds until a lost connection is made again, doubled each time; as RECONNECT_IVL
_NUMBER = Struct(">Q")


@attrs.define(eq=False)
class _Unanswered:
    """A request: its ``frames`` are dropped when it is sent, its ``reply`` when nobody waits for it any more."""

    id: bytes
    frames: Sequence[bytes]
    timeout: float | None
    reply: Deferred[list[bytes]] | None = None
    timer: Any = None
    lane: Lane | None = None
    counts: bool = True


class Lane:
    """The way to one peer, or to one socket: ``send`` takes frames and returns False while it can't.

    Its owner calls `writable` when that may have changed, `received` with each reply, and `lost` when the peer
    has gone.
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
        """The peer is there again, and ``down``, which its owner has set, over.

        libzmq tells of the end of a connection before it takes it from the socket, which until then takes messages
        and drops them.
        """
        self.down = False
        self._requests.pump()

    def writable(self) -> None:
        """Perhaps it takes requests again."""
        if self.blocked:
            self.blocked = False
            self._requests.pump()

    def received(self, id: bytes, parts: list[bytes]) -> bool:
        """A reply; False if nobody waits for it: late, given twice, or never asked for."""
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
        """It was answered, forgotten or lost: there is room for another."""
        del self.sent[request.id]
        request.lane = None
        self.load -= request.counts
        self.given_up -= request.reply is None

    def lost(self, error: Callable[[], Exception] | None) -> None:
        """The peer has gone, and what it was sent with it: each such request fails with a new ``error``.

        Without one they are left to their timeouts, since another peer may have them, and room is made for others.
        """
        self._requests.lost(self, error)


class Requests:
    """Requests in the order they were made, and the lanes they go by: each to the one with the fewest unanswered.

    At most ``window`` unanswered ones in a lane. One that was given up after it was sent counts until its reply or
    that of a later one comes, since a peer that has answered a later one has read it; at most ``forgotten`` seconds.
    ``timed_out`` makes the error of a timeout from id and seconds.
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
        """Requests that are not sent yet."""
        return len(self._waiting)

    @property
    def unanswered(self) -> int:
        """Requests that are sent, and not answered or forgotten."""
        return sum(len(lane.sent) for lane in self._lanes)

    def add(self, lane: Lane) -> None:
        """One lane more."""
        self._lanes.append(lane)
        self.pump()

    def remove(self, lane: Lane) -> None:
        """One lane less; its owner has called `Lane.lost` if that is what happened."""
        self._lanes.remove(lane)

    def make(self, parts: Sequence[bytes], timeout: float | None, id: bytes | None = None) -> Deferred[list[bytes]]:
        """Send ``parts`` when a lane has room; fires with the parts of the reply.

        It fails after ``timeout`` seconds, if there is one, and may be cancelled; what is not sent by then
        never is. ``id`` is one that no other request has, by default of 16 bytes.
        """
        if id is None:
            id = self._first + _NUMBER.pack(next(self._numbers))
        request = _Unanswered(id, (id, b"", *parts), timeout)
        reply: Deferred[list[bytes]] = Deferred(lambda _: self._give_up(request))
        request.reply = reply
        if timeout is not None:
            request.timer = self._clock.callLater(timeout, self._too_late, request)
        self._waiting[id] = request
        if len(self._waiting) == 1:  # else the first of them has found no room
            self.pump()
        return reply

    def pump(self) -> None:
        """Send what there is room for."""
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
        """The open lane with the fewest unanswered requests; the next in turn, if several have as few."""
        found = None
        for lane in self._lanes:
            if not (lane.blocked or lane.down) and lane.load < (self._window if found is None else found.load):
                found = lane
        if found is not None and len(self._lanes) > 1:
            self._lanes.remove(found)
            self._lanes.append(found)
        return found

    def answered(self, request: _Unanswered, parts: list[bytes]) -> bool:
        """``request`` is out of its lane; hand its reply over. False if nobody waits for it."""
        self._cancel_timer(request)
        reply, request.reply = request.reply, None
        self.pump()
        if reply is None:
            self.late += 1
            return False
        reply.callback(parts)
        return True

    def lost(self, lane: Lane, error: Callable[[], Exception] | None) -> None:
        """The peer of ``lane`` has gone."""
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
        """No request is sent any more, and with ``error`` each fails with a new one; no timer is left behind."""
        left = [*self._waiting.values(), *(request for lane in self._lanes for request in lane.sent.values())]
        self._waiting.clear()
        self._lanes.clear()
        for request in left:
            self._cancel_timer(request)
            request.lane = None  # else one that is cancelled in the errback of another would wait to be forgotten
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
        """Nobody waits for the reply any more."""
        self._cancel_timer(request)
        request.reply = None
        if self._waiting.pop(request.id, None) is None and request.lane is not None:
            request.lane.given_up += 1
            request.timer = self._clock.callLater(self._forgotten, self._forget, request)

    def _forget(self, request: _Unanswered) -> None:
        self.forget([request])
        self.pump()

    def forget(self, given_up: Iterable[_Unanswered]) -> None:
        """The replies to these were never given, or are lost."""
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
    """One endpoint of a `ReqConnection`, and its way there.

    It has a new DEALER for each connection: one that libzmq connects again would be sent what it had not taken, though
    that has failed here. (IMMEDIATE would drop it, and ends the process if a reply is being read.)
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
        self._told = not endpoint.bind and not endpoint.address.startswith("inproc://")  # of each connection
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
        """See `Connection.check`."""
        if not self._dealer.closed:
            self._dealer.check()

    def close(self, linger: int | None) -> None:
        """Ask no more."""
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
            raise EnvelopeError("no reply, which is an id, an empty part, and what was replied")
        self._pause = _AGAIN
        self.lane.received(parts[0], parts[2:])

    def _seen(self, dealer: DealerConnection, event: SocketEvent) -> None:
        if event.name == "handshake_succeeded":
            self.lane.up()
        elif event.name == "disconnected" and not self._told:  # of several who connect here nobody tells which one
            self.lane.lost(None)
        elif event.name == "disconnected" and not dealer.closed:
            self.lane.down = True
            dealer.doRead()  # the replies that came before
            dealer.close(LINGER_ABORT)
            if not self._closed:
                self._again = self._reactor.callLater(self._pause, self._open_again)
                self._pause = min(self._pause * 2, _AGAIN_MAX)
            self.lane.lost(partial(_gone, event.address))

    def _open_again(self) -> None:
        try:
            self._dealer, self.address = self._open()
        except (EndpointError, zmq.ZMQError) as error:  # the context is gone, or there is no descriptor left
            _log.error("%s: can't connect again: %s", self._endpoint, error)


class ReqConnection:
    """Asks servers, many requests at a time: `request` gives a Deferred of the reply.

    Each endpoint has a DEALER socket of its own, so that one server that does not answer fills its own window
    (64) and not that of another; a request goes to the server with the fewest unanswered ones. It is made once:
    where its server goes away it fails with RequestLostError, and whether to ask again is the caller's to know.

    Takes the options of a DEALER. Connects unless an endpoint says ``bind:``. Closing twice is nothing.
    """

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        with_options(socket_options("DEALER"), options)  # a wrong one is an error here, not at the first `open`
        self._reactor = reactor
        self._context = context
        self._options = options
        self._requests = Requests(reactor, timed_out=_no_reply)
        self._servers: dict[str, _Server] = {}
        self._watchers: tuple[OnEvent, ...] = ()
        self.closed = False

    @property
    def endpoints(self) -> list[str]:
        """The addresses that are open."""
        return list(self._servers)

    @property
    def waiting(self) -> int:
        """Requests that are not sent yet: nobody is connected, or everybody's window is full."""
        return self._requests.waiting

    @property
    def unanswered(self) -> int:
        """Requests that are sent, and not answered, lost or forgotten."""
        return self._requests.unanswered

    @property
    def late(self) -> int:
        """Replies that nobody waited for any more."""
        return self._requests.late

    def open(self, endpoint: Endpoint | str) -> str:
        """Connect to a server; see `Connection.open`."""
        if self.closed:
            raise NotRunningError("this ReqConnection is closed: open another one")
        if isinstance(endpoint, str):
            endpoint = parse_endpoint(endpoint, bind=False)
        if endpoint.address in self._servers:
            raise EndpointError(f"{endpoint} is open already: once is enough", endpoint=str(endpoint))
        server = _Server(self._reactor, self._requests, endpoint, self._watchers, self._context, self._options)
        self._servers[server.address] = server
        return server.address

    def disconnect(self, address: str) -> None:
        """Ask the server at ``address``, as `open` returned it, no more; what it was asked fails with RequestLostError.

        Raises EndpointError for one that is not open.
        """
        if address not in self._servers:
            raise EndpointError(f"{address} is not open: give the address that open() returned", endpoint=address)
        server = self._servers.pop(address)
        self._requests.remove(server.lane)
        server.close(LINGER_ABORT)
        server.lane.lost(partial(_gone, address))

    unbind = disconnect

    def watch(self, on_event: OnEvent) -> None:
        """See `Connection.watch`; for the endpoints that are opened from now on."""
        self._watchers += (on_event,)

    def request(self, *parts: bytes, timeout: float | None = _REQUEST_TIMEOUT) -> Deferred[list[bytes]]:
        """Ask for a reply; fires with its parts.

        It fails with RequestTimeoutError after ``timeout`` seconds (10: as long as a person waits; None: never), with
        RequestLostError when its server goes away, with NotRunningError when this is closed. It may be
        cancelled. What is not sent by then never is; of what is sent, the reply is thrown away.

        Raises TypeError for a part that is not bytes, ValueError for no part or more than `MAX_PARTS` - 2.
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
        """Close all sockets; what is unanswered fails with NotRunningError. ``linger`` as in `Connection.close`."""
        if self.closed:
            return
        self.closed = True
        for server in self._servers.values():
            server.close(linger)
        self._servers.clear()
        self._requests.close(lambda: NotRunningError("the ReqConnection was closed before the reply"))


def _no_reply(id: bytes, seconds: float) -> Exception:
    return RequestTimeoutError(f"no reply within {seconds:g} s: is the server running, and does it answer?")


def _gone(address: str) -> Exception:
    return RequestLostError(
        f"the server at {address} has gone, and may have done what it was asked: ask again, if that may be done twice"
    )


class Request:
    """What a client asks: ``parts``, to be answered once with `reply`, now or later."""

    __slots__ = ("_connection", "_envelope", "parts")

    def __init__(self, connection: RepConnection, envelope: list[bytes] | None, parts: list[bytes]) -> None:
        self._connection = connection
        self._envelope = envelope
        self.parts = parts

    def reply(self, *parts: bytes) -> None:
        """Answer. Where the client has gone, or takes no more, that is logged and counted in ``undelivered``.

        Raises UsageError if it is answered already, TypeError for a part that is not bytes (it can be answered
        then), and NotRunningError once the connection is closed.
        """
        if self._envelope is None:
            raise UsageError("this request is answered already: reply once")
        parts = tuple(part if isinstance(part, bytes) else bytes(memoryview(part)) for part in parts)
        envelope, self._envelope = self._envelope, None
        self._connection.answer(envelope, parts)


class RepConnection(SendingConnection):
    """Answers: ``on_request`` gets each `Request`, of any number of clients, and replies in any order.

    A client may be a REQ, a DEALER, or txZMQ. A request that is never answered costs nothing here but what
    ``on_request`` keeps of it. Binds unless an endpoint says ``connect:``.
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
        """Send ``parts`` to whom ``envelope`` came from."""
        if self.closed:
            raise NotRunningError("this RepConnection is closed: its clients can't be answered any more")
        try:
            if self.try_send([*envelope, *parts]):
                return
            reason = "takes no more (sndhwm)"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            reason = "has gone"
        self.undelivered += 1
        self._report("undelivered", logging.WARNING, "a reply was not delivered: client %r %s", envelope[0], reason)

    def _request(self, parts: list[bytes]) -> object:
        try:
            body = parts.index(b"", 1) + 1
        except ValueError:
            raise EnvelopeError("no empty part, behind which a request begins") from None
        return self._on_request(Request(self, parts[:body], parts[body:]))
