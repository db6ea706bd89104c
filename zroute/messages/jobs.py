"""The wire format of jobs: the messages between an owner of jobs and its workers.

An owner (ROUTER) keeps jobs, and workers (DEALER) do them. A worker sends an offer. For each of its handlers, the offer
contains the patterns of the jobs, and the number of unfinished jobs that the worker accepts. The owner sends up to that
number of jobs, and the worker reports the result of each job. Both sides send signs of life, because a frozen or
unreachable peer does not close its connection.

Each message begins with a part of one byte that identifies the kind:

==== ========================== =====================================================
kind from the worker            parts after the kind
==== ========================== =====================================================
W    an offer of work           offer
C    a changed offer            offer
D    a job is done              id
F    a job has failed           id, text
R    a job must not be retried  id, text
G    a job is given back        id
!    a sign of life             none
==== ========================== =====================================================

==== ========================== =====================================================
kind from the owner             parts after the kind
==== ========================== =====================================================
J    a job                      id, topic, body, meta
A    an offer was read          terms
?    the worker is unknown      none
S    the owner stops            none
!    a sign of life             none
==== ========================== =====================================================

This module only converts bytes. ``docs/reference/wire.md`` specifies the layout, with test vectors. For bytes that do
not follow the specification, all functions that parse raise `EnvelopeError` and no other error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Any

import attrs
import msgpack

from zroute.errors import EnvelopeError, PatternError
from zroute.messages.topics import MAX_TOPIC, SEPARATORS, Pattern, parse, startswith
from zroute.messages.wire import FIXED, HEADERS_LENGTH, NUL, Flags, pack_head, pack_headers
from zroute.options import CREDITS_MAX, HEADERS_MAX, JOB_TEXT, OFFER_MAX, OFFER_PATTERNS

__all__ = [
    "ACCEPTED",
    "ALIVE",
    "CHANGED",
    "DONE",
    "FAILED",
    "GIVEN_BACK",
    "ID_SIZE",
    "JOB",
    "OFFER",
    "REJECTED",
    "STOPPED",
    "UNKNOWN",
    "JobFrame",
    "Offered",
    "as_message",
    "headers_of_meta",
    "pack_job_meta",
    "pack_offer",
    "pack_terms",
    "pack_text",
    "parse_job",
    "parse_offer",
    "parse_report",
    "parse_terms",
    "with_attempt",
]

OFFER, CHANGED, DONE, FAILED, REJECTED, GIVEN_BACK = b"W", b"C", b"D", b"F", b"R", b"G"
JOB, ACCEPTED, UNKNOWN, STOPPED = b"J", b"A", b"?", b"S"
ALIVE = b"!"
"""A sign of life, from both sides."""

ID_SIZE = 16
"""The number of bytes in a job's id: 8 random bytes for this run of the owner, and 8 bytes for a number."""

VERSION = 1
_LENGTH = Struct(">I")  # the length of the headers
_META = Struct(">BBH")  # version, codec, attempt
_TERMS = Struct(">BI")  # version, milliseconds
_GROUP = Struct(">HB")  # credits, number of patterns
_PATTERN = Struct(">BB")  # separator, or 0 for a prefix; length
_PARTS = {DONE: 2, GIVEN_BACK: 2, FAILED: 3, REJECTED: 3}


@attrs.frozen
class Offered:
    """One entry of an offer: the jobs that one handler of a worker accepts.

    Attributes:
        credits: the number of unfinished jobs that the worker accepts for these patterns.
        patterns: the patterns of the jobs' topics, without the names of captures.
    """

    credits: int
    patterns: tuple[Pattern, ...]


@attrs.frozen(slots=True)
class JobFrame:
    """A job as it arrived at a worker.

    Attributes:
        id: the bytes that identify the job in the report of its result.
        topic: the topic.
        body: the encoded message.
        codec: the number of the body's codec; 0 if no codec is stated.
        attempt: the number of this attempt, from 1.
        headers: the application's headers as a valid msgpack map; empty without headers.
    """

    id: bytes
    topic: bytes
    body: bytes
    codec: int
    attempt: int
    headers: bytes


# -- encode ----------------------------------------------------------------------------------------------


def pack_offer(offered: Iterable[tuple[int, Iterable[Pattern]]]) -> bytes:
    """Return the second part of an offer.

    Args:
        offered: for each handler, the number of unfinished jobs that it accepts, and its patterns. A job belongs to the
            first handler with a matching pattern, so handlers with specific patterns come first.
    """
    packed = [bytes([VERSION])]
    for credits, patterns in offered:
        written = [_written(pattern) for pattern in patterns]
        packed.append(_GROUP.pack(min(credits, CREDITS_MAX), len(written)))
        packed += written
    return b"".join(packed)


def _written(pattern: Pattern) -> bytes:
    """Return a pattern in the form used in offers: captures become wildcards."""
    if pattern.prefix is not None:
        return _PATTERN.pack(0, len(pattern.prefix)) + pattern.prefix
    segments = [segment if isinstance(segment, bytes) else b"*" for segment in pattern.segments]
    text = pattern.separator.join([*segments, b">"] if pattern.tail else segments)
    return _PATTERN.pack(pattern.separator[0], len(text)) + text


def pack_terms(silent_after: float) -> bytes:
    """Return the second part of the answer to an offer.

    ``silent_after`` is a time in seconds. If a worker sends no sign of life for this time, the owner gives the worker's
    jobs to other workers.
    """
    return _TERMS.pack(VERSION, min(int(silent_after * 1000), 0xFFFFFFFF))


def pack_job_meta(codec: int, attempt: int, headers: Mapping[str, Any] | None = None) -> bytes:
    """Return the last part of a job.

    ``codec`` is the number of the body's codec. ``attempt`` counts from 1.

    Raises:
        EncodeError: The headers are invalid or too large.
    """
    packed = pack_headers(headers)[HEADERS_LENGTH:] if headers else b""
    return _META.pack(VERSION, codec, min(attempt, 0xFFFF)) + packed


def with_attempt(meta: bytes, attempt: int) -> bytes:
    """Return ``meta``, the last part of a job, with another attempt number."""
    version, codec, _ = _META.unpack_from(meta)
    return _META.pack(version, codec, min(attempt, 0xFFFF)) + meta[_META.size :]


def pack_text(text: str) -> bytes:
    """Return the text of a report as UTF-8, cut to `JOB_TEXT` bytes."""
    # "ignore" drops a character that the cut has divided.
    return text.encode("utf-8", "backslashreplace")[:JOB_TEXT].decode("utf-8", "ignore").encode()


def as_message(topic: bytes, codec: int, body: bytes, headers: bytes, sent_at: int) -> bytes:
    """Return a job as a tracked message, for code that reads messages.

    ``headers`` is a msgpack map, or empty. ``sent_at`` is the time in nanoseconds since the Unix epoch. The returned
    message has no number, and its publisher's epoch is 0.
    """
    head = pack_head(codec=codec, flags=int(Flags.HEADERS) if headers else 0, epoch=0)
    packed = _LENGTH.pack(len(headers)) + headers if headers else b""
    return topic + NUL + FIXED.pack(head, 0, sent_at) + packed + body


def headers_of_meta(meta: bytes) -> bytes:
    """Return the headers in the last part of a job, in the form for `as_message`."""
    return meta[_META.size :]


# -- decode ----------------------------------------------------------------------------------------------


def parse_offer(parts: Sequence[bytes]) -> tuple[Offered, ...]:
    """Parse an offer; an empty result means that the worker accepts no jobs.

    ``parts`` begins with `OFFER` or `CHANGED`. A number of credits above `CREDITS_MAX` is lowered to `CREDITS_MAX`.
    """
    if len(parts) != 2:
        raise EnvelopeError(f"an offer of {len(parts)} parts; expected 2")
    offer = parts[1]
    if len(offer) > OFFER_MAX:
        raise EnvelopeError(f"an offer of {len(offer)} bytes; expected at most {OFFER_MAX}")
    _check_version("an offer", offer)
    offered: list[Offered] = []
    at, many = 1, 0
    while at < len(offer):
        if at + _GROUP.size > len(offer):
            raise EnvelopeError("an offer that ends in the middle of an entry")
        credits, number = _GROUP.unpack_from(offer, at)
        many += number
        if not number or many > OFFER_PATTERNS:
            raise EnvelopeError(f"an offer with an entry without patterns, or with more than {OFFER_PATTERNS} patterns")
        patterns, at = _read_patterns(offer, at + _GROUP.size, number)
        offered.append(Offered(min(credits, CREDITS_MAX), patterns))
    return tuple(offered)


def _read_patterns(offer: bytes, at: int, number: int) -> tuple[tuple[Pattern, ...], int]:
    """Return ``number`` patterns, and the offset of the byte after them."""
    patterns = []
    for _ in range(number):
        if at + _PATTERN.size > len(offer):
            raise EnvelopeError("an offer that ends in the middle of a pattern")
        separator, length = _PATTERN.unpack_from(offer, at)
        begin, at = at + _PATTERN.size, at + _PATTERN.size + length
        if at > len(offer):
            raise EnvelopeError("an offer that ends in the middle of a pattern")
        patterns.append(_read_pattern(separator, offer[begin:at]))
    return tuple(patterns), at


def _read_pattern(separator: int, text: bytes) -> Pattern:
    try:
        if not separator:
            return startswith(text)
        between = chr(separator)
        if between not in SEPARATORS:
            raise EnvelopeError("an offer with an unknown separator")
        pattern = parse(text.decode(), between)
    except (PatternError, UnicodeDecodeError) as error:
        raise EnvelopeError("an offer with an invalid pattern") from error
    if pattern.captures:
        raise EnvelopeError("an offer with an invalid pattern")
    return pattern


def parse_report(parts: Sequence[bytes]) -> tuple[bytes, str]:
    """Return the id and the text of a report.

    The kind of the report is `DONE`, `FAILED`, `REJECTED` or `GIVEN_BACK`. The text is cut to `JOB_TEXT` bytes, and may
    contain any characters.
    """
    expected = _PARTS.get(parts[0] if parts else b"")
    if expected is None:
        raise EnvelopeError("a message of an unknown kind")
    if len(parts) != expected:
        raise EnvelopeError(f"a report of {len(parts)} parts; expected {expected}")
    if len(parts[1]) != ID_SIZE:
        raise EnvelopeError(f"a report with an id of {len(parts[1])} bytes; expected {ID_SIZE}")
    return parts[1], parts[2][:JOB_TEXT].decode("utf-8", "replace") if expected > 2 else ""


def parse_terms(parts: Sequence[bytes]) -> float:
    """Return the seconds in the answer to an offer; see `pack_terms`."""
    if len(parts) != 2 or len(parts[1]) < _TERMS.size:
        raise EnvelopeError("an answer to an offer without terms")
    _check_version("an answer to an offer", parts[1])
    milliseconds: int = _TERMS.unpack_from(parts[1])[1]
    return milliseconds / 1000


def parse_job(parts: Sequence[bytes]) -> JobFrame:
    """Parse a message that begins with `JOB`."""
    if len(parts) != 5:
        raise EnvelopeError(f"a job of {len(parts)} parts; expected 5")
    _, id, topic, body, meta = parts
    if len(id) != ID_SIZE:
        raise EnvelopeError(f"a job with an id of {len(id)} bytes; expected {ID_SIZE}")
    if len(topic) > MAX_TOPIC or NUL in topic:
        raise EnvelopeError(f"a job with an invalid topic; expected at most {MAX_TOPIC} bytes without NUL")
    if len(meta) < _META.size:
        raise EnvelopeError(f"a job with {len(meta)} bytes of meta; expected at least {_META.size}")
    _check_version("a job", meta)
    _, codec, attempt = _META.unpack_from(meta)
    packed = headers_of_meta(meta)
    if packed:
        _check_headers(packed)
    return JobFrame(id, topic, body, codec, attempt, packed)


def _check_headers(packed: bytes) -> None:
    if len(packed) > HEADERS_MAX:
        raise EnvelopeError(f"a job with {len(packed)} bytes of headers; expected at most {HEADERS_MAX}")
    try:
        headers = msgpack.unpackb(packed)
    except Exception as error:  # msgpack raises many kinds of errors, and each means a malformed message
        raise EnvelopeError("a job whose headers are not a msgpack map") from error
    if not isinstance(headers, dict) or not all(isinstance(key, str) for key in headers):
        raise EnvelopeError("a job whose headers are not a msgpack map with text keys")


def _check_version(what: str, packed: bytes) -> None:
    if not packed or packed[0] != VERSION:
        raise EnvelopeError(
            f"{what} {f'of version {packed[0]}' if packed else 'without a version'}; expected version {VERSION}"
        )
