"""Connections whose messages are lists of parts: what PUSH/PULL, DEALER/ROUTER, REQ/REP and PAIR share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Unpack, cast

import zmq
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.python.failure import Failure

from zroute.awaiting import as_deferred, is_awaitable, was_cancelled
from zroute.errors import EnvelopeError, HighWaterMarkError
from zroute.functions import name_of
from zroute.logs import printable
from zroute.options import LINGER_DRAIN, MAX_PARTS, SocketOptions, socket_options, with_options
from zroute.sockets.connection import make_socket
from zroute.sockets.persistent import PersistentConnection
from zroute.throttle import ThrottledLog

__all__ = ["OnMessage", "PartsConnection", "SendingConnection", "all_parts"]

_log = logging.getLogger("zroute.sockets")

OnMessage = Callable[[list[bytes]], object]
"""Is called with the parts of each message. What it returns, if it can be awaited, is awaited."""

_FIRST_BYTES = 48  # of a part, in a log line


class PartsConnection(PersistentConnection):
    """A socket of ``kind`` in ``context``, or in that of the process; ``on_message`` gets what it receives.

    What ``on_message`` raises, or fails with when it is awaited, is logged and counted in ``failed``. What is no
    message for it is logged and counted in ``malformed``, as are more than `MAX_PARTS` parts. Repeated log
    lines are summed up. ``received`` counts all messages. Raises TypeError for an option that there is not.
    """

    kind: ClassVar[int]

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
                f"immediate=1 is for sockets that only send, and this is a {type(self).__name__}: libzmq 4.3.5 ends "
                "the process when a connection with it is lost while a message is read"
            )
        chosen = with_options(socket_options(zmq.SocketType(self.kind).name), options)
        super().__init__(reactor, make_socket(context or zmq.Context.instance(), self.kind, chosen), self._drain)
        self.received = self.malformed = self.failed = 0
        self._linger = options.get("linger", LINGER_DRAIN)
        self._on_message = on_message
        self._on_loop = isinstance(reactor, AsyncioSelectorReactor)
        self._reports = ThrottledLog(_log, reactor)

    def close(self, linger: int | None = None) -> None:
        """See `Connection.close`; by default for the option ``linger``."""
        if not self.closed:
            super().close(self._linger if linger is None else linger)
            self._reports.close()

    def _drain(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        on_message, dontwait = self._on_message, zmq.DONTWAIT.value
        for _ in range(budget):
            frame = recv(dontwait, False)  # a frame knows whether there is more, for a third less than the socket
            parts = all_parts(frame, recv, dontwait) if frame.more else [frame.bytes]
            self.received += 1
            try:
                if len(parts) > MAX_PARTS:
                    raise EnvelopeError(f"more than {MAX_PARTS} parts")
                result = on_message(parts)
            except EnvelopeError as error:
                self.malformed += 1
                first = parts[0][:_FIRST_BYTES]
                self._report("malformed", logging.WARNING, "a malformed message: %s (%r)", printable(error), first)
            except Exception as error:
                self._fail(error)
            else:
                if result is not None and is_awaitable(result):
                    as_deferred(cast("Any", result), asyncio_loop=self._on_loop).addErrback(self._errback)
            if self.closed or self.paused:  # by what was just called
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
        subject = subject or f"{type(self).__name__} {', '.join(self.endpoints)}"
        if self.closed:  # the timer of a summary would outlive the connection
            _log.log(level, f"%s: {text}", subject, *args, exc_info=error)
            return
        self._reports(kind, f"{subject}: {kind}", level, f"%s: {text}", subject, *args, error=error)


class SendingConnection(PartsConnection):
    """A `PartsConnection` that also sends, and tells its owner when it can't."""

    def send(self, *parts: bytes) -> None:
        """Send a message of one part or more, at once or not at all.

        Raises HighWaterMarkError while nobody is connected or the queues of those who are are full: see
        `when_writable`. DEALER and PAIR also queue for a peer that is being connected to. Raises NotRunningError once
        the connection is closed, WrongThreadError in another thread than the one that made it, ForkedContextError in a
        forked child.
        """
        self.check()
        if not 0 < len(parts) <= MAX_PARTS:
            raise ValueError(f"a message has 1 to {MAX_PARTS} parts, not {len(parts)}")
        if not self.try_send(parts):
            raise HighWaterMarkError(
                f"{type(self).__name__} {', '.join(self.endpoints)}: nobody is connected, or the queues of all peers "
                f"are full (sndhwm): await when_writable(), and send then"
            )


def all_parts(frame: zmq.Frame, recv: Callable[..., Any], dontwait: int) -> list[bytes]:
    """The parts of one message; those beyond the bound are read, and not kept, and it is an EnvelopeError later."""
    parts = [frame.bytes]
    while frame.more:
        frame = recv(dontwait, False)
        if len(parts) <= MAX_PARTS:
            parts.append(frame.bytes)
    return parts
