"""TestApp gives kept messages to new subscribers, as publishers do over sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.running import running, turns
from tests.support import PATIENCE
from zroute import App, Envelope
from zroute.receiving.session import SubscriberSession
from zroute.testing import TestApp

Reactor = Literal["twisted", "asyncio"]
Got = list[tuple[str, int, bool, Any]]


def apps(endpoint: str) -> tuple[App, App, Got]:
    """Return a publisher that keeps, an app that joins later, and the list of its messages."""
    feed, late, got = App(pub=endpoint), App(sub=endpoint), Got()
    prices = feed.publisher("prices.{symbol}", int, keep="last")
    feed.publisher("others.{symbol}", int)

    @feed.on_startup
    def publish() -> None:
        for number in range(3):
            prices.publish(number, symbol="A", headers={"n": number})
            prices.publish(number, symbol="B")
        feed.publish("others.A", 7)
        feed.publish("prices.B", 8)  # the topic's last message, whatever the subscriptions are
        feed.publish("prices.C", 9)  # the first message of this topic

    taking(late, got)
    return feed, late, got


def taking(app: App, got: Got) -> None:
    """Make ``app`` handle all topics except those of its other handlers."""

    @app.subscribe("prices.A")
    def handle(price: int, envelope: Envelope) -> None:
        got.append((str(envelope.topic), price, envelope.kept, envelope.headers.get("n")))


Wait = Callable[[], Awaitable[object]]


async def story(feed: App, late: App, got: Got, heard: Wait, unsubscribed: Wait) -> None:
    """Join, receive, subscribe to more, to less, and to more again.

    ``heard`` waits for the second message, and ``unsubscribed`` until the publisher has seen the smaller subscription.
    """

    def more(price: int, envelope: Envelope) -> None:
        got.append((f"more {envelope.topic}", price, envelope.kept, envelope.headers.get("n")))

    async def ready() -> None:
        await late.ready(1, timeout=PATIENCE, state=True)

    await ready()
    feed.publish("prices.A", 10)
    await heard()
    attached = late.attach("prices.*", more)
    await ready()
    attached.close()
    await unsubscribed()
    feed.publish("prices.B", 11)
    attached = late.attach("prices.*", more)
    await ready()
    attached.close()
    await unsubscribed()
    late.attach("others.*", more)
    await ready()


TOLD: Got = [
    ("prices.A", 2, True, 2),
    ("prices.A", 10, False, None),
    ("more prices.B", 8, True, None),
    ("more prices.B", 11, True, None),
]
"""The messages that an app receives in the `story`."""


@pytest.mark.parametrize("reactor", ["twisted", "asyncio"])
def test_a_story_of_joins_in_a_test(reactor: Reactor) -> None:
    """In a test, a join needs no time to pass, and no message is counted as lost."""
    feed, late, got = apps("tcp://127.0.0.1:5555")
    told: list[Any] = []

    @late.subscribe("go")
    async def go() -> None:
        ready = partial(late.ready, state=True)
        await story(feed, late, got, ready, ready)
        told.append("all")

    with TestApp(feed, late, reactor=reactor) as t:
        t.publish("go", 1)
        assert told == ["all"]
        assert late.stats.lost == late.stats.malformed == 0
        assert [envelope.topic for envelope in t.envelopes("prices.A")] == [
            "prices.A"
        ] * 4  # kept messages are not published again
    assert got == TOLD


@pytest_twisted.ensureDeferred
async def test_the_same_story_over_sockets(tmp_path: Path) -> None:
    """Sockets give the same messages in the same order."""
    feed, late, got = apps(f"ipc://{tmp_path}/s")
    async with running(feed) as service, running(late):
        assert service.transport is not None
        known = service.transport.pub
        assert known is not None
        unsubscribed = partial(turns, lambda: b"prices." not in known.subscriptions)
        await story(feed, late, got, partial(turns, lambda: len(got) == 2), unsubscribed)
        assert late.stats.lost == 0
    assert got == TOLD


def test_an_app_that_starts_first_is_given_the_stream() -> None:
    """An early reader gets no kept messages, and a stopped publisher gives none."""
    feed, late, got = apps("tcp://127.0.0.1:5555")
    with TestApp(late, feed):
        pass
    assert got == [("prices.A", number, False, number) for number in range(3)]


def test_more_than_a_turn_of_kept_messages_is_there_at_once() -> None:
    """Any number of kept messages arrives at once, as one list for a batch handler."""
    feed, late, got = App(pub="tcp://127.0.0.1:5555"), App(sub="tcp://127.0.0.1:5555"), list[int]()
    state = feed.publisher("state.{n}", int, keep="last")

    @feed.on_startup
    def publish() -> None:
        for number in range(1000):
            state.publish(number, n=number)

    @late.subscribe("state.*", batch=2000)
    def handle(numbers: list[int]) -> None:
        got.append(len(numbers))

    with TestApp(feed, late):
        assert got == [1000]


def test_who_attaches_again_is_given_the_kept_messages_again() -> None:
    """A handler that attaches again gets the kept messages again; others do not."""
    feed, late = App(), App()
    rooms = feed.publisher("rooms.{n}", int, keep="last")
    with TestApp(feed, late) as t:
        for number in range(3):
            rooms.publish(number, n=number)
        got, beside = list[int](), list[int]()
        late.attach("rooms.1", beside.append)
        t.advance(1)
        for _ in range(2):
            attached = late.attach("rooms.*", got.append)
            t.advance(1)
            assert sorted(got) == [0, 2]  # the other one got 1
            attached.close()
            t.advance(1)
            got.clear()
        assert beside == [1]


def test_all_kept_messages_of_a_join_answer_one_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As over sockets, one marker serves all kept messages of a join."""
    feed, late, made = App(pub="tcp://127.0.0.1:5555"), App(sub="tcp://127.0.0.1:5555"), list[bytes]()
    state, make_marker = feed.publisher("state.{n}", int, keep="last"), SubscriberSession.make_marker

    def noted(end: SubscriberSession) -> bytes:
        made.append(make_marker(end))
        return made[-1]

    monkeypatch.setattr(SubscriberSession, "make_marker", noted)

    @feed.on_startup
    def publish() -> None:
        for number in range(10):
            state.publish(number, n=number)

    late.add_route(lambda body: None, "state.*")
    with TestApp(feed, late):
        assert late.stats.received == 10
        assert len(made) == 1


def test_an_app_that_hears_itself_is_given_what_it_keeps() -> None:
    """An app that receives its own messages also receives those that it keeps."""
    app, got = App(), list[tuple[int, bool]]()
    state = app.publisher("state", int, keep="last")

    @app.on_startup
    def publish() -> None:
        state.publish(1)

    @app.subscribe("state")
    def handle(number: int, envelope: Envelope) -> None:
        got.append((number, envelope.kept))

    with TestApp(app):
        assert got == [(1, True)]


def test_ready_waits_until_a_full_route_has_taken_the_kept_messages() -> None:
    """ready(state=True) waits until a slow handler has taken all kept messages."""
    feed, late, slow = App(pub="tcp://127.0.0.1:5555"), App(sub="tcp://127.0.0.1:5555"), list[Deferred[None]]()
    state = feed.publisher("state.{n}", int, keep="last")
    ready: list[str] = []

    @feed.on_startup
    def publish() -> None:
        for number in range(10):
            state.publish(number, n=number)

    @late.subscribe("state.*", queue=2, max_in_flight=1)
    def handle(number: int) -> Awaitable[None]:
        slow.append(Deferred())
        return slow[-1]

    def begin(then: Callable[[Any], None]) -> None:
        Deferred.fromCoroutine(late.ready(state=True, timeout=1000)).addCallback(then)

    with TestApp(feed, late) as t:
        begin(lambda _: ready.append("ready"))
        t.advance(1)
        assert ready == []
        while slow:
            slow.pop(0).callback(None)
            t.advance(0.01)
        assert ready == ["ready"]
        assert late.stats.handled == 10
