"""The frames of snapshots: requests for them, and the end of an answer.

A publisher sends its snapshots like kept messages, to the marker of a subscriber; `zroute.messages.wire` converts these
frames. It sends them after each join. A subscriber that has lost messages asks for them again:

- A **request** is a subscription that the subscriber withdraws at once, like a request for lost messages
  (`zroute.messages.recovery`).
- The **end** of the snapshots is a kept frame without a topic. Its body repeats the number of the request.

Like `zroute.messages.control`, this module only converts bytes. ``docs/reference/wire.md`` specifies the layout.
"""

from __future__ import annotations

from struct import Struct

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.recovery import REQUEST

__all__ = [
    "SnapshotRequest",
    "pack_snapshot_end",
    "pack_snapshot_request",
    "parse_snapshot_end",
    "parse_snapshot_request",
]

_SNAPSHOTS = 2  # what a request asks for
_REQUEST = Struct(">6sHQB")  # subscriber, number, epoch, length of the prefix
_END = Struct(">H")


@attrs.frozen(slots=True)
class SnapshotRequest:
    """A parsed request.

    Attributes:
        subscriber: The 48 bits that identify the subscriber; see `zroute.messages.control.Marker.subscriber`.
        number: The number of the request, which the end of the answer repeats.
        epoch: The publisher that is asked. All publishers receive the request.
        prefix: The beginning of the wanted topics.
    """

    subscriber: int
    number: int
    epoch: int
    prefix: bytes


def pack_snapshot_request(request: SnapshotRequest) -> bytes:
    """Return the subscription that asks for snapshots."""
    facts = request.subscriber.to_bytes(6), request.number, request.epoch, len(request.prefix)
    return REQUEST + _REQUEST.pack(*facts) + request.prefix + bytes([_SNAPSHOTS])


def parse_snapshot_request(topic: bytes) -> SnapshotRequest:
    """Parse a subscription that starts with `zroute.messages.recovery.REQUEST`.

    Raises EnvelopeError if the request is incomplete or asks for something else.
    """
    at = len(REQUEST) + _REQUEST.size
    if len(topic) <= at:
        raise EnvelopeError(f"a request of {len(topic)} bytes; expected more than {at}")
    subscriber, number, epoch, length = _REQUEST.unpack_from(topic, len(REQUEST))
    if topic[at + length :] != bytes([_SNAPSHOTS]):
        raise EnvelopeError("not a request for snapshots")
    return SnapshotRequest(int.from_bytes(subscriber), number, epoch, topic[at : at + length])


def pack_snapshot_end(number: int) -> bytes:
    """Return the body of the end of the snapshots that answer request ``number``."""
    return _END.pack(number)


def parse_snapshot_end(body: bytes) -> int | None:
    """Return the number of the answered request; None for another end."""
    return _END.unpack(body)[0] if len(body) == _END.size else None
