"""``zroute top``: show the rate of messages and bytes per topic."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import click

from zroute.cli.options import (
    DURATION,
    PATTERN,
    EndpointType,
    access_options,
    cluster_options,
    frames_option,
    separator_option,
    source_of,
)
from zroute.cli.showing import clock_time, one_line
from zroute.endpoints import Access, Cluster, Endpoint
from zroute.messages.topics import Pattern
from zroute.options import MAX_TOPIC
from zroute.stats import losses

if TYPE_CHECKING:
    from rich.table import Table

    from zroute.messages.wire import Envelope

__all__ = ["Traffic", "command"]

_KEPT = 1000
"""The maximum number of topics with their own line.

People do not read more lines, and the limit bounds the memory if a publisher sends more and more topics.
"""

_SHORTEST = 0.1
"""The minimum interval in seconds. In a shorter interval, rates would be mostly noise."""

_COLUMNS = ("topic", "messages/s", "bytes/s", "messages", "bytes", "last seen")
_TOPIC = 16
"""The minimum width of the topic column. On a narrow terminal, only the first of the other columns are shown."""

_AROUND = 5  # lines of the screen besides the topics: header, others, total, lost, cursor


@click.command("top")
@click.argument("endpoint", type=EndpointType(bind=False, nats=True))
@click.argument("patterns", nargs=-1, type=PATTERN, metavar="[PATTERN…]")
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="The length of each measurement.")
@click.option("--once", is_flag=True, help="Measure one interval, print it and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per interval, each on one line.")
@frames_option
@access_options
@cluster_options
@separator_option()
def command(
    endpoint: Endpoint | Cluster,
    patterns: tuple[Pattern, ...],
    interval: float,
    once: bool,
    as_json: bool,
    frames: str | None,
    access: Access,
) -> None:
    """Show messages and bytes per second for each topic.

    The topic with the highest rate comes first. Connects to ENDPOINT, or binds the address if ENDPOINT begins
    with bind:. ENDPOINT may also be NATS servers, separated by commas. Reads all wires of zroute, or the form in
    --frames.

    Quote patterns, because shells expand them: zroute top tcp://127.0.0.1:5555 'stocks.>'
    """
    if interval < _SHORTEST:
        raise click.UsageError(f"--interval {interval:g}s is too short: use {_SHORTEST:g}s or more")

    from zroute.cli.listening import Listening, say, while_read

    listening = Listening(source_of(endpoint, frames), patterns, lambda envelope: traffic.take(envelope), access)
    traffic = Traffic()  # created last, because the first interval begins here

    def measure() -> None:
        lost = losses(listening.stats)["lost"]
        show(attrs.evolve(traffic.measure(), lost=lost if isinstance(lost, int) else None))

    with while_read(), _output(as_json, live=not once) as show:
        if not once:
            listening.every(interval, measure)
        code = listening.run(seconds=interval if once else None)
        if once and not code:
            measure()
    if not code:
        counts = {"received": listening.received} | listening.told()
        say(", ".join(f"{name} {number}" for name, number in counts.items()))
    raise SystemExit(code)


# -- counting ----------------------------------------------------------------------------------------------


@attrs.frozen
class Rate:
    """The rates of one topic in one interval.

    ``messages`` and ``bytes`` are totals since the start. ``last_seen`` is the arrival time of the last message, in
    seconds since the Unix epoch.
    """

    topic: str
    messages_per_second: float
    bytes_per_second: float
    messages: int
    bytes: int
    last_seen: float


@attrs.frozen
class Measured:
    """The rates of all topics in one interval.

    Attributes:
        time: The end of the interval, in seconds since the Unix epoch.
        interval: The length of the interval in seconds.
        topics: The rates by topic, the highest rate first.
        others: The sum of the rates of topics without their own line, or None.
        lost: The number of messages lost since the start; None if no publisher numbers its messages.
    """

    time: float
    interval: float
    topics: list[Rate]
    others: Rate | None
    lost: int | None = None


@attrs.define
class _Count:
    """The counters of one topic: totals, and counts since the last interval."""

    messages: int = 0
    bytes: int = 0
    recent_messages: int = 0
    recent_bytes: int = 0
    last_seen: float = 0.0

    def add(self, messages: int, size: int, at: float) -> None:
        self.recent_messages += messages
        self.recent_bytes += size
        self.last_seen = max(self.last_seen, at)

    def measure(self, topic: str, seconds: float) -> Rate:
        """End an interval of ``seconds`` seconds, and return the rates in it."""
        self.messages += self.recent_messages
        self.bytes += self.recent_bytes
        rates = round(self.recent_messages / seconds, 3), round(self.recent_bytes / seconds, 3)
        self.recent_messages = self.recent_bytes = 0
        return Rate(topic, *rates, self.messages, self.bytes, self.last_seen)


class Traffic:
    """Counters of messages and bytes by topic, for a limited number of topics.

    After each interval, only the ``kept`` topics with the highest rates keep their counters. The counters of all other
    topics are added up. Within an interval, up to ``2 * kept`` topics have counters, so that a new topic can become one
    of the fastest. A topic of more than `MAX_TOPIC` characters always belongs to the other topics. ``clock`` returns
    the time in seconds.
    """

    def __init__(self, kept: int = _KEPT, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept = kept
        self._clock = clock
        self._began = clock()
        self._topics: dict[str, _Count] = {}
        self._others = _Count()

    def take(self, envelope: Envelope) -> None:
        """Count one message. Its size includes all frames, with topic and header."""
        count = self._topics.get(envelope.topic)
        if count is None:
            count = self._others
            if len(self._topics) < 2 * self._kept and len(envelope.topic) <= MAX_TOPIC:
                count = self._topics[envelope.topic] = _Count()
        count.add(1, sum(map(len, envelope.frames)), envelope.received_at)

    def measure(self) -> Measured:
        """Return the rates since the last call, and begin a new interval."""
        now = self._clock()
        seconds, self._began = max(now - self._began, 1e-9), now
        rates = [count.measure(topic, seconds) for topic, count in self._topics.items()]
        rates.sort(key=lambda rate: (-rate.messages_per_second, -rate.messages, rate.topic))
        # Before the loop, because the rates of the topics that it removes already contain their totals.
        others = [self._others.measure("others", seconds), *rates[self._kept :]]
        for rate in rates[self._kept :]:
            gone = self._topics.pop(rate.topic)
            self._others.messages += gone.messages
            self._others.bytes += gone.bytes
            self._others.last_seen = max(self._others.last_seen, gone.last_seen)
        return Measured(time.time(), round(seconds, 3), rates[: self._kept], _together("others", others))


def _together(name: str, rates: list[Rate]) -> Rate | None:
    """Return the sum of ``rates``, or None if it has no messages."""
    total = Rate(
        name,
        sum(rate.messages_per_second for rate in rates),
        sum(rate.bytes_per_second for rate in rates),
        sum(rate.messages for rate in rates),
        sum(rate.bytes for rate in rates),
        max((rate.last_seen for rate in rates), default=0.0),
    )
    return total if total.messages else None


# -- showing -----------------------------------------------------------------------------------------------

Show = Callable[[Measured], None]


@contextmanager
def _output(as_json: bool, *, live: bool) -> Iterator[Show]:
    """Yield a function that shows an interval.

    The function prints JSON if ``as_json`` is True. Otherwise, if ``live`` is True, it refreshes a table on a terminal.
    In all other cases it prints plain tables one after the other.
    """
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # the encoding of JSON and of topics
    if as_json:
        yield lambda measured: print(_document(measured), flush=True)
    elif live and sys.stdout.isatty():
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(_table([], console.width), console=console, auto_refresh=False) as screen:

            def show(measured: Measured) -> None:
                width, height = console.size
                screen.update(_table(_lines(measured, height), width), refresh=True)

            yield show
    else:
        yield lambda measured: print(_plain_table(_lines(measured)), end="\n\n" if live else "\n", flush=True)


def _document(measured: Measured) -> str:
    """Return the interval as a JSON document in one line."""
    document: dict[str, Any] = attrs.asdict(measured)
    if document["others"]:
        del document["others"]["topic"]
    return one_line(json.dumps(document, ensure_ascii=False))


def _lines(measured: Measured, height: int | None = None) -> list[tuple[str, ...]]:
    """Return the cells of the table, line by line.

    Topics that do not fit on a screen of ``height`` lines are added to the other topics. If ``height`` is None, all
    topics have a line.
    """
    fitting = len(measured.topics) if height is None else max(height - _AROUND, 1)
    shown, rest = measured.topics[:fitting], measured.topics[fitting:]
    others = _together("others", [*rest, *filter(None, [measured.others])])
    total = _together("total", [*shown, *filter(None, [others])])
    lines = [_cells(rate) for rate in (*shown, others, total) if rate is not None]
    return [*lines, ("lost", "", "", f"{measured.lost:,}", "", "")] if measured.lost else lines


def _cells(rate: Rate) -> tuple[str, ...]:
    return (
        one_line(rate.topic),
        f"{rate.messages_per_second:,.1f}",
        f"{_size(round(rate.bytes_per_second))}/s",
        f"{rate.messages:,}",
        _size(rate.bytes),
        clock_time(rate.last_seen)[:8],
    )


def _size(size: int) -> str:
    """Return a number of bytes with a decimal unit, such as ``1.5 kB``."""
    from rich.filesize import decimal

    return decimal(size).replace("bytes", "B").replace("byte", "B")


def _table(lines: list[tuple[str, ...]], width: int) -> Table:
    """Return the table for a terminal of ``width`` columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    fitting = _fitting(lines, width)
    topic, *numbers = _COLUMNS[:fitting]
    table.add_column(topic, overflow="ellipsis", no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line[:fitting]))
    return table


def _fitting(lines: list[tuple[str, ...]], width: int) -> int:
    """Return the number of columns that fit into ``width``, at least two.

    The topic column may shrink to `_TOPIC` characters. The rate of messages is always shown.
    """
    topics, *numbers = [max(map(len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
    left = width - min(topics, _TOPIC)
    for fitting, needed in enumerate(numbers, 1):
        left -= needed + 2  # two spaces between columns
        if left < 0 and fitting > 1:
            return fitting
    return len(_COLUMNS)


def _plain_table(lines: list[tuple[str, ...]]) -> str:
    """Return the table as text, for output that is not a terminal."""
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
    rows = []
    for topic, *numbers in (_COLUMNS, *lines):
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        rows.append("  ".join([topic.ljust(widths[0]), *cells]))
    return "\n".join(rows)
