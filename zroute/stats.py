"""Counters of one run of an app, and the identity that holds between them.

Messages: ``received = routed + unrouted + malformed + duplicate + control`` between any two reads. All six are counted
independently, so a message that is counted twice or not at all breaks the sum. `RouteStats` has the deliveries of each
route.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["NOT_COUNTED", "RouteStats", "Stats", "losses"]

NOT_COUNTED = "not counted"
"""What stands for the number of losses if no publisher has numbered its messages."""


@attrs.define
class RouteStats:
    """What became of the messages that one route was given.

    ``handled`` returned without an error, ``handler_error`` raised or failed, ``decode_error`` never reached
    the function, ``stale`` were older than the route takes when their turn came, ``queued`` wait for their turn, alone
    or in a list, ``in_flight`` are unfinished now, and ``dropped_at_shutdown`` were queued or unfinished when the
    app, or their stream, was closed. Together they are all that the route was given: a full queue ends reading, and
    drops nothing.
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
    """Counters of one run; they start at zero with each start of the app.

    ``received`` whole messages read (brought up to date after each few, so a handler may see it a little
    behind); ``routed`` were given to at least one route; ``unrouted`` matched no route; ``malformed`` were no message;
    ``duplicate`` were delivered or counted as lost before; ``control`` carried no data (joins, beats, goodbyes).
    ``lost`` messages were sent and not received, in ``gaps``; how many were at each of
    ``unknown_losses`` is not known.
    ``paused_since`` is when reading was paused (in seconds since the Unix epoch), because the routes ``paused_by`` are
    full: no message of any route is read until half of theirs are handled. None, and no names, while the app reads.
    ``epochs`` are the runs of publishers that were met, ``joins`` their answers, ``join_retries`` the times they were
    asked anew, ``peers`` the publishers that are connected now. Where messages may be ``stale``, ``negative_ages`` came
    from a publisher whose clock is ahead. ``published`` messages were given to ZeroMQ;
    ``send_retries`` counts how often it had no room for one (``overflow`` "raise" and "wait").
    ``cache_misses`` messages, received or published, were of a topic or a publisher that was not known, or known no
    more: each of these takes about ten times as long as others.
    ``publish_errors`` counts what derived streams, timers and generators could not publish or raised;
    ``skipped_periods`` the ticks that came while the one before still ran; ``hook_errors`` failures in
    ``on_error``, ``on_unrouted``, ``on_startup`` and ``on_shutdown`` functions.
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
        """The name of ``unknown_losses`` up to this version; it goes with the next one."""
        return self.unknown_losses

    @property
    def eagain(self) -> int:
        """The name of ``send_retries`` up to this version; it goes with the next one."""
        return self.send_retries

    @property
    def handled(self) -> int:
        """Handler calls that ended without an error, over all routes."""
        return sum(route.handled for route in self.routes.values())

    @property
    def in_flight(self) -> int:
        """Handlers that have not finished yet, over all routes."""
        return sum(route.in_flight for route in self.routes.values())

    @property
    def failed(self) -> int:
        """Deliveries that did not end well: handler and decode errors, over all routes."""
        return sum(route.handler_error + route.decode_error for route in self.routes.values())

    def as_dict(self) -> dict[str, Any]:
        """All counters as plain values, for a log line or JSON."""
        return attrs.asdict(self)


def losses(stats: Stats) -> dict[str, object]:
    """Return the counters of losses for the last line of a program: ``lost`` always, others if they are not zero.

    ``lost`` is `NOT_COUNTED` if all publishers were plain ones, which number nothing.
    """
    untracked = stats.received > 0 and not stats.joins  # plain publishers number nothing
    seldom = {"unknown_losses": stats.unknown_losses, "duplicate": stats.duplicate}
    told: dict[str, object] = {"lost": NOT_COUNTED if untracked else stats.lost}
    return told | {name: count for name, count in seldom.items() if count}
