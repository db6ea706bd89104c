"""Requests and replies on DEALER and ROUTER, with many requests at the same time."""

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
from zroute.requests.lanes import Lane, Requests
from zroute.sockets.events import SocketEvent
from zroute.txzmq.connection import ZmqConnection, as_bytes

__all__ = [
    "ZmqREPConnection",
    "ZmqREQConnection",
    "ZmqRequestTimeoutError",
    "ZmqXREPConnection",
    "ZmqXREQConnection",
]

_REPLIES_KEPT = 10_000
"""The maximum number of requests that wait for `ZmqREPConnection.reply`. A further request replaces the oldest."""
_FIRST_BYTES = 48  # the bytes of a request's id that a log line quotes; the peer chooses the id


class ZmqRequestTimeoutError(Exception):
    """A request got no reply within its timeout; the argument is the request's id."""


class ZmqREQConnection(ZmqConnection):
    """A DEALER socket that sends requests with `sendMsg`.

    Up to 64 requests are sent to a peer before it replies; further requests wait in this object. A request that is
    still waiting when it times out or is cancelled is never sent.

    Attributes:
        defaultRequestTimeout: the time in seconds after which a request fails; None waits forever.
        UUID_POOL_GEN_SIZE: the number of request ids that are created at a time.
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
            self._lane.down = True  # until a peer connects: a request in libzmq's queue can't be withdrawn
            self._pending.add(self._lane)
            self._connection.watch(self._seen)
        endpoints = tuple(endpoints)
        super().addEndpoints(endpoints)
        inside = sum(endpoint.address.startswith("inproc://") for endpoint in endpoints)
        if inside:  # libzmq has no events for inproc connections
            self._connected += inside
            self._lane.up()

    def sendMsg(self, *messageParts: bytes | str, timeout: float | None = None) -> Deferred[list[bytes]]:
        """Send a request; the Deferred fires with the parts of the reply.

        Cancelling the Deferred cancels the request.

        Args:
            *messageParts: the parts of the request; text is sent as UTF-8.
            timeout: the time in seconds to wait for the reply; None uses ``defaultRequestTimeout``.

        Raises:
            ZmqRequestTimeoutError: no reply arrived in time. The Deferred fails with this error.
        """
        self._connection.check()
        # No endpoint yet: the request waits until a peer connects.
        if self._lane is None:
            self.addEndpoints([])
        id = self._getNextId()
        seconds = self.defaultRequestTimeout if timeout is None else timeout
        reply = self._pending.make([as_bytes(part) for part in messageParts], seconds, id)
        self._requests[id] = reply

        def ended(result: Any) -> Any:
            del self._requests[id]
            if not isinstance(result, Failure):  # a late reply must not match another request with the same id
                self._releaseId(id)
            return result

        return reply.addBoth(ended)

    def messageReceived(self, message: list[bytes]) -> Any:
        """Fire the Deferred of the request to which the reply belongs."""
        if len(message) < 2 or message[1]:
            raise EnvelopeError("not a reply: expected an id, an empty part and the parts of the reply")
        if self._lane is not None:
            self._lane.received(message[0], message[2:])

    def shutdown(self) -> None:
        """Close the socket; Deferreds of unanswered requests never fire."""
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
            self._connection.doRead()  # first deliver the replies that arrived before the disconnection
            self._lane.down = not self._connected
            self._lane.lost(None)

    def _getNextId(self) -> bytes:
        if not self._uuids:
            self._uuids.extend(uuid.uuid4().bytes for _ in range(self.UUID_POOL_GEN_SIZE))
        return self._uuids.pop()

    def _releaseId(self, id: bytes) -> None:
        self._uuids.append(id)


class ZmqREPConnection(ZmqConnection):
    """A ROUTER socket that receives requests; subclasses implement `gotMessage`.

    At most 10,000 requests can wait for their `reply`. A further request replaces the oldest, which is counted in
    ``forgotten`` and logged.
    """

    socketType = zmq.ROUTER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._routingInfo: dict[bytes, list[bytes]] = {}
        self.forgotten = 0
        super().__init__(*args, **kwargs)

    def reply(self, messageId: bytes, *messageParts: bytes | str) -> None:
        """Reply to a request; each request gets one reply.

        Args:
            messageId: the id that `gotMessage` received.
            *messageParts: the parts of the reply; text is sent as UTF-8.

        Raises:
            KeyError: no request with this id is waiting for a reply.
        """
        try:
            routing = self._routingInfo.pop(messageId)
        except KeyError:
            raise KeyError(
                f"request {messageId!r} is not waiting for a reply: it was already answered, or was dropped "
                "because of newer requests"
            ) from None
        self.send([*routing, messageId, b"", *messageParts])

    def messageReceived(self, message: list[bytes]) -> Any:
        """Store the sender's routing ids for `reply`, and call `gotMessage`."""
        try:
            end = message.index(b"", 1)
        except ValueError:
            raise EnvelopeError("expected an empty part before the request") from None
        id = message[end - 1]
        self._routingInfo[id] = message[: end - 1]
        if len(self._routingInfo) > _REPLIES_KEPT:
            self._forget(next(iter(self._routingInfo)))
        return self.gotMessage(id, *message[end + 1 :])

    def gotMessage(self, messageId: bytes, *messageParts: bytes) -> Any:
        """Handle a request; implemented by subclasses.

        ``messageId`` is the id for `reply`.
        """
        raise NotImplementedError(self)

    def _forget(self, id: bytes) -> None:
        del self._routingInfo[id]
        self.forgotten += 1
        text = "%r: request %r was never answered and is dropped"
        self._reports("forgotten", f"{self!r}: forgotten", logging.WARNING, text, self, id[:_FIRST_BYTES])


class ZmqXREQConnection(ZmqREQConnection):
    """The former name of `ZmqREQConnection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("ZmqXREQConnection is now ZmqREQConnection", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


class ZmqXREPConnection(ZmqREPConnection):
    """The former name of `ZmqREPConnection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("ZmqXREPConnection is now ZmqREPConnection", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)
