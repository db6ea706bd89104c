"""The work, as data: what travels, under which topics, and how many handlers want it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

__all__ = [
    "BY_HAND",
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
"""What contestants are called in all groups; here, so that their processes import nothing else."""

NUL = b"\0"
TOPIC = b"stocks.AAPL"


@attrs.frozen
class Quote:
    """46 bytes as JSON."""

    symbol: str
    price: float
    volume: int


@attrs.frozen
class News:
    """1,024 bytes as JSON."""

    symbol: str
    text: str


QUOTE = Quote("AAPL", 187.23, 1200)
NEWS = News("AAPL", "x" * 997)


@attrs.frozen
class Scale:
    """How much is measured: ``count`` messages where they are small; ``seconds`` of a stream with a given rate."""

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
    """``count`` messages of ``schema``, as ``codec`` writes ``body``, to ``topics`` in turn.

    ``patterns`` is what they are subscribed by, and ``handlers`` how many functions want each. ``first`` so many more
    are read before the measurement begins: a topic's first message is another matter than all that follow.
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
        """All that are sent."""
        return self.first + self.count

    @property
    def frames(self) -> list[bytes]:
        """A plain frame for each topic."""
        return [topic + NUL + self.body for topic in self.topics]

    @property
    def size(self) -> int:
        """Bytes of the first plain frame."""
        return len(self.topics[0]) + 1 + len(self.body)


def decoder(schema: Any, codec: str) -> Callable[[bytes], Any]:
    """What the hand-written loop decodes by."""
    if schema is bytes:
        return bytes
    return msgspec.json.Decoder(schema).decode if codec == "json" else msgspec.msgpack.Decoder(schema).decode


def encoder(codec: str) -> Callable[[Any], bytes]:
    """What the hand-written loop encodes by."""
    return msgspec.json.Encoder().encode if codec == "json" else msgspec.msgpack.Encoder().encode


def quotes(count: int, codec: str = "json") -> Workload:
    """46-byte quotes: what most of the figures are about."""
    return Workload(count, Quote, codec, encoder(codec)(QUOTE))


def news(count: int) -> Workload:
    """1 KB."""
    return Workload(count, News, "json", encoder("json")(NEWS))


def large(count: int) -> Workload:
    """1,000,000 bytes that nobody decodes; all of them wait in memory before they are read."""
    return Workload(max(10, min(count // 500, 200)), bytes, "raw", b"x" * 1_000_000)


def many_topics(count: int, topics: int) -> Workload:
    """Quotes to so many topics, one after the other."""
    return attrs.evolve(quotes(count), topics=tuple(b"stocks.s%d" % number for number in range(topics)), first=topics)


def new_topics(topics: int) -> Workload:
    """The first quote of each of so many topics."""
    return attrs.evolve(many_topics(topics, topics), first=0)


def many_patterns(count: int, patterns: int) -> Workload:
    """Quotes to one topic that one of so many patterns matches."""
    return attrs.evolve(
        quotes(count),
        topics=(b"desk%d.quotes.AAPL" % (patterns * 7 // 10),),
        patterns=tuple(f"desk{number}.quotes.*" for number in range(patterns)),
    )


assert len(quotes(1).body) == len(json.dumps(attrs.asdict(QUOTE), separators=(",", ":"))) == 46
assert len(news(1).body) == 1024
