"""The wire of jobs: test vectors, round trips, and hostile input."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages.test_wire import named, raw_frames
from tests.support import wire_vectors
from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.jobs import (
    ACCEPTED,
    CHANGED,
    DONE,
    FAILED,
    GIVEN_BACK,
    JOB,
    OFFER,
    REJECTED,
    JobFrame,
    Offered,
    as_message,
    pack_job_meta,
    pack_offer,
    pack_terms,
    pack_text,
    parse_job,
    parse_offer,
    parse_report,
    parse_terms,
)
from zroute.messages.topics import matches, parse, startswith
from zroute.messages.wire import parse as parse_frames
from zroute.options import CREDITS_MAX, JOB_TEXT, OFFER_MAX

VECTORS = wire_vectors()
PARSERS: dict[bytes, Callable[[tuple[bytes, ...]], Any]] = {
    OFFER: parse_offer,
    CHANGED: parse_offer,
    ACCEPTED: parse_terms,
    JOB: parse_job,
    **dict.fromkeys((DONE, FAILED, REJECTED, GIVEN_BACK), parse_report),
}


def packed(vector: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the message that zroute sends for the content of a vector."""
    kind = vector["kind"].encode()
    if kind in (OFFER, CHANGED):
        offered = [
            (
                each["credits"],
                [
                    parse(text, each["separator"]) if each["separator"] else startswith(text)
                    for text in each["patterns"]
                ],
            )
            for each in vector["offered"]
        ]
        return kind, pack_offer(offered)
    if kind == ACCEPTED:
        return kind, pack_terms(vector["silent_after"])
    if kind == JOB:
        id, topic, body = (bytes.fromhex(vector[name]) for name in ("id", "topic", "body"))
        return kind, id, topic, body, pack_job_meta(vector["codec"], vector["attempt"], vector["headers"])
    text = (pack_text(vector["text"]),) if "text" in vector else ()
    return (kind, bytes.fromhex(vector["id"]), *text) if "id" in vector else (kind,)


@pytest.mark.parametrize("vector", named(VECTORS["jobs"]))
def test_each_vector_is_sent_as_it_says(vector: dict[str, Any]) -> None:
    """zroute sends each message of jobs byte for byte as documented."""
    assert packed(vector) == raw_frames(vector)


@pytest.mark.parametrize("vector", named([each for each in VECTORS["jobs"] if each["kind"].encode() in PARSERS]))
def test_each_vector_is_read_as_it_says(vector: dict[str, Any]) -> None:
    """zroute reads each message of jobs as documented."""
    frames = raw_frames(vector)
    read = PARSERS[frames[0]](frames)
    if isinstance(read, JobFrame):
        expected: Any = tuple(bytes.fromhex(vector[name]) for name in ("id", "topic", "body"))
        assert (read.id, read.topic, read.body) == expected
        headers = msgpack.unpackb(read.headers) if read.headers else {}
        assert (read.codec, read.attempt, headers) == (vector["codec"], vector["attempt"], vector["headers"])
    elif frames[0] in (OFFER, CHANGED):
        assert [(each.credits, [pattern.text for pattern in each.patterns]) for each in read] == [
            (each["credits"], each["patterns_read"]) for each in vector["offered"]
        ]
    elif frames[0] == ACCEPTED:
        assert read == vector["silent_after"]
    else:
        assert read == (bytes.fromhex(vector["id"]), vector.get("text", ""))


@pytest.mark.parametrize("vector", named(VECTORS["malformed_jobs"]))
def test_each_malformed_vector_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    """Each malformed message of jobs is refused with the documented reason."""
    frames = raw_frames(vector)
    with pytest.raises(EnvelopeError) as caught:
        PARSERS[frames[0]](frames)
    assert caught.value.reason == vector["reason"]


@pytest.mark.parametrize("text", ["jobs", "jobs.*", "*.jobs.>", ">", "jobs.{kind}", "jobs.{rest+}"])
def test_a_pattern_matches_the_same_topics_at_the_owner(text: str) -> None:
    """An offer keeps the topics of a pattern, but not the names of its captures."""
    (read,) = parse_offer((OFFER, pack_offer([(1, [parse(text)])])))
    for topic in (b"jobs", b"jobs.a", b"jobs.a.b", b"a.jobs.b", b"other", b"", b"a..b"):
        assert (matches(read.patterns[0], topic) is None) == (matches(text, topic) is None)
    assert read.patterns[0].captures == ()


def test_an_offer_keeps_prefixes_and_other_separators() -> None:
    """A prefix may be any bytes, and segments may be separated by another character."""
    patterns = [startswith(b"\xff\xfe"), startswith(""), parse("/jobs/{kind}", "/")]
    (read,) = parse_offer((OFFER, pack_offer([(7, patterns)])))
    assert [pattern.prefix for pattern in read.patterns] == [b"\xff\xfe", b"", None]
    assert matches(read.patterns[2], b"/jobs/a") == {}


def test_credits_are_bounded() -> None:
    """Neither side can state more credits than the limit."""
    assert parse_offer((OFFER, pack_offer([(10**9, [parse("a")])]))) == (Offered(CREDITS_MAX, (parse("a"),)),)
    foreign = b"\x01" + struct.pack(">HBBB", 0xFFFF, 1, ord("."), 1) + b"a"
    assert parse_offer((OFFER, foreign)) == (Offered(CREDITS_MAX, (parse("a"),)),)


def test_a_text_is_cut_between_characters() -> None:
    """A long text is cut to the limit, and remains UTF-8; a lone surrogate is escaped."""
    assert pack_text("ü" * JOB_TEXT).decode() == "ü" * (JOB_TEXT // 2)
    assert pack_text("\udc80") == b"\\udc80"
    assert parse_report((FAILED, b"i" * 16, b"\xff" * 5000)) == (b"i" * 16, "\ufffd" * JOB_TEXT)


def test_headers_that_cannot_be_packed_are_refused_at_the_owner() -> None:
    """Invalid headers are an error of the caller, before anything is sent."""
    with pytest.raises(EncodeError, match="can't be packed"):
        pack_job_meta(1, 1, {"a": object()})


FRAMES = st.lists(st.binary(max_size=300), max_size=6)


@given(st.sampled_from(sorted(PARSERS)), FRAMES)
def test_any_bytes_are_read_or_refused(kind: bytes, parts: list[bytes]) -> None:
    """A parser raises EnvelopeError, and nothing else, for any bytes."""
    with suppress(EnvelopeError):
        PARSERS[kind]((kind, *parts))


@given(st.binary(max_size=600), st.integers(0, 80), st.integers(0, 255))
def test_a_changed_offer_is_read_or_refused(tail: bytes, at: int, byte: int) -> None:
    """A valid offer with a changed byte and any bytes behind it is read or refused, and bounded."""
    offer = bytearray(pack_offer([(3, [parse("jobs.*.a.>"), startswith("logs")]), (1, [parse("x/{y}", "/")])]) + tail)
    offer[at % len(offer)] = byte
    with suppress(EnvelopeError):
        read = parse_offer((OFFER, bytes(offer)))
        assert all(0 <= each.credits <= CREDITS_MAX and each.patterns for each in read)


def test_a_job_as_a_message_has_its_codec_and_headers() -> None:
    """The code that reads messages reads jobs too; headers are not packed again, which could make them larger."""
    headers = b"\x81\xa1a\xca\x3f\x00\x00\x00"  # a float of 32 bits
    job = parse_job((JOB, b"i" * 16, b"jobs.a", b"{}", pack_job_meta(2, 3) + headers))
    envelope = parse_frames((as_message(job.topic, job.codec, job.body, job.headers, 5),), 0.0)
    assert (envelope.topic, envelope.body, envelope.codec, envelope.headers) == ("jobs.a", b"{}", 2, {"a": 0.5})
    assert (envelope.sequence, envelope.publisher, envelope.sent_at) == (0, "0" * 16, 5e-9)


def test_a_giant_offer_is_refused_unread() -> None:
    """An offer over the limit is refused before it is parsed."""
    with pytest.raises(EnvelopeError, match="an offer of 8193 bytes; expected at most 8192"):
        parse_offer((OFFER, b"\x01" + bytes(OFFER_MAX)))
