"""Request and reply: a DEALER and a ROUTER that have many requests under way."""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import zmq
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.errors import EnvelopeError
from zroute.sockets.events import SocketEvent
from zroute.sockets.reqrep import Lane, Requests
from zroute.txzmq.connection import ZmqConnection, as_bytes

__all__ = [
    "ZmqREPConnection",
    "ZmqREQConnection",
    "ZmqRequestTimeoutError",
    "ZmqXREPConnection",
    "ZmqXREQConnection",
]

_REPLIES_KEPT = 10_000
"""Requests that wait for `ZmqREPConnection.reply`; the oldest is forgotten for one more."""
_FIRST_BYTES = 48  # of a request's id, which its peer chooses, in a log line


class ZmqRequestTimeoutError(Exception):
    """No reply came within the timeout; its argument is the request's id."""


class ZmqREQConnection(ZmqConnection):
    """A DEALER socket that sends requests with `sendMsg`.

    A request that is not sent when it times out or is cancelled is never sent, and a peer is not sent more than 64
    that it has not answered: the others wait here.
    """

    socketType = zmq.DEALER
    defaultRequestTimeout: float | None = None
    UUID_POOL_GEN_SIZE = 5

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._requests: dict[bytes, Deferred[list[bytes]]] = {}
        self._uuids: list[bytes] = []
        self._connected = 0
        self._lane: Lane | None = None
        super().__init__(*args, **kwargs)

    def addEndpoints(self, endpoints: Iterable[Any]) -> None:
        """See `ZmqConnection.addEndpoints`."""
        if self._lane is None:
            self._pending = Requests(self.factory.reactor, timed_out=lambda id, _seconds: ZmqRequestTimeoutError(id))
            self._lane = Lane(self._pending, self._transmit)
            self._lane.down = True  # what libzmq is given for nobody, nobody can take back
            self._pending.add(self._lane)
            self._connection.watch(self._seen)
        endpoints = tuple(endpoints)
        super().addEndpoints(endpoints)
        inside = sum(endpoint.address.startswith("inproc://") for endpoint in endpoints)
        if inside:  # of these libzmq tells nothing
            self._connected += inside
            self._lane.up()

    def sendMsg(self, *messageParts: bytes | str, timeout: float | None = None) -> Deferred[list[bytes]]:
        """Ask; fires with the parts of the reply.

        It fails with ZmqRequestTimeoutError after ``timeout`` seconds (by default ``defaultRequestTimeout``; None
        waits for ever), and may be cancelled.
        """
        self._connection.check()
        if self._lane is None:
            self.addEndpoints([])
        id = self._getNextId()
        seconds = self.defaultRequestTimeout if timeout is None else timeout
        reply = self._pending.make([as_bytes(part) for part in messageParts], seconds, id)
        self._requests[id] = reply

        def ended(result: Any) -> Any:
            del self._requests[id]
            if not isinstance(result, Failure):  # else a late reply could be taken for that of another request
                self._releaseId(id)
            return result

        return reply.addBoth(ended)

    def messageReceived(self, message: list[bytes]) -> Any:
        """A reply: fires the Deferred of its request."""
        if len(message) < 2 or message[1]:
            raise EnvelopeError("no reply, which is an id, an empty part, and what was replied")
        if self._lane is not None:
            self._lane.received(message[0], message[2:])

    def shutdown(self) -> None:
        """See `ZmqConnection.shutdown`; Deferreds of requests that are not answered never fire."""
        if self._lane is not None and not self._connection.closed:
            self._pending.close(None)
        super().shutdown()

    def _transmit(self, frames: Sequence[bytes]) -> bool:
        if self._connection.try_send(frames):
            return True
        self._connection.when_writable().addCallbacks(self._writable, lambda _closed: None)
        return False

    def _writable(self, _: None) -> None:
        if self._lane is not None:
            self._lane.writable()

    def _seen(self, event: SocketEvent) -> None:
        if self._lane is None:
            return
        if event.name == "handshake_succeeded":
            self._connected += 1
            self._lane.up()
        elif event.name == "disconnected":
            self._connected = max(self._connected - 1, 0)
            self._connection.doRead()  # the replies that came before
            self._lane.down = not self._connected
            self._lane.lost(None)

    def _getNextId(self) -> bytes:
        if not self._uuids:
            self._uuids.extend(uuid.uuid4().bytes for _ in range(self.UUID_POOL_GEN_SIZE))
        return self._uuids.pop()

    def _releaseId(self, id: bytes) -> None:
        self._uuids.append(id)


class ZmqREPConnection(ZmqConnection):
    """A ROUTER socket that answers; subclasses implement `gotMessage`.

    At most 10,000 requests wait for their `reply`; for one more the oldest is forgotten, counted in
    ``forgotten``, and said in the log.
    """

    socketType = zmq.ROUTER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._routingInfo: dict[bytes, list[bytes]] = {}
        self.forgotten = 0
        super().__init__(*args, **kwargs)

    def reply(self, messageId: bytes, *messageParts: bytes | str) -> None:
        """Answer the request with this id, once. Raises KeyError for an id that waits for no reply."""
        try:
            routing = self._routingInfo.pop(messageId)
        except KeyError:
            raise KeyError(
                f"no request {messageId!r} waits for a reply: it was answered already, or forgotten for newer ones"
            ) from None
        self.send([*routing, messageId, b"", *messageParts])

    def messageReceived(self, message: list[bytes]) -> Any:
        """Remembers where the reply goes to, and calls `gotMessage`."""
        try:
            end = message.index(b"", 1)
        except ValueError:
            raise EnvelopeError("no empty part, behind which a request begins") from None
        id = message[end - 1]
        self._routingInfo[id] = message[: end - 1]
        if len(self._routingInfo) > _REPLIES_KEPT:
            self._forget(next(iter(self._routingInfo)))
        return self.gotMessage(id, *message[end + 1 :])

    def gotMessage(self, messageId: bytes, *messageParts: bytes) -> Any:
        """Is called with each request."""
        raise NotImplementedError(self)

    def _forget(self, id: bytes) -> None:
        del self._routingInfo[id]
        self.forgotten += 1
        text = "%r: request %r was never answered and is forgotten"
        self._reports("forgotten", f"{self!r}: forgotten", logging.WARNING, text, self, id[:_FIRST_BYTES])


class ZmqXREQConnection(ZmqREQConnection):
    """The old name of `ZmqREQConnection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("ZmqXREQConnection is now ZmqREQConnection", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


class ZmqXREPConnection(ZmqREPConnection):
    """The old name of `ZmqREPConnection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("ZmqXREPConnection is now ZmqREPConnection", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)
