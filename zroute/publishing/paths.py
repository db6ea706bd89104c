"""The functions that publish messages, with as few steps as possible.

A message takes one of two paths:

- The **fast path** of its topic only encodes, frames and sends. It is created at the first message of the topic, and
  stores all values that every message of the topic shares.
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

While a topic is in one of these states, its fast path passes messages to the general path.

The fast path contains its code directly instead of calling shared functions, because a Python call costs a noticeable
part of the publishing time.
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
from zroute.errors import EncodeError, HighWaterMarkError, WrongThreadError
from zroute.messages.codecs import JSON, MSGPACK, TEXT
from zroute.messages.frames import Frames
from zroute.messages.topics import Pattern, matches
from zroute.messages.wire import NUL, Framer, counted_framer, framer, pack_headers, several_numbers, topic_header
from zroute.publishing.choices import Choices
from zroute.publishing.coalescer import Coalescer
from zroute.publishing.counters import Counter, Cover
from zroute.publishing.history import Ring, recording
from zroute.publishing.publication import DONE, Emit, FastPath, MakeFastPath, Publication, Write
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.publishing.snapshots import Snapshots
from zroute.stats import Stats
from zroute.transport import TransportSession

__all__ = ["Paths", "check_message"]

# The bodies of these codecs never begin with the magic bytes of a tracked header, so they need no check for it.
_NEVER_MAGIC = frozenset({MSGPACK.number, JSON.number, TEXT.number})

Guard = Callable[[], bool]
"""A function that returns True while a topic is kept, held or waiting."""

Send = Callable[[Any], "bool | None"]
"""A function that sends a frame; it returns False while a subscriber's queue is full."""

Settle = Callable[["bool | None", bytes], bool]
"""A function that completes an attempt to send a body, and returns True if the body was sent.

If the publication has ``keep``, the function keeps a sent body. If the attempt returned False, the function releases
the message's number.
"""

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
        if isinstance(self.session, PublisherSession):
            for publication in dict.fromkeys(publication for publication, _ in publications):
                if publication.history is not None:
                    ring = self._rings[publication] = self.session.ring(publication.history)
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
        """Return a factory for the fast paths of ``publication``, or None."""
        if self.choices.multipart or (self._coalescer is not None and self.choices.coalesces(publication)):
            return None
        keeps = publication.keep is not None
        # A path that keeps its messages itself need not ask whether the topic is kept.
        keeping = () if keeps else self._meeting(pattern, self._keeping)
        send = self._sender(publication)

        def make(topic: bytes, number: int, write: Write, general: FastPath) -> FastPath:
            return self._make_fast_path(topic, number, write, general, send, keeps, self._guard(topic, keeping))

        return make

    def _make_fast_path(
        self, topic: bytes, number: int, write: Write, general: FastPath, send: Send, keeps: bool, guard: Guard | None
    ) -> FastPath:
        """Return the fast path of ``topic``, a single function for all settings.

        A message that it can't send is passed to ``general``, which queues the message or raises an error.
        """
        stats, limit, thread = self.stats, self.choices.max_message, self._thread
        frame, settle = self._topic_framer(topic, number, keeps)

        # This function uses few variables of the outer function, because each call copies them.
        def publish(message: Any, captures: Mapping[str, object] | None) -> Awaitable[None]:
            if captures or (guard is not None and guard()):
                return general(message, captures)
            try:
                body = write(message)
            # The general path encodes the message again, and raises the error with the name of the publication.
            except EncodeError:
                pass
            else:
                if len(body) <= limit and get_ident() == thread:
                    sent = send(frame(body))
                    if settle is None or settle(sent, body):
                        stats.published += 1
                        return DONE
            return general(message, None)

        return publish

    def _guard(self, topic: bytes, keeping: Iterable[Pattern]) -> Guard | None:
        """Return a function that returns True while ``topic`` must use the general path.

        Return None if the topic can always use the fast path.
        """
        guards: list[Callable[[bytes], bool]] = []
        if self.choices.overflow != "drop":
            # A later message must not overtake the messages of its topic that wait in the queue.
            guards.append(self.queue.delays)
        if self.kept is not None and any(matches(each, topic) is not None for each in keeping):
            guards.append(self.kept.__contains__)
        if self.snapshots is not None and any(matches(each, topic) is not None for each in self.snapshots.patterns):
            guards.append(self.snapshots.making.__contains__)
        if self._coalescer is not None and self._may_be_held(topic):
            guards.append(self._coalescer.windows.__contains__)
        if len(guards) < 2:
            return partial(guards[0], topic) if guards else None
        return lambda: any(guard(topic) for guard in guards)

    def _topic_framer(self, topic: bytes, codec: int, keeps: bool) -> tuple[Callable[[bytes], Any], Settle | None]:
        """Return a framer for one topic and codec, and a `Settle` or None."""
        drops = self.choices.overflow == "drop"
        if self.session is not None:
            numbered, settle = _counting_framer(self.session, topic, codec, self.clock_ns, keeps)
            return numbered, settle if keeps or not drops else None
        # Without numbers there is nothing to take back, so the result of the attempt is enough.
        refused: Settle | None = None if drops else lambda sent, _body: sent is not False
        # A bound method of bytes, so that framing a message runs no Python code.
        if self.choices.wire == "plain" and codec in _NEVER_MAGIC:
            return (topic + NUL).__add__, refused
        frame: Callable[..., Any] = self._frames(keeps=keeps)
        return lambda body: frame(topic, codec, body, None), refused

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


def _counting_framer(
    session: PublisherSession | TransportSession, topic: bytes, codec: int, clock_ns: Callable[[], int], keeps: bool
) -> tuple[Callable[[bytes], bytes], Settle]:
    """Return a framer that numbers the messages of one topic, and its `Settle`.

    Most topics have at most one subscription. The number of that subscription is incremented here, because calls of
    `Counters.count` and of a header function would take a tenth of the publishing time.
    """
    counters, count, keep = session.counters, session.counters.count, session.kept.keep
    # No version is negative, so the first message calls `look`.
    version, sent_at = -1, 0
    cover: Cover = Cover((), (), moved=True)
    one: Counter | None = None
    header: Callable[..., bytes] = bytes

    def frame(body: bytes) -> bytes:
        nonlocal sent_at
        if version != counters.version:  # subscriptions have changed
            look()
        sent_at = clock_ns()
        if one is None:
            return header(count(topic), sent_at) + body
        one.number += 1
        if not cover.moved:
            counters.note(cover)
        return header(one.number, sent_at) + body

    def look() -> None:
        nonlocal version, cover, one, header
        version, found = counters.version, counters.cover(topic)
        lengths = tuple(counter.length for counter in found.carried)
        header = topic_header(topic, codec, lengths, epoch=session.epoch, keeps=keeps)
        # A header carries up to 16 counters, so a single carried counter is the only counter of the topic.
        if len(lengths) == 1:
            cover, one = found, found.counters[0]
        else:
            one, header = None, several_numbers(lengths)(header)

    def settle(sent: bool | None, body: bytes) -> bool:
        if sent is False:
            counters.take_back(topic)
            return False
        if keeps:
            keep(topic, codec, body, None, sent_at)
        return True

    return frame, settle


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
