"""Recover lost messages of a subscription from the history of their publisher.

The publisher's side is `zroute.publishing.recovery`; ``docs/reference/wire.md`` describes the protocol. This module
sends nothing and reads no clock. Frames are opaque values here.

**What is held.** A gap names no topic, so each later message of the subscription may belong to the topic of a lost one.
Therefore a `StreamRecovery` holds all later messages of the subscription at this publisher (a *stream*), until the lost
ones have arrived or are given up. Messages of other streams are not delayed. Held entries that are below the first
missing number move to ``ready``, in the order of their numbers. A range that stays lost is an entry too, so a loss is
reported before the messages that follow it.

While a recovery lasts, live messages are held as fast as they arrive, and each of them takes time that the recovery
needs. The two usual cases are therefore short: a message that follows all others is appended to a deque, and the
messages of an answer that are missing next become ready together. Everything else passes through a heap.

**The states of a stream.** A stream without missing, held and ready entries is not *active*, and its messages do not
pass through this module.

=================== ============================== ============================== ===========================
event               not active                     active                         resting (until a time)
=================== ============================== ============================== ===========================
gap                 missing; active                missing                        lost
next message        delivered                      held; without room: missing    delivered
earlier message     duplicate                      fills a gap, or a duplicate    duplicate
entry of an answer  ignored                        fills a gap, or ignored        ignored
not available       ignored                        lost                           ignored
end of the stream   nothing                        everything missing is lost     nothing
=================== ============================== ============================== ===========================

**Replay.** With ``since``, a stream begins with a `zroute.receiving.replay.Replay`. Nothing is released until the past
has been delivered. Meanwhile, gaps and messages without room are missing. This also holds for a stream that otherwise
does not recover, because the history contains these messages.

**Asking.** A stream has at most one open request. It asks when everything that has arrived was read and delivered: a
slow subscriber therefore does not ask for more than it can handle. A request whose answer does not arrive is repeated
`TRIES` times in all. An empty answer that promises more says that the publisher still searches: the stream then waits,
for `SEARCHES` such answers at most.

**Overload.** While messages are held, a subscriber reads fast although it handles nothing, so reading is no sign that
it keeps up. The rule is: **in each second, the number of missing messages must decrease, or all messages that were
missing at its beginning must arrive.** Otherwise everything missing is given up, and the stream *rests*: its losses are
counted at once. The rest takes 1, 2, 4 … 60 seconds, and is 1 second again after `WHOLE_SECONDS` without a missing
message and without a backlog. Catching up may thus take any time, and a steady small loss is always recovered, but
overload ends the recovery after one or two seconds. A second consists of four ticks in which the stream could ask or
lost more messages; a subscriber that was stopped is not judged for that time. Nor is a second judged if a request is
open at its end and nothing has come for `TRY_SECONDS`, as when a connection ends within an answer: the number of tries
limits that. While a request waits for its turn among the requests of other streams, no second is judged.

A slow handler can satisfy this rule while the held messages become a second queue, because only delivered messages make
room for the next request. The second rule is therefore: **in a second in which handlers are too slow, everything
missing is given up, too.** In such a second, more messages arrive than are delivered, more wait than a second can
deliver, and the stream did not wait for answers. The first such second begins with the first request: messages that
were in the queues before are not judged. A stream that waits for its publisher may hold any number. Messages that are
ready count as delivered: an answer may bring thousands at once, just before the second ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, islice
from math import inf
from typing import Any

from zroute.clock import TICK
from zroute.messages.recovery import Range
from zroute.receiving.replay import REQUESTS_ACCEPTED, TRY_SECONDS, Early, PastLoss, Replay

__all__ = [
    "HELD_BYTES",
    "HELD_MESSAGES",
    "RANGES_ASKED",
    "RANGES_MAX",
    "REST_MAX",
    "SEARCHES",
    "TRIES",
    "WAITING_COST",
    "WHOLE_SECONDS",
    "Arrival",
    "Hold",
    "NumberRanges",
    "Ready",
    "StreamRecovery",
]

HELD_MESSAGES = 50_000
HELD_BYTES = 64 << 20
"""The maximum number and size of held messages of an app. Further messages are missing, and recovered later."""

WAITING_COST = 200
"""The memory in bytes of a kept message or snapshot that waits, in addition to its frame."""

TRIES = 4
"""The number of requests without an answer after which a stream gives up."""

SEARCHES = 120
"""The number of consecutive empty answers after which a stream gives up: about two minutes of searching.

A publisher keeps counting for a subscriber for the same time.
"""

REST_MAX = 60.0
"""The longest rest in seconds after a recovery that did not catch up."""

WHOLE_SECONDS = 10.0
"""The time in seconds without missing messages after which the next rest takes 1 second again."""

RANGES_MAX = 50_000
"""The maximum number of missing ranges of a stream, which use about 7 MB."""

RANGES_ASKED = 40
"""The number of ranges that a request may contain; see `zroute.messages.recovery.REQUEST_MAX`."""

_SECOND = round(1 / TICK)


class Ready:
    """The next entry of a stream: messages to deliver, or a lost range.

    The messages are those from ``first`` to ``last`` in ``arrival``, which may contain more, and ``frame`` is its
    frame. For a lost range, both are None.
    """

    __slots__ = ("arrival", "first", "frame", "last", "size")

    def __init__(self, first: int, last: int, arrival: Arrival | None, size: int = 0) -> None:
        self.first, self.last, self.size, self.arrival = first, last, size, arrival
        self.frame: Any = None if arrival is None else arrival.frame


class Arrival(Ready):
    """A frame with the messages ``first`` to ``last``, and its size in bytes.

    It is also the entry of a stream that delivers all these messages: one object for each held message, not two.
    """

    __slots__ = ()

    def __init__(self, first: int, last: int, frame: Any, size: int) -> None:
        self.first, self.last, self.size, self.frame = first, last, size, frame

    @property
    def arrival(self) -> Arrival:  # type: ignore[override]  # an attribute would be a reference cycle
        """This object."""
        return self


class Hold:
    """The room for held messages, which all streams of an app share."""

    def __init__(self, messages: int = HELD_MESSAGES, size: int = HELD_BYTES) -> None:
        self._messages = messages
        self._size = size
        self.messages = self.size = 0

    def has_room(self, size: int) -> bool:
        """Return True if a message of ``size`` bytes may be held."""
        return self.messages < self._messages and self.size + size <= self._size

    def take(self, size: int, many: int = 1) -> None:
        """Count ``many`` messages that are held from now on, of ``size`` bytes together."""
        self.messages += many
        self.size += size

    def has_bytes(self, size: int) -> bool:
        """Return True if the bytes have room, whatever the number of messages is."""
        return self.size + size <= self._size

    def give_back(self, size: int) -> None:
        """Count a message that is no longer held."""
        self.messages -= 1
        self.size -= size


class NumberRanges:
    """A set of numbers as ascending ranges that neither overlap nor touch.

    Numbers are usually added at the end and removed at the beginning, which takes constant time.
    """

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self._start = 0  # the ranges before this index were removed
        self.total = 0

    def __len__(self) -> int:
        return len(self._ranges) - self._start

    def __iter__(self) -> Iterator[Range]:
        return islice(self._ranges, self._start, None)

    @property
    def range(self) -> Range | None:
        """The first range, or None."""
        return self._ranges[self._start] if self.total else None

    @property
    def first(self) -> int | None:
        """The lowest number, or None."""
        return self._ranges[self._start][0] if self.total else None

    @property
    def last(self) -> int | None:
        """The highest number, or None."""
        return self._ranges[-1][1] if self.total else None

    def add(self, first: int, last: int) -> None:
        """Add the numbers ``first`` to ``last``."""
        if len(self) and first <= self._ranges[-1][1]:  # not after the others: only after a forged frame
            self.take(first, last)
            self.total += last - first + 1
            self._ranges = sorted([*self, (first, last)])
            self._start = 0
            return
        self.total += last - first + 1
        if len(self) and self._ranges[-1][1] == first - 1:
            first = self._ranges.pop()[0]
        self._ranges.append((first, last))

    def take(self, first: int, last: int) -> list[Range]:
        """Remove the numbers ``first`` to ``last``; return those that were in the set."""
        ranges = self._ranges
        # The first range that ends at ``first`` or later. The common case needs no search.
        at = self._start
        if at < len(ranges) and ranges[at][1] < first:
            at = bisect_left(ranges, first, lo=at, key=_end)
        found: list[Range] = []
        rest: list[Range] = []
        end = at
        while end < len(ranges) and ranges[end][0] <= last:
            lowest, highest = ranges[end]
            found.append((max(lowest, first), min(highest, last)))
            if lowest < first:
                rest.append((lowest, first - 1))
            if highest > last:
                rest.append((last + 1, highest))
            end += 1
        if not found:
            return found
        for lowest, highest in found:
            self.total -= highest - lowest + 1
        if at == self._start and len(rest) <= end - at:
            # At the beginning: the ranges stay where they are in the list.
            self._start = end - len(rest)
            ranges[self._start : end] = rest
            if self._start > 1000 and self._start > len(ranges) // 2:
                del ranges[: self._start]
                self._start = 0
        else:
            ranges[at:end] = rest
        return found

    def clear(self) -> list[Range]:
        """Remove all numbers, and return them."""
        found = list(self)
        self._ranges, self._start, self.total = [], 0, 0
        return found


def _end(each: Range) -> int:
    return each[1]


class StreamRecovery:
    """The recovery of one subscription at one publisher.

    Attributes:
        ready: What must be delivered or reported next, in order. Take an entry with `pop`.
        missing: The numbers of the missing messages.
        recovered: The number of messages that were missing and arrived.
        asked: True while a request is open.
        queued: True while a request has to wait, because too many of other streams are open. Set by the session.
        told: The part of `recovered` that reports of losses have included.
        logged: The part of `recovered` that the log has included.
        gone: The number of lost messages that were not in the history, and that the log has not included.
        begun_rest: The length in seconds of a rest that the log has not included; 0 if there is none.
        replay: The replay that precedes the messages of the stream, or None.
        catches_up: True from the beginning of a replay until everything that waited for it was delivered.
    """

    def __init__(self, hold: Hold) -> None:
        self.ready: deque[Ready | PastLoss] = deque()
        self.missing = NumberRanges()
        self.recovered = self.told = self.logged = self.gone = 0
        self.begun_rest = 0.0
        self.replay: Replay | None = None
        self.catches_up = self.queued = False
        self._hold = hold
        self._later: deque[Arrival] = deque()  # held messages that followed all others when they arrived, ascending
        self._held: list[tuple[int, int, Ready]] = []  # a heap of everything else that is held
        self._order = 0
        self._waiting: deque[int] = deque()  # the numbers behind which messages without a number wait, ascending
        self._requests: deque[int] = deque(maxlen=REQUESTS_ACCEPTED)
        self._asked_at: float | None = None
        self._tries = self._searches = 0
        self._previous: float | None = None  # the time of the last tick
        self._rest_until = 0.0
        self._rest = 1.0
        self._whole_since = 0.0
        self._judged = 0  # ticks of the present second
        self._then = 0  # the number of missing messages when the second began
        self._before = 0  # the number of missing messages at the last tick
        self._mark = 0  # the last missing message when the second began
        self._progress_at = -inf  # the time of the last answer that has brought something
        self._came = self._released = 0  # the messages that arrived, and became ready, since the second began
        self._waited = 0  # ticks of the present second in which a request was open
        self._has_asked = False  # True from the first request of a recovery on

    @property
    def active(self) -> bool:
        """True if messages of the stream must pass through this object."""
        return bool(self.ready or self._later or self._held or self.missing.total or self.replay)

    def is_whole(self, now: float) -> bool:
        """Return True if nothing was missing for `WHOLE_SECONDS`.

        A new object may then take the place of this one. It needs only the number of recovered messages that no report
        of a loss has included.
        """
        return not self.active and not self.catches_up and now - self._whole_since >= WHOLE_SECONDS

    @property
    def asked(self) -> bool:
        """True while a request is open."""
        return self._asked_at is not None

    # -- messages

    def miss(self, first: int, last: int, now: float) -> bool:
        """Record that the messages ``first`` to ``last`` were not received.

        Return False if the stream rests: the messages are then lost, and the caller must count them.
        """
        self._came += last - first + 1
        if now < self._rest_until:
            if not self.active:
                return False
            # The loss is reported in its place, behind messages that are still ready.
            self._put(first, last, None)
            self._release()
            return True
        self._add(first, last, now)
        return True

    def _add(self, first: int, last: int, now: float) -> None:
        if not len(self.missing):
            self._begin_second(last - first + 1, last)
            self._has_asked = False
        self.missing.add(first, last)
        if len(self.missing) > RANGES_MAX:
            self._give_up(now)

    def _begin_second(self, total: int, last: int) -> None:
        self._judged, self._then, self._before, self._mark = 0, total, total, last
        self._came = self._released = self._waited = 0

    def arrive(self, arrival: Arrival, now: float) -> None:
        """Hold a message that follows all others. Without room, it is missing too."""
        self._came += arrival.last - arrival.first + 1
        if self._hold.has_room(arrival.size):
            self._hold.take(arrival.size)
            self._later.append(arrival)
        elif now < self._rest_until:
            self._put(arrival.first, arrival.last, None)
        else:
            self._add(arrival.first, arrival.last, now)
        if not self.missing.total:  # otherwise the message follows a missing one
            self._release()

    def wait(self, number: int, frame: Any, size: int) -> bool:
        """Hold a message that has no number in the stream, behind the message ``number``.

        It is not in the history, so only the bytes of the hold limit such messages. Return False if there is no room.
        """
        size += WAITING_COST
        if not self._hold.has_bytes(size):
            return False
        self._put(number, number, Arrival(number, number, frame, size), waits=True)
        self._waiting.append(number)
        self._release()
        return True

    def fill(self, arrival: Arrival) -> bool:
        """Record an earlier message; return True if it was missing.

        Only the missing ones of the messages in a frame are delivered. Without room, they stay missing, except for the
        next one to deliver.
        """
        filled = self._fill(arrival)
        self._release()
        return filled

    def _fill(self, arrival: Arrival) -> bool:
        first = self.missing.first
        if first is None:
            return False
        if not (arrival.first <= first or self._hold.has_room(arrival.size)):
            return False
        found = self.missing.take(arrival.first, arrival.last)
        for lowest, highest in found:
            self.recovered += highest - lowest + 1
            self._put(lowest, highest, arrival)
        return bool(found)

    def _fill_next(self, arrivals: deque[Arrival]) -> bool:
        """Make those of the first ``arrivals`` ready that are the next missing messages.

        Remove them from ``arrivals``, and return True if there are any. Most answers consist of such messages. Each of
        them is the next one to deliver, so it needs no room. The messages end where a kept message or a snapshot waits,
        because later ones must follow it.
        """
        missing = self.missing.range
        if missing is None or self.replay is not None:
            return False
        (lowest, highest), many, size = missing, 0, 0
        if self._waiting:
            highest = min(highest, self._waiting[0])
        expected = lowest
        for each in arrivals:
            if each.first != expected or each.last > highest:
                break
            expected, many, size = each.last + 1, many + 1, size + each.size
        if many:
            self.missing.take(lowest, expected - 1)
            self.recovered += expected - lowest
            self._released += expected - lowest
            self._hold.take(size, many)
            self.ready.extend(arrivals.popleft() for _ in range(many))
        return many > 0

    def _put(self, first: int, last: int, arrival: Arrival | None, *, waits: bool = False) -> None:
        entry: Ready
        if arrival is not None and arrival.first == first and arrival.last == last:
            entry = arrival
        else:
            entry = Ready(first, last, arrival, 0 if arrival is None else arrival.size)
        self._hold.take(entry.size)
        self._order += 1
        heappush(self._held, (2 * first + waits, self._order, entry))

    def _release(self) -> None:
        """Move everything before the first missing message to `ready`.

        Losses that follow each other become one.
        """
        if self.replay is not None:
            return
        later, held, first, ready = self._later, self._held, self.missing.first, self.ready
        released = 0
        while held and (first is None or held[0][0] < 2 * first):
            key, _, entry = heappop(held)
            while later and 2 * later[0].first < key:
                released += later[0].last - later[0].first + 1
                ready.append(later.popleft())
            if key % 2:
                self._waiting.popleft()
            before = ready[-1] if ready else None
            if (
                entry.frame is None
                and isinstance(before, Ready)
                and before.frame is None
                and before.last == entry.first - 1
            ):
                ready.pop()
                entry = Ready(before.first, entry.last, None)
                self._hold.give_back(0)
            if entry.frame is not None:
                released += entry.last - entry.first + 1
            ready.append(entry)
        while later and (first is None or later[0].first < first):
            released += later[0].last - later[0].first + 1
            ready.append(later.popleft())
        self._released += released
        if first is None:
            self._asked_at, self._tries, self._searches = None, 0, 0

    def pop(self) -> Ready | PastLoss:
        """Remove and return the next entry of `ready`."""
        ready = self.ready.popleft()
        if isinstance(ready, Ready):
            self._hold.give_back(ready.size)
        return ready

    def discard(self) -> None:
        """Drop the messages that are ready. Losses are still reported."""
        entries, self.ready = self.ready, deque[Ready | PastLoss]()
        for each in entries:
            if isinstance(each, Ready) and each.frame is not None:
                self._hold.give_back(each.size)
            else:
                self.ready.append(each)

    def deliver(self, many: int, frame: Any, size: int) -> None:
        """Make a frame ready behind all others: the past, or from before the join."""
        self._hold.take(size)
        self._released += many
        self.ready.append(Ready(1, many, Arrival(1, many, frame, size), size))

    def release(self, early: Early) -> None:
        """Make a held message from before the join ready."""
        self._hold.give_back(early.size)
        self.deliver(early.many, early.frame, early.size)

    def end_replay(self, loss: PastLoss | None) -> None:
        """Release what has waited for the replay. ``loss`` is what is lost of the past."""
        if self.replay is None:
            return
        self.replay = None
        if loss is not None:
            self.ready.append(loss)
        last = self.missing.last
        if last is not None:
            self._begin_second(self.missing.total, last)
        self._release()

    # -- requests

    @property
    def wants_request(self) -> bool:
        """True if messages are missing, and neither asked for nor ready."""
        return self._asked_at is None and not self.ready and self.replay is None and len(self.missing) > 0

    def ask(self, number: int, now: float) -> list[Range]:
        """Return the ranges to ask for in request ``number``.

        The result is empty if no request is needed now. Call this method when everything that has arrived was read and
        delivered.
        """
        if not self.wants_request:
            return []
        self._asked_at, self.queued = now, False
        self._requests.append(number & 0xFFFF)
        if not self._has_asked and self.missing.last is not None:
            self._has_asked = True
            self._begin_second(self.missing.total, self.missing.last)
        return list(islice(self.missing, RANGES_ASKED))

    def answer(
        self, number: int, arrivals: Iterable[Arrival], gone: Iterable[Range], *, last: bool, refused: bool, now: float
    ) -> None:
        """Process one frame of an answer.

        Args:
            number: The number of the request. Answers to other requests are ignored.
            arrivals: The messages.
            gone: The ranges that are not available.
            last: True if this is the last frame of the answer.
            refused: True if the publisher cannot answer for this subscription.
            now: The current time.
        """
        if number not in self._requests:
            return
        progress = False
        arriving = deque(arrivals)
        while arriving:
            progress |= self._fill_next(arriving) or self._fill(arriving.popleft())
            self._release()
        missing = self.missing
        lost = sorted(chain.from_iterable(missing.take(lowest, highest) for lowest, highest in gone))
        self.gone += sum(highest - lowest + 1 for lowest, highest in lost)
        progress |= self._lose(lost)
        self._release()
        if progress:
            self._tries, self._searches, self._progress_at = 0, 0, now
        if refused:
            self._give_up(now)
        elif last and number == self._requests[-1] and self._asked_at is not None:
            self._asked_at = None
            if not progress:
                self._fail(now)

    def search(self, number: int, now: float) -> None:
        """Record that the publisher still searches for an answer to ``number``."""
        if number in self._requests and len(self.missing):
            self._tries, self._searches = 0, self._searches + 1
            if self._searches >= SEARCHES:
                self._give_up(now)

    def _lose(self, lost: Sequence[Range]) -> bool:
        """Put ascending ranges of lost messages into their places.

        Return True if there are any. A snapshot replaces the messages before it, but not those after it, so a loss on
        both sides becomes two. Ranges and snapshots both ascend: each is looked at once, however many a peer sends.
        """
        waiting = iter(self._waiting if lost else ())
        number = next(waiting, None)
        for first, last in lost:
            while number is not None and number < last:
                if number >= first:
                    self._put(first, number, None)
                    first = number + 1
                number = next(waiting, None)
            self._put(first, last, None)
        return bool(lost)

    def _fail(self, now: float) -> None:
        self._tries += 1
        if self._tries >= TRIES and len(self.missing):
            self._give_up(now)

    # -- time

    def tick(self, now: float, *, emptied: bool) -> None:
        """Judge the progress. Call this method in each `TICK`.

        Args:
            now: The current time.
            emptied: True if everything that had arrived was read since the last call.
        """
        previous, self._previous = self._previous, now
        if self.replay is not None:
            return
        if not len(self.missing):
            if now < self._rest_until or not emptied:  # with a backlog, losses are not known yet
                self._whole_since = now
            elif now - self._whole_since >= WHOLE_SECONDS:
                self._rest = 1.0
            return
        self._whole_since = now
        waits = self._asked_at is not None and emptied
        # All frames that had arrived before the deadline have been read.
        if self._asked_at is not None and emptied and previous is not None and previous - self._asked_at >= TRY_SECONDS:
            self._asked_at = None
            self._fail(now)
        total = self.missing.total
        if self.queued and emptied and self.missing.last is not None:
            self._begin_second(total, self.missing.last)
            return
        if emptied or total > self._before:
            self._judged += 1
            self._waited += self.asked
        self._before = total
        first, last = self.missing.first, self.missing.last
        if self._judged < _SECOND or first is None or last is None:
            return
        # While a request is open and brings nothing, its tries are counted instead.
        unanswered = waits and now - self._progress_at >= TRY_SECONDS
        if (total >= self._then and first <= self._mark and not unanswered) or self._is_slow():
            self._give_up(now)
        else:
            self._begin_second(total, last)

    def _is_slow(self) -> bool:
        """Return True if handlers were too slow in the present second."""
        released = self._released
        if not self._has_asked or self._came <= released or 2 * self._waited >= _SECOND:
            return False
        held = chain(self._later, (each for _, _, each in self._held if each.frame is not None))
        return self.missing.total + sum(each.last - each.first + 1 for each in held) > released

    def _give_up(self, now: float) -> None:
        """Count everything missing as lost, and rest."""
        if now >= self._rest_until and len(self.missing):
            self._rest_until, self.begun_rest = now + self._rest, self._rest
            self._rest = min(2 * self._rest, REST_MAX)
        self.end()

    def end(self) -> None:
        """Count everything missing as lost: the publisher or the subscription has ended."""
        self._lose(self.missing.clear())
        self._requests.clear()
        self._release()
