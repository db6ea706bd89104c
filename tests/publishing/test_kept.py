"""keep="last": a new subscriber receives the latest message of each topic once, first."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.running import Mailbox, running
from tests.support import PATIENCE
from zroute import App, Envelope, SignatureError, Topic
from zroute.messages.control import Marker, pack_marker, parse_marker
from zroute.options import KEPT_MAX
from zroute.publishing.retained import LastValue, LastValueCache


def marker(subscriber: int, attempt: int, *wanted: bytes) -> Marker:
    """Return a marker of a subscriber."""
    return parse_marker(pack_marker(subscriber << 16 | attempt, wanted))


def last(value: int) -> tuple[int, bytes, None, int]:
    """Return the arguments of a kept message: codec, body, headers and time."""
    return 1, b"%d" % value, None, value


@attrs.define
class Sent:
    """The messages sent to subscribers, at most ``room`` frames."""

    clock: Clock = attrs.field(factory=Clock)
    got: list[tuple[int, int, bytes, int | None]] = attrs.field(factory=list)
    room: int = 10**9
    said: int = 0

    def send(self, to: Marker, number: int, topic: bytes, message: LastValue | None) -> bool:
        """Send a message, as `zroute.publishing.retained.Send`."""
        if len(self.got) < self.room:
            self.got.append((to.subscriber, number, topic, message and message.sent_at))
            return True
        return False

    def say(self) -> None:
        """Record that the cache is full."""
        self.said += 1


def test_who_joins_is_given_the_latest_of_what_it_wants_and_told_the_end() -> None:
    """A join receives the latest message of each of its topics, numbered from 1."""
    sent = Sent()
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    for number, topic in enumerate([b"a.x", b"a.y", b"b.x", b"a.x"]):
        kept.keep(topic, *last(number))
    kept.join(marker(7, 1, b"a."))
    assert sent.got == [(7, 1, b"a.x", 3), (7, 2, b"a.y", 1), (7, 3, b"", None)]
    sent.clock.advance(0.01)
    assert not sent.clock.getDelayedCalls()


def test_a_newer_message_takes_the_place_of_a_kept_one_that_was_not_sent_yet() -> None:
    """A newer message arrives directly, so the older one is not sent after it."""
    sent = Sent(room=1)
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    kept.keep(b"a", *last(1))
    kept.keep(b"b", *last(2))
    kept.join(marker(7, 1, b""))
    kept.keep(b"b", *last(3))
    sent.room = 10
    sent.clock.advance(1)
    assert sent.got == [(7, 1, b"a", 1), (7, 2, b"", None)]


def test_who_asks_again_is_given_nothing_twice() -> None:
    """A new marker continues the walk of the previous one and adds its new topics."""
    sent = Sent(room=1)
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    for number, topic in enumerate([b"a.x", b"a.y", b"b.x"]):
        kept.keep(topic, *last(number))
    kept.join(marker(7, 1, b"a."))
    kept.join(marker(7, 2, b"a.", b"b."))
    sent.clock.advance(6)
    kept.leave(marker(7, 1, b"a."))
    sent.room = 10
    sent.clock.advance(1)
    kept.join(marker(7, 3, b"a.", b"b."))
    assert [topic for _, _, topic, _ in sent.got] == [b"a.x", b"a.y", b"b.x", b"", b""]
    assert [number for _, number, _, _ in sent.got] == [1, 2, 3, 4, 4]


def test_who_asks_again_and_again_is_told_the_end_all_the_same() -> None:
    """A subscriber that repeats its request during a long walk still reaches the end."""
    sent = Sent()
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    for number in range(20_000):
        kept.keep(b"t%05d" % number, *last(number))
    kept.join(marker(7, 1, b"t"))
    sent.clock.pump([0.01] * 110)
    assert len(sent.got) == 20_001
    for attempt in range(2, 5):
        kept.join(marker(7, attempt, b"t"))
        sent.clock.pump([0.01] * 3)
    assert sent.got[20_001:] == [(7, 20_001, b"", None)]


def test_who_asks_for_the_same_again_is_given_what_was_kept_meanwhile() -> None:
    """A repeated request sends messages that were kept since the first request."""
    sent = Sent(room=1)
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    for number, topic in enumerate([b"a.x", b"a.y"]):
        kept.keep(topic, *last(number))
    kept.join(marker(7, 1, b"a."))
    kept.keep(b"a.x", *last(8))
    kept.join(marker(7, 2, b"a."))
    kept.keep(b"a.y", *last(9))
    sent.room = 10
    sent.clock.advance(1)
    sent.clock.advance(1)
    assert sent.got == [(7, 1, b"a.x", 0), (7, 2, b"", None), (7, 2, b"a.x", 8), (7, 3, b"", None)]


@pytest.mark.parametrize(("seconds", "times"), [(0.01, 2), (6.0, 1)])
def test_what_was_sent_to_a_marker_that_is_withdrawn_at_once_is_sent_again(seconds: float, times: int) -> None:
    """Messages sent to an old marker that libzmq has repeated are sent again."""
    sent = Sent()
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    kept.keep(b"a", *last(1))
    old, new = marker(7, 1, b""), marker(7, 2, b"")
    kept.join(old)
    kept.join(new)
    sent.clock.advance(seconds)
    kept.leave(old)
    sent.clock.advance(1)
    assert [(number, topic) for _, number, topic, _ in sent.got if topic] == [(1, b"a")] * times
    assert sent.got[-1] == (7, 2, b"", None)


def test_many_who_join_are_served_in_turn_a_little_at_a_time() -> None:
    """Two subscribers to 1,000 topics are served side by side in short turns."""
    sent = Sent()
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    for number in range(1000):
        kept.keep(b"t%d" % number, *last(number))
    kept.join(marker(1, 1, b"t"))
    kept.join(marker(2, 1, b"t"))
    most = 0
    while sent.clock.getDelayedCalls():
        before = len(sent.got)
        sent.clock.advance(0.01)
        most = max(most, len(sent.got) - before)
    assert most <= 200
    for subscriber in (1, 2):
        assert [number for to, number, _, _ in sent.got if to == subscriber] == list(range(1, 1002))
    halves = [sum(to == 1 for to, *_ in sent.got[:1000]), sum(to == 2 for to, *_ in sent.got[:1000])]
    assert min(halves) >= 300


def test_who_has_gone_is_given_nothing() -> None:
    """A withdrawn marker ends the walk and leaves no timer."""
    sent = Sent(room=0)
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    kept.keep(b"a", *last(1))
    kept.join(marker(7, 1, b"a"))
    kept.join(marker(8, 1, b"a"))
    kept.leave(marker(7, 1, b"a"))
    kept.close()
    sent.room = 10
    sent.clock.advance(1)
    assert (sent.got, sent.clock.getDelayedCalls()) == ([], [])


def test_what_is_kept_is_bounded_and_it_is_said() -> None:
    """Beyond the maximum the oldest topic is dropped."""
    sent = Sent()
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    for number in range(KEPT_MAX + 5):
        kept.keep(b"t%d" % number, *last(number))
    assert sent.said == 1
    kept.join(marker(7, 1, b"t4"))
    sent.clock.pump([0.01] * 100)
    assert sent.got[0] == (7, 1, b"t40", 40)


@given(st.lists(st.tuples(st.sampled_from(["keep", "join", "room", "full", "tick"]), st.integers(0, 3)), max_size=60))
def test_whatever_happens_each_topic_comes_once_and_never_behind_a_newer_one(steps: list[tuple[str, int]]) -> None:
    """For random joins and messages, no topic arrives twice or after a newer message."""
    sent = Sent()
    kept = LastValueCache(sent.clock, sent.send, sent.say)
    wanted = [b"a", b"b", b"c", b"d"]
    published: dict[bytes, int] = {}
    joined: dict[int, int] = {}
    stream: list[tuple[int, bytes, int]] = []  # live messages as (number of frames sent before, topic, time)
    for now, (what, number) in enumerate(steps):
        if what == "keep":
            kept.keep(wanted[number], *last(now))
            published[wanted[number]] = now
            stream.append((len(sent.got), wanted[number], now))
        elif what == "join":
            kept.join(marker(number, now, *wanted))
            joined[number] = now
        elif what in ("room", "full"):
            sent.room = 10**9 if what == "room" else len(sent.got)
        else:
            sent.clock.advance(0.01)
    sent.room = 10**9
    sent.clock.advance(1)
    for subscriber, since in joined.items():
        given_it = [(at, topic, time) for at, (to, _, topic, time) in enumerate(sent.got) if to == subscriber and topic]
        for topic in wanted:  # a repeated request receives newer messages only
            times = [time for _, each, time in given_it if each == topic]
            assert times == sorted(set(times))  # type: ignore[type-var]
        for at, topic, time in given_it:
            assert time is not None
            assert time < since
            assert not [one for one in stream if one[1] == topic and one[0] <= at and one[2] > time]


@pytest_twisted.ensureDeferred
async def test_who_joins_a_stream_gets_no_message_twice(tmp_path: Path) -> None:
    """A message that arrives during the join is not sent again."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher = App(pub=endpoint)
    prices = publisher.publisher("prices.{symbol}", int, keep="last")
    numbers = count()

    @publisher.every(0.002)
    def publish() -> None:
        for _ in range(3):
            prices.publish(next(numbers), symbol="A")

    async with running(publisher):
        for _ in range(40):
            reader, box = App(sub=endpoint), Mailbox[int]()
            reader.add_route(box.put, "prices.*")
            async with running(reader):
                await reader.ready(1, timeout=PATIENCE)
                got = await box.until(10)
            assert got == sorted(set(got))


@pytest_twisted.ensureDeferred
async def test_what_is_attached_later_is_given_what_is_kept_of_it(tmp_path: Path) -> None:
    """An attached route receives kept messages, also when it is attached again."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher, reader = App(pub=endpoint), App(sub=endpoint)
    prices = publisher.publisher("prices.{symbol}", int, keep="last")
    box, others = Mailbox[int](), Mailbox[int]()
    for number in range(10):
        reader.add_route(others.put, f"prices.{'x' * 40}{number}")
    async with running(publisher), running(reader):
        for number in range(10):
            prices.publish(number, symbol=f"{'x' * 40}{number}")
        prices.publish(1, symbol="late")
        await reader.ready(1, timeout=PATIENCE)
        await others.until(10)
        attached = reader.attach("prices.late", box.put)
        assert await box.until(1) == [1]
        attached.close()
        await reader.ready(1, timeout=PATIENCE)
        publisher.publish("prices.late", 2)  # the latest of its topic, from any publisher
        reader.attach("prices.late", box.put)
        assert await box.until(2) == [1, 2]
        await reader.ready(1, timeout=PATIENCE)
        assert sorted(await others.until(10)) == list(range(10))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("overflow", ["drop", "raise", "wait"])
async def test_a_late_reader_gets_the_latest_price_of_each_symbol_and_then_the_stream(
    tmp_path: Path, overflow: Any
) -> None:
    """A kept message has topic, headers and mark; only new subscribers get it."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher = App(pub=endpoint, overflow=overflow)
    early, late = App(sub=endpoint), App(sub=endpoint)
    prices = publisher.publisher("prices.{symbol}", int, keep="last")
    others = publisher.publisher("others.{symbol}", int)
    boxes = [Mailbox[tuple[str, int, bool, Any]](), Mailbox[tuple[str, int, bool, Any]]()]

    def reading(app: App, box: Mailbox[tuple[str, int, bool, Any]]) -> None:
        @app.subscribe(">")
        def handle(price: int, topic: Topic, envelope: Envelope) -> None:
            box.put((str(topic), price, envelope.kept, envelope.headers.get("n")))

    reading(early, boxes[0])
    reading(late, boxes[1])
    async with running(publisher), running(early):
        await prices.wait_for_subscribers(timeout=PATIENCE)
        await early.ready(1, timeout=PATIENCE)
        for number in range(5):
            prices.publish(number, symbol="A", headers={"n": number})
            prices.publish(10 + number, symbol="B")
            others.publish(number, symbol="A")
        await boxes[0].until(15)
        async with running(late):
            got = await boxes[1].until(2)
            assert sorted(got) == [("prices.A", 4, True, 4), ("prices.B", 14, True, None)]
            prices.publish(99, symbol="A")
            assert (await boxes[1].until(3))[2] == ("prices.A", 99, False, None)
            assert late.stats.lost == 0
        got = await boxes[0].until(16)
        assert not any(kept for _, _, kept, _ in got)
        stats = early.stats
        assert stats.received == stats.routed + stats.unrouted + stats.malformed + stats.duplicate + stats.control


def test_a_wire_that_can_not_bring_it_is_refused_at_my_line() -> None:
    """keep= is refused on other wires and with other values."""
    app = App(pub="tcp://127.0.0.1:1", wire="plain")
    app.publisher("a.{b}", int, keep="last")
    with pytest.raises(SignatureError, match=r"test_kept\.py:\d+: keep='last' needs wire='tracked'"):
        app.compile()
    with pytest.raises(SignatureError, match="keep='all': expected 'last' or None"):
        App().publisher("a", keep="all")  # type: ignore[call-overload]
