"""The choice of a body's codec, and bodies that nest too deeply."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal, NewType, get_args

import msgpack
import pytest

from tests.interpreters import run
from tests.messages.bound import FORMATS, QUOTE, decode, encode
from tests.messages.kinds import Plain, Private
from zroute import App
from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages.bodies import body_decoder, body_encoder, guarded, runtime_encoder
from zroute.messages.codecs import (
    JSON,
    MSGPACK,
    RAW,
    TEXT,
    Codec,
    detect,
)
from zroute.testing import TestApp


def bomb(codec: Codec, inside: bool) -> bytes:
    """Return 100,000 nested arrays, alone or in a field that no class has."""
    n = 100_000
    nest = b"[" * n + b"]" * n if codec is JSON else b"\x91" * n + b"\x01"
    if not inside:
        return nest
    return b'{"unknown":' + nest + b"}" if codec is JSON else b"\x81\xa7unknown" + nest


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "in an unknown field"])
@pytest.mark.parametrize("schema", [Plain, Any, list[Any], Private], ids=repr)
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_hundred_thousand_nested_arrays_are_refused(codec: Codec, schema: Any, inside: bool) -> None:
    """A body that nests too deeply raises an ordinary error."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        guarded(body_decoder(schema, stated=codec, route=None, default=codec), codec)(bomb(codec, inside))


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "in an unknown field"])
def test_a_bomb_behind_white_space_is_seen(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSON bomb behind white space is refused, because the codec is known."""
    monkeypatch.setattr(sys, "getrecursionlimit", lambda: 10**6)
    read = guarded(body_decoder(list[Any], stated=JSON, route=None, default=MSGPACK), JSON)
    with pytest.raises(DecodeError, match="deeper than 1000"):
        read(b" \n" + bomb(JSON, inside))


@pytest.mark.parametrize("schema", [str, bytes], ids=repr)
def test_text_and_bytes_do_not_nest(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 brackets in a text or bytes body are accepted."""
    monkeypatch.setattr(sys, "getrecursionlimit", lambda: 10**6)
    body = b"[" * 100_000
    assert len(guarded(body_decoder(schema, stated=None, route=None, default=JSON), JSON)(body)) == len(body)


def test_bombs_do_not_end_a_program_that_raised_the_recursion_limit() -> None:
    """A bomb does not crash a process with a recursion limit of one million."""
    program = """
import sys
from typing import Any
from tests.messages.kinds import Plain, Private
from tests.messages.test_bodies import bomb
from zroute.messages.bodies import body_decoder, guarded
from zroute.messages.codecs import JSON, MSGPACK
sys.setrecursionlimit(10**6)
for codec in (JSON, MSGPACK):
    for schema in (Plain, Any, list[Any], Private, dict[str, Any]):
        for inside in (False, True):
            try:
                blank = b" " if codec is JSON else b""
                read = guarded(body_decoder(schema, stated=codec, route=None, default=codec), codec)
                read(blank + bomb(codec, inside))
            except Exception:
                continue
            raise SystemExit(f"{codec.name} {schema} was accepted")
print("alive")
"""
    done = run("-c", program)
    assert done.stdout.strip() == "alive", done.stderr


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_large_flat_body_passes_the_guard(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A raised recursion limit does not refuse 5,000 small lists, or brackets in text."""
    monkeypatch.setattr(sys, "getrecursionlimit", lambda: 10**6)
    message = [[number, '[[{"\\'] for number in range(5000)]
    assert (
        guarded(body_decoder(Any, stated=codec, route=None, default=codec), codec)(encode(Any, message, codec))
        == message
    )


# -- choice of the codec ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "codec"),
    [(b"{}", JSON), (b"[1]", JSON), (b"\x80", MSGPACK), (b"\x93", MSGPACK), (b"\xdc\0\0", MSGPACK),
     (b"\xdf", MSGPACK), (b"", None), (b"text", None), (b"\xc1", None), (b"\x7f", None), (b"\xe0", None)],
    ids=repr,
)  # fmt: skip
def test_a_map_or_list_gives_its_codec_away(body: bytes, codec: Codec | None) -> None:
    """An untyped handler reads JSON and msgpack from one topic."""
    assert detect(body) is codec


def test_an_untyped_body_goes_by_the_header_then_its_looks_then_the_route() -> None:
    """For an untyped body the header decides, then the first byte, then the route's codec."""
    assert decode(Any, b"{}", stated=TEXT) == "{}"
    assert decode(Any, b"[1]", MSGPACK) == [1]
    assert decode(Any, msgpack.packb({"a": 1}), JSON) == {"a": 1}
    assert decode(Any, b"5", route=JSON, default=MSGPACK) == 5
    assert decode(Any, b"\x05", MSGPACK) == 5
    assert decode(dict, b'{"a":1}') == {"a": 1}
    with pytest.raises(DecodeError, match="expected a dict"):
        decode(dict, b"[1]")


def test_bytes_come_as_they_are() -> None:
    """A handler of bytes receives the body unchanged, whatever codec is stated."""
    assert decode(bytes, b"{}", stated=JSON) == b"{}"


def test_text_is_text_unless_the_publisher_says_otherwise() -> None:
    """A handler of str reads UTF-8, and a JSON string only if the header states JSON."""
    assert decode(str, b'"a"') == '"a"'
    assert decode(str, b'"a"', stated=JSON) == "a"
    assert decode(str, b'"a"', route=JSON) == "a"
    with pytest.raises(UnicodeDecodeError):
        decode(str, b"\xff")


def test_raw_bytes_where_the_type_does_not_decode() -> None:
    """A handler of ``T | bytes`` receives the object, or the raw body if decoding fails."""
    assert decode(Plain | bytes, encode(Plain, QUOTE)) == QUOTE
    assert decode(Plain | bytes, b"\x00\xff") == b"\x00\xff"
    assert decode(str | bytes, b"\xff") == b"\xff"
    assert body_encoder(str | bytes, codec=None, default=JSON)[0] is TEXT
    assert decode(str | bytes, encode(str | bytes, "text")) == "text"
    with pytest.raises(EncodeError, match="got bytes"):
        encode(Plain | bytes, b"raw")


def test_a_type_in_text_or_raw_is_refused() -> None:
    """A typed handler refuses a text or raw body, and a route with codec='text' is an error."""
    with pytest.raises(DecodeError, match="states the codec text"):
        decode(Plain, b"{}", stated=TEXT)
    with pytest.raises(SchemaError, match="carries only str"):
        decode(Plain, b"{}", route=TEXT)
    assert decode(Any, b"\xff", stated=RAW) == b"\xff"


@pytest.mark.parametrize("schema", [dict, list], ids=repr)
@pytest.mark.parametrize("codec", [TEXT, RAW], ids=repr)
def test_a_bare_dict_or_list_is_never_text_or_bytes(schema: Any, codec: Codec) -> None:
    """A handler of ``dict`` receives only dicts, whatever codec is stated or declared."""
    for body in (b"abc", b"5", b"\xff"):
        for how in ("stated", "route", "default"):
            with pytest.raises(
                DecodeError, match="can't carry" if how == "stated" else "neither JSON nor msgpack; expected"
            ):
                decode(schema, body, **{how: codec})
    made = schema()
    assert decode(schema, json.dumps(made).encode(), route=codec) == made


def test_publishers_choose_by_type() -> None:
    """A publisher sends bytes raw, str as text, and other types in its own or the app's codec."""
    assert body_encoder(bytes, codec=None, default=MSGPACK)[0] is RAW
    assert body_encoder(str, codec=None, default=MSGPACK)[0] is TEXT
    assert body_encoder(str, codec=JSON, default=MSGPACK)[0] is JSON
    assert body_encoder(Plain, codec=None, default=MSGPACK)[0] is MSGPACK
    assert body_encoder(Plain, codec=JSON, default=MSGPACK)[0] is JSON
    with pytest.raises(SchemaError, match="bytes are always sent raw"):
        body_encoder(bytes, codec=JSON, default=MSGPACK)
    assert encode(Plain | bytes, QUOTE) == encode(Plain, QUOTE)


def test_without_a_schema_a_message_goes_by_its_own_type() -> None:
    """app.publish accepts class instances, text, bytes and plain data."""
    for message, codec in ((QUOTE, MSGPACK), (b"x", RAW), ("x", TEXT), ({"a": 1}, MSGPACK)):
        chosen, write = runtime_encoder(message, codec=None, default=MSGPACK)
        assert chosen is codec
        assert decode(type(message), write(message), stated=chosen) == message
    with pytest.raises(EncodeError, match="carries only str"):
        runtime_encoder(QUOTE, codec=TEXT, default=MSGPACK)


Name = NewType("Name", str)


@pytest.mark.parametrize("schema", [int | str, str | None, Plain | str, Plain | str | bytes, Plain | Private | Name])
@pytest.mark.parametrize("default", FORMATS, ids=repr)
def test_a_union_with_text_takes_a_text_body(schema: Any, default: Codec) -> None:
    """Text that a publisher without a type sends reaches a handler of such a union, and so do its other members."""
    for text in ("hello", "5", "null", "é", ""):
        codec, write = runtime_encoder(text, codec=None, default=default)
        assert decode(schema, write(text), stated=codec, default=default) == text
    if Plain in get_args(schema):
        assert decode(schema, encode(Plain, QUOTE, codec=default), stated=default, default=default) == QUOTE


@pytest.mark.parametrize("schema", [int | None, Plain | None, Literal["a"] | int, list[str]])
def test_a_union_without_text_refuses_a_text_body(schema: Any) -> None:
    """Only plain text stands for any text."""
    with pytest.raises(DecodeError, match="the sender states the codec text"):
        decode(schema, b"a", stated=TEXT)


def test_a_publisher_of_a_type_or_bytes_takes_the_type_only() -> None:
    """The error says why, and what to declare for raw bodies."""
    app = App()
    out = app.publisher("out", Plain | bytes)
    with TestApp(app) as t:
        out.publish(QUOTE)
        with pytest.raises(EncodeError, match=r"expected Plain, got bytes.*declare another publisher, of type bytes"):
            out.publish(b"raw")
        assert t.published("out") == [QUOTE]
