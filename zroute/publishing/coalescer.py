"""Coalescing: sending several messages of one topic in one frame.

The first message of a topic is sent at once, so a single message has no extra delay. The first message also opens a
window, which lasts for the rest of the reactor's turn or for the time that the user has set. Later messages in the
window are held. The held messages are sent in one frame when the window ends, the frame is full, or the program awaits
one of the messages.

Held messages are already encoded, so ``publish`` raises encoding errors directly. Messages are numbered only when they
are sent, because an unsent message must not use a number.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from threading import get_ident
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.options import COALESCED_BYTES
from zroute.publishing.history import Ring
from zroute.publishing.publication import DONE, Coalesce, Emit
from zroute.stats import Stats

__all__ = ["Coalescer", "Held"]


@attrs.define(eq=False)
class Held:
    """The held messages of one topic.

    Attributes:
        codec: The number of the codec of all bodies.
        at: The time at which the first body was published, in nanoseconds.
        bodies: The encoded messages.
        size: The total size of the bodies in bytes.
        sent: The awaitable that ``publish`` returned for these messages, if any.
        keeps: True if the last message must be kept for new subscribers.
        ring: The history that keeps the frame, or None.
    """

    codec: int
    at: int = 0
    bodies: list[bytes] = attrs.field(factory=list)
    size: int = 0
    sent: Any = None
    keeps: bool = False
    ring: Ring | None = None


class Coalescer:
    """The held messages of one run of a publisher.

    Args:
        clock: The reactor's clock, for the windows.
        clock_ns: A function that returns the time in nanoseconds since the Unix epoch.
        stats: The counters of the run.
        limit: The maximum size of a body in bytes.
        check: A function that raises an error for a message that is too large or comes from another thread.
        hold: A function that is called before a message is held, with the topic, the `Held` and the number of all held
            messages. The function returns the awaitable for ``publish``, or raises an error to refuse the message.
            ``hold`` is None if publishing never waits.
        send: A function that sends the held messages of a topic. ``send`` must not raise an error, because a timer
            often calls it instead of ``publish``.
    """

    def __init__(
        self,
        clock: Clock,
        clock_ns: Callable[[], int],
        stats: Stats,
        *,
        limit: int,
        check: Callable[[bytes, bytes], None],
        hold: Callable[[bytes, Held, int], Awaitable[None]] | None,
        send: Callable[[bytes, Held], object],
    ) -> None:
        self._clock = clock
        self._clock_ns = clock_ns
        self._stats = stats
        self._limit = min(limit, COALESCED_BYTES)
        self._check = check
        self._hold = hold
        self._send = send
        self.windows: dict[bytes, Held] = {}
        """The open windows, by topic. A window may be open without held messages."""
        self._windows: dict[float, list[bytes]] = {}
        self._timers: dict[float, Any] = {}
        self._held = 0
        self._ended = False

    def together(self, how: Coalesce, emit: Emit) -> Emit:
        """Return ``emit`` with coalescing according to ``how``.

        `send_now` may run user code that publishes again. The held messages are therefore looked up again after each
        call of `send_now`.
        """
        topics, most, seconds, hold, clock_ns = self.windows, how.messages, how.seconds, self._hold, self._clock_ns
        stats, limit, thread = self._stats, self._limit, get_ident()

        def emit_together(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            held = topics.get(topic)
            if held is None:
                sent = emit(topic, number, body, headers)  # before the window opens: it may raise an error
                self._open(topic, number, seconds)
                return sent
            size = held.size + len(body)
            # Such a message can't join: a coalesced frame has a size limit, one codec and no headers.
            # `_check` raises the error for a message that is too large or comes from another thread.
            if size > limit or headers or number != held.codec or get_ident() != thread:
                self._check(topic, body)
                self.send_now(topic, held)
                if headers or len(body) > limit:
                    return emit(topic, number, body, headers)
                # `send_now` may have run code that publishes: messages that it has held keep their codec.
                if not held.bodies:
                    held.codec = number
                return emit_together(topic, number, body, headers)
            # Before the body is stored, because `hold` may refuse the message.
            sent = hold(topic, held, self._held) if hold is not None else DONE
            bodies = held.bodies
            if not bodies:
                held.at = clock_ns()
            bodies.append(body)
            held.size = size
            self._held += 1
            stats.published += 1
            if len(bodies) >= most:
                self.send_now(topic, held)
            return sent

        return emit_together

    def kept(self, emit: Emit) -> Emit:
        """Return ``emit`` from `together`, adapted to messages of a ``keep`` publisher."""

        def emit_kept(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            held = self.windows.get(topic)
            if held is not None:
                held.keeps = True  # set before emit, which may send the full frame
            return emit(topic, number, body, headers)

        return emit_kept

    def recorded(self, emit: Emit, ring: Ring) -> Emit:
        """Return ``emit`` from `together`, adapted to a publisher with a history."""

        def emit_recorded(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            held = self.windows.get(topic)
            if held is not None:
                held.ring = ring  # set before emit, which may send the full frame
            return emit(topic, number, body, headers)

        return emit_recorded

    def alone(self, emit: Emit) -> Emit:
        """Return ``emit``, adapted to messages that are sent separately.

        Held messages of the topic are sent first, so a separate message never overtakes them.
        """

        def emit_alone(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            held = self.windows.get(topic)
            if held is not None and held.bodies:
                self._check(topic, body)
                self.send_now(topic, held)
            return emit(topic, number, body, headers)

        return emit_alone

    def send_now(self, topic: bytes, held: Held) -> None:
        """Send the held messages of a topic. The window stays open."""
        if held.bodies:
            # A copy, because the window stays open: `_send` may publish to this topic again, and fill ``held``.
            going = attrs.evolve(held)
            held.bodies, held.size, held.sent, held.keeps, held.ring = [], 0, None, False, None
            self._held -= len(going.bodies)
            self._send(topic, going)

    def flush(self) -> None:
        """Send all held messages, and hold no more messages, because the app stops."""
        # Before the messages are sent: code that publishes meanwhile must not open a window.
        self._ended = True
        for seconds in tuple(self._windows):
            self._timers.pop(seconds).cancel()
            self._close(seconds)

    def _open(self, topic: bytes, codec: int, seconds: float) -> None:
        """Open a window of ``seconds`` for ``topic``, in which messages are held."""
        if self._ended or topic in self.windows:
            return
        self.windows[topic] = Held(codec)
        window = self._windows.get(seconds)
        if window is None:
            self._windows[seconds] = [topic]
            self._timers[seconds] = self._clock.callLater(seconds, self._over, seconds)
        else:
            window.append(topic)

    def _over(self, seconds: float) -> None:
        del self._timers[seconds]
        self._close(seconds)

    def _close(self, seconds: float) -> None:
        # Removed first, so that a message that is published meanwhile opens a window with a timer of its own.
        for topic in self._windows.pop(seconds):
            self.send_now(topic, self.windows.pop(topic))
