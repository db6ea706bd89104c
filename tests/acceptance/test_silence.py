"""A frozen publisher is noticed and connected to again; a slow or frozen reader cuts no connection."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.support import Child, Way

pytestmark = pytest.mark.slow

PUBLISHER = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zroute import App

app = App(pub="bind:" + sys.argv[1], codec="json", name="feed")
numbers = app.publisher("numbers.{x}", int)
TOTAL, PERIOD, BATCH = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

async def publish():
    await deferToThread(sys.stdin.readline)
    for number in range(TOTAL):
        numbers.publish(number, x="a", headers={"pad": "x" * 1000})
        if number % BATCH == 0:
            print("at", number, flush=True)
            await deferLater(reactor, PERIOD)
    print("sent", TOTAL, flush=True)

@app.on_startup
def begin():
    def watch(event):
        print("event", event.name, flush=True)
    app._live.run.transport.pub.watch(watch)
    Deferred.fromCoroutine(publish())

app.run()
"""

READER = """
import json, sys, time
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="reader")
EVERY, PAUSE = int(sys.argv[2]), float(sys.argv[3])
seen = []

@app.subscribe("numbers.{x}")
def number(n: int, x: str) -> None:
    seen.append(n)
    if len(seen) % EVERY == 0:
        time.sleep(PAUSE)

@app.every(0.2)
def tell() -> None:
    stats = app.stats
    line = [len(seen), stats.lost, stats.unknown_losses, stats.duplicate, seen == sorted(set(seen)), stats.peers]
    print(json.dumps(line), flush=True)

app.run()
"""


def accounted(lines: list[str]) -> int:
    """Return the number of messages that the reader has received or counted as lost."""
    told = [json.loads(line) for line in lines if line.startswith("[")]
    return sum(told[-1][:2]) if told else 0


def begin(reader: Child, publisher: Child) -> None:
    """Let the publisher begin when the reader has joined it, since earlier losses are not counted."""
    reader.wait_for(lambda lines: any(json.loads(line)[-1] for line in lines if line.startswith("[")))
    publisher.write("go\n")


def test_a_frozen_publisher_is_noticed_and_when_it_goes_on_nothing_is_uncounted(way: Way) -> None:
    """A publisher that is stopped until the reader connects again, and then continued, has exact losses."""
    meeting = way.meeting()
    with (
        Child("-c", READER, meeting.connect, "1000000", "0") as reader,
        Child("-c", PUBLISHER, meeting.bind, "20000", "0.02", "100") as publisher,
    ):
        begin(reader, publisher)
        publisher.line_with("at 5000")
        publisher.process.send_signal(signal.SIGSTOP)
        reader.line_with(
            f"is silent: the process is frozen or dead, or the connection is dead; reconnecting to {meeting.connect}",
            stream="err",
        )
        publisher.process.send_signal(signal.SIGCONT)
        publisher.line_with("sent 20000")
        reader.wait_for(lambda lines: accounted(lines) >= 20_000)
        assert publisher.end() == 0
        assert reader.end() == 0
    seen, lost, unknown, duplicate, ordered, _ = json.loads([line for line in reader.out if line.startswith("[")][-1])
    assert seen + lost == 20_000
    assert (unknown, duplicate, ordered) == (0, 0, True)


def test_no_slow_reader_is_ever_cut(way: Way) -> None:
    """A slow reader with a full backlog, stopped for longer than any timeout, cuts no connection."""
    meeting = way.meeting()
    with (
        Child("-c", READER, meeting.connect, "3000", "2.5") as reader,
        Child("-c", PUBLISHER, meeting.bind, "40000", "0.001", "500") as publisher,
    ):
        begin(reader, publisher)
        publisher.line_with("sent 40000")
        reader.wait_for(lambda lines: accounted(lines) >= 3_000)
        began = time.monotonic()
        reader.process.send_signal(signal.SIGSTOP)
        while time.monotonic() - began < 7:  # three times the longest timeout
            time.sleep(0.1)
        reader.process.send_signal(signal.SIGCONT)
        reader.wait_for(lambda lines: accounted(lines) >= 40_000)
        assert not any("disconnected" in line or "closed" in line for line in publisher.out)
        assert not any("silent" in line for line in reader.err)
        assert publisher.end() == 0
        assert reader.end() == 0
    seen, lost, unknown, duplicate, ordered, _ = json.loads([line for line in reader.out if line.startswith("[")][-1])
    assert seen + lost == 40_000
    assert lost > 0
    assert (unknown, duplicate, ordered) == (0, 0, True)
