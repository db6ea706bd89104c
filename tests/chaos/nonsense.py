"""Frames that nobody should send, over a real socket: ``python -m tests.chaos.nonsense --frames 1000000``.

Each is generated, or a good frame of one of the wires with bits flipped, bytes cut out, put in or doubled, its end
missing, or another frame's end. After each batch a good message must be handled, and each frame stand in one counter.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from tests.support import PATIENCE
from zroute import App, Envelope, startswith
from zroute.errors import PeerError
from zroute.messages.control import MARKER, pack_beat, pack_statements
from zroute.messages.wire import NUL, Kind, framer, pack_head, pack_kept
from zroute.service import AppService

BATCH = 400
"""Frames sent at once: less than the queue of a subscriber holds, so that none is lost."""


@attrs.frozen
class Order:
    """What the handlers take."""

    sku: str
    count: int
    price: float
    tags: list[str]
    notes: dict[str, int]


ORDER = {"sku": "a", "count": 1, "price": 0.5, "tags": ["x", "y"], "notes": {"n": 1}}


def is_valid(order: object) -> bool:
    """Whether it is what its annotations say, all the way down."""
    return (
        isinstance(order, Order)
        and isinstance(order.sku, str)
        and type(order.count) is int
        and type(order.price) is float
        and all(isinstance(tag, str) for tag in order.tags)
        and all(isinstance(name, str) and type(value) is int for name, value in order.notes.items())
    )


class Frames:
    """Makes them, from a seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._good = _good_frames(b"")
        self._changes: tuple[Callable[[bytes], bytes], ...] = (
            self._flipped,
            self._cut_off,
            self._cut_out,
            self._put_in,
            self._doubled,
            self._spliced,
            self._number_changed,
            self._generated,
        )

    def answer(self, marker: bytes) -> None:
        """From now on forge answers to this marker."""
        self._good = _good_frames(marker)

    def batch(self) -> list[list[bytes]]:
        """`BATCH` messages, of one part mostly."""
        return [self._message() for _ in range(BATCH)]

    def _message(self) -> list[bytes]:
        frame = self._chance.choice(self._good)
        for _ in range(self._chance.choice((0, 1, 1, 1, 1, 2, 5))):
            frame = self._chance.choice(self._changes)(frame)
        if self._chance.random() < 0.98:
            return [frame]
        at = sorted(self._chance.randrange(len(frame) + 1) for _ in range(self._chance.choice((1, 1, 2, 5))))
        return [frame[start:end] for start, end in zip([0, *at], [*at, len(frame)], strict=True)]

    def _at(self, frame: bytes) -> int:
        return self._chance.randrange(len(frame) + 1)

    def _flipped(self, frame: bytes) -> bytes:
        if not frame:
            return frame
        changed = bytearray(frame)
        for _ in range(self._chance.choice((1, 1, 2, 8))):
            changed[self._chance.randrange(len(frame))] ^= 1 << self._chance.randrange(8)
        return bytes(changed)

    def _cut_off(self, frame: bytes) -> bytes:
        return frame[: self._at(frame)]

    def _cut_out(self, frame: bytes) -> bytes:
        at = self._at(frame)
        return frame[:at] + frame[at + self._chance.randrange(1, 20) :]

    def _put_in(self, frame: bytes) -> bytes:
        at = self._at(frame)
        return frame[:at] + self._chance.randbytes(self._chance.randrange(1, 20)) + frame[at:]

    def _doubled(self, frame: bytes) -> bytes:
        start, end = sorted((self._at(frame), self._at(frame)))
        return frame[:end] + frame[start:]

    def _spliced(self, frame: bytes) -> bytes:
        other = self._chance.choice(self._good)
        return frame[: self._at(frame)] + other[self._at(other) :]

    def _number_changed(self, frame: bytes) -> bytes:
        size = self._chance.choice((1, 2, 4, 8))
        at = self._at(frame)
        number = self._chance.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1)))
        return frame[:at] + number.to_bytes(size, "big") + frame[at + size :]

    def _generated(self, frame: bytes) -> bytes:
        start = self._chance.choice((b"", b"orders.a\0", b"orders.a\0\xc1ZR\1", frame[:30]))
        return start + self._chance.randbytes(self._chance.choice((0, 1, 8, 40, 200)))


def _good_frames(marker: bytes) -> list[bytes]:
    bodies = {1: msgspec.msgpack.encode(ORDER), 2: msgspec.json.encode(ORDER), 3: b"text", 4: b"\0\1\2"}
    frame = framer("tracked", epoch=7, next_sequence=lambda: 1, clock_ns=lambda: 1_700_000_000_000_000_000)
    frames = [b"orders.a" + NUL + body for body in bodies.values()]
    for codec, body in bodies.items():
        for headers in (None, {"trace": "abc", "n": [1, {"x": 2.5}]}):
            made = frame(b"orders.a", codec, body, headers)
            assert isinstance(made, bytes)
            frames.append(made)
        frames.append(pack_kept(marker, 1, b"orders.a", codec, body, {"k": 1}, epoch=7, sent_at=5))
    numbers = [(b"", 5)]
    for kind in (Kind.JOIN, Kind.GOODBYE):
        frames += pack_statements(kind, marker, numbers, epoch=7, name="far", partial=False, sent_at=5)  # type: ignore[arg-type]
    frames.append(pack_beat(b"", 9, epoch=7, next_ms=500, sent_at=5))
    frames.append(pack_kept(marker, 9, b"", 0, b"", None, epoch=7, sent_at=5))
    frames.append(marker + NUL + pack_head(kind=Kind.BATCH, codec=1, epoch=7) + bytes(16))
    return frames


class Reader:
    """An app that takes everything; ``stats`` must count each frame once."""

    def __init__(self, endpoint: str) -> None:
        self.app = app = App(sub=endpoint, name="reader")
        self.invalid: list[str] = []
        self.calls: Counter[str] = Counter()
        self.good: Deferred[None] = Deferred()

        @app.subscribe("orders.{name}")
        def typed(order: Order, name: str) -> None:
            self.calls["typed"] += 1
            if not is_valid(order):
                self.invalid.append(repr(order))

        @app.subscribe("orders.{name}")
        async def later(order: Order) -> None:
            self.calls["later"] += 1
            if not is_valid(order):
                self.invalid.append(repr(order))

        @app.subscribe(startswith(""))
        def everything(body: bytes, envelope: Envelope) -> None:
            self.calls["everything"] += 1
            if not (isinstance(body, bytes) and envelope.body == body):
                self.invalid.append(repr(envelope))

        @app.subscribe("good")
        def good(number: int) -> None:
            self.calls["good"] += 1
            self.good.callback(None)

        @app.on_error(PeerError)
        def refused(error: PeerError, envelope: Envelope) -> None:
            """Called for each."""


async def play(reactor: Any, total: int, seed: int) -> dict[str, int]:
    """Send so many; the counters in the end. Raises AssertionError where one of them is wrong."""
    context: zmq.Context[Any] = zmq.Context()
    sender = context.socket(zmq.XPUB)
    sender.set(zmq.LINGER, 0)
    sender.bind("tcp://127.0.0.1:0")
    reader = Reader(sender.get(zmq.LAST_ENDPOINT).decode())
    service = AppService(reader.app, reactor)
    service.startService()
    try:
        await service.started
        frames, sent, slack = Frames(seed), 0, 0
        await _subscribed(reactor, sender, frames)
        while sent < total:
            _listen(sender, frames)
            batch = frames.batch()
            for message in batch:
                sender.send_multipart(message)
                slack += len(message) - 1 if NUL in message[0] else 0
            reader.good = Deferred()
            reader.good.addTimeout(PATIENCE, reactor)
            sender.send(b"good" + NUL + msgspec.msgpack.encode(sent))
            await reader.good
            await deferLater(reactor, 0)
            sent += BATCH
            _check(reader, sent + sent // BATCH, slack)
        stats = reader.app.stats
        return {
            **{name: value for name, value in stats.as_dict().items() if isinstance(value, int)},
            "failed": stats.failed,
        }
    finally:
        await service.stopService()
        context.destroy(linger=0)


async def _subscribed(reactor: Any, sender: Any, frames: Frames) -> None:
    while not _listen(sender, frames):
        await deferLater(reactor, 0.01)


def _listen(sender: Any, frames: Frames) -> bool:
    """Read what the reader subscribes to; whether a marker is among it."""
    found = False
    while sender.poll(0):
        told = sender.recv()
        if told.startswith(b"\1" + MARKER):
            frames.answer(told[1:])
            found = True
    return found


def _check(reader: Reader, sent: int, slack: int) -> None:
    """``slack``: further parts of messages whose first one has a NUL; the rule of parts may take them as messages."""
    assert not reader.invalid, f"a handler was called with {reader.invalid[:3]}"
    stats = reader.app.stats
    assert sent <= stats.received <= sent + slack, f"sent {sent} (and {slack}), received {stats.received}"
    refused = stats.unrouted + stats.malformed + stats.duplicate + stats.control
    everything = next(route for name, route in stats.routes.items() if "everything" in name)
    given = sum(attrs.astuple(everything))
    assert stats.received == refused + given, (
        f"of {stats.received}, {refused} were refused and {given} given to the route for all"
    )
    for name, calls in reader.calls.items():
        routes = [route for each, route in stats.routes.items() if f"{name}(" in each]
        known = sum(route.handled + route.handler_error for route in routes)
        assert known == calls, f"{name}: {calls} calls, and {known} in the counters"


def main() -> None:
    """Until all are sent; prints the counters."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.nonsense", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    found: dict[str, int] = {}

    async def run(reactor: Any) -> None:
        found.update(await play(reactor, options.frames, options.seed))

    try:
        react(run)
    except SystemExit as end:
        if end.code:
            raise
    print(json.dumps(found))
    sys.exit(0)


if __name__ == "__main__":
    main()
