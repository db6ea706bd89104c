"""TopicCache: what is known about each topic that came: its routes, and the closures that deliver its messages.

All of it is made when the first message asks for it, from the compiled routes, and kept for the next ones, within
bounds. `zroute.receiving.table` looks up here what it needs for a message; nothing here reads a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import attrs

from zroute.declarations.signatures import NO_BODY
from zroute.errors import DecodeError, EnvelopeError
from zroute.messages.bodies import body_decoder, guarded
from zroute.messages.budget import Budget, part
from zroute.messages.codecs import BUILTIN, JSON, MSGPACK, Codec, Codecs
from zroute.messages.schema import inspect
from zroute.messages.topics import Topic
from zroute.messages.wire import HEADER_SIZE, MAGIC
from zroute.options import LARGE_FRAME, MAX_TOPIC, PUBLISHERS_KEPT, TOPIC_CACHE
from zroute.receiving.coalesced import HandOut, Remainder, make_hand_out
from zroute.receiving.dispatch import (
    TRACKED,
    BoundRoute,
    CompiledRoute,
    Decode,
    Deliver,
    DispatchCallbacks,
    Step,
    batching_step,
    make_deliver,
    share_one_type,
)
from zroute.receiving.frames import RawFrames
from zroute.receiving.matching import Matcher
from zroute.stats import Stats

__all__ = ["TopicCache", "TopicEntry"]

_ENTRY, _ROUTE, _CAPTURE, _CLOSURE, _STEP, _HEADS, _HEAD = 800, 270, 130, 560, 380, 350, 170
"""Bytes of an entry, of each of its routes, and of each capture of these; of a closure, and of each of its steps; of a
dict of heads, and of each head. These are upper limits, which a test compares with what is really taken."""

_COPIES = (3, 2)
"""How often a topic is held: as key and text, and in the captures of each route."""

_LISTED = (JSON.number, MSGPACK.number)  # codecs whose lists are decoded in one call
_PROBE = MAGIC + bytes(HEADER_SIZE - len(MAGIC))


@attrs.define(eq=False)
class TopicEntry:
    """What is known about one topic.

    ``subscription`` is the one of ours that it came by. ``nobody`` tells that no route takes the topic; None where one
    does. ``plain`` delivers bodies without a tracked header, once there was one.
    ``others`` keeps the closures made so far by (codec, whether for large bodies), ``hand_outs`` those for frames of
    several messages. ``size`` is what it was counted as in bytes, and ``heads`` what its publishers are known by.
    """

    topic: Topic
    subscription: bytes
    deliveries: tuple[BoundRoute, ...]
    nobody: Deliver | None
    plain: Deliver | None = attrs.field(init=False, default=None)
    others: dict[tuple[int, bool], Deliver] = attrs.field(init=False, factory=dict)
    hand_outs: dict[tuple[int, bool], HandOut | None] = attrs.field(init=False, factory=dict)
    size: int = attrs.field(init=False, default=0)
    heads: int = attrs.field(init=False, default=0)


class TopicCache:
    """The entries of topics that ``matcher`` finds routes for; up to `TOPIC_CACHE` bytes are kept.

    ``plain`` and ``tracked`` are what the table's loop looks topics up in: one with plain bodies has its closure in the
    first, one with tracked bodies has closures by the constant parts of the headers, one a publisher, in the second.
    A topic among ``multipart``, or over `MAX_TOPIC` bytes, is not kept: each of its messages goes the long way.
    ``unrouted`` and ``malformed`` count messages that no route takes, and return the code of their closure. For the
    others see `RouteTable`.
    """

    def __init__(
        self,
        matcher: Matcher,
        codecs: Codecs,
        *,
        outcomes: DispatchCallbacks,
        stats: Stats,
        unpacked: Remainder,
        multipart: Collection[bytes],
        unrouted: Callable[[RawFrames], int],
        malformed: Callable[[EnvelopeError, RawFrames], int],
    ) -> None:
        self.plain: dict[bytes, Deliver] = {}
        self.tracked: dict[bytes, dict[bytes, tuple[Any, Deliver]]] = {}
        self._entries: dict[bytes, TopicEntry] = {}
        self._budget = Budget(TOPIC_CACHE, stats, lambda: outcomes.many_topics(len(self._entries)))
        self._budget.share(self._drop)
        self._decoders: dict[tuple[object, Codec | None, int, bool], Decode] = {}
        self._matcher = matcher
        self._codecs = codecs
        self._outcomes = outcomes
        self._unpacked = unpacked
        self._multipart = multipart
        self._unrouted = unrouted
        self._malformed = malformed

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, topic: bytes) -> TopicEntry:
        """What is known about a topic, made if it is new. Raises EnvelopeError for one that can't be."""
        return self._entries.get(topic) or self._enter(topic)

    def plain_of(self, entry: TopicEntry) -> Deliver:
        """The closure for bodies without a header, which the loop finds from now on unless it knows publishers."""
        topic, deliver = entry.topic.wire, entry.plain
        if deliver is None:
            made = self._make_plain(entry) if entry.nobody is None else _told_apart(entry.nobody)
            deliver = entry.plain = made
            self._grow(entry, _CLOSURE + _STEP * len(entry.deliveries))
        if topic in self._entries and topic not in self.tracked:
            self.plain[topic] = deliver
        return deliver

    def remember_head(self, entry: TopicEntry, head: bytes, account: Any, deliver: Deliver) -> None:
        """From now on this topic is known by the headers of its publishers; plain bodies take the long way."""
        topic = entry.topic.wire
        if self._entries.get(topic) is not entry:
            return
        self.plain.pop(topic, None)
        heads = self.tracked.setdefault(topic, {})
        if heads and head not in heads:
            self._budget.miss()
        if len(heads) >= PUBLISHERS_KEPT:
            self._drop_heads(entry, heads)
        size = _HEADS * (not heads)
        if head not in heads:
            size += _HEAD + _CLOSURE * (deliver not in entry.others.values())
        heads[head] = account, deliver
        entry.heads += size
        self._budget.take(size)  # last, since it may forget the topic

    def _drop_heads(self, entry: TopicEntry, heads: dict[bytes, tuple[Any, Deliver]]) -> None:
        self._outcomes.many_publishers(entry.topic, len(heads))
        dropped = part(heads)
        freed = entry.heads * len(dropped) // len(heads)
        for head in dropped:
            del heads[head]
        entry.heads -= freed
        self._budget.give_back(freed)

    def forget(self, topic: bytes) -> None:
        """The next message of this topic goes the long way."""
        entry = self._entries.pop(topic, None)
        if entry is not None:
            self._budget.give_back(entry.size + entry.heads)
        self.plain.pop(topic, None)
        self.tracked.pop(topic, None)

    def forget_heads(self) -> None:
        """Forget all publishers: the next message of each goes the long way."""
        for topic in self.tracked:
            entry = self._entries[topic]
            self._budget.give_back(entry.heads)
            entry.heads = 0
        self.tracked.clear()

    def clear(self) -> None:
        """Forget all topics, so that their closures are made anew."""
        for cache in (self._entries, self.plain, self.tracked):
            cache.clear()
        self._budget.give_back(self._budget.used)

    def _drop(self) -> None:
        for topic in part(self._entries):
            self.forget(topic)

    def _grow(self, entry: TopicEntry, size: int) -> None:
        """Count what was made for an entry, if that is one that is kept."""
        if self._entries.get(entry.topic.wire) is entry:
            entry.size += size
            self._budget.take(size)

    def deliver(self, entry: TopicEntry, number: int, body: bytes) -> Deliver:
        """The closure for bodies such as this one, whose publisher names codec ``number`` (0: none)."""
        if entry.nobody is not None:
            return entry.nobody
        kind = (number, len(body) > LARGE_FRAME)
        deliver = entry.others.get(kind)
        if deliver is None:
            steps = self._steps(entry, number, large=kind[1])
            deliver = make_deliver(steps, self._outcomes, self._outcomes.undecodable)
            entry.others[kind] = deliver
            self._grow(entry, _CLOSURE + _STEP * len(steps))
        return deliver

    def dispatch_all(self, entry: TopicEntry, number: int, *, large: bool) -> HandOut | None:
        """What decodes a whole list and hands it out; None where each message goes its own way."""
        key = (number, large)
        if key not in entry.hand_outs:
            entry.hand_outs[key] = self._make_hand_out(entry, number, large=large)
            self._grow(entry, _CLOSURE + _STEP * len(entry.deliveries))
        return entry.hand_outs[key]

    # -- entries ----------------------------------------------------------------------------------------

    def _enter(self, topic: bytes) -> TopicEntry:
        name = Topic.from_wire(topic)
        deliveries = tuple(self._matcher.deliveries(topic, name))
        nobody = None if deliveries else self._nobody(topic)
        entry = TopicEntry(name, self._matcher.subscription(topic) or b"", deliveries, nobody)
        self._budget.miss()
        if len(topic) > MAX_TOPIC:
            self._outcomes.long_topic(name)
        elif topic not in self._multipart:
            self._entries[topic] = entry
            self._grow(entry, _size(topic, deliveries))
        return entry

    def _nobody(self, topic: bytes) -> Deliver:
        """For a topic that no route takes."""
        try:
            topic.decode()
        except UnicodeDecodeError:
            return lambda _body, raw: self._malformed(EnvelopeError("a topic that is not UTF-8"), raw)
        return lambda _body, raw: self._unrouted(raw)

    # -- closures ---------------------------------------------------------------------------------------

    def _make_plain(self, entry: TopicEntry) -> Deliver:
        """The closure for bodies without a header, which tells those that have one by returning `TRACKED`.

        Where every decoder is known to refuse such a body, it is told apart only then, at no cost.
        """
        steps = self._steps(entry, 0, large=False)
        if all(_refuses_magic(step) for step in steps):
            return make_deliver(steps, self._outcomes, self._refuse_plain)
        return _told_apart(make_deliver(steps, self._outcomes, self._outcomes.undecodable))

    def _refuse_plain(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        if body[: len(MAGIC)] == MAGIC:
            return TRACKED
        return self._outcomes.undecodable(deliveries, error, body, raw)

    def _make_hand_out(self, entry: TopicEntry, number: int, *, large: bool) -> HandOut | None:
        steps = self._steps(entry, number, large=large)
        if number not in _LISTED or not steps or not share_one_type(steps):
            return None
        route = steps[0].delivery.route
        schema = route.call.schema
        found = inspect(schema)
        if found.engine not in ("msgspec", "any") or found.raw_fallback:
            return None
        untyped = found.engine == "any"  # a list of such would be read by msgspec, which makes other objects
        listed = list if untyped else list[schema]  # type: ignore[valid-type]
        decode = self._make_decoder(listed, route.options.codec, number, large)
        if untyped and found.type in (dict, list):
            decode = _all_of(found.type, decode)
        return make_hand_out(steps, decode, self._unpacked, self._outcomes)

    def _steps(self, entry: TopicEntry, number: int, *, large: bool) -> list[Step]:
        slots: dict[object, int] = {}
        steps = []
        for index, delivery in enumerate(entry.deliveries):
            route = delivery.route
            key = index if route.options.copy else (_key(route.call.schema), route.options.codec)
            function = route.call.bind(delivery.arguments, entry.topic)
            decode, slot = self._decoder(route, number, large), slots.setdefault(key, index)
            if route.lists is not None:
                steps.append(batching_step(delivery, self._outcomes.gather(delivery, function), decode, slot))
                continue
            if route.flow.active:
                function = partial(partial, function)
            steps.append(Step(delivery, function, decode, slot, self._outcomes.settle))
        return steps

    def _decoder(self, route: CompiledRoute, number: int, large: bool) -> Decode | None:
        schema, codec = route.call.schema, route.options.codec
        if schema is NO_BODY:
            return None
        key = (_key(schema), codec, number, large)
        decode = self._decoders.get(key)
        if decode is None:
            decode = self._decoders[key] = self._make_decoder(schema, codec, number, large)
        return decode

    def _make_decoder(self, schema: Any, codec: Codec | None, number: int, large: bool) -> Decode:
        stated, default = self._codecs.by_number.get(number), self._codecs.default
        if number and stated is None:
            return _unknown(number)
        decode = body_decoder(schema, stated=stated, route=codec, default=default)
        return guarded(decode, stated or codec or default) if large else decode


def _size(topic: bytes, deliveries: Sequence[BoundRoute]) -> int:
    """The bytes of an entry without closures."""
    routes, captures = len(deliveries), sum(len(each.captures) for each in deliveries)
    once, for_each = _COPIES
    return _ENTRY + _ROUTE * routes + _CAPTURE * captures + (once + for_each * routes) * len(topic)


def _told_apart(deliver: Deliver) -> Deliver:
    """``deliver``, for bodies without a header; others are told by returning `TRACKED`."""
    return lambda body, raw: TRACKED if body[: len(MAGIC)] == MAGIC else deliver(body, raw)


def _refuses_magic(step: Step) -> bool:
    """Whether this decoder fails on every body that starts with `MAGIC`: those for JSON, msgpack and text do."""
    options = step.delivery.route.options
    if (
        step.decode is None
        or options.stale_after is not None
        or (options.codec is not None and options.codec not in BUILTIN.values())
    ):
        return False
    try:
        step.decode(_PROBE)
    except Exception:
        return True
    return False


def _all_of(kind: type, decode: Decode) -> Decode:
    """``decode``, for lists of nothing but ``kind``."""

    def decode_all(body: bytes) -> Any:
        messages = decode(body)
        if any(type(message) is not kind for message in messages):
            raise DecodeError(f"expected {kind.__name__}s only")
        return messages

    return decode_all


def _key(schema: Any) -> object:
    """Equal for equal types; unhashable ones are never shared."""
    try:
        hash(schema)
    except TypeError:
        return id(schema)
    return schema


def _unknown(number: int) -> Decode:
    def refuse(_body: bytes) -> Any:
        raise DecodeError(
            f"codec {number} is not known here: name it once, as in App(codec=…) or subscribe(…, codec=…)"
        )

    return refuse
