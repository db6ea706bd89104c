"""A type, and which engine carries it without loss: inspected once, before any message.

msgspec decodes straight into the declared type. A few things it would get wrong without a word
(converters, aliases, private names, unions it does not know); a type with one of these is structured by
cattrs instead, strictly. A type that neither can carry is a SchemaError that names the field.

The engines trust a publisher's annotations; `conforms` does not, so that a message that readers would
refuse or get changed is found before it is sent.
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
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence, Set
from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import attrs
import msgspec

from zroute.errors import SchemaError

__all__ = [
    "LEAVES",
    "Schema",
    "Stamped",
    "children",
    "conforms",
    "describe",
    "inspect",
    "is_class",
    "misfit",
    "resolved",
]

T = TypeVar("T")

Engine = Literal["msgspec", "cattrs", "raw", "text", "any"]


@attrs.frozen
class Stamped(Generic[T]):
    """A message with the time it speaks of: the map ``{"data": …, "timestamp": …}`` on every wire.

    ``timestamp`` is in seconds since the Unix epoch, by default the time of making.
    """

    data: T
    timestamp: float = attrs.field(factory=time.time)


@attrs.frozen
class Schema:
    """A type and the engine that serves it.

    ``reasons`` say why it is not msgspec. ``inner`` is T for ``T | bytes`` at the top, where a body that is
    no T is handed over raw (``raw_fallback``), and else the type itself. ``holds`` names what needs a look
    beyond the engine: "int", "float", "any" (values of undeclared type), "class" (nested ones) and "hook" (a
    class that changes itself when it is made, and so once more when it is read).
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
_ARRAYS = (list, set, frozenset, tuple, Sequence, MutableSequence, Set)
_MAPS = (dict, Mapping, MutableMapping)

_known: dict[Hashable, Schema] = {}


def inspect(schema: Any) -> Schema:
    """Which engine serves ``schema``, and why. Raises SchemaError where none does."""
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
    """A short name for tables and errors: ``Quote``, ``Stamped[Weather] | bytes``, ``any``."""
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
    """``hint`` without the wrappers that say nothing of its shape: NewType, Annotated, Required and the like."""
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
    """The parts of a class or container type, each with what to add to a path: ``.name`` or ``[]``."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        yield from (("", argument) for argument in arguments)
    elif origin in _ARRAYS or origin in _MAPS:
        yield from (("[]", argument) for argument in arguments if argument is not ...)
    elif is_class(origin):
        yield from ((f".{name}", kind) for name, kind in _fields(hint).items())


def is_class(kind: Any) -> bool:
    """Whether ``kind`` is a class with named fields: attrs, dataclass, Struct, TypedDict or NamedTuple."""
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
    """``hint`` with the type variables that were ``given`` replaced; one that is free can hold anything."""
    if isinstance(hint, TypeVar):
        return given.get(hint, Any)
    parameters = getattr(hint, "__parameters__", ())
    if get_origin(hint) is not None and parameters:
        return hint[tuple(given.get(parameter, Any) for parameter in parameters)]
    return hint


# -- inspection ------------------------------------------------------------------------------------------


def _inspect(schema: Any) -> Schema:
    if not _limits(schema):
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
    try:
        msgspec.json.Decoder(schema)
        msgspec.msgpack.Decoder(schema)
    except Exception as error:
        return (str(error).partition(" - type")[0],)
    return ()


class _Walk:
    """One look at every part of a type: what it holds, and what msgspec would get wrong in it."""

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
        if origin in (Any, object) or isinstance(hint, TypeVar) or (origin in _ARRAYS + _MAPS and not get_args(hint)):
            self.holds.add("any")
        elif hint in LEAVES:
            self.holds.update(filter(None, [LEAVES[hint]]))
            self._seen.remove(hint)
        elif origin is Literal:
            self._literal(get_args(hint), path)
        elif isinstance(hint, type) and issubclass(hint, Enum):
            self._enum(hint, path)
        elif is_class(origin) or origin in _ARRAYS + _MAPS or origin in (Union, types.UnionType):
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
        if path:
            self.holds.add("class")
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
                    f"{kind.__name__}.{name} is an InitVar, which is gone when a message is published: make it a field",
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
                f"{self._at(path)} is the enum {kind.__name__} with values that are no text or number: give it plain "
                "ones",
                schema=self._schema,
            )
        self.reasons.append(f"{kind.__name__} is an enum of mixed values, which msgspec does not know")


# -- what a message must be --------------------------------------------------------------------------------

Test = Callable[[Any], bool]

_LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "pattern", "min_length", "max_length", "tz")
_READ_AS: Mapping[Any, type] = {
    Sequence: list,
    MutableSequence: list,
    Set: set,
    Mapping: dict,
    MutableMapping: dict,
}
"""What a reader gets for an abstract type."""


def conforms(hint: Any) -> Test:
    """A function that says whether a value is what a reader of ``hint`` gets back: of the same types, in bounds.

    For a value that does not, it may as well raise. An int where ``hint`` says float passes if it arrives
    as an equal float (PEP 484 lets it stand there). Values of undeclared type all pass.
    """
    return _Tests().of(hint)


def misfit(hint: Any, value: Any, path: str = "") -> tuple[str, Any, Any]:
    """Where in ``value`` something does not conform: the path, what is expected there and what is there."""
    bare = resolved(hint)
    for step, child, item in _parts(bare, value):
        if not _holds(conforms(child), item):
            return misfit(child, item, path + step)
    return path, hint, value


def _parts(bare: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """The parts of a class, list or map with their types; none where ``value`` is no such thing."""
    origin, kinds = get_origin(bare) or bare, list(children(bare))
    if is_class(origin) and type(value) is origin:
        yield from ((step, child, getattr(value, step[1:], attrs.NOTHING)) for step, child in kinds)
    elif is_class(origin) and typing.is_typeddict(origin) and type(value) is dict:
        yield from ((step, child, value[step[1:]]) for step, child in kinds if step[1:] in value)
    elif origin in _MAPS and type(value) is dict:
        yield from ((f"[{key!r:.40}]", kinds[1][1], item) for key, item in value.items())
    elif origin in _ARRAYS and len(kinds) == 1 and type(value) in (list, tuple):
        yield from ((f"[{number}]", kinds[0][1], item) for number, item in enumerate(value))


def _holds(test: Test, value: Any) -> bool:
    try:
        return test(value)
    except Exception:
        return False


def _limits(hint: Any) -> tuple[Any, ...]:
    """The constraints that stand around a type: each `msgspec.Meta` that has one."""
    if isinstance(hint, typing.NewType):
        return _limits(hint.__supertype__)
    metas = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, msgspec.Meta)]
    return tuple(meta for meta in metas if any(getattr(meta, name) is not None for name in _LIMITS))


def _is_whole(value: Any) -> bool:
    return value.__class__ is int and float(value) == value


def _in_minutes(value: Any) -> bool:
    """Zones travel as hours and minutes (RFC 3339); the seconds of an old local time would be cut off."""
    offset = value.utcoffset()
    return not offset or not offset % datetime.timedelta(minutes=1)


# {v} is the value, {n} a name to keep it under.
_LEAF_TESTS: Mapping[Any, str] = {
    int: "({n} := {v}).__class__ is int and -0x8000000000000000 <= {n} <= 0xFFFFFFFFFFFFFFFF",
    float: "(({n} := {v}).__class__ is float and {n} - {n} == 0.0 or is_whole({n}))",
    decimal.Decimal: "({n} := {v}).__class__ is kind{n} and {n} == {n}",
    datetime.datetime: "({n} := {v}).__class__ is kind{n} and in_minutes({n})",
    datetime.time: "({n} := {v}).__class__ is kind{n} and in_minutes({n})",
}


class _Tests:
    """One test a type. A class is one expression: half the time of a loop, and it stands before each message."""

    def __init__(self) -> None:
        self._made: dict[Any, Test] = {}

    def of(self, hint: Any) -> Test:
        bare, limits = resolved(hint), _limits(hint)
        test = self._bare(bare)
        if not limits:
            return test
        origin = get_origin(bare)
        limited: Any = Annotated[(origin if origin in _ARRAYS + _MAPS else bare, *limits)]

        def test_limited(value: Any) -> bool:
            msgspec.convert(value, limited)  # raises where it is out of bounds
            return test(value)

        return test_limited

    def _bare(self, hint: Any) -> Test:
        if hint in self._made:
            return self._made[hint]
        self._made[hint] = lambda value: self._made[hint](value)  # for a type that contains itself
        self._made[hint] = test = self._make(hint, get_origin(hint) or hint, get_args(hint))
        return test

    def _make(self, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> Test:
        if hint in LEAVES:
            return self._compiled([self._term(hint, "m", "v", names := self._names())], names)
        if origin is Literal:
            known = {(type(value), value) for value in arguments}
            return lambda value: (type(value), value) in known
        if origin in (Union, types.UnionType):
            tests = [self.of(argument) for argument in arguments]
            return lambda value: any(_holds(test, value) for test in tests)
        if isinstance(origin, type) and issubclass(origin, Enum):
            return lambda value: isinstance(value, origin)
        if is_class(origin):
            return self._typed_dict(hint, origin) if typing.is_typeddict(origin) else self._class(hint, origin)
        if origin in _ARRAYS + _MAPS and hint is not origin:
            return self._container(_READ_AS.get(origin, origin), arguments)
        return lambda value: True

    def _class(self, hint: Any, origin: Any) -> Test:
        names = self._names(kind=origin)
        terms = ["m.__class__ is kind"]
        terms += [
            self._term(child, f"m{step}", f"v{number}", names) for number, (step, child) in enumerate(children(hint))
        ]
        return self._compiled(terms, names)

    def _term(self, hint: Any, value: str, name: str, names: dict[str, Any]) -> str:
        bare = resolved(hint)
        if bare in LEAVES and not _limits(hint):
            names[f"kind{name}"] = bare
            return _LEAF_TESTS.get(bare, "{v}.__class__ is kind{n}").format(v=value, n=name)
        names[f"test{name}"] = self.of(hint)
        return f"test{name}({value})"

    @staticmethod
    def _names(**more: Any) -> dict[str, Any]:
        return {"is_whole": _is_whole, "in_minutes": _in_minutes, **more}

    @staticmethod
    def _compiled(terms: list[str], names: dict[str, Any]) -> Test:
        test: Test = eval(f"lambda m: {' and '.join(terms)}", names)
        return test

    def _typed_dict(self, hint: Any, origin: Any) -> Test:
        hints = {step[1:]: child for step, child in children(hint)}
        tests = {name: self.of(child) for name, child in hints.items()}
        # Not __required_keys__ alone: it does not see NotRequired in annotations that are strings.
        required = {name for name in hints if name in origin.__required_keys__}
        required -= {name for name, child in hints.items() if get_origin(child) is typing.NotRequired}
        required |= {name for name, child in hints.items() if get_origin(child) is typing.Required}
        return lambda value: (
            type(value) is dict
            and required <= value.keys() <= tests.keys()
            and all(tests[name](item) for name, item in value.items())
        )

    def _container(self, kind: Any, arguments: tuple[Any, ...]) -> Test:
        tests = [self.of(argument) for argument in arguments if argument is not ...]
        if kind is tuple and ... not in arguments:
            return lambda value: (
                type(value) is tuple
                and len(value) == len(tests)
                and all(test(item) for test, item in zip(tests, value, strict=True))
            )
        of_items, of_values = tests[0], tests[-1]
        if kind is dict:
            return lambda value: (
                type(value) is dict and all(map(of_items, value)) and all(map(of_values, value.values()))
            )
        return lambda value: type(value) is kind and all(map(of_items, value))
