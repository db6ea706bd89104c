"""Find the patterns that match a topic, sorted by rank.

`zroute.messages.topics.matches` compares a topic with one pattern; a `Trie` compares a topic with all patterns at once.
The number of steps depends on the topic and its matches, but not on the number of patterns:

- Patterns with segments share a tree. The search descends level by level and tracks all nodes that may still match. It
  visits each node once, so no topic causes backtracking.
- A binary search over lengths finds the longest `startswith` prefix. Each step hashes one prefix of the topic
  (Waldvogel and others, "Scalable High Speed IP Routing Lookups", SIGCOMM 1997). Each prefix refers to the next shorter
  prefix that covers it.

With 100,000 patterns, a step takes longer if it reads memory that is not in the processor's caches. Each such read
takes about 100 ns, so the tree is built to need few of them:

- All matches of a small subtree are in one tuple, a *block*. The nodes of the subtree have no matches of their own,
  only positions in the block. Subtrees of equal structure therefore share their nodes: if there is a desk for each of
  10,000 numbers, with the same patterns behind the number, all desks have the same nodes and differ in their blocks.
- A search creates no object for a match, and does not read its pattern and its value.

A trie is built once from all patterns, and never changes. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs

from zroute.messages.topics import Pattern, is_text, may_begin_with

__all__ = ["Match", "Trie", "build"]

V = TypeVar("V")


@attrs.define(eq=False)
class Match(Generic[V]):
    """A value and its ``pattern``, which matches the topic.

    ``place`` is the position of this value among all values of the trie, sorted by rank. The match is the same object
    for every topic.
    """

    value: V
    pattern: Pattern
    place: int

    def captured(self, topic: bytes) -> dict[str, bytes]:
        """Return the captured segments of a matching ``topic`` by name."""
        pattern = self.pattern
        return pattern.captured(topic.split(pattern.separator)) if pattern.captures else {}


@attrs.frozen
class Trie(Generic[V]):
    """An immutable search tree of patterns and their values, created by `build`."""

    _root: _Block
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
        return found

    def _begins_empty(self, segments: list[bytes]) -> bool:
        """Return True if only the first segment is empty and the separator allows it."""
        return may_begin_with(self._separator) and len(segments) > 1 and b"" not in segments[1:]

    def _walk(self, segments: list[bytes], found: list[Match[V]]) -> None:
        """Append the matches of patterns with segments, in any order.

        Each node of a level comes with its block, and with the position of its matches in the block.
        """
        root = self._root
        level: list[tuple[_Node, _Block, int]] = [(root[0], root, 1)]
        for segment in segments:
            ahead: list[tuple[_Node, _Block, int]] = []
            for node, block, at in level:
                if node.tails:
                    start = at + node.tails_at
                    found += block[start : start + node.tails]
                if (edge := node.literals.get(segment)) is not None:
                    ahead.append((edge[0], edge, 1) if node.is_large else (edge[0], block, at + edge[1]))
                # A wildcard does not match the empty first segment of a topic such as /camera.
                if (edge := node.wildcard) is not None and segment:
                    ahead.append((edge[0], edge, 1) if node.is_large else (edge[0], block, at + edge[1]))
            level = ahead
        for node, block, at in level:
            if node.ends:
                found += block[at : at + node.ends]

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
    root: _Branch[V] = _Branch()
    prefixes: dict[bytes, list[_Placed[V]]] = {}
    separator = b"."
    ranked = sorted(pairs, key=lambda pair: pair[0].rank)  # a stable sort: equal ranks keep their order
    for place, (pattern, value) in enumerate(ranked):
        if pattern.prefix is not None:
            prefixes.setdefault(pattern.prefix, []).append((value, pattern, place))
        else:
            root.add((value, pattern, place))
        separator = pattern.separator
    return Trie(_block(root, {}), _ladder(sorted(prefixes), _linked(prefixes), first=True), separator)


_PLACE: Final = attrgetter("place")
_NO_LITERALS: Final[dict[bytes, Any]] = {}
_NOTHING: Final[list[Any]] = []
"""The empty dict and list that all nodes without literals and without matches share."""

_SMALL: Final = 256
"""The most matches of a small subtree. Up to this number, Python has one object for each int, also for a position."""

_Block: TypeAlias = tuple[Any, ...]
"""A node, followed by matches. For a small subtree these are all its matches, else only those of the node itself."""

_Placed: TypeAlias = tuple[V, Pattern, int]
"""The value, the pattern and the place of a match."""


@attrs.define(eq=False)
class _Node:
    """A node of the tree: the segments that can follow, and the numbers of matches.

    Attributes:
        literals: The child for each literal segment. Most nodes are leaves, and all leaves share the same empty dict.
        wildcard: The child for any segment, or None.
        ends: The number of matches of patterns that end at this node. They are the first ones.
        tails: The number of matches of patterns with ``>`` after this node.
        tails_at: The position of these matches, relative to the position of this node.
        is_large: True if the node has more than `_SMALL` patterns. Each of its children then has a block of its own,
            and the children are these blocks. The children of another node are pairs: the node, and the position of its
            matches, relative to the position of this node.
    """

    literals: dict[bytes, tuple[Any, ...]]
    wildcard: tuple[Any, ...] | None
    ends: int
    tails: int
    tails_at: int
    is_large: bool = False


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


@attrs.define(eq=False)
class _Branch(Generic[V]):
    """A node while the tree is built.

    ``size`` is the number of patterns in its subtree.
    """

    literals: dict[bytes, _Branch[V]] = _NO_LITERALS
    wildcard: _Branch[V] | None = None
    ends: list[_Placed[V]] = _NOTHING
    tails: list[_Placed[V]] = _NOTHING
    size: int = 0

    def add(self, placed: _Placed[V]) -> None:
        """Add a match to the tree below this node."""
        branch, pattern = self, placed[1]
        branch.size += 1
        for segment in pattern.segments:
            if isinstance(segment, bytes):
                if branch.literals is _NO_LITERALS:
                    branch.literals = {}
                child = branch.literals.get(segment)
                if child is None:
                    child = branch.literals[segment] = _Branch()
            else:
                child = branch.wildcard
                if child is None:
                    child = branch.wildcard = _Branch()
            branch = child
            branch.size += 1
        if pattern.tail:
            branch.tails = branch.tails or []
            branch.tails.append(placed)
        else:
            branch.ends = branch.ends or []
            branch.ends.append(placed)


def _block(branch: _Branch[V], known: dict[Hashable, _Node]) -> _Block:
    """Return the block of a branch.

    ``known`` contains the nodes of small subtrees by their structure. Blocks and matches are created in the order of
    the tree, so that those of a subtree are close in memory. The segments are copied, because those of the patterns are
    far apart.
    """
    if branch.size <= _SMALL:
        matches: list[Match[V]] = []
        return (_small(branch, matches, known), *matches)
    literals = {bytes(bytearray(each)): _block(branch.literals[each], known) for each in sorted(branch.literals)}
    wildcard = None if branch.wildcard is None else _block(branch.wildcard, known)
    ends, tails = len(branch.ends), len(branch.tails)
    node = _Node(literals, wildcard, ends, tails, ends, is_large=True)
    return (node, *(Match(*each) for each in (*branch.ends, *branch.tails)))


def _small(branch: _Branch[V], matches: list[Match[V]], known: dict[Hashable, _Node]) -> _Node:
    """Return the node of a small subtree.

    The matches of the subtree are appended to ``matches``, which become those of the block.
    """
    start, literals, wildcard = len(matches), _NO_LITERALS, None
    matches += [Match(*each) for each in branch.ends]
    if branch.literals:
        literals = {}
        for segment in sorted(branch.literals):
            at = len(matches) - start
            literals[segment] = _small(branch.literals[segment], matches, known), at
    if branch.wildcard is not None:
        at = len(matches) - start
        wildcard = _small(branch.wildcard, matches, known), at
    tails_at = len(matches) - start
    matches += [Match(*each) for each in branch.tails]
    ends, tails = len(branch.ends), len(branch.tails)
    structure = (*literals.items(), wildcard, ends, tails)
    return known.get(structure) or known.setdefault(structure, _Node(literals, wildcard, ends, tails, tails_at))


def _linked(prefixes: Mapping[bytes, Sequence[_Placed[V]]]) -> dict[bytes, _Prefix[V]]:
    """Return the prefixes with references to the next shorter ones."""
    linked: dict[bytes, _Prefix[V]] = {}
    for prefix in sorted(prefixes):  # a shorter prefix comes before those that it covers
        matches = tuple(Match(*each) for each in prefixes[prefix])
        linked[prefix] = _Prefix(matches, _longest(prefix, linked))
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
