"""The functions of ``snapshot=``: who calls them, how often, and what happens if they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from zroute import App, EncodeError, Envelope, Routes, SignatureError, UsageError
from zroute.functions import defined_at, name_of
from zroute.messages.control import Marker, pack_marker, parse_marker
from zroute.publishing import snapshots as module
from zroute.publishing.retained import LastValue, LastValueCache
from zroute.publishing.snapshots import Made, SnapshotCalls, Snapshots
from zroute.testing import TestApp

HERE = "test_snapshot_functions.py:"
ADDRESS = "tcp://127.0.0.1:5555"


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no real time pass: on a busy machine, it would end the work of a turn earlier."""
    monkeypatch.setattr(module, "perf_counter", lambda: 0.0)


async def _async(symbol: str) -> int:
    return 1


def _generator(symbol: str) -> Iterator[int]:
    yield 1


async def _async_generator(symbol: str) -> Any:
    yield 1


class _Async:
    async def __call__(self, symbol: str) -> int:
        return 1


@pytest.mark.parametrize("function", [_async, _generator, _async_generator, _Async()])
def test_a_function_that_is_not_plain_is_refused(function: Any) -> None:
    """The error names the function and its line, and says why it must be plain."""
    with pytest.raises(SignatureError, match=r"must be a plain function.*remove async and yield") as raised:
        Routes().publisher("book.{symbol}", int, snapshot=function)
    assert raised.value.parameter == "snapshot"
    assert HERE in str(raised.value.where)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"snapshot": 5}, "snapshot=5: expected a function"),
        ({"snapshot": lambda book: 1}, "has the parameter 'book', but zroute calls .* by name: symbol"),
        ({"snapshot": lambda symbol: 1, "keep": "last"}, "keep='last' can't be combined with snapshot="),
        ({"topics": list}, r"topics=list\(\) needs snapshot="),
        ({"snapshot": lambda symbol: 1, "topics": 5}, "topics=5: expected a function"),
        ({"snapshot": lambda symbol: 1, "topics": lambda x: []}, "has the parameter 'x', .* without arguments"),
        ({"snapshot": lambda symbol: 1, "topics": _async}, "must be a plain function"),
    ],
)
def test_what_can_not_work_is_refused_at_its_line(options: dict[str, Any], text: str) -> None:
    """Each mistake is a SignatureError with the user's line."""
    with pytest.raises(SignatureError, match=text) as raised:
        Routes().publisher("book.{symbol}", int, **options)
    assert HERE in str(raised.value.where)


def _apps(snapshot: Any, topics: Any = lambda: [{"symbol": "A"}], pattern: str = "book.{symbol}") -> Any:
    """Return a publisher and a subscriber, its publication, and what the subscriber handles."""
    feed, desk = App(pub=ADDRESS, name="feed", codec="json"), App(sub=ADDRESS, name="desk")
    books = feed.publisher(pattern, int, snapshot=snapshot, topics=topics)
    got: list[tuple[str, int, str]] = []

    @desk.subscribe(">")
    def handle(body: int, envelope: Envelope) -> None:
        got.append((str(envelope.topic), body, envelope.origin))

    return feed, desk, books, got


def test_a_subscriber_receives_the_state_and_then_the_changes() -> None:
    """In TestApp, as over sockets: the snapshot first, and then what was published after it."""
    feed, desk, books, got = _apps(lambda symbol: 7)
    with TestApp(feed, desk) as t:
        books.publish(8, symbol="A")
        t.advance(1)
    assert got == [("book.A", 7, "snapshot"), ("book.A", 8, "live")]
    assert (feed.stats.snapshots, feed.stats.snapshot_errors) == (1, 0)


def test_the_topics_are_those_that_were_published_in_this_run() -> None:
    """Without ``topics=``, a subscriber receives the state of each topic that was used before it joined."""
    feed, desk, books, got = _apps(lambda symbol: {"A": 1, "B": 2}[symbol], topics=None)

    @feed.on_startup
    def begin() -> None:
        books.publish(0, symbol="B")
        books.publish(0, symbol="A")

    with TestApp(feed, desk):
        pass
    assert got == [("book.A", 1, "snapshot"), ("book.B", 2, "snapshot")]


def test_a_publisher_with_a_single_topic_knows_it() -> None:
    """A pattern without captures has a snapshot before anything was published."""
    feed, desk, _, got = _apps(lambda: 5, topics=None, pattern="book")
    with TestApp(feed, desk):
        pass
    assert got == [("book", 5, "snapshot")]


def test_captures_have_the_types_of_the_parameters() -> None:
    """A parameter annotated with int receives an int; captures that the function does not take are left out."""

    def full(number: int) -> int:
        return number + 1

    feed, desk, _, got = _apps(full, lambda: [{"symbol": "A", "number": 41}], "book.{symbol}.{number}")
    with TestApp(feed, desk):
        pass
    assert got == [("book.A.41", 42, "snapshot")]


def test_none_is_no_state() -> None:
    """A function that returns None sends nothing, and this is no error."""
    feed, desk, _, got = _apps(lambda symbol: None)
    with TestApp(feed, desk):
        pass
    assert got == []
    assert (feed.stats.snapshots, feed.stats.snapshot_errors) == (0, 0)


def _raises(symbol: str) -> int:
    raise ZeroDivisionError("no book")


@pytest.mark.parametrize(
    ("snapshot", "error"),
    [(_raises, ZeroDivisionError), (lambda symbol: "text", EncodeError), (lambda symbol: _async(symbol), UsageError)],
)
def test_a_failure_is_counted_and_logged(snapshot: Any, error: type, caplog: pytest.LogCaptureFixture) -> None:
    """An exception, a wrong type and a coroutine: counted and logged with the line; the app goes on."""
    feed, desk, books, got = _apps(snapshot)
    with TestApp(feed, desk, raise_errors=False) as t:
        books.publish(3, symbol="A")
        t.advance(1)
        assert [type(each) for each in t.failures] == [error]
    assert got == [("book.A", 3, "live")]
    assert (feed.stats.snapshots, feed.stats.snapshot_errors) == (0, 1)
    line = f"could not get a snapshot of 'book.A' from {name_of(snapshot)} ({defined_at(snapshot)}): {error.__name__}:"
    assert line in caplog.text


def test_a_function_that_always_fails_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Requests that follow count the same failure; another failure of the function is logged with its traceback."""
    errors: list[type[Exception]] = [ZeroDivisionError] * 30 + [KeyError]

    def snapshot(symbol: str) -> int:
        raise errors.pop()

    feed = App(pub=ADDRESS, name="feed", codec="json")
    feed.publisher("book.{symbol}", int, snapshot=snapshot, topics=lambda: [{"symbol": "A"}])
    desk = App(sub=ADDRESS, name="desk")
    with TestApp(feed, desk, raise_errors=False) as t:
        while errors:
            desk.attach("book.{symbol}", lambda body: None).close()
            t.advance(8)
    assert feed.stats.snapshot_errors == 31
    shown = [type(record.exc_info[1]) for record in caplog.records if record.exc_info and record.exc_info[1]]
    assert shown == [KeyError, ZeroDivisionError]
    assert "feed: failed snapshots: 29 more lines like these were not shown" in caplog.messages


@pytest.mark.parametrize("function", ["snapshot", "topics"])
@pytest.mark.parametrize(
    ("error", "code", "errors"), [(SystemExit(3), 3, 0), (KeyboardInterrupt(), None, 1), (GeneratorExit(), None, 1)]
)
def test_an_exit_stops_the_app_as_in_handlers(
    function: str, error: BaseException, code: int | None, errors: int, caplog: pytest.LogCaptureFixture
) -> None:
    """SystemExit of either function stops the app and is no failure; other errors that are no Exception are counted."""

    def leave(**_: str) -> Any:
        raise error

    given: dict[str, Any] = {"snapshot": lambda symbol: 1, "topics": lambda: [{"symbol": "A"}], function: leave}
    feed, desk, _, got = _apps(**given)
    t = TestApp(feed, desk, raise_errors=False)
    with suppress(KeyboardInterrupt), t:  # a test ends with it, as with Ctrl-C
        t.advance(1)
    assert (t.exit_code, got, t.failures) == (code, [], [error])
    assert (feed.stats.snapshots, feed.stats.snapshot_errors) == (0, errors)
    assert ("could not get" in caplog.text) == bool(errors)


def test_a_failure_of_topics_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A topics function with a wrong capture is an error with its name and line, and sends nothing."""

    def topics() -> list[dict[str, str]]:
        return [{"wrong": "A"}]

    feed, desk, _, got = _apps(lambda symbol: 1, topics)
    with TestApp(feed, desk, raise_errors=False):
        pass
    assert got == []
    assert feed.stats.snapshot_errors == 1
    assert f"could not get the topics of snapshots from topics() ({defined_at(topics)}): TopicError:" in caplog.text


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        (["A"], "it returned str for a topic; expected a list with the captures of each topic, as in [{'symbol': …}]"),
        ([("A",)], "it returned tuple for a topic; expected a list"),
        ({"symbol": "A"}, "it returned dict; expected a list"),
        (None, "it returned NoneType; expected a list"),
    ],
)
def test_topics_in_another_form_are_refused_with_an_example(
    returned: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the topics function shows the expected form."""
    feed, desk, _, got = _apps(lambda symbol: 1, lambda: returned)
    with TestApp(feed, desk, raise_errors=False):
        pass
    assert (got, feed.stats.snapshot_errors) == ([], 1)
    assert f"UsageError: {fault}" in caplog.text


def test_an_annotation_that_contradicts_the_schema_is_refused() -> None:
    """A snapshot function is checked like a decorated function, as soon as the app is compiled."""

    def state(symbol: str) -> str:
        return "text"

    feed = App(pub=ADDRESS)
    feed.publisher("book.{symbol}", int, snapshot=state)
    with pytest.raises(SignatureError, match=r"state\(\) returns str, but publisher\('book.{symbol}', int\)") as raised:
        feed.compile()
    assert HERE in str(raised.value.where)
    fits = App(pub=ADDRESS)

    def maybe(symbol: str) -> int | None:
        return None

    fits.publisher("book.{symbol}", int, snapshot=maybe)
    fits.compile()


def test_the_line_of_a_function_is_that_of_its_definition() -> None:
    """The line in the log is that of the function, not that of the call of publisher()."""
    here = f"test_snapshot_functions.py:{_raises.__code__.co_firstlineno}"
    assert defined_at(_raises).endswith(here)
    assert defined_at(partial(_raises, symbol="A")).endswith(here)
    assert defined_at(len) == ""


@pytest.mark.parametrize("way", ["publication", "other", "app"])
def test_a_function_can_not_publish_to_its_own_topic(way: str) -> None:
    """Such a message could not be told from the state; to other topics, the function may publish."""
    feed, desk, books, got = _apps(lambda symbol: publish())
    other, log = feed.publisher("book.A", int), feed.publisher("log", int)
    ways = {
        "publication": lambda: books.publish(1, symbol="A"),
        "other": lambda: other.publish(1),
        "app": lambda: feed.publish("book.A", 1),
    }

    def publish() -> int:
        log.publish(1)
        ways[way]()
        return 1

    @feed.on_startup
    def warm() -> None:
        ways[way]()  # so that the topic has its fast path

    with TestApp(feed, desk, raise_errors=False) as t:
        assert [type(each) for each in t.failures] == [UsageError]
        assert "is being called" in str(t.failures[0])
        ways[way]()
        t.advance(1)
    assert got == [("log", 1, "live"), ("book.A", 1, "live")]


# -- joins and renewals --------------------------------------------------------------------------------------


def marker(subscriber: int, attempt: int = 1, *wanted: bytes) -> Marker:
    """Return a marker of a subscriber."""
    return parse_marker(pack_marker(subscriber << 16 | attempt, wanted))


class Cache:
    """A cache with snapshots of a number of topics, and what it sends."""

    def __init__(self, topics: int, make: Any = lambda symbol: 1) -> None:
        self.clock, self.made = Clock(), list[str]()
        self.sent: list[tuple[int, int, bytes, Any]] = []
        self.numbers: dict[bytes, int] = {}
        self.waiting: set[bytes] = set()
        self.errors: list[BaseException | None] = []
        self.kept = LastValueCache(self.clock, self.send, lambda: None)

        def full(symbol: str) -> Any:
            self.made.append(symbol)
            return make(symbol)

        app = App(pub=ADDRESS, codec="json")
        app.publisher("b.{symbol}", int, snapshot=full, topics=lambda: [{"symbol": f"{n:05}"} for n in range(topics)])
        calls = SnapshotCalls(
            lambda topic: None,
            self.waiting.__contains__,
            lambda topic: self.numbers.get(topic, 0),
            lambda: self.errors.append(None),
            lambda function, topic, error: self.errors.append(error),
            self.kept.add_state,
            self.kept.discard_state,
        )
        self.kept.snapshots = Snapshots(self.clock, lambda: 5, 1000, app.compile().parts.outlets, calls)

    def send(self, to: Marker, number: int, topic: bytes, message: Any) -> bool:
        """Record what is sent."""
        self.sent.append((to.subscriber, number, topic, message))
        return True


def test_all_joiners_of_a_turn_share_a_snapshot() -> None:
    """20 subscribers join in one turn: one call of the function; a later one, and one after a message, cause others."""
    cache = Cache(1)
    for subscriber in range(20):
        cache.kept.join(marker(subscriber))
    assert cache.made == ["00000"]
    assert sum(isinstance(message, Made) for *_, message in cache.sent) == 20
    cache.numbers[b"b.00000"] = 1
    cache.kept.join(marker(21))
    assert len(cache.made) == 2
    cache.clock.advance(0)
    cache.kept.join(marker(22))
    assert len(cache.made) == 3


def test_a_subscriber_counts_a_failed_snapshot_as_lost() -> None:
    """A failed snapshot uses a number, so the joiner learns of it; None does not."""
    cache = Cache(3, lambda symbol: {"00000": 1, "00001": "wrong", "00002": None}[symbol])
    cache.kept.join(marker(7))
    assert [(number, topic) for _, number, topic, _ in cache.sent] == [(1, b"b.00000"), (3, b"")]
    assert [type(error) for error in cache.errors] == [type(None), EncodeError]


def test_snapshots_are_sent_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of 2 ms each: at most three in a period of 10 ms, and then a period without."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.002
        return now

    monkeypatch.setattr(module, "perf_counter", clock)
    cache = Cache(100)
    cache.kept.join(marker(7))
    before, most = 0, 0
    for _ in range(200):
        most, before = max(most, len(cache.made) - before), len(cache.made)
        cache.clock.advance(0.01)
    assert most <= 3
    assert len(cache.made) == 100


def test_a_snapshot_waits_for_messages_of_its_topic() -> None:
    """While a message of the topic waits to be sent, its function is not called."""
    cache = Cache(2)
    cache.waiting.add(b"b.00001")
    cache.kept.join(marker(7))
    cache.clock.advance(0.01)
    assert cache.made == ["00000"]
    cache.waiting.clear()
    cache.clock.advance(0.01)
    assert cache.made == ["00000", "00001"]


def test_a_renewal_sends_all_snapshots_again_and_no_kept_messages() -> None:
    """A request is answered with the snapshots of its prefix, and an end with its number."""
    cache = Cache(3)
    cache.kept.keep(b"b.kept", 1, b"1", None, 1)
    cache.kept.join(marker(7))
    cache.clock.advance(0.01)
    assert [topic for _, _, topic, _ in cache.sent] == [b"b.00000", b"b.00001", b"b.00002", b"b.kept", b""]
    del cache.sent[:]
    cache.kept.renew(7, b"b.00001", 9)
    assert [(number, topic) for _, number, topic, _ in cache.sent] == [(5, b"b.00001"), (6, b"")]
    assert cache.sent[-1][3] == 9
    cache.kept.renew(8, b"", 9)  # unknown: it will join
    assert len(cache.sent) == 2
    cache.kept.join(marker(7, 2))
    assert [topic for _, _, topic, _ in cache.sent[2:]] == [b""]


def test_a_repeated_request_does_not_begin_again_and_a_new_one_follows() -> None:
    """During a long answer, the same number changes nothing; a new number is answered after it."""
    cache = Cache(500)
    cache.kept.join(marker(7))
    cache.clock.pump([0.01] * 300)
    del cache.made[:], cache.sent[:]
    cache.kept.renew(7, b"b.", 1)
    cache.kept.renew(7, b"b.", 1)
    cache.kept.renew(7, b"b.", 2)
    cache.clock.pump([0.01] * 300)
    assert len(cache.made) == 1000
    assert [message for _, _, topic, message in cache.sent if not topic] == [1, 2]


def test_a_topic_that_is_gone_has_no_snapshot() -> None:
    """``topics`` is asked at each join; a topic that it no longer returns is left out."""
    cache, topics = Cache(2), [{"symbol": "x"}]
    outlet = cache.kept.snapshots._outlets[0]  # type: ignore[union-attr]
    cache.kept.join(marker(7))
    cache.clock.advance(0)
    outlet.publication.snapshot = attrs.evolve(outlet.publication.snapshot, topics=lambda: topics)
    cache.kept.join(marker(8))
    cache.clock.pump([0.01] * 20)  # on a busy machine, the refresh takes more than one period
    assert [topic for to, _, topic, _ in cache.sent if to == 8] == [b"b.x", b""]


def test_kept_messages_and_snapshots_stay_apart() -> None:
    """A kept message that an earlier run of a walk has sent is not sent again because of a snapshot."""
    cache = Cache(1)
    cache.kept.keep(b"a", 1, b"1", None, 1)
    cache.kept.join(marker(7))
    assert [type(message) for *_, message in cache.sent] == [LastValue, Made, type(None)]
