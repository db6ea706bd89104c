"""PUB/SUB on the reactor: SUB to receive, XPUB to send and to see who subscribes (zguide, chapter 5)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from typing import Any

import zmq

from zroute.endpoints import Endpoint
from zroute.options import (
    LINGER_ABORT,
    LINGER_DRAIN,
    MAX_MESSAGE,
    MAX_SUBSCRIPTIONS,
    publisher_options,
    subscriber_options,
)
from zroute.sockets.connection import Connection, Drain, make_socket

__all__ = ["PubConnection", "SubConnection"]

_log = logging.getLogger("zroute.sockets")

_EVENT = Struct("=H")  # what a monitor's first part begins with
_GIVEN_UP_AFTER = 1.0  # seconds without an attempt to connect; libzmq says of one at once when it plans it


class SubConnection(Connection):
    """A SUB socket. ``drain`` is called with the means to read; ``max_message`` bounds a body in bytes.

    libzmq connects again after a lost connection, but not after a protocol error, to which it counts a frame
    over MAXMSGSIZE: it ends the session and says nothing. So the socket's monitor is listened to: a
    disconnection (zmq_socket_monitor(3)) that is followed by no attempt to connect is mended here, and said.
    """

    def __init__(
        self, reactor: Any, context: zmq.Context[Any], drain: Drain, *, max_message: int = MAX_MESSAGE
    ) -> None:
        super().__init__(reactor, make_socket(context, zmq.SUB, subscriber_options(max_message)), drain)
        self._max_message = max_message
        self._monitor: Connection | None = None
        self._given_up: dict[str, Any] = {}

    def open(self, endpoint: Endpoint) -> str:
        """See `Connection.open`."""
        if not endpoint.bind and self._monitor is None:
            events = zmq.Event.DISCONNECTED | zmq.Event.CONNECT_RETRIED
            monitor = self._socket.get_monitor_socket(events)
            self._monitor = Connection(self._reactor, monitor, self._watch)
        return super().open(endpoint)

    def close(self, linger: int = LINGER_DRAIN) -> None:
        """See `Connection.close`."""
        if self._monitor is not None and not self.closed:
            self._socket.disable_monitor()
            self._monitor.close(LINGER_ABORT)
        for call in self._given_up.values():
            call.cancel()
        self._given_up.clear()
        super().close(linger)

    def _watch(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        for _ in range(budget):
            (event,), address = _EVENT.unpack_from(recv(zmq.DONTWAIT)), recv(zmq.DONTWAIT).decode()
            call = self._given_up.pop(address, None)
            if call is not None:
                call.cancel()
            if event == zmq.Event.DISCONNECTED:
                self._given_up[address] = self._reactor.callLater(_GIVEN_UP_AFTER, self._connect_again, address)

    def _connect_again(self, address: str) -> None:
        del self._given_up[address]
        _log.warning(
            "%s: the connection was ended by a protocol error, such as a frame far over max_message=%d; what was under "
            "way is lost, connecting again",
            address,
            self._max_message,
        )
        with suppress(zmq.ZMQError):  # libzmq may have forgotten the endpoint with the session
            self._socket.disconnect(address)
        self._socket.connect(address)
        self.poke()

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
        super().__init__(reactor, make_socket(context, zmq.XPUB, publisher_options()), self._drain_subscriptions)
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
