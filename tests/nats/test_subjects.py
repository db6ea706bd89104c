"""Subjects: patterns and topics of zroute in the grammar of NATS."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import sized
from zroute.errors import PatternError, TopicError
from zroute.messages.topics import MAX_TOPIC, Pattern, parse, startswith, topic_bytes
from zroute.messages.topics import matches as zroute_matches
from zroute.nats.subjects import _Node, check_topic, generalise, is_reserved, overlap, subject_of
from zroute.receiving.trie import build

TOKENS = st.sampled_from([b"a", b"b", b"*"])
SUBJECTS = st.builds(
    lambda tokens, tail: b".".join([*tokens, b">"] if tail else tokens),
    st.lists(TOKENS, min_size=1, max_size=4),
    st.booleans(),
) | st.just(b">")
TOPICS = [".".join(tokens).encode() for n in range(1, 6) for tokens in itertools.product("abc", repeat=n)]
"""All topics of up to five segments, with a segment that no subject names."""


def nats_matches(subject: bytes, topic: bytes) -> bool:
    """Return True if a NATS server delivers ``topic`` to a subscription of ``subject``."""
    wanted, found = subject.split(b"."), topic.split(b".")
    for i, token in enumerate(wanted):
        if token == b">":
            return len(found) > i
        if i >= len(found) or token not in (b"*", found[i]):
            return False
    return len(wanted) == len(found)


# -- generalise ------------------------------------------------------------------------------------------


@settings(max_examples=sized(3_000, 300))
@given(st.lists(SUBJECTS, max_size=7))
def test_merged_subjects_match_each_wanted_topic_exactly_once(subjects: list[bytes]) -> None:
    """Merged subjects never miss a topic, and never match a topic twice; the wanted ones match nothing else twice."""
    merged = generalise(subjects)
    for topic in TOPICS:
        times = sum(nats_matches(each, topic) for each in merged)
        assert times <= 1, (merged, topic)
        assert times == 1 or not any(nats_matches(each, topic) for each in subjects), (merged, topic)


@given(st.lists(SUBJECTS, max_size=6), st.randoms())
def test_the_order_of_subjects_does_not_matter(subjects: list[bytes], chance: object) -> None:
    """The same subjects in another order give the same result, which is stable under another merge."""
    merged = generalise(subjects)
    chance.shuffle(subjects)  # type: ignore[attr-defined]
    assert generalise(subjects) == generalise(merged) == merged


@given(SUBJECTS, SUBJECTS)
def test_overlap_is_a_shared_topic(one: bytes, other: bytes) -> None:
    """Two subjects overlap if and only if a topic matches both."""
    shared = any(nats_matches(one, topic) and nats_matches(other, topic) for topic in TOPICS)
    assert overlap(one, other) == overlap(other, one) == shared


@pytest.mark.parametrize(
    ("subjects", "merged"),
    [
        ([], []),
        (["news.a", "news.b"], ["news.a", "news.b"]),
        (["news.a", "news.a"], ["news.a"]),
        (["news.*", "news.>"], ["news.>"]),
        (["news.*", "news.a"], ["news.*"]),
        (["*.urgent", "news.*"], ["*.*"]),
        (["*.urgent", "news.a"], ["*.urgent", "news.a"]),
        (["news", "news.>"], ["news", "news.>"]),
        (["a.b.>", "a.*"], ["a.*", "a.b.>"]),
        (["a.b.>", "a.*.c"], ["a.*.>"]),
        ([">", "a.b"], [">"]),
    ],
)
def test_examples_of_merged_subjects(subjects: list[str], merged: list[str]) -> None:
    """Only subjects that overlap are merged, and no wider than necessary."""
    assert generalise(each.encode() for each in subjects) == tuple(each.encode() for each in merged)


def test_thousands_of_subjects_merge_without_comparing_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps grow with the number of subjects, not with its square."""
    steps = 0
    search = _Node.overlapping

    def counted(node: _Node, tokens: tuple[bytes, ...], at: int) -> tuple[bytes, ...] | None:
        nonlocal steps
        steps += 1
        return search(node, tokens, at)

    monkeypatch.setattr(_Node, "overlapping", counted)
    subjects = [b"stocks.%d.*" % i for i in range(1_000)] + [b"stocks.%d.a" % i for i in range(1_000)]
    assert len(generalise(subjects)) == 1_000
    assert steps < 10 * len(subjects)


# -- patterns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        ("news", "news"),
        ("news.sports", "news.sports"),
        ("news.*", "news.*"),
        ("news.{kind}.x", "news.*.x"),
        ("news.>", "news.>"),
        ("news.{rest+}", "news.>"),
        ("{rest+}", ">"),
        (">", ">"),
        ("*", "*"),
        ("Zürich.*", "Zürich.*"),
        ("a/b.c", "a/b.c"),
        (startswith("news."), "news.>"),
        (startswith("a.b.ne"), "a.b.>"),
        (startswith(""), ">"),
        (startswith(b"a.b*c.d"), "a.b*c.>"),
    ],
)
def test_each_kind_of_pattern_has_a_subject(pattern: str | Pattern, subject: str) -> None:
    """Captures are wildcards, ``{rest+}`` is ``>``, and a prefix keeps its whole segments."""
    assert subject_of(parse(pattern)) == subject.encode()


@settings(max_examples=sized(1_000, 150))
@given(
    st.lists(
        st.builds(
            lambda tokens, tail: ".".join([*tokens, tail]) if tail else ".".join(tokens),
            st.lists(st.sampled_from(["a", "b", "ab", "*", "{x}"]), min_size=1, max_size=3, unique=True),
            st.sampled_from(["", ">", "{rest+}"]),
        ).map(parse)
        | st.sampled_from(["", "a.", "a.b", "ab.a", "a.b."]).map(startswith),
        min_size=1,
        max_size=5,
    )
)
def test_a_merged_subscription_and_the_trie_deliver_what_zroute_promises(patterns: list[Pattern]) -> None:
    """A topic that a pattern matches arrives once, and the trie of an app drops everything else."""
    merged = generalise(map(subject_of, patterns))
    trie = build((pattern, pattern.text) for pattern in patterns)
    for topic in TOPICS:
        wanted = [pattern.text for pattern in patterns if zroute_matches(pattern, topic) is not None]
        arrived = sum(nats_matches(each, topic) for each in merged)
        assert arrived <= 1
        assert sorted(match.value for match in trie.match(topic) * arrived) == sorted(wanted)


def test_a_tail_needs_a_segment_on_both_sides() -> None:
    """The pattern ``news.>`` does not match ``news``, in zroute as in NATS."""
    assert zroute_matches("news.>", b"news") is None
    assert not nats_matches(subject_of(parse("news.>")), b"news")


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (startswith("news"), "pattern 'news.>' for topics of several segments"),
        (startswith("news"), "'news' for this topic alone"),
        (startswith("a..b"), "an empty segment at position 2"),
        (startswith(".a"), "an empty segment at position 1"),
        (startswith(b"a.*.b"), "has the segment b'*' at position 2"),
        (startswith(b"a.>.b"), "has the segment b'>' at position 2"),
        (startswith(b"a b.c"), "has the segment b'a b' at position 1"),
        (parse("/camera/{name}", "/"), "has the separator '/'"),
        (parse("a\x01b.c"), "control character b'\\x01' in segment 1"),
    ],
)
def test_a_pattern_that_nats_cannot_filter_is_refused(pattern: Pattern, fault: str) -> None:
    """A prefix inside the first segment would receive the whole cluster; others would receive nothing, in silence."""
    with pytest.raises(PatternError) as refused:
        subject_of(pattern)
    assert fault in str(refused.value)
    assert refused.value.pattern == pattern.text


# -- topics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["news", "news.sports", "a-b_c/d:1", "Zürich.东京", "a.b*c", "x" * MAX_TOPIC])
def test_a_topic_that_nats_delivers_is_accepted(topic: str) -> None:
    """A topic of whole segments may be published; a star inside a segment is ordinary text of NATS."""
    check_topic(topic.encode())


@pytest.mark.parametrize(
    ("topic", "fault"),
    [
        (b"", "is empty"),
        (b".", "empty segment 1"),
        (b"a..b", "empty segment 2"),
        (b"a.", "empty segment 2"),
        (b".a", "empty segment 1"),
        (b"a.*", "wildcard '*' as segment 2"),
        (b"a.>", "wildcard '>' as segment 2"),
        (b">", "wildcard '>' as segment 1"),
        (b"*.a", "wildcard '*' as segment 1"),
        (b"a b", "contains b' ' at position 1"),
        (b"a\r\nPUB x 0", "contains b'\\r' at position 1"),
        (b"a\tb", "contains b'\\t' at position 1"),
        (b"a\0b", "contains b'\\x00' at position 1"),
        (b"caf\xe9", "is not UTF-8"),
        (b"$SYS.x", "is reserved"),
        (b"_INBOX.x", "is reserved"),
        (b"_zr.join", "is reserved"),
    ],
)
def test_a_topic_that_nats_would_lose_is_refused(topic: bytes, fault: str) -> None:
    """Topics that NATS accepts and delivers to no subscriber raise an error that names the place."""
    with pytest.raises(TopicError) as refused:
        check_topic(topic)
    assert fault in str(refused.value)
    assert refused.value.topic == topic.decode("utf-8", "surrogateescape")


@given(st.text(max_size=12))
def test_what_zroute_publishes_is_a_topic_of_nats(text: str) -> None:
    """Of the topics that zroute accepts with the dot, NATS refuses only the empty one, controls and reserved names."""
    try:
        topic = topic_bytes(text)
    except TopicError:
        return
    if topic and not is_reserved(topic) and text.isprintable():
        check_topic(topic)


def test_reserved_topics_are_known_by_their_beginning() -> None:
    """The server's own subjects, inboxes and zroute's are reserved; similar names are not."""
    assert all(map(is_reserved, (b"$JS.API.INFO", b"_INBOX.a.b", b"_zr.join")))
    assert not any(map(is_reserved, (b"_INBOX", b"_zroute.a", b"a.$x", b"news")))
