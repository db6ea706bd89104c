"""Publications: what ``app.publisher`` returns, and its compiled form.

A message goes out as ``publish`` -> bound encoder -> framer -> the transport. All that does not depend on
the message is worked out in `CompiledPublication`; who moves the frames is an argument (`Emit`).
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
"""Sends ``(topic, codec number, body, headers)``; returns an awaitable that is done when it need not wait."""

FastPath = Callable[[Any, "Mapping[str, object] | None"], Awaitable[None]]
"""Publishes ``(message, captures)``."""

MakeFastPath = Callable[[bytes, int, Write, FastPath], FastPath]
"""Makes what publishes messages to one topic, of ``(topic, codec number, write, general)``.

``write`` makes the body; captures, and messages that it refuses, are left to ``general``.
"""

WaitForSubscribers = Callable[[Pattern, int, float], Awaitable[None]]
"""Waits for ``(pattern, number of subscribers, timeout in seconds)``."""

Keep = Literal["last"] | None
"""Whether those who join get the latest message of each topic."""

Overflow = Literal["drop", "raise", "wait"]
"""What a publisher does while the queue of a subscriber is full."""


@attrs.frozen
class Coalesce:
    """How messages of one topic travel together in one frame.

    The first goes at once. Those that are published behind it within the same turn of the reactor, or within
    ``seconds`` (0 to 1; default 0: the turn), go together at its end, or sooner: when there are ``messages`` of them
    (2 to 1,000; default 100) or 64,000 bytes. With ``overflow="wait"`` they go when one of them is awaited, too. Other
    numbers are refused by the app or the publisher that it is given to.
    """

    seconds: float = 0.0
    messages: int = COALESCED


_TOPIC, _SENDER, _COPIES = 300, 2_400, 3
"""Bytes of a topic made from captures, and of what publishes to it by its fast path; and how often the topic is held.
These are upper limits, which a test compares with what is really taken."""


@attrs.frozen
class Schedule:
    """When a timer runs: each ``every`` seconds, spread by ``jitter`` (a fraction), after ``initial_delay``."""

    every: float
    jitter: float = 0.0
    initial_delay: float = 0.0


class _Done:
    """An awaitable that is done, for any event loop: one object for all sends, so that ignoring it is free."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield  # makes this a generator, as awaiting needs

    def __repr__(self) -> str:
        return "<done>"


DONE: Awaitable[None] = _Done()


@attrs.frozen
class _All:
    """An awaitable that is done when all of ``sent`` are; they go on by themselves."""

    sent: tuple[Awaitable[None], ...]

    def __await__(self) -> Generator[Any, None, None]:
        for each in self.sent:
            yield from each.__await__()


class _Gives(Protocol[P, R_co, M_co]):
    """A function of parameters P that returns R, and with that messages of type M, for type checkers.

    A function is of this type if it is of both overloads: the first tells its result, the second bounds it.
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __call__(  # type: ignore[overload-cannot-match]  # it is never called by this one
        self, *args: P.args, **kwargs: P.kwargs
    ) -> M_co | Awaitable[M_co | None] | Iterable[M_co | None] | AsyncIterable[M_co | None] | None: ...


class Publication(Generic[T]):
    """One kind of message that an app publishes, made by ``app.publisher(pattern, schema)``.

    Call `publish` on it, or put it above a function as a decorator: see ``App.publisher`` for what is then
    published when.
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
        """Publish what ``function`` returns or yields; returns the function unchanged.

        Type checkers compare its return type with the schema: T, None, or an awaitable or iterator of these.
        """
        self._register(self, function)
        return cast("Callable[P, R]", function)

    def publish(
        self, message: T, /, *, headers: Mapping[str, Any] | None = None, **captures: object
    ) -> Awaitable[None]:
        """Encode ``message`` and hand it to ZeroMQ, without blocking.

        ``captures`` fill the braces of the pattern; one that is not given is read from the message's
        attribute or key of that name. ``headers`` is a small map with text keys (tracked wire only).

        Returns an awaitable that is done at once unless the app has to wait; it can be ignored.
        Raises, before anything is sent: NotRunningError; TopicError for a capture that is missing or makes
        no topic; EncodeError for a message that is not of the schema, would not arrive as it was sent, or
        is larger than the app's ``max_message``; HighWaterMarkError as the app's ``overflow`` says, which the awaitable
        also raises when the message was given up.
        """
        fast_path = self._fast_path
        if fast_path is not None and not headers:
            return fast_path(message, captures)
        return self._publish(message, headers, captures)

    def _publish(
        self, message: T, headers: Mapping[str, Any] | None, captures: Mapping[str, object]
    ) -> Awaitable[None]:
        # Not in `publish`: what a comprehension uses stands in cells, whose making is a third of that call.
        outlets = self._outlets
        if not outlets:
            raise NotRunningError(
                f"{self} was published to while no app with it runs: publish from a handler, a timer, "
                "or a function under @app.on_startup, and include its Routes in that app"
            )
        if len(outlets) == 1:
            return outlets[0].publish(message, headers, captures)
        sent = [outlet.publish(message, headers, captures) for outlet in outlets]
        waiting = tuple(each for each in sent if each is not DONE)
        return _All(waiting) if waiting else DONE

    async def wait_for_subscribers(self, number: int = 1, timeout: float = 10.0) -> None:
        """Wait until ``number`` subscribers take topics of this publication: what is published then is for them.

        Subscribers that track are counted one by one, also behind a proxy; all others together count as one, since
        ZeroMQ tells of a subscription once. One that connects to several of the app's endpoints is one. Returns
        at once where there are so many already. ``timeout`` is in seconds. Raises NotReadyError, which says how many
        there were, and NotRunningError.
        """
        outlets = self._outlets
        if not outlets:
            raise NotRunningError(
                f"wait_for_subscribers() of {self} while no app with it runs: call it from on_startup on"
            )
        for outlet in outlets:
            await outlet.wait_for_subscribers(number, timeout)

    def __repr__(self) -> str:
        return f"<Publication {self.pattern.text!r} at {self.where}>"


@attrs.define(eq=False)
class CompiledPublication:
    """A publication of one app, compiled: prefix joined, encoder bound.

    Where all its messages are of one type, ``write`` makes their bodies in ``codec``. Closed until `open` is given
    where to send; `close` makes it refuse again.
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
        """From now on messages go to ``emit``, also those given to the publication itself.

        ``make_fast_path`` makes what does the same for one topic and codec, if nothing else is to be done with them.
        ``budget`` bounds what all publications of a run keep of topics; by default this one has its own.
        """
        self._budget = budget or Budget(TOPIC_CACHE)
        self._budget.share(self._drop)
        self._emit = emit
        self._wait = wait_for_subscribers
        self._fast_path = self._make_fast_path(make_fast_path) if make_fast_path is not None else None
        self._among((*self.publication._outlets, self))

    def _among(self, outlets: tuple[CompiledPublication, ...]) -> None:
        """From now on these are what the publication publishes to; one that is alone may have a fast path."""
        self.publication._outlets = outlets
        self.publication._fast_path = outlets[0]._fast_path if len(outlets) == 1 else None

    def _make_fast_path(self, make_fast_path: MakeFastPath) -> FastPath | None:
        """`publish` for what is published most, with all that stays the same done before.

        That are messages of one type, without headers, to a topic that is constant or has one capture, which is given
        or which the message names. All else, and each error, takes the general path, which takes half as long again.
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
        """See `Publication.wait_for_subscribers`. Raises NotRunningError when it is closed."""
        if self._wait is None:
            raise NotRunningError(f"{self.publication} has no subscribers any more: its app has stopped")
        return self._wait(self.pattern, number, timeout)

    def close(self) -> None:
        """Publishing raises NotRunningError again, and nothing of the run is kept. Closing twice is nothing."""
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
        """See `Publication.publish`; ``inbound`` are the captures of the message that caused this one.

        With ``topic``, which is what captures have made already, they are not looked at.
        """
        if self._emit is None:
            raise NotRunningError(f"{self.publication} was published to after its app stopped")
        try:
            number, body = self.encode(message)  # first: a message of another type has other captures, too
        except EncodeError as error:
            error.args = (f"{self.publication} was given what it can't publish: {error}",)
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
        if not all(type(value) is str for value in values):  # 1, True and 1.0 would share a key
            return self._joined(values)
        topic = self._topics.get(values)
        if topic is None:
            topic = self._topics[values] = self._joined(values)
            self._budget.miss()
            self._budget.take(self._size(topic))
        return topic

    def _size(self, topic: bytes) -> int:
        """The bytes of what is kept of a topic, now or once something is published to it by its fast path."""
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
                f"{self.pattern.text!r} needs a value for {name!r}: give publish(..., {name}=…), "
                f"or publish a message with a {name!r} of its own",
                topic=self.pattern.text,
            )
        return found


def bind_encoder(schema: Any, codec: Codec | None, default: Codec) -> tuple[Encode, Write | None, int]:
    """What turns a message into ``(codec number, body)``: bound to ``schema``, or by each message's type.

    In the first case what makes the body alone, too, and the number.
    """
    if schema is None:
        return encoder_by_type(codec, default), None, 0
    chosen, write = body_encoder(schema, codec=codec, default=default)
    number = chosen.number
    return lambda message: (number, write(message)), write, number


def encoder_by_type(codec: Codec | None, default: Codec) -> Encode:
    """What turns a message into ``(codec number, body)``, by its own type."""
    known: dict[type, tuple[int, Callable[[Any], bytes]]] = {}

    def encode(message: Any) -> tuple[int, bytes]:
        if message is None:
            raise EncodeError("None is not a message: publish {} or an object of your own for 'nothing to say'")
        found = known.get(type(message))
        if found is None:
            chosen, function = runtime_encoder(message, codec=codec, default=default)
            found = known[type(message)] = (chosen.number, function)
        return found[0], found[1](message)

    return encode
