"""Remember the latest messages of publishers with a last-value cache.

A cached message that arrives after a newer live one is not delivered.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from zroute.messages.wire import HEADER_SIZE, SENT_AT
from zroute.options import MAX_TOPIC, TOPICS_NOTED
from zroute.receiving.dispatch import Deliver
from zroute.receiving.frames import RawFrames

__all__ = ["Latest"]


@attrs.define(eq=False)
class Latest:
    """The send time of each topic's latest message, from publishers that cache it.

    A changed table takes this object over from its predecessor.

    A note must cost no more than a dict entry, so a further note does not move the entry. Instead, a full ``times``
    becomes ``older``, and the former ``older`` is dropped: its entries are the oldest. So the `TOPICS_NOTED` entries
    noted last are always known, and up to twice as many are held.
    """

    times: dict[tuple[int, bytes], bytes] = attrs.field(factory=dict)
    """Send times by epoch and topic, as in the header: such bytes compare as the numbers do."""
    older: dict[tuple[int, bytes], bytes] = attrs.field(factory=dict)

    def has(self, epoch: int, topic: bytes, fixed: bytes) -> bool:
        """Return True if the message with this header is not newer than the latest one.

        ``fixed`` is the beginning of the header.
        """
        key = epoch, topic
        known = self.times.get(key) or self.older.get(key)
        return known is not None and known >= fixed[SENT_AT:]

    def note(self, epoch: int, topic: bytes, fixed: bytes) -> None:
        """Note the message whose header begins with ``fixed`` as the latest of its topic."""
        if len(topic) > MAX_TOPIC:  # no publisher keeps it
            return
        if len(self.times) >= TOPICS_NOTED:
            self.older, self.times = self.times, {}
        self.times[epoch, topic] = fixed[SENT_AT:]

    def keep_only(self, subscriptions: Iterable[bytes]) -> None:
        """Forget topics that begin with none of ``subscriptions``.

        After a new subscription the publisher sends their cached messages again.
        """
        prefixes = tuple(subscriptions)
        for notes in (self.times, self.older):
            for key in [key for key in notes if not key[1].startswith(prefixes)]:
                del notes[key]

    def noting(self, epoch: int, topic: bytes, deliver: Deliver) -> Deliver:
        """Return ``deliver`` for messages that are also noted as the latest."""
        start = len(topic) + 1

        def deliver_noted(body: bytes, raw: RawFrames) -> int | None:
            fixed = raw[1][:HEADER_SIZE] if isinstance(raw, tuple) else raw[start : start + HEADER_SIZE]
            self.note(epoch, topic, fixed)
            return deliver(body, raw)

        return deliver_noted
