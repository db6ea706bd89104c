"""The counters of one run of an app.

Between any two reads ``received = routed + unrouted + malformed + duplicate + control``. All six are counted
separately, so a message that is counted twice, or not at all, shows as a wrong sum. `RouteStats` counts the deliveries
of each route.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["NOT_COUNTED", "RouteStats", "Stats", "losses"]

NOT_COUNTED = "not counted"
"""The text in place of the number of losses if no publisher numbers its messages."""


@attrs.define
class RouteStats:
    """The counters of the messages that were given to one route.

    - ``handled``: the handler returned without an error.
    - ``handler_error``: the handler raised an error, or its awaitable failed.
    - ``decode_error``: the body could not be decoded, so the handler was not called.
    - ``stale``: the message was too old for the route when its turn came.
    - ``queued``: the message waits, alone or in a batch.
    - ``in_flight``: the handler has not ended.
    - ``dropped_at_shutdown``: the message was queued or in flight when the app or its stream was closed.

    Their sum is the number of messages given to the route: a full queue pauses reading, and drops nothing.
    """

    handled: int = 0
    handler_error: int = 0
    decode_error: int = 0
    stale: int = 0
    queued: int = 0
    in_flight: int = 0
    dropped_at_shutdown: int = 0


@attrs.define(init=False)
class Stats:
    """The counters of one run; they are zero when the app starts.

    Received messages:

    - ``received``: messages read. It is updated after every few messages, so a handler may see it slightly behind.
    - ``routed``: messages given to at least one route.
    - ``unrouted``: messages that match no route.
    - ``malformed``: frames that are not a valid message.
    - ``duplicate``: messages that were delivered, or counted as lost, before.
    - ``control``: messages without data, such as answers to a join, heartbeats and goodbyes.

    Losses and publishers:

    - ``lost``: messages that were sent and not received, in ``gaps`` gaps.
    - ``unknown_losses``: losses of an unknown number of messages.
    - ``epochs``: runs of publishers that messages came from.
    - ``joins``: answers of publishers to a join. ``join_retries``: joins that were sent again.
    - ``peers``: publishers that are connected now.
    - ``negative_ages``: messages from a publisher whose clock is ahead, on routes that skip stale messages.

    Published messages:

    - ``published``: messages given to ZeroMQ.
    - ``send_retries``: how often ZeroMQ had no room for a message (``overflow`` "raise" and "wait").
    - ``publish_errors``: messages that derived streams, timers and generators failed to make or to publish.

    Other:

    - ``cache_misses``: messages, received or published, whose topic or publisher was not cached. Each takes about ten
      times as long as others.
    - ``skipped_periods``: ticks of timers that came while the previous call was still running.
    - ``hook_errors``: failures of ``on_error``, ``on_unrouted``, ``on_startup`` and ``on_shutdown`` functions.
    - ``paused_since``: when reading was paused (seconds since the Unix epoch), or None. The routes ``paused_by`` are
      full; no message of any route is read until half of theirs are handled.
    - ``routes``: the `RouteStats` of each route, by name.
    """

    received: int = 0
    routed: int = 0
    unrouted: int = 0
    malformed: int = 0
    duplicate: int = 0
    control: int = 0
    lost: int = 0
    gaps: int = 0
    unknown_losses: int = 0
    epochs: int = 0
    joins: int = 0
    join_retries: int = 0
    peers: int = 0
    negative_ages: int = 0
    published: int = 0
    send_retries: int = 0
    cache_misses: int = 0
    publish_errors: int = 0
    skipped_periods: int = 0
    hook_errors: int = 0
    paused_since: float | None = None
    paused_by: tuple[str, ...] = ()
    routes: dict[str, RouteStats] = attrs.field(factory=dict)

    def __init__(self) -> None:
        self.__attrs_init__()

    @property
    def unknown_tail(self) -> int:
        """The old name of ``unknown_losses``; the next version removes it."""
        return self.unknown_losses

    @property
    def eagain(self) -> int:
        """The old name of ``send_retries``; the next version removes it."""
        return self.send_retries

    @property
    def handled(self) -> int:
        """The number of handler calls that ended without an error, in all routes."""
        return sum(route.handled for route in self.routes.values())

    @property
    def in_flight(self) -> int:
        """The number of handler calls that have not ended, in all routes."""
        return sum(route.in_flight for route in self.routes.values())

    @property
    def failed(self) -> int:
        """The number of handler and decode errors, in all routes."""
        return sum(route.handler_error + route.decode_error for route in self.routes.values())

    def as_dict(self) -> dict[str, Any]:
        """Return all counters as plain values, for a log line or JSON."""
        return attrs.asdict(self)


def losses(stats: Stats) -> dict[str, object]:
    """Return the counters of losses for the last log line of a program, by name.

    ``lost`` is always included, other counters only if they are not zero. ``lost`` is `NOT_COUNTED` if no publisher
    numbers its messages.
    """
    untracked = stats.received > 0 and not stats.joins  # publishers of other wires do not number messages
    seldom = {"unknown_losses": stats.unknown_losses, "duplicate": stats.duplicate}
    told: dict[str, object] = {"lost": NOT_COUNTED if untracked else stats.lost}
    return told | {name: count for name, count in seldom.items() if count}
