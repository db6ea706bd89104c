"""The plan for lists of messages, which handlers with ``batch=`` receive.

A list holds the messages received so far, up to the number in ``batch``. The handler is called when the list is full
or when no further message waits to be read. A list never waits for a message that may not arrive.
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
    """The way in which one route collects messages into lists.

    Attributes:
        most: The maximum number of messages in a list.
        one_topic: True if all messages of a list must have the same topic.
        keyword: The name of the parameter that receives the list; None if the list is passed by position.
    """

    most: int
    one_topic: bool
    keyword: str | None


def plan_lists(call: Call, route: Route, outlets: Sequence[CompiledPublication]) -> tuple[Call, Lists | None]:
    """Return ``call`` with the schema of one message, and the plan for its lists.

    The plan is None for a route without ``batch``. Lists have one topic each if the function has a parameter for the
    topic or for a capture, or if its results are published to a topic with one of the captures.

    Raises:
        SignatureError: The function cannot receive lists.
    """
    batch = route.options.batch
    if batch is None:
        return call, None
    name, given = name_of(route.function), f"batch={batch} passes lists of messages"
    if call.envelope is not None:
        raise SignatureError(
            f"{given}, but parameter {call.envelope!r} of {name} expects the envelope of a single message: use a Topic "
            "or a capture instead (each list then has one topic), or remove batch=",
            parameter=call.envelope,
            where=route.where,
        )
    if call.schema is NO_BODY:
        raise SignatureError(f"{given}, but {name} has no parameter for them: add one", where=route.where)
    item = _item(call.schema)
    if item is None or item in (Envelope, Topic):
        wanted = describe(call.schema) if item is None and get_origin(call.schema) is None else "Quote"
        raise SignatureError(
            f"{given}, but parameter {call.body!r} of {name} is declared as {describe(call.schema)}: annotate it as a "
            f"list of the type of one message, such as list[{wanted}]",
            parameter=call.body,
            where=route.where,
        )
    # A capture of both patterns is filled from the topic of the list, so a list must not mix topics.
    captured = {name for outlet in outlets for name in outlet.pattern.captures} & set(route.patterns[0].captures)
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
