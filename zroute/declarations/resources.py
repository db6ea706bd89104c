"""Resources, compiled: which type each yields, what it needs itself, and the order in which they open."""

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
    """What opens and closes the object of one type; ``call.needs`` are the types it needs itself.

    ``injected`` says that others than resources are given it.
    """

    kind: Any
    name: str
    where: str
    call: Call
    injected: bool = False


def compile_resources(
    recorded: Sequence[Resource], given: Mapping[Any, Any]
) -> tuple[tuple[CompiledResource, ...], dict[Any, Any]]:
    """The resources in the order in which they open, and ``given`` with their types added."""
    by_kind: dict[Any, Resource] = {}
    for resource in recorded:
        kind = _kind(resource, given)
        other = by_kind.setdefault(kind, resource)
        if other is not resource:
            raise SignatureError(
                f"{name_of(resource.function)} yields {describe(kind)}, and so does {name_of(other.function)} at "
                f"{other.where}: one resource a type; tell two apart with typing.NewType or a class each",
                where=resource.where,
            )
    given = {**given, **{kind: Needed(kind) for kind in by_kind}}
    compiled = {kind: _resource(kind, resource, given) for kind, resource in by_kind.items()}
    try:
        order = tuple(TopologicalSorter({kind: one.call.needs for kind, one in compiled.items()}).static_order())
    except CycleError as error:
        circle = [compiled[kind] for kind in reversed(error.args[1])]
        raise SignatureError(
            f"resources need each other in a circle, so none can open first: {_drawn(circle)}; let one of them be made "
            "inside another",
            where=circle[0].where,
        ) from None
    return tuple(compiled[kind] for kind in order), given


def _drawn(chain: Sequence[CompiledResource]) -> str:
    return " -> ".join(describe(resource.kind) for resource in chain)


def _kind(resource: Resource, given: Mapping[Any, Any]) -> Any:
    """The type that a resource yields, as annotated."""
    name = name_of(resource.function)
    hint = hints_of(resource.function, resource.namespace, resource.where).get("return")
    kind = get_args(hint)[0] if get_origin(hint) in _YIELDS and get_args(hint) else None
    if kind in (None, NoneType, Any, object):
        is_async = inspect.isasyncgenfunction(resource.function)
        raise SignatureError(
            f"{name} does not say what it yields: annotate it, as in "
            f"`{'async ' if is_async else ''}def {name[:-2]}() -> {'Async' if is_async else ''}Iterator[Database]`",
            where=resource.where,
        )
    if kind in given or kind in (Envelope, Topic) or _is_builtin(kind):
        raise SignatureError(
            f"{name} yields {describe(kind)}, and every parameter of that type would get it: yield an object of a "
            "class of your own, or of a typing.NewType",
            where=resource.where,
        )
    return kind


def _is_builtin(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    # By identity: a class of a file that Twisted executes, such as a .tac, says that it is of this module, too.
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
