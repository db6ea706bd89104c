"""The NATS transport: a client, and the accounts of the tracked wire.

A topic is the subject of its message. The subscriptions of an app are the subjects of its patterns, merged until none
overlap, because a server delivers a message once for each subscription that matches it.

============================== ==============================================================================
subscription                   messages
============================== ==============================================================================
the merged subjects            messages of publishers, with or without zroute
``_INBOX.RANDOM.*``            statements of publishers to this subscriber, and kept messages
``_zr.hello``                  publishers that have started
``_zr.ask``, ``_zr.EPOCH.*``   questions of subscribers to this publisher
============================== ==============================================================================

Requests and jobs have connections of their own; see `zroute.nats.requests`, `zroute.nats.worker_group` and
`zroute.nats.job_intake`.

**Reading.** The client calls a function for each message. The function puts the frame into the inbox, and the loop's
next turn passes the inbox to ``receive``. Statements go through the same inbox, so they keep their place among the
messages. If the inbox is not empty after `_TURN` seconds, the client pauses until it is.

**Filtering.** A merged subject, or the subject of a ``startswith`` that ends inside a segment, also brings messages
that no pattern matches. They are dropped before the inbox, so they do not count as unrouted. The subject ``>`` also
brings the messages of inboxes and of zroute itself, which are dropped too.

**A change of patterns** subscribes to the new subjects before it unsubscribes from the old ones. If two of them
overlap, a message of this moment arrives twice: the second copy of a tracked message is dropped by its number, while a
message without a number is handled twice. In the other order, messages would be lost.

**Sending.** A message that can't be sent, because no server is connected or the client's buffer is full, is treated as
``overflow`` says. With "drop", it is counted in ``publish_errors``, and subscribers count it as lost.

**A stop** asks all publishers for their last numbers, reads until they have answered, unsubscribes, and reads to the
answer of a PING, which follows everything that the server had for this client.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred, gatherResults

from zroute.errors import EncodeError, EndpointError
from zroute.logs import printable
from zroute.messages.topics import Pattern
from zroute.messages.wire import MAGIC, NUL, Kind, parse_header
from zroute.nats.asks import ASK, HELLO, private_subject
from zroute.nats.client import Client, ClientOptions, Connected, Denied, Dropped, Event, Lost
from zroute.nats.exchange import is_for_handlers
from zroute.nats.headers import frame_of, is_unheard, message_of
from zroute.nats.job_intake import JobIntake
from zroute.nats.publisher import TopicPublisherSession
from zroute.nats.requests import NatsRequests
from zroute.nats.servers import parse_servers
from zroute.nats.session import TopicAccounts
from zroute.nats.subjects import TopicMemo, generalise, is_reserved, subject_of, valid_topics
from zroute.nats.wants import Wants
from zroute.nats.worker_group import WorkerGroup
from zroute.options import LINGER_DRAIN, MAX_MESSAGE, READ_BUDGET, frame_limit
from zroute.receiving.hearing import ANSWER_SECONDS
from zroute.requests.asked import Asked
from zroute.requests.client import Client as Requests
from zroute.throttle import ThrottledLog
from zroute.transport import (
    JobOwner,
    JobWorker,
    MakeWorker,
    Reader,
    Receive,
    SendJob,
    SessionRequest,
    Transport,
    TransportRequest,
    TransportSession,
)

__all__ = ["NatsTransport"]

_log = logging.getLogger("zroute")

_TURN: Final = 0.005
"""The time in seconds after which reading returns to the reactor."""

_PAUSED: Final = 5.0
"""The time in seconds of a pause after which a warning is logged."""

_ANSWERS: Final = 0.005
"""The time in seconds between two checks for the last answers of publishers."""

_DENIALS: Final = 1_000
"""The number of errors of servers that are kept."""

_LOWER_INBOX: Final = b"_inbox."
"""How nats-py reports an inbox in an error."""

_WIDE: Final = (b">", b"*")


class _NothingLeftError(Exception):
    """Raised when the inbox is empty, like EAGAIN of a socket."""


class NatsTransport:
    """A `zroute.transport.Transport` on a NATS server or cluster.

    Attributes:
        denials: Errors with which servers have refused something to the user of the app, each with its number. A
            refusal arrives after the message, so the app has counted the message as published.
    """

    bound: tuple[str, ...] = ()  # a client of NATS binds no address
    kept = None
    states = None
    publisher = None  # keys are those of the server

    # The defaults: a cluster is one fixed endpoint without keys, and its servers report no subscriptions.
    addresses = Transport.addresses
    add = Transport.add
    remove = Transport.remove
    name_peers = Transport.name_peers
    announce = Transport.announce
    count_subscribers = Transport.count_subscribers
    ring = Transport.ring

    def __init__(self, request: TransportRequest) -> None:
        cluster, app = request.ends.nats, request.app
        assert cluster is not None, "the transport is chosen for endpoints on NATS"
        self._request = request
        self._reactor = request.reactor
        self._name = app.name
        self._cluster = cluster
        # Statements of publishers are small, but not limited by the app.
        most = frame_limit(max(app.max_message, MAX_MESSAGE))
        servers = parse_servers(cluster.servers)
        self._options = options = ClientOptions(servers, app.name, cluster.creds, max_message=most)
        self._client = Client(attrs.evolve(options, echo=cluster.echo))
        asking = attrs.evolve(options, echo=cluster.asks_itself, purpose="requests", persists=not request.ends.rep)
        self._requests = NatsRequests(request.reactor, asking, request.stats)
        # Jobs have connections of their own: a handler that waits for room in a job queue, or a worker with too many
        # jobs, may stop a connection.
        self._group: WorkerGroup | None = None
        self._intake: JobIntake | None = None
        self._client.on_event = self._happened
        self._client.after_read = self._wake
        self._inbox_subject = b"_INBOX." + secrets.token_hex(11).encode()
        self._reports = ThrottledLog(_log, request.reactor)
        self.accounts = TopicAccounts(
            request.reactor,
            request.stats,
            _log,
            app.name,
            request.found,
            self._tell,
            self._inbox_subject,
            self._emptied,
        )
        self._session: TopicPublisherSession | None = None
        self._introduced = False
        self._context = copy_context()
        self._receive: Receive | None = None
        self._inbox: deque[bytes] = deque()
        self._is_open = False
        self._listening = False
        self._paused = False
        self._finished = False
        self._woken = False
        self._owed = False  # True if `receive` must be called although the inbox may be empty
        self._held = False  # True if the client is paused until the inbox is empty
        self._read_to_ping = True
        self._warning: Any = None
        self._wants = Wants(())
        self._subjects: dict[bytes, tuple[bytes, bool]] = {}  # the id of each subscription, and True with a filter
        self._private: list[bytes] = []  # the ids of the subscriptions to statements
        self._asked: list[bytes] = []  # the ids of the subscriptions to questions
        self._known = TopicMemo(self._is_wanted)
        self._valid = valid_topics()  # published topics without numbers
        self._said_wide = False
        self.denials: Counter[Denied] = Counter()

    # -- open and close

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""
        return self._is_open

    def open(self, receive: Receive) -> None:
        """See `zroute.transport.Transport`, also for the methods below."""
        self._receive, self._is_open = receive, True
        if self._request.ends.sub:
            self._private = [
                self._client.subscribe(self._inbox_subject + b".*", self._take_private),
                self._client.subscribe(HELLO, self._take_private),
            ]

    def opened(self) -> Deferred[None]:
        """Return a Deferred that fires when a server has accepted this client."""
        opened: Deferred[None] = Deferred()
        # In the next turn, because asyncio's loop may not run yet.
        self._reactor.callLater(0, self._connect, opened)
        return opened

    def _connect(self, opened: Deferred[None]) -> None:
        if opened.called:  # cancelled
            return
        try:
            connected = self._client.start().addCallback(self._check_sizes)
        except EndpointError as error:
            opened.errback(error)
        else:
            if self._request.ends.rep:
                connected.addCallback(lambda _: self._requests.start())
            connected.addCallbacks(opened.callback, opened.errback)

    def confirmed(self) -> Deferred[None]:
        """Return a Deferred that fires when the server has all subscriptions.

        If the connection ends before, it fires too: the next connection begins with all subscriptions.
        """
        return gatherResults([self._client.ping(), self._requests.confirmed()]).addCallback(lambda _: None)

    def _check_sizes(self, _: None) -> None:
        """Raise EndpointError if the server accepts only smaller messages."""
        most, allowed, ends = self._client.max_payload, self._request.app.max_message, self._request.ends
        if most is not None and (ends.pub or ends.rep or ends.req or ends.jobs) and allowed > most:
            raise EndpointError(
                f"{self._client.server} accepts messages of at most {most} bytes, but the app may send {allowed}: set "
                f"App(limits=Limits(max_message={most})), or raise max_payload in the server's configuration",
                endpoint=self._cluster.address,
            )

    def summary(self) -> Iterator[tuple[int, str]]:
        """Yield a log line with the servers."""
        ends = self._request.ends
        sides = {
            "subscribes": ends.sub,
            "publishes": ends.pub,
            "answers requests": ends.rep,
            "hands out jobs": ends.jobs,
            "takes jobs": ends.work,
        }
        *others, last = [verb for verb, side in sides.items() if side] or ["connects"]
        verbs = f"{', '.join(others)} and {last}" if others else last
        yield logging.INFO, f"{self._name}: {verbs} on NATS, connected to {self._client.server or 'no server'}"

    def leave(self) -> None:
        """Withdraw this subscriber at all publishers."""
        if self._listening:
            self.accounts.leave()
        self._client.unsubscribe([*self._private, *(sid for sid, _ in self._subjects.values())])

    def close(self) -> Deferred[None]:
        """Send what waits, and disconnect."""
        self._is_open = False
        self._end_warning()
        if self._session is not None:
            self._session.stop()
        self._reports.close()
        linger = LINGER_DRAIN / 1000
        closed = [self._requests.close(linger), self._client.close(linger if self._client.connected else 0.0)]
        if self._group is not None:
            closed.append(self._group.close(linger))
        if self._intake is not None:
            closed.append(self._intake.end(linger))
        return gatherResults(closed).addCallback(lambda _: None)

    # -- what the client reports

    def _happened(self, event: Event) -> None:
        match event:
            case Connected():
                if self._request.ends.sub:
                    self.accounts.connected()
                self._introduce()
            case Lost():
                self.accounts.lost()
            case Denied():
                self._denied(event)
            case Dropped(subject, size, may_have_number):
                why = f"{size} bytes" if size else "too many messages wait"
                text = "%s: a received message was dropped: %s (topic %s)"
                self._reports(
                    "dropped", f"{self._name}: dropped", logging.WARNING, text, self._name, why, printable(subject)
                )
                # Nothing else tells that a message without a number is lost.
                if not may_have_number and not is_reserved(subject) and subject in self._wants:
                    self._request.stats.lost += 1
                    self._request.stats.gaps += 1

    def _denied(self, denied: Denied) -> None:
        """Count a message that the app had no permission to publish."""
        if denied in self.denials or len(self.denials) < _DENIALS:
            self.denials[denied] += 1
        topic = denied.unpublished
        if topic is not None and not is_reserved(topic) and not topic.startswith(_LOWER_INBOX):
            stats = self._request.stats
            stats.published -= 1
            stats.publish_errors += 1

    def _tell(self, subject: bytes, payload: bytes, reply: bytes) -> bool:
        """Send a question or a statement."""
        try:
            return self._client.publish(subject, payload, reply or None)
        except EncodeError:  # the server's max_payload is smaller than a statement
            return False

    # -- receiving

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Subscribe to the merged subjects of the patterns."""
        if not self._request.ends.sub:
            return
        exact = {subject_of(pattern) for pattern in patterns}
        subjects = generalise(exact)
        self._wants, self._listening = Wants(patterns), True
        self._known.clear()
        wide = {subject: self._is_wide(subject, exact, patterns) for subject in subjects}
        before, self._subjects = self._subjects, {}
        for subject, filters in wide.items():
            held = before.get(subject)
            if held is not None and held[1] == filters:
                self._subjects[subject] = before.pop(subject)
            else:
                take = self._filtering if filters else self._take
                self._subjects[subject] = self._client.subscribe(subject, take), filters
        self._client.unsubscribe([sid for sid, _ in before.values()])
        self._say_wide(exact, subjects)
        self.accounts.listen(patterns, subjects)

    def _is_wide(self, subject: bytes, exact: set[bytes], patterns: Sequence[Pattern]) -> bool:
        """Return True if a subject brings messages that no pattern matches."""
        if subject not in exact or subject.startswith(_WIDE):
            return True
        return any(
            pattern.prefix is not None and not pattern.prefix.endswith(b".") and subject_of(pattern) == subject
            for pattern in patterns
        )

    def _say_wide(self, exact: set[bytes], subjects: Sequence[bytes]) -> None:
        """Log once that merged subjects bring far more than the patterns need."""
        wide = [subject for subject in subjects if subject.startswith(_WIDE) and subject not in exact]
        if wide and not self._said_wide:
            self._said_wide = True
            _log.info(
                "%s: subscribes to %s, because some patterns overlap: the app drops the messages that no pattern "
                "matches",
                self._name,
                ", ".join(printable(subject) for subject in wide),
            )

    def _take(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        if not is_for_handlers(headers):
            self._inbox.append(frame_of(subject, headers, payload, time.time_ns))

    def _is_wanted(self, topic: bytes) -> bool:
        return not is_reserved(topic) and NUL not in topic and topic in self._wants

    def _filtering(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        if self._known[subject] and not is_for_handlers(headers):
            self._inbox.append(frame_of(subject, headers, payload, time.time_ns))

    def _take_private(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        if headers and not payload:
            if is_unheard(headers, payload):
                self.accounts.unheard(subject)
        elif payload.startswith(MAGIC):
            self._inbox.append(subject + NUL + payload)
        else:
            self._inbox.append(subject + NUL + MAGIC)  # counted as malformed

    def _wake(self) -> None:
        """Read in the next turn of the loop."""
        if not self._woken and (self._inbox or self._owed):
            self._woken = True
            asyncio.get_running_loop().call_soon(self._woken_up)

    def _woken_up(self) -> None:
        self._woken = False
        if not self._paused:
            self._read()

    def _read(self) -> None:
        """Pass the inbox to ``receive``, for up to `_TURN` seconds."""
        end = time.monotonic() + _TURN
        self._paused = self._owed = False
        while self._is_open and not self._paused and not self._finished:
            receive = self._receive
            assert receive is not None
            try:
                self._context.copy().run(receive, self._recv, self._more, READ_BUDGET)
            except _NothingLeftError:
                break
            if time.monotonic() >= end:
                self._hold()
                self._owed = True
                self._wake()
                return
        self._release()

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._client.pause()

    def _release(self) -> None:
        if self._held and not self._paused:
            self._held = False
            self._client.resume()

    def _recv(self, _flags: int, _copy: bool = True) -> bytes:
        if not self._inbox:
            raise _NothingLeftError
        return self._inbox.popleft()

    def _more(self) -> int:
        return 0

    def use(self, receive: Receive) -> None:
        """Pass all messages to another ``receive`` from now on."""
        self._receive, self._owed = receive, True
        if not self._paused:
            self._wake()

    def pause(self) -> None:
        """Stop reading, also from the server."""
        self._paused = True
        self._client.pause()
        if self._warning is None and not self._finished:
            self._warning = self._reactor.callLater(_PAUSED, self._warn)

    def resume(self) -> None:
        """Start reading again, in the next turn of the reactor."""
        self._paused, self._owed = False, True
        self._end_warning()
        if not self._held:
            self._client.resume()
        self._wake()

    def _warn(self) -> None:
        self._warning = None
        by = ", ".join(self._request.stats.paused_by) or "a full handler"
        _log.warning(
            "%s: reading has been paused for %.0f s (%s): a NATS server disconnects a client that does not read for "
            "10 s, or for which 64 MB wait. Make the handler faster, or raise its max_in_flight",
            self._name,
            _PAUSED,
            by,
        )

    def _end_warning(self) -> None:
        if self._warning is not None:
            self._warning.cancel()
            self._warning = None

    def _emptied(self) -> bool:
        """Return True if everything that had arrived was read since the last call.

        The answer of a PING follows everything that the server had for this client.
        """
        read, self._read_to_ping = self._read_to_ping, False
        if self._client.connected and not self._paused:
            self._client.ping().addCallback(self._answered)
        return read and not self._inbox and not self._paused

    def _answered(self, answered: bool) -> None:
        self._read_to_ping = self._read_to_ping or answered

    # -- ready

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when ``publishers`` publishers have answered."""
        return self.accounts.ready(publishers, state=state)

    def unready(self, *, state: bool) -> str:
        """Return the publishers that have answered."""
        answered = self.accounts.complete
        names = f" ({', '.join(map(printable, answered))})" if answered else ""
        kept = ""
        if state and self.accounts.given < len(answered):
            kept = f"; {len(answered) - self.accounts.given} of these publishers have not sent all kept messages"
        where = self._client.server or "no server"
        return (
            f"{len(answered)} publishers have answered{names}{kept}; connected to {where}; check that the publishers "
            "are running. Programs without zroute do not answer"
        )

    # -- the stop

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read everything that was sent before this call."""
        return Deferred.fromCoroutine(self._finish(reader, left))

    async def _finish(self, reader: Reader, left: Callable[[], float]) -> int:
        clock = self._reactor.seconds
        self._requests.withdraw()
        if self._listening and self._client.connected and reader.reads_on and left() > 0:
            self.accounts.ask_last()
            self._read_on()
            answers = clock() + min(ANSWER_SECONDS, left() / 2)
            while self._reads(reader) and self.accounts.awaited and clock() < answers:
                self._read_on()
                await self._wait(_ANSWERS)
        self._client.unsubscribe([sid for sid, _ in self._subjects.values()])
        self._subjects = {}
        if self._client.connected:
            pong = self._client.ping()
            while self._reads(reader) and not pong.called and left() > 0:
                self._read_on()
                await self._wait(_ANSWERS)
        while reader.reads_on and (self._inbox or reader.unpacked) and left() > 0:
            self._read_on()
            await self._wait(0)
        number = len(self._inbox) if reader.reads_on else 0
        if number:
            text = "%s: %d messages were still unread at the end of the drain timeout, and are dropped"
            _log.warning(text, self._name, number)
        self._finished = True
        self._inbox.clear()
        self._end_warning()
        self._client.resume()  # questions of subscribers are still answered
        return number

    def _reads(self, reader: Reader) -> bool:
        return reader.reads_on and self._client.connected

    def _read_on(self) -> None:
        """Read, even while paused."""
        self._end_warning()
        self._client.resume()
        self._held = False
        self._read()

    def _wait(self, seconds: float) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._reactor.callLater(seconds, turn.callback, None)
        return turn

    # -- publishing

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """Return a function that sends a frame, or counts it as dropped."""
        attempt, stats = self.try_sender(multipart=multipart), self._request.stats
        if attempt is None:
            return None
        send: Callable[[Any], bool] = attempt

        def send_or_drop(frame: bytes) -> None:
            if not send(frame):
                # The caller counts the message as published.
                stats.published -= 1
                stats.publish_errors += 1
                why = "the send buffer is full" if self._client.connected else "no NATS server is connected"
                self._reports(
                    "unsent",
                    f"{self._name}: unsent messages",
                    logging.WARNING,
                    "%s: messages not sent: %s",
                    self._name,
                    why,
                )

        return send_or_drop

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool] | None:
        """Return a function that sends a frame now, or returns False.

        It returns False if no server is connected, or if the client's buffer is full.
        """
        if not self._request.ends.pub:
            return None
        publish, valid = self._client.publish, self._valid

        def send(frame: bytes) -> bool:
            subject, headers, payload = message_of(frame)
            if headers:
                try:
                    return publish(subject, payload, None, headers)
                except EncodeError as error:  # too large
                    self._take_back(subject, frame)
                    raise EncodeError(f"cannot publish to {printable(subject)!r}: {error}") from None
            return publish(valid[subject], payload)

        return send

    def _take_back(self, topic: bytes, frame: bytes) -> None:
        """Release the number of a message that is refused.

        Otherwise subscribers would count it as lost.
        """
        if self._session is not None and parse_header(frame[len(topic) + 1 :]).kind is Kind.DATA:
            self._session.counters.take_back(topic)

    def make_session(self, request: SessionRequest) -> TransportSession:
        """Return the session that numbers messages by topic."""
        session = self._session = TopicPublisherSession(
            self._reactor, self._tell, request.clock_ns, self._name, request.name(), _log, request.declared
        )
        session.concerns_all = not request.declared and self._cluster.publishes_anything
        session.most = lambda: self._client.max_payload
        self._asked = [
            self._client.subscribe(ASK, self._take_question),
            self._client.subscribe(private_subject(session.epoch, b"*"), self._take_question),
        ]
        self._introduce()
        return session

    def _introduce(self) -> None:
        """Tell subscribers that this publisher has started, or has connected again."""
        if self._session is None or not self._client.connected:
            return
        if self._introduced:
            self._session.returned()
        else:
            self._introduced = True
            self._session.connected()

    def _take_question(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        assert self._session is not None
        if headers and not payload:
            if is_unheard(headers, payload):
                self._session.unheard(subject)
        else:
            self._session.asked(reply or b"", payload)

    # -- requests and jobs

    def open_requests(self, client: Requests | None, on_request: Callable[[Asked], object] | None) -> None:
        """Prepare to send and to answer requests."""
        self._requests.open(client, on_request)

    def answer(self, patterns: Sequence[Pattern]) -> None:
        """Subscribe to the requests that the handlers answer."""
        self._requests.answer(patterns)

    def hand_out(self, owner: JobOwner) -> SendJob:
        """Connect to the workers of the app's jobs."""
        self._group = WorkerGroup(self._reactor, self._of_jobs("job queues"))
        return self._group.open(owner)

    def take_jobs(self, make: MakeWorker) -> None:
        """Take jobs from the queue group."""
        self._intake = JobIntake(self._reactor, self._of_jobs("work"), self._cluster.address)
        self._intake.open(make)

    def _of_jobs(self, purpose: str) -> ClientOptions:
        return attrs.evolve(self._options, purpose=purpose, persists=True)

    @property
    def workers(self) -> Sequence[JobWorker]:
        """The worker of the queue group."""
        return () if self._intake is None else (self._intake,)
