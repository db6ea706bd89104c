"""Find the losses of one subscriber on the tracked wire.

`Tracker` is the subscriber's side of the protocol in ``docs/reference/wire.md``; `zroute.publishing.counters` is the
publisher's side. A tracker returns its findings as events: see `zroute.receiving.events`. It does no I/O. All times are
in seconds of one monotonic clock, and the current time is an argument of each call.

**The cost of a message** must be small, so neither side reads a clock or maintains a set for each message. A publisher
finds the counters of a topic with one look-up, adds 1 to each, and writes the numbers into the header. Once per topic
and `TICK`, it records that the counters have changed. A subscriber stores the `SubscriptionState` together with the
deliver closure. `RouteTable` finds both with the look-up that it needs anyway, by topic and head: the constant first
bytes of the header. The loop of the table compares the number with the expected number. If the numbers differ, the loop
calls `Tracker.admit`, which reports a loss before the message is delivered.

The head contains the length of the subscription to which the first number belongs. The comparison is valid if this is
the length of our subscription. Otherwise a closure of the table finds our number among the further numbers. The slow
path of the table calls `Header.number`, which returns 0 if a message carries no number for our subscription.

**Time.** When frames are read, they are only recorded. `Tracker.check` runs in each `TICK` and checks all publishers.
It first records the signs of life of each publisher. It then checks the deadlines that had passed at the previous
check. If the socket was ``emptied`` since then, all frames that had arrived before these deadlines have been read. A
subscriber that is late, or whose reactor was blocked, therefore does not consider a publisher dead. The states,
deadlines and transitions are tables: `zroute.receiving.hearing` determines whether a publisher is alive, and
`zroute.receiving.accounts` whether its join is complete, and whether each of its numbers was stated. This module turns
the transitions into events: questions (`Overdue`, `Quiet`), decisions (`Silent`, `Restarted`) and news (`Returned`).

**Forged frames.** A forged frame with the epoch of an honest publisher may claim any number. Later messages of that
publisher then look like duplicates. If messages are refused and no message advances the account, the tracker asks the
publisher. The answer to the newest marker resets the account, and the losses that were counted because of the claim are
corrected (`Corrected`).

**Memory.** A publisher holds:

- one `Counter` for each active subscription, up to `MAX_SUBSCRIPTIONS`, and up to `WITHDRAWN_MAX` withdrawn counters,
- the counters by topic, in up to `COVERS` bytes,
- up to three scheduled beats for each counter.

A subscriber stores up to `PUBLISHERS_MAX` publishers. For each publisher, it stores one `SubscriptionState` for each of
its subscriptions that had a message or a number in an answer. The total is limited to `STREAMS_MAX`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from operator import itemgetter
from typing import Protocol

from zroute.messages.control import BEATS, COUNT_BITS, Statement, is_counted
from zroute.options import KEPT_MAX
from zroute.receiving.accounts import AccountEvent, RemotePublisher, State, SubscriptionState
from zroute.receiving.events import (
    DUPLICATE,
    Corrected,
    Duplicate,
    Ended,
    Event,
    Evicted,
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

__all__ = ["EARLIER_MAX", "PINGS_MAX", "PUBLISHERS_MAX", "STREAMS_MAX", "Tracker", "count_kept"]

PUBLISHERS_MAX = 1_024
"""The maximum number of publishers (epochs) of a subscriber. The limit keeps forged publishers from filling memory."""

STREAMS_MAX = 1_000_000
"""The maximum number of accounts of subscriptions, which use up to 250 MB.

If this number is exceeded, the next `Tracker.check` evicts publishers.
"""

_LEAST = 64
"""The number of candidates for eviction that one search collects.

A search visits all publishers, and peers can forge a new publisher with each frame.
"""

EARLIER_MAX = 16
"""The number of former markers whose answers can still begin an account.

A subscriber sends a new marker for each new connection, so an answer may be late.
"""

PINGS_MAX = 16
"""The number of latest pings whose answers are recognized. Earlier pings are forgotten."""

_DOUBT_SECONDS = 5.0
"""The time in seconds between two questions to a publisher whose messages are refused.

If messages arrive over two paths, the second copy of each message is refused as long as both paths exist.
"""

_MISSED_MAX = 4
"""The number of times that the wait for a complete answer doubles: from 2 to 32 seconds.

The wait applies to a publisher that does not know all subscriptions.
"""


class Tracker:
    """The accounts of one SUB socket, by publisher and subscription.

    Call `subscribe` with the subscriptions of the socket, and `join` with the marker that is sent after them. Call
    `admit` for messages whose number is not the expected one, `stated` and `beat` for control frames, `kept` for kept
    messages, and `check` in each `TICK`.

    Attributes:
        links: The connections, with the time at which each was last heard.
        joins: The number of complete answers.
        epochs: The number of publishers that were ever seen.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self.links = LinkTimes()
        self.joins = 0
        self.epochs = 0
        self._subscriptions: frozenset[bytes] = frozenset()
        self._counted: frozenset[bytes] = frozenset()  # the subscriptions that publishers count
        self._publishers: dict[int, RemotePublisher] = {}
        self._markers: dict[bytes, int] = {}  # the markers whose answers complete a join, each with its place
        self._asked = 0  # the number of markers so far
        self._pings: deque[bytes] = deque(maxlen=PINGS_MAX)
        self._earlier: deque[bytes] = deque(maxlen=EARLIER_MAX)  # former markers for these subscriptions
        self._previous: float | None = None  # the time of the last check
        self._found: list[Event] = []
        self._refused: dict[SubscriptionState, int] = {}  # accounts that refused messages: the expected number then
        self._leasts: list[tuple[RemotePublisher, tuple[int, float]]] = []  # to evict, the first one last
        self._chance = chance

    @property
    def complete(self) -> dict[int, str]:
        """The names, by epoch, of the publishers that have answered the last marker.

        Publishers whose connections have ended are not included.
        """
        return {each.epoch: each.name or "" for each in self._answered()}

    @property
    def giving(self) -> dict[int, int]:
        """The number of the next kept message, by epoch.

        The result contains only the `complete` publishers that have not sent all kept messages yet.
        """
        return {each.epoch: each.kept for each in self._answered() if not each.gave_all}

    @property
    def given(self) -> int:
        """The number of `complete` publishers that have sent all their kept messages."""
        return len(self.gave)

    @property
    def gave(self) -> list[int]:
        """The epochs of the `complete` publishers that have sent all their kept messages."""
        return [each.epoch for each in self._answered() if each.gave_all]

    def _answered(self) -> Iterator[RemotePublisher]:
        for publisher in self._publishers.values():
            if publisher.state is State.COMPLETE and not publisher.signs.has_gone(self.links):
                yield publisher

    # -- subscriptions

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        """Set the subscriptions of the socket.

        No subscription may be a prefix of another (see `minimal_cover`).
        """
        self._subscriptions = frozenset(subscriptions)
        self._counted = frozenset(filter(is_counted, self._subscriptions))
        self._markers.clear()
        self._earlier.clear()
        for publisher in self._publishers.values():
            publisher.change(self._subscriptions)

    @property
    def leaving(self) -> frozenset[bytes]:
        """The former subscriptions that the socket must keep for now.

        The socket needs them until all publishers have answered for the new subscriptions.
        """
        return frozenset().union(*(publisher.leaving for publisher in self._publishers.values()))

    def join(self, marker: bytes, now: float, *, again: bool = False) -> None:
        """Record that ``marker`` was sent after the subscriptions.

        From now on, each publisher is incomplete until it answers. If the subscriptions are the same as for the last
        marker (``again``), an answer to that marker counts too.
        """
        if not again:
            self._earlier += self._markers
            self._markers.clear()
        self._asked += 1
        self._markers[marker] = self._asked
        for publisher in self._publishers.values():
            # For new subscriptions, a publisher sends its kept messages again.
            publisher.gave_all &= again
            if publisher.state is not State.ENDED:
                publisher.move(AccountEvent.MARKER)
                publisher.parts = 0
                publisher.signs.ask(HearingEvent.MARKER, now)

    def ping(self, marker: bytes, now: float) -> None:
        """Record that the ping ``marker`` was sent.

        A sign of life is now due from each publisher that has joined.
        """
        self._pings.append(marker)
        for publisher in self._publishers.values():
            if publisher.state is not State.ENDED and publisher.joined_once:
                publisher.signs.ask(HearingEvent.PING, now)

    # -- messages

    def stream(self, epoch: int, prefix: bytes) -> SubscriptionState | None:
        """Return the account of subscription ``prefix`` at the publisher ``epoch``.

        The account is created if needed. The result is None if the socket does not have the subscription.
        """
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        stream = publisher.streams.get(prefix) or publisher.leaving.get(prefix)
        if stream is None and prefix in self._subscriptions:
            # If a complete answer had no number for the prefix, its first message has the number 1.
            stream = publisher.streams[prefix] = SubscriptionState(epoch, prefix, int(prefix in publisher.covered))
        return stream

    def account(self, epoch: int, topic: bytes, prefix: bytes) -> SubscriptionState | None:
        """Return the account of a message of ``topic``, or None.

        As long as the publisher has not answered for ``prefix``, this is the account of the former subscription
        (`leaving`). While `leaving` is not empty, the caller must therefore look up the account again after each
        `Joined` and `Ended`.
        """
        publisher = self._publishers.get(epoch)
        if publisher is not None and publisher.leaving:
            for length in publisher.lengths:
                if (stream := publisher.leaving.get(topic[:length])) is not None:
                    return stream
        return self.stream(epoch, prefix)

    def admit(self, stream: SubscriptionState, number: int, many: int = 1) -> Gap | UnknownLoss | Duplicate | None:
        """Record a message, and return the loss before it, `DUPLICATE`, or None.

        The caller must not deliver a duplicate. Otherwise, it must report the loss first, and then deliver the message.

        Args:
            stream: The account of the message.
            number: The number of the message, or 0 if it has no number for this subscription.
            many: The number of messages in the frame; ``number`` is the number of the first one.
        """
        if stream.expected < 0:
            current = self.stream(stream.publisher, stream.prefix)
            if current is None:
                return None
            stream = current
        if not stream.expected:  # before a join, the message may belong to an earlier subscription with this prefix
            if stream.publisher in self._publishers:
                # A message that is not counted does not move the account, so this sign of life would be missed.
                self._publishers[stream.publisher].signs.note(None, BEATS[0])
            return None
        if not number:
            # The publisher has counted the message, but its 16 counters belong to shorter subscriptions.
            stream.expected += many
            return None
        if number < stream.expected:
            self._refused[stream] = stream.expected
            return DUPLICATE
        found = self._stands(stream, number - 1)
        stream.expected = number + many
        return found

    def _stands(self, stream: SubscriptionState, last: int) -> Gap | UnknownLoss | None:
        """Record that the messages up to ``last`` were sent, and return the loss."""
        expected = stream.expected
        if last < expected:
            if last + 1 == expected:
                stream.stated = expected  # not `last + 1`, which is another object of 32 bytes
            return None
        stream.expected = stream.stated = last + 1
        # Before the join: this number begins the account.
        if not expected:
            return None
        if (publisher := self._publishers.get(stream.publisher)) is not None:
            publisher.lost = True
        # In another generation, counting has begun again, so the difference of the numbers means nothing.
        unknown = expected >> COUNT_BITS != last >> COUNT_BITS
        stream.claim(expected, last, unknown, self._asked)
        if unknown:
            return UnknownLoss(stream.publisher, (stream.prefix,), "no longer knows how many messages it sent")
        return Gap(stream.prefix, stream.publisher, expected, last)

    def _set_back(self, stream: SubscriptionState, last: int) -> Iterator[Event]:
        """Reset an account to ``last``, the number of the publisher's last message.

        A forged claim had advanced the account too far. The losses that were counted because of the claim are
        corrected.
        """
        claims, wrong, unknown = stream.claims or [], 0, 0
        stream.expected = stream.stated = last + 1
        stream.claims = None
        for first, claimed, is_unknown, asked in claims:
            if claimed > last and is_unknown and first <= last and first >> COUNT_BITS == last >> COUNT_BITS:
                yield Gap(stream.prefix, stream.publisher, first, last)  # these were refused as duplicates
                unknown += 1
                is_unknown = False
            elif claimed > last and is_unknown:
                unknown += first > last
            elif claimed > last:
                # The numbers up to `last` were really sent, so only those after it were wrongly counted.
                wrong += claimed - max(last, first - 1)
            if first <= last:  # this part may be forged too; a later answer will show it
                stream.claim(first, min(claimed, last), is_unknown, asked)
        yield Corrected(stream.publisher, stream.prefix, wrong, unknown)

    # -- control frames

    def beat(self, epoch: int, prefix: bytes, number: int, next_ms: int, link: int | None = None) -> list[Event]:
        """Process a beat, and return the loss that it reveals.

        Args:
            epoch: The publisher.
            prefix: The subscription.
            number: The number of its last message.
            next_ms: The time until the next beat in milliseconds; 0 means that no beat follows.
            link: The connection over which the beat arrived, if known.
        """
        stream = self.stream(epoch, prefix)
        if stream is None or not stream.expected:
            return []
        before = stream.expected
        found = self._stands(stream, number)
        publisher = self._publishers[epoch]
        # A forged beat could otherwise promise the next one for a time weeks ahead.
        publisher.signs.note(link, min(next_ms / 1000, BEATS[-1]))
        publisher.shift(stream.expected - before)
        return [found] if found is not None else []

    def stated(
        self, epoch: int, marker: bytes, statement: Statement, *, goodbye: bool = False, link: int | None = None
    ) -> list[Event]:
        """Process a part of an answer, and return the events that follow.

        The first answer of a publisher begins its account, even if it is the answer to a former marker.

        Args:
            epoch: The publisher.
            marker: The marker that it answers. Answers to markers of other subscribers are ignored.
            statement: The part of the answer.
            goodbye: True if the publisher says goodbye.
            link: The connection over which the answer arrived, if known.
        """
        publisher = self._publishers.get(epoch)
        if marker in self._pings:  # the publisher may be unknown here, if it did not receive the marker
            (publisher or self._meet(epoch)).signs.note_answer(link)
            return []
        latest = marker in self._markers
        if not latest and (marker not in self._earlier or (publisher is not None and publisher.joined_once)):
            return []
        publisher = publisher or self._meet(epoch)
        if publisher.state is State.ENDED and goodbye:
            return []  # it repeats its goodbye until it is confirmed
        publisher.signs.note_answer(link)
        if statement.part == 0:
            publisher.begin_answer(marker)
        elif (marker, statement.part) != (publisher.answering, publisher.parts):
            return []  # an earlier part was lost: the join stays incomplete, and the publisher is asked again
        publisher.parts = statement.part + 1
        events: list[Event] = []
        for prefix, number in statement.numbers:
            events += self._named(publisher, prefix, number, self._markers.get(marker, 0))
        if publisher.parts == statement.parts:
            events += self._completed(publisher, statement, goodbye, latest)
        return events

    def _named(self, publisher: RemotePublisher, prefix: bytes, number: int, asked: int) -> Iterable[Event]:
        """Process the number of one subscription in an answer.

        ``asked`` is the place of the marker among all markers; 0 for a former marker.
        """
        if prefix not in self._subscriptions and prefix not in publisher.leaving:
            return ()  # a subscription of another subscriber: a marker with a summary may match more
        publisher.named.add(prefix)
        if not (number or prefix in publisher.streams or prefix in publisher.leaving):
            return ()  # no message yet: a complete answer covers it
        stream = self.stream(publisher.epoch, prefix)
        if stream is None:
            return ()
        if publisher.leaving and not stream.expected:
            publisher.standing[prefix] = number  # until the answer is complete, former accounts count its topics
            return ()
        if asked and number + 1 < stream.expected and self._is_forged(publisher, stream, number, asked):
            return self._set_back(stream, number)
        if asked and number + 1 >= stream.expected:
            self._refused.pop(stream, None)  # the refused messages were real duplicates
        found = self._stands(stream, number)
        return () if found is None else (found,)

    def _is_forged(self, publisher: RemotePublisher, stream: SubscriptionState, number: int, asked: int) -> bool:
        """Return True if a forged claim has advanced an account past ``number``.

        ``number`` is the number of the last message, as stated by the publisher itself. A faster path may also have
        advanced the account, so all of these conditions must be true:

        - This is the first answer to the newest marker. A slower path delivers the same answer again.
        - The marker was sent after the claim. A publisher that had sent a message with the claimed number before it
          received the marker would state this number, or a higher one, however late its answer arrives.
        - A claim has advanced the account, few messages were accepted since then, and ``number`` is not lower than the
          numbers of the messages that were received before the claim.
        - Messages are refused, or there is only one path, which keeps the order.
        """
        if publisher.state is not State.JOINING or not stream.is_claimed_beyond(number, asked):
            return False
        return self._refused.pop(stream, None) == stream.expected or len(publisher.signs.links) == 1

    def kept(self, epoch: int, number: int, end_of: bytes | None = None) -> LostKept | None:
        """Record a kept message or their end, and return the loss before it.

        If the publisher sends all kept messages again, the losses that were counted so far are corrected.

        Args:
            epoch: The publisher.
            number: The number of the kept message for this subscriber.
            end_of: The marker whose kept messages have ended, or None for a message.
        """
        publisher = self._publishers.get(epoch) or self._meet(epoch)
        publisher.gave_all |= end_of in self._markers
        return count_kept(publisher, number, ended=end_of is not None)

    def _completed(
        self, publisher: RemotePublisher, statement: Statement, goodbye: bool, latest: bool
    ) -> Iterator[Event]:
        """Process an answer whose last part has arrived."""
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
        publisher.moved()  # the answer moved the accounts, so this is not a sign of messages
        if latest:
            publisher.signs.answered()
        if goodbye:
            known = not (first or publisher.missed)
            if not known:  # without a complete answer there are no numbers to compare with
                yield UnknownLoss(publisher.epoch, publisher.subscriptions, "has ended; some of its answers were lost")
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

    def _begin(self, publisher: RemotePublisher, *, partial: bool) -> None:
        """Begin the accounts of all subscriptions, and discard the former accounts.

        If a complete answer contains no number for a subscription, the publisher has sent no message for it. The next
        expected number is then 1.
        """
        for prefix, number in publisher.standing.items():
            if (stream := publisher.streams.get(prefix)) is not None:
                stream.expected = number + 1
        publisher.leave()
        if not partial:
            for stream in publisher.streams.values():
                stream.expected = stream.expected or 1

    def _restarted(self, publisher: RemotePublisher) -> Iterator[Event]:
        """End earlier runs with the same name, or ask runs that may still be alive.

        Names can be forged, and are not always unique.
        """
        for other in self._publishers.values():
            if other is publisher or other.name != publisher.name or other.state is State.ENDED:
                continue
            other.rival = publisher.epoch
            other.signs.unnote()
            other.moved()  # earlier messages are not a sign of life now
            if other.signs.is_silent or other.signs.has_gone(self.links):
                yield from self._replaced(other)
            else:
                yield Overdue(other.epoch)

    def _replaced(self, publisher: RemotePublisher) -> Iterator[Event]:
        """End a run that a new run with the same name has replaced."""
        successor, subscriptions = publisher.rival or 0, publisher.subscriptions
        publisher.end()
        yield UnknownLoss(publisher.epoch, subscriptions, "was replaced by a new run without sending a goodbye")
        yield Restarted(successor, publisher.name or "", publisher.epoch)

    # -- time

    def check(self, now: float, *, emptied: bool) -> list[Event]:
        """Check all publishers, and return the events since the last call.

        This method must be called in each `TICK`, after `LinkTimes.update`.

        Args:
            now: The time of this call.
            emptied: True if the socket was read until empty since the last call. Otherwise, no publisher is considered
                late or silent.
        """
        # First, because an eviction adds its unknown loss to `_found`.
        self._part_some()
        events, self._found = self._found, []
        events += self._doubts(now)
        for publisher in self._publishers.values():
            events += self._hear(publisher, now)
            if emptied and self._previous is not None and publisher.state is not State.ENDED:
                events += self._overdue(publisher, self._previous)
                if publisher.signs.is_away(now):
                    why = f"was silent for {AWAY_SECONDS:g} s, so this app treats it as ended"
                    why = _predicate(publisher.signs.why_gone, why)
                    events.append(UnknownLoss(publisher.epoch, publisher.subscriptions, why))
                    publisher.end()
                    publisher.forget()
        self._previous = now
        return events

    def _doubts(self, now: float) -> Iterator[Event]:
        """Ask the publishers whose messages are all refused.

        The answers show whether the accounts of these publishers are wrong.
        """
        for stream, expected in tuple(self._refused.items()):
            publisher = self._publishers.get(stream.publisher)
            if publisher is None or stream.expected != expected:
                del self._refused[stream]
            elif publisher.signs.doubted_at is None or now >= publisher.signs.doubted_at + _DOUBT_SECONDS:
                publisher.signs.doubted_at = now
                yield Overdue(publisher.epoch)

    def _hear(self, publisher: RemotePublisher, now: float) -> Iterator[Event]:
        """Record the signs of life since the last call, and set the next deadlines."""
        signs = publisher.signs
        # Gone before the last check: a frame of this tick may have arrived over a connection that has just ended.
        had_gone = signs.has_gone(self.links) and not signs.links
        signs.keep_links(self.links.alive)
        moved = publisher.moved()
        publisher.active |= moved
        if publisher.state is State.ENDED:
            if moved or signs.is_noted:  # its end was forged, or it was away for a long time: ask it
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
            signs.linked = False  # it has a new connection, over which no answer has arrived yet
        if alive and publisher.rival is not None:
            yield Namesake(publisher.epoch, publisher.name or "", publisher.rival)
            publisher.rival = None
        if publisher.state is State.JOINING:
            signs.ask(HearingEvent.AWAIT, now, seconds=ANSWER_SECONDS * 2 ** min(publisher.missed, _MISSED_MAX))

    def _overdue(self, publisher: RemotePublisher, since: float) -> Iterator[Event]:
        """Handle the deadlines that had passed at ``since``.

        All frames that had arrived by that time have been read.
        """
        # `is_pinged` is read before `miss_answer`, which ends the question.
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
        elif not signs.is_asked and publisher.has_unstated_end(since):
            yield Overdue(publisher.epoch)

    def _silent(self, publisher: RemotePublisher) -> Iterator[Event]:
        """Report a publisher that has just become silent."""
        signs = publisher.signs
        if publisher.leaving:  # a silent publisher must not hold former subscriptions
            yield UnknownLoss(publisher.epoch, tuple(publisher.leaving), _predicate(signs.why_gone, "is silent"))
            publisher.leave()
        since = signs.asked_at if signs.asked_at is not None else 0.0
        links = self.links.unheard(signs.links, since)
        yield Silent(publisher.epoch, publisher.name or "", links, signs.why_gone)

    def close(self, *, asked: bool = False, alone: bool = False) -> list[Event]:
        """Return the last events.

        Each publisher that did not say goodbye and seems dead has an unknown loss.

        Args:
            asked: True if all publishers were asked just before this call. Each publisher without an answer then has an
                unknown loss.
            alone: True if no publisher is connected. All publishers then have an unknown loss.
        """
        events, self._found = self._found, []
        for publisher in self._publishers.values():
            if publisher.state is State.ENDED or not publisher.joined_once:
                continue
            if alone or publisher.signs.has_gone(self.links):
                why = "disconnected without sending a goodbye"
            elif publisher.signs.is_silent:
                why = "is silent"
            elif asked and publisher.state is State.JOINING:
                why = "did not answer when this app stopped"
            else:
                continue
            why = _predicate(publisher.signs.why_gone, why)
            events.append(UnknownLoss(publisher.epoch, publisher.subscriptions, why))
        return events

    def closed(self, links: frozenset[int], why: str) -> None:
        """Record why ``links`` were closed, for the publishers that are heard over them."""
        for publisher in self._publishers.values():
            publisher.signs.close(links, why)

    def depart(self, links: frozenset[int], address: str, *, unread: bool) -> Iterator[Event]:
        """End the accounts of the publishers that are heard only over ``links``.

        Yields their unknown losses if messages are ``unread``. A publisher without known links is included if
        ``address`` is a part of its name.
        """
        for publisher in tuple(self._publishers.values()):
            known = publisher.signs.links & (self.links.alive | links)
            if publisher.state is State.ENDED or not (known <= links if known else address in (publisher.name or "")):
                publisher.signs.links -= links
                continue
            if unread and publisher.joined_once:
                why = "was removed before all its messages were read"
                yield UnknownLoss(publisher.epoch, publisher.subscriptions, why)
            publisher.end()
            publisher.forget()

    def links_of(self, epoch: int) -> frozenset[int]:
        """Return the known connections over which a publisher has answered."""
        publisher = self._publishers.get(epoch)
        return frozenset() if publisher is None else frozenset(publisher.signs.links)

    def knows(self, epoch: int) -> bool:
        """Return True if a publisher was seen, and not evicted since."""
        return epoch in self._publishers

    def expects(self, marker: bytes) -> bool:
        """Return True if `stated` processes answers to a marker or a ping."""
        return marker in self._markers or marker in self._earlier or marker in self._pings

    def has_joined(self, epoch: int) -> bool:
        """Return True if a publisher has sent a complete answer."""
        publisher = self._publishers.get(epoch)
        return publisher is not None and publisher.joined_once

    def name_of(self, epoch: int) -> str:
        """Return the name of a publisher, or an empty text if it is not known."""
        publisher = self._publishers.get(epoch)
        return (publisher.name if publisher else "") or ""

    @property
    def incomplete(self) -> bool:
        """True if a tracked publisher may still answer the last marker."""
        return any(
            each.state is State.JOINING and not each.signs.is_silent and each.signs.unanswered < ASKED_MAX
            for each in self._publishers.values()
        )

    @property
    def awaited(self) -> bool:
        """True while the answer of a connected publisher that has answered before is due."""
        return any(
            each.state is State.JOINING
            and each.joined_once
            and not (each.signs.is_silent or each.signs.has_gone(self.links))
            for each in self._publishers.values()
        )

    @property
    def is_complete(self) -> bool:
        """True if all publishers that have answered before have answered again."""
        return all(each.state is not State.JOINING for each in self._publishers.values() if each.joined_once)

    @property
    def answering_links(self) -> set[int]:
        """The connections over which publishers have answered."""
        return set[int]().union(*(each.signs.links for each in self._publishers.values()))

    # -- publishers

    def _meet(self, epoch: int) -> RemotePublisher:
        """Create the account of a new publisher; evict another one if there are too many."""
        if len(self._publishers) >= PUBLISHERS_MAX:
            self._part(self._least())
        self.epochs += 1
        publisher = self._publishers[epoch] = RemotePublisher(epoch)
        return publisher

    def _least(self) -> RemotePublisher:
        """Return the publisher to evict first.

        The next candidates of the same rank are stored for later calls.
        """
        while self._leasts:
            publisher, worth = self._leasts.pop()
            # Since the search, the publisher may have been evicted or heard.
            if self._publishers.get(publisher.epoch) is publisher and _worth(publisher) == worth:
                return publisher
        found = nsmallest(_LEAST, ((each, _worth(each)) for each in self._publishers.values()), key=itemgetter(1))
        self._leasts = [each for each in found if each[1][0] == found[0][1][0]][::-1]
        return self._leasts.pop()[0]

    def _part_some(self) -> None:
        """Evict publishers while there are too many accounts, in the order of `_worth`."""
        excess = sum([each.size for each in self._publishers.values()]) - STREAMS_MAX
        if excess > 0:
            # The last one stays, even if it alone has too many accounts.
            for each in sorted(self._publishers.values(), key=_worth)[:-1]:
                if excess > 0 and each.size:
                    excess -= each.size
                    self._part(each)

    def _part(self, publisher: RemotePublisher) -> None:
        """Evict a publisher; it has an unknown loss if its account was open."""
        del self._publishers[publisher.epoch]
        if publisher.joined_once and publisher.state is not State.ENDED:
            why = f"was evicted because of the limit of {PUBLISHERS_MAX} publishers"
            self._found.append(UnknownLoss(publisher.epoch, publisher.subscriptions, why))
        self._found.append(Evicted(publisher.epoch))
        publisher.end()
        publisher.forget()


class _Keeping(Protocol):
    """The publisher of kept messages.

    Attributes:
        epoch: its number.
        kept: the number of its next kept message.
        kept_lost: the number of kept messages that are counted as lost.
    """

    epoch: int
    kept: int
    kept_lost: int


def count_kept(publisher: _Keeping, number: int, *, ended: bool) -> LostKept | None:
    """Record the number of a kept message or of their end; return the loss."""
    expected, publisher.kept = publisher.kept, number + (not ended)
    if not expected < number <= expected + KEPT_MAX:  # the expected one, sent again, or forged
        if number >= expected or not publisher.kept_lost:
            return None
        wrong, publisher.kept_lost = publisher.kept_lost, 0
        return LostKept(publisher.epoch, -wrong)
    publisher.kept_lost += number - expected
    return LostKept(publisher.epoch, number - expected)


def _worth(publisher: RemotePublisher) -> tuple[int, float]:
    """Return the sort key for evictions; the smallest key is evicted first.

    The order is: ended publishers, publishers that never answered, publishers without a counted message, and all
    others. In the last two groups, silent publishers come first. Within a rank, the publisher that was not heard for
    the longest time comes first. Forged answers therefore can't evict a publisher in use.
    """
    signs = publisher.signs
    if publisher.state is State.ENDED:
        rank = 0
    elif not publisher.joined_once:
        rank = 1
    else:
        rank = 2 + 2 * publisher.active + (not signs.is_silent)
    return rank, -1.0 if signs.heard_at is None else signs.heard_at


def _predicate(why_gone: str | None, otherwise: str) -> str:
    """Return the predicate of an `UnknownLoss`.

    ``why_gone`` is the reason why the connection of the publisher was closed, or None.
    """
    return otherwise if why_gone is None else f"was disconnected, because {why_gone}"
