"""Losses between processes are counted exactly: at full queues, over restarts, and at the end."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import zmq

from tests.support import Child, Way, sized
from zroute.options import CARRIED

pytestmark = pytest.mark.slow

PUBLISHER = """
import json, sys
from zroute import App

app = App(pub="bind:" + sys.argv[1], codec="json", name="feed")
numbers = app.publisher("numbers.{x}", int)
TOTAL, SIZE = int(sys.argv[2]), int(sys.argv[3])

async def publish():
    from twisted.internet import reactor
    from twisted.internet.task import deferLater
    await app.ready_to_go
    for number in range(TOTAL):
        numbers.publish(number, x=str(number % 7), headers={"pad": "x" * SIZE} if SIZE else None)
        if number % 500 == 0:
            await deferLater(reactor, 0.001)
    print("sent", TOTAL, flush=True)

@app.on_startup
def begin():
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    app.ready_to_go = Deferred()
    def look():
        if app._live.run._publisher.session.counters.markers:
            app.ready_to_go.callback(None)
        else:
            reactor.callLater(0.01, look)
    look()
    Deferred.fromCoroutine(publish())

app.run()
"""

SUBSCRIBER = """
import json, sys, time
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="reader")
PAUSE, EVERY, LONG = float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
seen = []
gaps = []

@app.subscribe("numbers.{x}")
def number(n: int, x: str) -> None:
    seen.append(n)
    if len(seen) == LONG:
        sys.stdin.readline()  # until the publisher has sent everything, so that the queues overflow on any machine
    if len(seen) % EVERY == 0:
        time.sleep(PAUSE)

@app.on_gap
def gap(gap):
    gaps.append((gap.first, gap.last))

@app.every(0.2)
def tell():
    stats = app.stats
    counts = [stats.joins, len(seen), stats.lost, stats.gaps, stats.unknown_losses, stats.duplicate]
    print(json.dumps(counts), flush=True)

@app.on_shutdown
def end():
    stats = app.stats.as_dict()
    print(json.dumps({"seen": len(seen), "distinct": len(set(seen)), "ordered": seen == sorted(seen), "missing": gaps,
                      "balanced": stats["received"] == stats["routed"] + stats["unrouted"] + stats["malformed"]
                      + stats["duplicate"] + stats["control"], **stats}), flush=True)

app.run()
"""


def told(child: Child, least: int) -> None:
    """Wait until the reader has received or counted ``least`` messages."""
    child.wait_for(lambda lines: any(line.startswith("[") and sum(json.loads(line)[1:3]) >= least for line in lines))


@pytest.mark.parametrize(("pause", "every"), [(0.0, 10**9), (0.6, 3_000), (2.0, 9_000)])
def test_what_a_slow_reader_loses_is_counted_exactly(way: Way, pause: float, every: int) -> None:
    """Handled and lost messages are together all that were sent, including the last one, and none repeats."""
    meeting, total = way.meeting(), sized(100_000, 40_000)
    with (
        Child("-c", SUBSCRIBER, meeting.connect, str(pause), str(every), str(every if pause else 0)) as reader,
        Child("-c", PUBLISHER, meeting.bind, str(total), "600") as publisher,
    ):
        publisher.line_with(f"sent {total}")
        reader.write("go on\n")
        told(reader, total)
        assert reader.end() == 0
        assert publisher.end() == 0
    stats = json.loads(reader.out[-1])
    assert stats["seen"] + stats["lost"] == total
    assert stats["seen"] == stats["distinct"]
    assert stats["ordered"]
    assert stats["balanced"]
    assert sum(last - first + 1 for first, last in stats["missing"]) == stats["lost"]
    assert stats["unknown_losses"] == stats["duplicate"] == stats["malformed"] == 0
    assert stats["lost"] > 0 or not pause


ATTACHING = (
    SUBSCRIBER.replace(
        """    if len(seen) % EVERY == 0:
""",
        """    if len(seen) == 3_000:
        app.wider = app.attach(startswith("n"), lambda n: None)
    if len(seen) >= 15_000:
        close_when_joined()
    if len(seen) % EVERY == 0:
""",
    )
    .replace(
        """@app.every(0.2)
def tell():
""",
        """app.wider = None

def close_when_joined():
    if app.wider and app.stats.joins >= 2:  # the answer may be lost like all else, and asked for again
        app.wider.close()
        app.wider = None
        print("closed", flush=True)

@app.every(0.2)
def tell():
    if len(seen) >= 15_000 or app.stats.lost:
        close_when_joined()
""",
    )
    .replace("import App", "import App, startswith")
)


def test_a_wider_pattern_that_comes_and_goes_under_load_changes_no_count(way: Way) -> None:
    """If a wider pattern is attached and closed while messages are lost, the counters stay exact."""
    meeting, total = way.meeting(), sized(100_000, 40_000)
    with (
        Child("-c", ATTACHING, meeting.connect, "0.6", "3000", "6000") as reader,
        Child("-c", PUBLISHER, meeting.bind, str(total), "600") as publisher,
    ):
        publisher.line_with(f"sent {total}")
        reader.write("go on\n")
        told(reader, total)
        reader.line_with("closed")
        assert publisher.end() == 0
        assert reader.end() == 0
    stats = json.loads(reader.out[-1])
    assert (stats["seen"] + stats["lost"], stats["distinct"]) == (total, stats["seen"])
    assert (stats["unknown_losses"], stats["duplicate"]) == (0, 0)
    assert stats["joins"] >= 2
    assert stats["lost"] > 0


LONG = "a.b.c.d.e.f.g.h.i.j"

MANY_COVER = f"""
import sys
from twisted.internet.defer import Deferred
from zroute import App

app = App(pub=sys.argv[1], codec="json")
numbers = app.publisher("{LONG}", int)

async def publish():
    await numbers.wait_for_subscribers(2, timeout=120)
    for number in range(1000):
        numbers.publish(number)
    print("sent", flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(publish())

app.run()
"""

NARROW = f"""
import sys
from zroute import App

app, seen = App(sub=sys.argv[1], codec="json"), []

@app.subscribe("{LONG}")
def handle(number: int) -> None:
    seen.append(number)

@app.on_shutdown
def tell():
    print("seen", len(seen), "lost", app.stats.lost, app.stats.unknown_losses, flush=True)

app.run()
"""


def test_who_has_a_subscription_that_messages_have_no_room_for_sees_no_false_gap(way: Way) -> None:
    """A subscription whose number does not fit into a message sees no false gap."""
    meeting = way.meeting()
    context: zmq.Context[Any] = zmq.Context()
    others = context.socket(zmq.SUB)
    for length in range(CARRIED + 1):
        others.subscribe(LONG[:length].encode())
    others.set(zmq.IPV6, "[" in meeting.connect)
    others.connect(meeting.connect)
    with Child("-c", NARROW, meeting.connect) as reader, Child("-c", MANY_COVER, meeting.bind) as publisher:
        publisher.line_with("sent")
        assert publisher.end() == 0
        reader.line_with("were received or counted", stream="err")
        assert reader.end() == 0
        assert reader.line_with("seen") == "seen 1000 lost 0 0"
    context.destroy(linger=0)


def test_a_publisher_that_stops_says_goodbye_and_one_that_is_killed_is_told_of(way: Way) -> None:
    """A goodbye leaves no loss; SIGKILL and a restart leave an unknown loss, not zero."""
    meeting = way.meeting()
    with Child("-c", SUBSCRIBER, meeting.connect, "0", "1000000", "0") as reader:
        with Child("-c", PUBLISHER, meeting.bind, "1000", "0") as first:
            first.line_with("sent")
            told(reader, 1000)
            assert first.end() == 0
        reader.line_with("were received or counted", stream="err")
        with Child("-c", PUBLISHER, meeting.bind, "1000", "0") as second:
            second.line_with("sent")
            told(reader, 2000)
            second.process.send_signal(signal.SIGKILL)
            second.process.wait()
        with Child("-c", PUBLISHER, meeting.bind, "1000", "0") as third:
            third.line_with("sent")
            told(reader, 3000)
            assert reader.end() == 0
            assert third.end() == 0
    stats = json.loads(reader.out[-1])
    assert (stats["seen"], stats["lost"], stats["unknown_losses"], stats["epochs"]) == (3000, 0, 1, 3)
    assert any(": restarted: publisher " in line for line in reader.err)
