"""Headers that a handler adds to a result, and headers that zroute copies to it.

Headers for tracing and correlation belong to a chain of messages, not to a single message. zroute therefore copies them
from a received message to the messages that its handler returns or yields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from zroute.errors import EncodeError
from zroute.options import HEADERS_MAX

__all__ = ["PROPAGATED", "USE_HEADERS", "WithHeaders", "propagated"]

T_co = TypeVar("T_co", covariant=True)

PROPAGATED = ("traceparent", "tracestate", "baggage", "correlation-id")
"""The headers that every app copies: W3C Trace Context, W3C Baggage, and a correlation id."""

_ROOM = HEADERS_MAX // 2
"""The maximum size of copied headers in bytes.

A peer chooses these headers. The limit leaves room for the app's own headers, so that a peer cannot make a message too
large to publish.
"""

_NUMBER = 9
"""The maximum size of a number in msgpack, in bytes. The length field of text and bytes takes at most 5 bytes."""

USE_HEADERS = "WithHeaders is for the results of handlers: pass the headers to this call instead, as headers={…}"


class WithHeaders(Generic[T_co]):
    """A message with headers, as the result of a handler, a timer or a generator.

    A function under a publisher returns or yields it instead of the message. The annotation ``WithHeaders[Alert]``
    declares Alert as the type of the messages. These headers override those that are copied from the received message.
    A WithHeaders that contains a WithHeaders has the headers of both; the outer ones override the inner ones.

    No codec supports this class, so it is never encoded as a message by mistake.

    Example:
        ```python
        @app.publisher("alerts", Alert)
        @app.subscribe("quotes.{symbol}")
        def alert(quote: Quote) -> WithHeaders[Alert]:
            return WithHeaders(Alert(quote.symbol), {"priority": "high"})
        ```

    Args:
        value: The message.
        headers: A small map with text keys (tracked wire only).

    Raises:
        EncodeError: ``headers`` is not a map.
    """

    __slots__ = ("headers", "value")

    def __init__(self, value: T_co, headers: Mapping[str, Any]) -> None:
        if not isinstance(headers, Mapping):
            raise EncodeError(
                f"the headers of WithHeaders must be a map with text keys, not {headers!r}: write "
                "WithHeaders(message, {'name': 'value'})"
            )
        inner: Any = value
        is_nested = type(inner) is WithHeaders  # middleware adds headers to a result that has some
        self.value: T_co = inner.value if is_nested else value
        self.headers: Mapping[str, Any] = {**inner.headers, **headers} if is_nested else headers

    def __eq__(self, other: object) -> bool:
        if type(other) is not WithHeaders:
            return NotImplemented
        return bool(self.value == other.value and self.headers == other.headers)

    __hash__ = None  # type: ignore[assignment]  # its headers can change

    def __repr__(self) -> str:
        return f"WithHeaders({self.value!r}, {self.headers!r})"


def propagated(headers: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the ``headers`` of a received message that are copied to a result.

    A header is copied if its name is in ``names`` and its value is text, bytes or a number. All copied headers take at
    most 2,048 bytes together; a header that no longer fits is omitted.
    """
    taken: dict[str, Any] = {}
    left = _ROOM
    for name in names:
        value = headers.get(name)
        size = _size(name) + _size(value)
        if isinstance(value, str | bytes | int | float) and size <= left:
            taken[name] = value
            left -= size
    return taken


def _size(value: object) -> int:
    """Return an upper bound for the size of text, bytes or a number in msgpack."""
    if isinstance(value, str):
        return len(value.encode()) + 5
    return len(value) + 5 if isinstance(value, bytes) else _NUMBER
