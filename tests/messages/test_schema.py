"""Types and their engines: what is carried by which, what a message of a type must be, and what is refused."""

from __future__ import annotations

import datetime
import inspect as stdlib_inspect
import math
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, NotRequired, TypedDict

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.messages.kinds import (
    DECLARED,
    Aliased,
    Box,
    Cat,
    Circle,
    Converted,
    Data,
    Dog,
    Drawing,
    FromSelf,
    Level,
    Loose,
    Made,
    Mixed,
    Nested,
    Outer,
    Plain,
    Point,
    Positive,
    Private,
    Side,
    Square,
    Symbol,
    Tree,
    Typed,
    Validated,
)
from zroute.errors import EncodeError, SchemaError
from zroute.messages.codecs import JSON, MSGPACK
from zroute.messages.conformance import conforms, misfit
from zroute.messages.schema import Stamped, describe, inspect

if TYPE_CHECKING:
    from decimal import Context as OnlyForTheTypeChecker

Blob = NewType("Blob", bytes)
Word = NewType("Word", str)
Short = Annotated[str, msgspec.Meta(max_length=3)]
Few = Annotated[list[int], msgspec.Meta(max_length=2)]


@attrs.define
class Missing:
    context: OnlyForTheTypeChecker


@attrs.define
class Calls:
    back: list[Callable[[], None]]


@attrs.define
class Detailed(Plain):
    extra: str = ""


@attrs.define
class Limited:
    word: Short
    few: Few


class Asked(TypedDict):
    name: str
    side: NotRequired[Side]


class Odd(Enum):
    PAIR = (1, 2)


@dataclass
class Seeded:
    seed: InitVar[int]


def fits(schema: Any, message: Any) -> bool:
    """Whether it conforms; a test that raises has said no."""
    try:
        return conforms(schema)(message)
    except Exception:
        return False


# -- which engine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "engine"),
    [
        (Plain, "msgspec"),
        (Nested, "msgspec"),
        (Box[Plain], "msgspec"),
        (Stamped[Plain], "msgspec"),
        (Validated, "msgspec"),
        (Made, "msgspec"),
        (Tree, "msgspec"),
        (Data, "msgspec"),
        (Cat | Dog, "msgspec"),
        (Typed, "msgspec"),
        (Point, "msgspec"),
        (dict[int, Plain], "msgspec"),
        (str | None, "msgspec"),
        (Short, "msgspec"),
        (Converted, "cattrs"),
        (Aliased, "cattrs"),
        (Private, "cattrs"),
        (FromSelf, "cattrs"),
        (Circle | Square, "cattrs"),
        (Drawing, "cattrs"),
        (Outer, "cattrs"),
        (list[Box[Private]], "cattrs"),
        (Mixed, "cattrs"),
        (bytes, "raw"),
        (Blob, "raw"),
        (Annotated[bytes, "a picture"], "raw"),
        (str, "text"),
        (Word, "text"),
        (Any, "any"),
        (object, "any"),
        (dict, "any"),
        (list, "any"),
        (stdlib_inspect.Parameter.empty, "any"),
    ],
    ids=repr,
)
def test_each_type_goes_to_the_engine_that_carries_it(schema: Any, engine: str) -> None:
    """msgspec takes what it carries exactly, cattrs the rest; bytes and text need neither, also by another name."""
    found = inspect(schema)
    assert found.engine == engine
    assert bool(found.reasons) is (engine == "cattrs")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (Converted, "Converted.count has a converter"),
        (Aliased, "Aliased.kind has the alias 'type'"),
        (Private, "Private._secret is private"),
        (FromSelf, "FromSelf.b has a default made from self"),
        (dict[str, list[Private]], "Private._secret is private"),
    ],
    ids=repr,
)
def test_a_route_says_why_it_is_slow(schema: Any, reason: str) -> None:
    """The reasons name the class and the field, however deep, so that I can change it."""
    assert inspect(schema).reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (complex, r"^complex is a type that no codec can carry: use"),
        (Calls, r"Calls\.back\[\] is Callable\[.*which no codec can carry: use"),
        (list[dict[str, complex]], r"list\[dict\[str, complex\]\]\[\]\[\] is complex"),
        (Missing, r"Missing has an annotation 'OnlyForTheTypeChecker' .* TYPE_CHECKING"),
        (Odd, "the enum Odd with values"),
        (Seeded, r"Seeded\.seed is an InitVar"),
    ],
    ids=repr,
)
def test_a_type_that_nothing_carries_is_refused_when_the_app_is_compiled(schema: Any, text: str) -> None:
    """The error names the field, the reason and what to do."""
    with pytest.raises(SchemaError, match=text) as caught:
        inspect(schema)
    assert caught.value.schema is schema


@attrs.define
class Round:
    radius: float


@pytest.mark.parametrize("schema", [Circle | Round, list[int] | set[int], str | datetime.date], ids=repr)
@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
def test_a_union_that_cannot_be_told_apart_is_refused_when_the_app_is_compiled(schema: Any, codec: Any) -> None:
    """Two types of the same shape need a tag, and I learn it before the first message."""
    with pytest.raises(SchemaError, match="told apart"):
        codec.decoder(schema)
    with pytest.raises(SchemaError, match="told apart"):
        codec.encoder(schema)


def test_a_type_or_raw_bytes() -> None:
    """``T | bytes`` is T with a way out; None and other types may stand beside them."""
    found = inspect(Plain | bytes)
    assert (found.engine, found.raw_fallback, found.inner) == ("msgspec", True, Plain)
    assert inspect(bytes | str).inner is str
    assert inspect(Plain | None | bytes).inner == Plain | None
    assert not inspect(list[int | bytes]).raw_fallback
    assert not inspect(Plain).raw_fallback


@pytest.mark.parametrize(
    ("schema", "holds"),
    [
        (Plain, {"int", "float"}),
        (Validated, {"int"}),
        (Symbol, set()),
        (Nested, {"int", "float"}),
        (Loose, {"any"}),
        (Box, {"any"}),
        (Made, {"int", "hook"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_only_what_a_type_can_hold_is_looked_at(schema: Any, holds: set[str]) -> None:
    """A type without numbers costs no look at numbers."""
    assert inspect(schema).holds == holds


def test_a_type_is_inspected_once() -> None:
    """Many routes of one type share what was found."""
    assert inspect(Box[Plain]) is inspect(Box[Plain])


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (Plain, "Plain"),
        (Stamped[Plain] | bytes, "Stamped[Plain] | bytes"),
        (dict, "dict"),
        (Any, "any"),
        (stdlib_inspect.Parameter.empty, "any"),
        (None, "None"),
        (int | None, "int | None"),
        (tuple[int, ...], "tuple[int, …]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Positive, "int"),
        (Symbol, "Symbol"),
    ],
    ids=repr,
)
def test_types_have_short_names_in_tables(schema: Any, name: str) -> None:
    """I recognise my types in `zroute routes` and in errors."""
    assert describe(schema) == name


def test_stamped_takes_its_time_from_the_clock_unless_told() -> None:
    """``Stamped(data)`` is stamped now, ``Stamped(data, seconds)`` then, and it can't be changed."""
    before = time.time()
    assert before <= Stamped("x").timestamp <= time.time()
    assert Stamped("x", 5.0) == Stamped(data="x", timestamp=5.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Stamped("x").timestamp = 1.0  # type: ignore[misc]


# -- what a message must be ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECLARED)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_good_message_conforms(kind: str, data: st.DataObject) -> None:
    """No message that is of its type is ever held back."""
    schema, values = DECLARED[kind]
    assert conforms(schema)(data.draw(values))


SECONDS = datetime.timezone(datetime.timedelta(seconds=561))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Plain, Plain(None, 1.0, 1)),  # type: ignore[arg-type]
        (Plain, Plain("A", "1", 1)),  # type: ignore[arg-type]
        (Plain, Plain("A", 1.0, True)),
        (Plain, Plain("A", 1.0, 1.0)),  # type: ignore[arg-type]
        (Plain, Plain("A", math.nan, 1)),
        (Plain, Plain("A", 2**53 + 1, 1)),
        (Plain, Plain("A", 1.0, 2**64)),
        (Plain, Detailed("A", 1.0, 1)),
        (Box[int], Box("x")),
        (Nested, Nested(Plain("A", 1.0, 1), (), {})),  # type: ignore[arg-type]
        (Nested, Nested(Plain("A", 1.0, 1), [], {"a": Detailed("A", 1.0, 1)})),
        (Tree, Tree(1, [Tree(2, [Tree("3")])])),  # type: ignore[arg-type]
        (Point, (1, 2.0)),
        (Point, Point("1", 2.0)),  # type: ignore[arg-type]
        (Typed, {"name": "x", "more": 1}),
        (Typed, {"side": "buy"}),
        (Asked, {"side": Side.BUY}),
        (list[str], ["a", 1]),
        (list[int], (1, 2)),
        (Sequence[int], (1, 2)),
        (Mapping[str, int], {"a": "b"}),
        (dict[int, str], {"1": "a"}),
        (set[int], [1]),
        (set[int], frozenset([1])),
        (tuple[int, str], (1, "a", 2)),
        (tuple[int, ...], (1, "a")),
        (tuple[()], (1,)),
        (Literal["a", 1], "b"),
        (Literal["a", 1], True),
        (Side, "buy"),
        (Level, 1),
        (int | None, "1"),
        (Positive, -1),
        (Limited, Limited("long", [])),
        (Limited, Limited("abc", [1, 2, 3])),
        (Decimal, Decimal("NaN")),
        (datetime.datetime, datetime.datetime(1900, 1, 1, tzinfo=SECONDS)),
        (datetime.time, datetime.time(1, tzinfo=SECONDS)),
        (datetime.date, datetime.datetime(2020, 1, 1)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
def test_a_message_that_readers_would_refuse_or_get_changed_is_held_back(schema: Any, message: Any, codec: Any) -> None:
    """A part of another type than declared is found at the publisher, however deep it is."""
    assert not fits(schema, message)
    with pytest.raises(EncodeError, match=r"(?i)expected"):
        codec.encoder(schema)(message)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Plain, Plain("A", 187, 1)),
        (Asked, {"name": "x"}),
        (Limited, Limited("abc", [1, 2])),
        (Sequence[int], [1]),
        (tuple[()], ()),
        (datetime.datetime, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
        (typing.Union[Plain, None], None),  # noqa: UP007  # this spelling is read as well
    ],
    ids=repr,
)
def test_what_arrives_equal_is_let_through(schema: Any, message: Any) -> None:
    """An int may stand for a float that equals it (PEP 484), and what is not required may be missing."""
    assert fits(schema, message)
    for codec in (JSON, MSGPACK):
        assert codec.decoder(schema)(codec.encoder(schema)(message)) == message


@pytest.mark.parametrize(
    ("schema", "message", "found"),
    [
        (Nested, Nested(Plain("A", 1.0, 1), [], {"a": Plain("A", 1.0, "1")}), (".by_name['a'].volume", int, "1")),  # type: ignore[arg-type]
        (list[Box[int]], [Box(1), Box("x")], ("[1].content", int, "x")),
        (Asked, {"name": 3}, (".name", str, 3)),
        (Plain, 3, ("", Plain, 3)),
    ],
    ids=repr,
)
def test_the_place_that_does_not_fit_is_found(schema: Any, message: Any, found: Any) -> None:
    """I read which field holds what, not only that the message is wrong."""
    assert misfit(schema, message) == found
