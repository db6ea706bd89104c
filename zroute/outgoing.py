"""Outgoing: what one run of an app publishes, on its way from the encoder to the transport.

Messages are framed and numbered, kept for those who join, and held back while a subscriber has no room, as the app
says. What does not depend on a message is decided once, in `Outgoing.open`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from socket import gethostname
from threading import get_ident
from typing import Any, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.app import App
from zroute.audience import Audience
from zroute.awaiting import as_awaitable, within
from zroute.delivery.reports import Clock, Reports
from zroute.delivery.stats import Stats
from zroute.endpoints import Endpoint
from zroute.errors import EncodeError, HighWaterMarkError, NotReadyError, NotRunningError, UsageError, WrongThreadError
from zroute.joins import PublishingEnd
from zroute.messages.topics import Pattern
from zroute.messages.wire import NUL, Framer, framer, pack_headers
from zroute.options import OUTBOX, OUTBOX_SECONDS
from zroute.outbox import Outbox
from zroute.routing.publications import DONE, Emit, Outlet

__all__ = ["Outgoing", "Sending"]

_log = logging.getLogger("zroute")


class Sending(Protocol):
    """What is needed here of whatever moves frames."""

    counts: bool
    """Whether subscriptions are told of, so that messages can be numbered and their loss counted."""

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """What sends a frame, or the parts of a message; None where there is nowhere to publish at."""

    def try_sender(self) -> Callable[[Any], bool] | None:
        """What sends, or returns False while a subscriber has no room."""

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Tell of each subscription at the publishing socket; False where there is none."""


class Outgoing:
    """The publishing side of one run of ``app``, which publishes at ``endpoints``; ``wall`` gives Unix seconds."""

    def __init__(
        self,
        app: App,
        endpoints: Sequence[Endpoint],
        clock: Clock,
        transport: Sending,
        stats: Stats,
        reports: Reports,
        wall: Callable[[], float],
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._clock = clock
        self._transport = transport
        self._stats = stats
        self._reports = reports
        self._clock_ns = time.time_ns if wall is time.time else lambda: int(wall() * 1e9)
        self._audience = Audience(clock)
        self._outbox = Outbox(clock, limit=OUTBOX, timeout=OUTBOX_SECONDS, lost=self._unsent)
        self._to_keep: set[bytes] = set()
        self._outlets: tuple[Outlet, ...] = ()
        self._closed = False
        self.publishing: PublishingEnd | None = None
        """What numbers messages, on the tracked wire."""

    def open(self, outlets: Iterable[Outlet]) -> Emit:
        """Let ``outlets`` publish from now on; what messages of no outlet are sent with is returned."""
        self._outlets = tuple(outlets)
        emit = self._emit()
        for outlet in self._outlets:
            outlet.open(self._keeping(emit) if outlet.publication.keep else emit, self._gathered)
        return emit

    async def send_the_rest(self, timeout: float) -> dict[str, int]:
        """Wait until subscribers have room for what waits in the outbox; what is given up after ``timeout`` seconds."""
        with suppress(TimeoutError):
            await within(timeout, self._outbox.idle(), self._clock)
        left = self._outbox.close()
        return {"messages for subscribers that have no room": left} if left else {}

    def goodbye(self) -> None:
        """Tell all who have joined that this was all."""
        if self.publishing is not None:
            self.publishing.goodbye()

    def close(self) -> None:
        """Nobody can publish any more, and who waits for subscribers is told."""
        self._closed = True
        for outlet in self._outlets:
            outlet.close()
        self._audience.close()

    # -- what publications send through -------------------------------------------------------------------

    def _emit(self) -> Emit:
        app, stats, transport = self._app, self._stats, self._transport
        send = transport.sender(multipart=app.wire == "multipart")
        if send is None:
            return _nowhere(app)
        frame = self._framer(send)
        transport.announce(self._subscription)
        if app.overflow != "drop":
            return self._careful(frame)
        limit, thread = app.max_message, get_ident()

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            if get_ident() != thread or len(body) > limit:
                _check_message(topic, body, limit, thread)
            send(frame(topic, number, body, headers))
            stats.published += 1
            return DONE

        return emit

    def _framer(self, send: Callable[[Any], None]) -> Framer:
        app = self._app
        if app.wire != "tracked" or not self._transport.counts:
            epoch, next_sequence = secrets.randbits(64), count(1).__next__
            return framer(app.wire, epoch=epoch, next_sequence=next_sequence, clock_ns=self._clock_ns)
        at = ", ".join(map(str, self._endpoints))
        keeps = any(outlet.publication.keep for outlet in self._outlets)
        self.publishing = PublishingEnd(
            self._clock,
            self._control(send),
            self._pacing(send) if keeps else None,
            self._clock_ns,
            f"{app.name}@{gethostname()} {at}",
            _log,
        )
        return self.publishing.framer()

    def _careful(self, frame: Framer) -> Emit:
        """Where nothing is dropped: see `zroute.outbox`."""
        app, stats, outbox = self._app, self._stats, self._outbox
        try_send, publishing = self._transport.try_sender(), self.publishing
        counters = publishing.counters if publishing is not None else None
        keep, kept = (publishing.keep if publishing is not None else _keep_nothing), self._to_keep
        waits, limit, thread = app.overflow == "wait", app.max_message, get_ident()

        def attempt(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> bool:
            assert try_send is not None
            if try_send(frame(topic, number, body, headers)):
                if topic in kept:
                    keep(topic, number, body, headers)
                return True
            stats.eagain += 1
            if counters is not None:
                counters.take_back(topic)  # a number that nobody was sent would be a loss to all
            return False

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            _check_message(topic, body, limit, thread)
            if headers:
                pack_headers(headers)  # a bad one is an error here, not when its turn has come
            sent = DONE
            if waits:
                sent = outbox.send(topic, partial(attempt, topic, number, body, headers))
            elif not attempt(topic, number, body, headers):
                raise HighWaterMarkError(
                    f"{topic.decode()!r}: the queue of a subscriber is full, and nobody was sent this: publish later, "
                    "less often, or with App(overflow='wait')"
                )
            stats.published += 1
            return sent

        return emit

    def _keeping(self, emit: Emit) -> Emit:
        """``emit`` for a publication whose latest messages are kept for those who join."""
        if self.publishing is None:
            return emit
        keep, kept = self.publishing.keep, self._to_keep
        drops = self._app.overflow == "drop"  # else they are kept when they are sent: see `_careful`

        def emit_and_keep(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            kept.add(topic)
            sent = emit(topic, number, body, headers)
            if drops:
                keep(topic, number, body, headers)
            return sent

        return emit_and_keep

    # -- what control frames and kept messages go through -------------------------------------------------

    def _control(self, send: Callable[[Any], None]) -> Callable[[bytes], object]:
        """The way of the messages, so that no control frame is dropped either."""
        try_send = self._transport.try_sender()
        if self._app.overflow == "drop" or try_send is None:
            return send

        def control(frame: bytes) -> None:
            topic = frame.partition(NUL)[0]
            try:
                self._outbox.send(topic, lambda: try_send(frame))
            except HighWaterMarkError as error:  # a subscriber that misses an answer asks again
                self._unsent_control(error)

        return control

    def _pacing(self, send: Callable[[Any], None]) -> Callable[[bytes, bytes], bool]:
        """What kept messages go through: ``(topic, frame)``, False while there is no room."""
        try_send = self._transport.try_sender()
        if self._app.overflow == "drop" or try_send is None:

            def send_anyway(_topic: bytes, frame: bytes) -> bool:
                send(frame)
                return True

            return send_anyway
        return lambda topic, frame: self._outbox.try_now(topic, lambda: try_send(frame))

    # -- what could not be sent ---------------------------------------------------------------------------

    def _unsent(self, topic: bytes, error: HighWaterMarkError) -> None:
        """A message was given up in the outbox: counted and said, whether somebody awaits it or not."""
        self._stats.published -= 1
        self._stats.publish_errors += 1
        self._reports("unsent", f"{self._app.name}: unsent messages", logging.WARNING, "%s: %s", self._app.name, error)

    def _unsent_control(self, error: HighWaterMarkError) -> None:
        name = self._app.name
        subject = f"{name}: unsent control frames"
        self._reports("control", subject, logging.WARNING, "%s: no room for a control frame: %s", name, error)

    # -- subscribers --------------------------------------------------------------------------------------

    def _subscription(self, prefix: bytes, there: bool) -> None:
        """A subscription has come or gone."""
        self._audience.subscription(prefix, there)
        if self.publishing is not None:
            self.publishing.subscription(prefix, there)

    def _gathered(self, pattern: Pattern, number: int, timeout: float) -> Awaitable[None]:
        """See `zroute.routing.publications.Publication.wait_for_subscribers`."""
        if not self._transport.counts:
            return DONE
        waiting: Deferred[None] = within(timeout, self._audience.gathered(pattern, number), self._clock)
        return as_awaitable(waiting.addErrback(self._not_gathered, pattern, number, timeout))

    def _not_gathered(self, failure: Failure, pattern: Pattern, number: int, timeout: float) -> None:
        if self._closed:
            raise NotRunningError(f"{self._app.name!r} has stopped, and nobody subscribes to it any more")
        failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
        raise NotReadyError(
            f"{pattern.text!r}: {self._audience.number(pattern)} of {number} subscribers came within {timeout:g} s: do "
            "they run, and connect to where this app publishes?"
        )


def _check_message(topic: bytes, body: bytes, limit: int, thread: int) -> None:
    if get_ident() != thread:
        raise WrongThreadError(
            f"{topic.decode()!r} was published from another thread, which ZeroMQ does not survive: use "
            "app.from_thread(publication.publish, message) or app.from_thread(app.publish, topic, message)"
        )
    if len(body) > limit:
        raise EncodeError(
            f"{topic.decode()!r}: a body of {len(body)} bytes, over max_message={limit}: send less, or "
            "raise max_message here and at the readers"
        )


def _keep_nothing(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> None:
    """On a wire that can't bring it to anybody."""


def _nowhere(app: App) -> Emit:
    def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        raise UsageError(f"{topic.decode()!r} was published, and {app!r} has no endpoint to publish at: add App(pub=…)")

    return emit
