"""Dispatch the messages of a coalesced frame: several messages of one topic.

There are three ways, from the fastest to the most general. In all of them, each message is counted, handled and
reported individually:

- **One function for a whole frame** (`frame_maker`), for a topic with one plain handler. The function is generated for
  a handler and the head of a publisher. It reads the header and the number of messages, makes all checks, decodes the
  list and calls the handler. If a frame is unusual in any way, the function changes nothing and returns `TRACKED`, and
  one of the other ways delivers the frame.
- **One call that decodes the list, and a loop** (`make_deliver_coalesced`), if all handlers take the body by position,
  and as the same type.
- **Single messages**, for other handlers, and if a body is malformed or consists of two JSON values. Each message is
  dispatched as if it had arrived alone, in a frame of its own.

Handling a frame must not take longer than one read (`READ_SECONDS`), so the loop checks the clock every few messages.
Messages that remain when the time is up, or when reading is paused, wait in `Remainder`. The next read of the socket
delivers them first.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from operator import length_hint
from struct import Struct
from time import perf_counter
from typing import Any

import attrs

from zroute.codegen import define, define_maker
from zroute.messages.coalesced import END, LISTS, Coalesced
from zroute.messages.decode_checks import PLAIN_READ
from zroute.messages.wire import HEAD_SIZE, HEADER_SIZE
from zroute.options import COALESCED_MAX, READ_SECONDS, READ_SLICE
from zroute.receiving.dispatch import (
    COUNTED,
    DELIVERY,
    KEY,
    TRACKED,
    Admit,
    BatchCall,
    BoundRoute,
    Decode,
    DispatchCallbacks,
    KnownHead,
    SharedCall,
    Step,
)
from zroute.receiving.frames import RawFrames
from zroute.stats import Stats

__all__ = [
    "DeliverCoalesced",
    "FrameContext",
    "FrameMaker",
    "Loss",
    "Remainder",
    "Single",
    "frame_maker",
    "make_deliver_coalesced",
]

Single = tuple[bytes, int, bytes, RawFrames]
"""A message of a coalesced frame: topic, codec number, body, and the frame as if the message had been sent alone.

Messages that a recovery has held have the same form.
"""

Loss = tuple[None, Callable[[], None]]
"""A loss between such messages: a function that reports it."""

DeliverCoalesced = Callable[[Coalesced, Callable[[], Sequence[bytes]]], int]
"""A function that takes ``(coalesced, its frames)``, calls the handlers, and returns the number of delivered messages.

If the list cannot be decoded, or does not have the announced length, the function calls no handler and returns 0. After
`Remainder.hold`, or when the time is up, it returns less than the length of the list.
"""


FrameMaker = Callable[..., Any]
"""A function that returns the closure for whole frames of one topic.

It takes the function to call, its `BoundRoute`, and the offset of the header in a frame of the topic.
"""


@attrs.define(eq=False)
class Remainder:
    """The messages of coalesced frames that are not delivered yet.

    `hold` empties the list over which the delivering loop iterates, which ends the loop. The loop therefore needs no
    check for each message.

    Attributes:
        rest: The messages that the next call of `RouteTable.receive` delivers first.
        most: The maximum number of messages of one frame that a call of `RouteTable.receive` delivers, or None.
        messages: The messages of the current frame, which `hold` removes.
        loop: The iterator over ``messages``.
        held: The number of messages that `hold` has removed; 0 before.
    """

    rest: deque[Single | Loss] = attrs.field(factory=deque)
    most: int | None = None
    messages: list[Any] = attrs.field(factory=list)
    loop: Iterator[Any] = attrs.field(factory=lambda: iter(()))
    held: int = 0

    def slices(self, messages: list[Any]) -> Iterator[Iterator[Any]]:
        """Yield ``messages`` a few at a time, for up to `READ_SECONDS`.

        See `zroute.sockets.connection`.
        """
        self.messages, self.loop, self.held = messages, iter(messages), 0
        began, size = perf_counter(), READ_SLICE
        while length_hint(self.loop):
            yield islice(self.loop, size)
            spent = perf_counter() - began
            if spent > READ_SECONDS:
                break
            # The handlers are fast: look at the clock after every 64 messages instead of 16.
            if spent < READ_SECONDS / 32:
                size = READ_SLICE * 4

    @property
    def left(self) -> int:
        """The number of messages that the loops have not delivered yet."""
        # The length hint of a list iterator is exact. It is 0 after `hold`.
        return length_hint(self.loop) + self.held

    def hold(self) -> None:
        """End the loops after the current message."""
        self.held = self.left
        self.messages.clear()


@attrs.frozen(eq=False)
class FrameContext:
    """The objects that the closures for whole frames share with their table.

    Attributes:
        unpacked: The messages that are not delivered yet.
        stats: The counters of the app.
        admit: Decides about a frame whose first number is not the expected one.
        split: Takes the topic and a frame. Returns the frames that the messages would have alone.
        use_up: Takes the number of messages of a frame. They use up the budget of the loop, which counts the frame as
            one message.
        keep: Takes the topic, a frame, and the number of messages that are left. Adds them to `Remainder.rest`, and
            ends the reading.
        note: Takes the epoch, the topic and the fixed part of a header. Records a message that its publisher keeps.
    """

    unpacked: Remainder
    stats: Stats
    admit: Admit
    split: Callable[[bytes, bytes], Sequence[bytes]]
    use_up: Callable[[int], None]
    keep: Callable[[bytes, bytes, int], None]
    note: Callable[[int, bytes, bytes], None]


@attrs.frozen(eq=False)
class _Rare:
    """The functions that a closure for whole frames calls seldom."""

    admit: Admit
    split: Callable[[bytes, bytes], Sequence[bytes]]
    keep: Callable[[bytes, bytes, int], None]
    settle: Callable[[BoundRoute, Any, RawFrames], None]
    failed: Callable[[BoundRoute, BaseException, RawFrames], object]
    delivery: Callable[[Any], BoundRoute] | None


_READ_FRAME = f"""
def deliver({{key}}body, raw):
    {{place}}
    try:
        head, number, many = unpack(raw, at)
        if head != HEAD or unpacked.most is not None:
            return {TRACKED}  # TRACKED
        start = at + {HEADER_SIZE + END.size} + {END.size} * many
        body = raw[start:]
        end = raw[start - 2] << 8 | raw[start - 1]
        if not 0 < many <= {COALESCED_MAX} or len(body) != end + {{behind}} or not ({{is_list}}):
            return {TRACKED}  # TRACKED
        {{read}}
        if len(m) != many:
            return {TRACKED}  # TRACKED
    except BaseException:  # each message is then decoded separately, which finds the malformed one
        return {TRACKED}  # TRACKED
    if number == account.expected > 0:
        account.expected = number + many
    elif number and not rare.admit(account, number, raw, many):
        return {COUNTED}  # COUNTED
"""
"""Reads a frame like `parse_coalesced` and `_decoded`, and its number like `RouteTable.receive`."""

_NOTE = f"""
    note(EPOCH, {{topic}}, raw[at:at + {HEADER_SIZE}])
"""

_CALL_EACH = f"""
    unpacked.messages, unpacked.held = m, 0
    unpacked.loop = loop = iter(m)
    some, size, left, frames, unhandled = loop, many, many, None, 0
    if many > {READ_SLICE}:
        size, began = {READ_SLICE}, clock()
        some = islice(loop, size)
    while True:
        try:
            for m in some:
                if (result := {{call}}) is not None:
                    unhandled += 1
                    frames = frames or rare.split({{topic}}, raw)
                    rare.settle({{delivery}}, result, frames[many - unpacked.left - 1])
        except BaseException as error:  # also SystemExit: the reactor would drop the socket for it
            unhandled += 1
            frames = frames or rare.split({{topic}}, raw)
            rare.failed({{delivery}}, error, frames[many - unpacked.left - 1])
            continue  # with the message after the failed one
        left -= size
        if left <= 0:
            left = unpacked.held
            break
        spent = clock() - began
        if spent > {READ_SECONDS}:
            left = unpacked.left
            break
        if spent < {READ_SECONDS / 32}:
            size = {READ_SLICE * 4}
        some = islice(loop, size)
    done = many - left
    stats.handled += done - unhandled
    total.received += done - 1
    total.routed += done - 1
    if left:
        rare.keep({{topic}}, raw, left)
    else:
        use_up(many)
"""
"""Calls the handler for each message, like `make_deliver_coalesced` with `Remainder.slices`.

The loop of the table counts the frame as one message, and has one round for it.
"""

_HEAD_NUMBER_AND_COUNT = Struct(f">{HEAD_SIZE}sQ{HEADER_SIZE - HEAD_SIZE - 8}xH").unpack_from


def frame_maker(
    step: Step,
    decode: Decode,
    known: KnownHead,
    context: FrameContext,
    outcomes: DispatchCallbacks,
    *,
    keeps: int | None,
    shared: SharedCall | None = None,
) -> FrameMaker:
    """Return a maker of closures that deliver whole frames with a ``known`` head.

    A closure takes ``(body, raw)`` and ignores ``body``, so a caller may pass it with or without the header. ``raw``
    must be one frame of at most `LARGE_FRAME` bytes. The closure returns None if it has delivered the frame, `COUNTED`
    if the frame must not be delivered now, and `TRACKED` in all other cases, in which it has changed nothing.

    If only function and topic differ from topic to topic, one maker serves all topics of the handler; see `is_shared`.

    Args:
        step: The step. Its function takes the body by position, and its flow is not active.
        decode: Decodes the list of messages.
        known: The head, its account, and the number of a codec in `LISTS`.
        context: The objects that the closures share with their table.
        outcomes: Called with results and errors of the function.
        keeps: The epoch in the head, if the publisher keeps its messages; else None.
        shared: The call for all topics. The result is then no maker, but the function of all topics, which takes a key
            in front of the other arguments.
    """
    inline = getattr(decode, "inline", PLAIN_READ)
    call, delivery = (step.call, None) if shared is None else (shared.call, shared.delivery)
    names = {
        **call.scope,
        "decode": decode,
        **inline.names,
        "unpack": _HEAD_NUMBER_AND_COUNT,
        "HEAD": known.head,
        "account": known.account,
        "unpacked": context.unpacked,
        "islice": islice,
        "clock": perf_counter,
        "stats": step.delivery.route.stats,
        "total": context.stats,
        "use_up": context.use_up,
        "rare": _Rare(context.admit, context.split, context.keep, step.settle, outcomes.failed, delivery),
    }
    if keeps is not None:
        names |= {"note": context.note, "EPOCH": keeps}
    topic = None if shared is None else shared.topic
    source = _source(inline.lines, call.expression, known.number, keeps=keeps is not None, topic=topic)
    if shared is not None:
        made: FrameMaker = define(source, "deliver", names)
        return made
    del names["function"]
    return define_maker(source, "deliver", names, ("function", "delivery", "at"))


@cache
def _source(read: tuple[str, ...], call: str, codec: int, *, keeps: bool, topic: str | None) -> str:
    """Return the source of a closure for whole frames.

    Args:
        read: The lines that decode the list ``body`` to ``m``.
        call: The source of the call for a message ``m``.
        codec: The number of the codec.
        keeps: True if the publisher keeps its messages.
        topic: The source of the topic, if the function takes the key of a topic (see `SharedCall`); else None.
    """
    behind, is_list = LISTS[codec]
    key, delivery, place = ("", "delivery", "") if topic is None else (KEY, DELIVERY, f"at = len({topic}) + 1")
    topic = topic or "delivery.wire"
    form = [_READ_FRAME.format(key=key, place=place, behind=behind, is_list=is_list, read="\n        ".join(read))]
    if keeps:
        form.append(_NOTE.format(topic=topic))
    form.append(_CALL_EACH.format(call=call, topic=topic, delivery=delivery))
    return re.sub(r"\n\s*\n", "\n", "".join(form)).strip()


def make_deliver_coalesced(
    steps: Sequence[Step], decode: Callable[[bytes], Any], unpacked: Remainder, outcomes: DispatchCallbacks
) -> DeliverCoalesced:
    """Return a function that passes the messages of coalesced frames to ``steps``.

    Args:
        steps: The steps. Their functions take the body by position, and as the same type.
        decode: Decodes the list of messages.
        unpacked: Stores the messages that are left when the loop ends early.
        outcomes: Called with results and errors of the functions.
    """
    if len(steps) == 1 and steps[0].gather is not None:
        return _batched(steps[0].gather, decode, unpacked)
    if len(steps) > 1:
        return _several(steps, decode, unpacked, outcomes)
    (step,) = steps
    function, delivery, stats, settle = step.call.of_message(), step.delivery, step.delivery.route.stats, step.settle

    def deliver_coalesced(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        unhandled = 0
        for some in unpacked.slices(messages):
            # An error leaves the `for` loop; the next pass continues after the failed message.
            while True:
                try:
                    for message in some:
                        if (result := function(message)) is not None:
                            unhandled += 1
                            # `left` does not include the current message, so this is its index among the frames.
                            settle(delivery, result, frames()[many - unpacked.left - 1])
                    break
                except BaseException as error:
                    unhandled += 1
                    outcomes.failed(delivery, error, frames()[many - unpacked.left - 1])
        done = many - unpacked.left
        stats.handled += done - unhandled
        return done

    return deliver_coalesced


def _decoded(coalesced: Coalesced, decode: Callable[[bytes], Any]) -> list[Any] | None:
    """Return the messages, or None if a message is malformed or the number is wrong."""
    try:
        messages: list[Any] = decode(coalesced.listing)
    except BaseException:  # each message is then decoded separately, which finds the malformed one
        return None
    return messages if len(messages) == coalesced.many else None


def _several(
    steps: Sequence[Step], decode: Callable[[bytes], Any], unpacked: Remainder, outcomes: DispatchCallbacks
) -> DeliverCoalesced:
    calls = tuple((step.call.of_message(), step.delivery, step.delivery.route.stats, step.settle) for step in steps)

    def deliver_coalesced(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        for some in unpacked.slices(messages):
            for message in some:
                for function, delivery, stats, settle in calls:
                    try:
                        result = function(message)
                    except BaseException as error:
                        outcomes.failed(delivery, error, frames()[many - unpacked.left - 1])
                    else:
                        if result is None:
                            stats.handled += 1
                        else:
                            settle(delivery, result, frames()[many - unpacked.left - 1])
        return many - unpacked.left

    return deliver_coalesced


def _batched(gather: BatchCall, decode: Callable[[bytes], Any], unpacked: Remainder) -> DeliverCoalesced:
    """Return a function that adds the messages of a frame to batches.

    In each step, it adds as many messages as the batch has room for.
    """

    def deliver_coalesced(coalesced: Coalesced, frames: Callable[[], Sequence[bytes]]) -> int:
        many, messages = coalesced.many, _decoded(coalesced, decode)
        if messages is None:
            return 0
        for some in unpacked.slices(messages):
            while taken := list(islice(some, gather.room())):
                gather.several(taken, frames, many - unpacked.left - len(taken))
        return many - unpacked.left

    return deliver_coalesced
