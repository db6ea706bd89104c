"""The log of connections: one line each for a connection, a missing answer with its reason, and a return."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.protocol import Factory, Protocol

from tests.acceptance.streams import Reader, reader, stream
from tests.running import reactor, running, turns
from tests.support import Way, free_endpoint, free_port_of
from zroute import App, Limits
from zroute.sockets import connection_log


def connections(heard: Reader, address: str) -> list[str]:
    """Return the reader's log lines about the connection to this address, without time and level."""
    port = f":{address.rpartition(':')[2]}"
    words = "reader: connected to ", "reader: no answer from "
    texts = [line[line.index("reader: ") :] for line in heard.child.err if any(word in line for word in words)]
    return [text for text in texts if port in text]


def test_an_end_an_absence_and_a_return_are_one_line_each(way: Way) -> None:
    """After a goodbye the end of the connection is not logged; of a killed publisher one line reports it."""
    clean, killed = way.meeting(), way.meeting()
    with (
        stream(clean.bind, "clean") as first,
        stream(killed.bind, "killed") as second,
        reader(clean.connect, killed.connect, ready=2) as heard,
    ):
        assert first.child.end(signal.SIGTERM) == 0
        ended = heard.child.line_with("publisher clean@", stream="err")
        assert "has ended, all its messages since the join were received or counted" in ended
        heard.child.wait_for(lambda lines: "event disconnected" in " ".join(lines))
        second.kill()
        heard.child.line_with("no answer from ", stream="err")  # the line of the first would have come before
        with stream(clean.bind, "clean"), stream(killed.bind, "killed"):
            for meeting in (clean, killed):
                heard.child.line_with(f"connected to {meeting.connect} again", stream="err")
        connected = [f"reader: connected to {meeting.connect}" for meeting in (clean, killed)]
        assert connections(heard, clean.connect) == [connected[0], f"{connected[0]} again"]
        first_line, absent, last_line = connections(heard, killed.connect)
        assert (first_line, last_line) == (connected[1], f"{connected[1]} again")
        assert absent == (
            f"reader: no answer from {killed.connect} for 3 s: connection refused, no program listens on this port "
            "(libzmq: closed); trying again"
        )


def test_a_goodbye_hides_no_loss_of_a_publisher_with_the_same_port() -> None:
    """If two hosts use one port, the goodbye of one publisher does not hide that the other was killed."""
    port = free_port_of("127.0.0.1", "127.0.0.2")
    first, second = (f"tcp://127.0.0.{host}:{port}" for host in (1, 2))
    with (
        stream(first, "clean") as clean,
        stream(second, "killed") as killed,
        reader(first, second, ready=2) as heard,
    ):
        assert clean.child.end(signal.SIGTERM) == 0
        heard.child.line_with("publisher clean@", stream="err")
        heard.child.wait_for(lambda lines: "event disconnected" in " ".join(lines))
        killed.kill()
        heard.child.line_with(f"no answer from {second} for 3 s", stream="err")
        assert not any(f"no answer from {first}" in line for line in heard.child.err)


def test_a_silent_publisher_that_is_cut_has_no_second_line() -> None:
    """A silent publisher that is cut has no further lines about its connection."""
    endpoint = free_endpoint()
    with stream(endpoint, "a") as publisher, reader(endpoint, ready=1) as heard:
        publisher.command("go")
        heard.wait_for("a", 50)
        publisher.child.process.send_signal(signal.SIGSTOP)
        heard.child.line_with("is silent", stream="err")
        heard.child.wait_for(lambda lines: any("disconnected" in line for line in lines))
        publisher.child.process.send_signal(signal.SIGCONT)
        heard.child.line_with("is no longer silent", stream="err")
        assert connections(heard, endpoint) == [f"reader: connected to {endpoint}"]


def _wants_a_key(socket: Any) -> None:
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_server = 1


def _wants_a_password(socket: Any) -> None:
    socket.plain_server = 1


@pytest.fixture
def peer() -> Iterator[Callable[..., tuple[Any, str]]]:
    """A function that binds a ZeroMQ socket of a kind with options, and returns it with its address."""
    with zmq.Context() as context:
        sockets = []

        def make(kind: int, options: Callable[[Any], None] = lambda socket: None) -> tuple[Any, str]:
            socket = context.socket(kind)
            sockets.append(socket)
            options(socket)
            address = free_endpoint()  # stays free for a socket that takes its place
            socket.bind(address)
            return socket, address

        yield make
        for socket in sockets:
            socket.close(0)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log no missing answer, although a busy machine may need seconds to connect."""
    monkeypatch.setattr(connection_log, "NO_ANSWER", 1_000.0)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("kind", "options", "facts"),
    [
        (
            zmq.XPUB,
            _wants_a_key,
            ("requires authentication (CURVE, PLAIN or GSSAPI)", "for CURVE, create a key", "feed@tcp://"),
        ),
        (
            zmq.XPUB,
            _wants_a_password,
            ("requires authentication (CURVE, PLAIN or GSSAPI)", "does not support", "plain_server"),
        ),
        (
            zmq.PUSH,
            lambda socket: None,
            ("socket has an incompatible type", "SUB expects PUB or XPUB", "check sub="),
        ),
        (zmq.SUB, lambda socket: None, ("socket has an incompatible type", "SUB expects PUB or XPUB", "check sub=")),
    ],
)
async def test_a_peer_that_does_not_fit_is_named_with_the_option_to_change(
    peer: Any, kind: int, options: Any, facts: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that asks for a key, or of the wrong kind, is logged once with the option; a right one connects."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    socket, address = peer(kind, options)
    app = App(sub=address, name="reader")
    app.add_route(lambda body: None, "a")
    async with running(app) as service:
        assert service.transport is not None
        assert service.transport.sub is not None
        ends = []
        service.transport.sub.watch(lambda event: ends.append(event.name == "disconnected"))
        await turns(lambda: facts[0] in caplog.text)  # not at once, if the peer is the first to end the handshake
        ends.clear()
        await turns(lambda: sum(ends) >= 3)
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert [all(fact in line for fact in facts) for line in warnings] == [True]
        assert warnings[0].startswith(f"reader: {address}: ")
        socket.close(0)
        right, _ = peer(zmq.XPUB)
        await turns(lambda: _rebound(right, address))
        await turns(lambda: f"reader: connected to {address}" in caplog.text)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("side", ["req", "work"])
@pytest.mark.parametrize(
    ("kind", "options", "facts"),
    [
        (zmq.ROUTER, _wants_a_key, ("requires authentication (CURVE, PLAIN or GSSAPI)", "for CURVE, create a key")),
        (
            zmq.XPUB,
            lambda socket: None,
            ("socket has an incompatible type", "DEALER expects ROUTER, REP or DEALER", "check {side}="),
        ),
    ],
)
async def test_a_peer_that_fits_neither_requests_nor_jobs_is_named_too(
    peer: Any, side: str, kind: int, options: Any, facts: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """The log has one warning about a wrong peer, one line for the right one, and one when it has restarted."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    socket, address = peer(kind, options)
    app = App(name="asker", **{side: address})
    app.work("a")(lambda: None) if side == "work" else app.requester("a", None, int)
    async with running(app):
        await turns(lambda: facts[0] in caplog.text)
        connected: list[str] = []
        for line in (f"asker: connected to {address}", f"asker: connected to {address} again"):
            socket.close(0)
            socket, _ = peer(zmq.ROUTER)
            await turns(partial(_rebound, socket, address))
            connected.append(line)
            await turns(lambda: [text for text in caplog.messages if "connected to" in text] == connected)
        texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        first, *others = texts
        assert first.startswith(f"asker: {address}: ")
        assert all(fact.format(side=side) in first for fact in facts)
        assert all("more lines like these were not shown" in text for text in others)


def _rebound(socket: Any, address: str) -> bool:
    try:
        socket.bind(address)
    except zmq.ZMQError:  # the port is not free yet
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_a_frame_over_the_limit_names_max_message(
    peer: Any, slowly: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher that sends too large a frame again and again is logged once, with the option to raise."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    socket, address = peer(zmq.XPUB)
    app = App(sub=address, name="reader", limits=Limits(max_message=100_000))
    app.add_route(lambda body: None, "a")

    def feed() -> int:
        """Send one large frame for each new subscription; return the number of frames sent."""
        nonlocal fed
        while socket.poll(0):
            if socket.recv()[:2] == b"\1a":
                fed += 1
                socket.send(b"a\0" + bytes(200_000))
        return fed

    fed = 0
    async with running(app):
        await turns(lambda: feed() >= 3)
        lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"reader: connected to {address}",
        f"reader: {address}: connection closed: the peer sent a frame of more than 104845 bytes, or invalid ZMTP: "
        "increase App(limits=Limits(max_message=100000)) here, or send smaller messages from the peer",
    ]


def _send_giant(socket: Any) -> None:
    while socket.poll(0):
        if socket.recv()[:2] == b"\1a":
            socket.send(b"a\0" + bytes(200_000))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("kind", "options", "fact"),
    [
        (zmq.XPUB, lambda socket: None, "connection closed: the peer sent a frame of more than"),
        (zmq.XPUB, _wants_a_key, "requires authentication|requires a key"),
        (zmq.PUSH, lambda socket: None, "socket has an incompatible type"),
    ],
)
async def test_a_peer_that_was_refused_and_goes_is_missed(
    peer: Any, kind: int, options: Any, fact: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer that was refused and then goes away is logged once as not answering."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    socket, address = peer(kind, options)
    app = App(sub=address, name="reader", limits=Limits(max_message=100_000))
    app.add_route(lambda body: None, "a")

    def refused() -> bool:
        if kind == zmq.XPUB:
            _send_giant(socket)
        return re.search(fact, caplog.text) is not None

    async with running(app):
        await turns(refused)
        socket.close(0)
        await turns(lambda: "no answer" in caplog.text)
    lines = [record.getMessage() for record in caplog.records]
    assert [f"no answer from {address} for 3 s: " in line for line in lines].count(True) == 1


class Http(Protocol):
    """An HTTP server that refuses each request and closes the connection."""

    def dataReceived(self, data: bytes) -> None:  # Twisted's name
        """Refuse the request."""
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        self.transport.loseConnection()


@pytest_twisted.ensureDeferred
async def test_an_http_server_is_not_taken_for_a_publisher_with_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """For the port of an HTTP server, the log line says that the program there may not use ZeroMQ."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    port = reactor.listenTCP(0, Factory.forProtocol(Http), interface="127.0.0.1")
    address = f"tcp://127.0.0.1:{port.getHost().port}"
    app = App(sub=address, name="reader")
    app.add_route(lambda body: None, "a")
    try:
        async with running(app):
            await turns(lambda: "no answer" in caplog.text)
    finally:
        await port.stopListening()
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"reader: no answer from {address} for 3 s: the peer accepts the connection, but closes it")
    assert "not a ZeroMQ program (such as an HTTP server), or a socket that requires a key" in line


@pytest_twisted.ensureDeferred
async def test_a_name_that_cannot_be_resolved_is_the_reason_of_an_absence(caplog: pytest.LogCaptureFixture) -> None:
    """A host name that cannot be resolved is logged as the reason; no host has a label of 64 characters."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    address = f"tcp://{'x' * 64}.test:5555"
    app = App(pub=f"connect:{address}", name="reader")
    app.publisher("a", int)
    async with running(app):
        await turns(lambda: "no answer" in caplog.text)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "zroute.sockets")
    said = "the host name can't be resolved (libzmq: connect_retried); trying again"
    assert line == f"reader: no answer from {address} for 3 s: {said}"


@pytest_twisted.ensureDeferred
async def test_a_subscriber_logs_once_that_a_name_cannot_be_resolved(caplog: pytest.LogCaptureFixture) -> None:
    """The name of a subscriber's endpoint is looked up again and again, and the log has one line about it."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    address = f"tcp://{'x' * 64}.test:5555"
    app = App(sub=address, name="reader")
    app.add_route(lambda body: None, "a")
    async with running(app):
        await turns(lambda: "can't be resolved" in caplog.text)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"reader: the host name in {address} can't be resolved: ")
    assert line.endswith("; trying again")


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_connects_logs_its_subscriber_too(
    slowly: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher that connects logs its subscriber; connections to a bound endpoint are logged at debug."""
    caplog.set_level(logging.INFO, "zroute.sockets")
    endpoint = free_endpoint()
    sink, sensor = App(sub=f"bind:{endpoint}", name="sink"), App(pub=f"connect:{endpoint}", name="sensor")
    sink.add_route(lambda body: None, "a")
    async with running(sensor), running(sink):
        await turns(lambda: "connected to" in caplog.text)
    of_sockets = [record.getMessage() for record in caplog.records if record.name == "zroute.sockets"]
    assert of_sockets == [f"sensor: connected to {endpoint}"]
