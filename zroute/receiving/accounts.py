"""Accounts: what a subscriber was sent by one publisher, a `SubscriptionState` for each subscription. Pure.

An account is JOINING until the publisher has answered the last marker, and COMPLETE from then on: the numbers say what
is lost. A marker that is sent makes it JOINING once more, since the answer says which subscriptions the publisher knows
now. It has ENDED after a goodbye, a new run of the same name, a long silence, or when it was given up for others: then
nothing is missing behind what was counted. An end may be a lie, so what is heard behind it begins the account again.
`ACCOUNTS` has these transitions, and `Publisher.move` executes them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

import attrs

from zroute.receiving.hearing import Signs

__all__ = ["ACCOUNTS", "AccountEvent", "Claim", "Publisher", "State", "SubscriptionState"]

Claim = tuple[int, int, bool]
"""The first and the last number of a loss that was found, and whether it is an unknown one."""

_CLAIMS_MAX = 16
"""Claims of one account that may still be found wrong; of more, the oldest are believed."""

_TAKEN_MAX = 16
"""Messages that may follow a claim that is found wrong: real ones are refused, so these are forged as well."""


@attrs.define(eq=False, slots=True)
class SubscriptionState:
    """One subscription at one publisher.

    ``expected`` is the next number; 0: not joined yet; -1: look it up once more. ``claims`` are the losses found
    last, in order.
    """

    publisher: int
    prefix: bytes
    expected: int = 0
    claims: list[Claim] | None = None

    def claim(self, first: int, last: int, unknown: bool) -> None:
        """Note a loss that some frame claims."""
        self.claims = [*(self.claims or ())[1 - _CLAIMS_MAX :], (first, last, unknown)]

    def is_claimed_beyond(self, number: int) -> bool:
        """Return True if claims alone have moved the account from ``number``, or from before it, to where it stands."""
        if not self.claims or self.expected > self.claims[-1][1] + 1 + _TAKEN_MAX:
            return False
        first = next((first for first, last, _ in self.claims if last > number), None)
        return first is not None and first <= number + 1


class State(Enum):
    """Where an account stands."""

    JOINING = "joining"
    COMPLETE = "complete"
    ENDED = "ended"


class AccountEvent(Enum):
    """What moves an account from one state to another."""

    MARKER = "marker"  # was sent
    SIGN = "sign"  # of life; also an answer that is to a marker before the last, or does not name all subscriptions
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
"""The transitions of an account."""


@attrs.define(eq=False)
class Publisher:
    """What is known of one epoch.

    ``covered``: the subscriptions that its last answer named. ``leaving``: the accounts of such as have
    given way to others of the same topics. They go on until an answer says where the others stand (``standing``, while
    it comes in parts), so that a change loses nothing unnoticed. ``rival`` is a run of the same name that answered
    later, until it is known whether this one is still alive.
    """

    epoch: int
    state: State = attrs.field(init=False, default=State.JOINING)
    name: str | None = attrs.field(init=False, default=None)
    covered: frozenset[bytes] = attrs.field(init=False, default=frozenset())
    streams: dict[bytes, SubscriptionState] = attrs.field(init=False, factory=dict)
    leaving: dict[bytes, SubscriptionState] = attrs.field(init=False, factory=dict)
    lengths: frozenset[int] = attrs.field(init=False, default=frozenset())  # of the leaving, which may be thousands
    standing: dict[bytes, int] = attrs.field(init=False, factory=dict)
    named: set[bytes] = attrs.field(init=False, factory=set)  # by the parts of an answer that have come
    answering: bytes = attrs.field(init=False, default=b"")  # the marker that it answers, and how many parts came
    parts: int = attrs.field(init=False, default=0)
    signs: Signs = attrs.field(init=False, factory=Signs)
    pulse: int | None = attrs.field(init=False, default=None)  # the sum of what is expected: each message moves it
    rival: int | None = attrs.field(init=False, default=None)
    active: bool = attrs.field(init=False, default=False)  # a message of it was counted
    missed: int = attrs.field(init=False, default=0)  # answers in succession that did not name all subscriptions
    kept: int = attrs.field(init=False, default=1)  # the number of the next kept message
    kept_lost: int = attrs.field(init=False, default=0)  # how many before it are counted as lost
    gave_all: bool = attrs.field(init=False, default=False)  # the end of its kept messages came, for the last marker

    def move(self, event: AccountEvent) -> None:
        """Do the transition of ``event``."""
        self.state = ACCOUNTS[self.state][event]

    @property
    def joined_once(self) -> bool:
        """True from the first answer on: its account has begun."""
        return self.name is not None

    @property
    def subscriptions(self) -> tuple[bytes, ...]:
        """Those that it has an account of."""
        return tuple(sorted(self.covered.union(self.streams)))

    @property
    def size(self) -> int:
        """How many accounts it has."""
        return len(self.streams) + len(self.leaving)

    def change(self, subscriptions: frozenset[bytes]) -> None:
        """Subscribe to these from now on."""
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
        """The account of the others has begun, or ends with this run."""
        for stream in self.leaving.values():
            stream.expected = -1
        self.leaving.clear()
        self.resync()

    def end(self) -> None:
        """This run is over. Its numbers stay for a while, so that what comes late by another path is no news."""
        self.move(AccountEvent.END)
        self.rival = None
        self.signs.unnote()
        self.leave()

    def forget(self) -> None:
        """Keep nothing but the name: a later answer begins a new account."""
        for stream in self.streams.values():
            stream.expected = -1
        self.streams.clear()
        self.covered = frozenset()
        self.resync()

    def begin_answer(self, marker: bytes) -> None:
        """The first part of an answer has come; what is known of another one says nothing any more."""
        self.answering, self.parts = marker, 0
        self.standing.clear()
        self.named.clear()

    def moved(self) -> bool:
        """Return True if messages have moved an account since the last call."""
        pulse = sum([stream.expected for stream in self.streams.values()])
        if self.leaving:
            pulse += sum([stream.expected for stream in self.leaving.values()])
        known, self.pulse = self.pulse, pulse
        return known is not None and known != pulse

    def resync(self) -> None:
        """Accounts have come, gone or moved, and not by messages."""
        if self.pulse is not None:
            self.moved()

    def shift(self, by: int) -> None:
        """An account was moved by ``by``, and not by messages."""
        if self.pulse is not None:
            self.pulse += by


def _sharing(prefixes: Iterable[bytes], subscriptions: Iterable[bytes]) -> set[bytes]:
    """Return those that share topics with one of ``subscriptions``, of which none is a prefix of another."""
    ordered, found = sorted(subscriptions), set()
    for prefix in prefixes:
        at = bisect_left(ordered, prefix)
        below = at < len(ordered) and ordered[at].startswith(prefix)
        if below or (at and prefix.startswith(ordered[at - 1])):
            found.add(prefix)
    return found
