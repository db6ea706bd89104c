"""Messages of a stated form in the routes of an app: delivered, refused, and counted once each."""

from __future__ import annotations

import re
import sys
import zlib
from collections import deque
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure import Wired
from zroute import App, Envelope, EnvelopeError, Frames, Limits, Reject, Topic, startswith
from zroute.errors import DecodeError, UsageError
from zroute.messages.wire import MAGIC, framer
from zroute.options import MAX_PARTS, MAX_TOPIC
from zroute.testing import TestApp

FEED, OTHER, DESK = "tcp://feed:1", "tcp://other:2", "tcp://desk:3"


@attrs.frozen
class Quote:
    symbol: str
    price: float


class NothingLeftError(Exception):
    pass


class Line:
    """A socket that holds messages; ``recv`` raises after the last one."""

    def __init__(self, *messages: tuple[bytes, ...]) -> None:
        self._messages = deque(messages)
        self._parts: deque[bytes] = deque()

    def recv(self, flags: int) -> bytes:
        if not self._parts:
            if not self._messages:
                raise NothingLeftError
            self._parts.extend(self._messages.popleft())
        return self._parts.popleft()

    def more(self) -> int:
        return len(self._parts)

    def read(self, wired: Wired, form: Frames) -> None:
        """Read all messages."""
        parse = form.parser(wired.table._max_message, FEED)
        try:
            while True:
                wired.table.receive_stated(parse, self.recv, self.more, 16)
        except NothingLeftError:
            return


def everything(app: App) -> list[tuple[bytes, bytes]]:
    """Add a handler of everything; return the list of topics and bodies that it fills."""
    got: list[tuple[bytes, bytes]] = []

    @app.subscribe(startswith(""))
    def take(body: bytes, topic: Topic) -> None:
        got.append((topic.wire, body))

    return got


def counted(stats: Any) -> int:
    """Return the number of messages in the five counters that exclude each other."""
    return int(stats.routed + stats.unrouted + stats.malformed + stats.duplicate + stats.control)


FORMS = [
    Frames(),
    Frames(separator=b" "),
    Frames(topic=2, body=0),
    Frames(topic="fixed", whole=True),
    Frames(topic=lambda parts: parts[0].decode(), body=lambda parts: parts[1]),
    Frames(topic=lambda parts: parts[0][0], body=-1),
    Frames(topic="packed", decompress="zlib"),
    Frames(topic="packed", decompress="zstd"),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(
    messages=st.lists(
        st.lists(
            st.one_of(st.binary(max_size=12), st.sampled_from([MAGIC + bytes(40), b"a b", b"", b"\0", bytes(300)])),
            min_size=1,
            max_size=MAX_PARTS + 4,
        ).map(tuple),
        max_size=8,
    )
)
def test_any_parts_are_counted_once_and_raise_nothing(form: Frames, messages: list[tuple[bytes, ...]]) -> None:
    """Messages of any bytes are delivered or malformed, each counted once, and the next good message is handled."""
    app = App()
    got = everything(app)
    wired = Wired(app)
    good = {"packed": (zlib.compress(b"good"),)}.get(str(form.topic), (b"t b", b"x", b"y"))
    Line(*messages).read(wired, form)
    assert counted(wired.stats) == wired.stats.received == len(messages)
    assert wired.stats.unrouted == wired.stats.control == wired.stats.duplicate == 0
    assert len(got) == wired.stats.routed
    if form in FORMS[:5]:
        Line(good).read(wired, form)
        assert len(got) == wired.stats.routed > 0


def test_more_parts_than_are_read_are_one_malformed_message() -> None:
    """The parts after the sixteenth are skipped, and no message is made of them."""
    app = App()
    got = everything(app)
    wired = Wired(app)
    Line((b"t",) * 40, (b"a", b"b"), (b"t",) * 17, (b"c", b"d"), (b"e",) * 16).read(wired, Frames())
    assert got == [(b"a", b"b"), (b"c", b"d"), (b"e", b"e")]
    assert (wired.stats.received, wired.stats.malformed) == (5, 2)


@pytest.mark.parametrize(
    ("form", "parts", "topic"),
    [
        (Frames(topic="weather"), (b"x",) * 17, "weather"),
        (Frames(topic="weather", whole=True), (b"x",) * 17, "weather"),
        (Frames(topic=b"weather", body=3), (b"x",), "weather"),
        (Frames(topic="weather", decompress="zlib"), (b"x",), "weather"),
        (Frames(topic=2, body=0), tuple(b"%d" % n for n in range(20)), "2"),
        (Frames(topic=0, body=9), (b"news", b"x"), "news"),
        (Frames(separator=b" "), (b"news x",) * 17, "news"),
        (Frames(topic=lambda parts: parts[20]), (b"x",) * 40, ""),
        (Frames(topic=lambda parts: "news", body=9), (b"x",), "news"),
    ],
    ids=repr,
)
def test_the_log_names_the_topic_of_a_malformed_message(
    form: Frames, parts: tuple[bytes, ...], topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The topic is logged if the form tells it without the faulty parts."""
    app = App(sub={FEED: form})
    everything(app)
    with TestApp(app, raise_errors=False) as t:
        t.receive(*parts)
    assert f"malformed message refused (topic {topic!r}, no route): " in caplog.text


def test_bytes_that_look_like_zroutes_wire_are_only_bytes() -> None:
    """A tracked header in the body, and a NUL in the topic, have no meaning in a stated form."""
    app, frame = App(), framer("tracked", epoch=1, next_sequence=lambda: 1, clock_ns=lambda: 0)
    got = everything(app)
    tracked = frame(b"t", 1, b"\x01", None)
    assert isinstance(tracked, bytes)
    header = tracked[2:]
    with TestApp(App(sub={FEED: Frames()}), app) as t:
        t.receive(b"t", header)  # the second app recognises it
    assert got == [(b"t", b"\x01")]
    app = App(sub={FEED: "multipart"})
    got = everything(app)
    with TestApp(app) as t:
        t.receive(b"t", header)
        t.receive(b"a\0b", b"body")
        t.receive(b"t", MAGIC)
    assert got == [(b"t", header), (b"a\0b", b"body"), (b"t", MAGIC)]
    app = App(sub={FEED: "plain"})
    got = everything(app)
    with TestApp(app) as t:
        t.receive(tracked)
        t.receive(b"a\0b\0c", b"ignored")
    assert got == [(b"t", header), (b"a", b"b\0c")]


def test_an_envelope_of_a_stated_message_has_its_parts_unchanged() -> None:
    """The envelope has topic and decompressed body, and the frames as they arrived."""
    app, got = App(sub={FEED: Frames(topic="eddn", decompress="zlib")}, codec="json"), list[Any]()

    @app.subscribe("eddn")
    def take(quote: Quote, envelope: Envelope) -> None:
        got.append((quote, envelope.topic, envelope.body, envelope.frames, envelope.tracked, envelope.sequence))

    body = b'{"symbol":"A","price":1.5}'
    packed = zlib.compress(body)
    with TestApp(app) as t:
        t.receive(packed)
    assert got == [(Quote("A", 1.5), "eddn", body, (packed,), False, None)]


def test_a_bad_message_reaches_the_error_function_and_the_next_one_is_handled() -> None:
    """What a topic function raises is an EnvelopeError with the parts, and counted as malformed."""

    def topic_of(parts: tuple[bytes, ...]) -> str:
        return {b"1": "one"}[parts[0]]

    app, told = App(sub={FEED: Frames(topic=topic_of)}), list[Any]()
    got = everything(app)

    @app.on_error(EnvelopeError)
    def refused(error: EnvelopeError, envelope: Envelope) -> None:
        told.append((error.reason, envelope.topic, envelope.frames))

    with TestApp(app) as t:
        t.receive(b"2", b"body")
        t.receive(b"1", b"body")
        assert app.stats.malformed == app.stats.routed == 1
    ((reason, *rest),) = told
    assert re.fullmatch(r"KeyError: b'2' at tests/receiving/test_stated.py:\d+ \(at connect:.*topic_of\(\)\)\)", reason)
    assert rest == ["", (b"2", b"body")]
    assert got == [(b"one", b"body")]


def test_an_error_that_is_no_exception_does_not_reach_the_reactor() -> None:
    """A BaseException of a topic function counts as malformed too."""

    class OddError(BaseException):
        pass

    def topic_of(parts: tuple[bytes, ...]) -> str:
        raise OddError

    app = App(sub={FEED: Frames(topic=topic_of)})
    everything(app)
    with TestApp(app, raise_errors=False) as t:
        t.receive(b"2")
        assert app.stats.malformed == 1


def test_an_exit_of_a_topic_function_stops_the_app() -> None:
    """SystemExit stops the app with its code, as in a handler."""
    app = App(sub={FEED: Frames(topic=lambda parts: sys.exit(3))})
    got = everything(app)
    t = TestApp(app)
    with pytest.raises(SystemExit), t:
        t.receive(b"2")
    assert t.exit_code == 3
    assert (app.stats.received, app.stats.malformed, got) == (1, 1, [])


def test_a_body_above_max_message_is_malformed() -> None:
    """max_message limits a body of a stated form, before and after decompression."""
    app = App(sub={FEED: Frames(), OTHER: Frames(topic="z", decompress="zlib")}, limits=Limits(max_message=10))
    got = everything(app)
    with TestApp(app, raise_errors=False) as t:
        t.receive(b"t", bytes(11), endpoint=FEED)
        t.receive(zlib.compress(bytes(11)), endpoint=OTHER)
        t.receive(b"t", bytes(10), endpoint=FEED)
        t.receive(zlib.compress(bytes(10)), endpoint=OTHER)
        assert [str(error) for error in t.failures] == [
            "a body of 11 bytes; expected at most max_message=10",
            f"a zlib body that decompresses to more than max_message=10 bytes "
            f"(at connect:{OTHER}, read as Frames(topic='z', decompress='zlib'))",
        ]
    assert [len(body) for _, body in got] == [10, 10]


def test_a_long_topic_is_routed_and_not_cached() -> None:
    """A topic over 255 bytes is routed like any other."""
    app = App(sub={FEED: Frames(separator=b" ")})
    got = everything(app)
    long = b"t" * (MAX_TOPIC + 1)
    with TestApp(app) as t:
        t.receive(long + b" 1")
        t.receive(long + b" 2")
    assert got == [(long, b"1"), (long, b"2")]
    assert app.stats.cache_misses == 2


def test_a_body_that_is_no_text_is_the_error_of_its_handler() -> None:
    """A handler of text gets no other bytes: DecodeError, and the next message is handled."""
    app, got = App(sub={FEED: Frames()}), list[str]()

    @app.subscribe("t")
    def take(text: str) -> None:
        got.append(text)

    with TestApp(app) as t:
        with pytest.raises(DecodeError):
            t.receive(b"t", b"\xff")
        t.receive(b"t", b"good")
    assert got == ["good"]


def test_messages_of_a_form_are_handled_in_batches_with_retries_and_dead_letters() -> None:
    """The options of handlers work as for other messages, and a dead letter has the body as it was decoded."""
    app = App(sub={FEED: Frames(topic="eddn", decompress="zlib")}, pub="tcp://127.0.0.1:1")
    lists, calls = list[list[bytes]](), list[bytes]()

    @app.subscribe("eddn", batch=10)
    def take(bodies: list[bytes]) -> None:
        lists.append(bodies)

    @app.subscribe("eddn", retry=(1,), dead="dead")
    def fail(body: bytes) -> None:
        calls.append(body)
        raise Reject("no") if len(calls) > 2 else ValueError("later")

    with TestApp(app) as t:
        t.receive(zlib.compress(b"one"))
        t.advance(2)
        (letter,) = t.envelopes("dead")
    assert lists == [[b"one"]]
    assert calls == [b"one", b"one"]
    assert (letter.body, letter.headers["zr-topic"]) == (b"one", "eddn")


def test_results_of_a_handler_carry_no_headers_of_the_body() -> None:
    """A body that looks like headers is not read as some."""
    app = App(sub={FEED: Frames()}, pub="tcp://127.0.0.1:1")
    frame = framer("tracked", epoch=1, next_sequence=lambda: 1, clock_ns=lambda: 0)
    sent = frame(b"t", 4, b"x", {"correlation-id": "forged"})
    assert isinstance(sent, bytes)

    @app.publisher("out", bytes)
    @app.subscribe("t")
    def answer(body: bytes) -> bytes:
        return b"answer"

    with TestApp(app) as t:
        t.receive(b"t", sent[2:])
        (out,) = t.envelopes("out")
    assert out.headers == {}


def test_a_stale_limit_does_not_apply_to_messages_without_a_time() -> None:
    """A stated form carries no time, so no message is stale."""
    app, got = App(sub={FEED: Frames()}), list[bytes]()

    @app.subscribe("t", stale_after=0.001)
    def take(body: bytes) -> None:
        got.append(body)

    with TestApp(app) as t:
        t.receive(b"t", MAGIC + bytes(60))
    assert len(got) == 1


# -- in tests of apps ------------------------------------------------------------------------------------


def both() -> tuple[App, list[tuple[bytes, bytes]]]:
    """Return an app with three forms, and what it gets."""
    app = App(sub={FEED: Frames(separator=b" "), OTHER: Frames(topic="other"), DESK: "tracked"})
    return app, everything(app)


def test_a_test_says_at_which_endpoint_a_message_arrives() -> None:
    """`receive` takes an endpoint, and reads the message in its form."""
    app, got = both()
    with TestApp(app) as t:
        t.receive(b"a b", endpoint=FEED)
        t.receive(b"a b", endpoint=f"connect:{OTHER}")
        t.receive(b"a\0b", endpoint=DESK)
    assert got == [(b"a", b"b"), (b"other", b"a b"), (b"a", b"b")]


def test_a_test_that_does_not_say_it_gets_an_error_with_all_endpoints() -> None:
    """Without an endpoint the form is unclear, and an unknown endpoint is an error too."""
    app, _ = both()
    with TestApp(app) as t:
        with pytest.raises(UsageError, match=r"several message forms.*endpoint='tcp://feed:1'\)"):
            t.receive(b"a b")
        with pytest.raises(
            UsageError, match=r"no app receives from this endpoint; the endpoints of the apps are connect:tcp://feed:1"
        ):
            t.receive(b"a b", endpoint="tcp://nowhere:1")


def test_a_published_message_of_a_test_needs_no_form() -> None:
    """`publish` gives the message to the handlers, whatever forms the app states."""
    app, got = both()
    with TestApp(app) as t:
        t.publish("a", b"b")
    assert got == [(b"a", b"b")]


def test_an_app_in_a_test_reads_another_app_in_the_form_of_the_endpoint() -> None:
    """Messages of a plain app arrive at the endpoint with its address, and are read in that form."""
    app, got = both()
    feed = App(pub=f"bind:{FEED}", wire="plain")
    ticks = feed.publisher("a", bytes)
    with TestApp(app, feed, raise_errors=False) as t:
        ticks.publish(b"x y")
        assert [type(error) for error in t.failures] == []
    assert got == [(b"a\0x", b"y")]


def test_a_message_that_no_app_subscribes_to_is_unheard_with_its_topic() -> None:
    """`unheard` has the topic and body of the form."""
    app = App(sub={FEED: Frames(separator=b" ")})

    @app.subscribe("a")
    def take(body: bytes) -> None: ...

    with TestApp(app) as t:
        t.receive(b"b c")
        (unheard,) = t.unheard
    assert (unheard.topic, unheard.body) == ("b", b"c")
