"""Send invalid requests and replies: ``python -m chaos.asking --frames 1000000 --seed 1``.

Lying clients send broken requests, credits and cancellations to an app in another process, and a lying server answers
the requests of a second app there with broken replies. After each lot, a good request must be answered, the counters
must match, and no handler or caller may have received invalid data. A lot depends on the seed, its number, and the ids
that the second app chooses. In a third of the seeds, or with ``--keys``, all connections use keys; the liars then have
a key that the apps know.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import zmq

from chaos.frames import ORDER, Mutations
from chaos.keyed import VARIABLE, Ring, attach, drawn, own, release
from chaos.parent import end_with_parent
from chaos.victim import Order, is_valid, memory
from tests.support import PATIENCE, Child, free_endpoint
from zroute import App, Envelope, PeerError, RequestRefused
from zroute.messages.requests import (
    Kind,
    pack_cancel,
    pack_credits,
    pack_failure,
    pack_reply,
    plain_failure,
    request_packer,
)
from zroute.runtime.runner import run
from zroute.stats import Stats

LOT = 400
"""Frames of one lot."""

LOOPS = 8
"""Requests that the second app has in flight."""

FRESH_EACH = 25
"""Lots after which the lying clients are replaced."""

GROWTH = 30.0
"""MB by which the victim may grow from the first tenth of the run to its end."""

WARM = 100_000
"""The lowest number of frames for a verdict on memory."""

BODY = msgspec.msgpack.encode(ORDER)
TOPICS = (b"orders.a", b"later.a", b"rows.a", b"any.a", b"\xff\xfe", b"unheard")
_pack = request_packer(7, lambda: 5)


# -- the victim ------------------------------------------------------------------------------------------


class Victim:
    """An app that answers, and one that asks."""

    def __init__(self, rep: str, req: str) -> None:
        self.server = App(rep=rep, name="server", **own())
        self.asker = App(req=req, name="asker", **own())
        self.invalid: list[str] = []
        self.ended: Counter[str] = Counter()
        self._serve(self.server)
        self._ask(self.asker)

    def _check(self, order: object) -> None:
        if not is_valid(order):
            self.invalid.append(repr(order)[:200])

    def _serve(self, app: App) -> None:
        @app.on_error(PeerError)
        def refused(error: PeerError, envelope: Envelope) -> None:
            """Accept each refused message, so that it is not logged."""

        @app.reply("orders.{name}")
        def orders(order: Order, name: str) -> Order:
            self._check(order)
            if order.count == 0:
                raise RequestRefused(409, "none")
            return order

        @app.reply("later.{name}", max_in_flight=5, queue=20)
        async def later(order: Order, envelope: Envelope) -> int:
            self._check(order)
            return len(envelope.headers)

        @app.reply("rows.{name}", max_in_flight=10, queue=20)
        async def rows(order: Order) -> AsyncIterator[Order]:
            self._check(order)
            for _ in range(300):
                yield order

        @app.reply("any.{name}")
        def untyped(body: Any) -> Any:
            return None

        @app.reply("check")
        def check() -> dict[str, Any]:
            return self.report()

    def _ask(self, app: App) -> None:
        from twisted.internet.defer import Deferred

        async def loop(number: int) -> None:
            while True:
                try:
                    if number % 2:
                        self._check(await app.request("orders.a", ORDER, Order, timeout=1.0))
                    else:
                        async for order in app.request_stream("rows.a", ORDER, Order, timeout=1.0):
                            self._check(order)
                    self.ended["answered"] += 1
                except PeerError as error:
                    self.ended[type(error).__name__] += 1

        @app.on_startup
        def begin() -> None:
            for number in range(LOOPS):
                Deferred.fromCoroutine(loop(number)).addErrback(
                    lambda failure: self.invalid.append(f"a loop has ended: {failure.value!r}")
                )

    def report(self) -> dict[str, Any]:
        """Return the counters, the faults and the memory."""
        faults = [f"invalid data: {each}" for each in self.invalid[:3]]
        stats = self.server.stats
        ends = answered(stats) - 1  # the request that asks for the report has not ended
        if stats.requests != ends + 2:  # it is counted as received
            faults.append(f"{stats.requests} requests, but {ends + 2} are answered or run")
        client = self.asker._live.client
        if client is None or not 0 <= client.unanswered <= LOOPS:
            faults.append(f"{client and client.unanswered} requests are unanswered")
        return {
            "faults": faults,
            "requests": stats.requests,
            "bad": stats.bad_requests,
            "handled": stats.handled,
            "late": self.asker.stats.replies_late,
            "ended": dict(self.ended),
            "rss": memory(),
        }


def answered(stats: Stats) -> int:
    """Return the number of requests that have ended, wait or run."""
    routes = stats.routes.values()
    ends = [each.handled + each.handler_error + each.decode_error + each.cancelled + each.skipped for each in routes]
    running = [each.queued + each.in_flight for each in routes]
    return stats.bad_requests + stats.no_handler + stats.busy + sum(ends) + sum(running)


def victim(rep: str, req: str) -> int:
    """Run the two apps until a signal."""
    logging.basicConfig(level=logging.CRITICAL)
    end_with_parent()
    apps = Victim(rep, req)

    @apps.server.on_startup
    def begun() -> None:
        print("ready", flush=True)

    return run([apps.server, apps.asker])


# -- the liars -------------------------------------------------------------------------------------------


def requests_of(chance: random.Random, ids: deque[bytes]) -> Iterator[list[bytes]]:
    """Yield broken and good messages of clients, without an end."""
    while True:
        topic, id = chance.choice(TOPICS), chance.randbytes(16)
        seconds, window = chance.choice((None, 0.001, 5.0, 1e9)), chance.choice((0, 0, 1, 128, 0xFFFF))
        old = chance.choice(ids) if ids else id
        headers = {"a": 1} if chance.random() < 0.2 else None
        good = [
            _pack(id, topic, chance.choice((1, 2, 4, 77)), BODY, headers, seconds, window),
            _pack(old, topic, 1, BODY, headers, seconds, window),
            pack_credits(old, chance.choice((0, 1, 128, 0xFFFFFFFF))),
            pack_cancel(old),
            pack_reply(old, Kind.ITEM, 1, BODY),
        ]
        ids.append(id)
        frame = Mutations(chance, good).frame()
        draw = chance.random()
        if draw < 0.7:
            yield [b"", frame]
        elif draw < 0.9:
            yield [b"id"[: chance.randrange(3)], b"", topic, Mutations(chance, [BODY, frame]).frame()]
        else:
            yield [
                chance.choice((b"", b"x", topic, frame, chance.randbytes(3))) for _ in range(chance.randrange(1, 20))
            ]


def replies_of(chance: random.Random, parts: list[bytes]) -> Iterator[list[bytes]]:
    """Yield broken and good replies to a request, then a good one."""
    if len(parts) != 3:
        return
    peer, _, frame = parts
    id = frame[6:22]
    kinds = (Kind.REPLY, Kind.ITEM, Kind.END)
    good = [
        *(pack_reply(id, kind, chance.choice((0, 1, 1, 2, 77)), BODY) for kind in kinds),
        pack_failure(id, chance.choice((400, 404, 409, 500, 503)), "why"),
        pack_reply(chance.randbytes(16), Kind.REPLY, 1, BODY),
        frame,
    ]
    mutations = Mutations(chance, good)
    for _ in range(chance.choice((1, 1, 2, 5, 200))):
        made, draw = mutations.frame(), chance.random()
        if draw < 0.8:
            yield [peer, b"", made]
        elif draw < 0.9:
            yield [peer, id, b"", *chance.choice(([made], plain_failure(409, "no"), [b"", b"40", b""]))]
        else:
            yield [peer, *(chance.choice((b"", id, made)) for _ in range(chance.randrange(1, 6)))]
    yield [peer, b"", pack_reply(id, Kind.REPLY, 1, BODY)]


class Liars:
    """The lying clients and the lying server."""

    def __init__(self, rep: str, req: str, seed: int, ring: Ring) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._rep, self._seed, self._ring = ring.at("victim", f"connect:{rep}"), seed, ring
        self._router = self._socket(zmq.ROUTER)
        self._attach(self._router, f"bind:{req}")
        self._dealers: list[Any] = []
        self._good = self._socket(zmq.REQ)
        self._good.set(zmq.RCVTIMEO, int(PATIENCE * 1000))
        self._attach(self._good, self._rep)
        self.sent: Counter[str] = Counter()

    def _attach(self, socket: Any, endpoint: str) -> None:
        attach(socket, endpoint, self._ring.of("liar").get(VARIABLE))

    def _socket(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        return socket

    def play(self, lot: int) -> dict[str, Any]:
        """Send a lot, and return the report of the victim."""
        chance = random.Random(f"{self._seed} {lot}")
        if lot % FRESH_EACH == 0:
            for each in self._dealers:
                each.close(0)
            self._dealers = [self._socket(zmq.DEALER) for _ in range(3)]
            for each in self._dealers:
                self._attach(each, self._rep)
        ids: deque[bytes] = deque(maxlen=50)
        made = requests_of(chance, ids)
        for _ in range(LOT):
            self._dealers[chance.randrange(3)].send_multipart(next(made))
            self.sent["requests"] += 1
            self._answer(chance)
        for dealer in self._dealers:
            while dealer.poll(0):
                dealer.recv_multipart()
                self.sent["answers"] += 1
        self._good.send_multipart([b"orders.good", BODY])
        got = self._good.recv_multipart()
        if len(got) != 1 or msgspec.msgpack.decode(got[0]) != ORDER:
            raise AssertionError(f"a good request got {got}")
        self._good.send_multipart([b"check", b""])
        report: dict[str, Any] = msgspec.msgpack.decode(self._good.recv_multipart()[0])
        if report["faults"]:
            raise AssertionError(f"lot {lot} of seed {self._seed}: {report['faults']}")
        return report

    def _answer(self, chance: random.Random) -> None:
        while self._router.poll(0):
            for parts in replies_of(chance, self._router.recv_multipart()):
                self._router.send_multipart(parts)
                self.sent["replies"] += 1

    def close(self) -> None:
        """Close all sockets."""
        release(self._context)
        self._context.destroy(0)


def play(frames: int, seed: int, minutes: float | None = None, keys: bool | None = None) -> dict[str, Any]:
    """Send this number of frames, and return what was counted.

    With ``keys=None``, the seed decides whether the connections use keys. Raises AssertionError for the first fault.
    """
    with tempfile.TemporaryDirectory() as folder:
        used = drawn(seed) if keys is None else keys
        return _play(frames, seed, minutes, Ring(Path(folder) if used else None, ("victim", "liar")))


def _play(frames: int, seed: int, minutes: float | None, ring: Ring) -> dict[str, Any]:
    rep, req = free_endpoint(), free_endpoint()
    liars = Liars(rep, req, seed, ring)
    began, lot, warm = time.monotonic(), 0, 0.0
    report: dict[str, Any] = {}
    try:
        ends = rep, ring.at("liar", f"connect:{req}")
        with Child("-m", "chaos.asking", "--victim", *ends, env=ring.of("victim")) as child:
            child.line_with("ready")
            while liars.sent["requests"] + liars.sent["replies"] < frames:
                report = liars.play(lot)
                lot += 1
                total = liars.sent["requests"] + liars.sent["replies"]
                if not warm and total >= frames / 10:
                    warm = report["rss"]
                if lot % 100 == 0:
                    print(f"lot {lot}: {total} frames, {json.dumps(report)}", flush=True)
                if minutes is not None and time.monotonic() - began > 60 * minutes:
                    break
            if child.end() not in (0, 75):  # 75: some requests have no end
                raise AssertionError(f"the victim ended with {child.process.returncode}: {child.err}")
        total = liars.sent["requests"] + liars.sent["replies"]
        if total >= WARM and report["rss"] - warm > GROWTH:
            raise AssertionError(f"the victim grew from {warm:.0f} to {report['rss']:.0f} MB")
    finally:
        liars.close()
    return {**report, **liars.sent, "lots": lot, "warm": warm, "keys": bool(ring)}


def main() -> int:
    """Send frames, and print what was counted."""
    parser = argparse.ArgumentParser(prog="python -m chaos.asking", description=__doc__)
    parser.add_argument("--frames", type=int, default=100_000, help="frames to send (default 100000)")
    parser.add_argument("--seed", type=int, default=1, help="seed (default 1)")
    parser.add_argument("--minutes", type=float, help="end after this time")
    keys = argparse.BooleanOptionalAction
    parser.add_argument("--keys", action=keys, help="use keys, or none (default: the seed decides)")
    parser.add_argument("--victim", nargs=2, metavar=("REP", "REQ"), help="run the apps; used by the program itself")
    options = parser.parse_args()
    if options.victim:
        return victim(*options.victim)
    print(json.dumps(play(options.frames, options.seed, options.minutes, options.keys)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
