"""SubscriberCount: a publisher can wait for its subscribers."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.running import Mailbox, running
from tests.support import PATIENCE
from zroute import App, NotReadyError, NotRunningError, as_awaitable
from zroute.messages.control import pack_marker
from zroute.messages.topics import parse
from zroute.publishing.subscriber_count import SubscriberCount
from zroute.testing import TestApp

NEWS = parse("news.{kind}")


def seen(*prefixes: bytes) -> SubscriberCount:
    """Return a SubscriberCount that received these subscriptions a while ago."""
    clock = Clock()
    subscribers = SubscriberCount(clock, tracked=True)
    for prefix in prefixes:
        subscribers.subscription(prefix, there=True)
    clock.advance(1)
    return subscribers


@pytest.mark.parametrize(
    ("prefixes", "number"),
    [
        ((), 0),
        ((b"sports.",), 0),
        ((b"news.",), 1),
        ((b"news.uk", b"n", b""), 1),
        ((b"news.", pack_marker(1 << 16, [b"news."])), 1),
        ((b"news.", pack_marker(1 << 16, [b"news."]), pack_marker(2 << 16, [b"news.", b"a."])), 2),
        ((b"news.", b"news.x", pack_marker(1 << 16, [b"news."]), pack_marker(2 << 16, [b"a."])), 1),
        ((b"news.x", b"n", pack_marker(1 << 16, [b"news.x"])), 2),
        ((b"", pack_marker(1 << 16, [b""])), 1),
        ((b"a.", pack_marker(1 << 16, [b"a."])), 0),
        ((b"news.", b"\xff\xffzr no marker"), 1),
    ],
)
def test_tracking_subscribers_are_counted_singly_and_all_others_as_one(
    prefixes: tuple[bytes, ...], number: int
) -> None:
    """Each marker counts as a subscriber, and other subscriptions as one plain reader."""
    assert seen(*prefixes).number(NEWS) == number


def test_a_topic_without_captures_is_heard_by_those_who_subscribe_to_all_of_it() -> None:
    """A subscriber of ``news.x`` does not count for ``news``."""
    assert seen(b"news.x").number(parse("news")) == 0
    assert seen(b"new").number(parse("news")) == 1


def test_who_waits_is_told_in_the_next_turn_and_those_who_have_gone_count_no_more() -> None:
    """A subscriber that left before the second came does not count."""
    clock = Clock()
    subscribers = SubscriberCount(clock, tracked=True)
    told: list[None] = []
    subscribers.wait_for(NEWS, 2).addCallback(told.append)
    subscribers.subscription(b"news.", there=True)
    for number in (1, 2, 3):
        assert not told
        subscribers.subscription(pack_marker(number << 16, [b"news."]), there=True)
        if number == 1:
            subscribers.subscription(pack_marker(number << 16, [b"news."]), there=False)
        clock.advance(0)
    assert told == [None]


def test_a_subscription_counts_when_its_marker_could_have_come() -> None:
    """A tracked subscriber counts at once, a plain reader after a quarter of a second."""
    clock = Clock()
    subscribers = SubscriberCount(clock, tracked=True)
    told: list[None] = []
    subscribers.wait_for(NEWS, 1).addCallback(told.append)
    subscribers.subscription(b"news.", there=True)
    clock.pump([0, 0.1, 0.1])
    assert not told
    clock.pump([0.1, 0.2])
    assert told == [None]
    at_once = SubscriberCount(clock, tracked=False)  # subscribers of other wires send no markers
    at_once.subscription(b"news.", there=True)
    assert at_once.number(NEWS) == 1


def test_at_the_end_nobody_waits_on() -> None:
    """A stop ends all waiting and leaves no timer."""
    clock = Clock()
    subscribers = SubscriberCount(clock, tracked=True)
    waiting = subscribers.wait_for(NEWS, 1)
    ended: list[object] = []
    waiting.addErrback(ended.append)
    subscribers.subscription(b"a", there=True)
    subscribers.close()
    assert ended
    assert not clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wire", ["tracked", "plain"])
async def test_nothing_is_published_before_somebody_listens(tmp_path: Path, wire: str) -> None:
    """After waiting for one subscriber, the first message reaches it."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher, reader, got = App(pub=endpoint, wire=wire), App(sub=endpoint), Mailbox[int]()  # type: ignore[arg-type]
    news = publisher.publisher("news.{kind}", int)
    reader.add_route(got.put, "news.*")
    async with running(publisher):
        waiting = Deferred.fromCoroutine(news.wait_for_subscribers(timeout=PATIENCE))
        assert not waiting.called
        async with running(reader):
            await waiting
            for number in range(3):
                news.publish(number, kind="uk")
            assert await got.until(3) == [0, 1, 2]


@pytest_twisted.ensureDeferred
async def test_too_few_is_an_error_that_says_how_many(tmp_path: Path) -> None:
    """The error for a missing subscriber names the number that came."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher, reader = App(pub=endpoint), App(sub=endpoint)
    news = publisher.publisher("news.{kind}", int)
    reader.add_route(lambda number: None, "news.*")
    with pytest.raises(NotRunningError, match="no running app includes this publication"):
        await as_awaitable(Deferred.fromCoroutine(news.wait_for_subscribers()))
    async with running(publisher), running(reader):
        await news.wait_for_subscribers(timeout=PATIENCE)
        with pytest.raises(NotReadyError, match=r"only 1 of 2 subscribers of 'news\.\{kind\}' joined within 0\.1 s"):
            await news.wait_for_subscribers(2, timeout=0.1)


def test_in_a_test_without_sockets_nobody_is_waited_for() -> None:
    """wait_for_subscribers works in TestApp."""
    app = App(pub="tcp://127.0.0.1:1")
    news = app.publisher("news", int)

    @app.on_startup
    async def begin() -> None:
        await news.wait_for_subscribers(3)
        news.publish(7)

    with TestApp(app) as test:
        assert test.published("news") == [7]
