"""Build the closure that handles the messages of one topic.

A closure takes ``(body, raw)``: the body, and the frames of the message (``bytes`` for one frame, or a tuple of
several). It returns None or one of the four codes below, and never raises. It passes exceptions and return values other
than None to `DispatchCallbacks`. The closures repeat a few lines on purpose, because a shared helper would cost one
more call per message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from functools import cache, partial
from operator import attrgetter
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, Protocol, TypeAlias

import attrs
from twisted.internet.defer import Deferred

from zroute.codegen import define, define_maker, make_lambda
from zroute.declarations.batching import Lists
from zroute.declarations.records import ErrorHook, HandlerOptions, Route, RouteInfo
from zroute.declarations.replies import replies_of
from zroute.declarations.resources import MessageResources
from zroute.declarations.signatures import NO_BODY, Call
from zroute.errors import EnvelopeError
from zroute.functions import is_coroutine_function, is_generator_function
from zroute.messages.decode_checks import PLAIN_READ
from zroute.messages.topics import Pattern, Topic
from zroute.messages.wire import HEAD_SIZE, HEADER_SIZE, Envelope
from zroute.publishing.publication import Outlet
from zroute.receiving.around import Chain, Here, awaited, finished, from_here, here
from zroute.receiving.flow import BatchFlow, Flow, ReplyFlow
from zroute.receiving.frames import RawFrames
from zroute.receiving.scoped import Scope, scoped
from zroute.stats import RouteStats

__all__ = [
    "COUNTED",
    "DELIVERY",
    "KEY",
    "MALFORMED",
    "TRACKED",
    "UNDECODABLE",
    "Admit",
    "BatchCall",
    "BoundRoute",
    "CompiledRoute",
    "Decode",
    "Deliver",
    "DeliverMaker",
    "DispatchCallbacks",
    "Invocation",
    "KnownHead",
    "Refuse",
    "SharedCall",
    "Step",
    "Surroundings",
    "batching_step",
    "by_head",
    "deliver_maker",
    "invocation",
    "is_shared",
    "make_deliver",
    "share_one_type",
    "shared_call",
]

Decode: TypeAlias = Callable[[bytes], Any]
Deliver: TypeAlias = "Callable[[bytes, RawFrames], int | None]"
DeliverMaker: TypeAlias = "Callable[..., Deliver]"
Admit: TypeAlias = "Callable[..., bool]"
"""Takes the account, the number, the frames and, for a coalesced frame, the number of messages."""
Refuse: TypeAlias = "Callable[[Sequence[BoundRoute], BaseException, bytes, RawFrames], int]"

UNDECODABLE = 1
"""A route could not decode the body. The message counts as routed, and may have further parts."""
TRACKED = 2
"""The body begins with a tracked header that must still be parsed. No route was called, and no counter has changed."""
MALFORMED = 3
"""The closure counted the message as malformed. The message may have further parts."""
COUNTED = 4
"""The closure counted the messages itself: as unrouted, as duplicates, or individually for a coalesced frame."""


@attrs.frozen(eq=False)
class Surroundings:
    """The hooks, resources and middleware that surround the calls of a handler.

    Attributes:
        hooks: The functions for errors, grouped, in the order in which they are tried.
        needs: The resources of a message that the handler and its middleware take, or None.
        scope: Opens these resources in a run.
        chain: The middleware, or None.
        isolated: True if each message gets its own context.
    """

    hooks: tuple[tuple[ErrorHook, ...], ...]
    needs: MessageResources | None = None
    scope: Scope | None = None
    chain: Chain | None = None
    isolated: bool = False

    @property
    def waits(self) -> bool:
        """True if a resource is async, so that a call can't end immediately."""
        return self.needs is not None and self.needs.is_async


@attrs.frozen(eq=False)
class CompiledRoute:
    """A route of one app, ready to be called.

    The prefixes of its patterns are added, the arguments of its function are planned, and its publications and hooks
    are known.

    ``outlets`` publish the return values of the function. ``around`` contains the surroundings of its calls.

    ``stats`` and ``flow`` belong to one run; `attrs.evolve` gives each copy a new ``flow``. If the flow is active, the
    closures do not call the function. They pass the call, a `functools.partial`, to `DispatchCallbacks.settle`, which
    makes the call when the flow allows it. If the route has ``lists``, the closures pass each message to
    `BatchCall.one`.

    ``direct`` is True if the flow makes calls in the simplest way: in the reactor's thread, without retries and without
    a timeout. ``takes_values`` is True if the values of a generator have a receiver: publications, or the caller of a
    request. ``streams`` is True if a reply is a stream of values.
    """

    name: str
    route: Route
    patterns: tuple[Pattern, ...]
    call: Call
    lists: Lists | None
    outlets: tuple[Outlet, ...]
    around: Surroundings
    stats: RouteStats = attrs.field(factory=RouteStats)
    options: HandlerOptions = attrs.field(init=False)
    flow: Flow[Any] = attrs.field(init=False)
    direct: bool = attrs.field(init=False)
    takes_values: bool = attrs.field(init=False)
    streams: bool = attrs.field(init=False)
    may_be_stale: bool = attrs.field(init=False)

    @options.default
    def _options(self) -> HandlerOptions:
        return self.route.options

    @flow.default
    def _flow(self) -> Flow[Any]:
        options, function = self.route.options, self.route.function
        if self.lists is not None:
            return BatchFlow(options.max_in_flight, ordered=options.ordered, queue=options.queue)
        slow = options.thread or is_coroutine_function(function) or is_generator_function(function)
        active = slow or bool(options.retry) or self.around.waits or self.route.kind == "work"
        if self.route.kind == "reply":
            return ReplyFlow(options.max_in_flight, queue=options.queue, active=active)
        return Flow(options.max_in_flight, ordered=options.ordered, queue=options.queue, active=active)

    @direct.default
    def _direct(self) -> bool:
        options = self.route.options
        return not (options.thread or options.retry) and options.timeout is None

    @may_be_stale.default
    def _may_be_stale(self) -> bool:
        return self.route.options.stale_after is not None or self.route.kind == "reply"

    @takes_values.default
    def _takes_values(self) -> bool:
        return bool(self.outlets) or self.route.kind == "reply"

    @streams.default
    def _streams(self) -> bool:
        return self.route.kind == "reply" and replies_of(self.route).are_stream

    @property
    def info(self) -> RouteInfo:
        """The description of the route for users."""
        needs = self.around.needs
        yields = is_generator_function(self.function)
        # A generator opens its resources later, while it runs.
        waits = needs is not None and needs.makes_handler_wait and not yields
        return RouteInfo(
            self.name,
            self.route.kind,
            tuple(pattern.text for pattern in self.patterns),
            None if self.call.schema is NO_BODY else self.call.schema,
            is_coroutine_function(self.function) or waits,
            self.route.where,
            self.lists is not None,
            yields,
        )

    @property
    def function(self) -> Callable[..., Any]:
        """The user's function."""
        return self.route.function

    @property
    def sees_envelopes(self) -> bool:
        """True if the function, its middleware or an error hook takes an `Envelope`."""
        chain = self.around.chain
        return bool(self.call.envelope or any(self.around.hooks) or (chain and chain.needs_frames))

    def fresh(self, call: Call, scope: Scope | None) -> CompiledRoute:
        """Return a copy of this route for a new run, with all counters at zero.

        Args:
            call: The plan for the calls, with the open resources of the run.
            scope: Opens the resources of a message in the run.
        """
        around = self.around if scope is None else attrs.evolve(self.around, scope=scope)
        return CompiledRoute(self.name, self.route, self.patterns, call, self.lists, self.outlets, around)


@attrs.define(eq=False)
class BoundRoute:
    """A route for one topic.

    The cache of topics creates it for each new topic, so it contains only what each message needs. The text of the
    topic is rarely needed, and is computed on each access.

    Attributes:
        route: The route.
        wire: The bytes of the topic.
        pattern: The pattern of the route that matches the topic; None if the captured segments must not be used.
        arguments: The captured segments that the handler takes as parameters, converted to the types of these
            parameters.
        kept: The captured segments as text, for a route that publishes its results; else None.
    """

    route: CompiledRoute
    wire: bytes
    pattern: Pattern | None = None
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    kept: Mapping[str, str] | None = None

    @property
    def topic(self) -> Topic:
        """The topic as text."""
        return Topic.from_wire(self.wire)

    @property
    def captures(self) -> Mapping[str, str]:
        """The captured segments as text."""
        if self.kept is not None:
            return self.kept
        if self.pattern is None or not self.pattern.captures:
            return {}
        found = self.pattern.captured(self.wire.split(self.pattern.separator))
        return {name: segment.decode() for name, segment in found.items()}


@attrs.frozen(eq=False)
class BatchCall:
    """The functions that add the messages of one topic to the batches of a route.

    ``one`` takes a message and its frames. ``several(messages, frames, first)`` takes messages of one coalesced frame.
    ``frames()`` returns the frames of all messages in that frame, and ``first`` is the index of ``messages[0]`` among
    them. ``room`` returns the number of messages that can be added at once, at least 1.
    """

    one: Callable[[Any, RawFrames], None]
    several: Callable[[list[Any], Callable[[], Sequence[bytes]], int], None]
    room: Callable[[], int]


class DispatchCallbacks(Protocol):
    """The methods that handle the results and failures of handlers.

    Results are published. Errors are counted, logged and passed to error hooks. No method raises. All of
    `zroute.receiving` calls these methods; `zroute.receiving.results.Results` implements them for one run.
    """

    def failed(
        self,
        delivery: BoundRoute,
        error: BaseException,
        raw: RawFrames,
        many: int = 1,
        *,
        raws: Sequence[RawFrames] = (),
        attempts: int = 1,
    ) -> None:
        """Handle an error of the function or of its result.

        The error belongs to the last of ``attempts`` calls. The function was called with ``many`` messages; ``raw``
        contains the frames of the first message. If ``many`` is more than 1 and the route has ``dead``, ``raws``
        contains the frames of all messages.
        """

    def attempt_failed(
        self, delivery: BoundRoute, error: BaseException, many: int, attempts: int, delay: float
    ) -> None:
        """Log a failed attempt that is not the last one.

        The next attempt follows after ``delay`` seconds.
        """

    def thread_late(self, delivery: BoundRoute, many: int) -> None:
        """Log that a call in a thread takes longer than the route's timeout."""

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Handle a body that can't be decoded to the common type of ``deliveries``.

        Return `UNDECODABLE`.
        """

    def abandoned(self, raw: RawFrames) -> bool:
        """Return True if the caller of a request no longer waits.

        In this case the handler is not called again.
        """

    def exits(self, error: SystemExit) -> None:
        """Stop the app because a function of ``Frames`` has raised SystemExit."""

    def stale(self, route: CompiledRoute, raw: RawFrames) -> bool:
        """Return True if the message is too old for the route; if so, count the message."""

    def settle(self, delivery: BoundRoute, result: Any, raw: RawFrames) -> None:
        """Handle a result: an awaitable, a generator, or a value to publish.

        If the route's flow is active, ``result`` is the call that must still be made.
        """

    def gather(self, delivery: BoundRoute, function: Callable[..., Any]) -> BatchCall:
        """Return the functions that add messages to the batches for ``function``."""

    def release(self) -> None:
        """Hand over all batches, because no message is waiting to be read."""

    def release_soon(self) -> None:
        """Hand over all batches after at most `BATCH_SECONDS`."""

    def propagated(self, delivery: BoundRoute, raw: RawFrames) -> Mapping[str, Any] | None:
        """Return the headers of a message that are copied to its results, or None."""

    def publish(
        self,
        outlets: Iterable[Outlet],
        value: Any,
        inbound: Mapping[str, object],
        name: str,
        headers: Mapping[str, Any] | None = None,
    ) -> Deferred[None] | None:
        """Publish ``value``, which the function ``name`` returned.

        ``headers`` are copied from the received message; the headers of ``value`` override them.

        Returns:
            A Deferred that fires when the next value can be published, or None if it can be published now.
        """

    @property
    def context(self) -> Context:
        """The context of the run. Handlers get copies of it."""

    @property
    def resources(self) -> Mapping[Any, Any]:
        """The open resources of the app, by type."""

    @property
    def envelope(self) -> Callable[[RawFrames], Envelope]:
        """The function that returns a message as it arrived.

        The envelope is decoded when a field is read. Reading raises EnvelopeError if the header is malformed.
        """

    def unrouted(self, raw: RawFrames) -> None:
        """Count a message whose topic matches no route."""

    def malformed(self, error: EnvelopeError, raw: RawFrames) -> None:
        """Count frames that are not a message."""

    def many_topics(self, known: int) -> None:
        """Log, once, that the topic cache is full; ``known`` is the number of its topics."""

    def many_publishers(self, topic: Topic, known: int) -> None:
        """Log, once, that a topic has more publishers than the cache holds.

        ``known`` is the number of its publishers in the cache.
        """

    def long_topic(self, topic: Topic) -> None:
        """Log a topic that is too long for the cache."""


@attrs.frozen(eq=False)
class InlinedCall:
    """The source text of a call, which uses ``m``, ``raw``, ``stats`` and ``names``.

    ``before`` and ``after`` contain statements to run before and after the call. ``after`` runs if the call raises no
    error; otherwise ``failed`` runs.
    """

    before: str
    expression: str
    after: str
    failed: str
    names: Mapping[str, Any]


@attrs.frozen(eq=False)
class Invocation:
    """The call of a handler, as an expression that the closures contain.

    Attributes:
        function: The function, with its constant arguments bound.
        arguments: The source of the other arguments, which uses ``m``, the decoded body, and ``raw``, the frames.
        names: The other objects that ``arguments`` refers to, by name.
        fresh: Returns the context in which to call the function; None for the current context.
        inlined: The code that `_one` puts into its closure instead of `expression`; None to use `expression`.
    """

    function: Callable[..., Any]
    arguments: str = "m"
    names: Mapping[str, Any] = attrs.field(factory=dict)
    fresh: Callable[[], Context] | None = None
    inlined: InlinedCall | None = None

    @property
    def expression(self) -> str:
        """The source of the call, which uses ``m``, ``raw`` and the names in `scope`."""
        if self.fresh is None:
            return f"function({self.arguments})"
        return f"fresh().run(function, {self.arguments})"

    @property
    def scope(self) -> dict[str, Any]:
        """The names in `expression`."""
        return {"function": self.function, "fresh": self.fresh, **self.names}

    @property
    def takes_body_only(self) -> bool:
        """True if the function takes only the body, by position."""
        return self.arguments == "m"

    def of_message(self) -> Callable[[Any], Any]:
        """Return the call as a function of the decoded body, if it `takes_body_only`."""
        return self.function if self.fresh is None else make_lambda(self.expression, self.scope)

    def of_both(self) -> Callable[[Any, RawFrames], Any]:
        """Return the call as a function of the decoded body and the frames."""
        made: Callable[[Any, RawFrames], Any] = make_lambda(self.expression, self.scope, "m, raw")
        return made


def invocation(delivery: BoundRoute, topic: Topic, outcomes: DispatchCallbacks) -> Invocation:
    """Return the call of a handler for messages of ``topic``.

    The call includes the middleware and the resources of a message.
    """
    route = delivery.route
    call, chain, scope = route.call, route.around.chain, route.around.scope
    function = call.bind(delivery.arguments, delivery.wire)
    if route.lists is not None and route.lists.keyword is not None:
        function = partial(_by_name, function, route.lists.keyword)
    if scope is not None:
        function = (
            partial(from_here, function, scope) if scope.around_chain else scoped(function, scope, route.function)
        )
    later = route.flow.active or route.lists is not None  # the call is made in a context of its own
    context, inlined = outcomes.context, None
    if chain is not None:
        if route.info.is_async and not is_coroutine_function(route.function):
            function = partial(awaited, function)
        current = Here(function, topic, outcomes.envelope, outcomes.resources, chain.names)
        if later:
            function = chain.enter_later(current, scope, route.function, lists=route.lists is not None)
        else:
            function = chain.enter_at_once(current, scope, route.function)
            context = context.copy()
            context.run(here.set, current)
            inlined = _inlined(chain, current, route)
    fresh = context.copy if route.around.isolated and not later else None
    return Invocation(function, *_arguments(call, chain, outcomes), fresh, inlined)


def _inlined(chain: Chain, current: Here, route: CompiledRoute) -> InlinedCall | None:
    """Return the call that `Chain.enter_at_once` makes, as source text.

    Inlining the call saves one Python call per message.
    """
    if route.around.scope is not None and route.around.scope.around_chain:
        return None
    keep, forget = ("; at.raw = raw", "; at.raw = b''") if chain.needs_frames else ("", "")
    clear = f"at.called = None{forget}"
    # `finished` is called only for a value, an awaitable or a skipped message, and `objects` needs no reset,
    # because only a scope around the chain changes it.
    return InlinedCall(
        f"at.called = False; inside = fresh(){keep}",
        f"inside.run(outermost, {'None' if route.call.schema is NO_BODY else 'm'})",
        f"if result is None and at.called: {clear}\n        else: result = finished(result, at, inside)",
        clear,
        {"at": current, "outermost": chain.outermost, "finished": finished},
    )


def _arguments(call: Call, chain: Chain | None, outcomes: DispatchCallbacks) -> tuple[str, Mapping[str, Any]]:
    """Return the arguments of an `Invocation`, and their names."""
    if chain is not None:
        message = "None" if call.schema is NO_BODY else "m"
        return (f"{message}, raw" if chain.needs_frames else message), {}
    arguments = []
    if call.schema is not NO_BODY:
        arguments.append(f"{call.body}=m" if call.by_name else "m")
    if call.envelope:
        arguments.append(f"{call.envelope}=envelope(raw)")
    return ", ".join(arguments), {"envelope": outcomes.envelope} if call.envelope else {}


def _by_name(function: Callable[..., Any], name: str, messages: list[Any], **named: Any) -> Any:
    return function(**{name: messages}, **named)


@attrs.frozen(eq=False)
class Step:
    """A delivery, with the call of its function and its decoder.

    Steps with the same ``slot`` share the object that ``decode`` returns.

    ``settle`` is called with each result that is not None. If ``gather`` is set, messages are added to batches.
    """

    delivery: BoundRoute
    call: Invocation
    decode: Decode | None
    slot: int
    settle: Callable[[BoundRoute, Any, RawFrames], None]
    gather: BatchCall | None = None


def batching_step(delivery: BoundRoute, gather: BatchCall, decode: Decode | None, slot: int) -> Step:
    """Return the step of a route with batches.

    If the topic also has steps of other routes, this step works like a step of an active flow, with `BatchCall.one` as
    the call to make.
    """
    # The closure calls partial(partial, one)(m), which is partial(one, m); `settle` then calls it with the frames.
    call = Invocation(partial(partial, gather.one))
    return Step(delivery, call, decode, slot, lambda _, call, raw: call(raw), gather)


def make_deliver(steps: Sequence[Step], outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    """Return the closure that runs ``steps`` in order, the most specific first.

    Bodies that can't be decoded are passed to ``refuse``.
    """
    if len(steps) == 1:
        (step,) = steps
        deliver: Deliver = deliver_maker(step, outcomes, refuse, None)(step.call.function, step.delivery)
        return deliver
    return (_several_of_one_type if share_one_type(steps) else _any)(steps, outcomes, refuse)


def share_one_type(steps: Sequence[Step]) -> bool:
    """Return True if all functions take the same decoded object, by position."""
    by_position = all(step.decode and step.call.takes_body_only and not _may_be_stale(step) for step in steps)
    return by_position and len({step.slot for step in steps}) == 1


def _may_be_stale(step: Step) -> bool:
    """Return True if the closure must check the age of messages.

    The age of messages that wait in a queue is checked when they leave the queue.
    """
    return step.delivery.route.options.stale_after is not None and not step.delivery.route.flow.active


_HEADER = f"""
    try:
        head, number = unpack(body)
    except rare.StructError:
        return {TRACKED}  # TRACKED
    if head != HEAD:
        {{other}}
    if number == account.expected and number:
        account.expected = number + 1
    elif number and not rare.admit(account, number, raw):
        return {COUNTED}  # COUNTED
    body = body[BODY]"""
"""Reads the header, like `by_head`. Numbers in the source need no cells."""

_GUARD = f"""
    if not body:
        return {TRACKED}"""

_TO_SLOW_PATH, _TO_FRAMES = f"return {TRACKED}  # TRACKED", "return deliver_frame({key}body, raw)"
"""The lines for a frame with another head: it takes the slow path, or it may be a coalesced frame."""

KEY, DELIVERY = "key, ", "rare.delivery(key)"
"""The first parameter of a function that all topics of a handler share, and the source of the `BoundRoute` in it."""

_READ = """
    try:
        {read}
    except BaseException as error:  # also RecursionError, MemoryError and what user code in a schema raises
        return rare.refuse(({delivery},), error, body, raw)"""

_AGE = """
    if rare.stale(rare.route, raw):
        return"""

_CALL = """
    try:
        {before}
        result = {call}
        {after}
    except BaseException as error:  # also SystemExit: the reactor would drop the socket for it
        {failed}
        rare.failed({delivery}, error, raw)
    else:
        if result is None:
            stats.handled += 1
        else:
            rare.settle({delivery}, result, raw)
"""

_GATHER = """
    gather(m, raw)
"""

_HEAD_AND_NUMBER = Struct(f">{HEAD_SIZE}sQ{HEADER_SIZE - HEAD_SIZE - 8 + 1}x").unpack_from
"""Reads the head and the number of a body that has at least one byte after the header."""

_BODY = slice(HEADER_SIZE, None)
"""The bytes after the header. A slice that exists takes 100 instructions less than a new one for each message."""


def by_head(heads: Mapping[bytes, tuple[Any, Deliver]], admit: Admit) -> Deliver:
    """Return the closure of a topic that has several publishers or handlers.

    It compares the number with the account of the head, like a closure for a `KnownHead`, and passes the bytes after
    the header to the closure of the head. It returns `TRACKED` for an unknown head, and for frames without a body.

    Args:
        heads: The account and the closure of each head. The dict may change later.
        admit: Decides about a message whose number is not the expected one.
    """

    def deliver(body: bytes, raw: RawFrames) -> int | None:
        try:
            head, number = _HEAD_AND_NUMBER(body)
        except StructError:
            return TRACKED
        known = heads.get(head)
        if known is None:
            return TRACKED
        account, deliver_body = known
        # `expected` is 0 before the join, and the number 0 means that the message has no number.
        if number == account.expected and number:
            account.expected = number + 1
        elif number and not admit(account, number, raw):
            return COUNTED
        return deliver_body(body[_BODY], raw)

    return deliver


@attrs.frozen(eq=False)
class KnownHead:
    """The head of the only publisher of a topic, and its account.

    ``number`` is the codec number in the head. ``admit`` decides about a message of the account whose number is not the
    expected one.
    """

    head: bytes
    account: Any
    number: int
    admit: Admit


@attrs.frozen(eq=False)
class _Rare:
    """What a closure seldom uses: each name of its own would slow all calls."""

    refuse: Refuse
    failed: Callable[[BoundRoute, BaseException, RawFrames], object]
    stale: Callable[[CompiledRoute, RawFrames], bool]
    settle: Callable[[BoundRoute, Any, RawFrames], None]
    route: CompiledRoute
    admit: Admit | None
    delivery: Callable[[Any], BoundRoute] | None
    StructError: type[Exception] = StructError


def deliver_maker(
    step: Step,
    outcomes: DispatchCallbacks,
    refuse: Refuse,
    known: KnownHead | None,
    *,
    shared: SharedCall | None = None,
    guarded: bool = False,
    frames: Callable[..., int | None] | bool = False,
) -> DeliverMaker:
    """Return a maker of closures for one handler, the usual case.

    The maker takes a function to call and its `BoundRoute`. If only these differ from topic to topic, one maker serves
    all topics of the handler; see `is_shared`. With a ``shared`` call, the result is no maker, but the function of all
    topics, which takes a key in front of the other arguments.

    The code of the decoder is inlined in the closure. A call of the decoder would cost 40 of 720 ns per message (typed
    JSON, plain wire), which is 0.04 of the time of a handwritten loop. For a ``known`` head, the closure also reads the
    header: one look-up of the topic, and one call, then serve the whole message. It returns `TRACKED` for all other
    frames, and for frames without a body. A ``guarded`` closure also returns it for an empty body.

    With ``frames``, the maker takes a third argument: the closure for coalesced frames of the topic. The made closure
    passes all frames with another head to that closure. With a ``shared`` call, ``frames`` is the function for
    coalesced frames of all topics.
    """
    # Only decoders from `make_reader` have lines to inline; PLAIN_READ calls any other decoder.
    inline = getattr(step.decode, "inline", PLAIN_READ)
    call, route = step.call if shared is None else shared.call, step.delivery.route
    inlined = call.inlined or InlinedCall("", call.expression, "", "", {})
    admit, delivery = None if known is None else known.admit, None if shared is None else shared.delivery
    scope = {
        **call.scope,
        **inlined.names,
        "decode": step.decode,
        **inline.names,
        "stats": route.stats,
        "rare": _Rare(refuse, outcomes.failed, outcomes.stale, step.settle, route, admit, delivery),
    }
    if step.gather:
        scope["gather"] = step.gather.one
    if known is not None:
        scope |= {"unpack": _HEAD_AND_NUMBER, "HEAD": known.head, "BODY": _BODY, "account": known.account}
    source = _source(
        None if step.decode is None else inline.lines,
        None if step.gather else (inlined.before, inlined.expression, inlined.after, inlined.failed),
        ages=_may_be_stale(step),
        other=None if known is None else _TO_FRAMES if frames else _TO_SLOW_PATH,
        guarded=guarded,
        shared=shared is not None,
    )
    if shared is not None:
        made: DeliverMaker = define(source, "deliver", scope | {"deliver_frame": frames} if frames else scope)
        return made
    del scope["function"]
    return define_maker(source, "deliver", scope, ("function", "delivery", *(("deliver_frame",) if frames else ())))


def is_shared(route: CompiledRoute) -> bool:
    """Return True if a maker can serve all topics of a handler."""
    around = route.around
    return not (route.flow.active or route.lists or around.chain or around.scope)


@attrs.frozen(eq=False)
class SharedCall:
    """The call of a handler by a function for all its topics.

    The function takes the *key* of a topic in front of the other arguments, and the closure of a topic is a bound
    method of function and key. Beside its entry, a topic then has one object that Python's garbage collector visits,
    instead of six: a function, its cells, a `BoundRoute`, and more. Each full collection visits them all, and with
    100,000 topics most of the time of a new topic was spent there.

    The key is the topic or, if the handler has parameters whose values differ from topic to topic, a tuple of the topic
    and these values. The collector stops visiting a tuple of text and numbers.

    Attributes:
        call: The call. Its arguments use ``key``.
        key: Returns the key of a topic, from its `BoundRoute`.
        delivery: Returns the `BoundRoute` of a key. It is called only for errors and results, and may be slow.
        topic: The source of the topic, which uses ``key``.
    """

    call: Invocation
    key: Callable[[BoundRoute], Any]
    delivery: Callable[[Any], BoundRoute]
    topic: str


def shared_call(
    route: CompiledRoute, deliveries: Callable[[bytes], Sequence[BoundRoute]], outcomes: DispatchCallbacks
) -> SharedCall | None:
    """Return the call of a handler by a function for all its topics, or None.

    The function serves the topics that have no other handler. A handler whose results are published or sent to a caller
    needs the `BoundRoute` for each message, so it has no such function.

    Args:
        route: The route of the handler.
        deliveries: Returns the routes of a topic.
        outcomes: Called with the results and errors of the handler.
    """
    if not is_shared(route) or route.takes_values:
        return None
    call, constants = route.call, route.call.constants
    varying = (*constants.converters, *constants.topic)
    sources = {name: f"key[{place}]" for place, name in enumerate(varying, 1)}
    given = {f"given{place}": value for place, value in enumerate(constants.given.values())}
    sources |= dict(zip(constants.given, given, strict=True))
    before = call.leading(sources)
    message, names = _arguments(call, None, outcomes)
    arguments = [
        *(sources.pop(name) for name in before),
        *([message] if message else []),
        *(f"{name}={source}" for name, source in sources.items()),
    ]
    made = Invocation(
        call.function,
        ", ".join(arguments),
        {**names, **given},
        outcomes.context.copy if route.around.isolated else None,
    )
    # With several patterns, only a search finds the one whose captures count.
    only = route.patterns[0] if len(route.patterns) == 1 or not any(each.captures for each in route.patterns) else None

    def bound(topic: bytes) -> BoundRoute:
        return deliveries(topic)[0] if only is None else BoundRoute(route, topic, only)

    if not varying:
        return SharedCall(made, attrgetter("wire"), bound, "key")
    topics = len(constants.topic)

    def key(delivery: BoundRoute) -> tuple[Any, ...]:
        values = delivery.arguments.values()  # in the order of the converters
        return (delivery.wire, *values, *([delivery.topic] * topics)) if topics else (delivery.wire, *values)

    return SharedCall(made, key, lambda key: bound(key[0]), "key[0]")


@cache
def _source(
    read: tuple[str, ...] | None,
    call: tuple[str, str, str, str] | None,
    *,
    ages: bool,
    other: str | None,
    guarded: bool,
    shared: bool,
) -> str:
    """Return the source of a closure for one handler.

    For a plain handler without `stale_after`, the body is _READ and _CALL, with `m = decode(body)` and
    `result = function(m)`.

    Args:
        read: The lines that decode the body; None for a handler without a body.
        call: The source before the call, of the call, after it, and after an error; None to add the message to a list.
        ages: True to check the age of the message.
        other: The line for a frame with another head; None to read no header.
        guarded: True to refuse an empty body.
        shared: True if the function takes the key of a topic; see `SharedCall`.
    """
    key, delivery = (KEY, DELIVERY) if shared else ("", "delivery")
    header = "" if other is None else _HEADER.format(other=other.format(key=key))
    form = [f"def deliver({key}body, raw):", header, _GUARD if guarded else "", _AGE if ages else ""]
    if read is not None:
        form.append(_READ.format(read="\n        ".join(read), delivery=delivery))
    if call is None:
        form.append(_GATHER)
    else:
        before, expression, after, failed = call
        form.append(_CALL.format(before=before, call=expression, after=after, failed=failed, delivery=delivery))
    return re.sub(r"\n\s*\n", "\n", "".join(form))


_READ_FOR_SEVERAL = """
    try:
        {read}
    except BaseException as error:
        return rare.refuse(error, body, raw)"""

_CALL_OF_SEVERAL = """
    try:
        result = function{at}(m)
    except BaseException as error:
        rare.failed({at}, error, raw)
    else:
        if result is None:
            stats{at}.handled += 1
        else:
            rare.settle({at}, result, raw)"""

_UNROLLED = 16
"""The most handlers whose calls one generated closure contains. Each handler has two cells, and 400 bytes of code."""


@attrs.frozen(eq=False)
class _RareOfSeveral:
    """The functions that a closure for several handlers seldom calls.

    ``index`` is the position of the handler among ``steps``.
    """

    refuse_body: Refuse
    outcomes: DispatchCallbacks
    steps: Sequence[Step]

    def refuse(self, error: BaseException, body: bytes, raw: RawFrames) -> int:
        return self.refuse_body(tuple(step.delivery for step in self.steps), error, body, raw)

    def failed(self, index: int, error: BaseException, raw: RawFrames) -> None:
        self.outcomes.failed(self.steps[index].delivery, error, raw)

    def settle(self, index: int, result: Any, raw: RawFrames) -> None:
        step = self.steps[index]
        step.settle(step.delivery, result, raw)


def _several_of_one_type(steps: Sequence[Step], outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    """Return the closure for handlers that take the same decoded object.

    The closure contains a call for each handler. CPython optimises each of these calls for one function; it can't do so
    with a call in a loop over the functions, which takes a sixth longer.
    """
    decode = steps[0].decode
    assert decode is not None
    if len(steps) > _UNROLLED:
        return _many_of_one_type(steps, decode, outcomes, refuse)
    inline = getattr(decode, "inline", PLAIN_READ)
    scope = {"decode": decode, **inline.names, "rare": _RareOfSeveral(refuse, outcomes, steps)}
    for index, step in enumerate(steps):
        scope |= {f"function{index}": step.call.of_message(), f"stats{index}": step.delivery.route.stats}
    deliver: Deliver = define(_source_for_several(inline.lines, len(steps)), "deliver", scope)
    return deliver


@cache
def _source_for_several(read: tuple[str, ...], handlers: int) -> str:
    """Return the source of a closure for several handlers.

    ``read`` contains the lines that decode the body.
    """
    calls = [_CALL_OF_SEVERAL.format(at=index) for index in range(handlers)]
    return "".join(["def deliver(body, raw):", _READ_FOR_SEVERAL.format(read="\n        ".join(read)), *calls, "\n"])


def _many_of_one_type(steps: Sequence[Step], decode: Decode, outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    deliveries = tuple(step.delivery for step in steps)
    calls = tuple((step.call.of_message(), step.delivery, step.delivery.route.stats, step.settle) for step in steps)

    def deliver(body: bytes, raw: RawFrames) -> int | None:
        try:
            message = decode(body)
        except BaseException as error:
            return refuse(deliveries, error, body, raw)
        for function, delivery, stats, settle in calls:
            try:
                result = function(message)
            except BaseException as error:
                outcomes.failed(delivery, error, raw)
            else:
                if result is None:
                    stats.handled += 1
                else:
                    settle(delivery, result, raw)
        return None

    return deliver


def _any(steps: Sequence[Step], outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    """Return the closure for all other combinations of steps.

    Their handlers take several types, no body, or an envelope, or have ``stale_after``.
    """
    sharing = {step.slot: tuple(other.delivery for other in steps if other.slot == step.slot) for step in steps}
    calls: list[tuple[Step, Callable[..., Any], bool, bool]] = [
        (step, step.call.of_message(), False, _may_be_stale(step))
        if step.call.takes_body_only
        else (step, step.call.of_both(), True, _may_be_stale(step))
        for step in steps
    ]

    def deliver(body: bytes, raw: RawFrames) -> int | None:
        decoded: dict[int, Any] = {}
        undecodable: set[int] = set()
        for step, call, takes_frames, ages in calls:
            if ages and outcomes.stale(step.delivery.route, raw):
                continue
            slot = step.slot
            if step.decode and slot not in decoded and slot not in undecodable:
                try:
                    decoded[slot] = step.decode(body)
                except BaseException as error:
                    undecodable.add(slot)
                    if refuse(sharing[slot], error, body, raw) == TRACKED:
                        return TRACKED  # no decoder takes such a body, so no function has been called
            if slot in undecodable:
                continue
            try:
                # A step without a body has no decoded object: its call ignores the None.
                result = call(decoded.get(slot), raw) if takes_frames else call(decoded.get(slot))
            except BaseException as error:
                outcomes.failed(step.delivery, error, raw)
            else:
                if result is None:
                    step.delivery.route.stats.handled += 1
                else:
                    step.settle(step.delivery, result, raw)
        return UNDECODABLE if undecodable else None

    return deliver
