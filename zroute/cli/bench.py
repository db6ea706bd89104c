"""``zroute bench``: how fast this machine, or an endpoint, carries messages, and how late they are.

Both ends run in processes of their own (`zroute.cli.measuring`), also where only one of them is here: what draws the
bar and waits for signals then costs the measured ones nothing.
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
"""Bytes that full queues may hold where nobody gives a rate: as fast as possible means that they do get full."""
_QUEUED = 10_000  # messages: SNDHWM of `zroute.options.publisher_options`
_BEHIND = 0.05  # seconds that a publisher may be behind its rate without a word
_SMALLEST = 64  # bytes of a body: its number, its time and their names take most of that

_ONE_SIGNAL = 0.2
"""Seconds in which signals are one: timeout(1) sends its to the process, and at once again to its group."""

_NAMES = {"pub": "publisher", "sub": "subscriber"}

_OPEN_HOSTS = {"//0.0.0.0:": "//127.0.0.1:", "//[::]:": "//[::1]:", "//*:": "//127.0.0.1:"}
"""What is bound, and where this machine reaches it."""


@click.command("bench")
@click.argument("endpoint", type=EndpointType(bind=True), required=False)
@click.option("--pub", type=EndpointType(bind=True), metavar="ENDPOINT", help="Only publish, to a bench elsewhere.")
@click.option("--sub", type=EndpointType(bind=False), metavar="ENDPOINT", help="Only subscribe, to a bench elsewhere.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second. [default: all it can]")
@click.option("--size", type=click.IntRange(_SMALLEST, MAX_MESSAGE), help="Bytes of a body. [default: 128]")
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop when N messages are sent.")
@click.option("--for", "seconds", type=DURATION, help="Stop after this time. [default: 5s without --count]")
@click.option("--wait", type=DURATION, default="30s", show_default=True, help="For the other end.")
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
    """Measure messages a second, CPU time and latency between a publisher and a subscriber.

    Both ends run here, over ENDPOINT, which is bound, or a free port of this machine. With --pub in one terminal and
    --sub in another, or on another machine, each is one end; with both here, they meet at what is between them, such
    as a proxy: --pub connect:tcp://… connects to it.

    Without --rate messages go as fast as the subscriber reads them, and its queue drops none. With it a full queue
    drops them, as with any zroute publisher, and what is lost is counted. Ctrl-C ends it early.
    """
    if sub and not pub and any(given is not None for given in (rate, size, count, seconds)):
        raise click.UsageError("--rate, --size, --count and --for are the publisher's: give them to the other end")
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
            _say("ended before anything was measured")
        raise SystemExit(code)
    print(json.dumps(_document(result), indent=2) if as_json else _table(result), flush=True)
    raise SystemExit(code or _verdict(result))


def _check_endpoints(endpoint: Endpoint | None, pub: Endpoint | None, sub: Endpoint | None) -> None:
    if endpoint is not None and (pub or sub):
        raise click.UsageError("ENDPOINT is for both ends: leave it out with --pub or --sub")
    if endpoint is not None and not endpoint.bind:
        raise click.UsageError("one of two ends binds: give --pub and --sub, if what both connect to is between them")
    for given in filter(None, (endpoint, pub, sub)):
        if given.address.startswith("inproc:"):
            raise click.UsageError(
                f"{given.address} is inside one process, and the ends are two: give tcp:// or ipc://"
            )


def _check_load(rate: float | None, size: int, seconds: float | None) -> None:
    if seconds == 0:
        raise click.UsageError("--for 0 leaves no time to measure in")
    if rate is not None and not math.isfinite(rate):
        raise click.UsageError(f"--rate {rate}: give a number of messages a second, or leave it out for all it can")
    if rate is None and size * _QUEUED > _QUEUE_MAX:
        raise click.UsageError(
            f"--size {size} as fast as possible could fill a queue of {_QUEUED:,} messages, "
            f"{_amount(size * _QUEUED)}: give a --rate"
        )


def _orders(endpoint: Endpoint | None, pub: Endpoint | None, sub: Endpoint | None, wait: float) -> dict[str, Any]:
    """By role, what is known in advance; a subscriber without an address goes to where the publisher is."""
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
    """One end. Closing its standard input is how it is asked to stop, and what happens when this process dies."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zroute.cli.measuring", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is for this process, which asks one end, then the other
        )
        self._rest = b""

    def told(self) -> list[dict[str, Any]] | None:
        """What it has told since; None when it has ended. There is something to read."""
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 65_536)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """As often as one likes."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end_now(self) -> None:
        """Return when it has ended."""
        self.process.kill()
        self.process.wait()


class _Bench:
    """Starts the ends, the publisher first, and stops the other one when one has failed."""

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
        """The first exit code of an end that is not 0, and what was measured."""
        woken = waking_descriptor()
        self._selector.register(woken, selectors.EVENT_READ)
        for number in ENDING:
            signal.signal(number, self._signal)
        try:
            self._start(next(iter(self._orders)))
            while self._children:
                for key, _ in self._selector.select():
                    if key.fd == woken:
                        os.read(woken, 1)  # and the handler has its turn
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
            self._code = 1  # no sum was checked, so none holds
            _say("the subscriber has ended without a word of what it received")
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
            elif what == "result" and not (role == "pub" and self._result):  # the subscriber's knows more
                self._result = value

    def _opened(self, address: str) -> None:
        """The publisher is there, and the subscriber may be, too."""
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
        self._selector.unregister(child.process.stdout)  # type: ignore[arg-type]
        del self._children[role]
        child.stop()
        code = child.process.wait()
        if code < 0:
            _say(f"the process of the {_NAMES[role]} was ended by {signal.Signals(-code).name}")
        self._code = self._code or (1 if code < 0 else code)
        unsent = self._signalled_at is not None and self._result is None  # a subscriber would wait for the load
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
        """The publisher first, if it is here: then the subscriber hears how much it was, and ends by itself."""
        first = self._children.get("pub") or self._children.get("sub")
        if first is not None:
            first.stop()


def _say(text: str) -> None:
    print(f"zroute: {text}", file=sys.stderr, flush=True)


@contextmanager
def _progress() -> Iterator[Show]:
    """A bar on standard error, where that is a terminal; what is said meanwhile stands above it."""
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
    """1 where messages are neither received nor counted as lost, or the publisher did not say how many there were."""
    if "received" not in result:
        return 0
    return 0 if result["holds"] and (result["complete"] or result["interrupted"]) else 1


def _document(result: dict[str, Any]) -> dict[str, Any]:
    """The figures as they were measured, and the quotients that people look at."""
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
    """Of one end, and bodies of ``size`` bytes; what can't be told of so few messages is None.

    Between n messages there are n - 1 pauses.
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
    """What it was that was measured, as far as that is known here."""
    if document["publisher"]:
        rate = f"{document['rate']:,.12g} a second asked for" if document["rate"] else "as fast as possible"
        sent, seconds = document["sent"], document["publisher"]["seconds"]
        messages = f"{sent:,} message{'' if sent == 1 else 's'}"
        yield f"{messages} of {document['size']:,} bytes, sent in {seconds:.2f} s, {rate}\n"


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """What has to be known to read the figures."""
    publisher, subscriber = document["publisher"], document.get("subscriber")
    if document["interrupted"]:
        yield "Ended early, by a signal."
    if publisher and document["rate"]:
        yield from _behind(document["rate"], publisher)
    if publisher and subscriber and publisher["host"] != subscriber["host"]:
        yield f"The clocks of two hosts are compared in the latency: {publisher['host']} and {subscriber['host']}."
    if document.get("early"):
        yield f"{document['early']:,} messages came before they were sent: the clocks do not agree."
    if publisher and subscriber and document["rate"] is None:
        yield "As fast as possible, queues fill, and the latency is theirs: give a --rate to see that of the wire."
    if document.get("complete") is False:
        yield "Up to the last message that came: the publisher did not tell how many it sent."
    if document.get("before_join"):
        yield f"{document['before_join']:,} messages were sent before this subscriber had joined."


def _behind(rate: float, publisher: dict[str, Any]) -> Iterator[str]:
    """What the latencies don't show, since they begin when a message is published."""
    reached, behind = publisher["messages_per_second"], publisher["behind"]
    if reached is not None and reached < 0.95 * rate:
        yield f"The rate was not reached: {reached:,.0f} of {rate:,.12g} messages a second."
    elif behind > _BEHIND:
        yield f"The publisher was up to {_duration(behind * 1e6)} late; the latency begins when it has published."


def _sum(document: dict[str, Any]) -> str:
    if "received" not in document:
        return f"sent = {document['sent']:,}; the other end knows what became of them"
    sent, received, lost = document["sent"], document["received"], document["lost"]
    if document["holds"]:
        return f"sent = received + lost: {sent:,} = {received:,} + {lost:,}"
    return f"sent = received + lost does NOT hold: {sent:,} is not {received:,} + {lost:,} = {received + lost:,}"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """The first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def _duration(microseconds: float) -> str:
    """Three figures, in the unit that fits."""
    for limit, scale, unit in ((1e3, 1, "µs"), (1e6, 1e3, "ms")):
        if microseconds < limit:
            return f"{microseconds / scale:.3g} {unit}"
    return f"{microseconds / 1e6:.3g} s"


def _amount(size: int) -> str:
    from rich.filesize import decimal

    return decimal(size)
