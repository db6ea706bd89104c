"""Handlers that return before they have finished: order, bounds, pauses, and stops."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred, succeed

from tests.pure import Wired, plain
from tests.support import sized
from zroute import App, Envelope, Topic
from zroute.stats import RouteStats
from zroute.testing import TestApp, UnfinishedError


class Handler:
    """A handler that returns a new Deferred for each message; the test ends them."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.open: list[Deferred[Any]] = []

    def __call__(self, message: Any) -> Deferred[Any]:
        self.begun.append(message)
        waiting: Deferred[Any] = Deferred()
        self.open.append(waiting)
        return waiting

    def end(self, index: int = 0, result: Any = None) -> None:
        """End an unfinished call, by default the oldest."""
        self.open.pop(index).callback(result)


def deliveries(stats: RouteStats) -> int:
    """Return the number of messages given to a route: the sum of its counters."""
    ended = stats.handled + stats.handler_error + stats.decode_error + stats.dropped_at_shutdown
    return ended + stats.queued + stats.in_flight


def wired(handler: Any, *patterns: str, **options: Any) -> tuple[Wired, RouteStats]:
    """Return an app with one handler, and the counters of its route."""
    app = App()
    app.add_route(handler, *(patterns or ("a.*",)), **options)
    made = Wired(app)
    return made, next(iter(made.stats.routes.values()))


def test_the_first_deferred_of_a_plain_function_makes_its_topics_wait() -> None:
    """Once a plain function has returned a Deferred, the messages of a topic take turns."""
    handler = Handler()
    made, stats = wired(handler)
    made.feed(*(plain("a.x", number) for number in range(4)), plain("a.y", 10))
    assert handler.begun == [0, 10]
    assert (stats.in_flight, stats.queued) == (2, 3)
    for _ in range(5):
        handler.end()
    assert [message for message in handler.begun if message < 10] == [0, 1, 2, 3]
    assert (stats.handled, deliveries(stats)) == (5, 5)


def test_a_function_that_is_finished_at_once_now_and_then_keeps_the_order() -> None:
    """If a function returns None, a Deferred and None, its third message waits for the second."""
    order: list[Any] = []
    handler = Handler()

    def sometimes(message: int) -> Any:
        order.append(message)
        return handler(message) if message == 1 else None

    made, stats = wired(sometimes)
    made.feed(*(plain("a.x", number) for number in range(3)))
    assert order == [0, 1]
    handler.end()
    assert order == [0, 1, 2]
    assert (stats.handled, deliveries(stats)) == (3, 3)


def test_a_coroutine_that_never_waits_needs_no_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message to an async function that ends without waiting creates no Deferred."""
    made_by: list[Any] = []
    init = Deferred.__init__
    monkeypatch.setattr(Deferred, "__init__", lambda self, *given: (made_by.append(self), init(self, *given))[1])

    async def quick(message: int) -> None:
        if message == 2:
            await Deferred(lambda _: None)

    made, stats = wired(quick)
    made.feed(plain("a.x", 0), plain("a.y", 1))
    assert (stats.handled, len(made_by)) == (2, 0)
    made.feed(plain("a.x", 2))
    assert (stats.in_flight, len(made_by) > 0) == (1, True)


@pytest.mark.parametrize("options", [{}, {"retry": (1,)}], ids=["once", "retry"])
def test_an_async_handler_resets_a_context_variable_after_a_wait(options: dict[str, Any]) -> None:
    """Libraries for logs and traces do so; each message has a context of its own."""
    variable = ContextVar("variable", default="")
    gates = {number: Deferred[None]() for number in range(2)}
    seen: list[str] = []

    async def handle(message: int) -> None:
        seen.append(variable.get())
        token = variable.set(str(message))
        await gates[message]
        seen.append(variable.get())
        variable.reset(token)

    made, stats = wired(handle, **options)
    made.feed(plain("a.x", 0), plain("a.y", 1))
    gates[1].callback(None)
    gates[0].callback(None)
    assert seen == ["", "", "1", "0"]
    assert (stats.handled, stats.retried, stats.handler_error) == (2, 0, 0)


def test_messages_that_arrive_during_a_first_step_wait_for_its_end() -> None:
    """A handler that makes more messages arrive is not called again before it returns or waits."""
    events: list[str] = []
    waiting: list[Deferred[None]] = []

    async def handle(message: int, topic: Topic) -> None:
        events.append(f"begin {topic}")
        if message == 0:
            made.feed(plain("a.x", 1), plain("a.y", 1))
            assert stats.queued == 2
            assert list(made.outcomes.unfinished.names()) == ["handle()"]
            idle = made.outcomes.unfinished.idle()
            assert not idle.called
            waiting.append(idle)
        events.append(f"end {topic}")

    made, stats = wired(handle)
    made.feed(plain("a.x", 0))
    assert events == ["begin a.x", "end a.x", "begin a.y", "end a.y", "begin a.x", "end a.x"]
    assert waiting[0].called
    assert (stats.handled, stats.queued) == (3, 0)


def test_coroutines_that_never_wait_are_handled_in_the_same_turn() -> None:
    """A thousand coroutines that never wait are handled in one turn, without recursion."""
    seen: list[int] = []

    async def quick(message: int) -> None:
        seen.append(message)

    made, stats = wired(quick)
    made.feed(*(plain("a.x", number) for number in range(2000)))
    assert seen == list(range(2000))
    assert (stats.handled, stats.in_flight, stats.queued) == (2000, 0, 0)


def test_many_that_waited_for_one_follow_without_recursion() -> None:
    """Thousands of messages that waited for a slow call are handled in order, without recursion."""
    seen: list[int] = []
    gate: Deferred[None] = Deferred()

    async def handler(message: int) -> None:
        if message == 0:
            await gate
        seen.append(message)

    made, stats = wired(handler, queue=5000)
    made.feed(*(plain("a.x", number) for number in range(3000)))
    assert stats.queued == 2999
    gate.callback(None)
    made.clock.advance(0)
    assert seen == list(range(3000))
    assert stats.handled == 3000


def test_a_failure_lets_the_next_one_begin() -> None:
    """If a call fails, the next message of its topic begins."""
    handler = Handler()
    made, stats = wired(handler)
    made.feed(plain("a.x", 1), plain("a.x", 2), plain("a.x", 3))
    handler.open.pop(0).errback(ValueError("no"))
    assert handler.begun == [1, 2]
    handler.end()
    handler.end()
    assert (stats.handled, stats.handler_error, deliveries(stats)) == (2, 1, 3)


def test_raising_at_once_in_a_queue_does_not_stop_it() -> None:
    """A function that raises when its queued message begins is counted like any other."""
    first: Deferred[None] = Deferred()

    def handler(message: int) -> Any:
        if message == 0:
            return first
        raise ValueError(message)

    made, stats = wired(handler)
    made.feed(*(plain("a.x", number) for number in range(4)))
    first.callback(None)
    assert (stats.handled, stats.handler_error, deliveries(stats)) == (1, 3, 4)


def test_what_a_queued_handler_returns_is_published() -> None:
    """The result of a queued message is published with its captures and in order, from generators too."""
    app, handler = App(), Handler()
    first = app.publisher("b.{x}", int)
    many = app.publisher("c.{x}", int)
    app.subscribe("a.{x}")(first(handler))

    @many
    @app.subscribe("a.{x}")
    def several(message: int) -> Iterator[int]:
        yield message
        yield message + 1

    made = Wired(app).feed(plain("a.k", 1), plain("a.k", 5))
    assert made.published == [("c.k", 1), ("c.k", 2), ("c.k", 5), ("c.k", 6)]
    handler.end(result=7)
    handler.end(result=8)
    assert made.published[4:] == [("b.k", 7), ("b.k", 8)]


def test_a_full_route_pauses_and_says_so_and_again_when_it_flows(caplog: pytest.LogCaptureFixture) -> None:
    """A full route logs one line with its place, and reading resumes at half of the bound."""
    handler = Handler()
    made, stats = wired(handler, queue=4, max_in_flight=1)
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            made.feed(plain(f"a.{number}", number))
        assert not made.paused
        made.feed(plain("a.4", 4))
        assert made.paused
        handler.end()
        assert made.paused
        handler.end()
        assert not made.paused
    full, flows = (record.getMessage() for record in caplog.records)
    assert "queue full (4 messages): reading is paused until half of them are handled" in full
    assert "test_unfinished.py:" in full
    assert "reading resumed: 2 messages are waiting" in flows
    assert deliveries(stats) == 5


def test_a_drain_ends_with_the_message_that_fills_a_route() -> None:
    """A drain ends with the message that fills a route, so that no more than the bound is queued."""
    handler = Handler()
    made, stats = wired(handler, queue=2)
    made.queue(*(plain("a.x", number) for number in range(10)))
    assert made.receive(10) is False
    assert (stats.queued, made.stats.received, made.paused) == (2, 3, True)


def test_two_full_routes_pause_until_both_have_eased() -> None:
    """If two routes are full, reading resumes only when both have eased."""
    app, one, two = App(), Handler(), Handler()
    app.add_route(one, "a", queue=2)
    app.add_route(two, "a", queue=2)
    made = Wired(app).feed(plain("a", 1), plain("a", 2), plain("a", 3))
    assert made.paused
    one.end()
    assert made.paused
    two.end()
    assert not made.paused


def test_a_route_that_is_full_again_and_again_floods_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """A route that fills again and again logs the first lines, and then a count."""
    handler = Handler()
    made, _ = wired(handler, queue=1)
    with caplog.at_level(logging.WARNING):
        made.feed(plain("a.x", 0))
        for number in range(50):
            made.feed(plain("a.x", number))
            handler.end()
        made.outcomes.close()
    assert len(caplog.records) == 6
    assert "95 more lines like these were not shown" in caplog.records[-1].getMessage()


def slow_backlog(many: int) -> tuple[Wired, Any, list[int]]:
    """Return a table that begins to handle ``many`` messages in 2 ms each, its route's counters, and those handled."""
    first: Deferred[None] = Deferred()
    seen: list[int] = []

    def handler(message: int) -> Any:
        seen.append(message)
        if message == 0:
            return first
        made.clock.rightNow += 0.002
        return None

    made, stats = wired(handler)
    made.feed(*(plain("a.x", number) for number in range(many)))
    first.callback(None)
    return made, stats, seen


def test_the_time_of_a_turn_is_bounded() -> None:
    """A queue of handlers that take some time gives other work of the reactor its turns."""
    made, _, seen = slow_backlog(10)
    assert 1 < len(seen) < 10
    while len(seen) < 10:
        before = len(seen)
        made.clock.advance(0)
        assert len(seen) > before
    assert seen == list(range(10))


def test_messages_that_arrive_meanwhile_make_no_turn_longer() -> None:
    """Messages that arrive while a backlog is handled wait behind it, and do not make a turn longer."""
    made, stats, seen = slow_backlog(50)
    begun = len(seen)
    made.feed(*(plain("a.x", number) for number in range(50, 70)))
    assert len(seen) == begun
    assert sum(call.getTime() <= made.clock.seconds() for call in made.clock.getDelayedCalls()) == 1
    made.clock.advance(0)
    assert seen == list(range(70))
    assert (stats.handled, deliveries(stats)) == (70, 70)


def test_a_deferred_that_is_returned_for_several_messages_ends_them_all() -> None:
    """If a function returns the same Deferred for several messages, its result ends them all."""
    connected: Deferred[str] = Deferred()
    made, stats = wired(lambda message: connected)
    made.feed(plain("a.x", 1), plain("a.y", 2), plain("a.z", 3))
    assert stats.in_flight == 3
    connected.callback("yes")
    assert (stats.handled, deliveries(stats)) == (3, 3)
    assert made.outcomes.unfinished.idle().called


def test_a_deferred_of_several_messages_can_be_given_up() -> None:
    """If such a Deferred is given up, each message is counted, and its late result is ignored."""
    connected: Deferred[str] = Deferred()
    made, stats = wired(lambda message: connected)
    made.feed(plain("a.x", 1), plain("a.y", 2))
    made.outcomes.unfinished.give_up()
    connected.callback("too late")
    assert (stats.dropped_at_shutdown, deliveries(stats)) == (2, 2)


def test_giving_up_counts_what_runs_and_what_waits() -> None:
    """After giving up, each message of a route is still in exactly one counter."""
    handler = Handler()
    made, stats = wired(handler, max_in_flight=2)
    made.feed(*(plain(f"a.{number % 3}", number) for number in range(9)))
    handler.end()
    assert made.outcomes.unfinished.give_up() == {next(iter(made.stats.routes)): 8}
    assert (stats.handled, stats.dropped_at_shutdown, stats.queued, stats.in_flight) == (1, 8, 0, 0)
    assert made.outcomes.unfinished.idle().called


def test_a_stop_counts_together_what_goes_by_one_name(caplog: pytest.LogCaptureFixture) -> None:
    """At a stop, two attached routes of one name are reported together, and "reading resumed" is not logged."""
    app = App()

    def enter() -> Any:
        async def room(message: int) -> None:
            await Deferred()

        return room

    @app.on_startup
    def open_two() -> None:
        app.attach("a", enter(), queue=3)
        app.attach("a", enter(), queue=3)

    def four_messages() -> None:
        with TestApp(app) as t:
            for number in range(4):
                t.publish("a", number)

    with pytest.raises(UnfinishedError, match=re.escape("room(): 8;")):
        four_messages()
    (stats,) = app.stats.routes.values()
    assert (stats.dropped_at_shutdown, deliveries(stats)) == (8, 8)
    said = [record.getMessage() for record in caplog.records]
    assert sum("queue full" in line for line in said) == 2
    assert not [line for line in said if "reading resumed" in line]


def test_generators_of_one_topic_take_turns_as_well() -> None:
    """Values of a later message are not published between the values of an earlier one."""
    app = App()
    gates: list[Deferred[None]] = []
    many = app.publisher("c.{x}", int)

    @many
    @app.subscribe("a.{x}")
    async def several(message: int) -> AsyncIterator[int]:
        yield message
        gates.append(Deferred())
        await gates[-1]
        yield message + 1

    made = Wired(app).feed(plain("a.k", 1), plain("a.k", 5), plain("a.l", 7))
    assert made.published == [("c.k", 1), ("c.l", 7)]
    gates[0].callback(None)
    gates[1].callback(None)
    assert made.published[2:] == [("c.k", 2), ("c.k", 5), ("c.l", 8)]
    gates[2].errback(ValueError("no"))
    (stats,) = made.stats.routes.values()
    assert (stats.handled, stats.handler_error, deliveries(stats)) == (2, 1, 3)


def test_envelopes_and_several_types_take_turns_too() -> None:
    """Async handlers with an envelope or without a body are called like others."""
    app, order = App(), []

    @app.subscribe("a")
    async def one(message: int, envelope: Envelope) -> None:
        order.append(("one", message, envelope.topic))

    @app.subscribe("a")
    async def two() -> None:
        order.append(("two",))

    Wired(app).feed(plain("a", 1))
    assert sorted(order) == [("one", 1, "a"), ("two",)]


def test_a_list_in_a_stop_is_handled_before_the_end() -> None:
    """At a stop, a list that is not full is handed over and handled before on_shutdown."""
    app, got = App(), []

    @app.subscribe("a", batch=100)
    def on(items: list[int]) -> None:
        got.append(items)

    @app.on_shutdown
    def last() -> None:
        got.append(["closed"])

    with TestApp(app) as t:
        t.publish("a", 1)
    assert got == [[1], ["closed"]]


def test_a_stop_that_is_cut_counts_the_messages_of_lists() -> None:
    """If a stop is cut short, a running list of three and four waiting messages count as seven dropped."""
    app = App()

    @app.subscribe("a", batch=3)
    async def on(items: list[int]) -> None:
        await Deferred()

    @app.publisher("a", int)
    def seven() -> Iterator[int]:
        yield from range(7)

    with pytest.raises(UnfinishedError, match=re.escape("on(): 7;")), TestApp(app):
        pass
    (stats,) = app.stats.routes.values()
    assert (stats.dropped_at_shutdown, deliveries(stats)) == (7, 7)


def test_lists_in_threads_keep_their_order() -> None:
    """With thread=True lists are handled one after the other, and their results are published."""
    app, got = App(), []

    @app.publisher("sums", int)
    @app.subscribe("a", batch=4, thread=True)
    def on(items: list[int]) -> int:
        got.extend(items)
        return len(items)

    @app.publisher("a", int)
    def ten() -> Iterator[int]:
        yield from range(10)

    with TestApp(app) as t:
        assert sum(t.published("sums")) == 10
        assert max(t.published("sums")) <= 4
    assert got == list(range(10))


ROUTES = ["late", "plain", "listed", "by_topic"]


class AnyEvents(RuleBasedStateMachine):
    """Four routes in one app, two with lists, with each way for a call to end, in any order of events."""

    @initialize(bound=st.integers(1, 3), queue=st.integers(1, 4), batch=st.integers(1, 4), ordered=st.booleans())
    def begin(self, bound: int, queue: int, batch: int, ordered: bool) -> None:
        app = App()
        self.ordered, self.bound, self.queue = ordered, bound, queue
        self.number = 0
        self.fed: dict[str, list[tuple[str, int]]] = {name: [] for name in ROUTES}
        self.called: dict[str, list[tuple[str, int]]] = {name: [] for name in ROUTES}
        self.open: list[tuple[str, list[str], Deferred[Any]]] = []

        async def late(message: tuple[str, int, str]) -> None:
            waiting = self.call("late", [message])
            if waiting is not None or message[1] % 2:  # else the coroutine ends without waiting
                await (waiting or succeed(None))

        def plain(message: tuple[str, int, str]) -> Any:
            return self.call("plain", [message])

        async def listed(messages: list[tuple[str, int, str]]) -> None:
            await (self.call("listed", messages) or succeed(None))

        def by_topic(messages: list[tuple[str, int, str]], topic: Topic) -> Any:
            assert {f"by_topic.{message[0]}" for message in messages} == {topic}
            return self.call("by_topic", messages)

        bounds: dict[str, Any] = {"max_in_flight": bound, "queue": queue, "ordered": ordered}
        app.add_route(late, "late.*", **bounds)
        app.add_route(plain, "plain.*", **bounds)
        self.batch = min(batch, queue)
        app.add_route(listed, "listed.*", batch=self.batch, **bounds)
        app.add_route(by_topic, "by_topic.*", batch=self.batch, **bounds)
        self.made = Wired(app)
        self.stats = {name.strip("()").rpartition(".")[2]: of for name, of in self.made.stats.routes.items()}
        self.refused = dict.fromkeys(self.stats, 0)

    def call(self, route: str, messages: list[tuple[str, int, str]]) -> Deferred[Any] | None:
        assert 1 <= len(messages) <= self.batch or len(messages) == 1
        topics, numbers, ways = zip(*messages, strict=True)
        self.called[route].extend(zip(topics, numbers, strict=True))
        if "raise" in ways:
            raise ValueError(numbers)
        if "slow" in ways:
            self.made.clock.rightNow += 0.004
        if "wait" not in ways:
            return None
        waiting: Deferred[Any] = Deferred()
        self.open.append((route, list(topics), waiting))
        return waiting

    @rule(
        route=st.sampled_from(ROUTES),
        topic=st.sampled_from("abc"),
        how=st.sampled_from(["wait", "wait", "wait", "at once", "raise", "slow", "undecodable"]),
    )
    def arrive(self, route: str, topic: str, how: str) -> None:
        self.number += 1
        if how == "undecodable":
            self.refused[route] += 1
            self.made.queue(plain(f"{route}.{topic}", body=b"\xc1"))
        else:
            self.fed[route].append((topic, self.number))
            self.made.queue(plain(f"{route}.{topic}", (topic, self.number, how)))

    @rule(budget=st.integers(1, 8))
    def read(self, budget: int) -> None:
        if not self.made.paused:
            self.made.receive(budget)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), well=st.booleans())
    def end(self, data: st.DataObject, well: bool) -> None:
        ended = data.draw(st.sampled_from(self.open))
        self.open.remove(ended)
        ended[2].callback(None) if well else ended[2].errback(ValueError("no"))

    @rule()
    def turn(self) -> None:
        self.made.clock.advance(0)

    @invariant()
    def counted(self) -> None:
        if not hasattr(self, "made"):
            return
        assert sum(map(deliveries, self.stats.values())) == self.made.stats.routed
        for name, stats in self.stats.items():
            running = [topics for route, topics, _ in self.open if route == name]
            assert stats.in_flight == sum(map(len, running))
            assert len(running) <= self.bound
            assert stats.queued <= self.queue
            if self.ordered and name == "listed":
                assert len(running) <= 1
            elif self.ordered:
                assert len(running) == len({topics[0] for topics in running})
        if self.made.paused:
            assert any(stats.queued > self.queue // 2 for stats in self.stats.values())

    def teardown(self) -> None:
        """End all calls; each message reached its function once, and each topic kept its order."""
        if not hasattr(self, "made"):
            return
        for _ in range(self.number + 1):  # each pass reads or ends at least one message
            self.read(8)
            while self.open:
                self.open.pop(0)[2].callback(None)
            self.turn()
        assert not self.made._parts
        for name, stats in self.stats.items():
            assert (stats.queued, stats.in_flight, stats.decode_error) == (0, 0, self.refused[name])
            assert sorted(self.called[name], key=itemgetter(1)) == self.fed[name]
            if self.ordered:
                assert name != "listed" or self.called[name] == self.fed[name]
                assert sorted(self.called[name], key=itemgetter(0)) == sorted(self.fed[name], key=itemgetter(0))
        assert not self.made.paused
        assert self.made.outcomes.unfinished.idle().called
        self.made.close()


AnyEvents.TestCase.settings = settings(max_examples=sized(150, 15), stateful_step_count=50)
TestAnyEvents = AnyEvents.TestCase
