"""What ``zroute tail``, ``top`` and ``record`` share: a subscriber's socket for the time of one command.

It joins as an app's does, by a marker behind its subscriptions, and answers goodbyes. So a publisher knows it for a
subscriber that reads the tracked wire, and does not warn of a plain reader.
Every message becomes an `Envelope` for the command's function; what does not reach it is counted and said.
Unlike an app's table, which is built for speed, this one asks after every part whether another follows.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import zmq
from twisted.internet.task import LoopingCall

from zroute.cli.loading import EXIT_ENDPOINT
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, EnvelopeError
from zroute.logs import printable, set_up_logging
from zroute.messages.coalesced import parse_batch, singles
from zroute.messages.control import pack_farewell, pack_marker, parse_marker
from zroute.messages.topics import Pattern, Topic, any_of, minimal_cover
from zroute.messages.wire import HEADER_SIZE, MAGIC, NUL, Envelope, Header, Kind, parse, parse_header, split
from zroute.options import LINGER_ABORT, MAX_MESSAGE, MAX_PARTS, MAX_TOPIC, frame_limit
from zroute.runtime.runner import install_reactor
from zroute.runtime.signals import run_reactor
from zroute.sockets.pubsub import SubConnection
from zroute.throttle import Reports

__all__ = ["EXIT_NOTHING", "Listening", "say", "while_read"]

EXIT_NOTHING = 124  # as timeout(1) has it

_MAX_BODY = 16 * MAX_MESSAGE
"""Bytes: apps may have raised their own limit, and what they send is to be seen here too."""

_ONE_SIGNAL = 0.2
"""Seconds in which signals are one: timeout(1) sends its to the process, and at once again to its group."""

_FIRST_BYTES = 32

_STANDING = 6.0
"""Seconds until a farewell is withdrawn: the publisher has read it by then, or has gone."""

_FAREWELLS = 64
"""Farewells that stand at a time: peers can invent goodbyes. A real publisher repeats its own until it is answered."""

_log = logging.getLogger("zroute")


class Listening:
    """Subscribe to ``endpoints`` and call ``take`` with every message that the patterns let through.

    Without ``patterns`` that is everything; topics that match one of ``ignore`` are left out. Envelopes
    hold their raw parts in `Envelope.frames`. ``take`` may call `stop`; what it raises ends the listening
    and is raised by `run`.

    ``received = taken + ignored + unmatched + control + malformed``: ``unmatched`` came because a socket
    filters by prefixes, which let more through than patterns; ``control`` carried no data; ``malformed``
    was no message.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        patterns: Sequence[Pattern],
        take: Callable[[Envelope], object],
        *,
        ignore: Sequence[Pattern] = (),
    ) -> None:
        self.received = 0
        self.taken = 0
        self.ignored = 0
        self.unmatched = 0
        self.control = 0
        self.malformed = 0
        self.reactor = install_reactor(None)
        self._endpoints = endpoints
        self._take = take
        self._prefixes = minimal_cover(pattern.subscription for pattern in patterns) if patterns else (b"",)
        self._is_ignored = any_of(ignore)
        self._is_wanted = any_of(patterns) if patterns else lambda _topic: True
        self._marker = pack_marker(secrets.randbits(64), self._prefixes)
        self._left: set[int] = set()  # epochs of publishers whose goodbye was answered
        self._parts: list[bytes] = []
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._context: zmq.Context[Any] | None = None
        self._connection: SubConnection | None = None
        self._reports: Reports | None = None
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
        if self._context is not None:
            self._context.term()
        if self._failure is not None:
            raise self._failure
        return self._code

    def stop(self, code: int = 0) -> None:
        """Take nothing more, and have `run` return ``code``; the first call counts."""
        if self._stopped:
            return
        self._stopped, self._code = True, code
        if self._connection is not None:
            self._connection.close(LINGER_ABORT)
        if self._reports is not None:
            self._reports.close()
        self.reactor.stop()

    def told(self) -> dict[str, int]:
        """The counters of what did not reach ``take``, as far as there is anything to tell; malformed always."""
        counts = {"ignored": self.ignored, "unmatched": self.unmatched, "control": self.control}
        return {name: count for name, count in counts.items() if count} | {"malformed": self.malformed}

    # -- the run ----------------------------------------------------------------------------------------

    def _open(self, wait: float | None, seconds: float | None) -> None:
        self._reports = Reports(_log, self.reactor)
        self._context = zmq.Context()
        self._connection = SubConnection(self.reactor, list, context=self._context, maxmsgsize=frame_limit(_MAX_BODY))
        self._connection.log.name = click.get_current_context().command_path
        self._connection.endpoint_option, self._connection.size_option = "ENDPOINT", None
        self._connection.drain = self._drain
        self._connection.subscribed = lambda: (*self._prefixes, self._marker)
        try:
            for endpoint in self._endpoints:
                _say_opened(endpoint, self._connection.open(_reachable(endpoint)))
        except EndpointError as error:
            say(str(error))
            self.stop(EXIT_ENDPOINT)
            return
        for prefix in (*self._prefixes, self._marker):
            self._connection.subscribe(prefix)
        if wait is not None:
            self.reactor.callLater(wait, self._give_up, wait)
        if seconds is not None:
            self.reactor.callLater(seconds, self.stop)
        for period, function in self._timers:
            LoopingCall(self.guarded, function).start(period, now=False)

    def _give_up(self, wait: float) -> None:
        if not self.taken and not self._stopped:
            others = ", ".join(f"{name} {count}" for name, count in self.told().items() if count)
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
            self.reactor.callFromThread(self.stop)
        elif now - self._signalled_at > _ONE_SIGNAL:  # output is blocked, or else it would have ended
            os._exit(128 + number)

    # -- messages ---------------------------------------------------------------------------------------

    def _drain(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        """Read up to ``budget`` parts; a message that is not whole then goes on with the next call."""
        for _ in range(budget):
            if self._stopped:
                return
            part = recv(zmq.DONTWAIT)
            if len(self._parts) <= MAX_PARTS:  # one more than a message may have, by which `split` knows
                self._parts.append(part)
            if not more():
                frames, self._parts = tuple(self._parts), []
                self._receive(frames)

    def _receive(self, frames: tuple[bytes, ...]) -> None:
        self.received += 1
        try:
            topic, body = split(frames)
            header = parse_header(body) if body.startswith(MAGIC) else None
            if header is not None and header.kind is Kind.BATCH:
                self._receive_batch(topic, header, body)
                return
            if header is not None and header.kind is not Kind.DATA:
                self.control += 1
                if header.kind is Kind.GOODBYE and topic == self._marker:
                    self._answer(header.epoch)
                return
            if not self._is_wanted(topic):
                self.unmatched += 1
                return
            if self._is_ignored(topic):
                self.ignored += 1
                return
            envelope = parse(frames, time.time())
        except EnvelopeError as error:
            self._refuse(error, frames)
            return
        self.taken += 1
        self.guarded(self._take, envelope)

    def _answer(self, epoch: int) -> None:
        """Tell a publisher that has ended that all it sent was read: it waits for that."""
        if self._connection is None or epoch in self._left or len(self._left) >= _FAREWELLS:
            return
        farewell = pack_farewell(parse_marker(self._marker).subscriber, epoch)
        self._left.add(epoch)
        self._connection.subscribe(farewell)
        self.reactor.callLater(_STANDING, self._withdraw, epoch, farewell)

    def _withdraw(self, epoch: int, farewell: bytes) -> None:
        self._left.discard(epoch)
        if self._connection is not None and not self._stopped:
            self._connection.unsubscribe(farewell)

    def _receive_batch(self, topic: bytes, header: Header, body: bytes) -> None:
        """Each message of it, in the frame that it would have come in alone."""
        bodies = parse_batch(header.codec, body[header.size :]).bodies
        self.received -= 1
        for frame in singles(topic, body[:HEADER_SIZE], bodies):
            if self._stopped:
                break
            self._receive((frame,))

    def _refuse(self, error: EnvelopeError, frames: tuple[bytes, ...]) -> None:
        self.malformed += 1
        if self._reports is not None:
            text = "malformed message skipped (topic %r): %s; first bytes: %r"
            topic = str(Topic.from_wire(frames[0][:MAX_TOPIC].partition(NUL)[0]))
            start = frames[0][:_FIRST_BYTES]
            self._reports(
                "malformed", "malformed messages", logging.WARNING, text, topic, printable(error.reason), start
            )


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
