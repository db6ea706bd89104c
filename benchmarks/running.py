"""The runner: contestants of a group in turn, round after round; medians, and ratios within rounds.

It knows nothing of what is measured. A contestant is a function that measures once and returns its figures; a group
holds those that are compared. Machines change their pace, so only what was measured in the same round is divided.
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
"""What one measurement found, by name; the name ends with the unit."""

CPU, WALL, RATE = "CPU ns", "wall ns", "messages/s"

THREAD = "thread"
"""The CPU time of the thread that receives or publishes; nothing else works for it where no network is between."""

WHOLE = "process"
"""The CPU time of the whole process that receives, its I/O threads included."""


@attrs.frozen
class Contestant:
    """Somebody who is measured: ``clock`` says whose CPU time it is, ``absent`` why it can't be measured here."""

    name: str
    measure: Callable[[], Figures]
    clock: str = THREAD
    absent: str | None = None


@attrs.frozen
class Group:
    """Contestants at the same work. ``main`` is the figure whose ratio to that of the contestant ``base`` counts.

    ``rounds`` bounds the rounds of what takes long and does not drift.
    """

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    base: str | None
    main: str = CPU
    rounds: int | None = None


@attrs.define
class Row:
    """What was found of one contestant: a sample a round, or why there is none."""

    name: str
    clock: str
    samples: list[Figures] = attrs.field(factory=list)
    skipped: str | None = None
    failed: bool = False

    def median(self, figure: str) -> float | None:
        """Over the rounds; None where this was not measured."""
        values = [sample[figure] for sample in self.samples if figure in sample]
        return statistics.median(values) if values else None


@attrs.frozen
class Result:
    """A group and its rows."""

    group: Group
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """That of a contestant."""
        return next(row for row in self.rows if row.name == name)

    def ratios(self, above: str, below: str, figure: str | None = None) -> list[float]:
        """``figure`` (by default the group's main one) of one contestant by that of another, round by round."""
        figure = figure or self.group.main
        pairs = zip(self.row(above).samples, self.row(below).samples, strict=False)  # who failed has fewer
        return [one[figure] / other[figure] for one, other in pairs if figure in one and other.get(figure)]

    def to_base(self, name: str) -> list[float]:
        """The ratios to the group's base, round by round; none without a base."""
        return self.ratios(name, self.group.base) if self.group.base is not None else []


def run(groups: Sequence[Group], rounds: int, tell: Callable[[str], object]) -> Iterable[Result]:
    """Measure the groups one after the other; ``tell`` is told of each measurement before it is made."""
    for group in groups:
        rows = tuple(Row(each.name, each.clock, skipped=each.absent) for each in group.contestants)
        present = [pair for pair in zip(group.contestants, rows, strict=True) if pair[1].skipped is None]
        for number in range(min(rounds, group.rounds or rounds)):
            first = number % len(present) if present else 0  # nobody always runs after the same one
            for contestant, row in present[first:] + present[:first]:
                tell(f"{group.name}, round {number + 1}: {contestant.name}")
                _sample(contestant, row)
        yield Result(group, rows)


def _sample(contestant: Contestant, row: Row) -> None:
    if row.failed:
        return
    gc.collect()  # what the one before has left is not this one's to clean up
    try:
        row.samples.append(contestant.measure())
    except Exception as error:  # the others are still worth measuring; the table and the exit code tell of it
        row.samples.clear()
        row.failed, row.skipped = True, f"failed: {type(error).__name__}: {error}"


def measured(work: Callable[[], object], messages: int) -> Figures:
    """The figures of this thread over ``work``, which handles so many messages."""
    began, cpu = time.perf_counter_ns(), time.thread_time_ns()
    work()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - began
    return {CPU: cpu / messages, WALL: wall / messages, RATE: messages / wall * 1e9}
