"""Route matches without a cache, with the tables and topics of ``bench_trie.py``."""

from __future__ import annotations

import random
from functools import cache, partial

from benchmarks import bench_trie
from benchmarks.running import CPU, Contestant, Figures, Group
from benchmarks.workloads import Scale
from zroute.receiving.trie import Trie, build

__all__ = ["groups", "measure"]


@cache
def _table(size: int) -> Trie[int]:
    return build((pattern, number) for number, pattern in enumerate(bench_trie.patterns(size)))


def measure(size: int, stream: str) -> Figures:
    """Match topics of a stream against ``size`` patterns."""
    table = _table(size)
    asked = bench_trie.topics(size, stream, random.Random(0))
    return {CPU: bench_trie.measure(table, asked)}


def groups(scale: Scale) -> list[Group]:
    """Return the group for topics of a few busy desks; `benchmarks.growth` has that for topics of all desks."""
    sizes = (10, max(scale.patterns // 100, 20), scale.patterns)
    return [
        Group(
            "match-busy",
            "route match, topic not in the cache, topics of 100 busy desks",
            tuple(Contestant(f"{size:,} patterns", partial(measure, size, "busy")) for size in sizes),
            "10 patterns",
        )
    ]
