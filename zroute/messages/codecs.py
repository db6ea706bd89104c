"""Codecs: objects to bytes and back, bound to a type once, before any message.

The promise for a declared type: what was published is what is handled, equal and of the same types, or an
EncodeError at the publisher. A publisher's message is held against its type before it is written; where
no look at the message can tell (converters, hooks that run again at the reader, values of undeclared type)
the publisher decodes what it has encoded and compares.
"""

from __future__ import annotations

import datetime
import decimal
import reprlib
import types
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Protocol, TypeAlias, get_origin, is_typeddict, runtime_checkable

import attrs
import msgpack
import msgspec

from zroute.codegen import define
from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages.cattrs_engine import structurer, unstructure
from zroute.messages.decode_checks import compile_reader, is_bounded
from zroute.messages.encode_checks import conforms, misfit
from zroute.messages.schema import Schema, describe, inspect, is_class

__all__ = [
    "BUILTIN",
    "JSON",
    "MSGPACK",
    "RAW",
    "TEXT",
    "Codec",
    "Codecs",
    "Decode",
    "Encode",
    "detect",
    "find_codec",
]

Decode: TypeAlias = Callable[[bytes], Any]
Encode: TypeAlias = Callable[[Any], bytes]

_OWN_NUMBERS = range(128, 256)


@runtime_checkable
class Codec(Protocol):
    """How bodies are written. Anything with these four members is one; pass it as ``codec=``.

    ``name`` is for people. ``number`` stands on the tracked wire, so that readers know it: 128 to 255 for
    codecs of your own. ``encoder(schema)`` returns ``object -> bytes`` and may raise EncodeError;
    ``decoder(schema)`` returns ``bytes -> object`` and may raise anything. Both are called at
    compile time, with the declared type or ``typing.Any``, and may raise SchemaError.

    There is no pickle: a body would run code of whoever can reach the port.
    """

    @property
    def name(self) -> str:
        """For people: ``codec="msgpack"`` and tables."""

    @property
    def number(self) -> int:
        """For the tracked wire, in one byte."""

    def encoder(self, schema: Any) -> Encode:
        """What writes objects of ``schema``."""

    def decoder(self, schema: Any) -> Decode:
        """What reads them."""


# -- msgpack and JSON ------------------------------------------------------------------------------------


@attrs.frozen(repr=False, eq=False)
class _Format:
    """The two self-describing codecs; they differ in these few things."""

    name: str
    number: int
    str_keys: bool
    write: Encode
    read_as: Callable[[Any], Decode]
    read_untyped: Decode

    def __repr__(self) -> str:
        return f"<codec {self.name}>"

    def encoder(self, schema: Any) -> Encode:
        """See `Codec`. Raises SchemaError."""
        found = inspect(schema)
        if found.raw_fallback:
            return self.encoder(found.inner)
        if found.engine == "any":
            return self._untyped_encoder()
        if found.engine == "cattrs":
            return _verified(found, lambda message: self.write(unstructure(message)), self.decoder(schema))
        if found.holds & {"any", "hook"}:
            return _verified(found, self.write, self.decoder(schema))
        return _tested(found, self.write)

    def decoder(self, schema: Any) -> Decode:
        """See `Codec`. Raises SchemaError."""
        found = inspect(schema)
        if found.engine == "any":
            return self._untyped_decoder(found.type)
        if found.engine == "cattrs":
            structure, read = structurer(schema, str_keys=self.str_keys), self._untyped_decoder(Any)
            return lambda body: structure(read(body))
        json = self is JSON
        return compile_reader(self.read_as(schema), schema, utf8=json, ints=json, floats=not json)

    def _untyped_encoder(self) -> Encode:
        write, natural = self.write, self is MSGPACK

        def encode(message: Any) -> bytes:
            try:
                plain = _plain(message, natural)
                return write(plain)
            except EncodeError:
                raise
            except Exception as error:
                raise _refused(message, Any, error) from error

        return encode

    def _untyped_decoder(self, kind: Any) -> Decode:
        read = self.read_untyped

        def decode(body: bytes) -> Any:
            value = read(body)
            if not is_bounded(value):
                raise DecodeError("a number over 64 bits or not finite")
            if kind in (dict, list) and type(value) is not kind:
                raise DecodeError(f"expected a {kind.__name__}, got {type(value).__name__}")
            return value

        return decode


def _tested(found: Schema, write: Encode) -> Encode:
    """For what one look at the message can tell.

    That look stands in the function, written out: a call of its own would cost 60 of the 400 ns that it all takes.
    """
    schema, fits = found.type, conforms(found.type)
    expression, names = getattr(fits, "expression", ("fits(m)", {"fits": fits}))
    scope = {**names, "write": write, "unfit": lambda message, error=None: _unfit(message, schema, error)}
    encode: Encode = define(_TESTED.format(expression=expression), "encode", scope)
    return encode


_TESTED = """
def encode(m):
    try:
        if {expression}:
            return write(m)
    except Exception as error:
        raise unfit(m, error) from error
    raise unfit(m)
"""


def _verified(found: Schema, write: Encode, decode: Decode) -> Encode:
    """For what no check covers: what arrives is looked at before it is sent."""
    kind = get_origin(found.type) or found.type
    exact = kind if is_class(kind) and not is_typeddict(kind) else None

    def encode(message: Any) -> bytes:
        if exact is not None and type(message) is not exact:
            raise _unfit(message, found.type)
        try:
            body = write(message)
            arrives = decode(body)
            same = _same(arrives, message)
        except Exception as error:
            raise _refused(message, found.type, error) from error
        if not same:
            raise EncodeError(
                f"{describe(found.type)} would arrive as {_short(arrives)}, and {_short(message)} was published: "
                "declare types that say what they hold, and have converters and hooks leave alone what they made",
                schema=found.type,
            )
        return body

    return encode


def _same(one: Any, other: Any) -> bool:
    """Whether ``one``, which arrives, is ``other``: equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return type(one) is float and type(other) is int and one == other  # as `conforms` has it
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            _same(*keys) and _same(*values)
            for keys, values in zip(
                zip(one, other, strict=True), zip(one.values(), other.values(), strict=True), strict=True
            )
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, set | frozenset):
        return {(type(item), item) for item in one} == {(type(item), item) for item in other}
    if is_class(type(one)):
        return _same(_fields_of(one), _fields_of(other))
    return bool(one == other)


def _fields_of(value: Any) -> dict[str, Any]:
    """The fields of a class instance by name, their values as they are."""
    if attrs.has(type(value)):
        return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    names = getattr(value, "__struct_fields__", None) or tuple(getattr(value, "__dataclass_fields__", ()))
    return {name: getattr(value, name) for name in names}


# -- untyped values --------------------------------------------------------------------------------------

_ANY_CODEC = (type(None), bool, str)
_LEAVES = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)


def _plain(value: Any, natural: bool) -> Any:
    """``value`` as data that an untyped reader gets back equal; objects in it go as their own type writes them.

    ``natural`` says that the format keeps bytes and keys of any simple type (msgpack).
    """
    kind: Any = type(value)
    if kind in _ANY_CODEC:
        return value
    if kind in (int, float):
        if not is_bounded(value):
            raise EncodeError(f"{value!r} is over 64 bits or not finite, and readers refuse that")
        return value
    if kind is bytes:
        if not natural:
            raise EncodeError("bytes in untyped JSON would arrive as text: declare a type, or use codec='msgpack'")
        return value
    if kind is list:
        return [_plain(item, natural) for item in value]
    if kind is dict:
        return {_key(key, natural): _plain(item, natural) for key, item in value.items()}
    if isinstance(value, (Enum, *_LEAVES)):
        return value
    if is_class(kind):
        return msgspec.Raw(_written_as(kind, natural)(value))
    raise EncodeError(
        f"{_short(value)} of type {kind.__name__} would arrive as something else in an untyped message: declare the "
        "type at the publisher, or publish lists and dicts"
    )


@cache
def _written_as(kind: Any, natural: bool) -> Encode:
    return (MSGPACK if natural else JSON).encoder(kind)


def _key(key: Any, natural: bool) -> Any:
    if type(key) is str or (natural and type(key) in (int, bytes, bool, float, type(None))):
        return _plain(key, natural)
    raise EncodeError(
        f"the key {_short(key)} would arrive as text in untyped JSON: declare a type such as dict[int, str], or use "
        "codec='msgpack'"
        if not natural
        else f"the key {_short(key)} of type {type(key).__name__} can't be a key in an untyped message: "
        "declare the type"
    )


def _short(value: Any) -> str:
    """For errors: bounded in length and depth, and it never raises, whatever ``value`` is."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 120
    return shown.repr(value)


_WHY: Mapping[type, str] = {
    int: "integers over 64 bits, and in place of floats those that no float equals, would not arrive",
    float: "a float that is not finite is refused by every reader, and one in place of an int too",
    decimal.Decimal: "NaN is not equal to itself",
    datetime.datetime: "years are 1 to 9999 in UTC too, and zones travel in whole minutes",
    datetime.time: "zones travel in whole minutes",
}


def _unfit(message: Any, schema: Any, error: Exception | None = None) -> EncodeError:
    """What the first part of ``message`` that is not of its type is, and should be; or what ``error`` says."""
    try:
        path, hint, value = misfit(schema, message)
    except Exception:  # too deep to be walked, or a property that raises
        path, hint, value = "", schema, message
    expected, kind = get_origin(hint) or hint, type(value)
    why = f": {_WHY[kind]}" if kind in _WHY and (kind is expected or expected in (int, float)) else ""
    below = isinstance(expected, type) and not is_typeddict(expected) and issubclass(kind, expected)
    if below and not why and kind is not expected:
        why = f": an instance of a subclass would arrive as its base; give {describe(expected)}(…)"
    where = f"{describe(schema)}{path}: " if path else ""
    if error is not None and not why:
        why = f" ({type(error).__name__}: {error!s:.200})"
    return EncodeError(f"{where}expected {describe(hint)}, got {kind.__name__}: {_short(value)}{why}", schema=schema)


def _refused(message: Any, schema: Any, error: Exception) -> EncodeError:
    return EncodeError(
        f"{_short(message)} can't be encoded as {describe(schema)}: {type(error).__name__}: {error!s:.200}",
        schema=schema,
    )


def _read_msgpack(body: bytes) -> Any:
    return msgpack.unpackb(body, strict_map_key=False, timestamp=3)


MSGPACK: Codec = _Format(
    "msgpack",
    1,
    False,
    msgspec.msgpack.Encoder().encode,
    lambda schema: msgspec.msgpack.Decoder(schema).decode,
    _read_msgpack,
)
JSON: Codec = _Format(
    "json",
    2,
    True,
    msgspec.json.Encoder().encode,
    lambda schema: msgspec.json.Decoder(schema).decode,
    msgspec.json.decode,
)


# -- text and raw ----------------------------------------------------------------------------------------


@attrs.frozen(repr=False, eq=False)
class _Plain:
    """Text and raw bytes: a body as it is, for one type each."""

    name: str
    number: int
    kind: type
    write: Encode
    read: Decode

    def __repr__(self) -> str:
        return f"<codec {self.name}>"

    def encoder(self, schema: Any) -> Encode:
        """See `Codec`. Raises SchemaError for another type."""
        self._check(schema)
        kind, write = self.kind, self.write

        def encode(message: Any) -> bytes:
            if type(message) is not kind:
                raise _unfit(message, kind)
            try:
                return write(message)
            except UnicodeEncodeError as error:
                raise _refused(message, kind, error) from error

        return encode

    def decoder(self, schema: Any) -> Decode:
        """See `Codec`. Raises SchemaError for another type."""
        self._check(schema)
        return self.read

    def _check(self, schema: Any) -> None:
        if schema is not self.kind and inspect(schema).engine != "any":
            raise SchemaError(
                f"codec {self.name!r} carries {self.kind.__name__} and nothing else, not {describe(schema)}: use "
                "codec='msgpack' or 'json'",
                schema=schema,
            )


TEXT: Codec = _Plain("text", 3, str, lambda message: message.encode(), bytes.decode)
RAW: Codec = _Plain("raw", 4, bytes, bytes, bytes)


@attrs.frozen(eq=False)
class Codecs:
    """The codecs an app knows: those that a publisher may name, and the ``default`` for bodies that name none."""

    default: Codec
    by_number: Mapping[int, Codec]


BUILTIN: Mapping[str, Codec] = types.MappingProxyType({codec.name: codec for codec in (MSGPACK, JSON, TEXT, RAW)})


# -- which codec it is -----------------------------------------------------------------------------------


def find_codec(codec: str | Codec) -> Codec:
    """A built-in codec by its name, or one of the user's own. Raises SchemaError for anything else."""
    if isinstance(codec, str):
        if codec in BUILTIN:
            return BUILTIN[codec]
        raise SchemaError(
            f"codec {codec!r} is not known: use {', '.join(map(repr, BUILTIN))}, or an object with name, number, "
            "encoder and decoder",
            schema=codec,
        )
    if not isinstance(codec, Codec):
        raise SchemaError(f"{codec!r} is no codec: it needs name, number, encoder and decoder", schema=codec)
    if codec not in BUILTIN.values() and codec.number not in _OWN_NUMBERS:
        raise SchemaError(
            f"codec {codec.name!r} has the number {codec.number!r}: codecs of your own are 128 to 255", schema=codec
        )
    return codec


def detect(body: bytes) -> Codec | None:
    """The codec that a body's first byte gives away: ``{`` or ``[`` is JSON, a map or array of msgpack itself."""
    if not len(body):
        return None
    first = body[0]
    if first in b"{[":
        return JSON
    if 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
        return MSGPACK
    return None
