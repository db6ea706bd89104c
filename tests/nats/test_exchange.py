"""Requests and answers as NATS messages, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zroute.errors import EnvelopeError
from zroute.messages.jobs import JOB, pack_job_meta, parse_job, with_attempt
from zroute.messages.requests import Kind, pack_failure, pack_reply, plain_failure, request_packer
from zroute.nats.exchange import (
    answer_of,
    is_for_handlers,
    is_job,
    is_published,
    job_of,
    pack_answer,
    pack_job,
    pack_request,
    request_of,
)
from zroute.nats.headers import fields_of, parse_block

ID = bytes(range(16))


@pytest.mark.parametrize("headers", [None, {"user": "ann"}])
def test_a_request_arrives_as_the_frame_that_was_sent(headers: dict[str, str] | None) -> None:
    """The conversion to a NATS message and back changes no byte; the body is clean."""
    frame = request_packer(5, lambda: 7)(ID, b"a.b", 2, b"body", headers, 1.5, 64)
    subject, block, payload = pack_request(frame)
    assert (subject, payload, is_for_handlers(block)) == (b"a.b", b"body", True)
    assert next(iter(fields_of(block))) == "Zr-Request"
    assert request_of(subject, block, payload) == (frame,)


def test_a_foreign_request_has_a_topic_and_a_body() -> None:
    """Without headers, the body is unchanged; with headers, they precede it."""
    assert request_of(b"a", None, b"x") == (b"a", b"x")
    topic, body = request_of(b"a", b"NATS/1.0\r\nuser: ann\r\n\r\n", b"x")
    assert (topic, body[:3], body[-1:]) == (b"a", b"\xc1ZR", b"x")


@pytest.mark.parametrize("kind", [Kind.REPLY, Kind.ITEM, Kind.END])
def test_a_reply_arrives_as_the_frame_that_was_sent(kind: Kind) -> None:
    """The kind, the codec and the id travel in the header."""
    frame = pack_reply(ID, kind, 2, b"body")
    block, payload = pack_answer([frame])
    assert (payload, is_for_handlers(block)) == (b"body", True)
    assert answer_of(parse_block(block), payload) == [frame]


def test_failures_and_plain_replies_are_those_of_nats() -> None:
    """Both forms of a failure become headers of services, and a plain reply has no headers."""
    for parts in ([pack_failure(ID, 409, "sold\nout")], plain_failure(409, "sold\nout")):
        block, payload = pack_answer(parts)
        assert fields_of(block) == {"Nats-Service-Error": "sold out", "Nats-Service-Error-Code": "409"}
        assert answer_of(parse_block(block), payload) == [b"", b"409", b"sold out"]
    assert pack_answer([b"body"]) == (b"", b"body")
    assert answer_of(None, b"body") == [b"body"]


@given(st.binary(max_size=70), st.booleans())
def test_any_header_of_a_peer_is_read_or_refused(fields: bytes, is_hex: bool) -> None:
    """Bytes of a peer raise no error but EnvelopeError."""
    value = (b"c15a51" + fields.hex().encode()) if is_hex else fields.replace(b"\r", b"").replace(b"\n", b"")
    for name in (b"Zr-Request", b"Zr-Reply"):
        block = b"NATS/1.0\r\n" + name + b": " + value + b"\r\n\r\n"
        try:
            request_of(b"a", block, b"x")
            answer_of(parse_block(block), b"x")
        except EnvelopeError:
            continue


@pytest.mark.parametrize("headers", [None, {"user": "ann", "note": "ä"}])
def test_a_job_arrives_as_it_was_sent(headers: dict[str, str] | None) -> None:
    """The conversion to headers and back changes no byte of a job."""
    meta = with_attempt(pack_job_meta(2, 1, headers), 3)
    block = pack_job(ID, meta)
    assert next(iter(fields_of(block))) == "Zr-Job"
    assert (is_job(block), is_for_handlers(block), is_published(block)) == (True, True, False)
    parts = job_of(b"a.b", block, b"body", bytes(16))
    assert parts == (JOB, ID, b"a.b", b"body", meta)
    assert parse_job(parts).attempt == 3


def test_a_foreign_job_gets_an_id() -> None:
    """A message without headers of zroute is a job of an unknown codec, with its headers."""
    plain = parse_job(job_of(b"a", None, b"x", ID))
    assert (plain.id, plain.codec, plain.attempt, plain.headers) == (ID, 0, 1, b"")
    named = parse_job(job_of(b"a", b"NATS/1.0\r\nuser: ann\r\n\r\n", b"x", ID))
    assert named.headers == b"\x81\xa4user\xa3ann"


@given(st.binary(max_size=40), st.booleans())
def test_any_header_of_a_job_is_read_or_refused(fields: bytes, is_hex: bool) -> None:
    """Bytes of a peer raise no error but EnvelopeError."""
    value = fields.hex().encode() if is_hex else fields.replace(b"\r", b"").replace(b"\n", b"")
    try:
        parse_job(job_of(b"a", b"NATS/1.0\r\nZr-Job: " + value + b"\r\n\r\n", b"x", ID))
    except EnvelopeError:
        assert not (is_hex and len(fields) == 20 and fields[16:] == b"\x01\x02\x00\x01")
