"""The version before recovery beside this one, in both directions.

The conversation was recorded with that version: each subscription, each published message, and all frames. Here, one
end is replaced by the end of this version, with everything that the earlier version did not have.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.pure import Wired
from tests.support import wire_vectors
from zroute import App, Envelope, History
from zroute.clock import TICK
from zroute.messages.control import FAREWELL, MARKER, parse_marker
from zroute.messages.recovery import BOX
from zroute.messages.wire import HEADER_SIZE, NUL, Kind, parse_header
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.publishing.snapshots import SnapshotCalls, Snapshots

STEPS = wire_vectors()["before_recovery"]
LOG = logging.getLogger("zroute.tests")
START = 1_700_000_000
FLAGS = HEADER_SIZE + 4  # the offset of the flags of a statement, behind the topic
HISTORY_AND_SNAPSHOTS = 0x06


def frames_of(step: dict[str, Any]) -> list[bytes]:
    """Return the frames that the publisher sent in a step."""
    return [bytes.fromhex(frame) for frame in step["frames"]]


class Publisher:
    """A publisher of this version with a history and snapshots, and the frames that it sends."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.frames: list[bytes] = []
        queue = SendQueue(self.clock, limit=1000, timeout=30, lost=lambda *_: None)
        name = "desk@host tcp://*:5556"
        self.session = PublisherSession(self.clock, queue, self.send, self.now_ns, "desk", name, LOG)
        self.ring = self.session.ring(History(messages=100))
        kept, ignore = self.session.kept, lambda *_: None
        calls = SnapshotCalls(ignore, lambda topic: False, lambda topic: None, ignore, ignore, kept.add_state, ignore)
        kept.snapshots = Snapshots(self.clock, self.now_ns, 1000, (), calls)

    def now_ns(self) -> int:
        return round((START + self.clock.seconds()) * 1e9)

    def send(self, frame: bytes) -> bool:
        self.frames.append(frame)
        return True

    def publish(self, step: dict[str, Any]) -> None:
        """Publish a message, or several in a frame."""
        topic, codec = bytes.fromhex(step["topic"]), step["codec"]
        bodies = [bytes.fromhex(body) for body in step["bodies"]]
        one = self.session.framer(self.now_ns, keeps=step["keeps"])
        several = self.session.coalesced_framer(keeps=False)
        frame = (
            several(topic, codec, bodies, self.now_ns())
            if len(bodies) > 1
            else one(topic, codec, bodies[0], step["headers"])
        )
        assert isinstance(frame, bytes)
        self.ring.keep(frame)
        self.send(frame)
        if step["keeps"]:
            self.session.kept.keep(topic, codec, bodies[0], step["headers"], self.now_ns())

    def play(self, step: dict[str, Any]) -> None:
        """Do what the publisher of the earlier version did in a step."""
        if step["kind"] in ("subscribe", "withdraw"):
            self.session.subscription(bytes.fromhex(step["topic"]), step["kind"] == "subscribe")
        elif step["kind"] == "publish":
            self.publish(step)
        elif step["kind"] == "tick":
            self.clock.advance(TICK)
        else:
            assert step["kind"] == "goodbye"
            self.session.goodbye()


def test_a_reader_of_an_earlier_version_receives_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher with a history and snapshots sends the same frames, except for two flags that readers ignore."""
    epoch = parse_header(frames_of(STEPS[0])[0].partition(NUL)[2]).epoch
    monkeypatch.setattr(secrets, "randbits", lambda bits: epoch)
    publisher, kinds = Publisher(), set[Kind]()
    for step in STEPS:
        publisher.play(step)
        for frame, before in zip(publisher.frames, frames_of(step), strict=True):
            topic, _, rest = before.partition(NUL)
            kind = parse_header(rest).kind
            if kind in (Kind.JOIN, Kind.GOODBYE):
                at = len(topic) + 1 + FLAGS
                assert frame[at] == before[at] | HISTORY_AND_SNAPSHOTS
                assert frame[:at] + before[at : at + 1] + frame[at + 1 :] == before
            else:
                assert frame == before
            kinds.add(kind)
        publisher.frames.clear()
    assert kinds == set(Kind)


class Network:
    """The connection of a subscriber to a publisher of the earlier version."""

    peers = 1
    links = frozenset({1})
    came_by = None

    def __init__(self) -> None:
        self.wanted: list[bytes] = []
        self.told: list[bytes] = []

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        before, self.wanted = self.wanted, list(subscriptions)
        self.told += [each for each in self.wanted if each not in before]

    def request(self, topic: bytes) -> None:
        raise AssertionError(f"a publisher that does not answer requests was asked {topic!r}")

    def resubscribe(self, subscriptions: Iterable[bytes]) -> None:
        raise AssertionError("no subscription is missing")

    def read_soon(self) -> None: ...

    def emptied(self) -> bool:
        return True

    def listen_closely(self, closely: bool) -> None: ...

    def heard(self) -> set[int]:
        return set()

    def dialled(self, link: int) -> None: ...

    def cut(self, link: int) -> None: ...


@pytest.mark.parametrize("period", [1, 3, 1000])
def test_a_publisher_of_an_earlier_version_is_never_asked(monkeypatch: pytest.MonkeyPatch, period: int) -> None:
    """With recover and since, its losses are counted exactly, `ready` does not wait, and its goodbye is confirmed.

    The network loses every message, each third one, or none.
    """
    subscriptions = (b"last.", b"orders.")
    begin = next(at for at, step in enumerate(STEPS) if bytes.fromhex(step.get("topic", "")).startswith(MARKER))
    marker = parse_marker(bytes.fromhex(STEPS[begin]["topic"]))
    monkeypatch.setattr(secrets, "randbits", lambda bits: marker.subscriber)
    app, network, live, ready = App(name="reader", recover=True), Network(), list[int](), list[None]()

    def handle(number: int, envelope: Envelope) -> None:
        if envelope.origin != "kept":
            live.append(number)

    for prefix in subscriptions:
        app.subscribe(f"{prefix.decode()}{{name}}", since="all")(handle)
    wired = Wired(app)
    wired.accounts.listen(network, subscriptions)
    wired.accounts.ready(None, state=True).addCallback(ready.append)
    wired.clock.advance(0)
    assert marker.topic in network.told  # the recorded statement answers this marker
    sent = lost = 0
    for step in STEPS[begin:]:
        if step["kind"] == "tick":
            wired.clock.advance(TICK)
        for frame in frames_of(step):
            many = len(step.get("bodies", ()))
            if not any(frame.startswith(each) for each in network.wanted):
                continue
            sent += many
            if many and sent % period < many:
                lost += many
            else:
                wired.feed(frame)
    assert (sent, len(live) + lost, len(ready)) == (8, 8, 1)
    assert bool(lost) == (period < 1000)
    assert bool(live) == (period > 1)
    stats = wired.stats
    assert (stats.lost, stats.unknown_losses, stats.recovered, stats.replayed) == (lost, 0, 0, 0)
    assert (stats.malformed, stats.duplicate, stats.joins) == (0, 0, 1)
    assert wired.balanced()
    assert [topic[:5] for topic in network.told].count(BOX) == 1
    assert network.told[-1].startswith(FAREWELL)
