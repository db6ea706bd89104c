"""An envelope as people and programs read it: the body decoded, one line a message, safe on a terminal."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs
import click

from zroute.logs import printable
from zroute.messages.codecs import BUILTIN, RAW, TEXT, Codec, detect
from zroute.messages.wire import Envelope

__all__ = ["Body", "as_json", "as_line", "as_text", "clock_time", "decoded", "one_line", "template"]

_CODECS = {codec.number: codec for codec in BUILTIN.values()}
_MAX_DEPTH = 100  # what is deeper nobody reads in one line, and Python's own stack ends at some depth

_BINARY = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f]")
"""What no text holds; colours, which begin with 1B, may be in the lines of a log."""
_NOTHING = "-"


@attrs.frozen
class Body:
    """A decoded body: ``value`` can be written as JSON, or is bytes where nothing else can be made of them.

    ``codec`` is the name of the codec that the publisher names, or else of the one that the body looks
    like; a number where it is none of zroute's own. ``fault`` says why ``value`` is not in that codec.
    """

    value: Any
    codec: str
    fault: str = ""


def decoded(envelope: Envelope) -> Body:
    """The body of ``envelope``, by what its header names, else by what it looks like. Raises nothing."""
    body = envelope.body
    if envelope.codec:
        codec = _CODECS.get(envelope.codec)
        if codec is None:
            return Body(body, str(envelope.codec))
        try:
            return Body(_read(codec, body), codec.name)
        except Exception as error:  # decoders raise whatever they like, for what is the peer's fault
            return Body(body, codec.name, f"it is not {codec.name}: {error}")
    for codec in filter(None, (detect(body), TEXT)):
        try:
            value = _read(codec, body)
        except Exception:  # so it only looked like that
            continue
        if codec is not TEXT or not _BINARY.search(value):
            return Body(value, codec.name)
    return Body(body, RAW.name)


def _read(codec: Codec, body: bytes) -> Any:
    value = codec.decoder(Any)(body)
    return value if isinstance(value, bytes) and codec is RAW else _plain(value)


def _plain(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON can hold it: bytes as ``{"base64": …}``, whatever else is strange as its text."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it nests deeper than {_MAX_DEPTH} levels")
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
    """``text`` with everything escaped that is not fit for one line of a terminal; JSON stays the same JSON."""
    return printable(text, None)


def as_text(value: Any) -> str:
    """A value in one line: text as it is, bytes as Python writes them, all else as JSON."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, bytes):
        return repr(value)
    return one_line(json.dumps(value, ensure_ascii=False))


def clock_time(seconds: float) -> str:
    """Local time of day, to the millisecond, of Unix ``seconds``."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")[:-3]


def as_line(envelope: Envelope, body: Body) -> tuple[str, str, str, str]:
    """Time, topic and body, and what is wrong with that, in brackets."""
    fault = f" ({one_line(body.fault)})" if body.fault else ""
    return clock_time(envelope.received_at), one_line(envelope.topic), as_text(body.value), fault


def _fields(envelope: Envelope, body: Body) -> dict[str, Any]:
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
    }


def as_json(envelope: Envelope, body: Body) -> str:
    """One JSON object in one line; ``error`` is in it only where the body is not what its publisher says."""
    fields = _fields(envelope, body)
    fields["body"] = _plain(body.value)
    if body.fault:
        fields["error"] = body.fault
    return one_line(json.dumps(fields, ensure_ascii=False))


# -- templates -------------------------------------------------------------------------------------------


class _Field:
    """What stands for a value in a template: ``{body[price]:.2f}``; ``-`` where there is no such thing."""

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
            return format(self._value, spec) if number else format(str(self), spec.lstrip("0"))  # no text is padded so
        except ValueError:  # this message has text where others have a number
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
}
"""A message on which a template is tried; what its body and headers hold only a real one can tell."""


def template(text: str) -> Callable[[Envelope, Body], str]:
    """What writes a message as ``text`` has it, in the syntax of `str.format`. Raises click.UsageError."""
    try:
        text.format_map(_SAMPLE)
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in _SAMPLE)
        raise click.UsageError(f"--format {text!r} has an unknown field {error}: there are {known}") from error
    except AttributeError as error:
        raise click.UsageError(
            f"--format {text!r} has a dot in a field: write {{body[name]}} for a part of it"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        example = "write for example '{topic} {body[price]:.2f}'"
        raise click.UsageError(f"--format {text!r} can't be read: {error}; {example}") from error

    def write(envelope: Envelope, body: Body) -> str:
        fields = _fields(envelope, body).items()
        there = {name: value if value is not None or name == "body" else _NOTHING for name, value in fields}
        return text.format_map({name: _Field(value) for name, value in there.items()})

    return write
