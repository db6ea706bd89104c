"""The subscriber behind ``zroute tail``, ``top`` and ``record``.

The subscriber is an ordinary `App` with one handler, which receives each message undecoded. The subscriber therefore
joins its publishers, and counts and logs lost messages, exactly like an app under ``zroute run``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any, cast

import click
from twisted.internet.defer import CancelledError
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from zroute.app import App
from zroute.cli.options import reachable
from zroute.declarations.limits import Limits
from zroute.endpoints import Access, Cluster, Endpoint, EndpointOptions
from zroute.errors import EndpointError, PatternError
from zroute.logs import set_up_logging
from zroute.messages.recovery import Since
from zroute.messages.topics import Pattern, any_of, minimal_cover, startswith
from zroute.messages.wire import Envelope
from zroute.nats.subjects import subject_of
from zroute.options import MAX_MESSAGE
from zroute.runtime.exit_codes import EXIT_ENDPOINT, EXIT_TIMED_OUT
from zroute.runtime.runner import install_reactor
from zroute.runtime.service import AppService
from zroute.runtime.signals import StopSignals, run_reactor
from zroute.sockets.pair import SocketPair
from zroute.stats import NOT_COUNTED, Stats, losses

__all__ = ["Listening", "say", "while_read"]

_MAX_BODY = 16 * MAX_MESSAGE
"""The maximum size of a received message in bytes.

This size exceeds the default `max_message` of apps, because apps may raise that limit.
"""

_LAST = 2.0
"""The maximum duration of a stop in seconds.

During the stop, the app reads the messages that were sent before the stop, and asks publishers for their last numbers
to count lost messages.
"""


class Listening:
    """A subscriber that calls ``take`` with every message that matches the patterns.

    Args:
        endpoints: The endpoints to subscribe to, or NATS servers.
        patterns: The topics to receive; all topics if empty.
        take: Called with the envelope of each message; `Envelope.frames` contains the raw frames. ``take`` may call
            `stop`. If ``take`` raises an error, the subscriber stops, and `run` raises this error.
        ignore: Topics to omit, even if they match ``patterns``.
        since: The beginning of the past, for publishers with a history; None for live messages only.

    Every received message is counted once:
    ``received = taken + ignored + unmatched + control + malformed + duplicate``.

    - ``unmatched`` messages match a subscription, but no pattern. Subscriptions are prefixes, so they match more topics
      than the patterns.
    - ``control`` frames either carry no message, or carry a kept message that was sent before this subscriber joined.
    - ``malformed`` frames can't be read as messages.

    ``stats`` contains the counters of the app. After a stop, the counters no longer change.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint] | Cluster,
        patterns: Sequence[Pattern],
        take: Callable[[Envelope], object],
        access: Access,
        *,
        ignore: Sequence[Pattern] = (),
        since: Since | None = None,
    ) -> None:
        self.taken = 0
        self.ignored = 0
        self.unmatched = 0
        on_nats = isinstance(endpoints, Cluster)
        self.reactor = install_reactor("asyncio" if on_nats else None)
        self.stats = Stats()
        self._kept = 0
        self._endpoints = endpoints
        self._access = access
        self._take = take
        self._since = since
        self._is_ignored = any_of(ignore)
        self._is_wanted = any_of(patterns) if patterns else lambda _topic: True
        self._app = App(name=click.get_current_context().command_path, limits=Limits(max_message=_MAX_BODY))
        prefixes = _subjects(patterns) if on_nats else _prefixes(patterns)
        self._app.add_route(self._receive, *prefixes, since=cast("Any", since))  # apps can't state a number of messages
        self._service: AppService | None = None
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._signals = StopSignals(
            lambda: self.reactor.callFromThread(self.finish),
            lambda number: os._exit(128 + number),  # the output is blocked: otherwise the process would have ended
        )
        self._stopped = False
        self._code = 0
        self._failure: BaseException | None = None

    def every(self, seconds: float, function: Callable[[], object]) -> None:
        """Call ``function`` every ``seconds`` seconds while `run` runs.

        Call this before `run`. An error in ``function`` stops the subscriber, like an error in ``take``.
        """
        self._timers.append((seconds, function))

    def run(self, *, wait: float | None = None, seconds: float | None = None) -> int:
        """Listen until `stop`, SIGINT or SIGTERM, and return the exit code.

        This method runs the reactor, so it can be called only once. If a second signal arrives, with the number n, the
        process ends at once with the exit code 128 + n.

        Args:
            wait: The time in seconds after which to give up if no message was taken. None waits forever.
            seconds: The time in seconds after which to stop. None listens forever.

        Returns:
            0 after a stop for any reason. 5 if an endpoint can't be opened; the error was printed. 124 if no
            message was taken within ``wait`` seconds.

        Raises:
            BaseException: The error that ``take``, or a function given to `every`, has raised.
        """
        set_up_logging("warning", "auto")
        if self._since is not None:  # otherwise the missing past would look like an empty one
            from zroute.receiving.recoveries import NO_HISTORY

            NO_HISTORY.setLevel("INFO")
        run_reactor(self.reactor, self._signals, self.guarded, self._open, wait, seconds)
        if self._failure is not None:
            raise self._failure
        return self._code

    def stop(self, code: int = 0) -> None:
        """Stop without taking more messages; `run` then returns ``code``.

        Further calls have no effect. The app stops normally, but without draining. The messages that it leaves unread
        are no loss, so it does not report them. The app still logs the summaries of repeated lines.
        """
        if self._stopped:
            return
        self._stopped, self._code = True, code
        self.stats = copy(self.stats)  # the app still counts while it stops
        self.stats.received = self.received  # while the app delivers messages, its counter is too low
        if self._service is None:
            self._end()
        else:
            self._service.drain_timeout, self._service.leaves_unread = 0.0, True
            self._service.stopService().addErrback(self._stop_failed).addCallback(self._end)

    def finish(self) -> None:
        """Take the messages that were sent before this call, then stop.

        Lost messages among them are counted. The stop takes at most ``_LAST`` seconds.
        """
        if self._service is not None and not self._stopped:
            self._service.stopService().addErrback(self._stop_failed).addCallback(lambda _: self.stop())

    @property
    def received(self) -> int:
        """The number of received messages, including control and malformed frames."""
        counted = self.stats.malformed + self.stats.duplicate
        return self.taken + self.ignored + self.unmatched + self._control + counted

    @property
    def _control(self) -> int:
        """The number of control frames and kept messages."""
        return self.stats.control + self._kept

    def told(self) -> dict[str, object]:
        """Return the counters of messages that did not reach ``take``, by name.

        ``malformed`` and ``lost`` are always included, the other counters only if they are not 0.
        """
        counts = {"ignored": self.ignored, "unmatched": self.unmatched, "control": self._control}
        told: dict[str, object] = {name: count for name, count in counts.items() if count}
        return told | {"malformed": self.stats.malformed} | losses(self.stats)

    # -- the run ----------------------------------------------------------------------------------------

    def _open(self, wait: float | None, seconds: float | None) -> None:
        """Start the app and the timers, in the running reactor."""
        try:
            service = AppService(self._app.compile(), self.reactor, **self._given(), drain_timeout=_LAST)
            self._service = service
            service.reports = service.logs_failed_start = False
            service.startService()
        except EndpointError as error:
            say(error.text)  # without the line of the app, which is zroute's own
            self.stop(EXIT_ENDPOINT)
            return
        self.stats = self._app.stats
        if isinstance(self._endpoints, Cluster):
            say(f"connects to {self._endpoints.address}")
            service.started.addErrback(self._not_started)
        else:
            (connection,) = cast("SocketPair", service.transport).readers
            connection.endpoint_option, connection.size_option = "ENDPOINT", None  # the names that its log lines use
            for endpoint, resolved in zip(self._endpoints, self._app.addresses.sub, strict=True):
                _say_opened(endpoint, resolved, self._access)
        for period, function in self._timers:
            LoopingCall(self.guarded, function).start(period, now=False)
        if wait is not None:
            self.reactor.callLater(wait, self._give_up, wait)
        if seconds is not None:
            self.reactor.callLater(seconds, self.finish)

    def _given(self) -> EndpointOptions:
        if isinstance(self._endpoints, Cluster):
            # Without the empty side, the app would also be a publisher.
            return {"nats": self._endpoints.servers, "nats_creds": self._endpoints.creds, "pub": (), "req": ()}
        endpoints = tuple(map(reachable, self._endpoints))
        return {**self._access.options, "sub": endpoints, "pub": ()}

    def _not_started(self, failure: Failure) -> None:
        """Stop, because the servers do not accept this client."""
        if isinstance(failure.value, CancelledError):  # by a stop, which continues
            return
        if not isinstance(failure.value, EndpointError):
            self._stop_failed(failure)
        elif not self._stopped:
            say(failure.value.text)
        self.stop(EXIT_ENDPOINT)

    def _end(self, _: object = None) -> None:
        with suppress(ReactorNotRunning):
            self.reactor.stop()

    def _stop_failed(self, failure: Failure) -> None:
        self._failure = self._failure or failure.value

    def _give_up(self, wait: float) -> None:
        """Stop with exit code 124 if no message was taken so far."""
        if not self.taken and not self._stopped and not self._signals.arrived:
            others = ", ".join(
                f"{name} {count}" for name, count in self.told().items() if count and count != NOT_COUNTED
            )
            say(f"no message arrived within {wait:g} s" + (f", except {others}" if others else ""))
            self.stop(EXIT_TIMED_OUT)

    def guarded(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call ``function``; if it raises an error, stop and let `run` raise it."""
        try:
            if not self._stopped:
                function(*arguments)
        except BaseException as error:
            self._failure = error
            self.stop()

    # -- messages ---------------------------------------------------------------------------------------

    def _receive(self, envelope: Envelope) -> None:
        """Count a message, and pass it to ``take`` if it is wanted."""
        if self._stopped:
            return
        if envelope.kept:
            self._kept += 1
        elif not self._is_wanted(envelope.topic.wire):
            self.unmatched += 1
        elif self._is_ignored(envelope.topic.wire):
            self.ignored += 1
        else:
            self.taken += 1
            self.guarded(self._take, envelope)


def _prefixes(patterns: Sequence[Pattern]) -> tuple[Pattern, ...]:
    """Return the subscriptions of ZeroMQ for patterns, without overlaps."""
    prefixes = minimal_cover(pattern.subscription for pattern in patterns) if patterns else (b"",)
    return tuple(map(startswith, prefixes))


def _subjects(patterns: Sequence[Pattern]) -> Sequence[Pattern]:
    """Return the patterns for NATS, or all topics without patterns.

    A pattern that NATS can't filter is a usage error.
    """
    for pattern in patterns:
        try:
            subject_of(pattern)
        except PatternError as error:
            raise click.UsageError(str(error)) from error
    return patterns or (startswith(""),)


def _say_opened(endpoint: Endpoint, resolved: str, access: Access) -> None:
    """Print the opened address, and a warning if any program can connect to it."""
    say(f"{'bound to' if endpoint.bind else 'connects to'} {resolved}")
    if (warning := access.exposure(endpoint.resolved(resolved))) is not None:
        say(warning)


def say(text: str) -> None:
    """Print a line on standard error. A progress line stays below the new line."""
    print(f"zroute: {text}", file=sys.stderr, flush=True)


@contextmanager
def while_read() -> Iterator[None]:
    """End the program silently, with exit code 0, if its output pipe is closed.

    For example, ``head`` closes the pipe in ``zroute tail … | head``.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes standard output again at exit
        raise SystemExit(0) from None
