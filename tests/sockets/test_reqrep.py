"""Requests over real sockets: to servers of every kind, from clients of every kind, and with nobody there."""

from __future__ import annotations

import re
import socket
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
    """Reply with what was asked."""
    request.reply(*request.parts)


@pytest_twisted.ensureDeferred
async def test_many_requests_are_under_way_and_each_gets_its_reply(sockets: Sockets, way: Way) -> None:
    """A thousand at once, answered in another order than they were asked."""
    held: list[Request] = []

    def later(request: Request) -> None:
        held.append(request)
        if len(held) == 20:
            for one in reversed(held):
                one.reply(*one.parts)
            held.clear()

    rep, req = sockets.make(RepConnection, later), sockets.make(ReqConnection)
    req.open(way.to(rep.open(way.wildcard)))
    replies = await gatherResults([req.request(b"%d" % number, b"x") for number in range(1000)])
    assert replies == [[b"%d" % number, b"x"] for number in range(1000)]
    assert (req.waiting, req.unanswered, req.late) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_plain_sockets_may_be_on_the_other_side(sockets: Sockets) -> None:
    """A REP and a REQ of pyzmq, which know nothing of us."""
    raw_rep, raw_req = sockets.raw(zmq.REP), sockets.raw(zmq.REQ)
    req, rep = sockets.make(ReqConnection), sockets.make(RepConnection, echo)
    req.open(bound(raw_rep))
    reply = req.request(b"a", b"b")
    assert await deferToThread(raw_rep.recv_multipart) == [b"a", b"b"]
    raw_rep.send_multipart([b"c"])
    assert await reply == [b"c"]
    raw_req.connect(rep.open("tcp://127.0.0.1:*"))
    raw_req.send_multipart([b"d", b"e"])
    assert await deferToThread(raw_req.recv_multipart) == [b"d", b"e"]


@pytest_twisted.ensureDeferred
async def test_requests_with_nobody_there_leave_nothing(sockets: Sockets, way: Way) -> None:
    """10,000 time out or are cancelled; a server that starts then gets the one that is still wanted, and no other."""
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
    wanted = req.request(b"wanted")

    def answer(request: Request) -> None:
        asked.put(request.parts[0])
        echo(request)

    rep = sockets.make(RepConnection, answer)
    rep.open("bind:" + meeting.bind)
    assert await wanted == [b"wanted"]
    assert asked.items == [b"wanted"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_reads_nothing_later_finds_a_window(sockets: Sockets) -> None:
    """It is connected and stopped; 1,000 requests time out; when it wakes up there are 64, not 1,000."""
    raw, req = sockets.raw(zmq.ROUTER), sockets.make(ReqConnection)
    req.open(bound(raw))
    replies = [req.request(b"%d" % number, timeout=0.3) for number in range(1000)]
    ended = await DeferredList(replies, consumeErrors=True)
    assert not any(success for success, _ in ended)
    found = 0
    while await deferToThread(raw.poll, 200):
        raw.recv_multipart()
        found += 1
    assert found == REQUEST_WINDOW
    assert req.unanswered == REQUEST_WINDOW


@pytest_twisted.ensureDeferred
async def test_one_silent_server_does_not_hold_up_the_other(sockets: Sockets) -> None:
    """Two servers, one of which never answers: nearly all requests are answered by the other."""
    raw, rep, req = sockets.raw(zmq.ROUTER), sockets.make(RepConnection, echo), sockets.make(ReqConnection)
    for address in (bound(raw), rep.open("tcp://127.0.0.1:*")):
        req.open(address)
    served = Mailbox[Any]()
    while not served.items:  # until both are connected
        req.request(b"x", timeout=0.1).addCallbacks(served.put, lambda _: None)
        await deferLater(reactor, 0.01)
    ended = await DeferredList([req.request(b"x", timeout=3.0) for _ in range(1000)], consumeErrors=True)
    assert sum(success for success, _ in ended) >= 1000 - REQUEST_WINDOW


@pytest_twisted.ensureDeferred
async def test_what_a_server_had_is_lost_with_it(sockets: Sockets, way: Way) -> None:
    """It closes: its requests fail at once and say where; a new server on the address is asked again."""
    meeting, req, held = way.meeting(), sockets.make(ReqConnection), Mailbox[Request]()
    first = sockets.make(RepConnection, held.put)
    first.open("bind:" + meeting.bind)
    req.open(meeting.connect)
    lost = req.request(b"x", timeout=None)
    await held.until(1)
    first.close()
    with pytest.raises(RequestLostError, match=rf"the server at {re.escape(meeting.connect)} disconnected"):
        await lost
    again = req.request(b"y")
    second = sockets.make(RepConnection, echo)
    for _ in range(500):
        try:
            second.open("bind:" + meeting.bind)
            break
        except EndpointError:  # libzmq's own thread has not closed the first yet
            await deferLater(reactor, 0.01)
    assert await again == [b"y"]


@pytest_twisted.ensureDeferred
async def test_servers_that_answer_and_go_leave_no_request_without_an_end(sockets: Sockets) -> None:
    """Each has its reply, or is told to be lost; and libzmq, which could abort over it, lets the process live."""
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
    """What it was asked fails, the others go on, and an address that is not open says so."""
    raw, rep, req = sockets.raw(zmq.ROUTER), sockets.make(RepConnection, echo), sockets.make(ReqConnection)
    silent = req.open(bound(raw))
    lost = req.request(b"x", timeout=None)
    await turns(lambda: req.unanswered)
    req.open(way.to(rep.open(way.wildcard)))
    req.disconnect(silent)
    with pytest.raises(RequestLostError):
        await lost
    assert await req.request(b"y") == [b"y"]
    with pytest.raises(EndpointError, match="is not open: give the address that open"):
        req.disconnect(silent)
    assert len(req.endpoints) == 1


@pytest_twisted.ensureDeferred
async def test_a_client_may_bind(sockets: Sockets) -> None:
    """Servers that connect to it share its requests."""
    asked, req = Mailbox[int](), sockets.make(ReqConnection)
    address = req.open("bind:tcp://127.0.0.1:*")
    for number in range(2):

        def answer(request: Request, number: int = number) -> None:
            asked.put(number)
            echo(request)

        sockets.make(RepConnection, answer).open("connect:" + address)
    await gatherResults([req.request(b"x") for _ in range(100)])
    await turns(lambda: len(asked.items) >= 100)
    while set(asked.items) != {0, 1}:
        await req.request(b"x")


@pytest_twisted.ensureDeferred
async def test_a_mistake_is_told_at_my_line(sockets: Sockets) -> None:
    """No part, too many, text; an unknown option; a request after the end."""
    req = sockets.make(ReqConnection)
    with pytest.raises(ValueError, match=f"a request has 1 to {MAX_PARTS - 2} parts, not 0"):
        req.request()
    with pytest.raises(ValueError, match="parts, not 20"):
        req.request(*[b""] * 20)
    with pytest.raises(TypeError, match="the parts of a request are bytes, not str"):
        req.request("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="there is no socket option 'sndwm'"):
        ReqConnection(reactor, sndwm=3)  # type: ignore[call-arg]
    endpoint = free_endpoint()
    req.open(endpoint)
    with pytest.raises(EndpointError, match=f"connect:{endpoint} is already open"):
        req.open(endpoint)
    waiting = req.request(b"x")
    req.close()
    req.close()
    for failing in (waiting, req.request(b"y")):
        with pytest.raises(NotRunningError):
            await failing
    with pytest.raises(NotRunningError, match="is closed: open another one"):
        req.open("tcp://127.0.0.1:1")


@pytest_twisted.ensureDeferred
async def test_no_reply_says_how_long_was_waited(sockets: Sockets) -> None:
    """The error is a TimeoutError and asks what I would look at first."""
    req = sockets.make(ReqConnection)
    with pytest.raises(RequestTimeoutError, match=r"no reply within 0\.01 s: check that the server is running"):
        await req.request(b"x", timeout=0.01)
    assert issubclass(RequestTimeoutError, TimeoutError)


@pytest_twisted.ensureDeferred
async def test_a_request_is_answered_once(sockets: Sockets, way: Way) -> None:
    """A second reply is an error of the server's own, logged and counted, and the client sees one."""

    def twice(request: Request) -> None:
        echo(request)
        with pytest.raises(UsageError, match="already answered: reply once"):
            echo(request)

    rep, req = sockets.make(RepConnection, twice), sockets.make(ReqConnection)
    req.open(way.to(rep.open(way.wildcard)))
    assert await req.request(b"x") == [b"x"]
    await turns(lambda: rep.received)
    assert (rep.failed, req.late) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_a_reply_that_is_text_by_mistake_can_be_given_again(sockets: Sockets) -> None:
    """The error names the mistake, and the handler that catches it still answers: its client does not wait in vain."""

    def answer(request: Request) -> None:
        with pytest.raises(TypeError, match="bytes-like object is required, not 'str'"):
            request.reply(b"1", "text")  # type: ignore[arg-type]
        request.reply(b"failed")

    rep, req = sockets.make(RepConnection, answer), sockets.make(ReqConnection)
    req.open(bound(rep))
    assert await req.request(b"x") == [b"failed"]


@pytest_twisted.ensureDeferred
async def test_a_reply_after_the_close_says_so(sockets: Sockets) -> None:
    """My coroutine ends after the server was closed: the error is zroute's, and names it."""
    asked = Mailbox[Request]()
    rep, req = sockets.make(RepConnection, asked.put), sockets.make(ReqConnection)
    req.open(bound(rep))
    req.request(b"x").addErrback(lambda _: None)
    (request,) = await asked.until(1)
    rep.close()
    with pytest.raises(NotRunningError, match="this RepConnection is closed"):
        request.reply(b"late")


@pytest_twisted.ensureDeferred
async def test_a_reply_to_a_client_that_has_gone_is_counted(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing raises in the server, and the next client is answered."""
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

    await turns(away)  # libzmq tells of it a little before it takes the client from the socket
    request.reply(b"too late")
    assert rep.undelivered == 1
    assert "a reply was not delivered" in caplog.text
    rep._on_request = echo
    req = sockets.make(ReqConnection)
    req.open(address)
    assert await req.request(b"y") == [b"y"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_fails_over_a_request_answers_the_next(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, in a Deferred, in a coroutine: logged, counted, and the client times out."""

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
    assert await req.request(b"fine") == [b"fine"]
    ended = await DeferredList(silent, consumeErrors=True)
    assert [failure.type for _, failure in ended] == [RequestTimeoutError] * 3  # type: ignore[union-attr]
    assert rep.failed == 3
    assert all(text in caplog.text for text in ("at once", "in the Deferred", "in the coroutine"))


@pytest_twisted.ensureDeferred
async def test_bad_frames_cost_themselves_only(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """No delimiter, one part, 50 parts, parts of 1 MB, none at all but an identity: the next request is answered."""
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
    assert "not a request: no empty part before its parts" in caplog.text
    assert "more than 16 parts" in caplog.text
    raw.send_multipart([b"id", b"", b"y" * 1_000_000])
    assert await deferToThread(raw.recv_multipart) == [b"id", b"", b"y" * 1_000_000]


@pytest_twisted.ensureDeferred
async def test_a_peer_that_breaks_the_protocol_is_cut_and_the_next_one_served(sockets: Sockets) -> None:
    """Bytes that are no ZMTP, and a part over the limit: their connection ends, and nobody else's."""
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
    assert await req.request(b"fine") == [b"fine"]


@pytest_twisted.ensureDeferred
async def test_replies_that_are_none_are_counted(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """A server that answers with nonsense: logged, counted, and the reply that comes then is taken."""
    raw, req = sockets.raw(zmq.ROUTER), sockets.make(ReqConnection)
    req.open(bound(raw))
    reply = req.request(b"x")
    peer, id, _, _ = await deferToThread(raw.recv_multipart)
    for parts in ([b"x"], [b"x", b"y"], [id, b"no delimiter", b"z"], [b"unknown", b"", b"z"], [id, b"", b"yes"]):
        raw.send_multipart([peer, *parts])
    assert await reply == [b"yes"]
    assert req.late == 1
    assert "not a reply: expected an id, an empty part" in caplog.text
