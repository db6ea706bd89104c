"""What ``zroute tail``, ``top`` and ``record`` share: an app that receives everything, for the time of one command.

It is an `App` as any other, whose one handler takes each message as it arrived: so it joins, and its losses are counted
and logged, as those of ``zroute run`` are.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any, cast

import click
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from zroute.app import App
from zroute.cli.loading import EXIT_ENDPOINT
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError
from zroute.logs import set_up_logging
from zroute.messages.topics import Pattern, any_of, minimal_cover, startswith
from zroute.messages.wire import Envelope
from zroute.options import MAX_MESSAGE
from zroute.runtime.runner import install_reactor
from zroute.runtime.service import AppService
from zroute.runtime.signals import run_reactor
from zroute.sockets.pair import SocketPair
from zroute.stats import NOT_COUNTED, Stats, losses

__all__ = ["Listening", "say", "while_read"]

EXIT_NOTHING = 124  # as timeout(1) has it

_MAX_BODY = 16 * MAX_MESSAGE
"""Bytes: apps may have raised their own limit, and what they send is to be seen here too."""

_ONE_SIGNAL = 0.2
"""Seconds in which signals are one: timeout(1) sends its to the process, and at once again to its group."""

_LAST = 2.0
"""Seconds that a stop takes at most, to read what was sent before it and to learn what of that was lost."""


class Listening:
    """Subscribe to ``endpoints`` and call ``take`` with every message that the patterns let through.

    Without ``patterns`` that is everything; topics that match one of ``ignore`` are left out. Envelopes
    hold their raw parts in `Envelope.frames`. ``take`` may call `stop`; what it raises ends the listening
    and is raised by `run`.

    ``received = taken + ignored + unmatched + control + malformed + duplicates``: ``unmatched`` came because a socket
    filters by prefixes, which let more through than patterns; ``control`` carried no data, or what a publisher keeps;
    ``malformed`` was no message. ``stats`` are the counters of the app, which no longer change after a stop.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        patterns: Sequence[Pattern],
        take: Callable[[Envelope], object],
        *,
        ignore: Sequence[Pattern] = (),
    ) -> None:
        self.taken = 0
        self.ignored = 0
        self.unmatched = 0
        self.reactor = install_reactor(None)
        self.stats = Stats()
        self._kept = 0
        self._endpoints = tuple(endpoints)
        self._take = take
        self._is_ignored = any_of(ignore)
        self._is_wanted = any_of(patterns) if patterns else lambda _topic: True
        prefixes = minimal_cover(pattern.subscription for pattern in patterns) if patterns else (b"",)
        self._app = App(name=click.get_current_context().command_path, max_message=_MAX_BODY)
        self._app.add_route(self._receive, *map(startswith, prefixes))
        self._service: AppService | None = None
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._signalled_at: float | None = None
        self._stopped = False
        self._code = 0
        self._failure: BaseException | None = None

    def every(self, seconds: float, function: Callable[[], object]) -> None:
        """Call ``function`` every so many seconds of the run to come, as carefully as ``take``."""
        self._timers.append((seconds, function))

    def run(self, *, wait: float | None = None, seconds: float | None = None) -> int:
        """Listen until `stop`, SIGINT or SIGTERM; returns the exit code. Once only: it runs the reactor.

        ``wait`` says for how many seconds it may take until the first message is taken, and ``seconds``
        how long to listen; None is for ever. 0: stopped, by whatever. 5: an endpoint can't be opened, which
        has been said. 124: nothing was taken within ``wait`` seconds. A second signal n ends the process at
        once, with 128+n.
        """
        set_up_logging("warning", "auto")
        run_reactor(self.reactor, self._signal, self.guarded, self._open, wait, seconds)
        if self._failure is not None:
            raise self._failure
        return self._code

    def stop(self, code: int = 0) -> None:
        """Take nothing more, and have `run` return ``code``; the first call counts.

        The app stops as any other, only without draining: what its log held back is logged.
        """
        if self._stopped:
            return
        self._stopped, self._code = True, code
        self.stats = copy(self.stats)
        self.stats.received = self.received  # the app's is behind while it delivers
        if self._service is None:
            self._end()
        else:
            self._service.drain_timeout = 0.0
            self._service.stopService().addErrback(self._stop_failed).addCallback(self._end)

    def finish(self) -> None:
        """Take what was sent before, but nothing newer, and stop: what was lost of it is known then, too."""
        if self._service is not None and not self._stopped:
            self._service.stopService().addErrback(self._stop_failed).addCallback(lambda _: self.stop())

    @property
    def received(self) -> int:
        """How many messages have come."""
        counted = self.stats.malformed + self.stats.duplicate
        return self.taken + self.ignored + self.unmatched + self._control + counted

    @property
    def _control(self) -> int:
        return self.stats.control + self._kept

    def told(self) -> dict[str, object]:
        """The counters of what did not reach ``take``, if there is anything to tell; malformed and lost always."""
        counts = {"ignored": self.ignored, "unmatched": self.unmatched, "control": self._control}
        told: dict[str, object] = {name: count for name, count in counts.items() if count}
        return told | {"malformed": self.stats.malformed} | losses(self.stats)

    # -- the run ----------------------------------------------------------------------------------------

    def _open(self, wait: float | None, seconds: float | None) -> None:
        try:
            endpoints = tuple(map(_reachable, self._endpoints))
            service = AppService(self._app.compile(), self.reactor, sub=endpoints, pub=(), drain_timeout=_LAST)
            self._service = service
            service.startService()
        except EndpointError as error:
            say(str(error))
            self.stop(EXIT_ENDPOINT)
            return
        self.stats = self._app.stats
        connection = cast("SocketPair", service.transport).sub
        assert connection is not None
        connection.endpoint_option, connection.size_option = "ENDPOINT", None
        for endpoint, resolved in zip(endpoints, connection.endpoints, strict=True):
            _say_opened(endpoint, resolved)
        for period, function in self._timers:
            LoopingCall(self.guarded, function).start(period, now=False)
        if wait is not None:
            self.reactor.callLater(wait, self._give_up, wait)
        if seconds is not None:
            self.reactor.callLater(seconds, self.finish)

    def _end(self, _: object = None) -> None:
        with suppress(ReactorNotRunning):
            self.reactor.stop()

    def _stop_failed(self, failure: Failure) -> None:
        self._failure = self._failure or failure.value

    def _give_up(self, wait: float) -> None:
        if not self.taken and not self._stopped and self._signalled_at is None:
            others = ", ".join(
                f"{name} {count}" for name, count in self.told().items() if count and count != NOT_COUNTED
            )
            say(f"nothing came within {wait:g} s" + (f", except {others}" if others else ""))
            self.stop(EXIT_NOTHING)

    def guarded(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call it; where it raises, listening is over and `run` raises the same."""
        try:
            if not self._stopped:
                function(*arguments)
        except BaseException as error:
            self._failure = error
            self.stop()

    def _signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            self.reactor.callFromThread(self.finish)
        elif now - self._signalled_at > _ONE_SIGNAL:  # output is blocked, or else it would have ended
            os._exit(128 + number)

    # -- messages ---------------------------------------------------------------------------------------

    def _receive(self, envelope: Envelope) -> None:
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


def _reachable(endpoint: Endpoint) -> Endpoint:
    if endpoint.address.startswith("inproc:"):
        raise EndpointError(
            f"{endpoint.address} is inside a process, where nobody else can listen: publish to tcp:// or ipc:// too",
            endpoint=str(endpoint),
        )
    return endpoint


def _say_opened(endpoint: Endpoint, resolved: str) -> None:
    say(f"{'bound to' if endpoint.bind else 'connects to'} {resolved}")
    if endpoint.is_open:
        say(f"{resolved} is open to the network, without authentication")


def say(text: str) -> None:
    """One line on standard error, above a table that is renewed there."""
    print(f"zroute: {text}", file=sys.stderr, flush=True)


@contextmanager
def while_read() -> Iterator[None]:
    """End the program quietly, with 0, once nobody reads its output any more, as in ``zroute tail … | head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at its exit
        raise SystemExit(0) from None
