"""Outgoing: what one run of an app publishes, on its way from the encoder to the transport.

Messages are framed and numbered, kept for those who join, and held back while a subscriber has no room, as the app
says. What does not depend on a message is decided once, in `Outgoing.open`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from threading import get_ident
from typing import Any, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.awaiting import as_awaitable, within
from zroute.clock import Clock
from zroute.endpoints import Endpoint
from zroute.errors import EncodeError, HighWaterMarkError, NotReadyError, NotRunningError, UsageError, WrongThreadError
from zroute.logs import printable
from zroute.messages.budget import Budget
from zroute.messages.codecs import JSON, MSGPACK, TEXT
from zroute.messages.control import FAREWELL
from zroute.messages.topics import Pattern
from zroute.messages.wire import NUL, Framer, counted_framer, framer, pack_headers
from zroute.options import LINGER_DRAIN, OUTBOX, OUTBOX_SECONDS, TOPIC_CACHE
from zroute.publishing.choices import Choices
from zroute.publishing.coalescer import Coalescer, Held
from zroute.publishing.counters import Counter
from zroute.publishing.instances import Instance, publisher_name
from zroute.publishing.publication import DONE, Emit, Outlet, Publication, Short, Straight, Write
from zroute.publishing.send_queue import Outbox, Sent
from zroute.publishing.session import PublishingEnd
from zroute.publishing.subscriber_count import Audience
from zroute.stats import Stats
from zroute.throttle import Reports

__all__ = ["Outgoing", "Sending"]

_log = logging.getLogger("zroute")

_NEVER_MAGIC = frozenset({MSGPACK.number, JSON.number, TEXT.number})


class Topics(Protocol):
    """A set of topics."""

    def __contains__(self, topic: bytes, /) -> bool: ...


class Sending(Protocol):
    """What is needed here of whatever moves frames."""

    counts: bool
    """Whether subscriptions are told of, so that messages can be numbered and their loss counted."""

    @property
    def kept(self) -> Topics | None:
        """Topics of which a message is kept, if the transport plays joins by itself; else None."""

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """What sends a frame, or the parts of a message; None where there is nowhere to publish at."""

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """What sends, or returns False while a subscriber has no room."""

    @property
    def bound(self) -> Sequence[str]:
        """The addresses that are bound to publish at, as they were resolved."""

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Tell of each subscription at the publishing socket; False where there is none."""


class Outgoing:
    """The publishing side of one run of an app that made ``choices``, to ``endpoints``; ``wall`` gives Unix seconds."""

    def __init__(
        self,
        choices: Choices,
        clock: Clock,
        transport: Sending,
        endpoints: Sequence[Endpoint],
        stats: Stats,
        reports: Reports,
        wall: Callable[[], float],
    ) -> None:
        self._choices = choices
        self._clock = clock
        self._transport = transport
        self._endpoints = endpoints
        self._name = ""
        self._instance: Instance | None = None
        self._stats = stats
        self._reports = reports
        self._clock_ns = time.time_ns if wall is time.time else _ascending(wall)
        self._audience = Audience(clock, tracked=choices.wire == "tracked")
        self._outbox = Outbox(clock, limit=OUTBOX, timeout=OUTBOX_SECONDS, lost=self._unsent)
        self._epoch, self._numbers = secrets.randbits(64), count(1)
        self._outlets: tuple[Outlet, ...] = ()
        self._coalescer: Coalescer | None = None
        self._closed = False
        self._said_many = False
        self.publishing: PublishingEnd | None = None
        """What numbers messages, on the tracked wire."""

    def open(self, outlets: Iterable[Outlet]) -> Emit:
        """Let ``outlets`` publish from now on; what messages of no outlet are sent with is returned."""
        self._outlets = tuple(outlets)
        make = self._emitter()
        emit = make(keeps=False)
        emit_kept = make(keeps=True) if self._keeps else emit
        coalescer = self._coalescer = self._make_coalescer()

        straight = self._straight() if coalescer is None else None
        budget = Budget(TOPIC_CACHE, self._stats, self._many_topics)

        def choose(publication: Publication[Any] | None) -> Emit:
            chosen = emit_kept if publication is not None and publication.keep else emit
            if coalescer is None:
                return chosen
            how = self._choices.coalesces(publication)
            if how is None:
                return coalescer.alone(chosen)
            together = coalescer.together(how, chosen)
            return coalescer.kept(together) if chosen is emit_kept and chosen is not emit else together

        for outlet in self._outlets:
            outlet.open(choose(outlet.publication), self._gathered, straight, budget)
        return choose(None)

    async def send_rest(self, timeout: float) -> dict[str, int]:
        """Send what waits, within ``timeout`` seconds; what could not be, and how many of it. `close` comes next."""
        if self._coalescer is not None:
            self._coalescer.flush()
        with suppress(TimeoutError):
            await within(timeout, self._outbox.idle(), self._clock)
        given_up = self._outbox.close()
        return {"messages for subscribers that have no room": given_up} if given_up else {}

    async def goodbye(self, timeout: float) -> dict[str, int]:
        """Say goodbye to all, and wait until they have read it; how many have not, if that is a failure.

        For ``timeout`` seconds, and no longer than the sockets would be waited for. Nothing may be published behind
        it: it could be lost, and nobody would count it.
        """
        left: dict[str, int] = {}
        if self.publishing is None:
            return left
        with suppress(TimeoutError):
            await within(min(timeout, LINGER_DRAIN / 1000), self.publishing.goodbye(), self._clock)
        if unread := self.publishing.unread:
            _log.warning(
                "%s: %d subscribers have not read all that was sent to them: what is queued for them may be lost",
                self._choices.name,
                unread,
            )
            if self._choices.overflow != "drop":
                left["subscribers that have not read all"] = unread
        return left

    def close(self) -> None:
        """Nobody can publish any more, and who waits for subscribers is told."""
        self._closed = True
        for outlet in self._outlets:
            outlet.close()
        self._audience.close()

    def release(self) -> None:
        """Let another run of the app have the name of this one: everything has been said."""
        if self._instance is not None:
            self._instance.release()

    @property
    def identity(self) -> str:
        """What subscribers' logs call this run; empty on a wire that does not say it."""
        if self.publishing is None:
            return ""
        epoch = f"{self.publishing.epoch:016x}"
        return f"{printable(self._name)} ({epoch})" if self._name else epoch

    # -- what publications send through -------------------------------------------------------------------

    def _emitter(self) -> Callable[..., Emit]:
        """What makes an `Emit`: of one whose messages are kept (``keeps``), or of another."""
        choices, transport = self._choices, self._transport
        multipart = choices.wire == "multipart"
        send, try_send = transport.sender(multipart=multipart), transport.try_sender(multipart=multipart)
        if send is None or try_send is None:
            return lambda *, keeps: _nowhere(choices.name)
        if choices.wire == "tracked" and transport.counts:
            self.publishing = self._publishing_end(send, try_send)
        transport.announce(self._subscription)
        if choices.overflow == "drop":
            return partial(self._dropping, send)
        return partial(self._careful, try_send)

    def _publishing_end(self, send: Callable[[Any], None], try_send: Callable[[Any], bool]) -> PublishingEnd:
        def send_anyway(frame: bytes) -> bool:
            send(frame)
            return True

        drops = self._choices.overflow == "drop"
        self._name, self._instance = publisher_name(self._choices.name, self._endpoints, self._transport.bound)
        return PublishingEnd(
            self._clock,
            self._outbox,
            send_anyway if drops else try_send,  # on a socket that refuses, one that is dropped blinds it to that peer
            self._clock_ns,
            self._choices.name,
            self._name,
            _log,
        )

    def _framer(self, clock_ns: Callable[[], int], keeps: bool) -> Framer:
        """Where anything is kept, a message that is says so: a reader that has it needs it no more when it joins."""
        latest = self._latest
        if latest is not None and self._keeps:
            make = self.publishing.framer if self.publishing is not None else self._framer_of_one_number
            plain, kept = (make(clock_ns, keeps=each) for each in (False, True))
            return kept if keeps else lambda topic, *rest: (kept if topic in latest else plain)(topic, *rest)
        if self.publishing is not None:
            return self.publishing.framer(clock_ns, keeps=False)
        next_sequence = self._numbers.__next__
        return framer(self._choices.wire, epoch=self._epoch, next_sequence=next_sequence, clock_ns=clock_ns)

    def _framer_of_one_number(self, clock_ns: Callable[[], int], *, keeps: bool) -> Framer:
        """What numbers all messages in one row, on the tracked wire where subscriptions are not told of."""

        def number(topic: bytes) -> tuple[Counter]:
            return (Counter(b"", 0, next(self._numbers), 0),)

        return counted_framer(epoch=self._epoch, count=number, clock_ns=clock_ns, keeps=keeps)

    def _dropping(self, send: Callable[[Any], None], *, keeps: bool) -> Emit:
        """Where a subscriber without room misses the message, and counts it."""
        stats, limit, thread, clock_ns = self._stats, self._choices.max_message, get_ident(), self._clock_ns
        published_at = 0
        frame, sent = self._framer((lambda: published_at) if self._keeps else clock_ns, keeps), self._keeper(keeps)

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            if get_ident() != thread or len(body) > limit:
                _check_message(topic, body, limit, thread)
            send(frame(topic, number, body, headers))
            stats.published += 1
            return DONE

        def emit_and_keep(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            nonlocal published_at
            published_at = clock_ns()
            emit(topic, number, body, headers)
            sent(topic, number, body, headers, published_at)
            return DONE

        return emit_and_keep if self._keeps else emit

    def _straight(self) -> Straight | None:
        """What publishes messages of one topic, of which nothing is kept, each a frame of its own; else None."""
        choices, stats = self._choices, self._stats
        send, try_send = self._transport.sender(multipart=False), self._transport.try_sender(multipart=False)
        if send is None or try_send is None or choices.wire == "multipart" or self._keeps:
            return None
        if choices.overflow != "drop":
            return partial(self._straight_carefully, try_send)
        limit, thread = choices.max_message, get_ident()

        def straight(topic: bytes, number: int, write: Write, general: Short) -> Short:
            frame = self._topic_framer(topic, number)

            def publish(message: Any, captures: Mapping[str, object] | None) -> Awaitable[None]:
                if captures:
                    return general(message, captures)
                try:
                    body: bytes | None = write(message)
                except EncodeError:
                    body = None
                if body is None:
                    return general(message, None)  # which says where the error is
                if len(body) > limit or get_ident() != thread:
                    _check_message(topic, body, limit, thread)
                send(frame(body))
                stats.published += 1
                return DONE

            return publish

        return straight

    def _straight_carefully(
        self, try_send: Callable[[bytes], bool], topic: bytes, number: int, write: Write, general: Short
    ) -> Short:
        """The same where nothing is dropped: what can't be sent at once, or waits for others, goes the general way.

        All went it before, at twice the cost: what waits is written down before it is known whether it has to. The
        first lines are those of `_straight`, since a function for both would be a call for each message.
        """
        stats, limit, thread, passes = self._stats, self._choices.max_message, get_ident(), self._outbox.passes
        frame = self._topic_framer(topic, number)
        counters = self.publishing.counters if self.publishing is not None else None

        def publish(message: Any, captures: Mapping[str, object] | None) -> Awaitable[None]:
            if captures or not passes(topic):
                return general(message, captures)
            try:
                body: bytes | None = write(message)
            except EncodeError:
                body = None
            if body is None:
                return general(message, None)  # which says where the error is
            if len(body) > limit or get_ident() != thread:
                _check_message(topic, body, limit, thread)
            if not try_send(frame(body)):
                if counters is not None:
                    counters.take_back(topic)
                return general(message, None)
            stats.published += 1
            return DONE

        return publish

    def _topic_framer(self, topic: bytes, number: int) -> Callable[[bytes], bytes]:
        """What makes frames of bodies of one topic and codec, without headers."""
        if self.publishing is not None:
            return self.publishing.topic_framer(topic, number)
        if self._choices.wire == "plain" and number in _NEVER_MAGIC:
            return (topic + NUL).__add__
        frame: Callable[..., Any] = self._framer(self._clock_ns, keeps=False)
        return lambda body: frame(topic, number, body, None)

    def _careful(self, try_send: Callable[[Any], bool], *, keeps: bool) -> Emit:
        """Where nothing is dropped: see `zroute.publishing.send_queue`."""
        choices, stats, outbox = self._choices, self._stats, self._outbox
        counters = self.publishing.counters if self.publishing is not None else None
        waits, limit, thread, clock_ns = choices.overflow == "wait", choices.max_message, get_ident(), self._clock_ns
        published_at = 0
        frame, sent = self._framer(lambda: published_at, keeps), self._keeper(keeps)

        def attempt(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None, at: int) -> bool:
            nonlocal published_at
            published_at = at  # how old it is when it arrives, is counted from when it was published
            if try_send(frame(topic, number, body, headers)):
                sent(topic, number, body, headers, at)
                return True
            stats.eagain += 1
            if counters is not None:
                counters.take_back(topic)  # a number that nobody was sent would be a loss to all
            return False

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            _check_message(topic, body, limit, thread)
            if headers:
                pack_headers(headers)  # a bad one is an error here, not when its turn has come
            done, at = DONE, clock_ns()
            if waits:
                done = outbox.send(topic, partial(attempt, topic, number, body, headers, at))
            elif not attempt(topic, number, body, headers, at):
                raise HighWaterMarkError(
                    f"{topic.decode()!r}: the queue of a subscriber is full, and nobody was sent this: publish later, "
                    "less often, or with App(overflow='wait')"
                )
            stats.published += 1
            return done

        return emit

    # -- messages that travel together --------------------------------------------------------------------

    def _make_coalescer(self) -> Coalescer | None:
        """None where nothing is to travel together, or where the wire can't carry it."""
        choices = self._choices
        wanted = any(choices.coalesces(outlet.publication) for outlet in self._outlets) or choices.coalesces()
        send, try_send = self._transport.sender(multipart=False), self._transport.try_sender(multipart=False)
        if not wanted or self.publishing is None or send is None or try_send is None:
            return None
        limit, thread, waits = choices.max_message, get_ident(), choices.overflow == "wait"
        return Coalescer(
            self._clock,
            self._clock_ns,
            self._stats,
            limit=limit,
            check=lambda topic, body: _check_message(topic, body, limit, thread),
            hold=self._hold if waits else None,
            send=self._sending_held(self.publishing, send, try_send),
        )

    def _hold(self, topic: bytes, held: Held, more: int) -> Awaitable[None]:
        self._outbox.check(topic, more)
        if held.sent is None:
            assert self._coalescer is not None
            held.sent = Sent(partial(self._coalescer.send_now, topic, held))
        sent: Sent = held.sent
        return sent

    def _sending_held(
        self, publishing: PublishingEnd, send: Callable[[Any], None], try_send: Callable[[Any], bool]
    ) -> Callable[[bytes, Held], None]:
        counters, kept, drops = publishing.counters, publishing.kept, self._choices.overflow == "drop"
        batches = [publishing.batch_framer(keeps=keeps) for keeps in (False, True)]
        published_at = 0
        singles = [publishing.framer(lambda: published_at, keeps=keeps) for keeps in (False, True)]

        def attempt(topic: bytes, held: Held) -> bool:
            nonlocal published_at
            codec, bodies, at, keeps = held.codec, held.bodies, held.at, held.keeps or topic in kept
            published_at = at
            if len(bodies) == 1:
                frame = singles[keeps](topic, codec, bodies[0], None)
            else:
                frame = batches[keeps](topic, codec, bodies, at)
            if drops:
                send(frame)
            elif not try_send(frame):
                self._stats.eagain += 1
                counters.take_back(topic, len(bodies))
                return False
            if keeps:
                publishing.keep(topic, codec, bodies[-1], None, at)
            return True

        def send_held(topic: bytes, held: Held) -> None:
            trying = partial(attempt, topic, held)
            if held.sent is not None:
                held.sent.goes()
            try:
                if drops:
                    trying()
                else:
                    self._outbox.send(topic, trying, count=len(held.bodies), sent=held.sent)
            except Exception as error:  # others have taken the room since, or the socket is gone
                self._unsent(topic, len(held.bodies), error)
                if held.sent is not None:
                    held.sent.end(error)

        return send_held

    # -- messages that are kept ---------------------------------------------------------------------------

    @property
    def _keeps(self) -> bool:
        """Whether any message is kept for those who join."""
        return self._latest is not None and any(outlet.publication.keep for outlet in self._outlets)

    @property
    def _latest(self) -> Topics | None:
        """The topics of which a message is kept."""
        if self.publishing is not None:
            return self.publishing.kept
        return self._transport.kept

    def _keeper(self, keeps: bool) -> Callable[[bytes, int, bytes, Mapping[str, Any] | None, int], None]:
        """What is told of each message that was sent: it is the latest of its topic, whoever has published it."""
        if self.publishing is None or not self._keeps:
            return lambda topic, number, body, headers, at: None
        keep, kept = self.publishing.keep, self.publishing.kept

        def sent(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None, at: int) -> None:
            if keeps or topic in kept:
                keep(topic, number, body, headers, at)

        return sent

    # -- what is more than can be known -------------------------------------------------------------------

    def _many_topics(self) -> None:
        """More topics are published than are kept; said once in a run."""
        if self._said_many:
            return
        self._said_many = True
        _log.warning(
            "%s: more topics are published than fit into the %d MiB for what is known about them: a message of "
            "another topic takes about ten times as long, and is counted in stats.cache_misses; publish fewer, share "
            "them among several processes, or move ids from topics into messages",
            self._choices.name,
            TOPIC_CACHE >> 20,
        )

    # -- what could not be sent ---------------------------------------------------------------------------

    def _unsent(self, topic: bytes, count: int, error: Exception) -> None:
        """Messages that `publish` took are given up: counted and said, whether somebody awaits them or not."""
        name = self._choices.name
        if not count:  # whoever misses a control frame asks again
            text = "%s: a subscriber had no room for a control frame"
            self._reports("control", f"{name}: unsent control frames", logging.WARNING, text, name)
            return
        self._stats.published -= count
        self._stats.publish_errors += count
        why = error if isinstance(error, HighWaterMarkError) else f"{topic.decode()!r}: {error}"
        text = "%s: not sent, messages: %d: %s"
        self._reports("unsent", f"{name}: unsent messages", logging.WARNING, text, name, count, why)

    # -- subscribers --------------------------------------------------------------------------------------

    def _subscription(self, prefix: bytes, there: bool) -> None:
        """A subscription has come or gone."""
        if not prefix.startswith(FAREWELL):
            self._audience.subscription(prefix, there)
        if self.publishing is not None:
            self.publishing.subscription(prefix, there)

    def _gathered(self, pattern: Pattern, number: int, timeout: float) -> Awaitable[None]:
        """See `zroute.publishing.publication.Publication.wait_for_subscribers`."""
        if not self._transport.counts:
            return DONE
        waiting: Deferred[None] = within(timeout, self._audience.gathered(pattern, number), self._clock)
        return as_awaitable(waiting.addErrback(self._not_gathered, pattern, number, timeout))

    def _not_gathered(self, failure: Failure, pattern: Pattern, number: int, timeout: float) -> None:
        if self._closed:
            raise NotRunningError(f"{self._choices.name!r} has stopped, and nobody subscribes to it any more")
        failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
        raise NotReadyError(
            f"{pattern.text!r}: {self._audience.number(pattern)} of {number} subscribers came within {timeout:g} s: do "
            "they run, and connect to where this app publishes?"
        )


def _ascending(wall: Callable[[], float]) -> Callable[[], int]:
    """What gives nanoseconds of a clock that may stand still, as in tests: a later message has a later time."""
    before = 0

    def clock_ns() -> int:
        nonlocal before
        before = max(int(wall() * 1e9), before + 1)
        return before

    return clock_ns


def _check_message(topic: bytes, body: bytes, limit: int, thread: int) -> None:
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


def _nowhere(name: str) -> Emit:
    def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        raise UsageError(
            f"{topic.decode()!r} was published, and {name!r} has no endpoint to publish at: add App(pub=…)"
        )

    return emit
