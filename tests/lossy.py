"""A network in memory that loses, delays, doubles and cuts, between apps with the real sessions of both sides.

The apps run in virtual time. The network behaves like PUB and SUB sockets of libzmq: a publisher learns of a
subscription once, even if several subscribers have it; frames of one path stay in order; a new connection sends all
subscriptions again in the order of their bytes.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from twisted.internet.defer import Deferred

from zroute.messages.recovery import REQUEST
from zroute.messages.topics import minimal_cover
from zroute.receiving.events import Corrected
from zroute.testing.transport import MemoryTransport

__all__ = ["LossyTransport", "Network", "Path"]


class Path:
    """One way of frames from a publisher to a subscriber."""

    def __init__(self, number: int, publisher: LossyTransport, subscriber: LossyTransport) -> None:
        self.number, self.publisher, self.subscriber = number, publisher, subscriber
        self.frames: deque[bytes] = deque()

    def deliver(self, many: int) -> None:
        """Let the subscriber read up to ``many`` frames."""
        for _ in range(min(many, len(self.frames))):
            self.subscriber.arrives(self, self.frames.popleft())


class Network:
    """The paths between all apps of a test.

    Attributes:
        loss: The chance that a frame is lost on a path.
        answer_loss: The chance that a request is lost.
        room: The number of frames in a path before a publisher has to wait.
        held: True if frames stay in their paths until `deliver` is called.
        paths: The number of paths between a publisher and a subscriber.
    """

    def __init__(self, seed: int, *, paths: int = 1) -> None:
        self.random = random.Random(seed)
        self.loss = self.answer_loss = 0.0
        self.room = 10**9
        self.held = False
        self.paths = paths
        self.publishers: list[LossyTransport] = []
        self.subscribers: list[LossyTransport] = []
        self.all: list[Path] = []
        self._number = 0

    def join(self, member: LossyTransport) -> None:
        """Connect an app to all others."""
        publishers, subscribers = [], []
        if member.publishes:
            self.publishers.append(member)
            publishers, subscribers = [member], self.subscribers
        if member.subscribes:
            self.subscribers.append(member)
            publishers, subscribers = self.publishers, [member]
        for publisher in publishers:
            for subscriber in subscribers:
                for _ in range(self.paths):
                    self._number += 1
                    self.all.append(Path(self._number, publisher, subscriber))
                subscriber.connect(publisher)

    def leave(self, member: LossyTransport) -> None:
        """Disconnect an app."""
        for path in self.of(member):
            path.frames.clear()
        if member in self.subscribers:
            self.subscribers.remove(member)
            for publisher in self.publishers:
                member.disconnect(publisher)
        self.publishers = [each for each in self.publishers if each is not member]
        self.all = [path for path in self.all if member not in (path.publisher, path.subscriber)]

    def of(self, member: LossyTransport) -> list[Path]:
        """Return the paths of an app."""
        return [path for path in self.all if member in (path.publisher, path.subscriber)]

    def reconnect(self, subscriber: LossyTransport) -> None:
        """Cut all connections of a subscriber; it connects again at once."""
        for path in self.of(subscriber):
            path.frames.clear()
            self._number += 1
            path.number = self._number
        for publisher in self.publishers:
            subscriber.disconnect(publisher)
            subscriber.connect(publisher)

    def send(self, publisher: LossyTransport, frame: bytes) -> bool:
        """Put a frame into the paths of its subscribers; return False if one of them is full."""
        to = [path for path in self.of(publisher) if path.subscriber.hears_topic(frame)]
        if any(len(path.frames) >= self.room for path in to):
            return False
        for path in to:
            if self.random.random() >= self.loss:
                path.frames.append(frame)
        if not self.held:
            self.deliver()
        return True

    def deliver(self, most: Callable[[], int] = lambda: 10**9) -> None:
        """Deliver up to ``most()`` frames of each path."""
        for path in self.all:
            path.deliver(most())


class LossyTransport(MemoryTransport):
    """The transport of one app in a `Network`, with the accounts of the tracked wire."""

    network: Network

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.states = None  # type: ignore[assignment]  # snapshots are sent by the session
        self.kept = None  # type: ignore[assignment]
        self._reported: Callable[[bytes, bool], None] = lambda prefix, there: None
        self._known: Counter[bytes] = Counter()
        self._heard: set[int] = set()
        self.corrected = 0
        correct = self.accounts._do[Corrected]

        def count(session: Any, event: Corrected) -> None:
            self.corrected += 1
            correct(session, event)

        self.accounts._do = {**self.accounts._do, Corrected: count}  # type: ignore[misc]

    publishes = property(lambda self: bool(self._request.ends.pub))
    subscribes = property(lambda self: bool(self._request.ends.sub))

    def open(self, receive: Any) -> None:
        """Join the network."""
        self._receive = receive
        self._asked: tuple[bytes, ...] = ()
        self.network.join(self)

    def close(self) -> Deferred[None]:
        """Leave the network."""
        self.network.leave(self)
        return super().close()

    # -- publishing

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that drops frames for full paths."""

        def send(frame: bytes) -> None:
            self.network.send(self, frame)

        return send if self.publishes else None

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that returns False while a path is full."""
        return (lambda frame: self.network.send(self, frame)) if self.publishes else None

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Report subscriptions, as an XPUB socket."""

        def report() -> None:
            self._reported = on_subscription
            for prefix in sorted(self._known):
                on_subscription(prefix, True)

        self._reactor.callLater(0, report)
        return True

    def count_subscribers(self, changed: Callable[[], None]) -> Any:
        """Let the run count."""
        return None

    def subscription(self, prefix: bytes, there: bool) -> None:
        """Handle a subscription of one connection."""
        self._known[prefix] += 1 if there else -1
        if self._known[prefix] == there:  # the first one, or the last one
            self._reported(prefix, there)
        if not self._known[prefix]:
            del self._known[prefix]

    # -- subscribing

    def listen(self, patterns: Iterable[Any]) -> None:
        """Subscribe, and ask all publishers."""
        self._listening = True
        self._subscriptions = minimal_cover(pattern.subscription for pattern in patterns)
        self.accounts.listen(self, self._subscriptions)

    def leave(self) -> None:
        """Withdraw all subscriptions."""
        self.subscribe(())

    def connect(self, publisher: LossyTransport) -> None:
        """Send all subscriptions over a new connection."""
        for prefix in sorted(self._asked):
            publisher.subscription(prefix, True)
        if self._asked:
            self.accounts.rejoin()

    def disconnect(self, publisher: LossyTransport) -> None:
        """Let a publisher notice that the connection has ended."""
        for prefix in self._asked:
            publisher.subscription(prefix, False)

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Subscribe to exactly these prefixes, in this order."""
        before, self._asked = self._asked, tuple(dict.fromkeys(subscriptions))
        for publisher in self.network.publishers if self in self.network.subscribers else ():
            for prefix in self._asked:
                if prefix not in before:
                    publisher.subscription(prefix, True)
            for prefix in before:
                if prefix not in self._asked:
                    publisher.subscription(prefix, False)

    def resubscribe(self, subscriptions: Collection[bytes]) -> None:
        """Do nothing, because this network loses no subscriptions."""

    def request(self, topic: bytes) -> None:
        """Send a request, which may be lost."""
        assert topic.startswith(REQUEST)
        for publisher in self.network.publishers:
            if self.network.random.random() >= self.network.answer_loss:
                publisher.subscription(topic, True)
                publisher.subscription(topic, False)

    def hears_topic(self, frame: bytes) -> bool:
        """Return True if a frame matches a subscription."""
        return frame.startswith(self._asked)

    def arrives(self, path: Path, frame: bytes) -> None:
        """Accept a frame, unless its subscription was withdrawn meanwhile."""
        if self.hears_topic(frame):
            self._heard.add(path.number)
            self._inbox.append((None, (frame,), path))  # type: ignore[arg-type]
            self._wake()

    def _judge(self) -> None:
        """Keep the path of the current frame, for `came_by`."""

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Wait as over sockets."""
        return self.accounts.ready(publishers, state=state)

    def read_soon(self) -> None:
        """Read in the next turn."""
        self._wake()

    def emptied(self) -> bool:
        """Return True: each wake-up reads all frames."""
        return not self._inbox and not self._paused

    def listen_closely(self, closely: bool) -> None:
        """Do nothing: connections are always recorded."""

    def heard(self) -> Collection[int]:
        """Return the connections over which frames arrived."""
        heard, self._heard = self._heard, set()
        return heard

    @property
    def came_by(self) -> int | None:
        """The connection of the last frame."""
        return getattr(self._current, "number", None)

    @property
    def links(self) -> frozenset[int]:
        """The live connections."""
        return frozenset(path.number for path in self.network.all if path.subscriber is self)

    def dialled(self, link: int) -> str | None:
        """Return None, so that no connection is cut."""
        return None

    def cut(self, link: int) -> str | None:
        """Cut nothing."""
        return None

    @property
    def peers(self) -> int:
        """The number of publishers."""
        return len(self.network.publishers)

    def waiting(self) -> Iterator[Path]:
        """Yield the paths with frames."""
        return (path for path in self.network.of(self) if path.frames)
