"""The recoveries of one subscriber: its streams, requests and answers.

`zroute.receiving.recovery` contains the rules for a single stream. Like the tracker, this module does no I/O; requests
are passed to a function.

A stream can recover if its publisher has a history, which the flag of its statements shows. The tracker still finds all
gaps and duplicates. `RecoverySession.admit` asks the tracker, and passes its findings to the recovery of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from enum import Enum
from typing import Any, Protocol

from zroute.messages.recovery import RecoveryAnswer, checked_numbers, pack_box, pack_recovery_request
from zroute.receiving.accounts import SubscriptionState
from zroute.receiving.events import DUPLICATE, Duplicate, Event, Gap, UnknownLoss
from zroute.receiving.recovery import Arrival, Hold, Ready, StreamRecovery
from zroute.receiving.tracker import PUBLISHERS_MAX

__all__ = ["Admit", "RecoverySession", "Verdict"]


class Verdict(Enum):
    """What the caller must do with a message."""

    DELIVER = "deliver"
    HELD = "held"
    DUPLICATE = "duplicate"


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
    """

    def __init__(self, subscriber: int, send: Callable[[bytes], object], hold: Hold | None = None) -> None:
        self.box = pack_box(subscriber)
        self.requests = 0
        self.subscriptions: Container[bytes] | None = None
        self._subscriber = subscriber
        self._send = send
        self._hold = hold or Hold()
        self._publishers: set[int] = set()  # with a history
        self._streams: dict[tuple[int, bytes], StreamRecovery] = {}

    # -- publishers

    def stated(self, epoch: int, *, history: bool) -> None:
        """Record whether a publisher has a history, as its statement says."""
        if history:
            if len(self._publishers) >= PUBLISHERS_MAX and epoch not in self._publishers:
                self.end(next(iter(self._publishers)))  # publishers can be forged
            self._publishers.add(epoch)
        else:
            self.end(epoch)

    def end(self, epoch: int) -> None:
        """Give up all recoveries from a publisher, which has ended."""
        self._publishers.discard(epoch)
        for (publisher, _), stream in self._streams.items():
            if publisher == epoch:
                stream.end()

    def end_stream(self, epoch: int, prefix: bytes) -> None:
        """Give up the recovery of one subscription at a publisher."""
        if (stream := self._streams.get((epoch, prefix))) is not None:
            stream.end()

    def change(self, subscriptions: Iterable[bytes]) -> None:
        """Give up the recoveries of all subscriptions that are not in ``subscriptions``."""
        kept = frozenset(subscriptions)
        for (_, prefix), stream in self._streams.items():
            if prefix not in kept:
                stream.end()

    def close(self) -> None:
        """Give up all recoveries, because the app stops."""
        for stream in self._streams.values():
            stream.end()

    def recovers(self, epoch: int) -> bool:
        """Return True while messages of a publisher are missing."""
        return any(publisher == epoch and len(each.missing) for (publisher, _), each in self._streams.items())

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
        stream = self._streams.get((account.publisher, account.prefix))
        return stream is not None and stream.active

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
        wanted = self.subscriptions is None or gap.subscription in self.subscriptions
        if gap.epoch not in self._publishers or not wanted:
            return False
        key = gap.epoch, gap.subscription
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = StreamRecovery(self._hold)
        return stream.miss(gap.first, gap.last, now)

    def wait(self, account: SubscriptionState, frame: Any, size: int) -> bool:
        """Hold a message without a number behind those of its stream.

        Return False if the stream does not recover, so that the caller must deliver the message.
        """
        stream = self._streams.get((account.publisher, account.prefix))
        if stream is None or not stream.active:
            return False
        stream.wait(account.expected - 1, frame, size)
        return True

    def ready(self) -> Iterator[tuple[tuple[int, bytes], StreamRecovery, Ready]]:
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
        for (epoch, prefix), stream in self._streams.items():
            ranges = stream.ask(self.requests + 1, now)
            if ranges:
                self.requests += 1
                self._send(pack_recovery_request(self._subscriber, self.requests, epoch, prefix, ranges)[0])

    def answer(
        self, epoch: int, answer: RecoveryAnswer, now: float, marked: Callable[[bytes], Any] = lambda frame: frame
    ) -> None:
        """Process a frame of an answer from the publisher ``epoch``.

        ``marked`` returns the object to deliver for a frame.

        Raises EnvelopeError if it contains anything but messages of this publisher and the subscription.
        """
        stream = self._streams.get((epoch, answer.prefix))
        if stream is None:
            return
        arrivals = []
        for number, frame in answer.messages:
            first, last = checked_numbers(number, frame, epoch, answer.prefix)
            arrivals.append(Arrival(first, last, marked(frame), len(frame)))
        stream.answer(answer.number, arrivals, answer.gone, last=answer.last, refused=answer.refused, now=now)

    def tick(self, now: float, *, emptied: bool) -> None:
        """Judge the progress of all streams, and forget those that have ended.

        See `StreamRecovery.tick` for the arguments.
        """
        for stream in self._streams.values():
            stream.tick(now, emptied=emptied)
        ended = [key for key, each in self._streams.items() if key[0] not in self._publishers and not each.active]
        for key in ended:
            del self._streams[key]
