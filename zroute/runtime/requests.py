"""The requests of one run: those that the app answers, and those that it sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from zroute.endpoints import Ends
from zroute.messages.topics import Pattern
from zroute.planning.plan import Plan
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.in_flight import InFlight
from zroute.stats import Stats
from zroute.transport import Transport

if TYPE_CHECKING:
    from zroute.receiving.replying import Replying, ReplyResults
    from zroute.requests.client import Client

__all__ = ["RequestRun"]


class RequestRun:
    """The requests of a run.

    Args:
        plan: The compiled app.
        reactor: The reactor.
        stats: The counters of the run.
        results: Takes the keyword arguments ``codecs``, ``max_message`` and ``reading``, and returns a `ReplyResults`.
    """

    def __init__(self, plan: Plan, reactor: Any, stats: Stats, results: Callable[..., ReplyResults]) -> None:
        self._plan = plan
        self._reactor = reactor
        self._stats = stats
        self._results = results(codecs=plan.parts.codecs, max_message=plan.limits.max_message, reading=self)
        self._replying: Replying | None = None
        self._client: Client | None = None
        self._patterns: list[Pattern] = []

    @property
    def unfinished(self) -> InFlight:
        """The unfinished calls of handlers."""
        return self._results.unfinished

    def open(self, transport: Transport, ends: Ends, routes: Sequence[CompiledRoute]) -> None:
        """Open the endpoints, and let the app send requests.

        The app answers no request before `answer` is called.
        """
        plan = self._plan
        if not (ends.rep or ends.req):
            return
        if ends.rep:
            from zroute.receiving.replying import Replying

            given = routes, plan.parts.codecs, self._results, self._stats, plan.limits.max_message
            self._replying = Replying(*given)
            self._patterns = [pattern for route in routes for pattern in route.patterns]
        if ends.req:
            from zroute.requests.client import Client

            self._client = Client(
                self._reactor,
                self._stats,
                plan.name,
                plan.parts.codecs,
                max_message=plan.limits.max_message,
                clock_ns=time.time_ns,
                later=self._reactor.callFromThread,
                is_plain=plan.choices.wire != "tracked",
            )
            self._client.answers_later = self._replying is not None
        transport.open_requests(self._client, None if self._replying is None else self._replying.received)
        if self._client is not None:
            plan.live.client = self._client
            for requester in plan.parts.requesters:
                requester.open(self._client)

    def answer(self, transport: Transport) -> None:
        """Start to answer requests."""
        if self._replying is not None:
            transport.answer(self._patterns)
            if self._client is not None:
                self._client.answers_later = False

    def refuse(self) -> None:
        """Refuse further requests, because the app is stopping."""
        if self._replying is not None:
            self._replying.stops = True

    def answered(self) -> Deferred[None] | None:
        """Return a Deferred that fires when all requests of the app are answered.

        The result is None if no request is unanswered.
        """
        if self._client is None or not self._client.unanswered:
            return None
        return Deferred.fromCoroutine(self._client.idle())

    @property
    def unanswered(self) -> int:
        """The number of the app's requests without a reply."""
        return 0 if self._client is None else self._client.unanswered

    def close(self) -> None:
        """Send no more requests, and end the requests without a reply with an error."""
        for requester in self._plan.parts.requesters:
            requester.close()
        if self._client is not None:
            if self._plan.live.client is self._client:
                self._plan.live.client = None
            self._client.close()

    def end(self) -> None:
        """Log the numbers of lines that were counted instead of logged."""
        self._results.close()

    # -- `Reading`, for the results

    def pause(self, by: Any) -> None:
        """Do nothing: a server without room refuses requests, and does not pause."""

    def resume(self) -> None:
        """Do nothing: reading never pauses."""

    def reclassify(self) -> None:
        """Create the delivery functions again."""
        if self._replying is not None:
            self._replying.reclassify()
