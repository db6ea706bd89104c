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
from zroute.messages.batches import Batch, parse_batch, singles
from zroute.messages.bodies import body_decoder, guarded
from zroute.messages.codecs import BUILTIN, JSON, MSGPACK, Codec
from zroute.messages.schema import inspect
from zroute.messages.topics import Pattern, Topic
from zroute.messages.wire import (
    COUNTER,
    HEAD_SIZE,
    HEADER_MAX,
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
from zroute.options import LARGE_FRAME, MAX_PARTS, MAX_TOPIC, READ_BUDGET, TOPIC_CACHE
from zroute.routing.batches import HandOut, Unpacked, make_hand_out
from zroute.routing.deliver import (
    TRACKED,
    UNDECODABLE,
    CompiledRoute,
    Decode,
    Deliver,
    Delivery,
    Outcomes,
    Step,
    gathering,
    make_deliver,
    share_one_type,
)
from zroute.routing.lists import releasing
from zroute.routing.parameters import NO_BODY, identity
from zroute.routing.raw import Raw, Uncopied, frames_of, uncopied
from zroute.routing.trie import build, minimal_cover

__all__ = ["Account", "Accounts", "Dispatch", "RouteTable", "TableOutcomes"]

Dispatch = Literal["all", "most_specific"]

_HEADS_KEPT = 64  # publishers of one topic whose headers are known; beyond that they are learnt anew
_HEAD_AND_NUMBER = Struct(f">{HEAD_SIZE}sQ").unpack_from
_COUNTER = COUNTER.unpack_from
_LISTED = (JSON.number, MSGPACK.number)  # codecs whose lists are decoded in one call
_ROUNDS = list(range(1, READ_BUDGET + 1))
_PROBE = MAGIC + bytes(HEADER_SIZE - len(MAGIC))


class TableOutcomes(Outcomes, Protocol):
    """`Outcomes`, and what becomes of messages that reached no route."""

    def unrouted(self, raw: Raw) -> None:
        """No route takes this topic."""

    def malformed(self, error: EnvelopeError, raw: Raw) -> None:
        """These frames are no message."""

    def release(self) -> None:
        """Nothing more waits to be read: hand over all lists."""

    def release_soon(self) -> None:
        """Hand them over before long, if they are not before."""


class Account(Protocol):
    """What a subscription received of one publisher: ``expected`` is the number that comes next."""

    expected: int


class Accounts(Protocol):
    """Who keeps account of what tracked publishers sent, see `zroute.joins`."""

    def account(self, epoch: int, subscription: bytes) -> Account | None:
        """That of a subscription of ours at one publisher."""

    def judge(self, account: Any, number: int, many: int = 1) -> bool:
        """Of a message that was not the expected one, or the first of many: whether it is to be delivered."""

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
    ``others`` keeps the closures made so far by (codec, whether for large bodies), ``hand_outs`` those for frames of
    several messages.
    """

    topic: Topic
    subscription: bytes
    deliveries: tuple[Delivery, ...]
    nobody: Deliver
    plain: Deliver
    others: dict[tuple[int, bool], Deliver] = attrs.field(factory=dict)
    hand_outs: dict[tuple[int, bool], HandOut | None] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Latest:
    """What came last of each publisher that keeps its messages for those who join; a changed table takes it over."""

    raws: dict[tuple[int, bytes], Raw] = attrs.field(factory=dict)

    def has(self, epoch: int, topic: bytes, at: float) -> bool:
        """Whether a message came that is not older than one sent ``at``, in Unix seconds."""
        raw = self.raws.get((epoch, topic))
        known = None if raw is None else sent_at(frames_of(raw))
        return known is not None and known >= at

    def note(self, epoch: int, topic: bytes, raw: Raw) -> None:
        """This came last."""
        if len(self.raws) >= TOPIC_CACHE:
            self.raws.clear()
        self.raws[epoch, topic] = raw

    def noting(self, epoch: int, topic: bytes, deliver: Deliver) -> Deliver:
        """``deliver``, for messages that are noted as the latest."""

        def deliver_noted(body: bytes, raw: Raw) -> int | None:
            self.note(epoch, topic, raw)
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
        self.most: int | None = None
        """How many messages of one frame may be delivered in one drain, if that is bounded."""
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
        self._unpacked = Unpacked()
        self._latest = _Latest()
        if any(route.lists for route in routes):  # nobody else pays for it
            self.drain = releasing(self.drain, outcomes.release, outcomes.release_soon)  # type: ignore[method-assign,assignment]

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
        table._parts, table._latest, table._unpacked = self._parts, self._latest, self._unpacked
        self.hold()
        return table

    def reclassify(self) -> None:
        """Make all closures anew, also for what is left of a batch: a route's flow has become active since."""
        for cache in (self._entries, self._plain, self._tracked):
            cache.clear()
        self._unpacked.hold()

    # -- the loop -------------------------------------------------------------------------------------

    def drain(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        """Read and deliver up to ``budget`` messages (256 at the most), fewer after a `hold`.

        ``recv(1)`` (1 is ZMQ_DONTWAIT) returns the next part of a message, or raises, which ends the drain
        and goes to the caller: nothing else does; ``recv(1, False)`` need not copy it. ``more()`` says whether
        the part read last has another behind it; it is costly and asked only where the rule of parts needs it.
        """
        plain, tracked = self._plain.get, self._tracked.get
        unpack, judge = _HEAD_AND_NUMBER, self._judge
        received = 0
        if self._unpacked.rest:
            self.work_off(budget)
            return
        if self._parts.skipping:
            budget -= self._skip(recv, more, budget)
        rounds = self._rounds = _ROUNDS[:budget]  # a list, so that `hold` can end it at no cost
        receive = recv
        try:
            for received in rounds:  # noqa: B007  # counted in the end
                frame = receive(1)
                if len(frame) > LARGE_FRAME:
                    receive = uncopied(recv)  # large ones come in rows: what follows is copied once, not twice
                    self._one_by_one(frame, recv, more)
                    continue
                topic, _, body = frame.partition(NUL)
                deliver = plain(topic)
                if deliver is not None and body:  # no body: perhaps there was no NUL
                    if fault := deliver(body, frame):
                        self._after(fault, topic, frame, recv, more)
                    continue
                heads = tracked(topic)
                if heads is not None and len(body) > HEADER_SIZE:
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

    def hold(self) -> None:
        """Make the drain that is under way end after this message; later ones are not affected."""
        self._rounds.clear()
        self._unpacked.hold()

    @property
    def unpacked(self) -> int:
        """How many messages are left of frames of several: the next drain begins with them."""
        return len(self._unpacked.rest)

    def work_off(self, budget: int) -> None:
        """Deliver up to so many of those, fewer after a `hold`."""
        rest, outer = self._unpacked.rest, self._rounds
        self._rounds = rounds = list(range(budget))
        for _ in rounds:
            if not rest:
                break
            topic, codec, body, frame = rest.popleft()
            self._stats.received += 1
            try:
                self._check_size(body)
                entry = self._entries.get(topic) or self._enter(topic)
                self._deliver(entry, codec, body)(body, frame)
            except EnvelopeError as error:
                self._malformed(error, frame)
        self._rounds = outer

    # -- the rule of parts ------------------------------------------------------------------------------

    def _one_by_one(self, frame: bytes | Uncopied, recv: Callable[[int], bytes], more: Callable[[], int]) -> None:
        """A message that is new, large, of several parts or broken: RCVMORE is asked."""
        if not more():
            self._receive(frame)
            return
        parts = [frame[:]]
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
            if not isinstance(raw, tuple) and (at := raw[: MAX_TOPIC + 1].find(NUL)) >= 0:
                topic, start = raw[:at], at + 1  # a body may be large: it is copied once
                if raw[start : start + len(MAGIC)] == MAGIC:
                    header = parse_header(raw[start : start + HEADER_MAX])
                    fixed, body = raw[start : start + HEADER_SIZE], raw[start + header.size :]
                    self._receive_tracked(topic, header, fixed, body, raw)
                else:
                    self._receive_plain(topic, raw[start:], raw)
                return
            topic, body = split(frames_of(raw))
            if body.startswith(MAGIC):
                header = parse_header(body)
                self._receive_tracked(topic, header, body[:HEADER_SIZE], body[header.size :], raw)
            else:
                self._receive_plain(topic, body, raw)
        except EnvelopeError as error:
            self._malformed(error, raw)

    def _receive_plain(self, topic: bytes, body: bytes, raw: Raw) -> None:
        self._accounts.untracked(topic)
        entry = self._entries.get(topic) or self._enter(topic)
        self._check_size(body)
        deliver = entry.plain if len(body) <= LARGE_FRAME else self._deliver(entry, 0, body)
        deliver(body, raw)

    def _receive_tracked(self, topic: bytes, header: Header, fixed: bytes, body: bytes, raw: Raw) -> None:
        """``fixed`` is the part of the header that each has, and ``body`` what stands behind the header."""
        if header.kind is Kind.KEPT:
            self._receive_kept(header, topic, body, raw)
            return
        if header.kind is Kind.BATCH:
            self._receive_batch(header, fixed, topic, body, raw)
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
        if header.size == HEADER_SIZE + COUNTER.size * len(header.further) and len(body) <= LARGE_FRAME:
            short = self._past_counters(entry, header, account, deliver) if header.further else deliver
            self._remember_head(entry, fixed[:HEAD_SIZE], account if ours else _UNJUDGED, short)
        if not header.sequence or self._judge(account, header.number(len(entry.subscription))):
            self._check_size(body)
            deliver(body, raw)

    def _past_counters(self, entry: _Entry, header: Header, account: Any, deliver: Deliver) -> Deliver:
        """``deliver``, for frames with further counters, where the number of our subscription may be one of them.

        A frame that begins alike has as many, and mostly of the same subscriptions; else it goes the long way.
        """
        further, ours = COUNTER.size * len(header.further), len(entry.subscription)
        at = next((COUNTER.size * place for place, (span, _) in enumerate(header.further) if span == ours), None)

        def deliver_behind(body: bytes, raw: Raw) -> int | None:
            if len(body) < further:
                self._malformed(EnvelopeError("a tracked header that ends inside its further counters"), raw)
                return UNDECODABLE
            if at is not None:
                span, number = _COUNTER(body, at)
                if span != ours:
                    self._receive(raw)
                    return None
                if number == account.expected > 0:
                    account.expected = number + 1
                elif not self._judge(account, number):
                    return None
            return deliver(body[further:], raw)

        return deliver_behind

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

    def _judge(self, account: Any, number: int, many: int = 1) -> bool:
        """Whether a message is to be delivered; ``number`` is 0 where it carries none for our subscription.

        Of ``many`` messages it is that of the first.
        """
        if account is _UNJUDGED:
            return True
        if number == account.expected > 0:
            account.expected = number + many
            return True
        if self._accounts.judge(account, number, many):
            return True
        self._stats.duplicate += many
        return False

    # -- several messages in a frame ----------------------------------------------------------------------

    def _receive_batch(self, header: Header, fixed: bytes, topic: bytes, body: bytes, raw: Raw) -> None:
        entry = self._entries.get(topic) or self._enter(topic)
        account: Any = self._accounts.account(header.epoch, entry.subscription) or _UNJUDGED
        if header.size == HEADER_SIZE and header.span == len(entry.subscription) and len(body) <= LARGE_FRAME:
            unpacking = self._unpacking(entry, header, account)
            self._remember_head(entry, fixed[:HEAD_SIZE], _UNJUDGED, unpacking)
        batch = parse_batch(header.codec, body)
        if header.sequence and not self._judge(account, header.number(len(entry.subscription)), batch.many):
            self._stats.received += batch.many - 1
            return
        if header.keeps:
            self._latest.note(header.epoch, topic, raw)
        self._unpack(entry, batch, fixed)

    def _unpacking(self, entry: _Entry, header: Header, account: Any) -> Deliver:
        """What delivers the frames that begin like this one; it looks at their numbers itself."""
        codec, keeps, at = header.codec, header.keeps, len(entry.topic.wire) + 1

        def deliver(body: bytes, raw: Raw) -> int | None:
            assert isinstance(raw, bytes)  # the loop gives frames
            try:
                batch = parse_batch(codec, body)
            except EnvelopeError as error:
                self._malformed(error, raw)
                return UNDECODABLE
            fixed = raw[at : at + HEADER_SIZE]
            number, many = _HEAD_AND_NUMBER(fixed)[1], batch.many
            if number and not self._judge(account, number, many):
                self._stats.received += many - 1
                return None
            if keeps:
                self._latest.note(header.epoch, entry.topic.wire, raw)
            self._unpack(entry, batch, fixed)
            return None

        return deliver

    def _unpack(self, entry: _Entry, batch: Batch, fixed: bytes) -> None:
        """Deliver the messages of a batch as if each had come alone. The frame itself is counted already."""
        many, topic, stats = batch.many, entry.topic.wire, self._stats
        made: list[bytes] = []

        def frames() -> list[bytes]:
            if not made:
                made.extend(singles(topic, fixed, batch.bodies))
            return made

        most = many if self.most is None else min(many, self.most)
        whole = most == many and len(batch.listing) <= self._max_message  # else each is looked at
        hand_out = self._hand_out(entry, batch.codec, large=len(batch.listing) > LARGE_FRAME) if whole else None
        done = hand_out(batch, frames) if hand_out is not None else 0
        stats.received += done - 1
        if done < many:
            left = zip(batch.bodies[done:], frames()[done:], strict=True)
            self._unpacked.rest.extend((topic, batch.codec, body, frame) for body, frame in left)
        if not done:
            self.work_off(most)
        self._rounds.clear()  # so many messages at a time: then the clock is looked at

    def _hand_out(self, entry: _Entry, number: int, *, large: bool) -> HandOut | None:
        """What decodes a whole list and hands it out; None where each message goes its own way."""
        key = (number, large)
        if key not in entry.hand_outs:
            entry.hand_outs[key] = self._make_hand_out(entry, number, large=large)
        return entry.hand_outs[key]

    def _make_hand_out(self, entry: _Entry, number: int, *, large: bool) -> HandOut | None:
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
        decode = self._make_decoder(listed, route.route.codec, number, large)
        if untyped and found.type in (dict, list):
            decode = _all_of(found.type, decode)
        return make_hand_out(steps, decode, self._unpacked, self._outcomes)

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
            decode, slot = self._decoder(route, number, large), slots.setdefault(key, index)
            if route.lists is not None:
                steps.append(gathering(delivery, self._outcomes.gather(delivery, function), decode, slot))
                continue
            if route.flow.active:
                function = partial(partial, function)
            steps.append(Step(delivery, function, decode, slot, self._outcomes.settle))
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
