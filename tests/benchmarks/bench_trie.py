"""What a match costs that no cache answers: CPU ns a topic against 10, 1,000 and 100,000 patterns.

::

    python tests/benchmarks/bench_trie.py [--json FILE]

All three tables are built first and measured in turn within each round, so that a machine that changes its
pace changes it for all; the figures are medians over the rounds. Each table is asked for as many different
topics, of the same shapes and in shuffled order, each a new object, so that neither a topic nor its
hash has been seen before. A tenth of the patterns are `startswith`, and a fifth of the topics match nothing
but them, or nothing at all.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from zroute.messages.topics import Pattern, parse, startswith
from zroute.routing.trie import Trie, build

SIZES = (10, 1_000, 100_000)
TOPICS = 20_000
SHAPES = 10  # patterns and topics both come in tens


def patterns(size: int) -> list[Pattern]:
    """Tens of patterns, each ten for one desk: four literals, two captures, two wildcards, a tail, a prefix."""
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


def topics(size: int, rng: random.Random) -> list[bytes]:
    """`TOPICS` different topics of ten shapes, over all the desks of the table."""
    desks = size // SHAPES
    made = []
    for number in range(TOPICS // SHAPES):
        desk = rng.randrange(desks)
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
    """CPU ns for one of ``asked``, the loop included."""
    match = trie.match
    began = time.thread_time_ns()
    for topic in asked:
        match(topic)
    return (time.thread_time_ns() - began) / len(asked)


def run(rounds: int) -> dict[str, dict[str, float]]:
    """Medians by the number of patterns, and each in relation to the smallest table."""
    tables = {size: build((pattern, i) for i, pattern in enumerate(patterns(size))) for size in SIZES}
    figures: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(rounds):
        for size in random.sample(SIZES, len(SIZES)):
            figures[size].append(measure(tables[size], topics(size, random.Random(number))))
    ratios = {size: [a / b for a, b in zip(figures[size], figures[SIZES[0]], strict=True)] for size in SIZES}
    return {
        "ns": {str(size): round(statistics.median(figures[size]), 1) for size in SIZES},
        "ratio": {str(size): round(statistics.median(ratios[size]), 3) for size in SIZES},
    }


def main() -> None:
    """Print the figures; with ``--json`` write them too."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--json", type=Path, metavar="FILE")
    arguments.add_argument("--rounds", type=int, default=15)
    options = arguments.parse_args()
    result = run(options.rounds)
    for size in SIZES:
        print(f"{size:>8,} patterns  {result['ns'][str(size)]:8.0f} ns  x {result['ratio'][str(size)]:.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
