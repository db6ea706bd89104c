"""RouteTable: the compiled form of all routes, and the loop that every message goes through.

`RouteTable.receive` reads frames, splits the topic off and calls the topic's deliver closure. It knows the layout of
`zroute.messages.wire`. Rules of the loop:

- **What may run for each message**: one `recv`, two comparisons of its length, one `partition`, one or two look-ups in
  a dict, for a tracked message one `unpack` and one comparison of numbers, and the closure. No clock, no log, no object
  of our own, no attribute that a local name can hold. `tests/test_house.py` counts the functions and files of the way
  of a message, and ``benchmarks`` its instructions.
- **What is known beforehand**: a topic's routes, decoder and parameters are in its closure, and the closure is in the
  cache (`zroute.receiving.topic_cache`): by topic for plain messages; by topic and the 16 constant bytes of the header
  for tracked ones, beside the account whose number is compared. Only messages that took the long way put entries
  there, so the loop checks nothing that the entry stands for: kind, codec, epoch, span, and the absence of headers.
- **The order of checks.** Size comes first: a large frame is not split in the loop, and a small one needs no check of
  ``max_message``. Then plain, then tracked: a topic is in one of the two maps, so a tracked message costs one vain
  look-up, and no look at the magic. The number comes before the closure: a duplicate is not delivered, and a gap is
  reported before the message behind it.
- **What is rare leaves the loop**: a new topic, another codec, several parts, a large body, a fault, a number that is
  not the expected one. RCVMORE costs more than `recv`, so it is asked only there (the rule of parts in
  ``docs/reference/wire.md``).
- **The bound is a list.** The loop runs over a list of numbers. `hold` empties it, and so ends the loop behind the
  message at hand: a pause, or a table that takes this one's place, costs nothing while there is none.
- **Only `recv` raises.** What handlers raise ends in their closures, and what peers send in the long way. An error of
  `recv` (EAGAIN, most often) goes to the caller with its own message not counted.
- **Counting.** Each message is counted in one of `Stats.routed`, ``unrouted``, ``malformed``, ``duplicate`` and
  ``control``. The loop counts as routed all messages that did not leave it, once for each call: the rare branches count
  the others in ``aside``, so the common way pays nothing. The code that a message goes to then counts it; closures that
  did so return `COUNTED` or `MALFORMED`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Literal

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.coalesced import Coalesced, parse_coalesced, split_frame
from zroute.messages.codecs import Codecs
from zroute.messages.wire import (
    COUNTER,
    HEAD_SIZE,
    HEADER_MAX,
    HEADER_SIZE,
    MAGIC,
    NUL,
    Header,
    Kind,
    parse_header,
    parse_kept,
    split,
)
from zroute.options import LARGE_FRAME, MAX_PARTS, MAX_TOPIC, READ_BUDGET, READ_SLICE, TOPICS_NOTED
from zroute.receiving.coalesced import Remainder
from zroute.receiving.dispatch import (
    COUNTED,
    MALFORMED,
    TRACKED,
    UNDECODABLE,
    CompiledRoute,
    Deliver,
    DispatchCallbacks,
)
from zroute.receiving.frames import RawFrames, ZeroCopyFrame, raw_frames, uncopied
from zroute.receiving.latest import Latest
from zroute.receiving.matching import Matcher
from zroute.receiving.topic_cache import TopicCache, TopicEntry
from zroute.stats import Stats
from zroute.transport import Accounts

__all__ = ["Dispatch", "RouteTable"]

Dispatch = Literal["all", "most_specific"]

_HEAD_AND_NUMBER = Struct(f">{HEAD_SIZE}sQ").unpack_from
_COUNTER = COUNTER.unpack_from
_ROUNDS = list(range(1, READ_BUDGET + 1))


@attrs.define(eq=False)
class _Unnumbered:
    """The account of messages whose numbers say nothing about the subscription they came by."""

    expected: int = 0


_UNNUMBERED = _Unnumbered()


@attrs.define(eq=False)
class _Parts:
    """What is known about the parts of messages; a changed table takes it over in the middle of one.

    ``skipping`` says that the rest of a refused message is to be read; ``multipart`` holds the topics for
    which RCVMORE is asked each time.
    """

    skipping: bool = False
    multipart: dict[bytes, None] = attrs.field(factory=dict)


class RouteTable:
    """All routes of an app, frozen: subscriptions, and `receive`, which delivers what a socket receives.

    ``codecs`` are those this app knows. ``max_message`` bounds a body in bytes; larger ones are malformed. ``before``
    is the table whose place this one takes.
    """

    def __init__(
        self,
        routes: Sequence[CompiledRoute],
        *,
        codecs: Codecs,
        dispatch: Dispatch,
        max_message: int,
        stats: Stats,
        outcomes: DispatchCallbacks,
        accounts: Accounts,
        before: RouteTable | None = None,
    ) -> None:
        self.routes = tuple(routes)
        self._matcher = Matcher(self.routes, only_first=dispatch == "most_specific")
        self.patterns, self.subscriptions = self._matcher.patterns, self._matcher.subscriptions
        self.most: int | None = None
        """How many messages of one frame may be delivered in one call of `receive`, if that is bounded."""
        self._rounds: list[int] = []
        self._dispatch: Dispatch = dispatch
        self._max_message = max_message
        self._short = min(LARGE_FRAME, max_message)  # bytes of a frame up to which its body needs no check of its size
        self._stats = stats
        self._outcomes = outcomes
        self._accounts = accounts
        self._parts: _Parts = _Parts() if before is None else before._parts
        self._unpacked: Remainder = Remainder() if before is None else before._unpacked
        self._latest: Latest = Latest() if before is None else before._latest
        if before is not None and not set(before.subscriptions) <= set(self.subscriptions):
            self._latest.keep_only(self.subscriptions)
        self._entries = TopicCache(
            self._matcher,
            codecs,
            outcomes=outcomes,
            stats=stats,
            unpacked=self._unpacked,
            multipart=self._parts.multipart,
            unrouted=self._unrouted,
            malformed=self._malformed,
        )
        if any(route.lists for route in routes):  # nobody else pays for it
            self.receive = self._receive_and_release  # type: ignore[method-assign]

    def changed(self, routes: Sequence[CompiledRoute], codecs: Codecs) -> RouteTable:
        """A table with other routes in place of this one, which reads no further than the message at hand."""
        table = RouteTable(
            routes,
            codecs=codecs,
            dispatch=self._dispatch,
            max_message=self._max_message,
            stats=self._stats,
            outcomes=self._outcomes,
            accounts=self._accounts,
            before=self,
        )
        self.hold()
        return table

    def forget_accounts(self) -> None:
        """Ask for all of them anew."""
        self._entries.forget_heads()

    def reclassify(self) -> None:
        """Make all closures again, also for what is left of a coalesced frame: a route's flow has become active."""
        self._entries.clear()
        self._unpacked.hold()

    # -- the loop -------------------------------------------------------------------------------------

    def receive(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        """Read and deliver up to ``budget`` messages (256 at the most), fewer after a `hold`.

        ``recv(1)`` (1 is ZMQ_DONTWAIT) returns the next part of a message, or raises, which ends the call
        and goes to the caller: nothing else does; ``recv(1, False)`` need not copy it. ``more()`` says whether
        the part read last has another behind it; it is costly and asked only where the rule of parts needs it.
        """
        plain, tracked = self._entries.plain.get, self._entries.tracked.get
        unpack, admit = _HEAD_AND_NUMBER, self._admit
        received, aside, receive, short = 0, 0, recv, self._short
        if self._unpacked.rest:
            self.work_off(budget)
            return
        if self._parts.skipping:
            budget -= self._skip(recv, more, budget)
        rounds = self._rounds = _ROUNDS[:budget]  # a list, so that `hold` can end it at no cost
        try:
            for received in rounds:  # noqa: B007  # counted in the end
                frame = receive(1)
                if len(frame) > short:
                    if len(frame) > LARGE_FRAME:
                        receive = uncopied(recv)  # large ones come in rows: what follows is copied once, not twice
                    self._one_by_one(frame, recv, more)
                    aside += 1
                    continue
                topic, _, body = frame.partition(NUL)
                deliver = plain(topic)
                if deliver is not None and body:  # no body: perhaps there was no NUL
                    if fault := deliver(body, frame):
                        aside += self._after(fault, topic, frame, recv, more)
                    continue
                heads = tracked(topic)
                if heads is not None and len(body) > HEADER_SIZE:
                    head, number = unpack(body)
                    known = heads.get(head)
                    if known is not None:
                        account, deliver = known
                        if number == account.expected > 0:
                            account.expected = number + 1
                        elif number and not admit(account, number):
                            aside += 1
                            continue
                        if fault := deliver(body[HEADER_SIZE:], frame):
                            aside += self._after(fault, topic, frame, recv, more)
                        continue
                self._one_by_one(frame, recv, more)
                aside += 1  # only now: a message that `recv` fails in the middle of is not counted at all
        except BaseException:
            received -= 1  # it was `recv` that raised: nothing else in the loop does
            raise
        finally:
            self._stats.received += received
            self._stats.routed += received - aside

    def _receive_and_release(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        """`receive` for routes with lists: they are handed over when nothing more waits to be read, else before long.

        What ends the call is raised behind that, and not in the middle: an error of a handler would else be told as one
        that happened while that was handled.
        """
        try:
            RouteTable.receive(self, recv, more, budget)
        except BaseException as error:
            ended = error
        else:
            self._outcomes.release_soon()
            return
        try:
            self._outcomes.release()
            raise ended
        finally:
            del ended  # it holds this frame

    def hold(self) -> None:
        """Read no further than this message; later ones are not affected."""
        self._rounds.clear()
        self._unpacked.hold()

    @property
    def unpacked(self) -> int:
        """How many messages are left of frames of several: the next call begins with them."""
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
                entry = self._entries.of(topic)
                self._deliver(self._entries.deliver(entry, codec, body), body, frame)
            except EnvelopeError as error:
                self._malformed(error, frame)
        if not rounds:  # held
            outer.clear()
        self._rounds = outer

    # -- the rule of parts ------------------------------------------------------------------------------

    def _one_by_one(self, frame: bytes | ZeroCopyFrame, recv: Callable[[int], bytes], more: Callable[[], int]) -> None:
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
        """Read up to ``budget`` parts of a message that is refused already; how many it were.

        A connection that was taken back meanwhile has taken the rest of its message with it: so ask first.
        """
        for parts in range(budget):
            if not more():
                self._parts.skipping = False
                return parts
            recv(1)
        return budget

    def _after(
        self, fault: int, topic: bytes, frame: bytes, recv: Callable[[int], bytes], more: Callable[[], int]
    ) -> int:
        """Follow up on what a closure returned; how many messages the loop must not count as routed: 0 or 1."""
        if fault == TRACKED:
            self._one_by_one(frame, recv, more)
        elif fault != COUNTED and self._has_rest(fault, more):  # what is left of its message is no message
            self._entries.forget(topic)
            self._parts.multipart[topic] = None  # asked each time from now on
            if len(self._parts.multipart) > TOPICS_NOTED:
                del self._parts.multipart[next(iter(self._parts.multipart))]
            self._parts.skipping = True
            self.hold()
        return int(fault != UNDECODABLE)

    def _has_rest(self, fault: int, more: Callable[[], int]) -> bool:
        try:
            return bool(more())
        except BaseException:  # the loop takes back the message at hand, but this one is delivered
            self._stats.received += 1
            self._stats.routed += fault == UNDECODABLE
            raise

    # -- whole messages ---------------------------------------------------------------------------------

    def _receive(self, raw: RawFrames) -> None:
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
            topic, body = split(raw_frames(raw))
            if body.startswith(MAGIC):
                header = parse_header(body)
                self._receive_tracked(topic, header, body[:HEADER_SIZE], body[header.size :], raw)
            else:
                self._receive_plain(topic, body, raw)
        except EnvelopeError as error:
            self._malformed(error, raw)

    def _receive_plain(self, topic: bytes, body: bytes, raw: RawFrames) -> None:
        self._accounts.untracked(topic)
        entry = self._entries.of(topic)
        self._check_size(body)
        small = len(body) <= LARGE_FRAME
        deliver = self._entries.plain_of(entry) if small else self._entries.deliver(entry, 0, body)
        self._deliver(deliver, body, raw)

    def _receive_tracked(self, topic: bytes, header: Header, fixed: bytes, body: bytes, raw: RawFrames) -> None:
        """``fixed`` is the part of the header that each has, and ``body`` what stands behind the header."""
        if header.kind is Kind.KEPT:
            self._receive_kept(header, fixed, topic, body, raw)
            return
        if header.kind is Kind.COALESCED:
            self._receive_coalesced(header, fixed, topic, body, raw)
            return
        if header.kind != Kind.DATA:
            self._accounts.control(header, topic, body)
            self._stats.control += 1
            return
        entry = self._entries.of(topic)
        deliver = self._entries.deliver(entry, header.codec, body)
        if header.keeps:
            deliver = self._latest.noting(header.epoch, topic, deliver)
        account: Any = self._accounts.account(header.epoch, topic, entry.subscription) or _UNNUMBERED
        length = len(entry.subscription if account is _UNNUMBERED else account.prefix)
        counters = header.counters
        ours, further = counters[0][0] == length, len(counters) - 1
        named = ours or not further or any(span == length for span, _ in counters)
        if named and header.size == HEADER_SIZE + COUNTER.size * further and len(body) <= LARGE_FRAME:
            short = self._past_counters(header, length, account, deliver) if further else deliver
            self._entries.remember_head(entry, fixed[:HEAD_SIZE], account if ours else _UNNUMBERED, short)
        if not counters[0][1] or self._admit(account, header.number(length)):
            self._check_size(body)
            self._deliver(deliver, body, raw)

    def _past_counters(self, header: Header, ours: int, account: Any, deliver: Deliver) -> Deliver:
        """``deliver``, for frames with further counters: that of length ``ours`` is the first, or one of them.

        A frame that begins alike has as many, and mostly of the same subscriptions; else it goes the long way.
        """
        behind = header.counters[1:]
        further = COUNTER.size * len(behind)
        at = next((COUNTER.size * place for place, (span, _) in enumerate(behind) if span == ours), None)

        def deliver_behind(body: bytes, raw: RawFrames) -> int | None:
            if len(body) < further:
                return self._malformed(EnvelopeError("a tracked header that ends inside its further counters"), raw)
            if at is not None:
                span, number = _COUNTER(body, at)
                if span != ours:
                    self._receive(raw)
                    return COUNTED
                if number == account.expected > 0:
                    account.expected = number + 1
                elif not self._admit(account, number):
                    return COUNTED
            return deliver(body[further:], raw)

        return deliver_behind

    def _receive_kept(self, header: Header, fixed: bytes, marker: bytes, body: bytes, raw: RawFrames) -> None:
        topic, body = parse_kept(body)
        ours = self._accounts.kept(header, marker, topic) and self._matcher.subscription(topic) is not None
        if not ours or self._latest.has(header.epoch, topic, fixed):
            self._stats.control += 1
            return
        self._check_size(body)
        entry = self._entries.of(topic)
        self._latest.note(header.epoch, topic, fixed)
        self._deliver(self._entries.deliver(entry, header.codec, body), body, raw)

    def _deliver(self, deliver: Deliver, body: bytes, raw: RawFrames) -> None:
        """Deliver one message off the loop, and count it as routed unless the closure has counted it."""
        if deliver(body, raw) in (None, UNDECODABLE):
            self._stats.routed += 1

    def _admit(self, account: Any, number: int, many: int = 1) -> bool:
        """Whether a message is to be delivered; ``number`` is 0 where it carries none for our subscription.

        Of ``many`` messages it is that of the first. Those that are not to be delivered are counted as duplicates.
        """
        if account is _UNNUMBERED:
            return True
        if number == account.expected > 0:
            account.expected = number + many
            return True
        if self._accounts.admit(account, number, many):
            return True
        self._stats.duplicate += many
        return False

    # -- several messages in a frame ----------------------------------------------------------------------

    def _receive_coalesced(self, header: Header, fixed: bytes, topic: bytes, body: bytes, raw: RawFrames) -> None:
        entry = self._entries.of(topic)
        account: Any = self._accounts.account(header.epoch, topic, entry.subscription) or _UNNUMBERED
        length = len(entry.subscription if account is _UNNUMBERED else account.prefix)
        if header.size == HEADER_SIZE and header.span == length and len(body) <= LARGE_FRAME:
            unpacking = self._unpacking(entry, header, account)
            self._entries.remember_head(entry, fixed[:HEAD_SIZE], _UNNUMBERED, unpacking)
        coalesced = parse_coalesced(header.codec, body)
        if header.sequence and not self._admit(account, header.number(length), coalesced.many):
            self._stats.received += coalesced.many - 1
            return
        if header.keeps:
            self._latest.note(header.epoch, topic, fixed)
        self._unpack(entry, coalesced, fixed)

    def _unpacking(self, entry: TopicEntry, header: Header, account: Any) -> Deliver:
        """What delivers the frames that begin like this one; it looks at their numbers itself."""
        codec, keeps, at = header.codec, header.keeps, len(entry.topic.wire) + 1

        def deliver(body: bytes, raw: RawFrames) -> int | None:
            assert isinstance(raw, bytes)  # the loop gives frames
            try:
                coalesced = parse_coalesced(codec, body)
            except EnvelopeError as error:
                return self._malformed(error, raw)
            fixed = raw[at : at + HEADER_SIZE]
            number, many = _HEAD_AND_NUMBER(fixed)[1], coalesced.many
            if number and not self._admit(account, number, many):
                self._stats.received += many - 1
                return COUNTED
            if keeps:
                self._latest.note(header.epoch, entry.topic.wire, fixed)
            self._unpack(entry, coalesced, fixed)
            return COUNTED

        return deliver

    def _unpack(self, entry: TopicEntry, coalesced: Coalesced, fixed: bytes) -> None:
        """Deliver the messages of a coalesced frame as if each had come alone. The frame itself is counted already."""
        many, topic, stats = coalesced.many, entry.topic.wire, self._stats
        made: list[bytes] = []

        def frames() -> list[bytes]:
            if not made:
                made.extend(split_frame(topic, fixed, coalesced.bodies))
            return made

        most = many if self.most is None else min(many, self.most)
        whole = most == many and len(coalesced.listing) <= self._max_message  # else each is looked at
        dispatch_all = (
            self._entries.dispatch_all(entry, coalesced.codec, large=len(coalesced.listing) > LARGE_FRAME)
            if whole
            else None
        )
        done = dispatch_all(coalesced, frames) if dispatch_all is not None else 0
        stats.received += done - 1
        stats.routed += done
        if done < many:
            left = zip(coalesced.bodies[done:], frames()[done:], strict=True)
            self._unpacked.rest.extend((topic, coalesced.codec, body, frame) for body, frame in left)
        if not done:
            self.work_off(min(most, READ_SLICE))
        rounds = self._rounds
        left_of_drain = 0 if self._unpacked.rest else max(len(rounds) - many + 1, 0)
        del rounds[left_of_drain:]  # they were as much work as that, and what is left of them is first at the next

    def _check_size(self, body: bytes) -> None:
        if len(body) > self._max_message:
            raise EnvelopeError(f"a body of {len(body)} bytes, over max_message={self._max_message}")

    def _unrouted(self, raw: RawFrames) -> int:
        self._stats.unrouted += 1
        self._outcomes.unrouted(raw)
        return COUNTED

    def _malformed(self, error: EnvelopeError, raw: RawFrames) -> int:
        self._stats.malformed += 1
        self._outcomes.malformed(error, raw)
        return MALFORMED
