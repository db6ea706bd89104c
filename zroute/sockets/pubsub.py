"""PUB and XPUB to send, SUB and XSUB to receive (zguide, chapters 2 and 5; RFC 29)."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Set
from typing import Any, ClassVar, NamedTuple, Unpack

import zmq
import zmq.backend

from zroute.options import MAX_SUBSCRIPTIONS, READ_BUDGET, SUBSCRIPTION_COST, SUBSCRIPTIONS_SEEN, SocketOptions
from zroute.sockets.budgets import Budgets
from zroute.sockets.links import Link
from zroute.sockets.origins import Origins
from zroute.sockets.parts import OnMessage, PartsConnection, SendingConnection, all_parts
from zroute.sockets.refusals import Refusals

__all__ = ["PubConnection", "SubConnection", "XPubConnection", "XSubConnection"]

_AT_ONCE = zmq.DONTWAIT.value  # an enum would be made a number each time

_AHEAD = 4096
"""Subscriptions that are read and accounted for at a time, before the first of them are told: about 20 ms."""

_UNTOLD_MAX = 100_000
"""Changes that are read and not told: beyond that none is read until some are told."""

_RAISE = "Raise App(limits=Limits(max_subscription_bytes=…)) if the peer needs them"

_recv = zmq.backend.Socket.recv  # see `zroute.sockets.connection`

_log = logging.getLogger("zroute.sockets")


class _Change(NamedTuple):
    prefix: bytes
    there: bool


def _change(parts: list[bytes]) -> _Change | None:
    """RFC 23 (ZMTP): 1 and a prefix to subscribe, 0 and a prefix to withdraw; anything else is a peer's own."""
    message = parts[0]
    if len(parts) > 1 or message[:1] not in (b"\0", b"\1"):
        return None
    return _Change(message[1:], message[:1] == b"\1")


def _ended_again(subscriptions: Collection[bytes], pause: float) -> str:
    size = sum(max(len(prefix), SUBSCRIPTION_COST) for prefix in subscriptions)
    return (
        f"the connection has ended again, right after subscribing ({len(subscriptions):,} subscriptions, {size:,} "
        f"bytes); connecting again in {pause:g} s. If the publisher's log names max_subscription_bytes, raise it "
        "there: App(limits=Limits(max_subscription_bytes=…))"
    )


class SubConnection(PartsConnection):
    """A SUB socket: ``on_message`` gets what begins with a subscribed prefix.

    Connects unless an endpoint says ``bind:``.
    """

    kind: ClassVar[int] = zmq.SUB
    origins: Origins | None = None
    """By which connection messages come, while `listen_closely`; None else."""
    subscribed: Callable[[], Collection[bytes]] | None = None
    """Returns the live subscriptions. If set, an endpoint that ends the connection again and again, as soon as it has
    been sent them, is left alone for a while, and a warning tells how many they are."""

    def __init__(
        self,
        reactor: Any,
        on_message: OnMessage,
        *,
        context: zmq.Context[Any] | None = None,
        **options: Unpack[SocketOptions],
    ) -> None:
        super().__init__(reactor, on_message, context=context, **options)
        self._refusals = Refusals()

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

    def _connected(self, link: Link) -> None:
        super()._connected(link)
        if self.subscribed is not None and link.endpoint is not None:
            self._refusals.began(link.endpoint, self._reactor.seconds())

    def _attempted(self, endpoint: str | None) -> None:
        super()._attempted(endpoint)
        if self.subscribed is not None and endpoint is not None:
            self._refusals.attempted(endpoint)

    def _disconnected(self, link: Link) -> None:
        super()._disconnected(link)
        if self.subscribed is None or link.endpoint is None or not link.ready:
            return
        pause = self._refusals.ended(link.endpoint, self._reactor.seconds())
        if pause:
            self.log.warn(link.endpoint, "ended again", _ended_again(self.subscribed(), pause))
            self._rest_soon(link.endpoint, pause)

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
        self._budgets = Budgets()
        self._most: int | None = None
        self._remedy = _RAISE
        self._origins: Origins | None = None
        self._untold: OrderedDict[_Change, int | None] = OrderedDict()  # read and accounted for, with the connection
        self._cut: dict[int, int] = {}  # descriptors, by the id of the connection
        self._cut_fds: set[int] = set()  # of ended ones, while something of them may be unread
        self._refusals = Refusals()
        self._on_change = on_change
        self.on_subscription: Callable[[bytes, bool], None] | None = None
        self._on_other = on_message
        self._warned = False

    @property
    def subscriptions(self) -> Set[bytes]:
        """The prefixes that at least one peer subscribes to now."""
        return self._budgets.prefixes

    def limit_subscriptions(self, most: int, remedy: str = _RAISE) -> None:
        """Cut each connection by which more than ``most`` bytes of live subscriptions come; once, before `open`.

        The log line about that advises ``remedy``.

        What it subscribes to beyond that is told to nobody. libzmq tells of a prefix that several peers have once, so
        that it counts for the first of them. Peers over ``inproc`` have no limit: they are of this process.
        """
        self._most, self._remedy = most, remedy
        self._follow()
        self._origins = Origins(self._recv, self.links, self._read_events)
        self._recv = self._origins.recv

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
        change = _change(parts)
        if change is None:
            return self._on_other(parts) if self._on_other else None
        if self._most is None and change.there:
            self._budgets.add(change.prefix, None)
        elif self._most is None:
            self._budgets.remove(change.prefix)
        self._tell_of(change.prefix, change.there)
        return None

    def _tell_of(self, prefix: bytes, there: bool) -> None:
        if len(self.subscriptions) > MAX_SUBSCRIPTIONS and not self._warned:
            self._warned = True
            _log.warning(
                "%s: %d live subscriptions at %s, more than %d: a subscriber floods this publisher, or patterns are "
                "too fine",
                self.log.name,
                len(self.subscriptions),
                self.endpoints,
                MAX_SUBSCRIPTIONS,
            )
        if self.on_subscription is not None:
            self.on_subscription(prefix, there)
        if self._on_change is not None:
            self._on_change(prefix, there)

    # -- with a limit ------------------------------------------------------------------------------------------

    def _drain(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        """Read ahead of what is told: libzmq goes on adding subscriptions while the first of them are handled."""
        if self._most is None:
            super()._drain(recv, more, budget)
            return
        self._read_events()  # a descriptor may be another connection's by now
        try:
            for _ in range(min(_AHEAD, _UNTOLD_MAX - len(self._untold))):
                self._take(recv)
        except zmq.Again:
            self._cut_fds.clear()
            self._tell_some()
            if self._untold:
                self._read_again()
            raise
        self._tell_some()

    def _take(self, recv: Callable[..., Any]) -> None:
        frame = recv(_AT_ONCE, False)
        parts = all_parts(frame, recv, _AT_ONCE) if frame.more else [frame.bytes]
        self.received += 1
        change, link = _change(parts), self._account()
        if change is None:
            self._hand_over(self._received, parts)
        elif not change.there:
            self._remove(change)
        elif link is None or link.id not in self._cut:
            self._add(change, link)

    def _account(self) -> Link | None:
        """Return the connection of what was read last, a cut one too; None where there is none to charge."""
        assert self._origins is not None
        link = self._origins.link
        if link is not None and link.id in self._cut:
            self._read_events()
            link = self.links.at(link.fd)  # a new one may have the descriptor of the one that was cut
        return link

    def _add(self, change: _Change, link: Link | None) -> None:
        assert self._origins is not None
        assert self._most is not None
        if link is None:
            if self._origins.fd not in self._cut_fds:
                self._budgets.add(change.prefix, None)
                self._untold[change] = None
            return
        spent = self._budgets.add(change.prefix, link.id)
        self._untold[change] = link.id
        if spent > self._most:
            self._cut_for(link, spent)

    def _remove(self, change: _Change) -> None:
        """Withdraw a prefix. If it was not told that it had come, neither is told.

        So a peer that subscribes and withdraws again and again queues no more than its budget. The other way round
        both are told: a marker that comes again is to be answered again.
        """
        if not self._budgets.remove(change.prefix):
            return
        came = _Change(change.prefix, True)
        if came in self._untold:
            del self._untold[came]
        else:
            self._untold[change] = None

    def _tell_some(self) -> None:
        for _ in range(READ_BUDGET):
            if not self._untold or self.closed:
                break
            change, _link = self._untold.popitem(last=False)
            self._hand_over(self._tell_of, *change)

    def _hand_over(self, to: Callable[..., object], *args: object) -> None:
        try:
            to(*args)
        except Exception as error:
            self._fail(error)

    def _cut_for(self, link: Link, spent: int) -> None:
        self._cut[link.id] = link.fd
        text = (
            "the connection of %s is cut: its subscriptions have %s bytes, more than max_subscription_bytes=%s. %s; "
            "all subscribers behind a proxy share one connection"
        )
        facts = self.peer(link.id), f"{spent:,}", f"{self._most:,}", self._remedy
        self._report("cut", logging.WARNING, text, *facts, subject=self.log.name)
        self.end(link.id, discard=True)
        for change in [change for change, of in self._untold.items() if of == link.id]:
            self._budgets.remove(change.prefix)
            del self._untold[change]

    def _disconnected(self, link: Link) -> None:
        super()._disconnected(link)
        self._budgets.close({link.id})
        if self._origins is not None:
            self._origins.heard()
        if link.id in self._cut:
            self._cut_fds.add(self._cut.pop(link.id))
            if link.endpoint is not None:  # it is ours to connect again
                self._rest_soon(link.endpoint, self._refusals.refuse(link.endpoint))

    def _forget_ended(self) -> None:
        super()._forget_ended()
        alive = self.links.alive
        self._budgets.close(self._budgets.links - alive)
        for id in self._cut.keys() - alive:
            self._cut_fds.add(self._cut.pop(id))
