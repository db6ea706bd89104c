"""The publishing end of the tracked wire in a running app: it numbers messages, answers markers, beats, says goodbye.

The other end is `zroute.receiving.session`. The protocol stands in ``docs/reference/wire.md``.

**States.** A subscriber is in the collection of its state, which is also the order in which it has its turn:

- ``_asking``: its last marker waits for an answer. A newer one takes its place; a withdrawn one is answered no more.
- in none: it was answered. `LastValueCache` sends it what is kept, and its counters go on.
- ``_told``: a goodbye was sent to its last marker, and no farewell has come. The goodbye goes out in rounds, since a
  full queue may drop it; ``_untold`` are those whose turn in this round is still to come. A farewell ends that, and so
  does the end of its marker.

``_all_told`` divides the life of the session: while it is None markers are answered; from `goodbye` on no one can join,
and it fires when no one is left in ``_told``. Pings are in no state of their subscriber: they are answered from
``_pings``, or dropped when they are withdrawn. These are sets with an order and an end, not steps that depend on one
another, so there is no table of transitions.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred

from zroute.clock import Clock, Ticking
from zroute.errors import EnvelopeError
from zroute.messages.coalesced import CoalescedFramer, coalesced_framer
from zroute.messages.control import (
    FAREWELL,
    Marker,
    pack_beat,
    pack_statements,
    parse_farewell,
)
from zroute.messages.wire import Framer, Kind, counted_framer, pack_kept
from zroute.options import KEPT_MAX, MAX_SUBSCRIPTIONS
from zroute.publishing.counters import Counters
from zroute.publishing.pacing import Allowance
from zroute.publishing.retained import LastValue, LastValueCache
from zroute.publishing.send_queue import SendQueue

__all__ = ["PublisherSession"]


_GOODBYE_PERIOD = 0.1
_GOODBYE_PERIOD_MAX = 0.4
"""Seconds between goodbyes to one who does not answer: the time doubles, but who reads late is told before the end."""

_PERIOD = 0.01
_ENTRIES = 5_000
"""Entries of statements in each period: a peer may ask for all there are as often as it likes. They take about 3 ms."""
_STATEMENT = 50
"""What a statement costs beside its entries, measured by the cost of one."""
_PINGS = 50
"""Pings that are answered between two joins: half of a period, so that a flood of them holds up no join for long."""


class PublisherSession(Ticking):
    """Numbers what an app publishes, answers the markers of those who join, and beats when nothing is published.

    ``send`` takes a frame, or is False while there is no room for it; then it waits in ``send_queue``. ``clock_ns``
    gives nanoseconds since the Unix epoch, ``app`` is the app's name, and ``name`` the publisher's own, the same in its
    next run and no other's; empty, where there is none.
    """

    def __init__(
        self,
        clock: Clock,
        send_queue: SendQueue,
        send: Callable[[bytes], bool],
        clock_ns: Callable[[], int],
        app: str,
        name: str,
        log: logging.Logger,
    ) -> None:
        super().__init__(clock)
        self._send_queue = send_queue
        self._send = send
        self.kept = LastValueCache(clock, self._send_kept, self._keeps_too_much)
        self._clock_ns = clock_ns
        self._app = app
        self._name = name
        self._log = log
        self._said_plain = False
        self._allowance = Allowance(clock, _ENTRIES, _PERIOD, self._renewed)
        self._asking: dict[int, Marker] = {}  # the newest marker of each subscriber
        self._pings: dict[bytes, Marker] = {}  # by their topics
        self._told: dict[int, Marker] = {}  # who was told goodbye and has not answered, by subscriber
        self._untold: dict[int, None] = {}  # who is still to be told in this round
        self._pause = _GOODBYE_PERIOD
        self._all_told: Deferred[None] | None = None
        self.epoch = secrets.randbits(64)
        self.counters = Counters()

    def framer(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """What makes frames of messages that are kept, or are not; ``clock_ns()`` is the time they were sent at."""
        return counted_framer(epoch=self.epoch, count=self.counters.count, clock_ns=clock_ns, keeps=keeps)

    def coalesced_framer(self, *, keeps: bool) -> CoalescedFramer:
        """What makes one frame of several messages, the last of which is kept or is not."""
        return coalesced_framer(epoch=self.epoch, count=self.counters.count, keeps=keeps)

    def subscription(self, prefix: bytes, there: bool) -> None:
        """One has come or gone."""
        if prefix.startswith(FAREWELL):
            if there:
                self._heard(prefix)
        elif there:
            self._subscribed(prefix)
        else:
            self._withdrawn(prefix)

    def _subscribed(self, prefix: bytes) -> None:
        marker = self.counters.subscribe(prefix, self._clock.seconds())
        if self._all_told is not None:  # too late to join, but this is the marker that is listened for now
            if marker is not None and marker.subscriber in self._told and not marker.is_ping:
                self._told[marker.subscriber] = marker
            return
        if marker is None or not marker.is_ping:
            self.start()
        if marker is None:
            return
        if not marker.is_ping:
            self._asking[marker.subscriber] = marker
        elif len(self._pings) < MAX_SUBSCRIPTIONS:
            self._pings[marker.topic] = marker
        self._answer_some()

    def _answer_some(self) -> None:
        """Answer those who ask, as long as the allowance of this period lasts, and go on in the next one.

        Pings first: they are answered at little cost, and a subscriber waits for 2 s only before it takes a publisher
        for silent, while the joins of many others may take longer than that.
        """
        while (self._pings or self._asking) and self._allowance.left > 0:
            for topic in tuple(islice(self._pings, _PINGS)):
                if self._allowance.left > 0:
                    self._send_queue.try_now(topic, partial(self._state, Kind.JOIN, self._pings.pop(topic)))
            if self._asking and self._allowance.left > 0:
                marker = self._asking.pop(next(iter(self._asking)))
                self._send_queue.send(marker.topic, partial(self._state, Kind.JOIN, marker), count=0)
                self.kept.join(marker)

    def _renewed(self) -> None:
        if self._all_told is None:
            self._answer_some()
        elif self._untold:
            self._tell_some()

    def stop(self) -> None:
        """See `Ticking.stop`."""
        super().stop()
        self._allowance.close()

    def _withdrawn(self, prefix: bytes) -> None:
        marker = self.counters.markers.get(prefix)
        self.counters.withdraw(prefix, self._clock.seconds())
        self._pings.pop(prefix, None)
        if marker is not None:
            if self._asking.get(marker.subscriber) == marker:
                del self._asking[marker.subscriber]
            self.kept.leave(marker)
            if self._told.get(marker.subscriber) == marker:
                self._answered(marker.subscriber)

    def _send_kept(self, marker: Marker, number: int, topic: bytes, message: LastValue | None) -> bool:
        codec, body, headers, sent_at = (
            (message.codec, message.body, message.headers, message.sent_at)
            if message is not None
            else (0, b"", None, self._clock_ns())
        )
        frame = pack_kept(marker.topic, number, topic, codec, body, headers, epoch=self.epoch, sent_at=sent_at)
        return self._send_queue.try_now(marker.topic, lambda: self._send(frame))

    def _keeps_too_much(self) -> None:
        self._log.warning(
            "%s: more than %d topics have a message to keep: the oldest topics are given up, and new subscribers are "
            "not sent their messages",
            self._app,
            KEPT_MAX,
        )

    def _state(self, kind: Any, marker: Marker) -> bool:
        """Send where the counters stand now. False without room for all of it: then anew, with new numbers."""
        numbers = tuple(self.counters.numbers(marker))
        units = _STATEMENT + len(numbers)  # goodbyes leave no debt: they have little time, and nothing else goes on
        self._allowance.spend(units if self._all_told is None else min(units, _ENTRIES))
        frames = pack_statements(
            kind,
            marker.topic,
            numbers,
            epoch=self.epoch,
            name=self._name,
            partial=self.counters.partial,
            sent_at=self._clock_ns(),
        )
        return all(map(self._send, frames))

    def tick(self) -> None:
        """Send the beats that are due."""
        for beat in self.counters.beats(self._clock.seconds()):
            frame = pack_beat(
                beat.prefix, beat.number, epoch=self.epoch, next_ms=beat.next_ms, sent_at=self._clock_ns()
            )
            self._send_queue.send(beat.prefix, partial(self._send, frame), count=0)
        if not self._said_plain and self.counters.plain_reader(self._clock.seconds()):
            self._said_plain = True
            self._log.warning(
                "%s: a subscriber does not track: it sees the header as part of the body, and does not know what it "
                "loses (wire='plain' is for readers of topic NUL body, wire='multipart' for those of [topic, body])",
                self._app,
            )

    def goodbye(self) -> Deferred[None]:
        """Tell all who have joined that this was all, again and again; fires when they have read it, or left.

        So whoever waits for it knows that nothing is queued for anybody any more. To be cancelled when that takes too
        long: `unread` says by how many.
        """
        self.stop()
        self.kept.close()
        self._asking.clear()
        self._pings.clear()
        self._all_told = Deferred(lambda _: self.stop())
        for marker in self.counters.markers.values():  # the last of each subscriber
            self._told[marker.subscriber] = marker
        self._say_goodbye(_GOODBYE_PERIOD)
        self._answered()
        return self._all_told

    @property
    def unread(self) -> int:
        """How many subscribers were told goodbye and have not read it."""
        return len(self._told)

    def _say_goodbye(self, period: float) -> None:
        """Where there is no room for it, or it is dropped, the next one may get through."""
        self._timer, self._pause = None, period
        self._untold = dict.fromkeys(self._told)
        self._tell_some()

    def _tell_some(self) -> None:
        """Go on with this round, as long as the allowance of this period lasts."""
        while self._untold and self._allowance.left > 0:
            subscriber, _ = self._untold.popitem()
            if subscriber in self._told:
                self._state(Kind.GOODBYE, self._told[subscriber])
        if self._told and not self._untold:
            longer = min(2 * self._pause, _GOODBYE_PERIOD_MAX)
            self._timer = self._clock.callLater(self._pause, self._say_goodbye, longer)

    def _heard(self, farewell: bytes) -> None:
        with suppress(EnvelopeError):  # a plain reader's subscription that looks like one
            subscriber, epoch = parse_farewell(farewell)
            if epoch == self.epoch:
                self._answered(subscriber)

    def _answered(self, *subscribers: int) -> None:
        for subscriber in subscribers:
            self._told.pop(subscriber, None)
        if self._all_told is not None and not self._told and not self._all_told.called:
            self.stop()
            self._all_told.callback(None)
