"""A sorted set of names that finds all names with a prefix quickly.

Adding and removing names is cheap, because sorting is delayed until the next search.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

__all__ = ["Ordered", "apart"]

_FEW = 64
"""The maximum number of changes for which names are inserted one by one.

Sorting 100,000 names again costs as much as about 100 insertions.
"""


class Ordered:
    """A set of names that is sorted on a search, not on each `add` and `discard`."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._new: set[bytes] = set()  # added, not yet in _names
        self._gone: set[bytes] = set()  # removed, still in _names

    def add(self, name: bytes) -> None:
        """Add a name that is not in the set."""
        if name in self._gone:
            self._gone.remove(name)
        else:
            self._new.add(name)

    def discard(self, name: bytes) -> None:
        """Remove a name that is in the set."""
        if name in self._new:
            self._new.remove(name)
        else:
            self._gone.add(name)

    def below(self, prefixes: Iterable[bytes], after: bytes | None = None) -> Iterator[bytes]:
        """Yield the names that begin with one of ``prefixes``, in order.

        ``prefixes`` must be a result of `apart`. With ``after``, only names after it in the sort order are yielded. The
        set must not change during the iteration.
        """
        names = self._sorted()
        first = 0 if after is None else bisect_right(names, after)
        for prefix in prefixes:
            for at in range(bisect_left(names, prefix, first), len(names)):
                if not names[at].startswith(prefix):
                    break
                yield names[at]

    def _sorted(self) -> list[bytes]:
        new, self._new = self._new, set()
        gone, self._gone = self._gone, set()
        if len(new) + len(gone) > _FEW:
            self._names = [name for name in self._names if name not in gone]
            self._names += sorted(new)
            self._names.sort()  # both parts are sorted, so this is a single merge
        else:
            for name in gone:
                del self._names[bisect_left(self._names, name)]
            for name in new:
                insort(self._names, name)
        return self._names


def apart(prefixes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the sorted ``prefixes``, without those that begin with another prefix."""
    found: list[bytes] = []
    for prefix in sorted(prefixes):
        # A prefix sorts directly before the names that begin with it, so comparing with the last one found is enough.
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return tuple(found)
