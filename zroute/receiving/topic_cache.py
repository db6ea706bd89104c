"""The cache of received topics, with their routes and closures.

The first message of a topic creates an entry for the topic from the compiled routes, and the first body of each kind
creates a closure. The entries are kept for later messages, up to a limit in bytes, because peers choose the topics.
`zroute.receiving.table` looks up the closure for each message in this cache. This module reads no frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import MethodType
from typing import Any, Final

import attrs

from zroute.declarations.signatures import NO_BODY
from zroute.errors import DecodeError, EnvelopeError
from zroute.messages.bodies import body_decoder, guarded, json_first, json_too, may_be_json
from zroute.messages.budget import Budget, part
from zroute.messages.coalesced import LISTS
from zroute.messages.codecs import JSON, Codec, Codecs, is_own
from zroute.messages.schema import inspect, resolved
from zroute.messages.topics import Topic, is_text
from zroute.messages.wire import HEADER_SIZE, MAGIC
from zroute.options import LARGE_FRAME, MAX_TOPIC, PUBLISHERS_KEPT, TOPIC_CACHE
from zroute.receiving.coalesced import (
    DeliverCoalesced,
    FrameContext,
    FrameMaker,
    Remainder,
    frame_maker,
    make_deliver_coalesced,
)
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
    SharedCall,
    Step,
    batching_step,
    by_head,
    deliver_maker,
    invocation,
    is_shared,
    make_deliver,
    share_one_type,
    shared_call,
)
from zroute.receiving.frames import RawFrames
from zroute.receiving.matching import Matcher
from zroute.stats import Stats

__all__ = ["UNNUMBERED", "TopicCache", "TopicEntry"]

_ENTRY, _ROUTE, _SEGMENTS, _SEGMENT, _PARTIAL = 340, 160, 190, 80, 230
"""The sizes of the parts of an entry without its closures, in bytes.

The order is: the entry, each route, a dict of captured segments, each captured segment, and the function with its
constant arguments. All sizes are upper bounds; a test compares them with the real memory use.
"""

_KEY, _VALUE, _METHOD = 60, 70, 64
"""The sizes of an entry whose handler has functions for all topics, in bytes.

The order is: a tuple as key, each value in it, and each closure, a bound method.
"""

_SHARED, _FRAMES, _CLOSURE, _STEP, _HEADS, _HEAD = 310, 540, 560, 300, 750, 170
"""The sizes of the closures of an entry, in bytes.

The order is: a closure whose maker all topics of the handler share, such a closure for coalesced frames, any other
closure, each step of such a closure, the dict of heads with the closure that searches it, and each head.
"""

_LATER, _AROUND, _GATHER, _LIST = 350, 1_700, 1_500, 800
"""The additional sizes of closures, in bytes.

The order is: a call that is made later, or in a context of its own; a call with middleware; a call with batches; and a
closure that decodes lists.
"""

_MAKERS = 10_000
"""The most makers of closures, of about 1 KB each. A further one takes the place of every 32nd.

Apps have up to thousands of handlers. The heads of publishers, which peers choose, are part of the keys.
"""

# A body that begins like a tracked header, to find the decoders that refuse such bodies.
_PROBE = MAGIC + bytes(HEADER_SIZE - len(MAGIC))


_EMPTY: Final[dict[Any, Any]] = {}
"""The empty dict of all entries without such closures. Most entries have none."""


@attrs.define(eq=False)
class _Unnumbered:
    """A placeholder account for messages whose numbers the loop must not check.

    ``expected`` stays 0, and `RouteTable._admit` accepts every number.
    """

    expected: int = 0


UNNUMBERED = _Unnumbered()


@attrs.define(eq=False, weakref_slot=False)
class TopicEntry:
    """The routes and closures of one topic.

    Attributes:
        wire: The topic.
        subscription: Our subscription that matches the topic, or empty bytes if no subscription matches.
        route: The route of the topic; None if the topic has no route, or several.
        key: The key of the topic for the functions that all topics of the route share; None if there are none.
        deliveries: The routes of the topic; None if the topic has a key, so that they are seldom needed.
        unrouted: Counts a message of a topic without routes; None if the topic has routes.
        known: The only head of single messages, while its closure also reads the header; else None.
        framed: The only head of coalesced frames, while it has a closure that delivers whole frames; else None.
        frames: This closure.
        plain: Delivers bodies without a tracked header; None before the first such body.
        others: The closures that deliver the other bodies. The key is the codec number, and True for large bodies.
        coalesced: The functions for coalesced frames, by the same key; None if a list can't be decoded in one call.
        size: The size of the entry in bytes, without the heads.
        heads: The size of the heads in bytes.
    """

    wire: bytes
    subscription: bytes
    route: CompiledRoute | None
    key: Any
    deliveries: tuple[BoundRoute, ...] | None
    unrouted: Deliver | None
    known: KnownHead | None = attrs.field(init=False, default=None)
    framed: KnownHead | None = attrs.field(init=False, default=None)
    frames: Deliver | None = attrs.field(init=False, default=None)
    plain: Deliver | None = attrs.field(init=False, default=None)
    others: dict[tuple[int, bool], Deliver] = attrs.field(init=False, default=_EMPTY)
    coalesced: dict[tuple[int, bool], DeliverCoalesced | None] = attrs.field(init=False, default=_EMPTY)
    size: int = attrs.field(init=False, default=0)
    heads: int = attrs.field(init=False, default=0)

    @property
    def topic(self) -> Topic:
        """The topic as text."""
        return Topic.from_wire(self.wire)

    @property
    def routes(self) -> tuple[CompiledRoute, ...]:
        """The routes of the topic, the most specific first."""
        if self.route is not None:
            return (self.route,)
        return tuple(each.route for each in self.deliveries or ())


class TopicCache:
    """The entries of received topics, up to `TOPIC_CACHE` bytes.

    The loop of the table looks up topics in ``direct``, which contains the closure of each topic. For a topic with
    plain bodies, it is the closure for these bodies. While a topic has one handler, and at most one head of single
    messages and one head of coalesced frames (a head is the constant part of a publisher's header), the closure also
    reads the header. For any other topic with tracked bodies, the closure finds the head in the dict of the topic in
    ``tracked``. The keys of that dict are heads, and the values are the account and the closure for the bytes after the
    header.

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
        self._either: dict[tuple[CompiledRoute, bool, bool], Decode] = {}
        self._json: set[CompiledRoute] = set()
        self._shared: dict[CompiledRoute, SharedCall | None] = {}
        self._makers: dict[tuple[object, ...], DeliverMaker] = {}
        self._frame_makers: dict[tuple[CompiledRoute, KnownHead], FrameMaker] = {}
        self._taking_empty: dict[CompiledRoute, bool] = {}
        self._heads: dict[tuple[bytes, int], KnownHead] = {}
        self._matcher = matcher
        self._codecs = codecs
        self._outcomes = outcomes
        self._unpacked = unpacked
        self._multipart = multipart
        self._malformed = malformed
        not_utf8 = EnvelopeError("a topic that is not UTF-8")
        self._unrouted: Deliver = lambda _body, raw: unrouted(raw)
        self._not_utf8: Deliver = lambda _body, raw: malformed(not_utf8, raw)
        # Without a decoder that fails, only the bytes show that a body is not a plain one.
        self._plain_unrouted: dict[Deliver, Deliver] = {
            each: _told_apart(each) for each in (self._unrouted, self._not_utf8)
        }

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, topic: bytes) -> TopicEntry:
        """Return the entry of a topic; create the entry if the topic is new."""
        return self._entries.get(topic) or self._enter(topic)

    def takes_views(self, topic: bytes) -> bool:
        """Return True if no handler of a topic needs the body as bytes.

        This is the case if each handler takes a memoryview, or no body.
        """
        schemas = [route.call.schema for route in self.of(topic).routes]
        return all(schema is NO_BODY or resolved(schema) is memoryview for schema in schemas)

    def plain_of(self, entry: TopicEntry) -> Deliver:
        """Return the closure for bodies without a header that are not empty.

        From now on, the loop finds this closure, unless the topic has tracked publishers.
        """
        topic, deliver = entry.wire, entry.plain
        if deliver is None:
            if entry.unrouted is None:
                deliver, size = self._make_plain(entry)
            else:
                deliver, size = self._plain_unrouted[entry.unrouted], 0
            entry.plain = deliver
            self._grow(entry, size)
        if not entry.heads and topic in self._entries:
            self.direct[topic] = deliver
        return deliver

    def direct_of(self, entry: TopicEntry, number: int, head: bytes, account: Any, admit: Admit) -> Deliver | None:
        """Return the closure that also reads the header, or None.

        The result is None unless ``head`` is the first head of single messages of the topic. The topic must have one
        handler. From now on, the loop finds this closure. Plain bodies of the topic then take the slow path. ``number``
        is the codec that the head states. ``admit`` decides about messages of the account with another number than the
        expected one.
        """
        topic = entry.wire
        if entry.known is not None or topic in self.tracked or self._entries.get(topic) is not entry:
            return None
        if entry.heads:  # see `remember_head`
            self._budget.miss()
        entry.known = known = self._heads.get((head, id(account))) or self._know(head, account, number, admit)
        direct, size = self._for_one(entry, number, self._outcomes.undecodable, known)
        self.direct[topic] = direct
        entry.heads += size
        self._budget.take(size)  # last, because it may drop this topic
        return direct

    def frames_of(
        self, entry: TopicEntry, known: KnownHead, context: FrameContext, keeps: int | None
    ) -> Deliver | None:
        """Return the closure for whole coalesced frames with a ``known`` head.

        From now on, the loop finds this closure. Plain bodies of the topic then take the slow path.

        Args:
            entry: The entry of the topic.
            known: The head, its account, and the codec that it states.
            context: The objects that such closures share with the table.
            keeps: The epoch in the head, if the publisher keeps its messages; else None.

        Returns:
            The closure; None if the handlers of the topic need another one. If the loop has called the closure already,
            the result is a closure that refuses the frame too.
        """
        topic, head, account = entry.wire, known.head, known.account
        if entry.framed is not None and entry.framed.head == head and entry.framed.account is account:
            return _refused_already
        known = self._heads.get((head, id(account))) or self._know(head, account, known.number, known.admit)
        found = self._for_frames(entry, known, context, keeps)
        if found is None:
            return None
        deliver, size = found
        if self._entries.get(topic) is not entry:  # the topic is not cached; see `remember_head`
            return deliver
        if topic in self.tracked or entry.framed is not None:
            self.remember_head(entry, head, UNNUMBERED, deliver, known.admit)
            return deliver
        if entry.heads:  # see `remember_head`
            self._budget.miss()
        entry.framed, entry.frames = known, deliver
        entry.heads += size
        if entry.known is None:
            self.direct[topic] = deliver
        else:  # its closure now also passes frames to the new one
            self.direct[topic], _ = self._for_one(entry, entry.known.number, self._outcomes.undecodable, entry.known)
        self._budget.take(size)  # last, because it may drop this topic
        return deliver

    def _know(self, head: bytes, account: Any, number: int, admit: Admit) -> KnownHead:
        """Return the object for a new head, which the topics of its publisher share."""
        known = KnownHead(head, account, number, admit)
        _keep(self._heads, (head, id(account)), known)
        return known

    def remember_head(self, entry: TopicEntry, head: bytes, account: Any, deliver: Deliver, admit: Admit) -> None:
        """Store the closure for the messages of a topic that begin with ``head``.

        From now on, the loop finds this closure. Plain bodies of the topic then take the slow path.
        """
        topic = entry.wire
        # The topic is not cached: it is too long, may have further parts, or was dropped in the meantime.
        if self._entries.get(topic) is not entry:
            return
        known, framed, frames = entry.known, entry.framed, entry.frames
        if known is not None or framed is not None:
            self._forget_known(entry)
        if known is not None:
            self._put_head(entry, known.head, known.account, self.deliver(entry, known.number, b""), admit)
        if framed is not None and frames is not None:
            self._put_head(entry, framed.head, UNNUMBERED, frames, admit)
        # The first head of a topic is no further miss, because `_enter` has counted one.
        heads = self.tracked.get(topic)
        if heads and head not in heads:
            self._budget.miss()
        self._put_head(entry, head, account, deliver, admit)

    def _put_head(self, entry: TopicEntry, head: bytes, account: Any, deliver: Deliver, admit: Admit) -> None:
        """Put a head into ``tracked``, if the topic is still in the cache."""
        if self._entries.get(entry.wire) is not entry:
            return
        heads = self.tracked.setdefault(entry.wire, {})
        if not heads or entry.wire not in self.direct:
            self.direct[entry.wire] = by_head(heads, admit)
        if head not in heads and len(heads) >= PUBLISHERS_KEPT:
            self._drop_heads(entry, heads)
        size = _HEADS * (not heads)
        if head not in heads:
            # The closures in `others` are already part of the size of the entry.
            size += _HEAD + _CLOSURE * (deliver not in entry.others.values())
        heads[head] = account, deliver
        entry.heads += size
        self._budget.take(size)  # last, because it may drop this topic

    def _forget_direct(self, entry: TopicEntry) -> None:
        """Delete the closure in ``direct``, and the closures that also read the header."""
        if entry.known is not None or entry.framed is not None:
            self._forget_known(entry)
        self.direct.pop(entry.wire, None)

    def _forget_known(self, entry: TopicEntry) -> None:
        """Delete the closures that also read the header."""
        self.direct.pop(entry.wire, None)
        self._budget.give_back(entry.heads)
        entry.known = entry.framed = entry.frames = None
        entry.heads = 0

    def _for_one(
        self, entry: TopicEntry, number: int, refuse: Refuse, known: KnownHead | None = None, *, large: bool = False
    ) -> tuple[Deliver, int]:
        """Return the closure of a topic with one handler, and its size in bytes.

        The topics of a handler share the function of their closures, or at least its maker, if possible. A further
        topic then costs a tenth.
        """
        route = entry.route
        assert route is not None
        shared = self._shared_call(route)
        given: tuple[Deliver, ...] = ()
        passed: Any = entry.frames if known is not None else None  # frames with another head
        if shared is not None:
            passed = getattr(passed, "__func__", None)  # the function of all topics
        elif passed is not None:
            given, passed = (passed,), True  # the closure of the topic is an argument of the maker
        key = (route, number, large, refuse, known, passed)
        found = self._of_known_maker(entry, key, *given)
        if found is not None:
            return found
        (step,) = self._steps(entry, number, large=large)
        guarded = refuse == self._refuse_plain and self._takes_empty(step)
        make = deliver_maker(
            step, self._outcomes, refuse, known, shared=shared, guarded=guarded, frames=passed or False
        )
        if is_shared(route):
            _keep(self._makers, key, make)
        if shared is not None:
            return MethodType(make, entry.key), _CLOSURE + _STEP + _METHOD
        return make(step.call.function, step.delivery, *given), _size_of_closure(entry)

    def _for_frames(
        self, entry: TopicEntry, known: KnownHead, context: FrameContext, keeps: int | None
    ) -> tuple[Deliver, int] | None:
        """Return the closure for whole coalesced frames, and its size in bytes.

        The result is None if the topic has several handlers, or a handler that needs another closure. See `_for_one`.
        """
        route = entry.route
        if route is None:
            return None
        shared, at = self._shared_call(route), len(entry.wire) + 1
        make = self._frame_makers.get((route, known))
        if make is not None:
            if shared is not None:
                return MethodType(make, entry.key), _METHOD
            (delivery,) = self._deliveries(entry)
            return make(route.call.bind(delivery.arguments, entry.wire), delivery, at), _FRAMES
        steps = self._steps(entry, known.number, large=False)
        decode = self._list_decoder(steps, known.number, large=False)
        if decode is None or route.flow.active or route.lists is not None:
            return None
        make = frame_maker(steps[0], decode, known, context, self._outcomes, keeps=keeps, shared=shared)
        if is_shared(route):
            _keep(self._frame_makers, (route, known), make)
        size = _FRAMES + _size_of_closure(entry)
        if shared is not None:
            return MethodType(make, entry.key), size
        return make(steps[0].call.function, steps[0].delivery, at), size

    def _of_known_maker(
        self, entry: TopicEntry, key: tuple[object, ...], *given: Deliver
    ) -> tuple[Deliver, int] | None:
        """Return the result of `_for_one` if the maker is known, else None."""
        make = self._makers.get(key)
        if make is None:
            return None
        if entry.key is not None:
            return MethodType(make, entry.key), _METHOD
        (delivery,) = self._deliveries(entry)
        return make(delivery.route.call.bind(delivery.arguments, entry.wire), delivery, *given), _SHARED

    def _shared_call(self, route: CompiledRoute) -> SharedCall | None:
        """Return the call of a route in functions that all its topics share, or None."""
        try:
            return self._shared[route]
        except KeyError:
            shared = self._shared[route] = shared_call(route, self._matcher.deliveries, self._outcomes)
            return shared

    def _deliveries(self, entry: TopicEntry) -> tuple[BoundRoute, ...]:
        """Return the routes of a topic. For a topic with a key, they are searched again."""
        return self._matcher.deliveries(entry.wire) if entry.deliveries is None else entry.deliveries

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
                self.direct.pop(topic, None)

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
        self._frame_makers.clear()

    def forget_stream(self, publisher: int, subscription: bytes) -> None:
        """Delete the heads of one subscription at one publisher.

        Its next messages take the slow path. The makers stay, because they are used again after the recovery of the
        stream. A topic in ``tracked`` loses all heads, because the account of some closures is not known here.
        """
        for topic, entry in self._entries.items():
            if entry.heads and topic.startswith(subscription):
                accounts = [each.account for each in (entry.known, entry.framed) if each is not None]
                if not accounts or any(
                    each is not UNNUMBERED and each.publisher == publisher and each.prefix == subscription
                    for each in accounts
                ):
                    self._forget_known(entry)
                    self.tracked.pop(topic, None)

    def clear(self) -> None:
        """Delete all entries, so that their closures are created again."""
        for cache in (self._entries, self.direct, self.tracked, self._shared):
            cache.clear()
        self._heads.clear()
        self._makers.clear()  # the flow of a route may have become active
        self._frame_makers.clear()
        self._budget.give_back(self._budget.used)

    def _drop(self) -> None:
        # Like `forget`, in one loop: a full cache drops a topic for each new one.
        entries, direct, tracked, freed = self._entries, self.direct, self.tracked, 0
        for topic in part(entries):
            entry = entries.pop(topic)
            freed += entry.size + entry.heads
            direct.pop(topic, None)
            if tracked:
                tracked.pop(topic, None)
        self._budget.give_back(freed)

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
            if entry.route is not None:
                deliver, size = self._for_one(entry, number, self._outcomes.undecodable, large=kind[1])
            else:
                steps = self._steps(entry, number, large=kind[1])
                deliver = make_deliver(steps, self._outcomes, self._outcomes.undecodable)
                size = _size_of_closure(entry)
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
            self._grow(entry, _size_of_closure(entry) + _LIST)
        return entry.coalesced[key]

    # -- entries ----------------------------------------------------------------------------------------

    def _enter(self, topic: bytes) -> TopicEntry:
        deliveries = self._matcher.deliveries(topic)
        route = shared = key = unrouted = None
        kept: tuple[BoundRoute, ...] | None = deliveries
        if not deliveries:
            unrouted = self._unrouted if is_text(topic) else self._not_utf8
        elif len(deliveries) == 1:
            route = deliveries[0].route
            shared = self._shared_call(route)
            if shared is not None:
                key, kept = shared.key(deliveries[0]), None
        entry = TopicEntry(topic, self._matcher.subscription(topic) or b"", route, key, kept, unrouted)
        self._budget.miss()
        if len(topic) > MAX_TOPIC:
            self._outcomes.long_topic(entry.topic)
        elif topic not in self._multipart:
            self._entries[topic] = entry
            entry.size = _size(topic, deliveries) if shared is None else _size_of_key(topic, key, deliveries[0])
            self._budget.take(entry.size)
        return entry

    # -- closures ---------------------------------------------------------------------------------------

    def _make_plain(self, entry: TopicEntry) -> tuple[Deliver, int]:
        """Return the closure for bodies without a header, and its size in bytes.

        The closure returns `TRACKED` for a body with a tracked header, and for an empty body, because the NUL may be
        missing. If every decoder fails on such a body, the closure checks for them only after a decode error, so the
        check costs nothing for valid messages.
        """
        if entry.route is not None:
            found = self._of_known_maker(entry, (entry.route, 0, False, self._refuse_plain, None, None))
            if found is not None:
                return found
        steps = self._steps(entry, 0, large=False)
        size = _size_of_closure(entry)
        if all(_refuses_magic(step, self._codecs.default) for step in steps):
            if len(steps) == 1:
                return self._for_one(entry, 0, self._refuse_plain)
            if not any(map(self._takes_empty, steps)):
                return make_deliver(steps, self._outcomes, self._refuse_plain), size
        return _told_apart(make_deliver(steps, self._outcomes, self._outcomes.undecodable)), size + _CLOSURE

    def _takes_empty(self, step: Step) -> bool:
        """Return True if the decoder accepts an empty body, like that for text."""
        route = step.delivery.route
        found = self._taking_empty.get(route)
        if found is None:
            found = self._taking_empty[route] = not _fails(step.decode, b"")
        return found

    def _refuse_plain(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Handle a decode error, unless the body is empty or has a header."""
        if not _is_plain(body):
            return TRACKED
        return self._outcomes.undecodable(deliveries, error, body, raw)

    def _make_deliver_coalesced(self, entry: TopicEntry, number: int, *, large: bool) -> DeliverCoalesced | None:
        steps = self._steps(entry, number, large=large)
        decode = self._list_decoder(steps, number, large=large)
        return None if decode is None else make_deliver_coalesced(steps, decode, self._unpacked, self._outcomes)

    def _list_decoder(self, steps: Sequence[Step], number: int, *, large: bool) -> Decode | None:
        """Return the decoder of a list; None if messages must be decoded one by one."""
        if number not in LISTS or not steps or not share_one_type(steps):
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
        return _all_of(found.type, decode) if untyped and found.type in (dict, list) else decode

    def _steps(self, entry: TopicEntry, number: int, *, large: bool) -> list[Step]:
        """Return a step for each route.

        Routes of the same type and codec share the decoded object, unless they have ``copy=True``.
        """
        slots: dict[object, int] = {}
        steps = []
        for index, delivery in enumerate(self._deliveries(entry)):
            route = delivery.route
            key = index if route.options.copy else (_key(route.call.schema), _key(route.options.codec))
            call = invocation(delivery, entry.topic, self._outcomes)
            decode, slot = self._decoder(route, number, large), slots.setdefault(key, index)
            if route.lists is not None:
                steps.append(batching_step(delivery, self._outcomes.gather(delivery, call.function), decode, slot))
                continue
            if route.flow.active:
                # The closure then returns the call instead of making it: partial(partial, f)(m) is partial(f, m).
                call = attrs.evolve(call, function=partial(partial, call.function))
            steps.append(Step(delivery, call, decode, slot, self._outcomes.settle))
        return steps

    def _decoder(self, route: CompiledRoute, number: int, large: bool) -> Decode | None:
        """Return the decoder of a route, or None for a route without a body.

        If the codec is only the app's default, the bodies may be JSON instead of msgpack. The first JSON body of a
        route raises an exception of the msgpack decoder. After it, the decoders of the route try JSON first, and so do
        those of routes without a decoder: one exception and one search for closures are enough for many handlers.
        """
        schema, codec = route.call.schema, route.options.codec
        if schema is NO_BODY:
            return None
        decode = self._make_decoder_once(schema, codec, number, large)
        default, extras = self._codecs.default, self._codecs.extras
        if number or not may_be_json(schema, stated=None, route=codec, default=default, extras=extras):
            return decode
        if self._json and not any((route, each, False) in self._either for each in (False, True)):
            self._json.add(route)
        key = (route, large, route in self._json)
        either = self._either.get(key)
        if either is None:
            read = partial(self._make_decoder_once, schema, codec, JSON.number, large)
            found = partial(self._found_json, route)
            either = json_first(decode, read()) if key[2] else json_too(decode, read, found)
            self._either[key] = either
        return either

    def _found_json(self, route: CompiledRoute) -> None:
        """Let all topics of a route try JSON first, because one of them sends it."""
        if route in self._json:
            return
        self._json.add(route)
        for key in [key for key in self._makers if key[:2] == (route, 0)]:
            del self._makers[key]
        # If the closure had no room in the cache, its entry was dropped before the closure was called.
        for entry in self._entries.values():
            known = entry.known
            guesses = entry.plain or (known and not known.number) or any(not number for number, _ in entry.others)
            if guesses and route in entry.routes:
                entry.plain, entry.others = None, _EMPTY
                self._forget_direct(entry)

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
    size, text = _ENTRY + len(topic), _size_of_text(topic)
    for each in deliveries:
        size += _ROUTE
        if each.kept is not None:
            size += _SEGMENTS + _SEGMENT * len(each.kept) + text
        if each.arguments:
            size += _SEGMENTS + _SEGMENT * len(each.arguments) + text
        constants = each.route.call.constants
        if constants:
            size += _PARTIAL
        if constants.topic:
            size += _SEGMENT + text
    return size


def _size_of_key(topic: bytes, key: Any, delivery: BoundRoute) -> int:
    """Return the size of an entry with a key, without closures, in bytes."""
    size, constants = _ENTRY + len(topic), delivery.route.call.constants
    if type(key) is tuple:
        texts = bool(constants.converters) + bool(constants.topic)
        size += _KEY + _VALUE * (len(key) - 1) + texts * _size_of_text(topic)
    return size


def _size_of_text(topic: bytes) -> int:
    """Return the size of the characters of a topic, or of all its segments, in bytes.

    A character of a text that is not ASCII takes up to 4 bytes.
    """
    return len(topic) if topic.isascii() else 4 * len(topic)


def _size_of_closure(entry: TopicEntry) -> int:
    """Return the size of a closure of one topic, in bytes."""
    size = _CLOSURE
    for route in entry.routes:
        size += _STEP
        if route.call.constants:
            size += _PARTIAL
        if route.flow.active or route.around.isolated:
            size += _LATER
        if route.around.chain is not None:
            size += _AROUND + _size_of_text(entry.wire)
        if route.lists is not None:
            size += _GATHER
    return size


def _refused_already(_body: bytes, _raw: RawFrames) -> int:
    return TRACKED


def _told_apart(deliver: Deliver) -> Deliver:
    """Return a ``deliver`` that returns `TRACKED` for bodies that are not plain."""
    return lambda body, raw: deliver(body, raw) if _is_plain(body) else TRACKED


def _is_plain(body: bytes) -> bool:
    """Return True if a body is not empty, and has no tracked header."""
    return body[: len(MAGIC)] not in (b"", MAGIC)


def _refuses_magic(step: Step, default: Codec) -> bool:
    """Return True if the decoder fails on every body that starts with `MAGIC`.

    The decoders for JSON, msgpack and text fail on such bodies. ``default`` is the app's codec.
    """
    options = step.delivery.route.options
    # With `stale_after`, the closure checks the age of a message before it decodes the body.
    if step.decode is None or options.stale_after is not None or is_own(options.codec or default):
        return False
    return _fails(step.decode, _PROBE)


def _fails(decode: Decode | None, body: bytes) -> bool:
    """Return True if a decoder fails on a body. No decoder does not fail."""
    try:
        if decode is not None:
            decode(body)
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


def _keep(kept: dict[Any, Any], key: object, made: object) -> None:
    """Keep at most `_MAKERS` of the objects that topics share."""
    if len(kept) >= _MAKERS:
        for each in part(kept):
            del kept[each]
    kept[key] = made
