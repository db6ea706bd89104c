"""A socket that can't be opened again is tried until it can."""

from __future__ import annotations

import errno
import logging

import pytest
import zmq
from twisted.internet.task import Clock

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, NotRunningError
from zroute.sockets.reopening import Reopening


def reopening(clock: Clock, outcomes: list[Exception | None]) -> Reopening:
    """Return one whose attempts end with ``outcomes``, which it takes from the list."""

    def attempt() -> None:
        error = outcomes.pop(0)
        if error is not None:
            raise error

    return Reopening(clock, Endpoint("tcp://127.0.0.1:1", bind=False), attempt)


@pytest.mark.parametrize("error", [zmq.ZMQError(errno.EMFILE), OSError(errno.EMFILE, "…"), EndpointError("in use")])
def test_an_error_that_may_pass_is_logged_once_and_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The pauses double; after a success, the next failure is logged again."""
    clock, outcomes = Clock(), [error, error, None, error, None]
    one = reopening(clock, outcomes)
    one.later()
    one.later()
    for seconds, left in ((0.1, 4), (0.2, 3), (0.4, 2)):
        clock.advance(seconds - 0.01)
        assert len(outcomes) == left + 1
        clock.advance(0.01)
        assert len(outcomes) == left
    assert clock.getDelayedCalls() == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    one.reset()
    one.later()
    clock.pump([0.1, 0.2])
    assert outcomes == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.parametrize("error", [zmq.ContextTerminated(), NotRunningError("stopped")])
def test_a_terminated_context_ends_the_attempts(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to wait for, and one line says so."""
    clock = Clock()
    reopening(clock, [error]).later()
    clock.advance(0.1)
    assert clock.getDelayedCalls() == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_closed_owner_opens_nothing() -> None:
    """`cancel` ends the pause."""
    clock = Clock()
    one = reopening(clock, [])
    one.later()
    one.cancel()
    clock.advance(10)
