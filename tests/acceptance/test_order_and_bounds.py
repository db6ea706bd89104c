"""Order, bounds and pauses between processes over real sockets."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.cli.test_run import module
from tests.running import Mailbox, running, turns
from tests.support import PATIENCE, Child, free_endpoint, sized
from zroute import App

reactors = pytest.mark.parametrize("reactor", ["epoll", "asyncio"])


EMBEDDED = """
import sys
from zroute.runtime.runner import install_reactor
reactor = install_reactor(sys.argv[1])
from tests.acceptance.turns import sink
service = sink.service(reactor)
reactor.callWhenRunning(service.startService)
reactor.addSystemEventTrigger("before", "shutdown", lambda: service.stopService())
reactor.run()
"""


def worked(reactor: str, mode: str, total: int, bound: int, *, embedded: bool = False) -> dict[str, Any]:
    """Return the sink's outcome after ``total`` messages on 50 topics, with the app optionally ``embedded``."""
    seed = random.randrange(10**6)
    print("seed", seed)
    settings = {"TOTAL": str(total), "TOPICS": "50", "BOUND": str(bound), "MODE": mode, "SEED": str(seed)}
    settings |= {"SOURCE": free_endpoint(), "SINK": free_endpoint()}
    command = ("-m", "zroute", "run", "--reactor", reactor)
    sinks = ("-c", EMBEDDED, reactor) if embedded else (*command, "tests.acceptance.turns:sink")
    with (
        Child(*sinks, env=settings) as sink,
        Child(*command, "tests.acceptance.turns:source", env=settings) as source,
    ):
        outcome: dict[str, Any] = json.loads(sink.line_with('"once"'))
        assert sink.end(None) == 0
        if embedded:  # no log is set up, and Python prints warnings
            assert all(line.startswith("on_work()") for line in sink.err)
        else:
            assert "failed 0, unrouted 0, malformed 0" in sink.err[-1]
        assert source.end() == 0
    return outcome


@reactors
def test_messages_that_end_at_random_are_handled_once_in_order_within_the_bound(reactor: str) -> None:
    """Each message is handled once, in the order of its topic, with at most 20 in flight; 20,000 messages in CI."""
    outcome = worked(reactor, "ordered", sized(20_000, 5000), 20)
    assert outcome == {"once": True, "in order": True, "peak": 20, "faults": []}


@reactors
def test_an_embedded_app_keeps_order_and_bound(reactor: str) -> None:
    """An app embedded in a Twisted program keeps order and bound as well."""
    outcome = worked(reactor, "ordered", 5000, 20, embedded=True)
    assert outcome == {"once": True, "in order": True, "peak": 20, "faults": []}


@reactors
def test_without_order_the_bound_still_holds(reactor: str) -> None:
    """With ordered=False each message is handled once, and the bound holds."""
    outcome = worked(reactor, "unordered", 5000, 20)
    assert (outcome["once"], outcome["peak"], outcome["faults"]) == (True, 20, [])


@reactors
def test_handlers_in_threads_keep_the_order_of_their_topics(reactor: str) -> None:
    """With thread=True as many threads run as the bound allows, and no two of one topic."""
    outcome = worked(reactor, "thread", 2000, 5)
    assert (outcome["once"], outcome["in order"], outcome["faults"]) == (True, True, [])
    assert 1 < outcome["peak"] <= 5


STUCK = """
import os
from twisted.internet.defer import Deferred
from zroute import App, as_awaitable

app = App(sub=os.environ["ENDPOINT"])
stuck = []

@app.subscribe("n", queue=1)
async def on_n(n: int):
    if n < 10**6:
        stuck.append(Deferred())
        await as_awaitable(stuck[0])
    elif not done:
        done.append(n)
        print("after", flush=True)

done = []

def let_go(*_):
    stuck[0].callback(None)

import signal
from zroute.sockets.connection import Connection

turns = 0

def counted(method):
    def call(self):
        global turns
        turns += 1
        method(self)
    return call

Connection.doRead, Connection._poked = counted(Connection.doRead), counted(Connection._poked)

@app.on_startup
def listen():
    from twisted.internet import reactor
    signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(let_go))
    signal.signal(signal.SIGUSR2, lambda *_: print("turns", turns, flush=True))
"""

FLOOD = """
import os
from zroute import App
app = App(pub=os.environ["ENDPOINT"])

@app.publisher("n", int, every=float(os.environ["EVERY"]))
def flood() -> int:
    print("sent", flush=True)
    return 1

@app.on_startup
def listen():
    import signal
    signal.signal(signal.SIGUSR2, lambda *_: print("so far", flush=True))
"""


ANOTHER = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.XPUB)
socket.bind(sys.argv[1])
socket.recv()
print("subscribed", flush=True)
while True:
    socket.send(b"n\\0\\xce" + (10**6).to_bytes(4, "big"))
    time.sleep(0.001)
"""
"""A publisher that prints when it has a subscriber, and then sends the number one million."""


def turns_of(child: Child) -> int:
    """Return how often the blocked app has read its sockets."""
    before = len(child.out)
    child.process.send_signal(signal.SIGUSR2)
    return int(child.wait_for(lambda lines: len(lines) > before)[-1].split()[1])


@pytest.mark.parametrize("every", ["0.001", "0.1"])
@reactors
def test_a_paused_app_rests_and_keeps_its_subscriptions(tmp_path: Path, reactor: str, every: str) -> None:
    """While an app is paused by a full route, messages cost little, and a restarted publisher is noticed.

    If the waiting messages fill the socket's own queue as well, libzmq notices the restart only when the socket is read
    again; otherwise at once, even while the app is paused.
    """
    floods = every == "0.001"
    settings = {"ENDPOINT": free_endpoint(), "EVERY": every}
    module(tmp_path, STUCK, "stuck")
    module(tmp_path, FLOOD, "flood")
    with Child("-m", "zroute", "run", "stuck", "--reactor", reactor, cwd=tmp_path, env=settings) as child:
        with Child("-m", "zroute", "run", "flood", cwd=tmp_path, env=settings) as flood:
            line = child.line_with("queue full", stream="err")
            assert "on_n() at stuck.py:" in line
            before, sent = turns_of(child), len(flood.out)
            more = 1000 if floods else 20
            flood.wait_for(lambda lines: len(lines) >= sent + more)
            spent = turns_of(child) - before
            flood.process.send_signal(signal.SIGUSR2)
            flood.line_with("so far")  # all messages before are read, even if this process was late
            assert spent <= 3 * (len(flood.out) - sent)  # a busy loop would have a hundred of them in a millisecond
            flood.end(signal.SIGKILL)
        with Child("-c", ANOTHER, settings["ENDPOINT"]) as another:
            if floods:
                time.sleep(2.5)  # a heartbeat of libzmq would be due meanwhile
            else:
                another.line_with("subscribed")
            assert "after" not in child.out
            child.process.send_signal(signal.SIGUSR1)
            child.line_with("after")
            child.line_with("reading resumed", stream="err")
            assert child.end() == 0


@pytest_twisted.ensureDeferred
async def test_one_slow_handler_pauses_all_routes_and_the_counters_say_so(tmp_path: Path) -> None:
    """A blocked ordered handler pauses all routes, and the counters name its route."""
    endpoint = f"ipc://{tmp_path}/s"
    feed, app = App(pub=endpoint), App(sub=endpoint)
    stuck, others, go_on = Mailbox[int](), Mailbox[int](), Mailbox[int]()

    @app.subscribe("slow", queue=2)
    async def slow(number: int) -> None:
        stuck.put(number)
        await go_on.until(1)

    app.add_route(others.put, "quick")
    async with running(feed), running(app):
        await app.ready(1, timeout=PATIENCE)
        assert app.stats.paused_since is None
        before = time.time()
        for number in range(5):
            feed.publish("slow", number)
        feed.publish("quick", 0)
        await turns(lambda: app.stats.paused_since)
        assert before <= (app.stats.paused_since or 0) <= time.time()
        assert app.stats.paused_by == ("slow()",)
        assert (stuck.items, others.items) == ([0], [])
        go_on.put(0)
        assert await others.until(1) == [0]
        assert (app.stats.paused_since, app.stats.paused_by) == (None, ())
        assert await stuck.until(5) == list(range(5))
