"""A peer that floods a publisher with requests: the work of each turn of the reactor is bounded.

The work is counted in function calls, because times depend on the machine. A turn reads at most `READ_BUDGET` requests,
and a timer continues each 10 ms.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from zroute import App, History
from zroute.clock import TICK
from zroute.messages.control import pack_marker
from zroute.messages.recovery import Past, Since, SinceMode, pack_past_request, pack_recovery_request
from zroute.messages.snapshots import SnapshotRequest, pack_snapshot_request
from zroute.options import READ_BUDGET
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.publishing.snapshots import SnapshotCalls, Snapshots

PREFIXES = (b"", b"a", b"b", b"a.", b"b.", *(b"%c.%d" % (name, n) for name in b"ab" for n in range(3)))
KEPT = 20_000
SUBSCRIBERS = 2_000
JOINED = 20
A_REQUEST = 150
"""The calls for a request on average: most of them only wait, and a few are answered."""
A_PERIOD = 120_000
"""The calls in 10 ms: a scan of a block, answers of some 256 KB, and a look at each waiting request."""


def calls_of(function: Callable[[], object]) -> int:
    """Return the number of function calls while ``function`` runs, in Python and in C."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


class Publisher:
    """A session with two histories and 1,000 topics with snapshots; what it sends is counted only."""

    def __init__(self) -> None:
        self.clock, self.sent = Clock(), 0
        queue = SendQueue(self.clock, limit=1000, timeout=30, lost=lambda *_: None)
        self.session = PublisherSession(
            self.clock, queue, self.send, self.now_ns, "app", "name", logging.getLogger("test")
        )
        self.rings = [self.session.ring(History(messages=KEPT)) for _ in range(2)]
        app, kept = App(pub="tcp://127.0.0.1:1"), self.session.kept
        app.publisher("a.{n}", int, snapshot=self.full, topics=lambda: [{"n": n} for n in range(1_000)])
        ignore = lambda *_: None  # noqa: E731
        given = ignore, lambda topic: False, lambda topic: 0, ignore, ignore, kept.add_state, kept.discard_state
        calls = SnapshotCalls(*given)
        kept.snapshots = Snapshots(self.clock, self.now_ns, 1_000, app.compile().parts.outlets, calls)
        for subscriber in range(JOINED):
            for topic in (*PREFIXES, pack_marker(subscriber << 16 | 1, PREFIXES)):
                self.session.subscription(topic, True)
        one = self.session.framer(self.now_ns, keeps=False)
        several = self.session.coalesced_framer(keeps=False)
        for number in range(KEPT):
            for ring, name in zip(self.rings, (b"a.%d", b"b.%d"), strict=True):
                topic = name % (number % 3)
                coalesced = number % 7 == 0
                frame = several(topic, 1, [b"1"] * 3, self.now_ns()) if coalesced else one(topic, 1, b"1", None)
                assert isinstance(frame, bytes)
                ring.keep(frame)
            if number % 500 == 0:
                self.pass_time(TICK)
        self.pass_time(60)

    def full(self, n: str) -> int:
        return 1

    def now_ns(self) -> int:
        return int(self.clock.seconds() * 1e9)

    def send(self, frame: bytes) -> bool:
        self.sent += 1
        return True

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)


def requests(kind: str, chance: random.Random, epoch: int) -> bytes:
    """Return a random request of a kind."""
    number, prefix, subscriber = chance.randrange(2**16), chance.choice(PREFIXES), chance.randrange(SUBSCRIBERS)
    if kind == "snapshots":
        wanted = prefix + b"%d" % chance.randrange(1_000)
        return pack_snapshot_request(SnapshotRequest(subscriber % JOINED, number, epoch, wanted[: chance.randrange(6)]))
    if kind == "a range":
        ranges = [(chance.randrange(1, 2 * KEPT), 2**63)]
        return pack_recovery_request(subscriber, number, epoch, prefix, ranges)[0]
    if kind == "single messages":
        ranges = [(each, each) for each in sorted(chance.sample(range(1, KEPT), 30))]
        return pack_recovery_request(subscriber, number, epoch, prefix, ranges)[0]
    values = {"all": 0, "last": 2**40, "age": 2**63, "time": chance.randrange(10**11)}
    since = Since(SinceMode[kind.upper()], values[kind])
    position = chance.choice((0, chance.randrange(80) << 16 | chance.randrange(5_000))) if kind == "all" else 0
    return pack_past_request(subscriber, number, epoch, prefix, Past(chance.randrange(2 * KEPT), position, since))


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    """A publisher that is reused, because it takes a second to make."""
    return Publisher()


@pytest.mark.parametrize("kind", ["a range", "single messages", "all", "last", "age", "time", "snapshots"])
def test_a_flood_of_requests_costs_a_bounded_number_of_calls_in_each_turn(kind: str, publisher: Publisher) -> None:
    """A peer sends as many requests as a turn reads, in each of 30 turns, and invents subscribers."""
    chance, session = random.Random(1), publisher.session
    turns, periods = list[int](), list[int]()
    sent = publisher.sent

    def read(topics: list[bytes]) -> None:
        for topic in topics:
            session.subscription(topic, True)
            session.subscription(topic, False)

    for _ in range(30):
        topics = [requests(kind, chance, session.epoch) for _ in range(READ_BUDGET)]
        turns.append(calls_of(lambda topics=topics: read(topics)))  # type: ignore[misc]
        periods.append(calls_of(lambda: publisher.clock.advance(0.01)))
    publisher.pass_time(3)  # the results of searches are forgotten
    assert publisher.sent > sent
    assert max(turns) < READ_BUDGET * A_REQUEST
    assert max(periods) < A_PERIOD
