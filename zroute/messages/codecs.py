"""Codecs: functions that encode and decode messages of one type.

A codec is bound to a type once, before any message. For a declared type, the handler receives exactly the published
value: equal, and of the same types. A message that can't arrive like that raises an EncodeError in the publisher.

Two checks keep this promise:

- Most types: the publisher checks the message against its type before it encodes it.
- Types with converters or hooks that run again in the reader, and values of undeclared type: no check of the message
  alone is enough. The publisher decodes the encoded body and compares the result with the message.
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

_OWN_NUMBERS = range(128, 256)  # 0 to 127 are reserved for codecs of zroute


@runtime_checkable
class Codec(Protocol):
    """How message bodies are written; ``codec=`` accepts any object of this shape.

    ``encoder`` and ``decoder`` are called once per declared type, when the app is compiled.

    There is no pickle codec. Decoding a pickle runs code that the sender chose, and anyone who can reach the port can
    send.

    This codec is used with ``App(codec=Cbor())``:

        class Cbor:
            name = "cbor"
            number = 128

            def encoder(self, schema):
                return cbor2.dumps

            def decoder(self, schema):
                return cbor2.loads
    """

    @property
    def name(self) -> str:
        """The name for errors and tables, such as ``"msgpack"``."""

    @property
    def number(self) -> int:
        """The number of the codec on the tracked wire: 128 to 255 for your own."""

    def encoder(self, schema: Any) -> Encode:
        """Return the function that encodes objects of ``schema`` to bytes.

        Args:
            schema: the declared type, or `typing.Any`.

        Raises:
            SchemaError: the codec can't carry the type. The returned function may raise EncodeError.
        """

    def decoder(self, schema: Any) -> Decode:
        """Return the function that decodes a body to an object of ``schema``.

        Args:
            schema: the declared type, or `typing.Any`.

        Raises:
            SchemaError: the codec can't carry the type. The returned function may raise any exception for a bad body.
        """


# -- msgpack and JSON ------------------------------------------------------------------------------------


@attrs.frozen(repr=False, eq=False)
class _Format:
    """A self-describing codec: msgpack or JSON.

    Attributes:
        name: as in `Codec`.
        number: as in `Codec`.
        str_keys: True if all keys of maps are text (JSON).
        write: encodes any object.
        read_as: returns the decoder of a type.
        read_untyped: decodes a body to plain data.
    """

    name: str
    number: int
    str_keys: bool
    write: Encode
    read_as: Callable[[Any], Decode]
    read_untyped: Decode

    def __repr__(self) -> str:
        return f"<codec {self.name}>"

    def encoder(self, schema: Any) -> Encode:
        """Return an encoder with the checks that ``schema`` needs; see `Codec`."""
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
        """Return a decoder with the checks that ``schema`` needs; see `Codec`."""
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
            except EncodeError:  # it already names the part of the message
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
    """Return an encoder that checks a message before it encodes it.

    The check is compiled into the function. A separate call would cost 60 ns, and the whole function takes 400 ns.
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
    """Return an encoder that decodes each body again and compares it.

    It serves the types that `conforms` can't check.
    """
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
                "declare precise types, and write converters and hooks that leave their own results unchanged",
                schema=found.type,
            )
        return body

    return encode


def _same(one: Any, other: Any) -> bool:
    """Return True if both values are equal, with equal types at every level.

    ``one`` is the decoded value. It may hold a float in place of an equal int, as in `conforms`.
    """
    if type(one) is not type(other):
        return type(one) is float and type(other) is int and one == other  # `conforms` allows this too
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            _same(*keys) and _same(*values)
            for keys, values in zip(
                zip(one, other, strict=True), zip(one.values(), other.values(), strict=True), strict=True
            )
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, set | frozenset):  # with types, because {1} == {True}
        return {(type(item), item) for item in one} == {(type(item), item) for item in other}
    if is_class(type(one)):
        return _same(_fields_of(one), _fields_of(other))
    return bool(one == other)


def _fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a class instance by name, with their values unchanged."""
    if attrs.has(type(value)):
        return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    names = getattr(value, "__struct_fields__", None) or tuple(getattr(value, "__dataclass_fields__", ()))
    return {name: getattr(value, name) for name in names}


# -- untyped values --------------------------------------------------------------------------------------

_ANY_CODEC = (type(None), bool, str)
# Written in their standard form. A reader without the type receives text, or a timestamp of msgpack.
_LEAVES = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)


def _plain(value: Any, natural: bool) -> Any:
    """Return ``value`` as data that arrives equal at an untyped reader.

    Class instances in it are encoded by their own type.

    Args:
        value: the message.
        natural: True if the format keeps bytes, and keys of any simple type (msgpack).

    Raises:
        EncodeError: a part of the value would arrive as another value or type.
    """
    kind: Any = type(value)
    if kind in _ANY_CODEC:
        return value
    if kind in (int, float):
        if not is_bounded(value):
            raise EncodeError(f"{value!r} is over 64 bits or not finite, so readers would refuse it")
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


@cache  # unbounded: one entry per class of the program
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
    """Return a representation for errors, bounded in length and depth.

    It works for any value: a failing ``__repr__`` raises nothing here.
    """
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 120
    return shown.repr(value)


_WHY: Mapping[type, str] = {
    int: "an integer must fit into 64 bits, and in place of a float it must equal a float",
    float: "a float must be finite, and can't take the place of an int",
    decimal.Decimal: "NaN is not equal to itself",
    datetime.datetime: "the year in UTC must be 1 to 9999, and the zone a whole number of minutes",
    datetime.time: "the zone must be a whole number of minutes",
}


def _unfit(message: Any, schema: Any, error: Exception | None = None) -> EncodeError:
    """Return the error that names the first part that does not fit its type.

    If no such part is found, the error quotes ``error``.
    """
    try:
        path, hint, value = misfit(schema, message)
    except Exception:  # the message nests too deeply, or one of its properties raises
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
    # Keys of any simple type are allowed, as msgspec writes them. 3 decodes timestamps to datetime.
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
    """A codec for one type whose body is the value itself: text or raw bytes."""

    name: str
    number: int
    kind: type
    write: Encode
    read: Decode

    def __repr__(self) -> str:
        return f"<codec {self.name}>"

    def encoder(self, schema: Any) -> Encode:
        """Return the encoder; see `Codec`. Raises SchemaError for another type."""
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
        """Return the decoder; see `Codec`. Raises SchemaError for another type."""
        self._check(schema)
        return self.read  # bytes.decode raises UnicodeDecodeError for a body that is not UTF-8

    def _check(self, schema: Any) -> None:
        if schema is not self.kind and inspect(schema).engine != "any":
            raise SchemaError(
                f"codec {self.name!r} carries only {self.kind.__name__}, not {describe(schema)}: use "
                "codec='msgpack' or 'json'",
                schema=schema,
            )


TEXT: Codec = _Plain("text", 3, str, lambda message: message.encode(), bytes.decode)
RAW: Codec = _Plain("raw", 4, bytes, bytes, bytes)


@attrs.frozen(eq=False)
class Codecs:
    """The codecs that an app knows.

    Attributes:
        default: the codec of bodies whose publisher states none.
        by_number: the codecs that a publisher may state, by their number.
    """

    default: Codec
    by_number: Mapping[int, Codec]


BUILTIN: Mapping[str, Codec] = types.MappingProxyType({codec.name: codec for codec in (MSGPACK, JSON, TEXT, RAW)})


# -- find and detect codecs ------------------------------------------------------------------------------


def find_codec(codec: str | Codec) -> Codec:
    """Return the built-in codec with that name, or check a user's codec.

    Args:
        codec: ``"msgpack"``, ``"json"``, ``"text"``, ``"raw"``, or an object with the members of `Codec`.

    Raises:
        SchemaError: the name is unknown, a member is missing, or the number is not 128 to 255.
    """
    if isinstance(codec, str):
        if codec in BUILTIN:
            return BUILTIN[codec]
        raise SchemaError(
            f"codec {codec!r} is not known: use {', '.join(map(repr, BUILTIN))}, or an object with name, number, "
            "encoder and decoder",
            schema=codec,
        )
    if not isinstance(codec, Codec):
        raise SchemaError(f"{codec!r} is not a codec: it needs name, number, encoder and decoder", schema=codec)
    if codec not in BUILTIN.values() and codec.number not in _OWN_NUMBERS:
        raise SchemaError(
            f"codec {codec.name!r} has the number {codec.number!r}: codecs of your own use 128 to 255", schema=codec
        )
    return codec


def detect(body: bytes) -> Codec | None:
    """Return the codec that the first byte of a body shows, or None.

    ``{`` and ``[`` show JSON; the first byte of a msgpack map or array shows msgpack.
    """
    if not len(body):
        return None
    first = body[0]
    if first in b"{[":
        return JSON
    if 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
        return MSGPACK
    return None
