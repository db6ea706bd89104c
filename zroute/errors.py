"""All errors of zroute, grouped by cause:

    ZrouteError
    ├── SetupError                 the app can't work as it is written
    │   ├── PatternError           (ValueError)  an invalid topic pattern
    │   ├── EndpointError          (ValueError)  an address that can't be parsed, bound or connected
    │   ├── SchemaError            (TypeError)   a type that can't be encoded without loss
    │   ├── SignatureError         (TypeError)   a function that a message can't be passed to
    │   ├── DuplicateRouteError    two routes without a defined order
    │   └── AppFrozenError         a registration after the app was compiled
    ├── UsageError                 a call of this program that can't be carried out
    │   ├── TopicError             (ValueError)  a topic that can't be published
    │   ├── EncodeError            (ValueError)  a message that would change on its way
    │   ├── HighWaterMarkError     the queues to the peers are full
    │   ├── UnknownPeerError       no peer with this identity is connected
    │   ├── RequestTimeoutError    (TimeoutError)     a request without a reply in time
    │   ├── RequestLostError       (ConnectionError)  a request whose server has disconnected
    │   ├── NotReadyError          (TimeoutError)     publishers or subscribers that did not answer in time
    │   ├── NotRunningError        a call before the start or after the stop
    │   ├── WrongThreadError       a socket used outside the reactor's thread
    │   └── ForkedContextError     a socket used in a forked child
    └── PeerError                  an invalid message of a peer; counted and logged, never raised in the reactor
        ├── EnvelopeError          frames that are not a message
        └── DecodeError            a body that is not of the type that the route declares

User code receives a `PeerError` in one way only: as the first argument of an ``on_error`` function. The text of each
error says what was wrong, where, what was expected and what to do. Facts that a program may need are attributes.
"""

from __future__ import annotations

__all__ = [
    "AppFrozenError",
    "DecodeError",
    "DuplicateRouteError",
    "EncodeError",
    "EndpointError",
    "EnvelopeError",
    "ForkedContextError",
    "HighWaterMarkError",
    "NotReadyError",
    "NotRunningError",
    "PatternError",
    "PeerError",
    "RequestLostError",
    "RequestTimeoutError",
    "SchemaError",
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

    Raised at the line of the declaration, or by ``app.compile()``. ``where`` is that line, as ``"file.py:12"``, or None
    if the traceback itself shows it.
    """

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


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


class SchemaError(SetupError, TypeError):
    """A type that neither msgspec nor cattrs can encode without loss.

    ``schema`` is the type.
    """

    def __init__(self, message: str, *, schema: object, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.schema = schema


class SignatureError(SetupError, TypeError):
    """A function that a message can't be passed to, or an invalid argument.

    ``parameter`` is the name of the parameter.
    """

    def __init__(self, message: str, *, parameter: str | None = None, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.parameter = parameter


class DuplicateRouteError(SetupError):
    """Two routes without a defined order; the text has the lines of both."""


class AppFrozenError(SetupError):
    """A registration after the app was compiled."""


class UsageError(ZrouteError):
    """A call that can't be carried out; raised before anything is sent."""


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


class RequestTimeoutError(UsageError, TimeoutError):
    """A request without a reply in time. If it is still unsent, it is never sent."""


class RequestLostError(UsageError, ConnectionError):
    """A request whose server has disconnected, perhaps after it handled the request."""


class NotReadyError(UsageError, TimeoutError):
    """Publishers or subscribers did not answer in time.

    Raised by ``app.ready()`` and by ``wait_for_subscribers()``.
    """


class NotRunningError(UsageError):
    """A call before the app has started, or after it has stopped.

    Raised by publishing, attaching, streaming and calls from other threads. All of these work from ``on_startup`` to
    ``on_shutdown``. Use decorators to register handlers that are known in advance.
    """


class WrongThreadError(UsageError):
    """A socket was used outside the reactor's thread.

    ZeroMQ sockets are not thread-safe. From another thread, publish with ``app.from_thread(publication.publish,
    message)``. On the reactor's own thread ``from_thread`` raises this error too, because the thread would wait for
    itself.
    """


class ForkedContextError(UsageError):
    """A socket or the app was used in a child that was forked while the app ran.

    Its messages would be lost. Start processes before the app, or with multiprocessing's ``"spawn"``, and give each
    process its own app.
    """


class PeerError(ZrouteError):
    """An invalid message of a peer.

    ``reason`` is a short text, the same for each message with this fault.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EnvelopeError(PeerError):
    """Frames that are not a message: no topic, a broken header, too many parts.

    ``frames`` are the frames, if they are known.
    """

    def __init__(self, reason: str, *, frames: tuple[bytes, ...] = ()) -> None:
        super().__init__(reason, reason=reason)
        self.frames = frames


class DecodeError(PeerError):
    """A body that is not of the type that the route declares.

    ``topic`` and ``route`` are the topic of the message and the name of the route.
    """

    def __init__(self, reason: str, *, topic: str | None = None, route: str | None = None) -> None:
        super().__init__(f"{topic!r}: {reason}" if topic is not None else reason, reason=reason)
        self.topic = topic
        self.route = route
