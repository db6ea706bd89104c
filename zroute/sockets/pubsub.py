"""PUB/SUB on the reactor: SUB to receive, XPUB to send and to see who subscribes (zguide, chapter 5)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import zmq

from zroute.options import MAX_MESSAGE, MAX_SUBSCRIPTIONS, publisher_options, subscriber_options
from zroute.sockets.connection import Connection, Drain

__all__ = ["PubConnection", "SubConnection"]

_log = logging.getLogger("zroute.sockets")


class SubConnection(Connection):
    """A SUB socket. ``drain`` is called with the means to read; ``max_message`` bounds a body in bytes."""

    def __init__(self, reactor: Any, context: zmq.Context[Any], drain: Drain, *, max_message: int = MAX_MESSAGE):
        super().__init__(reactor, context, zmq.SUB, subscriber_options(max_message), drain)

    def subscribe(self, prefix: bytes) -> None:
        """Receive what starts with ``prefix``. Subscriptions are counted: each needs its `unsubscribe`."""
        self._socket.set(zmq.SocketOption.SUBSCRIBE, prefix)
        self.poke()

    def unsubscribe(self, prefix: bytes) -> None:
        """Take one `subscribe` of ``prefix`` back. What has arrived is still delivered."""
        self._socket.set(zmq.SocketOption.UNSUBSCRIBE, prefix)
        self.poke()


class PubConnection(Connection):
    """An XPUB socket: sends like PUB, and tells which subscriptions are live.

    ``subscriptions`` holds the prefixes that at least one peer subscribes to; ``on_change``, if given, is
    called with (prefix, whether it is there now) when one comes or goes.
    """

    def __init__(
        self, reactor: Any, context: zmq.Context[Any], on_change: Callable[[bytes, bool], None] | None = None
    ) -> None:
        super().__init__(reactor, context, zmq.XPUB, publisher_options(), self._drain_subscriptions)
        self.subscriptions: set[bytes] = set()
        self._on_change = on_change
        self._warned = False

    def send(self, frame: bytes) -> None:
        """Send one frame. Never blocks: a peer whose queue is full misses it, as PUB has it."""
        self._send(frame, zmq.DONTWAIT)
        self.poke()

    def send_parts(self, parts: tuple[bytes, ...]) -> None:
        """Send the parts of one message, which peers receive all or none of."""
        self._socket.send_multipart(parts, zmq.DONTWAIT)
        self.poke()

    def _drain_subscriptions(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            self._subscription(recv(zmq.DONTWAIT))

    def _subscription(self, message: bytes) -> None:
        """RFC 23 (ZMTP): 1 and a prefix to subscribe, 0 and a prefix to withdraw; anything else is a peer's own."""
        prefix, there = message[1:], message[:1] == b"\1"
        if message[:1] not in (b"\0", b"\1"):
            return
        if there:
            self.subscriptions.add(prefix)
        else:
            self.subscriptions.discard(prefix)
        if len(self.subscriptions) > MAX_SUBSCRIPTIONS and not self._warned:
            self._warned = True
            _log.warning(
                "%d live subscriptions at %s, more than %d: a subscriber floods this publisher, or patterns are "
                "too fine",
                len(self.subscriptions),
                self.endpoints,
                MAX_SUBSCRIPTIONS,
            )
        if self._on_change is not None:
            self._on_change(prefix, there)
