"""Paths: what publishes a message of one publication, or to one topic, in the fewest steps that are right for it.

A message takes one of two paths:

- The **fast path** of its topic does one thing only: encode, frame, send. Everything else is bound to it when it is
  made, at the first message to its topic.
- The **general path** of its publication (an `Emit`) takes any topic and headers, and does what else is to be done.

Three things can happen to a topic on behalf of another publication. Each is decided by patterns when a path is made,
and costs those messages one look-up whose topic it may concern. All others pay nothing for it:

========== ======================================== =========================================================
a topic is because                                  then a message of it, from any publication
========== ======================================== =========================================================
kept       a ``keep="last"`` publisher has used it  says so in its header, and becomes the one that is kept
held       coalesced messages of it wait to be sent sends those first
waiting    a subscriber has no room (not "drop")    waits behind the others, or is refused
========== ======================================== =========================================================

A fast path leaves such a message to the general one, at the moment when its topic is any of these.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from threading import get_ident
from typing import Any

import attrs

from zroute.errors import EncodeError, HighWaterMarkError, WrongThreadError
from zroute.messages.codecs import JSON, MSGPACK, TEXT
from zroute.messages.topics import Pattern, matches
from zroute.messages.wire import NUL, Framer, counted_framer, framer, pack_headers, several_numbers, topic_header
from zroute.publishing.choices import Choices
from zroute.publishing.coalescer import Coalescer
from zroute.publishing.counters import Counter, Cover
from zroute.publishing.publication import DONE, Emit, FastPath, MakeFastPath, Publication, Write
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.stats import Stats

__all__ = ["Paths", "check_message"]

_NEVER_MAGIC = frozenset({MSGPACK.number, JSON.number, TEXT.number})

Guard = Callable[[], bool]
"""True while a topic is kept, held or waiting."""

Settle = Callable[["bool | None", bytes], bool]
"""Keeps a body that was sent, if that is to be; or takes back the number of one that was not (False), and is False."""

Attempt = Callable[[bytes, int, bytes, "Mapping[str, Any] | None", int], bool]
"""Sends ``(topic, codec number, body, headers, time of publishing in ns)``; False while there is no room."""


@attrs.define(eq=False)
class Paths:
    """The paths of one run of a publisher, made on its thread.

    ``send`` takes a frame, or is False while there is no room for it. ``session`` numbers messages, on the tracked wire
    of a real transport. ``kept`` holds the topics of which a message is kept; None on wires that keep none. `open`
    comes first.
    """

    choices: Choices
    stats: Stats
    clock_ns: Callable[[], int]
    send: Callable[[Any], bool | None]
    queue: SendQueue
    session: PublisherSession | None
    kept: Container[bytes] | None
    _coalescer: Coalescer | None = attrs.field(init=False, default=None)
    _keeping: Sequence[Pattern] = attrs.field(init=False, default=())
    _holding: Sequence[Pattern] = attrs.field(init=False, default=())
    _emits: dict[tuple[bool, bool], Emit] = attrs.field(init=False, factory=dict)
    _framers: dict[bool, Framer] = attrs.field(init=False, factory=dict)
    _epoch: int = attrs.field(init=False, factory=lambda: secrets.randbits(64))
    _number: Callable[[], int] = attrs.field(init=False, factory=lambda: count(1).__next__)
    _thread: int = attrs.field(init=False, factory=get_ident)

    def open(self, publications: Iterable[tuple[Publication[Any], Pattern]], coalescer: Coalescer | None) -> None:
        """Decide by all ``publications``, and their patterns with prefixes, which topics may be kept or held."""
        self._coalescer = coalescer
        self._keeping = [pattern for publication, pattern in publications if publication.keep]
        self._holding = [pattern for publication, pattern in publications if self.choices.coalesces(publication)]

    # -- general paths

    def general(self, publication: Publication[Any] | None = None, pattern: Pattern | None = None) -> Emit:
        """The path for all messages of ``publication``; without one, for those of any topic."""
        keeps = publication is not None and publication.keep is not None
        emit = self._emit(keeps, bool(self._meeting(pattern, self._keeping)))
        if self._coalescer is None:
            return emit
        how = self.choices.coalesces(publication)
        if how is not None:
            together = self._coalescer.together(how, emit)
            return self._coalescer.kept(together) if keeps else together
        return self._coalescer.alone(emit) if self._may_be_held(pattern) else emit

    def _emit(self, keeps: bool, may_be_kept: bool) -> Emit:
        """What publishes messages that are kept (``keeps``), or whose topics others may keep."""
        found = self._emits.get((keeps, may_be_kept))
        if found is None:
            kept = self.kept if may_be_kept and self.kept is not None else ()
            make = self._publish_or_drop if self.choices.overflow == "drop" else self._publish_or_wait
            found = self._emits[keeps, may_be_kept] = make(keeps, kept)
        return found

    def _publish_or_drop(self, keeps: bool, kept: Container[bytes]) -> Emit:
        """A subscriber without room misses the message, and counts it."""
        stats, limit, thread = self.stats, self.choices.max_message, self._thread
        clock_ns, send = self.clock_ns, self.send
        frame, attempt = self._frames(keeps=False), self._attempt(keeps, kept)

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

    def _publish_or_wait(self, keeps: bool, kept: Container[bytes]) -> Emit:
        """Nothing is dropped: see `zroute.publishing.send_queue`."""
        stats, limit, thread, clock_ns = self.stats, self.choices.max_message, self._thread, self.clock_ns
        queue, waits, attempt = self.queue, self.choices.overflow == "wait", self._attempt(keeps, kept)

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            check_message(topic, body, limit, thread)
            if headers:
                pack_headers(headers)  # a bad one is an error here, not when its turn has come
            done, at = DONE, clock_ns()
            if waits:
                done = queue.send(topic, partial(attempt, topic, number, body, headers, at))
            elif not attempt(topic, number, body, headers, at):
                raise HighWaterMarkError(
                    f"{topic.decode()!r}: the queue of a subscriber is full, and nobody was sent this: publish later, "
                    "less often, or with App(overflow='wait')"
                )
            stats.published += 1
            return done

        return emit

    def _attempt(self, keeps: bool, kept: Container[bytes]) -> Attempt:
        """Frame, send and keep: how old a message is when it arrives, is counted from when it was published."""
        published_at = 0
        plain, flagged = (self._framer(lambda: published_at, keeps=each) for each in (False, True))
        session, stats, send = self.session, self.stats, self.send

        def attempt(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None, at: int) -> bool:
            nonlocal published_at
            published_at, is_kept = at, keeps or topic in kept
            if send((flagged if is_kept else plain)(topic, number, body, headers)) is False:
                stats.send_retries += 1
                if session is not None:
                    session.counters.take_back(topic)  # a number that nobody was sent would be a loss to all
                return False
            if is_kept and session is not None:
                session.kept.keep(topic, number, body, headers, at)
            return True

        return attempt

    def _frames(self, *, keeps: bool) -> Framer:
        """The framer of all paths that frame at the moment of publishing."""
        if keeps not in self._framers:
            self._framers[keeps] = self._framer(self.clock_ns, keeps=keeps)
        return self._framers[keeps]

    def _framer(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """What makes frames of any message; with ``keeps`` they say that the message is kept for those who join."""
        if self.session is not None:
            return self.session.framer(clock_ns, keeps=keeps)
        if keeps and self.choices.wire == "tracked":
            return counted_framer(epoch=self._epoch, count=self._count, clock_ns=clock_ns, keeps=True)
        return framer(self.choices.wire, epoch=self._epoch, next_sequence=self._number, clock_ns=clock_ns)

    def _count(self, _topic: bytes) -> tuple[Counter]:
        """Number all messages in one row, on the tracked wire of a transport that does not tell of subscriptions."""
        return (Counter(b"", 0, self._number(), 0),)

    # -- fast paths

    def fast(self, publication: Publication[Any], pattern: Pattern) -> MakeFastPath | None:
        """What makes the fast paths of ``publication``; None if it has none."""
        if self.choices.wire == "multipart" or (self._coalescer is not None and self.choices.coalesces(publication)):
            return None
        keeps = publication.keep is not None
        keeping = () if keeps else self._meeting(pattern, self._keeping)

        def make(topic: bytes, number: int, write: Write, general: FastPath) -> FastPath:
            return self._make_fast_path(topic, number, write, general, keeps, self._guard(topic, keeping))

        return make

    def _make_fast_path(
        self, topic: bytes, number: int, write: Write, general: FastPath, keeps: bool, guard: Guard | None
    ) -> FastPath:
        """Publish messages to ``topic``: one function for all settings, since each one more would repeat these lines.

        What is not sent here is left to ``general``: it waits, is refused, or is an error that says where it is. This
        function names as few variables of the outer one as it can, as each call copies them.
        """
        stats, limit, thread, send = self.stats, self.choices.max_message, self._thread, self.send
        frame, settle = self._topic_framer(topic, number, keeps)

        def publish(message: Any, captures: Mapping[str, object] | None) -> Awaitable[None]:
            if captures or (guard is not None and guard()):
                return general(message, captures)
            try:
                body = write(message)
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
        """What says that a message of ``topic`` must take the general path now; None if that can't be."""
        guards: list[Callable[[bytes], bool]] = []
        if self.choices.overflow != "drop":
            guards.append(self.queue.delays)
        if self.kept is not None and any(matches(each, topic) is not None for each in keeping):
            guards.append(self.kept.__contains__)
        if self._coalescer is not None and self._may_be_held(topic):
            guards.append(self._coalescer.windows.__contains__)
        if len(guards) < 2:
            return partial(guards[0], topic) if guards else None
        return lambda: any(guard(topic) for guard in guards)

    def _topic_framer(self, topic: bytes, codec: int, keeps: bool) -> tuple[Callable[[bytes], Any], Settle | None]:
        """What makes frames of bodies of one topic and codec; and what settles them, if they need it."""
        drops = self.choices.overflow == "drop"
        if self.session is not None:
            numbered, settle = _counting_framer(self.session, topic, codec, self.clock_ns, keeps)
            return numbered, settle if keeps or not drops else None
        refused: Settle | None = None if drops else lambda sent, _body: sent is not False
        if self.choices.wire == "plain" and codec in _NEVER_MAGIC:
            return (topic + NUL).__add__, refused
        frame: Callable[..., Any] = self._frames(keeps=keeps)
        return lambda body: frame(topic, codec, body, None), refused

    # -- which topics may be kept or held

    @staticmethod
    def _meeting(pattern: Pattern | None, others: Sequence[Pattern]) -> Sequence[Pattern]:
        """Return those of ``others`` that have a topic in common with ``pattern``, or with any if it is None."""
        return others if pattern is None else [each for each in others if each.overlaps(pattern)]

    def _may_be_held(self, which: Pattern | bytes | None) -> bool:
        """Return True if messages of a topic, or of some topic of a pattern, may be held."""
        if which is None or self.choices.coalesces() is not None:
            return True
        if isinstance(which, bytes):
            return any(matches(each, which) is not None for each in self._holding)
        return bool(self._meeting(which, self._holding))


def _counting_framer(
    session: PublisherSession, topic: bytes, codec: int, clock_ns: Callable[[], int], keeps: bool
) -> tuple[Callable[[bytes], bytes], Settle]:
    """What makes numbered frames of one topic, and what settles the last one.

    Most topics are under no subscription or under one, which is counted here: a call of `Counters.count` and one of a
    header maker would cost a tenth of what publishing takes.
    """
    counters, count, keep = session.counters, session.counters.count, session.kept.keep
    version, sent_at = -1, 0
    cover: Cover = Cover((), (), moved=True)
    one: Counter | None = None
    header: Callable[..., bytes] = bytes

    def frame(body: bytes) -> bytes:
        nonlocal sent_at
        if version != counters.version:  # only when subscriptions have come or gone
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
    """Raise WrongThreadError outside of ``thread``, and EncodeError for a body of more than ``limit`` bytes."""
    if get_ident() != thread:
        raise WrongThreadError(
            f"{topic.decode()!r} was published from another thread, which ZeroMQ does not survive: use "
            "app.from_thread(publication.publish, message) or app.from_thread(app.publish, topic, message)"
        )
    if len(body) > limit:
        raise EncodeError(
            f"{topic.decode()!r}: a body of {len(body)} bytes, over max_message={limit}: send less, or "
            "raise max_message here and at the readers"
        )
