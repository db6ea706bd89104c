"""Two apps for the tests of order and bounds: ``source`` sends more numbers as the ``sink`` asks for them.

``source`` has at most one window of messages in transit, so that no high-water mark drops any: the tests check that the
sink loses none. Environment variables configure them: TOTAL, TOPICS, BOUND, MODE (ordered, unordered, thread), SEED,
SOURCE and SINK (endpoints).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time

from twisted.internet.defer import Deferred

from zroute import App, Topic, as_awaitable

TOTAL, TOPICS = int(os.environ.get("TOTAL", "100")), int(os.environ.get("TOPICS", "5"))
BOUND, MODE = int(os.environ.get("BOUND", "10")), os.environ.get("MODE", "ordered")
WINDOW = 1000

source = App(sub=os.environ.get("SINK", "tcp://127.0.0.1:1"), pub=os.environ.get("SOURCE", "tcp://127.0.0.1:2"))
work = source.publisher("work.{number}", int)
sent = 0
HELLO = -1


@source.every(0.02)
def hello() -> None:
    """Repeat a first message until it is received, since messages before the subscription are lost."""
    if not sent:
        work.publish(HELLO, number="hello")


@source.subscribe("handled")
def on_handled(handled: int) -> None:
    """Send further numbers, up to a window beyond the handled ones."""
    global sent
    while sent < min(handled + WINDOW, TOTAL):
        work.publish(sent, number=sent % TOPICS)
        sent += 1


sink = App(sub=os.environ.get("SOURCE", "tcp://127.0.0.1:2"), pub=os.environ.get("SINK", "tcp://127.0.0.1:1"))
handled = sink.publisher("handled", int)
dice = random.Random(int(os.environ.get("SEED", "1")))
seen: list[tuple[str, int]] = []
running: list[str] = []
faults: list[str] = []
peak = 0
joined = False
lock = threading.Lock()


def begin(topic: str, number: int) -> bool:
    """Record the start of a call, and a fault if its topic runs already; return False for a hello."""
    global peak, joined
    if number == HELLO:
        joined = True
        return False
    with lock:
        if topic in running and MODE != "unordered":
            faults.append(f"{topic} runs twice")
        running.append(topic)
        peak = max(peak, len(running))
    return True


def end(topic: str, number: int) -> None:
    """Record the end of a call."""
    with lock:
        running.remove(topic)
        seen.append((topic, number))


async def pause(seconds: float) -> None:
    """Wait under either kind of reactor."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        from twisted.internet import reactor

        waiting: Deferred[None] = Deferred()
        reactor.callLater(seconds, waiting.callback, None)
        await as_awaitable(waiting)
    else:
        await asyncio.sleep(seconds)


async def on_work(number: int, topic: Topic) -> None:
    """End after a random time, sometimes at once."""
    if not begin(topic, number):
        return
    chance = dice.random()
    if chance > 0.2:
        await pause(chance / 500)
    end(topic, number)


def on_work_in_a_thread(number: int, topic: Topic) -> None:
    """End after a random time, blocking."""
    if not begin(topic, number):
        return
    time.sleep(dice.random() / 1000)
    end(topic, number)


sink.add_route(
    on_work_in_a_thread if MODE == "thread" else on_work,
    "work.*",
    thread=MODE == "thread",
    ordered=MODE != "unordered",
    max_in_flight=BOUND,
    queue=100,
)


@sink.every(0.02)
def ask() -> None:
    """Publish the progress; at the end, print the outcome and stop."""
    if joined:
        handled.publish(len(seen))
    if len(seen) < TOTAL or running:
        return
    by_topic: dict[str, list[int]] = {}
    for topic, number in seen:
        by_topic.setdefault(topic, []).append(number)
    outcome = {
        "once": sorted(number for _, number in seen) == list(range(TOTAL)),
        "in order": all(numbers == sorted(numbers) for numbers in by_topic.values()),
        "peak": peak,
        "faults": faults[:5],
    }
    print(json.dumps(outcome), flush=True)
    from twisted.internet import reactor

    reactor.callLater(0, reactor.stop)
