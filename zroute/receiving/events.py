"""The events that the tracker reports, such as gaps, joins, ends and silence.

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
    "Evicted",
    "Gap",
    "Joined",
    "LostKept",
    "LostPast",
    "Missing",
    "Namesake",
    "Overdue",
    "Quiet",
    "Restarted",
    "Returned",
    "Silent",
    "UnknownLoss",
    "Verdict",
]


@attrs.frozen
class Gap:
    """Messages ``first`` to ``last`` of ``subscription`` were sent but not received.

    ``recovered`` is the number of lost messages of this subscription and publisher that the app has received again
    since the previous gap and before this call. Messages that come back later are counted in the next gap.
    """

    subscription: bytes
    epoch: int
    first: int
    last: int
    recovered: int = 0

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
    """An unknown number of messages of the publisher with ``epoch`` may be lost.

    ``subscriptions`` contains the affected subscriptions. ``why`` is the predicate of a sentence about the publisher,
    such as "has ended".
    """

    epoch: int
    subscriptions: tuple[bytes, ...]
    why: str


@attrs.frozen
class LostKept:
    """``count`` kept messages of the publisher with ``epoch`` were lost.

    A negative ``count`` corrects an earlier loss: the publisher sends that number of the lost messages again.
    """

    epoch: int
    count: int


@attrs.frozen
class LostPast:
    """``count`` of ``total`` messages of the past were lost.

    They are of ``subscription``, for which a handler has ``since``. The publisher with ``epoch`` no longer has them. Or
    it has no history, and they arrived before its statement and had no room.
    """

    epoch: int
    subscription: bytes
    count: int
    total: int


@attrs.frozen
class Corrected:
    """The losses that a forged frame had implied did not happen.

    The publisher with ``epoch`` has sent fewer messages of ``subscription`` than the frame claimed. Because of the
    claim, ``wrong`` messages were counted as lost, and ``unknown`` unknown losses were counted.
    """

    epoch: int
    subscription: bytes
    wrong: int
    unknown: int


@attrs.frozen
class Joined:
    """``publisher`` has answered, and counts the messages of all subscriptions.

    If ``partial`` is True, it counts only the messages of some subscriptions.
    """

    publisher: int
    name: str
    partial: bool


@attrs.frozen
class Missing:
    """``publisher`` has answered, but does not know ``subscriptions``.

    These subscriptions may have been lost on the way to the publisher. ``times`` is the number of its consecutive
    answers in which a subscription was missing.
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
    """``publisher`` has said goodbye.

    ``known`` is True if all its messages were received or counted as lost.
    """

    publisher: int
    name: str
    known: bool = True


@attrs.frozen
class Evicted:
    """The tracker has evicted ``publisher``.

    There were too many publishers, or too many accounts.
    """

    publisher: int


@attrs.frozen
class Overdue:
    """A heartbeat or an answer of ``publisher`` is late: send it a new marker."""

    publisher: int


@attrs.frozen
class Quiet:
    """``publisher`` has not sent anything for a long time: ask it for a sign of life.

    The publisher had not announced a heartbeat.
    """

    publisher: int


@attrs.frozen
class Silent:
    """``publisher`` seems dead: it sent nothing after two consecutive questions.

    Before this event, the subscriber had read all frames that had arrived. ``links`` contains the connections over
    which the publisher was heard before, and over which nothing has arrived since the first question. ``why`` is the
    reason why its connection was closed, such as "the key of feed was revoked", or None.
    """

    publisher: int
    name: str
    links: frozenset[int]
    why: str | None = None


@attrs.frozen
class Returned:
    """``publisher`` has sent a sign of life again, after ``seconds`` without one."""

    publisher: int
    name: str
    seconds: float


class Duplicate(Enum):
    """The type of `DUPLICATE`."""

    DUPLICATE = "duplicate"


DUPLICATE: Final = Duplicate.DUPLICATE
"""The message was already delivered, or counted as lost: do not deliver it."""

Event: TypeAlias = (
    "Gap | UnknownLoss | LostKept | LostPast | Corrected | Joined | Missing | Restarted | Namesake | Ended | Overdue"
    " | Quiet | Silent | Returned | Evicted"
)


class Verdict(Enum):
    """What the caller must do with a message of a stream that may recover."""

    DELIVER = "deliver"
    HELD = "held"
    DUPLICATE = "duplicate"
