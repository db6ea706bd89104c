"""The topics that a subscriber wants, as patterns or as NATS subjects.

Both ends decide with `Wants` which topics belong to a subscriber: the publisher for its answers, and the subscriber for
its accounts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from zroute.errors import EnvelopeError, PatternError
from zroute.messages.topics import MAX_TOPIC, Pattern, parse
from zroute.receiving.trie import build

__all__ = ["Wants", "wants_of"]


class Wants:
    """A set of patterns.

    Attributes:
        patterns: the patterns.
        prefixes: the literal beginnings of the topics, for a search in sorted topics.
    """

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self.patterns = tuple(patterns)
        self.prefixes = tuple(pattern.subscription for pattern in self.patterns)
        self._match = build((pattern, None) for pattern in self.patterns).match

    def __contains__(self, topic: bytes) -> bool:
        return bool(self._match(topic))

    def meets(self, template: Pattern) -> bool:
        """Return True if a topic that is made from ``template`` may be wanted."""
        return any(pattern.meets(template) for pattern in self.patterns)


def wants_of(subjects: Iterable[bytes]) -> Wants:
    """Return the topics of NATS subjects.

    Raises EnvelopeError if a peer has sent an invalid subject.
    """
    try:
        return Wants([_pattern(subject) for subject in subjects])
    except (PatternError, UnicodeDecodeError) as error:
        raise EnvelopeError(f"a join with an invalid subject: {error}") from error


_LITERAL: Final = re.compile(rb"[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*").fullmatch


def _pattern(subject: bytes) -> Pattern:
    """Return the pattern of a subject.

    A join may have 15,000 subjects, most of which are plain topics. The parser would take four times as long for such
    a topic, and return the same pattern.
    """
    if len(subject) <= MAX_TOPIC and _LITERAL(subject):
        return Pattern(subject.decode(), tuple(subject.split(b".")), separator=b".")
    return parse(subject.decode())
