"""Requests and answers as NATS messages, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.test_wire import named
from tests.support import ROOT
from zroute.errors import EnvelopeError
from zroute.messages.jobs import JOB, pack_job_meta, parse_job, with_attempt
from zroute.messages.requests import Kind, Reply, pack_reply, parse, parse_reply, parse_request
from zroute.messages.requests import request_packer as framed_request
from zroute.messages.wire import NUL, parse_header
from zroute.nats.exchange import (
    answer_of,
    is_for_handlers,
    is_job,
    is_published,
    job_of,
    pack_answer,
    pack_job,
    plain_packer,
    reply_of,
    request_of,
    request_packer,
)
from zroute.nats.headers import fields_of, parse_block
from zroute.options import HEADERS_MAX, MAX_TOPIC

ID = bytes(range(16))


def in_inbox(id: bytes) -> bytes:
    """Return a reply subject that a test can read."""
    return b"inbox." + id


VECTORS = json.loads((ROOT / "tests" / "data" / "wire-vectors.json").read_text())


@pytest.mark.parametrize("headers", [None, {"user": "ann"}])
def test_a_request_arrives_as_the_frame_that_was_sent(headers: dict[str, str] | None) -> None:
    """The conversion to a NATS message and back changes no byte; the body is clean."""
    given = (ID, b"a.b", 2, b"body", headers, 1.5, 64)
    subject, payload, reply, block = request_packer(5, lambda: 7, in_inbox)(*given)
    assert (subject, payload, reply, is_for_handlers(block)) == (b"a.b", b"body", b"inbox." + ID, True)
    assert next(iter(fields_of(block or b""))) == "Zr-Request"
    seconds, window, frame = parse_request(parse(framed_request(5, lambda: 7)(*given)))
    assert request_of(subject, block, payload) == (ID, (frame,), seconds, window, 0 if headers else 2)


def test_a_foreign_request_has_a_topic_and_a_body() -> None:
    """Without headers, the body is unchanged; with headers, they precede it."""
    assert request_of(b"a", None, b"x") == (b"", (b"a", b"x"), None, 0, 0)
    _, (topic, body), *_ = request_of(b"a", b"NATS/1.0\r\nuser: ann\r\n\r\n", b"x")
    assert (topic, body[:3], body[-1:]) == (b"a", b"\xc1ZR", b"x")


@pytest.mark.parametrize("kind", [Kind.REPLY, Kind.ITEM, Kind.END])
def test_a_reply_arrives_as_the_frame_that_was_sent(kind: Kind) -> None:
    """The kind, the codec and the id travel in the header, which both ways of reading accept."""
    block, payload = pack_answer(ID, kind, 2, b"body")
    assert block is not None
    assert (payload, is_for_handlers(block)) == (b"body", True)
    assert reply_of(block, payload, ID.hex().encode()) == Reply(kind, b"body", 2)
    assert answer_of(parse_block(block), payload) == [pack_reply(ID, kind, 2, b"body")]


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.replace(b"c15a5101", b"c15a5102"),
        lambda block: block.replace(b"0302", b"0602"),
        lambda block: block.replace(b"0302", b"0002"),
        lambda block: block.replace(b"0302", b"03x2"),
        lambda block: block.replace(ID.hex().encode(), bytes(16).hex().encode()),
        lambda block: block[:-2] + b"user: ann\r\n\r\n",
        lambda _: None,
    ],
)
def test_any_other_answer_is_left_to_the_whole_parser(change: Callable[[bytes], bytes | None]) -> None:
    """A version, kind, codec or id that is not expected, other headers, and no headers are no known reply."""
    block, payload = pack_answer(ID, Kind.REPLY, 2, b"body")
    assert block is not None
    assert reply_of(change(block), payload, ID.hex().encode()) is None


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("c15a51010000", "c15a51020000", "version 2; expected version 1"),
        ("c15a51010000", "c15a51010300", "bytes of a request"),
        ("c15a5201", "c15a5202", "header of version 2"),
        ("c15a52010002", "c15a52010902", "the unknown kind 9"),
        ("c15a5201000200", "c15a5201000204", "unknown flags 0x04"),
        ("c15a51010000", "c15a5101000x", "not hexadecimal"),
        ("000005dc", "00000000", "0 milliseconds"),
    ],
)
def test_a_malformed_request_without_other_headers_is_refused(before: str, after: str, reason: str) -> None:
    """Each field of the header that a peer may not choose freely is checked."""
    subject, payload, _, block = request_packer(5, lambda: 7, in_inbox)(ID, b"a.b", 2, b"body", None, 1.5, 0)
    assert block is not None
    changed = block.replace(before.encode(), after.encode())
    assert changed != block
    with pytest.raises(EnvelopeError, match=reason):
        request_of(subject, changed, payload)


@pytest.mark.parametrize("subject", [b"x" * (MAX_TOPIC + 1), b"a\0b"])
def test_a_request_needs_a_topic_of_zroute(subject: bytes) -> None:
    """NATS delivers longer subjects, and subjects with NUL."""
    *_, block = request_packer(5, lambda: 7, in_inbox)(ID, b"a.b", 2, b"body", None, 1.5, 0)
    for headers in (block, None):
        with pytest.raises(EnvelopeError, match="without NUL"):
            request_of(subject, headers, b"body")


def test_a_request_with_too_many_headers_is_refused() -> None:
    """A peer may send more headers than zroute passes on."""
    subject, payload, _, block = request_packer(1, lambda: 5, in_inbox)(bytes(16), b"a", 1, b"", None, 1.0, 0)
    assert block is not None
    headers = b"x: %b\r\n\r\n" % (b"y" * 2 * HEADERS_MAX)
    with pytest.raises(EnvelopeError, match="at most 4096"):
        request_of(subject, block[:-2] + headers, payload)


def test_failures_and_plain_replies_are_those_of_nats() -> None:
    """A failure becomes headers of services for every client, and a plain reply has no headers."""
    for id in (ID, b""):
        block, payload = pack_answer(id, Kind.FAILED, 409, b"sold\nout")
        assert block is not None
        assert fields_of(block) == {"Nats-Service-Error": "sold out", "Nats-Service-Error-Code": "409"}
        assert answer_of(parse_block(block), payload) == [b"", b"409", b"sold out"]
    assert pack_answer(b"", Kind.REPLY, 1, b"body") == (None, b"body")
    assert plain_packer(in_inbox)(ID, b"a.b", 2, b"body", None, 1.5, 0) == (b"a.b", b"body", b"inbox." + ID, None)
    assert answer_of(None, b"body") == [b"body"]


@given(st.binary(max_size=70), st.booleans())
def test_any_header_of_a_peer_is_read_or_refused(fields: bytes, is_hex: bool) -> None:
    """Bytes of a peer raise no error but EnvelopeError."""
    value = (b"c15a51" + fields.hex().encode()) if is_hex else fields.replace(b"\r", b"").replace(b"\n", b"")
    for name in (b"Zr-Request", b"Zr-Reply"):
        block = b"NATS/1.0\r\n" + name + b": " + value + b"\r\n\r\n"
        try:
            request_of(b"a", block, b"x")
            reply_of(block, b"x", value[12:])
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
        subject, id = vector["subject"].encode(), parse(frame).id
        seconds, window, tracked = parse_request(parse(frame))
        header = parse_header(tracked.partition(NUL)[2])
        pack = request_packer(header.epoch, lambda: header.sent_at, in_inbox)
        packed = pack(id, subject, header.codec, payload, header.headers, seconds, window)
        assert packed == (subject, payload, in_inbox(id), headers)
        assert request_of(subject, headers, payload) == (
            id,
            (tracked,),
            seconds,
            window,
            0 if header.headers else header.codec,
        )
        return
    message = parse(frame)
    reply = parse_reply(message)
    assert pack_answer(message.id, Kind(reply.kind), reply.number, reply.body) == (headers, payload)
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
