"""Snapshots: the present state of a topic, for subscribers that need it.

A snapshot is a kept message that is made on demand. `zroute.publishing.retained` decides who receives which one, and
when; this module calls the user's functions.

**The rule.** A snapshot replaces all messages of its topic up to a number, and the subscriber applies the following
ones. It is therefore made in one step: first, all messages of the topic that are held for coalescing are sent. If a
message of the topic still waits in the send queue, the snapshot waits too. Then the function is called, and the
counters show the number of the last message. Nothing of the topic can be published in between, because the function is
a plain one on the reactor's thread, and its own attempts to publish to the topic are refused. The program must change
its state and publish the change without an ``await`` in between.

**Sharing.** Subscribers that join in the same turn of the reactor share a snapshot, as long as no message of the topic
was sent since it was made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from inspect import iscoroutine
from time import perf_counter
from typing import Any

import attrs

from zroute.clock import Clock
from zroute.errors import EncodeError, UsageError
from zroute.messages.topics import Pattern, matches
from zroute.publishing.publication import CompiledPublication, Emit, SnapshotFunctions, capture_values, filled

__all__ = ["Made", "NoSnapshot", "SnapshotCalls", "Snapshots"]

_SLICE_SECONDS = 0.005
_STEP = 200
"""A refresh of the topics ends after this time, in seconds, which it looks at after each `_STEP` topics."""


class NoSnapshot(Enum):
    """Why there is no snapshot.

    NOTHING: the function returned None. WAITS: a message of the topic waits to be sent. FAILED: the function failed.
    """

    NOTHING = "nothing"
    WAITS = "waits"
    FAILED = "failed"


@attrs.frozen(slots=True, eq=False)
class Made:
    """A snapshot: the number of its codec, its body, and its time.

    The time is that at which it was made, in nanoseconds since the Unix epoch.
    """

    codec: int
    body: bytes
    sent_at: int


@attrs.frozen(eq=False)
class SnapshotCalls:
    """The functions of a publisher that snapshots need.

    Attributes:
        flush: Sends the held messages of a topic.
        waits: Returns True while a message of a topic waits to be sent.
        numbers: Returns a value that changes with each message of a topic.
        made: Called after each snapshot that was made.
        failed: Called with a function of the user, the topic of the snapshot (None for ``topics``), and the error.
        add: Adds a topic that may have a snapshot.
        discard: Removes such a topic.
    """

    flush: Callable[[bytes], object]
    waits: Callable[[bytes], bool]
    numbers: Callable[[bytes], object]
    made: Callable[[], object]
    failed: Callable[[Callable[..., Any], bytes | None, BaseException], object]
    add: Callable[[bytes], object]
    discard: Callable[[bytes], object]


class Snapshots:
    """The snapshots of one run of a publisher.

    Args:
        clock: The reactor's clock.
        clock_ns: A function that returns the time in nanoseconds since the Unix epoch.
        limit: The maximum size of a body in bytes.
        outlets: The publications with ``snapshot=``.
        calls: The functions of the publisher.

    Attributes:
        making: The topic whose function is being called; empty between calls.
        patterns: The patterns of all topics with snapshots.
    """

    def __init__(
        self,
        clock: Clock,
        clock_ns: Callable[[], int],
        limit: int,
        outlets: Sequence[CompiledPublication],
        calls: SnapshotCalls,
    ) -> None:
        self._clock = clock
        self._clock_ns = clock_ns
        self._limit = limit
        self._outlets = outlets
        self._calls = calls
        self._sources: dict[bytes, CompiledPublication] = {}
        self._steps: Iterator[None] | None = None  # the present refresh
        self._begun = self._finished = 0  # the numbers of the last refreshes
        self._values: dict[CompiledPublication, dict[tuple[object, ...], bytes]] = {}
        self._made: dict[bytes, tuple[object, Made | NoSnapshot]] = {}
        self._turn: Any = None  # the timer that ends the sharing
        self._closed = False
        self.making: set[bytes] = set()
        self.patterns: Sequence[Pattern] = [outlet.pattern for outlet in outlets]

    def open(self) -> None:
        """Add the topics that are known without a message."""
        for outlet in self._outlets:
            if not outlet.pattern.captures and _functions(outlet).topics is None:
                self._add(outlet.pattern.subscription, outlet)

    def close(self) -> None:
        """Stop all work."""
        self._closed = True
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    # -- topics

    def noting(self, emit: Emit, outlet: CompiledPublication) -> Emit:
        """Return ``emit`` with a step that notes the topics that a publication uses."""
        sources, add = self._sources, self._add

        def emit_noted(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            sent = emit(topic, number, body, headers)
            if topic not in sources:
                add(topic, outlet)
            return sent

        return emit_noted if _functions(outlet).topics is None else emit

    def refusing(self, emit: Emit) -> Emit:
        """Return ``emit``, which refuses topics whose snapshot is being made."""
        making = self.making

        def emit_refused(topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Awaitable[None]:
            if topic in making:
                where = _functions(self._sources[topic]).where
                raise UsageError(
                    f"cannot publish to {topic.decode()!r}: the snapshot function of this topic ({where}) is being "
                    "called, and a message that it publishes could not be told from the state that it returns. "
                    "Publish after the function has returned"
                )
            return emit(topic, number, body, headers)

        return emit_refused

    def _add(self, topic: bytes, outlet: CompiledPublication) -> None:
        self._sources[topic] = outlet
        self._calls.add(topic)

    def forget(self, topic: bytes) -> None:
        """Make no more snapshots of a topic, because there are too many topics."""
        self._sources.pop(topic, None)

    def next_refresh(self) -> int:
        """Return the number of the next refresh that begins now or later.

        All refreshes of a turn of the reactor are one.
        """
        return self._finished if self._turn is not None and self._steps is None else self._begun + 1

    def refresh(self, number: int) -> tuple[float, bool]:
        """Continue a refresh: call the ``topics`` functions, and note the topics.

        Return the seconds that it took, and True if refresh ``number`` has ended. Otherwise, call this method again
        later: 10,000 new topics take a tenth of a second.
        """
        if self._finished >= number:
            return 0.0, True
        began = perf_counter()
        if self._steps is None:
            self._begun += 1
            self._steps = self._refresh()
        for _ in self._steps:
            if (spent := perf_counter() - began) > _SLICE_SECONDS:
                return spent, False
        self._steps, self._finished = None, self._begun
        self._share()
        return perf_counter() - began, self._finished >= number

    def _refresh(self) -> Iterator[None]:
        for outlet in self._outlets:
            functions = _functions(outlet)
            if functions.topics is None:
                continue
            try:
                yield from self._update(outlet, functions.topics())
            except BaseException as error:  # also SystemExit, for which the reactor would drop the socket
                self._calls.failed(functions.topics, None, error)

    def _update(self, outlet: CompiledPublication, returned: object) -> Iterator[None]:
        """Set the topics of a publication to what its function returned, in steps.

        Topics of the last call are not made again.
        """
        names, before = outlet.pattern.captures, self._values.get(outlet, {})
        if not isinstance(returned, Iterable) or isinstance(returned, Mapping):
            raise _wrong_topics(f"it returned {returned.__class__.__name__}", names)
        every = tuple(returned)
        now: dict[tuple[object, ...], bytes] = {}
        found: set[bytes] = set()
        for number, captures in enumerate(every, 1):
            if not isinstance(captures, Mapping):
                raise _wrong_topics(f"it returned {captures.__class__.__name__} for a topic", names)
            values = tuple([captures.get(name) for name in names])
            topic = before.get(values)
            if topic is None:
                topic = filled(outlet.pattern, capture_values(outlet.pattern, None, captures, call="topics"))
                if topic not in self._sources:
                    self._add(topic, outlet)
            if set(map(type, values)) <= {str}:  # as keys, 1, True and 1.0 would be equal
                now[values] = topic
            found.add(topic)
            if number % _STEP == 0:
                yield
        for topic in [topic for topic, owner in self._sources.items() if owner is outlet and topic not in found]:
            del self._sources[topic]
            self._calls.discard(topic)
        self._values[outlet] = now

    def _share(self) -> None:
        """Share what is made from now on until the end of this turn."""
        if self._turn is None and not self._closed:
            self._turn = self._clock.callLater(0, self._turn_over)

    def _turn_over(self) -> None:
        self._turn = None
        self._made.clear()

    # -- snapshots

    def make(self, topic: bytes) -> tuple[Made | NoSnapshot, float]:
        """Return the snapshot of a topic, and the seconds that it took to make."""
        outlet = self._sources.get(topic)
        if outlet is None:
            return NoSnapshot.NOTHING, 0.0
        self._calls.flush(topic)
        if self._calls.waits(topic):
            return NoSnapshot.WAITS, 0.0
        known = self._made.get(topic)
        if known is not None and known[0] == self._calls.numbers(topic):
            return known[1], 0.0
        began = perf_counter()
        made = self._call(outlet, topic)
        self._share()
        self._made[topic] = self._calls.numbers(topic), made
        return made, perf_counter() - began

    def _call(self, outlet: CompiledPublication, topic: bytes) -> Made | NoSnapshot:
        functions = _functions(outlet)
        self.making.add(topic)
        try:
            captured = matches(outlet.pattern, topic) or {}
            given = {name: convert(captured[name]) for name, convert in functions.converters.items()}
            state = functions.make(**given)
            if state is None:
                return NoSnapshot.NOTHING
            made = self._encoded(outlet, functions, topic, state)
        except BaseException as error:  # also SystemExit, for which the reactor would drop the socket
            self._calls.failed(functions.make, topic, error)
            return NoSnapshot.FAILED
        finally:
            self.making.discard(topic)
        self._calls.made()
        return made

    def _encoded(self, outlet: CompiledPublication, functions: SnapshotFunctions, topic: bytes, state: Any) -> Made:
        if iscoroutine(state):
            state.close()
            raise UsageError(
                f"the snapshot function at {functions.where} returned a coroutine; return the state itself, because "
                "messages could be published while the coroutine runs"
            )
        codec, body = outlet.encode(state)
        if len(body) > self._limit:
            raise EncodeError(
                f"the snapshot of {topic.decode()!r} has {len(body)} bytes, more than max_message={self._limit}; "
                "divide the state among several topics, or increase App(limits=Limits(max_message=…)) here and at the "
                "subscribers"
            )
        return Made(codec, body, self._clock_ns())


def _wrong_topics(fault: str, captures: Sequence[str]) -> UsageError:
    example = "{" + ", ".join(f"{name!r}: …" for name in captures) + "}"
    return UsageError(f"{fault}; expected a list with the captures of each topic, as in [{example}]")


def _functions(outlet: CompiledPublication) -> SnapshotFunctions:
    functions = outlet.publication.snapshot
    assert functions is not None
    return functions
