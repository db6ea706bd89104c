"""Hearing: which publishers are alive, and by which connections they were heard. Pure; the clock is an argument.

The rules, for one publisher:

- Everything that is read of it is a **sign of life**: a message, a beat, an answer.
- A sign may **promise** the next one: a message promises a beat, and a beat says when the next follows. If a promised
  sign is `GRACE` seconds late, the publisher is asked. A publisher that promised nothing is asked after `QUIET_SECONDS`
  of silence, so that a path that swallows everything is noticed on a quiet stream too.
- A question has `ANSWER_SECONDS`. A publisher that answers two in succession with nothing at all is **silent**. It is
  not asked again until it is heard: one silence has one judgement.
- The judgement names the connections by which this publisher was heard, and by which *nothing of anybody* has come
  since the first unanswered question. Only these may be cut: a connection by which another publisher is heard works.
- A subscriber judges only when it has read everything that had arrived, however late it is.
- After `AWAY_SECONDS` of silence the publisher's account is closed: its counters are forgotten there as well.

Times are seconds of one monotonic clock. `Signs` holds the state; `zroute.receiving.tracker` says what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from zroute.publishing.counters import GRACE, WITHDRAWN_SECONDS

__all__ = ["ANSWER_SECONDS", "ASKED_MAX", "AWAY_SECONDS", "QUIET_SECONDS", "LinkTimes", "Signs"]

ANSWER_SECONDS = 2.0
"""Seconds that a publisher has for an answer to a question."""

ASKED_MAX = 10
"""Questions in succession to one that never answered, so that invented publishers make no endless work."""

QUIET_SECONDS = 20.0
"""Seconds of silence after which a publisher is asked for a sign of life, less up to 30 % so that readers spread."""

AWAY_SECONDS = WITHDRAWN_SECONDS
"""Seconds of silence after which a publisher is given up: as long as it keeps the counters of a reader that is gone."""

_SPREAD = 0.3


class LinkTimes:
    """The connections of the socket that are alive, and when something was heard by each, while that was noted."""

    def __init__(self) -> None:
        self.alive: frozenset[int] = frozenset()
        self._heard: dict[int, float] = {}

    def update(self, alive: frozenset[int], heard: Iterable[int], now: float) -> None:
        """These are alive now, and by those something was heard since the last call."""
        self.alive = alive
        self._heard.update(dict.fromkeys(heard, now))
        for gone in self._heard.keys() - alive:
            del self._heard[gone]

    def unheard(self, links: Iterable[int], since: float) -> frozenset[int]:
        """Return those of ``links`` that are alive, and by which nothing has been heard ``since`` then."""
        never = float("-inf")
        return frozenset(link for link in links if link in self.alive and self._heard.get(link, never) < since)


@attrs.define(eq=False)
class Signs:
    """The signs of life of one publisher.

    ``due`` and ``answer_due``: when a promised sign, and the answer to a question, must have come. ``asked_at``: the
    first of the questions since it was heard. ``links``: the connections that its answers came by.
    """

    heard_at: float | None = None
    due: float | None = None
    answer_due: float | None = None
    asked_at: float | None = None
    quiet_at: float | None = None
    pinged: bool = False  # the question is a ping, which any sign of life answers
    unanswered: int = 0
    silent: bool = False
    was_silent: bool = False  # until an answer that came since the last check
    doubted_at: float | None = None  # when it was asked because its numbers seemed wrong
    links: set[int] = attrs.field(factory=set)
    linked: bool = False  # the last answer came by a connection that is known
    _promise: float | None = None

    def note(self, link: int | None, promise: float = 0.0) -> None:
        """Take note of a control frame that came by ``link``; the next follows in ``promise`` seconds (0: none)."""
        self._promise = max(self._promise or 0.0, promise)
        if link is not None:
            self.links.add(link)
            self.linked = True

    def note_answer(self, link: int | None) -> None:
        """Take note of an answer; if its connection can't be told, the end of those before says nothing."""
        self.note(link)
        self.linked = link is not None

    def unnote(self) -> None:
        """Forget what was noted since the last check: it says nothing about now."""
        self._promise = None

    def heard(self, now: float, *, moved: bool, beat: float, chance: Callable[[], float]) -> bool:
        """Return True if there was a sign of life since the last call: a note, or messages that have ``moved`` it."""
        promise, self._promise = self._promise, None
        if moved:
            promise = max(promise or 0.0, beat)
        if promise is None:
            return False
        self.heard_at, self.quiet_at = now, now + QUIET_SECONDS * (1.0 - _SPREAD * chance())
        self.silent, self.unanswered, self.asked_at = False, 0, None
        self.due = now + promise + GRACE if promise else None
        if self.pinged:
            self.pinged, self.answer_due = False, None
        return True

    def ask(self, now: float, *, ping: bool = False, seconds: float = ANSWER_SECONDS) -> None:
        """A question was sent. A silent publisher is asked like all others, and nothing follows if it stays silent."""
        if self.silent or (ping and self.answer_due is not None):
            return
        self.pinged, self.answer_due = ping, now + seconds
        self.asked_at = now if self.asked_at is None else self.asked_at

    def begin_again(self, now: float) -> None:
        """It was taken for ended, and is heard."""
        self.answered()
        self.heard_at, self._promise, self.was_silent = now, None, False

    @property
    def is_noted(self) -> bool:
        """True if a control frame has come since the last check."""
        return self._promise is not None

    def answered(self) -> None:
        """The question has its answer."""
        self.was_silent |= self.silent
        self.due = self.answer_due = self.asked_at = None
        self.pinged, self.silent, self.unanswered = False, False, 0

    def has_gone(self, links: LinkTimes) -> bool:
        """Return True if every connection by which it was heard has ended."""
        return self.linked and not self.links & links.alive

    def is_away(self, now: float) -> bool:
        """Return True if it has been silent for too long to be waited for."""
        return self.silent and self.heard_at is not None and now - self.heard_at >= AWAY_SECONDS
