"""Handle results and failures of handlers.

Results are published; errors are counted and logged. After an error, the message is published as a dead letter, or the
error is passed to an error hook.

No function in this module raises an error. An invalid message and a failed handler have the same three effects: zroute
increments a counter, writes a log line, and calls the nearest ``on_error`` function. The first few log lines appear in
full; further lines are only counted.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.awaiting import is_awaitable, loop_hint, was_cancelled
from zroute.declarations.records import ATTEMPTS, ErrorHook, Hook, Hooks, RouteInfo
from zroute.errors import DecodeError, EnvelopeError, HighWaterMarkError, JobFailedError, NotRunningError, Reject
from zroute.functions import name_of, raised_at
from zroute.logs import printable
from zroute.messages.codecs import JSON, MSGPACK, Codec, detect, is_own
from zroute.messages.frames import StatedMessage
from zroute.messages.schema import expected_classes, expected_tags
from zroute.messages.topics import Pattern, Topic
from zroute.messages.wire import MAGIC, NUL, Envelope, headers_of, lazy_envelopes, parse, peer_of, sent_at, split
from zroute.options import MAX_TOPIC, TOPIC_CACHE
from zroute.publishing.choices import Choices
from zroute.publishing.headers import WithHeaders, propagated
from zroute.publishing.producers import CompiledProducer
from zroute.publishing.publication import DONE, Outlet
from zroute.receiving.attempts import Executor
from zroute.receiving.dead_letters import make_dead_letter
from zroute.receiving.dispatch import UNDECODABLE, BoundRoute, CompiledRoute
from zroute.receiving.frames import RawFrames, head_of, raw_frames
from zroute.receiving.in_flight import InFlight, Reading, error_of
from zroute.stats import JobStats, RouteStats, Stats
from zroute.throttle import ThrottledLog

if TYPE_CHECKING:
    from zroute.jobs.queue import CompiledJobQueue

__all__ = ["Arrivals", "Results"]

_FIRST_BYTES = 48  # of a body or frame, in a log line
_REASON = 300  # characters of a decoder's text, which may quote the body


_NO_FACTS: Mapping[Any, Any] = MappingProxyType({})


@attrs.frozen(eq=False)
class _Failed:
    """The origin of a failed message: a route or a job queue.

    ``stats`` counts its dead letters.
    """

    name: str
    where: str
    topic: Topic
    captures: Mapping[str, str]
    stats: RouteStats | JobStats


@attrs.define(eq=False)
class Arrivals:
    """The facts about arriving messages that their frames do not contain.

    Attributes:
        wall: Returns the time in Unix seconds.
        peer: The name of the key of all publishers. None if it is unknown, or if the frames state it. The run sets it
            to None before it adds an endpoint with another peer.
    """

    wall: Callable[[], float]
    peer: str | None = None


class Results:
    """Handles the results and errors of the handlers of one run.

    Args:
        stats: The counters of the app.
        log: The logger of the app.
        arrivals: The facts about arriving messages that their frames do not contain.
        executor: Runs awaitables and hooks.
        choices: The options of the app: its codec, and the headers to copy to results.
        hooks: The app's hooks, which are called for errors and messages without a route.
        reading: Paused while the queue of a route is full.
        observe: Called with each error, and True if a hook has handled it.

    Attributes:
        carried: Returns the headers of a received message that the transport carries again. By default, all of them.
    """

    in_flight: type[InFlight] = InFlight

    def __init__(
        self,
        *,
        stats: Stats,
        log: logging.Logger,
        arrivals: Arrivals,
        executor: Executor,
        choices: Choices,
        hooks: Hooks,
        reading: Reading,
        observe: Callable[[BaseException, bool], None],
    ) -> None:
        self._stats = stats
        self._arrivals, self._wall = arrivals, arrivals.wall
        self.context, self.resources = executor.context, executor.resources
        self.envelope = lazy_envelopes(arrivals.wall, lambda: arrivals.peer)
        self._start = executor.start
        self._supply, self._emit, self._leave = executor.supply, executor.emit, executor.leave
        self._default = choices.codec
        self._propagates = choices.propagates
        self.carried: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = lambda headers: headers
        self._errors, self._unrouted = hooks.errors, hooks.unrouted
        self._observe = observe
        self._log = log
        self._said: set[str] = set()
        self._reports = ThrottledLog(log, executor.clock)
        self.unfinished = self.in_flight(self, self._reports, executor, reading)
        self.settle, self.gather = self.unfinished.settle, self.unfinished.gather
        self.release, self.release_soon = self.unfinished.release, self.unfinished.release_soon

    # -- from the deliver closures ----------------------------------------------------------------------

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
        """Count and log the last error of a handler or of its result.

        After that, publish dead letters or call a hook. SystemExit is not counted as an error: it stops the app, and
        the messages count as handled.
        """
        if isinstance(error, EnvelopeError):
            self._unreadable(delivery, error, raw, many, attempts)
            return
        if isinstance(error, SystemExit):
            delivery.route.stats.handled += many
            self._leave(error, delivery.route.name, delivery.route.route.where)
            return
        delivery.route.stats.handler_error += many
        rejected = isinstance(error, Reject)
        level, shown = (logging.WARNING, None) if rejected else (logging.ERROR, error)
        self._report_failure(
            "failed", delivery, error, many, level, f" after {attempts} attempts" * (attempts > 1), "", shown
        )
        self._observe(error, self._dispose(delivery, error, raws or (raw,), attempts))

    def attempt_failed(
        self, delivery: BoundRoute, error: BaseException, many: int, attempts: int, delay: float
    ) -> None:
        """Log a failed attempt that is not the last one."""
        next_one = f"; attempt {attempts} of {len(delivery.route.options.retry) + 1}, next attempt in {delay:g} s"
        self._report_failure("attempt", delivery, error, many, logging.WARNING, "", next_one)

    def thread_late(self, delivery: BoundRoute, many: int) -> None:
        """Log that a call in a thread takes longer than the route's timeout."""
        route = delivery.route
        self._reports(
            ("late", route.name, route.route.where),
            route.name,
            logging.WARNING,
            "%s at %s has run for more than %g s on %s: zroute can't interrupt a thread, so the call continues "
            "until it ends, and zroute discards its result",
            route.name,
            route.route.where,
            route.options.timeout,
            _messages(delivery, many),
        )

    def _report_failure(
        self,
        kind: str,
        delivery: BoundRoute,
        error: BaseException,
        many: int,
        level: int,
        attempts: str,
        next_one: str,
        shown: BaseException | None = None,
    ) -> None:
        route = delivery.route
        self._reports(
            (kind, route.name, route.route.where, type(error)),  # not the route, which may be detached by then
            route.name,
            level,
            "%s at %s failed on %s%s: %s: %s%s%s",
            route.name,
            route.route.where,
            _messages(delivery, many),
            attempts,
            type(error).__name__,
            printable(error),
            loop_hint(error),
            next_one,
            error=shown,
        )

    def _unreadable(self, delivery: BoundRoute, error: EnvelopeError, raw: RawFrames, many: int, attempts: int) -> None:
        """Count and log a malformed message: the handler could not read the envelope."""
        route = delivery.route
        route.stats.decode_error += many
        self._reports(
            ("unreadable", route.name, route.route.where),
            route.name,
            logging.WARNING,
            "%s: message of %s refused, because its envelope is malformed: %s; first bytes: %r",
            route.name,
            _shown(delivery.topic),
            printable(error.reason),
            raw_frames(raw)[0][:_FIRST_BYTES],
        )
        self._observe(error, self._hook(route.around.hooks, error, raw, facts=_facts(route, attempts)))

    def stale(self, route: CompiledRoute, raw: RawFrames) -> bool:
        """Return True if the message is older than the route allows; if so, count it."""
        limit = route.options.stale_after
        sent = None if limit is None else sent_at(raw_frames(raw))
        if limit is None or sent is None:
            return False
        age = self._wall() - sent
        self._stats.negative_ages += age < 0
        route.stats.stale += age > limit
        return age > limit

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Refuse a body that can't be decoded to the declared type."""
        decode_error = self._decode_error(deliveries, error, body, raw)
        # One body may fail for several routes, but each hook is called only once for it.
        called: set[int] = set()
        taken = False
        for delivery in deliveries:
            delivery.route.stats.decode_error += 1
            taken |= self._dispose(delivery, decode_error, (raw,), 0, called)
        self._observe(decode_error, taken)
        return UNDECODABLE

    def _decode_error(
        self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames
    ) -> DecodeError:
        """Log a body that can't be decoded, and return its error."""
        names = ", ".join(delivery.route.name for delivery in deliveries)
        topic = deliveries[0].topic
        schema = deliveries[0].route.call.schema
        reason = _reason(error) + expected_tags(schema, error) + expected_classes(schema, error)
        reason += _codec_hint(body, deliveries[0].route.options.codec, self._default, raw)
        decode_error = DecodeError(reason, topic=str(topic), route=names)
        decode_error.__cause__ = error
        self._reports(
            ("undecodable", names, deliveries[0].route.route.where),
            names,
            logging.WARNING,
            "%s: body of %s refused: %s; first bytes: %r",
            names,
            _shown(topic),
            reason,
            bytes(body[:_FIRST_BYTES]),
        )
        return decode_error

    # -- jobs -------------------------------------------------------------------------------------------

    def undecodable_job(self, delivery: BoundRoute, error: BaseException, body: bytes, raw: RawFrames) -> DecodeError:
        """Count and log a job whose body can't be decoded.

        Return the error that the worker reports to the owner.
        """
        return self._refused_job(delivery, self._decode_error((delivery,), error, body, raw), raw)

    def refused_job(self, delivery: BoundRoute, reason: str, raw: RawFrames) -> DecodeError:
        """Count and log a job that the handler can't receive, even if its body is valid.

        Return the error that the worker reports to the owner.
        """
        route = delivery.route
        key, text = ("refused", route.name, route.route.where), "%s: job %s refused: %s"
        self._reports(key, route.name, logging.WARNING, text, route.name, _shown(delivery.topic), printable(reason))
        return self._refused_job(delivery, DecodeError(reason, topic=str(delivery.topic), route=route.name), raw)

    def _refused_job(self, delivery: BoundRoute, decode_error: DecodeError, raw: RawFrames) -> DecodeError:
        delivery.route.stats.decode_error += 1
        self._hook(delivery.route.around.hooks, decode_error, raw, facts=_facts(delivery.route, 0))
        # True even without a hook: the owner of the job handles the error.
        self._observe(decode_error, True)
        return decode_error

    def failed_job(self, delivery: BoundRoute, error: BaseException, raw: RawFrames, many: int, attempt: int) -> None:
        """Count and log an error that a handler of jobs raised, and call a hook.

        The owner decides whether to retry the job. SystemExit is not counted as an error: it stops the app, and the job
        counts as handled here.
        """
        if isinstance(error, SystemExit):
            delivery.route.stats.handled += many
            self._leave(error, delivery.route.name, delivery.route.route.where)
            return
        delivery.route.stats.handler_error += many
        rejected = isinstance(error, Reject)
        level, shown = (logging.WARNING, None) if rejected else (logging.ERROR, error)
        self._report_failure("failed", delivery, error, many, level, "", f"; attempt {attempt}", shown)
        self._hook(delivery.route.around.hooks, error, raw, facts=_facts(delivery.route, attempt))
        self._observe(error, True)

    def given_up_job(
        self, queue: CompiledJobQueue, error: JobFailedError, captures: Mapping[str, str], raw: RawFrames
    ) -> None:
        """Publish the dead letter for a job that is not retried, or call a hook.

        ``raw`` is the job as a message, and ``captures`` contains the captured segments of its topic.
        """
        facts = {RouteInfo: None, ATTEMPTS: error.attempts}
        call = partial(self._hook, (self._errors,), error, facts=facts)
        failed = _Failed(queue.pattern.text, queue.queue.where, Topic(error.topic), captures, queue.owned.stats)
        taken = queue.dead is not None and self._publish_dead(failed, queue.dead, error, raw, error.attempts, call)
        self._observe(error, taken or call(raw))

    def abandoned(self, raw: RawFrames) -> bool:
        """Return False, because no caller waits for the result of a message."""
        return False

    def exits(self, error: SystemExit) -> None:
        """Stop the app because a function of ``Frames`` has raised SystemExit."""
        self._leave(error, "a function of Frames(…)", raised_at(error))

    def malformed(self, error: EnvelopeError, raw: RawFrames) -> None:
        """Log frames that are not a message, which the table has counted."""
        first = raw_frames(raw)[0]
        topic = raw.topic[:MAX_TOPIC] if isinstance(raw, StatedMessage) else first[:MAX_TOPIC].partition(NUL)[0]
        self._reports(
            "malformed",
            "malformed messages",
            logging.WARNING,
            "malformed message refused (topic %r, no route): %s; first bytes: %r",
            str(Topic.from_wire(topic)),
            printable(error.reason),
            bytes(first[:_FIRST_BYTES]),
        )
        self._observe(error, self._hook((self._errors,), error, raw, facts=_facts(None, 0)))

    def unrouted(self, raw: RawFrames) -> None:
        """Call the hooks for a message without a route, which the table has counted."""
        for hook in self._unrouted:
            self._call_hook(hook, (self._any_envelope(raw),))

    # -- full caches --------------------------------------------------------------------------------------

    def many_topics(self, known: int) -> None:
        """Log that the topic cache is full.

        This line and the lines of the next two methods are logged once per run. See
        `zroute.receiving.dispatch.DispatchCallbacks`.
        """
        self._once(
            "received more than %d topics, and the topic cache of %d MiB is full: messages of other topics take "
            "about ten times as long and are counted in stats.cache_misses. Subscribe to fewer topics, divide "
            "the topics among several processes, or move ids from topics into bodies",
            known,
            TOPIC_CACHE >> 20,
        )

    def many_publishers(self, topic: Topic, known: int) -> None:
        """Log that a topic has more publishers than the cache holds."""
        self._once(
            "more than %d publishers send to %r: messages of other publishers take about ten times as long and "
            "are counted in stats.cache_misses. Give each publisher its own topic, such as 'sensors.{name}'",
            known,
            str(topic),
        )

    def long_topic(self, topic: Topic) -> None:
        """Log that a topic is too long for the cache."""
        self._once(
            "the topic that begins with %r has %d bytes, but zroute does not cache topics of more than %d bytes. Each "
            "message with such a topic takes about ten times as long as others, and is counted in "
            "stats.cache_misses. The topic is everything before the first NUL: shorten it, or move headers and data "
            "out of it",
            str(topic[:_FIRST_BYTES]),
            len(topic.wire),
            MAX_TOPIC,
        )

    def _once(self, text: str, *facts: object) -> None:
        if text not in self._said:
            self._said.add(text)
            self._log.warning(text, *facts)

    # -- from producers ---------------------------------------------------------------------------------

    def propagated(self, delivery: BoundRoute, raw: RawFrames) -> Mapping[str, Any] | None:
        """Return the headers of a message that are copied to its results, or None.

        If the headers are malformed, no header is copied. The error is logged and passed to an ``on_error`` function.
        """
        if not any(outlet.carries_headers for outlet in delivery.route.outlets):
            return None
        try:
            headers = headers_of(head_of(raw, delivery.topic))
        except EnvelopeError as error:
            route = delivery.route
            self._reports(
                ("headers", route.name, route.route.where),
                route.name,
                logging.WARNING,
                "%s: the headers of %s are malformed, so zroute copies no headers to the results: %s",
                route.name,
                _shown(delivery.topic),
                printable(error.reason),
            )
            self._observe(error, self._hook(route.around.hooks, error, raw, facts=_facts(route, 1)))
            return None
        return self.carried(propagated(headers, self._propagates)) if headers else None

    def publish(
        self,
        outlets: Iterable[Outlet],
        value: Any,
        inbound: Mapping[str, object],
        name: str,
        headers: Mapping[str, Any] | None = None,
    ) -> Deferred[None] | None:
        """Publish ``value`` with all ``outlets``; count and log each failure.

        Args:
            outlets: The publications.
            value: The message, or a `WithHeaders`, whose headers override ``headers``.
            inbound: The captures of the received message.
            name: The name of the function that returned ``value``, for the log.
            headers: The headers that are copied from the received message, on wires that carry headers.

        Returns:
            A Deferred that fires when the queues of all subscribers have room for the value, or None if they already
                have room. The Deferred never fails.
        """
        own: Mapping[str, Any] | None = None
        try:
            if type(value) is WithHeaders:
                value, own = value.value, {**value.headers}
                if value is None:  # a middleware adds headers to any result
                    return None
        except BaseException as error:  # raised by a mapping that the user made
            for outlet in outlets:
                self._not_published(outlet, name, error)
            return None
        waiting = []
        for outlet in outlets:
            try:
                given = {**headers, **(own or {})} if headers and outlet.carries_headers else own
                sent = outlet.publish(value, given, None, inbound)
                if sent is not DONE:
                    waiting.append((outlet, sent))
            except BaseException as error:  # also SystemExit from a middleware, as for handlers
                self._not_published(outlet, name, error)
        return self._start(self._all_sent(waiting, name)) if waiting else None

    async def _all_sent(self, waiting: Iterable[tuple[Outlet, Awaitable[None]]], name: str) -> None:
        for outlet, sent in waiting:
            try:
                await sent
            except (HighWaterMarkError, NotRunningError):  # already counted and logged when the message was given up
                pass
            except (Exception, SystemExit) as error:  # from a middleware, which may return its own awaitable
                if was_cancelled(error):
                    raise
                self._not_published(outlet, name, error)

    def _not_published(self, outlet: Outlet, name: str, error: BaseException) -> None:
        """Count and log that a result was not published.

        SystemExit from a middleware stops the app.
        """
        if isinstance(error, SystemExit):
            self._leave(error, name, outlet.publication.where)
            return
        self._stats.publish_errors += 1
        self._reports(
            ("publish", outlet),
            name,
            logging.ERROR,
            "%s: the result was not published to %r: %s: %s",
            name,
            outlet.pattern.text,
            type(error).__name__,
            printable(error),
        )
        self._observe(error, False)

    def producer_failed(self, producer: CompiledProducer, error: BaseException, remedy: str) -> None:
        """Count and log an error that a timer's function or a generator raised.

        SystemExit stops the app.
        """
        if isinstance(error, SystemExit):
            self._leave(error, producer.name, producer.where)
            return
        self._stats.publish_errors += 1
        self._reports(
            ("producer", producer),
            producer.name,
            logging.ERROR,
            "%s at %s failed: %s: %s%s; %s",
            producer.name,
            producer.where,
            type(error).__name__,
            printable(error),
            loop_hint(error),
            remedy,
            error=error,
        )
        self._observe(error, False)

    def producer_finished(self, producer: CompiledProducer) -> None:
        """Log that a generator has ended."""
        self._reports(("finished", producer), producer.name, logging.INFO, "%s has no more values", producer.name)

    # -- at the end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Log the numbers of lines that were counted instead of logged."""
        self._reports.close()

    # -- dead letters -----------------------------------------------------------------------------------

    def _dispose(
        self,
        delivery: BoundRoute,
        error: BaseException,
        raws: Sequence[RawFrames],
        attempts: int,
        called: set[int] | None = None,
    ) -> bool:
        """Publish failed messages as dead letters, or call the nearest hook.

        Return True if the messages were published, or a hook was called. The hook is also called for dead letters that
        can't be published.
        """
        route = delivery.route
        call = partial(self._hook, route.around.hooks, error, facts=_facts(route, attempts), called=called)
        dead = route.options.dead
        if dead is None:
            return call(raws[0])
        failed = _Failed(route.name, route.route.where, delivery.topic, delivery.captures, route.stats)
        left = [raw for raw in raws if not self._publish_dead(failed, dead, error, raw, attempts, call)]
        return not left or call(left[0])

    def _publish_dead(
        self,
        failed: _Failed,
        dead: Pattern,
        error: BaseException,
        raw: RawFrames,
        attempts: int,
        call_hook: Callable[[RawFrames], bool],
    ) -> bool:
        """Publish one dead letter.

        Return False if publishing fails immediately. If it fails later, call the hook then.
        """
        try:
            letter = make_dead_letter(self.envelope(raw), dead, failed.captures, error, attempts)
            sent = self._emit(letter.topic, letter.codec, letter.body, letter.headers)
        except Exception as fault:
            self._stats.publish_errors += 1
            text = "%s at %s: the dead letter for %s was not published to %r: %s: %s"
            facts = (_shown(failed.topic), dead.text, type(fault).__name__, printable(fault))
            key = ("dead", failed.name, failed.where)
            self._reports(key, failed.name, logging.ERROR, text, failed.name, failed.where, *facts)
            return False
        stats = failed.stats
        stats.dead += 1
        if sent is not DONE:

            def not_sent(_: Failure) -> None:  # already counted and logged when the message was given up
                stats.dead -= 1
                if not call_hook(raw):
                    self._observe(error, False)

            self._start(sent).addErrback(not_sent)  # the letter may still be sent after a stop no longer waits for it
            self.unfinished.watch(self._start(sent), failed.name, lambda _: None, lambda: None)
        return True

    # -- hooks ------------------------------------------------------------------------------------------

    def _hook(
        self,
        chain: Sequence[Sequence[ErrorHook]],
        error: BaseException,
        raw: RawFrames,
        *,
        facts: Mapping[Any, Any],
        called: set[int] | None = None,
    ) -> bool:
        """Call the nearest hook. Return True if there is one.

        ``facts`` contains further arguments for the hook's parameters. A hook in ``called`` is not called again.
        """
        hook = _nearest(chain, error)
        if hook is None:
            return False
        if called is None or id(hook) not in called:
            if called is not None:
                called.add(id(hook))
            self._call_hook(hook, (error, self._any_envelope(raw)), facts)
        return True

    def _call_hook(self, hook: Hook, arguments: tuple[Any, ...], facts: Mapping[Any, Any] = _NO_FACTS) -> None:
        try:
            result = self._supply(hook.function, facts)(*arguments)
        except BaseException as error:
            self._hook_failed(hook, error)
            return
        if is_awaitable(result):

            def ended(result: Any) -> None:
                if isinstance(result, Failure):
                    self._hook_failed(hook, error_of(result))

            self.unfinished.watch(self._start(result), name_of(hook.function), ended, lambda: None)

    def _hook_failed(self, hook: Hook, error: BaseException) -> None:
        name = name_of(hook.function)
        if isinstance(error, SystemExit):
            self._leave(error, name, hook.where)
            return
        self._stats.hook_errors += 1
        text = "%s at %s, an error hook or fallback, failed: %s: %s%s"
        what = (type(error).__name__, printable(error), loop_hint(error))
        self._reports(("hook", hook), name, logging.ERROR, text, name, hook.where, *what, error=error)
        self._observe(error, False)

    def _any_envelope(self, raw: RawFrames) -> Envelope:
        """Return the envelope, even for frames that are not a valid message."""
        try:
            return parse(raw_frames(raw), self._wall(), peer_of(raw, self._arrivals.peer))
        except EnvelopeError:
            frames = raw_frames(raw)
            topic, _, body = frames[0].partition(NUL)
            body = frames[1] if len(frames) > 1 else body
            peer = peer_of(raw, self._arrivals.peer)
            return Envelope(Topic.from_wire(topic), body, frames, self._wall(), peer=peer)


def _facts(route: CompiledRoute | None, attempts: int) -> Mapping[Any, Any]:
    """Return the facts of an error, as arguments for the parameters of its hook."""
    return {RouteInfo: route and route.info, ATTEMPTS: attempts}


def _nearest(chain: Sequence[Sequence[ErrorHook]], error: BaseException) -> ErrorHook | None:
    """Return the hook for ``error`` from the innermost group with a matching hook.

    Within a group, the hook with the nearest error class in the class hierarchy is chosen.
    """
    order = type(error).__mro__
    for hooks in chain:
        near = [
            (order.index(kind), number, hook)
            for number, hook in enumerate(hooks)
            for kind in hook.kinds
            if kind in order
        ]
        if near:
            # Without the hooks, which can't be compared. The number decides between hooks for the same class.
            return min(near, key=lambda found: found[:2])[2]
    return None


def _messages(delivery: BoundRoute, many: int) -> str:
    """Return a description of the failed messages: the topic, or number and topic."""
    topic = _shown(delivery.topic)
    return topic if many == 1 else f"a list of {many} messages, the first of {topic}"


def _shown(topic: Topic) -> str:
    """Return the topic as a Python literal. A long topic is cut."""
    if len(topic) <= MAX_TOPIC:
        return repr(str(topic))
    return f"{str(topic[:MAX_TOPIC])!r}… ({len(topic)} characters)"


def _reason(error: BaseException) -> str:
    if isinstance(error, DecodeError):
        return printable(error.reason)
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    if isinstance(error, MemoryError):
        return "decoding the body needs more memory than is available"
    return f"{type(error).__name__}: {printable(error, _REASON)}"


def _codec_hint(body: bytes, of_route: Codec | None, default: Codec, raw: RawFrames) -> str:
    """Return a hint if the body seems to be encoded with another codec than expected."""
    looks, expected = detect(body), of_route or default
    if looks is None or looks.name == expected.name or is_own(expected):
        return ""
    if not isinstance(raw, StatedMessage) and split(raw_frames(raw))[1].startswith(MAGIC):
        return ""
    if looks is JSON and of_route is None and default is MSGPACK:  # JSON was tried; see `json_too`
        return ""
    return (
        f" (the body looks like {looks.name}: if the publisher sends {looks.name}, subscribe with codec={looks.name!r})"
    )
