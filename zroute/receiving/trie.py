"""Find the patterns that match a topic, sorted by rank.

`zroute.messages.topics.matches` compares a topic with one pattern; a `Trie` compares a topic with all patterns at once.
The number of steps depends on the topic and its matches, but not on the number of patterns:

- Patterns with segments share a tree. The search descends level by level and tracks all nodes that may still match. It
  visits each node once, so no topic causes backtracking.
- A binary search over lengths finds the longest `startswith` prefix. Each step hashes one prefix of the topic
  (Waldvogel and others, "Scalable High Speed IP Routing Lookups", SIGCOMM 1997). Each prefix refers to the next shorter
  prefix that covers it.

A trie is built once from all patterns, and never changes. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

import attrs

from zroute.messages.topics import Pattern, is_text, may_begin_with

__all__ = ["Match", "Trie", "build"]

V = TypeVar("V")


@attrs.define(eq=False)
class Match(Generic[V]):
    """A value whose ``pattern`` matches the topic.

    ``place`` is the position of this value among all values of the trie, sorted by rank. ``segments`` contains the
    segments of the topic. It is None for a pattern without captures, whose match is the same object for every topic.
    """

    value: V
    pattern: Pattern
    place: int
    segments: Sequence[bytes] | None = attrs.field(default=None, repr=False)

    @property
    def captures(self) -> dict[str, bytes]:
        """The captured segments by name. They are computed on each access."""
        return self.pattern.captured(self.segments) if self.segments else {}


@attrs.frozen
class Trie(Generic[V]):
    """An immutable search tree of patterns and their values, created by `build`."""

    _root: _Node[V]
    _ladder: _Step[V] | None
    _separator: bytes

    def match(self, topic: bytes) -> list[Match[V]]:
        """Return the matches of ``topic``, the most specific first.

        Matches of equal rank are in the order in which `build` received them. ``topic`` may be any bytes. If they are
        not a valid topic (not UTF-8, or with an empty segment), only `startswith` patterns match.
        """
        segments = topic.split(self._separator)
        found: list[Match[V]] = []
        # `isascii` is much cheaper than decoding, and most topics are ASCII.
        if (b"" not in segments or self._begins_empty(segments)) and (topic.isascii() or is_text(topic)):
            self._walk(segments, found)
            if len(found) > 1:
                found.sort(key=_PLACE)
        # After the sorting: prefixes rank after all patterns with segments.
        if self._ladder is not None:
            self._climb(topic, found)
        return [m if m.segments is None else Match(m.value, m.pattern, m.place, segments) for m in found]

    def _begins_empty(self, segments: list[bytes]) -> bool:
        """Return True if only the first segment is empty and the separator allows it."""
        return may_begin_with(self._separator) and len(segments) > 1 and b"" not in segments[1:]

    def _walk(self, segments: list[bytes], found: list[Match[V]]) -> None:
        """Append the matches of patterns with segments, in any order."""
        nodes = [self._root]
        for segment in segments:
            ahead: list[_Node[V]] = []
            for node in nodes:
                if node.tails:
                    found += node.tails
                if (child := node.literals.get(segment)) is not None:
                    ahead.append(child)
                # A wildcard does not match the empty first segment of a topic such as /camera.
                if node.wildcard is not None and segment:
                    ahead.append(node.wildcard)
            nodes = ahead
        for node in nodes:
            found += node.ends

    def _climb(self, topic: bytes, found: list[Match[V]]) -> None:
        """Append the matches of `startswith` patterns, the longest prefix first."""
        step, longest = self._ladder, None
        while step is not None:
            hit = step.hits.get(topic[: step.length])
            if hit is None:
                step = step.shorter
            else:
                longest, step = hit
        while longest is not None:
            found += longest.matches
            longest = longest.shorter


def build(pairs: Iterable[tuple[Pattern, V]]) -> Trie[V]:
    """Return a `Trie` of ``pairs``.

    A pattern may occur several times with different values, and with other names of its captures. All patterns have
    the same separator.
    """
    root: _Node[V] = _Node()
    prefixes: dict[bytes, tuple[Match[V], ...]] = {}
    separator = b"."
    for pattern, matches in _grouped(pairs):
        if pattern.prefix is not None:
            prefixes[pattern.prefix] = matches
        elif pattern.tail:
            _descend(root, pattern).tails = matches
        else:
            _descend(root, pattern).ends = matches
        separator = pattern.separator
    return Trie(root, _ladder(sorted(prefixes), _linked(prefixes), first=True), separator)


_PLACE: Final = attrgetter("place")
_LEAF: Final[dict[bytes, Any]] = {}
"""The empty dict that all nodes without literals share."""


@attrs.define(eq=False)
class _Node(Generic[V]):
    """A node of the tree: the segments that can follow, and the matches.

    ``ends`` contains the patterns that end at this node, and ``tails`` the patterns with ``>`` after this node. Most
    nodes are leaves, and all leaves share the same empty dict.
    """

    literals: dict[bytes, _Node[V]] = _LEAF
    wildcard: _Node[V] | None = None
    ends: tuple[Match[V], ...] = ()
    tails: tuple[Match[V], ...] = ()


@attrs.define(eq=False)
class _Prefix(Generic[V]):
    """The matches of a prefix, and the longest shorter prefix that covers it."""

    matches: tuple[Match[V], ...]
    shorter: _Prefix[V] | None


@attrs.define(eq=False)
class _Step(Generic[V]):
    """A step of the binary search: look up the first ``length`` bytes of a topic.

    ``hits`` maps these bytes to the longest prefix with which they begin, and to the step that searches for a longer
    prefix. If the bytes are not in ``hits``, the search continues with ``shorter``.
    """

    length: int
    hits: dict[bytes, tuple[_Prefix[V] | None, _Step[V] | None]]
    shorter: _Step[V] | None


def _grouped(pairs: Iterable[tuple[Pattern, V]]) -> Iterator[tuple[Pattern, tuple[Match[V], ...]]]:
    """Yield one pattern of each shape, with all matches of the shape sorted by rank.

    Patterns that differ only in the names of their captures have the same shape. The shapes are sorted by their texts,
    so that neighbours in the tree are created one after the other and are close in memory. In a large tree, this saves
    5 % of the time of a match.
    """
    groups: dict[Hashable, list[Match[V]]] = {}
    ranked = sorted(pairs, key=lambda pair: pair[0].rank)  # a stable sort: equal ranks keep their order
    for place, (pattern, value) in enumerate(ranked):
        match = Match(value, pattern, place, () if pattern.captures else None)
        groups.setdefault(pattern.shape, []).append(match)
    for group in sorted(groups.values(), key=lambda group: group[0].pattern.text):
        yield group[0].pattern, tuple(group)


def _descend(node: _Node[V], pattern: Pattern) -> _Node[V]:
    """Return the node after the last segment of ``pattern``; create missing nodes."""
    for segment in pattern.segments:
        if isinstance(segment, bytes):
            if node.literals is _LEAF:
                node.literals = {}
            node = node.literals.setdefault(segment, _Node())
        else:
            if node.wildcard is None:
                node.wildcard = _Node()
            node = node.wildcard
    return node


def _linked(prefixes: Mapping[bytes, tuple[Match[V], ...]]) -> dict[bytes, _Prefix[V]]:
    """Return the prefixes with references to the next shorter ones."""
    linked: dict[bytes, _Prefix[V]] = {}
    for prefix in sorted(prefixes):  # a shorter prefix comes before those that it covers
        linked[prefix] = _Prefix(prefixes[prefix], _longest(prefix, linked))
    return linked


def _longest(text: bytes, linked: Mapping[bytes, _Prefix[V]]) -> _Prefix[V] | None:
    """Return the longest prefix in ``linked`` with which ``text`` begins, or None."""
    return next((linked[text[:n]] for n in range(len(text), -1, -1) if text[:n] in linked), None)


def _ladder(prefixes: list[bytes], linked: Mapping[bytes, _Prefix[V]], *, first: bool = False) -> _Step[V] | None:
    """Return the first step of the binary search for ``prefixes``.

    Each step looks up the median of the lengths that are still possible. The very first step (``first``) looks up the
    shortest length instead, because most topics do not begin with any of the prefixes.
    """
    if not prefixes:
        return None
    lengths = sorted({len(prefix) for prefix in prefixes})
    middle = lengths[0] if first else lengths[len(lengths) // 2]
    longer: dict[bytes, list[bytes]] = {}
    for prefix in prefixes:
        if len(prefix) >= middle:
            longer.setdefault(prefix[:middle], []).append(prefix)
    hits = {
        head: (_longest(head, linked), _ladder([p for p in group if len(p) > middle], linked))
        for head, group in longer.items()
    }
    return _Step(middle, hits, _ladder([p for p in prefixes if len(p) < middle], linked))
