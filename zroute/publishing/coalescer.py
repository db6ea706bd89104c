"""Coalescing: messages of one topic that are published close together travel in one frame.

The first of a topic goes at once, so that a message that comes alone is as fast as without. Those behind it are held
until the turn of the reactor, or the time that was asked for, is over, or as many are there as one frame brings, or
somebody awaits one of them. They are encoded by then, so that errors stay at whoever publishes, and are numbered when
they are sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from threading import get_ident
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.options import COALESCED_BYTES
from zroute.publishing.publication import DONE, Coalesce, Emit
from zroute.stats import Stats

__all__ = ["Coalescer", "Held"]


@attrs.define(eq=False)
class Held:
    """What is held of one topic: ``bodies`` in one ``codec``, the first of them published ``at``.

    ``sent`` is what `publish` returns for them: whoever sends them may keep something of its own there. One of them
    ``keeps``: the last is for those who join, too.
    """

    codec: int
    at: int = 0
    bodies: list[bytes] = attrs.field(factory=list)
    size: int = 0
    sent: Any = None
    keeps: bool = False


class Coalescer:
    """What is held by one run of a publisher.

    ``check`` raises for a message that can't be sent: it is over ``limit`` bytes or of another thread. ``hold`` is
    called before one is held, with the topic, the `Held` and how many messages are held altogether; it may refuse by
    raising, and returns what `publish` returns. None: nobody waits. ``send`` sends what is held of a topic; it
    never raises, since it is not called by whoever published.
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
        """What is held, by topic: of each to which a coalesced message was sent in this turn, or time."""
        self._windows: dict[float, list[bytes]] = {}
        self._timers: dict[float, Any] = {}
        self._held = 0
        self._ended = False

    def together(self, how: Coalesce, emit: Emit) -> Emit:
        """``emit``, for messages that may travel with others.

        Whoever awaits what is sent may publish again before `send_now` returns: what is held is looked at anew then.
        """
        topics, most, seconds, hold, clock_ns = self.windows, how.messages, how.seconds, self._hold, self._clock_ns
        stats, limit, thread = self._stats, self._limit, get_ident()

        def emit_together(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            held = topics.get(topic)
            if held is None:
                sent = emit(topic, number, body, headers)  # first: it may refuse
                self._open(topic, number, seconds)
                return sent
            size = held.size + len(body)
            if size > limit or headers or number != held.codec or get_ident() != thread:
                self._check(topic, body)
                self.send_now(topic, held)
                if headers or len(body) > limit:
                    return emit(topic, number, body, headers)
                if not held.bodies:
                    held.codec = number
                return emit_together(topic, number, body, headers)
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
        """``emit``, as `together` made it, for messages that are kept for those who join."""

        def emit_kept(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            held = self.windows.get(topic)
            if held is not None:
                held.keeps = True  # now: it may be the one that makes them enough
            return emit(topic, number, body, headers)

        return emit_kept

    def alone(self, emit: Emit) -> Emit:
        """``emit``, for messages that travel alone, and never pass those of their topic that are held."""

        def emit_alone(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            held = self.windows.get(topic)
            if held is not None and held.bodies:
                self._check(topic, body)
                self.send_now(topic, held)
            return emit(topic, number, body, headers)

        return emit_alone

    def send_now(self, topic: bytes, held: Held) -> None:
        """Send what is held of a topic, as when somebody awaits it. The window stays open."""
        if held.bodies:
            going = attrs.evolve(held)
            held.bodies, held.size, held.sent, held.keeps = [], 0, None, False
            self._held -= len(going.bodies)
            self._send(topic, going)

    def flush(self) -> None:
        """Send all that is held, and hold nothing any more: the app stops, and no later turn sends it."""
        self._ended = True
        for seconds in tuple(self._windows):
            self._timers.pop(seconds).cancel()
            self._close(seconds)

    def _open(self, topic: bytes, codec: int, seconds: float) -> None:
        """What follows on ``topic`` in the next ``seconds`` is held."""
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
        for topic in self._windows.pop(seconds):
            self.send_now(topic, self.windows.pop(topic))
