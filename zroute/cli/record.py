"""``zroute record``: write the messages of a publisher to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zroute.cli.loading import fail
from zroute.cli.options import (
    DURATION,
    PATTERN,
    EndpointType,
    access_options,
    check_past,
    cluster_options,
    frames_option,
    separator_option,
    source_of,
)
from zroute.endpoints import Access, Cluster, Endpoint
from zroute.messages.topics import Pattern
from zroute.recordings import Writer
from zroute.runtime.exit_codes import EXIT_FAILED

if TYPE_CHECKING:
    from zroute.messages.wire import Envelope

__all__ = ["command"]

_SHOWN_EVERY = 0.25  # seconds between two updates of the progress line on a terminal


@click.command("record")
@click.argument("endpoint", type=EndpointType(bind=False, nats=True))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("patterns", nargs=-1, type=PATTERN, metavar="[PATTERN…]")
@click.option(
    "--ignore",
    type=PATTERN,
    multiple=True,
    metavar="'PATTERN'",
    help="Omit topics that match PATTERN. Can be repeated.",
)
@click.option("--for", "seconds", type=DURATION, help="Stop after this time, such as 10s, 500ms or 2m.")
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N messages are recorded.")
@click.option("--wait", type=DURATION, help="Exit with code 124 if no message arrives within this time.")
@click.option("--from-start", is_flag=True, help="First record the messages in the publishers' histories.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@frames_option
@access_options
@cluster_options
@separator_option()
def command(
    endpoint: Endpoint | Cluster,
    file: Path,
    patterns: tuple[Pattern, ...],
    ignore: tuple[Pattern, ...],
    seconds: float | None,
    count: int | None,
    wait: float | None,
    from_start: bool,
    force: bool,
    frames: str | None,
    access: Access,
) -> None:
    """Write the messages of a publisher to FILE, until a signal.

    Connects to ENDPOINT, or binds the address if ENDPOINT begins with bind:. ENDPOINT may also be NATS servers,
    separated by commas. Stores the unchanged frames
    of each message, and the time of arrival. Reads all wires of zroute, or the form in --frames. zroute replay
    publishes the messages again. If no message arrives, no file is written.

    Quote patterns, because shells expand them: zroute record tcp://127.0.0.1:5555 quotes.rec 'stocks.>'
    """
    from zroute.cli.listening import Listening, say
    from zroute.messages.recovery import Since, SinceMode

    if from_start:
        check_past("--from-start", endpoint, frames)
    try:
        writer = Writer(
            file,
            began_at=time.time(),
            source=endpoint.address if isinstance(endpoint, Cluster) else str(endpoint),
            frames=frames,
            overwrite=force,
        )
    except FileExistsError:
        raise click.UsageError(
            f"{file} already exists: choose another name, or replace the file with --force"
        ) from None
    except OSError as error:
        fail(EXIT_FAILED, f"{file} can't be written: {error.strerror}")
    began = time.monotonic()

    def take(envelope: Envelope) -> None:
        if not pending:  # flush once per turn of the reactor: a kill loses the messages of one turn at most
            pending.append(listening.reactor.callLater(0, flush))
        writer.write(time.monotonic() - began, envelope.frames)
        if writer.messages == count:
            listening.stop()

    def flush() -> None:
        pending.clear()
        listening.guarded(writer.flush)

    pending: list[object] = []
    past = Since(SinceMode.ALL) if from_start else None
    listening = Listening(source_of(endpoint, frames), patterns, take, access, ignore=ignore, since=past)
    try:
        with writer, _progress(writer) as show:
            if show is not None:
                listening.every(_SHOWN_EVERY, show)
            code = listening.run(wait=wait, seconds=seconds)
    except OSError as error:  # for example a full disk; the flushed messages remain a valid recording
        fail(EXIT_FAILED, f"{file}: writing failed after {writer.messages} messages: {error.strerror or error}")
    if not writer.messages:
        say(f"no message arrived, so {file} was not written")
    told = {"recorded": writer.messages, "bytes": writer.bytes} | listening.told()
    say(", ".join(f"{name} {number}" for name, number in told.items()))
    raise SystemExit(code)


@contextmanager
def _progress(writer: Writer) -> Iterator[Callable[[], None] | None]:
    """Show a line that counts messages and bytes, if standard error is a terminal.

    Yields a function that refreshes the line, or None if there is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import FileSizeColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    counted = TextColumn("{task.fields[messages]} messages")
    console = Console(stderr=True)
    with Progress(SpinnerColumn(), counted, FileSizeColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("", total=None, messages=0)
        yield lambda: bar.update(task, completed=writer.bytes, messages=writer.messages)
