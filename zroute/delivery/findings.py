"""What tracking finds, as data: gaps, joins, ends, silence. `zroute.joins` says and counts it."""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

import attrs

__all__ = [
    "DUPLICATE",
    "Duplicate",
    "Ended",
    "Event",
    "Gap",
    "Joined",
    "LostKept",
    "LostTail",
    "Overdue",
    "Restarted",
    "Silent",
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
class LostTail:
    """Messages of the publisher of ``epoch`` may be lost, and nobody can say how many.

    Those of ``subscriptions``; that is where its counters were forgotten, or where it died without a goodbye.
    """

    epoch: int
    subscriptions: tuple[bytes, ...]


@attrs.frozen
class LostKept:
    """``count`` of the messages that the publisher of ``epoch`` keeps for those who join were sent and not received."""

    epoch: int
    count: int


@attrs.frozen
class Joined:
    """``publisher`` has answered: it knows all subscriptions, and counts them (not all, if ``partial``)."""

    publisher: int
    name: str
    partial: bool


@attrs.frozen
class Restarted:
    """``publisher`` is a new run of the one that was ``before``."""

    publisher: int
    name: str
    before: int


@attrs.frozen
class Ended:
    """``publisher`` said goodbye; all it sent is received or counted."""

    publisher: int
    name: str


@attrs.frozen
class Overdue:
    """``publisher`` promised a beat, or owes an answer, that did not come: ask it with a new marker."""

    publisher: int


@attrs.frozen
class Silent:
    """``publisher`` did not answer two markers, though all that arrived was read, and sent nothing: it seems dead."""

    publisher: int
    name: str


class Duplicate(Enum):
    """The type of `DUPLICATE`."""

    DUPLICATE = "duplicate"


DUPLICATE: Final = Duplicate.DUPLICATE
"""This message was delivered before, or counted as lost: it is not to be delivered."""

Event: TypeAlias = "Gap | LostTail | LostKept | Joined | Restarted | Ended | Overdue | Silent"
