"""Tracking: what was lost on the tracked wire, to the message. Pure bookkeeping; the clock is an argument.

The protocol stands in ``docs/reference/wire.md``. `Tracker` is a subscriber's side, `Counters` a publisher's; what
is found is returned as data, see `zroute.delivery.findings`. All times are seconds of one monotonic clock.

**The way of a message** must stay short, so neither side looks at a clock or keeps a set for it. A publisher
finds the counters of a topic with one look-up, adds 1 to each and writes them down; once per topic and `TICK` it
notes that they moved. A subscriber holds the `Stream` (subscription and publisher) beside the deliver closure,
where `RouteTable` finds it with the look-up that it makes anyway, by topic and by the constant head of the
header. In the loop stands one comparison::

    head, number = HEAD_AND_NUMBER(body)          # Struct(">16sQ").unpack_from
    stream, deliver = heads[head]
    if number == stream.expected:
        stream.expected = number + 1
    elif (found := tracker.judge(stream, number)) is not None:
        if found is DUPLICATE: continue           # counted there, and not to be delivered
        report(found)                             # a Gap or a LostTail; the message itself is delivered
    deliver(...)

A head says which subscription the first number belongs to, so this holds where its span is the length of the
reader's own subscription. In all other messages (several counters, headers) the slower way asks
`Header.number` for it; 0, no number, is given to `Tracker.judge` as it is.

**Memory.** A publisher: one `Counter` for each live subscription, up to `MAX_SUBSCRIPTIONS`, and for
`WITHDRAWN_MAX` withdrawn ones; a cover for each of `TOPIC_CACHE` topics; about three notes of a beat for each counter.
A subscriber: `PUBLISHERS_MAX` publishers, and for each of them one `Stream` (about 100 bytes) for each
subscription of its own that something was received or stated of.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum

import attrs

from zroute.delivery.counting import BEATS, COUNT_BITS, GRACE
from zroute.delivery.findings import (
    DUPLICATE,
    Duplicate,
    Ended,
    Event,
    Gap,
    Joined,
    LostKept,
    LostTail,
    Overdue,
    Restarted,
    Silent,
)
from zroute.messages.control import Statement

__all__ = ["ANSWER_SECONDS", "ASKED_MAX", "EARLIER_MAX", "PUBLISHERS_MAX", "Stream", "Tracker"]

PUBLISHERS_MAX = 256
"""Publishers (epochs) that a subscriber keeps account of, so that invented ones fill no memory."""

ANSWER_SECONDS = 2.0
"""Seconds that a publisher has for an answer to a marker."""

ASKED_MAX = 10
"""Markers in succession that one who never answers is asked with: whoever invents publishers makes no endless work."""

EARLIER_MAX = 16
"""Markers before the last: a subscriber sends one for each connection, and keeps those before for `GRACE` seconds."""


@attrs.define(eq=False, slots=True)
class Stream:
    """One subscription at one publisher. ``expected`` is the next number; 0: not joined yet; -1: look it up anew."""

    publisher: int
    prefix: bytes
    expected: int = 0


class _State(Enum):
    JOINING = "joining"
    COMPLETE = "complete"
    ENDED = "ended"


@attrs.define(eq=False)
class _Publisher:
    """What is known of one epoch.

    ``covered``: the subscriptions that its last complete answer was about. ``leaving``: the accounts of such as have
    given way to others of the same topics. They go on until an answer says where the others stand (``standing``, while
    it comes in parts), so that a change loses nothing without a word.
    """

    epoch: int
    state: _State = _State.JOINING
    name: str | None = None
    covered: frozenset[bytes] = frozenset()
    streams: dict[bytes, Stream] = attrs.field(factory=dict)
    leaving: dict[bytes, Stream] = attrs.field(factory=dict)
    lengths: frozenset[int] = frozenset()  # of those that are leaving, which may be thousands
    standing: dict[bytes, int] = attrs.field(factory=dict)
    answering: bytes = b""  # the marker that it answers, and how many parts of that there are
    parts: int = 0
    # When something must be heard: by a promised beat, and by an answer to the marker.
    due: float | None = None
    answer_due: float | None = None
    promise: float | None = None
    pulse: int | None = None
    unanswered: int = 0  # markers, since it was heard last
    silent: bool = False
    kept: int = 1  # the number of the next kept message

    @property
    def joined_once(self) -> bool:
        return self.name is not None

    def change(self, subscriptions: frozenset[bytes]) -> None:
        """These are subscribed to from now on."""
        gone = self.covered.union(self.streams) - subscriptions
        shared = _sharing(gone.union(self.leaving), subscriptions)
        for prefix in gone:
            stream = self.streams.pop(prefix, None) or Stream(self.epoch, prefix, 1)
            if prefix in shared and stream.expected > 0 and self.state is not _State.ENDED:
                self.leaving[prefix] = stream
            else:
                stream.expected = -1
        for prefix in self.leaving.keys() & subscriptions:
            self.streams[prefix] = self.leaving.pop(prefix)
        for prefix in self.leaving.keys() - shared:
            self.leaving.pop(prefix).expected = -1
        self.lengths = frozenset(map(len, self.leaving))
        self.covered &= subscriptions

    def leave(self) -> None:
        """The account of the others has begun, or ends with this run."""
        for stream in self.leaving.values():
            stream.expected = -1
        self.leaving.clear()


class Tracker:
    """What one SUB socket was sent, received and lost, by subscription and publisher.

    `subscribe` says what the socket subscribes to, `join` which marker it sent behind that. Messages go to
    `judge`, unless their number is the expected one; control frames to `stated` and `beat`.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.gaps = 0
        self.duplicates = 0
        self.unknown_tails = 0
        self.joins = 0
        self.epochs = 0
        self._subscriptions: frozenset[bytes] = frozenset()
        self._publishers: dict[int, _Publisher] = {}
        self._markers: set[bytes] = set()
        self._earlier: deque[bytes] = deque(maxlen=EARLIER_MAX)  # sent for the same subscriptions, over what is no more
        self._previous: float | None = None
        self._found: list[Event] = []

    @property
    def complete(self) -> dict[int, str]:
        """The publishers that have answered the last marker: epochs and names."""
        return {each.epoch: each.name or "" for each in self._publishers.values() if each.state is _State.COMPLETE}

    # -- subscriptions

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """The socket subscribes to these and no others; none is a prefix of another (`minimal_cover`)."""
        self._subscriptions = frozenset(subscriptions)
        self._markers.clear()
        self._earlier.clear()
        for publisher in self._publishers.values():
            publisher.change(self._subscriptions)

    @property
    def leaving(self) -> frozenset[bytes]:
        """Subscriptions before, which the socket is to keep: not all publishers have answered about the new ones."""
        return frozenset().union(*(publisher.leaving for publisher in self._publishers.values()))

    def join(self, marker: bytes, now: float, *, again: bool = False) -> None:
        """``marker`` was sent behind the subscriptions; with answers to those before nobody is complete any more.

        ``again``: nothing has changed since the one before, and answers to that are as good.
        """
        if not again:
            self._earlier += self._markers
            self._markers.clear()
        self._markers.add(marker)
        for publisher in self._publishers.values():
            if publisher.state is not _State.ENDED:
                publisher.state = _State.JOINING
                publisher.parts = 0
                publisher.due = None
                publisher.answer_due = now + ANSWER_SECONDS

    # -- messages

    def stream(self, epoch: int, prefix: bytes) -> Stream | None:
        """The account of subscription ``prefix`` at the publisher ``epoch``; None if the socket does not have it."""
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        stream = publisher.streams.get(prefix) or publisher.leaving.get(prefix)
        if stream is None and prefix in self._subscriptions:
            stream = publisher.streams[prefix] = Stream(epoch, prefix, int(prefix in publisher.covered))
        return stream

    def account(self, epoch: int, topic: bytes, prefix: bytes) -> Stream | None:
        """That of a message: of subscription ``prefix``, or of the one before, as long as that is not complete.

        To be asked anew behind each `Joined` and `Ended` while there is something in `leaving`.
        """
        publisher = self._publishers.get(epoch)
        if publisher is not None and publisher.leaving:
            for length in publisher.lengths:
                if (stream := publisher.leaving.get(topic[:length])) is not None:
                    return stream
        return self.stream(epoch, prefix)

    def judge(self, stream: Stream, number: int, many: int = 1) -> Gap | LostTail | Duplicate | None:
        """Account for a message with ``number``, 0 if it carries none for this subscription.

        In a frame of ``many`` messages it is that of the first, and the others follow it. `DUPLICATE`: they must not be
        delivered. Otherwise they are to be delivered, after what is returned was reported.
        """
        if stream.expected < 0:
            current = self.stream(stream.publisher, stream.prefix)
            if current is None:
                return None
            stream = current
        if not stream.expected:  # perhaps of an earlier subscription to the same prefix: only a join can tell
            return None
        if not number:
            stream.expected += many
            return None
        if number < stream.expected:
            self.duplicates += many
            return DUPLICATE
        found = self._stands(stream, number - 1)
        stream.expected = number + many
        return found

    def _stands(self, stream: Stream, last: int) -> Gap | LostTail | None:
        """The messages up to ``last`` were sent before what is read now."""
        expected = stream.expected
        if last < expected:
            return None
        stream.expected = last + 1
        if not expected:
            return None
        if expected >> COUNT_BITS != last >> COUNT_BITS:
            return self._lost_tail(stream.publisher, (stream.prefix,))
        gap = Gap(stream.prefix, stream.publisher, expected, last)
        self.gaps += 1
        self.lost += gap.count
        return gap

    def _lost_tail(self, epoch: int, subscriptions: tuple[bytes, ...]) -> LostTail:
        self.unknown_tails += 1
        return LostTail(epoch, subscriptions)

    # -- control frames

    def beat(self, epoch: int, prefix: bytes, number: int, next_ms: int) -> list[Event]:
        """A beat of ``epoch`` said that ``number`` was the last of ``prefix``, and when the next follows."""
        stream = self.stream(epoch, prefix)
        if stream is None or not stream.expected:
            return []
        before = stream.expected
        found = self._stands(stream, number)
        publisher = self._publishers[epoch]
        publisher.promise = max(publisher.promise or 0.0, next_ms / 1000)
        if publisher.pulse is not None:  # it was no message that moved it
            publisher.pulse += stream.expected - before
        return [found] if found is not None else []

    def stated(self, epoch: int, marker: bytes, statement: Statement, *, goodbye: bool = False) -> list[Event]:
        """A part of a join, or of a ``goodbye``, to ``marker``. Those to others' markers say nothing here.

        With the first answer of a publisher its account begins, also where that is to a marker before the last.
        """
        publisher = self._publishers.get(epoch)
        latest = marker in self._markers
        if not latest and (marker not in self._earlier or (publisher is not None and publisher.joined_once)):
            return []
        publisher = publisher or self._meet(epoch)
        if publisher.state is _State.ENDED and goodbye:
            return []  # it says so until it is answered
        if statement.part == 0:
            publisher.answering, publisher.parts = marker, 0
            publisher.standing.clear()
        elif (marker, statement.part) != (publisher.answering, publisher.parts):
            return []  # the part before it was lost: the join stays incomplete, and is asked for anew
        publisher.parts = statement.part + 1
        events: list[Event] = []
        for prefix, number in statement.numbers:
            stream = self.stream(epoch, prefix)
            if stream is not None and publisher.leaving and not stream.expected:
                publisher.standing[prefix] = number  # until it is complete, its topics are others'
                continue
            found = self._stands(stream, number) if stream is not None else None
            if found is not None:
                events.append(found)
        if publisher.parts == statement.parts:
            events += self._completed(publisher, statement, goodbye, latest)
        return events

    def kept(self, epoch: int, number: int) -> LostKept | None:
        """A kept message for this subscriber, or their end, with its number: what was lost before it."""
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        expected, publisher.kept = publisher.kept, number + 1
        if number <= expected:  # below it: the publisher knew us no more, and begins anew
            return None
        self.lost += number - expected
        return LostKept(epoch, number - expected)

    def _completed(self, publisher: _Publisher, statement: Statement, goodbye: bool, latest: bool) -> Iterator[Event]:
        for prefix, number in publisher.standing.items():
            if (stream := publisher.streams.get(prefix)) is not None:
                stream.expected = number + 1
        publisher.standing.clear()
        publisher.leave()
        if not statement.partial:  # what was not named stands at 0
            publisher.covered = self._subscriptions
            for stream in publisher.streams.values():
                stream.expected = stream.expected or 1
        publisher.parts = 0
        publisher.pulse = publisher.promise = None
        publisher.silent, publisher.unanswered = False, 0
        first, publisher.name = not publisher.joined_once, statement.name
        if goodbye:
            publisher.state = _State.ENDED
            if first:  # its answers were lost, and with them what there was to compare with
                yield self._lost_tail(publisher.epoch, tuple(publisher.streams))
            yield Ended(publisher.epoch, statement.name)
            return
        if first and statement.name:
            yield from self._restarted(publisher)
        if latest:
            publisher.state = _State.COMPLETE
            publisher.due = publisher.answer_due = None
            self.joins += 1
            yield Joined(publisher.epoch, statement.name, statement.partial)

    def _restarted(self, publisher: _Publisher) -> Iterator[Event]:
        """Those of the same name were earlier runs, and have ended."""
        for other in self._publishers.values():
            if other is publisher or other.name != publisher.name:
                continue
            if other.state is not _State.ENDED:
                other.state = _State.ENDED
                other.leave()
                yield self._lost_tail(other.epoch, tuple(other.streams))
                yield Restarted(publisher.epoch, publisher.name or "", other.epoch)

    # -- time

    def check(self, now: float, *, drained: bool) -> list[Event]:
        """Whom nothing was heard of, and what was found meanwhile. To be called each `TICK`.

        ``drained``: since the last call the socket was read until it had nothing more. Whoever has not read
        everything judges nobody, however late it is.
        """
        events, self._found = self._found, []
        for publisher in self._publishers.values():
            if publisher.state is not _State.ENDED:
                self._hear(publisher, now)
                if drained and self._previous is not None:
                    events += self._overdue(publisher, self._previous)
        self._previous = now
        return events

    def _hear(self, publisher: _Publisher, now: float) -> None:
        """Note when the next sign of life is due, if there was one since the last call."""
        pulse = sum([stream.expected for stream in publisher.streams.values()])
        if publisher.leaving:
            pulse += sum([stream.expected for stream in publisher.leaving.values()])
        known, publisher.pulse = publisher.pulse, pulse
        promise, publisher.promise = publisher.promise, None
        if known is not None and pulse != known:
            promise = max(promise or 0.0, BEATS[0])
        if promise is not None:
            publisher.silent, publisher.unanswered = False, 0
            publisher.due = now + promise + GRACE if promise else None
        if publisher.state is _State.JOINING and not (publisher.unanswered or publisher.answer_due):
            publisher.answer_due = now + ANSWER_SECONDS

    def _overdue(self, publisher: _Publisher, since: float) -> Iterator[Event]:
        """What was due by ``since``: everything that had arrived then has been read."""
        if publisher.answer_due is not None and publisher.answer_due <= since:
            publisher.answer_due = None
            publisher.unanswered += 1
            if publisher.unanswered == 1 or (not publisher.joined_once and publisher.unanswered < ASKED_MAX):
                yield Overdue(publisher.epoch)  # perhaps the answer was lost
            elif publisher.joined_once:
                publisher.silent = True
                if publisher.leaving:  # others do not wait for it
                    yield self._lost_tail(publisher.epoch, tuple(publisher.leaving))
                    publisher.leave()
                yield Silent(publisher.epoch, publisher.name or "")
        if publisher.due is not None and publisher.due <= since and publisher.joined_once:
            publisher.due = None
            yield Overdue(publisher.epoch)

    def close(self, *, alone: bool = False) -> list[Event]:
        """The end: those that fell silent and did not come back have a tail that nobody knows.

        ``alone``: nobody is connected, so this holds for all that said no goodbye.
        """
        living = [each for each in self._publishers.values() if each.state is not _State.ENDED]
        gone = [each for each in living if each.silent or (alone and each.joined_once)]
        return [*self._found, *(self._lost_tail(each.epoch, tuple(each.streams)) for each in gone)]

    def name_of(self, epoch: int) -> str:
        """What the publisher calls itself, if it is known and has said so."""
        publisher = self._publishers.get(epoch)
        return (publisher.name if publisher else "") or ""

    @property
    def incomplete(self) -> bool:
        """Whether a publisher that tracks has not answered the last marker, and still may."""
        return any(
            each.state is _State.JOINING and not each.silent and each.unanswered < ASKED_MAX
            for each in self._publishers.values()
        )

    # -- publishers

    def _meet(self, epoch: int) -> _Publisher:
        if len(self._publishers) >= PUBLISHERS_MAX:
            self._part(min(self._publishers.values(), key=_worth))
        self.epochs += 1
        publisher = self._publishers[epoch] = _Publisher(epoch)
        return publisher

    def _part(self, publisher: _Publisher) -> None:
        del self._publishers[publisher.epoch]
        for stream in publisher.streams.values():
            stream.expected = -1
        publisher.leave()
        if publisher.joined_once and publisher.state is not _State.ENDED:
            self._found.append(self._lost_tail(publisher.epoch, tuple(publisher.streams)))


def _sharing(prefixes: Iterable[bytes], subscriptions: Iterable[bytes]) -> set[bytes]:
    """Those that share topics with one of ``subscriptions``, of which none is a prefix of another."""
    ordered, found = sorted(subscriptions), set()
    for prefix in prefixes:
        at = bisect_left(ordered, prefix)
        below = at < len(ordered) and ordered[at].startswith(prefix)
        if below or (at and prefix.startswith(ordered[at - 1])):
            found.add(prefix)
    return found


def _worth(publisher: _Publisher) -> int:
    """Which publisher is given up first: one that has ended, one that never answered, the one known longest."""
    return 0 if publisher.state is _State.ENDED else 1 + publisher.joined_once
