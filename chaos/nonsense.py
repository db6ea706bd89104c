"""Send invalid frames: ``python -m chaos.nonsense --frames 1000000 --seed 1``.

Two lying publishers send broken and forged frames to the readers in another process (`chaos.victim`); other peers send
broken subscriptions to its publisher. In the middle of some lots the connection is cut: a sender closes and binds its
socket again, or a proxy cuts or resets the connection.

After each lot a good message must be handled, the counters must match, and the publisher must answer a new marker. A
lot depends only on the seed and its number, so ``--lot N`` continues a run.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec
import zmq

from chaos.frames import counted, frames_of_topic, lot_of_messages, lot_of_subscriptions
from chaos.proxy import TroubleProxy
from chaos.victim import PUBLISHED
from tests.support import PATIENCE, Child, free_port
from zroute.errors import EnvelopeError
from zroute.messages.control import (
    FAREWELL,
    MARKER,
    Marker,
    pack_marker,
    pack_statements,
    parse_marker,
    parse_statement,
)
from zroute.messages.wire import MAGIC, NUL, Kind, parse_header

BATCH = 400
"""Frames sent at once: fewer than the queue of a subscriber holds, so none is lost."""

FILLING = 70_000
"""Topics that fill the readers' caches."""

READERS = 2
CUT_EACH = 50
"""One in CUT_EACH lots cuts the connection; a reconnect takes as long as several lots."""

UP_EACH = 5
"""One in UP_EACH lots goes to the publisher."""

FRESH_EACH = 20
"""Lots to the publisher after which its peers are replaced, which ends their subscriptions."""

GROWTH = 20.0
"""MB by which the victim may grow from the first tenth of the run to its end."""

WARM = 100_000
"""The lowest number of frames for a verdict on memory; shorter runs only print it."""


class Liar:
    """An XPUB socket that sends forged frames, but answers markers honestly.

    It answers each marker with an epoch of its own.
    """

    def __init__(self, context: zmq.Context[Any], name: str, *, proxied: bool) -> None:
        self._context = context
        self._name = name
        self._epoch = secrets.randbits(63) + 8
        self._port = free_port()
        self.markers: dict[int, bytes] = {}
        self._asked: list[Marker] = []  # the markers that it has not answered
        self._broken = False
        self.proxy = TroubleProxy(self._port) if proxied else None
        self.endpoint = self.proxy.endpoint if self.proxy else f"tcp://127.0.0.1:{self._port}"
        self.bind()

    def bind(self) -> None:
        """Open a socket on the same port as before."""
        self.socket = self._context.socket(zmq.XPUB)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.XPUB_VERBOSER, 1)  # reports each subscription of each reader
        self.socket.set(zmq.SNDHWM, 0)
        self._monitor: Any = self.socket.get_monitor_socket(zmq.Event.DISCONNECTED)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket.bind(f"tcp://127.0.0.1:{self._port}")
                return
            except zmq.ZMQError:  # libzmq's thread has not closed the old socket yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Close the socket and drop its unsent messages."""
        self.socket.disable_monitor()
        self.socket.unbind(f"tcp://127.0.0.1:{self._port}")
        self.socket.close(0)

    def break_off(self, chance: random.Random) -> None:
        """Cut the connections, in one of several ways."""
        self._broken = True
        if self.proxy is not None:
            chance.choice((self.proxy.cut, self.proxy.reset))()
        else:
            self.close()
            self.bind()

    def is_cut(self) -> bool:
        """Return True if a connection or a subscription has ended since the last call of `was_cut`.

        A reader that sends its subscriptions again withdraws them first, and then misses a few messages.
        """
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
            self._broken = True
        self._hear()
        return self._broken

    def was_cut(self) -> bool:
        """Return True if a connection or a subscription has ended since the last call."""
        cut, self._broken = self.is_cut(), False
        return cut

    def _hear(self) -> None:
        """Read the readers' subscriptions and withdrawals."""
        while self.socket.poll(0):
            told = self.socket.recv()
            if told[:1] == b"\0":
                self._broken |= not told[1:].startswith((MARKER, FAREWELL))
            elif (marker := marker_in(told[1:])) is not None:
                self.markers[marker.subscriber] = marker.topic  # the newest of each reader
                self._asked.append(marker)

    def listen(self) -> int:
        """Answer the readers' markers honestly; return the number of answers."""
        self._hear()
        answers = 0
        for marker in self._asked:
            arguments = {"epoch": self._epoch, "name": self._name, "partial": False, "sent_at": time.time_ns()}
            known = [] if marker.is_ping else [(prefix, 0) for prefix in marker.prefixes]
            for frame in pack_statements(Kind.JOIN, marker.topic, known, **arguments):  # type: ignore[arg-type]
                self.socket.send(frame)
                answers += 1
        self._asked.clear()
        return answers

    def wait_for_readers(self) -> int:
        """Wait until each reader has sent a marker over its new connection.

        Returns the number of answers.
        """
        deadline, answers = time.monotonic() + PATIENCE, 0
        self.markers.clear()
        while len(self.markers) < READERS:
            assert time.monotonic() < deadline, f"{self._name}: the readers sent no markers in time"
            self.socket.poll(100)
            answers += self.listen()
        return answers


def marker_in(subscription: bytes) -> Marker | None:
    """Return the marker that a subscription is; None for the others, such as requests for lost messages."""
    try:
        return parse_marker(subscription) if subscription.startswith(MARKER) else None
    except EnvelopeError:
        return None


def good(number: int) -> bytes:
    """Return a message that each reader must handle."""
    return b"good" + NUL + msgspec.msgpack.encode(number)


class Listener:
    """An honest subscriber that checks the numbers of the victim's publisher."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.socket = context.socket(zmq.SUB)
        self.socket.set(zmq.RCVHWM, 0)
        self.socket.connect(endpoint)
        self.epoch = 0
        self.last = 0
        self._id = secrets.randbits(48)
        self._asked = 0
        self._marker = b""
        self.socket.subscribe(b"p.")

    def ask(self) -> None:
        """Send a new marker; its answer must state the last message's number."""
        old, self._asked = self._marker, self._asked + 1
        self._marker = pack_marker(self._id << 16 | self._asked & 0xFFFF, [b"p."])
        self.socket.subscribe(self._marker)
        if old:
            self.socket.unsubscribe(old)
        while not self._read():
            pass

    def read(self, many: int) -> None:
        """Read ``many`` messages, which must have consecutive numbers."""
        wanted = self.last + many
        while self.last < wanted:
            self._read()

    def _read(self) -> bool:
        """Read one frame; return True if it was the answer to the last marker."""
        assert self.socket.poll(PATIENCE * 1000), f"the publisher is silent, after number {self.last}"
        frame = self.socket.recv()
        topic, _, body = frame.partition(NUL)
        if frame.startswith(MARKER):
            at = frame.index(NUL + MAGIC)
            topic, body = frame[:at], frame[at + 1 :]
        header = parse_header(body)
        if header.kind is Kind.DATA:
            assert topic == b"p.x", f"{topic!r} was not subscribed to"
            number = header.number(len(b"p."))  # others have shorter and longer subscriptions to its topic
            assert number == self.last + 1, f"number {number} follows {self.last}"
            self.last = number
            return False
        if header.kind is not Kind.JOIN or topic != self._marker:
            return False
        self.epoch = header.epoch
        stated = dict(parse_statement(body[header.size :]).numbers).get(b"p.", 0)
        assert stated == self.last, f"the publisher states {stated} for 'p.', but the last number was {self.last}"
        return True


class Attack:
    """The senders, the victim, and the messages that it must have received."""

    def __init__(self, stack: ExitStack, seed: int) -> None:
        self._seed = seed
        self._context: zmq.Context[Any] = zmq.Context()
        stack.callback(self._context.destroy, 0)
        self._reports = self._context.socket(zmq.PULL)
        self._liars = [Liar(self._context, f"liar-{n}", proxied=bool(n)) for n in range(2)]
        for liar in self._liars:
            if liar.proxy:
                stack.callback(liar.proxy.close)
        self._publish = f"tcp://127.0.0.1:{free_port()}"
        reports = f"tcp://127.0.0.1:{self._reports.bind_to_random_port('tcp://127.0.0.1')}"
        endpoints = [liar.endpoint for liar in self._liars]
        self.victim = stack.enter_context(
            Child("-m", "chaos.victim", reports, self._publish, *endpoints, start_new_session=True)
        )
        self._expected = 0
        self._again = 0
        self._slack = sum([liar.wait_for_readers() for liar in self._liars])
        self._listener = Listener(self._context, self._publish)
        self._listener.ask()
        self._peers: list[Any] = []
        self._uploads = 0
        self._number = 0
        self.rss = 0.0
        self.figures: Counter[str] = Counter()
        self.stats: dict[str, Any] = {}

    def fill_caches(self) -> None:
        """Send good messages of more topics than the readers' caches hold.

        All growth after that is a leak.
        """
        for start in range(0, FILLING, BATCH // 2):
            self._listen(self._liars[:1])
            for number in range(start, start + BATCH // 2):
                for frame in frames_of_topic(b"orders.filling-%d" % number):
                    self._liars[0].socket.send(frame)
                    self._expected += 1
            self._send_good(self._liars[:1])

    def play(self, lot: int) -> None:
        """Send one lot and check the effect."""
        chance = random.Random(f"{self._seed} {lot} kind")
        liars = self._liars if chance.random() < 0.2 else [chance.choice(self._liars)]
        if chance.randrange(UP_EACH) == 0:
            self._send_up(lot, liars)
        else:
            self._send_down(lot, chance, liars, cut=chance.randrange(CUT_EACH) == 0)
        self.figures["lots"] += 1

    # -- to the readers -----------------------------------------------------------------------------------

    def _send_down(self, lot: int, chance: random.Random, liars: list[Liar], *, cut: bool) -> None:
        self._listen(liars)
        markers = [marker for liar in self._liars for marker in liar.markers.values()]
        messages = lot_of_messages(self._seed, lot, BATCH, list(dict.fromkeys(markers)))
        middle = chance.randrange(BATCH) if cut else -1
        for number, message in enumerate(messages):
            if number == middle:
                liars[0].break_off(chance)
            expected, slack = counted(message)
            self._expected += expected
            self._slack += slack
            liars[number % len(liars)].socket.send_multipart(message)
        self.figures["frames"] += len(messages)
        if cut:
            self.figures["cuts"] += 1
            self._slack += liars[0].wait_for_readers()
        self._send_good(liars)

    def _listen(self, liars: list[Liar]) -> None:
        """Let these liars answer new markers, before they send their good message.

        The reader of all topics receives each answer.
        """
        self._expected += sum([liar.listen() for liar in liars])

    def _send_good(self, liars: list[Liar]) -> None:
        """Send a good message that each reader must handle, then compare the counters."""
        waiting: dict[tuple[int, int], Liar] = {}
        for liar in liars:
            self._number += 1
            liar.socket.send(good(self._number))
            waiting |= {(reader, self._number): liar for reader in range(READERS)}
            self._expected += 1
        deadline = time.monotonic() + PATIENCE
        while waiting:
            if not self._reports.poll(2_000):
                assert time.monotonic() < deadline, f"the good messages {sorted(waiting)} were not handled"
                self._send_again(waiting)
                continue
            told = json.loads(self._reports.recv())
            waiting.pop((told["reader"], told["good"]), None)
            assert not told["faults"], told["faults"]
            self.rss = told["rss"]
            if not told["reader"]:
                self.stats = told["stats"]
        self._compare()
        self._listener.read(PUBLISHED * len(liars))

    def _send_again(self, waiting: dict[tuple[int, int], Liar]) -> None:
        """Send the good message again over connections that were cut.

        A reader cuts a liar that was silent for long, and then loses the messages in flight.
        """
        for number, liar in {(number, liar) for (_, number), liar in waiting.items() if liar.is_cut()}:
            self._again += liar.listen() + 1  # they may arrive after this lot has been counted
            liar.socket.send(good(number))

    def _compare(self) -> None:
        """Compare the sent and received counts; only a cut connection may lose some."""
        received = self.stats["received"]
        cut = sum([liar.was_cut() for liar in self._liars])
        if cut:
            self.figures["lots with a cut"] += 1
        most = self._expected + self._slack + self._again
        assert received <= most, f"sent {self._expected} (and {self._slack + self._again}), received {received}"
        assert cut or received >= self._expected, f"sent {self._expected} (and {self._slack}), received {received}"
        self.figures["lost in cuts"] += max(self._expected - received, 0)
        self._expected, self._slack = received, 0

    # -- to the publisher ---------------------------------------------------------------------------------

    def _send_up(self, lot: int, liars: list[Liar]) -> None:
        if self._uploads % FRESH_EACH == 0:
            self._replace_peers()
        self._uploads += 1
        messages = lot_of_subscriptions(self._seed, lot, BATCH, self._listener.epoch)
        for number, message in enumerate(messages):
            self._peers[number % len(self._peers)].send_multipart(message)
        self.figures["frames"] += len(messages)
        self.figures["frames to the publisher"] += len(messages)
        self._listener.ask()
        self._listen(liars)
        self._send_good(liars)

    def _replace_peers(self) -> None:
        for peer in self._peers:
            peer.close(0)
        self._peers = [self._context.socket(zmq.XSUB) for _ in range(2)]
        for peer in self._peers:
            peer.set(zmq.SNDHWM, 0)
            peer.set(zmq.RCVHWM, 10)  # nothing reads its incoming messages
            peer.connect(self._publish)

    def end(self) -> None:
        """Stop the victim; it must exit with 0 and report no fault."""
        code = self.victim.end(signal.SIGINT)
        assert code == 0, f"the victim ended with {code}: {self.victim.err[-20:]}"
        failures = [line for line in self.victim.err if "Traceback" in line or "Unhandled" in line]
        assert not failures, f"{len(failures)} exceptions in the log: {self.victim.err[-40:]}"
        last = json.loads(self.victim.out[-1])
        assert not last["faults"], last["faults"]


def play(
    frames: int,
    seed: int,
    *,
    lot: int = 0,
    minutes: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Send ``frames`` frames, beginning with ``lot``; return the figures.

    The run ends early after ``minutes``, or when ``stopped()`` is true.

    Raises:
        AssertionError: a check failed; the text names the seed and the lot.
    """
    began, first, last = time.monotonic(), lot, lot + -(-frames // BATCH)
    early = 0.0
    with ExitStack() as stack:
        attack = Attack(stack, seed)
        if frames >= WARM:
            attack.fill_caches()
        try:
            while lot < last and not stopped():
                elapsed = time.monotonic() - began
                if minutes and elapsed > 60 * minutes:
                    break
                attack.play(lot)
                lot += 1
                sent = (lot - first) * BATCH
                if not early and (sent * 10 >= frames or (minutes and elapsed > 6 * minutes)) and sent >= WARM:
                    early = attack.rss
            attack.end()
        except AssertionError as error:
            died = attack.victim.process.poll()
            raise AssertionError(f"seed {seed}, lot {lot}, victim's exit code {died}: {error}") from error
    grown = attack.rss - early if early else 0.0
    assert grown < GROWTH, f"memory grew from {early:.1f} to {attack.rss:.1f} MB"
    took = time.monotonic() - began
    counters = {name: value for name, value in attack.stats.items() if isinstance(value, int)}
    return {
        **counters,
        **attack.figures,
        "frames a second": round(attack.figures["frames"] / took),
        "MB after a tenth": round(early, 1),
        "MB at the end": round(attack.rss, 1),
        "next lot": lot,
    }


def main() -> None:
    """Send all frames; print the counters, and the lot to continue with."""
    parser = argparse.ArgumentParser(prog="python -m chaos.nonsense", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lot", type=int, default=0, help=f"first lot, of {BATCH} frames each (default 0)")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    options = parser.parse_args()
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    found = play(options.frames, options.seed, lot=options.lot, minutes=options.minutes, stopped=interrupted.is_set)
    print(json.dumps(found))
    done = (found["next lot"] - options.lot) * BATCH
    if done < options.frames:
        print(f"{done} of {options.frames} frames: continue with --seed {options.seed} --lot {found['next lot']}")


if __name__ == "__main__":
    sys.exit(main())
