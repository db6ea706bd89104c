"""The workloads as data: messages, topics and the number of handlers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

__all__ = [
    "ASYNCIO",
    "BY_HAND",
    "MULTIPART",
    "NEWS",
    "NUL",
    "PLAIN",
    "QUOTE",
    "TOPIC",
    "TRACKED",
    "TXZMQ",
    "News",
    "Quote",
    "Scale",
    "Workload",
    "decoder",
    "encoder",
    "large",
    "many_patterns",
    "many_topics",
    "new_topics",
    "news",
    "quotes",
]

BY_HAND = "hand-written loop"
PLAIN = "zroute, plain wire"
TRACKED = "zroute, tracked wire"
TXZMQ = "txZMQ with json.loads"
MULTIPART = "recv_multipart by hand"
ASYNCIO = "zmq.asyncio, plain handlers"
"""Names of contestants, the same in all groups. Child processes import them without importing the groups."""

NUL = b"\0"
TOPIC = b"stocks.AAPL"


@attrs.frozen
class Quote:
    """A quote: 46 bytes as JSON."""

    symbol: str
    price: float
    volume: int


@attrs.frozen
class News:
    """A news item: 1,024 bytes as JSON."""

    symbol: str
    text: str


QUOTE = Quote("AAPL", 187.23, 1200)
NEWS = News("AAPL", "x" * 997)


@attrs.frozen
class Scale:
    """The sizes of the measurements.

    ``count`` is the number of small messages; ``seconds`` is the length of a stream with a given rate.
    """

    count: int
    seconds: float
    patterns: int
    topics: int
    requests: int
    routes: int
    topics_seen: int
    instructions: bool


@attrs.frozen
class Workload:
    """``count`` messages of ``schema``, sent to each of ``topics`` in rotation.

    ``codec`` encodes ``body``. ``patterns`` are the subscriptions, and ``handlers`` functions receive each message. The
    measurement begins after ``first`` extra messages, because the first message of a topic costs more than the others.
    """

    count: int
    schema: Any
    codec: str
    body: bytes
    topics: tuple[bytes, ...] = (TOPIC,)
    patterns: tuple[str, ...] = ("stocks.*",)
    handlers: int = 1
    first: int = 0

    @property
    def total(self) -> int:
        """The number of all sent messages."""
        return self.first + self.count

    @property
    def frames(self) -> list[bytes]:
        """One plain frame for each topic."""
        return [topic + NUL + self.body for topic in self.topics]

    @property
    def size(self) -> int:
        """The size of the first plain frame, in bytes."""
        return len(self.topics[0]) + 1 + len(self.body)


def decoder(schema: Any, codec: str) -> Callable[[bytes], Any]:
    """Return the decoder of the hand-written loop."""
    if schema is bytes:
        return bytes
    return msgspec.json.Decoder(schema).decode if codec == "json" else msgspec.msgpack.Decoder(schema).decode


def encoder(codec: str) -> Callable[[Any], bytes]:
    """Return the encoder of the hand-written loop."""
    return msgspec.json.Encoder().encode if codec == "json" else msgspec.msgpack.Encoder().encode


def quotes(count: int, codec: str = "json") -> Workload:
    """Return 46-byte quotes, the workload of most figures."""
    return Workload(count, Quote, codec, encoder(codec)(QUOTE))


def news(count: int) -> Workload:
    """Return news of 1 KB."""
    return Workload(count, News, "json", encoder("json")(NEWS))


def large(count: int) -> Workload:
    """Return bodies of 1,000,000 bytes that no handler decodes.

    All of them wait in memory before they are read.
    """
    return Workload(max(10, min(count // 500, 200)), bytes, "raw", b"x" * 1_000_000)


def many_topics(count: int, topics: int, codec: str = "json") -> Workload:
    """Return quotes to ``topics`` topics, one after the other."""
    names = tuple(b"stocks.s%d" % number for number in range(topics))
    return attrs.evolve(quotes(count, codec), topics=names, first=topics)


def new_topics(topics: int) -> Workload:
    """Return the first quote of each of ``topics`` topics."""
    return attrs.evolve(many_topics(topics, topics), first=0)


def many_patterns(count: int, patterns: int) -> Workload:
    """Return quotes to one topic that one of ``patterns`` patterns matches."""
    return attrs.evolve(
        quotes(count),
        topics=(b"desk%d.quotes.AAPL" % (patterns * 7 // 10),),
        patterns=tuple(f"desk{number}.quotes.*" for number in range(patterns)),
    )


assert len(quotes(1).body) == len(json.dumps(attrs.asdict(QUOTE), separators=(",", ":"))) == 46
assert len(news(1).body) == 1024
