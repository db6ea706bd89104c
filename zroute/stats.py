"""The counters of one run of an app.

Between any two reads, ``received = routed + unrouted + malformed + duplicate + control``. All six counters are
incremented separately, so a message that is counted twice, or not at all, makes the sum wrong. `RouteStats` counts the
deliveries of each route.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["NOT_COUNTED", "JobStats", "RouteStats", "Stats", "losses", "refusals"]

NOT_COUNTED = "not counted"
"""The text that is shown instead of a number of losses if no publisher numbers its messages."""


@attrs.define
class RouteStats:
    """The counters of the messages that were delivered to one route.

    - ``handled``: the handler returned without an error.
    - ``handler_error``: the handler raised an error, or its awaitable failed.
    - ``decode_error``: the body could not be decoded, so the handler was not called.
    - ``stale``: the message was too old for the route, so the handler was not called.
    - ``skipped``: middleware did not call the handler.
    - ``queued``: the message is waiting, alone or in a batch.
    - ``in_flight``: the handler is still handling the message.
    - ``dropped_at_shutdown``: the message was queued or in flight when the app or its stream was closed.
    - ``cancelled``: the caller of a request stopped waiting before the handler had ended.

    The sum of these counters is the number of messages delivered to the route. A full queue pauses reading, but drops
    no messages.

    Further counters are not part of the sum:

    - ``retried``: further attempts; a further attempt with a batch counts once for each message.
    - ``timed_out``: attempts that took longer than the route's ``timeout``.
    - ``dead``: messages published to the route's ``dead`` topic. These messages also count as ``handler_error`` or
      ``decode_error``.
    - ``refused``: requests that the handler refused with `RequestRefused`. They also count as ``handled``. The last
      line of the log calls them ``requests_refused``.
    """

    handled: int = 0
    handler_error: int = 0
    decode_error: int = 0
    stale: int = 0
    skipped: int = 0
    queued: int = 0
    in_flight: int = 0
    dropped_at_shutdown: int = 0
    retried: int = 0
    timed_out: int = 0
    dead: int = 0
    cancelled: int = 0
    refused: int = 0


@attrs.define
class JobStats:
    """The counters of one job queue.

    Each job that was put into the queue is counted under exactly one of these:

    - ``waiting``: it waits for a worker, or for its next attempt.
    - ``in_flight``: a worker has it.
    - ``done``: a worker reported it as done.
    - ``failed``: it is not attempted again, for example after its last attempt or because a worker rejected it.
    - ``dropped_at_shutdown``: it was not done when the app stopped.

    Their sum is ``put``, the number of all jobs that were put into the queue. Further counters:

    - ``retried``: further attempts after a failure.
    - ``redelivered``: jobs that were taken from a worker that had ended or was silent, to give them to another worker.
    - ``given_back``: jobs that a stopping worker gave back.
    - ``done_twice``: reports about jobs that had been taken from the reporting worker, and were already done or failed.
    - ``dead``: failed jobs that were published as dead letters.
    """

    put: int = 0
    waiting: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    dropped_at_shutdown: int = 0
    retried: int = 0
    redelivered: int = 0
    given_back: int = 0
    done_twice: int = 0
    dead: int = 0


@attrs.define(init=False)
class Stats:
    """The counters of one run. All counters are zero when the app starts.

    Received messages:

    - ``received``: messages read. The counter is updated after every few messages, so a handler may see a slightly
      lower value.
    - ``routed``: messages delivered to at least one route.
    - ``unrouted``: messages that match no route.
    - ``malformed``: frames that are not a valid message.
    - ``duplicate``: messages that were already delivered or counted as lost; with ``since``, also live messages from
      before the join, which the past contains. One or two of these in a normal start are no fault.
    - ``control``: messages without data (such as answers to a join, heartbeats and goodbyes); also kept messages that
      the app did not request or already has.

    Losses and publishers:

    - ``lost``: messages that were sent but not received. ``gaps``: the number of gaps that these losses form.
    - ``recovered``: lost messages that the app has received again from the histories of their publishers. They count as
      received, and not as lost.
    - ``replayed``: messages of the past that the app has received from the histories of their publishers, for handlers
      with ``since``. ``recovered`` and ``replayed`` include all messages of a coalesced frame at once, and
      ``received`` follows when they are delivered. Once nothing waits, ``received`` is at least
      ``recovered + replayed``.
    - ``unknown_losses``: losses of an unknown number of messages.
    - ``epochs``: runs of publishers from which messages arrived.
    - ``joins``: answers of publishers to a join. ``join_retries``: joins that were sent again.
    - ``peers``: publishers that are connected now.
    - ``refused``: connections that were refused, because their key is not authorized (with ``keys=``) or because of a
      limit. The last line of the log calls them ``connections_refused``.
    - ``handshakes_failed``: connections that failed for another reason, for example because the peer has no keys.
    - ``negative_ages``: messages from a publisher whose clock is ahead, on routes that skip stale messages.

    Published messages:

    - ``published``: messages passed to ZeroMQ.
    - ``send_retries``: attempts to send for which ZeroMQ had no room (``overflow`` "raise" and "wait").
    - ``publish_skipped``: messages that a publish middleware did not publish.
    - ``snapshots``: snapshots that functions have made for subscribers. ``snapshot_errors``: failures of these
      functions, and of ``topics`` functions.
    - ``publish_errors``: results of handlers that could not be published, and messages that timers and generators
      failed to create or publish; also messages that a NATS server does not permit.

    Requests of clients, which are not part of ``received``:

    - ``requests``: requests that arrived.
    - ``bad_requests``: requests that were refused with 400 before their body was decoded: malformed requests, and
      requests for a single reply to a handler that answers with a stream.
    - ``no_handler``: requests for topics without a handler.
    - ``busy``: requests that were refused because a handler had no room or the app was stopping.

    Each other request counts once in the `RouteStats` of its route. A request whose body does not fit the handler's
    type is also refused with 400. It counts there as ``decode_error``, and therefore in ``failed``.

    - ``replies_undelivered``: replies to clients that had disconnected, or whose queue was full.

    Requests of this app:

    - ``requests_sent``: requests. A request with ``retry`` counts each time that it is sent.
    - ``requests_failed``: requests that ended with an error. A request with ``retry`` counts for each attempt that
      fails, also if a later one succeeds.
    - ``replies_late``: replies that arrived after the caller had given up.

    Other:

    - ``cache_misses``: messages, received or published, whose topic or publisher was not cached. Such a message takes
      about ten times as long as others.
    - ``skipped_periods``: periods of timers that began while the previous call was still running.
    - ``hook_errors``: failures of ``on_error``, ``on_unrouted``, ``on_gap``, ``on_subscribers`` and ``on_shutdown``
      functions, and of resources that close. A failed ``on_startup`` function ends the app instead, and a SystemExit is
      not a failure.
    - ``paused_since``: the time at which reading was paused (seconds since the Unix epoch), or None. ``paused_by``: the
      routes whose queues are full. No messages are read until the queues of these routes are half empty.
    - ``routes``: the `RouteStats` of each route, by name.
    - ``jobs``: the `JobStats` of each job queue, by its pattern.
    - ``workers``: workers that are connected to the app's job queues now.
    """

    received: int = 0
    routed: int = 0
    unrouted: int = 0
    malformed: int = 0
    duplicate: int = 0
    control: int = 0
    lost: int = 0
    gaps: int = 0
    recovered: int = 0
    replayed: int = 0
    unknown_losses: int = 0
    epochs: int = 0
    joins: int = 0
    join_retries: int = 0
    peers: int = 0
    negative_ages: int = 0
    refused: int = 0
    handshakes_failed: int = 0
    published: int = 0
    send_retries: int = 0
    cache_misses: int = 0
    publish_errors: int = 0
    publish_skipped: int = 0
    snapshots: int = 0
    snapshot_errors: int = 0
    requests: int = 0
    bad_requests: int = 0
    no_handler: int = 0
    busy: int = 0
    replies_undelivered: int = 0
    requests_sent: int = 0
    requests_failed: int = 0
    replies_late: int = 0
    skipped_periods: int = 0
    hook_errors: int = 0
    paused_since: float | None = None
    paused_by: tuple[str, ...] = ()
    routes: dict[str, RouteStats] = attrs.field(factory=dict)
    jobs: dict[str, JobStats] = attrs.field(factory=dict)
    workers: int = 0

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


def refusals(stats: Stats) -> dict[str, int]:
    """Return the counters of refused connections that are not zero, by name.

    They are for the last log line of a program. ``connections_refused`` is `Stats.refused`; requests can be refused
    too, so the log line names the connections.
    """
    counts = {"connections_refused": stats.refused, "handshakes_failed": stats.handshakes_failed}
    return {name: count for name, count in counts.items() if count}


def losses(stats: Stats) -> dict[str, object]:
    """Return the counters of losses for the last log line of a program, by name.

    ``lost`` is always included, other counters only if they are not zero. ``lost`` is `NOT_COUNTED` if no publisher
    numbers its messages.
    """
    # Publishers of other wires do not number messages. A full queue may drop the answer to a join, but not the numbers.
    untracked = stats.received > 0 and not (stats.joins or stats.lost or stats.unknown_losses)
    names = ("recovered", "replayed", "unknown_losses", "duplicate")
    seldom = {name: getattr(stats, name) for name in names}
    told: dict[str, object] = {"lost": NOT_COUNTED if untracked else stats.lost}
    return told | {name: count for name, count in seldom.items() if count}
