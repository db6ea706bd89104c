"""Tracking: what was lost on the tracked wire, to the message. Pure bookkeeping; the clock is an argument.

The protocol stands in ``docs/reference/wire.md``. `Tracker` is a subscriber's side, `Counters` a publisher's; what
is found is returned as data, see `zroute.receiving.events`. All times are seconds of one monotonic clock.

**The way of a message** must stay short, so neither side looks at a clock or keeps a set for it. A publisher
finds the counters of a topic with one look-up, adds 1 to each and writes them down; once per topic and `TICK` it
notes that they moved. A subscriber holds the `SubscriptionState` (subscription and publisher) beside the deliver
closure, where `RouteTable` finds it with the look-up that it makes anyway, by topic and by the constant head of the
header. In the loop stands one comparison::

    head, number = HEAD_AND_NUMBER(body)          # Struct(">16sQ").unpack_from
    stream, deliver = heads[head]
    if number == stream.expected:
        stream.expected = number + 1
    elif (found := tracker.admit(stream, number)) is not None:
        if found is DUPLICATE: continue           # counted there, and not to be delivered
        report(found)                             # a Gap or an UnknownLoss; the message itself is delivered
    deliver(...)

A head says which subscription the first number belongs to, so this holds where its span is the length of the
reader's own subscription. In all other messages (several counters, headers) the slower way asks
`Header.number` for it; 0, no number, is given to `Tracker.admit` as it is.

**Time.** Nothing is judged when a frame is read: it is noted. Each `TICK` `Tracker.check` goes over the publishers. It
first takes note of the signs of life, then looks at deadlines, and only at those that had passed at the check before:
what had arrived by then has been read since, if the socket was ``emptied``. So a subscriber that is late, or whose
reactor was held up, does not take a publisher for dead. The states, their deadlines and the transitions are the tables
in `zroute.receiving.hearing` (is it alive?) and `zroute.receiving.accounts` (is the join complete?). What follows is
decided here: a question (`Overdue`, `Quiet`), a judgement (`Silent`, `Restarted`), or news (`Returned`).

**Lies.** A forged frame with an honest publisher's epoch may claim any number, and messages that follow then look like
duplicates. Where such are refused and nothing moves the account, the publisher is asked; the answer to the newest
marker sets the account back, and takes back what was counted for the claim (`Corrected`).

**Memory.** A publisher: one `Counter` for each live subscription, up to `MAX_SUBSCRIPTIONS`, and for
`WITHDRAWN_MAX` withdrawn ones; covers of topics, of up to `COVERS` bytes; about three notes of a beat for each counter.
A subscriber: `PUBLISHERS_MAX` publishers, and for each of them one `SubscriptionState` for each
subscription of its own that something was received or stated of, `STREAMS_MAX` altogether.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from operator import itemgetter

from zroute.messages.control import Statement
from zroute.options import KEPT_MAX
from zroute.publishing.counters import BEATS, COUNT_BITS, is_counted
from zroute.receiving.accounts import AccountEvent, Publisher, State, SubscriptionState
from zroute.receiving.events import (
    DUPLICATE,
    Corrected,
    Duplicate,
    Ended,
    Event,
    Gap,
    Joined,
    LostKept,
    Missing,
    Namesake,
    Overdue,
    Quiet,
    Restarted,
    Returned,
    Silent,
    UnknownLoss,
)
from zroute.receiving.hearing import ANSWER_SECONDS, ASKED_MAX, AWAY_SECONDS, HearingEvent, LinkTimes

__all__ = ["EARLIER_MAX", "PINGS_MAX", "PUBLISHERS_MAX", "STREAMS_MAX", "Tracker"]

PUBLISHERS_MAX = 1_024
"""Publishers (epochs) that a subscriber keeps account of, so that invented ones fill no memory."""

STREAMS_MAX = 1_000_000
"""Accounts of subscriptions at publishers, over which publishers are given up at the next `Tracker.check`: 250 MB."""

_LEAST = 64
"""Publishers that are found with one look at all, to be given up one by one: peers may invent one with each frame."""

EARLIER_MAX = 16
"""Markers before the last: a subscriber sends one for each connection, and keeps those before for `GRACE` seconds."""

PINGS_MAX = 16
"""Pings whose answers are known: more are never on their way."""

_DOUBT_SECONDS = 5.0
"""Seconds between two questions to one whose messages are refused: two paths bring each message twice for good."""

_MISSED_MAX = 4
"""Doublings of the time until a publisher that does not know all subscriptions is asked again: 32 seconds."""


class Tracker:
    """What one SUB socket was sent, received and lost, by subscription and publisher.

    `subscribe` says what the socket subscribes to, `join` which marker it sent behind that. Messages go to
    `admit`, unless their number is the expected one; control frames to `stated` and `beat`.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.links = LinkTimes()
        self.lost = 0
        self.gaps = 0
        self.duplicates = 0
        self.unknown_losses = 0
        self.joins = 0
        self.epochs = 0
        self._subscriptions: frozenset[bytes] = frozenset()
        self._counted: frozenset[bytes] = frozenset()  # those of them that a publisher counts
        self._publishers: dict[int, Publisher] = {}
        self._markers: set[bytes] = set()
        self._pings: deque[bytes] = deque(maxlen=PINGS_MAX)
        self._earlier: deque[bytes] = deque(maxlen=EARLIER_MAX)  # sent for the same subscriptions, over what is no more
        self._previous: float | None = None
        self._found: list[Event] = []
        self._refused: dict[
            SubscriptionState, int
        ] = {}  # accounts whose messages were refused, and what they expected then
        self._leasts: list[tuple[Publisher, tuple[int, float]]] = []  # to be given up, the first at the end
        self._chance = chance

    @property
    def complete(self) -> dict[int, str]:
        """The publishers that have answered the last marker, and have not gone since: epochs and names."""
        return {each.epoch: each.name or "" for each in self._answered()}

    @property
    def giving(self) -> dict[int, int]:
        """Those of the `complete` ones that still send what they keep: epochs, and the number that comes next."""
        return {each.epoch: each.kept for each in self._answered() if not each.gave_all}

    @property
    def given(self) -> int:
        """How many of the `complete` ones have sent all that they keep."""
        return sum(each.gave_all for each in self._answered())

    def _answered(self) -> Iterator[Publisher]:
        for publisher in self._publishers.values():
            if publisher.state is State.COMPLETE and not publisher.signs.has_gone(self.links):
                yield publisher

    # -- subscriptions

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """The socket subscribes to these and no others; none is a prefix of another (`minimal_cover`)."""
        self._subscriptions = frozenset(subscriptions)
        self._counted = frozenset(filter(is_counted, self._subscriptions))
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
            publisher.gave_all &= again
            if publisher.state is not State.ENDED:
                publisher.move(AccountEvent.MARKER)
                publisher.parts = 0
                publisher.signs.ask(HearingEvent.MARKER, now)

    def ping(self, marker: bytes, now: float) -> None:
        """``marker`` was sent, and wants a sign of life from every publisher that has joined."""
        self._pings.append(marker)
        for publisher in self._publishers.values():
            if publisher.state is not State.ENDED and publisher.joined_once:
                publisher.signs.ask(HearingEvent.PING, now)

    # -- messages

    def stream(self, epoch: int, prefix: bytes) -> SubscriptionState | None:
        """The account of subscription ``prefix`` at the publisher ``epoch``; None if the socket does not have it."""
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        stream = publisher.streams.get(prefix) or publisher.leaving.get(prefix)
        if stream is None and prefix in self._subscriptions:
            stream = publisher.streams[prefix] = SubscriptionState(epoch, prefix, int(prefix in publisher.covered))
        return stream

    def account(self, epoch: int, topic: bytes, prefix: bytes) -> SubscriptionState | None:
        """That of a message: of subscription ``prefix``, or of the one before, as long as that is not complete.

        To be asked anew behind each `Joined` and `Ended` while there is something in `leaving`.
        """
        publisher = self._publishers.get(epoch)
        if publisher is not None and publisher.leaving:
            for length in publisher.lengths:
                if (stream := publisher.leaving.get(topic[:length])) is not None:
                    return stream
        return self.stream(epoch, prefix)

    def admit(self, stream: SubscriptionState, number: int, many: int = 1) -> Gap | UnknownLoss | Duplicate | None:
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
            if stream.publisher in self._publishers:
                self._publishers[stream.publisher].signs.note(None, BEATS[0])
            return None
        if not number:
            stream.expected += many
            return None
        if number < stream.expected:
            self.duplicates += many
            self._refused[stream] = stream.expected
            return DUPLICATE
        found = self._stands(stream, number - 1)
        stream.expected = number + many
        return found

    def _stands(self, stream: SubscriptionState, last: int) -> Gap | UnknownLoss | None:
        """The messages up to ``last`` were sent before what is read now."""
        expected = stream.expected
        if last < expected:
            return None
        stream.expected = last + 1
        if not expected:
            return None
        unknown = expected >> COUNT_BITS != last >> COUNT_BITS
        stream.claim(expected, last, unknown)
        if unknown:
            return self._unknown_loss(stream.publisher, (stream.prefix,), "has forgotten what it had sent here")
        return self._gap(stream, expected, last)

    def _gap(self, stream: SubscriptionState, first: int, last: int) -> Gap:
        gap = Gap(stream.prefix, stream.publisher, first, last)
        self.gaps += 1
        self.lost += gap.count
        return gap

    def _set_back(self, stream: SubscriptionState, last: int) -> Iterator[Event]:
        """Its publisher says that ``last`` was sent last, and it knows: what moved the account further was forged."""
        claims, wrong, unknown = stream.claims or [], 0, 0
        stream.expected, stream.claims = last + 1, None
        for first, claimed, is_unknown in claims:
            if claimed > last and is_unknown and first <= last and first >> COUNT_BITS == last >> COUNT_BITS:
                yield self._gap(stream, first, last)  # they were refused as duplicates
                unknown += 1
                is_unknown = False
            elif claimed > last and is_unknown:
                unknown += first > last
            elif claimed > last:
                wrong += claimed - max(last, first - 1)
            if first <= last:  # it may be a lie as well, which a later answer shows
                stream.claim(first, min(claimed, last), is_unknown)
        self.lost -= wrong
        self.unknown_losses -= unknown
        yield Corrected(stream.publisher, stream.prefix, wrong, unknown)

    def _unknown_loss(self, epoch: int, subscriptions: tuple[bytes, ...], why: str) -> UnknownLoss:
        self.unknown_losses += 1
        return UnknownLoss(epoch, subscriptions, why)

    # -- control frames

    def beat(self, epoch: int, prefix: bytes, number: int, next_ms: int, link: int | None = None) -> list[Event]:
        """A beat of ``epoch`` said that ``number`` was the last of ``prefix``, and when the next follows.

        ``link`` is the connection that it came by, if that is known; also for `stated`.
        """
        stream = self.stream(epoch, prefix)
        if stream is None or not stream.expected:
            return []
        before = stream.expected
        found = self._stands(stream, number)
        publisher = self._publishers[epoch]
        publisher.signs.note(link, min(next_ms / 1000, BEATS[-1]))
        publisher.shift(stream.expected - before)
        return [found] if found is not None else []

    def stated(
        self, epoch: int, marker: bytes, statement: Statement, *, goodbye: bool = False, link: int | None = None
    ) -> list[Event]:
        """A part of a join, or of a ``goodbye``, to ``marker``. Those to others' markers say nothing here.

        With the first answer of a publisher its account begins, also where that is to a marker before the last.
        """
        publisher = self._publishers.get(epoch)
        if marker in self._pings:  # also of one that has never been heard: its marker was dropped on the way
            (publisher or self._meet(epoch)).signs.note_answer(link)
            return []
        latest = marker in self._markers
        if not latest and (marker not in self._earlier or (publisher is not None and publisher.joined_once)):
            return []
        publisher = publisher or self._meet(epoch)
        if publisher.state is State.ENDED and goodbye:
            return []  # it says so until it is answered
        publisher.signs.note_answer(link)
        if statement.part == 0:
            publisher.begin_answer(marker)
        elif (marker, statement.part) != (publisher.answering, publisher.parts):
            return []  # the part before it was lost: the join stays incomplete, and is asked for again
        publisher.parts = statement.part + 1
        events: list[Event] = []
        for prefix, number in statement.numbers:
            events += self._named(publisher, prefix, number, latest)
        if publisher.parts == statement.parts:
            events += self._completed(publisher, statement, goodbye, latest)
        return events

    def _named(self, publisher: Publisher, prefix: bytes, number: int, latest: bool) -> Iterable[Event]:
        """An answer says where one subscription stands."""
        if prefix not in self._subscriptions and prefix not in publisher.leaving:
            return ()  # that of another subscriber, in the answer to a summary
        publisher.named.add(prefix)
        if not (number or prefix in publisher.streams or prefix in publisher.leaving):
            return ()  # nothing was counted yet: it is covered when the answer is complete
        stream = self.stream(publisher.epoch, prefix)
        if stream is None:
            return ()
        if publisher.leaving and not stream.expected:
            publisher.standing[prefix] = number  # until it is complete, its topics are others'
            return ()
        if latest and number + 1 < stream.expected and self._is_forged(publisher, stream, number):
            return self._set_back(stream, number)
        if latest and number + 1 >= stream.expected:
            self._refused.pop(stream, None)  # what was refused had come before
        found = self._stands(stream, number)
        return () if found is None else (found,)

    def _is_forged(self, publisher: Publisher, stream: SubscriptionState, number: int) -> bool:
        """Return True if an account that is ahead of what its publisher says was moved by a lie, not by a faster path.

        It is the first answer to the newest marker (a slower path brings it once more). The account was moved by a
        claim, next to nothing was taken since, and the answer is not below what had been received before. And either
        messages are refused, or there is one path, which keeps order.
        """
        if publisher.state is not State.JOINING or not stream.is_claimed_beyond(number):
            return False
        return self._refused.pop(stream, None) == stream.expected or len(publisher.signs.links) == 1

    def kept(self, epoch: int, number: int, end_of: bytes | None = None) -> LostKept | None:
        """Return what was lost before the kept message with ``number`` for this subscriber, or before their end.

        What was lost before is taken back if the publisher sends all again. ``end_of`` is the marker whose kept
        messages have ended; None for a message.
        """
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        expected, publisher.kept = publisher.kept, number + (end_of is None)
        publisher.gave_all |= end_of in self._markers
        if not expected < number <= expected + KEPT_MAX:  # it is the next, or the publisher sends all again; or a lie
            if number >= expected or not publisher.kept_lost:
                return None
            wrong, publisher.kept_lost = publisher.kept_lost, 0
            self.lost -= wrong
            return LostKept(epoch, -wrong)
        self.lost += number - expected
        publisher.kept_lost += number - expected
        return LostKept(epoch, number - expected)

    def _completed(self, publisher: Publisher, statement: Statement, goodbye: bool, latest: bool) -> Iterator[Event]:
        publisher.parts = 0
        first, publisher.name = not publisher.joined_once, statement.name
        missing = frozenset() if goodbye or statement.partial else self._counted - publisher.named
        if statement.partial or missing:
            publisher.covered = self._subscriptions & publisher.named
        else:
            publisher.covered = self._subscriptions
        if not missing:
            self._begin(publisher, partial=statement.partial)
        publisher.named.clear()
        publisher.standing.clear()
        publisher.moved()  # it was no message
        if latest:
            publisher.signs.answered()
        if goodbye:
            known = not (first or publisher.missed)
            if not known:  # its answers were lost, or did not name all: there is nothing to compare with
                yield self._unknown_loss(
                    publisher.epoch, publisher.subscriptions, "has ended; some of its answers were lost"
                )
            publisher.end()
            yield Ended(publisher.epoch, statement.name, known)
            return
        if first and statement.name:
            yield from self._restarted(publisher)
        publisher.move(AccountEvent.SIGN)
        if missing:
            publisher.missed += 1
            yield Missing(publisher.epoch, missing, publisher.missed)
        elif latest:
            publisher.missed = 0
            publisher.move(AccountEvent.ANSWER)
            self.joins += 1
            yield Joined(publisher.epoch, statement.name, statement.partial)

    def _begin(self, publisher: Publisher, *, partial: bool) -> None:
        """All subscriptions have their place in the account now, and none that gave way is needed."""
        for prefix, number in publisher.standing.items():
            if (stream := publisher.streams.get(prefix)) is not None:
                stream.expected = number + 1
        publisher.leave()
        if not partial:
            for stream in publisher.streams.values():
                stream.expected = stream.expected or 1

    def _restarted(self, publisher: Publisher) -> Iterator[Event]:
        """Close runs of the same name, unless they show that they are alive: names can be forged, or not unique."""
        for other in self._publishers.values():
            if other is publisher or other.name != publisher.name or other.state is State.ENDED:
                continue
            other.rival = publisher.epoch
            other.signs.unnote()
            other.moved()  # what came of it before this is no sign of life
            if other.signs.is_silent or other.signs.has_gone(self.links):
                yield from self._replaced(other)
            else:
                yield Overdue(other.epoch)

    def _replaced(self, publisher: Publisher) -> Iterator[Event]:
        successor, subscriptions = publisher.rival or 0, publisher.subscriptions
        publisher.end()
        yield self._unknown_loss(publisher.epoch, subscriptions, "was replaced by a new run, without a goodbye")
        yield Restarted(successor, publisher.name or "", publisher.epoch)

    # -- time

    def check(self, now: float, *, emptied: bool) -> list[Event]:
        """Whom nothing was heard of, and what was found meanwhile. To be called each `TICK`, behind `LinkTimes.update`.

        ``emptied``: since the last call the socket was read until it had nothing more. A subscriber that has not read
        everything judges no publisher, however late it is.
        """
        self._part_some()
        events, self._found = self._found, []
        events += self._doubts(now)
        for publisher in self._publishers.values():
            events += self._hear(publisher, now)
            if emptied and self._previous is not None and publisher.state is not State.ENDED:
                events += self._overdue(publisher, self._previous)
                if publisher.signs.is_away(now):
                    why = f"was silent for {AWAY_SECONDS:g} s, and is given up"
                    events.append(self._unknown_loss(publisher.epoch, publisher.subscriptions, why))
                    publisher.end()
                    publisher.forget()
        self._previous = now
        return events

    def _doubts(self, now: float) -> Iterator[Event]:
        """Messages were refused, and since then none was taken: perhaps the account is wrong, and the answer tells."""
        for stream, expected in tuple(self._refused.items()):
            publisher = self._publishers.get(stream.publisher)
            if publisher is None or stream.expected != expected:
                del self._refused[stream]
            elif publisher.signs.doubted_at is None or now >= publisher.signs.doubted_at + _DOUBT_SECONDS:
                publisher.signs.doubted_at = now
                yield Overdue(publisher.epoch)

    def _hear(self, publisher: Publisher, now: float) -> Iterator[Event]:
        """Note the signs of life since the last call, and when the next is due."""
        signs = publisher.signs
        had_gone = signs.has_gone(self.links) and not signs.links
        signs.links &= self.links.alive
        moved = publisher.moved()
        publisher.active |= moved
        if publisher.state is State.ENDED:
            if moved or signs.is_noted:  # its end was a lie, or it was away for long: ask
                publisher.move(AccountEvent.SIGN)
                signs.begin_again(now)
            elif publisher.streams and (signs.heard_at is None or now - signs.heard_at >= AWAY_SECONDS):
                publisher.forget()
            return
        silent, heard_at = signs.is_silent or signs.was_silent, signs.heard_at
        alive = signs.heard(now, moved=moved, beat=BEATS[0], chance=self._chance)
        if alive and silent:
            signs.was_silent = False
            yield Returned(publisher.epoch, publisher.name or "", now - (heard_at or now))
        if alive and had_gone:
            signs.linked = False  # it has another connection, which brought no answer yet
        if alive and publisher.rival is not None:
            yield Namesake(publisher.epoch, publisher.name or "", publisher.rival)
            publisher.rival = None
        if publisher.state is State.JOINING:
            signs.ask(HearingEvent.AWAIT, now, seconds=ANSWER_SECONDS * 2 ** min(publisher.missed, _MISSED_MAX))

    def _overdue(self, publisher: Publisher, since: float) -> Iterator[Event]:
        """What was due by ``since``: everything that had arrived then has been read."""
        signs, pinged = publisher.signs, publisher.signs.is_pinged
        if signs.miss_answer(since, judged=publisher.joined_once and publisher.rival is None):
            if publisher.rival is not None:
                yield from self._replaced(publisher)
                return
            if signs.is_silent:
                yield from self._silent(publisher)
            elif signs.unanswered < ASKED_MAX:
                yield Quiet(publisher.epoch) if pinged else Overdue(publisher.epoch)
        if not publisher.joined_once or signs.is_silent:
            return
        missed = signs.miss_sign(since)
        if missed is not None:
            yield Quiet(publisher.epoch) if missed is HearingEvent.QUIETED else Overdue(publisher.epoch)

    def _silent(self, publisher: Publisher) -> Iterator[Event]:
        signs = publisher.signs
        if publisher.leaving:  # others do not wait for it
            yield self._unknown_loss(publisher.epoch, tuple(publisher.leaving), "is silent")
            publisher.leave()
        since = signs.asked_at if signs.asked_at is not None else 0.0
        yield Silent(publisher.epoch, publisher.name or "", self.links.unheard(signs.links, since))

    def close(self, *, asked: bool = False, alone: bool = False) -> list[Event]:
        """Return the last findings: those that said no goodbye, and did not show that they live, have an unknown loss.

        ``asked``: all publishers were asked right before, so each that has not answered is one. ``alone``: no
        publisher is connected, so all are.
        """
        events, self._found = self._found, []
        for publisher in self._publishers.values():
            if publisher.state is State.ENDED or not publisher.joined_once:
                continue
            if alone or publisher.signs.has_gone(self.links):
                why = "has gone without a goodbye"
            elif publisher.signs.is_silent:
                why = "is silent"
            elif asked and publisher.state is State.JOINING:
                why = "did not answer at the stop"
            else:
                continue
            events.append(self._unknown_loss(publisher.epoch, publisher.subscriptions, why))
        return events

    def links_of(self, epoch: int) -> frozenset[int]:
        """Return the connections by which a publisher has answered, as far as they are known."""
        publisher = self._publishers.get(epoch)
        return frozenset() if publisher is None else frozenset(publisher.signs.links)

    def name_of(self, epoch: int) -> str:
        """Return what the publisher calls itself, or an empty text if it is not known."""
        publisher = self._publishers.get(epoch)
        return (publisher.name if publisher else "") or ""

    @property
    def incomplete(self) -> bool:
        """True if a publisher that tracks has not answered the last marker, and still may."""
        return any(
            each.state is State.JOINING and not each.signs.is_silent and each.signs.unanswered < ASKED_MAX
            for each in self._publishers.values()
        )

    @property
    def awaited(self) -> bool:
        """True while a publisher that has answered before, and is still connected, owes an answer."""
        return any(
            each.state is State.JOINING
            and each.joined_once
            and not (each.signs.is_silent or each.signs.has_gone(self.links))
            for each in self._publishers.values()
        )

    @property
    def is_complete(self) -> bool:
        """True if every publisher that has ever answered, and has not ended, has answered the last marker."""
        return all(each.state is not State.JOINING for each in self._publishers.values() if each.joined_once)

    @property
    def answering_links(self) -> set[int]:
        """The connections by which publishers have answered."""
        return set[int]().union(*(each.signs.links for each in self._publishers.values()))

    # -- publishers

    def _meet(self, epoch: int) -> Publisher:
        if len(self._publishers) >= PUBLISHERS_MAX:
            self._part(self._least())
        self.epochs += 1
        publisher = self._publishers[epoch] = Publisher(epoch)
        return publisher

    def _least(self) -> Publisher:
        """Return the one to be given up first; of those of its rank, some more are noted for the next times."""
        while self._leasts:
            publisher, worth = self._leasts.pop()
            if self._publishers.get(publisher.epoch) is publisher and _worth(publisher) == worth:
                return publisher
        found = nsmallest(_LEAST, ((each, _worth(each)) for each in self._publishers.values()), key=itemgetter(1))
        self._leasts = [each for each in found if each[1][0] == found[0][1][0]][::-1]
        return self._leasts.pop()[0]

    def _part_some(self) -> None:
        """Give up publishers while there are too many accounts, in the order in which they are given up for others."""
        excess = sum([each.size for each in self._publishers.values()]) - STREAMS_MAX
        if excess > 0:
            for each in sorted(self._publishers.values(), key=_worth)[:-1]:
                if excess > 0 and each.size:
                    excess -= each.size
                    self._part(each)

    def _part(self, publisher: Publisher) -> None:
        del self._publishers[publisher.epoch]
        if publisher.joined_once and publisher.state is not State.ENDED:
            why = f"was given up for others: no more than {PUBLISHERS_MAX} publishers are followed"
            self._found.append(self._unknown_loss(publisher.epoch, publisher.subscriptions, why))
        publisher.end()
        publisher.forget()


def _worth(publisher: Publisher) -> tuple[int, float]:
    """Return what orders publishers by who is given up first.

    Those that have ended, have never answered, or were never counted a message of, then the silent ones; of these, the
    one that was heard longest ago. So answers that are invented drive out no publisher that is used.
    """
    signs = publisher.signs
    if publisher.state is State.ENDED:
        rank = 0
    elif not publisher.joined_once:
        rank = 1
    else:
        rank = 2 + 2 * publisher.active + (not signs.is_silent)
    return rank, -1.0 if signs.heard_at is None else signs.heard_at
