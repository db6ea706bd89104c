"""A publisher whose subscriber has no room drops and counts messages, raises, or waits."""

from __future__ import annotations

import json

from tests.support import Child, Way, sized

MANY = sized(100_000, 30_000)

READER = """
import json, sys
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="reader")
seen = []

@app.subscribe("numbers.{x}")
def number(n: int, x: str) -> None:
    seen.append(n)
    if len(seen) == 3000:
        sys.stdin.readline()  # stands still until the publisher has no room

@app.every(0.1)
def tell() -> None:
    stats = app.stats
    print(json.dumps([len(seen), seen == list(range(len(seen))), stats.lost, stats.gaps]), flush=True)

app.run()
"""

PUBLISHER = """
import sys
from twisted.internet import reactor
from twisted.internet.task import deferLater
from zroute import App, HighWaterMarkError

app = App(pub="bind:" + sys.argv[1], codec="json", name="feed", overflow=sys.argv[2])
numbers, other = app.publisher("numbers.{x}", int), app.publisher("other.{x}", int)
PAD = {"pad": "x" * 1000}
refused = waited = 0

def full():
    if not refused and not waited:
        print("full", flush=True)

async def publish():
    global refused, waited
    while not app._live.run._publisher.session.counters.markers:
        await deferLater(reactor, 0.01)
    for number in range(int(sys.argv[3])):
        while True:
            try:
                sent = numbers.publish(number, x="a", headers=PAD)
                break
            except HighWaterMarkError:
                full()
                refused += 1
                other.publish(number, x="b")
                await deferLater(reactor, 0.01)
        if repr(sent) != "<done>":
            full()
            waited += 1
            other.publish(number, x="b")
            await sent
        if number % 200 == 0:
            await deferLater(reactor, 0)
    full()
    print("refused", refused, "waited", waited, flush=True)

@app.on_startup
def begin():
    from twisted.internet.defer import Deferred
    Deferred.fromCoroutine(publish())

app.run()
"""


def run(way: Way, overflow: str) -> tuple[list[int], list[str]]:
    """Return the reader's final report, and the publisher's words."""
    meeting = way.meeting()
    with (
        Child("-c", READER, meeting.connect) as reader,
        Child("-c", PUBLISHER, meeting.bind, overflow, str(MANY)) as publisher,
    ):
        publisher.line_with("full")
        reader.write("go on\n")
        said = publisher.line_with("refused").split()
        # A beat shows the loss of the last messages.
        reader.wait_for(lambda lines: lines and sum(json.loads(lines[-1])[::2]) >= MANY)
        report = json.loads(reader.out[-1])
        assert publisher.end() == 0, publisher.err
        assert reader.end() == 0
    return report, said


def test_one_that_waits_loses_nothing(way: Way) -> None:
    """With overflow="wait" a reader that stands still receives all, in order, and other topics go on."""
    (seen, ordered, lost, gaps), said = run(way, "wait")
    assert (seen, ordered, lost, gaps) == (MANY, True, 0, 0)
    assert int(said[3]) > 0


def test_one_that_raises_loses_nothing_that_was_not_refused(way: Way) -> None:
    """With overflow="raise" the caller gets each refusal and publishes again, without a gap in the numbers."""
    (seen, ordered, lost, gaps), said = run(way, "raise")
    assert (seen, ordered, lost, gaps) == (MANY, True, 0, 0)
    assert int(said[1]) > 0


def test_one_that_drops_is_not_held_up(way: Way) -> None:
    """With overflow="drop" the publisher does not wait, and the reader counts its losses."""
    (seen, _, lost, gaps), said = run(way, "drop")
    assert said == ["refused", "0", "waited", "0"]
    assert seen + lost == MANY
    assert gaps > 0
