"""AppService: one run of an app. It opens, delivers, drains and closes, in that order.

The transport is known by a small protocol, so that another one can take its place.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import count
from threading import get_ident
from typing import Any, Protocol

import attrs
from twisted.application.service import Service
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.app import App
from zroute.awaiting import as_deferred, is_awaitable
from zroute.delivery.stats import RouteStats, Stats
from zroute.endpoints import Endpoint
from zroute.errors import EncodeError, UsageError, WrongThreadError
from zroute.messages.topics import Topic
from zroute.messages.wire import framer
from zroute.options import DRAIN_TIMEOUT, LINGER_DRAIN
from zroute.outcomes import Outcomes
from zroute.producers import CompiledProducer, Producers
from zroute.routing.compiler import Compiled, CompiledTrigger
from zroute.routing.parameters import is_generator_function, name_of
from zroute.routing.publications import DONE, Emit
from zroute.routing.table import RouteTable
from zroute.sockets.connection import Drain
from zroute.sockets.transport import SocketTransport

__all__ = ["AppService", "Drained", "Limit", "Transport"]

_log = logging.getLogger("zroute")

_CATCH_UP = 1.0
"""Seconds a stop goes on reading what had arrived by then; under a flood there is always more."""


_HOOK = 1.0
"""Seconds an ``async`` on_shutdown function has at least, also where the drain timeout is shorter."""


class Transport(Protocol):
    """What a run needs of whatever moves its frames."""

    def open(self, drain: Drain) -> None:
        """Bind and connect; raises EndpointError."""

    def listen(self, subscriptions: Iterable[bytes]) -> None:
        """Receive what starts with these prefixes, and nothing else."""

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[None]:
        """Close; fires when all has been sent or given up."""


@attrs.frozen
class Drained:
    """How a stop went: ``unfinished`` handlers by name, with their number, when the time was over."""

    unfinished: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether every handler had ended."""
        return not self.unfinished


class Limit:
    """How many messages several services may read altogether; ``reached`` is called once, at the last."""

    def __init__(self, messages: int, reached: Callable[[], None]) -> None:
        self.left = messages
        self._reached = reached

    def take(self, messages: int) -> None:
        """So many have been read."""
        if messages and self.left:
            self.left = max(self.left - messages, 0)
            if not self.left:
                self._reached()


class AppService(Service):
    """Runs ``app`` on ``reactor``; made by ``app.service(reactor)``.

    ``sub`` and ``pub`` replace the app's endpoints; ``drain_timeout`` is how many seconds a stop waits for
    unfinished handlers; ``limit`` ends reading after a number of messages.
    """

    def __init__(
        self,
        app: App,
        reactor: Any,
        *,
        sub: tuple[Endpoint, ...] | None = None,
        pub: tuple[Endpoint, ...] | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        limit: Limit | None = None,
    ) -> None:
        self.app = app
        self.name = None
        self._reactor = reactor
        self._compiled: Compiled = app.compile()
        self.subscribe_to, self.publish_to = app.endpoints(sub=sub, pub=pub)
        self.drain_timeout = drain_timeout
        self.limit = limit
        self._run: _Run | None = None
        self._stopping: Deferred[Drained] | None = None
        self._beginning: Deferred[None] | None = None
        self._started: Deferred[None] = Deferred()  # fires either way, so that a failure nobody awaits is no error
        self._failure: Failure | None = None

    @property
    def started(self) -> Deferred[None]:
        """Fires when the app is subscribed, and fails with what ended its start; for each who asks, at any time."""
        waiting: Deferred[None] = Deferred()

        def tell(_: None) -> None:
            if self._failure is None:
                waiting.callback(None)
            else:
                waiting.errback(self._failure)

        self._started.addCallback(tell)
        return waiting

    @property
    def transport(self) -> SocketTransport | None:
        """The open sockets; None while stopped."""
        return self._run.transport if self._run else None

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Open the sockets, then run ``on_startup``, subscribe, and start timers and generators.

        Raises EndpointError, and UsageError while the app runs already.
        """
        if self.app._emit is not None:
            raise UsageError(f"{self.app!r} runs already: stop its other service first")
        Service.startService(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        self._stopping = None
        self._failure = None
        if self._started.called:
            self._started = Deferred()
        self._run = run = _Run(self)
        try:
            run.open()
        except BaseException:
            self._run = None
            self.running = 0
            raise
        self._beginning = Deferred.fromCoroutine(run.begin())
        self._beginning.addCallbacks(self._began, self._start_failed)

    def stopService(self) -> Deferred[Drained]:  # noqa: N802  # Twisted's name
        """Stop what publishes, handle what was received, run ``on_shutdown``, flush and close.

        Fires with how it went, within about ``drain_timeout`` and 3 s for the sockets. A second call waits
        for the same stop.
        """
        if self._stopping is None:
            self._stopping = Deferred()
            Service.stopService(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
            run, self._run = self._run, None
            if self._beginning is not None:
                self._beginning.cancel()  # nothing, unless an on_startup function is still at work
            if run is None:
                self._stopping.callback(Drained({}))
            else:
                Deferred.fromCoroutine(run.end(self.drain_timeout)).chainDeferred(self._stopping)
        waiting: Deferred[Drained] = Deferred()

        def tell(result: Any) -> Any:
            waiting.callback(result)
            return result

        self._stopping.addBoth(tell)
        return waiting

    def _began(self, _: None) -> None:
        if not self._started.called:
            self._started.callback(None)

    def _start_failed(self, failure: Failure) -> None:
        if self._stopping is not None and isinstance(failure.value, CancelledError | asyncio.CancelledError):
            _log.warning("%s was stopped before it had started: on_startup was cancelled", self.app.name)
        else:
            _log.error("%s did not start: %s", self.app.name, failure.getErrorMessage(), exc_info=failure.value)
        self._failure = failure
        self._began(None)
        self.stopService()


class _Run:
    """Everything that lives from one start to its stop."""

    def __init__(self, service: AppService) -> None:
        app, reactor = service.app, service._reactor
        self._service = service
        self._app = app
        self._reactor = reactor
        self._asyncio = _is_asyncio(reactor)
        self._compiled = compiled = service._compiled
        self._stats = app.stats = Stats()
        self._outcomes = Outcomes(
            stats=self._stats,
            log=_log,
            clock=reactor,
            wall=time.time,
            start=self._start,
            default=app.codec,
            hooks=app._errors,
            unrouted=app._fallbacks,
        )
        routes = [attrs.evolve(route, stats=RouteStats()) for route in compiled.routes]
        self._stats.routes.update((route.name, route.stats) for route in routes)
        self._table = RouteTable(
            routes,
            default=app.codec,
            codecs=compiled.codecs,
            dispatch=app.dispatch,
            max_message=app.max_message,
            stats=self._stats,
            outcomes=self._outcomes,
            clock=time.time,
        )
        self.transport = SocketTransport(
            reactor,
            app.context,
            subscribe_to=service.subscribe_to,
            publish_to=service.publish_to,
            max_message=app.max_message,
        )
        producers = tuple(self._producer(trigger) for trigger in compiled.triggers)
        self._producers = Producers(producers, reactor, self._start, self._stats, self._outcomes)
        self._stopped = False

    def open(self) -> None:
        limit = self._service.limit
        self.transport.open(self._table.drain if limit is None else self._limited(limit))
        emit = self._emit()
        self._app._emit = emit
        for outlet in self._compiled.outlets:
            outlet.open(emit)

    async def begin(self) -> None:
        for function in self._app._startup:
            await self._awaited(function())
        if self._stopped:
            return
        self.transport.listen(self._table.subscriptions)
        self._producers.start()

    async def end(self, timeout: float) -> Drained:
        self._stopped = True
        self._producers.stop()
        await self._pause()  # a handler that asked for the stop returns first, and is waited for
        await self._catch_up()
        unfinished = await self._settle(timeout)
        for function in self._app._shutdown:
            unfinished |= await self._shut_down(function, max(timeout, _HOOK))
        self._app._emit = None
        for outlet in self._compiled.outlets:
            outlet.close()
        await self.transport.close()
        self._outcomes.close()
        return Drained(unfinished)

    # -- parts of a start and a stop --------------------------------------------------------------------

    def _producer(self, trigger: CompiledTrigger) -> CompiledProducer:
        publish = self._outcomes.publish
        return CompiledProducer(
            trigger.name,
            trigger.where,
            trigger.call.bind({}, Topic()),
            lambda value: publish(trigger.outlets, value, {}, trigger.name),
            trigger.schedule,
            is_generator_function(trigger.call.function),
        )

    def _emit(self) -> Emit:
        """What every publication of this run sends through."""
        app, stats, pub = self._app, self._stats, self.transport.pub
        frame = framer(app.wire, epoch=secrets.randbits(64), next_sequence=count(1).__next__, clock_ns=time.time_ns)
        if pub is None:
            return _nowhere(app)
        send: Callable[[Any], None] = pub.send_parts if app.wire == "multipart" else pub.send
        limit, thread = app.max_message, get_ident()

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            if get_ident() != thread:
                raise WrongThreadError(
                    f"{topic.decode()!r} was published from another thread, which ZeroMQ does not survive: use "
                    "reactor.callFromThread(publication.publish, message)"
                )
            if len(body) > limit:
                raise EncodeError(
                    f"{topic.decode()!r}: a body of {len(body)} bytes, over max_message={limit}: send less, or "
                    "raise max_message here and at the readers"
                )
            send(frame(topic, number, body, headers))
            stats.published += 1
            return DONE

        return emit

    def _limited(self, limit: Limit) -> Drain:
        """`RouteTable.drain`, for no more messages than ``limit`` still allows."""

        def drain(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
            before = self._stats.received
            try:
                self._table.drain(recv, more, min(budget, limit.left))
            finally:
                limit.take(self._stats.received - before)
                if not limit.left and self.transport.sub is not None:
                    self.transport.sub.pause()

        return drain

    async def _catch_up(self) -> None:
        """Read on until nothing is there: a SUB socket that unsubscribes first would drop what it holds."""
        sub, end = self.transport.sub, self._reactor.seconds() + _CATCH_UP
        while sub is not None and not sub.paused and sub.readable() and self._reactor.seconds() < end:
            sub.doRead()
            await self._pause()
        if sub is not None:
            sub.pause()

    async def _settle(self, timeout: float) -> dict[str, int]:
        """Wait for unfinished handlers; the names of those that took too long, with their number."""
        unfinished: dict[str, int] = {}
        idle = self._outcomes.idle()
        timer = self._reactor.callLater(timeout, lambda: unfinished.update(self._outcomes.give_up()))
        await idle
        if timer.active():
            timer.cancel()
        return unfinished

    async def _shut_down(self, function: Callable[[], Any], timeout: float) -> dict[str, int]:
        """Run one on_shutdown function; its name, if it took too long."""
        try:
            result = function()
            if is_awaitable(result):
                await self._start(result).addTimeout(timeout, self._reactor)
        except (TimeoutError, asyncio.CancelledError):  # the second from a task that was given up
            return {name_of(function): 1}
        except (Exception, SystemExit):
            self._stats.hook_errors += 1
            _log.exception("%s under on_shutdown failed; the stop goes on", name_of(function))
        return {}

    async def _awaited(self, result: Any) -> None:
        if is_awaitable(result):
            await self._start(result)

    def _pause(self) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._reactor.callLater(0, turn.callback, None)
        return turn

    def _start(self, awaitable: Awaitable[Any]) -> Deferred[Any]:
        return as_deferred(awaitable, asyncio_loop=self._asyncio)


def _nowhere(app: App) -> Emit:
    def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        raise UsageError(f"{topic.decode()!r} was published, and {app!r} has no endpoint to publish at: add App(pub=…)")

    return emit


def _is_asyncio(reactor: Any) -> bool:
    """Whether an asyncio loop drives this reactor, so that coroutines can be its tasks."""
    return isinstance(reactor, AsyncioSelectorReactor)
