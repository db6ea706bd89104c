"""The publisher behind ``zroute pub`` and ``zroute replay``.

The publisher waits for a subscriber, runs a job that sends messages through a `Sender`, and ends when the subscribers
have read all messages. If a queue is full, the sender waits instead of dropping messages. It counts messages to topics
without a subscriber. On the tracked wire, the sender numbers messages like an app, and ends with a goodbye. Subscribers
can therefore count received and lost messages exactly.
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
from zroute.endpoints import Access, Endpoint
from zroute.errors import EndpointError
from zroute.logs import set_up_logging
from zroute.messages.control import FAREWELL, MARKER
from zroute.messages.topics import Topic
from zroute.options import READ_BUDGET, SEND_QUEUE
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.runtime.exit_codes import EXIT_DRAIN, EXIT_ENDPOINT, EXIT_TIMED_OUT
from zroute.runtime.runner import install_reactor
from zroute.runtime.signals import StopSignals, run_reactor
from zroute.sockets.lossless import LosslessPubConnection

__all__ = ["Job", "Sender", "SocketSender", "covers", "end_now", "say", "send"]

_FLUSH = 30.0
"""The maximum time in seconds for subscribers to read the remaining messages at the end.

A slow subscriber needs less time, and a dead subscriber must not keep the command waiting forever.
"""

_SETTLE = 0.05
"""The seconds without a new subscription after which all subscriptions of a subscriber are assumed to have arrived.

Subscriptions arrive one by one.
"""

_RETRY = 0.002
"""The time in seconds until the next attempt if a queue is full.

libzmq makes room for thousands of messages at once, so these pauses do not reduce the rate.
"""

_PATIENCE = 1.0
"""The time in seconds after which a full queue, or a flush that has not finished, causes a line of output."""

_log = logging.getLogger("zroute")


class Sender:
    """Sends the messages of a job.

    Attributes:
        sent: The number of messages sent.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.sent = 0
        self._began = 0.0

    def begin(self) -> None:
        """Start the clock of `elapsed` and `until`."""
        self._began = self.reactor.seconds()

    @property
    def elapsed(self) -> float:
        """The time since the job began, in seconds."""
        return float(self.reactor.seconds() - self._began)

    async def until(self, at: float) -> None:
        """Wait until ``at`` seconds after the job began.

        If that time has passed, return at once.
        """
        left = at - self.elapsed
        if left > 0:
            await deferLater(self.reactor, left)

    async def publish(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any]) -> None:
        """Send one message, numbered.

        Waits while there is no room for the message. ``codec`` is the codec's number on the wire.
        """
        raise NotImplementedError

    async def _sent_one(self) -> None:
        self.sent += 1
        if self.sent % READ_BUDGET == 0:  # let timers, signals and subscriptions run
            await deferLater(self.reactor, 0)


class SocketSender(Sender):
    """Sends the messages of a job at a ZeroMQ endpoint.

    Attributes:
        unheard: The number of sent messages whose topic had no subscriber at that time.
    """

    def __init__(self, reactor: Any, connection: LosslessPubConnection) -> None:
        super().__init__(reactor)
        self.unheard = 0
        self._connection = connection
        self._send_queue = SendQueue(reactor, limit=SEND_QUEUE, timeout=_FLUSH, lost=lambda topic, count, error: None)
        self._publishing = PublisherSession(
            reactor, self._send_queue, connection.try_frame, time.time_ns, "zroute pub", "", _log
        )
        self._frame: Callable[..., Any] = self._publishing.framer(time.time_ns, keeps=False)
        self._slow_since: float | None = None
        self._said = False

    def track(self) -> None:
        """Let subscribers join: answer their markers and send beats.

        If the job uses `publish`, call this before the socket is opened.
        """
        self._connection.on_subscription = self._publishing.subscription

    async def goodbye(self, seconds: float) -> bool:
        """Tell joined subscribers that no more messages follow.

        Returns True if all subscribers have read this goodbye within ``seconds``.
        """
        with suppress(TimeoutError):
            await within(seconds, self._publishing.goodbye(), self.reactor)
        self._send_queue.close()
        return not self._publishing.unread

    async def publish(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any]) -> None:
        """Send one message to the subscribers of its topic, on the tracked wire.

        Waits until the queue of each subscriber has room for the message. ``codec`` is the codec's number on the wire.
        """
        counters = self._publishing.counters

        def attempt() -> bool:
            # Control frames of this topic, such as beats, may wait; a message must not overtake them.
            if self._send_queue.delays(topic):
                return False
            sent = self._connection.try_frame(self._frame(topic, codec, body, headers))
            if not sent:
                counters.take_back(topic)  # subscribers would count an unused number as a loss
            return sent

        await self._when_there_is_room(topic, attempt)

    async def send(self, frames: tuple[bytes, ...]) -> None:
        """Send the frames of one message, unchanged, to the subscribers of its topic.

        Waits until the queue of each subscriber has room for the message.
        """
        topic = frames[0].partition(b"\0")[0]
        await self._when_there_is_room(topic, lambda: self._connection.try_send(frames))

    async def _when_there_is_room(self, topic: bytes, attempt: Callable[[], bool]) -> None:
        """Call ``attempt`` until it returns True, and count the message.

        ``attempt`` sends the message, and returns False if a queue is full.
        """
        if not covers(self._connection.subscriptions, topic):
            self.unheard += 1
        while not attempt():
            self._say_when_slow()
            await deferLater(self.reactor, _RETRY)
        self._slow_since = None
        await self._sent_one()

    def _say_when_slow(self) -> None:
        """Print a line, once, if a queue has been full for ``_PATIENCE`` seconds."""
        now = self.reactor.seconds()
        self._slow_since = self._slow_since or now
        if now - self._slow_since > _PATIENCE and not self._said:
            self._said = True
            say("a subscriber reads slowly or not at all: waiting, so that no message is lost")


Job = Callable[[Any], Coroutine[Any, Any, None]]
"""A coroutine function that sends all messages through a `Sender`."""


def covers(subscriptions: Container[bytes], topic: bytes) -> bool:
    """Return True if one of the ``subscriptions`` is a prefix of ``topic``."""
    return any(topic[:size] in subscriptions for size in range(len(topic) + 1))


def send(
    endpoint: Endpoint,
    job: Job,
    *,
    wait: float,
    wanted: Callable[[Set[bytes]], bool],
    whom: str,
    tracked: bool = False,
    access: Access,
) -> int:
    """Open ``endpoint``, wait for a subscriber, run ``job`` and flush.

    The first signal cancels the job, and the flush follows. A second signal, with the number n, ends the process at
    once with the exit code 128 + n.

    Args:
        endpoint: The endpoint to bind or connect.
        job: A coroutine function that sends all messages through the `Sender`.
        wait: The maximum time in seconds to wait for a subscriber. With 0, the job begins at once.
        wanted: Called with the active subscriptions. Returns True if the job can begin.
        whom: A description of the expected subscriber, for messages to the user.
        tracked: True if the job uses `Sender.publish`. Subscribers can then join.
        access: The keys, or that the endpoint may be open.

    Returns:
        0 if the subscribers have read all sent messages, also after a signal. 5 if the endpoint can't be opened. 75 if
            subscribers had not read all messages after 30 s, or lost messages because their connection was reset. 124
            if no subscriber arrived in time, so that nothing was sent.

    Raises:
        Exception: The error of the job. `send` raises this error after the flush.
    """
    set_up_logging("warning", "auto")
    reactor = install_reactor(None)
    sending = _Sending(reactor, endpoint, job, wait, wanted, whom, tracked, access)
    run_reactor(reactor, sending.signals, sending.start)
    if sending.failure is not None:
        sending.failure.raiseException()
    return sending.code


class _Sending:
    """The state of one call of `send`."""

    def __init__(
        self,
        reactor: Any,
        endpoint: Endpoint,
        job: Job,
        wait: float,
        wanted: Callable[[Set[bytes]], bool],
        whom: str,
        tracked: bool,
        access: Access,
    ) -> None:
        self.code = 0
        self.failure: Failure | None = None
        self._reactor = reactor
        self._endpoint = endpoint
        self._job = job
        self._wait = wait
        self._wanted = wanted
        self._whom = whom
        self.signals = StopSignals(lambda: reactor.callFromThread(self._stop), end_now)
        self._changed: Deferred[None] = Deferred()
        self._connection = LosslessPubConnection(reactor, self._on_change)
        self._connection.log.name = click.get_current_context().command_path
        # The names that the log lines of the connection use for its options.
        self._connection.endpoint_option, self._connection.size_option = "ENDPOINT", None
        self._access = access
        self._sender = SocketSender(reactor, self._connection)
        if tracked:
            self._sender.track()
        self._began = False
        self._work: Deferred[None] = Deferred()

    def start(self) -> None:
        """Start the run in the running reactor, and stop the reactor at the end."""
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._failed)
        # Also after a cancelled job: `_failed` has turned the error into a result.
        self._work.addCallback(lambda _: Deferred.fromCoroutine(self._finish()))
        self._work.addErrback(self._failed)
        self._work.addCallback(lambda _: self._reactor.stop())

    async def _run(self) -> None:
        """Open the socket, wait for a subscriber, and run the job."""
        try:
            self._connection.protect(self._access)
            resolved = self._connection.open(self._endpoint)
        except EndpointError as error:
            say(str(error))
            self.code = EXIT_ENDPOINT
            return
        if (warning := self._access.exposure(self._endpoint.resolved(resolved))) is not None:
            say(warning)
        if self._wait and not await self._subscriber(resolved):
            self.code = EXIT_TIMED_OUT
            return
        self._began = True
        self._sender.begin()
        await self._job(self._sender)

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):  # a signal cancels the job
            self.failure = failure

    async def _finish(self) -> None:
        """Wait until the subscribers have read all messages, and print the numbers.

        Set the exit code if a subscriber has not read all messages. If the job has not begun, return at once.
        """
        sender, until = self._sender, self._reactor.seconds() + _FLUSH
        if not self._began:
            await sender.goodbye(_PATIENCE)  # for joined subscribers of other topics
            await self._connection.finish(0)
            return
        said = self._reactor.callLater(_PATIENCE, say, "waiting for subscribers to read the remaining messages")
        complete = await sender.goodbye(_FLUSH)
        complete = await self._connection.finish(max(until - self._reactor.seconds(), 0)) and complete
        if said.active():
            said.cancel()
        unheard = f", {sender.unheard} of them to topics without a subscriber" if sender.unheard else ""
        say(f"sent {sender.sent} {'message' if sender.sent == 1 else 'messages'}{unheard}")
        if lost_to := self._connection.lost_to:
            say(
                f"{lost_to} {'subscriber' if lost_to == 1 else 'subscribers'} reset the connection before reading "
                "all messages, reconnected, and lost messages. ZeroMQ's heartbeat can cause this in a subscriber whose "
                "queue is full. In the subscriber, set a longer ZMQ_HEARTBEAT_TIMEOUT, or remove this option"
            )
            self.code = EXIT_DRAIN
        elif not complete:
            say(f"subscribers had not read all messages after {_FLUSH:g} s, and may lose the last messages")
            self.code = EXIT_DRAIN

    # -- waiting for a subscriber -----------------------------------------------------------------------

    def _on_change(self, _prefix: bytes, _there: bool) -> None:
        if not self._changed.called:
            self._changed.callback(None)

    async def _subscriber(self, resolved: str) -> bool:
        """Wait for a wanted subscription. Return True if it arrives in time."""
        how = "bound to" if self._endpoint.bind else "connects to"
        say(f"{how} {resolved}, waiting for {self._whom}")
        live = self._connection.subscriptions
        deadline = self._reactor.seconds() + self._wait
        while not self._wanted(live):
            # A Deferred fires once, and the subscription that it reported was not enough.
            self._changed = Deferred()
            try:
                await self._changed.addTimeout(max(deadline - self._reactor.seconds(), 0), self._reactor)
            except TimeoutError:
                # Markers and farewells are subscriptions of the tracked wire, not of a topic.
                plain = (prefix for prefix in live if not prefix.startswith((MARKER, FAREWELL)))
                others = ", ".join(sorted(repr(Topic.from_wire(prefix)) for prefix in plain)[:8])
                say(
                    f"nothing was sent: waited {self._wait:g} s for {self._whom}; "
                    f"active subscriptions: {others or 'none'}"
                )
                return False
            await deferLater(self._reactor, _SETTLE)
        return True

    # -- signals ----------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Cancel the job. The flush follows, and is not cancelled."""
        if not self._work.called:
            self._work.cancel()


def end_now(number: int) -> None:
    """End the process, because of a second signal."""
    with suppress(Exception):  # a signal may arrive in the middle of a print
        say(f"{signal.Signals(number).name} received again: ending now")
    os._exit(128 + number)


def say(text: str) -> None:
    """Print a line on standard error."""
    click.echo(f"zroute: {text}", err=True)
