"""Subscribers that send too many subscriptions: their cost to the publisher and to other subscribers is bounded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support import PATIENCE, Child, free_endpoint
from zroute.messages.control import pack_marker

pytestmark = pytest.mark.slow

PUBLISHER = """
import json, sys
from zroute import App, Limits

endpoint, most, topics = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
app = App(pub=endpoint, codec="json", name="feed", limits=Limits(max_subscription_bytes=most))
kept = app.publisher("kept.{k}", str, keep="last")
live = app.publisher("live", int)
number = 0

def rss():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

@app.on_startup
def begin():
    for k in range(topics):
        kept.publish("x" * 20, k=k)

@app.every(0.005)
def go():
    global number
    number += 1
    live.publish(number)

@app.every(0.1)
def say():
    out = app._live.run._publisher
    end = out.session
    print(json.dumps({
        "rss": rss(),
        "live": len(out._subscribers._live),
        "joining": len(end.kept._joining),
        "subscriptions": len(app._live.run.transport.pub.subscriptions),
    }), flush=True)

app.run()
"""

READER = """
import json, sys
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="desk")
got = []
app.add_route(lambda body: None, *[f"topics.of.some.length.{n:03}" for n in range(int(sys.argv[2]))])
if sys.argv[3:]:
    @app.subscribe("live")
    def on_live(n: int):
        if not got:
            print("live", flush=True)
        got.append(n)

    @app.every(0.1)
    def more():
        if len(got) > 20 and not attached:
            attached.extend(app.attach(f"topics.of.some.length.{n:03}", lambda body: None) for n in range(300))

attached = []

@app.every(0.1)
def say():
    stats = app.stats
    print(json.dumps({"lost": stats.lost, "unknown": stats.unknown_losses, "joins": stats.joins}), flush=True)

app.run()
"""


def said(lines: list[str]) -> dict[str, Any]:
    """Return the latest state that the child has printed."""
    found: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return found


def is_said(check: Callable[[dict[str, Any]], object]) -> Callable[[list[str]], object]:
    """Return a condition that is true when ``check`` accepts the child's latest state."""
    return lambda lines: any(line.startswith("{") for line in lines) and check(said(lines))


@contextmanager
def publisher(endpoint: str, *, most: int = 1 << 20, topics: int = 0) -> Iterator[Child]:
    """Run a publisher in a child process, and wait until it has started."""
    with Child("-c", PUBLISHER, endpoint, str(most), str(topics)) as child:
        child.line_with("{")
        yield child


@contextmanager
def raw(kind: int, endpoint: str) -> Iterator[Any]:
    """Return a connected socket without high-water marks."""
    with zmq.Context() as context, context.socket(kind) as socket:
        for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.RCVTIMEO, int(PATIENCE * 1000))):
            socket.set(option, value)
        socket.connect(endpoint)
        yield socket


def number_of(frame: bytes) -> int:
    """Return the number in a message of ``live``, after the header."""
    return int(frame[frame.index(b"\0") + 33 :])


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_a_flood_of_subscriptions_is_cut_and_no_other_reader_misses_a_message(kind: str, tmp_path: Path) -> None:
    """The publisher cuts a connection with too many bytes of subscriptions; other readers miss no message."""
    endpoint = free_endpoint() if kind == "tcp" else f"ipc://{tmp_path}/s"
    with publisher(endpoint, most=65_536) as feed, raw(zmq.SUB, endpoint) as honest, raw(zmq.XSUB, endpoint) as flood:
        honest.subscribe(b"live")
        first = number_of(honest.recv())
        for number in range(10_000):
            flood.send(b"\1" + b"%010d" % number + b"p" * 190)
        line = feed.line_with("closed the connection", stream="err")
        assert "feed: closed the connection of " in line
        assert "more than max_subscription_bytes=65,536. " in line
        assert "Limits(max_subscription_bytes=…)" in line
        flood.disconnect(endpoint)
        feed.wait_for(is_said(lambda state: state["subscriptions"] == state["live"] == 1))
        most = max(json.loads(line)["live"] for line in feed.out if line.startswith("{"))
        assert most <= 1 + 65_536 // 200
        for expected in range(first + 1, first + 200):
            assert number_of(honest.recv()) == expected
        assert feed.end() == 0


def test_those_who_join_share_what_is_kept() -> None:
    """300 subscribers that join for 20,000 kept messages cost the publisher a few MB, not a copy each."""
    endpoint = free_endpoint()
    with publisher(endpoint, topics=20_000) as feed, raw(zmq.XSUB, endpoint) as many:
        before = said(feed.wait_for(is_said(lambda state: state["rss"])))["rss"]
        for number in range(1, 301):
            many.send(b"\1" + pack_marker(number << 16, [b"kept."]))
        after = said(feed.wait_for(is_said(lambda state: state["joining"] == 300)))["rss"]
        assert after - before < 40  # MB; copies would be 1.4 MB each


def test_a_reader_that_asks_for_too_much_is_told_and_joins_less_and_less_often() -> None:
    """A reader that was cut waits 1 s, then 2 s; both logs name the option, and no loss is counted.

    It warns once a minute, and logs each return, and a missing answer when the publisher has ended.
    """
    endpoint, began = free_endpoint(), time.monotonic()
    with publisher(endpoint, most=4096) as feed, Child("-c", READER, endpoint, "300") as desk:
        first = desk.line_with("reconnecting in 1 s", stream="err")
        assert "max_subscription_bytes" in first
        assert f"desk: {endpoint}: the connection has ended again right after subscribing (30" in first
        returns = f"desk: connected to {endpoint} again"
        desk.wait_for(lambda lines: sum(returns in line for line in lines) >= 3, stream="err")
        number = sum(returns in line for line in desk.err)
        # The first return is soon, the next ones after 1 s, 2 s and so on. libzmq alone would return ten times in 1 s.
        assert time.monotonic() - began > 2 ** (number - 1) - 1
        feed.wait_for(lambda lines: sum("closed the connection" in line for line in lines) >= 3, stream="err")
        assert feed.end() == 0
        assert "max_subscription_bytes=4,096" in next(line for line in feed.err if "closed the connection" in line)
        desk.line_with(f"desk: no answer from {endpoint} for 3 s", stream="err")
        assert sum("WARNING" in line for line in desk.err) == 1
        assert said(desk.out) == {"lost": 0, "unknown": 0, "joins": 0}


def test_a_command_that_asks_for_too_much_is_told_too() -> None:
    """A command that is cut logs a line with its name, and waits longer and longer, as an app does."""
    endpoint, patterns = free_endpoint(), [f"topics.of.some.length.{number:03}" for number in range(300)]
    with publisher(endpoint, most=4096) as feed, Child("-m", "zroute", "tail", endpoint, *patterns) as tail:
        line = tail.line_with("reconnecting in 1 s", stream="err")
        assert f"zroute tail: {endpoint}: the connection has ended again right after subscribing (30" in line
        feed.wait_for(lambda lines: sum("closed the connection" in line for line in lines) >= 3, stream="err")


def test_a_reader_that_had_joined_counts_no_loss_that_is_none() -> None:
    """If a joined reader is cut for too many subscriptions, it reports at most one unknown loss for each."""
    endpoint = free_endpoint()
    with publisher(endpoint, most=4096) as feed, Child("-c", READER, endpoint, "1", "live") as desk:
        desk.line_with("live")
        feed.line_with("closed the connection", stream="err")
        desk.line_with("reconnecting in 1 s", stream="err")
        state = said(desk.wait_for(is_said(lambda state: state["joins"])))
        assert state["unknown"] <= 2  # one for each of the subscriptions that had an account


def test_a_stop_is_not_held_up_by_subscribers_that_answer_nothing() -> None:
    """If subscribers with 20,000 subscriptions never read, the goodbye is given up, and the process ends."""
    endpoint = free_endpoint()
    with publisher(endpoint) as feed, raw(zmq.XSUB, endpoint) as many:
        for number in range(20_000):
            many.send(b"\1q%09d" % number)
        for number in range(1, 1001):
            many.send(b"\1" + pack_marker(number << 16, [b"", b"q"]))
        feed.wait_for(is_said(lambda state: state["joining"] > 10))
        assert feed.end() == 0
        assert any("have not confirmed the goodbye" in line for line in feed.err), feed.err


def test_200000_subscriptions_cost_a_bounded_amount_of_memory() -> None:
    """A connection with six times the allowed subscriptions is cut, and libzmq's memory for it is freed."""
    endpoint = free_endpoint()
    with publisher(endpoint) as feed, raw(zmq.XSUB, endpoint) as flood:
        for number in range(200_000):
            flood.send(b"\1" + b"topic.of.some.length.%09d" % number)
        feed.line_with(
            "closed the connection", stream="err", patience=4 * PATIENCE
        )  # for a machine with many busy processes
        flood.disconnect(endpoint)
        feed.wait_for(is_said(lambda state: state["subscriptions"] == state["live"] == 0), patience=4 * PATIENCE)
        most = max(json.loads(line)["rss"] for line in feed.out if line.startswith("{"))
        assert most < 150  # MB; 55 before the flood, and 73 to 96 with it
        assert feed.end() == 0
