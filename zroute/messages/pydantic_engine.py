"""Let pydantic validate and encode its own models.

pydantic decides which values it accepts: a model is strict only if its own configuration makes it strict. Aliases are
used for encoding and decoding. pydantic parses JSON itself. A msgpack body is decoded to plain data first.

zroute imports pydantic only when it finds a pydantic type in a signature, so the program has already imported it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import msgspec

from zroute.errors import DecodeError, SchemaError
from zroute.messages.decode_checks import Check, is_bounded
from zroute.messages.schema import describe

__all__ = ["dump", "encode_msgpack", "json_reader", "plain_reader", "writer"]

Mode = Literal["json", "python"]

# round_trip leaves out computed fields, which a reader computes again. A value of a wrong type is an error.
_OPTIONS: Mapping[str, Any] = {"by_alias": True, "round_trip": True, "warnings": "error"}
_SHOWN = 3  # errors per message


@cache  # one entry per declared type; peers can't add any
def _adapter_of(schema: Any) -> Any:
    return _new_adapter(schema)


def _adapter(schema: Any) -> Any:
    """Return pydantic's `TypeAdapter` for a type.

    Raises SchemaError if pydantic does not support the type.
    """
    try:
        hash(schema)
    except TypeError:  # metadata that is not hashable
        return _new_adapter(schema)
    return _adapter_of(schema)


def _new_adapter(schema: Any) -> Any:
    import pydantic

    try:
        adapter = pydantic.TypeAdapter(schema)
        # Without this call, an annotation that can't be resolved is an error only at the first message.
        adapter.rebuild(raise_errors=True)
    except Exception as error:
        raise SchemaError(f"pydantic does not support {describe(schema)}: {error!s:.300}", schema=schema) from error
    return adapter


def json_reader(schema: Any, fits: Check = is_bounded) -> Callable[[bytes], Any]:
    """Return the function that decodes JSON bodies.

    The function raises DecodeError with pydantic's paths and messages. ``fits`` checks the numbers of a decoded value.

    Raises SchemaError if pydantic does not support the type.
    """
    adapter = _adapter(schema)

    def read(body: bytes) -> Any:
        body.isascii() or body.decode()  # pydantic does not check fields that a model does not have
        return _checked(adapter.validate_json, body, schema, fits)

    return read


def plain_reader(schema: Any, fits: Check = is_bounded) -> Callable[[Any], Any]:
    """Return the function that creates an object from plain data.

    The function raises DecodeError with pydantic's paths and messages. ``fits`` checks the numbers of a value.

    A msgpack body represents a UUID, an Enum or a set as JSON does: as text, a number or a list. A strict model accepts
    those forms only from JSON, so data that the model refuses is validated again as JSON.

    Raises SchemaError if pydantic does not support the type.
    """
    from pydantic import ValidationError
    from pydantic_core import to_json

    adapter = _adapter(schema)

    def read(value: Any) -> Any:
        try:
            return _bounded(adapter.validate_python(value), fits)
        except ValidationError as error:
            try:
                body = to_json(value)
            except Exception:  # bytes that are not text
                raise _refused(schema, error) from error
        return _checked(adapter.validate_json, body, schema, fits)  # after `except`, so the first errors are freed

    return read


def writer(schema: Any, mode: Mode) -> Callable[[Any], Any]:
    """Return the function that encodes an object of a type.

    With mode "json", the function returns JSON as bytes. With mode "python", the function returns data for
    `encode_msgpack`.
    """
    adapter = _adapter(schema)
    if mode == "json":
        return lambda message: adapter.dump_json(message, **_OPTIONS)
    return lambda message: adapter.dump_python(message, mode="python", **_OPTIONS)


def dump(model: Any, mode: Mode) -> Any:
    """Return the data of a model that is nested in an object that is not a model."""
    return type(model).__pydantic_serializer__.to_python(model, mode=mode, **_OPTIONS)


def _jsonable(value: Any) -> Any:
    """Return pydantic's JSON form of a value that msgpack does not support.

    Examples are a Path and a URL.
    """
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


encode_msgpack: Callable[[Any], bytes] = msgspec.msgpack.Encoder(enc_hook=_jsonable).encode
"""Encode data from `writer` or `dump`, including values of all types that pydantic supports."""


def _checked(validate: Callable[[bytes], Any], body: bytes, schema: Any, fits: Check) -> Any:
    from pydantic import ValidationError

    try:
        return _bounded(validate(body), fits)
    except ValidationError as error:
        raise _refused(schema, error) from error


def _bounded(value: Any, fits: Check) -> Any:
    if not fits(value):
        raise DecodeError("a number exceeds 64 bits or is not finite")
    return value


def _refused(schema: Any, error: Any) -> DecodeError:
    """Return a DecodeError that lists the invalid fields.

    Each field has pydantic's path and message.
    """
    number = error.error_count()
    found = _first(error, min(number, _SHOWN))
    shown = [": ".join(filter(None, [".".join(map(str, one["loc"])), one["msg"]])) for one in found]
    more = [f"and {number - _SHOWN} more"] if number > _SHOWN else []
    return DecodeError(f"the data is not a valid {describe(schema)}: {'; '.join(shown + more)}")


def _first(error: Any, number: int) -> list[dict[str, Any]]:
    """Return the first errors of a ValidationError.

    A body of 1 MB may cause a million errors. ``error.errors()`` would create an object for each of them, which takes
    seconds.
    """
    text = error.json(include_url=False, include_context=False, include_input=False)
    decode, at, found = json.JSONDecoder().raw_decode, 1, []
    for _ in range(number):
        one, end = decode(text, at)
        at = end + 1  # after the comma
        found.append(one)
    return found
