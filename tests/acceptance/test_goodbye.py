"""The goodbye of a publisher and its first answer to a reader: a full queue that drops them hides no loss."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.running import Mailbox, running
from tests.support import PATIENCE, Child, Way, free_endpoint
from zroute import App, Gap, NotReadyError, NotRunningError, Routes
from zroute.messages.control import FAREWELL
from zroute.runtime.service import AppService

pytestmark = pytest.mark.slow

reactor: Any = _reactor

BURST = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zroute import App, HighWaterMarkError
from zroute.publishing import publisher

if sys.argv[4] == "stop":  # the goodbye waits for the reader, even if a busy machine does not run it for seconds
    publisher.LINGER_DRAIN = 120_000
app = App(pub=sys.argv[1], codec="json", name="burst", overflow=sys.argv[2])
news = app.publisher("news.{kind}", int)
PAD = {"pad": "x" * 1000}

async def burst():
    await news.wait_for_subscribers(1, timeout=120)
    for number in range(int(sys.argv[3])):
        await news.publish(number, kind="a", headers=PAD)
    print("sent", flush=True)
    if sys.argv[4] == "stop":
        reactor.stop()

@app.on_startup
def begin():
    Deferred.fromCoroutine(burst())
    print("up", flush=True)

app.run(drain_timeout=120 if sys.argv[4] == "stop" else 8)
"""

READER = """
import json, sys, time
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="reader")
seen = []

@app.subscribe("news.{kind}")
def handle(number: int, kind: str) -> None:
    seen.append(number)
    if len(seen) == 500:
        time.sleep(float(sys.argv[2]))

@app.every(0.1)
def tell() -> None:
    stats = app.stats
    line = [len(seen), stats.lost, stats.unknown_losses, stats.joins, seen == sorted(set(seen))]
    print(json.dumps(line), flush=True)

app.run()
"""


BUSY = """
from zroute.receiving.session import SubscriberSession

def rejoin(self):
    if self._marker and self._joining is None:
        self._join_soon()
        self._joining.reset(0.05)

SubscriberSession.rejoin = rejoin
"""
"""A reader that asks again late after its connection, as on a busy machine."""


def told(lines: list[str]) -> list[Any]:
    """Return the latest report of the reader."""
    return [json.loads(line) for line in lines if line.startswith("[")][-1:]


def all_accounted(total: int) -> Any:
    """Return a condition that is true when ``total`` messages were seen or counted as lost."""
    return lambda lines: any(seen + lost == total for seen, lost, _, _, _ in told(lines))


@pytest.mark.parametrize(("overflow", "before"), [("drop", ""), ("wait", ""), ("drop", BUSY)])
def test_what_was_sent_right_before_a_clean_stop_is_seen_or_counted(way: Way, overflow: str, before: str) -> None:
    """The goodbye waits for a sleeping reader, so that each message of the last burst is seen or counted."""
    meeting, total = way.meeting(), 20_000
    with (
        Child("-c", before + READER, meeting.connect, "0.5") as reader,
        Child("-c", BURST, meeting.bind, overflow, str(total), "stop") as publisher,
    ):
        publisher.line_with("sent")
        assert publisher.process.wait(PATIENCE) == 0
        reader.wait_for(all_accounted(total))
        assert reader.end() == 0
    ((seen, lost, unknown, _, ordered),) = told(reader.out)
    assert (seen + lost, unknown, ordered) == (total, 0, True)
    assert lost == 0 or overflow == "drop"


@pytest.mark.parametrize(("overflow", "code"), [("drop", 0), ("wait", 75)])
def test_a_stop_that_a_subscriber_does_not_read_is_told(way: Way, overflow: str, code: int) -> None:
    """If a subscriber is frozen at the stop, the log says so, and with overflow="wait" the exit code is 75."""
    meeting = way.meeting()
    with (
        Child("-c", READER, meeting.connect, "0") as reader,
        Child("-c", BURST, meeting.bind, overflow, "1000", "stay") as publisher,
    ):
        publisher.line_with("sent")
        reader.wait_for(all_accounted(1000))
        reader.process.send_signal(signal.SIGSTOP)
        assert publisher.end(signal.SIGTERM) == code
        assert any("1 subscribers have not confirmed the goodbye" in line for line in publisher.err)
        reader.process.send_signal(signal.SIGCONT)
        assert reader.end() == 0


def test_a_first_answer_that_a_full_queue_drops_is_asked_for_again(way: Way) -> None:
    """If a burst drops the first answer, the reader asks again and joins, and reports the end."""
    meeting = way.meeting()
    with (
        Child("-c", READER, meeting.connect, "0.5") as reader,
        Child("-c", BURST, meeting.bind, "drop", "30000", "stay") as publisher,
    ):
        publisher.line_with("sent")
        reader.wait_for(lambda lines: any(joins for _, _, _, joins, _ in told(lines)))
        assert publisher.end() == 0
        reader.line_with("were received or counted", stream="err")
        assert reader.end() == 0


TWO_TOPICS = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zroute import App, HighWaterMarkError, NotRunningError

app = App(pub=sys.argv[1], codec="json", name="pub", overflow=sys.argv[2])
news, rest = app.publisher("news.{x}", int), app.publisher("rest", int)

async def publish():
    await news.wait_for_subscribers(1, timeout=120)
    await rest.wait_for_subscribers(1, timeout=120)
    print("joined", flush=True)
    sys.stdin.readline()
    try:
        for number in range(100_000 if app.overflow == "wait" else 100):
            news.publish(number, x="a", headers={"pad": "x" * 1000})
    except HighWaterMarkError:
        pass
    rest.publish(1)
    print("filled", flush=True)

def late():
    for what in (lambda: rest.publish(2), lambda: app.publish("rest", 2)):
        try:
            what()
        except NotRunningError:
            print("refused", flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(publish())

@app.on_shutdown
def end():
    reactor.callLater(0.5, late)

app.run(drain_timeout=2)
"""

REST = READER.replace("news.{kind}", "rest").replace(", kind: str", "")


@pytest.mark.parametrize("overflow", ["drop", "raise", "wait"])
def test_one_that_stands_still_does_not_keep_the_goodbye_from_the_others(way: Way, overflow: str) -> None:
    """A frozen subscriber does not keep the goodbye from the others, and the log says that it has not read."""
    meeting = way.meeting()
    with (
        Child("-c", READER, meeting.connect, "0") as frozen,
        Child("-c", REST, meeting.connect, "0") as reader,
        Child("-c", TWO_TOPICS, meeting.bind, overflow) as publisher,
    ):
        publisher.line_with("joined")
        frozen.process.send_signal(signal.SIGSTOP)
        publisher.write("\n")
        publisher.line_with("filled")
        assert publisher.end() == (0 if overflow == "drop" else 75)
        before_it = 2 - publisher.out.count("refused")
        assert before_it == 0 or overflow == "wait"  # with "wait" there is no goodbye before the rest is sent
        assert any("1 subscribers have not confirmed the goodbye" in line for line in publisher.err)
        reader.line_with("were received or counted", stream="err")
        reader.wait_for(lambda lines: told(lines)[0][:3] == [1 + before_it, 0, 0])
        assert reader.end() == 0
        frozen.process.send_signal(signal.SIGCONT)
        assert frozen.end() == 0


@pytest_twisted.ensureDeferred
async def test_who_bids_one_publisher_farewell_is_no_subscriber_of_another(way: Way) -> None:
    """wait_for_subscribers() does not count a reader's farewell to another publisher."""
    meetings = [way.meeting(), way.meeting()]
    first, second = (App(pub=meeting.bind) for meeting in meetings)
    reader = App(sub=[meeting.connect for meeting in meetings])
    everything = second.publisher("{kind}.{x}", int)
    reader.add_route(lambda number: None, "a.{x}")
    async with running(second) as service, running(reader):
        async with running(first):
            await reader.ready(2, timeout=PATIENCE)
        pub = service.transport.pub  # type: ignore[union-attr]
        until = reactor.seconds() + PATIENCE
        while not any(prefix.startswith(FAREWELL) for prefix in pub.subscriptions):
            assert reactor.seconds() < until
            await deferLater(reactor, 0.001)
        with pytest.raises(NotReadyError, match="1 of 2 subscribers"):
            await everything.wait_for_subscribers(2, timeout=0.5)


@pytest_twisted.ensureDeferred
async def test_who_waits_for_publishers_is_told_of_the_stop() -> None:
    """ready() raises NotRunningError when the app stops."""
    app = App(sub=free_endpoint())
    app.add_route(lambda number: None, "a")
    service = AppService(app.compile(), reactor)
    service.startService()
    await service.started
    waiting = Deferred.fromCoroutine(app.ready(1, timeout=PATIENCE))
    await service.stopService()
    with pytest.raises(NotRunningError, match="no longer waits for publishers"):
        await waiting


@pytest_twisted.ensureDeferred
async def test_a_gap_function_that_ends_the_program_does_not_deafen_it(tmp_path: Path) -> None:
    """SystemExit in an on_gap function stops the app with its code, after the messages that have arrived."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher, reader, box = App(pub=endpoint), App(sub=endpoint), Mailbox[int]()
    numbers = publisher.publisher("n", int)
    reader.add_route(box.put, "n")

    @reader.on_gap
    def gap(gap: Gap) -> None:
        raise SystemExit(3)

    async with running(publisher) as sending, running(reader) as receiving:
        await reader.ready(1, timeout=PATIENCE)
        numbers.publish(1)
        await box.until(1)
        for counter in sending._run._publisher.session.counters._counters.values():  # type: ignore[union-attr]
            counter.number += 5  # as if five had been lost
        numbers.publish(2)
        numbers.publish(3)
        assert await box.until(3) == [1, 2, 3]
        deadline = reactor.seconds() + PATIENCE
        while receiving.exit_code is None:
            assert reactor.seconds() < deadline
            await deferLater(reactor, 0.001)
        assert (reader.stats.lost, reader.stats.hook_errors, receiving.exit_code) == (5, 0, 3)


@contextmanager
def plain_reader(endpoint: str, prefix: bytes) -> Iterator[Any]:
    """Return a plain subscriber that has read nothing."""
    context: zmq.Context[Any] = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.set(zmq.RCVHWM, 1)
    sub.connect(endpoint)
    sub.subscribe(prefix)
    try:
        yield sub
    finally:
        context.destroy(linger=0)


async def read(sub: Any, number: int) -> None:
    """Read ``number`` messages."""
    while number:
        while number and sub.poll(0):
            sub.recv()
            number -= 1
        await deferLater(reactor, 0.001)


@pytest_twisted.ensureDeferred
async def test_generators_wait_for_subscribers_that_have_no_room(tmp_path: Path) -> None:
    """With overflow="wait" a generator waits for its slowest reader, and no message is dropped."""
    endpoint, total = f"ipc://{tmp_path}/s", 14_000
    app = App(pub=endpoint, wire="plain", overflow="wait")
    lines = app.publisher("lines", bytes)

    @lines
    def generate() -> Any:
        for _ in range(total):
            yield b"x" * 2000

    @app.on_startup
    async def begin() -> None:
        await lines.wait_for_subscribers(1, timeout=PATIENCE)

    with plain_reader(endpoint, b"lines") as sub:
        async with running(app):
            while not app.stats.send_retries:
                await deferLater(reactor, 0.001)
            assert app.stats.published < total
            await read(sub, total)
            assert (app.stats.published, app.stats.publish_errors) == (total, 0)


@pytest_twisted.ensureDeferred
async def test_a_publication_of_two_apps_is_sent_when_both_have_sent_it(tmp_path: Path) -> None:
    """The result of publish to two apps fires when the slower one has room."""
    endpoints = [f"ipc://{tmp_path}/{name}" for name in "ab"]
    routes = Routes()
    lines = routes.publisher("lines", bytes)
    apps = [App(pub=endpoint, wire="plain", overflow="wait") for endpoint in endpoints]
    for app in apps:
        app.include(routes)
    total = 13_000
    with plain_reader(endpoints[0], b"lines") as sub:
        async with running(apps[0]), running(apps[1]):
            await lines.wait_for_subscribers(0)
            reading = Deferred.fromCoroutine(read(sub, total))
            while not apps[0]._live.run._publisher._subscribers._live:  # type: ignore[union-attr]
                await deferLater(reactor, 0.001)
            for _ in range(total):
                await lines.publish(b"x" * 2000)
            await reading
            assert [app.stats.published for app in apps] == [total, total]
            assert [app.stats.publish_errors for app in apps] == [0, 0]
