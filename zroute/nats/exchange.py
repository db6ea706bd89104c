"""Convert between zroute's frames of requests and NATS messages.

A request between zroute apps is a message with a clean body. The fields that another program does not need travel in
one NATS header beside it, as ``Zr`` does for published messages (`zroute.nats.headers`)::

    SUBJECT: the topic                          REPLY: _INBOX.RANDOM.ID
    Zr-Request: c15a51… CR LF                   prefix, limits and tracked header, as 120 hexadecimal digits
    traceparent: 00-… CR LF                     the application's headers, one line each

    SUBJECT: the reply subject of the request   REPLY, of an item: where the client sends credits
    Zr-Reply: c15a51… CR LF                     the prefix of the reply, as 44 hexadecimal digits

- A request without ``Zr-Request`` is from another program, or from an app with ``wire="plain"``. Its answer has no
  ``Zr-Reply``.
- An answer without ``Zr-Reply`` is the single reply of another program.
- A failure has the headers of NATS services, ``Nats-Service-Error`` and ``Nats-Service-Error-Code``, for every client.
- Cancellations and credits have no topic. Their payload is the frame, and their reply subject is that of the request.

Both headers are the first of their message. `is_for_handlers` therefore finds them in one comparison; subscribers and
the handlers of requests and jobs share the subjects, and must not receive each other's messages.

This module does no I/O. Peers choose the bytes of a message, so functions that parse raise only EnvelopeError.
"""

from __future__ import annotations

from binascii import hexlify, unhexlify
from collections.abc import Sequence
from typing import Final

from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.requests import MAGIC, Kind, parse
from zroute.messages.wire import HEADER_SIZE, NUL, parse_header
from zroute.nats.headers import Block, message_of, pack_service_error, parse_block, tracked_of

__all__ = [
    "answer_of",
    "is_for_handlers",
    "pack_answer",
    "pack_request",
    "request_of",
]

_FIRST: Final = b"NATS/1.0\r\nZr-"
_REQUEST: Final = b"Zr-Request: "
_REPLY: Final = b"Zr-Reply: "
_PREFIX: Final = 22  # magic number, version, kind, codec, id
_LIMITS: Final = 6  # milliseconds, window
_HEAD: Final = _PREFIX + _LIMITS
_VERSION: Final = b"NATS/1.0\r\n"


def is_for_handlers(block: bytes | None) -> bool:
    """Return True for the headers of a request, a reply or a job of zroute."""
    return block is not None and block.startswith(_FIRST)


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
        EnvelopeError: The headers are malformed.
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
    return (fields[:_HEAD] + subject + NUL + tracked_of(fields[_HEAD:], others) + payload,)


def _body(parsed: Block, payload: bytes) -> bytes:
    if not parsed.headers:
        return payload
    try:
        return tracked_of(None, parsed.headers) + payload
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
