"""The log lines about the endpoints of a socket, from recorded events and a virtual clock."""

from __future__ import annotations

import errno
import logging

import pytest
from twisted.internet.task import Clock

from zroute.sockets.connection_log import NO_ANSWER, ConnectionLog
from zroute.sockets.events import SocketEvent

HERE, NAMED, PATH = "tcp://127.0.0.1:5555", "tcp://feed.test:5555", "ipc:///run/feed"


class Dialled:
    """The log of one endpoint."""

    def __init__(self, caplog: pytest.LogCaptureFixture, endpoint: str = HERE) -> None:
        caplog.set_level(logging.INFO, "zroute.sockets")
        self._caplog = caplog
        self.endpoint = endpoint
        self.clock = Clock()
        self.log = ConnectionLog(self.clock, logging.getLogger("zroute.sockets"), "app")
        self.log.dial(endpoint)

    def lines(self) -> list[str]:
        """Return the lines since the last call."""
        lines = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return lines

    def attempts(self, *names: str, value: int = 0) -> None:
        """Report these events."""
        for name in names:
            self.log.attempted(self.endpoint, SocketEvent(name, self.endpoint, value))


@pytest.mark.parametrize(
    ("endpoint", "events", "value", "reason"),
    [
        (
            HERE,
            ("connect_delayed", "closed", "connect_retried"),
            0,
            "connection refused, no program listens on this port (libzmq: closed)",
        ),
        (PATH, ("closed", "connect_retried"), 0, "no program listens at this path (libzmq: closed)"),
        (HERE, ("connect_delayed",), 0, "the host does not reply: it is down, or a firewall blocks the connection"),
        (NAMED, ("connect_retried", "connect_retried"), 0, "the host name can't be resolved (libzmq: connect_retried)"),
        (HERE, ("connect_retried",), 0, "the network has no route to the host (libzmq: connect_retried)"),
        (
            HERE,
            ("connect_delayed", "connected"),
            0,
            "the peer accepts the connection, but does not send a greeting of ZMTP 3",
        ),
        (
            HERE,
            ("connected", "handshake_failed_no_detail", "connect_retried"),
            errno.EAGAIN,
            "does not send a greeting",
        ),
        (
            HERE,
            ("connected", "handshake_failed_no_detail", "connect_retried"),
            errno.EPIPE,
            "closes it during the handshake",
        ),
        (HERE, ("connected", "handshake_failed_no_detail", "connect_retried"), errno.EPIPE, "(such as an HTTP server)"),
        (HERE, (), 0, "no attempt yet; trying"),
        (NAMED, (), 0, "no attempt yet, because the host name is still being looked up; trying"),
    ],
)
def test_an_absence_is_one_line_with_its_reason(
    caplog: pytest.LogCaptureFixture, endpoint: str, events: tuple[str, ...], value: int, reason: str
) -> None:
    """An absence of three seconds is one line, however often libzmq tries; the connection is another."""
    dialled = Dialled(caplog, endpoint)
    dialled.attempts(*events * 3, value=value)
    dialled.clock.advance(NO_ANSWER - 0.1)
    assert dialled.lines() == []
    dialled.clock.advance(0.2)
    (line,) = dialled.lines()
    assert line.startswith(f"app: no answer from {endpoint} for 3 s: ")
    assert reason in line
    dialled.attempts(*events, value=value)
    dialled.clock.advance(3600)
    dialled.log.connected(endpoint)
    assert dialled.lines() == [f"app: connected to {endpoint}"]


def test_a_short_absence_is_one_line_and_a_long_one_two(caplog: pytest.LogCaptureFixture) -> None:
    """A quick restart is one line at the return; a long absence is a line of its own too."""
    dialled = Dialled(caplog)
    dialled.log.connected(HERE)
    dialled.log.lost(HERE)
    dialled.clock.advance(1)
    dialled.log.connected(HERE)
    assert dialled.lines() == [f"app: connected to {HERE}", f"app: connected to {HERE} again"]
    dialled.log.lost(HERE)
    dialled.clock.advance(5)
    dialled.log.connected(HERE)
    gone, back = dialled.lines()
    assert "no answer" in gone
    assert back == f"app: connected to {HERE} again"


@pytest.mark.parametrize("order", ["goodbye first", "end first"])
def test_a_goodbye_is_no_absence_and_its_return_is_a_line(caplog: pytest.LogCaptureFixture, order: str) -> None:
    """A goodbye is logged elsewhere; the return and the next absence are lines again."""
    dialled = Dialled(caplog)
    dialled.log.connected(HERE)
    steps = [dialled.log.ended, dialled.log.lost]
    for step in steps if order == "goodbye first" else reversed(steps):
        step(HERE)
    dialled.clock.advance(60)
    dialled.log.connected(HERE)
    assert dialled.lines() == [f"app: connected to {HERE}", f"app: connected to {HERE} again"]
    dialled.log.lost(HERE)
    dialled.clock.advance(5)
    assert "no answer" in dialled.lines()[0]


def test_a_goodbye_long_ago_hides_no_later_absence(caplog: pytest.LogCaptureFixture) -> None:
    """An old goodbye of a publisher behind a proxy does not hide a later loss of the proxy."""
    dialled = Dialled(caplog)
    dialled.log.connected(HERE)
    dialled.log.ended(HERE)
    dialled.clock.advance(60)
    dialled.log.lost(HERE)
    dialled.clock.advance(5)
    assert "no answer" in dialled.lines()[-1]


def test_an_end_that_is_told_elsewhere_is_not_told_again(caplog: pytest.LogCaptureFixture) -> None:
    """A silent publisher that is cut has a line already; its return is another."""
    dialled = Dialled(caplog)
    dialled.log.connected(HERE)
    dialled.log.told(HERE)
    dialled.log.lost(HERE)
    dialled.clock.advance(60)
    dialled.log.connected(HERE)
    assert dialled.lines() == [f"app: connected to {HERE}"]


def test_a_return_from_a_rest_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that is paused is not reported as absent during the pause, but after it."""
    dialled = Dialled(caplog)
    dialled.log.connected(HERE)
    dialled.log.told(HERE)
    dialled.log.lost(HERE)
    dialled.log.rests(HERE)
    dialled.clock.advance(30)
    dialled.log.redialled(HERE)
    dialled.log.connected(HERE)
    assert dialled.lines() == [f"app: connected to {HERE}", f"app: connected to {HERE} again"]
    dialled.log.lost(HERE)
    dialled.log.rests(HERE)
    dialled.clock.advance(30)
    dialled.log.redialled(HERE)
    dialled.clock.advance(5)
    assert "no answer" in dialled.lines()[0]


def test_refusals_are_said_once_a_minute_and_their_end_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that refuses each second: one line a minute with the number, and one for the connection."""
    dialled = Dialled(caplog)
    for _ in range(59):
        dialled.log.refused(HERE, "no", handshake=True)
        dialled.clock.advance(1)
    dialled.clock.advance(1)
    assert dialled.lines() == [f"app: {HERE}: no", f"app: {HERE}: 58 more lines like these were not shown"]
    dialled.log.connected(HERE)
    assert dialled.lines() == [f"app: connected to {HERE}"]


def test_a_peer_that_is_cut_off_again_and_again_floods_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Repeated handshakes with a peer that is cut each time are not logged until another kind of end."""
    dialled = Dialled(caplog)
    for _ in range(59):
        dialled.log.connected(HERE)
        dialled.log.lost(HERE)
        dialled.clock.advance(1)
        dialled.log.refused(HERE, "a frame", handshake=False)
    dialled.log.connected(HERE)
    dialled.log.lost(HERE)
    dialled.log.connected(HERE)
    dialled.log.close()
    assert dialled.lines() == [
        f"app: connected to {HERE}",
        f"app: {HERE}: a frame",
        f"app: connected to {HERE} again",
        f"app: {HERE}: 58 more lines like these were not shown",
    ]


def test_a_new_reason_is_a_line_even_if_it_was_one_before(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that restarts with another fault, and then with the first one again, is a line each time."""
    dialled = Dialled(caplog)
    for why in ("no keys", "no keys", "unknown key", "no keys", "no keys"):
        dialled.log.refused(HERE, why, handshake=True)
        dialled.clock.advance(5)
    assert dialled.lines() == [
        f"app: {HERE}: no keys",
        f"app: {HERE}: unknown key",
        f"app: {HERE}: 1 more lines like these were not shown",
        f"app: {HERE}: no keys",
    ]


def test_a_reason_that_returns_after_a_connection_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """The last line must not say that the endpoint is connected when it is refused."""
    dialled = Dialled(caplog)
    dialled.log.refused(HERE, "no keys", handshake=True)
    dialled.log.connected(HERE)
    dialled.log.refused(HERE, "no keys", handshake=True)
    assert dialled.lines() == [f"app: {HERE}: no keys", f"app: connected to {HERE}", f"app: {HERE}: no keys"]


def test_reasons_that_alternate_flood_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """In a minute, five changes are shown; later changes are shown again."""
    dialled = Dialled(caplog)
    for number in range(59):
        dialled.log.refused(HERE, ("one", "two")[number % 2], handshake=True)
        dialled.clock.advance(1)
    assert len([line for line in dialled.lines() if line.endswith((" one", " two"))]) == 5
    dialled.clock.advance(120)
    dialled.lines()
    dialled.log.refused(HERE, "two", handshake=True)
    assert dialled.lines() == [f"app: {HERE}: two"]


@pytest.mark.parametrize("handshake", [True, False])
def test_an_absence_behind_a_refusal_is_one_line_and_the_return_is_another(
    caplog: pytest.LogCaptureFixture, handshake: bool
) -> None:
    """The absence of a peer after a refusal is one line, and its return is another."""
    dialled = Dialled(caplog)
    dialled.log.refused(HERE, "no", handshake=handshake)
    dialled.log.redialled(HERE)
    dialled.clock.advance(60)
    dialled.log.connected(HERE)
    refused, absent, back = dialled.lines()
    assert (refused, back) == (f"app: {HERE}: no", f"app: connected to {HERE}")
    assert "no answer" in absent


def test_connections_that_come_and_go_are_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    """Unstable connections log five lines a minute, and the number of the others."""
    dialled = Dialled(caplog)
    for _ in range(100):
        dialled.log.connected(HERE)
        dialled.log.lost(HERE)
    dialled.log.close()
    lines = dialled.lines()
    assert len(lines) == 6
    assert lines[-1] == f"app: {HERE}: connected: 95 more lines like these were not shown"
    assert dialled.clock.getDelayedCalls() == []


def test_what_is_taken_back_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    """Endpoints that are disconnected, over inproc, or were never opened are not reported as absent."""
    dialled = Dialled(caplog)
    dialled.log.forget(HERE)
    dialled.log.dial("inproc://here")
    for call in (dialled.log.connected, dialled.log.lost, dialled.log.ended, dialled.log.told):
        call(HERE)
    dialled.attempts("closed")
    assert dialled.clock.getDelayedCalls() == []
    assert dialled.lines() == []
