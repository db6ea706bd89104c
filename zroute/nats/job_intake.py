"""Jobs on NATS, at a worker: takes jobs from the queue group.

To the worker (`zroute.jobs.worker`), this module is the owner of the jobs, and passes them on. A handler has a few jobs
more than it runs, as on ZeroMQ; the others wait here.

**A full handler returns jobs** to the owners that are zroute apps, and announces when half of its jobs are done. It
stays in the queue group: if it left, a job on its way from another server of the cluster would be lost silently. Other
programs do not keep their jobs, so these wait here. If a handler has more jobs than it would accept from an owner, it
leaves the group, so that NATS passes further ones to other workers, until half of its jobs are done. If the jobs exceed
`JOBS_HELD` bytes, this worker stops reading.

**One group.** All zroute apps take jobs in one queue group, so a job is done once, even if several handlers of one app,
or of different apps, match its topic. A subject is left while one of the handlers that get its jobs is full.

**A reply** with an empty body confirms the job of a zroute app when it arrives; see `zroute.nats.worker_group`.

**Other programs.** A message without headers of zroute is a job, too. If it has a reply subject, its result goes there:
an empty message, or the error headers of NATS services. Requests and published messages of zroute apps are no jobs.

**A stop** leaves the queue group, and continues to do the jobs that have arrived. Those that have not begun at the end
of the drain timeout are published again for other workers.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.awaiting import within
from zroute.errors import EncodeError, EnvelopeError
from zroute.logs import printable
from zroute.messages.jobs import (
    ACCEPTED,
    CHANGED,
    DONE,
    FAILED,
    GIVEN_BACK,
    ID_SIZE,
    OFFER,
    REJECTED,
    pack_offer,
    pack_terms,
    parse_offer,
)
from zroute.messages.topics import Pattern, matches
from zroute.messages.wire import NUL
from zroute.nats.client import Client, ClientOptions, Connected, Dropped, Event
from zroute.nats.exchange import is_for_handlers, is_job, is_published, job_of
from zroute.nats.headers import NO_RESPONDERS, is_unheard, pack_service_error, refusal_of
from zroute.nats.subjects import is_reserved, overlap, subject_of
from zroute.nats.worker_group import GROUP, JOBS
from zroute.options import JOBS_HELD
from zroute.throttle import ThrottledLog
from zroute.transport import JobWorker, MakeWorker, OwnerLink

__all__ = ["JobIntake"]

_OVERHEAD: Final = 1_024  # bytes of a job without its content
_REPEATED: Final = "a job that this worker already has"
_NEVER: Final = 4e6  # seconds: this owner is never silent

_log = logging.getLogger("zroute")


@attrs.frozen(eq=False)
class _Taken:
    """A job: its parts for the worker, its message, and its size in bytes."""

    parts: tuple[bytes, ...]
    reply: bytes | None
    headers: bytes | None
    size: int


@attrs.define(eq=False)
class _Lane:
    """The jobs of one handler.

    ``held`` contains the jobs that wait here, and ``given`` is the number of unfinished jobs that the worker has. If
    ``is_full`` is true, NATS sends no further jobs. If ``has_refused`` is true, owners wait for an announcement.
    """

    credits: int
    patterns: Sequence[Pattern]
    held: deque[_Taken] = attrs.field(init=False, factory=deque)
    given: int = attrs.field(init=False, default=0)
    is_full: bool = attrs.field(init=False, default=False)
    has_refused: bool = attrs.field(init=False, default=False)

    @property
    def number(self) -> int:
        return len(self.held) + self.given

    def accepts(self, topic: bytes) -> bool:
        return any(matches(pattern, topic) is not None for pattern in self.patterns)


@attrs.define(eq=False)
class _Subject:
    """A subject, the lanes that may get its jobs, and the id of its subscription."""

    lanes: Sequence[_Lane]
    sid: bytes | None = None


class JobIntake:
    """The jobs that a worker takes from NATS; a `zroute.transport.JobWorker`.

    Args:
        reactor: The reactor.
        options: The options of the connection.
        address: The address of the servers, for logs.
    """

    def __init__(self, reactor: Any, options: ClientOptions, address: str) -> None:
        self._reactor = reactor
        self._name = options.name
        self._address = address
        self._nats = Client(options)
        self._nats.on_event = self._happened
        self._reports = ThrottledLog(_log, reactor)
        self._context = copy_context()
        self._worker: JobWorker
        self._lanes: tuple[_Lane, ...] = ()
        self._subjects: dict[bytes, _Subject] = {}
        self._given: dict[bytes, tuple[_Lane, _Taken]] = {}
        self._size = 0
        self._accepted = self._paused = self._closed = False
        self._left: Deferred[None] | None = None  # fires when a stopping worker has done its jobs
        self._reading = True  # False when no further job arrives
        self._passed = self._awaited = 0  # jobs that were published again: at other workers, and without a reply
        self._replied: Deferred[None] | None = None

    def open(self, make: MakeWorker) -> None:
        """Connect, and take jobs.

        Raises:
            EndpointError: The file of credentials can't be read.
        """
        self._worker = make(OwnerLink(self._address, self._told, lambda: None))
        self._worker.connected()
        self._nats.start().addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> None:
        if not self._closed:
            _log.error("%s: can't take jobs: %s", self._name, failure.value)

    def _happened(self, event: Event) -> None:
        match event:
            case Connected():
                self._announce(self._lanes)
            case Dropped(subject, size):
                why = f"{size} bytes" if size else "too many messages wait"
                self._say("dropped", "a job was dropped: %s (topic %s)", why, printable(subject))

    def _announce(self, lanes: Sequence[_Lane]) -> None:
        """Tell owners that handlers accept jobs."""
        if self._left is None and lanes:
            self._nats.publish(JOBS, pack_offer((lane.credits, lane.patterns) for lane in lanes))

    def _say(self, key: str, text: str, *facts: object) -> None:
        self._reports(key, f"{self._name}: jobs: {key}", logging.WARNING, f"%s: {text}", self._name, *facts)

    # -- messages of the worker

    def _told(self, parts: Sequence[bytes]) -> bool:
        """Process a message that is meant for the owner."""
        kind = parts[0]
        if kind == OFFER:
            self._offered(parts)
        elif kind == CHANGED:
            self._reactor.callLater(0, self._accept)
        elif kind in (DONE, FAILED, REJECTED, GIVEN_BACK):
            self._reported(kind, parts)
        return True

    def _offered(self, parts: Sequence[bytes]) -> None:
        """Subscribe to the jobs of all handlers."""
        self._lanes = tuple(_Lane(each.credits, each.patterns) for each in parse_offer(parts))
        of_lanes = [(lane, {subject_of(pattern) for pattern in lane.patterns}) for lane in self._lanes]
        for subject in sorted(set().union(*(subjects for _, subjects in of_lanes))):
            lanes = [lane for lane, subjects in of_lanes if any(overlap(subject, each) for each in subjects)]
            self._subjects[subject] = _Subject(lanes)
        self._subscribe()
        # In a later turn, because the worker waits for the answer only after this call.
        self._reactor.callLater(0, self._accept)

    def _accept(self) -> None:
        if not self._closed:
            self._accepted = True
            self._worker.received((ACCEPTED, pack_terms(_NEVER)))
            for lane in self._lanes:
                self._give(lane)

    def _reported(self, kind: bytes, parts: Sequence[bytes]) -> None:
        lane, taken = self._given.pop(parts[1])
        lane.given -= 1
        if kind == GIVEN_BACK:
            lane.held.appendleft(taken)
            return
        self._size -= taken.size
        if taken.reply is not None and not is_job(taken.headers):
            self._answer(taken.reply, 0 if kind == DONE else 500, b"".join(parts[2:]).decode())
        self._give(lane)
        self._weigh(lane)
        self._end_stop()

    def _answer(self, reply: bytes, code: int, text: str) -> None:
        """Send a result to another program; a code of 0 means that the job is done."""
        try:
            self._nats.publish(reply, b"", None, pack_service_error(code, text) if code else None)
        except EncodeError:
            self._say("answers", "a result was not sent to %s", printable(reply))

    # -- jobs

    def _subscribe(self) -> None:
        """Be a member of the queue group for the subjects of which no handler is full."""
        for subject, each in self._subjects.items():
            wanted = self._left is None and not any(lane.is_full for lane in each.lanes)
            if wanted and each.sid is None:
                each.sid = self._nats.subscribe(subject, self._take, GROUP)
            elif not wanted and each.sid is not None:
                self._nats.unsubscribe([each.sid])
                each.sid = None

    def _weigh(self, lane: _Lane) -> None:
        """Leave the queue group, or return to it; announce room.

        A worker leaves if a handler has too many jobs, and has room again when half of them are done.
        """
        has_room = lane.number <= lane.credits // 2
        full = lane.number > lane.credits or (lane.is_full and not has_room)
        changed, lane.is_full = full != lane.is_full, full
        if changed:
            self._subscribe()
        if has_room and (changed or lane.has_refused):
            lane.has_refused = False
            self._announce([lane])
        if self._paused != (self._size > (JOBS_HELD // 2 if self._paused else JOBS_HELD)):
            self._paused = not self._paused
            (self._nats.pause if self._paused else self._nats.resume)()

    def _take(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        self._context.copy().run(self._taken, subject, reply, headers, payload)

    def _taken(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        if self._closed or is_reserved(subject) or NUL in subject or is_published(headers):
            return
        if is_for_handlers(headers) and not is_job(headers):  # a request, which a server may also have received
            return
        lane = next((lane for lane in self._lanes if lane.accepts(subject)), None)
        try:
            if lane is None:
                raise EnvelopeError("no handler of this worker accepts the topic")
            parts = job_of(subject, headers, payload, os.urandom(ID_SIZE))
            if parts[1] in self._given:
                raise EnvelopeError(_REPEATED)
        except EnvelopeError as error:
            self._say("refused", "a job was refused: %s (topic %s)", error.reason, printable(subject))
            if reply is not None:
                self._answer(reply, 400, error.reason)
            return
        if is_job(headers) and reply is not None:
            has_room = lane.number < lane.credits and self._left is None
            self._answer(reply, *((0, "") if has_room else (NO_RESPONDERS, "this worker has no room for the job")))
            if not has_room:
                lane.has_refused = True
                return
        taken = _Taken(parts, reply, headers, sum(map(len, parts)) + _OVERHEAD)
        self._size += taken.size
        lane.held.append(taken)
        self._give(lane)
        self._weigh(lane)

    def _give(self, lane: _Lane) -> None:
        """Pass jobs to the worker while it has credit."""
        while self._accepted and lane.held and lane.given < lane.credits and not self._closed:
            taken = lane.held.popleft()
            if taken.parts[1] in self._given:  # a forged id: both waited here
                self._size -= taken.size
                self._say("refused", "a job was refused: %s (topic %s)", _REPEATED, printable(taken.parts[2]))
                continue
            self._given[taken.parts[1]] = lane, taken
            lane.given += 1
            try:
                self._worker.received(taken.parts)
            except EnvelopeError as error:  # the worker has rejected it
                self._say("refused", "a job was refused: %s (topic %s)", error.reason, printable(taken.parts[2]))

    # -- the rest of a worker, for the transport

    def connected(self) -> None:
        """Do nothing: `open` has connected the worker."""

    def disconnected(self) -> None:
        """Do nothing: jobs belong to no connection."""

    def received(self, parts: Sequence[bytes]) -> None:
        """Do nothing: jobs arrive by subscriptions."""

    def stop(self) -> Deferred[None]:
        """Leave the queue group.

        The Deferred fires when the jobs are done that have arrived.
        """
        if self._left is None:
            self._left = Deferred()
            self._subscribe()
            self._nats.ping().addCallback(self._read_all)
        return self._left

    def _read_all(self, _: bool) -> None:
        self._reading = False
        self._end_stop()

    def _end_stop(self) -> None:
        left = self._left
        if left is not None and not left.called and not self._reading and not any(lane.number for lane in self._lanes):
            left.callback(None)

    def close(self) -> None:
        """Stop all timers."""
        self._worker.close()

    def end(self, seconds: float) -> Deferred[None]:
        """Publish the jobs again that have not begun, and disconnect.

        The server has up to ``seconds`` to receive everything.
        """
        self._worker.stop()  # gives back the jobs that have not begun
        self._closed = True
        self.close()
        held = [taken for lane in self._lanes for taken in lane.held]
        if held:
            self._pass_on(held)
        return Deferred.fromCoroutine(self._end(seconds if self._nats.connected else 0.0, len(held)))

    async def _end(self, seconds: float, held: int) -> None:
        if self._awaited:
            self._replied = Deferred()
            with suppress(TimeoutError):
                await within(seconds, self._replied, self._reactor)
        await self._nats.close(seconds)
        self._ended(held)

    def _pass_on(self, held: Sequence[_Taken]) -> None:
        """Publish jobs again."""
        inbox = b"_INBOX." + secrets.token_hex(11).encode()
        self._nats.subscribe(inbox, self._passed_on)
        for taken in held:
            topic, body = taken.parts[2:4]
            # The reply subject of another program stays, because it awaits the result.
            foreign = taken.reply is not None and not is_job(taken.headers)
            try:
                sent = self._nats.publish(topic, body, taken.reply if foreign else inbox, taken.headers)
            except (EncodeError, UnicodeError) as error:
                # This server accepts only smaller messages; or nats-py can't send these headers of another program.
                self._say("unsent", "a job was not passed on: %s (topic %s)", error, printable(topic))
                continue
            if foreign:
                self._passed += sent
            else:
                self._awaited += sent

    def _passed_on(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        self._passed += not is_unheard(headers, payload) and refusal_of(headers) is None
        self._awaited -= 1
        if not self._awaited and self._replied is not None and not self._replied.called:
            self._replied.callback(None)

    def _ended(self, held: int) -> None:
        if held:
            _log.warning(
                "%s: jobs that had not begun at the end of the stop: %d passed to other workers, %d lost",
                self._name,
                self._passed,
                held - self._passed,
            )
        self._reports.close()
