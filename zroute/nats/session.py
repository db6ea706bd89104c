"""The subscriber's side of the accounts on NATS: questions and losses.

A session belongs to one run of an app, and implements `zroute.transport.Accounts`. `zroute.nats.tracker` finds the
losses; the session counts and logs them, and sends questions. It does no I/O: the transport passes to it what has
happened, and it sends questions with a function. ``docs/reference/wire.md`` describes the protocol.

========================================== =============================================================================
input                                      output
========================================== =============================================================================
`listen`: the wanted topics have changed   a join to all publishers
`connected`: the first time, or again      a join to all publishers, afresh
`lost`: the connection has ended           none; no answer is late until `connected`
`control`: a hello, or "ask me"            a join to this publisher
`control`: a statement                     losses, joins and ends; a farewell after a goodbye
`unheard`: the status 503                  none, or a silent or replaced publisher
a tick                                     joins and checks that are due; a call to publishers that do not know this app
`ask_last`                                 a check of each publisher
`leave`                                    a leave to all publishers
========================================== =============================================================================

The transport must keep the order: it subscribes to the subjects of the patterns before it calls `listen`, and again
before it calls `connected`, and it passes statements to the receiving loop in the order in which they arrived among the
messages. The loop calls `control` and `kept`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from zroute.clock import TICK, Clock
from zroute.errors import EnvelopeError
from zroute.messages.control import GRACE
from zroute.messages.recovery import Since
from zroute.messages.topics import Pattern, Topic
from zroute.messages.wire import Header, Kind
from zroute.nats.asks import (
    ASK,
    HELLO,
    Ask,
    AskKind,
    Says,
    pack_ask,
    parse_statement,
    private_subject,
    question_subject,
    subscriber_of,
)
from zroute.nats.tracker import TopicTracker
from zroute.nats.wants import Wants
from zroute.options import MAX_TOPIC
from zroute.receiving.accounts_session import AccountsSession, named
from zroute.receiving.events import (
    DUPLICATE,
    Event,
    Overdue,
    Quiet,
    Silent,
)
from zroute.receiving.hearing import ANSWER_SECONDS
from zroute.stats import Stats

__all__ = ["Send", "TopicAccounts"]

Send = Callable[[bytes, bytes, bytes], bool]
"""Sends ``(subject, payload, reply subject)``. Returns False if the connection has no room or is away."""

_WINDOW = TICK
"""The time in seconds for which `TopicAccounts.ready` waits for further publishers after the question.

Nothing tells how many publishers a NATS cluster has. An answer takes milliseconds.
"""

_CALL_MAX = 60.0
"""The maximum pause between two calls to publishers that do not know this app. The first pause is `GRACE`."""

_TOGETHER = 8
"""The number of publishers above which one join to all publishers replaces the joins to single ones."""

_DIRECTED_MAX = 2_048
"""The number of latest questions to single publishers for which the status 503 is understood."""

_GIVING_MAX = 32.0
"""The maximum pause in seconds between questions for kept messages that do not arrive."""


class TopicAccounts(AccountsSession):
    """The accounts of publishers on NATS in one run of an app.

    Args:
        clock: The reactor's clock.
        stats: The counters of the run.
        log: The logger.
        name: The name of the app in log lines.
        found: A function that is called with each `Gap`, `UnknownLoss` and `LostKept`.
        send: A function that sends a question.
        inbox: The inbox of this app. It must receive every message whose subject is the inbox and one more token.
        emptied: A function that returns True if all messages that have arrived were read since its last call.
    """

    def __init__(
        self,
        clock: Clock,
        stats: Stats,
        log: logging.Logger,
        name: str,
        found: Callable[[Any], None],
        send: Send,
        inbox: bytes,
        emptied: Callable[[], bool],
    ) -> None:
        self._tracker = TopicTracker()
        super().__init__(clock, stats, log, name, found, self._tracker)
        self._send = send
        self._inbox = inbox
        self._emptied = emptied
        self.subscriber = secrets.randbits(48)
        """The number that identifies this subscriber to publishers."""
        self._subjects: tuple[bytes, ...] | None = None  # None before `listen`
        self._wants = Wants(())
        self._connected = False
        self._closed = False  # True after `close`: no further questions
        self._questions = 0
        self._directed: dict[bytes, int] = {}  # the epoch of the asked publisher, by reply subject
        self._asked_at = 0.0
        self._asked_last = False
        self._call_at, self._call_pause = 0.0, GRACE
        self._giving: dict[int, int] = {}
        self._given_at, self._giving_pause = 0.0, ANSWER_SECONDS
        self._said_untracked = False

    # -- inputs of the transport

    def listen(self, patterns: Sequence[Pattern], subjects: Iterable[bytes]) -> None:
        """Set the wanted topics, and ask all publishers for their numbers.

        Args:
            patterns: The patterns of the routes.
            subjects: The subjects of the patterns, which may cover more topics.
        """
        wanted = tuple(sorted(subjects))
        if self._subjects is not None and patterns == self._wants.patterns and wanted == self._subjects:
            return
        self._subjects, self._wants = wanted, Wants(patterns)
        self._tracker.want(self._wants)
        self.moved()
        self._call_soon()
        self._join()
        self.start()

    def connected(self) -> None:
        """Ask all publishers for their numbers, because the connection is new."""
        self._connected = True
        self._call_soon()
        self._join(afresh=True)

    def lost(self) -> None:
        """Record that the connection has ended."""
        self._connected = False

    def unheard(self, subject: bytes) -> None:
        """Process the status 503 that a server has sent to the reply subject ``subject``."""
        epoch = self._directed.pop(subject, None)
        if epoch is not None and self._connected:
            self._tell(self._tracker.unheard(epoch, self._clock.seconds()))

    def ask_last(self) -> None:
        """Ask all publishers for their last numbers, before reading ends."""
        self._asked_last = True
        for epoch in tuple(self._tracker.complete):
            self._check(epoch)

    def leave(self) -> None:
        """Withdraw this app at all publishers."""
        if self._subjects and self._connected:
            self._send(ASK, pack_ask(Ask(AskKind.LEAVE, self.subscriber)), b"")

    @property
    def awaited(self) -> bool:
        """True while the answer of a joined publisher is due."""
        return self._tracker.awaited

    @property
    def has_read_all(self) -> bool:
        """True if all publishers have answered `ask_last`, so unread messages are newer."""
        return self._asked_last and not self._tracker.awaited

    # -- questions

    @property
    def _asks(self) -> bool:
        return self._connected and not self._closed

    def _reply(self) -> bytes:
        self._questions += 1
        return question_subject(self._inbox, self.subscriber, self._questions)

    def _join(self, epoch: int | None = None, *, afresh: bool = False) -> None:
        """Ask all publishers, or one, for all numbers."""
        if not self._asks or not self._subjects:
            return
        now, reply = self._clock.seconds(), self._reply()
        if epoch is None:
            self._asked_at = now
        self._tracker.join(reply, now, epoch)
        joined = epoch is not None and self._tracker.has_joined(epoch)
        ask = Ask(AskKind.JOIN, self.subscriber, self._subjects, afresh, joined)
        self._ask(pack_ask(ask), reply, epoch)

    def _check(self, epoch: int) -> None:
        """Ask a publisher for the numbers that have changed."""
        if not self._asks:
            return
        self._tracker.check_of(epoch, self._clock.seconds())
        self._ask(
            pack_ask(Ask(AskKind.CHECK, self.subscriber, turn=self._tracker.turn_of(epoch))), self._reply(), epoch
        )

    def _ask(self, payload: bytes, reply: bytes, epoch: int | None = None) -> None:
        if epoch is not None:
            self._directed[reply] = epoch
            if len(self._directed) > _DIRECTED_MAX:
                del self._directed[next(iter(self._directed))]
        # A question that is not sent is like one that is lost: it is repeated.
        self._send(ASK if epoch is None else private_subject(epoch, b"ask"), payload, reply)

    def _call_soon(self) -> None:
        self._call_pause = GRACE
        self._call_at = self._clock.seconds() + GRACE

    def _call(self, now: float) -> None:
        """Call publishers that do not know this app, with growing pauses.

        If both sides begin at the same time, the join of one and the hello of the other may both be missed.
        """
        if self._asks and self._subjects and now >= self._call_at:
            self._call_pause = min(2 * self._call_pause, _CALL_MAX)
            self._call_at = now + self._call_pause
            self._ask(pack_ask(Ask(AskKind.HERE, self.subscriber)), self._reply())

    # -- calls of the routing table

    def account(self, epoch: int, topic: bytes, subscription: bytes | None) -> Any:
        """Return the account of a message; see `zroute.transport.Accounts`."""
        if not epoch or topic not in self._wants:
            return None
        account = self._tracker.account(epoch, topic)
        self._stats.epochs = self._tracker.epochs
        return account

    def admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Report a loss before this message; return False for a duplicate."""
        found = self._tracker.admit(account, number, many)
        if found is DUPLICATE:
            return False
        if found is not None:
            self._tell([found])
        return True

    def kept(self, header: Header, marker: bytes, topic: bytes, body: bytes = b"") -> bool:
        """Return True if a kept message is for this app, and report a loss before it."""
        if subscriber_of(marker) != self.subscriber:
            return False
        lost = self._tracker.kept(header.epoch, header.sequence, None if topic else marker)
        if lost is not None:
            self._tell([lost])
        if not topic:
            self._serve()
        return bool(topic)

    def snapshot(self, account: Any, header: Header) -> bool:
        """Return False: publishers on NATS make no snapshots."""
        return False

    def recover(
        self, subscriptions: frozenset[bytes], since: Mapping[bytes, Since], replay: Container[bytes] = ()
    ) -> None:
        """Return None: publishers on NATS have no history, so plans refuse the options."""

    def untracked(self, topic: bytes) -> None:
        """Log the first message without numbers."""
        if not self._said_untracked and self._subjects is not None:
            self._said_untracked = True
            self._log.info(
                "%s: a publisher sends untracked messages, so their losses are not counted (first topic: %r)",
                self._name,
                str(Topic.from_wire(topic[:MAX_TOPIC])),
            )

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """Process a statement; raise EnvelopeError if it is malformed."""
        if topic != HELLO and subscriber_of(topic) != self.subscriber:
            raise EnvelopeError("a statement for another subscriber")
        if not header.epoch:
            raise EnvelopeError("a statement of the epoch 0")
        statement = parse_statement(body)
        if topic == HELLO and not statement.says & Says.ASK_ME:
            raise EnvelopeError("a hello that is not a question")
        if self._subjects is None:
            return
        self._directed.pop(topic, None)
        self._tell(self._tracker.stated(header.epoch, topic, statement, header.kind, self._clock.seconds()))
        goodbye = header.kind is Kind.GOODBYE and Says.LAST in statement.says
        if goodbye and self._connected and self._tracker.has_ended(header.epoch):
            farewell = pack_ask(Ask(AskKind.FAREWELL, self.subscriber))
            self._send(private_subject(header.epoch, self.subscriber), farewell, b"")

    # -- events of the tracker

    def tick(self) -> None:
        """Check the publishers, and fire the Deferreds of `ready` that are satisfied."""
        now, emptied = self._clock.seconds(), self._emptied()
        # While the connection is away, no answer can arrive, and `connected` asks all publishers again.
        self._tell(self._tracker.check(now, emptied=emptied and self._connected))
        self._stats.peers = len(self._tracker.complete)
        if any(state for _, state, _ in self._waiting):
            self._ask_for_kept(now, emptied=emptied)
        self._call(now)
        self._serve()

    def _tell(self, events: Iterable[Event]) -> None:
        """Handle the events of the tracker."""
        overdue: dict[int, None] = {}
        for event in events:
            if isinstance(event, Overdue):
                overdue[event.publisher] = None
            elif isinstance(event, Quiet):
                self._check(event.publisher)
            else:
                self._do[type(event)](self, event)
        self._ask_to_join(overdue)

    def _ask_to_join(self, epochs: Collection[int]) -> None:
        """Send joins to publishers; many are combined in one join to all publishers."""
        # A publisher that was just discovered is asked for the first time, which is no repetition.
        late = sum(map(self._tracker.is_late, epochs))
        if len(epochs) > _TOGETHER:
            self._stats.join_retries += late > 0
            self._join()
            return
        self._stats.join_retries += late
        for epoch in epochs:
            self._join(epoch)

    def _silenced(self, event: Silent) -> None:
        text = "%s: %s is silent: the process is frozen or dead, or it can't reach its server"
        who = named(event.publisher, event.name)
        self._reports("silent", f"{self._name}: silent publishers", logging.WARNING, text, self._name, who)

    _do: ClassVar[dict[type, Callable[..., None]]] = {**AccountsSession._do, Silent: _silenced}

    # -- ready

    def _is_ready(self, number: int | None, state: bool) -> bool:
        """Return True if the condition is satisfied.

        None waits for at least one publisher, and for all that are known 0.25 seconds after the question.
        """
        if self._subjects is None or not self._connected:
            return False
        if number is not None:
            return (self.given if state else len(self.complete)) >= number
        if state and self._tracker.giving:
            return False
        if not self._subjects:
            return True
        waited = self._clock.seconds() - self._asked_at
        # A publisher that does not answer is not waited for longer than on ZeroMQ.
        return bool(self.complete) and waited >= (GRACE if self._tracker.incomplete else _WINDOW)

    def _ask_for_kept(self, now: float, *, emptied: bool) -> None:
        """Ask again if the message that ends the kept messages does not arrive."""
        giving = self._tracker.giving
        if any(self._giving.get(epoch) != number for epoch, number in giving.items()):
            self._giving, self._giving_pause = giving, ANSWER_SECONDS
        elif giving and emptied:
            if now < self._given_at + self._giving_pause:
                return
            self._giving_pause = min(2 * self._giving_pause, _GIVING_MAX)
            self._stats.join_retries += 1
            self._ask_to_join(giving)
        self._given_at = now

    def close(self) -> None:
        """Report the last losses, and stop asking publishers."""
        self.stop()
        if self._subjects is not None:
            self._tell_last()
        self._reports.close()

    def _tell_last(self) -> None:
        events = self._tracker.close(asked=self._asked_last, alone=not self._connected)
        self._closed = True
        self._tell(events)
