"""The counters of messages: each way through the reader moves exactly one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.pure import NothingThereError, Parts, Wired, plain
from tests.receiving.test_unpacking import EPOCH, Joined, batch
from zroute import App, Envelope, Limits, startswith
from zroute.messages.wire import COUNTER, HEADER_SIZE, NUL, Kind, pack_head, pack_kept
from zroute.options import LARGE_FRAME, MAX_PARTS
from zroute.testing import TestApp

MAX_MESSAGE = 3 * LARGE_FRAME
COUNTERS = ("received", "routed", "unrouted", "malformed", "duplicate", "control")

DO: dict[int, Callable[[Wired], Any]] = {
    60: lambda wired: wired.table.hold(),
    61: lambda wired: wired.table.reclassify(),
    62: lambda wired: setattr(wired, "table", wired.table.changed(wired.table.routes, wired.codecs)),
}
"""The handler's outcome on topic ``a`` for each of these numbers."""


def single(
    topic: str, body: bytes, number: int = 0, *, span: int = 1, further: Sequence[tuple[int, int]] = (), codec: int = 2
) -> bytes:
    """Return a tracked message with ``number`` for the subscription of length ``span``, unless ``number`` is 0."""
    frame = batch(topic, [body], first=number, span=span if number else 0, further=further, codec=codec)
    kind = frame.index(NUL) + 5
    behind = kind + HEADER_SIZE - 4 + COUNTER.size * len(further)
    return frame[:kind] + bytes((Kind.DATA,)) + frame[kind + 1 : behind] + body


def beat(topic: str, body: bytes = bytes(4)) -> bytes:
    """Return a frame without a message, valid or broken."""
    return plain(topic, body=pack_head(kind=Kind.BEAT, codec=0, epoch=1) + bytes(16) + body)


def joined(dispatch: Any = "all") -> Joined:
    """Return an app that has joined a publisher, with a route of each kind; only topic ``both`` has two routes."""
    app = App(dispatch=dispatch, codec="json", limits=Limits(max_message=MAX_MESSAGE))

    @app.subscribe("a")
    def on_number(number: int) -> None:
        DO.get(number, lambda wired: None)(wired)

    @app.subscribe("raises")
    def on_raises(number: int) -> None:
        raise SystemExit

    @app.subscribe("envelope")
    def on_envelope(number: int, envelope: Envelope) -> None: ...

    @app.subscribe("empty")
    def on_empty() -> None: ...

    @app.subscribe("text")
    def on_text(text: bytes) -> None: ...

    @app.subscribe("list", batch=3)
    def on_list(numbers: list[int]) -> None: ...

    @app.subscribe("stale", stale_after=1)
    def on_stale(number: int) -> None: ...

    @app.subscribe("both")
    def on_both(number: int) -> None: ...

    @app.subscribe(startswith("bo"))
    def on_others(number: int) -> None: ...

    wired = Joined(app)
    return wired


def counts(wired: Wired) -> dict[str, int]:
    """Return the counters of messages."""
    return {name: getattr(wired.stats, name) for name in COUNTERS}


def given_to_routes(wired: Wired) -> int:
    """Return the number of deliveries."""
    return sum(sum(attrs.astuple(route)) for route in wired.stats.routes.values())


def moved(wired: Wired, *messages: Parts) -> dict[str, int]:
    """Return the difference of each counter that changes while ``messages`` are read to the end."""
    before = counts(wired)
    wired.feed(*messages)
    return {name: now - before[name] for name, now in counts(wired).items() if now != before[name]}


@attrs.frozen
class Way:
    """The last of ``frames``, read after the others, adds ``many`` to ``counter``."""

    name: str
    counter: str
    frames: Sequence[Parts]
    many: int = 1


GOOD, BAD, HUGE = b"1", b"bad", b"1" * (MAX_MESSAGE + 1)
LARGE = b" " * LARGE_FRAME + b"1"
THREE = [b"1", b"2", b"3"]
NO_UTF_8 = b"\xff"


def twice(frame: Parts) -> list[Parts]:
    """Repeat a frame; the second takes the fast path."""
    return [frame, frame]


def behind(topic: str, body: bytes, number: int, span: int = 1) -> bytes:
    """Return a message whose number for subscriptions of length ``span`` is a further counter."""
    return single(topic, body, 50, span=0, further=[(span, number)])


def cut_behind(topic: str, body: bytes, number: int) -> bytes:
    """Return a message that ends inside its further counters."""
    frame = behind(topic, body, number)
    return frame[: frame.index(NUL) + 1 + HEADER_SIZE + COUNTER.size - 2]


TOPICS = ("a", "raises", "envelope", "empty", "text", "list", "stale", "both")
READABLE = ("a", "raises", "envelope", "list")

WAYS = [
    *(Way(f"plain, {topic}", "routed", [plain(topic, body=GOOD)]) for topic in TOPICS),
    *(Way(f"plain, {topic}, short", "routed", twice(plain(topic, body=GOOD))) for topic in TOPICS),
    *(Way(f"multipart, {topic}", "routed", twice((topic.encode(), GOOD))) for topic in TOPICS),
    *(Way(f"tracked, {topic}", "routed", [single(topic, GOOD)]) for topic in TOPICS),
    *(Way(f"tracked, {topic}, short", "routed", twice(single(topic, GOOD))) for topic in TOPICS),
    *(Way(f"tracked, {topic}, in two parts", "routed", twice((topic.encode(), single(topic, GOOD)[len(topic) + 1 :])))
      for topic in TOPICS),
    *(Way(f"undecodable, {topic}, slow", "routed", [plain(topic, body=BAD)]) for topic in READABLE),
    *(Way(f"undecodable, {topic}, plain", "routed", [plain(topic, body=GOOD), plain(topic, body=BAD)])
      for topic in READABLE),
    *(Way(f"undecodable, {topic}, tracked", "routed", [single(topic, GOOD), single(topic, BAD)])
      for topic in READABLE),
    *(Way(f"undecodable, {topic}, with a rest", "routed", [plain(topic, body=GOOD), (plain(topic, body=BAD), b"rest")])
      for topic in READABLE),
    Way("numbered", "routed", [single("a", GOOD, 1), single("a", GOOD, 2)]),
    Way("behind a gap", "routed", [single("a", GOOD, 1), single("a", GOOD, 5)]),
    Way("a header on the plain short way", "routed", [plain("a", body=GOOD), single("a", GOOD)]),
    Way("a batch on the plain short way", "routed", [plain("a", body=GOOD), batch("a", THREE)], 3),
    Way("a broken header on the plain short way", "malformed", [plain("a", body=GOOD), single("a", GOOD)[:20]]),
    Way("a beat on the plain short way", "control", [plain("a", body=GOOD), beat("a")]),
    Way("plain on the tracked short way", "routed", [single("a", GOOD), plain("a", body=GOOD)]),
    Way("no NUL", "malformed", [plain("a", body=GOOD), b"a"]),
    Way("nothing", "malformed", [b""]),
    Way("one empty body", "routed", twice(plain("empty", body=b""))),
    Way("a part too many", "malformed", [(b"a", *[GOOD] * MAX_PARTS)]),
    Way("parts behind a whole one", "malformed", [(plain("a", body=GOOD), b"rest")]),
    # -- topics without a route
    Way("unrouted", "unrouted", [plain("ax", body=GOOD)]),
    Way("unrouted, plain, short", "unrouted", twice(plain("ax", body=GOOD))),
    Way("unrouted, tracked, short", "unrouted", twice(single("ax", GOOD))),
    Way("unrouted, numbered", "unrouted", [single("ax", GOOD, 1), single("ax", GOOD, 2)]),
    Way("unrouted, multipart", "unrouted", twice((b"ax", GOOD))),
    Way("unrouted, header", "unrouted", [plain("ax", body=GOOD), single("ax", GOOD)]),
    Way("unrouted, further counters", "unrouted", [behind("ax", GOOD, 1), behind("ax", GOOD, 2)]),
    Way("unrouted, large", "unrouted", twice(plain("ax", body=LARGE))),
    Way("unrouted, several", "unrouted", [batch("ax", THREE)], 3),
    Way("unrouted, several, short", "unrouted", twice(batch("ax", THREE)), 3),
    Way("unrouted, a long topic", "unrouted", twice(plain(b"x" * 300, body=GOOD))),
    Way("no UTF-8", "malformed", [plain(NO_UTF_8, body=GOOD)]),
    Way("no UTF-8, plain, short", "malformed", twice(plain(NO_UTF_8, body=GOOD))),
    Way("no UTF-8, multipart", "malformed", twice((NO_UTF_8, GOOD))),
    Way("no UTF-8, several", "malformed", twice(NO_UTF_8 + batch("a", THREE)[1:]), 3),
    Way("no UTF-8, with a rest", "malformed", [plain(NO_UTF_8, body=GOOD), (plain(NO_UTF_8, body=GOOD), b"rest")]),
    # -- duplicates
    Way("a duplicate", "duplicate", [single("a", GOOD, 1), single("a", GOOD, 1, codec=1)]),
    Way("a duplicate, short", "duplicate", twice(single("a", GOOD, 1))),
    Way("a duplicate, undecodable", "duplicate", [single("a", GOOD, 1), single("a", BAD, 1)]),
    Way("a duplicate, unrouted", "duplicate", twice(single("ax", GOOD, 1))),
    Way("a duplicate, large", "duplicate", twice(single("a", LARGE, 1))),
    Way("a duplicate, several", "duplicate", [batch("a", THREE, first=1, span=1),
                                              batch("a", THREE, first=1, span=1, codec=1)], 3),
    Way("a duplicate, several, short", "duplicate", twice(batch("a", THREE, first=1, span=1)), 3),
    Way("a duplicate, several, unrouted", "duplicate", twice(batch("ax", THREE, first=1, span=1)), 3),
    # -- further counters
    Way("further counters", "routed", [behind("a", GOOD, 1)]),
    Way("further counters, short", "routed", [behind("a", GOOD, 1), behind("a", GOOD, 2)]),
    Way("further counters, a gap", "routed", [behind("a", GOOD, 1), behind("a", GOOD, 9)]),
    Way("further counters, undecodable", "routed", [behind("a", GOOD, 1), behind("a", BAD, 2)]),
    Way("further counters, a duplicate", "duplicate", twice(behind("a", GOOD, 1))),
    Way("further counters, others", "routed", [behind("a", GOOD, 1), behind("a", GOOD, 2, span=7)]),
    Way("further counters, others, unrouted", "unrouted", [behind("ax", GOOD, 1), behind("ax", GOOD, 2, span=7)]),
    Way("further counters, others, broken", "routed", [behind("a", GOOD, 1), behind("a", BAD, 2, span=7)]),
    Way("further counters, cut", "malformed", [cut_behind("a", GOOD, 1)]),
    Way("further counters, cut, short", "malformed", [behind("a", GOOD, 1), cut_behind("a", GOOD, 2)]),
    Way("further counters, cut, with a rest", "malformed",
        [behind("a", GOOD, 1), (cut_behind("a", GOOD, 2), b"rest")]),
    Way("a broken header on the plain short way of envelopes", "malformed",
        [plain("envelope", body=GOOD), behind("envelope", GOOD, 0, span=8)]),
    Way("a broken header on the tracked short way, in an envelope that is not read", "routed",
        [behind("envelope", GOOD, 1, span=8), behind("envelope", GOOD, 0, span=8)]),
    # -- large ones
    *(Way(f"large, {topic}", "routed", twice(plain(topic, body=LARGE))) for topic in TOPICS),
    *(Way(f"large, tracked, {topic}", "routed", twice(single(topic, LARGE))) for topic in TOPICS),
    *(Way(f"large, multipart, {topic}", "routed", twice((topic.encode(), LARGE))) for topic in TOPICS),
    Way("large, undecodable", "routed", twice(plain("a", body=BAD + LARGE))),
    Way("large, with a rest", "malformed", twice((plain("a", body=LARGE), b"rest"))),
    Way("over the limit", "malformed", twice(plain("a", body=HUGE))),
    Way("over the limit, tracked", "malformed", [single("a", GOOD), single("a", HUGE)]),
    Way("over the limit, multipart", "malformed", twice((b"a", HUGE))),
    # -- several messages in a frame
    *(Way(f"several, {topic}", "routed", [batch(topic, THREE)], 3) for topic in TOPICS),
    *(Way(f"several, {topic}, short", "routed", twice(batch(topic, THREE)), 3) for topic in TOPICS),
    *(Way(f"several, {topic}, one bad", "routed", twice(batch(topic, [GOOD, BAD, GOOD])), 3) for topic in TOPICS),
    Way("several, numbered", "routed",
        [batch("a", THREE, first=1, span=1), batch("a", THREE, first=4, span=1)], 3),
    Way("several, kept", "routed", twice(batch("a", THREE, keeps=True)), 3),
    Way("several, further counters", "routed",
        [batch("a", THREE, first=50, span=0, further=[(1, n)]) for n in (1, 4)], 3),
    Way("several, in parts", "routed", twice((b"a", batch("a", THREE)[2:])), 3),
    Way("several, with a large one", "routed", twice(batch("a", [GOOD, LARGE])), 2),
    Way("several, cut", "malformed", [batch("a", THREE)[:-1]]),
    Way("several, cut, short", "malformed", [batch("a", THREE), batch("a", THREE)[:-1]]),
    Way("several, cut, with a rest", "malformed", [batch("a", THREE), (batch("a", THREE)[:-1], b"rest")]),
    Way("several, and a hold", "routed", twice(batch("a", [b"60"] * 3)), 3),
    Way("several, and other closures", "routed", twice(batch("a", [b"61"] * 3)), 3),
    Way("several, and another table", "routed", twice(batch("a", [b"62"] * 3)), 3),
    # -- frames that carry no message
    Way("a beat", "control", twice(beat("a"))),
    Way("a beat that is broken", "malformed", twice(beat("a", b"\0"))),
]  # fmt: skip
BOTH = {way.name for way in WAYS if ", both" in way.name}


@pytest.mark.parametrize("dispatch", ["all", "most_specific"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_each_way_moves_one_counter(way: Way, dispatch: str) -> None:
    """A message counts as received and in one other counter, and for routes only if it was routed."""
    wired = joined(dispatch)
    *before, last = way.frames
    wired.feed(*before)
    given = given_to_routes(wired)
    assert moved(wired, last) == {"received": way.many, way.counter: way.many}
    routes = 2 if way.name in BOTH and dispatch == "all" else 1
    assert given_to_routes(wired) - given == (way.many * routes if way.counter == "routed" else 0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_one_drain_for_all_counts_as_one_for_each(way: Way) -> None:
    """The counters do not depend on the number of messages that one drain reads, on any path."""
    together, alone = joined(), joined()
    together.feed(*way.frames, *way.frames)
    for frame in (*way.frames, *way.frames):
        alone.feed(frame)
    assert counts(together) == counts(alone)
    assert together.balanced()


@pytest.mark.parametrize(
    ("topic", "body", "expected"),
    [
        (b"a", GOOD, "routed"),
        (b"a", BAD, "routed"),
        (b"ax", GOOD, "unrouted"),
        (b"zz", GOOD, "control"),
        (b"a", HUGE, "malformed"),
        (b"", b"", "control"),
    ],
)
def test_a_kept_message_moves_one_counter(topic: bytes, body: bytes, expected: str) -> None:
    """Kept messages count like others; those without a subscription, and the end of all, are control frames."""
    wired = joined()
    marker = wired.table._accounts.make_marker()  # type: ignore[attr-defined]
    frame = pack_kept(marker, 1, topic, 2, body, None, epoch=EPOCH, sent_at=5)
    assert moved(wired, frame) == {"received": 1, expected: 1}


def test_a_kept_message_that_is_not_the_latest_is_a_control_frame() -> None:
    """A kept message that arrived live before, or that is for another subscriber, is a control frame."""
    wired = joined()
    marker = wired.table._accounts.make_marker()  # type: ignore[attr-defined]
    frame = pack_kept(marker, 1, b"a", 2, GOOD, None, epoch=EPOCH, sent_at=5)
    others = joined().table._accounts.make_marker()  # type: ignore[attr-defined]
    other = pack_kept(others, 1, b"a", 2, GOOD, None, epoch=EPOCH, sent_at=9)
    assert moved(wired, frame, frame) == {"received": 2, "routed": 1, "control": 1}
    assert moved(wired, other) == {"received": 1, "control": 1}


@pytest.mark.parametrize("bodies", [[b"60"] * 4, [b"60", BAD, b"1", b"60"]])
@pytest.mark.parametrize("earlier", [[], [batch("a", [GOOD])]])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_a_frame_that_is_cut_counts_what_was_delivered(
    bodies: list[bytes], earlier: list[bytes], most: int | None
) -> None:
    """If a hold or a limit cuts a frame, its rest is in no counter until it is delivered."""
    wired = joined()
    wired.feed(*earlier)
    wired.table.most = most
    wired.queue(batch("a", bodies))
    before = wired.stats.received
    drains = 0
    while not wired.receive(4):
        drains += 1
        assert wired.balanced()
        assert wired.stats.received - before == given_to_routes(wired) - len(earlier) == 4 - wired.table.unpacked
    assert drains > 1
    assert wired.stats.routed == 4 + len(earlier)


def test_one_frame_may_move_two_counters() -> None:
    """If one message of a frame is too large, it is malformed, and the others are routed."""
    app = App(limits=Limits(max_message=10), codec="json")
    app.add_route(lambda message: None, "a")
    assert moved(Wired(app), *twice(batch("a", [b"1", b"1" * 11, b"3"]))) == {
        "received": 6,
        "routed": 4,
        "malformed": 2,
    }


# -- socket errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"a", plain("a", body=LARGE), single("a", GOOD)])
def test_a_message_whose_rest_cannot_be_read_is_in_no_counter(first: bytes) -> None:
    """If the socket fails between two parts, only the messages delivered before are counted."""
    wired = joined().feed(plain("a", body=GOOD))
    wired.queue(plain("a", body=GOOD))
    wired._parts.append((first, True))
    before = counts(wired)
    with pytest.raises(NothingThereError):
        wired.table.receive(wired.recv, wired.more, 16)
    assert counts(wired) == {**before, "received": 2, "routed": 2}


@pytest.mark.parametrize(
    ("good", "bad", "counter"),
    [
        (plain("a", body=GOOD), plain("a", body=BAD), "routed"),
        (behind("a", GOOD, 1), cut_behind("a", GOOD, 2), "malformed"),
    ],
)
def test_a_message_that_was_dealt_with_is_counted_if_the_socket_fails_then(
    good: bytes, bad: bytes, counter: str
) -> None:
    """If an error hook closes the socket, the message that caused the error is still counted."""
    wired = joined()
    wired.feed(good)

    def fail() -> int:
        raise ConnectionError

    wired.queue(good, bad) if counter == "routed" else wired.queue(bad)
    before = counts(wired)
    with pytest.raises(ConnectionError):
        wired.table.receive(wired.recv, fail, 16)
    many = 1 + (counter == "routed")
    assert counts(wired) == {**before, "received": before["received"] + many, counter: before[counter] + many}


# -- all ways together -----------------------------------------------------------------------------------

_TOPIC = st.sampled_from(["a", "a", "a", "raises", "envelope", "empty", "text", "list", "stale", "ax", "", "\udcff"])
_BODY = st.sampled_from([GOOD, GOOD, b"2", b"", BAD, LARGE, HUGE, b"60", b"61", b"62"])
_NUMBER = st.integers(0, 6)


def _raw(topic: str) -> bytes:
    return topic.encode("utf-8", "surrogateescape")


def _changed(frame: bytes, topic: str) -> bytes:
    """Return ``frame``, made for topic ``a``, with another topic."""
    return _raw(topic) + frame[1:]


_FRAMES = st.one_of(
    st.builds(lambda topic, body: plain(_raw(topic), body=body), _TOPIC, _BODY),
    st.builds(lambda topic, body, number: _changed(single("a", body, number), topic), _TOPIC, _BODY, _NUMBER),
    st.builds(
        lambda topic, body, number, span: _changed(single("a", body, 9, span=0, further=[(span, number)]), topic),
        *(_TOPIC, _BODY, _NUMBER, st.integers(1, 2)),
    ),
    st.builds(
        lambda topic, bodies, number, keeps: _changed(batch("a", bodies, first=number, span=1, keeps=keeps), topic),
        *(_TOPIC, st.lists(_BODY.filter(lambda body: len(body) < 9), min_size=1, max_size=5), _NUMBER, st.booleans()),
    ),
    st.builds(lambda topic, body: beat("a", body).replace(b"a", _raw(topic), 1), _TOPIC, st.binary(max_size=4)),
)
_CUT = st.builds(lambda frame, end: frame[: end % (len(frame) + 1)], _FRAMES, st.integers(0, 80))
_MESSAGES = st.one_of(
    _FRAMES,
    _CUT,
    st.builds(lambda frame: tuple(frame.split(NUL, 1)), _FRAMES),
    st.builds(lambda frame, rest: (frame, *rest), _FRAMES, st.lists(st.sampled_from([b"", b"rest"]), max_size=20)),
)


@given(
    st.lists(_MESSAGES, max_size=20),
    st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(1, 3)), max_size=20),
)
@example([plain("ax", body=GOOD)] * 3, [(2, None)])
@example([single("a", GOOD, 1)] * 3, [(2, None)])
@example([batch("a", [GOOD] * 4, first=1, span=1)] * 3, [(2, 1)])
def test_after_every_drain_each_message_is_in_one_counter(
    messages: list[Parts], drains: list[tuple[int, int | None]]
) -> None:
    """After each drain every counter sum holds, and the routes received exactly the routed messages."""
    wired = joined()
    wired.queue(*messages)
    for budget, most in drains:
        wired.table.most = most
        wired.receive(budget)
        assert wired.balanced()
        assert given_to_routes(wired) == wired.stats.routed
    wired.feed()
    assert wired.balanced()
    assert given_to_routes(wired) == wired.stats.routed


@pytest.mark.parametrize("wire", ["plain", "multipart", "tracked"])
def test_what_apps_send_each_other_in_memory_is_counted(wire: Any) -> None:
    """In-memory apps count every message once as well, on each wire."""
    sender, reader = App(pub="tcp://127.0.0.1:1", wire=wire), App(sub="tcp://127.0.0.1:1")

    @reader.subscribe("a")
    def handle(number: int) -> None: ...

    with TestApp(sender, reader, raise_errors=False) as t:
        for topic, message in [("a", 1), ("ax", 1), ("a", "text")] * 3:
            sender.publish(topic, message)
            t.advance(0)
        stats = reader.stats
        assert (stats.routed, stats.unrouted, stats.malformed) == (6, 3, 0)
        assert stats.received == stats.routed + stats.unrouted + stats.duplicate + stats.control
