"""Connections whose messages are lists of parts.

`PartsConnection` is the common base of PUSH/PULL, DEALER/ROUTER, REQ/REP, PAIR and the publish/subscribe sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Unpack, cast

import zmq
from twisted.python.failure import Failure

from zroute.awaiting import as_deferred, is_awaitable, was_cancelled
from zroute.errors import EnvelopeError, HighWaterMarkError
from zroute.functions import name_of
from zroute.logs import printable
from zroute.options import IPC_MODE, LINGER_DRAIN, MAX_PARTS, SocketOptions, socket_options, with_options
from zroute.sockets.connection import make_socket
from zroute.sockets.persistent import PersistentConnection
from zroute.throttle import ThrottledLog

__all__ = ["OnMessage", "PartsConnection", "SendingConnection", "all_parts"]

_log = logging.getLogger("zroute.sockets")

OnMessage = Callable[[list[bytes]], object]
"""A function that is called with the parts of each message.

If the function returns a coroutine, a Deferred or another awaitable, zroute awaits the result.
"""

_FIRST_BYTES = 48  # bytes of a part that a log line shows


class PartsConnection(PersistentConnection):
    """A socket of ``kind`` that passes the parts of each message to ``on_message``.

    Counters: ``received`` counts all messages. ``failed`` counts messages whose ``on_message`` raised an error, or
    returned an awaitable that failed. ``malformed`` counts messages that ``on_message`` rejected with `EnvelopeError`,
    and messages of more than `MAX_PARTS` parts. Failed and malformed messages are also logged; repeated log lines are
    summarized. Such messages do not affect later messages.

    Args:
        reactor: The Twisted reactor that reads the socket.
        on_message: Called with the parts of each message.
        context: The ZeroMQ context; the default is the context of the process.
        options: The socket options, with libzmq's names in lower case; see `SocketOptions`.

    Raises:
        TypeError: An option is unknown, has a value of the wrong type, or is not for this kind of socket.
    """

    kind: ClassVar[int]
    names_sender: bool = False
    """True to find out which key has sent each message, if the socket has keys."""

    def __init__(
        self,
        reactor: Any,
        on_message: OnMessage,
        *,
        context: zmq.Context[Any] | None = None,
        **options: Unpack[SocketOptions],
    ) -> None:
        if options.get("immediate") and self.kind not in (zmq.PUSH, zmq.PUB):
            raise TypeError(
                f"immediate=1 is only for sockets that can't receive, but this is a {type(self).__name__}: remove "
                "immediate=1. libzmq 4.3.5 ends the process if a connection with this option is lost while a "
                "message is read"
            )
        chosen = with_options(socket_options(zmq.SocketType(self.kind).name), options)
        super().__init__(reactor, make_socket(context or zmq.Context.instance(), self.kind, chosen), self._drain)
        self.ipc_mode = options.get("ipc_mode", IPC_MODE)
        self.received = self.malformed = self.failed = 0
        self.sender: str | None = None
        """The name of the key of the peer that sent the current message, if ``names_sender`` is True."""
        self._linger = options.get("linger", LINGER_DRAIN)
        self._on_message = on_message
        self._reports = ThrottledLog(_log, reactor)

    def close(self, linger: int | None = None) -> None:
        """Close the socket; see `Connection.close`.

        ``linger`` is in milliseconds; the default is the option ``linger``.
        """
        if not self.closed:
            super().close(self._linger if linger is None else linger)
            self._reports.close()

    def _drain(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        on_message, dontwait, self.sender = self._on_message, zmq.DONTWAIT.value, None
        accepts = self.guard is not None and self.guard.secure and len(self.endpoints) > len(self.dialled)
        names = self.names_sender and self.encrypts
        if accepts:
            self._read_events()  # a descriptor may belong to another connection by now
            if self.closed:
                return
        for _ in range(budget):
            try:
                frame = recv(dontwait, False)  # asking the frame for ``more`` costs a third less than asking the socket
            except zmq.Again:
                if accepts or names:
                    self.links.read_all()
                raise
            if accepts:
                self.learn(frame)
            if names:
                self.sender = self.sender_of(frame)
            parts = all_parts(frame, recv, dontwait) if frame.more else [frame.bytes]
            self.received += 1
            try:
                if len(parts) > MAX_PARTS:
                    raise EnvelopeError(f"more than {MAX_PARTS} parts")
                result = on_message(parts)
            except EnvelopeError as error:
                self.malformed += 1
                first = parts[0][:_FIRST_BYTES]
                self._report(
                    "malformed",
                    logging.WARNING,
                    "malformed message refused: %s; first bytes: %r",
                    printable(error),
                    first,
                )
            except BaseException as error:  # the reactor would drop the socket because of a SystemExit, too
                self._fail(error)
            else:
                if result is not None and is_awaitable(result):
                    as_deferred(cast("Any", result), asyncio_loop=self._on_loop).addErrback(self._errback)
            if self.closed or self.paused:  # ``on_message`` may have closed or paused the connection
                return

    def _errback(self, failure: Failure) -> None:
        if not was_cancelled(failure.value):
            self._fail(failure.value)

    def _fail(self, error: BaseException | None) -> None:
        self.failed += 1
        self._report("failed", logging.ERROR, "%s failed", name_of(self._on_message), error=error)

    def _report(
        self,
        kind: str,
        level: int,
        text: str,
        *args: object,
        error: BaseException | None = None,
        subject: str | None = None,
    ) -> None:
        subject = subject or f"{self.log.name} {', '.join(self.endpoints)}"
        if self.closed:  # log at once: the timer of a summary would outlive the connection
            _log.log(level, f"%s: {text}", subject, *args, exc_info=error)
            return
        self._reports(kind, f"{subject}: {kind}", level, f"%s: {text}", subject, *args, error=error)


class SendingConnection(PartsConnection):
    """A `PartsConnection` that also sends; a full send queue raises an error."""

    def send(self, *parts: bytes) -> None:
        """Send a message of one or more parts, completely or not at all.

        DEALER and PAIR sockets also queue messages while they are connecting to a peer.

        Args:
            parts: The parts, from 1 to `MAX_PARTS`.

        Raises:
            HighWaterMarkError: No peer is connected, or all send queues are full. Wait for `when_writable`, then send
                again.
            NotRunningError: The connection is closed.
            WrongThreadError: The caller is not in the thread that created the connection.
            ForkedContextError: This process is a fork of the process that created the connection.
            ValueError: There are no parts, or more than `MAX_PARTS`.
            TypeError: A part is not bytes-like.
        """
        self.check()
        if not 0 < len(parts) <= MAX_PARTS:
            raise ValueError(f"a message must have 1 to {MAX_PARTS} parts, not {len(parts)}")
        if not self.try_send(parts):
            raise HighWaterMarkError(
                f"{type(self).__name__} {', '.join(self.endpoints)}: no peer is connected, or the queues of all peers "
                f"are full (sndhwm): await when_writable(), then send again"
            )


def all_parts(frame: zmq.Frame, recv: Callable[..., Any], dontwait: int) -> list[bytes]:
    """Return the parts of a message whose first part is ``frame``.

    This function reads the message to its end, but keeps at most `MAX_PARTS` + 1 parts, because the caller rejects
    longer messages.
    """
    parts = [frame.bytes]
    while frame.more:
        frame = recv(dontwait, False)
        if len(parts) <= MAX_PARTS:
            parts.append(frame.bytes)
    return parts
