"""Models of pydantic as messages: validated by pydantic, with its rules, aliases and paths."""

from __future__ import annotations

import datetime
import enum
import math
import pathlib
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pytest
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, PrivateAttr, RootModel, SecretStr, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from tests.messages.bound import FORMATS, decode, encode
from tests.support import ROOT
from zroute import App, Stamped
from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages.codecs import JSON, MSGPACK, Codec
from zroute.messages.schema import inspect
from zroute.testing import TestApp

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


class Leaves(BaseModel):
    number: int
    part: float
    price: Decimal
    id: UUID
    at: datetime.datetime
    day: datetime.date
    took: datetime.timedelta
    blob: bytes
    color: Color
    some: set[int]
    pair: tuple[int, str]
    path: pathlib.Path
    host: IPv4Address
    url: AnyUrl
    names: dict[int, str]
    maybe: int | None = None


class Strict(Leaves):
    model_config = ConfigDict(strict=True)


def leaves(kind: type[Leaves]) -> Leaves:
    """Return a message with a leaf of each type."""
    return kind(
        number=1,
        part=1.5,
        price=Decimal("1.10"),
        id=UUID(int=5),
        at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        day=datetime.date(2026, 1, 1),
        took=datetime.timedelta(seconds=1.5),
        blob=b"ab",
        color=Color.RED,
        some={1},
        pair=(1, "a"),
        path=pathlib.Path("/tmp"),
        host=IPv4Address("1.2.3.4"),
        url=AnyUrl("https://a.b/c"),
        names={1: "a"},
    )


class Renamed(BaseModel):
    n: int = Field(alias="N")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.a * 2


class Hidden(BaseModel):
    a: int
    _seen: object = PrivateAttr(default_factory=object)


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Page(BaseModel, Generic[T]):
    items: list[T]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: str


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Numbers(RootModel[list[int]]):
    pass


class Number(BaseModel):
    n: float | int


class Link(BaseModel):
    value: int
    next: Optional[Link] = None  # noqa: UP045  # a forward reference can't be combined with |


@pydantic_dataclass
class Order:
    id: int = Field(gt=0)
    qty: Annotated[int, Field(le=10)] = 1


@pydantic_dataclass
class Holder(Generic[T]):
    x: T


@attrs.frozen
class Outer:
    one: Renamed
    many: list[Renamed]
    either: dict[str, Cat | Dog]
    n: int = 0


@dataclass
class DataOuter:
    one: Leaves


class TypedOuter(TypedDict):
    one: Renamed


class TupleOuter(NamedTuple):
    one: Renamed
    n: int = 2


GOOD: list[tuple[Any, Any]] = [
    (Leaves, leaves(Leaves)),
    (Strict, leaves(Strict)),
    (Renamed, Renamed(N=1)),
    (Computed, Computed(a=1)),
    (Extra, Extra(a=1, more="x")),  # type: ignore[call-arg]
    (Page[Renamed], Page[Renamed](items=[Renamed(N=1)])),
    (Cat | Dog, Dog(name="x")),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(name="x")),
    (list[Renamed], [Renamed(N=1)]),
    (dict[str, Renamed], {"a": Renamed(N=1)}),
    (tuple[Renamed, int], (Renamed(N=1), 2)),
    (Renamed | None, Renamed(N=1)),
    (Renamed | int, 5),
    (Renamed | bytes, Renamed(N=1)),
    (Numbers, Numbers([1])),
    (Link, Link(value=1, next=Link(value=2))),
    (Order, Order(1)),
    (Holder[int], Holder[int](1)),
    (Stamped[Renamed], Stamped(Renamed(N=1), 5.0)),
    (Outer, Outer(Renamed(N=1), [Renamed(N=2)], {"a": Dog(name="x")})),
    (DataOuter, DataOuter(leaves(Leaves))),
    (TypedOuter, {"one": Renamed(N=1)}),
    (TupleOuter, TupleOuter(Renamed(N=1))),
]


@pytest.mark.parametrize(("schema", "message"), GOOD, ids=[str(getattr(kind, "__name__", kind)) for kind, _ in GOOD])
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_model_arrives_equal_in_every_place(schema: Any, message: Any, codec: Codec) -> None:
    """Models are bodies, and parts of lists, maps, unions, generics and other classes."""
    arrived = decode(schema, encode(schema, message, codec), codec)
    assert arrived == message
    assert type(arrived) is type(message)


def test_private_attributes_are_not_sent() -> None:
    """A private attribute belongs to the process, so it does not prevent publishing."""
    assert decode(Hidden, encode(Hidden, Hidden(a=1))).a == 1


def test_bodies_have_the_names_of_aliases() -> None:
    """The wire has the aliases, at every level."""
    assert JSON.encoder(Renamed)(Renamed(N=1)) == b'{"N":1}'
    assert msgspec.msgpack.decode(MSGPACK.encoder(list[Renamed])([Renamed(N=1)])) == [{"N": 1}]
    assert b'"one":{"N":1}' in JSON.encoder(TypedOuter)({"one": Renamed(N=1)})


@pytest.mark.parametrize(
    ("schema", "data", "text"),
    [
        (Order, {"id": -1}, "the data is not a valid Order: id: Input should be greater than 0"),
        (Order, {"id": 1, "qty": 99}, "qty: Input should be less than or equal to 10"),
        (Order, {}, "id: Field required"),
        (Renamed, {"n": 1}, "N: Field required"),
        (Page[Renamed], {"items": [{"N": 1}, {"N": "x"}]}, r"items\.1\.N: Input should be a valid integer"),
        (
            Outer,
            {"one": {"N": []}, "many": [], "either": {}},
            "not a valid Renamed: N: Input should be a valid integer",
        ),
        (list[Order], [{"id": 0}] * 5, r"0\.id: .*; 1\.id: .*; 2\.id: .*; and 2 more"),
        (Number, {"n": "inf"}, "a number exceeds 64 bits or is not finite"),
        (Strict, {"number": "1"}, "number: Input should be a valid integer"),
    ],
)
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_bad_body_is_refused_with_the_paths_of_pydantic(schema: Any, data: Any, text: str, codec: Codec) -> None:
    """The DecodeError has pydantic's path and text for the first errors."""
    body = (msgspec.json.encode if codec is JSON else msgspec.msgpack.encode)(data)
    with pytest.raises(DecodeError, match=text) as caught:
        decode(schema, body, codec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_body_with_very_many_errors_is_refused_without_a_list_of_them(codec: Codec) -> None:
    """Only the errors that are shown become objects of Python, however many there are."""
    body = (msgspec.json.encode if codec is JSON else msgspec.msgpack.encode)([""] * 50_000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r"2: .*; and 49997 more"):
            decode(RootModel[list[int]], body, codec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000, "bytes, of which the list of all errors would take 40 MB"


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_strictness_is_the_models_own(codec: Codec) -> None:
    """pydantic converts a text to a number, unless the model is strict."""
    body = (msgspec.json.encode if codec is JSON else msgspec.msgpack.encode)({"id": "5"})
    assert decode(Order, body, codec) == Order(5)


def test_text_that_is_not_utf_8_is_refused() -> None:
    """Also in a field that the model does not have."""
    with pytest.raises(UnicodeDecodeError):
        decode(Renamed, b'{"N": 1, "x": "\xff"}')


class Secret(BaseModel):
    word: SecretStr


class Below(Renamed):
    more: int = 0


@pytest.mark.parametrize(
    ("schema", "message", "text"),
    [
        (Renamed, Below(N=1), "an instance of a subclass would arrive as its base"),
        (Renamed, Renamed.model_construct(n="x"), "Expected `int`"),
        (Renamed, {"N": 1}, "expected Renamed, got dict"),
        (Number, Number(n=math.nan), "can't be encoded as Number"),
        (Number, Number(n=2**70), "can't be encoded as Number"),
        (Secret, Secret(word=SecretStr("x")), "would arrive as"),
    ],
)
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_message_that_would_not_arrive_is_refused(schema: Any, message: Any, text: str, codec: Codec) -> None:
    """A publisher raises for a model that its readers would refuse or receive changed."""
    with pytest.raises(EncodeError, match=text):
        encode(schema, message, codec)


class Unfinished(BaseModel):
    other: Missing  # type: ignore[name-defined]  # noqa: F821


class HoldsModel(msgspec.Struct):
    one: Renamed


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (Unfinished, "pydantic does not support Unfinished"),
        (HoldsModel, "HoldsModel is a Struct, which only msgspec can create, but HoldsModel.one is a pydantic type"),
        (
            Renamed | Stamped[int],
            "can.t distinguish the classes of .*, because Renamed is neither an attrs class nor a dataclass",
        ),
    ],
)
def test_a_type_that_pydantic_cannot_carry_is_refused_when_the_app_is_compiled(schema: Any, text: str) -> None:
    """The error comes before the first message."""
    with pytest.raises(SchemaError, match=text):
        JSON.decoder(schema)


def test_an_app_publishes_and_handles_models() -> None:
    """A handler, a publisher and a publish without a declared type take models; plain JSON is recognised."""
    app = App()
    renamed = app.publisher("declared", Renamed)
    got: list[Any] = []

    @app.subscribe("orders.{symbol}")
    def on_order(order: Order, symbol: str) -> None:
        got.append((order, symbol))

    @app.subscribe("declared")
    def on_renamed(value: Renamed) -> None:
        got.append(value)

    @app.subscribe("undeclared")
    def on_any(value: Any) -> None:
        got.append(value)

    with TestApp(app) as t:
        t.publish("orders.ACME", Order(1))
        renamed.publish(Renamed(N=2))
        app.publish("undeclared", Renamed(N=3))
        t.receive(b'orders.JSON\x00{"id": 4}')
        t.receive(b'orders.JSON\x00{"id": 5}')
        t.advance(0)
    assert sorted(map(repr, got)) == sorted(
        map(repr, [(Order(1), "ACME"), Renamed(N=2), {"N": 3}, (Order(4), "JSON"), (Order(5), "JSON")])
    )


def test_the_engine_of_a_model_is_pydantic() -> None:
    """Only the outermost type that pydantic can carry alone is given to it."""
    assert inspect(list[Renamed]).engine == "pydantic"
    assert inspect(Outer).engine == "cattrs"
    assert inspect(Outer).reasons[0] == "Outer.one is a pydantic type, which msgspec does not support"


def test_zroute_does_not_import_pydantic() -> None:
    """pydantic and annotated_types are imported only by a program that uses them."""
    code = """if True:
        import sys
        from typing import Annotated
        import attrs
        from zroute import App
        @attrs.frozen
        class Quote:
            price: Annotated[float, "a note"]
        app = App()
        app.publisher("x", Quote)
        @app.subscribe("x")
        def f(quote: Quote): ...
        app.compile()
        print({"pydantic", "pydantic_core", "annotated_types"} & set(sys.modules))
    """
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.stdout == "set()\n", shown.stderr
