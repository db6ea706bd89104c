"""The engine of each type, the checks that it needs, and refused types."""

from __future__ import annotations

import datetime
import inspect as stdlib_inspect
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType

import attrs
import msgspec
import pytest

from tests.messages.kinds import (
    Aliased,
    Box,
    Cat,
    Circle,
    Converted,
    Data,
    Dog,
    Drawing,
    FromSelf,
    Loose,
    Made,
    Mixed,
    Nested,
    Outer,
    Plain,
    Point,
    Positive,
    Private,
    Square,
    Symbol,
    Tree,
    Typed,
    Validated,
)
from zroute.errors import SchemaError
from zroute.messages.codecs import JSON, MSGPACK
from zroute.messages.schema import Stamped, describe, inspect

if TYPE_CHECKING:
    from decimal import Context as OnlyForTheTypeChecker

Blob = NewType("Blob", bytes)
Word = NewType("Word", str)
Short = Annotated[str, msgspec.Meta(max_length=3)]


@attrs.define
class Missing:
    context: OnlyForTheTypeChecker


@attrs.define
class Calls:
    back: list[Callable[[], None]]


class Odd(Enum):
    PAIR = (1, 2)


@dataclass
class Seeded:
    seed: InitVar[int]


# -- choice of the engine ---------------------------------------------------------------------------------


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
    """msgspec carries most types, cattrs the others; bytes and text need neither."""
    found = inspect(schema)
    assert found.engine == engine
    assert bool(found.reasons) is (engine == "cattrs")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (Converted, "Converted.count has a converter"),
        (Aliased, "Aliased.kind has the alias 'type'"),
        (Private, "Private._secret is private"),
        (FromSelf, "FromSelf.b has a default computed from self"),
        (dict[str, list[Private]], "Private._secret is private"),
    ],
    ids=repr,
)
def test_a_route_says_why_it_is_slow(schema: Any, reason: str) -> None:
    """The reasons for cattrs name the class and the field, at any depth."""
    assert inspect(schema).reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (complex, r"^complex is a type that no codec supports: use"),
        (Calls, r"Calls\.back\[\] is Callable\[.*which no codec supports: use"),
        (list[dict[str, complex]], r"list\[dict\[str, complex\]\]\[\]\[\] is complex"),
        (Missing, r"Missing has an annotation 'OnlyForTheTypeChecker' .* TYPE_CHECKING"),
        (Odd, "the enum Odd, whose values"),
        (Seeded, r"Seeded\.seed is an InitVar"),
    ],
    ids=repr,
)
def test_a_type_that_nothing_carries_is_refused_when_the_app_is_compiled(schema: Any, text: str) -> None:
    """The error names the field, the reason and the fix."""
    with pytest.raises(SchemaError, match=text) as caught:
        inspect(schema)
    assert caught.value.schema is schema


@attrs.define
class Round:
    radius: float


@pytest.mark.parametrize("schema", [Circle | Round, list[int] | set[int], str | datetime.date], ids=repr)
@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
def test_a_union_that_cannot_be_told_apart_is_refused_when_the_app_is_compiled(schema: Any, codec: Any) -> None:
    """A union of two types of the same shape is refused before the first message."""
    with pytest.raises(SchemaError, match="without ambiguity"):
        codec.decoder(schema)
    with pytest.raises(SchemaError, match="without ambiguity"):
        codec.encoder(schema)


def test_a_type_or_raw_bytes() -> None:
    """``T | bytes`` is T with a raw fallback, also with None and other members."""
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
    """A type without numbers needs no check of numbers."""
    assert inspect(schema).holds == holds


def test_a_type_is_inspected_once() -> None:
    """Routes with the same type share one inspection."""
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
    """Types have their short names in `zroute routes` and in errors."""
    assert describe(schema) == name


def test_stamped_takes_its_time_from_the_clock_unless_told() -> None:
    """``Stamped(data)`` has the current time, ``Stamped(data, seconds)`` the given one; both are frozen."""
    before = time.time()
    assert before <= Stamped("x").timestamp <= time.time()
    assert Stamped("x", 5.0) == Stamped(data="x", timestamp=5.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Stamped("x").timestamp = 1.0  # type: ignore[misc]
