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

from zroute.declarations.records import Resource
from zroute.declarations.signatures import Call, Needed, hints_of, plan
from zroute.errors import SignatureError
from zroute.functions import name_of
from zroute.messages.schema import describe
from zroute.messages.topics import Topic
from zroute.messages.wire import Envelope

__all__ = ["CompiledResource", "compile_resources"]

_YIELDS = (Iterator, Generator, Iterable, AsyncIterator, AsyncGenerator, AsyncIterable)


@attrs.frozen(eq=False)
class CompiledResource:
    """A resource with the type of its object and the way to call its function.

    Attributes:
        kind: The type that it yields.
        name: The name of its function, for logs and errors.
        where: The user's line, as ``file:line``.
        call: The plan of the call; ``call.needs`` are the types of the resources that it needs.
        injected: True if a handler, timer, publisher or hook uses it; False if only other resources do.
    """

    kind: Any
    name: str
    where: str
    call: Call
    injected: bool = False


def compile_resources(
    recorded: Sequence[Resource], given: Mapping[Any, Any]
) -> tuple[tuple[CompiledResource, ...], dict[Any, Any]]:
    """Return the resources in opening order, and ``given`` with their types added.

    Raises:
        SignatureError: A resource yields no usable type, a type is yielded twice, a dependency is missing, or the
            dependencies form a cycle.
    """
    by_kind: dict[Any, Resource] = {}
    for resource in recorded:
        kind = _kind(resource, given)
        other = by_kind.setdefault(kind, resource)
        if other is not resource:
            raise SignatureError(
                f"{name_of(resource.function)} yields {describe(kind)}, and so does {name_of(other.function)} at "
                f"{other.where}, but a type can have one resource only: use a typing.NewType or a class for each",
                where=resource.where,
            )
    given = {**given, **{kind: Needed(kind) for kind in by_kind}}
    compiled = {kind: _resource(kind, resource, given) for kind, resource in by_kind.items()}
    try:
        order = tuple(TopologicalSorter({kind: one.call.needs for kind, one in compiled.items()}).static_order())
    except CycleError as error:
        circle = [compiled[kind] for kind in reversed(error.args[1])]
        raise SignatureError(
            f"resources need each other in a circle, so none can open first: {_drawn(circle)}; create one of them "
            "inside another",
            where=circle[0].where,
        ) from None
    return tuple(compiled[kind] for kind in order), given


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
            f"{name} does not declare what it yields: annotate it, as in "
            f"`{'async ' if is_async else ''}def {name[:-2]}() -> {'Async' if is_async else ''}Iterator[Database]`",
            where=resource.where,
        )
    if kind in given or kind in (Envelope, Topic) or _is_builtin(kind):
        raise SignatureError(
            f"{name} yields {describe(kind)}, and every parameter of that type would receive it: yield an object of "
            "your own class, or of a typing.NewType",
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
    missing = call.body or call.envelope or next(iter(call.constants.topic), None)
    if missing:
        wanted = describe(hints_of(resource.function, resource.namespace, resource.where).get(missing, Any))
        raise SignatureError(
            f"{name} needs {missing!r}, and no resource yields {wanted}: {describe(kind)} -> {wanted} (missing); "
            f"write an @app.resource that yields {wanted}, or give the parameter a default",
            parameter=missing,
            where=resource.where,
        )
    return CompiledResource(kind, name, resource.where, call)
