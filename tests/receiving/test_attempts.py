"""Handlers that are called again after an error, that are given up after a time, and messages that are given up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.pure import Wired, plain, tracked
from zroute import App, DecodeError, Envelope, Reject, RouteInfo, Routes, SignatureError, startswith
from zroute.errors import EndpointError, HighWaterMarkError, PatternError
from zroute.options import DEAD_ERROR, HEADERS_MAX
from zroute.publishing.send_queue import Sent
from zroute.stats import RouteStats
from zroute.testing import TestApp

RETRY = (1, 5, 30)

both = pytest.mark.parametrize("reactor", ["twisted", "asyncio"])


class Flaky:
    """A handler that fails at its first ``failures`` calls; ``calls`` holds the time and message of each call."""

    def __init__(self, failures: int = 100, error: type[BaseException] = ValueError) -> None:
        self.calls: list[Any] = []
        self.failures = failures
        self.error = error
        self.now = lambda: 0.0

    def __call__(self, message: int) -> None:
        self.calls.append((self.now(), message))
        if len(self.calls) <= self.failures:
            raise self.error(f"no {len(self.calls)}")


def wired(handler: Any, pattern: str = "a.{kind}", **options: Any) -> tuple[Wired, RouteStats]:
    """Return an app with one handler, and the counters of its route."""
    app = App()
    app.add_route(handler, pattern, **options)
    made = Wired(app)
    if isinstance(handler, Flaky):
        handler.now = made.clock.seconds
    return made, next(iter(made.stats.routes.values()))


def given(stats: RouteStats) -> int:
    """Return the number of messages given to a route."""
    ended = stats.handled + stats.handler_error + stats.decode_error + stats.stale + stats.skipped
    return ended + stats.dropped_at_shutdown + stats.queued + stats.in_flight


# -- retries ---------------------------------------------------------------------------------------------


def test_a_failed_handler_is_called_again_after_each_delay() -> None:
    """The message waits for its delays in flight, and counts as handled once."""
    handler = Flaky(3)
    made, stats = wired(handler, retry=RETRY)
    made.feed(plain("a.x", 7))
    for seconds in (1, 5, 30):
        assert (stats.in_flight, stats.handled, made.errors) == (1, 0, [])
        made.clock.advance(seconds)
    assert handler.calls == [(0, 7), (1, 7), (6, 7), (36, 7)]
    assert (stats.handled, stats.handler_error, stats.retried, given(stats)) == (1, 0, 3, 1)


def test_the_last_failure_counts_and_tells_the_attempts(caplog: pytest.LogCaptureFixture) -> None:
    """Each failure but the last one is a warning; the last one is an error with its traceback."""
    app, got = App(), []
    handler = Flaky()
    app.add_route(handler, "a.x", retry=RETRY)
    app.on_error()(lambda error, envelope, attempts: got.append((str(error), envelope.topic, attempts)))
    made = Wired(app).feed(plain("a.x", 7))
    with caplog.at_level(logging.WARNING):
        made.clock.pump([1, 5, 30])
    stats = made.stats.routes["Flaky()"]
    assert (stats.handled, stats.handler_error, stats.retried) == (0, 1, 3)
    assert got == [("no 4", "a.x", 4)]
    assert [(type(error), taken) for error, taken in made.errors] == [(ValueError, True)]
    texts = [
        (record.levelname, record.getMessage().partition(" failed ")[2], bool(record.exc_info))
        for record in caplog.records
    ]
    assert texts == [
        ("WARNING", "on 'a.x': ValueError: no 1; attempt 1 of 4, next attempt in 1 s", False),
        ("WARNING", "on 'a.x': ValueError: no 2; attempt 2 of 4, next attempt in 5 s", False),
        ("WARNING", "on 'a.x': ValueError: no 3; attempt 3 of 4, next attempt in 30 s", False),
        ("ERROR", "on 'a.x' after 4 attempts: ValueError: no 4", True),
    ]


def test_lines_of_many_attempts_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failing messages do not fill the log."""
    made, stats = wired(Flaky(10_000), ordered=False, max_in_flight=1000, retry=(5,))
    made.feed(*(plain("a.x", number) for number in range(1000)))
    made.clock.advance(5)
    assert stats.handler_error == stats.retried == 1000
    assert len(caplog.records) == 10


@pytest.mark.parametrize("kind", ["async", "deferred", "delay of nothing"])
def test_a_handler_of_each_kind_is_called_again(kind: str) -> None:
    """However my handler fails, the next attempt may succeed, and its result is published."""
    app, calls = App(), []
    answers = app.publisher("out", int)

    def attempt(message: int) -> int:
        calls.append(message)
        if len(calls) == 1:
            raise ValueError
        return message + 1

    async def coroutine(message: int) -> int:
        return attempt(message)

    def deferred(message: int) -> Deferred[int]:
        waiting: Deferred[int] = Deferred()
        waiting.addCallback(attempt)
        waiting.callback(message)
        return waiting

    handler: Any = coroutine if kind == "async" else deferred if kind == "deferred" else attempt
    app.add_route(answers(handler), "in", retry=(0.0,))
    made = Wired(app).feed(plain("in", 1))
    assert made.published == []
    made.clock.advance(0)
    assert (calls, made.published) == ([1, 1], [("out", 2)])


def test_a_topic_waits_for_the_attempts_and_other_topics_do_not() -> None:
    """With `ordered`, no message overtakes one that is tried again."""
    handler = Flaky(1)
    made, stats = wired(handler, retry=(1,))
    made.feed(plain("a.x", 1), plain("a.x", 2), plain("a.y", 3))
    assert [message for _, message in handler.calls] == [1, 3]
    assert (stats.queued, stats.in_flight) == (1, 1)
    made.clock.advance(1)
    assert [message for _, message in handler.calls] == [1, 3, 1, 2]
    assert stats.handled == 3


def test_a_message_that_waits_for_its_next_attempt_keeps_its_slot() -> None:
    """max_in_flight also bounds the messages that wait, so their number does not grow."""
    handler = Flaky()
    made, _ = wired(handler, retry=(1,), max_in_flight=2, ordered=False)
    made.feed(*(plain("a.x", number) for number in range(5)))
    assert [message for _, message in handler.calls] == [0, 1]


def test_a_list_is_passed_again_as_a_whole() -> None:
    """An attempt gets the whole list, even if the handler emptied the one before."""
    calls: list[list[int]] = []

    def handle(messages: list[int]) -> None:
        calls.append(messages.copy())
        messages.clear()
        if len(calls) == 1:
            raise ValueError

    made, stats = wired(handle, batch=10, retry=(1,))
    made.feed(plain("a.x", 1), plain("a.y", 2))
    made.clock.advance(1)
    assert calls == [[1, 2], [1, 2]]
    assert (stats.handled, stats.retried, given(stats)) == (2, 2, 2)


def test_a_message_grows_old_before_its_first_attempt_only() -> None:
    """stale_after does not end the attempts."""
    handler = Flaky(2)
    made, stats = wired(handler, retry=(60, 60), stale_after=96.0)
    made.feed(tracked("a.x", 1), tracked("a.x", 2, sequence=2))  # sent at 5, it is 100
    made.clock.pump([60, 60])
    assert (stats.handled, stats.stale, len(handler.calls)) == (2, 0, 4)


def test_a_rejected_message_has_no_further_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """Reject ends the attempts, and is a warning without a traceback."""
    handler = Flaky(error=Reject)
    made, stats = wired(handler, retry=RETRY)
    made.feed(plain("a.x", 1))
    made.clock.advance(100)
    assert (len(handler.calls), stats.handler_error, stats.retried) == (1, 1, 0)
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "failed on 'a.x': Reject: no 1" in record.getMessage()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_is_not_tried_again(error: type[BaseException]) -> None:
    """An error that means to end the program is no reason for another attempt."""
    handler = Flaky(error=error)
    made, stats = wired(handler, retry=RETRY)
    made.feed(plain("a.x", 1))
    assert (len(handler.calls), stats.handler_error) == (1, int(error is not SystemExit))  # SystemExit ends the app


def test_a_stop_ends_the_attempts_at_once() -> None:
    """Messages that wait for an attempt fail, and those that fail later are not tried again."""
    app, got = App(), []
    handler = Flaky()
    app.add_route(handler, "a.{kind}", retry=RETRY, dead="dead.{kind}")
    app.on_error()(lambda error, envelope: got.append(error))
    made = Wired(app).feed(plain("a.x", 1), plain("a.x", 2))
    stats, idle = made.stats.routes["Flaky()"], made.outcomes.unfinished.idle()
    assert not idle.called
    made.outcomes.unfinished.end_retries()
    assert idle.called
    assert (stats.handler_error, stats.retried, stats.dead, given(stats)) == (2, 0, 2, 2)
    assert [(topic, headers["zr-attempts"]) for topic, _, _, headers in made.sent] == [("dead.x", 1)] * 2
    assert got == []


def test_a_call_that_is_given_up_at_the_end_makes_no_further_attempt() -> None:
    """A drain that takes too long cancels the handler, counts the message, and leaves no timer."""
    cancelled: list[bool] = []

    async def handle(message: int) -> None:
        try:
            await Deferred()
        except CancelledError:
            cancelled.append(True)
            raise

    made, stats = wired(handle, retry=RETRY, timeout=9.0, dead="dead.{kind}")
    made.feed(plain("a.x", 1))
    made.outcomes.unfinished.end_retries()
    made.outcomes.unfinished.give_up()
    made.close()
    assert cancelled == [True]
    assert (stats.dropped_at_shutdown, stats.handler_error, stats.timed_out, given(stats)) == (1, 0, 0, 1)
    assert (made.sent, made.clock.getDelayedCalls()) == ([], [])


# -- timeouts --------------------------------------------------------------------------------------------


@both
def test_an_async_handler_that_takes_too_long_is_cancelled(reactor: Any) -> None:
    """The error names handler and seconds; each attempt has its own time."""
    app, cancelled = App(), []

    @app.subscribe("a", timeout=2.5, retry=(1,))
    async def slow(message: int) -> None:
        try:
            if reactor == "asyncio":
                import asyncio

                await asyncio.sleep(100)
            await Deferred()
        except BaseException:
            cancelled.append(True)
            raise

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
        t.advance(2.5 + 1)
        assert cancelled == [True]
        with pytest.raises(TimeoutError, match=r"^slow\(\) did not end within 2.5 s$"):
            t.advance(2.5)
        stats = app.stats.routes["slow()"]
        assert (stats.timed_out, stats.retried, stats.handler_error, given(stats)) == (2, 1, 1, 1)
    assert len(cancelled) == 2


def test_a_handler_that_ends_in_time_leaves_no_timer() -> None:
    """A timeout has no effect on a call that ends in time."""
    gate: Deferred[None] = Deferred()

    async def handle(message: int) -> None:
        await gate

    made, stats = wired(handle, timeout=5.0)
    made.feed(plain("a.x", 1))
    gate.callback(None)
    assert (stats.handled, stats.timed_out, made.clock.getDelayedCalls()) == (1, 0, [])


def test_a_timeout_of_the_handlers_own_is_not_counted() -> None:
    """A TimeoutError that the handler raises itself is an error like others."""

    async def handle(message: int) -> None:
        raise TimeoutError("of mine")

    made, stats = wired(handle, timeout=5.0)
    made.feed(plain("a.x", 1))
    assert (stats.handler_error, stats.timed_out) == (1, 0)


# -- dead letters ----------------------------------------------------------------------------------------


def test_a_message_goes_to_the_dead_topic_after_its_last_attempt() -> None:
    """Body, codec and headers are those of the message; the reason is added."""
    handler = Flaky()
    made, stats = wired(handler, retry=(1,), dead="dead.{kind}")
    made.feed(tracked("a.x", 7, codec=2, body=b" 7 ", headers={"trace": "t", "zr-attempts": 9}))
    made.clock.advance(1)
    reason = {"trace": "t", "zr-topic": "a.x", "zr-error": "ValueError: no 2", "zr-attempts": 2}
    assert made.sent == [("dead.x", 2, b" 7 ", reason)]
    assert (stats.handler_error, stats.dead) == (1, 1)
    assert [taken for _, taken in made.errors] == [True]


def test_a_body_that_cannot_be_decoded_goes_to_the_dead_topic() -> None:
    """Each route that refuses the body publishes a dead letter; frames that are no message do not."""
    app, got = App(), []
    for dead in ("one", "two", None):
        app.add_route(Flaky(), "a.{kind}", dead=dead, retry=RETRY)

    @app.on_error(DecodeError)
    def hook(error: DecodeError, envelope: Envelope, route: RouteInfo) -> None:
        got.append(route.name)

    made = Wired(app).feed(plain("a.x", "text"), b"no nul")
    assert [(topic, headers["zr-attempts"]) for topic, _, _, headers in made.sent] == [("one", 0), ("two", 0)]
    assert made.sent[0][3]["zr-error"].startswith("DecodeError: ")
    assert got == ["Flaky()#3"]
    assert [(each.decode_error, each.dead) for each in made.stats.routes.values()] == [(1, 1), (1, 1), (1, 0)]


def test_each_message_of_a_list_has_its_dead_letter() -> None:
    """A list is failed as a whole, and its dead letters name the topic of each message."""

    def handle(messages: list[int]) -> None:
        raise ValueError

    made, stats = wired(handle, batch=10, dead="dead")
    made.feed(plain("a.x", 1), tracked("a.y", 2))
    assert [(topic, body, headers["zr-topic"]) for topic, _, body, headers in made.sent] == [
        ("dead", b"\x01", "a.x"),
        ("dead", b"\x02", "a.y"),
    ]
    assert (stats.handler_error, stats.dead) == (2, 2)


def test_lists_are_of_one_topic_if_it_decides_where_dead_letters_go() -> None:
    """A capture in `dead`, also one of the group's prefix, keeps topics apart."""
    for prefix, pattern in (("", "{room}.a"), ("{room}", "a")):
        app, group, calls = App(), Routes(prefix), []

        @group.subscribe(pattern, batch=10, dead="dead.{room}" if not prefix else "dead")
        def handle(messages: list[int], calls: list[Any] = calls) -> None:
            calls.append(list(messages))
            raise ValueError

        app.include(group)
        made = Wired(app).feed(plain("x.a", 1), plain("y.a", 2), plain("x.a", 3))
        assert calls == [[1, 3], [2]]
        topics = ["dead.x", "dead.x", "dead.y"] if not prefix else ["x.dead", "x.dead", "y.dead"]
        assert [topic for topic, *_ in made.sent] == topics


def test_the_reason_is_escaped_and_bounded() -> None:
    """Texts of peers in the headers control no terminal, and long headers of the message are left out."""

    def handle(message: str) -> None:
        raise ValueError(message)

    made, _ = wired(handle, dead="dead")
    made.feed(tracked("a.x", "\x1b[31m\n"), tracked("a.x", "\N{EURO SIGN}" * 5000, sequence=2))
    assert made.sent[0][3]["zr-error"] == "ValueError: \\u001b[31m\\n"
    assert len(made.sent[1][3]["zr-error"].encode()) <= DEAD_ERROR
    made.feed(tracked("a.x", "x", sequence=3, headers={"big": "x" * (HEADERS_MAX - 50)}))
    assert set(made.sent[2][3]) == {"zr-topic", "zr-error", "zr-attempts"}


def test_a_dead_letter_that_cannot_be_published_goes_to_the_hook(caplog: pytest.LogCaptureFixture) -> None:
    """on_error gets the error of the handler; the error of publishing is counted and logged."""
    app, got = App(), []
    app.add_route(Flaky(), "a", dead="dead")
    app.on_error()(lambda error, envelope: got.append(str(error)))
    made = Wired(app)

    def refuse(*_: Any) -> Any:
        raise HighWaterMarkError("full")

    made.outcomes._emit = refuse
    made.feed(plain("a", 1))
    assert got == ["no 1"]
    assert (made.stats.publish_errors, made.stats.routes["Flaky()"].dead) == (1, 0)
    assert "the dead letter for 'a' was not published to 'dead': HighWaterMarkError: full" in caplog.text


@pytest.mark.parametrize("sent", [True, False])
def test_a_stop_waits_for_dead_letters_that_wait_for_room(sent: bool) -> None:
    """With overflow="wait", a dead letter may be sent later, or be given up."""
    app, got, room = App(), [], Deferred()
    app.add_route(Flaky(), "a", dead="dead")
    app.on_error()(lambda error, envelope: got.append(str(error)))
    made = Wired(app)
    made.outcomes._emit = lambda *_: room
    made.feed(plain("a", 1))
    idle = made.outcomes.unfinished.idle()
    assert not idle.called
    if sent:
        room.callback(None)
    else:
        room.errback(HighWaterMarkError("full"))
    assert idle.called
    assert (got, made.stats.routes["Flaky()"].dead) == (([], 1) if sent else (["no 1"], 0))


@pytest.mark.parametrize("sent", [True, False])
def test_a_dead_letter_counts_as_published_if_it_is_sent_after_the_drain(sent: bool) -> None:
    """A stop gives up waiting for it before the queue of the publisher is closed; only then its end is known."""
    app, got, room = App(), [], Sent()
    app.add_route(Flaky(), "a", dead="dead")
    app.on_error()(lambda error, envelope: got.append(str(error)))
    made = Wired(app)
    made.outcomes._emit = lambda *_: room
    made.feed(plain("a", 1))
    assert made.outcomes.unfinished.give_up() == {"Flaky()": 1}
    assert (got, made.stats.routes["Flaky()"].dead) == ([], 1)
    room.end(None if sent else HighWaterMarkError("the app has stopped"))
    assert (got, made.stats.routes["Flaky()"].dead) == (([], 1) if sent else (["no 1"], 0))


def test_a_dead_letter_does_not_come_back_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """A dead letter that its own route receives and fails on again is not published once more."""
    app, got = App(), []
    app.add_route(Flaky(), "{one}.{two}", dead="{two}.{one}")
    app.on_error()(lambda error, envelope: got.append(envelope.topic))
    made = Wired(app).feed(tracked("a.b", 1))
    ((topic, codec, body, headers),) = made.sent
    made.feed(tracked(topic, codec=codec, body=body, headers=headers, sequence=2))
    assert (topic, got, len(made.sent)) == ("b.a", ["b.a"], 1)
    assert "dead letter of this topic, so publishing it would cause an endless loop" in caplog.text


def test_a_dead_letter_is_not_sent_back_and_forth_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """A dead letter that fails again is not published to the topic that it came from, also by another app."""
    here, there = App(), App()
    here.add_route(Flaky(), "a.{kind}", dead="b.{kind}")
    there.add_route(Flaky(), "b.{kind}", dead="a.{kind}")
    first, second = Wired(here).feed(tracked("a.x", 1)), Wired(there)
    ((topic, codec, body, headers),) = first.sent
    second.feed(tracked(topic, codec=codec, body=body, headers=headers))
    assert (topic, second.sent, second.stats.publish_errors) == ("b.x", [], 1)
    assert "dead letter from that topic, so publishing it would cause an endless loop" in caplog.text


def test_a_dead_letter_may_be_published_again_where_it_came_from() -> None:
    """A message that fails again after a repair has a new reason."""
    made, _ = wired(Flaky(), dead="dead.{kind}")
    made.feed(tracked("a.x", 1, headers={"zr-topic": "a.x", "zr-error": "old", "zr-attempts": 3}))
    assert made.sent[0][3] == {"zr-topic": "a.x", "zr-error": "ValueError: no 1", "zr-attempts": 1}


def test_a_dead_letter_states_a_codec_only_if_the_message_does() -> None:
    """A foreign message states no codec, and neither does its dead letter."""
    made, _ = wired(Flaky(), dead="dead")
    made.feed((b"a.x", b"\x07"))
    assert made.sent[0][:3] == ("dead", 0, b"\x07")


# -- what is refused -------------------------------------------------------------------------------------


def generator(message: int) -> Iterator[int]:
    """Yield one value."""
    yield message


async def coroutine(message: int) -> None:
    """Do nothing."""


def function(message: int) -> None:
    """Do nothing."""


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (function, {"retry": 5}, "retry=5: expected a tuple of delays"),
    (function, {"retry": "15"}, "expected a tuple of delays"),
    (function, {"retry": (1, -1)}, "delays of 0 seconds or more"),
    (function, {"retry": (1, float("inf"))}, "delays of 0 seconds or more"),
    (function, {"retry": (True,)}, "delays of 0 seconds or more"),
    (function, {"retry": (1,) * 21}, "at most 20 delays"),
    (generator, {"retry": (1,)}, r"generator\(\) is a generator"),
    (function, {"timeout": 5}, r"function\(\) is a plain function, which can't be interrupted: write an async"),
    (generator, {"timeout": 5}, "is a generator, which can't be interrupted"),
    (coroutine, {"timeout": 0}, "more than 0"),
    (coroutine, {"timeout": float("nan")}, "more than 0"),
    (function, {"dead": 5}, "dead=5: expected a topic"),
    (function, {"dead": ""}, "dead='': expected a topic"),
    (function, {"dead": "dead.*"}, "dead= can't contain a wildcard"),
    (function, {"dead": "dead.>"}, "dead= can't contain a wildcard"),
    (function, {"dead": "dead.{rest+}"}, r"{rest\+} captures several segments"),
    (function, {"dead": "dead.{other}"}, "nothing fills {other}, because 'a.{kind}' has no such capture"),
]


@pytest.mark.parametrize(("handler", "options", "says"), REFUSED)
def test_an_option_that_makes_no_sense_is_refused_at_its_line(handler: Any, options: Any, says: str) -> None:
    """The error names the option and my line."""
    for register in (
        lambda: Routes().subscribe("a.{kind}", **options)(handler),
        lambda: App().add_route(handler, "a.{kind}", **options),
    ):
        with pytest.raises(SignatureError, match=says) as caught:
            register()
        assert caught.value.parameter == next(iter(options))
        assert "test_attempts.py:" in str(caught.value.where)


def test_a_broken_pattern_of_dead_letters_is_refused() -> None:
    """A pattern that can't be parsed is an error like that of a publisher."""
    with pytest.raises(PatternError, match="empty"):
        App().add_route(function, "a", dead="a..b")


def test_dead_letters_need_headers_and_an_endpoint() -> None:
    """What is missing is found before a socket opens."""
    plain_app, no_pub = App(wire="plain"), App(sub="tcp://127.0.0.1:1")
    for app in (plain_app, no_pub):
        app.add_route(function, "a", dead="dead")
    with pytest.raises(SignatureError, match="dead='dead' needs wire='tracked'"):
        plain_app.compile()
    with pytest.raises(EndpointError, match=r"dead='dead' of function\(\) at .* has no endpoint to publish to"):
        no_pub.endpoints()


def test_a_group_puts_its_prefix_before_dead_letters_too() -> None:
    """The prefix applies as for a publisher of the group, and can't have a wildcard."""
    app, desk, wild = App(), Routes("desk.{room}"), Routes("*")
    desk.add_route(Flaky(), "orders", dead="dead")
    app.include(desk)
    made = Wired(app).feed(plain("desk.blue.orders", 1))
    assert [topic for topic, *_ in made.sent] == ["desk.blue.dead"]
    wild.add_route(function, "orders", dead="dead")
    other = App()
    other.include(wild)
    with pytest.raises(SignatureError, match=r"dead='dead' can't be published under the prefix '\*'"):
        other.compile()


MEETING = [
    ("a.{kind}", "a.{kind}"),
    ("a.{kind}", "{kind}.b"),
    (">", "dead"),
    ("*.x", "dead.x"),
    ("a.>", "a.b.c"),
    (startswith("de"), "dead"),
]
APART = [
    ("a.{kind}", "b.{kind}"),
    ("a.{kind}", "a.b.{kind}"),
    ("*.*", "dead"),
    ("a.>", "a"),
    ("a.>", "b.c"),
    ("a.*.x", "a.b.y"),
    (startswith("x"), "dead.x"),
    (startswith("dead.x"), "dead"),
]


@pytest.mark.parametrize(("pattern", "dead"), MEETING)
def test_a_route_that_would_receive_its_dead_letters_is_refused(pattern: Any, dead: str) -> None:
    """In an app that receives its own messages they would come back; with other endpoints nothing is known."""
    own = "tcp://127.0.0.1:1"
    for app in (App(), App(sub=own, pub=own)):
        app.add_route(function, pattern, dead=dead)
        with pytest.raises(SignatureError, match=r"matches the handler's own pattern .* would loop forever"):
            app.endpoints()
    apart = App(sub=own, pub="tcp://127.0.0.1:2")
    apart.add_route(function, pattern, dead=dead)
    apart.endpoints()


@pytest.mark.parametrize("number", [2, 3, 5])
def test_routes_that_pass_dead_letters_round_are_refused(number: int) -> None:
    """A message that fails in each of them would go round for ever; an attached handler closes no such ring either."""
    own = "tcp://127.0.0.1:1"
    apart = App(sub=own, pub="tcp://127.0.0.1:2")
    for app in (App(), App(sub=own, pub=own), apart):
        for at in range(number):
            app.add_route(function, f"r{at}.{{kind}}", dead=f"r{(at + 1) % number}.{{kind}}")
        app.add_route(function, "other.{kind}", dead="r0.{kind}")
        if app is apart:
            app.endpoints()
            continue
        with pytest.raises(SignatureError, match=r"dead='r1.{kind}' of function\(\) reaches .*would loop forever"):
            app.endpoints()
    open_ring = App()
    for at in range(number - 1):
        open_ring.add_route(function, f"r{at}.{{kind}}", dead=f"r{at + 1}.{{kind}}")
    with TestApp(open_ring), pytest.raises(SignatureError, match="would loop forever"):
        open_ring.attach(f"r{number - 1}.{{kind}}", function, dead="r0.{kind}")


@pytest.mark.parametrize(("pattern", "dead"), APART)
def test_dead_letters_of_other_topics_are_accepted(pattern: Any, dead: str) -> None:
    """Dead letters that the route does not receive can't come back to it."""
    app = App()
    app.add_route(function, pattern, dead=dead)
    app.endpoints()


# -- in a test app ---------------------------------------------------------------------------------------


@both
def test_retries_run_on_virtual_time_and_only_the_last_error_is_raised(reactor: Any) -> None:
    """An error that will be tried again is not raised; the last one is."""
    app, handler = App(), Flaky()
    app.add_route(handler, "a", retry=(1, 5))
    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
        t.advance(5.9)
        assert (len(handler.calls), t.failures) == (2, [])
        with pytest.raises(ValueError, match="no 3"):
            t.advance(0.1)


def test_an_error_that_dead_letters_took_is_not_raised() -> None:
    """The dead letter is among the published messages."""
    app = App()
    app.add_route(Flaky(), "a.{kind}", retry=(1,), dead="dead.{kind}")
    with TestApp(app) as t:
        t.publish("a.x", 7, headers={"trace": 1})
        t.advance(1)
        assert t.published("dead.*") == [7]
        (envelope,) = t.envelopes("dead.*")
        assert envelope.headers == {
            "trace": 1, "zr-topic": "a.x", "zr-error": "ValueError: no 2", "zr-attempts": 2,
        }  # fmt: skip
        assert len(t.failures) == 1


def test_the_end_of_the_block_ends_the_attempts() -> None:
    """A retry that has not come fails at the end, and its dead letter is published before the sockets close."""
    app, handler = App(), Flaky()
    app.add_route(handler, "a", retry=(1,))
    app.add_route(Flaky(), "b", retry=(1,), dead="dead")
    t = TestApp(app)
    t.__enter__()
    t.publish("a", 1)
    t.publish("b", 1)
    with pytest.raises(ValueError, match="no 1"):
        t.__exit__(None, None, None)
    assert [envelope.headers["zr-attempts"] for envelope in t.envelopes("dead")] == [1]
    assert len(handler.calls) == 1


def test_a_handler_in_a_thread_is_called_again() -> None:
    """Attempts in threads work as others."""
    app, handler = App(), Flaky(1)
    app.add_route(handler, "a", retry=(1,), thread=True, timeout=20)
    with TestApp(app) as t:
        t.publish("a", 1)
        t.advance(1)
        assert len(handler.calls) == 2
        assert app.stats.routes["Flaky()"].handled == 1


def test_an_attached_handler_has_the_same_options() -> None:
    """Handlers that come later are tried again, and have dead letters."""
    app = App()
    with TestApp(app) as t:
        app.attach("a.{kind}", Flaky(), retry=(1,), dead="dead.{kind}")
        t.publish("a.x", 1)
        t.advance(1)
        assert len(t.envelopes("dead.x")) == 1
        with pytest.raises(SignatureError, match="matches the handler's own pattern"):
            app.attach("b.*", function, dead="b.x")


def test_the_counters_of_failures_are_in_the_sum_or_not() -> None:
    """skipped is one of the places of a message; retried, timed_out and dead are not."""
    assert given(RouteStats(skipped=1)) == 1
    assert given(RouteStats(retried=1, timed_out=1, dead=1)) == 0


def test_a_dead_letter_says_how_to_run_on_the_loop_of_asyncio() -> None:
    """The remedy of the log is in the letter, too: a test may see the letter only."""
    app = App()

    @app.subscribe("a", dead="dead")
    async def handle(message: int) -> None:
        await asyncio.sleep(0.01)

    with TestApp(app) as t:
        t.publish("a", 1)
        (letter,) = t.envelopes("dead")
    assert "no running event loop (to await asyncio code, run the app on asyncio: " in letter.headers["zr-error"]
    assert "App(reactor='asyncio')" in letter.headers["zr-error"]
