"""``zroute bench``: measure message rate, CPU time and latency.

Each end runs in a process of its own (`zroute.cli.measuring`), even if only one of them runs here. This process
draws the progress bar and waits for signals, which then does not affect the figures.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from zroute.cli.options import DURATION, EndpointType
from zroute.endpoints import Endpoint
from zroute.options import MAX_MESSAGE
from zroute.runtime.signals import ENDING, waking_descriptor

__all__ = ["command"]

_ANYWHERE = Endpoint("tcp://127.0.0.1:*", bind=True)
_SECONDS = 5.0
_SIZE = 128  # bytes: a small record
_QUEUE_MAX = 1_000_000_000
"""Bytes that full queues may hold without a rate. As fast as possible, the queues do become full."""
_QUEUED = 10_000  # messages: SNDHWM of `zroute.options.publisher_options`
_BEHIND = 0.05  # seconds that a publisher may be behind its rate without a remark
_SMALLEST = 64  # bytes of a body: number, time and their names take most of them

_ONE_SIGNAL = 0.2
"""Seconds in which several signals count as one.

timeout(1) signals the process, and immediately afterwards its process group.
"""

_NAMES = {"pub": "publisher", "sub": "subscriber"}

_OPEN_HOSTS = {"//0.0.0.0:": "//127.0.0.1:", "//[::]:": "//[::1]:", "//*:": "//127.0.0.1:"}
"""Addresses bound on all interfaces, and the addresses at which this machine connects to them."""


@click.command("bench")
@click.argument("endpoint", type=EndpointType(bind=True), required=False)
@click.option(
    "--pub", type=EndpointType(bind=True), metavar="ENDPOINT", help="Only publish, to a bench in another terminal."
)
@click.option(
    "--sub", type=EndpointType(bind=False), metavar="ENDPOINT", help="Only subscribe, to a bench in another terminal."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages per second. [default: the maximum]")
@click.option("--size", type=click.IntRange(_SMALLEST, MAX_MESSAGE), help="Bytes of a body. [default: 128]")
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N messages are sent.")
@click.option("--for", "seconds", type=DURATION, help="Stop after this time. [default: 5s without --count]")
@click.option("--wait", type=DURATION, default="30s", show_default=True, help="How long to wait for the other end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
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
) -> None:
    """Measure message rate, CPU time and latency.

    By default both ends run here, over a free port of this machine or over ENDPOINT, which the publisher binds. With
    --pub in one terminal and --sub in another, or on another machine, each command runs one end. With both --pub and
    --sub, both ends run here and meet at something between them, such as a proxy: --pub connect:tcp://…

    Without --rate, the publisher sends as fast as the subscriber reads, and drops no message. With --rate, a full
    queue drops messages, as with any zroute publisher, and the subscriber counts them as lost. Ctrl-C ends the
    measurement early.
    """
    if sub and not pub and any(given is not None for given in (rate, size, count, seconds)):
        raise click.UsageError("--rate, --size, --count and --for belong to the publisher: give them to the other end")
    size = size or _SIZE
    _check_endpoints(endpoint, pub, sub)
    _check_load(rate, size, seconds)
    if seconds is None and count is None:
        seconds = _SECONDS
    for given in filter(None, (endpoint, pub, sub)):
        if given.is_open:
            _say(f"{given.address} is open to the network, without authentication")
    orders = _orders(endpoint, pub, sub, wait)
    if "pub" in orders:
        orders["pub"]["workload"] = {"rate": rate, "size": size, "count": count, "seconds": seconds}
    with _progress() as show:
        code, result = _Bench(orders, show).run()
    if result is None:
        if not code:
            _say("ended before the first message")
        raise SystemExit(code)
    print(json.dumps(_document(result), indent=2) if as_json else _table(result), flush=True)
    raise SystemExit(code or _verdict(result))


def _check_endpoints(endpoint: Endpoint | None, pub: Endpoint | None, sub: Endpoint | None) -> None:
    """Raise a usage error for endpoints that two processes can't use together."""
    if endpoint is not None and (pub or sub):
        raise click.UsageError("ENDPOINT is for both ends: omit it with --pub or --sub")
    if endpoint is not None and not endpoint.bind:
        raise click.UsageError("one of the two ends must bind: if both connect to a proxy, give --pub and --sub")
    for given in filter(None, (endpoint, pub, sub)):
        if given.address.startswith("inproc:"):
            raise click.UsageError(
                f"{given.address} can only be reached inside its own process, but each end has one: use tcp:// or ipc://"
            )


def _check_load(rate: float | None, size: int, seconds: float | None) -> None:
    """Raise a usage error for a load that is unmeasurable or takes too much memory."""
    if seconds == 0:
        raise click.UsageError("--for 0 leaves no time to measure: give a longer time")
    if rate is not None and not math.isfinite(rate):
        raise click.UsageError(f"--rate {rate}: give a number of messages per second, or omit it for the maximum")
    if rate is None and size * _QUEUED > _QUEUE_MAX:
        raise click.UsageError(
            f"--size {size} without --rate could fill a queue of {_QUEUED:,} messages with "
            f"{_amount(size * _QUEUED)}: give a --rate"
        )


def _orders(endpoint: Endpoint | None, pub: Endpoint | None, sub: Endpoint | None, wait: float) -> dict[str, Any]:
    """Return the known fields of `zroute.cli.measuring.Order`, by role.

    A subscriber without an address gets that of the publisher, when the publisher has bound it.
    """
    both = not (pub or sub)
    publish_to = pub or (endpoint or _ANYWHERE if both else None)
    orders: dict[str, Any] = {}
    if publish_to is not None:
        orders["pub"] = {"address": publish_to.address, "bind": publish_to.bind}
    if sub is not None or both:
        orders["sub"] = {"address": sub.address if sub else None, "bind": bool(sub and sub.bind)}
        orders["sub"]["alone"] = "pub" in orders
    return {role: order | {"role": role, "wait": wait} for role, order in orders.items()}


# -- the two processes -------------------------------------------------------------------------------------

Show = Callable[[dict[str, Any]], None]


class _Child:
    """A process that runs one end.

    Its standard input is closed to make it stop. The system closes it too if this process dies.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zroute.cli.measuring", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C must reach only this process, which stops one end after the other
        )
        self._rest = b""

    def told(self) -> list[dict[str, Any]] | None:
        """Return the new reports of the process, or None if it has ended.

        Call this only when its output is readable.
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

    Starts the ends, the publisher first. If one end fails, stops the other one.
    """

    def __init__(self, orders: dict[str, Any], show: Show) -> None:
        self._orders = orders
        self._show = show
        self._children: dict[str, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._subscribes = "sub" in orders
        self._result: dict[str, Any] | None = None
        self._signalled_at: float | None = None
        self._code = 0

    def run(self) -> tuple[int, dict[str, Any] | None]:
        """Run the measurement, and return the exit code and the result.

        The code is the first exit code of an end that is not 0. The result is None if nothing was measured.
        """
        woken = waking_descriptor()
        self._selector.register(woken, selectors.EVENT_READ)
        for number in ENDING:
            signal.signal(number, self._signal)
        try:
            self._start(next(iter(self._orders)))
            while self._children:
                for key, _ in self._selector.select():
                    if key.fd == woken:
                        os.read(woken, 1)  # then Python runs the handler
                    else:
                        self._read(key.data)
        finally:
            for child in self._children.values():
                child.end_now()
        if (
            self._subscribes
            and not self._code
            and self._signalled_at is None
            and "received" not in (self._result or {})
        ):
            self._code = 1  # the sum was not checked
            _say("the subscriber has ended without a result")
        if self._result is not None:
            self._result["interrupted"] = self._signalled_at is not None
        return self._code, self._result

    def _start(self, role: str) -> None:
        order = self._orders.pop(role)
        child = self._children[role] = _Child(order)
        self._selector.register(child.process.stdout, selectors.EVENT_READ, role)  # type: ignore[arg-type]  # piped
        if role == "sub" and not order["alone"]:
            _say(f"subscribes to {order['address']}, waits for zroute bench --pub")

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
                self._opened(value)
            elif what == "progress":
                self._show(value | {"role": role})
            elif what == "say":
                _say(value)
            elif what == "result" and not (
                role == "pub" and self._result
            ):  # the result of the subscriber includes the publisher's
                self._result = value

    def _opened(self, address: str) -> None:
        """Start the subscriber, now that the publisher has opened ``address``."""
        if "sub" not in self._orders:
            _say(f"publishes at {address}, waits for zroute bench --sub")
            return
        if self._orders["sub"]["address"] is None:
            for bound, reachable in _OPEN_HOSTS.items():
                address = address.replace(bound, reachable)
            self._orders["sub"]["address"] = address
        if self._signalled_at is None:
            self._start("sub")

    def _ended(self, role: str, child: _Child) -> None:
        """Take the exit code of an end, and stop the other end if its work is done."""
        self._selector.unregister(child.process.stdout)  # type: ignore[arg-type]
        del self._children[role]
        child.stop()
        code = child.process.wait()
        if code < 0:
            _say(f"{signal.Signals(-code).name} has ended the process of the {_NAMES[role]}")
        self._code = self._code or (1 if code < 0 else code)
        unsent = self._signalled_at is not None and self._result is None  # the subscriber would wait for the load
        if code or role == "sub" or unsent:
            for other in self._children.values():
                other.stop()

    def _signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            self._stop()
        elif now - self._signalled_at > _ONE_SIGNAL:
            raise SystemExit(128 + number)

    def _stop(self) -> None:
        """Stop the publisher if it runs here, else the subscriber.

        The publisher reports the number of messages to the subscriber, which then ends by itself.
        """
        first = self._children.get("pub") or self._children.get("sub")
        if first is not None:
            first.stop()


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
    """Return 1 if the sum does not hold or was not complete, else 0.

    The sum holds if every message is received or counted as lost. It is complete if the publisher has reported the
    number of messages. An interrupted measurement need not be complete.
    """
    if "received" not in result:
        return 0
    return 0 if result["holds"] and (result["complete"] or result["interrupted"]) else 1


def _document(result: dict[str, Any]) -> dict[str, Any]:
    """Return the document of ``--json``.

    It has the measured figures, and the rates and times per message that follow from them.
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

    ``number`` messages have ``number - 1`` pauses between them, so rates need two messages. A figure that needs more
    messages is None. ``size`` is that of a body in bytes.
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
    """Return the result as text for people."""
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
    """Yield a line that describes the load, if it is known here."""
    if document["publisher"]:
        rate = f"{document['rate']:,.12g} messages per second requested" if document["rate"] else "as fast as possible"
        sent, seconds = document["sent"], document["publisher"]["seconds"]
        messages = f"{sent:,} message{'' if sent == 1 else 's'}"
        yield f"{messages} of {document['size']:,} bytes, sent in {seconds:.2f} s, {rate}\n"


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """Yield the remarks that a reader needs to understand the figures."""
    publisher, subscriber = document["publisher"], document.get("subscriber")
    if document["interrupted"]:
        yield "A signal ended the measurement early."
    if publisher and document["rate"]:
        yield from _behind(document["rate"], publisher)
    if publisher and subscriber and publisher["host"] != subscriber["host"]:
        yield f"The latency compares the clocks of two hosts: {publisher['host']} and {subscriber['host']}."
    if document.get("early"):
        yield f"{document['early']:,} messages arrived before they were sent: the two clocks disagree."
    if publisher and subscriber and document["rate"] is None:
        yield "Without --rate, the latency is mostly that of full queues: give a --rate to measure that of the wire."
    if document.get("complete") is False:
        yield "The sum ends at the last received message: the publisher did not report how many it sent."
    if document.get("before_join"):
        yield f"{document['before_join']:,} messages were sent before this subscriber joined."


def _behind(rate: float, publisher: dict[str, Any]) -> Iterator[str]:
    """Yield a line if the publisher was slower than its rate.

    The latency begins when a message is published, so it does not include this delay.
    """
    reached, behind = publisher["messages_per_second"], publisher["behind"]
    if reached is not None and reached < 0.95 * rate:
        yield f"The publisher did not reach the rate: {reached:,.0f} of {rate:,.12g} messages per second."
    elif behind > _BEHIND:
        yield f"The publisher was up to {_duration(behind * 1e6)} late; the latency does not include this delay."


def _sum(document: dict[str, Any]) -> str:
    """Return the last line: sent = received + lost, with numbers."""
    if "received" not in document:
        return f"sent = {document['sent']:,}; the other end shows how many arrived"
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
