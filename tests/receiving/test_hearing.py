"""The state tables of the tracked wire: complete, without dead ends, executed by the code, and documented."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from tests.support import ROOT
from zroute.messages.control import BEATS, GRACE
from zroute.receiving.accounts import ACCOUNTS, AccountEvent, RemotePublisher, State
from zroute.receiving.hearing import (
    ANSWER_SECONDS,
    PROMISES,
    QUESTIONS,
    QUIET_SECONDS,
    HearingEvent,
    Promise,
    Question,
    Signs,
)

Table = Mapping[Any, Mapping[Any, Any]]

TABLES: list[tuple[Table, type[Enum], Enum]] = [
    (PROMISES, Promise, Promise.NOTHING),
    (QUESTIONS, Question, Question.UNASKED),
    (ACCOUNTS, State, State.JOINING),
]

DEADLINES: dict[HearingEvent, set[Enum]] = {
    HearingEvent.OVERDUE: {Promise.PROMISED},
    HearingEvent.QUIETED: {Promise.QUIET},
    HearingEvent.UNANSWERED: {Question.ASKED, Question.PINGED, Question.ASKED_AGAIN, Question.PINGED_AGAIN},
    HearingEvent.FORGIVEN: {Question.ASKED, Question.PINGED, Question.ASKED_AGAIN, Question.PINGED_AGAIN},
}
"""The states whose deadline raises the event when it passes."""


def reached(table: Table, first: Enum) -> set[Enum]:
    """Return ``first`` and all states that can follow it."""
    found, new = {first}, [first]
    while new:
        after = {state for state in table[new.pop()].values() if state is not None} - found
        found |= after
        new += after
    return found


def cell(state: Enum, row: Mapping[Any, Any], event: Enum) -> str:
    """Return the cell of a Markdown table: the state after the event, "stays", or a dash."""
    if event not in row:
        return "-"
    after: Enum | None = row[event]
    return "stays" if after is None else after.value


def rendered(table: Table) -> list[str]:
    """Return a table as lines of Markdown, with a row for each state and a column for each event."""
    events = list(dict.fromkeys(event for row in table.values() for event in row))
    lines = [["", *(event.value for event in events)]]
    for state, row in table.items():
        lines.append([f"**{state.value}**", *(cell(state, row, event) for event in events)])
    lines.insert(1, ["---"] * len(lines[0]))
    return ["| " + " | ".join(line) + " |" for line in lines]


def signs(promise: Promise = Promise.NOTHING, question: Question = Question.UNASKED) -> Signs:
    """Return the signs of a publisher in these two states."""
    found = Signs()
    found.promise, found.question = promise, question
    return found


@pytest.mark.parametrize(("table", "states", "first"), TABLES)
def test_each_event_is_decided_in_each_state(table: Table, states: type[Enum], first: Enum) -> None:
    """Each state has a row for each event, except for the deadlines of other states."""
    assert set(table) == set(states)
    events = {event for row in table.values() for event in row}
    for state, row in table.items():
        assert set(row) == {event for event in events if state in DEADLINES.get(event, set(states))}


def test_each_event_is_an_event_of_a_table() -> None:
    """The tables decide each event."""
    assert {event for table in (PROMISES, QUESTIONS) for row in table.values() for event in row} == set(HearingEvent)
    assert {event for row in ACCOUNTS.values() for event in row} == set(AccountEvent)


@pytest.mark.parametrize(("table", "states", "first"), TABLES)
def test_each_state_is_reached_and_left(table: Table, states: type[Enum], first: Enum) -> None:
    """Each state can be reached, and all others can follow it."""
    assert reached(table, first) == set(states)
    for state in states:
        assert reached(table, state) >= set(states) - {Promise.NOTHING, first}


@pytest.mark.parametrize("event", [HearingEvent.SIGN, HearingEvent.KEPT, HearingEvent.PROMISE, HearingEvent.ANSWER])
def test_a_publisher_that_is_heard_is_silent_no_more(event: HearingEvent) -> None:
    """One sign of life ends a silence, and a new judgement then needs two new questions."""
    for question in (Question.SILENT, Question.LATE, Question.PINGED_AGAIN, Question.ASKED_AGAIN):
        after = QUESTIONS[question][event]
        assert after in (Question.UNASKED, Question.ASKED)
        assert QUESTIONS[after].get(HearingEvent.UNANSWERED) is not Question.SILENT


def test_only_two_unanswered_questions_make_a_publisher_silent() -> None:
    """A publisher becomes silent only after two unanswered questions in a row."""
    ways = {(state, event) for state, row in QUESTIONS.items() for event in row if row[event] is Question.SILENT}
    assert ways == {(state, HearingEvent.UNANSWERED) for state in (Question.ASKED_AGAIN, Question.PINGED_AGAIN)}
    before = {state for state, row in QUESTIONS.items() for each in row.values() if each in {way[0] for way in ways}}
    assert before - {way[0] for way in ways} == {Question.LATE}


@pytest.mark.parametrize("promise", Promise)
@pytest.mark.parametrize("question", Question)
def test_the_code_executes_the_tables(promise: Promise, question: Question) -> None:
    """In each pair of states, each method does what the tables say and sets the deadline of the new state."""
    for event in (HearingEvent.MARKER, HearingEvent.PING, HearingEvent.AWAIT):
        asked = signs(promise, question)
        asked.ask(event, 100.0)
        begins = QUESTIONS[question][event]
        assert asked.question is (begins or question)
        assert asked.promise is (PROMISES[promise].get(event) or promise)
        assert asked.answer_by == (100.0 + ANSWER_SECONDS if begins else 0.0)
    for seconds, event in ((None, HearingEvent.SIGN), (0.0, HearingEvent.KEPT), (BEATS[0], HearingEvent.PROMISE)):
        heard = signs(promise, question)
        heard.note(None, seconds)
        assert heard.heard(100.0, moved=False, beat=BEATS[0], chance=lambda: 0.0)
        assert heard.question is (QUESTIONS[question][event] or question)
        assert heard.promise is (PROMISES[promise][event] or promise)
        assert (heard.sign_by, heard.quiet_at) == (100.0 + seconds + GRACE if seconds else 0.0, 100.0 + QUIET_SECONDS)
    answered = signs(promise, question)
    answered.answered()
    assert answered.question is (QUESTIONS[question][HearingEvent.ANSWER] or question)
    assert answered.promise is (PROMISES[promise][HearingEvent.ANSWER] or promise)


@pytest.mark.parametrize("promise", Promise)
@pytest.mark.parametrize("question", Question)
def test_a_deadline_is_missed_in_its_state_only(promise: Promise, question: Question) -> None:
    """A deadline is missed only in its own state, and not before its time."""
    for judged, event in ((True, HearingEvent.UNANSWERED), (False, HearingEvent.FORGIVEN)):
        late = signs(promise, question)
        late.answer_by = 100.0
        assert not late.miss_answer(99.9, judged=judged)
        assert late.miss_answer(100.0, judged=judged) == (question in DEADLINES[event])
        assert late.question is (QUESTIONS[question].get(event) or question)
    missed = signs(promise, question)
    missed.sign_by = missed.quiet_at = 100.0
    assert missed.miss_sign(99.9) is None
    expected = next(
        (event for event in (HearingEvent.OVERDUE, HearingEvent.QUIETED) if promise in DEADLINES[event]), None
    )
    if expected is HearingEvent.QUIETED and missed.is_asked:
        expected = None
    assert missed.miss_sign(100.0) is expected
    assert missed.promise is (promise if expected is None else PROMISES[promise][expected])


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", AccountEvent)
def test_an_account_executes_its_table(state: State, event: AccountEvent) -> None:
    """An account moves from state to state as its table says."""
    publisher = RemotePublisher(7)
    publisher.state = state
    publisher.move(event)
    assert publisher.state is ACCOUNTS[state][event]


def test_state_is_no_parameter() -> None:
    """No constructor takes a state: a publisher starts from its epoch, and its signs from nothing."""
    assert list(inspect.signature(RemotePublisher).parameters) == ["epoch"]
    assert not inspect.signature(Signs).parameters


@pytest.mark.parametrize("table", [PROMISES, QUESTIONS, ACCOUNTS])
def test_the_tables_are_documented(table: Table) -> None:
    """The page of the wire shows the same tables, for authors of other implementations."""
    expected = "\n".join(rendered(table))
    assert expected in (ROOT / "docs" / "reference" / "wire.md").read_text(), (
        f"docs/reference/wire.md needs\n{expected}"
    )
