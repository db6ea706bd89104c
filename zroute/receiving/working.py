"""Call ``@app.work`` handlers, and report the results of their jobs.

The same code decodes jobs and messages, and calls their handlers. Only the queue differs: the lanes of
`zroute.jobs.worker` decide when a call begins. When the app stops, it gives jobs that have not begun back to the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from time import time_ns
from typing import Any

import attrs
from twisted.python.failure import Failure

from zroute.declarations.signatures import hints_of
from zroute.errors import EnvelopeError, Reject
from zroute.jobs.worker import WorkerJob, WorkLane
from zroute.messages.codecs import Codecs
from zroute.messages.jobs import as_message
from zroute.messages.schema import describe
from zroute.messages.topics import Pattern, matches
from zroute.messages.wire import Envelope, NamedFrame
from zroute.receiving.attempts import last_of
from zroute.receiving.coalesced import Remainder
from zroute.receiving.dead_letters import error_text
from zroute.receiving.dispatch import MALFORMED, UNDECODABLE, BatchCall, BoundRoute, CompiledRoute
from zroute.receiving.frames import RawFrames
from zroute.receiving.in_flight import error_of
from zroute.receiving.matching import Matcher
from zroute.receiving.results import Results
from zroute.receiving.topic_cache import TopicCache
from zroute.stats import Stats

__all__ = ["Working"]


@attrs.frozen(eq=False)
class _Call:
    """A call with one or several jobs.

    ``attempt`` makes the call, and ``raw`` is the first job as a message.
    """

    delivery: BoundRoute
    attempt: Callable[[], Any]
    raw: RawFrames
    jobs: Sequence[WorkerJob]

    @property
    def many(self) -> int:
        """The number of jobs."""
        return len(self.jobs)


class Working:
    """The handlers of jobs in one run of an app.

    This class implements `zroute.receiving.dispatch.DispatchCallbacks` for jobs.

    Args:
        routes: The routes of kind "work".
        codecs: The codecs of the app.
        results: Logs and counts errors, and publishes results.
        max_message: The maximum size of a body in bytes.
        stats: The counters of the app.

    Attributes:
        lanes: The lanes of the handlers, with the most specific patterns first.
    """

    def __init__(
        self, routes: Sequence[CompiledRoute], codecs: Codecs, results: Results, *, max_message: int, stats: Stats
    ) -> None:
        self._results = results
        self._in_flight = results.unfinished
        self._max_message = max_message
        self._matcher = Matcher(routes, only_first=True)
        self._cache = TopicCache(
            self._matcher,
            codecs,
            outcomes=self,
            stats=stats,
            unpacked=Remainder(),
            multipart=(),
            unrouted=lambda raw: UNDECODABLE,
            malformed=lambda error, raw: MALFORMED,
        )
        self._lanes = {route: self._lane(route) for route in sorted(routes, key=_rank)}
        self.lanes = tuple(self._lanes.values())
        self._job: WorkerJob | None = None  # the job that is being decoded
        self._gathered: list[tuple[WorkerJob, Any, RawFrames]] = []
        self._gathering: tuple[BoundRoute, Callable[..., Any]] | None = None

    def _lane(self, route: CompiledRoute) -> WorkLane:
        begin = partial(self._begin, route)
        lane = WorkLane(route.name, route.route.where, route.patterns, route.options.max_in_flight, begin)
        if route.lists is not None:
            one_topic = route.lists.one_topic
            lane.lists = route.lists.most, lambda frame: frame.topic if one_topic else None
        return lane

    def find(self, topic: bytes) -> WorkLane | None:
        """Return the lane of the most specific handler for a topic, or None.

        If the pattern of a handler matches, but a segment has the wrong type, the result is a lane that refuses the
        job.
        """
        deliveries = self._cache.of(topic).deliveries
        if deliveries:
            return self._lanes[deliveries[0].route]
        return next((lane for lane in self.lanes if _captured(lane.patterns, topic) is not None), None)

    # -- calls -----------------------------------------------------------------------------------------------

    def _begin(self, route: CompiledRoute, jobs: list[WorkerJob]) -> None:
        """Decode jobs, and call the handler."""
        self._let_go()
        for job in jobs:
            self._decode(route, job)
        self._job = None
        if self._gathering is not None:
            (delivery, function), self._gathering = self._gathering, None
            gathered, self._gathered = self._gathered, []
            call = partial(function, [message for _, message, _ in gathered])
            self._make(_Call(delivery, call, gathered[0][2], [job for job, _, _ in gathered]), lists=True)

    def _let_go(self) -> None:
        """Forget what an earlier list has left, because an error of zroute has ended it."""
        self._gathered, self._gathering = [], None

    def _decode(self, route: CompiledRoute, job: WorkerJob) -> None:
        frame = job.frame
        raw = NamedFrame.of(as_message(frame.topic, frame.codec, frame.body, frame.headers, time_ns()), job.peer)
        entry = self._cache.of(frame.topic)
        reason = "" if entry.deliveries else _unconverted(route, frame.topic)
        if len(frame.body) > self._max_message:
            reason = f"a body of {len(frame.body)} bytes; expected at most max_message={self._max_message}"
        if reason:
            job.rejected(error_text(self._results.refused_job(BoundRoute(route, frame.topic), reason, raw)))
            return
        self._job = job
        self._cache.deliver(entry, frame.codec, frame.body)(frame.body, raw)

    def _make(self, call: _Call, *, lists: bool = False) -> None:
        route, many = call.delivery.route, call.many
        try:
            running = self._in_flight.begin(call, None if lists else call.raw)
        except BaseException as error:  # also SystemExit, for which the reactor would drop the socket
            self._failed(call, error)
            return
        if running is None:
            self._done(call)
            return
        stats = route.stats
        stats.in_flight += many

        def ended(result: Any) -> None:
            stats.in_flight -= many
            if isinstance(result, Failure):
                self._failed(call, last_of(error_of(result))[0])
            else:
                self._done(call)

        def dropped() -> None:
            stats.in_flight -= many
            stats.dropped_at_shutdown += many

        self._in_flight.watch(running, route.name, ended, dropped, many)

    def _done(self, call: _Call) -> None:
        call.delivery.route.stats.handled += call.many
        for job in call.jobs:
            job.done()

    def _failed(self, call: _Call, error: BaseException) -> None:
        attempt = call.jobs[0].frame.attempt
        self._results.failed_job(call.delivery, error, call.raw, call.many, attempt)
        text = error_text(error)
        for job in call.jobs:
            if isinstance(error, Reject | EnvelopeError):
                job.rejected(text)
            else:
                job.failed(text)

    # -- from the deliver closures ---------------------------------------------------------------------------

    def settle(self, delivery: BoundRoute, result: Any, raw: RawFrames) -> None:
        """Make the call ``result`` for the job that was just decoded."""
        assert self._job is not None
        self._make(_Call(delivery, result, raw, (self._job,)))

    def gather(self, delivery: BoundRoute, function: Callable[..., Any]) -> BatchCall:
        """Return the functions that add jobs to the list for ``function``."""

        def one(message: Any, raw: RawFrames) -> None:
            assert self._job is not None
            self._gathering = delivery, function
            self._gathered.append((self._job, message, raw))

        # Jobs are never coalesced, so only `one` is called.
        return BatchCall(one, lambda messages, frames, at: None, lambda: 1)

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Reject a job whose body does not have the type that the handler declares."""
        assert self._job is not None
        decode_error = self._results.undecodable_job(deliveries[0], error, body, raw)
        self._job.rejected(error_text(decode_error))
        return UNDECODABLE

    def failed(
        self,
        delivery: BoundRoute,
        error: BaseException,
        raw: RawFrames,
        many: int = 1,
        *,
        raws: Sequence[RawFrames] = (),
        attempts: int = 1,
    ) -> None:
        """Report a job that failed before the call of its handler."""
        assert self._job is not None
        self._failed(_Call(delivery, lambda: None, raw, (self._job,)), error)

    # -- the same for jobs and messages ----------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """The context of the run; see `zroute.receiving.dispatch.DispatchCallbacks`."""
        return self._results.context

    @property
    def resources(self) -> Mapping[Any, Any]:
        """The open resources of the app, by type."""
        return self._results.resources

    @property
    def envelope(self) -> Callable[[RawFrames], Envelope]:
        """The function that returns a job as an envelope."""
        return self._results.envelope

    def many_topics(self, known: int) -> None:
        """Log, once, that the topic cache is full."""
        self._results.many_topics(known)

    def __getattr__(self, name: str) -> Any:
        """Return a callback of `Results` that jobs and messages share."""
        return getattr(self._results, name)


def _captured(patterns: Sequence[Pattern], topic: bytes) -> Mapping[str, bytes] | None:
    return next((found for each in patterns if (found := matches(each, topic)) is not None), None)


def _unconverted(route: CompiledRoute, topic: bytes) -> str:
    """Return a text about the segments of a topic that have the wrong type."""
    captures, function = _captured(route.patterns, topic) or {}, route.route
    hints = hints_of(function.function, function.namespace, function.where)
    wrong = []
    for name, convert in route.call.constants.converters.items():
        try:
            convert(captures[name])
        except ValueError:
            text = captures[name].decode(errors="backslashreplace")
            wrong.append(f"capture {{{name}}}: expected {describe(hints.get(name, str))}, got {text!r}")
    return ", ".join(wrong) or "no handler accepts the topic"


def _rank(route: CompiledRoute) -> tuple[int, ...]:
    """Return the rank of the most specific pattern of a route."""
    return min(pattern.rank for pattern in route.patterns)
