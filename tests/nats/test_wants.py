"""The topics of a join."""

from __future__ import annotations

import pytest

from zroute.errors import EnvelopeError
from zroute.messages.topics import MAX_TOPIC, parse
from zroute.nats.wants import wants_of


@pytest.mark.parametrize(
    "subject",
    ["a", "news.sport", "A-1.b_2.c", "x" * MAX_TOPIC, "news.*", "news.>", "nächste.x", "a:b"],
)
def test_a_subject_has_the_pattern_of_the_parser(subject: str) -> None:
    """Plain topics, which are not parsed, have the same patterns as all others."""
    (pattern,) = wants_of([subject.encode()]).patterns
    assert (pattern, hash(pattern)) == (parse(subject), hash(parse(subject)))


@pytest.mark.parametrize(
    "subject", [b"", b"a..b", b"a.", b".a", b"x" * (MAX_TOPIC + 1), b"a\0b", b"a b", b"\xff", b"a{b"]
)
def test_an_invalid_subject_refuses_the_join(subject: bytes) -> None:
    """A peer's subject that is no pattern is an error of the peer."""
    with pytest.raises(EnvelopeError):
        wants_of([b"news", subject])
