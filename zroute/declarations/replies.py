"""Find the declared type of the replies from a handler of requests."""

from __future__ import annotations

from typing import Any

from zroute.declarations.records import Route
from zroute.declarations.results import has_headers, may_be_none, message_type
from zroute.declarations.signatures import has_copied_return, hints_of
from zroute.errors import SignatureError
from zroute.functions import name_of

__all__ = ["reply_type"]


def reply_type(route: Route) -> tuple[Any, bool]:
    """Return the type of a handler's replies, and True if a reply may be None.

    The type is None if the handler does not declare a type.

    Raises:
        SignatureError: The handler returns headers, which a reply does not carry.
    """
    copied = has_copied_return(route.function)  # the wrapper may change the results
    hint = None if copied else hints_of(route.function, route.namespace, route.where).get("return")
    if has_headers(hint):
        raise SignatureError(
            f"{name_of(route.function)} returns WithHeaders, but a reply carries no headers: return the value itself",
            where=route.where,
        )
    return message_type(hint), may_be_none(hint)
