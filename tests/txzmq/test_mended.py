"""Faults that users of txZMQ reported, and that zroute.txzmq fixes without changes to programs."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.python import log

from tests.running import Mailbox, reactor, turns
from tests.support import PATIENCE, ROOT, free_endpoint, sized
from zroute import throttle
from zroute.errors import NotRunningError
from zroute.sockets.connection import READ_BUDGET, Connection
from zroute.txzmq import (
    ZmqConnection,
    ZmqDealerConnection,
    ZmqEndpoint,
    ZmqEndpointType,
    ZmqFactory,
    ZmqPubConnection,
    ZmqPullConnection,
    ZmqPushConnection,
    ZmqREPConnection,
    ZmqREQConnection,
    ZmqRequestTimeoutError,
    ZmqRouterConnection,
    ZmqSubConnection,
)
from zroute.txzmq.req_rep import ZmqXREPConnection, ZmqXREQConnection


def bind(address: str) -> ZmqEndpoint:
    """Return an endpoint that binds."""
    return ZmqEndpoint(ZmqEndpointType.bind, address)


def connect(address: str) -> ZmqEndpoint:
    """Return an endpoint that connects."""
    return ZmqEndpoint(ZmqEndpointType.connect, address)


class Sub(ZmqSubConnection):
    """A subscriber that puts messages into a mailbox and then calls a function of the test."""

    def __init__(self, *args: Any, then: Any = None) -> None:
        super().__init__(*args)
        self.box = Mailbox[tuple[bytes, bytes]]()
        self.then = then

    def gotMessage(self, message: bytes, tag: bytes) -> Any:
        """See `ZmqSubConnection.gotMessage`."""
        self.box.put((tag, message))
        return self.then(message) if self.then else None


@pytest.fixture
def logged() -> Any:
    """Collect the errors and the lines of Twisted's log."""
    errors: list[Any] = []
    lines: list[str] = []

    def observe(event: Any) -> None:
        (errors.append(event["failure"]) if event["isError"] else lines.append(" ".join(map(str, event["message"]))))

    log.addObserver(observe)  # type: ignore[no-untyped-call]
    yield errors, lines
    log.removeObserver(observe)  # type: ignore[no-untyped-call]


async def joined(factory: Any, **options: Any) -> tuple[ZmqPubConnection, Sub]:
    """Return a publisher and a subscriber to everything, after a first message has arrived."""
    pub = ZmqPubConnection(factory, bind("inproc://feed"))
    sub = Sub(factory, connect("inproc://feed"), **options)
    sub.subscribe(b"")
    pub.publish(b"", b"first")
    await sub.box.until(1)
    return pub, sub


@pytest_twisted.ensureDeferred
async def test_text_is_as_good_as_bytes(factory: Any) -> None:
    """Tags and bodies may be str; handlers receive UTF-8 bytes."""
    pub, sub = await joined(factory)
    pub.publish("größe", "täg")
    pub.publish("b", b"a")
    pub.send(["tag", "body"])
    assert (await sub.box.until(4))[1:] == [("täg".encode(), "größe".encode()), (b"a", b"b"), (b"tag", b"body")]
    sub.unsubscribe("")
    sub.subscribe("b")
    await turns(lambda: pub.publish("1", "b") or (b"b", b"1") in sub.box.items)


@pytest_twisted.ensureDeferred
async def test_subscriptions_are_counted(factory: Any) -> None:
    """Two subscribes of one tag need two unsubscribes."""
    pub, sub = await joined(factory)
    sub.subscribe(b"")
    sub.unsubscribe(b"")
    pub.publish(b"still here", b"x")
    await sub.box.until(2)


def test_everything_can_be_shut_down_twice() -> None:
    """A second shutdown has no effect, and later use raises a clear error."""
    made = ZmqFactory()
    pub = ZmqPubConnection(made, bind("inproc://a"))
    pub.shutdown()
    pub.shutdown()
    made.shutdown()
    made.shutdown()
    with pytest.raises(NotRunningError, match="is closed: create a new one"):
        pub.publish(b"x")
    with pytest.raises(NotRunningError, match="create a new factory"):
        ZmqPubConnection(made)


def test_a_failed_bind_that_is_remembered_does_not_hold_up_the_shutdown() -> None:
    """factory.shutdown() returns even if the program keeps the exception of a failed bind."""
    made = ZmqFactory()
    first = ZmqPubConnection(made, bind("tcp://127.0.0.1:*"))
    address = first.socket.get(zmq.LAST_ENDPOINT).decode().rstrip("\0")  # type: ignore[union-attr, attr-defined]
    with pytest.raises(zmq.ZMQError) as caught:
        ZmqPubConnection(made, bind(address))
    ended = threading.Thread(target=made.shutdown, daemon=True)
    ended.start()
    ended.join(PATIENCE)
    assert not ended.is_alive()
    assert caught.value.errno == zmq.EADDRINUSE


@pytest_twisted.ensureDeferred
async def test_a_flood_leaves_the_reactor_its_turns(factory: Any) -> None:
    """With 20,000 waiting messages, other calls of the reactor still run."""
    push = ZmqPushConnection(factory, bind("inproc://flood"))
    between, box = [0], Mailbox[int]()

    class Pull(ZmqPullConnection):
        def onPull(self, message: list[bytes]) -> None:
            between[-1] += 1
            box.put(1)

    def tick() -> None:
        between.append(0)
        if len(box.items) < 20_000:
            reactor.callLater(0, tick)

    Pull(factory, connect("inproc://flood"))
    for _ in range(20_000):
        push.push(b"x")
    tick()
    await box.until(20_000)
    assert max(between) <= READ_BUDGET + 64


@pytest_twisted.ensureDeferred
async def test_a_malformed_message_is_logged_and_counted(factory: Any, logged: Any) -> None:
    """One part without NUL, or three parts, are logged, and the next message is handled."""
    pub, sub = await joined(factory)
    pub.send(b"no separator")
    pub.send([b"a", b"b", b"c"])
    pub.publish(b"fine", b"t")
    assert (await sub.box.until(2))[1] == (b"t", b"fine")
    assert (sub.malformed, sub.failed) == (2, 0)
    assert any("expected a NUL between tag and message" in line and "no separator" in line for line in logged[1])
    assert any("expected one or two parts, got 3" in line for line in logged[1])


@pytest_twisted.ensureDeferred
async def test_malformed_messages_by_the_thousand_do_not_fill_the_log(
    factory: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of malformed messages log five lines and a count."""
    monkeypatch.setattr(throttle, "WINDOW", PATIENCE)
    pub, sub = await joined(factory)
    for _ in range(1000):
        pub.send(b"no separator")
    await turns(lambda: sub.malformed == 1000)
    sub.shutdown()
    lines = [line for line in logged[1] if "ZmqEndpoint" in line]
    assert len(lines) == 6
    assert "995 more lines like these" in lines[-1]


@pytest_twisted.ensureDeferred
async def test_what_a_handler_raises_is_logged_and_the_next_message_handled(factory: Any, logged: Any) -> None:
    """Each kind of error in a handler is logged, and the next message is handled."""

    async def later() -> None:
        await succeed(None)
        raise LookupError("coroutine")

    def then(message: bytes) -> Any:
        if message == b"raise":
            raise KeyError("at once")
        return {b"deferred": lambda: fail(OSError("deferred")), b"coroutine": later}.get(message, lambda: "done")()

    pub, sub = await joined(factory, then=then)
    for message in (b"raise", b"deferred", b"coroutine", b"fine"):
        pub.publish(message, b"t")
    await sub.box.until(5)
    await turns(lambda: sub.failed == 3)
    assert [str(failure.value) for failure in logged[0]] == ["'at once'", "deferred", "coroutine"]


@pytest_twisted.ensureDeferred
async def test_a_subclass_may_take_whole_messages(factory: Any) -> None:
    """messageReceived can be replaced in the class or on the object, and gets every part."""
    box = Mailbox[list[bytes]]()

    class Whole(ZmqSubConnection):
        def messageReceived(self, message: list[bytes]) -> None:
            box.put(message)

    pub = ZmqPubConnection(factory, bind("inproc://feed"))
    one, two = Whole(factory, connect("inproc://feed")), ZmqSubConnection(factory, connect("inproc://feed"))
    two.messageReceived = box.put  # type: ignore[method-assign, assignment]
    one.subscribe(b"")
    two.subscribe(b"")
    pub.send([b"a", b"b", b"c"])
    assert await box.until(2) == [[b"a", b"b", b"c"]] * 2


@pytest_twisted.ensureDeferred
async def test_a_handler_may_shut_its_connection_down(factory: Any) -> None:
    """A handler that shuts down its connection receives no further message."""
    pub, sub = await joined(factory, then=lambda message: sub.shutdown() if message == b"1" else None)
    for number in (b"1", b"2", b"3"):
        pub.publish(number, b"t")
    await turns(lambda: sub.socket is None)
    await deferLater(reactor, 0.05)
    assert len(sub.box.items) == 2


def test_the_reactor_is_the_factorys() -> None:
    """A factory with its own reactor uses no other one."""
    read: list[Any] = []

    class Own(Clock):
        def addReader(self, reader: Any) -> None:
            read.append(reader)

        def removeReader(self, reader: Any) -> None:
            read.remove(reader)

        def addSystemEventTrigger(self, *event: Any) -> Any:
            return event

        def removeSystemEventTrigger(self, trigger: Any) -> None:
            removed.append(trigger)

    removed: list[Any] = []
    made = ZmqFactory()
    made.reactor = Own()
    made.registerForShutdown()
    pub = ZmqPubConnection(made, bind("inproc://a"))
    assert read == [pub._connection]
    assert not set(read) & set(reactor.getReaders())
    made.shutdown()
    assert read == []
    assert [trigger[:2] for trigger in removed] == [("during", "shutdown")]


def test_importing_the_module_installs_no_reactor() -> None:
    """Importing any of txZMQ's module names installs no reactor."""
    program = (
        "import sys, zroute.txzmq, zroute.txzmq.connection, zroute.txzmq.pubsub, "
        "zroute.txzmq.pushpull, zroute.txzmq.req_rep, zroute.txzmq.router_dealer, zroute.txzmq.compat\n"
        "factory = zroute.txzmq.ZmqFactory()\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
        "from twisted.internet import selectreactor; selectreactor.install()\n"
        "assert type(factory.reactor).__name__ == 'SelectReactor', factory.reactor\n"
        "assert zroute.txzmq.ZmqFactory.reactor is factory.reactor\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_options_are_attributes_of_the_class(factory: Any) -> None:
    """Options of a subclass or an instance are set in libzmq; 0 keeps libzmq's default."""

    class Tuned(ZmqPubConnection):
        highWaterMark = 5
        tcpKeepalive, tcpKeepaliveCount, tcpKeepaliveIdle, tcpKeepaliveInterval = 1, 3, 7, 9
        reconnectInterval, reconnectIntervalMax, multicastRate = 50, 500, 77

    factory.lingerPeriod = 30
    values = {
        "SNDHWM": (5, 0),
        "RCVHWM": (5, 0),
        "TCP_KEEPALIVE": (1, -1),
        "TCP_KEEPALIVE_CNT": (3, -1),
        "TCP_KEEPALIVE_IDLE": (7, -1),
        "TCP_KEEPALIVE_INTVL": (9, -1),
        "RECONNECT_IVL": (50, 100),
        "RECONNECT_IVL_MAX": (500, 0),
        "RATE": (77, 100),
        "LINGER": (30, 30),
        "IDENTITY": (b"me", b""),
    }
    tuned, plain = Tuned(factory, identity="me"), ZmqPubConnection(factory)
    for name, expected in values.items():
        option = getattr(zmq.SocketOption, name)
        assert tuple(each.socket.get(option) for each in (tuned, plain)) == expected, name  # type: ignore[union-attr]


def test_a_connection_without_a_kind_says_so(factory: Any) -> None:
    """A class without socketType and an endpoint of an unknown type raise clear errors."""
    with pytest.raises(TypeError, match="ZmqConnection has no socketType"):
        ZmqConnection(factory)
    with pytest.raises(ValueError, match="the type of an endpoint must be 'bind' or 'connect', not 'listen'"):
        ZmqPubConnection(factory, ZmqEndpoint("listen", "inproc://a"))


# -- requests --------------------------------------------------------------------------------------------


class Server(ZmqREPConnection):
    """A server that echoes requests, or stays silent."""

    def __init__(self, *args: Any, silent: bool = False) -> None:
        super().__init__(*args)
        self.box = Mailbox[tuple[bytes, ...]]()
        self.silent = silent

    def gotMessage(self, messageId: bytes, *messageParts: bytes) -> None:
        """See `ZmqREPConnection.gotMessage`."""
        self.box.put(messageParts)
        if not self.silent:
            self.reply(messageId, *messageParts)


@pytest_twisted.ensureDeferred
async def test_requests_that_timed_out_with_nobody_there_are_never_sent(factory: Any) -> None:
    """Of requests that timed out without a server, none is sent to a server that starts later."""
    endpoint = free_endpoint()
    req = ZmqREQConnection(factory, connect(endpoint))
    errors: list[Any] = []
    many = sized(10_000, 2000)
    for number in range(many):
        reply = req.sendMsg(b"%d" % number, timeout=0.01)
        if number % 2:
            reply.cancel()
        reply.addErrback(lambda failure: errors.append(failure.type))
    await turns(lambda: len(errors) == many)
    assert errors.count(ZmqRequestTimeoutError) == many // 2
    awaited = req.sendMsg("wanted")
    server = Server(factory, bind(endpoint))
    assert await awaited == [b"wanted"]
    assert server.box.items == [(b"wanted",)]


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_answer_is_sent_a_window(factory: Any) -> None:
    """A silent server gets 64 of 1,000 requests; the others follow when it answers."""
    server = Server(factory, bind("inproc://rep"), silent=True)
    req = ZmqREQConnection(factory, connect("inproc://rep"))
    replies = [req.sendMsg(b"%d" % number) for number in range(1000)]
    await server.box.until(64)
    await deferLater(reactor, 0.05)
    assert len(server.box.items) == 64
    server.silent = False
    for id in list(server._routingInfo):
        server.reply(id, b"late")
    for reply in replies:
        await reply
    assert len(server.box.items) == 1000
    assert req._requests == {}


@pytest_twisted.ensureDeferred
async def test_a_server_that_was_restarted_gets_new_requests(factory: Any) -> None:
    """64 requests that died with a server do not block new requests to its successor."""
    endpoint = free_endpoint()
    first = Server(factory, bind(endpoint), silent=True)
    req = ZmqREQConnection(factory, connect(endpoint))
    for number in range(64):
        req.sendMsg(b"%d" % number)
    await first.box.until(64)
    first.shutdown()
    second = None
    for _ in range(int(PATIENCE / 0.01)):
        try:
            second = Server(factory, bind(endpoint))
            break
        except zmq.ZMQError:  # the port is not free yet
            await deferLater(reactor, 0.01)
    assert second is not None
    assert await req.sendMsg(b"new").addTimeout(PATIENCE, reactor) == [b"new"]


@pytest_twisted.ensureDeferred
async def test_a_request_that_was_never_answered_is_forgotten(
    factory: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that never replies drops its oldest requests, counts them and logs them."""
    monkeypatch.setattr("zroute.txzmq.req_rep._REPLIES_KEPT", 10)
    server = Server(factory, bind("inproc://rep"), silent=True)
    req = ZmqREQConnection(factory, connect("inproc://rep"))
    for number in range(12):
        req.sendMsg(b"%d" % number)
    await server.box.until(12)
    await turns(lambda: server.forgotten == 2)
    assert len(server._routingInfo) == 10
    assert any("was never answered and is dropped" in line for line in logged[1])
    with pytest.raises(KeyError, match="is not waiting for a reply: it was already answered, or was dropped"):
        server.reply(b"unknown", b"x")


@pytest_twisted.ensureDeferred
async def test_bad_frames_are_counted_and_the_next_request_answered(factory: Any, logged: Any) -> None:
    """Malformed requests and replies are counted, and the next request is answered."""
    server = Server(factory, bind("inproc://rep"))
    raw = ZmqDealerConnection(factory, connect("inproc://rep"))
    heard = Mailbox[tuple[bytes, ...]]()
    raw.gotMessage = lambda *parts: heard.put(parts)  # type: ignore[method-assign, assignment]
    for parts in ([b"x"], [b"x"] * 50, [b"id", b"body"], [b"x" * 1_000_000, b"x" * 1_000_000]):
        raw.send(parts)
    raw.send([b"id", b"", b"good"])
    assert await heard.until(1) == [(b"id", b"", b"good")]
    assert server.malformed == 4
    router = ZmqRouterConnection(factory, bind("inproc://router"))
    router.gotMessage = lambda peer, id, *rest: (
        [  # type: ignore[method-assign]
            router.sendMultipart(peer, parts)
            for parts in ([b"x"], [b"x", b"y"], [b"unknown", b"", b"z"], [id, b"", b"ok"])
        ]
        and None
    )
    req = ZmqREQConnection(factory, connect("inproc://router"))
    assert await req.sendMsg(b"q") == [b"ok"]
    assert req.malformed == 2


@pytest_twisted.ensureDeferred
async def test_the_old_names_work_and_say_so(factory: Any) -> None:
    """XREQ and XREP work like REQ and REP, with a DeprecationWarning."""
    with pytest.warns(DeprecationWarning, match="ZmqXREPConnection is now ZmqREPConnection"):
        rep = ZmqXREPConnection(factory, bind("inproc://rep"))
    with pytest.warns(DeprecationWarning, match="ZmqXREQConnection is now ZmqREQConnection"):
        req = ZmqXREQConnection(factory, connect("inproc://rep"))
    rep.gotMessage = rep.reply  # type: ignore[method-assign]
    assert await req.sendMsg(b"a", b"b", timeout=PATIENCE) == [b"a", b"b"]


@pytest_twisted.ensureDeferred
async def test_a_default_timeout_holds_where_none_is_given(factory: Any) -> None:
    """defaultRequestTimeout of the class or the connection applies; the error has the request's id."""
    req = ZmqREQConnection(factory, connect(free_endpoint()))
    req.defaultRequestTimeout = 0.01
    id = req._getNextId()
    req._releaseId(id)
    with pytest.raises(ZmqRequestTimeoutError) as caught:
        await req.sendMsg(b"x")
    assert caught.value.args == (id,)


@pytest_twisted.ensureDeferred
async def test_what_a_requester_sends_raw_keeps_its_order(factory: Any) -> None:
    """1,000 messages from before the connection arrive in order, followed by the request."""
    endpoint = free_endpoint()
    req = ZmqREQConnection(factory, connect(endpoint))
    for number in range(1000):
        req.send([b"%d" % number, b"", b"raw"])
    reply: Deferred[list[bytes]] = req.sendMsg(b"asked")
    box = Mailbox[bytes]()

    class Rep(ZmqREPConnection):
        def gotMessage(self, messageId: bytes, *messageParts: bytes) -> None:
            box.put(messageParts[0] if messageParts[0] == b"asked" else messageId)
            if messageParts[0] == b"asked":
                self.reply(messageId, b"yes")

    Rep(factory, bind(endpoint))
    assert await reply == [b"yes"]
    assert box.items == [*(b"%d" % number for number in range(1000)), b"asked"]


@pytest_twisted.ensureDeferred
async def test_a_program_may_use_any_name_for_its_own(factory: Any) -> None:
    """A subclass may use any attribute name without breaking the connection."""
    used = {name for name in dir(Connection) if not name.startswith("_")}
    taken = dict.fromkeys(used - {"fileno", "doRead", "logPrefix", "connectionLost"})
    assert {"close", "open", "pause", "check"} <= taken.keys()
    box = Mailbox[bytes]()
    mine = type("Mine", (ZmqSubConnection,), {**taken, "gotMessage": lambda self, message, tag: box.put(message)})
    pub = ZmqPubConnection(factory, bind("inproc://feed"))
    sub = mine(factory, connect("inproc://feed"))
    sub.subscribe(b"")
    pub.publish(b"heard")
    assert await box.until(1) == [b"heard"]
    sub.shutdown()
