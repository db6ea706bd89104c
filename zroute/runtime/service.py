"""AppService: an app as a Twisted service that starts and stops its runs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import twisted
from twisted.application.service import Service
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from zroute.awaiting import loop_hint, was_cancelled
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, SetupError
from zroute.functions import PACKAGE
from zroute.logs import printable
from zroute.options import DRAIN_TIMEOUT
from zroute.planning.plan import Plan
from zroute.receiving.in_flight import error_of
from zroute.runtime.run import Environment, MessageLimit, Run, StopReport
from zroute.runtime.steady_clock import LOOK, steady_clock
from zroute.transport import Transport
from zroute.transports.zeromq import ZmqTransport

__all__ = ["AppService"]

_log = logging.getLogger("zroute")


class AppService(Service):
    """A Twisted service that runs an app; ``app.service(reactor)`` creates it.

    A Twisted program adds it to its own services:

        service = app.service(reactor)
        service.setServiceParent(application)

    Args:
        plan: the compiled app.
        reactor: the reactor to run on.
        sub: endpoints that replace those from which the app receives.
        pub: endpoints that replace those to which the app publishes.
        drain_timeout: the seconds that a stop waits for unfinished handlers.
        limit: ends reading after a number of messages.
        environment: the transport and clocks; tests replace them.
    """

    def __init__(
        self,
        plan: Plan,
        reactor: Any,
        *,
        sub: tuple[Endpoint, ...] | None = None,
        pub: tuple[Endpoint, ...] | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        limit: MessageLimit | None = None,
        environment: Environment | None = None,
    ) -> None:
        self.plan = plan
        self.name = None
        self.reactor = reactor
        self.subscribe_to, self.publish_to = plan.endpoints(sub=sub, pub=pub)
        self.drain_timeout = drain_timeout
        self.limit = limit
        self.environment = environment or Environment(ZmqTransport, isinstance(reactor, AsyncioSelectorReactor))
        self._run: Run | None = None
        self._stopping: Deferred[StopReport] | None = None
        self._in_start = False  # while it is True, `startService` raises an EndpointError itself
        # It fires also if the start fails: Twisted would log a failed Deferred that no code awaits.
        self._started: Deferred[None] = Deferred()
        self._failure: Failure | None = None
        self._clock_check: LoopingCall | None = None

    @property
    def started(self) -> Deferred[None]:
        """A new Deferred that fires when the app has subscribed.

        It fails if the start fails. It can be requested at any time, also after the start.
        """
        waiting: Deferred[None] = Deferred()

        def tell(_: None) -> None:
            if self._failure is None:
                waiting.callback(None)
            else:
                waiting.errback(self._failure)

        self._started.addCallback(tell)
        return waiting

    @property
    def transport(self) -> Transport | None:
        """The open transport, or None."""
        transport = self._run.transport if self._run else None
        return transport if transport is not None and transport.is_open else None

    @property
    def identity(self) -> str:
        """The publisher's name and epoch, as subscribers log them; "" if it sends none."""
        return self._run.identity if self._run else ""

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Open resources and sockets, run ``on_startup``, subscribe, and start timers.

        If resources or hooks are async, the start ends later; see `started`. The reactor's clock no longer jumps if the
        machine's clock is set: see `zroute.runtime.steady_clock`.

        Raises:
            EndpointError: an endpoint fails at once.
            UsageError: the app already runs.
        """
        self.plan.claim()
        Service.startService(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        self._stopping = None
        self._failure = None
        if self._started.called:
            self._started = Deferred()
        self._run = run = Run(
            self.plan,
            self.reactor,
            self.environment,
            subscribe_to=self.subscribe_to,
            publish_to=self.publish_to,
            limit=self.limit,
        )
        self.plan.live.run = run
        self._check_clock()
        self._in_start = True
        run.begin().addCallbacks(self._began, self._start_failed)
        self._in_start = False
        self._raise_endpoint_error()

    def stopService(self) -> Deferred[StopReport]:  # noqa: N802  # Twisted's name
        """Stop publishing, handle received messages, run ``on_shutdown``, and close.

        The Deferred fires with a `StopReport` within about ``drain_timeout`` seconds, and 3 s for the sockets. A second
        call waits for the same stop.
        """
        if self._stopping is None:
            self._stopping = Deferred()
            Service.stopService(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
            if self._clock_check is not None:
                self._clock_check.stop()
                self._clock_check = None
            run, self._run = self._run, None
            if run is None:
                self._stopping.callback(StopReport({}))
            else:
                Deferred.fromCoroutine(run.end(self.drain_timeout)).chainDeferred(self._stopping)
        waiting: Deferred[StopReport] = Deferred()

        def tell(result: Any) -> Any:
            waiting.callback(result)
            return result

        self._stopping.addBoth(tell)
        return waiting

    def _check_clock(self) -> None:
        clock = steady_clock(self.reactor)
        if clock is not None:
            self._clock_check = LoopingCall(clock.look)
            self._clock_check.clock = self.reactor
            self._clock_check.start(LOOK, now=False)

    def _began(self, _: None) -> None:
        if not self._started.called:
            self._started.callback(None)

    def _raise_endpoint_error(self) -> None:
        if self._failure is not None and isinstance(self._failure.value, EndpointError):
            raise self._failure.value.with_traceback(None)

    def _start_failed(self, failure: Failure) -> None:
        error = error_of(failure)
        if self._stopping is not None and was_cancelled(error):
            _log.warning("%s was stopped before it had started: its start was cancelled", self.plan.name)
        elif isinstance(error, EndpointError):  # one line is enough; `startService` raises it if it still runs
            if not self._in_start:
                _log.error("%s", error)
        elif isinstance(error, SystemExit):  # its text is written for the user, as in a script
            _log.error("%s did not start: %s", self.plan.name, error)
        else:
            text = "%s did not start: %s%s"
            from_user = _from_users_line(error)
            # The text of a SetupError may have several lines. Other errors may quote a peer, so they are escaped.
            why = failure.getErrorMessage() if isinstance(error, SetupError) else printable(failure.getErrorMessage())
            _log.error(text, self.plan.name, why, loop_hint(error), exc_info=from_user)
        self._failure = failure
        self._began(None)
        self.stopService()


_NOT_THE_USERS = (PACKAGE, *(f"{Path(str(each.__file__)).parent}{os.sep}" for each in (twisted, asyncio)))


def _from_users_line(error: BaseException) -> BaseException:
    """Return ``error`` with a traceback that begins in the user's code.

    The frames above show only how zroute called a resource or a hook.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.tb_next
    return error.with_traceback(frame or error.__traceback__)
