"""Find the declared type of the replies from a handler of requests."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from types import NoneType
from typing import Any, get_args, get_origin

import attrs

from zroute.declarations.records import Route
from zroute.declarations.results import has_headers, may_be_none, message_type
from zroute.declarations.signatures import has_copied_return, hints_of
from zroute.errors import SignatureError
from zroute.functions import is_async_generator_function, is_generator_function, name_of
from zroute.messages.schema import ARRAYS, describe

__all__ = ["Replies", "replies_of"]


@attrs.frozen
class Replies:
    """The replies that a handler declares.

    Attributes:
        type: The type of a reply; NoneType if all replies are None, and None if no type is declared.
        may_be_none: True if a reply may be None.
        are_stream: True if the handler answers with a stream: it is a generator, or returns an iterator.
    """

    type: Any
    may_be_none: bool
    are_stream: bool


def replies_of(route: Route) -> Replies:
    """Return the type of a handler's replies.

    Raises:
        SignatureError: The handler returns headers, which a reply does not carry, or a generator declares the type of
            its values without an iterator.
    """
    function = route.function
    copied = has_copied_return(function)  # the wrapper may change the results
    hint = None if copied else hints_of(function, route.namespace, route.where).get("return")
    if has_headers(hint):
        raise SignatureError(
            f"{name_of(function)} returns WithHeaders, but a reply carries no headers: return the value itself",
            where=route.where,
        )
    yields = is_generator_function(function)
    if yields:
        _check_generator(route, hint)
    found = message_type(hint)
    if found is None and not yields and _is_none(hint):
        found = NoneType
    return Replies(found, may_be_none(hint), yields or _is_iterator(hint))


def _check_generator(route: Route, hint: Any) -> None:
    """Raise SignatureError if a generator does not declare an iterator."""
    later = is_async_generator_function(route.function)
    parts = get_args(hint) if message_type(hint) is not None else ()
    if hint in (None, Any, object) or any(_is_iterator(part, later=later) for part in (hint, *parts)):
        return
    kind, element = "AsyncIterator" if later else "Iterator", hint
    if _is_iterator(hint) or (get_origin(hint) in ARRAYS and get_args(hint)):
        element = get_args(hint)[0] if get_args(hint) else Any
    shown = "…" if element in (Any, NoneType) else describe(element)
    raise SignatureError(
        f"{name_of(route.function)} is {'an async' if later else 'a'} generator, but has the return type "
        f"{describe(hint)}: declare an iterator of the yielded values, as in -> {kind}[{shown}]",
        where=route.where,
    )


def _is_none(hint: Any) -> bool:
    """Return True if the annotation is None or an awaitable of None."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    return hint is NoneType or (hasattr(origin, "__await__") and arguments[-1:] == (NoneType,))


def _is_iterator(hint: Any, *, later: bool | None = None) -> bool:
    """Return True if the annotation is an iterator.

    ``later`` selects the kind of iterator: False for plain, True for ``async``, None for both.
    """
    kind = get_origin(hint) or hint
    plain = kind is Iterable or hasattr(kind, "__next__")
    asynchronous = kind is AsyncIterable or hasattr(kind, "__anext__")
    return plain if later is False else asynchronous if later else plain or asynchronous
