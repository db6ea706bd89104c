"""First parts that are not topics: a publisher sends JSON headers or pickles of 200 kB before its messages."""

from __future__ import annotations

import json
import pickle

import zmq

from tests.support import PATIENCE, Child, free_endpoint

MEGABYTES = 400
SIZE = 200_000
AT_ONCE = 100
GROWTH = 100
"""The MB that the reader may have grown by at the end; it has received four times as much."""

READER = """
import resource, sys
from zroute import App, Limits, startswith

app = App(sub=sys.argv[1], limits=Limits(max_message=1_000_000))
handled = 0

@app.subscribe(startswith(""))
def handle(body: bytes) -> None:
    global handled
    handled += 1
    if body == b"ask":
        with open("/proc/self/statm") as statm:
            rss = int(statm.read().split()[1]) * resource.getpagesize() / 1e6
        print("rss", rss, handled, flush=True)

app.run()
"""


def test_headers_before_messages_fill_no_memory() -> None:
    """400 MB of unique first parts are all handled with bounded memory, and one log line explains them."""
    endpoint = free_endpoint()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Child("-c", READER, endpoint) as reader:
        pub = context.socket(zmq.XPUB)
        pub.bind(endpoint)
        pub.set(zmq.RCVTIMEO, int(PATIENCE * 1000))
        pub.recv()  # the subscription
        sent, rss = 0, []
        for lot in range(MEGABYTES * 1_000_000 // SIZE // AT_ONCE):
            for number in range(AT_ONCE):
                unique = {"number": lot * AT_ONCE + number, "data": "x" * SIZE}
                first = json.dumps(unique).encode() if number % 2 else pickle.dumps(unique, protocol=0)
                pub.send_multipart([first, b"body"])
            pub.send_multipart([b"a topic", b"ask"])
            sent += AT_ONCE + 1
            rss.append(float(reader.line_with(f" {sent}").split()[1]))
        assert rss[-1] - rss[0] < GROWTH
        assert any("of more than 255 bytes" in line for line in reader.err)
        assert sum("of more than 255 bytes" in line for line in reader.err) == 1
    context.destroy(linger=0)
