"""The index finds quickly what `matches` finds slowly."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from zroute.errors import PatternError
from zroute.jobs.pattern_index import PatternIndex
from zroute.messages.topics import Pattern, matches, parse, startswith

PARTS = st.lists(st.sampled_from(["", "a", "b", "é", "a.b", "*"]), min_size=1, max_size=4)
PREFIXES = st.lists(st.sampled_from([b"a", b"b", b".", b"/", b"\xc3"]), max_size=4).map(b"".join)
TOPICS = st.lists(st.sampled_from([b"a", b"b", b".", b"/", "é".encode(), b"\xff"]), max_size=7).map(b"".join)


@attrs.define(eq=False)
class Value:
    """A value of a pattern."""

    kind: int
    place: int


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """Draw patterns that overlap."""
    separator = draw(st.sampled_from("./"))
    parts = draw(PARTS) + draw(st.sampled_from([[], [">"]]))
    try:
        return parse(separator.join(parts), separator)
    except PatternError:
        return startswith(draw(PREFIXES))


OFFERS = st.lists(st.lists(patterns(), min_size=1, max_size=5), max_size=4)


@given(OFFERS, st.sets(st.integers(0, 3)), st.lists(TOPICS, max_size=6))
def test_the_index_equals_asking_each_pattern(
    offers: list[list[Pattern]], removed: set[int], topics: list[bytes]
) -> None:
    """For each kind, a look-up finds the first pattern that matches; removed kinds leave nothing behind."""
    index: PatternIndex[Value] = PatternIndex()
    for kind, offer in enumerate(offers):
        for place, pattern in enumerate(offer):
            index.add(pattern, Value(kind, place))
    for kind in removed & set(range(len(offers))):
        for pattern in offers[kind]:
            index.remove(pattern, kind)
    for topic in topics:
        expected = {
            kind: next(place for place, pattern in enumerate(offer) if matches(pattern, topic) is not None)
            for kind, offer in enumerate(offers)
            if kind not in removed and any(matches(pattern, topic) is not None for pattern in offer)
        }
        found, steps = index.find(topic)
        assert {kind: value.place for kind, value in found.items()} == expected
        assert steps > len(found)
    for kind, offer in enumerate(offers):
        for pattern in offer:
            index.remove(pattern, kind)
    assert not index._tables
    assert not index._prefixes
