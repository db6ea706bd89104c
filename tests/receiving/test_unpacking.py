"""Several messages in one frame: handlers, hooks and counters see single messages."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import attrs
import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.pure import LOG, Wired, plain, tracked
from zroute import App, Envelope, Limits, Topic, startswith
from zroute.errors import DecodeError, EnvelopeError, PeerError
from zroute.messages.coalesced import coalesced_framer
from zroute.messages.control import pack_statements
from zroute.messages.wire import HEADER_SIZE, NUL, Kind, framer, pack_kept
from zroute.options import COALESCED_BYTES, LARGE_FRAME, READ_SLICE
from zroute.receiving.session import SubscriberSession

EPOCH = 7
CODECS = {1: msgspec.msgpack.encode, 2: msgspec.json.encode}
EACH_CODEC = pytest.mark.parametrize("codec", sorted(CODECS))


@attrs.frozen
class Order:
    sku: str
    count: int


@attrs.frozen
class Counter:
    length: int
    number: int


def batch(
    topic: str,
    bodies: Sequence[bytes],
    *,
    codec: int = 2,
    first: int = 0,
    span: int = 0,
    further: Sequence[tuple[int, int]] = (),
    keeps: bool = False,
    epoch: int = EPOCH,
) -> bytes:
    """Return one frame of ``bodies``; ``first`` is the number of the first message, or 0 for no numbers."""
    many = len(bodies)
    counters = [Counter(span, first + many - 1)] if first else []
    counters += [Counter(length, number + many - 1) for length, number in further]
    return coalesced_framer(epoch=epoch, count=lambda name, count: counters, keeps=keeps)(
        topic.encode(), codec, bodies, 5_000_000_000
    )


def written(codec: int, *messages: Any) -> list[bytes]:
    """Return the encoded bodies of ``messages``."""
    return [CODECS[codec](message) for message in messages]


class Reader:
    """An app with one handler, the messages that it handled, and the bodies that it refused."""

    def __init__(self, kind: Any = int, **options: Any) -> None:
        self.app = App(**options)
        self.seen: list[Any] = []
        self.refused: list[bytes] = []

        def handle(message: Any) -> None:
            self.seen.append(message)

        handle.__annotations__["message"] = kind
        self.app.add_route(handle, "a")

        @self.app.on_error(PeerError)
        def refuse(error: PeerError, envelope: Envelope) -> None:
            self.refused.append(envelope.body)

    def feed(self, *frames: bytes) -> Wired:
        """Receive all frames, and check that the counters balance."""
        wired = Wired(self.app).feed(*frames)
        assert wired.balanced()
        return wired


# -- valid messages --------------------------------------------------------------------------------------


@EACH_CODEC
def test_messages_that_came_together_are_handled_one_by_one(codec: int) -> None:
    """The handler is called for each message of a frame, typed and in order, and each is counted."""
    reader = Reader(Order)
    orders = [Order("x", number) for number in range(100)]
    wired = reader.feed(*[batch("a", written(codec, *orders), codec=codec)] * 3)
    assert reader.seen == orders * 3
    assert (wired.stats.received, wired.stats.handled) == (300, 300)


@pytest.mark.parametrize("kind", [Any, dict, Order, Order | None, Order | bytes, dict[str, Any]])
@EACH_CODEC
def test_every_type_is_what_it_is_alone(codec: int, kind: Any) -> None:
    """Each type of handler receives the same objects from a batch as from single messages."""
    together, alone = Reader(kind), Reader(kind)
    bodies = written(codec, Order("x", 1), Order("y", 2))
    together.feed(*[batch("a", bodies, codec=codec)] * 2)
    alone.feed(*(tracked("a", body=body, codec=codec) for body in bodies * 2))
    assert together.seen == alone.seen
    assert list(map(type, together.seen)) == list(map(type, alone.seen))


@pytest.mark.parametrize(("codec", "kind"), [(3, str), (4, bytes), (200, Any), (3, bytes), (2, str), (1, bytes)])
def test_text_bytes_and_codecs_without_lists_travel_together_too(codec: int, kind: Any) -> None:
    """Bodies that cannot be decoded as a list are decoded one by one; an unknown codec is refused for each."""
    together, alone = Reader(kind), Reader(kind)
    bodies = [b'"a"', b'"b"', b""]
    counted = together.feed(batch("a", bodies, codec=codec)).stats
    expected = alone.feed(*(tracked("a", body=body, codec=codec) for body in bodies)).stats
    assert (together.seen, together.refused) == (alone.seen, alone.refused)
    assert counted == expected


SAMPLES: dict[int, list[bytes]] = {
    1: [
        msgpack.packb(msgpack.ExtType(5, b"xx")),
        msgpack.packb(msgpack.Timestamp(5, 5)),
        b"\x81\x91\x01\x02",
        b"\x81\xc4\x01a\x02",
        b"\xcf" + b"\xff" * 8,
        b"\xcb\x7f\xf0" + bytes(6),
        b"\xa1\xff",
        b"\x82\x01\x02\x01\x03",
        b"\xc0",
        b"\x01",
        b"\xa1a",
        b"\x91\x01",
        b"\x80",
        b"\x92\x01",
        b"\xc1",
        b"",
        b"\x01\x02",
        b"\xdd\xff\xff\xff\xff",
    ],
    2: [
        b"1",
        b" 1 ",
        b"1e400",
        b"99999999999999999999999",
        b"-9223372036854775809",
        b'"\xff"',
        b'"\\ud800"',
        b'{"a":1,"a":2}',
        b"NaN",
        b"null",
        b'{"a":1e999}',
        b"[1",
        b"1.0",
        b'{"1":2}',
        b"\xef\xbb\xbf1",
        b"",
        b"1,2",
        b'{"sku":"x","count":1},{"sku":"y","count":2}',
        b'{"sku":"x","count":99999999999999999999}',
        b'{"sku":"x","count":1,"more":"\xff"}',
    ],
}
KINDS = [Any, object, dict, list, int, float, bool, Order, dict[str, int], dict[Any, Any], list[Any], int | None]


@given(
    st.sampled_from(sorted(CODECS)).flatmap(
        lambda codec: st.tuples(st.just(codec), st.lists(st.sampled_from(SAMPLES[codec]), min_size=1, max_size=5))
    ),
    st.sampled_from(KINDS),
)
def test_a_batch_is_handled_as_its_messages_are_alone(what: tuple[int, list[bytes]], kind: Any) -> None:
    """With one unusual message among good ones, handler, hook and counters are the same as without batches."""
    codec, odd = what
    good = written(codec, 5, {"sku": "s", "count": 1}, {"a": 2})
    for each in odd:  # one at a time: two broken ones may complete each other
        bodies = [good[0], good[1], each, good[2]]
        together, alone = Reader(kind), Reader(kind)
        counted = together.feed(batch("a", bodies, codec=codec)).stats
        expected = alone.feed(*(tracked("a", body=body, codec=codec) for body in bodies)).stats
        assert repr(together.seen) == repr(alone.seen)
        assert (together.refused, counted) == (alone.refused, expected)


# -- broken messages -------------------------------------------------------------------------------------

_MANY = 20_000  # levels; a frame has room for 64,000 bytes
BAD: dict[str, dict[int, bytes]] = {
    "not of this codec": {1: b"\xc1", 2: b"not JSON"},
    "of another type": {1: b"\xa1x", 2: b'{"sku":1}'},
    "an integer over 64 bits": {2: b"18446744073709551616"},
    "nested as deep as a frame allows, and not closed": {
        1: b"\x91" * (COALESCED_BYTES - 100),
        2: b"[" * (COALESCED_BYTES - 100),
    },
    "nested as deep as a frame allows": {
        1: b"\x91" * (COALESCED_BYTES - 101) + b"\x90",
        2: b"[" * (COALESCED_BYTES // 2 - 50) + b"]" * (COALESCED_BYTES // 2 - 50),
    },
    "nested deep within the short way": {1: b"\x91" * 7000, 2: b"[" * 7000},
    "two in one": {1: b"\x01\x02", 2: b"1,2"},
    "two maps in one": {1: b"\x80\x80", 2: b'{"sku":"x","count":1},{"sku":"y","count":2}'},
    "empty": {1: b"", 2: b""},
    "a map that claims to be huge": {1: b"\xdf\xff\xff\xff\xff"},
}


@pytest.mark.parametrize(
    ("codec", "bad"),
    [pytest.param(codec, body, id=f"{name} {codec}") for name, bodies in BAD.items() for codec, body in bodies.items()],
)
@pytest.mark.parametrize("kind", [int, Any])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_bad_message_costs_itself_only(codec: int, bad: bytes, kind: Any, place: int) -> None:
    """A broken message is refused with its own body; all others of its frame are handled once."""
    reader = Reader(kind)
    bodies = written(codec, 1, 2, 3, 4)
    bodies.insert(place, bad)
    wired = reader.feed(batch("a", bodies, codec=codec), batch("a", bodies, codec=codec), plain("a", 9))
    good = [each for each in reader.seen if type(each) is int]
    (route,) = wired.stats.routes.values()
    if bad == b"\xa1x" and kind is Any:
        assert reader.seen == [*[1, 2, 3, 4][:place], "x", *[1, 2, 3, 4][place:]] * 2 + [9]
    elif kind is Any and bad in (b'{"sku":1}', b"\x90"):
        assert len(reader.seen) == 11
    else:
        assert (reader.seen, reader.refused) == ([1, 2, 3, 4, 1, 2, 3, 4, 9], [bad, bad])
        assert (route.handled, route.decode_error) == (9, 2)
    assert good == [1, 2, 3, 4, 1, 2, 3, 4, 9]
    assert wired.stats.received == 11


def test_with_a_raised_recursion_limit_no_frame_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a raised recursion limit, a deeply nested message is still refused before it is decoded."""
    monkeypatch.setattr("sys.getrecursionlimit", lambda: 1_000_000)
    for codec, bad in BAD["nested as deep as a frame allows"].items():
        reader = Reader(Any)
        reader.feed(batch("a", [*written(codec, 1), bad, *written(codec, 2)], codec=codec))
        assert (reader.seen, reader.refused) == ([1, 2], [bad])


@pytest.mark.parametrize(
    ("codec", "kind", "bodies"),
    [
        (2, int, [b"7", b"[1", b"2]", b"3,4", b"8"]),
        (2, list[int], [b"[7]", b"[1", b"2]", b"[3],[4]", b"[8]"]),
        (2, Order, [b'{"sku":"s","count":7}', b'{"sku":"x"', b'"count":1}', b'{"sku":"y","count":2}, {"sku":1}']),
        (2, int, [b"7", b"", b"1,2", b"8"]),
        (1, int, [b"\x07", b"", b"\x01\x02", b"\x08"]),
        (1, list[int], [b"\x91\x07", b"\x92\x01", b"\x02", b"\x91\x03\x91\x04", b"\x91\x08"]),
    ],
)
def test_bad_ones_that_make_up_for_each_other_reach_no_handler_that_wants_something_else(
    codec: int, kind: Any, bodies: list[bytes]
) -> None:
    """If broken messages complete each other, handlers still get their own type; each message counts once."""
    reader = Reader(kind)
    wired = reader.feed(batch("a", bodies, codec=codec))
    (route,) = wired.stats.routes.values()
    base = list if kind == list[int] else kind
    assert all(type(message) is base for message in reader.seen)
    assert wired.stats.received == len(bodies) == route.handled + route.decode_error
    good = [7, 8] if kind is int else [[7], [8]] if base is list else [Order("s", 7)]
    assert [reader.seen.count(each) for each in good] == [1] * len(good)


def test_a_frame_of_lies_is_refused_and_the_next_one_is_handled() -> None:
    """A frame with a broken batch layout is one malformed message, on the slow path and on the fast one."""
    good = batch("a", [b"1", b"2"])
    start = good.index(NUL) + 1 + HEADER_SIZE
    broken = [good[:start], good[: start + 1], good[:-1], good + b"]", good[:start] + b"\xff\xff" + good[start + 2 :]]
    reader = Reader()
    wired = reader.feed(*broken, good, *broken, good)
    assert (reader.seen, wired.stats.malformed, wired.stats.received) == ([1, 2] * 2, 10, 14)
    assert all(isinstance(error, EnvelopeError) for error, _ in wired.errors)


def test_the_last_number_there_is_ends_no_reading() -> None:
    """A broken message in a frame with an invented number is an error of that message only."""
    frame = bytearray(batch("a", [b"1", b"x", b"3"], first=5, span=1))
    frame[2 + 16 : 2 + 24] = b"\xff" * 8
    reader = Reader()
    reader.feed(bytes(frame), batch("a", [b"4"], first=5, span=1))
    assert (reader.seen, reader.refused) == ([1, 3, 4], [b"x"])


def test_messages_over_the_limit_are_refused_one_by_one() -> None:
    """max_message bounds each message of a frame, not the frame."""
    reader = Reader(str, limits=Limits(max_message=100))
    bodies = [msgspec.json.encode("x" * size) for size in (60, 99, 60, 98)]
    wired = reader.feed(batch("a", bodies), batch("a", bodies))
    assert [len(text) for text in reader.seen] == [60, 60, 98] * 2
    assert (wired.stats.malformed, wired.stats.received) == (2, 8)


def test_large_frames_take_the_long_way_and_arrive() -> None:
    """Frames over 8 KiB, which take the slow path, are handled like small ones."""
    reader = Reader(str)
    text = "x" * (LARGE_FRAME // 2)
    reader.feed(*[batch("a", written(2, text, text, text), first=1, span=1)] * 2)
    assert reader.seen == [text] * 6


# -- kinds of handlers -----------------------------------------------------------------------------------


@EACH_CODEC
def test_several_handlers_of_one_type_share_each_message(codec: int) -> None:
    """Each message is decoded once, and all handlers get the same object, the most specific first."""
    app, seen = App(), []
    app.add_route(lambda order: seen.append(("first", order)), "a")

    def second(order: Any) -> None:
        seen.append(("second", order))
        if order == 2:
            raise ValueError("no")

    app.add_route(second, startswith("a"))
    wired = Wired(app).feed(batch("a", written(codec, 1, 2, 3), codec=codec))
    assert seen == [(name, number) for number in (1, 2, 3) for name in ("first", "second")]
    first, last = wired.stats.routes.values()
    assert (first.handled, last.handled, last.handler_error) == (3, 2, 1)
    assert wired.balanced()


def test_a_first_handler_that_raises_keeps_the_others_from_nothing() -> None:
    """If the first handler raises, every message of the batch still reaches the others."""
    app, seen = App(), []

    def first(number: Any) -> None:
        raise ValueError(number)

    app.add_route(first, "a")
    app.add_route(lambda number: seen.append(number), startswith("a"))
    wired = Wired(app).feed(batch("a", [b"1", b"2", b"3"]))
    assert seen == [1, 2, 3]
    assert [str(error) for error, _ in wired.errors] == ["1", "2", "3"]
    assert [(each.handled, each.handler_error) for each in wired.stats.routes.values()] == [(0, 3), (3, 0)]


def test_handlers_of_several_types_each_get_their_own() -> None:
    """Handlers of an Order, of bytes, of nothing and of a copy are each called for each message, in order."""
    app, seen = App(), []

    @app.subscribe("a")
    def typed(order: Order) -> None:
        seen.append(order)

    @app.subscribe("a")
    def raw(body: bytes) -> None:
        seen.append(body)

    @app.subscribe("a")
    def nothing() -> None:
        seen.append(None)

    @app.subscribe("a", copy=True)
    def own(order: Order) -> None:
        seen.append(order)

    bodies = written(2, Order("x", 1), Order("y", 2))
    wired = Wired(app).feed(batch("a", [*bodies, b"bad"]))
    x, y = Order("x", 1), Order("y", 2)
    assert sorted(map(repr, seen)) == sorted(map(repr, [x, bodies[0], None, x, y, bodies[1], None, y, b"bad", None]))
    assert seen.index(bodies[0]) < seen.index(bodies[1])
    assert sum(route.decode_error for route in wired.stats.routes.values()) == 2
    assert wired.stats.received == 3
    assert wired.balanced()


def test_a_copy_is_of_ones_own() -> None:
    """With copy=True a handler may change its object, also in a batch."""
    app, seen = App(), []

    def spoils(items: Any) -> None:
        items.append(9)

    app.add_route(spoils, "a", copy=True)
    app.add_route(lambda items: seen.append(items), startswith("a"))
    Wired(app).feed(batch("a", [b"[1]", b"[2]"]))
    assert seen == [[1], [2]]


def test_envelopes_are_those_of_single_messages() -> None:
    """Envelopes have their own numbers, bodies and frames, and the time and codec of the batch."""
    app, seen = App(), []

    @app.subscribe("a")
    def handle(number: int, envelope: Envelope) -> None:
        seen.append((number, envelope))

    wired = Wired(app).feed(*[batch("a", [b"10", b"11", b"12"], first=41, span=1)] * 2)
    assert [number for number, _ in seen] == [10, 11, 12] * 2
    for place, (number, envelope) in enumerate(seen[:3]):
        assert (envelope.sequence, envelope.sent_at, envelope.codec) == (41 + place, 5.0, 2)
        assert (envelope.publisher, envelope.tracked, envelope.headers) == (f"{EPOCH:016x}", True, {})
        assert (envelope.body, str(envelope.topic)) == (b"%d" % number, "a")
        assert envelope.frames == (
            tracked("a", body=envelope.body, codec=2, epoch=EPOCH, sequence=41 + place).replace(
                b"\0\0\0\0\0\0\0\0\7", b"\1\0\0\0\0\0\0\0\7", 1
            ),
        )
    assert wired.balanced()


def test_captures_and_topics_are_those_of_the_frame() -> None:
    """A handler with captures or a Topic gets them for each message."""
    app, seen = App(), []

    @app.subscribe("stocks.{symbol}")
    def handle(price: float, symbol: str, topic: Topic) -> None:
        seen.append((price, symbol, str(topic)))

    Wired(app).feed(batch("stocks.ACME", [b"1.5", b"2.5"]))
    assert seen == [(1.5, "ACME", "stocks.ACME"), (2.5, "ACME", "stocks.ACME")]


def test_the_hook_gets_the_message_that_failed() -> None:
    """on_error receives the envelope of the one message of the batch that failed."""
    app, seen = App(), []

    @app.subscribe("a")
    def handle(number: int) -> None:
        if number % 2:
            raise ValueError(number)

    @app.on_error(ValueError)
    def failed(error: ValueError, envelope: Envelope) -> None:
        seen.append((error.args[0], envelope.body, envelope.sequence))

    wired = Wired(app).feed(batch("a", [b"1", b"2", b"3", b"4", b"5"], first=8, span=1))
    assert seen == [(1, b"1", 8), (3, b"3", 10), (5, b"5", 12)]
    (route,) = wired.stats.routes.values()
    assert (route.handled, route.handler_error) == (2, 3)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_handler_raises_the_rest_is_handled(error: type[BaseException]) -> None:
    """A handler that is interrupted or calls sys.exit() loses no other message of a batch."""
    app, seen = App(), []

    @app.subscribe("a")
    def handle(number: int) -> None:
        seen.append(number)
        raise error

    wired = Wired(app).feed(batch("a", [b"1", b"2"]))
    assert seen == [1, 2]
    assert wired.balanced()


def test_what_handlers_return_is_published_message_by_message() -> None:
    """A derived stream publishes one result for each message of the batch, in order."""
    app = App(codec="json")

    @app.publisher("b.{symbol}")
    @app.subscribe("a.{symbol}")
    def double(number: int) -> int:
        return 2 * number

    assert Wired(app).feed(batch("a.x", [b"1", b"2"])).published == [("b.x", 2), ("b.x", 4)]


def test_messages_that_are_too_old_are_counted_and_not_handled() -> None:
    """stale_after applies to each message, with the send time of the batch."""
    app, seen = App(), []
    app.add_route(lambda number: seen.append(number), "a", stale_after=94.0)
    app.add_route(lambda number: seen.append(-number), startswith("a"), stale_after=96.0)
    wired = Wired(app).feed(batch("a", [b"1", b"2"]))
    assert seen == [-1, -2]
    assert sum(route.stale for route in wired.stats.routes.values()) == 2
    assert wired.balanced()


def test_nobody_subscribed_to_this_topic() -> None:
    """A batch that matches no route counts and calls on_unrouted once for each message."""
    app, seen = App(), []
    app.add_route(lambda number: None, "a.x")

    @app.on_unrouted
    def unrouted(envelope: Envelope) -> None:
        seen.append(envelope.body)

    wired = Wired(app).feed(*[batch("a.y", [b"1", b"2"])] * 2)
    assert (wired.stats.unrouted, wired.stats.received, seen) == (4, 4, [b"1", b"2"] * 2)


# -- asynchronous handlers -------------------------------------------------------------------------------


class Slow:
    """A handler that begins a message, and ends it when the test calls `end`."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.waiting: list[Deferred[None]] = []

    def begin(self, number: int) -> Deferred[None]:
        self.begun.append(number)
        self.waiting.append(Deferred())
        return self.waiting[-1]

    async def handle(self, number: int) -> None:
        await self.begin(number)  # type: ignore[misc]

    def end(self) -> None:
        self.waiting.pop(0).callback(None)


@pytest.mark.parametrize("form", ["begin", "handle"])
def test_handlers_that_wait_take_turns(form: str) -> None:
    """The second message of a batch begins when the first ends, even if it returned the first Deferred."""
    slow, app = Slow(), App()
    function: Callable[[int], Awaitable[None]] = getattr(slow, form)
    app.add_route(function, "a")
    wired = Wired(app)
    wired.feed(batch("a", [b"1", b"2", b"3"]), batch("a", [b"4"]))
    for number in range(1, 5):
        assert slow.begun == list(range(1, number + 1))
        slow.end()
    (route,) = wired.stats.routes.values()
    assert (route.handled, route.handler_error, route.queued) == (4, 0, 0)
    assert wired.balanced()


def test_a_deferred_in_the_middle_of_a_batch_holds_those_behind_it() -> None:
    """If a function returns a Deferred for one message, the messages behind it wait; others do not."""
    slow, app, seen = Slow(), App(), []

    def sometimes(number: Any) -> Any:
        seen.append(number)
        return slow.begin(number) if number == 3 else None

    app.add_route(sometimes, "a")
    app.add_route(lambda number: seen.append(-number), startswith("a"))
    wired = Wired(app).feed(batch("a", [b"1", b"2", b"3", b"4", b"5"]))
    assert [number for number in seen if number > 0] == [1, 2, 3]
    slow.end()
    assert [number for number in seen if number > 0] == [1, 2, 3, 4, 5]
    assert [-number for number in seen if number < 0] == [1, 2, 3, 4, 5]
    assert not wired.errors
    assert [route.handled for route in wired.stats.routes.values()] == [5, 5]


@pytest.mark.parametrize("bad", [[], [b"bad"]])
def test_a_full_route_ends_reading_in_the_middle_of_a_batch(bad: list[bytes]) -> None:
    """The rest of a frame waits while a route is full, is read first afterwards, and arrives once."""
    slow, app = Slow(), App()
    app.add_route(slow.handle, "a", queue=2)
    wired = Wired(app)
    wired.queue(batch("a", [b"1", *bad, b"2", b"3", b"4", b"5", b"6"]), batch("a", [b"7", b"8"]))
    while not wired.paused:
        wired.receive()
    assert slow.begun == [1]
    assert wired.table.unpacked == 3
    while slow.waiting:
        slow.end()
        while not wired.paused and not wired.receive():
            pass
    assert slow.begun == [1, 2, 3, 4, 5, 6, 7, 8]
    (route,) = wired.stats.routes.values()
    assert (route.handled, route.decode_error, wired.table.unpacked) == (8, len(bad), 0)
    assert wired.balanced()


@pytest.mark.parametrize("bad", [[], [b"bad"]])
@pytest.mark.parametrize("company", [0, 1])
def test_a_hold_in_the_middle_of_a_batch_ends_it_after_this_message(bad: list[bytes], company: int) -> None:
    """However often reading is held in a batch, no message is lost or repeated, and the order is kept."""
    app, seen = App(), []

    def handle(number: int) -> None:
        seen.append(number)
        wired.table.hold()
        if number == 4:
            wired.table.hold()
            raise ValueError("no")

    app.add_route(handle, "a")
    if company:
        app.add_route(lambda number: None, startswith("a"))
    wired = Wired(app)
    wired.queue(batch("a", [b"1", *bad, b"2", b"3"]), batch("a", [b"4", b"5", *bad]))
    counts = []
    while not wired.receive():
        counts.append(len(seen))
        assert wired.balanced()
    assert seen == [1, 2, 3, 4, 5]
    assert counts == sorted(counts)
    assert wired.stats.received == 5 + 2 * len(bad)
    assert [route.handled for route in wired.stats.routes.values()] == [4, 5][: 1 + company]


@pytest.mark.parametrize("bad", [[], [b"bad"]])
def test_a_route_that_is_attached_in_the_middle_gets_the_messages_behind(bad: list[bytes]) -> None:
    """A handler attached in the middle of a batch receives the messages after the current one."""
    app, old, new = App(), [], []
    later = App()
    later.add_route(lambda number: old.append(number), "a")
    later.add_route(lambda number: new.append(number), startswith("a"))
    changed = Wired(later)

    def handle(number: Any) -> None:
        old.append(number)
        if number == 2:
            wired.table = wired.table.changed(changed.table.routes, wired.codecs)

    app.add_route(handle, "a")
    wired = Wired(app)
    wired.feed(batch("a", [b"1", b"2", *bad, b"3", b"4"]), batch("a", [b"5"]))
    assert (old, new) == ([1, 2, 3, 4, 5], [3, 4, 5])
    assert wired.stats.received == 5 + len(bad)
    assert wired.balanced()


def test_what_is_left_is_worked_off_within_the_budget() -> None:
    """The rest of a held batch is read within the budget of each drain."""
    app, seen = App(), []

    def handle(number: int) -> None:
        seen.append(number)
        if number == 0:
            wired.table.hold()

    app.add_route(handle, "a")
    wired = Wired(app)
    wired.queue(batch("a", [b"%d" % number for number in range(100)]))
    assert not wired.receive()
    assert not wired.receive(16)
    assert (seen, wired.table.unpacked) == (list(range(17)), 83)
    assert not wired.receive(100)
    assert (seen, wired.table.unpacked) == (list(range(100)), 0)


def one(got: list[int], app: App) -> None:
    """Add a plain function."""
    app.add_route(lambda number: got.append(number), "a")


def two(got: list[int], app: App) -> None:
    """Add two functions of one type."""
    one(got, app)
    app.add_route(lambda number: None, startswith("a"))


def with_envelope(got: list[int], app: App) -> None:
    """Add a function with an envelope, so that each message is built."""

    @app.subscribe("a")
    def handle(number: int, envelope: Envelope) -> None:
        got.append(number)


def in_lists(got: list[int], app: App) -> None:
    """Add a function that receives lists."""

    @app.subscribe("a", batch=8)
    def handle(numbers: list[int]) -> None:
        got.extend(numbers)


def that_raises(got: list[int], app: App) -> None:
    """Add a function that always fails."""

    @app.subscribe("a")
    def handle(number: int) -> None:
        got.append(number)
        raise ValueError


@pytest.mark.parametrize("handlers", [one, two, with_envelope, in_lists, that_raises])
def test_slow_handlers_do_not_make_a_frame_longer_than_a_turn(
    handlers: Callable[[list[int], App], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame of a thousand messages takes no longer per turn than single ones: the rest waits."""
    monkeypatch.setattr("zroute.receiving.coalesced.perf_counter", count().__next__)  # a second between two calls
    app, got = App(), []
    handlers(got, app)
    wired = Wired(app)
    wired.queue(batch("a", [b"%d" % number for number in range(1000)]), plain("a", body=b"1000"))
    turns = 0
    while not wired.receive(READ_SLICE):
        turns += 1
        assert len(got) <= turns * READ_SLICE
    assert (got[:1000], got[1000:] or [1000]) == (list(range(1000)), [1000])
    assert wired.stats.received == 1001
    assert wired.balanced()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_read_takes_as_many_messages_in_small_frames_as_single_ones(at_once: bool) -> None:
    """A drain reads as many messages from frames of four as from single frames."""
    app, got = App(), []

    def handle(number: int) -> None:
        got.append(number)

    app.add_route(handle, "a")
    if not at_once:
        app.add_route(lambda: None, "a")  # it has no body parameter, so that each message is dispatched alone
    wired = Wired(app)
    wired.queue(*(batch("a", [b"1"] * 4, first=1 + 4 * number, span=1) for number in range(100)))
    wired.receive(64)
    assert len(got) == 64
    wired.feed()
    assert len(got) == 400
    assert wired.balanced()


def test_of_what_a_publisher_keeps_a_reader_holds_the_times_alone() -> None:
    """Of messages that a publisher keeps, a subscriber stores only the send times, not the bodies."""
    app = App()
    app.add_route(lambda text: None, startswith("a"))
    wired = Wired(app)
    bodies = written(2, "x" * LARGE_FRAME)
    wired.feed(*(batch(f"a.{number}", bodies * many, keeps=True) for number in range(5) for many in (1, 2)))
    assert len(wired.table._latest.times) == 5
    assert {len(time) for time in wired.table._latest.times.values()} == {8}


@pytest.mark.parametrize("many", [1, 2])
def test_the_send_times_noted_last_stay_when_there_are_too_many(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If more topics arrive than are remembered, the most recent ones are still not delivered twice."""
    monkeypatch.setattr("zroute.receiving.latest.TOPICS_NOTED", 4)
    app, seen = App(), []

    @app.subscribe("a.{topic}")
    def handle(number: int, topic: str) -> None:
        seen.append(topic)

    wired = Wired(app)
    for topic in "012345670123045":
        wired.feed(batch(f"a.{topic}", [b"1"] * many, keeps=True))
    seen.clear()
    marker = wired.table._accounts.make_marker()  # type: ignore[attr-defined]
    for number, topic in enumerate("3045", 1):
        wired.feed(pack_kept(marker, number, f"a.{topic}".encode(), 2, b"1", None, epoch=EPOCH, sent_at=5_000_000_000))
    assert seen == []
    assert len(wired.table._latest.times) + len(wired.table._latest.older) <= 8
    wired.feed(pack_kept(marker, 5, b"a.7", 2, b"1", None, epoch=EPOCH, sent_at=5_000_000_000))
    assert seen == ["7"]


# -- numbers ---------------------------------------------------------------------------------------------


class Joined(Wired):
    """An app that has joined a publisher whose counters are at 0; `gaps` are the gaps it found."""

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self.gaps: list[Any] = []
        self.table._accounts = end = SubscriberSession(self.clock, self.stats, LOG, "test", self.gaps.append)
        end._subscriptions = self.table.subscriptions
        end._tracker.subscribe(end._subscriptions)
        marker = end.make_marker()
        end._tracker.join(marker, 0.0)
        numbers = [(each, 0) for each in end._subscriptions]
        self.feed(*pack_statements(Kind.JOIN, marker, numbers, epoch=EPOCH, name="p", partial=False, sent_at=5))
        assert (self.stats.joins, self.stats.control) == (1, 1)
        self.stats.received = self.stats.control = 0


def test_the_whole_batch_comes_a_second_time() -> None:
    """A batch that arrives again is counted as duplicates one by one, and not handled."""
    reader = Reader()
    wired = Joined(reader.app)
    frame = batch("a", [b"1", b"2", b"3"], first=1, span=1)
    wired.feed(frame, frame, batch("a", [b"4"], first=4, span=1), frame)
    assert reader.seen == [1, 2, 3, 4]
    assert (wired.stats.duplicate, wired.stats.received, wired.stats.lost) == (6, 10, 0)
    (route,) = wired.stats.routes.values()
    assert wired.stats.routed == route.handled == 4


def test_what_is_missing_before_a_batch_is_counted() -> None:
    """A lost frame counts as many losses as it had messages, found by the next frame's number."""
    reader = Reader()
    wired = Joined(reader.app)
    wired.feed(
        batch("a", [b"1", b"2"], first=1, span=1),
        batch("a", [b"6", b"7"], first=6, span=1),
        tracked_with("a", b"8", span=1, sequence=8),
        batch("a", [b"10"], first=10, span=1),
    )
    assert reader.seen == [1, 2, 6, 7, 8, 10]
    assert (wired.stats.lost, wired.stats.gaps, wired.stats.duplicate) == (4, 2, 0)
    assert [(gap.first, gap.last) for gap in wired.gaps] == [(3, 5), (9, 9)]


def tracked_with(topic: str, body: bytes, *, span: int, sequence: int, epoch: int = EPOCH, codec: int = 2) -> bytes:
    """Return a single message with the number of one counter."""
    return batch_to_single(batch(topic, [body], first=sequence, span=span, epoch=epoch, codec=codec), body)


def batch_to_single(frame: bytes, body: bytes) -> bytes:
    """Return the only message of a frame as it would be sent alone."""
    at = frame.index(NUL) + 1
    head = bytearray(frame[at : at + HEADER_SIZE])
    head[4] = 0
    return frame[:at] + bytes(head) + body


def test_overlapping_subscriptions_each_have_their_own_numbers() -> None:
    """Each subscription has its own number, the first of the frame or a further one, for each message."""
    for pattern, span in (("a.>", 2), ("a.b.>", 4)):
        app, seen = App(), []

        def handle(number: int, envelope: Envelope, seen: list[Any] = seen) -> None:
            seen.append((number, envelope.sequence))

        app.add_route(handle, pattern)
        wired = Joined(app)
        for first in (1, 4, 9):
            numbers = [b"%d" % (first + place) for place in range(3)]
            other = first if span == 2 else first + 100
            further = [(4, first if span == 4 else first + 200)]
            wired.feed(batch("a.b.c", numbers, first=other, span=2, further=further))
        assert [number for number, _ in seen] == [1, 2, 3, 4, 5, 6, 9, 10, 11]
        assert [number for _, number in seen] == [n + (100 if span == 4 else 0) for n in (1, 2, 3, 4, 5, 6, 9, 10, 11)]
        assert (wired.stats.lost, wired.stats.gaps) == (2, 1)


def test_messages_without_numbers_are_the_next_ones() -> None:
    """A batch without a number for this subscription advances it by the number of its messages."""
    reader = Reader()
    wired = Joined(reader.app)
    wired.feed(
        batch("a", [b"1", b"2"], first=50, span=0),
        tracked_with("a", b"3", span=1, sequence=3),
        batch("a", [b"4"], first=60, span=0),
        tracked_with("a", b"7", span=1, sequence=7),
    )
    assert reader.seen == [1, 2, 3, 4, 7]
    assert wired.stats.lost == 2


def test_a_publisher_that_was_not_joined_is_not_judged() -> None:
    """Before the join numbers are ignored: all messages are handled, and none counts as lost."""
    reader = Reader()
    wired = reader.feed(batch("a", [b"1"], first=90, span=1), batch("a", [b"2"], first=3, span=1))
    assert (reader.seen, wired.stats.lost, wired.stats.duplicate) == ([1, 2], 0, 0)


def test_what_is_kept_does_not_come_again() -> None:
    """A subscriber that received a batch live does not get its kept last message again at a join."""
    reader = Reader()
    end = reader.app
    wired = Wired(end)
    ours = wired.table._accounts
    marker = ours.make_marker()  # type: ignore[attr-defined]
    wired.feed(batch("a", [b"1", b"2"], keeps=True), batch("a", [b"3", b"4"], keeps=True))
    wired.feed(pack_kept(marker, 1, b"a", 2, b"4", None, epoch=EPOCH, sent_at=5_000_000_000))
    assert reader.seen == [1, 2, 3, 4]
    wired.feed(pack_kept(marker, 2, b"a", 2, b"5", None, epoch=EPOCH, sent_at=6_000_000_000))
    assert reader.seen == [1, 2, 3, 4, 5]


# -- parts -----------------------------------------------------------------------------------------------


def test_a_batch_in_two_parts_is_read_like_any_message() -> None:
    """A batch that a forwarder splits into topic and rest is read like any message."""
    reader = Reader()
    topic, _, rest = batch("a", [b"1", b"x", b"3"], first=4, span=1).partition(NUL)
    wired = Wired(reader.app).feed((topic, rest), (topic, rest, b"more"))
    assert (reader.seen, reader.refused) == ([1, 3] * 2, [b"x"] * 2)
    assert wired.stats.received == 6
    assert wired.balanced()


def test_batches_and_single_messages_of_several_publishers_mix() -> None:
    """Batches and single messages of several publishers, one of them plain, each arrive once and in order."""
    reader = Reader()
    plain_wire = framer("plain", epoch=0, next_sequence=lambda: 0, clock_ns=lambda: 0)(b"a", 1, b"\x05", None)
    assert isinstance(plain_wire, bytes)
    reader.feed(
        *[
            batch("a", [b"1", b"2"], epoch=1),
            tracked("a", 3, epoch=1),
            batch("a", written(1, 4), epoch=2, codec=1),
            plain_wire,
        ]
        * 3
    )
    assert reader.seen == [1, 2, 3, 4, 5] * 3


def test_a_refused_message_is_told_as_a_decode_error() -> None:
    """The error of one broken message of a batch names its topic and route."""
    reader = Reader()
    wired = reader.feed(batch("a", [b"1", b"x"]))
    ((error, hooked),) = wired.errors
    assert isinstance(error, DecodeError)
    assert (error.topic, hooked) == ("a", True)


def test_a_number_at_the_end_of_the_layout_is_no_counter() -> None:
    """A header that claims further counters beyond its end is malformed, in a batch too."""
    frame = bytearray(batch("a", [b"1"]))
    frame[2 + 6] |= 0xF0
    frame[2 + 32 :] = struct.pack(">H", 1)
    reader = Reader()
    assert reader.feed(bytes(frame)).stats.malformed == 1
