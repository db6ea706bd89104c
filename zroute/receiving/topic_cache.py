"""The cache of received topics, with their routes and closures.

The first message of a topic creates an entry for the topic from the compiled routes, and the first body of each kind
creates a closure. The entries are kept for later messages, up to a limit in bytes, because peers choose the topics.
`zroute.receiving.table` looks up the closure for each message in this cache. This module reads no frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final

import attrs

from zroute.declarations.signatures import NO_BODY
from zroute.errors import DecodeError, EnvelopeError
from zroute.messages.bodies import body_decoder, guarded, json_first, json_too, may_be_json
from zroute.messages.budget import Budget, part
from zroute.messages.codecs import JSON, MSGPACK, Codec, Codecs, is_own
from zroute.messages.schema import inspect, resolved
from zroute.messages.topics import Topic
from zroute.messages.wire import HEADER_SIZE, MAGIC
from zroute.options import LARGE_FRAME, MAX_TOPIC, PUBLISHERS_KEPT, TOPIC_CACHE
from zroute.receiving.coalesced import DeliverCoalesced, Remainder, make_deliver_coalesced
from zroute.receiving.dispatch import (
    TRACKED,
    Admit,
    BoundRoute,
    CompiledRoute,
    Decode,
    Deliver,
    DeliverMaker,
    DispatchCallbacks,
    KnownHead,
    Refuse,
    Step,
    batching_step,
    deliver_maker,
    invocation,
    is_shared,
    make_deliver,
    share_one_type,
)
from zroute.receiving.frames import RawFrames
from zroute.receiving.matching import Matcher
from zroute.stats import Stats

__all__ = ["TopicCache", "TopicEntry"]

_ENTRY, _ROUTE, _SEGMENTS, _SEGMENT, _PARTIAL = 330, 160, 190, 80, 230
"""The sizes of the parts of an entry without its closures, in bytes.

The order is: the entry, each route, a dict of captured segments, each captured segment, and the function with its
constant arguments. All sizes are upper bounds; a test compares them with the real memory use.
"""

_SHARED, _CLOSURE, _STEP, _HEADS, _HEAD = 310, 560, 300, 350, 170
"""The sizes of the closures of an entry, in bytes.

The order is: a closure whose maker all topics of the handler share, any other closure, each step of such a closure, the
dict of heads, and each head.
"""

_MAKERS = 1_000
"""The most makers of closures. The heads of publishers, which peers choose, are part of their keys."""

_LISTED = (JSON.number, MSGPACK.number)  # codecs that can decode a whole list in one call
# A body that begins like a tracked header, to find the decoders that refuse such bodies.
_PROBE = MAGIC + bytes(HEADER_SIZE - len(MAGIC))


_EMPTY: Final[dict[Any, Any]] = {}
"""The empty dict of all entries without such closures. Most entries have none."""


@attrs.define(eq=False)
class TopicEntry:
    """The routes and closures of one topic.

    Attributes:
        wire: The topic.
        subscription: Our subscription that matches the topic, or empty bytes if no subscription matches.
        deliveries: The routes of the topic.
        unrouted: Counts a message of a topic without routes; None if the topic has routes.
        known: The only head of the topic, while its closure also reads the header; else None.
        plain: Delivers bodies without a tracked header; None before the first such body.
        others: The closures that deliver the other bodies. The key is the codec number, and True for large bodies.
        coalesced: The functions for coalesced frames, by the same key; None if a list can't be decoded in one call.
        size: The size of the entry in bytes, without the heads.
        heads: The size of the heads in bytes.
        sends_json: True if the app's codec is msgpack, and a body without a stated codec was JSON.
    """

    wire: bytes
    subscription: bytes
    deliveries: tuple[BoundRoute, ...]
    unrouted: Deliver | None
    known: KnownHead | None = attrs.field(init=False, default=None)
    plain: Deliver | None = attrs.field(init=False, default=None)
    others: dict[tuple[int, bool], Deliver] = attrs.field(init=False, default=_EMPTY)
    coalesced: dict[tuple[int, bool], DeliverCoalesced | None] = attrs.field(init=False, default=_EMPTY)
    size: int = attrs.field(init=False, default=0)
    heads: int = attrs.field(init=False, default=0)
    sends_json: bool = attrs.field(init=False, default=False)

    @property
    def topic(self) -> Topic:
        """The topic as text."""
        return Topic.from_wire(self.wire)


class TopicCache:
    """The entries of received topics, up to `TOPIC_CACHE` bytes.

    The loop of the table looks up topics in ``direct`` and ``tracked``. For a topic with plain bodies, ``direct``
    contains the closure. For a topic with tracked bodies, ``tracked`` contains a dict. The keys of that dict are heads,
    the constant parts of publishers' headers. The values are the account and the closure. While a topic has one head
    only, and one handler, ``direct`` contains a closure that also reads the header, and ``tracked`` contains nothing.

    A topic in ``multipart``, or longer than `MAX_TOPIC` bytes, is not cached. Its messages always take the slow path of
    the table.

    Args:
        matcher: Finds the routes and the subscription of a topic.
        codecs: The codecs that this app knows.
        outcomes: Called by the closures, and when the cache is full.
        stats: The counters of the app; the cache increments ``cache_misses``.
        unpacked: Contains the messages of coalesced frames that are not delivered yet.
        multipart: Topics whose messages may have further parts.
        unrouted: Counts a message without a route, and returns the code of its closure.
        malformed: Counts a malformed message, and returns the code of its closure.
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
        self.direct: dict[bytes, Deliver] = {}
        self.tracked: dict[bytes, dict[bytes, tuple[Any, Deliver]]] = {}
        self._entries: dict[bytes, TopicEntry] = {}
        self._budget = Budget(TOPIC_CACHE, stats, lambda: outcomes.many_topics(len(self._entries)))
        self._budget.share(self._drop)
        self._decoders: dict[tuple[object, object, int, bool], Decode] = {}
        self._makers: dict[tuple[object, ...], DeliverMaker] = {}
        self._heads: dict[tuple[bytes, int], KnownHead] = {}
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
        """Return the entry of a topic; create the entry if the topic is new."""
        return self._entries.get(topic) or self._enter(topic)

    def takes_views(self, topic: bytes) -> bool:
        """Return True if no handler of a topic needs the body as bytes.

        This is the case if each handler takes a memoryview, or no body.
        """
        schemas = [each.route.call.schema for each in self.of(topic).deliveries]
        return all(schema is NO_BODY or resolved(schema) is memoryview for schema in schemas)

    def plain_of(self, entry: TopicEntry) -> Deliver:
        """Return the closure for bodies without a header.

        From now on, the loop finds this closure, unless the topic has tracked publishers.
        """
        topic, deliver = entry.wire, entry.plain
        if deliver is None:
            if entry.unrouted is None:
                deliver, size = self._make_plain(entry)
            else:  # without a decoder that fails, only the first bytes show a tracked header
                deliver, size = _told_apart(entry.unrouted), _CLOSURE
            entry.plain = deliver
            self._grow(entry, size)
        if entry.known is None and topic in self._entries and topic not in self.tracked:
            self.direct[topic] = deliver
        return deliver

    def direct_of(self, entry: TopicEntry, number: int, head: bytes, account: Any, admit: Admit) -> Deliver | None:
        """Return the closure that also reads the header, or None.

        The result is None unless ``head`` is the first head of the topic. The topic must have one handler. From now on,
        the loop finds this closure. Plain bodies of the topic then take the slow path. ``number`` is the
        codec that the head states. ``admit`` decides about messages of the account with another number than the
        expected one.
        """
        topic = entry.wire
        if entry.known is not None or topic in self.tracked or self._entries.get(topic) is not entry:
            return None
        key = (head, id(account))
        known = self._heads.get(key)
        if known is None:
            if len(self._heads) >= _MAKERS:
                self._heads.clear()
            known = self._heads[key] = KnownHead(head, account, number, admit)
        entry.known = known
        direct, size = self._for_one(entry, number, self._outcomes.undecodable, known=known)
        self.direct[topic], entry.heads = direct, size
        self._budget.take(size)  # last, because it may drop this topic
        return direct

    def remember_head(self, entry: TopicEntry, head: bytes, account: Any, deliver: Deliver, admit: Admit) -> None:
        """Store the closure for the messages of a topic that begin with ``head``.

        From now on, the loop finds this closure. Plain bodies of the topic then take the slow path. ``admit`` decides
        about messages of the account with another number than the expected one.
        """
        topic = entry.wire
        # The topic is not cached: it is too long, may have further parts, or was dropped in the meantime.
        if self._entries.get(topic) is not entry:
            return
        self.direct.pop(topic, None)
        if (known := entry.known) is not None:
            self._forget_known(entry)
            self.remember_head(entry, known.head, known.account, self.deliver(entry, known.number, b""), admit)
            if self._entries.get(topic) is not entry:
                return
        heads = self.tracked.setdefault(topic, {})
        # The first head of a topic is no further miss, because `_enter` has counted one.
        if heads and head not in heads:
            self._budget.miss()
        if len(heads) >= PUBLISHERS_KEPT:
            self._drop_heads(entry, heads)
        size = _HEADS * (not heads)
        if head not in heads:
            # The closures in `others` are already part of the size of the entry.
            size += _HEAD + _CLOSURE * (deliver not in entry.others.values())
        heads[head] = account, deliver
        entry.heads += size
        self._budget.take(size)  # last, because it may drop this topic

    def _forget_known(self, entry: TopicEntry) -> None:
        """Delete the closure that also reads the header."""
        self.direct.pop(entry.wire, None)
        self._budget.give_back(entry.heads)
        entry.known, entry.heads = None, 0

    def _for_one(
        self, entry: TopicEntry, number: int, refuse: Refuse, *, large: bool = False, known: KnownHead | None = None
    ) -> tuple[Deliver, int]:
        """Return the closure of a topic with one handler, and its size in bytes.

        The topics of a handler share the maker of their closures, if possible. A further topic then costs a tenth.
        """
        (delivery,) = entry.deliveries
        route = delivery.route
        key = (route, number, large, refuse, known)
        make = self._makers.get(key)
        if make is not None:
            return make(route.call.bind(delivery.arguments, entry.wire), delivery), _SHARED
        (step,) = self._steps(entry, number, large=large)
        make = deliver_maker(step, self._outcomes, refuse, known)
        # A decoder that tries JSON first or later belongs to one topic.
        if is_shared(route) and step.decode is self._decoder(route, number, large):
            if len(self._makers) >= _MAKERS:
                self._makers.clear()
            self._makers[key] = make
        return make(step.call.function, delivery), _CLOSURE + _STEP

    def _drop_heads(self, entry: TopicEntry, heads: dict[bytes, tuple[Any, Deliver]]) -> None:
        """Drop some heads of a topic that has too many heads."""
        self._outcomes.many_publishers(entry.topic, len(heads))
        self._free_heads(entry, heads, part(heads))

    def _free_heads(self, entry: TopicEntry, heads: dict[bytes, tuple[Any, Deliver]], dropped: Sequence[bytes]) -> None:
        freed = entry.heads * len(dropped) // len(heads)
        for head in dropped:
            del heads[head]
        entry.heads -= freed
        self._budget.give_back(freed)

    def forget_head(self, topic: bytes, head: bytes) -> None:
        """Delete the closure for messages of a topic that begin with ``head``.

        The next such message takes the slow path.
        """
        entry, heads = self._entries.get(topic), self.tracked.get(topic)
        if entry is not None and heads is not None and head in heads:
            self._free_heads(entry, heads, (head,))
            if not heads:
                del self.tracked[topic]

    def forget(self, topic: bytes) -> None:
        """Delete the entry of a topic, so that its next message takes the slow path."""
        entry = self._entries.pop(topic, None)
        if entry is not None:
            self._budget.give_back(entry.size + entry.heads)
        self.direct.pop(topic, None)
        self.tracked.pop(topic, None)

    def forget_heads(self) -> None:
        """Delete all heads; the next message of each publisher takes the slow path."""
        for entry in self._entries.values():
            if entry.heads:
                self._forget_known(entry)
        self.tracked.clear()
        self._heads.clear()
        self._makers.clear()

    def clear(self) -> None:
        """Delete all entries, so that their closures are created again."""
        for cache in (self._entries, self.direct, self.tracked):
            cache.clear()
        self._heads.clear()
        self._makers.clear()  # the flow of a route may have become active
        self._budget.give_back(self._budget.used)

    def _drop(self) -> None:
        for topic in part(self._entries):
            self.forget(topic)

    def _grow(self, entry: TopicEntry, size: int) -> None:
        """Add ``size`` bytes to the size of an entry, if it is in the cache."""
        if self._entries.get(entry.wire) is entry:
            entry.size += size
            self._budget.take(size)

    def deliver(self, entry: TopicEntry, number: int, body: bytes) -> Deliver:
        """Return the closure for bodies of the codec ``number`` and the size of ``body``.

        The number 0 means that the publisher did not name a codec. Bodies of more than `LARGE_FRAME` bytes have a
        separate closure.
        """
        if entry.unrouted is not None:
            return entry.unrouted
        kind = (number, len(body) > LARGE_FRAME)
        deliver = entry.others.get(kind)
        if deliver is None:
            if len(entry.deliveries) == 1:
                deliver, size = self._for_one(entry, number, self._outcomes.undecodable, large=kind[1])
            else:
                steps = self._steps(entry, number, large=kind[1])
                deliver = make_deliver(steps, self._outcomes, self._outcomes.undecodable)
                size = _CLOSURE + _STEP * len(steps)
            if entry.others is _EMPTY:
                entry.others, size = {}, size + _SEGMENTS
            entry.others[kind] = deliver
            self._grow(entry, size + _SEGMENT)
        return deliver

    def deliver_coalesced(self, entry: TopicEntry, number: int, *, large: bool) -> DeliverCoalesced | None:
        """Return the function that decodes a coalesced frame and delivers its messages.

        The result is None if the messages must be decoded one by one.
        """
        key = (number, large)
        # Not `get`: None is a result too.
        if key not in entry.coalesced:
            if entry.coalesced is _EMPTY:
                entry.coalesced = {}
            entry.coalesced[key] = self._make_deliver_coalesced(entry, number, large=large)
            self._grow(entry, _CLOSURE + _STEP * len(entry.deliveries))
        return entry.coalesced[key]

    # -- entries ----------------------------------------------------------------------------------------

    def _enter(self, topic: bytes) -> TopicEntry:
        deliveries = self._matcher.deliveries(topic)
        unrouted = None if deliveries else self._make_unrouted(topic)
        entry = TopicEntry(topic, self._matcher.subscription(topic) or b"", deliveries, unrouted)
        self._budget.miss()
        if len(topic) > MAX_TOPIC:
            self._outcomes.long_topic(entry.topic)
        elif topic not in self._multipart:
            self._entries[topic] = entry
            self._grow(entry, _size(topic, deliveries))
        return entry

    def _make_unrouted(self, topic: bytes) -> Deliver:
        """Return the closure for a topic without a route.

        The closure counts messages as unrouted, or as malformed if the topic is not UTF-8.
        """
        try:
            topic.decode()
        except UnicodeDecodeError:
            return lambda _body, raw: self._malformed(EnvelopeError("a topic that is not UTF-8"), raw)
        return lambda _body, raw: self._unrouted(raw)

    # -- closures ---------------------------------------------------------------------------------------

    def _make_plain(self, entry: TopicEntry) -> tuple[Deliver, int]:
        """Return the closure for bodies without a header, and its size in bytes.

        The closure returns `TRACKED` for a body with a tracked header. If every decoder fails on such a body, the
        closure checks for a header only after a decode error, so the check costs nothing for valid messages.
        """
        if len(entry.deliveries) == 1 and self._refuses_plain(entry):
            return self._for_one(entry, 0, self._refuse_plain)
        steps = self._steps(entry, 0, large=False)
        size = _CLOSURE + _STEP * len(steps)
        if all(_refuses_magic(step, self._codecs.default) for step in steps):
            if len(steps) == 1:
                return self._for_one(entry, 0, self._refuse_plain)
            return make_deliver(steps, self._outcomes, self._refuse_plain), size
        return _told_apart(make_deliver(steps, self._outcomes, self._outcomes.undecodable)), size + _CLOSURE

    def _refuses_plain(self, entry: TopicEntry) -> bool:
        """Return True if a maker of plain closures is known for a handler."""
        return (entry.deliveries[0].route, 0, False, self._refuse_plain, None) in self._makers

    def _refuse_plain(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Handle a decode error, unless the body has a tracked header."""
        if body[: len(MAGIC)] == MAGIC:
            return TRACKED
        return self._outcomes.undecodable(deliveries, error, body, raw)

    def _make_deliver_coalesced(self, entry: TopicEntry, number: int, *, large: bool) -> DeliverCoalesced | None:
        steps = self._steps(entry, number, large=large)
        if number not in _LISTED or not steps or not share_one_type(steps):
            return None
        route = steps[0].delivery.route
        schema = route.call.schema
        if is_own(route.options.codec or self._codecs.default):
            return None  # the codec may be the only one that carries the type
        found = inspect(schema, self._codecs.extras)
        if found.engine not in ("msgspec", "any") or found.raw_fallback:
            return None
        untyped = found.engine == "any"  # msgspec would decode list[dict], and create other objects
        listed = list if untyped else list[schema]  # type: ignore[valid-type]
        decode = self._make_decoder(listed, route.options.codec, number, large)
        if untyped and found.type in (dict, list):
            decode = _all_of(found.type, decode)
        return make_deliver_coalesced(steps, decode, self._unpacked, self._outcomes)

    def _steps(self, entry: TopicEntry, number: int, *, large: bool) -> list[Step]:
        """Return a step for each route.

        Routes of the same type and codec share the decoded object, unless they have ``copy=True``.
        """
        slots: dict[object, int] = {}
        steps = []
        for index, delivery in enumerate(entry.deliveries):
            route = delivery.route
            key = index if route.options.copy else (_key(route.call.schema), _key(route.options.codec))
            call = invocation(delivery, entry.topic, self._outcomes)
            decode, slot = self._decoder_of(entry, route, number, large), slots.setdefault(key, index)
            if route.lists is not None:
                steps.append(batching_step(delivery, self._outcomes.gather(delivery, call.function), decode, slot))
                continue
            if route.flow.active:
                # The closure then returns the call instead of making it: partial(partial, f)(m) is partial(f, m).
                call = attrs.evolve(call, function=partial(partial, call.function))
            steps.append(Step(delivery, call, decode, slot, self._outcomes.settle))
        return steps

    def _decoder_of(self, entry: TopicEntry, route: CompiledRoute, number: int, large: bool) -> Decode | None:
        """Return the decoder of a route for the messages of one topic.

        If the codec is only the app's default, the messages may be JSON instead of msgpack. After the first JSON
        message, the closures of the topic are created again, so that further JSON messages do not cost an exception.
        """
        decode, schema = self._decoder(route, number, large), route.call.schema
        if number or decode is None or schema is NO_BODY:
            return decode
        default, extras = self._codecs.default, self._codecs.extras
        if not may_be_json(schema, stated=None, route=route.options.codec, default=default, extras=extras):
            return decode
        read = partial(self._make_decoder_once, schema, route.options.codec, JSON.number, large)
        if entry.sends_json:
            return json_first(decode, read())
        return json_too(decode, read, partial(self._found_json, entry))

    def _found_json(self, entry: TopicEntry) -> None:
        if not entry.sends_json:
            entry.sends_json, entry.plain = True, None
            entry.others = _EMPTY
            if entry.known is not None:
                self._forget_known(entry)
            self.direct.pop(entry.wire, None)

    def _decoder(self, route: CompiledRoute, number: int, large: bool) -> Decode | None:
        schema, codec = route.call.schema, route.options.codec
        return None if schema is NO_BODY else self._make_decoder_once(schema, codec, number, large)

    def _make_decoder_once(self, schema: Any, codec: Codec | None, number: int, large: bool) -> Decode:
        key = (_key(schema), _key(codec), number, large)
        decode = self._decoders.get(key)
        if decode is None:
            decode = self._decoders[key] = self._make_decoder(schema, codec, number, large)
        return decode

    def _make_decoder(self, schema: Any, codec: Codec | None, number: int, large: bool) -> Decode:
        stated, default, extras = self._codecs.by_number.get(number), self._codecs.default, self._codecs.extras
        if number and stated is None:
            return _unknown(number)
        decode = body_decoder(schema, stated=stated, route=codec, default=default, extras=extras)
        return guarded(decode, stated or codec or default) if large else decode


def _size(topic: bytes, deliveries: Sequence[BoundRoute]) -> int:
    """Return the size of an entry without closures, in bytes."""
    size = _ENTRY + len(topic)
    for each in deliveries:
        size += _ROUTE
        if each.kept is not None:
            size += _SEGMENTS + _SEGMENT * len(each.kept) + len(topic)
        if each.arguments:
            size += _SEGMENTS + _SEGMENT * len(each.arguments) + len(topic)
        constants = each.route.call.constants
        if constants:
            size += _PARTIAL
        if constants.topic:
            size += _SEGMENT + len(topic)
    return size


def _told_apart(deliver: Deliver) -> Deliver:
    """Return a ``deliver`` that returns `TRACKED` for bodies with a tracked header."""
    return lambda body, raw: TRACKED if body[: len(MAGIC)] == MAGIC else deliver(body, raw)


def _refuses_magic(step: Step, default: Codec) -> bool:
    """Return True if the decoder fails on every body that starts with `MAGIC`.

    The decoders for JSON, msgpack and text fail on such bodies. ``default`` is the app's codec.
    """
    options = step.delivery.route.options
    # With `stale_after`, the closure checks the age of a message before it decodes the body.
    if step.decode is None or options.stale_after is not None or is_own(options.codec or default):
        return False
    try:
        step.decode(_PROBE)
    except Exception:
        return True
    return False


def _all_of(kind: type, decode: Decode) -> Decode:
    """Return a decoder of lists that raises DecodeError if an item is not a ``kind``."""

    def decode_all(body: bytes) -> Any:
        messages = decode(body)
        if any(type(message) is not kind for message in messages):
            raise DecodeError(f"expected only items of type {kind.__name__}")
        return messages

    return decode_all


def _key(part: Any) -> object:
    """Return a key that is the same for equal types or codecs.

    A type that can't be hashed is only equal to itself, so its decoded objects are not shared.
    """
    try:
        hash(part)
    except TypeError:
        return id(part)
    return part


def _unknown(number: int) -> Decode:
    def refuse(_body: bytes) -> Any:
        raise DecodeError(
            f"unknown codec {number}: pass the codec to this app, with App(codec=…) or subscribe(…, codec=…)"
        )

    return refuse
