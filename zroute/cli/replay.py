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
from zroute.cli.options import DURATION, PATTERN, EndpointType, access_options, in_form, separator_option
from zroute.endpoints import Access, Endpoint
from zroute.errors import PeerError, SetupError
from zroute.messages.topics import Pattern, any_of
from zroute.options import MAX_TOPIC
from zroute.recordings import Recorded, Recording, RecordingError, read
from zroute.runtime.exit_codes import EXIT_FAILED

if TYPE_CHECKING:
    from zroute.cli.sending import SocketSender

__all__ = ["command"]

_BODY_MAX = 64 * 1024 * 1024  # bytes; a record is no larger
_SPEED = re.compile(r"(\d+(?:\.\d+)?)x?")


class _Speed(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A factor of the recorded speed, such as ``10x``."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the factor, which is infinite for ``max``.

        0 and text in any other form are usage errors.
        """
        match = _SPEED.fullmatch(str(value))
        if value != "max" and (match is None or float(match[1]) == 0):
            self.fail(f"{value!r} is not a speed: write 10x, 0.5x or max", param, ctx)
        return float("inf") if match is None else float(match[1])


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("endpoint", type=EndpointType(bind=True))
@click.option(
    "--speed",
    type=_Speed(),
    default="1x",
    show_default=True,
    help="Speed of sending, such as 10x, 0.5x, or max (without pauses).",
)
@click.option("--only", type=PATTERN, multiple=True, help="Send only topics that match PATTERN. Can be repeated.")
@click.option("--ignore", type=PATTERN, multiple=True, help="Omit topics that match PATTERN. Can be repeated.")
@click.option(
    "--wait",
    type=DURATION,
    default=5.0,
    show_default=True,
    help="Maximum time to wait for a subscriber. 0 sends at once.",
)
@access_options
@separator_option()
def command(
    file: Path,
    endpoint: Endpoint,
    speed: float,
    only: tuple[Pattern, ...],
    ignore: tuple[Pattern, ...],
    wait: float,
    access: Access,
) -> None:
    """Publish the messages in FILE again, with the original pauses.

    Binds ENDPOINT, or connects if ENDPOINT begins with connect:. Waits until one of the topics has a subscriber. Sends
    the frames exactly as they were recorded, with the original headers, sequence numbers and times. Messages
    that were recorded with zroute record --frames are also sent unchanged.
    """
    chosen = _chooser(only, ignore)
    try:
        recording = read(file)
        topic_of = _topics(recording)
        found = _look_through(recording, topic_of, chosen)
    except (RecordingError, PeerError, OSError) as error:
        fail(EXIT_FAILED, str(error))
    click.echo(f"zroute: {found.told(recording)}", err=True)
    if not found.chosen:
        fail(EXIT_FAILED, "the recording has no messages to replay")

    from zroute.cli.sending import covers, send

    async def replay(sender: SocketSender) -> None:
        with _progress(found.chosen) as show:
            for recorded in recording:
                if chosen(topic_of(recorded)):
                    await sender.until((recorded.at - found.first) / speed)
                    await sender.send(recorded.frames)
                    show(sender.sent)

    raise SystemExit(
        send(
            endpoint,
            replay,
            wait=wait,
            wanted=lambda live: any(covers(live, topic) for topic in found.topics),
            whom="a subscriber to one of the recorded topics",
            access=access,
        )
    )


@attrs.define
class _Found:
    """The contents of a recording.

    Attributes:
        messages: The number of messages in the file.
        chosen: The number of messages that ``--only`` and ``--ignore`` select.
        first: The time of the first chosen message, in seconds since the recording began.
        last: The time of the last chosen message.
        topics: The topics of the chosen messages, cut to the maximum length of a subscription.
    """

    messages: int = 0
    chosen: int = 0
    first: float = 0.0
    last: float = 0.0
    topics: set[bytes] = attrs.field(factory=set)

    def told(self, recording: Recording) -> str:
        """Return a line that describes the contents and the skipped bytes."""
        others = self.messages - self.chosen
        filtered = f", {others} of them excluded by --only and --ignore" if others else ""
        torn = f"; the last record is incomplete: {recording.torn} bytes skipped" if recording.torn else ""
        return f"{recording.path} contains {self.messages} messages in {self.last - self.first:.3g} s{filtered}{torn}"


def _topics(recording: Recording) -> Callable[[Recorded], bytes]:
    """Return the function that finds the topic of a recorded message.

    Raises RecordingError if the head of the recording contains an unknown message form. The function raises
    EnvelopeError for a message of another form.
    """
    if recording.frames is None:
        return lambda recorded: recorded.topic
    try:
        form = in_form(Endpoint("", bind=False), recording.frames).form
        parse = None if form is None else form.parser(_BODY_MAX, str(recording.path))
    except SetupError as error:
        text = f"the recording contains messages of an unknown form: {error.text}"
        raise RecordingError(text, path=recording.path) from error
    if parse is None:
        return lambda recorded: recorded.topic
    return lambda recorded: bytes(parse(recorded.frames).topic)


def _look_through(
    recording: Recording, topic_of: Callable[[Recorded], bytes], chosen: Callable[[bytes], bool]
) -> _Found:
    """Read the whole recording once before sending.

    A broken file is then reported at once, and the command knows the topics for which it must wait for a subscriber.
    Raises RecordingError if the file is broken.
    """
    found = _Found()
    for recorded in recording:
        found.messages += 1
        topic = topic_of(recorded)
        if chosen(topic):
            if not found.chosen:
                found.first = recorded.at
            found.last = recorded.at
            found.chosen += 1
            found.topics.add(topic[:MAX_TOPIC])
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
            task.completed = sent  # the bar reads this ten times a second; update() is slower than a send

        yield show
