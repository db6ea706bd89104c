"""Find the patterns that match a topic, among the patterns of all workers.

The time of a look-up must not depend on the number of patterns, because a malicious worker may offer any patterns.
Patterns with the same number of segments and wildcards at the same places share a table, and a look-up needs one hash
for each table. A topic of n segments has at most 2ⁿ⁺¹ tables, and a topic of n bytes has n + 1 tables of prefixes.

`zroute.receiving.trie` is built once, but this index changes whenever a worker joins or leaves. This module does no
I/O.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from zroute.messages.topics import Pattern, is_text, may_begin_with

__all__ = ["Indexed", "PatternIndex"]


class Indexed(Protocol):
    """The attributes of a value in the index.

    Of the values with the same ``kind``, `PatternIndex.find` returns only the one with the lowest ``place``.
    """

    kind: int
    place: int


V = TypeVar("V", bound=Indexed)


class PatternIndex(Generic[V]):
    """The patterns of all workers, each with its values."""

    def __init__(self) -> None:
        self._tables: dict[bytes, dict[tuple[int, bool], dict[tuple[int, ...], dict[Any, dict[int, V]]]]] = {}
        self._prefixes: dict[int, dict[bytes, dict[int, V]]] = {}

    def add(self, pattern: Pattern, value: V) -> None:
        """Add a value, unless the pattern already has a value of this kind."""
        level, path = self._path(pattern)
        for key in path:
            level = level.setdefault(key, {})
        level.setdefault(value.kind, value)

    def remove(self, pattern: Pattern, kind: int) -> None:
        """Remove the value of this kind from a pattern, if there is one."""
        level, path = self._path(pattern)
        above = []
        for key in path:
            if key not in level:
                return
            above.append((level, key))
            level = level[key]
        level.pop(kind, None)
        while above and not level:
            level, key = above.pop()
            del level[key]

    def find(self, topic: bytes) -> tuple[dict[int, V], int]:
        """Return the values of the patterns that match ``topic``.

        Returns:
            The values by kind, and the number of steps of the look-up.
        """
        found: dict[int, V] = {}
        steps = 1
        for separator, sizes in self._tables.items():
            segments = topic.split(separator)
            if b"" in segments[may_begin_with(separator) :] or not topic or not is_text(topic):
                continue
            for (size, tail), tables in sizes.items():
                if size >= len(segments) if tail else size != len(segments):
                    continue
                for places, table in tables.items():
                    if segments[0] or not size or 0 in places:  # a wildcard does not match an empty segment
                        steps += 1 + _collect(table.get(tuple([segments[place] for place in places])), found)
        for length, prefixes in self._prefixes.items():
            if length <= len(topic):
                steps += 1 + _collect(prefixes.get(topic[:length]), found)
        return found, steps

    def _path(self, pattern: Pattern) -> tuple[Any, tuple[Any, ...]]:
        """Return the outermost table for a pattern, and the keys of its values."""
        if pattern.prefix is not None:
            return self._prefixes, (len(pattern.prefix), pattern.prefix)
        segments = pattern.segments
        places = tuple([place for place, segment in enumerate(segments) if isinstance(segment, bytes)])
        literals = tuple([segments[place] for place in places])
        return self._tables, (pattern.separator, (len(segments), pattern.tail), places, literals)


def _collect(values: dict[int, V] | None, found: dict[int, V]) -> int:
    """Add values to ``found``; return their number."""
    if values is None:
        return 0
    for kind, value in values.items():
        # A worker offers its most specific patterns first, so the smallest place wins.
        if kind not in found or value.place < found[kind].place:
            found[kind] = value
    return len(values)
