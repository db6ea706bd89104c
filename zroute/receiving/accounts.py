"""The account of one publisher's messages, and its state machine.

An account records which messages of a publisher a subscriber has received and which were lost. It contains a
`SubscriptionState` for each subscription.

The states of an account:

- JOINING: the publisher has not answered the last marker yet.
- COMPLETE: the publisher has answered, so its message numbers show every loss. Sending another marker makes the account
  JOINING again, because the answer to that marker lists the subscriptions that the publisher knows now.
- ENDED: the publisher said goodbye, restarted, was silent for too long, or was evicted to make room for others. No loss
  is counted after the end. A forged frame can end an account, so later signs of life from the publisher reopen it.

`ACCOUNTS` contains the transitions, and `RemotePublisher.move` executes them. This module does no I/O.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

import attrs

from zroute.messages.control import BEATS, GRACE
from zroute.receiving.hearing import Signs

__all__ = ["ACCOUNTS", "AccountEvent", "Claim", "RemotePublisher", "State", "SubscriptionState"]

Claim = tuple[int, int, bool, int]
"""A detected loss: its first number, its last number, True if the number of lost messages is unknown, and how many
markers had been sent before.
"""

_CLAIMS_MAX = 16
"""The maximum number of claims per account that can still be corrected. Older claims are considered true."""

_TAKEN_MAX = 16
"""The maximum number of messages accepted after a claim for which the claim may still be wrong.

While a claim is wrong, real messages are refused as duplicates, so all accepted messages are forged too.
"""


@attrs.define(eq=False, slots=True)
class SubscriptionState:
    """The account of one subscription at one publisher.

    ``expected`` is the number of the next message. It is 0 before the join. It is -1 if this object is out of date; the
    caller must then look up the current object. ``claims`` contains the latest claimed losses, in order.

    ``stated`` is the expected number that a heartbeat or an answer has confirmed last. If none confirmed the number
    that `RemotePublisher.has_unstated_end` saw, it is this number, negative.
    """

    publisher: int
    prefix: bytes
    expected: int = 0
    stated: int = attrs.field(init=False, default=attrs.Factory(lambda self: self.expected, takes_self=True))
    claims: list[Claim] | None = None

    def claim(self, first: int, last: int, unknown: bool, asked: int) -> None:
        """Record a loss that the number in a frame implies."""
        self.claims = [*(self.claims or ())[1 - _CLAIMS_MAX :], (first, last, unknown, asked)]

    def is_claimed_beyond(self, number: int, asked: int) -> bool:
        """Return True if only claimed losses have moved the account past ``number``.

        The first of them was claimed before marker ``asked`` was sent.
        """
        if not self.claims or self.expected > self.claims[-1][1] + 1 + _TAKEN_MAX:
            return False
        claims = ((first, before) for first, last, _, before in self.claims if last > number)
        first, before = next(claims, (number + 2, asked))
        return first <= number + 1 and before < asked


class State(Enum):
    """The state of an account."""

    JOINING = "joining"
    COMPLETE = "complete"
    ENDED = "ended"


class AccountEvent(Enum):
    """The events that change the state of an account."""

    MARKER = "marker"  # we sent a marker
    SIGN = "sign"  # of life; also an answer to an older marker, or one that omits a subscription
    ANSWER = "answer"  # to the last marker, with all subscriptions
    END = "end"


ACCOUNTS: Final[Mapping[State, Mapping[AccountEvent, State]]] = {
    State.JOINING: {
        AccountEvent.MARKER: State.JOINING,
        AccountEvent.SIGN: State.JOINING,
        AccountEvent.ANSWER: State.COMPLETE,
        AccountEvent.END: State.ENDED,
    },
    State.COMPLETE: {
        AccountEvent.MARKER: State.JOINING,
        AccountEvent.SIGN: State.COMPLETE,
        AccountEvent.ANSWER: State.COMPLETE,
        AccountEvent.END: State.ENDED,
    },
    State.ENDED: {
        AccountEvent.MARKER: State.ENDED,
        AccountEvent.SIGN: State.JOINING,
        AccountEvent.ANSWER: State.COMPLETE,
        AccountEvent.END: State.ENDED,
    },
}
"""The transitions of an account: the next state, by state and event."""


@attrs.define(eq=False)
class RemotePublisher:
    """The state of one run of a publisher, which is identified by its epoch.

    ``covered`` contains the subscriptions in its last answer.

    ``leaving`` contains the accounts of removed subscriptions that share topics with new subscriptions. These accounts
    continue until an answer contains the numbers of the new subscriptions, so that a change of subscriptions hides no
    loss. ``standing`` collects the numbers from the parts of the answer.

    ``rival`` is the epoch of a run with the same name that answered later. It becomes None when the subscriber knows
    whether this run is still alive.
    """

    epoch: int
    state: State = attrs.field(init=False, default=State.JOINING)
    name: str | None = attrs.field(init=False, default=None)
    covered: frozenset[bytes] = attrs.field(init=False, default=frozenset())
    streams: dict[bytes, SubscriptionState] = attrs.field(init=False, factory=dict)
    leaving: dict[bytes, SubscriptionState] = attrs.field(init=False, factory=dict)
    lengths: frozenset[int] = attrs.field(init=False, default=frozenset())  # of prefixes in leaving: maybe thousands
    standing: dict[bytes, int] = attrs.field(init=False, factory=dict)
    named: set[bytes] = attrs.field(init=False, factory=set)  # the subscriptions in the parts of the answer so far
    answering: bytes = attrs.field(init=False, default=b"")  # the marker of the current answer; parts counts its parts
    parts: int = attrs.field(init=False, default=0)
    signs: Signs = attrs.field(init=False, factory=Signs)
    pulse: int | None = attrs.field(init=False, default=None)  # the sum of the expected numbers
    rival: int | None = attrs.field(init=False, default=None)
    active: bool = attrs.field(init=False, default=False)  # True after the first counted message
    looked_at: float = attrs.field(init=False, default=0.0)
    lost: bool = attrs.field(init=False, default=False)  # messages were lost since `looked_at`
    lost_before: bool = attrs.field(init=False, default=False)  # and in the same time before
    missed: int = attrs.field(init=False, default=0)  # consecutive answers that omitted a subscription
    kept: int = attrs.field(init=False, default=1)  # the number of the next kept message
    kept_lost: int = attrs.field(init=False, default=0)  # the number of kept messages counted as lost
    gave_all: bool = attrs.field(init=False, default=False)  # the end of its kept messages arrived, for the last marker

    def move(self, event: AccountEvent) -> None:
        """Change the state of the account for ``event``."""
        self.state = ACCOUNTS[self.state][event]

    @property
    def joined_once(self) -> bool:
        """True after the first answer, which begins the account."""
        return self.name is not None

    @property
    def subscriptions(self) -> tuple[bytes, ...]:
        """The subscriptions with an account, sorted."""
        return tuple(sorted(self.covered.union(self.streams)))

    @property
    def size(self) -> int:
        """The number of accounts, including those in `leaving`."""
        return len(self.streams) + len(self.leaving)

    def change(self, subscriptions: frozenset[bytes]) -> None:
        """Set the subscriptions; accounts of removed ones move to `leaving` if needed."""
        gone = self.covered.union(self.streams) - subscriptions
        shared = _sharing(gone.union(self.leaving), subscriptions)
        for prefix in gone:
            stream = self.streams.pop(prefix, None) or SubscriptionState(self.epoch, prefix, 1)
            if prefix in shared and stream.expected > 0 and self.state is not State.ENDED:
                self.leaving[prefix] = stream
            else:
                stream.expected = -1
        for prefix in self.leaving.keys() & subscriptions:
            self.streams[prefix] = self.leaving.pop(prefix)
        for prefix in self.leaving.keys() - shared:
            self.leaving.pop(prefix).expected = -1
        self.lengths = frozenset(map(len, self.leaving))
        self.covered &= subscriptions
        self.resync()

    def leave(self) -> None:
        """Discard the accounts in `leaving`.

        This happens when the accounts of the new subscriptions have begun, and when this run ends.
        """
        for stream in self.leaving.values():
            stream.expected = -1
        self.leaving.clear()
        self.resync()

    def end(self) -> None:
        """End the account.

        The numbers are kept for a while, so that messages that arrive late on another path are recognised as
        duplicates.
        """
        self.move(AccountEvent.END)
        self.rival = None
        self.signs.unnote()
        self.leave()

    def forget(self) -> None:
        """Discard everything except the name; a later answer begins a new account."""
        for stream in self.streams.values():
            stream.expected = -1
        self.streams.clear()
        self.covered = frozenset()
        self.resync()

    def begin_answer(self, marker: bytes) -> None:
        """Begin to collect the parts of the answer to ``marker``.

        Parts of an earlier answer are discarded.
        """
        self.answering, self.parts = marker, 0
        self.standing.clear()
        self.named.clear()

    def moved(self) -> bool:
        """Return True if messages have advanced an account since the last call."""
        pulse = sum([stream.expected for stream in self.streams.values()])
        if self.leaving:
            pulse += sum([stream.expected for stream in self.leaving.values()])
        known, self.pulse = self.pulse, pulse
        return known is not None and known != pulse

    def has_unstated_end(self, now: float) -> bool:
        """Return True if messages may be lost together with all their heartbeats.

        A full queue drops them, while messages of other subscriptions still arrive. The result is True once, 12 to 24
        seconds after the last message of a subscription without a heartbeat, and after the last loss.

        Args:
            now: The time in seconds, up to which all arrived frames have been read.
        """
        if now < self.looked_at + BEATS[-1] + GRACE:
            return False
        self.looked_at, found = now, self.lost_before and not self.lost
        self.lost, self.lost_before = False, self.lost
        for stream in self.streams.values():
            expected, stated = stream.expected, stream.stated
            if expected == stated:
                continue
            if expected == -stated:  # as at the last look
                stream.stated, found = expected, True
            else:
                stream.stated = -expected
        return found

    def resync(self) -> None:
        """Set `pulse` again after a change of accounts that no message caused."""
        if self.pulse is not None:
            self.moved()

    def shift(self, by: int) -> None:
        """Add ``by`` to `pulse`: the step of an account that no message caused."""
        if self.pulse is not None:
            self.pulse += by


def _sharing(prefixes: Iterable[bytes], subscriptions: Iterable[bytes]) -> set[bytes]:
    """Return the prefixes that share topics with ``subscriptions``.

    No item of ``subscriptions`` may be a prefix of another item.
    """
    ordered, found = sorted(subscriptions), set()
    for prefix in prefixes:
        at = bisect_left(ordered, prefix)
        below = at < len(ordered) and ordered[at].startswith(prefix)
        if below or (at and prefix.startswith(ordered[at - 1])):
            found.add(prefix)
    return found
