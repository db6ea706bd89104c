"""Strict conversion of plain data to objects, for types that msgspec would get wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple, TypedDict

import attrs
import msgspec
import pytest

from tests.messages.kinds import Aliased, Circle, Converted, Drawing, Mixed, Outer, Private, Square
from zroute import App
from zroute.errors import DecodeError, SchemaError
from zroute.messages.cattrs_engine import structurer, unstructurer
from zroute.testing import TestApp


def test_an_object_becomes_data_by_field_names_and_back() -> None:
    """Aliased and private fields travel under their field names."""
    outer = Outer(Private("s"), [Converted(1, ("a",))], {7: Aliased("k", 2)}, (Private("t"), 3))
    data = unstructurer("python")(outer)
    assert data["private"] == {"_secret": "s", "open": True}
    assert data["mapped"] == {7: {"kind": "k", "size": 2}}
    assert structurer(Outer, str_keys=False)(data) == outer


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        (Private, []),
        (Private, {"_secret": 1}),
        (Private, {"open": True}),
        (list[Private], {"_secret": "s"}),
        (list[Private], "s"),
        (tuple[Private, int], [{"_secret": "s"}]),
        (dict[str, Private], [["a", {"_secret": "s"}]]),
        (Circle | Square, {}),
        (Circle | Square, 3),
        (Circle | Square, {"radius": "3"}),
        (Mixed, 8),
        (Mixed, True),
        (Converted, {"count": "7"}),
        (Private | int, "x"),
    ],
    ids=str,
)
def test_nothing_is_coerced(schema: Any, data: Any) -> None:
    """A value of another type is refused, even if it could be converted."""
    with pytest.raises(Exception):  # noqa: B017, PT011  # msgspec or cattrs, depending on the type
        structurer(schema, str_keys=False)(data)


def test_classes_are_told_apart_by_their_fields() -> None:
    """A union of classes with different fields needs no tag, alone and with other types."""
    structure = structurer(Drawing, str_keys=True)
    drawing = Drawing([Circle(1.0), Square(2.0)], "n")
    assert structure(unstructurer("json")(drawing)) == drawing
    either = structurer(Private | int, str_keys=True)
    assert either({"_secret": "s"}) == Private("s")
    assert either(3) == 3


@attrs.define
class Disc:
    radius: float


def test_classes_of_the_same_fields_are_refused() -> None:
    """The error for an ambiguous union says what to do."""
    with pytest.raises(SchemaError, match="use a tag"):
        structurer(Circle | Disc, str_keys=True)


class First(msgspec.Struct):
    """A Struct without a tag."""

    first: int


class Second(msgspec.Struct):
    """Another one."""

    second: int


class Keyed(TypedDict):
    """A dict with known keys."""

    key: int


class Row(NamedTuple):
    """A tuple with named items."""

    item: int


@pytest.mark.parametrize(
    ("schema", "culprit"),
    [(First | Second, "First"), (Circle | First, "First"), (Keyed | Circle, "Keyed"), (Row | Circle | Square, "Row")],
)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_classes_that_nothing_tells_apart_are_refused_with_what_would(schema: Any, culprit: str, codec: Any) -> None:
    """Structs without a tag, TypedDicts and NamedTuples are refused; the error names one and the remedies."""
    app = App(codec=codec)

    @app.subscribe("x")
    def handle(message: schema) -> None: ...

    text = f"because {culprit} is neither an attrs class nor a dataclass: make all classes attrs .*, tag=True"
    with pytest.raises(SchemaError, match=text):
        app.compile()


def test_a_body_with_the_fields_of_two_classes_becomes_the_first() -> None:
    """Unknown fields are ignored, so the fields of the second class are."""
    assert structurer(Circle | Square, str_keys=True)({"radius": 1.0, "side": 2.0}) == Circle(1.0)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("schema", "data", "text"),
    [
        (Circle | int | str | None, [], "got `array`; the object is Circle"),
        (Circle | int | str | None, {}, "missing required field `radius`"),
        (list[int] | Circle, 5, "got `int`; the object is Circle"),
        (Circle | int | Square, "x", "or a map for Circle | Square"),
    ],
)
def test_the_error_of_a_union_names_its_classes(codec: Any, schema: Any, data: Any, text: str) -> None:
    """msgspec calls a class object, and zroute adds which one."""
    app = App(codec=codec)

    @app.subscribe("x")
    def handle(message: schema) -> None:
        raise AssertionError

    with TestApp(app, raise_errors=False) as t:
        t.publish("x", data, codec=codec)
        (failure,) = t.failures
    assert isinstance(failure, DecodeError)
    assert failure.reason.endswith(text)


# -- what the errors say ---------------------------------------------------------------------------------


@attrs.frozen
class Hotdog:
    """A member of a tagged union."""

    condiments: list[str]
    type: Literal["hotdog", "frank"] = "hotdog"


@attrs.frozen
class Sub:
    """The other member."""

    condiments: list[str]
    type: Literal["sub", 3] = "sub"


@attrs.frozen
class Order:
    """Unions inside a class."""

    food: Hotdog | Sub
    more: list[Hotdog | Sub] = attrs.field(factory=list)
    named: dict[str, Hotdog | Sub] = attrs.field(factory=dict)


class Kind(Enum):
    """An enum of mixed values."""

    ONE = 1
    TWO = "two"


@dataclass
class Box:
    """A dataclass that cattrs structures, because of its field."""

    inner: Private
    size: int = 1


TAG = "field 'type' of Hotdog | Sub"
TAGS = "expected one of 'hotdog', 'frank', 'sub', 3"
GOOD = {"type": "sub", "condiments": []}

UNFIT: list[tuple[Any, Any, str]] = [
    (Hotdog | Sub, {"condiments": []}, f"{TAG} is missing: {TAGS}"),
    (Hotdog | Sub, {"type": "frog"}, f"{TAG} is 'frog': {TAGS}"),
    (Hotdog | Sub, {"type": 4}, f"{TAG} is 4: {TAGS}"),
    (Hotdog | Sub, {"type": None}, f"{TAG} is None: {TAGS}"),
    (Hotdog | Sub, {"type": ["sub"]}, f"{TAG} is ['sub']: {TAGS}"),
    (Hotdog | Sub, {"type": {"sub": 1}}, f"{TAG} is {{'sub': 1}}: {TAGS}"),
    (Hotdog | Sub, {"type": "x" * 90}, "xxx...xxx"),
    (Hotdog | Sub | None, {"type": "frog"}, f"{TAG} is 'frog': {TAGS}"),
    (Hotdog | Sub | None, 3, "Expected `null`, got `int`, or a map for Hotdog | Sub"),
    (Order, {"food": {"type": "frog"}}, f"{TAG} is 'frog': {TAGS}"),
    (Order, {"more": []}, "the field 'food' of Order is missing"),
    (Order, {"food": GOOD, "more": [GOOD, {}]}, f"{TAG} is missing: {TAGS}"),
    (Order, {"food": GOOD, "named": {"a": {"type": 1}}}, f"{TAG} is 1: {TAGS}"),
    (list[Hotdog | Sub], [GOOD, {"type": "frog"}], f"{TAG} is 'frog': {TAGS}"),
    (
        Circle | Square,
        {"width": 1},
        "the fields ['width'] match no class of Circle | Square (Circle has radius; Square has side)",
    ),
    (Mixed, 8, "8 is not a value of Mixed"),
    (Kind, 2, "2 is not a value of Kind: expected one of 1, 'two'"),
    (Kind, True, "True is not a value of Kind: expected one of 1, 'two'"),
    (list[Kind], [[]], "[] is not a value of Kind: expected one of 1, 'two'"),
    (Private, {"open": True}, "the field '_secret' of Private is missing"),
    (Box, {"size": 2}, "the field 'inner' of Box is missing"),
    (list[Box], [{"inner": {}}], "the field '_secret' of Private is missing"),
]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(("schema", "data", "text"), UNFIT, ids=[f"{data!r:.40}" for _, data, _ in UNFIT])
def test_a_body_that_does_not_fit_is_refused_with_what_came_and_what_may(
    codec: Any, schema: Any, data: Any, text: str
) -> None:
    """The error of a union names the field, its value and the possible ones, also inside other types."""
    with pytest.raises(DecodeError) as error:
        structurer(schema, str_keys=codec == "json")(data)
    assert text in error.value.reason
    app = App(codec=codec)

    @app.subscribe("x")
    def handle(message: schema) -> None:
        raise AssertionError

    with TestApp(app, raise_errors=False) as t:
        t.publish("x", data, codec=codec)
        (failure,) = t.failures
    assert isinstance(failure, DecodeError)
    assert text in failure.reason
    assert (app.stats.failed, app.stats.routes[next(iter(app.stats.routes))].decode_error) == (1, 1)


class Bought(msgspec.Struct, tag="bought"):
    """A member of a union that msgspec tags."""

    amount: int


class Sold(msgspec.Struct, tag="sold"):
    """The other member; its field is a union as well."""

    amount: int
    back: Bought | None = None


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("schema", "data", "text"),
    [
        (Bought | Sold, {"type": "frog"}, "Invalid value 'frog' - at `$.type`; expected one of 'bought', 'sold'"),
        (Bought | Sold | None, {}, "Object missing required field `type`; expected one of 'bought', 'sold'"),
        (Bought | Sold, {"type": "bought", "amount": "x"}, "Expected `int`, got `str` - at `$.amount`"),
        (Bought | Sold, {"type": "sold", "amount": 1, "back": {"type": 1}}, "- at `$.back.type`"),
        (int | str, [], "Expected `int | str`, got `array`"),
    ],
)
def test_an_unknown_tag_of_structs_is_refused_with_the_possible_ones(
    codec: Any, schema: Any, data: Any, text: str
) -> None:
    """msgspec says which tag came, and zroute adds which are possible."""
    app = App(codec=codec)

    @app.subscribe("x")
    def handle(message: schema) -> None:
        raise AssertionError

    with TestApp(app, raise_errors=False) as t:
        t.publish("x", data, codec=codec)
        (failure,) = t.failures
    assert isinstance(failure, DecodeError)
    assert failure.reason.endswith(text)


def test_an_error_of_a_converter_stays_what_it_is() -> None:
    """A KeyError of the user's own converter is not taken for a missing field."""

    @attrs.define
    class Coded:
        code: str = attrs.field(converter={"a": "1"}.__getitem__)

    with pytest.raises(KeyError):
        structurer(Coded, str_keys=False)({"code": "b"})
