"""Every error zroute raises or reports, sorted by whose fault it is:

    ZrouteError
    ├── SetupError                 the app as it is written can't work
    │   ├── PatternError           (ValueError)  a pattern the grammar does not know
    │   ├── EndpointError          (ValueError)  an address that can't be parsed, bound or connected
    │   ├── SchemaError            (TypeError)   a type no engine can carry without loss
    │   ├── SignatureError         (TypeError)   a function that can't be called with what a message has
    │   ├── DuplicateRouteError    two routes of which nobody could say which comes first
    │   └── AppFrozenError         a registration after the app was compiled
    ├── UsageError                 our program, while it runs
    │   ├── TopicError             (ValueError)  a topic that can't be published
    │   ├── EncodeError            (ValueError)  an object that would not arrive as it was sent
    │   ├── HighWaterMarkError     the queues to the peers are full
    │   ├── UnknownPeerError       no peer of that identity is connected
    │   ├── RequestTimeoutError    (TimeoutError)     a request without a reply in its time
    │   ├── RequestLostError       (ConnectionError)  a request whose server has gone
    │   ├── NotReadyError          (TimeoutError)     no publisher has answered a join in time
    │   ├── NotRunningError        used before the start or after the stop
    │   ├── WrongThreadError       a socket used outside the reactor's thread
    │   └── ForkedContextError     a socket used in a forked child
    └── PeerError                  what a peer sent; counted and logged, never raised into the reactor
        ├── EnvelopeError          frames that are no message
        └── DecodeError            a body that is not what the route declares

A peer's errors reach user code in one way only: as the first argument of an ``on_error`` function.
Every error's text says what was wrong, where, what was expected and what to do; the parts a program
may want are attributes.
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
    """The root: ``except ZrouteError`` catches all that zroute raises on purpose."""


class SetupError(ZrouteError):
    """The app as it is written can't work; raised at the user's line or by ``app.compile()``.

    ``where`` is ``"file.py:12"``, the line that registered what is wrong, or None where the traceback
    itself points there.
    """

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class PatternError(SetupError, ValueError):
    """A pattern the grammar does not know; ``pattern`` is its text."""

    def __init__(self, message: str, *, pattern: object, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.pattern = pattern


class EndpointError(SetupError, ValueError):
    """An endpoint that can't be parsed, bound or connected, or that is missing; ``endpoint`` is its text."""

    def __init__(self, message: str, *, endpoint: str | None = None, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.endpoint = endpoint


class SchemaError(SetupError, TypeError):
    """A type that neither msgspec nor cattrs can carry without loss; ``schema`` is the type."""

    def __init__(self, message: str, *, schema: object, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.schema = schema


class SignatureError(SetupError, TypeError):
    """A function that can't be called with what a message has; ``parameter`` names the one at fault."""

    def __init__(self, message: str, *, parameter: str | None = None, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.parameter = parameter


class DuplicateRouteError(SetupError):
    """Two routes of which nobody could say which comes first; both lines stand in the text."""


class AppFrozenError(SetupError):
    """A registration after the app was compiled."""


class UsageError(ZrouteError):
    """A call that can't be carried out, raised at the caller before anything is sent."""


class TopicError(UsageError, ValueError):
    """A topic that can't be published; ``topic`` is what was given."""

    def __init__(self, message: str, *, topic: object) -> None:
        super().__init__(message)
        self.topic = topic


class EncodeError(UsageError, ValueError):
    """An object that would not arrive as it was sent; ``schema`` is the declared type, if there is one."""

    def __init__(self, message: str, *, schema: object = None) -> None:
        super().__init__(message)
        self.schema = schema


class HighWaterMarkError(UsageError):
    """The queues to the peers are full and the app asked to be told."""


class UnknownPeerError(UsageError):
    """A message for a peer that is not connected to this ROUTER, or no longer."""


class RequestTimeoutError(UsageError, TimeoutError):
    """A request had no reply in its time. If it had not been sent by then, it never will be."""


class RequestLostError(UsageError, ConnectionError):
    """The server that a request was sent to has gone, with or without having worked on it."""


class NotReadyError(UsageError, TimeoutError):
    """The publishers of ``app.ready()``, or subscribers of ``wait_for_subscribers()``, did not come in time."""


class NotRunningError(UsageError):
    """Published, attached, streamed, or called from a thread, before the app started or after it stopped.

    From ``on_startup`` to ``on_shutdown`` all of it is possible; what is known in advance is registered with
    decorators.
    """


class WrongThreadError(UsageError):
    """A socket was used outside the reactor's thread, which ZeroMQ does not survive.

    ``app.from_thread(publication.publish, message)`` is the way from there. On the reactor's own thread
    that raises it as well, because it would wait for itself.
    """


class ForkedContextError(UsageError):
    """A socket, or the app, was used in a child that was forked while the app ran: its messages would vanish.

    Start processes before the app, or with multiprocessing's ``"spawn"``, and give each an app of its own.
    """


class PeerError(ZrouteError):
    """What a peer sent is not what was agreed; ``reason`` is a few words, the same for the same fault."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EnvelopeError(PeerError):
    """Frames that are no message: no topic, a broken header, too many parts."""

    def __init__(self, reason: str, *, frames: tuple[bytes, ...] = ()) -> None:
        super().__init__(reason, reason=reason)
        self.frames = frames


class DecodeError(PeerError):
    """A body that is not what the route declares; ``topic`` and ``route`` say where it was found."""

    def __init__(self, reason: str, *, topic: str | None = None, route: str | None = None) -> None:
        super().__init__(f"{topic!r}: {reason}" if topic is not None else reason, reason=reason)
        self.topic = topic
        self.route = route
