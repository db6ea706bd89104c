"""No peer and no handler can end the process, however a connection ends while a message is half read.

libzmq ends the process (an assertion in fq.cpp) if one of our calls disconnects a peer of whose message the socket has
delivered only the first part. So each case runs in its own process, and its exit code is the result.
"""

from __future__ import annotations

import pytest

from tests import interpreters
from tests.support import PATIENCE

PRELUDE = """
import logging
import sys
from twisted.internet import reactor
from zroute.sockets.pipeline import PullConnection, PushConnection
from zroute.sockets.pubsub import SubConnection, XPubConnection
from zroute.sockets.reqrep import RepConnection, ReqConnection
from zroute.sockets.router_dealer import DealerConnection, RouterConnection

def end():
    for each in opened:
        each.close(0)
    reactor.callLater(0, reactor.stop)

def say(*words):
    print(*words, flush=True)

opened = []
reactor.callLater(%r, reactor.stop)
""" % (PATIENCE * 2 / 3)

SUBSCRIBER = """
joins = []
def joined(prefix, there):
    if there:
        joins.append(prefix)
        pub.send(b"again") if len(joins) > 1 else begin()

def begin():
    pub.send(b"first", b"second", b"third")

def drain(recv, more, budget):
    for _ in range(budget):
        part = recv(1)
        say(part.decode(), more())
        if part == b"first":
            act()
        elif part in (b"again", b"third"):
            end()
        if sub.paused:
            return

pub, sub = XPubConnection(reactor, joined), SubConnection(reactor, list, maxmsgsize=1000)
opened += pub, sub
sub.receive = drain
sub.subscribe(b"")
"""

HALF_READ = {
    "disconnect": """
address = sub.open(pub.open("tcp://127.0.0.1:*"))
def act():
    sub.disconnect(address)
    reactor.callLater(0.1, sub.open, address)
""",
    "disconnect by name": """
address = sub.open(pub.open("tcp://127.0.0.1:*").replace("127.0.0.1", "localhost"))
def act():
    sub.disconnect(address)
    reactor.callLater(0.1, sub.open, address)
""",
    "unbind": """
address = sub.open("bind:tcp://127.0.0.1:*")
pub.open("connect:" + address)
def act():
    sub.unbind(address)
    pub.disconnect(address)
    pub.open("connect:" + sub.open("bind:tcp://127.0.0.1:*"))
""",
    "a protocol error": """
def begin():
    pub.send(b"first", b"second", b"third")
    pub.send(b"x" * 1001)
def seen(event):
    shakes.extend([1] * (event.name == "handshake_succeeded"))
    if len(shakes) > 1:
        sub.resume()
shakes, act = [], sub.pause
sub.watch(seen)
sub.open(pub.open("tcp://127.0.0.1:*"))
""",
}


def run(program: str) -> list[str]:
    """Run a program that must succeed; return its output."""
    done = interpreters.run("-c", PRELUDE + program + "\nreactor.run()")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("way", HALF_READ)
def test_who_gives_up_a_peer_in_the_middle_of_its_message_goes_on(way: str) -> None:
    """The rest of the message is dropped with its peer, and the next message is read from its beginning."""
    assert run(SUBSCRIBER + HALF_READ[way]) == ["first 1", "again 0"]


ENDS = {
    "the publisher that I have dialled": 'sub.open(pub.open("tcp://127.0.0.1:*"))',
    "the publisher that has dialled me": 'pub.open("connect:" + sub.open("bind:tcp://127.0.0.1:*"))',
    "the publisher in this process": 'sub.open(pub.open("inproc://half"))',
}


@pytest.mark.parametrize("way", ENDS)
def test_a_peer_that_ends_in_the_middle_of_its_message_ends_nothing_else(way: str) -> None:
    """All parts have arrived, so the rest is read after the publisher has disconnected."""
    act = """
def act():
    pub.close(0)
    sub.pause()
    reactor.callLater(0.3, sub.resume)
"""
    assert run(SUBSCRIBER + act + ENDS[way]) == ["first 1", "second 1", "third 0"]


FULL = {
    "DEALER": """
def take(parts):
    say(len(parts))
    dealer.disconnect(address)
    if len(taken := seen.append(1) or seen) == 3:
        return end()
    dealer.open(address)
seen = []
router = RouterConnection(reactor, lambda who, parts: router.send(who, b"a", b"b", b"c"))
dealer = DealerConnection(reactor, take)
opened += router, dealer
address = dealer.open(router.open("tcp://127.0.0.1:*"))
dealer.watch(lambda event: event.name == "handshake_succeeded" and dealer.send(b"hello"))
""",
    "ROUTER": """
def take(who, parts):
    say(len(parts))
    router.unbind(address)
    end()
router, dealer = RouterConnection(reactor, take), DealerConnection(reactor, list)
opened += router, dealer
address = router.open("tcp://127.0.0.1:*")
dealer.open(address)
dealer.send(b"a", b"b")
dealer.send(b"a", b"b")
""",
    "PULL": """
def take(parts):
    say(len(parts))
    pull.disconnect(address)
    end()
push, pull = PushConnection(reactor), PullConnection(reactor, take)
opened += push, pull
address = pull.open(push.open("tcp://127.0.0.1:*"))
push.when_writable().addCallback(lambda _: [push.send(b"a", b"b"), push.send(b"c", b"d")])
""",
    "REQ": """
def replied(parts):
    say(len(parts))
    req.disconnect(address)
    end()
rep, req = RepConnection(reactor, lambda request: request.reply(b"a", b"b")), ReqConnection(reactor)
opened += rep, req
address = req.open(rep.open("tcp://127.0.0.1:*"))
req.request(b"x", b"y").addCallback(replied)
req.request(b"x", b"y").addErrback(lambda _: None)
""",
    "REP": """
def answer(request):
    say(len(request.parts))
    rep.unbind(address)
    end()
rep, req = RepConnection(reactor, answer), ReqConnection(reactor)
opened += rep, req
address = rep.open("tcp://127.0.0.1:*")
req.open(address)
for _ in range(2):
    req.request(b"x", b"y").addErrback(lambda _: None)
""",
}


@pytest.mark.parametrize("kind", FULL)
def test_a_handler_of_whole_messages_may_give_up_who_has_sent_one(kind: str) -> None:
    """All parts are read before the handler is called, even if another message waits."""
    lines = run(FULL[kind])
    assert lines
    assert len(set(lines)) == 1


TXZMQ = """
from zroute.txzmq import ZmqEndpoint, ZmqFactory, ZmqPullConnection, ZmqPushConnection
class Pull(ZmqPullConnection):
    def onPull(self, message):
        say(len(message))
        self.socket.disconnect(address)
        factory.shutdown()
        end()
factory = ZmqFactory()
push = ZmqPushConnection(factory, ZmqEndpoint("bind", "tcp://127.0.0.1:*"))
address = push.socket.LAST_ENDPOINT.decode().rstrip(chr(0))
pull = Pull(factory, ZmqEndpoint("connect", address))
def send():
    try:
        push.push([b"a", b"b"])
    except Exception:
        reactor.callLater(0.05, send)
send()
"""


def test_a_program_of_txzmq_may_disconnect_in_its_method() -> None:
    """The method may call libzmq's own disconnect after the last part of a message."""
    assert run(TXZMQ) == ["2"]


APP = """
from zroute import App
from zroute.runtime.service import AppService

pub = XPubConnection(reactor, lambda prefix, there: there and prefix == b"a.b" and begin())
app = App(sub=pub.open("tcp://127.0.0.1:*"))
opened.append(pub)
begun, whole = [], b"a.b\\0plain"

def begin():
    begun.append(1)
    if len(begun) == 1:
        pub.send(whole)  # from now on the topic goes the short way, that asks for no further part
        pub.send(whole, *[b"rest"] * 15)
    pub.send(whole)

@app.subscribe("a.b")
def handle(text: str):
    say(text)
    sub = service.transport.sub
    seen.append(1)
    if len(seen) == 2:
        sub.disconnect(sub.dialled[0])
        reactor.callLater(0.1, sub.open, pub.endpoints[0])
    elif len(seen) == 3:
        service.stopService().addBoth(lambda _: end())

seen = []
service = AppService(app.compile(), reactor)
service.startService()
"""


def test_a_handler_of_an_app_may_give_up_who_has_sent_it_half_a_message() -> None:
    """The first part is handled as a message; the other parts are dropped with the connection."""
    assert run(APP) == ["plain"] * 3
