"""Choose the codec of a message body, and refuse bodies that nest too deeply.

The header of a tracked message names the codec. A message without a header is decoded with the codec of the route, or
else of the app. If the type of such a message is undeclared, the first byte of the body indicates the codec. If the
type is declared and the app's codec is msgpack, `json_too` also accepts JSON.

A user's own codec handles every type itself. For such a codec, this module neither checks types nor detects the codec
from the body.

A body with thousands of nested levels can exhaust a decoder's C stack and crash the process. `guarded` refuses such a
body before a codec reads it.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import msgpack

from zroute.codegen import Inline
from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages.codecs import (
    BYTES_LIKE,
    JSON,
    MSGPACK,
    RAW,
    TEXT,
    Codec,
    Decode,
    Encode,
    describe_failure,
    detect,
    is_own,
    with_extras,
)
from zroute.messages.decode_checks import PLAIN_READ, make_reader
from zroute.messages.extras import NO_EXTRAS, Extras
from zroute.messages.schema import describe, inspect, is_class, refuse_name, takes_text

__all__ = ["body_decoder", "body_encoder", "guarded", "json_first", "json_too", "may_be_json", "runtime_encoder"]

# Up to this recursion limit of the interpreter, decoders raise RecursionError before the C stack is exhausted.
_SAFE_RECURSION = 8192
_MAX_DEPTH = 1000  # levels of lists and maps, checked only above _SAFE_RECURSION


def body_decoder(
    schema: Any, *, stated: Codec | None, route: Codec | None, default: Codec, extras: Extras = NO_EXTRAS
) -> Decode:
    """Return the function that decodes bodies to values of type ``schema``.

    The subscriber's codec is ``route``, else ``default``. If it is a user's own codec, and ``stated`` is not a built-in
    codec, every type is decoded with ``stated``, else with the subscriber's codec. ``T | bytes`` gives the decoded T,
    or the raw body if decoding fails.

    Otherwise, the codec depends on the declared type:

    - bytes or memoryview: the unchanged body.
    - str: ``stated``, else ``route``, else UTF-8 text. The raw codec counts as text.
    - an undeclared type: ``stated``, else the codec that the first byte indicates, else ``route``, else ``default``.
    - ``T | bytes``: the decoded T, or the raw body if decoding fails.
    - ``T | str``: UTF-8 text if ``stated`` is text; otherwise as any other type.
    - any other type: ``stated``, else ``route``, else ``default``.

    Args:
        schema: the declared type of the message.
        stated: the codec named in the publisher's header, or None.
        route: the codec that the route declares, or None.
        default: the codec of the app.
        extras: the additional values that the built-in codecs carry in this app.

    Raises:
        SchemaError: ``stated`` is None, and the chosen codec can't carry the type. If ``stated`` can't carry the type,
            the returned decoder raises DecodeError for each body instead.
    """
    subscribed = route or default
    if is_own(stated or subscribed) and (stated is None or is_own(subscribed)):
        return _own_decoder(schema, stated or subscribed, extras, is_stated=stated is not None)
    try:
        return _built_in_decoder(schema, stated, route, default, extras)
    except SchemaError as error:
        if stated is None:
            raise
        return _refuse(
            f"the sender states the codec {stated.name}, which can't carry {describe(schema)}: {error!s:.200}"
        )


def _own_decoder(schema: Any, codec: Codec, extras: Extras, *, is_stated: bool) -> Decode:
    """Return the decoder of a user's own codec."""
    inner = _without_bytes(schema)
    try:
        with extras.used():
            decode = codec.decoder(inner)
    except Exception as error:
        failed = _cannot_carry(codec, inner, error)
        if not is_stated:
            raise failed from error
        decode = _refuse(str(failed))
    return decode if inner is schema else _or_raw(decode, None)


def _cannot_carry(codec: Codec, schema: Any, error: Exception) -> SchemaError:
    """Return the error for a type that a user's own codec refuses."""
    why = str(error) if isinstance(error, SchemaError) else describe_failure(error)
    return SchemaError(f"codec {codec.name!r} can't carry {describe(schema)}: {why}", schema=schema)


def _without_bytes(schema: Any) -> Any:
    """Return T for ``T | bytes``, else the type itself."""
    members = get_args(schema) if get_origin(schema) in (Union, types.UnionType) else ()
    if bytes not in members:
        return schema
    return Union[tuple(member for member in members if member is not bytes)]  # noqa: UP007  # built at run time


def _built_in_decoder(schema: Any, stated: Codec | None, route: Codec | None, default: Codec, extras: Extras) -> Decode:
    refuse_name(schema)
    found = inspect(schema, extras)
    if found.engine == "raw":
        return memoryview if found.type is memoryview else bytes
    if found.raw_fallback:
        decode = _built_in_decoder(found.inner, stated, route, default, extras)
        maybe = may_be_json(found.inner, stated=stated, route=route, default=default, extras=extras)
        return _or_raw(decode, with_extras(JSON, extras).decoder(found.inner) if maybe else None)
    if found.engine == "text":
        codec = stated or route or TEXT
        return _decoder(TEXT if codec is RAW else codec, str, extras)
    if found.engine == "any" and stated is None:
        return _detected(found.type, route or default, extras)
    codec = stated or route or default
    if codec in (TEXT, RAW) and found.type is not Any:  # dict and list have the engine "any" too
        if stated is None:
            return codec.decoder(schema)  # raises SchemaError, since the program declared this codec
        if codec is TEXT and takes_text(schema):
            return codec.decoder(str)
        return _refuse(f"the sender states the codec {codec.name}, which can't carry {describe(schema)}")
    return _decoder(codec, found.type, extras)


def _decoder(codec: Codec, schema: Any, extras: Extras) -> Decode:
    if is_own(codec):
        return _own_decoder(schema, codec, extras, is_stated=True)
    return with_extras(codec, extras).decoder(schema)


def _or_raw(decode: Decode, as_json: Decode | None) -> Decode:
    def decode_or_raw(body: bytes) -> Any:
        try:
            return decode(body)
        except Exception:  # any error: the declared type allows a body in another format
            if as_json is None or detect(body) is not JSON:
                return body
        try:
            return as_json(body)
        except Exception:
            return body

    return decode_or_raw


def _detected(kind: Any, otherwise: Codec, extras: Extras) -> Decode:
    decoders = {codec.name: with_extras(codec, extras).decoder(kind) for codec in (JSON, MSGPACK)}
    fallback = decoders.get(otherwise.name) or otherwise.decoder(kind)
    if kind is not Any and otherwise in (TEXT, RAW):
        fallback = _refuse(f"the body is neither JSON nor msgpack; expected {describe(kind)}")

    def decode(body: bytes) -> Any:
        codec = detect(body)
        return fallback(body) if codec is None else decoders[codec.name](body)

    return decode


# -- JSON where msgpack is expected ------------------------------------------------------------------------


def may_be_json(
    schema: Any, *, stated: Codec | None, route: Codec | None, default: Codec, extras: Extras = NO_EXTRAS
) -> bool:
    """Return True if bodies of ``schema`` may also be JSON.

    JSON is possible if the type is declared, the app's codec is msgpack, and neither publisher nor route names a codec.
    A msgpack map or array never begins with ``{`` or ``[``, so a body that begins with one of them is JSON. The
    arguments are those of `body_decoder`.
    """
    if stated is not None or route is not None or default is not MSGPACK:
        return False
    found = inspect(schema, extras)
    return found.engine in ("msgspec", "cattrs", "pydantic") and not found.raw_fallback


def json_too(decode: Decode, read: Callable[[], Decode], found: Callable[[], None]) -> Decode:
    """Return a decoder that tries ``decode`` first, and then JSON.

    Bodies that ``decode`` accepts have no extra cost. Each JSON body first raises an exception in ``decode``, which is
    slow. The caller should therefore switch to `json_first` after the first JSON body. If both decoders fail, the
    DecodeError quotes both errors.

    Args:
        decode: the msgpack decoder of a type.
        read: a function that returns the JSON decoder of the type. The function is called only when a body looks like
            JSON, because most topics never carry JSON.
        found: a function that is called after each decoded JSON body.
    """
    inline: Inline = getattr(decode, "inline", PLAIN_READ)

    def as_json(body: bytes, error: Exception) -> Any:
        if detect(body) is not JSON:
            raise error
        try:
            message = read()(body)
        except Exception as in_json:
            raise _neither(body, error, in_json) from in_json
        found()
        return message

    lines = (
        "try:",
        *(f"    {line}" for line in inline.lines),
        "except Exception as error:",
        "    m = as_json(body, error)",
    )
    return make_reader(lines, {"decode": decode, **inline.names, "as_json": as_json})


def json_first(decode: Decode, read: Decode) -> Decode:
    """Return a decoder that tries JSON first, for bodies that look like JSON.

    ``read`` decodes bodies that begin with ``{`` or ``[``. ``decode`` decodes all other bodies, and bodies that
    ``read`` refuses. If both decoders fail, the DecodeError quotes both errors.
    """

    inline: Inline = getattr(decode, "inline", PLAIN_READ)

    def as_json(body: bytes) -> Any:
        try:
            return read(body)
        except Exception as error:
            # Python deletes `error` at the end of this block.
            in_json = error
        try:
            return decode(body)
        except Exception as error:
            raise _neither(body, error, in_json) from in_json

    lines = (
        "if body[:1] in (b'{', b'['):  # see `detect`",
        "    m = as_json(body)",
        "else:",
        *(f"    {line}" for line in inline.lines),
    )
    return make_reader(lines, {"decode": decode, **inline.names, "as_json": as_json})


def _neither(body: bytes, error: Exception, in_json: Exception) -> DecodeError:
    """Return the error for a body that both decoders refuse.

    If the body is JSON, the text begins with the error of the JSON decoder.
    """
    try:
        json.loads(bytes(body))
    except Exception:
        return DecodeError(f"{_says(error)} (as JSON: {_says(in_json)})")
    return DecodeError(f"{_says(in_json)} (the body is JSON; as msgpack: {_says(error)})")


def _says(error: Exception) -> str:
    return error.reason if isinstance(error, DecodeError) else describe_failure(error)


def _refuse(reason: str) -> Decode:
    def decode(_body: bytes) -> Any:
        raise DecodeError(reason)

    return decode


def body_encoder(
    schema: Any, *, codec: Codec | None, default: Codec, extras: Extras = NO_EXTRAS
) -> tuple[Codec, Encode]:
    """Return the codec and the encoder for messages of type ``schema``.

    A user's own codec encodes every type. With the built-in codecs, bytes are sent raw, and str is sent as text unless
    ``codec`` is set. A publisher uses one codec for all its messages, so a publisher of ``T | bytes`` accepts only T
    and raises EncodeError for bytes. To send bytes, declare another publisher with the type bytes.

    Args:
        schema: the declared type of the message.
        codec: the codec that the publisher declares, or None.
        default: the codec of the app.
        extras: the additional values that the built-in codecs carry in this app.

    Raises:
        SchemaError: the type is bytes and ``codec`` is neither None nor raw, or the chosen codec can't carry the type.
    """
    chosen = codec or default
    if is_own(chosen):
        return chosen, _own_encoder(_without_bytes(schema), chosen, extras)
    refuse_name(schema)
    found = inspect(schema, extras)
    if found.engine == "raw":
        if codec not in (None, RAW):
            raise SchemaError(f"bytes are always sent raw: remove codec={chosen.name!r}", schema=schema)
        return RAW, RAW.encoder(bytes)
    chosen = codec or (TEXT if found.engine == "text" else default)
    return chosen, with_extras(chosen, extras).encoder(found.inner)


def _own_encoder(schema: Any, codec: Codec, extras: Extras) -> Encode:
    """Return the encoder of a user's own codec; the encoder raises only EncodeError."""
    try:
        with extras.used():
            write = codec.encoder(schema)
    except Exception as error:
        raise _cannot_carry(codec, schema, error) from error

    def encode(message: Any) -> bytes:
        try:
            body = write(message)
        except EncodeError:
            raise
        except Exception as error:
            raise EncodeError(f"codec {codec.name!r}: {describe_failure(error)}", schema=schema) from error
        if type(body) is not bytes:
            raise EncodeError(f"codec {codec.name!r} returned {type(body).__name__}; expected bytes", schema=schema)
        return body

    return encode


def runtime_encoder(
    message: Any, *, codec: Codec | None, default: Codec, extras: Extras = NO_EXTRAS
) -> tuple[Codec, Encode]:
    """Return the codec and encoder for one message of a publisher without a schema.

    The schema passed to `body_encoder` is the type of ``message``, or Any for plain data such as a list. Raises
    EncodeError if the codec can't carry the type.
    """
    kind = type(message)
    if is_own(codec or default):
        plain = kind.__module__ == "builtins" and kind is not str
        schema = extras.kind_of(kind) or (bytes if kind in BYTES_LIKE else Any if plain else kind)
    else:
        known = kind if is_class(kind) or kind is str else bytes if kind in BYTES_LIKE else Any
        schema = extras.kind_of(kind) or known
    try:
        return body_encoder(schema, codec=codec, default=default, extras=extras)
    except SchemaError as error:
        raise EncodeError(str(error), schema=kind) from error


# -- bodies that nest too deeply -------------------------------------------------------------------------


def guarded(decode: Decode, codec: Codec) -> Decode:
    """Return ``decode`` with a check of the nesting depth.

    The check runs only if the program has raised the interpreter's recursion limit above 8192. Up to that limit, the
    decoders raise RecursionError themselves. Text and raw bytes do not nest, and a user's own codec may use any format,
    so their decoders are returned unchanged.

    Args:
        decode: a function that `body_decoder` returned.
        codec: the codec to assume for a body that `detect` does not recognise, such as JSON after white space.
    """
    if is_own(codec) or decode in (TEXT.decoder(str), RAW.decoder(bytes), memoryview):
        return decode

    def decode_guarded(body: bytes) -> Any:
        if sys.getrecursionlimit() > _SAFE_RECURSION and _is_deep(body, detect(body) or codec):
            raise DecodeError(f"the body nests deeper than {_MAX_DEPTH} levels")
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
