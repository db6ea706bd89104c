"""A peer that forges frames of another publisher.

``python -m chaos.liar ENDPOINT ...``

Endpoints begin with ``bind:`` or ``connect:``. The liar answers each marker with an epoch of its own. After a line
``lie KIND EPOCH NUMBER NAME`` on standard input it forges frames of the publisher with this epoch and name, whose last
number is about ``NUMBER``. This module packs frames by hand, as docs/reference/wire.md describes them.
"""

from __future__ import annotations

import secrets
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from chaos.keyed import attach

PREFIX = b"s."
TOPIC = b"s.B"
MARKER = b"\xff\xffzr"
DATA, JOIN, BEAT, GOODBYE = range(4)
FORGED = -1
"""The body of a forged message; no publisher sends it."""


def pack(topic: bytes, kind: int, epoch: int, number: int, body: bytes, span: int = 0) -> bytes:
    """Return a tracked frame with a JSON body."""
    head = struct.pack(">3sBBBBBQQq", b"\xc1ZR", 1, kind, 2, 0, span, epoch, number, time.time_ns())
    return topic + b"\0" + head + body


def pack_statement(marker: bytes, kind: int, epoch: int, name: str, number: int | None) -> bytes:
    """Return a join or a goodbye of one part.

    With a number, it states the subscription's last number.
    """
    called = name.encode()
    entry = bytes([len(PREFIX)]) + PREFIX + struct.pack(">Q", number) if number is not None else b""
    body = struct.pack(">HHBB", 0, 1, 0, len(called)) + called + entry
    return pack(marker, kind, epoch, 0, body)


def numbers(last: int) -> Iterator[int]:
    """Yield numbers that B has not reached."""
    yield from (last + 1_000, 1 << 60, (1 << 64) - 1)


def ahead(markers: list[bytes], epoch: int, last: int, name: str) -> list[bytes]:
    """Return messages of B with numbers that it has not reached."""
    return [pack(TOPIC, DATA, epoch, number, b"%d" % FORGED, len(PREFIX)) for number in numbers(last)]


def little_ahead(markers: list[bytes], epoch: int, last: int, name: str) -> list[bytes]:
    """Return a message of B that is 1,000 ahead, in the same generation."""
    return ahead(markers, epoch, last, name)[:1]


def beats(markers: list[bytes], epoch: int, last: int, name: str) -> list[bytes]:
    """Return beats of B."""
    return [
        pack(PREFIX, BEAT, epoch, number, struct.pack(">I", milliseconds), len(PREFIX))
        for number in numbers(last)
        for milliseconds in (0, 500, (1 << 32) - 1)
    ]


def joins_as(markers: list[bytes], epoch: int, last: int, name: str) -> list[bytes]:
    """Return answers of B to the markers."""
    return [pack_statement(marker, JOIN, epoch, name, number) for marker in markers for number in numbers(last)]


def joins_invented(markers: list[bytes], epoch: int, last: int, name: str) -> list[bytes]:
    """Return answers of publishers that do not exist, with names of their own."""
    return [
        pack_statement(marker, JOIN, secrets.randbits(64), f"invented-{at}", last)
        for marker in markers
        for at in range(20)
    ]


def joins_with_name(markers: list[bytes], epoch: int, last: int, name: str) -> list[bytes]:
    """Return answers of an invented second run of B, as if the first had ended."""
    return [pack_statement(marker, JOIN, secrets.randbits(64), name, last) for marker in markers]


def goodbyes(markers: list[bytes], epoch: int, last: int, name: str) -> list[bytes]:
    """Return goodbyes of B, which still runs."""
    return [pack_statement(marker, GOODBYE, epoch, name, last) for marker in markers]


LIES: dict[str, Callable[[list[bytes], int, int, str], list[bytes]]] = {
    lie.__name__: lie for lie in (ahead, little_ahead, beats, joins_as, joins_invented, joins_with_name, goodbyes)
}


class Liar:
    """The socket, and the markers that it has seen."""

    def __init__(self, endpoints: list[str]) -> None:
        context: zmq.Context[Any] = zmq.Context()
        self.socket = context.socket(zmq.XPUB)
        self.epoch = secrets.randbits(64)
        self.markers: list[bytes] = []
        for endpoint in endpoints:
            attach(self.socket, endpoint)

    def listen(self) -> None:
        """Answer a new marker, or forget a withdrawn one."""
        told = self.socket.recv()
        there, topic = told[:1] == b"\1", told[1:]
        if not topic.startswith(MARKER) or topic[len(MARKER) :][:1] in (b"!", b"?"):  # boxes and requests
            return
        if there:
            self.markers.append(topic)
            self.socket.send(pack_statement(topic, JOIN, self.epoch, "liar", 0))
        elif topic in self.markers:
            self.markers.remove(topic)

    def obey(self, line: str) -> None:
        """Send the frames of one lie."""
        _, kind, epoch, last, *name = line.split()
        frames = LIES[kind](self.markers, int(epoch, 16), int(last), " ".join(name))
        for frame in frames:
            self.socket.send(frame)
        print("lied", kind, len(frames), flush=True)


def main() -> None:
    """Forge frames on command until the process is killed."""
    liar = Liar(sys.argv[1:])
    poller = zmq.Poller()
    poller.register(liar.socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    print("epoch", f"{liar.epoch:016x}", flush=True)
    while True:
        ready = dict(poller.poll())
        if liar.socket in ready:
            liar.listen()
        if sys.stdin.fileno() in ready:
            line = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]  # unbuffered, so poll sees all input
            if not line:
                return
            liar.obey(line.decode())


if __name__ == "__main__":
    main()
