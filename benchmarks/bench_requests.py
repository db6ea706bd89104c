"""Compare requests, replies and jobs of zroute with txZMQ and hand-written code.

Run ``python benchmarks/bench_requests.py [--rounds N] [--count N] [--json FILE]``.

Each contestant is two processes over tcp on this machine, both on Twisted's default reactor. Each round runs all
contestants, one after the other. The figures are medians over the rounds; quote the ratios, not the times.

One latency is of sequential requests, the other of 64 requests in flight; the rate is measured with 64. CPU includes
libzmq's own thread for the client and the puller, but not for the pusher. Requests have no options, as most users of
each library write them: zroute's then have a timeout of 10 s, txZMQ's none. Each library is also measured with the
other's setting.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import count
from typing import Any

import zmq

BODY = b'{"symbol":"AAPL","price":187.23,"volume":1200}'
WINDOW = 64
TIMEOUT = 10.0  # seconds; zroute's default
REQUESTS = ("bare", "zroute", "zroute, no timeout", "zroute.txzmq", "txZMQ", "txZMQ, timeout")
JOBS = ("bare", "bare, one part", "zroute", "zroute.txzmq", "txZMQ")
Ask = Callable[[Callable[[], object]], None]


class Bare:
    """A DEALER, ROUTER, PUSH or PULL in the reactor, as a user would write it.

    It is the least code that is correct.
    """

    def __init__(self, reactor: Any, kind: int, got: Callable[[list[bytes]], object]) -> None:
        self.socket = zmq.Context.instance().socket(kind)
        self.socket.set(zmq.LINGER, 0)
        self.reactor, self.got = reactor, got
        self.descriptor = self.socket.FD
        self.poked = False
        self.reads = kind != zmq.PUSH

    def start(self) -> None:
        """Start reading; call this when the socket is bound or connected."""
        self.reactor.addReader(self)
        self.poke()

    def fileno(self) -> int:
        """Return the descriptor, which never changes."""
        return int(self.descriptor)

    def logPrefix(self) -> str:
        """Return the name for Twisted's log."""
        return "bare"

    def connectionLost(self, reason: object) -> None:
        """Do nothing: the reactor never calls this here."""

    def poke(self) -> None:
        """Read in the next turn, because a send may have used up the descriptor's edge."""
        if not self.poked:
            self.poked = True
            self.reactor.callLater(0, self.look)

    def look(self) -> None:
        """Read the socket, as planned by `poke`."""
        self.poked = False
        self.doRead()

    def doRead(self) -> None:
        """Read up to 256 messages, then let other readers run."""
        if not self.reads:
            self.socket.get(zmq.EVENTS)
            return
        receive, got = self.socket.recv_multipart, self.got
        try:
            for _ in range(256):
                got(receive(zmq.NOBLOCK))
        except zmq.Again:
            if not self.poked:
                return
        if self.socket.get(zmq.EVENTS) & zmq.POLLIN:
            self.poke()

    def send(self, parts: list[bytes]) -> None:
        """Send at once, or raise zmq.Again."""
        self.socket.send_multipart(parts, zmq.NOBLOCK)
        self.poke()

    def send_one(self, part: bytes) -> None:
        """Send a message of one part; cheaper than `send`."""
        self.socket.send(part, zmq.NOBLOCK)
        self.poke()


# -- servers: print their address, and run until they are killed ---------------------------------------------


def serve(contestant: str, reactor: Any) -> object:
    """Return a server that replies with the request."""
    if contestant.startswith("zroute") and contestant != "zroute.txzmq":
        from zroute.sockets.reqrep import RepConnection

        rep = RepConnection(reactor, lambda request: request.reply(*request.parts))
        print(rep.open("tcp://127.0.0.1:*"), flush=True)
        return rep
    if contestant == "bare":
        bare = Bare(reactor, zmq.ROUTER, lambda parts: bare.send(parts))
        bare.socket.bind("tcp://127.0.0.1:*")
        print(bare.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode(), flush=True)
        bare.start()
        return bare
    library = library_of(contestant)

    class Server(library.ZmqREPConnection):  # type: ignore[misc, name-defined]
        def gotMessage(self, id: bytes, *parts: bytes) -> None:
            self.reply(id, *parts)

    made = Server(library.ZmqFactory(), library.ZmqEndpoint("bind", "tcp://127.0.0.1:*"))
    print(made.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode(), flush=True)
    return made


def library_of(contestant: str) -> Any:
    """Return txZMQ, or zroute's module with the same API."""
    if contestant.startswith("txZMQ"):
        import txzmq

        return txzmq
    import zroute.txzmq

    return zroute.txzmq


def asker(contestant: str, reactor: Any, address: str) -> Ask:
    """Return a function that sends one request and calls back with its reply."""
    if contestant.startswith("zroute") and contestant != "zroute.txzmq":
        from zroute.sockets.reqrep import ReqConnection

        req = ReqConnection(reactor)
        req.open(address)
        if contestant == "zroute":
            return lambda done: req.request(BODY).addCallback(lambda _: done()) and None
        return lambda done: req.request(BODY, timeout=None).addCallback(lambda _: done()) and None
    if contestant == "bare":
        numbers, waiting = count(), dict[bytes, Callable[[], object]]()
        bare = Bare(reactor, zmq.DEALER, lambda parts: waiting.pop(parts[0])())
        bare.socket.connect(address)
        bare.start()

        def ask(done: Callable[[], object]) -> None:
            id = b"%d" % next(numbers)
            waiting[id] = done
            bare.send([id, b"", BODY])

        return ask
    library = library_of(contestant)
    made = library.ZmqREQConnection(library.ZmqFactory(), library.ZmqEndpoint("connect", address))
    if contestant == "txZMQ, timeout":
        return lambda done: made.sendMsg(BODY, timeout=TIMEOUT).addCallback(lambda _: done()) and None
    return lambda done: made.sendMsg(BODY).addCallback(lambda _: done()) and None


def percentile(seconds: list[float], percent: int) -> float:
    """Return the given percentile in microseconds."""
    return sorted(seconds)[len(seconds) * percent // 100] * 1e6


def client(contestant: str, reactor: Any, address: str, total: int) -> None:
    """Send requests one after the other, then in windows; print the figures as JSON."""
    ask = asker(contestant, reactor, address)
    alone: list[float] = []
    together: list[float] = []
    began: tuple[float, float]
    sent = 0

    def one() -> None:
        asked = time.perf_counter()

        def reply() -> None:
            alone.append(time.perf_counter() - asked)
            one() if len(alone) < total // 10 else reactor.callLater(0, many)

        ask(reply)

    def many() -> None:
        nonlocal began
        began = time.perf_counter(), time.process_time()
        for _ in range(WINDOW):
            more()

    def more() -> None:
        nonlocal sent
        sent += 1
        asked = time.perf_counter()

        def reply() -> None:
            together.append(time.perf_counter() - asked)
            if sent < total:
                more()
            elif len(together) == total:
                finish()

        ask(reply)

    def finish() -> None:
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        figures = {
            "requests/s": total / wall,
            "CPU us": cpu / total * 1e6,
            "p50 us": percentile(alone, 50),
            "p99 us": percentile(alone, 99),
            f"p50 of {WINDOW} us": percentile(together, 50),
            f"p99 of {WINDOW} us": percentile(together, 99),
        }
        print(json.dumps(figures), flush=True)
        reactor.stop()

    one()


# -- push and pull ---------------------------------------------------------------------------------------


def push(contestant: str, reactor: Any, address: str, total: int) -> object:
    """Push ``total`` jobs as fast as a puller accepts them; print the CPU per job."""
    from twisted.internet.task import deferLater

    connection: Any
    if contestant == "zroute":
        from zroute.sockets.pipeline import PushConnection

        connection = PushConnection(reactor)
        connection.open(f"connect:{address}")
        send = connection.send
    elif contestant.startswith("bare"):
        connection = Bare(reactor, zmq.PUSH, list)
        connection.socket.set(zmq.SNDHWM, 1000)
        connection.socket.connect(address)
        connection.start()
        send = connection.send_one if contestant == "bare, one part" else lambda body: connection.send([body])
    else:
        library = library_of(contestant)

        class Push(library.ZmqPushConnection):  # type: ignore[misc, name-defined]
            highWaterMark = 1000  # noqa: N815

        connection = Push(library.ZmqFactory(), library.ZmqEndpoint("connect", address))
        send = connection.push
    from zroute.errors import HighWaterMarkError

    left, spent, full = total, 0, (zmq.Again, HighWaterMarkError)

    def some() -> None:
        nonlocal left, spent
        began, here = time.thread_time_ns(), left
        try:
            for _ in range(min(left, 200)):
                send(BODY)
                left -= 1
        except full:
            pass
        if left < here:
            spent += time.thread_time_ns() - began  # failed attempts measure the queue, not the contestant
        if left:
            reactor.callLater(0 if left < here else 0.001, some)
        else:
            print(json.dumps({"push ns": spent / total}), flush=True)

    deferLater(reactor, 0.2, some)
    return connection


def pull(contestant: str, reactor: Any, total: int) -> object:
    """Pull ``total`` jobs; print the CPU per job."""
    pulled = 0
    began = 0.0

    def got(parts: list[bytes]) -> None:
        nonlocal pulled, began
        if not pulled:
            began = time.process_time()
        pulled += 1
        if pulled == total:
            print(json.dumps({"pull us": (time.process_time() - began) / total * 1e6}), flush=True)
            reactor.callLater(0, reactor.stop)

    made: Any
    if contestant == "zroute":
        from zroute.sockets.pipeline import PullConnection

        made = PullConnection(reactor, got)
        print(made.open("bind:tcp://127.0.0.1:*"), flush=True)
        return made
    if contestant.startswith("bare"):
        made = Bare(reactor, zmq.PULL, got)
        made.socket.bind("tcp://127.0.0.1:*")
        print(made.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode(), flush=True)
        made.start()
        return made
    library = library_of(contestant)

    class Pull(library.ZmqPullConnection):  # type: ignore[misc, name-defined]
        def onPull(self, message: list[bytes]) -> None:
            got(message)

    made = Pull(library.ZmqFactory(), library.ZmqEndpoint("bind", "tcp://127.0.0.1:*"))
    print(made.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode(), flush=True)
    return made


def role(name: str, contestant: str, *rest: str) -> None:
    """Run the part of this process in the benchmark."""
    from twisted.internet import reactor

    kept: list[object] = []
    if name == "serve":
        kept.append(serve(contestant, reactor))
    elif name == "client":
        reactor.callWhenRunning(client, contestant, reactor, rest[0], int(rest[1]))  # type: ignore[attr-defined]
    elif name == "pull":
        kept.append(pull(contestant, reactor, int(rest[0])))
    else:
        kept.append(push(contestant, reactor, rest[0], int(rest[1])))
    reactor.run()  # type: ignore[attr-defined]


# -- the runs --------------------------------------------------------------------------------------------


def started(*arguments: str) -> subprocess.Popen[str]:
    """Start this file in another process."""
    return subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that the process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def requests_of(contestant: str, total: int) -> dict[str, float]:
    """Run requests once and return the figures."""
    with started("serve", contestant) as server:
        with started("client", contestant, line(server), str(total)) as asking:
            figures: dict[str, float] = json.loads(line(asking))
        server.kill()
    return figures


def jobs_of(contestant: str, total: int) -> dict[str, float]:
    """Run push and pull once, each with a bare peer."""
    figures: dict[str, float] = {}
    runs = [("bare", contestant)]
    if contestant != "bare, one part":
        runs.append((contestant, "bare"))
    for puller, pusher in runs:
        with (
            started("pull", puller, str(total)) as pulling,
            started("push", pusher, line(pulling), str(total)) as pushing,
        ):
            if pusher == contestant:
                figures |= json.loads(line(pushing))
            if puller == contestant:
                figures["pull us"] = json.loads(line(pulling))["pull us"]
            pulling.wait()
            pushing.kill()
    return figures


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    """Measure, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    requests, jobs = REQUESTS, JOBS
    if find_spec("txzmq") is None:
        print("txZMQ is not installed: skipped")
        requests, jobs = (tuple(name for name in names if "txZMQ" not in name) for names in (requests, jobs))
    found: dict[str, dict[str, list[float]]] = {name: {} for name in (*requests, *jobs)}
    for turn in range(arguments.rounds):
        for measure, names, total in (
            (requests_of, requests, arguments.count),
            (jobs_of, jobs, arguments.count * 2),
        ):
            first = turn % len(names)  # rotate, so that no contestant always follows the same one
            for name in names[first:] + names[:first]:
                for what, value in measure(name, total).items():
                    found[name].setdefault(what, []).append(value)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, pyzmq {zmq.__version__}, "
        f"libzmq {zmq.zmq_version()}, {arguments.rounds} rounds of {arguments.count} requests, interleaved"
    )
    medians = {name: {what: statistics.median(values) for what, values in all.items()} for name, all in found.items()}
    base = medians["bare"]
    print(f"{'':18}" + "".join(f"{what:>16}" for what in base))
    for name, figures in medians.items():
        cells = (
            f"{_short(figures[what])} ({figures[what] / base[what]:.2f})" if what in figures else "" for what in base
        )
        print(f"{name:18}" + "".join(f"{cell:>16}" for cell in cells))
    print("In parentheses: ratios to the hand-written code. Ratios of request rates within rounds:")
    for ours, theirs in (("zroute", "txZMQ"), ("zroute, no timeout", "txZMQ"), ("zroute", "txZMQ, timeout")):
        if theirs in found:
            pairs = zip(found[ours]["requests/s"], found[theirs]["requests/s"], strict=True)
            ratios = sorted(mine / other for mine, other in pairs)
            print(f"{ours} / {theirs}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"figures": found, "median": medians}, file, indent=1)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        role(*sys.argv[1:])
    else:
        sys.exit(main())
