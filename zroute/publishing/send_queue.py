"""Send queue: what waits until every subscriber of its topic has room, in order, and not without bound.

A publisher's socket takes a message for all who subscribe to it or for none (ZMQ_XPUB_NODROP), and does not say
when it would: it is asked again when it wakes up, and every 10 ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed

from zroute.awaiting import as_awaitable
from zroute.clock import Clock
from zroute.errors import HighWaterMarkError, NotRunningError
from zroute.messages.topics import Topic
from zroute.publishing.publication import DONE

__all__ = ["SendQueue", "Sent"]

Attempt = Callable[[], bool]
"""Sends a message, or returns False while somebody has no room for it."""

_PERIOD = 0.01  # seconds between two attempts: the socket's descriptor wakes for some of the reasons only


class Sent:
    """An awaitable that is done when the message is sent, or fails; ignoring it is free.

    ``hurry`` is called when somebody awaits a message that is not sent.
    """

    def __init__(self, hurry: Callable[[], None] | None = None) -> None:
        self._hurry = hurry
        self._done = False
        self._error: Exception | None = None
        self._waiting: list[Deferred[None]] = []

    def __await__(self) -> Generator[Any, None, None]:
        if self._hurry is not None and not self._done:
            self._hurry()
        if self._error is not None:
            raise self._error
        if not self._done:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            yield from as_awaitable(waiting).__await__()

    def goes(self) -> None:
        """It is not held any more: nobody need hurry."""
        self._hurry = None

    def end(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self._done, self._error = True, error
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if error is None:
                one.callback(None)
            else:
                one.errback(error)


@attrs.define(eq=False)
class _Message:
    attempt: Attempt
    sent: Sent
    until: float
    count: int


class SendQueue:
    """At most ``limit`` messages, each for at most ``timeout`` seconds.

    Those of one topic are sent in the order they were given; a topic that nobody holds up passes the others. ``lost``
    is told of what is given up: its topic, how many messages that were, and why.
    """

    def __init__(
        self, clock: Clock, *, limit: int, timeout: float, lost: Callable[[bytes, int, HighWaterMarkError], None]
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._timeout = timeout
        self._lost = lost
        self._topics: dict[bytes, deque[_Message]] = {}
        self._timer: Any = None
        self._idle: list[Deferred[None]] = []
        self._closed = False
        self.waiting = 0

    def send(self, topic: bytes, attempt: Attempt, *, count: int = 1, sent: Sent | None = None) -> Awaitable[None]:
        """Send now, or as soon as there is room: what ``attempt`` sends are ``count`` messages. Raises as `check`.

        With ``count`` 0 it is a control frame, which has its place also where `check` would refuse a message. ``sent``
        is told of the end, where somebody has been given it before.
        """
        if self._closed:
            raise NotRunningError(f"{str(Topic.from_wire(topic))!r}: the app has stopped")
        if topic not in self._topics and attempt():
            if sent is not None:
                sent.end(None)
            return DONE
        if count:
            self.check(topic)
        message = _Message(attempt, sent or Sent(), self._clock.seconds() + self._timeout, count)
        self._topics.setdefault(topic, deque()).append(message)
        self.waiting += count
        self._wake_later()
        return message.sent

    def check(self, topic: bytes, more: int = 0) -> None:
        """Raise HighWaterMarkError when ``limit`` messages wait already, with ``more`` that wait elsewhere."""
        if self.waiting + more >= self._limit:
            raise HighWaterMarkError(
                f"{str(Topic.from_wire(topic))!r}: {self.waiting + more} messages wait for subscribers that have "
                "no room: await what publish returns, so that your program is no faster than they are"
            )

    def delays(self, topic: bytes) -> bool:
        """Return True if no message of ``topic`` may be sent now: others of it wait, or the app has stopped."""
        return topic in self._topics or self._closed

    def try_now(self, topic: bytes, attempt: Attempt) -> bool:
        """Send now, or not at all: False while there is no room, or others of ``topic`` wait."""
        return topic not in self._topics and attempt()

    def retry(self) -> None:
        """Perhaps there is room: send what can be sent, and give up what has waited too long."""
        now = self._clock.seconds()
        for topic, messages in tuple(self._topics.items()):
            while messages:
                message = messages[0]
                if message.attempt():
                    error = None
                elif message.until <= now:
                    name = str(Topic.from_wire(topic))
                    error = HighWaterMarkError(f"{name!r}: given up; a subscriber had no room for {self._timeout:g} s")
                else:
                    break
                messages.popleft()
                self._end(topic, message, error)
            if not messages:
                del self._topics[topic]
        self._wake_later()
        self._tell_idle()

    def idle(self) -> Deferred[None]:
        """Fires when nothing waits."""
        if not self.waiting:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        return waiting

    def close(self) -> int:
        """Give up what waits; how many messages that were."""
        self._closed = True
        left, self._topics = self._topics, {}
        count = self.waiting
        for topic, messages in left.items():
            for message in messages:
                error = HighWaterMarkError(
                    f"{str(Topic.from_wire(topic))!r}: the app has stopped before there was room for it"
                )
                self._end(topic, message, error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_idle()
        return count

    def _end(self, topic: bytes, message: _Message, error: HighWaterMarkError | None) -> None:
        self.waiting -= message.count
        if error is not None:
            self._lost(topic, message.count, error)
        message.sent.end(error)

    def _wake_later(self) -> None:
        if self._topics and self._timer is None:
            self._timer = self._clock.callLater(_PERIOD, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self.retry()

    def _tell_idle(self) -> None:
        if not self.waiting:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)
