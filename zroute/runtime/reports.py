"""The log lines about the start and the end of an app."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol

import attrs

from zroute.endpoints import LOOP, Ends
from zroute.planning.plan import Parts, Plan
from zroute.runtime.run import StopReport
from zroute.stats import NOT_COUNTED, JobStats, Stats, losses, refusals
from zroute.transport import Transport

__all__ = ["log_counters", "log_start", "log_unfinished"]

_log = logging.getLogger("zroute")


class Reported(Protocol):
    """A service whose start and end are logged."""

    plan: Plan
    ends: Ends

    @property
    def transport(self) -> Transport | None:
        """The open transport, or None."""

    @property
    def identity(self) -> str:
        """The publisher's name and epoch; "" if the app sends no name."""


def log_start(service: Reported) -> None:
    """Log the lines that describe an app after its start.

    If a function of the app has already stopped the app, nothing is logged.
    """
    transport = service.transport
    if transport is not None:
        for level, text in _start_lines(service, transport):
            _log.log(level, "%s", text)


def _start_lines(service: Reported, transport: Transport) -> Iterator[tuple[int, str]]:
    name, compiled = service.plan.name, service.plan.parts
    yield (
        logging.INFO,
        f"{name}: routes {len(compiled.routes)}, publications {len(compiled.outlets)}, "
        f"timers and generators {len(compiled.triggers)}{_further(compiled)}",
    )
    if service.plan.is_empty(service.ends):
        yield logging.WARNING, f"{name}: nothing is registered: is a call of app.include(routes) missing?"
    for text in service.plan.dropped_feeds(service.ends):
        yield logging.WARNING, f"{name}: {text}"
    if service.ends.sub and service.ends.sub[0].address.startswith(LOOP):
        own = "its own messages and requests" if compiled.replies else "its own messages"
        yield logging.INFO, f"{name}: has no endpoints, so the app receives only {own}, in this process"
        return
    yield from _out_of_use(service)
    yield from transport.summary()
    if service.identity:
        yield logging.INFO, f"{name}: publishes as {service.identity}"
    for pattern in (pattern for route in compiled.routes for pattern in route.patterns):
        on_nats = service.ends.nats is not None
        # NATS filters by segments, so only a pattern for everything receives everything.
        if pattern.prefix == b"" or not pattern.segments if on_nats else pattern.subscription == b"":
            whose = "the NATS servers" if on_nats else "the connected publishers"
            text = f"{name}: receives all messages of {whose}, because of the pattern {pattern.text!r}"
            yield logging.WARNING, text


def _out_of_use(service: Reported) -> Iterator[tuple[int, str]]:
    """Yield the lines about endpoints and keys of an app that NATS replaces."""
    own, name = service.plan.addresses.ends, service.plan.name
    if service.ends.nats is None:
        return
    if own:
        yield logging.INFO, f"{name}: runs on NATS, so its endpoints are not used: {', '.join(map(str, own))}"
    if own.access.keys is not None:
        yield (
            logging.WARNING,
            f"{name}: runs on NATS, so its keys are not used: the accounts of the servers decide who may connect",
        )


def _further(compiled: Parts) -> str:
    """Return the numbers of handlers and senders for requests and jobs, as text."""
    return "".join(
        f", {what} {len(many)}"
        for what, many in (
            ("handlers of requests", compiled.replies),
            ("requesters", compiled.requesters),
            ("handlers of jobs", compiled.works),
            ("job queues", compiled.queues),
        )
        if many
    )


def log_unfinished(service: Reported, report: StopReport) -> None:
    """Log the handlers that a stop has abandoned, if there are any."""
    if not report.complete:
        names = ", ".join(f"{name}: {count}" for name, count in report.unfinished.items())
        _log.error("%s: abandoned after the drain timeout: %s", service.plan.name, names)


def log_counters(service: Reported) -> None:
    """Log the counters of a run, as text and as fields of the record."""
    counters = _counters(service)
    fields = {name: None if count == NOT_COUNTED else count for name, count in counters.items()}
    text = ", ".join(f"{name} {count}" for name, count in counters.items())
    _log.info("%s: %s", service.plan.name, text, extra={"app": service.plan.name, **fields})


def _counters(service: Reported) -> dict[str, object]:
    """Return the counters of a run by their names in `app.stats`.

    Two counters are called ``refused`` there, so their names here say what was refused. The result contains the sums
    over all routes. If the app only publishes, the result omits the counters of received messages. If the app only
    receives, the result omits the counters of published messages, unless another app could not publish results of this
    app's handlers.
    """
    stats = service.plan.live.stats
    counts: dict[str, object] = {}
    if service.ends.sub:
        counts.update(received=stats.received - stats.control)
    parts = service.plan.parts
    handles = service.ends.sub or parts.replies or parts.works
    if parts.replies:
        counts.update(requests=stats.requests)
    if handles:
        counts.update(handled=stats.handled, failed=stats.failed)
    if service.ends.sub:
        counts.update(unrouted=stats.unrouted, malformed=stats.malformed)
        counts.update(losses(stats))
    if handles:
        routes = stats.routes.values()
        names = ("stale", "skipped", "dropped_at_shutdown", "retried", "timed_out", "dead", "cancelled")
        seldom = {name: sum(getattr(route, name) for route in routes) for name in names}
        seldom["requests_refused"] = sum(route.refused for route in routes)
        counts.update((name, count) for name, count in seldom.items() if count)
    refused = ("bad_requests", "no_handler", "busy", "replies_undelivered")
    counts.update((name, getattr(stats, name)) for name in refused if getattr(stats, name))
    if stats.requests_sent:
        counts.update(requests_sent=stats.requests_sent, requests_failed=stats.requests_failed)
    if stats.replies_late:
        counts.update(replies_late=stats.replies_late)
    if stats.jobs:
        counts.update((f"jobs_{name}", count) for name, count in _of_jobs(stats).items() if count or name in _ALWAYS)
    if service.ends.pub:
        counts["published"] = stats.published
    if service.ends.pub or stats.publish_errors:
        counts["publish_errors"] = stats.publish_errors
    seldom = {name: getattr(stats, name) for name in ("publish_skipped", "snapshot_errors")}
    counts.update((name, count) for name, count in seldom.items() if count)
    return counts | refusals(stats)


_ALWAYS = ("put", "done", "failed")


def _of_jobs(stats: Stats) -> dict[str, int]:
    """Return the sum of each counter over all job queues."""
    names = (field.name for field in attrs.fields(JobStats))
    return {name: sum(getattr(queue, name) for queue in stats.jobs.values()) for name in names}
