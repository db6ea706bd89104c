"""Convert between zroute's frames and NATS messages with headers.

A message on NATS has a subject, a block of headers and a payload. zroute sends the tracked header of a message as one
NATS header, and the body of the message as the payload. Other NATS clients therefore receive clean bodies::

    NATS/1.0 CR LF
    Zr: c15a520100020006 … CR LF      the 32 bytes of the tracked header as 64 lower-case hexadecimal digits
    traceparent: 00-… CR LF           the application's headers, one line each
    CR LF

- ``Zr`` is the first header, so that one comparison and one conversion read a message without other headers. The
  loop that receives messages expects the frames of the tracked wire (`zroute.messages.wire`), which `frame_of`
  returns.
- The application's headers are text, and not packed as msgpack. The flag `Flags.HEADERS` is therefore never set in
  ``Zr``; `frame_of` sets the flag and packs the headers.
- NATS headers change some values on their way. For example, nats-py replaces line breaks by blanks and removes outer
  blanks. `check_headers` refuses these values, and values that are not text, at the caller.
- Headers of other programs may be repeated, be empty, or contain bytes that are not UTF-8. `parse_block` accepts them
  up to `BLOCK_MAX` bytes. It raises only EnvelopeError.

This module does no I/O.
"""

from __future__ import annotations

import re
import time
from binascii import hexlify, unhexlify
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.wire import (
    FIXED,
    HEADER_SIZE,
    MAGIC,
    NUL,
    Flags,
    Kind,
    pack_head,
    pack_headers,
    parse_header,
)
from zroute.options import HEADERS_MAX

__all__ = [
    "BLOCK_MAX",
    "NO_RESPONDERS",
    "Block",
    "carried",
    "check_headers",
    "fields_of",
    "frame_of",
    "is_unheard",
    "message_of",
    "pack_lines",
    "pack_service_error",
    "parse_block",
    "refusal_of",
    "tracked_of",
]

BLOCK_MAX = 4 * HEADERS_MAX
"""The maximum size in bytes of a block of headers that zroute reads. A NATS server allows the size of a payload."""

NO_RESPONDERS = 503
"""The status of a message with which a server answers a request that has no subscriber.

A worker that has no room for a job answers with this number as the code of a failure.
"""

_NAME: Final = b"Zr"
_VERSION: Final = b"NATS/1.0"
_END: Final = b"\r\n\r\n"
_BEFORE: Final = _VERSION + b"\r\n" + _NAME + b": "
_START: Final = _BEFORE + hexlify(MAGIC)  # shows in one comparison that the header is ours, and first
_FROM, _TO = len(_BEFORE), len(_BEFORE) + 2 * HEADER_SIZE
_ALONE: Final = _TO + len(_END)  # the length of a block with no other header
_FLAGS: Final = 6  # the offset of the flags in a tracked header
_HAS_HEADERS: Final = int(Flags.HEADERS)

_REFUSED: Final = MAGIC
"""A body that the receiving loop counts as malformed, because it is shorter than a tracked header."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 9110; all NATS clients accept it as a name
_OWN: Final = ("zr", "zr-request", "zr-reply", "zr-job")
_STATUS = re.compile(rb"NATS/1\.0(?:[ \t]+(\d{3})(?:[ \t]+([^\r\n]*))?)?[ \t]*")
_ERROR, _CODE = "Nats-Service-Error", "Nats-Service-Error-Code"
_SERVICE_TEXT = 1024  # bytes


# -- send -------------------------------------------------------------------------------------------------


def check_headers(headers: Mapping[str, Any]) -> None:
    """Check that the headers of a message arrive unchanged at every NATS client.

    Raises:
        EncodeError: a name is not an ASCII token, or is ``Zr``; a value is not text, contains a line break, or begins
            or ends with white space; or the headers exceed 4,096 bytes. The error names the header.
    """
    pack_lines(headers)


def carried(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return headers that arrive unchanged at every NATS client.

    Numbers become text, and white space becomes single blanks.
    Headers with other values, such as lists, and headers with names that NATS does not carry are omitted.
    """
    found: dict[str, str] = {}
    for name, value in headers.items():
        if isinstance(value, str | int | float):
            text = " ".join(str(value).split())
            if not _fault_of_name(name) and not _fault_of_value(text):
                found[name] = text
    return found


def pack_lines(headers: Mapping[str, Any]) -> bytes:
    """Return the application's headers as the end of a block.

    They follow a first header without its line end. Raises EncodeError if a header can't be sent over NATS; see
    `check_headers`.
    """
    lines = [b"\r\n"]
    for name, value in headers.items():
        if fault := _fault_of_name(name) or _fault_of_value(value):
            raise EncodeError(f"header {name!r} can't be sent over NATS: {fault}")
        lines.append(f"{name}: {value}\r\n".encode())
    packed = b"".join(lines)
    if (size := len(packed) - len(lines[0])) > HEADERS_MAX:
        raise EncodeError(f"the headers have {size} bytes; expected at most {HEADERS_MAX}: move data into the body")
    return packed + b"\r\n"


def _fault_of_name(name: object) -> str:
    if not isinstance(name, str):
        return f"the name must be text, not {type(name).__name__}"
    if not _TOKEN.fullmatch(name):
        return "expected a name of ASCII letters, digits and the characters !#$%&'*+-.^_`|~"
    if name.lower() in _OWN:
        return "zroute uses this name for its own header; choose another name"
    return ""


def _fault_of_value(value: object) -> str:
    if not isinstance(value, str):
        return f"the value {value!r} is not text; NATS headers carry only text, so pass a str"
    if "\r" in value or "\n" in value:
        return "the value contains a line break, which ends a header; remove it, or move the value into the body"
    if value != value.strip():
        return "the value begins or ends with white space, which NATS clients remove; strip the value"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "the value contains lone surrogates, so it is not valid text"
    return ""


def message_of(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the subject, the block of headers and the payload of a frame.

    The block is empty for a frame of the plain wire. ``frame`` is a data or coalesced frame of a publisher that numbers
    each topic separately, so that it has no further counters.

    Raises EncodeError if a header of the application can't be sent over NATS.
    """
    topic, _, rest = frame.partition(NUL)
    if not rest.startswith(MAGIC) or len(rest) < HEADER_SIZE:
        return topic, b"", rest
    if not rest[_FLAGS] & _HAS_HEADERS:
        return topic, _BEFORE + hexlify(rest[:HEADER_SIZE]) + _END, rest[HEADER_SIZE:]
    header = parse_header(rest)
    fixed = rest[:_FLAGS] + bytes([rest[_FLAGS] & ~_HAS_HEADERS]) + rest[_FLAGS + 1 : HEADER_SIZE]
    return topic, _BEFORE + hexlify(fixed) + pack_lines(header.headers), rest[header.size :]


def fields_of(block: bytes) -> dict[str, str]:
    """Return the names and values of a block that this program has made."""
    lines = block.decode().split("\r\n")[1:-2]
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


def pack_service_error(code: int, text: str) -> bytes:
    """Return the headers by which a NATS service tells its client of a failure.

    Args:
        code: from 100 to 999.
        text: the reason. Line breaks become blanks, and more than 1,024 bytes are cut off.
    """
    line = " ".join(text.split()).encode("utf-8", "replace")[:_SERVICE_TEXT].decode("utf-8", "ignore")
    return f"NATS/1.0\r\n{_ERROR}: {line}\r\n{_CODE}: {code}\r\n\r\n".encode()


# -- receive ----------------------------------------------------------------------------------------------


@attrs.frozen(slots=True)
class Block:
    """The parsed headers of a NATS message.

    Attributes:
        status: the three digits after the version, such as 503; None if the block has none.
        description: the text after the status.
        headers: the headers. A repeated name has the list of its values. A value that is not UTF-8 is bytes.
        tracked: the value of ``Zr``: a tracked header of 32 bytes; None without it.
    """

    status: int | None
    description: str
    headers: Mapping[str, Any]
    tracked: bytes | None

    @property
    def service_error(self) -> tuple[int, str] | None:
        """The code and the text of a failure of a NATS service, or None.

        The code is 500 if the service has sent none, or an invalid one.
        """
        if _ERROR not in self.headers and _CODE not in self.headers:
            return None
        text, code = self.headers.get(_ERROR, ""), self.headers.get(_CODE, "")
        valid = isinstance(code, str) and code.isascii() and code.isdecimal() and 100 <= int(code[:4]) <= 999
        return int(code[:4]) if valid else 500, text if isinstance(text, str) else str(text)


def frame_of(subject: bytes, block: bytes | None, payload: bytes, clock_ns: Callable[[], int]) -> bytes:
    """Return the frame of a received message, for the loop that receives frames.

    - A message with ``Zr`` becomes a frame of the tracked wire.
    - A message without headers becomes a frame of the plain wire.
    - A message of another program with headers becomes a frame of the tracked wire with the epoch 0, without a number
      and with the time of arrival, because a plain frame carries no headers.
    - A message with malformed headers becomes a malformed frame, which the loop counts.

    Args:
        subject: the subject, which must not contain NUL.
        block: the block of headers, with its end; None or empty if the message has none.
        payload: the rest of the message.
        clock_ns: a function that returns nanoseconds since the Unix epoch.
    """
    if not block:
        return subject + NUL + payload
    # The hot path: messages of zroute without headers of the application.
    if len(block) == _ALONE and block.startswith(_START):
        try:
            return subject + NUL + unhexlify(block[_FROM:_TO]) + payload
        except ValueError:
            return subject + NUL + _REFUSED
    try:
        return subject + NUL + _header_of(parse_block(block), clock_ns) + payload
    except (EnvelopeError, EncodeError):
        return subject + NUL + _REFUSED


def _header_of(block: Block, clock_ns: Callable[[], int]) -> bytes:
    """Return the tracked header of a message, including the application's headers."""
    if not block.headers:
        return block.tracked or b""
    return tracked_of(block.tracked, block.headers, clock_ns)


def tracked_of(fixed: bytes | None, headers: Mapping[str, Any], clock_ns: Callable[[], int] = time.time_ns) -> bytes:
    """Return a tracked header with headers of the application.

    ``fixed`` is the tracked header without them; None for a message of another program, which has the epoch 0.

    Raises:
        EncodeError: The headers are too large.
    """
    if fixed is None:
        fixed = FIXED.pack(pack_head(kind=Kind.DATA, codec=0, epoch=0), 0, clock_ns())
    if not headers:
        return fixed
    packed = pack_headers(headers)
    return fixed[:_FLAGS] + bytes([fixed[_FLAGS] | _HAS_HEADERS]) + fixed[_FLAGS + 1 :] + packed


def refusal_of(block: bytes | None) -> tuple[int, str] | None:
    """Return the code and the text with which a worker refuses a job, or None."""
    try:
        return parse_block(block).service_error if block else None
    except EnvelopeError:
        return None


def is_unheard(block: bytes | None, payload: bytes) -> bool:
    """Return True for the status 503 of a server.

    No client has received a message with a reply subject.
    """
    if not block or payload:
        return False
    try:
        return parse_block(block).status == NO_RESPONDERS
    except EnvelopeError:
        return False


def parse_block(block: bytes) -> Block:
    """Parse the headers of any NATS message.

    Raises EnvelopeError if the block is too long, does not begin with ``NATS/1.0``, does not end with an empty line,
    has a line that is no header, or has an invalid ``Zr``.
    """
    if len(block) > BLOCK_MAX:
        raise EnvelopeError(f"NATS headers of {len(block)} bytes; expected at most {BLOCK_MAX}")
    first, *lines = block.split(b"\r\n")
    begun = _STATUS.fullmatch(first)
    if begun is None:
        raise EnvelopeError("NATS headers that do not begin with NATS/1.0")
    if lines[-2:] != [b"", b""]:
        raise EnvelopeError("NATS headers that do not end with an empty line")
    headers: dict[str, Any] = {}
    tracked = None
    for line in lines[:-2]:
        name, value = _field(line)
        if name == "Zr":
            if tracked is not None:
                raise EnvelopeError("NATS headers with two Zr")
            tracked = _tracked(value)
        elif name in headers:
            before = headers[name]
            headers[name] = [*before, _text(value)] if isinstance(before, list) else [before, _text(value)]
        else:
            headers[name] = _text(value)
    status, description = begun.groups()
    return Block(int(status) if status else None, (description or b"").decode("utf-8", "replace"), headers, tracked)


def _field(line: bytes) -> tuple[str, bytes]:
    name, colon, value = line.partition(b":")
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if not colon or not text or text != text.strip():
        raise EnvelopeError("NATS headers with a line that is not a name, a colon and a value")
    return text, value.strip(b" \t")


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _tracked(value: bytes) -> bytes:
    try:
        fixed = unhexlify(value)
    except ValueError:
        fixed = b""
    if len(fixed) != HEADER_SIZE or not fixed.startswith(MAGIC) or fixed[_FLAGS] & ~int(Flags.KEEPS):
        raise EnvelopeError("a Zr header that is not a tracked header of 64 hexadecimal digits")
    return fixed
