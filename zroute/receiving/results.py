"""Handle results and failures of handlers.

Results are published; errors are counted, logged and passed to error hooks.

Nothing here raises. An invalid message and a failed handler have the same three effects: a counter, a log line (the
first few in full, the rest counted), and a call of the nearest ``on_error`` function.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.awaiting import is_awaitable, loop_hint
from zroute.declarations.records import ErrorHook, Hook, Hooks
from zroute.errors import DecodeError, EnvelopeError, HighWaterMarkError, NotRunningError
from zroute.functions import name_of
from zroute.logs import printable
from zroute.messages.codecs import Codec, detect
from zroute.messages.topics import Topic
from zroute.messages.wire import MAGIC, NUL, Envelope, parse, sent_at, split
from zroute.options import MAX_TOPIC, TOPIC_CACHE
from zroute.publishing.producers import CompiledProducer
from zroute.publishing.publication import DONE, CompiledPublication
from zroute.receiving.dispatch import UNDECODABLE, BoundRoute
from zroute.receiving.frames import RawFrames, raw_frames
from zroute.receiving.in_flight import Executor, InFlight, Reading, error_of
from zroute.stats import Stats
from zroute.throttle import ThrottledLog

__all__ = ["Results"]

_FIRST_BYTES = 48  # of a body or frame, in a log line
_REASON = 300  # characters of a decoder's text, which may quote the body


class Results:
    """Handles the results and errors of the handlers of one run.

    Args:
        stats: The counters of the app.
        log: The logger of the app.
        wall: Returns the time in Unix seconds.
        executor: Runs awaitables and hooks.
        default: The codec of the app.
        hooks: The app's hooks. Called for errors without a route, and for messages that no route takes.
        reading: Paused while a route is full.
        observe: Called with each error, and True if a hook took it.
    """

    def __init__(
        self,
        *,
        stats: Stats,
        log: logging.Logger,
        wall: Callable[[], float],
        executor: Executor,
        default: Codec,
        hooks: Hooks,
        reading: Reading,
        observe: Callable[[BaseException, bool], None],
    ) -> None:
        self._stats = stats
        self._wall = wall
        self._start = executor.start
        self._supply = executor.supply
        self._default = default
        self._errors, self._unrouted = hooks.errors, hooks.unrouted
        self._observe = observe
        self._log = log
        self._said: set[str] = set()
        self._reports = ThrottledLog(log, executor.clock)
        self.unfinished = InFlight(self, self._reports, executor, reading)
        self.settle, self.gather = self.unfinished.settle, self.unfinished.gather
        self.release, self.release_soon = self.unfinished.release, self.unfinished.release_soon

    # -- from the deliver closures ----------------------------------------------------------------------

    def failed(self, delivery: BoundRoute, error: BaseException, raw: RawFrames, many: int = 1) -> None:
        """Count and log an error of a handler or of its result, and call a hook.

        The handler was called with ``many`` messages, of which ``raw`` is the first.
        """
        route, topic = delivery.route, _shown(delivery.topic)
        route.stats.handler_error += many
        self._reports(
            ("failed", route.name, route.route.where, type(error)),  # not the route, which may be detached meanwhile
            route.name,
            logging.ERROR,
            "%s at %s failed on %s: %s: %s%s",
            route.name,
            route.route.where,
            topic if many == 1 else f"a list of {many} messages, the first of {topic}",
            type(error).__name__,
            printable(error),
            loop_hint(error),
            error=error,
        )
        self._observe(error, self._hook(route.hooks, error, raw))

    def stale(self, delivery: BoundRoute, raw: RawFrames) -> bool:
        """Return True if the message is older than the route allows, and count it."""
        limit = delivery.route.options.stale_after
        sent = None if limit is None else sent_at(raw_frames(raw))
        if limit is None or sent is None:
            return False
        age = self._wall() - sent
        self._stats.negative_ages += age < 0
        delivery.route.stats.stale += age > limit
        return age > limit

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Refuse a body that is not of the type that these deliveries declare."""
        names = ", ".join(delivery.route.name for delivery in deliveries)
        topic = deliveries[0].topic
        reason = _reason(error) + _codec_hint(body, deliveries[0].route.options.codec or self._default, raw)
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
            body[:_FIRST_BYTES],
        )
        called: set[int] = set()
        hooked = False
        for delivery in deliveries:
            delivery.route.stats.decode_error += 1
            hooked |= self._hook(delivery.route.hooks, decode_error, raw, called)
        self._observe(decode_error, hooked)
        return UNDECODABLE

    def malformed(self, error: EnvelopeError, raw: RawFrames) -> None:
        """Log frames that are not a message, which the table has counted."""
        first = raw_frames(raw)[0]
        self._reports(
            "malformed",
            "malformed messages",
            logging.WARNING,
            "malformed message refused (topic %r, no route): %s; first bytes: %r",
            str(Topic.from_wire(first[:255].partition(NUL)[0])),
            printable(error.reason),
            bytes(first[:_FIRST_BYTES]),
        )
        self._observe(error, self._hook((self._errors,), error, raw))

    def unrouted(self, raw: RawFrames) -> None:
        """Call the hooks for a message without a route, which the table has counted."""
        for hook in self._unrouted:
            self._call_hook(hook, (self._any_envelope(raw),))

    def envelope(self, raw: RawFrames) -> Envelope:
        """Return the message as it arrived.

        Raises EnvelopeError if its header is malformed.
        """
        return parse(raw_frames(raw), self._wall())

    # -- what is more than can be known -------------------------------------------------------------------

    def many_topics(self, known: int) -> None:
        """Log that the topic cache is full.

        This line and the next two are logged once in a run. See `zroute.receiving.dispatch.DispatchCallbacks`.
        """
        self._once(
            "more than %d topics are received, which fill the %d MiB for what is known about topics: a message of "
            "another topic takes about ten times as long, and is counted in stats.cache_misses; subscribe to fewer, "
            "share them among several processes, or move ids from topics into bodies",
            known,
            TOPIC_CACHE >> 20,
        )

    def many_publishers(self, topic: Topic, known: int) -> None:
        """Log that a topic has more publishers than the cache holds."""
        self._once(
            "more than %d publishers send to %r: a message of another one takes about ten times as long, and is "
            "counted in stats.cache_misses; give publishers topics of their own, such as 'sensors.{name}'",
            known,
            str(topic),
        )

    def long_topic(self, topic: Topic) -> None:
        """Log that a topic is too long for the cache."""
        self._once(
            "a topic of %d bytes was received, and nothing is kept for topics over %d: their messages take about ten "
            "times as long, and are counted in stats.cache_misses; the topic is what stands before the first NUL, or "
            "the first part: shorten it, or send headers and data behind it. It begins %r",
            len(topic.wire),
            MAX_TOPIC,
            str(topic[:_FIRST_BYTES]),
        )

    def _once(self, text: str, *facts: object) -> None:
        if text not in self._said:
            self._said.add(text)
            self._log.warning(text, *facts)

    # -- from producers ---------------------------------------------------------------------------------

    def publish(
        self, outlets: Iterable[CompiledPublication], value: Any, inbound: Mapping[str, object], name: str
    ) -> Deferred[None] | None:
        """Publish ``value`` with all ``outlets``; count and log each refusal.

        Returns:
            A Deferred that fires when no subscriber's full queue delays the value any more, or None if none does. It
            never fails.
        """
        waiting = []
        for outlet in outlets:
            try:
                sent = outlet.publish(value, None, None, inbound)
                if sent is not DONE:
                    waiting.append(sent)
            except Exception as error:
                self._stats.publish_errors += 1
                self._reports(
                    ("publish", outlet),
                    name,
                    logging.ERROR,
                    "%s: what it returned was not published to %r: %s: %s",
                    name,
                    outlet.pattern.text,
                    type(error).__name__,
                    printable(error),
                )
                self._observe(error, False)
        return self._start(_all_of(waiting)) if waiting else None

    def producer_failed(self, producer: CompiledProducer, error: BaseException, remedy: str) -> None:
        """Count and log an error of a timer's function or of a generator."""
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
        """Log the lines that were held back."""
        self._reports.close()

    # -- hooks ------------------------------------------------------------------------------------------

    def _hook(
        self, chain: Sequence[Sequence[ErrorHook]], error: BaseException, raw: RawFrames, called: set[int] | None = None
    ) -> bool:
        """Call the nearest hook. Return True if there is one.

        A hook that is in ``called`` is not called again.
        """
        hook = _nearest(chain, error)
        if hook is None:
            return False
        if called is None or id(hook) not in called:
            if called is not None:
                called.add(id(hook))
            self._call_hook(hook, (error, self._any_envelope(raw)))
        return True

    def _call_hook(self, hook: Hook, arguments: tuple[Any, ...]) -> None:
        try:
            result = self._supply(hook.function)(*arguments)
        except BaseException as error:
            self._hook_failed(hook, error)
            return
        if is_awaitable(result):

            def ended(result: Any) -> None:
                if isinstance(result, Failure):
                    self._hook_failed(hook, error_of(result))

            self.unfinished.watch(self._start(result), name_of(hook.function), ended, lambda: None)

    def _hook_failed(self, hook: Hook, error: BaseException) -> None:
        self._stats.hook_errors += 1
        name = name_of(hook.function)
        text = "%s at %s, an error or fallback hook, failed itself: %s: %s%s"
        what = (type(error).__name__, printable(error), loop_hint(error))
        self._reports(("hook", hook), name, logging.ERROR, text, name, hook.where, *what, error=error)
        self._observe(error, False)

    def _any_envelope(self, raw: RawFrames) -> Envelope:
        """Return the envelope, also for frames that are not a message."""
        try:
            return self.envelope(raw)
        except EnvelopeError:
            frames = raw_frames(raw)
            topic, _, body = frames[0].partition(NUL)
            return Envelope(Topic.from_wire(topic), frames[1] if len(frames) > 1 else body, frames, self._wall())


async def _all_of(waiting: Iterable[Awaitable[None]]) -> None:
    for sent in waiting:
        with suppress(HighWaterMarkError, NotRunningError):  # counted and logged when it was given up
            await sent


def _nearest(chain: Sequence[Sequence[ErrorHook]], error: BaseException) -> ErrorHook | None:
    """Return the hook for ``error`` in the innermost group that has one.

    Within a group, the hook whose error class is nearest in the class hierarchy wins.
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
            return min(near, key=lambda found: found[:2])[2]
    return None


def _shown(topic: Topic) -> str:
    """Return the topic as a Python literal; a long one is cut, with its length."""
    if len(topic) <= MAX_TOPIC:
        return repr(str(topic))
    return f"{str(topic[:MAX_TOPIC])!r}… ({len(topic)} characters)"


def _reason(error: BaseException) -> str:
    if isinstance(error, DecodeError):
        return printable(error.reason)
    if isinstance(error, RecursionError):
        return "it nests too deep"
    if isinstance(error, MemoryError):
        return "it claims more memory than there is"
    return f"{type(error).__name__}: {printable(error, _REASON)}"


def _codec_hint(body: bytes, codec: Codec, raw: RawFrames) -> str:
    """Return a hint if the body seems to be encoded with another codec than expected."""
    looks = detect(body)
    _, whole = split(raw_frames(raw))
    if looks is None or looks.name == codec.name or whole.startswith(MAGIC):
        return ""
    return f" (it starts like {looks.name}: if the publisher sends that, subscribe with codec={looks.name!r})"
