"""Topics and patterns: parsing, validation, and a slow reference `matches`.

A topic is concrete and is sent with each message. A pattern is only known in the program. A socket receives the
pattern's subscription, which is a byte prefix. The grammar is that of NATS subjects (docs.nats.io, "Subject-Based
Messaging"). In addition, zroute has captures, which are named ``*`` wildcards, and `startswith`, which matches a prefix
of bytes (zmq_setsockopt(3), ZMQ_SUBSCRIBE).

`zroute.receiving.trie` is the fast implementation of `matches`. Tests compare the two.

=================== ================================= ==============
pattern             matches                           subscription
=================== ================================= ==============
``news``            ``news``                          ``news``
``news.*``          ``news.sports``                   ``news.``
``news.{kind}``     as ``news.*``, with a capture     ``news.``
``news.>``          ``news.a``, ``news.a.b``          ``news.``
``news.{rest+}``    as ``news.>``, with a capture     ``news.``
``*.urgent``        ``a.urgent``                      all
startswith("news")  ``news``, ``newsletter``, bytes   ``news``
=================== ================================= ==============

A topic that is empty, has an empty segment, or is not UTF-8 is only matched by `startswith`.

An app may use a separator other than the dot, for topics such as ``/camera/front/pose``. A dot is then ordinary text,
and a topic may begin with the separator. The first segment of such a topic is empty, and ``*`` and captures do not
match an empty segment. A pattern for such a topic must therefore begin with the separator, ``>`` or ``{rest+}``, or use
`startswith`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import date
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
    "SEPARATORS",
    "Pattern",
    "Segment",
    "Topic",
    "Wildcard",
    "any_of",
    "is_text",
    "matches",
    "may_begin_with",
    "minimal_cover",
    "parse",
    "segment_bytes",
    "startswith",
    "topic_bytes",
]

MAX_TOPIC: Final = 255
"""The maximum length of a topic in bytes.

A subscription is sent with up to 10 more bytes, and a publisher's ZMQ_MAXMSGSIZE is 512.
"""

SEPARATORS: Final = "./:|,;-~"
"""The characters that may separate segments.

All other characters are letters or digits, or have a meaning in patterns of zroute or other tools.
"""

_SEPARATOR_NAMES = {".": ("a dot", "dots"), "/": ("a slash", "slashes"), ":": ("a colon", "colons")}

# NUL ends a topic on the wire. The wildcards and braces are reserved for patterns.
_NOT_IN_A_TOPIC = re.compile(r"[\0\s*>{}]")
_NOT_IN_A_PATTERN = re.compile(r"[\0\s]")
_STARTSWITH = re.compile(r"\s*(zroute\.)?startswith\s*\(")  # a call in quotes
_WILDCARD_MARK = re.compile(r"[*>{}]")

_ONE, _SEVERAL = "write '*' for one segment", "write '>' at the end for one or more segments"
_OF_OTHER_TOOLS = {"+": _ONE, "#": _SEVERAL, "**": _SEVERAL}
"""The wildcards of MQTT, AMQP and file names, and the remedy for each of them."""
_OTHER_REST = re.compile(r"\{([^\W\d]\w*)(?:\+|\*|>|:path)\}")

_OTHER_CAPTURE = re.compile(r"<(?:\w+:)?([^\W\d]\w*)>|:([^\W\d]\w*)")
"""Captures of Flask and Express, as whole segments."""
_TYPED = re.compile(r"\{([^\W\d]\w*):.*\}")


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
        """The bytes of the topic, exactly as `from_wire` received them."""
        return self.encode("utf-8", "surrogateescape")


def topic_bytes(
    topic: str, separator: str = ".", filled: str = "app.publisher({}, T).publish(message, name=…)"
) -> bytes:
    """Return a concrete topic as bytes, to publish to it.

    ``""`` is a valid topic, with the bytes ``b""``. ``separator`` is the character between segments. If the topic
    contains a capture, the error shows the call ``filled``, or a topic without captures if ``filled`` is "".

    Raises:
        TopicError: the topic is not text, is too long, or contains an empty segment, white space, NUL or a wildcard.
            The error names the position.
    """
    if not isinstance(topic, str):
        raise TopicError(f"a topic must be text such as 'news.sports', not {topic!r}", topic=topic)
    if bad := _NOT_IN_A_TOPIC.search(topic):
        advice = "use a topic without wildcards" if bad[0] in "*>{}" else "remove this character"
        if bad[0] == "{":
            example = re.sub(r"\{\w*\}?", "x", topic)
            advice += f"; or fill the captures: {filled.format(repr(topic))}" if filled else f", such as {example!r}"
        fault = f"contains {_named(bad[0])} at position {bad.start()}: {advice}"
    else:
        fault = _empty_segment(topic.split(separator), separator) if topic else ""
    if fault:
        raise TopicError(f"topic {topic!r} {fault}", topic=topic)
    return _bounded(_utf8(topic))


def segment_bytes(name: str, value: object, separator: bytes = b".") -> bytes:
    """Return the topic segment that replaces the capture ``name`` by ``value``.

    The value is text, an int, a finite float, a bool, a UUID, a date, a datetime or an enum. ``separator`` is the
    separator of the topic.

    Raises:
        TopicError: the value has another type, or its text is empty or not a single segment.
    """
    text = _segment_text(value)
    if fault := _segment_fault(text, separator.decode(), plain=isinstance(value, str)):
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
        segments: the literal segments and wildcards, without a final ``>`` or ``{rest+}``.
        tail: True if the pattern ends with ``>`` or ``{rest+}``, both of which match one or more segments.
        rest: the name of the last capture if it has the form ``{rest+}``, else None.
        prefix: the bytes of a `startswith`, which has no segments; None for other patterns.
        separator: the character between segments, as a byte. A `startswith` has the separator of its `Routes`, but does
            not use it.
    """

    text: str
    segments: tuple[Segment, ...] = attrs.field(default=(), repr=False)
    tail: bool = attrs.field(default=False, repr=False)
    rest: str | None = attrs.field(default=None, repr=False)
    prefix: bytes | None = attrs.field(default=None, repr=False)
    separator: bytes = attrs.field(default=b".", repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def kind(self) -> Literal["exact", "segments", "prefix"]:
        """The kind of the pattern.

        The kind is "exact" for a single topic, "segments" for a pattern with wildcards or captures, and "prefix" for
        `startswith`.
        """
        if self.prefix is not None:
            return "prefix"
        return "exact" if self.is_concrete else "segments"

    @property
    def is_concrete(self) -> bool:
        """True if the pattern is a single topic, without wildcards and captures."""
        return self._is_segments and all(isinstance(segment, bytes) for segment in self.segments)

    @cached_property
    def is_template(self) -> bool:
        """True if all wildcards are captures, so that `topic` can fill the pattern."""
        return self._is_segments and ANY not in self.segments

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """The names of the captures, in order."""
        names = tuple(s.name for s in self.segments if isinstance(s, Wildcard) and s.name is not None)
        return names if self.rest is None else (*names, self.rest)

    def captured(self, found: Sequence[bytes]) -> dict[str, bytes]:
        """Return the captures of a matching topic, by name.

        ``found`` contains the segments of the topic.
        """
        pairs = zip(self.segments, found, strict=False)
        named = {s.name: segment for s, segment in pairs if isinstance(s, Wildcard) and s.name is not None}
        if self.rest is not None:
            named[self.rest] = self.separator.join(found[len(self.segments) :])
        return named

    @property
    def subscription(self) -> bytes:
        """The longest byte prefix that all matching topics share.

        A SUB socket uses this prefix as its filter; ``b""`` matches all topics.
        """
        if self.prefix is not None:
            return self.prefix
        literal = b""
        for segment in self.segments:
            if isinstance(segment, Wildcard):
                break
            literal += segment + self.separator
        # A prefix keeps its last separator, so that `news.*` does not receive `newsletter`.
        return literal[:-1] if self.is_concrete else literal

    @property
    def rank(self) -> tuple[int, ...]:
        """A sort key in which a more specific pattern comes first.

        The key has one number per segment: 0 for a literal, 1 for a capture or ``*``, 2 for ``>``. A `startswith` comes
        after all of these, and a longer prefix before a shorter one.
        """
        if self.prefix is not None:
            return (3, -len(self.prefix))
        steps = tuple(int(isinstance(segment, Wildcard)) for segment in self.segments)
        return (*steps, 2) if self.tail else steps

    @property
    def shape(self) -> Hashable:
        """A value that is the same for patterns with the same topics and the same rank."""
        return (tuple(s if isinstance(s, bytes) else None for s in self.segments), self.tail, self.prefix)

    @property
    def single_topic_advice(self) -> str:
        """The remedy for a pattern that matches more than one topic, for errors."""
        if self.rest is not None:
            return f"{{{self.rest}+}} can be several segments; use app.publish(topic, message) instead"
        if self.prefix is not None:
            return "write a topic or captures instead of startswith, or use app.publish(topic, message)"
        return "replace each wildcard with a capture such as {name}"

    def topic(self, values: Mapping[str, bytes]) -> bytes:
        """Return the topic with ``values`` in place of the captures.

        Args:
            values: the segments by capture name, from `segment_bytes`.

        Raises:
            PatternError: the pattern is not a template.
            TopicError: a value is missing, or the topic is too long.
        """
        if not self.is_template:
            fault = f"matches more than one topic, but a message is published to one topic: {self.single_topic_advice}"
            raise _error(self.text, fault)
        for name in self.captures:
            if name not in values:
                raise TopicError(f"topic {self.text!r} needs a value for {{{name}}}", topic=self.text)
        return _bounded(self.separator.join(s if isinstance(s, bytes) else values[s.name or ""] for s in self.segments))

    def overlaps(self, other: Pattern) -> bool:
        """Return True if the same topic can be made from both patterns.

        All wildcards of both patterns must be captures or ``*``.
        """
        return len(self.segments) == len(other.segments) and all(
            one == two or (isinstance(one, Wildcard) and two != b"") or (isinstance(two, Wildcard) and one != b"")
            for one, two in zip(self.segments, other.segments, strict=True)
        )

    def meets(self, template: Pattern) -> bool:
        """Return True if this pattern may match a topic that is made from ``template``."""
        if self.prefix is not None:
            begin = template.subscription
            return begin.startswith(self.prefix) or (not template.is_concrete and self.prefix.startswith(begin))
        if self.tail and len(template.segments) <= len(self.segments):
            return False
        if self.tail:
            template = Pattern(template.text, template.segments[: len(self.segments)])
        return self.overlaps(template)

    @property
    def _is_segments(self) -> bool:
        return self.prefix is None and not self.tail


def parse(pattern: str | Pattern, separator: str = ".") -> Pattern:
    """Parse a pattern such as ``news.*``, ``stocks.{symbol}`` or ``logs.>``.

    ``separator`` is the character between segments. A Pattern is returned unchanged, except that a `startswith` gets
    this separator.

    Raises:
        PatternError: the pattern is invalid. The error names the segment, counted from 1, and the remedy.
    """
    if isinstance(pattern, Pattern):
        if pattern.separator == separator.encode():
            return pattern
        if pattern.prefix is None:
            raise _error(
                pattern.text,
                f"has the separator {pattern.separator.decode()!r}, but {separator!r} is expected here: pass the "
                f"pattern as text, with {separator!r} between its segments",
            )
        return attrs.evolve(pattern, separator=separator.encode())
    _refuse_no_pattern(pattern, separator)
    parts = pattern.split(separator)
    if fault := _empty_segment(parts, separator):
        raise _error(pattern, fault)
    rest = _rest(pattern, len(parts), parts[-1])
    tail = rest is not None or parts[-1] == ">"
    segments = tuple(_segment(pattern, i, part, separator) for i, part in enumerate(parts[: len(parts) - tail], 1))
    parsed = Pattern(pattern, segments, tail, rest, separator=separator.encode())
    _refuse_twice(parsed)
    _refuse_too_long(parsed)
    return parsed


def startswith(prefix: str | bytes) -> Pattern:
    """Match every topic whose bytes begin with ``prefix``, regardless of segments.

    For example, this handler receives ``news``, ``news.sports`` and ``newsletter``:

        @app.subscribe(startswith("news"))
        def on_news(story: Story) -> None: ...

    Args:
        prefix: text or bytes; ``""`` matches every topic, including the empty one.

    Raises:
        PatternError: the prefix contains NUL, is too long, or is text with wildcards, which would be matched literally.
            Use bytes as the prefix of topics that really contain ``*``, ``>`` or braces.
    """
    if not isinstance(prefix, str | bytes):
        raise PatternError(f"the prefix of startswith() must be text or bytes, not {prefix!r}", pattern=prefix)
    raw = _prefix_bytes(prefix) if isinstance(prefix, str) else bytes(prefix)
    text = _prefix_text(raw)
    if b"\0" in raw:
        raise _error(text, "contains NUL, which ends a topic on the wire: remove the NUL")
    if len(raw) > MAX_TOPIC:
        raise _error(text, f"is {len(raw)} bytes long, but topics are limited to {MAX_TOPIC} bytes: shorten the prefix")
    return Pattern(text, prefix=raw)


def matches(pattern: str | Pattern, topic: bytes) -> dict[str, bytes] | None:
    """Return the captures of ``topic``, or None if the pattern does not match.

    Patterns given as text use dots between segments. This slow implementation is the reference for the trie.
    """
    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    if pattern.prefix is not None:
        return {} if topic.startswith(pattern.prefix) else None
    found = topic.split(pattern.separator)
    if b"" in found[may_begin_with(pattern.separator) :] or not topic or not is_text(topic):
        return None
    rest = len(found) - len(pattern.segments)
    if rest < 1 if pattern.tail else rest != 0:
        return None
    for expected, segment in zip(pattern.segments, found, strict=False):
        if expected != segment if isinstance(expected, bytes) else not segment:
            return None
    return pattern.captured(found)


def any_of(patterns: Sequence[str | Pattern]) -> Callable[[bytes], bool]:
    """Return a function that checks if a topic matches any of ``patterns``.

    The first check of a topic is slow; results for recent topics are cached. Topics longer than `MAX_TOPIC` are not
    cached.
    """

    def matches_any(topic: bytes) -> bool:
        return any(matches(pattern, topic) is not None for pattern in patterns)

    known = lru_cache(TOPICS_NOTED)(matches_any)
    return lambda topic: known(topic) if len(topic) <= MAX_TOPIC else matches_any(topic)


def may_begin_with(separator: bytes | str) -> bool:
    """Return True if topics may begin with this separator.

    The first segment of such a topic is empty.
    """
    return separator not in (".", b".")


def _rest(pattern: str, number: int, part: str) -> str | None:
    """Return the name in a segment such as ``{rest+}``, or None for another segment."""
    if part[:1] != "{" or part[-2:] != "+}":
        return None
    return _capture_name(pattern, number, f"{part[:-2]}}}")


def _segment(pattern: str, number: int, part: str, separator: str) -> Segment:
    if ours := _OF_OTHER_TOOLS.get(part):
        raise _error(pattern, f"has {part!r} in segment {number}, which is not a wildcard of zroute: {ours}")
    if separator == ".":
        _refuse_slashes(pattern, number, part)
    if capture := _OTHER_CAPTURE.fullmatch(part):
        raise _error(
            pattern,
            f"has {part!r}, a capture of other tools, in segment {number}: write {{{capture[1] or capture[2]}}}",
        )
    if other := _OTHER_REST.fullmatch(part):
        raise _error(pattern, f"has {part!r} in segment {number}: write {{{other[1]}+}}, as the last segment")
    if part == "*":
        return ANY
    if part == ">":
        raise _error(
            pattern, f"has '>' in segment {number}, but '>' is allowed only at the end: write '*' for this segment"
        )
    if len(part) > 1 and part[0] == "{" and part[-1] == "}":
        return Wildcard(_capture_name(pattern, number, part))
    if mark := _WILDCARD_MARK.search(part):
        raise _partial_wildcard(pattern, number, part, mark, separator)
    return part.encode()


def _refuse_slashes(pattern: str, number: int, part: str) -> None:
    """Raise PatternError for wildcards between slashes if the separator is a dot."""
    levels = part.split("/")
    wild = [
        level
        for level in levels
        if level in ("*", ">", *_OF_OTHER_TOOLS) or level[:1] == "{" or _OTHER_CAPTURE.fullmatch(level)
    ]
    if len(levels) > 1 and wild:
        known = {"+": "*", "#": ">", "**": ">"}
        named = (_OTHER_CAPTURE.sub(r"{\1\2}", level) for level in pattern.split("/") if level)
        ours = ".".join(known.get(level, level) for level in named)
        raise _error(
            pattern,
            f"has {wild[0]!r} between slashes in segment {number}, but the separator is a dot: "
            f"write {ours!r} for topics with dots; or write App(separator='/') for topics with slashes",
        )


def _capture_name(pattern: str, number: int, part: str) -> str:
    name = part[1:-1]
    if not name:
        raise _error(
            pattern, f"has a capture without a name in segment {number}: write a capture such as {{name}}, or '*'"
        )
    if typed := _TYPED.fullmatch(part):
        raise _error(
            pattern,
            f"has {part!r}, a capture of other tools, in segment {number}: write {{{typed[1]}}}, and annotate the "
            f"parameter with its type, as in `{typed[1]}: int`",
        )
    if not name.isidentifier() or iskeyword(name):
        advice = "write a Python identifier that is not a keyword, such as {name}"
        raise _error(
            pattern, f"has the capture {part} in segment {number}, which can't be the name of a parameter: {advice}"
        )
    return name


def _partial_wildcard(pattern: str, number: int, part: str, mark: re.Match[str], separator: str) -> PatternError:
    at = f"segment {number} {part!r}"
    if mark[0] in "{}":
        fault = "a capture" if part.count("{") == part.count("}") else "an unbalanced brace"
        between = "" if separator == "." else f", between {_separator_names(separator)[1]}"
        return _error(
            pattern, f"has {fault} as a part of {at}: a capture must be a whole segment, such as {{name}}{between}"
        )
    before = separator.join([*pattern.split(separator)[: number - 1], part[:-1]])
    if mark.end() == len(part) and not _WILDCARD_MARK.search(before):  # `new*` can only mean a prefix
        advice = f'use startswith("{before}")'
    else:
        advice = f"write '{mark[0]}' between {_separator_names(separator)[1]}"
    return _error(pattern, f"has '{mark[0]}' as a part of {at}, but a wildcard must be a whole segment: {advice}")


def _refuse_no_pattern(pattern: object, separator: str) -> None:
    if not isinstance(pattern, str):
        example = f"news{separator}*"
        advice = f"use startswith({pattern!r})" if isinstance(pattern, bytes) else f"write text such as {example!r}"
        raise PatternError(f"a pattern must be text, not {pattern!r}: {advice}", pattern=pattern)
    if not pattern:
        raise _error(pattern, 'is empty: to match every topic, including the empty topic, write startswith("")')
    if _STARTSWITH.match(pattern):
        raise PatternError(
            f"pattern {pattern!r} is a call in quotes: write {pattern.strip()} without the outer quotes",
            pattern=pattern,
        )
    if bad := _NOT_IN_A_PATTERN.search(pattern):
        number = pattern.count(separator, 0, bad.start()) + 1
        advice = "remove it"
        if bad[0] != "\0" and not _WILDCARD_MARK.search(pattern):
            advice += f'; or, for topics of other programs, write startswith("{pattern}")'
        raise _error(
            pattern,
            f"contains {_named(bad[0])} in segment {number}, but topics of zroute can't contain this character: "
            f"{advice}",
        )
    try:
        pattern.encode()
    except UnicodeEncodeError as error:
        number = pattern.count(separator, 0, error.start) + 1
        advice = "for a prefix of other bytes, use startswith(b'...')"
        raise _error(pattern, f"is not UTF-8 text in segment {number}: {advice}") from None


def _refuse_twice(pattern: Pattern) -> None:
    seen: dict[str, int] = {}
    rest = () if pattern.rest is None else (Wildcard(pattern.rest),)
    for number, segment in enumerate((*pattern.segments, *rest), 1):
        name = segment.name if isinstance(segment, Wildcard) else None
        if name is None:
            continue
        if name in seen:
            where = f"segments {seen[name]} and {number}"
            raise _error(pattern.text, f"has the capture {{{name}}} in {where}: give the two captures different names")
        seen[name] = number


def _refuse_too_long(pattern: Pattern) -> None:
    """Raise PatternError if every matching topic is longer than `MAX_TOPIC`.

    A wildcard counts as one byte, the shortest segment. The length of a capture's name does not matter.
    """
    sizes = [len(s) if isinstance(s, bytes) else 1 for s in pattern.segments] + [1] * pattern.tail
    shortest = sum(sizes) + len(sizes) - 1
    if shortest > MAX_TOPIC:
        limit = f"but topics are limited to {MAX_TOPIC} bytes"
        raise _error(pattern.text, f"only matches topics of at least {shortest} bytes, {limit}: shorten the pattern")


def _prefix_bytes(prefix: str) -> bytes:
    text = f'startswith("{prefix}")'
    if mark := _WILDCARD_MARK.search(prefix):
        literal = prefix.encode("utf-8", "replace")
        advice = f"write the pattern without startswith; or, if topics really contain '{mark[0]}', write {literal!r}"
        raise _error(text, f"contains '{mark[0]}', but a prefix is matched literally: {advice}")
    try:
        return prefix.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _error(text, "is not UTF-8 text: pass the prefix as bytes") from None


def _prefix_text(raw: bytes) -> str:
    text = raw.decode("utf-8", "surrogateescape")
    plain = text.isprintable() and '"' not in text and "\\" not in text and not _WILDCARD_MARK.search(text)
    return f'startswith("{text}")' if plain else f"startswith({raw!r})"


def _error(pattern: str, fault: str) -> PatternError:
    shown = pattern if pattern.startswith("startswith(") else repr(pattern)
    return PatternError(f"pattern {shown} {fault}", pattern=pattern)


def _empty_segment(parts: list[str], separator: str) -> str:
    """Return the error text for the first empty segment, or "" if there is none."""
    if "" not in parts:
        return ""
    first = int(may_begin_with(separator))
    if "" not in parts[first:]:
        return ""
    number = parts.index("", first) + 1
    one, several = _separator_names(separator)
    places = {1: f"begins with {one}", len(parts): f"ends with {one}"}
    where = places.get(number, f"has two {several} in a row")
    return f"{where}, so segment {number} is empty: remove the {one.removeprefix('a ')}, or add the missing segment"


def _separator_names(separator: str) -> tuple[str, str]:
    """Return the name of the separator in the singular and in the plural."""
    return _SEPARATOR_NAMES.get(separator, (repr(separator), repr(separator)))


def _segment_text(value: object) -> str | None:
    """Return the text that a handler's annotation converts back to ``value``.

    The result is None if the value can't be converted.
    """
    if type(value) is str:  # most captures
        return value
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date):  # also a datetime
        return value.isoformat()
    if isinstance(value, float) and not isfinite(value):
        return None
    if not isinstance(value, str | int | float | UUID):
        return None
    return str(value)


def _segment_fault(text: str | None, separator: str, *, plain: bool) -> str:
    """Return why a text is not a valid segment, or "".

    ``plain`` is True if the value itself was text.
    """
    if text is None:
        a_float = "" if separator == "." else "a finite float, "  # the text of a float has a dot
        return f"can't be a segment: use a str, an int, {a_float}a bool, a UUID, a date, a datetime or an enum"
    if not text:
        return "is empty, but a segment needs at least one character"
    if separator in text:
        advice = "replace this character"
        if separator == "." and not plain:  # a float, or a time with a fraction of a second
            advice = "publish the value in the body; or use another separator, as in App(separator='/')"
        return f"contains {_separator_names(separator)[0]}, which would split the value into two segments: {advice}"
    if bad := _NOT_IN_A_TOPIC.search(text):
        return f"contains {_named(bad[0])} at position {bad.start()}: replace this character"
    return ""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        fault = f"contains a lone surrogate at position {error.start}, which is not UTF-8: replace this character"
        raise TopicError(f"topic {text!r} {fault}", topic=text) from None


def _bounded(topic: bytes) -> bytes:
    if len(topic) > MAX_TOPIC:
        fault = f"is {len(topic)} bytes long, but topics are limited to {MAX_TOPIC} bytes: shorten the topic"
        raise TopicError(f"topic {topic[:32]!r}... {fault}", topic=Topic.from_wire(topic))
    return topic


def _named(mark: str) -> str:
    if mark == "\0":
        return "NUL"
    return f"white space ({mark!r})" if mark.isspace() else f"the wildcard '{mark}'"


def minimal_cover(prefixes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the fewest byte prefixes that cover all ``prefixes``, sorted.

    No prefix in the result is a prefix of another. If ``prefixes`` contains ``b""``, which covers everything, the
    result is only ``b""``. Without prefixes, the result is empty.
    """
    cover: list[bytes] = []
    for prefix in sorted(prefixes):  # a prefix sorts directly before all prefixes that it covers
        if not cover or not prefix.startswith(cover[-1]):
            cover.append(prefix)
    return tuple(cover)
