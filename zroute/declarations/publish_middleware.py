"""Create publish middleware: call the user's factories and check their results."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from zroute.declarations.records import Hook, RouteInfo
from zroute.declarations.signatures import hints_of
from zroute.errors import SetupError, SignatureError
from zroute.functions import is_coroutine_function, is_generator_function, name_of, short_path
from zroute.messages.topics import Topic
from zroute.publishing.middleware import Middleware

__all__ = ["make_around", "surround_publication"]


HEADERS = "headers"
"""The parameter of a publish middleware that receives the headers of the message."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def surround_publication(middleware: Middleware, factories: Sequence[Hook], info: RouteInfo) -> bool:
    """Add the functions of ``factories`` to ``middleware``, the first one outermost.

    ``info`` describes the publication to the factories. Return True if at least one function was added. A factory that
    returns its argument ``call`` adds no function.

    Raises:
        SignatureError: A factory fails, or its result can't be called as middleware.
    """
    innermost = middleware.outermost
    for factory in reversed(factories):
        call = middleware.outermost
        around = make_around(factory, call, info, "def stamp(call, route)", "publish middleware")
        if around is not call:
            topics, headers = _parameters(factory, around, info)
            middleware.add(around, topics, headers=headers)
    return middleware.outermost is not innermost


def _parameters(factory: Hook, around: Any, info: RouteInfo) -> tuple[tuple[str, ...], bool]:
    """Check the middleware ``around``, which ``factory`` has returned.

    Return the names of the middleware's parameters for the topic, and True if it has a parameter for the headers.
    """
    name = name_of(factory.function)
    if not callable(around):
        raise SignatureError(
            f"{name} returned {around!r} for {info.name!r}, not a function: return a function such as "
            "def around(message); or return call to leave the publisher unchanged",
            where=factory.where,
        )
    if is_coroutine_function(around) or is_generator_function(around):
        raise SignatureError(
            f"{name} returned {name_of(around)}, which is async or a generator, but publish() can't wait: return "
            "a plain function def around(message) that returns call(message)",
            where=factory.where,
        )
    hints = hints_of(around, factory.namespace, factory.where)
    topics = tuple(parameter for parameter, hint in hints.items() if hint is Topic and parameter != "return")
    headers = _takes_headers(around)
    form = "def around(message), or def around(message, topic: Topic, headers)"
    named = dict.fromkeys((*topics, *([HEADERS] if headers else [])))
    _check_call(around, (None,), named, form, factory.where, "publish middleware")
    return topics, headers


def _takes_headers(around: Callable[..., Any]) -> bool:
    """Return True if a parameter after the message is called ``headers``.

    A parameter with a default does not count, because factories use such parameters for values of their own.
    """
    try:
        _, *more = inspect.signature(around).parameters.values()
    except (TypeError, ValueError):  # no signature or no parameter: another check refuses this
        return False
    return any(each.name == HEADERS and each.default is each.empty and each.kind in _BY_NAME for each in more)


def make_around(factory: Hook, call: Callable[..., Any], info: RouteInfo, form: str, kind: str) -> Any:
    """Call a factory, and return its result.

    Errors show ``form``, the signature of a correct factory, and ``kind``, the purpose of the factory.

    Raises:
        SignatureError: The factory can't be called, or raises an error.
    """
    name = name_of(factory.function)
    _check_call(factory.function, (call, info), {}, form, factory.where, kind)
    try:
        return factory.function(call, info)
    except SetupError:
        raise
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        raise SignatureError(
            f"{name} failed for {info.name} at {info.where}: {type(error).__name__}: {error} "
            f"({short_path(last.filename)}:{last.lineno}). zroute calls {name} once, before the app starts: "
            f"write {form}, and return a function around(message)",
            where=factory.where,
        ) from error


def _check_call(
    function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, None], form: str, where: str, kind: str
) -> None:
    """Raise SignatureError if a function can't be called with these arguments.

    The error shows ``form``, the signature of a correct function, and ``kind``, the purpose of the function.
    """
    try:
        inspect.signature(function).bind(*given, **named)
    except (TypeError, ValueError) as error:
        raise SignatureError(
            f"{name_of(function)} can't be called as {kind}: {error}; write {form}", where=where
        ) from error
