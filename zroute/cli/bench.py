"""``zroute bench``: measure message rate, CPU time and latency.

A measurement has two ends: a publisher and a subscriber. Each end runs in its own process (`zroute.cli.measuring`),
even if this command starts only one end. The main process draws the progress bar and waits for signals, so that this
work does not affect the figures.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from zroute.cli.options import DURATION, EndpointType, option
from zroute.endpoints import Endpoint
from zroute.options import MAX_MESSAGE, SENT_MAX
from zroute.runtime.exit_codes import EXIT_FAILED
from zroute.runtime.signals import ENDING, StopSignals, waking_descriptor

__all__ = ["command"]

_ANYWHERE = Endpoint("tcp://127.0.0.1:*", bind=True)
_SECONDS = 5.0
_SIZE = 128  # bytes: a small record
_QUEUE_MAX = 1_000_000_000
"""The maximum memory of full queues in bytes. Without ``--rate``, the queues fill up."""
_QUEUED = SENT_MAX
_BEHIND = 0.05  # seconds: a larger delay behind the requested rate causes a note
_SMALLEST = 64  # minimum bytes of a body: the number, the time and their field names take most of them

_NAMES = {"pub": "publisher", "sub": "subscriber"}

_OPEN_HOSTS = {"//0.0.0.0:": "//127.0.0.1:", "//[::]:": "//[::1]:", "//*:": "//127.0.0.1:"}
"""Maps each host that binds all interfaces to the local host to connect to."""


@click.command("bench")
@click.argument("endpoint", type=EndpointType(bind=True), required=False)
@click.option(
    "--pub",
    type=EndpointType(bind=True),
    metavar="ENDPOINT",
    help="Only publish to ENDPOINT, for zroute bench --sub in another terminal.",
)
@click.option(
    "--sub",
    type=EndpointType(bind=False),
    metavar="ENDPOINT",
    help="Only subscribe to ENDPOINT, for zroute bench --pub in another terminal.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages per second. [default: the maximum]")
@click.option("--size", type=click.IntRange(_SMALLEST, MAX_MESSAGE), help="The size of a body in bytes. [default: 128]")
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N messages are sent.")
@click.option("--for", "seconds", type=DURATION, help="Stop after this time. [default: 5s without --count]")
@click.option("--wait", type=DURATION, default="30s", show_default=True, help="Maximum time to wait for the other end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@option("--insecure", is_flag=True, help="Bind an address that other hosts can reach.")
def command(
    endpoint: Endpoint | None,
    pub: Endpoint | None,
    sub: Endpoint | None,
    rate: float | None,
    size: int | None,
    count: int | None,
    seconds: float | None,
    wait: float,
    as_json: bool,
    insecure: bool,
) -> None:
    """Measure message rate, CPU time and latency.

    By default, this command runs both ends, the publisher and the subscriber. The publisher binds ENDPOINT, or a free
    port of this machine. To measure between two terminals or machines, run one command with --pub and
    one with --sub. To measure a proxy between the two ends, give both options to one command: --pub connect:tcp://…
    --sub tcp://…

    Without --rate, the publisher sends as fast as the subscriber reads, and no message is dropped. With --rate, a full
    queue drops messages, as in any zroute publisher, and the subscriber counts them as lost. Ctrl-C ends the
    measurement early.
    """
    if sub and not pub and any(given is not None for given in (rate, size, count, seconds)):
        raise click.UsageError(
            "--rate, --size, --count and --for are options of the publisher: use them in the command with --pub"
        )
    size = size or _SIZE
    _check_endpoints(endpoint, pub, sub)
    _check_load(rate, size, seconds)
    if seconds is None and count is None:
        seconds = _SECONDS
    orders = _orders(endpoint, pub, sub, wait, insecure=insecure)
    if "pub" in orders:
        orders["pub"]["workload"] = {"rate": rate, "size": size, "count": count, "seconds": seconds}
    with _progress() as show:
        code, result = _Bench(orders, show).run()
    if result is None:
        if not code:
            _say("the measurement stopped before the first message")
        raise SystemExit(code)
    print(json.dumps(_document(result), indent=2) if as_json else _table(result), flush=True)
    raise SystemExit(code or _verdict(result))


def _check_endpoints(endpoint: Endpoint | None, pub: Endpoint | None, sub: Endpoint | None) -> None:
    """Raise a usage error for endpoints that do not connect the two processes."""
    if endpoint is not None and (pub or sub):
        raise click.UsageError("ENDPOINT can't be combined with --pub or --sub: omit ENDPOINT")
    if endpoint is not None and not endpoint.bind:
        raise click.UsageError(
            "one of the two ends must bind the endpoint: to connect both ends to a proxy, use --pub and --sub"
        )
    for given in filter(None, (endpoint, pub, sub)):
        if given.address.startswith("inproc:"):
            raise click.UsageError(
                f"{given.address} can only be reached inside one process, but each end runs in its own process: use "
                "tcp:// or ipc://"
            )


def _check_load(rate: float | None, size: int, seconds: float | None) -> None:
    """Raise a usage error for a load that is unmeasurable or takes too much memory."""
    if seconds == 0:
        raise click.UsageError("--for 0 leaves no time to measure: use a longer time")
    if rate is not None and not math.isfinite(rate):
        raise click.UsageError(
            f"--rate {rate} is not a number of messages per second: use a finite number, or omit --rate for the maximum"
        )
    if rate is None and size * _QUEUED > _QUEUE_MAX:
        raise click.UsageError(
            f"--size {size} without --rate could fill a queue of {_QUEUED:,} messages with "
            f"{_amount(size * _QUEUED)}: add --rate, or use a smaller --size"
        )


def _orders(
    endpoint: Endpoint | None, pub: Endpoint | None, sub: Endpoint | None, wait: float, *, insecure: bool
) -> dict[str, Any]:
    """Return the known fields of each `zroute.cli.measuring.Order`, by role.

    A subscriber without an address gets the publisher's address as soon as the publisher has bound it.
    """
    both = not (pub or sub)
    publish_to = pub or (endpoint or _ANYWHERE if both else None)
    orders: dict[str, Any] = {}
    if publish_to is not None:
        orders["pub"] = {"address": publish_to.address, "bind": publish_to.bind}
    if sub is not None or both:
        orders["sub"] = {"address": sub.address if sub else None, "bind": bool(sub and sub.bind)}
        orders["sub"]["alone"] = "pub" in orders
    return {role: order | {"role": role, "wait": wait, "insecure": insecure} for role, order in orders.items()}


# -- the two processes -------------------------------------------------------------------------------------

Show = Callable[[dict[str, Any]], None]


class _Child:
    """A process that runs one end.

    The process stops when its standard input is closed. The system closes this input if the main process dies.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zroute.cli.measuring", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C must reach only the main process, which stops one end after the other
        )
        self._rest = b""

    def told(self) -> list[dict[str, Any]] | None:
        """Return the new reports of the process, or None if the process has ended.

        Call this only when the output of the process is readable.
        """
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 65_536)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """Ask the process to stop. Further calls have no effect."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end_now(self) -> None:
        """Kill the process, and wait for its end."""
        self.process.kill()
        self.process.wait()


class _Bench:
    """The processes of one measurement.

    This class starts both ends, the publisher first. If one end fails, it stops the other end.
    """

    def __init__(self, orders: dict[str, Any], show: Show) -> None:
        self._orders = orders
        self._show = show
        self._children: dict[str, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._publishes, self._subscribes = "pub" in orders, "sub" in orders
        self._result: dict[str, Any] | None = None
        self._signals = StopSignals(self._stop, self._end_now)
        self._code = 0

    def run(self) -> tuple[int, dict[str, Any] | None]:
        """Run the measurement, and return the exit code and the result.

        The exit code is the first code of an end that is not 0, or 1 if the subscriber ended without a result. The
        result is None if no message was measured.
        """
        woken = waking_descriptor()
        self._selector.register(woken, selectors.EVENT_READ)
        for number in ENDING:
            signal.signal(number, self._signals)
        try:
            self._start(next(iter(self._orders)))
            while self._children:
                for key, _ in self._selector.select():
                    if key.fd == woken:
                        os.read(woken, 1)  # after this read, Python runs the signal handler
                    else:
                        self._read(key.data)
        finally:
            for child in self._children.values():
                child.end_now()
        interrupted = self._signals.arrived
        if self._subscribes and not self._code and not interrupted and "received" not in (self._result or {}):
            self._code = EXIT_FAILED  # the numbers of messages were not compared
            _say("the subscriber ended without a result")
        if self._result is not None:
            self._result["interrupted"] = interrupted
        return self._code, self._result

    def _start(self, role: str) -> None:
        order = self._orders.pop(role)
        child = self._children[role] = _Child(order)
        self._selector.register(child.process.stdout, selectors.EVENT_READ, role)  # type: ignore[arg-type]  # piped

    def _read(self, role: str) -> None:
        """Handle the new reports of one end."""
        child = self._children[role]
        told = child.told()
        if told is None:
            self._ended(role, child)
            return
        for line in told:
            ((what, value),) = list(line.items())[:1]
            if what == "open":
                self._opened(role, value)
            elif what == "progress":
                self._show(value | {"role": role})
            elif what == "say":
                _say(value)
            elif what == "result" and not (
                role == "pub" and self._result
            ):  # the result of the subscriber includes the publisher's
                self._result = value

    def _opened(self, role: str, address: str) -> None:
        """Start the subscriber at ``address``, or print which end is missing."""
        if role == "sub":
            if not self._publishes:
                _say(f"subscribing to {address}, waiting for zroute bench --pub")
            return
        if not self._subscribes:
            _say(f"publishing to {address}, waiting for zroute bench --sub")
            return
        if self._orders["sub"]["address"] is None:
            for bound, reachable in _OPEN_HOSTS.items():
                address = address.replace(bound, reachable)
            self._orders["sub"]["address"] = address
        if not self._signals.arrived:
            self._start("sub")

    def _ended(self, role: str, child: _Child) -> None:
        """Record the exit code of one end, and stop the other end if it has no more work."""
        self._selector.unregister(child.process.stdout)  # type: ignore[arg-type]
        del self._children[role]
        child.stop()
        code = child.process.wait()
        if code < 0:
            _say(f"the process of the {_NAMES[role]} was ended by {signal.Signals(-code).name}")
        self._code = self._code or (EXIT_FAILED if code < 0 else code)
        unsent = self._signals.arrived and self._result is None  # the subscriber would wait for the load
        if code or role == "sub" or unsent:
            for other in self._children.values():
                other.stop()

    def _stop(self) -> None:
        """Stop the publisher if it runs here, else the subscriber.

        The publisher reports the number of messages to the subscriber, which then ends by itself.
        """
        first = self._children.get("pub") or self._children.get("sub")
        if first is not None:
            first.stop()

    def _end_now(self, number: int) -> None:
        raise SystemExit(128 + number)


def _say(text: str) -> None:
    print(f"zroute: {text}", file=sys.stderr, flush=True)


@contextmanager
def _progress() -> Iterator[Show]:
    """Show a progress bar, if standard error is a terminal.

    Yields a function that takes the progress reports of an end. Other lines appear above the bar.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=1.0, start=True)
        roles: set[str] = set()

        def show(progress: dict[str, Any]) -> None:
            roles.add(progress["role"])
            text = f"{progress['messages']:,} messages"
            if progress["role"] == "sub":
                text += f", {progress['lost']:,} lost"
            if progress["role"] == "sub" or "sub" not in roles:
                bar.update(task, completed=progress["part"], description=text, refresh=True)

        yield show


# -- the result ---------------------------------------------------------------------------------------------


def _verdict(result: dict[str, Any]) -> int:
    """Return 0 if every message is accounted for, else 1.

    The counts must add up: every message is received or counted as lost. They must also be complete: the publisher has
    reported the number of messages. An interrupted measurement may be incomplete.
    """
    if "received" not in result:
        return 0
    return 0 if result["holds"] and (result["complete"] or result["interrupted"]) else 1


def _document(result: dict[str, Any]) -> dict[str, Any]:
    """Return the document of ``--json``.

    The document contains the measured figures, and the rates and CPU times per message.
    """
    publisher, here = result["publisher"], "received" in result
    workload: dict[str, Any] = publisher["workload"] if publisher else {"rate": None, "size": 0}
    document: dict[str, Any] = {
        "rate": workload["rate"],
        "size": publisher and workload["size"],
        "publisher": publisher
        and _quotients(publisher["sent"], workload["size"], publisher)
        | {name: publisher[name] for name in ("host", "behind")},
        "interrupted": result["interrupted"],
    }
    if here:
        document["subscriber"] = _quotients(result["received"], workload["size"], result) | {"host": result["host"]}
        names = ("sent", "received", "lost", "before_join", "holds", "complete", "latency_us", "early")
        document |= {name: result[name] for name in names}
    else:
        document["sent"] = publisher["sent"]
    return document


def _quotients(number: int, size: int, measured: dict[str, Any]) -> dict[str, Any]:
    """Return the rates and the CPU time per message of one end.

    ``number`` messages have ``number - 1`` intervals between them, so a rate needs at least two messages. A figure is
    None if there are too few messages for it. ``size`` is the size of a body in bytes.
    """
    seconds = measured["seconds"]
    rate = (number - 1) / seconds if number > 1 and seconds > 0 else None
    return {
        "messages": number,
        "seconds": round(seconds, 6),
        "messages_per_second": rate and round(rate, 1),
        "bytes_per_second": rate and round(rate * size, 1),
        "cpu_us_per_message": round(measured["cpu"] / number * 1e6, 3) if number else None,
    }


def _table(result: dict[str, Any]) -> str:
    """Return the result as text: a table, notes and the sum of the messages."""
    document = _document(result)
    ends = {name: document[name] for name in ("publisher", "subscriber") if document.get(name)}
    rows = [("", *ends)]
    for name, key, unit, text in (
        ("messages/s", "messages_per_second", 1, "{:,.0f}"),
        ("MB/s", "bytes_per_second", 1e6, "{:,.2f}"),
        ("CPU/message", "cpu_us_per_message", 1, "{:,.2f} µs"),
    ):
        values = (end[key] for end in ends.values())
        rows.append((name, *("-" if value is None else text.format(value / unit) for value in values)))
    lines = [*_asked(document), _aligned(rows)]
    if document.get("latency_us"):
        latencies = document["latency_us"]
        lines += ["", _aligned([("latency", *latencies), ("", *map(_duration, latencies.values()))])]
    return "\n".join([*lines, "", *_remarks(document), _sum(document)])


def _asked(document: dict[str, Any]) -> Iterator[str]:
    """Yield a line that describes the load, if this command knows the load."""
    if document["publisher"]:
        rate = f"{document['rate']:,.12g} messages per second requested" if document["rate"] else "as fast as possible"
        sent, seconds = document["sent"], document["publisher"]["seconds"]
        messages = f"{sent:,} message{'' if sent == 1 else 's'}"
        yield f"{messages} of {document['size']:,} bytes, sent in {seconds:.2f} s, {rate}\n"


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """Yield the notes that a user needs to understand the figures."""
    publisher, subscriber = document["publisher"], document.get("subscriber")
    if document["interrupted"]:
        yield "A signal ended the measurement early."
    if publisher and document["rate"]:
        yield from _behind(document["rate"], publisher)
    if publisher and subscriber and publisher["host"] != subscriber["host"]:
        yield f"The latency compares the clocks of two hosts: {publisher['host']} and {subscriber['host']}."
    if document.get("early"):
        yield f"{document['early']:,} messages seem to have arrived before they were sent: the clocks differ."
    if publisher and subscriber and document["rate"] is None:
        yield "Without --rate, the latency is mostly time in full queues: use --rate for the latency of the wire."
    if document.get("complete") is False:
        yield "Messages after the last received message are not counted: the publisher did not report its total."
    if document.get("before_join"):
        yield f"{document['before_join']:,} messages were sent before this subscriber joined."


def _behind(rate: float, publisher: dict[str, Any]) -> Iterator[str]:
    """Yield a line if the publisher was slower than the requested rate.

    The latency is measured from the time of publishing, so the latency does not include this delay.
    """
    reached, behind = publisher["messages_per_second"], publisher["behind"]
    if reached is not None and reached < 0.95 * rate:
        yield f"The publisher did not reach the requested rate: {reached:,.0f} of {rate:,.12g} messages per second."
    elif behind > _BEHIND:
        yield f"The publisher sent up to {_duration(behind * 1e6)} late; the latency does not include this delay."


def _sum(document: dict[str, Any]) -> str:
    """Return the last line: the equation sent = received + lost, with numbers."""
    if "received" not in document:
        return f"sent = {document['sent']:,}; the subscriber shows the number of received messages"
    sent, received, lost = document["sent"], document["received"], document["lost"]
    if document["holds"]:
        return f"sent = received + lost: {sent:,} = {received:,} + {lost:,}"
    return f"sent = received + lost does NOT hold: {sent:,} is not {received:,} + {lost:,} = {received + lost:,}"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Return the rows as text: the first column left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def _duration(microseconds: float) -> str:
    """Return a time with three digits, in µs, ms or s."""
    for limit, scale, unit in ((1e3, 1, "µs"), (1e6, 1e3, "ms")):
        if microseconds < limit:
            return f"{microseconds / scale:.3g} {unit}"
    return f"{microseconds / 1e6:.3g} s"


def _amount(size: int) -> str:
    """Return a number of bytes with a decimal unit, such as ``1.5 GB``."""
    from rich.filesize import decimal

    return decimal(size)
