"""Names in order, so that those that begin with a prefix are found without a look at the others. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

__all__ = ["Ordered", "apart"]

_FEW = 64
"""New names that are put in one by one: sorting 100,000 names again costs as much as 100 of these."""


class Ordered:
    """A set of names that is put in order when it is asked, and not at each `add`."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._new: list[bytes] = []

    def add(self, name: bytes) -> None:
        """Add a name that is not in it."""
        self._new.append(name)

    def discard(self, name: bytes) -> None:
        """Remove a name, if it is in it."""
        names = self._sorted()
        at = bisect_left(names, name)
        if at < len(names) and names[at] == name:
            del names[at]

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
        new, self._new = self._new, []
        if len(new) > _FEW:
            self._names += new
            self._names.sort()
        else:
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
