"""A subscriber process that reads as fast or slowly as a test needs.

``python -m tests.cli.listener ENDPOINT PREFIX PAUSE [HEARTBEAT]`` prints a line for each message: the monotonic time
of its arrival, and its parts as hex digits. It pauses for a millisecond after each PAUSE messages; 0 is never.
Its socket has the options of zroute's own subscribers. With HEARTBEAT, it also sends a PING at this interval in
milliseconds. A topic that begins with "end" ends the process.
"""

from __future__ import annotations

import sys
import time

import zmq

from zroute.options import subscriber_options
from zroute.sockets.connection import make_socket


def main(endpoint: str, prefix: str, pause: int, heartbeat: int = 0) -> None:
    """Print the received messages."""
    socket = make_socket(zmq.Context.instance(), zmq.SUB, subscriber_options())
    socket.set(zmq.HEARTBEAT_IVL, heartbeat)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 60_000)  # a PONG arrives after all unread messages
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
