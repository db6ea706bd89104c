"""Names of fields in messages, for attrs classes and dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest

from tests.messages.bound import FORMATS, decode, encode
from zroute import App, Name, Topic
from zroute.errors import DecodeError, SchemaError, SignatureError
from zroute.messages.codecs import JSON, Codec
from zroute.messages.schema import inspect
from zroute.testing import TestApp

T = TypeVar("T")


@attrs.frozen
class Old:
    a: int


@attrs.frozen
class New:
    alpha: Annotated[int, Name("a")]
    beta: int = 2


@dataclass
class Data(Generic[T]):
    from_: Annotated[T, Name("from")]


@dataclass(init=False)
class Called:
    first: Annotated[int, Name("1st")]

    def __init__(self, first: int) -> None:
        self.first = first


@attrs.frozen
class Outer:
    new: New
    either: list[New | Data[int]] = attrs.field(factory=list)


@attrs.frozen
class Buy:
    side: Annotated[Literal["buy"], Name("type")]


@attrs.frozen
class Sell:
    side: Annotated[Literal["sell"], Name("type")]


@pytest.mark.parametrize(
    ("schema", "message", "data"),
    [
        (New, New(1), {"a": 1, "beta": 2}),
        (Data[int], Data(1), {"from": 1}),
        (Called, Called(1), {"1st": 1}),
        (Outer, Outer(New(1), [Data(3)]), {"new": {"a": 1, "beta": 2}, "either": [{"from": 3}]}),
        (New | Data[int], Data(1), {"from": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_field_has_its_own_name_in_messages(schema: Any, message: Any, data: Any, codec: Codec) -> None:
    """The message has the stated name, and arrives equal."""
    body = encode(schema, message, codec)
    assert (msgspec.json.decode if codec is JSON else msgspec.msgpack.decode)(body) == data
    arrived = decode(schema, body, codec)
    if isinstance(message, Called):
        assert arrived.first == message.first
    else:
        assert arrived == message


def test_a_renamed_field_reads_messages_of_the_old_class() -> None:
    """A program with a new name in Python understands programs with the old one."""
    old, new = App(pub="tcp://127.0.0.1:5555"), App(sub="tcp://127.0.0.1:5555")
    got: list[New] = []

    @new.subscribe("x")
    def handler(value: New) -> None:
        got.append(value)

    publication = old.publisher("x", Old)
    with TestApp(new, old) as t:
        publication.publish(Old(1))
        t.advance(0)
    assert got == [New(1)]


def test_errors_have_the_name_of_the_message() -> None:
    """A reader of the log looks for the name that the peer sent."""
    with pytest.raises(DecodeError, match="the field 'a' of New is missing"):
        decode(New, b'{"alpha": 1}')
    with pytest.raises(DecodeError, match="the field '1st' of Called is missing"):
        decode(Called, b'{"first": 1}')


@pytest.mark.parametrize("name", [1, None, b"b", "\ud800"])
def test_a_name_that_no_message_can_have_is_refused_at_its_line(name: Any) -> None:
    """A name is text. It would not be found in any message otherwise."""
    with pytest.raises(SignatureError, match=r"test_names\.py:\d+: Name\(.*expected UTF-8 text"):
        Name(name)


class Struct(msgspec.Struct):
    a: Annotated[int, Name("b")]


class Typed(TypedDict):
    a: Annotated[int, Name("b")]


class Tuple(NamedTuple):
    a: Annotated[int, Name("b")]


@attrs.frozen
class Twice:
    a: Annotated[int, Name("b")]
    b: int


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (Struct, r"Struct\.a has Name\('b'\), but Name works only for attrs classes and dataclasses: in a Struct, use"),
        (Typed, r"Typed\.a has Name\('b'\)"),
        (Tuple, r"Tuple\.a has Name\('b'\)"),
        (Twice, "two fields of Twice have the name 'b' in messages"),
    ],
)
def test_a_name_that_has_no_effect_is_refused(schema: Any, text: str) -> None:
    """A name is never ignored."""
    with pytest.raises(SchemaError, match=text):
        inspect(schema)


NAMED: Any = Annotated[int, Name("b")]


class Model(pydantic.BaseModel):
    a: NAMED = 1


class Holding(pydantic.BaseModel):
    models: list[Model] = []


@attrs.frozen
class Items:
    a: list[NAMED]


@attrs.frozen
class Maybe:
    a: NAMED | None = None


@attrs.frozen
class Mixed:
    model: Model
    a: int = attrs.field(converter=int)


class Plain(pydantic.BaseModel):
    a: int


WHOLE = r"has Name\('b'\), which only a field of an attrs class or a dataclass can have"
PART = r"has Name\('b'\) in a part of its type: write the Name around the whole type of a field"
ONLY = r"Model\.a has Name\('b'\), which only attrs classes and dataclasses can have: in a pydantic model, use Field"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (Annotated[Old, Name("b")], f"Old {WHOLE}"),
        (Annotated[int, Name("b")], f"int {WHOLE}"),
        (Annotated[bytes, Name("b")], f"bytes {WHOLE}"),
        (Annotated[str, Name("b")], f"str {WHOLE}"),
        (Annotated[Any, Name("b")], f"any {WHOLE}"),
        (Annotated[Plain, Name("b")], f"Plain {WHOLE}"),
        (NewType("Special", Annotated[int, Name("b")]), WHOLE),  # type: ignore[valid-newtype]
        (Annotated[Old, Name("b")] | bytes, WHOLE),
        (list[NAMED], PART),
        (dict[str, NAMED], PART),
        (NAMED | None, PART),
        (list[Annotated[Plain, Name("b")]], WHOLE),
        (Items, rf"Items\.a\[\] {PART}"),
        (Maybe, PART),
        (Model, ONLY),
        (Holding, ONLY),
        (Mixed, ONLY),
        (list[Model], ONLY),
    ],
    ids=repr,
)
def test_a_name_outside_a_field_is_refused_when_the_app_is_compiled(schema: Any, text: str) -> None:
    """Handlers, batches and publishers name the line and what to do."""
    plain, batch, publisher = App(), App(), App()

    def handler(body: Any) -> None: ...

    handler.__annotations__["body"] = schema
    plain.add_route(handler, "a")

    def lists(body: Any) -> None: ...

    lists.__annotations__["body"] = list[schema]
    batch.add_route(lists, "a", batch=10)
    publisher.publisher("a", schema)
    for app in (plain, batch, publisher):
        with pytest.raises(SchemaError, match=rf"(?s)test_names\.py:\d+: .*{text}"):
            app.compile()


@pytest.mark.parametrize("kind", [str, Topic])
def test_a_name_of_another_parameter_is_refused(kind: Any) -> None:
    """A capture or a topic has no name in messages."""
    app = App()

    def handler(body: int, key: Any) -> None: ...

    handler.__annotations__["key"] = Annotated[kind, Name("b")]
    app.add_route(handler, "a.{key}" if kind is str else "a")
    with pytest.raises(SchemaError, match=rf"test_names\.py:\d+: parameter 'key': {kind.__name__} {WHOLE}"):
        app.compile()


def test_routes_say_why_a_named_field_is_slower() -> None:
    """msgspec has no such names for attrs classes, so cattrs reads them."""
    assert inspect(New).reasons == ("New.alpha has Name('a'), which msgspec ignores",)


def test_a_tag_may_have_a_name_of_its_own() -> None:
    """A Literal shows the class in a union, under its name in messages."""
    assert decode(Buy | Sell, encode(Buy | Sell, Sell("sell"))) == Sell("sell")
    with pytest.raises(DecodeError, match=r"field 'type' of Buy \| Sell is 'hold': expected one of 'buy', 'sell'"):
        decode(Buy | Sell, b'{"type": "hold"}')
