"""Ask publishers for snapshots after a loss.

The publisher's side is `zroute.publishing.snapshots`; ``docs/reference/wire.md`` describes the protocol. A gap names no
topic, so a lost message may belong to any topic of its subscription, and the states of all of them may be wrong. The
subscriber then asks the publisher for the snapshots of the subscription. It asks in these cases:

=============================================== ===================================================================
event                                           asked for
=============================================== ===================================================================
a gap stays lost                                the subscription of the gap
an unknown loss of a publisher that lives on    its subscriptions
a snapshot arrives behind later messages        the subscription: a message between the two was already delivered
a snapshot arrives before the join              the subscription: a loss before the join is not found
a kept message or a snapshot is lost            everything
=============================================== ===================================================================

**Overload.** A subscriber that asks after each loss would cause more of them. It asks when everything that has arrived
was read, and then not again for 1, 2, 4 … `PAUSE_MAX` seconds; the pause is 1 second again after `CALM_SECONDS` without
a loss. A request whose answer does not end is repeated after `ANSWER_SECONDS`, then after twice as long, and so on, up
to `TRIES` times. The publisher continues an answer that is under way.

This module sends nothing and reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import attrs

from zroute.messages.snapshots import SnapshotRequest, pack_snapshot_request
from zroute.receiving.hearing import ANSWER_SECONDS

__all__ = ["ASKS_MAX", "CALM_SECONDS", "PAUSE_MAX", "TRIES", "SnapshotRequests"]

PAUSE_MAX = 60.0
"""The longest pause in seconds between two different requests for the same snapshots."""

CALM_SECONDS = 10.0
"""The time in seconds without a loss after which the next pause takes 1 second again."""

TRIES = 6
"""The number of times that a request is sent before the subscriber gives up on it."""

ASKS_MAX = 10_000
"""The number of subscriptions of all publishers for which snapshots are awaited. Peers can forge losses.

If there are more, all snapshots of a publisher are asked for at once.
"""


@attrs.define(eq=False)
class _Ask:
    """The requests for the snapshots of one subscription at one publisher.

    Attributes:
        number: The number of the open request; None if none is open.
        is_due: True if something was lost since the last request was sent.
        blocks: True if the state of the app is incomplete until the answer has ended.
        lost_at: The time of the last loss.
        after: The earliest time of the next request.
        pause: The pause after the next request, in seconds.
        sent_at: The time at which the open request was sent last.
        tries: The number of times that it was sent.
    """

    number: int | None = None
    is_due: bool = False
    blocks: bool = False
    lost_at: float = 0.0
    after: float = 0.0
    pause: float = 1.0
    sent_at: float = 0.0
    tries: int = 0


class SnapshotRequests:
    """The requests of one subscriber for snapshots.

    Args:
        subscriber: The 48 bits that identify the subscriber.
        send: A function that sends a request: a subscription that is withdrawn at once.
        repeated: A function that is called when a request is sent again.
    """

    def __init__(self, subscriber: int, send: Callable[[bytes], object], repeated: Callable[[], object]) -> None:
        self._subscriber = subscriber
        self._send = send
        self._repeated = repeated
        self._publishers: set[int] = set()  # with snapshots; the tracker knows them, so they are limited
        self._early: dict[int, float] = {}  # the times of losses of publishers without a statement so far
        self._asks: dict[tuple[int, bytes], _Ask] = {}
        self._number = 0

    def stated(self, epoch: int, *, snapshots: bool) -> None:
        """Record whether a publisher has snapshots, as its statement says."""
        if not snapshots:
            self.end(epoch)
            return
        self._publishers.add(epoch)
        if (now := self._early.pop(epoch, None)) is not None:
            self.lost(epoch, (b"",), now, blocks=False)

    def any_of(self, epochs: Collection[int]) -> bool:
        """Return True if one of these publishers has snapshots."""
        return not self._publishers.isdisjoint(epochs)

    def end(self, epoch: int) -> None:
        """Ask a publisher no more, because it has ended, or was evicted."""
        self._publishers.discard(epoch)
        self._early.pop(epoch, None)
        for key in [key for key in self._asks if key[0] == epoch]:
            del self._asks[key]

    def lost(self, epoch: int, subscriptions: Iterable[bytes], now: float, *, blocks: bool = True) -> None:
        """Ask for the snapshots of subscriptions, because messages were lost.

        ``blocks`` is False if the state of the app is as complete as it was before.
        """
        if epoch not in self._publishers:
            # Its statement may have been lost, or arrive later than its kept messages.
            self._early[epoch] = now
            return
        for prefix in subscriptions:
            key = epoch, prefix if len(self._asks) < ASKS_MAX or (epoch, prefix) in self._asks else b""
            ask = self._asks.get(key)
            if ask is None:
                ask = self._asks[key] = _Ask()
            ask.is_due, ask.lost_at = True, now
            ask.blocks |= blocks

    def joined(self, epoch: int) -> None:
        """Ask a publisher at once, because it counts the messages from now on."""
        for (publisher, _), ask in self._asks.items():
            if publisher == epoch:
                ask.after = 0.0

    def ended(self, epoch: int, number: int) -> None:
        """Record the end of the answer to request ``number``."""
        for (publisher, _), ask in self._asks.items():
            if publisher == epoch and ask.number == number:
                ask.number = None
                ask.blocks &= ask.is_due

    def awaits(self, epoch: int) -> bool:
        """Return True while the app awaits snapshots of a publisher because of a loss."""
        return any(publisher == epoch and ask.blocks for (publisher, _), ask in self._asks.items())

    def tick(self, now: float, *, emptied: bool) -> None:
        """Send the requests that are due. Call this method in each `TICK`.

        ``emptied`` is True if everything that had arrived was read since the last call.
        """
        if not self._asks or not emptied:
            return
        for (epoch, prefix), ask in tuple(self._asks.items()):
            if ask.is_due and now >= ask.after:
                self._number += 1
                ask.number, ask.is_due, ask.tries = self._number & 0xFFFF, False, 0
                ask.after, ask.pause = now + ask.pause, min(2 * ask.pause, PAUSE_MAX)
                self._ask(epoch, prefix, ask, now)
            elif ask.number is not None and now - ask.sent_at >= ANSWER_SECONDS * 2 ** (ask.tries - 1):
                if ask.tries < TRIES:
                    self._repeated()
                    self._ask(epoch, prefix, ask, now)
                else:
                    ask.number, ask.blocks = None, ask.is_due
            elif ask.number is None and not ask.is_due and now - ask.lost_at >= CALM_SECONDS and now >= ask.after:
                del self._asks[epoch, prefix]

    def _ask(self, epoch: int, prefix: bytes, ask: _Ask, now: float) -> None:
        assert ask.number is not None
        ask.sent_at = now
        ask.tries += 1
        self._send(pack_snapshot_request(SnapshotRequest(self._subscriber, ask.number, epoch, prefix)))
