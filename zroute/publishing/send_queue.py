"""The send queue: messages that wait for room in their subscribers' queues.

With ZMQ_XPUB_NODROP, a publisher's socket accepts a message for all its subscribers or for none. libzmq does not report
when the queue of a subscriber has room again. The send queue therefore retries when the socket wakes up, and every 10
ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed

from zroute.awaiting import as_awaitable, check_loop
from zroute.clock import Clock
from zroute.errors import HighWaterMarkError, NotRunningError
from zroute.messages.topics import Topic
from zroute.publishing.publication import DONE

__all__ = ["SendQueue", "Sent"]

Attempt = Callable[[], bool]
"""A function that sends a message, or returns False while a subscriber's queue is full."""

_PERIOD = 0.01  # seconds between two attempts; the socket's file descriptor does not wake in all cases


class Sent:
    """An awaitable that is done when a message is sent.

    Awaiting it raises an error if the message can't be sent in time. The caller may ignore the awaitable. ``hurry`` is
    called if the awaitable is awaited before the message is sent. ``clock`` is the reactor that sends.
    """

    def __init__(self, hurry: Callable[[], None] | None = None, clock: Clock | None = None) -> None:
        self._clock = clock
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
            check_loop(self._clock)
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            yield from as_awaitable(waiting).__await__()

    def goes(self) -> None:
        """Record that the message is in the queue, so ``hurry`` is no longer needed."""
        self._hurry = None

    def end(self, error: Exception | None) -> None:
        """Resume all coroutines that wait, with ``error`` if there is one."""
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
    """A queue of messages that could not be sent yet.

    The messages of a topic are sent in order. A message whose subscribers all have room may overtake messages of other
    topics.

    Args:
        clock: The reactor's clock.
        limit: The maximum number of waiting messages.
        timeout: The time in seconds after which the queue gives up on a message.
        lost: A function that is called with the topic, the number and the error of messages that the queue gives up on.
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
        """Send a message now, or as soon as all its subscribers have room.

        Args:
            topic: The topic.
            attempt: The function that sends the message.
            count: The number of messages that ``attempt`` sends; 0 for a control frame, which is never refused.
            sent: The awaitable that the caller already has, if any.

        Returns:
            An awaitable that is done when the message is sent.

        Raises:
            HighWaterMarkError: The queue is full.
            NotRunningError: The app has stopped.
        """
        if self._closed:
            raise NotRunningError(f"cannot publish to {str(Topic.from_wire(topic))!r}: the app has stopped")
        # A message must not overtake those of its topic that already wait.
        if topic not in self._topics and attempt():
            if sent is not None:
                sent.end(None)
            return DONE
        if count:
            self.check(topic)
        message = _Message(attempt, sent or Sent(clock=self._clock), self._clock.seconds() + self._timeout, count)
        self._topics.setdefault(topic, deque()).append(message)
        self.waiting += count
        self._wake_later()
        return message.sent

    def check(self, topic: bytes, more: int = 0) -> None:
        """Raise HighWaterMarkError if the queue is full.

        ``more`` is the number of messages that wait outside the queue and count towards its limit.
        """
        if self.waiting + more >= self._limit:
            raise HighWaterMarkError(
                f"cannot publish to {str(Topic.from_wire(topic))!r}: {self.waiting + more} messages already wait "
                "for subscribers whose queue is full; await the result of publish(), so that the app does not "
                "publish faster than subscribers read"
            )

    def delays(self, topic: bytes) -> bool:
        """Return True if a new message of ``topic`` cannot be sent now.

        A message is delayed if other messages of the topic are waiting, or if the app has stopped.
        """
        return topic in self._topics or self._closed

    def try_now(self, topic: bytes, attempt: Attempt) -> bool:
        """Send a message now if possible, and never queue it.

        Return False if a subscriber's queue is full, or if other messages of ``topic`` are waiting.
        """
        return topic not in self._topics and attempt()

    def retry(self) -> None:
        """Send all messages that can be sent, and give up on expired ones."""
        now = self._clock.seconds()
        # A copy, because a resumed coroutine may publish to other topics.
        for topic, messages in tuple(self._topics.items()):
            while messages:
                message = messages[0]
                if message.attempt():
                    error = None
                elif message.until <= now:
                    name = str(Topic.from_wire(topic))
                    error = HighWaterMarkError(
                        f"message to {name!r} dropped: the queue of a subscriber was full for {self._timeout:g} s"
                    )
                else:
                    break
                # Before `_end`, which resumes coroutines: they may publish to this topic, behind the remaining ones.
                messages.popleft()
                self._end(topic, message, error)
            if not messages:
                self._topics.pop(topic, None)  # a resumed coroutine may have closed the queue
        self._wake_later()
        self._tell_idle()

    def idle(self) -> Deferred[None]:
        """Return a Deferred that fires when no message is waiting."""
        if not self.waiting:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        return waiting

    def close(self) -> int:
        """Give up on all waiting messages, and return their number."""
        # Before callers get their errors: a message that they publish now must not wait in a queue that is never read.
        self._closed = True
        left, self._topics = self._topics, {}
        count = self.waiting
        for topic, messages in left.items():
            # Taken one by one: `retry`, which may have resumed the caller, must not find them again.
            while messages:
                message = messages.popleft()
                error = HighWaterMarkError(
                    f"message to {str(Topic.from_wire(topic))!r} dropped: the app stopped before it could send "
                    "the message"
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
