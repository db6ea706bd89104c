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
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final, TypeAlias

from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.jobs import ID_SIZE, JOB, as_message, headers_of_meta, pack_job_meta
from zroute.messages.requests import (
    MAGIC,
    Kind,
    Reply,
    check_topic,
    milliseconds,
    pack_reply,
    parse,
    seconds_left,
)
from zroute.messages.wire import HEADER_SIZE, NUL, pack_head, parse_header
from zroute.nats.headers import Block, message_of, pack_lines, pack_service_error, parse_block, tracked_of
from zroute.options import MAX_TOPIC

__all__ = [
    "answer_of",
    "is_for_handlers",
    "is_job",
    "is_published",
    "job_of",
    "pack_answer",
    "pack_job",
    "plain_packer",
    "reply_of",
    "request_of",
    "request_packer",
]

_FIRST: Final = b"NATS/1.0\r\nZr-"
_REQUEST: Final = b"Zr-Request: "
_REPLY: Final = b"Zr-Reply: "
_JOB: Final = b"Zr-Job: "
_VERSION: Final = b"NATS/1.0\r\n"
_END: Final = b"\r\n\r\n"
_JOB_KNOWN: Final = _VERSION + _JOB
_PUBLISHED_KNOWN: Final = _VERSION + b"Zr: "
_PREFIX: Final = 22  # magic number, version, kind, codec, id
_FIELDS: Final = Struct(">6s16sIH16sQq")  # magic number to codec, id, milliseconds, window, and a tracked header
_HEAD: Final = _FIELDS.size - HEADER_SIZE
_SIMPLE: Final = pack_head(codec=0, epoch=0)[:5]  # the magic number, version and kind of a tracked header
_CODEC_AT: Final = 5  # in a tracked header
_FLAGS_AT: Final = _HEAD + 6
_REQUEST_START: Final = MAGIC + bytes((1, Kind.REQUEST, 0))
_REQUEST_BEFORE: Final = _VERSION + _REQUEST
_REQUEST_KNOWN: Final = _REQUEST_BEFORE + hexlify(_REQUEST_START)
_REQUEST_FROM: Final = len(_REQUEST_BEFORE)
_REQUEST_TO: Final = _REQUEST_FROM + 2 * _FIELDS.size
_REQUEST_ALONE: Final = _REQUEST_TO + len(_END)  # the length without other headers
_REPLY_BEFORE: Final = _VERSION + _REPLY
_REPLY_KNOWN: Final = _REPLY_BEFORE + hexlify(MAGIC + b"\1")
_REPLY_KIND: Final = len(_REPLY_KNOWN)
_REPLY_ID: Final = _REPLY_KIND + 4  # after the kind and the codec
_FAILED: Final = Kind.FAILED  # looked up once; see `zroute.requests.asked`
_REPLIES: Final = (Kind.REPLY, Kind.ITEM, Kind.END)
_META: Final = 4  # version, codec, attempt
_JOB_FIELDS: Final = ID_SIZE + _META


def is_for_handlers(block: bytes | None) -> bool:
    """Return True for the headers of a request, a reply or a job of zroute."""
    return block is not None and block.startswith(_FIRST)


def is_job(block: bytes | None) -> bool:
    """Return True for the headers of a job of a zroute app."""
    return block is not None and block.startswith(_JOB_KNOWN)


def is_published(block: bytes | None) -> bool:
    """Return True for the headers of a published message of the tracked wire."""
    return block is not None and block.startswith(_PUBLISHED_KNOWN)


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


PackRequest = Callable[..., tuple[bytes, bytes, bytes, "bytes | None"]]
"""Packs a request, with the arguments of `zroute.messages.requests.request_packer`.

Returns the arguments of `zroute.nats.client.Client.publish`: the subject, the payload, the reply subject and the block
of headers.
"""


def request_packer(epoch: int, clock_ns: Callable[[], int], reply_subject: Callable[[bytes], bytes]) -> PackRequest:
    """Return a function that packs requests.

    `zroute.messages.requests.request_packer` describes its arguments. ``reply_subject`` returns the reply subject for
    an id. The function raises EncodeError if a header of the application can't be sent over NATS.
    """
    pack, heads = _FIELDS.pack, [pack_head(codec=codec, epoch=epoch) for codec in range(256)]

    def pack_request(
        id: bytes,
        topic: bytes,
        number: int,
        body: bytes,
        headers: Mapping[str, Any] | None,
        seconds: float | None,
        window: int,
    ) -> tuple[bytes, bytes, bytes, bytes]:
        fields = pack(_REQUEST_START, id, milliseconds(seconds), window, heads[number], 0, clock_ns())
        block = _REQUEST_BEFORE + hexlify(fields) + (_END if not headers else pack_lines(headers))
        return topic, body, reply_subject(id), block

    return pack_request


def plain_packer(reply_subject: Callable[[bytes], bytes]) -> PackRequest:
    """Return a function that packs requests to programs without zroute.

    See `request_packer`. The function ignores the codec, the headers and the limits.
    """

    def pack_request(
        id: bytes, topic: bytes, _number: int, body: bytes, *_: object
    ) -> tuple[bytes, bytes, bytes, None]:
        return topic, body, reply_subject(id), None

    return pack_request


Request: TypeAlias = tuple[bytes, tuple[bytes, ...], "float | None", int, int]
"""A received request: the id, the frames, the seconds left, the window, and the codec.

The id is empty, and the codec 0, for a request of another program. The codec of a zroute app is also 0 if the request
has headers of the application, which the frames contain.
"""


def request_of(subject: bytes, block: bytes | None, payload: bytes) -> Request:
    """Return a received request.

    The frames of a request from a zroute app are one frame of the tracked wire. The frames from another program, which
    has no id, are a topic and a body. If that program has sent headers, its body begins with a tracked header that
    contains them.

    Raises:
        EnvelopeError: The topic or the headers are malformed, or too large.
    """
    if len(subject) > MAX_TOPIC or NUL in subject:
        check_topic(subject)
    if not block:
        return b"", (subject, payload), None, 0, 0
    # The hot path: a request of zroute without headers of the application.
    if len(block) == _REQUEST_ALONE and block.startswith(_REQUEST_KNOWN) and block.endswith(_END):
        others = None
        try:
            fields = unhexlify(block[_REQUEST_FROM:_REQUEST_TO])
        except ValueError:
            fields = _unhexed("Zr-Request", block[_REQUEST_FROM:_REQUEST_TO])
    else:
        headers = dict(parse_block(block).headers)
        packed = headers.pop("Zr-Request", None)
        if packed is None:
            return b"", (subject, _tracked(None, headers) + payload if headers else payload), None, 0, 0
        fields, others = _unhexed("Zr-Request", packed), headers
        if len(fields) != _FIELDS.size or parse(fields).kind != Kind.REQUEST:
            raise EnvelopeError(f"a Zr-Request header that is not {_FIELDS.size} bytes of a request")
    # `parse_header` would accept these headers too, but takes longer.
    if not fields.startswith(_SIMPLE, _HEAD) or fields[_FLAGS_AT]:
        parse_header(fields[_HEAD:])
    _, id, ms, window, head, _, _ = _FIELDS.unpack(fields)
    if others:
        return id, (subject + NUL + _tracked(fields[_HEAD:], others) + payload,), seconds_left(ms), window, 0
    return id, (subject + NUL + fields[_HEAD:] + payload,), seconds_left(ms), window, head[_CODEC_AT]


def _tracked(fixed: bytes | None, headers: Mapping[str, Any]) -> bytes:
    """Return the tracked header of a message of a peer.

    Raises EnvelopeError if its headers are too large.
    """
    try:
        return tracked_of(fixed, headers)
    except EncodeError as error:
        raise EnvelopeError(str(error)) from None


def pack_answer(id: bytes, kind: Kind, number: int, body: bytes) -> tuple[bytes | None, bytes]:
    """Return the headers and the payload of an answer.

    The headers are None for the reply to another program. ``id`` is that of the request;
    `zroute.requests.asked.Send` describes the other arguments.
    """
    if kind is _FAILED:
        return pack_service_error(number, body.decode()), b""
    if not id:
        return None, body
    return _REPLY_BEFORE + hexlify(pack_reply(id, kind, number, b"")) + _END, body


def reply_of(block: bytes | None, payload: bytes, id: bytes) -> Reply | None:
    """Return an answer of a zroute app, or None.

    The result is None for failures, and for all other answers that `answer_of` must read. ``id`` is the id of the
    request as hexadecimal digits.
    """
    if block is None or not block.startswith(_REPLY_KNOWN) or block[_REPLY_ID:] != id + _END:
        return None
    try:
        kind, codec = unhexlify(block[_REPLY_KIND:_REPLY_ID])
    except ValueError:
        return None
    return Reply(kind, payload, codec) if kind in _REPLIES else None


def answer_of(block: Block | None, payload: bytes) -> list[bytes]:
    """Return the parts of a received answer, for `zroute.requests.lanes.Lane`.

    `reply_of` reads the usual answers in less time.

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
