"""Build the deliver closure of a topic, which handles each message of that topic.

A closure takes ``(body, raw)``: the body, and the frames of the message (one ``bytes``, or a tuple of several). It
returns None or one of the four codes below, and never raises. It passes exceptions and return values other than None
to `DispatchCallbacks`. The closures repeat a few lines on purpose: a shared helper would cost one call for each
message.
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
"""A route could not decode the body. The message counts as routed, and may continue in further parts."""
TRACKED = 2
"""The body begins with a tracked header that is still to be read. No route was called and no counter has changed."""
MALFORMED = 3
"""The closure counted the message as malformed. The message may continue in further parts."""
COUNTED = 4
"""The closure counted the messages itself: as unrouted, as duplicate, or one by one for a coalesced frame."""


@attrs.frozen(eq=False)
class CompiledRoute:
    """A route of one app, ready to call.

    Its prefixes are joined, its parameters planned, and its publications and hooks found.

    ``outlets`` publish the return values of the function. ``hooks`` are tried for its errors, group by group.

    ``stats`` and ``flow`` belong to one run: `attrs.evolve` gives the copy a ``flow`` of its own. If the flow is
    active, the closures do not call the function. They pass the call, a `functools.partial`, to
    `DispatchCallbacks.settle`, which makes it in its turn. If the route has ``lists``, they pass each message to
    `BatchCall.one`.
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
    """A route for one topic, with the segments that its pattern captured.

    ``captures`` holds them as text, ``arguments`` converted.
    """

    route: CompiledRoute
    topic: Topic
    captures: Mapping[str, str]
    arguments: Mapping[str, Any]


@attrs.frozen(eq=False)
class BatchCall:
    """The callables that add the messages of one topic to the batches of a route.

    ``one`` takes a message and its frames. ``several`` takes messages of a coalesced frame, a function that returns the
    frames of all its messages, and the index of the first of these messages among them. ``room`` returns the number of
    messages that can be added at once, at least 1.
    """

    one: Callable[[Any, RawFrames], None]
    several: Callable[[list[Any], Callable[[], Sequence[bytes]], int], None]
    room: Callable[[], int]


class DispatchCallbacks(Protocol):
    """Handle results and failures of handlers.

    Results are published, errors are counted, logged and passed to error hooks.

    No method raises, except `envelope`. All of `zroute.receiving` calls these methods;
    `zroute.receiving.results.Results` implements them for one run.
    """

    def failed(self, delivery: BoundRoute, error: BaseException, raw: RawFrames, many: int = 1) -> None:
        """Handle an error of the function or of its result.

        It was called with ``many`` messages, the first is ``raw``.
        """

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Handle a body that is not of the type that these deliveries share.

        Return `UNDECODABLE`.
        """

    def stale(self, delivery: BoundRoute, raw: RawFrames) -> bool:
        """Return True if the message is too old for the route, and count it."""

    def settle(self, delivery: BoundRoute, result: Any, raw: RawFrames) -> None:
        """Handle a result: an awaitable, a generator, or a value to publish.

        If the route's flow is active, ``result`` is the call that is still to be made.
        """

    def gather(self, delivery: BoundRoute, function: Callable[..., Any]) -> BatchCall:
        """Return the callables that add messages to the batches for ``function``."""

    def release(self) -> None:
        """Hand over all batches: no message waits to be read."""

    def release_soon(self) -> None:
        """Hand the batches over soon."""

    def publish(
        self, outlets: Iterable[CompiledPublication], value: Any, inbound: Mapping[str, object], name: str
    ) -> Deferred[None] | None:
        """Publish ``value``, which the function ``name`` returned.

        Returns:
            A Deferred that fires when the next value need not wait any more, or None if it need not wait.
        """

    def envelope(self, raw: RawFrames) -> Envelope:
        """Return the message as it arrived.

        Raises EnvelopeError if its header is malformed.
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
class Step:
    """A delivery with its bound function.

    Steps with the same ``slot`` share the object that ``decode`` returns.

    ``settle`` is called with each result that is not None. If ``gather`` is set, messages are added to batches.
    """

    delivery: BoundRoute
    function: Callable[..., Any]
    decode: Decode | None
    slot: int
    settle: Callable[[BoundRoute, Any, RawFrames], None]
    gather: BatchCall | None = None


def batching_step(delivery: BoundRoute, gather: BatchCall, decode: Decode | None, slot: int) -> Step:
    """Return the step of a route with batches.

    Beside steps of other routes it works like that of an active flow, with `BatchCall.one` as the call to make.
    """
    return Step(delivery, partial(partial, gather.one), decode, slot, lambda _, call, raw: call(raw), gather)


def make_deliver(steps: Sequence[Step], outcomes: DispatchCallbacks, refuse: Refuse) -> Deliver:
    """Return the closure that runs ``steps`` in their order, most specific first.

    ``refuse`` is called with bodies that can't be decoded.
    """
    if share_one_type(steps):
        return _one(steps[0], outcomes, refuse) if len(steps) == 1 else _several_of_one_type(steps, outcomes, refuse)
    return _any(steps, outcomes, refuse)


def share_one_type(steps: Sequence[Step]) -> bool:
    """Return True if all functions take the body by position, and as the same object."""
    by_position = all(
        step.decode and not step.delivery.route.call.by_name and not _may_be_stale(step) for step in steps
    )
    return by_position and len({step.slot for step in steps}) == 1


def _may_be_stale(step: Step) -> bool:
    """Return True if the closure checks the age.

    For messages that wait, it is checked when their turn comes.
    """
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
    """Return the closure for one handler that takes the body, the usual case.

    The code of the decoder is inlined in the closure. A call instead costs 40 of 720 ns per message (typed JSON, plain
    wire): 0.04 of a hand-written loop.
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
    """Return the closure for all other cases.

    It serves several types, and handlers without body, with envelope, or with ``stale_after``.
    """
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
