"""AppService: an app as a Twisted service that starts and stops its runs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, Unpack

import twisted
from twisted.application.service import Service
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.awaiting import loop_hint, was_cancelled
from zroute.clock import Looping
from zroute.endpoints import EndpointOptions
from zroute.errors import EndpointError, SetupError, UsageError
from zroute.functions import PACKAGE
from zroute.logs import log_to_twisted, printable
from zroute.options import DRAIN_TIMEOUT
from zroute.planning.plan import Plan
from zroute.receiving.in_flight import error_of
from zroute.runtime.reports import log_counters, log_start, log_unfinished
from zroute.runtime.run import Environment, Leave, MessageLimit, Run, StopReport, exit_code
from zroute.runtime.steady_clock import LOOK, steady_clock
from zroute.transport import Transport
from zroute.transports.choosing import factory_for

__all__ = ["AppService"]

_log = logging.getLogger("zroute")


class AppService(Service):
    """A Twisted service that runs an app; ``app.service(reactor)`` creates it.

    A Twisted program adds the service to its own services:

        service = app.service(reactor)
        service.setServiceParent(application)

    Args:
        plan: the compiled app.
        reactor: the reactor to run on.
        drain_timeout: the maximum time in seconds that a stop waits for unfinished handlers.
        limit: ends reading after a number of messages.
        environment: the transport and clocks; tests replace them.
        leave: called instead of `stopService` if the app requests its end, with the exit code and the reason.
        given: endpoints that replace the app's own: ``sub=…``, ``pub=…`` and so on.

    Attributes:
        ends: the endpoints.
        exit_code: the code of ``app.stop(code)`` or of a SystemExit in the app's functions, or None.
        logs_failed_start: False if the caller itself reports errors of the start.
        owns_pool: True if the thread pool of the reactor may grow. `zroute run`, ``app.run`` and ``app.running`` set
            it. The default is False, because the size of the pool is the choice of the program that runs the reactor.
        reports: True to log lines about the start, and the counters at the end. The default is True; `zroute run` and
            ``app.run`` log these lines themselves, and tests do not log them.
        leaves_unread: True if the stop neither reads on nor reports losses. The default is False.
    """

    def __init__(
        self,
        plan: Plan,
        reactor: Any,
        *,
        drain_timeout: float = DRAIN_TIMEOUT,
        limit: MessageLimit | None = None,
        environment: Environment | None = None,
        leave: Leave | None = None,
        **given: Unpack[EndpointOptions],
    ) -> None:
        self.plan = plan
        self.name = None
        self.reactor = reactor
        self.ends = plan.endpoints(**given)
        if environment is None:  # the transport of tests has no keys
            plan.check_access(self.ends)
        self.drain_timeout = drain_timeout
        self.limit = limit
        on_asyncio = isinstance(reactor, AsyncioSelectorReactor)
        if self.ends.nats is not None and environment is None and not on_asyncio:
            raise UsageError(
                f"{plan} runs on NATS, which needs asyncio's reactor, but the given reactor is "
                f"{type(reactor).__name__}: call twisted.internet.asyncioreactor.install() before any import of "
                "twisted.internet.reactor, or use app.run() or `async with app.running()`"
            )
        # On NATS, every reactor is asyncio's, so the app alone decides how its `async` functions run.
        as_tasks = on_asyncio and (self.ends.nats is None or plan.addresses.reactor != "twisted")
        self.environment = environment or Environment(factory_for(self.ends), as_tasks)
        plan.check_reactor(on_asyncio=self.environment.asyncio)
        self.exit_code: int | None = None
        self.logs_failed_start = True
        self.reports = True
        self.owns_pool = False
        self.leaves_unread = False
        self._leave_with = leave
        self._run: Run | None = None
        self._stopping: Deferred[StopReport] | None = None
        self._in_start = False  # while it is True, `startService` raises an EndpointError itself
        # This Deferred also fires if the start fails: Twisted would log a failed Deferred that no code awaits.
        self._started: Deferred[None] = Deferred()
        self._failure: Failure | None = None
        self._clock_check: Looping | None = None
        self._ended: Deferred[None] = Deferred()
        self._logs_stop = False  # True after a start that was logged

    @property
    def started(self) -> Deferred[None]:
        """A new Deferred that fires when the app has subscribed.

        The Deferred fails if the start fails. This property can be read at any time, even after the start.
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
        """The publisher's name and epoch, as subscribers log them; "" without a name."""
        return self._run.identity if self._run else ""

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Open resources and sockets, run ``on_startup``, subscribe, and start timers.

        If resources or hooks are async, the start ends later; see `started`. After this call, the reactor's clock does
        not jump when the machine's clock is set: see `zroute.runtime.steady_clock`. Under ``twistd`` and ``twist``, log
        records go to Twisted's log: see `zroute.logs.log_to_twisted`.

        Raises:
            EndpointError: an endpoint can't be opened.
            UsageError: the app is already running.
        """
        self.plan.claim()
        log_to_twisted()
        Service.startService(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        self._stopping = None
        # A Twisted service may be started again after a stop, so nothing of the last run must remain.
        self._failure = self.exit_code = self.plan.live.exit_code = None
        self._ended = self.plan.live.ended = Deferred()
        self._logs_stop = False
        # A Deferred that has not fired may have been read before the start, so it is kept.
        if self._started.called:
            self._started = Deferred()
        self._run = run = Run(
            self.plan,
            self.reactor,
            self.environment,
            ends=self.ends,
            limit=self.limit,
            leave=self._leave,
            owns_pool=self.owns_pool,
        )
        self.plan.live.run = run
        self._check_clock()
        self._in_start = True
        run.begin().addCallback(self._log_start).addCallbacks(self._began, self._start_failed)
        self._in_start = False
        self._raise_endpoint_error()

    def stopService(self) -> Deferred[StopReport]:  # noqa: N802  # Twisted's name
        """Stop publishing, handle received messages, run ``on_shutdown``, and close.

        The Deferred fires with a `StopReport`, after at most about ``drain_timeout`` seconds plus 3 s for the sockets.
        A second call waits for the same stop.
        """
        if self._stopping is None:
            self._stopping = Deferred()
            self._stopping.addBoth(self._tell_end)
            Service.stopService(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
            if self._clock_check is not None:
                self._clock_check.stop()
                self._clock_check = None
            run, self._run = self._run, None
            if run is None:
                self._stopping.callback(StopReport({}))
            else:
                if self._logs_stop and self.exit_code is None:  # otherwise the exit code is logged, with its reason
                    _log.info("%s: stopping", self.plan.name)
                if self.leaves_unread:
                    run.leave_unread()
                ending = Deferred.fromCoroutine(run.end(self.drain_timeout))
                ending.addCallback(self._log_stop).chainDeferred(self._stopping)
        waiting: Deferred[StopReport] = Deferred()

        def tell(result: Any) -> Any:
            waiting.callback(result)
            return result

        self._stopping.addBoth(tell)
        return waiting

    def _leave(self, code: int, why: str) -> None:
        self._note_exit(self.exit_code or code)
        if self._leave_with is not None:
            self._leave_with(code, why)
        elif self._stopping is None:
            _log.info("%s: stopping: %s", self.plan.name, why)
            self.stopService()

    def _note_exit(self, code: int) -> None:
        self.exit_code = self.plan.live.exit_code = code

    def _tell_end(self, result: Any) -> Any:
        if not self._ended.called:
            self._ended.callback(None)
        return result

    def _log_start(self, _: None) -> None:
        self._logs_stop = self.reports
        if self.reports:
            log_start(self)

    def _log_stop(self, report: StopReport) -> StopReport:
        if self._logs_stop:
            log_unfinished(self, report)
            log_counters(self)
        return report

    def _check_clock(self) -> None:
        clock = steady_clock(self.reactor)
        if clock is not None:
            self._clock_check = Looping(clock.look)
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
            _log.warning("%s was stopped before the app had started, so the start was cancelled", self.plan.name)
        elif isinstance(error, EndpointError):  # one line is enough; `startService` raises it if it still runs
            error.locate(self.plan.where)
            if self.logs_failed_start and not self._in_start:
                _log.error("%s", error)
        elif isinstance(error, SystemExit):  # as in a script, its text is a message for the user
            self._note_exit(exit_code(error))
            why = f"SystemExit with code {self.exit_code}" if isinstance(error.code, int | None) else error
            _log.error("%s did not start: %s", self.plan.name, why)
        elif self.logs_failed_start:
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

    The omitted frames only show how zroute called a resource or a hook.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.tb_next
    return error.with_traceback(frame or error.__traceback__)
