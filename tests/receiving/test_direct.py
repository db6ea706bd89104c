"""The closure of a topic with one publisher: it must treat each frame as the closures behind the header would."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.pure import Wired
from zroute import App
from zroute.messages.codecs import JSON
from zroute.messages.control import Statement
from zroute.messages.wire import FIXED, HEADER_SIZE, Kind, pack_head
from zroute.receiving.topic_cache import TopicCache

TOPIC, PREFIX, MARKER = b"a.x", b"a.", b"marker"
HEADS = [pack_head(kind=Kind.DATA, codec=JSON.number, span=len(PREFIX), epoch=epoch) for epoch in (1, 2)]
BODIES = (b"1", b"-7", b'"no number"', b"[", b"", b"\xff", b"18446744073709551616")

tracked_frames = st.builds(
    lambda head, number, body: TOPIC + b"\0" + FIXED.pack(HEADS[head], number, 1) + body,
    st.sampled_from([0] * 9 + [1]),
    st.integers(0, 5),
    st.sampled_from((b"1",) * 5 + BODIES),
)
frames = st.lists(
    tracked_frames
    | tracked_frames
    | st.sampled_from(BODIES).map(lambda body: TOPIC + b"\0" + body)
    | st.builds(lambda frame, end: frame[:end], tracked_frames, st.integers(4, 5 + HEADER_SIZE)),
    max_size=20,
)


def outcome(received: list[bytes], *, direct: bool) -> tuple[Any, ...]:
    """Return the handled messages and all counters, with or without direct closures."""
    app, got = App(codec="json"), []

    @app.subscribe("a.{name}")
    def handle(message: int, name: str) -> None:
        got.append((message, name))
        if message < 0:
            raise ValueError(message)

    with pytest.MonkeyPatch.context() as patch:
        if not direct:
            patch.setattr(TopicCache, "direct_of", lambda *_: None)
        wired = Wired(app)
        tracker = wired.accounts._tracker
        tracker.subscribe([PREFIX])
        tracker.join(MARKER, 0.0)
        for epoch in (1, 2):
            tracker.stated(epoch, MARKER, Statement(0, 1, f"p{epoch}", False, ((PREFIX, 0),)))
        waiting = iter(received)
        wired.table.receive(lambda _flags: next(waiting), lambda: 0, len(received))
    stats = wired.stats
    counters = stats.received, stats.routed, stats.malformed, stats.lost, stats.duplicate, stats.control
    return got, counters, [attrs.asdict(route) for route in stats.routes.values()]


GAP_AND_DUPLICATES = [TOPIC + b"\0" + FIXED.pack(HEADS[0], number, 1) + b"1" for number in (1, 2, 5, 5, 3, 6)]


@given(frames)
@example(GAP_AND_DUPLICATES)
@settings(max_examples=100)
def test_a_direct_closure_treats_all_frames_as_the_other_closures_do(received: list[bytes]) -> None:
    """Messages, losses, duplicates and malformed frames are equal with and without direct closures."""
    assert outcome(received, direct=True) == outcome(received, direct=False)


def test_a_direct_closure_serves_one_publisher_only() -> None:
    """A direct closure serves one publisher, and a search the heads of several."""
    app = App(codec="json")

    @app.subscribe("a.{name}")
    def handle(message: int, name: str) -> None: ...

    wired = Wired(app)
    cache = wired.table._entries
    for head, searched in ((0, False), (0, False), (1, True)):
        frame = iter([TOPIC + b"\0" + FIXED.pack(HEADS[head], 0, 1) + b"1"])
        wired.table.receive(lambda _flags, frame=frame: next(frame), lambda: 0, 1)
        assert TOPIC in cache.direct
        assert (TOPIC in cache.tracked) is searched
    assert list(cache.tracked[TOPIC]) == HEADS
    wired.table.forget_accounts()
    assert not cache.direct


def test_a_direct_closure_does_not_deliver_a_header_without_a_body() -> None:
    """A header without a body takes the slow path, which sees that the message has a further part, and refuses it."""
    app, got = App(codec="raw"), []

    @app.subscribe("a.{name}")
    def handle(message: bytes, name: str) -> None:
        got.append(message)

    wired = Wired(app)
    header = TOPIC + b"\0" + FIXED.pack(HEADS[0], 0, 1)
    parts, more = iter([header + b"1", header, b"2"]), iter([0, 1, 0])
    wired.table.receive(lambda _flags: next(parts), lambda: next(more), 2)
    assert got == [b"1"]
    assert (wired.stats.received, wired.stats.malformed) == (2, 1)


def test_a_known_head_makes_no_other_head_leave_a_full_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty bodies take the slow path again and again, but the topic's other publishers stay known."""
    monkeypatch.setattr("zroute.receiving.topic_cache.PUBLISHERS_KEPT", len(HEADS))
    app = App()

    @app.subscribe("a.{name}")
    def handle(name: str) -> None: ...

    frames = [TOPIC + b"\0" + FIXED.pack(head, 0, 1) + b"1" for head in HEADS]
    wired = Wired(app).feed(*frames, *[frames[1][:-1]] * 3)
    assert wired.stats.handled == 5
    assert list(wired.table._entries.tracked[TOPIC]) == HEADS


def handle_body(message: int) -> None:
    """Handle a message."""


def handle_capture(message: int, name: str) -> None:
    """Handle a message with a captured segment."""


def new_topics(handler: Callable[..., None], wire: str) -> tuple[Wired, list[bytes]]:
    """Return an app that knows the handler and its publisher, and the first messages of 200 further topics."""
    app = App(codec="json")
    app.add_route(handler, "a.{name}")
    wired = Wired(app)
    header = FIXED.pack(HEADS[0], 0, 1) if wire == "tracked" else b""
    wired.feed(b"a.first\0" + header + b"1")
    return wired, [b"a.%05d\0" % number + header + b"1" for number in range(200)]


@pytest.mark.parametrize(("handler", "most"), [(handle_body, 7), (handle_capture, 8)])
@pytest.mark.parametrize("wire", ["plain", "tracked"])
def test_a_topic_adds_few_objects(wire: str, handler: Callable[..., None], most: int) -> None:
    """The garbage collector visits all objects of all topics, so a topic has few.

    These are the entry, the routes, the route, and the closure with its cells; and one for constant arguments.
    """
    wired, frames = new_topics(handler, wire)
    gc.collect()
    before = len(gc.get_objects())
    wired.feed(*frames)
    gc.collect()
    assert len(gc.get_objects()) - before <= most * len(frames) + 20


@pytest.mark.parametrize(("handler", "plain", "tracked"), [(handle_body, 40, 43), (handle_capture, 47, 50)])
def test_the_first_message_of_a_topic_takes_few_calls(handler: Callable[..., None], plain: int, tracked: int) -> None:
    """A cache miss runs few Python functions, of which each takes a tenth of a microsecond or more."""
    for wire, most in (("plain", plain), ("tracked", tracked)):
        wired, frames = new_topics(handler, wire)
        calls = 0

        def count(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            wired.feed(*frames)
        finally:
            sys.setprofile(None)
        assert calls / len(frames) <= most, wire
