"""The publisher of one run of an app, between the encoder and the transport.

The publisher frames and numbers messages. Depending on the app's options, it also keeps them for new subscribers,
coalesces them, and queues them while a subscriber's queue is full. `zroute.publishing.paths` selects these steps for
each message.
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

from zroute.awaiting import as_awaitable, check_loop, within
from zroute.clock import Clock
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, HighWaterMarkError, NotReadyError, NotRunningError, UsageError
from zroute.functions import defined_at, identity, name_of, raised_at
from zroute.logs import printable
from zroute.messages.budget import Budget
from zroute.messages.control import FAREWELL
from zroute.messages.recovery import BOX, REQUEST
from zroute.messages.topics import Pattern, Topic
from zroute.options import LINGER_DRAIN, SEND_QUEUE, SEND_QUEUE_SECONDS, TOPIC_CACHE
from zroute.publishing.choices import Choices
from zroute.publishing.coalescer import Coalescer, Held
from zroute.publishing.instances import Instance, publisher_name
from zroute.publishing.paths import Paths, check_message
from zroute.publishing.publication import DONE, CompiledPublication, Emit, Publication, Subscribers
from zroute.publishing.send_queue import SendQueue, Sent
from zroute.publishing.session import PublisherSession
from zroute.publishing.snapshots import SnapshotCalls, Snapshots
from zroute.publishing.subscriber_count import SubscriberCount
from zroute.stats import Stats
from zroute.throttle import ThrottledLog
from zroute.transport import SessionRequest, Transport, TransportSession

__all__ = ["Publisher"]

_log = logging.getLogger("zroute")

_SNAPSHOT_LINES = 600.0
"""The time in seconds in which the log contains the same failure of a snapshot once."""

_NO_INTEREST = (FAREWELL, BOX, REQUEST)

Send = Callable[[Any], "bool | None"]
"""A function that sends a frame, or the parts of a message. It returns False while a subscriber's queue is full."""


class Publisher:
    """The publishing side of one run of an app.

    Args:
        choices: The app's options.
        clock: The reactor's clock.
        transport: The transport of the run.
        endpoints: The endpoints to publish to.
        stats: The counters of the run.
        reports: The log for events that may be frequent.
        wall: A function that returns the time in seconds since the Unix epoch.
    """

    on_subscribers: Callable[[Publication[Any]], None] = staticmethod(lambda publication: None)
    """A function that is called when the first subscriber of a publication joins, or the last leaves. Set it before
    `open`.
    """
    on_failure: Callable[[BaseException, Callable[..., Any]], object] = staticmethod(lambda error, function: None)
    """A function that is called with each error of a ``snapshot`` or ``topics`` function. Set it before `open`."""

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
        self._number: Callable[[Pattern], int] | None = None
        self._send_queue = SendQueue(clock, limit=SEND_QUEUE, timeout=SEND_QUEUE_SECONDS, lost=self._unsent)
        self._outlets: tuple[CompiledPublication, ...] = ()
        self._coalescer: Coalescer | None = None
        self._told = False
        self._closed = False
        self._said_many = False
        self._own: TransportSession | None = None  # the session of a transport that has its own
        self.session: PublisherSession | TransportSession | None = None
        """The session that numbers messages; None except on the tracked wire."""

    def open(self, outlets: Iterable[CompiledPublication]) -> Emit:
        """Enable publishing for ``outlets``.

        Return the function that publishes messages without a publication (`App.publish`).

        Raises:
            EndpointError: A publication has ``keep``, but the transport cannot send kept messages to new subscribers.
        """
        self._outlets = tuple(outlets)
        send = self._open_sender()
        if send is None:
            emit = _nowhere(self._choices.name)
            for outlet in self._outlets:
                outlet.open(emit, self._subscriptions())
            return emit
        session = self.session
        kept: Container[bytes] | None = self._transport.kept if session is None else session.kept.messages
        if kept is None:
            self._refuse_to_keep()
        # The transport of a test has kept messages and histories, but no session.
        if not isinstance(session, PublisherSession) and self._transport.kept is None:
            self._refuse_histories()
        paths = Paths(self._choices, self._stats, self._clock_ns, send, self._send_queue, session, kept, self._own)
        paths.ring = session.ring if isinstance(session, PublisherSession) else self._transport.ring
        self._coalescer = self._make_coalescer(send)
        paths.snapshots = snapshots = self._make_snapshots(paths.epoch)
        paths.open([(outlet.publication, outlet.pattern) for outlet in self._outlets], self._coalescer)
        budget = Budget(TOPIC_CACHE, self._stats, self._many_topics)
        for outlet in self._outlets:
            made_for = outlet.publication, outlet.pattern
            emit = paths.general(*made_for)
            if snapshots is not None and outlet.publication.snapshot is not None:
                emit = snapshots.noting(emit, outlet)
            given = emit, self._subscriptions(), paths.fast(*made_for), budget
            outlet.open(*given, carries_headers=self._choices.wire == "tracked")
        return paths.general()

    async def send_rest(self, timeout: float) -> dict[str, int]:
        """Send all held and queued messages within ``timeout`` seconds.

        Return the number of unsent messages with their description as the key; empty if all messages were sent. The
        caller must call `close` afterwards.
        """
        if self._coalescer is not None:
            self._coalescer.flush()
        with suppress(TimeoutError):
            await within(timeout, self._send_queue.idle(), self._clock)
        given_up = self._send_queue.close()
        return {"messages for subscribers whose queue is full": given_up} if given_up else {}

    async def goodbye(self, timeout: float) -> dict[str, int]:
        """Send a goodbye to all subscribers, and wait until all have confirmed it.

        The wait ends after ``timeout`` seconds or the sockets' linger time, whichever is shorter. Return the number of
        subscribers that have not confirmed the goodbye, with a description as the key. The result is empty if all have
        confirmed, or if ``overflow="drop"`` allows losses. The caller must not publish after the goodbye, because
        subscribers could not count the loss of such a message.
        """
        left: dict[str, int] = {}
        session = self._own or self.session
        if session is None:
            return left
        with suppress(TimeoutError):
            await within(min(timeout, LINGER_DRAIN / 1000), session.goodbye(), self._clock)
        if unread := session.unread:
            _log.warning(
                "%s: %d subscribers have not confirmed the goodbye: messages in the queues of these subscribers "
                "may be lost",
                self._choices.name,
                unread,
            )
            if self._choices.overflow != "drop":
                left["subscribers that have not confirmed the goodbye"] = unread
        return left

    def close(self) -> None:
        """Disable publishing, and raise an error in all calls that wait for subscribers."""
        self._closed = True
        for outlet in self._outlets:
            outlet.close()
        self._subscribers.close()

    def carried(self, headers: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the headers of a received message that the transport carries again."""
        return headers if self._own is None or headers is None else self._own.carried(headers)

    def release(self) -> None:
        """Free the publisher's name for another run of the app."""
        if self._instance is not None:
            self._instance.release()

    @property
    def identity(self) -> str:
        """The name of this run in subscribers' logs; empty on wires without names."""
        if self.session is None:
            return ""
        epoch = f"{self.session.epoch:016x}"
        return f"{printable(self._name)} ({epoch})" if self._name else epoch

    # -- sending ------------------------------------------------------------------------------------------

    def _open_sender(self) -> Send | None:
        """Return the function that sends frames; None without an endpoint."""
        choices, transport = self._choices, self._transport
        multipart = choices.multipart
        drop, attempt = transport.sender(multipart=multipart), transport.try_sender(multipart=multipart)
        if drop is None or attempt is None:
            return None
        send: Send = drop if choices.overflow == "drop" else attempt
        self._told = transport.announce(self._subscription)
        # Numbers belong to subscriptions, so a transport that reports none needs a session of its own.
        if not self._told:
            self._own = self._ask_for_session()
        if choices.wire == "tracked":
            self.session = self._make_session(send) if self._told else self._own
        self._watch_subscribers()
        return send

    def _refuse_to_keep(self) -> None:
        for publication in (outlet.publication for outlet in self._outlets):
            if publication.keep:
                raise self._unreported(f"keep={publication.keep!r}", "remove keep", publication.where)

    def _refuse_histories(self) -> None:
        for publication in (outlet.publication for outlet in self._outlets):
            if publication.history is not None:
                raise self._unreported(f"history={publication.history}", "remove history", publication.where)

    def _unreported(self, what: str, remedy: str, where: str | None = None) -> EndpointError:
        """Return the error for an option or call that needs reports of new subscribers."""
        return EndpointError(
            f"{what} needs a transport that reports new subscribers, but {type(self._transport).__name__} does not: "
            f"{remedy}, or publish to ZeroMQ endpoints",
            endpoint=", ".join(map(str, self._endpoints)),
            where=where,
        )

    def _ask_for_session(self) -> TransportSession | None:
        patterns = [outlet.pattern for outlet in self._outlets]
        return self._transport.make_session(SessionRequest(self._make_name, self._clock_ns, patterns))

    def _make_name(self) -> str:
        self._name, self._instance = publisher_name(self._choices.name, self._endpoints, self._transport.bound)
        return self._name

    def _make_session(self, send: Send) -> PublisherSession:
        return PublisherSession(
            self._clock,
            self._send_queue,
            # The same function as for messages, because a socket with ZMQ_XPUB_NODROP that drops a frame no longer
            # notices that the peer's queue is full.
            lambda frame: send(frame) is not False,
            self._clock_ns,
            self._choices.name,
            self._make_name(),
            _log,
        )

    # -- coalescing ---------------------------------------------------------------------------------------

    def _make_coalescer(self, send: Send) -> Coalescer | None:
        """Return the coalescer; None if it is not used or the wire does not support it."""
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
        # Held messages count towards the limit, because they go into the queue if a subscriber has no room.
        self._send_queue.check(topic, more)
        if held.sent is None:
            assert self._coalescer is not None
            held.sent = Sent(partial(self._coalescer.send_now, topic, held), self._clock)
        sent: Sent = held.sent
        return sent

    def _sending_held(
        self, publishing: PublisherSession | TransportSession, send: Send
    ) -> Callable[[bytes, Held], None]:
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
            if held.ring is not None:
                assert isinstance(frame, bytes)  # only the tracked wire coalesces, with one part for each message
                held.ring.keep(frame)
            if keeps:
                kept.keep(topic, codec, bodies[-1], None, at)
            return True

        def send_held(topic: bytes, held: Held) -> None:
            trying = partial(attempt, topic, held)
            # From now on, awaiting these messages must not send those that the topic holds by then.
            if held.sent is not None:
                held.sent.goes()
            try:
                if drops:
                    trying()
                else:
                    self._send_queue.send(topic, trying, count=len(held.bodies), sent=held.sent)
            except Exception as error:  # the queue is full by now, or the socket is closed
                self._unsent(topic, len(held.bodies), error)
                if held.sent is not None:
                    held.sent.end(error)

        return send_held

    # -- snapshots -----------------------------------------------------------------------------------------

    def _make_snapshots(self, epoch: int) -> Snapshots | None:
        """Return the snapshots of all publications; None if there are none.

        ``epoch`` is the number of this run on a transport that asks for snapshots itself.

        Raises:
            EndpointError: The transport does not report new subscribers.
        """
        outlets = [outlet for outlet in self._outlets if outlet.publication.snapshot is not None]
        if not outlets:
            return None
        session, states = self.session, self._transport.states
        numbers: Callable[[bytes], object]
        if isinstance(session, PublisherSession):
            numbers, add, discard = session.counters.last_numbers, session.kept.add_state, session.kept.discard_state
        elif states is not None:
            numbers, add, discard = lambda topic: object(), states.add, states.discard
        else:
            raise self._unreported("snapshot=", "remove snapshot", outlets[0].publication.where)
        calls = SnapshotCalls(
            self._flush, self._waits, numbers, self._snapshot_made, self._snapshot_failed, add, discard
        )
        given = self._clock, self._clock_ns, self._choices.max_message, outlets, calls
        snapshots = Snapshots(*given)
        if isinstance(session, PublisherSession):
            session.kept.snapshots = snapshots
        else:
            states.snapshots, states.epoch = snapshots, epoch
        snapshots.open()
        return snapshots

    def _flush(self, topic: bytes) -> None:
        """Send the held messages of a topic."""
        if self._coalescer is not None and (held := self._coalescer.windows.get(topic)) is not None:
            self._coalescer.send_now(topic, held)

    def _waits(self, topic: bytes) -> bool:
        """Return True while a published message of a topic is not sent yet."""
        held = None if self._coalescer is None else self._coalescer.windows.get(topic)
        return self._send_queue.delays(topic) or bool(held is not None and held.bodies)

    def _snapshot_made(self) -> None:
        self._stats.snapshots += 1

    def _snapshot_failed(self, function: Callable[..., Any], topic: bytes | None, error: BaseException) -> None:
        if not isinstance(error, SystemExit):  # as in handlers, it is no failure
            self._stats.snapshot_errors += 1
            name = self._choices.name
            wanted = "the topics of snapshots" if topic is None else f"a snapshot of {str(Topic.from_wire(topic))!r}"
            where = f" ({defined})" if (defined := defined_at(function)) else ""
            text = "%s: could not get %s from %s%s: %s: %s"
            facts = name, wanted, name_of(function), where, type(error).__name__, printable(error)
            # Every subscriber asks again, for as long as the function fails.
            kind, called = (identity(function), type(error), raised_at(error)), f"{name}: failed snapshots"
            self._reports(kind, called, logging.ERROR, text, *facts, error=error, once_in=_SNAPSHOT_LINES)
        self.on_failure(error, function)

    # -- full caches --------------------------------------------------------------------------------------

    def _many_topics(self) -> None:
        """Warn once per run that the published topics do not fit in the topic cache."""
        if self._said_many:
            return
        self._said_many = True
        _log.warning(
            "%s: the topic cache of %d MiB is full: messages to other topics take about ten times as long and "
            "are counted in stats.cache_misses. Publish to fewer topics, divide the topics among several "
            "processes, or move ids from topics into messages",
            self._choices.name,
            TOPIC_CACHE >> 20,
        )

    # -- unsent messages ----------------------------------------------------------------------------------

    def _unsent(self, topic: bytes, count: int, error: Exception) -> None:
        """Count and log ``count`` messages that could not be sent; 0 for a control frame."""
        name = self._choices.name
        if not count:  # the subscriber repeats its request for a control frame
            text = "%s: a control frame was not sent: the queue of a subscriber is full"
            self._reports("control", f"{name}: unsent control frames", logging.WARNING, text, name)
            return
        self._stats.published -= count
        self._stats.publish_errors += count
        why = error if isinstance(error, HighWaterMarkError) else f"{topic.decode()!r}: {error}"
        text = "%s: messages not sent: %d (%s)"
        self._reports("unsent", f"{name}: unsent messages", logging.WARNING, text, name, count, why)

    # -- subscribers --------------------------------------------------------------------------------------

    def _subscription(self, prefix: bytes, there: bool) -> None:
        """Handle a new subscription, or a withdrawn one if ``there`` is False."""
        # These messages of subscribers to the publisher are no interest in a topic.
        if not prefix.startswith(_NO_INTEREST):
            self._subscribers.subscription(prefix, there)
        if isinstance(self.session, PublisherSession):
            self.session.subscription(prefix, there)

    def _subscriptions(self) -> Subscribers:
        return Subscribers(self._wait_for_subscribers, self._number_of_subscribers)

    def _number_of_subscribers(self, pattern: Pattern) -> int:
        """Return the number of subscribers to topics of ``pattern``."""
        if self._number is None:
            raise self._unreported(f"the number of subscribers of {pattern.text!r}", "remove the use of .subscribers")
        return self._number(pattern)

    def _watch_subscribers(self) -> None:
        """Call the functions of `Publication.on_subscribers` from now on."""
        watched = any(outlet.publication.subscriber_hooks for outlet in self._outlets)
        self._number = self._transport.count_subscribers(self._subscribers_changed)
        if self._own is not None:
            self._number = self._own.number
            self._own.changed = self._subscribers_changed if watched else None
        if self._number is None and self._told:
            self._number = self._subscribers.number
            self._subscribers.changed = self._subscribers_changed if watched else None

    def _subscribers_changed(self) -> None:
        """Report publications whose first subscriber has joined or whose last has left."""
        for publication in dict.fromkeys(outlet.publication for outlet in self._outlets):
            if publication.subscriber_hooks and publication.notes_subscribers():
                self.on_subscribers(publication)

    def _wait_for_subscribers(self, pattern: Pattern, number: int, timeout: float) -> Awaitable[None]:
        """Wait for subscribers; see `Publication.wait_for_subscribers`."""
        wait_for = self._subscribers.wait_for if self._own is None else self._own.wait_for
        if not self._told and self._own is None:
            if self._transport.kept is None:
                raise self._unreported(f"wait_for_subscribers() of {pattern.text!r}", "remove the call")
            return DONE
        check_loop(self._clock)
        waiting: Deferred[None] = within(timeout, wait_for(pattern, number), self._clock)
        return as_awaitable(waiting.addErrback(self._too_few_subscribers, pattern, number, timeout))

    def _too_few_subscribers(self, failure: Failure, pattern: Pattern, number: int, timeout: float) -> None:
        if self._closed:
            raise NotRunningError(f"{self._choices.name!r} has stopped, so it has no subscribers")
        failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
        raise NotReadyError(
            f"only {self._number_of_subscribers(pattern)} of {number} subscribers of {pattern.text!r} joined within "
            f"{timeout:g} s: check that the subscribers are running and connect to the endpoints of this app"
        )


def _ascending(wall: Callable[[], float]) -> Callable[[], int]:
    """Return a clock in nanoseconds that advances at each call.

    In tests, ``wall`` may return the same time twice, but a later message must have a later time.
    """
    before = 0

    def clock_ns() -> int:
        nonlocal before
        before = max(int(wall() * 1e9), before + 1)
        return before

    return clock_ns


def _nowhere(name: str) -> Emit:
    def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        raise UsageError(
            f"cannot publish to {topic.decode()!r}: {name!r} has no endpoint to publish to; add App(pub=…)"
        )

    return emit
