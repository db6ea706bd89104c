"""The goals: upper limits for ratios within one run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import attrs

from benchmarks.coalesced import COALESCED, FLOOD
from benchmarks.latency import BARE
from benchmarks.on_nats import WITH_HEADER
from benchmarks.peers_nats import FASTSTREAM, NATS_PY
from benchmarks.publish import BESIDE_COALESCED, BESIDE_KEPT, FOUR, ONE, WITH_HISTORY
from benchmarks.running import Result
from benchmarks.workloads import BY_HAND, PLAIN, TRACKED, TXZMQ

__all__ = ["GOALS", "Goal", "Judged", "judge"]

MOST, LEAST = "100,000 patterns", "10 patterns"


@attrs.frozen
class Goal:
    """An upper limit for a ratio of two contestants.

    In ``group``, the main figure of ``above`` divided by that of ``below`` must be at most ``at_most``. The median of
    the rounds counts.
    """

    what: str
    group: str
    above: str
    below: str
    at_most: float


GOALS = (
    Goal("receive, plain wire / hand-written loop", "receive-json", PLAIN, BY_HAND, 1.15),
    Goal("receive, tracked wire / hand-written plain loop", "receive-json", TRACKED, BY_HAND, 1.45),
    Goal("receive, plain wire / txZMQ with json.loads", "receive-json", PLAIN, TXZMQ, 0.16),
    Goal("receive, tracked wire / FastStream on NATS", "receive-json", TRACKED, FASTSTREAM, 0.03),
    Goal("publish, plain wire / hand-written encode and send", "publish-json", PLAIN, BY_HAND, 1.15),
    Goal("publish, tracked, one live subscription / the same", "publish-json", ONE, BY_HAND, 1.6),
    Goal("publish, tracked, four overlapping ones / the same", "publish-json", FOUR, BY_HAND, 2.2),
    Goal("publish, beside an unrelated keep='last' / alone", "publish-beside", BESIDE_KEPT, TRACKED, 1.1),
    Goal("publish, beside an unrelated coalesce=True / alone", "publish-beside", BESIDE_COALESCED, TRACKED, 1.1),
    Goal("publish, 60 bytes, 10,000 kept in a history / none", "publish-history-60", WITH_HISTORY, TRACKED, 1.05),
    Goal("publish, 1,024 bytes, the same", "publish-history-1024", WITH_HISTORY, TRACKED, 1.25),
    Goal("route match, not in the cache: 100,000 patterns / 10, busy desks", "match-busy", MOST, LEAST, 1.5),
    Goal("route match, the same, topics of all desks", "match-scattered", MOST, LEAST, 1.5),
    Goal("a message to ten handlers of one type / to one", "handlers", PLAIN, f"{PLAIN}, one handler", 2.0),
    Goal("async def handlers that do not wait, tracked wire / hand-written loop", "async", TRACKED, BY_HAND, 5.0),
    Goal("1,000,000-byte bodies, plain wire / hand-written loop", "receive-1mb", PLAIN, BY_HAND, 0.9),
    Goal("one-way latency p50, 1,000/s, tracked / bare pyzmq in the reactor", "latency-1000", TRACKED, BARE, 1.15),
    Goal("one-way latency p50, 50,000/s, tracked / the same", "latency-50000", TRACKED, BARE, 1.15),
    Goal("coalesced stream, 50 a turn, receive / hand-written plain loop", "coalesced", COALESCED, BY_HAND, 0.4),
    Goal("coalesced stream, 256 a turn, the same", "coalesced", FLOOD, BY_HAND, 0.4),
    Goal("receive on NATS, tracked wire / nats-py, the same messages", "nats-receive", TRACKED, WITH_HEADER, 0.5),
    Goal("receive on NATS, plain wire / the same", "nats-receive", PLAIN, NATS_PY, 0.5),
    Goal("receive on NATS, tracked wire / FastStream", "nats-receive", TRACKED, FASTSTREAM, 0.1),
    Goal("request and reply on NATS, 64 under way / nats-py", "nats-requests", TRACKED, NATS_PY, 0.6),
)


@attrs.frozen
class Judged:
    """A goal and its result.

    The result is the median ``ratio`` with the lowest and highest of the rounds, or the reason ``why`` it is missing.
    """

    goal: Goal
    ratio: float | None
    lowest: float | None
    highest: float | None
    why: str | None

    @property
    def verdict(self) -> str:
        """The verdict: met, not met, or not measured and why."""
        if self.ratio is None:
            return f"not measured: {self.why}"
        return "met" if self.ratio <= self.goal.at_most else "not met"


def judge(results: Mapping[str, Result]) -> list[Judged]:
    """Judge all goals; ``results`` has the groups that were run, by name."""
    return [_judge(goal, results.get(goal.group)) for goal in GOALS]


def _judge(goal: Goal, result: Result | None) -> Judged:
    if result is None:
        return Judged(goal, None, None, None, f"{goal.group} was not run")
    rows = {row.name: row for row in result.rows}
    for name in (goal.above, goal.below):
        if name not in rows:
            return Judged(goal, None, None, None, f"{name!r} was not measured")
        if rows[name].skipped:
            return Judged(goal, None, None, None, rows[name].skipped)
    ratios = result.ratios(goal.above, goal.below)
    return Judged(goal, statistics.median(ratios), min(ratios), max(ratios), None)
