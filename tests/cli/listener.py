"""A subscriber in a process of its own, as fast or slow as the test wants it.

``python -m tests.cli.listener ENDPOINT PREFIX PAUSE [HEARTBEAT]``: prints each message as the monotonic time it came
at and the hex digits of its parts. PAUSE is the number of messages after which it rests for a millisecond, 0 for never.
Its socket has the options of zroute's own subscribers, and sends a PING each HEARTBEAT milliseconds, if that is given.
A topic that begins with "end" ends it.
"""

from __future__ import annotations

import sys
import time

import zmq

from zroute.options import subscriber_options
from zroute.sockets.connection import make_socket


def main(endpoint: str, prefix: str, pause: int, heartbeat: int = 0) -> None:
    """Print what comes."""
    socket = make_socket(zmq.Context.instance(), zmq.SUB, subscriber_options())
    socket.set(zmq.HEARTBEAT_IVL, heartbeat)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 60_000)  # a PONG waits behind all that is still to be read
    verb, _, address = endpoint.partition(":")
    socket.bind(address) if verb == "bind" else socket.connect(endpoint)
    socket.subscribe(prefix.encode())
    print("ready", flush=True)
    count = 0
    while True:
        parts = socket.recv_multipart()
        count += 1
        print(time.monotonic(), *(part.hex() for part in parts), flush=not pause or parts[0].startswith(b"end"))
        if parts[0].startswith(b"end"):
            break
        if pause and count % pause == 0:
            time.sleep(0.001)
    socket.close(0)
    zmq.Context.instance().term()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
