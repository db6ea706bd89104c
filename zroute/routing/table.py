"""RouteTable: the compiled form of all routes, and the loop that every message goes through.

`RouteTable.drain` reads frames, splits the topic off and calls the topic's deliver closure. It knows the
layout of `zroute.messages.wire`, and the cache finds routes and expected header together in one look-up.
Whatever is rare (a new topic, another codec, several parts, a large body, a fault) leaves the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from struct import Struct
from typing import Any, Literal, Protocol

import attrs

from zroute.delivery.stats import Stats
from zroute.errors import DecodeError, EnvelopeError
from zroute.messages.bodies import body_decoder, guarded
from zroute.messages.codecs import BUILTIN, Codec
from zroute.messages.topics import Pattern, Topic
from zroute.messages.wire import (
    HEAD_SIZE,
    HEADER_SIZE,
    MAGIC,
    NUL,
    Envelope,
    Header,
    Kind,
    parse,
    parse_header,
    parse_kept,
    sent_at,
    split,
)
from zroute.options import LARGE_FRAME, MAX_PARTS, TOPIC_CACHE
from zroute.routing.deliver import (
    TRACKED,
    CompiledRoute,
    Decode,
    Deliver,
    Delivery,
    Outcomes,
    Raw,
    Step,
    frames_of,
    make_deliver,
)
from zroute.routing.parameters import NO_BODY, identity
from zroute.routing.trie import build, minimal_cover

__all__ = ["Account", "Accounts", "Dispatch", "RouteTable", "TableOutcomes"]

Dispatch = Literal["all", "most_specific"]

_HEADS_KEPT = 64  # publishers of one topic whose headers are known; beyond that they are learnt anew
_HEAD_AND_NUMBER = Struct(f">{HEAD_SIZE}sQ").unpack_from
_PROBE = MAGIC + bytes(HEADER_SIZE - len(MAGIC))


class TableOutcomes(Outcomes, Protocol):
    """`Outcomes`, and what becomes of messages that reached no route."""

    def unrouted(self, raw: Raw) -> None:
        """No route takes this topic."""

    def malformed(self, error: EnvelopeError, raw: Raw) -> None:
        """These frames are no message."""


class Account(Protocol):
    """What a subscription received of one publisher: ``expected`` is the number that comes next."""

    expected: int


class Accounts(Protocol):
    """Who keeps account of what tracked publishers sent, see `zroute.joins`."""

    def account(self, epoch: int, subscription: bytes) -> Account | None:
        """That of a subscription of ours at one publisher."""

    def judge(self, account: Any, number: int) -> bool:
        """Of a message that was not the expected one: whether it is to be delivered."""

    def kept(self, header: Header, marker: bytes, topic: bytes) -> bool:
        """Whether a message that a publisher kept for somebody who joined is to be delivered here."""

    def untracked(self, topic: bytes) -> None:
        """A message that no numbers came with."""

    def control(self, header: Header, topic: bytes, body: bytes) -> None:
        """A frame that carries no message. Raises EnvelopeError."""


@attrs.define(eq=False)
class _Unjudged:
    """The account of messages whose numbers say nothing about the subscription they came by."""

    expected: int = 0


_UNJUDGED = _Unjudged()


@attrs.define(eq=False)
class _Entry:
    """What is known about one topic.

    ``subscription`` is the one of ours that it came by; ``plain`` delivers bodies without a tracked header,
    ``nobody`` tells that no route takes the topic.
    ``others`` keeps the closures made so far by (codec, whether for large bodies).
    """

    topic: Topic
    subscription: bytes
    deliveries: tuple[Delivery, ...]
    nobody: Deliver
    plain: Deliver
    others: dict[tuple[int, bool], Deliver] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Latest:
    """What came last of each publisher that keeps its messages for those who join; a changed table takes it over."""

    raws: dict[tuple[int, bytes], Raw] = attrs.field(factory=dict)

    def has(self, epoch: int, topic: bytes, at: float) -> bool:
        """Whether a message came that is not older than one sent ``at``, in Unix seconds."""
        raw = self.raws.get((epoch, topic))
        known = None if raw is None else sent_at(frames_of(raw))
        return known is not None and known >= at

    def noting(self, epoch: int, topic: bytes, deliver: Deliver) -> Deliver:
        """``deliver``, for messages that are noted as the latest."""
        raws, key = self.raws, (epoch, topic)

        def deliver_noted(body: bytes, raw: Raw) -> int | None:
            if len(raws) >= TOPIC_CACHE:
                raws.clear()
            raws[key] = raw
            return deliver(body, raw)

        return deliver_noted


@attrs.define(eq=False)
class _Parts:
    """What is known about the parts of messages; a changed table takes it over in the middle of one.

    ``skipping`` says that the rest of a refused message is to be read; ``multipart`` holds the topics for
    which RCVMORE is asked each time.
    """

    skipping: bool = False
    multipart: dict[bytes, None] = attrs.field(factory=dict)


class RouteTable:
    """All routes of an app, frozen: subscriptions, and `drain`, which delivers what a socket receives.

    ``codecs`` maps numbers on the wire to codecs this app knows; ``default`` is the one of bodies for which
    nobody says it. ``max_message`` bounds a body in bytes. ``clock`` gives Unix seconds for envelopes.
    """

    def __init__(
        self,
        routes: Sequence[CompiledRoute],
        *,
        default: Codec,
        codecs: Mapping[int, Codec],
        dispatch: Dispatch,
        max_message: int,
        stats: Stats,
        outcomes: TableOutcomes,
        accounts: Accounts,
        clock: Callable[[], float],
    ) -> None:
        self.routes = tuple(routes)
        self.patterns: tuple[Pattern, ...] = tuple(pattern for route in routes for pattern in route.patterns)
        self.subscriptions = minimal_cover(pattern.subscription for pattern in self.patterns)
        self._subscribed = frozenset(self.subscriptions)
        self._lengths = sorted({len(each) for each in self.subscriptions})
        self._rounds: list[int] = []
        self._trie = build((pattern, route) for route in routes for pattern in route.patterns)
        self._default = default
        self._codecs = codecs
        self._only_first = dispatch == "most_specific"
        self._max_message = max_message
        self._stats = stats
        self._outcomes = outcomes
        self._accounts = accounts
        self._clock = clock
        self._entries: dict[bytes, _Entry] = {}
        # What the loop looks topics up in: one with plain bodies has its closure in the first, one with tracked
        # bodies has closures by the constant parts of the headers, one a publisher, in the second.
        self._plain: dict[bytes, Deliver] = {}
        self._tracked: dict[bytes, dict[bytes, tuple[Any, Deliver]]] = {}
        self._decoders: dict[tuple[object, Codec | None, int, bool], Decode] = {}
        self._parts = _Parts()
        self._latest = _Latest()

    def changed(self, routes: Sequence[CompiledRoute], codecs: Mapping[int, Codec]) -> RouteTable:
        """A table with other routes in place of this one, whose drain ends after the message at hand."""
        table = RouteTable(
            routes,
            default=self._default,
            codecs=codecs,
            dispatch="most_specific" if self._only_first else "all",
            max_message=self._max_message,
            stats=self._stats,
            outcomes=self._outcomes,
            accounts=self._accounts,
            clock=self._clock,
        )
        table._parts, table._latest = self._parts, self._latest
        self.hold()
        return table

    def reclassify(self) -> None:
        """Make all closures anew: a route's flow has become active since."""
        for cache in (self._entries, self._plain, self._tracked):
            cache.clear()

    # -- the loop -------------------------------------------------------------------------------------

    def drain(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        """Read and deliver up to ``budget`` messages, fewer after a `hold`.

        ``recv(1)`` (1 is ZMQ_DONTWAIT) returns the next part of a message, or raises, which ends the drain
        and goes to the caller: nothing else does. ``more()`` says whether the part read last has another
        behind it; it is costly and asked only where the rule of parts needs it.
        """
        plain, tracked = self._plain.get, self._tracked.get
        unpack, judge = _HEAD_AND_NUMBER, self._judge
        received = 0
        if self._parts.skipping:
            budget -= self._skip(recv, more, budget)
        rounds = self._rounds = list(range(1, budget + 1))  # a list, so that `hold` can end it at no cost
        try:
            for received in rounds:  # noqa: B007  # counted in the end
                frame = recv(1)
                topic, _, body = frame.partition(NUL)
                deliver = plain(topic)
                if deliver is not None and 0 < len(body) <= LARGE_FRAME:  # no body: perhaps there was no NUL
                    if fault := deliver(body, frame):
                        self._after(fault, topic, frame, recv, more)
                    continue
                heads = tracked(topic)
                if heads is not None and HEADER_SIZE < len(body) <= LARGE_FRAME:
                    head, number = unpack(body)
                    known = heads.get(head)
                    if known is not None:
                        account, deliver = known
                        if number == account.expected > 0:
                            account.expected = number + 1
                        elif number and not judge(account, number):
                            continue
                        if fault := deliver(body[HEADER_SIZE:], frame):
                            self._after(fault, topic, frame, recv, more)
                        continue
                self._one_by_one(frame, recv, more)
        except BaseException:
            received -= 1  # it was `recv` that raised: nothing else in the loop does
            raise
        finally:
            self._stats.received += received

    def deliver(self, frames: tuple[bytes, ...]) -> None:
        """Deliver one whole message. Counts it; raises nothing."""
        self._stats.received += 1
        self._receive(frames[0] if len(frames) == 1 else frames)

    def hold(self) -> None:
        """Make the drain that is under way end after this message; later ones are not affected."""
        self._rounds.clear()

    # -- the rule of parts ------------------------------------------------------------------------------

    def _one_by_one(self, frame: bytes, recv: Callable[[int], bytes], more: Callable[[], int]) -> None:
        """A message that is new, large, of several parts or broken: RCVMORE is asked."""
        if not more():
            self._receive(frame)
            return
        parts = [frame]
        while len(parts) < MAX_PARTS and (len(parts) == 1 or more()):
            parts.append(recv(1))
        self._parts.skipping = bool(len(parts) == MAX_PARTS and more())
        if self._parts.skipping:
            self.hold()
            self._malformed(EnvelopeError(f"more than {MAX_PARTS} parts", frames=tuple(parts)), tuple(parts))
        else:
            self._receive(tuple(parts))

    def _skip(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> int:
        """Read up to ``budget`` parts of a message that is refused already; how many it were."""
        for parts in range(1, budget + 1):
            recv(1)
            if not more():
                self._parts.skipping = False
                return parts
        return budget

    def _after(
        self, fault: int, topic: bytes, frame: bytes, recv: Callable[[int], bytes], more: Callable[[], int]
    ) -> None:
        """A part that was taken as whole has a header, or could not be decoded."""
        if fault is TRACKED:
            self._one_by_one(frame, recv, more)
        elif more():  # what is left of its message is no message
            self._forget(topic)
            self._parts.multipart[topic] = None  # asked each time from now on
            if len(self._parts.multipart) > TOPIC_CACHE:
                del self._parts.multipart[next(iter(self._parts.multipart))]
            self._parts.skipping = True
            self.hold()

    # -- whole messages ---------------------------------------------------------------------------------

    def _receive(self, raw: Raw) -> None:
        try:
            topic, body = split(frames_of(raw))
            if body[: len(MAGIC)] == MAGIC:
                self._receive_tracked(topic, body, raw)
            else:
                self._accounts.untracked(topic)
                entry = self._entries.get(topic) or self._enter(topic)
                self._check_size(body)
                deliver = entry.plain if len(body) <= LARGE_FRAME else self._deliver(entry, 0, body)
                deliver(body, raw)
        except EnvelopeError as error:
            self._malformed(error, raw)

    def _receive_tracked(self, topic: bytes, body: bytes, raw: Raw) -> None:
        header = parse_header(body)
        head, body = body[:HEAD_SIZE], body[header.size :]
        if header.kind is Kind.KEPT:
            self._receive_kept(header, topic, body, raw)
            return
        if header.kind != Kind.DATA:
            self._accounts.control(header, topic, body)
            self._stats.control += 1
            return
        entry = self._entries.get(topic) or self._enter(topic)
        deliver = self._deliver(entry, header.codec, body)
        if header.keeps:
            deliver = self._latest.noting(header.epoch, topic, deliver)
        account: Any = self._accounts.account(header.epoch, entry.subscription) or _UNJUDGED
        ours = header.span == len(entry.subscription)
        if header.size == HEADER_SIZE and len(body) <= LARGE_FRAME:  # others can't go the short way
            self._remember_head(entry, head, account if ours else _UNJUDGED, deliver)
        if not header.sequence or self._judge(account, header.number(len(entry.subscription))):
            self._check_size(body)
            deliver(body, raw)

    def _receive_kept(self, header: Header, marker: bytes, body: bytes, raw: Raw) -> None:
        topic, body = parse_kept(body)
        ours = self._accounts.kept(header, marker, topic) and self._subscription(topic) is not None
        if not ours or self._latest.has(header.epoch, topic, header.sent_at / 1e9):
            self._stats.control += 1
            return
        self._check_size(body)
        entry = self._entries.get(topic) or self._enter(topic)
        deliver = self._deliver(entry, header.codec, body)
        self._latest.noting(header.epoch, topic, deliver)(body, raw)

    def _judge(self, account: Any, number: int) -> bool:
        """Whether a message is to be delivered; ``number`` is 0 where it carries none for our subscription."""
        if account is _UNJUDGED:
            return True
        if number == account.expected > 0:
            account.expected = number + 1
            return True
        if self._accounts.judge(account, number):
            return True
        self._stats.duplicate += 1
        return False

    def _check_size(self, body: bytes) -> None:
        if len(body) > self._max_message:
            raise EnvelopeError(f"a body of {len(body)} bytes, over the limit of {self._max_message}")

    def _malformed(self, error: EnvelopeError, raw: Raw) -> None:
        self._stats.malformed += 1
        self._outcomes.malformed(error, raw)

    # -- entries ----------------------------------------------------------------------------------------

    def _enter(self, topic: bytes) -> _Entry:
        name = Topic.from_wire(topic)
        deliveries = tuple(self._deliveries(topic, name))
        subscription = self._subscription(topic) or b""
        entry = _Entry(name, subscription, deliveries, nobody := self._nobody(topic), nobody)
        entry.plain = self._make_plain(entry) if deliveries else _told_apart(nobody)
        if topic not in self._parts.multipart:
            if len(self._entries) >= TOPIC_CACHE:
                self._forget(next(iter(self._entries)))
            self._entries[topic] = entry
            self._plain[topic] = entry.plain
        return entry

    def _subscription(self, topic: bytes) -> bytes | None:
        """The one of ours that the topic came by. There may be thousands, of few lengths."""
        starts = (topic[:length] for length in self._lengths)
        return next((each for each in starts if each in self._subscribed), None)

    def _remember_head(self, entry: _Entry, head: bytes, account: Any, deliver: Deliver) -> None:
        """From now on this topic is known by the headers of its publishers; plain bodies take the long way."""
        topic = entry.topic.wire
        if topic in self._entries:
            self._plain.pop(topic, None)
            heads = self._tracked.setdefault(topic, {})
            if len(heads) >= _HEADS_KEPT:
                heads.clear()
            heads[head] = account, deliver

    def _forget(self, topic: bytes) -> None:
        for cache in (self._entries, self._plain, self._tracked):
            cache.pop(topic, None)

    def _nobody(self, topic: bytes) -> Deliver:
        """For a topic that no route takes."""
        try:
            topic.decode()
        except UnicodeDecodeError:
            return lambda _body, raw: self._malformed(EnvelopeError("a topic that is not UTF-8"), raw)

        def unrouted(_body: bytes, raw: Raw) -> None:
            self._stats.unrouted += 1
            self._outcomes.unrouted(raw)

        return unrouted

    def _deliveries(self, topic: bytes, name: Topic) -> Iterable[Delivery]:
        """The routes of a topic, most specific first, each function once."""
        seen: set[object] = set()
        for match in self._trie.match(topic):
            route = match.value
            if identity(route.route.function) in seen:
                continue
            captured = match.captures
            arguments = route.call.convert(captured)
            if arguments is None:
                continue
            seen.add(identity(route.route.function))
            captures = {key: value.decode() for key, value in captured.items()}
            yield Delivery(route, name, captures, arguments)
            if self._only_first:
                return

    # -- closures ---------------------------------------------------------------------------------------

    def _deliver(self, entry: _Entry, number: int, body: bytes) -> Deliver:
        """The closure for bodies such as this one, whose publisher names codec ``number`` (0: none)."""
        if not entry.deliveries:
            return entry.nobody
        kind = (number, len(body) > LARGE_FRAME)
        deliver = entry.others.get(kind)
        if deliver is None:
            deliver = entry.others[kind] = self._bound(entry, number, large=kind[1])
        return deliver

    def _make_plain(self, entry: _Entry) -> Deliver:
        """The closure for bodies without a header, which tells those that have one by returning `TRACKED`.

        Where every decoder is known to refuse such a body, it is told apart only then, at no cost.
        """
        steps = self._steps(entry, 0, large=False)
        if all(_refuses_magic(step) for step in steps):
            return make_deliver(steps, self._envelope, self._outcomes, self._refuse_plain)
        return _told_apart(make_deliver(steps, self._envelope, self._outcomes, self._outcomes.undecodable))

    def _refuse_plain(self, deliveries: Sequence[Delivery], error: BaseException, body: bytes, raw: Raw) -> int:
        if body[: len(MAGIC)] == MAGIC:
            return TRACKED
        return self._outcomes.undecodable(deliveries, error, body, raw)

    def _bound(self, entry: _Entry, number: int, *, large: bool) -> Deliver:
        steps = self._steps(entry, number, large=large)
        return make_deliver(steps, self._envelope, self._outcomes, self._outcomes.undecodable)

    def _steps(self, entry: _Entry, number: int, *, large: bool) -> list[Step]:
        slots: dict[object, int] = {}
        steps = []
        for index, delivery in enumerate(entry.deliveries):
            route = delivery.route
            key = index if route.route.copy else (_key(route.call.schema), route.route.codec)
            function = route.call.bind(delivery.arguments, entry.topic)
            if route.flow.active:
                function = partial(partial, function)
            steps.append(Step(delivery, function, self._decoder(route, number, large), slots.setdefault(key, index)))
        return steps

    def _decoder(self, route: CompiledRoute, number: int, large: bool) -> Decode | None:
        schema, codec = route.call.schema, route.route.codec
        if schema is NO_BODY:
            return None
        key = (_key(schema), codec, number, large)
        decode = self._decoders.get(key)
        if decode is None:
            decode = self._decoders[key] = self._make_decoder(schema, codec, number, large)
        return decode

    def _make_decoder(self, schema: Any, codec: Codec | None, number: int, large: bool) -> Decode:
        stated = self._codecs.get(number)
        if number and stated is None:
            return _unknown(number)
        decode = body_decoder(schema, stated=stated, route=codec, default=self._default)
        return guarded(decode, stated or codec or self._default) if large else decode

    def _envelope(self, raw: Raw) -> Envelope:
        return parse(frames_of(raw), self._clock())


def _told_apart(deliver: Deliver) -> Deliver:
    """``deliver``, for bodies without a header; others are told by returning `TRACKED`."""
    return lambda body, raw: TRACKED if body[: len(MAGIC)] == MAGIC else deliver(body, raw)


def _refuses_magic(step: Step) -> bool:
    """Whether this decoder fails on every body that starts with `MAGIC`: those for JSON, msgpack and text do."""
    route = step.delivery.route.route
    if (
        step.decode is None
        or route.stale_after is not None
        or (route.codec is not None and route.codec not in BUILTIN.values())
    ):
        return False
    try:
        step.decode(_PROBE)
    except Exception:
        return True
    return False


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
