"""The records of decorated handlers, timers, producers, resources and hooks.

In each record, ``where`` is the user's line (``file:line``), and ``namespace`` contains the local names at that line,
because annotations may use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs

from zroute.messages.codecs import Codec
from zroute.messages.recovery import Since
from zroute.messages.topics import Pattern
from zroute.publishing.publication import Publication, Schedule

__all__ = [
    "ATTEMPTS",
    "ErrorHook",
    "HandlerOptions",
    "Hook",
    "Hooks",
    "Producer",
    "Resource",
    "ResourceScope",
    "Route",
    "RouteInfo",
    "RouteKind",
]


ResourceScope = Literal["app", "message"]
"""How long a resource is open: while the app runs, or while a handler handles a message."""

ATTEMPTS = "attempts"
"""The name of the ``on_error`` parameter that receives the number of attempts."""


@attrs.frozen(eq=False, kw_only=True)
class HandlerOptions:
    """The options of one handler, checked and with all defaults filled in.

    `zroute.declarations.options.RouteOptions` explains each option. In a compiled route, ``dead`` includes the prefixes
    of the groups.
    """

    codec: Codec | None
    copy: bool
    thread: bool
    max_in_flight: int
    ordered: bool
    queue: int
    stale_after: float | None
    batch: int | None
    retry: tuple[float, ...]
    dead: Pattern | None
    timeout: float | None
    recover: bool | None = None
    since: Since | None = None


RouteKind = Literal["subscribe", "reply", "work"]
"""What a handler receives: messages, requests or jobs."""


@attrs.frozen(eq=False)
class Route:
    """A handler, and the patterns of the topics that it receives."""

    function: Callable[..., Any]
    patterns: tuple[Pattern, ...]
    options: HandlerOptions
    where: str
    namespace: Mapping[str, Any] | None
    kind: RouteKind = "subscribe"


@attrs.frozen
class RouteInfo:
    """Information about a route, for functions that serve several routes.

    An ``on_error`` function with a parameter of this type receives the route whose handler failed. A middleware factory
    receives the route that its middleware surrounds. A publish middleware factory receives a description of the
    publication, or of `App.publish`.

    Attributes:
        name: The name of the route in ``app.stats.routes``, such as ``on_quote()``. For a publication, its pattern; for
            `App.publish`, ``app.publish``.
        kind: ``"subscribe"`` for a handler of messages, ``"reply"`` for a handler of requests, ``"work"`` for a handler
            of jobs; ``"publish"`` for a publication.
        patterns: The texts of the patterns, with the prefixes of the groups. Empty for `App.publish`.
        schema: The type of the body. For a handler with ``batch``, it is the type of one message. None if a handler has
            no body parameter, or a publication has no type.
        is_async: True if middleware must await the handler: for an ``async`` function, and for a plain function that
            takes an ``async`` resource of the message.
        where: The line of the handler, publisher or app, as ``file:line``.
        is_batch: True for a handler with ``batch``: its middleware is called with a list of messages.
        is_generator: True for a generator, plain or ``async``: its middleware ends before the generator yields its
            first value.
    """

    name: str
    kind: RouteKind | Literal["publish"]
    patterns: tuple[str, ...]
    schema: Any = attrs.field(hash=False)  # a type is not always hashable
    is_async: bool
    where: str
    is_batch: bool = False
    is_generator: bool = False


@attrs.frozen(eq=False)
class Resource:
    """A generator function that opens an object, yields it once, and closes it."""

    function: Callable[..., Any]
    where: str
    namespace: Mapping[str, Any] | None
    scope: ResourceScope


@attrs.frozen(eq=False)
class Producer:
    """A function decorated with a publisher or with ``every``.

    ``publication`` is None for a function that is only decorated with ``every``.
    """

    function: Callable[..., Any]
    publication: Publication[Any] | None
    schedule: Schedule | None
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Hook:
    """A function called on start, on stop, for a gap or for an unrouted message."""

    function: Callable[..., Any]
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class ErrorHook(Hook):
    """A function called with an error of one of ``kinds`` and the failed message."""

    kinds: tuple[type[BaseException], ...]


@attrs.frozen
class Hooks:
    """All hooks of an app, grouped by the event that calls them.

    ``middleware`` contains the factories of the app. ``isolate`` is True if each message gets its own context.
    ``recover`` is True if routes recover lost messages by default.
    """

    startup: tuple[Hook, ...]
    shutdown: tuple[Hook, ...]
    unrouted: tuple[Hook, ...]
    gaps: tuple[Hook, ...]
    errors: tuple[ErrorHook, ...]
    middleware: tuple[Hook, ...] = ()
    isolate: bool = False
    recover: bool = False
