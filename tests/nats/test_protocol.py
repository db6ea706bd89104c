"""The parser of the NATS protocol: operations, pieces, limits and faults."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.nats_parser import Campaign
from tests.support import sized
from zroute.nats.protocol import (
    INFO_MAX,
    LINE_MAX,
    Failure,
    Info,
    Message,
    Operation,
    Oversized,
    Parser,
    Ping,
    Pong,
    ProtocolError,
    publish_frame,
    subscribe_line,
    unsubscribe_line,
)

BLOCK = b"NATS/1.0\r\nA: b\r\n\r\n"


def fed(parser: Parser, data: bytes, size: int | None) -> list[Operation]:
    """Feed ``data`` in pieces of ``size`` bytes; return the operations."""
    step = size or len(data)
    return [each for at in range(0, len(data), step) for each in parser.feed(data[at : at + step])]


def parsed(data: bytes, size: int | None = None, *, max_message: int = 1 << 20) -> list[Operation]:
    """Return the operations of ``data``, in pieces of ``size`` bytes; nothing may be left."""
    parser = Parser(max_message)
    found = fed(parser, data, size)
    assert parser.stored == 0
    return found


@pytest.mark.parametrize("size", [1, 2, 5, None])
@pytest.mark.parametrize(
    ("data", "operation"),
    [
        (b"MSG a.b 7 3\r\nxyz\r\n", Message(b"7", b"a.b", None, None, b"xyz")),
        (b"MSG a.b 7 in.x 0\r\n\r\n", Message(b"7", b"a.b", b"in.x", None, b"")),
        (b"MSG  a.b\t7   in.x  0\r\n\r\n", Message(b"7", b"a.b", b"in.x", None, b"")),
        (b"MSG a z1 4\r\n\r\n\r\n\r\n", Message(b"z1", b"a", None, None, b"\r\n\r\n")),
        (b"MSG caf\xe9 1 1\r\n\xff\r\n", Message(b"1", b"caf\xe9", None, None, b"\xff")),
        (b"HMSG a 7 18 20\r\n" + BLOCK + b"xy\r\n", Message(b"7", b"a", None, BLOCK, b"xy")),
        (b"HMSG a 7 r 18 18\r\n" + BLOCK + b"\r\n", Message(b"7", b"a", b"r", BLOCK, b"")),
        (b"HMSG\ta  7 18 18 \r\n" + BLOCK + b"\r\n", Message(b"7", b"a", None, BLOCK, b"")),
        (b"PING\r\n", Ping()),
        (b"PONG \r\n", Pong()),
        (b'INFO {"a": 1}\r\n', Info({"a": 1})),
        (b"-ERR 'Slow Consumer'\r\n", Failure("'Slow Consumer'")),
        (b"-ERR\r\n", Failure("")),
    ],
)
def test_each_operation_is_recognised_in_any_pieces(data: bytes, operation: Operation, size: int | None) -> None:
    """Each operation is recognised, alone and between others, however its bytes are cut."""
    assert parsed(data, size) == [operation]
    assert parsed(b"+OK\r\nPING\r\n" + data + data + b"PONG\r\n", size) == [Ping(), operation, operation, Pong()]


def test_a_subscriber_is_called_inside_feed() -> None:
    """A message of a known subscription goes to its subscriber, and is not returned."""
    parser, got = Parser(100), list[Any]()
    parser.takes[b"z1"] = lambda *message: got.append(message)
    assert parser.feed(b"MSG a z1 r 1\r\nx\r\nMSG a 2 1\r\ny\r\nHMSG a z1 18 19\r\n" + BLOCK + b"z\r\n") == [
        Message(b"2", b"a", None, None, b"y")
    ]
    assert got == [(b"a", b"r", None, b"x"), (b"a", None, BLOCK, b"z")]


def test_a_subscriber_may_change_the_subscribers() -> None:
    """A subscriber may end its subscription while it is called; the next message is then returned."""
    parser, got = Parser(100), list[bytes]()

    def once(subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        got.append(payload)
        del parser.takes[b"1"]

    parser.takes[b"1"] = once
    assert parser.feed(b"MSG a 1 1\r\nx\r\nMSG a 1 1\r\ny\r\n") == [Message(b"1", b"a", None, None, b"y")]
    assert got == [b"x"]


@pytest.mark.parametrize("size", [1, 7, 64, None])
def test_an_oversized_message_is_skipped_and_reported(size: int | None) -> None:
    """A message of more than the limit is not stored; the connection goes on behind it."""
    big = b"MSG big 1 101\r\n" + b"PING\r\n" * 16 + b"12345\r\n"
    headed = b"HMSG big 1 18 119\r\n" + BLOCK + b"x" * 101 + b"\r\n"
    most = b"MSG a 1 100\r\n" + b"x" * 100 + b"\r\n"
    parser = Parser(100)
    found: list[Operation] = []
    stream = big + headed + most + b"PONG\r\n"
    for at in range(0, len(stream), size or len(stream)):
        found += parser.feed(stream[at : at + (size or len(stream))])
        assert parser.stored <= 115
    assert found == [
        Oversized(b"1", b"big", 101, has_headers=False),
        Oversized(b"1", b"big", 119, has_headers=True),
        Message(b"1", b"a", None, None, b"x" * 100),
        Pong(),
    ]


@pytest.mark.parametrize("size", [1, 3, None])
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "an unknown operation: b'HTTP/1.1"),
        (b"\r\n", "an unknown operation"),
        (b"PINGX\r\n", "an unknown operation"),
        (b"msg a 1 0\r\n\r\n", "an unknown operation"),
        (b"MSG a 1\r\n", "a malformed message line"),
        (b"MSG a 1 r x 1\r\n", "a malformed message line"),
        (b"MSG a 1 -1\r\n", "a malformed message line"),
        (b"MSG a 1 99999999999\r\n", "a malformed message line"),
        (b"MSGS a 1 1\r\nx\r\n", "a malformed message line"),
        (b"HMSG a 1 1\r\n", "a malformed message line"),
        (b"HMSG a 1 5 4\r\n", "headers of a message are longer"),
        (b"MSG a 1 1\r\nxyz\r\n", "another size"),
        (b"MSG a 1 101\r\n" + b"x" * 102 + b"\r\n", "another size"),
        (b"INFO [1]\r\n", "an INFO line without a JSON object"),
        (b"INFO {\r\n", "an INFO line without a JSON object"),
        (b"INFO \xff\r\n", "an INFO line without a JSON object"),
        (b"INFO " + b"[" * 60_000 + b"\r\n", "an INFO line without a JSON object"),
    ],
)
def test_bytes_that_are_not_the_protocol_raise_an_error(data: bytes, fault: str, size: int | None) -> None:
    """The parser reports a fault instead of a guess, and then accepts nothing more until it is reset."""
    parser = Parser(100)
    with pytest.raises(ProtocolError, match=fault):
        fed(parser, data, size)
    with pytest.raises(ProtocolError, match=fault):
        parser.feed(b"PING\r\n")
    parser.reset()
    assert parser.feed(b"PING\r\n") == [Ping()]


@pytest.mark.parametrize(("beginning", "most"), [(b"INFO ", INFO_MAX), (b"MSG ", LINE_MAX), (b"x", LINE_MAX)])
@pytest.mark.parametrize("size", [4_096, 1 << 17])
def test_a_line_without_an_end_is_not_stored_for_ever(beginning: bytes, most: int, size: int) -> None:
    """A server that sends an endless line reaches the limit of a line, and never more memory."""
    parser = Parser(100)
    parser.feed(beginning)
    for _ in range((most - len(beginning)) // size):
        parser.feed(b"x" * size)
        assert parser.stored <= most
    with pytest.raises(ProtocolError, match=f"a line of more than {most} bytes"):
        parser.feed(b"x" * size)
    assert parser.stored == 0


def test_a_large_payload_in_small_pieces_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of an incomplete payload or line are only collected: the time grows with the size, not its square."""
    times, parse = 0, Parser._parse

    def counted(parser: Parser, data: bytes) -> list[Operation]:
        nonlocal times
        times += 1
        return parse(parser, data)

    monkeypatch.setattr(Parser, "_parse", counted)
    payload = b"x" * 100_000
    assert parsed(b"MSG a 1 100000\r\n" + payload + b"\r\n", 100) == [Message(b"1", b"a", None, None, payload)]
    assert parsed(b'INFO {"a":"' + payload + b'"}\r\n', 100) == [Info({"a": payload.decode()})]
    assert times < 10


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_cause_operations_or_an_error(data: bytes, size: int) -> None:
    """Arbitrary bytes never raise another error than ProtocolError."""
    parser = Parser(64)
    try:
        for at in range(0, len(data), size):
            parser.feed(data[at : at + size])
    except ProtocolError:
        assert parser.stored == 0


def test_the_parser_equals_that_of_nats_py_in_random_pieces() -> None:
    """Valid streams cause the same calls as nats-py's parser; broken ones the same in any pieces."""
    campaign = Campaign(seed=1)
    asyncio.run(campaign.play(sized(50_000, 10_000)))
    assert campaign.done >= 2 * sized(50_000, 10_000)


def test_what_a_client_sends() -> None:
    """Frames to publish and subscribe have the form that the protocol specifies."""
    assert publish_frame(b"a.b", b"xy") == b"PUB a.b 2\r\nxy\r\n"
    assert publish_frame(b"a.b", b"", b"r") == b"PUB a.b r 0\r\n\r\n"
    assert publish_frame(b"a", b"xy", None, BLOCK) == b"HPUB a 18 20\r\n" + BLOCK + b"xy\r\n"
    assert publish_frame(b"a", b"", b"r", BLOCK) == b"HPUB a r 18 18\r\n" + BLOCK + b"\r\n"
    assert subscribe_line(b"a.*", b"z1") == b"SUB a.* z1\r\n"
    assert subscribe_line(b"a.*", b"z1", b"workers") == b"SUB a.* workers z1\r\n"
    assert unsubscribe_line(b"z1") == b"UNSUB z1\r\n"
