"""Topics and patterns: valid forms, matching, and the texts of errors."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import Enum
from typing import Any
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
    lambda text: not any(mark in ".*>{}/+#\0" or mark.isspace() for mark in text)
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
        ("a b", "topic 'a b' contains white space (' ') at position 1"),
        ("a\u2003b", "white space"),
        ("a\n", "at position 1"),
        ("a\0b", "topic 'a\\x00b' contains NUL at position 1"),
        ("news.*", "contains the wildcard '*' at position 5: use a topic without wildcards"),
        ("news.>", "the wildcard '>' at position 5"),
        ("{level}", "the wildcard '{' at position 0"),
        (".a", "begins with a dot, so segment 1 is empty"),
        ("a.", "ends with a dot, so segment 2 is empty"),
        ("a..b", "has two dots in a row, so segment 2 is empty"),
        (".", "begins with a dot"),
        ("a\udc80", "contains a lone surrogate at position 1"),
        ("x" * (MAX_TOPIC + 1), "is 256 bytes long, but topics are limited to 255 bytes"),
        ("ü" * 128, "is 256 bytes long"),
        (b"news", "a topic must be text such as 'news.sports', not b'news'"),
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
        (True, b"true"),
        (False, b"false"),
        (date(2026, 1, 2), b"2026-01-02"),
        (datetime(2026, 1, 2, 12, tzinfo=UTC), b"2026-01-02T12:00:00+00:00"),
    ],
)
def test_a_value_becomes_a_segment(value: object, segment: bytes) -> None:
    """Text, numbers, UUIDs, dates, times and enum members become segments of a topic."""
    assert segment_bytes("level", value) == segment


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty"),
        ("a.b", "contains a dot, which would split the value into two segments"),
        (2.5, "contains a dot"),
        (Level.DOTTED, "contains a dot"),
        ("a b", "white space (' ') at position 1"),
        ("a\0", "contains NUL at position 1"),
        ("*", "the wildcard '*' at position 0"),
        (None, "can't be a segment: use a str"),
        (datetime(2026, 1, 1, 12, 0, 0, 500_000), "contains a dot"),
        (b"x", "can't be a segment"),
        (float("nan"), "can't be a segment: use a str, an int, a bool, a UUID"),
        (1.5, "would split the value into two segments: publish the value in the body; or use another separator"),
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
    with pytest.raises(TopicError, match=r"capture \{level\}: 'a\.b' contains a dot") as caught:
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
        ("", "pattern '' is empty: to match every topic, including the empty topic, write startswith(\"\")"),
        (".a", "pattern '.a' begins with a dot, so segment 1 is empty: remove the dot"),
        ("a.", "pattern 'a.' ends with a dot, so segment 2 is empty"),
        ("a.b..c", "pattern 'a.b..c' has two dots in a row, so segment 3 is empty"),
        ("a.>.b", "has '>' in segment 2, but '>' is allowed only at the end: write '*' for this segment"),
        ("new*", "'*' as a part of segment 1 'new*', but a wildcard must be a whole segment: use startswith(\"new\")"),
        ("a.new*", "segment 2 'new*', but a wildcard must be a whole segment: use startswith(\"a.new\")"),
        ("a.new>", 'use startswith("a.new")'),
        ("*.new*", "'*' as a part of segment 2 'new*', but a wildcard must be a whole segment: write '*' between dots"),
        ("a>b", "has '>' as a part of segment 1 'a>b'"),
        ("a*", "has '*' as a part of segment 1 'a*'"),
        ("a.{}", "has a capture without a name in segment 2: write a capture such as {name}, or '*'"),
        ("a.{1x}", "the capture {1x} in segment 2, which can't be the name of a parameter: write a Python identifier"),
        ("{class}", "has the capture {class} in segment 1"),
        ("{a-b}", "has the capture {a-b} in segment 1"),
        ("{a}.x.{a}", "has the capture {a} in segments 1 and 3: give the two captures different names"),
        ("x.a{b}", "has a capture as a part of segment 2 'a{b}': a capture must be a whole segment, such as {name}"),
        ("x.{a", "has an unbalanced brace as a part of segment 2 '{a'"),
        ("{a.b}", "has an unbalanced brace as a part of segment 1 '{a'"),
        ("}", "has an unbalanced brace as a part of segment 1 '}'"),
        ("a.b\0", "contains NUL in segment 2, but topics of zroute can't contain this character: remove it"),
        ("a b", """; or, for topics of other programs, write startswith("a b")"""),
        ("startswith('a')", "write startswith('a') without the outer quotes"),
        (' zroute.startswith("a.b")', 'write zroute.startswith("a.b") without the outer quotes'),
        ("a.<x>", "has '<x>', a capture of other tools, in segment 2: write {x}"),
        ("a.<int:x>", "a capture of other tools, in segment 2: write {x}"),
        ("a.:x", "has ':x', a capture of other tools, in segment 2: write {x}"),
        ("/a/<x>", "write 'a.{x}' for topics with dots; or write App(separator='/')"),
        ("a.{x:int}", "write {x}, and annotate the parameter with its type, as in `x: int`"),
        ("a.{ b}", "contains white space (' ') in segment 2"),
        ("a.\udc80", "is not UTF-8 text in segment 2: for a prefix of other bytes, use startswith(b'...')"),
        ("a." + "x" * 254, "only matches topics of at least 256 bytes, but topics are limited to 255 bytes: shorten"),
        (b"news", "a pattern must be text, not b'news': use startswith(b'news')"),
        (7, "a pattern must be text, not 7: write text such as 'news.*'"),
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
        ("news.*", "startswith(\"news.*\") contains '*', but a prefix is matched literally"),
        ("news.*", "; or, if topics really contain '*', write b'news.*'"),
        ("a\0", "contains NUL"),
        ("\ud800", "is not UTF-8 text: pass the prefix as bytes"),
        (b"x" * 256, "is 256 bytes long, but topics are limited to 255 bytes"),
        (7, "the prefix of startswith() must be text or bytes, not 7"),
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
        ("a.{x+}", "a.>", True),
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


@pytest.mark.parametrize(
    ("pattern", "ours"),
    [
        ("a/b/+", "has '+' between slashes in segment 1, but the separator is a dot: write 'a.b.*'"),
        ("sensors/#", "write 'sensors.>'"),
        ("/camera/{name}/pose", "has '{name}' between slashes in segment 1"),
        ("/camera/{name}/pose", "write 'camera.{name}.pose' for topics with dots; or write App(separator='/')"),
        ("a/*", "write 'a.*'"),
        ("a/**", "write 'a.>'"),
        ("a.#", "has '#' in segment 2, which is not a wildcard of zroute: write '>' at the end"),
        ("a.+.b", "has '+' in segment 2, which is not a wildcard of zroute: write '*' for one segment"),
        ("a.**", "write '>' at the end"),
        ("a.{tail:path}", "write {tail+}, as the last segment"),
        ("a.{tail>}", "write {tail+}, as the last segment"),
        ("a.{tail*}", "write {tail+}, as the last segment"),
        ("a.{tail+}.b", "has '{tail+}' in segment 2: write {tail+}, as the last segment"),
        ("a.{+}", "a capture without a name"),
        ("{x}.{x+}", "has the capture {x} in segments 1 and 2"),
    ],
)
def test_a_wildcard_of_another_tool_is_answered_with_ours(pattern: str, ours: str) -> None:
    """Patterns of MQTT, AMQP, web frameworks and shells raise a PatternError that shows the form of zroute."""
    with pytest.raises(PatternError) as caught:
        parse(pattern)
    assert ours in str(caught.value)


def test_a_pattern_with_several_segments_in_a_capture_names_no_topic() -> None:
    """A publisher can't use {rest+}; the error says what to call instead."""
    assert parse("a.{x}.{rest+}").captures == ("x", "rest")
    with pytest.raises(PatternError, match=r"\{rest\+\} can be several segments; use app\.publish"):
        parse("a.{rest+}").topic({"rest": b"b.c"})


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
        ("{a}.x.{b+}", b"1.x.2.3.4", {"a": b"1", "b": b"2.3.4"}),
        ("a.{b+}", b"a.1", {"b": b"1"}),
        ("a.{b+}", b"a", None),
        ("a.{b+}", b"a..c", None),
        ("{b+}", b"a.c", {"b": b"a.c"}),
        ("a/b+c/#d", b"a/b+c/#d", {}),
        ("$SYS.#1", b"$SYS.#1", {}),
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


@pytest.mark.parametrize(
    ("pattern", "topic", "captures"),
    [
        ("/camera/{name}/pose", b"/camera/front/pose", {"name": b"front"}),
        ("/camera/{name}/pose", b"camera/front/pose", None),
        ("camera/{name}/pose", b"/camera/front/pose", None),
        ("/camera/{rest+}", b"/camera/front/pose", {"rest": b"front/pose"}),
        ("/camera/>", b"/camera/front", {}),
        ("/{a}", b"/v1.2", {"a": b"v1.2"}),
        ("a.b/*", b"a.b/c.d", {}),
        ("a.b", b"a.b", {}),
        ("a.b", b"a/b", None),
        (">", b"/a", {}),
        (">", b"a", {}),
        (">", b"/", None),
        (">", b"", None),
        (">", b"/a//b", None),
        (">", b"/a/", None),
        ("{rest+}", b"/a/b", {"rest": b"/a/b"}),
        ("*", b"/a", None),
        ("*/a", b"/a", None),
        ("{x}/a", b"/a", None),
        ("*/a", b"b/a", {}),
        ("/*", b"/\xff", None),
    ],
)
def test_slashes_may_separate_segments(pattern: str, topic: bytes, captures: dict[str, bytes] | None) -> None:
    """With a slash as the separator a topic may begin with it, dots are text, and no wildcard is an empty segment."""
    parsed = parse(pattern, "/")
    assert matches(parsed, topic) == captures
    if captures is not None:
        assert topic.startswith(parsed.subscription)
        if parsed.is_template:
            assert parsed.topic(captures) == topic
        assert topic_bytes(topic.decode(), "/") == topic


@pytest.mark.parametrize(
    ("pattern", "separator", "says"),
    [
        ("/a//b", "/", "has two slashes in a row, so segment 3 is empty: remove the slash"),
        ("/a/", "/", "ends with a slash, so segment 3 is empty"),
        ("/", "/", "ends with a slash"),
        (":a::b", ":", "has two colons in a row"),
        ("a||b", "|", "has two '|' in a row, so segment 2 is empty: remove the '|'"),
        ("camera.*", "/", "has '*' as a part of segment 1 'camera.*', but a wildcard must be a whole segment"),
        ("a.{x}", "/", "a capture must be a whole segment, such as {name}, between slashes"),
        ("/a*b/c", "/", "write '*' between slashes"),
        ("/a/b*", "/", 'use startswith("/a/b")'),
        ("/a/#", "/", "has '#' in segment 3, which is not a wildcard of zroute: write '>' at the end"),
        ("/>/a", "/", "has '>' in segment 2"),
        (7, "/", "write text such as 'news/*'"),
        (parse("a.b"), "/", "has the separator '.', but '/' is expected here: pass the pattern as text"),
    ],
)
def test_a_pattern_error_names_the_separator(pattern: Any, separator: str, says: str) -> None:
    """Errors about patterns name the separator of the app, and positions are counted by it."""
    with pytest.raises(PatternError) as caught:
        parse(pattern, separator)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("topic", "says"),
    [("/a//b", "has two slashes in a row"), ("a/", "ends with a slash"), ("/a/*", "a topic without wildcards")],
)
def test_a_topic_error_names_the_separator(topic: str, says: str) -> None:
    """Errors about topics and captures name the separator of the app."""
    with pytest.raises(TopicError, match=says):
        topic_bytes(topic, "/")
    with pytest.raises(TopicError, match="contains a slash, which would split the value into two segments"):
        segment_bytes("x", "a/b", b"/")
    assert segment_bytes("x", "a.b", b"/") == b"a.b"


def test_an_empty_first_segment_is_no_wildcard() -> None:
    """Two patterns overlap only if a topic can be made from both, also if one begins with the separator."""
    rooted, free = parse("/a/{x}", "/"), parse("{y}/a/{x}", "/")
    assert not rooted.overlaps(free)
    assert not free.overlaps(rooted)
    assert parse("/{y}/b", "/").overlaps(rooted)
    assert parse(">", "/").meets(rooted)


@given(pattern=st.lists(st.sampled_from(["a", "ab", "*", "{x}"]), min_size=1, max_size=4), topic=st.data())
def test_a_subscription_covers_all_its_topics(pattern: list[str], topic: st.DataObject) -> None:
    """Every topic that a pattern matches passes the socket's filter."""
    parsed = parse(".".join(dict.fromkeys(pattern)))
    raw = topic.draw(st.lists(st.sampled_from([b"a", b"ab", b"c"]), min_size=1, max_size=4).map(b".".join))
    if matches(parsed, raw) is not None:
        assert raw.startswith(parsed.subscription)


# -- topics made of patterns -----------------------------------------------------------------------------


def is_a_name(text: str) -> bool:
    """Return False for a segment that looks like a wildcard of another tool, such as ``<a>``."""
    try:
        parse(text)
    except PatternError:
        return False
    return True


@given(st.lists(SEGMENTS.filter(is_a_name), min_size=1, max_size=5), st.data())
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
    with pytest.raises(PatternError, match=r"matches more than one topic, but a message is published to one topic: "):
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
