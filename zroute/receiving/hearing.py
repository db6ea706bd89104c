"""Track which publishers are alive, and over which connections they were heard.

The rules for each publisher:

- Every frame from it is a **sign of life**: a message, a heartbeat or an answer.
- A sign of life may **promise** the next one: a message promises a heartbeat, and a heartbeat announces the next one.
  If a promised sign is `GRACE` seconds late, the subscriber asks the publisher. A publisher without a promise is asked
  after `QUIET_SECONDS` of silence, so a path that drops everything is also noticed on a quiet stream.
- Only a heartbeat or a complete answer keeps a promise, because it states the number. The answer to a ping shows that
  the publisher is alive, but not that the messages before it arrived.
- The publisher has `ANSWER_SECONDS` to answer a question. If it sends nothing at all after two consecutive questions,
  it is **silent**. A silent publisher is not asked again until it is heard, so each silence is reported once.
- The report contains the connections over which this publisher was heard, and over which *no publisher* has sent
  anything since the first unanswered question. Only these connections may be cut, because a connection over which
  another publisher is heard works.
- A subscriber decides only when it has read all frames that had arrived, even if that takes a long time.
- After `AWAY_SECONDS` of silence, the account of the publisher is closed, because the publisher then drops its counters
  for this subscriber too.

A publisher has two states at the same time, because questions and promises are independent. For example, a message
between a marker and its answer promises a heartbeat while the answer is still outstanding. `PROMISES` and `QUESTIONS`
contain the transitions, and `Signs` executes them. ``docs/reference/wire.md`` contains the same tables. `STAYS` keeps
the state and its deadline. A transition of `QUESTIONS` to the same state begins that state again, with a new deadline.
The deadline of a promise depends only on the last sign of life that promises another one. If a table has no row for an
event, the event does not affect this table, or can't happen in that state. For example, a deadline can pass only in a
state that has one.

The states with a deadline, and the effects of a passed deadline:

- `Promise.PROMISED`: `Signs.sign_by`, `HearingEvent.OVERDUE`, and a marker is sent to the publisher.
- `Promise.QUIET`: `Signs.quiet_at`, `HearingEvent.QUIETED`, and a ping is sent, unless a question is open.
- The four states of `Question` with an open question: `Signs.answer_by`, `HearingEvent.UNANSWERED` or ``FORGIVEN``.

Times are seconds of one monotonic clock, which is an argument of each call. This module does no I/O.
`zroute.receiving.tracker` acts on the states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final

import attrs

from zroute.messages.control import GRACE, WITHDRAWN_SECONDS

__all__ = [
    "ANSWER_SECONDS",
    "ASKED_MAX",
    "AWAY_SECONDS",
    "PROMISES",
    "QUESTIONS",
    "QUIET_SECONDS",
    "STAYS",
    "HearingEvent",
    "LinkTimes",
    "Promise",
    "Question",
    "Signs",
]

ANSWER_SECONDS = 2.0
"""The time in seconds within which a publisher must answer a question."""

ASKED_MAX = 10
"""The maximum number of consecutive questions to a publisher that has never answered.

It limits the work that forged publishers can cause.
"""

QUIET_SECONDS = 20.0
"""The silence in seconds after which a subscriber asks a publisher for a sign of life.

The actual time is shorter by a random part of up to 30 %, so that subscribers do not all ask at the same time.
"""

AWAY_SECONDS = WITHDRAWN_SECONDS
"""The silence in seconds after which the account of a publisher is closed.

After the same time, the publisher drops the counters for an absent subscriber.
"""

_SPREAD = 0.3


class Promise(Enum):
    """The state that determines when the next sign of life is due."""

    NOTHING = "nothing"  # not heard yet, or asked after it had been quiet
    PROMISED = "promised"
    QUIET = "quiet"


class Question(Enum):
    """The state of the questions since the last sign of life."""

    UNASKED = "unasked"
    ASKED = "asked"
    PINGED = "pinged"
    LATE = "late"  # no answer in time, and the next question is not sent yet
    ASKED_AGAIN = "asked again"
    PINGED_AGAIN = "pinged again"
    SILENT = "silent"


class HearingEvent(Enum):
    """The events of one publisher, as seen by the subscriber."""

    SIGN = "sign"  # of life, which states no number
    KEPT = "kept"  # the last heartbeat: a sign that keeps a promise, and promises nothing more
    PROMISE = "promise"  # a sign that promises the next one
    ANSWER = "answer"  # complete, to the last marker
    MARKER = "marker"  # we sent one; only an answer ends the wait
    PING = "ping"  # we sent one; any sign of life ends the wait
    AWAIT = "await"  # an earlier marker may have reached the publisher, so wait for the answer
    OVERDUE = "overdue"
    QUIETED = "quieted"
    UNANSWERED = "unanswered"
    FORGIVEN = "forgiven"  # no answer, but not found silent: it never answered, or a new run replaces it


STAYS: Final = None

PROMISES: Final[Mapping[Promise, Mapping[HearingEvent, Promise | None]]] = {
    Promise.NOTHING: {
        HearingEvent.SIGN: Promise.QUIET,
        HearingEvent.KEPT: Promise.QUIET,
        HearingEvent.PROMISE: Promise.PROMISED,
        HearingEvent.ANSWER: STAYS,
        HearingEvent.MARKER: STAYS,
    },
    Promise.PROMISED: {
        HearingEvent.SIGN: STAYS,
        HearingEvent.KEPT: Promise.QUIET,
        HearingEvent.PROMISE: Promise.PROMISED,
        HearingEvent.ANSWER: Promise.QUIET,
        HearingEvent.MARKER: Promise.QUIET,
        HearingEvent.OVERDUE: Promise.QUIET,
    },
    Promise.QUIET: {
        HearingEvent.SIGN: Promise.QUIET,
        HearingEvent.KEPT: Promise.QUIET,
        HearingEvent.PROMISE: Promise.PROMISED,
        HearingEvent.ANSWER: STAYS,
        HearingEvent.MARKER: STAYS,
        HearingEvent.QUIETED: Promise.NOTHING,
    },
}
"""The transitions of the promise.

Each sign of life sets the deadline of QUIET, which is still pending when the deadline of PROMISED has passed.
"""

QUESTIONS: Final[Mapping[Question, Mapping[HearingEvent, Question | None]]] = {
    Question.UNASKED: {
        HearingEvent.SIGN: STAYS,
        HearingEvent.KEPT: STAYS,
        HearingEvent.PROMISE: STAYS,
        HearingEvent.ANSWER: STAYS,
        HearingEvent.MARKER: Question.ASKED,
        HearingEvent.PING: Question.PINGED,
        HearingEvent.AWAIT: Question.ASKED,
    },
    Question.ASKED: {
        HearingEvent.SIGN: STAYS,
        HearingEvent.KEPT: STAYS,
        HearingEvent.PROMISE: STAYS,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: Question.ASKED,
        HearingEvent.PING: STAYS,
        HearingEvent.AWAIT: STAYS,
        HearingEvent.UNANSWERED: Question.LATE,
        HearingEvent.FORGIVEN: Question.LATE,
    },
    Question.PINGED: {
        HearingEvent.SIGN: Question.UNASKED,
        HearingEvent.KEPT: Question.UNASKED,
        HearingEvent.PROMISE: Question.UNASKED,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: Question.ASKED,
        HearingEvent.PING: STAYS,
        HearingEvent.AWAIT: STAYS,
        HearingEvent.UNANSWERED: Question.LATE,
        HearingEvent.FORGIVEN: Question.LATE,
    },
    Question.LATE: {
        HearingEvent.SIGN: Question.UNASKED,
        HearingEvent.KEPT: Question.UNASKED,
        HearingEvent.PROMISE: Question.UNASKED,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: Question.ASKED_AGAIN,
        HearingEvent.PING: Question.PINGED_AGAIN,
        HearingEvent.AWAIT: STAYS,
    },
    Question.ASKED_AGAIN: {
        HearingEvent.SIGN: Question.ASKED,  # the state keeps its deadline: only an answer ends it
        HearingEvent.KEPT: Question.ASKED,
        HearingEvent.PROMISE: Question.ASKED,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: Question.ASKED_AGAIN,
        HearingEvent.PING: STAYS,
        HearingEvent.AWAIT: STAYS,
        HearingEvent.UNANSWERED: Question.SILENT,
        HearingEvent.FORGIVEN: Question.LATE,
    },
    Question.PINGED_AGAIN: {
        HearingEvent.SIGN: Question.UNASKED,
        HearingEvent.KEPT: Question.UNASKED,
        HearingEvent.PROMISE: Question.UNASKED,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: Question.ASKED_AGAIN,
        HearingEvent.PING: STAYS,
        HearingEvent.AWAIT: STAYS,
        HearingEvent.UNANSWERED: Question.SILENT,
        HearingEvent.FORGIVEN: Question.LATE,
    },
    Question.SILENT: {
        HearingEvent.SIGN: Question.UNASKED,
        HearingEvent.KEPT: Question.UNASKED,
        HearingEvent.PROMISE: Question.UNASKED,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: STAYS,
        HearingEvent.PING: STAYS,
        HearingEvent.AWAIT: STAYS,
    },
}
"""The transitions of the question.

``MARKER``, ``PING`` and ``AWAIT`` set the deadline, unless the table contains `STAYS`.
"""


class LinkTimes:
    """The live connections of the socket, with the time at which each was last heard."""

    def __init__(self) -> None:
        self.alive: frozenset[int] = frozenset()
        self._heard: dict[int, float] = {}

    def update(self, alive: frozenset[int], heard: Iterable[int], now: float) -> None:
        """Set the live connections, and those that were heard since the last call."""
        self.alive = alive
        self._heard.update(dict.fromkeys(heard, now))
        for gone in self._heard.keys() - alive:
            del self._heard[gone]

    def unheard(self, links: Iterable[int], since: float) -> frozenset[int]:
        """Return the live ``links`` over which nothing arrived after ``since``."""
        never = float("-inf")
        return frozenset(link for link in links if link in self.alive and self._heard.get(link, never) < since)


@attrs.define(eq=False)
class Signs:
    """The signs of life of one publisher: two states and their deadlines.

    A deadline is valid only in the state to which it belongs. The other attributes help to decide whether the publisher
    is silent or has gone.
    """

    promise: Promise = attrs.field(init=False, default=Promise.NOTHING)
    question: Question = attrs.field(init=False, default=Question.UNASKED)
    sign_by: float = attrs.field(init=False, default=0.0)
    quiet_at: float = attrs.field(init=False, default=0.0)
    answer_by: float = attrs.field(init=False, default=0.0)
    heard_at: float | None = attrs.field(init=False, default=None)
    asked_at: float | None = attrs.field(init=False, default=None)  # the first question since the last sign
    unanswered: int = attrs.field(init=False, default=0)  # consecutive questions without answer
    was_silent: bool = attrs.field(init=False, default=False)  # until the check after an answer
    doubted_at: float | None = attrs.field(init=False, default=None)  # when its numbers seemed wrong and it was asked
    links: set[int] = attrs.field(init=False, factory=set)  # the connections of its answers
    linked: bool = attrs.field(init=False, default=False)  # the connection of the last answer is known
    _last: set[int] = attrs.field(init=False, factory=set)  # its last connections, after they have ended
    _closed: frozenset[int] = attrs.field(init=False, default=frozenset())  # connections closed for a known reason
    _why_closed: str | None = attrs.field(init=False, default=None)  # that reason, until it is heard over another one
    _noted: float | None = attrs.field(init=False, default=None)  # the promise since the last check; 0.0 was kept
    _alive: bool = attrs.field(init=False, default=False)  # heard since the last check

    # -- the states

    def _move(self, event: HearingEvent) -> bool:
        """Execute the transitions for ``event``. Return True if a question state begins.

        A state also begins if a transition leads from it to itself.
        """
        # An event that is not in the table changes nothing, like `STAYS`, which is None.
        self.promise = PROMISES[self.promise].get(event) or self.promise
        question = QUESTIONS[self.question].get(event)
        self.question = question or self.question
        return question is not None

    @property
    def is_silent(self) -> bool:
        """True if the publisher was found silent and has not been heard since."""
        return self.question is Question.SILENT

    @property
    def is_asked(self) -> bool:
        """True while a question is open."""
        return HearingEvent.UNANSWERED in QUESTIONS[self.question]

    @property
    def is_pinged(self) -> bool:
        """True while the open question is a ping."""
        return self.question in (Question.PINGED, Question.PINGED_AGAIN)

    def heard(self, now: float, *, moved: bool, beat: float, chance: Callable[[], float]) -> bool:
        """Return True if there was a sign of life since the last call.

        Args:
            now: The time of this call.
            moved: True if messages have advanced the account since the last call.
            beat: The time in seconds until the heartbeat that a message promises.
            chance: Returns a random number from 0 to 1, which spreads the questions of many subscribers over time.
        """
        promise, alive, self._noted, self._alive = self._noted, self._alive, None, False
        if moved:
            promise = max(promise or 0.0, beat)
        if promise:
            self._move(HearingEvent.PROMISE)
            self.sign_by = now + promise + GRACE
        elif promise is not None:
            self._move(HearingEvent.KEPT)
        elif alive:
            self._move(HearingEvent.SIGN)
        else:
            return False
        self.heard_at, self.asked_at, self.unanswered = now, None, 0
        self.quiet_at = now + QUIET_SECONDS * (1.0 - _SPREAD * chance())
        return True

    def ask(self, question: HearingEvent, now: float, *, seconds: float = ANSWER_SECONDS) -> None:
        """Record a question: ``MARKER``, ``PING`` or ``AWAIT``.

        The answer is due after ``seconds``. If `QUESTIONS` has `STAYS` for this question in the current state, the
        earlier deadline stays valid.
        """
        if self._move(question):
            self.answer_by = now + seconds
            self.asked_at = now if self.asked_at is None else self.asked_at

    def answered(self) -> None:
        """Record that the question was answered."""
        # Before the move, which ends the silence: `Tracker` reports the return at its next check.
        self.was_silent |= self.is_silent
        self._move(HearingEvent.ANSWER)
        self.asked_at, self.unanswered = None, 0

    def miss_answer(self, since: float, *, judged: bool) -> bool:
        """Return True if the answer was due at ``since``.

        If ``judged`` is False, the publisher does not become silent.
        """
        if not self.is_asked or self.answer_by > since:
            return False
        self._move(HearingEvent.UNANSWERED if judged else HearingEvent.FORGIVEN)
        self.unanswered += 1
        return True

    def miss_sign(self, since: float) -> HearingEvent | None:
        """Return the event of a missed deadline, or None.

        The event is ``OVERDUE`` if a promised sign of life was due at ``since``, and ``QUIETED`` if the quiet time had
        ended by then.
        """
        if self.promise is Promise.PROMISED and self.sign_by <= since:
            event = HearingEvent.OVERDUE
        elif self.promise is Promise.QUIET and not self.is_asked and self.quiet_at <= since:
            event = HearingEvent.QUIETED
        else:
            return None
        self._move(event)
        return event

    def begin_again(self, now: float) -> None:
        """Reset the states for a publisher that had ended and is heard again."""
        self.answered()
        self.unnote()
        self.heard_at, self.was_silent = now, False

    # -- signs of life

    def note(self, link: int | None, promise: float | None = None) -> None:
        """Record a control frame that arrived over ``link``.

        The publisher promises the next frame within ``promise`` seconds. 0 means that the frame keeps a promise, and
        promises nothing more; None means that it does neither.
        """
        self._alive = True
        if promise is not None:
            self._noted = max(self._noted or 0.0, promise)
        if link is not None:
            self.links.add(link)
            self.linked = True
            if link not in self._closed:  # a frame of a closed connection may be read later
                self._why_closed = None

    def note_answer(self, link: int | None) -> None:
        """Record an answer. If its connection is unknown, `has_gone` returns False."""
        self.note(link)
        self.linked = link is not None

    def unnote(self) -> None:
        """Discard the signs of life since the last check, because they are outdated."""
        self._noted, self._alive = None, False

    @property
    def is_noted(self) -> bool:
        """True if a control frame has arrived since the last check."""
        return self._alive

    def has_gone(self, links: LinkTimes) -> bool:
        """Return True if every connection over which the publisher was heard has ended."""
        return self.linked and not self.links & links.alive

    def keep_links(self, alive: frozenset[int]) -> None:
        """Forget the connections that are no longer alive."""
        self.links, before = self.links & alive, self.links
        if before and not self.links:
            self._last = before

    def close(self, links: frozenset[int], why: str) -> None:
        """Record why connections were closed.

        The reason is ignored if the publisher was heard over another connection too.
        """
        known = self.links or self._last
        if known and known <= links:
            self._closed, self._why_closed = links, why

    @property
    def why_gone(self) -> str | None:
        """The reason why the last connections of the publisher were closed, or None."""
        return self._why_closed if self.linked else None

    def is_away(self, now: float) -> bool:
        """Return True if the publisher has been silent for `AWAY_SECONDS` or longer."""
        return self.is_silent and self.heard_at is not None and now - self.heard_at >= AWAY_SECONDS
