"""The control messages on NATS, against the test vectors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.test_wire import named
from tests.support import wire_vectors
from zroute.errors import EnvelopeError
from zroute.messages.wire import Kind, parse_header
from zroute.nats.asks import (
    ASK_MAX,
    Ask,
    AskKind,
    Says,
    Statement,
    pack_ask,
    pack_statement,
    parse_ask,
    parse_statement,
    private_subject,
    question_subject,
    subscriber_of,
)
from zroute.nats.headers import frame_of, message_of

VECTORS = wire_vectors()


@pytest.mark.parametrize("vector", named(VECTORS["nats_messages"]))
def test_each_message_vector_goes_both_ways(vector: dict[str, Any]) -> None:
    """A frame and its NATS message have the same content."""
    message = vector["subject"].encode(), vector["headers"].encode(), bytes.fromhex(vector["payload"])
    assert message_of(bytes.fromhex(vector["frame"])) == message
    assert frame_of(*message, lambda: 0) == bytes.fromhex(vector["frame"])


@pytest.mark.parametrize("vector", named(VECTORS["nats_questions"]))
def test_each_question_vector_goes_both_ways(vector: dict[str, Any]) -> None:
    """A question is written and read as its vector says."""
    subjects = tuple(subject.encode() for subject in vector["subjects"])
    kind, subscriber = AskKind[vector["kind"].upper()], int(vector["subscriber"], 16)
    ask = Ask(kind, subscriber, subjects, vector["afresh"], vector["joined"], vector["turn"])
    assert pack_ask(ask).hex() == vector["payload"]
    assert parse_ask(bytes.fromhex(vector["payload"])) == ask


@pytest.mark.parametrize("vector", named(VECTORS["nats_statements"]))
def test_each_statement_vector_goes_both_ways(vector: dict[str, Any]) -> None:
    """A statement is written and read as its vector says."""
    payload = bytes.fromhex(vector["payload"])
    header = parse_header(payload)
    assert (header.kind.name.lower(), f"{header.epoch:016x}") == (vector["kind"], vector["epoch"])
    statement = parse_statement(payload[header.size :])
    assert [each.name.lower() for each in Says if each in statement.says and each.name] == vector["says"]
    assert [[topic.hex(), number] for topic, number in statement.numbers] == vector["numbers"]
    facts = ("part", "generation", "turn", "since")
    assert [getattr(statement, each) for each in facts] == [vector[each] for each in facts]
    assert statement.name == vector["publisher_name"]
    kind: Any = header.kind
    assert pack_statement(kind, statement, epoch=header.epoch, sent_at=vector["sent_at_ns"]) == payload


@pytest.mark.parametrize("vector", named(VECTORS["malformed_nats"]))
def test_each_malformed_vector_is_refused(vector: dict[str, Any]) -> None:
    """The reason is the one of the vector."""
    parse: Any = parse_ask if vector["what"] == "question" else parse_statement
    with pytest.raises(EnvelopeError) as caught:
        parse(bytes.fromhex(vector["payload"]))
    assert str(caught.value) == vector["reason"]


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_refused(payload: bytes, begins: bool) -> None:
    """No input raises anything but EnvelopeError."""
    for parse in (parse_ask, parse_statement):
        try:
            parse(b"\xc1ZN\x01\0\0" * begins + payload)
        except EnvelopeError:
            continue


def test_a_join_with_too_many_subjects_is_about_everything() -> None:
    """The answer then names more topics than the subscriber wants."""
    subjects = tuple(b"a.%07d" % each for each in range(ASK_MAX // 10))
    assert parse_ask(pack_ask(Ask(AskKind.JOIN, 5, subjects))).subjects == subjects
    assert parse_ask(pack_ask(Ask(AskKind.JOIN, 5, (*subjects, b"b")))).subjects == (b">",)


def test_subjects_name_their_publisher_and_their_subscriber() -> None:
    """A reply subject of another form belongs to no subscriber."""
    assert private_subject(5, b"ask") == b"_zr.0000000000000005.ask"
    assert private_subject(5, 0xABC) == b"_zr.0000000000000005.000000000abc"
    assert question_subject(b"_INBOX.x", 0xABC, 0x1_0002) == b"_INBOX.x.000000000abc0002"
    assert subscriber_of(b"_INBOX.x.000000000abc0002") == 0xABC
    for other in (b"", b"orders", b"_INBOX.x.000000000ABC0002", b".000000000abc0002", b"a b.000000000abc0002"):
        assert subscriber_of(other) is None


def test_a_long_name_is_cut_between_characters() -> None:
    """The name fits into its length, and stays UTF-8."""
    payload = pack_statement(Kind.JOIN, Statement(0, Says.LAST, "é" * 200, 0, 0), epoch=5, sent_at=0)
    assert parse_statement(payload[32:]).name == "é" * 127
