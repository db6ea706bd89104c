"""A reader that can't keep up for good, with a publisher that keeps a history: overload must not become a second queue.

Recovery then only delays messages. The stream therefore gives up what is missing and rests, and memory stays bounded.
The handler blocks, so the reader is too slow on any machine; coverage measures neither side.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.interpreters import UNMEASURED
from tests.support import Child, free_endpoint

pytestmark = pytest.mark.slow

SIZE = 8_000
"""The size of a message. All messages together need several times the memory that the reader may use."""

PUBLISHER = f"""
import sys, threading
from twisted.internet import reactor
from zroute import App, History, Limits

app = App(pub=sys.argv[1], codec="raw", name="feed", limits=Limits(send_queue=200))
numbers = app.publisher("numbers", bytes, history=History(messages=100_000))
pad, sent, flows = bytes({SIZE}), 0, False

@app.every(0.004)
def publish():
    global sent
    for _ in range(20 * flows):
        numbers.publish(sent.to_bytes(8, "big") + pad)
        sent += 1

@app.every(0.2)
def tell():
    print(sent, flush=True)

def stop():
    global flows
    flows = False
    print("sent", sent, flush=True)

def listen():
    sys.stdin.readline()
    reactor.callFromThread(stop)

@app.on_startup
def begin():
    from twisted.internet.defer import Deferred
    threading.Thread(target=listen, daemon=True).start()
    Deferred.fromCoroutine(flow())

async def flow():
    global flows
    await numbers.wait_for_subscribers(1, timeout=60)
    flows = True

app.run()
"""

READER = """
import json, resource, sys, threading, time
from zroute import App, Limits

app = App(sub=sys.argv[1], codec="raw", name="reader", recover=True, limits=Limits(receive_queue=200))
seen, gaps, slow = [], [], True

@app.subscribe("numbers")
def number(body: bytes) -> None:
    seen.append(int.from_bytes(body[:8], "big"))
    if slow:
        time.sleep(0.001)

@app.on_gap
def gap(gap):
    gaps.append((gap.first - 1, gap.last))  # numbers begin at 1

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def facts():
    streams = app._live.run._accounts._recoveries._session._streams.values()
    rest = max((stream._rest for stream in streams), default=1)
    return {"handled": len(seen), "lost": app.stats.lost, "peak": peak(), "rest": rest}

@app.every(0.2)
def tell():
    print(json.dumps(facts()), flush=True)

def listen():
    global slow
    sys.stdin.readline()
    slow = False

@app.on_startup
def begin():
    threading.Thread(target=listen, daemon=True).start()

@app.on_shutdown
def end():
    print(json.dumps({**facts(), "seen": seen, "gaps": gaps, "unknown": app.stats.unknown_losses}), flush=True)

app.run()
"""


def told(reader: Child) -> dict[str, Any]:
    """Return the latest report of the reader."""
    lines = [line for line in reader.out if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"handled": 0, "lost": 0, "rest": 0}


def test_overload_makes_a_stream_rest_and_each_loss_is_counted() -> None:
    """A reader that can't keep up gives up twice, with rests; its memory is bounded, and its count is exact."""
    address = free_endpoint()
    with (
        Child("-c", READER, address, env=UNMEASURED) as reader,
        Child("-c", PUBLISHER, f"bind:{address}", env=UNMEASURED) as publisher,
    ):
        reader.wait_for(lambda _: told(reader)["handled"] > 0)
        before = told(reader)["peak"]
        reader.wait_for(lambda _: told(reader)["rest"] >= 4)  # it has rested for 1 s, and rests for 2 s
        publisher.wait_for(lambda lines: int(lines[-1]) * SIZE > 512 << 20)
        publisher.write("stop\n")
        total = int(publisher.line_with("sent").split()[1])
        reader.write("go on\n")
        reader.wait_for(lambda _: told(reader)["handled"] + told(reader)["lost"] >= total)
        assert reader.end() == 0
        assert publisher.end() == 0
    found = told(reader)
    seen = found["seen"]
    assert all(one < other for one, other in pairwise(seen))
    lost = [number for first, last in found["gaps"] for number in range(first, last)]
    assert sorted([*seen, *lost]) == list(range(total))
    assert found["lost"] == len(lost) > 0
    assert found["unknown"] == 0
    assert found["peak"] - before < 128
