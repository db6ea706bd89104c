"""Measure how late timers are during a flood.

``python benchmarks/bench_lateness.py --seconds 10``

Two processes with the same 10 ms timer run at the same time on one machine. One of them reads a flood, the other is
idle. The difference is the cost of reading for the timers; the figures of the idle process show the machine's noise.

With ``--requests 1000``, both are publishers with a history of 20,000 messages, which publish 1,000 messages a second.
One of them gets this number of requests a second: for lost messages, for its past, and for messages that it never sent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack

import zmq

from tests.support import ROOT, Child, free_endpoint
from zroute.messages.recovery import Past, Since, SinceMode, pack_box, pack_past_request, pack_recovery_request
from zroute.messages.wire import NUL, parse_header

PERIOD = 0.01
SUBSCRIBERS = 20
"""The number of subscribers that the requests name."""

TIMER = """
import json, sys
import attrs
from twisted.internet import reactor
from zroute import App, History

endpoint, seconds, period = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
late = []

def tick(due: float) -> None:
    now = reactor.seconds()
    late.append(now - due)
    if now < end:
        reactor.callLater(period, tick, now + period)
    else:
        reactor.stop()

def begin() -> None:
    global end
    end = reactor.seconds() + seconds
    reactor.callLater(period, tick, reactor.seconds() + period)
    print("began", flush=True)

def run(app: App) -> None:
    app.on_startup(begin)
    app.run()
    late.sort()
    print(json.dumps({
        "received": app.stats.received,
        "p50 ms": 1000 * late[len(late) // 2],
        "p99 ms": 1000 * late[len(late) * 99 // 100],
        "worst ms": 1000 * late[-1],
    }))
"""

PUBLISHER = """
import sys
from zroute import App

app = App(pub=sys.argv[1], codec="json", name="flood")
body = {"symbol": "a", "price": 1.5, "size": 10}

@app.every(0.001)
def publish() -> None:
    for _ in range(int(sys.argv[2])):
        app.publish("quotes.a", body)

@app.on_startup
def begin() -> None:
    print("publishing", flush=True)

app.run()
"""

READER = f"""{TIMER}
app = App(sub=endpoint, codec="json", name="reader")

@attrs.frozen
class Quote:
    symbol: str
    price: float
    size: int

@app.subscribe("quotes.{{x}}")
def quote(quote: Quote) -> None:
    pass

run(app)
"""

WITH_HISTORY = f"""{TIMER}
app = App(pub=endpoint, codec="json", name="publisher")
quotes = app.publisher("quotes.a", dict, history=History(messages=20_000))

@app.every(period)
def publish() -> None:
    for number in range(int(1_000 * period)):
        quotes.publish({{"price": 1.5}})

@app.on_startup
def fill() -> None:
    for number in range(20_000):
        quotes.publish({{"price": 1.5}})

run(app)
"""


def ask(endpoint: str, rate: int, seconds: float) -> tuple[int, int]:
    """Send ``rate`` requests a second to a publisher, or fewer if it is slower.

    Return the number of requests, and the number of received frames.
    """
    sent, received, began, standing = 0, 0, time.monotonic(), deque[bytes]()
    with zmq.Context() as context, context.socket(zmq.XSUB) as peer:
        peer.set(zmq.LINGER, 0)
        peer.connect(endpoint)
        for topic in (b"quotes.", *map(pack_box, range(SUBSCRIBERS))):
            peer.send(b"\x01" + topic)
        epoch = parse_header(peer.recv().partition(NUL)[2]).epoch
        for number in itertools.count(1):
            if (passed := time.monotonic() - began) > seconds:
                break
            time.sleep(max(sent / rate - passed, 0))
            lost = [(first, first + 50) for first in range(1 + number % 1_000 * 20, 20_000, 997)][:20]
            never_sent = [(10**9 + number, 10**9 + number + 1_000)]
            given = number % SUBSCRIBERS, number, epoch, b"quotes."
            for request in (
                pack_recovery_request(*given, lost)[0],
                pack_recovery_request(*given, never_sent)[0],
                pack_past_request(*given, Past(2**63, 1, Since(SinceMode.ALL))),
            ):
                peer.send(b"\x01" + request)
                standing.append(request)
                sent += 1
            while len(standing) > 300:
                peer.send(b"\x00" + standing.popleft())
            while peer.poll(0):
                peer.recv()
                received += 1
    return sent, received


def main() -> None:
    """Print the figures of both processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--burst", type=int, default=60, help="messages published per millisecond (default 60)")
    parser.add_argument(
        "--requests", type=int, default=0, help="flood a publisher with requests; their number a second"
    )
    options = parser.parse_args()
    flooded, quiet = free_endpoint(), free_endpoint()
    with ExitStack() as stack:
        if not options.requests:
            publisher = stack.enter_context(Child("-c", PUBLISHER, flooded, str(options.burst)))
            publisher.line_with("publishing")
        timed = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    WITH_HISTORY if options.requests else READER,
                    address,
                    str(options.seconds),
                    str(PERIOD),
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for address in (flooded, quiet)
        ]
        for each in timed:
            assert each.stdout is not None
            each.stdout.readline()
        if options.requests:
            print("requests, received frames:", *ask(flooded, options.requests, options.seconds - 0.5))
        for name, each in zip(("flooded", "idle   "), timed, strict=True):
            print(name, json.dumps(json.loads(each.communicate()[0].splitlines()[-1])))


if __name__ == "__main__":
    main()
