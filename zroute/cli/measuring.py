"""One end of ``zroute bench``: a publisher or a subscriber in a process of its own, which measures and draws nothing.

It is an App as anybody's: typed messages, tracked wire, the reactor of the platform. It tells the command what it
sees, one JSON object a line on standard output, and stops when standard input ends, so also with the command.
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
from zroute.endpoints import Endpoint
from zroute.errors import EndpointError, HighWaterMarkError, NotReadyError
from zroute.logs import set_up_logging
from zroute.messages.bodies import body_encoder
from zroute.options import READ_BUDGET
from zroute.receiving.events import Gap
from zroute.runtime.runner import EXIT_ENDPOINT, EXIT_FAILED, install_reactor
from zroute.runtime.service import AppService

__all__ = ["EXIT_NOBODY", "Load", "Order", "Report", "Workload", "main", "padding"]

EXIT_NOBODY = 124  # as timeout(1) has it

_PERIOD = 0.25
"""Seconds between two lines of progress: often enough for a bar, too seldom to be seen in a latency."""

_FAREWELL = 10.0
"""Seconds for which a publisher says that this was all: a subscriber reads a full queue in less."""

_AGAIN = 0.1  # seconds between two of these: one may be dropped, as any message

_TAIL = 5.0
"""Seconds after the publisher's last word until what is neither received nor told as lost is missing: ten beats."""

_TOPIC = "zroute.bench.load"
_REPORTS = "zroute.bench.report"

_FIRST = 1 << 32
"""The number of the first message: msgpack takes nine bytes for it and for all behind it, so all bodies are alike."""

_log = logging.getLogger("zroute")


@attrs.frozen
class Workload:
    """What the publisher sends: bodies of ``size`` bytes, ``count`` of them or for ``seconds``, if these are given.

    ``rate`` is in messages a second; None: as fast as they are read.
    """

    rate: float | None = None
    size: int = 0
    count: int | None = None
    seconds: float | None = None


@attrs.frozen
class Order:
    """What one end is to do. ``wait`` is how long to wait for the other one, in seconds.

    A publisher sends the ``workload``. ``alone`` tells a subscriber that no other was there before.
    """

    role: str
    address: str
    bind: bool
    wait: float
    alone: bool = False
    workload: Workload = Workload()


@attrs.frozen
class Load:
    """A message to measure with: ``sent_ns`` is in nanoseconds since the Unix epoch."""

    number: int
    sent_ns: int
    fill: bytes


@attrs.frozen
class Report:
    """What the publisher says of itself: ``part`` of the whole is done, and ``done`` says that this was all.

    ``cpu`` and ``seconds`` are from the first message to the last. The ``workload`` is what was ordered, with the size
    that bodies really have. ``behind`` is how late a message was published at most, in seconds.
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
    """What fills a body up to ``size`` bytes, and how many it then has: at two sizes one less is as near as it gets."""
    _, encode = body_encoder(Load, codec=None, default=app.codec)

    def length(fill: int) -> int:
        return len(encode(Load(_FIRST, time.time_ns(), bytes(fill))))

    fill = max(size - length(0), 0)
    while fill and length(fill) > size:  # the length of the filling takes more bytes when it is longer
        fill -= 1
    return bytes(fill), length(fill)


class _End:
    """What both ends have: an app that runs for the time of one coroutine."""

    def __init__(self, app: App, order: Order, reactor: Any) -> None:
        self.app = app
        self.order = order
        self.reactor = reactor
        self.code = 0
        self.stopped = False
        self.service: Any = None

    async def run(self) -> None:
        """From the start of the app to its end."""
        self.service = AppService(self.app.compile(), self.reactor)
        try:
            self.service.startService()
            await self.service.started
            await self.measure()
        except EndpointError as error:
            self.fail(EXIT_ENDPOINT, str(error))
        except CancelledError:  # stopped while it waited for the other end
            pass
        except Exception:
            _log.exception("this end of the measurement has failed")
            self.code = EXIT_FAILED
        finally:
            await self.service.stopService()

    async def measure(self) -> None:
        """The whole of it."""
        raise NotImplementedError

    def stop(self) -> None:
        """Come to an end, and tell what there is to tell."""
        self.stopped = True

    def fail(self, code: int, why: str) -> None:
        """End with ``code``, and say why."""
        self.code = self.code or code
        _tell(say=why)

    def progress(self, part: float, number: int, lost: int = 0) -> None:
        """For the bar."""
        _tell(progress={"part": part, "messages": number, "lost": lost})


class _Publisher(_End):
    """Sends the load: as its rate says, or as fast as the slowest subscriber reads it."""

    def __init__(self, order: Order, reactor: Any) -> None:
        overflow: Any = "wait" if order.workload.rate is None else "drop"
        endpoint = Endpoint(order.address, order.bind)
        super().__init__(App(pub=str(endpoint), overflow=overflow, name="bench"), order, reactor)
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
        _tell(open=self.service.transport.pub.endpoints[0])
        try:
            await self._subscriber()
        except NotReadyError:
            self.fail(EXIT_NOBODY, f"nobody subscribed within {self.order.wait:g} s, so nothing was sent")
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
        """Wait for one. Raises NotReadyError, and CancelledError after `stop`."""
        self._waiting = _deferred(self._load.wait_for_subscribers(1, self.order.wait))
        try:
            await self._waiting
        finally:
            self._waiting = None

    async def _is_alone(self) -> bool:
        try:
            await self._load.wait_for_subscribers(1, timeout=0)
        except NotReadyError:
            return True
        return False

    async def _send_load(self) -> None:
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
                    self.fail(EXIT_FAILED, "the subscriber has left before the end")
                    return
            await deferLater(self.reactor, self._pause())
            self._look_at_clock()

    async def _burst(self, number: int) -> None:
        """Send the messages that are due."""
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
        """How many to send in this turn of the reactor, so that timers and subscriptions have theirs."""
        rate, count = self._workload.rate, self._workload.count
        due = READ_BUDGET if rate is None else int(min(self._seconds * rate + 1 - self._sent, READ_BUDGET))
        return due if count is None else min(due, count - self._sent)

    def _pause(self) -> float:
        """Seconds until the next message is due."""
        rate = self._workload.rate
        return 0.0 if rate is None else min(max(self._sent / rate - self._seconds, 0.0), _PERIOD)

    def _part(self) -> float:
        """How much of it all is done, from 0 to 1."""
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
        """Until all subscribers have heard it, and have left."""
        last = self._report(done=True)
        until = self.reactor.seconds() + _FAREWELL
        while self.reactor.seconds() < until and not await self._is_alone():
            self._reports.publish(last)
            await deferLater(self.reactor, _AGAIN)


class _Subscriber(_End):
    """Takes the load, and compares what came and what zroute counts as lost with what the publisher says."""

    def __init__(self, order: Order, reactor: Any) -> None:
        super().__init__(App(sub=str(Endpoint(order.address, order.bind)), name="bench"), order, reactor)
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
        self._finished.addCallback(lambda _: ready.cancel())  # which is nothing to one that has fired
        try:
            await ready
        except CancelledError:  # stopped, or all has come already
            pass
        except NotReadyError:
            if not self._has_heard():
                self.fail(EXIT_NOBODY, f"no publisher answered within {self.order.wait:g} s")
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
        return self._last is not None or self._report is not None

    # -- what comes ---------------------------------------------------------------------------------------

    def _on_load(self, load: Load) -> None:
        now = time.time_ns()
        if self._first is None:
            self._first, self._first_at, self._began_cpu = load, time.monotonic(), time.process_time()
            if not self.order.alone:  # else all that is missing before it was lost on us
                self._before = max(load.number - _FIRST - self._lost, 0)
        self._latencies.add(now - load.sent_ns)
        self._last, self._last_at = load, time.monotonic()

    def _on_gap(self, gap: Gap) -> None:
        if gap.subscription != _TOPIC.encode():
            return
        self._lost += gap.count
        behind_last = self._tail_behind is self._last  # no message came since the gap before this one
        self._tail = gap.count + (self._tail if behind_last else 0)
        self._tail_behind = self._last

    def _on_report(self, report: Report) -> None:
        self._report, self._heard = report, self.reactor.seconds()
        if report.done:
            self._done_at = self._done_at or self._heard
            self._look_whether_all()

    def _look(self) -> None:
        """Now and then: tell of the progress, and see whether there is still somebody."""
        now = self.reactor.seconds()
        if self._last is not None:
            self._heard = max(self._heard, now - (time.monotonic() - self._last_at))
        self.progress(self._report.part if self._report else 0.0, len(self._latencies), self._lost)
        if self._done_at is not None:
            self._look_whether_all()
        elif now - self._heard > self.order.wait:
            self._fall_silent()

    def _look_whether_all(self) -> None:
        assert self._report is not None
        assert self._done_at is not None
        complete = len(self._latencies) + self._lost + self._before >= self._report.sent
        if complete or self.reactor.seconds() - self._done_at > _TAIL:
            self._finish()

    def _fall_silent(self) -> None:
        if not self._has_heard():
            self.fail(EXIT_NOBODY, f"nothing came within {self.order.wait:g} s")
        else:
            self.fail(EXIT_FAILED, f"the publisher has been silent for {self.order.wait:g} s")
        self._finish()

    def _finish(self) -> None:
        if not self._finished.called:
            self._finished.callback(None)

    # -- what is told of it -------------------------------------------------------------------------------

    def _result(self) -> dict[str, Any]:
        received, lost, report = len(self._latencies), self._lost, self._report
        if report is not None and report.done:
            sent = report.sent - self._before
        else:  # the last that came is the last one known of, and what is lost behind it is not compared
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
    try:
        print(json.dumps(told), flush=True)
    except BrokenPipeError:  # the command was killed; the end of standard input tells how to end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the end that the first argument orders, as JSON."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    set_up_logging("warning", "auto")
    reactor = install_reactor(None)
    end: _End = _Publisher(order, reactor) if order.role == "pub" else _Subscriber(order, reactor)

    def watch() -> None:
        os.read(0, 1)  # nobody writes: it returns when the command closes its side, or is gone
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
