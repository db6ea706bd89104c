"""The publisher's side of the accounts on NATS: answers and goodbyes.

The subscriber's side is `zroute.nats.session`. ``docs/reference/wire.md`` describes the protocol. The session does no
I/O: the transport passes to it what has happened, and it sends messages with a function.

==================================== ===================================================================================
input                                output
==================================== ===================================================================================
`connected`                          a hello to all subscribers
`returned`: connected again          to each joined subscriber: the numbers that it may not have received
a join                               all numbers of the wanted topics, in parts; then the kept messages and their end
a check of a joined subscriber       the numbers that have changed since the last statement that it has read
a check or call of an unknown one    a statement that asks it to join
a leave, or a 503 for a subscriber   none; the subscriber is forgotten
`TopicCounters` drops counters       to each joined subscriber: the last numbers of these topics
the first message of a topic that    a complete statement, before the message, to each subscriber that wants the topic
no publication has declared          and was not answered before
a tick                               none; subscribers that were not heard for `LEASE` seconds are forgotten
`goodbye`                            to each joined subscriber: its last numbers, repeated until it confirms them
==================================== ===================================================================================

**A subscriber** is *unknown*, *known* or *joined*. A join makes it known. It becomes joined when the publisher answers:
at once, if a publication may have a topic that the subscriber wants; otherwise before the first message of such a
topic. A publisher therefore never answers subscribers that it does not concern.

**Order.** NATS keeps the order of a publisher's messages to a subscriber, also over several subjects: see the wire
document. A number in a statement is read when its part is sent, so the messages up to this number arrive before it, or
are lost. The parts may be sent while messages are published.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from zroute.clock import Clock, Ticking
from zroute.errors import EncodeError, EnvelopeError
from zroute.logs import printable
from zroute.messages.coalesced import CoalescedFramer, coalesced_framer
from zroute.messages.control import WITHDRAWN_SECONDS
from zroute.messages.topics import Pattern
from zroute.messages.wire import NUL, Framer, Kind, counted_framer, pack_kept
from zroute.nats.asks import (
    HELLO,
    STATEMENT_ROOM,
    Ask,
    AskKind,
    Says,
    Statement,
    StatementKind,
    entry_size,
    pack_statement,
    parse_ask,
    private_subject,
    subscriber_of,
)
from zroute.nats.counters import TopicCounters
from zroute.nats.headers import carried, check_headers
from zroute.nats.subjects import check_topic
from zroute.nats.wants import Wants, wants_of
from zroute.options import KEPT_MAX
from zroute.publishing.counters import Counter
from zroute.publishing.pacing import Allowance
from zroute.publishing.retained import LastValueCache
from zroute.throttle import ThrottledLog

__all__ = ["LEASE", "SUBSCRIBERS_MAX", "TopicPublisherSession"]

LEASE = WITHDRAWN_SECONDS
"""The time in seconds after which a publisher forgets a subscriber that it has not heard."""

SUBSCRIBERS_MAX = 10_000
"""The maximum number of subscribers that a publisher knows. Each takes about 2 KB with ten patterns."""

SUBJECTS_MAX = 200_000
"""The maximum number of subjects that a publisher stores for all subscribers. Each takes about 600 bytes.

A join that exceeds it is answered like one about all topics. Peers choose the number of subjects in a join.
"""

_GOODBYE_PERIOD = 0.1
_GOODBYE_PERIOD_MAX = 0.4
"""The minimum and maximum time in seconds between two goodbyes to a subscriber that does not confirm them."""

_PERIOD = 0.01
_UNITS = 5_000
"""The work for statements in each period. A counter that is looked at costs one unit, which is about a microsecond."""
_STATEMENT = 50
"""The cost of sending a part of a statement."""
_LOOKED_AT = 1_000
"""The maximum number of counters that are looked at in one step for one subscriber."""

_SUBSCRIBER = re.compile(rb"[0-9a-f]{12}")

Send = Callable[[bytes, bytes, bytes], bool]
"""Sends ``(subject, payload, reply subject)``. Returns False if the connection has no room or is away."""


@attrs.frozen(eq=False)
class _Marker:
    """The request of a subscriber for kept messages, as `LastValueCache` sees it."""

    topic: bytes
    subscriber: int
    wanted: tuple[bytes, ...]
    topics: Wants
    summary: bool = False

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        return self.topics.prefixes

    def wants(self, topic: bytes) -> bool:
        return topic in self.topics


@attrs.define(eq=False)
class _Known:
    """A subscriber.

    Attributes:
        marker: its last join.
        heard_at: the time of its last question.
        joined: True if the publisher has answered the join, or is about to.
        turn: the turn of the last statement that it has read; 0 before.
    """

    marker: _Marker
    heard_at: float
    joined: bool = False
    turn: int = 0


@attrs.define(eq=False)
class _Walk:
    """A statement that is being sent.

    Attributes:
        to: the subject to send to.
        kind: the kind of the statement.
        says: its flags, without LAST.
        counters: the counters to look at, of which the first ``at`` are done.
        generation: the generation at the beginning.
        turn: the turn at the beginning.
        since: the turn after which the numbers have changed.
        found: the wanted counters for the next part.
        room: the bytes left in the next part.
        part: the index of the next part.
    """

    to: bytes
    kind: StatementKind
    says: Says
    counters: Sequence[Counter]
    generation: int
    turn: int
    since: int = 0
    at: int = attrs.field(init=False, default=0)
    found: list[Counter] = attrs.field(init=False, factory=list)
    room: int = attrs.field(init=False, default=STATEMENT_ROOM)
    part: int = attrs.field(init=False, default=0)

    def look(self, wants: Wants) -> int:
        """Look at some counters, and return their number."""
        begun = self.at
        for counter in self.counters[begun : begun + _LOOKED_AT]:
            if not counter.withdrawn and counter.prefix in wants:
                if entry_size(counter.prefix) > self.room:
                    break
                self.room -= entry_size(counter.prefix)
                self.found.append(counter)
            self.at += 1
        return self.at - begun

    @property
    def is_full(self) -> bool:
        """True if a part must be sent before the next counter."""
        return self.at < len(self.counters) and entry_size(self.counters[self.at].prefix) > self.room

    @property
    def ends(self) -> bool:
        """True if the next part is the last one."""
        return self.at == len(self.counters)

    def next_part(self) -> None:
        """Begin the next part."""
        self.part += 1
        self.found, self.room = [], STATEMENT_ROOM


class TopicPublisherSession(Ticking):
    """The publisher's session on NATS: it numbers messages and answers subscribers.

    It has the attributes and methods of `zroute.publishing.session.PublisherSession` that `Publisher` uses.

    Args:
        clock: The reactor's clock.
        send: A function that sends a control message.
        clock_ns: A function that returns the time in nanoseconds since the Unix epoch.
        app: The app's name, for logs.
        name: The publisher's unique name, which is the same in its next run; empty if it has none.
        log: The logger.
        declared: The patterns of the app's publications. The session answers only subscribers that may want one of
            their topics, or a topic that was used without a publication.
    """

    def __init__(
        self,
        clock: Clock,
        send: Send,
        clock_ns: Callable[[], int],
        app: str,
        name: str,
        log: logging.Logger,
        declared: Iterable[Pattern] = (),
    ) -> None:
        super().__init__(clock)
        self._send = send
        self._clock_ns = clock_ns
        self._app = app
        self._name = name
        self._log = log
        self._declared = tuple(declared)
        self._reports = ThrottledLog(log, clock)
        self._allowance = Allowance(clock, _UNITS, _PERIOD, self._serve)
        self._known: dict[int, _Known] = {}  # in the order in which they were heard
        self._subjects = 0  # the number of subjects in the joins of `_known`
        self._walks: dict[int, _Walk] = {}  # unfinished statements, by subscriber; the next one first
        self._waiting: list[tuple[Pattern, int, Deferred[None]]] = []
        self._told: set[int] = set()  # subscribers with an unconfirmed goodbye
        self._all_told: Deferred[None] | None = None
        self._telling: Any = None  # the timer of the next round of goodbyes
        self.concerns_all = False
        """True to answer all subscribers, because no publication declares the topics of this publisher."""
        self.most: Callable[[], int | None] = lambda: None
        """Returns the maximum size in bytes of a message with its headers, or None while it is unknown."""
        self.changed: Callable[[], None] | None = None
        """A function that is called when the number of subscribers of any publication may have changed, or None."""
        self.kept = LastValueCache(clock, self._send_kept, self._keeps_too_much)
        self.epoch = secrets.randbits(64) or 1  # 0 stands for publishers without zroute
        self.counters = TopicCounters()
        self.counters.added, self.counters.dropped = self._added, self._dropped

    # -- framing

    def framer(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """Return a framer for messages; see `PublisherSession.framer`.

        The framer raises EncodeError for headers that NATS would change.
        """
        frame = counted_framer(epoch=self.epoch, count=self.counters.count, clock_ns=clock_ns, keeps=keeps)

        def checked(topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any] | None) -> Any:
            if headers:
                check_headers(headers)
            return frame(topic, codec, body, headers)

        return checked

    def coalesced_framer(self, *, keeps: bool) -> CoalescedFramer:
        """Return a framer for several messages in one frame."""
        return coalesced_framer(epoch=self.epoch, count=self.counters.count, keeps=keeps)

    full = "no NATS server is connected, or the send buffer is full"

    def check(self, topic: bytes, body: bytes, headers: Mapping[str, Any] | None) -> None:
        """Check a message that may be sent later; see `TransportSession`."""
        check_topic(topic)
        if headers:
            check_headers(headers)
        most = self.most()
        if most is not None and len(body) > most:
            raise EncodeError(
                f"cannot publish to {topic.decode()!r}: the body has {len(body)} bytes, and the server accepts at most "
                f"{most}: raise max_payload in the server's configuration, or publish smaller messages"
            )

    def carried(self, headers: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return headers as text; see `TransportSession`."""
        return carried(headers)

    # -- inputs of the transport

    def connected(self) -> None:
        """Introduce this publisher: its control subjects are subscribed to at the server."""
        self.start()
        says = Says.LAST | Says.ASK_ME
        self._send_statement(HELLO, Kind.JOIN, Statement(0, says, self._name, self.counters.generation, 0), b"")

    def returned(self) -> None:
        """Send the numbers that may have been lost with the connection."""
        for subscriber, known in self._known.items():
            if known.joined:
                # Without a turn, the statement is a complete one, which the kept messages follow.
                self._state(subscriber, known, Kind.BEAT if known.turn else Kind.JOIN, known.marker.topic)
        self._serve()

    def asked(self, reply: bytes, payload: bytes) -> None:
        """Process a message to ``_zr.ask``, or to a private subject of this publisher.

        Args:
            reply: the reply subject of the message; empty if it has none.
            payload: the payload of the message.
        """
        try:
            ask = parse_ask(payload)
            if ask.kind in (AskKind.JOIN, AskKind.CHECK, AskKind.HERE) and subscriber_of(reply) != ask.subscriber:
                raise EnvelopeError("a question whose reply subject does not end with its subscriber")
            self._process(ask, reply)
        except EnvelopeError as error:
            text = "%s: a malformed question of a subscriber: %s"
            self._reports("malformed", f"{self._app}: malformed questions", logging.WARNING, text, self._app, error)

    def unheard(self, subject: bytes) -> None:
        """Forget a subscriber that has gone.

        A server has sent the status 503 to the private subject ``subject``. Other programs may have sent it to any.
        """
        for_us, _, digits = subject.rpartition(b".")
        if private_subject(self.epoch, b"") == for_us + b"." and _SUBSCRIBER.fullmatch(digits):
            self._forget([int(digits, 16)])

    def _process(self, ask: Ask, reply: bytes) -> None:
        known = self._known.pop(ask.subscriber, None)
        if known is not None:  # again at the end, behind those that were heard earlier
            self._known[ask.subscriber] = known
            known.heard_at = self._clock.seconds()
        if ask.kind is AskKind.JOIN:
            self._join(ask, reply, known)
        elif ask.kind is AskKind.LEAVE or ask.kind is AskKind.FAREWELL:
            self._forget([ask.subscriber])
        elif known is None:
            if self._all_told is None:
                facts = Statement(0, Says.LAST | Says.ASK_ME, self._name, self.counters.generation, 0)
                self._send_statement(reply, Kind.JOIN, facts, b"")
        elif ask.kind is AskKind.CHECK and known.joined and ask.subscriber not in self._walks:
            known.turn = ask.turn
            self._state(ask.subscriber, known, self._answer_kind, reply)
            self._serve()

    def _join(self, ask: Ask, reply: bytes, known: _Known | None) -> None:
        before = 0 if known is None else len(known.marker.wanted)
        fits = self._subjects - before + len(ask.subjects) <= SUBJECTS_MAX
        subjects = ask.subjects if fits else (b">",)
        marker = _Marker(reply, ask.subscriber, subjects, wants_of(subjects))
        if known is None:
            if len(self._known) >= SUBSCRIBERS_MAX:
                text = "%s: more than %d subscribers: the app does not answer further ones"
                self._reports(
                    "many", f"{self._app}: many subscribers", logging.WARNING, text, self._app, SUBSCRIBERS_MAX
                )
                return
            known = self._known[ask.subscriber] = _Known(marker, self._clock.seconds())
        elif ask.afresh:
            self.kept.leave(known.marker)
        self._subjects += len(subjects) - before
        known.marker, known.turn = marker, 0
        # A joined subscriber waits for an answer, even if its new topics do not concern this publisher.
        known.joined = known.joined or ask.joined or self._concerns(marker.topics)
        if known.joined:
            self._state(ask.subscriber, known, self._answer_kind, reply)
            self._serve()
        self._subscribers_changed()

    @property
    def _answer_kind(self) -> StatementKind:
        """The kind of an answer.

        After a goodbye, any other kind would revive this publisher at the subscriber.
        """
        return Kind.JOIN if self._all_told is None else Kind.GOODBYE

    def _concerns(self, wants: Wants) -> bool:
        """Return True if a publication may have a wanted topic, or such a topic was used."""
        declared = self.concerns_all or any(wants.meets(pattern) for pattern in self._declared)
        return declared or any(counter.prefix in wants for counter in self.counters.changed(0))

    def _forget(self, subscribers: Iterable[int]) -> None:
        for subscriber in subscribers:
            known = self._known.pop(subscriber, None)
            self._walks.pop(subscriber, None)
            if known is not None:
                self._subjects -= len(known.marker.wanted)
                self.kept.leave(known.marker)
            self._confirmed(subscriber)
        self._subscribers_changed()

    # -- statements

    def _state(self, subscriber: int, known: _Known, kind: StatementKind, to: bytes) -> None:
        """Begin a statement; it replaces an unfinished one."""
        turn = self.counters.order()
        since, says = known.turn, Says.CHANGES if known.turn else Says(0)
        changed, generation = self.counters.changed(since), self.counters.generation
        self._walks[subscriber] = _Walk(to, kind, says, changed, generation, turn, since)

    def _serve(self) -> None:
        """Send parts of statements within the allowance of this period, in rotation."""
        while self._walks and self._allowance.left > 0:
            subscriber = next(iter(self._walks))
            walk = self._walks.pop(subscriber)
            known = self._known[subscriber]
            units = walk.look(known.marker.topics)
            if walk.is_full or walk.ends:
                units += _STATEMENT + len(walk.found)
                if not self._send_part(walk, subscriber):  # no room: again in the next period
                    self._walks[subscriber] = walk
                    self._allowance.spend(max(self._allowance.left, units))
                    return
            self._allowance.spend(units)
            if not walk.ends or walk.found:
                self._walks[subscriber] = walk
            elif walk.kind is Kind.JOIN and not walk.says:
                self.kept.join(known.marker)

    def _send_part(self, walk: _Walk, subscriber: int) -> bool:
        """Send a part; return False if there is no room for it."""
        says = walk.says | Says.LAST if walk.ends else walk.says
        # Dropped counters are skipped: the subscriber has received their last numbers.
        numbers = tuple([(each.prefix, each.number) for each in walk.found if not each.withdrawn])
        facts = Statement(walk.part, says, self._name, walk.generation, walk.turn, walk.since, numbers)
        if not self._send_statement(walk.to, walk.kind, facts, private_subject(self.epoch, subscriber)):
            return False
        walk.next_part()
        return True

    def _send_statement(self, to: bytes, kind: StatementKind, statement: Statement, reply: bytes) -> bool:
        return self._send(to, pack_statement(kind, statement, epoch=self.epoch, sent_at=self._clock_ns()), reply)

    def _added(self, topic: bytes) -> None:
        """Answer the subscribers that a new topic concerns, before its first message.

        Raises TopicError for a topic that NATS does not deliver, before its message has a number.
        """
        check_topic(topic)
        for subscriber, known in self._known.items():
            if not known.joined and topic in known.marker.topics and self._all_told is None:
                known.joined = True
                facts = Statement(0, Says.LAST, self._name, self.counters.generation, self.counters.turn - 1)
                reply = private_subject(self.epoch, subscriber)
                self._send_statement(known.marker.topic, Kind.JOIN, facts, reply)
                self.kept.join(known.marker)

    def _dropped(self, counters: Sequence[Counter]) -> None:
        """Send the last numbers of dropped counters."""
        generation = self.counters.generation + 1
        for subscriber, known in self._known.items():
            if known.joined:
                # `withdrawn` is set already; a walk would skip these counters.
                wanted = [(each.prefix, each.number) for each in counters if each.prefix in known.marker.topics]
                self._send_dropped(subscriber, known, wanted, generation)

    def _send_dropped(self, subscriber: int, known: _Known, left: list[tuple[bytes, int]], generation: int) -> None:
        part, says = 0, Says.FORGOTTEN
        while not says & Says.LAST:
            numbers, room = [], STATEMENT_ROOM
            while left and entry_size(left[-1][0]) <= room:
                numbers.append(left.pop())
                room -= entry_size(numbers[-1][0])
            says = says if left else says | Says.LAST
            facts = Statement(part, says, self._name, generation, 0, 0, tuple(numbers))
            reply = private_subject(self.epoch, subscriber)
            if not self._send_statement(known.marker.topic, Kind.BEAT, facts, reply):
                return  # the subscriber finds the higher generation, and reports an unknown loss
            part += 1

    # -- kept messages

    def _send_kept(self, marker: Any, number: int, topic: bytes, message: Any) -> bool:
        codec, body, headers, sent_at = (
            (message.codec, message.body, message.headers, message.sent_at)
            if message is not None
            else (0, b"", None, self._clock_ns())
        )
        frame = pack_kept(marker.topic, number, topic, codec, body, headers, epoch=self.epoch, sent_at=sent_at)
        return self._send(marker.topic, frame.partition(NUL)[2], private_subject(self.epoch, marker.subscriber))

    def _keeps_too_much(self) -> None:
        text = (
            "%s: kept messages on more than %d topics: the app drops the oldest kept messages, and new "
            "subscribers do not receive the dropped ones"
        )
        self._log.warning(text, self._app, KEPT_MAX)

    # -- subscribers

    def number(self, pattern: Pattern) -> int:
        """Return the number of subscribers to topics of ``pattern``.

        Plain NATS clients are not counted.
        """
        return sum(known.marker.topics.meets(pattern) for known in self._known.values())

    def wait_for(self, pattern: Pattern, number: int) -> Deferred[None]:
        """Return a Deferred that fires when there are ``number`` subscribers.

        The caller may cancel the Deferred.
        """
        waiting: Deferred[None] = Deferred(self._give_up)
        self._waiting.append((pattern, number, waiting))
        self._subscribers_changed()
        return waiting

    def _give_up(self, waiting: Deferred[None]) -> None:
        self._waiting = [each for each in self._waiting if each[2] is not waiting]

    def _subscribers_changed(self) -> None:
        for each in tuple(self._waiting):
            pattern, number, waiting = each
            if each in self._waiting and self.number(pattern) >= number:
                self._waiting.remove(each)
                waiting.callback(None)
        if self.changed is not None:
            self.changed()

    # -- time

    def tick(self) -> None:
        """Forget subscribers whose lease has ended."""
        self.counters.order()
        before = self._clock.seconds() - LEASE
        if ended := list(takewhile(lambda each: self._known[each].heard_at < before, self._known)):
            text = "%s: subscribers were not heard for %.0f s and are forgotten: %s"
            names = printable(", ".join(f"{each:012x}" for each in ended[:10]))
            self._log.debug(text, self._app, LEASE, names)
            self._forget(ended)

    def stop(self) -> None:
        """Stop the timers."""
        super().stop()
        self._allowance.close()
        self._reports.close()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None

    # -- goodbye

    def goodbye(self) -> Deferred[None]:
        """Send a goodbye to all joined subscribers, repeatedly.

        Return a Deferred that fires when all have confirmed it, have left or have gone. The caller may cancel it;
        `unread` is then the number of subscribers that have not confirmed the goodbye.
        """
        self.stop()
        self.kept.close()
        self._walks.clear()
        self.changed = None
        left, self._waiting = self._waiting, []
        for _, _, waiting in left:
            waiting.cancel()
        self._all_told = Deferred(lambda _: self.stop())
        self._told = {subscriber for subscriber, known in self._known.items() if known.joined}
        self._say_goodbye(_GOODBYE_PERIOD)
        self._confirmed(None)
        return self._all_told

    @property
    def unread(self) -> int:
        """The number of subscribers that have not confirmed their goodbye."""
        return len(self._told)

    def _say_goodbye(self, period: float) -> None:
        """Send a round of goodbyes; the next round follows in ``period`` seconds."""
        self._telling = None
        for subscriber in self._told:
            if subscriber not in self._walks:
                known = self._known[subscriber]
                self._state(subscriber, known, Kind.GOODBYE, known.marker.topic)
        self._telling = self._clock.callLater(period, self._say_goodbye, min(2 * period, _GOODBYE_PERIOD_MAX))
        self._serve()

    def _confirmed(self, subscriber: int | None) -> None:
        if subscriber is not None:
            self._told.discard(subscriber)
        if self._all_told is not None and not self._told and not self._all_told.called:
            self.stop()
            self._all_told.callback(None)
