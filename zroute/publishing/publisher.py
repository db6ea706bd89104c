"""Publisher: what one run of an app publishes, on its way from the encoder to the transport.

Messages are framed and numbered, kept for those who join, and held back while a subscriber has no room, as the app
says: see `zroute.publishing.paths`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.awaiting import as_awaitable, within
from zroute.clock import Clock
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, HighWaterMarkError, NotReadyError, NotRunningError, UsageError
from zroute.logs import printable
from zroute.messages.budget import Budget
from zroute.messages.control import FAREWELL
from zroute.messages.topics import Pattern
from zroute.options import LINGER_DRAIN, SEND_QUEUE, SEND_QUEUE_SECONDS, TOPIC_CACHE
from zroute.publishing.choices import Choices
from zroute.publishing.coalescer import Coalescer, Held
from zroute.publishing.instances import Instance, publisher_name
from zroute.publishing.paths import Paths, check_message
from zroute.publishing.publication import DONE, CompiledPublication, Emit
from zroute.publishing.send_queue import SendQueue, Sent
from zroute.publishing.session import PublisherSession
from zroute.publishing.subscriber_count import SubscriberCount
from zroute.stats import Stats
from zroute.throttle import ThrottledLog
from zroute.transport import Transport

__all__ = ["Publisher"]

_log = logging.getLogger("zroute")

Send = Callable[[Any], "bool | None"]
"""Sends a frame, or the parts of a message; False while there is no room."""


class Publisher:
    """The publishing side of one run of an app that made ``choices``, to ``endpoints``; ``wall`` gives Unix seconds."""

    def __init__(
        self,
        choices: Choices,
        clock: Clock,
        transport: Transport,
        endpoints: Sequence[Endpoint],
        stats: Stats,
        reports: ThrottledLog,
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
        self._subscribers = SubscriberCount(clock, tracked=choices.wire == "tracked")
        self._send_queue = SendQueue(clock, limit=SEND_QUEUE, timeout=SEND_QUEUE_SECONDS, lost=self._unsent)
        self._outlets: tuple[CompiledPublication, ...] = ()
        self._coalescer: Coalescer | None = None
        self._told = False
        self._closed = False
        self._said_many = False
        self.session: PublisherSession | None = None
        """What numbers messages, on the tracked wire."""

    def open(self, outlets: Iterable[CompiledPublication]) -> Emit:
        """Let ``outlets`` publish from now on; what messages of no outlet are sent with is returned.

        Raises EndpointError if one has ``keep``, and the transport can't give what is kept to those who join.
        """
        self._outlets = tuple(outlets)
        send = self._open_sender()
        if send is None:
            emit = _nowhere(self._choices.name)
            for outlet in self._outlets:
                outlet.open(emit, self._wait_for_subscribers)
            return emit
        session = self.session
        kept: Container[bytes] | None = self._transport.kept if session is None else session.kept.messages
        if kept is None:
            self._refuse_to_keep()
        paths = Paths(self._choices, self._stats, self._clock_ns, send, self._send_queue, session, kept)
        self._coalescer = self._make_coalescer(send)
        paths.open([(outlet.publication, outlet.pattern) for outlet in self._outlets], self._coalescer)
        budget = Budget(TOPIC_CACHE, self._stats, self._many_topics)
        for outlet in self._outlets:
            made_for = outlet.publication, outlet.pattern
            outlet.open(paths.general(*made_for), self._wait_for_subscribers, paths.fast(*made_for), budget)
        return paths.general()

    async def send_rest(self, timeout: float) -> dict[str, int]:
        """Send what waits, within ``timeout`` seconds; what could not be, and how many of it. `close` comes next."""
        if self._coalescer is not None:
            self._coalescer.flush()
        with suppress(TimeoutError):
            await within(timeout, self._send_queue.idle(), self._clock)
        given_up = self._send_queue.close()
        return {"messages for subscribers that have no room": given_up} if given_up else {}

    async def goodbye(self, timeout: float) -> dict[str, int]:
        """Say goodbye to all, and wait until they have read it; how many have not, if that is a failure.

        For ``timeout`` seconds, and no longer than the sockets would be waited for. Nothing may be published behind
        it: it could be lost, and nobody would count it.
        """
        left: dict[str, int] = {}
        if self.session is None:
            return left
        with suppress(TimeoutError):
            await within(min(timeout, LINGER_DRAIN / 1000), self.session.goodbye(), self._clock)
        if unread := self.session.unread:
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
        self._subscribers.close()

    def release(self) -> None:
        """Let another run of the app have the name of this one: everything has been said."""
        if self._instance is not None:
            self._instance.release()

    @property
    def identity(self) -> str:
        """What subscribers' logs call this run; empty on a wire that does not say it."""
        if self.session is None:
            return ""
        epoch = f"{self.session.epoch:016x}"
        return f"{printable(self._name)} ({epoch})" if self._name else epoch

    # -- what publications send through -------------------------------------------------------------------

    def _open_sender(self) -> Send | None:
        """What sends a frame, or is False while there is no room; None if there is nowhere to publish at."""
        choices, transport = self._choices, self._transport
        multipart = choices.wire == "multipart"
        drop, attempt = transport.sender(multipart=multipart), transport.try_sender(multipart=multipart)
        if drop is None or attempt is None:
            return None
        send: Send = drop if choices.overflow == "drop" else attempt
        self._told = transport.announce(self._subscription)
        if choices.wire == "tracked" and self._told:
            self.session = self._make_session(send)
        return send

    def _refuse_to_keep(self) -> None:
        for publication in (outlet.publication for outlet in self._outlets):
            if publication.keep:
                raise EndpointError(
                    f"keep={publication.keep!r} needs a transport that tells of the subscribers that join, and "
                    f"{type(self._transport).__name__} tells of none: leave keep out, or publish to ZeroMQ endpoints",
                    endpoint=", ".join(map(str, self._endpoints)),
                    where=publication.where,
                )

    def _make_session(self, send: Send) -> PublisherSession:
        self._name, self._instance = publisher_name(self._choices.name, self._endpoints, self._transport.bound)
        return PublisherSession(
            self._clock,
            self._send_queue,
            # On a socket that refuses, one that is dropped blinds it to that peer.
            lambda frame: send(frame) is not False,
            self._clock_ns,
            self._choices.name,
            self._name,
            _log,
        )

    # -- messages that travel together --------------------------------------------------------------------

    def _make_coalescer(self, send: Send) -> Coalescer | None:
        """None where nothing is to travel together, or where the wire can't carry it."""
        choices = self._choices
        wanted = any(choices.coalesces(outlet.publication) for outlet in self._outlets) or choices.coalesces()
        if not wanted or self.session is None:
            return None
        limit, thread, waits = choices.max_message, get_ident(), choices.overflow == "wait"
        return Coalescer(
            self._clock,
            self._clock_ns,
            self._stats,
            limit=limit,
            check=lambda topic, body: check_message(topic, body, limit, thread),
            hold=self._hold if waits else None,
            send=self._sending_held(self.session, send),
        )

    def _hold(self, topic: bytes, held: Held, more: int) -> Awaitable[None]:
        self._send_queue.check(topic, more)
        if held.sent is None:
            assert self._coalescer is not None
            held.sent = Sent(partial(self._coalescer.send_now, topic, held))
        sent: Sent = held.sent
        return sent

    def _sending_held(self, publishing: PublisherSession, send: Send) -> Callable[[bytes, Held], None]:
        counters, kept, drops = publishing.counters, publishing.kept, self._choices.overflow == "drop"
        together = [publishing.coalesced_framer(keeps=keeps) for keeps in (False, True)]
        published_at = 0
        split_frame = [publishing.framer(lambda: published_at, keeps=keeps) for keeps in (False, True)]

        def attempt(topic: bytes, held: Held) -> bool:
            nonlocal published_at
            codec, bodies, at, keeps = held.codec, held.bodies, held.at, held.keeps or topic in kept.messages
            published_at = at
            if len(bodies) == 1:
                frame = split_frame[keeps](topic, codec, bodies[0], None)
            else:
                frame = together[keeps](topic, codec, bodies, at)
            if send(frame) is False:
                self._stats.send_retries += 1
                counters.take_back(topic, len(bodies))
                return False
            if keeps:
                kept.keep(topic, codec, bodies[-1], None, at)
            return True

        def send_held(topic: bytes, held: Held) -> None:
            trying = partial(attempt, topic, held)
            if held.sent is not None:
                held.sent.goes()
            try:
                if drops:
                    trying()
                else:
                    self._send_queue.send(topic, trying, count=len(held.bodies), sent=held.sent)
            except Exception as error:  # others have taken the room since, or the socket is gone
                self._unsent(topic, len(held.bodies), error)
                if held.sent is not None:
                    held.sent.end(error)

        return send_held

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
            self._subscribers.subscription(prefix, there)
        if self.session is not None:
            self.session.subscription(prefix, there)

    def _wait_for_subscribers(self, pattern: Pattern, number: int, timeout: float) -> Awaitable[None]:
        """See `zroute.publishing.publication.Publication.wait_for_subscribers`."""
        if not self._told:
            return DONE
        waiting: Deferred[None] = within(timeout, self._subscribers.wait_for(pattern, number), self._clock)
        return as_awaitable(waiting.addErrback(self._too_few_subscribers, pattern, number, timeout))

    def _too_few_subscribers(self, failure: Failure, pattern: Pattern, number: int, timeout: float) -> None:
        if self._closed:
            raise NotRunningError(f"{self._choices.name!r} has stopped, and nobody subscribes to it any more")
        failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
        raise NotReadyError(
            f"{pattern.text!r}: {self._subscribers.number(pattern)} of {number} subscribers came within {timeout:g} s: "
            "do they run, and connect to where this app publishes?"
        )


def _ascending(wall: Callable[[], float]) -> Callable[[], int]:
    """What gives nanoseconds of a clock that may stand still, as in tests: a later message has a later time."""
    before = 0

    def clock_ns() -> int:
        nonlocal before
        before = max(int(wall() * 1e9), before + 1)
        return before

    return clock_ns


def _nowhere(name: str) -> Emit:
    def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        raise UsageError(
            f"{topic.decode()!r} was published, and {name!r} has no endpoint to publish at: add App(pub=…)"
        )

    return emit
