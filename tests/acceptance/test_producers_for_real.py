"""Producers of all kinds in ``zroute run``; the test checks counts and order, since clocks of machines differ."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conversation import PRELUDE
from tests.support import Child

KINDS = pytest.mark.parametrize("kind", ["epoll", "asyncio"])

PRODUCERS = """
import asyncio
from itertools import count
from twisted.internet import reactor

app = App(name="producers")
plain, awaited = count(), count()

async def pause(seconds):
    await as_awaitable(defer.Deferred() if seconds is None else sleep(seconds))

def sleep(seconds):
    later = defer.Deferred()
    reactor.callLater(seconds, later.callback, None)
    return later

@app.publisher("every.plain", every=0.01)
def every_plain() -> int:
    return next(plain)

@app.publisher("every.async", every=0.01, jitter=0.5)
async def every_async() -> int:
    await pause(0.001)
    return next(awaited)

@app.publisher("every.deferred", every=0.01, initial_delay=0.02)
def every_deferred() -> defer.Deferred[int]:
    return sleep(0.001).addCallback(lambda _: 7)

@app.publisher("every.nothing", every=0.01)
def every_nothing() -> int | None:
    return None

@app.publisher("every.list", every=0.01)
def every_list() -> list[int]:
    return [1, 2]

@app.publisher("every.generator", every=0.01)
def every_generator():
    yield from range(5)

@app.publisher("every.asyncgenerator", every=0.01)
async def every_async_generator():
    for number in range(5):
        await pause(0.001)
        yield number

@app.publisher("once.generator")
def once_generator():
    yield from range(2000)

@app.publisher("once.asyncgenerator")
async def once_async_generator():
    for number in range(2000):
        if number % 500 == 0:
            await pause(0.001)
        yield number

@app.publisher("slow", every=0.01)
async def slow() -> int:
    await pause(0.05)
    return 1

@app.publisher("broken", every=0.01)
def broken() -> int:
    raise ValueError("no")

tries = count()

@app.publisher("again", every=0.01)
def again():
    number = next(tries)
    yield number
    if number == 0:
        raise ValueError("once")

@app.every(0.01)
def timer():
    app.publish("timer.a", 1)
    app.publish("timer.b", 2)

@app.subscribe(">", queue=100_000)
def note(message: Any, topic: Topic):
    say(topic, message)

@app.subscribe("every.>")
@app.publisher("derived")
def derive(message: Any, topic: Topic) -> str | None:
    return str(topic) if topic == "every.list" else None

@app.on_shutdown
def bye():
    say("stats", app.stats.as_dict())
"""


@KINDS
def test_producers_of_all_kinds_publish_all_in_order(kind: str, tmp_path: Path) -> None:
    """every=, jitter, delays, generators, back-off and overlap behave as documented, and keep their order."""
    (tmp_path / "producers.py").write_text(PRELUDE + PRODUCERS)
    with Child("-m", "zroute", "run", "--app-dir", str(tmp_path), "producers", "--reactor", kind) as child:
        child.wait_for(lambda lines: enough(lines))
        assert child.end(signal.SIGTERM) == 0, child.err
    said = [json.loads(line) for line in child.out if line.startswith("[")]
    stats = said.pop()[1]
    by_topic: dict[str, list[Any]] = {}
    for topic, message in said:
        by_topic.setdefault(topic, []).append(message)
    assert set(by_topic) == {
        *("every.plain", "every.async", "every.deferred", "every.list", "every.generator", "every.asyncgenerator"),
        *("once.generator", "once.asyncgenerator", "slow", "again", "timer.a", "timer.b", "derived"),
    }
    for topic in ("every.plain", "every.async"):
        assert by_topic[topic] == list(range(by_topic[topic][0], by_topic[topic][0] + len(by_topic[topic])))
    for topic, end in (("every.generator", 5), ("every.asyncgenerator", 5)):
        assert by_topic[topic] == list(range(end))
    for topic in ("once.generator", "once.asyncgenerator"):
        assert by_topic[topic] == list(range(2000))
    assert by_topic["again"][:2] == [0, 1]
    assert set(by_topic["every.deferred"]) == {7}
    assert by_topic["every.list"][0] == [1, 2]
    assert by_topic["derived"] == ["every.list"] * len(by_topic["derived"])
    assert abs(len(by_topic["timer.a"]) - len(by_topic["timer.b"])) == 0
    assert stats["skipped_periods"] >= len(by_topic["slow"])
    assert stats["publish_errors"] >= 3
    said_so = Counter(
        word for line in child.err for word in ("has no more values", "restarting in 1 s") if word in line
    )
    assert said_so["has no more values"] >= 4
    assert said_so["restarting in 1 s"] == 1
    assert any("broken() at" in line and "the schedule continues" in line for line in child.err)


def enough(lines: list[str]) -> bool:
    """Return True if the slowest producers have published."""
    seen = Counter(line.partition(",")[0].strip('["') for line in lines)
    return (
        seen["again"] >= 2
        and seen["slow"] >= 2
        and all(seen[f"once.{generator}"] == 2000 for generator in ("generator", "asyncgenerator"))
        and seen["every.asyncgenerator"] == 5
    )


CLOSING = """
import asyncio
from twisted.internet import reactor

app = App(name="closing")

def sleep(seconds):
    later = defer.Deferred()
    reactor.callLater(seconds, later.callback, None)
    return as_awaitable(later)

async def hold(name):
    try:
        print(name, "runs")
        await as_awaitable(defer.Deferred())
    finally:
        await sleep(0.01)
        app.publish("end", name)
        print(name, "closed")

@app.publisher("one", every=0.01)
async def periodic():
    yield 1
    await hold("periodic")

@app.publisher("two")
async def driven():
    yield 1
    await hold("driven")

@app.publisher("three", every=0.01)
async def function():
    await hold("function")

@app.publisher("four", every=0.01)
async def between():
    try:
        while True:
            yield 1
    finally:
        await sleep(0.01)
        print("between closed")

@app.on_shutdown
def bye():
    print("shut down")
"""


@KINDS
def test_a_stop_waits_until_what_it_cancels_has_cleaned_up(kind: str, tmp_path: Path) -> None:
    """At a stop, timers and generators may await and publish in finally:; on_shutdown and exit 0 follow."""
    (tmp_path / "closing.py").write_text(PRELUDE + CLOSING)
    with Child("-m", "zroute", "run", "--app-dir", str(tmp_path), "closing", "--reactor", kind) as child:
        child.wait_for(lambda lines: {"periodic runs", "driven runs", "function runs"} <= set(lines))
        assert child.end() == 0, child.err
    assert sorted(child.out[3:-1]) == ["between closed", "driven closed", "function closed", "periodic closed"]
    assert child.out[-1] == "shut down"
    assert not [line for line in child.err if " INFO " not in line], child.err


@KINDS
def test_what_can_not_be_cancelled_is_named_by_the_stop(kind: str, tmp_path: Path) -> None:
    """A timer that ignores its cancellation is given up after the drain timeout, named, and exits with 75."""
    source = """
import asyncio
app = App(name="stubborn")

@app.publisher("one", every=0.01)
async def stubborn():
    while True:
        try:
            print("waits")
            await as_awaitable(defer.Deferred())
        except (asyncio.CancelledError, defer.CancelledError):
            pass
"""
    (tmp_path / "stubborn.py").write_text(PRELUDE + source)
    options = ("--reactor", kind, "--drain-timeout", "50ms")
    with Child("-m", "zroute", "run", "--app-dir", str(tmp_path), "stubborn", *options) as child:
        child.line_with("waits")
        assert child.end() == 75
    assert any("abandoned after the drain timeout: stubborn(): 1" in line for line in child.err), child.err
