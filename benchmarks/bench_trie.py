"""Measure uncached route matches: CPU ns per topic, 10 to 100,000 patterns.

::

    python benchmarks/bench_trie.py [--json FILE]

All tables are built first. Each round then measures one table after the other, so that a change of the machine's pace
affects all of them. The figures are medians over the rounds; ratios compare with the smallest table of the same round.
Each measurement matches the same number of different topics, of the same shapes and in shuffled order.

The ``busy`` stream has topics of `BUSY` desks, spread over the table. The ``scattered`` stream has topics of all
desks, so a large table hardly ever finds its data in the processor's caches, and a table of 10 patterns always does.
Both streams take the same steps: the difference between them is the cost of memory access.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from zroute.messages.topics import Pattern, parse, startswith
from zroute.receiving.trie import Trie, build

SIZES = (10, 1_000, 100_000)
TOPICS = 20_000
STREAMS = ("busy", "scattered")
BUSY = 100
SHAPES = 10  # patterns and topics both come in tens


def patterns(size: int) -> list[Pattern]:
    """Return ten patterns per desk.

    Four are literal, two have captures, two have wildcards, one has a tail and one is a prefix.
    """
    made: list[Pattern] = []
    for desk in range(size // SHAPES):
        made += [parse(f"desk{desk}.orders.{verb}") for verb in ("new", "filled", "cancelled", "rejected")]
        made += [
            parse(f"desk{desk}.stocks.{{symbol}}"),
            parse(f"desk{desk}.{{region}}.status"),
            parse(f"desk{desk}.*.alerts"),
            parse(f"desk{desk}.news.*.urgent"),
            parse(f"desk{desk}.logs.>"),
            startswith(f"raw{desk}.{'x' * (desk % 7)}"),
        ]
    return made


def topics(size: int, stream: str, rng: random.Random) -> list[bytes]:
    """Return `TOPICS` different topics of ten shapes for the desks of a table.

    One of the shapes matches nothing.
    """
    desks: Sequence[int] = range(size // SHAPES)
    if stream == "busy":
        desks = rng.sample(desks, min(BUSY, len(desks)))
    made = []
    for number in range(TOPICS // SHAPES):
        desk = rng.choice(desks)
        made += [
            f"desk{desk}.orders.filled",
            f"desk{desk}.orders.new",
            f"desk{desk}.stocks.s{number}",
            f"desk{desk}.stocks.t{number}",
            f"desk{desk}.r{number}.status",
            f"desk{desk}.r{number}.alerts",
            f"desk{desk}.news.n{number}.urgent",
            f"desk{desk}.logs.app.l{number}",
            f"raw{desk}.xxxxxxx.{number}",
            f"desk{desk}.nothing.n{number}",
        ]
    rng.shuffle(made)
    return [topic.encode() for topic in made]


def measure(trie: Trie[int], asked: list[bytes]) -> float:
    """Return the CPU ns per topic, including the loop."""
    match = trie.match
    began = time.thread_time_ns()
    for topic in asked:
        match(topic)
    return (time.thread_time_ns() - began) / len(asked)


def run(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return median ns, and ratios to the smallest table, by stream and size."""
    tables = {size: build((pattern, i) for i, pattern in enumerate(patterns(size))) for size in SIZES}
    cases = [(stream, size) for stream in STREAMS for size in SIZES]
    figures: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        for stream, size in random.sample(cases, len(cases)):
            asked = topics(size, stream, random.Random(number))
            figures[stream, size].append(measure(tables[size], asked))
    result: dict[str, dict[str, dict[str, float]]] = {stream: {} for stream in STREAMS}
    for stream, size in cases:
        here, smallest = figures[stream, size], figures[stream, SIZES[0]]
        ratio = statistics.median(a / b for a, b in zip(here, smallest, strict=True))
        result[stream][str(size)] = {"ns": round(statistics.median(here), 1), "ratio": round(ratio, 3)}
    return result


def main() -> None:
    """Print the figures; with ``--json`` also write them to a file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--json", type=Path, metavar="FILE")
    arguments.add_argument("--rounds", type=int, default=15)
    options = arguments.parse_args()
    result = run(options.rounds)
    for stream, by_size in result.items():
        for size, figure in by_size.items():
            print(f"{stream:<10} {int(size):>8,} patterns {figure['ns']:8.0f} ns   x {figure['ratio']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
