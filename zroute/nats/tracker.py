"""Find the losses of one subscriber on NATS.

The publisher's side is `zroute.nats.publisher`; ``docs/reference/wire.md`` specifies the protocol. The tracker returns
its findings as events of `zroute.receiving.events`. It does no I/O. Times are seconds of one monotonic clock, and are
arguments.

**Accounts.** There is one account for each publisher and exact topic: the number of the next message. It begins when
the publisher *covers* the topic. From then on, every number is received or counted as lost:

============================= ==================== =================================================================
number                        account              conclusion
============================= ==================== =================================================================
the expected one              any                  nothing is lost
greater, same generation      any                  a gap: the numbers in between are lost
greater, other generation     any                  an unknown loss: the publisher has dropped the counter
smaller                       any                  the message was received, or counted as lost: it is not delivered
the first of its generation   none, covered        nothing is lost
greater                       none, covered        a gap from the first number of the generation
in a message                  none, not covered    none: it may belong to an earlier subscription to the topic
in a complete statement       none, not covered    none: the account begins with the next number
============================= ==================== =================================================================

**Coverage.** A complete statement names all topics that the subscriber wants and the publisher has used. A topic that
it does not name had no message yet, so its first message has the first number of a generation. Coverage therefore
begins with the last part of a complete statement, for the topics that were wanted then and at all times since. It ends
when the tracker evicts accounts of the publisher.

**Generations.** A publisher that drops counters sends their last numbers, and the generation that begins. A tracker
that sees a later generation without this statement reports one unknown loss, and asks the publisher to state all its
numbers.

**Publishers.** The state of a publisher is that of `zroute.receiving.accounts`. The questions to it:

========================== =========================== ==========================================================
event                      the publisher was           effect
========================== =========================== ==========================================================
a message or a hello       unknown                     it is asked to join
a join is sent to all      any, not ended              an answer is due in `ANSWER_SECONDS`
a check is due             joined, no question open    it is asked for changes, after `CHECK_SECONDS` without one
a statement                asked                       the question is answered: a join by a complete statement for it
an answer is late          never joined                asked again, at most `ASKED_MAX` times; then forgotten
an answer is late, or 503  joined                      asked again; silent after two, if no message came meanwhile
any statement or message   silent                      no longer silent: it is asked to join
silent for AWAY_SECONDS    joined                      an unknown loss, and the end of its accounts
a run of the same name     joined                      asked; replaced, with an unknown loss, if it does not answer
========================== =========================== ==========================================================

**Memory.** Up to `PUBLISHERS_MAX` publishers, and `ACCOUNTS_MAX` accounts of about 250 bytes. If there are more, the
publisher with the most accounts loses a tenth of them, the oldest first, with an unknown loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import attrs

from zroute.messages.control import COUNT_BITS
from zroute.messages.wire import Kind
from zroute.nats.asks import Says, Statement
from zroute.nats.wants import Wants
from zroute.receiving.accounts import ACCOUNTS, AccountEvent, State, SubscriptionState
from zroute.receiving.events import (
    DUPLICATE,
    Duplicate,
    Ended,
    Event,
    Gap,
    Joined,
    LostKept,
    Overdue,
    Quiet,
    Restarted,
    Returned,
    Silent,
    UnknownLoss,
)
from zroute.receiving.hearing import ANSWER_SECONDS, ASKED_MAX, AWAY_SECONDS, QUIET_SECONDS
from zroute.receiving.tracker import PUBLISHERS_MAX, count_kept

__all__ = ["ACCOUNTS_MAX", "CHECK_SECONDS", "TopicTracker"]

ACCOUNTS_MAX = 1_000_000
"""The maximum number of accounts of a subscriber, which use up to 250 MB."""

SEEN_MAX = 100_000
"""The maximum number of topics of a publisher whose messages are noted before its complete statement."""

CHECK_SECONDS = QUIET_SECONDS
"""The time in seconds after which a joined publisher is asked for changed numbers.

The actual time is shorter by a random part of up to 30 %. A loss between two NATS servers, after which no message of
the topic follows, is found within this time.
"""

_SPREAD = 0.3
_LAPSES = 8
"""The maximum number of changes of the wanted topics for which coverage can be decided."""
_JOINS = 4_096
"""The number of joins whose answers can still complete a join."""

_FORGOT = "no longer knows how many messages it sent"
_EVICTED = "has more topics than this app counts"


@attrs.define(eq=False)
class _Remote:
    """One run of a publisher.

    Attributes:
        epoch: its number.
        state: the state of its accounts.
        name: its name; None before its first statement.
        accounts: the accounts by topic.
        covered: what the subscriber wanted at the complete statement, and at each change since; None without one.
        floor: the generation at the last complete statement.
        base: the latest generation of which the subscriber knows.
        turn: the turn of the last complete or changes statement.
        parts: the number of parts of each unfinished statement, by its flags. Statements with different flags may
            interleave, because counters may be dropped while a statement is sent.
        named: the topics with an account that the current complete statement has named.
        seen: the next number of each topic that is not covered and has no account yet.
        overrun: True if ``seen`` was full, so that the next complete statement can't begin the coverage.
        asked_at: the time of the open question; None without one.
        unanswered: the number of questions in succession that were not answered.
        pulse: the sum of the expected numbers at the last missed answer.
        silent_at: the time at which it became silent, or None.
        heard_at: the time of its last statement, or of a message that the tracker noticed.
        check_at: the time of the next check.
        rival: the epoch of a later run of the same name, while it is not known whether this run is alive.
        kept: the number of its next kept message.
        kept_lost: the number of kept messages that are counted as lost.
        gave_all: True if its kept messages since the last join have ended.
    """

    epoch: int
    heard_at: float
    state: State = attrs.field(init=False, default=State.JOINING)
    name: str | None = attrs.field(init=False, default=None)
    accounts: dict[bytes, SubscriptionState] = attrs.field(init=False, factory=dict)
    covered: tuple[Wants, ...] | None = attrs.field(init=False, default=None)
    floor: int = attrs.field(init=False, default=0)
    base: int = attrs.field(init=False, default=0)
    turn: int = attrs.field(init=False, default=0)
    parts: dict[Says, int] = attrs.field(init=False, factory=dict)
    named: set[bytes] = attrs.field(init=False, factory=set)
    seen: dict[bytes, int] = attrs.field(init=False, factory=dict)
    overrun: bool = attrs.field(init=False, default=False)
    asked_at: float | None = attrs.field(init=False, default=None)
    unanswered: int = attrs.field(init=False, default=0)
    pulse: int = attrs.field(init=False, default=-1)
    silent_at: float | None = attrs.field(init=False, default=None)
    check_at: float = attrs.field(init=False, default=0.0)
    rival: int | None = attrs.field(init=False, default=None)
    kept: int = attrs.field(init=False, default=1)
    kept_lost: int = attrs.field(init=False, default=0)
    gave_all: bool = attrs.field(init=False, default=False)

    def move(self, event: AccountEvent) -> None:
        self.state = ACCOUNTS[self.state][event]

    @property
    def joined_once(self) -> bool:
        return self.name is not None

    def covers(self, topic: bytes) -> bool:
        return self.covered is not None and all(topic in wants for wants in self.covered)

    def drop(self, topics: Iterable[bytes]) -> None:
        for topic in tuple(topics):
            self.accounts.pop(topic).expected = -1

    def sum(self) -> int:
        return sum([account.expected for account in self.accounts.values()])


class TopicTracker:
    """The accounts of one subscriber, by publisher and topic.

    Attributes:
        joins: The number of complete statements.
        epochs: The number of publishers that were ever seen.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.joins = 0
        self.epochs = 0
        self._wants = Wants(())
        self._history: tuple[Wants, ...] = ()  # the latest values of `want`
        self._publishers: dict[int, _Remote] = {}
        self._joins: dict[bytes, Wants] = {}  # what was wanted, by the reply subject of the join
        self._found: list[Event] = []
        self._chance = chance
        self._now = 0.0

    # -- the state for callers

    @property
    def complete(self) -> dict[int, str]:
        """The names, by epoch, of the publishers that have answered the last join.

        Silent publishers are not included.
        """
        return {each.epoch: each.name or "" for each in self._answered()}

    @property
    def given(self) -> int:
        """The number of `complete` publishers that have sent all their kept messages."""
        return sum(each.gave_all for each in self._answered())

    @property
    def giving(self) -> dict[int, int]:
        """The number of the next kept message, by epoch, of the others."""
        return {each.epoch: each.kept for each in self._answered() if not each.gave_all}

    def _answered(self) -> Iterator[_Remote]:
        for each in self._publishers.values():
            if each.state is State.COMPLETE and each.silent_at is None:
                yield each

    @property
    def incomplete(self) -> bool:
        """True if a known publisher may still answer the last join."""
        return any(each.state is State.JOINING and each.silent_at is None for each in self._publishers.values())

    @property
    def awaited(self) -> bool:
        """True while the answer of a joined publisher is due."""
        return any(
            each.asked_at is not None and each.joined_once and each.silent_at is None and each.state is not State.ENDED
            for each in self._publishers.values()
        )

    def name_of(self, epoch: int) -> str:
        """Return the name of a publisher, or "" if it is not known."""
        publisher = self._publishers.get(epoch)
        return (publisher.name if publisher else "") or ""

    def turn_of(self, epoch: int) -> int:
        """Return the turn of the last statement of a publisher, for a check.

        0 asks for all numbers.
        """
        publisher = self._publishers.get(epoch)
        return publisher.turn if publisher is not None else 0

    def has_joined(self, epoch: int) -> bool:
        """Return True if a publisher has answered a join."""
        return epoch in self._publishers and self._publishers[epoch].joined_once

    def is_late(self, epoch: int) -> bool:
        """Return True if a publisher has not answered its last question."""
        return epoch in self._publishers and self._publishers[epoch].unanswered > 0

    def has_ended(self, epoch: int) -> bool:
        """Return True if a publisher needs no further goodbye."""
        publisher = self._publishers.get(epoch)
        return publisher is None or publisher.state is State.ENDED

    # -- questions

    def want(self, wants: Wants) -> None:
        """Set the wanted topics, and drop the accounts of all others."""
        self._wants = wants
        self._history = (*self._history, wants)[-_LAPSES:]
        for publisher in self._publishers.values():
            publisher.drop([topic for topic in publisher.accounts if topic not in wants])
            publisher.seen = {topic: number for topic, number in publisher.seen.items() if topic in wants}
            if publisher.covered is not None:
                covered = (*publisher.covered, wants)
                publisher.covered = covered if len(covered) <= _LAPSES else None

    def join(self, reply: bytes, now: float, epoch: int | None = None) -> None:
        """Record a join, to all publishers or to ``epoch``.

        ``reply`` is the reply subject, to which the answers are sent.
        """
        self._now = now
        self._joins[reply] = self._wants
        if len(self._joins) > _JOINS:
            del self._joins[next(iter(self._joins))]
        for publisher in self._publishers.values() if epoch is None else self._of(epoch):
            if publisher.state is not State.ENDED:
                publisher.move(AccountEvent.MARKER)
                publisher.parts.clear()
                publisher.gave_all = False
                self._ask(publisher, now)

    def check_of(self, epoch: int, now: float) -> None:
        """Record a check of a publisher."""
        for publisher in self._of(epoch):
            self._ask(publisher, now)

    def _of(self, epoch: int) -> Iterable[_Remote]:
        found = self._publishers.get(epoch)
        return () if found is None else (found,)

    def _ask(self, publisher: _Remote, now: float) -> None:
        publisher.asked_at = now
        publisher.check_at = now + CHECK_SECONDS * (1 - _SPREAD * self._chance())

    # -- messages

    def account(self, epoch: int, topic: bytes) -> SubscriptionState | None:
        """Return the account of a message, or None for the epoch 0.

        ``topic`` must be wanted.
        """
        if not epoch:
            return None
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        account = publisher.accounts.get(topic)
        if account is None:
            account = self._begin(publisher, topic)
        return account

    def admit(self, account: SubscriptionState, number: int, many: int = 1) -> Gap | UnknownLoss | Duplicate | None:
        """Record a message, and return the loss before it, `DUPLICATE`, or None.

        Args:
            account: The account of the message.
            number: The number of the message, or of the first of ``many`` messages in a frame; 0 without one.
            many: The number of messages in the frame.
        """
        if account.expected < 0:  # dropped: the caller has stored it
            if account.prefix not in self._wants:
                return None
            current = self.account(account.publisher, account.prefix)
            assert current is not None
            account = current
        if not number:
            return None
        if account.expected and number < account.expected:
            return DUPLICATE
        publisher, found = self._publishers[account.publisher], None
        if account.expected or publisher.covers(account.prefix):
            found = self._stands(publisher, account, number - 1, received=True)
            account.expected = number + many
        elif len(publisher.seen) < SEEN_MAX or account.prefix in publisher.seen:
            publisher.seen[account.prefix] = number + many
        else:
            publisher.overrun = True
        if publisher.state is State.ENDED or publisher.silent_at is not None:
            self._heard(publisher, self._now)
        return found

    def _stands(
        self, publisher: _Remote, account: SubscriptionState, last: int, *, received: bool = False
    ) -> Gap | UnknownLoss | None:
        """Record that the messages up to ``last`` were sent, and return the loss.

        ``received`` is True if ``last`` is the number before that of a message.
        """
        expected = account.expected
        generation = (last + received) >> COUNT_BITS
        if not expected:
            expected = self._first(publisher, generation) or last + 1
        if last < expected and not (received and generation > publisher.base):
            account.expected = max(expected, account.expected)
            return None
        account.expected = max(last + 1, expected)
        if generation > publisher.base:  # the last numbers of dropped counters have not arrived
            return self._missed(publisher, generation, account.prefix)
        if expected >> COUNT_BITS != generation:
            return UnknownLoss(publisher.epoch, (account.prefix,), _FORGOT)
        return Gap(account.prefix, publisher.epoch, expected, last) if last >= expected else None

    @staticmethod
    def _first(publisher: _Remote, generation: int) -> int:
        """Return the number with which a new account of a covered topic begins.

        Return 0 if it is not known.
        """
        return (generation << COUNT_BITS) + 1 if publisher.floor <= generation <= publisher.base else 0

    def _missed(self, publisher: _Remote, generation: int, topic: bytes | None = None) -> UnknownLoss | None:
        """Record a generation whose statement is missing; return the unknown loss.

        There is no loss if the publisher has never stated its numbers, because nothing is counted before that.
        """
        joined, publisher.base = publisher.covered is not None, generation
        # What was created and dropped in between is not known, so coverage begins again with the next statement.
        publisher.covered = None
        if not joined:
            return None
        self._found.append(Overdue(publisher.epoch))
        return UnknownLoss(publisher.epoch, self._affected(topic), _FORGOT)

    def _affected(self, topic: bytes | None = None) -> tuple[bytes, ...]:
        """Return the subscriptions of an unknown loss.

        They are one topic, or the prefixes of all wanted topics.
        """
        return (topic,) if topic is not None else tuple(sorted(set(self._wants.prefixes)))

    # -- statements

    def stated(self, epoch: int, subject: bytes, statement: Statement, kind: Kind, now: float) -> list[Event]:
        """Process a part of a statement, and return the events that follow.

        Args:
            epoch: The publisher.
            subject: The subject of the statement: the reply subject of a question, or that of all hellos.
            statement: The part.
            kind: JOIN, BEAT or GOODBYE.
            now: The time.
        """
        self._now = now
        publisher = self._publishers.get(epoch)
        if statement.says & Says.ASK_ME:
            if publisher is None or publisher.state is not State.JOINING or publisher.asked_at is None:
                self._found.append(Overdue(epoch))
            return self._take()
        goodbye = kind is Kind.GOODBYE
        if goodbye and (publisher is None or publisher.state is State.ENDED):
            return []  # it repeats its goodbye until a farewell arrives
        publisher = publisher or self._meet(epoch)
        self._heard(publisher, now)
        if not self._continues(publisher, statement):
            return self._take()
        complete = not statement.says & (Says.CHANGES | Says.FORGOTTEN)
        events: list[Event] = []
        lapse = self._lapse(subject) if complete else None
        for topic, number in statement.numbers:
            if topic in self._wants:
                events += self._named(publisher, topic, number, lapse)
                if complete and topic in publisher.accounts:
                    publisher.named.add(topic)
                if Says.FORGOTTEN in statement.says and topic in publisher.accounts:
                    publisher.drop((topic,))
        if Says.LAST in statement.says:
            events += self._ended_statement(publisher, subject, statement, goodbye=goodbye, complete=complete)
        return events + self._take()

    def _continues(self, publisher: _Remote, statement: Statement) -> bool:
        """Return True if a part continues the current statement, or begins one."""
        says = statement.says & ~Says.LAST
        if statement.part != (publisher.parts.get(says, 0) if statement.part else 0):
            # An earlier part was lost: the question stays open, and is repeated.
            publisher.parts.pop(says, None)
            return False
        if not statement.part and not says:
            publisher.named.clear()
        publisher.parts[says] = statement.part + 1
        if Says.LAST in statement.says:
            del publisher.parts[says]
        return True

    def _lapse(self, subject: bytes) -> tuple[Wants, ...] | None:
        """Return what was wanted at a join, and at each change since.

        Return None if the join is not known, or if there were too many changes since.
        """
        wants = self._joins.get(subject)
        return self._history[self._history.index(wants) :] if wants in self._history and wants is not None else None

    def _named(self, publisher: _Remote, topic: bytes, number: int, lapse: tuple[Wants, ...] | None) -> Iterator[Event]:
        """Process the number of a topic in a statement.

        ``lapse`` is that of the join which a complete statement answers.
        """
        account = publisher.accounts.get(topic)
        begun = account is not None and account.expected > 0
        if not begun and not publisher.covers(topic):
            if lapse is not None and all(topic in wants for wants in lapse):
                account = account or self._begin(publisher, topic)
                account.expected = max(number + 1, publisher.seen.pop(topic, 0))
            return
        account = account or self._begin(publisher, topic)
        found = self._stands(publisher, account, number)
        if found is not None:
            yield found

    @staticmethod
    def _begin(publisher: _Remote, topic: bytes) -> SubscriptionState:
        account = publisher.accounts[topic] = SubscriptionState(publisher.epoch, topic)
        return account

    def _ended_statement(
        self, publisher: _Remote, subject: bytes, statement: Statement, *, goodbye: bool, complete: bool
    ) -> Iterator[Event]:
        """Process the end of a statement."""
        first = not publisher.joined_once
        if Says.FORGOTTEN in statement.says:
            if statement.generation > publisher.base + 1 and (lost := self._missed(publisher, statement.generation)):
                yield lost
            publisher.base = max(publisher.base, statement.generation)
            return
        if statement.generation > publisher.base:
            if (lost := self._missed(publisher, statement.generation)) is not None:
                yield lost
            publisher.base = statement.generation
        publisher.turn = statement.turn
        if complete:
            yield from self._completed(publisher, statement, subject)
        if goodbye:
            known = publisher.covered is not None
            if not known and publisher.accounts:
                yield UnknownLoss(publisher.epoch, self._affected(), "has ended; some of its answers were lost")
            self._end(publisher)
            publisher.name = statement.name
            yield Ended(publisher.epoch, statement.name, known)
            return
        answered = complete and self._joins.get(subject) is self._wants
        if answered or publisher.state is State.COMPLETE:  # an unasked statement does not answer a join
            publisher.asked_at = None
        if not complete or subject not in self._joins:
            return
        if first and statement.name:
            yield from self._restarted(publisher)
        if answered:
            publisher.move(AccountEvent.ANSWER)
            self.joins += 1
            yield Joined(publisher.epoch, statement.name, partial=False)

    def _completed(self, publisher: _Remote, statement: Statement, subject: bytes) -> Iterator[Event]:
        """Begin the coverage, and drop accounts that the publisher has dropped."""
        publisher.name = statement.name
        named, publisher.named = publisher.named, set()
        lapse, generation = self._lapse(subject), statement.generation
        if lapse is None:
            return
        gone = [
            topic
            for topic, account in publisher.accounts.items()
            if topic not in named and account.expected and self._is_older(account.expected, generation)
            # Only topics of the join are named, so others may just not have been wanted then.
            if topic in lapse[0]
        ]
        if gone:
            yield UnknownLoss(publisher.epoch, tuple(sorted(gone)), _FORGOT)
            publisher.drop(gone)
        # Topics whose first messages arrived while the parts were sent.
        for topic, expected in publisher.seen.items():
            if not self._is_older(expected, generation) and all(topic in wants for wants in lapse):
                account = publisher.accounts.get(topic) or self._begin(publisher, topic)
                account.expected = max(account.expected, expected)
        publisher.covered = None if publisher.overrun else lapse
        publisher.floor = generation
        publisher.seen.clear()
        publisher.overrun = False

    @staticmethod
    def _is_older(expected: int, generation: int) -> bool:
        return (expected - 1) >> COUNT_BITS < generation

    def kept(self, epoch: int, number: int, end_of: bytes | None = None) -> LostKept | None:
        """Record a kept message or their end, and return the loss before it.

        If the publisher sends all kept messages again, the losses that were counted so far are corrected.

        Args:
            epoch: The publisher.
            number: The number of the kept message for this subscriber.
            end_of: The reply subject of the join whose kept messages have ended, or None for a message.
        """
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        publisher.gave_all |= end_of is not None and self._joins.get(end_of) is self._wants
        return count_kept(publisher, number, ended=end_of is not None)

    # -- life

    def _heard(self, publisher: _Remote, now: float) -> None:
        """Record a sign of life."""
        silent, publisher.heard_at = publisher.silent_at, now
        publisher.unanswered = 0
        if publisher.state is State.ENDED:
            publisher.move(AccountEvent.SIGN)
            self._found.append(Overdue(publisher.epoch))
        elif silent is not None:
            publisher.silent_at = None
            self._found += [
                Returned(publisher.epoch, publisher.name or "", now - silent),
                Overdue(publisher.epoch),
            ]

    def unheard(self, epoch: int, now: float) -> list[Event]:
        """Process the status 503 for a question to a publisher: its connection has ended."""
        events: list[Event] = []
        for publisher in self._of(epoch):
            if publisher.asked_at is not None:
                events += self._late(publisher, now, gone=True)
        return events

    def check(self, now: float, *, emptied: bool) -> list[Event]:
        """Check all publishers, and return the events since the last call.

        This method must be called in each `TICK`.

        Args:
            now: The time.
            emptied: True if all messages that have arrived were read since the last call. Otherwise, no answer is late.
        """
        self._now = now
        self._evict()
        events = self._take()
        for publisher in tuple(self._publishers.values()):
            if publisher.state is State.ENDED:
                if now >= publisher.heard_at + AWAY_SECONDS:
                    self._forget(publisher)
                continue
            pause = ANSWER_SECONDS * 2 ** min(publisher.unanswered, 4)
            if emptied and publisher.asked_at is not None and now >= publisher.asked_at + pause:
                events += self._late(publisher, now)
            elif publisher.asked_at is None and publisher.joined_once and now >= publisher.check_at:
                events.append(Quiet(publisher.epoch))
            if publisher.silent_at is not None and now >= publisher.heard_at + AWAY_SECONDS:
                why = f"was silent for {AWAY_SECONDS:g} s, so this app treats it as ended"
                events.append(UnknownLoss(publisher.epoch, self._affected(), why))
                self._end(publisher)
                self._forget(publisher)
        return events

    def _late(self, publisher: _Remote, now: float, *, gone: bool = False) -> Iterator[Event]:
        """Process a question without an answer."""
        publisher.asked_at = None
        publisher.unanswered += 1
        if publisher.rival is not None and gone:
            yield from self._replaced(publisher)
            return
        if not publisher.joined_once:
            if publisher.unanswered < ASKED_MAX and not gone:
                yield Overdue(publisher.epoch)
            else:
                self._forget(publisher)
            return
        pulse, publisher.pulse = publisher.pulse, publisher.sum()
        if publisher.unanswered > 1 and pulse == publisher.pulse and publisher.silent_at is None:
            publisher.silent_at = now
            if publisher.rival is not None:
                yield from self._replaced(publisher)
                return
            yield Silent(publisher.epoch, publisher.name or "", frozenset())
        if gone:
            publisher.asked_at = now  # a pause, because the server would refuse the next question at once, too
        else:
            yield Overdue(publisher.epoch)

    def _restarted(self, publisher: _Remote) -> Iterator[Event]:
        """Ask earlier runs of the same name whether they are still alive."""
        for other in tuple(self._publishers.values()):
            if other is publisher or other.name != publisher.name or other.state is State.ENDED:
                continue
            other.rival = publisher.epoch
            if other.silent_at is not None:
                yield from self._replaced(other)
            else:
                yield Overdue(other.epoch)

    def _replaced(self, publisher: _Remote) -> Iterator[Event]:
        successor = publisher.rival or 0
        yield UnknownLoss(publisher.epoch, self._affected(), "was replaced by a new run without sending a goodbye")
        self._end(publisher)
        yield Restarted(successor, publisher.name or "", publisher.epoch)

    def close(self, *, asked: bool = False, alone: bool = False) -> list[Event]:
        """Return the last events.

        Args:
            asked: True if all publishers were asked just before. Each one without an answer then has an unknown loss.
            alone: True if the connection to the servers has ended. All publishers then have an unknown loss.
        """
        events = self._take()
        for publisher in self._publishers.values():
            if publisher.state is State.ENDED or not publisher.joined_once:
                continue
            if alone:
                why = "can't be reached: this app is not connected to a server"
            elif publisher.silent_at is not None:
                why = "is silent"
            elif asked and publisher.asked_at is not None:
                why = "did not answer when this app stopped"
            else:
                continue
            events.append(UnknownLoss(publisher.epoch, self._affected(), why))
        return events

    # -- publishers

    def _take(self) -> list[Event]:
        found, self._found = self._found, []
        return found

    def _meet(self, epoch: int) -> _Remote:
        """Add a new publisher; evict another one if there are too many."""
        if len(self._publishers) >= PUBLISHERS_MAX:
            self._part(min(self._publishers.values(), key=_worth))
        self.epochs += 1
        publisher = self._publishers[epoch] = _Remote(epoch, self._now)
        self._found.append(Overdue(epoch))
        return publisher

    def _part(self, publisher: _Remote) -> None:
        if publisher.joined_once and publisher.state is not State.ENDED:
            why = f"was evicted because of the limit of {PUBLISHERS_MAX} publishers"
            self._found.append(UnknownLoss(publisher.epoch, self._affected(), why))
        self._forget(publisher)

    def _end(self, publisher: _Remote) -> None:
        """End the accounts.

        The numbers are kept for a while, to refuse messages that arrive late.
        """
        publisher.move(AccountEvent.END)
        publisher.rival = publisher.asked_at = publisher.silent_at = None
        publisher.heard_at = self._now

    def _forget(self, publisher: _Remote) -> None:
        publisher.drop(publisher.accounts)
        self._publishers.pop(publisher.epoch, None)

    def _evict(self) -> None:
        """Drop accounts while there are too many."""
        while sum([len(each.accounts) for each in self._publishers.values()]) > ACCOUNTS_MAX:
            publisher = max(self._publishers.values(), key=lambda each: len(each.accounts))
            publisher.drop(list(islice(publisher.accounts, len(publisher.accounts) // 10 + 1)))
            publisher.covered = None  # a dropped topic must not look like one that had no message
            self._found.append(UnknownLoss(publisher.epoch, self._affected(), _EVICTED))


def _worth(publisher: _Remote) -> tuple[int, float]:
    """Return the sort key for evictions; the smallest key is evicted first.

    The order is: ended publishers, publishers that never answered, silent ones, and all others. Within a rank, the one
    that was not heard for the longest time comes first. Forged messages therefore can't evict a publisher in use.
    """
    if publisher.state is State.ENDED:
        rank = 0
    elif not publisher.joined_once:
        rank = 1
    else:
        rank = 2 + (publisher.silent_at is None)
    return rank, publisher.heard_at
