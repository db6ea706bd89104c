"""`ready(state=True)` returns when all kept messages have been received or counted as lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox, running, turns
from tests.support import PATIENCE, Child
from zroute import App, Envelope, NotReadyError
from zroute.messages.wire import NUL, Kind, parse_header, parse_kept


def feed(endpoint: str, name: str, number: int, **options: Any) -> App:
    """Return an app that keeps a message on each of ``number`` topics from its start."""
    app = App(pub=endpoint, name=name, **options)
    state = app.publisher(f"state.{name}.{{n}}", int, keep="last" if options.get("wire") != "plain" else None)

    @app.on_startup
    def publish() -> None:
        for n in range(number):
            state.publish(n, n=n)

    return app


def reader(*endpoints: str, **options: Any) -> tuple[App, list[tuple[str, int, bool]]]:
    """Return an app and the list of the messages that it has handled."""
    app, got = App(sub=endpoints), list[tuple[str, int, bool]]()

    @app.subscribe("state.{name}.*", **options)
    def handle(number: int, name: str, envelope: Envelope) -> None:
        got.append((name, number, envelope.kept))

    return app, got


def kept(name: str, number: int) -> set[tuple[str, int, bool]]:
    """Return the kept messages of a `feed` as a `reader` lists them."""
    return {(name, n, True) for n in range(number)}


@pytest.mark.parametrize("overflow", ["drop", "raise", "wait"])
@pytest_twisted.ensureDeferred
async def test_all_that_is_kept_has_been_handled(tmp_path: Path, overflow: str) -> None:
    """ready(state=True) waits for more kept messages than one turn sends; ready() alone does not."""
    endpoint = f"ipc://{tmp_path}/s"
    late, got = reader(endpoint)
    async with running(feed(endpoint, "a", 700, overflow=overflow)), running(late):
        await late.ready(timeout=PATIENCE)
        assert len(got) < 700
        await late.ready(timeout=PATIENCE, state=True)
        assert set(got) == kept("a", 700)
        assert len(got) == 700
        await late.ready(timeout=PATIENCE, state=True)  # the second time it returns at once
        assert late.stats.lost == 0


@pytest_twisted.ensureDeferred
async def test_all_publishers_are_waited_for_also_those_that_keep_nothing(tmp_path: Path) -> None:
    """By default ready(state=True) waits for all connected publishers, also those that keep nothing."""
    endpoints = [f"ipc://{tmp_path}/{name}" for name in "abc"]
    late, got = reader(*endpoints)
    first, second, third = (feed(to, name, many) for to, name, many in zip(endpoints, "abc", (900, 3, 0), strict=True))
    async with running(first), running(second), running(third), running(late):
        await late.ready(3, timeout=PATIENCE, state=True)
        assert set(got) == kept("a", 900) | kept("b", 3)
        await late.ready(timeout=PATIENCE, state=True)


@pytest_twisted.ensureDeferred
async def test_lists_have_been_handed_over(tmp_path: Path) -> None:
    """Kept messages have also been handed to a plain function with batch=."""
    endpoint = f"ipc://{tmp_path}/s"
    late, got = App(sub=endpoint), list[int]()

    @late.subscribe("state.>", batch=1000)
    def handle(numbers: list[int]) -> None:
        got.extend(numbers)

    async with running(feed(endpoint, "a", 450)), running(late):
        await late.ready(1, timeout=PATIENCE, state=True)
        assert sorted(got) == list(range(450))


@pytest_twisted.ensureDeferred
async def test_what_is_attached_is_waited_for(tmp_path: Path) -> None:
    """After an attach, it waits for the kept messages of the new subscription, even if there are none."""
    endpoint = f"ipc://{tmp_path}/s"
    late, got = App(sub=endpoint), list[int]()
    async with running(feed(endpoint, "a", 300)), running(late):
        for pattern, number in (("state.a.299", 1), ("state.none", 1), ("state.>", 300)):
            late.attach(pattern, lambda message: got.append(message))
            await late.ready(1, timeout=PATIENCE, state=True)
            assert len(set(got)) == number


@pytest_twisted.ensureDeferred
async def test_a_newer_message_takes_the_place_of_a_kept_one(tmp_path: Path) -> None:
    """A message published while kept messages are sent is received in place of the kept one."""
    endpoint = f"ipc://{tmp_path}/s"
    source = feed(endpoint, "a", 600)
    late, got = reader(endpoint)
    async with running(source), running(late):
        await late.ready(1, timeout=PATIENCE)
        for n in range(600):
            source.publish(f"state.a.{n}", 1000 + n)
        await late.ready(1, timeout=PATIENCE, state=True)
        assert {number % 1000 for _, number, _ in got} == set(range(600))
        assert late.stats.lost == 0


@pytest_twisted.ensureDeferred
async def test_a_plain_publisher_keeps_nothing(tmp_path: Path) -> None:
    """It does not wait for a plain publisher, but for a tracked one beside it."""
    endpoints = [f"ipc://{tmp_path}/{name}" for name in "ab"]
    late, got = reader(*endpoints)
    async with running(feed(endpoints[0], "a", 5, wire="plain")), running(feed(endpoints[1], "b", 300)), running(late):
        await late.ready(timeout=PATIENCE, state=True)
        assert set(got) == kept("b", 300)


# -- through a proxy that drops frames ------------------------------------------------------------------------


@contextmanager
def proxy(front: str, back: str, passes: Callable[[bytes], bool]) -> Iterator[None]:
    """Forward subscriptions, and those frames of the publisher for which ``passes`` returns True."""
    context: zmq.Context[Any] = zmq.Context()
    xsub, xpub = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    control, stop = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    control.bind("inproc://stop")
    stop.connect("inproc://stop")
    xpub.bind(back)
    xsub.connect(front)

    def forward() -> None:
        poller = zmq.Poller()
        for each in (xsub, xpub, control):
            poller.register(each, zmq.POLLIN)
        while control not in (ready := dict(poller.poll())):
            if xpub in ready:
                xsub.send(xpub.recv())
            if xsub in ready and passes(frame := xsub.recv()):
                xpub.send(frame)

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield
    finally:
        stop.send(b"")
        thread.join()
        context.destroy(linger=0)


def kept_number(frame: bytes) -> tuple[int, bool] | None:
    """Return the number of a kept message and whether it is their end; None for another frame."""
    rest = frame.partition(NUL)[2]
    header = parse_header(rest)
    return (header.sequence, parse_kept(rest[header.size :]) == (b"", b"")) if header.kind is Kind.KEPT else None


@pytest_twisted.ensureDeferred
async def test_through_a_proxy(tmp_path: Path) -> None:
    """Behind a proxy, which hides the number of publishers, ready() takes the number."""
    front, back = f"ipc://{tmp_path}/front", f"ipc://{tmp_path}/back"
    late, got = reader(back)
    with proxy(front, back, lambda frame: True):
        async with running(feed(front, "a", 600)), running(late):
            await late.ready(1, timeout=PATIENCE, state=True)
            assert set(got) == kept("a", 600)


@pytest_twisted.ensureDeferred
async def test_kept_messages_that_are_dropped_on_the_way_are_counted_and_not_waited_for(tmp_path: Path) -> None:
    """Dropped kept messages are counted, and not waited for; a dropped end is asked for again."""
    front, back = f"ipc://{tmp_path}/front", f"ipc://{tmp_path}/back"
    ends, dropped = list[int](), list[int]()

    def passes(frame: bytes) -> bool:
        number = kept_number(frame)
        if number is None:
            return True
        if number[1]:
            ends.append(number[0])
            # A connection that opens late is asked too, which is no retry.
            return late.stats.join_retries > 0
        if number[0] % 3 and number[0] <= 290:
            return True
        dropped.append(number[0])
        return False

    late, got = reader(back)
    with proxy(front, back, passes):
        async with running(feed(front, "a", 300)), running(late):
            await late.ready(1, timeout=PATIENCE, state=True)
            # If this process stood still, it asks again, and the same messages are sent and dropped twice.
            assert len(got) + len(set(dropped)) == 300
            assert len(set(dropped)) <= late.stats.lost <= len(dropped)
            assert late.stats.join_retries >= 1
    assert set(ends) == {301}


@pytest_twisted.ensureDeferred
async def test_an_end_that_never_comes_is_an_error_that_says_so(tmp_path: Path) -> None:
    """If the end of kept messages never arrives, ready() raises an error that says so."""
    front, back = f"ipc://{tmp_path}/front", f"ipc://{tmp_path}/back"
    late, got = reader(back)
    with proxy(front, back, lambda frame: not (kept_number(frame) or (0, False))[1]):
        async with running(feed(front, "a", 3)), running(late):
            await late.ready(1, timeout=PATIENCE)
            with pytest.raises(NotReadyError, match=r"answered \(a@.*\); 1 of these publishers have not sent"):
                await late.ready(1, timeout=1, state=True)
            assert set(got) == kept("a", 3)


FEED = """
import sys
from zroute import App

app = App(pub=sys.argv[1], name="feed")
state = app.publisher("state.feed.{n}", int, keep="last")

@app.on_startup
def begin() -> None:
    for n in range(30_000):  # 60 MB, which the buffers of a connection can't take
        state.publish(n, n=n, headers={"pad": "x" * 2_000})

app.run()
"""


@pytest_twisted.ensureDeferred
async def test_a_publisher_that_dies_while_it_gives_is_not_waited_for(tmp_path: Path) -> None:
    """A publisher that dies while it sends kept messages is not waited for; the other one's have arrived."""
    endpoints = [f"ipc://{tmp_path}/{name}" for name in "ab"]
    late, got = reader(*endpoints)
    with Child("-c", FEED, endpoints[0]) as dying:
        dying.line_with("publishes as", stream="err")
        async with running(feed(endpoints[1], "b", 300)), running(late):
            await turns(lambda: sum(name == "feed" for name, _, _ in got) > 100)
            dying.process.kill()
            await late.ready(timeout=PATIENCE, state=True)
            assert len(got) < 30_000
            assert {each for each in got if each[0] == "b"} == kept("b", 300)


@pytest_twisted.ensureDeferred
async def test_messages_that_wait_for_a_slow_handler_are_there_but_not_handled(tmp_path: Path) -> None:
    """Messages for an async handler have been received, but may still be queued or in flight."""
    endpoint = f"ipc://{tmp_path}/s"
    late, box, never = App(sub=endpoint), Mailbox[int](), Mailbox[int]()

    @late.subscribe("state.>", max_in_flight=1)
    async def handle(number: int) -> None:
        box.put(number)
        await never.until(1)

    async with running(feed(endpoint, "a", 20)), running(late):
        await late.ready(1, timeout=PATIENCE, state=True)
        (stats,) = late.stats.routes.values()
        assert (stats.queued, stats.in_flight, len(box.items)) == (19, 1, 1)
        never.put(0)
        assert sorted(await box.until(20)) == list(range(20))
