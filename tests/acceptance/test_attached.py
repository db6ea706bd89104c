"""Attached handlers and streams in ``zroute run``, on both kinds of reactor, during a stream of messages."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conversation import PRELUDE
from tests.support import Child

KINDS = pytest.mark.parametrize("kind", ["epoll", "asyncio"])

APPS = """
from twisted.internet import reactor

publisher = App(pub="ipc://{folder}/s", name="publisher")
app = App(sub="ipc://{folder}/s", name="app")
plain, slow, attached = [], [], []
state = {{"churned": False, "last": 0, "cycles": 0}}

def turn():
    later = defer.Deferred()
    reactor.callLater(0, later.callback, None)
    return as_awaitable(later)

@publisher.every(0.002)
def publish() -> None:
    if slow and slow[-1] < state["last"] - 500:
        return  # or ZeroMQ would drop what is too much for its queues
    for _ in range(50 if slow else 1):
        state["last"] += 1
        publisher.publish("end" if state["churned"] else "n.a", state["last"])
        if state["churned"]:
            return

@app.subscribe("n.{{x}}")
def note(number: int) -> None:
    plain.append(number)
    if len(plain) == 1:
        publisher.publish("start", 0)

@app.subscribe("n.*", queue=50)
async def note_slowly(number: int) -> None:
    if number % 97 == 0:
        await turn()
    slow.append(number)

@app.subscribe("start")
async def churn(number: int) -> None:
    for cycle in range(1000):
        pattern = ("n.>", "n.a", "m.>", ">")[cycle % 4]
        if cycle % 8 < 6:
            handle = app.attach(pattern, attached.append)
            await turn()
            handle.close()
        else:
            async with app.stream(pattern, int, queue=5) as messages:
                if pattern != "m.>":
                    await anext(messages)
        state["cycles"] += 1
    state["churned"] = True

@app.subscribe("end")
def end(number: int) -> None:
    if not state.get("ended"):
        state["ended"] = True
        say("end", number)

@app.on_shutdown
def bye() -> None:
    say(state["cycles"], plain == slow == list(range(plain[0], plain[-1] + 1)), plain[-1], len(attached))
    say(app.stats.as_dict(), sorted(prefix.decode() for prefix in app._live.run._table.subscriptions))
"""


@pytest.mark.slow
@KINDS
def test_a_thousand_cycles_beside_a_stream_of_messages_disturb_nobody(kind: str, tmp_path: Path) -> None:
    """1,000 cycles of attach and close lose, repeat or reorder no message, and leave the first subscriptions."""
    (tmp_path / "churning.py").write_text(PRELUDE + APPS.format(folder=tmp_path))
    run = ("-m", "zroute", "run", "--app-dir", str(tmp_path), "churning:publisher", "churning:app")
    with Child(*run, "--reactor", kind) as child:
        child.line_with('"end"')
        assert child.end(signal.SIGTERM) == 0, child.err
    (_, last), (cycles, in_order, newest, attached), (stats, subscriptions) = (json.loads(line) for line in child.out)
    assert (cycles, in_order) == (1000, True)
    assert attached > 0
    assert newest == last - 1
    assert subscriptions == ["end", "n.", "start"]
    assert stats["malformed"] == stats["unrouted"] == 0
    assert all(route["handler_error"] == route["decode_error"] == 0 for route in stats["routes"].values())
    assert not [line for line in child.err if "ERROR" in line]


ROOMS = """
import asyncio
from twisted.internet import reactor

app = App(name="rooms")

def background(coroutine):
    if {is_asyncio}:
        asyncio.ensure_future(coroutine)
    else:
        defer.Deferred.fromCoroutine(coroutine)

async def listen():
    async with app.stream("rooms.{{x}}", int, queue=10) as messages:
        say("listening")
        async for message in messages:
            later = defer.Deferred()
            reactor.callLater(0.001, later.callback, None)
            await as_awaitable(later)
            heard.append(message)
    say("left", heard == list(range(heard[0], heard[0] + len(heard))), len(heard))

heard, sent = [], []

@app.on_startup
async def start():
    background(listen())

@app.publisher("rooms.a", every=0.001)
def talk() -> int | None:
    if heard and len(sent) - heard[-1] > 500:
        return None  # or the loop would have too much to read if a busy machine runs the test late
    sent.append(1)
    return len(sent)

@app.on_shutdown
def bye():
    say("bye", app.stats.as_dict())
"""


@KINDS
def test_the_loop_over_a_stream_ends_with_the_program(kind: str, tmp_path: Path) -> None:
    """At Ctrl-C, a loop over a stream reads all that has arrived and then ends; no message is dropped."""
    (tmp_path / "rooms.py").write_text(PRELUDE + ROOMS.format(is_asyncio=kind == "asyncio"))
    with Child("-m", "zroute", "run", "--app-dir", str(tmp_path), "rooms", "--reactor", kind) as child:
        child.line_with("queue full", stream="err")
        assert child.end() == 0, child.err
    said: list[Any] = [json.loads(line) for line in child.out]
    assert said[0] == ["listening"]
    assert sorted(one[0] for one in said[1:]) == ["bye", "left"]
    left, bye = (next(one for one in said if one[0] == word) for word in ("left", "bye"))
    (stats,) = bye[1]["routes"].values()
    assert left[1] is True
    assert left[2] == stats["handled"] == bye[1]["routed"]
    assert stats["dropped_at_shutdown"] == stats["queued"] == 0
