"""``zroute pub``: publish messages from the shell."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from itertools import count, repeat
from threading import Thread
from typing import TYPE_CHECKING, Any

import click

from zroute.cli.input import CODECS, INPUT_MAX, STDIN, Encode, encoder, parse_headers, read_body
from zroute.cli.options import DURATION, EndpointType, access_options, cluster_options, frames_option, separator_option
from zroute.endpoints import Access, Cluster, Endpoint
from zroute.errors import EncodeError, TopicError
from zroute.messages.topics import topic_bytes

if TYPE_CHECKING:
    from zroute.messages.frames import Frames
    from zroute.messages.wire import Wire

__all__ = ["command"]

_WIRES = ("tracked", "plain", "multipart")

_CHUNK = 65_536


@click.command("pub")
@click.argument("endpoint", type=EndpointType(bind=True, nats=True))
@click.argument("topic")
@click.argument("body", required=False)
@click.option("--lines", is_flag=True, help="Each line of standard input is one message.")
@click.option("--codec", type=click.Choice(CODECS), default="json", show_default=True)
@click.option("--wire", type=click.Choice(_WIRES), default="tracked", show_default=True)
@frames_option
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="KEY=VALUE", help="Header of the message. Can be repeated."
)
@click.option("-n", "--count", "times", type=click.IntRange(min=1), metavar="N", help="Send BODY N times.")
@click.option("--every", type=DURATION, help="Pause between messages. Without --count, send until a signal.")
@click.option(
    "--wait",
    type=DURATION,
    default=5.0,
    show_default=True,
    help="Maximum time to wait for a subscriber. 0 sends at once.",
)
@access_options
@cluster_options
@separator_option(what="TOPIC", expose_value=True)
def command(
    endpoint: Endpoint | Cluster,
    topic: str,
    body: str | None,
    lines: bool,
    codec: str,
    wire: Wire | Frames,
    frames: str | None,
    headers: tuple[str, ...],
    times: int | None,
    every: float | None,
    wait: float,
    access: Access,
    separator: str,
) -> None:
    """Publish BODY to TOPIC.

    Binds ENDPOINT, or connects if ENDPOINT begins with connect:. ENDPOINT may also be NATS servers, separated by
    commas. Waits until the topic has a subscriber, sends the message, and exits when the subscribers have read the
    message. BODY is JSON text. With --codec text or raw, BODY is sent unchanged. If BODY is omitted or -, the body is
    read from standard input.
    """
    if lines and (times is not None or body not in (None, "-")):
        raise click.UsageError("with --lines, each line of standard input is a message: omit BODY and --count")
    where = "BODY" if body not in (None, "-") else "standard input"
    period = every or 0.0
    if times is None and every is None:
        times = 1
    if frames is not None:
        wire = _stated(wire, frames)
    if isinstance(endpoint, Cluster) and wire == "multipart":
        raise click.UsageError("--wire multipart can't be sent over NATS: use --wire tracked or --wire plain")
    try:
        name = topic_bytes(topic, separator, filled="")
        fields = _headers(headers, wire)
        number, compose = _composer(name, codec, wire, fields)
        encode = encoder(codec)
        given = None if lines else encode(read_body(body), where)
        compose(given or b"")  # report a body that can't be sent before waiting for a subscriber

        from zroute.cli.sending import covers, send

        numbers = wire == "tracked" or isinstance(endpoint, Cluster)

        async def publish(sender: Any) -> None:
            due = 0.0
            async for message in _lines(sender.reactor, encode) if given is None else _repeated(given, times):
                await sender.until(due)
                if numbers:
                    await sender.publish(name, number, message, fields)
                else:
                    await sender.send(compose(message))
                late = sender.elapsed >= due + period  # skip missed periods
                due = (sender.elapsed if late else due) + period

        if isinstance(endpoint, Cluster):
            from zroute.cli.sending_on_nats import send_on_nats

            assert wire in ("tracked", "plain"), "checked above"
            raise SystemExit(send_on_nats(endpoint, publish, topic=topic, wire=wire, wait=wait))
        whom = f"a subscriber to {topic!r}"
        raise SystemExit(
            send(
                endpoint,
                publish,
                wait=wait,
                wanted=lambda live: covers(live, name),
                whom=whom,
                tracked=wire == "tracked",
                access=access,
            )
        )
    except (TopicError, EncodeError) as error:
        raise click.UsageError(str(error)) from error


# -- frames and bodies --------------------------------------------------------------------------------------


def _composer(
    topic: bytes, codec: str, wire: Wire | Frames, headers: dict[str, str]
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


def _stated(wire: Wire | Frames, frames: str) -> Wire | Frames:
    """Return the wire for the form in ``--frames``."""
    from zroute.messages.frames import parse_form

    if wire != "tracked":
        raise click.UsageError("--frames and --wire are mutually exclusive: omit one of the two")
    return parse_form(frames) or wire


def _headers(given: tuple[str, ...], wire: Wire | Frames) -> dict[str, str]:
    """Return the headers given as ``KEY=VALUE``.

    Raises UsageError if a header can't be parsed, or if the wire does not support headers.
    """
    if given and wire != "tracked":
        other = f"--wire {wire}" if isinstance(wire, str) else "--frames"
        raise click.UsageError(f"--header needs the tracked wire: omit --header, or omit {other}")
    return parse_headers(given)


# -- the input ----------------------------------------------------------------------------------------------


async def _repeated(body: bytes, times: int | None) -> AsyncIterator[bytes]:
    """Yield ``body`` repeatedly: ``times`` times, or forever if ``times`` is None."""
    for _ in repeat(None) if times is None else repeat(None, times):
        yield body


async def _lines(reactor: Any, encode: Encode) -> AsyncIterator[bytes]:
    """Yield each line of standard input as an encoded body, when the line arrives.

    Raises UsageError, with the line number, for a line that can't be sent.
    """
    rest, number = b"", 0
    while chunk := await _chunk(reactor):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            yield encode(line, f"line {number} of standard input")
        if len(rest) > INPUT_MAX:
            raise click.UsageError(f"line {number + 1} of standard input is longer than {INPUT_MAX} bytes")
    if rest:
        yield encode(rest, f"line {number + 1} of standard input")


async def _chunk(reactor: Any) -> bytes:
    """Return the next bytes of standard input, or b"" at its end.

    A daemon thread reads the bytes, so that a signal can cancel the wait, and the process can end during the read.
    Raises UsageError if standard input can't be read.
    """
    from twisted.internet.defer import Deferred

    read: Deferred[bytes] = Deferred()

    def settle(chunk: bytes | OSError) -> None:
        if read.called:  # a signal has cancelled the wait
            return
        if isinstance(chunk, OSError):
            read.errback(click.UsageError(f"standard input can't be read: {chunk.strerror}"))
        else:
            read.callback(chunk)

    def run() -> None:
        try:
            reactor.callFromThread(settle, os.read(STDIN, _CHUNK))
        except OSError as error:
            reactor.callFromThread(settle, error)

    Thread(target=run, name="zroute-stdin", daemon=True).start()
    return await read
