"""The plan for the lists of messages that handlers with ``batch=`` receive.

A list collects received messages, up to the number in ``batch``. The handler is called when the list is full or when no
further message is ready to be read. A list never waits for a message that may not arrive.
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
from zroute.publishing.publication import Outlet

__all__ = ["Lists", "plan_lists"]

_LISTS = (list, Sequence, Collection, Iterable)


@attrs.frozen
class Lists:
    """The settings for a route that collects messages into lists.

    Attributes:
        most: The maximum number of messages in a list.
        one_topic: True if all messages of a list must have the same topic.
        keyword: The name of the parameter that receives the list; None if the list is passed by position.
    """

    most: int
    one_topic: bool
    keyword: str | None


def plan_lists(
    call: Call, route: Route, outlets: Sequence[Outlet], captures: Sequence[str]
) -> tuple[Call, Lists | None]:
    """Return ``call`` with the schema of one message, and the plan for the lists.

    The plan is None for a route without ``batch``. All messages of a list have the same topic if the function has a
    parameter for the topic or for a capture. The same applies if the pattern for results or dead letters contains
    one of ``captures``, the captures of the route and its group.

    Raises:
        SignatureError: The function cannot receive lists.
    """
    batch = route.options.batch
    if batch is None:
        return call, None
    name, given = name_of(route.function), f"batch={batch} passes lists of messages"
    if call.envelope is not None:
        raise SignatureError(
            f"{given}, but parameter {call.envelope!r} of {name} is the Envelope of a single message: replace "
            "the parameter with a Topic or a capture (all messages of a list then have the same topic); or remove "
            "batch=",
            parameter=call.envelope,
            where=route.where,
        )
    if call.schema is NO_BODY:
        text = f"{given}, but {name} has no parameter for the list: add a parameter such as messages: list[Quote]"
        raise SignatureError(text, where=route.where)
    item = _item(call.schema)
    if item is None or item in (Envelope, Topic):
        wanted = describe(call.schema) if item is None and get_origin(call.schema) is None else "Quote"
        raise SignatureError(
            f"{given}, but parameter {call.body!r} of {name} is declared as {describe(call.schema)}: annotate the "
            f"parameter with a list of single messages, such as list[{wanted}]",
            parameter=call.body,
            where=route.where,
        )
    # A capture in both patterns is filled from the topic of the list, so a list must not mix topics.
    published = [outlet.pattern for outlet in outlets]
    if route.options.dead is not None:
        published.append(route.options.dead)
    captured = {name for pattern in published for name in pattern.captures} & set(captures)
    one_topic = bool(call.constants.converters or call.constants.topic or captured)
    lists = Lists(batch, one_topic, call.body if call.by_name else None)
    return attrs.evolve(call, schema=item, by_name=False), lists


def _item(schema: Any) -> Any:
    """Return the element type of ``schema``, or None if it is not a list type."""
    if schema is Any or schema in _LISTS:
        return Any
    if get_origin(schema) not in _LISTS:
        return None
    return (*get_args(schema), Any)[0]
