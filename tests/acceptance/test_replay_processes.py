"""A publisher or a proxy is killed in the middle of a replay, between processes.

The handler of the reader blocks at one message of the past until the test has killed a process and started another one.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.acceptance.test_recovery_processes import proxy
from tests.interpreters import UNMEASURED
from tests.support import Child, free_endpoint, sized

pytestmark = pytest.mark.slow

TOTAL = sized(20_000, 4_000)
"""The messages of the past: the answers to many requests."""

MIDDLE = 1_000
"""The message at which the handler blocks. More than one request was answered, and most of the past has not arrived."""

PUBLISHER = """
import sys, threading
from zroute import App, History

ADDRESS, NAME, TOTAL = sys.argv[1], sys.argv[2], int(sys.argv[3])
app = App(pub=ADDRESS, codec="json", name="feed")
numbers = app.publisher("numbers.{x}", list, history=History(messages=100_000))
sent, flows = 0, True

def publish():
    global sent
    numbers.publish([NAME, sent], x=str(sent % 7), headers={"pad": "x" * 600})
    sent += 1

@app.on_startup
def begin():
    threading.Thread(target=listen, daemon=True).start()
    for _ in range(TOTAL):
        publish()
    print("filled", flush=True)

@app.every(0.01)
def live():
    if flows:
        publish()

def listen():
    from twisted.internet import reactor
    sys.stdin.readline()
    reactor.callFromThread(stop)

def stop():
    global flows
    flows = False
    print("sent", sent, flush=True)

app.run()
"""

READER = """
import json, sys
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="reader", recover=sys.argv[3] == "recover")
MIDDLE = int(sys.argv[2])
seen = {"first": [], "second": []}

@app.subscribe("numbers.{x}", since="all")
def number(body: list, x: str) -> None:
    name, number = body
    seen[name].append(number)
    if name == "first" and number == MIDDLE:
        print("middle", flush=True)
        sys.stdin.readline()

@app.every(0.1)
def tell():
    print(json.dumps([len(seen["first"]), len(seen["second"])]), flush=True)

@app.on_shutdown
def end():
    print(json.dumps({**app.stats.as_dict(), **seen}), flush=True)

app.run()
"""


def publisher_at(address: str, name: str) -> Child:
    """Return a publisher with a past, which then sends live messages until it gets a line."""
    return Child("-c", PUBLISHER, address, name, str(TOTAL), env=UNMEASURED)


def reader_of(address: str, recover: str = "") -> Child:
    """Return a reader that replays, and blocks in the middle until it gets a line."""
    return Child("-c", READER, address, str(MIDDLE), recover, env=UNMEASURED)


def result_of(reader: Child, publisher: Child, which: int) -> tuple[dict[str, Any], int]:
    """Stop the publisher, and the reader when it has everything; return its counters, and the messages sent."""
    publisher.write("stop\n")
    sent = int(publisher.line_with("sent").split()[1])
    reader.wait_for(lambda lines: any(line.startswith("[") and json.loads(line)[which] >= sent for line in lines))
    assert publisher.end() == 0
    assert reader.end() == 0
    found: dict[str, Any] = json.loads(reader.out[-1])
    assert found["malformed"] == 0
    return found, sent


def test_a_publisher_that_is_killed_in_a_replay_leaves_a_counted_past() -> None:
    """What had not arrived of its past is counted, nothing is handled twice, and its next run sends its own past."""
    address = free_endpoint()
    with reader_of(address) as reader:
        with publisher_at(f"bind:{address}", "first") as first:
            first.line_with("filled")
            reader.line_with("middle")
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        with publisher_at(f"bind:{address}", "second") as second:
            second.line_with("filled")
            reader.write("go on\n")
            found, sent = result_of(reader, second, 1)
    assert found["second"] == list(range(sent))
    seen = found["first"]
    past = next((at for at, number in enumerate(seen) if number != at), len(seen))
    live = seen[past:]  # those that had arrived and waited for the past
    assert MIDDLE < past < TOTAL
    assert past + found["lost"] >= TOTAL
    assert live == list(range(past + found["lost"], past + found["lost"] + len(live)))
    assert found["unknown_losses"] > 0  # its last messages


def test_a_proxy_that_is_killed_in_a_replay_loses_nothing() -> None:
    """The replay goes on through the next proxy; the past and the live messages arrive in order, each once."""
    back, front = free_endpoint(), free_endpoint()
    with publisher_at(f"connect:{front}", "first") as publisher:
        publisher.line_with("filled")
        with reader_of(back, "recover") as reader:
            with proxy(back, front) as first:
                reader.line_with("middle")
                first.process.send_signal(signal.SIGKILL)
                first.process.wait()
            with proxy(back, front) as second:
                for side in ("front", "back"):
                    second.line_with(f"event {side} handshake_succeeded")
                reader.write("go on\n")
                found, sent = result_of(reader, publisher, 0)
    assert found["first"] == list(range(sent))
    assert found["replayed"] >= TOTAL
    assert found["lost"] == found["unknown_losses"] == 0
