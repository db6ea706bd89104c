"""`Publication`, the result of ``app.publisher``, and its compiled form.

A message passes ``publish``, the bound encoder, the framer and the transport. Everything that does not depend on the
message is computed in advance in `CompiledPublication`. Framing and transport are passed in as functions (`Emit`,
`MakeFastPath`), so this module does not depend on a wire or on sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Mapping
from functools import partial
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import attrs

from zroute.errors import EncodeError, NotRunningError, TopicError
from zroute.messages.bodies import body_encoder, runtime_encoder
from zroute.messages.budget import Budget, part
from zroute.messages.codecs import Codec
from zroute.messages.topics import Pattern, segment_bytes
from zroute.options import COALESCED, TOPIC_CACHE

__all__ = [
    "DONE",
    "Coalesce",
    "CompiledPublication",
    "Emit",
    "Encode",
    "FastPath",
    "Keep",
    "MakeFastPath",
    "Overflow",
    "Publication",
    "Schedule",
    "Write",
    "bind_encoder",
    "encoder_by_type",
]

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
M_co = TypeVar("M_co", covariant=True)
Encode = Callable[[Any], tuple[int, bytes]]
Write = Callable[[Any], bytes]

Emit = Callable[[bytes, int, bytes, "Mapping[str, Any] | None"], Awaitable[None]]
"""Sends ``(topic, codec number, body, headers)``.

It returns an awaitable that is done when the message is sent.
"""

FastPath = Callable[[Any, "Mapping[str, object] | None"], Awaitable[None]]
"""Publishes ``(message, captures)``."""

MakeFastPath = Callable[[bytes, int, Write, FastPath], FastPath]
"""Returns the fast path of a topic, from ``(topic, codec number, write, general)``.

``write`` encodes the body. Calls with captures, and messages that ``write`` refuses, are passed to ``general``.
"""

WaitForSubscribers = Callable[[Pattern, int, float], Awaitable[None]]
"""Waits for ``(pattern, number of subscribers, timeout in seconds)``."""

Keep = Literal["last"] | None
"""With ``"last"``, new subscribers receive the latest message of each topic."""

Overflow = Literal["drop", "raise", "wait"]
"""The reaction of a publisher while the queue of a subscriber is full."""


@attrs.frozen
class Coalesce:
    """Settings for sending several messages of one topic in one frame.

    The first message of a topic is sent at once. Later messages are held and sent together at the end of the reactor's
    turn, or after ``seconds``. They are sent earlier when ``messages`` or 64,000 bytes are held. With
    ``overflow="wait"`` they are also sent as soon as one of them is awaited.

    The app or publisher checks the values and raises SignatureError for a value out of range.

    Example:
        ```python
        app = App(pub="tcp://0.0.0.0:5556", coalesce=Coalesce(seconds=0.01, messages=500))
        ```

    Attributes:
        seconds: The seconds for which messages are held, 0 to 1. Default: 0, until the end of the turn.
        messages: The maximum number of messages in a frame, 2 to 1,000. Default: 100.
    """

    seconds: float = 0.0
    messages: int = COALESCED


_TOPIC, _SENDER, _COPIES = 300, 2_400, 3
"""Upper limits of memory per topic: bytes of its entry, bytes of its fast path, and stored copies of its name.

A test compares them with the real use of memory.
"""


@attrs.frozen
class Schedule:
    """The schedule of a timer.

    Attributes:
        every: The period in seconds.
        jitter: The random variation of each period as a fraction of it.
        initial_delay: The delay in seconds before the first call.
    """

    every: float
    jitter: float = 0.0
    initial_delay: float = 0.0


class _Done:
    """An awaitable that is already done, for any event loop.

    All sends share one object, so an ignored result costs nothing.
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

    The messages are sent whether or not it is awaited.
    """

    sent: tuple[Awaitable[None], ...]

    def __await__(self) -> Generator[Any, None, None]:
        for each in self.sent:
            yield from each.__await__()


class _Gives(Protocol[P, R_co, M_co]):
    """For type checkers: a function whose results are messages of type M.

    It has parameters P and result R. A function must match both overloads. The first captures its result type, and the
    second restricts that type.
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __call__(  # type: ignore[overload-cannot-match]  # it is never called by this one
        self, *args: P.args, **kwargs: P.kwargs
    ) -> M_co | Awaitable[M_co | None] | Iterable[M_co | None] | AsyncIterable[M_co | None] | None: ...


class Publication(Generic[T]):
    """The messages of one type and pattern that an app publishes.

    ``app.publisher(pattern, schema)`` returns it. Call `publish`, or use it as a decorator; ``App.publisher`` explains
    which functions it can decorate.
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
        self.where = where
        self._register = register
        self._outlets: tuple[CompiledPublication, ...] = ()
        self._fast_path: FastPath | None = None

    def __call__(self, function: _Gives[P, R, T]) -> Callable[P, R]:
        """Publish the results of ``function``, and return it unchanged.

        For type checkers, its return type must be T, None, or an awaitable or iterator of these.

        Raises:
            SignatureError: ``function`` is not a function.
            AppFrozenError: The app is already compiled.
        """
        self._register(self, function)
        return cast("Callable[P, R]", function)

    def publish(
        self, message: T, /, *, headers: Mapping[str, Any] | None = None, **captures: object
    ) -> Awaitable[None]:
        """Encode ``message`` and pass it to ZeroMQ, without blocking.

        Errors are raised before anything is sent.

        Example:
            ```python
            alerts.publish(Alert("late"), level="high")
            ```

        Args:
            message: A message of the schema.
            headers: A small map with text keys (tracked wire only).
            captures: Values for the captures of the pattern. A missing value is read from the attribute or key of
                that name in the message.

        Returns:
            An awaitable that is done when the message is sent. That is at once, unless the app has
            ``overflow="wait"``. It may be ignored. It raises HighWaterMarkError if the message could not be sent.

        Raises:
            NotRunningError: No app that includes this publication is running.
            TopicError: A capture is missing, or its value is not valid in a topic.
            EncodeError: The message is not of the schema, would not arrive unchanged, or exceeds ``max_message``.
            HighWaterMarkError: The queue of a subscriber is full (``overflow="raise"``), or too many messages wait
                (``overflow="wait"``).
            WrongThreadError: The caller is not on the reactor's thread; use `App.from_thread`.
        """
        fast_path = self._fast_path
        if fast_path is not None and not headers:
            return fast_path(message, captures)
        return self._publish(message, headers, captures)

    def _publish(
        self, message: T, headers: Mapping[str, Any] | None, captures: Mapping[str, object]
    ) -> Awaitable[None]:
        # Not part of `publish`: a comprehension keeps its variables in cells, which would add a third to each call.
        outlets = self._outlets
        if not outlets:
            raise NotRunningError(
                f"cannot publish to {self.pattern.text!r} ({self.where}): no app that includes it is running; publish "
                "from a handler, a timer, or a function under @app.on_startup, and include its Routes in that app"
            )
        if len(outlets) == 1:
            return outlets[0].publish(message, headers, captures)
        sent = [outlet.publish(message, headers, captures) for outlet in outlets]
        waiting = tuple(each for each in sent if each is not DONE)
        return _All(waiting) if waiting else DONE

    async def wait_for_subscribers(self, number: int = 1, timeout: float = 10.0) -> None:
        """Wait until ``number`` subscribers have subscribed to this publication.

        They receive messages that are published after it returns. It returns at once if they have already subscribed.

        Subscribers on the tracked wire are counted individually, also behind a proxy. All others count as one
        subscriber, because ZeroMQ reports equal subscriptions only once. A subscriber that connects to several
        endpoints of the app counts once.

        Args:
            number: The number of subscribers.
            timeout: The maximum time in seconds.

        Raises:
            NotReadyError: Fewer subscribers came in time. The error names their number.
            NotRunningError: No app that includes this publication is running, or the app stops.
        """
        outlets = self._outlets
        if not outlets:
            raise NotRunningError(
                f"cannot wait for subscribers of {self.pattern.text!r} ({self.where}): no app that includes it is "
                "running; call it in on_startup or later"
            )
        for outlet in outlets:
            await outlet.wait_for_subscribers(number, timeout)

    def __repr__(self) -> str:
        return f"<Publication {self.pattern.text!r} at {self.where}>"


@attrs.define(eq=False)
class CompiledPublication:
    """A publication of one app with its whole pattern and a bound encoder.

    It can publish between `open` and `close`.

    Attributes:
        publication: The publication that the user has.
        pattern: The pattern, including prefixes.
        encode: Returns the codec number and the body of a message.
        write: Returns the body of a message; None if the messages have no common type.
        codec: The number of the codec of ``write``; 0 without it.
        schema: The type of the messages; None if it is unknown.
    """

    publication: Publication[Any]
    pattern: Pattern
    encode: Encode
    write: Write | None
    codec: int
    schema: Any
    _emit: Emit | None = attrs.field(init=False, default=None)
    _wait: WaitForSubscribers | None = attrs.field(init=False, default=None)
    _fast_path: FastPath | None = attrs.field(init=False, default=None)
    _topics: dict[tuple[object, ...], bytes] = attrs.field(init=False, factory=dict)
    _senders: dict[object, FastPath] = attrs.field(init=False, factory=dict)
    _budget: Budget = attrs.field(init=False, factory=lambda: Budget(TOPIC_CACHE))
    _constant: bytes | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._constant = None if self.pattern.captures else self.pattern.subscription

    def open(
        self,
        emit: Emit,
        wait_for_subscribers: WaitForSubscribers,
        make_fast_path: MakeFastPath | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Enable publishing.

        Args:
            emit: The general path.
            wait_for_subscribers: The function behind `Publication.wait_for_subscribers`.
            make_fast_path: The factory for fast paths; None if there are none.
            budget: The memory limit for topics, shared by all publications of a run. Default: a separate limit.
        """
        self._budget = budget or Budget(TOPIC_CACHE)
        self._budget.share(self._drop)
        self._emit = emit
        self._wait = wait_for_subscribers
        self._fast_path = self._make_fast_path(make_fast_path) if make_fast_path is not None else None
        self._among((*self.publication._outlets, self))

    def _among(self, outlets: tuple[CompiledPublication, ...]) -> None:
        """Make ``outlets`` the targets of the publication.

        Only a single target can have a fast path.
        """
        self.publication._outlets = outlets
        self.publication._fast_path = outlets[0]._fast_path if len(outlets) == 1 else None

    def _make_fast_path(self, make_fast_path: MakeFastPath) -> FastPath | None:
        """Return a fast version of `publish` for the most common kind of message.

        Return None if the publication cannot have one. It supports messages of one type, without headers, to a constant
        topic or a topic with one capture. All other messages, and all errors, take the general path, which takes half
        as long again.
        """
        if self.write is None or len(self.pattern.captures) > 1:
            return None
        if self.pattern.captures:
            return self._make_fast_path_by_capture(make_fast_path, self.write, self.pattern.captures[0])
        assert self._constant is not None
        return make_fast_path(self._constant, self.codec, self.write, self._publish_general)

    def _make_fast_path_by_capture(self, make_fast_path: MakeFastPath, write: Write, name: str) -> FastPath:
        general, number, topics = self._publish_general, self.codec, self._topics
        senders = self._senders

        def fast_path(message: Any, captures: Mapping[str, object] | None) -> Awaitable[None]:
            value = captures.get(name) if captures else getattr(message, name, None)
            send = senders.get(value) if type(value) is str and (not captures or len(captures) < 2) else None
            if send is not None:
                return send(message, None)
            sent = general(message, captures)
            topic = topics.get((value,)) if type(value) is str else None
            if topic is not None and value not in senders:
                senders[value] = make_fast_path(topic, number, write, partial(general, topic=topic))
            return sent

        return fast_path

    def _publish_general(
        self, message: Any, captures: Mapping[str, object] | None, topic: bytes | None = None
    ) -> Awaitable[None]:
        return self.publish(message, None, captures, None, topic)

    def wait_for_subscribers(self, number: int, timeout: float) -> Awaitable[None]:
        """Wait as `Publication.wait_for_subscribers` does.

        Raises:
            NotRunningError: It is closed.
        """
        if self._wait is None:
            raise NotRunningError(f"{self.publication} has no subscribers: its app has stopped")
        return self._wait(self.pattern, number, timeout)

    def close(self) -> None:
        """Disable publishing, and drop all data of the run. A second call does nothing.

        After that publishing raises NotRunningError.
        """
        self._emit = self._wait = self._fast_path = None
        self._topics.clear()
        self._senders.clear()
        self._budget = Budget(TOPIC_CACHE)
        self._among(tuple(outlet for outlet in self.publication._outlets if outlet is not self))

    def publish(
        self,
        message: Any,
        headers: Mapping[str, Any] | None = None,
        captures: Mapping[str, object] | None = None,
        inbound: Mapping[str, object] | None = None,
        topic: bytes | None = None,
    ) -> Awaitable[None]:
        """Publish a message as `Publication.publish` does, by the general path.

        Args:
            message: The message.
            headers: Headers for the tracked wire.
            captures: Values for the captures of the pattern.
            inbound: The captures of the received message whose handler publishes this one.
            topic: The complete topic, if it is already known. Captures are then ignored.
        """
        if self._emit is None:
            raise NotRunningError(f"cannot publish to {self.publication}: its app has stopped")
        try:
            # Before the topic: a message of a wrong type would otherwise be reported as a missing capture.
            number, body = self.encode(message)
        except EncodeError as error:
            error.args = (f"{self.publication} can't publish this message: {error}",)
            raise
        if topic is None:
            topic = self._constant
            if topic is None or captures:
                topic = self._topic(message, captures or {}, inbound or {})
        return self._emit(topic, number, body, headers)

    def _topic(self, message: Any, captures: Mapping[str, object], inbound: Mapping[str, object]) -> bytes:
        names = self.pattern.captures
        unknown = captures.keys() - set(names)
        if unknown:
            raise TopicError(
                f"{self.pattern.text!r} has no capture {sorted(unknown)[0]!r}; it has {', '.join(names) or 'none'}",
                topic=self.pattern.text,
            )
        values = tuple(self._value(name, message, captures, inbound) for name in names)
        if not all(type(value) is str for value in values):  # as keys, 1, True and 1.0 would be equal
            return self._joined(values)
        topic = self._topics.get(values)
        if topic is None:
            topic = self._topics[values] = self._joined(values)
            self._budget.miss()
            self._budget.take(self._size(topic))
        return topic

    def _size(self, topic: bytes) -> int:
        """Return the maximum bytes that a topic needs in memory, including a fast path."""
        return _TOPIC + _SENDER * (self._fast_path is not None) + _COPIES * len(topic)

    def _drop(self) -> None:
        for values in part(self._topics):
            self._budget.give_back(self._size(self._topics.pop(values)))
            self._senders.pop(values[0], None)

    def _joined(self, values: tuple[object, ...]) -> bytes:
        names = self.pattern.captures
        segments = {name: segment_bytes(name, value) for name, value in zip(names, values, strict=True)}
        return self.pattern.topic(segments)

    def _value(self, name: str, message: Any, captures: Mapping[str, object], inbound: Mapping[str, object]) -> object:
        if name in captures:
            return captures[name]
        if name in inbound:
            return inbound[name]
        found = message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
        if found is None:
            raise TopicError(
                f"{self.pattern.text!r} needs a value for {name!r}: call publish(..., {name}=…), "
                f"or publish a message with an attribute or key {name!r}",
                topic=self.pattern.text,
            )
        return found


def bind_encoder(schema: Any, codec: Codec | None, default: Codec) -> tuple[Encode, Write | None, int]:
    """Return the encoder of a publication.

    Args:
        schema: The type of the messages; None to encode each message by its own type.
        codec: The codec of the publication, or None.
        default: The app's codec.

    Returns:
        A function from a message to ``(codec number, body)``, and, with a schema, a function from a message to the
        body and the number of the codec. Without a schema these two are None and 0.

    Raises:
        SchemaError: The codec does not support the type.
    """
    if schema is None:
        return encoder_by_type(codec, default), None, 0
    chosen, write = body_encoder(schema, codec=codec, default=default)
    number = chosen.number
    return lambda message: (number, write(message)), write, number


def encoder_by_type(codec: Codec | None, default: Codec) -> Encode:
    """Return an encoder that encodes each message by its own type.

    It returns ``(codec number, body)``.
    """
    known: dict[type, tuple[int, Callable[[Any], bytes]]] = {}

    def encode(message: Any) -> tuple[int, bytes]:
        if message is None:
            raise EncodeError("None is not a message: publish {} or an object of your own class for an empty message")
        found = known.get(type(message))
        if found is None:
            chosen, function = runtime_encoder(message, codec=codec, default=default)
            found = known[type(message)] = (chosen.number, function)
        return found[0], found[1](message)

    return encode
