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

A publisher is in two states at a time, since a question and a promise go on side by side: a message between a marker
and its answer promises a beat, and the answer is still awaited. `PROMISES` and `QUESTIONS` are the transitions of the
two, and `Signs` executes them; the same tables stand in ``docs/reference/wire.md``. A row that says `STAYS` changes
neither the state nor its deadline; one that names the state itself begins it again, with a new deadline. An event that
has no row in a table does not concern it, or can't happen in that state: only a state with a deadline can miss one.

The states with a deadline, and what follows when it has passed:

- `Promise.PROMISED`: `Signs.sign_by`, `HearingEvent.OVERDUE`, and the publisher is sent a marker.
- `Promise.QUIET`: `Signs.quiet_at`, `HearingEvent.QUIETED`, and it is sent a ping; not while a question is out.
- The four of `Question` in which one is out: `Signs.answer_by`, and `HearingEvent.UNANSWERED` or ``FORGIVEN``.

Times are seconds of one monotonic clock. `zroute.receiving.tracker` says what follows from a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final

import attrs

from zroute.publishing.counters import GRACE, WITHDRAWN_SECONDS

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
"""Seconds that a publisher has for an answer to a question."""

ASKED_MAX = 10
"""Questions in succession to one that never answered, so that invented publishers make no endless work."""

QUIET_SECONDS = 20.0
"""Seconds of silence after which a publisher is asked for a sign of life, less up to 30 % so that readers spread."""

AWAY_SECONDS = WITHDRAWN_SECONDS
"""Seconds of silence after which a publisher is given up: as long as it keeps the counters of a reader that is gone."""

_SPREAD = 0.3


class Promise(Enum):
    """When the next sign of life is expected, if no question is sent."""

    NOTHING = "nothing"  # not heard yet, or asked since it was quiet
    PROMISED = "promised"
    QUIET = "quiet"


class Question(Enum):
    """What has become of the questions since the publisher was heard last."""

    UNASKED = "unasked"
    ASKED = "asked"
    PINGED = "pinged"
    LATE = "late"  # the time for an answer is over, and the next question is not sent yet
    ASKED_AGAIN = "asked again"
    PINGED_AGAIN = "pinged again"
    SILENT = "silent"


class HearingEvent(Enum):
    """What happens to one publisher, as its subscriber sees it."""

    SIGN = "sign"  # of life, which promises nothing
    PROMISE = "promise"  # a sign that promises the next one
    ANSWER = "answer"  # a complete one, to the last marker
    MARKER = "marker"  # was sent; only an answer answers it
    PING = "ping"  # was sent; any sign of life answers it
    AWAIT = "await"  # a marker that it may have got owes an answer
    OVERDUE = "overdue"
    QUIETED = "quieted"
    UNANSWERED = "unanswered"
    FORGIVEN = "forgiven"  # unanswered by one that is not judged: it never has answered, or another run replaces it


STAYS: Final = None

PROMISES: Final[Mapping[Promise, Mapping[HearingEvent, Promise | None]]] = {
    Promise.NOTHING: {
        HearingEvent.SIGN: Promise.QUIET,
        HearingEvent.PROMISE: Promise.PROMISED,
        HearingEvent.ANSWER: STAYS,
        HearingEvent.MARKER: STAYS,
    },
    Promise.PROMISED: {
        HearingEvent.SIGN: Promise.QUIET,
        HearingEvent.PROMISE: Promise.PROMISED,
        HearingEvent.ANSWER: Promise.QUIET,
        HearingEvent.MARKER: Promise.QUIET,
        HearingEvent.OVERDUE: Promise.QUIET,
    },
    Promise.QUIET: {
        HearingEvent.SIGN: Promise.QUIET,
        HearingEvent.PROMISE: Promise.PROMISED,
        HearingEvent.ANSWER: STAYS,
        HearingEvent.MARKER: STAYS,
        HearingEvent.QUIETED: Promise.NOTHING,
    },
}
"""The transitions of the promise. A sign of life sets both deadlines: that of the quiet outlives the promised one."""

QUESTIONS: Final[Mapping[Question, Mapping[HearingEvent, Question | None]]] = {
    Question.UNASKED: {
        HearingEvent.SIGN: STAYS,
        HearingEvent.PROMISE: STAYS,
        HearingEvent.ANSWER: STAYS,
        HearingEvent.MARKER: Question.ASKED,
        HearingEvent.PING: Question.PINGED,
        HearingEvent.AWAIT: Question.ASKED,
    },
    Question.ASKED: {
        HearingEvent.SIGN: STAYS,
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
        HearingEvent.PROMISE: Question.UNASKED,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: Question.ASKED_AGAIN,
        HearingEvent.PING: Question.PINGED_AGAIN,
        HearingEvent.AWAIT: STAYS,
    },
    Question.ASKED_AGAIN: {
        HearingEvent.SIGN: Question.ASKED,  # with the deadline that it has: only an answer ends it
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
        HearingEvent.PROMISE: Question.UNASKED,
        HearingEvent.ANSWER: Question.UNASKED,
        HearingEvent.MARKER: STAYS,
        HearingEvent.PING: STAYS,
        HearingEvent.AWAIT: STAYS,
    },
}
"""The transitions of the question. ``MARKER``, ``PING`` and ``AWAIT`` set the deadline unless the state stays."""


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
    """The signs of life of one publisher: its two states, their deadlines, and what a judgement needs besides.

    A deadline means something only in a state that has it.
    """

    promise: Promise = attrs.field(init=False, default=Promise.NOTHING)
    question: Question = attrs.field(init=False, default=Question.UNASKED)
    sign_by: float = attrs.field(init=False, default=0.0)
    quiet_at: float = attrs.field(init=False, default=0.0)
    answer_by: float = attrs.field(init=False, default=0.0)
    heard_at: float | None = attrs.field(init=False, default=None)
    asked_at: float | None = attrs.field(init=False, default=None)  # the first question since it was heard
    unanswered: int = attrs.field(init=False, default=0)  # questions, in succession
    was_silent: bool = attrs.field(init=False, default=False)  # until an answer that came since the last check
    doubted_at: float | None = attrs.field(init=False, default=None)  # when it was asked as its numbers seemed wrong
    links: set[int] = attrs.field(init=False, factory=set)  # the connections that its answers came by
    linked: bool = attrs.field(init=False, default=False)  # the last answer came by a connection that is known
    _noted: float | None = attrs.field(init=False, default=None)  # the promise of what came since the last check

    # -- the states

    def _move(self, event: HearingEvent) -> bool:
        """Do the transitions of ``event``; return True if it begins a state of the question, even the same one."""
        self.promise = PROMISES[self.promise].get(event) or self.promise
        question = QUESTIONS[self.question].get(event)
        self.question = question or self.question
        return question is not None

    @property
    def is_silent(self) -> bool:
        """True from the judgement until it is heard."""
        return self.question is Question.SILENT

    @property
    def is_asked(self) -> bool:
        """True while a question is out."""
        return HearingEvent.UNANSWERED in QUESTIONS[self.question]

    @property
    def is_pinged(self) -> bool:
        """True while that question is a ping."""
        return self.question in (Question.PINGED, Question.PINGED_AGAIN)

    def heard(self, now: float, *, moved: bool, beat: float, chance: Callable[[], float]) -> bool:
        """Return True if there was a sign of life since the last call: a note, or messages that have ``moved`` it."""
        promise, self._noted = self._noted, None
        if moved:
            promise = max(promise or 0.0, beat)
        if promise is None:
            return False
        self._move(HearingEvent.PROMISE if promise else HearingEvent.SIGN)
        self.heard_at, self.asked_at, self.unanswered = now, None, 0
        self.sign_by, self.quiet_at = now + promise + GRACE, now + QUIET_SECONDS * (1.0 - _SPREAD * chance())
        return True

    def ask(self, question: HearingEvent, now: float, *, seconds: float = ANSWER_SECONDS) -> None:
        """``MARKER``, ``PING`` or ``AWAIT``: an answer is awaited for ``seconds``, unless the table says otherwise."""
        if self._move(question):
            self.answer_by = now + seconds
            self.asked_at = now if self.asked_at is None else self.asked_at

    def answered(self) -> None:
        """The question has its answer."""
        self.was_silent |= self.is_silent
        self._move(HearingEvent.ANSWER)
        self.asked_at, self.unanswered = None, 0

    def miss_answer(self, since: float, *, judged: bool) -> bool:
        """Return True if the answer was due by ``since``. If not ``judged``, this makes no publisher silent."""
        if not self.is_asked or self.answer_by > since:
            return False
        self._move(HearingEvent.UNANSWERED if judged else HearingEvent.FORGIVEN)
        self.unanswered += 1
        return True

    def miss_sign(self, since: float) -> HearingEvent | None:
        """Return ``OVERDUE`` if a promised sign was due by ``since``, ``QUIETED`` if it has long been quiet then."""
        if self.promise is Promise.PROMISED and self.sign_by <= since:
            event = HearingEvent.OVERDUE
        elif self.promise is Promise.QUIET and not self.is_asked and self.quiet_at <= since:
            event = HearingEvent.QUIETED
        else:
            return None
        self._move(event)
        return event

    def begin_again(self, now: float) -> None:
        """It was taken for ended, and is heard."""
        self.answered()
        self.heard_at, self._noted, self.was_silent = now, None, False

    # -- what is read

    def note(self, link: int | None, promise: float = 0.0) -> None:
        """Take note of a control frame that came by ``link``; the next follows in ``promise`` seconds (0: none)."""
        self._noted = max(self._noted or 0.0, promise)
        if link is not None:
            self.links.add(link)
            self.linked = True

    def note_answer(self, link: int | None) -> None:
        """Take note of an answer; if its connection can't be told, the end of those before says nothing."""
        self.note(link)
        self.linked = link is not None

    def unnote(self) -> None:
        """Forget what was noted since the last check: it says nothing about now."""
        self._noted = None

    @property
    def is_noted(self) -> bool:
        """True if a control frame has come since the last check."""
        return self._noted is not None

    def has_gone(self, links: LinkTimes) -> bool:
        """Return True if every connection by which it was heard has ended."""
        return self.linked and not self.links & links.alive

    def is_away(self, now: float) -> bool:
        """Return True if it has been silent for too long to be waited for."""
        return self.is_silent and self.heard_at is not None and now - self.heard_at >= AWAY_SECONDS
