"""Thousands of subscriptions reach a publisher through a stock proxy, also after a restart of the proxy."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support import Child, Way

pytestmark = pytest.mark.slow

MANY = 5000
BLOCK = 500  # messages that are published at once; a proxy drops what its queues can't take, 1,000 a peer

PUBLISHER = """
import sys, threading
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zroute import App

app = App(pub=sys.argv[1], codec="json", name="feed", overflow="wait")

async def publish(first, end):
    for number in range(first, end):
        await app.publish(f"topic.{number:05}", number)

def listen():
    for line in sys.stdin:
        reactor.callFromThread(Deferred.fromCoroutine, publish(*map(int, line.split())))

@app.on_startup
def begin():
    threading.Thread(target=listen, daemon=True).start()
    print("up", flush=True)

app.run()
"""

READER = """
import json, sys, threading
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zroute import App, Topic

app = App(sub=sys.argv[1], codec="json", name="reader")
seen, topics, said = 0, set(), ""

def handle(number: int, topic: Topic) -> None:
    global seen
    seen += 1
    topics.add(str(topic))

for number in range(int(sys.argv[2])):
    app.subscribe(f"topic.{number:05}")(handle)

@app.every(0.1)
def tell() -> None:
    global said
    said, before = json.dumps([seen, len(topics), app.stats.lost]), said
    if said != before:
        print(said, flush=True)

async def wait(word):
    await app.ready(1, timeout=120)
    print("ready", word, flush=True)

def ask(word):
    Deferred.fromCoroutine(wait(word)).addErrback(lambda failure: print(failure, flush=True))

def listen():
    for line in sys.stdin:
        reactor.callFromThread(ask, line.strip())

@app.on_startup
def begin():
    app._live.run.transport.sub.watch(lambda event: print("event", event.name, flush=True))
    threading.Thread(target=listen, daemon=True).start()
    ask("first")

app.run()
"""


def told(lines: list[str]) -> list[int]:
    """Return the latest report of the reader: messages, topics, lost."""
    return next((json.loads(line) for line in reversed(lines) if line.startswith("[")), [0, 0, 0])


def times(reader: Child, name: str) -> int:
    """Return the number of times that the reader has reported an event of its connections."""
    return reader.out.count(f"event {name}")


def publish(publisher: Child, reader: Child) -> None:
    """Publish one message of each topic, and wait until the reader has handled or counted all of them."""
    before = sum(told(reader.out)[::2])
    for first in range(0, MANY, BLOCK):
        end = first + BLOCK
        publisher.write(f"{first} {end}\n")
        reader.wait_for(lambda lines, end=end: sum(told(lines)[::2]) >= before + end)


def test_5000_topics_are_subscribed_through_a_proxy_and_through_its_successor(way: Way) -> None:
    """After ready() each of 5,000 topics arrives; after a restart of the proxy and ready(), each does again."""
    front, back = way.meeting(), way.meeting()
    with (
        Child("-c", PUBLISHER, front.bind) as publisher,
        Child("-c", READER, back.connect, str(MANY)) as app,
    ):
        publisher.line_with("up")
        with Child("-m", "chaos.forwarder", f"bind:{back.bind}", f"connect:{front.connect}") as forwarder:
            forwarder.line_with("forwarding")
            app.line_with("ready first")
            publish(publisher, app)
            assert told(app.out) == [MANY, MANY, 0]
            ended = times(app, "disconnected")
            forwarder.end(signal.SIGKILL)
        app.wait_for(lambda _: times(app, "disconnected") > ended)
        begun = times(app, "handshake_succeeded")
        with Child("-m", "chaos.forwarder", f"bind:{back.bind}", f"connect:{front.connect}") as forwarder:
            forwarder.line_with("forwarding")
            app.wait_for(lambda _: times(app, "handshake_succeeded") > begun)
            app.write("second\n")
            app.line_with("ready second")
            publish(publisher, app)
            assert told(app.out) == [2 * MANY, MANY, 0]
