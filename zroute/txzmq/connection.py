"""`ZmqConnection`, a socket that calls a method per message, and `ZmqFactory`."""

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
_FIRST_BYTES = 48  # the bytes of a message that a log line quotes
_PATIENCE = 2.0  # seconds after the linger period until `shutdown` stops waiting for the context

_log = logging.getLogger("zroute.txzmq")


class _GlobalReactor:
    """Twisted's global reactor, imported on first use.

    Importing the reactor installs it, so it must not be imported together with this module.
    """

    def __get__(self, factory: object, kind: type | None = None) -> Any:
        return import_module("twisted.internet.reactor")


class ZmqFactory:
    """A ZeroMQ context and options that several connections share.

    Set the options as attributes of the class or the instance. The options are read when they are needed.

    Attributes:
        reactor: the reactor of the connections; the default is Twisted's global reactor.
        ioThreads: the number of I/O threads of the context; the default is 1.
        lingerPeriod: the time in milliseconds for which a closed connection continues to send; the default is 100.
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
        self.trigger = None  # a trigger fires only once
        self.shutdown()

    def shutdown(self) -> None:
        """Close all connections and terminate the context.

        Queued messages are sent for up to ``lingerPeriod`` milliseconds. A second call has no effect.

        The call always returns. If other code keeps a socket of the context open, the call logs a warning 2 s after the
        linger period and stops waiting.
        """
        if self.trigger is not None:
            self.reactor.removeSystemEventTrigger(self.trigger)
            self.trigger = None
        # A copy, because each connection removes itself from the set.
        for connection in tuple(self.connections):
            connection.shutdown()
        context, self.context = self.context, None
        if context is None:
            return
        terminating = threading.Thread(target=context.term, name="zroute-txzmq-term", daemon=True)
        terminating.start()
        terminating.join(max(self.lingerPeriod, 0) / 1000 + _PATIENCE)
        if terminating.is_alive():
            _log.warning(
                "can't terminate the ZeroMQ context: another part of the program has an open socket in this context"
            )


class ZmqEndpointType:
    """The types of endpoints."""

    bind = "bind"
    connect = "connect"


class ZmqEndpoint(NamedTuple):
    """An endpoint of a connection.

    Attributes:
        type: a value of `ZmqEndpointType`.
        address: the address in libzmq's form, such as ``tcp://127.0.0.1:5555``.
    """

    type: str
    address: str


class _TwistedLog(logging.Logger):
    """A logger that writes to Twisted's log, as txZMQ does."""

    def log(self, level: int, msg: object, *args: object, **more: Any) -> None:
        log.msg(f"{logging.getLevelName(level)}: {str(msg) % args}")


class _Socket(Connection):
    """The zroute connection that a `ZmqConnection` contains.

    `ZmqConnection` does not inherit from `_Socket`, because attributes of `_Socket` could have the same names as
    attributes of a program's subclass.
    """

    owner: ZmqConnection

    def logPrefix(self) -> str:
        """Return the prefix of the owner."""
        return self.owner.logPrefix()

    def connectionLost(self, reason: Failure) -> None:
        """Tell the owner that the reactor has dropped the file descriptor."""
        self.owner.connectionLost(reason)


@implementer(IReadDescriptor, IFileDescriptor)
class ZmqConnection:
    """A ZeroMQ socket that calls `messageReceived` for each message.

    Subclasses implement `messageReceived`, or the method that `messageReceived` calls. If that method raises an error,
    the error is logged and counted in ``failed``. If the method returns an awaitable, zroute awaits it, and logs and
    counts its errors in the same way. Messages in an unexpected form are logged and counted in ``malformed``.

    Class attributes set the options of the socket. These attributes are read when a connection is created.

    Attributes:
        socketType: the type of the socket, such as zmq.PULL.
        highWaterMark: ZMQ_SNDHWM and ZMQ_RCVHWM: the maximum number of messages in a queue, 0 for no limit.
        tcpKeepalive: ZMQ_TCP_KEEPALIVE: 1 to enable keepalive, 0 for the setting of the system.
        tcpKeepaliveIdle: ZMQ_TCP_KEEPALIVE_IDLE in seconds, 0 for the setting of the system.
        tcpKeepaliveInterval: ZMQ_TCP_KEEPALIVE_INTVL in seconds, 0 for the setting of the system.
        tcpKeepaliveCount: ZMQ_TCP_KEEPALIVE_CNT, 0 for the setting of the system.
        reconnectInterval: ZMQ_RECONNECT_IVL in milliseconds.
        reconnectIntervalMax: ZMQ_RECONNECT_IVL_MAX in milliseconds, 0 to always wait ``reconnectInterval``.
        multicastRate: ZMQ_RATE in kilobits per second.
        allowLoopbackMulticast: accepted for existing programs; the option has had no effect since libzmq 3.

    Args:
        factory: the factory with the context.
        endpoint: the first endpoint, or None; `addEndpoints` adds further endpoints.
        identity: the identity of the socket, which a ROUTER at the other end uses.

    Raises:
        TypeError: the class has no ``socketType``.
        NotRunningError: the factory was shut down.
        zmq.ZMQError: the endpoint can't be bound or connected.
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
            raise TypeError(f"{type(self).__name__} has no socketType: set it to zmq.PULL or another socket type")
        if factory.context is None:
            raise NotRunningError(f"{factory!r} was shut down: create a new factory for new connections")
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
                self.shutdown()  # otherwise the socket would stay open as long as the exception is referenced
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
        yield from ((name, value) for name, value in keepalive.items() if value)  # 0 keeps the system's setting
        if self.identity is not None:
            yield option.IDENTITY, as_bytes(self.identity)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.factory!r}, {self.endpoints!r})"

    def addEndpoints(self, endpoints: Iterable[ZmqEndpoint]) -> None:
        """Bind or connect to more endpoints.

        Raises:
            ValueError: the type of an endpoint is neither "bind" nor "connect".
            zmq.ZMQError: an endpoint can't be bound or connected. EADDRINUSE means that another socket serves the ipc
                path, and EEXIST that a file at the path is not a socket.
        """
        for endpoint in endpoints:
            if endpoint.type not in ("bind", "connect"):
                raise ValueError(f"the type of an endpoint must be 'bind' or 'connect', not {endpoint.type!r}")
            self._connection.check()
            assert self.socket is not None
            if endpoint.type == ZmqEndpointType.bind:
                bind(self.socket, endpoint.address, None)  # the umask decides who may connect, as in txZMQ
            else:
                self.socket.connect(endpoint.address)
            self.endpoints.append(endpoint)
        self._connection.poke()

    def send(self, message: bytes | str | Sequence[bytes | str]) -> None:
        """Send one part, or a list of parts; text is sent as UTF-8.

        Raises:
            zmq.Again: libzmq has no room for the message, or no peer is connected.
        """
        self._connection.check()
        parts = [as_bytes(message)] if isinstance(message, str | bytes) else [as_bytes(part) for part in message]
        if not self._connection.try_send(parts):
            raise zmq.Again

    def messageReceived(self, message: list[bytes]) -> Any:
        """Handle the parts of a message; implemented by subclasses."""
        raise NotImplementedError(self)

    def shutdown(self) -> None:
        """Close the socket; a second call has no effect."""
        self.factory.connections.discard(self)
        if not self._connection.closed:
            self._connection.close(self.factory.lingerPeriod)
            self._reports.close()
            self.socket = None

    def fileno(self) -> int:
        """Return the file descriptor, or -1 after `shutdown`."""
        return self._connection.fileno()

    def doRead(self) -> None:
        """Deliver the messages that have arrived, for a limited time."""
        self._connection.doRead()

    def logPrefix(self) -> str:
        """Return the name of this connection in Twisted's log."""
        return "ZMQ"

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, because the reactor has dropped its file descriptor."""
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
        self._reports(
            "malformed", f"{self!r}: malformed", logging.WARNING, "%r: malformed message: %s (%s…)", self, *shown
        )

    def _failed_now(self, failure: Failure | None = None) -> None:
        self.failed += 1
        log.err(failure, f"{self!r} failed to handle a message")  # type: ignore[no-untyped-call]

    def _settle(self, result: Any) -> None:
        if is_awaitable(result):
            running = as_deferred(result, asyncio_loop=self._on_loop)
            running.addErrback(lambda failure: None if was_cancelled(failure.value) else self._failed_now(failure))


def as_bytes(part: bytes | str) -> bytes:
    """Return ``part`` as bytes; text becomes UTF-8."""
    return part.encode() if isinstance(part, str) else part
