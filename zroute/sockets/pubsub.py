"""Publish/subscribe sockets: PUB and XPUB send; SUB and XSUB receive.

See the zguide, chapters 2 and 5, and RFC 29.

A publisher can limit the bytes of subscriptions of each connection (`XPubConnection.limit_subscriptions`). libzmq
itself adds every subscription that arrives, so the limit must be checked early. A socket with a limit therefore reads
subscriptions faster than it reports them. Changes that were read but not yet reported wait in a queue of limited
length.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Set
from typing import Any, ClassVar, NamedTuple, Unpack, cast

import zmq
import zmq.backend

from zroute.codegen import Inline, define
from zroute.options import MAX_SUBSCRIPTIONS, READ_BUDGET, SUBSCRIPTION_COST, SUBSCRIPTIONS_SEEN, SocketOptions
from zroute.sockets.budgets import Budgets
from zroute.sockets.links import Link
from zroute.sockets.origins import Origins, PeerNames
from zroute.sockets.parts import OnMessage, PartsConnection, SendingConnection, all_parts
from zroute.sockets.refusals import Refusals

__all__ = ["SEND_LINES", "PubConnection", "SubConnection", "XPubConnection", "XSubConnection"]

_AT_ONCE = zmq.DONTWAIT.value  # a number, because an enum would be converted in each call

SEND_LINES = (
    # `_send` is looked up in each call, because `close` replaces it.
    "send = connection._send",  # CPython 3.11 calls a local variable faster than an attribute
    f"send(frame, {_AT_ONCE})",
    "if connection._poke is None:",
    f"    connection.poke({SUBSCRIPTIONS_SEEN})",
)
"""The lines that send ``frame`` with ``connection``, an `XPubConnection`."""

_AHEAD = 4096
"""The number of subscriptions that are read and charged before the first one is reported; this takes about 20 ms."""

_UNTOLD_MAX = 100_000
"""The maximum number of changes that wait to be reported. At this number, reading pauses."""

_PASSED_MAX = 1_000
"""The number of withdrawn subscriptions that wait to be reported; see `XPubConnection.fleeting`."""

_RAISE = "If the peer needs all of these subscriptions, increase App(limits=Limits(max_subscription_bytes=…))"

_recv = zmq.backend.Socket.recv  # the Cython method, as in `zroute.sockets.connection`

_log = logging.getLogger("zroute.sockets")


class _Change(NamedTuple):
    prefix: bytes
    there: bool


def _change(parts: list[bytes]) -> _Change | None:
    """Return the change of a subscription in a message, or None for other messages.

    The format is that of RFC 23 (ZMTP): 1 and a prefix to subscribe, 0 and a prefix to unsubscribe.
    """
    message = parts[0]
    if len(parts) > 1 or message[:1] not in (b"\0", b"\1"):
        return None
    return _Change(message[1:], message[:1] == b"\1")


def _ended_again(subscriptions: Collection[bytes], pause: float) -> str:
    size = sum(max(len(prefix), SUBSCRIPTION_COST) for prefix in subscriptions)
    return (
        f"the connection has ended again right after subscribing ({len(subscriptions):,} subscriptions, {size:,} "
        f"bytes); reconnecting in {pause:g} s. If the publisher's log mentions max_subscription_bytes, increase "
        "App(limits=Limits(max_subscription_bytes=…)) in the publisher"
    )


class SubConnection(PartsConnection):
    """A SUB socket: receives the messages that begin with a subscribed prefix.

    Connects to each endpoint, or binds if the endpoint begins with ``bind:``. ``on_message`` receives the parts of one
    message as a list of bytes. If the publisher sends a topic and a body, the list has two parts:

        def on_message(parts: list[bytes]) -> None:
            topic, body = parts
            print(topic, len(body))

        connection = SubConnection(reactor, on_message)
        connection.subscribe(b"stocks.")
        connection.open("tcp://127.0.0.1:5555")

    Args:
        reactor: The Twisted reactor that reads the socket.
        on_message: Called with the parts of each message. If the function returns an awaitable, zroute awaits the
            result.
        context: The ZeroMQ context; the default is the context of the process.
        options: The socket options, with libzmq's names in lower case; see `SocketOptions`.
    """

    kind: ClassVar[int] = zmq.SUB
    origins: Origins | None = None
    """The origins of messages while `listen_closely` is on, else None."""
    subscribed: Callable[[], Collection[bytes]] | None = None
    """A function that returns the active subscriptions, or None.

        If the function is set, the socket detects a peer that repeatedly closes the connection after receiving the
        subscriptions. The socket then waits before it reconnects, and logs a warning with the number of subscriptions.
    """

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
        self._named: Callable[[bytes, str | None], bytes] | None = None

    def listen_closely(self, closely: bool) -> None:
        """Start or stop recording the connection that delivers each message.

        ``origins`` contains the result. The change takes effect the next time the socket is read. Recording costs one
        to two microseconds per message.
        """
        if closely == (self.origins is not None) or self.closed:
            return
        self._follow()
        plain = _recv.__get__(self._socket)
        self.origins = Origins(plain, self.links, self._read_events) if closely else None
        self._choose_recv()

    def name_peers(self, named: Callable[[bytes, str | None], bytes] | None) -> None:
        """Let ``named`` add the name of the peer's key to each part; see `PeerNames`.

        With None, deliver parts unchanged. The change takes effect the next time the socket is read. It costs one to
        two microseconds per message.
        """
        if named != self._named and not self.closed:
            self._follow()
            self._named = named
            self._choose_recv()

    def _choose_recv(self) -> None:
        recv = _recv.__get__(self._socket) if self.origins is None else self.origins.recv
        if self._named is not None:
            recv = PeerNames(recv, self.links, self.sender_of, self._named).recv
        self._recv = recv

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
        """Receive messages that begin with ``prefix``.

        Subscriptions are counted: each call needs its own `unsubscribe`.
        """
        self._socket.set(zmq.SocketOption.SUBSCRIBE, prefix)
        self.poke()

    def unsubscribe(self, prefix: bytes) -> None:
        """Undo one `subscribe` of ``prefix``.

        Messages that have arrived are still delivered.
        """
        self._socket.set(zmq.SocketOption.UNSUBSCRIBE, prefix)
        self.poke()


class XSubConnection(SendingConnection):
    """An XSUB socket: subscribes with messages, and does not filter.

    `send` sends a message to all connected publishers. Connects to each endpoint, or binds if the endpoint begins with
    ``bind:``.
    """

    kind: ClassVar[int] = zmq.XSUB

    def subscribe(self, prefix: bytes) -> None:
        """Ask all current and future publishers for messages with this prefix.

        Subscriptions are counted: each call needs its own `unsubscribe`.
        """
        self.send(b"\1" + prefix)

    def unsubscribe(self, prefix: bytes) -> None:
        """Undo one `subscribe` of ``prefix``."""
        self.send(b"\0" + prefix)


class PubConnection(SendingConnection):
    """A PUB socket: sends to all peers that subscribe to a prefix of the first part.

    If the queue of a subscriber is full (``sndhwm``), that subscriber does not receive the message, and no error is
    raised. Binds each endpoint, or connects if the endpoint begins with ``connect:``.
    """

    kind: ClassVar[int] = zmq.PUB
    binds: ClassVar[bool] = True

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        # A function that is never called, because a PUB socket receives no messages.
        super().__init__(reactor, list, context=context, **options)


class XPubConnection(SendingConnection):
    """An XPUB socket, which sends like a PUB socket and reports subscriptions.

    ``subscriptions`` is the set of prefixes to which at least one peer subscribes. Binds each endpoint, or connects if
    the endpoint begins with ``connect:``.

    Args:
        reactor: The Twisted reactor that reads the socket.
        on_change: Called with a prefix, and with True when the first peer subscribes to the prefix, or False when the
            last peer unsubscribes or disconnects.
        on_message: Called with the parts of each other message; only an XSUB sends such messages.
        context: The ZeroMQ context; the default is the context of the process.
        options: The socket options, with libzmq's names in lower case; see `SocketOptions`.
    """

    kind: ClassVar[int] = zmq.XPUB
    binds: ClassVar[bool] = True
    fleeting: bytes | None = None
    """The first bytes of subscriptions that are messages of peers; None if there are no such subscriptions.

    A peer withdraws such a subscription at once. A socket with a limit reports it nevertheless, without its withdrawal.
    """

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
        self._untold: OrderedDict[_Change, int | None] = OrderedDict()  # unreported, with the connection's id
        self._passed: deque[bytes] = deque(maxlen=_PASSED_MAX)  # fleeting ones that were withdrawn, unreported
        self._cut: dict[int, int] = {}  # descriptors, by the id of the connection
        self._cut_fds: set[int] = set()  # descriptors of ended connections that may have unread messages
        self._refusals = Refusals()
        self._on_change = on_change
        self.on_subscription: Callable[[bytes, bool], None] | None = None
        self._on_other = on_message
        self._warned = False
        self.send_frame = self._make_send_frame()

    def _make_send_frame(self) -> Callable[[bytes], None]:
        """Return a function that sends a message of one part. Apps use this function.

        It omits the checks of `send`.

        Its attribute ``inline`` has the lines that send ``frame``, for use inside a larger function.

        A send can hide the arrival of subscriptions, but these are not urgent: the socket is checked within
        `SUBSCRIPTIONS_SEEN` seconds. A check in the next turn of the reactor after each message would delay the
        receiver of the message.
        """
        names = {"connection": self}
        send_frame: Any = define("\n    ".join(("def send_frame(frame):", *SEND_LINES)), "send_frame", names)
        send_frame.inline = Inline(SEND_LINES, names)
        return cast("Callable[[bytes], None]", send_frame)

    @property
    def subscriptions(self) -> Set[bytes]:
        """The prefixes to which at least one peer subscribes."""
        return self._budgets.prefixes

    def limit_subscriptions(self, most: int, remedy: str = _RAISE) -> None:
        """Close connections with subscriptions of more than ``most`` bytes.

        Call this once, before `open`. Subscriptions beyond the limit are not reported. libzmq reports a prefix of
        several peers only once, so the prefix is charged to the first of these peers. Peers over ``inproc`` have no
        limit, because they are in the same process.

        Args:
            most: The maximum size in bytes of the active subscriptions of one connection.
            remedy: The advice in the log line about a closed connection.
        """
        self._most, self._remedy = most, remedy
        self._follow()
        self._origins = Origins(self._recv, self.links, self._read_events)
        self._recv = self._origins.recv

    def refuse_when_full(self) -> None:
        """Make `send` raise HighWaterMarkError while the queue of a subscriber is full.

        In this case, no subscriber receives the message. Call this method before the first message is sent; otherwise
        libzmq (ZMQ_XPUB_NODROP) continues to skip peers that have already missed a message.
        """
        self._socket.set(zmq.SocketOption.XPUB_NODROP, 1)

    def try_frame(self, frame: bytes) -> bool:
        """Send a message of one part; return False while a peer's queue is full.

        In this case, no subscriber receives the message. `refuse_when_full` must be called first.
        """
        try:
            self._send(frame, _AT_ONCE)
        except zmq.Again:
            self.poke()
            return False
        if self._poke is None:
            self.poke(SUBSCRIPTIONS_SEEN)
        return True

    def _received(self, parts: list[bytes]) -> object:
        """Process a change of a subscription, or another message from a peer."""
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
                "%s: %d active subscriptions at %s, more than %d: a subscriber sends too many subscriptions, or "
                "the patterns are too specific",
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
        """Read subscriptions faster than they are reported, if there is a limit.

        libzmq adds further subscriptions while the first ones are processed here.
        """
        if self._most is None:
            super()._drain(recv, more, budget)
            return
        self._read_events()  # a descriptor may belong to another connection by now
        emptied = False
        try:
            for _ in range(min(_AHEAD, _UNTOLD_MAX - len(self._untold))):
                self._take(recv)
        except zmq.Again:
            emptied = True
            # All parts are read, so no part of a connection that was cut is left under its descriptor.
            self._cut_fds.clear()
        # Outside of the except clause, because it may call functions of the user: their errors have no other cause.
        self._tell_some()
        if emptied:
            if self._untold or self._passed:
                self._read_again()
            raise zmq.Again

    def _take(self, recv: Callable[..., Any]) -> None:
        frame = recv(_AT_ONCE, False)
        if self.guard is not None and self.guard.secure:
            self.learn(frame)
        parts = all_parts(frame, recv, _AT_ONCE) if frame.more else [frame.bytes]
        self.received += 1
        change, link = _change(parts), self._account()
        if change is None:
            self._hand_over(self._received, parts)
        elif not change.there:
            self._remove(change)
        # Subscriptions of a connection that was cut may still be waiting to be read; they are ignored.
        elif link is None or link.id not in self._cut:
            self._add(change, link)

    def _account(self) -> Link | None:
        """Return the connection to charge for the last part, or None.

        The connection may already be closed.
        """
        assert self._origins is not None
        link = self._origins.link
        if link is not None and link.id in self._cut:
            self._read_events()
            link = self.links.at(link.fd)  # a new connection may have the descriptor of the connection that was cut
        return link

    def _add(self, change: _Change, link: Link | None) -> None:
        assert self._origins is not None
        assert self._most is not None
        if link is None:
            # Over inproc, or from a connection that has ended. If that one was cut, its last subscriptions are ignored.
            if self._origins.fd not in self._cut_fds:
                self._budgets.add(change.prefix, None)
                self._untold[change] = None
            return
        spent = self._budgets.add(change.prefix, link.id)
        self._untold[change] = link.id
        if spent > self._most:
            self._cut_for(link, spent)

    def _remove(self, change: _Change) -> None:
        """Withdraw a prefix.

        If the subscription to the prefix is not reported yet, neither the subscription nor the withdrawal is reported.
        A peer that repeatedly subscribes and unsubscribes therefore can't queue more than its budget. If a withdrawal
        is followed by a subscription, both are reported, because a repeated marker must be answered again. The latest
        `fleeting` subscriptions are reported although they are withdrawn.
        """
        if not self._budgets.remove(change.prefix):
            return
        came = _Change(change.prefix, True)
        if came in self._untold:
            del self._untold[came]
            if self.fleeting is not None and change.prefix.startswith(self.fleeting):
                self._passed.append(change.prefix)
        else:
            self._untold[change] = None

    def _tell_some(self) -> None:
        for _ in range(READ_BUDGET):
            if not self._untold or self.closed:
                break
            change, _link = self._untold.popitem(last=False)
            self._hand_over(self._tell_of, *change)
        for _ in range(READ_BUDGET):
            if not self._passed or self.closed:
                break
            self._hand_over(self._tell_of, self._passed.popleft(), True)

    def _hand_over(self, to: Callable[..., object], *args: object) -> None:
        try:
            to(*args)
        except Exception as error:
            self._fail(error)

    def _cut_for(self, link: Link, spent: int) -> None:
        self._cut[link.id] = link.fd
        text = (
            "closed the connection of %s: its subscriptions have %s bytes, more than max_subscription_bytes=%s. "
            "%s. All subscribers behind a proxy share one connection"
        )
        facts = self.peer(link.id), f"{spent:,}", f"{self._most:,}", self._remedy
        self._report("cut", logging.WARNING, text, *facts, subject=self.log.name)
        self.end(link.id, discard=True)
        # A list, because the loop deletes items. These subscriptions are not reported yet, so their end is not either.
        for change in [change for change, of in self._untold.items() if of == link.id]:
            self._budgets.remove(change.prefix)
            del self._untold[change]

    def _disconnected(self, link: Link) -> None:
        super()._disconnected(link)
        self._budgets.close({link.id})
        if self._origins is not None:
            # Called only to empty its set of connections, which would grow for ever.
            self._origins.heard()
        if link.id in self._cut:
            self._cut_fds.add(self._cut.pop(link.id))
            if link.endpoint is not None:  # this side opened the connection, and libzmq would reconnect at once
                self._rest_soon(link.endpoint, self._refusals.refuse(link.endpoint))

    def _forget_ended(self) -> None:
        super()._forget_ended()
        alive = self.links.alive
        self._budgets.close(self._budgets.links - alive)
        for id in self._cut.keys() - alive:
            self._cut_fds.add(self._cut.pop(id))
