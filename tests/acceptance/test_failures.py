"""Handlers that fail, and publishers that are refused: the error is reported in its place, and all else continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.internet.threads import deferToThread

from tests.acceptance.conversation import conversation
from tests.acceptance.test_bad_input import LONG_WINDOW
from tests.running import running, subscribed
from tests.support import PATIENCE
from zroute import App, EncodeError, Limits, NotRunningError, TopicError
from zroute.messages.control import MARKER, pack_marker

READER = """
app = App(sub="tcp://127.0.0.1:1", codec="json")

@app.subscribe("ask")
def ask(number: int):
    say("answer", number)

@app.on_error(BaseException)
def told(error, envelope):
    say("told", type(error).__name__, str(error), envelope.topic, envelope.body.decode())

@app.subscribe("fail")
def beside(number: int):
    say("beside", number)

def lost(what):
    raise ValueError(what)
"""

FAILING = {
    "a function that raises": (
        "ValueError",
        """
@app.subscribe("fail")
def failing(number: int):
    if number:
        raise ValueError("of mine")
    say("handled")
""",
    ),
    "a function that is interrupted": (
        "KeyboardInterrupt",
        """
@app.subscribe("fail")
def failing(number: int):
    if number:
        raise KeyboardInterrupt("of mine")
    say("handled")
""",
    ),
    "a function without an end": (
        "RecursionError",
        """
@app.subscribe("fail")
def failing(number: int):
    if number:
        failing(number)
    say("handled")
""",
    ),
    "a coroutine that fails at once": (
        "ValueError",
        """
@app.subscribe("fail")
async def failing(number: int):
    if number:
        raise ValueError("of mine")
    say("handled")
""",
    ),
    "a coroutine that fails later": (
        "ValueError",
        """
@app.subscribe("fail")
async def failing(number: int):
    from twisted.internet import reactor, task
    await task.deferLater(reactor, 0.01)
    if number:
        raise ValueError("of mine")
    say("handled")
""",
    ),
    "a coroutine that is interrupted": (
        "KeyboardInterrupt",
        """
@app.subscribe("fail")
async def failing(number: int):
    if number:
        raise KeyboardInterrupt("of mine")
    say("handled")
""",
    ),
    "a Deferred that has failed": (
        "ValueError",
        """
@app.subscribe("fail")
def failing(number: int):
    if number:
        return defer.succeed("of mine").addCallback(lost)
    say("handled")
""",
    ),
    "a Deferred that fails later": (
        "ValueError",
        """
@app.subscribe("fail")
def failing(number: int):
    from twisted.internet import reactor, task
    if number:
        return task.deferLater(reactor, 0.01, lost, "of mine")
    say("handled")
""",
    ),
    "a generator that fails half way": (
        "ValueError",
        """
@app.publisher("derived", int)
@app.subscribe("fail")
def failing(number: int):
    if number:
        yield 1
        raise ValueError("of mine")
    say("handled")
""",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_handler_that_fails_stops_nothing(tmp_path: Path, case: str) -> None:
    """A failing handler is counted, logged with its traceback, and given to on_error; others continue."""
    kind, source = FAILING[case]
    pub = ["--pub", "tcp://127.0.0.1:*"] if "publisher" in source else []
    with conversation(tmp_path, READER + source, options=pub) as talk:
        talk.send([b"fail\0" + b"1"], [b"fail\0" + b"0"], [b"ask\0" + b"7"])
        talk.app.line_with('["told"')
        talk.app.line_with('["handled"]')
        heard = talk.heard()
        talk.app.line_with("Traceback", stream="err")
        stats = talk.stats()
    (told,) = [words for words in heard if words[0] == "told"]
    assert told[1] == kind
    assert told[3:] == ["fail", "1"]
    assert [words[1] for words in heard if words[0] == "beside"] == [1, 0]
    assert ["answer", 7] in heard
    route = stats["routes"]["failing()"]
    assert (route["handler_error"], route["handled"], route["in_flight"]) == (1, 1, 0)
    assert stats["routes"]["beside()"]["handled"] == 2
    assert stats["hook_errors"] == stats["malformed"] == 0
    (line,) = [line for line in talk.app.err if "failing() at " in line and "failed on 'fail'" in line]
    assert "reader.py:" in line
    assert kind in line
    assert sum("Traceback" in line for line in talk.app.err) == 1
    assert not [line for line in talk.app.err if "Unhandled" in line]


def test_a_flood_of_failures_is_a_few_lines_and_a_number(tmp_path: Path) -> None:
    """Of a thousand failures, all are counted and given to on_error; the log shows five, and a number."""
    with conversation(tmp_path, LONG_WINDOW + READER + FAILING["a function that raises"][1]) as talk:
        talk.send(*[[b"fail\0" + b"1"]] * 1000)
        heard = talk.heard()
        stats = talk.stats()
    assert sum(words[0] == "told" for words in heard) == 1000
    assert stats["routes"]["failing()"]["handler_error"] == 1000
    assert sum("failed on 'fail'" in line for line in talk.app.err) == 5
    assert sum("995 more lines like these" in line for line in talk.app.err) == 1


# -- at the caller ---------------------------------------------------------------------------------------


@attrs.frozen
class Quote:
    symbol: str
    price: float


def refusals(app: App) -> dict[str, tuple[type[Exception], Any]]:
    """Return the calls that must raise, with their errors."""
    quotes, anything = app.publisher("stocks.{symbol}", Quote), app.publisher("any")
    good = Quote("A", 1.0)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    topics = ["a b", "a\0b", "a.*", "a.>", "x" * 256, "a..b", ".a", "a.", "é" * 128]
    return {
        **{f"topic {topic!r}": (TopicError, lambda topic=topic: app.publish(topic, 1)) for topic in topics},
        "a capture with a dot": (TopicError, lambda: quotes.publish(good, symbol="A.B")),
        "an empty capture": (TopicError, lambda: quotes.publish(good, symbol="")),
        "another type": (EncodeError, lambda: quotes.publish({"symbol": "A", "price": 1.0}, symbol="A")),  # type: ignore[arg-type]
        "a field of another type": (EncodeError, lambda: quotes.publish(Quote("A", "1"), symbol="A")),  # type: ignore[arg-type]
        "NaN": (EncodeError, lambda: quotes.publish(Quote("A", float("nan")))),
        "an object of no type": (EncodeError, lambda: app.publish("a", object())),
        "an int over 64 bits": (EncodeError, lambda: anything.publish(2**64)),
        "text that is no UTF-8": (EncodeError, lambda: app.publish("a", "\ud800")),
        "nested arrays": (EncodeError, lambda: anything.publish(deep)),
        "a body over the limit": (EncodeError, lambda: app.publish("a", bytes(1001))),
        "headers that are no text": (EncodeError, lambda: app.publish("a", 1, headers={1: 2})),  # type: ignore[dict-item]
        "headers over their limit": (EncodeError, lambda: app.publish("a", 1, headers={"a": "x" * 5000})),
    }


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
async def test_what_cannot_be_sent_raises_at_the_caller(wire: Any) -> None:
    """A bad topic, a message that cannot be encoded and a body that is too large raise at publish."""
    app = App(pub="tcp://127.0.0.1:*", limits=Limits(max_message=1000), wire=wire)
    cases = refusals(app)
    with pytest.raises(NotRunningError):
        app.publish("a", 1)
    async with running(app) as service:
        assert service.transport is not None
        assert service.transport.pub is not None
        context: zmq.Context[Any] = zmq.Context()
        peer = context.socket(zmq.SUB)
        try:
            peer.subscribe(b"")
            peer.connect(service.transport.pub.endpoints[0])
            await subscribed(service, b"")
            if wire == "tracked":
                peer.subscribe(pack_marker(1 << 16, [b""]))
                for _ in ("the answer", "the end of what is kept"):  # from here on messages are numbered
                    assert await deferToThread(peer.poll, PATIENCE * 1000)
                    assert peer.recv(zmq.NOBLOCK).startswith(MARKER)
            for name, (kind, call) in cases.items():
                with pytest.raises(kind) as caught:
                    call()
                assert type(caught.value) is kind, name
            app.publish("good", b"fine")
            assert await deferToThread(peer.poll, PATIENCE * 1000)
            frames = peer.recv_multipart(zmq.NOBLOCK)
            assert frames[0].startswith(b"good")
            assert frames[-1].endswith(b"fine")
            if wire == "tracked":  # not even a number was used
                assert frames[0][5 + 16 : 5 + 24] == (1).to_bytes(8, "big")
        finally:
            peer.close(0)
            context.term()
        assert app.stats.published == 1
