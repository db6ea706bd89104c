"""The example of shared work: two workers and an office."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.programs.terminal import commands, ended
from zroute.testing import TestApp

Example = Callable[[str], Any]


def test_the_workers_share_the_jobs(test_app: Callable[..., TestApp], example: Example) -> None:
    """Each order is done once, and an empty one is a dead letter."""
    program = example("farm")
    t = test_app(program.office, program.worker, program.slow, raise_errors=False)
    t.advance(1.0)
    stats = program.checksums.stats
    assert (stats.put, stats.done, stats.failed, stats.dead) == (25, 24, 1, 1)
    assert t.envelopes("dead.ann")[0].headers["zr-error"] == "Reject: nothing to compute"


def test_as_its_docstring_says(folder: Path) -> None:
    """Workers that start first get the jobs of an office, which works them off before it ends."""
    worker, slow, office = commands(folder, "farm.py")
    unhurried = ("--drain-timeout", "100s")  # a busy machine may not run a worker for seconds
    with (
        worker.start(*unhurried) as fast,
        slow.start(*unhurried) as other,
        office.start("--for", "100s", *unhurried) as owner,
    ):
        fast.line_with("dead    ann: Reject: nothing to compute")
        fast.line_with("worker  ann: order")
        other.line_with("slow    ann: order")
        ended(owner)
        ended(other)
        ended(fast)
    (counters,) = [line for line in owner.err if "jobs_put" in line]
    assert "dropped" not in counters
