"""Paths: all paths keep, hold, count and order messages in the same way."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from typing import Any, Literal, get_args

import attrs
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.publishing.joined import ADDRESS, Frame, joined
from zroute import App, HighWaterMarkError
from zroute.messages.control import pack_marker
from zroute.messages.topics import parse
from zroute.publishing.coalescer import Coalescer, Held
from zroute.publishing.fast_path import PublicationPaths
from zroute.publishing.paths import Paths
from zroute.publishing.publication import DONE, Overflow, Publication
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.stats import Stats

# -- topics with several publishers ---------------------------------------------------------------------------

TOPICS = ("a.b", "a.c", "d.b")


@attrs.frozen
class Setting:
    """The options of an app and its publishers."""

    overflow: Overflow
    of_app: bool
    own: tuple[bool | None, ...]


SETTINGS = st.builds(
    Setting, st.sampled_from(get_args(Overflow)), st.booleans(), st.tuples(*[st.sampled_from([None, False, True])] * 4)
)
"""The publishers: one that keeps, one of a topic, one of many topics, and an unrelated one."""

WHO = ("keeps", "one", "many", "unrelated", "app", "headers", "turn")
ACTIONS = st.lists(st.tuples(st.sampled_from(WHO), st.sampled_from(TOPICS)), max_size=40)


@given(SETTINGS, ACTIONS)
def test_whoever_publishes_a_topic_it_is_kept_held_counted_and_in_order(
    setting: Setting, actions: list[tuple[str, str]]
) -> None:
    """The state of a topic affects the messages of all its publishers at once.

    Each header says whether its topic is kept, each message has the next number, and the last message of a kept topic
    is the kept one.
    """
    coalesces = setting.overflow != "raise"
    context: zmq.Context[Any] = zmq.Context()
    app = App(
        pub=ADDRESS, codec="json", context=context, overflow=setting.overflow, coalesce=setting.of_app and coalesces
    )
    own = [each if coalesces else None for each in setting.own]
    keeps = app.publisher("a.{x}", int, keep="last", coalesce=own[0])
    one = app.publisher("a.b", int, coalesce=own[1])
    many = app.publisher("{y}.{x}", int, coalesce=own[2])
    unrelated = app.publisher("d.{x}", int, coalesce=own[3])
    publish: dict[str, Callable[[str, str, int], object]] = {
        "keeps": lambda _, x, number: keeps.publish(number, x=x),
        "one": lambda _, __, number: one.publish(number),
        "many": lambda y, x, number: many.publish(number, y=y, x=x),
        "unrelated": lambda _, x, number: unrelated.publish(number, x=x),
        "app": lambda y, x, number: app.publish(f"{y}.{x}", number),
        "headers": lambda y, x, number: many.publish(number, y=y, x=x, headers={"n": number}),
    }
    sent: list[tuple[str, int]] = []
    keepers: set[int] = set()
    with joined(app, context) as run:
        for number, (who, where) in enumerate(actions):
            if who == "turn":
                run.turn()
                continue
            topic = {"one": "a.b", "keeps": f"a.{where[2]}", "unrelated": f"d.{where[2]}"}.get(who, where)
            publish[who](*topic.split("."), number)
            sent.append((topic, number))
            if who == "keeps":
                keepers.add(number)
        run.turn()
        frames, kept = run.read(), run.kept
    assert app.stats.published == len(sent)
    following = count(1)
    for frame in frames:
        first = next(following)
        assert frame.header.sequence == first
        for _ in frame.messages[1:]:
            next(following)
    expected_kept: dict[str, int] = {}
    for topic in TOPICS:
        numbers = [number for each, number in sent if each == topic]
        own_frames = [frame for frame in frames if frame.topic == topic]
        assert [number for frame in own_frames for number in frame.messages] == numbers
        is_kept = False
        for frame in own_frames:
            is_kept = is_kept or not keepers.isdisjoint(frame.messages)
            assert frame.header.keeps == is_kept
        if is_kept:
            expected_kept[topic] = numbers[-1]
    assert kept == expected_kept


@pytest.mark.parametrize("overflow", get_args(Overflow))
@pytest.mark.parametrize("symbol", [None, "b"])
def test_a_path_sees_at_once_that_its_topic_is_kept(overflow: Overflow, symbol: str | None) -> None:
    """An established fast path notices that another publisher keeps its topic."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context, overflow=overflow)
    keeps = app.publisher("a.{x}", int, keep="last")
    plain: Publication[int] = app.publisher("a.b", int) if symbol is None else app.publisher("{y}.b", int)
    captures = {} if symbol is None else {"y": "a"}
    with joined(app, context) as run:
        for number in range(3):
            plain.publish(number, **captures)
        assert not run.kept
        keeps.publish(3, x="b")
        plain.publish(4, **captures)
        assert run.kept == {"a.b": 4}
        assert [frame.header.keeps for frame in run.read()] == [False, False, False, True, True]


@attrs.frozen
class Numbered:
    """A message with the capture of its topic."""

    number: int
    x: str = "b"


ROOM, MANY = 100, 600
"""The size of a queue, and more messages than fit into the queues of a publisher and its subscriber."""


@attrs.frozen
class Plain:
    """A message without the capture."""

    number: int


NAMED = pytest.mark.parametrize(
    ("pattern", "kind", "captures"), [("a.b", Plain, {}), ("a.{x}", Numbered, {}), ("a.{x}", Plain, {"x": "b"})]
)


@NAMED
@pytest.mark.parametrize("keep", [None, "last"])
def test_messages_without_room_wait_whatever_names_their_topic(
    pattern: str, kind: Any, captures: dict[str, str], keep: Literal["last"] | None
) -> None:
    """With overflow="wait" a waiting message keeps its topic and its order."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context, overflow="wait")
    publication = app.publisher(pattern, kind, keep=keep)
    with joined(app, context, room=ROOM) as run:
        waits = [publication.publish(kind(number), **captures) is not DONE for number in range(MANY)]
        assert not waits[0]
        assert waits[-1]
        got: list[Frame] = []
        while len(got) < MANY:
            got += run.read()
            run.clock.advance(0.01)
        assert [message["number"] for frame in got for message in frame.messages] == list(range(MANY))
        assert {frame.topic for frame in got} == {"a.b"}
        assert [frame.header.sequence for frame in got] == list(range(1, MANY + 1))
        assert [message["number"] for message in run.kept.values()] == ([MANY - 1] if keep else [])


@NAMED
def test_a_message_without_room_is_refused_whatever_names_its_topic(
    pattern: str, kind: Any, captures: dict[str, str]
) -> None:
    """With overflow="raise" a refused message uses up no number."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context, overflow="raise")
    publication = app.publisher(pattern, kind)
    with joined(app, context, room=ROOM) as run:
        with pytest.raises(HighWaterMarkError, match=r"'a\.b'"):
            deque((publication.publish(kind(number), **captures) for number in range(MANY)), 0)
        got = run.read()
        run.turn()
        publication.publish(kind(0), **captures)
        assert [frame.header.sequence for frame in (*got, *run.read())] == list(range(1, len(got) + 2))


@pytest.mark.parametrize("options", [{"keep": "last"}, {"coalesce": True}])
def test_only_topics_that_another_publisher_may_use_are_looked_up(options: dict[str, Any]) -> None:
    """Only paths whose patterns overlap check for kept and held topics."""
    app, queue = App(), SendQueue(clock := Clock(), limit=1000, timeout=30, lost=lambda *_: None)
    app.publisher("a.{x}", int, **options)
    plain = app.publisher("{y}.{x}", int)
    plan = app.compile()
    paths = Paths(plan.choices, Stats(), lambda: 1, lambda frame: None, queue, None, {b"a.b": b""})
    coalescer = Coalescer(clock, lambda: 1, Stats(), limit=1000, check=lambda *_: None, hold=None, send=lambda *_: None)
    coalescer.windows[b"a.b"] = Held(1)
    paths.open([(outlet.publication, outlet.pattern) for outlet in plan.parts.outlets], coalescer)
    for name, meets in {"a.b": True, "{y}.b": True, "c.b": False, "a": False, "a.b.c": False, "c.{x}": False}.items():
        keeping = paths._meeting(parse(name), paths._keeping)
        assert bool(keeping) == (meets and "keep" in options)
        assert paths._may_be_held(parse(name)) == (meets and "coalesce" in options)
        guard = paths._guard(name.replace("{y}", "a").replace("{x}", "b").encode(), keeping)
        assert (guard is not None) == meets, name
    assert paths._guard(b"c.b", paths._meeting(plain.pattern, paths._keeping)) is None


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "a.b", False),
        ("a.{x}", "a.b", True),
        ("a.{x}", "b.{x}", False),
        ("a.{x}", "{y}.b", True),
        ("{x}.{y}", "a.b.c", False),
        ("{x}.b.{y}", "a.{z}.c", True),
        ("{x}.b.{y}", "a.c.{z}", False),
    ],
)
def test_patterns_overlap_if_they_have_a_topic_in_common(one: str, other: str, overlap: bool) -> None:
    """Two patterns overlap if both can produce the same topic."""
    assert parse(one).overlaps(parse(other)) == overlap
    assert parse(other).overlaps(parse(one)) == overlap


# -- frames of a fast path ------------------------------------------------------------------------------------

PREFIXES = [b"", b"a", b"a.", b"a.b", b"b", *(b"a.b"[:2] + b"x" * length for length in range(20))]

CHANGES = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "publish", "publish", "beat"]), st.sampled_from(PREFIXES[:5])),
    max_size=40,
)


def session(clock: Clock, times: Iterator[int]) -> PublisherSession:
    """Return a publisher's session whose control frames are ignored."""
    send_queue = SendQueue(clock, limit=1000, timeout=30, lost=lambda *_: None)
    log = logging.getLogger("test")
    return PublisherSession(clock, send_queue, lambda frame: True, times.__next__, "app", "name", log)


def fast_frames(
    end: PublisherSession, topic: bytes, clock_ns: Callable[[], int], *, keeps: bool = False
) -> Callable[[bytes], bytes]:
    """Return a function that publishes a body on a fast path, and returns the frame."""
    frames: list[bytes] = []
    app = App(pub=ADDRESS)
    publication = app.publisher(topic.decode(), bytes, keep="last" if keeps else None)
    queue = SendQueue(Clock(), limit=1, timeout=1, lost=lambda *_: None)
    paths = Paths(app.compile().choices, Stats(), clock_ns, frames.append, queue, end, end.kept.messages)
    paths.open([(publication, publication.pattern)], None)
    made = paths.fast(publication, publication.pattern)
    assert made is not None
    path = made.path(PublicationPaths(bytes, 2, topic, "", {}, nothing, nothing, nothing))

    def frame(body: bytes) -> bytes:
        assert path.publish(body) is DONE
        return frames.pop()

    return frame


def nothing(*_: object) -> Awaitable[None]:
    """Fail, because the general path publishes nothing in these tests."""
    raise AssertionError("a message has left the fast path")


@given(CHANGES, st.booleans())
def test_a_fast_path_makes_the_frames_of_the_general_one(changes: list[tuple[str, bytes]], keeps: bool) -> None:
    """For random subscriptions, both paths make identical frames and beats."""
    clock, times = Clock(), count(1)
    ends = [session(clock, iter(times)) for _ in range(2)]
    ends[1].epoch = ends[0].epoch
    at = 0
    fast = fast_frames(ends[0], b"a.b", lambda: at, keeps=keeps)
    general = ends[1].framer(lambda: at, keeps=keeps)
    attempts = count(1)
    for what, prefix in changes:
        at += 1
        if what == "publish":
            assert fast(b"body") == general(b"a.b", 2, b"body", None)
        elif what == "beat":
            clock.advance(0.6)
            beats = [end.counters.beats(clock.seconds()) for end in ends]
            assert beats[0] == beats[1]
        else:
            marker = pack_marker(7 << 16 | next(attempts), (prefix,))
            for end in ends:
                for each in (prefix, marker):
                    end.counters.subscribe(each, clock.seconds()) if what == "join" else None
                if what == "join":
                    list(end.counters.numbers(end.counters.markers[marker]))
                else:
                    end.counters.withdraw(prefix, clock.seconds())


@pytest.mark.parametrize("number", [0, 1, 2, 16, 17, 20])
def test_a_fast_path_carries_as_many_counters_as_the_general_one(number: int) -> None:
    """Topics with none, one, several, and too many subscriptions for a header."""
    topic, clock = b"a" * 30, Clock()
    ends: Sequence[PublisherSession] = [session(clock, count(1)) for _ in range(2)]
    ends[1].epoch = ends[0].epoch
    prefixes = tuple(topic[: length + 1] for length in range(number))
    for end in ends:
        for prefix in prefixes:
            end.counters.subscribe(prefix, 0.0)
        marker = end.counters.subscribe(pack_marker(7 << 16 | 1, prefixes), 0.0)
        assert marker is not None
        assert len(list(end.counters.numbers(marker))) == number
    fast = fast_frames(ends[0], topic, lambda: 5)
    general = ends[1].framer(lambda: 5, keeps=False)
    for _ in range(3):
        assert fast(b"body") == general(topic, 2, b"body", None)
    ends[0].counters.take_back(topic)
    ends[1].counters.take_back(topic)
    assert fast(b"body") == general(topic, 2, b"body", None)
