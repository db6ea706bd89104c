"""What a function under a publisher says that it returns: the type of its messages, and whether that can be published.

An annotation may say little, or not all: what is not certainly wrong counts as right.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterable, Generator, Iterable
from enum import Enum
from types import FunctionType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from zroute.messages.schema import ARRAYS, LEAVES, MAPS, children, inspect, is_class, resolved

__all__ = ["lacks", "message_type", "misfit"]

_UNIONS = (Union, UnionType)
_HOOKS = ("__attrs_post_init__", "__post_init__", "__getattr__")


def message_type(hint: Any) -> Any:
    """T of ``T | None``, ``Iterator[T]``, ``Deferred[T]`` and the like; None if the annotation declares nothing."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in _UNIONS:
        kinds = [message_type(argument) for argument in arguments if argument is not NoneType]
        return None if None in kinds else Union[tuple(kinds)]  # noqa: UP007  # built at run time
    if _is_wrapper(origin):
        return message_type(_inside(origin, arguments)) if arguments else None
    return None if hint in (None, NoneType, Any, object) else hint


def _is_wrapper(kind: Any) -> bool:
    """True for what is awaited or iterated over, and not published itself."""
    return (
        _is_later(kind) or kind in (Iterable, AsyncIterable) or hasattr(kind, "__next__") or hasattr(kind, "__anext__")
    )


def _is_later(kind: Any) -> bool:
    return hasattr(kind, "__await__")


def _inside(kind: Any, arguments: tuple[Any, ...]) -> Any:
    """What comes of an awaitable or out of an iterator.

    One whose elements are awaited, if only some of them, is written for inlineCallbacks: what that makes of it is what
    the function returns. Only the annotation of a generator tells.
    """
    if _is_later(kind):
        return arguments[-1]
    if not any(_is_later(get_origin(part) or part) for part in _alternatives(resolved(arguments[0]))):
        return arguments[0]
    return arguments[2] if kind is Generator and len(arguments) > 2 else Any


def misfit(hint: Any, schema: Any) -> Any:
    """The part of a return annotation of which no value is a message of ``schema``; None if all of it may be.

    None as a result fits: it publishes nothing. ``schema`` is a type that a codec carries.
    """
    if inspect(schema).engine == "any":
        return None
    hint = resolved(hint)
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in _UNIONS:
        return next((found for part in arguments if (found := misfit(part, schema)) is not None), None)
    if hint is NoneType or _fits(hint, schema):
        return None
    if _is_wrapper(origin):
        return misfit(_inside(origin, arguments), schema) if arguments else None
    return hint


def _fits(hint: Any, schema: Any) -> bool:
    """False if no value of type ``hint`` is one of ``schema``."""
    hint, schema = resolved(hint), resolved(schema)
    parts, others = _alternatives(hint), _alternatives(schema)
    if len(parts) > 1 or len(others) > 1:
        return any(_fits(part, other) for part in parts for other in others)
    one, other = _class_of(parts[0]), _class_of(others[0])
    if one is None or other is None:
        return True
    return _are_related(one, other) and _arguments_fit(one, get_args(hint), other, get_args(schema))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in _UNIONS:
        return get_args(hint)
    return tuple({type(value) for value in get_args(hint)}) if get_origin(hint) is Literal else (hint,)


def _class_of(hint: Any) -> type | None:
    """The class of the values of a type; None if it is not known, as for Any and a TypeVar."""
    kind = get_origin(hint) or hint
    if typing.is_typeddict(kind):
        return dict
    return kind if isinstance(kind, type) and kind not in (Any, object) else None


def _are_related(one: type, other: type) -> bool:
    """True if one may stand for the other: a subclass, a base, an int for a float."""
    try:
        return issubclass(one, other) or issubclass(other, one) or (issubclass(one, int) and other is float)
    except TypeError:  # a protocol that can't be asked
        return True


def _arguments_fit(one: type, hints: tuple[Any, ...], other: type, schemas: tuple[Any, ...]) -> bool:
    """Compare ``list[int]`` with ``list[str]``; parameters that may mean something else are not compared."""
    comparable = one is other or any(one in kinds and other in kinds for kinds in (ARRAYS, MAPS))
    if not comparable or len(hints) != len(schemas):
        return True
    return all(... in pair or _fits(*pair) for pair in zip(hints, schemas, strict=True))


def lacks(schema: Any, name: str) -> bool:
    """True if no message of type ``schema`` has an attribute or a key called ``name``."""
    schema = resolved(schema)
    kind = get_origin(schema) or schema
    if kind in _UNIONS:
        return all(lacks(part, name) for part in get_args(schema) if part is not NoneType)
    if typing.is_typeddict(kind):
        return name not in _names(schema)
    if not isinstance(kind, type) or issubclass(kind, Enum) or hasattr(kind, name):
        return False
    if is_class(kind):
        return name not in _names(schema) and not _adds_attributes(kind)
    return kind in LEAVES or kind in ARRAYS


def _names(schema: Any) -> set[str]:
    return {step[1:] for step, _ in children(schema)}


def _adds_attributes(kind: type) -> bool:
    """True if an instance may have attributes that are no fields: the class has code of the user's that makes some."""
    made = getattr(kind, "__init__", None)
    is_written = isinstance(made, FunctionType) and not made.__code__.co_filename.startswith("<")
    return is_written or any(hasattr(kind, hook) for hook in _HOOKS)
