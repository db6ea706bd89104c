"""Topics and patterns: parsing, validation, and a slow reference `matches`.

A topic is concrete and travels with each message. A pattern stays in the program: sockets receive only its
subscription, a byte prefix. The grammar is that of NATS (docs.nats.io, "Subject-Based Messaging"). It adds captures,
which are named ``*`` wildcards, and `startswith` for prefixes (zmq_setsockopt(3), ZMQ_SUBSCRIBE).

`zroute.receiving.trie` is the fast implementation of `matches`. Tests compare the two.

=================== ================================= ==============
pattern             matches                           subscription
=================== ================================= ==============
``news``            ``news``                          ``news``
``news.*``          ``news.sports``                   ``news.``
``news.{kind}``     the same, captured                ``news.``
``news.>``          ``news.a``, ``news.a.b``          ``news.``
``*.urgent``        ``a.urgent``                      all
startswith("news")  ``news``, ``newsletter``, bytes   ``news``
=================== ================================= ==============

Only `startswith` matches a topic that is empty, has an empty segment, or is not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cached_property, lru_cache
from keyword import iskeyword
from math import isfinite
from typing import Final, Literal, TypeAlias
from uuid import UUID

import attrs

from zroute.errors import PatternError, TopicError
from zroute.options import TOPICS_NOTED

__all__ = [
    "ANY",
    "MAX_TOPIC",
    "Pattern",
    "Segment",
    "Topic",
    "Wildcard",
    "any_of",
    "is_text",
    "matches",
    "minimal_cover",
    "parse",
    "segment_bytes",
    "startswith",
    "topic_bytes",
]

MAX_TOPIC: Final = 255
"""The longest topic in bytes. A subscription travels in up to 10 bytes more; a publisher's ZMQ_MAXMSGSIZE is 512."""

# NUL ends a topic on the wire. The wildcards and braces are reserved for patterns.
_NOT_IN_A_TOPIC = re.compile(r"[\0\s*>{}]")
_NOT_IN_A_PATTERN = re.compile(r"[\0\s]")
_WILDCARD_MARK = re.compile(r"[*>{}]")


class Topic(str):
    """A concrete topic as text.

    A handler receives the topic of a message in a parameter with this annotation:

        @app.subscribe("news.>")
        def on_news(story: Story, topic: Topic) -> None: ...
    """

    __slots__ = ()

    @classmethod
    def from_wire(cls, raw: bytes) -> Topic:
        """Return the text of ``raw``, with invalid UTF-8 as lone surrogates (PEP 383)."""
        return cls(raw, "utf-8", "surrogateescape")

    @property
    def wire(self) -> bytes:
        """The bytes of the topic, equal to those that `from_wire` received."""
        return self.encode("utf-8", "surrogateescape")


def topic_bytes(topic: str) -> bytes:
    """Return the bytes of a concrete topic, to publish to it.

    ``""`` is a valid topic and gives ``b""``.

    Raises:
        TopicError: the topic is not text, is too long, or no segment pattern could match it. The error names the
            position.
    """
    if not isinstance(topic, str):
        raise TopicError(f"a topic is text such as 'news.sports', not {topic!r}", topic=topic)
    if bad := _NOT_IN_A_TOPIC.search(topic):
        advice = "wildcards are for patterns" if bad[0] in "*>{}" else "leave it out"
        fault = f"holds {_named(bad[0])} at position {bad.start()}: {advice}"
    else:
        fault = _empty_segment(topic.split(".")) if topic else ""
    if fault:
        raise TopicError(f"topic {topic!r} {fault}", topic=topic)
    return _bounded(_utf8(topic))


def segment_bytes(name: str, value: object) -> bytes:
    """Return the segment for ``value`` in place of the capture ``name``.

    The value is text, an int, a finite float, a UUID or an enum.

    Raises:
        TopicError: the value has another type, is empty text, or is text that would not arrive as one segment.
    """
    text = _segment_text(value)
    if fault := _segment_fault(text):
        raise TopicError(f"capture {{{name}}}: {value!r} {fault}", topic=value)
    return _bounded(_utf8(text or ""))


def is_text(topic: bytes) -> bool:
    """Return True if ``topic`` is UTF-8, as segment patterns require."""
    try:
        topic.decode()
    except UnicodeDecodeError:
        return False
    return True


@attrs.frozen
class Wildcard:
    """One segment of any content: a capture if ``name`` is set, else ``*``."""

    name: str | None


ANY: Final = Wildcard(None)
"""The wildcard ``*``."""

Segment: TypeAlias = bytes | Wildcard


@attrs.frozen
class Pattern:
    """A parsed pattern, the result of `parse` or `startswith`.

    Attributes:
        text: the pattern as the program wrote it.
        segments: the literal segments and wildcards, without a final ``>``.
        tail: True if the pattern ends with ``>``.
        prefix: the bytes of a `startswith`, which has no segments; None for other patterns.
    """

    text: str
    segments: tuple[Segment, ...] = attrs.field(default=(), repr=False)
    tail: bool = attrs.field(default=False, repr=False)
    prefix: bytes | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def kind(self) -> Literal["exact", "segments", "prefix"]:
        """The kind of the pattern.

        It is "exact" for one topic, "segments" for a pattern with wildcards or captures, and "prefix" for `startswith`.
        """
        if self.prefix is not None:
            return "prefix"
        return "exact" if self.is_concrete else "segments"

    @property
    def is_concrete(self) -> bool:
        """True if the pattern is one topic, without wildcards and captures."""
        return self._is_segments and all(isinstance(segment, bytes) for segment in self.segments)

    @property
    def is_template(self) -> bool:
        """True if `topic` can fill the pattern: all of its wildcards are captures."""
        return self._is_segments and ANY not in self.segments

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """The names of the captures, in order."""
        return tuple(s.name for s in self.segments if isinstance(s, Wildcard) and s.name is not None)

    @property
    def subscription(self) -> bytes:
        """The longest byte prefix that all matching topics share.

        A SUB socket filters by it; ``b""`` lets all topics pass.
        """
        if self.prefix is not None:
            return self.prefix
        literal = b""
        for segment in self.segments:
            if isinstance(segment, Wildcard):
                break
            literal += segment + b"."
        return literal[:-1] if self.is_concrete else literal

    @property
    def rank(self) -> tuple[int, ...]:
        """A sort key: of two patterns that match a topic, the more specific is smaller.

        It has one number per segment: 0 for a literal, 1 for a capture or ``*``, 2 for ``>``. A `startswith` sorts
        after all of these, a longer one before a shorter one.
        """
        if self.prefix is not None:
            return (3, -len(self.prefix))
        steps = tuple(int(isinstance(segment, Wildcard)) for segment in self.segments)
        return (*steps, 2) if self.tail else steps

    @property
    def shape(self) -> Hashable:
        """A value that is equal for patterns with the same topics and the same rank."""
        return (tuple(s if isinstance(s, bytes) else None for s in self.segments), self.tail, self.prefix)

    def topic(self, values: Mapping[str, bytes]) -> bytes:
        """Return the topic with ``values`` in place of the captures.

        Args:
            values: the segments by capture name, from `segment_bytes`.

        Raises:
            PatternError: the pattern is not a template.
            TopicError: a value is missing, or the topic is too long.
        """
        if not self.is_template:
            advice = "write a capture such as {name} in place of each wildcard"
            raise _error(self.text, f"does not name one topic to publish to: {advice}")
        for name in self.captures:
            if name not in values:
                raise TopicError(f"topic {self.text!r} needs a value for {{{name}}}", topic=self.text)
        return _bounded(b".".join(s if isinstance(s, bytes) else values[s.name or ""] for s in self.segments))

    def overlaps(self, other: Pattern) -> bool:
        """Return True if some topic can be made from both patterns.

        Both must be templates.
        """
        return len(self.segments) == len(other.segments) and all(
            one == two or isinstance(one, Wildcard) or isinstance(two, Wildcard)
            for one, two in zip(self.segments, other.segments, strict=True)
        )

    @property
    def _is_segments(self) -> bool:
        return self.prefix is None and not self.tail


def parse(pattern: str | Pattern) -> Pattern:
    """Parse a pattern such as ``news.*``, ``stocks.{symbol}`` or ``logs.>``.

    A Pattern is returned unchanged.

    Raises:
        PatternError: the pattern is invalid. The error names the segment, counted from 1, and says what to write
            instead.
    """
    if isinstance(pattern, Pattern):
        return pattern
    _refuse_no_pattern(pattern)
    parts = pattern.split(".")
    if fault := _empty_segment(parts):
        raise _error(pattern, fault)
    tail = parts[-1] == ">"
    segments = tuple(_segment(pattern, i, part) for i, part in enumerate(parts[: len(parts) - tail], 1))
    parsed = Pattern(pattern, segments, tail)
    _refuse_twice(parsed)
    _refuse_too_long(parsed)
    return parsed


def startswith(prefix: str | bytes) -> Pattern:
    """Match every topic whose bytes begin with ``prefix``, whatever its segments are.

    For example, this handler receives ``news``, ``news.sports`` and ``newsletter``:

        @app.subscribe(startswith("news"))
        def on_news(story: Story) -> None: ...

    Args:
        prefix: text or bytes; ``""`` matches every topic, including the empty one.

    Raises:
        PatternError: the prefix contains NUL, is too long, or is text with wildcards, which would be taken literally.
            Use bytes for a topic that really contains ``*``, ``>`` or braces.
    """
    if not isinstance(prefix, str | bytes):
        raise PatternError(f"startswith() takes text or bytes, not {prefix!r}", pattern=prefix)
    raw = _prefix_bytes(prefix) if isinstance(prefix, str) else bytes(prefix)
    text = _prefix_text(raw)
    if b"\0" in raw:
        raise _error(text, "holds NUL, which ends a topic on the wire: leave it out")
    if len(raw) > MAX_TOPIC:
        raise _error(text, f"is {len(raw)} bytes long, and a topic has at most {MAX_TOPIC}: shorten it")
    return Pattern(text, prefix=raw)


def matches(pattern: str | Pattern, topic: bytes) -> dict[str, bytes] | None:
    """Return the captures of ``topic``, or None if the pattern does not match.

    This slow implementation is the reference for the trie.
    """
    pattern = parse(pattern)
    if pattern.prefix is not None:
        return {} if topic.startswith(pattern.prefix) else None
    found = topic.split(b".")
    if b"" in found or not is_text(topic):
        return None
    rest = len(found) - len(pattern.segments)
    if rest < 1 if pattern.tail else rest != 0:
        return None
    captures = {}
    for expected, segment in zip(pattern.segments, found, strict=False):
        if isinstance(expected, bytes):
            if expected != segment:
                return None
        elif expected.name is not None:
            captures[expected.name] = segment
    return captures


def any_of(patterns: Sequence[str | Pattern]) -> Callable[[bytes], bool]:
    """Return a function that tells if a topic matches any of ``patterns``.

    A new topic is matched slowly; the result for recent topics is cached. Topics longer than `MAX_TOPIC` are not
    cached.
    """

    def matches_any(topic: bytes) -> bool:
        return any(matches(pattern, topic) is not None for pattern in patterns)

    known = lru_cache(TOPICS_NOTED)(matches_any)
    return lambda topic: known(topic) if len(topic) <= MAX_TOPIC else matches_any(topic)


def _segment(pattern: str, number: int, part: str) -> Segment:
    if part == "*":
        return ANY
    if part == ">":
        raise _error(pattern, f"has '>' in segment {number}, and '>' is allowed only at the end: write '*' here")
    if len(part) > 1 and part[0] == "{" and part[-1] == "}":
        return Wildcard(_capture_name(pattern, number, part))
    if mark := _WILDCARD_MARK.search(part):
        raise _partial_wildcard(pattern, number, part, mark)
    return part.encode()


def _capture_name(pattern: str, number: int, part: str) -> str:
    name = part[1:-1]
    if not name:
        raise _error(pattern, f"has a capture without a name in segment {number}: write {{name}} or '*'")
    if not name.isidentifier() or iskeyword(name):
        advice = "write a Python identifier that is not a keyword, such as {name}"
        raise _error(pattern, f"has the capture {part} in segment {number}, which is not a parameter name: {advice}")
    return name


def _partial_wildcard(pattern: str, number: int, part: str, mark: re.Match[str]) -> PatternError:
    at = f"segment {number} {part!r}"
    if mark[0] in "{}":
        fault = "a capture" if part.count("{") == part.count("}") else "an unbalanced brace"
        return _error(pattern, f"has {fault} as a part of {at}: a capture is a whole segment, such as {{name}}")
    before = ".".join([*pattern.split(".")[: number - 1], part[:-1]])
    if mark.end() == len(part) and not _WILDCARD_MARK.search(before):  # `new*` can only mean a prefix
        advice = f'use startswith("{before}")'
    else:
        advice = f"write '{mark[0]}' between dots"
    return _error(pattern, f"has '{mark[0]}' as a part of {at}, and a wildcard is a whole segment: {advice}")


def _refuse_no_pattern(pattern: object) -> None:
    if not isinstance(pattern, str):
        advice = f"use startswith({pattern!r})" if isinstance(pattern, bytes) else "write it as 'news.*'"
        raise PatternError(f"a pattern is text, not {pattern!r}: {advice}", pattern=pattern)
    if not pattern:
        raise _error(pattern, 'is empty: write startswith("") for every topic, including the empty one')
    if bad := _NOT_IN_A_PATTERN.search(pattern):
        number = pattern.count(".", 0, bad.start()) + 1
        raise _error(pattern, f"holds {_named(bad[0])} in segment {number}, and no topic does: leave it out")
    try:
        pattern.encode()
    except UnicodeEncodeError as error:
        number = pattern.count(".", 0, error.start) + 1
        advice = "use startswith(b'...') for bytes"
        raise _error(pattern, f"is not UTF-8 text in segment {number}: {advice}") from None


def _refuse_twice(pattern: Pattern) -> None:
    seen: dict[str, int] = {}
    for number, segment in enumerate(pattern.segments, 1):
        name = segment.name if isinstance(segment, Wildcard) else None
        if name is None:
            continue
        if name in seen:
            where = f"segments {seen[name]} and {number}"
            raise _error(pattern.text, f"has the capture {{{name}}} in {where}: give them different names")
        seen[name] = number


def _refuse_too_long(pattern: Pattern) -> None:
    """Raise PatternError if every matching topic is longer than `MAX_TOPIC`.

    A wildcard counts as one byte, the shortest segment. The length of a capture's name does not matter.
    """
    sizes = [len(s) if isinstance(s, bytes) else 1 for s in pattern.segments] + [1] * pattern.tail
    shortest = sum(sizes) + len(sizes) - 1
    if shortest > MAX_TOPIC:
        limit = f"and a topic has at most {MAX_TOPIC}"
        raise _error(pattern.text, f"needs topics of {shortest} bytes or more, {limit}: shorten it")


def _prefix_bytes(prefix: str) -> bytes:
    text = f'startswith("{prefix}")'
    if mark := _WILDCARD_MARK.search(prefix):
        literal = prefix.encode("utf-8", "replace")
        advice = f"write the pattern without startswith, or {literal!r} where topics really hold it"
        raise _error(text, f"holds '{mark[0]}', and a prefix is taken literally: {advice}")
    try:
        return prefix.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _error(text, "is not UTF-8 text: give it as bytes") from None


def _prefix_text(raw: bytes) -> str:
    text = raw.decode("utf-8", "surrogateescape")
    plain = text.isprintable() and '"' not in text and "\\" not in text and not _WILDCARD_MARK.search(text)
    return f'startswith("{text}")' if plain else f"startswith({raw!r})"


def _error(pattern: str, fault: str) -> PatternError:
    shown = pattern if pattern.startswith("startswith(") else repr(pattern)
    return PatternError(f"pattern {shown} {fault}", pattern=pattern)


def _empty_segment(parts: list[str]) -> str:
    """Return what is wrong with the first empty segment, or "" if there is none."""
    if "" not in parts:
        return ""
    number = parts.index("") + 1
    places = {1: "begins with a dot", len(parts): "ends with a dot"}
    where = places.get(number, "has two dots in a row")
    return f"{where}, so segment {number} is empty: remove the dot or write the segment"


def _segment_text(value: object) -> str | None:
    """Return the text that a handler's annotation converts back to ``value``.

    The result is None if there is no such text.
    """
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | UUID):
        return None
    return str(value)


def _segment_fault(text: str | None) -> str:
    if text is None:
        return "can't be a segment: use a str, an int, a finite float, a UUID or an enum"
    if not text:
        return "is empty, and a segment has at least one character: use other text"
    if "." in text:
        return "holds a dot, which would make two segments of it: replace it"
    if bad := _NOT_IN_A_TOPIC.search(text):
        return f"holds {_named(bad[0])} at position {bad.start()}: replace it"
    return ""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        fault = f"holds a lone surrogate at position {error.start}, which is not UTF-8: replace it"
        raise TopicError(f"topic {text!r} {fault}", topic=text) from None


def _bounded(topic: bytes) -> bytes:
    if len(topic) > MAX_TOPIC:
        fault = f"is {len(topic)} bytes long, and a topic has at most {MAX_TOPIC}: shorten it"
        raise TopicError(f"topic {topic[:32]!r}... {fault}", topic=Topic.from_wire(topic))
    return topic


def _named(mark: str) -> str:
    if mark == "\0":
        return "NUL"
    return f"white space ({mark!r})" if mark.isspace() else f"the wildcard '{mark}'"


def minimal_cover(prefixes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the fewest byte prefixes that cover all ``prefixes``, sorted.

    None of them is a prefix of another. ``b""`` covers everything, so it is the only one if present. Without prefixes
    the result is empty.
    """
    cover: list[bytes] = []
    for prefix in sorted(prefixes):  # a prefix sorts directly before all prefixes that it covers
        if not cover or not prefix.startswith(cover[-1]):
            cover.append(prefix)
    return tuple(cover)
