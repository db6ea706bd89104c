"""Memory of an app's routes, and memory that seen topics leave behind.

Each contestant runs in a process of its own and compares resident memory before and after, each time after a garbage
collection.

``python -m benchmarks.memory routes|received|published|kept-60|kept-1024 COUNT``
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from benchmarks import workloads
from benchmarks.children import line, python, say, started
from benchmarks.running import WHOLE, Contestant, Figures, Group
from benchmarks.workloads import NUL, Quote, Scale
from zroute.messages.wire import HEADER_SIZE

__all__ = ["MEMORY", "groups"]

MEMORY = "memory MiB"
KEPT = (60, 1_024)
"""The sizes of the bodies of kept messages, in bytes."""


def _measure(what: str, number: int) -> Figures:
    with started(python("memory", what, number)) as process:
        return {MEMORY: line(process)}


def groups(scale: Scale) -> list[Group]:
    """Return the memory group; memory does not drift, so one round is enough."""
    absent = None if os.path.exists("/proc/self/statm") else "this system has no /proc"
    work = (
        (f"{scale.routes:,} functions in a dict, by hand", "dict", scale.routes),
        (f"{scale.routes:,} routes", "routes", scale.routes),
        (f"{scale.topics_seen:,} topics received", "received", scale.topics_seen),
        (f"{scale.topics_seen:,} topics published, tracked", "published", scale.topics_seen),
        *((f"{scale.topics:,} bodies of {size:,} bytes in a history", f"kept-{size}", scale.topics) for size in KEPT),
    )
    contestants = tuple(Contestant(name, partial(_measure, what, number), WHOLE, absent) for name, what, number in work)
    return [Group("memory", "memory", contestants, None, main=MEMORY, rounds=1)]


# -- in their processes -------------------------------------------------------------------------------------


def resident() -> float:
    """Return the resident memory of this process, in MiB."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def grown(work: Callable[[], object]) -> float:
    """Return the MiB that ``work`` adds while its result is alive."""
    before = resident()
    kept = work()
    after = resident()
    assert kept is not None
    return after - before


def function() -> Callable[[Quote], None]:
    """Return a new handler function."""

    def handler(quote: Quote) -> None: ...

    handler.__annotations__["quote"] = Quote
    return handler


def dictionary(number: int) -> object:
    """Return the dict that a user would write by hand."""
    return {b"desk%d.quotes" % desk: function() for desk in range(number)}


def service(routes: int) -> tuple[Any, Any]:
    """Return a running app with ``routes`` routes, and its table."""
    from tests.pure import Wired
    from zroute import App

    app = App(codec="json")
    for desk in range(routes):
        app.subscribe(f"desk{desk}.quotes.{{symbol}}")(function())
    return app, Wired(app)


def topics_received(number: int) -> object:
    """Receive one message of each topic, through a table with one route."""
    app, wired = service(1)
    body, numbers = workloads.quotes(1).body, count()

    def recv(_flags: int) -> bytes:
        return b"desk0.quotes.s%d" % next(numbers) + NUL + body

    for _ in range(0, number, 256):
        wired.table.receive(recv, lambda: 0, 256)
    return app, wired


def topics_published(number: int) -> object:
    """Count topics in a tracked publisher with one live subscription."""
    from zroute.messages.control import pack_marker, parse_marker
    from zroute.publishing.counters import Counters

    counters = Counters()
    counters.subscribe(b"desk0.", 0.0)
    dict(counters.numbers(parse_marker(pack_marker(1, [b"desk0."]))))
    for each in range(number):
        counters.count(b"desk0.quotes.s%d" % each)
        if each % 10_000 == 0:
            counters.beats(each / 100_000)  # an app does this each quarter of a second
    return counters


def kept(size: int, number: int) -> object:
    """Keep the frames of messages whose bodies have ``size`` bytes, as the history of a publisher does."""
    from zroute.publishing.history import History, Ring

    ring, body = Ring(History(messages=number, bytes=1 << 30)), bytes(HEADER_SIZE + size)
    for each in range(number):
        ring.append(workloads.TOPIC + NUL + body)
        if each % 10_000 == 0:
            ring.trim(each / 100_000)  # an app does this each quarter of a second
    ring.trim(0.0)
    return ring


WORK: dict[str, Callable[[int], object]] = {
    "dict": dictionary,
    "routes": service,
    "received": topics_received,
    "published": topics_published,
    **{f"kept-{size}": partial(kept, size) for size in KEPT},
}

if __name__ == "__main__":
    WORK[sys.argv[1]](1)  # load imports and fill caches that do not grow
    say(grown(partial(WORK[sys.argv[1]], int(sys.argv[2]))))
