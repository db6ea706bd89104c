"""Format envelopes for people and programs.

The body is decoded, each message takes one line, and characters that could control a terminal are escaped.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs
import click

from zroute.logs import printable
from zroute.messages.codecs import BUILTIN, RAW, TEXT, Codec, detect
from zroute.messages.compression import compression_of
from zroute.messages.wire import Envelope

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Body", "as_json", "as_line", "as_text", "clock_time", "coloured", "decoded", "one_line", "template"]

_CODECS = {codec.number: codec for codec in BUILTIN.values()}
_MAX_DEPTH = 100  # maximum levels of nesting: people can't read more in one line, and Python limits recursion

_BINARY = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f]")
"""The control characters that do not occur in text. A body that contains one of them is shown as bytes.

Tab, line feed, carriage return and escape (1B) are not included, because log lines may contain them, for example for
colours.
"""
_NOTHING = "-"


@attrs.frozen
class Body:
    """A decoded body.

    Attributes:
        value: A value that can be written as JSON, or bytes if the body can't be decoded.
        codec: The name of the codec that the publisher states, or that was guessed from the body. For a stated codec
            that is not built in, its number.
        fault: The reason why the body can't be decoded with that codec, or "".
    """

    value: Any
    codec: str
    fault: str = ""


def decoded(body: bytes, number: int) -> Body:
    """Decode a body in the codec ``number``.

    If the number is 0, the function guesses the codec from the first byte, and otherwise tries text, then bytes. The
    function raises no error; `Body.fault` describes a body that does not match its codec.
    """
    if number:
        codec = _CODECS.get(number)
        if codec is None:
            return Body(body, str(number))
        try:
            return Body(_read(codec, body), codec.name)
        except Exception as error:  # decoders raise errors of any class for a peer's faults
            return Body(body, codec.name, f"the body is not valid {codec.name}: {error}")
    for codec in filter(None, (detect(body), TEXT)):
        try:
            value = _read(codec, body)
        except Exception:  # the first byte was misleading
            continue
        if codec is not TEXT or not _BINARY.search(value):
            return Body(value, codec.name)
    compression = compression_of(body)
    if compression is not None:
        return Body(body, RAW.name, f"the body looks compressed: add decompress={compression} to --frames")
    return Body(body, RAW.name)


def _read(codec: Codec, body: bytes) -> Any:
    """Decode ``body`` without a schema.

    Raises the error of the decoder if the body is not in ``codec``.
    """
    value = codec.decoder(Any)(body)
    return value if isinstance(value, bytes) and codec is RAW else _plain(value)


def _plain(value: Any, depth: int = 0) -> Any:
    """Return ``value`` in types that JSON supports.

    Bytes become ``{"base64": …}``, and values of any other type become text. ``depth`` is the level of nesting. Raises
    ValueError if ``depth`` exceeds ``_MAX_DEPTH``.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"the body nests deeper than {_MAX_DEPTH} levels")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return str(value)


# -- lines -----------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """Return ``text`` in one line that can't control a terminal.

    Line ends, control characters and invisible characters are escaped. JSON text keeps its meaning, because JSON
    escapes are used.
    """
    return printable(text, None)


def as_text(value: Any) -> str:
    """Return ``value`` in one line: text, a Python literal of bytes, or JSON."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, bytes):
        return repr(value)
    return one_line(json.dumps(value, ensure_ascii=False))


def coloured(body: Body, shown: str) -> Text:
    """Return ``shown``, the text of a body or its beginning, in colours."""
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    text = Text(shown)
    if isinstance(body.value, bytes):
        text.stylize("yellow")
    elif not isinstance(body.value, str):
        JSONHighlighter().highlight(text)
    return text


def clock_time(seconds: float) -> str:
    """Return the local time of day, with milliseconds.

    ``seconds`` is a time in seconds since the Unix epoch.
    """
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")[:-3]


def as_line(envelope: Envelope, body: Body) -> tuple[str, str, str, str]:
    """Return the parts of a line: time, topic, body, and any fault in brackets."""
    fault = f" ({one_line(body.fault)})" if body.fault else ""
    return clock_time(envelope.received_at), one_line(envelope.topic), as_text(body.value), fault


def _fields(envelope: Envelope, body: Body) -> dict[str, Any]:
    """Return the fields for ``--json``, which a template may also use."""
    return {
        "topic": envelope.topic,
        "body": body.value,
        "codec": body.codec,
        "sent_at": envelope.sent_at,
        "received_at": envelope.received_at,
        "sequence": envelope.sequence,
        "publisher": envelope.publisher,
        "tracked": envelope.tracked,
        "headers": _plain(envelope.headers),
        "peer": envelope.peer,
        "origin": envelope.origin,
    }


def as_json(envelope: Envelope, body: Body) -> str:
    """Return the message as a JSON object in one line.

    The object has a field ``error`` only if the body does not match the codec that the publisher states.
    """
    fields = _fields(envelope, body)
    fields["body"] = _plain(body.value)
    if body.fault:
        fields["error"] = body.fault
    return one_line(json.dumps(fields, ensure_ascii=False))


# -- templates -------------------------------------------------------------------------------------------


class _Field:
    """A value in a template, for example in ``{body[price]:.2f}``.

    A missing item is shown as ``-``. If ``strict`` is True, a format that does not suit the value raises ValueError;
    otherwise the value is shown without the format.
    """

    def __init__(self, value: Any, *, strict: bool = False) -> None:
        self._value = value
        self._strict = strict

    def __getitem__(self, key: str | int) -> _Field:
        try:
            return _Field(self._value[key])
        except (LookupError, TypeError):
            return _Field(_NOTHING)

    def __str__(self) -> str:
        return as_text(self._value)

    def __repr__(self) -> str:
        return one_line(repr(self._value))

    def __format__(self, spec: str) -> str:
        number = isinstance(self._value, int | float) and spec
        try:
            return format(self._value, spec) if number else format(str(self), spec.lstrip("0"))  # "0" pads numbers only
        except ValueError:  # this value is text, but it may be a number in other messages
            if self._strict:
                raise
            return str(self)


_SAMPLE = {
    "topic": _Field("news", strict=True),
    "body": _Field(None),
    "codec": _Field("json", strict=True),
    "sent_at": _Field(0.5, strict=True),
    "received_at": _Field(0.5, strict=True),
    "sequence": _Field(1, strict=True),
    "publisher": _Field("00", strict=True),
    "tracked": _Field(True, strict=True),
    "headers": _Field({}),
    "peer": _Field("feed", strict=True),
    "origin": _Field("live", strict=True),
}
"""A message with which a template is checked.

The items of body and headers can't be checked, because they are known only when a message arrives.
"""


def template(text: str) -> Callable[[Envelope, Body], str]:
    """Return a function that formats messages by the template ``text``.

    The syntax is that of `str.format`. A field that the message does not have is shown as ``-``.

    Raises:
        click.UsageError: The template has a syntax error or an unknown field.
    """
    try:
        text.format_map(_SAMPLE)
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in _SAMPLE)
        raise click.UsageError(f"--format {text!r} has an unknown field {error}: the fields are {known}") from error
    except AttributeError as error:
        raise click.UsageError(
            f"--format {text!r} has a dot in a field: write {{body[name]}} to show an item of the body"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        example = "for example, write '{topic} {body[price]:.2f}'"
        raise click.UsageError(f"--format {text!r} can't be read: {error}; {example}") from error

    def write(envelope: Envelope, body: Body) -> str:
        fields = _fields(envelope, body).items()
        there = {name: value if value is not None or name == "body" else _NOTHING for name, value in fields}
        return text.format_map({name: _Field(value) for name, value in there.items()})

    return write
