"""Analysis of the return annotations of functions under a publisher.

This module finds the type of the messages, and annotations that contradict the publisher's schema. Annotations are
often vague or incomplete, so a check reports only contradictions that are certain.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterable, Generator, Iterable
from enum import Enum
from types import FunctionType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from zroute.messages.codecs import BYTES_LIKE
from zroute.messages.schema import ARRAYS, LEAVES, MAPS, children, is_class, resolved
from zroute.publishing.headers import WithHeaders

__all__ = ["has_headers", "lacks", "may_be_none", "message_type", "misfit"]

_UNIONS = (Union, UnionType)
_UNTYPED = (Any, object, dict, list)
# Methods in which a class can set attributes that are not fields.
_HOOKS = ("__attrs_post_init__", "__post_init__", "__getattr__")


def message_type(hint: Any) -> Any:
    """Return the type of the messages that a return annotation declares.

    This is T for ``T``, ``T | None``, ``WithHeaders[T]``, ``Iterator[T]``, ``Deferred[T]`` and similar types. Return
    None if the annotation does not declare a type, for example Any.
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in _UNIONS:
        kinds = [message_type(argument) for argument in arguments if argument is not NoneType]
        return None if None in kinds else Union[tuple(kinds)]  # noqa: UP007  # built at run time
    if _is_wrapper(origin):
        return message_type(_inside(origin, arguments)) if arguments else None
    return None if hint in (None, NoneType, Any, object) else hint


def may_be_none(hint: Any) -> bool:
    """Return True if the values of a return annotation may be None.

    The result is also True if the annotation declares no type.
    """
    if hint in (None, NoneType, Any, object):
        return True
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in _UNIONS:
        return any(map(may_be_none, arguments))
    return _is_wrapper(origin) and (not arguments or may_be_none(_inside(origin, arguments)))


def has_headers(hint: Any) -> bool:
    """Return True if a return annotation contains a `WithHeaders`."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    return origin is WithHeaders or ((origin in _UNIONS or _is_wrapper(origin)) and any(map(has_headers, arguments)))


def _is_wrapper(kind: Any) -> bool:
    """Return True if values of ``kind`` contain messages.

    Wrappers are awaitables, iterators and `WithHeaders`.
    """
    return (
        _is_later(kind)
        or kind in (Iterable, AsyncIterable, WithHeaders)
        or hasattr(kind, "__next__")
        or hasattr(kind, "__anext__")
    )


def _is_later(kind: Any) -> bool:
    return hasattr(kind, "__await__")


def _inside(kind: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the type of the content of a wrapper.

    The content is the result of an awaitable, the element of an iterator, or the message of a `WithHeaders`.

    A generator that yields awaitables is written for `inlineCallbacks`. Its content is the generator's return value,
    which only a ``Generator[…]`` annotation declares.
    """
    if _is_later(kind):
        return arguments[-1]
    if not any(_is_later(get_origin(part) or part) for part in _alternatives(resolved(arguments[0]))):
        return arguments[0]
    return arguments[2] if kind is Generator and len(arguments) > 2 else Any


def misfit(hint: Any, schema: Any) -> Any:
    """Return the part of a return annotation that contradicts ``schema``.

    Return None if every part may be compatible. The part None is always allowed, because a function that returns None
    publishes nothing. ``schema`` must be a type that a codec supports.
    """
    if resolved(schema) in _UNTYPED:  # the values have no declared type, so no annotation contradicts them
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
    """Return False if no value of type ``hint`` can be a value of ``schema``."""
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
    """Return the class of a type's values; None if unknown, as for Any or a TypeVar."""
    kind = get_origin(hint) or hint
    if typing.is_typeddict(kind):
        return dict
    return kind if isinstance(kind, type) and kind not in (Any, object) else None


def _are_related(one: type, other: type) -> bool:
    """Return True if a value of one class may be a value of the other.

    This is the case for subclasses in both directions, for an int where a float is declared, and for raw bodies.
    """
    if one in BYTES_LIKE and other in (bytes, memoryview):
        return True
    try:
        return issubclass(one, other) or issubclass(other, one) or (issubclass(one, int) and other is float)
    except TypeError:  # a Protocol without @runtime_checkable
        return True


def _arguments_fit(one: type, hints: tuple[Any, ...], other: type, schemas: tuple[Any, ...]) -> bool:
    """Return True if the type arguments of two generic types may be compatible.

    Arguments are compared only if both types are arrays, both are maps, or both are the same class.
    """
    comparable = one is other or any(one in kinds and other in kinds for kinds in (ARRAYS, MAPS))
    if not comparable or len(hints) != len(schemas):
        return True
    return all(... in pair or _fits(*pair) for pair in zip(hints, schemas, strict=True))


def lacks(schema: Any, name: str) -> bool:
    """Return True if no message of type ``schema`` has an attribute or key ``name``."""
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
    """Return True if instances may have attributes besides their fields.

    A handwritten ``__init__`` or one of ``_HOOKS`` can add attributes. Generated code is recognised by its file name,
    such as ``<attrs generated init …>``.
    """
    made = getattr(kind, "__init__", None)
    is_written = isinstance(made, FunctionType) and not made.__code__.co_filename.startswith("<")
    return is_written or any(hasattr(kind, hook) for hook in _HOOKS)
