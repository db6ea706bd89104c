"""The options of handlers and publishers, with types, defaults and meaning.

Functions accept them as ``**options: Unpack[RouteOptions]``, so type checkers and editors know each keyword. The
decorator `takes` makes ``help()`` and `inspect.signature` list them too.
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
    """The options of `Routes.subscribe`, `Routes.add_route` and `App.attach`."""

    codec: str | Codec | None
    """The codec for bodies whose publisher does not name one. Default: the app's codec."""
    copy: bool
    """Decode a separate object for a handler that modifies it. Default: False; equal types share one object."""
    thread: bool
    """Run a plain, blocking function in the reactor's thread pool. Default: False."""
    max_in_flight: int
    """The maximum number of unfinished calls at a time. Default: 100."""
    ordered: bool
    """Handle the messages of one topic one after the other. Default: True."""
    queue: int | None
    """The maximum number of waiting messages, then reading pauses. Default: 1,000, or 4 times ``batch`` if more."""
    stale_after: float | None
    """The age in seconds beyond which a message is skipped and counted as stale. Default: no limit."""
    batch: int | None
    """Pass lists of up to this number of messages, 1 to 10,000. Default: single messages."""


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
    """The options of `Routes.publisher`."""

    every: float | None
    """The period in seconds between calls of the decorated function. Default: no timer."""
    codec: str | Codec | None
    """The codec of the messages. Default: the app's codec."""
    jitter: float
    """The random variation of each period as a fraction of it, 0 to 1; requires ``every``. Default: 0."""
    initial_delay: float
    """The delay in seconds before the first call; requires ``every``. Default: 0."""
    keep: Keep
    """With ``"last"``, a new subscriber receives the latest message of each topic. Default: None."""
    coalesce: bool | Coalesce | None
    """Send messages of one topic together in one frame. Default: the app's ``coalesce``."""


PUBLISHER_DEFAULTS: PublisherOptions = {
    "every": None,
    "codec": None,
    "jitter": 0.0,
    "initial_delay": 0.0,
    "keep": None,
    "coalesce": None,
}


NEEDS = {"jitter": "every", "initial_delay": "every"}
"""The options that have no effect without another option. Without it they are refused."""


def takes(kind: type[Any], defaults: Any) -> Callable[[F], F]:
    """Show the options of ``kind`` in the signature of the decorated function.

    Python itself would show ``**options`` only. Calls of the function are not changed.
    """

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
    """Return all options: those in ``given``, and ``defaults`` for the others.

    Raises:
        TypeError: A name in ``given`` is not an option; ``function`` is the name that the error shows.
        SignatureError: An option lacks the option that it `NEEDS`.
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
            fault = f"{name}={chosen[name]!r} does nothing without {needed}=: add {needed}, or remove {name}"
            raise SignatureError(fault, parameter=name, where=users_line())
    return cast("Options", chosen)
