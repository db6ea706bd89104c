"""One run of an app, from its start to its stop: open, deliver, drain and close.

This module uses the transport only through `zroute.transport.Transport`.

The order of a stop keeps messages from being lost: producers stop first, then received messages are handled, then
handlers finish. Only then do ``on_shutdown`` functions run and resources and sockets close.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial, wraps
from threading import get_ident
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred, succeed
from twisted.python.failure import Failure

from zroute.awaiting import as_deferred, is_awaitable, loop_hint, within
from zroute.declarations.records import Hook, Route
from zroute.declarations.signatures import Call, Needed
from zroute.endpoints import Endpoint
from zroute.errors import (
    EndpointError,
    ForkedContextError,
    NotReadyError,
    NotRunningError,
    UsageError,
    WrongThreadError,
)
from zroute.functions import identity, is_generator_function, name_of
from zroute.messages.schema import describe
from zroute.messages.topics import Topic
from zroute.planning.compiler import compile_route, known_codecs, refuse_duplicates
from zroute.planning.plan import CompiledTrigger, Finishing, Plan, Request
from zroute.publishing.producers import CompiledProducer, Producers
from zroute.publishing.publisher import Publisher
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.events import Gap, LostKept, UnknownLoss
from zroute.receiving.in_flight import Executor, error_of
from zroute.receiving.results import Results
from zroute.receiving.table import RouteTable
from zroute.runtime.resources import Resources
from zroute.stats import Stats
from zroute.throttle import ThrottledLog
from zroute.transport import Receive, Transport

__all__ = ["Environment", "MessageLimit", "Run", "StopReport"]

_log = logging.getLogger("zroute")

_GOODBYE = 1.0
"""Seconds of the drain timeout that are reserved for goodbyes if a subscriber's queue is full: at most half of it."""


_NAMED = 5
"""The most subscriptions that a log line names; an app may have thousands."""


_HOOK = 1.0
"""Seconds that an ``async`` on_shutdown function or a resource gets even if the drain timeout is over."""


@attrs.frozen
class Environment:
    """The surroundings of a run, which tests replace.

    Attributes:
        transport: creates the transport.
        asyncio: True if an asyncio loop drives the reactor.
        wall: returns seconds since the Unix epoch.
        replaced: objects that take the place of resources, by type.
        observe: called with each error, and True if a hook of the app received it.
        results: called with each function of the app and its result.
    """

    transport: Callable[[Request], Transport]
    asyncio: bool
    wall: Callable[[], float] = time.time
    replaced: Mapping[Any, Any] = attrs.field(factory=dict)
    observe: Callable[[BaseException, bool], None] = lambda error, hooked: None
    results: Callable[[Callable[..., Any], Any], None] | None = None


@attrs.frozen
class StopReport:
    """The result of a stop.

    Attributes:
        unfinished: the number of unfinished calls by handler name, at the end of the drain timeout.
    """

    unfinished: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """True if every handler had finished."""
        return not self.unfinished


class MessageLimit:
    """The maximum number of messages that several services read together.

    Attributes:
        left: the number of messages that may still be read. ``reached`` is called once, when it becomes 0.
    """

    def __init__(self, messages: int, reached: Callable[[], None]) -> None:
        self.left = messages
        self._reached = reached

    def take(self, messages: int) -> None:
        """Count messages that were read."""
        if messages and self.left:
            self.left = max(self.left - messages, 0)
            if not self.left:
                self._reached()


class Run:
    """The state of one run of an app, from one start to its stop.

    Args:
        plan: the compiled app.
        reactor: the reactor to run on.
        environment: the transport, clocks and replaced resources.
        subscribe_to: the endpoints to receive from.
        publish_to: the endpoints to publish to.
        limit: ends reading after a number of messages, or None.
    """

    def __init__(
        self,
        plan: Plan,
        reactor: Any,
        environment: Environment,
        *,
        subscribe_to: tuple[Endpoint, ...],
        publish_to: tuple[Endpoint, ...],
        limit: MessageLimit | None,
    ) -> None:
        self.plan = plan
        self.name = plan.name
        self.reactor = reactor
        self.subscribe_to = subscribe_to
        self.publish_to = publish_to
        self._limit = limit
        self._environment = environment
        self._stats = plan.live.stats = Stats()
        self._thread, self._process = get_ident(), os.getpid()
        self._resources = Resources(self.plan.parts.resources, environment.replaced, self._start, self.reactor)
        self._outcomes = Results(
            stats=self._stats,
            log=_log,
            wall=environment.wall,
            executor=Executor(self.reactor, self._start, self._in_thread, self._hook),
            default=plan.choices.codec,
            hooks=plan.hooks,
            reading=self,
            observe=environment.observe,
        )
        self.transport = environment.transport(
            Request(plan, reactor, subscribe_to, publish_to, self._stats, self._found)
        )
        self._accounts = self.transport.accounts
        self._accounts.moved = lambda: self._table.forget_accounts()
        self._reports = ThrottledLog(_log, self.reactor)
        self._codecs = self.plan.parts.codecs
        self._table = self._make_table(())
        self._beginning: Deferred[None] = succeed(None)
        self._producers: Producers | None = None
        self._publisher: Publisher | None = None
        self._streams: dict[Finishing, None] = {}
        self._calls: set[Future[Any]] = set()
        self._listening = False
        self._stopped = False
        self._ended = False

    # -- from start to stop -----------------------------------------------------------------------------

    def begin(self) -> Deferred[None]:
        """Open resources and sockets, run ``on_startup``, subscribe, start producers.

        The Deferred fails with the first error.
        """
        self._beginning = Deferred.fromCoroutine(self._begin())
        return self._beginning

    async def _begin(self) -> None:
        await self._resources.open()
        if not self._stopped:
            await self._open()

    async def _open(self) -> None:
        routes = [self._supplied(route.fresh()) for route in self.plan.parts.routes]
        self._stats.routes.update((route.name, route.stats) for route in routes)
        self._table = self._make_table(routes)
        self.transport.open(self._table.receive if self._limit is None else self._limited(self._limit))
        given = self.transport, self.publish_to, self._stats, self._reports, self._environment.wall
        self._publisher = Publisher(self.plan.choices, self.reactor, *given)
        self.plan.live.emit = self._publisher.open(self.plan.parts.outlets)
        for hook in self.plan.hooks.startup:
            await self._awaited(self._hook(hook.function)())
            if self._stopped:  # the hook itself may have stopped the app
                return
        self._listening = True
        self._listen()
        producers = tuple(self._producer(trigger) for trigger in self.plan.parts.triggers)
        self._producers = Producers(producers, self.reactor, self._start, self._stats, self._outcomes)
        self._producers.start()

    async def end(self, timeout: float) -> StopReport:
        """Stop producers, handle received messages, run ``on_shutdown``, and close.

        It works after any part of `begin`. All of it ends within ``timeout`` seconds, except that resources and
        ``on_shutdown`` functions get at least one second each.
        """
        self._stopped = True
        deadline = self.reactor.seconds() + timeout

        def left() -> float:
            return float(max(deadline - self.reactor.seconds(), 0.0))

        if self._producers is not None:
            for name, ending in self._producers.stop():
                self._outcomes.unfinished.watch(ending, name, lambda _: None, lambda: None)
        await self._wait(0)  # a handler that stopped the app returns first; it is drained like the others
        unfinished = await self._end_start(left())
        unfinished |= await self._catch_up(left)
        for stream in tuple(self._streams):
            stream.finish()
        unfinished |= await self._settle(left())
        self._accounts.close()  # reading has ended; on_shutdown functions see the final counts
        self._stats.paused_since, self._stats.paused_by = None, ()
        for hook in self.plan.hooks.shutdown if self._publisher is not None else ():
            unfinished |= await self._shut_down(hook, max(left(), _HOOK))
        self.transport.leave()
        if self._publisher is not None:
            # Goodbyes let subscribers count their losses, so some of the time is reserved for them.
            unfinished |= await self._publisher.send_rest(max(left() - _GOODBYE, left() / 2))
            self._publish_no_more()
            unfinished |= await self._publisher.goodbye(left())
        self._withdraw()
        unfinished |= await self._resources.close(max(left(), _HOOK), self._failed_to_close)
        await self.transport.close()
        self._outcomes.close()
        self._reports.close()
        return StopReport(unfinished)

    def _withdraw(self) -> None:
        """Mark the app as not running, so that another run can begin."""
        self._ended = True
        for call in tuple(self._calls):  # threads in `from_thread`, which would otherwise wait forever
            if not call.done():
                call.set_exception(_stopped(self.name))
        self._publish_no_more()
        if self._publisher is not None:
            self._publisher.release()
        if self.plan.live.run is self:
            self.plan.live.run = None

    def _publish_no_more(self) -> None:
        if self.plan.live.run is self:
            self.plan.live.emit = None
        if self._publisher is not None:
            self._publisher.close()

    @property
    def identity(self) -> str:
        """The publisher's name and epoch, as subscribers log them; "" if it sends none."""
        return self._publisher.identity if self._publisher is not None else ""

    # -- while running ----------------------------------------------------------------------------------

    def attach(self, route: Route) -> CompiledRoute:
        """See `zroute.planning.plan.RunningApp`, also for the methods below."""
        what = f"attach({route.patterns[0].text!r})"
        self._check_thread(what)
        name, parts = self.name, self.plan.parts
        if self._publisher is None:
            raise NotRunningError(f"{what} before {name!r} has opened its sockets: attach in on_startup or later")
        if not self.subscribe_to:
            raise EndpointError(
                f"{what} has no endpoint to subscribe to: add App(sub='tcp://127.0.0.1:5555'), the address that the "
                "publisher binds",
                where=route.where,
            )
        made = compile_route(route, "", (self.plan.hooks.errors,), (), parts.given, self.plan.choices.codec)
        closed = [kind for kind in made.call.needs if kind not in self._resources.objects]
        if closed:
            missing = describe(closed[0])
            raise UsageError(
                f"{what}: {made.name} needs {missing}, which was not opened, because only replaced resources need it: "
                f"replace it too, as in TestApp(app, {{{missing}: fake}})"
            )
        made = self._supplied(attrs.evolve(made, stats=self._stats.routes.setdefault(made.name, made.stats)))
        refuse_duplicates((*self._table.routes, made), self.plan.dispatch)
        self._swap((*self._table.routes, made))
        return made

    def detach(self, route: CompiledRoute) -> None:
        """Remove a route; messages that it has received are still handled."""
        if not self._ended:
            self._check_thread("close() of an attached handler")
            self._outcomes.release()
            self._swap(tuple(other for other in self._table.routes if other is not route))

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None) -> None:
        """Drop the messages that wait for a route, and log their number."""
        dropped = self._outcomes.unfinished.discard(route, unfinished)
        if dropped:
            _log.info(
                "%s at %s was closed with %d messages waiting; they are dropped", route.name, route.route.where, dropped
            )

    def open_stream(self, stream: Finishing) -> None:
        """Finish ``stream`` when the app stops."""
        self._streams[stream] = None
        if self._stopped:
            stream.finish()

    def close_stream(self, stream: Finishing) -> None:
        """Forget a stream that its user has left."""
        self._streams.pop(stream, None)

    def _swap(self, routes: Sequence[CompiledRoute]) -> None:
        named = [(one.options.codec, one.route.where) for one in routes if one.options.codec]
        self._codecs = known_codecs(self.plan.parts.codecs, named)
        self._table = self._table.changed(routes, self._codecs)
        if self._limit is None:
            self.transport.use(self._table.receive)
        if self._listening and not self._stopped:
            self._listen()

    def _listen(self) -> None:
        self.transport.listen(self._table.patterns)

    def ready(self, publishers: int | None, timeout: float, *, state: bool) -> Deferred[None]:
        """See `App.ready`."""
        if not self.subscribe_to:
            return succeed(None)
        ready = self.transport.ready(publishers, state=state)
        waiting = within(timeout, ready, self.reactor).addErrback(self._not_ready, timeout, state)
        return waiting.addCallback(self._hand_over) if state else waiting

    def _hand_over(self, _: None) -> None:
        """Give kept messages that wait in an incomplete batch to their handlers."""
        self._outcomes.release()

    def _not_ready(self, failure: Failure, timeout: float, state: bool) -> None:
        failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
        if not self._listening:
            raise NotReadyError(
                f"{self.name!r} was not ready within {timeout:g} s: on_startup has not ended, and the app "
                "subscribes after it; await ready() in a coroutine that on_startup starts, not in on_startup itself"
            )
        raise NotReadyError(f"{self.name!r} was not ready within {timeout:g} s: {self.transport.unready(state=state)}")

    def _found(self, found: Gap | UnknownLoss | LostKept) -> None:
        """Report a loss to the ``on_gap`` functions, or log it if there are none."""
        publisher = self._accounts.named(found.epoch)
        if isinstance(found, UnknownLoss):
            names = ", ".join(repr(str(Topic.from_wire(each))) for each in found.subscriptions[:_NAMED]) or "its topics"
            names += f" and {len(found.subscriptions) - _NAMED} more" * (len(found.subscriptions) > _NAMED)
            text = "%s: %s %s: unknown losses of %s"
            subject = f"{self.name}: unknown losses"
            self._reports("tail", subject, logging.WARNING, text, self.name, publisher, found.why, names)
            return
        if isinstance(found, LostKept):
            text = "%s: lost %d of the messages that %s keeps for new subscribers"
            subject = f"{self.name}: lost kept messages"
            self._reports("kept", subject, logging.WARNING, text, self.name, found.count, publisher)
            return
        if not self.plan.hooks.gaps:
            text = "%s: lost %d messages of %r from %s (numbers %d to %d)"
            name = str(Topic.from_wire(found.subscription))
            arguments = (self.name, found.count, name, publisher, found.first, found.last)
            self._reports("gap", f"{self.name}: lost messages", logging.WARNING, text, *arguments)
        for hook in self.plan.hooks.gaps:
            try:
                result = self._hook(hook.function)(found)
                if is_awaitable(result):
                    self._start(result).addErrback(lambda failure: self._failed_over_a_gap(error_of(failure)))
            except BaseException as error:  # also SystemExit: the reactor would close the socket because of it
                self._failed_over_a_gap(error)

    def _failed_over_a_gap(self, error: BaseException) -> None:
        self._stats.hook_errors += 1
        self._reports("on_gap", f"{self.name}: on_gap", logging.ERROR, "an on_gap function failed", error=error)
        self._environment.observe(error, False)

    def from_thread(self, call: Callable[[], Any]) -> Any:
        """Call ``call`` in the reactor's thread, and return its result to this thread."""
        self.check_process("from_thread was called")
        if get_ident() == self._thread:
            raise WrongThreadError(
                f"from_thread was called in the reactor's own thread, which would wait for itself: call "
                f"{name_of(call)} directly"
            )
        future: Future[Any] = Future()
        self._calls.add(future)  # before the check below, so that a concurrent stop finds this call
        try:
            if self._ended:
                raise _stopped(self.name)
            self.reactor.callFromThread(self._call, future, call)
            return future.result()
        finally:
            self._calls.discard(future)

    def _call(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Call ``call`` in the reactor's thread, for a thread that waits for ``future``."""
        if future.done():
            return  # the app has stopped; the waiting thread already got the error

        def end(result: Any) -> None:
            if future.done():
                return  # the app has stopped meanwhile; the waiting thread already got the error
            if isinstance(result, Failure):
                future.set_exception(error_of(result))
            else:
                future.set_result(result)

        maybeDeferred(lambda: self._begun(call())).addBoth(end)

    def check_process(self, what: str) -> None:
        """Raise ForkedContextError in a child of the process that runs the app."""
        if os.getpid() != self._process:
            raise ForkedContextError(_FORKED.format(what))

    def _check_thread(self, what: str) -> None:
        self.check_process(what)
        if get_ident() != self._thread:
            raise WrongThreadError(f"{what} was called outside the reactor's thread: use app.from_thread")

    # -- reading ----------------------------------------------------------------------------------------

    def pause(self, by: Iterable[CompiledRoute]) -> None:
        """See `zroute.receiving.in_flight.Reading`, also for the next two methods."""
        self._table.hold()
        self.transport.pause()
        stats = self._stats
        stats.paused_by = tuple(route.name for route in by)
        stats.paused_since = self._environment.wall() if stats.paused_since is None else stats.paused_since

    def resume(self) -> None:
        """Start reading again, unless reading has ended for good."""
        self._stats.paused_since, self._stats.paused_by = None, ()
        if not self._stopped and self.reads_on:
            self.transport.resume()

    def reclassify(self) -> None:
        """Build the delivery functions again before the next message; none is lost."""
        self._table.reclassify()

    # -- steps of the start and the stop ----------------------------------------------------------------

    def _make_table(self, routes: Sequence[CompiledRoute]) -> RouteTable:
        plan = self.plan
        return RouteTable(
            routes,
            codecs=self._codecs,
            dispatch=plan.dispatch,
            max_message=plan.choices.max_message,
            stats=self._stats,
            outcomes=self._outcomes,
            accounts=self._accounts,
        )

    def _supplied(self, route: CompiledRoute) -> CompiledRoute:
        return attrs.evolve(route, call=self._report_results(route.call.supply(self._resources.objects)))

    def _report_results(self, call: Call) -> Call:
        """Return ``call`` with its results reported to the environment."""
        results = self._environment.results
        if results is None or is_generator_function(call.function):
            return call
        return attrs.evolve(call, function=_with_report(call.function, results))

    def _hook(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its resources as arguments."""
        given = self.plan.parts.hooked[identity(function)]
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
            self._report_results(trigger.call.supply(self._resources.objects)).bind({}, Topic()),
            lambda value: publish(trigger.outlets, value, {}, trigger.name),
            trigger.schedule,
            is_generator_function(trigger.call.function),
        )

    def _limited(self, limit: MessageLimit) -> Receive:
        """Return a `RouteTable.receive` that stops at ``limit`` messages."""

        def receive(recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
            stats = self._stats
            before = stats.received - stats.control
            try:
                self._table.most = limit.left
                self._table.receive(recv, more, 1)  # one frame at a time, since a frame may hold many messages
            finally:
                limit.take(stats.received - stats.control - before)
                if not limit.left:
                    self.transport.pause()

        return receive

    async def _end_start(self, timeout: float) -> dict[str, int]:
        """Cancel an unfinished start; the resources that it has opened are closed later."""
        self._beginning.cancel()
        try:
            await within(timeout, self._beginning, self.reactor)
        except TimeoutError:
            return {"the start": 1}
        return {}

    async def _catch_up(self, left: Callable[[], float]) -> dict[str, int]:
        """Read the messages that were sent before the stop, and count unread ones.

        Bounds of queues do not apply here.
        """
        number = await self.transport.finish(self, left)
        # The rest of a coalesced frame is already counted as received. It is handled even if queues are full, unless
        # reading ended because of a message limit.
        while self.unpacked and self.reads_on:
            self._table.work_off(self.unpacked)
        self._outcomes.release()
        return {"received but unread messages": number} if number else {}

    @property
    def reads_on(self) -> bool:
        """False after the app has read its maximum number of messages."""
        return self._limit is None or self._limit.left > 0

    @property
    def unpacked(self) -> int:
        """The number of undelivered messages of a frame that was read."""
        return self._table.unpacked

    async def _settle(self, timeout: float) -> dict[str, int]:
        """Wait for unfinished handlers, and return the number of late ones by name."""
        unfinished = self._outcomes.unfinished
        if names := unfinished.names():
            waited = ", ".join(f"{name}: {count}" for name, count in names.items())
            _log.info("%s: waiting up to %.1f s for unfinished handlers: %s", self.name, timeout, waited)
        try:
            await within(timeout, unfinished.idle(), self.reactor)
        except TimeoutError:
            return unfinished.give_up()
        return {}

    async def _shut_down(self, hook: Hook, timeout: float) -> dict[str, int]:
        """Run one on_shutdown function, and return its name if it took too long."""
        name = name_of(hook.function)
        try:
            result = self._hook(hook.function)()
            if is_awaitable(result):
                await within(timeout, self._start(result), self.reactor)
        except TimeoutError:
            return {name: 1}
        except (Exception, SystemExit) as error:
            _log.exception(
                "%s at %s under on_shutdown failed%s; the stop continues", name, hook.where, loop_hint(error)
            )
            self._failed_to_close(error)
        return {}

    def _failed_to_close(self, error: BaseException) -> None:
        self._stats.hook_errors += 1
        self._environment.observe(error, False)

    async def _awaited(self, result: Any) -> None:
        if is_awaitable(result):
            await self._start(result)

    def _begun(self, result: Any) -> Any:
        return self._start(result) if is_awaitable(result) else result

    def _wait(self, seconds: float) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, turn.callback, None)
        return turn

    def _start(self, awaitable: Awaitable[Any]) -> Deferred[Any]:
        return as_deferred(awaitable, asyncio_loop=self._environment.asyncio)

    def _in_thread(self, call: Callable[[], Any]) -> Deferred[Any]:
        """Return a Deferred with the result of ``call`` in a thread of the pool.

        If the Deferred is cancelled before a thread is free, ``call`` is not made.
        """
        reactor, waiting = self.reactor, Deferred[Any]()

        def work() -> Any:
            return None if waiting.called else _finished(call())

        def deliver(well: bool, result: Any) -> None:
            reactor.callFromThread(waiting.callback if well else waiting.errback, result)

        reactor.getThreadPool().callInThreadWithCallback(deliver, work)
        return waiting


def _with_report(
    function: Callable[..., Any], results: Callable[[Callable[..., Any], Any], None]
) -> Callable[..., Any]:
    """Return ``function`` wrapped to report each result when it is available."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, Deferred):
            return result.addCallback(report)
        return report_later(result) if is_awaitable(result) else report(result)

    async def report_later(result: Awaitable[Any]) -> Any:
        return report(await result)

    def report(result: Any) -> Any:
        results(function, result)
        return result

    return wrapper


def _finished(result: Any) -> Any:
    if is_awaitable(result):
        raise UsageError(
            f"returned a {type(result).__name__} in a thread, where nothing can await it: get its result with "
            "app.from_thread(function, …), which awaits on the reactor's thread"
        )
    return result


_FORKED = (
    "{} in a process that was forked from the one that runs the app, where ZeroMQ's sockets do not work: start "
    "processes before the app, or with multiprocessing's 'spawn', and give each an app of its own"
)


def _stopped(name: str) -> NotRunningError:
    return NotRunningError(f"{name!r} has stopped, so from_thread can't call its reactor any more")
