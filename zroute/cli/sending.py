"""What ``zroute pub`` and ``zroute replay`` share: a publisher's socket for the time of one job.

It waits for a subscriber, lets the job send through an `Outlet`, which waits where a queue is full, and ends
when the subscribers have read everything. Nothing is dropped; what nobody subscribed to is counted. What is published
on the tracked wire is numbered as an app's messages are, and ends with a goodbye, so that readers count exactly.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Container, Coroutine, Mapping, Set
from contextlib import suppress
from typing import Any

import click
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from zroute.awaiting import within
from zroute.cli.loading import EXIT_ENDPOINT
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError
from zroute.logs import set_up_logging
from zroute.messages.control import FAREWELL, MARKER
from zroute.messages.topics import Topic
from zroute.options import READ_BUDGET, SEND_QUEUE
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.runtime.runner import EXIT_DRAIN, install_reactor
from zroute.runtime.signals import run_reactor
from zroute.sockets.lossless import LosslessPubConnection

__all__ = ["EXIT_NOBODY", "Job", "Outlet", "covers", "send"]

EXIT_NOBODY = 124  # as timeout(1) has it

_FLUSH = 30.0
"""Seconds that subscribers are given in the end to read what was sent: enough for a slow one, no hang for a dead."""

_SETTLE = 0.05
"""Seconds without a new subscription after which a subscriber has sent them all: they come one by one."""

_RETRY = 0.002
"""Seconds until a full queue is tried again; libzmq makes room for thousands at once, so this costs nothing."""

_ONE_SIGNAL = 0.2
"""Seconds in which signals are one: timeout(1) sends its to the process, and at once again to its group."""

_PATIENCE = 1.0
"""Seconds of a full queue until that is said."""


_log = logging.getLogger("zroute")


class Outlet:
    """Where a job sends. ``sent`` counts the messages, ``unheard`` those whose topic nobody subscribed to then."""

    def __init__(self, reactor: Any, connection: LosslessPubConnection) -> None:
        self.reactor = reactor
        self.sent = 0
        self.unheard = 0
        self._connection = connection
        self._send_queue = SendQueue(reactor, limit=SEND_QUEUE, timeout=_FLUSH, lost=lambda topic, count, error: None)
        self._publishing = PublisherSession(
            reactor, self._send_queue, connection.try_frame, time.time_ns, "zroute pub", "", _log
        )
        self._frame: Callable[..., Any] = self._publishing.framer(time.time_ns, keeps=False)
        self._began = 0.0
        self._slow_since: float | None = None
        self._said = False

    def begin(self) -> None:
        """The job begins now."""
        self._began = self.reactor.seconds()

    @property
    def elapsed(self) -> float:
        """Seconds since the job began."""
        return float(self.reactor.seconds() - self._began)

    async def until(self, at: float) -> None:
        """Wait until ``at`` seconds after the job began; not at all when that is past."""
        left = at - self.elapsed
        if left > 0:
            await deferLater(self.reactor, left)

    def track(self) -> None:
        """Answer markers, and beat: before the socket is opened, if anything is going to be published."""
        self._connection.on_subscription = self._publishing.subscription

    async def goodbye(self, seconds: float) -> bool:
        """Tell all who have joined that this was all; return True if they have read it within ``seconds``."""
        with suppress(TimeoutError):
            await within(seconds, self._publishing.goodbye(), self.reactor)
        self._send_queue.close()
        return not self._publishing.unread

    async def publish(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any]) -> None:
        """Send one message on the tracked wire to all who subscribe to it, once each of them has room for it."""
        counters = self._publishing.counters

        def attempt() -> bool:
            if self._send_queue.delays(topic):
                return False
            sent = self._connection.try_frame(self._frame(topic, codec, body, headers))
            if not sent:
                counters.take_back(topic)  # a number that no subscriber was sent would be a loss to all
            return sent

        await self._when_there_is_room(topic, attempt)

    async def send(self, frames: tuple[bytes, ...]) -> None:
        """Send these frames to all who subscribe to them, once each of them has room for them."""
        topic = frames[0].partition(b"\0")[0]
        await self._when_there_is_room(topic, lambda: self._connection.try_send(frames))

    async def _when_there_is_room(self, topic: bytes, attempt: Callable[[], bool]) -> None:
        if not covers(self._connection.subscriptions, topic):
            self.unheard += 1
        while not attempt():
            self._say_when_slow()
            await deferLater(self.reactor, _RETRY)
        self._slow_since = None
        self.sent += 1
        if self.sent % READ_BUDGET == 0:  # timers, signals and subscriptions have their turn
            await deferLater(self.reactor, 0)

    def _say_when_slow(self) -> None:
        now = self.reactor.seconds()
        self._slow_since = self._slow_since or now
        if now - self._slow_since > _PATIENCE and not self._said:
            self._said = True
            _say("a subscriber reads slowly or not at all: waiting for it, so that nothing is lost")


Job = Callable[[Outlet], Coroutine[Any, Any, None]]


def covers(subscriptions: Container[bytes], topic: bytes) -> bool:
    """Whether one of the ``subscriptions`` is a prefix of ``topic``."""
    return any(topic[:size] in subscriptions for size in range(len(topic) + 1))


def send(
    endpoint: Endpoint,
    job: Job,
    *,
    wait: float,
    wanted: Callable[[Set[bytes]], bool],
    whom: str,
    tracked: bool = False,
) -> int:
    """Open ``endpoint``, run ``job`` once a subscriber is there, flush; returns the exit code.

    ``wanted`` says of the live subscriptions whether it is worth beginning for them; ``whom`` describes who
    would have such a one. That is waited for at most ``wait`` seconds; 0 begins at once. ``tracked`` says that the
    job uses `Outlet.publish`, so that subscribers can join.

    0: all was sent and read, or a signal came, and what was sent until then was read. 5: the endpoint can't be
    opened. 75: subscribers had not read all after 30 s. 124: nobody came, and nothing was sent. A second
    signal n ends the process at once, with 128+n. What the job raises is raised here, after the flush.
    """
    set_up_logging("warning", "auto")
    reactor = install_reactor(None)
    sending = _Sending(reactor, endpoint, job, wait, wanted, whom, tracked)
    run_reactor(reactor, sending.signalled, sending.start)
    if sending.failure is not None:
        sending.failure.raiseException()
    return sending.code


class _Sending:
    """One run, from the socket that opens to the one that has been read to the end."""

    def __init__(
        self,
        reactor: Any,
        endpoint: Endpoint,
        job: Job,
        wait: float,
        wanted: Callable[[Set[bytes]], bool],
        whom: str,
        tracked: bool,
    ) -> None:
        self.code = 0
        self.failure: Failure | None = None
        self._reactor = reactor
        self._endpoint = endpoint
        self._job = job
        self._wait = wait
        self._wanted = wanted
        self._whom = whom
        self._signalled_at: float | None = None
        self._changed: Deferred[None] = Deferred()
        self._connection = LosslessPubConnection(reactor, self._on_change)
        self._connection.log.name = click.get_current_context().command_path
        self._connection.endpoint_option, self._connection.size_option = "ENDPOINT", None
        self._outlet = Outlet(reactor, self._connection)
        if tracked:
            self._outlet.track()
        self._began = False
        self._work: Deferred[None] = Deferred()

    def start(self) -> None:
        """Begin; the reactor stops in the end."""
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._failed)
        self._work.addCallback(lambda _: Deferred.fromCoroutine(self._finish()))
        self._work.addErrback(self._failed)
        self._work.addCallback(lambda _: self._reactor.stop())

    async def _run(self) -> None:
        try:
            resolved = self._connection.open(self._endpoint)
        except EndpointError as error:
            _say(str(error))
            self.code = EXIT_ENDPOINT
            return
        if self._endpoint.is_open:
            _say(f"{resolved} is open to the network, without authentication")
        if self._wait and not await self._subscriber(resolved):
            self.code = EXIT_NOBODY
            return
        self._began = True
        self._outlet.begin()
        await self._job(self._outlet)

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):  # which is a signal
            self.failure = failure

    async def _finish(self) -> None:
        """Flush, if there is anything to flush, and say what was sent."""
        outlet, until = self._outlet, self._reactor.seconds() + _FLUSH
        if not self._began:
            await outlet.goodbye(_PATIENCE)  # to subscribers to other topics
            await self._connection.finish(0)
            return
        said = self._reactor.callLater(_PATIENCE, _say, "waiting for subscribers to read what was sent")
        complete = await outlet.goodbye(_FLUSH)
        complete = await self._connection.finish(max(until - self._reactor.seconds(), 0)) and complete
        if said.active():
            said.cancel()
        unheard = f", {outlet.unheard} of them to a topic that nobody subscribed to" if outlet.unheard else ""
        _say(f"sent {outlet.sent} {'message' if outlet.sent == 1 else 'messages'}{unheard}")
        if lost_to := self._connection.lost_to:
            _say(
                f"{lost_to} {'subscriber' if lost_to == 1 else 'subscribers'} reset the connection before everything "
                "was read, and connected again: messages are lost to them. Their own heartbeat does that while their "
                "queue is full; set a longer ZMQ_HEARTBEAT_TIMEOUT there, or none"
            )
            self.code = EXIT_DRAIN
        elif not complete:
            _say(f"subscribers had not read all of that after {_FLUSH:g} s: its end may be lost to them")
            self.code = EXIT_DRAIN

    # -- waiting for a subscriber -----------------------------------------------------------------------

    def _on_change(self, _prefix: bytes, _there: bool) -> None:
        if not self._changed.called:
            self._changed.callback(None)

    async def _subscriber(self, resolved: str) -> bool:
        """Whether one came in time whom it is worth beginning for."""
        how = "bound to" if self._endpoint.bind else "connects to"
        _say(f"{how} {resolved}, waits for {self._whom}")
        live = self._connection.subscriptions
        deadline = self._reactor.seconds() + self._wait
        while not self._wanted(live):
            self._changed = Deferred()
            try:
                await self._changed.addTimeout(max(deadline - self._reactor.seconds(), 0), self._reactor)
            except TimeoutError:
                plain = (prefix for prefix in live if not prefix.startswith((MARKER, FAREWELL)))
                others = ", ".join(sorted(repr(Topic.from_wire(prefix)) for prefix in plain)[:8])
                _say(
                    f"within {self._wait:g} s there was nobody to send to, so nothing was sent: expected {self._whom}; "
                    f"live subscriptions: {others or 'none'}"
                )
                return False
            await deferLater(self._reactor, _SETTLE)
        return True

    # -- signals ----------------------------------------------------------------------------------------

    def signalled(self, number: int, _frame: object) -> None:
        """The first one stops the job, and the flush goes on; the second ends the process."""
        now = self._reactor.seconds()
        if self._signalled_at is None:
            self._signalled_at = now
            self._reactor.callFromThread(self._stop)
        if now - self._signalled_at < _ONE_SIGNAL:
            return
        with suppress(Exception):  # a signal may come in the middle of a print
            _say(f"{signal.Signals(number).name} again: ending at once")
        os._exit(128 + number)

    def _stop(self) -> None:
        """Stop the job; not the flush, which comes after it."""
        if not self._work.called:
            self._work.cancel()


def _say(text: str) -> None:
    click.echo(f"zroute: {text}", err=True)
