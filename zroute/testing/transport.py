"""An in-memory `zroute.transport.Transport` for the apps of one test."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from zroute.clock import Clock
from zroute.messages.topics import Pattern, minimal_cover
from zroute.messages.wire import MAGIC, NUL, pack_kept, parse_header
from zroute.options import READ_BUDGET
from zroute.planning.plan import Plan, Request
from zroute.receiving.session import SubscriberSession
from zroute.transport import Reader, Receive

__all__ = ["Bus", "MemoryTransport"]

Frames = tuple[bytes, ...]

_log = logging.getLogger("zroute")

_PAUSED = 0.005
"""Virtual seconds between two checks if all waiting messages are read."""


class _NothingLeftError(Exception):
    """The end of the messages for one `Receive` call, like EAGAIN at a socket."""


class Bus:
    """A connection between the apps of a test that keeps the order of messages.

    An app receives the messages of the other apps. It receives its own messages in two cases: in a loop inside the
    process, or if it subscribes to an address that it publishes at. When it subscribes, it also receives the messages
    that these apps keep (``keep="last"``).

    Attributes:
        sent: all published messages, with the plan of the publishing app.
        unheard: the messages from outside that no app subscribes to.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[Plan, Frames]] = []
        self.unheard: list[Frames] = []
        self._members: list[MemoryTransport] = []

    def join(self, member: MemoryTransport) -> None:
        """Deliver messages to ``member`` from now on."""
        self._members.append(member)

    def leave(self, member: MemoryTransport) -> None:
        """Stop delivering messages to ``member``."""
        if member in self._members:
            self._members.remove(member)

    def publish(self, sender: MemoryTransport, frames: Frames) -> None:
        """Deliver a message from an app to all members that are connected to it."""
        self.sent.append((sender.plan, frames))
        sender.keep(frames)  # before the delivery, so that a member that joins now receives it
        for member in self._members:
            if member.hears(sender):
                member.arrive(frames)

    def joined(self, member: MemoryTransport, before: tuple[bytes, ...]) -> None:
        """Give ``member`` the kept messages of its new subscriptions.

        It already has those of the subscriptions ``before``.
        """
        kept = [each for sender in self._members if member.hears(sender) for each in sender.kept.items()]
        new = [(topic, rest) for topic, rest in kept if not topic.startswith(before)]
        if new:
            member.give(new)

    def receive(self, frames: Frames) -> None:
        """Deliver a message from outside to all members that subscribe to it."""
        heard = [member.arrive(frames) for member in self._members]
        if not any(heard):
            self.unheard.append(frames)


class MemoryTransport:
    """The transport of one app in a test."""

    bound: tuple[str, ...] = ()

    def __init__(self, request: Request, bus: Bus, reactor: Clock) -> None:
        self.plan = request.plan
        self._request = request
        # The same rule as with sockets: an app hears itself if it connects to an address that it binds.
        addresses = {endpoint.address for endpoint in request.publish_to}
        self.hears_itself = any(endpoint.address in addresses for endpoint in request.subscribe_to)
        self.accounts = SubscriberSession(request.reactor, request.stats, _log, self.plan.name, request.found)
        self._bus = bus
        self._reactor = reactor
        self._receive: Receive | None = None
        self._subscriptions: tuple[bytes, ...] = ()
        self._inbox: deque[Frames] = deque()
        self._parts: deque[bytes] = deque()
        self._paused = False
        self._woken = False
        self.kept: dict[bytes, bytes] = {}

    def open(self, receive: Receive) -> None:
        """See `zroute.transport.Transport`, also for the methods below."""
        self._receive = receive
        self._bus.join(self)

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""
        return self._receive is not None

    def summary(self) -> tuple[()]:
        """Return no log lines, since there are no connections."""
        return ()

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that gives frames to the bus, or None without endpoints."""
        if not self._request.publish_to:
            return None
        return lambda sent: self._bus.publish(self, sent if multipart else (sent,))

    def listen(self, patterns: Iterable[Pattern]) -> None:
        """Receive messages with the patterns' prefixes, and the matching kept messages."""
        before = self._subscriptions
        self._subscriptions = minimal_cover(pattern.subscription for pattern in patterns)
        self._bus.joined(self, before)

    def leave(self) -> None:
        """Receive no more messages."""
        self._subscriptions = ()

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires at once, or with ``state`` after a complete read.

        Kept messages are in the inbox since the app has subscribed, so ``state`` waits until the inbox is empty.
        """
        return Deferred.fromCoroutine(self._all_read()) if state else succeed(None)

    async def _all_read(self) -> None:
        await self._turn()
        while self._inbox:
            await self._turn(_PAUSED)

    def unready(self, *, state: bool) -> str:
        """Return the only possible cause: kept messages that are not read yet."""
        return "kept messages are not read yet"

    def _turn(self, seconds: float = 0.0) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._reactor.callLater(seconds, turn.callback, None)
        return turn

    def hears(self, sender: MemoryTransport) -> bool:
        """Return True if this app would be connected to ``sender``."""
        return self is not sender or self.hears_itself

    def keep(self, frames: Frames) -> None:
        """Keep a message as the last one of its topic, if its header says so."""
        topic, _, rest = frames[0].partition(NUL)
        if rest.startswith(MAGIC) and parse_header(rest).keeps:
            self.kept[topic] = rest

    def give(self, kept: Iterable[tuple[bytes, bytes]]) -> None:
        """Put kept messages into the inbox, as their publishers would send them.

        ``kept`` holds a topic, and a header with a body, for each message. All of them answer one join.
        """
        marker = self.accounts.make_marker()
        for topic, rest in kept:
            if topic.startswith(self._subscriptions):
                header = parse_header(rest)
                body, headers, at = rest[header.size :], header.headers, header.sent_at
                frame = pack_kept(marker, 1, topic, header.codec, body, headers, epoch=header.epoch, sent_at=at)
                self._inbox.append((frame,))
        self._wake()

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that always sends, because queues here have no bound."""
        send = self.sender(multipart=multipart)
        if send is None:
            return None

        def try_send(sent: Any) -> bool:
            send(sent)
            return True

        return try_send

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Return False: subscriptions are not reported here."""
        return False

    def use(self, receive: Receive) -> None:
        """Give all messages to another ``receive`` from now on."""
        self._receive = receive

    def arrive(self, frames: Frames) -> bool:
        """Take a message if the app subscribes to it; return True if it does."""
        heard = frames[0].startswith(self._subscriptions)
        if heard:
            self._inbox.append(frames)
            self._wake()
        return heard

    def pause(self) -> None:
        """Stop reading; messages wait in the inbox."""
        self._paused = True

    def resume(self) -> None:
        """Start reading again, in the next turn of the reactor."""
        self._paused = False
        self._wake()

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read all messages in the inbox."""
        while reader.reads_on and (self._inbox or reader.unpacked):
            self._read()
        self.pause()
        return succeed(0)

    def _read(self) -> None:
        """Read all messages in the inbox, unless a handler pauses reading."""
        self._paused = False
        try:
            while self._receive is not None and not self._paused:
                self._receive(self._recv, self._more, READ_BUDGET)
        except _NothingLeftError:
            pass

    def close(self) -> Deferred[None]:
        """Leave the bus at once."""
        self._bus.leave(self)
        self._receive = None
        return succeed(None)

    def _wake(self) -> None:
        if not self._woken and not self._paused:
            self._woken = True
            self._reactor.callLater(0, self._woken_up)

    def _woken_up(self) -> None:
        self._woken = False
        if not self._paused:
            self._read()

    def _recv(self, _flags: int, _copy: bool = True) -> bytes:
        if not self._parts:
            if not self._inbox:
                raise _NothingLeftError
            self._parts.extend(self._inbox.popleft())
        return self._parts.popleft()

    def _more(self) -> int:
        return len(self._parts)
