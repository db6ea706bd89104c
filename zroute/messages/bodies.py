"""Which codec a body is in: said by the publisher, seen in the first byte, or chosen by the program.

And what a body must not be before a codec may see it: so deep that it would end the C stack.
"""

from __future__ import annotations

import sys
from typing import Any

import msgpack

from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages.codecs import JSON, MSGPACK, RAW, TEXT, Codec, Decode, Encode, detect
from zroute.messages.schema import describe, inspect, is_class

__all__ = ["body_decoder", "body_encoder", "guarded", "runtime_encoder"]

_SAFE_RECURSION = 8192  # below this limit of the interpreter's, RecursionError comes before the stack's end
_MAX_DEPTH = 1000


def body_decoder(schema: Any, *, stated: Codec | None, route: Codec | None, default: Codec) -> Decode:
    """What reads bodies of ``schema``.

    ``stated`` is the codec that the publisher's header names, ``route`` what the subscriber wrote,
    ``default`` the app's. bytes come as they are; str is UTF-8 text unless ``stated`` or ``route`` is
    another codec; an undeclared type goes by ``stated``, else by the first byte; ``T | bytes`` is the raw
    body where T does not decode; everything else is in ``stated``, else ``route``, else ``default``.

    Raises SchemaError where the type can't be carried.
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
    if codec in (TEXT, RAW) and found.type is not Any:  # dict and list are of the engine "any", too
        if stated is None:
            return codec.decoder(schema)  # raises SchemaError: the program's fault
        return _refuse(f"the publisher sends {codec.name}, and {describe(schema)} is expected")
    return codec.decoder(found.type)


def _or_raw(decode: Decode) -> Decode:
    def decode_or_raw(body: bytes) -> Any:
        try:
            return decode(body)
        except Exception:
            return body

    return decode_or_raw


def _detected(kind: Any, otherwise: Codec) -> Decode:
    decoders = {codec.name: codec.decoder(kind) for codec in (JSON, MSGPACK)}
    fallback = decoders.get(otherwise.name) or otherwise.decoder(kind)
    if kind is not Any and otherwise in (TEXT, RAW):
        fallback = _refuse(f"neither JSON nor msgpack, and {describe(kind)} is expected")

    def decode(body: bytes) -> Any:
        codec = detect(body)
        return fallback(body) if codec is None else decoders[codec.name](body)

    return decode


def _refuse(reason: str) -> Decode:
    def decode(_body: bytes) -> Any:
        raise DecodeError(reason)

    return decode


def body_encoder(schema: Any, *, codec: Codec | None, default: Codec) -> tuple[Codec, Encode]:
    """The codec and the function that write messages of ``schema``; ``codec`` is what the publisher wrote.

    bytes travel raw and str as text, unless ``codec`` says otherwise. Of ``T | bytes`` only T can be
    published, because one publisher states one codec: bytes are refused with an EncodeError, and want a
    publisher of bytes. Raises SchemaError.
    """
    found = inspect(schema)
    if found.engine == "raw":
        if codec not in (None, RAW):
            raise SchemaError(f"bytes travel raw: leave codec={codec.name!r} out", schema=schema)
        return RAW, RAW.encoder(bytes)
    chosen = codec or (TEXT if found.engine == "text" else default)
    return chosen, chosen.encoder(found.inner)


def runtime_encoder(message: Any, *, codec: Codec | None, default: Codec) -> tuple[Codec, Encode]:
    """As `body_encoder`, for a publisher without a schema: by the type of ``message``. Raises EncodeError."""
    kind = type(message)
    schema = kind if is_class(kind) or kind in (bytes, str) else Any
    try:
        return body_encoder(schema, codec=codec, default=default)
    except SchemaError as error:
        raise EncodeError(str(error), schema=kind) from error


# -- bombs -----------------------------------------------------------------------------------------------


def guarded(decode: Decode, codec: Codec) -> Decode:
    """``decode`` for large bodies: one that nests deep enough to end the C stack is refused before.

    ``codec`` is what a body is read as that does not give itself away (JSON behind white space). Normally
    RecursionError comes first; not so where the program has raised the interpreter's limit. Text and raw
    bytes do not nest.
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
    unpacker = msgpack.Unpacker(max_buffer_size=len(raw) + 1)
    unpacker.feed(raw)
    try:
        unpacker.skip()
    except msgpack.StackError:
        return True
    except Exception:
        return False  # not msgpack, or broken in another way: the decoder will say
    return False
