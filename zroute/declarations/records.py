"""The records of decorated handlers, timers, producers, resources and hooks.

In each record ``where`` is the user's line (``file:line``). ``namespace`` holds the local names at that line, because
annotations may use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from zroute.messages.codecs import Codec
from zroute.messages.topics import Pattern
from zroute.publishing.publication import Publication, Schedule

__all__ = ["ErrorHook", "HandlerOptions", "Hook", "Hooks", "Producer", "Resource", "Route"]


@attrs.frozen(eq=False, kw_only=True)
class HandlerOptions:
    """The options of one handler, checked and with all defaults filled in.

    `zroute.declarations.options.RouteOptions` explains each option.
    """

    codec: Codec | None
    copy: bool
    thread: bool
    max_in_flight: int
    ordered: bool
    queue: int
    stale_after: float | None
    batch: int | None


@attrs.frozen(eq=False)
class Route:
    """A handler and the patterns that it subscribes to."""

    function: Callable[..., Any]
    patterns: tuple[Pattern, ...]
    options: HandlerOptions
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Resource:
    """A generator function that opens an object, yields it once, and closes it."""

    function: Callable[..., Any]
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Producer:
    """A function decorated with a publisher or with ``every``.

    ``publication`` is None for ``every`` alone.
    """

    function: Callable[..., Any]
    publication: Publication[Any] | None
    schedule: Schedule | None
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Hook:
    """A function called at a start or stop, or for a gap or an unrouted message."""

    function: Callable[..., Any]
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class ErrorHook(Hook):
    """A function called with errors of ``kinds`` and the failed envelope."""

    kinds: tuple[type[BaseException], ...]


@attrs.frozen
class Hooks:
    """All hooks of an app, grouped by the event that calls them."""

    startup: tuple[Hook, ...]
    shutdown: tuple[Hook, ...]
    unrouted: tuple[Hook, ...]
    gaps: tuple[Hook, ...]
    errors: tuple[ErrorHook, ...]
