"""Requests between processes: a thousand at a time, with servers that die."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import Child, Way, sized

reactors = pytest.mark.parametrize("reactor", ["epoll", "asyncio"])

TOTAL = sized(20_000, 6_000)

SERVER = """
import sys
from importlib import import_module
import_module(f"twisted.internet.{sys.argv[1]}reactor").install()
from twisted.internet import reactor
from zroute.sockets.reqrep import RepConnection

def answer(request):
    if request.parts[0] != b"silence":
        reactor.callLater(0.005, request.reply, sys.argv[3].encode(), *request.parts)

rep = RepConnection(reactor, answer)
rep.open("bind:" + sys.argv[2])
print("ready", flush=True)
reactor.run()
rep.close()
"""

CLIENT = """
import json, os, random, signal, sys
from importlib import import_module
import_module(f"twisted.internet.{sys.argv[1]}reactor").install()
from twisted.internet import reactor
from zroute.sockets.reqrep import ReqConnection

TOTAL, seed, victim, endpoints = int(sys.argv[3]), int(sys.argv[2]), int(sys.argv[4]), sys.argv[5:]
chance = random.Random(seed)
req = ReqConnection(reactor)
for endpoint in endpoints:
    req.open(endpoint)
ends = [[] for _ in range(TOTAL)]
made = under_way = over = 0

def ask():
    global made, under_way
    while made < TOTAL and under_way < 1000:
        number, made, under_way = made, made + 1, under_way + 1
        fate = chance.random()
        if fate < 0.025:
            reply = req.request(b"silence", timeout=0.2)
        else:
            reply = req.request(b"%d" % number, timeout=30)
        if fate > 0.975:
            reactor.callLater(chance.random() / 50, reply.cancel)
        reply.addCallbacks(ended, ended, (number,), None, (number,), None)
    if made == TOTAL and not under_way:
        counts = {}
        for each in ends:
            assert len(each) == 1, each
            counts[each[0]] = counts.get(each[0], 0) + 1
        print(json.dumps(counts), flush=True)
        req.close()
        reactor.stop()

def ended(result, number):
    global under_way, over, victim
    under_way, over = under_way - 1, over + 1
    if isinstance(result, list):
        assert result[1] == b"%d" % number, (number, result)
        ends[number].append(result[0].decode())
    else:
        ends[number].append(result.type.__name__)
    if under_way < 900:
        reactor.callLater(0, ask)
    if victim and over >= 2_000 and ends[number] == ["one"]:  # requests that wait go to its free place at once
        os.kill(victim, signal.SIGKILL)
        victim = 0

reactor.callWhenRunning(ask)
reactor.run()
"""


@contextmanager
def server(reactor: str, endpoint: str, name: str) -> Iterator[Child]:
    """Run a server, and wait until it is ready."""
    with Child("-c", SERVER, reactor, endpoint, name) as child:
        child.line_with("ready")
        yield child


@reactors
def test_a_thousand_at_once_end_exactly_once_each(way: Way, reactor: str) -> None:
    """Of thousands of requests, some unanswered and some cancelled, each ends exactly once."""
    bind, connect = way.meeting()
    with server(reactor, bind, "one"), Child("-c", CLIENT, reactor, "7", str(TOTAL), "0", connect) as client:
        counts = json.loads(client.line_with("{"))
        assert client.end(None) == 0, client.err
    assert set(counts) == {"one", "RequestTimeoutError", "CancelledError"}
    assert sum(counts.values()) == TOTAL
    assert counts["one"] > 0.9 * TOTAL
    assert counts["RequestTimeoutError"] > 0.015 * TOTAL


@reactors
def test_a_server_that_is_killed_takes_only_its_own_with_it(way: Way, reactor: str) -> None:
    """If one of two servers is killed, at most its window of requests is lost; the other answers the rest."""
    first, second = way.meeting(), way.meeting()
    with (
        server(reactor, first.bind, "one") as one,
        server(reactor, second.bind, "two"),
        Child("-c", CLIENT, reactor, "8", str(TOTAL), str(one.process.pid), first.connect, second.connect) as client,
    ):
        counts = json.loads(client.line_with("{"))
        assert client.end(None) == 0, client.err
    assert sum(counts.values()) == TOTAL
    assert 0 < counts["RequestLostError"] <= 64
    assert counts["RequestTimeoutError"] < 0.04 * TOTAL, "more than the requests that stay unanswered on purpose"
    assert counts["one"] > 0
    assert counts["two"] > 0
