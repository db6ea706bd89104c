"""The pictures of the documentation, drawn by matplotlib as SVG: ratios as bars, and growth as curves.

The colours are of medium lightness and there is no background, so the pictures are readable on light and dark pages.
Text stays text, so a reader may have another font.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from benchmarks.running import CPU, Result
from benchmarks.workloads import BY_HAND, PLAIN

__all__ = ["BARS", "PANELS", "absent", "bars", "curves"]

BARS = (
    "receive-json",
    "receive-100-topics",
    "receive-1mb",
    "handlers",
    "async",
    "coalesced",
    "publish-json",
    "publish-100-topics",
    "end-to-end",
)
"""The groups with bars; the tables contain the others."""

PANELS = (
    ("Receive many topics", "topics in turn", "growth-received-"),
    ("Publish many topics", "topics in turn", "growth-published-"),
    ("Receive from many publishers, tracked wire", "publishers of one topic", "growth-publishers"),
    ("Match a topic that is not in the cache", "patterns", "growth-patterns"),
    ("Publish to many subscribers", "subscribers of one topic", "growth-subscribers"),
)
"""The panels of growth: title, horizontal axis, and the prefix of its groups."""

GREY, BLUE, BROWN, ORANGE = "#7d8590", "#2f81f7", "#9a8c6f", "#d9730d"
_STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.4,
    "grid.color": GREY,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "svg.fonttype": "none",
    "svg.hashsalt": "zroute",  # the same results give the same file
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def absent() -> str | None:
    """Return the reason why nothing can be drawn, or None."""
    return None if find_spec("matplotlib") else "matplotlib is not installed (the extra `bench`)"


def bars(results: Sequence[Result]) -> str | None:
    """Return the SVG of the ratios to the hand-written loop; None if no group of `BARS` was run."""
    rows: list[tuple[str, float | None]] = []
    for result in results:
        if result.group.name in BARS and result.group.main == CPU:
            rows.append((result.group.title, None))
            rows += [
                (row.name, statistics.median(ratios)) for row in result.rows if (ratios := result.to_base(row.name))
            ]
    if not rows:
        return None
    plt = _plotting()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(9, 0.6 + 0.22 * len(rows)), layout="constrained")
        axes.set_xscale("log")
        for y, (name, ratio) in enumerate(rows):
            if ratio is None:
                axes.annotate(name, (0.01, y), xycoords=("figure fraction", "data"), weight="bold", va="center")
                continue
            axes.barh(y, ratio - 1 or 0.01, left=1, height=0.7, color=BLUE if name.startswith("zroute") else BROWN)
            axes.annotate(f"{ratio:.2f}", (max(ratio, 1), y), (4, 0), textcoords="offset points", va="center")
        # Only between the headings of the groups, which would otherwise be crossed.
        headings = [y for y, (_, ratio) in enumerate(rows) if ratio is None]
        for first, end in pairwise((*headings, len(rows))):
            for tick in (1, 10, 100):
                axes.plot((tick, tick), (first + 0.5, end - 0.5), color=GREY, linewidth=1 if tick == 1 else 0.4)
        axes.set_yticks(range(len(rows)), ["" if ratio is None else name for name, ratio in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.spines["left"].set_visible(False)
        axes.minorticks_off()
        axes.set_xlabel(f"CPU time of a message; {BY_HAND} = 1; shorter is cheaper")
        axes.xaxis.set_major_formatter("{x:g}")
        return _svg(figure, "CPU time of a message, relative to a hand-written loop")


def curves(results: Sequence[Result]) -> str | None:
    """Return the SVG of the growth curves; None if no group of `PANELS` was run."""
    panels = [(title, axis, _points(results, prefix)) for title, axis, prefix in PANELS]
    panels = [(title, axis, lines) for title, axis, lines in panels if lines]
    if not panels:
        return None
    plt = _plotting()
    from matplotlib.ticker import EngFormatter

    with plt.rc_context(_STYLE):
        rows = -(-len(panels) // 2)
        figure, grid = plt.subplots(rows, 2, figsize=(9, 2.7 * rows), layout="constrained", squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, axis, lines) in zip(grid.flat, panels, strict=False):
            for name, points in lines.items():
                colour = BROWN if name == BY_HAND else BLUE if name == PLAIN else ORANGE
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
            axes.set_xscale("log")
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.3), max(high, 10))  # a flat curve must not look steep
            axes.set_title(title, loc="left")
            axes.set_xlabel(axis)
            axes.set_ylabel("CPU µs")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1k, 10k, 1M
            axes.minorticks_off()
            axes.grid()
            axes.legend(fontsize=9, loc="upper left")
        return _svg(figure, "CPU time of a message, by the number of topics, publishers, patterns and subscribers")


def _points(results: Sequence[Result], prefix: str) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve in the groups with a prefix: its place, and CPU in microseconds."""
    found: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        for contestant in result.group.contestants:
            cost = result.row(contestant.name).median(CPU)
            if result.group.name.startswith(prefix) and contestant.at is not None and cost is not None:
                found.setdefault(contestant.curve, []).append((contestant.at, cost / 1000))
    return found


def _plotting() -> Any:
    """Return matplotlib's module for plotting, for files alone; its import takes long."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    return pyplot


def _svg(figure: Any, title: str) -> str:
    with io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Title": title})
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
