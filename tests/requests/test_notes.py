"""Messages about requests that were sent: cancellations and credits, in order, also while a lane has no room."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from twisted.internet.task import Clock

from zroute.requests.lanes import Lane, Requests


class Wire:
    """A lane whose peer may have no room."""

    def __init__(self) -> None:
        self.requests = Requests(Clock(), window=2, timed_out=lambda id, seconds: TimeoutError())
        self.room = 100
        self.sent: list[bytes] = []
        self.lane = Lane(self.requests, self._send)
        self.requests.add(self.lane)

    def _send(self, frames: Sequence[bytes]) -> bool:
        if self.room:
            self.room -= 1
            self.sent.append(frames[-1])
        return bool(self.room or (self.sent and self.sent[-1] is frames[-1]))

    def note(self, text: bytes) -> None:
        """Send a note."""
        self.lane.note((b"id", b"", text))


def test_a_note_is_sent_at_once_if_there_is_room() -> None:
    """It does not wait for requests in the queue."""
    wire = Wire()
    for body in (b"0", b"1", b"2"):
        wire.requests.make([body], None)
    wire.note(b"x")
    assert wire.sent == [b"0", b"1", b"x"]


def test_notes_wait_for_room_in_their_order_and_before_requests() -> None:
    """When the lane has room again, the notes are sent first, then requests."""
    wire = Wire()
    wire.room = 0
    wire.note(b"x")
    wire.note(b"y")
    wire.requests.make([b"request"], None)
    assert wire.sent == []
    wire.room = 1
    wire.lane.writable()
    assert wire.sent == [b"x"]
    wire.note(b"z")
    wire.room = 1
    wire.lane.writable()
    assert wire.sent == [b"x", b"y"]
    wire.room = 100
    wire.lane.writable()
    assert wire.sent == [b"x", b"y", b"z", b"request"]


@pytest.mark.parametrize("known", [True, False])
def test_notes_to_a_server_that_is_gone_are_dropped(known: bool) -> None:
    """Another server knows nothing about these requests."""
    wire = Wire()
    wire.room = 0
    wire.note(b"x")
    wire.lane.lost((lambda: ConnectionError()) if known else None)
    wire.room = 100
    wire.lane.writable()
    assert wire.sent == []


def test_late_replies_are_counted_when_they_arrive() -> None:
    """``on_late`` is called for replies to unknown, answered and abandoned requests."""
    late: list[None] = []
    requests = Requests(Clock(), timed_out=lambda id, seconds: TimeoutError(), on_late=lambda: late.append(None))
    lane = Lane(requests, lambda frames: True)
    requests.add(lane)
    lane.received(b"unknown", [b""])
    requests.make([b"a"], None, b"a")
    lane.received(b"a", [b""])
    lane.received(b"a", [b""])
    given_up = requests.make([b"b"], None, b"b")
    given_up.addErrback(lambda _: None)
    given_up.cancel()
    lane.received(b"b", [b""])
    assert len(late) == requests.late == 3
