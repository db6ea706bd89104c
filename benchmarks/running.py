"""The runner: measures the contestants of a group, round after round.

The runner does not depend on any measurement. A contestant is a function that measures once and returns its figures; a
group holds the contestants to compare. The results are medians over the rounds. Machines change their pace, so a
ratio divides only figures of the same round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

__all__ = [
    "CPU",
    "RATE",
    "THREAD",
    "WALL",
    "WHOLE",
    "Contestant",
    "Figures",
    "Group",
    "Result",
    "Row",
    "measured",
    "run",
]

Figures = Mapping[str, float]
"""The figures of one measurement, by name; the name ends with the unit."""

CPU, WALL, RATE = "CPU ns", "wall ns", "messages/s"

THREAD = "thread"
"""CPU time of the thread that receives or publishes. Without a network, no other thread works for it."""

WHOLE = "process"
"""CPU time of the whole receiving process, including its I/O threads."""


@attrs.frozen
class Contestant:
    """A measured program or library.

    ``clock`` names the CPU time that it reports; ``absent`` is the reason why this machine cannot measure it. ``at`` is
    its place on the horizontal axis of a growth curve, and ``curve`` the name of this curve.
    """

    name: str
    measure: Callable[[], Figures]
    clock: str = THREAD
    absent: str | None = None
    at: int | None = None
    curve: str = ""


@attrs.frozen
class Group:
    """Contestants with the same work.

    ``main`` is the figure to compare with that of the contestant ``base``. ``rounds`` limits the rounds of slow
    measurements that do not drift.
    """

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    base: str | None
    main: str = CPU
    rounds: int | None = None


@attrs.define
class Row:
    """The results of a contestant: a sample per round, or the reason for none.

    ``error`` is the error of a failed contestant. Its traceback keeps the sockets of the contestant alive: Python could
    collect a context before its sockets, and then wait for ever until they are closed.
    """

    name: str
    clock: str
    samples: list[Figures] = attrs.field(factory=list)
    skipped: str | None = None
    error: Exception | None = None

    @property
    def failed(self) -> bool:
        """True if the contestant has raised an error."""
        return self.error is not None

    def median(self, figure: str) -> float | None:
        """Return the median over the rounds, or None if the figure was not measured."""
        values = [sample[figure] for sample in self.samples if figure in sample]
        return statistics.median(values) if values else None


@attrs.frozen
class Result:
    """A group and its rows."""

    group: Group
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """Return the row of a contestant."""
        return next(row for row in self.rows if row.name == name)

    def ratios(self, above: str, below: str, figure: str | None = None) -> list[float]:
        """Return the ratio of two contestants' figures, round by round.

        ``figure`` is the group's main figure by default.
        """
        figure = figure or self.group.main
        pairs = zip(self.row(above).samples, self.row(below).samples, strict=False)  # failed ones have fewer
        return [one[figure] / other[figure] for one, other in pairs if figure in one and other.get(figure)]

    def to_base(self, name: str) -> list[float]:
        """Return the ratios to the group's base, round by round; empty without a base."""
        return self.ratios(name, self.group.base) if self.group.base is not None else []


def run(groups: Sequence[Group], rounds: int, tell: Callable[[str], object]) -> Iterable[Result]:
    """Measure the groups one after the other.

    ``tell`` is called with the name of each measurement before it begins.
    """
    for group in groups:
        rows = tuple(Row(each.name, each.clock, skipped=each.absent) for each in group.contestants)
        present = [pair for pair in zip(group.contestants, rows, strict=True) if pair[1].skipped is None]
        for number in range(min(rounds, group.rounds or rounds)):
            first = number % len(present) if present else 0  # rotate, so that no contestant always follows the same one
            for contestant, row in present[first:] + present[:first]:
                tell(f"{group.name}, round {number + 1}: {contestant.name}")
                _sample(contestant, row)
        yield Result(group, rows)


def _sample(contestant: Contestant, row: Row) -> None:
    if row.failed:
        return
    gc.collect()  # do not charge a contestant for the garbage of the one before
    try:
        row.samples.append(contestant.measure())
    except Exception as error:  # continue with the others; the table and the exit code report the failure
        row.samples.clear()
        row.error, row.skipped = error, f"failed: {type(error).__name__}: {error}"


def measured(work: Callable[[], object], messages: int) -> Figures:
    """Return this thread's figures for ``work``, which handles N ``messages``."""
    began, cpu = time.perf_counter_ns(), time.thread_time_ns()
    work()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - began
    return {CPU: cpu / messages, WALL: wall / messages, RATE: messages / wall * 1e9}
