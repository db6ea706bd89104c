"""``zroute pub``: publish messages from the shell."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from itertools import count, repeat
from threading import Thread
from typing import TYPE_CHECKING, Any

import click

from zroute.cli.options import DURATION, EndpointType
from zroute.endpoints import Endpoint
from zroute.errors import EncodeError, TopicError
from zroute.messages.topics import topic_bytes

if TYPE_CHECKING:
    from zroute.cli.sending import Outlet
    from zroute.messages.wire import Wire

__all__ = ["command"]

_CODECS = ("json", "msgpack", "text", "raw")
_WIRES = ("tracked", "plain", "multipart")

_STDIN = 0  # the descriptor: a thread that reads Python's own stream would block the end of the process
_CHUNK = 65_536
_INPUT_MAX = 16 * 1024 * 1024
"""Bytes of input for one message. JSON text may be longer than the encoded body, but must have a limit."""

_Encode = Callable[[bytes, str], bytes]
"""Encodes input to the body of a message. The second parameter names the input in errors."""


@click.command("pub")
@click.argument("endpoint", type=EndpointType(bind=True))
@click.argument("topic")
@click.argument("body", required=False)
@click.option("--lines", is_flag=True, help="Each line of standard input is one message.")
@click.option("--codec", type=click.Choice(_CODECS), default="json", show_default=True)
@click.option("--wire", type=click.Choice(_WIRES), default="tracked", show_default=True)
@click.option("-H", "--header", "headers", multiple=True, metavar="KEY=VALUE", help="A header; may be repeated.")
@click.option("-n", "--count", "times", type=click.IntRange(min=1), metavar="N", help="Send BODY N times.")
@click.option("--every", type=DURATION, help="Pause between messages. Without --count, send until a signal.")
@click.option(
    "--wait", type=DURATION, default=5.0, show_default=True, help="How long to wait for a subscriber; 0 sends at once."
)
def command(
    endpoint: Endpoint,
    topic: str,
    body: str | None,
    lines: bool,
    codec: str,
    wire: Wire,
    headers: tuple[str, ...],
    times: int | None,
    every: float | None,
    wait: float,
) -> None:
    """Publish BODY to TOPIC.

    Binds ENDPOINT, or connects to it if it begins with connect:. Waits until there is a subscriber to the topic,
    sends the message, and ends when the subscribers have read it. BODY is JSON text; with --codec text or raw it
    is sent unchanged. Without BODY, or if it is -, the body is read from standard input.
    """
    if lines and (times is not None or body not in (None, "-")):
        raise click.UsageError("with --lines, each line of standard input is a message: omit BODY and --count")
    where = "BODY" if body not in (None, "-") else "standard input"
    period = every or 0.0
    if times is None and every is None:
        times = 1
    try:
        name = topic_bytes(topic)
        fields = _headers(headers, wire)
        number, compose = _composer(name, codec, wire, fields)
        encode = _encoder(codec)
        given = None if lines else encode(_given(body), where)
        compose(given or b"")  # report a body that can't be sent before waiting for a subscriber

        from zroute.cli.sending import covers, send

        tracked = wire == "tracked"

        async def publish(outlet: Outlet) -> None:
            due = 0.0
            async for message in _lines(outlet.reactor, encode) if given is None else _repeated(given, times):
                await outlet.until(due)
                if tracked:
                    await outlet.publish(name, number, message, fields)
                else:
                    await outlet.send(compose(message))
                late = outlet.elapsed >= due + period  # skip missed periods
                due = (outlet.elapsed if late else due) + period

        whom = f"a subscriber to {topic!r}"
        raise SystemExit(
            send(endpoint, publish, wait=wait, wanted=lambda live: covers(live, name), whom=whom, tracked=tracked)
        )
    except (TopicError, EncodeError) as error:
        raise click.UsageError(str(error)) from error


# -- what is sent -------------------------------------------------------------------------------------------


def _composer(
    topic: bytes, codec: str, wire: Wire, headers: dict[str, str]
) -> tuple[int, Callable[[bytes], tuple[bytes, ...]]]:
    """Return the number of the codec, and a function that makes frames from a body.

    The function raises EncodeError if the wire can't carry the body or the headers.
    """
    from zroute.messages.codecs import BUILTIN
    from zroute.messages.wire import framer

    number = BUILTIN[codec].number
    # A new epoch tells subscribers that numbers begin again: each run of the command is a new publisher.
    frame = framer(wire, epoch=secrets.randbits(64), next_sequence=count().__next__, clock_ns=time.time_ns)

    def compose(body: bytes) -> tuple[bytes, ...]:
        frames = frame(topic, number, body, headers)
        return frames if isinstance(frames, tuple) else (frames,)

    return number, compose


def _headers(given: tuple[str, ...], wire: Wire) -> dict[str, str]:
    """Return the headers given as ``KEY=VALUE``.

    Raises UsageError if one can't be parsed, or if the wire has no headers.
    """
    if given and wire != "tracked":
        raise click.UsageError(f"--header needs the tracked wire: omit --header, or omit --wire {wire}")
    headers: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--header {text!r} is not KEY=VALUE")
        if key in headers:
            raise click.UsageError(f"--header {key!r} is given twice, but a header has one value")
        headers[key] = value
    return headers


def _encoder(codec: str) -> _Encode:
    """Return a function that encodes input to a body.

    The function raises UsageError if the input is not JSON or not text, as the codec needs, or if the body is too
    large. The error names the place of the fault.
    """
    from zroute.messages.codecs import BUILTIN
    from zroute.options import MAX_MESSAGE

    write = BUILTIN[codec].encoder(Any)

    def encode(given: bytes, where: str) -> bytes:
        try:
            body = write(_value(given, where, codec))
        except json.JSONDecodeError as error:
            raise click.UsageError(f"{where} is not JSON: {_place(error)}") from error
        except (EncodeError, RecursionError, ValueError) as error:  # a number or a depth that readers refuse
            raise click.UsageError(f"{where} can't be sent: {error}") from error
        if len(body) > MAX_MESSAGE:
            raise click.UsageError(f"{where} becomes {len(body)} bytes, but subscribers accept at most {MAX_MESSAGE}")
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
        raise click.UsageError(f"{where} is not UTF-8 text, from byte {error.start} on: {remedy}") from error
    return text if codec == "text" else json.loads(text)


def _place(error: json.JSONDecodeError) -> str:
    """Return a text that shows the place of a JSON error, and a remedy.

    A mark below the line points at the place. Only the part of the line around the place is shown, so that it
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


# -- where it comes from ------------------------------------------------------------------------------------


def _given(body: str | None) -> bytes:
    """Return BODY as bytes, or all of standard input.

    Raises UsageError if standard input can't be read or is too long.
    """
    if body not in (None, "-"):
        return os.fsencode(str(body))
    try:
        if os.isatty(_STDIN):
            click.echo("zroute: reading the body from the terminal, until Ctrl-D", err=True)
        with open(_STDIN, "rb", closefd=False) as stream:
            given = stream.read(_INPUT_MAX + 1)
    except OSError as error:
        raise click.UsageError(f"standard input can't be read: {error.strerror}") from error
    if len(given) > _INPUT_MAX:
        raise click.UsageError(f"standard input has more than {_INPUT_MAX} bytes, the limit for one message")
    return given


async def _repeated(body: bytes, times: int | None) -> AsyncIterator[bytes]:
    """Yield ``body`` N times, or forever if ``times`` is None."""
    for _ in repeat(None) if times is None else repeat(None, times):
        yield body


async def _lines(reactor: Any, encode: _Encode) -> AsyncIterator[bytes]:
    """Yield each line of standard input when it arrives, encoded.

    Raises UsageError for a line that can't be sent, with its number.
    """
    rest, number = b"", 0
    while chunk := await _chunk(reactor):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            yield encode(line, f"line {number} of standard input")
        if len(rest) > _INPUT_MAX:
            raise click.UsageError(f"line {number + 1} of standard input is longer than {_INPUT_MAX} bytes")
    if rest:
        yield encode(rest, f"line {number + 1} of standard input")


async def _chunk(reactor: Any) -> bytes:
    """Return the next bytes of standard input, or b"" at its end.

    A thread reads them, so a signal can cancel the wait. The thread is a daemon: it may still be blocked when the
    process ends. Raises UsageError if standard input can't be read.
    """
    from twisted.internet.defer import Deferred

    read: Deferred[bytes] = Deferred()

    def settle(chunk: bytes | OSError) -> None:
        if read.called:  # a signal has cancelled it
            return
        if isinstance(chunk, OSError):
            read.errback(click.UsageError(f"standard input can't be read: {chunk.strerror}"))
        else:
            read.callback(chunk)

    def run() -> None:
        try:
            reactor.callFromThread(settle, os.read(_STDIN, _CHUNK))
        except OSError as error:
            reactor.callFromThread(settle, error)

    Thread(target=run, name="zroute-stdin", daemon=True).start()
    return await read
