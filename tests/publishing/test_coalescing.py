"""Coalescing: messages in one turn share a frame, and a single message has no delay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from threading import Thread, get_ident
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zroute import App, Coalesce, EncodeError, SignatureError, WrongThreadError
from zroute.errors import HighWaterMarkError
from zroute.options import COALESCED, COALESCED_BYTES
from zroute.publishing.coalescer import Coalescer, Held
from zroute.publishing.publication import DONE, Emit
from zroute.publishing.send_queue import Sent
from zroute.stats import Stats

A, B = b"a", b"b"


class Publisher:
    """A coalescer on a test clock; `went` has the sent frames as (topic, codec, bodies)."""

    def __init__(self, *, limit: int = 1 << 20, waits: bool = False) -> None:
        self.clock, self.stats = Clock(), Stats()
        self.went: list[tuple[bytes, int, list[bytes]]] = []
        self.headers: list[Mapping[str, Any] | None] = []
        self.batches: list[Held] = []
        self.now_ns = 0
        self.room = 10**9
        self.limit = limit
        self.thread = get_ident()
        self.on_send: Callable[[], object] = lambda: None
        self.coalescer = Coalescer(
            self.clock,
            lambda: self.now_ns,
            self.stats,
            limit=limit,
            check=self.check,
            hold=self.hold if waits else None,
            send=self.send,
        )

    def check(self, topic: bytes, body: bytes) -> None:
        if get_ident() != self.thread:
            raise WrongThreadError("from another thread")
        if len(body) > self.limit:
            raise EncodeError("too large")

    def emit(self, topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        self.check(topic, body)
        self.went.append((topic, number, [body]))
        self.headers.append(headers)
        self.stats.published += 1
        return DONE

    def hold(self, topic: bytes, held: Held, more: int) -> Awaitable[None]:
        if more >= self.room:
            raise HighWaterMarkError("full")
        if held.sent is None:
            held.sent = Sent(partial(self.coalescer.send_now, topic, held))
        sent: Sent = held.sent
        return sent

    def send(self, topic: bytes, held: Held) -> None:
        self.went.append((topic, held.codec, list(held.bodies)))
        self.batches.append(held)
        if held.sent is not None:
            held.sent.end(None)
        self.on_send()

    def together(self, **how: Any) -> Emit:
        return self.coalescer.together(Coalesce(**how), self.emit)

    @property
    def bodies(self) -> list[bytes]:
        """Return all sent messages in order."""
        return [body for _, _, bodies in self.went for body in bodies]


def publish(emit: Emit, *bodies: bytes, topic: bytes = A, codec: int = 2) -> list[Awaitable[None]]:
    """Return the messages of all frames in order."""
    return [emit(topic, codec, body, None) for body in bodies]


def test_the_first_goes_at_once_and_the_rest_at_the_end_of_the_turn() -> None:
    """The first message is sent at once; the others of the same turn share one frame."""
    publisher = Publisher()
    emit = publisher.together()
    assert publish(emit, b"1") == [DONE]
    assert publisher.went == [(A, 2, [b"1"])]
    publisher.now_ns = 70
    assert publish(emit, b"2", b"3") == [DONE, DONE]
    assert len(publisher.went) == 1
    publisher.clock.advance(0)
    assert publisher.went[1:] == [(A, 2, [b"2", b"3"])]
    assert publisher.batches[0].at == 70
    publish(emit, b"4")
    assert publisher.went[2:] == [(A, 2, [b"4"])]
    assert publisher.stats.published == 4


def test_topics_do_not_hold_each_other() -> None:
    """Each topic has its own first message and its own frame."""
    publisher = Publisher()
    emit = publisher.together()
    publish(emit, b"1", b"2", b"3")
    publish(emit, b"4", b"5", topic=B)
    publisher.clock.advance(0)
    assert publisher.went == [(A, 2, [b"1"]), (B, 2, [b"4"]), (A, 2, [b"2", b"3"]), (B, 2, [b"5"])]
    assert not publisher.clock.getDelayedCalls()


def test_with_seconds_they_are_held_for_so_long() -> None:
    """With seconds=, messages of several turns share one frame."""
    publisher = Publisher()
    emit = publisher.together(seconds=0.0625)
    publish(emit, b"1", b"2")
    publisher.clock.advance(0.03125)
    publish(emit, b"3")
    assert publisher.bodies == [b"1"]
    publisher.clock.advance(0.03125)
    assert publisher.went[1:] == [(A, 2, [b"2", b"3"])]
    assert not publisher.clock.getDelayedCalls()


def test_publications_with_windows_of_their_own() -> None:
    """Windows of different lengths end independently."""
    publisher = Publisher()
    publish(publisher.together(seconds=0.01), b"1", b"2")
    publish(publisher.together(), b"3", b"4", topic=B)
    publisher.clock.advance(0)
    assert publisher.bodies == [b"1", b"3", b"4"]
    publisher.clock.advance(0.01)
    assert publisher.bodies == [b"1", b"3", b"4", b"2"]


def test_so_many_messages_are_a_frame_before_the_turn_ends() -> None:
    """A burst is sent during publishing, 100 messages at a time, so memory stays small."""
    publisher = Publisher()
    publish(publisher.together(), *(b"%d" % number for number in range(2 * COALESCED + 11)))
    assert [len(bodies) for _, _, bodies in publisher.went] == [1, COALESCED, COALESCED]
    publisher.clock.advance(0)
    assert [len(bodies) for _, _, bodies in publisher.went] == [1, COALESCED, COALESCED, 10]
    assert publisher.bodies == [b"%d" % number for number in range(2 * COALESCED + 11)]


def test_so_many_bytes_are_a_frame_too() -> None:
    """A frame has up to 64,000 bytes; a message that does not fit begins the next frame."""
    publisher = Publisher()
    half = b"x" * (COALESCED_BYTES // 2)
    publish(publisher.together(), b"1", half, half, half, b"2")
    publisher.clock.advance(0)
    assert [bodies for _, _, bodies in publisher.went] == [[b"1"], [half, half], [half, b"2"]]


def test_a_large_message_goes_alone_and_in_its_place() -> None:
    """A message over the limit is sent at once, after the held messages."""
    publisher = Publisher()
    large = b"x" * (COALESCED_BYTES + 1)
    publish(publisher.together(), b"1", b"2", large, b"3", b"4")
    publisher.clock.advance(0)
    assert [bodies for _, _, bodies in publisher.went] == [[b"1"], [b"2"], [large], [b"3", b"4"]]


def test_another_codec_begins_another_frame() -> None:
    """A message in another codec begins a new frame."""
    publisher = Publisher()
    emit = publisher.together()
    publish(emit, b"1", b"2", b"3")
    publish(emit, b"4", b"5", codec=1)
    publish(emit, b"6")
    publisher.clock.advance(0)
    assert publisher.went == [(A, 2, [b"1"]), (A, 2, [b"2", b"3"]), (A, 1, [b"4", b"5"]), (A, 2, [b"6"])]


def test_a_message_with_headers_travels_alone_and_in_its_place() -> None:
    """A message with headers has its own frame, after the held messages."""
    publisher = Publisher()
    emit = publisher.together()
    publish(emit, b"1", b"2")
    emit(A, 2, b"3", {"trace": 1})
    publish(emit, b"4")
    publisher.clock.advance(0)
    assert [bodies for _, _, bodies in publisher.went] == [[b"1"], [b"2"], [b"3"], [b"4"]]
    assert publisher.headers == [None, {"trace": 1}]


def test_what_travels_alone_never_passes_what_is_held() -> None:
    """A publication without coalescing on a shared topic keeps the order."""
    publisher = Publisher()
    together, alone = publisher.together(), publisher.coalescer.alone(publisher.emit)
    publish(alone, b"0")
    publish(together, b"1", b"2", b"3")
    publish(alone, b"4", b"5")
    publish(alone, b"6", topic=B)
    publish(together, b"7")
    publisher.clock.advance(0)
    assert publisher.bodies == [b"%d" % number for number in range(8)]


def test_a_message_that_is_refused_leaves_what_is_held() -> None:
    """publish raises the error of its own message, and the other messages are sent."""
    publisher = Publisher(limit=10)
    emit = publisher.together()
    for bodies in ([b"x" * 11], [b"1", b"2", b"3"]):
        for body in bodies:
            if len(body) > 10:
                with pytest.raises(EncodeError):
                    publish(emit, body)
            else:
                publish(emit, body)
    with pytest.raises(EncodeError):
        publish(emit, b"x" * 11)
    publish(emit, b"4")
    publisher.clock.advance(0)
    assert [bodies for _, _, bodies in publisher.went] == [[b"1"], [b"2", b"3", b"4"]]
    assert publisher.stats.published == 4


def test_a_message_that_is_refused_opens_no_window() -> None:
    """If the first message is refused, no window opens."""
    publisher = Publisher(limit=10)
    emit = publisher.together()
    with pytest.raises(EncodeError):
        publish(emit, b"x" * 11)
    assert not publisher.clock.getDelayedCalls()
    publish(emit, b"1")
    assert publisher.bodies == [b"1"]


@pytest.mark.parametrize("form", ["first", "held", "alone"])
def test_another_thread_is_refused_before_anything_is_touched(form: str) -> None:
    """Publishing from a thread raises an error and sends nothing."""
    publisher = Publisher()
    emit, alone = publisher.together(), publisher.coalescer.alone(publisher.emit)
    if form != "first":
        publish(emit, b"1", b"2")
    errors: list[Exception] = []

    def work() -> None:
        try:
            publish(alone if form == "alone" else emit, b"3")
        except Exception as error:
            errors.append(error)

    went, timers = list(publisher.went), publisher.clock.getDelayedCalls()
    (thread := Thread(target=work)).start()
    thread.join()
    assert [type(error) for error in errors] == [WrongThreadError]
    assert (publisher.went, publisher.clock.getDelayedCalls()) == (went, timers)


def test_who_awaits_does_not_wait_for_the_end_of_the_turn() -> None:
    """With overflow="wait" the messages of a frame share one awaitable; awaiting it sends them."""
    publisher = Publisher(waits=True)
    first, second, third = publish(publisher.together(seconds=1.0), b"1", b"2", b"3")
    assert first is DONE
    assert second is third
    done: list[None] = []
    Deferred.fromCoroutine(_await(second)).addCallback(done.append)
    assert (done, publisher.went) == ([None], [(A, 2, [b"1"]), (A, 2, [b"2", b"3"])])
    Deferred.fromCoroutine(_await(third))
    assert len(publisher.went) == 2


async def _await(sent: Awaitable[None]) -> None:
    await sent


def test_who_awaits_each_message_may_publish_the_next_at_once() -> None:
    """Two coroutines that await each message in different codecs lose and repeat no message."""
    publisher = Publisher(waits=True)
    emit = publisher.together(messages=2)

    async def work(bodies: list[bytes], codec: int) -> None:
        for body in bodies:
            await emit(A, codec, body, None)

    Deferred.fromCoroutine(work([b"1", b"2", b"3"], 2))
    publish(emit, b"4")
    Deferred.fromCoroutine(work([b"\x05", b"\x06"], 1))
    publish(emit, b"7")
    publisher.clock.advance(0)
    assert publisher.bodies == [b"1", b"2", b"3", b"4", b"\x05", b"\x06", b"7"]
    assert all((codec == 1) == (bodies[0] < b"\x07") for _, codec, bodies in publisher.went)
    assert publisher.stats.published == 7
    assert not publisher.clock.getDelayedCalls()


def test_no_more_is_held_than_may_wait() -> None:
    """If the queue is full, publish refuses the message and the held messages stay."""
    publisher = Publisher(waits=True)
    publisher.room = 2
    emit = publisher.together()
    publish(emit, b"1", b"2", b"3")
    with pytest.raises(HighWaterMarkError):
        publish(emit, b"4")
    publisher.clock.advance(0)
    publish(emit, b"5", b"6")
    publisher.clock.advance(0)
    assert publisher.bodies == [b"1", b"2", b"3", b"5", b"6"]


def test_messages_that_are_kept_say_so_whoever_opened_the_frame() -> None:
    """keep="last" keeps a message that shares a frame with those of another publication."""
    publisher = Publisher()
    emit = publisher.together()
    kept = publisher.coalescer.kept(emit)
    publish(emit, b"1", b"2")
    publish(kept, b"3")
    publisher.clock.advance(0)
    publish(emit, b"4", b"5")
    publisher.clock.advance(0)
    assert [held.keeps for held in publisher.batches] == [True, False]
    full = publisher.coalescer.kept(publisher.together(messages=2))
    publish(full, b"6", b"7", b"8")
    assert [held.keeps for held in publisher.batches] == [True, False, True]


def test_at_the_end_all_that_is_held_is_sent_and_nothing_is_held_any_more() -> None:
    """A stop sends the held messages, leaves no timer, and later messages are sent at once."""
    publisher = Publisher()
    turn, window = publisher.together(), publisher.together(seconds=0.5)
    publish(turn, b"1", b"2")
    publish(window, b"3", b"4", topic=B)
    publisher.coalescer.flush()
    assert publisher.bodies == [b"1", b"3", b"2", b"4"]
    assert not publisher.clock.getDelayedCalls()
    publish(turn, b"5", b"6", b"7")
    publish(window, b"8", topic=B)
    assert publisher.bodies[4:] == [b"5", b"6", b"7", b"8"]
    assert not publisher.clock.getDelayedCalls()
    publisher.coalescer.flush()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["together", "window", "alone", "kept", "headers", "turn", "time"]),
        st.sampled_from([A, B]),
        st.sampled_from([1, 2]),
        st.sampled_from([3, 3, 3, 40_000, 70_000]),
    ),
    max_size=40,
)


@given(ACTIONS)
def test_whatever_is_published_all_of_it_goes_once_and_in_order(actions: list[tuple[str, bytes, int, int]]) -> None:
    """Each topic keeps its order for any mix of publications, codecs, sizes and pauses."""
    publisher = Publisher()
    together = publisher.together(messages=4)
    emits = {
        "together": together,
        "window": publisher.together(seconds=0.01),
        "alone": publisher.coalescer.alone(publisher.emit),
        "kept": publisher.coalescer.kept(together),
        "headers": lambda topic, codec, body, _: together(topic, codec, body, {"x": 1}),
    }
    expected: dict[bytes, list[tuple[int, bytes]]] = {A: [], B: []}
    for number, (what, topic, codec, size) in enumerate(actions):
        if what in emits:
            body = (b"%d " % number).ljust(size, b"x")
            expected[topic].append((codec, body))
            emits[what](topic, codec, body, None)
        else:
            publisher.clock.advance(0.006 if what == "time" else 0)
    publisher.coalescer.flush()
    for topic in (A, B):
        sent = [(codec, body) for each, codec, bodies in publisher.went if each == topic for body in bodies]
        assert sent == expected[topic]
    assert all(sum(map(len, bodies)) <= COALESCED_BYTES or len(bodies) == 1 for _, _, bodies in publisher.went)
    assert publisher.stats.published == sum(map(len, expected.values()))
    assert not publisher.clock.getDelayedCalls()


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"seconds": -0.1},
        {"seconds": 1.1},
        {"messages": 1},
        {"messages": 1001},
        {"seconds": float("nan")},
        {"seconds": "1"},
        {"seconds": True},
    ],
)
def test_numbers_that_make_no_sense_are_refused(how: dict[str, Any]) -> None:
    """The error for a Coalesce out of range names the value and the line."""
    with pytest.raises(SignatureError, match=rf"test_coalescing.*coalesce=Coalesce\(.*\): .*{next(iter(how))}"):
        App(coalesce=Coalesce(**how))
    with pytest.raises(SignatureError, match=r"test_coalescing.*coalesce="):
        App().publisher("a", int, coalesce=Coalesce(**how))


@pytest.mark.parametrize("coalesce", [1, 0.01, "yes"])
def test_anything_but_true_false_and_coalesce_is_refused(coalesce: Any) -> None:
    """The error for an invalid coalesce= names the valid values and the line."""
    with pytest.raises(SignatureError, match=r"test_coalescing.*coalesce=.*Coalesce\(seconds=…, messages=…\)"):
        App(coalesce=coalesce)
    with pytest.raises(SignatureError, match=r"test_coalescing.*coalesce="):
        App().publisher("a", int, coalesce=coalesce)


@pytest.mark.parametrize(
    ("of_app", "own", "expected"),
    [
        (False, None, None),
        (True, None, Coalesce()),
        (True, False, None),
        (False, True, Coalesce()),
        (Coalesce(messages=7), None, Coalesce(messages=7)),
        (Coalesce(messages=7), Coalesce(seconds=0.5), Coalesce(seconds=0.5)),
    ],
)
def test_a_publication_says_it_for_itself(of_app: Any, own: Any, expected: Coalesce | None) -> None:
    """App(coalesce=…) is the default of publishers, and each may override it."""
    app = App(coalesce=of_app)
    publication = app.publisher("a", int, coalesce=own)
    assert app.compile().choices.coalesces(publication) == expected
    assert app.compile().choices.coalesces() == (Coalesce() if of_app is True else of_app or None)


def test_with_overflow_raise_it_is_an_error_that_names_the_line() -> None:
    """coalesce with overflow="raise" is refused at compile time."""
    app = App(overflow="raise")
    app.publisher("a", int)
    app.publisher("b", int, coalesce=True)
    with pytest.raises(SignatureError, match=r"test_coalescing\.py:\d+: coalesce can't be combined") as caught:
        app.compile()
    assert caught.value.parameter == "coalesce"
    with pytest.raises(SignatureError, match=r"test_coalescing\.py:\d+: coalesce can't be combined"):
        App(overflow="raise", coalesce=True).compile()
    fine = App(overflow="raise", coalesce=False)
    fine.publisher("a", int, coalesce=False)
    fine.compile()


# -- in a running app ------------------------------------------------------------------------------------


@attrs.frozen
class Tick:
    number: int
