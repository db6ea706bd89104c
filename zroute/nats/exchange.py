"""Convert between zroute's frames of requests and jobs and NATS messages.

A request between zroute apps is a message with a clean body. The fields that another program does not need travel in
one NATS header beside it, as ``Zr`` does for published messages (`zroute.nats.headers`)::

    SUBJECT: the topic                          REPLY: _INBOX.RANDOM.ID
    Zr-Request: c15a51… CR LF                   prefix, limits and tracked header, as 120 hexadecimal digits
    traceparent: 00-… CR LF                     the application's headers, one line each

    SUBJECT: the reply subject of the request   REPLY, of an item: where the client sends credits
    Zr-Reply: c15a51… CR LF                     the prefix of the reply, as 44 hexadecimal digits

    SUBJECT: the topic of a job                 REPLY: _INBOX.RANDOM.ID
    Zr-Job: 0000ab… CR LF                       the id, version, codec and attempt, as 40 hexadecimal digits

- A request without ``Zr-Request`` is from another program, or from an app with ``wire="plain"``. Its answer has no
  ``Zr-Reply``.
- An answer without ``Zr-Reply`` is the single reply of another program.
- A failure has the headers of NATS services, ``Nats-Service-Error`` and ``Nats-Service-Error-Code``, for every client.
- Cancellations and credits have no topic. Their payload is the frame, and their reply subject is that of the request.

- A message without one of zroute's headers is also a job, from another program. Its result goes to its reply subject.

Each of these headers is the first of its message. `is_for_handlers` therefore finds them in one comparison.
Subscribers and the handlers of requests and jobs share the subjects, and must not receive each other's messages.

This module does no I/O. Peers choose the bytes of a message, so functions that parse raise only EnvelopeError.
"""

from __future__ import annotations

from binascii import hexlify, unhexlify
from collections.abc import Mapping, Sequence
from typing import Any, Final

from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.jobs import ID_SIZE, JOB, as_message, headers_of_meta, pack_job_meta
from zroute.messages.requests import MAGIC, Kind, parse
from zroute.messages.wire import HEADER_SIZE, NUL, parse_header
from zroute.nats.headers import Block, message_of, pack_service_error, parse_block, tracked_of

__all__ = [
    "answer_of",
    "is_for_handlers",
    "is_job",
    "is_published",
    "job_of",
    "pack_answer",
    "pack_job",
    "pack_request",
    "request_of",
]

_FIRST: Final = b"NATS/1.0\r\nZr-"
_REQUEST: Final = b"Zr-Request: "
_REPLY: Final = b"Zr-Reply: "
_JOB: Final = b"Zr-Job: "
_PREFIX: Final = 22  # magic number, version, kind, codec, id
_LIMITS: Final = 6  # milliseconds, window
_HEAD: Final = _PREFIX + _LIMITS
_VERSION: Final = b"NATS/1.0\r\n"
_META: Final = 4  # version, codec, attempt
_JOB_FIELDS: Final = ID_SIZE + _META


def is_for_handlers(block: bytes | None) -> bool:
    """Return True for the headers of a request, a reply or a job of zroute."""
    return block is not None and block.startswith(_FIRST)


def is_job(block: bytes | None) -> bool:
    """Return True for the headers of a job of a zroute app."""
    return block is not None and block.startswith(_VERSION + _JOB)


def is_published(block: bytes | None) -> bool:
    """Return True for the headers of a published message of the tracked wire."""
    return block is not None and block.startswith(_VERSION + b"Zr: ")


def pack_job(id: bytes, meta: bytes) -> bytes:
    """Return the headers of a job.

    ``meta`` is the result of `zroute.messages.jobs.pack_job_meta`.

    Raises:
        EncodeError: A header of the application can't be sent over NATS.
    """
    packed, lines = headers_of_meta(meta), b"\r\n\r\n"
    if packed:
        # The lines of a published message with the same headers, without its tracked header.
        _, block, _ = message_of(as_message(b"", 0, b"", packed, 0))
        lines = block[len(_VERSION) + len(b"Zr: ") + 2 * HEADER_SIZE :]
    return b"".join((_VERSION, _JOB, hexlify(id + meta[:_META]), lines))


def job_of(subject: bytes, block: bytes | None, payload: bytes, id: bytes) -> tuple[bytes, ...]:
    """Return the parts of a received job, for `zroute.transport.JobWorker`.

    ``id`` is the id for a job of another program, which has none.

    Raises:
        EnvelopeError: The headers are malformed, or too large.
    """
    meta, headers = pack_job_meta(0, 1), {}
    if block:
        headers = dict(parse_block(block).headers)
        packed = headers.pop("Zr-Job", None)
        if packed is not None:
            fields = _unhexed("Zr-Job", packed)
            if len(fields) != _JOB_FIELDS:
                raise EnvelopeError(f"a Zr-Job header of {len(fields)} bytes; expected {_JOB_FIELDS}")
            id, meta = fields[:ID_SIZE], fields[ID_SIZE:]
    if headers:
        try:
            meta += headers_of_meta(pack_job_meta(0, 1, headers))
        except EncodeError as error:
            raise EnvelopeError(str(error)) from None
    return JOB, id, subject, payload, meta


def pack_request(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the subject, the headers and the payload of a request.

    ``frame`` is the result of `zroute.messages.requests.request_packer`.

    Raises:
        EncodeError: A header of the application can't be sent over NATS.
    """
    subject, block, payload = message_of(frame[_HEAD:])
    # The first line of the block is the tracked header of a message; here, it follows the fields of the request.
    tracked = block[len(_VERSION) + len(b"Zr: ") :]
    return subject, b"".join((_VERSION, _REQUEST, hexlify(frame[:_HEAD]), tracked)), payload


def request_of(subject: bytes, block: bytes | None, payload: bytes) -> tuple[bytes, ...]:
    """Return the parts of a received request, for `zroute.requests.asked.Listener`.

    These are one frame from a zroute app, and a topic and a body from another program. The body of another program with
    headers begins with a tracked header that contains them.

    Raises:
        EnvelopeError: The headers are malformed, or too large.
    """
    if not block:
        return subject, payload
    parsed = parse_block(block)
    packed = parsed.headers.get("Zr-Request")
    if packed is None:
        return subject, _body(parsed, payload)
    fields = _unhexed("Zr-Request", packed)
    if len(fields) != _HEAD + HEADER_SIZE or parse(fields).kind != Kind.REQUEST:
        raise EnvelopeError(f"a Zr-Request header that is not {_HEAD + HEADER_SIZE} bytes of a request")
    parse_header(fields[_HEAD:])
    others = {name: value for name, value in parsed.headers.items() if name != "Zr-Request"}
    return (fields[:_HEAD] + subject + NUL + _tracked(fields[_HEAD:], others) + payload,)


def _body(parsed: Block, payload: bytes) -> bytes:
    return _tracked(None, parsed.headers) + payload if parsed.headers else payload


def _tracked(fixed: bytes | None, headers: Mapping[str, Any]) -> bytes:
    """Return the tracked header of a message of a peer.

    Raises EnvelopeError if its headers are too large.
    """
    try:
        return tracked_of(fixed, headers)
    except EncodeError as error:
        raise EnvelopeError(str(error)) from None


def pack_answer(parts: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the headers and the payload of an answer.

    ``parts`` are those after the envelope. The headers are empty for the reply to another program.
    """
    if len(parts) == 3:
        return pack_service_error(int(parts[1]), parts[2].decode()), b""
    frame = parts[0]
    if not frame.startswith(MAGIC):
        return b"", frame
    message = parse(frame)
    if message.kind == Kind.FAILED:
        return pack_service_error(int.from_bytes(message.rest[:2]), message.rest[2:].decode()), b""
    return b"".join((_VERSION, _REPLY, hexlify(frame[:_PREFIX]), b"\r\n\r\n")), message.rest


def answer_of(block: Block | None, payload: bytes) -> list[bytes]:
    """Return the parts of a received answer, for `zroute.requests.lanes.Lane`.

    Raises:
        EnvelopeError: The header of the answer is malformed.
    """
    if block is None:
        return [payload]
    failure = block.service_error
    if failure is not None:
        return [b"", b"%03d" % failure[0], failure[1].encode("utf-8", "replace")]
    packed = block.headers.get("Zr-Reply")
    if packed is None:
        return [payload]
    fields = _unhexed("Zr-Reply", packed)
    if len(fields) != _PREFIX:
        raise EnvelopeError(f"a Zr-Reply header of {len(fields)} bytes; expected {_PREFIX}")
    parse(fields)
    return [fields + payload]


def _unhexed(name: str, value: object) -> bytes:
    try:
        return unhexlify(value)  # type: ignore[arg-type]  # a repeated header is a list
    except (ValueError, TypeError):
        raise EnvelopeError(f"a {name} header that is not hexadecimal") from None
