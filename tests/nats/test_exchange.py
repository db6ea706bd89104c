"""Requests and answers as NATS messages, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.test_wire import named
from tests.support import ROOT
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
from zroute.options import HEADERS_MAX

ID = bytes(range(16))
VECTORS = json.loads((ROOT / "tests" / "data" / "wire-vectors.json").read_text())


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


def test_a_request_with_too_many_headers_is_refused() -> None:
    """A peer may send more headers than zroute passes on."""
    subject, block, payload = pack_request(request_packer(1, lambda: 5)(bytes(16), b"a", 1, b"", None, 1.0, 0))
    headers = b"x: %b\r\n\r\n" % (b"y" * 2 * HEADERS_MAX)
    with pytest.raises(EnvelopeError, match="at most 4096"):
        request_of(subject, block[:-2] + headers, payload)


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


@pytest.mark.parametrize("vector", named(VECTORS["nats_requests"]))
def test_each_vector_of_requests_goes_both_ways(vector: dict[str, Any]) -> None:
    """A frame of requests and its NATS message have the same content."""
    headers, payload = vector["headers"].encode(), bytes.fromhex(vector["payload"])
    frame = bytes.fromhex(vector["frame"])
    if vector["kind"] == "request":
        subject = vector["subject"].encode()
        assert pack_request(frame) == (subject, headers, payload)
        assert request_of(subject, headers, payload) == (frame,)
        return
    assert pack_answer([frame]) == (headers, payload)
    if vector["kind"] == "failed":
        assert answer_of(parse_block(headers), payload) == [b"", b"%d" % vector["code"], vector["text"].encode()]
    else:
        assert answer_of(parse_block(headers), payload) == [frame]


@pytest.mark.parametrize("vector", named(VECTORS["nats_jobs"]))
def test_each_vector_of_jobs_goes_both_ways(vector: dict[str, Any]) -> None:
    """A job and its NATS message have the same content."""
    frames = tuple(bytes.fromhex(frame) for frame in vector["frames"])
    headers = vector["headers"].encode()
    assert pack_job(frames[1], frames[4]) == headers
    assert job_of(vector["subject"].encode(), headers, bytes.fromhex(vector["payload"]), ID) == frames


@pytest.mark.parametrize("vector", named(VECTORS["malformed_nats_headers"]))
def test_each_malformed_header_is_refused(vector: dict[str, Any]) -> None:
    """The reason of a malformed header is that of its vector."""
    headers = vector["headers"].encode()
    read = {
        "Zr-Job": lambda: job_of(b"a", headers, b"", ID),
        "Zr-Request": lambda: request_of(b"a", headers, b""),
        "Zr-Reply": lambda: answer_of(parse_block(headers), b""),
    }
    with pytest.raises(EnvelopeError) as refused:
        next(call for name, call in read.items() if name in vector["headers"])()
    assert refused.value.reason == vector["reason"]
