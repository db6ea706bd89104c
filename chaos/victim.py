"""The target of invalid frames.

``python -m chaos.victim REPORTS PUBLISH ENDPOINT ...``

Two readers connect to the endpoints: one reads all topics, the other takes the fast path for ``orders.*``. A publisher
is bound to ``PUBLISH``.

For each good message, a reader checks its counters and sends a `report` to the socket ``REPORTS``. For each one of
the first reader, the publisher publishes `PUBLISHED` messages to ``p.x``, and the same number to ``k.x``, which
keeps the last.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections import Counter
from typing import Any

import attrs
import zmq

from chaos.parent import end_with_parent
from zroute import App, Envelope, PeerError, startswith
from zroute.runtime.runner import run

PUBLISHED = 3
PARTS = ("routed", "unrouted", "malformed", "duplicate", "control")


@attrs.frozen
class Order:
    """The body that the handlers receive."""

    sku: str
    count: int
    price: float
    tags: list[str]
    notes: dict[str, int]


def is_valid(order: object) -> bool:
    """Return True if the types match the annotations, at all depths."""
    return (
        isinstance(order, Order)
        and isinstance(order.sku, str)
        and type(order.count) is int
        and type(order.price) is float
        and all(isinstance(tag, str) for tag in order.tags)
        and all(isinstance(name, str) and type(value) is int for name, value in order.notes.items())
    )


class Reader:
    """An app whose ``stats`` must count each message once.

    It reads all topics, or takes the fast path for ``orders.a``.
    """

    def __init__(self, endpoints: list[str], *, short: bool) -> None:
        self.app = app = App(sub=endpoints, name="short" if short else "reader")
        self.invalid: list[str] = []
        self.calls: Counter[str] = Counter()

        @app.on_error(PeerError)
        def refused(error: PeerError, envelope: Envelope) -> None:
            """Accept each refused message, so that it is not logged."""

        if short:
            self._take_the_short_way(app)
        else:
            self._take_all(app)

    def _take_the_short_way(self, app: App) -> None:
        """Add handlers of one type, which decode a coalesced frame in one call."""

        @app.subscribe("orders.a")
        def first(order: Order) -> None:
            self.calls["first"] += 1
            self._validate(order)

        @app.subscribe("orders.*")
        def second(order: Order) -> None:
            self.calls["second"] += 1

    def _take_all(self, app: App) -> None:
        @app.subscribe("orders.{name}")
        def typed(order: Order, name: str) -> None:
            self.calls["typed"] += 1
            self._validate(order)

        @app.subscribe("orders.{name}")
        async def later(order: Order) -> None:
            self.calls["later"] += 1
            self._validate(order)

        @app.subscribe(startswith(""))
        def everything(body: bytes, envelope: Envelope) -> None:
            valid = isinstance(body, bytes) and envelope.body == body
            self.calls["everything"] += 1  # not earlier: a message with an unreadable envelope is a decode error
            if not valid:
                self.invalid.append(repr(envelope))

    def _validate(self, order: object) -> None:
        if not is_valid(order):
            self.invalid.append(repr(order))

    def faults(self) -> list[str]:
        """Return the faults: invalid data, messages not counted once, uncounted calls."""
        stats = self.app.stats.as_dict()
        wrong = [f"a handler received invalid data: {each}" for each in self.invalid[:3]]
        parts = {part: stats[part] for part in PARTS}
        if stats["received"] != sum(parts.values()):
            wrong.append(f"received {stats['received']}, but the parts are {parts}")
        routes: dict[str, dict[str, int]] = stats["routes"]
        for_all = [route for name, route in routes.items() if "everything" in name]
        for_all = for_all or [route for name, route in routes.items() if "second" in name or "good" in name]
        given = sum(sum(route.values()) for route in for_all)
        if stats["routed"] != given:
            wrong.append(f"routed {stats['routed']}, but the route for all received {given}")
        for name, calls in self.calls.items():
            counted = [route for each, route in routes.items() if f"{name}(" in each]
            known = sum(route["handled"] + route["handler_error"] for route in counted)
            if known != calls:
                wrong.append(f"{name}: {calls} calls, but {known} in the counters")
        if stats["hook_errors"]:
            wrong.append(f"{stats['hook_errors']} hooks failed")
        return wrong


def report(reader: Reader, which: int, number: int) -> dict[str, Any]:
    """Return the report of a good message, with counters, faults and memory."""
    stats = reader.app.stats.as_dict()
    del stats["routes"]
    return {"reader": which, "good": number, "stats": stats, "faults": reader.faults(), "rss": memory()}


def memory() -> float:
    """Return the resident memory of this process, in MB."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def main() -> int:
    """Run the three apps until a signal."""
    reports, publish, *endpoints = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    end_with_parent()
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(reports)
    feed = App(pub=publish, name="feed", loop=False)
    plain, kept = feed.publisher("p.{x}", int), feed.publisher("k.{x}", int, keep="last")
    readers = [Reader(endpoints, short=short) for short in (False, True)]

    def watch(which: int, reader: Reader) -> None:
        from twisted.internet import reactor

        later: Any = reactor

        def told(number: int) -> None:
            socket.send(json.dumps(report(reader, which, number)).encode())

        @reader.app.subscribe("good")
        def good(number: int) -> None:
            reader.calls["good"] += 1
            later.callLater(0, told, number)  # after the messages that were read in the same turn have been counted
            for each in range(PUBLISHED if not which else 0):
                plain.publish(each, x="x")
                kept.publish(each, x="x")

    for which, reader in enumerate(readers):
        watch(which, reader)
    try:
        return run([feed, *(reader.app for reader in readers)])
    finally:
        print(json.dumps({"faults": [fault for reader in readers for fault in reader.faults()]}), flush=True)
        context.destroy(linger=0)


if __name__ == "__main__":
    sys.exit(main())
