"""Publish middleware: functions that surround the publishing of each message.

The functions are created once for each publication, when the app is compiled. If all factories return their argument
``call`` unchanged, the publication has no middleware and does not use this module.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from zroute.awaiting import is_awaitable
from zroute.errors import EncodeError, UsageError
from zroute.messages.topics import Topic
from zroute.publishing.headers import USE_HEADERS, WithHeaders
from zroute.publishing.publication import DONE, CompiledPublication

__all__ = ["Middleware", "Send", "SurroundedPublication"]

Around = Callable[..., Any]

Send = Callable[[Any, "Mapping[str, Any] | None", bytes], Awaitable[None]]
"""A function that encodes and sends ``(message, headers, topic)``."""


@attrs.define(eq=False)
class _Publishing:
    """A call of `Middleware.publish` that has not returned.

    ``sent`` is True if the middleware has called the innermost ``call``.
    """

    topic: bytes
    headers: Mapping[str, Any] | None
    sent: bool = False


class _Current(threading.local):
    """The innermost call of `Middleware.publish` in a thread.

    The call is stored per thread, because middleware runs before zroute refuses calls from other threads.
    """

    publishing: _Publishing | None = None


class Middleware:
    """The publish middleware around one publication, or around `App.publish`.

    The ``around`` functions are nested: each calls the next one, and the innermost calls `call`. Each passes on only
    the message, or a `WithHeaders` to add headers. During the call, a `_Publishing` stores the topic and the headers.

    Args:
        what: The description of the publication, for errors.
        skipped: A function that counts a message that was not published.
    """

    def __init__(self, what: str, skipped: Callable[[], None]) -> None:
        self.send: Send | None = None
        """The function that encodes and sends a message; set before the first message."""
        self.outermost: Around = self.call
        """The function to call with a message. Without middleware, it is `call` itself."""
        self._what = what
        self._skipped = skipped
        self._current = _Current()

    def add(self, around: Around, topics: tuple[str, ...], *, headers: bool) -> None:
        """Add ``around`` as the outermost function.

        ``topics`` contains the names of the parameters of ``around`` that receive the topic. If ``headers`` is True,
        ``around`` also has a parameter ``headers``.
        """
        takes_more = bool(topics) or headers

        def layer(message: Any) -> Any:
            publishing = self._publishing()
            if type(message) is not WithHeaders:
                return around(message, **(named(publishing) if takes_more else {}))
            before = publishing.headers
            publishing.headers = _merged(before, message.headers)
            try:
                return around(message.value, **(named(publishing) if takes_more else {}))
            finally:
                publishing.headers = before  # the outer function may call this layer again, with other headers

        def named(publishing: _Publishing) -> dict[str, Any]:
            given: dict[str, Any] = dict.fromkeys(topics, Topic.from_wire(publishing.topic)) if topics else {}
            if headers:
                given["headers"] = MappingProxyType(publishing.headers or {})
            return given

        self.outermost = layer

    def call(self, message: Any) -> Awaitable[None]:
        """Publish ``message``, or the message in a `WithHeaders` with its headers added."""
        publishing = self._publishing()
        publishing.sent = True
        headers = publishing.headers
        if type(message) is WithHeaders:
            message, headers = message.value, _merged(headers, message.headers)
        assert self.send is not None
        return self.send(message, headers, publishing.topic)

    def _publishing(self) -> _Publishing:
        publishing = self._current.publishing
        if publishing is None:
            raise UsageError(
                f"a publish middleware of {self._what} called call(message) after around(message) had returned: "
                "call call(message) inside around(message)"
            )
        return publishing

    def publish(self, message: Any, headers: Mapping[str, Any] | None, topic: bytes) -> Awaitable[None]:
        """Publish ``message`` through the middleware.

        Return the awaitable that the outermost function returns, or a finished one if the function returns None.

        Raises:
            UsageError: The middleware returns a value that is not an awaitable, or passes headers to ``call``.
            EncodeError: The message is a `WithHeaders`, which only a function's result may be.
            Exception: Any error of a middleware or of publishing.
        """
        if type(message) is WithHeaders:
            raise EncodeError(f"{self._what} can't publish this message: {USE_HEADERS}")
        current = self._current
        before, publishing = current.publishing, _Publishing(topic, headers)
        current.publishing = publishing
        try:
            sent = self.outermost(message)
        except TypeError as error:
            if "unexpected keyword argument 'headers'" in str(error) and f"{Middleware.__name__}." in str(error):
                raise UsageError(
                    f"a publish middleware of {self._what} passed headers= to call, which accepts only the "
                    "message: to add headers, write call(WithHeaders(message, {…}))"
                ) from error
            raise
        finally:
            current.publishing = before  # a middleware may publish to the same publication
        if not publishing.sent:
            self._skipped()
        if sent is None:
            return DONE
        if not is_awaitable(sent):
            raise UsageError(
                f"a publish middleware of {self._what} returned {sent!r}: return the awaitable from call(message), "
                "or None"
            )
        awaitable: Awaitable[None] = sent
        return awaitable


def _merged(headers: Mapping[str, Any] | None, more: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**headers, **more} if headers else more


@attrs.define(eq=False)
class SurroundedPublication(CompiledPublication):
    """A publication with middleware.

    Such a publication has no fast path. The general path determines the topic, runs the middleware, and then encodes
    the message that the middleware passes on.

    Attributes:
        middleware: The middleware.
    """

    middleware: Middleware = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.middleware.send = self._send

    def _send(self, message: Any, headers: Mapping[str, Any] | None, topic: bytes) -> Awaitable[None]:
        return super().publish(message, headers, None, None, topic)

    @property
    def _may_be_fast(self) -> bool:
        return False

    def publish(
        self,
        message: Any,
        headers: Mapping[str, Any] | None = None,
        captures: Mapping[str, object] | None = None,
        inbound: Mapping[str, object] | None = None,
        topic: bytes | None = None,
    ) -> Awaitable[None]:
        """Publish a message through the middleware; see `CompiledPublication.publish`."""
        if self._emit is None:
            return super().publish(message)  # raises the error
        if topic is None:
            topic = self._topic(message, captures or {}, inbound or {})
        return self.middleware.publish(message, headers, topic)
