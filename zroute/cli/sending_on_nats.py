"""The publisher behind ``zroute pub`` with an endpoint on NATS.

The publisher is an `App` with one publication, which numbers messages and says goodbye like any other. If no server is
connected, or its send buffer is full, it waits instead of dropping messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol, cast

import click
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.app import App
from zroute.awaiting import within
from zroute.cli.sending import Job, Sender, end_now, say
from zroute.endpoints import Cluster
from zroute.errors import EndpointError, HighWaterMarkError, NotReadyError
from zroute.logs import set_up_logging
from zroute.messages.wire import Wire
from zroute.nats.client import Denied
from zroute.options import LINGER_DRAIN, SEND_QUEUE_SECONDS
from zroute.planning.plan import Plan
from zroute.publishing.publication import Publication
from zroute.runtime.exit_codes import EXIT_DRAIN, EXIT_ENDPOINT, EXIT_TIMED_OUT
from zroute.runtime.runner import install_reactor
from zroute.runtime.service import AppService
from zroute.runtime.signals import StopSignals, run_reactor

__all__ = ["send_on_nats"]


def send_on_nats(cluster: Cluster, job: Job, *, topic: str, wire: Wire, wait: float) -> int:
    """Connect to NATS servers, wait for a subscriber, run ``job`` and disconnect.

    The first signal cancels the job, and the messages that were sent before still reach the server. A second signal,
    with the number n, ends the process at once with the exit code 128 + n.

    Args:
        cluster: The servers.
        job: A coroutine function that sends all messages through the `Sender`.
        topic: The topic of all messages.
        wire: "tracked" or "plain".
        wait: The maximum time in seconds to wait for a server and a subscriber. With 0, the job begins as soon as a
            server has answered, for which it waits 30 s.

    Returns:
        0 if all messages were sent, also after a signal. 5 if no server accepts this client, or the user has no
            permission to publish the topic or to find subscribers. 75 if no server answered for 30 s, or the messages
            could not be sent for 30 s. 124 if no server answered or no subscriber arrived within ``wait``, so that
            nothing was sent.

    Raises:
        Exception: The error of the job.
    """
    set_up_logging("warning", "auto")
    sending = _Sending(install_reactor("asyncio"), cluster, job, topic, wire, wait)
    run_reactor(sending.reactor, sending.signals, sending.start)
    if sending.failure is not None:
        sending.failure.raiseException()
    return sending.code


class _OnNats(Protocol):
    """What this module uses of `zroute.transports.nats.NatsTransport`."""

    denials: Counter[Denied]

    def confirmed(self) -> Deferred[None]:
        """Return a Deferred that fires when the server has answered."""


class _NatsSender(Sender):
    """Sends the messages of a job through a running app."""

    def __init__(self, reactor: Any, plan: Plan) -> None:
        super().__init__(reactor)
        self._plan = plan

    async def publish(self, topic: bytes, codec: int, body: bytes, headers: Mapping[str, Any]) -> None:
        """Send one message; see `Sender`."""
        emit = self._plan.live.emit
        assert emit is not None, "the app runs while its job runs"
        await emit(topic, codec, body, headers or None)
        await self._sent_one()


class _Sending:
    """The state of one call of `send_on_nats`."""

    def __init__(self, reactor: Any, cluster: Cluster, job: Job, topic: str, wire: Wire, wait: float) -> None:
        self.code = 0
        self.failure: Failure | None = None
        self.reactor = reactor
        self.signals = StopSignals(lambda: reactor.callFromThread(self._stop), end_now)
        self._cluster = cluster
        self._job = job
        self._topic = topic
        self._wait = wait
        app = App(name=click.get_current_context().command_path, overflow="wait", wire=wire)
        self._publication: Publication[bytes] = app.publisher(topic, bytes, codec="raw")
        plan = app.compile()
        self._sender = _NatsSender(reactor, plan)
        self._service = AppService(plan, reactor, nats=cluster.servers, nats_creds=cluster.creds, sub=(), req=())
        self._service.reports = self._service.logs_failed_start = False
        self._work: Deferred[None] = Deferred()

    def start(self) -> None:
        """Start the run in the running reactor, and stop the reactor at the end."""
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._failed)
        self._work.addCallback(lambda _: self._service.stopService())
        self._work.addErrback(self._failed)
        self._work.addCallback(lambda _: self.reactor.stop())

    async def _run(self) -> None:
        """Connect, wait for a subscriber, and run the job."""
        awaited = f", waiting for a subscriber to {self._topic!r}" if self._wait else ""
        say(f"connects to {self._cluster.address}{awaited}")
        until = self.reactor.seconds() + self._wait
        try:
            self._service.startService()
            await within(self._wait or SEND_QUEUE_SECONDS, self._service.started, self.reactor)
        except EndpointError as error:
            say(error.text)
            self.code = EXIT_ENDPOINT
            return
        except TimeoutError:
            waited = f"{self._wait or SEND_QUEUE_SECONDS:g} s"
            say(f"nothing was sent: no server has answered within {waited}: check the address, and that it runs")
            self.code = EXIT_TIMED_OUT if self._wait else EXIT_DRAIN
            return
        if self._wait and not await self._subscriber(until - self.reactor.seconds()):
            return
        self._sender.begin()
        try:
            await self._job(self._sender)
        except HighWaterMarkError as error:
            say(str(error))
            self.code = EXIT_DRAIN
        finally:
            await self._report()

    async def _report(self) -> None:
        """Print the number of sent messages, when the server has received all of them."""
        with suppress(TimeoutError):
            await within(LINGER_DRAIN / 1000, self._transport.confirmed(), self.reactor)
        topic = self._topic.encode().lower()
        denials = {each: count for each, count in self._transport.denials.items() if _unpublished(each) == topic}
        number = self._sender.sent - sum(denials.values())
        say(f"sent {number} {'message' if number == 1 else 'messages'}")
        for denied, count in denials.items():
            lost = "1 message was" if count == 1 else f"{count} messages were"
            say(f"{lost} not published, because {denied.server} refuses: {denied.text}")
            self.code = EXIT_ENDPOINT

    @property
    def _transport(self) -> _OnNats:
        return cast(_OnNats, self._service.transport)  # the app of this command runs on NATS

    async def _subscriber(self, seconds: float) -> bool:
        """Wait for a subscriber.

        Return True if it arrives within ``seconds``; otherwise, set the exit code.
        """
        try:
            await self._publication.wait_for_subscribers(timeout=max(seconds, 0.0))
        except NotReadyError:
            if denials := self._transport.denials:
                shown = "; ".join(each.text for each in denials)
                say(
                    f"nothing was sent: {self._cluster.address} refuses: {shown}. To find subscribers, the user needs "
                    "the permissions to subscribe to _zr.ask, _zr.*.* and _INBOX.>, and to publish to _zr.> and "
                    "_INBOX.>. To send without them, use --wait 0"
                )
                self.code = EXIT_ENDPOINT
                return False
            self.code = EXIT_TIMED_OUT
            say(
                f"nothing was sent: waited {self._wait:g} s for a subscriber to {self._topic!r}. Programs without "
                "zroute do not answer: send to them with --wait 0"
            )
            return False
        return True

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):  # a signal cancels the job
            self.failure = failure

    def _stop(self) -> None:
        """Cancel the job. The stop of the app follows, and is not cancelled."""
        if not self._work.called:
            self._work.cancel()


def _unpublished(denied: Denied) -> bytes | None:
    """Return the topic that may not be published, in lower case, or None."""
    topic = denied.unpublished
    return None if topic is None else topic.lower()
