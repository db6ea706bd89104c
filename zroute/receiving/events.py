"""The findings of tracking as data: gaps, joins, ends, silence.

`zroute.receiving.session` logs and counts them.
"""

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
    """Messages ``first`` to ``last`` of ``subscription`` were sent but not received."""

    subscription: bytes
    epoch: int
    first: int
    last: int

    @property
    def publisher(self) -> str:
        """The epoch as 16 hexadecimal digits, as in `Envelope.publisher`."""
        return f"{self.epoch:016x}"

    @property
    def count(self) -> int:
        """The number of lost messages."""
        return self.last - self.first + 1


@attrs.frozen
class UnknownLoss:
    """An unknown number of messages of the publisher of ``epoch`` may be lost.

    ``subscriptions`` are those concerned. ``why`` is the rest of a sentence that begins with the publisher: it says
    what the publisher did or failed to do.
    """

    epoch: int
    subscriptions: tuple[bytes, ...]
    why: str


@attrs.frozen
class LostKept:
    """The publisher of ``epoch`` sent ``count`` retained messages that got lost.

    A negative ``count`` takes back a loss: the publisher sends that many of the lost messages again.
    """

    epoch: int
    count: int


@attrs.frozen
class Corrected:
    """The publisher of ``epoch`` has sent less than a forged frame claimed.

    The frame was about ``subscription``.

    ``wrong`` lost messages and ``unknown`` unknown losses that were counted for the claim are taken back.
    """

    epoch: int
    subscription: bytes
    wrong: int
    unknown: int


@attrs.frozen
class Joined:
    """``publisher`` has answered, and counts all subscriptions.

    If ``partial`` is True, it counts only some of them.
    """

    publisher: int
    name: str
    partial: bool


@attrs.frozen
class Missing:
    """``publisher`` has answered, but does not know ``subscriptions``.

    They may have been lost on the way to it.

    ``times`` counts its consecutive answers that omitted a subscription.
    """

    publisher: int
    subscriptions: frozenset[bytes]
    times: int


@attrs.frozen
class Restarted:
    """``publisher`` is a new run of the publisher with the epoch ``before``."""

    publisher: int
    name: str
    before: int


@attrs.frozen
class Namesake:
    """``publisher`` and ``other`` have the same name, and both are alive."""

    publisher: int
    name: str
    other: int


@attrs.frozen
class Ended:
    """``publisher`` said goodbye.

    ``known`` is True if all that it sent was received or counted as lost.
    """

    publisher: int
    name: str
    known: bool = True


@attrs.frozen
class Overdue:
    """``publisher`` owes a heartbeat or an answer: send it a new marker."""

    publisher: int


@attrs.frozen
class Quiet:
    """``publisher`` has sent nothing for long: ask it for a sign of life.

    It had announced no heartbeat.
    """

    publisher: int


@attrs.frozen
class Silent:
    """``publisher`` seems dead: it left two questions unanswered, and sent nothing.

    All that had arrived was read before this conclusion.

    ``links`` are the connections over which it was heard before, and over which nothing has arrived since the first
    ping.
    """

    publisher: int
    name: str
    links: frozenset[int]


@attrs.frozen
class Returned:
    """``publisher`` is heard again, after ``seconds`` without a sign of life."""

    publisher: int
    name: str
    seconds: float


class Duplicate(Enum):
    """The type of `DUPLICATE`."""

    DUPLICATE = "duplicate"


DUPLICATE: Final = Duplicate.DUPLICATE
"""The message was already delivered, or counted as lost: do not deliver it."""

Event: TypeAlias = (
    "Gap | UnknownLoss | LostKept | Corrected | Joined | Missing | Restarted | Namesake | Ended | Overdue | Quiet"
    " | Silent | Returned"
)
