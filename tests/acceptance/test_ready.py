"""A reported join is complete: with thousands of subscriptions, and through a proxy without zroute."""

from __future__ import annotations

import json
import signal

from tests.support import Child, Way, sized

MANY = sized(20_000, 4_000)

PUBLISHER = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zroute import App

# Nothing may be dropped, however slow the reader: what is missing then is a subscription that was not there.
app = App(pub=sys.argv[1], codec="json", name="feed", overflow="wait")
TOTAL = int(sys.argv[2])

async def publish():
    for number in range(TOTAL):
        await app.publish(f"topic{number:05}", number)
    print("published", flush=True)

@app.on_startup
def begin():
    from threading import Thread
    Thread(
        target=lambda: (sys.stdin.readline(), reactor.callFromThread(Deferred.fromCoroutine, publish())), daemon=True
    ).start()
    print("bound", flush=True)

app.run()
"""

READER = """
import json, sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zroute import App, Topic

app = App(sub=sys.argv[1], codec="json", name="reader")
TOTAL = int(sys.argv[2])
seen = []

def handle(number: int, topic: Topic) -> None:
    seen.append((topic, number))
    if len(seen) == TOTAL:
        print("all", flush=True)

for number in range(TOTAL):
    app.subscribe(f"topic{number:05}")(handle)

async def wait():
    await app.ready(1, timeout=120)
    print("ready", flush=True)

@app.on_startup
def begin():
    print("started", flush=True)
    Deferred.fromCoroutine(wait()).addErrback(lambda failure: print(failure, flush=True))

app.run()
print(json.dumps([len(set(seen)), app.stats.lost, app.stats.unknown_losses, app.stats.joins >= 1]))
"""


def exchanged(publisher: Child, reader: Child, total: int) -> None:
    """Wait for ready, then check that one message for each subscription arrives."""
    reader.line_with("started")
    reader.line_with("ready")
    publisher.write("go\n")
    publisher.line_with("published")
    reader.line_with("all")
    assert reader.end() == 0
    assert publisher.end() == 0
    seen, lost, _, joined = json.loads(reader.out[-1])  # losses may be unknown: a stop may not send 20,000 beats
    assert (seen, lost, joined) == (total, 0, True)


def test_thousands_of_subscriptions_are_all_active_when_the_reader_is_ready(way: Way) -> None:
    """ZeroMQ may drop subscriptions sent at once; ready() returns only when the publisher has them all."""
    meeting = way.meeting()
    with (
        Child("-c", PUBLISHER, meeting.bind, str(MANY)) as publisher,
        Child("-c", READER, meeting.connect, str(MANY)) as reader,
    ):
        publisher.line_with("bound")
        exchanged(publisher, reader, MANY)


def test_ready_works_through_a_stock_proxy(way: Way) -> None:
    """A join through an XSUB/XPUB forwarder of plain pyzmq completes, and no later message is missing."""
    front, back = way.meeting(), way.meeting()
    with (
        Child("-c", PUBLISHER, front.bind, "500") as publisher,
        Child("-m", "chaos.forwarder", f"bind:{back.bind}", f"connect:{front.connect}") as forwarder,
        Child("-c", READER, back.connect, "500") as reader,
    ):
        publisher.line_with("bound")
        forwarder.line_with("forwarding")
        exchanged(publisher, reader, 500)


WAITS_FOR_ITSELF = """
import sys
from twisted.internet import reactor
from zroute import App, NotReadyError, NotRunningError

app = App(sub=sys.argv[1], name="reader")

@app.subscribe("a")
def handle(number: int) -> None: ...

@app.on_startup
async def begin():
    try:
        await app.ready(1, timeout=0.2)
    except NotReadyError as error:
        print(error, flush=True)
    reactor.callLater(0, app.stop)
    try:
        await app.ready(1, timeout=60)
    except NotRunningError as error:
        print(error, flush=True)

app.run()
"""


def test_who_waits_in_on_startup_is_told_that_it_waits_for_itself() -> None:
    """ready() in on_startup raises an error that says that it cannot succeed there."""
    with Child("-c", WAITS_FOR_ITSELF, "tcp://127.0.0.1:1") as reader:
        for found in ("was not ready within 0.2 s: on_startup has not ended", "has stopped before it subscribed"):
            assert "not in on_startup itself" in reader.line_with(found)
        assert reader.end(None) == 0


NAMES_WHO_IS_SILENT = """
import sys
from twisted.internet.defer import Deferred
from zroute import App, NotReadyError

app = App(sub=sys.argv[1:], name="reader")

@app.subscribe("a")
def handle(number: int) -> None: ...

async def wait():
    await app.ready(1, timeout=120)
    try:
        await app.ready(3, timeout=3)
    except NotReadyError as error:
        print(error, flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(wait())

app.run()
"""


def test_who_is_not_ready_is_told_which_endpoints_are_silent(way: Way) -> None:
    """The error of ready() names the two endpoints of three that did not answer."""
    there, frozen, nobody = (way.meeting() for _ in range(3))
    with (
        Child("-c", PUBLISHER, there.bind, "1") as publisher,
        Child("-c", PUBLISHER, frozen.bind, "1") as stopped,
    ):
        publisher.line_with("bound")
        stopped.line_with("bound")
        stopped.process.send_signal(signal.SIGSTOP)
        with Child("-c", NAMES_WHO_IS_SILENT, there.connect, frozen.connect, nobody.connect) as reader:
            line = reader.line_with("not ready within 3 s: 1 publishers have answered (feed@")
            stopped.process.send_signal(signal.SIGCONT)
            assert f"; no answer from connect:{frozen.connect}" in line or f"; no answer from {frozen.connect}" in line
            assert f"{nobody.connect} (not connected)" in line
            assert reader.end() == 0
        assert publisher.end() == 0
        assert stopped.end() == 0
