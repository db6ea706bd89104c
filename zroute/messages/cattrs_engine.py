"""Structure the types that msgspec would get wrong, with cattrs.

A codec first decodes a body to plain data: dicts, lists and leaves. This module turns that data into objects, and
refuses every value that would need a conversion.

The parts of a type that msgspec supports are left to `msgspec.convert`. cattrs handles classes with converters, aliases
or private names, containers of these, and unions whose classes differ by their fields.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Union, get_args, get_origin

import attrs
import cattrs
import msgspec
from cattrs.disambiguators import create_default_dis_func
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from zroute.errors import SchemaError
from zroute.messages.schema import LEAVES, describe, inspect, is_class, resolved

__all__ = ["structurer", "unstructure"]

Structure = Callable[[Any], Any]
_ABSTRACT: Mapping[str, type] = {"Sequence": list, "MutableSequence": list, "Set": set}


def structurer(schema: Any, *, str_keys: bool) -> Structure:
    """Return the function that makes an object of type ``schema`` from plain data.

    The function raises an exception of any type if the data does not fit.

    Args:
        schema: the declared type.
        str_keys: True if the format has only text as keys of maps (JSON); such keys are converted to their type.

    Raises:
        SchemaError: cattrs can't distinguish the members of a union, or can't carry the type.
    """
    converter = cattrs.Converter(detailed_validation=False)  # the first error is enough to refuse a message

    def clean(hint: Any) -> bool:
        return inspect(hint).engine != "cattrs" if hint is not schema else False

    def by_msgspec(hint: Any) -> Callable[[Any, Any], Any]:
        return lambda value, _: msgspec.convert(value, hint, strict=True, str_keys=str_keys)

    def collection(hint: Any) -> Callable[[Any, Any], Any]:
        return _collection(hint, converter, str_keys)

    for leaf in LEAVES:  # cattrs' own hooks for some of these convert values, which would hide a wrong type
        converter.register_structure_hook(leaf, by_msgspec(leaf))
    converter.register_structure_hook_factory(attrs.has, lambda kind: _attrs_hook(kind, converter))
    converter.register_structure_hook_factory(lambda hint: isinstance(hint, type) and issubclass(hint, Enum), _enum)
    converter.register_structure_hook_factory(_is_collection, collection)
    converter.register_structure_hook_factory(_is_union, lambda hint: _union(hint, converter, str_keys))
    converter.register_structure_hook_factory(clean, by_msgspec)
    try:
        hook = converter.get_structure_hook(schema)
    except Exception as error:
        raise SchemaError(
            f"{describe(schema)} can't be decoded without ambiguity ({error}): use a tag, classes with different "
            "fields, or other types",
            schema=schema,
        ) from error
    return lambda value: hook(value, schema)


def _attrs_hook(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    hook = make_dict_structure_fn(kind, converter, _cattrs_include_init_false=True)

    def structure(value: Any, hint: Any) -> Any:
        if type(value) is not dict:  # the hook would accept any mapping
            raise TypeError(f"expected a map for {describe(kind)}, got {type(value).__name__}")
        return hook(value, hint)

    return structure


def _enum(kind: Any) -> Callable[[Any, Any], Any]:
    # The type is a part of the key, because True == 1 and 1.0 == 1.
    by_value = {(type(member.value), member.value): member for member in kind}
    return lambda value, _: by_value[type(value), value]


def _is_collection(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and not is_class(origin) and bool(get_args(hint))


def _collection(hint: Any, converter: cattrs.Converter, str_keys: bool) -> Callable[[Any, Any], Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _map(arguments, converter, str_keys)
    hooks = [converter.get_structure_hook(argument) for argument in arguments if argument is not ...]
    make = _ABSTRACT.get(origin.__name__, origin) if origin is not None else list
    fixed = origin is tuple and ... not in arguments

    def structure(value: Any, _: Any) -> Any:
        if type(value) not in (list, tuple):
            raise TypeError(f"expected a list for {describe(hint)}, got {type(value).__name__}")
        if fixed and len(value) != len(hooks):
            raise ValueError(f"expected {len(hooks)} items for {describe(hint)}, got {len(value)}")
        each = zip(hooks, arguments, value, strict=True) if fixed else ((hooks[0], arguments[0], v) for v in value)
        return make(hook(item, argument) for hook, argument, item in each)

    return structure


def _map(arguments: tuple[Any, ...], converter: cattrs.Converter, str_keys: bool) -> Callable[[Any, Any], Any]:
    of_keys, of_values = arguments
    hook = converter.get_structure_hook(of_values)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeError(f"expected a map, got {type(value).__name__}")
        keys = msgspec.convert(dict.fromkeys(value), dict[of_keys, None], str_keys=str_keys)  # type: ignore[valid-type]
        return {key: hook(item, of_values) for key, item in zip(keys, value.values(), strict=True)}

    return structure


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _union(hint: Any, converter: cattrs.Converter, str_keys: bool) -> Callable[[Any, Any], Any]:
    """Return the function that structures a union.

    A map is an instance of one of the classes; its fields show of which. msgspec distinguishes all other members.
    """
    parts = [resolved(argument) for argument in get_args(hint)]
    classes = [part for part in parts if is_class(get_origin(part) or part)]
    rest = [part for part in parts if part not in classes]
    of_map = _by_fields(classes, converter) if classes else None
    of_rest = Union[tuple(rest)] if rest else None  # noqa: UP007  # built at run time
    if of_rest is not None:
        msgspec.json.Decoder(of_rest)  # raises if msgspec can't distinguish the members

    def structure(value: Any, _: Any) -> Any:
        if of_map is not None and type(value) is dict:
            return of_map(value)
        if of_rest is None:
            raise TypeError(f"expected a map for {describe(hint)}, got {type(value).__name__}")
        return msgspec.convert(value, of_rest, strict=True, str_keys=str_keys)

    return structure


def _by_fields(classes: list[Any], converter: cattrs.Converter) -> Structure:
    if len(classes) == 1:
        hook = converter.get_structure_hook(classes[0])
        return lambda value: hook(value, classes[0])
    choose = create_default_dis_func(converter, *classes)

    def structure(value: Any) -> Any:
        kind = choose(value)
        if kind is None:
            raise TypeError("its fields match no class of the union")
        return converter.structure(value, kind)

    return structure


def _unstructurer() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_unstructure_hook_factory(
        attrs.has, lambda kind: make_dict_unstructure_fn(kind, converter, _cattrs_include_init_false=True)
    )
    return converter


_plain = _unstructurer()


def unstructure(value: Any) -> Any:
    """Return ``value`` as plain data: each class instance as a dict by field name."""
    return _plain.unstructure(value)
