"""Search for missed wake-ups: ``python -m chaos.wakeups --operations 1000000``.

libzmq's descriptor reports a change once; each send, read or look clears it. On each of four reactors, connections of
several kinds send, answer from handlers, pause, resume, look and change subscriptions, as a seed decides. From time to
time all operations stop until every sent message has arrived. Queues are unbounded, so a message that does not arrive
was not lost: its wake-up was missed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import zmq
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater, react

from tests.support import ROOT, free_endpoint
from zroute.runtime.runner import install_reactor
from zroute.sockets.pipeline import PullConnection, PushConnection
from zroute.sockets.pubsub import SubConnection, XPubConnection
from zroute.sockets.router_dealer import DealerConnection, PairConnection

REACTORS = ("epoll", "poll", "select", "asyncio")
PATIENCE = 100.0
"""Seconds until a wake-up counts as missed. A busy machine may not run the process for many seconds."""

UNBOUNDED = {"sndhwm": 0, "rcvhwm": 0}


class Link:
    """Two connections that count ``sent`` and ``seen`` messages of both directions."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.sent = 0
        self.seen = 0
        self.handled = 0
        self.ends: tuple[Any, ...] = ()
        self.paused: set[Any] = set()
        self.still: Callable[[], None] = lambda: None

    def take(self, *_: object) -> None:
        self.seen += 1
        self.handled += 1
        if self.seen == self.sent:
            self.still()

    def send(self, end: Any, *parts: bytes) -> None:
        self.sent += 1
        end.send(*parts)


class Echoing(Link):
    """Both ends send; their handlers answer until the counter in the message is 0."""

    def __init__(self, kind: str, make: Any, reactor: Any, context: Any, endpoint: str) -> None:
        super().__init__(kind)
        here = make(reactor, lambda parts: self._answer(here, parts[0]), context=context, **UNBOUNDED)
        there = make(reactor, lambda parts: self._answer(there, parts[0]), context=context, **UNBOUNDED)
        address = here.open("bind:" + endpoint)
        there.open("connect:" + (address or endpoint))
        self.ends = (here, there)

    def _answer(self, end: Any, life: bytes) -> None:
        if life[0] > 0:
            self.send(end, bytes([life[0] - 1]))
        self.take()

    def act(self, chance: random.Random) -> None:
        self.send(chance.choice(self.ends), bytes([chance.choice((0, 0, 1, 5))]))


class Pushing(Link):
    """One end pushes to the other."""

    def __init__(self, kind: str, reactor: Any, context: Any, endpoint: str) -> None:
        super().__init__(kind)
        pull = PullConnection(reactor, self.take, context=context, rcvhwm=0)
        push = PushConnection(reactor, context=context, sndhwm=0)
        pull.open("bind:" + endpoint)
        push.open("connect:" + endpoint)
        self.ends = (pull, push)

    def act(self, chance: random.Random) -> None:
        self.send(self.ends[1], b"x")


class Publishing(Link):
    """A publisher and a subscriber.

    Messages go to a lasting subscription; changes of other subscriptions go back to the publisher.
    """

    def __init__(self, kind: str, reactor: Any, context: Any, endpoint: str) -> None:
        super().__init__(kind)
        xpub = XPubConnection(reactor, self.take, context=context, sndhwm=0)
        sub = SubConnection(reactor, self.take, context=context, rcvhwm=0)
        xpub.open("bind:" + endpoint)
        sub.open("connect:" + endpoint)
        self.sent += 1  # the subscription is a message, too
        sub.subscribe(b"always")
        self.ends = (xpub, sub)
        self._there: set[bytes] = set()

    def act(self, chance: random.Random) -> None:
        xpub, sub = self.ends
        if chance.random() < 0.7 and self.seen:
            self.send(xpub, b"always")
            return
        prefix = b"%d" % chance.randrange(20)
        self.sent += 1
        if prefix in self._there:
            sub.unsubscribe(prefix)
        else:
            sub.subscribe(prefix)
        self._there ^= {prefix}


async def play(reactor: Any, operations: int, seed: int) -> dict[str, Any]:
    """Run ``operations`` operations; return the figures, with the missed wake-ups."""
    chance = random.Random(seed)
    context: zmq.Context[Any] = zmq.Context()
    links: list[Any] = [
        Echoing("dealer, tcp", DealerConnection, reactor, context, free_endpoint()),
        Echoing("pair, inproc", PairConnection, reactor, context, "inproc://pair"),
        Pushing("push, inproc", reactor, context, "inproc://push"),
        Pushing("push, tcp", reactor, context, free_endpoint()),
        Publishing("xpub, tcp", reactor, context, free_endpoint()),
    ]
    missed, done, stills = [], 0, 0
    while done < operations and len(missed) < 3:  # each missed one takes `PATIENCE`
        for _ in range(chance.choice((1, 1, 1, 2, 10, 100))):
            _act(chance, chance.choice(links))
            done += 1
            if chance.random() < 0.05:
                await deferLater(reactor, 0)
        for link in links:
            for end in sorted(link.paused, key=id):
                end.resume()
            link.paused.clear()
        for link in links:
            stills += 1
            if not await _still(reactor, link):
                missed.append(f"{link.kind} after {done} operations: {link.sent} sent, {link.seen} seen")
                for end in link.ends:
                    end.poke()
                await _still(reactor, link)
    handled = sum(link.handled for link in links)
    for link in links:
        for end in link.ends:
            end.close(0)
    context.destroy(linger=0)
    return {"operations": done, "handled": handled, "waits": stills, "missed": missed}


def _act(chance: random.Random, link: Any) -> None:
    what = chance.random()
    end = chance.choice(link.ends)
    if what < 0.8:
        link.act(chance)
    elif what < 0.88:
        end.pause()
        link.paused.add(end)
    elif what < 0.94:
        end.resume()
        link.paused.discard(end)
    else:
        end.readable()


async def _still(reactor: Any, link: Any) -> bool:
    """Return True if all sent messages arrive without further operations."""
    if link.seen >= link.sent:
        return True
    arrived: Deferred[None] = Deferred()
    link.still = lambda: None if arrived.called else arrived.callback(None)
    arrived.addTimeout(PATIENCE, reactor)
    try:
        await arrived
    except TimeoutError:
        return False
    finally:
        link.still = lambda: None
    return True


def run(kind: str, operations: int, seed: int) -> dict[str, Any]:
    """Run one reactor in a process of its own."""
    command = [sys.executable, "-m", "chaos.wakeups", "--reactor", kind, "--operations", str(operations)]
    ended = subprocess.run([*command, "--seed", str(seed)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


def main() -> None:
    """Print one line for each reactor; exit with 1 if a wake-up was missed."""
    parser = argparse.ArgumentParser(prog="python -m chaos.wakeups", description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reactor", choices=REACTORS, help="run only this reactor, in this process")
    options = parser.parse_args()
    if options.reactor is None:
        failed = False
        for kind in REACTORS:
            found = run(kind, options.operations, options.seed)
            failed |= bool(found["missed"])
            print(kind, json.dumps(found), flush=True)
        sys.exit(failed)
    install_reactor(options.reactor)
    found = {}

    async def start(reactor: Any) -> None:
        found.update(reactor=type(reactor).__name__, **await play(reactor, options.operations, options.seed))

    try:
        react(start)
    except SystemExit as end:
        if end.code:
            raise
    print(json.dumps(found))


if __name__ == "__main__":
    main()
