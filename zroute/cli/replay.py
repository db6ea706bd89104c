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
    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Times the recorded speed; infinite for ``max``."""
        match = _SPEED.fullmatch(str(value))
        if value != "max" and (match is None or float(match[1]) == 0):
            self.fail(f"{value!r} is no speed: write 10x, 0.5x or max", param, ctx)
        return float("inf") if match is None else float(match[1])


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("endpoint", type=EndpointType(bind=True))
@click.option("--speed", type=_Speed(), default="1x", show_default=True, help="10x, 0.5x, or max: without pauses.")
@click.option("--only", type=PATTERN, multiple=True, help="Only topics that match; may be repeated.")
@click.option("--ignore", type=PATTERN, multiple=True, help="Not topics that match; may be repeated.")
@click.option("--wait", type=DURATION, default=5.0, show_default=True, help="For a subscriber; 0 sends at once.")
def command(
    file: Path, endpoint: Endpoint, speed: float, only: tuple[Pattern, ...], ignore: tuple[Pattern, ...], wait: float
) -> None:
    """Publish the messages in FILE again, with the pauses they came with.

    Binds ENDPOINT, unless it begins with connect:, and waits until somebody subscribes to one of the topics.
    The frames are sent exactly as they were recorded, so headers, sequence numbers and times are the old ones.
    """
    chosen = _chooser(only, ignore)
    try:
        recording = read(file)
        found = _look_through(recording, chosen)
    except (RecordingError, OSError) as error:
        fail(_EXIT_FAILED, str(error))
    click.echo(f"zroute: {found.told(recording)}", err=True)
    if not found.chosen:
        fail(_EXIT_FAILED, "so there is nothing to replay")

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
    """What a recording holds: ``first`` and ``last`` are the times of the chosen messages, in seconds.

    ``topics`` are those of the chosen ones, up to the length that a subscription can have.
    """

    messages: int = 0
    chosen: int = 0
    first: float = 0.0
    last: float = 0.0
    topics: set[bytes] = attrs.field(factory=set)

    def told(self, recording: Recording) -> str:
        """In a line."""
        others = self.messages - self.chosen
        filtered = f", {others} of them left out by --only and --ignore" if others else ""
        torn = f"; its last record is torn, and {recording.torn} bytes are skipped" if recording.torn else ""
        return f"{recording.path} holds {self.messages} messages in {self.last - self.first:.3g} s{filtered}{torn}"


def _look_through(recording: Recording, chosen: Callable[[bytes], bool]) -> _Found:
    """All of it once, before anything is sent: a broken file is told at once, and whom to wait for is known."""
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
    """Whether a topic is to be sent."""
    wanted, unwanted = any_of(only), any_of(ignore)
    return lambda topic: (not only or wanted(topic)) and not unwanted(topic)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; called with the number of messages sent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        bar.add_task("replay", total=total)
        (task,) = bar.tasks

        def show(sent: int) -> None:
            task.completed = sent  # the bar looks at it ten times a second; update() would cost more than a send

        yield show
