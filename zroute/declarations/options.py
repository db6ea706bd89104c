"""The options of handlers and of publishers: each one's name, type, default and meaning, once for all that take them.

Functions take them as ``**options: Unpack[RouteOptions]``: type checkers and editors then know each keyword. What
Python and ``help()`` show comes from `takes`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, cast

from zroute.errors import SignatureError
from zroute.functions import users_line
from zroute.messages.codecs import Codec
from zroute.options import MAX_IN_FLIGHT
from zroute.publishing.publication import Coalesce, Keep

__all__ = ["PUBLISHER_DEFAULTS", "ROUTE_DEFAULTS", "PublisherOptions", "RouteOptions", "complete", "takes"]

F = TypeVar("F", bound=Callable[..., Any])
Options = TypeVar("Options", "RouteOptions", "PublisherOptions")


class RouteOptions(TypedDict, total=False):
    """Options of a handler: of `Routes.subscribe`, `Routes.add_route` and `App.attach`."""

    codec: str | Codec | None
    """How bodies are written if their publisher does not say it. Default: the app's codec."""
    copy: bool
    """Decode an object of its own for this handler, which changes it. Default: False, handlers of one type share it."""
    thread: bool
    """Run the function, a plain one that blocks, in the reactor's thread pool. Default: False."""
    max_in_flight: int
    """Unfinished calls at a time, at most. Default: 100."""
    ordered: bool
    """Handle messages of one topic one after the other. Default: True."""
    queue: int | None
    """Messages that may wait; then reading pauses until half are handled. Default: 1,000, or four times ``batch``."""
    stale_after: float | None
    """Seconds since a message was sent after which it is counted as stale and not handled. Default: no limit."""
    batch: int | None
    """Hand over lists of up to this many messages, 1 to 10,000. Default: single messages."""


ROUTE_DEFAULTS: RouteOptions = {
    "codec": None,
    "copy": False,
    "thread": False,
    "max_in_flight": MAX_IN_FLIGHT,
    "ordered": True,
    "queue": None,
    "stale_after": None,
    "batch": None,
}


class PublisherOptions(TypedDict, total=False):
    """Options of `Routes.publisher`."""

    every: float | None
    """Period in seconds at which a decorated function is called. Default: none."""
    codec: str | Codec | None
    """How messages are written. Default: the app's codec."""
    jitter: float
    """Spread each period by up to this fraction of it, 0 to 1; with ``every`` only. Default: 0."""
    initial_delay: float
    """Seconds before the first call; with ``every`` only. Default: 0."""
    keep: Keep
    """``"last"``: a subscriber that joins gets the latest message of each topic. Default: None."""
    coalesce: bool | Coalesce | None
    """Messages of one topic travel together. Default: as the app has it."""


PUBLISHER_DEFAULTS: PublisherOptions = {
    "every": None,
    "codec": None,
    "jitter": 0.0,
    "initial_delay": 0.0,
    "keep": None,
    "coalesce": None,
}


NEEDS = {"jitter": "every", "initial_delay": "every"}
"""Options that mean something beside another one only: without that they are refused."""


def takes(kind: type[Any], defaults: Any) -> Callable[[F], F]:
    """Show the options of ``kind`` one by one in the signature of the decorated function, in place of ``**options``."""

    def show(function: F) -> F:
        signature = inspect.signature(function)
        *others, _ = signature.parameters.values()
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation.__forward_arg__
            )
            for name, annotation in kind.__annotations__.items()
        ]
        function.__signature__ = signature.replace(parameters=[*others, *options])  # type: ignore[attr-defined]
        return function

    return show


def complete(function: str, given: Options, defaults: Options) -> Options:
    """``given``, and ``defaults`` for all others.

    Raises TypeError for what is no option of ``function``, and SignatureError for one without what it `NEEDS`.
    """
    for name in given:
        if name not in defaults:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}: its options are {', '.join(defaults)}"
            )
    chosen: dict[str, Any] = {**defaults, **given}
    for name in NEEDS.keys() & given.keys():
        needed = NEEDS[name]
        if chosen[name] != defaults[name] and chosen[needed] is None:  # type: ignore[literal-required]
            fault = f"{name}={chosen[name]!r} does nothing without {needed}=: add {needed}, or leave {name} out"
            raise SignatureError(fault, parameter=name, where=users_line())
    return cast("Options", chosen)
