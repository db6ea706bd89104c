"""Fuzz the parser of the NATS protocol: ``python -m chaos.nats_parser --operations 1000000 --seed 1``.

Each lot is a stream of operations, which is cut into random pieces:

- A valid stream must cause the same calls as nats-py's own parser.
- A stream with random changes must never raise another error than `ProtocolError`, must not store more than the limits
  allow, and must cause the same calls in other pieces.

A lot depends only on the seed and its number. If a lot fails, the command prints both; ``--lot N`` continues a run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from nats.protocol.parser import Parser as OriginalParser

from zroute.nats.protocol import (
    INFO_MAX,
    Failure,
    Info,
    Message,
    Operation,
    Parser,
    Ping,
    Pong,
    ProtocolError,
)

MAX_MESSAGE = 256
"""The limit of the fuzzed parser in bytes; broken streams state larger messages too."""

SIDS = 20
_PAYLOADS = (b"\r", b"\n", b"\r\n", b"M", b"MSG a 1 2\r\n", b"PING\r\n", b" ", b"\0", b"abc", b"\xff")
_SUBJECTS = (b"a", b"news.a.b", "wetter.münchen".encode(), b"x" * 200, b"$JS.x", b"caf\xe9")
_REPLIES = (b"", b"", b"_INBOX.x.1 ", b"a ")
_HEADERS = (
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0\r\nA:b\r\nA: c\r\n\r\n",
)
_OTHERS = (
    b"PING\r\n",
    b"PONG\r\n",
    b"+OK\r\n",
    b'INFO {"a":1}\r\n',
    b'INFO {"connect_urls":["a:1","b:2"],"ldm":true} \r\n',
    b"-ERR 'Slow Consumer'\r\n",
    b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
)
_WORDS = (
    b"MSG ",
    b"HMSG ",
    b"\r\n",
    b" ",
    b"\t",
    b"0",
    b"99999999999999999999999",
    b"-1",
    b"INFO [",
    b"INFO " + b"[" * 5_000,
    b"+",
    b"'",
    b"\0",
    b"msg a 1 0\r\n\r\n",
    b"MSG a 1 100000\r\n",
    b"HMSG a 1 9 5\r\n",
)


class Recorder:
    """Stands for the client of nats-py, and records the calls of its parser."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.calls.append((b"%d" % sid, bytes(subject), bytes(reply) or None, headers and bytes(headers), bytes(data)))

    async def _process_ping(self) -> None:
        self.calls.append("ping")

    async def _process_pong(self) -> None:
        self.calls.append("pong")

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.calls.append(("info", info))

    async def _process_err(self, text: str) -> None:
        self.calls.append(("error", text))


def call_of(operation: Operation) -> Any:
    """Return an operation as `Recorder` records it."""
    match operation:
        case Message(sid, subject, reply, headers, payload):
            return (sid, subject, reply, headers, payload)
        case Ping():
            return "ping"
        case Pong():
            return "pong"
        case Info(fields):
            return ("info", fields)
        case Failure(text):
            return ("error", text.lower())
    return operation


def operations(chance: random.Random) -> list[bytes]:
    """Return the bytes of up to 60 valid operations."""
    return [_operation(chance) for _ in range(chance.randint(1, 60))]


def _operation(chance: random.Random) -> bytes:
    kind = chance.random()
    payload = b"".join(chance.choices(_PAYLOADS, k=chance.randint(0, 12)))
    line = b"%b %d %b" % (chance.choice(_SUBJECTS), chance.randint(1, SIDS), chance.choice(_REPLIES))
    if kind < 0.6:
        return b"MSG %b%d\r\n%b\r\n" % (line, len(payload), payload)
    if kind < 0.85:
        headers = chance.choice(_HEADERS)
        return b"HMSG %b%d %d\r\n%b%b\r\n" % (line, len(headers), len(headers) + len(payload), headers, payload)
    return chance.choice(_OTHERS)


def pieces(chance: random.Random, data: bytes) -> Iterator[bytes]:
    """Yield ``data`` in random pieces."""
    at, sizes = 0, chance.choice(((1,), (1, 2, 3, 7), (1, 2, 3, 7, 50, 4096), (4096,)))
    while at < len(data):
        size = chance.choice(sizes)
        yield data[at : at + size]
        at += size


def changed(chance: random.Random, data: bytes) -> bytes:
    """Return ``data`` with one to six random changes."""
    broken = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(broken) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            broken[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del broken[at : at + chance.choice((1, 2, 10, 1000))]
        elif kind == 2:
            broken[at:at] = chance.choice(_WORDS)
        else:
            start = chance.randrange(len(broken) + 1)
            broken[at:at] = broken[start : start + chance.randint(1, 100)]
    return bytes(broken)


def run(parser: Parser, parts: Iterator[bytes], *, subscribed: int) -> tuple[list[Any], dict[bytes, list[Any]], str]:
    """Feed all pieces; return the other operations, the messages of subscribers by sid, and the error."""
    taken: dict[bytes, list[Any]] = {}

    def take(sid: bytes, *message: bytes | None) -> None:
        taken.setdefault(sid, []).append((sid, *message))

    parser.takes = {b"%d" % sid: partial(take, b"%d" % sid) for sid in range(1, subscribed + 1)}
    others: list[Any] = []
    for part in parts:
        try:
            others += map(call_of, parser.feed(part))
        except ProtocolError as error:
            assert parser.stored == 0, "a parser that has failed stores nothing"
            return others, taken, str(error)
        assert parser.stored <= INFO_MAX + len(part), "an incomplete operation exceeds its limit"
    return others, taken, ""


async def same_as_the_original(chance: random.Random) -> int:
    """Compare with nats-py's parser; return the number of operations."""
    stream = b"".join(parts := operations(chance))
    recorder = Recorder()
    original = OriginalParser(recorder)
    for part in pieces(chance, stream):
        await original.parse(part)
    parser = Parser(1 << 20)
    subscribed = chance.choice((0, 0, SIDS // 2))
    others, taken, error = run(parser, pieces(chance, stream), subscribed=subscribed)
    assert not error, error
    assert parser.stored == 0
    ours = {b"%d" % sid for sid in range(1, subscribed + 1)}
    assert others == [call for call in recorder.calls if call[0] not in ours]
    for sid in ours:
        assert taken.get(sid, []) == [call for call in recorder.calls if call[0] == sid]
    return len(parts)


async def same_in_other_pieces(chance: random.Random) -> int:
    """Parse a broken stream twice, in different pieces; return the number of operations."""
    stream = changed(chance, b"".join(parts := operations(chance)))
    _, taken, error = run(Parser(MAX_MESSAGE), pieces(chance, stream), subscribed=SIDS)
    _, again, other = run(Parser(MAX_MESSAGE), iter((stream,)), subscribed=SIDS)
    assert (taken, error) == (again, other)
    return len(parts)


KINDS: tuple[Callable[[random.Random], Any], ...] = (same_as_the_original, same_in_other_pieces)


class Campaign:
    """Plays lots; `done` is the number of operations, and `lot` the next lot."""

    def __init__(self, seed: int, lot: int = 0) -> None:
        self._seed = seed
        self.lot = lot
        self.done = 0

    async def play(self, wanted: int, minutes: float | None = None) -> None:
        """Play lots until ``wanted`` operations of each kind are done, or time is up."""
        began = time.monotonic()
        while self.done < len(KINDS) * wanted and (minutes is None or time.monotonic() < began + 60 * minutes):
            for kind in KINDS:
                try:
                    self.done += await kind(random.Random(f"{self._seed} {self.lot} {kind.__name__}"))
                except Exception as error:
                    error.add_note(f"{kind.__name__}: repeat with --seed {self._seed} --lot {self.lot}")
                    raise
            self.lot += 1


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", type=int, default=1_000_000, help="the number of operations of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lot", type=int, default=0, help="the first lot")
    parser.add_argument("--minutes", type=float, help="the time after which no new lot begins")
    given = parser.parse_args()
    campaign = Campaign(given.seed, given.lot)
    with suppress(KeyboardInterrupt):
        asyncio.run(campaign.play(given.operations, given.minutes))
    print(f"{campaign.done} operations, half of them in streams with random changes: no difference")
    print(f"continue with --seed {given.seed} --lot {campaign.lot}")


if __name__ == "__main__":
    main()
