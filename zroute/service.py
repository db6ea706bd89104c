"""AppService: one run of an app. It opens, delivers, drains and closes, in that order.

The transport is known by a small protocol, so that another one can take its place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial, wraps
from itertools import count
from threading import get_ident
from typing import Any, Protocol

import attrs
from twisted.application.service import Service
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from zroute.app import App
from zroute.attached import Stream
from zroute.awaiting import as_deferred, is_awaitable, loop_hint
from zroute.delivery.stats import Stats
from zroute.endpoints import Endpoint
from zroute.errors import (
    EncodeError,
    EndpointError,
    ForkedContextError,
    NotRunningError,
    UsageError,
    WrongThreadError,
)
from zroute.messages.topics import Topic
from zroute.messages.wire import framer
from zroute.options import DRAIN_TIMEOUT, LINGER_DRAIN
from zroute.outcomes import Outcomes
from zroute.producers import CompiledProducer, Producers
from zroute.resources import Resources
from zroute.routing.compiler import (
    Compiled,
    CompiledTrigger,
    compile_route,
    fresh,
    known_codecs,
    refuse_duplicates,
)
from zroute.routing.deliver import CompiledRoute
from zroute.routing.parameters import Call, Needed, identity, is_generator_function, name_of
from zroute.routing.publications import DONE, Emit
from zroute.routing.routes import Hook, Route
from zroute.routing.table import RouteTable
from zroute.sockets.connection import Drain
from zroute.sockets.transport import SocketTransport
from zroute.unfinished import error_of

__all__ = ["AppService", "Drained", "Ground", "Limit", "Transport"]

_log = logging.getLogger("zroute")

_CATCH_UP = 1.0
"""Seconds a stop goes on reading what had arrived by then; under a flood there is always more."""


_HOOK = 1.0
"""Seconds an ``async`` on_shutdown function has at least, also where the drain timeout is shorter."""


class Transport(Protocol):
    """What a run needs of whatever moves its frames."""

    def open(self, drain: Drain) -> None:
        """Bind and connect; what is received will go to ``drain``. Raises EndpointError."""

    def sender(self, *, multipart: bool) -> Callable[[Any], None] | None:
        """What sends a frame, or the parts of a message; None where there is nowhere to publish at."""

    def listen(self, subscriptions: Iterable[bytes]) -> None:
        """Receive what starts with these prefixes, and nothing else."""

    def use(self, drain: Drain) -> None:
        """Give what is received from now on to another drain."""

    def pause(self) -> None:
        """Read no more until `resume`, and lose nothing."""

    def resume(self) -> None:
        """Read again."""

    def readable(self) -> bool:
        """Whether a message waits to be read, also while paused."""

    def read(self) -> None:
        """Read some of what waits, now."""

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[None]:
        """Close; fires when all has been sent or given up."""


@attrs.frozen
class Ground:
    """What a run stands on; tests give it another one.

    ``transport`` makes what moves the frames, ``wall`` gives Unix seconds, ``asyncio`` says whether an asyncio
    loop drives the reactor. ``replaced`` are objects in place of resources, by type. ``observe`` is told of each
    error and whether a hook took it, ``results`` of each function of the app and what it returned.
    """

    transport: Callable[[AppService], Transport]
    asyncio: bool
    wall: Callable[[], float] = time.time
    replaced: Mapping[Any, Any] = attrs.field(factory=dict)
    observe: Callable[[BaseException, bool], None] = lambda error, hooked: None
    results: Callable[[Callable[..., Any], Any], None] | None = None


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
        ground: Ground | None = None,
    ) -> None:
        self.app = app
        self.name = None
        self.reactor = reactor
        self.compiled: Compiled = app.compile()
        self.subscribe_to, self.publish_to = app.endpoints(sub=sub, pub=pub)
        self.drain_timeout = drain_timeout
        self.limit = limit
        self.ground = ground or Ground(_sockets, isinstance(reactor, AsyncioSelectorReactor))
        self._run: _Run | None = None
        self._stopping: Deferred[Drained] | None = None
        self._beginning: Deferred[None] | None = None
        self._in_start = False
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
        """The open sockets; None while they are not."""
        transport = self._run.transport if self._run else None
        return transport if isinstance(transport, SocketTransport) and transport.is_open else None

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Open resources, then sockets, run ``on_startup``, subscribe, and start timers and generators.

        Where resources and hooks are async, that ends later: `started` tells. Raises EndpointError for an
        endpoint that fails at once, and UsageError while the app runs already.
        """
        self.app._claim()
        Service.startService(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        self._stopping = None
        self._failure = None
        if self._started.called:
            self._started = Deferred()
        self._run = run = _Run(self)
        self.app._run = run
        self._in_start = True
        self._beginning = Deferred.fromCoroutine(run.begin())
        self._beginning.addCallbacks(self._began, self._start_failed)
        self._in_start = False
        self._raise_endpoint_error()

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

    def _raise_endpoint_error(self) -> None:
        if self._failure is not None and isinstance(self._failure.value, EndpointError):
            raise self._failure.value.with_traceback(None)

    def _start_failed(self, failure: Failure) -> None:
        error = error_of(failure)
        if self._stopping is not None and isinstance(error, CancelledError | asyncio.CancelledError):
            _log.warning("%s was stopped before it had started: what it was opening was cancelled", self.app.name)
        elif isinstance(error, EndpointError):  # says it all in a line; `startService` raises it where it still can
            if not self._in_start:
                _log.error("%s", error)
        else:
            text = "%s did not start: %s%s"
            _log.error(text, self.app.name, failure.getErrorMessage(), loop_hint(error), exc_info=error)
        self._failure = failure
        self._began(None)
        self.stopService()


def _sockets(service: AppService) -> Transport:
    app = service.app
    return SocketTransport(
        service.reactor,
        app.context,
        subscribe_to=service.subscribe_to,
        publish_to=service.publish_to,
        max_message=app.max_message,
    )


class _Run:
    """Everything that lives from one start to its stop."""

    def __init__(self, service: AppService) -> None:
        self._service = service
        self._app = app = service.app
        self._reactor = service.reactor
        self._ground = ground = service.ground
        self._compiled = service.compiled
        self._stats = app.stats = Stats()
        self._thread, self._process = get_ident(), os.getpid()
        self._resources = Resources(self._compiled.resources, ground.replaced, self._start, self._reactor)
        self._outcomes = Outcomes(
            stats=self._stats,
            log=_log,
            clock=self._reactor,
            wall=ground.wall,
            start=self._start,
            in_thread=self._in_thread,
            default=app.codec,
            hooks=app._errors,
            unrouted=app._fallbacks,
            hook=self._hook,
            reading=self,
            observe=ground.observe,
        )
        self._codecs = self._compiled.codecs
        self._table = self._make_table(())
        self._producers: Producers | None = None
        self._emitting: Emit | None = None
        self._streams: dict[Stream[Any], None] = {}
        self._calls: set[Future[Any]] = set()
        self._listening = False
        self._stopped = False
        self._ended = False
        self.transport = ground.transport(service)

    # -- from start to stop -----------------------------------------------------------------------------

    async def begin(self) -> None:
        await self._resources.open()
        routes = [self._supplied(fresh(route)) for route in self._compiled.routes]
        self._stats.routes.update((route.name, route.stats) for route in routes)
        self._table = self._make_table(routes)
        limit = self._service.limit
        self.transport.open(self._table.drain if limit is None else self._limited(limit))
        self._app._emit = self._emitting = self._emit()
        for outlet in self._compiled.outlets:
            outlet.open(self._emitting)
        for hook in self._app._startup:
            await self._awaited(self._hook(hook.function)())
        if self._stopped:  # on_startup may have asked for it
            return
        self._listening = True
        self.transport.listen(self._table.subscriptions)
        producers = tuple(self._producer(trigger) for trigger in self._compiled.triggers)
        self._producers = Producers(producers, self._reactor, self._start, self._stats, self._outcomes)
        self._producers.start()

    async def end(self, timeout: float) -> Drained:
        self._stopped = True
        if self._producers is not None:
            self._producers.stop()
        await self._wait(0)  # a handler that asked for the stop returns first, and is waited for
        await self._catch_up()
        for stream in tuple(self._streams):
            stream.finish()
        unfinished = await self._settle(timeout)
        patience = max(timeout, _HOOK)
        for hook in self._app._shutdown if self._emitting is not None else ():
            unfinished |= await self._shut_down(hook, patience)
        self._withdraw()
        unfinished |= await self._resources.close(patience, self._failed_to_close)
        await self.transport.close()
        self._outcomes.close()
        return Drained(unfinished)

    def _withdraw(self) -> None:
        """From now on the app does not run, and another run of it may begin."""
        self._ended = True
        for call in tuple(self._calls):
            call.set_exception(_stopped(self._app))
        if self._app._run is self:
            self._app._run = None
            self._app._emit = None
        if self._emitting is not None:
            for outlet in self._compiled.outlets:
                outlet.close()

    # -- while running ----------------------------------------------------------------------------------

    def attach(self, route: Route) -> CompiledRoute:
        self._check_thread(f"attach({route.patterns[0].text!r})")
        app, compiled = self._app, self._compiled
        made = compile_route(route, "", (app,), (), compiled.given, app.codec)
        made = self._supplied(attrs.evolve(made, stats=self._stats.routes.setdefault(made.name, made.stats)))
        refuse_duplicates((*self._table.routes, made), app.dispatch)
        self._codecs = known_codecs(self._codecs, [(route.codec, route.where)] if route.codec else [])
        self._swap((*self._table.routes, made))
        return made

    def detach(self, route: CompiledRoute) -> None:
        if not self._ended:
            self._check_thread("close() of what was attached")
            self._swap(tuple(other for other in self._table.routes if other is not route))

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None) -> None:
        dropped = self._outcomes.unfinished.discard(route, unfinished)
        if dropped:
            _log.info(
                "%s at %s was left while %d messages waited; they are dropped", route.name, route.route.where, dropped
            )

    def open_stream(self, stream: Stream[Any]) -> None:
        self._streams[stream] = None
        if self._stopped:
            stream.finish()

    def close_stream(self, stream: Stream[Any]) -> None:
        self._streams.pop(stream, None)

    def _swap(self, routes: Sequence[CompiledRoute]) -> None:
        self._table = self._table.changed(routes, self._codecs)
        if self._service.limit is None:
            self.transport.use(self._table.drain)
        if self._listening and not self._stopped:
            self.transport.listen(self._table.subscriptions)

    def from_thread(self, call: Callable[[], Any]) -> Any:
        if get_ident() == self._thread:
            raise WrongThreadError(
                f"from_thread was called on the reactor's own thread, where it would wait for itself: call "
                f"{name_of(call)} directly"
            )
        future: Future[Any] = Future()
        self._calls.add(future)  # first, so that a stop in another thread at this moment finds it
        try:
            if self._ended:
                raise _stopped(self._app)
            self._reactor.callFromThread(self._call, future, call)
            return future.result()
        finally:
            self._calls.discard(future)

    def _call(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Runs on the reactor's thread, for a thread that waits for ``future``."""

        def end(result: Any) -> None:
            if future.done():
                return  # the app has stopped meanwhile, and told so
            if isinstance(result, Failure):
                future.set_exception(error_of(result))
            else:
                future.set_result(result)

        maybeDeferred(lambda: self._begun(call())).addBoth(end)

    def _check_thread(self, what: str) -> None:
        if os.getpid() != self._process:
            raise ForkedContextError(_FORKED.format(what))
        if get_ident() != self._thread:
            raise WrongThreadError(f"{what} was called from another thread than the reactor's: use app.from_thread")

    # -- reading ----------------------------------------------------------------------------------------

    def pause(self) -> None:
        self._table.hold()
        self.transport.pause()

    def resume(self) -> None:
        limit = self._service.limit
        if not self._stopped and (limit is None or limit.left):
            self.transport.resume()

    def reclassify(self) -> None:
        self._table.reclassify()

    # -- parts of a start and a stop --------------------------------------------------------------------

    def _make_table(self, routes: Sequence[CompiledRoute]) -> RouteTable:
        app = self._app
        return RouteTable(
            routes,
            default=app.codec,
            codecs=self._codecs,
            dispatch=app.dispatch,
            max_message=app.max_message,
            stats=self._stats,
            outcomes=self._outcomes,
            clock=self._ground.wall,
        )

    def _supplied(self, route: CompiledRoute) -> CompiledRoute:
        return attrs.evolve(route, call=self._told(route.call.supply(self._resources.objects)))

    def _told(self, call: Call) -> Call:
        """``call``, with its results told to whoever wants to know."""
        results = self._ground.results
        if results is None or is_generator_function(call.function):
            return call
        return attrs.evolve(call, function=_telling(call.function, results))

    def _hook(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with the resources that it takes."""
        given = self._compiled.hooked[identity(function)]
        objects = self._resources.objects
        return partial(
            function,
            **{name: objects[value.kind] if isinstance(value, Needed) else value for name, value in given.items()},
        )

    def _producer(self, trigger: CompiledTrigger) -> CompiledProducer:
        publish = self._outcomes.publish
        return CompiledProducer(
            trigger.name,
            trigger.where,
            self._told(trigger.call.supply(self._resources.objects)).bind({}, Topic()),
            lambda value: publish(trigger.outlets, value, {}, trigger.name),
            trigger.schedule,
            is_generator_function(trigger.call.function),
        )

    def _emit(self) -> Emit:
        """What every publication of this run sends through."""
        app, stats, wall = self._app, self._stats, self._ground.wall
        clock_ns = time.time_ns if wall is time.time else lambda: int(wall() * 1e9)
        frame = framer(app.wire, epoch=secrets.randbits(64), next_sequence=count(1).__next__, clock_ns=clock_ns)
        send = self.transport.sender(multipart=app.wire == "multipart")
        if send is None:
            return _nowhere(app)
        limit, thread = app.max_message, self._thread

        def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            if get_ident() != thread:
                raise WrongThreadError(
                    f"{topic.decode()!r} was published from another thread, which ZeroMQ does not survive: use "
                    "app.from_thread(publication.publish, message)"
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
                if not limit.left:
                    self.transport.pause()

        return drain

    async def _catch_up(self) -> None:
        """Read what has arrived, also past the bounds: a SUB socket that unsubscribes first would drop it."""
        limit, end = self._service.limit, self._reactor.seconds() + _CATCH_UP
        while (limit is None or limit.left) and self.transport.readable():
            if self._reactor.seconds() >= end:
                _log.warning(
                    "%s: messages still arrived %g s after the stop; those are left unread", self._app.name, _CATCH_UP
                )
                break
            self.transport.read()
            await self._wait(0)
        self.transport.pause()

    async def _settle(self, timeout: float) -> dict[str, int]:
        """Wait for unfinished handlers; the names of those that took too long, with their number."""
        unfinished: dict[str, int] = {}
        idle = self._outcomes.unfinished.idle()
        give_up = self._outcomes.unfinished.give_up
        timer = self._reactor.callLater(timeout, lambda: unfinished.update(give_up()))
        await idle
        if timer.active():
            timer.cancel()
        return unfinished

    async def _shut_down(self, hook: Hook, timeout: float) -> dict[str, int]:
        """Run one on_shutdown function; its name, if it took too long."""
        name = name_of(hook.function)
        try:
            result = self._hook(hook.function)()
            if is_awaitable(result):
                await self._start(result).addTimeout(timeout, self._reactor)
        except (TimeoutError, asyncio.CancelledError):  # the second from a task that was given up
            return {name: 1}
        except (Exception, SystemExit) as error:
            _log.exception("%s at %s under on_shutdown failed%s; the stop goes on", name, hook.where, loop_hint(error))
            self._failed_to_close(error)
        return {}

    def _failed_to_close(self, error: BaseException) -> None:
        self._stats.hook_errors += 1
        self._ground.observe(error, False)

    async def _awaited(self, result: Any) -> None:
        if is_awaitable(result):
            await self._start(result)

    def _begun(self, result: Any) -> Any:
        return self._start(result) if is_awaitable(result) else result

    def _wait(self, seconds: float) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._reactor.callLater(seconds, turn.callback, None)
        return turn

    def _start(self, awaitable: Awaitable[Any]) -> Deferred[Any]:
        return as_deferred(awaitable, asyncio_loop=self._ground.asyncio)

    def _in_thread(self, call: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), call)


def _telling(function: Callable[..., Any], results: Callable[[Callable[..., Any], Any], None]) -> Callable[..., Any]:
    """``function``, whose results are told when they are there."""

    @wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, Deferred):
            return result.addCallback(tell)
        return awaited(result) if is_awaitable(result) else tell(result)

    async def awaited(result: Awaitable[Any]) -> Any:
        return tell(await result)

    def tell(result: Any) -> Any:
        results(function, result)
        return result

    return told


_FORKED = (
    "{} in a process that was forked from the one that runs the app, and ZeroMQ's sockets don't survive that: start "
    "processes before the app, or with multiprocessing's 'spawn', and give each an app of its own"
)


def _stopped(app: App) -> NotRunningError:
    return NotRunningError(f"{app.name!r} has stopped, so nothing can be called on its reactor any more")


def _nowhere(app: App) -> Emit:
    def emit(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        raise UsageError(f"{topic.decode()!r} was published, and {app!r} has no endpoint to publish at: add App(pub=…)")

    return emit
