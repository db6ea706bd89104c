"""publisher(history=…): which sent frames a running app keeps, and its answers to a raw subscriber."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import zmq

from tests.publishing.joined import Running, joined
from zroute import App, Coalesce, History
from zroute.clock import TICK
from zroute.errors import HighWaterMarkError
from zroute.messages.control import pack_marker, parse_statement
from zroute.messages.recovery import numbers_of, pack_box, pack_recovery_request, parse_recovery_answer
from zroute.messages.wire import NUL, Kind, parse_header

MANY = History(messages=1000)


def session(run: Running) -> Any:
    """Return the publisher's session of a running app."""
    return run.service._run._publisher.session  # type: ignore[union-attr]


def kept(run: Running) -> list[bytes]:
    """Return the frames in the histories of the app."""
    frames = []
    for ring in session(run)._histories._rings:
        ring.seal()
        frames += [frame for number in range(ring.first, ring.next) for frame in ring.block(number)]
    return frames


def received(run: Running) -> list[bytes]:
    """Return all frames that the subscriber has received."""
    frames = []
    while run.sub.poll(0):
        frames.append(run.sub.recv())
    return frames


def hear(run: Running) -> None:
    """Let the publisher read its subscriptions, and answer them."""
    assert run.service.transport is not None
    assert run.service.transport.pub is not None
    for _ in range(20):
        run.service.transport.pub.poke()  # this reactor watches no sockets
        run.turn()


def is_message(frame: bytes) -> bool:
    """Return True if a frame contains messages."""
    return parse_header(frame.partition(NUL)[2]).kind in (Kind.DATA, Kind.COALESCED)


@pytest.mark.parametrize("keep", [None, "last"])
@pytest.mark.parametrize("coalesce", [False, True, Coalesce(messages=2)])
@pytest.mark.parametrize("overflow", ["drop", "raise", "wait"])
def test_a_history_contains_the_frames_as_they_were_sent(overflow: Any, coalesce: Any, keep: Any) -> None:
    """On each path, the history has exactly the sent frames of its publisher, in their order."""
    if coalesce and overflow == "raise":
        pytest.skip("these two options are refused")
    context = zmq.Context()
    app = App(pub="inproc://unused", codec="json", overflow=overflow, coalesce=coalesce, context=context)
    orders = app.publisher("orders.{key}", history=MANY, keep=keep)
    one = app.publisher("one", int, history=MANY)
    text = app.publisher("text", str, history=MANY)
    plain = app.publisher("plain", int)
    with joined(app, context) as run:
        for number in range(7):
            orders.publish(number, key="a")
            orders.publish("x" * 5000, key="large")
            one.publish(number)
            text.publish("x" * 2_000 * number)
            plain.publish(number)
            app.publish("unkept", number)
        orders.publish(1, key="a", headers={"a": 1})
        run.turn()
        sent = [frame for frame in received(run) if is_message(frame)]
        assert len(sent) > 7
        expected = [frame for frame in sent if not frame.startswith((b"plain", b"unkept"))]
        assert sorted(kept(run)) == sorted(expected)
        for topic in (b"orders.", b"one", b"text"):
            assert [each for each in kept(run) if each.startswith(topic)] == [
                each for each in expected if each.startswith(topic)
            ]


def test_a_message_that_was_refused_is_not_in_the_history() -> None:
    """With a full queue, publish raises, and the history has no frame whose number will be used again."""
    context = zmq.Context()
    app = App(pub="inproc://unused", codec="json", overflow="raise", context=context)
    orders = app.publisher("orders", int, history=MANY)
    with joined(app, context, room=5) as run:
        with suppress(HighWaterMarkError):
            for number in range(100):
                orders.publish(number)
        numbers = [numbers_of(frame, 0)[0] for frame in kept(run)]
        assert 0 < len(numbers) < 100
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_publisher_with_a_history_answers_a_request() -> None:
    """A statement tells the history, and a request for lost numbers is answered at the box with the frames."""
    context = zmq.Context()
    app = App(pub="inproc://unused", codec="json", context=context)
    orders = app.publisher("orders", int, history=History(messages=3))
    with joined(app, context) as run:
        for number in range(5):
            orders.publish(number)
        run.clock.advance(TICK)
        sent = [frame for frame in received(run) if is_message(frame)]
        marker = pack_marker(7 << 16 | 1, [b""])
        run.sub.subscribe(marker)
        hear(run)
        answered, *_ = [frame for frame in received(run) if frame.startswith(marker)]
        assert parse_statement(answered.partition(NUL)[2][32:]).history
        request, _ = pack_recovery_request(7, 1, session(run).epoch, b"", [(2, 4)])
        run.sub.subscribe(pack_box(7))
        run.sub.subscribe(request)
        run.sub.unsubscribe(request)
        hear(run)
        answers = [frame for frame in received(run) if frame.startswith(pack_box(7))]
        answer = parse_recovery_answer(answers[0].partition(NUL)[2][32:])
        assert (answer.gone, answer.messages) == (((2, 2),), ((3, sent[2]), (4, sent[3])))


def test_a_publisher_without_a_history_says_so_and_answers_no_request() -> None:
    """A publisher without a history does not claim one in its statement."""
    context = zmq.Context()
    app = App(pub="inproc://unused", codec="json", context=context)
    orders = app.publisher("orders", int)
    with joined(app, context) as run:
        orders.publish(1)
        marker = pack_marker(7 << 16 | 1, [b""])
        run.sub.subscribe(marker)
        request, _ = pack_recovery_request(7, 1, session(run).epoch, b"", [(1, 1)])
        run.sub.subscribe(pack_box(7))
        run.sub.subscribe(request)
        hear(run)
        frames = received(run)
        answered, *_ = [frame for frame in frames if frame.startswith(marker)]
        assert not parse_statement(answered.partition(NUL)[2][32:]).history
        assert not [frame for frame in frames if frame.startswith(pack_box(7))]


def test_each_tick_enforces_the_bounds_of_the_histories() -> None:
    """Old messages leave the history by a timer, even if nothing is published or subscribed any more."""
    context = zmq.Context()
    app = App(pub="inproc://unused", codec="json", context=context)
    orders = app.publisher("orders", int, history=History(bytes=300))
    with joined(app, context) as run:
        for number in range(50):
            orders.publish(number)
        assert len(kept(run)) == 50
        run.clock.advance(TICK)
        assert 0 < len(kept(run)) < 5
