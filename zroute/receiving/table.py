"""The routing table of an app, and the loop that reads every message.

`RouteTable.receive` reads frames, separates the topic, and calls the closure that delivers messages of that topic. It
implements the layout of `zroute.messages.wire`. The rules of the loop:

- **The work for each message**: one `recv`, one comparison of a length, one `partition`, one dict look-up, and the
  closure. For a tracked message, the closure reads the header and compares the number. The loop reads no clock, writes
  no log, creates no object of a zroute class, and reads no attribute that can be stored in a local variable.
  `tests/test_house.py` counts the functions and files that a message passes through, and ``benchmarks`` counts the
  instructions.
- **Closures**: the closure of a topic contains its routes, decoder and parameters. The cache
  (`zroute.receiving.topic_cache`) finds it by topic. For tracked messages, it also contains the 16 constant bytes of
  the header, and the account whose number is compared; for several publishers, it finds them in a dict. Another closure
  handles whole coalesced frames. Only the slow path creates entries. The loop therefore does not have to check the
  facts that an entry implies: kind, codec, epoch, span, and the presence of headers. Headers are skipped by their
  length, and decoded only when a handler reads them.
- **The order of checks**: the size is checked first, because the loop does not split large frames, and a small frame
  needs no check of ``max_message``. A closure returns `TRACKED` for frames that it can't deliver: those of another head
  or without a body, and for a closure of plain bodies those with a header. The number is checked before the handler is
  called: a duplicate is not delivered, and a gap is reported before the message that follows it.
- **Rare cases leave the loop** for the slow path: a new topic, another codec, several parts, a large body, an error, an
  unexpected number. Reading RCVMORE costs more than `recv`, so only the slow path reads it (see the rule of parts in
  ``docs/reference/wire.md``).
- **The loop iterates over a list of numbers.** `hold` empties the list, which ends the loop after the current message.
  The loop therefore needs no check for a pause or a new table.
- **Only ``recv`` and ``more`` raise**: the closures catch the exceptions of handlers, and the slow path catches errors
  in received frames. An exception of ``recv``, usually EAGAIN, is passed to the caller. The message that could not be
  read is not counted.
- **Counting**: each message is counted in exactly one of `Stats.routed`, ``unrouted``, ``malformed``, ``duplicate`` and
  ``control``. The loop counts the messages that it delivers itself, and adds their number to ``routed`` once, at the
  end of the call. Rare branches increment ``aside``, so the common path does not count. In a rare branch, the code that
  handles the message counts it. A closure that has counted a message returns `COUNTED` or `MALFORMED`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import attrs

from zroute.declarations.signatures import NO_BODY
from zroute.errors import EnvelopeError
from zroute.messages.coalesced import Coalesced, parse_coalesced, split_frame
from zroute.messages.codecs import Codecs
from zroute.messages.frames import Parse
from zroute.messages.schema import resolved
from zroute.messages.wire import (
    CODEC_AT,
    COUNTER,
    HEAD_SIZE,
    HEADER_MAX,
    HEADER_SIZE,
    HEADERS_LENGTH,
    MAGIC,
    NUL,
    VERSION,
    Header,
    Kind,
    NamedFrame,
    RecoveredFrame,
    parse_header,
    parse_kept,
    peer_of,
    skip_headers,
    split,
)
from zroute.options import HEADERS_MAX, LARGE_FRAME, MAX_PARTS, MAX_TOPIC, READ_BUDGET, READ_SLICE, TOPICS_NOTED
from zroute.receiving.coalesced import FrameContext, Remainder
from zroute.receiving.dispatch import (
    COUNTED,
    MALFORMED,
    TRACKED,
    UNDECODABLE,
    CompiledRoute,
    Deliver,
    DispatchCallbacks,
    KnownHead,
)
from zroute.receiving.events import Verdict
from zroute.receiving.frames import RawFrames, ZeroCopyFrame, first_part, raw_frames, uncopied, uncopied_body
from zroute.receiving.latest import Latest
from zroute.receiving.matching import Matcher
from zroute.receiving.topic_cache import UNNUMBERED, TopicCache, TopicEntry
from zroute.stats import Stats
from zroute.transport import Accounts, Receive

if TYPE_CHECKING:  # only an app that recovers imports them
    from zroute.receiving.recoveries import Recoveries
    from zroute.receiving.stream_recovery import Ready

__all__ = ["Dispatch", "RouteTable"]

Dispatch = Literal["all", "most_specific"]

_HEAD_AND_NUMBER = Struct(f">{HEAD_SIZE}sQ").unpack_from
_COUNTER = COUNTER.unpack_from
_DATA = MAGIC + bytes((VERSION, Kind.DATA))
"""The beginning of the header of a single message; its codec and its flags follow."""
_HEADERS_MOST = HEADERS_LENGTH + HEADERS_MAX
_ROUNDS = list(range(1, READ_BUDGET + 1))


@attrs.define(eq=False)
class _Parts:
    """The state of messages with several parts.

    A new table takes this object over from the table that it replaces, possibly in the middle of a message.
    ``skipping`` contains the ``more`` function of each socket with a refused message whose remaining parts must still
    be read; `RouteTable.receive` is called for several sockets in rotation. ``multipart`` contains the topics for which
    RCVMORE is read for each message.
    """

    skipping: list[Callable[[], int]] = attrs.field(factory=list)
    multipart: dict[bytes, None] = attrs.field(factory=dict)


class Change(NamedTuple):
    """The replacement of a table.

    Attributes:
        before: The table that is replaced.
        attached: The new route, if there is one. Publishers that have already joined are asked for its past.
    """

    before: RouteTable
    attached: CompiledRoute | None


class RouteTable:
    """The routes of an app in compiled form.

    ``subscriptions`` cover the patterns of all routes. `receive` reads and delivers messages. A table never changes its
    routes: `changed` returns a new table.

    Args:
        routes: The compiled routes.
        codecs: The codecs that this app knows.
        dispatch: "all" delivers to every matching route, "most_specific" only to the most specific one.
        max_message: The maximum size of a body in bytes; larger bodies are malformed.
        stats: The counters of the app.
        outcomes: Called with results, errors and refused messages.
        accounts: The accounts of received numbers.
        change: The table that this table replaces, whose unfinished messages it continues.
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
        change: Change | None = None,
    ) -> None:
        before, attached = (None, None) if change is None else (change.before, change.attached)
        self.routes = tuple(routes)
        self._matcher = Matcher(self.routes, only_first=dispatch == "most_specific")
        self.patterns, self.subscriptions = self._matcher.patterns, self._matcher.subscriptions
        self._rounds: list[int] = []
        self._dispatch: Dispatch = dispatch
        self._max_message = max_message
        self._short = min(LARGE_FRAME, max_message)  # bytes; the body of such a frame can't exceed max_message
        self._stats = stats
        self._outcomes = outcomes
        self._accounts = accounts
        matcher, past = self._matcher, frozenset[bytes]()
        if matcher.since and (before is None or attached is not None):
            asking = self.routes if attached is None else (attached,) if attached.options.since else ()
            past = frozenset(each.subscription for route in asking for each in route.patterns)
        self._recovery: Recoveries | None = accounts.recover(matcher.recovered, matcher.since, past)
        self._parts: _Parts = _Parts() if before is None else before._parts
        self._unpacked: Remainder = Remainder() if before is None else before._unpacked
        if before is not None and self._recovery is not None:
            self._drop_held(matcher.without(before.subscriptions))
        self._latest: Latest = Latest() if before is None else before._latest
        self._frames = FrameContext(
            self._unpacked, stats, self._admit, self._split_frame, self._use_up, self._keep_left, self._latest.note
        )
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
        schemas = [route.call.schema for route in routes]
        self._views = any(schema is not NO_BODY and resolved(schema) is memoryview for schema in schemas)
        if self._recovery is not None:  # tables that recover nothing do not pay for it
            self._recovery.held = self._entries.forget_stream
            self.receive = partial(self._and_recover, self._recovery, self.receive)  # type: ignore[method-assign]
        if any(route.lists for route in routes):  # tables without batches do not pay for it
            self.receive = partial(self._and_release, self.receive)  # type: ignore[method-assign]
            self.receive_stated = self._receive_stated_and_release  # type: ignore[method-assign]

    def changed(
        self, routes: Sequence[CompiledRoute], codecs: Codecs, attached: CompiledRoute | None = None
    ) -> RouteTable:
        """Return a table with other routes, which replaces this table.

        This table stops reading after the current message. ``attached`` is the new route, if there is one.
        """
        table = RouteTable(
            routes,
            codecs=codecs,
            dispatch=self._dispatch,
            max_message=self._max_message,
            stats=self._stats,
            outcomes=self._outcomes,
            accounts=self._accounts,
            change=Change(self, attached),
        )
        self.hold()
        return table

    def forget_accounts(self) -> None:
        """Make the loop look up each account again for the next message of its publisher."""
        self._entries.forget_heads()

    def reclassify(self) -> None:
        """Create all closures again, because the flow of a route has become active.

        The delivery of a coalesced frame ends too, so its remaining messages are passed to the new closures.
        """
        self._entries.clear()
        self._unpacked.hold()

    # -- the loop -------------------------------------------------------------------------------------

    def receive(self, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        """Read and deliver up to ``budget`` messages, or fewer after `hold`.

        Exceptions of ``recv`` and ``more`` end the call and are passed to the caller.

        Args:
            recv: ``recv(1)`` returns the next part of a message, or raises if there is none (1 is ZMQ_DONTWAIT).
                ``recv(1, False)`` may return an object that does not copy the bytes.
            more: Returns True if another part of the same message follows. The call is expensive, so it is made only if
                the rule of parts requires it. For each socket, the caller must always pass the same function, because
                it identifies the socket.
            budget: The maximum number of messages, at most 256 (`READ_BUDGET`).
        """
        direct, nul, short = self._entries.direct, NUL, self._short
        received = aside = 0
        # A handler takes a memoryview, so even the first of several large frames is not copied.
        receive: Callable[[int], Any] = uncopied(recv) if self._views else recv
        # Before the next `recv`, because these messages arrived earlier.
        if self._unpacked.rest:
            self.work_off(budget)
            return
        if self._parts.skipping:
            budget -= self._skip(recv, more, budget)
        rounds = self._rounds = _ROUNDS[:budget]  # `hold` empties this list, which ends the loop
        try:
            for received in rounds:  # noqa: B007  # used in `finally`
                frame = receive(1)
                if len(frame) > short:
                    if len(frame) > LARGE_FRAME:
                        receive = uncopied(recv)  # large frames often follow each other: copy them once
                    self._one_by_one(frame, recv, more)
                    aside += 1
                    continue
                topic, _, body = frame.partition(nul)
                try:
                    deliver = direct[topic]  # not `get`: a call of it takes longer
                except KeyError:
                    pass
                else:
                    fault = deliver(body, frame)
                    if fault is not None:
                        aside += self._after(fault, topic, frame, recv, more)
                    continue
                self._one_by_one(frame, recv, more)
                aside += 1  # after the call: if `recv` fails in the middle of a message, it is not counted
        except BaseException:
            received -= 1  # `recv` or `more` raised: the current message is not complete
            raise
        finally:
            self._stats.received += received
            self._stats.routed += received - aside

    def _and_release(self, receive: Receive, recv: Callable[..., Any], more: Callable[[], int], budget: int) -> None:
        """Receive messages for routes with batches, and release the batches.

        The batches are released at once if no message is waiting to be read, otherwise after at most `BATCH_SECONDS`.
        The exception that ended the reading is raised after that, outside the ``except`` block. Otherwise Python would
        show it as the context of each error in a handler.
        """
        try:
            receive(recv, more, budget)
        except BaseException as error:
            ended = error
        else:
            self._outcomes.release_soon()
            return
        try:
            self._outcomes.release()
            raise ended
        finally:
            del ended  # its traceback refers to this frame: a reference cycle

    def _and_recover(
        self, recovery: Recoveries, receive: Receive, recv: Callable[..., Any], more: Callable[[], int], budget: int
    ) -> None:
        """Receive messages, and deliver those that recoveries have held.

        Held messages are delivered first, because they precede the messages that are read. If no message is left to
        read and to deliver, the lost messages are asked for.
        """
        if recovery.busy and self._deliver_ready(recovery, budget):
            return
        try:
            receive(recv, more, budget)
        except BaseException as error:
            ended = error
        else:
            return
        try:
            if recovery.busy:
                if self._deliver_ready(recovery, budget):
                    return  # more may be ready: the caller calls again
                recovery.ask()
            raise ended
        finally:
            del ended  # its traceback refers to this frame: a reference cycle

    def _deliver_ready(self, recovery: Recoveries, budget: int) -> bool:
        """Deliver up to about ``budget`` messages that a recovery has held.

        Return False if there were none, and no messages of an earlier call are left.
        """
        rest, left, found = self._unpacked.rest, budget, False
        if rest:
            self.work_off(budget)
            return True
        rounds = self._rounds = [0]  # `hold` empties this list
        for ready in recovery.take(budget):
            found, topic, body = True, b"", b""
            raw: Any = None if callable(ready) else ready.frame
            if isinstance(raw, bytes):
                topic, _, body = raw.partition(NUL)
            # Most messages have neither headers nor further counters.
            if len(body) >= HEADER_SIZE and body.startswith(_DATA) and not body[CODEC_AT + 1]:
                self._deliver_single(topic, body[CODEC_AT], body[HEADER_SIZE:], raw)
                left -= 1
            else:
                self._put(ready)
                before = len(rest)
                self.work_off(left)
                left -= before - len(rest)
            if left <= 0 or not rounds:
                break
        return found

    def end_recovery(self) -> None:
        """Give up all recoveries, and add what they have held to the `unpacked` messages."""
        if self._recovery is not None:
            self._recovery.close()
            for ready in self._recovery.take():
                self._put(ready)

    def _drop_held(self, subscriptions: Collection[bytes]) -> None:
        """Drop the messages of former subscriptions that a recovery has held.

        A handler that is attached later must not receive them.
        """
        if subscriptions and self._recovery is not None:
            self._recovery.drop(subscriptions)
            rest, gone = self._unpacked.rest, tuple(subscriptions)
            kept = [each for each in rest if each[0] is None or not each[0].startswith(gone)]
            rest.clear()
            rest.extend(kept)

    def _put(self, ready: Ready | Callable[[], None]) -> None:
        """Add messages that a recovery has held to the `unpacked` messages.

        ``ready`` may also be the report of a loss.
        """
        if callable(ready):
            self._unpacked.rest.append((None, ready))
            return
        arrival = ready.arrival
        assert arrival is not None
        raw: RawFrames = arrival.frame
        try:
            topic, rest = split(raw_frames(raw))
            header = parse_header(rest)
            body, fixed = rest[header.size :], rest[:HEADER_SIZE]
            if header.kind is Kind.KEPT:
                self._put_kept(header, fixed, body, raw)
                return
            if header.keeps:
                self._latest.note(header.epoch, topic, fixed)
            if header.kind is not Kind.COALESCED:
                self._unpacked.rest.append((topic, header.codec, body, raw))
                return
            coalesced = parse_coalesced(header.codec, body)
            wanted = slice(ready.first - arrival.first, ready.last - arrival.first + 1)
            frames = self._split(topic, fixed, coalesced, raw)[wanted]
            some = zip(coalesced.bodies[wanted], frames, strict=True)
            self._unpacked.rest.extend((topic, coalesced.codec, body, frame) for body, frame in some)
        except EnvelopeError as error:
            self._stats.received += 1
            self._malformed(error, raw)

    def _put_kept(self, header: Header, fixed: bytes, body: bytes, raw: RawFrames) -> None:
        topic, body = parse_kept(body)
        if not header.keeps and self._latest.has(header.epoch, topic, fixed):  # the same or a newer one was recovered
            self._stats.received += 1
            self._stats.control += 1
            return
        self._latest.note(header.epoch, topic, fixed)
        self._unpacked.rest.append((topic, header.codec, body, raw))

    def hold(self) -> None:
        """Stop reading after the current message; the next call reads again."""
        self._rounds.clear()
        self._unpacked.hold()

    def limit(self, most: int) -> None:
        """Deliver at most ``most`` messages of a frame in each call of `receive`."""
        self._unpacked.most = most

    @property
    def unpacked(self) -> int:
        """The number of undelivered messages of coalesced frames.

        The next call of `receive` begins with them.
        """
        return len(self._unpacked.rest)

    def work_off(self, budget: int) -> None:
        """Deliver up to ``budget`` of the `unpacked` messages, or fewer after `hold`."""
        rest, outer = self._unpacked.rest, self._rounds
        self._rounds = rounds = list(range(budget))
        for _ in rounds:
            if not rest:
                break
            single = rest.popleft()
            if single[0] is None:  # the report of a loss
                single[1]()
                continue
            self._deliver_single(*single)
        if not rounds:  # `hold` was called, or the budget was 0: end the loop of the caller too
            outer.clear()
        self._rounds = outer

    def _deliver_single(self, topic: bytes, codec: int, body: bytes, frame: RawFrames) -> None:
        """Deliver a message that was held, or is a part of a frame."""
        self._stats.received += 1
        try:
            self._check_size(body)
            entry = self._entries.of(topic)
            self._deliver(self._entries.deliver(entry, codec, body), body, frame)
        except EnvelopeError as error:
            self._malformed(error, frame)

    # -- stated forms -----------------------------------------------------------------------------------

    def receive_stated(self, parse: Parse, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        """Read and deliver up to ``budget`` messages of a stated form.

        It delivers fewer messages after `hold`. Only the form determines the topic: a NUL in the topic is not a
        separator, and a body that begins like a tracked header is an ordinary body. ``parse`` extracts topic and body;
        see `receive` for the other arguments and the exceptions.
        """
        if self._parts.skipping:
            budget -= self._skip(recv, more, budget)
        rounds = self._rounds = _ROUNDS[:budget]
        for _ in rounds:
            parts = [recv(1)]
            while len(parts) <= MAX_PARTS and more():
                parts.append(recv(1))
            self._stats.received += 1
            if len(parts) > MAX_PARTS:  # ``parse`` refuses the message
                self._parts.skipping.append(more)
                self.hold()
            self._receive_stated(parse, tuple(parts))

    def _receive_stated_and_release(
        self, parse: Parse, recv: Callable[[int], bytes], more: Callable[[], int], budget: int
    ) -> None:
        # The function of the class, because the attribute of this instance is the present method.
        self._and_release(partial(RouteTable.receive_stated, self, parse), recv, more, budget)

    def _receive_stated(self, parse: Parse, parts: tuple[bytes, ...]) -> None:
        message: tuple[bytes, ...] = parts
        try:
            message = found = parse(parts)
            self._check_size(found.body)
            entry = self._entries.of(found.topic)
            self._deliver(self._entries.deliver(entry, 0, found.body), found.body, found)
        except EnvelopeError as error:
            self._malformed(error, error.frames or message)
        except SystemExit as error:
            self._stats.malformed += 1
            self._outcomes.exits(error)

    # -- the rule of parts ------------------------------------------------------------------------------

    def _one_by_one(self, frame: bytes | ZeroCopyFrame, recv: Callable[[int], bytes], more: Callable[[], int]) -> None:
        """Receive one message on the slow path: check RCVMORE, and read all parts.

        These messages have a new topic or head, are large, have several parts, or are malformed.
        """
        if not more():
            self._receive(frame)
            return
        parts = [first_part(frame)]
        # For the second part, `more` was already called above.
        while len(parts) < MAX_PARTS and (len(parts) == 1 or more()):
            parts.append(recv(1))
        if len(parts) == MAX_PARTS and more():
            self._parts.skipping.append(more)
            self.hold()
            self._malformed(EnvelopeError(f"more than {MAX_PARTS} parts", frames=tuple(parts)), tuple(parts))
        else:
            self._receive(tuple(parts))

    def _skip(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> int:
        """Read up to ``budget`` parts of a refused message; return their number.

        ``more`` is called before each read, because the remaining parts are gone if the connection has ended meanwhile.
        """
        if more not in self._parts.skipping:
            return 0
        for parts in range(budget):
            if not more():
                self._parts.skipping.remove(more)
                return parts
            recv(1)
        return budget

    def _after(
        self, fault: int, topic: bytes, frame: bytes, recv: Callable[[int], bytes], more: Callable[[], int]
    ) -> int:
        """Handle the code that a closure returned.

        Return the number of messages that the loop must not count as routed: 0 or 1.
        """
        if fault == TRACKED:
            self._one_by_one(frame, recv, more)
        elif fault != COUNTED and self._has_rest(fault, more):  # the further parts are not messages of their own
            self._entries.forget(topic)
            self._parts.multipart[topic] = None  # from now on, RCVMORE is read for each message
            if len(self._parts.multipart) > TOPICS_NOTED:
                del self._parts.multipart[next(iter(self._parts.multipart))]
            self._parts.skipping.append(more)
            self.hold()
        return int(fault != UNDECODABLE)

    def _has_rest(self, fault: int, more: Callable[[], int]) -> bool:
        """Return True if the current message has further parts."""
        try:
            return bool(more())
        except BaseException:  # the loop will subtract the current message, but it was delivered: add it here
            self._stats.received += 1
            self._stats.routed += fault == UNDECODABLE
            raise

    # -- whole messages ---------------------------------------------------------------------------------

    def _receive(self, raw: RawFrames) -> None:
        """Parse and deliver a complete message, or count it as malformed."""
        try:
            if not isinstance(raw, tuple) and (at := raw[: MAX_TOPIC + 1].find(NUL)) >= 0:
                topic, start = raw[:at], at + 1  # a body may be large, so it is copied only once
                if raw[start : start + len(MAGIC)] == MAGIC:
                    header = parse_header(raw[start : start + HEADER_MAX])
                    fixed, at = raw[start : start + HEADER_SIZE], start + header.size
                    body = self._body(topic, raw, at) if header.kind is Kind.DATA else raw[at:]
                    self._receive_tracked(topic, header, fixed, body, raw)
                else:
                    self._receive_plain(topic, self._body(topic, raw, start), raw)
                return
            topic, body = split(raw_frames(raw))
            if body.startswith(MAGIC):
                header = parse_header(body)
                self._receive_tracked(topic, header, body[:HEADER_SIZE], body[header.size :], raw)
            else:
                self._receive_plain(topic, body, raw)
        except EnvelopeError as error:
            self._malformed(error, raw)

    def _body(self, topic: bytes, raw: bytes | ZeroCopyFrame, start: int) -> Any:
        """Return the body of a frame as bytes, or as a memoryview of a large frame.

        A memoryview avoids a copy. It is only used for topics whose handlers all accept a memoryview.
        """
        if self._views and len(raw) > LARGE_FRAME and self._entries.takes_views(topic):
            return uncopied_body(raw, start)
        return raw[start:]

    def _receive_plain(self, topic: bytes, body: bytes, raw: RawFrames) -> None:
        self._accounts.untracked(topic)
        entry = self._entries.of(topic)
        self._check_size(body)
        # The closure for large bodies may also check their nesting; see `guarded`. The usual one takes no empty body.
        usual = 0 < len(body) <= LARGE_FRAME
        deliver = self._entries.plain_of(entry) if usual else self._entries.deliver(entry, 0, body)
        self._deliver(deliver, body, raw)

    def _receive_tracked(self, topic: bytes, header: Header, fixed: bytes, body: bytes, raw: RawFrames) -> None:
        """Receive a complete frame with a tracked header.

        ``fixed`` is the fixed part of the header, and ``body`` contains the bytes after the header.
        """
        if header.kind is Kind.KEPT:
            self._receive_kept(header, fixed, topic, body, raw)
            return
        if header.kind is Kind.COALESCED:
            self._receive_coalesced(header, fixed, topic, body, raw)
            return
        if header.kind != Kind.DATA:
            if header.kind is Kind.BEAT and self._recovery is not None and self._recovery.hears(topic):
                self._recovery.answer(header.epoch, topic, body, raw)
            else:
                self._accounts.control(header, topic, body)
            self._stats.control += 1
            return
        entry = self._entries.of(topic)
        account: Any = self._accounts.account(header.epoch, topic, entry.subscription) or UNNUMBERED
        # A former subscription may still count the topic, and its length differs from that of the present one.
        length = len(entry.subscription if account is UNNUMBERED else account.prefix)
        counters = header.counters
        ours, further = counters[0][0] == length, len(counters) - 1
        # The closure can't compare the number of a known account that has no counter, or a further one.
        comparable = ours or account is UNNUMBERED
        if comparable and entry.route is not None and self._is_direct(header, body, account):
            # The usual first message of a topic: one closure then serves this and all further messages.
            direct = self._entries.direct_of(entry, header.codec, fixed[:HEAD_SIZE], account, self._admit)
            if direct is not None:
                self._deliver(direct, fixed + body, raw)
                return
        deliver = self._entries.deliver(entry, header.codec, body)
        if header.keeps:
            deliver = self._latest.noting(header.epoch, topic, deliver)
        # The loop can deliver frames with this head if the position of our counter is known.
        named = ours or not further or any(span == length for span, _ in counters)
        held = self._is_held(account)
        if named and len(body) <= LARGE_FRAME and (ours or not held):
            has_headers = header.size > HEADER_SIZE + COUNTER.size * further
            # The counters precede the headers on the wire, so the closure that skips the counters is the outer one.
            short = self._past_headers(deliver) if has_headers else deliver
            short = self._past_counters(header, length, account, short) if further else short
            # The loop compares only the first counter. If ours is a further one, the closure compares it.
            checked = account if ours else UNNUMBERED
            if held and self._recovery is not None:
                checked, short = UNNUMBERED, self._holding(self._recovery, topic, fixed[:HEAD_SIZE], account, short)
            self._entries.remember_head(entry, fixed[:HEAD_SIZE], checked, short, self._admit)
        admitted = self._admit_early(account, raw, held=held) if not counters[0][1] else None
        if admitted or (admitted is None and self._admit(account, header.number(length), raw)):
            self._check_size(body)
            self._deliver(deliver, body, raw)

    def _is_direct(self, header: Header, body: bytes, account: Any) -> bool:
        """Return True if a closure that also reads the header can deliver a message.

        The loop passes only such messages to the closures.
        """
        simple = header.size == HEADER_SIZE and not header.keeps
        return simple and 0 < len(body) <= self._short and not self._is_held(account)

    def _holding(self, recovery: Recoveries, topic: bytes, head: bytes, account: Any, deliver: Deliver) -> Deliver:
        """Return a closure that passes messages to the recovery of their stream.

        All these messages have the same ``head``, and their first counter is ours. ``deliver`` delivers a message when
        the stream has recovered; the loop then finds its own closure again.
        """
        at, stats, held = len(topic) + 1, self._stats, Verdict.HELD

        def hold(body: bytes, raw: RawFrames) -> int | None:
            assert isinstance(raw, bytes)  # the loop gives frames
            number = _HEAD_AND_NUMBER(raw, at)[1]
            verdict = recovery.admit(account, number, 1, raw) if number else recovery.early(account, 0, 1, raw)
            if verdict is held:  # the usual result, like `_is_admitted`
                stats.received -= 1
            elif self._is_admitted(verdict, 1):
                self._entries.forget_head(topic, head)
                return deliver(body, raw)
            return COUNTED

        return hold

    def _past_counters(self, header: Header, ours: int, account: Any, deliver: Deliver) -> Deliver:
        """Return ``deliver`` for frames with further counters.

        ``ours`` is the length of our subscription. If the counter of that subscription is not the first counter, it is
        checked here. All frames with the same head have the same number of counters, usually for the same
        subscriptions. If the subscriptions differ, a frame takes the slow path.
        """
        behind = header.counters[1:]
        further = COUNTER.size * len(behind)
        at = next((COUNTER.size * place for place, (span, _) in enumerate(behind) if span == ours), None)

        def deliver_behind(body: bytes, raw: RawFrames) -> int | None:
            if len(body) < further:
                return self._malformed(
                    EnvelopeError("a tracked header that ends in the middle of its further counters"), raw
                )
            if at is not None:
                span, number = _COUNTER(body, at)
                if span != ours:
                    self._receive(raw)
                    return COUNTED
                if number == account.expected > 0:
                    account.expected = number + 1
                elif not self._admit(account, number, raw):
                    return COUNTED
            return deliver(body[further:], raw)

        return deliver_behind

    def _past_headers(self, deliver: Deliver) -> Deliver:
        """Return a ``deliver`` for frames with headers of the application.

        The headers are skipped by their length. An `Envelope` decodes them when a handler reads them.
        """

        def deliver_behind(body: bytes, raw: RawFrames) -> int | None:
            end = HEADERS_LENGTH + int.from_bytes(body[:HEADERS_LENGTH])
            if end > len(body) or end > _HEADERS_MOST:
                try:
                    skip_headers(body)
                except EnvelopeError as error:
                    return self._malformed(error, raw)
            return deliver(body[end:], raw)

        return deliver_behind

    def _receive_kept(self, header: Header, fixed: bytes, marker: bytes, body: bytes, raw: RawFrames) -> None:
        """Deliver a kept message if it is for this app.

        The message is not delivered if the same or a newer message of its topic was already delivered.
        """
        topic, body = parse_kept(body)
        # The marker may summarise our subscriptions, so the answer may contain topics that we did not subscribe to.
        ours = self._accounts.kept(header, marker, topic, body) and self._matcher.subscription(topic) is not None
        snapshot = header.keeps
        if not ours or (not snapshot and self._latest.has(header.epoch, topic, fixed)):
            self._stats.control += 1
            return
        self._check_size(body)
        entry = self._entries.of(topic)
        account: Any = None
        if snapshot or self._recovery is not None:
            account = self._accounts.account(header.epoch, topic, entry.subscription)
        if snapshot and account is not None and not self._accounts.snapshot(account, header):
            self._stats.control += 1
            return
        if self._recovery is not None and self._recovery.wait(account, raw):
            self._stats.received -= 1  # it counts as received when it is delivered
            return
        self._latest.note(header.epoch, topic, fixed)
        self._deliver(self._entries.deliver(entry, header.codec, body), body, raw)

    def _deliver(self, deliver: Deliver, body: bytes, raw: RawFrames) -> None:
        """Deliver one message outside the loop.

        The message is counted as routed, unless the closure has already counted it.
        """
        if deliver(body, raw) in (None, UNDECODABLE):
            self._stats.routed += 1

    def _admit(self, account: Any, number: int, raw: RawFrames, many: int = 1) -> bool:
        """Return True if a message must be delivered now.

        Otherwise a recovery holds the message, or it was counted as a duplicate. ``number`` is 0 if the message has no
        number for our subscription. If the frame ``raw`` contains ``many`` messages, ``number`` is the number of the
        first message.
        """
        if account is UNNUMBERED:
            return True
        if number == account.expected > 0 and not self._is_held(account):
            account.expected = number + many
            return True
        if self._recovery is not None:
            return self._is_admitted(self._recovery.admit(account, number, many, raw), many)
        admitted = self._accounts.admit(account, number, many)
        return self._is_admitted(Verdict.DELIVER if admitted else Verdict.DUPLICATE, many)

    def _admit_early(self, account: Any, raw: RawFrames, many: int = 1, *, held: bool) -> bool:
        """Return True if a message that was not counted must be delivered now.

        Otherwise it waits for the join of its publisher, which may replay it. ``held`` is the result of `_is_held`.
        """
        if not held or self._recovery is None:
            return True
        return self._is_admitted(self._recovery.early(account, 0, many, raw), many)

    def _is_admitted(self, verdict: Verdict, many: int) -> bool:
        """Return True if a frame must be delivered now; otherwise correct the counters.

        The caller counts the frame as one received message.
        """
        if verdict is Verdict.HELD:
            self._stats.received -= 1  # each of its messages counts as received when it is delivered
        elif verdict is Verdict.DUPLICATE:
            self._stats.duplicate += many
            self._stats.received += many - 1
        return verdict is Verdict.DELIVER

    def _is_held(self, account: Any) -> bool:
        """Return True if a recovery holds the messages of an account."""
        return self._recovery is not None and self._recovery.active(account)

    # -- several messages in a frame ----------------------------------------------------------------------

    def _receive_coalesced(self, header: Header, fixed: bytes, topic: bytes, body: bytes, raw: RawFrames) -> None:
        """Receive a coalesced frame, and prepare the closure for further such frames."""
        entry = self._entries.of(topic)
        account: Any = self._accounts.account(header.epoch, topic, entry.subscription) or UNNUMBERED
        length = len(entry.subscription if account is UNNUMBERED else account.prefix)
        short = header.size == HEADER_SIZE and header.span == length and len(body) <= LARGE_FRAME
        held = self._is_held(account)
        if short and not held:
            known = KnownHead(fixed[:HEAD_SIZE], account, header.codec, self._admit)
            whole = self._entries.frames_of(entry, known, self._frames, header.epoch if header.keeps else None)
            if whole is None:
                unpacking = self._unpacking(entry, header, account)
                self._entries.remember_head(entry, fixed[:HEAD_SIZE], UNNUMBERED, unpacking, self._admit)
            elif isinstance(raw, bytes) and len(raw) <= self._short and (fault := whole(body, raw)) != TRACKED:
                self._stats.routed += fault is None
                return
        coalesced = parse_coalesced(header.codec, body)
        if not header.sequence:
            admitted = self._admit_early(account, raw, coalesced.many, held=held)
        else:
            admitted = self._admit(account, header.number(length), raw, coalesced.many)
        if not admitted:
            return
        if header.keeps:
            self._latest.note(header.epoch, topic, fixed)
        self._unpack(entry, coalesced, fixed, raw)

    def _unpacking(self, entry: TopicEntry, header: Header, account: Any) -> Deliver:
        """Return the closure for coalesced frames with the same head.

        It is used if the handlers of the topic need more than the closure of `frame_maker`. It checks the numbers
        itself, because a frame advances the account by more than 1.
        """
        codec, keeps, at = header.codec, header.keeps, len(entry.wire) + 1

        def deliver(body: bytes, raw: RawFrames) -> int | None:
            assert isinstance(raw, bytes)  # the loop gives frames
            try:
                coalesced = parse_coalesced(codec, body)
            except EnvelopeError as error:
                return self._malformed(error, raw)
            fixed = raw[at : at + HEADER_SIZE]
            number, many = _HEAD_AND_NUMBER(fixed)[1], coalesced.many
            if number and not self._admit(account, number, raw, many):
                return COUNTED
            if keeps:
                self._latest.note(header.epoch, entry.wire, fixed)
            self._unpack(entry, coalesced, fixed, raw)
            return COUNTED

        return deliver

    def _unpack(self, entry: TopicEntry, coalesced: Coalesced, fixed: bytes, raw: RawFrames) -> None:
        """Deliver the messages of a coalesced frame as if each had arrived alone.

        The frame itself is already counted as one received message.
        """
        many, topic, stats = coalesced.many, entry.wire, self._stats
        made: list[bytes] = []

        def frames() -> list[bytes]:
            if not made:
                made.extend(self._split(topic, fixed, coalesced, raw))
            return made

        most = many if self._unpacked.most is None else min(many, self._unpacked.most)
        whole = most == many and len(coalesced.listing) <= self._max_message  # otherwise check the size of each body
        deliver = (
            self._entries.deliver_coalesced(entry, coalesced.codec, large=len(coalesced.listing) > LARGE_FRAME)
            if whole
            else None
        )
        done = deliver(coalesced, frames) if deliver is not None else 0
        stats.received += done - 1
        stats.routed += done
        if done < many:
            left = zip(coalesced.bodies[done:], frames()[done:], strict=True)
            self._unpacked.rest.extend((topic, coalesced.codec, body, frame) for body, frame in left)
        # The list could not be delivered in one call: begin at once with its single messages.
        if not done:
            self.work_off(min(most, READ_SLICE))
        rounds = self._rounds
        left_of_drain = 0 if self._unpacked.rest else max(len(rounds) - many + 1, 0)
        del rounds[left_of_drain:]  # the messages use up the budget; if some are left, the next call begins with them

    def _split_frame(self, topic: bytes, raw: bytes) -> list[bytes]:
        """Return the frames that the messages of a valid frame would have alone."""
        fixed, coalesced = self._parsed(topic, raw)
        return self._split(topic, fixed, coalesced, raw)

    def _use_up(self, many: int) -> None:
        """Let the loop read fewer frames, because a frame contained ``many`` messages."""
        # A start before the list deletes the whole list.
        del self._rounds[1 - many or len(self._rounds) :]

    def _keep_left(self, topic: bytes, raw: bytes, left: int) -> None:
        """Keep the last ``left`` messages of a valid frame for the next `receive`."""
        fixed, coalesced = self._parsed(topic, raw)
        some = zip(coalesced.bodies[-left:], self._split(topic, fixed, coalesced, raw)[-left:], strict=True)
        self._unpacked.rest.extend((topic, coalesced.codec, body, frame) for body, frame in some)
        self._rounds.clear()

    @staticmethod
    def _parsed(topic: bytes, raw: bytes) -> tuple[bytes, Coalesced]:
        """Return the header and the content of a valid coalesced frame.

        The frame has no further counters and no headers.
        """
        at = len(topic) + 1
        fixed = raw[at : at + HEADER_SIZE]
        return fixed, parse_coalesced(fixed[CODEC_AT], raw[at + HEADER_SIZE :])

    @staticmethod
    def _split(topic: bytes, fixed: bytes, coalesced: Coalesced, raw: RawFrames) -> list[bytes]:
        """Return the frames that the messages of a coalesced frame would have alone."""
        frames = split_frame(topic, fixed, coalesced.bodies)
        if isinstance(raw, RecoveredFrame):
            return [type(raw).of(each, raw) for each in frames]
        if not isinstance(raw, bytes | tuple) or isinstance(raw, NamedFrame):
            return [NamedFrame.of(each, peer_of(raw)) for each in frames]
        return list(frames)

    def _check_size(self, body: bytes) -> None:
        """Raise EnvelopeError if a body exceeds ``max_message``."""
        if len(body) > self._max_message:
            raise EnvelopeError(f"a body of {len(body)} bytes; expected at most max_message={self._max_message}")

    def _unrouted(self, raw: RawFrames) -> int:
        self._stats.unrouted += 1
        self._outcomes.unrouted(raw)
        return COUNTED

    def _malformed(self, error: EnvelopeError, raw: RawFrames) -> int:
        self._stats.malformed += 1
        self._outcomes.malformed(error, raw)
        return MALFORMED
