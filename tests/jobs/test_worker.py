"""The worker of an owner: credits, results, signs of life, and the ends of connections."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.task import Clock

from zroute.errors import EnvelopeError
from zroute.jobs.worker import JobWorker, WorkerJob, WorkLane
from zroute.messages.jobs import (
    ACCEPTED,
    ALIVE,
    CHANGED,
    DONE,
    FAILED,
    GIVEN_BACK,
    JOB,
    OFFER,
    REJECTED,
    STOPPED,
    UNKNOWN,
    pack_job_meta,
    pack_terms,
    parse_offer,
)
from zroute.messages.topics import matches, parse
from zroute.options import JOB_TEXT
from zroute.throttle import ThrottledLog


def id_of(number: int) -> bytes:
    """Return the id of a job."""
    return number.to_bytes(16)


class Bench:
    """A worker with one handler, whose owner is played by the test. Jobs run until the test ends them."""

    def __init__(
        self, max_in_flight: int = 2, silent_after: float = 10.0, lists: Any = (1, lambda frame: None)
    ) -> None:
        self.clock = Clock()
        self.sent: list[tuple[bytes, ...]] = []
        self.running: list[WorkerJob] = []
        self.connections = 0
        self.is_full = False
        self.seconds = 0.0
        self.lane = WorkLane("resize", "farm.py:3", (parse("jobs.{kind}"),), max_in_flight, self.begin, lists)
        log = ThrottledLog(logging.getLogger("zroute"), self.clock)
        self.worker = JobWorker(self.clock, self.send, (self.lane,), self.find, log, "tcp://owner:1", "app")
        self.worker.reconnect = self.connect_again
        self.worker.connected()
        self.silent_after = silent_after
        self.accept()

    def accept(self) -> None:
        """Answer an offer."""
        self.worker.received([ACCEPTED, pack_terms(self.silent_after)])

    def connect_again(self) -> None:
        """Connect again."""
        self.connections += 1
        self.worker.connected()

    def begin(self, jobs: list[WorkerJob]) -> None:
        """Begin jobs; blocking ones take ``seconds``."""
        self.running += jobs
        self.clock.rightNow += self.seconds

    def find(self, topic: bytes) -> WorkLane | None:
        """Return the lane of a topic."""
        return self.lane if matches("jobs.*", topic) is not None else None

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send a message to the owner."""
        if self.is_full:
            return False
        self.sent.append(tuple(parts))
        return True

    def give(self, *numbers: int, topic: bytes = b"jobs.x", body: bytes = b"{}") -> None:
        """Send jobs to the worker."""
        for number in numbers:
            self.worker.received([JOB, id_of(number), topic, body, pack_job_meta(2, 1)])

    def told(self) -> list[tuple[bytes, ...]]:
        """Return the messages to the owner since the last call, without signs of life."""
        sent, self.sent = self.sent, []
        return [parts for parts in sent if parts[0] != ALIVE]


def test_an_offer_has_credits_for_a_few_jobs_ahead() -> None:
    """A worker asks for twice as many jobs as may run, and at most 16 more than that."""
    for most, credits in ((1, 2), (4, 8), (100, 116), (5000, 1000)):
        bench = Bench(most)
        ((kind, offer),) = bench.told()
        (offered,) = parse_offer((kind, offer))
        assert (offered.credits, [pattern.text for pattern in offered.patterns]) == (credits, ["jobs.*"])


def test_at_most_max_in_flight_jobs_run() -> None:
    """Others wait, and begin when one ends."""
    bench = Bench(2)
    bench.give(1, 2, 3, 4)
    assert [job.frame.id for job in bench.running] == [id_of(1), id_of(2)]
    bench.running[0].done()
    assert [job.frame.id for job in bench.running] == [id_of(1), id_of(2), id_of(3)]
    assert bench.told()[1:] == [(DONE, id_of(1))]


def test_results_are_reported_once() -> None:
    """Only the first result of a job counts; texts are bounded."""
    bench = Bench(4)
    bench.give(1, 2, 3)
    bench.told()
    one, two, three = bench.running
    one.failed("OSError: no")
    one.done()
    two.rejected("x" * 5000)
    three.give_back()
    assert bench.told() == [
        (FAILED, id_of(1), b"OSError: no"),
        (REJECTED, id_of(2), b"x" * JOB_TEXT),
        (GIVEN_BACK, id_of(3)),
    ]
    assert bench.lane.running == 0


def test_a_thousand_jobs_that_end_at_once_use_no_stack() -> None:
    """A plain function ends its job inside the call that begins it."""
    bench = Bench(1)
    bench.lane.begin = lambda jobs: jobs[0].done()
    bench.lane.running = 1
    bench.worker._most = 10**6
    bench.give(*range(5000))
    bench.lane.ended()
    assert len(bench.told()) == 5001


def test_a_sign_of_life_is_sent_each_second() -> None:
    """The timer does not depend on handlers; a message of another kind counts too."""
    bench = Bench()
    bench.give(1)
    bench.sent.clear()
    bench.clock.pump([1.0] * 4)
    assert bench.sent == [(ALIVE,)] * 3
    bench = Bench(silent_after=1.0)
    bench.sent.clear()
    bench.clock.advance(1.0)
    bench.clock.pump([0.25] * 4)
    assert len(bench.sent) >= 3


@pytest.mark.parametrize("parts", [[STOPPED], [UNKNOWN]])
def test_jobs_that_the_owner_has_taken_are_forgotten(parts: list[bytes]) -> None:
    """Jobs that have not begun are not begun; those that run go on, and are reported when they are done."""
    bench = Bench(1)
    bench.give(1, 2)
    bench.told()
    bench.worker.received(parts)
    assert [kind for kind, *_ in bench.told()] == ([OFFER] if parts == [UNKNOWN] else [])
    (job,) = bench.running
    job.done()
    assert bench.running == [job]
    assert bench.told() == [(DONE, id_of(1))]


def test_a_failure_of_a_job_that_the_owner_has_taken_is_not_reported() -> None:
    """It must not end the attempt of another worker."""
    bench = Bench(1)
    bench.give(1)
    bench.worker.received([UNKNOWN])
    bench.told()
    bench.running[0].failed("late")
    assert bench.told() == []


def test_a_job_that_still_runs_is_not_begun_twice() -> None:
    """An owner that gives a job to the same worker again gets the result of the first call."""
    bench = Bench(2)
    bench.give(1)
    bench.worker.received([UNKNOWN])
    bench.accept()
    bench.give(1)
    bench.told()
    (job,) = bench.running
    job.failed("no")
    assert bench.told() == [(FAILED, id_of(1), b"no")]


def test_a_lost_connection_forgets_waiting_jobs() -> None:
    """A new connection begins with an offer; nothing is sent in between."""
    bench = Bench(1)
    bench.give(1, 2)
    bench.told()
    bench.worker.disconnected()
    bench.running[0].done()
    bench.clock.pump([1.0] * 3)
    assert bench.sent == []
    bench.worker.connected()
    assert [kind for kind, *_ in bench.told()] == [OFFER]
    assert len(bench.running) == 1


def test_a_worker_that_was_frozen_gives_back_what_it_has_not_begun() -> None:
    """The owner has given these jobs to others, so they are not begun here."""
    for event in ("a result", "a sign of life"):
        bench = Bench(1, silent_after=2.0)
        bench.give(1, 2)
        bench.told()
        bench.clock.rightNow += 5.0
        if event == "a result":
            bench.running[0].done()
        else:
            bench.clock.advance(0)
            bench.running[0].done()
        assert sorted(bench.told()) == [(DONE, id_of(1)), (GIVEN_BACK, id_of(2))]
        assert len(bench.running) == 1


def test_a_function_that_blocks_the_reactor_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The line names the handler, the time, and what to do."""
    bench = Bench(5)
    bench.seconds = 6.0
    bench.give(1, 2)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("resize at farm.py:3 blocked the reactor for 6.0 s, so")
    assert "remove thread=False" in lines[0]


def test_a_silent_owner_is_connected_to_again() -> None:
    """A frozen owner or a dead connection is noticed without a message."""
    bench = Bench(silent_after=3.0)
    bench.clock.pump([0.75] * 8)
    assert bench.connections == 1
    for _ in range(20):
        bench.worker.received([ALIVE])
        bench.clock.advance(0.75)
    assert bench.connections == 1


def test_an_address_that_never_answers_an_offer_is_doubted(caplog: pytest.LogCaptureFixture) -> None:
    """A program of another kind accepts the connection, so the line names the option to check."""
    bench = Bench(silent_after=3.0)
    bench.clock.pump([0.75] * 14)
    assert [text.partition("tcp://owner:1 ")[2] for text in caplog.messages] == [
        "was silent for 3 s: connecting again",
        "has not answered for 3 s: check that work= is the address in jobs= of a running app; connecting again",
    ]


def test_a_report_that_can_not_be_sent_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """An owner that waited for a lost report would wait for ever, so the worker connects again."""
    bench = Bench()
    bench.give(1)
    bench.is_full = True
    bench.running[0].done()
    bench.is_full = False
    assert bench.connections == 0
    bench.clock.advance(1.0)
    assert bench.connections == 1
    assert "reads no messages (its queue is full): connecting again" in caplog.text
    bench.accept()
    bench.clock.advance(1.0)
    assert bench.connections == 1


def test_a_worker_that_was_frozen_does_not_judge_its_owner() -> None:
    """The signs of life of the owner are still unread."""
    bench = Bench()
    bench.clock.advance(60.0)
    assert bench.connections == 0


def test_a_stop_gives_back_and_waits_for_what_runs() -> None:
    """Jobs that arrive before the owner has read the last offer are given back too."""
    bench = Bench(1)
    bench.give(1, 2)
    bench.told()
    stopped = bench.worker.stop()
    assert bench.told() == [(GIVEN_BACK, id_of(2)), (CHANGED, b"\x01")]
    bench.give(3)
    assert bench.told() == [(GIVEN_BACK, id_of(3))]
    bench.accept()
    assert not stopped.called
    bench.running[0].done()
    assert stopped.called
    assert bench.told() == [(DONE, id_of(1))]
    bench.worker.close()
    assert bench.clock.getDelayedCalls() == []


def test_a_stop_does_not_wait_for_an_owner_that_has_stopped() -> None:
    """It answers no offer any more."""
    bench = Bench(1)
    bench.worker.received([STOPPED])
    assert bench.worker.stop().called


def test_a_stop_without_a_connection_waits_only_for_what_runs() -> None:
    """Nothing can arrive any more."""
    bench = Bench(1)
    bench.worker.disconnected()
    assert bench.worker.stop().called


@pytest.mark.parametrize(
    "parts",
    [[b"x"], [ALIVE, b""], [ACCEPTED], [JOB], [JOB, b"i" * 16], [JOB, b"i" * 16, b"t", b"", b"\2\0\0\0"], [b""]],
)
def test_malformed_messages_are_refused_and_counted(parts: list[bytes]) -> None:
    """A malformed message raises EnvelopeError only; a job with an id is rejected, so that its owner hears of it."""
    bench = Bench()
    bench.told()
    with pytest.raises(EnvelopeError):
        bench.worker.received(parts)
    assert bench.worker.malformed == 1
    assert [kind for kind, *_ in bench.told()] == ([REJECTED] if len(parts) > 1 and parts[0] == JOB else [])


def test_a_hostile_owner_can_not_fill_memory() -> None:
    """Jobs above the credits are given back, the same job twice is malformed, and one of another topic is rejected."""
    bench = Bench(1)
    bench.told()
    bench.give(*range(1000))
    assert len(bench.lane.waiting) == 1
    assert {kind for kind, *_ in bench.told()} == {GIVEN_BACK}
    with pytest.raises(EnvelopeError):
        bench.give(0)
    bench.give(5000, topic=b"other")
    assert [parts[:2] for parts in bench.told()] == [(REJECTED, id_of(5000))]


def test_a_job_that_can_not_be_begun_is_a_failure() -> None:
    """It does not keep its place in the lane."""
    bench = Bench(1)
    bench.told()

    def begin(jobs: list[WorkerJob]) -> None:
        raise RuntimeError("a fault")

    bench.lane.begin = begin
    bench.give(1)
    assert bench.told() == [(FAILED, id_of(1), b"RuntimeError: a fault")]
    assert bench.lane.running == 0


def test_a_list_has_jobs_that_arrived_together() -> None:
    """Jobs of one turn are one list, up to its size and of one key; the call counts once, and results one by one."""
    bench = Bench(1, lists=(3, lambda frame: frame.topic))
    ((_, offer),) = bench.told()
    assert parse_offer((OFFER, offer))[0].credits == 6
    bench.give(1, 2)
    bench.give(3, topic=b"jobs.y")
    bench.give(4, 5)
    assert bench.running == []
    bench.clock.advance(0)
    assert [job.frame.id for job in bench.running] == [id_of(1), id_of(2), id_of(4)]
    one, two, four = bench.running
    one.done()
    four.done()
    assert len(bench.running) == 3
    two.failed("no")
    assert [job.frame.id for job in bench.running[3:]] == [id_of(3)]
    bench.running[3].done()
    assert [job.frame.id for job in bench.running[4:]] == [id_of(5)]


def test_lanes_share_their_limit_among_owners() -> None:
    """Jobs of two owners run together at most ``max_in_flight`` times, and a lost owner takes only its own."""
    bench = Bench(1)
    log: Any = ThrottledLog(logging.getLogger("zroute"), bench.clock)
    other_sent: list[tuple[bytes, ...]] = []

    def send(parts: Sequence[bytes]) -> bool:
        other_sent.append(tuple(parts))
        return True

    other = JobWorker(bench.clock, send, (bench.lane,), bench.find, log, "tcp://owner:2", "app")
    other.connected()
    other.received([ACCEPTED, pack_terms(10.0)])
    bench.give(1, 2)
    other.received([JOB, id_of(3), b"jobs.x", b"", pack_job_meta(1, 1)])
    assert len(bench.running) == 1
    bench.worker.disconnected()
    bench.running[0].done()
    assert [job.frame.id for job in bench.running] == [id_of(1), id_of(3)]
    bench.running[1].done()
    assert other_sent[-1] == (DONE, id_of(3))


def test_the_log_names_the_app_and_the_owner(caplog: pytest.LogCaptureFixture) -> None:
    """A line about the owner begins with the name of the app, as all lines about an app do."""
    caplog.set_level(logging.INFO)
    bench = Bench()
    bench.give(1, topic=b"others.x")
    bench.worker.received([STOPPED])
    assert [record.getMessage() for record in caplog.records] == [
        "app: job from the owner at tcp://owner:1 refused: no handler of this worker accepts the topic 'others.x'",
        "app: the owner of jobs at tcp://owner:1 has stopped",
    ]
