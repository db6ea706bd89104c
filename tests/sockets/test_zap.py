"""The ZAP handler: what libzmq does without it, and that no fault of it lets an unknown key in."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
import zmq
from zmq.auth.thread import ThreadAuthenticator

from tests.keyed import Caller, Keys
from tests.running import Mailbox, reactor, running, turns
from tests.sockets.opened import Sockets
from tests.support import PATIENCE, spans
from zroute import App, EndpointError
from zroute.endpoints import Access, Endpoint
from zroute.sockets import zap
from zroute.sockets.access import CurveGuard
from zroute.sockets.pubsub import XPubConnection
from zroute.stats import Stats

ADDRESS = "inproc://zeromq.zap.01"
HANDSHAKE = 100
"""The time in milliseconds after which libzmq gives up a handshake in these tests.

A busy machine may need longer for a handshake that should succeed, so tests of these try again with a longer time.
"""

LONG = 60_000
"""The time for handshakes that end without this limit."""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of feed, which knows alice, and of mallory, which feed does not know."""
    made = Keys(tmp_path)
    made.introduce("feed", "alice")
    made.authorize("mallory", "feed")
    return made


# -- what libzmq does --------------------------------------------------------------------------------------


class RawHandler:
    """A ZAP handler of the test; ``fault`` is what goes wrong."""

    def __init__(self, context: zmq.Context[Any], fault: str) -> None:
        self._fault = fault
        self._socket: Any = None
        if fault != "none":
            self._socket = context.socket(zmq.ROUTER)
            self._socket.bind(ADDRESS)
        if fault == "left":
            self._socket.close(0)

    def serve(self) -> None:
        """Answer a request that has arrived, or not."""
        if self._fault in ("none", "left", "silent") or self._socket.closed or not self._socket.poll(0):
            return
        identity, empty, version, number, *_ = self._socket.recv_multipart()
        if self._fault == "dies":
            self._socket.close(0)
        elif self._fault == "malformed":
            self._socket.send_multipart([identity, empty, version, number, b"200"])
        else:
            self._socket.send_multipart([identity, empty, version, number, b"400", b"no", b"", b""])

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close(0)


MATRIX = [
    # domain, enforced, the handler, what happens to every key
    (b"", False, "none", "open"),
    (b"feed", False, "none", "open"),
    (b"", True, "none", "open"),
    (b"feed", True, "none", "refused"),
    (b"feed", False, "left", "open"),
    (b"feed", True, "left", "refused"),
    (b"", False, "refuses", "refused"),
    (b"", True, "refuses", "open"),
    (b"feed", True, "refuses", "refused"),
    (b"feed", False, "dies", "open"),
    (b"feed", True, "dies", "refused"),
    (b"feed", True, "silent", "refused"),
    (b"feed", True, "malformed", "refused"),
]


@pytest.mark.parametrize(("domain", "enforced", "fault", "outcome"), MATRIX)
@pytest_twisted.ensureDeferred
async def test_only_domain_enforcement_and_handler_together_refuse(
    sockets: Sockets, keys: Keys, domain: bytes, enforced: bool, fault: str, outcome: str
) -> None:
    """libzmq lets an unknown key in if one of the three is missing, so zroute must set all of them."""
    own = keys.key("feed")
    for longest in spans(HANDSHAKE):
        context: zmq.Context[Any] = zmq.Context()
        handler = RawHandler(context, fault)
        server, mallory = context.socket(zmq.XPUB), context.socket(zmq.SUB)
        server.curve_server, server.curve_publickey, server.curve_secretkey = 1, own.public, own.secret
        server.handshake_ivl = int(longest)
        if domain:
            server.zap_domain = domain
        server.set(zmq.ZAP_ENFORCE_DOMAIN, enforced)
        server.bind("tcp://127.0.0.1:*")
        caller = Caller(keys.use(mallory, "mallory", "feed"), server.last_endpoint.decode())

        def done(handler: RawHandler = handler, caller: Caller = caller) -> str:
            handler.serve()
            return caller.outcome

        try:
            await turns(done)
            found = caller.outcome
        finally:
            caller.close()
            handler.close()
            server.close(0)
            context.term()
        if found == "open" or outcome == "refused":
            break
    assert found == outcome


# -- the guard of zroute -----------------------------------------------------------------------------------


class Guarded:
    """A publisher of zroute with a guard, for which the test breaks the handler."""

    def __init__(self, sockets: Sockets, keys: Keys, kind: type[CurveGuard], handshake: int) -> None:
        self._sockets, self._keys = sockets, keys
        self.stats = Stats()
        self.guard = kind(reactor, Access(keys.secret("feed")), "feed", self.stats)
        self.guard.begin(sockets.context)
        assert self.guard._handler is not None
        self.handler = self.guard._handler
        self.pub = sockets.make(XPubConnection, handshake_ivl=handshake)
        self.pub.guard = self.guard
        self.address = self.pub.open("tcp://127.0.0.1:*")

    async def outcome(self, name: str) -> str:
        """Return what happens to a connection with the key of a program."""
        return await Caller(self._keys.use(self._sockets.raw(zmq.SUB), name, "feed"), self.address).end()


@pytest.fixture
def guarded(sockets: Sockets, keys: Keys) -> Iterator[Callable[..., Guarded]]:
    """A function that returns a `Guarded`, whose guard is ended after the test."""
    made: list[Guarded] = []

    def make(kind: type[CurveGuard] = CurveGuard, handshake: int = LONG) -> Guarded:
        made.append(Guarded(sockets, keys, kind, handshake))
        return made[-1]

    yield make
    for each in made:
        each.guard.end()


class NotEnforced(CurveGuard):
    """A guard without ZAP_ENFORCE_DOMAIN."""

    def protect(self, socket: zmq.Socket[Any], endpoint: Endpoint) -> None:
        super().protect(socket, endpoint)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 0)


class WithoutDomain(CurveGuard):
    """A guard without a domain."""

    def protect(self, socket: zmq.Socket[Any], endpoint: Endpoint) -> None:
        super().protect(cast("zmq.Socket[Any]", _Omitting(socket)), endpoint)


class _Omitting:
    """A socket for which ZAP_DOMAIN can't be set, since libzmq can't unset it."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._socket = socket
        self.get = socket.get

    def set(self, option: int, value: Any) -> None:
        if option != zmq.ZAP_DOMAIN:
            self._socket.set(option, value)


def _raise(public: bytes, address: str) -> str | None:
    raise RuntimeError("the test broke the decision")


FAULTS: dict[str, Callable[[Guarded], object]] = {
    "works": lambda guarded: None,
    "closed": lambda guarded: guarded.handler.close(0),
    "left": lambda guarded: guarded.guard.end(),
    "does not answer": lambda guarded: guarded.handler.pause(),
    "raises": lambda guarded: guarded.handler._domains.update(dict.fromkeys(guarded.handler._domains, _raise)),
    "does not know the domain": lambda guarded: guarded.handler._domains.clear(),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest_twisted.ensureDeferred
async def test_no_fault_of_the_handler_lets_an_unknown_key_in(guarded: Callable[..., Guarded], fault: str) -> None:
    """Whatever happens to the handler, the key is refused; only with a working one, the known key connects."""
    server = guarded(handshake=LONG if fault == "works" else HANDSHAKE)
    FAULTS[fault](server)
    assert await server.outcome("mallory") == "refused"
    assert await server.outcome("alice") == ("open" if fault == "works" else "refused")
    assert server.pub.subscriptions == set()


@pytest.mark.parametrize(("kind", "fault"), [(NotEnforced, "closed"), (NotEnforced, "left"), (WithoutDomain, "works")])
@pytest_twisted.ensureDeferred
async def test_a_guard_that_omits_one_option_is_open(
    guarded: Callable[..., Guarded], kind: type[CurveGuard], fault: str
) -> None:
    """The test above would notice: without one of the options, the unknown key connects."""
    for longest in spans(HANDSHAKE):
        server = guarded(kind, int(longest))
        FAULTS[fault](server)
        if (found := await server.outcome("mallory")) == "open":
            break
    assert found == "open"


@pytest_twisted.ensureDeferred
async def test_a_decision_that_raises_refuses_with_500_and_harms_nothing_else(
    guarded: Callable[..., Guarded], sockets: Sockets, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged, the reactor goes on, and the key connects when the decision works again."""
    server = guarded()
    domains = dict(server.handler._domains)
    FAULTS["raises"](server)
    caller = Caller(keys.use(sockets.raw(zmq.SUB), "alice", "feed"), server.address)
    await turns(lambda: caller.count("handshake_failed_auth"))
    assert [event.value for event in caller.events if event.name == "handshake_failed_auth"] == [500]
    caller.close()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "because it could not check the key" in record.getMessage()
    assert record.exc_info is not None
    server.handler._domains.update(domains)
    assert await server.outcome("alice") == "open"


@pytest.mark.parametrize(
    "request_parts",
    [
        [b""],
        [b"", b"1.0"],
        [b"", b"1.0", b"7"],
        [b""] * 7,
        [b"\xff" * 300] * 40,
        [b"", b"2.0", b"7", b"DOMAIN", b"1.1.1.1", b"", b"CURVE", b"KEY"],
        [b"", b"1.0", b"7", b"DOMAIN", b"1.1.1.1", b"", b"NULL"],
        [b"", b"1.0", b"7", b"DOMAIN", b"1.1.1.1", b"", b"PLAIN", b"alice", b"password"],
        [b"", b"1.0", b"7", b"DOMAIN", b"1.1.1.1", b"", b"CURVE", b"KEY", b"KEY"],
        [b"", b"1.0", b"7", b"DOMAIN", b"1.1.1.1", b"", b"CURVE", b"KEY"[:2]],
        [b"", b"1.0", b"7", b"other", b"1.1.1.1", b"", b"CURVE", b"KEY"],
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_malformed_request_is_never_accepted(
    guarded: Callable[..., Guarded], sockets: Sockets, keys: Keys, request_parts: list[bytes]
) -> None:
    """The handler answers with 400 or 500, or not at all; a correct request afterwards is accepted."""
    server = guarded()
    asker = sockets.raw(zmq.DEALER)
    asker.connect(ADDRESS)
    facts = {b"DOMAIN": server.guard._domain, b"KEY": keys.key("alice").raw}
    asker.send_multipart([facts.get(part, part) for part in request_parts])
    right = [b"", b"1.0", b"8", facts[b"DOMAIN"], b"1.1.1.1", b"", b"CURVE", facts[b"KEY"]]
    asker.send_multipart(right)
    answers: list[list[bytes]] = []

    def answered() -> bool:
        while asker.poll(0):
            answers.append(asker.recv_multipart())
        return any(answer[2] == b"8" for answer in answers)

    await turns(answered)
    *others, last = answers
    assert last[:6] == [b"", b"1.0", b"8", b"200", b"", b"alice"]
    assert all(answer[3] in (b"400", b"500") and answer[5] == b"" for answer in others)


# -- handlers and contexts ---------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_handler_of_pyzmq_in_the_context_of_the_app_is_named(keys: Keys) -> None:
    """The start fails with the reason, closes all sockets, and works when the other handler has stopped."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub="tcp://127.0.0.1:*", context=context, **keys.of("feed"))
    other = ThreadAuthenticator(context)
    other.start()
    try:
        service = app.service(reactor)
        with pytest.raises(EndpointError, match=r"another ZAP handler, such as pyzmq's ThreadAuthenticator, runs in"):
            service.startService()
        await service.stopService()
    finally:
        other.stop()
    probe = context.socket(zmq.ROUTER)
    await turns(lambda: _bound(probe))  # libzmq closes the other socket later
    probe.unbind(ADDRESS)
    probe.close(0)
    async with running(app):
        assert app.addresses.pub
    context.term()


def _bound(socket: zmq.Socket[Any]) -> bool:
    try:
        socket.bind(ADDRESS)
    except zmq.ZMQError:
        return False
    return True


def test_a_handler_that_was_left_is_replaced_at_once(sockets: Sockets) -> None:
    """libzmq closes sockets later, in its own thread, but the address is free when `leave` returns."""
    for number in range(200):
        domain = b"test-%d" % number
        zap.ZapHandler.join(reactor, sockets.context, domain, lambda public, address: None).leave(domain)


@pytest_twisted.ensureDeferred
async def test_apps_in_one_context_have_peers_of_their_own(sockets: Sockets, keys: Keys) -> None:
    """One handler answers for both apps, and each accepts only the keys in its own directory."""
    keys.introduce("price", "bob")
    context: zmq.Context[Any] = zmq.Context()
    feed = App(pub="tcp://127.0.0.1:*", context=context, **keys.of("feed"))
    price = App(pub="tcp://127.0.0.1:*", context=context, **keys.of("price"))

    async def outcome(name: str, server: str) -> str:
        raw = keys.use(sockets.raw(zmq.SUB), name, server)
        return await Caller(raw, {"feed": feed, "price": price}[server].addresses.pub[0]).end()

    async with running(feed):
        async with running(price):
            outcomes = {(who, at): await outcome(who, at) for who in ("alice", "bob") for at in ("feed", "price")}
            assert outcomes == {
                ("alice", "feed"): "open",
                ("alice", "price"): "refused",
                ("bob", "feed"): "refused",
                ("bob", "price"): "open",
            }
        assert await outcome("alice", "feed") == "open"  # the handler stays while one app uses it
    context.term()
    assert (feed.stats.refused, price.stats.refused) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_inproc_needs_no_keys(keys: Keys) -> None:
    """Both ends are in one process, so apps with keys connect without the name of a peer."""
    context: zmq.Context[Any] = zmq.Context()
    box = Mailbox[int]()
    feed = App(pub="inproc://news", context=context, **keys.of("feed"))
    desk = App(sub="inproc://news", context=context, **keys.of("desk"))

    @desk.subscribe("news.a")
    def take(number: int) -> None:
        box.put(number)

    async with running(feed), running(desk):
        await desk.ready(1, timeout=PATIENCE)
        await feed.publish("news.a", 7)
        assert await box.until(1) == [7]
    context.term()


@pytest_twisted.ensureDeferred
async def test_an_app_that_has_ended_leaves_no_handler(keys: Keys) -> None:
    """Ten starts and stops of one service leave no timer, no handler and no context."""
    app = App(pub="tcp://127.0.0.1:*", rep="tcp://127.0.0.1:*", **keys.of("feed"))
    app.reply("n")(lambda: 1)
    service = app.service(reactor)
    before, timers = len(zap._handlers), len(reactor.getDelayedCalls())
    readers = set(reactor.getReaders())
    for _ in range(10):
        service.startService()
        await service.started
        assert len(zap._handlers) == before + 1
        await service.stopService()
    assert len(zap._handlers) == before
    await turns(lambda: len(reactor.getDelayedCalls()) <= timers)
    assert set(reactor.getReaders()) == readers


@pytest.mark.parametrize("broken", ["pub", "rep", "jobs", "peer"])
@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_half_way_leaves_nothing_open(keys: Keys, broken: str) -> None:
    """Sockets, handler and timers are closed again, and a second start works."""
    taken = socket.create_server(("127.0.0.1", 0))  # not of ZeroMQ, which would free the port later
    ends: dict[str, Any] = dict.fromkeys(("pub", "rep", "jobs"), "tcp://127.0.0.1:*")
    if broken == "peer":
        ends["sub"] = "nowhere@tcp://127.0.0.1:1"
    else:
        ends[broken] = ["tcp://127.0.0.1:*", f"tcp://127.0.0.1:{taken.getsockname()[1]}"]
    app = App(**ends, **keys.of("feed"))
    app.reply("n")(lambda: 1)
    app.job_queue("jobs.a", int)
    service = app.service(reactor)
    before, timers, readers = len(zap._handlers), len(reactor.getDelayedCalls()), set(reactor.getReaders())
    with pytest.raises(EndpointError):
        service.startService()
    await service.stopService()
    assert (len(zap._handlers), set(reactor.getReaders())) == (before, readers)
    await turns(lambda: len(reactor.getDelayedCalls()) <= timers)
    taken.close()
    if broken == "peer":
        keys.authorize("feed", "mallory")
        (keys.peers("feed") / "mallory.key").rename(keys.peers("feed") / "nowhere.key")
    service.startService()
    await service.started
    await service.stopService()
    assert len(zap._handlers) == before
