"""Refused connections: the pauses after them, and the reasons in the log."""

from __future__ import annotations

import errno

from zroute.sockets.events import SocketEvent
from zroute.sockets.refusals import PAUSE_MAX, Refusals

HERE, THERE = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"
SURE = SocketEvent("handshake_failed_protocol", HERE, 0)
CLOSED = SocketEvent("handshake_failed_no_detail", HERE, errno.EPIPE)
REFUSED = SocketEvent("handshake_failed_auth", HERE, 400)


class Reasons:
    """The reasons that a `Refusals` gives for events."""

    def __init__(self) -> None:
        self.refusals = Refusals()

    def of(self, *faults: SocketEvent, endpoint: str = HERE) -> list[str]:
        """Return the reason for each event; alone, its reason would be the end of its name."""
        return [self.refusals.reason(endpoint, fault, fault.name.rpartition("_")[2]) for fault in faults]


def test_a_sure_reason_is_kept_while_the_peer_closes_connections() -> None:
    """The log does not alternate between two reasons for one state of the peer."""
    assert Reasons().of(SURE, CLOSED, CLOSED, SURE, CLOSED, CLOSED, CLOSED) == ["protocol"] * 7


def test_a_sure_reason_is_dropped_when_it_is_not_seen_again() -> None:
    """The peer was restarted with a key, which is not the expected one."""
    assert Reasons().of(SURE, *[CLOSED] * 5) == ["protocol"] * 4 + ["detail"] * 2


def test_another_sure_event_ends_the_reason() -> None:
    """The peer was restarted with keys, and refuses ours; then another program closes the connection."""
    assert Reasons().of(SURE, REFUSED, CLOSED) == ["protocol", "auth", "detail"]


def test_a_connection_ends_the_reason_and_other_endpoints_have_their_own() -> None:
    """After a handshake, or a new endpoint, nothing is known."""
    reasons = Reasons()
    assert reasons.of(SURE) == ["protocol"]
    assert reasons.of(CLOSED, endpoint=THERE) == ["detail"]
    reasons.refusals.forget(HERE)
    assert reasons.of(CLOSED) == ["detail"]


PAUSES = [1.0, 2.0, 4.0, 8.0, 16.0, PAUSE_MAX, PAUSE_MAX]


def test_the_pauses_after_refusals_double_up_to_a_maximum() -> None:
    """Each endpoint has its own pauses."""
    refusals = Refusals()
    assert [refusals.refuse(HERE) for _ in PAUSES] == PAUSES
    assert refusals.refuse(THERE) == PAUSES[0]


def test_the_pauses_after_connections_that_end_at_once_double_too() -> None:
    """The first such end has no pause, because a publisher may have been restarted; nor has a lasting connection."""
    refusals, now = Refusals(), 0.0

    def pause(seconds: float) -> float:
        nonlocal now
        refusals.attempted(HERE)
        refusals.began(HERE, now)
        now += seconds
        found = refusals.ended(HERE, now)
        now += found
        return found

    assert [pause(0.1) for _ in [0.0, *PAUSES]] == [0.0, *PAUSES]
    assert [pause(seconds) for seconds in (100.0, 0.1, 0.1)] == [0.0, 0.0, PAUSES[0]]
