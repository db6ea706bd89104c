"""One end of ``zroute bench``, a publisher or a subscriber.

Each end runs in its own process. It is an ordinary App with typed messages, the tracked wire and the platform's default
reactor. The process only measures, and reports to the command on standard output, with one JSON object per line. The
process stops when its standard input is closed, and therefore also when the command dies.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Awaitable, Coroutine
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall, deferLater

from zroute.app import App
from zroute.cli.latencies import Latencies
from zroute.endpoints import NO_KEYS, Endpoint
from zroute.errors import EndpointError, HighWaterMarkError, NotReadyError
from zroute.logs import set_up_logging
from zroute.messages.bodies import body_encoder
from zroute.options import READ_BUDGET
from zroute.receiving.events import Gap
from zroute.runtime.exit_codes import EXIT_ENDPOINT, EXIT_FAILED, EXIT_TIMED_OUT
from zroute.runtime.runner import install_reactor
from zroute.runtime.service import AppService

__all__ = ["Load", "Order", "Report", "Workload", "main", "padding"]

_PERIOD = 0.25
"""The time in seconds between two progress reports: short enough for a progress bar, but too long to affect latencies.
"""

_FAREWELL = 10.0
"""The time in seconds for which a publisher repeats its last report. A subscriber reads a full queue in less time."""

_AGAIN = 0.1  # seconds between two of these reports: a full queue may drop one, like any message

_TAIL = 5.0
"""The maximum time in seconds that a subscriber waits for missing messages after the publisher's last report.

The publisher sends ten beats in this time, so every loss should then be counted.
"""

_TOPIC = "zroute.bench.load"
_REPORTS = "zroute.bench.report"

_FIRST = 1 << 32
"""The number of the first message. msgpack encodes this and all larger numbers in nine bytes, so all bodies have the
same size.
"""

_log = logging.getLogger("zroute")


@attrs.frozen
class Workload:
    """The load that the publisher sends.

    Attributes:
        rate: The number of messages per second. None sends as fast as the subscribers read.
        size: The size of a body in bytes.
        count: The number of messages, or None for no limit.
        seconds: The duration in seconds, or None for no limit. The limit that is reached first ends the load.
    """

    rate: float | None = None
    size: int = 0
    count: int | None = None
    seconds: float | None = None


@attrs.frozen
class Order:
    """The task of one end of a measurement: a publisher or a subscriber.

    Attributes:
        role: ``pub`` or ``sub``.
        address: The address to bind or connect.
        bind: True to bind the address, False to connect to it.
        wait: The time in seconds to wait for the other end.
        insecure: True if other hosts may reach the address.
        alone: For a subscriber: True if it is the only subscriber. The load then begins when it has joined.
        workload: For a publisher: the load to send.
    """

    role: str
    address: str
    bind: bool
    wait: float
    insecure: bool = False
    alone: bool = False
    workload: Workload = Workload()


@attrs.frozen
class Load:
    """A message of the load.

    Attributes:
        number: The number of the message. The first is ``_FIRST``.
        sent_ns: The time of publishing, in nanoseconds since the Unix epoch.
        fill: Zeros that fill the body up to its size.
    """

    number: int
    sent_ns: int
    fill: bytes


@attrs.frozen
class Report:
    """A report of the publisher about its progress.

    Attributes:
        sent: The number of messages sent.
        part: The fraction of the load that is sent, from 0 to 1.
        done: True in the last report.
        seconds: The time from the first message to the last.
        cpu: The CPU time from the first message to the last, in seconds.
        workload: The requested load, with the real size of the bodies.
        host: The name of the publisher's machine.
        behind: The maximum delay of a message in seconds, compared with the requested rate.
    """

    sent: int
    part: float
    done: bool
    seconds: float
    cpu: float
    workload: Workload
    host: str
    behind: float


def padding(app: App, size: int) -> tuple[bytes, int]:
    """Return the padding for a body of ``size`` bytes, and the real size of the body.

    For a few sizes, the real size is one byte less, because the body also contains the length of the padding.
    """
    _, encode = body_encoder(Load, codec=None, default=app.codec)

    def length(fill: int) -> int:
        return len(encode(Load(_FIRST, time.time_ns(), bytes(fill))))

    fill = max(size - length(0), 0)
    while fill and length(fill) > size:  # the length field of a longer padding has more bytes
        fill -= 1
    return bytes(fill), length(fill)


class _End:
    """The base class of both ends: an app that runs during the coroutine `measure`."""

    def __init__(self, app: App, order: Order, reactor: Any) -> None:
        self.app = app
        self.order = order
        self.reactor = reactor
        self.code = 0
        self.stopped = False
        self.service: Any = None

    async def run(self) -> None:
        """Start the app, measure, and stop the app. Sets ``code``, the exit code."""
        try:
            self.service = AppService(self.app.compile(), self.reactor)
            self.service.reports = False
            self.service.startService()
            await self.service.started
            self._say_opened()
            await self.measure()
        except EndpointError as error:
            self.fail(EXIT_ENDPOINT, error.text)  # without the line of the app, which is zroute's own
        except CancelledError:  # stopped while waiting for the other end
            pass
        except Exception:
            _log.exception("this end of the measurement failed")
            self.code = EXIT_FAILED
        finally:
            if self.service is not None:
                await self.service.stopService()

    def _say_opened(self) -> None:
        """Report the opened address, and warn if other hosts can connect to it."""
        transport, endpoint = self.service.transport, Endpoint(self.order.address, self.order.bind)
        (opened,) = transport.pub.endpoints if transport.pub else transport.subscribed
        if (warning := NO_KEYS.exposure(endpoint.resolved(opened))) is not None:
            _tell(say=warning)
        _tell(open=opened)

    async def measure(self) -> None:
        """Send or receive the load, and report the result."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop early. This end still reports its measurements."""
        self.stopped = True

    def fail(self, code: int, why: str) -> None:
        """Report an error. The first ``code`` becomes the exit code."""
        self.code = self.code or code
        _tell(say=why)

    def progress(self, part: float, number: int, lost: int = 0) -> None:
        """Report progress, for the bar. ``part`` is from 0 to 1."""
        _tell(progress={"part": part, "messages": number, "lost": lost})


class _Publisher(_End):
    """The publisher, which sends the load.

    The publisher sends at the requested rate. Without a rate, it sends as fast as the slowest subscriber reads.
    """

    def __init__(self, order: Order, reactor: Any) -> None:
        # Without a rate, wait for the slowest subscriber; with one, drop messages like an ordinary publisher.
        overflow: Any = "wait" if order.workload.rate is None else "drop"
        endpoint = Endpoint(order.address, order.bind)
        super().__init__(
            App(pub=str(endpoint), overflow=overflow, insecure=order.insecure, name="bench"), order, reactor
        )
        self._load = self.app.publisher(_TOPIC, Load)
        self._reports = self.app.publisher(_REPORTS, Report)
        self._fill, size = padding(self.app, order.workload.size)
        self._workload = attrs.evolve(order.workload, size=size)
        self._sent = 0
        self._began = self._began_cpu = self._seconds = self._took = self._cpu = self._behind = 0.0
        self._waiting: Deferred[None] | None = None

    def stop(self) -> None:
        super().stop()
        if self._waiting is not None:
            self._waiting.cancel()

    async def measure(self) -> None:
        try:
            await self._subscriber()
        except NotReadyError:
            self.fail(EXIT_TIMED_OUT, f"nothing was sent: no subscriber connected within {self.order.wait:g} s")
            return
        if self.stopped:
            return
        try:
            await self._send_load()
        except HighWaterMarkError as error:
            self.fail(EXIT_FAILED, str(error))
        _tell(result={"publisher": attrs.asdict(self._report(done=True))})
        await self._say_goodbye()

    async def _subscriber(self) -> None:
        """Wait for a subscriber.

        Raises NotReadyError if no subscriber joins in time, and CancelledError after `stop`.
        """
        self._waiting = _deferred(self._load.wait_for_subscribers(1, self.order.wait))
        try:
            await self._waiting
        finally:
            self._waiting = None

    async def _is_alone(self) -> bool:
        """Return True if there is no subscriber now."""
        try:
            await self._load.wait_for_subscribers(1, timeout=0)
        except NotReadyError:
            return True
        return False

    async def _send_load(self) -> None:
        """Send the load in bursts, one per turn of the reactor, and report progress."""
        self._began, self._began_cpu = self.reactor.seconds(), time.process_time()
        looked = 0.0
        while not self.stopped and self._part() < 1:
            await self._burst(self._due())
            if self._part() >= 1:
                return
            if self._seconds - looked >= _PERIOD:
                looked = self._seconds
                self._reports.publish(self._report(done=False))
                self.progress(self._part(), self._sent)
                if await self._is_alone():
                    self.fail(EXIT_FAILED, "the subscriber disconnected before the end")
                    return
            await deferLater(self.reactor, self._pause())
            self._look_at_clock()

    async def _burst(self, number: int) -> None:
        """Send the next ``number`` messages, which are due now."""
        publish, clock, fill, rate = self._load.publish, time.time_ns, self._fill, self._workload.rate
        waits = rate is None
        if number and rate is not None:
            self._behind = max(self._behind, self._seconds - self._sent / rate)
        for _ in range(number):
            sent = publish(Load(_FIRST + self._sent, clock(), fill))
            self._sent += 1
            if waits:
                await sent
        self._look_at_clock()
        if number:
            self._took, self._cpu = self._seconds, time.process_time() - self._began_cpu

    def _look_at_clock(self) -> None:
        self._seconds = self.reactor.seconds() - self._began

    def _due(self) -> int:
        """Return the number of messages to send in this turn of the reactor.

        The number is limited, so that the reactor can also handle timers and subscriptions.
        """
        rate, count = self._workload.rate, self._workload.count
        due = READ_BUDGET if rate is None else int(min(self._seconds * rate + 1 - self._sent, READ_BUDGET))
        return due if count is None else min(due, count - self._sent)

    def _pause(self) -> float:
        """Return the time in seconds until the next message is due."""
        rate = self._workload.rate
        return 0.0 if rate is None else min(max(self._sent / rate - self._seconds, 0.0), _PERIOD)

    def _part(self) -> float:
        """Return the fraction of the load that is sent, from 0 to 1."""
        count, seconds = self._workload.count, self._workload.seconds
        by_count = self._sent / count if count else 0.0
        by_time = self._seconds / seconds if seconds else 0.0
        return min(max(by_count, by_time), 1.0)

    def _report(self, *, done: bool) -> Report:
        return Report(
            sent=self._sent,
            part=self._part(),
            done=done,
            seconds=self._took,
            cpu=self._cpu,
            workload=self._workload,
            host=platform.node(),
            behind=self._behind,
        )

    async def _say_goodbye(self) -> None:
        """Repeat the last report until all subscribers have received it and disconnected."""
        last = self._report(done=True)
        until = self.reactor.seconds() + _FAREWELL
        while self.reactor.seconds() < until and not await self._is_alone():
            self._reports.publish(last)
            await deferLater(self.reactor, _AGAIN)


class _Subscriber(_End):
    """The subscriber, which receives the load and checks the counts.

    The messages that are received and the messages that zroute counts as lost must add up to the number of sent
    messages.
    """

    def __init__(self, order: Order, reactor: Any) -> None:
        endpoint = Endpoint(order.address, order.bind)
        super().__init__(App(sub=str(endpoint), insecure=order.insecure, name="bench"), order, reactor)
        self._latencies = Latencies()
        self._first: Load | None = None
        self._last: Load | None = None
        self._report: Report | None = None
        self._first_at = self._last_at = 0.0
        self._lost = self._before = 0
        self._tail = 0
        self._tail_behind: Load | None = None
        self._began_cpu = 0.0
        self._heard = reactor.seconds()
        self._done_at: float | None = None
        self._finished: Deferred[None] = Deferred()
        self.app.subscribe(_TOPIC)(self._on_load)
        self.app.subscribe(_REPORTS)(self._on_report)
        self.app.on_gap(self._on_gap)

    def stop(self) -> None:
        super().stop()
        self._finish()

    async def measure(self) -> None:
        ready = _deferred(self.app.ready(1, self.order.wait))
        self._finished.addCallback(lambda _: ready.cancel())  # no effect if ``ready`` has fired
        try:
            await ready
        except CancelledError:  # stopped, or the whole load has arrived
            pass
        except NotReadyError:
            if not self._has_heard():
                self.fail(EXIT_TIMED_OUT, f"no publisher answered within {self.order.wait:g} s")
                return
        self._heard = self.reactor.seconds()
        looking = LoopingCall(self._look)
        looking.clock = self.reactor
        looking.start(_PERIOD, now=False)
        try:
            await self._finished
        finally:
            looking.stop()
        if self._has_heard():
            _tell(result=self._result())

    def _has_heard(self) -> bool:
        """Return True if anything arrived from the publisher."""
        return self._last is not None or self._report is not None

    # -- received messages ---------------------------------------------------------------------------------

    def _on_load(self, load: Load) -> None:
        now = time.time_ns()
        if self._first is None:
            self._first, self._first_at, self._began_cpu = load, time.monotonic(), time.process_time()
            if not self.order.alone:  # with a single subscriber, all missing messages are losses
                self._before = max(load.number - _FIRST - self._lost, 0)
        self._latencies.add(now - load.sent_ns)
        self._last, self._last_at = load, time.monotonic()

    def _on_gap(self, gap: Gap) -> None:
        if gap.subscription != _TOPIC.encode():
            return
        self._lost += gap.count
        behind_last = self._tail_behind is self._last  # no message arrived since the previous gap
        self._tail = gap.count + (self._tail if behind_last else 0)
        self._tail_behind = self._last

    def _on_report(self, report: Report) -> None:
        self._report, self._heard = report, self.reactor.seconds()
        if report.done:
            self._done_at = self._done_at or self._heard
            self._look_whether_all()

    def _look(self) -> None:
        """Report progress, and end if the load is complete or the publisher is silent.

        A timer calls this method every ``_PERIOD`` seconds.
        """
        now = self.reactor.seconds()
        if self._last is not None:
            self._heard = max(self._heard, now - (time.monotonic() - self._last_at))
        self.progress(self._report.part if self._report else 0.0, len(self._latencies), self._lost)
        if self._done_at is not None:
            self._look_whether_all()
        elif now - self._heard > self.order.wait:
            self._fall_silent()

    def _look_whether_all(self) -> None:
        """Finish if all messages are received or lost, or after ``_TAIL`` seconds."""
        assert self._report is not None
        assert self._done_at is not None
        complete = len(self._latencies) + self._lost + self._before >= self._report.sent
        if complete or self.reactor.seconds() - self._done_at > _TAIL:
            self._finish()

    def _fall_silent(self) -> None:
        if not self._has_heard():
            self.fail(EXIT_TIMED_OUT, f"no message arrived within {self.order.wait:g} s")
        else:
            self.fail(EXIT_FAILED, f"the publisher has sent nothing for {self.order.wait:g} s")
        self._finish()

    def _finish(self) -> None:
        if not self._finished.called:
            self._finished.callback(None)

    # -- result --------------------------------------------------------------------------------------------

    def _result(self) -> dict[str, Any]:
        """Return the figures of this end, and the last report of the publisher."""
        received, lost, report = len(self._latencies), self._lost, self._report
        if report is not None and report.done:
            sent = report.sent - self._before
        else:  # without a last report, only messages up to the last received one are compared
            sent = self._last.number - _FIRST + 1 - self._before if self._last is not None else 0
            lost -= self._tail if self._tail_behind is self._last else 0
        return {
            "sent": sent,
            "received": received,
            "lost": lost,
            "before_join": self._before,
            "holds": sent == received + lost,
            "complete": report is not None and report.done,
            "seconds": self._last_at - self._first_at,
            "cpu": time.process_time() - self._began_cpu if received else 0.0,
            "latency_us": self._latencies.told() if received else None,
            "early": self._latencies.early,
            "host": platform.node(),
            "publisher": attrs.asdict(report) if report is not None else None,
        }


def _deferred(waiting: Coroutine[Any, Any, None]) -> Deferred[None]:
    return Deferred.fromCoroutine(_awaited(waiting))


async def _awaited(waiting: Awaitable[None]) -> None:
    await waiting


def _tell(**told: object) -> None:
    """Print a JSON object for the command, with the kind of report as its key."""
    try:
        print(json.dumps(told), flush=True)
    except BrokenPipeError:  # the command was killed; standard input ends too, which stops this end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run one end. The first argument of the process is its `Order`, as JSON."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    set_up_logging("warning", "auto")
    reactor = install_reactor(None)
    end: _End = _Publisher(order, reactor) if order.role == "pub" else _Subscriber(order, reactor)

    def watch() -> None:
        os.read(0, 1)  # returns when the command, which writes nothing, closes the pipe or dies
        reactor.callFromThread(end.stop)

    def start() -> None:
        threading.Thread(target=watch, name="zroute-bench", daemon=True).start()
        running = Deferred.fromCoroutine(end.run())
        running.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run(installSignalHandlers=False)
    raise SystemExit(end.code)


if __name__ == "__main__":
    main()
