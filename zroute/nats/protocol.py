"""The NATS protocol: a parser of what a server sends, and a client's lines.

The parser is "sans I/O": bytes go in, messages and other operations come out. It replaces the parser of nats-py, which
takes more than half of the time of a received message (``docs/explanation/dependencies.md``). The protocol is specified
at docs.nats.io, "Client Protocol".

**The fast path.** Most operations are MSG. One regular expression recognises a whole MSG line, and the payload is one
slice. The parser looks up the subscriber by the bytes of the subscription's id, and calls it at once. All other
operations are returned as a list, in their order, because nats-py must await some of them.

**Partial input.** The server's bytes arrive in pieces of any size. An incomplete operation is collected, and parsed
once, when it is complete: parsing it again after each piece would take quadratic time for a large payload.

**Bounds.** The parser never stores more than one incomplete operation: a line of up to `LINE_MAX` bytes (`INFO_MAX` for
INFO), and a payload of up to ``max_message`` bytes. A larger payload is skipped as it arrives, and reported. The
connection remains usable, because other clients may send such messages, and each would otherwise end it.

**Faults.** Everything that is not the protocol raises `ProtocolError`; the parser then refuses further input. It never
searches for the next line that makes sense: the bytes of a payload can look like an operation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs

__all__ = [
    "INFO_MAX",
    "LINE_MAX",
    "PING",
    "PONG",
    "Failure",
    "Info",
    "Message",
    "Operation",
    "Oversized",
    "Parser",
    "Ping",
    "Pong",
    "ProtocolError",
    "Take",
    "publish_frame",
    "subscribe_line",
    "unsubscribe_line",
]

LINE_MAX: Final = 1 << 16
"""The maximum length of a line in bytes, except INFO. A server sends lines of up to 4 KiB unless configured."""

INFO_MAX: Final = 1 << 20
"""The maximum length of an INFO line in bytes. It lists all servers of the cluster."""

PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"

_END: Final = b"\r\n"

# A size has at most 10 digits: Python refuses to convert thousands of digits, and no server sends 10 GB.
_MSG = re.compile(rb"MSG ([^ \t\r\n]+) ([^ \t\r\n]+) (?:([^ \t\r\n]+) )?(\d{1,10})\r\n").match
_HMSG = re.compile(rb"HMSG ([^ \t\r\n]+) ([^ \t\r\n]+) (?:([^ \t\r\n]+) )?(\d{1,10}) (\d{1,10})\r\n").match
_SIZE = re.compile(rb"\d{1,10}").fullmatch

Take: TypeAlias = Callable[[bytes, bytes | None, bytes | None, bytes], object]
"""A subscriber: ``take(subject, reply, headers, payload)``.

``reply`` is the subject for answers, or None. ``headers`` is the block of headers with its first line and its empty
last line, or None.
"""


class ProtocolError(Exception):
    """Bytes that are not the protocol of NATS; the connection can't be used any more."""


@attrs.frozen
class Message:
    """A message of a subscription that the parser does not know."""

    sid: bytes
    subject: bytes
    reply: bytes | None
    headers: bytes | None
    payload: bytes


@attrs.frozen
class Oversized:
    """A message of more than ``max_message`` bytes, which was skipped.

    ``size`` includes its headers.
    """

    sid: bytes
    subject: bytes
    size: int
    has_headers: bool


@attrs.frozen
class Ping:
    """The server expects PONG."""


@attrs.frozen
class Pong:
    """The answer to the oldest unanswered PING.

    It follows everything that the server sent before.
    """


@attrs.frozen
class Info:
    """News of the server, for example the other servers of its cluster."""

    fields: dict[str, Any]


@attrs.frozen
class Failure:
    """A refusal (``-ERR``), after which the server often disconnects.

    ``text`` has the server's quotes.
    """

    text: str


Operation: TypeAlias = Message | Oversized | Ping | Pong | Info | Failure

_PING, _PONG = Ping(), Pong()


class Parser:
    """Parses what a NATS server sends.

    Attributes:
        takes: The subscribers by the id of their subscription. They are called inside `feed`, and must not raise
            errors. The owner of the parser may change the dict at any time, also inside `feed`.
        max_message: The maximum size of a message in bytes, with its headers.
    """

    def __init__(self, max_message: int) -> None:
        self.takes: dict[bytes, Take] = {}
        self.max_message = max_message
        self.reset()

    def reset(self) -> None:
        """Forget incomplete input, for a new connection."""
        self._rest = bytearray()  # the incomplete operation
        self._needed = 0  # the size of `_rest` when its payload is complete; 0 while its line is incomplete
        self._skip = 0  # the unread bytes of an oversized message, with the line end after it
        self._failed: ProtocolError | None = None

    @property
    def stored(self) -> int:
        """The size of the incomplete operation in bytes."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Operation]:
        """Parse the next bytes; call the subscribers, and return all other operations.

        Raises:
            ProtocolError: The bytes are not the protocol. The operations of this call before the fault are lost, except
                the messages that subscribers have received. All further calls raise the same error, until `reset`.
        """
        if self._failed is not None:
            raise self._failed
        if self._rest:
            rest = self._rest
            known = len(rest)
            rest += data
            if len(rest) < self._needed:
                return []
            if not self._needed and rest.find(_END, known - 1) < 0:
                self._check_line(rest, len(rest))
                return []
            data = bytes(rest)
            self._rest = bytearray()
        try:
            return self._parse(data)
        except ProtocolError as error:
            raise self._fail(error) from None

    def _parse(self, data: bytes) -> list[Operation]:
        found: list[Operation] = []
        at, end, takes, most = 0, len(data), self.takes, self.max_message
        self._needed = 0
        if self._skip:
            at = self._skipped(data)
        while at < end and not self._skip:
            line = _MSG(data, at)
            if line is not None:
                subject, sid, reply, digits = line.groups()
                first = None
                start = line.end()
            elif (line := _HMSG(data, at)) is not None:
                subject, sid, reply, first, digits = line.groups()
                start = line.end()
            else:
                after = data.find(_END, at)
                self._check_line(data[at : at + 4], (end if after < 0 else after) - at)
                if after < 0:
                    break
                other = data[at:after]
                start = after + 2
                if not other.startswith((b"MSG", b"HMSG")):
                    found += _operation(other)
                    at = start
                    continue
                subject, sid, reply, first, digits = _message_fields(other)
            size = int(digits)
            payload = start if first is None else start + int(first)
            stop = start + size
            if payload > stop:
                raise ProtocolError("the headers of a message are longer than the message")
            if size > most:
                found.append(Oversized(sid, subject, size, first is not None))
                self._skip = size + 2
                at = start + self._skipped(data[start:])
                continue
            if stop + 2 > end:
                self._needed = stop + 2 - at
                break
            if data[stop : stop + 2] != _END:
                raise ProtocolError(_OTHER_SIZE)
            headers = None if first is None else data[start:payload]
            take = takes.get(sid)
            if take is not None:
                take(subject, reply, headers, data[payload:stop])
            else:
                found.append(Message(sid, subject, reply, headers, data[payload:stop]))
            at = stop + 2
        if at < end:
            self._rest += memoryview(data)[at:]
            if self._skip:
                self._needed = self._skip
        return found

    def _skipped(self, data: bytes) -> int:
        """Return how many bytes at the start of ``data`` belong to an oversized message.

        The line end after the message is only skipped as a whole, so that it can be checked.
        """
        part = min(self._skip - 2, len(data))
        self._skip -= part
        if len(data) - part < 2:
            return part
        if data[part : part + 2] != _END:
            raise ProtocolError(_OTHER_SIZE)
        self._skip = 0
        return part + 2

    def _check_line(self, beginning: bytes | bytearray, size: int) -> None:
        """Raise ProtocolError if a line is too long."""
        most = INFO_MAX if beginning.startswith(b"INFO") else LINE_MAX
        if size > most:
            raise self._fail(ProtocolError(f"a line of more than {most} bytes"))

    def _fail(self, error: ProtocolError) -> ProtocolError:
        self._rest, self._failed = bytearray(), error
        return error


_OTHER_SIZE: Final = "a message has another size than its line states"


def _message_fields(line: bytes) -> tuple[bytes, bytes, bytes | None, bytes | None, bytes]:
    """Return subject, sid, reply, size of the headers, and size of a message.

    They are read from a line that `_MSG` does not match. The parts may be separated by several blanks or tabs, which
    the protocol allows. Servers send single blanks.
    """
    kind, *fields = line.split()
    sizes = 1 if kind == b"MSG" else 2
    if kind not in (b"MSG", b"HMSG") or len(fields) - sizes not in (2, 3) or not all(map(_SIZE, fields[-sizes:])):
        raise ProtocolError(f"a malformed message line: {line[:64]!r}")
    subject, sid, *reply = fields[:-sizes]
    return subject, sid, reply[0] if reply else None, fields[-2] if sizes == 2 else None, fields[-1]


def _operation(line: bytes) -> list[Operation]:
    """Return the operation of a line without a payload. ``+OK`` means nothing."""
    word, _, rest = line.partition(b" ")
    word = word.rstrip(b"\t")
    if word == b"PING":
        return [_PING]
    if word == b"PONG":
        return [_PONG]
    if word == b"INFO":
        return [Info(_json(rest))]
    if word == b"-ERR":
        return [Failure(rest.strip().decode("utf-8", "replace"))]
    if word == b"+OK":
        return []
    raise ProtocolError(f"an unknown operation: {line[:64]!r}")


def _json(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ProtocolError("an INFO line without a JSON object")
    return fields


# -- what a client sends ---------------------------------------------------------------------------------


def publish_frame(subject: bytes, payload: bytes, reply: bytes | None = None, headers: bytes | None = None) -> bytes:
    """Return the bytes that publish a message.

    The subjects must be valid (`zroute.nats.subjects.check_topic`). ``headers`` is a whole block, with its first line
    and its empty last line.
    """
    # `join` takes half of the time of one `%`.
    if headers is None:
        sizes = b" %d\r\n" % len(payload)
        if reply is None:
            return b"".join((b"PUB ", subject, sizes, payload, _END))
        return b"".join((b"PUB ", subject, b" ", reply, sizes, payload, _END))
    size = len(headers)
    sizes = b" %d %d\r\n" % (size, size + len(payload))
    if reply is None:
        return b"".join((b"HPUB ", subject, sizes, headers, payload, _END))
    return b"".join((b"HPUB ", subject, b" ", reply, sizes, headers, payload, _END))


def subscribe_line(subject: bytes, sid: bytes, queue: bytes | None = None) -> bytes:
    """Return the line that subscribes to a subject.

    With ``queue``, the client is a member of this group.
    """
    return b"SUB %b %b\r\n" % (subject if queue is None else b"%b %b" % (subject, queue), sid)


def unsubscribe_line(sid: bytes) -> bytes:
    """Return the line that ends a subscription."""
    return b"UNSUB %b\r\n" % sid
