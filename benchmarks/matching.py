"""Route matches without a cache, with the tables and topics of ``bench_trie.py``.

The hand-written reference is the least that a program can do with as many handlers: it finds a whole topic in a dict,
and calls the handler. It knows no wildcards and no order.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import cache, partial

from benchmarks import bench_trie
from benchmarks.running import CPU, Contestant, Figures, Group
from benchmarks.workloads import Scale
from zroute.receiving.trie import Trie, build

__all__ = ["by_hand", "groups", "measure"]


@cache
def _table(size: int) -> Trie[int]:
    return build((pattern, number) for number, pattern in enumerate(bench_trie.patterns(size)))


def measure(size: int, stream: str) -> Figures:
    """Match topics of a stream against ``size`` patterns."""
    table = _table(size)
    asked = bench_trie.topics(size, stream, random.Random(0))
    return {CPU: bench_trie.measure(table, asked)}


@cache
def _handlers(size: int) -> dict[bytes, Callable[[bytes], None]]:
    """Return a handler for each topic of the desks that match ``size`` patterns."""

    def handler(_topic: bytes) -> None:
        return None

    desks = size // bench_trie.SHAPES
    return {b"desk%d.orders.%d" % (desk, shape): handler for desk in range(desks) for shape in range(bench_trie.SHAPES)}


def by_hand(size: int) -> Figures:
    """Look up scattered topics in a dict of ``size`` topics, and call their handlers."""
    handlers, rng = _handlers(size), random.Random(0)
    known = sorted(handlers)
    asked = [bytes(bytearray(rng.choice(known))) for _ in range(bench_trie.TOPICS)]  # as new as those of a message
    began = time.thread_time_ns()
    for topic in asked:
        handlers[topic](topic)
    return {CPU: (time.thread_time_ns() - began) / len(asked)}


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
