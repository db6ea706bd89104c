"""The frames of snapshots: test vectors, round trips, and earlier versions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.test_wire import named
from tests.support import wire_vectors
from zroute.errors import EnvelopeError
from zroute.messages.control import pack_statements, parse_statement
from zroute.messages.recovery import REQUEST_MAX, parse_recovery_request
from zroute.messages.snapshots import (
    SnapshotRequest,
    pack_snapshot_end,
    pack_snapshot_request,
    parse_snapshot_end,
    parse_snapshot_request,
)
from zroute.messages.wire import (
    NUL,
    SNAPSHOT_NUMBERS,
    Kind,
    pack_kept,
    parse,
    parse_header,
    parse_kept,
    snapshot_number,
)
from zroute.options import MAX_TOPIC
from zroute.receiving import snapshots
from zroute.receiving.snapshots import SnapshotRequests

VECTORS = wire_vectors()


def of_kind(kind: str) -> list[Any]:
    """Return the vectors of a kind as test parameters."""
    return named([each for each in VECTORS["snapshots"] if each["kind"] == kind])


@pytest.mark.parametrize("vector", of_kind("snapshot"))
def test_each_snapshot_is_sent_and_read_as_it_says(vector: dict[str, Any]) -> None:
    """A snapshot has flag 02, and the number of each subscription under its length plus one."""
    marker, topic, body = (bytes.fromhex(vector[name]) for name in ("marker", "topic", "body"))
    frame = bytes.fromhex(vector["frame"])
    numbers = [(length, int(number)) for length, number in vector["numbers"]]
    epoch, sent_at = int(vector["epoch"], 16), int(vector["sent_at_ns"])
    given = marker, int(vector["kept"]), topic, vector["codec"], body, None
    assert pack_kept(*given, epoch=epoch, sent_at=sent_at, numbers=numbers) == frame
    header = parse_header(frame.partition(NUL)[2])
    assert (header.kind, header.keeps, header.sequence) == (Kind.KEPT, True, int(vector["kept"]))
    assert [(length, snapshot_number(header, length)) for length, _ in numbers] == numbers
    assert snapshot_number(header, 200) == 0
    envelope = parse((frame,), 1.0)
    assert (envelope.origin, envelope.kept, envelope.sequence) == ("snapshot", False, 0)
    assert (envelope.topic.wire, envelope.body, envelope.codec) == (topic, body, vector["codec"])


@pytest.mark.parametrize("vector", of_kind("end"))
def test_the_end_of_an_answer_has_the_number_of_its_request(vector: dict[str, Any]) -> None:
    """The inner topic is empty, and the inner body is the number; another end has no body."""
    frame, marker = bytes.fromhex(vector["frame"]), bytes.fromhex(vector["marker"])
    epoch, sent_at = int(vector["epoch"], 16), int(vector["sent_at_ns"])
    body = pack_snapshot_end(vector["number"])
    assert pack_kept(marker, int(vector["kept"]), b"", 0, body, None, epoch=epoch, sent_at=sent_at) == frame
    rest = frame.partition(NUL)[2]
    assert parse_kept(rest[parse_header(rest).size :]) == (b"", body)
    assert parse_snapshot_end(body) == vector["number"]
    assert parse_snapshot_end(b"") is None


@pytest.mark.parametrize("vector", of_kind("statement"))
def test_a_statement_says_that_there_are_snapshots(vector: dict[str, Any]) -> None:
    """Flag 04 of a statement, and no other byte, shows that a publisher answers requests."""
    numbers = [(bytes.fromhex(prefix), int(number)) for prefix, number in vector["numbers"]]
    given = Kind.JOIN, bytes.fromhex(vector["marker"]), numbers
    facts: dict[str, Any] = {"epoch": int(vector["epoch"], 16), "name": vector["publisher_name"], "partial": False}
    facts["sent_at"] = int(vector["sent_at_ns"])
    (frame,) = pack_statements(*given, **facts, snapshots=True)
    assert frame == bytes.fromhex(vector["frame"])
    rest = frame.partition(NUL)[2]
    assert parse_statement(rest[parse_header(rest).size :]).snapshots
    (other,) = pack_statements(*given, **facts)
    assert sum(one != another for one, another in zip(frame, other, strict=True)) == 1


@pytest.mark.parametrize("vector", of_kind("request"))
def test_each_request_is_sent_and_read_as_it_says(vector: dict[str, Any]) -> None:
    """A request is what the vector says; for a publisher of an earlier version, it is an unknown one."""
    topic = bytes.fromhex(vector["topic"])
    request = SnapshotRequest(
        int(vector["subscriber"], 16), vector["number"], int(vector["epoch"], 16), bytes.fromhex(vector["prefix"])
    )
    assert pack_snapshot_request(request) == topic
    assert parse_snapshot_request(topic) == request
    with pytest.raises(EnvelopeError, match="a request of the unknown kind 2"):
        parse_recovery_request(topic)


@pytest.mark.parametrize("vector", named(VECTORS["malformed_snapshots"]))
def test_each_malformed_request_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    """A malformed request is an EnvelopeError, which the publisher ignores."""
    with pytest.raises(EnvelopeError, match=vector["reason"]):
        parse_snapshot_request(bytes.fromhex(vector["topic"]))


@given(st.binary(max_size=MAX_TOPIC), st.integers(0, 2**48 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1))
def test_a_request_arrives_as_it_was(prefix: bytes, subscriber: int, number: int, epoch: int) -> None:
    """Any request survives the round trip, and passes with CURVE."""
    request = SnapshotRequest(subscriber, number, epoch, prefix)
    packed = pack_snapshot_request(request)
    assert parse_snapshot_request(packed) == request
    assert len(packed) <= REQUEST_MAX


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1)), max_size=40, unique_by=lambda each: each[0]))
def test_the_numbers_of_a_snapshot_arrive(numbers: list[tuple[int, int]]) -> None:
    """Up to 15 numbers arrive; the others are unknown, and only an absent number with room for it is 0."""
    numbers.sort()
    frame = pack_kept(b"m", 1, b"t", 1, b"", None, epoch=7, sent_at=5, numbers=numbers)
    header = parse_header(frame.partition(NUL)[2])
    carried = [each for each in numbers if each[1] and each[0] < MAX_TOPIC][:SNAPSHOT_NUMBERS]
    full = len(carried) == SNAPSHOT_NUMBERS
    for length, number in numbers:
        known = length < MAX_TOPIC and ((length, number) in carried or not full)
        assert snapshot_number(header, length) == (number if known else None)


# -- the subscriber's requests -------------------------------------------------------------------------------


class Asker:
    """The requests of a subscriber, and those that it has sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.repeated = 0
        self.requests = SnapshotRequests(5, self.send, self.repeat)
        self.requests.stated(7, snapshots=True)

    def send(self, topic: bytes) -> None:
        """Record a request."""
        request = parse_snapshot_request(topic)
        assert (request.subscriber, request.epoch) == (5, 7)
        self.sent.append((request.number, request.prefix))

    def repeat(self) -> None:
        """Count a repetition."""
        self.repeated += 1

    def until(self, start: float, end: float) -> None:
        """Let the time pass."""
        for tick in range(int(start * 4), int(end * 4)):
            self.requests.tick(tick / 4, emptied=True)


def test_losses_of_a_moment_are_one_request() -> None:
    """Many gaps before a tick cause one request; a publisher without snapshots is never asked."""
    asker = Asker()
    for _ in range(100):
        asker.requests.lost(7, (b"a.",), 0.0)
        asker.requests.lost(8, (b"a.",), 0.0)
    asker.requests.tick(0.0, emptied=False)
    assert asker.sent == []
    asker.until(0, 1)
    assert asker.sent == [(1, b"a.")]
    assert asker.requests.awaits(7)
    asker.requests.ended(7, 1)
    assert not asker.requests.awaits(7)


def test_a_subscriber_that_always_loses_asks_rarely() -> None:
    """With a loss in each tick, the pauses are 1, 2, 4 … 60 s; after 10 quiet seconds, 1 s again."""
    asker = Asker()
    for tick in range(4 * 300):
        asker.requests.lost(7, (b"a.",), tick / 4)
        asker.requests.tick(tick / 4, emptied=True)
        if asker.sent:
            asker.requests.ended(7, asker.sent[-1][0])
    assert len(asker.sent) == 10  # at 0, 1, 3, 7, 15, 31, 63, 123, 183 and 243
    asker.until(300, 400)
    asker.requests.ended(7, asker.sent[-1][0])
    asker.until(400, 470)
    del asker.sent[:]
    asker.requests.lost(7, (b"a.",), 470.0)
    asker.until(470, 470.5)
    asker.requests.lost(7, (b"a.",), 470.5)
    asker.until(470.5, 472)
    assert len(asker.sent) == 2


def test_a_request_without_an_answer_is_repeated_under_its_number() -> None:
    """After 2, 4, 8 … s, six times in all; then the subscriber gives up."""
    asker = Asker()
    asker.requests.lost(7, (b"a.",), 0.0)
    asker.until(0, 200)
    assert asker.sent == [(1, b"a.")] * 6
    assert asker.repeated == 5
    assert not asker.requests.awaits(7)


def test_a_loss_before_the_statement_is_not_forgotten() -> None:
    """The answer to the join may be lost or late: when it arrives, the subscriber asks for everything."""
    asker = Asker()
    asker.requests.end(7)
    asker.requests.lost(7, (b"",), 0.0, blocks=False)
    asker.until(0, 1)
    assert asker.sent == []
    asker.requests.stated(7, snapshots=True)
    asker.until(1, 2)
    assert asker.sent == [(1, b"")]


def test_invented_publishers_do_not_replace_one_in_use() -> None:
    """However many publishers with snapshots there are, each is asked after its losses."""
    asker = Asker()
    for epoch in range(100, 3_000):
        asker.requests.stated(epoch, snapshots=True)
    asker.requests.lost(7, (b"a.",), 0.0)
    asker.until(0, 1)
    assert asker.sent == [(1, b"a.")]


def test_many_losses_become_one_request_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """If too many requests are open, also of other publishers, all snapshots of a publisher are asked for at once."""
    monkeypatch.setattr(snapshots, "ASKS_MAX", 3)
    asker = Asker()
    asker.requests.lost(7, (b"a.", b"b.", b"c.", b"d.", b"e."), 0.0)
    asker.until(0, 1)
    assert asker.sent == [(1, b"a."), (2, b"b."), (3, b"c."), (4, b"")]
    asker.requests.lost(7, (b"c.", b"d."), 1.0)
    asker.until(1, 2)
    assert asker.sent[4:] == [(5, b"c."), (6, b"")]


def test_a_publisher_that_has_ended_is_not_asked() -> None:
    """After a goodbye, or a statement without the flag, no request is sent."""
    asker = Asker()
    asker.requests.lost(7, (b"a.",), 0.0)
    asker.requests.stated(7, snapshots=False)
    asker.until(0, 10)
    assert asker.sent == []
    assert not asker.requests.awaits(7)
