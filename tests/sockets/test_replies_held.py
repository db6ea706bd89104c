"""Replies that a server holds for clients whose queues are full: their limits, and their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import pytest
import zmq
from twisted.internet.defer import Deferred

from tests.running import reactor
from zroute.messages.requests import Kind
from zroute.options import APP_WINDOW, REPLIES_HELD, REPLIES_HELD_BYTES, REPLIES_HELD_TOTAL
from zroute.requests.asked import Asked
from zroute.sockets.requests import _ReplySocket
from zroute.stats import Stats


class Client:
    """Stands for the request of a client; its replies are its identity and a body."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity

    def parts(self, kind: Kind, number: int, body: bytes) -> tuple[bytes, ...]:
        """Return the parts of a reply."""
        return self.identity, b"", body


class Server(_ReplySocket):
    """A socket whose clients are the test's: `full` has the clients without room, `gone` those that have left."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.stats = Stats()
        self.full, self.gone = set[bytes](), set[bytes]()
        self.room = 1_000_000
        self.sent: list[bytes] = []
        super().__init__(reactor, self.stats, lambda asked: None, context, {})

    def try_send_bytes(self, parts: Sequence[bytes], *, poke: bool = True) -> bool:
        """Send to the clients of the test."""
        if parts[0] in self.gone:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        if parts[0] in self.full or not self.room:
            return False
        self.room -= 1
        self.sent.append(parts[0])
        return True

    def answer(self, client: bytes, body: bytes = b"") -> bool | Deferred[None]:
        """Send a reply, or hold it."""
        return self.listener.send(cast("Asked", Client(client)), Kind.REPLY, 0, body)

    def try_again(self) -> None:
        """Send what is held, before its time."""
        if self._next_try is not None:
            self._next_try.cancel()
            self._send_held()

    def held_bytes(self) -> int:
        """Return the bytes of all replies that are held."""
        found = sum(sum(map(len, parts)) for held in self._held.values() for parts, _ in held.replies)
        assert found == self._held_size == sum(held.size for held in self._held.values())
        return found


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Server(context)
    yield made
    made.close(0)
    context.term()


@pytest.mark.parametrize("size", [0, 100_000, REPLIES_HELD_BYTES - 10, REPLIES_HELD_BYTES * 2])
def test_the_replies_of_one_client_are_bounded(server: Server, size: int) -> None:
    """In number and in bytes, but one of any size is held; the others are counted, and other clients have room."""
    body, server.full = bytes(size), {b"a", b"b"}
    results = [server.answer(b"a", body) for _ in range(REPLIES_HELD + 1)]
    held = max(1, min(REPLIES_HELD, REPLIES_HELD_BYTES // (size + 1)))
    assert [each is not False for each in results] == [True] * held + [False] * (REPLIES_HELD + 1 - held)
    assert server.stats.replies_undelivered == REPLIES_HELD + 1 - held
    assert server.answer(b"b")
    assert server.held_bytes() == held * (size + 1) + 1
    server.full.clear()
    server.try_again()
    assert sorted(server.sent) == [b"a"] * held + [b"b"]
    assert server.held_bytes() == 0
    assert server.answer(b"a") is True


def test_the_replies_to_all_unanswered_requests_of_an_app_are_held(server: Server) -> None:
    """None is dropped, even if libzmq's queue has no room for any of them."""
    server.full = {b"a"}
    assert all(server.answer(b"a") for _ in range(APP_WINDOW))
    assert server.stats.replies_undelivered == 0


def test_the_replies_of_all_clients_are_bounded(server: Server) -> None:
    """Many clients that do not read can't fill the memory; one that reads is not affected."""
    body, clients = bytes(REPLIES_HELD_BYTES // 4), [b"%d" % number for number in range(100)]
    server.full = set(clients)
    for client in clients * 2:
        server.answer(client, body)
    held = server.held_bytes()
    assert REPLIES_HELD_TOTAL - REPLIES_HELD_BYTES < held <= REPLIES_HELD_TOTAL
    assert server.stats.replies_undelivered == 200 - held // len(body)
    assert server.answer(b"reads", body) is True
    server.gone, lost = set(clients), server.stats.replies_undelivered
    server.try_again()
    assert (server.held_bytes(), server.stats.replies_undelivered - lost) == (0, held // len(body))


@pytest.mark.parametrize("first", ["sent", "gone"])
@pytest.mark.parametrize("by", ["timer", "close"])
def test_a_handler_may_close_the_socket_when_its_reply_is_sent(server: Server, first: str, by: str) -> None:
    """Each reply counts once, whether the stop or the timer sends what is held."""
    server.full = {b"a", b"b"}
    for client in (b"a", b"a", b"b"):
        room = server.answer(client)
        assert isinstance(room, Deferred)
        room.addCallback(lambda _: server.close(0))
    server.full = {b"b"}
    if first == "gone":
        server.gone = {b"a"}
    if by == "timer":
        server.try_again()
    else:
        server.close(0)
    assert server.closed
    assert server.held_bytes() == 0
    assert len(server.sent) + server.stats.replies_undelivered == 3
    assert server.stats.replies_undelivered == (3 if first == "gone" else 2)


def test_the_log_names_a_client_in_hexadecimal_digits(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The identities of libzmq are bytes, so a log line shows their number."""
    server.gone = {b"\x00k\x8bEg"}
    assert server.answer(b"\x00k\x8bEg") is False
    assert "a reply was not delivered: client 6b8b4567 has disconnected" in caplog.text


def test_a_signal_of_the_socket_sends_to_the_clients_that_read(server: Server) -> None:
    """Those get the next reply without the timer; those that take nothing are tried by the timer only."""
    server.full = {b"reads", b"lazy"}
    for client in (b"reads", b"lazy", b"reads", b"lazy"):
        server.answer(client)
    server.full = {b"lazy"}
    server.doRead()
    assert server.sent == [b"reads"] * 2
    server.try_again()
    assert server._reading == set()
    server.full = set()
    server.doRead()
    assert (server.sent, len(server._held[b"lazy"].replies)) == ([b"reads"] * 2, 2)
    server.try_again()
    assert server.sent == [b"reads"] * 2 + [b"lazy"] * 2
    assert (server.held_bytes(), server._reading) == (0, set())


def test_a_client_that_reads_slowly_stays_among_those_that_read(server: Server) -> None:
    """A client that had room since the last try of all clients is tried at the next signal too."""
    server.full = {b"slow"}
    for _ in range(3):
        server.answer(b"slow")
    for left in (2, 1):
        server.room = 1
        server.full = set()
        server.doRead()
        server.full = {b"slow"}
        server.try_again()
        assert (len(server.sent), server._reading, len(server._held[b"slow"].replies)) == (3 - left, {b"slow"}, left)
