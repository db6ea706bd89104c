"""Compilation of resources: their types, dependencies and opening order.

Resources open in dependency order and close in reverse order. A cycle of dependencies is an error.
"""

from __future__ import annotations

import builtins
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from graphlib import CycleError, TopologicalSorter
from types import NoneType
from typing import Any, get_args, get_origin

import attrs

from zroute.declarations.providers import Needed
from zroute.declarations.records import Resource, ResourceScope
from zroute.declarations.signatures import Call, hints_of, plan
from zroute.errors import SignatureError
from zroute.functions import is_async_generator_function, name_of
from zroute.messages.schema import describe
from zroute.messages.topics import Topic
from zroute.messages.wire import Envelope

__all__ = ["CompiledResource", "MessageResources", "compile_resources", "opened_for", "take_message_resources"]

_YIELDS = (Iterator, Generator, Iterable, AsyncIterator, AsyncGenerator, AsyncIterable)


@attrs.frozen(eq=False)
class CompiledResource:
    """A resource, with the type of its object and the plan to call its function.

    Attributes:
        kind: The type that the resource yields.
        name: The name of the generator function, for logs and errors.
        where: The user's line, as ``file:line``.
        call: The plan for the call; ``call.needs`` contains the types of the resources that the function needs.
        scope: "app" if the resource is open while the app runs, "message" if it is open for one message.
        injected: True if a handler, timer, publisher or hook uses the resource; False if only other resources use it.
    """

    kind: Any
    name: str
    where: str
    call: Call
    scope: ResourceScope
    injected: bool = False

    @property
    def is_async(self) -> bool:
        """True for an async generator function."""
        return is_async_generator_function(self.call.function)


@attrs.frozen(eq=False)
class MessageResources:
    """The resources with ``scope="message"`` that one route needs.

    Attributes:
        parameters: For each handler parameter that receives one of the resources, the type of this resource.
        resources: All needed resources in opening order, including those that other resources need.
        around_chain: True if a middleware needs one of the resources.
    """

    parameters: Mapping[str, Any]
    resources: tuple[CompiledResource, ...]
    around_chain: bool = False

    @property
    def is_async(self) -> bool:
        """True if at least one of the resources is async."""
        return any(resource.is_async for resource in self.resources)

    @property
    def makes_handler_wait(self) -> bool:
        """True if the handler itself takes an async resource.

        Its middleware must then await the call.
        """
        return any(resource.is_async for resource in opened_for(self.parameters.values(), self.resources))


def take_message_resources(call: Call, resources: Sequence[CompiledResource]) -> tuple[Call, MessageResources | None]:
    """Separate the resources of a message from ``call``.

    Return the plan without these resources, and the resources, or None if the call needs none of them.
    """
    of_messages = {resource.kind for resource in resources if resource.scope == "message"}
    given = call.constants.given
    parameters = {
        name: value.kind for name, value in given.items() if isinstance(value, Needed) and value.kind in of_messages
    }
    if not parameters:
        return call, None
    left = {name: value for name, value in given.items() if name not in parameters}
    by_name = call.by_name or call.body in call.order  # the parameter of a resource may precede the body
    call = attrs.evolve(call, constants=attrs.evolve(call.constants, given=left), by_name=by_name)
    return call, MessageResources(parameters, opened_for(parameters.values(), resources))


def opened_for(kinds: Iterable[Any], resources: Sequence[CompiledResource]) -> tuple[CompiledResource, ...]:
    """Return the message resources that ``kinds`` need, in opening order."""
    of_messages = {resource.kind for resource in resources if resource.scope == "message"}
    wanted = of_messages & set(kinds)
    for resource in reversed(resources):  # a resource comes before all resources that use it
        if resource.kind in wanted:
            wanted |= of_messages & set(resource.call.needs)
    return tuple(resource for resource in resources if resource.kind in wanted)


def compile_resources(
    recorded: Sequence[Resource], given: Mapping[Any, Any]
) -> tuple[tuple[CompiledResource, ...], dict[Any, Any]]:
    """Return the resources in opening order, and ``given`` with their types.

    Raises:
        SignatureError: A resource yields no usable type, two resources yield the same type, a dependency is missing, or
            the dependencies form a cycle.
    """
    by_kind: dict[Any, Resource] = {}
    for resource in recorded:
        kind = _kind(resource, given)
        other = by_kind.setdefault(kind, resource)
        if other is not resource:
            raise SignatureError(
                f"{name_of(resource.function)} and {name_of(other.function)} at {other.where} both yield "
                f"{describe(kind)}, but only one resource can yield a type: use a different class or typing.NewType "
                "for each resource",
                where=resource.where,
            )
    given = {**given, **{kind: Needed(kind) for kind in by_kind}}
    # A resource may wrap another one, and request it by a common base class, which then selects the wrapped resource.
    compiled = {
        kind: _resource(kind, resource, {**given, kind: Needed(kind, exact=True)}) for kind, resource in by_kind.items()
    }
    try:
        order = tuple(TopologicalSorter({kind: one.call.needs for kind, one in compiled.items()}).static_order())
    except CycleError as error:
        circle = [compiled[kind] for kind in reversed(error.args[1])]
        raise SignatureError(
            f"resources depend on each other in a cycle, so none can be opened first: {_drawn(circle)}; create the "
            "object of one resource inside the function of another resource",
            where=circle[0].where,
        ) from None
    resources = tuple(compiled[kind] for kind in order)
    _refuse_short_lived(resources)
    return resources, given


def _refuse_short_lived(resources: Sequence[CompiledResource]) -> None:
    """Raise SignatureError if a resource of the app needs a resource of a message."""
    of_messages = {one.kind for one in resources if one.scope == "message"}
    for one in resources:
        for kind in one.call.needs:
            if one.scope == "app" and kind in of_messages:
                raise SignatureError(
                    f"{one.name} is open while the app runs, but needs {describe(kind)}, which is open for only one "
                    f"message (scope='message'): set scope='message' for {one.name} too",
                    where=one.where,
                )


def _drawn(chain: Sequence[CompiledResource]) -> str:
    return " -> ".join(describe(resource.kind) for resource in chain)


def _kind(resource: Resource, given: Mapping[Any, Any]) -> Any:
    """Return the type that a resource yields, from its return annotation."""
    name = name_of(resource.function)
    hint = hints_of(resource.function, resource.namespace, resource.where).get("return")
    kind = get_args(hint)[0] if get_origin(hint) in _YIELDS and get_args(hint) else None
    if kind in (None, NoneType, Any, object):
        is_async = inspect.isasyncgenfunction(resource.function)
        raise SignatureError(
            f"{name} does not declare the type that it yields: add a return annotation, as in "
            f"`{'async ' if is_async else ''}def {name[:-2]}() -> {'Async' if is_async else ''}Iterator[Database]`",
            where=resource.where,
        )
    if kind in given or kind in (Envelope, Topic) or _is_builtin(kind):
        raise SignatureError(
            f"{name} yields {describe(kind)}, so every parameter of that type would receive the object: yield an "
            "object of your own class or of a typing.NewType",
            where=resource.where,
        )
    return kind


def _is_builtin(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    # Compare by identity: a class from a file that Twisted executes, such as a .tac file, also has the
    # module name "builtins".
    return getattr(builtins, getattr(kind, "__name__", ""), None) is kind


def _resource(kind: Any, resource: Resource, given: Mapping[Any, Any]) -> CompiledResource:
    call = plan(resource.function, captures=(), given=given, namespace=resource.namespace, where=resource.where)
    name = name_of(resource.function)
    of_message = call.envelope or next(iter(call.constants.topic), None)
    if of_message:
        raise SignatureError(
            f"parameter {of_message!r} of {name} needs the message, but resources do not receive messages: set a "
            "ContextVar in a middleware with an Envelope or Topic parameter, and read the ContextVar in the resource"
            + (" (with scope='message')" if resource.scope == "app" else ""),
            parameter=of_message,
            where=resource.where,
        )
    missing = call.body
    if missing:
        wanted = describe(hints_of(resource.function, resource.namespace, resource.where).get(missing, Any))
        raise SignatureError(
            f"parameter {missing!r} of {name} needs {wanted}, but no resource yields {wanted}: {describe(kind)} -> "
            f"{wanted} (missing); write an @app.resource that yields {wanted}; or give the parameter a default",
            parameter=missing,
            where=resource.where,
        )
    return CompiledResource(kind, name, resource.where, call, resource.scope)
