"""Requests over real sockets, with servers and clients of each kind, and without a server."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred, DeferredList, fail, gatherResults, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.running import Mailbox, reactor, turns
from tests.sockets.opened import Sockets, bound
from tests.support import PATIENCE, Way, free_endpoint
from zroute.errors import EndpointError, NotRunningError, RequestLostError, RequestTimeoutError, UsageError
from zroute.options import MAX_PARTS, REQUEST_WINDOW
from zroute.sockets.reqrep import RepConnection, ReqConnection, Request


def echo(request: Request) -> None:
    """Reply with the parts of the request."""
    request.reply(*request.parts)


@pytest_twisted.ensureDeferred
async def test_many_requests_are_under_way_and_each_gets_its_reply(sockets: Sockets, way: Way) -> None:
    """A thousand requests at once get their replies, which the server sends in another order."""
    held: list[Request] = []

    def later(request: Request) -> None:
        held.append(request)
        if len(held) == 20:
            for one in reversed(held):
                one.reply(*one.parts)
            held.clear()

    rep, req = sockets.make(RepConnection, later), sockets.make(ReqConnection)
    req.open(way.to(rep.open(way.wildcard)))
    replies = await gatherResults([req.request(b"%d" % number, b"x", timeout=PATIENCE) for number in range(1000)])
    assert replies == [[b"%d" % number, b"x"] for number in range(1000)]
    assert (req.waiting, req.unanswered, req.late) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_plain_sockets_may_be_on_the_other_side(sockets: Sockets) -> None:
    """A REP and a REQ of pyzmq can be the other side."""
    raw_rep, raw_req = sockets.raw(zmq.REP), sockets.raw(zmq.REQ)
    req, rep = sockets.make(ReqConnection), sockets.make(RepConnection, echo)
    req.open(bound(raw_rep))
    reply = req.request(b"a", b"b", timeout=PATIENCE)
    assert await deferToThread(raw_rep.recv_multipart) == [b"a", b"b"]
    raw_rep.send_multipart([b"c"])
    assert await reply == [b"c"]
    raw_req.connect(rep.open("tcp://127.0.0.1:*"))
    raw_req.send_multipart([b"d", b"e"])
    assert await deferToThread(raw_req.recv_multipart) == [b"d", b"e"]


@pytest_twisted.ensureDeferred
async def test_requests_with_nobody_there_leave_nothing(sockets: Sockets, way: Way) -> None:
    """10,000 requests time out or are cancelled; a later server gets only the request still waited for."""
    meeting, req, asked = way.meeting(), sockets.make(ReqConnection), Mailbox[bytes]()
    req.open(meeting.connect)
    errors: list[str] = []
    for number in range(10_000):
        reply = req.request(b"%d" % number, timeout=0.05)
        reply.addErrback(lambda failure: errors.append(failure.type.__name__))
        if number % 10 == 0:
            reply.cancel()
    assert req.waiting == 9_000
    await turns(lambda: len(errors) == 10_000)
    assert {name: errors.count(name) for name in set(errors)} == {"CancelledError": 1_000, "RequestTimeoutError": 9_000}
    wanted = req.request(b"wanted", timeout=PATIENCE)

    def answer(request: Request) -> None:
        asked.put(request.parts[0])
        echo(request)

    rep = sockets.make(RepConnection, answer)
    rep.open("bind:" + meeting.bind)
    assert await wanted == [b"wanted"]
    assert asked.items == [b"wanted"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_reads_nothing_later_finds_a_window(sockets: Sockets) -> None:
    """A stopped server that wakes after 1,000 timeouts finds 64 requests, not 1,000."""
    raw, req = sockets.raw(zmq.ROUTER), sockets.make(ReqConnection)
    req.open(bound(raw))
    first = req.request(b"is it there?", timeout=PATIENCE)
    raw.send_multipart(await deferToThread(raw.recv_multipart))
    await first
    replies = [req.request(b"%d" % number, timeout=0.3) for number in range(1000)]
    ended = await DeferredList(replies, consumeErrors=True)
    assert not any(success for success, _ in ended)
    for _ in range(REQUEST_WINDOW):
        await deferToThread(raw.recv_multipart)
    assert not await deferToThread(raw.poll, 200)
    assert req.unanswered == REQUEST_WINDOW


@pytest_twisted.ensureDeferred
async def test_one_silent_server_does_not_hold_up_the_other(sockets: Sockets) -> None:
    """With two servers, one of them silent, the other answers nearly all requests."""
    raw, rep, req = sockets.raw(zmq.ROUTER), sockets.make(RepConnection, echo), sockets.make(ReqConnection)
    for address in (bound(raw), rep.open("tcp://127.0.0.1:*")):
        req.open(address)
    served = Mailbox[Any]()
    while not served.items:  # wait until both are connected
        req.request(b"x", timeout=0.1).addCallbacks(served.put, lambda _: None)
        await deferLater(reactor, 0.01)
    before = len(served.items)
    for _ in range(1000):  # at the end of the test, those of the silent server fail
        req.request(b"x", timeout=PATIENCE).addCallbacks(served.put, lambda _: None)
    await served.until(before + 1000 - REQUEST_WINDOW)


@pytest_twisted.ensureDeferred
async def test_what_a_server_had_is_lost_with_it(sockets: Sockets, way: Way) -> None:
    """Requests of a server that closes fail at once and name it; a new server there gets new requests."""
    meeting, req, held = way.meeting(), sockets.make(ReqConnection), Mailbox[Request]()
    first = sockets.make(RepConnection, held.put)
    first.open("bind:" + meeting.bind)
    req.open(meeting.connect)
    lost = req.request(b"x", timeout=None)
    await held.until(1)
    first.close()
    with pytest.raises(RequestLostError, match=rf"the server at {re.escape(meeting.connect)} disconnected"):
        await lost
    again = req.request(b"y", timeout=PATIENCE)
    second = sockets.make(RepConnection, echo)

    def opened() -> bool:
        with suppress(EndpointError):  # libzmq's own thread may not have closed the first yet
            second.open("bind:" + meeting.bind)
        return bool(second.endpoints)

    await turns(opened)
    assert await again == [b"y"]


@pytest_twisted.ensureDeferred
async def test_servers_that_answer_and_go_leave_no_request_without_an_end(sockets: Sockets) -> None:
    """Each request to a server that answers and exits is answered or lost, and libzmq does not abort."""
    for _ in range(100):
        raw, req = sockets.raw(zmq.ROUTER), sockets.make(ReqConnection)
        req.open(bound(raw))
        replies = [req.request(b"%d" % number, timeout=None) for number in range(50)]
        await deferToThread(_answer_and_go, raw, len(replies))
        ended = await DeferredList(replies, consumeErrors=True)
        for number, (answered, result) in enumerate(ended):
            assert result == [b"%d" % number] if answered else result.check(RequestLostError)  # type: ignore[union-attr]
        req.close(0)


def _answer_and_go(raw: Any, requests: int) -> None:
    for _ in range(requests):
        raw.send_multipart(raw.recv_multipart())
    raw.close(1000)


@pytest_twisted.ensureDeferred
async def test_the_address_of_a_server_can_be_taken_back(sockets: Sockets, way: Way) -> None:
    """Disconnecting a server fails its requests, not the others; an address that is not open is an error."""
    raw, rep, req = sockets.raw(zmq.ROUTER), sockets.make(RepConnection, echo), sockets.make(ReqConnection)
    silent = req.open(bound(raw))
    lost = req.request(b"x", timeout=None)
    await turns(lambda: req.unanswered)
    req.open(way.to(rep.open(way.wildcard)))
    req.disconnect(silent)
    with pytest.raises(RequestLostError):
        await lost
    assert await req.request(b"y", timeout=PATIENCE) == [b"y"]
    with pytest.raises(EndpointError, match="is not open: pass the address that open"):
        req.disconnect(silent)
    assert len(req.endpoints) == 1


@pytest_twisted.ensureDeferred
async def test_a_client_may_bind(sockets: Sockets) -> None:
    """Servers that connect to a bound client share its requests."""
    asked, req = Mailbox[int](), sockets.make(ReqConnection)
    address = req.open("bind:tcp://127.0.0.1:*")
    for number in range(2):

        def answer(request: Request, number: int = number) -> None:
            asked.put(number)
            echo(request)

        sockets.make(RepConnection, answer).open("connect:" + address)
    await gatherResults([req.request(b"x", timeout=PATIENCE) for _ in range(100)])
    await turns(lambda: len(asked.items) >= 100)
    while set(asked.items) != {0, 1}:
        await req.request(b"x", timeout=PATIENCE)


@pytest_twisted.ensureDeferred
async def test_a_mistake_is_told_at_my_line(sockets: Sockets) -> None:
    """Wrong parts, an unknown option, and a request after the close raise errors at the caller."""
    req = sockets.make(ReqConnection)
    with pytest.raises(ValueError, match=f"a request must have 1 to {MAX_PARTS - 2} parts, not 0"):
        req.request()
    with pytest.raises(ValueError, match="parts, not 20"):
        req.request(*[b""] * 20)
    with pytest.raises(TypeError, match="the parts of a request must be bytes, not str"):
        req.request("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unknown socket option 'sndwm'"):
        ReqConnection(reactor, sndwm=3)  # type: ignore[call-arg]
    endpoint = free_endpoint()
    req.open(endpoint)
    with pytest.raises(EndpointError, match=f"connect:{endpoint} is already open"):
        req.open(endpoint)
    waiting = req.request(b"x", timeout=PATIENCE)
    req.close()
    req.close()
    for failing in (waiting, req.request(b"y", timeout=PATIENCE)):
        with pytest.raises(NotRunningError):
            await failing
    with pytest.raises(NotRunningError, match="is closed: create a new one"):
        req.open("tcp://127.0.0.1:1")


@pytest_twisted.ensureDeferred
async def test_no_reply_says_how_long_was_waited(sockets: Sockets) -> None:
    """A timeout is a TimeoutError that names the seconds and what to check."""
    req = sockets.make(ReqConnection)
    with pytest.raises(RequestTimeoutError, match=r"no reply within 0\.01 s: check that the server is running"):
        await req.request(b"x", timeout=0.01)
    assert issubclass(RequestTimeoutError, TimeoutError)


@pytest_twisted.ensureDeferred
async def test_a_request_is_answered_once(sockets: Sockets, way: Way) -> None:
    """A second reply is an error in the server, logged and counted; the client gets one reply."""

    def twice(request: Request) -> None:
        echo(request)
        with pytest.raises(UsageError, match="already answered: call reply"):
            echo(request)

    rep, req = sockets.make(RepConnection, twice), sockets.make(ReqConnection)
    req.open(way.to(rep.open(way.wildcard)))
    assert await req.request(b"x", timeout=PATIENCE) == [b"x"]
    await turns(lambda: rep.received)
    assert (rep.failed, req.late) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_a_reply_that_is_text_by_mistake_can_be_given_again(sockets: Sockets) -> None:
    """After a TypeError for a str part, the handler can still reply."""

    def answer(request: Request) -> None:
        with pytest.raises(TypeError, match="bytes-like object is required, not 'str'"):
            request.reply(b"1", "text")  # type: ignore[arg-type]
        request.reply(b"failed")

    rep, req = sockets.make(RepConnection, answer), sockets.make(ReqConnection)
    req.open(bound(rep))
    assert await req.request(b"x", timeout=PATIENCE) == [b"failed"]


@pytest_twisted.ensureDeferred
async def test_a_reply_after_the_close_says_so(sockets: Sockets) -> None:
    """A reply after the server was closed raises zroute's own error with the name of the connection."""
    asked = Mailbox[Request]()
    rep, req = sockets.make(RepConnection, asked.put), sockets.make(ReqConnection)
    req.open(bound(rep))
    req.request(b"x", timeout=PATIENCE).addErrback(lambda _: None)
    (request,) = await asked.until(1)
    rep.close()
    with pytest.raises(NotRunningError, match="this RepConnection is closed"):
        request.reply(b"late")


@pytest_twisted.ensureDeferred
async def test_a_reply_to_a_client_that_has_gone_is_counted(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """A reply to a disconnected client is counted without an error, and the next client is answered."""
    held, raw = Mailbox[Request](), sockets.raw(zmq.DEALER)
    rep = sockets.make(RepConnection, held.put)
    address = rep.open("tcp://127.0.0.1:*")
    gone: Deferred[None] = Deferred()
    rep.watch(lambda event: gone.callback(None) if event.name == "disconnected" else None)
    raw.connect(address)
    raw.send_multipart([b"", b"x"])
    (request,) = await held.until(1)
    raw.close(0)
    await gone

    def away() -> bool:
        try:
            rep.try_send([request._envelope[0], b"are you there?"])  # type: ignore[index]
        except zmq.ZMQError:
            return True
        return False

    await turns(away)  # libzmq reports the end shortly before it removes the client from the socket
    request.reply(b"too late")
    assert rep.undelivered == 1
    assert "a reply was not delivered" in caplog.text
    rep._on_request = echo
    req = sockets.make(ReqConnection)
    req.open(address)
    assert await req.request(b"y", timeout=PATIENCE) == [b"y"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_fails_over_a_request_answers_the_next(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors of a server's handler are logged and counted, and the client's request times out."""

    async def coroutine() -> None:
        await succeed(None)
        raise LookupError("in the coroutine")

    def answer(request: Request) -> object:
        if request.parts == [b"raise"]:
            raise KeyError("at once")
        if request.parts == [b"deferred"]:
            return fail(OSError("in the Deferred"))
        return coroutine() if request.parts == [b"coroutine"] else echo(request)

    rep, req = sockets.make(RepConnection, answer), sockets.make(ReqConnection)
    req.open(rep.open("tcp://127.0.0.1:*"))
    assert await req.request(b"is it there?", timeout=PATIENCE) == [b"is it there?"]
    silent = [req.request(body, timeout=1.0) for body in (b"raise", b"deferred", b"coroutine")]
    assert await req.request(b"fine", timeout=PATIENCE) == [b"fine"]
    ended = await DeferredList(silent, consumeErrors=True)
    assert [failure.type for _, failure in ended] == [RequestTimeoutError] * 3  # type: ignore[union-attr]
    assert rep.failed == 3
    assert all(text in caplog.text for text in ("at once", "in the Deferred", "in the coroutine"))


@pytest_twisted.ensureDeferred
async def test_bad_frames_cost_themselves_only(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """After malformed frames of all kinds, the next request is answered."""
    rep, raw = sockets.make(RepConnection, echo), sockets.raw(zmq.DEALER)
    address = rep.open("tcp://127.0.0.1:*")
    raw.connect(address)
    bad: list[list[bytes]] = [
        [b"x"],
        [b"id", b"body"],
        [b"x"] * 50,
        [b""] + [b"x"] * 50,
        [b"x" * 1_000_000, b"x" * 1_000_000],
    ]
    for parts in bad:
        raw.send_multipart(parts)
    raw.send_multipart([b"id", b"", b"good"])
    assert await deferToThread(raw.recv_multipart) == [b"id", b"", b"good"]
    assert (rep.malformed, rep.received) == (len(bad), len(bad) + 1)
    assert "not a request: expected an empty part before the parts of the request" in caplog.text
    assert "more than 16 parts" in caplog.text
    raw.send_multipart([b"id", b"", b"y" * 1_000_000])
    assert await deferToThread(raw.recv_multipart) == [b"id", b"", b"y" * 1_000_000]


@pytest_twisted.ensureDeferred
async def test_a_peer_that_breaks_the_protocol_is_cut_and_the_next_one_served(sockets: Sockets) -> None:
    """A peer that sends invalid ZMTP or a giant part is cut; other clients are not affected."""
    rep, events = sockets.make(RepConnection, echo), Mailbox[Any]()
    rep.watch(events.put)
    address = rep.open("tcp://127.0.0.1:*")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as stranger:
        stranger.sendall(b"\xff\0\0\0\0\0\0\0\1\x7f\3\0BOGUS" + bytes(60))
        await turns(lambda: any(event.name.startswith(("handshake_failed", "disconn")) for event in events.items))
    giant = sockets.raw(zmq.DEALER)
    giant.connect(address)
    giant.send_multipart([b"", b"x" * 1_048_577])
    await turns(lambda: sum(event.name == "disconnected" for event in events.items) >= 1)
    req = sockets.make(ReqConnection)
    req.open(address)
    assert await req.request(b"fine", timeout=PATIENCE) == [b"fine"]


@pytest_twisted.ensureDeferred
async def test_replies_that_are_none_are_counted(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """Invalid replies of a server are logged and counted, and a valid one is accepted after them."""
    raw, req = sockets.raw(zmq.ROUTER), sockets.make(ReqConnection)
    req.open(bound(raw))
    reply = req.request(b"x", timeout=PATIENCE)
    peer, id, _, _ = await deferToThread(raw.recv_multipart)
    for parts in ([b"x"], [b"x", b"y"], [id, b"no delimiter", b"z"], [b"unknown", b"", b"z"], [id, b"", b"yes"]):
        raw.send_multipart([peer, *parts])
    assert await reply == [b"yes"]
    assert req.late == 1
    assert "not a reply: expected an id, an empty part" in caplog.text
