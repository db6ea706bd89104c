"""Constraints in ``Annotated``: enforced in publishers and readers, or refused before the first message."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import annotated_types as at
import attrs
import msgspec
import pydantic
import pytest

from tests.messages.bound import FORMATS, decode, encode
from tests.messages.kinds import Private
from zroute import App
from zroute.errors import DecodeError, EncodeError, SchemaError, SignatureError
from zroute.messages.cattrs_engine import unstructurer
from zroute.messages.codecs import JSON, Codec
from zroute.messages.schema import inspect
from zroute.testing import TestApp

UTC = datetime.UTC
NOON = datetime.datetime(2026, 1, 1, 12)
INDIA = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
Positive = NewType("Positive", Annotated[int, at.Gt(0)])  # type: ignore[valid-newtype]

CASES: list[tuple[Any, Any, Any]] = [
    (Annotated[int, at.Gt(0)], 1, 0),
    (Annotated[int, at.Ge(0)], 0, -1),
    (Annotated[float, at.Lt(1)], 0.5, 1.0),
    (Annotated[float, at.Le(1)], 1.0, 1.5),
    (Annotated[int, at.Interval(gt=0, le=3)], 3, 4),
    (Annotated[int, at.MultipleOf(3)], 9, 10),
    (Annotated[str, at.MinLen(2)], "ab", "a"),
    (Annotated[bytes, at.MaxLen(2)], b"ab", b"abc"),
    (Annotated[list[int], at.Len(1, 2)], [1, 2], []),
    (Annotated[dict[str, int], at.Len(1, 1)], {"a": 1}, {}),
    (Annotated[set[int], at.MaxLen(1)], {1}, {1, 2}),
    (Annotated[datetime.datetime, at.Timezone(None)], NOON, NOON.replace(tzinfo=UTC)),
    (Annotated[datetime.datetime, at.Timezone(...)], NOON.replace(tzinfo=UTC), NOON),
    (at.LowerCase[str], "a", "A"),
    (Annotated[int, at.Predicate(lambda value: value % 2 == 0)], 2, 3),
    (Annotated[int | None, at.Gt(0)], None, 0),
    (Annotated[int, at.Gt(0)] | None, None, 0),
    (Annotated[int, at.Gt(0), msgspec.Meta(lt=9)], 8, 9),
    (Annotated[int, at.Gt(0), msgspec.Meta(lt=9)], 1, 0),
    (list[Annotated[int, at.Gt(0)]], [1], [0]),
    (Positive, 1, 0),
    (Annotated[int, pydantic.Field(gt=0)], 1, 0),
    (Annotated[str, pydantic.Field(pattern="^a")], "ab", "b"),
    (Annotated[str, pydantic.StringConstraints(max_length=1)], "a", "ab"),
    (Annotated[list[int], pydantic.Field(max_length=1)], [1], [1, 2]),
    (Annotated[list[Private], msgspec.Meta(max_length=1)], [Private("a")], [Private("a"), Private("b")]),
    (Annotated[list[Private], at.MaxLen(1)], [Private("a")], [Private("a"), Private("b")]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=[str(number) for number in range(len(CASES))])
@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_constraint_holds_for_publishers_and_readers(schema: Any, good: Any, bad: Any, codec: Codec) -> None:
    """A good value arrives; a bad one raises in the publisher, and does not reach a handler."""
    assert decode(schema, encode(schema, good, codec), codec) == good
    with pytest.raises(EncodeError):
        encode(schema, bad, codec)
    body = _written_without_checks(bad, codec)
    with pytest.raises((DecodeError, msgspec.ValidationError)):
        codec.decoder(schema)(body)


def _written_without_checks(value: Any, codec: Codec) -> bytes:
    write = msgspec.json.encode if codec is JSON else msgspec.msgpack.encode
    return write(unstructurer("python")(value))


@pytest.mark.parametrize("zone", ["UTC", UTC])
def test_a_time_may_have_to_be_in_utc(zone: Any) -> None:
    """msgpack carries each time in UTC; JSON carries the offset, so a reader sees another one."""
    schema = Annotated[datetime.datetime, at.Timezone(zone)]
    assert decode(schema, encode(schema, NOON.replace(tzinfo=UTC))) == NOON.replace(tzinfo=UTC)
    for wrong in (NOON, NOON.replace(tzinfo=INDIA)):
        with pytest.raises(EncodeError):
            encode(schema, wrong)
        with pytest.raises(DecodeError):
            decode(schema, _written_without_checks(wrong, JSON))


Small = Annotated[int, at.Lt(10)]


@attrs.frozen
class Attrs:
    n: Small


@dataclass
class Data:
    n: Small


class Struct(msgspec.Struct):
    n: Small


class Typed(TypedDict):
    n: Small


@attrs.frozen
class Aliased:
    n: Small = attrs.field(alias="m")


@attrs.frozen
class OfField:
    n: Annotated[int, pydantic.Field(lt=10)]


@pytest.mark.parametrize("kind", [Attrs, Data, Struct, Typed, Aliased, OfField])
def test_a_field_is_constrained_in_every_kind_of_class(kind: Any) -> None:
    """The error names the field, the constraint and the value."""
    assert decode(list[kind], b'[{"n": 9}]')
    with pytest.raises(DecodeError, match=r"\[1\]\.n: expected int with Lt\(lt=10\), got int: 10"):
        decode(list[kind], b'[{"n": 9}, {"n": 10}]')


class Tuple(NamedTuple):
    n: Small


def test_a_field_of_a_named_tuple_is_constrained() -> None:
    """A NamedTuple travels as a list."""
    with pytest.raises(DecodeError, match=r"Tuple\.n: expected int with Lt"):
        decode(Tuple, b"[10]")


@attrs.frozen(order=False)
class Unordered:
    n: int


@attrs.frozen
class OwnGroup(at.GroupedMetadata):  # type: ignore[misc]
    def __iter__(self) -> Any:
        yield at.Gt(0)


class Unknown(at.BaseMetadata):
    """A constraint of a vocabulary that zroute does not know."""

    def __repr__(self) -> str:
        return "Unknown()"


@dataclass
class FieldAsDefault:
    n: int = pydantic.Field(gt=0)


@attrs.frozen
class Alias:
    n: Annotated[int, pydantic.Field(alias="N")]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (Annotated[int, Unknown()], r"has the constraint Unknown\(\), which zroute does not support: use"),
        (Alias, r"Alias\.n has a Field with alias, which only works in pydantic classes"),
        (Annotated[int, pydantic.Field(default=3)], "has a Field with default"),
        (FieldAsDefault, r"the default of FieldAsDefault\.n is a pydantic Field"),
        (Annotated[datetime.datetime, at.Timezone("Asia/Kolkata")], "but messages carry only the UTC offset"),
        (list[Annotated[complex, at.Gt(0)]], "complex"),
    ],
    ids=repr,
)
def test_a_constraint_that_nothing_enforces_is_refused(schema: Any, text: str) -> None:
    """No constraint is ignored: an unknown one is an error when the app is compiled."""
    with pytest.raises(SchemaError, match=text):
        inspect(schema)


def test_a_group_of_ones_own_is_taken_apart() -> None:
    """A group of constraints means its members."""
    with pytest.raises(DecodeError, match=r"Gt\(gt=0\)"):
        decode(Annotated[int, OwnGroup()], b"0")


def test_pydantic_may_check_a_value_and_not_change_it() -> None:
    """A validator that changes values would give the handler another value than the publisher's."""
    upper = Annotated[str, pydantic.AfterValidator(str.upper)]
    assert decode(upper, b'"A"') == "A"
    with pytest.raises(DecodeError, match="pydantic would change the value to 'A'"):
        decode(upper, b'"a"')


@pytest.mark.parametrize("note", ["a note", at.doc("a note"), pydantic.Field(description="a note"), msgspec.Meta()])
def test_a_description_is_no_constraint(note: Any) -> None:
    """Metadata that only describes a type costs nothing."""
    found = inspect(Annotated[int, note])
    assert (found.engine, found.holds) == ("msgspec", {"int"})


def test_captures_obey_the_same_constraints() -> None:
    """A segment that violates a constraint of annotated_types is no value of the capture."""
    app = App()

    @app.subscribe("a.{n}")
    def handler(n: Small) -> None: ...

    with TestApp(app) as t:
        t.publish("a.9", "x")
        t.publish("a.10", "x")
        assert len(t.results(handler)) == 1
    broken = App()

    @broken.subscribe("a.{n}")
    def other(n: Annotated[int, Unknown()]) -> None: ...

    with pytest.raises(SignatureError, match="capture 'n' has the constraint"):
        broken.compile()


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (
            Annotated[int, at.MultipleOf(0)],
            "MultipleOf(multiple_of=0), which can't be checked for int: expected a number",
        ),
        (Annotated[Decimal, at.MultipleOf(0)], "expected a number other than 0"),
        (
            Annotated[int, at.Gt("a")],
            "Gt(gt='a'), which can't be checked for int: expected a bound that can be compared",
        ),
        (Annotated[float | None, at.Interval(ge="a")], "Ge(ge='a')"),
        (Annotated[str, at.Le(3)], "expected a bound that can be compared with str"),
        (Annotated[datetime.date, at.Lt(3)], "expected a bound that can be compared with date"),
        (Annotated[int, at.Gt(float("nan"))], "expected a bound other than NaN"),
        (Annotated[int, at.MinLen(1)], "expected a type with a length"),
        (Annotated[str, at.MinLen(-1)], "expected a length of 0 or more"),
        (Annotated[str, at.MaxLen(2.5)], "expected a length of 0 or more"),  # type: ignore[arg-type]
        (Annotated[int, at.Timezone(None)], "expected a datetime or a time"),
        (Annotated[int, at.Predicate("x")], "expected a function"),  # type: ignore[arg-type]
        (Annotated[str, pydantic.Field(multiple_of=0)], "expected a number other than 0"),
        (Annotated[int, pydantic.Field(min_length=1)], "expected a type with a length"),
        (Annotated[Decimal, at.Gt("x")], "expected a bound that can be compared with Decimal"),
        (Annotated[str, at.Gt(3)], "expected a bound that can be compared with str"),
        (Annotated[int, at.Len(3)], "expected a type with a length"),
        (Annotated[Unordered, at.Len(3)], "expected a type with a length"),
        (Annotated[Unordered, at.Gt(0)], "expected a bound that can be compared with Unordered"),
        (Annotated[Literal["a"], at.Gt(0)], "expected a bound that can be compared with Literal"),
        (Annotated[Sequence[int], at.Gt(0)], "expected a bound that can be compared with Sequence"),
        *[
            (Annotated[kind, msgspec.Meta(gt=0)], "msgspec.Meta(gt=0), which can't be checked for")
            for kind in (Decimal, str, list[int], Unordered, Literal["a"], datetime.date, Any, Decimal | None)
        ],
        (Annotated[int, msgspec.Meta(pattern="a")], "pattern for str"),
        (list[Annotated[Decimal, msgspec.Meta(gt=0)]], "for other types, constraints of annotated_types"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_constraint_that_no_value_can_be_checked_for_is_refused(schema: Any, says: str, inside: bool) -> None:
    """The error names the parameter, the constraint and what is expected; captures have it too."""
    app, field = App(), attrs.make_class("Order", {"n": attrs.field(type=schema)})

    def handler(body: Any) -> None: ...

    handler.__annotations__["body"] = field if inside else schema
    app.subscribe("a")(handler)
    with pytest.raises(SchemaError) as refused:
        app.compile()
    assert "parameter 'body' of handler()" in str(refused.value)
    assert says in str(refused.value)
    assert ("Order.n" in str(refused.value)) is inside


@pytest.mark.parametrize(
    "schema", [Annotated[int, at.MultipleOf(0)], Annotated[int, at.Gt("a")], Annotated[str, msgspec.Meta(gt=0)]]
)
def test_a_capture_with_such_a_constraint_is_refused(schema: Any) -> None:
    """Otherwise no topic would match."""
    app = App()

    def handler(n: Any) -> None: ...

    handler.__annotations__["n"] = schema
    app.subscribe("a.{n}")(handler)
    with pytest.raises(SignatureError, match=r"capture 'n' has the constraint .* which can't be checked"):
        app.compile()


def test_functions_are_not_called_at_compile_time() -> None:
    """A predicate is called with messages only."""
    called: list[int] = []
    inspect(Annotated[int, at.Predicate(lambda value: bool(called.append(value)))])
    inspect(Annotated[int, pydantic.AfterValidator(called.append)])
    assert called == []


def test_constraints_of_the_type_of_a_list_are_checked_together_with_its_items() -> None:
    """Both levels are checked."""
    schema = Annotated[list[Small], at.MaxLen(2)]
    for body in (b"[10]", b"[1, 2, 3]"):
        with pytest.raises(DecodeError):
            JSON.decoder(schema)(body)
