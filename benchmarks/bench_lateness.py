"""Measure how late timers are during a flood of messages.

``python benchmarks/bench_lateness.py --seconds 10``

Two processes with the same 10 ms timer run at the same time on one machine. One of them reads a flood, the other is
idle. The difference is the cost of reading for the timers; the figures of the idle process show the machine's noise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from tests.support import ROOT, Child, free_endpoint

PERIOD = 0.01

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

READER = """
import json, sys
import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zroute import App

endpoint, seconds, period = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
app = App(sub=endpoint, codec="json", name="reader")
late = []

@attrs.frozen
class Quote:
    symbol: str
    price: float
    size: int

@app.subscribe("quotes.{x}")
def quote(quote: Quote) -> None:
    pass

def tick(due: float) -> None:
    now = reactor.seconds()
    late.append(now - due)
    if now < end:
        reactor.callLater(period, tick, now + period)
    else:
        reactor.stop()

@app.on_startup
def begin() -> None:
    global end
    end = reactor.seconds() + seconds
    reactor.callLater(period, tick, reactor.seconds() + period)

app.run()
late.sort()
print(json.dumps({
    "received": app.stats.received,
    "p50 ms": 1000 * late[len(late) // 2],
    "p99 ms": 1000 * late[len(late) * 99 // 100],
    "worst ms": 1000 * late[-1],
}))
"""


def main() -> None:
    """Print the figures of both processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--burst", type=int, default=60, help="messages published per millisecond (default 60)")
    options = parser.parse_args()
    endpoint = free_endpoint()
    with Child("-c", PUBLISHER, endpoint, str(options.burst)) as publisher:
        publisher.line_with("publishing")
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, address, str(options.seconds), str(PERIOD)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for address in (endpoint, free_endpoint())
        ]
        flooded, idle = (json.loads(reader.communicate()[0].splitlines()[-1]) for reader in readers)
    print("flooded", json.dumps(flooded))
    print("idle   ", json.dumps(idle))


if __name__ == "__main__":
    main()
