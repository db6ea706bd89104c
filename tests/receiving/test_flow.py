"""`Flow` decides which job may run next. It has no I/O, so that tests can try every order of events."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support import sized
from zroute.receiving.flow import Flow


def taken(flow: Flow[Any]) -> list[Any]:
    """Return all jobs that may run now."""
    jobs = []
    while (found := flow.take()) is not None:
        jobs.append(found[1])
    return jobs


def test_jobs_of_one_topic_run_one_after_the_other() -> None:
    """The second job of a topic waits until the first has ended."""
    flow: Flow[str] = Flow(10, queue=10)
    for key, job in [("a", "a1"), ("a", "a2"), ("b", "b1")]:
        flow.put(key, job)
    assert taken(flow) == ["a1", "b1"]
    flow.done("a")
    assert taken(flow) == ["a2"]


def test_no_more_topics_than_the_bound_run_at_a_time() -> None:
    """At most ``bound`` topics run at a time; when one ends, the next one starts."""
    flow: Flow[str] = Flow(2, queue=10)
    for name in "abcd":
        flow.put(name, name)
    assert taken(flow) == ["a", "b"]
    assert (flow.in_flight, flow.queued) == (2, 2)
    flow.done("b")
    assert taken(flow) == ["c"]


def test_without_order_one_topic_may_run_side_by_side() -> None:
    """ordered=False lifts the order of a topic, but not the bound or the order in which jobs begin."""
    flow: Flow[int] = Flow(2, ordered=False, queue=10)
    for number in range(4):
        flow.put("a", number)
    assert taken(flow) == [0, 1]
    flow.done("a")  # an unordered flow accepts any key: only the number counts
    assert taken(flow) == [2]


def test_topics_take_turns() -> None:
    """A long queue of one topic does not delay a new topic until it is empty."""
    flow: Flow[str] = Flow(1, queue=100)
    for number in range(5):
        flow.put("busy", f"busy{number}")
    order = taken(flow)
    flow.put("quiet", "quiet")
    while flow.in_flight:
        flow.done("quiet" if order[-1] == "quiet" else "busy")
        order += taken(flow)
    assert order.index("quiet") <= 2
    assert [job for job in order if job != "quiet"] == [f"busy{number}" for number in range(5)]


def test_full_and_eased_are_marks_with_room_between() -> None:
    """A flow is full at the bound, and has eased at half of it."""
    flow: Flow[int] = Flow(1, queue=4)
    for number in range(5):
        flow.put(number, number)
        flow.take()
    assert (flow.queued, flow.full, flow.eased) == (4, True, False)
    flow.done(0)
    flow.take()
    assert (flow.full, flow.eased) == (False, False)
    flow.done(1)
    flow.take()
    assert (flow.queued, flow.eased) == (2, True)


def test_clearing_gives_back_all_that_waited() -> None:
    """Clearing returns the number of waiting jobs; running jobs are not affected."""
    flow: Flow[str] = Flow(1, queue=10)
    for job in ("a", "b", "c"):
        flow.put(job, job)
    assert taken(flow) == ["a"]
    assert sorted(flow.clear()) == ["b", "c"]
    assert (flow.queued, flow.in_flight, flow.take()) == (0, 1, None)
    flow.done("a")
    assert flow.take() is None


class AnyOrder(RuleBasedStateMachine):
    """Compare `Flow` with the simplest model: waiting lists by topic, and a bag of running jobs."""

    @initialize(bound=st.integers(1, 4), ordered=st.booleans())
    def begin(self, bound: int, ordered: bool) -> None:
        self.bound, self.ordered = bound, ordered
        self.flow: Flow[tuple[str, int]] = Flow(bound, ordered=ordered, queue=5)
        self.waiting: dict[str, deque[int]] = {}
        self.running: list[tuple[Any, str, int]] = []
        self.number = 0
        self.passed_over: dict[str, set[str]] = {}

    @rule(topic=st.sampled_from("abc"))
    def put(self, topic: str) -> None:
        self.number += 1
        self.flow.put(topic, (topic, self.number))
        self.waiting.setdefault(topic, deque()).append(self.number)

    @rule(topic=st.sampled_from("abc"))
    def try_start(self, topic: str) -> None:
        busy = {topic for _, topic, _ in self.running}
        waits = any(self.waiting.values()) or len(self.running) >= self.bound or (self.ordered and topic in busy)
        assert self.flow.try_start(topic) == (not waits)
        if not waits:
            self.running.append((topic, topic, 0))
            self.passed_over.pop(topic, None)

    @rule()
    def take(self) -> None:
        found = self.flow.take()
        busy = {topic for _, topic, _ in self.running}
        free = [topic for topic, jobs in self.waiting.items() if jobs and not (self.ordered and topic in busy)]
        if len(self.running) >= self.bound or not free:
            assert found is None
            return
        assert found is not None
        key, (topic, number) = found
        assert topic in free
        if not self.ordered:
            assert number == min(jobs[0] for jobs in self.waiting.values() if jobs)  # in order of arrival
        assert self.waiting[topic].popleft() == number  # each once, in the order of its topic
        self.running.append((key, topic, number))
        if self.ordered:
            self.take_turns(topic, free)

    def take_turns(self, topic: str, free: list[str]) -> None:
        """No topic runs twice before another topic that could have run."""
        self.passed_over.pop(topic, None)
        for other in free:
            if other != topic:
                passed_by = self.passed_over.setdefault(other, set())
                assert topic not in passed_by
                passed_by.add(topic)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        ended = data.draw(st.sampled_from(self.running))
        self.running.remove(ended)
        self.flow.done(ended[0])

    @rule()
    def clear(self) -> None:
        left = [(topic, number) for topic, jobs in self.waiting.items() for number in jobs]
        assert Counter(self.flow.clear()) == Counter(left)
        self.waiting.clear()
        self.passed_over.clear()

    @invariant()
    def bounds(self) -> None:
        if hasattr(self, "flow"):
            queued = sum(map(len, self.waiting.values()))
            assert (self.flow.queued, self.flow.in_flight) == (queued, len(self.running))
            assert self.flow.in_flight <= self.bound
            assert self.flow.full == (queued >= 5)
            assert self.flow.eased == (queued <= 2)


AnyOrder.TestCase.settings = settings(max_examples=sized(200, 15), stateful_step_count=60)
TestAnyOrder = AnyOrder.TestCase
