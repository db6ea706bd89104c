"""Topics and patterns: valid forms, matching, and the texts of errors."""

from __future__ import annotations

from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zroute.errors import PatternError, SetupError, TopicError, UsageError
from zroute.messages.topics import (
    ANY,
    MAX_TOPIC,
    Topic,
    Wildcard,
    matches,
    parse,
    segment_bytes,
    startswith,
    topic_bytes,
)

SEGMENTS = st.text(st.characters(exclude_categories=("Cs", "Z", "Cc")), min_size=1, max_size=6).filter(
    lambda text: not any(mark in ".*>{}\0" or mark.isspace() for mark in text)
)


class Level(Enum):
    HIGH = "high"
    TWO = 2
    DOTTED = "a.b"


# -- topics --------------------------------------------------------------------------------------------


@given(st.binary(max_size=40))
def test_any_bytes_survive_as_a_topic(raw: bytes) -> None:
    """A topic that is not UTF-8 arrives as a str from which the same bytes can be restored."""
    topic = Topic.from_wire(raw)
    assert isinstance(topic, str)
    assert topic.wire == raw


@pytest.mark.parametrize("topic", ["news", "news.sports", "Zürich.东京", "a-b_c/d:1", "x" * MAX_TOPIC])
def test_a_good_topic_is_its_utf8(topic: str) -> None:
    """A topic of non-empty segments in any script is sent as UTF-8."""
    assert topic_bytes(topic) == topic.encode()


def test_the_empty_topic_may_be_published() -> None:
    """The empty topic can be published to, as in ZeroMQ."""
    assert topic_bytes("") == b""


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("a b", "topic 'a b' holds white space (' ') at position 1"),
        ("a\u2003b", "white space"),
        ("a\n", "at position 1"),
        ("a\0b", "topic 'a\\x00b' holds NUL at position 1"),
        ("news.*", "holds the wildcard '*' at position 5: wildcards are for patterns"),
        ("news.>", "the wildcard '>' at position 5"),
        ("{level}", "the wildcard '{' at position 0"),
        (".a", "begins with a dot, so segment 1 is empty"),
        ("a.", "ends with a dot, so segment 2 is empty"),
        ("a..b", "has two dots in a row, so segment 2 is empty"),
        (".", "begins with a dot"),
        ("a\udc80", "holds a lone surrogate at position 1"),
        ("x" * (MAX_TOPIC + 1), "is 256 bytes long, and a topic has at most 255"),
        ("ü" * 128, "is 256 bytes long"),
        (b"news", "a topic is text such as 'news.sports', not b'news'"),
        (None, "not None"),
    ],
)
def test_a_bad_topic_is_refused_at_my_line(topic: str, says: str) -> None:
    """The error for a topic that no pattern can match names the problem and its position."""
    with pytest.raises(TopicError) as caught:
        topic_bytes(topic)
    assert says in str(caught.value)
    assert isinstance(caught.value, UsageError)


# -- the values of captures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "segment"),
    [
        ("high", b"high"),
        (Topic("high"), b"high"),
        ("東", "東".encode()),
        (7, b"7"),
        (-7, b"-7"),
        (1e20, b"1e+20"),
        (Level.HIGH, b"high"),
        (Level.TWO, b"2"),
        (UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_value_becomes_a_segment(value: object, segment: bytes) -> None:
    """Text, numbers, UUIDs and enum members become segments of a topic."""
    assert segment_bytes("level", value) == segment


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty"),
        ("a.b", "holds a dot, which would make two segments of it"),
        (2.5, "holds a dot"),
        (Level.DOTTED, "holds a dot"),
        ("a b", "white space (' ') at position 1"),
        ("a\0", "holds NUL at position 1"),
        ("*", "the wildcard '*' at position 0"),
        (True, "can't be a segment: use a str"),
        (None, "can't be a segment"),
        (b"x", "can't be a segment"),
        (float("nan"), "can't be a segment"),
        ("\ud800", "lone surrogate"),
        ("x" * 256, "256 bytes long"),
    ],
)
def test_a_value_that_is_no_segment_is_refused(value: object, says: str) -> None:
    """A value that would change the structure of the topic raises TopicError."""
    with pytest.raises(TopicError) as caught:
        segment_bytes("level", value)
    assert says in str(caught.value)


def test_a_bad_value_names_its_capture() -> None:
    """The error for a bad value names its capture."""
    with pytest.raises(TopicError, match=r"capture \{level\}: 'a\.b' holds a dot") as caught:
        segment_bytes("level", "a.b")
    assert caught.value.topic == "a.b"


# -- patterns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "segments", "tail", "subscription"),
    [
        ("news", "exact", (b"news",), False, b"news"),
        ("news.sports", "exact", (b"news", b"sports"), False, b"news.sports"),
        ("news.*", "segments", (b"news", ANY), False, b"news."),
        ("news.>", "segments", (b"news",), True, b"news."),
        ("stocks.{symbol}", "segments", (b"stocks", Wildcard("symbol")), False, b"stocks."),
        ("a.b.{x}.c", "segments", (b"a", b"b", Wildcard("x"), b"c"), False, b"a.b."),
        ("*.urgent", "segments", (ANY, b"urgent"), False, b""),
        (">", "segments", (), True, b""),
        ("ü.*", "segments", ("ü".encode(), ANY), False, "ü.".encode()),
    ],
)
def test_a_pattern_is_read_as_in_the_table(
    text: str, kind: str, segments: tuple[object, ...], tail: bool, subscription: bytes
) -> None:
    """A pattern subscribes to the longest bytes that all its topics share."""
    pattern = parse(text)
    assert (pattern.text, pattern.kind, pattern.segments) == (text, kind, segments)
    assert (pattern.tail, pattern.prefix, pattern.subscription) == (tail, None, subscription)
    assert pattern.is_concrete is (kind == "exact")
    assert str(pattern) == text


@pytest.mark.parametrize(
    ("prefix", "text", "raw"),
    [
        ("news", 'startswith("news")', b"news"),
        (b"news", 'startswith("news")', b"news"),
        ("", 'startswith("")', b""),
        (b"\xff", "startswith(b'\\xff')", b"\xff"),
        (b"a*", "startswith(b'a*')", b"a*"),
        (Topic.from_wire(b"\xff"), "startswith(b'\\xff')", b"\xff"),
        ('a"b', "startswith(b'a\"b')", b'a"b'),
    ],
)
def test_startswith_is_shown_as_it_is_written(prefix: str | bytes, text: str, raw: bytes) -> None:
    """Logs and tables show a prefix pattern as it is written in code."""
    pattern = startswith(prefix)
    assert (pattern.kind, pattern.text, pattern.prefix, pattern.subscription) == ("prefix", text, raw, raw)
    assert not pattern.is_concrete
    assert pattern.captures == ()


def test_captures_come_in_order() -> None:
    """Captures are listed in the order of the segments."""
    assert parse("{b}.x.{a}.*").captures == ("b", "a")


def test_parsing_a_pattern_again_gives_the_same() -> None:
    """A parsed pattern is accepted in place of text."""
    pattern = startswith("news")
    assert parse(pattern) is pattern


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "pattern '' is empty: write startswith(\"\") for every topic, including the empty one"),
        (".a", "pattern '.a' begins with a dot, so segment 1 is empty: remove the dot"),
        ("a.", "pattern 'a.' ends with a dot, so segment 2 is empty"),
        ("a.b..c", "pattern 'a.b..c' has two dots in a row, so segment 3 is empty"),
        ("a.>.b", "has '>' in segment 2, and '>' is allowed only at the end: write '*' here"),
        ("new*", "has '*' as a part of segment 1 'new*', and a wildcard is a whole segment: use startswith(\"new\")"),
        ("a.new*", "segment 2 'new*', and a wildcard is a whole segment: use startswith(\"a.new\")"),
        ("a.new>", 'use startswith("a.new")'),
        ("*.new*", "has '*' as a part of segment 2 'new*', and a wildcard is a whole segment: write '*' between dots"),
        ("a>b", "has '>' as a part of segment 1 'a>b'"),
        ("**", "has '*' as a part of segment 1 '**'"),
        ("a.{}", "has a capture without a name in segment 2: write {name} or '*'"),
        ("a.{1x}", "has the capture {1x} in segment 2, which is not a parameter name: write a Python identifier"),
        ("{class}", "has the capture {class} in segment 1"),
        ("{a-b}", "has the capture {a-b} in segment 1"),
        ("{a}.x.{a}", "has the capture {a} in segments 1 and 3: give them different names"),
        ("x.a{b}", "has a capture as a part of segment 2 'a{b}': a capture is a whole segment, such as {name}"),
        ("x.{a", "has an unbalanced brace as a part of segment 2 '{a'"),
        ("{a.b}", "has an unbalanced brace as a part of segment 1 '{a'"),
        ("}", "has an unbalanced brace as a part of segment 1 '}'"),
        ("a.b\0", "holds NUL in segment 2, and no topic does: leave it out"),
        ("a.{ b}", "holds white space (' ') in segment 2"),
        ("a.\udc80", "is not UTF-8 text in segment 2: use startswith(b'...') for bytes"),
        ("a." + "x" * 254, "needs topics of 256 bytes or more, and a topic has at most 255: shorten it"),
        (b"news", "a pattern is text, not b'news': use startswith(b'news')"),
        (7, "a pattern is text, not 7: write it as 'news.*'"),
    ],
)
def test_a_pattern_error_says_what_to_write_instead(text: str, says: str) -> None:
    """The error for an invalid pattern names the segment and the fix."""
    with pytest.raises(PatternError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert caught.value.pattern == text
    assert isinstance(caught.value, SetupError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("news.*", "startswith(\"news.*\") holds '*', and a prefix is taken literally"),
        ("news.*", "or b'news.*' where topics really hold it"),
        ("a\0", "holds NUL"),
        ("\ud800", "is not UTF-8 text: give it as bytes"),
        (b"x" * 256, "is 256 bytes long, and a topic has at most 255"),
        (7, "startswith() takes text or bytes, not 7"),
    ],
)
def test_a_prefix_no_topic_has_is_refused(prefix: str | bytes, says: str) -> None:
    """A prefix that no topic can have is an error."""
    with pytest.raises(PatternError) as caught:
        startswith(prefix)
    assert says in str(caught.value)


def test_a_long_name_of_a_capture_does_not_make_a_pattern_too_long() -> None:
    """The name of a capture does not count towards the 255 bytes."""
    assert parse("{" + "x" * 300 + "}.a").captures == ("x" * 300,)


# -- rank and shape --------------------------------------------------------------------------------------


def test_the_more_specific_pattern_comes_first() -> None:
    """Patterns sort from the most to the least specific."""
    order = [
        parse("a.b.c"),
        parse("a.b.{x}"),
        parse("a.b.>"),
        parse("a.*.c"),
        parse("a.{x}.{y}"),
        parse("a.*.>"),
        parse("a.>"),
        parse("*.b.c"),
        parse("*.>"),
        parse(">"),
        startswith("a.b"),
        startswith("a"),
        startswith(""),
    ]
    mixed = [*order[1::2], *order[::2]]
    assert sorted(mixed, key=lambda pattern: pattern.rank) == order


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a.*", "a.{x}", True),
        ("a.{x}", "a.{y}", True),
        ("a.{x}.>", "a.*.>", True),
        ("a.*", "a.>", False),
        ("a", "a.>", False),
        ("a.b", "a.c", False),
    ],
)
def test_patterns_of_one_shape_match_the_same_topics(one: str, other: str, same: bool) -> None:
    """Patterns that differ only in the names of captures have the same shape."""
    assert (parse(one).shape == parse(other).shape) is same
    if same:
        assert parse(one).rank == parse(other).rank


def test_a_prefix_has_a_shape_of_its_own() -> None:
    """`news` and startswith("news") have different shapes."""
    assert startswith("news").shape == startswith(b"news").shape
    assert startswith("news").shape not in {parse("news").shape, startswith("new").shape, parse(">").shape}
    assert startswith("").shape != parse(">").shape


# -- matching --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "topic", "captures"),
    [
        ("news", b"news", {}),
        ("news", b"newsletter", None),
        ("news", b"news.x", None),
        ("news.*", b"news.sports", {}),
        ("news.*", b"news", None),
        ("news.*", b"news.a.b", None),
        ("news.>", b"news.a", {}),
        ("news.>", b"news.a.b", {}),
        ("news.>", b"news", None),
        ("stocks.{symbol}", b"stocks.ABC", {"symbol": b"ABC"}),
        ("{a}.x.{b}.>", b"1.x.2.3.4", {"a": b"1", "b": b"2"}),
        ("*.urgent", b"a.urgent", {}),
        (">", b"a", {}),
        (">", b"", None),
        (">", b"a..b", None),
        ("*.*", b".a", None),
        ("a.*", b"a.", None),
        ("*", b"\xff", None),
        ("*", b"*", {}),
        ("news", b"*", None),
        (startswith("news"), b"news", {}),
        (startswith("news"), b"newsletter", {}),
        (startswith("news"), b"news.a", {}),
        (startswith("news"), b"new", None),
        (startswith(""), b"", {}),
        (startswith(b"\xff"), b"\xff\xfe", {}),
        (startswith("a."), b"a..b", {}),
    ],
)
def test_a_pattern_matches_what_the_table_says(pattern: str, topic: bytes, captures: dict[str, bytes] | None) -> None:
    """A pattern matches the topics that the table lists, and no others."""
    assert matches(pattern, topic) == captures


@given(pattern=st.lists(st.sampled_from(["a", "ab", "*", "{x}"]), min_size=1, max_size=4), topic=st.data())
def test_a_subscription_covers_all_its_topics(pattern: list[str], topic: st.DataObject) -> None:
    """Every topic that a pattern matches passes the socket's filter."""
    parsed = parse(".".join(dict.fromkeys(pattern)))
    raw = topic.draw(st.lists(st.sampled_from([b"a", b"ab", b"c"]), min_size=1, max_size=4).map(b".".join))
    if matches(parsed, raw) is not None:
        assert raw.startswith(parsed.subscription)


# -- topics made of patterns -----------------------------------------------------------------------------


@given(st.lists(SEGMENTS, min_size=1, max_size=5), st.data())
def test_what_a_publisher_puts_in_a_handler_gets_out(names: list[str], data: st.DataObject) -> None:
    """Values that a publisher puts into a topic arrive as captures."""
    values = {f"c{i}": data.draw(SEGMENTS) for i, _ in enumerate(names)}
    pattern = parse(".".join(f"{name}.{{c{i}}}" for i, name in enumerate(names)))
    raw = {name: segment_bytes(name, value) for name, value in values.items()}
    assert matches(pattern, pattern.topic(raw)) == raw
    assert topic_bytes(pattern.topic(raw).decode()) == pattern.topic(raw)


@pytest.mark.parametrize("pattern", [parse("a.*"), parse("a.>"), parse("{x}.>"), startswith("a")])
def test_a_publisher_needs_a_name_for_each_wildcard(pattern: object) -> None:
    """Publishing to a pattern with an unnamed wildcard is an error."""
    pattern = parse(pattern)  # type: ignore[arg-type]
    assert not pattern.is_template
    with pytest.raises(PatternError, match=r"does not name one topic to publish to: write a capture"):
        pattern.topic({"x": b"1"})


def test_a_missing_value_names_its_capture() -> None:
    """The error for a missing value names the capture."""
    with pytest.raises(TopicError, match=r"topic 'alerts\.\{level\}' needs a value for \{level\}"):
        parse("alerts.{level}").topic({})


def test_values_can_make_a_topic_too_long() -> None:
    """The limit of 255 bytes applies to the whole topic."""
    assert parse("a.{x}").topic({"x": b"x" * 253}) == b"a." + b"x" * 253
    with pytest.raises(TopicError, match="256 bytes long"):
        parse("a.{x}").topic({"x": b"x" * 254})
