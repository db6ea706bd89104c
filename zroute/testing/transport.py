"""Frames between the apps of a test, in memory: the second user of the protocol that `zroute.runtime.run` knows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from zroute.messages.wire import MAGIC, NUL, pack_kept, parse_header
from zroute.options import LINGER_DRAIN, READ_BUDGET
from zroute.runtime.run import Run
from zroute.sockets.connection import Drain
from zroute.testing.reactor import VirtualReactor

__all__ = ["Bus", "MemoryTransport"]

Frames = tuple[bytes, ...]


class _NothingLeftError(Exception):
    """Ends a drain, as EAGAIN ends one of a socket."""


class Bus:
    """Takes what the apps publish to those that subscribe to it, in order.

    An app receives what others publish, and its own only where it would over its endpoints: in a loop
    inside the process, or where it subscribes to an address that it publishes at. It is given what these keep when it
    subscribes (``keep="last"``). `sent` holds everything
    that was published, `unheard` what an outsider sent and nobody subscribes to.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[Run, Frames]] = []
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
        self.sent.append((sender.run, frames))
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

    counts = False
    peers = 0
    links: frozenset[int] = frozenset()
    came_by: int | None = None
    bound: tuple[str, ...] = ()

    def __init__(self, run: Run, bus: Bus, reactor: VirtualReactor) -> None:
        self.run = run
        addresses = {endpoint.address for endpoint in run.publish_to}
        self.hears_itself = any(endpoint.address in addresses for endpoint in run.subscribe_to)
        self._bus = bus
        self._reactor = reactor
        self._drain: Drain | None = None
        self._subscriptions: tuple[bytes, ...] = ()
        self._inbox: deque[Frames] = deque()
        self._parts: deque[bytes] = deque()
        self._paused = False
        self._woken = False
        self.kept: dict[bytes, bytes] = {}
        self.on_connected: Callable[[], None] = lambda: None

    def open(self, drain: Drain) -> None:
        """See `zroute.runtime.run.Transport`, also for the rest."""
        self._drain = drain
        self._bus.join(self)

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Gives the frames to the bus."""
        if not self.run.publish_to:
            return None
        return lambda sent: self._bus.publish(self, sent if multipart else (sent,))

    def listen(self, subscriptions: Iterable[bytes]) -> None:
        """Prefixes, as ZeroMQ has them."""
        before, self._subscriptions = self._subscriptions, tuple(subscriptions)
        self._bus.joined(self, before)

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
        marker = self.run.make_marker()
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

    def dialled(self, link: int) -> str | None:
        """There are no connections here."""
        return None

    def cut(self, link: int) -> str | None:
        """There are no connections here."""
        return None

    def listen_closely(self, closely: bool) -> None:
        """What comes, comes by the bus."""

    def heard(self) -> set[int]:
        """There are no connections here."""
        return set()

    def resubscribe(self, subscriptions: Iterable[bytes]) -> None:
        """No publisher is told of subscriptions."""

    def silent(self, answered: Iterable[str]) -> tuple[str, ...]:
        """Nobody."""
        return ()

    def expect_end(self, name: str, links: Iterable[int]) -> None:
        """There are no connections here."""

    def discard(self, most: int) -> int:
        """Nothing waits for so long."""
        return 0

    def emptied(self) -> bool:
        """Always."""
        return True

    def use(self, drain: Drain) -> None:
        """Another table has taken the place of the first."""
        self._drain = drain

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

    def readable(self) -> bool:
        """Whether something waits."""
        return bool(self._inbox)

    def read(self) -> None:
        """All that waits, unless a handler pauses it."""
        self._paused = False
        try:
            while self._drain is not None and not self._paused:
                self._drain(self._recv, self._more, READ_BUDGET)
        except _NothingLeftError:
            pass

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[None]:
        """At once."""
        self._bus.leave(self)
        self._drain = None
        return succeed(None)

    def _wake(self) -> None:
        if not self._woken and not self._paused:
            self._woken = True
            self._reactor.callLater(0, self._woken_up)

    def _woken_up(self) -> None:
        self._woken = False
        if not self._paused:
            self.read()

    def _recv(self, _flags: int, _copy: bool = True) -> bytes:
        if not self._parts:
            if not self._inbox:
                raise _NothingLeftError
            self._parts.extend(self._inbox.popleft())
        return self._parts.popleft()

    def _more(self) -> int:
        return len(self._parts)
