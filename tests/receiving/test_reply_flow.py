"""The flow of requests: clients take turns, and the one with the longest queue is refused first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from time import perf_counter

from hypothesis import given
from hypothesis import strategies as st

from tests.support import sized
from zroute.receiving.flow import ReplyFlow, WaitingBytes


def offered(flow: ReplyFlow[str], key: Hashable, job: str) -> str | None:
    """Add a job as a server does; return the job that is refused."""
    if not flow.has_room:
        longest = flow.last_of_longest(key)
        if longest is None:
            return job
        flow.put(key, job)
        return longest
    flow.put(key, job)
    return None


def taken(flow: ReplyFlow[str]) -> list[str]:
    """Take all jobs that may run, and end them one by one."""
    jobs = []
    while (found := flow.take()) is not None:
        jobs.append(found[1])
        flow.done(found[0])
    return jobs


def test_clients_take_turns() -> None:
    """A client with many requests does not delay the first one of another."""
    flow: ReplyFlow[str] = ReplyFlow(1, queue=100)
    for number in range(4):
        flow.put("a", f"a{number}")
    flow.put("b", "b0")
    flow.put("c", "c0")
    flow.put("b", "b1")
    assert taken(flow) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert (flow.queued, flow.in_flight) == (0, 0)


def test_requests_of_one_client_run_at_the_same_time() -> None:
    """Up to ``max_in_flight`` of them, in the order in which they arrived."""
    flow: ReplyFlow[str] = ReplyFlow(2, queue=10)
    for job in ("0", "1", "2"):
        flow.put("a", job)
    assert [flow.take(), flow.take(), flow.take()] == [("a", "0"), ("a", "1"), None]
    assert not flow.full
    flow.done("a")
    assert flow.take() == ("a", "2")


def test_a_flood_takes_no_place_of_another_client() -> None:
    """100,000 requests of one client leave room for the first ones of another, at once."""
    flow: ReplyFlow[str] = ReplyFlow(1, queue=1000)
    began = perf_counter()
    refused = Counter(offered(flow, "flood", "flood") for _ in range(sized(100_000, 20_000)))
    assert refused[None] == 1000
    for number in range(500):
        assert offered(flow, "other", f"other{number}") == "flood"
    assert offered(flow, "other", "other500") == "other500", "both have the same number now"
    order = taken(flow)
    assert order[1] == "other0"
    assert len(order) == 1000
    assert perf_counter() - began < 30


def test_the_client_with_the_longest_queue_is_refused_first() -> None:
    """Its newest request is refused; one with an equal queue is not, so clients do not refuse each other in turns."""
    flow: ReplyFlow[str] = ReplyFlow(1, queue=5)
    for job in ("a0", "a1", "a2", "b0", "b1"):
        assert offered(flow, job[0], job) is None
    assert offered(flow, "c", "c0") == "a2"
    assert offered(flow, "c", "c1") == "c1"
    assert offered(flow, "a", "a3") == "a3"
    assert offered(flow, "d", "d0") in ("a1", "b1")
    assert flow.queued == 5


_steps = st.tuples(st.sampled_from("abc"), st.sampled_from(["arrives", "begins", "is over"]), st.integers(0, 9))


@given(st.lists(_steps, max_size=200), st.integers(1, 6), st.integers(1, 3))
def test_no_request_is_lost_or_doubled(steps: list[tuple[str, str, int]], queue: int, at_once: int) -> None:
    """Each offered request is refused, removed or taken, once; the bounds hold at each step."""
    flow: ReplyFlow[str] = ReplyFlow(at_once, queue=queue)
    given, seen, running = list[str](), list[str](), list[Hashable]()
    for number, (key, step, which) in enumerate(steps):
        if step == "arrives":
            given.append(f"{key}{number}")
            refused = offered(flow, key, given[-1])
            if refused is not None:
                seen.append(refused)
        elif step == "is over":
            if given:
                over = given[-1 - which % len(given)]
                assert flow.remove(over[0], over) == (over not in seen)
                seen += [over] * (over not in seen)
        elif (found := flow.take()) is not None:
            running.append(found[0])
            seen.append(found[1])
        elif running:
            flow.done(running.pop())
        assert flow.queued <= queue
        assert flow.in_flight == len(running) <= at_once
    while running:
        flow.done(running.pop())
    seen += taken(flow)
    assert sorted(seen) == sorted(given)
    assert flow.clear() == []


# -- bytes -----------------------------------------------------------------------------------------------


def test_the_client_with_the_most_bytes_is_refused_first() -> None:
    """Its newest request is refused, unless the new request would make its own client the largest."""
    waiting: WaitingBytes[str] = WaitingBytes(10)
    for job, size in (("a0", 4), ("a1", 3), ("b0", 2)):
        assert waiting.has_room(size)
        waiting.add(job[0], job, size)
    assert (waiting.has_room(1), waiting.has_room(2)) == (True, False)
    assert waiting.last_of_largest("c", 6) == waiting.last_of_largest("b", 4) == "a1"
    assert waiting.last_of_largest("c", 7) is None
    assert waiting.last_of_largest("a", 1) is None
    waiting.remove("a", "a1")
    assert waiting.last_of_largest("c", 3) == "a0"


def test_one_request_of_any_size_may_wait() -> None:
    """The limit never makes an allowed message impossible."""
    waiting: WaitingBytes[str] = WaitingBytes(10)
    assert waiting.has_room(11)
    waiting.add("a", "a0", 11)
    assert not waiting.has_room(0)
    waiting.remove("a", "a0")
    assert (waiting.total, waiting._clients, waiting._sizes) == (0, {}, {})
