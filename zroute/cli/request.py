"""``zroute request``: send a request from the shell."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from zroute.cli.input import CODECS, encoder, parse_headers, read_body
from zroute.cli.options import DURATION, EndpointType, access_options, cluster_options, separator_option
from zroute.cli.showing import Body, as_text, coloured, one_line
from zroute.endpoints import Access, Cluster, Endpoint
from zroute.errors import EncodeError, TopicError
from zroute.logs import has_colors
from zroute.messages.topics import topic_bytes

__all__ = ["command"]

_WIRES = ("tracked", "plain")


@click.command("request")
@click.argument("endpoint", type=EndpointType(bind=False, nats=True))
@click.argument("topic")
@click.argument("body", required=False)
@click.option(
    "--timeout",
    type=DURATION,
    default=10.0,
    show_default=True,
    help="Maximum time to wait for the reply, or for each reply of a stream.",
)
@click.option("--stream", is_flag=True, help="Send the request to a handler that yields replies. Print one per line.")
@click.option("--codec", type=click.Choice(CODECS), default="json", show_default=True)
@click.option(
    "--wire",
    type=click.Choice(_WIRES),
    default="tracked",
    show_default=True,
    help="With plain, send only TOPIC and BODY.",
)
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="KEY=VALUE", help="Header of the request. Can be repeated."
)
@access_options
@cluster_options
@separator_option(what="TOPIC", expose_value=True)
def command(
    endpoint: Endpoint | Cluster,
    topic: str,
    body: str | None,
    timeout: float,
    stream: bool,
    codec: str,
    wire: str,
    headers: tuple[str, ...],
    access: Access,
    separator: str,
) -> None:
    """Send a request with BODY to TOPIC, and print the reply.

    Connects to ENDPOINT, or binds the address if ENDPOINT begins with bind:. ENDPOINT may also be NATS servers,
    separated by commas. BODY is JSON text. With --codec text or raw, BODY is sent unchanged. If BODY is -, the body is
    read from standard input. Without BODY, the request has an empty body.

    The exit code is 1 if the server refused the request, failed or disconnected, or if no app on NATS answers TOPIC. It
    is 124 if no reply arrived in time.
    """
    if wire == "plain" and (headers or stream):
        raise click.UsageError(f"--{'header' if headers else 'stream'} needs the tracked wire: omit --wire plain")
    where = "standard input" if body == "-" else "BODY"
    try:
        name = topic_bytes(topic, separator, filled="")
        if not name:
            raise TopicError("the topic of a request can't be empty: no handler has an empty topic", topic=topic)
        fields = parse_headers(headers)
        given = b"" if body is None else encoder(codec)(read_body(body), where)

        from zroute.cli.asking import Question, ask

        question = Question(name, "raw" if body is None else codec, given, fields, timeout, stream, wire == "tracked")
        if isinstance(endpoint, Cluster):
            from zroute.cli.asking_on_nats import ask_on_nats

            raise SystemExit(ask_on_nats(endpoint, question, _shower()))
        raise SystemExit(ask(endpoint, question, _shower(), access))
    except (TopicError, EncodeError) as error:
        raise click.UsageError(str(error)) from error


def _shower() -> Callable[[Body], None]:
    """Return a function that prints a reply, in colours on a terminal.

    The function flushes each line, so that a program that reads the output gets the line immediately.
    """
    if has_colors(sys.stdout):
        from rich.console import Console

        console = Console(highlight=False)

        def show(body: Body) -> None:
            text = coloured(body, as_text(body.value))
            console.print(text.append(_fault(body), "red"), soft_wrap=True)

        return show
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]  # JSON is UTF-8
    return lambda body: print(as_text(body.value) + _fault(body), flush=True)


def _fault(body: Body) -> str:
    return f" ({one_line(body.fault)})" if body.fault else ""
