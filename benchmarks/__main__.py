"""The command line: ``python -m benchmarks [--only NAME …] [--quick] …``.

One run of this command measures everything that the documentation says about speed. It skips peers that are not
installed, and the tables say so. ``pip install -e '.[dev,bench]'`` installs the Python peers. The others are Debian's
``libzmq3-dev`` with a C compiler, and ``valgrind``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import (
    asking,
    chart,
    coalesced,
    goals,
    growth,
    instructions,
    latency,
    machine,
    matching,
    memory,
    on_nats,
    page,
    publish,
    receive,
    report,
    two_processes,
)
from benchmarks.running import Group, Result, run
from benchmarks.workloads import Scale

PARTS = (receive, coalesced, publish, matching, two_processes, latency, asking, on_nats, growth, memory, instructions)
TABLES, PAGE, BARS, CURVES = "performance-tables.md", "performance.md", "performance.svg", "growth.svg"
QUICK = Scale(
    count=300, seconds=0.1, patterns=100, topics=100, requests=20, routes=100, topics_seen=1_000, instructions=False
)


def scale_of(options: argparse.Namespace) -> Scale:
    """Return the sizes of the measurements."""
    if options.quick:
        return QUICK
    return Scale(
        count=options.count,
        seconds=5.0,
        patterns=100_000,
        topics=10_000,
        requests=max(options.count // 10, 20),
        routes=10_000,
        topics_seen=1_000_000,
        instructions=options.instructions,
    )


def _some(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer of 1 or more")
    return int(text)


def _file(text: str) -> Path:
    """Return the path of an output file.

    A missing folder is refused here, before any measurement.
    """
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: folder {path.parent} does not exist")
    return path


def _folder(text: str) -> Path:
    """Return the path of a folder, which must exist before any measurement."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: folder does not exist")
    return path


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    made = argparse.ArgumentParser("python -m benchmarks", description="Measure the cost of zroute.")
    made.add_argument("--rounds", type=_some, default=5, help="rounds; each measures all contestants (default 5)")
    made.add_argument("--count", type=_some, default=100_000, help="small messages per measurement (default 100,000)")
    made.add_argument("--only", nargs="+", metavar="NAME", help="only groups with these names or name prefixes")
    made.add_argument("--quick", action="store_true", help="one round of a few messages; shows that all programs run")
    made.add_argument("--instructions", action="store_true", help="count instructions too (valgrind, minutes)")
    made.add_argument("--json", type=_file, metavar="FILE", help="also write all samples as JSON")
    made.add_argument(
        "--docs",
        type=_folder,
        metavar="FOLDER",
        help=f"also write {BARS}, {CURVES} and the tables of {PAGE} in this folder and, without --only, {TABLES}",
    )
    return made


def chosen(groups: Iterable[Group], only: list[str] | None) -> list[Group]:
    """Return the groups to run.

    A name that is no prefix of a group raises SystemExit with all names.
    """
    groups = list(groups)
    names = [group.name for group in groups]
    for wanted in only or ():
        if not any(name.startswith(wanted) for name in names):
            raise SystemExit(f"--only {wanted}: no such group; expected a name or prefix of {', '.join(names)}")
    return [group for group in groups if only is None or group.name.startswith(tuple(only))]


def main(arguments: list[str]) -> int:
    """Measure, print and write the results; return 1 if a contestant failed."""
    options = parser().parse_args(arguments)
    sizes, rounds = scale_of(options), 1 if options.quick else options.rounds
    groups = chosen((group for part in PARTS for group in part.groups(sizes)), options.only)
    console, described = Console(width=None if sys.stdout.isatty() else 180), machine.described()
    settings = f"medians of {rounds} rounds, {sizes.count:,} small messages each, all programs in each round."
    if options.quick:
        settings += " --quick shows that the programs run: its figures include their start, so do not compare them."
    report.show_machine(console, described, settings)
    results: list[Result] = []
    with Console(stderr=True).status("") as status:
        for result in run(groups, rounds, status.update):
            results.append(result)
            report.show(console, result)
    judged = [] if options.quick else goals.judge({result.group.name: result for result in results})
    if judged:
        named = {group.name for group in groups}
        report.show_goals(console, [one for one in judged if one.goal.group in named])
    if options.json:
        found = report.as_json(results, judged, described, {"rounds": rounds, "count": sizes.count})
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.docs:
        if not options.only:
            command = " ".join(["python -m benchmarks", *_without_files(arguments)])
            (options.docs / TABLES).write_text(report.as_markdown(results, judged, described, settings, command))
        write_page(options.docs, results)
    return int(any(row.failed for result in results for row in result.rows))


def write_page(folder: Path, results: Sequence[Result]) -> None:
    """Write the tables and pictures of the performance page whose groups were run; leave the others as they are."""
    written = folder / PAGE
    if written.exists():
        written.write_text(page.updated(written.read_text(), results))
    if (reason := chart.absent()) is not None:
        sys.stderr.write(f"no pictures: {reason}\n")
        return
    for name, picture in ((BARS, chart.bars(results)), (CURVES, chart.curves(results))):
        if picture is not None:
            (folder / name).write_text(picture)


def _without_files(arguments: list[str]) -> list[str]:
    files = ("--json", "--docs")
    pairs = zip(["", *arguments], arguments, strict=False)
    return [each for before, each in pairs if not each.startswith(files) and before not in files]


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # a flood of log lines would distort the figures
    sys.exit(main(sys.argv[1:]))
