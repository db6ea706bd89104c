"""Message types as users declare them, each with a strategy that generates values."""

from __future__ import annotations

import datetime
import string
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
from hypothesis import strategies as st

from zroute import Stamped

T = TypeVar("T")
Symbol = NewType("Symbol", str)
Positive = Annotated[int, msgspec.Meta(ge=0)]


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(Enum):
    NAME = "name"
    NUMBER = 7


@attrs.define
class Plain:
    symbol: str
    price: float
    volume: int


@attrs.frozen(kw_only=True)
class Frozen:
    name: Symbol
    size: Positive = 0


@attrs.frozen
class Nested:
    first: Plain
    others: list[Frozen]
    by_name: dict[str, Plain] = attrs.field(factory=dict)
    maybe: Frozen | None = None


@attrs.define
class Box(Generic[T]):
    content: T
    label: str = ""


@attrs.define
class Converted:
    count: int = attrs.field(converter=int)
    tags: tuple[str, ...] = attrs.field(converter=tuple, factory=tuple)


@attrs.define
class Ranked:
    """A class for cattrs with an enum of int."""

    level: Level
    count: int = attrs.field(converter=int)


@attrs.define
class Aliased:
    kind: str = attrs.field(alias="type")
    size: int = attrs.field(alias="n", default=0)


@attrs.define
class Private:
    _secret: str
    open: bool = True


@attrs.define
class Validated:
    percent: int = attrs.field(validator=attrs.validators.in_(range(101)))


@attrs.define
class Made:
    width: int
    area: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.area = self.width * self.width


@attrs.define
class FromSelf:
    a: int
    b: int = attrs.field(default=attrs.Factory(lambda self: self.a, takes_self=True))


@attrs.define
class Circle:
    radius: float


@attrs.define
class Square:
    side: float


@attrs.define
class Drawing:
    shapes: list[Circle | Square]
    note: str | None = None


@attrs.define
class Outer:
    """A container whose members need cattrs."""

    private: Private
    listed: list[Converted]
    mapped: dict[int, Aliased]
    pair: tuple[Private, int] | None = None


@attrs.define
class Tree:
    value: int
    children: list[Tree] = attrs.field(factory=list)


@dataclass
class Data:
    when: datetime.datetime
    day: datetime.date
    clock: datetime.time
    took: datetime.timedelta
    price: Decimal = Decimal(0)
    ids: list[UUID] = field(default_factory=list)


class Struct(msgspec.Struct):
    blob: bytes
    pair: tuple[int, str]
    many: tuple[float, ...]
    seen: set[int]
    fixed: frozenset[str]


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    tricks: list[str]


class Typed(TypedDict, total=False):
    name: str
    side: Side


class Point(NamedTuple):
    x: int
    y: float


@attrs.define
class Loose:
    """A class with fields of undeclared type."""

    values: list[Any]


text = st.text(st.characters(codec="utf-8"), max_size=12)
ints = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
zones = st.sampled_from([datetime.UTC, datetime.timezone(datetime.timedelta(hours=5, minutes=30))])
naive = st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2200, 1, 1))
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9)
spans = st.timedeltas(datetime.timedelta(days=-999), datetime.timedelta(days=999))
words = st.text(string.ascii_lowercase, max_size=6)

plain = st.builds(Plain, symbol=text, price=floats, volume=ints)
frozen = st.builds(Frozen, name=text, size=st.integers(0, 2**63))
private = st.builds(Private, secret=text, open=st.booleans())
converted = st.builds(Converted, count=ints, tags=st.lists(text, max_size=3))
aliased = st.builds(Aliased, type=text, n=ints)
circle, square = st.builds(Circle, floats), st.builds(Square, floats)

DECLARED: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "attrs": (Plain, plain),
    "frozen attrs": (Frozen, frozen),
    "nested attrs": (
        Nested,
        st.builds(
            Nested, plain, st.lists(frozen, max_size=3), st.dictionaries(text, plain, max_size=2), frozen | st.none()
        ),
    ),
    "generic attrs": (Box[int], st.builds(Box, ints, text)),
    "generic of attrs": (Box[Plain], st.builds(Box, plain, text)),
    "stamped": (Stamped[Plain], st.builds(Stamped, plain, floats)),
    "attrs with converters": (Converted, converted),
    "attrs with a converter and an enum of int": (Ranked, st.builds(Ranked, st.sampled_from(Level), ints)),
    "attrs with aliases": (Aliased, aliased),
    "attrs with private names": (Private, private),
    "attrs with a validator": (Validated, st.builds(Validated, st.integers(0, 100))),
    "attrs with a derived field": (Made, st.builds(Made, st.integers(-1000, 1000))),
    "attrs with a default from self": (FromSelf, st.builds(FromSelf, ints, ints)),
    "union of attrs by their fields": (Circle | Square, circle | square),
    "attrs with such a union": (Drawing, st.builds(Drawing, st.lists(circle | square, max_size=3), text | st.none())),
    "traps inside containers": (
        Outer,
        st.builds(
            Outer,
            private,
            st.lists(converted, max_size=2),
            st.dictionaries(st.integers(-5, 5), aliased, max_size=2),
            st.tuples(private, ints) | st.none(),
        ),
    ),
    "recursive attrs": (Tree, st.recursive(st.builds(Tree, ints), lambda kids: st.builds(Tree, ints, st.lists(kids)))),
    "dataclass": (
        Data,
        st.builds(Data, naive, st.dates(), st.times(), spans, decimals, st.lists(st.uuids(), max_size=2)),
    ),
    "Struct": (
        Struct,
        st.builds(
            Struct,
            st.binary(max_size=20),
            st.tuples(ints, text),
            st.lists(floats, max_size=3).map(tuple),
            st.sets(ints, max_size=3),
            st.frozensets(text, max_size=3),
        ),
    ),
    "tagged Structs": (Cat | Dog, st.builds(Cat, ints) | st.builds(Dog, st.lists(text, max_size=2))),
    "TypedDict": (Typed, st.fixed_dictionaries({"name": text}, optional={"side": st.sampled_from(Side)})),
    "NamedTuple": (Point, st.builds(Point, ints, floats)),
    "enum of text": (Side, st.sampled_from(Side)),
    "enum of numbers": (Level, st.sampled_from(Level)),
    "enum of both": (Mixed, st.sampled_from(Mixed)),
    "naive datetime": (datetime.datetime, naive),
    "date": (datetime.date, st.dates()),
    "Decimal": (Decimal, decimals),
    "UUID": (UUID, st.uuids()),
    "bytes": (bytes, st.binary()),
    "text": (str, text),
    "tuple": (tuple[int, str, bool], st.tuples(ints, text, st.booleans())),
    "long tuple": (tuple[int, ...], st.lists(ints, max_size=4).map(tuple)),
    "set": (set[int], st.sets(ints, max_size=4)),
    "Literal": (Literal["a", "b", 3], st.sampled_from(["a", "b", 3])),
    "Annotated": (Positive, st.integers(0, 2**63)),
    "optional": (int | None, ints | st.none()),
    "map with numbers for keys": (dict[int, str], st.dictionaries(ints, text, max_size=3)),
    "list of attrs": (list[Plain], st.lists(plain, max_size=3)),
    "int": (int, ints),
    "bool": (bool, st.booleans()),
}
"""The types that arrive unchanged, each with a strategy for its values."""

AWARE = st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2200, 1, 1), timezones=zones)
