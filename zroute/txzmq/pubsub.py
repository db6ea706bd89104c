"""PUB and SUB sockets whose messages are ``tag NUL body`` in one part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from zroute.errors import EnvelopeError
from zroute.txzmq.connection import ZmqConnection, as_bytes

__all__ = ["ZmqPubConnection", "ZmqSubConnection"]

_DONTWAIT = zmq.DONTWAIT.value


class ZmqPubConnection(ZmqConnection):
    """A PUB socket."""

    socketType = zmq.PUB

    def publish(self, message: bytes | str, tag: bytes | str = b"") -> None:
        """Send ``tag NUL message`` to the subscribers of each prefix of these bytes.

        Args:
            message: the body; text is sent as UTF-8.
            tag: the tag; text is sent as UTF-8.
        """
        self.send(as_bytes(tag) + b"\0" + as_bytes(message))


class ZmqSubConnection(ZmqConnection):
    """A SUB socket; subclasses implement `gotMessage`."""

    socketType = zmq.SUB

    def subscribe(self, tag: bytes | str) -> None:
        r"""Receive messages that begin with ``tag``.

        ``b"news\0"`` selects only the tag "news". Subscriptions are counted: each call needs its own `unsubscribe`.
        """
        self._subscription(zmq.SocketOption.SUBSCRIBE, tag)

    def unsubscribe(self, tag: bytes | str) -> None:
        """Cancel one `subscribe` of ``tag``."""
        self._subscription(zmq.SocketOption.UNSUBSCRIBE, tag)

    def _subscription(self, option: zmq.SocketOption, tag: bytes | str) -> None:
        self._connection.check()
        assert self.socket is not None
        self.socket.set(option, as_bytes(tag))
        self._connection.poke()

    def messageReceived(self, message: list[bytes]) -> Any:
        """Call `gotMessage` for ``tag NUL body`` in one part, or tag and body in two."""
        if len(message) == 2:
            return self.gotMessage(message[1], message[0])
        if len(message) > 1:
            raise EnvelopeError(f"expected one or two parts, got {len(message)}")
        tag, nul, body = message[0].partition(b"\0")
        if not nul:
            raise EnvelopeError("expected a NUL between tag and message, got none")
        return self.gotMessage(body, tag)

    def gotMessage(self, message: bytes, tag: bytes) -> Any:
        """Handle a message and its tag; implemented by subclasses."""
        raise NotImplementedError(self)

    def _deliver(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        # If a program has replaced messageReceived, in a subclass or on the object, the replacement must be called.
        own = getattr(self.messageReceived, "__func__", None)
        if own is not ZmqSubConnection.messageReceived:
            super()._deliver(recv, more, budget)
            return
        got, several, closing = self.gotMessage, self.messageReceived, self._connection
        for _ in range(budget):
            frame = recv(_DONTWAIT, False)
            first = frame.bytes
            tag, nul, body = first.partition(b"\0")
            if frame.more or not nul:  # not the common form: let messageReceived handle or refuse it
                parts = [first]
                while frame.more:
                    frame = recv(_DONTWAIT, False)
                    parts.append(frame.bytes)
                self._handle(several, parts)
            else:
                try:
                    result = got(body, tag)
                except Exception:
                    self._failed_now()
                else:
                    if result is not None:
                        self._settle(result)
            if closing.closed:
                return
