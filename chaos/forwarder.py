"""A stock XSUB/XPUB proxy: ``python -m chaos.forwarder BACK FRONT ...``.

Endpoints begin with ``bind:`` or ``connect:``; see also `chaos.keyed.attach`. The proxy prints its connections, one
line each: ``event front|back name address``, with the event names of libzmq's monitor.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from chaos.keyed import attach
from chaos.parent import end_with_parent


def main() -> None:
    """Forward messages until the process is killed."""
    back_endpoint, *front_endpoints = sys.argv[1:]
    end_with_parent()
    context: zmq.Context[Any] = zmq.Context()
    front, back = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    for name, socket in (("front", front), ("back", back)):
        threading.Thread(target=tell, args=(name, socket.get_monitor_socket()), daemon=True).start()
    for endpoint in front_endpoints:
        attach(front, endpoint)
    attach(back, back_endpoint)
    say("forwarding")
    zmq.proxy(front, back)


def say(*words: str) -> None:
    """Print a line in one piece, because several threads do so."""
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def tell(name: str, monitor: Any) -> None:
    """Print the events of one socket."""
    while True:
        event = recv_monitor_message(monitor)
        say("event", name, event["event"].name.lower(), event["endpoint"].decode())


if __name__ == "__main__":
    main()
