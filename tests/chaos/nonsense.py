"""Frames that nobody should send, over a real socket: ``python -m tests.chaos.nonsense --frames 1000000``.

Each is generated, or a good frame of one of the wires with bits flipped, bytes cut out, put in or doubled, its end
missing, or another frame's end. After each lot a good message must be handled, and each message stand in one counter:
a frame that brings several is as many.
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
from zroute.errors import EnvelopeError, PeerError
from zroute.messages.batches import batch_framer, parse_batch
from zroute.messages.control import MARKER, pack_beat, pack_statements
from zroute.messages.wire import MAGIC, NUL, Kind, framer, pack_head, pack_kept, parse_header, split
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
        self._markers: list[bytes] = []
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
        """From now on forge answers to this marker, and to the one before: there are two readers."""
        self._markers = [*self._markers, marker][-2:]
        self._good = [frame for each in self._markers for frame in _good_frames(each)]

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
    for codec, body in bodies.items():
        for counters in ((), (Numbered(0, 3),), (Numbered(0, 3), Numbered(8, 3))):
            together = batch_framer(epoch=7, count=lambda topic, many, counters=counters: counters, keeps=codec == 1)
            frames.append(together(b"orders.a", codec, [body] * 3, 1_700_000_000_000_000_000))
    return frames


@attrs.frozen
class Numbered:
    """A counter as a frame carries it."""

    length: int
    number: int


def messages_in(parts: list[bytes]) -> int:
    """How many messages a whole one is; one that is none counts as one."""
    try:
        _, body = split(tuple(parts))
        header = parse_header(body) if body.startswith(MAGIC) else None
        if header is not None and header.kind is Kind.BATCH:
            return parse_batch(header.codec, body[header.size :]).many
    except EnvelopeError:
        pass
    return 1


class Reader:
    """An app whose ``stats`` must count each message once: one that takes all, or the short way for ``orders.a``."""

    def __init__(self, endpoints: list[str], *, short: bool) -> None:
        self.app = app = App(sub=endpoints, name="short" if short else "reader")
        self.invalid: list[str] = []
        self.calls: Counter[str] = Counter()
        self.good: Deferred[None] = Deferred()

        @app.subscribe("good")
        def good(number: int) -> None:
            self.calls["good"] += 1
            self.good.callback(None)

        @app.on_error(PeerError)
        def refused(error: PeerError, envelope: Envelope) -> None:
            """Called for each."""

        if short:
            self._take_the_short_way(app)
        else:
            self._take_all(app)

    def _take_the_short_way(self, app: App) -> None:
        """Where all handlers share one type, frames of several messages are decoded in one call."""

        @app.subscribe("orders.a")
        def first(order: Order) -> None:
            self.calls["first"] += 1
            if not is_valid(order):
                self.invalid.append(repr(order))

        @app.subscribe("orders.*")
        def second(order: Order) -> None:
            self.calls["second"] += 1

    def _take_all(self, app: App) -> None:
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


async def play(reactor: Any, total: int, seed: int) -> dict[str, int]:
    """Send so many; the counters in the end. Raises AssertionError where one of them is wrong."""
    context: zmq.Context[Any] = zmq.Context()
    sender = context.socket(zmq.XPUB)
    sender.set(zmq.LINGER, 0)
    sender.bind("tcp://127.0.0.1:0")
    # One more that sends nothing: an invented publisher falls silent, and who knows only one connects to it anew,
    # which loses what is under way.
    idle = context.socket(zmq.XPUB)
    idle.bind("tcp://127.0.0.1:0")
    endpoints = [socket.get(zmq.LAST_ENDPOINT).decode() for socket in (sender, idle)]
    readers = [Reader(endpoints, short=short) for short in (False, True)]
    services = [AppService(reader.app, reactor) for reader in readers]
    for service in services:
        service.startService()
    try:
        for service in services:
            await service.started
        frames, expected, slack, lots = Frames(seed), 0, 0, 0
        await _subscribed(reactor, sender, frames)
        while lots * BATCH < total:
            _listen(sender, frames)
            for message in frames.batch():
                sender.send_multipart(message)
                if len(message) > 1 and NUL in message[0]:  # the rule of parts may take each as a message
                    expected += 1
                    slack += sum(messages_in([part]) for part in message) - 1
                else:
                    expected += messages_in(message)
            for reader in readers:
                reader.good = Deferred()
                reader.good.addTimeout(PATIENCE, reactor)
            sender.send(b"good" + NUL + msgspec.msgpack.encode(lots))
            for reader in readers:
                await reader.good
            await deferLater(reactor, 0)
            lots, expected = lots + 1, expected + 1
            received = readers[0].app.stats.received
            assert expected <= received <= expected + slack, f"sent {expected} (and {slack}), received {received}"
            for reader in readers:
                _check(reader)
        stats = readers[0].app.stats
        return {
            **{name: value for name, value in stats.as_dict().items() if isinstance(value, int)},
            "failed": stats.failed,
            "the short way": readers[1].calls["first"],
        }
    finally:
        for service in services:
            await service.stopService()
        context.destroy(linger=0)


async def _subscribed(reactor: Any, sender: Any, frames: Frames) -> None:
    """Wait for the marker of each reader."""
    found = 0
    while found < 2:
        found += _listen(sender, frames)
        await deferLater(reactor, 0.01)


def _listen(sender: Any, frames: Frames) -> int:
    """Read what the readers subscribe to; how many markers are among it."""
    found = 0
    while sender.poll(0):
        told = sender.recv()
        if told.startswith(b"\1" + MARKER):
            frames.answer(told[1:])
            found += 1
    return found


def _check(reader: Reader) -> None:
    """Handlers got what they declare, and each message is in one counter."""
    assert not reader.invalid, f"a handler was called with {reader.invalid[:3]}"
    stats = reader.app.stats
    refused = stats.unrouted + stats.malformed + stats.duplicate + stats.control
    for_all = [route for name, route in stats.routes.items() if "everything" in name]
    for_all = for_all or [route for name, route in stats.routes.items() if "second" in name or "good" in name]
    given = sum(sum(attrs.astuple(route)) for route in for_all)
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
