"""One run of an app, from its start to its stop: open, deliver, drain and close.

This module uses the transport only through `zroute.transport.Transport`.

The order of a stop prevents the loss of messages: producers stop first, then received messages are handled, then
handlers finish. After that, ``on_shutdown`` functions run, and resources and sockets close.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, TimeoutError, fail, succeed
from twisted.python.failure import Failure

from zroute.awaiting import as_deferred, check_loop, is_awaitable, loop_hint, stepped, within
from zroute.declarations.providers import Needed
from zroute.declarations.records import Hook, Route
from zroute.declarations.signatures import Call
from zroute.declarations.since import refuse_future
from zroute.endpoints import SIDES, Endpoint, Ends, ResolvedAddresses, Side
from zroute.errors import (
    EndpointError,
    NotReadyError,
    NotRunningError,
    UsageError,
)
from zroute.functions import defined_at, identity, is_generator_function, name_of, users_line
from zroute.logs import printable
from zroute.messages.frames import Parse
from zroute.messages.schema import describe
from zroute.messages.topics import Topic
from zroute.planning.compiler import compile_route, known_codecs, refuse_dead, refuse_duplicates, with_recover
from zroute.planning.plan import CompiledTrigger, Finishing, Plan, check_not_on_nats, check_recovering, check_subjects
from zroute.planning.surrounding import surround
from zroute.publishing.producers import CompiledProducer, Producers
from zroute.publishing.publication import Bridge, Emit, Publication, released
from zroute.publishing.publisher import Publisher
from zroute.receiving.attempts import Executor
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.events import Gap, LostKept, LostPast, UnknownLoss
from zroute.receiving.in_flight import error_of
from zroute.receiving.matching import check_since, recovered_subscriptions
from zroute.receiving.replying import ReplyResults
from zroute.receiving.results import Arrivals, Results
from zroute.receiving.table import RouteTable
from zroute.runtime import collector
from zroute.runtime.jobs import Jobs
from zroute.runtime.requests import RequestRun
from zroute.runtime.resources import Resources
from zroute.runtime.threads import Threads
from zroute.stats import Stats
from zroute.throttle import ThrottledLog
from zroute.transport import AppOptions, Receive, Transport, TransportRequest
from zroute.transports.choosing import factory_for

__all__ = ["Environment", "Leave", "MessageLimit", "Run", "StopReport", "exit_code"]

_log = logging.getLogger("zroute")

Leave = Callable[[int, str], None]
"""A function that ends an app with an exit code, and a reason for the log."""

_GOODBYE = 1.0
"""The time in seconds, at the end of the drain timeout, that is reserved for goodbyes to subscribers with full queues.
It is at most half of the remaining time.
"""


_NAMED = 5
"""The maximum number of subscriptions in a log line. An app may have thousands."""


_STARTUP_WAITS = (
    "The app subscribes only after on_startup: await ready() in a coroutine that on_startup starts, not in on_startup "
    "itself"
)

_HOOK = 1.0
"""The minimum time in seconds for an ``async`` on_shutdown function or a resource, even after the drain timeout."""


_NO_FACTS: Mapping[Any, Any] = MappingProxyType({})


@attrs.frozen
class Environment:
    """The surroundings of a run, which tests replace.

    Attributes:
        transport: creates the transport.
        asyncio: True if the reactor runs on an asyncio loop.
        wall: returns the time in seconds since the Unix epoch.
        replaced: objects that replace resources, by type.
        observe: called with each error, and True if a hook of the app received it.
        results: called with each function of the app and its result.
    """

    transport: Callable[[TransportRequest], Transport]
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


def _place(endpoint: Endpoint, present: tuple[Endpoint, ...], known: Sequence[str]) -> int | None:
    """Return the index of an endpoint among the present endpoints, or None.

    The endpoint may have its declared address or its resolved address.
    """
    for place, (each, resolved) in enumerate(zip(present, known, strict=True)):
        if endpoint.address in (each.address, resolved):
            return place
    return None


def exit_code(error: SystemExit) -> int:
    """Return the exit code that Python gives a process for this error.

    The exit code is 0 if the error's code is None, and 1 if the code is a text.
    """
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


class MessageLimit:
    """The maximum number of messages that several services read together.

    Attributes:
        left: the number of messages that may still be read. When it becomes 0, ``reached`` is called once.
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
        ends: the endpoints.
        limit: ends reading after a number of messages, or None.
        leave: ends the app, and the process if `zroute run` or ``app.run`` runs the app.
        owns_pool: True if the thread pool of the reactor may grow.
    """

    def __init__(
        self,
        plan: Plan,
        reactor: Any,
        environment: Environment,
        *,
        ends: Ends,
        limit: MessageLimit | None,
        leave: Leave,
        owns_pool: bool = False,
    ) -> None:
        self.plan = plan
        self.name = plan.name
        self.reactor = reactor
        self.ends = ends
        self._limit = limit
        self._owns_pool = owns_pool
        self._leave_with = leave
        self._environment = environment
        self._stats = plan.live.stats = Stats()
        self._threads = Threads(self.name, reactor, self._start)
        self._resources = Resources(self.plan.parts.resources, environment.replaced, self._start, self.reactor)
        executor = Executor(
            self.reactor,
            partial(stepped, asyncio_loop=environment.asyncio),
            self._threads.call_in_thread,
            self._hook,
            self._emit,
            self._leave,
            self._resources.objects,
        )
        results = partial(
            _results,
            stats=self._stats,
            executor=executor,
            plan=plan,
            observe=environment.observe,
        )
        wall = environment.wall
        self._arrivals = Arrivals(wall)
        self._outcomes = results(Results, reading=self, arrivals=self._arrivals)
        replies = partial(results, ReplyResults, arrivals=Arrivals(wall))
        self._requests = RequestRun(plan, reactor, self._stats, replies)
        self._in_flight = (self._outcomes.unfinished, self._requests.unfinished)
        self.transport = environment.transport(
            TransportRequest(_options(plan), reactor, ends, self._stats, self._found, self._receive_stated)
        )
        self._arrivals.peer = self.transport.publisher
        self._accounts = self.transport.accounts
        self._accounts.moved = lambda: self._table.forget_accounts()
        self._reports = ThrottledLog(_log, self.reactor)
        self._codecs = self.plan.parts.codecs
        self._table = self._make_table(())
        self._jobs = Jobs(plan, self.reactor, self.transport, ends, self._outcomes, self._stats, self._reports)
        self._beginning: Deferred[None] = succeed(None)
        self._producers: Producers | None = None
        self._publisher: Publisher | None = None
        self._emit_bytes: Emit | None = None
        self._streams: dict[Finishing, None] = {}
        self._awaiting_ready: dict[Deferred[None], None] = {}
        self._closing_ends: list[str] = []  # removed endpoints of `sub` that are still read
        self._listening = False
        self._stopped = False
        self._ended = False
        self._leaves_unread = False

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
        with collector.paused():
            handlers = [self._supplied(route) for route in self.plan.parts.handlers]
        self._make_room(handlers)
        self._stats.routes.update((route.name, route.stats) for route in handlers)
        routes = [route for route in handlers if route.route.kind == "subscribe"]
        self._table = self._make_table(routes)
        self.transport.open(self._table.receive if self._limit is None else self._limited(self._limit))
        await self.transport.opened()
        given = self.transport, self.ends.pub, self._stats, self._reports, self._environment.wall
        self._publisher = Publisher(self.plan.choices, self.reactor, *given)
        self._publisher.on_subscribers = self._subscribers_changed
        self._publisher.on_failure = self._snapshot_failed
        self._outcomes.carried = self._publisher.carried
        # Before the on_startup functions, which may send requests; `answer` follows after them.
        self._requests.open(self.transport, self.ends, [route for route in handlers if route.route.kind == "reply"])
        self._emit_bytes = self._publisher.open(self.plan.parts.outlets)
        self.plan.publish_by(self._emit_bytes)
        # Before the on_startup functions, which may put jobs.
        self._jobs.open_owner()
        for hook in self.plan.hooks.startup:
            await self._awaited(self._hook(hook.function)())
            if self._stopped:  # the hook itself may have stopped the app
                return
        self._listening = True
        self._listen()
        self._requests.answer(self.transport)
        self._jobs.open_workers([route for route in handlers if route.route.kind == "work"], self._codecs)
        await self.transport.confirmed()
        if self._stopped:
            return
        producers = tuple(self._producer(trigger) for trigger in self.plan.parts.triggers)
        self._producers = Producers(producers, self.reactor, self._start, self._stats, self._outcomes)
        self._producers.start()

    def leave_unread(self) -> None:
        """Read no more messages, and do not report the losses among them."""
        self._leaves_unread = True

    async def end(self, timeout: float) -> StopReport:
        """Stop producers, handle received messages, run ``on_shutdown``, and close.

        This method also works if `begin` was interrupted at any point. The stop takes at most ``timeout`` seconds,
        except that each resource and each ``on_shutdown`` function has at least one second.
        """
        self._stopped = self._jobs.stopping = True
        self._requests.refuse()
        outlets = [outlet for route in self.plan.parts.handlers for outlet in route.outlets]
        # Before the first wait, so that the apps of these publications, which may stop too, wait for the handlers here.
        holds = [outlet.hold() for outlet in outlets if isinstance(outlet, Bridge)]
        for each in self._in_flight:
            each.end_retries()
        for ready in tuple(self._awaiting_ready):
            ready.cancel()
        deadline = self.reactor.seconds() + timeout

        def left() -> float:
            return float(max(deadline - self.reactor.seconds(), 0.0))

        if self._producers is not None:
            for name, ending in self._producers.stop():
                self._outcomes.unfinished.watch(ending, name, lambda _: None, lambda: None)
        await self._wait(0)  # if a handler stopped the app, let it return first, so that it is drained like the others
        unfinished = await self._end_start(left())
        await self._jobs.work_off(_less_goodbye(left()))
        # Only now: a worker must still do the jobs of owners in this process that are stopping too.
        self._jobs.stop_workers()
        unfinished |= await self._catch_up(left)
        for stream in tuple(self._streams):
            stream.finish()
        unfinished |= await self._settle(left())
        await self._jobs.end_workers(left())
        unfinished |= await self._jobs.drain(_less_goodbye(left()))
        for release in holds:
            release()
        await self._publish_for_others(_less_goodbye(left()))
        self._accounts.close()  # reading has ended; on_shutdown functions see the final counts
        self._stats.paused_since, self._stats.paused_by = None, ()
        for hook in self.plan.hooks.shutdown if self._publisher is not None else ():
            unfinished |= await self._shut_down(hook, max(left(), _HOOK))
        unfinished |= await self._last_replies(left())
        self.transport.leave()
        if self._publisher is not None:
            unfinished |= await self._publisher.send_rest(_less_goodbye(left()))
            # Subscribers could not count the loss of a message that follows the goodbye.
            self._publish_no_more()
            unfinished |= await self._publisher.goodbye(left())
        self._withdraw()
        self.plan.live.closing = self  # a resource may still decide the exit code
        unfinished |= await self._resources.close(max(left(), _HOOK), self._failed_to_close)
        await self.transport.close()
        if self.plan.live.closing is self:
            self.plan.live.closing = None
        self._outcomes.close()
        self._requests.end()
        self._reports.close()
        return StopReport(unfinished)

    def _emit(self, topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
        """Publish a dead letter, without middleware."""
        if self._emit_bytes is None or self._publisher is None:
            raise NotRunningError(f"can't publish to {str(Topic.from_wire(topic))!r}: {self.name!r} is not running")
        return self._emit_bytes(topic, number, body, self._publisher.carried(headers))

    def _withdraw(self) -> None:
        """Mark the app as not running, so that another run can begin."""
        self._ended = True
        self._threads.close()
        self._publish_no_more()
        if self._publisher is not None:
            self._publisher.release()
        if self.plan.live.run is self:
            self.plan.live.run = None

    def _publish_no_more(self) -> None:
        self._emit_bytes = None
        # A later run of the app may already publish by the same plan.
        if self.plan.live.run is self:
            self.plan.publish_no_more()
        if self._publisher is not None:
            self._publisher.close()

    @property
    def identity(self) -> str:
        """The publisher's name and epoch, as subscribers log them; "" without a name."""
        return self._publisher.identity if self._publisher is not None else ""

    # -- while running ----------------------------------------------------------------------------------

    def attach(self, route: Route, *, surrounded: bool = True) -> CompiledRoute:
        """See `zroute.planning.plan.RunningApp`, also for the methods below."""
        what = f"attach({route.patterns[0].text!r})"
        self._threads.check_thread(what)
        name, parts = self.name, self.plan.parts
        if self._publisher is None:
            raise NotRunningError(
                f"can't call {what}: {name!r} has not opened its sockets. Call attach() in on_startup or later"
            )
        if not self.ends.sub:
            raise EndpointError(
                f"can't call {what}: {name!r} has no endpoint to subscribe to. Add the address that the publisher "
                "binds, as in App(sub='tcp://127.0.0.1:5555')",
                where=route.where,
            )
        hooks, resources = self.plan.hooks, parts.resources
        given = parts.given, resources, self._codecs
        made = compile_route(with_recover(route, hooks.recover), "", (hooks.errors,), (), *given)
        factories = hooks.middleware if surrounded else ()
        made = surround(made, factories, resources, parts.given, isolate=hooks.isolate)
        refuse_dead((made,), self.plan.choices.wire)
        self.plan.check_dead((made,), self.ends, self._table.routes)
        if self.ends.nats is not None:
            check_subjects((made,))
        closed = [kind for kind in made.call.needs if not self._resources.provides(kind)]
        if closed:
            missing = describe(closed[0])
            raise UsageError(
                f"{what}: {made.name} needs {missing}, but TestApp did not open {missing}, because only replaced "
                f"resources needed {missing} before. Replace {missing} too, as in TestApp(app, {{{missing}: fake}})"
            )
        made = self._supplied(made)
        made = attrs.evolve(made, stats=self._stats.routes.setdefault(made.name, made.stats))
        refuse_duplicates((*self._table.routes, made), self.plan.dispatch)
        check_recovering((made,), self.ends)
        recovered_subscriptions((*self._table.routes, made))
        check_since((*self._table.routes, made), made)
        refuse_future(route.options.since, self._environment.wall(), route.where)
        if self.ends.nats is not None:
            check_not_on_nats(made, f"{what} at {route.where}", route.where)
        self._make_room((made,))
        self._swap((*self._table.routes, made), made)
        return made

    def _make_room(self, routes: Iterable[CompiledRoute]) -> None:
        for route in routes:
            if route.options.thread:
                self._threads.make_room(route, grow=self._owns_pool)

    def detach(self, route: CompiledRoute) -> None:
        """Remove a route; messages that it has received are still handled."""
        if not self._ended:
            self._threads.check_thread("close() of an attached handler")
            self._outcomes.release()
            self._swap(tuple(other for other in self._table.routes if other is not route))

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None) -> None:
        """Drop the messages that wait for a route, and log their number."""
        dropped = self._outcomes.unfinished.discard(route, unfinished)
        if dropped:
            _log.info("%s at %s was closed: %d waiting messages were dropped", route.name, route.route.where, dropped)

    def open_stream(self, stream: Finishing) -> None:
        """Finish ``stream`` when the app stops."""
        self._streams[stream] = None
        if self._stopped:
            stream.finish()

    def close_stream(self, stream: Finishing) -> None:
        """Remove a stream whose block the user has left."""
        self._streams.pop(stream, None)

    @property
    def addresses(self) -> ResolvedAddresses:
        """See `App.addresses`."""
        if not self.transport.is_open:
            raise NotRunningError(
                f"can't read addresses: {self.name!r} has no open sockets. Read addresses in on_startup or later"
            )
        return self.transport.addresses or self.ends.addresses

    def add_endpoints(self, ends: Ends) -> None:
        """See `App.add_endpoints`."""
        self._check_change("add_endpoints()")
        for side, present, known in self._sides():
            for endpoint in ends.of(side):
                if "*" not in endpoint.address and _place(endpoint, present, known) is not None:
                    text = f"can't add {endpoint}: {self.name!r} already has this endpoint"
                    raise EndpointError(text, endpoint=str(endpoint), where=users_line())
        factory_for(ends)
        changed = self.ends + ends
        self.plan.check_inproc(changed)
        self.plan.check_dead(self._table.routes, changed)
        try:
            self.transport.add(ends)
        finally:
            self._arrivals.peer = self.transport.publisher  # before a message of these endpoints is read
        self.ends = changed

    def remove_endpoints(self, ends: Ends) -> Deferred[None]:
        """See `App.remove_endpoints`."""
        self._check_change("remove_endpoints()")
        addresses: dict[str, tuple[str, ...]] = {}
        left: dict[str, tuple[Endpoint, ...]] = {}
        for side, present, known in self._sides():
            places = [self._known(endpoint, present, known) for endpoint in ends.of(side)]
            addresses[side.name] = tuple(known[place] for place in places)
            left[side.name] = tuple(each for place, each in enumerate(present) if place not in places)
        closed = ResolvedAddresses(**addresses)
        closing = self.transport.remove(closed)
        self._closing_ends += closed.sub
        self.ends = self.ends.with_sides(left)

        def end(result: Any) -> Any:
            for address in closed.sub:
                self._closing_ends.remove(address)
            return result

        return closing.addBoth(end)

    def _check_change(self, what: str) -> None:
        self._threads.check_thread(what)
        if self._publisher is None or self._stopped:
            raise NotRunningError(
                f"can't call {what}: {self.name!r} has no open sockets. Call {what} after the start and before the "
                "stop of the app"
            )

    def _sides(self) -> Iterator[tuple[Side, tuple[Endpoint, ...], list[str]]]:
        """Yield each side, its endpoints, and their addresses."""
        addresses = self.addresses
        for side in SIDES:
            known = list(addresses.of(side))
            # Removed endpoints are still read, so the transport reports their addresses until they are closed.
            for address in self._closing_ends if side.name == "sub" else ():
                known.remove(address)
            yield side, self.ends.of(side), known

    def _known(self, endpoint: Endpoint, present: tuple[Endpoint, ...], known: list[str]) -> int:
        place = _place(endpoint, present, known)
        if place is None:
            have = ", ".join(known) or "none"
            raise EndpointError(
                f"can't remove {endpoint}: {self.name!r} does not have this endpoint. Addresses on this side: {have}",
                endpoint=str(endpoint),
                where=users_line(),
            )
        return place

    def _swap(self, routes: Sequence[CompiledRoute], attached: CompiledRoute | None = None) -> None:
        named = [(one.options.codec, one.route.where) for one in routes if one.options.codec]
        self._codecs = known_codecs(self.plan.parts.codecs, named)
        self._table = self._table.changed(routes, self._codecs, attached)
        # With a limit, the transport's function looks up the table at each call.
        if self._limit is None:
            self.transport.use(self._table.receive)
        if self._listening and not self._stopped:
            self._listen()

    def _listen(self) -> None:
        sees = any(route.sees_envelopes for route in self._table.routes) or bool(self.plan.hooks.unrouted)
        self.transport.name_peers(sees)
        self.transport.listen(self._table.patterns)

    def ready(self, publishers: int | None, timeout: float, *, state: bool) -> Deferred[None]:
        """See `App.ready`."""
        self._threads.check_thread("ready()")
        check_loop(self.reactor)
        if not self.ends.sub:
            return succeed(None)
        if self._stopped:
            return fail(self._stopped_before_ready())
        ready = self.transport.ready(publishers, state=state)
        self._awaiting_ready[ready] = None
        ready.addBoth(self._end_waiting, ready)
        waiting = within(timeout, ready, self.reactor).addErrback(self._not_ready, timeout, state)
        return waiting.addCallback(self._hand_over) if state else waiting

    def _end_waiting(self, result: Any, ready: Deferred[None]) -> Any:
        self._awaiting_ready.pop(ready, None)
        return result

    def _stopped_before_ready(self) -> NotRunningError:
        if not self._listening:
            return NotRunningError(
                f"{self.name!r} has stopped before it subscribed, so ready() no longer waits for publishers. "
                f"{_STARTUP_WAITS}"
            )
        return NotRunningError(f"{self.name!r} has stopped, so ready() no longer waits for publishers")

    def _hand_over(self, _: None) -> None:
        """Deliver kept messages that wait in an incomplete batch."""
        self._outcomes.release()

    def _not_ready(self, failure: Failure, timeout: float, state: bool) -> None:
        if self._stopped:
            raise self._stopped_before_ready()
        failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
        if not self._listening:
            raise NotReadyError(
                f"{self.name!r} was not ready within {timeout:g} s: on_startup has not ended. {_STARTUP_WAITS}"
            )
        raise NotReadyError(f"{self.name!r} was not ready within {timeout:g} s: {self.transport.unready(state=state)}")

    def _found(self, found: Gap | UnknownLoss | LostKept | LostPast) -> None:
        """Pass a `Gap` to the ``on_gap`` functions; log any other loss.

        Without such functions, the `Gap` is logged too.
        """
        if self._leaves_unread:
            return
        publisher = self._accounts.named(found.epoch)
        if isinstance(found, UnknownLoss):
            names = ", ".join(repr(str(Topic.from_wire(each))) for each in found.subscriptions[:_NAMED]) or "its topics"
            names += f" and {len(found.subscriptions) - _NAMED} more" * (len(found.subscriptions) > _NAMED)
            text = "%s: %s %s: unknown losses of %s"
            subject = f"{self.name}: unknown losses"
            self._reports("tail", subject, logging.WARNING, text, self.name, publisher, found.why, names)
            return
        if isinstance(found, LostKept):
            text = "%s: lost %d of the kept messages and snapshots that %s sends to new subscribers"
            subject = f"{self.name}: lost kept messages"
            self._reports("kept", subject, logging.WARNING, text, self.name, found.count, publisher)
            return
        if isinstance(found, LostPast):
            text = "%s: lost %d of the %d earlier messages of %r from %s"
            name = str(Topic.from_wire(found.subscription))
            facts = self.name, found.count, found.total, name, publisher
            self._reports("past", f"{self.name}: lost earlier messages", logging.WARNING, text, *facts)
            return
        if not self.plan.hooks.gaps:
            text = "%s: lost %d messages of %r from %s (numbers %d to %d)"
            name = str(Topic.from_wire(found.subscription))
            arguments = (self.name, found.count, name, publisher, found.first, found.last)
            self._reports("gap", f"{self.name}: lost messages", logging.WARNING, text, *arguments)
        self._notify(self.plan.hooks.gaps, found, "on_gap")

    def _subscribers_changed(self, publication: Publication[Any]) -> None:
        """Call the ``on_subscribers`` functions of a publication."""
        if not self._stopped:
            self._notify(publication.subscriber_hooks, publication.subscribers, "on_subscribers")

    def _notify(self, hooks: Iterable[Hook], fact: object, what: str) -> None:
        """Call each hook with ``fact``; log and count the hooks that fail."""
        for hook in hooks:
            try:
                result = self._hook(hook.function)(fact)
                if is_awaitable(result):
                    self._start(result).addErrback(self._notified_later, hook, what)
            except BaseException as error:  # also SystemExit, for which the reactor would close the socket
                self._failed_to_notify(hook, what, error)

    def _notified_later(self, failure: Failure, hook: Hook, what: str) -> None:
        self._failed_to_notify(hook, what, error_of(failure))

    def _failed_to_notify(self, hook: Hook, what: str, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            self._leave(error, name_of(hook.function), hook.where)
            return
        self._stats.hook_errors += 1
        self._reports(what, f"{self.name}: {what}", logging.ERROR, f"an {what} function failed", error=error)
        self._environment.observe(error, False)

    def _snapshot_failed(self, error: BaseException, function: Callable[..., Any]) -> None:
        """Handle an error of a ``snapshot`` or ``topics`` function.

        The publisher has counted and logged it.
        """
        if isinstance(error, SystemExit):
            self._leave(error, name_of(function), defined_at(function) or "an unknown line")
        else:
            self._environment.observe(error, False)

    def from_thread(self, call: Callable[[], Any]) -> Any:
        """See `zroute.planning.plan.RunningApp`, also for the next method."""
        return self._threads.call_from_thread(call)

    def stop(self, code: int, why: str) -> None:
        """End the app, from any thread."""
        self.check_process(why)
        if self._threads.is_here:
            self._leave_with(code, why)
        else:
            self.reactor.callFromThread(self._leave_with, code, why)

    def _leave(self, error: SystemExit, name: str, where: str) -> None:
        """Stop the app, because one of its functions has raised SystemExit."""
        if not isinstance(error.code, int | None):
            self._reports(("exit", name, where), name, logging.ERROR, "%s at %s: %s", name, where, printable(error))
        self._environment.observe(error, False)
        self.stop(exit_code(error), f"{name} at {where} exits with code {exit_code(error)}")

    def check_process(self, what: str) -> None:
        """Raise ForkedContextError in a child of the process that runs the app."""
        self._threads.check_process(what)

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
        """Create the closures again before the next message; no message is lost."""
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
        """Return a copy of a compiled route for this run, with the open resources."""
        call = self._report_results(route.call.supply(self._resources.objects))
        return route.fresh(call, self._resources.scope(route.around.needs))

    def _report_results(self, call: Call) -> Call:
        """Return ``call`` with a function that reports its results to the environment."""
        results = self._environment.results
        if results is None or is_generator_function(call.function):
            return call
        return attrs.evolve(call, function=_with_report(call.function, results))

    def _hook(self, function: Callable[..., Any], facts: Mapping[Any, Any] = _NO_FACTS) -> Callable[..., Any]:
        """Return ``function`` with the resources and ``facts`` that it needs bound."""
        given = self.plan.parts.hooked[identity(function)]
        objects = {**self._resources.objects, **facts}
        return partial(
            function,
            **{name: objects[value.kind] if isinstance(value, Needed) else value for name, value in given.items()},
        )

    def _producer(self, trigger: CompiledTrigger) -> CompiledProducer:
        publish = self._outcomes.publish
        return CompiledProducer(
            trigger.name,
            trigger.where,
            self._report_results(trigger.call.supply(self._resources.objects)).bind({}, b""),
            lambda value: publish(trigger.outlets, value, {}, trigger.name),
            trigger.schedule,
            is_generator_function(trigger.call.function),
        )

    def _limited(self, limit: MessageLimit) -> Receive:
        """Return a `RouteTable.receive` that stops at ``limit`` messages."""

        def receive(recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
            before = self._read
            try:
                self._table.limit(limit.left)
                self._table.receive(recv, more, 1)  # one frame at a time, because a frame may contain many messages
            finally:
                self._take(limit, before)

        return receive

    def _receive_stated(self, parse: Parse, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        """Read messages of a stated form; see `RouteTable.receive_stated`."""
        limit, before = self._limit, self._read
        try:
            self._table.receive_stated(parse, recv, more, budget if limit is None else 1)
        finally:
            if limit is not None:
                self._take(limit, before)

    @property
    def _read(self) -> int:
        """The number of messages that were read, without control frames."""
        return self._stats.received - self._stats.control

    def _take(self, limit: MessageLimit, before: int) -> None:
        """Count the messages read since the total was ``before``; pause at the limit."""
        limit.take(self._read - before)
        if not limit.left:
            self.transport.pause()

    async def _end_start(self, timeout: float) -> dict[str, int]:
        """Cancel an unfinished start; its open resources are closed later."""
        self._beginning.cancel()
        try:
            await within(timeout, self._beginning, self.reactor)
        except TimeoutError:
            return {"the start": 1}
        return {}

    async def _catch_up(self, left: Callable[[], float]) -> dict[str, int]:
        """Read the messages that were sent before the stop, and count unread messages.

        The limits of queues do not apply during this time.
        """
        number = await self.transport.finish(self, left)
        # The rest of a coalesced frame is already counted as received. It is handled even if queues are full, unless
        # reading ended because of a message limit.
        self._table.end_recovery()
        while self.unpacked and self.reads_on:
            self._table.work_off(self.unpacked)
        self._outcomes.release()
        return {"received but unread messages": number} if number else {}

    @property
    def reads_on(self) -> bool:
        """False after `leave_unread`, or after the maximum number of messages."""
        return not self._leaves_unread and (self._limit is None or self._limit.left > 0)

    @property
    def unpacked(self) -> int:
        """The number of undelivered messages of a frame that was read."""
        return self._table.unpacked

    async def _settle(self, timeout: float) -> dict[str, int]:
        """Wait for handlers; return the number of calls still unfinished, by name."""
        names: Counter[str] = Counter()
        for each in self._in_flight:
            names.update(each.names())
        if names:
            waited = ", ".join(f"{name}: {count}" for name, count in names.items())
            _log.info("%s: waiting up to %.1f s for unfinished handlers: %s", self.name, timeout, waited)
        try:
            await within(timeout, Deferred.fromCoroutine(self._idle()), self.reactor)
        except TimeoutError:
            left: Counter[str] = Counter()
            for each in self._in_flight:
                left.update(each.give_up())
            return dict(left)
        return {}

    async def _idle(self) -> None:
        """Wait until no call of any handler is unfinished or waiting."""
        for each in self._in_flight:
            await each.idle()

    async def _last_replies(self, timeout: float) -> dict[str, int]:
        """Wait for the replies to the app's own requests; end requests without a reply."""
        answered, left = self._requests.answered(), 0
        if answered is not None:
            try:
                await within(timeout, answered, self.reactor)
            except TimeoutError:
                left = self._requests.unanswered
        self._requests.close()
        return {"unanswered requests": left} if left else {}

    async def _publish_for_others(self, timeout: float) -> None:
        """Wait for handlers of other apps whose results this app publishes.

        The wait is only for apps that are stopping too.
        """
        with suppress(TimeoutError):
            await within(timeout, released(each.publication for each in self.plan.parts.outlets), self.reactor)

    async def _shut_down(self, hook: Hook, timeout: float) -> dict[str, int]:
        """Run an on_shutdown function, and return its name if it took too long."""
        name = name_of(hook.function)
        try:
            result = self._hook(hook.function)()
            if is_awaitable(result):
                await within(timeout, self._start(result), self.reactor)
        except TimeoutError:
            return {name: 1}
        except (Exception, SystemExit) as error:
            if not isinstance(error, SystemExit):
                text = "the on_shutdown function %s at %s failed%s; the stop continues"
                _log.exception(text, name, hook.where, loop_hint(error))
            self._failed_to_close(error, name, hook.where)
        return {}

    def _failed_to_close(self, error: BaseException, name: str, where: str) -> None:
        if isinstance(error, SystemExit):
            self._leave(error, name, where)
            return
        self._stats.hook_errors += 1
        self._environment.observe(error, False)

    async def _awaited(self, result: Any) -> None:
        if is_awaitable(result):
            await self._start(result)

    def _wait(self, seconds: float) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, turn.callback, None)
        return turn

    def _start(self, awaitable: Awaitable[Any]) -> Deferred[Any]:
        return as_deferred(awaitable, asyncio_loop=self._environment.asyncio)


def _with_report(
    function: Callable[..., Any], results: Callable[[Callable[..., Any], Any], None]
) -> Callable[..., Any]:
    """Return ``function`` with a report of each result when it is available."""

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


AnyResults = TypeVar("AnyResults", bound=Results)


def _results(
    kind: type[AnyResults],
    *,
    stats: Stats,
    executor: Executor,
    plan: Plan,
    observe: Callable[[BaseException, bool], None],
    **given: Any,
) -> AnyResults:
    """Return the object that handles the results of one kind of handlers."""
    return kind(
        stats=stats,
        log=_log,
        executor=executor,
        choices=plan.choices,
        hooks=plan.hooks,
        observe=observe,
        **given,
    )


def _less_goodbye(seconds: float) -> float:
    """Return a time without the part that is reserved for goodbyes."""
    return max(seconds - _GOODBYE, seconds / 2)


def _options(plan: Plan) -> AppOptions:
    choices, limits, addresses = plan.choices, plan.limits, plan.addresses
    return AppOptions(
        choices.name,
        limits.max_message,
        choices.overflow == "drop",
        limits.max_subscription_bytes,
        addresses.context,
        limits.send_queue,
        limits.receive_queue,
        addresses.options,
    )
