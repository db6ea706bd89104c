"""Inspect a message type once, and choose an engine that carries it without loss.

msgspec decodes straight into the declared type. It would silently get a few things wrong: converters, aliases, private
names, and unions that it does not know. A type with one of these is structured by cattrs instead. A type that neither
engine can carry raises a SchemaError that names the field.
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

from zroute.errors import SchemaError

__all__ = [
    "ARRAYS",
    "LEAVES",
    "MAPS",
    "Schema",
    "Stamped",
    "children",
    "describe",
    "inspect",
    "is_class",
    "limits",
    "resolved",
]

T = TypeVar("T")

Engine = Literal["msgspec", "cattrs", "raw", "text", "any"]


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


@attrs.frozen
class Schema:
    """The result of inspecting a type.

    Attributes:
        type: the type, without wrappers such as NewType.
        engine: "msgspec", "cattrs", "raw" (bytes), "text" (str) or "any" (undeclared).
        inner: T for ``T | bytes``, else the type itself.
        reasons: why msgspec can't carry the type; empty unless the engine is "cattrs".
        raw_fallback: True for ``T | bytes``: a body that does not decode to T arrives raw.
        holds: what needs a check beyond that of the engine. "int" and "float" are numbers, "any" is a value of
            undeclared type, and "hook" is a class with a ``__post_init__`` that runs again in the reader.
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
    decimal.Decimal: None,
    float: "float",
    int: "int",
    str: None,
    uuid.UUID: None,
    types.NoneType: None,
}
# The attributes of msgspec.Meta that restrict values. The others only describe them.
_LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "pattern", "min_length", "max_length", "tz")
ARRAYS = (list, set, frozenset, tuple, Sequence, MutableSequence, Set)
MAPS = (dict, Mapping, MutableMapping)

_known: dict[Hashable, Schema] = {}  # one entry per declared type; peers can't add any


def inspect(schema: Any) -> Schema:
    """Return the engine that carries ``schema``, and the reasons for it.

    Results are cached. Raises SchemaError if no engine can carry the type.
    """
    key = schema if isinstance(schema, Hashable) else None
    try:
        found = _known.get(key) if key is not None else None
    except TypeError:  # a type with an unhashable part, such as Literal[[]]
        found, key = None, None
    if found is None:
        found = _inspect(schema)
        if key is not None:
            _known[key] = found
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

    These are NewType, Annotated, Required, NotRequired, Final, ClassVar and ``type X = …`` aliases.
    """
    while True:
        origin = get_origin(hint)
        if isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif origin is Annotated or origin in (typing.Required, typing.NotRequired, typing.Final, typing.ClassVar):
            hint = get_args(hint)[0]
        elif hasattr(hint, "__value__"):  # a `type X = …` alias of Python 3.12
            hint = hint.__value__
        else:
            return types.NoneType if hint is None else hint


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
    """Return the constraints of an annotated type: each `msgspec.Meta` that has one."""
    if isinstance(hint, typing.NewType):
        return limits(hint.__supertype__)
    metas = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, msgspec.Meta)]
    return tuple(meta for meta in metas if any(getattr(meta, name) is not None for name in _LIMITS))


def is_class(kind: Any) -> bool:
    """Return True if ``kind`` is a class with named fields.

    Such classes are those of attrs, dataclasses, msgspec Structs, TypedDicts and NamedTuples.
    """
    return isinstance(kind, type) and (
        attrs.has(kind)
        or dataclasses.is_dataclass(kind)
        or issubclass(kind, msgspec.Struct)
        or typing.is_typeddict(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def _fields(hint: Any) -> dict[str, Any]:
    kind = get_origin(hint) or hint
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise SchemaError(
            f"{describe(hint)} has an annotation {error.name!r} that does not exist when the app is compiled: import "
            "it at run time too (not only under TYPE_CHECKING)",
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

    A variable that is not given becomes Any.
    """
    if isinstance(hint, TypeVar):
        return given.get(hint, Any)
    parameters = getattr(hint, "__parameters__", ())
    if get_origin(hint) is not None and parameters:
        return hint[tuple(given.get(parameter, Any) for parameter in parameters)]
    return hint


# -- inspection ------------------------------------------------------------------------------------------


def _inspect(schema: Any) -> Schema:
    if not limits(schema):
        schema = resolved(schema)  # a NewType of bytes is bytes
    if schema in _UNTYPED:
        return Schema(Any if schema not in (dict, list) else schema, "any", schema, holds=frozenset({"any"}))
    if schema is bytes:
        return Schema(bytes, "raw", bytes)
    if schema is str:
        return Schema(str, "text", str)
    arguments = get_args(schema)
    if get_origin(schema) in (Union, types.UnionType) and bytes in arguments:
        rest = tuple(argument for argument in arguments if argument is not bytes)
        inner = inspect(rest[0] if len(rest) == 1 else Union[rest])  # noqa: UP007  # built at run time
        return attrs.evolve(inner, type=schema, raw_fallback=True)
    walk = _Walk(schema)
    walk.visit(schema, "")
    reasons = tuple(dict.fromkeys(walk.reasons)) or _msgspec_refuses(schema)
    return Schema(schema, "cattrs" if reasons else "msgspec", schema, reasons, holds=frozenset(walk.holds))


def _msgspec_refuses(schema: Any) -> tuple[str, ...]:
    # Some limits of msgspec, such as two classes in a union, show only when a decoder is created.
    try:
        msgspec.json.Decoder(schema)
        msgspec.msgpack.Decoder(schema)
    except Exception as error:
        return (str(error).partition(" - type")[0],)
    return ()


class _Walk:
    """A visit to every part of a type that records what the parts hold.

    It also records what msgspec would get wrong.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._seen: list[Any] = []
        self.reasons: list[str] = []
        self.holds: set[str] = set()

    def visit(self, hint: Any, path: str) -> None:
        hint = resolved(hint)
        if hint in self._seen:
            return
        self._seen.append(hint)
        origin = get_origin(hint) or hint
        if origin in (Any, object) or isinstance(hint, TypeVar) or (origin in ARRAYS + MAPS and not get_args(hint)):
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
                self.visit(child, path + step)
        else:
            what = f"{self._at(path)} is {describe(hint)}, which" if path else f"{describe(hint)} is a type that"
            raise SchemaError(
                f"{what} no codec can carry: use a class of attrs, a dataclass, a Struct, a TypedDict or builtins, or "
                "give the route a codec of your own",
                schema=self._schema,
            )

    def _at(self, path: str) -> str:
        return describe(self._schema) + path

    def _class(self, kind: Any, path: str) -> None:
        if not is_class(kind):
            return
        if any(hasattr(kind, name) for name in ("__attrs_post_init__", "__post_init__")):
            self.holds.add("hook")
        if attrs.has(kind):
            for field in attrs.fields(kind):
                self._attrs_field(kind, field)
        elif dataclasses.is_dataclass(kind):
            self._refuse_init_vars(kind)

    def _attrs_field(self, kind: Any, field: Any) -> None:
        name = f"{kind.__name__}.{field.name}"
        if field.converter is not None:
            self.reasons.append(f"{name} has a converter, which msgspec ignores")
        if field.name.startswith("_"):
            self.reasons.append(f"{name} is private, and msgspec would leave it out")
        elif field.alias not in (None, field.name):
            self.reasons.append(f"{name} has the alias {field.alias!r}, which msgspec ignores")
        if isinstance(field.default, attrs.Factory) and field.default.takes_self:  # type: ignore[arg-type]
            self.reasons.append(f"{name} has a default made from self, which msgspec can't make")

    def _refuse_init_vars(self, kind: Any) -> None:
        for name, hint in vars(kind).get("__annotations__", {}).items():
            if isinstance(hint, dataclasses.InitVar) or str(hint).startswith(("InitVar", "dataclasses.InitVar")):
                raise SchemaError(
                    f"{kind.__name__}.{name} is an InitVar, and its value is not kept in the object: make it a field",
                    schema=self._schema,
                )

    def _literal(self, values: tuple[Any, ...], path: str) -> None:
        if not all(isinstance(value, str | int | None) and not isinstance(value, Enum | bool) for value in values):
            self.reasons.append(f"{self._at(path)} is a Literal of more than text, int and None")

    def _enum(self, kind: type[Enum], path: str) -> None:
        values = [member.value for member in kind]
        kinds = {type(value) for value in values}
        if kinds <= {str} or kinds <= {int}:
            return
        if not kinds <= {str, int, float, bool, types.NoneType}:
            raise SchemaError(
                f"{self._at(path)} is the enum {kind.__name__} with values that are neither text nor numbers: use "
                "values of type str, int or float",
                schema=self._schema,
            )
        self.reasons.append(f"{kind.__name__} is an enum of mixed values, which msgspec does not know")
