"""Throttled log lines: the first are logged in full, the others counted."""

from __future__ import annotations

import logging

import pytest
from twisted.internet.task import Clock

from zroute.throttle import BURST, WINDOW, ThrottledLog

LOG = logging.getLogger("zroute.tests.reports")


def say(reports: ThrottledLog, times: int, key: str = "kind") -> None:
    """Log one fault that many times."""
    for number in range(times):
        reports(key, key, logging.WARNING, "fault %d", number)


def test_the_first_few_are_said_in_full(caplog: pytest.LogCaptureFixture) -> None:
    """Up to the burst, all lines are logged, and the end of the window logs nothing."""
    clock = Clock()
    say(ThrottledLog(LOG, clock), BURST)
    clock.advance(WINDOW)
    assert caplog.messages == [f"fault {number}" for number in range(BURST)]


def test_the_rest_is_counted_when_the_window_closes(caplog: pytest.LogCaptureFixture) -> None:
    """The line at the end of the window has the kind and the number."""
    clock = Clock()
    say(ThrottledLog(LOG, clock), BURST + 7)
    clock.advance(WINDOW)
    assert caplog.messages[BURST:] == ["kind: 7 more lines like these were not shown"]


def test_a_new_window_speaks_again(caplog: pytest.LogCaptureFixture) -> None:
    """After a window, the same fault is logged in full again."""
    clock = Clock()
    reports = ThrottledLog(LOG, clock)
    say(reports, 1)
    clock.advance(WINDOW)
    say(reports, 1)
    assert caplog.messages == ["fault 0", "fault 0"]


def test_kinds_have_their_own_windows(caplog: pytest.LogCaptureFixture) -> None:
    """A flood of one kind does not hide another."""
    reports = ThrottledLog(LOG, Clock())
    say(reports, BURST * 2, "one")
    say(reports, 1, "two")
    assert len(caplog.messages) == BURST + 1


def test_closing_says_what_is_held_back_and_leaves_no_timer(caplog: pytest.LogCaptureFixture) -> None:
    """close logs the remaining counts at the level of the fault, and leaves no timer."""
    clock = Clock()
    reports = ThrottledLog(LOG, clock)
    say(reports, BURST + 1, "one")
    say(reports, 1, "two")
    reports.close()
    assert caplog.messages[-1] == "one: 1 more lines like these were not shown"
    assert caplog.records[-1].levelno == logging.WARNING
    assert clock.getDelayedCalls() == []


def test_a_window_can_end_early(caplog: pytest.LogCaptureFixture) -> None:
    """The count of the kind is logged, its next line is too, and other kinds keep their windows."""
    clock = Clock()
    reports = ThrottledLog(LOG, clock, burst=1)
    say(reports, 3, "one")
    say(reports, 1, "two")
    reports.end("one")
    reports.end("unknown")
    say(reports, 1, "one")
    say(reports, 1, "two")
    assert caplog.messages == ["fault 0", "fault 0", "one: 2 more lines like these were not shown", "fault 0"]
    reports.close()
    assert clock.getDelayedCalls() == []


def test_an_error_comes_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """An error is logged with its traceback."""
    try:
        raise ValueError("no")
    except ValueError as error:
        ThrottledLog(LOG, Clock())("k", "k", logging.ERROR, "failed: %s", error, error=error)
    assert "test_throttle.py" in caplog.text


def test_a_repeated_fault_is_logged_once_in_its_own_window(caplog: pytest.LogCaptureFixture) -> None:
    """With once_in, the first line is logged, and the others are counted when its window ends."""
    clock = Clock()
    reports = ThrottledLog(LOG, clock)
    for second in range(62):
        reports("kind", "kind", logging.WARNING, "fault %d", second, once_in=60.0)
        clock.advance(1)
    assert caplog.messages == ["fault 0", "kind: 59 more lines like these were not shown", "fault 60"]
