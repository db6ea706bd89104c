"""Messages that a handler can't handle arrive at another app, with the reason. Real sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from tests.running import Mailbox, reactor, running, turns
from tests.support import free_endpoint, spans
from zroute import App, Envelope, Reject, as_awaitable
from zroute.runtime.service import AppService


class Desk:
    """A feed, a worker that fails, and an app that collects its dead letters."""

    def __init__(self, **options: Any) -> None:
        orders, dead = free_endpoint(), free_endpoint()
        self.feed = App(pub=f"bind:{orders}", name="feed")
        self.worker = App(sub=orders, pub=f"bind:{dead}", name="worker", **options)
        self.collector = App(sub=dead, name="collector")
        self.letters = Mailbox[Envelope]()
        self.calls: list[Any] = []

        @self.collector.subscribe("dead.{kind}")
        def collect(envelope: Envelope) -> None:
            self.letters.put(envelope)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("overflow", ["drop", "raise", "wait"])
async def test_dead_letters_arrive_with_body_headers_and_reason(overflow: str) -> None:
    """After the last attempt, when it is rejected, and when it can't be decoded, a message reaches the other app."""
    desk = Desk(overflow=overflow)

    @desk.worker.subscribe("orders.{kind}", retry=(0.01, 0.01), dead="dead.{kind}")
    async def on_order(number: int, kind: str) -> None:
        desk.calls.append(kind)
        if kind == "odd":
            raise Reject("no such order")
        raise ValueError(kind)

    async with running(desk.feed), running(desk.worker), running(desk.collector):
        await as_awaitable(desk.worker.ready(1))
        await as_awaitable(desk.collector.ready(1))
        desk.feed.publish("orders.late", 1, headers={"trace": "t1"})
        desk.feed.publish("orders.odd", 2)
        desk.feed.publish("orders.text", "three")
        letters = {letter.topic: letter for letter in await desk.letters.until(3)}
        assert {topic: letter.headers for topic, letter in letters.items() if topic != "dead.text"} == {
            "dead.late": {"trace": "t1", "zr-topic": "orders.late", "zr-error": "ValueError: late", "zr-attempts": 3},
            "dead.odd": {"zr-topic": "orders.odd", "zr-error": "Reject: no such order", "zr-attempts": 1},
        }
        text = letters["dead.text"]
        assert (text.body, text.codec, text.headers["zr-attempts"]) == (b"three", 3, 0)
        assert sorted(desk.calls) == ["late", "late", "late", "odd"]
        stats = desk.worker.stats.routes["on_order()"]
        assert (stats.handler_error, stats.decode_error, stats.dead, stats.retried) == (2, 1, 3, 2)


class Own:
    """A codec of the user."""

    name, number = "own", 130

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        """Return the encoder."""
        return lambda message: b"own %d" % message

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        """Return the decoder."""
        return lambda body: int(bytes(body).removeprefix(b"own "))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wire", ["tracked", "plain"])
async def test_a_dead_letter_keeps_the_codec_of_its_message(wire: Any) -> None:
    """A body in a codec of the user arrives unchanged, with its number if the message had one."""
    desk = Desk(codec=Own())
    own = App(pub=f"bind:{desk.worker.sub[0].address}", codec=Own(), wire=wire, name="own")
    orders = own.publisher("orders.late", int)

    @desk.worker.subscribe("orders.{kind}", dead="dead.{kind}")
    def on_order(number: int) -> None:
        raise ValueError(number)

    async with running(own), running(desk.worker), running(desk.collector):
        await as_awaitable(desk.collector.ready(1))
        await orders.wait_for_subscribers()
        orders.publish(7)
        (letter,) = await desk.letters.until(1)
    assert (letter.body, letter.codec) == (b"own 7", 130 if wire == "tracked" else 0)
    assert letter.headers["zr-error"] == "ValueError: 7"


@pytest_twisted.ensureDeferred
async def test_a_stopping_app_publishes_its_dead_letters_before_it_leaves() -> None:
    """A message that waits for its next attempt is not lost at a stop: its dead letter is read by the other app."""
    desk, waits = Desk(), Mailbox[int]()

    @desk.worker.subscribe("orders.{kind}", retry=(1000,), dead="dead.{kind}")
    def on_order(number: int) -> None:
        waits.put(number)
        raise ValueError(number)

    worker = AppService(desk.worker.compile(), reactor)
    async with running(desk.feed), running(desk.collector):
        worker.startService()
        await worker.started
        await as_awaitable(desk.worker.ready(1))
        await as_awaitable(desk.collector.ready(1))
        for number in range(20):
            desk.feed.publish("orders.x", number)
        await waits.until(1)
        report = await worker.stopService()
        letters = await desk.letters.until(20)
        assert report.complete
        assert [letter.body for letter in letters] == [bytes([number]) for number in range(20)]
        assert {letter.headers["zr-attempts"] for letter in letters} == {1}
        assert desk.collector.stats.lost == 0


@pytest_twisted.ensureDeferred
async def test_a_thread_that_takes_too_long_keeps_its_slot_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """It is counted at its timeout; its result is not published, and the next attempt begins when it has ended."""
    for seconds in spans(0.05):
        caplog.clear()
        stats = await _take_too_long(seconds, caplog)
        if stats.timed_out == 1:  # on a machine that stands still, the second attempt may be too long as well
            break
    assert (stats.timed_out, stats.retried, stats.handled, stats.handler_error) == (1, 1, 1, 0)
    assert f"TimeoutError: slow() did not end within {seconds:g} s; attempt 1 of 2" in caplog.text


async def _take_too_long(seconds: float, caplog: pytest.LogCaptureFixture) -> Any:
    """Let the first attempt of a handler with this timeout take longer; return the counters of the handler."""
    app, release, published = App(), threading.Event(), list[int]()
    calls: list[int] = []
    app.add_route(published.append, "out")

    @app.publisher("out", int)
    @app.subscribe("in", thread=True, timeout=seconds, retry=(0,))
    def slow(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            release.wait()
        return len(calls)

    async with running(app):
        stats = app.stats.routes["slow()"]
        app.publish("in", 7)
        try:
            await turns(lambda: stats.timed_out)
            assert (calls, stats.in_flight, stats.retried) == ([7], 1, 0)
            assert "slow() at" in caplog.text
            expected = f"has run for more than {seconds:g} s on 'in': zroute can't interrupt a thread"
            assert expected in caplog.text
        finally:
            release.set()
        await turns(lambda: published or stats.timed_out > 1)
        assert published == [2] * (stats.timed_out == 1)
    return stats
