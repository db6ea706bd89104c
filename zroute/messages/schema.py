"""Inspect a message type once, and choose an engine that preserves its values.

msgspec decodes directly into the declared type, but it silently ignores converters, aliases, private names and custom
constructors, and does not support all unions. cattrs handles types with any of these features. pydantic validates its
own models. A type that no engine supports raises a SchemaError that names the field.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import inspect as stdlib_inspect
import time
import types
import typing
import uuid
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence, Set
from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import attrs
import msgspec

from zroute.errors import SchemaError, SignatureError
from zroute.functions import users_line
from zroute.messages import constructors
from zroute.messages.constraints import compile_constraint, constraints, is_of_pydantic
from zroute.messages.constructors import has_fields
from zroute.messages.extras import NO_EXTRAS, Extras, Taught, is_built

__all__ = [
    "ARRAYS",
    "LEAVES",
    "MAPS",
    "Name",
    "Schema",
    "Stamped",
    "check_types",
    "children",
    "describe",
    "expected_classes",
    "expected_tags",
    "fields_of",
    "inspect",
    "is_class",
    "is_model",
    "is_pydantic",
    "limits",
    "refuse_name",
    "resolved",
    "takes_text",
    "wire_names",
]

T = TypeVar("T")

Engine = Literal["msgspec", "cattrs", "pydantic", "raw", "text", "any"]


@attrs.frozen
class Stamped(Generic[T]):
    """A message with a time: the map ``{"data": …, "timestamp": …}`` on every wire.

    Attributes:
        data: the message.
        timestamp: the time that the data describes, in seconds since the Unix epoch. The default is the time at which
            the object is created.
    """

    data: T
    timestamp: float = attrs.field(factory=time.time)


@attrs.frozen(init=False)
class Name:
    """The name of a field in messages, if it differs from the name in Python.

    Example: ``price: Annotated[float, Name("p")]``. The annotation works for fields of attrs classes and dataclasses.
    In a Struct, use ``msgspec.field(name=…)``; in a pydantic model, use an alias.

    Attributes:
        name: the key of the field in JSON and msgpack.

    Raises:
        SignatureError: the name is not text, or can't be encoded as UTF-8.
    """

    name: str

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or name.encode(errors="replace").decode() != name:  # half of a surrogate pair
            raise SignatureError(
                f"Name({name!r}): expected UTF-8 text, as in Name('p')", parameter="name", where=users_line()
            )
        self.__attrs_init__(name)


@attrs.frozen
class Schema:
    """The result of inspecting a type.

    Attributes:
        type: the type, without wrappers such as NewType.
        engine: "msgspec", "cattrs", "pydantic", "raw" (bytes or memoryview), "text" (str) or "any" (undeclared).
        inner: T for ``T | bytes``, else the type itself.
        reasons: why msgspec can't carry the type; empty unless the engine is "cattrs".
        raw_fallback: True for ``T | bytes``: a body that does not decode to T arrives raw.
        holds: the kinds of parts that need a check in addition to that of the engine. "int", "float" and "decimal" are
            numbers, "any" is a value of undeclared type, "hook" is a class with a ``__post_init__`` that runs again in
            the reader, "limit" is a constraint in ``Annotated`` that the engine ignores, and "taught" is a type of
            `App(types=…)`.
    """

    type: Any
    engine: Engine
    inner: Any
    reasons: tuple[str, ...] = ()
    raw_fallback: bool = False
    holds: frozenset[str] = frozenset()


_UNTYPED = (Any, object, dict, list, stdlib_inspect.Parameter.empty)
LEAVES: Mapping[Any, str | None] = {
    bool: None,
    bytearray: None,
    bytes: None,
    datetime.date: None,
    datetime.datetime: None,
    datetime.time: None,
    datetime.timedelta: None,
    decimal.Decimal: "decimal",
    float: "float",
    int: "int",
    str: None,
    uuid.UUID: None,
    types.NoneType: None,
}
ARRAYS = (list, set, frozenset, tuple, Sequence, MutableSequence, Set)
MAPS = (dict, Mapping, MutableMapping)


def inspect(schema: Any, extras: Extras = NO_EXTRAS) -> Schema:
    """Choose the engine for ``schema``, and return the result as a `Schema`.

    Results are cached. Raises SchemaError if no engine supports the type.

    Args:
        schema: the declared type.
        extras: the types that the app registers.
    """
    known: dict[Hashable, Schema] = extras.known  # one entry per declared type; peers can't add any
    key = schema if isinstance(schema, Hashable) else None
    try:
        found = known.get(key) if key is not None else None
    except TypeError:  # a type with an unhashable part, such as Literal[[]]
        found, key = None, None
    if found is None:
        found = _inspect(schema, extras)
        if key is not None:
            known[key] = found
    return found


def describe(schema: Any) -> str:
    """Return a short name for tables and errors.

    Examples are ``Quote``, ``Stamped[Weather] | bytes`` and ``any``.
    """
    if schema in (Any, object, stdlib_inspect.Parameter.empty):
        return "any"
    if schema is types.NoneType or schema is None:
        return "None"
    origin, arguments = get_origin(schema), get_args(schema)
    if origin in (Union, types.UnionType):
        return " | ".join(describe(argument) for argument in arguments)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is not None and arguments:
        inside = ", ".join("…" if argument is ... else describe(argument) for argument in arguments)
        return f"{describe(origin)}[{inside}]"
    return str(getattr(schema, "__qualname__", None) or getattr(schema, "__name__", schema)).rpartition("<locals>.")[2]


def resolved(hint: Any) -> Any:
    """Return ``hint`` without wrappers that do not change its values.

    The removed wrappers are NewType, Annotated, Required, NotRequired, Final, ClassVar and ``type X = …`` aliases.
    """
    return _unwrapped(hint)[0]


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return ``hint`` without its wrappers, and the metadata of all wrappers."""
    metadata: tuple[Any, ...] = ()
    while True:
        origin = get_origin(hint)
        if isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif origin is Annotated:
            metadata = hint.__metadata__ + metadata
            hint = get_args(hint)[0]
        elif origin in (typing.Required, typing.NotRequired, typing.Final, typing.ClassVar):
            hint = get_args(hint)[0]
        elif hasattr(hint, "__value__"):  # a `type X = …` alias of Python 3.12
            hint = hint.__value__
        else:
            return types.NoneType if hint is None else hint, metadata


def children(hint: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a class or container type, each with its step in a path.

    A step is ``.name`` for a field, ``[]`` for an item, and ``""`` for a member of a union.
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        yield from (("", argument) for argument in arguments)
    elif origin in ARRAYS or origin in MAPS:
        yield from (("[]", argument) for argument in arguments if argument is not ...)
    elif is_class(origin):
        yield from ((f".{name}", kind) for name, kind in _fields(hint).items())


def limits(hint: Any) -> tuple[Any, ...]:
    """Return the constraints of an annotated type, such as `msgspec.Meta`.

    Raises ValueError for a constraint that can't be checked.
    """
    return constraints(_unwrapped(hint)[1])


def wire_names(hint: Any) -> dict[str, str]:
    """Return the names from `Name` annotations, by field."""
    given = {name: _name_of(child) for name, child in _fields(hint).items()}
    return {field: name for field, name in given.items() if name is not None}


def _name_of(hint: Any) -> str | None:
    return next((part.name for part in reversed(_unwrapped(hint)[1]) if isinstance(part, Name)), None)


def refuse_name(hint: Any) -> None:
    """Raise SchemaError if the type of a whole message has a `Name`."""
    name = _name_of(hint)
    if name is not None:
        raise SchemaError(
            f"{describe(hint)} has Name({name!r}), which only a field of an attrs class or a dataclass can have: "
            "remove the Name",
            schema=hint,
        )


def is_model(kind: Any) -> bool:
    """Return True if ``kind`` is a model or a dataclass of pydantic."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__")


def is_pydantic(hint: Any) -> bool:
    """Return True if pydantic handles the whole type.

    pydantic handles its own models, and containers and unions in which every class with fields is a model.
    """
    parts = list(_outer_classes(hint, []))
    return bool(parts) and all(map(is_model, parts))


def _outer_classes(hint: Any, seen: list[Any]) -> Iterator[Any]:
    """Yield the classes with fields in ``hint``, but not the classes in those fields."""
    hint = resolved(hint)
    origin = get_origin(hint) or hint
    if is_class(origin):
        yield origin
    elif (origin in (Union, types.UnionType) or origin in ARRAYS + MAPS) and hint not in seen:
        seen.append(hint)
        for argument in get_args(hint):
            yield from _outer_classes(argument, seen)


def is_class(kind: Any) -> bool:
    """Return True if ``kind`` is a class with named fields.

    Such classes are attrs classes, dataclasses, msgspec Structs, TypedDicts, NamedTuples and pydantic models.
    """
    return isinstance(kind, type) and (
        is_model(kind)  # first, because looking up a missing attribute of a model is slow
        or attrs.has(kind)
        or dataclasses.is_dataclass(kind)
        or issubclass(kind, msgspec.Struct)
        or typing.is_typeddict(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a class instance with their values, unchanged.

    Return {} for any other value.
    """
    kind: Any = type(value)
    if is_model(kind):
        return {name: getattr(value, name) for name in kind.__pydantic_fields__} | (
            getattr(value, "__pydantic_extra__", None) or {}
        )
    if attrs.has(kind):
        return {field.name: getattr(value, field.name) for field in attrs.fields(kind)}
    names = getattr(kind, "__struct_fields__", None) or tuple(getattr(kind, "__dataclass_fields__", ()))
    return {name: getattr(value, name) for name in names}


def expected_tags(schema: Any, error: BaseException) -> str:
    """Return the allowed tags as text, for a msgspec error about an unknown tag.

    msgspec itself only names the received tag. The result is "" if ``schema`` is not a union of tagged Structs, or for
    any other error.
    """
    structs = [part for part in map(resolved, get_args(resolved(schema))) if _is_tagged(part)]
    if not structs or not isinstance(error, msgspec.ValidationError):
        return ""
    field, text = structs[0].__struct_config__.tag_field, str(error)
    if not text.endswith((f"field `{field}`", f"`$.{field}`")):
        return ""
    return f"; expected one of {', '.join(repr(one.__struct_config__.tag) for one in structs)}"


def expected_classes(schema: Any, error: BaseException) -> str:
    """Return the classes of a union, for a msgspec error that only says "object".

    The result is "" for any other schema or error.
    """
    kinds = [part for part in map(resolved, _members(schema)) if is_class(get_origin(part) or part)]
    if not kinds or not isinstance(error, msgspec.ValidationError):
        return ""
    expected, _, got = str(error).partition("`, got")
    if "object" not in expected.removeprefix("Expected `").split(" | ") or " - at " in got:
        return ""
    return f"; the object is {' or '.join(map(describe, kinds))}"


def takes_text(schema: Any) -> bool:
    """Return True for a union that includes ``str`` and so accepts any text."""
    return any(resolved(member) is str and not limits(member) for member in _members(schema))


def _members(schema: Any) -> tuple[Any, ...]:
    """Return the members of a union, or () for any other type."""
    schema = resolved(schema)
    return get_args(schema) if get_origin(schema) in (Union, types.UnionType) else ()


def _is_tagged(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag is not None


def _fields(hint: Any) -> dict[str, Any]:
    kind = get_origin(hint) or hint
    if is_model(kind):
        return {name: field.annotation for name, field in kind.__pydantic_fields__.items()}
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise SchemaError(
            f"{describe(hint)} has an annotation {error.name!r} that can't be resolved at run time: "
            f"import {error.name} outside of TYPE_CHECKING too",
            schema=hint,
        ) from error
    if attrs.has(kind):
        hints = {field.name: hints.get(field.name, Any) for field in attrs.fields(kind)}
    elif dataclasses.is_dataclass(kind):
        hints = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    elif issubclass(kind, msgspec.Struct):
        hints = {name: hints[name] for name in kind.__struct_fields__}
    given = dict(zip(getattr(kind, "__parameters__", ()), get_args(hint), strict=False))
    return {name: _substituted(value, given) for name, value in hints.items()}


def _substituted(hint: Any, given: Mapping[Any, Any]) -> Any:
    """Return ``hint`` with its type variables replaced by ``given`` types.

    A type variable that is not in ``given`` becomes Any.
    """
    if isinstance(hint, TypeVar):
        return given.get(hint, Any)
    parameters = getattr(hint, "__parameters__", ())
    if get_origin(hint) is not None and parameters:
        return hint[tuple(given.get(parameter, Any) for parameter in parameters)]
    return hint


def check_types(types: Any) -> dict[type, Taught]:
    """Check the value of ``App(types=…)``, and return it as the types of `Extras`.

    Raises:
        SchemaError: the value is not a mapping from classes to pairs of functions, or all codecs already support one of
            the classes.
    """
    if not isinstance(types, Mapping):
        raise SchemaError(f"types={types!r}: expected a dict such as {{Path: (str, Path)}}", schema=types)
    taught = {}
    for kind, functions in types.items():
        if not isinstance(kind, type) or kind is Any:  # Any is a class in Python, but has no instances
            raise SchemaError(f"types: {kind!r} is not a class: the keys of App(types=…) must be classes", schema=kind)
        if kind in (object, memoryview, *LEAVES, *ARRAYS, *MAPS) or is_pydantic(kind):
            raise SchemaError(
                f"types: all codecs already support {kind.__name__}: remove {kind.__name__} from App(types=…)",
                schema=kind,
            )
        if not (isinstance(functions, tuple | list) and len(functions) == 2 and all(map(callable, functions))):
            raise SchemaError(
                f"types: {kind.__name__} has {functions!r}: expected two functions, (encode, decode)", schema=kind
            )
        taught[kind] = Taught(*functions)
    return taught


# -- inspection ------------------------------------------------------------------------------------------


def _inspect(schema: Any, extras: Extras) -> Schema:
    bare, metadata = _unwrapped(schema)
    whole = is_pydantic(bare) and not (get_origin(bare) in (Union, types.UnionType) and bytes in get_args(bare))
    if whole:
        _refuse_names_in_models(bare, [])
        return Schema(schema, "pydantic", schema)
    if not _limits_of(metadata, schema, describe(schema)):
        schema = bare  # a NewType of bytes is bytes
    if schema in _UNTYPED:
        return Schema(Any if schema not in (dict, list) else schema, "any", schema, holds=frozenset({"any"}))
    if schema is bytes or schema is memoryview:
        return Schema(schema, "raw", schema)
    if schema is str:
        return Schema(str, "text", str)
    arguments = get_args(schema)
    if get_origin(schema) in (Union, types.UnionType) and bytes in arguments:
        rest = tuple(argument for argument in arguments if argument is not bytes)
        for argument in arguments:
            refuse_name(argument)
        inner = inspect(rest[0] if len(rest) == 1 else Union[rest], extras)  # noqa: UP007  # built at run time
        return attrs.evolve(inner, type=schema, raw_fallback=True)
    walk = _Walk(schema, extras)
    walk.visit(schema, "")
    reasons = tuple(dict.fromkeys(walk.reasons)) or _msgspec_refuses(schema)
    if reasons and walk.has_meta:
        walk.holds.add("limit")
    return Schema(schema, "cattrs" if reasons else "msgspec", schema, reasons, holds=frozenset(walk.holds))


def _refuse_names_in_models(hint: Any, seen: list[Any]) -> None:
    """Raise SchemaError for a `Name` in pydantic models, which would ignore it."""
    for argument in get_args(hint):
        refuse_name(argument)
    for kind in _outer_classes(hint, []):
        if kind in seen or not is_model(kind):
            continue
        seen.append(kind)
        for field, info in kind.__pydantic_fields__.items():
            name = next((part.name for part in info.metadata if isinstance(part, Name)), None)
            if name is not None:
                raise SchemaError(
                    f"{kind.__name__}.{field} has Name({name!r}), which only attrs classes and dataclasses can have: "
                    "in a pydantic model, use Field(alias=…)",
                    schema=hint,
                )
            _refuse_names_in_models(info.annotation, seen)


def _limits_of(metadata: tuple[Any, ...], schema: Any, at: str) -> tuple[Any, ...]:
    try:
        return constraints(metadata)
    except ValueError as error:
        raise SchemaError(
            f"{at} {error}: use constraints of annotated_types or msgspec.Meta; or use a pydantic model", schema=schema
        ) from error


def _msgspec_refuses(schema: Any) -> tuple[str, ...]:
    # Some limits of msgspec, such as two classes in a union, show only when a decoder is created.
    try:
        msgspec.json.Decoder(schema)
        msgspec.msgpack.Decoder(schema)
    except Exception as error:
        return (str(error).partition(" - type")[0],)
    return ()


class _Walk:
    """A walk through all parts of a type.

    The walk records which parts need additional checks, and which parts msgspec would decode incorrectly.
    """

    def __init__(self, schema: Any, extras: Extras) -> None:
        self._schema = schema
        self._taught = extras.types
        self._seen: list[Any] = []
        self.reasons: list[str] = []
        self.holds: set[str] = set()
        self.has_meta = False

    def visit(self, hint: Any, path: str) -> None:
        if is_pydantic(hint):
            _refuse_names_in_models(hint, [])
            self.reasons.append(f"{self._at(path)} is a pydantic type, which msgspec does not support")
            return
        hint, metadata = _unwrapped(hint)
        if metadata:
            self._metadata(hint, metadata, path)
        if hint in self._seen:
            return
        self._seen.append(hint)
        origin = get_origin(hint) or hint
        if isinstance(origin, type) and origin in self._taught:
            self._teach(origin)
        elif origin in (Any, object) or isinstance(hint, TypeVar) or (origin in ARRAYS + MAPS and not get_args(hint)):
            self.holds.add("any")
        elif hint in LEAVES:
            self.holds.update(filter(None, [LEAVES[hint]]))
            self._seen.remove(hint)  # only containers can be recursive
        elif origin is Literal:
            self._literal(get_args(hint), path)
        elif isinstance(hint, type) and issubclass(hint, Enum):
            self._enum(hint, path)
        elif is_class(origin) or origin in ARRAYS + MAPS or origin in (Union, types.UnionType):
            self._class(origin, path)
            for step, child in children(hint):
                if not step.startswith("."):
                    self._refuse_name(child, path + step)
                self.visit(child, path + step)
        else:
            what = f"{self._at(path)} is {describe(hint)}, which" if path else f"{describe(hint)} is a type that"
            raise SchemaError(
                f"{what} no codec supports: use an attrs class, a dataclass, a Struct, a TypedDict or builtins; "
                f"or register the type with App(types={{{describe(hint)}: (encode, decode)}}); or use a codec of your "
                "own that supports the type",
                schema=self._schema,
            )

    def _teach(self, kind: type) -> None:
        self.holds.add("taught")
        if is_built(kind):
            self.reasons.append(
                f"{describe(kind)} is registered in App(types=…), but msgspec creates its objects without the "
                "decode function"
            )

    def _refuse_name(self, part: Any, path: str) -> None:
        """Raise SchemaError for the `Name` of an item or of a member of a union."""
        name = _name_of(part)
        if name is not None:
            raise SchemaError(
                f"{self._at(path)} has Name({name!r}) in a part of its type: write the Name around the whole type of a "
                f"field, as in Annotated[list[int], Name({name!r})]",
                schema=self._schema,
            )

    def _at(self, path: str) -> str:
        return describe(self._schema) + path

    def _metadata(self, hint: Any, metadata: tuple[Any, ...], path: str) -> None:
        found = _limits_of(metadata, self._schema, self._at(path))
        if not found:
            return
        self.has_meta = True
        if not all(isinstance(part, msgspec.Meta) for part in found):
            self.holds.add("limit")
        try:
            compile_constraint(hint, found)
        except ValueError as error:
            raise SchemaError(f"{self._at(path)} {error}", schema=self._schema) from error

    def _class(self, kind: Any, path: str) -> None:
        if not is_class(kind):
            return
        self._constructor(kind)
        self._names(kind)
        if any(hasattr(kind, name) for name in ("__attrs_post_init__", "__post_init__")):
            self.holds.add("hook")
        if has_fields(kind):
            self._refuse_pydantic_defaults(kind)
        if attrs.has(kind):
            for field in attrs.fields(kind):
                self._attrs_field(kind, field)
        elif dataclasses.is_dataclass(kind):
            self._refuse_init_vars(kind)

    def _constructor(self, kind: Any) -> None:
        why = constructors.why_called(kind)
        if why is None:
            return
        self.reasons.append(f"{why}, which msgspec does not call")
        if issubclass(kind, tuple):
            return
        try:
            constructors.parameters(kind)
        except ValueError as error:
            raise SchemaError(
                f"{describe(kind)} {error}: give the constructor one parameter per field, with the name of the field",
                schema=self._schema,
            ) from error

    def _names(self, kind: Any) -> None:
        named = wire_names(kind)
        if not named:
            return
        field, name = next(iter(named.items()))
        if not has_fields(kind):
            raise SchemaError(
                f"{kind.__name__}.{field} has Name({name!r}), but Name works only for attrs classes and dataclasses: "
                "in a "
                "Struct, use msgspec.field(name=…)",
                schema=self._schema,
            )
        names = [named.get(each, each) for each in _fields(kind)]
        for each in names:
            if names.count(each) > 1:
                raise SchemaError(
                    f"two fields of {kind.__name__} have the name {each!r} in messages: rename one of the fields",
                    schema=self._schema,
                )
        self.reasons.append(f"{kind.__name__}.{field} has Name({name!r}), which msgspec ignores")

    def _attrs_field(self, kind: Any, field: Any) -> None:
        name = f"{kind.__name__}.{field.name}"
        if field.converter is not None:
            self.reasons.append(f"{name} has a converter, which msgspec ignores")
        if field.name.startswith("_"):
            self.reasons.append(f"{name} is private, so msgspec would omit the field")
        elif field.alias not in (None, field.name):
            self.reasons.append(f"{name} has the alias {field.alias!r}, which msgspec ignores")
        if isinstance(field.default, attrs.Factory) and field.default.takes_self:  # type: ignore[arg-type]
            self.reasons.append(f"{name} has a default computed from self, which msgspec does not support")

    def _refuse_init_vars(self, kind: Any) -> None:
        annotations = {
            name: hint for base in kind.__mro__ for name, hint in vars(base).get("__annotations__", {}).items()
        }
        for name, hint in annotations.items():
            if isinstance(hint, dataclasses.InitVar) or str(hint).startswith(("InitVar", "dataclasses.InitVar")):
                raise SchemaError(
                    f"{kind.__name__}.{name} is an InitVar, so the object does not store its value: make {name} a "
                    "field",
                    schema=self._schema,
                )

    def _refuse_pydantic_defaults(self, kind: Any) -> None:
        for field in constructors.fields(kind):
            if is_of_pydantic(field.default) and type(field.default).__name__ == "FieldInfo":
                raise SchemaError(
                    f"the default of {kind.__name__}.{field.name} is a pydantic Field, which only works in pydantic "
                    "classes: use pydantic.dataclasses; or use Annotated[…, Field(…)]",
                    schema=self._schema,
                )

    def _literal(self, values: tuple[Any, ...], path: str) -> None:
        if not all(isinstance(value, str | int | None) and not isinstance(value, Enum | bool) for value in values):
            self.reasons.append(f"{self._at(path)} is a Literal with values other than text, int and None")

    def _enum(self, kind: type[Enum], path: str) -> None:
        values = [member.value for member in kind]
        kinds = {type(value) for value in values}
        if kinds <= {str} or kinds <= {int}:
            return
        if not kinds <= {str, int, float, bool, types.NoneType}:
            raise SchemaError(
                f"{self._at(path)} is the enum {kind.__name__}, whose values are neither text nor numbers: use "
                "values of type str, int or float",
                schema=self._schema,
            )
        self.reasons.append(f"{kind.__name__} is an enum with values of several types, which msgspec does not support")
