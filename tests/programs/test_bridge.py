"""A bridge from [topic, JSON] to typed, tracked messages, with dead letters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs.terminal import commands, ended
from zroute.messages.codecs import MSGPACK
from zroute.testing import TestApp

Example = Callable[[str], Any]


def test_what_the_feed_says_goes_on_typed(test_app: Callable[..., TestApp], example: Example) -> None:
    """The bridge republishes [topic, JSON] as a tracked msgpack object and ignores unknown fields."""
    bridge = example("bridge")
    t = test_app(bridge.app)
    t.receive(b"temp.kitchen", b'{"celsius": 21.5, "battery": 80}')
    t.receive(b"temp.attic", b'{"celsius": 30}')
    assert t.published("rooms.*.temperature") == [
        bridge.Temperature("kitchen", 294.65),
        bridge.Temperature("attic", 303.15),
    ]
    sent = t.envelopes("rooms.>")
    assert [envelope.topic for envelope in sent] == ["rooms.kitchen.temperature", "rooms.attic.temperature"]
    assert {(envelope.codec, envelope.tracked) for envelope in sent} == {(MSGPACK.number, True)}
    assert t.published("dead.>") == []


@pytest.mark.parametrize(
    ("frames", "why", "reason"),
    [
        ((b"temp.kitchen", b'{"celsius": "warm"}'), "unreadable", "Expected `float`, got `str`"),
        ((b"temp.kitchen", b'{"battery": 80}'), "unreadable", "missing required field `celsius`"),
        ((b"temp.kitchen", b'{"celsius": -300}'), "unreadable", "-273.15"),
        ((b"temp.kitchen", b"warm"), "unreadable", "malformed"),
        ((b"temp.kitchen", b""), "unreadable", "truncated"),
        ((b"temp.kitchen",), "unreadable", "no NUL after the topic"),
        ((b"temp.kitchen.floor", b"{}"), "unknown", "no such topic"),
        ((b"temp.\xff\xfe", b"{}"), "unreadable", "not UTF-8"),
    ],
)
def test_what_can_not_go_on_becomes_a_dead_letter(
    test_app: Callable[..., TestApp], example: Example, frames: tuple[bytes, ...], why: str, reason: str
) -> None:
    """The bridge publishes an invalid message unchanged, with the reason, and handles the next one."""
    bridge = example("bridge")
    t = test_app(bridge.app)
    t.receive(*frames)
    t.receive(b"temp.kitchen", b'{"celsius": 0}')
    (letter,) = t.published("dead.>", bridge.DeadLetter)
    assert letter.frames == list(frames)
    assert reason in letter.reason
    assert [envelope.topic for envelope in t.envelopes()] == [f"dead.{why}", "rooms.kitchen.temperature"]


@pytest.mark.usefixtures("network")
def test_as_its_docstring_says(folder: Path) -> None:
    """With a feed, the bridge and a reader in three processes, the good message and the dead letter arrive."""
    run, tail, good, bad = commands(folder, "bridge.py")
    with run.start() as bridge, tail.start("--json") as reader:
        for feed, topic in ((good, "rooms.kitchen.temperature"), (bad, "dead.unreadable")):
            with feed.start(
                "--every", "100ms", "--wait", "60s"
            ) as feeding:  # repeats, because the reader may not have joined yet
                reader.line_with(topic)
                ended(feeding)
        ended(reader)
        ended(bridge)
    seen = {envelope["topic"]: envelope for envelope in map(json.loads, reader.out)}
    assert seen["rooms.kitchen.temperature"]["body"] == {"room": "kitchen", "kelvin": 294.65}
    assert seen["rooms.kitchen.temperature"]["codec"] == "msgpack"
    assert seen["rooms.kitchen.temperature"]["tracked"] is True
    assert "$.celsius" in seen["dead.unreadable"]["body"]["reason"]
