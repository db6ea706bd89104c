"""Open and close each kind of connection many times, and report what is left.

``python -m tests.sockets.life --cycles 10000``.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from zroute.sockets.pipeline import PullConnection, PushConnection
from zroute.sockets.pubsub import PubConnection, SubConnection, XPubConnection, XSubConnection
from zroute.sockets.reqrep import RepConnection, ReqConnection
from zroute.sockets.router_dealer import DealerConnection, PairConnection, RouterConnection

KINDS: dict[str, Callable[..., Any]] = {
    "PUB": PubConnection,
    "SUB": lambda reactor, **options: SubConnection(reactor, list, **options),
    "XPUB": XPubConnection,
    "XSUB": lambda reactor, **options: XSubConnection(reactor, list, **options),
    "PUSH": PushConnection,
    "PULL": lambda reactor, **options: PullConnection(reactor, list, **options),
    "REQ": ReqConnection,
    "REP": lambda reactor, **options: RepConnection(reactor, list, **options),
    "ROUTER": lambda reactor, **options: RouterConnection(reactor, max, **options),
    "DEALER": lambda reactor, **options: DealerConnection(reactor, list, **options),
    "PAIR": lambda reactor, **options: PairConnection(reactor, list, **options),
}


_numbers = count()


@attrs.frozen
class Held:
    """Resources of a process: descriptors, threads, memory in kilobytes, the reactor's readers and calls."""

    descriptors: int
    threads: int
    memory: int
    readers: int
    calls: int


def held(reactor: Any) -> Held:
    """Return the resources that the process uses now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        len(reactor.getReaders()),
        len(reactor.getDelayedCalls()),
    )


def cycle(reactor: Any, kind: str, context: zmq.Context[Any]) -> None:
    """Open a connection that binds and connects, with a message to send to no peer; close it twice."""
    connection = KINDS[kind](reactor, context=context)
    connection.watch(lambda event: None)
    connection.open(f"bind:inproc://life-{next(_numbers)}")  # the name of a closed socket stays in use for some time
    connection.open("connect:tcp://127.0.0.1:9")
    if kind == "REQ":
        connection.request(b"x", timeout=60).addErrback(lambda _: None)
    elif kind in ("PUB", "XPUB"):
        connection.send(b"x")
    connection.close()
    connection.close()


async def cycles(reactor: Any, kind: str, number: int) -> tuple[Held, Held]:
    """Return the resources before and after a number of cycles, without the first cycles."""
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.ContextOption.MAX_SOCKETS, 10_000)
    warm = min(number // 4, 200)
    before = held(reactor)
    for done in range(warm + number):
        if done == warm:
            await settled(reactor)
            before = held(reactor)
        cycle(reactor, kind, context)
        if done % 20 == 0:
            await deferLater(reactor, 0)  # libzmq closes sockets in its own threads
    await settled(reactor, before.descriptors)
    after = held(reactor)
    context.destroy(linger=0)
    return before, after


async def settled(reactor: Any, expected: int | None = None) -> None:
    """Wait until libzmq's own threads have closed their sockets.

    With ``expected``, wait for several seconds until no more descriptors than that are open, because a busy machine may
    not run these threads for a moment.
    """
    last = -1
    for _ in range(1_000):
        await deferLater(reactor, 0.02)
        now = len(os.listdir("/proc/self/fd"))
        if now <= expected if expected is not None else now == last:
            return
        last = now


def main() -> None:
    """Test all kinds, one after the other, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=10_000)
    arguments = parser.parse_args()
    from twisted.internet import reactor

    async def run() -> None:
        for kind in KINDS:
            before, after = await cycles(reactor, kind, arguments.cycles)
            pairs = zip(attrs.asdict(before).items(), attrs.astuple(after), strict=True)
            print(kind.ljust(8), *(f"{name} {was} -> {now}" for (name, was), now in pairs), sep="  ", flush=True)

    running = Deferred.fromCoroutine(run())
    running.addErrback(lambda failure: failure.printTraceback(sys.stderr))
    running.addBoth(lambda _: reactor.callLater(0, reactor.stop))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
