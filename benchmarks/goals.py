"""The goals: upper limits for ratios within one run, and for a few figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import attrs

from benchmarks.coalesced import FEW_A_FRAME, FLOOD, MANY_A_FRAME
from benchmarks.latency import BARE, READING
from benchmarks.on_nats import WITH_HEADER
from benchmarks.peers_nats import FASTSTREAM, NATS_PY
from benchmarks.publish import BESIDE_COALESCED, BESIDE_KEPT, FOUR, ONE, WITH_HISTORY
from benchmarks.receive import PLAIN_HANDLER
from benchmarks.running import Result
from benchmarks.workloads import BY_HAND, PLAIN, TRACKED, TXZMQ

__all__ = ["GOALS", "Goal", "Judged", "judge"]

MOST, LEAST = "100,000 patterns", "10 patterns"
MANY, ONE_TOPIC, MISSING = "100,000 topics", "1 topic", "1,000,000 topics"


@attrs.frozen
class Goal:
    """An upper limit for a ratio of two contestants, or for a figure.

    In ``group``, the main figure of ``above`` divided by that of ``below`` must be at most ``at_most``. Without
    ``below``, the main figure itself must be, in its unit. The median of the rounds counts.
    """

    what: str
    group: str
    above: str
    below: str | None
    at_most: float


GOALS = (
    Goal("receive, plain wire / hand-written loop", "receive-json", PLAIN, BY_HAND, 1.25),
    Goal("receive, tracked wire / hand-written plain loop", "receive-json", TRACKED, BY_HAND, 1.55),
    Goal("receive, 100 topics, plain wire / hand-written loop", "receive-100-topics", PLAIN, BY_HAND, 1.25),
    Goal("receive, 100 topics, tracked wire / the same", "receive-100-topics", TRACKED, BY_HAND, 1.55),
    Goal("receive, plain wire / txZMQ with json.loads", "receive-json", PLAIN, TXZMQ, 0.16),
    Goal("receive, tracked wire / FastStream on NATS", "receive-json", TRACKED, FASTSTREAM, 0.03),
    Goal("publish, plain wire / hand-written encode and send", "publish-json", PLAIN, BY_HAND, 1.25),
    Goal("publish, tracked, one live subscription / the same", "publish-json", ONE, BY_HAND, 1.55),
    Goal("publish, tracked, four overlapping ones / the same", "publish-json", FOUR, BY_HAND, 1.9),
    Goal("publish, beside an unrelated keep='last' / alone", "publish-beside", BESIDE_KEPT, TRACKED, 1.1),
    Goal("publish, beside an unrelated coalesce=True / alone", "publish-beside", BESIDE_COALESCED, TRACKED, 1.1),
    Goal("publish, 60 bytes, 10,000 kept in a history / none", "publish-history-60", WITH_HISTORY, TRACKED, 1.05),
    Goal("publish, 1,024 bytes, the same", "publish-history-1024", WITH_HISTORY, TRACKED, 1.25),
    Goal("route match, not in the cache: 100,000 patterns / 10, busy desks", "match-busy", MOST, LEAST, 1.5),
    Goal("route match, the same, topics of all desks", "growth-patterns", MOST, LEAST, 1.5),
    Goal("receive, plain wire: 100,000 topics in turn / 1", "growth-received-plain", MANY, ONE_TOPIC, 1.5),
    Goal("receive, tracked wire: the same", "growth-received-tracked", MANY, ONE_TOPIC, 1.5),
    Goal("publish, plain wire: 100,000 topics in turn / 1", "growth-published-plain", MANY, ONE_TOPIC, 1.5),
    Goal("publish, tracked wire: the same", "growth-published-tracked", MANY, ONE_TOPIC, 1.5),
    Goal(
        "receive, tracked wire: 1,000 publishers of a topic / 1",
        "growth-publishers",
        "1,000 publishers",
        "1 publisher",
        1.5,
    ),
    Goal("the first message of a topic, plain wire, in ns", "new-topics", PLAIN, None, 10_000),
    Goal("the first message of a topic, tracked wire, in ns", "new-topics", TRACKED, None, 10_000),
    Goal("a message that misses a full cache, received, in ns", "growth-received-plain", MISSING, None, 10_000),
    Goal("a message that misses a full cache, published, in ns", "growth-published-plain", MISSING, None, 10_000),
    Goal("a message to ten handlers of one type / to one", "handlers", PLAIN, f"{PLAIN}, one handler", 1.8),
    Goal("an async def handler that does not wait / a plain handler", "async", TRACKED, PLAIN_HANDLER, 5.0),
    Goal("an async def handler that does not wait / hand-written loop", "async", TRACKED, BY_HAND, 5.0),
    Goal("1,000,000-byte bodies, plain wire / hand-written loop", "receive-1mb", PLAIN, BY_HAND, 0.9),
    Goal("one-way latency p50, 1,000/s, tracked / bare pyzmq in the reactor", "latency-1000", TRACKED, BARE, 1.1),
    Goal("one-way latency p50, 50,000/s, tracked / the same", "latency-50000", TRACKED, BARE, 1.1),
    Goal("one-way latency p50, 50,000/s, only the reader is an app / the same", "latency-50000", READING, BARE, 1.1),
    Goal("receive, coalesced, 50 a frame / hand-written plain loop", "coalesced", MANY_A_FRAME, BY_HAND, 0.52),
    Goal("receive, coalesced, 5 a frame / the same", "coalesced", FEW_A_FRAME, BY_HAND, 1.0),
    Goal("receive, coalesced, 256 a turn / the same", "coalesced", FLOOD, BY_HAND, 0.4),
    Goal("receive on NATS, tracked wire / nats-py, the same messages", "nats-receive", TRACKED, WITH_HEADER, 0.5),
    Goal("receive on NATS, plain wire / the same", "nats-receive", PLAIN, NATS_PY, 0.5),
    Goal("receive on NATS, tracked wire / FastStream", "nats-receive", TRACKED, FASTSTREAM, 0.1),
    Goal("request and reply on NATS, 64 under way / nats-py", "nats-requests", TRACKED, NATS_PY, 0.6),
)


@attrs.frozen
class Judged:
    """A goal and its result.

    The result is the median ``found`` with the lowest and highest of the rounds, or the reason ``why`` it is missing.
    """

    goal: Goal
    found: float | None
    lowest: float | None
    highest: float | None
    why: str | None

    @property
    def verdict(self) -> str:
        """The verdict: met, not met, or not measured and why."""
        if self.found is None:
            return f"not measured: {self.why}"
        return "met" if self.found <= self.goal.at_most else "not met"


def judge(results: Mapping[str, Result]) -> list[Judged]:
    """Judge all goals; ``results`` has the groups that were run, by name."""
    return [_judge(goal, results.get(goal.group)) for goal in GOALS]


def _judge(goal: Goal, result: Result | None) -> Judged:
    if result is None:
        return Judged(goal, None, None, None, f"{goal.group} was not run")
    rows = {row.name: row for row in result.rows}
    for name in filter(None, (goal.above, goal.below)):
        if name not in rows:
            return Judged(goal, None, None, None, f"{name!r} was not measured")
        if rows[name].skipped:
            return Judged(goal, None, None, None, rows[name].skipped)
    if goal.below is not None:
        found = result.ratios(goal.above, goal.below)
    else:
        found = [sample[result.group.main] for sample in rows[goal.above].samples]
    return Judged(goal, statistics.median(found), min(found), max(found), None)
