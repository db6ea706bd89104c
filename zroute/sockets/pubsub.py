"""PUB and XPUB to send, SUB and XSUB to receive (zguide, chapters 2 and 5; RFC 29)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import zmq
import zmq.backend

from zroute.options import MAX_SUBSCRIPTIONS, SUBSCRIPTIONS_SEEN, SocketOptions
from zroute.sockets.origins import Origins
from zroute.sockets.parts import OnMessage, PartsConnection, SendingConnection

__all__ = ["PubConnection", "SubConnection", "XPubConnection", "XSubConnection"]

_AT_ONCE = zmq.DONTWAIT.value  # an enum would be made a number each time

_recv = zmq.backend.Socket.recv  # see `zroute.sockets.connection`

_log = logging.getLogger("zroute.sockets")


class SubConnection(PartsConnection):
    """A SUB socket: ``on_message`` gets what begins with a subscribed prefix.

    Connects unless an endpoint says ``bind:``.
    """

    kind: ClassVar[int] = zmq.SUB
    origins: Origins | None = None
    """By which connection messages come, while `listen_closely`; None else."""

    def listen_closely(self, closely: bool) -> None:
        """Note by which connection each message comes, or stop noting it; see ``origins``.

        It begins and ends with the next turn of reading, costs one or two microseconds a message, and nothing while
        it is off.
        """
        if closely == (self.origins is not None) or self.closed:
            return
        self._follow()
        plain = _recv.__get__(self._socket)
        self.origins = Origins(plain, self.links, self._read_events) if closely else None
        self._recv = plain if self.origins is None else self.origins.recv

    def subscribe(self, prefix: bytes) -> None:
        """Receive what starts with ``prefix``. Subscriptions are counted: each needs its `unsubscribe`."""
        self._socket.set(zmq.SocketOption.SUBSCRIBE, prefix)
        self.poke()

    def unsubscribe(self, prefix: bytes) -> None:
        """Take one `subscribe` of ``prefix`` back. What has arrived is still delivered."""
        self._socket.set(zmq.SocketOption.UNSUBSCRIBE, prefix)
        self.poke()


class XSubConnection(SendingConnection):
    """An XSUB socket: subscribes by messages, can `send` others to its publishers, and filters nothing itself.

    Connects unless an endpoint says ``bind:``.
    """

    kind: ClassVar[int] = zmq.XSUB

    def subscribe(self, prefix: bytes) -> None:
        """Ask all publishers, also later ones, for what starts with ``prefix``; counted, as with SUB."""
        self.send(b"\1" + prefix)

    def unsubscribe(self, prefix: bytes) -> None:
        """Take one `subscribe` of ``prefix`` back."""
        self.send(b"\0" + prefix)


class PubConnection(SendingConnection):
    """A PUB socket: `send` goes to every subscriber whose prefix the first part begins with.

    A subscriber whose queue is full (sndhwm) misses the message, and nobody is told. Binds unless an endpoint
    says ``connect:``.
    """

    kind: ClassVar[int] = zmq.PUB
    binds: ClassVar[bool] = True

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        super().__init__(reactor, list, context=context, **options)


class XPubConnection(SendingConnection):
    """An XPUB socket: sends like PUB, and tells which subscriptions are live.

    ``subscriptions`` holds the prefixes that at least one peer subscribes to; ``on_change``, if given, is
    called with (prefix, whether it is there now) when one comes or goes, and ``on_message`` with what an XSUB
    sends besides. Binds unless an endpoint says ``connect:``.
    """

    kind: ClassVar[int] = zmq.XPUB
    binds: ClassVar[bool] = True

    def __init__(
        self,
        reactor: Any,
        on_change: Callable[[bytes, bool], None] | None = None,
        on_message: OnMessage | None = None,
        *,
        context: zmq.Context[Any] | None = None,
        **options: Unpack[SocketOptions],
    ) -> None:
        super().__init__(reactor, self._received, context=context, **options)
        self.subscriptions: set[bytes] = set()
        self._on_change = on_change
        self.on_subscription: Callable[[bytes, bool], None] | None = None
        self._on_other = on_message
        self._warned = False

    def refuse_when_full(self) -> None:
        """From now on `send` raises HighWaterMarkError, and sends to nobody, while the queue of a peer is full.

        Before the first message: one that was dropped makes libzmq skip that peer (ZMQ_XPUB_NODROP).
        """
        self._socket.set(zmq.SocketOption.XPUB_NODROP, 1)

    def send_frame(self, frame: bytes) -> None:
        """`send` for one part, without its checks: what an App publishes with.

        What such a socket may miss over it are subscriptions, which have time: a turn of the reactor right behind each
        message would be in the way of whoever takes it on.
        """
        self._send(frame, _AT_ONCE)
        if self._poke is None:
            self.poke(SUBSCRIPTIONS_SEEN)

    def try_frame(self, frame: bytes) -> bool:
        """As `send_frame`; False while a peer has no room, behind `refuse_when_full`: then it is sent to nobody."""
        try:
            self._send(frame, _AT_ONCE)
        except zmq.Again:
            self.poke()
            return False
        if self._poke is None:
            self.poke(SUBSCRIPTIONS_SEEN)
        return True

    def _received(self, parts: list[bytes]) -> object:
        """RFC 23 (ZMTP): 1 and a prefix to subscribe, 0 and a prefix to withdraw; anything else is a peer's own."""
        (message, *rest) = parts
        prefix, there = message[1:], message[:1] == b"\1"
        if rest or message[:1] not in (b"\0", b"\1"):
            return self._on_other(parts) if self._on_other else None
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
        if self.on_subscription is not None:
            self.on_subscription(prefix, there)
        if self._on_change is not None:
            self._on_change(prefix, there)
        return None
