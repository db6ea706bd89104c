"""The tracked wire through `zroute proxy`: counted losses equal true losses, through one proxy and two in a row."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.acceptance.streams import reader, stream
from tests.support import Child, Way, free_endpoint, sized

pytestmark = pytest.mark.slow


@contextmanager
def proxy(front: str, back: str, *options: str) -> Iterator[Child]:
    """Run `zroute proxy`, and wait until it forwards."""
    with Child("-m", "zroute", "proxy", front, back, *options) as child:
        child.line_with("for subscribers", stream="err")
        yield child


@contextmanager
def row(hops: int, *options: str) -> Iterator[tuple[str, str, list[Child]]]:
    """Run proxies in a row; yield the endpoint of publishers, the one of subscribers, and the proxies."""
    ends = [free_endpoint() for _ in range(hops + 1)]
    with ExitStack() as stack:
        proxies = [
            stack.enter_context(proxy(f"{'connect:' if hop else ''}{ends[hop]}", ends[hop + 1], *options))
            for hop in range(hops)
        ]
        yield ends[0], ends[-1], proxies


@pytest.mark.parametrize("hops", [1, 2])
def test_nothing_is_lost_without_pressure(hops: int) -> None:
    """Two publishers and two readers: ready() waits for both, everything arrives in order, and no loss is counted."""
    total = sized(4_500, 2_000)  # of each publisher, so that all messages fit into each queue if a process stands still
    with (
        row(hops) as (front, back, proxies),
        stream(f"connect:{front}", "a", each=20, total=total) as a,
        stream(f"connect:{front}", "b", each=20, total=total) as b,
        reader(back, ready=2) as first,
        reader(back, ready=2) as second,
    ):
        for publisher in (a, b):
            publisher.command("go")
            assert publisher.published() == total
        for each in (first, second):
            for name in "ab":
                each.wait_for(name, total)
            state = each.stop()
            assert state["seen"] == {name: [0, total, total - 1, True] for name in "ab"}
            assert (state["lost"], state["unknown"]) == (0, 0)
        for child in proxies:
            assert child.end(signal.SIGTERM) == 0


PUBLISHER = """
import sys
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zroute import App

app = App(pub="connect:" + sys.argv[1], codec="json", name=sys.argv[2])
news = app.publisher("news.{who}.{k}", dict)
TOTAL = int(sys.argv[3])

async def publish():
    from twisted.internet import reactor
    await news.wait_for_subscribers(3, timeout=120)
    print("has its subscribers", flush=True)
    await deferToThread(sys.stdin.readline)
    for number in range(TOTAL):
        news.publish({"n": number, "pad": "x" * 2000}, who=sys.argv[2], k=str(number % 4))
        if number % 100 == 0:
            await deferLater(reactor, 0.002)
    print("published", TOTAL, flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(publish())

app.run()
"""

READER = """
import json, sys
from twisted.internet.defer import Deferred
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="reader")
waits = sys.argv[3] == "waits"
seen = set()
handled = 0

@app.subscribe(sys.argv[2])
def on_news(news: dict, who: str, k: str) -> None:
    global handled, waits
    handled += 1
    seen.add((who, news["n"]))
    if waits:
        waits = False
        sys.stdin.readline()  # until the publishers have published everything

@app.every(0.2)
def tell():
    stats = app.stats
    print(json.dumps([handled, len(seen), stats.lost, stats.unknown_losses, stats.duplicate]), flush=True)

async def wait():
    await app.ready(2, timeout=120)
    print("ready", flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(wait()).addErrback(lambda failure: print(failure, flush=True))

try:
    app.run()
finally:
    tell()
"""


def told(child: Child) -> Any:
    """Return the latest counters of a reader: handled, different ones, lost, unknown losses, duplicates."""
    return next((json.loads(line) for line in reversed(child.out) if line.startswith("[")), [0] * 5)


@pytest.mark.parametrize("hops", [1, 2])
def test_what_slow_readers_lose_at_a_small_queue_is_counted_exactly(hops: int) -> None:
    """With 100 messages of queue a reader, handled and lost messages are together all of both publishers."""
    total = sized(20_000, 6_000)
    with (
        row(hops, "--send-queue", "100") as (front, back, _),
        Child("-c", READER, back, "news.{who}.{k}", "waits") as slow,
        Child("-c", READER, back, "*.{who}.{k}", "waits") as wide,
        Child("-c", READER, back, "news.{who}.{k}", "reads") as fast,
        Child("-c", PUBLISHER, front, "a", str(total)) as a,
        Child("-c", PUBLISHER, front, "b", str(total)) as b,
    ):
        readers = (slow, wide, fast)
        for child in readers:
            child.line_with("ready")
        for child in (a, b):
            child.line_with("has its subscribers")
        for child in (a, b):
            child.write("go on\n")
        for child in (a, b):
            child.line_with(f"published {total}")
        for child in (slow, wide):
            child.write("go on\n")
        for child in readers:
            child.wait_for(lambda lines, child=child: sum(told(child)[::2][:2]) >= 2 * total)  # type: ignore[misc]
        for child in (a, b, *readers):
            assert child.end(signal.SIGTERM) == 0
        for child in readers:
            handled, different, lost, unknown, duplicate = told(child)
            assert (handled + lost, different, unknown, duplicate) == (2 * total, handled, 0, 0)
        assert told(slow)[2] > 0
        assert told(wide)[2] > 0


@pytest.mark.parametrize(("hops", "hop"), [(1, 0), (2, 0), (2, 1)])
def test_a_proxy_that_is_killed_and_restarted_costs_what_is_counted(way: Way, hops: int, hop: int) -> None:
    """Messages that a killed proxy had, or that no proxy took meanwhile, are counted; the stream goes on."""
    ends = [way.meeting() for _ in range(hops + 1)]
    arguments = [
        (ends[0].bind if not each else f"connect:{ends[each].connect}", ends[each + 1].bind) for each in range(hops)
    ]
    with ExitStack() as stack:
        proxies = [stack.enter_context(proxy(*each)) for each in arguments]
        publishers = [stack.enter_context(stream(f"connect:{ends[0].connect}", name, each=5)) for name in "ab"]
        reading = stack.enter_context(reader(ends[-1].connect, ready=2))
        for publisher in publishers:
            publisher.command("go")
        for name in "ab":
            reading.wait_for(name, 100)
        proxies[hop].end(signal.SIGKILL)
        before = {name: reading.handled(name) for name in "ab"}
        stack.enter_context(proxy(*arguments[hop]))
        for name in "ab":
            reading.wait_for(name, before[name] + 300)  # more than it had in its queues
        published = sum(publisher.halt() for publisher in publishers)
        reading.child.wait_for(lambda _: accounted(reading.state()) >= published)
        state = reading.stop()
    assert accounted(state) == published
    assert state["unknown"] == 0


def test_with_two_proxies_side_by_side_the_death_of_one_costs_nothing() -> None:
    """A publisher connects to two proxies: its reader handles each message once, and loses none."""
    fronts, backs = (free_endpoint(), free_endpoint()), (free_endpoint(), free_endpoint())
    with (
        proxy(fronts[0], backs[0]) as first,
        proxy(fronts[1], backs[1]),
        stream(",".join(f"connect:{front}" for front in fronts), "a", each=5) as publisher,
        reader(*backs, ready=1) as reading,
    ):
        reading.child.wait_for(lambda _: all(reading.connections(back) for back in backs))
        publisher.command("go")
        reading.wait_for("a", 200)
        first.end(signal.SIGKILL)
        reading.wait_for("a", reading.handled("a") + 300)
        published = publisher.halt()
        reading.wait_for("a", published)
        state = reading.stop()
    assert state["seen"] == {"a": [0, published, published - 1, True]}
    assert (state["lost"], state["unknown"]) == (0, 0)


def accounted(state: Any) -> int:
    """Return the number of messages that a reader has handled or counted as lost."""
    return int(sum(count for _, count, _, _ in state["seen"].values()) + state["lost"])
