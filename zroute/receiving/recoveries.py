"""The recovery and the replay of an app: between accounts, table and socket.

The rules of recovery are in `zroute.receiving.stream_recovery` and `zroute.receiving.recovery_session`. This module
connects them with one run of an app:

- **The table** passes the messages of a stream that recovers to `Recoveries.admit`, with their frames. It forgets the
  closures of the stream when `held` is called, and asks `Recoveries.active` before it stores new ones. The table
  delivers what `take` returns, and calls `ask` when nothing is left to read and to deliver.
- **The session** passes each gap to `missed`, and reports it as a loss only if `missed` returns False, or later if the
  messages stay lost.
- **A replay** begins in `joined`, when a publisher has answered the marker. Messages that arrive before are passed to
  `early`, or to `admit` if they have a number.

An app that recovers and replays nothing has no `Recoveries`, and none of this code runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.messages.recovery import BOX, Since, parse_recovery_answer
from zroute.messages.topics import Topic
from zroute.messages.wire import RecoveredFrame, ReplayedFrame
from zroute.receiving.accounts import SubscriptionState
from zroute.receiving.events import Event, Gap, LostKept, LostPast, UnknownLoss, Verdict
from zroute.receiving.recovery_session import Admit, RecoverySession
from zroute.receiving.replay import PastLoss
from zroute.receiving.stream_recovery import Arrival, Ready, StreamRecovery
from zroute.stats import Stats
from zroute.throttle import ThrottledLog

__all__ = ["NO_HISTORY", "Recoveries", "RecoveryCalls"]

NO_HISTORY = logging.getLogger("zroute.history")
"""The logger of the lines about publishers without a history, which `zroute tail` and ``record`` show too."""


@attrs.frozen(eq=False)
class RecoveryCalls:
    """The functions of a subscriber's session that a recovery calls.

    Attributes:
        admit: The method of the tracker that records a message.
        account: Returns the account of a subscription at a publisher.
        request: Sends a request: a subscription that is withdrawn at once.
        tell: Handles events that precede a message.
        lost: Reports a gap whose messages stay lost.
        whole: Called when recoveries or replays may have ended. Others may still be busy.
        named: Returns the name of a publisher for log lines.
    """

    admit: Admit
    account: Callable[[int, bytes], SubscriptionState | None]
    request: Callable[[bytes], object]
    tell: Callable[[list[Event]], object]
    lost: Callable[[Gap], object]
    whole: Callable[[], object]
    named: Callable[[int], str]


class Recoveries:
    """The recoveries of one run of an app.

    Args:
        subscriber: The 48 bits that identify the subscriber.
        clock: The reactor's clock.
        stats: The counters of the run.
        calls: The functions of the session.
        name: The name of the app, for log lines.
        reports: The log for events that may be frequent.

    Attributes:
        box: The topic of the answers to this subscriber.
        busy: True while a stream may recover, or has something to deliver.
        held: Called with the publisher and the subscription of a stream that begins to recover. The loop must not
            deliver its next messages. The table sets this function.
    """

    def __init__(
        self, subscriber: int, clock: Clock, stats: Stats, calls: RecoveryCalls, name: str, reports: ThrottledLog
    ) -> None:
        self._session = RecoverySession(subscriber, calls.request)
        self._clock = clock
        self._stats = stats
        self._calls = calls
        self._name = name
        self._reports = reports
        self._without = ThrottledLog(NO_HISTORY, clock)
        self._closed = False
        self._told: set[int] = set()  # publishers without a history, of which the log has told
        self.box = self._session.box
        self.busy = False
        self.held: Callable[[int, bytes], object] = lambda publisher, subscription: None

    def change(
        self, subscriptions: frozenset[bytes], since: Mapping[bytes, Since], replay: Container[bytes] = ()
    ) -> None:
        """Recover and replay only the messages of these subscriptions from now on.

        See `RecoverySession.change` for the arguments.
        """
        self._session.change(subscriptions, since, replay)
        self._may_be_ready()

    def _may_be_ready(self) -> None:
        """Deliver the messages for which a statement, or an end, was awaited."""
        self.busy = self.busy or self._session.is_active

    def drop(self, subscriptions: Container[bytes]) -> None:
        """Drop the held messages of subscriptions that have no handlers any more."""
        self._session.drop(subscriptions)

    def wants(self, subscription: bytes) -> bool:
        """Return True if the lost messages of a subscription are recovered."""
        subscriptions = self._session.subscriptions
        return subscriptions is None or subscription in subscriptions

    def close(self) -> None:
        """Give up all recoveries, because reading ends. What was held stays to be taken."""
        self._log_recovered()
        self._without.close()
        self._closed = True
        self._session.close()

    # -- messages, for the table

    def active(self, account: Any) -> bool:
        """Return True if the messages of an account must be passed to `admit`."""
        recovers = self.busy or self._session.since
        return bool(recovers and isinstance(account, SubscriptionState) and self._session.active(account))

    def admit(self, account: Any, number: int, many: int, raw: Any) -> Verdict:
        """Record a message, and return what the table must do with it.

        A loss before the message is reported first. The arguments are those of `zroute.transport.Accounts.admit`, and
        ``raw`` contains the frames of the message.
        """
        if account.expected < 0:  # out of date: the publisher was evicted, and has returned
            account = self._calls.account(account.publisher, account.prefix) or account
        if not account.expected:
            self._calls.admit(account, number, many)  # the message is not counted, but is a sign of life
            return self.early(account, number, many, raw)
        if account.prefix in self._session.since:
            self._begin(account)
        stream = self._session.active_stream(account) if self.busy else None
        if stream is not None and number == account.expected:  # the usual message while a stream recovers
            account.expected = number + many
            stream.arrive(Arrival(number, number + many - 1, raw, _size(raw)), self._clock.seconds())
            return Verdict.HELD
        was_active = self.active(account)
        verdict, loss = self._session.admit(
            self._calls.admit, account, number, many, raw, _size(raw), self._clock.seconds()
        )
        if loss is not None:
            self._calls.tell([loss])
        if verdict is Verdict.HELD and not was_active:
            self._hold(account.publisher, account.prefix)
        return verdict

    def early(self, account: Any, number: int, many: int, raw: Any) -> Verdict:
        """Record a message that was not counted, or arrived before the join.

        The arguments are those of `admit`.
        """
        return self._session.early(account, number, many, raw, _size(raw), self._clock.seconds())

    def _begin(self, account: SubscriptionState) -> None:
        """Begin the replay of a stream, unless it has begun."""
        if account.expected <= 0 or self._closed or not self._session.awaits(account):
            return
        dropped, losses = self._session.begin(self._calls.admit, account, self._clock.seconds())
        self._stats.received += dropped
        self._stats.duplicate += dropped
        self._calls.tell(losses)
        self.busy = True

    def wait(self, account: Any, raw: Any) -> bool:
        """Return True if a kept message waits until its stream has recovered.

        If the replay of the stream has not begun, it waits for the statement first. The result is also True if
        the message is lost, because too many wait.
        """
        if not self.active(account):
            return False
        if not self._session.wait(account, raw, _size(raw), self._clock.seconds()):
            self._calls.tell([LostKept(account.publisher, 1)])
        return True

    def hears(self, topic: bytes) -> bool:
        """Return True if ``topic`` is a box: that of this subscriber, or of another one."""
        return topic.startswith(BOX)

    def answer(self, epoch: int, topic: bytes, body: bytes, raw: Any) -> None:
        """Process a frame that was sent to a box.

        Frames for other subscribers are ignored.

        Raises:
            EnvelopeError: The frame is malformed.
        """
        if topic == self.box and self.busy:
            made = RecoveredFrame.maker(raw), ReplayedFrame.maker(raw)
            self._session.answer(epoch, parse_recovery_answer(body), self._clock.seconds(), *made)

    def take(self, many: int | None = None) -> Iterator[Ready | Callable[[], None]]:
        """Yield up to ``many`` entries that must be delivered next, in order.

        A loss is a function that reports it. Call it in its place, after the messages before it were delivered.
        """
        for key, stream, ready in islice(self._session.ready(), many):
            if isinstance(ready, PastLoss):
                yield partial(self._lost_past, key, ready)
                continue
            frame = ready.frame
            if frame is None:
                yield partial(self._lost, key, stream, ready)
                continue
            if isinstance(frame, RecoveredFrame):
                if isinstance(frame, ReplayedFrame):
                    self._stats.replayed += ready.last - ready.first + 1
                else:
                    self._stats.recovered += ready.last - ready.first + 1
            yield ready

    def ask(self) -> None:
        """Send the requests that are needed now.

        Call this method when all messages that have arrived were read and delivered.
        """
        if not self._closed:
            self._session.ask(self._clock.seconds())
        self.busy = self._session.is_active
        self._session.settle()
        self._calls.whole()

    def _hold(self, epoch: int, subscription: bytes) -> None:
        """Take a stream that begins to recover out of the loop of the table."""
        if not self.busy:
            text = "%s: messages of %r from %s are missing; asking the publisher for them"
            facts = self._name, str(Topic.from_wire(subscription)), self._calls.named(epoch)
            self._reports("missing messages", f"{self._name}: missing messages", logging.INFO, text, *facts)
            self.busy = True
        self.held(epoch, subscription)

    def _lost(self, key: tuple[int, bytes], stream: StreamRecovery, ready: Ready) -> None:
        epoch, subscription = key
        if stream.gone:
            text = (
                "%s: %d lost messages of %r are not in the history of %s: increase the bounds of History(…), and pass "
                "history= to all its publishers of these topics"
            )
            facts = self._name, stream.gone, str(Topic.from_wire(subscription)), self._calls.named(epoch)
            self._reports("gone", f"{self._name}: messages outside the history", logging.WARNING, text, *facts)
            stream.gone = 0
        recovered, stream.told = stream.recovered - stream.told, stream.recovered
        self._calls.lost(Gap(subscription, epoch, ready.first, ready.last, recovered))

    def _lost_past(self, key: tuple[int, bytes], loss: PastLoss) -> None:
        epoch, subscription = key
        if loss.lost is None:
            self._calls.tell([UnknownLoss(epoch, (subscription,), "did not send its earlier messages")])
        else:
            self._calls.tell([LostPast(epoch, subscription, loss.lost, loss.total)])

    # -- events, for the session

    def missed(self, gap: Gap) -> bool:
        """Return True if the messages of a gap may be recovered. Otherwise they are lost."""
        if self._closed or not self._session.missed(gap, self._clock.seconds()):
            return False
        self._hold(gap.epoch, gap.subscription)
        return True

    def stated(self, epoch: int, *, history: bool) -> None:
        """Record whether a publisher has a history."""
        self._session.stated(epoch, history=history)
        self._may_be_ready()

    def joined(self, epoch: int) -> None:
        """Begin the replays of a publisher whose accounts have begun."""
        for prefix in self._session.awaited(epoch):
            account = self._calls.account(epoch, prefix)
            if account is not None:
                self._begin(account)

    def has_no_history(self, epoch: int) -> None:
        """Log, once, that a publisher has no history."""
        if self._session.has_none(epoch) and epoch not in self._told and not self._closed:
            self._told.add(epoch)
            text = (
                "%s: %s has no history, so its lost messages do not come back, and it sends no earlier ones. Pass "
                "history=History(…) to its publishers, or remove recover= and since="
            )
            facts = self._name, self._calls.named(epoch)
            self._without("no history", f"{self._name}: publishers without a history", logging.INFO, text, *facts)

    def replays(self, epoch: int) -> bool:
        """Return True until the past, and what waited for it, has been delivered."""
        return self._session.replays(epoch)

    def recovers(self, epoch: int) -> bool:
        """Return True while messages of a publisher are missing, or its past."""
        return self._session.recovers(epoch)

    def end(self, epoch: int) -> None:
        """Give up all recoveries from a publisher."""
        self._log_recovered(epoch)  # before the line about its end
        self._told.discard(epoch)
        self._session.end(epoch)
        self._may_be_ready()

    def forget(self, epoch: int) -> None:
        """Forget a publisher, because it was evicted."""
        self._session.forget(epoch)
        self._told.discard(epoch)
        self._may_be_ready()

    def end_stream(self, epoch: int, subscription: bytes) -> None:
        """Give up the recovery of one subscription at a publisher."""
        self._session.end_stream(epoch, subscription)

    def tick(self, now: float, *, emptied: bool) -> None:
        """Judge the progress of all recoveries, and log those that have ended or rest.

        See `RecoverySession.tick` for the arguments.
        """
        self._log_recovered()
        self._session.tick(now, emptied=emptied)
        self._may_be_ready()
        for (epoch, subscription), stream in self._session.streams():
            if stream.begun_rest:
                text = (
                    "%s: stopped recovering messages of %r from %s for %g s, because they were lost faster than they "
                    "came back, or the publisher did not answer: losses count at once until then. If this repeats, "
                    "make the handlers faster, or divide the topics among several processes"
                )
                facts = self._name, str(Topic.from_wire(subscription)), self._calls.named(epoch), stream.begun_rest
                self._reports("resting", f"{self._name}: recoveries that rest", logging.WARNING, text, *facts)
                stream.begun_rest = 0.0

    def _log_recovered(self, ending: int | None = None) -> None:
        """Log the recoveries that have ended, and all those of the publisher ``ending``."""
        for (epoch, subscription), stream in self._session.streams():
            recovered = stream.recovered - stream.logged
            if recovered and (epoch == ending or not stream.active):
                stream.logged = stream.recovered
                text = "%s: recovered %d messages of %r from %s"
                name = str(Topic.from_wire(subscription))
                facts = (self._name, recovered, name, self._calls.named(epoch))
                self._reports("recovered", f"{self._name}: recovered messages", logging.INFO, text, *facts)


def _size(raw: Any) -> int:
    """Return the size of a message in bytes."""
    return sum(map(len, raw)) if isinstance(raw, tuple) else len(raw)
