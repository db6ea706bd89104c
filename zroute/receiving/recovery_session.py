"""The recoveries and replays of one subscriber: streams, requests and answers.

`zroute.receiving.stream_recovery` contains the rules for a single stream, and `zroute.receiving.replay` those for its
past. Like the tracker, this module does no I/O; requests are passed to a function.

A stream can recover if its publisher has a history, which the flag of its statements shows. The tracker still finds all
gaps and duplicates. `RecoverySession.admit` asks the tracker, and passes its findings to the recovery of the stream.

**Memory.** Peers can forge publishers, so a session knows only the publishers that the tracker knows. It forgets one
when the tracker evicts it (`RecoverySession.forget`). The tracker evicts forged publishers before those in use, so a
publisher in use keeps its recoveries, and its past is not asked for twice. A stream that was whole for
`zroute.receiving.stream_recovery.WHOLE_SECONDS` is forgotten too: one failure of a proxy may begin recoveries of
thousands of subscriptions, and each stream has 5 KB and is visited in each tick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from typing import Any, Protocol

from zroute.errors import EnvelopeError
from zroute.messages.recovery import (
    RecoveryAnswer,
    Since,
    checked_numbers,
    checked_past,
    pack_box,
    pack_past_request,
    pack_recovery_request,
)
from zroute.receiving.accounts import SubscriptionState
from zroute.receiving.events import DUPLICATE, Duplicate, Event, Gap, UnknownLoss, Verdict
from zroute.receiving.replay import EARLY_SECONDS, Early, EarlyMessages, PastLoss, Replay
from zroute.receiving.stream_recovery import WAITING_COST, Arrival, Hold, Ready, StreamRecovery

__all__ = ["ASKED_PASTS", "ASKED_RECOVERIES", "Admit", "RecoverySession"]

ASKED_PASTS = 16
"""The maximum number of open requests for the past at one publisher. A publisher limits waiting requests."""

ASKED_RECOVERIES = 100
"""The maximum number of open requests for lost messages at one publisher.

A publisher drops requests if 1,000 wait, of all its subscribers together, and so does a proxy. A dropped request counts
as one without an answer.
"""

_Key = tuple[int, bytes]


class Admit(Protocol):
    """The method of the tracker that records a message."""

    def __call__(self, stream: SubscriptionState, number: int, many: int = 1) -> Gap | UnknownLoss | Duplicate | None:
        """Record a message; see `zroute.receiving.tracker.Tracker.admit`."""


class RecoverySession:
    """The recoveries of all streams of a subscriber.

    Args:
        subscriber: The 48 bits that identify the subscriber.
        send: A function that sends a request: a subscription that is withdrawn at once.
        hold: The room for held messages.

    Attributes:
        box: The topic of answers to this subscriber.
        requests: The number of requests that were sent.
        subscriptions: The subscriptions whose messages are recovered; None for all.
        since: The subscriptions with a past, and its beginning.
    """

    def __init__(self, subscriber: int, send: Callable[[bytes], object], hold: Hold | None = None) -> None:
        self.box = pack_box(subscriber)
        self.requests = 0
        self.subscriptions: Container[bytes] | None = None
        self.since: Mapping[bytes, Since] = {}
        self._subscriber = subscriber
        self._send = send
        self._hold = hold or Hold()
        self._publishers: set[int] = set()  # with a history
        self._streams: dict[_Key, StreamRecovery] = {}
        self._untold: dict[int, dict[bytes, int]] = {}  # see `StreamRecovery.is_whole`; by publisher and subscription
        self._early: dict[int, dict[bytes, EarlyMessages]] = {}  # by publisher and subscription
        self._without: set[int] = set()  # publishers without a history
        self._settled: dict[int, set[bytes]] = {}  # the subscriptions that need no replay any more, by publisher
        self._previous: float | None = None  # the time of the last tick

    # -- publishers

    def stated(self, epoch: int, *, history: bool) -> None:
        """Record whether a publisher has a history, as its statement says."""
        if history:
            if epoch in self._without:  # its messages were delivered
                self._without.discard(epoch)
                self._settled[epoch] = set(self.since)
            self._publishers.add(epoch)
        else:
            self.end(epoch)
            self._without.add(epoch)

    def has_none(self, epoch: int) -> bool:
        """Return True if a publisher has stated that it has no history."""
        return epoch in self._without

    def end(self, epoch: int) -> None:
        """Give up all recoveries from a publisher, which has ended."""
        for prefix in tuple(self._early.get(epoch, ())):
            self._release((epoch, prefix))
        self._untold.pop(epoch, None)
        if epoch in self._publishers:  # otherwise its streams have ended
            self._publishers.discard(epoch)
            for (publisher, _), stream in self._streams.items():
                if publisher == epoch:
                    _end(stream)

    def forget(self, epoch: int) -> None:
        """Forget a publisher, because the tracker has evicted it."""
        self.end(epoch)
        self._without.discard(epoch)
        self._settled.pop(epoch, None)

    def end_stream(self, epoch: int, prefix: bytes) -> None:
        """Give up the recovery of one subscription at a publisher."""
        if (stream := self._streams.get((epoch, prefix))) is not None:
            _end(stream)

    def change(
        self, subscriptions: Collection[bytes], since: Mapping[bytes, Since], replay: Container[bytes] = ()
    ) -> None:
        """Set the subscriptions to recover, and those with a past.

        The recoveries of all other subscriptions are given up.

        Args:
            subscriptions: The subscriptions whose lost messages are recovered.
            since: The subscriptions with a past. All publishers that join from now on are asked for it.
            replay: The subscriptions whose past the known publishers are asked for, too.
        """
        before, self.since, self.subscriptions = self.since, since, subscriptions
        for (_, prefix), stream in self._streams.items():
            if prefix not in subscriptions and prefix not in since:
                # A handler that was closed does not lose its past, but one whose subscription has become wider does.
                shared = any(prefix.startswith(each) or each.startswith(prefix) for each in since)
                _end(stream, lose=shared)
        for key in self._waiting():
            if key[1] not in since:
                self._release(key)
        stays = {prefix for prefix in since if prefix not in replay}
        for settled in self._settled.values():
            settled &= stays
        for prefix in stays.difference(before):
            for epoch in self._publishers:
                self._settle((epoch, prefix))

    def drop(self, subscriptions: Container[bytes]) -> None:
        """Drop the held messages of subscriptions that have no handlers any more.

        A handler that is attached later must not receive them.
        """
        for (_, prefix), stream in self._streams.items():
            if prefix in subscriptions:
                _end(stream, lose=False)
                stream.discard()

    def close(self) -> None:
        """Give up all recoveries, because the app stops."""
        for key in self._waiting():
            self._release(key)
        for stream in self._streams.values():
            _end(stream)

    def recovers(self, epoch: int) -> bool:
        """Return True while messages of a publisher are missing, or its past."""
        return any(
            publisher == epoch and (len(each.missing) or each.replay is not None)
            for (publisher, _), each in self._streams.items()
        )

    # -- the past

    def _settle(self, key: _Key) -> None:
        """Record that the past of a stream need not be asked for any more."""
        self._settled.setdefault(key[0], set()).add(key[1])

    def _awaits(self, key: _Key) -> bool:
        """Return True if the past must be asked for when the publisher has joined."""
        epoch, prefix = key
        return prefix in self.since and epoch not in self._without and prefix not in self._settled.get(epoch, ())

    def replays(self, epoch: int) -> bool:
        """Return True until the past of all subscriptions was delivered."""
        return any(publisher == epoch and each.catches_up for (publisher, _), each in self._streams.items())

    def settle(self) -> None:
        """Record which replays, and what waited for them, have been delivered.

        Call this method when nothing is ready any more.
        """
        caught_up = [key for key, each in self._streams.items() if each.catches_up and not each.active]
        for key in caught_up:
            self._streams[key].catches_up = False
            if self.subscriptions is not None and key[1] not in self.subscriptions:
                del self._streams[key]

    def awaits(self, account: SubscriptionState) -> bool:
        """Return True if the replay must begin as soon as the account has begun."""
        return account.publisher in self._publishers and self._awaits((account.publisher, account.prefix))

    def awaited(self, epoch: int) -> list[bytes]:
        """Return the subscriptions whose past a publisher must be asked for."""
        return [prefix for prefix in self.since if self._awaits((epoch, prefix))]

    def begin(self, admit: Admit, account: SubscriptionState, now: float) -> tuple[int, list[Event]]:
        """Begin the replay of a stream whose account has begun.

        Return how many messages from before the join are dropped, because they are in the past, and the losses to
        report.
        """
        key = account.publisher, account.prefix
        self._settle(key)
        stream = self._stream(key)
        upto = account.expected - 1
        stream.replay, stream.catches_up = Replay(self.since[account.prefix], upto), True
        early = self._take_early(key)
        dropped, events = early.dropped_up_to(upto), list[Event]()
        for each in early.frames:
            self._hold.give_back(each.size)
            if each.is_kept:
                stream.wait(upto, each.frame, each.size - WAITING_COST)
                continue
            if each.number <= upto:
                dropped += each.many
                continue
            # It came over a faster path than the statement. If the counting has begun again, the replay ends.
            verdict, loss = self.admit(admit, account, each.number, each.many, each.frame, each.size, now)
            dropped += each.many if verdict is Verdict.DUPLICATE else 0
            events += [] if loss is None else [loss]
        return dropped, events

    def _hold_early(self, key: _Key, early: Early, now: float) -> Verdict:
        """Hold a message from before the join.

        Without room, only count it: the statement shows whether it is in the past, or lost.
        """
        held = self._early_of(key, now)
        if self._hold.has_room(early.size):
            self._hold.take(early.size)
            held.frames.append(early)
        else:
            held.drop(early.number, early.many)
        return Verdict.HELD

    def _early_of(self, key: _Key, now: float) -> EarlyMessages:
        """Return the early messages of a stream, for which the wait may begin now."""
        held = self._early.setdefault(key[0], {})
        if key[1] not in held:
            held[key[1]] = EarlyMessages(now)
        return held[key[1]]

    def wait(self, account: SubscriptionState, frame: Any, size: int, now: float) -> bool:
        """Hold a kept message of an account whose stream recovers.

        Return False if there is no room. If the replay of the stream has not begun, the message waits for the
        statement, and then for the past.
        """
        stream = self.active_stream(account)
        if stream is not None:
            return stream.wait(account.expected - 1, frame, size)
        size += WAITING_COST
        if not self._hold.has_bytes(size):
            return False
        self._early_of((account.publisher, account.prefix), now).frames.append(Early(0, 1, frame, size, is_kept=True))
        self._hold.take(size)
        return True

    def _waiting(self) -> list[_Key]:
        """Return the streams with messages that wait for a statement."""
        return [(epoch, prefix) for epoch, held in self._early.items() for prefix in held]

    def _take_early(self, key: _Key) -> EarlyMessages:
        """Remove and return the messages of a stream that wait for a statement."""
        held = self._early.get(key[0], {})
        early = held.pop(key[1], None)
        if not held:
            self._early.pop(key[0], None)
        return early or EarlyMessages(0.0)

    def _release(self, key: _Key) -> None:
        """Make the messages of a stream ready that wait for a statement.

        Those that had no room are lost.
        """
        stream, early = self._stream(key), self._take_early(key)
        for each in early.frames:
            stream.release(each)
        if early.dropped:
            total = early.dropped + sum(each.many for each in early.frames if not each.is_kept)
            stream.ready.append(PastLoss(early.dropped, total))

    def _stream(self, key: _Key) -> StreamRecovery:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = StreamRecovery(self._hold)
            stream.recovered = stream.logged = self._untold.get(key[0], {}).pop(key[1], 0)
        return stream

    # -- messages

    @property
    def is_active(self) -> bool:
        """True if a stream recovers, or has something to deliver."""
        return any(stream.active for stream in self._streams.values())

    def streams(self) -> Iterator[tuple[tuple[int, bytes], StreamRecovery]]:
        """Yield the epoch and prefix of each stream, and the stream."""
        yield from self._streams.items()

    def active(self, account: SubscriptionState) -> bool:
        """Return True if the stream of an account recovers.

        Its messages must then be passed to `admit`.
        """
        key = account.publisher, account.prefix
        stream = self._streams.get(key)
        return (stream is not None and stream.active) or self._awaits(key)

    def early(self, account: SubscriptionState, number: int, many: int, frame: Any, size: int, now: float) -> Verdict:
        """Record a message that is not counted, or that arrived before the join.

        See `admit` for the arguments.
        """
        key = account.publisher, account.prefix
        stream = self._streams.get(key)
        if stream is not None and stream.replay is not None:
            return Verdict.DUPLICATE
        if self._awaits(key):
            return self._hold_early(key, Early(number, many, frame, size), now)
        if stream is not None and stream.ready:  # behind the messages that have waited
            stream.deliver(many, frame, size)
            return Verdict.HELD
        return Verdict.DELIVER

    def admit(
        self, admit: Admit, account: SubscriptionState, number: int, many: int, frame: Any, size: int, now: float
    ) -> tuple[Verdict, Event | None]:
        """Record a message; return what to do with it, and a loss to report before it.

        Args:
            admit: The method of the tracker.
            account: The account of the message.
            number: Its number, or 0 if it has none in this subscription.
            many: The number of messages in the frame.
            frame: The frame, to deliver later.
            size: The size of the frame in bytes.
            now: The current time.
        """
        expected = account.expected
        found = admit(account, number, many)
        stream = self._streams.get((account.publisher, account.prefix))
        if found is DUPLICATE:
            filled = stream is not None and stream.fill(Arrival(number, number + many - 1, frame, size))
            return (Verdict.HELD if filled else Verdict.DUPLICATE), None
        loss: Event | None = None
        if isinstance(found, Gap):
            loss = None if self.missed(found, now) else found
            stream = self._streams.get((account.publisher, account.prefix))
        elif found is not None:  # the counter began again, so nothing before can be recovered
            loss = found
            self.end_stream(account.publisher, account.prefix)
        if stream is None or not stream.active:
            return Verdict.DELIVER, loss
        # A message without a number follows the last one, which is the number that the tracker has given it.
        first = number or expected
        stream.arrive(Arrival(first, first + many - 1, frame, size), now)
        return Verdict.HELD, loss

    def missed(self, gap: Gap, now: float) -> bool:
        """Record a gap, and return True if its messages may be recovered.

        Otherwise they are lost, and the caller must report them.
        """
        key = gap.epoch, gap.subscription
        stream = self._streams.get(key)
        wanted = self.subscriptions is None or gap.subscription in self.subscriptions
        wanted = wanted or (stream is not None and stream.catches_up and stream.active)
        if gap.epoch not in self._publishers or not wanted:
            return False
        return self._stream(key).miss(gap.first, gap.last, now)

    def active_stream(self, account: SubscriptionState) -> StreamRecovery | None:
        """Return the stream of an account if it recovers."""
        stream = self._streams.get((account.publisher, account.prefix))
        return stream if stream is not None and stream.active else None

    def ready(self) -> Iterator[tuple[tuple[int, bytes], StreamRecovery, Ready | PastLoss]]:
        """Yield what must be delivered or reported now.

        Each entry comes with its stream, and the epoch and prefix of the stream. The order is kept within each stream.
        The caller may stop at any time; what was not yielded stays ready.
        """
        for key, stream in tuple(self._streams.items()):
            while stream.ready:
                yield key, stream, stream.pop()

    # -- requests

    def ask(self, now: float) -> None:
        """Send the requests that are needed.

        Call this method when everything that has arrived was read, and all that was ready was delivered.
        """
        asked: Counter[int] | None = None  # the open requests for the past, by publisher
        recovers: Counter[int] | None = None  # those for lost messages
        turns: list[_Key] = []
        for (epoch, prefix), stream in self._streams.items():
            if stream.replay is not None:
                if asked is None:
                    asked = Counter(key[0] for key, each in self._streams.items() if each.replay and each.replay.asked)
                if stream.ready or asked[epoch] >= ASKED_PASTS:
                    continue
                past = stream.replay.ask(self.requests + 1, now)
                if past is not None:
                    self.requests += 1
                    asked[epoch] += 1
                    self._send(pack_past_request(self._subscriber, self.requests, epoch, prefix, past))
                continue
            if not stream.wants_request:
                continue
            if recovers is None:
                recovers = Counter(key[0] for key, each in self._streams.items() if not each.replay and each.asked)
            if recovers[epoch] >= ASKED_RECOVERIES:
                stream.queued = True
                continue
            self.requests += 1
            recovers[epoch] += 1
            turns.append((epoch, prefix))
            ranges = stream.ask(self.requests, now)
            self._send(pack_recovery_request(self._subscriber, self.requests, epoch, prefix, ranges)[0])
        if len(self._streams) > ASKED_RECOVERIES:  # streams take turns
            for key in turns:
                self._streams[key] = self._streams.pop(key)

    def answer(
        self,
        epoch: int,
        answer: RecoveryAnswer,
        now: float,
        recovered: Callable[[bytes], Any] = bytes,
        replayed: Callable[[bytes], Any] = bytes,
    ) -> None:
        """Process a frame of an answer from the publisher ``epoch``.

        ``recovered`` and ``replayed`` return the object to deliver for the frame of a lost message, or of the past.

        Raises EnvelopeError if it contains anything but messages of this publisher and the subscription.
        """
        stream = self._streams.get((epoch, answer.prefix))
        if stream is None:
            return
        if answer.past is not None:
            self._replayed(stream, epoch, answer, replayed)
            return
        if answer.more and not (answer.messages or answer.gone):
            stream.search(answer.number, now)
            return
        arrivals = []
        for number, frame in answer.messages:
            first, last = checked_numbers(number, frame, epoch, answer.prefix)
            arrivals.append(Arrival(first, last, recovered(frame), len(frame)))
        stream.answer(answer.number, arrivals, answer.gone, last=answer.last, refused=answer.refused, now=now)

    @staticmethod
    def _replayed(stream: StreamRecovery, epoch: int, answer: RecoveryAnswer, replayed: Callable[[bytes], Any]) -> None:
        replay, past = stream.replay, answer.past
        if replay is None or past is None:
            return
        found = [
            (position, checked_past(frame, epoch, answer.prefix, replay.upto)) for position, frame in answer.messages
        ]
        if answer.gone or (found and found[0][0] < past.position):
            raise EnvelopeError("an answer about the past with entries that do not follow its position")
        if answer.refused:
            if replay.is_answer(answer.number, past):
                stream.end_replay(replay.loss)
            return
        for each in replay.answer(answer.number, past, found, last=answer.last, more=answer.more):
            if each is None:
                stream.end_replay(None)
            elif isinstance(each, PastLoss):
                stream.ready.append(each)
            else:
                frame = answer.messages[each][1]
                stream.deliver(found[each][1], replayed(frame), len(frame))

    def tick(self, now: float, *, emptied: bool) -> None:
        """Judge the progress of all streams, and forget those that have ended.

        See `StreamRecovery.tick` for the arguments.
        """
        previous, self._previous = self._previous, now
        if emptied and previous is not None:  # all statements that had arrived before the deadline have been read
            for key in self._waiting():
                if previous - self._early[key[0]][key[1]].begun_at >= EARLY_SECONDS:
                    self._settle(key)
                    self._release(key)
        for key, stream in self._streams.items():
            stream.tick(now, emptied=emptied)
            if stream.replay is not None and not stream.replay.tick(now, emptied=emptied):
                self._settle(key)
                _end_replay(stream)
        ended = [key for key, each in self._streams.items() if key[0] not in self._publishers and not each.active]
        for key in ended:
            del self._streams[key]
        for key in [key for key, each in self._streams.items() if each.is_whole(now)]:
            stream = self._streams.pop(key)
            if untold := stream.recovered - stream.told:
                self._untold.setdefault(key[0], {})[key[1]] = untold


def _end(stream: StreamRecovery, *, lose: bool = True) -> None:
    """Give up the recovery and the replay of a stream.

    The past counts as lost if ``lose`` is True.
    """
    _end_replay(stream, lose=lose)
    stream.end()


def _end_replay(stream: StreamRecovery, *, lose: bool = True) -> None:
    replay = stream.replay
    if replay is None:
        return
    stream.catches_up = True
    stream.end_replay(replay.loss if lose else None)
