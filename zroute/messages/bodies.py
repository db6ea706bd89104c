"""Choose the codec of a message body, and refuse bodies that nest too deeply.

The header of the publisher states the codec. Without a header, the codec is that of the program. Only a body of
undeclared type without a stated codec is detected, by its first byte.

A body that nests thousands of levels can exhaust the C stack of a decoder and end the process. `guarded` refuses such
a body before a codec reads it.
"""

from __future__ import annotations

import sys
from typing import Any

import msgpack

from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages.codecs import JSON, MSGPACK, RAW, TEXT, Codec, Decode, Encode, detect
from zroute.messages.schema import describe, inspect, is_class

__all__ = ["body_decoder", "body_encoder", "guarded", "runtime_encoder"]

# Up to this recursion limit of the interpreter, decoders raise RecursionError before the C stack is exhausted.
_SAFE_RECURSION = 8192
_MAX_DEPTH = 1000  # levels of lists and maps, checked only above _SAFE_RECURSION


def body_decoder(schema: Any, *, stated: Codec | None, route: Codec | None, default: Codec) -> Decode:
    """Return the function that decodes bodies of ``schema``.

    The codec depends on the declared type:

    - bytes: the body, unchanged.
    - str: UTF-8 text, unless ``stated`` or ``route`` is another codec.
    - an undeclared type: ``stated``, else the codec that the first byte shows, else ``route``, else ``default``.
    - ``T | bytes``: the decoded T, or the raw body if decoding fails.
    - any other type: ``stated``, else ``route``, else ``default``.

    Args:
        schema: the declared type of the message.
        stated: the codec that the publisher's header names, if it names one.
        route: the codec that the subscriber declared, if any.
        default: the codec of the app.

    Raises:
        SchemaError: no codec can carry the type.
    """
    found = inspect(schema)
    if found.engine == "raw":
        return bytes
    if found.raw_fallback:
        return _or_raw(body_decoder(found.inner, stated=stated, route=route, default=default))
    if found.engine == "text":
        codec = stated or route or TEXT
        return (TEXT if codec is RAW else codec).decoder(str)
    if found.engine == "any" and stated is None:
        return _detected(found.type, route or default)
    codec = stated or route or default
    if codec in (TEXT, RAW) and found.type is not Any:  # dict and list have the engine "any" too
        if stated is None:
            return codec.decoder(schema)  # raises SchemaError, since the program declared this codec
        return _refuse(f"the publisher sends {codec.name}, but {describe(schema)} is expected")
    return codec.decoder(found.type)


def _or_raw(decode: Decode) -> Decode:
    def decode_or_raw(body: bytes) -> Any:
        try:
            return decode(body)
        except Exception:  # any error: the declared type allows a body in another form
            return body

    return decode_or_raw


def _detected(kind: Any, otherwise: Codec) -> Decode:
    decoders = {codec.name: codec.decoder(kind) for codec in (JSON, MSGPACK)}
    fallback = decoders.get(otherwise.name) or otherwise.decoder(kind)
    if kind is not Any and otherwise in (TEXT, RAW):
        fallback = _refuse(f"neither JSON nor msgpack, but {describe(kind)} is expected")

    def decode(body: bytes) -> Any:
        codec = detect(body)
        return fallback(body) if codec is None else decoders[codec.name](body)

    return decode


def _refuse(reason: str) -> Decode:
    def decode(_body: bytes) -> Any:
        raise DecodeError(reason)

    return decode


def body_encoder(schema: Any, *, codec: Codec | None, default: Codec) -> tuple[Codec, Encode]:
    """Return the codec of messages of ``schema``, and the function that encodes them.

    bytes travel raw and str as text, unless ``codec`` is set. A publisher states one codec, so a publisher of
    ``T | bytes`` accepts only T. It refuses bytes with an EncodeError; declare a publisher of bytes for those.

    Args:
        schema: the declared type of the message.
        codec: the codec that the publisher declared, if any.
        default: the codec of the app.

    Raises:
        SchemaError: ``codec`` is not raw for bytes, or no codec can carry the type.
    """
    found = inspect(schema)
    if found.engine == "raw":
        if codec not in (None, RAW):
            raise SchemaError(f"bytes travel raw: remove codec={codec.name!r}", schema=schema)
        return RAW, RAW.encoder(bytes)
    chosen = codec or (TEXT if found.engine == "text" else default)
    return chosen, chosen.encoder(found.inner)


def runtime_encoder(message: Any, *, codec: Codec | None, default: Codec) -> tuple[Codec, Encode]:
    """Return the codec and encoder for one message of a publisher without a schema.

    The type of ``message`` takes the place of the schema; see `body_encoder`. Raises EncodeError if no codec can carry
    that type.
    """
    kind = type(message)
    schema = kind if is_class(kind) or kind in (bytes, str) else Any
    try:
        return body_encoder(schema, codec=codec, default=default)
    except SchemaError as error:
        raise EncodeError(str(error), schema=kind) from error


# -- bodies that nest too deeply -------------------------------------------------------------------------


def guarded(decode: Decode, codec: Codec) -> Decode:
    """Return ``decode`` with a check of the nesting depth, for large bodies.

    The check runs only if the program has raised the interpreter's recursion limit above 8192. Below it, decoders raise
    RecursionError by themselves. Text and raw bytes do not nest, so their decoders are returned unchanged.

    Args:
        decode: a function that `body_decoder` returned.
        codec: the assumed codec of a body that `detect` does not recognise, such as JSON behind white space.
    """
    if decode in (TEXT.decoder(str), RAW.decoder(bytes)):
        return decode

    def decode_guarded(body: bytes) -> Any:
        if sys.getrecursionlimit() > _SAFE_RECURSION and _is_deep(body, detect(body) or codec):
            raise DecodeError(f"it nests deeper than {_MAX_DEPTH} levels")
        return decode(body)

    return decode_guarded


def _is_deep(body: bytes, codec: Codec) -> bool:
    return _deep_json(body) if codec is JSON else _deep_msgpack(body)


def _deep_json(raw: bytes) -> bool:
    if raw.count(b"[") + raw.count(b"{") <= _MAX_DEPTH:
        return False
    # Count brackets outside of strings. A recursive parser is exactly what this check must avoid.
    depth, inside, escaped = 0, False, False
    for byte in raw:
        if inside:
            inside = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            inside = True
        elif byte in b"[{":
            depth += 1
            if depth > _MAX_DEPTH:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


def _deep_msgpack(raw: bytes) -> bool:
    # skip() creates no objects, and raises StackError at a depth that its fixed stack can't hold.
    unpacker = msgpack.Unpacker(max_buffer_size=len(raw) + 1)
    unpacker.feed(raw)
    try:
        unpacker.skip()
    except msgpack.StackError:
        return True
    except Exception:
        return False  # not msgpack, or broken in another way; the decoder reports it
    return False
