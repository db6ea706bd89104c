"""`Publication`, the result of ``app.publisher``, and its compiled form.

``publish`` passes a message to the bound encoder, the framer and the transport. `CompiledPublication` computes in
advance all values that do not depend on the message. Framing and transport are functions that are passed in (`Emit`,
`MakeFastPath`), so this module does not depend on a wire or on sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, get_args, overload

import attrs
from twisted.internet.defer import Deferred

from zroute.errors import EncodeError, NotRunningError, TopicError
from zroute.messages.bodies import body_encoder, runtime_encoder
from zroute.messages.budget import Budget, part
from zroute.messages.codecs import Codec
from zroute.messages.extras import NO_EXTRAS, Extras
from zroute.messages.topics import Pattern, segment_bytes
from zroute.options import COALESCED, TOPIC_CACHE
from zroute.publishing.fast_path import FastPath, MakeFastPath, PublicationPaths, TopicState
from zroute.publishing.headers import USE_HEADERS, WithHeaders
from zroute.publishing.history import History

__all__ = [
    "DONE",
    "Bridge",
    "Coalesce",
    "CompiledPublication",
    "Emit",
    "Encode",
    "Keep",
    "Outlet",
    "Overflow",
    "Publication",
    "Schedule",
    "SnapshotFunctions",
    "Subscribers",
    "Write",
    "bind_encoder",
    "capture_values",
    "encoder_by_type",
    "filled",
    "released",
]

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
R_co = TypeVar("R_co", covariant=True)
M_co = TypeVar("M_co", covariant=True)
BytesLike: TypeAlias = bytes | bytearray | memoryview
Encode = Callable[[Any], tuple[int, bytes]]
Write = Callable[[Any], bytes]

Emit = Callable[[bytes, int, bytes, "Mapping[str, Any] | None"], Awaitable[None]]
"""A function that sends ``(topic, codec number, body, headers)``.

It returns an awaitable that is done when the message is sent.
"""


@attrs.frozen
class Subscribers:
    """The functions of an app that report the subscribers of a publication.

    Attributes:
        wait: A function that takes ``(pattern, number, timeout in seconds)`` and waits for that number of subscribers.
        number: A function that returns the number of subscribers to topics of a pattern.
    """

    wait: Callable[[Pattern, int, float], Awaitable[None]]
    number: Callable[[Pattern], int]


_PUT_TIMEOUT = (
    "; put() has no timeout option: to limit the time, use asyncio.timeout(…) around the call, or addTimeout(…) "
    "of a Deferred"
)

NO_CAPTURES: Mapping[str, object] = MappingProxyType({})

Keep = Literal["last"] | None
"""With ``"last"``, new subscribers receive the latest message of each topic."""

Overflow = Literal["drop", "raise", "wait"]
"""The reaction of a publisher while the queue of a subscriber is full."""


@attrs.frozen
class Coalesce:
    """Settings for sending several messages of one topic in one frame.

    The first message of a topic is sent at once. Later messages are held and sent together at the end of the reactor's
    turn, or after ``seconds``. The messages are sent earlier when ``messages`` messages or 64,000 bytes are held. With
    ``overflow="wait"``, held messages are also sent as soon as the program awaits one of them.

    The app or publisher checks the values and raises SignatureError for a value out of range.

    Example:
        ```python
        app = App(pub="tcp://127.0.0.1:5556", coalesce=Coalesce(seconds=0.01, messages=500))
        ```

    Attributes:
        seconds: The time in seconds for which messages are held, 0 to 1. Default: 0, which means until the end of the
            turn.
        messages: The maximum number of messages in a frame, 2 to 1,000. Default: 100.
    """

    seconds: float = 0.0
    messages: int = COALESCED


_TOPIC, _SENDER, _COPIES = 300, 700, 3
"""Upper bounds for the memory of a topic: bytes of its entry, bytes of its fast path, and copies of its name.

A test compares them with the real memory use.
"""


@attrs.frozen
class Schedule:
    """The schedule of a timer.

    Attributes:
        every: The period in seconds.
        jitter: The random variation of each period, as a fraction of the period.
        initial_delay: The delay in seconds before the first call.
    """

    every: float
    jitter: float = 0.0
    initial_delay: float = 0.0


@attrs.frozen(eq=False)
class SnapshotFunctions:
    """The functions of ``app.publisher(snapshot=, topics=)``.

    Attributes:
        make: Returns the state of a topic. It takes captures of the topic by name.
        topics: Returns the captures of each topic; None for the topics that were published in this run.
        converters: A converter for each capture that ``make`` takes, by its name.
        where: The line of ``make``.
        returns: The return annotation of ``make``; None if unknown.
    """

    make: Callable[..., Any]
    topics: Callable[[], Iterable[Mapping[str, object]]] | None
    converters: Mapping[str, Callable[[bytes], Any]]
    where: str
    returns: Any = None


class _Done:
    """An awaitable that is already done, for any event loop.

    All calls return the same object, so an ignored result costs nothing.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield  # makes this a generator, as awaiting needs

    def __repr__(self) -> str:
        return "<done>"


DONE: Awaitable[None] = _Done()


@attrs.frozen
class _All:
    """An awaitable that is done when all of ``sent`` are done.

    The messages are sent even if the program does not await it.
    """

    sent: tuple[Awaitable[None], ...]

    def __await__(self) -> Generator[Any, None, None]:
        for each in self.sent:
            yield from each.__await__()


_Result: TypeAlias = M_co | WithHeaders[M_co] | None
"""The result of a function for one message; None publishes nothing."""


class _Gives(Protocol[P, R_co, M_co]):
    """For type checkers: a function whose results are messages of type M.

    P are the parameters of the function, and R is its result. A function must match both overloads: the first captures
    the result type, and the second restricts it.
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __call__(  # type: ignore[overload-cannot-match]  # it is never called by this one
        self, *args: P.args, **kwargs: P.kwargs
    ) -> _Result[M_co] | Awaitable[_Result[M_co]] | Iterable[_Result[M_co]] | AsyncIterable[_Result[M_co]]: ...


class Publication(Generic[T]):
    """The messages of one type and pattern that an app publishes.

    ``app.publisher(pattern, schema)`` returns a Publication. Call `publish`, or use the Publication as a decorator;
    ``App.publisher`` explains which functions can be decorated.
    """

    def __init__(
        self,
        pattern: Pattern,
        schema: Any,
        codec: Codec | None,
        schedule: Schedule | None,
        keep: Keep,
        coalesce: Coalesce | Literal[False] | None,
        where: str,
        register: Callable[[Publication[Any], Callable[..., Any]], None],
    ) -> None:
        self.pattern = pattern
        self.schema = schema
        self.codec = codec
        self.schedule = schedule
        self.keep: Keep = keep
        self.coalesce = coalesce
        self.history: History | None = None
        """The bounds of the history, or None if this publication has no history."""
        self.snapshot: SnapshotFunctions | None = None
        """The functions that return the state of a topic, or None if this publication has no snapshots."""
        self.where = where
        self._register = register
        self._outlets: tuple[CompiledPublication, ...] = ()
        self._fast_path: FastPath | None = None
        self._holds: list[Deferred[None]] = []
        self.subscriber_hooks: list[Any] = []
        """The records of the functions that `on_subscribers` has decorated."""
        self.register_hook: Callable[[list[Any], Callable[..., Any]], None] = list.append
        self._had_subscribers = False

    @overload
    def __call__(
        self: Publication[bytes] | Publication[memoryview], function: _Gives[P, R, BytesLike]
    ) -> Callable[P, R]: ...

    @overload
    def __call__(self, function: _Gives[P, R, T]) -> Callable[P, R]: ...

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Publish the results of ``function``, and return ``function`` unchanged.

        For type checkers, the function's return type must be T, ``WithHeaders[T]``, None, or an awaitable or iterator
        of these.

        Raises:
            SignatureError: ``function`` is not a function.
            AppFrozenError: The app is already compiled.
        """
        self._register(self, function)
        return function

    @overload
    def publish(
        self: Publication[bytes] | Publication[memoryview],
        message: BytesLike,
        /,
        *,
        headers: Mapping[str, Any] | None = None,
        **captures: object,
    ) -> Awaitable[None]: ...

    @overload
    def publish(
        self, message: T, /, *, headers: Mapping[str, Any] | None = None, **captures: object
    ) -> Awaitable[None]: ...

    def publish(
        self, message: Any, /, *, headers: Mapping[str, Any] | None = None, **captures: object
    ) -> Awaitable[None]:
        """Encode ``message`` and pass it to ZeroMQ, without blocking.

        If ``publish`` raises an error, the message is not sent to any subscriber.

        Example:
            ```python
            alerts.publish(Alert("late"), level="high")
            ```

        Args:
            message: A message of the schema. If the schema is bytes or memoryview, the message may be bytes, a
                bytearray or a memoryview.
            headers: A small map with text keys (tracked wire only).
            captures: Values for the captures of the pattern. If a value is missing, the message's attribute or key of
                that name is used.

        Returns:
            An awaitable that is done when the message is sent. Unless the app has ``overflow="wait"``, the awaitable is
                already done. The program may ignore it. Awaiting it raises HighWaterMarkError if the message could not
                be sent.

        Raises:
            NotRunningError: No app that includes this publication is running.
            UsageError: The app has no endpoint to publish to.
            TopicError: A capture is missing, or its value is not valid in a topic.
            EncodeError: The message does not match the schema, would not arrive unchanged, or exceeds ``max_message``.
            HighWaterMarkError: The queue of a subscriber is full (``overflow="raise"``), or too many messages are
                waiting (``overflow="wait"``).
            WrongThreadError: The caller is not on the reactor's thread; use `App.from_thread`.
        """
        # While one app runs the publication, `_fast_path` is also the attribute `publish` of this object. Programs
        # reach this method before that, or with a bound method from that time.
        if self._fast_path is not None:
            return self._fast_path.publish(message, headers=headers, **captures)
        return self._publish(message, headers, captures)

    def _publish(
        self, message: T, headers: Mapping[str, Any] | None, captures: Mapping[str, object]
    ) -> Awaitable[None]:
        # Not part of `publish`: a comprehension keeps its variables in cells, which would add a third to each call.
        outlets = self._outlets
        if not outlets:
            raise NotRunningError(
                f"cannot publish to {self.pattern.text!r} ({self.where}): no running app includes this "
                "publication. Include its Routes in an app, and publish while the app runs: in a handler, a "
                "timer, a function under @app.on_startup, or `async with app.running():`"
            )
        if len(outlets) == 1:
            return outlets[0].publish(message, headers, captures)
        sent = [outlet.publish(message, headers, captures) for outlet in outlets]
        waiting = tuple(each for each in sent if each is not DONE)
        return _All(waiting) if waiting else DONE

    async def wait_for_subscribers(self, number: int = 1, timeout: float = 10.0) -> None:
        """Wait until ``number`` subscribers have subscribed to this publication.

        These subscribers receive all messages that are published after the method returns. The method returns at once
        if ``number`` subscribers have already subscribed.

        Subscribers on the tracked wire are counted individually, even behind a proxy. All other subscribers together
        count as one, because ZeroMQ reports equal subscriptions only once. A subscriber that connects to several
        endpoints of the app counts once.

        Args:
            number: The number of subscribers.
            timeout: The maximum time in seconds.

        Raises:
            NotReadyError: Fewer than ``number`` subscribers subscribed before the timeout. The error contains the
                actual number.
            EndpointError: The app uses a transport that does not report subscribers. The ZeroMQ transport reports them.
                Under `TestApp`, the call returns at once, because all apps of the test are connected.
            NotRunningError: No app that includes this publication is running, or the app stops during the call.
        """
        outlets = self._outlets
        if not outlets:
            raise NotRunningError(
                f"cannot wait for subscribers of {self.pattern.text!r} ({self.where}): no running app includes "
                "this publication; wait in on_startup or later"
            )
        for outlet in outlets:
            await outlet.wait_for_subscribers(number, timeout)

    @property
    def subscribers(self) -> int:
        """The number of subscribers, as `wait_for_subscribers` counts them.

        The number is the sum over all running apps that include this publication, or 0 if no such app is running. Under
        `TestApp`, it is the number of the test's apps that subscribe.

        Raises:
            EndpointError: The app uses a transport that does not report subscribers. The ZeroMQ transport reports them.
        """
        return sum(outlet.subscribers for outlet in self._outlets)

    def on_subscribers(self, function: F) -> F:
        """Call a function when the first subscriber joins, and when the last one leaves.

        The function receives the number of subscribers: at least 1 after the first join, and 0 after the last
        subscriber has left. For example, the function can run an expensive producer only while there are subscribers.
        The function is not called for other changes of the number, or when the app stops.

        The function may be ``async``, and may take resources. If the function raises an error, zroute logs the error
        and counts it in ``app.stats.hook_errors``.

        Example:
            ```python
            frames = app.publisher("camera", bytes)

            @frames.on_subscribers
            def switch(number: int) -> None:
                camera.power(on=number > 0)
            ```

        Raises:
            SignatureError: The decorated object is not a function.
            AppFrozenError: The app is already compiled.
        """
        self.register_hook(self.subscriber_hooks, function)
        return function

    def notes_subscribers(self) -> bool:
        """Return True if the first subscriber has joined, or the last has left.

        The number of subscribers is compared with that at the last call.
        """
        before, self._had_subscribers = self._had_subscribers, self.subscribers > 0
        return before != self._had_subscribers

    def __repr__(self) -> str:
        return f"<Publication {self.pattern.text!r} at {self.where}>"


@attrs.define(eq=False)
class CompiledPublication:
    """A publication of one app with its whole pattern and a bound encoder.

    It can publish between `open` and `close`.

    Attributes:
        publication: The publication as seen by the user.
        pattern: The pattern, including prefixes.
        encode: A function that returns the codec number and the body of a message.
        write: A function that returns the body of a message; None if the messages have no common type.
        codec: The number of the codec that ``write`` uses; 0 if ``write`` is None.
        schema: The type of the messages; None if it is unknown.
        carries_headers: True if the wire of the app carries headers.
    """

    publication: Publication[Any]
    pattern: Pattern
    encode: Encode
    write: Write | None
    codec: int
    schema: Any
    carries_headers: bool = attrs.field(init=False, default=True)
    _emit: Emit | None = attrs.field(init=False, default=None)
    _subscribers: Subscribers | None = attrs.field(init=False, default=None)
    _fast: MakeFastPath | None = attrs.field(init=False, default=None)
    _topics: dict[tuple[object, ...], bytes] = attrs.field(init=False, factory=dict)
    _states: dict[str, TopicState] = attrs.field(init=False, factory=dict)
    _budget: Budget = attrs.field(init=False, factory=lambda: Budget(TOPIC_CACHE))
    _constant: bytes | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._constant = None if self.pattern.captures else self.pattern.subscription

    def open(
        self,
        emit: Emit,
        subscribers: Subscribers,
        fast: MakeFastPath | None = None,
        budget: Budget | None = None,
        *,
        carries_headers: bool = True,
    ) -> None:
        """Enable publishing.

        Args:
            emit: The general path.
            subscribers: The functions behind `Publication.wait_for_subscribers` and `Publication.subscribers`.
            fast: The functions that make the fast path; None if the publication has no fast path.
            budget: The memory limit for topics, shared by all publications of a run. Default: a separate limit.
            carries_headers: True if the wire carries headers.
        """
        self.carries_headers = carries_headers
        self._budget = budget or Budget(TOPIC_CACHE)
        self._budget.share(self._drop)
        self._emit = emit
        self._subscribers = subscribers
        self._fast = fast if self._may_be_fast else None
        self._among((*self.publication._outlets, self))

    def _among(self, outlets: tuple[CompiledPublication, ...]) -> None:
        """Make ``outlets`` the targets of the publication.

        Only a single target can have a fast path. It takes the place of the method `Publication.publish`.
        """
        publication = self.publication
        publication._outlets = outlets
        if publication._fast_path is not None:
            publication._fast_path.end()
            # A test may have replaced the function with one of its own, before the run or during it.
            if vars(publication).get("publish") is publication._fast_path.publish:
                del publication.publish
            publication._fast_path = None
        path = outlets[0]._make_fast_path() if len(outlets) == 1 else None
        if path is not None:
            publication._fast_path = path
            if "publish" not in vars(publication):
                publication.publish = path.publish  # type: ignore[method-assign]

    @property
    def _may_be_fast(self) -> bool:
        """True if the publication can have a fast path.

        A fast path supports messages of one type, without headers, to a constant topic or a topic with one capture. All
        other messages, and all errors, take the general path, which takes twice as long.
        """
        return self.write is not None and len(self.pattern.captures) < 2

    def _make_fast_path(self) -> FastPath | None:
        """Return the fast version of `Publication.publish`, or None."""
        fast, write, capture = self._fast, self.write, "".join(self.pattern.captures)
        if fast is None or write is None:
            return None
        topics, states = self._topics, self._states

        def first(message: Any, captures: Mapping[str, object], value: object) -> Awaitable[None]:
            # The general path checks the value, and stores the topic for the fast path.
            sent = self.publish(message, None, captures)
            topic = topics.get((value,)) if type(value) is str else None
            if topic is not None and type(value) is str and value not in states:
                states[value] = fast.state(topic)
            return sent

        paths = PublicationPaths(
            write, self.codec, self._constant, capture, states, self.publication._publish, self._publish_to, first
        )
        path = fast.path(paths)
        for name in ("__doc__", "__module__", "__qualname__"):
            setattr(path.publish, name, getattr(Publication.publish, name))
        return path

    def _publish_to(self, message: Any, topic: bytes) -> Awaitable[None]:
        return self.publish(message, topic=topic)

    def wait_for_subscribers(self, number: int, timeout: float) -> Awaitable[None]:
        """Wait for subscribers; see `Publication.wait_for_subscribers`.

        Raises:
            NotRunningError: The publication is closed.
        """
        if self._subscribers is None:
            raise NotRunningError(f"{self.publication} has no subscribers: its app has stopped")
        return self._subscribers.wait(self.pattern, number, timeout)

    @property
    def subscribers(self) -> int:
        """The number of subscribers."""
        return 0 if self._subscribers is None else self._subscribers.number(self.pattern)

    def close(self) -> None:
        """Disable publishing, and drop all data of the run. A second call does nothing.

        After the call, publishing raises NotRunningError.
        """
        self._emit = self._subscribers = self._fast = None
        self._topics.clear()
        self._states.clear()
        self._budget = Budget(TOPIC_CACHE)
        self._among(tuple(outlet for outlet in self.publication._outlets if outlet is not self))
        # Otherwise the next run would compare with the subscribers of this one, and not report its first subscriber.
        self.publication.notes_subscribers()

    def publish(
        self,
        message: Any,
        headers: Mapping[str, Any] | None = None,
        captures: Mapping[str, object] | None = None,
        inbound: Mapping[str, object] | None = None,
        topic: bytes | None = None,
    ) -> Awaitable[None]:
        """Publish a message on the general path; see `Publication.publish`.

        Args:
            message: The message.
            headers: Headers for the tracked wire.
            captures: Values for the captures of the pattern.
            inbound: The captures of the received message whose handler publishes this one.
            topic: The complete topic, if the caller already knows it. Captures are then ignored.
        """
        if self._emit is None:
            raise NotRunningError(f"cannot publish to {self.publication}: its app has stopped")
        try:
            # Before the topic: a message of a wrong type would otherwise be reported as a missing capture.
            number, body = self.encode(message)
        except EncodeError as error:
            reason: object = error
            if type(message) is WithHeaders:
                reason = USE_HEADERS
            elif type(message) is bytes and bytes in get_args(self.schema):
                reason = (
                    f"{error} (a publisher has one codec: declare another publisher, of type bytes, for raw bodies)"
                )
            error.args = (f"{self.publication} can't publish this message: {reason}",)
            raise
        if topic is None:
            topic = self._constant
            if topic is None or captures:
                topic = self._topic(message, captures or {}, inbound or {})
        return self._emit(topic, number, body, headers)

    def _topic(self, message: Any, captures: Mapping[str, object], inbound: Mapping[str, object]) -> bytes:
        values = capture_values(self.pattern, message, captures, inbound)
        if not all(type(value) is str for value in values):  # as keys, 1, True and 1.0 would be equal
            return filled(self.pattern, values)
        topic = self._topics.get(values)
        if topic is None:
            topic = self._topics[values] = filled(self.pattern, values)
            self._budget.miss()
            self._budget.take(self._size(topic))
        return topic

    def _size(self, topic: bytes) -> int:
        """Return the maximum memory of a topic in bytes, including its fast path."""
        # One copy is text, whose characters take up to 4 bytes each if it is not ASCII.
        copies = _COPIES if topic.isascii() else _COPIES + 3
        return _TOPIC + _SENDER * (self._fast is not None) + copies * len(topic)

    def _drop(self) -> None:
        topics, states, freed = self._topics, self._states, 0
        for values in part(topics):
            freed += self._size(topics.pop(values))
            states.pop(values[0], None)  # type: ignore[call-overload]
        self._budget.give_back(freed)


def capture_values(
    pattern: Pattern,
    message: Any,
    captures: Mapping[str, object],
    inbound: Mapping[str, object] = NO_CAPTURES,
    *,
    call: str = "publish",
) -> tuple[object, ...]:
    """Return the values of the captures of ``pattern``, in order.

    Args:
        pattern: The pattern of a topic.
        message: The message, whose attributes or keys fill captures without a value.
        captures: The values that the caller gave.
        inbound: The captures of the received message whose handler sends this one.
        call: The name of the method, for errors.

    Raises:
        TopicError: A capture has no value, or there is a value without a capture.
    """
    if captures and (unknown := captures.keys() - set(pattern.captures)):
        name, names = min(unknown), ", ".join(pattern.captures) or "none"
        hint = _PUT_TIMEOUT if (call, name) == ("put", "timeout") else ""
        raise TopicError(f"{pattern.text!r} has no capture {name!r}; it has {names}{hint}", topic=pattern.text)
    return tuple([_value(name, pattern, message, captures, inbound, call) for name in pattern.captures])


def _value(
    name: str,
    pattern: Pattern,
    message: Any,
    captures: Mapping[str, object],
    inbound: Mapping[str, object],
    call: str,
) -> object:
    if name in captures:
        return captures[name]
    if name in inbound:
        return inbound[name]
    found = message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
    if found is None:
        raise TopicError(
            f"{pattern.text!r} needs a value for {name!r}: call {call}(..., {name}=…), or {call} a message with an "
            f"attribute or key {name!r}",
            topic=pattern.text,
        )
    return found


def filled(pattern: Pattern, values: Sequence[object]) -> bytes:
    """Return the topic of ``pattern`` with ``values`` for its captures.

    Raises:
        TopicError: A value can't be a segment, or the topic is too long.
    """
    names, separator = pattern.captures, pattern.separator
    return pattern.topic(
        {name: segment_bytes(name, value, separator) for name, value in zip(names, values, strict=True)}
    )


@attrs.frozen(eq=False)
class Bridge:
    """A publication of another app, which publishes the results of a handler.

    Each call publishes with all apps that include the publication and are running at that time.
    """

    publication: Publication[Any]
    schema: Any

    @property
    def pattern(self) -> Pattern:
        """The pattern of the publication, without the prefixes of the other app."""
        return self.publication.pattern

    @property
    def carries_headers(self) -> bool:
        """True if the wires of all running apps with the publication carry headers."""
        return all(outlet.carries_headers for outlet in self.publication._outlets)

    def publish(
        self,
        message: Any,
        headers: Mapping[str, Any] | None = None,
        captures: Mapping[str, object] | None = None,
        inbound: Mapping[str, object] | None = None,
    ) -> Awaitable[None]:
        """Publish a message with each running app that includes the publication.

        Arguments and errors are the same as for `CompiledPublication.publish`.

        Raises:
            NotRunningError: No app that includes the publication is running.
        """
        outlets = self.publication._outlets
        if not outlets:
            raise NotRunningError(
                f"cannot publish to {self.publication}: the app of this publication is not running; run both apps "
                "together, as in `zroute run module:one module:other`"
            )
        sent = [outlet.publish(message, headers, captures, inbound) for outlet in outlets]
        waiting = tuple(each for each in sent if each is not DONE)
        return _All(waiting) if waiting else DONE

    def hold(self) -> Callable[[], None]:
        """Allow the apps of the publication to publish, even while they stop.

        They can publish until the returned function is called.
        """
        draining, holds = Deferred[None](), self.publication._holds
        holds.append(draining)

        def release() -> None:
            holds.remove(draining)
            draining.callback(None)

        return release


def released(publications: Iterable[Publication[Any]]) -> Deferred[None]:
    """Return a Deferred that fires when no `Bridge.hold` is active any more."""
    left = {hold for publication in publications for hold in publication._holds}
    waiting: Deferred[None] = Deferred()

    def end(_: None, hold: Deferred[None]) -> None:
        left.discard(hold)
        if not left and not waiting.called:
            waiting.callback(None)

    for hold in tuple(left):
        hold.addCallback(end, hold)
    if not left:
        waiting.callback(None)
    return waiting


Outlet = CompiledPublication | Bridge
"""A publication that receives the results of a handler."""


def bind_encoder(
    schema: Any, codec: Codec | None, default: Codec, extras: Extras = NO_EXTRAS
) -> tuple[Encode, Write | None, int]:
    """Return the encoder of a publication.

    Args:
        schema: The type of the messages; None to encode each message by its own type.
        codec: The codec of the publication, or None.
        default: The app's codec.
        extras: The additional values that the built-in codecs carry in this app.

    Returns:
        Three values. The first is a function that converts a message to ``(codec number, body)``. With a schema, the
            second is a function that converts a message to the body, and the third is the number of the codec. Without
            a schema, they are None and 0.

    Raises:
        SchemaError: The codec does not support the type.
    """
    if schema is None:
        return encoder_by_type(codec, default, extras), None, 0
    chosen, write = body_encoder(schema, codec=codec, default=default, extras=extras)
    number = chosen.number
    return lambda message: (number, write(message)), write, number


def encoder_by_type(codec: Codec | None, default: Codec, extras: Extras = NO_EXTRAS) -> Encode:
    """Return an encoder that encodes each message by its own type.

    The encoder returns ``(codec number, body)``. The arguments are the same as for `bind_encoder`.
    """
    known: dict[type, tuple[int, Callable[[Any], bytes]]] = {}

    def encode(message: Any) -> tuple[int, bytes]:
        if message is None:
            raise EncodeError(
                "None is not a message: to publish an empty message, use {} or an object of your own class"
            )
        found = known.get(type(message))
        if found is None:
            if type(message) is WithHeaders:
                raise EncodeError(USE_HEADERS)
            chosen, function = runtime_encoder(message, codec=codec, default=default, extras=extras)
            found = known[type(message)] = (chosen.number, function)
        return found[0], found[1](message)

    return encode
