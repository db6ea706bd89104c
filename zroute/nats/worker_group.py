"""Jobs on NATS, at the owner: all workers, as one worker with credits.

A job is a message to its topic. NATS delivers it to one member of the queue group `GROUP`, which confirms it when it
arrives. The owner is not told whether the job is done: it sends each job once, and forgets a confirmed job.

============================== ==============================================================================
event                          the job, for the owner (`zroute.jobs.owner`)
============================== ==============================================================================
a reply                        done: a worker has the job
a reply with the error 503     waits again, because the worker has no room
a reply with another error     rejected
the status 503 of the server   waits again, because no worker has subscribed to the topic
no reply in `_CONFIRMED`       rejected: a worker may have the job, so it must not be sent again
no room in the send buffer     waits here until there is room
a lost connection              rejected, for the same reason
a missing permission           rejected: the server has not published the job
============================== ==============================================================================

The status 503 alone would not be enough: a subscriber of all messages is also a receiver to NATS, so NATS would report
nothing although no worker has the job.

**No worker.** The owner sends no further jobs of a topic after the status 503. Workers announce themselves under
`JOBS`; the owner then tries the topics that they accept. Programs without zroute announce nothing, so the owner also
tries some topics each second.

**Full workers.** A worker that has enough jobs returns further ones, so that they wait here, as on ZeroMQ; see
`zroute.nats.job_intake`. The owner sends a returned job again at once, because NATS may then choose a worker with room.
After `_CREDITS` returned jobs in succession, the topic rests: for `_REST_MIN` seconds, and longer each time, up to
`_REST_MAX`. A worker announces that it has room again, and the owner then tries as many topics as it has room for.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from itertools import islice
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.errors import EncodeError, EnvelopeError
from zroute.messages.jobs import (
    CHANGED,
    DONE,
    JOB,
    OFFER,
    REJECTED,
    STOPPED,
    UNKNOWN,
    pack_offer,
    pack_text,
    parse_offer,
)
from zroute.messages.topics import Pattern, matches, startswith
from zroute.nats.client import Client, ClientOptions, Connected, Denied, Event, Lost
from zroute.nats.exchange import pack_job
from zroute.nats.headers import NO_RESPONDERS, check_headers, is_unheard, refusal_of
from zroute.nats.subjects import TOPICS, check_topic
from zroute.transport import JobOwner, SendJob

__all__ = ["GROUP", "JOBS", "WorkerGroup"]

GROUP: Final = b"zroute-jobs"
"""The queue group of all workers."""

JOBS: Final = b"_zr.jobs"
"""The subject under which workers announce the patterns of their jobs."""

_WORKER: Final = b"NATS"  # the identity of the worker that stands for all
_CREDITS: Final = 8
_CONFIRMED: Final = 10.0  # seconds
_PROBED: Final = 1.0  # seconds
_PROBES: Final = 100
"""The number of topics without a worker that the owner tries each `_PROBED` seconds."""

_MATCHED: Final = 1_000
"""The number of topics without a worker, or at full workers, that the owner compares with each announcement."""

_REST_MIN: Final = 0.002
_REST_MAX: Final = 0.128
"""The shortest and longest time in seconds for which the topics of full workers rest."""

_log = logging.getLogger("zroute")


class WorkerGroup:
    """The workers of an owner.

    Args:
        reactor: The reactor.
        options: The options of the connection.
    """

    def __init__(self, reactor: Any, options: ClientOptions) -> None:
        self._reactor = reactor
        self._name = options.name
        self._nats = Client(options)
        self._nats.on_event = self._happened
        self._inbox = b"_INBOX." + secrets.token_hex(11).encode()
        self._context = copy_context()
        self._owner: JobOwner
        self._sent: dict[bytes, tuple[bytes, float]] = {}  # topic and time of unconfirmed jobs by id, the oldest first
        self._unsent: deque[Sequence[bytes]] = deque()  # without room in the send buffer
        self._held: OrderedDict[bytes, None] = OrderedDict()  # the topics without a worker
        self._full: OrderedDict[bytes, None] = OrderedDict()  # the topics that rest
        self._refused = 0  # the number of jobs that full workers have returned since the last confirmation
        self._refusals: dict[bytes, int] = {}  # the same, for each topic
        self._rest = _REST_MIN
        self._probing: Any = None
        self._resting: Any = None
        self._waiting: Any = None  # the timer for the oldest unconfirmed job
        self._closed = False

    def open(self, owner: JobOwner) -> SendJob:
        """Connect; return the function that sends jobs.

        Raises:
            EndpointError: The file of credentials can't be read.
        """
        self._owner = owner
        owner.check, owner.watches_workers = self._check, False  # a job without a reply must not be sent again
        self._nats.subscribe(self._inbox + b".*", self._take_reply)
        self._nats.subscribe(JOBS, self._take_announcement)
        _log.info(
            "%s: jobs on NATS are sent at most once: a job is lost if its worker ends before the job is done, and "
            "'done' counts the jobs that a worker has received",
            self._name,
        )
        self._nats.start().addErrback(self._not_started)
        return self._send

    def _not_started(self, failure: Failure) -> None:
        if not self._closed:
            _log.error("%s: can't send jobs: %s", self._name, failure.value)

    def _check(self, topic: bytes, body: bytes, headers: Mapping[str, Any] | None) -> None:
        check_topic(topic)
        if headers:
            check_headers(headers)

    # -- the connection

    def _happened(self, event: Event) -> None:
        match event:
            case Connected():
                self._owner.received(_WORKER, (OFFER, _EVERYTHING))
            case Denied(server, text) if (topic := event.unpublished) is not None:
                for id in [id for id, (sent, _) in self._sent.items() if sent == topic]:
                    del self._sent[id]
                    self._reject(id, f"{server} refuses: {text}")
            case Lost(server):
                self._owner.received(_WORKER, (CHANGED, _NOTHING))
                sent, self._sent = self._sent, {}
                for id in sent:
                    self._reject(
                        id,
                        f"the connection to {server} was lost, and a worker may have the job: on NATS, a job is sent "
                        "only once",
                    )
                while self._unsent:
                    self._owner.returned(_WORKER, self._unsent.popleft()[1])
                self._owner.ended(_WORKER)

    def _reject(self, id: bytes, text: str) -> None:
        self._tell(REJECTED, id, pack_text(text))

    def _tell(self, *parts: bytes) -> None:
        if not self._closed:
            self._owner.received(_WORKER, parts)

    # -- sending

    def _send(self, _: bytes, parts: Sequence[bytes]) -> None:
        """Process a message of the owner.

        The answers follow in a later turn, because the owner is sending.
        """
        kind = parts[0]
        if kind == JOB:
            self._publish(parts)
        elif kind == UNKNOWN and self._nats.connected:
            self._reactor.callLater(0, self._tell, OFFER, _EVERYTHING)
        elif kind == STOPPED:
            self._closed = True

    def _publish(self, parts: Sequence[bytes]) -> None:
        _, id, topic, body, meta = parts
        if self._unsent:  # in order
            self._unsent.append(parts)
            return
        try:
            sent = self._nats.publish(topic, body, b"%b.%b" % (self._inbox, id.hex().encode()), pack_job(id, meta))
        except EncodeError as error:  # larger than the server accepts
            self._reactor.callLater(0, self._reject, id, str(error))
            return
        if not sent:
            self._unsent.append(parts)
            self._nats.ping().addCallback(self._drained)
            return
        self._sent[id] = topic, self._reactor.seconds()
        if self._waiting is None:
            self._waiting = self._reactor.callLater(_CONFIRMED, self._look_for_lost)

    def _drained(self, _: bool) -> None:
        if self._closed:  # the owner has counted these jobs
            return
        unsent, self._unsent = self._unsent, deque()
        for parts in unsent:
            if self._nats.connected:
                self._publish(parts)
            else:
                self._unsent.append(parts)  # `_happened` gives it back

    def _look_for_lost(self) -> None:
        """Give up on jobs that no worker has confirmed in time."""
        self._waiting = None
        now = self._reactor.seconds()
        for id, (_, sent) in tuple(self._sent.items()):
            if now - sent < _CONFIRMED:
                self._waiting = self._reactor.callLater(sent + _CONFIRMED - now, self._look_for_lost)
                return
            del self._sent[id]
            self._reject(
                id,
                f"no worker has confirmed the job in {_CONFIRMED:g} s: it may be lost, or at a worker without zroute "
                "that sends no reply; on NATS, a job is sent only once",
            )

    def _take_reply(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        self._context.copy().run(self._replied, subject, headers, payload)

    def _replied(self, subject: bytes, headers: bytes | None, payload: bytes) -> None:
        try:
            id = bytes.fromhex(subject[len(self._inbox) + 1 :].decode())
        except ValueError:  # from a program that has made up the subject
            return
        topic, _ = self._sent.pop(id, (None, 0.0))
        if topic is None or self._closed:
            return
        if is_unheard(headers, payload):
            self._hold(topic)
            self._owner.returned(_WORKER, id)
        elif (refusal := refusal_of(headers)) is None:
            self._refusals.pop(topic, None)
            self._refused, self._rest = 0, _REST_MIN
            self._tell(DONE, id)
        elif refusal[0] == NO_RESPONDERS:
            self._count_refusal(topic)
            self._owner.returned(_WORKER, id)
        else:
            self._reject(id, refusal[1])

    # -- topics without a worker

    def _hold(self, topic: bytes) -> None:
        self._held[topic] = None
        self._owner.hold(topic)
        if self._probing is None:
            self._probing = self._reactor.callLater(_PROBED, self._probe)

    def _probe(self) -> None:
        self._probing = None
        self._release(tuple(islice(self._held, _PROBES)))
        if self._held:
            self._probing = self._reactor.callLater(_PROBED, self._probe)

    def _take_announcement(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        if not (self._held or self._full) or self._closed:
            return
        try:
            offered = parse_offer((OFFER, payload))
        except EnvelopeError:
            return
        patterns = [pattern for each in offered for pattern in each.patterns]
        room = sum(each.credits for each in offered)
        accepted = [*_matching(self._held, patterns), *_matching(self._full, patterns)[:room]]
        self._context.copy().run(self._release, accepted)

    def _release(self, topics: Sequence[bytes]) -> None:
        for topic in topics:
            self._held.pop(topic, None)
            self._full.pop(topic, None)
            self._owner.release(topic)

    # -- topics of full workers

    def _count_refusal(self, topic: bytes) -> None:
        """Let a topic rest if full workers have returned many jobs in succession."""
        if len(self._refusals) >= TOPICS:
            self._refusals.clear()
        self._refused += 1
        self._refusals[topic] = refusals = self._refusals.get(topic, 0) + 1
        if max(refusals, self._refused) < _CREDITS:
            return
        self._full[topic] = None
        self._owner.hold(topic)
        if self._resting is None:
            self._set_rest()

    def _set_rest(self) -> None:
        self._resting = self._reactor.callLater(self._rest, self._rested)
        self._rest = min(2 * self._rest, _REST_MAX)

    def _rested(self) -> None:
        self._resting = None
        self._release(tuple(islice(self._full, _CREDITS)))
        if self._full:
            self._set_rest()

    # -- the stop

    def close(self, seconds: float) -> Deferred[None]:
        """Disconnect, after up to ``seconds`` in which the server receives all jobs."""
        self._closed = True
        for timer in (self._probing, self._waiting, self._resting):
            if timer is not None:
                timer.cancel()
        self._probing = self._waiting = self._resting = None
        return self._nats.close(seconds if self._nats.connected else 0.0)


def _matching(topics: OrderedDict[bytes, None], patterns: Sequence[Pattern]) -> list[bytes]:
    """Return the topics that a pattern matches; compare the others later next time."""
    found = []
    for topic in tuple(islice(topics, _MATCHED)):
        if any(matches(pattern, topic) is not None for pattern in patterns):
            found.append(topic)
        else:
            topics.move_to_end(topic)
    return found


_EVERYTHING: Final = pack_offer([(_CREDITS, [startswith(b"")])])
_NOTHING: Final = pack_offer(())
