"""Results as tables on the terminal and in Markdown, and in full as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.goals import Judged
from benchmarks.running import RATE, Result, Row

__all__ = ["as_json", "as_markdown", "number", "show", "show_goals", "show_machine"]

CLOCKS = "CPU time is measured for one `thread`, or for the whole `process` with its I/O threads."
HEADINGS = ("what", "at most", "found", "lowest to highest", "")


# -- cells --------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Return a figure with about three digits; "" for None."""
    if value is None:
        return ""
    digits = next((digits for below, digits in ((0.1, 3), (10, 2), (100, 1)) if value < below), 0)
    return f"{value:,.{digits}f}"


def _columns(result: Result) -> list[str]:
    found: dict[str, None] = {result.group.main: None}
    for row in result.rows:
        for sample in row.samples:
            found |= dict.fromkeys(sample)
    return list(found)


def _heading(result: Result) -> list[str]:
    main, *others = _columns(result)
    ratio = [f"ratio to {result.group.base}", "lowest to highest"] if result.group.base else []
    return [result.group.title, main, *ratio, *others, "CPU of"]


def _cells(result: Result, row: Row) -> list[str]:
    main, *others = _columns(result)
    ratios = result.to_base(row.name)
    cells = [row.name, number(row.median(main))]
    if result.group.base:
        cells += [number(statistics.median(ratios)), _spread(min(ratios), max(ratios))] if ratios else ["", ""]
    return [*cells, *(_rate(name, row.median(name)) for name in others), row.clock]


def _rate(name: str, value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and name in (RATE, "requests/s") else number(value)


def _spread(lowest: float | None, highest: float | None) -> str:
    return f"{number(lowest)} to {number(highest)}" if lowest is not None else ""


def _goal_cells(judged: Judged) -> list[str]:
    spread = _spread(judged.lowest, judged.highest)
    return [judged.goal.what, f"{judged.goal.at_most:,g}", number(judged.found), spread, judged.verdict]


# -- terminal -----------------------------------------------------------------------------------------------


def show_machine(console: Console, described: Mapping[str, str], settings: str) -> None:
    """Print the machine, the versions and the settings."""
    console.print(", ".join(f"{name} {value}" for name, value in described.items()), highlight=False)
    console.print(settings, highlight=False)


def show(console: Console, result: Result) -> None:
    """Print the table of one group."""
    table = Table(title=result.group.name, title_justify="left", title_style="bold")
    for place, heading in enumerate(_heading(result)):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for row in result.rows:
        if row.skipped is not None:
            table.add_row(row.name, Text(row.skipped, style="red" if row.failed else "dim"))
        else:
            table.add_row(*_cells(result, row), style="bold" if row.name == result.group.base else "")
    console.print(table)


def show_goals(console: Console, judged: Sequence[Judged]) -> None:
    """Print each goal and its verdict."""
    table = Table(title="goals", title_justify="left", title_style="bold")
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if 0 < place < 4 else "left")
    for one in judged:
        style = {"met": "green", "not met": "red"}.get(one.verdict, "dim")
        *cells, verdict = _goal_cells(one)
        table.add_row(*cells, f"[{style}]{verdict}[/]")
    console.print(table)


# -- files --------------------------------------------------------------------------------------------------


_HEAD = """# Benchmark tables

`python -m benchmarks --docs docs/explanation` writes this page.
[Performance](performance.md) explains it."""


def as_markdown(
    results: Sequence[Result], judged: Sequence[Judged], described: Mapping[str, str], settings: str, command: str
) -> str:
    """Return the documentation page: machine, goals, and a table for each group."""
    parts = [
        _HEAD,
        f"Measured with `{command}`: {settings}",
        ", ".join(f"{name} {value}" for name, value in described.items()) + ".",
        *(["## Goals", _markdown(list(HEADINGS), [_goal_cells(one) for one in judged])] if judged else []),
        CLOCKS,
        "## Groups",
    ]
    for result in results:
        rows = [[row.name, row.skipped] if row.skipped else _cells(result, row) for row in result.rows]
        parts.append(f"### `{result.group.name}`\n\n{_markdown(_heading(result), rows)}")
    return "\n\n".join(parts) + "\n"


def _markdown(heading: list[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    return "\n".join("| " + " | ".join([*line, *[""] * (len(heading) - len(line))]) + " |" for line in lines)


def as_json(
    results: Sequence[Result], judged: Sequence[Judged], described: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all samples of all rounds, medians, ratios and goals."""
    return {
        "machine": dict(described),
        "settings": dict(settings),
        "groups": {result.group.name: _group_json(result) for result in results},
        "goals": [
            {"what": one.goal.what, "at most": one.goal.at_most, "found": one.found, "verdict": one.verdict}
            for one in judged
        ],
    }


def _group_json(result: Result) -> dict[str, Any]:
    group = result.group
    return {
        "title": group.title,
        "main": group.main,
        "base": group.base,
        "rows": {row.name: _row_json(result, row) for row in result.rows},
    }


def _row_json(result: Result, row: Row) -> dict[str, Any]:
    if row.skipped is not None:
        return {"skipped": row.skipped, "failed": row.failed}
    ratios = result.to_base(row.name)
    return {
        "CPU of": row.clock,
        "rounds": [dict(sample) for sample in row.samples],
        "median": {name: row.median(name) for name in _columns(result)},
        "ratio": statistics.median(ratios) if ratios else None,
    }
