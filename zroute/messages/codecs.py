"""Codecs: functions that encode and decode messages of one type.

Each codec creates its encoder and decoder for a type once, before the first message. For a declared type, the handler
receives exactly the published value: equal, and of the same types. A message that cannot round-trip raises an
EncodeError in the publisher.

One of two checks guarantees the round trip:

- Most types: the publisher checks the message against its type before it encodes it.
- Types with converters, constructors or hooks that run again in the reader, pydantic models, and types with undeclared
  parts: the publisher decodes the encoded body and compares the result with the message.
"""

from __future__ import annotations

import datetime
import decimal
import json
import reprlib
import types
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, Protocol, TypeAlias, Union, cast, get_args, get_origin, is_typeddict, runtime_checkable

import attrs
import msgpack
import msgspec

from zroute.codegen import Inline, define
from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages import pydantic_engine
from zroute.messages.constraints import show_constraints
from zroute.messages.decode_checks import are_64_bits, compile_reader, is_bounded
from zroute.messages.encode_checks import conforms, misfit
from zroute.messages.extras import NO_EXTRAS, Extras, current
from zroute.messages.schema import LEAVES, Schema, describe, fields_of, inspect, is_class, limits

__all__ = [
    "BUILTIN",
    "BYTES_LIKE",
    "JSON",
    "MSGPACK",
    "RAW",
    "TEXT",
    "Codec",
    "Codecs",
    "Decode",
    "Encode",
    "describe_failure",
    "detect",
    "find_codec",
    "is_own",
    "with_extras",
]

Decode: TypeAlias = Callable[[bytes], Any]
Encode: TypeAlias = Callable[[Any], bytes]

BYTES_LIKE = (bytes, bytearray, memoryview)
"""The types that a publisher accepts as a raw body.

All except bytes are copied, because the caller may change them.
"""

_OWN_NUMBERS = range(128, 256)  # 0 to 127 are reserved for codecs of zroute


@runtime_checkable
class Codec(Protocol):
    """The interface of codecs, which encode and decode message bodies.

    The option ``codec=`` accepts any object with these attributes and methods.

    ``encoder`` and ``decoder`` are called once per declared type, when the app is compiled.

    There is no pickle codec. Decoding a pickle runs code that the sender chose, and anyone who can reach the port can
    send.

    An example, used as ``App(codec=Cbor())``:

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
        """The name for errors and tables, such as ``"cbor"``.

        The name must be printable text, and must not be the name of a built-in codec.
        """

    @property
    def number(self) -> int:
        """The number of the codec on the tracked wire: 128 to 255 for a user's own codec."""

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
        name: see `Codec`.
        number: see `Codec`.
        natural: True if the format supports bytes, aware datetimes, and keys of any simple type (msgpack).
        writer: a function that takes a hook for unknown types and the extras, and returns the encoder for any object.
        reader: a function that returns the decoder of a type.
        untyped_reader: a function that returns the decoder of a body to plain data.
        extras: the additional values that the codec carries.
    """

    name: str
    number: int
    natural: bool
    writer: Callable[[Callable[[Any], Any], Extras], Encode]
    reader: Callable[[Any, Extras], Decode]
    untyped_reader: Callable[[Extras], Decode]
    extras: Extras = NO_EXTRAS
    write: Encode = attrs.field(init=False)

    @write.default
    def _make_write(self) -> Encode:
        return self.writer(self._plain_of, self.extras)

    def __repr__(self) -> str:
        return f"<codec {self.name}>"

    def encoder(self, schema: Any) -> Encode:
        """Return an encoder with the checks that ``schema`` needs; see `Codec`."""
        # A user's own codec may be based on this one: it then carries the additional values of its app.
        inner = with_extras(self, current())
        if inner is not self:
            return inner.encoder(schema)
        found = inspect(schema, self.extras)
        if found.raw_fallback:
            return self.encoder(found.inner)
        if found.engine == "any":
            return self._untyped_encoder()
        if found.engine == "pydantic":
            return _verified(found, self._pydantic_writer(schema), self.decoder(schema), self)
        if found.engine == "cattrs":
            from zroute.messages.cattrs_engine import unstructurer

            write, plain = self._write_leaves, unstructurer(self._mode, self.extras, self._plain_of)
            return _verified(found, lambda message: write(plain(message)), self.decoder(schema), self)
        if found.holds & {"any", "hook", "taught"}:
            return _verified(found, self.write, self.decoder(schema), self)
        return _tested(found, self.write, allow_nan=self.extras.allow_nan)

    def decoder(self, schema: Any) -> Decode:
        """Return a decoder with the checks that ``schema`` needs; see `Codec`."""
        inner = with_extras(self, current())
        if inner is not self:
            return inner.decoder(schema)
        found = inspect(schema, self.extras)
        decode = self._decoder(found, schema)
        return _limited(decode, schema, self.extras.allow_nan) if "limit" in found.holds else decode

    def _decoder(self, found: Schema, schema: Any) -> Decode:
        if found.engine == "any":
            return self._untyped_decoder(found.type)
        if found.engine == "pydantic":
            if not self.natural:
                return pydantic_engine.json_reader(schema, self._fits)
            return _after(self._untyped_decoder(Any), pydantic_engine.plain_reader(schema, self._fits))
        if found.engine == "cattrs":
            from zroute.messages.cattrs_engine import structurer

            structure = structurer(schema, str_keys=not self.natural, extras=self.extras)
            return _after(self._untyped_decoder(Any), structure)
        text, finite = not self.natural, not self.extras.allow_nan
        return compile_reader(
            self.reader(schema, self.extras),
            schema,
            utf8=text,
            ints=text,
            floats=finite and not text,
            decimals=finite,
            extras=self.extras,
        )

    def _plain_of(self, value: Any) -> Any:
        """Return the plain data of a value of a registered type."""
        kind = self.extras.kind_of(type(value))
        if kind is None:
            raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
        return _plain(self.extras.types[kind].encode(value), self.natural, self._fits)

    @property
    def _fits(self) -> Callable[[Any], bool]:
        """The function that checks the numbers in untyped values."""
        return are_64_bits if self.extras.allow_nan else is_bounded

    @property
    def _mode(self) -> pydantic_engine.Mode:
        return "python" if self.natural else "json"

    @property
    def _write_leaves(self) -> Encode:
        """The encoder of plain data that may contain values that only pydantic supports."""
        return pydantic_engine.encode_msgpack if self.natural else self.write

    def _pydantic_writer(self, schema: Any) -> Encode:
        dump = pydantic_engine.writer(schema, self._mode)
        return (lambda message: pydantic_engine.encode_msgpack(dump(message))) if self.natural else dump

    def _untyped_encoder(self) -> Encode:
        write, natural, fits = self.write, self.natural, self._fits

        def encode(message: Any) -> bytes:
            try:
                return write(_plain(message, natural, fits))
            except EncodeError:  # the error already names the part of the message
                raise
            except Exception as error:
                raise _refused(message, Any, error) from error

        return encode

    def _untyped_decoder(self, kind: Any) -> Decode:
        read = self.untyped_reader(self.extras)
        fits = self._fits

        def decode(body: bytes) -> Any:
            value = read(body)
            if not fits(value):
                raise DecodeError("a number exceeds 64 bits or is not finite")
            if kind in (dict, list) and type(value) is not kind:
                raise DecodeError(f"expected a {kind.__name__}, got {type(value).__name__}")
            return value

        return decode


def _after(read: Decode, make: Callable[[Any], Any]) -> Decode:
    return lambda body: make(read(body))


def _limited(decode: Decode, schema: Any, allow_nan: bool) -> Decode:
    """Return ``decode`` with checks for the constraints that the engine ignores."""
    fits = conforms(schema, allow_nan=allow_nan)

    def decode_limited(body: bytes) -> Any:
        value, error = decode(body), None
        try:
            if fits(value):
                return value
        except Exception as raised:
            error = raised
        raise DecodeError(str(_unfit(schema, allow_nan, value, error))) from error

    return decode_limited


def _tested(found: Schema, write: Encode, *, allow_nan: bool) -> Encode:
    """Return an encoder that checks a message before it encodes it.

    The code of the check is part of the encoder, which takes 400 ns. A separate call of the check would add 60 ns. The
    lines in the encoder's ``inline`` encode ``m`` and assign the result to ``body``; it is None for a message that must
    be refused.
    """
    schema, fits = found.type, conforms(found.type, allow_nan=allow_nan)
    expression, names = getattr(fits, "expression", ("fits(m)", {"fits": fits}))
    scope = {**names, "write": write, "unfit": partial(_unfit, schema, allow_nan)}
    encode: Any = define(_TESTED.format(expression=expression), "encode", scope)
    encode.inline = Inline((f"body = write(m) if {expression} else None",), {**names, "write": write})
    return cast("Encode", encode)


_TESTED = """
def encode(m):
    try:
        if {expression}:
            return write(m)
    except Exception as error:
        raise unfit(m, error) from error
    raise unfit(m)
"""


def _verified(found: Schema, write: Encode, decode: Decode, codec: _Format) -> Encode:
    """Return an encoder that decodes each body and compares it with the message.

    This encoder is used for the types that `conforms` can't check.
    """
    kind = get_origin(found.type) or found.type
    exact = kind if is_class(kind) and not is_typeddict(kind) else None

    def encode(message: Any) -> bytes:
        if exact is not None and type(message) is not exact:
            raise _unfit(found.type, codec.extras.allow_nan, message)
        try:
            body = write(message)
        except Exception as error:
            raise _unfit_part(found.type, codec.extras.allow_nan, message, error) from error
        try:
            arrives = decode(body)
            same = _same(arrives, message, codec)
        except Exception as error:
            raise _refused(message, found.type, error) from error
        if not same:
            raise EncodeError(
                f"{describe(found.type)} would arrive as {_short(arrives)} instead of the published {_short(message)}: "
                "declare precise types, and write converters and hooks that return their own results unchanged",
                schema=found.type,
            )
        return body

    return encode


def _same(one: Any, other: Any, codec: _Format) -> bool:
    """Return True if both values are equal, with equal types at every level.

    ``one`` is the decoded value, which may contain a float where the message has an equal int, as in `conforms`. Values
    of a registered type are compared as plain data, because the type may not define equality.
    """
    kind, same = type(one), partial(_same, codec=codec)
    if kind is not type(other):
        return kind is float and type(other) is int and bool(one == other)  # `conforms` allows this too
    if kind is float:
        return bool(one == other or (one != one and other != other))  # NaN arrives only if the app allows it
    if kind is decimal.Decimal:
        return bool((one.is_nan() and other.is_nan()) or one == other)  # a comparison with a signaling NaN raises
    if kind in LEAVES:
        return bool(one == other)
    if codec.extras.kind_of(kind) is not None:
        return same(codec._plain_of(one), codec._plain_of(other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(*keys) and same(*values)
            for keys, values in zip(
                zip(one, other, strict=True), zip(one.values(), other.values(), strict=True), strict=True
            )
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):  # with types, because {1} == {True}
        return {(type(item), item) for item in one} == {(type(item), item) for item in other}
    if is_class(kind):
        return same(fields_of(one), fields_of(other))
    return bool(one == other)


# -- untyped values --------------------------------------------------------------------------------------

_SIMPLE = (type(None), bool, str)
_READ_AS_TEXT = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)


def _plain(value: Any, natural: bool, fits: Callable[[Any], bool]) -> Any:
    """Return ``value`` if an untyped reader would receive an equal value.

    Args:
        value: the message.
        natural: see `_Format`.
        fits: a function that returns True if the numbers of a value are allowed.

    Raises:
        EncodeError: a part of the value would arrive as another value or type.
    """
    kind: Any = type(value)
    if kind in _SIMPLE:
        return value
    if kind in (int, float):
        if not fits(value):
            raise EncodeError(f"{value!r} {_WHY_NUMBER[kind]}, so subscribers would refuse it{_allow_nan(value)}")
        return value
    if kind is list:
        return [_plain(item, natural, fits) for item in value]
    if kind is dict:
        return {_key(key, natural, fits): _plain(item, natural, fits) for key, item in value.items()}
    if natural and (kind is bytes or (kind is datetime.datetime and value.utcoffset() is not None)):
        return value  # msgpack has a separate format for each of them
    raise EncodeError(f"{_short(value)} of type {kind.__name__} {_why_not_plain(value, natural)}")


def _why_not_plain(value: Any, natural: bool) -> str:
    """Return how ``value`` would change in an untyped body, and the remedy."""
    kind = type(value)
    if kind is bytes:
        return "would arrive as text in untyped JSON: declare a type; or use codec='msgpack'"
    remedy = (
        "declare the type of the message at the publisher, requester or job queue; or send lists and dicts of text and "
        "numbers"
    )
    if isinstance(value, (Enum, *_READ_AS_TEXT)):
        form = "value" if isinstance(value, Enum) else "text"
        return f"would arrive as its {form} in an untyped message: {remedy}"
    if is_class(kind) and kind is not dict:
        return f"would arrive as a dict in an untyped message: {remedy}"
    return f"would not arrive unchanged in an untyped message: {remedy}{_numpy(value)}"


_WHY_NUMBER = {int: "exceeds 64 bits", float: "is not finite"}


def _allow_nan(value: Any) -> str:
    return "; allow NaN and infinity with App(limits=Limits(allow_nan=True))" if type(value) is float else ""


def _numpy(value: Any) -> str:
    """Return the remedy for an array or a scalar of numpy, or ""."""
    if not hasattr(value, "dtype"):
        return ""
    if getattr(value, "ndim", 0):
        return "; convert the array with .tolist(), or give the publisher a codec for arrays"
    return "; convert the value with .item()"


def _key(key: Any, natural: bool, fits: Callable[[Any], bool]) -> Any:
    if type(key) is str or (natural and type(key) in (int, bytes, bool, float, type(None))):
        return _plain(key, natural, fits)
    raise EncodeError(
        f"the key {_short(key)} would arrive as text in untyped JSON: declare a type such as dict[int, str]; or use "
        "codec='msgpack'"
        if not natural
        else f"the key {_short(key)} of type {type(key).__name__} can't be a dict key in an untyped message: "
        "declare the type of the message"
    )


def _short(value: Any) -> str:
    """Return a representation of a value for errors, bounded in length and depth.

    The function works for any value, even if its ``__repr__`` raises.
    """
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 120
    return shown.repr(value)


_WHY: Mapping[type, str] = {
    int: "an integer must fit into 64 bits, and if the type is float, a float must be able to hold the integer exactly",
    float: "the type int does not allow a float",
    datetime.datetime: "the year in UTC must be 1 to 9999, and the UTC offset must be a whole number of minutes",
    datetime.time: "the UTC offset must be a whole number of minutes",
}


_NOT_FINITE = "a {} must be finite; allow NaN and infinity with App(limits=Limits(allow_nan=True))"


def _unfit(schema: Any, allow_nan: bool, message: Any, error: Exception | None = None) -> EncodeError:
    """Return the error that names the first part that does not match its type.

    If no such part is found, the error quotes ``error``.
    """
    try:
        path, hint, value = misfit(schema, message, allow_nan=allow_nan)
    except Exception:  # the message nests too deeply, or one of its properties raises
        path, hint, value = "", schema, message
    expected, kind = get_origin(hint) or hint, type(value)
    why = f": {_WHY[kind]}" if kind in _WHY and (kind is expected or expected in (int, float)) else ""
    members = get_args(hint) if expected in (Union, types.UnionType) else (expected,)
    if kind in (float, decimal.Decimal) and kind in members:
        why = f": {_NOT_FINITE.format(kind.__name__)}"
    below = isinstance(expected, type) and not is_typeddict(expected) and issubclass(kind, expected)
    if below and not why and kind is not expected:
        why = f": an instance of a subclass would arrive as its base class; publish {describe(expected)}(…) instead"
    why = why or _numpy(value)
    where = f"{describe(schema)}{path}: " if path else ""
    if error is not None and not why:
        why = f" ({type(error).__name__}: {error!s:.200})"
    wanted = " with ".join(filter(None, [describe(hint), show_constraints(limits(hint))]))
    return EncodeError(f"{where}expected {wanted}, got {kind.__name__}: {_short(value)}{why}", schema=schema)


def _unfit_part(schema: Any, allow_nan: bool, message: Any, error: Exception) -> EncodeError:
    """Return the error that names the misfitting part, or else quotes ``error``."""
    try:
        path, _, _ = misfit(schema, message, allow_nan=allow_nan)
    except Exception:  # as in `_unfit`
        path = ""
    return _unfit(schema, allow_nan, message, error) if path else _refused(message, schema, error)


def describe_failure(error: Exception) -> str:
    """Return the type of an error and the beginning of its text."""
    return f"{type(error).__name__}: {error!s:.200}"


def _refused(message: Any, schema: Any, error: Exception) -> EncodeError:
    return EncodeError(
        f"{_short(message)} can't be encoded as {describe(schema)}: {describe_failure(error)}",
        schema=schema,
    )


def _msgpack_untyped(_extras: Extras) -> Decode:
    # msgspec writes keys of any simple type, so all of them are allowed. timestamp=3 decodes to datetime.
    return partial(msgpack.unpackb, strict_map_key=False, timestamp=3)


MSGPACK: Codec = _Format(
    "msgpack",
    1,
    True,
    lambda hook, _extras: msgspec.msgpack.Encoder(enc_hook=hook).encode,
    lambda schema, extras: msgspec.msgpack.Decoder(schema, dec_hook=extras.decode).decode,
    _msgpack_untyped,
)


def _json_writer(hook: Callable[[Any], Any], extras: Extras) -> Encode:
    fast = msgspec.json.Encoder(enc_hook=hook).encode

    def write(message: Any) -> bytes:
        body = fast(message)
        if b"null" not in body:
            return body
        # msgspec writes NaN and infinity as null, so a null may have been one. Python's json writes their names.
        plain = msgspec.to_builtins(message, str_keys=True, enc_hook=hook)
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()

    return write if extras.allow_nan else fast


def _json_reader(schema: Any, extras: Extras) -> Decode:
    fast = msgspec.json.Decoder(schema, dec_hook=extras.decode).decode

    def convert(body: bytes) -> Any:
        return msgspec.convert(json.loads(body.decode()), schema, str_keys=True, dec_hook=extras.decode)

    return _with_nan(fast, convert) if extras.allow_nan else fast


def _json_untyped(extras: Extras) -> Decode:
    read: Decode = msgspec.json.decode
    return _with_nan(read, lambda body: json.loads(body.decode())) if extras.allow_nan else read


def _with_nan(fast: Decode, slow: Decode) -> Decode:
    """Return a decoder that uses ``slow`` for JSON with NaN or infinity.

    msgspec refuses such JSON.
    """

    def read(body: bytes) -> Any:
        try:
            return fast(body)
        except Exception:
            if b"NaN" not in body and b"Infinity" not in body:
                raise
        return slow(body)

    return read


JSON: Codec = _Format(
    "json",
    2,
    False,
    _json_writer,
    _json_reader,
    _json_untyped,
)


def with_extras(codec: Codec, extras: Extras) -> Codec:
    """Return a built-in codec with the additional values of an app.

    A user's own codec is returned unchanged.
    """
    if extras is NO_EXTRAS or not isinstance(codec, _Format):
        return codec
    if codec.name not in extras.formats:
        extras.formats[codec.name] = attrs.evolve(codec, extras=extras)
    made: Codec = extras.formats[codec.name]
    return made


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
            if type(message) is not kind and not (kind is bytes and isinstance(message, bytearray | memoryview)):
                raise _unfit(kind, False, message)
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
        default: the codec for bodies whose publisher does not name a codec.
        by_number: the codecs that a publisher's header can name, by their number.
        extras: the additional values that the built-in codecs carry in this app.
        checked: the types, with the codec of a handler or None, that are known to have a decoder.
    """

    default: Codec
    by_number: Mapping[int, Codec]
    extras: Extras = NO_EXTRAS
    checked: set[tuple[object, object]] = attrs.field(init=False, factory=set, repr=False)


BUILTIN: Mapping[str, Codec] = types.MappingProxyType({codec.name: codec for codec in (MSGPACK, JSON, TEXT, RAW)})


def is_own(codec: Codec) -> bool:
    """Return True for a user's own codec.

    Such a codec may carry any type, so zroute checks no types for it.
    """
    return codec not in BUILTIN.values()


# -- find and detect codecs ------------------------------------------------------------------------------


def find_codec(codec: str | Codec, where: str | None = None) -> Codec:
    """Return a built-in codec by its name, or a user's codec after a check.

    Args:
        codec: ``"msgpack"``, ``"json"``, ``"text"``, ``"raw"``, or an object with the members of `Codec`.
        where: the user's line, for the error.

    Raises:
        SchemaError: the name is unknown, or a user's codec is invalid. No member may be missing, the name must be
            printable and not that of a built-in codec, and the number must be from 128 to 255.
    """
    if isinstance(codec, str):
        if codec in BUILTIN:
            return BUILTIN[codec]
        raise SchemaError(
            f"unknown codec {codec!r}: use {', '.join(map(repr, BUILTIN))}, or an object with name, number, "
            "encoder and decoder",
            schema=codec,
            where=where,
        )
    if not isinstance(codec, Codec):
        raise SchemaError(
            f"{_short(codec)} is not a codec: expected an object with the attributes name, number, encoder and decoder",
            schema=codec,
            where=where,
        )
    if isinstance(codec, type):
        raise SchemaError(
            f"codec={codec.__name__} is a class: pass an instance, {codec.__name__}()", schema=codec, where=where
        )
    if is_own(codec) and (fault := _fault_of(codec)):
        raise SchemaError(f"codec {fault}", schema=codec, where=where)
    return codec


def _fault_of(codec: Codec) -> str | None:
    """Return the text of the first fault in a user's codec, or None."""
    name, number = codec.name, codec.number
    if not isinstance(name, str) or not name or not name.isprintable():
        return f"{type(codec).__name__} has the name {_short(name)}: expected a printable text, such as 'cbor'"
    if name in BUILTIN:
        return f"{type(codec).__name__} has the name {name!r} of a built-in codec: choose another name"
    if not isinstance(number, int) or number not in _OWN_NUMBERS:
        return f"{name!r} has the number {_short(number)}: expected an int from 128 to 255"
    for member in ("encoder", "decoder"):
        if not callable(getattr(codec, member)):
            return f"{name!r} has no method {member}(schema): {member} is {_short(getattr(codec, member))}"
    return None


def detect(body: bytes) -> Codec | None:
    """Return the codec that the first byte of a body indicates, or None.

    ``{`` and ``[`` indicate JSON; the first byte of a msgpack map or array indicates msgpack.
    """
    if not len(body):
        return None
    first = body[0]
    if first in b"{[":
        return JSON
    if 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
        return MSGPACK
    return None
