"""``zroute tail``: show the messages of a publisher."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from zroute.cli.options import (
    DURATION,
    PATTERN,
    SINCE,
    EndpointType,
    access_options,
    check_past,
    cluster_options,
    frames_option,
    separator_option,
    source_of,
)
from zroute.cli.showing import Body, as_json, as_line, coloured, decoded, one_line, template
from zroute.endpoints import Access, Cluster, Endpoint
from zroute.logs import has_colors
from zroute.messages.topics import Pattern

if TYPE_CHECKING:
    from zroute.messages.recovery import Since
    from zroute.messages.wire import Envelope

__all__ = ["command"]

_CLIP = 2000
"""The maximum number of characters of a body on a terminal. A longer body would push other messages off the screen."""


@click.command("tail")
@click.argument("endpoint", type=EndpointType(bind=False, nats=True))
@click.argument("patterns", nargs=-1, type=PATTERN, metavar="[PATTERN…]")
@click.option("--json", "as_objects", is_flag=True, help="Print one JSON object per line, with all fields.")
@click.option("--format", "text", metavar="TEMPLATE", help="Format each line, as in '{topic} {body[price]:.2f}'.")
@click.option("--topics-only", is_flag=True, help="Show only the topic of each message.")
@click.option(
    "--ignore",
    type=PATTERN,
    multiple=True,
    metavar="'PATTERN'",
    help="Omit topics that match PATTERN. Can be repeated.",
)
@click.option(
    "--sample", type=click.IntRange(min=1), default=1, metavar="N", help="Show only the first of every N messages."
)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N messages are shown.")
@click.option(
    "--wait", type=DURATION, help="Exit with code 124 if no message arrives within this time, such as 10s or 500ms."
)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="N",
    help="First show the last N messages in each publisher's history.",
)
@click.option(
    "--since",
    type=SINCE,
    metavar="TIME",
    help="First show the messages in the publishers' histories since TIME: 60s, or 2026-11-28T09:30.",
)
@frames_option
@access_options
@cluster_options
@separator_option()
def command(
    endpoint: Endpoint | Cluster,
    patterns: tuple[Pattern, ...],
    as_objects: bool,
    text: str | None,
    topics_only: bool,
    ignore: tuple[Pattern, ...],
    sample: int,
    count: int | None,
    wait: float | None,
    last: int | None,
    since: Since | None,
    frames: str | None,
    access: Access,
) -> None:
    """Show the messages of a publisher, until a signal.

    Shows the messages whose topics match one of the PATTERNs, or all messages if no pattern is given. Connects to
    ENDPOINT, or binds the address if ENDPOINT begins with bind:. ENDPOINT may also be NATS servers, separated by
    commas. Reads all wires of zroute, or the form in --frames.

    Quote patterns, because shells expand them: zroute tail tcp://127.0.0.1:5555 'news.>' --ignore 'news.*.draft'
    """
    if as_objects + topics_only + (text is not None) > 1:
        raise click.UsageError("--json, --format and --topics-only are mutually exclusive: choose one of them")
    if last is not None and since is not None:
        raise click.UsageError("--last and --since are mutually exclusive: choose one of them")
    if last is not None or since is not None:
        check_past("--since" if last is None else "--last", endpoint, frames)
    if as_objects:
        show = _printed(as_json)
    elif text is not None:
        show = _printed(template(text))
    elif topics_only:
        show = _printed(lambda envelope, _: one_line(envelope.topic))
    elif has_colors(sys.stdout) or sys.stdout.isatty():
        show = _pretty()
    else:
        show = _printed(lambda envelope, body: "{} {} {}{}".format(*as_line(envelope, body)))

    from zroute.cli.listening import Listening, say, while_read
    from zroute.messages.recovery import Since, SinceMode

    counts = {"shown": 0, "sampled out": 0, "undecodable": 0}

    def take(envelope: Envelope) -> None:
        if (listening.taken - 1) % sample:
            counts["sampled out"] += 1
            return
        body = decoded(envelope.body, envelope.codec)
        counts["undecodable"] += bool(body.fault)
        show(envelope, body)
        counts["shown"] += 1
        if counts["shown"] == count:
            listening.stop()

    past = since if last is None else Since(SinceMode.LAST, min(last, 2**64 - 1))
    listening = Listening(source_of(endpoint, frames), patterns, take, access, ignore=ignore, since=past)
    with while_read():
        code = listening.run(wait=wait)
    if not code:
        told = {"received": listening.received, "shown": counts.pop("shown")}
        told |= {name: number for name, number in counts.items() if number}
        say(", ".join(f"{name} {number}" for name, number in (told | listening.told()).items()))
    raise SystemExit(code)


Show = Callable[["Envelope", Body], None]


def _printed(line: Callable[[Envelope, Body], str]) -> Show:
    """Return a function that prints a message as one line, formatted by ``line``.

    Each line is flushed, so that a program that reads the output gets the line immediately.
    """
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]  # JSON is UTF-8
    return lambda envelope, body: print(line(envelope, body), flush=True)


def _pretty() -> Show:
    """Return a function that prints a message in colours.

    It cuts bodies after ``_CLIP`` characters, and shows the number of omitted characters.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def show(envelope: Envelope, body: Body) -> None:
        time, topic, shown, fault = as_line(envelope, body)
        value = coloured(body, shown[:_CLIP])
        line = Text.assemble((time, "dim"), " ", (topic, "bold cyan"), " ", value)
        if len(shown) > _CLIP:
            line.append(f" … and {len(shown) - _CLIP} characters more", "dim")
        console.print(line.append(fault, "red"), soft_wrap=True)

    return show
