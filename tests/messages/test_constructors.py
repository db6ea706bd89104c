"""Classes with code of their own around the constructor: it runs for each received message."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import attrs
import msgspec
import pytest

from tests.messages.bound import FORMATS, decode, encode
from tests.messages.kinds import Box, Data, Frozen, Made, Plain, Point, Tree, Validated
from zroute.errors import EncodeError, SchemaError
from zroute.messages.codecs import JSON, Codec
from zroute.messages.constructors import why_called
from zroute.messages.schema import Stamped, inspect

T = TypeVar("T")


def refuse_negative(number: int) -> None:
    """Raise ValueError for a negative number, as each class here does."""
    if number < 0:
        raise ValueError("negative")


@dataclass(init=False)
class OwnInit:
    a: int

    def __init__(self, a: int) -> None:
        refuse_negative(a)
        self.a = a
        self.cache: dict[str, int] = {}


@dataclass
class KeptInit:
    """A dataclass never replaces an ``__init__``."""

    a: int

    def __init__(self, a: int) -> None:
        refuse_negative(a)
        self.a = a


@attrs.define(init=False)
class AttrsInit:
    a: int

    def __init__(self, a: int) -> None:
        refuse_negative(a)
        self.__attrs_init__(a)  # type: ignore[attr-defined]


@attrs.define
class Base:
    a: int


class Below(Base):
    """A subclass without fields of its own."""

    def __init__(self, a: int) -> None:
        refuse_negative(a)
        super().__init__(a)


@dataclass
class OwnNew:
    a: int

    def __new__(cls, a: int) -> OwnNew:
        refuse_negative(a)
        return super().__new__(cls)


@dataclass
class OwnSet:
    a: int

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_negative(value)
        object.__setattr__(self, name, value)


class Counting(type):
    def __call__(cls, *values: Any, **named: Any) -> Any:
        refuse_negative(next(iter((*values, *named.values()))))
        return super().__call__(*values, **named)


@attrs.define
class OwnMeta(metaclass=Counting):
    a: int


@attrs.define
class Before:
    a: int

    def __attrs_pre_init__(self, a: int) -> None:
        refuse_negative(a)


def checked(kind: type[Any]) -> type[Any]:
    """Wrap a generated constructor, as libraries for run-time types do."""
    made = kind.__init__

    @functools.wraps(made)
    def init(self: Any, a: int) -> None:
        refuse_negative(a)
        made(self, a)

    kind.__init__ = init  # type: ignore[misc]
    return kind


@checked
@dataclass
class Wrapped:
    a: int


class Flexible:
    def __init__(self, **values: int) -> None:
        refuse_negative(values["a"])
        self.__dict__.update(values)


@dataclass(init=False)
class Keywords(Flexible):
    a: int


class Pair(NamedTuple):
    a: int


class OwnPair(Pair):
    def __new__(cls, a: int) -> OwnPair:
        refuse_negative(a)
        return super().__new__(cls, a)


CHECKED: list[Callable[[int], Any]] = [
    OwnInit, KeptInit, AttrsInit, Below, OwnNew, OwnSet, OwnMeta, Before, Wrapped, lambda a: Keywords(a=a)
]  # fmt: skip


@pytest.mark.parametrize("make", CHECKED, ids=lambda make: type(make(1)).__name__)
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_class_that_checks_itself_is_never_made_behind_its_back(make: Callable[[int], Any], codec: Codec) -> None:
    """The check refuses a bad body, and a good one arrives equal, alone and inside other types."""
    kind = type(make(1))
    write = {"msgpack": msgspec.msgpack.encode, "json": msgspec.json.encode}[codec.name]
    assert decode(kind, encode(kind, make(1), codec), codec) == make(1)
    assert decode(list[kind], encode(list[kind], [make(2)], codec), codec) == [make(2)]  # type: ignore[valid-type]
    assert decode(Stamped[kind], write({"data": {"a": 3}}), codec).data == make(3)  # type: ignore[valid-type]
    for schema, data in ((kind, {"a": -1}), (Stamped[kind], {"data": {"a": -1}})):  # type: ignore[valid-type]
        with pytest.raises(ValueError, match="negative"):
            decode(schema, write(data), codec)
    with pytest.raises(Exception, match="the field 'a' of"):
        decode(kind, write({}), codec)
    with pytest.raises(Exception, match="expected a map"):
        decode(kind, write([1]), codec)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_named_tuple_is_made_by_its_own_constructor(codec: Codec) -> None:
    """A NamedTuple with a ``__new__`` refuses bad values too."""
    assert decode(OwnPair, encode(OwnPair, OwnPair(1), codec), codec) == OwnPair(1)
    for body, text in (([-1], "negative"), ([1, 2], "expected 1 to 1 items"), ({}, "expected a list")):
        with pytest.raises((ValueError, TypeError), match=text):
            decode(OwnPair, msgspec.json.encode(body))


@attrs.frozen(init=False)
class Partly:
    a: int
    b: int

    def __init__(self, a: int) -> None:
        self.__attrs_init__(a, a * 2)  # type: ignore[attr-defined]


@dataclass
class Later:
    a: int
    b: int = field(init=False)

    def __post_init__(self) -> None:
        self.b = self.a * 2


@pytest.mark.parametrize("kind", [Partly, Later])
def test_what_a_class_makes_itself_is_not_taken_from_a_message(kind: Any) -> None:
    """A field that the constructor does not take is neither needed nor read."""
    assert decode(kind, b'{"a": 2}') == decode(kind, b'{"a": 2, "b": 99}') == kind(2)
    assert decode(kind, encode(kind, kind(2))).b == 4


def test_a_value_that_the_constructor_would_not_make_again_is_not_published() -> None:
    """A changed field that readers would compute again raises in the publisher."""
    later = Later(2)
    later.b = 5
    with pytest.raises(EncodeError, match="would arrive as Later"):
        encode(Later, later)


@dataclass(init=False)
class Needs:
    a: int

    def __init__(self, a: int, secret: str) -> None:
        self.a = a


@dataclass(init=False)
class Positional:
    a: int

    def __init__(self, a: int, /) -> None:
        self.a = a


class HoldsOwn(msgspec.Struct):
    own: OwnInit


@dataclass
class Seeded:
    seed: InitVar[int]


@dataclass
class BelowSeeded(Seeded):
    a: int = 0


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Needs, "Needs has a constructor with the parameter 'secret', which is not the name of a field: give"),
        (Positional, "Positional has a constructor whose parameter 'a' is positional-only: give"),
        (HoldsOwn, "HoldsOwn is a Struct, which only msgspec can create, but OwnInit has a custom __init__"),
        (BelowSeeded, "BelowSeeded.seed is an InitVar"),
    ],
)
def test_a_class_that_no_message_can_make_is_refused(kind: Any, text: str) -> None:
    """The error names the constructor's demand, and says what to do."""
    with pytest.raises(SchemaError, match=text):
        JSON.decoder(kind)


class PlainBelow(Base):
    """A subclass without code."""


@dataclass(frozen=True, slots=True)
class FrozenSlots(Generic[T]):
    a: T


@attrs.define(slots=False)
class Hooked:
    a: int = attrs.field(on_setattr=attrs.setters.frozen)

    def __attrs_pre_init__(self) -> None:
        self.extra = 1


class Ordinary(TypedDict):
    a: int


@pytest.mark.parametrize(
    "kind",
    [
        Plain, Frozen, Box, Tree, Data, Validated, Made, Point, PlainBelow, FrozenSlots, Hooked, Ordinary,
        dataclasses.make_dataclass("Dynamic", [("a", int)]),
    ],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_generated_constructors_cost_nothing(kind: type) -> None:
    """msgspec makes the objects of a class whose constructor attrs or dataclasses wrote."""
    assert why_called(kind) is None
    assert inspect(kind).engine == "msgspec"


def test_routes_say_why_a_class_is_called() -> None:
    """The reason for the slower engine names the class and the method."""
    assert inspect(list[OwnNew]).reasons == ("OwnNew has a custom __new__, which msgspec does not call",)


def test_a_union_with_a_map_is_refused_as_ambiguous() -> None:
    """A map that could be a Struct or a dict is an error that says so."""
    with pytest.raises(SchemaError, match=r"HoldsOwn \| dict can't be decoded without ambiguity \(a map could be"):
        JSON.decoder(HoldsOwn | dict)
