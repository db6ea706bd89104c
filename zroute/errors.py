"""All errors of zroute, grouped by cause:

    ZrouteError
    ├── SetupError                 the app can't work as it is written
    │   ├── PatternError           (ValueError)  an invalid topic pattern
    │   ├── EndpointError          (ValueError)  an address that can't be parsed, bound or connected
    │   │   └── KeyFileError       (ValueError)  a file with a key that can't be used
    │   ├── SchemaError            (TypeError)   a type that can't be encoded without loss
    │   ├── SignatureError         (TypeError)   a function that a message can't be passed to
    │   ├── DuplicateRouteError    two routes without a defined order
    │   └── AppFrozenError         a registration after the app was compiled
    ├── UsageError                 a call of this program that can't be carried out
    │   ├── TopicError             (ValueError)  a topic that can't be published
    │   ├── EncodeError            (ValueError)  a message that would change on its way
    │   ├── HighWaterMarkError     the queues to the peers are full
    │   ├── UnknownPeerError       no peer with this identity is connected
    │   ├── NotReadyError          (TimeoutError)     publishers or subscribers that did not answer in time
    │   ├── NotRunningError        a call before the start or after the stop
    │   ├── WrongThreadError       a socket used outside the reactor's thread
    │   └── ForkedContextError     a socket used in a forked child
    ├── Reject                     raised by a handler: the message can't be handled, now or later
    ├── RequestRefused             raised by a handler of requests: the caller gets this code and text
    └── PeerError                  an invalid message of a peer; counted and logged, never raised in the reactor
        ├── JobFailedError         a job that workers could not do
        ├── EnvelopeError          frames that are not a message
        ├── DecodeError            a body that is not of the type that the route declares
        └── RequestError           a request that got no reply, raised at the caller
            ├── NoServerError        (ConnectionError)  no server is connected
            ├── NoHandlerError       404: the server has no handler for the topic
            ├── BadRequestError      400: the server could not read the request
            ├── RequestRefusedError  the handler refused the request, with a code of its own
            ├── ServerError          500: the handler failed
            ├── BusyError            503: the server has no room, or stops
            ├── RequestTimeoutError  (TimeoutError)     no reply in time
            └── RequestLostError     (ConnectionError)  the server has disconnected

User code receives a `PeerError` as the first argument of an ``on_error`` function. An awaited request raises a
`RequestError`, or a `DecodeError` if the reply has another type. The text of each error explains what was wrong, where,
what was expected and what to do. Attributes contain the facts that a program may need.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

__all__ = [
    "AppFrozenError",
    "BadRequestError",
    "BusyError",
    "DecodeError",
    "DuplicateRouteError",
    "EncodeError",
    "EndpointError",
    "EnvelopeError",
    "ForkedContextError",
    "HighWaterMarkError",
    "JobFailedError",
    "KeyFileError",
    "NoHandlerError",
    "NoServerError",
    "NotReadyError",
    "NotRunningError",
    "PatternError",
    "PeerError",
    "Reject",
    "RequestError",
    "RequestLostError",
    "RequestRefused",
    "RequestRefusedError",
    "RequestTimeoutError",
    "SchemaError",
    "ServerError",
    "SetupError",
    "SignatureError",
    "TopicError",
    "UnknownPeerError",
    "UsageError",
    "WrongThreadError",
    "ZrouteError",
]


class ZrouteError(Exception):
    """The base class of all errors that zroute raises."""


class SetupError(ZrouteError):
    """The app can't work as it is written.

    The error is raised at the declaration, or by ``app.compile()``. ``where`` is the line of the declaration, as
    ``"file.py:12"``, or None if the traceback shows the line.
    """

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where

    def locate(self, where: str) -> None:
        """Add the line ``where`` to the text, unless the error has a line already."""
        if self.where is None:
            self.where = where
            self.args = (f"{where}: {self}",)

    @property
    def text(self) -> str:
        """The text of the error, without the line."""
        return str(self).removeprefix(f"{self.where}: ")


class PatternError(SetupError, ValueError):
    """An invalid topic pattern; ``pattern`` is its text."""

    def __init__(self, message: str, *, pattern: object, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.pattern = pattern


class EndpointError(SetupError, ValueError):
    """An endpoint that is missing, or can't be parsed, bound or connected.

    ``endpoint`` is its text.
    """

    def __init__(self, message: str, *, endpoint: str | None = None, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.endpoint = endpoint


class KeyFileError(EndpointError):
    """A file with a key that is missing, invalid, or readable by other users.

    ``path`` is the path of the file, or None if the name of a key is invalid.
    """

    def __init__(self, message: str, *, path: Path | None = None, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.path = path


class SchemaError(SetupError, TypeError):
    """A type that neither msgspec nor cattrs can encode without loss.

    ``schema`` is the type.
    """

    def __init__(self, message: str, *, schema: object, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.schema = schema


class SignatureError(SetupError, TypeError):
    """A function that can't be called with a message, or an invalid argument.

    ``parameter`` is the name of the parameter.
    """

    def __init__(self, message: str, *, parameter: str | None = None, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.parameter = parameter


class DuplicateRouteError(SetupError):
    """Two routes without a defined order, or two equal job queues.

    The text contains the lines of both.
    """


class AppFrozenError(SetupError):
    """A registration after the app was compiled."""


class UsageError(ZrouteError):
    """A call that can't be carried out. It fails before a message is sent."""


class TopicError(UsageError, ValueError):
    """A topic that can't be published; ``topic`` is its value."""

    def __init__(self, message: str, *, topic: object) -> None:
        super().__init__(message)
        self.topic = topic


class EncodeError(UsageError, ValueError):
    """A message that would change on its way to the subscriber.

    ``schema`` is the declared type, or None.
    """

    def __init__(self, message: str, *, schema: object = None) -> None:
        super().__init__(message)
        self.schema = schema


class HighWaterMarkError(UsageError):
    """The queues to the peers are full.

    Apps raise it with ``overflow="raise"`` or ``"wait"``.
    """


class UnknownPeerError(UsageError):
    """A message for a peer that is not connected to this ROUTER."""


class NotReadyError(UsageError, TimeoutError):
    """Publishers or subscribers did not answer in time.

    Raised by ``app.ready()`` and by ``wait_for_subscribers()``.
    """


class NotRunningError(UsageError):
    """A call before the app has started, or after it has stopped.

    Calls that publish, attach handlers, open streams, or come from other threads raise this error. All of these calls
    work from ``on_startup`` to ``on_shutdown``. Use decorators to register handlers that are known in advance.
    """


class WrongThreadError(UsageError):
    """A socket was used outside the reactor's thread.

    ZeroMQ sockets are not thread-safe. From another thread, publish with ``app.from_thread(publication.publish,
    message)``. In the reactor's own thread, ``from_thread`` raises this error too, because the thread would wait for
    itself.
    """


class ForkedContextError(UsageError):
    """A socket or an app was used in a child that was forked while the app ran.

    Messages of the child would be lost. Start processes before the app, or with multiprocessing's ``"spawn"``, and give
    each process its own app.
    """


class Reject(ZrouteError):  # noqa: N818  # a handler says it: raise Reject("no such account")
    """Raised by a handler to refuse a message that must not be retried.

    The message is counted as a failure of the handler, and logged as a warning without a traceback. It is then
    published to the route's ``dead`` topic, or passed to an ``on_error`` function.

    Example:
        ```python
        @app.subscribe("orders.{kind}", retry=(1, 5, 30), dead="dead.{kind}")
        async def on_order(order: Order) -> None:
            if order.account not in accounts:
                raise Reject(f"no account {order.account}")
        ```
    """


class RequestRefused(ZrouteError):  # noqa: N818  # a handler says it: raise RequestRefused(409, "no such symbol")
    """Raised by a handler of requests: the caller gets a `RequestRefusedError`.

    The refusal is not counted as a failure of the handler, and is not logged.

    Example:
        ```python
        @app.reply("prices.{symbol}")
        def price(ask: Ask, symbol: str) -> Price:
            if symbol not in prices:
                raise RequestRefused(409, f"no symbol {symbol}")
            return prices[symbol]
        ```

    Args:
        code: A number from 100 to 999, except 400, 404, 500 and 503, which zroute uses itself.
        reason: A text for the caller.

    Raises:
        UsageError: The code is not such a number.
    """

    if not TYPE_CHECKING:  # type checkers report a missing argument

        def __new__(cls, *given: object, **named: object) -> RequestRefused:
            """Raise UsageError that explains the arguments if one is missing."""
            if cls is RequestRefused and len(given) + len(named) != 2:
                shown = ", ".join(map(repr, given))
                raise UsageError(
                    f"RequestRefused({shown}): expected a code and a text, as in RequestRefused(409, 'why')"
                )
            return super().__new__(cls, *given)

    def __init__(self, code: int, reason: str) -> None:
        given: object = code
        if isinstance(given, str):
            number = given if given.isdecimal() else "409"
            raise UsageError(
                f"RequestRefused({code!r}, …): the code must be an int, as in RequestRefused({number}, {str(reason)!r})"
            )
        if not isinstance(code, int) or isinstance(code, bool) or not 100 <= code <= 999 or code in _OWN_CODES:
            raise UsageError(
                f"RequestRefused({code!r}, …): expected a code from 100 to 999, except "
                f"{', '.join(map(str, _OWN_CODES))}, which zroute uses itself"
            )
        super().__init__(code, reason)
        self.code = code
        self.reason = str(reason)

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


_OWN_CODES = (400, 404, 500, 503)


class PeerError(ZrouteError):
    """An invalid message from a peer.

    ``reason`` is a short text, which is the same for each message with this fault.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EnvelopeError(PeerError):
    """Frames that are not a message: no topic, a broken header, or too many parts.

    ``frames`` contains the frames, if they are known.
    """

    def __init__(self, reason: str, *, frames: tuple[bytes, ...] = ()) -> None:
        super().__init__(reason, reason=reason)
        self.frames = frames


class DecodeError(PeerError):
    """A body that can't be decoded to the type that the route declares.

    ``topic`` and ``route`` are the topic of the message and the name of the route.
    """

    def __init__(self, reason: str, *, topic: str | None = None, route: str | None = None) -> None:
        super().__init__(f"{topic!r}: {reason}" if topic is not None else reason, reason=reason)
        self.topic = topic
        self.route = route


class RequestError(PeerError):
    """A request that got no reply; ``reason`` says why.

    ``code`` is the number that the server answered with, or None if it did not answer.
    """

    code: int | None = None

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message, reason=message if reason is None else reason)


class NoServerError(RequestError, ConnectionError):
    """No server was connected before the timeout. The request was not sent."""


class NoHandlerError(RequestError):
    """The server has no handler for the topic (404)."""

    code = 404


class BadRequestError(RequestError):
    """The server could not read the request (400).

    ``reason`` describes the fault, for example a field of another type than the handler declares.
    """

    code = 400


class RequestRefusedError(RequestError):
    """The handler has refused the request with `RequestRefused`.

    ``code`` and ``reason`` are those of the handler.
    """

    code: int

    if not TYPE_CHECKING:  # type checkers report the arguments

        def __new__(cls, *given: object, **named: object) -> RequestRefusedError:
            """Raise UsageError if a handler confuses this error with `RequestRefused`."""
            if cls is RequestRefusedError and len(given) == 2:
                code, reason = given
                raise UsageError(
                    "zroute raises RequestRefusedError in the program that sent the request: in a handler, raise "
                    f"RequestRefused({code!r}, {reason!r})"
                )
            return super().__new__(cls, *given)

    def __init__(self, message: str, *, code: int, reason: str) -> None:
        super().__init__(message, reason=reason)
        self.code = code


class ServerError(RequestError):
    """The handler failed (500). ``reason`` is the type and the text of its error."""

    code = 500


class BusyError(RequestError):
    """The server has no room for the request, or is about to stop (503).

    The server has not handled the request.
    """

    code = 503


class RequestTimeoutError(RequestError, TimeoutError):
    """No reply arrived in time. If the request is still unsent, it is never sent."""


class RequestLostError(RequestError, ConnectionError):
    """The server has disconnected, perhaps after it handled the request."""


class JobFailedError(PeerError):
    """A job that is not attempted again, for example after its last attempt.

    The last attempt failed, a worker rejected the job, or too many workers ended or fell silent while they had it.
    ``topic`` is the topic of the job, and ``attempts`` the number of attempts. ``reason`` describes the last failure.
    """

    def __init__(self, reason: str, *, topic: str, attempts: int) -> None:
        super().__init__(f"{topic!r}: {reason}", reason=reason)
        self.topic = topic
        self.attempts = attempts
