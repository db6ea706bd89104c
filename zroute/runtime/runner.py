"""Run apps as a program: the only module that uses the global reactor.

It installs the requested reactor, and starts one service per app. It stops all of them at a signal or a limit, if one
of them fails, or if other code stops the reactor.

Each stop has an upper bound in time, and leaves no socket or thread behind.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, UsageError
from zroute.logs import FORMATS, LEVELS, printable, set_up_logging
from zroute.options import DRAIN_TIMEOUT
from zroute.planning.plan import Plan
from zroute.runtime.run import MessageLimit
from zroute.runtime.service import AppService
from zroute.runtime.signals import in_main_thread, restored_handlers, run_reactor
from zroute.runtime.watchdog import Watchdog
from zroute.stats import NOT_COUNTED, losses

__all__ = ["EXIT_DRAIN", "EXIT_ENDPOINT", "EXIT_FAILED", "REACTORS", "end_now", "install_reactor", "run", "stop"]

REACTORS = {
    "epoll": "twisted.internet.epollreactor",
    "poll": "twisted.internet.pollreactor",
    "select": "twisted.internet.selectreactor",
    "asyncio": "twisted.internet.asyncioreactor",
}

EXIT_FAILED = 1
EXIT_ENDPOINT = 5
EXIT_DRAIN = 75  # EX_TEMPFAIL of sysexits(3): some handlers, resources or threads were unfinished

_THREADS = 1.0
"""The least seconds that threads get to end after everything else has stopped. Threads can't be cancelled."""

_FLUSH = 0.5
"""Seconds that an immediate end waits for its output to be read; the reader may be stopped."""

_log = logging.getLogger("zroute")


class Runnable(Protocol):
    """An app, or any other object that compiles to a plan."""

    def compile(self) -> Plan:
        """Return the checked and frozen app. Raises SetupError."""


def install_reactor(name: str | None, *, uvloop: bool = False) -> Any:
    """Install a reactor, and return it.

    Args:
        name: one of `REACTORS`; None installs Twisted's choice for the platform.
        uvloop: True to run the asyncio reactor on uvloop.

    Raises:
        UsageError: the platform has no such reactor, uvloop is not installed, or ``name`` is not "asyncio" with
            uvloop. It is also raised if the program has already installed another reactor by importing
            ``twisted.internet.reactor``.
    """
    install = _chosen_reactor(name, uvloop)
    if install is not None:
        install()
    from twisted.internet import reactor

    return reactor


def _chosen_reactor(name: str | None, uvloop: bool) -> Callable[[], None] | None:
    """Return the function that installs the reactor, and install nothing yet.

    The result is None if the reactor is installed, or is Twisted's choice. Raises as `install_reactor` does.
    """
    if uvloop:
        if name not in (None, "asyncio"):
            raise UsageError(f"uvloop is an asyncio loop, but the requested reactor is {name!r}: remove one of them")
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
            f"the reactor {type(installed).__name__} is already installed, so {name!r} can't be: something "
            "imported twisted.internet.reactor at its top level; import it inside a function"
        )
    if uvloop and not type(installed._asyncioEventloop).__module__.startswith("uvloop"):
        raise UsageError("asyncio's reactor is already installed, on a loop that is not uvloop's: install it once")
    return None


def _installed_reactor() -> Any:
    """Return the global reactor, or None without one; importing it would install one."""
    return sys.modules.get("twisted.internet.reactor")


def _installer(name: str, module: str, uvloop: bool) -> Callable[[], None]:
    try:
        chosen = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this platform has no {name!r} reactor: {error}") from error
    if not uvloop:
        return cast("Callable[[], None]", chosen.install)
    try:
        loops = importlib.import_module("uvloop")
    except ImportError as error:
        raise UsageError("uvloop is not installed: pip install 'zroute[uvloop]'") from error

    def install() -> None:
        loop = loops.new_event_loop()
        asyncio.set_event_loop(loop)  # Twisted sets only a loop that it has made itself
        chosen.install(loop)

    return install


def run(
    apps: Sequence[Runnable],
    *,
    sub: tuple[Endpoint, ...] | None = None,
    pub: tuple[Endpoint, ...] | None = None,
    reactor: str | None = None,
    uvloop: bool = False,
    seconds: float | None = None,
    max_messages: int | None = None,
    drain_timeout: float = DRAIN_TIMEOUT,
    log_level: str = "info",
    log_format: str = "auto",
) -> int:
    """Run ``apps`` until a signal, a time limit or a message limit.

    The exit code that it returns is one of these:

    - 0: stopped and drained.
    - 1: an app did not start.
    - 5: an endpoint is missing, or can't be bound or connected.
    - 75: handlers, resources or threads were unfinished after ``drain_timeout`` seconds.
    - 128 + n: a second signal n ended the process at once.

    Afterwards the former signal handlers are set again. Outside the main thread `run` handles no signals. The run then
    ends with `stop`, or when the main thread ends.

    Args:
        apps: the apps, each once.
        sub: endpoints that replace those from which the apps receive.
        pub: endpoints that replace those to which the apps publish.
        reactor: "epoll", "poll", "select" or "asyncio"; None is Twisted's choice for the platform.
        uvloop: True to run the asyncio reactor on uvloop.
        seconds: the seconds after which the run stops; None has no limit.
        max_messages: the number of messages after which the run stops, for all apps together; None has no limit.
        drain_timeout: the seconds that a stop waits for unfinished handlers.
        log_level: "debug", "info", "warning" or "error"; ignored if the program has set up `logging`.
        log_format: "auto", "text" or "json"; ignored if the program has set up `logging`.

    Returns:
        The exit code, except 128 + n.

    Raises:
        SetupError: an app can't be compiled.
        UsageError: an option is invalid, an app is given twice or already runs, or a reactor or asyncio loop prevents
            the run. Nothing has changed then: no reactor, signal handler or log handler is installed.
    """
    # Everything that can be refused is checked before anything is installed.
    _refuse_options(sub, pub, seconds, max_messages, drain_timeout, log_level, log_format)
    if len({id(app) for app in apps}) < len(apps):
        raise UsageError("an app is named twice, but runs only once in a process: name each once")
    _refuse_surroundings()
    _chosen_reactor(reactor, uvloop)
    plans = [app.compile() for app in apps]
    for plan in plans:
        plan.claim()
    wrong: EndpointError | None = None
    try:
        for plan in plans:
            plan.endpoints(sub=sub, pub=pub)
    except EndpointError as error:
        wrong = error
    set_up_logging(log_level, log_format)  # before the line below, which is logged in the chosen format
    if wrong is not None:
        _log.error("%s", wrong)
        return EXIT_ENDPOINT
    installed = install_reactor(reactor, uvloop=uvloop)
    return _Program(installed, plans, sub, pub, drain_timeout, max_messages).run(seconds)


def _refuse_options(
    sub: object, pub: object, seconds: object, max_messages: object, drain_timeout: object, level: str, form: str
) -> None:
    """Raise UsageError for an invalid option."""
    for name, value, optional in (
        ("seconds", seconds, True),
        ("max_messages", max_messages, True),
        ("drain_timeout", drain_timeout, False),
    ):
        if not (optional if value is None else isinstance(value, int | float) and 0 <= value <= threading.TIMEOUT_MAX):
            what = "a number" if name == "max_messages" else "a number of seconds"
            raise UsageError(
                f"{name} is {value!r}, but run takes {what} that is finite and not negative, as in {name}=10"
            )
    for name, endpoints in (("sub", sub), ("pub", pub)):
        if endpoints is not None and not _are_endpoints(endpoints):
            raise UsageError(
                f"{name} is {endpoints!r}, but run takes a tuple of Endpoints: give addresses to App({name}=…)"
            )
    for name, given, known in (("log_level", level, LEVELS), ("log_format", form, FORMATS)):
        if given not in known:
            raise UsageError(f"{name} is {given!r}, but run takes one of {', '.join(known)}")


def _are_endpoints(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(endpoint, Endpoint) for endpoint in value)


def _refuse_surroundings() -> None:
    """Raise UsageError if a reactor or an asyncio loop prevents a run."""
    installed = _installed_reactor()
    if installed is not None and installed.running:
        raise UsageError("the reactor is already running: start app.service(reactor) on it instead of calling run()")
    if installed is not None and getattr(installed, "_startedBefore", False):
        raise UsageError("the reactor has run before, and can't run again: give all apps to one run([…])")
    if asyncio._get_running_loop() is not None:
        raise UsageError(
            "an asyncio loop is already running, and run() would block it: call it outside of asyncio.run(), with "
            "reactor='asyncio' if handlers await asyncio, and open what else the program needs in an @app.resource"
        )


_program: _Program | None = None
"""The run of this process. There is only one, because a process has one reactor, and a reactor runs only once."""


def stop(why: str) -> bool:
    """Stop the run of this process, as a first signal does; callable in any thread.

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
        sub: tuple[Endpoint, ...] | None,
        pub: tuple[Endpoint, ...] | None,
        drain_timeout: float,
        max_messages: int | None,
    ) -> None:
        self._reactor = reactor
        self._limit = MessageLimit(max_messages, lambda: self._stop("--max-messages reached")) if max_messages else None
        self._services = [
            AppService(plan, reactor, sub=sub, pub=pub, drain_timeout=drain_timeout, limit=self._limit)
            for plan in plans
        ]
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
                service.started.addCallbacks(lambda _, service=service: self._log_summary(service), self._not_started)
        except EndpointError as error:
            _log.error("%s", error)
            self._stop("an endpoint failed", EXIT_ENDPOINT)
            return
        except Exception:
            _log.exception("an app did not start")
            self._stop("an app did not start", EXIT_FAILED)
            return
        if seconds is not None:
            self._reactor.callLater(seconds, self._stop, f"{seconds:g} s elapsed")

    def _log_summary(self, service: Any) -> None:
        if service.transport is not None:  # None if its on_startup has already stopped the app
            for line in _summary(service):
                _log.log(*line)

    def _not_started(self, failure: Any) -> None:
        """Stop the run; the service has already logged the error."""
        if failure.check(EndpointError):
            self._stop("an endpoint failed", EXIT_ENDPOINT)
        else:
            self._stop("an app did not start", EXIT_FAILED)

    # -- stopping -------------------------------------------------------------------------------------

    def _signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        if self._signals == 1:
            self._reactor.callFromThread(self._stop, signal.Signals(number).name)
            return
        routes = [route for service in self._services for route in service.plan.live.stats.routes.values()]
        unfinished = sum(route.queued + route.in_flight for route in routes)
        left = f"; {unfinished} messages are unfinished" if unfinished else ""
        end_now(128 + number, f"{signal.Signals(number).name} again: ending at once, without draining{left}")

    def _stop(self, why: str, code: int = 0) -> None:
        """Stop the reactor, which then drains; only the first reason counts."""
        if self._why is not None:
            return
        from twisted.internet.error import ReactorNotRunning

        self._why, self._code = why, code
        with suppress(ReactorNotRunning):  # other code has just stopped it
            self._reactor.stop()

    def _drain(self) -> Any:
        """Stop all services, whatever has stopped the reactor.

        The Deferred fires when they have stopped.
        """
        from twisted.internet.defer import DeferredList

        if self._code != EXIT_ENDPOINT:  # that error is already logged, in one line
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
                names = ", ".join(f"{name}: {count}" for name, count in drained.unfinished.items())
                _log.error("%s: unfinished after the drain timeout, abandoned: %s", service.plan.name, names)
                self._code = self._code or EXIT_DRAIN
        if self._code != EXIT_ENDPOINT:
            self._sum_up()
        if not in_main_thread():  # the main thread belongs to the program, which decides when the process ends
            return
        left = self._drain_timeout - (self._reactor.seconds() - began)
        self._watch = threading.Timer(max(left, _THREADS), self._abandon)
        self._watch.daemon = True
        self._watch.start()

    def _sum_up(self) -> None:
        _flush_output()  # the output of handlers comes before the summary, also if both go to one file
        for service in self._services:
            counters = _counters(service)
            fields = {name: None if count == NOT_COUNTED else count for name, count in counters.items()}
            text = ", ".join(f"{name} {count}" for name, count in counters.items())
            _log.info("%s: %s", service.plan.name, text, extra={"app": service.plan.name, **fields})
        gc.collect()  # Twisted reports a failure in a reference cycle only when the cycle is collected
        if self._unhandled:
            _log.warning("%d unhandled failures in Deferreds; each is logged above", len(self._unhandled))

    def _abandon(self) -> None:
        """End the process although threads still run.

        It runs in its own thread, because the reactor waits for the threads of its pool.
        """
        end_now(self._code or EXIT_DRAIN, "threads are still at work after the drain timeout: ending without them")


def _stop_with_main_thread() -> None:
    """Stop the run when the main thread ends; runs in its own thread.

    Python waits for the reactor's thread before it ends the process.
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
        os._exit(code)  # also if flushing raises, because a signal has interrupted a print


def _summary(service: Any) -> list[tuple[int, str]]:
    """Return the log lines that describe an app after its start."""
    name, compiled = service.plan.name, service.plan.parts
    lines = [
        (
            logging.INFO,
            f"{name}: routes {len(compiled.routes)}, publications {len(compiled.outlets)}, "
            f"timers and generators {len(compiled.triggers)}",
        )
    ]
    if not (compiled.routes or compiled.outlets or compiled.triggers):
        lines.append((logging.WARNING, f"{name}: nothing is registered; is an app.include(routes) missing?"))
    if service.subscribe_to and service.subscribe_to[0].address.startswith("inproc://zroute-"):
        lines.append(
            (logging.INFO, f"{name}: no endpoints, so its publishers feed its own subscribers in this process")
        )
        return lines
    lines.extend(service.transport.summary())
    if service.identity:
        lines.append((logging.INFO, f"{name}: publishes as {service.identity}"))
    for pattern in (pattern for route in compiled.routes for pattern in route.patterns):
        if pattern.subscription == b"":
            text = f"{name}: receives every message of its publishers, because of the pattern {pattern.text!r}"
            lines.append((logging.WARNING, text))
    return lines


def _counters(service: Any) -> dict[str, object]:
    """Return the counters of a run by their names in `app.stats`.

    An app that only publishes has no counters of received messages, and vice versa.
    """
    stats = service.plan.live.stats
    counts: dict[str, object] = {}
    if service.subscribe_to:
        counts.update(received=stats.received - stats.control, handled=stats.handled, failed=stats.failed)
        counts.update(unrouted=stats.unrouted, malformed=stats.malformed)
        counts.update(losses(stats))
        routes = stats.routes.values()
        seldom = {
            "stale": sum(route.stale for route in routes),
            "dropped_at_shutdown": sum(route.dropped_at_shutdown for route in routes),
        }
        counts.update((name, count) for name, count in seldom.items() if count)
    if service.publish_to:
        counts.update(published=stats.published, publish_errors=stats.publish_errors)
    return counts


def _count_unhandled_failures() -> list[object]:
    """Return a list that grows with each failure of a Deferred that no code handled.

    Twisted reports these only in its log, when the Deferred is garbage-collected.
    """
    from twisted.logger import ILogObserver, globalLogPublisher

    seen: list[object] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_failure") is not None and event.get("log_namespace") == "twisted.internet.defer":
            seen.append(event["log_failure"].type)

    globalLogPublisher.addObserver(cast(ILogObserver, observe))
    return seen
