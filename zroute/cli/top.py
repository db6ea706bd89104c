"""``zroute top``: how much a publisher sends, and on which topics."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import click

from zroute.cli.options import DURATION, PATTERN, EndpointType
from zroute.cli.showing import clock_time, one_line
from zroute.endpoints import Endpoint
from zroute.messages.topics import Pattern
from zroute.options import MAX_TOPIC
from zroute.stats import losses

if TYPE_CHECKING:
    from rich.table import Table

    from zroute.messages.wire import Envelope

__all__ = ["Traffic", "command"]

_KEPT = 1000
"""Topics that have a line of their own: more than anybody reads, and a bound for publishers that make up topics."""

_SHORTEST = 0.1
"""Seconds of an interval: rates of a shorter one would be noise."""

_COLUMNS = ("topic", "messages/s", "bytes/s", "messages", "bytes", "last seen")
_TOPIC = 16
"""Characters that a topic has at least: a narrow terminal shows fewer of the other columns, the last ones first."""

_AROUND = 5  # lines of the screen that the table needs beside its topics: its head, others, total, lost, the cursor's


@click.command("top")
@click.argument("endpoint", type=EndpointType(bind=False))
@click.argument("patterns", nargs=-1, type=PATTERN, metavar="[PATTERN…]")
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="How long is measured each time.")
@click.option("--once", is_flag=True, help="Measure one interval, print it and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line, one an interval.")
def command(endpoint: Endpoint, patterns: tuple[Pattern, ...], interval: float, once: bool, as_json: bool) -> None:
    """Show how many messages and bytes a second come on which topics, the fastest first.

    Connects to ENDPOINT, or binds it if it begins with bind:. Patterns are quoted, because shells expand
    them: zroute top tcp://127.0.0.1:5555 'stocks.>'
    """
    if interval < _SHORTEST:
        raise click.UsageError(f"--interval {interval:g}s is too short to measure: give {_SHORTEST:g}s or more")

    from zroute.cli.listening import Listening, say, while_read

    listening = Listening((endpoint,), patterns, lambda envelope: traffic.take(envelope))
    traffic = Traffic()  # after the above, which takes time that is not to be measured

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
    """One topic in one interval; ``messages`` and ``bytes`` are totals, ``last_seen`` is in Unix seconds."""

    topic: str
    messages_per_second: float
    bytes_per_second: float
    messages: int
    bytes: int
    last_seen: float


@attrs.frozen
class Measured:
    """All topics in one interval, the fastest first; ``others`` are those that have no line of their own.

    ``lost`` is how many messages were lost since the start; None if no publisher has numbered any.
    """

    time: float
    interval: float
    topics: list[Rate]
    others: Rate | None
    lost: int | None = None


@attrs.define
class _Count:
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
        """What came in the interval that ends here."""
        self.messages += self.recent_messages
        self.bytes += self.recent_bytes
        rates = round(self.recent_messages / seconds, 3), round(self.recent_bytes / seconds, 3)
        self.recent_messages = self.recent_bytes = 0
        return Rate(topic, *rates, self.messages, self.bytes, self.last_seen)


class Traffic:
    """Messages and bytes by topic, for a bounded number of topics; ``clock`` gives seconds.

    Within an interval twice as many topics are counted as are kept, so that the fastest can be found among
    new ones too. Topics of over `MAX_TOPIC` characters are among the others.
    """

    def __init__(self, kept: int = _KEPT, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept = kept
        self._clock = clock
        self._began = clock()
        self._topics: dict[str, _Count] = {}
        self._others = _Count()

    def take(self, envelope: Envelope) -> None:
        """Count one message with all its frames, topic and header included: what it was on the wire."""
        count = self._topics.get(envelope.topic)
        if count is None:
            count = self._others
            if len(self._topics) < 2 * self._kept and len(envelope.topic) <= MAX_TOPIC:
                count = self._topics[envelope.topic] = _Count()
        count.add(1, sum(map(len, envelope.frames)), envelope.received_at)

    def measure(self) -> Measured:
        """End an interval and begin the next."""
        now = self._clock()
        seconds, self._began = max(now - self._began, 1e-9), now
        rates = [count.measure(topic, seconds) for topic, count in self._topics.items()]
        rates.sort(key=lambda rate: (-rate.messages_per_second, -rate.messages, rate.topic))
        others = [self._others.measure("others", seconds), *rates[self._kept :]]
        for rate in rates[self._kept :]:
            gone = self._topics.pop(rate.topic)
            self._others.messages += gone.messages
            self._others.bytes += gone.bytes
            self._others.last_seen = max(self._others.last_seen, gone.last_seen)
        return Measured(time.time(), round(seconds, 3), rates[: self._kept], _together("others", others))


def _together(name: str, rates: list[Rate]) -> Rate | None:
    """The sum of ``rates``; None where nothing has come."""
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
    """How to show an interval: JSON, a table that is renewed, or plain tables one after the other."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # which JSON is in, and topics are
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
    document: dict[str, Any] = attrs.asdict(measured)
    if document["others"]:
        del document["others"]["topic"]
    return one_line(json.dumps(document, ensure_ascii=False))


def _lines(measured: Measured, height: int | None = None) -> list[tuple[str, ...]]:
    """The cells of the table; topics that do not fit into ``height`` lines are among the others."""
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
    """Return how many columns fit beside topics of `_TOPIC` characters, the rate of messages always among them."""
    topics, *numbers = [max(map(len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
    left = width - min(topics, _TOPIC)
    for fitting, needed in enumerate(numbers, 1):
        left -= needed + 2  # and two spaces between columns
        if left < 0 and fitting > 1:
            return fitting
    return len(_COLUMNS)


def _plain_table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
    rows = []
    for topic, *numbers in (_COLUMNS, *lines):
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        rows.append("  ".join([topic.ljust(widths[0]), *cells]))
    return "\n".join(rows)
