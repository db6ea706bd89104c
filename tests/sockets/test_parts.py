"""Messages of parts: sending, refused messages, and failures of handlers."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.running import Mailbox, reactor, turns
from tests.sockets.opened import Sockets, bound
from tests.support import free_endpoint
from zroute.errors import HighWaterMarkError, NotRunningError, WrongThreadError
from zroute.options import MAX_PARTS, SocketOptions
from zroute.sockets.pipeline import PullConnection, PushConnection
from zroute.sockets.reqrep import ReqConnection
from zroute.sockets.router_dealer import DealerConnection


async def pair(sockets: Sockets, on_message: Any, **options: Any) -> tuple[PushConnection, PullConnection]:
    """A PUSH that can send, and its PULL."""
    pull = sockets.make(PullConnection, on_message, **options)
    push = sockets.make(PushConnection)
    pull.open(push.open("tcp://127.0.0.1:*"))
    await push.when_writable()
    return push, pull


@pytest_twisted.ensureDeferred
async def test_the_parts_of_a_message_stay_together(sockets: Sockets) -> None:
    """Three parts are sent as one message of three parts; bytes-like parts are allowed."""
    box = Mailbox[list[bytes]]()
    push, pull = await pair(sockets, box.put)
    push.send(b"one")
    push.send(b"a", b"", bytearray(b"c"), memoryview(b"d"))
    push.send(memoryview(b"last"))
    assert await box.until(3) == [[b"one"], [b"a", b"", b"c", b"d"], [b"last"]]
    assert (pull.received, pull.malformed, pull.failed) == (3, 0, 0)


@pytest_twisted.ensureDeferred
async def test_text_is_refused_at_the_caller_and_leaves_nothing_behind(sockets: Sockets) -> None:
    """A str part is a TypeError; no part of the message is sent, and the next message arrives whole."""
    box = Mailbox[list[bytes]]()
    push, _pull = await pair(sockets, box.put)
    for parts in (("text",), (b"a", "text"), (b"a", "text", b"c")):
        with pytest.raises(TypeError):
            push.send(*parts)  # type: ignore[arg-type]
    push.send(b"whole", b"message")
    assert await box.until(1) == [[b"whole", b"message"]]


@pytest_twisted.ensureDeferred
async def test_the_number_of_parts_is_bounded_on_both_sides(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """Too many parts are a ValueError at the sender, and are logged and counted at the receiver."""
    box = Mailbox[list[bytes]]()
    push, pull = await pair(sockets, box.put)
    for parts in ([], [b""] * (MAX_PARTS + 1)):
        with pytest.raises(ValueError, match=f"a message must have 1 to {MAX_PARTS} parts, not {len(parts)}"):
            push.send(*parts)
    raw = sockets.raw(zmq.PUSH)
    pull.open("connect:" + bound(raw))
    raw.send_multipart([b"first"] + [b"x"] * 10_000)
    raw.send_multipart([b"y"] * MAX_PARTS)
    assert await box.until(1) == [[b"y"] * MAX_PARTS]
    assert pull.malformed == 1
    assert f"more than {MAX_PARTS} parts; first bytes: b'first'" in caplog.text


@pytest_twisted.ensureDeferred
async def test_what_nobody_takes_is_an_error_at_the_sender(sockets: Sockets) -> None:
    """Without a peer, and with a full queue, send raises; when_writable fires later; no message is lost."""
    push = sockets.make(PushConnection, sndhwm=1)
    address = push.open("inproc://jobs")
    with pytest.raises(HighWaterMarkError, match=r"PushConnection inproc://jobs: no peer is connected, or the queues"):
        push.send(b"0")
    box = Mailbox[list[bytes]]()
    pull = sockets.make(PullConnection, box.put, rcvhwm=1)
    pull.pause()
    pull.open(address)
    await push.when_writable()
    sent = 0
    while push.try_send([b"%d" % sent]):
        sent += 1
    assert sent == 2  # inproc has one queue, with the length of both marks together
    writable = push.when_writable()
    pull.resume()
    await writable
    push.send(b"%d" % sent)
    assert await box.until(3) == [[b"0"], [b"1"], [b"2"]]


@pytest_twisted.ensureDeferred
async def test_a_sender_that_waits_can_give_up_or_is_told_of_the_end(sockets: Sockets) -> None:
    """when_writable can be cancelled, and fails when the connection is closed; so does send."""
    push = sockets.make(PushConnection)
    push.open(free_endpoint())
    errors: list[Any] = []
    first, second = push.when_writable(), push.when_writable()
    for waiting in (first, second):
        waiting.addErrback(lambda failure: errors.append(failure.type.__name__))
    first.cancel()
    push.close()
    assert errors == ["CancelledError", "NotRunningError"]
    with pytest.raises(NotRunningError, match="this PushConnection is closed"):
        push.send(b"x")
    with pytest.raises(NotRunningError):
        await push.when_writable()


@pytest_twisted.ensureDeferred
async def test_a_waiting_sender_does_not_keep_the_reactor_busy(sockets: Sockets) -> None:
    """A waiting sender does not poll: the socket is looked at only when its descriptor signals."""
    dealer = sockets.make(DealerConnection, list)
    dealer.open("connect:" + free_endpoint())
    looks = []
    original = dealer.doRead
    dealer.doRead = lambda: (looks.append(1), original())  # type: ignore[method-assign, assignment, return-value, func-returns-value]
    waiting = dealer.when_writable()
    waiting.addErrback(lambda _: None)
    passed: Deferred[None] = Deferred()
    reactor.callLater(0.3, passed.callback, None)
    await passed
    assert len(looks) < 20


@pytest_twisted.ensureDeferred
async def test_a_failing_handler_is_logged_and_counted(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """Errors of a handler, its Deferred or its coroutine are logged, and the next message is handled."""
    box = Mailbox[bytes]()

    async def later() -> None:
        await succeed(None)
        raise LookupError("in the coroutine")

    def handle(parts: list[bytes]) -> object:
        box.put(parts[0])
        if parts[0] == b"raise":
            raise KeyError("at once")
        if parts[0] == b"deferred":
            return fail(OSError("in the Deferred"))
        return later() if parts[0] == b"coroutine" else "no awaitable"

    push, pull = await pair(sockets, handle)
    for part in (b"raise", b"deferred", b"coroutine", b"fine"):
        push.send(part)
    await box.until(4)
    await turns(lambda: pull.failed == 3)
    texts = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert texts == ["'at once'", "in the Deferred", "in the coroutine"]
    assert "PullConnection tcp://127.0.0.1:" in caplog.text
    assert "handle() failed" in caplog.text


@pytest_twisted.ensureDeferred
async def test_failures_by_the_thousand_do_not_fill_the_log(sockets: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    """Five failures are logged in full, the number of the others by the close; all are counted."""
    box = Mailbox[list[bytes]]()

    def handle(parts: list[bytes]) -> None:
        box.put(parts)
        raise ValueError("no")

    push, pull = await pair(sockets, handle)
    for _ in range(100):
        push.send(b"x")
    await turns(lambda: pull.failed == 100)
    pull.close()
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(messages) == 6
    assert messages[-1].endswith("failed: 95 more lines like these were not shown")


@pytest_twisted.ensureDeferred
async def test_a_handler_may_close_its_own_connection(sockets: Sockets) -> None:
    """A handler that closes its connection gets no further message."""
    box = Mailbox[list[bytes]]()

    def handle(parts: list[bytes]) -> None:
        box.put(parts)
        pull.close()

    push, pull = await pair(sockets, handle)
    for _ in range(10):
        push.send(b"x")
    assert await box.until(1) == [[b"x"]]
    await turns(lambda: pull.closed)
    assert pull.received == 1


@pytest_twisted.ensureDeferred
async def test_a_giant_part_cuts_the_connection_which_comes_back(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    """A part over maxmsgsize cuts the connection, which is logged, and is made again."""
    box, raw = Mailbox[list[bytes]](), sockets.raw(zmq.PUSH)
    pull = sockets.make(PullConnection, box.put, maxmsgsize=1000)
    pull.open("connect:" + bound(raw))
    raw.send(b"x" * 1000)
    await box.until(1)
    raw.send(b"x" * 1001)
    await turns(lambda: "a frame of more than 1000 bytes, or invalid ZMTP: increase maxmsgsize" in caplog.text)

    def again() -> bool:
        # A message is lost if the raw socket has not noticed the end of its connection yet.
        with suppress(zmq.Again):
            raw.send(b"small", zmq.DONTWAIT)
        return len(box.items) > 1

    await turns(again)
    assert box.items[1] == [b"small"]


EVERY_OPTION: dict[str, Any] = {
    "sndhwm": 11,
    "rcvhwm": 12,
    "linger": 13,
    "maxmsgsize": 14_000,
    "handshake_ivl": 15,
    "heartbeat_ivl": 16,
    "heartbeat_timeout": 17,
    "heartbeat_ttl": 1800,
    "reconnect_ivl": 19,
    "reconnect_ivl_max": 20,
    "tcp_keepalive": 0,
    "tcp_keepalive_idle": 22,
    "tcp_keepalive_intvl": 23,
    "tcp_keepalive_cnt": 24,
    "tcp_maxrt": 26,
    "ipv6": 1,
    "sndbuf": 27,
    "rcvbuf": 28,
    "tos": 29,
    "backlog": 30,
    "connect_timeout": 31,
    "immediate": 0,
    "identity": b"twenty-five",
}


@pytest_twisted.ensureDeferred
async def test_every_option_reaches_libzmq(sockets: Sockets) -> None:
    """Each keyword sets its option of the socket, and the test covers all keywords."""
    dealer = sockets.make(DealerConnection, list, **EVERY_OPTION)
    found = {name: dealer._socket.get(getattr(zmq.SocketOption, name.upper())) for name in EVERY_OPTION}
    assert found == EVERY_OPTION
    assert EVERY_OPTION.keys() | {"ipc_mode"} == SocketOptions.__annotations__.keys()


@pytest.mark.parametrize("kind", [PullConnection, DealerConnection])
def test_an_option_that_ends_the_process_is_refused(kind: type[PullConnection] | type[DealerConnection]) -> None:
    """IMMEDIATE on a socket that reads is a TypeError at the caller's line, since libzmq could abort."""
    with pytest.raises(
        TypeError, match=f"immediate=1 is only for sockets that can't receive, but this is a {kind.__name__}"
    ):
        kind(reactor, list, immediate=1)


@pytest_twisted.ensureDeferred
async def test_another_thread_is_told_and_the_connection_goes_on(sockets: Sockets) -> None:
    """A send on another thread raises an error with the remedy, and the connection still works."""
    box = Mailbox[list[bytes]]()
    push, _pull = await pair(sockets, box.put)
    req = sockets.make(ReqConnection)
    req.open(free_endpoint())
    for call in (push.send, req.request):
        with pytest.raises(WrongThreadError, match="callFromThread"):
            await deferToThread(call, b"x")
    await deferToThread(reactor.callFromThread, push.send, b"y")
    assert await box.until(1) == [[b"y"]]


@pytest_twisted.ensureDeferred
async def test_a_forked_child_is_told(sockets: Sockets) -> None:
    """A send in a forked child raises an error that names the fork; the parent's connection still works."""
    box = Mailbox[list[bytes]]()
    push, _pull = await pair(sockets, box.put)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the warning of Python 3.12 about forks with threads
        child = os.fork()
    if not child:
        try:
            push.send(b"lost")
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"ForkedContextError"
    os.close(reading)
    os.close(writing)
    push.send(b"from the parent")
    assert await box.until(1) == [[b"from the parent"]]


@pytest_twisted.ensureDeferred
async def test_a_handler_may_pause_its_own_connection(sockets: Sockets) -> None:
    """A handler that pauses after each message gets the next one after resume."""
    box = Mailbox[list[bytes]]()

    def one(parts: list[bytes]) -> None:
        pull.pause()
        box.put(parts)

    pull, push = sockets.make(PullConnection, one), sockets.make(PushConnection)
    pull.open(push.open("inproc://one-at-a-time"))
    for number in range(100):
        push.send(b"%d" % number)
    for number in range(1, 4):
        await box.until(number)
        await deferLater(reactor, 0.05)
        assert len(box.items) == number
        pull.resume()
