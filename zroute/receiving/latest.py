"""Latest: which messages of publishers that keep them came last, so that a kept one is not delivered behind a newer."""

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
    """When the latest message of each topic was sent by publishers that keep it; a changed table takes this over.

    A note must not cost the loop more than a dict entry, so entries are not moved when they are noted again. Instead,
    a full ``times`` becomes ``older``, whose former entries are dropped: they were noted before all that stay. So the
    `TOPICS_NOTED` entries noted last are always known, and up to twice as many are held.
    """

    times: dict[tuple[int, bytes], bytes] = attrs.field(factory=dict)
    """Send times by epoch and topic, as in the header: such bytes compare as the numbers do."""
    older: dict[tuple[int, bytes], bytes] = attrs.field(factory=dict)

    def has(self, epoch: int, topic: bytes, fixed: bytes) -> bool:
        """Whether a message came that is not older than one whose header begins with ``fixed``."""
        key = epoch, topic
        known = self.times.get(key) or self.older.get(key)
        return known is not None and known >= fixed[SENT_AT:]

    def note(self, epoch: int, topic: bytes, fixed: bytes) -> None:
        """The one whose header begins so came last."""
        if len(topic) > MAX_TOPIC:  # no publisher keeps it
            return
        if len(self.times) >= TOPICS_NOTED:
            self.older, self.times = self.times, {}
        self.times[epoch, topic] = fixed[SENT_AT:]

    def keep_only(self, subscriptions: Iterable[bytes]) -> None:
        """Forget topics that begin with none of these: who subscribes to them again is sent their messages again."""
        prefixes = tuple(subscriptions)
        for notes in (self.times, self.older):
            for key in [key for key in notes if not key[1].startswith(prefixes)]:
                del notes[key]

    def noting(self, epoch: int, topic: bytes, deliver: Deliver) -> Deliver:
        """``deliver``, for messages that are noted as the latest."""
        start = len(topic) + 1

        def deliver_noted(body: bytes, raw: RawFrames) -> int | None:
            fixed = raw[1][:HEADER_SIZE] if isinstance(raw, tuple) else raw[start : start + HEADER_SIZE]
            self.note(epoch, topic, fixed)
            return deliver(body, raw)

        return deliver_noted
