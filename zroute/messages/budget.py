"""A size limit for caches whose entries come from peers or messages.

A look-up is as fast as in a plain dict, because the caches do not record the order of use. When the budget is
exhausted, each cache drops one in 32 of its entries, evenly spread from the oldest to the newest. A cache that is
slightly too small therefore misses only slightly more often, even if keys are used in a fixed cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

import attrs

from zroute.stats import Stats

__all__ = ["Budget", "part"]

K = TypeVar("K")

_PART = 32
"""A cache drops one in 32 entries at a time, about 3 %.

To find them, `part` visits 32 entries for each dropped one. With one in 64, this took a tenth of the time of a message
that misses. With 5 % more keys than fit, used in a cycle, 12 % of the look-ups miss, instead of 11 %.
"""


def part(cache: Iterable[K]) -> list[K]:
    """Return every 32nd key of ``cache``, starting with the oldest.

    The result holds at least one key unless the cache is empty.
    """
    return list(islice(cache, 0, None, _PART))


@attrs.define(eq=False)
class Budget:
    """A memory budget in bytes that several caches share.

    Each cache reports the bytes that it uses with `take`, and those that it frees with `give_back`.

    Attributes:
        limit: the maximum number of bytes that the caches may use together.
        stats: the counters of the run; `miss` increments ``cache_misses``.
        full: a function that is called each time the caches must drop entries.
        used: the number of bytes in use.
    """

    limit: int
    stats: Stats = attrs.field(factory=Stats)
    full: Callable[[], object] = lambda: None
    used: int = 0
    _drops: list[Callable[[], None]] = attrs.field(factory=list)

    def share(self, drop: Callable[[], None]) -> None:
        """Register a cache that drops entries when the budget is exceeded.

        ``drop`` deletes the keys that `part` selects, and calls `give_back` with the size of the deleted entries.
        """
        self._drops.append(drop)

    def miss(self) -> None:
        """Count a look-up that found no entry."""
        self.stats.cache_misses += 1

    def take(self, size: int) -> None:
        """Count ``size`` more bytes as used, and drop entries above the limit."""
        self.used += size
        if self.used > self.limit:
            self.full()
        before = self.used + 1
        while self.limit < self.used < before:  # until the entries fit, or a round drops none
            before = self.used
            for drop in self._drops:
                drop()

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes as no longer used."""
        self.used -= size
