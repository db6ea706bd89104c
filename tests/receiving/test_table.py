"""The table: which handlers receive a message, in which order, and what is counted if none does."""

from __future__ import annotations

import logging
from typing import Annotated, Any
from uuid import UUID

import attrs
import pytest

from tests.pure import Wired, packed, plain, tracked
from zroute import App, Envelope, Limits, Topic, startswith
from zroute.messages.wire import Kind, pack_head, split
from zroute.options import LARGE_FRAME, MAX_PARTS
from zroute.stats import Stats


@attrs.frozen
class Quote:
    symbol: str
    price: float


@attrs.frozen
class Other:
    name: str


def test_a_handler_gets_the_typed_object_of_its_topic() -> None:
    """A handler receives an instance of its annotated class for each message of its topic."""
    app, got = App(), []

    @app.subscribe("stocks")
    def on_quote(quote: Quote) -> None:
        got.append(quote)

    Wired(app).feed(plain("stocks", {"symbol": "A", "price": 1.5}))
    assert got == [Quote("A", 1.5)]


@pytest.mark.parametrize("frame", [plain, tracked])
def test_all_that_match_are_called_most_specific_first(frame: Any) -> None:
    """All handlers with a matching pattern are called once each, the most specific first."""
    app, order = App(), []
    for name, pattern in [("rest", startswith("a")), ("tail", "a.>"), ("one", "a.*"), ("exact", "a.b")]:
        app.add_route(lambda message, name=name: order.append(name), pattern)
    Wired(app).feed(frame("a.b", 1), frame("a.b", 2))
    assert order == ["exact", "one", "tail", "rest"] * 2


def test_the_most_specific_alone_is_called_where_i_ask_for_it() -> None:
    """With dispatch="most_specific", only the handler with the most specific pattern is called."""
    app, order = App(dispatch="most_specific"), []
    app.add_route(lambda message: order.append("any"), "news.>")
    app.add_route(lambda message: order.append("breaking"), "news.breaking")
    Wired(app).feed(plain("news.breaking", 1), plain("news.sports", 1))
    assert order == ["breaking", "any"]


def test_one_function_is_called_once_by_its_most_specific_pattern() -> None:
    """A function with two overlapping patterns is called once per message."""
    app, got = App(), []

    def on_news(message: Any, kind: str = "none") -> None:
        got.append((message, kind))

    app.add_route(on_news, "news.>")
    app.add_route(on_news, "news.{kind}")
    app.add_route(on_news, startswith("news"))
    Wired(app).feed(plain("news.a", 1), plain("news.a.b", 2))
    assert got == [(1, "a"), (2, "none")]


def test_a_capture_that_does_not_convert_leaves_the_message_to_the_next_candidate() -> None:
    """A handler with an int capture receives numbers only; other text goes to the next handler."""
    app, got = App(dispatch="most_specific"), []

    @app.subscribe("room.{number}.*")
    def by_number(message: Any, number: int) -> None:
        got.append(number)

    @app.subscribe("room.>")
    def by_name(message: Any, topic: Topic) -> None:
        got.append(topic)

    Wired(app).feed(plain("room.7.x", 1), plain("room.attic.x", 1))
    assert got == [7, "room.attic.x"]


def test_the_fallback_of_a_function_is_its_own_broader_pattern() -> None:
    """If a typed capture does not convert, the broader pattern of the same function is tried."""
    app, got = App(), []

    def handle(message: Any, number: int = -1) -> None:
        got.append(number)

    app.add_route(handle, "n.{number}")
    app.add_route(handle, "n.>")
    Wired(app).feed(plain("n.5", 0), plain("n.five", 0))
    assert got == [5, -1]


def test_handlers_of_one_type_share_the_object() -> None:
    """The body is decoded once for all handlers of the same type."""
    app, seen = App(), []
    app.add_route(lambda message: seen.append(message), "a")
    app.add_route(lambda message: seen.append(message), "a.>", "a")
    app.add_route(lambda other: seen.append(other), startswith("a"))
    Wired(app).feed(plain("a", {"k": 1}))
    assert seen == [{"k": 1}] * 3
    assert seen[0] is seen[1] is seen[2]


def test_copy_gives_a_handler_an_object_of_its_own() -> None:
    """With copy=True a handler may change its object without effect on other handlers."""
    app, seen = App(), []

    @app.subscribe("a", copy=True)
    def change(message: dict) -> None:
        message["k"] = 2

    @app.subscribe("a.>", "a")
    def look(message: dict) -> None:
        seen.append(message)

    Wired(app).feed(plain("a", {"k": 1}))
    assert seen == [{"k": 1}]


def test_one_type_that_does_not_decode_keeps_nothing_from_the_other() -> None:
    """If two handlers declare two types, the one whose type fits receives the message."""
    app, got = App(), []

    @app.subscribe("a")
    def on_quote(quote: Quote) -> None:
        got.append(quote)

    @app.subscribe("a")
    def on_other(other: Other) -> None:
        got.append(other)

    wired = Wired(app).feed(plain("a", {"name": "x"}), plain("a", {"symbol": "A", "price": 1.0}))
    assert got == [Other("x"), Quote("A", 1.0)]
    assert {name: (s.handled, s.decode_error) for name, s in wired.stats.routes.items()} == {
        "on_quote()": (1, 1),
        "on_other()": (1, 1),
    }


def test_a_tracked_message_after_a_plain_one_reaches_handlers_of_two_types() -> None:
    """A topic that is published plain first and tracked later reaches handlers of two types."""
    app, got = App(), []

    @app.subscribe("a")
    def on_quote(quote: Quote) -> None:
        got.append(quote)

    @app.subscribe("a")
    def on_other(other: Other) -> None:
        got.append(other)

    wired = Wired(app).feed(plain("a", {"name": "x"}), tracked("a", {"name": "y"}), tracked("a", {"name": "z"}))
    assert got == [Other("x"), Other("y"), Other("z")]
    assert wired.balanced()


@pytest.mark.parametrize("annotation", [Quote, dict, Any, bytes, str, Quote | bytes])
def test_tracked_and_plain_on_one_topic_are_told_apart(annotation: Any) -> None:
    """Publishers of both wires share a topic, and the handler receives the same bodies from both."""
    app, got = App(), []

    def handle(message: Any) -> None:
        got.append(message)

    handle.__annotations__["message"] = annotation
    app.add_route(handle, "a")
    if annotation is str:
        one, two = plain("a", body=b"hi"), tracked("a", body=b"hi", codec=3)
    elif annotation is bytes:
        one, two = plain("a", body=b"hi"), tracked("a", body=b"hi", codec=4)
    else:
        one, two = plain("a", {"symbol": "A", "price": 1.0}), tracked("a", {"symbol": "A", "price": 1.0})
    wired = Wired(app).feed(one, two, one, two, two)
    assert len(got) == 5
    assert all(message == got[0] for message in got)
    assert wired.stats.malformed == 0


def test_tracked_headers_reach_the_envelope() -> None:
    """An Envelope parameter has the headers, sequence, publisher and times of a tracked message."""
    app, got = App(), []

    @app.subscribe("a.{x}")
    def handle(message: int, envelope: Envelope, topic: Topic, x: str, app: App) -> None:
        got.append((message, envelope, topic, x, app))

    Wired(app).feed(tracked("a.b", 3, headers={"trace": "t"}, sequence=9), plain("a.b", 4))
    (message, envelope, topic, x, given), (second, bare, *_) = got
    assert (message, second, topic, x) == (3, 4, "a.b", "b")
    assert type(topic) is Topic
    assert given is app
    assert (envelope.headers, envelope.sequence, envelope.publisher) == ({"trace": "t"}, 9, f"{7:016x}")
    assert (envelope.sent_at, envelope.received_at, envelope.tracked, envelope.body) == (5.0, 100.0, True, packed(3))
    assert (bare.tracked, bare.sequence, bare.frames) == (False, None, (plain("a.b", 4),))


@pytest.mark.parametrize(
    ("topic", "matched"),
    [("news", ["news", "ne"]), ("newsletter", ["ne"]), ("news.a", ["news.*", "ne"]), ("news.a.b", ["ne"])],
)
def test_a_pattern_takes_its_own_topics_only(topic: str, matched: list[str]) -> None:
    """`news` does not match `newsletter`, `news.*` does not match `news.a.b`, startswith("ne") matches all."""
    app, got = App(), []
    for name, pattern in [("news", "news"), ("news.*", "news.*"), ("ne", startswith("ne"))]:
        app.add_route(lambda message, name=name: got.append(name), pattern)
    Wired(app).feed(plain(topic, 0))
    assert got == matched


def test_topics_that_are_not_text_reach_a_prefix() -> None:
    """A binary topic matches startswith(b"…"), and its bytes can be read from the envelope."""
    app, got = App(), []

    @app.subscribe(startswith(b"\xff"))
    def handle(body: bytes, topic: Topic) -> None:
        got.append(topic.wire)

    Wired(app).feed(plain(b"\xff\xfe", body=b"x"))
    assert got == [b"\xff\xfe"]


def test_a_topic_that_is_not_text_and_that_nobody_takes_is_malformed() -> None:
    """A topic with invalid UTF-8 that matches no route is malformed, logged once, and harmless."""
    app, unrouted = App(), []
    app.add_route(lambda message: None, "a.>")
    app.on_unrouted(unrouted.append)
    wired = Wired(app).feed(plain(b"a.\xff", 1), plain(b"a.\xff", 1))
    assert (wired.stats.malformed, wired.stats.unrouted, unrouted) == (2, 0, [])
    assert wired.balanced()


def test_the_empty_topic_reaches_the_empty_prefix() -> None:
    """Only startswith("") receives the empty topic."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), startswith(""))
    Wired(app).feed(plain("", 1), tracked("", 2))
    assert got == [1, 2]


def test_what_no_route_takes_goes_to_the_fallback_and_is_counted() -> None:
    """on_unrouted receives the envelope of a message that matches no route."""
    app, got = App(), []
    app.add_route(lambda message: None, "a")
    app.on_unrouted(got.append)
    wired = Wired(app).feed(plain("b", 1), tracked("b", 2), tracked("b", 3), plain("a", 4))
    assert [(envelope.topic, envelope.body) for envelope in got] == [("b", packed(n)) for n in (1, 2, 3)]
    assert (wired.stats.received, wired.stats.unrouted, wired.stats.routed) == (4, 3, 1)


# -- parts -----------------------------------------------------------------------------------------------


def test_the_guides_two_frames_are_understood() -> None:
    """Messages of the form [topic, body] are received without configuration."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    wired = Wired(app).feed((b"a", packed(1)), (b"a", packed(2)), plain("a", 3))
    assert got == [1, 2, 3]
    assert wired.stats.received == 3


def test_extra_parts_are_in_the_envelope() -> None:
    """A message [topic, body, sequence] gives the body to the handler, and all parts in envelope.frames."""
    app, got = App(), []

    @app.subscribe("hashblock")
    def handle(body: bytes, envelope: Envelope) -> None:
        got.append((body, envelope.frames))

    frames = (b"hashblock", b"\x01\x02", b"\0\0\0\7")
    Wired(app).feed(frames)
    assert got == [(b"\x01\x02", frames)]


def test_a_multipart_body_that_looks_whole_is_asked_about_from_then_on() -> None:
    """If extra parts follow a frame that looks complete, the error is counted; the next message is handled."""
    app, got = App(), []

    @app.subscribe("a")
    def handle(message: int) -> None:
        got.append(message)

    wired = Wired(app)
    wired.feed(plain("a", 1), (plain("a", body=b"\xc1"), b"rest", b"rest"), plain("a", 2))
    assert got == [1, 2]
    before = wired.asked_for_more
    wired.feed(plain("a", 3))
    assert wired.asked_for_more == before + 1
    assert wired.balanced()


def test_a_known_topic_is_read_without_asking_for_parts() -> None:
    """The fast path asks RCVMORE once per topic, and not for each message."""
    app = App()
    app.add_route(lambda message: None, "a")
    wired = Wired(app).feed(plain("a", 1))
    asked = wired.asked_for_more
    wired.feed(*[plain("a", 1)] * 50)
    assert wired.asked_for_more == asked


def test_tracked_bodies_that_break_inside_several_parts_are_skipped() -> None:
    """The remaining parts of a refused tracked message are not read as a message."""
    app, got = App(), []

    @app.subscribe("a")
    def handle(message: int) -> None:
        got.append(message)

    wired = Wired(app).feed(tracked("a", 1), (tracked("a", "text"), b"rest"), tracked("a", 2))
    assert got == [1, 2]
    assert wired.stats.routes["handle()"].decode_error == 1
    assert wired.balanced()


def test_a_refused_message_whose_rest_is_gone_takes_nothing_else_with_it() -> None:
    """If a connection ends and drops the rest of a refused message, the next message is not skipped."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    wired = Wired(app)
    wired.queue((b"a", *[b""] * 1000))
    assert not wired.receive()
    while wired.more():
        wired.recv(1)
    wired.feed(plain("a", 1))
    assert got == [1]
    assert wired.stats.malformed == 1
    assert wired.balanced()


@pytest.mark.parametrize("parts", [MAX_PARTS + 1, 1000])
def test_too_many_parts_are_one_malformed_message(parts: int) -> None:
    """A message with too many parts is malformed, and the parts read in one turn are bounded."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    wired = Wired(app)
    wired.queue((b"a", *[b""] * (parts - 1)), plain("a", 1))
    assert not wired.receive()
    wired.feed()
    assert got == [1]
    assert (wired.stats.received, wired.stats.malformed) == (2, 1)


@pytest.mark.parametrize("parts", [MAX_PARTS + 1, 1000])
def test_a_refused_message_of_one_socket_is_skipped_there_and_nowhere_else(parts: int) -> None:
    """Two sockets are read in turn: one is in the middle of a refused message while the other one is read."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    one, other = Wired(app), Wired(app)
    other.table = one.table
    one.queue((b"a", *[plain("a", 0)] * (parts - 1)), plain("a", 1))
    other.queue(*[plain("a", 2)] * 3)
    assert not one.receive()
    other.feed()
    assert got == [2, 2, 2]
    one.feed()
    other.feed(plain("a", 3))
    assert got == [2, 2, 2, 1, 3]
    assert (one.stats.received, one.stats.malformed) == (6, 1)
    assert one.balanced()


def test_both_of_two_sockets_may_be_in_a_refused_message() -> None:
    """Each socket skips its own refused message, also after the routes have changed."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    one, other = Wired(app), Wired(app)
    for wired, message in (one, 1), (other, 2):
        wired.table = one.table
        wired.queue((b"a", *[plain("a", 0)] * 1000), plain("a", message))
        assert not wired.receive()
    one.table = other.table = one.table.changed(one.table.routes, one.codecs)
    other.feed()
    one.feed()
    assert got == [2, 1]
    assert (one.stats.received, one.stats.malformed) == (4, 2)


def test_the_largest_number_of_parts_is_a_message() -> None:
    """A message of sixteen parts is still accepted."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    Wired(app).feed((b"a", packed(1), *[b""] * (MAX_PARTS - 2)))
    assert got == [1]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"no nul",
        plain("a", body=b"\xc1ZR"),
        plain("a", body=pack_head(kind=Kind.COALESCED, codec=1, epoch=1) + bytes(16)),
        plain("a", body=pack_head(codec=1, flags=0x80, epoch=1) + bytes(16)),
        plain("a", body=b"\xc1ZR\x09" + bytes(28)),
        tracked("a", 1)[:20],
    ],
)
def test_broken_frames_are_counted_logged_and_followed_by_good_ones(
    frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of broken frame is refused and logged, and the next good message is handled."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    wired = Wired(app).feed(plain("a", 0), frame, tracked("a", 1), frame, plain("a", 2))
    assert got == [0, 1, 2]
    assert (wired.stats.received, wired.stats.malformed) == (5, 2)
    assert wired.balanced()
    assert "malformed message refused" in caplog.text


@pytest.mark.parametrize("kind", [Kind.JOIN, Kind.BEAT, Kind.GOODBYE])
def test_control_frames_are_counted_and_reach_no_handler(kind: Kind) -> None:
    """Joins, beats and goodbyes of other publishers never reach a handler."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    said = bytes(4) if kind is Kind.BEAT else b"\0\0\0\1\0\0"
    wired = Wired(app).feed(plain("a", body=pack_head(kind=kind, codec=0, epoch=1) + bytes(16) + said))
    assert (wired.stats.control, wired.stats.received, got) == (1, 1, [])
    assert wired.balanced()


# -- sizes and codecs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [plain, tracked])
def test_a_large_body_is_handled_up_to_the_limit(frame: Any) -> None:
    """A body of exactly max_message bytes is received; one byte more is malformed."""
    app, got = App(limits=Limits(max_message=LARGE_FRAME * 2)), []

    @app.subscribe("a")
    def handle(body: bytes) -> None:
        got.append(len(body))

    size = LARGE_FRAME * 2
    codec = {"codec": 4} if frame is tracked else {}
    wired = Wired(app).feed(*[frame("a", body=bytes(n), **codec) for n in (size, size + 1, size, 3)])
    assert got == [size, size, 3]
    assert wired.stats.malformed == 1


def _parts(topic: str, *, body: bytes, **_: Any) -> tuple[bytes, bytes]:
    return topic.encode(), body


@pytest.mark.parametrize("limit", [10, 500, LARGE_FRAME - 1, LARGE_FRAME + 1])
@pytest.mark.parametrize("frame", [plain, tracked, _parts])
def test_the_limit_holds_for_every_message_of_a_topic(frame: Any, limit: int) -> None:
    """The second message of a topic, on the fast path, is refused if it is too large."""
    app, got = App(limits=Limits(max_message=limit)), []

    @app.subscribe("a")
    def handle(body: bytes) -> None:
        got.append(len(body))

    codec = {"codec": 4} if frame is tracked else {}
    sizes = (1, limit, limit + 1, 2, limit, limit + 1, limit + 300, 3 * LARGE_FRAME, 3, limit)
    wired = Wired(app).feed(*[frame("a", body=bytes(n), **codec) for n in sizes])
    assert got == [size for size in sizes if size <= limit]
    assert wired.stats.malformed == len(sizes) - len(got)
    assert wired.balanced()


def large_ones() -> list[Any]:
    """Return large frames of all kinds and one small one, each with its own body."""
    bodies = [bytes([number]) * (LARGE_FRAME + number) for number in range(8)]
    return [
        plain("a.plain", body=bodies[0]),
        tracked("a.tracked", body=bodies[1], codec=4),
        tracked("a.headers", body=bodies[2], codec=4, headers={"by": "me"}),
        plain("a.small", body=b"small"),
        plain("a.nul", body=b"\0" + bodies[3]),
        (b"a.parts", bodies[4], b"third"),
        (bodies[5], b"a topic that is too long"),
        b"a" * (LARGE_FRAME + 1),
        b"a" * 300 + b"\0" + bodies[6],
        plain("unrouted", body=bodies[7]),
        plain("a.broken", body=b"\xc1ZR\x09" + bodies[0]),
        (plain("a.whole", body=bodies[1]), b"a part too many"),
        plain("a.last", body=bodies[2]),
    ]


def received_of(messages: list[Any], budget: int) -> tuple[list[Any], list[Any], Stats]:
    """Return the handled messages, the errors, and the counters, with ``budget`` messages per drain."""
    app, got = App(), []

    @app.subscribe(startswith("a"))
    def handle(body: bytes, envelope: Envelope) -> None:
        got.append((envelope.topic, body, envelope.frames, envelope.headers))

    wired = Wired(app)
    wired.queue(*messages)
    while not wired.receive(budget):
        pass
    assert wired.balanced()
    return got, [(str(error), hooked) for error, hooked in wired.errors], wired.stats


def test_large_messages_in_a_row_are_received_as_each_alone() -> None:
    """Bodies, topics, envelopes, errors and counters are the same whether libzmq's frames are copied or not."""
    got, said, stats = received_of(large_ones(), 16)
    assert (got, said, stats) == received_of(large_ones(), 1)
    assert [str(topic)[:9] for topic, *_ in got] == [
        *("a.plain", "a.tracked", "a.headers", "a.small", "a.nul", "a.parts", "aaaaaaaaa", "a.last")
    ]
    assert all(split(frames)[1].endswith(body) for _, body, frames, _ in got)
    assert (stats.received, stats.unrouted, stats.malformed, len(got)) == (13, 2, 3, 8)


def test_the_header_names_the_codec() -> None:
    """The header of a message names its codec, so a publisher may use another one than the subscriber."""
    app, got = App(), []

    @app.subscribe("a")
    def handle(quote: Quote) -> None:
        got.append(quote)

    Wired(app).feed(tracked("a", body=b'{"symbol":"A","price":1}', codec=2), tracked("a", {"symbol": "B", "price": 2}))
    assert got == [Quote("A", 1.0), Quote("B", 2.0)]


def test_an_unknown_codec_is_a_decode_error_that_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown codec number is a decode error that says how to fix it."""
    app = App()

    @app.subscribe("a")
    def handle(quote: Quote) -> None:
        raise AssertionError

    wired = Wired(app).feed(tracked("a", body=b"?", codec=200))
    assert wired.stats.routes["handle()"].decode_error == 1
    assert "unknown codec 200" in caplog.text


def test_many_publishers_of_one_topic_are_all_heard() -> None:
    """All messages of one topic arrive, from more publishers than the table caches headers of."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    Wired(app).feed(*[tracked("a", number, epoch=number) for number in range(200)])
    assert got == list(range(200))


def test_more_topics_than_the_cache_holds_are_all_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """If more topics arrive than the cache holds, all messages are delivered."""
    monkeypatch.setattr("zroute.receiving.topic_cache.TOPIC_CACHE", 4 * 3_000)
    app, got = App(), []

    @app.subscribe("n.{number}")
    def handle(body: bytes, number: int) -> None:
        got.append(number)

    wired = Wired(app)
    wired.feed(*[plain(f"n.{number}", 0) for number in [*range(10), *range(10)]])
    assert got == [*range(10), *range(10)]
    assert 1 < len(wired.table._entries) < 8


def test_topics_known_as_multipart_are_forgotten_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of topics remembered as multipart is bounded."""
    monkeypatch.setattr("zroute.receiving.table.TOPICS_NOTED", 2)
    app = App()

    @app.subscribe("n.>")
    def handle(message: int) -> None:
        raise AssertionError

    wired = Wired(app)
    for number in range(5):
        frame = plain(f"n.{number}", body=b"\xc1")
        wired.feed(frame, (frame, b"rest"))
    assert len(wired.table._parts.multipart) == 2
    assert wired.balanced()


def test_a_budget_bounds_a_drain() -> None:
    """One drain reads no more messages than its budget."""
    app, got = App(), []
    app.add_route(lambda message: got.append(message), "a")
    wired = Wired(app)
    wired.queue(*[plain("a", number) for number in range(10)])
    assert not wired.receive(3)
    assert got == [0, 1, 2]


def test_a_hold_ends_the_drain_under_way_and_no_later_one() -> None:
    """A handler that holds the table receives no further message in this drain, but does in the next."""
    app, got = App(), []

    @app.subscribe("a")
    def handle(message: int) -> None:
        got.append(message)
        if message == 1:
            wired.table.hold()

    wired = Wired(app)
    wired.queue(*[plain("a", number) for number in range(5)])
    assert not wired.receive()
    assert got == [0, 1]
    assert wired.receive()
    assert got == [0, 1, 2, 3, 4]
    assert wired.stats.received == 5


def test_a_type_that_cannot_be_hashed_is_decoded() -> None:
    """A type that cannot be hashed, such as one with unhashable metadata, is decoded."""
    app, got = App(), []

    def handle(message: Any) -> None:
        got.append(message)

    handle.__annotations__["message"] = Annotated[int, []]
    app.add_route(handle, "a")
    Wired(app).feed(plain("a", 1), tracked("a", 2))
    assert got == [1, 2]


def test_subscriptions_are_the_minimal_cover() -> None:
    """A SUB socket does not subscribe to a prefix that another prefix covers."""
    app = App()
    app.add_route(lambda message: None, "news.*", "news.sports", "weather.NYC", startswith("weather"))
    assert set(Wired(app).table.subscriptions) == {b"news.", b"weather"}


def test_captures_come_converted() -> None:
    """A UUID capture arrives as a UUID."""
    app, got = App(), []

    @app.subscribe("job.{key}")
    def handle(key: UUID) -> None:
        got.append(key)

    key = UUID(int=5)
    Wired(app).feed(plain(f"job.{key}", body=b""), plain("job.nokey", body=b""))
    assert got == [key]


def test_decoding_errors_name_topic_route_reason_and_first_bytes(caplog: pytest.LogCaptureFixture) -> None:
    """The log line of a refused body names topic, route, reason and first bytes, and suggests the codec."""
    app = App()

    @app.subscribe("stocks", codec="msgpack")
    def on_quote(quote: Quote) -> None:
        raise AssertionError

    with caplog.at_level(logging.WARNING):
        Wired(app).feed(plain("stocks", body=b'{"symbol": 1}'))
    line = caplog.messages[0]
    assert "on_quote()" in line
    assert "'stocks'" in line
    assert "b'{\"symbol\": 1}'" in line
    assert "codec='json'" in line
