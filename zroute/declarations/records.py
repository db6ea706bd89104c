"""What decorators record: handlers, timers, producers, resources and hooks, each with the user's line.

``where`` is that line (``file:line``), and ``namespace`` holds the local names at it, for annotations.
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
    """What a user chose for a handler, checked and complete: see `zroute.declarations.options.RouteOptions`."""

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
    """A handler and the patterns it takes."""

    function: Callable[..., Any]
    patterns: tuple[Pattern, ...]
    options: HandlerOptions
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Resource:
    """A generator function that opens what others are given, yields it once, and closes it."""

    function: Callable[..., Any]
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Producer:
    """A function under a publisher (``publication``) or under ``every`` alone (None)."""

    function: Callable[..., Any]
    publication: Publication[Any] | None
    schedule: Schedule | None
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class Hook:
    """A function that is called at a start or a stop, or with messages that no route took."""

    function: Callable[..., Any]
    where: str
    namespace: Mapping[str, Any] | None


@attrs.frozen(eq=False)
class ErrorHook(Hook):
    """A function that is given errors of ``kinds`` with the envelope they were met in."""

    kinds: tuple[type[BaseException], ...]


@attrs.frozen
class Hooks:
    """Functions of an app that a run calls."""

    startup: tuple[Hook, ...]
    shutdown: tuple[Hook, ...]
    unrouted: tuple[Hook, ...]
    gaps: tuple[Hook, ...]
    errors: tuple[ErrorHook, ...]
