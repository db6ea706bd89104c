"""Topics and the patterns that match them: parse, validate, and a slow, obvious `matches`.

Pure text and bytes. A topic is concrete and travels; a pattern never does: of it only the subscription,
a byte prefix, reaches a socket. The grammar is that of NATS (docs.nats.io, "Subject-Based Messaging"),
with captures for ``*`` and with `startswith` for what ZeroMQ itself can filter by (zmq_setsockopt(3),
ZMQ_SUBSCRIBE). `zroute.receiving.trie` does at speed what `matches` says; tests hold them together.

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

A topic that is empty, has an empty segment or is not UTF-8 is matched by `startswith` alone.
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
"""Bytes; a subscription travels as 10 + its length, which must fit a publisher's MAXMSGSIZE of 512."""

_NOT_IN_A_TOPIC = re.compile(r"[\0\s*>{}]")
_NOT_IN_A_PATTERN = re.compile(r"[\0\s]")
_WILDCARD_MARK = re.compile(r"[*>{}]")


class Topic(str):
    """A concrete topic as text; annotate a handler's parameter with it to be given the topic."""

    __slots__ = ()

    @classmethod
    def from_wire(cls, raw: bytes) -> Topic:
        """The text of ``raw``; what is not UTF-8 becomes lone surrogates (PEP 383) for `wire` to restore."""
        return cls(raw, "utf-8", "surrogateescape")

    @property
    def wire(self) -> bytes:
        """The bytes that `from_wire` was given."""
        return self.encode("utf-8", "surrogateescape")


def topic_bytes(topic: str) -> bytes:
    """The bytes of a concrete topic that is to be published; ``""`` is allowed and gives ``b""``.

    Raises TopicError, which names the place, for anything a segment pattern could not match again.
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
    """The segment ``value`` makes of the capture ``name``: text, an int, a finite float, a UUID or an enum.

    Raises TopicError, naming the capture, for another type, for an empty text, and for a text that would
    not arrive as this one segment.
    """
    text = _segment_text(value)
    if fault := _segment_fault(text):
        raise TopicError(f"capture {{{name}}}: {value!r} {fault}", topic=value)
    return _bounded(_utf8(text or ""))


def is_text(topic: bytes) -> bool:
    """Whether ``topic`` is UTF-8, as segment patterns require."""
    try:
        topic.decode()
    except UnicodeDecodeError:
        return False
    return True


@attrs.frozen
class Wildcard:
    """One segment of any content: ``*``, or a capture where it has a ``name``."""

    name: str | None


ANY: Final = Wildcard(None)
"""The wildcard ``*``."""

Segment: TypeAlias = bytes | Wildcard


@attrs.frozen
class Pattern:
    """A parsed pattern; made by `parse` and `startswith` alone.

    ``text`` is what the user wrote. ``segments`` come before the ``tail``, which is True where ``>`` ends
    the pattern. ``prefix`` is the bytes of a `startswith`, which has no segments, and else None.
    """

    text: str
    segments: tuple[Segment, ...] = attrs.field(default=(), repr=False)
    tail: bool = attrs.field(default=False, repr=False)
    prefix: bytes | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def kind(self) -> Literal["exact", "segments", "prefix"]:
        """``exact`` matches one topic, ``segments`` has wildcards or captures, ``prefix`` is `startswith`."""
        if self.prefix is not None:
            return "prefix"
        return "exact" if self.is_concrete else "segments"

    @property
    def is_concrete(self) -> bool:
        """Whether it is one topic: no wildcard, no capture."""
        return self._is_segments and all(isinstance(segment, bytes) for segment in self.segments)

    @property
    def is_template(self) -> bool:
        """Whether `topic` can make a topic of it: every wildcard has a name."""
        return self._is_segments and ANY not in self.segments

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """The names of the captures, in order."""
        return tuple(s.name for s in self.segments if isinstance(s, Wildcard) and s.name is not None)

    @property
    def subscription(self) -> bytes:
        """The longest byte prefix of all topics it matches, by which a SUB socket filters; ``b""`` is all."""
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
        """A key to sort by: of two patterns that match one topic the smaller is the more specific.

        Segment by segment 0 for a literal, 1 for a capture or ``*``, 2 for ``>``; a `startswith` comes after
        all of these, the longer first.
        """
        if self.prefix is not None:
            return (3, -len(self.prefix))
        steps = tuple(int(isinstance(segment, Wildcard)) for segment in self.segments)
        return (*steps, 2) if self.tail else steps

    @property
    def shape(self) -> Hashable:
        """Equal for two patterns exactly when they match the same topics and rank the same."""
        return (tuple(s if isinstance(s, bytes) else None for s in self.segments), self.tail, self.prefix)

    def topic(self, values: Mapping[str, bytes]) -> bytes:
        """The topic that has ``values``, made by `segment_bytes`, in place of the captures.

        Raises PatternError for a pattern that is no template, TopicError for a value that is missing and
        for a topic that gets too long.
        """
        if not self.is_template:
            advice = "write a capture such as {name} in place of each wildcard"
            raise _error(self.text, f"does not name one topic to publish to: {advice}")
        for name in self.captures:
            if name not in values:
                raise TopicError(f"topic {self.text!r} needs a value for {{{name}}}", topic=self.text)
        return _bounded(b".".join(s if isinstance(s, bytes) else values[s.name or ""] for s in self.segments))

    def overlaps(self, other: Pattern) -> bool:
        """Return True if one topic can be made of both patterns, which are templates."""
        return len(self.segments) == len(other.segments) and all(
            one == two or isinstance(one, Wildcard) or isinstance(two, Wildcard)
            for one, two in zip(self.segments, other.segments, strict=True)
        )

    @property
    def _is_segments(self) -> bool:
        return self.prefix is None and not self.tail


def parse(pattern: str | Pattern) -> Pattern:
    """Read ``news.*``, ``stocks.{symbol}``, ``logs.>``; a Pattern is returned as it is.

    Raises PatternError, which names the segment at fault (counted from 1) and says what to write instead.
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
    """Every topic whose bytes begin with ``prefix``, whatever its segments; ``""`` is all, the empty one too.

    Raises PatternError for a prefix no topic has: one with NUL, too long, or a text with wildcards, which
    would be taken literally (bytes may hold them, for topics of peers that know no wildcards).
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
    """The captures of ``topic``, or None where it does not match: slow, the oracle of the trie."""
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
    """What tells whether a topic matches one of ``patterns``: slow for a new topic, a look-up for the latest ones.

    Topics over `MAX_TOPIC` bytes are never remembered.
    """

    def matches_any(topic: bytes) -> bool:
        return any(matches(pattern, topic) is not None for pattern in patterns)

    known = lru_cache(TOPICS_NOTED)(matches_any)
    return lambda topic: known(topic) if len(topic) <= MAX_TOPIC else matches_any(topic)


def _segment(pattern: str, number: int, part: str) -> Segment:
    if part == "*":
        return ANY
    if part == ">":
        raise _error(pattern, f"has '>' in segment {number}, and '>' is for the end only: write '*' here")
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
        advice = "write a Python identifier that is no keyword, such as {name}"
        raise _error(pattern, f"has the capture {part} in segment {number}, which names no parameter: {advice}")
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
        raise _error(pattern, 'is empty: write startswith("") for every topic, the empty one too')
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
    """A wildcard stands for at least one byte; the length of a capture's name does not count."""
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
    """What is wrong with the first empty one of ``parts``; "" where none is."""
    if "" not in parts:
        return ""
    number = parts.index("") + 1
    places = {1: "begins with a dot", len(parts): "ends with a dot"}
    where = places.get(number, "has two dots in a row")
    return f"{where}, so segment {number} is empty: take the dot away or write the segment"


def _segment_text(value: object) -> str | None:
    """The text that a handler's annotation converts back to ``value``, or None where there is none."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | UUID):
        return None
    return str(value)


def _segment_fault(text: str | None) -> str:
    if text is None:
        return "makes no segment: give a str, an int, a finite float, a UUID or an enum"
    if not text:
        return "is empty, and no segment is: give it a text"
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
    """The fewest byte prefixes that cover all ``prefixes``, sorted; none is a prefix of another.

    ``b""`` covers everything, so with it it is the only one. Of no prefixes the cover is empty.
    """
    cover: list[bytes] = []
    for prefix in sorted(prefixes):  # a prefix sorts right before all that it covers
        if not cover or not prefix.startswith(cover[-1]):
            cover.append(prefix)
    return tuple(cover)
