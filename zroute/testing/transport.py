"""Frames between the apps of a test, in memory: another `zroute.transport.Transport`."""

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
"""Seconds between two looks whether what waits has been read."""


class _NothingLeftError(Exception):
    """Ends a call of `Receive`, as EAGAIN does at a socket."""


class Bus:
    """Takes what the apps publish to those that subscribe to it, in order.

    An app receives what others publish, and its own only where it would over its endpoints: in a loop
    inside the process, or where it subscribes to an address that it publishes at. It is given what these keep when it
    subscribes (``keep="last"``). `sent` holds everything
    that was published, `unheard` what an outsider sent and nobody subscribes to.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[Plan, Frames]] = []
        self.unheard: list[Frames] = []
        self._members: list[MemoryTransport] = []

    def join(self, member: MemoryTransport) -> None:
        """From now on ``member`` receives."""
        self._members.append(member)

    def leave(self, member: MemoryTransport) -> None:
        """No longer."""
        if member in self._members:
            self._members.remove(member)

    def publish(self, sender: MemoryTransport, frames: Frames) -> None:
        """An app has published."""
        self.sent.append((sender.plan, frames))
        sender.keep(frames)
        for member in self._members:
            if member.hears(sender):
                member.arrive(frames)

    def joined(self, member: MemoryTransport, before: tuple[bytes, ...]) -> None:
        """Give ``member`` what is kept of its subscriptions, but not of those ``before``: it has that."""
        kept = [each for sender in self._members if member.hears(sender) for each in sender.kept.items()]
        new = [(topic, rest) for topic, rest in kept if not topic.startswith(before)]
        if new:
            member.give(new)

    def receive(self, frames: Frames) -> None:
        """Somebody outside has published."""
        heard = [member.arrive(frames) for member in self._members]
        if not any(heard):
            self.unheard.append(frames)


class MemoryTransport:
    """What one app is given in place of sockets."""

    bound: tuple[str, ...] = ()

    def __init__(self, request: Request, bus: Bus, reactor: Clock) -> None:
        self.plan = request.plan
        self._request = request
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
        """See `zroute.transport.Transport`, also for the rest."""
        self._receive = receive
        self._bus.join(self)

    @property
    def is_open(self) -> bool:
        """Until it has left the bus."""
        return self._receive is not None

    def summary(self) -> tuple[()]:
        """Nothing is connected."""
        return ()

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Gives the frames to the bus."""
        if not self._request.publish_to:
            return None
        return lambda sent: self._bus.publish(self, sent if multipart else (sent,))

    def listen(self, patterns: Iterable[Pattern]) -> None:
        """Take what begins as they do, and what others keep of that."""
        before = self._subscriptions
        self._subscriptions = minimal_cover(pattern.subscription for pattern in patterns)
        self._bus.joined(self, before)

    def leave(self) -> None:
        """Take nothing more."""
        self._subscriptions = ()

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """At once; with ``state`` when what is kept has been read, which was given when it was subscribed to."""
        return Deferred.fromCoroutine(self._all_read()) if state else succeed(None)

    async def _all_read(self) -> None:
        await self._turn()
        while self._inbox:
            await self._turn(_PAUSED)

    def unready(self, *, state: bool) -> str:
        """Only what is kept can wait."""
        return "what is kept waits to be read"

    def _turn(self, seconds: float = 0.0) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._reactor.callLater(seconds, turn.callback, None)
        return turn

    def hears(self, sender: MemoryTransport) -> bool:
        """Whether it would be connected to ``sender``."""
        return self is not sender or self.hears_itself

    def keep(self, frames: Frames) -> None:
        """Keep a message that says so in its header, as the latest of its topic."""
        topic, _, rest = frames[0].partition(NUL)
        if rest.startswith(MAGIC) and parse_header(rest).keeps:
            self.kept[topic] = rest

    def give(self, kept: Iterable[tuple[bytes, bytes]]) -> None:
        """Messages that others keep, topic, and header with body, as their publishers would send them to one join."""
        marker = self.accounts.make_marker()
        for topic, rest in kept:
            if topic.startswith(self._subscriptions):
                header = parse_header(rest)
                body, headers, at = rest[header.size :], header.headers, header.sent_at
                frame = pack_kept(marker, 1, topic, header.codec, body, headers, epoch=header.epoch, sent_at=at)
                self._inbox.append((frame,))
        self._wake()

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """There is always room."""
        send = self.sender(multipart=multipart)
        if send is None:
            return None

        def try_send(sent: Any) -> bool:
            send(sent)
            return True

        return try_send

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Nobody subscribes here."""
        return False

    def use(self, receive: Receive) -> None:
        """Another table has taken the place of the first."""
        self._receive = receive

    def arrive(self, frames: Frames) -> bool:
        """Take ``frames`` if they are subscribed to; whether they are."""
        heard = frames[0].startswith(self._subscriptions)
        if heard:
            self._inbox.append(frames)
            self._wake()
        return heard

    def pause(self) -> None:
        """What arrives waits."""
        self._paused = True

    def resume(self) -> None:
        """In the next turn."""
        self._paused = False
        self._wake()

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read all there is."""
        while reader.reads_on and (self._inbox or reader.unpacked):
            self._read()
        self.pause()
        return succeed(0)

    def _read(self) -> None:
        """All that waits, unless a handler pauses it."""
        self._paused = False
        try:
            while self._receive is not None and not self._paused:
                self._receive(self._recv, self._more, READ_BUDGET)
        except _NothingLeftError:
            pass

    def close(self) -> Deferred[None]:
        """At once."""
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
