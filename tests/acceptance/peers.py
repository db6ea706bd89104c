"""Publishers and subscribers without zroute, each run as a separate process.

A PUB socket does not report its subscribers. So a publisher repeats the topic "sync" until the test, which sees it at
the reader, writes a line with the messages to send to standard input. The arguments are the peer's name and its
endpoint. A publisher binds the endpoint, with ``*`` as its port to let the system choose one, and prints it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import zmq

Parts = list[bytes]


def bound(kind: int) -> Any:
    """Return a socket without a send limit, bound to the endpoint of the command line; print the endpoint."""
    context = zmq.Context()
    context.set(zmq.IPV6, "[" in sys.argv[2])
    socket = context.socket(kind)
    socket.set(zmq.SNDHWM, 0)
    socket.bind(sys.argv[2])
    print(socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode(), flush=True)
    return socket


def serve(send: Callable[[Parts], None], sync: Parts) -> None:
    """Send ``sync`` repeatedly until the first line of input, then the messages of each line until the input ends."""
    told = threading.Event()
    lines: list[str] = []

    def listen() -> None:
        lines.append(sys.stdin.readline())
        told.set()

    threading.Thread(target=listen, daemon=True).start()
    while not told.wait(0.02):
        send(sync)
    for line in chain(lines, sys.stdin):
        for parts in json.loads(line):
            send([bytes.fromhex(part) for part in parts])


def pyzmq_publisher() -> None:
    """Run a PUB socket that sends the messages of the input."""
    socket = bound(zmq.PUB)
    serve(socket.send_multipart, [b"sync\0"])


def watching_publisher() -> None:
    """Run an XPUB socket that prints "subscribed" and answers "sync" at a subscription, and sends the input."""
    socket = bound(zmq.XPUB)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(0, zmq.POLLIN)
    rest = b""
    while True:
        ready = dict(poller.poll())
        if socket in ready and (told := socket.recv())[:1] == b"\1" and not told[1:].startswith(b"\xff\xffzr"):
            print("subscribed", flush=True)
            socket.send(b"sync\0")
        if 0 in ready:
            read = os.read(0, 65_536)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                for parts in json.loads(line):
                    socket.send_multipart([bytes.fromhex(part) for part in parts])


def million_parts() -> None:
    """Run a publisher that sends one message of 1,000,001 parts, and good ones."""
    socket = bound(zmq.PUB)

    def send(parts: Parts) -> None:
        if parts == [b"million"]:
            socket.send(b"news.a", zmq.SNDMORE)
            for _ in range(999_999):
                socket.send(b"", zmq.SNDMORE)
            socket.send(b"")
        else:
            socket.send_multipart(parts)

    serve(send, [b"sync\0"])


def logging_publisher() -> None:
    """Run pyzmq's logging handler, which publishes records with their level as the topic."""
    from zmq.log.handlers import PUBHandler

    socket = bound(zmq.PUB)
    log = logging.getLogger("pump")
    log.setLevel(logging.DEBUG)
    log.addHandler(PUBHandler(socket, root_topic="pump"))

    def send(parts: Parts) -> None:
        if parts[0].startswith((b"sync", b"end")):
            socket.send_multipart(parts)
        else:
            log.warning(parts[0].decode())

    serve(send, [b"sync\0"])


def txzmq_publisher() -> None:
    """Run txZMQ's ZmqPubConnection; the parts are tag and message."""
    from twisted.internet import reactor
    from txzmq import ZmqEndpoint, ZmqFactory, ZmqPubConnection

    endpoint = sys.argv[2]
    factory = ZmqFactory()
    factory.context.set(zmq.IPV6, "[" in endpoint)
    connection = ZmqPubConnection(factory, ZmqEndpoint("bind", endpoint))
    print(endpoint, flush=True)
    call: Any = reactor

    def send(parts: Parts) -> None:
        call.callFromThread(connection.publish, parts[1], parts[0])

    def work() -> None:
        serve(send, [b"sync", b""])

    threading.Thread(target=work, daemon=True).start()
    call.run()


def txzmq_subscriber() -> None:
    """Run txZMQ's ZmqSubConnection, subscribed to everything; its gotMessage prints tag and message."""
    from twisted.internet import reactor
    from txzmq import ZmqEndpoint, ZmqFactory, ZmqSubConnection

    class Subscriber(ZmqSubConnection):  # type: ignore[misc]
        def gotMessage(self, message: bytes, tag: bytes) -> None:
            print(json.dumps([tag.decode(), message.decode()]), flush=True)

    factory = ZmqFactory()
    factory.context.set(zmq.IPV6, "[" in sys.argv[2])
    Subscriber(factory, ZmqEndpoint("connect", sys.argv[2])).subscribe(b"")
    call: Any = reactor
    call.run()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
