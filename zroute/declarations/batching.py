"""Lists: what is handed to a handler with ``batch=``, worked out at compile time.

A list holds what has been received so far, up to so many messages. It is handed over when it is full, or when nothing
more waits to be read: it never waits for a message that may not come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, get_args, get_origin

import attrs

from zroute.declarations.records import Route
from zroute.declarations.signatures import NO_BODY, Call
from zroute.errors import SignatureError
from zroute.functions import name_of
from zroute.messages.schema import describe
from zroute.messages.topics import Topic
from zroute.messages.wire import Envelope
from zroute.publishing.publication import CompiledPublication

__all__ = ["Lists", "plan_lists"]

_LISTS = (list, Sequence, Collection, Iterable)


@attrs.frozen
class Lists:
    """How messages of one route are handed over together: up to ``most``; with ``one_topic``, of one topic each.

    ``keyword`` names the parameter that gets them, where it can't be given by position.
    """

    most: int
    one_topic: bool
    keyword: str | None


def plan_lists(call: Call, route: Route, outlets: Sequence[CompiledPublication]) -> tuple[Call, Lists | None]:
    """``call`` with the type of one message in place of that of the list, and how lists are made; None without.

    A list is of one topic where the function, or a publisher of what it returns, takes something of the topic.
    Raises SignatureError for a function that can't be given lists.
    """
    batch = route.options.batch
    if batch is None:
        return call, None
    name, given = name_of(route.function), f"batch={batch} hands lists of messages over"
    if call.envelope is not None:
        raise SignatureError(
            f"{given}, and parameter {call.envelope!r} of {name} would get the envelope of one: take a Topic or a "
            "capture, and each list is of one topic, or leave batch= out",
            parameter=call.envelope,
            where=route.where,
        )
    if call.schema is NO_BODY:
        raise SignatureError(f"{given}, and {name} has no parameter for them: add one", where=route.where)
    item = _item(call.schema)
    if item is None or item in (Envelope, Topic):
        wanted = describe(call.schema) if item is None and get_origin(call.schema) is None else "Quote"
        raise SignatureError(
            f"{given}, and parameter {call.body!r} of {name} is declared as {describe(call.schema)}: annotate it as a "
            f"list of the type of one message, such as list[{wanted}]",
            parameter=call.body,
            where=route.where,
        )
    captured = {name for outlet in outlets for name in outlet.pattern.captures} & set(route.patterns[0].captures)
    one_topic = bool(call.constants.converters or call.constants.topic or captured)
    lists = Lists(batch, one_topic, call.body if call.by_name else None)
    return attrs.evolve(call, schema=item, by_name=False), lists


def _item(schema: Any) -> Any:
    """The type of one message of a list that is declared so; None for what is no list."""
    if schema is Any or schema in _LISTS:
        return Any
    if get_origin(schema) not in _LISTS:
        return None
    return (*get_args(schema), Any)[0]
