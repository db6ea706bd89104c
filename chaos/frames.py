"""Invalid frames, made only from a seed and the number of their lot.

A frame is either generated, or a good frame of one of the wires after changes: flipped bits, removed, added or doubled
bytes, a missing end, another frame's end, or another header. Forged answers need a marker, so the newest markers are
passed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import msgspec

from zroute.errors import EnvelopeError
from zroute.messages.coalesced import coalesced_framer, parse_coalesced
from zroute.messages.control import (
    FAREWELL,
    MARKER,
    pack_beat,
    pack_farewell,
    pack_marker,
    pack_statements,
    parse_marker,
)
from zroute.messages.recovery import (
    REQUEST,
    Entry,
    Past,
    PastAnswer,
    RecoveryRequest,
    Since,
    SinceMode,
    pack_box,
    pack_past_request,
    pack_recovery_answers,
    pack_recovery_request,
)
from zroute.messages.snapshots import SnapshotRequest, pack_snapshot_end, pack_snapshot_request
from zroute.messages.wire import FIXED, HEAD_SIZE, MAGIC, NUL, Kind, framer, pack_head, pack_kept, parse_header, split

ORDER = {"sku": "a", "count": 1, "price": 0.5, "tags": ["x", "y"], "notes": {"n": 1}}
EDGES = (0, 1, 2, (1 << 40) - 1, 1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
"""Numbers at the limits of a counter, a generation or an integer."""

_RANGES = ([(1, 9)], [(1, 1), (EDGES[3], EDGES[6])], [(at, at) for at in range(1, 99, 2)], [(1, EDGES[-1])])
"""Numbers in requests for lost messages; some were never sent."""

FLOODED = 3_000
"""Parts of one of the longest messages."""


@attrs.frozen
class Numbered:
    """A counter as a frame carries it."""

    length: int
    number: int


class Mutations:
    """Changes to bytes, drawn from ``chance``."""

    def __init__(self, chance: random.Random, good: list[bytes]) -> None:
        self.chance = chance
        self._good = good
        self._changes: tuple[Callable[[bytes], bytes], ...] = (
            self.flipped,
            self._cut_off,
            self._cut_out,
            self._put_in,
            self._doubled,
            self._spliced,
            self._number_changed,
            self._header_changed,
            self._generated,
        )

    def frame(self) -> bytes:
        """Return a good frame after up to five changes."""
        chance = self.chance
        frame = chance.choice(self._good)
        for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 5))):
            frame = chance.choice(self._changes)(frame)
        return frame

    def _at(self, frame: bytes) -> int:
        return int(self.chance.random() * (len(frame) + 1))

    def flipped(self, frame: bytes) -> bytes:
        """Return ``frame`` with one to eight flipped bits."""
        if not frame:
            return frame
        changed = bytearray(frame)
        for _ in range(self.chance.choice((1, 1, 2, 8))):
            bit = self.chance.getrandbits(3)
            changed[int(self.chance.random() * len(frame))] ^= 1 << bit
        return bytes(changed)

    def _cut_off(self, frame: bytes) -> bytes:
        return frame[: self._at(frame)]

    def _cut_out(self, frame: bytes) -> bytes:
        at = self._at(frame)
        return frame[:at] + frame[at + self.chance.randrange(1, 20) :]

    def _put_in(self, frame: bytes) -> bytes:
        at = self._at(frame)
        return frame[:at] + self.chance.randbytes(self.chance.randrange(1, 20)) + frame[at:]

    def _doubled(self, frame: bytes) -> bytes:
        start, end = sorted((self._at(frame), self._at(frame)))
        return frame[:end] + frame[start:]

    def _spliced(self, frame: bytes) -> bytes:
        other = self.chance.choice(self._good)
        return frame[: self._at(frame)] + other[self._at(other) :]

    def _number_changed(self, frame: bytes) -> bytes:
        size = self.chance.choice((1, 2, 4, 8))
        at = self._at(frame)
        number = self.chance.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1)))
        return frame[:at] + number.to_bytes(size, "big") + frame[at + size :]

    def _header_changed(self, frame: bytes) -> bytes:
        """Return ``frame`` with another kind, codec, flags, span, epoch or sequence."""
        chance = self.chance
        at = frame.find(NUL + MAGIC) + 1
        if not at or len(frame) < at + HEAD_SIZE + 8:
            return self._generated(frame)
        changed = bytearray(frame)
        changed[at + 4] = chance.choice((0, 1, 2, 3, 4, 5, 5, 6, 255, chance.getrandbits(8)))
        which = chance.randrange(6)
        if which < 3:
            changed[at + 5 + which] = chance.getrandbits(8)
        elif which == 3:
            changed[at + 8 : at + 16] = chance.choice((b"\0" * 8, b"\xff" * 8, chance.randbytes(8)))
        elif which == 4:
            number = chance.choice(EDGES)
            changed[at + 16 : at + 24] = number.to_bytes(8, "big")
        return bytes(changed)

    def _generated(self, frame: bytes) -> bytes:
        start = self.chance.choice((b"", b"orders.a\0", b"orders.a\0\xc1ZR\1", frame[:30]))
        return start + self.chance.randbytes(self.chance.choice((0, 1, 8, 40, 200)))


def lot_of_messages(seed: int, lot: int, size: int, markers: list[bytes]) -> list[list[bytes]]:
    """Return ``size`` messages to subscribers with these newest markers.

    Most messages have one part; a few have thousands.
    """
    chance = random.Random(f"{seed} {lot}")
    mutations = Mutations(chance, good_frames(markers))
    return [_parted(chance, mutations.frame()) for _ in range(size)]


def _parted(chance: random.Random, frame: bytes) -> list[bytes]:
    draw = chance.random()
    if draw < 0.97:
        return [frame]
    if draw > 0.9999:
        return [frame, *([b"x"] * chance.randrange(20, FLOODED))]
    at = sorted(chance.randrange(len(frame) + 1) for _ in range(chance.choice((1, 1, 2, 5, chance.randrange(20)))))
    parts = [frame[start:end] for start, end in zip([0, *at], [*at, len(frame)], strict=True)]
    if draw > 0.985 and (topic := parts[0].partition(NUL)[0]):  # the first part begins a message of several parts
        parts[0] = topic
    return parts


def lot_of_subscriptions(seed: int, lot: int, size: int, epoch: int) -> list[list[bytes]]:
    """Return ``size`` messages to a publisher, good and broken.

    They are subscriptions, markers and farewells.
    """
    chance = random.Random(f"{seed} {lot} up")
    good = [
        b"p.",
        b"k.x",
        *(
            pack_marker(chance.getrandbits(64), each)
            for each in ([b"p."], [b""], [b"k.", b"p."], [b"x" * 200, b"y" * 90])
        ),
        pack_farewell(chance.getrandbits(48), epoch),
        pack_box(chance.getrandbits(48)),
        *(pack_recovery_request(chance.getrandbits(48), 1, epoch, b"p.", ranges)[0] for ranges in _RANGES),
        *(pack_snapshot_request(SnapshotRequest(chance.getrandbits(48), 1, epoch, each)) for each in (b"", b"p.")),
        *(
            pack_past_request(chance.getrandbits(48), 2, epoch, b"p.", Past(chance.choice(EDGES), position, since))
            for position in (0, EDGES[-1])
            for since in (Since(SinceMode.ALL), Since(SinceMode.LAST, EDGES[-1]), Since(SinceMode.AGE, EDGES[-1]))
        ),
        REQUEST + chance.randbytes(40),
        MARKER + chance.randbytes(12),
        FAREWELL + chance.randbytes(9),
    ]
    mutations = Mutations(chance, good)
    return [_subscription(chance, mutations) for _ in range(size)]


def _subscription(chance: random.Random, mutations: Mutations) -> list[bytes]:
    frame = mutations.frame()[:440]
    draw = chance.random()
    if draw < 0.6:
        return [b"\1" + frame]
    if draw < 0.8:
        return [b"\0" + frame]
    if draw < 0.9:
        return [chance.randbytes(chance.choice((0, 1, 1, 40)))]
    if draw < 0.95:
        return [frame]
    if draw > 0.9999:  # exceeds the limit of the publisher's socket, which then closes the connection
        return [b"\1" + bytes(chance.choice((600, 100_000)))]
    return [b"\1" + frame, *(chance.randbytes(3) for _ in range(chance.choice((1, 2, 16, 40))))]


def frames_of_topic(topic: bytes) -> list[bytes]:
    """Return two good messages of one topic, a plain and a tracked one.

    Subscribers do not check their numbers.
    """
    body = msgspec.msgpack.encode(ORDER)
    tracked = topic + NUL + FIXED.pack(pack_head(kind=Kind.DATA, codec=1, epoch=7), 0, 5) + body
    return [topic + NUL + body, tracked]


def good_frames(markers: list[bytes]) -> list[bytes]:
    """Return one frame of each kind on the wires, with answers to these markers."""
    frames = [frame for marker in markers for frame in _answers(marker)]
    bodies = {1: msgspec.msgpack.encode(ORDER), 2: msgspec.json.encode(ORDER), 3: b"text", 4: b"\0\1\2"}
    frame = framer("tracked", epoch=7, next_sequence=lambda: 1, clock_ns=lambda: 1_700_000_000_000_000_000)
    frames += [b"orders.a" + NUL + body for body in bodies.values()]
    for codec, body in bodies.items():
        for headers in (None, {"trace": "abc", "n": [1, {"x": 2.5}]}):
            made = frame(b"orders.a", codec, body, headers)
            assert isinstance(made, bytes)
            frames.append(made)
    frames += [pack_beat(b"", number, epoch=7, next_ms=500, sent_at=5) for number in (9, EDGES[-1])]
    frames.append(pack_beat(b"orders.", 9, epoch=7, next_ms=0, sent_at=5))
    for codec, body in bodies.items():
        for counters in ((), (Numbered(0, 3),), (Numbered(0, 3), Numbered(8, 3))):
            together = coalesced_framer(
                epoch=7, count=lambda topic, many, counters=counters: counters, keeps=codec == 1
            )
            frames.append(together(b"orders.a", codec, [body] * 3, 1_700_000_000_000_000_000))
    return frames


def _answers(marker: bytes) -> list[bytes]:
    body = msgspec.msgpack.encode(ORDER)
    frames = [pack_kept(marker, 1, b"orders.a", codec, body, {"k": 1}, epoch=7, sent_at=5) for codec in (1, 2)]
    frames.append(pack_kept(marker, 9, b"", 0, b"", None, epoch=7, sent_at=5))
    frames += [
        pack_kept(marker, 2, b"orders.a", 1, body, None, epoch=7, sent_at=5, numbers=numbers)
        for numbers in ([], [(0, 3)], [(0, 3), (7, EDGES[-1])])
    ]
    frames.append(pack_kept(marker, 3, b"", 0, pack_snapshot_end(1), None, epoch=7, sent_at=5))
    for kind in (Kind.JOIN, Kind.GOODBYE):
        for numbers in ([(b"", 5)], [(b"orders.", EDGES[-1])], []):
            frames += pack_statements(kind, marker, numbers, epoch=7, name="far", partial=False, sent_at=5)  # type: ignore[arg-type]
    for prefix, more in ((b"", False), (b"orders.", True)):
        request = RecoveryRequest(parse_marker(marker).subscriber, 1, 7, prefix, ())
        messages = enumerate(frames_of_topic(b"orders.a"), 4)
        entries: list[Entry] = [(1, 3), *messages, (EDGES[-2], EDGES[-1])]
        frames += pack_recovery_answers(request, entries, epoch=7, sent_at=5, more=more)
        for past in (PastAnswer(0, len(entries)), PastAnswer(EDGES[-1], EDGES[-1])):
            kept = [entry for entry in entries if isinstance(entry[1], bytes)]
            frames += pack_recovery_answers(request, kept, epoch=7, sent_at=5, more=more, past=past)
    frames.append(marker + NUL + pack_head(kind=Kind.COALESCED, codec=1, epoch=7) + bytes(16))
    return frames


def messages_in(parts: list[bytes]) -> int:
    """Return the number of messages in a frame; an invalid frame counts as one."""
    try:
        _, body = split(tuple(parts))
        header = parse_header(body) if body.startswith(MAGIC) else None
        if header is not None and header.kind is Kind.COALESCED:
            return parse_coalesced(header.codec, body[header.size :]).many
    except EnvelopeError:
        pass
    return 1


def counted(parts: list[bytes]) -> tuple[int, int]:
    """Return how many messages a reader counts for these parts, and may add.

    A first part with a NUL may be read as a whole message, and the others as messages of their own. See the rule
    of parts in docs/reference/wire.md.
    """
    if len(parts) > 1 and NUL in parts[0]:
        return 1, sum(messages_in([part]) for part in parts) - 1
    return messages_in(parts), 0
