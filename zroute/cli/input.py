"""The input of commands that send messages.

Bodies come from arguments or standard input, and headers come from arguments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import click

from zroute.errors import EncodeError

__all__ = ["CODECS", "INPUT_MAX", "STDIN", "Encode", "encoder", "parse_headers", "read_body"]

CODECS = ("json", "msgpack", "text", "raw")
"""The codecs of zroute, for ``--codec``."""

STDIN = 0
"""The descriptor of standard input.

A thread that reads `sys.stdin` would prevent the process from ending.
"""

INPUT_MAX = 16 * 1024 * 1024
"""The maximum size of the input for one message, in bytes. JSON text may be longer than the encoded body."""

Encode = Callable[[bytes, str], bytes]
"""A function that encodes input to the body of a message. Its second parameter is the name of the input in errors."""


def read_body(body: str | None) -> bytes:
    """Return BODY as bytes, or standard input if BODY is omitted or ``-``.

    Raises UsageError if standard input can't be read or is too long.
    """
    if body not in (None, "-"):
        return os.fsencode(str(body))
    try:
        if os.isatty(STDIN):
            click.echo("zroute: reading the body from the terminal, until Ctrl-D", err=True)
        with open(STDIN, "rb", closefd=False) as stream:
            given = stream.read(INPUT_MAX + 1)
    except OSError as error:
        raise click.UsageError(f"standard input can't be read: {error.strerror}") from error
    if len(given) > INPUT_MAX:
        raise click.UsageError(f"standard input has more than {INPUT_MAX} bytes, the limit for one message")
    return given


def parse_headers(given: tuple[str, ...]) -> dict[str, str]:
    """Return the headers given as ``KEY=VALUE``.

    Raises UsageError if a header can't be parsed, or is given twice.
    """
    headers: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--header {text!r}: expected KEY=VALUE")
        if key in headers:
            raise click.UsageError(
                f"--header {key!r} is given twice, but a header can have only one value: omit one of the two"
            )
        headers[key] = value
    return headers


def encoder(codec: str) -> Encode:
    """Return a function that encodes input to a body.

    The function raises UsageError if the input is not the JSON or text that the codec needs, or if the body is too
    large. If the input can't be parsed, the error shows the position.
    """
    from zroute.messages.codecs import BUILTIN
    from zroute.options import MAX_MESSAGE

    write = BUILTIN[codec].encoder(Any)

    def encode(given: bytes, where: str) -> bytes:
        try:
            body = write(_value(given, where, codec))
        except json.JSONDecodeError as error:
            raise click.UsageError(f"{where} is not JSON: {_place(error)}") from error
        except (EncodeError, RecursionError, ValueError) as error:  # a number or a level of nesting that readers refuse
            raise click.UsageError(f"{where} can't be sent: {error}") from error
        if len(body) > MAX_MESSAGE:
            raise click.UsageError(f"{where} is encoded to {len(body)} bytes, but apps accept at most {MAX_MESSAGE}")
        return body

    return encode


def _value(given: bytes, where: str, codec: str) -> object:
    """Return the value to encode: bytes for ``raw``, text for ``text``, else JSON."""
    if codec == "raw":
        return given
    try:
        text = given.decode()
    except UnicodeDecodeError as error:
        remedy = "send bytes with --codec raw"
        raise click.UsageError(
            f"{where} is not UTF-8 text (invalid byte at position {error.start}): {remedy}"
        ) from error
    return text if codec == "text" else json.loads(text)


def _place(error: json.JSONDecodeError) -> str:
    """Return a text with the position of a JSON error and the remedy.

    A mark below the line points to the position. Only the part of the line around the error is shown, so that this part
    fits on a terminal.
    """
    line = error.doc.split("\n")[error.lineno - 1]
    first = max(error.colno - 40, 0)
    shown = "".join(mark if mark.isprintable() else " " for mark in line[first : first + 70])
    return (
        f"{error.msg} at line {error.lineno}, column {error.colno}\n\n  {shown}\n  {' ' * (error.colno - 1 - first)}^\n"
        "Write JSON strings in double quotes, and the whole body in single quotes for the shell: '{\"price\": 1.5}'. "
        "Use --codec text for text that is not JSON."
    )
