"""A topic cache that is full, or that drops heads: it changes no result, and it counts its bytes correctly."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.pure import Wired, plain
from tests.receiving.test_unpacking import CODECS, batch, batch_to_single
from tests.support import sized
from zroute import App, DecodeError
from zroute.stats import Stats

PREFIX, TOPICS = "a.", ("a.x", "a.y", "a.long.name", "b")


@attrs.frozen
class Order:
    number: int


@attrs.frozen
class Sent:
    """Messages of one topic: a plain body, one tracked message, or a coalesced frame.

    ``epoch`` is 0 for a plain body. ``codec`` is the codec of the bodies, and ``states`` is False if the header does
    not state it. ``action`` is what happens to the table before the frame arrives.
    """

    topic: str
    numbers: tuple[int, ...]
    epoch: int = 0
    codec: int = 2
    states: bool = True
    action: str = ""

    @property
    def frame(self) -> bytes:
        """The bytes of the frame."""
        bodies = [CODECS[self.codec](Order(number)) for number in self.numbers]
        if not self.epoch:
            return plain(self.topic, body=bodies[0])
        codec = self.codec if self.states else 0
        frame = batch(self.topic, bodies, codec=codec, epoch=self.epoch, first=1, span=len(PREFIX))
        return frame if len(bodies) > 1 else batch_to_single(frame, bodies[0])


def forget_a_head(wired: Wired) -> None:
    """Forget the oldest head of each topic whose closure searches heads."""
    entries = wired.table._entries
    for topic, heads in list(entries.tracked.items()):
        entries.forget_head(topic, next(iter(heads)))


ACTIONS: dict[str, Callable[[Wired], None]] = {
    "": lambda wired: None,
    "accounts": lambda wired: wired.table.forget_accounts(),
    "head": forget_a_head,
    "topic": lambda wired: wired.table._entries.forget(TOPICS[0].encode()),
    "all": lambda wired: wired.table.reclassify(),
}

SENT = st.builds(
    Sent,
    st.sampled_from(TOPICS),
    st.lists(st.integers(0, 99), min_size=1, max_size=3).map(tuple),
    st.integers(0, 4),
    st.sampled_from(sorted(CODECS)),
    st.booleans(),
    st.sampled_from([""] * 12 + sorted(ACTIONS)),
)


def handler(index: int, got: list[Any]) -> Callable[..., None]:
    """Return a handler that records its calls."""

    def handle(order: Order) -> None:
        got.append((index, order))

    return handle


def received(sents: list[Sent], handlers: int, budget: int | None, heads: int) -> tuple[list[Any], Stats]:
    """Return the handled messages and the counters.

    ``budget`` is that of the cache, or None for a cache that is empty before each frame.
    """
    app, got = App(codec="msgpack"), list[Any]()
    for index in range(handlers):
        app.add_route(handler(index, got), "a.>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zroute.receiving.topic_cache.TOPIC_CACHE", budget or 10**9)
        patch.setattr("zroute.receiving.topic_cache.PUBLISHERS_KEPT", heads)
        patch.setattr("zroute.receiving.topic_cache._MAKERS", heads)
        wired = Wired(app)
        entries = wired.table._entries
        for sent in sents:
            if budget is None:
                entries.clear()
            else:
                ACTIONS[sent.action](wired)
            wired.feed(sent.frame)
            assert sum(entry.size + entry.heads for entry in entries._entries.values()) == entries._budget.used
            assert entries.direct.keys() | entries.tracked.keys() <= entries._entries.keys()
            assert all(0 < len(known) <= heads for known in entries.tracked.values())
            assert all(len(kept) <= heads for kept in (entries._makers, entries._frame_makers, entries._heads))
    assert wired.balanced()
    wired.stats.cache_misses = 0
    return got, wired.stats


UNSTATED = [Sent("a.x", (1,), epoch=1, states=False)]
FORGOTTEN = [Sent("a.x", (1,), epoch=1, action=action) for action in ("", "head", "")]
SWITCHES = [
    Sent("a.x", (1, 2, 3)[:many], epoch, codec) for epoch in (0, 1, 2, 3) for codec in (2, 1) for many in (1, 3)
]


@example(UNSTATED * 3, 1, 1_000, 1_024)
@example(SWITCHES * 2, 1, 10**9, 2)
@example(SWITCHES * 2, 2, 4_000, 3)
@example(SWITCHES, 1, 300, 1_024)
@example(FORGOTTEN, 2, 10**9, 1_024)
@given(
    st.lists(SENT, max_size=25),
    st.sampled_from((1, 1, 2)),
    st.sampled_from((300, 1_000, 2_000, 4_000, 10**9)),
    st.sampled_from((1, 2, 3, 1_024)),
)
@settings(max_examples=sized(1_000, 60))
def test_a_full_cache_changes_no_result(sents: list[Sent], handlers: int, budget: int, heads: int) -> None:
    """Random frames give the same calls and counters, and the bytes of all entries are counted."""
    assert received(sents, handlers, budget, heads) == received(sents, handlers, None, heads)


def visited_objects() -> int:
    """Return the number of objects that a full garbage collection visits."""
    gc.collect()
    return len(gc.get_objects())


def takes_order() -> Callable[..., None]:
    """Return a handler of the body."""

    def handle(order: Order) -> None: ...

    return handle


def takes_captures() -> Callable[..., None]:
    """Return a handler of the body and captured segments."""

    def handle(desk: str, order: Order, *, number: int) -> None: ...

    return handle


FORMS: dict[str, list[Callable[[str], Sent]]] = {
    "msgpack": [lambda topic: Sent(topic, (1,), codec=1)],
    "json": [lambda topic: Sent(topic, (1,), codec=2)],
    "tracked": [lambda topic: Sent(topic, (1,), epoch=1)],
    "coalesced": [lambda topic: Sent(topic, (1, 2), epoch=1)],
    "turns": [lambda topic: Sent(topic, (1,), epoch=1), lambda topic: Sent(topic, (1, 2), epoch=1)],
}
"""The messages of each topic."""


@pytest.mark.parametrize("make", [takes_order, takes_captures])
@pytest.mark.parametrize("form", FORMS)
def test_the_garbage_collector_visits_few_objects_of_a_topic(make: Any, form: str) -> None:
    """A topic has an entry and a closure; with frames in turn, two closures."""
    app, each = App(), len(FORMS[form])
    app.add_route(make(), "a.{desk}.{number}")
    wired = Wired(app)
    frames = [made(f"a.x.{number}").frame for number in range(300) for made in FORMS[form]]
    wired.feed(*frames[: 100 * each])
    before = visited_objects()
    wired.feed(*frames[100 * each :])
    assert len(wired.table._entries) == 300
    assert wired.stats.handled == wired.stats.received
    assert (visited_objects() - before) / 200 <= 1.1 + each


def test_more_makers_than_fit_drop_a_part() -> None:
    """Handlers that alternate do not make all of their closures again."""
    app = App()
    for number in range(80):
        app.add_route(takes_order(), f"a.{number}.*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zroute.receiving.topic_cache._MAKERS", 64)
        wired = Wired(app)
        wired.feed(*[Sent(f"a.{number}.x", (1,), codec=1).frame for number in range(80)])
    assert 60 < len(wired.table._entries._makers) <= 64
    assert wired.stats.handled == 80


def test_one_json_body_is_enough_for_handlers_without_a_message() -> None:
    """Only handlers that have received msgpack fail at a JSON body before they try JSON first."""
    app, found = App(), list[object]()
    for number in range(20):
        app.add_route(takes_order(), f"a.{number}.*")
    wired = Wired(app)
    entries = wired.table._entries
    search = entries._found_json
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "_found_json", lambda route: (found.append(route), search(route)))
        for codec, numbers in ((1, (0, 1, 2)), (2, range(20)), (1, range(20)), (2, range(20))):
            wired.feed(*[Sent(f"a.{number}.x", (1,), codec=codec).frame for number in numbers])
    assert len(found) == 3
    assert wired.stats.handled == 63


def test_topics_without_a_route_share_their_closures() -> None:
    """The garbage collector visits only the entry of such a topic."""
    app = App()
    app.add_route(takes_order(), "a.{desk}.{number}")
    wired = Wired(app)
    frames = [Sent(f"a.x{number}", (1,)).frame for number in range(300)]
    wired.feed(*frames[:100])
    before = visited_objects()
    wired.feed(*frames[100:], b"a.\xff\0" + b"1")
    assert (wired.stats.unrouted, wired.stats.malformed) == (300, 1)
    assert (visited_objects() - before) / 200 <= 1.1


@pytest.mark.parametrize("other", ["b.{y}.{x}", "a.{x}.{y}.>"])
def test_a_function_of_all_topics_names_the_topic_of_its_errors(other: str, caplog: pytest.LogCaptureFixture) -> None:
    """Errors, refused bodies and dead letters have their topic and captures."""
    app = App(codec="json")

    def handle(order: Order, y: str) -> None:
        raise ValueError(y, order.number)

    app.add_route(handle, "a.{x}.{y}", other, dead="dead.{x}.{y}")
    wired = Wired(app)
    topics = {"a.1.2": "1.2", "a.2.1": "2.1", "b.1.2": "2.1", "a.5.6.7": "5.6"}
    frames = {topic: Sent(topic, (3,)).frame for topic in topics}
    wired.feed(*frames.values(), *frames.values(), *[plain(topic, body=b"?") for topic in topics])
    met = [topic for topic in topics if topic in ("a.1.2", "a.2.1") or topic.startswith("b.") == other.startswith("b.")]
    assert [sent[0] for sent in wired.sent] == [f"dead.{topics[topic]}" for topic in met * 3]
    errors = [error.topic if isinstance(error, DecodeError) else error.args for error, _ in wired.errors]
    assert errors == [(topics[topic][-1], 3) for topic in met * 2] + met
    assert f"failed on '{met[0]}'" in caplog.text
