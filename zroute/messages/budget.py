"""Budget: the bytes that caches may hold whose entries peers or messages choose.

A cache looks up a key at the cost of a plain dict, and keeps no order of use. When its budget is used up, it drops a
part of what it holds, the oldest first and the rest spread evenly: so a cache that is a little too small misses a
little, also where keys come in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

import attrs

from zroute.stats import Stats

__all__ = ["Budget", "part"]

K = TypeVar("K")

_PART = 64


def part(cache: Iterable[K]) -> list[K]:
    """Return one in 64 keys of ``cache``, beginning with the oldest: at least one, if there are any."""
    return list(islice(cache, 0, None, _PART))


@attrs.define(eq=False)
class Budget:
    """Up to ``limit`` bytes for all caches that share it, as they count them.

    ``stats`` counts what was not known. ``full`` is called each time that caches have to drop something.
    """

    limit: int
    stats: Stats = attrs.field(factory=Stats)
    full: Callable[[], object] = lambda: None
    used: int = 0
    _drops: list[Callable[[], None]] = attrs.field(factory=list)

    def share(self, drop: Callable[[], None]) -> None:
        """Have ``drop`` called when there are too many bytes: it forgets `part` of a cache, and calls `give_back`."""
        self._drops.append(drop)

    def miss(self) -> None:
        """Count something that was not known."""
        self.stats.cache_misses += 1

    def take(self, size: int) -> None:
        """Count ``size`` bytes that are held from now on, and make room if they are too many."""
        self.used += size
        if self.used > self.limit:
            self.full()
        before = self.used + 1
        while self.limit < self.used < before:  # until there is room, or nothing is left to drop
            before = self.used
            for drop in self._drops:
                drop()

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes that are held no more."""
        self.used -= size
