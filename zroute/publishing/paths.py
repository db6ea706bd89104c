"""The functions that publish messages, with as few steps as possible.

A message takes one of two paths:

- The **fast path** of its publication is one generated function (`zroute.publishing.fast_path`), which only encodes,
  frames and sends. The values that every message of a topic shares are stored at the first message of the topic.
- The **general path** of its publication (an `Emit`) accepts any topic and headers, and supports all options.

Other publications can put a topic into one of three states, which change how its messages must be sent. When a path is
created, the patterns of all publications show which states are possible. Each possible state costs one look-up per
message; the others cost nothing.

=============== =========================================== ===================================================
state of a topic cause                                      effect on a message from any publication
=============== =========================================== ===================================================
kept            a ``keep="last"`` publisher has used it     the message is kept, and its header says so
held            coalesced messages wait to be sent          the held messages are sent first
waiting         a queue is full (``overflow`` not "drop")   the message also waits, or is refused
=============== =========================================== ===================================================

While a topic is in one of these states, the fast path passes its messages to the general path.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from threading import get_ident
from typing import Any

import attrs

from zroute.awaiting import way_to_the_reactor
from zroute.codegen import Inline
from zroute.errors import EncodeError, HighWaterMarkError, WrongThreadError
from zroute.messages.codecs import JSON, MSGPACK, TEXT
from zroute.messages.frames import Frames
from zroute.messages.topics import Pattern, matches
from zroute.messages.wire import NUL, Framer, counted_framer, framer, pack_headers, several_numbers, topic_header
from zroute.publishing.choices import Choices
from zroute.publishing.coalescer import Coalescer
from zroute.publishing.counters import Counter
from zroute.publishing.fast_path import (
    NUMBERED,
    FastPath,
    Guard,
    MakeFastPath,
    PublicationPaths,
    TopicState,
    counting_header,
    make_fast_path,
)
from zroute.publishing.history import History, Ring, recording
from zroute.publishing.publication import DONE, Emit, Publication
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.publishing.snapshots import Snapshots
from zroute.stats import Stats
from zroute.transport import TransportSession

__all__ = ["Paths", "check_message"]

# The bodies of these codecs never begin with the magic bytes of a tracked header, so they need no check for it.
_NEVER_MAGIC = frozenset({MSGPACK.number, JSON.number, TEXT.number})

Send = Callable[[Any], "bool | None"]
"""A function that sends a frame; it returns False while a subscriber's queue is full."""

Attempt = Callable[[bytes, int, bytes, "Mapping[str, Any] | None", int], bool]
"""A function that sends ``(topic, codec number, body, headers, time of publishing in ns)``.

It returns False while a subscriber's queue is full.
"""


@attrs.define(eq=False)
class Paths:
    """The paths of one run of a publisher.

    The paths are created on the reactor's thread. Call `open` before any other method.

    Attributes:
        choices: The app's options.
        stats: The counters of the run.
        clock_ns: A function that returns the time in nanoseconds since the Unix epoch.
        send: A function that sends a frame; it returns False while a subscriber's queue is full.
        queue: The queue for messages that cannot be sent yet.
        session: The session that numbers messages; None except on the tracked wire.
        kept: The topics with a kept message; None if the transport keeps no messages.
        own: The session of a transport that has its own, also on the plain wire; None on ZeroMQ.
        ring: A function that returns the kept frames of a publication with a history; None if the transport has none.
        snapshots: The snapshots of the publisher; None if no publication has any.
    """

    choices: Choices
    stats: Stats
    clock_ns: Callable[[], int]
    send: Send
    queue: SendQueue
    session: PublisherSession | TransportSession | None
    kept: Container[bytes] | None
    own: TransportSession | None = None
    snapshots: Snapshots | None = attrs.field(init=False, default=None)
    ring: Callable[[History], Ring | None] = attrs.field(init=False, default=lambda history: None)
    # One bound method for all topics.
    _delays: Guard = attrs.field(init=False, default=attrs.Factory(lambda self: self.queue.delays, takes_self=True))
    _coalescer: Coalescer | None = attrs.field(init=False, default=None)
    _keeping: Sequence[Pattern] = attrs.field(init=False, default=())
    _holding: Sequence[Pattern] = attrs.field(init=False, default=())
    _emits: dict[tuple[bool, bool, Send], Emit] = attrs.field(init=False, factory=dict)
    _rings: dict[Publication[Any], Ring] = attrs.field(init=False, factory=dict)
    _senders: dict[Publication[Any], Send] = attrs.field(init=False, factory=dict)
    _framers: dict[bool, Framer] = attrs.field(init=False, factory=dict)
    epoch: int = attrs.field(init=False, factory=lambda: secrets.randbits(64))
    _number: Callable[[], int] = attrs.field(init=False, factory=lambda: count(1).__next__)
    _thread: int = attrs.field(init=False, factory=get_ident)

    def open(self, publications: Iterable[tuple[Publication[Any], Pattern]], coalescer: Coalescer | None) -> None:
        """Collect the patterns of kept and held topics, and create the histories.

        ``publications`` contains each publication with its whole pattern, including prefixes.
        """
        publications = tuple(publications)
        self._coalescer = coalescer
        for publication in dict.fromkeys(publication for publication, _ in publications):
            if publication.history is not None and (ring := self.ring(publication.history)) is not None:
                self._rings[publication] = ring
                self._senders[publication] = recording(self.send, ring)
        self._keeping = [pattern for publication, pattern in publications if publication.keep]
        self._holding = [pattern for publication, pattern in publications if self.choices.coalesces(publication)]

    # -- general paths

    def general(self, publication: Publication[Any] | None = None, pattern: Pattern | None = None) -> Emit:
        """Return the general path of ``publication``; None stands for `App.publish`."""
        emit = self._general(publication, pattern)
        met = self.snapshots is not None and bool(self._meeting(pattern, self.snapshots.patterns))
        return self.snapshots.refusing(emit) if met and self.snapshots is not None else emit

    def _general(self, publication: Publication[Any] | None, pattern: Pattern | None) -> Emit:
        keeps = publication is not None and publication.keep is not None
        send = self._sender(publication)
        emit = self._emit(keeps, bool(self._meeting(pattern, self._keeping)), send)
        if self._coalescer is None:
            return emit
        how = self.choices.coalesces(publication)
        if how is not None:
            together = self._coalescer.together(how, emit)
            ring = None if publication is None else self._rings.get(publication)
            if ring is not None:
                together = self._coalescer.recorded(together, ring)
            return self._coalescer.kept(together) if keeps else together
        return self._coalescer.alone(emit) if self._may_be_held(pattern) else emit

    def _sender(self, publication: Publication[Any] | None) -> Send:
        """Return the function that sends and records frames of ``publication``."""
        return self.send if publication is None else self._senders.get(publication, self.send)

    def _emit(self, keeps: bool, may_be_kept: bool, send: Send) -> Emit:
        """Return the shared `Emit` for one kind of publication.

        ``keeps`` is True if the publication keeps its messages. ``may_be_kept`` is True if other publications may keep
        messages of its topics. ``send`` sends its frames.
        """
        found = self._emits.get((keeps, may_be_kept, send))
        if found is None:
            kept = self.kept if may_be_kept and self.kept is not None else ()
            make = self._publish_or_drop if self.choices.overflow == "drop" else self._publish_or_wait
            found = self._emits[keeps, may_be_kept, send] = make(keeps, kept, send)
        return found

    def _publish_or_drop(self, keeps: bool, kept: Container[bytes], send: Send) -> Emit:
        """Return an `Emit` for ``overflow="drop"``.

        A subscriber whose queue is full does not receive the message.
        """
        stats, limit, thread = self.stats, self.choices.max_message, self._thread
        clock_ns = self.clock_ns
        frame, attempt = self._frames(keeps=False), self._attempt(keeps, kept, send)

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            if get_ident() != thread or len(body) > limit:
                check_message(topic, body, limit, thread)
            if keeps or topic in kept:
                attempt(topic, number, body, headers, clock_ns())
            else:
                send(frame(topic, number, body, headers))
            stats.published += 1
            return DONE

        return emit

    def _publish_or_wait(self, keeps: bool, kept: Container[bytes], send: Send) -> Emit:
        """Return an `Emit` for ``overflow="raise"`` and ``"wait"``.

        The `Emit` drops no message. `zroute.publishing.send_queue` explains the queue.
        """
        stats, limit, thread, clock_ns = self.stats, self.choices.max_message, self._thread, self.clock_ns
        queue, waits, attempt = self.queue, self.choices.overflow == "wait", self._attempt(keeps, kept, send)
        own = self.own
        full = "the queue of a subscriber is full" if own is None else own.full

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            check_message(topic, body, limit, thread)
            if own is not None:
                own.check(topic, body, headers)
            if headers:
                pack_headers(headers)  # raises an error for invalid headers now, instead of when the message is sent
            done, at = DONE, clock_ns()
            if waits:
                done = queue.send(topic, partial(attempt, topic, number, body, headers, at))
            elif not attempt(topic, number, body, headers, at):
                raise HighWaterMarkError(
                    f"cannot publish to {topic.decode()!r}: {full}, so no subscriber receives the message; publish "
                    "later or less often, or use App(overflow='wait')"
                )
            stats.published += 1
            return done

        return self._with_topics_checked(emit)

    def _with_topics_checked(self, emit: Emit) -> Emit:
        """Return ``emit`` with a check of topics if the wire is a stated form.

        Topics are checked before messages are queued, because the error must be raised to the caller of ``publish``.
        """
        wire = self.choices.wire
        if not isinstance(wire, Frames):
            return emit

        def checked(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            wire.check_topic(topic)
            if headers:
                frame(topic, number, body, headers)  # raises an error: a stated form carries no headers
            return emit(topic, number, body, headers)

        frame = self._frames(keeps=False)
        return checked

    def _attempt(self, keeps: bool, kept: Container[bytes], send: Send) -> Attempt:
        """Return a function that frames, sends and keeps a message.

        The header contains the time of publishing, so the age of a message includes its time in the queue.
        """
        published_at = 0
        # The framers read ``published_at``, which `attempt` sets, as the clock: a retry keeps the time of publishing.
        plain, flagged = (self._framer(lambda: published_at, keeps=each) for each in (False, True))
        session, stats = self.session, self.stats

        def attempt(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None, at: int) -> bool:
            nonlocal published_at
            published_at, is_kept = at, keeps or topic in kept
            if send((flagged if is_kept else plain)(topic, number, body, headers)) is False:
                stats.send_retries += 1
                if session is not None:
                    session.counters.take_back(topic)  # subscribers would report an unused number as a loss
                return False
            if is_kept and session is not None:
                session.kept.keep(topic, number, body, headers, at)
            return True

        return attempt

    def _frames(self, *, keeps: bool) -> Framer:
        """Return the shared framer of the paths that frame at the time of publishing."""
        if keeps not in self._framers:
            self._framers[keeps] = self._framer(self.clock_ns, keeps=keeps)
        return self._framers[keeps]

    def _framer(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """Return a framer for any message.

        If ``keeps`` is True, the headers state that the message is kept for new subscribers.
        """
        if self.session is not None:
            return self.session.framer(clock_ns, keeps=keeps)
        if keeps and self.choices.wire == "tracked":
            return counted_framer(epoch=self.epoch, count=self._count, clock_ns=clock_ns, keeps=True)
        return framer(self.choices.wire, epoch=self.epoch, next_sequence=self._number, clock_ns=clock_ns)

    def _count(self, _topic: bytes) -> tuple[Counter]:
        """Number all messages in one sequence, regardless of their topic.

        This method is used on the tracked wire if the transport does not report subscriptions.
        """
        return (Counter(b"", 0, self._number(), 0),)

    # -- fast paths

    def fast(self, publication: Publication[Any], pattern: Pattern) -> MakeFastPath | None:
        """Return the functions that make the fast path of ``publication``, or None."""
        if self.choices.multipart or (self._coalescer is not None and self.choices.coalesces(publication)):
            return None
        keeps = publication.keep is not None
        # A path that keeps its messages itself need not ask whether the topic is kept.
        keeping = () if keeps else self._meeting(pattern, self._keeping)
        send = self._sender(publication)

        def state(topic: bytes) -> TopicState:
            return TopicState(topic, topic + NUL, self._guard(topic, keeping))

        def path(publication: PublicationPaths) -> FastPath:
            rest, seldom = self._after_encoding(publication.codec, keeps, send)
            return make_fast_path(publication, state, self.choices.max_message, rest, seldom)

        return MakeFastPath(state, path)

    def _after_encoding(self, codec: int, keeps: bool, send: Send) -> tuple[Inline, Mapping[str, Any]]:
        """Return the lines of a fast path that frame and send ``body``.

        The second result contains the objects that the lines seldom use, by name. A message that they can't send is
        passed to the general path, which queues the message or raises an error.
        """
        names: dict[str, Any] = {"stats": self.stats, "DONE": DONE, "thread": self._thread}
        seldom: dict[str, Any] = {}
        lines: tuple[str, ...]
        undo: tuple[str, ...] = ()
        keep: tuple[str, ...] = ()
        if self.session is not None:
            counters, look = self.session.counters, _looking(self.session, codec, keeps)
            names |= {"counters": counters, "clock_ns": self.clock_ns}
            seldom |= {"look": look, "note": counters.note, "take_back": counters.take_back}
            lines, undo = NUMBERED, ("    rare.take_back(state.topic)",)
            if keeps:
                names |= {"keep": self.session.kept.keep}
                keep = (f"keep(state.topic, {codec}, body, None, sent_at)",)
        # The body of such a codec never looks like a tracked header, so the frame needs no check.
        elif self.choices.wire == "plain" and codec in _NEVER_MAGIC:
            lines = ("frame = state.start + body",)
        else:
            names |= {"frame_of": self._frames(keeps=keeps)}
            lines = (f"frame = frame_of(state.topic, {codec}, body, None)",)
        if self.choices.overflow == "drop":
            sending: Inline = getattr(send, "inline", Inline(("send(frame)",), {"send": send}))
            return Inline((*lines, *sending.lines, *keep), {**names, **sending.names}), seldom
        names |= {"send": send}
        refused = ("if send(frame) is False:", *undo, "    return rare.to_topic(message, state.topic)")
        return Inline((*lines, *refused, *keep), names), seldom

    def _guard(self, topic: bytes, keeping: Iterable[Pattern]) -> Guard | None:
        """Return a function that is True while a topic must use the general path.

        The function takes the topic. Return None if ``topic`` can always use the fast path.
        """
        guards: list[Callable[[bytes], bool]] = []
        if self.choices.overflow != "drop":
            # A later message must not overtake the messages of its topic that wait in the queue.
            guards.append(self._delays)
        if self.kept is not None and any(matches(each, topic) is not None for each in keeping):
            guards.append(self.kept.__contains__)
        if self.snapshots is not None and any(matches(each, topic) is not None for each in self.snapshots.patterns):
            guards.append(self.snapshots.making.__contains__)
        if self._coalescer is not None and self._may_be_held(topic):
            guards.append(self._coalescer.windows.__contains__)
        if len(guards) < 2:
            return guards[0] if guards else None
        return lambda topic: any(guard(topic) for guard in guards)

    # -- kept and held topics

    @staticmethod
    def _meeting(pattern: Pattern | None, others: Sequence[Pattern]) -> Sequence[Pattern]:
        """Return the ``others`` that share a topic with ``pattern``; None matches all."""
        return others if pattern is None else [each for each in others if each.overlaps(pattern)]

    def _may_be_held(self, which: Pattern | bytes | None) -> bool:
        """Return True if messages of a topic, or of any topic of a pattern, may be held."""
        if which is None or self.choices.coalesces() is not None:
            return True
        if isinstance(which, bytes):
            return any(matches(each, which) is not None for each in self._holding)
        return bool(self._meeting(which, self._holding))


def _looking(session: PublisherSession | TransportSession, codec: int, keeps: bool) -> Callable[[TopicState], None]:
    """Return a function that updates a topic's state when subscriptions have changed."""
    counters = session.counters

    def look(state: TopicState) -> None:
        topic = state.topic
        state.version, state.cover = counters.version, (found := counters.cover(topic))
        lengths = tuple(counter.length for counter in found.carried)
        header = topic_header(topic, codec, lengths, epoch=session.epoch, keeps=keeps)
        pack, (head,) = header.func, header.args
        # A header carries up to 16 counters, so a single carried counter is the only counter of the topic.
        if len(lengths) == 1:
            state.one, state.head, state.pack = found.counters[0], head, pack
            return
        state.one = None
        if found.counters is found.carried or found.counters == found.carried:
            made = counting_header(len(lengths))
            state.pack = made(pack, head, found, counters.note, *found.counters, *lengths)
        else:
            several, count = several_numbers(lengths)(header), counters.count
            state.pack = lambda sent_at: several(count(topic), sent_at)

    return look


def check_message(topic: bytes, body: bytes, limit: int, thread: int) -> None:
    """Check the thread and the size of a message.

    Raises:
        WrongThreadError: The caller is not on ``thread``.
        EncodeError: The body exceeds ``limit`` bytes.
    """
    if get_ident() != thread:
        raise WrongThreadError(
            f"cannot publish to {topic.decode()!r} from this thread, because ZeroMQ sockets are not thread-safe: "
            + way_to_the_reactor(
                "app.from_thread(publication.publish, message) or app.from_thread(app.publish, topic, message)"
            )
        )
    if len(body) > limit:
        raise EncodeError(
            f"cannot publish to {topic.decode()!r}: the body has {len(body)} bytes, more than "
            f"max_message={limit}; send a smaller message, or increase App(limits=Limits(max_message=…)) here and "
            "at the subscribers"
        )
