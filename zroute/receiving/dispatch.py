"""The deliver closures: what is done for each message of one topic, once everything else is known.

A closure takes ``(body, raw)``: the body, and the frames it came in (one bytes, or
a tuple of several). It returns None, or one of the four codes below, and raises nothing: what handlers raise and
return beyond None goes to `DispatchCallbacks`. The closures repeat the same few lines on purpose: a shared helper would
be a call per message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import attrs
from twisted.internet.defer import Deferred

from zroute.codegen import define
from zroute.declarations.batching import Lists
from zroute.declarations.records import ErrorHook, HandlerOptions, Route
from zroute.declarations.signatures import NO_BODY, Call
from zroute.errors import EnvelopeError
from zroute.functions import is_coroutine_function, is_generator_function
from zroute.messages.decode_checks import Inline
from zroute.messages.topics import Pattern, Topic
from zroute.messages.wire import Envelope
from zroute.publishing.publication import CompiledPublication
from zroute.receiving.flow import BatchFlow, Flow
from zroute.receiving.frames import RawFrames
from zroute.stats import RouteStats

__all__ = [
    "COUNTED",
    "MALFORMED",
    "TRACKED",
    "UNDECODABLE",
    "BatchCall",
    "BoundRoute",
    "CompiledRoute",
    "Decode",
    "Deliver",
    "DispatchCallbacks",
    "Step",
    "batching_step",
    "make_deliver",
    "share_one_type",
]

Decode: TypeAlias = Callable[[bytes], Any]
Deliver: TypeAlias = "Callable[[bytes, RawFrames], int | None]"
Refuse: TypeAlias = "Callable[[Sequence[BoundRoute], BaseException, bytes, RawFrames], int]"

UNDECODABLE = 1
"""At least one route could not read the body: the message counts as routed; further parts may belong to it."""
TRACKED = 2
"""The body has a tracked header that is still to be read: no route was given the message, and no counter has it."""
MALFORMED = 3
"""The closure counted the message as malformed; further parts may belong to it."""
COUNTED = 4
"""The closure counted its messages itself: as unrouted or duplicate, or each of a coalesced frame by itself."""


@attrs.frozen(eq=False)
class CompiledRoute:
    """A route of one app, ready to call: prefixes joined, parameters planned, publications and hooks found.

    ``outlets`` publish what the function returns; ``hooks`` are tried for its errors, group by group.
    ``stats`` and ``flow`` are those of one run: an evolved route has a ``flow`` of its own. Where the flow is active,
    the closures do not call the function: they give `DispatchCallbacks.settle` the call, a `functools.partial`, to make
    it when its turn has come. With ``lists`` they give each message to `BatchCall.one`.
    """

    name: str
    route: Route
    patterns: tuple[Pattern, ...]
    call: Call
    lists: Lists | None
    outlets: tuple[CompiledPublication, ...]
    hooks: tuple[tuple[ErrorHook, ...], ...]
    stats: RouteStats = attrs.field(factory=RouteStats)
    options: HandlerOptions = attrs.field(init=False)
    flow: Flow[Any] = attrs.field(init=False)

    @options.default
    def _options(self) -> HandlerOptions:
        return self.route.options

    @flow.default
    def _flow(self) -> Flow[Any]:
        options, function = self.route.options, self.route.function
        if self.lists is not None:
            return BatchFlow(options.max_in_flight, ordered=options.ordered, queue=options.queue)
        slow = options.thread or is_coroutine_function(function) or is_generator_function(function)
        return Flow(options.max_in_flight, ordered=options.ordered, queue=options.queue, active=slow)

    def fresh(self) -> CompiledRoute:
        """Return this route with counters at zero and nothing in flight, for a new run."""
        return attrs.evolve(self, stats=RouteStats())


@attrs.frozen(eq=False)
class BoundRoute:
    """One route for one topic: the segments its pattern captured, as text and converted."""

    route: CompiledRoute
    topic: Topic
    captures: Mapping[str, str]
    arguments: Mapping[str, Any]


@attrs.frozen(eq=False)
class BatchCall:
    """Where the messages of one topic go that are handed over in lists.

    ``one`` takes a message with its frames; ``several`` takes messages, what makes the frames of all that came with
    them, and where among these they begin. ``room`` says for how many there is room at once, 1 at least.
    """

    one: Callable[[Any, RawFrames], None]
    several: Callable[[list[Any], Callable[[], Sequence[bytes]], int], None]
    room: Callable[[], int]


class DispatchCallbacks(Protocol):
    """What becomes of a message that was not just handled. No method raises, except `envelope`.

    Everything on the way in calls these; `zroute.receiving.results.Results` implements them for a run.
    """

    def failed(self, delivery: BoundRoute, error: BaseException, raw: RawFrames, many: int = 1) -> None:
        """The function raised, or what it returned failed; it was given ``many`` messages, ``raw`` is the first."""

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """The body is not of the type these deliveries share. Returns `UNDECODABLE`."""

    def stale(self, delivery: BoundRoute, raw: RawFrames) -> bool:
        """Whether the message is too old for the route, which is counted."""

    def settle(self, delivery: BoundRoute, result: Any, raw: RawFrames) -> None:
        """The function returned something: an awaitable, a generator, or what is to be published.

        Where the route's flow is active, ``result`` is the call that is still to be made.
        """

    def gather(self, delivery: BoundRoute, function: Callable[..., Any]) -> BatchCall:
        """What takes the messages of a delivery whose route has lists; ``function`` will be given these."""

    def release(self) -> None:
        """Nothing more waits to be read: hand over all lists."""

    def release_soon(self) -> None:
        """Hand them over before long, if they are not before."""

    def publish(
        self, outlets: Iterable[CompiledPublication], value: Any, inbound: Mapping[str, object], name: str
    ) -> Deferred[None] | None:
        """The function ``name`` returned ``value``; None, or what fires when that need not wait any more."""

    def envelope(self, raw: RawFrames) -> Envelope:
        """The message as it arrived. Raises EnvelopeError."""

    def unrouted(self, raw: RawFrames) -> None:
        """No route takes this topic."""

    def malformed(self, error: EnvelopeError, raw: RawFrames) -> None:
        """These frames are no message."""

    def many_topics(self, known: int) -> None:
        """Log, once, that the cache is full; ``known`` is the number of topics in it."""

    def many_publishers(self, topic: Topic, known: int) -> None:
        """Log, once, that a topic has more publishers than the cache holds; ``known`` is their number in it."""

    def long_topic(self, topic: Topic) -> None:
        """A topic is too long to be kept."""


@attrs.frozen(eq=False)
class Step:
    """A delivery with its bound function; steps of one ``slot`` share the object that ``decode`` makes.

    ``settle`` is given what the function returns, unless that is None. With ``gather`` messages go into lists.
    """

    delivery: BoundRoute
    function: Callable[..., Any]
    decode: Decode | None
    slot: int
    settle: Callable[[BoundRoute, Any, RawFrames], None]
    gather: BatchCall | None = None


def batching_step(delivery: BoundRoute, gather: BatchCall, decode: Decode | None, slot: int) -> Step:
    """The step of a route with lists. Among others it is like one of an active flow: `BatchCall.one` is its call."""
    return Step(delivery, partial(partial, gather.one), decode, slot, lambda _, call, raw: call(raw), gather)


def make_deliver(steps: Sequence[Step], outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    """The closure that does ``steps``, most specific first; ``refuse`` is told of bodies that don't decode."""
    if share_one_type(steps):
        return _one(steps[0], outcomes, refuse) if len(steps) == 1 else _several_of_one_type(steps, outcomes, refuse)
    return _any(steps, outcomes, refuse)


def share_one_type(steps: Sequence[Step]) -> bool:
    """Whether each function is given the body by position, and all the same object."""
    by_position = all(
        step.decode and not step.delivery.route.call.by_name and not _may_be_stale(step) for step in steps
    )
    return by_position and len({step.slot for step in steps}) == 1


def _may_be_stale(step: Step) -> bool:
    """Whether its age is looked at here: where messages wait, it is when their turn has come."""
    return step.delivery.route.options.stale_after is not None and not step.delivery.route.flow.active


_ONE = """
def deliver(body, raw):
    try:
        {read}
    except BaseException as error:  # also RecursionError, MemoryError and what user code in a schema raises
        return refuse(deliveries, error, body, raw)
    try:
        result = function(m)
    except BaseException as error:  # also SystemExit: the reactor would drop the socket for it
        failed(delivery, error, raw)
    else:
        if result is None:
            stats.handled += 1
        else:
            settle(delivery, result, raw)
"""

_ONE_OF_A_LIST = """
def deliver(body, raw):
    try:
        {read}
    except BaseException as error:
        return refuse(deliveries, error, body, raw)
    gather(m, raw)
"""


def _one(step: Step, outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    """One handler, given the body: by far the most frequent case.

    The reader's own lines stand in the closure. Calling it instead costs 40 of 720 ns a message (typed
    JSON, plain wire): 0.04 of a hand-written loop.
    """
    delivery, inline = step.delivery, getattr(step.decode, "inline", _CALL)
    scope = {
        "decode": step.decode,
        **inline.names,
        "function": step.function,
        "delivery": delivery,
        "deliveries": (delivery,),
        "stats": delivery.route.stats,
        "refuse": refuse,
        "failed": outcomes.failed,
        "settle": step.settle,
        "gather": step.gather and step.gather.one,
    }
    form = _ONE_OF_A_LIST if step.gather else _ONE
    deliver: Deliver = define(form.format(read="\n        ".join(inline.lines)), "deliver", scope)
    return deliver


_CALL = Inline(("m = decode(body)",), {})


def _several_of_one_type(steps: Sequence[Step], outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    decode = steps[0].decode
    assert decode is not None
    deliveries = tuple(step.delivery for step in steps)
    calls = tuple((step.function, step.delivery, step.delivery.route.stats, step.settle) for step in steps)

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
    """The general form: several types, no body, envelopes, messages that may be too old."""
    sharing = {step.slot: tuple(other.delivery for other in steps if other.slot == step.slot) for step in steps}
    aging = frozenset(step for step in steps if _may_be_stale(step))
    envelope_of = outcomes.envelope
    wants_envelope = any(step.delivery.route.call.envelope for step in steps)

    def deliver(body: bytes, raw: RawFrames) -> int | None:
        try:
            envelope = envelope_of(raw) if wants_envelope else None
        except EnvelopeError:  # only in the loop, which has not looked at the header: the long way refuses it
            return TRACKED
        decoded: dict[int, Any] = {}
        undecodable: set[int] = set()
        for step in steps:
            if step in aging and outcomes.stale(step.delivery, raw):
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
                result = _call(step, decoded.get(slot), envelope)
            except BaseException as error:
                outcomes.failed(step.delivery, error, raw)
            else:
                if result is None:
                    step.delivery.route.stats.handled += 1
                else:
                    step.settle(step.delivery, result, raw)
        return UNDECODABLE if undecodable else None

    return deliver


def _call(step: Step, message: Any, envelope: Envelope | None) -> Any:
    call = step.delivery.route.call
    if not call.by_name:
        return step.function() if call.schema is NO_BODY else step.function(message)
    dynamic: dict[str, Any] = {}
    if call.body:
        dynamic[call.body] = message
    if call.envelope:
        dynamic[call.envelope] = envelope
    return step.function(**dynamic)
