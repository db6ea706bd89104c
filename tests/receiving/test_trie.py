"""The trie finds quickly what `matches` finds slowly, and the cover is minimal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any, TypeVar
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from zroute.errors import PatternError
from zroute.messages.topics import Pattern, matches, minimal_cover, parse, startswith
from zroute.receiving import trie as module
from zroute.receiving.trie import build

V = TypeVar("V")

PARTS = st.lists(st.sampled_from(["a", "b", "ab", "é", "*", "{}"]), max_size=4)
PREFIXES = st.lists(st.sampled_from([b"a", b"b", b".", b"\xc3", b"\xff"]), max_size=6).map(b"".join)
TOPICS = st.one_of(
    st.lists(st.sampled_from([b"a", b"b", b"ab", "é".encode(), b"*", b">"]), min_size=1, max_size=5).map(b".".join),
    st.lists(st.sampled_from([b"a", b"b", b".", b"\xc3", b"\xa9", b"\xff"]), max_size=7).map(b"".join),
)


@st.composite
def segment_patterns(draw: st.DrawFn) -> Pattern:
    """Draw patterns of few segments, so that they overlap; the names of captures differ between patterns."""
    name = draw(st.sampled_from(["x", "y"]))
    parts = [f"{{{name}{i}}}" if part == "{}" else part for i, part in enumerate(draw(PARTS))]
    if not parts or draw(st.booleans()):
        parts.append(draw(st.sampled_from([">", "{rest+}"])))
    return parse(".".join(parts))


PATTERNS = st.lists(st.one_of(segment_patterns(), PREFIXES.map(startswith)), max_size=12)


SMALL = st.sampled_from([0, 1, 3, module._SMALL])
"""The most matches of a small subtree. With few, also a trie of few patterns has large nodes."""


def build_with(small: int, pairs: Iterable[tuple[Pattern, V]]) -> module.Trie[V]:
    """Build a trie whose small subtrees have up to ``small`` matches."""
    with patch.object(module, "_SMALL", small):
        return build(pairs)


@given(SMALL, PATTERNS, st.lists(TOPICS, max_size=6))
def test_the_trie_equals_asking_each_pattern(small: int, patterns: list[Pattern], topics: list[bytes]) -> None:
    """Each message reaches exactly the handlers whose pattern matches, the most specific first."""
    trie = build_with(small, ((pattern, number) for number, pattern in enumerate(patterns)))
    for topic in topics:
        expected = [
            (number, pattern.text, captures)
            for number, pattern in sorted(enumerate(patterns), key=lambda pair: (pair[1].rank, pair[0]))
            if (captures := matches(pattern, topic)) is not None
        ]
        assert [(m.value, m.pattern.text, m.captured(topic)) for m in trie.match(topic)] == expected


@given(
    SMALL,
    st.lists(st.lists(st.sampled_from(["", "a", ".", "*", "{x}"]), min_size=1, max_size=3), max_size=8),
    st.data(),
)
def test_the_trie_equals_asking_each_pattern_also_with_slashes(
    small: int, parts: list[list[str]], data: st.DataObject
) -> None:
    """With slashes, topics and patterns may begin with one, and the trie still finds what the patterns match."""
    texts = {"/".join(dict.fromkeys(part)) + data.draw(st.sampled_from(["", "/>", "/{rest+}"])) for part in parts}
    patterns = [pattern for text in sorted(texts) if (pattern := _parsed(text)) is not None]
    patterns.append(parse(">", "/"))
    trie = build_with(small, ((pattern, pattern.text) for pattern in patterns))
    topic = b"/".join(data.draw(st.lists(st.sampled_from([b"", b"a", b".", b"\xff"]), max_size=4)))
    expected = {pattern.text: captures for pattern in patterns if (captures := matches(pattern, topic)) is not None}
    assert {m.value: m.captured(topic) for m in trie.match(topic)} == expected
    assert all(topic.startswith(pattern.subscription) for pattern in patterns if pattern.text in expected)


def _parsed(text: str) -> Pattern | None:
    try:
        return parse(text, "/")
    except PatternError:
        return None


@given(st.lists(PREFIXES, max_size=20), PREFIXES)
def test_many_prefixes_are_all_found(prefixes: list[bytes], topic: bytes) -> None:
    """Nested prefixes of many lengths are all found, the longest first."""
    trie = build((startswith(prefix), prefix) for prefix in prefixes)
    found = [match.value for match in trie.match(topic)]
    assert found == sorted((p for p in prefixes if topic.startswith(p)), key=len, reverse=True)


def test_values_need_no_order() -> None:
    """Two handlers on one pattern are called in the order of registration; they need not be comparable."""
    values = [object(), {}, len, object()]
    trie = build((parse(text), v) for text, v in zip(["a.{x}", "a.*", "a.{y}", "a.>"], values, strict=True))
    assert [match.value for match in trie.match(b"a.b")] == values


def test_a_route_may_come_more_than_once() -> None:
    """A handler with several patterns is listed for each of them, so that the best can be chosen."""
    trie = build([(parse("a.>"), "h"), (parse("a.{x}"), "h")])
    assert [(match.value, match.pattern.text) for match in trie.match(b"a.b")] == [("h", "a.{x}"), ("h", "a.>")]


def test_an_empty_trie_matches_nothing() -> None:
    """A trie without patterns matches no topic."""
    assert build([]).match(b"a.b") == []
    assert build([]).match(b"") == []


def test_a_wildcard_from_a_peer_is_a_name_like_any_other() -> None:
    """A message whose topic contains `*` or `>` reaches only the handlers that match these characters."""
    trie = build([(parse("a"), 1), (parse("*"), 2), (parse("a.>"), 3)])
    assert [match.value for match in trie.match(b"*")] == [2]
    assert [match.value for match in trie.match(b">")] == [2]


def test_subtrees_of_equal_structure_share_their_nodes() -> None:
    """With the same patterns for each of many desks, a search reads few objects that belong to one desk."""
    texts = ("new", "orders.filled", "stocks.{symbol}", "*.alerts", "logs.>")
    topics = ("new", "orders.filled", "stocks.a", "a.alerts", "logs.a.b")
    pairs = [(parse(f"desk{number}.{text}"), (number, text)) for text in texts for number in range(200)]
    one, many = build(pair for pair in pairs if pair[1][0] == 7), build(pairs)
    assert len(_nodes(many._root)) == len(_nodes(one._root))
    for trie in (one, many):
        found = [[match.value for match in trie.match(f"desk7.{topic}".encode())] for topic in topics]
        assert found == [[(7, text)] for text in texts]


def _nodes(child: Any) -> set[module._Node]:
    """Return the nodes of a subtree."""
    node = child[0]
    children = (*node.literals.values(), *([node.wildcard] if node.wildcard else ()))
    return {node}.union(*map(_nodes, children))


def test_thousands_of_handlers_of_one_pattern_keep_their_order() -> None:
    """The matches of one pattern fill more than a small subtree, and each handler is found once."""
    for text, topic in (("a.b", b"a.b"), ("a.>", b"a.b.c"), ("*", b"a")):
        trie = build((parse(text), number) for number in range(2_000))
        assert [match.value for match in trie.match(topic)] == list(range(2_000))


def test_the_number_of_steps_does_not_explode() -> None:
    """With wildcards in every segment and a mismatch at the end, the steps grow no faster than the patterns."""
    masks = [f"{n:08b}".translate({48: "a.", 49: "*."}) + "b" for n in range(256)]
    trie = build((parse(text), text) for text in masks)
    assert trie.match(b".".join([b"a"] * 9)) == []
    assert len(trie.match(b".".join([b"a"] * 8 + [b"b"]))) == 256


# -- the cover -------------------------------------------------------------------------------------------


def brute_force_cover(prefixes: list[bytes]) -> tuple[bytes, ...]:
    """Return the smallest subset such that each of ``prefixes`` begins with a member of it."""
    distinct = sorted(set(prefixes))
    for size in range(len(distinct) + 1):
        for chosen in combinations(distinct, size):
            if all(any(prefix.startswith(cover) for cover in chosen) for prefix in distinct):
                return chosen
    raise AssertionError("all of them cover all of them")


@given(st.lists(PREFIXES, max_size=7))
def test_the_cover_is_the_smallest_there_is(prefixes: list[bytes]) -> None:
    """The cover has as few subscriptions as possible, and misses no prefix."""
    assert minimal_cover(prefixes) == brute_force_cover(prefixes)


def test_the_empty_prefix_covers_all() -> None:
    """The empty prefix covers all others."""
    assert minimal_cover([b"news", b"", b"a"]) == (b"",)


def test_no_prefixes_need_no_cover() -> None:
    """Without prefixes the cover is empty."""
    assert minimal_cover([]) == ()
