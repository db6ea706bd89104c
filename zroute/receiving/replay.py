"""Replay the messages that a publisher sent before this app joined.

A handler with ``since`` receives the past from the history of each publisher, and then the live messages: none is
missing, and none is delivered twice. `Replay` is the part of one stream: of a subscription at a publisher. The
publisher's side is `zroute.publishing.past`; ``docs/reference/wire.md`` describes the protocol. This module sends
nothing and reads no clock. Frames are opaque values here.

**The cut.** The statement that completes the join contains the number of the last message of the subscription. All kept
messages up to this number are the past, and all later ones are live. Messages that arrive before the statement are
therefore in the past too. They wait for it as `EarlyMessages`, and are duplicates when the statement says that the
publisher has a history. Kept messages wait there, too, and then behind the past, which may contain them. Without a
history, early messages are delivered, and those that had no room count as lost. Messages behind the statement wait in
`zroute.receiving.stream_recovery.StreamRecovery` until the past is delivered.

**Asking.** A replay has one open request, as a recovery has, and asks for the next messages when everything that has
arrived was delivered. Each frame of an answer says at which position it continues. The replay ignores repeated frames,
and asks again for lost ones. An empty answer that promises more says that the publisher still searches: the replay then
waits, for `SEARCHES_OF_PAST` such answers at most.

**Losses.** Each frame says how many messages are left. If the number decreases by more than the received messages, the
history has dropped some, which count as lost. If the publisher ends, answers none of `TRIES_OF_PAST` requests, or
searches for too long, all that were left count as lost. If it has never answered, their number is unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import attrs

from zroute.messages.recovery import Past, PastAnswer, Since

__all__ = [
    "EARLY_SECONDS",
    "REQUESTS_ACCEPTED",
    "SEARCHES_OF_PAST",
    "TRIES_OF_PAST",
    "TRY_SECONDS",
    "Early",
    "EarlyMessages",
    "PastLoss",
    "Replay",
]

TRY_SECONDS = 0.5
"""The time in seconds after which a request without an answer is repeated."""

TRIES_OF_PAST = 10
"""The number of requests without an answer after which a replay ends.

It is more than for lost messages, because a publisher that searches sends an answer only about once a second.
"""

SEARCHES_OF_PAST = 600
"""The number of consecutive empty answers after which a replay ends: about ten minutes of searching."""

EARLY_SECONDS = 10.0
"""The time in seconds for which messages wait for the statement of their publisher. They are then delivered."""

REQUESTS_ACCEPTED = 8
"""The number of latest requests whose answers are accepted. A repeated request has a new number."""


class Early(NamedTuple):
    """A frame that arrived before the statement.

    ``number`` is that of its first message, or 0; ``many`` is the number of its messages, and ``size`` is in bytes.
    ``is_kept`` is True for a kept message, which may be newer than the history and is no part of the past.
    """

    number: int
    many: int
    frame: Any
    size: int
    is_kept: bool = False


@attrs.define(eq=False)
class EarlyMessages:
    """The messages of one stream that arrived before the statement of its publisher.

    ``begun_at`` is the time at which the first one arrived. ``dropped`` messages had no room, and ``last`` is the
    number of the last of them, or 0.
    """

    begun_at: float
    frames: list[Early] = attrs.field(init=False, factory=list)
    dropped: int = attrs.field(init=False, default=0)
    last: int = attrs.field(init=False, default=0)

    def drop(self, number: int, many: int) -> None:
        """Count messages that have no room."""
        self.dropped += many
        self.last = number + many - 1 if number else self.last

    def dropped_up_to(self, number: int) -> int:
        """Return how many dropped messages are in the past up to ``number``.

        Behind it are only messages that have overtaken the statement. Their numbers follow each other, unless more were
        lost on the way.
        """
        return max(self.dropped - max(self.last - number, 0), 0)


class PastLoss(NamedTuple):
    """Messages of the past that stay lost.

    Attributes:
        lost: Their number, or None if it is unknown.
        total: The number of messages of the past when the replay began; without one, of those that arrived before the
            statement.
    """

    lost: int | None
    total: int


@attrs.define(eq=False)
class Replay:
    """The replay of one stream.

    Attributes:
        since: The beginning of the past.
        upto: The cut: the number of the last message of the past.
        total: The number of messages of the past; None before the first answer.
        left: The number of messages that have not arrived.
    """

    since: Since
    upto: int
    total: int | None = attrs.field(init=False, default=None)
    left: int = attrs.field(init=False, default=0)
    _position: int = attrs.field(init=False, default=0)
    _requests: deque[int] = attrs.field(init=False, factory=lambda: deque(maxlen=REQUESTS_ACCEPTED))
    _asked_at: float | None = attrs.field(init=False, default=None)
    _tries: int = attrs.field(init=False, default=0)
    _searches: int = attrs.field(init=False, default=0)
    _previous: float | None = attrs.field(init=False, default=None)  # the time of the last tick

    @property
    def asked(self) -> bool:
        """True while a request is open."""
        return self._asked_at is not None

    def ask(self, number: int, now: float) -> Past | None:
        """Return what to ask for in request ``number``, or None for no request."""
        if self._asked_at is not None:
            return None
        self._asked_at = now
        self._requests.append(number & 0xFFFF)
        return Past(self.upto, self._position, self.since)

    def is_answer(self, number: int, past: PastAnswer) -> bool:
        """Return True if a frame answers a recent request at the right position."""
        return number in self._requests and past.position == self._position

    def answer(
        self, number: int, past: PastAnswer, messages: Sequence[tuple[int, int]], *, last: bool, more: bool
    ) -> Iterator[int | PastLoss | None]:
        """Process one frame of an answer.

        Yield the index of each message that must be delivered, a `PastLoss` for what was lost before it, and None if
        this is the end of the replay.

        Args:
            number: The number of the request. Answers to other requests are ignored.
            past: The position and the number of the messages that are left.
            messages: The position of each frame, and the number of its messages.
            last: True if this is the last frame of the answer.
            more: True if the publisher has more.
        """
        if not self.is_answer(number, past):
            return
        if more and not messages:  # the request still waits at the publisher
            self._tries, self._searches = 0, self._searches + 1
            return
        if self.total is None:
            self.total = self.left = past.left
        elif past.left < self.left:
            yield PastLoss(self.left - past.left, self.total)
            self.left = past.left  # a higher number is forged, because the past does not grow
        progress = False
        for index, (position, many) in enumerate(messages):
            self._position, self.left = position + 1, max(self.left - many, 0)
            progress = True
            yield index
        if progress:
            self._tries = self._searches = 0
        if last and number == self._requests[-1]:
            self._asked_at = None
            self._tries += not progress
        if last and not more:
            if self.left:
                yield PastLoss(self.left, self.total)
            yield None

    def tick(self, now: float, *, emptied: bool) -> bool:
        """Return False if the replay must end.

        The publisher then does not answer, or finds nothing. Call this method in each ``TICK``.

        Args:
            now: The current time.
            emptied: True if everything that had arrived was read since the last call.
        """
        previous, self._previous = self._previous, now
        # All frames that had arrived before the deadline have been read.
        if self._asked_at is not None and emptied and previous is not None and previous - self._asked_at >= TRY_SECONDS:
            self._asked_at = None
            self._tries += 1
        return self._tries < TRIES_OF_PAST and self._searches < SEARCHES_OF_PAST

    @property
    def loss(self) -> PastLoss | None:
        """The loss if the replay ends now."""
        if self.total is None:
            return PastLoss(None, 0)
        return PastLoss(self.left, self.total) if self.left else None
