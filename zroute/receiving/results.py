"""What becomes of a message that was not just handled: published, counted, logged, given to a hook.

Nothing here raises. A peer's fault and a handler's failure each end as a counter, a log line (the first
few in full, the rest counted), and a call of the nearest ``on_error`` function.
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
_REASON = 300  # characters of what a decoder says, which may quote the body


class Results:
    """Takes what the handlers of one run return and raise; ``executor`` runs what is to be run for that.

    ``wall`` gives Unix seconds, ``default`` is the app's codec. Of the app's ``hooks`` it calls those for errors that
    belong to no route, and those for messages that no route took. ``reading`` pauses while a route is full.
    ``observe`` is told of each error, and whether a hook took it.
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
        """A handler raised or what it returned failed; it was given ``many`` messages, ``raw`` is the first."""
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
        """Whether the message is older than the route takes; counted then."""
        limit = delivery.route.options.stale_after
        sent = None if limit is None else sent_at(raw_frames(raw))
        if limit is None or sent is None:
            return False
        age = self._wall() - sent
        self._stats.negative_ages += age < 0
        delivery.route.stats.stale += age > limit
        return age > limit

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """The body is not of the type these deliveries declare."""
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
        """These frames are no message; the table has counted them."""
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
        """No route takes this topic; the table has counted it."""
        for hook in self._unrouted:
            self._call_hook(hook, (self._any_envelope(raw),))

    def envelope(self, raw: RawFrames) -> Envelope:
        """The message as it arrived. Raises EnvelopeError."""
        return parse(raw_frames(raw), self._wall())

    # -- what is more than can be known -------------------------------------------------------------------

    def many_topics(self, known: int) -> None:
        """See `zroute.receiving.dispatch.DispatchCallbacks`, also for the next two; each is logged once in a run."""
        self._once(
            "more than %d topics are received, which fill the %d MiB for what is known about topics: a message of "
            "another topic takes about ten times as long, and is counted in stats.cache_misses; subscribe to fewer, "
            "share them among several processes, or move ids from topics into bodies",
            known,
            TOPIC_CACHE >> 20,
        )

    def many_publishers(self, topic: Topic, known: int) -> None:
        """A topic has more publishers than are known at a time."""
        self._once(
            "more than %d publishers send to %r: a message of another one takes about ten times as long, and is "
            "counted in stats.cache_misses; give publishers topics of their own, such as 'sensors.{name}'",
            known,
            str(topic),
        )

    def long_topic(self, topic: Topic) -> None:
        """A topic is too long to be known."""
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
        """Publish what a function returned to all its publishers; a refusal is counted and logged.

        None, or what fires when nothing of it waits for subscribers without room any more. It does not fail.
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
        """A timer's function or a generator raised."""
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
        """A generator came to its end."""
        self._reports(("finished", producer), producer.name, logging.INFO, "%s has no more values", producer.name)

    # -- at the end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Say what the log held back."""
        self._reports.close()

    # -- hooks ------------------------------------------------------------------------------------------

    def _hook(
        self, chain: Sequence[Sequence[ErrorHook]], error: BaseException, raw: RawFrames, called: set[int] | None = None
    ) -> bool:
        """Call the nearest hook, once for all in ``called``; whether there is one."""
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
        """`envelope`, also for frames that are no message."""
        try:
            return self.envelope(raw)
        except EnvelopeError:
            frames = raw_frames(raw)
            topic, _, body = frames[0].partition(NUL)
            return Envelope(Topic.from_wire(topic), frames[1] if len(frames) > 1 else body, frames, self._wall())


async def _all_of(waiting: Iterable[Awaitable[None]]) -> None:
    for sent in waiting:
        with suppress(HighWaterMarkError, NotRunningError):  # counted and said where it was given up
            await sent


def _nearest(chain: Sequence[Sequence[ErrorHook]], error: BaseException) -> ErrorHook | None:
    """The hook of the innermost group that has one for ``error``, by the distance in its class hierarchy."""
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
    """The topic as Python writes text; of one that is too long the beginning, and its length."""
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
    """What to do when the body seems to be in another codec than the one the reader was told."""
    looks = detect(body)
    _, whole = split(raw_frames(raw))
    if looks is None or looks.name == codec.name or whole.startswith(MAGIC):
        return ""
    return f" (it starts like {looks.name}: if the publisher sends that, subscribe with codec={looks.name!r})"
