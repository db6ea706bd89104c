"""The subscriber's side of the tracked wire: ask publishers, and report losses.

A session belongs to one run of an app. It sends markers after the subscriptions, and passes received control frames to
`zroute.receiving.tracker`. The tracker returns events. For each event, the session takes one of these actions:

- It counts and logs a loss.
- It sends another marker or a ping.
- It sends lost subscriptions again.
- It cuts dead connections.

`zroute.receiving.hearing` contains the rules for asking publishers and for deciding that they are silent.
``docs/reference/wire.md`` specifies the protocol.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from math import nextafter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zroute.clock import TICK, Clock
from zroute.messages.control import (
    GRACE,
    MARKER,
    pack_farewell,
    pack_marker,
    pack_ping,
    parse_beat,
    parse_marker,
    parse_statement,
)
from zroute.messages.recovery import BOX, Since
from zroute.messages.snapshots import parse_snapshot_end
from zroute.messages.topics import Topic
from zroute.messages.wire import Header, Kind, snapshot_number
from zroute.options import MAX_TOPIC, SUBSCRIPTIONS_SLICE
from zroute.receiving.accounts_session import AccountsSession, named
from zroute.receiving.events import (
    DUPLICATE,
    Corrected,
    Ended,
    Event,
    Evicted,
    Gap,
    Joined,
    LostKept,
    LostPast,
    Missing,
    Namesake,
    Overdue,
    Quiet,
    Restarted,
    Silent,
    UnknownLoss,
)
from zroute.receiving.hearing import ANSWER_SECONDS
from zroute.receiving.mending import Mender
from zroute.receiving.snapshots import SnapshotRequests
from zroute.receiving.tracker import PUBLISHERS_MAX, Tracker
from zroute.stats import Stats

if TYPE_CHECKING:
    from zroute.receiving.recoveries import Recoveries

__all__ = ["SubscriberSession", "Subscriptions"]

_GIVING_MAX = 32.0
"""The maximum pause in seconds between questions to a publisher that has stopped sending kept messages.

The first pause is `ANSWER_SECONDS`, and each further pause is twice as long.
"""

_STANDING = 3 * ANSWER_SECONDS
"""The time in seconds for which a marker or ping stays subscribed after a newer one has replaced it.

ZeroMQ drops the answer to a marker that is no longer subscribed. The time is long enough for every decision that waits
for such an answer.
"""

_PING_MAX = 60.0
"""The maximum pause between pings in seconds.

The session pings even if all publishers are heard, because a proxy may have dropped a marker.
"""

_MENDS_MAX = 3
"""The number of consecutive incomplete answers after which the missing subscriptions are sent again."""

_MENDINGS_MAX = 10
_MENDINGS_SECONDS = 600.0
"""An app sends subscriptions again at most `_MENDINGS_MAX` times in `_MENDINGS_SECONDS`.

Each repetition may lose messages of other publishers between the unsubscription and the new subscription.
"""

_PAUSE = 2.0
_PAUSE_MAX = 60.0
"""The first and the maximum pause, in seconds, between two cuts of connections to one endpoint.

The pause doubles with each cut.
"""


class Subscriptions(Protocol):
    """The methods of a transport that a session calls."""

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Subscribe to exactly these prefixes, in this order."""

    def resubscribe(self, subscriptions: Collection[bytes]) -> None:
        """Unsubscribe from each of these prefixes, and immediately subscribe again."""

    def request(self, topic: bytes) -> None:
        """Send a message to all publishers: subscribe to ``topic``, then unsubscribe."""

    def read_soon(self) -> None:
        """Call ``receive`` in the reactor's next turn, even if no message has arrived."""

    def emptied(self) -> bool:
        """Return True if all sockets were read until empty since the last call."""

    def listen_closely(self, closely: bool) -> None:
        """Start or stop recording the connection of each message, which slows reading."""

    def heard(self) -> Collection[int]:
        """Return the connections over which frames arrived since the last call.

        The result is empty unless connections are recorded (`listen_closely`).
        """

    @property
    def came_by(self) -> int | None:
        """The connection of the current message; None if connections are not recorded."""

    @property
    def links(self) -> frozenset[int]:
        """The numbers of the live connections. Each connection has a unique number."""

    def dialled(self, link: int) -> str | None:
        """Return the endpoint of a connection, or None if the peer opened it."""

    def cut(self, link: int) -> str | None:
        """Close a connection, so that ZeroMQ opens a new one.

        Return the endpoint of the connection, or None if the connection can't be closed.
        """

    @property
    def peers(self) -> int:
        """The number of connected publishers that the sockets report."""


class SubscriberSession(AccountsSession):
    """The accounts of tracked publishers in one run of an app.

    It implements `zroute.transport.Accounts`. ``found`` is called with each `Gap`, `UnknownLoss` and `LostKept`.
    ``name`` is the name of the app in log lines.
    """

    def __init__(
        self, clock: Clock, stats: Stats, log: logging.Logger, name: str, found: Callable[[Any], None]
    ) -> None:
        self._tracker = Tracker()
        super().__init__(clock, stats, log, name, found, self._tracker)
        self._mender = Mender(clock, self._resubscribe, self._ping, self._mended)
        self._transport: Subscriptions | None = None
        self._subscriptions: tuple[bytes, ...] = ()
        self._leaving: frozenset[bytes] = frozenset()  # former subscriptions that a publisher still counts
        self.ended: Callable[[str, Collection[int]], None] = lambda name, links: None
        """Called when a publisher says goodbye, with its name and its connections."""
        self._recoveries: Recoveries | None = None
        self._unconfirmed: dict[int, Ended] = {}  # goodbyes of publishers with missing messages, by epoch
        self._giving: dict[int, int] = {}  # at the last tick: the next kept message, by epoch
        self._given_at, self._giving_pause = 0.0, ANSWER_SECONDS
        self._marker: tuple[bytes, ...] = ()  # the marker to send; empty without subscriptions
        self._sent: tuple[bytes, ...] = ()  # the marker that was sent last
        self._joining: Any = None  # the timer of `_join`
        self._asked_at = 0.0
        self._closely_until = 0.0  # the time until which connections are recorded
        self._asked_last = False
        self._ping_at, self._ping_pause = 0.0, GRACE
        self._mendings: deque[float] = deque(maxlen=_MENDINGS_MAX)
        self._id = secrets.randbits(48)  # identifies this subscriber in its markers
        self._asked = 0  # the number of markers and pings so far
        self._own = MARKER + b"%012x" % self._id  # the first bytes of its markers
        self.snapshots = SnapshotRequests(self._id, self._request, self._repeated)
        self._past: list[tuple[float, bytes]] = []  # former markers, pings and farewells, each with the time to drop it
        self._pauses: dict[str, tuple[float, float]] = {}  # by endpoint: the earliest next cut, and the pause
        self._dead: dict[int, float] = {}  # connections to cut unless they are heard again, and when they were judged
        self._said_untracked = False

    @property
    def listening(self) -> bool:
        """True after the first call of `listen`."""
        return self._transport is not None

    def listen(self, transport: Subscriptions, subscriptions: Iterable[bytes]) -> None:
        """Set the subscriptions, and ask all publishers to confirm them."""
        before, self._subscriptions = self._subscriptions, tuple(subscriptions)
        if self._transport is not None and before == self._subscriptions:
            return
        self._transport = transport
        # It may hold subscriptions that the app no longer has.
        self._mender.close()
        self._tracker.subscribe(self._subscriptions)
        self._leaving = self._tracker.leaving
        self._subscribe()
        self._ping_often()
        self._join_soon()
        self.start()

    def rejoin(self) -> None:
        """Send a new marker, because a new publisher may not know the last one."""
        self._ping_often()
        if self._marker and self._joining is None:
            self._join_soon()

    def depart(self, links: Collection[int], address: str, *, unread: bool) -> None:
        """Close the accounts of publishers whose endpoint the app has removed.

        Args:
            links: The connections of the endpoint.
            address: The address of the endpoint. It identifies publishers whose connections are not known.
            unread: True if unread messages were dropped. An unknown loss is then reported.
        """
        self._tell(self._tracker.depart(frozenset(links), address, unread=unread))
        self._leave()

    def ask_last(self) -> None:
        """Ask all publishers for their last numbers, before reading ends."""
        if self._marker:
            self._asked_last = True
            self._join_soon()

    @property
    def awaited(self) -> bool:
        """True while a publisher that answered before has not answered the last question.

        Also True if that question has not been sent yet.
        """
        return self._joining is not None or self._tracker.awaited or self._recovers

    @property
    def has_read_all(self) -> bool:
        """True if all publishers have answered `ask_last`, so unread messages are newer.

        Dead publishers, and publishers that do not use the tracked wire, never answer. In this case the value stays
        False, and the app reads all messages that have arrived.
        """
        if self._transport is None or not self._asked_last or self._joining is not None or self._said_untracked:
            return False
        if self._recovers:
            return False
        answering = self._transport.links <= self._tracker.answering_links
        return answering and self._tracker.is_complete and self._tracker.joins > 0

    # -- questions ----------------------------------------------------------------------------------------

    def _join_soon(self, *, again: bool = False) -> None:
        """Send a marker in the next turn of the reactor.

        One marker is sent for all changes in this turn. Answers to earlier markers no longer count. If ``again`` is
        True, they still count, because the subscriptions are the same.
        """
        self._listen_closely()
        self._asked_at = self._clock.seconds()
        self._marker = (self.make_marker(),) if self._subscriptions else ()
        for marker in self._marker:
            self._tracker.join(marker, self._asked_at, again=again)
        if self._joining is None:
            self._joining = self._clock.callLater(0, self._join)

    def _listen_closely(self) -> None:
        """Record the connections of messages from now on.

        Messages that arrived before the question are not answers to it.
        """
        assert self._transport is not None
        now = self._clock.seconds()
        # Just before `now`: `LinkTimes.unheard` counts everything from the time of the question on as heard.
        self._tracker.links.update(self._transport.links, self._transport.heard(), nextafter(now, 0.0))
        self._transport.listen_closely(True)
        # `Tracker.check` finds a missed answer up to two ticks after its deadline.
        self._closely_until = now + ANSWER_SECONDS + 2 * TICK

    def _next_id(self) -> int:
        self._asked += 1
        # `Marker.subscriber` is the part before the lowest 16 bits.
        return self._id << 16 | self._asked & 0xFFFF

    def make_marker(self) -> bytes:
        """Return a marker with a new id."""
        return pack_marker(self._next_id(), {*self._subscriptions, *self._leaving})

    def _join(self) -> None:
        self._joining = None
        # Keep the last marker subscribed: answers to it may still arrive, and ZeroMQ would drop them.
        self._past += [(self._clock.seconds() + _STANDING, marker) for marker in self._sent]
        self._sent = self._marker
        self._subscribe()
        self._serve()

    def _ping_often(self) -> None:
        """Ping soon and then with growing pauses, because a marker may have been lost."""
        self._ping_pause = GRACE
        self._ping_at = self._clock.seconds() + GRACE

    def _ping_again(self, now: float) -> None:
        """Ping all publishers when the next ping is due.

        A publisher that did not receive the marker answers the ping, and is then sent a new marker.
        """
        if self._marker and now >= self._ping_at:
            self._ping_pause = min(2 * self._ping_pause, _PING_MAX)
            self._ping_at = now + self._ping_pause
            self._ping()

    def _ping(self) -> bytes:
        """Ask all publishers for a sign of life, and return the topic of the ping."""
        self._listen_closely()
        ping, now = pack_ping(self._next_id()), self._clock.seconds()
        self._past.append((now + _STANDING, ping))
        self._subscribe()
        self._tracker.ping(ping, now)
        return ping

    def _subscribe(self) -> None:
        """Pass the subscriptions to the socket.

        The order matters: the current and the former subscriptions come before the markers. A publisher therefore knows
        the subscriptions when it reads a marker.
        """
        assert self._transport is not None
        past = [marker for _, marker in self._past]
        box = () if self._recoveries is None else (self._recoveries.box,)
        self._transport.subscribe((*self._subscriptions, *sorted(self._leaving), *box, *past, *self._sent))

    def _resubscribe(self, prefixes: Collection[bytes]) -> None:
        assert self._transport is not None
        self._transport.resubscribe(prefixes)

    def _mended(self) -> None:
        if self._marker:
            self._join_soon(again=True)

    def _leave(self) -> None:
        """Remove former subscriptions that are no longer needed.

        Called when a publisher has answered or was evicted.
        """
        if self._leaving:
            self._leaving = self._tracker.leaving
            self._subscribe()
            self.moved()

    def _drop_past(self, now: float) -> None:
        """Unsubscribe from markers and pings that have expired."""
        # The entries are in the order of their times, because each of them is kept for `_STANDING`.
        if self._past and self._past[0][0] <= now and self._joining is None:
            self._past = [(until, marker) for until, marker in self._past if until > now]
            self._subscribe()

    # -- calls of the routing table -----------------------------------------------------------------------

    def account(self, epoch: int, topic: bytes, subscription: bytes) -> Any:
        """Return the account of a message; see `zroute.transport.Accounts`."""
        account = self._tracker.account(epoch, topic, subscription)
        self._stats.epochs = self._tracker.epochs
        return account

    def recover(
        self, subscriptions: frozenset[bytes], since: Mapping[bytes, Since], replay: Container[bytes] = ()
    ) -> Recoveries | None:
        """Recover lost messages, and replay the past; see `zroute.transport.Accounts`."""
        if (subscriptions or since) and self._recoveries is None:
            from zroute.receiving.recoveries import Recoveries, RecoveryCalls  # other apps start faster without

            calls = RecoveryCalls(
                admit=self._tracker.admit,
                account=self._tracker.stream,
                request=self._request,
                tell=self._tell,
                lost=self._stays_lost,
                whole=self._whole,
                named=self.named,
            )
            given = self._id, self._clock, self._stats, calls, self._name, self._reports
            self._recoveries = Recoveries(*given)
        if self._recoveries is not None:
            self._recoveries.change(subscriptions, since, replay)
        return self._recoveries

    def recovers_losses(self, subscription: bytes) -> bool:
        """Return True if the app recovers the lost messages of a subscription."""
        return self._recoveries is not None and self._recoveries.wants(subscription)

    @property
    def _recovers(self) -> bool:
        return self._recoveries is not None and self._recoveries.busy

    def _repeated(self) -> None:
        self._stats.join_retries += 1

    def _request(self, topic: bytes) -> None:
        assert self._transport is not None
        self._transport.request(topic)

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Report a loss before this message; return False for a duplicate."""
        found = self._tracker.admit(account, number, many)
        if found is DUPLICATE:
            return False
        if found is not None:
            self._tell([found])
        return True

    def kept(self, header: Header, marker: bytes, topic: bytes, body: bytes = b"") -> bool:
        """Return True if a kept message is for this app, and report a loss before it.

        A frame without a topic marks the end of the kept messages. Its ``body`` contains the number of a request for
        snapshots, or nothing.
        """
        # A subscription to everything also receives the kept messages for other subscribers.
        if parse_marker(marker).subscriber != self._id:
            return False
        lost = self._tracker.kept(header.epoch, header.sequence, None if topic else marker)
        if lost is not None:
            self._tell([lost])
        if not topic:
            if (number := parse_snapshot_end(body)) is not None:
                self.snapshots.ended(header.epoch, number)
            self._serve()
        return bool(topic)

    def snapshot(self, account: Any, header: Header) -> bool:
        """Return True if a snapshot must be delivered, and report a loss before it.

        A snapshot that arrives behind later messages of its subscription is wrong. So is one before the join, when
        losses are not found yet. Both are requested again.
        """
        number = snapshot_number(header, len(account.prefix))
        early = not (account.expected or self._tracker.has_joined(header.epoch))
        # The snapshot belongs directly before the message after ``number``.
        if not early and (number is None or self.admit(account, number + 1, 0)):
            return True
        self.snapshots.stated(header.epoch, snapshots=True)  # the answer that says so may have been lost
        self._need_state(header.epoch, (account.prefix,))
        return False

    @property
    def given(self) -> int:
        """The number of `complete` publishers that have sent their whole state.

        The state consists of kept messages, snapshots and the past.
        """
        replays = self._recoveries.replays if self._recoveries is not None else lambda epoch: False
        return sum(not (self.snapshots.awaits(epoch) or replays(epoch)) for epoch in self._tracker.gave)

    def untracked(self, topic: bytes) -> None:
        """Log the first message that arrives without a tracked header."""
        if not self._said_untracked and self._transport is not None:
            self._said_untracked = True
            self._log.info(
                "%s: a publisher sends untracked messages, so their losses are not counted (first topic: %r)",
                self._name,
                str(Topic.from_wire(topic[:MAX_TOPIC])),
            )

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """Process a statement or a beat; raise EnvelopeError if the frame is malformed."""
        link = self._transport.came_by if self._transport is not None else None
        if header.kind is Kind.BEAT:
            next_ms = parse_beat(body)
            if not topic.startswith(BOX):  # answers to another subscriber, which a subscription to everything receives
                self._tell(self._tracker.beat(header.epoch, topic, header.sequence, next_ms, link))
        elif header.kind in (Kind.JOIN, Kind.GOODBYE):
            goodbye = header.kind is Kind.GOODBYE
            statement = parse_statement(body)
            if self._transport is not None:  # the connection of an earlier run may have just ended
                self._tracker.links.update(self._transport.links, (), self._clock.seconds())
            # Before the numbers are compared, so that the losses that they show can be recovered.
            if self._tracker.expects(topic):
                self.snapshots.stated(header.epoch, snapshots=statement.snapshots)
                if self._recoveries is not None:
                    self._recoveries.stated(header.epoch, history=statement.history)
            events = self._tracker.stated(header.epoch, topic, statement, goodbye=goodbye, link=link)
            # Before `ready` hears of the join, because `ready(state=True)` waits for the past.
            if self._recoveries is not None:
                if statement.history:
                    self._recoveries.joined(header.epoch)
                else:
                    self._recoveries.has_no_history(header.epoch)
            self._tell(events)
            self._mender.answered(header.epoch, topic)

    # -- events of the tracker ----------------------------------------------------------------------------

    def tick(self) -> None:
        """Check the publishers, and fire the Deferreds of `ready` that are satisfied."""
        assert self._transport is not None
        now, transport = self._clock.seconds(), self._transport
        self._stats.peers = transport.peers
        self._drop_past(now)
        self._tracker.links.update(transport.links, transport.heard(), now)
        emptied = transport.emptied()
        if self._recoveries is not None:
            self._recoveries.tick(now, emptied=emptied)
            if self._recoveries.busy:
                transport.read_soon()  # to deliver what was held, and to repeat a request
        self._tell(self._tracker.check(now, emptied=emptied))
        self.snapshots.tick(now, emptied=emptied)
        # The end of snapshots shows if some were lost, so the session needs it even if nothing waits for the state.
        if any(state for _, state, _ in self._waiting) or self.snapshots.any_of(self._tracker.giving):
            self._ask_for_kept(now, emptied=emptied)
        if self._leaving != self._tracker.leaving:  # a publisher was evicted
            self._leave()
        self._cut_dead(now)
        self._ping_again(now)
        # A connection that waits to be cut is kept if a frame arrives over it, so recording continues until then.
        if now >= self._closely_until and not self._dead:
            transport.listen_closely(False)
        self._serve()

    def _tell(self, events: Iterable[Event]) -> None:
        """Handle the events of the tracker.

        Several questions are combined in one marker or ping.
        """
        again = ping = False
        for event in events:
            if isinstance(event, Overdue):
                again = True
            elif isinstance(event, Quiet):
                ping = True
            else:
                self._do[type(event)](self, event)
        if again:
            self._stats.join_retries += 1
            if self._joining is None:
                self._join_soon(again=True)
        # A marker asks for a sign of life too, so no ping is needed after one.
        elif ping:
            self._ping()

    def _gap(self, gap: Gap) -> None:
        if self._recoveries is None or not self._recoveries.missed(gap):
            self._stays_lost(gap)

    def _stays_lost(self, gap: Gap) -> None:
        super()._gap(gap)
        self._need_state(gap.epoch, (gap.subscription,))

    def _need_state(self, epoch: int, subscriptions: Iterable[bytes], *, blocks: bool = True) -> None:
        """Ask for snapshots after a loss, unless the publisher was evicted.

        See `SnapshotRequests.lost` for the arguments.
        """
        if self._tracker.knows(epoch):
            self.snapshots.lost(epoch, subscriptions, self._clock.seconds(), blocks=blocks)

    def _lost_kept(self, lost: LostKept) -> None:
        super()._lost_kept(lost)
        if lost.count > 0:
            self._need_state(lost.epoch, (b"",), blocks=False)

    def _unknown_loss(self, loss: UnknownLoss) -> None:
        if self._recoveries is not None:
            for subscription in loss.subscriptions:
                self._recoveries.end_stream(loss.epoch, subscription)
        super()._unknown_loss(loss)
        self._need_state(loss.epoch, loss.subscriptions)

    def _restarted(self, event: Restarted) -> None:
        super()._restarted(event)
        self.snapshots.end(event.before)

    def _corrected(self, event: Corrected) -> None:
        if self._recoveries is not None:
            # Messages that were never sent may be missing. They then count as lost, which this event corrects.
            self._recoveries.end_stream(event.epoch, event.subscription)
        self._need_state(event.epoch, (event.subscription,))
        self._stats.lost -= event.wrong
        self._stats.unknown_losses -= event.unknown
        text = (
            "%s: received a forged or wrong frame in the name of %s: the losses of %r that the frame implied are "
            "no longer counted (messages: %d, unknown losses: %d)"
        )
        subscription, named = str(Topic.from_wire(event.subscription)), self.named(event.epoch)
        facts = (self._name, named, subscription, event.wrong, event.unknown)
        self._reports("forged", f"{self._name}: forged numbers", logging.WARNING, text, *facts)

    def _joined(self, event: Joined) -> None:
        self._leave()
        super()._joined(event)
        self.snapshots.joined(event.publisher)

    def _missing(self, event: Missing) -> None:
        """Send the missing subscriptions again, unless they were repeated too often.

        The number of repetitions is limited for two reasons. Each repetition disturbs other publishers a little. A
        publisher whose answers never contain the subscriptions does not follow the protocol.
        """
        mends = event.times <= _MENDS_MAX and self._may_mend()
        remedy = "sending them again" if mends else "this publisher does not count as joined"
        text = "%s: %s does not know %d of %d subscriptions: %s"
        facts = (self._name, self.named(event.publisher), len(event.subscriptions), len(self._subscriptions), remedy)
        self._reports("missing", f"{self._name}: dropped subscriptions", logging.WARNING, text, *facts)
        if mends:
            self._mender.add(event.publisher, event.subscriptions)

    def _may_mend(self) -> bool:
        """Return True and count the repetition, unless there were too many.

        The limit is needed because a peer may send arbitrary answers.
        """
        now = self._clock.seconds()
        if len(self._mendings) == _MENDINGS_MAX and self._mendings[0] > now - _MENDINGS_SECONDS:
            return False
        self._mendings.append(now)
        return True

    def _namesake(self, event: Namesake) -> None:
        text = "%s: two publishers have the same name: %s and %016x; give the two apps different names"
        facts = (self._name, named(event.publisher, event.name), event.other)
        self._reports("namesake", f"{self._name}: publishers of one name", logging.WARNING, text, *facts)

    def _ended(self, event: Ended) -> None:
        """Log the end of a publisher, and confirm that all its messages were read.

        The publisher waits for this confirmation. While messages of the publisher are missing, the confirmation waits
        too, because a publisher answers no more requests after it.
        """
        if self._recoveries is not None:
            if self._recoveries.recovers(event.publisher):
                self._unconfirmed[event.publisher] = event
                return
            self._recoveries.end(event.publisher)
        self.snapshots.end(event.publisher)
        super()._ended(event)
        self.ended(event.name, self._tracker.links_of(event.publisher))
        self._leave()
        if len(self._past) < PUBLISHERS_MAX:  # peers can forge goodbyes, and each entry slows `_subscribe`
            self._past.append((self._clock.seconds() + _STANDING, pack_farewell(self._id, event.publisher)))
            self._subscribe()

    def _evicted(self, event: Evicted) -> None:
        """Forget a publisher, unless it was seen again before this event."""
        if not self._tracker.knows(event.publisher):
            self.snapshots.end(event.publisher)
            if self._recoveries is not None:
                self._recoveries.forget(event.publisher)

    def _lost_past(self, event: LostPast) -> None:
        self._stats.lost += event.count
        self._found(event)

    def _whole(self) -> None:
        """Handle the end of recoveries, for which goodbyes and `ready` wait."""
        self._confirm()
        self._serve()

    def _confirm(self) -> None:
        """Confirm the goodbyes of publishers whose messages are no longer missing."""
        for epoch, event in tuple(self._unconfirmed.items()):
            if self._recoveries is not None and not self._recoveries.recovers(epoch):
                del self._unconfirmed[epoch]
                self._ended(event)

    def _silenced(self, event: Silent) -> None:
        """Log a silent publisher, and mark its silent connections for `_cut_dead`."""
        assert self._transport is not None
        self._leave()
        now = self._clock.seconds()
        self._dead.update(dict.fromkeys(event.links, now))
        addresses = [self._transport.dialled(link) for link in sorted(event.links)]
        again = ", ".join(address for address in addresses if address)
        remedy = f"reconnecting to {again}" if again else "waiting for a sign of life"
        text = "%s: %s is silent: the process is frozen or dead, or the connection is dead; %s"
        who = named(event.publisher, event.name)
        if event.why is not None:
            text, remedy = "%s: %s is disconnected, because %s", event.why
        self._reports("silent", f"{self._name}: silent publishers", logging.WARNING, text, self._name, who, remedy)

    def closed(self, links: frozenset[int], why: str) -> None:
        """Record why connections were closed; log lines about their publishers say it."""
        self._tracker.closed(links, why)

    def _cut_dead(self, now: float) -> None:
        """Cut the connections that are still silent.

        A connection is cut only when the pause of its endpoint is over.
        """
        assert self._transport is not None
        for link, since in tuple(self._dead.items()):
            address = self._transport.dialled(link)
            if address is None or not self._tracker.links.unheard((link,), since):
                del self._dead[link]
                continue
            allowed, pause = self._pauses.get(address, (now, _PAUSE))
            # No cut was needed for a minute after the last pause, so the pauses begin again.
            if now >= allowed + _PAUSE_MAX:
                pause = _PAUSE
            if now >= allowed:
                del self._dead[link]
                self._transport.cut(link)
                self._pauses[address] = (now + pause, min(2 * pause, _PAUSE_MAX))

    _do: ClassVar[dict[type, Callable[..., None]]] = {
        **AccountsSession._do,
        Corrected: _corrected,
        Gap: _gap,
        LostKept: _lost_kept,
        UnknownLoss: _unknown_loss,
        Restarted: _restarted,
        LostPast: _lost_past,
        Joined: _joined,
        Missing: _missing,
        Namesake: _namesake,
        Ended: _ended,
        Evicted: _evicted,
        Silent: _silenced,
    }

    # -- ready --------------------------------------------------------------------------------------------

    def _is_ready(self, number: int | None, state: bool) -> bool:
        """Return True if the condition is satisfied.

        None waits for all connected publishers on the tracked wire.
        """
        if self._transport is None or self._joining is not None:
            return False
        if number is not None:
            return (self.given if state else len(self.complete)) >= number
        if state and (self._recovers or self.given < len(self.complete)):
            return False
        if not self._subscriptions:
            return True
        connected = self._transport.peers
        many = len(self._subscriptions) > SUBSCRIPTIONS_SLICE  # a proxy may have dropped the marker: wait for a ping
        late = self._clock.seconds() >= self._asked_at + GRACE * (3 if many else 1)
        # A publisher that does not use the tracked wire never answers, so the wait for it is limited.
        given_up = late and not self._tracker.incomplete
        return connected > 0 and (len(self.complete) >= connected or given_up)

    def _ask_for_kept(self, now: float, *, emptied: bool) -> None:
        """Ask again if the message that ends the kept messages does not arrive.

        That message may have been dropped on the way. The session does not ask while a publisher is still sending, or
        while unread messages are waiting.
        """
        giving = self._tracker.giving
        if any(self._giving.get(epoch) != number for epoch, number in giving.items()):
            self._giving, self._giving_pause = giving, ANSWER_SECONDS
        elif giving and emptied and self._joining is None:
            if now < self._given_at + self._giving_pause:
                return
            self._giving_pause = min(2 * self._giving_pause, _GIVING_MAX)
            self._stats.join_retries += 1
            self._join_soon(again=True)
        self._given_at = now

    def close(self) -> None:
        """Report the last losses, and stop asking publishers."""
        self.stop()
        self._mender.close()
        self._marker = ()
        if self._joining is not None:
            self._joining.cancel()
            self._joining = None
        if self._transport is not None:
            # A connection may have ended after the last tick; its publisher has an unknown loss.
            self._tracker.links.update(self._transport.links, (), self._clock.seconds())
        alone = self._transport is not None and not self._transport.peers
        self._tell(self._tracker.close(asked=self._asked_last, alone=alone))
        self._reports.close()
