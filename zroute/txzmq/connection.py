"""ZmqConnection, a ZeroMQ socket whose messages come to a method, and ZmqFactory, which has what they share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import zmq
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.interfaces import IFileDescriptor, IReadDescriptor
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from zroute.awaiting import as_deferred, is_awaitable, was_cancelled
from zroute.errors import EnvelopeError, NotRunningError
from zroute.logs import printable
from zroute.sockets.connection import Connection
from zroute.sockets.ipc import bind
from zroute.throttle import ThrottledLog

__all__ = ["ZmqConnection", "ZmqEndpoint", "ZmqEndpointType", "ZmqFactory", "as_bytes"]

_DONTWAIT = zmq.DONTWAIT.value
_FIRST_BYTES = 48  # of a message, in a log line
_PATIENCE = 2.0  # seconds beyond the linger period until a context that does not end is left alone

_log = logging.getLogger("zroute.txzmq")


class _GlobalReactor:
    """Twisted's global reactor, installed when it is first asked for and not when this module is imported."""

    def __get__(self, factory: object, kind: type | None = None) -> Any:
        return import_module("twisted.internet.reactor")


class ZmqFactory:
    """Makes one ZeroMQ context for the connections that are given this factory.

    Options are attributes of the class or of the instance, read when they are needed: ``reactor`` (by default
    Twisted's global one), ``ioThreads`` of the context (1), and ``lingerPeriod``, the milliseconds that a closed
    connection goes on sending (100).
    """

    reactor: Any = _GlobalReactor()
    ioThreads = 1
    lingerPeriod = 100
    trigger: Any = None

    def __init__(self) -> None:
        self.connections: set[ZmqConnection] = set()
        self.context: zmq.Context[Any] | None = zmq.Context(self.ioThreads)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def registerForShutdown(self) -> None:
        """Call `shutdown` when the reactor stops."""
        if self.trigger is None:
            self.trigger = self.reactor.addSystemEventTrigger("during", "shutdown", self._reactor_stops)

    def _reactor_stops(self) -> None:
        self.trigger = None  # it has been used up
        self.shutdown()

    def shutdown(self) -> None:
        """Close all connections and terminate the context; what was sent has ``lingerPeriod`` to leave.

        Calling it twice is nothing. It never hangs: a context in which somebody else keeps a socket open is left
        to itself 2 s after the linger period, with a warning.
        """
        if self.trigger is not None:
            self.reactor.removeSystemEventTrigger(self.trigger)
            self.trigger = None
        for connection in tuple(self.connections):
            connection.shutdown()
        context, self.context = self.context, None
        if context is None:
            return
        terminating = threading.Thread(target=context.term, name="zroute-txzmq-term", daemon=True)
        terminating.start()
        terminating.join(max(self.lingerPeriod, 0) / 1000 + _PATIENCE)
        if terminating.is_alive():
            _log.warning("the ZeroMQ context does not terminate: a socket of it is open somewhere else")


class ZmqEndpointType:
    """What an endpoint does."""

    bind = "bind"
    connect = "connect"


class ZmqEndpoint(NamedTuple):
    """``type`` is one of `ZmqEndpointType`, ``address`` as libzmq has it."""

    type: str
    address: str


class _TwistedLog(logging.Logger):
    """Log lines in Twisted's log, where programs of txZMQ have theirs."""

    def log(self, level: int, msg: object, *args: object, **more: Any) -> None:
        log.msg(f"{logging.getLevelName(level)}: {str(msg) % args}")


class _Socket(Connection):
    """The connection that a `ZmqConnection` has: inherited, its names would be in the way of a program's own."""

    owner: ZmqConnection

    def logPrefix(self) -> str:
        """As the owner has it."""
        return self.owner.logPrefix()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up."""
        self.owner.connectionLost(reason)


@implementer(IReadDescriptor, IFileDescriptor)
class ZmqConnection:
    """A socket of ``socketType``, bound or connected to ``endpoint`` and to what `addEndpoints` adds.

    Subclasses implement `messageReceived`, or what their base class makes of it. What it raises is logged and
    counted in ``failed``; what it returns, if it can be awaited, is awaited, and its failure logged. Messages of a
    form that is not expected are logged and counted in ``malformed``.

    Options are attributes of the class, read when a connection is made: ``highWaterMark`` (messages in each
    direction, 0 for no limit), ``tcpKeepalive`` (1 to have it), ``tcpKeepaliveIdle`` and ``tcpKeepaliveInterval``
    (seconds), ``tcpKeepaliveCount``, ``reconnectInterval`` and ``reconnectIntervalMax`` (ms), ``multicastRate``
    (kilobits per second); 0 leaves libzmq's own default. ``allowLoopbackMulticast`` has no effect since libzmq 3.
    """

    socketType: int | None = None
    allowLoopbackMulticast = False
    multicastRate = 100
    highWaterMark = 0
    tcpKeepalive = 0
    tcpKeepaliveCount = 0
    tcpKeepaliveIdle = 0
    tcpKeepaliveInterval = 0
    reconnectInterval = 100
    reconnectIntervalMax = 0

    def __init__(
        self, factory: ZmqFactory, endpoint: ZmqEndpoint | None = None, identity: bytes | str | None = None
    ) -> None:
        if self.socketType is None:
            raise TypeError(f"{type(self).__name__} has no socketType: set it to zmq.PULL or another one of ZeroMQ's")
        if factory.context is None:
            raise NotRunningError(f"{factory!r} was shut down: make a new one for new connections")
        self.factory = factory
        self.identity = identity
        socket: zmq.Socket[Any] = factory.context.socket(self.socketType)
        for option, value in self._options():
            socket.set(option, value)
        self.endpoints: list[ZmqEndpoint] = []
        self.socket: zmq.Socket[Any] | None = socket
        self._connection = _Socket(factory.reactor, socket, self._deliver)
        self._connection.owner = self
        self.fd = self.fileno()
        self.malformed = self.failed = 0
        self._on_loop = isinstance(factory.reactor, AsyncioSelectorReactor)
        self._reports = ThrottledLog(_TwistedLog("zroute.txzmq"), factory.reactor)
        factory.connections.add(self)
        if endpoint is not None:
            try:
                self.addEndpoints([endpoint])
            except BaseException:
                self.shutdown()  # an exception that is kept alive would otherwise keep the socket open
                raise

    def _options(self) -> Iterable[tuple[zmq.SocketOption, Any]]:
        option = zmq.SocketOption
        yield option.LINGER, self.factory.lingerPeriod
        yield option.RATE, self.multicastRate
        yield option.SNDHWM, self.highWaterMark
        yield option.RCVHWM, self.highWaterMark
        yield option.RECONNECT_IVL, self.reconnectInterval
        yield option.RECONNECT_IVL_MAX, self.reconnectIntervalMax
        keepalive = {
            option.TCP_KEEPALIVE: self.tcpKeepalive,
            option.TCP_KEEPALIVE_CNT: self.tcpKeepaliveCount,
            option.TCP_KEEPALIVE_IDLE: self.tcpKeepaliveIdle,
            option.TCP_KEEPALIVE_INTVL: self.tcpKeepaliveInterval,
        }
        yield from ((name, value) for name, value in keepalive.items() if value)
        if self.identity is not None:
            yield option.IDENTITY, as_bytes(self.identity)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.factory!r}, {self.endpoints!r})"

    def addEndpoints(self, endpoints: Iterable[ZmqEndpoint]) -> None:
        """Bind or connect to more; raises zmq.ZMQError for one that can't be.

        That is EADDRINUSE for an ipc path that another socket serves, and EEXIST if a file is there that is no socket.
        """
        for endpoint in endpoints:
            if endpoint.type not in ("bind", "connect"):
                raise ValueError(f"an endpoint's type is 'bind' or 'connect', not {endpoint.type!r}")
            self._connection.check()
            assert self.socket is not None
            if endpoint.type == ZmqEndpointType.bind:
                bind(self.socket, endpoint.address)
            else:
                self.socket.connect(endpoint.address)
            self.endpoints.append(endpoint)
        self._connection.poke()

    def send(self, message: bytes | str | Sequence[bytes | str]) -> None:
        """Send one part, or a list of parts; text as UTF-8. Raises zmq.Again where libzmq does not take it."""
        self._connection.check()
        parts = [as_bytes(message)] if isinstance(message, str | bytes) else [as_bytes(part) for part in message]
        if not self._connection.try_send(parts):
            raise zmq.Again

    def messageReceived(self, message: list[bytes]) -> Any:
        """Is called with the parts of each message."""
        raise NotImplementedError(self)

    def shutdown(self) -> None:
        """Close the socket; calling it twice is nothing."""
        self.factory.connections.discard(self)
        if not self._connection.closed:
            self._connection.close(self.factory.lingerPeriod)
            self._reports.close()
            self.socket = None

    def fileno(self) -> int:
        """The descriptor; -1 after `shutdown`."""
        return self._connection.fileno()

    def doRead(self) -> None:
        """Deliver what there is, for a bounded time."""
        self._connection.doRead()

    def logPrefix(self) -> str:
        """How Twisted's log names this connection."""
        return "ZMQ"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up."""
        self.shutdown()

    # -- receiving --------------------------------------------------------------------------------------

    def _deliver(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            frame = recv(_DONTWAIT, False)
            parts = [frame.bytes]
            while frame.more:
                frame = recv(_DONTWAIT, False)
                parts.append(frame.bytes)
            self._handle(self.messageReceived, parts)
            if self._connection.closed:
                return

    def _handle(self, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            result = method(*arguments)
        except EnvelopeError as error:
            self._malformed(error, arguments)
        except Exception:
            self._failed_now()
        else:
            if result is not None:
                self._settle(result)

    def _malformed(self, error: EnvelopeError, what: object) -> None:
        self.malformed += 1
        shown = printable(error), repr(what)[:_FIRST_BYTES]
        self._reports("malformed", f"{self!r}: malformed", logging.WARNING, "%r: %s (%s…)", self, *shown)

    def _failed_now(self, failure: Failure | None = None) -> None:
        self.failed += 1
        log.err(failure, f"{self!r} failed over a message")  # type: ignore[no-untyped-call]

    def _settle(self, result: Any) -> None:
        if is_awaitable(result):
            running = as_deferred(result, asyncio_loop=self._on_loop)
            running.addErrback(lambda failure: None if was_cancelled(failure.value) else self._failed_now(failure))


def as_bytes(part: bytes | str) -> bytes:
    """``part``, as UTF-8 if it is text."""
    return part.encode() if isinstance(part, str) else part
