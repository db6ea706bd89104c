"""Use cattrs for the types that msgspec would decode incorrectly.

A codec first decodes a body to plain data: dicts, lists and leaves. This module turns that data into objects, and
refuses every value that would need a conversion.

`msgspec.convert` converts the parts of a type that msgspec supports, and pydantic converts its own models. cattrs
handles classes with converters, aliases or private names, containers of such classes, and unions whose classes have
different fields. An object of a class with a custom constructor is created by calling the class.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from operator import is_
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import cattrs
import msgspec
from cattrs.disambiguators import create_default_dis_func
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from zroute.errors import DecodeError, SchemaError
from zroute.messages import pydantic_engine
from zroute.messages.constructors import has_fields, parameters, why_called
from zroute.messages.decode_checks import is_bounded
from zroute.messages.extras import NO_EXTRAS, Extras, is_built
from zroute.messages.schema import (
    LEAVES,
    MAPS,
    children,
    describe,
    inspect,
    is_class,
    is_model,
    is_pydantic,
    resolved,
    wire_names,
)

__all__ = ["structurer", "unstructurer"]

Structure = Callable[[Any], Any]
Convert = Callable[[Any, Any], Any]  # `msgspec.convert` for one app and format
_ABSTRACT: Mapping[str, type] = {"Sequence": list, "MutableSequence": list, "Set": set}


def structurer(schema: Any, *, str_keys: bool, extras: Extras = NO_EXTRAS) -> Structure:
    """Return the function that creates a value of type ``schema`` from plain data.

    The function raises an exception, of any type, if the data does not match ``schema``.

    Args:
        schema: the declared type.
        str_keys: True if the format allows only text as keys of maps (JSON). The keys are then converted to their
            declared type.
        extras: the types that the app registers.

    Raises:
        SchemaError: cattrs can't distinguish the members of a union, or does not support the type.
    """
    converter = cattrs.Converter(detailed_validation=False)  # the first error is enough to refuse a message

    def clean(hint: Any) -> bool:
        return inspect(hint, extras).engine != "cattrs" if hint is not schema else False

    finite = "decimal" in inspect(schema, extras).holds and not extras.allow_nan

    def convert(value: Any, hint: Any) -> Any:
        made = msgspec.convert(value, hint, strict=True, str_keys=str_keys, dec_hook=extras.decode)
        if finite and not is_bounded(made):  # plain data has only finite numbers, so it is a Decimal
            raise DecodeError("a Decimal is not finite; expected a finite number")
        return made

    def by_msgspec(hint: Any) -> Callable[[Any, Any], Any]:
        return lambda value, _: convert(value, hint)

    def collection(hint: Any) -> Callable[[Any, Any], Any]:
        return _collection(hint, converter, convert)

    # For some of these types, cattrs' own hooks convert values, which would hide a wrong type. `convert` receives the
    # declared type, because cattrs also uses these hooks for subclasses, such as an IntEnum.
    for leaf in (*LEAVES, *(kind for kind in extras.types if not is_built(kind))):
        converter.register_structure_hook(leaf, convert)
    converter.register_structure_hook_factory(_has_fields, lambda kind: _class_hook(kind, converter))
    converter.register_structure_hook_factory(_is_named_tuple, lambda kind: _named_tuple(kind, converter))
    converter.register_structure_hook_factory(lambda hint: isinstance(hint, type) and issubclass(hint, Enum), _enum)
    converter.register_structure_hook_factory(_is_collection, collection)
    converter.register_structure_hook_factory(_is_union, lambda hint: _union(hint, converter, convert))
    converter.register_structure_hook_factory(
        lambda hint: resolved(hint) is not hint, lambda hint: _bare(hint, converter)
    )
    converter.register_structure_hook_factory(clean, by_msgspec)
    converter.register_structure_hook_factory(is_pydantic, _by_pydantic)
    converter.register_structure_hook_factory(
        lambda hint: _is_struct(hint) and not clean(hint), lambda hint: _refuse_struct(hint, extras)
    )
    # Registered last, because cattrs tries the newest hook first.
    converter.register_structure_hook_func(extras.types.__contains__, partial(_taught, extras))
    try:
        hook = converter.get_structure_hook(schema)
    except SchemaError:
        raise
    except Exception as error:
        raise SchemaError(
            f"{describe(schema)} can't be decoded without ambiguity ({error}): use a tag; or classes with different "
            "fields; or other types",
            schema=schema,
        ) from error
    return lambda value: hook(value, schema)


def _has_fields(hint: Any) -> bool:
    return has_fields(get_origin(hint) or hint)


def _is_named_tuple(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, tuple) and is_class(kind)


def _bare(hint: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    bare = resolved(hint)
    hook = converter.get_structure_hook(bare)
    return lambda value, _: hook(value, bare)


def _is_struct(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _refuse_struct(hint: Any, extras: Extras) -> Callable[[Any, Any], Any]:
    raise SchemaError(
        f"{describe(hint)} is a Struct, which only msgspec can create, but {inspect(hint, extras).reasons[0]}: make "
        f"{describe(hint)} an attrs class or a dataclass",
        schema=hint,
    )


def _by_pydantic(hint: Any) -> Callable[[Any, Any], Any]:
    read = pydantic_engine.plain_reader(hint)
    return lambda value, _: read(value)


def _class_hook(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    origin = get_origin(kind) or kind
    names = wire_names(kind)
    if why_called(origin) is not None:
        return _called(kind, names, converter)
    hook = make_dict_structure_fn(
        kind,
        converter,
        _cattrs_include_init_false=attrs.has(origin),
        **{field: override(rename=name) for field, name in names.items()},  # type: ignore[arg-type]
    )
    required = [names.get(name, name) for name in _required(origin)]

    def structure(value: Any, hint: Any) -> Any:
        _check_map(value, kind)
        try:
            return hook(value, hint)
        except KeyError:
            missing = [name for name in required if name not in value]
            if missing:
                raise _lacking(kind, missing[0]) from None
            raise  # of the user's converter or validator
        except DecodeError:  # the error already names a field
            raise
        except (msgspec.ValidationError, TypeError):
            for step, field in children(kind):
                name = names.get(step[1:], step[1:])
                if name in value:
                    _structured(kind, step, converter.get_structure_hook(field), value[name], field)
            raise  # of the user's converter or validator

    structure.overrides = getattr(hook, "overrides", {})  # type: ignore[attr-defined]  # unions read the names there
    return structure


def _called(kind: Any, names: Mapping[str, str], converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Return the function that creates an object by calling its class.

    The class is called with the fields that its constructor accepts.
    """
    hints = {step[1:]: hint for step, hint in children(kind)}
    taken = [
        (names.get(field, field), each.name, each.required, hints[field], converter.get_structure_hook(hints[field]))
        for field, each in parameters(get_origin(kind) or kind).items()
    ]

    def structure(value: Any, _: Any) -> Any:
        _check_map(value, kind)
        arguments = {}
        for name, parameter, required, hint, hook in taken:
            if name in value:
                arguments[parameter] = _structured(kind, f".{name}", hook, value[name], hint)
            elif required:
                raise _lacking(kind, name)
        return kind(**arguments)

    structure.overrides = {field: override(rename=name) for field, name in names.items()}  # type: ignore[attr-defined]
    return structure


def _named_tuple(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Return the function that creates a NamedTuple by calling its class."""
    origin = get_origin(kind) or kind
    hooks = [(converter.get_structure_hook(hint), hint) for _, hint in children(kind)]
    least = len(hooks) - len(origin._field_defaults)

    def structure(value: Any, _: Any) -> Any:
        if type(value) not in (list, tuple):
            raise TypeError(f"expected a list for {describe(kind)}, got {type(value).__name__}")
        if not least <= len(value) <= len(hooks):
            raise ValueError(f"expected {least} to {len(hooks)} items for {describe(kind)}, got {len(value)}")
        return origin(*(hook(item, hint) for (hook, hint), item in zip(hooks, value, strict=False)))

    return structure


def _taught(extras: Extras, value: Any, kind: type) -> Any:
    try:
        return extras.decode(kind, value)
    except ValueError as error:  # msgspec converts a ValueError of this hook in the same way
        raise msgspec.ValidationError(str(error)) from error


def _structured(kind: Any, step: str, hook: Callable[[Any, Any], Any], value: Any, hint: Any) -> Any:
    """Return the value of a field.

    If the value has the wrong type, the error names the field. Other errors are raised unchanged.
    """
    try:
        return hook(value, hint)
    except (msgspec.ValidationError, TypeError) as error:
        raise DecodeError(f"{describe(kind)}{step}: {error!s:.200}") from error


def _check_map(value: Any, kind: Any) -> None:
    if type(value) is not dict:  # cattrs would accept any mapping
        raise TypeError(f"expected a map for {describe(kind)}, got {type(value).__name__}")


def _lacking(kind: Any, name: str) -> DecodeError:
    return DecodeError(f"the field {name!r} of {describe(kind)} is missing")


def _required(kind: Any) -> list[str]:
    """Return the names of the fields without a default."""
    if attrs.has(kind):
        return [field.name for field in attrs.fields(kind) if field.default is attrs.NOTHING]
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return [field.name for field in fields if field.default is missing and field.default_factory is missing]


def _enum(kind: Any) -> Callable[[Any, Any], Any]:
    # The type is a part of the key, because True == 1 and 1.0 == 1.
    by_value = {(type(member.value), member.value): member for member in kind}

    def structure(value: Any, _: Any) -> Any:
        try:
            return by_value[type(value), value]
        except (KeyError, TypeError):  # a list or map is not hashable
            expected = ", ".join(repr(member.value) for member in kind)
            raise DecodeError(
                f"{reprlib.repr(value)} is not a value of {describe(kind)}: expected one of {expected}"
            ) from None

    return structure


def _is_collection(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and not is_class(origin) and bool(get_args(hint))


def _collection(hint: Any, converter: cattrs.Converter, convert: Convert) -> Callable[[Any, Any], Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _map(arguments, converter, convert)
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


def _map(arguments: tuple[Any, ...], converter: cattrs.Converter, convert: Convert) -> Callable[[Any, Any], Any]:
    of_keys, of_values = arguments
    hook = converter.get_structure_hook(of_values)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise TypeError(f"expected a map, got {type(value).__name__}")
        # As keys of a dict, because msgspec converts text to other types only there (`str_keys`).
        keys = convert(dict.fromkeys(value), dict[of_keys, None])  # type: ignore[valid-type]
        return {key: hook(item, of_values) for key, item in zip(keys, value.values(), strict=True)}

    return structure


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _union(hint: Any, converter: cattrs.Converter, convert: Convert) -> Callable[[Any, Any], Any]:
    """Return the function that structures a union.

    A map represents an object of one of the classes, which the fields of the map identify. msgspec distinguishes all
    other members.
    """
    parts = [resolved(argument) for argument in get_args(hint)]
    classes = [part for part in parts if is_class(get_origin(part) or part)]
    rest = [part for part in parts if part not in classes]
    _refuse_maps(hint, parts, classes)
    of_map = _by_fields(classes, converter) if classes else None
    of_rest = Union[tuple(rest)] if rest else None  # noqa: UP007  # built at run time
    if of_rest is not None:
        msgspec.json.Decoder(of_rest)  # raises if msgspec can't distinguish the members

    def structure(value: Any, _: Any) -> Any:
        if of_map is not None and type(value) is dict:
            return of_map(value)
        if of_rest is None:
            raise TypeError(f"expected a map for {describe(hint)}, got {type(value).__name__}")
        try:
            return convert(value, of_rest)
        except msgspec.ValidationError as error:
            if of_map is None:
                raise
            raise DecodeError(f"{error}, or a map for {describe(Union[tuple(classes)])}") from None  # noqa: UP007

    return structure


def _refuse_maps(hint: Any, parts: list[Any], classes: list[Any]) -> None:
    """Raise TypeError if the union contains both classes and map types."""
    maps = [part for part in parts if (get_origin(part) or part) in MAPS]
    if classes and maps:
        raise TypeError(f"a map could be any of {describe(hint)}")


def _by_fields(classes: list[Any], converter: cattrs.Converter) -> Structure:
    if len(classes) == 1:
        hook = converter.get_structure_hook(classes[0])
        return lambda value: hook(value, classes[0])
    other = next((one for one in classes if not _has_fields(get_origin(one) or one)), None)
    if other is not None:
        union = " | ".join(map(describe, classes))
        raise SchemaError(
            f"zroute can't distinguish the classes of {union}, because {describe(other)} is neither an attrs class nor "
            "a dataclass: make all classes attrs classes or dataclasses; or make all classes Structs with a tag, as in "
            f"class {describe(other)}(msgspec.Struct, tag=True)",
            schema=other,
        )
    choose = _by_tag(classes) or create_default_dis_func(converter, *classes)
    tags = _tags(classes)

    def structure(value: Any) -> Any:
        try:
            kind = choose(value)
        except (KeyError, TypeError, ValueError):  # an unknown tag, one that is not hashable, or other fields
            kind = None
        if kind is None:
            raise _no_class(value, classes, tags)
        return converter.structure(value, kind)

    return structure


def _by_tag(classes: list[Any]) -> Structure | None:
    """Return the function that finds a class by its tag, or None.

    The tag is a field that all classes have, and whose type is a Literal with different values in each class. cattrs
    supports such tags too, but not as ``Annotated[Literal[…], …]``.
    """
    for name, values in _tags(classes).items():
        pairs = [(value, one) for one in classes for value in get_args(resolved(dict(_on_the_wire(one))[name]))]
        if len(pairs) == len(values):
            return partial(_kind_of, name, dict(pairs))
    return None


def _kind_of(name: str, kinds: Mapping[Any, Any], value: Mapping[Any, Any]) -> Any:
    return kinds[value[name]]


def _tags(classes: list[Any]) -> dict[str, tuple[Any, ...]]:
    """Return the fields that are a Literal in all classes, with the allowed values."""
    values = [
        {name: get_args(resolved(kind)) for name, kind in _on_the_wire(one) if get_origin(resolved(kind)) is Literal}
        for one in classes
    ]
    shared = [name for name in values[0] if all(name in fields for fields in values)]
    return {name: tuple(dict.fromkeys(value for fields in values for value in fields[name])) for name in shared}


def _on_the_wire(kind: Any) -> list[tuple[str, Any]]:
    """Return the fields of a class: their names in messages, and their types."""
    names = wire_names(kind)
    return [(names.get(step[1:], step[1:]), hint) for step, hint in children(kind)]


def _no_class(value: Mapping[Any, Any], classes: list[Any], tags: Mapping[str, tuple[Any, ...]]) -> DecodeError:
    """Return the error for a map that matches none of the classes."""
    union = " | ".join(map(describe, classes))
    for name, values in tags.items():
        expected = ", ".join(map(repr, values))
        if name not in value:
            return DecodeError(f"field {name!r} of {union} is missing: expected one of {expected}")
        if not any(value[name] == each for each in values):
            return DecodeError(f"field {name!r} of {union} is {reprlib.repr(value[name])}: expected one of {expected}")
    have = "; ".join(f"{describe(one)} has {', '.join(name for name, _ in _on_the_wire(one))}" for one in classes)
    return DecodeError(f"the fields {reprlib.repr(list(value))} match no class of {union} ({have})")


def unstructurer(
    mode: pydantic_engine.Mode, extras: Extras = NO_EXTRAS, encode: Structure = lambda value: value
) -> Structure:
    """Return the function that converts objects to plain data.

    Each class instance becomes a dict with the field names as keys.

    Args:
        mode: the mode in which pydantic models are converted, "json" or "python".
        extras: the types that the app registers.
        encode: a function that converts a value of a registered type to plain data.
    """
    converter = cattrs.Converter()

    def hook(kind: Any) -> Callable[[Any], Any]:
        renamed: Any = {field: override(rename=name) for field, name in wire_names(kind).items()}
        return make_dict_unstructure_fn(kind, converter, _cattrs_include_init_false=True, **renamed)

    converter.register_unstructure_hook_factory(_has_fields, hook)
    converter.register_unstructure_hook_factory(
        _is_named_tuple, lambda _: lambda value: list(map(converter.unstructure, value))
    )
    converter.register_unstructure_hook_factory(is_model, lambda _: partial(pydantic_engine.dump, mode=mode))
    for kind in extras.types:
        if is_built(kind):
            converter.register_unstructure_hook_func(partial(is_, kind), encode)
        else:  # also used for instances of subclasses
            converter.register_unstructure_hook(kind, encode)
    return converter.unstructure
