"""Names in order, so that those that begin with a prefix are found without a look at the others. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

__all__ = ["Ordered", "apart"]

_FEW = 64
"""Changes that are made one by one: sorting 100,000 names again costs as much as 100 of these."""


class Ordered:
    """A set of names that is put in order when it is asked, and not at each `add` and `discard`."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._new: set[bytes] = set()  # none of _names
        self._gone: set[bytes] = set()  # some of _names

    def add(self, name: bytes) -> None:
        """Add a name that is not in it."""
        if name in self._gone:
            self._gone.remove(name)
        else:
            self._new.add(name)

    def discard(self, name: bytes) -> None:
        """Remove a name that is in it."""
        if name in self._new:
            self._new.remove(name)
        else:
            self._gone.add(name)

    def below(self, prefixes: Iterable[bytes], after: bytes | None = None) -> Iterator[bytes]:
        """Yield the names that begin with one of ``prefixes``, in order; only those behind ``after``, if that is given.

        The prefixes are `apart`. No name may be added or removed meanwhile.
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
            self._names.sort()  # two parts in order: that is one merge
        else:
            for name in gone:
                del self._names[bisect_left(self._names, name)]
            for name in new:
                insort(self._names, name)
        return self._names


def apart(prefixes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return ``prefixes`` in order, without those that begin with another one."""
    found: list[bytes] = []
    for prefix in sorted(prefixes):
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return tuple(found)
