"""The listener without sockets: which messages are requests, and what ends them."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from zroute.errors import EnvelopeError
from zroute.messages.requests import (
    MAGIC,
    Kind,
    pack_cancel,
    pack_credits,
    pack_failure,
    pack_reply,
    parse,
    request_packer,
)
from zroute.options import ENVELOPE_MAX, MAX_TOPIC, STREAM_SILENCE
from zroute.requests.asked import Asked, Listener
from zroute.stats import Stats

PEER, ID, OTHER = b"peer", b"i" * 16, b"o" * 16
SEEN = request_packer(7, lambda: 5)


def framed(seconds: float | None = 2.0, window: int = 0, id: bytes = ID) -> bytes:
    """Return a request of a zroute client."""
    return SEEN(id, b"a.b", 1, b"body", None, seconds, window)


class Server:
    """A listener on a virtual clock, its requests, and what it sends."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stats = Stats()
        self.asked: list[Asked] = []
        self.sent: list[tuple[bytes, ...]] = []
        self.connected = True
        self.listener = Listener(self.clock, self.stats, self.asked.append, self._send)

    def _send(self, asked: Asked, kind: Kind, number: int, body: bytes) -> bool:
        if self.connected:
            self.sent.append(asked.parts(kind, number, body))
        return self.connected

    def receive(self, *rest: bytes, envelope: tuple[bytes, ...] = (PEER,)) -> None:
        """Receive a message behind an envelope."""
        self.listener.received([*envelope, b"", *rest])

    def stream(self, window: int = 2, id: bytes = ID) -> Asked:
        """Receive and keep a request for a stream, whose handler runs."""
        self.receive(framed(None, window, id))
        asked = self.asked[-1]
        asked.keep(lambda _: None)
        asked.running = Deferred()
        asked.running.addErrback(lambda failure: failure.trap(CancelledError))
        return asked


# -- what a request is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("envelope", [(PEER,), (PEER, b"id"), (PEER, b"hop", b"hop", b"id")])
def test_a_plain_request_keeps_its_envelope(envelope: tuple[bytes, ...]) -> None:
    """REQ and DEALER clients, also behind other ROUTERs, get the reply at their envelope."""
    server = Server()
    server.receive(b"a.b", b"body", envelope=envelope)
    (asked,) = server.asked
    assert (asked.peer, asked.topic, asked.frames, asked.id) == (PEER, b"a.b", (b"a.b", b"body"), b"")
    assert (asked.seconds, asked.is_stream) == (None, False)
    asked.reply(1, b"reply")
    assert server.sent == [(*envelope, b"", b"reply")]
    assert (server.stats.requests, server.stats.bad_requests) == (1, 0)


@pytest.mark.parametrize("envelope", [(PEER,), (PEER, b"hop", b"hop")])
def test_a_request_of_a_zroute_client_is_one_frame(envelope: tuple[bytes, ...]) -> None:
    """The reply has its id, and names its codec."""
    server = Server()
    server.receive(framed(2.0, 0), envelope=envelope)
    (asked,) = server.asked
    assert (asked.peer, asked.topic, asked.id, asked.seconds, asked.is_stream) == (PEER, b"a.b", ID, 2.0, False)
    asked.reply(1, b"reply")
    assert server.sent == [(*envelope, b"", pack_reply(ID, Kind.REPLY, 1, b"reply"))]


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ((), "0 parts after the empty part; expected a topic and a body"),
        ((b"a",), "1 parts after the empty part; expected a topic and a body"),
        ((b"",), "1 parts after the empty part; expected a topic and a body"),
        ((b"a", b"b", b"more"), "3 parts after the empty part; expected a topic and a body"),
        ((framed(), b"b", b"more"), "3 parts after the empty part; expected a topic and a body"),
        ((b"a\0", b"b"), "a topic of 2 bytes; expected 1 to 255 bytes without NUL"),
        ((b"x" * (MAX_TOPIC + 1), b"b"), "a topic of 256 bytes; expected 1 to 255 bytes without NUL"),
        ((b"", b"b"), "a topic of 0 bytes; expected 1 to 255 bytes without NUL"),
        ((MAGIC,), "a frame of 3 bytes"),
        ((framed()[:21],), "a frame of 21 bytes"),
        ((MAGIC + b"\2" + framed()[4:],), "a frame of version 2"),
        ((MAGIC + b"\1\7" + framed()[5:],), "a frame of the unknown kind 7"),
        ((framed()[:27],), "a request with 5 bytes after the prefix; expected at least 6"),
        ((framed()[:28],), "a request without a valid topic"),
        ((framed()[:30],), "a request without a valid topic"),
        (
            (framed()[:22] + pack(">IH", 0, 0) + framed()[28:],),
            "a request with 0 milliseconds left; expected at least 1",
        ),
        ((framed()[:28] + b"x" * 256 + b"\0",), "a request without a valid topic"),
        ((pack_reply(ID, Kind.REPLY, 1, b""),), "a frame of the kind REPLY; only servers send this kind"),
        ((pack_failure(ID, 400, ""),), "a frame of the kind FAILED; only servers send this kind"),
        ((pack_credits(ID, 1) + b"\0",), "credits of 5 bytes"),
    ],
)
def test_every_malformed_request_is_answered(rest: tuple[bytes, ...], reason: str) -> None:
    """It gets a 400 with the reason, in its own form, is counted, and calls no handler."""
    server = Server()
    server.receive(*rest)
    ((*envelope, text),) = server.sent
    if text.startswith(MAGIC):
        assert envelope == [PEER, b""]
        assert parse(text).id == ID
        assert text.startswith(pack_failure(ID, 400, f"not a request: {reason}"))
    else:
        assert envelope == [PEER, b"", b"", b"400"]
        assert text.decode().startswith(f"not a request: {reason}")
    assert (server.stats.requests, server.stats.bad_requests, server.asked) == (1, 1, [])


@pytest.mark.parametrize("rest", [(b"a.b", b"body"), (framed(),), (pack_cancel(ID),)], ids=["plain", "app", "cancel"])
def test_an_envelope_is_bounded_in_bytes(rest: tuple[bytes, ...]) -> None:
    """The server keeps the envelope until the answer, so a large one gets a 400; the largest allowed one does not."""
    server = Server()
    for size, refused in ((ENVELOPE_MAX, 0), (ENVELOPE_MAX + 1, 1)):
        envelope = (PEER, b"e" * 500, b"e" * (size - 504))
        server.receive(*rest, envelope=envelope)
        assert server.stats.bad_requests == len(server.sent) == refused
    assert server.sent[0][:4] == (*envelope, b"")
    refusal = f"not a request: an envelope of {ENVELOPE_MAX + 1} bytes; expected at most {ENVELOPE_MAX}"
    assert refusal.encode() in server.sent[0][-1]


def test_a_message_without_an_envelope_is_refused() -> None:
    """Nothing shows whom to answer."""
    for parts in ([PEER], [PEER, b"a", b"b"], [b"", b"a"], [PEER, framed()]):
        with pytest.raises(EnvelopeError, match="expected an empty part"):
            Server().listener.received(parts)


@given(st.lists(st.one_of(st.binary(max_size=9), st.sampled_from([b"", framed(), framed()[:25], MAGIC])), max_size=8))
def test_any_parts_are_answered_or_ignored(rest: list[bytes]) -> None:
    """Each is a request, or gets a 400; nothing else is raised."""
    server = Server()
    server.receive(*rest)
    assert server.stats.requests == len(server.asked) + server.stats.bad_requests == 1
    assert len(server.sent) == server.stats.bad_requests


@given(st.integers(0, 8), st.binary(max_size=60))
def test_any_frame_is_answered_or_ignored(kind: int, rest: bytes) -> None:
    """A frame of any kind is a request, a message about one, or gets a 400."""
    server = Server()
    server.receive(MAGIC + bytes((1, kind, 0)) + ID + rest)
    assert server.stats.requests == len(server.asked) + server.stats.bad_requests
    assert len(server.sent) == server.stats.bad_requests <= 1


# -- one answer ------------------------------------------------------------------------------------------


def test_a_request_is_answered_once() -> None:
    """The first answer counts; a cancellation and further answers send nothing."""
    server = Server()
    server.receive(b"a", b"b")
    asked = server.asked[0]
    asked.refuse(409, "no")
    asked.reply(1, b"late")
    asked.finish()
    asked.refuse(500, "late")
    asked.cancel()
    assert server.sent == [(PEER, b"", b"", b"409", b"no")]
    assert asked.taken
    assert asked.over


def test_a_cancelled_request_is_not_answered() -> None:
    """The call is cancelled, and the end is noted once."""
    server, ends = Server(), list[Asked]()
    server.receive(framed())
    asked = server.asked[0]
    asked.keep(ends.append)
    asked.running = Deferred()
    asked.running.addErrback(lambda failure: ends.append(failure.type))
    server.receive(pack_cancel(ID))
    server.receive(pack_cancel(ID))
    asked.reply(1, b"late")
    assert ends == [asked, CancelledError]
    assert (server.sent, server.listener.unanswered) == ([], 0)


@pytest.mark.parametrize("note", [pack_cancel, lambda id: pack_credits(id, 1)], ids=["cancel", "credits"])
def test_notes_about_unknown_requests_are_ignored(note: Callable[[bytes], bytes]) -> None:
    """They come late, or are about ids of others."""
    server = Server()
    asked = server.stream()
    server.receive(note(ID), envelope=(b"other",))
    server.receive(note(OTHER))
    assert not asked.over
    asked.finish()
    server.receive(note(ID))
    assert len(server.sent) == 1
    assert (server.stats.requests, server.stats.bad_requests) == (1, 0)


def test_an_id_that_is_used_twice_belongs_to_the_second_request() -> None:
    """The answer of the first does not end the second; a stream that lost its id is silent, and ends as such."""
    server = Server()
    first, second = server.stream(), server.stream()
    first.finish()
    server.receive(pack_cancel(ID))
    assert (first.over, second.over) == (True, True)
    third, fourth = server.stream(), server.stream()
    server.receive(pack_cancel(ID))
    assert (third.over, fourth.over) == (False, True)
    server.clock.pump([STREAM_SILENCE / 4] * 6)
    assert third.over
    assert server.listener.unanswered == 0


def test_what_is_over_is_not_kept() -> None:
    """A call that has ended its request before it is watched leaves nothing."""
    server = Server()
    server.receive(framed(None, 2))
    server.asked[0].finish()
    server.asked[0].keep(lambda _: None)
    assert server.listener.unanswered == 0


# -- streams ---------------------------------------------------------------------------------------------


def test_items_wait_for_credits() -> None:
    """The window is the first credit; each credit allows one more item."""
    server = Server()
    asked = server.stream()
    assert asked.item(1, b"0") is None
    room = asked.item(1, b"1")
    assert room is not None
    server.receive(pack_credits(ID, 0))
    assert not room.called
    server.receive(pack_credits(ID, 2))
    assert room.called
    assert asked.item(1, b"2") is None
    assert asked.item(1, b"3") is not None
    asked.finish()
    assert server.sent == [
        *((PEER, b"", pack_reply(ID, Kind.ITEM, 1, b"%d" % number)) for number in range(4)),
        (PEER, b"", pack_reply(ID, Kind.END, 0, b"")),
    ]


def test_credits_do_not_grow_without_bound() -> None:
    """A client that allows 2^32-1 items again and again has a bounded credit."""
    server = Server()
    asked = server.stream()
    for _ in range(10):
        server.receive(pack_credits(ID, 0xFFFFFFFF))
    assert asked._credit == 0xFFFF


@pytest.mark.parametrize("how", ["cancelled", "answered", "disconnected"])
def test_an_item_for_a_client_that_has_gone_ends_the_handler(how: str) -> None:
    """A handler that goes on, or whose item is not delivered, gets CancelledError."""
    server = Server()
    asked = server.stream()
    if how == "cancelled":
        server.receive(pack_cancel(ID))
    elif how == "answered":
        asked.refuse(500, "late")
    else:
        server.connected = False
    with pytest.raises(CancelledError):
        asked.item(1, b"x")
    assert asked.over
    assert server.listener.unanswered == 0


def test_a_room_that_nobody_waits_for_takes_credits() -> None:
    """A handler that was cancelled while it waited does not fail at a later credit."""
    server = Server()
    asked = server.stream(1)
    room: Any = asked.item(1, b"x")
    room.addErrback(lambda failure: failure.trap(CancelledError))
    room.cancel()
    server.receive(pack_credits(ID, 5))
    assert not asked.over


def test_silent_streams_end() -> None:
    """A stream ends after STREAM_SILENCE without a sign of life; single requests and living streams do not."""
    server = Server()
    silent, single = server.stream(), server.stream(0, b"s" * 16)
    alive = server.stream(2, OTHER)
    for _ in range(10):
        server.clock.advance(STREAM_SILENCE / 4)
        server.receive(pack_credits(OTHER, 0))
    assert (silent.over, single.over, alive.over) == (True, False, False)
    assert server.sent == []
    alive.finish()
    server.clock.advance(STREAM_SILENCE / 4)
    assert server.clock.getDelayedCalls() == [], "no timer runs without streams"
    server.stream()
    assert len(server.clock.getDelayedCalls()) == 1
    server.listener.close()
    assert server.clock.getDelayedCalls() == []
