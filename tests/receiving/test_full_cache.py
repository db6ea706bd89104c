"""A topic cache that is full, or that drops heads: it changes no result, and it counts its bytes correctly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.pure import Wired, plain
from tests.receiving.test_unpacking import CODECS, batch, batch_to_single
from tests.support import sized
from zroute import App
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
