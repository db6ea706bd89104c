"""Publishing in a stated form, over real sockets and in tests of apps."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import running, turns
from tests.support import PATIENCE, free_endpoint
from zroute import App, EncodeError, Frames, SignatureError, TopicError
from zroute.testing import TestApp

FORMS: list[tuple[Frames, list[bytes]]] = [
    (Frames(separator=b" "), [b'quotes.A {"n":1}']),
    (Frames(separator=b" ", decompress="zlib"), [b"quotes.A " + zlib.compress(b'{"n":1}')]),
    (Frames(topic=0, body=2), [b"quotes.A", b"", b'{"n":1}']),
    (Frames(topic="quotes.A"), [b'{"n":1}']),
]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("overflow", ["drop", "wait", "raise"])
@pytest.mark.parametrize(("form", "parts"), FORMS, ids=str)
async def test_a_plain_subscriber_gets_the_stated_form(form: Frames, parts: list[bytes], overflow: Any) -> None:
    """A foreign subscriber reads each message in the form, on the first and on later paths."""
    address = free_endpoint()
    app = App(pub=address, wire=form, codec="json", overflow=overflow)
    quotes = app.publisher("quotes.{symbol}", dict)
    context = zmq.Context()
    socket, got = context.socket(zmq.SUB), list[list[bytes]]()
    try:
        async with running(app):
            socket.connect(address)
            socket.subscribe(b"")
            await quotes.wait_for_subscribers(timeout=PATIENCE)
            for _ in range(3):
                quotes.publish({"n": 1}, symbol="A")
            app.publish("quotes.A", {"n": 1})

            def arrived() -> bool:
                while socket.poll(0):
                    got.append(socket.recv_multipart())
                return len(got) == 4

            await turns(arrived)
            with pytest.raises(EncodeError, match="only the tracked wire carries headers"):
                app.publish("quotes.A", {"n": 1}, headers={"a": 1})
            assert app.stats.published == 4
    finally:
        socket.close(0)
        context.term()
    assert got == [parts] * 4


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("overflow", ["drop", "wait", "raise"])
async def test_a_topic_with_the_separator_is_refused_at_its_publish(overflow: Any) -> None:
    """TopicError at the caller, and nothing is sent, with each way of sending."""
    app = App(pub=free_endpoint(), wire=Frames(separator=b"."), codec="json", overflow=overflow)
    quotes = app.publisher("quotes.{symbol}", dict)
    async with running(app):
        for _ in range(2):
            with pytest.raises(TopicError, match="contains b'\\.'"):
                quotes.publish({}, symbol="A")
            with pytest.raises(TopicError, match="contains b'\\.'"):
                app.publish("a.b", {})
        app.publish("a", {})
        assert app.stats.published == 1


def test_what_one_app_sends_another_reads() -> None:
    """An app that publishes in a form, and one that states it, understand each other; a test shows topic and body."""
    form = Frames(topic=0, body=2, decompress="zstd")
    feed, reader = App(pub="tcp://feed:1", wire=form, codec="json"), App(sub={"tcp://feed:1": form}, codec="json")
    quotes, got = feed.publisher("quotes.{symbol}", dict), list[Any]()

    @reader.subscribe("quotes.{symbol}")
    def take(body: dict, symbol: str) -> None:
        got.append((symbol, body))

    with TestApp(feed, reader) as t:
        quotes.publish({"n": 1}, symbol="A")
        assert t.published("quotes.A") == [{"n": 1}]
        (envelope,) = t.envelopes()
    assert got == [("A", {"n": 1})]
    assert (envelope.topic, envelope.body, len(envelope.frames)) == ("quotes.A", b'{"n":1}', 3)


@pytest.mark.parametrize(
    "form", [Frames(topic=lambda parts: "a"), Frames(body=lambda parts: parts[1])], ids=["topic", "body"]
)
def test_a_form_with_a_function_is_refused_for_sending(form: Frames) -> None:
    """A function can only read messages, so the app is refused at its line."""
    with pytest.raises(SignatureError, match=r"test_stated.py:\d+: wire=Frames\(.*can only read messages") as raised:
        App(pub="tcp://127.0.0.1:1", wire=form)
    assert raised.value.parameter == "wire"


def test_a_body_like_a_tracked_header_may_be_sent_in_a_stated_form() -> None:
    """Readers of a stated form do not look for headers, so the body is not refused."""
    app = App(pub="tcp://feed:1", wire=Frames())
    app.publisher("a", bytes)
    with TestApp(app) as t:
        app.publish("a", b"\xc1ZR")
        assert t.published("a", bytes) == [b"\xc1ZR"]
