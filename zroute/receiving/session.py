"""The subscribing end of the tracked wire in a running app: it asks publishers where they stand, and tells losses.

It sends markers behind the subscriptions, gives what comes back to `zroute.receiving.tracker`, and does what that
finds: it counts and logs losses, asks again, sends lost subscriptions again, and cuts a connection that is dead. The
rules of asking and judging are in `zroute.receiving.hearing`, the protocol is in ``docs/reference/wire.md``.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable
from math import nextafter
from typing import Any, ClassVar, Protocol

from twisted.internet.defer import Deferred

from zroute.clock import TICK, Clock, Ticking
from zroute.errors import NotRunningError
from zroute.logs import printable
from zroute.messages.control import (
    pack_farewell,
    pack_marker,
    pack_ping,
    parse_beat,
    parse_marker,
    parse_statement,
)
from zroute.messages.topics import Topic
from zroute.messages.wire import Header, Kind
from zroute.options import MAX_TOPIC, SUBSCRIPTIONS_SLICE
from zroute.publishing.counters import GRACE
from zroute.receiving.events import (
    DUPLICATE,
    Corrected,
    Ended,
    Event,
    Gap,
    Joined,
    LostKept,
    Missing,
    Namesake,
    Overdue,
    Quiet,
    Restarted,
    Returned,
    Silent,
    UnknownLoss,
)
from zroute.receiving.hearing import ANSWER_SECONDS
from zroute.receiving.mending import Mender
from zroute.receiving.tracker import PUBLISHERS_MAX, Tracker
from zroute.stats import Stats
from zroute.throttle import ThrottledLog

__all__ = ["SubscriberSession", "Subscriptions"]

_GIVING_MAX = 32.0
"""Seconds between two questions to a publisher that stopped sending what it keeps: they double, up to this."""

_STANDING = 3 * ANSWER_SECONDS
"""Seconds for which markers and pings stand that were replaced: until all that they decide about is decided."""

_PING_MAX = 60.0
"""Seconds between two pings at most, even if all are heard: a proxy may have dropped a marker."""

_MENDS_MAX = 3
"""Times in succession that subscriptions are sent again to a publisher that does not know them."""

_MENDINGS_MAX = 10
_MENDINGS_SECONDS = 600.0
"""How often an app sends subscriptions again in this time: others lose a message now and then meanwhile."""

_PAUSE = 2.0
_PAUSE_MAX = 60.0
"""Seconds between two cuts of the connections to one endpoint: the pause doubles, up to the maximum."""


class Subscriptions(Protocol):
    """What the subscribing end needs of a transport."""

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Subscribe to these in this order, and to nothing else."""

    def resubscribe(self, subscriptions: Collection[bytes]) -> None:
        """Withdraw and subscribe again each of these, back to back."""

    def emptied(self) -> bool:
        """Return True if all there was has been read since this was asked last."""

    def listen_closely(self, closely: bool) -> None:
        """Note by which connection each message comes, or no longer: it makes reading slower."""

    def heard(self) -> Collection[int]:
        """Return the connections by which something came since the last call, while that is noted."""

    @property
    def came_by(self) -> int | None:
        """The connection that the message at hand came by, while that is noted."""

    @property
    def links(self) -> frozenset[int]:
        """The connections that are alive, by numbers that are never used twice."""

    def dialled(self, link: int) -> str | None:
        """Return the endpoint of a connection that was made from here; None for one that a peer has made."""

    def cut(self, link: int) -> str | None:
        """End this connection, so that a new one is made; return its endpoint, or None where that can't be done."""

    @property
    def peers(self) -> int:
        """Publishers that are connected, as far as the sockets know."""


class SubscriberSession(Ticking):
    """Keeps account of what an app was sent by tracked publishers: see `zroute.transport.Accounts`.

    ``found`` is called with each `Gap`, `UnknownLoss` and `LostKept`.
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
        self._reports = ThrottledLog(log, clock)
        self._mender = Mender(clock, self._resubscribe, self._ping, self._mended)
        self._transport: Subscriptions | None = None
        self._subscriptions: tuple[bytes, ...] = ()
        self._leaving: frozenset[bytes] = frozenset()
        self.moved: Callable[[], None] = lambda: None
        """Called when accounts that were asked for may be those of subscriptions before: ask again."""
        self.ended: Callable[[str, Collection[int]], None] = lambda name, links: None
        """Called with the name of each publisher that has said goodbye, and the connections by which it was heard."""
        self._waiting: list[tuple[int | None, bool, Deferred[None]]] = []
        self._giving: dict[int, int] = {}  # by whom kept messages were still awaited at the last tick, and which
        self._given_at, self._giving_pause = 0.0, ANSWER_SECONDS
        self._marker: tuple[bytes, ...] = ()
        self._sent: tuple[bytes, ...] = ()
        self._joining: Any = None
        self._asked_at = 0.0
        self._closely_until = 0.0
        self._asked_last = False
        self._ping_at, self._ping_pause = 0.0, GRACE
        self._mendings: deque[float] = deque(maxlen=_MENDINGS_MAX)
        self._id = secrets.randbits(48)
        self._asked = 0
        self._past: list[tuple[float, bytes]] = []
        self._pauses: dict[str, tuple[float, float]] = {}  # of an endpoint: when it may be cut again, and the pause
        self._dead: dict[int, float] = {}  # connections to be cut when that may be, unless something is heard by them
        self._said_untracked = False

    @property
    def complete(self) -> Collection[str]:
        """The names of the publishers that have answered since the subscriptions changed last."""
        return self._tracker.complete.values()

    @property
    def listening(self) -> bool:
        """True once publishers were sent subscriptions."""
        return self._transport is not None

    def listen(self, transport: Subscriptions, subscriptions: Iterable[bytes]) -> None:
        """Subscribe to these, and ask all publishers to say when they know."""
        before, self._subscriptions = self._subscriptions, tuple(subscriptions)
        if self._transport is not None and before == self._subscriptions:
            return
        self._transport = transport
        self._mender.close()
        self._tracker.subscribe(self._subscriptions)
        self._leaving = self._tracker.leaving
        self._subscribe()
        self._ping_often()
        self._join_soon()
        self.start()

    def rejoin(self) -> None:
        """A publisher is connected that perhaps never saw the marker."""
        self._ping_often()
        if self._marker and self._joining is None:
            self._join_soon()

    def ask_last(self) -> None:
        """Ask once more where all publishers stand, before nothing is read any more."""
        if self._marker:
            self._asked_last = True
            self._join_soon()

    @property
    def awaited(self) -> bool:
        """True while a publisher that has answered before owes an answer, or the question is still to be sent."""
        return self._joining is not None or self._tracker.awaited

    @property
    def has_read_all(self) -> bool:
        """True if all publishers have answered `ask_last`, so that what waits to be read came later.

        Publishers without numbers answer nothing, and dead ones neither: then all is read that has arrived.
        """
        if self._transport is None or not self._asked_last or self._joining is not None or self._said_untracked:
            return False
        answering = self._transport.links <= self._tracker.answering_links
        return answering and self._tracker.is_complete and self._tracker.joins > 0

    # -- questions ----------------------------------------------------------------------------------------

    def _join_soon(self, *, again: bool = False) -> None:
        """Ask in the next turn, once for all that changes in this one.

        Answers to the marker before no longer count, unless nothing has changed since and this only asks ``again``.
        """
        self._listen_closely()
        self._asked_at = self._clock.seconds()
        self._marker = (self.make_marker(),) if self._subscriptions else ()
        for marker in self._marker:
            self._tracker.join(marker, self._asked_at, again=again)
        if self._joining is None:
            self._joining = self._clock.callLater(0, self._join)

    def _listen_closely(self) -> None:
        """Note from now on by which connections something is heard: what came before is no answer."""
        assert self._transport is not None
        now = self._clock.seconds()
        self._tracker.links.update(self._transport.links, self._transport.heard(), nextafter(now, 0.0))
        self._transport.listen_closely(True)
        self._closely_until = now + ANSWER_SECONDS + 2 * TICK

    def _next_id(self) -> int:
        self._asked += 1
        return self._id << 16 | self._asked & 0xFFFF

    def make_marker(self) -> bytes:
        """Return a marker with an id that was not used before."""
        return pack_marker(self._next_id(), {*self._subscriptions, *self._leaving})

    def _join(self) -> None:
        self._joining = None
        # What was sent to the marker before is under way still, and ZeroMQ would drop it here.
        self._past += [(self._clock.seconds() + _STANDING, marker) for marker in self._sent]
        self._sent = self._marker
        self._subscribe()
        self._serve()

    def _ping_often(self) -> None:
        """Ping soon, and then less and less often: publishers may be there that never saw a marker."""
        self._ping_pause = GRACE
        self._ping_at = self._clock.seconds() + GRACE

    def _ping_again(self, now: float) -> None:
        """Ping all publishers, also those that are not known: one that a marker did not reach answers, and is asked."""
        if self._marker and now >= self._ping_at:
            self._ping_pause = min(2 * self._ping_pause, _PING_MAX)
            self._ping_at = now + self._ping_pause
            self._ping()

    def _ping(self) -> bytes:
        """Ask all publishers for a sign of life."""
        self._listen_closely()
        ping, now = pack_ping(self._next_id()), self._clock.seconds()
        self._past.append((now + _STANDING, ping))
        self._subscribe()
        self._tracker.ping(ping, now)
        return ping

    def _subscribe(self) -> None:
        """Tell the socket: what is wanted, what is still accounted for by others, and markers last."""
        assert self._transport is not None
        past = [marker for _, marker in self._past]
        self._transport.subscribe((*self._subscriptions, *sorted(self._leaving), *past, *self._sent))

    def _resubscribe(self, prefixes: Collection[bytes]) -> None:
        assert self._transport is not None
        self._transport.resubscribe(prefixes)

    def _mended(self) -> None:
        if self._marker:
            self._join_soon(again=True)

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
        """See `zroute.transport.Accounts`, also for the next two."""
        account = self._tracker.account(epoch, topic, subscription)
        self._stats.epochs = self._tracker.epochs
        return account

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Tell what is missing before this message."""
        found = self._tracker.admit(account, number, many)
        if found is DUPLICATE:
            return False
        if found is not None:
            self._tell([found])
        return True

    def kept(self, header: Header, marker: bytes, topic: bytes) -> bool:
        """Without a topic it is the end of what was kept."""
        if parse_marker(marker).subscriber != self._id:
            return False
        lost = self._tracker.kept(header.epoch, header.sequence, None if topic else marker)
        if lost is not None:
            self._tell([lost])
        if not topic:
            self._serve()
        return bool(topic)

    def untracked(self, topic: bytes) -> None:
        """Log the first message without numbers."""
        if not self._said_untracked and self._transport is not None:
            self._said_untracked = True
            self._log.info(
                "%s: a publisher does not track, so that what is lost of its messages is not counted; the first of "
                "them has the topic %r",
                self._name,
                str(Topic.from_wire(topic[:MAX_TOPIC])),
            )

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """Take a statement or a beat. Raises EnvelopeError."""
        link = self._transport.came_by if self._transport is not None else None
        if header.kind is Kind.BEAT:
            next_ms = parse_beat(body)
            self._tell(self._tracker.beat(header.epoch, topic, header.sequence, next_ms, link))
        elif header.kind in (Kind.JOIN, Kind.GOODBYE):
            goodbye = header.kind is Kind.GOODBYE
            statement = parse_statement(body)
            if self._transport is not None:  # perhaps the connection of an earlier run has ended in this moment
                self._tracker.links.update(self._transport.links, (), self._clock.seconds())
            self._tell(self._tracker.stated(header.epoch, topic, statement, goodbye=goodbye, link=link))
            self._mender.answered(header.epoch, topic)

    # -- what is found ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """See who is silent, and who of those who wait is served."""
        assert self._transport is not None
        now, transport = self._clock.seconds(), self._transport
        self._stats.peers = transport.peers
        self._drop_past(now)
        self._tracker.links.update(transport.links, transport.heard(), now)
        emptied = transport.emptied()
        self._tell(self._tracker.check(now, emptied=emptied))
        if any(state for _, state, _ in self._waiting):
            self._ask_for_kept(now, emptied=emptied)
        if self._leaving != self._tracker.leaving:  # a publisher was given up for others
            self._leave()
        self._cut_dead(now)
        self._ping_again(now)
        if now >= self._closely_until and not self._dead:
            transport.listen_closely(False)
        self._serve()

    def _tell(self, events: Iterable[Event]) -> None:
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
        elif ping:
            self._ping()

    def _gap(self, gap: Gap) -> None:
        self._stats.gaps += 1
        self._stats.lost += gap.count
        self._found(gap)

    def _lost_kept(self, lost: LostKept) -> None:
        self._stats.lost += lost.count
        if lost.count > 0:
            self._found(lost)
            return
        text = "%s: %s sends again what it keeps: the %d messages of it that were lost are counted as lost no more"
        self._log.info(text, self._name, self.named(lost.epoch), -lost.count)

    def _unknown_loss(self, tail: UnknownLoss) -> None:
        self._stats.unknown_losses += 1
        self._found(tail)

    def _corrected(self, event: Corrected) -> None:
        self._stats.lost -= event.wrong
        self._stats.unknown_losses -= event.unknown
        text = (
            "%s: a frame in the name of %s was forged, or wrong: the account of %r is put right, and the losses that "
            "the frame claimed are taken back (messages: %d, unknown losses: %d)"
        )
        subscription, named = str(Topic.from_wire(event.subscription)), self.named(event.epoch)
        facts = (self._name, named, subscription, event.wrong, event.unknown)
        self._reports("forged", f"{self._name}: forged numbers", logging.WARNING, text, *facts)

    def _joined(self, event: Joined) -> None:
        self._stats.joins += 1
        self._stats.epochs = self._tracker.epochs
        self._log.debug("%s: %s has joined", self._name, _named(event.publisher, event.name))
        self._leave()
        self._serve()

    def _missing(self, event: Missing) -> None:
        """Send what is missing again, if it may have been dropped on the way: that disturbs other publishers a little.

        A publisher that never names what it was sent does not follow the protocol, and what it needs is not known.
        """
        mends = event.times <= _MENDS_MAX and self._may_mend()
        remedy = "they were dropped on the way to it, and are sent again" if mends else "it is not taken for joined"
        text = "%s: %s does not know %d of %d subscriptions: %s"
        facts = (self._name, self.named(event.publisher), len(event.subscriptions), len(self._subscriptions), remedy)
        self._reports("missing", f"{self._name}: dropped subscriptions", logging.WARNING, text, *facts)
        if mends:
            self._mender.add(event.publisher, event.subscriptions)

    def _may_mend(self) -> bool:
        """Return True, and note it, unless subscriptions were sent again too often: a peer may answer at random."""
        now = self._clock.seconds()
        if len(self._mendings) == _MENDINGS_MAX and self._mendings[0] > now - _MENDINGS_SECONDS:
            return False
        self._mendings.append(now)
        return True

    def _restarted(self, event: Restarted) -> None:
        self._log.info("%s: restarted: %s", self._name, _named(event.publisher, event.name))

    def _namesake(self, event: Namesake) -> None:
        text = "%s: two publishers have the name of %s; the other is %016x: give their apps names of their own"
        facts = (self._name, _named(event.publisher, event.name), event.other)
        self._reports("namesake", f"{self._name}: publishers of one name", logging.WARNING, text, *facts)

    def _ended(self, event: Ended) -> None:
        """Tell a publisher that has ended that all it sent was read: it waits for that."""
        what = "and all it sent since the join was received or counted" if event.known else "and had not joined"
        self._log.info("%s: %s has ended, %s", self._name, _named(event.publisher, event.name), what)
        self.ended(event.name, self._tracker.links_of(event.publisher))
        self._leave()
        if len(self._past) < PUBLISHERS_MAX:  # peers can invent goodbyes, and an answer costs as much as many stand
            self._past.append((self._clock.seconds() + _STANDING, pack_farewell(self._id, event.publisher)))
            self._subscribe()

    def _silenced(self, event: Silent) -> None:
        """A publisher is silent: cut the connections by which nothing is heard, as soon as that may be."""
        assert self._transport is not None
        self._leave()
        now = self._clock.seconds()
        self._dead.update(dict.fromkeys(event.links, now))
        addresses = [self._transport.dialled(link) for link in sorted(event.links)]
        again = ", ".join(address for address in addresses if address)
        remedy = f"connecting again to {again}" if again else "waiting for it"
        text = "%s: %s is silent: frozen, dead, or behind a dead connection; %s"
        named = _named(event.publisher, event.name)
        self._reports("silent", f"{self._name}: silent publishers", logging.WARNING, text, self._name, named, remedy)

    def _returned(self, event: Returned) -> None:
        text = "%s: %s is heard again, after %.0f s"
        self._log.info(text, self._name, _named(event.publisher, event.name), event.seconds)

    def _cut_dead(self, now: float) -> None:
        assert self._transport is not None
        for link, since in tuple(self._dead.items()):
            address = self._transport.dialled(link)
            if address is None or not self._tracker.links.unheard((link,), since):
                del self._dead[link]
                continue
            allowed, pause = self._pauses.get(address, (now, _PAUSE))
            if now >= allowed + _PAUSE_MAX:
                pause = _PAUSE
            if now >= allowed:
                del self._dead[link]
                self._transport.cut(link)
                self._pauses[address] = (now + pause, min(2 * pause, _PAUSE_MAX))

    _do: ClassVar[dict[type, Callable[..., None]]] = {
        Gap: _gap,
        LostKept: _lost_kept,
        UnknownLoss: _unknown_loss,
        Corrected: _corrected,
        Joined: _joined,
        Missing: _missing,
        Restarted: _restarted,
        Namesake: _namesake,
        Ended: _ended,
        Silent: _silenced,
        Returned: _returned,
    }

    def named(self, epoch: int) -> str:
        """Return how log lines call a publisher."""
        return _named(epoch, self._tracker.name_of(epoch))

    # -- ready --------------------------------------------------------------------------------------------

    def ready(self, publishers: int | None, *, state: bool = False) -> Deferred[None]:
        """Fires when this number of publishers has answered; by default all that are connected, but plain ones.

        With ``state`` each has also sent all that it keeps of the subscriptions.
        """
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append((publishers, state, waiting))
        self._serve()
        return waiting

    @property
    def given(self) -> int:
        """How many of the `complete` publishers have sent all that they keep."""
        return self._tracker.given

    def _serve(self) -> None:
        for each in tuple(self._waiting):
            number, state, waiting = each
            if self._is_ready(number, state):
                self._waiting.remove(each)
                waiting.callback(None)

    def _is_ready(self, number: int | None, state: bool) -> bool:
        if self._transport is None or self._joining is not None:
            return False
        if number is not None:
            return (self.given if state else len(self.complete)) >= number
        if state and self._tracker.giving:
            return False
        if not self._subscriptions:
            return True
        connected = self._transport.peers
        many = len(self._subscriptions) > SUBSCRIPTIONS_SLICE  # a proxy may have dropped the marker: a ping will tell
        late = self._clock.seconds() >= self._asked_at + GRACE * (3 if many else 1)
        given_up = late and not self._tracker.incomplete
        return connected > 0 and (len(self.complete) >= connected or given_up)

    def _ask_for_kept(self, now: float, *, emptied: bool) -> None:
        """Ask again if the end of what is kept does not come: it may have been dropped on the way.

        A publisher that is still sending, and one whose messages wait here to be read, are left alone.
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

    def _forget(self, waiting: Deferred[None]) -> None:
        self._waiting = [each for each in self._waiting if each[2] is not waiting]

    def close(self) -> None:
        """Tell the last findings. Publishers that connect now are not asked any more."""
        self.stop()
        self._mender.close()
        self._marker = ()
        if self._joining is not None:
            self._joining.cancel()
            self._joining = None
        if self._transport is not None:
            self._tracker.links.update(self._transport.links, (), self._clock.seconds())
        alone = self._transport is not None and not self._transport.peers
        self._tell(self._tracker.close(asked=self._asked_last, alone=alone))
        waiting, self._waiting = self._waiting, []
        for _, _, each in waiting:
            each.errback(NotRunningError(f"{self._name!r} has stopped, and waits for no publisher any more"))
        self._reports.close()


def _named(epoch: int, name: str) -> str:
    return f"publisher {printable(name)} ({epoch:016x})" if name else f"publisher {epoch:016x}"
