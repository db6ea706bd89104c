"""What becomes of a message that was not just handled: awaited, published, counted, logged, given to a hook.

Nothing here raises. A peer's fault and a handler's failure each end as a counter, a log line (the first
few in full, the rest counted), and a call of the nearest ``on_error`` function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zroute.awaiting import is_awaitable
from zroute.delivery.reports import Clock, Reports
from zroute.delivery.stats import Stats
from zroute.errors import DecodeError, EnvelopeError
from zroute.messages.codecs import Codec, detect
from zroute.messages.topics import Topic
from zroute.messages.wire import MAGIC, NUL, Envelope, parse
from zroute.producers import CompiledProducer, Start, drive
from zroute.routing.deliver import UNDECODABLE, Delivery, Raw, frames_of
from zroute.routing.parameters import name_of
from zroute.routing.publications import Outlet
from zroute.routing.routes import ErrorHook

__all__ = ["Outcomes"]

_FIRST_BYTES = 48  # of a body or frame, in a log line

UnroutedHook = Callable[[Envelope], Any]


@attrs.define(eq=False)
class _Unfinished:
    delivery: Delivery | None
    name: str


class Outcomes:
    """The outcomes of one run of an app. ``clock`` is the reactor, ``wall`` gives Unix seconds.

    ``start`` runs an awaitable and returns its Deferred; ``default`` is the app's codec; ``hooks`` are the
    app's own for errors that belong to no route, ``unrouted`` the functions for messages that no route took.
    """

    def __init__(
        self,
        *,
        stats: Stats,
        log: logging.Logger,
        clock: Clock,
        wall: Callable[[], float],
        start: Start,
        default: Codec,
        hooks: Sequence[ErrorHook],
        unrouted: Sequence[UnroutedHook],
    ) -> None:
        self._stats = stats
        self._clock = clock
        self._wall = wall
        self._start = start
        self._default = default
        self._hooks = tuple(hooks)
        self._unrouted = tuple(unrouted)
        self._reports = Reports(log, clock)
        self._unfinished: dict[Deferred[Any], _Unfinished] = {}
        self._idle: list[Deferred[None]] = []

    # -- from the deliver closures ----------------------------------------------------------------------

    def failed(self, delivery: Delivery, error: BaseException, raw: Raw) -> None:
        """A handler raised or what it returned failed."""
        route = delivery.route
        route.stats.handler_error += 1
        self._reports(
            ("failed", route, type(error)),
            route.name,
            logging.ERROR,
            "%s at %s failed on %r: %s: %s%s",
            route.name,
            route.route.where,
            str(delivery.topic),
            type(error).__name__,
            error,
            _loop_hint(error),
            error=error,
        )
        self._hook(route.hooks, error, raw)

    def undecodable(self, deliveries: Sequence[Delivery], error: BaseException, body: bytes, raw: Raw) -> int:
        """The body is not of the type these deliveries declare."""
        names = ", ".join(delivery.route.name for delivery in deliveries)
        topic = deliveries[0].topic
        reason = _reason(error) + _codec_hint(body, deliveries[0].route.route.codec or self._default, raw)
        decode_error = DecodeError(reason, topic=str(topic), route=names)
        decode_error.__cause__ = error
        self._reports(
            ("undecodable", deliveries[0].route),
            names,
            logging.WARNING,
            "%s: body of %r refused: %s; first bytes: %r",
            names,
            str(topic),
            reason,
            body[:_FIRST_BYTES],
        )
        called: set[int] = set()
        for delivery in deliveries:
            delivery.route.stats.decode_error += 1
            self._hook(delivery.route.hooks, decode_error, raw, called)
        return UNDECODABLE

    def malformed(self, error: EnvelopeError, raw: Raw) -> None:
        """These frames are no message; the table has counted them."""
        first = frames_of(raw)[0]
        self._reports(
            "malformed",
            "malformed messages",
            logging.WARNING,
            "malformed message refused (topic %r, no route): %s; first bytes: %r",
            str(Topic.from_wire(first[:255].partition(NUL)[0])),
            error.reason,
            bytes(first[:_FIRST_BYTES]),
        )
        self._hook((self._hooks,), error, raw)

    def unrouted(self, raw: Raw) -> None:
        """No route takes this topic; the table has counted it."""
        for function in self._unrouted:
            self._call_hook(function, (self._envelope(raw),))

    def settle(self, delivery: Delivery, result: Any, raw: Raw) -> None:
        """A handler returned something: wait for it, drive it, or publish it."""
        outlets = delivery.route.outlets
        if is_awaitable(result):
            self._await(delivery, self._start(result), raw)
        elif outlets and (hasattr(result, "__next__") or hasattr(result, "__anext__")):
            values = drive(result, lambda value: self._derive(delivery, value), self._clock, self._start)
            self._await(delivery, values, raw)
        else:
            delivery.route.stats.handled += 1
            self._derive(delivery, result)

    def _await(self, delivery: Delivery, running: Deferred[Any], raw: Raw) -> None:
        stats = delivery.route.stats
        stats.in_flight += 1
        self._unfinished[running] = _Unfinished(delivery, delivery.route.name)

        def ended(result: Any) -> None:
            if self._unfinished.pop(running, None) is None:
                return  # given up at a stop, and counted there
            stats.in_flight -= 1
            if isinstance(result, Failure):
                self.failed(delivery, _error_of(result), raw)
            else:
                stats.handled += 1
                if result is not None:
                    self._derive(delivery, result)
            self._tell_if_idle()

        running.addBoth(ended)

    def _derive(self, delivery: Delivery, value: Any) -> None:
        if value is not None:
            self.publish(delivery.route.outlets, value, delivery.captures, delivery.route.name)

    # -- from producers ---------------------------------------------------------------------------------

    def publish(self, outlets: Iterable[Outlet], value: Any, inbound: Mapping[str, object], name: str) -> None:
        """Publish what a function returned to all its publishers; a refusal is counted and logged."""
        for outlet in outlets:
            try:
                outlet.publish(value, None, None, inbound)
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
                    error,
                )

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
            error,
            _loop_hint(error),
            remedy,
            error=error,
        )

    def producer_finished(self, producer: CompiledProducer) -> None:
        """A generator came to its end."""
        self._reports(("finished", producer), producer.name, logging.INFO, "%s has no more values", producer.name)

    # -- at the end -------------------------------------------------------------------------------------

    def idle(self) -> Deferred[None]:
        """Fires when no handler is unfinished."""
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        self._tell_if_idle()
        return waiting

    def give_up(self) -> dict[str, int]:
        """Cancel what is unfinished and count it as dropped: the names of the handlers, and how many of each."""
        names: dict[str, int] = {}
        unfinished, self._unfinished = self._unfinished, {}
        for running, what in unfinished.items():
            names[what.name] = names.get(what.name, 0) + 1
            if what.delivery is not None:
                what.delivery.route.stats.in_flight -= 1
                what.delivery.route.stats.dropped_at_shutdown += 1
            running.addErrback(lambda _: None)
            running.cancel()
        self._tell_if_idle()
        return names

    def close(self) -> None:
        """Say what the log held back."""
        self._reports.close()

    def _tell_if_idle(self) -> None:
        if not self._unfinished:
            waiting, self._idle = self._idle, []
            for deferred in waiting:
                deferred.callback(None)

    # -- hooks ------------------------------------------------------------------------------------------

    def _hook(
        self, chain: Sequence[Sequence[ErrorHook]], error: BaseException, raw: Raw, called: set[int] | None = None
    ) -> None:
        hook = _nearest(chain, error)
        if hook is None or (called is not None and id(hook) in called):
            return
        if called is not None:
            called.add(id(hook))
        self._call_hook(hook.function, (error, self._envelope(raw)))

    def _call_hook(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            result = function(*arguments)
        except BaseException as error:
            self._hook_failed(function, error)
            return
        if is_awaitable(result):
            running = self._start(result)
            self._unfinished[running] = _Unfinished(None, name_of(function))

            def ended(result: Any) -> None:
                if self._unfinished.pop(running, None) is None:
                    return  # given up at a stop
                if isinstance(result, Failure):
                    self._hook_failed(function, _error_of(result))
                self._tell_if_idle()

            running.addBoth(ended)

    def _hook_failed(self, function: Callable[..., Any], error: BaseException) -> None:
        self._stats.hook_errors += 1
        name = name_of(function)
        text = "%s, an error or fallback hook, failed itself: %s: %s"
        self._reports(("hook", function), name, logging.ERROR, text, name, type(error).__name__, error, error=error)

    def _envelope(self, raw: Raw) -> Envelope:
        frames = frames_of(raw)
        try:
            return parse(frames, self._wall())
        except EnvelopeError:
            topic, _, body = frames[0].partition(NUL)
            return Envelope(Topic.from_wire(topic), frames[1] if len(frames) > 1 else body, frames, self._wall())


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


def _error_of(failure: Failure) -> BaseException:
    return failure.value or RuntimeError("a failure without an error")


def _reason(error: BaseException) -> str:
    if isinstance(error, DecodeError):
        return error.reason
    if isinstance(error, RecursionError):
        return "it nests too deep"
    if isinstance(error, MemoryError):
        return "it claims more memory than there is"
    return f"{type(error).__name__}: {str(error)[:300]}"


def _loop_hint(error: BaseException) -> str:
    """What to do where asyncio was awaited without its loop, or a Deferred in one of its tasks."""
    if isinstance(error, RuntimeError) and "no running event loop" in str(error):
        return " (to await asyncio, run on its loop: zroute run --reactor asyncio)"
    if isinstance(error, RuntimeError) and "Task got bad yield: <Deferred" in str(error):
        return " (a task of asyncio can't await a Deferred: await zroute.as_awaitable(deferred))"
    return ""


def _codec_hint(body: bytes, codec: Codec, raw: Raw) -> str:
    """What to do when the body seems to be in another codec than the one the reader was told."""
    looks = detect(body)
    whole = raw.partition(NUL)[2] if isinstance(raw, bytes) else raw[1]
    if looks is None or looks.name == codec.name or whole.startswith(MAGIC):
        return ""
    return f" (it starts like {looks.name}: if the publisher sends that, subscribe with codec={looks.name!r})"
