"""Handlers with ``batch=`` receive lists of messages without delay; the counters count messages."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.pure import Wired, packed, plain, tracked
from zroute import App, Envelope, Topic
from zroute.errors import DecodeError, SchemaError, SignatureError
from zroute.messages.coalesced import coalesced_framer
from zroute.options import BATCH_MAX, BATCH_SECONDS
from zroute.stats import RouteStats


@attrs.frozen
class Quote:
    symbol: str
    price: float


def numbers(count: int, topic: str = "a.x", start: int = 0) -> list[bytes]:
    """Return ``count`` messages, each a number."""
    return [plain(topic, number) for number in range(start, start + count)]


def together(topic: str, bodies: Sequence[bytes]) -> bytes:
    """Return one frame that contains all these messages."""
    return coalesced_framer(epoch=7, count=lambda *_: ())(topic.encode(), 1, bodies, 5_000_000_000)


def wired(function: Callable[..., Any], *patterns: str, **options: Any) -> tuple[Wired, RouteStats]:
    """Return an app with one handler, and the counters of its route."""
    app = App()
    app.add_route(function, *(patterns or ("a.*",)), **options)
    made = Wired(app)
    return made, next(iter(made.stats.routes.values()))


def given_out(stats: RouteStats) -> int:
    """Return the number of messages given to a route: the sum of its counters."""
    ended = stats.handled + stats.handler_error + stats.decode_error + stats.stale + stats.dropped_at_shutdown
    return ended + stats.queued + stats.in_flight


# -- the content of a list -------------------------------------------------------------------------------


def test_a_list_holds_what_has_been_received_up_to_its_bound() -> None:
    """Ten messages with batch=4 arrive as lists of 4, 4 and 2, without waiting for an eleventh."""
    got: list[list[int]] = []

    def on(items: list[int]) -> None:
        got.append(items)

    made, stats = wired(on, batch=4)
    made.feed(*numbers(10))
    assert got == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (stats.handled, stats.queued, given_out(stats)) == (10, 0, 10)


def test_one_message_comes_at_once_and_no_list_is_empty() -> None:
    """One message is a list of one, in the same turn; without messages no handler is called."""
    got: list[Any] = []
    made, _ = wired(lambda items: got.append(items), batch=100)
    made.feed(plain("a.x", 1))
    made.feed()
    made.feed(plain("other", 1))
    assert got == [[1]]


def test_what_waits_in_a_list_counts_as_queued() -> None:
    """Between two reads of a flood, the messages that wait in a list are counted as queued."""
    got: list[Any] = []
    made, stats = wired(lambda items: got.append(items), batch=100)
    made.queue(*numbers(30))
    assert made.receive(20) is False
    assert (got, stats.queued, made.stats.routed, given_out(stats)) == ([], 20, 20, 20)
    assert made.outcomes.unfinished.names() == {next(iter(made.stats.routes)): 20}
    made.receive(20)
    assert ([len(items) for items in got], stats.handled) == ([30], 30)


def test_a_flood_to_others_holds_up_no_list() -> None:
    """A list is handed over soon even if messages for other handlers keep arriving."""
    app, got = App(), []
    app.add_route(lambda items: got.append(items), "a", batch=100)
    app.add_route(lambda item: None, "flood")
    made = Wired(app)
    made.queue(plain("a", 1), *numbers(100, "flood"))
    made.receive(50)
    assert got == []
    made.clock.advance(BATCH_SECONDS)
    assert got == [[1]]
    made.receive(20)
    assert not made.clock.getDelayedCalls()


def test_a_broken_message_costs_itself_only() -> None:
    """A broken message in a list is a decode error with its own envelope; the others are handled."""
    app, got, dead = App(), [], []

    @app.on_error(DecodeError)
    def on_error(error: DecodeError, envelope: Envelope) -> None:
        dead.append(envelope.body)

    @app.subscribe("a.*", batch=10)
    def on(quotes: list[Quote]) -> None:
        got.append([quote.price for quote in quotes])

    made = Wired(app)
    good = [{"symbol": "A", "price": float(number)} for number in range(3)]
    made.feed(plain("a.x", good[0]), plain("a.x", good[1]), plain("a.x", {"symbol": 5}), plain("a.x", good[2]))
    (stats,) = made.stats.routes.values()
    assert got == [[0.0, 1.0, 2.0]]
    assert dead == [packed({"symbol": 5})]
    assert (stats.handled, stats.decode_error) == (3, 1)


def test_without_captures_one_list_holds_all_topics_in_order_of_arrival() -> None:
    """A pattern without captures receives one list of all topics, in order of arrival."""
    got: list[Any] = []

    def on(items: Sequence[int]) -> None:
        got.append(items)

    made, _ = wired(on, "a.{x}", "b.{x}", batch=10)
    made.feed(plain("a.x", 0), plain("b.y", 1), plain("a.z", 2), plain("a.x", 3))
    assert got == [[0, 1, 2, 3]]


@pytest.mark.parametrize("how", ["capture", "topic"])
def test_who_takes_something_of_the_topic_is_given_lists_of_one_topic(how: str) -> None:
    """A handler with a capture or a Topic parameter receives lists of one topic each."""
    got: list[Any] = []

    def by_capture(items: list[int], x: int) -> None:
        got.append((x, items))

    def by_topic(topic: Topic, items: list[int]) -> None:
        got.append((int(topic[2:]), items))

    made, stats = wired(by_capture if how == "capture" else by_topic, "a.{x}", batch=2)
    made.feed(*(plain(f"a.{number % 2}", number) for number in range(7)))
    assert sorted(got) == [(0, [0, 2]), (0, [4, 6]), (1, [1, 3]), (1, [5])]
    assert stats.handled == 7


def test_a_handler_may_do_what_it_likes_with_its_list() -> None:
    """A handler may change its list: the counters and the next list are not affected."""
    kept: list[Any] = []

    def on(items: list[int]) -> None:
        kept.append(items)
        items.clear()

    made, stats = wired(on, batch=3)
    made.feed(*numbers(7))
    assert (stats.handled, given_out(stats), len({id(each) for each in kept})) == (7, 7, 3)


def test_the_list_may_be_a_keyword_only_parameter_or_bare() -> None:
    """The list parameter may be a list, Sequence[T], Iterable[T], bare, `*args` or keyword-only."""
    app, got = App(), []

    def by_keyword(*, items: list[int]) -> None:
        got.append(("keyword", items))

    def bare(items: list) -> None:  # type: ignore[type-arg]
        got.append(("bare", items))

    def iterable(items: Iterable[int]) -> None:
        got.append(("iterable", items))

    def rest(*args: Any) -> None:
        got.append(("rest", *args))

    for function in (by_keyword, bare, iterable, rest):
        app.add_route(function, "a", batch=5)
    Wired(app).feed(plain("a", 1), plain("a", 2))
    assert sorted(got) == [(name, [1, 2]) for name in ("bare", "iterable", "keyword", "rest")]


def test_handlers_with_and_without_lists_share_a_topic() -> None:
    """Handlers with and without lists on one topic get the same decoded object, each with its own options."""
    app, got = App(), []

    @app.subscribe("a")
    def single(quote: Quote) -> None:
        got.append(("single", quote))

    @app.subscribe("a", batch=5)
    def listed(quotes: list[Quote]) -> None:
        got.append(("listed", quotes))

    @app.subscribe("b", batch=5)
    def one_of(quotes: list[Quote]) -> None:
        got.append(("one of", quotes))

    @app.subscribe("b")
    def whole(envelope: Envelope) -> None:
        got.append(("whole", envelope.topic))

    body = {"symbol": "A", "price": 1.0}
    made = Wired(app).feed(plain("a", body), plain("a", body), plain("b", body))
    quote = Quote("A", 1.0)
    assert got == [("single", quote)] * 2 + [("whole", "b"), ("listed", [quote] * 2), ("one of", [quote])]
    assert got[0][1] is got[3][1][0]
    assert [stats.handled for stats in made.stats.routes.values()] == [2, 2, 1, 1]


# -- frames of several messages ---------------------------------------------------------------------------


@pytest.mark.parametrize("others", [False, True])
def test_lists_do_not_depend_on_the_frames_that_messages_came_in(others: bool) -> None:
    """Lists are the same whether messages arrive together in a frame or alone."""
    app, got = App(), []
    app.add_route(lambda items: got.append(items), "a.*", batch=4)
    if others:
        app.add_route(lambda item: None, "a.x")
    made = Wired(app)
    bodies = [packed(number) for number in range(10)]
    made.feed(together("a.x", bodies[:3]), tracked("a.x", 3, sequence=0), together("a.x", bodies[4:]))
    assert got == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert made.balanced()
    assert [given_out(stats) for stats in made.stats.routes.values()] == [10] * (1 + others)


def test_a_frame_with_a_broken_message_gives_the_others() -> None:
    """A broken message in a frame of several is refused alone; the others are handled."""
    got: list[Any] = []

    def on(quotes: list[Quote]) -> None:
        got.append([quote.price for quote in quotes])

    made, stats = wired(on, batch=10)
    bodies = [packed({"symbol": "A", "price": float(number)}) for number in range(3)]
    made.feed(together("a.x", [*bodies[:2], packed(5), bodies[2]]))
    assert got == [[0.0, 1.0, 2.0]]
    assert (stats.handled, stats.decode_error, made.stats.received) == (3, 1, 4)


def test_a_frame_that_fills_a_queue_is_taken_in_the_end() -> None:
    """The queue's bound counts messages, also of one frame; the rest waits in the socket, and none is lost."""
    open_: list[Deferred[None]] = []
    got: list[int] = []

    def on(items: list[int]) -> Deferred[None]:
        got.extend(items)
        open_.append(Deferred())
        return open_[-1]

    made, stats = wired(on, batch=3, queue=5)
    made.queue(together("a.x", [packed(number) for number in range(20)]))
    while made.table.unpacked or made._parts or open_:
        if not made.paused:
            made.receive()
        assert stats.queued <= 5
        assert given_out(stats) == made.stats.routed
        while open_ and made.paused:
            open_.pop().callback(None)
        if made.receive() and open_:
            open_.pop().callback(None)
    assert (got, stats.handled) == (list(range(20)), 20)


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_of_many", [False, True])
def test_an_error_counts_for_all_of_its_list_and_is_told_once(
    frame_of_many: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An error counts for all messages of its list, and calls on_error once with the first envelope."""
    app, told = App(), []

    @app.on_error()
    def on_error(error: Exception, envelope: Envelope) -> None:
        told.append((str(error), envelope.topic, envelope.body))
        assert error.__context__ is None
        assert "NothingThereError" not in "".join(traceback.format_exception(error))

    @app.subscribe("a.*", batch=3)
    def on(items: list[int]) -> None:
        if 1 in items:
            raise ValueError("no")

    made = Wired(app)
    made.feed(*([together("a.x", [packed(number) for number in range(5)])] if frame_of_many else numbers(5)))
    (stats,) = made.stats.routes.values()
    assert told == [("no", "a.x", packed(0))]
    assert "failed on a list of 3 messages, the first of 'a.x': ValueError: no" in caplog.text
    assert (stats.handler_error, stats.handled, given_out(stats)) == (3, 2, 5)


def test_an_error_of_the_last_list_of_a_turn_has_no_foreign_context() -> None:
    """An error of the last list of a turn does not carry an unrelated exception as its context."""
    made, stats = wired(lambda items: 1 / 0, batch=10)
    made.feed(*numbers(2))
    ((error, hooked),) = made.errors
    assert (type(error), error.__context__, hooked, stats.handler_error) == (ZeroDivisionError, None, False, 2)


# -- order, bounds and age --------------------------------------------------------------------------------


class Slow:
    """A handler that returns a new Deferred for each list."""

    def __init__(self) -> None:
        self.lists: list[list[Any]] = []
        self.open: list[Deferred[Any]] = []

    async def __call__(self, items: list[Any]) -> Any:
        self.lists.append(list(items))
        waiting: Deferred[Any] = Deferred()
        self.open.append(waiting)
        return await waiting

    def end(self, result: Any = None) -> None:
        """End the oldest call."""
        self.open.pop(0).callback(result)


def test_behind_a_slow_handler_a_list_fills_up() -> None:
    """Messages that arrive while a slow handler runs become one list."""
    slow = Slow()
    made, stats = wired(slow, batch=4)
    for frame in numbers(8):
        made.feed(frame)
    assert (slow.lists, stats.in_flight, stats.queued) == ([[0]], 1, 7)
    slow.end()
    slow.end()
    slow.end()
    assert slow.lists == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert (stats.handled, given_out(stats)) == (8, 8)


def test_lists_of_one_topic_take_turns_and_those_of_others_run_beside_them() -> None:
    """Lists of one topic take turns, lists of other topics run beside them, and max_in_flight counts calls."""
    slow = Slow()
    seen: list[Any] = []

    async def on(items: list[int], x: str) -> None:
        seen.append((x, items))
        await slow(items)

    made, stats = wired(on, "a.{x}", batch=2, max_in_flight=2)
    made.feed(*(plain(f"a.{'xyz'[number % 3]}", number) for number in range(9)))
    assert seen == [("x", [0, 3]), ("y", [1, 4])]
    assert (stats.in_flight, stats.queued) == (4, 5)
    while slow.open:
        slow.end()
    assert sorted(seen) == [("x", [0, 3]), ("x", [6]), ("y", [1, 4]), ("y", [7]), ("z", [2, 5]), ("z", [8])]
    assert stats.handled == 9


def test_one_list_over_all_topics_is_one_turn_unless_order_is_lifted() -> None:
    """Lists over all topics take turns unless ordered=False."""
    for ordered, running in ((True, 1), (False, 3)):
        slow = Slow()
        made, _ = wired(slow, batch=2, ordered=ordered)
        made.feed(*(plain(f"a.{number}", number) for number in range(6)))
        assert len(slow.open) == running


def test_a_full_queue_counts_messages_and_pauses_reading() -> None:
    """queue=6 allows six messages, in lists or before them; reading pauses after the message that fills it."""
    slow = Slow()
    made, stats = wired(slow, batch=4, queue=6)
    made.queue(*numbers(20))
    assert made.receive(20) is False
    assert (made.paused, stats.in_flight, stats.queued, made.stats.received) == (True, 4, 6, 10)
    slow.end()
    assert (made.paused, stats.in_flight, stats.queued) == (False, 4, 2)
    while made._parts or slow.open:
        if not made.paused:
            made.receive(20)
        if slow.open:
            slow.end()
    assert [item for items in slow.lists for item in items] == list(range(20))
    assert (stats.handled, given_out(stats)) == (20, 20)


def test_when_reading_pauses_for_another_route_lists_are_handed_over() -> None:
    """If a full queue of another route pauses reading, the lists are handed over in the next turn."""
    app, got, slow = App(), [], Slow()
    app.add_route(lambda items: got.append(items), "a", batch=10)
    app.add_route(slow, "slow", queue=1)
    made = Wired(app)
    made.queue(plain("a", 1), plain("slow", [1]), plain("slow", [2]), plain("a", 2))
    made.receive(10)
    assert (made.paused, got) == (True, [])
    made.clock.advance(0)
    assert got == [[1]]


def test_what_is_too_old_is_left_out_when_its_turn_has_come() -> None:
    """Stale messages are removed from a list when its turn comes; a list without others is not handed over."""
    got: list[Any] = []
    frame = together("a.x", [packed(0), packed(1)])  # sent in second 5; the clock of the tests shows 100
    for limit, lists, stale in ((96.0, [[0, 1, 2]], 0), (50.0, [[2]], 2)):
        got.clear()
        made, stats = wired(lambda items: got.append(items), batch=3, stale_after=limit)
        made.feed(frame, plain("a.x", 2))
        assert (got, stats.stale, stats.handled, given_out(stats)) == (lists, stale, 3 - stale, 3)
    made, stats = wired(lambda items: got.append(items), batch=3, stale_after=50.0)
    got.clear()
    made.feed(tracked("a.x", 1), frame)
    assert (got, stats.stale, stats.queued, stats.in_flight) == ([], 3, 0, 0)
    assert made.outcomes.unfinished.idle().called


def test_giving_up_counts_messages() -> None:
    """A drain that is cut short counts each unhandled message as dropped: running, waiting or gathered."""
    slow = Slow()
    made, stats = wired(slow, batch=3)
    made.queue(*numbers(10))
    made.receive(10)
    assert (stats.in_flight, stats.queued) == (3, 7)
    assert made.outcomes.unfinished.give_up() == {next(iter(made.stats.routes)): 10}
    assert (stats.dropped_at_shutdown, stats.queued, stats.in_flight, given_out(stats)) == (10, 0, 0, 10)
    assert made.outcomes.unfinished.idle().called
    assert not made.clock.getDelayedCalls()


# -- derived streams --------------------------------------------------------------------------------------


def test_what_a_handler_makes_of_a_list_is_published() -> None:
    """A result is published with the captures of its list; without captures, lists span all topics."""
    app = App()

    @app.publisher("sum.{x}", int)
    @app.subscribe("a.{x}", batch=10)
    def of_one(items: list[int]) -> int:
        return sum(items)

    @app.publisher("sum", int)
    @app.subscribe("a.{x}", batch=10)
    async def of_all(items: list[int]) -> int:
        return sum(items)

    made = Wired(app).feed(plain("a.k", 1), plain("a.l", 5), plain("a.k", 2))
    assert sorted(made.published) == [("sum", 8), ("sum.k", 3), ("sum.l", 5)]


# -- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, -1, True, 2.0, "10", BATCH_MAX + 1])
def test_batch_is_a_number_of_messages(batch: Any) -> None:
    """batch= takes 1 to 10,000; the error names these bounds."""
    with pytest.raises(SignatureError, match="from 1 to 10,000"):
        App().add_route(print, "a", batch=batch)


def test_a_list_that_the_queue_would_never_let_grow_is_refused() -> None:
    """queue= must be at least batch=, since a list's messages are queued; the error proposes a value."""
    with pytest.raises(SignatureError, match="use queue=2000 or more"):
        App().add_route(print, "a", batch=2000, queue=1000)
    App().add_route(print, "a", batch=2000, queue=2000)


@pytest.mark.parametrize(("batch", "queue"), [(None, 1000), (100, 1000), (2000, 8000)])
def test_long_lists_have_room_to_wait_without_a_word_of_mine(batch: int | None, queue: int) -> None:
    """The default queue holds four lists, or a thousand messages if that is more."""
    assert App().add_route(print, "a", batch=batch).options.queue == queue


def test_a_parameter_that_can_be_given_no_list_is_refused() -> None:
    """A parameter for one message, its envelope or nothing is refused; each error names the right annotation."""

    def single(quote: Quote) -> None: ...

    def with_envelope(quotes: list[Quote], envelope: Envelope) -> None: ...

    def envelopes(items: list[Envelope]) -> None: ...

    def nothing() -> None: ...

    for function, text in (
        (single, r"declared as Quote: annotate the parameter with a list .* such as list\[Quote\]"),
        (with_envelope, "is the Envelope of a single message"),
        (envelopes, r"such as list\[Quote\]"),
        (nothing, "has no parameter for the list"),
    ):
        app = App()
        app.add_route(function, "a", batch=10)
        with pytest.raises(SignatureError, match=text) as caught:
            app.compile()
        assert "test_batch_handlers.py:" in str(caught.value)


def test_the_type_of_one_message_is_checked_when_the_app_is_compiled() -> None:
    """list[T] with a T that cannot be decoded is a SchemaError when the app is compiled."""

    def on(items: list[Callable[[], None]]) -> None: ...

    app = App()
    app.add_route(on, "a", batch=10)
    with pytest.raises(SchemaError):
        app.compile()


# -- any order of events -----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 4)), max_size=30),
    st.integers(1, 5),
    st.lists(st.integers(1, 6), min_size=1),
    st.booleans(),
)
def test_the_lists_of_each_topic_are_what_arrived(
    sent: list[tuple[str, int]], most: int, budgets: list[int], by_topic: bool
) -> None:
    """Frames of one or several messages, drains of any length: the lists joined equal the sent messages."""
    got: list[tuple[str, list[int]]] = []

    def with_capture(items: list[int], x: str) -> None:
        got.append((x, items))

    def without(items: list[int]) -> None:
        got.append(("", items))

    made, stats = wired(with_capture if by_topic else without, "a.{x}", batch=most)
    expected: dict[str, list[int]] = {}
    number = 0
    for topic, many in sent:
        items = list(range(number, number := number + many))
        expected.setdefault(topic if by_topic else "", []).extend(items)
        bodies = [packed(item) for item in items]
        made.queue(together(f"a.{topic}", bodies) if many > 1 else plain(f"a.{topic}", items[0]))
    for budget in budgets:
        made.receive(budget)
        assert given_out(stats) == made.stats.routed
    made.feed()
    assert all(1 <= len(items) <= most for _, items in got)
    joined: dict[str, list[int]] = {}
    for topic, items in got:
        joined.setdefault(topic, []).extend(items)
    assert joined == expected
    assert stats.handled == made.stats.routed == number
