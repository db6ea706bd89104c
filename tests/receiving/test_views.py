"""Handlers that take raw bodies as a memoryview."""

from __future__ import annotations

import gc
from array import array
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox, running, subscribed
from tests.support import PATIENCE, free_endpoint
from zroute import App, Envelope, Limits, SchemaError
from zroute.errors import EncodeError
from zroute.options import LARGE_FRAME
from zroute.testing import TestApp

SIZES = [0, 1, 100, LARGE_FRAME - 1, LARGE_FRAME, LARGE_FRAME + 1, 300_000]


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
@pytest.mark.parametrize("size", SIZES)
def test_a_body_of_any_size_is_a_memoryview(wire: Any, size: int) -> None:
    """A parameter annotated memoryview receives a read-only view of the bytes, small or large, on each wire."""
    app, got = App(wire=wire), []
    out = app.publisher("a", bytes)

    @app.subscribe("a")
    def on_view(body: memoryview, envelope: Envelope) -> None:
        got.append((body.tobytes(), body.readonly, body.format, envelope.body))

    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with TestApp(app) as t:
        out.publish(body)
        t.advance(0)
    assert got == [(body, True, "B", body)]


def test_threads_batches_and_streams_receive_views() -> None:
    """A view may be used in a thread, in a list and in a stream, and after the handler has ended."""
    app, kept, lists, streamed = App(), [], [], []

    @app.subscribe("a", thread=True)
    def in_thread(body: memoryview) -> None:
        kept.append(body)

    @app.subscribe("a", batch=10)
    def listed(bodies: list[memoryview]) -> None:
        lists.append([bytes(body) for body in bodies])

    @app.subscribe("begin")
    async def begin() -> None:
        async with app.stream("a", memoryview) as messages:
            streamed.extend([message async for message in messages])

    with TestApp(app) as t:
        t.publish("begin", 0)
        t.publish("a", b"small", bytes(100_000))
        t.advance(1)
        assert lists == [[b"small", bytes(100_000)]]
    gc.collect()
    for views in (kept, streamed):
        assert [type(view) for view in views] == [memoryview, memoryview]
        assert sorted(map(bytes, views), key=len) == [b"small", bytes(100_000)]


def test_retries_and_dead_letters_of_views_keep_the_bytes() -> None:
    """Each attempt receives the view again, and the dead letter has the bytes."""
    app, attempts = App(), []

    @app.subscribe("a", retry=(1,), dead="dead")
    def fails(body: memoryview) -> None:
        attempts.append(bytes(body[:3]))
        raise ValueError("no")

    with TestApp(app, raise_errors=False) as t:
        t.publish("a", b"abc" + bytes(50_000))
        t.advance(2)
        assert attempts == [b"abc", b"abc"]
        assert [envelope.body for envelope in t.envelopes("dead")] == [b"abc" + bytes(50_000)]


@pytest.mark.parametrize("given", [b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"xabc")[1:]])
@pytest.mark.parametrize("schema", [bytes, memoryview])
def test_publishers_take_bytes_and_views(schema: Any, given: Any) -> None:
    """Publishers of bytes or memoryview take bytes, bytearray and memoryview, and send the bytes they hold now."""
    app, got = App(coalesce=True), []
    given = bytearray(given) if isinstance(given, bytearray) else given
    out = app.publisher("a", schema)

    @app.subscribe("a")
    def on_body(body: bytes) -> None:
        got.append(body)

    with TestApp(app) as t:
        out.publish(given)
        app.publish("a", given)
        if isinstance(given, bytearray):
            given[:] = b"xyz"  # after publish has returned
        t.advance(1)
        assert t.published("a") == [b"abc"] * 2
    assert got == [b"abc", b"abc"]


def test_a_view_of_numbers_is_sent_as_bytes_and_counted_as_bytes() -> None:
    """The length that max_message limits is that of the bytes, not of the items."""
    app = App(limits=Limits(max_message=20))
    out = app.publisher("a", memoryview)
    numbers = array("d", [1.0, 2.0])
    with TestApp(app) as t:
        out.publish(memoryview(numbers))
        with pytest.raises(EncodeError, match="the body has 24 bytes, more than max_message=20"):
            out.publish(memoryview(array("d", [1.0, 2.0, 3.0])))
        with pytest.raises(EncodeError, match="expected bytes, got str"):
            out.publish("text")  # type: ignore[arg-type]
        assert t.published("a", bytes) == [numbers.tobytes()]


def test_results_may_be_views() -> None:
    """A handler that returns a view may publish as bytes, and as memoryview."""
    app = App()

    @app.publisher("out", bytes)
    @app.subscribe("in")
    def crop(body: memoryview) -> memoryview:
        return body[1:3]

    @app.publisher("whole", memoryview)
    @app.subscribe("in")
    def whole(body: memoryview) -> bytes:
        return bytes(body)

    with TestApp(app) as t:
        t.publish("in", b"abcd")
        assert (t.published("out"), t.published("whole")) == ([b"bc"], [b"abcd"])


def test_views_travel_raw() -> None:
    """A codec for a publisher of views is refused, as for bytes."""
    app = App()
    app.publisher("a", memoryview, codec="json")
    with pytest.raises(SchemaError, match="bytes are always sent raw"):
        app.compile()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wire", ["tracked", "plain"])
async def test_a_large_frame_from_a_socket_is_not_copied(wire: Any) -> None:
    """The view is of libzmq's own buffer, and stays valid when the socket and the app are gone."""
    endpoint, box = free_endpoint(), Mailbox[memoryview]()
    writer, reader = App(pub=endpoint, wire=wire, name="writer"), App(sub=endpoint, name="reader")
    out = writer.publisher("a", bytes)

    @reader.subscribe("a")
    def handle(body: memoryview) -> None:
        box.put(body)

    async with running(writer) as service, running(reader):
        await subscribed(service, b"a")
        for letter in (b"x", b"y", b"z"):
            out.publish(letter * 500_000)
        out.publish(b"small")
        views = await box.until(4)
    assert all(isinstance(view.obj, zmq.Frame) for view in views[:3])
    assert isinstance(views[3].obj, bytes)
    gc.collect()
    assert [bytes(view) for view in views] == [b"x" * 500_000, b"y" * 500_000, b"z" * 500_000, b"small"]
    assert reader.stats.routed == 4


@pytest_twisted.ensureDeferred
async def test_messages_that_travel_in_one_frame_are_views_of_their_own() -> None:
    """Each view has the bytes of its message, whatever the size of the frame."""
    endpoint, box = free_endpoint(), Mailbox[memoryview]()
    app = App(sub=endpoint, pub=endpoint, coalesce=True)
    out = app.publisher("a", memoryview)

    @app.subscribe("a")
    def handle(body: memoryview) -> None:
        box.put(body)

    sent = [bytes([letter]) * size for size in (0, 1, 100, LARGE_FRAME, 30_000, 70_000) for letter in b"xyz"]
    async with running(app):
        await app.ready(1, timeout=PATIENCE)
        for body in sent:
            out.publish(body)
        views = await box.until(len(sent))
    gc.collect()
    assert [bytes(view) for view in views] == sent
    assert all(isinstance(view, memoryview) and view.readonly for view in views)


@pytest_twisted.ensureDeferred
async def test_handlers_of_one_topic_share_a_copy_if_one_needs_bytes() -> None:
    """Beside a handler that takes bytes, a view is one of the same bytes."""
    endpoint, box = free_endpoint(), Mailbox[Any]()
    app = App(sub=endpoint, pub=endpoint)

    @app.subscribe("a")
    def on_view(body: memoryview) -> None:
        box.put(body.obj)

    @app.subscribe("a")
    def on_bytes(body: bytes) -> None:
        box.put(body)

    async with running(app):
        await app.ready(timeout=PATIENCE)
        app.publish("a", bytes(100_000))
        one, other = await box.until(2)
    assert one is other
