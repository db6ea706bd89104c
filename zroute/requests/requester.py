"""`Requester`, the result of ``app.requester``, and its compiled form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import attrs

from zroute.errors import EncodeError, NotRunningError, SignatureError, TopicError, UsageError
from zroute.functions import users_line
from zroute.messages.codecs import RAW, Codec
from zroute.messages.topics import Pattern, segment_bytes
from zroute.publishing.publication import Encode

if TYPE_CHECKING:
    from zroute.requests.client import Client, DecodeReply, ReplyStream

__all__ = ["DEFAULT", "CompiledRequester", "Requester", "checked_wait", "explain_type", "is_seconds", "refuse_unknown"]

Q_contra = TypeVar("Q_contra", contravariant=True)
A_co = TypeVar("A_co", covariant=True)


_KNOWN = 10_000
"""The number of topics that a requester caches."""


class _Default:
    """The type of `DEFAULT`."""

    def __repr__(self) -> str:
        return "the requester's timeout"


DEFAULT: Any = _Default()
"""A placeholder for a timeout; it selects the requester's own timeout."""


def is_seconds(value: Any) -> bool:
    """Return True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def checked_wait(timeout: Any, where: str | None = None) -> float | None:
    """Return ``timeout`` if it is valid: a positive number of seconds, or None.

    ``where`` is the line of the user's code for the error; the default is the line of the caller.

    Raises:
        SignatureError: ``timeout`` is neither None nor a positive number of seconds.
    """
    if timeout is None:
        return None
    if not (is_seconds(timeout) and timeout > 0):
        raise SignatureError(
            f"timeout={timeout!r}: expected a number of seconds, more than 0, or None for no limit",
            parameter="timeout",
            where=where or users_line(),
        )
    return float(timeout)


_OF_REQUESTER = ("retry", "codec", "reply")
"""Options of ``app.requester`` that a single request does not have."""


def refuse_unknown(function: str, given: Mapping[str, object]) -> NoReturn:
    """Raise SignatureError for arguments that ``function`` of an app does not have."""
    name = next(iter(given))
    remedy = f"declare app.requester(pattern, T, Reply, {name}=…)"
    if name not in _OF_REQUESTER:
        call = "stream" if function == "request_stream" else "request"
        remedy = (
            f"write the whole topic, or declare app.requester('prices.{{{name}}}', T, Reply) and call "
            f".{call}(message, {name}=…)"
        )
    raise SignatureError(
        f"{function}() has no argument {name!r}; expected topic, message, reply, timeout or headers: {remedy}",
        parameter=name,
        where=users_line(),
    )


def explain_type(error: EncodeError, topic: str, message: object) -> None:
    """Change the text of ``error`` if a request has a type in place of its message."""
    if isinstance(message, type):
        name = message.__name__
        error.args = (
            f"request({topic!r}, {name}): {name} is a type, not a message: write request({topic!r}, message, {name}), "
            f"or request({topic!r}, None, {name}) without a body",
        )


class Requester(Generic[Q_contra, A_co]):
    """The requests for one pattern, with the types of the message and the reply.

    ``app.requester(pattern, schema, reply)`` returns a requester. Over ZeroMQ, a request waits for a server until the
    timeout. For this reason, ``retry`` applies only to requests that were lost, or that a busy server refused.
    """

    def __init__(
        self,
        pattern: Pattern,
        schema: Any,
        reply: Any,
        codec: Codec | None,
        timeout: float | None,
        retry: tuple[float, ...],
        where: str,
    ) -> None:
        self.pattern = pattern
        self.schema = schema
        self.reply = reply
        self.codec = codec
        self.timeout = timeout
        self.retry = retry
        self.where = where
        self._running: tuple[CompiledRequester, ...] = ()

    if not TYPE_CHECKING:  # type checkers report the call

        def __call__(self, *_: object, **__: object) -> NoReturn:
            """Explain that a requester is neither a function nor a decorator."""
            raise UsageError(f"{self} is neither a function nor a decorator: call its methods request() or stream()")

    async def request(
        self,
        message: Q_contra,
        /,
        *,
        timeout: float | None = DEFAULT,
        headers: Mapping[str, Any] | None = None,
        **captures: object,
    ) -> A_co:
        """Send a request, and return the reply.

        If the caller cancels the coroutine, zroute tells the server. The server then cancels an ``async`` handler.

        Example:
            ```python
            price = await prices.request(Ask(3), symbol="EURUSD")
            ```

        Args:
            message: A message of the schema; None for a handler without a body.
            timeout: The seconds to wait, in place of the requester's ``timeout``; None for no limit.
            headers: A small map with text keys, for the handler's `Envelope`.
            captures: Values for the captures of the pattern. zroute reads a missing value from the attribute or key
                with the same name in the message.

        Returns:
            The reply, decoded as the ``reply`` type.

        Raises:
            NoServerError: No server was connected before the timeout. With ``bind:`` and ``inproc://``, zroute raises
                RequestTimeoutError instead.
            NoHandlerError: The server has no handler for the topic.
            BadRequestError: The server could not read the message as the type that its handler declares.
            RequestRefusedError: The handler refused the request.
            ServerError: The handler failed.
            BusyError: The server has no room for the request, or is stopping.
            RequestTimeoutError: No reply arrived in time.
            RequestLostError: The server disconnected after it had received the request.
            DecodeError: The reply does not have the declared type.
            TopicError: A capture is missing, or its value is not valid in a topic.
            EncodeError: The message does not match the schema, or is too large.
            SignatureError: ``timeout`` is not a positive number of seconds.
            NotRunningError: No app that includes this requester is running.
        """
        way = self._running[0] if len(self._running) == 1 else self._way()
        limit = self.timeout if timeout is DEFAULT else checked_wait(timeout)
        topic, number, body = way.packed(message, captures)
        reply: A_co = await way.client.request(topic, number, body, headers, way.decode, limit, self.retry)
        return reply

    def stream(
        self,
        message: Q_contra,
        /,
        *,
        timeout: float | None = DEFAULT,
        headers: Mapping[str, Any] | None = None,
        **captures: object,
    ) -> ReplyStream[A_co]:
        """Send a request to a handler that yields replies; iterate with ``async for``.

        ``timeout`` is the time in seconds to wait for each item. The other arguments and the errors are those of
        `request`. The loop raises the errors.
        """
        way = self._way()
        limit = self.timeout if timeout is DEFAULT else checked_wait(timeout)
        topic, number, body = way.packed(message, captures)
        return way.client.stream(topic, number, body, headers, way.decode, limit)

    def _way(self) -> CompiledRequester:
        if len(self._running) == 1:
            return self._running[0]
        if self._running:
            raise UsageError(
                f"{self} belongs to {len(self._running)} running apps: declare a separate requester for each app"
            )
        raise NotRunningError(
            f"can't send a request to {self.pattern.text!r} ({self.where}): no running app includes this "
            "requester; send the request in a handler, a timer, or a function under @app.on_startup"
        )

    def __repr__(self) -> str:
        return f"<Requester {self.pattern.text!r} at {self.where}>"


@attrs.define(eq=False)
class CompiledRequester:
    """A requester as one app uses it, with the whole pattern.

    Attributes:
        requester: The requester that the user declared.
        pattern: The pattern, including the prefixes of groups.
        encode: Returns the codec number and the body of a message.
    """

    requester: Requester[Any, Any]
    pattern: Pattern
    encode: Encode
    _client: Client | None = attrs.field(init=False, default=None)
    _decode: DecodeReply | None = attrs.field(init=False, default=None)
    _topics: dict[tuple[object, ...], bytes] = attrs.field(init=False, factory=dict)
    _simple: tuple[type, ...] = attrs.field(init=False)  # the types of values that are all text
    _type: type | None = attrs.field(init=False, default=None)  # of the last message
    _is_mapping: bool = attrs.field(init=False, default=False)

    @_simple.default
    def _all_text(self) -> tuple[type, ...]:
        return (str,) * len(self.pattern.captures)

    def open(self, client: Client) -> None:
        """Send requests through ``client`` until `close`."""
        self._client = client
        self._decode = client.decoder(self.requester.reply)
        self.requester._running += (self,)

    def close(self) -> None:
        """Send no more requests. A second call does nothing."""
        self._client = None
        self.requester._running = tuple(each for each in self.requester._running if each is not self)

    @property
    def client(self) -> Client:
        """The client of the run."""
        assert self._client is not None
        return self._client

    @property
    def decode(self) -> DecodeReply:
        """The decoder of replies."""
        assert self._decode is not None
        return self._decode

    def packed(self, message: Any, captures: Mapping[str, object]) -> tuple[bytes, int, bytes]:
        """Return the topic, the codec number and the body of a request.

        Raises:
            TopicError: A capture is missing, unknown, or its value is not valid in a topic.
            EncodeError: The message does not match the schema.
        """
        if message is None:
            number, body = RAW.number, b""
        else:
            try:
                number, body = self.encode(message)
            except EncodeError as error:
                error.args = (f"{self.requester} can't send this message: {error}",)
                raise
        return self._topic(message, captures), number, body

    def _topic(self, message: Any, captures: Mapping[str, object]) -> bytes:
        names = self.pattern.captures
        # The usual case.
        if len(names) == 1 and not captures and type(message) is self._type and not self._is_mapping:
            value = getattr(message, names[0], None)
            if type(value) is str and (known := self._topics.get((value,))) is not None:
                return known
        for name in captures:
            if name not in names:
                advice = f"; {name} is an option of app.requester" if name in _OF_REQUESTER else ""
                raise TopicError(
                    f"{self.pattern.text!r} has no capture {name!r}; it has {', '.join(names) or 'none'}{advice}",
                    topic=self.pattern.text,
                )
        values = tuple([self._value(name, message, captures) for name in names])
        # Only text: other values that are equal, such as 1 and True, are different segments.
        simple = tuple(map(type, values)) == self._simple
        known = self._topics.get(values) if simple else None
        if known is None:
            separator = self.pattern.separator
            segments = {name: segment_bytes(name, value, separator) for name, value in zip(names, values, strict=True)}
            known = self.pattern.topic(segments)
            if len(self._topics) >= _KNOWN:
                self._topics.clear()
            if simple:
                self._topics[values] = known
        return known

    def _value(self, name: str, message: Any, captures: Mapping[str, object]) -> object:
        if name in captures:
            return captures[name]
        if type(message) is not self._type:
            self._type, self._is_mapping = type(message), isinstance(message, Mapping)
        found = message.get(name) if self._is_mapping else getattr(message, name, None)
        if found is None:
            raise TopicError(
                f"{self.pattern.text!r} needs a value for {name!r}: call request(..., {name}=…), or send a message "
                f"with an attribute or key {name!r}",
                topic=self.pattern.text,
            )
        return found
