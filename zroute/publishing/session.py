"""The publisher's side of the tracked wire: numbers, answers, beats and goodbyes.

The subscriber's side is `zroute.receiving.session`. ``docs/reference/wire.md`` describes the protocol.

**States.** The state of a subscriber is the collection that contains it. The collections are ordered, and subscribers
are served in that order.

- ``_asking``: The subscriber's last marker waits for an answer. A newer marker replaces that marker, and a withdrawal
  removes it.
- No collection: The marker was answered, and `LastValueCache` sends the kept messages to the subscriber.
- ``_told``: A goodbye was sent as an answer to the last marker, but no farewell has arrived. The goodbye is repeated in
  rounds, because a full queue may drop it. ``_untold`` contains the subscribers that have not been served in this
  round. The state ends when a farewell arrives or the marker is withdrawn.

While ``_all_told`` is None, the session answers markers. `goodbye` sets ``_all_told`` to a Deferred, which fires when
``_told`` is empty. From then on, no subscriber can join. Pings do not change the state of their subscriber. Pings wait
in ``_pings`` until they are answered or withdrawn.
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
from zroute.messages.recovery import BOX, REQUEST
from zroute.messages.snapshots import pack_snapshot_end, parse_snapshot_request
from zroute.messages.wire import Framer, Kind, counted_framer, pack_kept
from zroute.options import KEPT_MAX, MAX_SUBSCRIPTIONS
from zroute.publishing.counters import Counters
from zroute.publishing.history import History, Ring
from zroute.publishing.pacing import Allowance
from zroute.publishing.recovery import HistoryAnswers
from zroute.publishing.retained import LastValue, LastValueCache
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.snapshots import Made

__all__ = ["PublisherSession"]


_GOODBYE_PERIOD = 0.1
_GOODBYE_PERIOD_MAX = 0.4
"""The minimum and maximum time in seconds between two goodbyes to a subscriber that does not answer.

The time doubles each round, up to the maximum. Even a slow subscriber then receives a goodbye in time.
"""

_PERIOD = 0.01
_ENTRIES = 5_000
"""The maximum number of statement entries per period. Sending 5,000 entries takes about 3 ms.

The limit is necessary because a peer can ask for all entries at any rate.
"""
_STATEMENT = 50
"""The fixed cost of a statement, relative to the cost of one entry."""
_PINGS = 50
"""The maximum number of pings that are answered between two joins.

Answering 50 pings takes half a period, so a flood of pings does not delay joins for long.
"""


class PublisherSession(Ticking):
    """The publisher's session: it numbers messages, answers markers and sends beats.

    Args:
        clock: The reactor's clock.
        send_queue: The queue for frames that cannot be sent yet.
        send: A function that sends a frame; it returns False while a subscriber's queue is full.
        clock_ns: A function that returns the time in nanoseconds since the Unix epoch.
        app: The app's name, for logs.
        name: The publisher's unique name, which is the same in its next run; empty if it has none.
        log: The logger.
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
        self._pings: dict[bytes, Marker] = {}  # by the topic of the marker
        self._told: dict[int, Marker] = {}  # subscribers with an unanswered goodbye
        self._untold: dict[int, None] = {}  # subscribers without a goodbye in this round
        self._pause = _GOODBYE_PERIOD
        self._all_told: Deferred[None] | None = None
        self.epoch = secrets.randbits(64)
        self.counters = Counters()
        self._histories = HistoryAnswers(clock, clock_ns, self.counters, self.epoch, self._send_answer)

    def framer(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """Return a framer for messages.

        ``clock_ns`` returns the time of sending. ``keeps`` is True if the messages are kept for new subscribers.
        """
        return counted_framer(epoch=self.epoch, count=self.counters.count, clock_ns=clock_ns, keeps=keeps)

    def coalesced_framer(self, *, keeps: bool) -> CoalescedFramer:
        """Return a framer for several messages in one frame.

        ``keeps`` is True if the last message is kept for new subscribers.
        """
        return coalesced_framer(epoch=self.epoch, count=self.counters.count, keeps=keeps)

    def ring(self, history: History) -> Ring:
        """Return the kept frames of a publication with a history.

        From now on, statements say that this publisher has a history, and requests for lost messages are answered.
        """
        self.start()  # also without subscribers, because each tick enforces the bounds
        return self._histories.ring(history)

    def subscription(self, prefix: bytes, there: bool) -> None:
        """Handle a new subscription, or a withdrawn one if ``there`` is False."""
        if prefix.startswith(FAREWELL):
            if there:
                self._heard(prefix)
        elif prefix.startswith(REQUEST):
            if there:
                self._histories.request(prefix)
                self._renew(prefix)
        elif prefix.startswith(BOX):
            pass  # the topic of answers, which are sent on request
        elif there:
            self._subscribed(prefix)
        else:
            self._withdrawn(prefix)

    def _subscribed(self, prefix: bytes) -> None:
        marker = self.counters.subscribe(prefix, self._clock.seconds())
        if self._all_told is not None:  # too late to join, but the subscriber now expects answers to this marker
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
        """Answer pings and joins within the allowance of this period.

        Pings are answered first, because their answers are cheap. A subscriber considers a publisher silent after 2 s
        without an answer, and the joins of many subscribers may take longer than that.
        """
        while (self._pings or self._asking) and self._allowance.left > 0:
            for topic in tuple(islice(self._pings, _PINGS)):
                if self._allowance.left > 0:
                    # Not queued if a queue is full: the subscriber sends the next ping when the answer is 2 s late.
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
        """Stop beats and answers; see `Ticking.stop`."""
        super().stop()
        self._allowance.close()

    def _withdrawn(self, prefix: bytes) -> None:
        # Read before `withdraw`, which forgets the marker.
        marker = self.counters.markers.get(prefix)
        self.counters.withdraw(prefix, self._clock.seconds())
        self._pings.pop(prefix, None)
        if marker is not None:
            if self._asking.get(marker.subscriber) == marker:
                del self._asking[marker.subscriber]
            self.kept.leave(marker)
            if self._told.get(marker.subscriber) == marker:
                self._answered(marker.subscriber)

    def _renew(self, topic: bytes) -> None:
        """Answer a request for snapshots."""
        if self.kept.snapshots is None or self._all_told is not None:
            return
        with suppress(EnvelopeError):  # a request for something else, or a malformed one
            request = parse_snapshot_request(topic)
            if request.epoch == self.epoch:
                self.kept.renew(request.subscriber, request.prefix, request.number)

    def _send_kept(self, marker: Marker, number: int, topic: bytes, message: LastValue | Made | int | None) -> bool:
        codec, body, headers, sent_at, numbers = 0, b"", None, self._clock_ns(), None
        if isinstance(message, LastValue):
            codec, body, headers, sent_at = message.codec, message.body, message.headers, message.sent_at
        elif isinstance(message, Made):
            codec, body, sent_at = message.codec, message.body, message.sent_at
            numbers = self.counters.numbers_of(marker, topic)
        elif message is not None:
            body = pack_snapshot_end(message)
        given = marker.topic, number, topic, codec, body, headers
        frame = pack_kept(*given, epoch=self.epoch, sent_at=sent_at, numbers=numbers)
        return self._send_queue.try_now(marker.topic, lambda: self._send(frame))

    def _send_answer(self, box: bytes, frames: list[bytes]) -> None:
        """Send the frames of an answer, up to the first one that can't be sent now.

        The subscriber asks again for the rest.
        """
        all(self._send_queue.try_now(box, partial(self._send, frame)) for frame in frames)

    def _keeps_too_much(self) -> None:
        self._log.warning(
            "%s: kept messages on more than %d topics: the app drops the oldest kept messages, and new "
            "subscribers do not receive the dropped ones",
            self._app,
            KEPT_MAX,
        )

    def _state(self, kind: Any, marker: Marker) -> bool:
        """Send the current numbers to the sender of ``marker``.

        Return False if a subscriber's queue is full. The caller must then retry later; the retry reads the numbers
        again.
        """
        numbers = tuple(self.counters.numbers(marker))
        units = _STATEMENT + len(numbers)  # goodbyes leave no debt, because no other work follows
        self._allowance.spend(units if self._all_told is None else min(units, _ENTRIES))
        frames = pack_statements(
            kind,
            marker.topic,
            numbers,
            epoch=self.epoch,
            name=self._name,
            partial=self.counters.partial,
            sent_at=self._clock_ns(),
            history=self._histories.active,
            snapshots=self.kept.snapshots is not None,
        )
        # Ends at the first part that can't be sent; a retry begins with part 0, at which the subscriber starts again.
        return all(map(self._send, frames))

    def tick(self) -> None:
        """Send the beats that are due, and enforce the bounds of the histories."""
        if self._histories.active:
            self._histories.tick(self._clock.seconds())
        for beat in self.counters.beats(self._clock.seconds()):
            frame = pack_beat(
                beat.prefix, beat.number, epoch=self.epoch, next_ms=beat.next_ms, sent_at=self._clock_ns()
            )
            self._send_queue.send(beat.prefix, partial(self._send, frame), count=0)
        if not self._said_plain and self.counters.plain_reader(self._clock.seconds()):
            self._said_plain = True
            self._log.warning(
                "%s: a subscriber does not use the tracked wire: the subscriber reads the header as part of the "
                "body, and does not detect losses. Use wire='plain' for subscribers that expect topic NUL body, "
                "or wire='multipart' for [topic, body]",
                self._app,
            )

    def goodbye(self) -> Deferred[None]:
        """Send a goodbye to all joined subscribers, repeatedly.

        Return a Deferred that fires when all subscribers have read the goodbye or left. At that time, no message is
        queued for any subscriber. The caller may cancel the Deferred after a timeout; `unread` is then the number of
        subscribers that have not answered.
        """
        # Ends the beats, and cancels a timer that answers markers: from now on, `_renewed` sends goodbyes.
        self.stop()
        self.kept.close()
        self._asking.clear()
        self._pings.clear()
        # The canceller runs after the timeout, and stops the rounds of goodbyes.
        self._all_told = Deferred(lambda _: self._end())
        for marker in self.counters.markers.values():  # a later marker of a subscriber replaces an earlier one
            self._told[marker.subscriber] = marker
        self._say_goodbye(_GOODBYE_PERIOD)
        # Without arguments, to fire the Deferred now if no subscriber has joined.
        self._answered()
        return self._all_told

    def _end(self) -> None:
        """Stop the goodbyes and the answers to requests for lost messages.

        Until then, such requests are answered, because the goodbye may be the first frame that shows a loss.
        """
        self.stop()
        self._histories.close()

    @property
    def unread(self) -> int:
        """The number of subscribers that have not read their goodbye."""
        return len(self._told)

    def _say_goodbye(self, period: float) -> None:
        """Start a round of goodbyes; the next round follows in ``period`` seconds.

        A goodbye that could not be sent, or was dropped, is repeated in the next round.
        """
        # The timer has just called this method.
        self._timer, self._pause = None, period
        self._untold = dict.fromkeys(self._told)
        self._tell_some()

    def _tell_some(self) -> None:
        """Send goodbyes of this round within the allowance of this period."""
        while self._untold and self._allowance.left > 0:
            subscriber, _ = self._untold.popitem()
            # It may have answered since the round began.
            if subscriber in self._told:
                self._state(Kind.GOODBYE, self._told[subscriber])
        if self._told and not self._untold:
            longer = min(2 * self._pause, _GOODBYE_PERIOD_MAX)
            self._timer = self._clock.callLater(self._pause, self._say_goodbye, longer)

    def _heard(self, farewell: bytes) -> None:
        with suppress(EnvelopeError):  # a plain reader's subscription that only looks like a farewell
            subscriber, epoch = parse_farewell(farewell)
            if epoch == self.epoch:
                self._answered(subscriber)

    def _answered(self, *subscribers: int) -> None:
        for subscriber in subscribers:
            self._told.pop(subscriber, None)
        if self._all_told is not None and not self._told and not self._all_told.called:
            self._end()
            self._all_told.callback(None)
