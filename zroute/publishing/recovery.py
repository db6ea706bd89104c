"""Answer the requests of subscribers for lost messages, and for the past.

The subscriber's side is `zroute.receiving.stream_recovery`; ``docs/reference/wire.md`` describes the protocol, and
`zroute.publishing.history` the kept messages. `zroute.publishing.past` finds the messages of the past.

**Limits.** Peers choose their requests, so each kind of work is limited:

- For each subscription, a subscriber has at most one waiting request for lost messages, and one for the past. A newer
  one takes its place. At most `WAITING` requests wait in total, because a peer can invent subscribers.
- An answer has at most `WINDOW` bytes of messages, and one message more. The subscriber then asks again, so that
  subscribers take turns.
- All answers together have at most `BYTES` per second, or twice the size of the messages that are published, if this is
  more. A subscriber that is 10 s behind can then catch up in 10 s.
- Histories are scanned at `BLOCK` frames in each period of 10 ms: about 5 % of the time. Each block costs as much as
  `BLOCK_COST` frames in addition. The results are used for all requests of a subscription for up to `KNOWN_SECONDS`,
  and contain at most `FOUND` frames in total.
- Requests make blocks of the latest messages at most every `_SEAL_SECONDS`, because small blocks make searches slow.
- A request that can't be answered at once waits for the next period, so a flood of requests costs one look at each.

Searches for many subscriptions in a large history may take seconds, and minutes for the past. The publisher then sends
each subscriber whose request waits an empty answer about every second, so that the subscriber does not give up. These
answers use up the allowance, but are also sent when it is used up. The limit of waiting requests bounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import count, islice
from operator import itemgetter

import attrs

from zroute.clock import TICK, Clock
from zroute.errors import EnvelopeError
from zroute.messages.recovery import (
    Entry,
    Past,
    PastAnswer,
    Range,
    RecoveryRequest,
    entry_size,
    pack_box,
    pack_recovery_answers,
    parse_recovery_request,
)
from zroute.publishing.counters import Counters
from zroute.publishing.history import BLOCK, History, Numbered, Ring, Search
from zroute.publishing.pacing import Allowance
from zroute.publishing.past import PastSearch

__all__ = ["BYTES", "FOUND", "KNOWN_SECONDS", "WAITING", "WINDOW", "HistoryAnswers"]

WAITING = 1_000
"""The maximum number of waiting requests. Further requests are dropped; subscribers repeat them."""

WINDOW = 256 << 10
"""The maximum size in bytes of the entries in an answer, if they are more than one message."""

BYTES = 20_000_000
"""The minimum rate of answers in bytes per second."""

KNOWN_SECONDS = 2.0
"""The time in seconds for which the result of a search is used. It may hold frames that were dropped meanwhile."""

FOUND = 1_000_000
"""The maximum number of frames in the results of searches, 8 bytes for each.

Results for lost messages, and those for the past, have this limit each. Parts of blocks count as frames too.
"""

_PERIOD = 0.01
_SEAL_SECONDS = 0.05
"""The minimum time in seconds between two blocks that are made for requests, which limits the number of blocks."""

_NOTICE_TICKS = 4
"""The number of ticks after which a request that still waits gets an empty answer."""

_ANSWER_COST = 5_000
_RANGE_COST = 500
"""The cost of an answer, and of each range that it is about, in addition to its bytes.

They limit refusals to 4,000 per second, and those about many single messages to fewer than 1,000.
"""

_Key = tuple[int, bool, bytes]
"""The key of a waiting request: a subscriber, True if it asks for the past, and the subscription."""

Send = Callable[[bytes, "list[bytes]"], object]
"""A function that sends the frames of an answer to a box. Frames that cannot be sent now are dropped."""


@attrs.define(eq=False)
class _Known:
    """The searches of one subscription, one for each ring, and their beginning."""

    searches: list[Search]
    since: float

    @property
    def found(self) -> int:
        return sum(search.found for search in self.searches)


class HistoryAnswers:
    """The histories of one run of a publisher, and the answers from them.

    Args:
        clock: The reactor's clock.
        clock_ns: A function that returns the time in nanoseconds since the Unix epoch, as in headers.
        counters: The counters of the publisher.
        epoch: The 64-bit number of this run of the publisher.
        send: A function that sends an answer.
    """

    def __init__(self, clock: Clock, clock_ns: Callable[[], int], counters: Counters, epoch: int, send: Send) -> None:
        self._clock = clock
        self._clock_ns = clock_ns
        self._counters = counters
        self._epoch = epoch
        self._send = send
        self._rings: list[Ring] = []
        self._orders = count(1)
        self._waiting: dict[_Key, tuple[RecoveryRequest, int]] = {}
        self._known: dict[bytes, _Known] = {}
        self._pasts: dict[bytes, PastSearch] = {}
        self._past_used: dict[bytes, float] = {}
        self._seals, self._sealed_at = 0, -_SEAL_SECONDS  # how often blocks were made of all frames, and when
        self._bytes = Allowance(clock, int(BYTES * _PERIOD), _PERIOD, self._answer_some)
        self._frames = Allowance(clock, BLOCK, _PERIOD, self._answer_some)
        self._added = self._ticks = 0

    def ring(self, history: History) -> Ring:
        """Return a new ring with the bounds of ``history``."""
        ring = Ring(history, self._orders)
        self._rings.append(ring)
        self._known.clear()
        self._pasts.clear()
        return ring

    @property
    def active(self) -> bool:
        """True if there is a history."""
        return bool(self._rings)

    def request(self, topic: bytes) -> None:
        """Handle a subscription that begins like a request, valid or not."""
        if not self._rings:
            return
        try:
            request = parse_recovery_request(topic)
        except EnvelopeError:
            return
        if request.epoch != self._epoch:
            return
        key = request.subscriber, request.past is not None, request.prefix
        if len(self._waiting) < WAITING or key in self._waiting:
            continues = request.past is not None and request.past.position
            self._waiting[key] = request, self._seals + (not continues)
            # Only this one, because peers may send many requests in a turn. The others wait for a timer.
            if self._bytes.left > 0:
                self._answer_one(key)

    def tick(self, now: float) -> None:
        """Enforce the bounds of the histories. Call this method at each `TICK`."""
        added = 0
        for ring in self._rings:
            ring.trim(now)
            added += ring.added
        twice = int(2 * (added - self._added) * _PERIOD / TICK)
        self._bytes.amount = max(int(BYTES * _PERIOD), twice)
        self._added = added
        for prefix in [prefix for prefix, known in self._known.items() if known.since + KNOWN_SECONDS <= now]:
            del self._known[prefix]
        for prefix in [prefix for prefix, used in self._past_used.items() if used + KNOWN_SECONDS <= now]:
            self._pasts.pop(prefix, None)
            del self._past_used[prefix]
        self._ticks += 1
        for request, _ in islice(tuple(self._waiting.values()), self._ticks % _NOTICE_TICKS, None, _NOTICE_TICKS):
            past = None if request.past is None else PastAnswer(request.past.position, 0)
            self._answer(request, [], more=True, past=past)

    def close(self) -> None:
        """Drop all requests and histories."""
        self._bytes.close()
        self._frames.close()
        self._waiting.clear()
        self._known.clear()
        self._pasts.clear()
        self._rings.clear()

    def _answer_some(self) -> None:
        """Answer requests within the allowances of this period, the oldest first.

        A request whose messages have not been found yet does not delay the next ones.
        """
        for key in tuple(self._waiting):
            if self._bytes.left <= 0:
                break
            self._answer_one(key)

    def _answer_one(self, key: _Key) -> None:
        """Answer a request, unless its messages have not been found yet."""
        request, seal = self._waiting[key]
        last = self._counters.carried(request.prefix)
        if last is None:
            del self._waiting[key]
            past = None if request.past is None else PastAnswer(request.past.position, 0)
            self._answer(request, [], refused=True, past=past)
        elif request.past is not None:
            if (search := self._past(request.prefix, request.past, seal)) is not None:
                del self._waiting[key]
                answer, found, more = search.window(request.past, self._clock_ns(), WINDOW)
                self._spend_work(search)
                self._answer(request, found, more=more, past=answer)
        elif (searches := self._search(request, last, seal)) is not None:
            del self._waiting[key]
            entries, more = self._entries(request.ranges, searches)
            self._bytes.spend(_RANGE_COST * len(request.ranges))
            self._answer(request, entries, more=more)

    def _answer(
        self,
        request: RecoveryRequest,
        entries: Sequence[Entry],
        *,
        more: bool = False,
        refused: bool = False,
        past: PastAnswer | None = None,
    ) -> None:
        frames = pack_recovery_answers(
            request, entries, epoch=self._epoch, sent_at=self._clock_ns(), more=more, refused=refused, past=past
        )
        self._bytes.spend(_ANSWER_COST + sum(map(len, frames)))
        self._send(pack_box(request.subscriber), frames)

    def _sealed(self, seal: int) -> bool:
        """Make blocks of all frames if there were fewer than ``seal`` `_seals`.

        Return False while it is too early.
        """
        if self._seals < seal:
            now = self._clock.seconds()
            if now < self._sealed_at + _SEAL_SECONDS:
                self._frames.spend(1)  # calls `_answer_some` again in the next period
                return False
            self._seals, self._sealed_at = self._seals + 1, now
            for ring in self._rings:
                ring.seal()
        return True

    def _search(self, request: RecoveryRequest, last: int, seal: int) -> list[Search] | None:
        """Return searches that contain the frames for ``request``.

        Return None while blocks must be scanned, or made: blocks contain everything since the arrival of a request when
        the number of `_seals` is ``seal``.
        """
        first, last = request.ranges[0][0], min(request.ranges[-1][1], last)
        if first > last:
            return []  # these messages were never sent
        known = self._known.get(request.prefix)
        if known is None:
            if self._frames.left <= 0:
                return None
            known = _Known([Search(ring, request.prefix) for ring in self._rings], self._clock.seconds())
            self._known[request.prefix] = known
        if not (all(search.reaches(last) for search in known.searches) or self._sealed(seal)):
            return None
        for search in known.searches:
            while True:
                if self._frames.left <= 0:
                    return None
                cost = search.scan(first, last)
                if not cost:
                    break
                self._frames.spend(cost)
        self._forget_some(request.prefix)
        return known.searches

    def _past(self, prefix: bytes, past: Past, seal: int) -> PastSearch | None:
        """Return a search that contains the frames of the past for a request.

        Return None while blocks must be scanned or made; see `_search`.
        """
        now, search = self._clock.seconds(), self._pasts.get(prefix)
        # A request that continues usually needs no scan. It uses the next period, so it does not wait for other scans.
        least = -BLOCK if search is not None and past.position else 0
        if self._frames.left <= least or not self._sealed(seal):
            return None
        if search is None:
            search = self._pasts[prefix] = PastSearch(self._rings, prefix)
        self._past_used[prefix] = now
        for cost in search.prepare(past, self._clock_ns()):
            if self._frames.left <= 0:
                self._spend_work(search)
                return None
            self._frames.spend(cost)
        while sum(each.found for each in self._pasts.values()) > FOUND and len(self._pasts) > 1:
            del self._pasts[next(each for each in self._pasts if each != prefix)]
        return search

    def _spend_work(self, search: PastSearch) -> None:
        self._frames.spend(search.work)
        search.work = 0

    def _forget_some(self, latest: bytes) -> None:
        """Forget the oldest searches if there are too many results."""
        while sum(known.found for known in self._known.values()) > FOUND and len(self._known) > 1:
            oldest = next(prefix for prefix in self._known if prefix != latest)
            del self._known[oldest]

    @staticmethod
    def _entries(ranges: tuple[Range, ...], searches: list[Search]) -> tuple[list[Entry], bool]:
        """Return the entries of an answer, and True if there is more than fits."""
        entries: list[Entry] = []
        left, expected = WINDOW, 1
        for lowest, highest in ranges:
            expected = max(expected, lowest)  # a coalesced frame may have contained the beginning of this range
            frames: Iterator[Numbered] = merge(
                *(search.between(expected, highest) for search in searches), key=itemgetter(0)
            )
            for first, end, frame in frames:
                if left <= 0:
                    return entries, True
                if first > expected:
                    entries.append((expected, first - 1))
                entries.append((first, frame))
                left -= entry_size(entries[-1])
                expected = end + 1
            if expected <= highest:
                entries.append((expected, highest))
                expected = highest + 1
        return entries, False
