"""Patterns and topics of zroute as subjects of NATS.

A topic is also the subject of its message. The grammar of zroute's patterns is that of NATS subjects, with two
differences (docs.nats.io, "Subject-Based Messaging"):

======================= ================= =====================================================
pattern                 subject           remark
======================= ================= =====================================================
``news``                ``news``
``news.*``              ``news.*``
``news.{kind}``         ``news.*``
``news.>``              ``news.>``        one or more segments, in zroute and in NATS
``news.{rest+}``        ``news.>``
startswith("news.")     ``news.>``        ``news.`` itself is not a topic of NATS
startswith("a.b.ne")    ``a.b.>``         a superset: the routes drop the other messages
startswith("")          ``>``             includes the topics of `is_reserved`
startswith("news")      refused           a subject can't cut a segment, so it would be ``>``
======================= ================= =====================================================

A subscription that receives too much is correct, because the routes compare each topic with the patterns. Two
subscriptions of one connection that match the same topic are not: the server then delivers the message twice.
`generalise` therefore merges overlapping subjects.

NATS accepts some topics without an error, and then delivers them to no subscriber: those with an empty segment, such as
``a..b``, and those with a wildcard as a segment. White space in a topic would even change the protocol line.
`check_topic` refuses these topics before they are published.

This module does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias, TypeVar

from zroute.errors import PatternError, TopicError
from zroute.logs import printable
from zroute.messages.topics import Pattern, is_text

__all__ = [
    "JOINS",
    "TOPICS",
    "TopicMemo",
    "check_topic",
    "generalise",
    "is_reserved",
    "overlap",
    "subject_of",
    "valid_topics",
]

JOINS: Final = b"_zr."
"""The beginning of the subjects that zroute uses itself."""

TOPICS: Final = 10_000
"""The number of topics for which a `TopicMemo` stores results."""

V = TypeVar("V")

_RESERVED: Final = (b"$", b"_INBOX.", JOINS)
"""The beginnings of subjects of the server, of requests, and of zroute."""

_ONE, _REST = b"*", b">"

_BREAKS_LINE = re.compile(rb"[\0-\x20\x7f]")
"""White space separates the parts of a protocol line. Servers and clients differ in the other control characters."""


def subject_of(pattern: Pattern) -> bytes:
    """Return the subject to subscribe to for a pattern.

    The subject matches every topic of the pattern that NATS can deliver. Only the subject of a `startswith` that ends
    inside a segment matches other topics too.

    Raises:
        PatternError: The pattern has another separator than the dot; or it is a `startswith` whose subject would match
            all messages of the cluster, or no message.
    """
    if pattern.prefix is not None:
        return _prefix_subject(pattern, pattern.prefix)
    if pattern.separator != b".":
        raise _refused(
            pattern,
            f"has the separator {pattern.separator.decode()!r}, but subjects of NATS have dots between their segments: "
            "use an App without separator=, and topics with dots",
        )
    tokens = [segment if isinstance(segment, bytes) else _ONE for segment in pattern.segments]
    for number, token in enumerate(tokens, 1):
        if token is not _ONE and (bad := _BREAKS_LINE.search(token)):
            raise _refused(
                pattern,
                f"contains the control character {bad[0]!r} in segment {number}, which subjects of NATS can't contain: "
                "remove it",
            )
    return b".".join([*tokens, _REST] if pattern.tail else tokens)


def check_topic(topic: bytes) -> None:
    """Raise TopicError if NATS would not deliver a message of this topic.

    Raises:
        TopicError: The topic is empty, has an empty segment or a wildcard as a segment, contains white space, control
            characters or bytes that are not UTF-8, or is reserved (`is_reserved`). The error names the position.
    """
    if fault := _topic_fault(topic):
        raise TopicError(f"topic '{printable(topic)}' {fault}", topic=topic.decode("utf-8", "surrogateescape"))


class TopicMemo(dict[bytes, V]):
    """The results of a function of topics, for up to `TOPICS` topics.

    ``memo[topic]`` calls the function for a new topic, and raises its errors.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[bytes], V]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, topic: bytes) -> V:
        found = self._function(topic)
        if len(self) >= TOPICS:
            self.clear()
        self[topic] = found
        return found


def valid_topics() -> TopicMemo[bytes]:
    """Return a memo of `check_topic`, whose results are the topics themselves."""

    def valid(topic: bytes) -> bytes:
        check_topic(topic)
        return topic

    return TopicMemo(valid)


def is_reserved(topic: bytes) -> bool:
    """Return True for a topic of the server, of an inbox, or of zroute itself.

    Such topics begin with ``$``, ``_INBOX.`` or ``_zr.``. The subject ``>`` matches them too.
    """
    return topic.startswith(_RESERVED)


def generalise(subjects: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return subjects that match the topics of all ``subjects``, each topic once.

    Overlapping subjects are replaced by the narrowest subject that covers both, until none overlap. The result is
    sorted, does not depend on the order of ``subjects``, and may match further topics: ``*.urgent`` and ``news.*``
    become ``*.*``.
    """
    kept = _Node()
    waiting = sorted({tuple(subject.split(b".")) for subject in subjects}, key=_narrowness)
    while waiting:
        tokens = waiting.pop()
        found = kept.overlapping(tokens, 0)
        if found is None:
            kept.add(tokens)
        elif (merged := _merged(found, tokens)) != found:
            kept.remove(found)
            waiting.append(merged)
    return tuple(sorted(b".".join(tokens) for tokens in kept.all()))


def overlap(one: bytes, other: bytes) -> bool:
    """Return True if some topic matches both subjects."""
    node = _Node()
    node.add(tuple(one.split(b".")))
    return node.overlapping(tuple(other.split(b".")), 0) is not None


# -- topics ----------------------------------------------------------------------------------------------


def _topic_fault(topic: bytes) -> str:
    """Return why NATS would not deliver a message of this topic, or ""."""
    if not topic:
        return "is empty, but a subject of NATS needs at least one segment: name the topic"
    if bad := _BREAKS_LINE.search(topic):
        return f"contains {bad[0]!r} at position {bad.start()}, which subjects of NATS can't contain: remove it"
    if not is_text(topic):
        return "is not UTF-8, which clients of NATS expect: encode the topic as UTF-8"
    for number, token in enumerate(topic.split(b"."), 1):
        if not token:
            return f"has an empty segment {number}, and NATS would deliver it to no subscriber: name the segment"
        if token in (_ONE, _REST):
            return (
                f"has the wildcard {token.decode()!r} as segment {number}, and NATS would deliver it to no subscriber: "
                "publish to one topic"
            )
    if is_reserved(topic):
        return "is reserved: topics that begin with '$', '_INBOX.' or '_zr.' belong to NATS and zroute: rename it"
    return ""


# -- patterns --------------------------------------------------------------------------------------------


def _prefix_subject(pattern: Pattern, prefix: bytes) -> bytes:
    """Return the subject of a `startswith`: its whole segments, and ``>``."""
    if not prefix:
        return _REST
    head, dot, _ = prefix.rpartition(b".")
    if not dot:
        name = printable(prefix)
        raise _refused(
            pattern,
            f"begins inside a segment. NATS filters by whole segments, so this app would receive every message of the "
            f"cluster. Write one of these instead: the pattern '{name}.>' for topics of several segments, "
            f"startswith('{name}.') for the same, or '{name}' for this topic alone",
        )
    for number, token in enumerate(head.split(b"."), 1):
        if not token or _BREAKS_LINE.search(token) or token in (_ONE, _REST):
            kind = f"the segment {token!r}" if token else "an empty segment"
            raise _refused(
                pattern,
                f"has {kind} at position {number}, and NATS never delivers topics with such a segment: correct the "
                "prefix, or remove the handler",
            )
    return head + b".>"


def _refused(pattern: Pattern, fault: str) -> PatternError:
    shown = pattern.text if pattern.prefix is not None else repr(pattern.text)
    return PatternError(f"pattern {shown} {fault}", pattern=pattern.text)


# -- the merging of subjects -----------------------------------------------------------------------------

_Tokens: TypeAlias = tuple[bytes, ...]


def _narrowness(tokens: _Tokens) -> tuple[int, int, _Tokens]:
    """Return a sort key that puts wide subjects last, where `list.pop` begins."""
    wild = sum(token in (_ONE, _REST) for token in tokens)
    return (wild, -len(tokens), tokens)


def _merged(one: _Tokens, other: _Tokens) -> _Tokens:
    """Return the narrowest subject that covers two overlapping subjects.

    Overlapping subjects of different lengths have a ``>`` at the end of the shorter one, so the loop finds it.
    """
    merged: list[bytes] = []
    for a, b in zip(one, other, strict=False):
        if _REST in (a, b):
            return (*merged, _REST)
        merged.append(a if a == b else _ONE)
    return tuple(merged)


class _Node:
    """A tree of subjects that do not overlap.

    Without the tree, each of thousands of patterns would be compared with all others. ``ends`` is True if a subject
    ends at this node.
    """

    __slots__ = ("ends", "next")

    def __init__(self) -> None:
        self.next: dict[bytes, _Node] = {}
        self.ends = False

    def add(self, tokens: _Tokens) -> None:
        """Add a subject."""
        node = self
        for token in tokens:
            node = node.next.setdefault(token, _Node())
        node.ends = True

    def remove(self, tokens: _Tokens) -> None:
        """Remove a subject, with the nodes that no other subject needs."""
        path = [self]
        for token in tokens:
            path.append(path[-1].next[token])
        path[-1].ends = False
        for node, token in zip(reversed(path[:-1]), reversed(tokens), strict=True):
            if node.next[token].ends or node.next[token].next:
                return
            del node.next[token]

    def all(self, before: _Tokens = ()) -> Iterable[_Tokens]:
        """Yield all subjects; ``before`` are the tokens above this node."""
        if self.ends:
            yield before
        for token, node in self.next.items():
            yield from node.all((*before, token))

    def overlapping(self, tokens: _Tokens, at: int) -> _Tokens | None:
        """Return a subject that overlaps with ``tokens[at:]``, or None."""
        if at == len(tokens):
            return tokens[:0] if self.ends else None
        if _REST in self.next:
            return (_REST,)
        token = tokens[at]
        if token == _REST:
            return next(((each, *below) for each, node in self.next.items() for below in node.all()), None)
        for each in self.next if token == _ONE else (token, _ONE):
            node = self.next.get(each)
            below = None if node is None else node.overlapping(tokens, at + 1)
            if below is not None:
                return (each, *below)
        return None
