"""Run apps as a program: the only module that uses the global reactor.

This module installs the requested reactor, and starts one service per app. All services stop if a signal arrives, a
limit is reached, one of them fails, or other code stops the reactor.

Each stop ends within a limited time, and leaves no socket or thread open.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from zroute.endpoints import SIDES, Endpoint, EndpointOptions
from zroute.errors import EndpointError, UsageError
from zroute.logs import FORMATS, LEVELS, printable, set_up_logging
from zroute.options import DRAIN_TIMEOUT
from zroute.planning.plan import Plan, reactor_kind
from zroute.runtime.exit_codes import EXIT_DRAIN, EXIT_ENDPOINT, EXIT_FAILED
from zroute.runtime.reports import log_counters, log_start, log_unfinished
from zroute.runtime.run import Environment, MessageLimit, exit_code
from zroute.runtime.service import AppService
from zroute.runtime.signals import in_main_thread, restored_handlers, run_reactor
from zroute.runtime.watchdog import Watchdog
from zroute.transports.choosing import factory_for

__all__ = [
    "REACTORS",
    "RUN_DEFAULTS",
    "LogFormat",
    "LogLevel",
    "Reactor",
    "RunOptions",
    "check_reactor",
    "check_seconds",
    "end_now",
    "install_reactor",
    "run",
    "stop",
]

Reactor = Literal["epoll", "poll", "select", "asyncio"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]

REACTORS: dict[str, str] = {
    "epoll": "twisted.internet.epollreactor",
    "poll": "twisted.internet.pollreactor",
    "select": "twisted.internet.selectreactor",
    "asyncio": "twisted.internet.asyncioreactor",
}

_ENDPOINT_FAILED = "an endpoint failed"

_THREADS = 1.0
"""The minimum time in seconds for threads to end after everything else has stopped. Threads can't be cancelled."""

_FLUSH = 0.5
"""The maximum time in seconds that an immediate end waits for its output to be read. The reader may be suspended."""

_log = logging.getLogger("zroute")


class Runnable(Protocol):
    """An app, or any other object that compiles to a plan."""

    def compile(self) -> Plan:
        """Check and freeze the app, and return its plan.

        Raises:
            SetupError: The app is invalid.
        """


def install_reactor(name: str | None, *, uvloop: bool = False) -> Any:
    """Install a reactor, and return it.

    Args:
        name: one of `REACTORS`; None installs Twisted's choice for the platform.
        uvloop: True to run the asyncio reactor on uvloop.

    Raises:
        UsageError: the platform does not support the reactor, uvloop is not installed, or ``uvloop`` is True but
            ``name`` is not "asyncio". It is also raised if the program has already installed another reactor by
            importing ``twisted.internet.reactor``.
    """
    install = _chosen_reactor(name, uvloop)
    if install is not None:
        install()
    from twisted.internet import reactor

    return reactor


def _chosen_reactor(name: str | None, uvloop: bool) -> Callable[[], None] | None:
    """Return the function that installs the reactor, without calling it.

    The result is None if the reactor is already installed, or if Twisted chooses it. The errors are those of
    `install_reactor`.
    """
    if uvloop:
        if name not in (None, "asyncio"):
            raise UsageError(f"uvloop is an asyncio loop, but the requested reactor is {name!r}: remove one of the two")
        name = "asyncio"
    if name is None:
        return None
    if name not in REACTORS:
        raise UsageError(f"unknown reactor {name!r}: use one of {', '.join(REACTORS)}")
    module = REACTORS[name]
    installed = _installed_reactor()
    if installed is None:
        return _installer(name, module, uvloop)
    if type(installed).__module__ != module:
        raise UsageError(
            f"the reactor {type(installed).__name__} is already installed, so {name!r} can't be installed: perhaps a "
            "module imports twisted.internet.reactor at its top level. Import the reactor inside a function"
        )
    if uvloop and not type(installed._asyncioEventloop).__module__.startswith("uvloop"):
        raise UsageError(
            "asyncio's reactor is already installed on a loop other than uvloop: remove uvloop, or do not install "
            "the reactor before the run"
        )
    return None


def check_reactor(
    plans: Sequence[Plan], reactor: str | None, *, uvloop: bool = False, nats: bool = False
) -> str | None:
    """Return the reactor on which all ``plans`` can run, without installing it.

    Args:
        plans: the compiled apps.
        reactor: the requested reactor; None leaves the choice to the apps.
        uvloop: True if the asyncio reactor on uvloop is requested.
        nats: True if an app runs on NATS, which needs asyncio's reactor.

    Returns:
        One of `REACTORS`, or None for Twisted's choice.

    Raises:
        UsageError: the apps need another reactor than the requested one, or need two different reactors. It is also
            raised if a module has installed a reactor that the apps can't use.
    """
    kind = reactor_kind(plans)
    requested = "asyncio" if uvloop else reactor
    if nats:
        if requested not in (None, "asyncio"):
            raise UsageError(
                f"NATS needs asyncio's reactor, but the requested reactor is {requested!r}: remove one of the two"
            )
        if kind == "asyncio" or requested is None:
            _chosen_reactor("asyncio", uvloop)
            return "asyncio"
    if kind is not None and requested is not None and (requested == "asyncio") != (kind == "asyncio"):
        needing = next(plan for plan in plans if plan.addresses.reactor is not None)
        raise UsageError(
            f"{needing} needs reactor={kind!r}, but the requested reactor is {requested!r}: remove one of the two"
        )
    chosen = "asyncio" if kind == "asyncio" else reactor
    _chosen_reactor(chosen, uvloop)
    installed = _installed_reactor()
    if kind == "twisted" and installed is not None:
        for plan in plans:
            plan.check_reactor(on_asyncio=type(installed).__module__ == REACTORS["asyncio"])
    return chosen


def _installed_reactor() -> Any:
    """Return the installed global reactor, or None. Importing it would install one."""
    return sys.modules.get("twisted.internet.reactor")


def _installer(name: str, module: str, uvloop: bool) -> Callable[[], None]:
    try:
        chosen = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this platform does not support the {name!r} reactor: {error}") from error
    if not uvloop:
        return cast("Callable[[], None]", chosen.install)
    try:
        loops = importlib.import_module("uvloop")
    except ImportError as error:
        raise UsageError("uvloop is not installed: pip install 'zroute[uvloop]'") from error

    def install() -> None:
        loop = loops.new_event_loop()
        asyncio.set_event_loop(loop)  # Twisted sets only a loop that it has created itself
        chosen.install(loop)

    return install


class RunOptions(EndpointOptions, total=False):
    """The options of `run` and `App.run`."""

    reactor: Reactor | None
    """"epoll", "poll", "select" or "asyncio". Default: None, the reactor that the apps need, or Twisted's choice."""
    uvloop: bool
    """Run the asyncio reactor on uvloop. Default: False."""
    seconds: float | None
    """The time in seconds after which the run stops. Default: None, no limit."""
    max_messages: int | None
    """The number of messages after which the run stops. Default: None, no limit."""
    drain_timeout: float
    """The maximum time in seconds that a stop waits for unfinished handlers. Default: 8."""
    log_level: LogLevel
    """"debug", "info", "warning" or "error". Default: "info"; ignored if the program has set up `logging`."""
    log_format: LogFormat
    """"auto", "text" or "json". Default: "auto"; ignored if the program has set up `logging`."""


def run(
    apps: Sequence[Runnable],
    *,
    sub: tuple[Endpoint, ...] | None = None,
    pub: tuple[Endpoint, ...] | None = None,
    rep: tuple[Endpoint, ...] | None = None,
    req: tuple[Endpoint, ...] | None = None,
    jobs: tuple[Endpoint, ...] | None = None,
    work: tuple[Endpoint, ...] | None = None,
    keys: str | Path | None = None,
    peers: str | Path | None = None,
    insecure: bool | None = None,
    nats: str | Iterable[str] | None = None,
    nats_creds: str | Path | None = None,
    reactor: Reactor | None = None,
    uvloop: bool = False,
    seconds: float | None = None,
    max_messages: int | None = None,
    drain_timeout: float = DRAIN_TIMEOUT,
    log_level: LogLevel = "info",
    log_format: LogFormat = "auto",
) -> int:
    """Run ``apps`` until a signal arrives or a limit is reached.

    The exit code is one of these:

    - 0: all apps stopped and drained.
    - 1: an app did not start.
    - 5: an endpoint is missing, or can't be bound or connected.
    - 75: handlers, resources or threads were unfinished after ``drain_timeout`` seconds.
    - the code of ``app.stop(code)``, or of a SystemExit in a function of an app; 75 if that code is 0 and the drain was
      incomplete.
    - 128 + n: a second signal, with the number n, ended the process at once.

    At the end, the former signal handlers are restored. Outside the main thread, `run` handles no signals. Such a run
    also ends when the main thread ends.

    Args:
        apps: the apps to run; no app may occur twice.
        sub: endpoints that replace the apps' endpoints for receiving messages.
        pub: endpoints that replace the apps' endpoints for publishing messages.
        rep: endpoints that replace the apps' endpoints for answering requests.
        req: endpoints that replace the apps' endpoints for sending requests.
        jobs: endpoints that replace the apps' endpoints for handing out jobs.
        work: endpoints that replace the apps' endpoints for taking jobs.
        keys: the secret file of the apps' key, which replaces ``keys=`` of the apps.
        peers: the directory of peers, or "anyone", which replaces ``peers=`` of the apps.
        insecure: replaces ``insecure=`` of the apps; None keeps it.
        nats: NATS servers, which replace all endpoints and keys of the apps.
        nats_creds: the file of credentials for NATS, which replaces ``nats_creds=`` of the apps.
        reactor: "epoll", "poll", "select" or "asyncio". None selects the reactor that the apps need, or Twisted's
            choice for the platform.
        uvloop: True to run the asyncio reactor on uvloop.
        seconds: the time in seconds after which the run stops; None for no limit.
        max_messages: the number of messages after which the run stops, for all apps together; None for no limit.
        drain_timeout: the maximum time in seconds that a stop waits for unfinished handlers.
        log_level: "debug", "info", "warning" or "error"; ignored if the program has set up `logging`.
        log_format: "auto", "text" or "json"; ignored if the program has set up `logging`.

    Returns:
        The exit code, except 128 + n.

    Raises:
        SetupError: an app can't be compiled.
        UsageError: an option is invalid, an app is given twice or is already running, or a reactor or asyncio loop
            prevents the run. In this case, no reactor, signal handler or log handler was installed.
    """
    # Check all options and surroundings before installing anything.
    given: EndpointOptions = {"sub": sub, "pub": pub, "rep": rep, "req": req, "jobs": jobs, "work": work}
    given |= {"keys": keys, "peers": peers, "insecure": insecure, "nats": nats, "nats_creds": nats_creds}
    _refuse_options(given, seconds, max_messages, drain_timeout, log_level, log_format)
    if len({id(app) for app in apps}) < len(apps):
        raise UsageError("an app is given twice, but a process can run each app only once: give each app once")
    _refuse_surroundings()
    _chosen_reactor(reactor, uvloop)
    plans = [app.compile() for app in apps]
    wrong: EndpointError | None = None
    on_nats = False
    try:
        for plan in plans:
            ends = plan.endpoints(**given)
            plan.check_access(ends)
            on_nats |= ends.nats is not None
    except EndpointError as error:
        wrong = error
    chosen = check_reactor(plans, reactor, uvloop=uvloop, nats=on_nats)
    for plan in plans:
        plan.claim()
    set_up_logging(log_level, log_format)  # before the line below, which is logged in the chosen format
    if wrong is not None:
        _log.error("%s", wrong)
        return EXIT_ENDPOINT
    installed = install_reactor(chosen, uvloop=uvloop)
    # If NATS alone is the reason for asyncio's reactor, `async` functions run as on the default reactor: the same app
    # then awaits the same things on ZeroMQ and on NATS.
    as_tasks = on_nats and (reactor == "asyncio" or uvloop)
    return _Program(installed, plans, given, drain_timeout, max_messages, as_tasks=as_tasks).run(seconds)


RUN_DEFAULTS: dict[str, Any] = dict(run.__kwdefaults__ or {})
"""The defaults of `RunOptions`."""


def _refuse_options(
    given: EndpointOptions, seconds: object, max_messages: object, drain_timeout: object, level: str, form: str
) -> None:
    """Raise UsageError for an invalid option."""
    if seconds is not None:
        check_seconds("seconds", seconds)
    if max_messages is not None:
        check_seconds("max_messages", max_messages, what="a number")
    check_seconds("drain_timeout", drain_timeout)
    for side in SIDES:
        name: str = side.name
        endpoints = given.get(side.name)
        if endpoints is not None and not _are_endpoints(endpoints):
            raise UsageError(
                f"{name} is {endpoints!r}, but run expects a tuple of Endpoints: pass addresses to App({name}=…)"
            )
    for name, chosen, known in (("log_level", level, LEVELS), ("log_format", form, FORMATS)):
        if chosen not in known:
            raise UsageError(f"{name} is {chosen!r}, but run expects one of {', '.join(known)}")


def check_seconds(name: str, value: object, function: str = "run", what: str = "a number of seconds") -> None:
    """Raise UsageError unless an option of ``function`` is a number for a timer."""
    if not (isinstance(value, int | float) and 0 <= value <= threading.TIMEOUT_MAX):
        raise UsageError(
            f"{name} is {value!r}, but {function} expects {what} that is finite and not negative, as in {name}=10"
        )


def _are_endpoints(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(endpoint, Endpoint) for endpoint in value)


def _refuse_surroundings() -> None:
    """Raise UsageError if a reactor or an asyncio loop prevents a run."""
    installed = _installed_reactor()
    if installed is not None and installed.running:
        raise UsageError("the reactor is already running: use app.service(reactor) instead of run()")
    if installed is not None and getattr(installed, "_startedBefore", False):
        raise UsageError("the reactor has already run and can't be restarted: pass all apps to a single run([…])")
    if asyncio._get_running_loop() is not None:
        raise UsageError(
            "an asyncio loop is already running, and run() would block this loop: use `async with app.running():` "
            "instead, or call run() outside of asyncio.run()"
        )


_program: _Program | None = None
"""The run of this process. There is at most one, because a process has one reactor, and a reactor runs only once."""


def stop(why: str) -> bool:
    """Stop the run of this process, like a first signal. Any thread may call this.

    Return False if no run has begun. A second call has no effect.
    """
    if _program is None:
        return False
    _program._reactor.callFromThread(_program._stop, why)
    return True


class _Program:
    """The services of one run, the reason for its stop, and its exit code."""

    def __init__(
        self,
        reactor: Any,
        plans: Sequence[Plan],
        given: EndpointOptions,
        drain_timeout: float,
        max_messages: int | None,
        *,
        as_tasks: bool,
    ) -> None:
        self._reactor = reactor
        self._limit = MessageLimit(max_messages, lambda: self._stop("--max-messages reached")) if max_messages else None
        self._services = [
            AppService(
                plan,
                reactor,
                drain_timeout=drain_timeout,
                limit=self._limit,
                environment=_environment(plan, given, as_tasks=as_tasks),
                leave=self._leave,
                **given,
            )
            for plan in plans
        ]
        for service in self._services:
            service.owns_pool = True
            service.reports = False  # this object logs the lines itself, in order with those of the whole run
        self._drain_timeout = drain_timeout
        self._code = 0
        self._signals = 0
        self._why: str | None = None
        self._unhandled: list[object] = []
        self._watch: threading.Timer | None = None
        self._watchdog = Watchdog(reactor)

    def run(self, seconds: float | None) -> int:
        global _program
        _program = self
        self._unhandled = _count_unhandled_failures()
        self._reactor.addSystemEventTrigger("before", "shutdown", self._drain)  # Twisted waits for its Deferred
        if not in_main_thread():
            threading.Thread(target=_stop_with_main_thread, name="zroute-main", daemon=True).start()
        with restored_handlers():
            run_reactor(self._reactor, self._signal, self._start, seconds)
        self._watchdog.stop()
        if self._watch is not None:
            self._watch.cancel()
        return self._code

    def _start(self, seconds: float | None) -> None:
        self._watchdog.start()
        try:
            for service in self._services:
                service.startService()
                service.started.addCallbacks(lambda _, service=service: log_start(service), self._not_started)
        except EndpointError as error:
            _log.error("%s", error)
            self._stop(_ENDPOINT_FAILED, EXIT_ENDPOINT)
            return
        except Exception:
            _log.exception("an app did not start")
            self._stop("an app did not start", EXIT_FAILED)
            return
        if seconds is not None:
            self._reactor.callLater(seconds, self._stop, f"{seconds:g} s elapsed")

    def _not_started(self, failure: Any) -> None:
        """Stop the run; the service has already logged the error."""
        error = failure.value
        if isinstance(error, EndpointError):
            self._stop(_ENDPOINT_FAILED, EXIT_ENDPOINT)
        else:
            self._stop("an app did not start", exit_code(error) if isinstance(error, SystemExit) else EXIT_FAILED)

    # -- stopping -------------------------------------------------------------------------------------

    def _signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        if self._signals == 1:
            self._reactor.callFromThread(self._stop, signal.Signals(number).name)
            return
        routes = [route for service in self._services for route in service.plan.live.stats.routes.values()]
        unfinished = sum(route.queued + route.in_flight for route in routes)
        left = f"; {unfinished} messages are unfinished" if unfinished else ""
        end_now(128 + number, f"{signal.Signals(number).name} received again: ending now, without draining{left}")

    def _leave(self, code: int, why: str) -> None:
        """End with the exit code that an app requests.

        If several codes are requested, the first code that is not 0 is used.
        """
        if self._why is None:
            self._stop(why, code)
        else:
            self._code = self._code or code

    def _stop(self, why: str, code: int = 0) -> None:
        """Stop the reactor, which then drains. Only the first reason is logged."""
        if self._why is not None:
            return
        from twisted.internet.error import ReactorNotRunning

        self._why, self._code = why, code
        with suppress(ReactorNotRunning):  # other code has just stopped it
            self._reactor.stop()

    def _drain(self) -> Any:
        """Stop all services; return a Deferred that fires when they have stopped.

        The services stop for any reason for which the reactor stops.
        """
        from twisted.internet.defer import DeferredList

        if self._why != _ENDPOINT_FAILED:  # the error of the endpoint is already logged, in one line
            _log.info("stopping: %s", self._why or "the reactor was stopped")
        self._why = self._why or "stopped"
        began = self._reactor.seconds()
        stopped = DeferredList([service.stopService() for service in self._services], consumeErrors=True)
        return stopped.addCallback(self._stopped, began)

    def _stopped(self, results: list[tuple[bool, Any]], began: float) -> None:
        for service, (well, drained) in zip(self._services, results, strict=True):
            if not well:
                _log.error("%s: the stop failed: %s", service.plan.name, printable(drained.getErrorMessage()))
                self._code = self._code or EXIT_FAILED
            elif not drained.complete:
                log_unfinished(service, drained)
                self._code = self._code or EXIT_DRAIN
        if self._why != _ENDPOINT_FAILED:
            self._sum_up()
        if not in_main_thread():  # the main thread belongs to the program, which decides when the process ends
            return
        left = self._drain_timeout - (self._reactor.seconds() - began)
        self._watch = threading.Timer(max(left, _THREADS), self._abandon)
        self._watch.daemon = True
        self._watch.start()

    def _sum_up(self) -> None:
        _flush_output()  # the output of handlers must precede the summary, even if both go to one file
        for service in self._services:
            log_counters(service)
        gc.collect()  # Twisted reports a failure in a reference cycle only when the cycle is collected
        if self._unhandled:
            _log.warning("%d unhandled failures in Deferreds; each is logged above", len(self._unhandled))

    def _abandon(self) -> None:
        """End the process although threads still run.

        This method runs in its own thread, because the reactor waits for the threads of its pool.
        """
        end_now(self._code or EXIT_DRAIN, "threads are still running after the drain timeout: ending the process now")


def _environment(plan: Plan, given: EndpointOptions, *, as_tasks: bool) -> Environment | None:
    """Return the environment of an app on NATS; None for the default.

    ``as_tasks`` is True if the user has asked for asyncio's reactor.
    """
    ends = plan.endpoints(**given)
    if ends.nats is None:
        return None
    kind = plan.addresses.reactor
    return Environment(factory_for(ends), kind == "asyncio" or (as_tasks and kind is None))


def _stop_with_main_thread() -> None:
    """Stop the run when the main thread ends. This function runs in its own thread.

    The function is needed because Python waits for the reactor's thread before it ends the process.
    """
    threading.main_thread().join()
    stop("the main thread has ended")


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has ended, as in `zroute run … | head`; Python would fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_now(code: int, why: str) -> None:
    """End the process at once, even if sockets, threads or a terminal block it.

    Args:
        code: the exit code.
        why: the text of the last log line.
    """
    last = threading.Timer(_FLUSH, os._exit, (code,))
    last.daemon = True
    last.start()
    try:
        _log.warning("%s", why)
        logging.shutdown()
        sys.stdout.flush()
    finally:
        os._exit(code)  # even if flushing raises an error, because a signal has interrupted a print


def _count_unhandled_failures() -> list[object]:
    """Return a list to which each unhandled failure of a Deferred is added.

    Twisted reports such failures only in its log, when the Deferred is garbage-collected.
    """
    from twisted.logger import ILogObserver, globalLogPublisher

    seen: list[object] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_failure") is not None and event.get("log_namespace") == "twisted.internet.defer":
            seen.append(event["log_failure"].type)

    globalLogPublisher.addObserver(cast(ILogObserver, observe))
    return seen
