"""What tracking finds, as data: gaps, joins, ends, silence. `zroute.receiving.session` logs and counts it."""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

import attrs

__all__ = [
    "DUPLICATE",
    "Corrected",
    "Duplicate",
    "Ended",
    "Event",
    "Gap",
    "Joined",
    "LostKept",
    "Missing",
    "Namesake",
    "Overdue",
    "Quiet",
    "Restarted",
    "Returned",
    "Silent",
    "UnknownLoss",
]


@attrs.frozen
class Gap:
    """Messages ``first`` to ``last`` of ``subscription`` were sent by the publisher of ``epoch`` and not received.

    ``publisher`` names it as an `Envelope` does: the epoch as 16 hexadecimal digits.
    """

    subscription: bytes
    epoch: int
    first: int
    last: int

    @property
    def publisher(self) -> str:
        """The publisher's run, as in `Envelope.publisher`."""
        return f"{self.epoch:016x}"

    @property
    def count(self) -> int:
        """How many."""
        return self.last - self.first + 1


@attrs.frozen
class UnknownLoss:
    """Messages of the publisher of ``epoch`` may be lost, and their number can't be known.

    Those of ``subscriptions``. ``why`` says what the publisher did or did not do, as the rest of a sentence.
    """

    epoch: int
    subscriptions: tuple[bytes, ...]
    why: str


@attrs.frozen
class LostKept:
    """``count`` of the messages that the publisher of ``epoch`` keeps for those who join were sent and not received.

    A negative ``count``: that many of those counted as lost are sent again.
    """

    epoch: int
    count: int


@attrs.frozen
class Corrected:
    """The publisher of ``epoch`` has not sent as much of ``subscription`` as a forged frame claimed.

    Of the losses that were counted for the claim, ``wrong`` messages and ``unknown`` unknown losses are taken back.
    """

    epoch: int
    subscription: bytes
    wrong: int
    unknown: int


@attrs.frozen
class Joined:
    """``publisher`` has answered: it knows all subscriptions, and counts them (not all, if ``partial``)."""

    publisher: int
    name: str
    partial: bool


@attrs.frozen
class Missing:
    """``publisher`` has answered, and does not know ``subscriptions``: they may have been lost on the way to it.

    It is its answer number ``times`` in succession that names too little.
    """

    publisher: int
    subscriptions: frozenset[bytes]
    times: int


@attrs.frozen
class Restarted:
    """``publisher`` is a new run of the one that was ``before``."""

    publisher: int
    name: str
    before: int


@attrs.frozen
class Namesake:
    """``publisher`` has the same name as ``other``, and both are alive."""

    publisher: int
    name: str
    other: int


@attrs.frozen
class Ended:
    """``publisher`` said goodbye; ``known`` is True if all it sent is received or counted."""

    publisher: int
    name: str
    known: bool = True


@attrs.frozen
class Overdue:
    """``publisher`` promised a beat, or owes an answer, that did not come: ask it with a new marker."""

    publisher: int


@attrs.frozen
class Quiet:
    """``publisher`` has not been heard for long, and promised nothing: ask for a sign of life."""

    publisher: int


@attrs.frozen
class Silent:
    """``publisher`` did not answer two questions, though all that arrived was read, and sent nothing: it seems dead.

    By none of the connections ``links``, by which it was heard before, has anything come since the first question.
    """

    publisher: int
    name: str
    links: frozenset[int]


@attrs.frozen
class Returned:
    """``publisher`` was silent, and is heard again after that many ``seconds`` without a sign of life."""

    publisher: int
    name: str
    seconds: float


class Duplicate(Enum):
    """The type of `DUPLICATE`."""

    DUPLICATE = "duplicate"


DUPLICATE: Final = Duplicate.DUPLICATE
"""This message was delivered before, or counted as lost: it is not to be delivered."""

Event: TypeAlias = (
    "Gap | UnknownLoss | LostKept | Corrected | Joined | Missing | Restarted | Namesake | Ended | Overdue | Quiet"
    " | Silent | Returned"
)
