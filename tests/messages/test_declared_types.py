"""Types as users declare them: each arrives as it was, or is refused by name."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import ipaddress
import uuid
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any, Final, Generic, NewType, TypeVar

import attrs
import msgspec
import pytest

from zroute import App, EncodeError, SchemaError
from zroute.testing import TestApp

T = TypeVar("T")
UserId = NewType("UserId", int)


class Rights(enum.IntFlag):
    READ = 1
    WRITE = 2


class Auto(enum.Enum):
    ONE = enum.auto()
    TWO = enum.auto()


class Word(enum.StrEnum):
    A = "a"


class Color(enum.Enum):
    RED = "red"


class Pairs(enum.Enum):
    A = (1, 2)


@attrs.frozen
class Page(Generic[T]):
    items: list[T]
    total: int


@dataclass
class Base:
    a: int


@dataclass
class Below(Base):
    b: int


@dataclass(kw_only=True)
class ByName(Base):
    c: int = 3


@dataclass
class Derived:
    a: int
    b: int = 0

    def __post_init__(self) -> None:
        self.b = self.a * 2


@attrs.define
class Checked:
    x: int = attrs.field(converter=int, validator=attrs.validators.gt(0))
    _private: int = 1
    fixed: int = attrs.field(init=False, default=7)


@attrs.frozen
class Leaves:
    number: decimal.Decimal
    key: uuid.UUID
    at: datetime.datetime
    raw: bytes
    took: datetime.timedelta
    day: datetime.date


@attrs.frozen
class Collections:
    by_number: dict[int, str]
    by_color: dict[Color, int]
    some: set[int]
    fixed: frozenset[str]
    pair: tuple[int, str]
    many: tuple[int, ...]


class Camel(msgspec.Struct, rename="camel"):
    user_name: str


class Row(msgspec.Struct, array_like=True):
    a: int
    b: int


@attrs.frozen
class Constant:
    x: Final[int] = 3


@attrs.frozen
class Loose:
    x: Any


@attrs.frozen
class Holder:
    base: Base


@dataclass
class Seeded:
    a: int
    seed: InitVar[int] = 0


@attrs.frozen
class One(Generic[T]):
    """A class with one field of the type to test."""

    value: T


EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30))


def trip(schema: Any, value: Any, codec: str) -> Any:
    """Publish ``value`` to a handler of ``schema``, and return what it got."""
    app, got = App(codec=codec), []
    publisher = app.publisher("x", schema)

    def handle(body: Any) -> None:
        got.append(body)

    handle.__annotations__["body"] = schema
    app.subscribe("x")(handle)
    with TestApp(app) as t:
        publisher.publish(value)
        t.advance(0)
    (body,) = got
    return body


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (Rights, Rights.READ | Rights.WRITE),
        (Auto, Auto.TWO),
        (Word, Word.A),
        (Color, Color.RED),
        (Page[int], Page([1, 2], 2)),
        (Page[Base], Page([Base(1)], 1)),
        (Page, Page([1], 1)),
        (Below, Below(1, 2)),
        (ByName, ByName(1)),
        (Derived, Derived(2)),
        (Checked, Checked(5)),
        (dict[str, Base], {"k": Base(1)}),
        (Base | None, None),
        (int | str, "5"),
        (UserId, UserId(4)),
        (
            Leaves,
            Leaves(
                decimal.Decimal("1.10"),
                uuid.UUID(int=5),
                datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
                b"\0\xff",
                datetime.timedelta(seconds=1.5),
                datetime.date(2026, 1, 1),
            ),
        ),
        (datetime.datetime, datetime.datetime(2026, 1, 1)),
        (datetime.datetime, datetime.datetime(2026, 1, 1, tzinfo=EAST)),
        (Collections, Collections({1: "a"}, {Color.RED: 1}, {1}, frozenset("a"), (1, "b"), (1, 2))),
        (Camel, Camel("x")),
        (Row, Row(1, 2)),
        (Constant, Constant()),
        (bytearray, bytearray(b"x")),
        (str, "é"),
        (float, 3),
    ],
    ids=repr,
)
def test_a_message_arrives_equal_and_of_its_type(schema: Any, value: Any, codec: str) -> None:
    """What a declared publisher takes, a handler of the same type gets; an int for a float becomes a float."""
    got = trip(schema, value, codec)
    assert got == value
    assert type(got) is (float if schema is float else type(value))


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (Pairs, "values are neither text nor numbers"),
        (Seeded, "Seeded.seed is an InitVar"),
        (One[Path], "is Path, which no codec supports"),
        (One[collections.OrderedDict[str, int]], "is OrderedDict"),
        (One[collections.defaultdict[str, int]], "is defaultdict"),
        (One[collections.deque[int]], "is deque"),
        (One[complex], "is complex"),
        (One[ipaddress.IPv4Address], "is IPv4Address"),
    ],
    ids=repr,
)
def test_a_type_that_would_not_arrive_is_refused_at_its_line(schema: Any, says: str, codec: str) -> None:
    """The app does not start, and the error names the field, its type and the line of the publisher."""
    with pytest.raises(SchemaError, match=rf"test_declared_types\.py:\d+: .*{says}"):
        trip(schema, None, codec)


@pytest.mark.parametrize(
    ("codec", "schema", "value", "says"),
    [
        ("msgpack", Loose, Loose((1, 2)), r"would arrive as Loose\(x=\[1, 2\]\)"),
        ("json", Loose, Loose((1, 2)), r"would arrive as Loose\(x=\[1, 2\]\)"),
        ("json", Loose, Loose(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)), "would arrive as"),
        ("json", Loose, Loose(b"x"), "would arrive as"),
        ("msgpack", Holder, Holder(Below(1, 2)), "Holder.base: expected Base, got Below"),
        ("msgpack", int, 2**70, "64 bits"),
        ("msgpack", float, float("nan"), "must be finite"),
        ("msgpack", int, True, "expected int, got bool"),
        ("msgpack", None, None, "None is not a message"),
    ],
    ids=repr,
)
def test_a_message_that_would_change_is_refused_where_it_is_published(
    codec: str, schema: Any, value: Any, says: str
) -> None:
    """EncodeError at the publisher names what would arrive, or what was expected."""
    with pytest.raises(EncodeError, match=says):
        trip(schema, value, codec)
