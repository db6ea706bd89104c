"""`Plan`, the compiled form of an app, and `Live`, the state of a run.

A run uses the plan and does not know the `App`. Because plan and state are separate objects, a plan can run several
times in succession.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Unpack

import attrs
from twisted.internet.defer import Deferred

from zroute.declarations.limits import Limits
from zroute.declarations.records import Hooks, Route
from zroute.declarations.resources import CompiledResource
from zroute.declarations.signatures import Call
from zroute.endpoints import LOOP, NO_KEYS, SIDES, Cluster, Endpoint, EndpointOptions, Ends, ResolvedAddresses
from zroute.errors import EndpointError, PatternError, SignatureError, UsageError
from zroute.messages.codecs import Codecs
from zroute.messages.topics import Pattern, matches
from zroute.nats.servers import parse_cluster
from zroute.nats.subjects import subject_of
from zroute.options import NetworkOptions
from zroute.publishing.choices import Choices
from zroute.publishing.middleware import Middleware, Send
from zroute.publishing.publication import CompiledPublication, Emit, Schedule, encoder_by_type
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.table import Dispatch
from zroute.stats import Stats

if TYPE_CHECKING:
    from zroute.jobs.queue import CompiledJobQueue
    from zroute.requests.client import Client
    from zroute.requests.requester import CompiledRequester

__all__ = [
    "Addresses",
    "CompiledTrigger",
    "Finishing",
    "Live",
    "Parts",
    "Plan",
    "ReactorKind",
    "RunningApp",
    "Senders",
    "check_not_on_nats",
    "check_recovering",
    "check_subjects",
    "reactor_kind",
]


@attrs.frozen(eq=False)
class CompiledTrigger:
    """A timer function or free-running generator, with its publications.

    ``schedule`` is None for a free-running generator.
    """

    name: str
    where: str
    call: Call
    outlets: tuple[CompiledPublication, ...]
    schedule: Schedule | None


@attrs.frozen(eq=False)
class Senders:
    """The objects of an app that send messages, requests or jobs.

    Attributes:
        outlets: The publications.
        requesters: The requesters.
        queues: The job queues.
    """

    outlets: tuple[CompiledPublication, ...]
    requesters: tuple[CompiledRequester, ...]
    queues: tuple[CompiledJobQueue, ...]


@attrs.frozen(eq=False)
class Parts:
    """The compiled parts of an app.

    Attributes:
        handlers: The handlers of all kinds, in the order of registration.
        senders: The publications, requesters and job queues.
        triggers: The timer functions and free-running generators.
        resources: The resources in opening order.
        hooked: The arguments that each hook receives by name, keyed by the `identity` of its function.
        given: The objects that parameters receive by annotation, or `Needed`, keyed by type.
        codecs: The codecs that a received frame may name.
        middleware: The publish middleware around `App.publish`, or None.
    """

    handlers: tuple[CompiledRoute, ...]
    senders: Senders
    triggers: tuple[CompiledTrigger, ...]
    resources: tuple[CompiledResource, ...]
    hooked: Mapping[object, Mapping[str, Any]]
    given: Mapping[Any, Any]
    codecs: Codecs
    middleware: Middleware | None

    @property
    def routes(self) -> tuple[CompiledRoute, ...]:
        """The handlers of messages."""
        return tuple(each for each in self.handlers if each.route.kind == "subscribe")

    @property
    def replies(self) -> tuple[CompiledRoute, ...]:
        """The handlers of requests."""
        return tuple(each for each in self.handlers if each.route.kind == "reply")

    @property
    def works(self) -> tuple[CompiledRoute, ...]:
        """The handlers of jobs."""
        return tuple(each for each in self.handlers if each.route.kind == "work")

    @property
    def queues(self) -> tuple[CompiledJobQueue, ...]:
        """The job queues."""
        return self.senders.queues

    @property
    def outlets(self) -> tuple[CompiledPublication, ...]:
        """The publications."""
        return self.senders.outlets

    @property
    def requesters(self) -> tuple[CompiledRequester, ...]:
        """The requesters."""
        return self.senders.requesters


class Finishing(Protocol):
    """An object that ends with the run, such as a stream."""

    def finish(self) -> None:
        """End the object, which will receive no more messages."""


class RunningApp(Protocol):
    """The methods of a run that `App`, attached routes and streams use.

    Attributes:
        reactor: The reactor of the run.
    """

    reactor: Any

    def attach(self, route: Route, *, surrounded: bool = True) -> CompiledRoute:
        """Compile ``route``, and replace the routing table with one that includes it.

        ``surrounded`` is False for a route that the app's middleware does not surround.
        """

    def detach(self, route: CompiledRoute) -> None:
        """Replace the routing table with one that omits ``route``.

        Messages that the route has already received are still handled.
        """

    def discard(self, route: CompiledRoute, unfinished: Deferred[Any] | None) -> None:
        """Drop the waiting messages of ``route``, and abandon an unfinished call.

        Both are counted and logged.
        """

    def open_stream(self, stream: Finishing) -> None:
        """Call ``stream.finish()`` at the end of the run."""

    def close_stream(self, stream: Finishing) -> None:
        """Remove ``stream`` after the user has left its ``with`` block."""

    @property
    def addresses(self) -> ResolvedAddresses:
        """The resolved addresses.

        Raises:
            NotRunningError: The sockets are not open.
        """

    def add_endpoints(self, ends: Ends) -> None:
        """Open further endpoints; see `App.add_endpoints`."""

    def remove_endpoints(self, ends: Ends) -> Deferred[None]:
        """Close endpoints; see `App.remove_endpoints`."""

    def check_process(self, what: str) -> None:
        """Raise ForkedContextError in a forked child process."""

    def ready(self, publishers: int | None, timeout: float, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when publishers have confirmed the subscriptions.

        If ``state`` is True, the Deferred also waits for the messages that the publishers keep.
        """

    def stop(self, code: int, why: str) -> None:
        """End the app with an exit code; see `App.stop`. ``why`` is for the log."""

    def from_thread(self, call: Callable[[], Any]) -> Any:
        """Call ``call`` in the reactor's thread, and wait for the result."""


@attrs.define
class Live:
    """The state of an app that exists only during a run.

    Attributes:
        run: The current run; None while the app does not run.
        closing: The last run while its resources close; only `App.stop` still uses it.
        emit: The function with which `App.publish` sends. None if the app is not running, or if `App.publish` has
            middleware.
        publish: The function with which `App.publish` publishes through middleware; None without middleware.
        client: The client of the current run; None if the app is not running, or has no endpoint for requests.
        stats: The counters of the current run, or of the last run.
        exit_code: The requested exit code of the current or last run, or None.
        ended: A Deferred that fires when the current or last run has ended; None before the first run.
    """

    run: RunningApp | None = None
    closing: RunningApp | None = None
    emit: Emit | None = None
    publish: Send | None = None
    client: Client | None = None
    stats: Stats = attrs.field(factory=Stats)
    exit_code: int | None = None
    ended: Deferred[Any] | None = None

    def skip(self) -> None:
        """Count a message that publish middleware did not publish."""
        self.stats.publish_skipped += 1


ReactorKind = Literal["twisted", "asyncio"]
"""The kind of reactor that an app needs: "asyncio", or "twisted" for any other reactor.

On a "twisted" reactor, ``async`` functions await Deferreds.
"""


@attrs.frozen
class Addresses:
    """The network settings of an app, as declared in `App(…)`.

    Attributes:
        ends: The endpoints.
        loop: True if an app without endpoints receives its own messages inside the process.
        context: The ZeroMQ context; apps that share it can connect to each other over ``inproc://``.
        options: The socket options that the user has set.
        reactor: The kind of reactor that the app needs; None for any.
    """

    ends: Ends
    loop: bool
    context: Any
    options: NetworkOptions
    reactor: ReactorKind | None = None


@attrs.frozen(eq=False)
class Plan:
    """A compiled and frozen app: everything that a run needs.

    ``where`` is the line of its ``App(…)``, as ``file:line``.
    """

    where: str
    choices: Choices
    dispatch: Dispatch
    limits: Limits
    addresses: Addresses
    hooks: Hooks
    parts: Parts
    live: Live

    @property
    def name(self) -> str:
        """The name of the app, for logs and summaries."""
        return self.choices.name

    def is_empty(self, ends: Ends) -> bool:
        """Return True if an app with these endpoints would do nothing."""
        parts, hooks = self.parts, self.hooks
        senders = parts.outlets or parts.requesters or parts.queues or ends.req
        return not (parts.handlers or senders or parts.triggers or hooks.startup or hooks.shutdown or parts.resources)

    def publish_by(self, emit: Emit) -> None:
        """Enable `App.publish`; if it has middleware, messages pass through it."""
        middleware = self.parts.middleware
        if middleware is None:
            self.live.emit = emit
            return
        encode = encoder_by_type(None, self.choices.codec, self.parts.codecs.extras)
        middleware.send = lambda message, headers, topic: emit(topic, *encode(message), headers)
        self.live.publish = middleware.publish

    def publish_no_more(self) -> None:
        """Disable `App.publish`."""
        self.live.emit = self.live.publish = None

    def claim(self) -> None:
        """Check that the app can start.

        Raises:
            UsageError: The app is already running.
            ForkedContextError: The app was started in the parent process, before a fork.
        """
        if self.live.run is not None:
            self.live.run.check_process(f"{self} was started")
            raise UsageError(
                f"{self} is already running: leave its `async with app.running()` block; or stop its other service; or "
                "call app.stop() and wait for app.stopped()"
            )

    def check_reactor(self, *, on_asyncio: bool, advice: str = "use a reactor of that kind") -> None:
        """Raise UsageError if the app needs another kind of reactor.

        The error ends with ``advice``.
        """
        needs = self.addresses.reactor
        if needs is not None and on_asyncio != (needs == "asyncio"):
            got = "asyncio's" if on_asyncio else "not asyncio's"
            raise UsageError(f"{self} needs reactor={needs!r}, but the given reactor is {got}: {advice}")

    def endpoints(self, **given: Unpack[EndpointOptions]) -> Ends:
        """Return the endpoints of a run.

        Given endpoints replace the app's own. An endpoint in ``sub`` without a stated form gets the form of the app's
        endpoint at the same address. If there is none, it gets the form that all endpoints of the app share. An app
        without any endpoints gets an in-process loop.

        Raises:
            EndpointError: A side has functions but no endpoint, ``inproc://`` leads to an app that does not share the
                context, the form of an endpoint is unclear, ``peers`` is given without ``keys``, or the app can't run
                on NATS.
            PatternError: A pattern is not possible on NATS.
            SignatureError: Another option is not possible on NATS.
        """
        parts, own = self.parts, self.addresses
        cluster = self._cluster(given)
        if cluster is not None:
            return self._on_nats(cluster, given)
        try:
            ends = attrs.evolve(own.ends, nats=None).replaced(given)
        except EndpointError as error:
            error.locate(self.where)
            raise
        if given.get("sub"):
            ends = attrs.evolve(ends, sub=tuple(map(self._in_its_form, ends.sub)))
        if not ends:
            if not own.loop:
                *flags, last = (side.flag for side in SIDES)
                raise EndpointError(
                    "the app has no endpoints, and loop=False: write for example App(sub=…); or give endpoints to "
                    f"`zroute run` with {', '.join(flags)} and {last} (in the environment ZROUTE_SUB and so on)",
                    where=self.where,
                )
            # The id of the plan makes the address unique within the context, which several apps may share.
            inside = f"{LOOP}{id(self):x}"
            ends = Ends(sub=(Endpoint(inside, bind=False),), pub=(Endpoint(inside, bind=True),))
            if parts.replies or parts.requesters:
                asked = f"{inside}-requests"
                ends += Ends(rep=(Endpoint(asked, bind=True),), req=(Endpoint(asked, bind=False),))
            if parts.queues:
                jobs = f"{inside}-jobs"
                ends += Ends(jobs=(Endpoint(jobs, bind=True),), work=(Endpoint(jobs, bind=False),))
            self._check_sides(ends)
            self.check_dead(parts.handlers, ends)
            return ends
        self._check_sides(ends)
        self._check_bound(ends)
        self.check_dead(parts.handlers, ends)
        self.check_inproc(ends)
        return ends

    def check_access(self, ends: Ends) -> None:
        """Check that the endpoints fit the keys of the app, without opening a key file.

        The transport checks the key files, and the addresses of host names. A transport in the memory needs no keys,
        so `endpoints` does not include this check.

        Raises:
            EndpointError: An endpoint names a peer although the app has no keys, does not name its peer although the
                app has keys, or is open to the network without keys.
        """
        try:
            for endpoint in ends:
                ends.access.check(endpoint)
                if endpoint.is_surely_open:
                    ends.access.check_open(endpoint)
        except EndpointError as error:
            error.locate(self.where)
            raise

    def _cluster(self, given: EndpointOptions) -> Cluster | None:
        """Return the NATS servers of a run, or None on ZeroMQ.

        Given endpoints put ``nats=`` of the app out of use, and given servers put the endpoints of the app out of use.
        """
        nats, creds, own = given.get("nats"), given.get("nats_creds"), self.addresses.ends.nats
        sides = [side.flag for side in SIDES if given.get(side.name)]
        beside = [*sides, *(f"--{name}" for name in ("keys", "peers") if given.get(name))]
        if nats is None and sides:
            own = None
        elif nats is not None and beside:
            raise EndpointError(
                f"--nats can't be combined with {' and '.join(beside)}: on NATS, the servers replace all endpoints, "
                "and their accounts replace keys. Remove one of the two",
                where=self.where,
            )
        if nats is None and own is not None:
            return own if creds is None else attrs.evolve(own, creds=Path(creds))
        found = parse_cluster(nats, creds)
        # An app with endpoints that does not receive its own messages on ZeroMQ does not receive them on NATS either.
        ends = self.addresses.ends
        answered = {endpoint.address for endpoint in ends.rep}
        return found and attrs.evolve(
            found,
            echo=ends.hears_itself or not (ends.sub or ends.pub),
            asks_itself=not (ends.rep and ends.req) or any(each.address in answered for each in ends.req),
        )

    def _on_nats(self, cluster: Cluster, given: EndpointOptions) -> Ends:
        """Return the endpoints of a run on NATS.

        Each side that the app uses has one endpoint, the cluster. An app with endpoints uses the same sides as on
        ZeroMQ. Any other app may also subscribe, publish, and request, except on the sides that ``given`` leaves empty.
        """
        parts, own = self.parts, self.addresses.ends
        self._check_nats()
        here = (Endpoint(cluster.address, bind=False),)
        used = {side.name for side in SIDES if own.of(side)}
        if not used:
            used = {"sub", "pub", "req"}
            used |= {"rep"} if parts.replies else set()
            used |= {"jobs", "work"} if parts.queues else {"work"} if parts.works else set()
            # An app with handlers and without publications is taken for a subscriber. Otherwise all subscribers of a
            # cluster would ask each other for numbers.
            cluster = attrs.evolve(cluster, publishes_anything=not parts.routes)
        used -= {side.name for side in SIDES if given.get(side.name) == ()}
        sides = {side.name: here if side.name in used else () for side in SIDES}
        ends = attrs.evolve(own.with_sides(sides), nats=cluster, access=NO_KEYS)
        self._check_sides(ends)
        self.check_dead(parts.handlers, ends)
        return ends

    def _check_nats(self) -> None:
        """Check that the app can run on NATS."""
        wire = self.choices.wire
        if wire not in ("tracked", "plain"):
            raise SignatureError(
                f"wire={wire!r} is not possible on NATS, whose messages have a subject and a body: use "
                "wire='tracked', or wire='plain' for subscribers without zroute",
                parameter="wire",
                where=self.where,
            )
        for queue in self.parts.queues:
            settings = queue.queue.settings
            if settings.retry or queue.dead is not None:
                raise EndpointError(
                    f"job_queue({queue.pattern.text!r}) at {queue.queue.where} has retry= or dead=, but on NATS a job "
                    "is given to one worker once, and no owner notices that it has failed: set retry=() and remove "
                    "dead=, or run the app on ZeroMQ",
                    where=queue.queue.where,
                )
        for route in self.parts.routes:
            check_not_on_nats(route, f"{route.name} at {route.route.where}", route.route.where)
        check_subjects(self.parts.handlers)
        for queue in self.parts.queues:
            _check_subject(queue.pattern, queue.queue.where)
        for route in self.parts.works:
            for pattern in route.patterns:
                if pattern.prefix and not pattern.prefix.endswith(b"."):
                    raise PatternError(
                        f"{pattern.text} of {route.name} ends inside a segment, but NATS filters by whole segments: it "
                        "would give this worker jobs that it does not accept, and each job is sent once. Let the "
                        "prefix end with a dot, or use a pattern such as 'jobs.*'",
                        pattern=pattern.text,
                        where=route.route.where,
                    )
        for outlet in self.parts.outlets:
            _check_subject(outlet.pattern, outlet.publication.where)
            if outlet.publication.snapshot is not None:
                raise EndpointError(
                    f"publisher({outlet.pattern.text!r}) at {outlet.publication.where} has snapshot=, but on NATS "
                    "nothing orders a snapshot between the messages of a topic: remove snapshot=, or run the app on "
                    "ZeroMQ",
                    where=outlet.publication.where,
                )
            if outlet.publication.history is not None:
                raise EndpointError(
                    f"publisher({outlet.pattern.text!r}) at {outlet.publication.where} has history=, but on NATS "
                    "subscribers can't ask a publisher for lost messages: remove history=, or run the app on ZeroMQ",
                    where=outlet.publication.where,
                )

    def dropped_feeds(self, ends: Ends) -> Iterator[str]:
        """Yield a warning for each endpoint with a fixed topic that no route matches.

        Yield nothing if the app has no routes, because the app may attach routes while it runs. Also yield nothing if
        the app has a function for messages without a route.
        """
        patterns = [pattern for route in self.parts.routes for pattern in route.patterns]
        if self.hooks.unrouted or not patterns:
            return
        for endpoint in ends.sub:
            topic = None if endpoint.form is None else endpoint.form.fixed_topic
            if topic is not None and not any(matches(pattern, topic) is not None for pattern in patterns):
                shown = topic.decode(errors="backslashreplace")
                known = ", ".join(pattern.text for pattern in patterns[:5])
                yield (
                    f"all messages of {endpoint} have the topic {shown!r}, which no pattern of the app matches "
                    f"({known}), so zroute drops the messages: subscribe to that topic; or state another topic in "
                    "Frames(topic=…)"
                )

    def _check_sides(self, ends: Ends) -> None:
        """Raise EndpointError if a side has functions but no endpoint."""
        missing = next(_missing(self.parts, ends), None)
        if missing is not None:
            raise EndpointError(missing, where=self.where)

    def _check_bound(self, ends: Ends) -> None:
        """Raise EndpointError if two endpoints bind the same address."""
        if ends.clash is not None:
            (side, endpoint), (other, second) = ends.clash
            same = "" if second.address == endpoint.address else f" (as {endpoint.address!r})"
            raise EndpointError(
                f"{side.name}= and {other.name}= both bind {second.address!r}{same}, but only one socket can bind "
                "an address: use a different address for each of the two",
                endpoint=second.address,
                where=self.where,
            )

    def _in_its_form(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that replaces one of the app's, with its message form."""
        own = self.addresses.ends.sub
        if endpoint.form is not None or not own:
            return endpoint
        forms = {each.form for each in own if each.address == endpoint.address} or {each.form for each in own}
        if len(forms) > 1:
            stated = ", ".join(f"{each.form or 'tracked'} at {each}" for each in own)
            raise EndpointError(
                f"cannot choose the form of the messages at {endpoint}: this app declares more than one form "
                f"({stated}). Change "
                "the endpoints in App(…) instead of replacing the endpoints from outside, for example with --sub",
                endpoint=str(endpoint),
                where=self.where,
            )
        return attrs.evolve(endpoint, form=forms.pop())

    def check_dead(self, routes: Sequence[CompiledRoute], ends: Ends, others: Sequence[CompiledRoute] = ()) -> None:
        """Check that dead letters of ``routes`` can be published, and do not loop.

        ``others`` contains the routes that the app already has.

        Raises:
            EndpointError: There is no endpoint to publish to.
            SignatureError: The app receives its own messages, and a route would receive its own dead letters, directly
                or through other routes.
        """
        for route in routes:
            dead = route.options.dead
            if dead is not None and not ends.pub:
                raise EndpointError(
                    f"dead={dead.text!r} of {route.name} at {route.route.where} has no endpoint to publish to: "
                    "write App(pub='tcp://127.0.0.1:5556'), with an address that this app binds",
                    where=self.where,
                )
        for queue in self.parts.queues:
            if queue.dead is not None and not ends.pub:
                raise EndpointError(
                    f"dead={queue.dead.text!r} of job_queue({queue.pattern.text!r}) at {queue.queue.where} has no "
                    "endpoint to publish to: write App(pub='tcp://127.0.0.1:5556'), with an address that this app "
                    "binds",
                    where=self.where,
                )
        if ends.hears_itself and (ring := _ring_of_dead((*routes, *others))):
            raise SignatureError(_why_refused(ring), parameter="dead", where=ring[0].route.where)

    def check_inproc(self, ends: Ends) -> None:
        """Raise EndpointError for an ``inproc://`` address that nothing can bind.

        libzmq accepts a connect to an ``inproc://`` address before its bind, and waits forever without an error.
        """
        bound = {endpoint.address for endpoint in ends if endpoint.bind}
        for endpoint in ends:
            inside = endpoint.address.startswith("inproc://")
            if inside and endpoint.address not in bound and self.addresses.context.is_private:
                raise EndpointError(
                    f"can't connect to {endpoint.address}: an inproc:// address works only between apps that share a "
                    "context, and no other app shares the context of this app; write App(context=other.context), where "
                    "other is the app that binds the address",
                    endpoint=str(endpoint),
                    where=self.where,
                )

    def __str__(self) -> str:
        return f"<App {self.name!r} at {self.where}>"


def check_not_on_nats(route: CompiledRoute, what: str, where: str) -> None:
    """Raise EndpointError if a route has an option that is not possible on NATS.

    ``what`` is the name of the route in the error.
    """
    if route.options.recover:
        raise EndpointError(
            f"{what} has recover=True, but on NATS subscribers can't ask a publisher for lost messages: remove "
            "recover=True, or run the app on ZeroMQ",
            where=where,
        )
    if route.options.since is not None:
        raise EndpointError(
            f"{what} has since=, but on NATS subscribers can't ask a publisher for earlier messages: remove since=, "
            "or run the app on ZeroMQ",
            where=where,
        )


def check_recovering(routes: Sequence[CompiledRoute], ends: Ends) -> None:
    """Raise SignatureError if ``recover`` or ``since`` of a route has no effect.

    This is the case if no endpoint is on the tracked wire.
    """
    if not ends.sub or any(each.form is None for each in ends.sub):
        return
    for options, where in ((route.options, route.route.where) for route in routes):
        if options.recover or options.since is not None:
            name, value = ("recover", "True") if options.recover else ("since", "…")
            raise SignatureError(
                f"{name}={value} has no effect: all messages arrive in the forms that sub= states, and only on the "
                f"tracked wire can an app ask for lost or earlier messages. Remove {name}=, or add an endpoint of a "
                "zroute app",
                parameter=name,
                where=where,
            )


def check_subjects(routes: Sequence[CompiledRoute]) -> None:
    """Raise PatternError if a pattern of a route is not possible on NATS."""
    for route in routes:
        for pattern in route.patterns:
            _check_subject(pattern, route.route.where)


def _check_subject(pattern: Pattern, where: str) -> None:
    try:
        subject_of(pattern)
    except PatternError as error:
        raise PatternError(str(error), pattern=pattern.text, where=where) from None


def _ring_of_dead(routes: Sequence[CompiledRoute]) -> list[CompiledRoute]:
    """Return a cycle of routes that pass on dead letters, or an empty list.

    Each route in the cycle may receive the dead letters of the previous route. The first route may receive the dead
    letters of the last route. The list begins with the route that comes first in ``routes``.
    """
    failing: dict[Hashable, CompiledRoute] = {}
    for route in routes:
        if route.options.dead is not None:
            failing.setdefault((route.options.dead.shape, *(each.shape for each in route.patterns)), route)
    senders = {
        route: [other for other in failing.values() if _received(route, other) is not None]
        for route in failing.values()
    }
    try:
        TopologicalSorter(senders).prepare()
    except CycleError as error:
        ring: list[CompiledRoute] = error.args[1][1:]
        begin = ring.index(min(ring, key=list(failing.values()).index))
        return ring[begin:] + ring[:begin]
    return []


def _received(route: CompiledRoute, sender: CompiledRoute) -> Pattern | None:
    """Return the pattern of ``route`` that dead letters of ``sender`` may match."""
    dead = sender.options.dead
    return next((each for each in route.patterns if dead is not None and each.meets(dead)), None)


def _why_refused(ring: Sequence[CompiledRoute]) -> str:
    first, *further = ring
    assert first.options.dead is not None
    begin = f"dead={first.options.dead.text!r} of {first.name}"
    end = "The app receives its own messages, so dead letters would loop forever: choose another topic for dead="
    if not further:
        met = _received(first, first)
        assert met is not None
        return f"{begin} matches the handler's own pattern {met.text!r}. {end}"
    names = " and ".join(f"{each.name} at {each.route.where}" for each in further)
    return f"{begin} reaches {names}, whose own dead letters reach {first.name}. {end}"


def reactor_kind(plans: Sequence[Plan]) -> ReactorKind | None:
    """Return the kind of reactor that all ``plans`` need, or None for any.

    Raises:
        UsageError: Two apps need different kinds.
    """
    needing = {plan.addresses.reactor: plan for plan in plans if plan.addresses.reactor is not None}
    if len(needing) > 1:
        texts = " and ".join(f"{plan} needs reactor={kind!r}" for kind, plan in needing.items())
        raise UsageError(f"{texts}: run these apps in separate processes")
    return next(iter(needing), None)


def _missing(parts: Parts, ends: Ends) -> Iterator[str]:
    """Yield the error message for each side that has functions but no endpoint."""
    if parts.routes and not ends.sub:
        route = parts.routes[0]
        yield (
            f"{route.name} at {route.route.where} subscribes, but the app has no endpoint to subscribe to: "
            "write App(sub='tcp://127.0.0.1:5555'), with the address that the publisher binds"
        )
    if parts.outlets and not ends.pub:
        publication = parts.outlets[0].publication
        yield (
            f"publisher({publication.pattern.text!r}) at {publication.where} has no endpoint to publish to: "
            "write App(pub='tcp://127.0.0.1:5556'), with an address that this app binds"
        )
    if parts.replies and not ends.rep:
        route = parts.replies[0]
        yield (
            f"{route.name} at {route.route.where} answers requests, but the app has no endpoint for requests: "
            "write App(rep='tcp://127.0.0.1:5557'), with an address that this app binds"
        )
    if parts.requesters and not ends.req:
        requester = parts.requesters[0].requester
        yield (
            f"requester({requester.pattern.text!r}) at {requester.where} has no endpoint to send requests to: "
            "write App(req='tcp://127.0.0.1:5557'), with the address that the server binds"
        )
    if parts.queues and not ends.jobs:
        queue = parts.queues[0].queue
        yield (
            f"job_queue({queue.pattern.text!r}) at {queue.where} has no endpoint to send jobs from: "
            "write App(jobs='tcp://127.0.0.1:5558'), with an address that this app binds"
        )
    if parts.works and not ends.work:
        route = parts.works[0]
        yield (
            f"{route.name} at {route.route.where} handles jobs, but the app has no endpoint to receive jobs from: "
            "write App(work='tcp://127.0.0.1:5558'), with the address that the owner of the jobs binds"
        )
