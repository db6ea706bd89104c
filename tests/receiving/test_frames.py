"""The generated function for whole coalesced frames: it does what the general path does."""

from __future__ import annotations

import linecache
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.pure import LOG, Wired
from tests.receiving.test_unpacking import CODECS, Joined, batch, tracked_with
from zroute import App, Envelope, Limits
from zroute.errors import PeerError
from zroute.messages.control import pack_statements
from zroute.messages.wire import HEADER_SIZE, Kind
from zroute.receiving.session import SubscriberSession
from zroute.receiving.table import RouteTable
from zroute.receiving.topic_cache import TopicCache

TOPIC, PREFIX, EPOCHS = "a.x", b"a.", (7, 8)
AT = len(TOPIC) + 1
ACTIONS = ("", "", "", "", "return", "raise", "exit", "hold", "defer", "forget", "pause")


@attrs.frozen
class Order:
    number: int
    action: str
    size: int = 0


class Script:
    """An app that has joined two publishers; its handler does what a message says.

    `log` is what happened.
    """

    def __init__(self, kind: Any, options: dict[str, Any], step: float, limit: int | None) -> None:
        self.log: list[Any] = []
        self.begun: list[Deferred[None]] = []
        self.limit = limit
        app = App(codec="json", limits=Limits(max_message=6_000), **options)

        @app.publisher("b.{symbol}")
        @app.subscribe("a.{symbol}")
        def handle(message: Any, symbol: str) -> Any:
            self.log.append(("handled", repr(message), symbol))
            action = message.get("action") if type(message) is dict else getattr(message, "action", "")
            return self.act(action)

        handle.__annotations__["message"] = kind

        @app.on_error(PeerError, ValueError)
        def failed(error: Exception, envelope: Envelope) -> None:
            about = envelope.sequence, envelope.codec, envelope.sent_at, envelope.publisher, envelope.origin
            self.log.append(("failed", type(error), getattr(error, "reason", None), envelope.body, about))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("zroute.receiving.coalesced.perf_counter", partial(next, count(0.0, step)))
            self.wired = wired = Wired(app)
            wired.accounts = accounts = SubscriberSession(
                wired.clock, wired.stats, LOG, "test", lambda event: self.log.append(("event", str(event)))
            )
            wired.table._accounts = accounts
            accounts._subscriptions = wired.table.subscriptions
            accounts._tracker.subscribe(accounts._subscriptions)
            marker = accounts.make_marker()
            accounts._tracker.join(marker, 0.0)
            for epoch in EPOCHS:
                statements = pack_statements(
                    Kind.JOIN, marker, [(PREFIX, 0)], epoch=epoch, name=f"p{epoch}", partial=False, sent_at=5
                )
                wired.feed(*statements)

    def act(self, action: str) -> Any:
        """Do what a message says."""
        if action == "raise":
            raise ValueError("no")
        if action == "exit":
            raise SystemExit(3)
        if action in ("hold", "pause"):
            self.wired.table.hold()
        if action == "forget":
            self.wired.table.forget_accounts()
        if action == "defer":
            self.begun.append(Deferred())
            return self.begun[-1]
        return {"is": "returned"} if action == "return" else None

    def run(self, frames: Sequence[bytes], budget: int, step: float) -> list[Any]:
        """Receive all frames, and return what happened, with the counters after each read."""
        wired = self.wired
        wired.queue(*frames)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("zroute.receiving.coalesced.perf_counter", partial(next, count(0.0, step)))
            ended = False
            while not ended:
                if self.limit is not None:
                    wired.table.limit(self.limit)
                ended = wired.receive(budget if self.limit is None else 1)
                assert wired.balanced()
                stats = attrs.asdict(wired.stats)
                self.log.append(("read", wired.table.unpacked, stats, len(wired.sent), len(wired.exits)))
                if self.begun:
                    self.begun.pop(0).callback(None)
                    ended = False
        self.log.append(("kept", wired.table._latest.times))
        self.log.append(("sent", wired.sent, [str(error) for error, _ in wired.errors]))
        return self.log


def body_of(codec: int) -> st.SearchStrategy[bytes]:
    """Return bodies: valid, of another type, out of bounds, or not of the codec."""
    good = st.builds(Order, st.integers(0, 99), st.sampled_from(ACTIONS)).map(CODECS[codec])
    odd = st.sampled_from([b"\xff", b"", b"[", b"1", CODECS[codec]({"number": "x", "action": ""})])
    big = [b'{"number":99999999999999999999,"action":""}'] if codec == 2 else []
    return st.one_of(*[good] * 12, odd, *map(st.just, big))


def damaged(frame: bytes, at: int, byte: int | None) -> bytes:
    """Return a frame with another byte behind the topic, or without its end."""
    place = AT + at % (len(frame) - AT)
    return frame[:place] if byte is None else frame[:place] + bytes((byte,)) + frame[place + 1 :]


@attrs.frozen
class Piece:
    """Some messages of a publisher, in one frame or alone."""

    epoch: int
    codec: int
    bodies: tuple[bytes, ...]
    skip: int
    keeps: bool
    alone: bool
    numbered: bool
    damage: tuple[int, int | None] | None


def pieces(codec: int) -> st.SearchStrategy[Piece]:
    """Return messages of one codec; most are valid, in frames, and of one publisher."""
    few = st.lists(body_of(codec), min_size=1, max_size=6)
    many = st.integers(7, 60).map(lambda number: [CODECS[codec](Order(each, "")) for each in range(number)])
    holes = (st.integers(HEADER_SIZE, HEADER_SIZE + 6) | st.integers(0, 400), st.none() | st.integers(0, 255))
    return st.builds(
        Piece,
        st.sampled_from((*EPOCHS, EPOCHS[0], EPOCHS[0])),
        st.just(codec),
        st.one_of(few, few, many).map(tuple),
        st.sampled_from((0, 0, 0, 0, 2, -1, -3)),
        st.sampled_from((False, False, False, True)),
        st.sampled_from((False, False, True)),
        st.sampled_from((True, True, True, True, False)),
        st.one_of(st.none(), st.none(), st.none(), st.tuples(*holes)),
    )


def framed(given_pieces: Sequence[Piece]) -> list[bytes]:
    """Return the frames of all pieces, with their numbers."""
    last, frames = dict.fromkeys(EPOCHS, 0), []
    for each in given_pieces:
        first = max(last[each.epoch] + 1 + each.skip, 1)
        options: dict[str, Any] = {"span": len(PREFIX), "epoch": each.epoch, "codec": each.codec}
        if each.alone:
            numbers = range(first, first + len(each.bodies)) if each.numbered else [0] * len(each.bodies)
            made = [
                tracked_with(TOPIC, body, sequence=number, **options)
                for number, body in zip(numbers, each.bodies, strict=True)
            ]
        else:
            made = [batch(TOPIC, each.bodies, first=first if each.numbered else 0, keeps=each.keeps, **options)]
        if each.numbered:
            last[each.epoch] = max(last[each.epoch], first + len(each.bodies) - 1)
        if each.damage is not None:
            made[0] = damaged(made[0], *each.damage)
        frames += made
    return frames


def plain_orders(*actions: str) -> tuple[bytes, ...]:
    """Return the JSON of one order for each action."""
    return tuple(CODECS[2](Order(number, action)) for number, action in enumerate(actions))


def piece(*actions: str, **changes: Any) -> Piece:
    """Return a frame of JSON orders."""
    return attrs.evolve(Piece(7, 2, plain_orders(*actions), 0, False, False, True, None), **changes)


EACH_ACTION = [piece(""), piece("", ""), *(piece("", action, "", "", "return") for action in ACTIONS), piece("", "")]
GAP_AND_DUPLICATES = [piece("", ""), piece("", "", skip=3), piece("", "", skip=-1), piece("", skip=-1), piece("")]
LONG = [piece(*[""] * 5), piece(*[""] * 40, "hold", *[""] * 40, "raise"), piece(*[""] * 100)]
MIXED = [piece("", alone=True), piece("", ""), piece("", alone=True), piece("", "", epoch=8), piece("", "")] * 2
BROKEN = [
    piece("", ""),
    *(piece("", "", damage=damage) for damage in ((23, 0), (37, 1), (37, None), (33, 3), (38, 0), (60, None), (8, 1))),
    *(piece(bodies=bodies) for bodies in ((b"1", b"2,3"), (b"1", b"2"), (b"1",) * 1_001, (b"",), (b"\xff", b"1"))),
    piece(bodies=(b'{"number":99999999999999999999,"action":""}', *plain_orders("", "raise"))),
    piece("", ""),
]
TINY = [piece(bodies=(b"1",)), piece(bodies=(b"1",) * 900), piece(bodies=(b"1",) * 900)]
KEPT = [piece("", "", keeps=True), piece("return", "", keeps=True), piece("", "raise", keeps=True)]


@example(EACH_ACTION, Order, {}, 16, 0.0, None)
@example(EACH_ACTION, Any, {"isolate": True}, 64, 0.0, None)
@example(GAP_AND_DUPLICATES, Order, {}, 16, 0.0, None)
@example(LONG, Order, {}, 256, 0.001, None)
@example(LONG, Order, {}, 16, 1.0, None)
@example(MIXED, Order, {}, 64, 0.0, None)
@example(BROKEN, Order, {}, 256, 0.0, None)
@example(BROKEN, Any, {}, 256, 0.0, None)
@example(TINY, Any, {}, 256, 0.00015, None)
@example(KEPT, Order, {}, 64, 0.0, None)
@example(EACH_ACTION, Order, {}, 16, 0.0, 3)
@given(
    st.sampled_from((2, 2, 1)).flatmap(lambda codec: st.lists(pieces(codec), min_size=1, max_size=8)),
    st.sampled_from((Order, Order, dict, Any)),
    st.sampled_from(({}, {"isolate": True})),
    st.sampled_from((16, 64, 5)),
    st.sampled_from((0.0, 0.0, 0.00004, 0.001, 1.0)),
    st.sampled_from((None, None, None, 3)),
)
def test_a_whole_frame_is_handled_as_on_the_general_path(
    given_pieces: list[Piece], kind: Any, options: dict[str, Any], budget: int, step: float, limit: int | None
) -> None:
    """Random frames give the same calls, events, errors and counters, in order."""
    frames = framed(given_pieces)
    fast = Script(kind, options, step, limit).run(frames, budget, step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TopicCache, "frames_of", lambda *_: None)
        general = Script(kind, options, step, limit).run(frames, budget, step)
    assert fast == general


CRAFTED = {
    "a space before the list": (2, (3, 6), b" [11,2]"),
    "a space after the list": (2, (2, 5), b"[1,2] "),
    "no messages": (0, (), b"[]"),
    "no list": (1, (1,), b"1"),
    "nothing": (1, (), b""),
    "an end behind the frame": (2, (2, 60), b"[1,2]"),
    "a msgpack list with another kind of length": (2, (1, 2), b"\x92\x01\x02"),
    "a msgpack list of another length": (2, (4, 5), b"\xdc\x00\x01\x01\x02"),
    "a valid list": (2, (2, 4), b"[1,2]"),
    "a valid msgpack list": (2, (4, 5), b"\xdc\x00\x02\x01\x02"),
}


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_frame_is_refused_as_on_the_general_path(name: str, codec: int) -> None:
    """A frame that the wire document forbids is malformed, if it can be decoded too."""
    many, ends, listing = CRAFTED[name]
    content = struct.pack(f">{len(ends) + 1}H", many, *ends) + listing
    found = []
    for frames_of in (TopicCache.frames_of, lambda *_: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TopicCache, "frames_of", frames_of)
            script = Script(int, {}, 0.0, None)
            options: dict[str, Any] = {"span": len(PREFIX), "codec": codec}
            good = [batch(TOPIC, [CODECS[codec](1)] * 2, first=first, **options) for first in (1, 3, 7)]
            crafted = batch(TOPIC, [b""], first=5, **options)[: AT + HEADER_SIZE] + content
            found.append(script.run([*good[:2], crafted, good[2]], 64, 0.0))
            assert script.wired.stats.malformed == (name.count("valid") != 1 or (codec == 1) != ("msgpack" in name))
    assert found[0] == found[1]


# -- which frames the generated function delivers --------------------------------------------------------------


class Observed:
    """An app whose slow path is counted."""

    def __init__(self, handler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        app = App(codec="json", **options)
        app.add_route(handler, "a.{symbol}")
        self.wired, self.slow, self.general = Joined(app), 0, 0
        one_by_one, unpack = RouteTable._one_by_one, RouteTable._unpack

        def counted(table: Any, *arguments: Any) -> Any:
            self.slow += 1
            return one_by_one(table, *arguments)

        def counted_unpack(table: Any, *arguments: Any) -> Any:
            self.general += 1
            return unpack(table, *arguments)

        monkeypatch.setattr(RouteTable, "_one_by_one", counted)
        monkeypatch.setattr(RouteTable, "_unpack", counted_unpack)

    def feed(self, *frames: bytes) -> tuple[int, int]:
        """Receive frames; return how many took the slow path, and how many the general path."""
        self.slow = self.general = 0
        self.wired.feed(*frames)
        return self.slow, self.general


def handle_order(order: Order, symbol: str) -> None:
    """Handle an order of a symbol."""


def with_envelope(order: Order, envelope: Envelope) -> None:
    """Handle an order that is needed as it arrived."""


async def handle_async(order: Order) -> None:
    """Handle an order, and perhaps wait."""


def turn(number: int, **options: Any) -> list[bytes]:
    """Return what a publisher sends in a turn: one message alone, and three in a frame."""
    single, *frame = plain_orders("", "", "", "")
    first = 1 + 4 * number
    return [
        tracked_with(TOPIC, single, span=len(PREFIX), sequence=first, **options),
        batch(TOPIC, frame, first=first + 1, span=len(PREFIX), **options),
    ]


@pytest.mark.parametrize("options", [{}, {"isolate": True}])
def test_a_turn_of_a_publisher_takes_the_fast_path(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first turn, one look-up finds the function for all messages."""
    seen = Observed(handle_order, monkeypatch, **options)
    assert seen.feed(*turn(0)) == (2, 0)
    assert seen.feed(*(frame for number in range(1, 10) for frame in turn(number))) == (0, 0)
    entries = seen.wired.table._entries
    assert (list(entries.direct), entries.tracked) == ([TOPIC.encode()], {})
    assert (seen.wired.stats.received, seen.wired.stats.lost, seen.wired.stats.duplicate) == (40, 0, 0)
    assert seen.wired.stats.routed == 40


def test_frames_alone_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and a later single message each take the slow path once."""
    seen = Observed(handle_order, monkeypatch)
    frames = [frame for number in range(4) for frame in turn(number)]
    assert [seen.feed(frame) for frame in frames[1::2]] == [(1, 0), (0, 0), (0, 0), (0, 0)]
    assert [seen.feed(frame) for frame in frames[::2]] == [(1, 0), (0, 0), (0, 0), (0, 0)]
    assert seen.feed(*turn(4)) == (0, 0)


def test_frames_of_several_publishers_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several publishers, and one that begins to keep messages, all are fast."""
    seen = Observed(handle_order, monkeypatch)
    for epoch in (7, 8, 9):
        seen.feed(*turn(0, epoch=epoch))
    kept = [batch(TOPIC, plain_orders(""), first=number, span=len(PREFIX), keeps=True) for number in (21, 22)]
    seen.feed(kept[0])
    frames = [frame for number in range(1, 5) for epoch in (7, 8, 9) for frame in turn(number, epoch=epoch)]
    seen.wired.table._latest.times.clear()
    assert seen.feed(*frames, kept[1]) == (0, 0)
    assert len(seen.wired.table._entries.tracked[TOPIC.encode()]) == 7
    assert list(seen.wired.table._latest.times) == [(7, TOPIC.encode())]


@pytest.mark.parametrize("handler", [with_envelope, handle_async])
def test_other_handlers_take_the_general_path(handler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler with an envelope, or an async handler, has no such function."""
    seen = Observed(handler, monkeypatch)
    seen.feed(*turn(0))
    assert seen.feed(*turn(1), *turn(2)) == (0, 2)


def test_after_the_accounts_moved_the_fast_path_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """When accounts move, no frame reaches the function, and a new one is made."""
    seen = Observed(handle_order, monkeypatch)
    seen.feed(*turn(0), *turn(1))
    seen.wired.table.forget_accounts()
    entries = seen.wired.table._entries
    assert not entries.direct
    assert not entries._frame_makers
    assert sum(entry.size for entry in entries._entries.values()) == entries._budget.used
    assert seen.feed(*turn(2)) == (2, 0)
    assert seen.feed(*turn(3)) == (0, 0)


def test_topics_share_the_code_and_a_traceback_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One maker serves all topics of a handler, and tracebacks show its source."""
    seen = Observed(handle_order, monkeypatch)
    frames = [
        batch(topic, plain_orders("", ""), first=1 + 2 * number, span=len(PREFIX))
        for number, topic in enumerate(("a.x", "a.longer", "a.y"))
    ]
    seen.feed(*frames)
    assert seen.wired.stats.lost == 0
    entries = seen.wired.table._entries
    assert len(entries._frame_makers) == 1
    codes = {deliver.__code__ for deliver in entries.direct.values()}  # type: ignore[attr-defined]
    (code,) = codes
    source = "".join(linecache.getlines(code.co_filename))
    assert "head, number, many = unpack(raw, at)" in source
    assert "result := function(m, " in source
    assert "\n\n" not in source
