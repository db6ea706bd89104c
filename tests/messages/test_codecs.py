"""Encode and decode messages: values arrive unchanged, and bad bodies do no harm."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import uuid
from decimal import Decimal
from typing import Any

import attrs
import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.messages.bound import FORMATS, QUOTE, decode, encode
from tests.messages.kinds import (
    AWARE,
    DECLARED,
    Box,
    Circle,
    Level,
    Loose,
    Nested,
    Plain,
    Point,
    Private,
    Side,
    Square,
    Validated,
)
from tests.support import sized
from zroute import App, Stamped
from zroute.errors import EncodeError, SchemaError
from zroute.messages.bodies import body_encoder
from zroute.messages.codecs import (
    BUILTIN,
    JSON,
    MSGPACK,
    Codec,
    find_codec,
)


def typed(value: Any) -> Any:
    """Return ``value`` with the type of each part, so that 1, True and 1.0 differ, and lists from tuples."""
    kind = type(value)
    if kind is dict:
        return kind, {typed(key): typed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return kind, tuple(map(typed, value))
    if isinstance(value, set | frozenset):
        return kind, frozenset(map(typed, value))
    if attrs.has(kind) or dataclasses.is_dataclass(kind):
        names = [field.name for field in (attrs.fields(kind) if attrs.has(kind) else dataclasses.fields(kind))]
        return kind, tuple(typed(getattr(value, name)) for name in names)
    if isinstance(value, msgspec.Struct):
        return kind, tuple(typed(getattr(value, name)) for name in value.__struct_fields__)
    return kind, value


def same(one: Any, other: Any) -> bool:
    """Return True if both values are equal, with equal types at every level."""
    return one == other and typed(one) == typed(other)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize("kind", DECLARED)
@given(data=st.data())
@settings(max_examples=sized(25, 5))
def test_what_is_published_is_what_is_handled(kind: str, codec: Codec, data: st.DataObject) -> None:
    """Handlers receive exactly what was published: equal values of the same types."""
    schema, values = DECLARED[kind]
    message = data.draw(values)
    chosen, write = body_encoder(schema, codec=None, default=codec)
    handled = decode(schema, write(message), stated=chosen, default=codec)
    assert same(handled, message)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (set[tuple[int, str]], {(1, "a")}),
        (dict[uuid.UUID, int], {uuid.UUID(int=7): 1}),
        (dict[datetime.date, int], {datetime.date(2020, 1, 2): 1}),
        (dict[bytes, int], {b"\xff": 1}),
        (list[int | bytes], [1, b"\xff"]),
        (list[int | float], [1, 1.0, -0.0]),
        (datetime.timedelta, datetime.timedelta.max),
        (datetime.timedelta, datetime.timedelta.min),
        (datetime.time, datetime.time(1, 2, 3, 4, tzinfo=datetime.UTC)),
        (Decimal, Decimal("1.10")),
        (Decimal, Decimal("-1E+400")),
        (Stamped[bytes], Stamped(b"\xff", 1.0)),
        (Private | None, None),
        (Stamped[Private] | bytes, Stamped(Private("x"), 1.0)),
    ],
    ids=repr,
)
def test_rare_types_arrive_as_they_were(schema: Any, message: Any, codec: Codec) -> None:
    """Keys, members of sets and extreme values arrive as exactly as common fields."""
    assert same(decode(schema, encode(schema, message, codec), stated=codec), message)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@given(when=AWARE)
def test_a_time_with_a_zone_stays_the_same_moment(codec: Codec, when: datetime.datetime) -> None:
    """An aware datetime arrives as the same moment, and aware."""
    handled = decode(datetime.datetime, encode(datetime.datetime, when, codec), codec)
    assert handled == when
    assert handled.tzinfo is not None


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.text(st.characters(codec="utf-8"))
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_untyped_data_arrives_equal(codec: Codec, message: Any) -> None:
    """Untyped lists, maps and simple values arrive unchanged."""
    assert same(decode(Any, encode(Any, message, codec), stated=codec), message)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (JSON, {"b": b"\xff"}),
        (JSON, {1: 2}),
        (JSON, [(1, 2)]),
        (MSGPACK, [(1, 2)]),
        (MSGPACK, [{1, 2}]),
        (MSGPACK, {(1, 2): 3}),
        (MSGPACK, [object]),
        (MSGPACK, 2**64),
        (JSON, 2**70),
        (JSON, [math.nan]),
        (MSGPACK, math.inf),
        (JSON, "\ud800"),
        (MSGPACK, ["\ud800"]),
    ],
    ids=repr,
)
def test_untyped_data_that_would_change_is_refused(codec: Codec, message: Any) -> None:
    """Untyped data that would arrive changed, or be refused by readers, raises EncodeError."""
    with pytest.raises(EncodeError):
        encode(Any, message, codec)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Plain, {"symbol": "A"}),
        (Plain, Plain("A", math.nan, 1)),
        (Plain, Plain("A", -math.inf, 1)),
        (Plain, Plain("A", 1.0, 2**64)),
        (Plain, Plain("\ud800", 1.0, 1)),
        (Box[Plain], Box(Plain("A", math.nan, 1))),
        (list[Plain], [Plain("A", 1.0, -(2**63) - 1)]),
        (list[Plain], (QUOTE,)),
        (Loose, Loose([(1, 2)])),
        (Loose, Loose([Private("x")])),
        (dict[str, float], {"a": math.inf}),
        (tuple[int, float], (1, math.nan)),
        (Circle | Square, QUOTE),
        (int | None, "1"),
        (str, b"x"),
        (bytes, "x"),
    ],
    ids=repr,
)
def test_what_would_not_arrive_is_refused_at_the_publisher(schema: Any, message: Any, codec: Codec) -> None:
    """A message of another type, or that readers would refuse, raises EncodeError."""
    with pytest.raises(EncodeError):
        encode(schema, message, codec)


@attrs.define
class Detailed(Plain):
    extra: str = ""


def test_a_subclass_is_refused_because_it_would_arrive_as_its_base() -> None:
    """The error for an instance of a subclass names both classes, at each level."""
    with pytest.raises(EncodeError, match="expected Plain, got Detailed"):
        encode(Plain, Detailed("A", 1.0, 1))
    with pytest.raises(EncodeError, match="subclass"):
        encode(Nested, Nested(Detailed("A", 1.0, 1), []))


def test_the_error_of_a_wrong_message_names_what_was_expected() -> None:
    """The error names the expected type and the given value."""
    with pytest.raises(EncodeError, match="expected Plain, got dict"):
        encode(Plain, {})


@dataclasses.dataclass
class Growing:
    size: int

    def __post_init__(self) -> None:
        self.size += 1


@attrs.define
class Doubling:
    size: int = attrs.field(converter=lambda size: size * 2)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize("kind", [Growing, Doubling])
def test_an_object_that_changes_when_it_is_made_again_is_refused(kind: Any, codec: Codec) -> None:
    """A hook or converter that would change the value again in the reader is an error."""
    with pytest.raises(EncodeError, match="would arrive as"):
        encode(kind, kind(1), codec)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize("schema", [Any, list[Any], int, Plain], ids=repr)
def test_what_is_too_deep_to_write_is_an_encode_error_too(schema: Any, codec: Codec) -> None:
    """A recursive list and 5,000 nested lists raise EncodeError with a short text."""
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    for message in (deep, endless):
        with pytest.raises(EncodeError) as caught:
            encode(schema, message, codec)
        assert len(str(caught.value)) < 1000


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError


def test_an_object_that_cannot_be_shown_is_refused_all_the_same() -> None:
    """A message whose repr fails still raises EncodeError."""
    for schema in (Any, Plain, list[Any]):
        with pytest.raises(EncodeError, match="Unspeakable"):
            encode(schema, Unspeakable())


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"q": QUOTE}, "would arrive as a dict"),
        ([Point(1, 2.5)], "would arrive as a dict"),
        ({"s": Private("x")}, "would arrive as a dict"),
        ({"e": Side.BUY}, "would arrive as its value"),
        ({"e": Level.LOW}, "would arrive as its value"),
        ([uuid.UUID(int=5)], "would arrive as its text"),
        ([Decimal("1.1")], "would arrive as its text"),
        ([datetime.datetime(2026, 1, 1)], "would arrive as its text"),
        ([datetime.date(2026, 1, 1)], "would arrive as its text"),
        ([datetime.time(1)], "would arrive as its text"),
        ([datetime.timedelta(1)], "would arrive as its text"),
        ([(1, 2)], "would not arrive unchanged"),
        ([{1}], "would not arrive unchanged"),
    ],
    ids=repr,
)
def test_untyped_data_of_another_type_is_refused(codec: Codec, message: Any, why: str) -> None:
    """A part that an untyped reader would get with another type is an EncodeError that says what to do."""
    with pytest.raises(EncodeError, match=f"{why}.* in an untyped message: declare the type of the message"):
        encode(Any, message, codec)


@given(when=AWARE)
def test_an_aware_datetime_in_untyped_msgpack_stays_the_same_moment(when: datetime.datetime) -> None:
    """msgpack has a form for a moment, so no type is needed to read it; JSON has none."""
    (handled,) = decode(Any, encode(Any, [when], MSGPACK), stated=MSGPACK)
    assert handled == when
    assert handled.tzinfo is not None
    with pytest.raises(EncodeError, match="its text"):
        encode(Any, [when], JSON)


def test_the_error_of_a_wrong_field_names_it() -> None:
    """The error names the field, its value, the expected type and the reason."""
    with pytest.raises(EncodeError, match=r"^Plain\.symbol: expected str, got NoneType: None$"):
        encode(Plain, Plain(None, 1.0, 1))  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match=r"^Nested\.first\.volume: expected int, got int: 2\d+: .*64 bits"):
        encode(Nested, Nested(Plain("A", 1.0, 2**70 * 2), []))


# -- messages from peers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_body_cut_anywhere_is_refused(codec: Codec) -> None:
    """A truncated body is refused by typed and untyped handlers."""
    body = encode(Plain, QUOTE, codec)
    for schema in (Plain, Any, Box[int]):
        for end in range(len(body)):
            with pytest.raises(Exception):  # noqa: B017, PT011  # the type depends on the engine
                decode(schema, body[:end], stated=codec)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_bytes_behind_a_body_are_refused(codec: Codec) -> None:
    """A second body in one message is not ignored: the message is refused."""
    for schema in (Plain, Any):
        with pytest.raises(Exception):  # noqa: B017, PT011
            decode(schema, encode(Plain, QUOTE, codec) + b"\x01", stated=codec)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize(
    "wrong",
    [
        {"symbol": 1, "price": 1.0, "volume": 1},
        {"symbol": "A", "price": "1", "volume": 1},
        {"symbol": "A", "price": 1.0, "volume": 1.5},
        {"symbol": "A", "price": 1.0, "volume": "7"},
        {"symbol": "A", "price": 1.0},
        {"symbol": None, "price": 1.0, "volume": 1},
        [],
        "text",
        None,
    ],
    ids=repr,
)
def test_wrong_types_are_refused_at_any_depth(codec: Codec, wrong: Any) -> None:
    """Values are not converted: "7" is not 7 at any level, with msgspec and with cattrs."""
    raw = encode(Any, wrong, codec)
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(Plain, raw, stated=codec)
    deep = encode(Any, {"content": {"content": [wrong]}}, codec)
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(Box[Box[list[Plain]]], deep, stated=codec)


@pytest.mark.parametrize("wrong", [{"_secret": 7}, {"secret": "x"}, {"_secret": "x", "open": "yes"}, [], "x"], ids=repr)
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_nothing_is_coerced_by_cattrs_either(codec: Codec, wrong: Any) -> None:
    """A class with private names is read as strictly as any other."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(Private, encode(Any, wrong, codec), stated=codec)


def test_a_validator_of_the_class_refuses_what_a_peer_sent() -> None:
    """Validators of the user's class run on received messages."""
    with pytest.raises(Exception, match="in_"):
        decode(Validated, b'{"percent": 101}')


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (JSON, b'{"symbol":"A","price":1.0,"volume":18446744073709551616}'),
        (JSON, b'{"symbol":"A","price":1.0,"volume":-9223372036854775809}'),
        (JSON, b'{"symbol":"A","price":1e999,"volume":1}'),
        (JSON, b'{"symbol":"A","price":NaN,"volume":1}'),
        (MSGPACK, msgpack.packb({"symbol": "A", "price": math.nan, "volume": 1})),
        (MSGPACK, msgpack.packb({"symbol": "A", "price": -math.inf, "volume": 1})),
        (JSON, b'{"symbol":"\xff","price":1.0,"volume":1}'),
        (JSON, b'{"\xff":"A","symbol":"A","price":1.0,"volume":1}'),
        (MSGPACK, b"\x81\xa1\xff\x01"),
        (MSGPACK, b"\x81\xa6symbol\xa1\xff"),
        (MSGPACK, b"\xdf\xff\xff\xff\xff"),
        (MSGPACK, b"\xdd\xff\xff\xff\xff"),
        (MSGPACK, b"\xc6\xff\xff\xff\xff"),
        (MSGPACK, b"\xc1"),
        (JSON, b""),
        (MSGPACK, b""),
    ],
    ids=repr,
)
@pytest.mark.parametrize("schema", [Plain, Any, dict[str, Any], Box[Plain]], ids=repr)
def test_numbers_text_and_claims_out_of_bounds_are_refused(codec: Codec, body: bytes, schema: Any) -> None:
    """Numbers over 64 bits, bad UTF-8 and huge claimed sizes never become objects."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode(schema, body, stated=codec)


class Hex:
    """A user's own codec."""

    name = "hex"
    number = 200

    def encoder(self, schema: Any) -> Any:
        return lambda message: message.hex().encode()

    def decoder(self, schema: Any) -> Any:
        return lambda body: bytes.fromhex(bytes(body).decode())


def test_my_own_codec_is_used_like_any_other() -> None:
    """An object with the four members of a codec works as a codec."""
    codec = find_codec(Hex())
    assert body_encoder(Any, codec=codec, default=MSGPACK)[1](b"\x01") == b"01"
    assert decode(list[int], b"01", stated=codec) == b"\x01"
    assert decode(Any, b"01", codec) == b"\x01"


def test_a_codec_that_is_none_is_named() -> None:
    """The errors for a wrong name, object or number say what is correct."""
    assert {find_codec(name) for name in BUILTIN} == set(BUILTIN.values())
    with pytest.raises(SchemaError, match="'msgpack', 'json', 'text', 'raw'"):
        find_codec("pickle")
    with pytest.raises(SchemaError, match="expected an object with the attributes name, number"):
        find_codec(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        *(("number", number, f"codec 'hex' has the number {number!r}: expected an int from 128 to 255")
          for number in (2, 127, 256, -1, True, 200.0, "200", None, [])),
        *(("name", name, f"codec Hex has the name {name!r}: expected a printable text, such as 'cbor'")
          for name in ("", "a\nb", "\x1b[31m", "\ud800", 5, None, b"hex")),
        ("name", "json", "codec Hex has the name 'json' of a built-in codec: choose another name"),
        ("encoder", 5, "codec 'hex' has no method encoder(schema): encoder is 5"),
        ("decoder", "x", "codec 'hex' has no method decoder(schema): decoder is 'x'"),
    ],
)  # fmt: skip
def test_a_codec_with_a_bad_member_is_refused_at_once(member: str, value: Any, says: str) -> None:
    """The error names the codec, its member, what is allowed and the line, wherever a codec is given."""
    wrong = Hex()
    setattr(wrong, member, value)
    app = App()
    for give in (
        lambda: App(codec=wrong),
        lambda: app.subscribe("a", codec=wrong)(print),
        lambda: app.publisher("a", codec=wrong),
        lambda: app.stream("a", int, codec=wrong),
        lambda: app.requester("a", int, int, codec=wrong),
    ):
        with pytest.raises(SchemaError, match=rf"test_codecs\.py:\d+: {re.escape(says)}$"):
            give()
