"""The tables in the performance page, which ``python -m benchmarks --docs FOLDER`` writes.

They have the few figures that most readers look for. A table is written only if all its groups were run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.coalesced import MANY_A_FRAME
from benchmarks.memory import MEMORY
from benchmarks.on_nats import WITH_HEADER
from benchmarks.peers_nats import FASTSTREAM, NATS_PY
from benchmarks.publish import FOUR, ONE, SEND_MULTIPART
from benchmarks.report import number
from benchmarks.running import CPU, Result
from benchmarks.workloads import ASYNCIO, BY_HAND, MULTIPART, PLAIN, TRACKED, TXZMQ
from tests.support import ROOT

__all__ = ["BEGIN", "END", "FORMS", "NAMES", "NATS", "OTHERS", "updated"]

BEGIN, END = "<!-- begin: {name}, written by python -m benchmarks -->", "<!-- end: {name} -->"
"""The lines around a table."""

FORMS: Mapping[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    "received": (
        ("receive-json", "receive-100-topics"),
        (MULTIPART, ASYNCIO, TXZMQ, NATS_PY, FASTSTREAM, TRACKED, PLAIN, BY_HAND),
    ),
    "published": (("publish-json", "publish-100-topics"), (SEND_MULTIPART, FOUR, ONE, PLAIN, BY_HAND)),
}
"""By name of a table: its groups with one topic and with 100, and its rows."""

OTHERS = (
    (f"receive, {MANY_A_FRAME.partition(', ')[2]}", "1", "coalesced", MANY_A_FRAME),
    ("from process to process over TCP, the reader, txZMQ", "1", "end-to-end", f"{TXZMQ}, publisher by hand"),
    ("the same, nats-py", "1", "end-to-end", NATS_PY),
    ("the same, FastStream", "1", "end-to-end", FASTSTREAM),
    (f"the same, {TRACKED}", "1", "end-to-end", TRACKED),
    ("request and reply over TCP, 64 under way, txZMQ", "1", "requests", "txZMQ"),
    ("the same, zroute", "1", "requests", "zroute"),
    (f"one-way latency over TCP, p50, 1,000 messages a second, {TRACKED}", "1", "latency-1000", TRACKED),
    ("the same, 50,000 messages a second", "1", "latency-50000", TRACKED),
    ("memory of received topics", "1,000,000", "memory", "1,000,000 topics received"),
)
"""The rows of the third table: what, number of topics, group, and contestant."""

NATS = (
    ("receive, tracked wire / nats-py with the same messages, header and all", "nats-receive", TRACKED, WITH_HEADER),
    ("receive, plain wire / nats-py without headers", "nats-receive", PLAIN, NATS_PY),
    ("receive, tracked wire / FastStream, without headers", "nats-receive", TRACKED, FASTSTREAM),
    ("publish, tracked wire / nats-py with a header of the same size", "nats-publish", TRACKED, WITH_HEADER),
    ("publish, plain wire / nats-py without headers", "nats-publish", PLAIN, NATS_PY),
    ("request and reply, 64 under way / `request` and `respond` of nats-py", "nats-requests", TRACKED, NATS_PY),
)
"""The rows of the table of NATS: what, group, and the two contestants."""

RATIOS = ROOT / "tests" / "data" / "instruction-ratios.json"
"""The output of ``python -m benchmarks.instruction_ratios``, from which the table of instructions is made."""

NAMES = (*FORMS, "others", "nats", "instructions")
"""The names of all tables."""


def updated(text: str, results: Sequence[Result]) -> str:
    """Return the text of the page with all tables whose groups were run, and that have a place in the page."""
    groups = {result.group.name: result for result in results}
    for name, (pair, rows) in FORMS.items():
        if groups.keys() >= set(pair):
            text = _replaced(text, name, _pairs([groups[each] for each in pair], rows))
    if groups.keys() >= {group for _, _, group, _ in OTHERS}:
        text = _replaced(text, "others", _others(groups))
    if groups.keys() >= {group for _, group, _, _ in NATS}:
        text = _replaced(text, "nats", _nats(groups))
    return _replaced(text, "instructions", _instructions(json.loads(RATIOS.read_text())["ratios"]))


def _replaced(text: str, name: str, table: str) -> str:
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}" if found else text


def _pairs(results: Sequence[Result], rows: Sequence[str]) -> str:
    lines = [f"| | 1 topic | relative to the {BY_HAND} | 100 topics in turn | relative |", "|---|---:|---:|---:|---:|"]
    for name in rows:
        cells = [cell for result in results for cell in _cells(result, name)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _others(groups: Mapping[str, Result]) -> str:
    lines = ["| | topics | | relative to hand-written pyzmq |", "|---|---:|---:|---:|"]
    lines += [
        f"| {what} | {topics} | {' | '.join(_cells(groups[group], name))} |" for what, topics, group, name in OTHERS
    ]
    return "\n".join(lines)


def _nats(groups: Mapping[str, Result]) -> str:
    lines = ["| | zroute | other program | ratio | lowest to highest |", "|---|---:|---:|---:|---:|"]
    for what, group, ours, theirs in NATS:
        result = groups[group]
        ratios = result.ratios(ours, theirs)
        spread = f"{number(min(ratios))} to {number(max(ratios))}" if ratios else ""
        found = [number(statistics.median(ratios) if ratios else None), spread]
        lines.append("| " + " | ".join([what, *(_cells(result, name)[0] for name in (ours, theirs)), *found]) + " |")
    return "\n".join(lines)


def _instructions(ratios: Mapping[str, float]) -> str:
    """Return the table of instructions; a ratio's name is ``work: zroute, plain wire`` or the like."""
    names = [name.partition(": ")[::2] for name in ratios]
    wires = list(dict.fromkeys(wire for _, wire in names))
    lines = [f"| | {' | '.join(wires)} |", "|---" + "|---:" * len(wires) + "|"]
    for work in dict.fromkeys(work for work, _ in names):
        found = (ratios.get(f"{work}: {wire}") for wire in wires)
        lines.append(f"| {work} | {' | '.join('' if each is None else f'{each:.2f}' for each in found)} |")
    return "\n".join(lines)


def _cells(result: Result, name: str) -> tuple[str, str]:
    """Return the main figure of a row, and its ratio; a missing row has the reason in place of the figure."""
    row = {row.name: row for row in result.rows}.get(name)
    if row is None:
        return "", ""
    figure, ratios = row.median(result.group.main), result.to_base(name)
    if figure is None:
        return row.skipped or "not measured", ""
    value, unit = {
        CPU: (figure / 1000, "µs"),
        "p50 us": (figure, "µs"),
        MEMORY: (figure, "MiB"),
    }[result.group.main]
    return f"{number(value)} {unit}", number(statistics.median(ratios) if ratios else None)
