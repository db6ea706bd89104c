"""Record the latest messages of publishers that have a last-value cache.

A kept message that arrives after a newer live message of its topic is not delivered.
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
    """The send time of the latest message of each topic that a publisher keeps.

    A new table takes over this object from the table that it replaces.

    Recording a message must not cost more than setting a dict entry, so a later record of the same topic does not move
    its entry. Instead, when ``times`` is full, it becomes ``older``, and the former ``older``, which contains the
    oldest entries, is dropped. At least the latest `TOPICS_NOTED` entries are therefore known, and at most twice as
    many are stored.
    """

    times: dict[tuple[int, bytes], bytes] = attrs.field(factory=dict)
    """Send times by epoch and topic, as bytes from the header. The bytes sort in the order of the times."""
    older: dict[tuple[int, bytes], bytes] = attrs.field(factory=dict)

    def has(self, epoch: int, topic: bytes, fixed: bytes) -> bool:
        """Return True if a message is not newer than the latest message of its topic.

        ``fixed`` is the beginning of the message's header.
        """
        key = epoch, topic
        known = self.times.get(key) or self.older.get(key)
        return known is not None and known >= fixed[SENT_AT:]

    def note(self, epoch: int, topic: bytes, fixed: bytes) -> None:
        """Record the message with the header ``fixed`` as the latest of its topic."""
        if len(topic) > MAX_TOPIC:  # no publisher keeps messages of such a topic
            return
        if len(self.times) >= TOPICS_NOTED:
            self.older, self.times = self.times, {}
        self.times[epoch, topic] = fixed[SENT_AT:]

    def keep_only(self, subscriptions: Iterable[bytes]) -> None:
        """Delete the topics that do not begin with one of ``subscriptions``.

        If the app subscribes to them again later, the publisher sends their kept messages again.
        """
        prefixes = tuple(subscriptions)
        for notes in (self.times, self.older):
            for key in [key for key in notes if not key[1].startswith(prefixes)]:
                del notes[key]

    def noting(self, epoch: int, topic: bytes, deliver: Deliver) -> Deliver:
        """Return a ``deliver`` that also records each message as the latest."""
        start = len(topic) + 1

        def deliver_noted(body: bytes, raw: RawFrames) -> int | None:
            # In a message of several parts, the second part begins with the header.
            fixed = raw[1][:HEADER_SIZE] if isinstance(raw, tuple) else raw[start : start + HEADER_SIZE]
            self.note(epoch, topic, fixed)
            return deliver(body, raw)

        return deliver_noted
