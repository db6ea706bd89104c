"""The plot for the documentation: ratios to the hand-written loop, as SVG.

The bars have a logarithmic scale. Their colours are of medium lightness and there is no background, so the plot is
readable on light and dark pages.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import escape

from benchmarks.running import CPU, Result
from benchmarks.workloads import BY_HAND

__all__ = ["GROUPS", "draw"]

GROUPS = ("receive-json", "receive-1mb", "handlers", "async", "coalesced", "publish-json", "end-to-end")
"""The groups in the plot; the tables contain the others."""

WIDTH, ROW, HEAD, LABELS, VALUES = 860, 20, 30, 330, 60
TICKS = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
TEXT, LINE, OURS, OTHERS = "#7d8590", "#7d859066", "#2f81f7", "#9a8c6f"


def draw(results: Sequence[Result]) -> str:
    """Return the SVG of the groups in `GROUPS` that were run."""
    chosen = [result for result in results if result.group.name in GROUPS]
    ratios = [ratio for result in chosen for _, ratio in _bars(result)]
    low, high = min([*ratios, 0.3]) / 1.3, max([*ratios, 3.0]) * 1.3
    height = 50 + sum(HEAD + ROW * len(list(_bars(result))) for result in chosen)

    def x(ratio: float) -> float:
        share = (math.log(ratio) - math.log(low)) / (math.log(high) - math.log(low))
        return LABELS + share * (WIDTH - LABELS - VALUES)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}">',
        "<title>CPU per message, hand-written loop = 1; shorter is cheaper</title>",
        f'<text x="4" y="16">CPU per message; {BY_HAND} = 1, logarithmic</text>',
    ]
    for tick in TICKS:
        if low < tick < high:
            stroke = TEXT if tick == 1 else LINE
            parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="24" y2="{height - 20}" stroke="{stroke}"/>')
            parts.append(f'<text x="{x(tick):.1f}" y="{height - 6}" text-anchor="middle">{tick:g}</text>')
    y = 24.0
    for result in chosen:
        parts.append(f'<text x="4" y="{y + 20:.0f}" font-weight="bold">{escape(result.group.title)}</text>')
        y += HEAD
        for name, ratio in _bars(result):
            parts += _bar(name, ratio, y, x)
            y += ROW
    return "\n".join([*parts, "</svg>", ""])


def _bars(result: Result) -> Iterator[tuple[str, float]]:
    for row in result.rows:
        ratios = result.to_base(row.name)
        if ratios and result.group.main == CPU:
            yield row.name, statistics.median(ratios)


def _bar(name: str, ratio: float, y: float, x: Callable[[float], float]) -> list[str]:
    start, end = sorted((x(1), x(ratio)))
    colour = OURS if name.startswith("zroute") else OTHERS
    return [
        f'<text x="{LABELS - 8}" y="{y + 12:.0f}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{start:.1f}" y="{y + 2:.0f}" width="{max(end - start, 1.5):.1f}" height="13" fill="{colour}"/>',
        f'<text x="{end + 5:.1f}" y="{y + 12:.0f}">{ratio:.2f}</text>',
    ]
