"""Publishers, readers and a proxy as processes, with objects through which a test controls them.

A publisher publishes the numbers from 0 on while the test wants it to. A reader prints the numbers that it has handled,
so that a test can compare both exactly.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support import Child

_PUBLISHER = """
import os, signal, sys, threading
from zroute import App

endpoint, name, options = sys.argv[1], sys.argv[2], dict(option.split("=") for option in sys.argv[3:])
each, total = int(options.get("each", 2)), int(options.get("total", 10**9))
overflow, wire = options.get("overflow", "drop"), options.get("wire")
app = App(pub=endpoint.split(","), codec="json", name=name, overflow=overflow, wire=wire)
published, running = 0, False

def publish(number):
    global published
    for _ in range(min(number, total - published)):
        app.publish("numbers." + name, published)
        published += 1
        if published == total:
            print("published", published, flush=True)

def obey(command):
    global running
    running = command == "go"
    if command == "halt":
        print("published", published, flush=True)
    if command == "die":
        publish(500)
        os.kill(os.getpid(), signal.SIGKILL)

@app.every(0.01)
def work():
    if running:
        publish(each)

def listen():
    from twisted.internet import reactor
    for line in sys.stdin:
        reactor.callFromThread(obey, line.strip())

@app.on_startup
def begin():
    app._live.run.transport.pub.watch(lambda event: print("event", event.name, flush=True))
    threading.Thread(target=listen, daemon=True).start()
    print("up", flush=True)

print("loaded", flush=True)
if "waits" in options:
    sys.stdin.readline()
app.run()
"""

_READER = """
import json, sys, time
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zroute import App, as_awaitable

endpoints, options = sys.argv[1].split(","), dict(option.split("=") for option in sys.argv[2:])
pause, slow = float(options.get("pause", 0)), float(options.get("slow", 0))
app = App(sub=endpoints, codec="json", name="reader")
seen, told = {}, []

def note(number, name):
    first, count, last, gapless = seen.get(name, (number, 0, number - 1, True))
    seen[name] = [first, count + 1, number, gapless and number == last + 1]

def handle(number: int, name: str) -> None:
    note(number, name)
    if pause:
        time.sleep(pause)

async def handle_slowly(number: int, name: str) -> None:
    from twisted.internet import reactor
    await as_awaitable(deferLater(reactor, slow))
    note(number, name)  # one that is given up meanwhile is counted as dropped

if slow:
    app.add_route(handle_slowly, "numbers.{name}", queue=10, max_in_flight=1)
else:
    app.add_route(handle, "numbers.{name}")

@app.every(0.1)
def tell() -> None:
    stats = app.stats
    dropped = sum(route.dropped_at_shutdown for route in stats.routes.values())
    line = json.dumps({"seen": seen, "lost": stats.lost, "unknown": stats.unknown_losses, "dropped": dropped})
    if line not in told:
        told[:] = [line]
        print(line, flush=True)

async def wait():
    await app.ready(int(options.get("ready", 1)), timeout=120)
    print("ready", flush=True)

@app.on_startup
def begin():
    app._live.run.transport.sub.watch(lambda event: print("event", event.name, event.address, flush=True))
    if options.get("wire") != "plain":
        Deferred.fromCoroutine(wait()).addErrback(lambda failure: print(failure, flush=True))

try:
    app.run()
finally:
    tell()
"""

_PROXY = """
import sys, zmq

context = zmq.Context()
context.set(zmq.IPV6, any("[" in endpoint for endpoint in sys.argv))
front, back = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
front.set(zmq.RCVHWM, 0)  # or it would drop what has gathered while a busy machine did not run one of the processes
back.set(zmq.SNDHWM, 0)
front.bind(sys.argv[1])
back.bind(sys.argv[2])
print("forwarding", flush=True)
zmq.proxy(front, back)
"""


class Stream:
    """A publisher's process. It publishes nothing until `go`."""

    def __init__(self, child: Child, name: str) -> None:
        self.child = child
        self.name = name

    def command(self, word: str) -> None:
        """Send a command: "go", "halt", or "die" to publish 500 messages and end by SIGKILL before all are sent."""
        self.child.write(word + "\n")

    def halt(self) -> int:
        """Stop publishing, and return the number of published messages."""
        self.command("halt")
        return self.published()

    def published(self) -> int:
        """Wait until it has published its total, or has halted; return the number of published messages."""
        return int(self.child.line_with("published").split()[1])

    def kill(self) -> None:
        """End the process by SIGKILL, and wait for its end."""
        self.child.end(signal.SIGKILL)

    def cuts(self) -> list[str]:
        """Return the ends of connections that it has reported."""
        return [line for line in self.child.out if line == "event disconnected"]


class Reader:
    """A reader's process, with the messages that it has handled of each publisher, and its counters."""

    def __init__(self, child: Child) -> None:
        self.child = child

    def state(self) -> Any:
        """Return the latest state that it has printed."""
        return next((json.loads(line) for line in reversed(self.child.out) if line.startswith("{")), {"seen": {}})

    def handled(self, name: str) -> int:
        """Return the number of handled messages of the publisher ``name``."""
        return int(self.state()["seen"].get(name, (0, 0))[1])

    def wait_for(self, name: str, number: int) -> None:
        """Wait until it has handled ``number`` messages of the publisher ``name``."""
        self.child.wait_for(lambda _: self.handled(name) >= number)

    def connections(self, address: str) -> int:
        """Return the number of connections to ``address`` so far.

        Tests compare this number: libzmq does not report the end of a connection that its own side has given up, but it
        reports the next one. The reports may write the host in another way, so only the port is compared.
        """
        port = address.rpartition(":")[2]
        lines = (line for line in self.child.out if line.startswith("event handshake_succeeded"))
        return sum(line.endswith(f":{port}") for line in lines)

    def stop(self) -> Any:
        """End it by SIGTERM, and return its final state; the exit code is 75 if it has dropped messages."""
        assert self.child.end(signal.SIGTERM) == (75 if self.state()["dropped"] else 0), self.child.err
        return self.state()


@contextmanager
def stream(endpoint: str, name: str, **options: object) -> Iterator[Stream]:
    """Run a publisher.

    Args:
        endpoint: The endpoint to bind, or to connect to if it begins with ``connect:``; several with commas.
        name: The name of the app, and the last part of its topic ``numbers.{name}``.
        options: ``each``, the number of messages in 10 ms; ``total``, the number after which it stops; ``overflow`` and
            ``wire`` of the app; ``waits=True`` to start the app only when a line is written.
    """
    arguments = [f"{option}={value}" for option, value in {"wire": "tracked", **options}.items()]
    with Child("-c", _PUBLISHER, endpoint, name, *arguments) as child:
        child.line_with("loaded" if "waits" in options else "up")
        yield Stream(child, name)


@contextmanager
def reader(*endpoints: str, **options: object) -> Iterator[Reader]:
    """Run a reader and, unless its publishers are plain, wait until it is ready.

    Args:
        endpoints: The endpoints to connect to.
        options: ``ready``, the number of publishers to wait for; ``pause``, the seconds for which the handler blocks;
            ``slow``, the seconds for which the handler, one call at a time, waits; ``wire="plain"``.
    """
    with Child(
        "-c", _READER, ",".join(endpoints), *(f"{option}={value}" for option, value in options.items())
    ) as child:
        child.line_with("{" if options.get("wire") == "plain" else "ready")
        yield Reader(child)


@contextmanager
def proxy(front: str, back: str) -> Iterator[Child]:
    """Run an XSUB/XPUB proxy without limits of its queues: publishers connect to ``front``, readers to ``back``."""
    with Child("-c", _PROXY, front, back) as child:
        child.line_with("forwarding")
        yield child
