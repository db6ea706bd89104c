"""Recovery between processes: proxies and publishers are killed under load, and readers stop for seconds.

A reader that can't keep up counts losses, which is right. Its messages are therefore no more than a slow machine can
handle, and coverage measures neither side.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interpreters import UNMEASURED
from tests.keyed import Keys
from tests.support import Child, free_endpoint, sized

PUBLISHER = """
import sys
from zroute import App, History, Limits

TOTAL, SECONDS, KEYS = int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] or None
app = App(pub=sys.argv[1], codec="json", name="feed", keys=KEYS, peers="anyone" if KEYS else None,
          limits=Limits(send_queue=500))
numbers = app.publisher("numbers.{x}", int, history=History(messages=100_000))
sent = 0

@app.on_startup
def begin():
    from twisted.internet.defer import Deferred
    Deferred.fromCoroutine(publish())

async def publish():
    from twisted.internet import reactor
    from twisted.internet.task import deferLater
    await numbers.wait_for_subscribers(1, timeout=60)
    print("joined", flush=True)
    begun = reactor.seconds()
    for number in range(TOTAL):
        numbers.publish(number, x=str(number % 7), headers={"pad": "x" * 600})
        while reactor.seconds() - begun < SECONDS * number / TOTAL:
            await deferLater(reactor, 0.002)
    print("sent", flush=True)

app.run()
"""

READER = """
import json, sys, time
from zroute import App, Limits

KEYS = sys.argv[3] or None
app = App(sub=sys.argv[1].split(","), codec="json", name="reader", recover=True, keys=KEYS,
          limits=Limits(receive_queue=200))
PAUSE_AT = int(sys.argv[2])
seen = []
lost = 0

@app.subscribe("numbers.{x}")
def number(n: int, x: str) -> None:
    seen.append(n)
    if len(seen) == PAUSE_AT:
        time.sleep(3)

@app.on_gap
def gap(gap):
    global lost
    lost += gap.count

@app.every(0.1)
def tell():
    if app.stats.joins:
        print(json.dumps([len(seen), app.stats.lost, app.stats.unknown_losses, seen[-1] if seen else -1]), flush=True)

@app.on_shutdown
def end():
    stats = app.stats.as_dict()
    print(json.dumps({"seen": seen, "told": lost,
                      "balanced": stats["received"] == stats["routed"] + stats["unrouted"] + stats["malformed"]
                      + stats["duplicate"] + stats["control"], **stats}), flush=True)

app.run()
"""

NO_KEYS = ""


@contextmanager
def proxy(back: str, front: str) -> Iterator[Child]:
    """Run a stock proxy."""
    with Child("-m", "chaos.forwarder", f"bind:{back}", f"bind:{front}") as child:
        child.wait_for(lambda lines: any("forwarding" in line for line in lines))
        yield child


def reader_of(address: str, pause_at: int = 0, keys: str = NO_KEYS) -> Child:
    """Return a reader that recovers, and sleeps for three seconds after some messages."""
    return Child("-c", READER, address, str(pause_at), keys, env=UNMEASURED)


def publisher_at(address: str, total: int, seconds: float, keys: str = NO_KEYS) -> Child:
    """Return a publisher that sends ``total`` messages in ``seconds``."""
    return Child("-c", PUBLISHER, address, str(total), str(seconds), keys, env=UNMEASURED)


def told(reader: Child, least: int) -> None:
    """Wait until the reader has handled or counted ``least`` messages."""
    reader.wait_for(lambda lines: any(line.startswith("[") and sum(json.loads(line)[:2]) >= least for line in lines))


def result_of(reader: Child) -> dict[str, Any]:
    """Stop a reader, and return its counters."""
    assert reader.end() == 0
    found: dict[str, Any] = json.loads(reader.out[-1])
    assert found["balanced"]
    assert found["told"] == found["lost"]
    assert found["malformed"] == 0
    return found


@pytest.mark.slow
def test_a_killed_proxy_loses_nothing() -> None:
    """A proxy is killed under load, and another one takes its place: all messages arrive, in order, each once."""
    back, front, total = free_endpoint(), free_endpoint(), sized(40_000, 8_000)
    with reader_of(back) as reader, publisher_at(f"connect:{front}", total, 6.0) as publisher:
        with proxy(back, front) as first:
            publisher.line_with("joined")
            told(reader, total // 8)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        with proxy(back, front):
            publisher.line_with("sent")
            told(reader, total)
            found = result_of(reader)
            assert publisher.end() == 0
    assert found["seen"] == list(range(total))
    assert found["recovered"] > 0
    assert found["lost"] == found["unknown_losses"] == 0


@pytest.mark.slow
def test_a_reader_that_stops_for_three_seconds_loses_nothing() -> None:
    """A handler blocks for 3 s, while its queues overflow: all messages arrive, in order, each once."""
    address, total = free_endpoint(), 30_000
    with reader_of(address, 1_000) as reader, publisher_at(f"bind:{address}", total, 3.0) as publisher:
        publisher.line_with("sent")
        told(reader, total)
        found = result_of(reader)
        assert publisher.end() == 0
    assert found["seen"] == list(range(total))
    assert found["recovered"] > 0
    assert found["lost"] == found["unknown_losses"] == 0


@pytest.mark.slow
def test_a_publisher_that_is_killed_leaves_an_unknown_loss_at_most() -> None:
    """The rest of a killed run is an unknown loss; its messages are in order, and so are those of the next run."""
    address, total = free_endpoint(), sized(20_000, 4_000)
    with reader_of(address) as reader:
        with publisher_at(f"bind:{address}", total, 4.0) as first:
            told(reader, total // 8)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        handled = len(reader.out)
        with publisher_at(f"bind:{address}", total, 1.0) as second:
            second.line_with("sent")
            # Its history ends with it, so the reader must have all messages before.
            reader.wait_for(lambda lines: any(json.loads(line)[-1] == total - 1 for line in lines[handled:]))
            assert second.end() == 0
        found = result_of(reader)
    seen = found["seen"]
    again = seen.index(0, 1) if 0 in seen[1:] else len(seen)
    assert seen[:again] == list(range(again))
    rest = seen[again:]
    assert rest == sorted(set(rest))
    assert rest[-1] == total - 1
    assert found["lost"] == 0


@pytest.mark.slow
def test_recovery_works_with_keys(tmp_path: Path) -> None:
    """With CURVE, requests and answers pass, and a reader that stops for three seconds loses nothing."""
    keys = Keys(tmp_path)
    address, total = free_endpoint(), 30_000
    feed, desk = str(keys.secret("feed")), str(keys.secret("desk"))
    keys.authorize("desk", "feed")
    with (
        reader_of(f"feed@{address}", 1_000, desk) as reader,
        publisher_at(f"bind:{address}", total, 3.0, feed) as publisher,
    ):
        publisher.line_with("sent")
        told(reader, total)
        found = result_of(reader)
        assert publisher.end() == 0
    assert found["seen"] == list(range(total))
    assert found["recovered"] > 0
    assert found["lost"] == 0
