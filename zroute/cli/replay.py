"""``zroute replay``: publish a recording again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from zroute.cli.loading import fail
from zroute.cli.options import DURATION, PATTERN, EndpointType
from zroute.endpoints import Endpoint
from zroute.messages.topics import Pattern, any_of
from zroute.options import MAX_TOPIC
from zroute.recordings import Recording, RecordingError, read

if TYPE_CHECKING:
    from zroute.cli.sending import Outlet

__all__ = ["command"]

_EXIT_FAILED = 1
_SPEED = re.compile(r"(\d+(?:\.\d+)?)x?")


class _Speed(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A factor of the recorded speed, such as ``10x``."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the factor, which is infinite for ``max``.

        0 and any other text are usage errors.
        """
        match = _SPEED.fullmatch(str(value))
        if value != "max" and (match is None or float(match[1]) == 0):
            self.fail(f"{value!r} is not a speed: write 10x, 0.5x or max", param, ctx)
        return float("inf") if match is None else float(match[1])


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("endpoint", type=EndpointType(bind=True))
@click.option("--speed", type=_Speed(), default="1x", show_default=True, help="10x, 0.5x, or max: without pauses.")
@click.option("--only", type=PATTERN, multiple=True, help="Only topics that match; may be repeated.")
@click.option("--ignore", type=PATTERN, multiple=True, help="Omit topics that match; may be repeated.")
@click.option(
    "--wait", type=DURATION, default=5.0, show_default=True, help="How long to wait for a subscriber; 0 sends at once."
)
def command(
    file: Path, endpoint: Endpoint, speed: float, only: tuple[Pattern, ...], ignore: tuple[Pattern, ...], wait: float
) -> None:
    """Publish the messages in FILE again, with the original pauses.

    Binds ENDPOINT, or connects to it if it begins with connect:. Waits until there is a subscriber to one of the
    topics. Sends the frames exactly as they were recorded, with the old headers, sequence numbers and times.
    """
    chosen = _chooser(only, ignore)
    try:
        recording = read(file)
        found = _look_through(recording, chosen)
    except (RecordingError, OSError) as error:
        fail(_EXIT_FAILED, str(error))
    click.echo(f"zroute: {found.told(recording)}", err=True)
    if not found.chosen:
        fail(_EXIT_FAILED, "there is nothing to replay")

    from zroute.cli.sending import covers, send

    async def replay(outlet: Outlet) -> None:
        with _progress(found.chosen) as show:
            for recorded in recording:
                if chosen(recorded.topic):
                    await outlet.until((recorded.at - found.first) / speed)
                    await outlet.send(recorded.frames)
                    show(outlet.sent)

    raise SystemExit(
        send(
            endpoint,
            replay,
            wait=wait,
            wanted=lambda live: any(covers(live, topic) for topic in found.topics),
            whom="a subscriber to one of its topics",
        )
    )


@attrs.define
class _Found:
    """The contents of a recording.

    Attributes:
        messages: The number of messages in the file.
        chosen: The number of messages that ``--only`` and ``--ignore`` admit.
        first: The time of the first chosen message, in seconds since the recording began.
        last: The time of the last chosen message.
        topics: The topics of the chosen messages, cut to the length that a subscription can have.
    """

    messages: int = 0
    chosen: int = 0
    first: float = 0.0
    last: float = 0.0
    topics: set[bytes] = attrs.field(factory=set)

    def told(self, recording: Recording) -> str:
        """Return a line that describes the contents, and the bytes that were skipped."""
        others = self.messages - self.chosen
        filtered = f", {others} of them left out by --only and --ignore" if others else ""
        torn = f"; its last record is incomplete: {recording.torn} bytes skipped" if recording.torn else ""
        return f"{recording.path} holds {self.messages} messages in {self.last - self.first:.3g} s{filtered}{torn}"


def _look_through(recording: Recording, chosen: Callable[[bytes], bool]) -> _Found:
    """Read the whole recording once, before anything is sent.

    So a broken file is reported at once, and the command knows for which topics it waits for a subscriber.
    Raises RecordingError if the file is broken.
    """
    found = _Found()
    for recorded in recording:
        found.messages += 1
        if chosen(recorded.topic):
            if not found.chosen:
                found.first = recorded.at
            found.last = recorded.at
            found.chosen += 1
            found.topics.add(recorded.topic[:MAX_TOPIC])
    return found


def _chooser(only: tuple[Pattern, ...], ignore: tuple[Pattern, ...]) -> Callable[[bytes], bool]:
    """Return a function that returns True for topics to send.

    ``ignore`` overrides ``only``. Without ``only``, all topics are sent.
    """
    wanted, unwanted = any_of(only), any_of(ignore)
    return lambda topic: (not only or wanted(topic)) and not unwanted(topic)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar, if standard error is a terminal.

    Yields a function to call with the number of messages sent so far.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        bar.add_task("replay", total=total)
        (task,) = bar.tasks

        def show(sent: int) -> None:
            task.completed = sent  # the bar reads it ten times a second; update() would take longer than a send

        yield show
