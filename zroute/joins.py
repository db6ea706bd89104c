"""The two ends of the tracked wire in a running app: what `zroute.delivery.tracking` finds is sent, counted and said.

The protocol stands in ``docs/reference/wire.md``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from zroute.delivery.counting import GRACE, TICK, Counters
from zroute.delivery.findings import (
    DUPLICATE,
    Ended,
    Event,
    Gap,
    Joined,
    LostKept,
    LostTail,
    Overdue,
    Restarted,
    Silent,
)
from zroute.delivery.reports import Clock, Reports
from zroute.delivery.stats import Stats
from zroute.delivery.tracking import Tracker
from zroute.errors import EnvelopeError, NotRunningError
from zroute.kept import KEPT_MAX, Kept, Last
from zroute.messages.batches import BatchFramer, batch_framer
from zroute.messages.control import (
    FAREWELL,
    Marker,
    pack_beat,
    pack_farewell,
    pack_marker,
    pack_statements,
    parse_beat,
    parse_farewell,
    parse_marker,
    parse_statement,
)
from zroute.messages.wire import Framer, Header, Kind, counted_framer, pack_kept, topic_framer
from zroute.outbox import Outbox
from zroute.routing.trie import minimal_cover

__all__ = ["PublishingEnd", "SubscribingEnd", "Subscriptions"]


_GOODBYE_PERIOD = 0.1
_GOODBYE_PERIOD_MAX = 0.4
"""Seconds between goodbyes to one who does not answer: the time doubles, but who reads late is told before the end."""


class _Ticking:
    """Calls `tick` each `TICK` seconds between `start` and `stop`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timer: Any = None

    def start(self) -> None:
        """From now on."""
        if self._timer is None:
            self._timer = self._clock.callLater(TICK, self._ticked)

    def stop(self) -> None:
        """No more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ticked(self) -> None:
        self._timer = None
        self.start()
        self.tick()

    def tick(self) -> None:
        """What is to be done now and then."""
        raise NotImplementedError


class PublishingEnd(_Ticking):
    """Numbers what an app publishes, answers the markers of those who join, and beats when nothing is published.

    ``send`` takes a frame, or is False while there is no room for it; then it waits in ``outbox``. ``clock_ns`` gives
    nanoseconds since the Unix epoch, ``app`` is the app's name, and ``name`` the publisher's own, the same in its next
    run and no other's; empty, where there is none.
    """

    def __init__(
        self,
        clock: Clock,
        outbox: Outbox,
        send: Callable[[bytes], bool],
        clock_ns: Callable[[], int],
        app: str,
        name: str,
        log: logging.Logger,
    ) -> None:
        super().__init__(clock)
        self._outbox = outbox
        self._send = send
        self.kept = Kept(clock, self._send_kept, self._keeps_too_much)
        self._clock_ns = clock_ns
        self._app = app
        self._name = name
        self._log = log
        self._said_plain = False
        self._told: dict[int, Marker] = {}  # who was told goodbye and has not answered, by subscriber
        self._all_told: Deferred[None] | None = None
        self.epoch = secrets.randbits(64)
        self.counters = Counters()

    def framer(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """What makes frames of messages that are kept, or are not; ``clock_ns()`` is the time they were sent at."""
        return counted_framer(epoch=self.epoch, count=self.counters.count, clock_ns=clock_ns, keeps=keeps)

    def topic_framer(self, topic: bytes, codec: int) -> Callable[[bytes], bytes]:
        """What makes frames of bodies of one topic."""
        count, clock_ns = self.counters.count, self._clock_ns
        return topic_framer(topic, codec, epoch=self.epoch, count=count, clock_ns=clock_ns)

    def batch_framer(self, *, keeps: bool) -> BatchFramer:
        """What makes one frame of several messages, the last of which is kept or is not."""
        return batch_framer(epoch=self.epoch, count=self.counters.count, keeps=keeps)

    def subscription(self, prefix: bytes, there: bool) -> None:
        """One has come or gone."""
        if prefix.startswith(FAREWELL):
            if there:
                self._heard(prefix)
        elif there:
            self._subscribed(prefix)
        else:
            self.counters.withdraw(prefix, self._clock.seconds())
            self.kept.leave(prefix)
            self._answered(*(who for who, marker in self._told.items() if marker.topic == prefix))

    def _subscribed(self, prefix: bytes) -> None:
        marker = self.counters.subscribe(prefix, self._clock.seconds())
        if self._all_told is not None:  # too late to join, but this is the marker that is listened for now
            if marker is not None and marker.subscriber in self._told:
                self._told[marker.subscriber] = marker
            return
        self.start()
        if marker is not None:
            self._outbox.send(marker.topic, lambda: self._state(Kind.JOIN, marker), count=0)
            self.kept.join(marker, self._clock_ns())

    def keep(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None, sent_at: int) -> None:
        """This message was sent, and is for those who join later, too; ``sent_at`` as in its header."""
        self.kept.keep(topic, Last(codec, body, headers, sent_at))

    def _send_kept(self, marker: Marker, number: int, topic: bytes, message: Last | None) -> bool:
        codec, body, headers, sent_at = (
            (message.codec, message.body, message.headers, message.sent_at)
            if message is not None
            else (0, b"", None, self._clock_ns())
        )
        frame = pack_kept(marker.topic, number, topic, codec, body, headers, epoch=self.epoch, sent_at=sent_at)
        return self._outbox.try_now(marker.topic, lambda: self._send(frame))

    def _keeps_too_much(self) -> None:
        self._log.warning(
            "%s: the latest messages of more than %d topics are to be kept: the oldest topics are given up, and "
            "nobody who joins is sent theirs",
            self._app,
            KEPT_MAX,
        )

    def _state(self, kind: Any, marker: Marker) -> bool:
        """Send where the counters stand now. False without room for all of it: then anew, with new numbers."""
        frames = pack_statements(
            kind,
            marker.topic,
            self.counters.numbers(marker),
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
            self._outbox.send(beat.prefix, partial(self._send, frame), count=0)
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
        for marker in self._told.values():
            self._state(Kind.GOODBYE, marker)
        if self._told:
            self._timer = self._clock.callLater(period, self._say_goodbye, min(2 * period, _GOODBYE_PERIOD_MAX))

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


class Subscriptions(Protocol):
    """What the subscribing end needs of a transport."""

    def listen(self, subscriptions: Iterable[bytes]) -> None:
        """Subscribe to these in this order, and to nothing else."""

    def emptied(self) -> bool:
        """Whether all there was has been read since this was asked last."""

    def reconnect(self, name: str) -> str | None:
        """Connect anew to the publisher of this name; the address, or None where it can't be told from others."""

    @property
    def peers(self) -> int:
        """Publishers that are connected, as far as the sockets know."""


class SubscribingEnd(_Ticking):
    """Keeps account of what an app was sent by tracked publishers: see `zroute.routing.table.Accounts`.

    ``found`` is called with each `Gap`, `LostTail` and `LostKept`.
    """

    def __init__(
        self, clock: Clock, stats: Stats, log: logging.Logger, name: str, found: Callable[[Any], None]
    ) -> None:
        super().__init__(clock)
        self._stats = stats
        self._log = log
        self._name = name
        self._found = found
        self._tracker = Tracker()
        self._reports = Reports(log, clock)
        self._transport: Subscriptions | None = None
        self._subscriptions: tuple[bytes, ...] = ()
        self._leaving: frozenset[bytes] = frozenset()
        self.moved: Callable[[], None] = lambda: None
        """Called when accounts that were asked for may be those of subscriptions before: ask again."""
        self._waiting: list[tuple[int | None, Deferred[None]]] = []
        self._marker: tuple[bytes, ...] = ()
        self._sent: tuple[bytes, ...] = ()
        self._joining: Any = None
        self._asked_at = 0.0
        self._id = secrets.randbits(48)
        self._asked = 0
        self._past: list[tuple[float, bytes]] = []
        self._said_untracked = False

    @property
    def complete(self) -> Collection[str]:
        """The names of the publishers that have answered since the subscriptions changed last."""
        return self._tracker.complete.values()

    @property
    def listening(self) -> bool:
        """Whether publishers were told of any subscription yet."""
        return self._transport is not None

    def listen(self, transport: Subscriptions, subscriptions: Iterable[bytes]) -> None:
        """Subscribe to these, and ask all publishers to say when they know."""
        before, self._subscriptions = self._subscriptions, tuple(subscriptions)
        if self._transport is not None and before == self._subscriptions:
            return
        self._transport = transport
        self._tracker.subscribe(self._subscriptions)
        self._leaving = self._tracker.leaving
        self._subscribe()
        self._join_soon()
        self.start()

    def rejoin(self) -> None:
        """A publisher is connected that perhaps never saw the marker."""
        if self._marker and self._joining is None:
            self._join_soon()

    def _join_soon(self, *, again: bool = False) -> None:
        """In the next turn, once for all that changes in this one.

        Answers to the marker before count no more now, unless nothing has changed since and this only asks ``again``.
        """
        self._asked_at = self._clock.seconds()
        self._marker = (self._make_marker(),) if self._subscriptions else ()
        for marker in self._marker:
            self._tracker.join(marker, self._asked_at, again=again)
        if self._joining is None:
            self._joining = self._clock.callLater(0, self._join)

    def _make_marker(self) -> bytes:
        self._asked += 1
        wanted = minimal_cover((*self._subscriptions, *self._leaving)) if self._leaving else self._subscriptions
        return pack_marker(self._id << 16 | self._asked & 0xFFFF, wanted)

    def _join(self) -> None:
        self._joining = None
        # What was sent to the marker before is under way still, and ZeroMQ would drop it here.
        self._past += [(self._clock.seconds() + GRACE, marker) for marker in self._sent]
        self._sent = self._marker
        self._subscribe()
        self._serve()

    def _subscribe(self) -> None:
        """Tell the socket: what is wanted, what is still accounted for by others, and markers last."""
        assert self._transport is not None
        past = [marker for _, marker in self._past]
        self._transport.listen((*self._subscriptions, *sorted(self._leaving), *past, *self._sent))

    def _leave(self) -> None:
        """A publisher has answered, or is given up: it needs the subscriptions before no more."""
        if self._leaving:
            self._leaving = self._tracker.leaving
            self._subscribe()
            self.moved()

    def _drop_past(self, now: float) -> None:
        if self._past and self._past[0][0] <= now and self._joining is None:
            self._past = [(until, marker) for until, marker in self._past if until > now]
            self._subscribe()

    # -- what the table asks ------------------------------------------------------------------------------

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> Any:
        """See `zroute.routing.table.Accounts`, also for the next two."""
        account = self._tracker.account(epoch, topic, subscription)
        self._stats.epochs = self._tracker.epochs
        return account

    def judge(self, account: Any, number: int, many: int = 1) -> bool:
        """Tell what is missing before this message."""
        found = self._tracker.judge(account, number, many)
        if found is DUPLICATE:
            return False
        if found is not None:
            self._tell([found])
        return True

    def kept(self, header: Header, marker: bytes, topic: bytes) -> bool:
        """Without a topic it is the end of what was kept."""
        if parse_marker(marker).subscriber != self._id:
            return False
        lost = self._tracker.kept(header.epoch, header.sequence)
        if lost is not None:
            self._tell([lost])
        return bool(topic)

    def untracked(self, topic: bytes) -> None:
        """Said once."""
        if not self._said_untracked and self._transport is not None:
            self._said_untracked = True
            self._log.info(
                "%s: a publisher does not track, so that what is lost of its messages is not counted; the first of "
                "them has the topic %r",
                self._name,
                topic.decode(errors="replace"),
            )

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """A statement or a beat."""
        if header.kind is Kind.BEAT:
            next_ms = parse_beat(body)
            self._tell(self._tracker.beat(header.epoch, topic, header.sequence, next_ms))
        elif header.kind in (Kind.JOIN, Kind.GOODBYE):
            goodbye = header.kind is Kind.GOODBYE
            statement = parse_statement(body)
            self._tell(self._tracker.stated(header.epoch, topic, statement, goodbye=goodbye))

    # -- what is found ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """See who is silent, and who of those who wait is served."""
        assert self._transport is not None
        self._stats.peers = self._transport.peers
        self._drop_past(self._clock.seconds())
        self._tell(self._tracker.check(self._clock.seconds(), drained=self._transport.emptied()))
        if self._leaving != self._tracker.leaving:  # a publisher was given up for others
            self._leave()
        self._serve()

    def _tell(self, events: Iterable[Event]) -> None:
        stats, again = self._stats, False
        for event in events:
            if isinstance(event, Gap):
                stats.gaps += 1
                stats.lost += event.count
                self._found(event)
            elif isinstance(event, LostKept):
                stats.lost += event.count
                self._found(event)
            elif isinstance(event, LostTail):
                stats.unknown_tail += 1
                self._found(event)
            elif isinstance(event, Joined):
                stats.joins += 1
                stats.epochs = self._tracker.epochs
                self._log.debug("%s: %s has joined", self._name, _named(event.publisher, event.name))
                self._leave()
                self._serve()
            elif isinstance(event, Restarted):
                self._log.info("%s: restarted: %s", self._name, _named(event.publisher, event.name))
            elif isinstance(event, Ended):
                text = "%s: %s has ended, and all it sent since the join was received or counted"
                self._log.info(text, self._name, _named(event.publisher, event.name))
                self._bid_farewell(event.publisher)
            elif isinstance(event, Overdue):
                again = True
            elif isinstance(event, Silent):
                self._reconnect(event)
        if again:
            stats.join_retries += 1
            if self._joining is None:
                self._join_soon(again=True)

    def _bid_farewell(self, epoch: int) -> None:
        """Tell a publisher that has ended that all it sent was read: it waits for that."""
        self._past.append((self._clock.seconds() + GRACE, pack_farewell(self._id, epoch)))
        self._leave()
        self._subscribe()

    def named(self, epoch: int) -> str:
        """How log lines call a publisher."""
        return _named(epoch, self._tracker.name_of(epoch))

    def _reconnect(self, silent: Silent) -> None:
        assert self._transport is not None
        self._leave()
        address = self._transport.reconnect(silent.name)
        remedy = f"connecting anew to {address}" if address else "it is waited for"
        text = "%s: %s is silent: frozen, dead, or behind a connection that is; %s"
        named = _named(silent.publisher, silent.name)
        self._reports("silent", f"{self._name}: silent publishers", logging.WARNING, text, self._name, named, remedy)

    # -- ready --------------------------------------------------------------------------------------------

    def ready(self, publishers: int | None) -> Deferred[None]:
        """Fires when so many publishers have answered; by default all that are connected, but plain ones."""
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append((publishers, waiting))
        self._serve()
        return waiting

    def _serve(self) -> None:
        for number, waiting in tuple(self._waiting):
            if self._is_ready(number):
                self._waiting.remove((number, waiting))
                waiting.callback(None)

    def _is_ready(self, number: int | None) -> bool:
        if self._transport is None or self._joining is not None:
            return False
        if number is not None:
            return len(self.complete) >= number
        if not self._subscriptions:
            return True
        connected = self._transport.peers
        late = self._clock.seconds() >= self._asked_at + GRACE and not self._tracker.incomplete
        return connected > 0 and (len(self.complete) >= connected or late)

    def _forget(self, waiting: Deferred[None]) -> None:
        self._waiting = [each for each in self._waiting if each[1] is not waiting]

    def close(self) -> None:
        """The last findings. Nobody is asked any more, whoever connects."""
        self.stop()
        self._marker = ()
        if self._joining is not None:
            self._joining.cancel()
            self._joining = None
        self._tell(self._tracker.close(alone=self._transport is not None and not self._transport.peers))
        waiting, self._waiting = self._waiting, []
        for _, each in waiting:
            each.errback(NotRunningError(f"{self._name!r} has stopped, and waits for no publisher any more"))
        self._reports.close()


def _named(epoch: int, name: str) -> str:
    return f"publisher {name} ({epoch:016x})" if name else f"publisher {epoch:016x}"
