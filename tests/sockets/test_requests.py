"""The queue of requests without sockets: order, windows, and requests without a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tests.support import sized
from zroute.requests.lanes import Lane, Requests

WINDOW, FORGOTTEN = 3, 60.0


class Wire:
    """A lane whose peer is this object: it may have room or not, and records the requests sent to it."""

    def __init__(self, requests: Requests) -> None:
        self.open = True
        self.sent: list[tuple[bytes, tuple[bytes, ...]]] = []
        self.lane = Lane(requests, self._send)
        requests.add(self.lane)

    def _send(self, frames: Sequence[bytes]) -> bool:
        if self.open:
            id, empty, *parts = frames
            assert empty == b""
            self.sent.append((id, tuple(parts)))
        return self.open

    @property
    def bodies(self) -> list[bytes]:
        """The first part of each request that was sent."""
        return [parts[0] for _, parts in self.sent]

    def reply(self, number: int, *parts: bytes) -> bool:
        """Answer the request with this number."""
        return self.lane.received(self.sent[number][0], list(parts))


class Fixture:
    """Requests on a virtual clock, their results, and a lane."""

    def __init__(self, lanes: int = 1) -> None:
        self.clock = Clock()
        self.requests = Requests(
            self.clock, window=WINDOW, forgotten=FORGOTTEN, timed_out=lambda id, seconds: TimeoutError(seconds)
        )
        self.ended: list[Any] = []
        self.wires = [Wire(self.requests) for _ in range(lanes)]

    def ask(self, body: bytes, timeout: float | None = None) -> Deferred[Any]:
        """Make a request; its result is appended to `ended`."""
        reply = self.requests.make([body], timeout)
        return reply.addCallbacks(self.ended.append, lambda failure: self.ended.append(failure.type))


def test_requests_are_sent_in_order_up_to_the_window() -> None:
    """Beyond the window a request is sent when another is answered; each gets its own reply."""
    case = Fixture()
    wire = case.wires[0]
    for body in (b"0", b"1", b"2", b"3", b"4"):
        case.ask(body)
    assert wire.bodies == [b"0", b"1", b"2"]
    assert (case.requests.waiting, case.requests.unanswered) == (2, 3)
    assert wire.reply(1, b"one")
    assert wire.bodies == [b"0", b"1", b"2", b"3"]
    assert wire.reply(0, b"zero")
    assert case.ended == [[b"one"], [b"zero"]]
    assert case.requests.waiting == 0


def test_every_request_has_an_id_of_its_own() -> None:
    """Each request has a unique id of 16 bytes."""
    case = Fixture()
    wire = case.wires[0]
    for number in range(1000):
        case.ask(b"x")
        wire.reply(number, b"y")
    ids = {id for id, _ in wire.sent}
    assert len(ids) == 1000
    assert {len(id) for id in ids} == {16}


@pytest.mark.parametrize("way", ["timeout", "cancel"])
def test_what_is_not_sent_when_it_is_given_up_never_is(way: str) -> None:
    """A request that fails before a server connects is never sent."""
    case = Fixture()
    wire = case.wires[0]
    wire.open = False
    given_up = case.ask(b"0", timeout=5.0)
    case.ask(b"1")
    case.clock.advance(5.0) if way == "timeout" else given_up.cancel()
    assert case.ended == [TimeoutError if way == "timeout" else CancelledError]
    wire.open = True
    wire.lane.writable()
    assert wire.bodies == [b"1"]
    assert case.requests.timed == 0


@pytest.mark.parametrize("way", ["timeout", "cancel"])
def test_what_was_sent_keeps_its_place_until_its_reply(way: str) -> None:
    """A silent server gets no more requests than the window, however many time out."""
    case = Fixture()
    wire = case.wires[0]
    for number in range(100):
        given_up = case.ask(b"%d" % number, timeout=0.1)
        case.clock.advance(0.1) if way == "timeout" else given_up.cancel()
    assert len(case.ended) == 100
    assert wire.bodies == [b"0", b"1", b"2"]
    case.ask(b"new")
    assert not wire.reply(1, b"late")
    assert case.requests.late == 1
    assert wire.bodies == [b"0", b"1", b"2", b"new"]
    assert wire.reply(3, b"in time")
    assert case.ended[-1] == [b"in time"]


def test_what_is_never_answered_is_forgotten() -> None:
    """An unanswered request makes room after a minute, and a reply after that counts as late."""
    case = Fixture()
    wire = case.wires[0]
    for number in range(WINDOW):
        case.ask(b"%d" % number, timeout=1.0)
    case.ask(b"next", timeout=None)
    case.clock.advance(1.0)
    case.clock.advance(FORGOTTEN - 0.1)
    assert len(wire.sent) == WINDOW
    case.clock.advance(0.1)
    assert wire.bodies[-1] == b"next"
    assert not wire.reply(0, b"very late")
    assert case.requests.late == 1


def test_a_server_that_answers_later_requests_is_not_held_up_by_those_it_ignored() -> None:
    """A reply makes room for the earlier requests that were given up: the server has read them."""
    case = Fixture()
    wire = case.wires[0]
    case.ask(b"ignored", timeout=1.0)
    case.ask(b"slow", timeout=None)
    case.clock.advance(1.0)
    for number in range(20):
        case.ask(b"%d" % number)
        assert wire.reply(len(wire.sent) - 1, b"ok")
        assert wire.lane.load == 1
    assert wire.reply(1, b"at last")
    assert not wire.reply(0, b"late")
    assert case.requests.late == 1
    assert case.requests.timed == 0


def test_a_reply_counts_once() -> None:
    """A repeated reply, and a reply with an unknown id, have no effect."""
    case = Fixture()
    case.ask(b"0")
    assert case.wires[0].reply(0, b"a")
    assert not case.wires[0].reply(0, b"b")
    assert not case.wires[0].lane.received(b"made up", [b"c"])
    assert (case.ended, case.requests.late) == ([[b"a"]], 2)


def test_the_server_with_the_fewest_unanswered_is_asked() -> None:
    """Two servers take turns; a silent one gets no more requests when the other has fewer."""
    case = Fixture(lanes=2)
    silent, quick = case.wires
    for number in range(20):
        case.ask(b"%d" % number)
        while quick.lane.load:
            quick.reply(len(quick.sent) - 1, b"ok")
    assert len(silent.sent) <= WINDOW
    assert len(quick.sent) + len(silent.sent) == 20


def test_what_a_lost_server_had_fails_and_the_rest_goes_elsewhere() -> None:
    """The sent requests of a lost server fail at once; waiting requests go to the other server."""
    case = Fixture(lanes=2)
    first, second = case.wires
    for number in range(10):
        case.ask(b"%d" % number)
    had = len(first.sent)
    first.open = False
    case.requests.remove(first.lane)
    first.lane.lost(ConnectionError)
    assert case.ended == [ConnectionError] * had
    for number in range(10 - had):
        assert second.reply(number, b"ok")
    assert case.ended[had:] == [[b"ok"]] * (10 - had)
    assert case.requests.timed == 0


def test_a_loss_without_an_error_makes_room_and_still_takes_replies() -> None:
    """If the lost peer is unknown, requests wait on, and new requests are sent."""
    case = Fixture()
    wire = case.wires[0]
    for number in range(5):
        case.ask(b"%d" % number)
    wire.lane.lost(None)
    assert len(wire.sent) == 5
    assert case.ended == []
    assert wire.reply(0, b"from another peer")
    assert case.ended == [[b"from another peer"]]
    assert wire.lane.load == 2


def test_nothing_is_sent_while_the_server_is_away() -> None:
    """A socket that still accepts messages for an ended connection gets none."""
    case = Fixture()
    wire = case.wires[0]
    case.ask(b"0")
    wire.lane.down = True
    wire.lane.lost(ConnectionError)
    case.ask(b"1")
    wire.lane.writable()
    assert wire.bodies == [b"0"]
    wire.lane.up()
    assert wire.bodies == [b"0", b"1"]


def test_the_end_fails_what_is_left() -> None:
    """close fails each waiting and sent request once, and leaves no timer."""
    case = Fixture()
    for number in range(5):
        case.ask(b"%d" % number, timeout=10.0)
    case.requests.close(ConnectionError)
    assert case.ended == [ConnectionError] * 5
    assert case.requests.timed == 0


def test_a_request_that_is_cancelled_during_the_end_leaves_no_timer() -> None:
    """An errback at the close may cancel other requests without leaving a timer."""
    case = Fixture()
    replies = [case.ask(b"%d" % number, timeout=10.0) for number in range(2)]
    replies[0].addBoth(lambda _: replies[1].cancel())
    case.requests.close(ConnectionError)
    assert case.ended == [ConnectionError, CancelledError]
    assert case.requests.timed == 0


def test_callbacks_may_ask_and_cancel() -> None:
    """Callbacks of replies, losses and timeouts may request and cancel; each Deferred fires once."""
    case = Fixture()
    wire = case.wires[0]
    others = [case.ask(b"%d" % number, timeout=5.0) for number in range(5)]
    others[0].addCallback(lambda _: (others[4].cancel(), case.ask(b"from a reply")))
    others[1].addCallback(lambda _: case.ask(b"from a loss"))
    assert wire.reply(0, b"ok")
    assert case.ended == [[b"ok"], CancelledError]
    wire.lane.lost(ConnectionError)
    assert case.ended[2:] == [ConnectionError] * 3
    assert wire.bodies == [b"0", b"1", b"2", b"3", b"from a reply", b"from a loss"]
    assert case.requests.timed == 0


class Conversation(RuleBasedStateMachine):
    """A random conversation of a client with two servers, and its invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.case = Fixture(lanes=2)
        self.made = 0
        self.results: dict[int, list[Any]] = {}
        self.replies: dict[int, Deferred[Any]] = {}

    @rule(timeout=st.one_of(st.none(), st.floats(0.1, 5.0)))
    def ask(self, timeout: float | None) -> None:
        number, self.made = self.made, self.made + 1
        ended = self.results[number] = []
        reply = self.case.requests.make([b"%d" % number], timeout)
        self.replies[number] = reply.addCallbacks(ended.append, lambda failure: ended.append(failure.type))

    @rule(seconds=st.floats(0.1, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.case.clock.advance(seconds)

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.replies[data.draw(st.integers(0, self.made - 1))].cancel()

    @rule(data=st.data(), which=st.integers(0, 1))
    def reply(self, data: st.DataObject, which: int) -> None:
        wire = self.case.wires[which]
        if wire.sent:
            number = data.draw(st.integers(0, len(wire.sent) - 1))
            body = wire.sent[number][1][0]
            before = list(self.results[int(body)])
            told = wire.reply(number, body)
            assert told == (self.results[int(body)] != before)
            assert not told or self.results[int(body)] == [[body]]

    @rule(which=st.integers(0, 1), is_open=st.booleans())
    def flow(self, which: int, is_open: bool) -> None:
        wire = self.case.wires[which]
        wire.open = is_open
        wire.lane.writable()

    @rule(which=st.integers(0, 1))
    def come_and_go(self, which: int) -> None:
        lane = self.case.wires[which].lane
        if lane.down:
            lane.up()
        else:
            lane.down = True
            lane.lost(ConnectionError)

    @rule(which=st.integers(0, 1), fails=st.booleans())
    def lose(self, which: int, fails: bool) -> None:
        self.case.wires[which].lane.lost(ConnectionError if fails else None)

    @invariant()
    def nothing_ends_twice(self) -> None:
        assert all(len(ended) <= 1 for ended in self.results.values())

    @invariant()
    def no_window_is_exceeded(self) -> None:
        for wire in self.case.wires:
            assert 0 <= wire.lane.load <= WINDOW
            unanswered = wire.lane.sent.values()
            assert wire.lane.load == sum(request.counts for request in unanswered)
            assert wire.lane.given_up == sum(not request.waits for request in unanswered)

    @invariant()
    def each_is_sent_once_and_none_after_its_end(self) -> None:
        bodies = [body for wire in self.case.wires for body in wire.bodies]
        assert len(bodies) == len(set(bodies))
        unfinished = [number for number, ended in self.results.items() if not ended]
        waiting = [number for number in unfinished if b"%d" % number not in bodies]
        assert self.case.requests.waiting == len(waiting)

    @invariant()
    def nothing_waits_beside_an_open_lane_with_room(self) -> None:
        if self.case.requests.waiting:
            assert all(wire.lane.blocked or wire.lane.down or wire.lane.load == WINDOW for wire in self.case.wires)

    def teardown(self) -> None:
        self.case.requests.close(ConnectionError)
        assert all(len(ended) == 1 for ended in self.results.values())
        assert self.case.clock.getDelayedCalls() == []


TestConversation = Conversation.TestCase
TestConversation.__doc__ = (
    "Whatever happens, every request ends exactly once, and no server is sent more than its window."
)
TestConversation.settings = settings(max_examples=sized(100, 15), stateful_step_count=40)
