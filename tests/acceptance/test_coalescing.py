"""Coalescing between processes: bursts, slow readers, stops and joins, with their counters and frames."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.running import Mailbox, reactor, running
from tests.support import PATIENCE, Child, Way, free_endpoint, sized
from zroute import App, Coalesce, EncodeError, NotRunningError, clock
from zroute.messages.coalesced import parse_coalesced
from zroute.messages.wire import MAGIC, NUL, Kind, parse_header
from zroute.runtime.run import MessageLimit
from zroute.runtime.service import AppService
from zroute.testing import TestApp

MANY = sized(100_000, 20_000)

READER = """
import json, sys, time
from zroute import App, Limits

app = App(sub=sys.argv[1], codec="json", name="reader", limits=Limits(receive_queue=int(sys.argv[2])))
seen, said = [], ""

@app.subscribe("numbers.{x}")
def number(message: list) -> None:
    seen.append(message[0])
    if len(seen) == 1000 and sys.argv[3] == "until told":
        sys.stdin.readline()
    elif len(seen) == 1000:
        time.sleep(float(sys.argv[3]))

@app.every(0.05)
@app.on_shutdown
def tell():
    global said
    stats = app.stats
    counts = [stats.lost, stats.unknown_losses, stats.duplicate]
    before, said = said, json.dumps([len(seen), seen == sorted(set(seen)), *counts])
    if said != before:
        print(said, flush=True)

app.run()
"""

PUBLISHER = """
import sys, threading
from itertools import count, takewhile
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zroute import App, Coalesce, Limits
from zroute.publishing import publisher

publisher.LINGER_DRAIN = 120_000  # the goodbye waits for readers, even if a busy machine does not run them for seconds
app = App(
    pub="bind:" + sys.argv[1], codec="json", name="feed", overflow=sys.argv[2], coalesce=True,
    limits=Limits(send_queue=int(sys.argv[5])),
)
numbers, end = app.publisher("numbers.{x}", list), app.publisher("end", int, coalesce=False)
many, told, published, pad = int(sys.argv[3]), [], 0, "x" * int(sys.argv[6])

def listen():
    sys.stdin.readline()
    told.append(published + 500)  # at least one more burst for those that have joined

if sys.argv[4] == "until told":
    threading.Thread(target=listen, daemon=True).start()
else:
    told.append(0)

async def publish():
    global published
    await numbers.wait_for_subscribers(1, timeout=120)
    while len(app._live.run._publisher.session.counters.markers) < 1:
        await deferLater(reactor, 0.01)
    print("begins", flush=True)
    for number in takewhile(lambda number: number < many or not told or number < told[0], count()):
        sent = numbers.publish([number, pad], x="a")
        published += 1
        if number % 500 == 499:
            await sent
            await deferLater(reactor, 0)
        if number == many // 2:
            print("half", flush=True)
            if sys.argv[4] == "stops":
                print("sent", published, flush=True)
                reactor.stop()
                return
    await sent  # what is held of another topic would be passed
    await end.publish(published)
    print("sent", published, flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(publish())

app.run(drain_timeout=120)
"""


QUEUE, PAD = "10000", "0"
SMALL_QUEUE, LARGE_PAD = "10", "1000"  # the queues and the system's buffers take less than 20,000 such messages


def report(reader: Child, sent: int) -> list[Any]:
    """Return the first report of a reader that has handled or lost all: seen, ordered, lost, unknown, duplicates."""
    reports = list[list[Any]]()

    def whole(lines: list[str]) -> bool:
        reports[:] = (json.loads(line) for line in lines if line.startswith("["))
        return bool(reports) and reports[-1][0] + reports[-1][2] >= sent

    reader.wait_for(whole)
    return reports[-1]


def run(way: Way, overflow: str, pause: str, how: str = "goes on", *sizes: str) -> tuple[int, list[Any]]:
    """Return the number of messages sent, and the reader's last report; see `report`."""
    meeting = way.meeting()
    queue, pad = sizes or (QUEUE, PAD)
    with (
        Child("-c", READER, meeting.connect, queue, pause) as reader,
        Child("-c", PUBLISHER, meeting.bind, overflow, str(MANY), how, queue, pad) as publisher,
    ):
        sent = int(publisher.line_with("sent").split()[1])
        if how == "stops":
            assert publisher.end(None) == 0, publisher.err
        else:
            reader.write("go on\n")
            report(reader, sent)
            assert publisher.end() == 0, publisher.err
        assert reader.end() == 0, reader.err
        return sent, report(reader, sent)


def test_a_slow_reader_loses_frames_and_counts_messages(way: Way) -> None:
    """If bursts overflow a sleeping reader, the messages seen and counted as lost are exactly those sent."""
    sent, counts = run(way, "drop", "until told", "goes on", SMALL_QUEUE, LARGE_PAD)
    seen, ordered, lost, tails, duplicates = counts
    assert (seen + lost, ordered, tails, duplicates) == (sent, True, 0, 0)
    assert sent == MANY
    assert lost > 0


def test_one_that_waits_loses_nothing(way: Way) -> None:
    """With overflow="wait" a slow reader receives all messages, in order."""
    assert run(way, "wait", "3", "goes on", SMALL_QUEUE, LARGE_PAD) == (MANY, [MANY, True, 0, 0, 0])


@pytest.mark.parametrize("overflow", ["drop", "wait"])
def test_a_stop_in_the_middle_sends_what_is_held_before_the_goodbye(way: Way, overflow: str) -> None:
    """A publisher that stops in the turn of its last publish still sends every message before the goodbye."""
    sent, (seen, ordered, lost, tails, duplicates) = run(way, overflow, "0", "stops")
    assert sent == MANY // 2 + 1
    assert (seen + lost, ordered, tails, duplicates) == (sent, True, 0, 0)
    assert overflow == "drop" or lost == 0


def test_who_joins_in_the_middle_of_bursts_misses_nothing_from_then_on(way: Way) -> None:
    """A reader that joins during bursts misses no message after its first one."""
    meeting = way.meeting()
    with (
        Child("-c", READER, meeting.connect, QUEUE, "0") as first,
        Child("-c", PUBLISHER, meeting.bind, "wait", "10000", "until told", QUEUE, PAD) as publisher,
    ):
        publisher.line_with("begins")
        with Child("-c", JOINER, meeting.connect) as late:
            late.line_with("ready")
            publisher.write("that is enough\n")
            sent = int(publisher.line_with("sent").split()[1])
            begins, at_ready, last, gapless, lost, duplicate = json.loads(late.line_with("["))
            assert late.end() == 0
        seen = report(first, sent)
        assert publisher.end() == 0
        assert first.end() == 0
    assert seen == [sent, True, 0, 0, 0]
    assert at_ready is None or begins <= at_ready  # it may have joined before the first message
    assert 0 < begins <= last == sent - 1
    assert (gapless, lost, duplicate) == (True, 0, 0)


JOINER = """
import json, sys
from twisted.internet.defer import Deferred
from zroute import App

app = App(sub=sys.argv[1], codec="json", name="late")
seen = []

@app.subscribe("numbers.{x}")
def number(message: list) -> None:
    seen.append(message[0])

@app.subscribe("end")
def end(number: int) -> None:
    gapless = seen == list(range(seen[0], seen[0] + len(seen)))
    print(json.dumps([seen[0], *at_ready, seen[-1], gapless, app.stats.lost, app.stats.duplicate]), flush=True)

at_ready = []

async def join():
    await app.ready(publishers=1, timeout=120)
    at_ready.append(seen[-1] if seen else None)
    print("ready", flush=True)

@app.on_startup
def begin():
    Deferred.fromCoroutine(join())

app.run()
"""


# -- in one process --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_who_joins_late_gets_the_last_of_a_frame(way: Way) -> None:
    """With keep="last" and coalesce, a late reader receives the newest message of a burst once."""
    meeting = way.meeting()
    feed = App(pub=meeting.bind, codec="json", name="feed")
    numbers = feed.publisher("numbers.{x}", int, keep="last", coalesce=True)
    early, late = (App(sub=meeting.connect, codec="json", name=name) for name in ("early", "late"))
    first, second = Mailbox[int](), Mailbox[int]()
    early.subscribe("numbers.*")(_putting(first))
    late.subscribe("numbers.*")(_putting(second))
    async with running(feed), running(early):
        await early.ready(publishers=1)
        for number in range(250):
            numbers.publish(number, x="a")
        assert await first.until(250) == list(range(250))
        async with running(late):
            await late.ready(publishers=1)
            assert await second.until(1) == [249]
            for number in range(250, 400):
                numbers.publish(number, x="a")
            assert await second.until(151) == list(range(249, 400))
        assert await first.until(400) == list(range(400))
        assert early.stats.lost == late.stats.lost == 0


def _putting(box: Mailbox[int]) -> Any:
    def put(number: int) -> None:
        box.put(number)

    return put


@pytest_twisted.ensureDeferred
async def test_what_can_not_be_encoded_is_an_error_where_it_is_published() -> None:
    """A message that cannot be encoded raises at its publish; the other messages of the batch arrive."""
    endpoint = free_endpoint()
    feed, reader = App(pub=endpoint, codec="json"), App(sub=endpoint, codec="json")
    numbers = feed.publisher("numbers", int, coalesce=Coalesce(seconds=0.05))
    box = Mailbox[int]()
    reader.subscribe("numbers")(_putting(box))
    async with running(feed), running(reader):
        await reader.ready(publishers=1)
        numbers.publish(1)
        numbers.publish(2)
        with pytest.raises(EncodeError):
            numbers.publish("three")  # type: ignore[arg-type]
        numbers.publish(4)
        assert await box.until(3) == [1, 2, 4]
        assert feed.stats.published == 3


GONE = """
import os, sys, zmq
from twisted.internet import reactor
from zroute import App, Coalesce

context = zmq.Context()
app = App(pub=sys.argv[1], context=context, coalesce=Coalesce(seconds=0.02))
numbers = app.publisher("numbers.{x}", int)

def tell():
    refused = 0
    for x in "abc":
        try:
            numbers.publish(1, x=x)
        except Exception:
            refused += 1
    print("counted", app.stats.published, app.stats.publish_errors, refused, flush=True)
    os._exit(0)

@app.on_startup
def begin():
    for x in "abc":
        for number in range(3):
            numbers.publish(number, x=x)
    print("taken", app.stats.published, flush=True)
    context.destroy(linger=0)
    reactor.callLater(0.1, tell)

app.run()
"""


def test_what_is_held_when_the_socket_goes_is_counted_as_not_sent() -> None:
    """If the context is destroyed under an app, held messages are counted and logged; publish raises."""
    with Child("-c", GONE, free_endpoint()) as program:
        program.line_with("taken 9")
        program.line_with("counted 3 6 3")
        program.line_with("messages not sent: 2 ('numbers.a': ", stream="err")


@pytest.mark.parametrize("wire", ["plain", "multipart", "tracked"])
@pytest_twisted.ensureDeferred
async def test_plain_wires_carry_single_messages(wire: Any) -> None:
    """On the plain wires each frame has one message, whatever coalesce says; on the tracked one, several."""
    endpoint = free_endpoint()
    feed = App(pub=endpoint, codec="json", wire=wire, coalesce=True)
    numbers = feed.publisher("numbers", int)
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.SUB)
    try:
        async with running(feed):
            socket.connect(endpoint)
            socket.subscribe(b"numbers")
            await numbers.wait_for_subscribers(1)
            for number in range(5):
                numbers.publish(number)
        got = []
        while len(got) < (2 if wire == "tracked" else 5) and socket.poll(PATIENCE * 1000):
            got.append(socket.recv_multipart())
    finally:
        context.destroy(linger=0)
    if wire != "tracked":
        expected = [[b"numbers", b"%d" % number] for number in range(5)]
        assert got == ([[NUL.join(parts)] for parts in expected] if wire == "plain" else expected)
        return
    (first,), (rest,) = got
    body = rest.partition(NUL)[2]
    header = parse_header(body)
    assert body.startswith(MAGIC)
    assert (parse_header(first.partition(NUL)[2]).kind, header.kind) == (Kind.DATA, Kind.COALESCED)
    assert parse_coalesced(header.codec, body[header.size :]).bodies == [b"1", b"2", b"3", b"4"]


@pytest_twisted.ensureDeferred
async def test_a_pause_in_the_middle_of_a_frame_ends_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If reading pauses inside a frame, the rest is read as soon as there is room, without a socket event."""
    monkeypatch.setattr(clock, "TICK", 3600.0)  # no beat that would wake the reader
    endpoint = f"ipc://{tmp_path}/s"
    publisher, reader, box = App(pub=endpoint, coalesce=True), App(sub=endpoint), Mailbox[int]()
    numbers = publisher.publisher("n", int)

    @reader.subscribe("n", max_in_flight=1, queue=4)
    async def handle(number: int) -> None:
        await deferLater(reactor, 0)
        box.put(number)

    async with running(publisher), running(reader):
        await reader.ready(1, timeout=PATIENCE)
        for number in range(90):
            numbers.publish(number)
        assert await box.until(90) == list(range(90))
        assert (reader.stats.lost, reader.stats.duplicate) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_a_derived_stream_that_waits_for_room_waits_for_no_window(tmp_path: Path) -> None:
    """A derived stream with overflow="wait" does not wait a coalescing window for each message."""
    source, sink = f"ipc://{tmp_path}/a", f"ipc://{tmp_path}/b"
    feed, reader, box = App(pub=source), App(sub=sink), Mailbox[int]()
    app = App(sub=source, pub=sink, overflow="wait", coalesce=Coalesce(seconds=1.0))
    numbers = feed.publisher("n", int)

    @app.publisher("twice")
    @app.subscribe("n")
    def double(number: int) -> int:
        return 2 * number

    reader.add_route(box.put, "twice")
    async with running(feed), running(app), running(reader):
        await app.ready(1, timeout=PATIENCE)
        await reader.ready(1, timeout=PATIENCE)
        for number in range(100):
            numbers.publish(number)
        assert await box.until(100) == list(range(0, 200, 2))


@pytest_twisted.ensureDeferred
async def test_timers_run_in_the_middle_of_a_frame_of_slow_messages(tmp_path: Path) -> None:
    """A frame of a thousand messages for a handler that takes 2 ms does not stop the timers for two seconds."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher = App(pub=endpoint, coalesce=Coalesce(messages=1000))
    reader, box, ticks = App(sub=endpoint), Mailbox[int](), []
    numbers = publisher.publisher("n", int)

    @reader.subscribe("n")
    def handle(number: int) -> None:
        time.sleep(0.002)
        box.put(number)

    @reader.every(0.001)
    def tick() -> None:
        ticks.append(len(box.items))

    async with running(publisher), running(reader):
        await reader.ready(1, timeout=PATIENCE)
        for number in range(1001):
            numbers.publish(number)
        assert await box.until(1001) == list(range(1001))
    steps = [after - before for before, after in pairwise(ticks)]
    assert max(steps) <= 64, "no more than a slice between two looks at the clock, whatever came in one frame"


@pytest_twisted.ensureDeferred
async def test_a_number_of_messages_is_kept_also_in_the_middle_of_a_frame(tmp_path: Path) -> None:
    """--max-messages 10 stops after ten messages, even if they arrived in a frame with fifty others."""
    endpoint = f"ipc://{tmp_path}/s"
    publisher, reader, box = App(pub=endpoint, coalesce=True), App(sub=endpoint), Mailbox[int]()
    numbers = publisher.publisher("n", int)
    reader.add_route(box.put, "n")
    reached: Deferred[None] = Deferred()
    service = AppService(reader.compile(), reactor)
    service.limit = MessageLimit(10, lambda: reached.callback(None))
    async with running(publisher):
        service.startService()
        await service.started
        await numbers.wait_for_subscribers(1, timeout=PATIENCE)
        for number in range(60):
            numbers.publish(number)
        await reached
        await service.stopService()
    assert box.items == list(range(10))


def test_a_publication_can_be_patched_while_an_app_runs() -> None:
    """publish can be patched while an app runs, and a kept reference to it raises after the stop."""
    app = App(pub="tcp://127.0.0.1:1")
    numbers = app.publisher("n", int)
    with mock.patch.object(numbers, "publish") as patched, TestApp(app):
        numbers.publish(1)
    assert patched.call_count == 1
    with TestApp(app):
        kept = numbers.publish
    with pytest.raises(NotRunningError):
        kept(1)
