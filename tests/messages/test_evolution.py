"""Publishers and subscribers whose classes differ: what an older or newer class reads."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import attrs
import msgspec
import pytest

from zroute import App, DecodeError, Name, SchemaError
from zroute.testing import TestApp

ENDPOINT = "tcp://127.0.0.1:5555"


@attrs.frozen
class First:
    a: int


@attrs.frozen
class Longer:
    a: int
    b: str


@attrs.frozen
class WithDefault:
    a: int
    b: str = "new"


@attrs.frozen
class Real:
    a: float


@attrs.frozen
class Renamed:
    alpha: int


@attrs.frozen
class AliasOnly:
    """An alias of attrs names a parameter of the constructor, not the field of a message."""

    alpha: int = attrs.field(alias="a")


@attrs.frozen
class Named:
    alpha: Annotated[int, Name("a")]


class StructName(msgspec.Struct):
    alpha: int = msgspec.field(name="a")


class Small(enum.Enum):
    X = "x"


class Large(enum.Enum):
    X = "x"
    Y = "y"


class Lenient(enum.Enum):
    X = "x"
    UNKNOWN = "?"

    @classmethod
    def _missing_(cls, value: object) -> Lenient:
        return cls.UNKNOWN


@attrs.frozen
class HasLarge:
    e: Large


@attrs.frozen
class HasSmall:
    e: Small


@attrs.frozen
class HasLenient:
    e: Lenient


class A(msgspec.Struct, tag="a"):
    x: int


class B(msgspec.Struct, tag="b"):
    y: int


class C(msgspec.Struct, tag="c"):
    z: int


def sent(written: Any, value: Any, read: Any, codec: str) -> tuple[list[Any], list[BaseException]]:
    """Publish ``value`` as ``written`` to a handler of ``read``; return what it got, and the failures."""
    writer, reader = App(pub=ENDPOINT, codec=codec, name="writer"), App(sub=ENDPOINT, codec=codec, name="reader")
    publisher, got = writer.publisher("x", written), []

    def handle(body: Any) -> None:
        got.append(body)

    handle.__annotations__["body"] = read
    reader.subscribe("x")(handle)
    with TestApp(reader, writer, raise_errors=False) as t:
        publisher.publish(value)
        t.advance(0)
        (route,) = reader.stats.routes.values()
        assert (route.handled, route.decode_error) == (len(got), len(t.failures))
        return got, list(t.failures)


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("written", "value", "read", "got"),
    [
        (First, First(1), WithDefault, WithDefault(1, "new")),
        (WithDefault, WithDefault(1), First, First(1)),
        (First, First(1), Real, Real(1.0)),
        (First, First(1), Named, Named(1)),
        (First, First(1), StructName, StructName(1)),
        (HasLarge, HasLarge(Large.Y), HasLenient, HasLenient(Lenient.UNKNOWN)),
    ],
    ids=["a new field with a default", "a removed field", "int to float", "Name", "a Struct's name", "a lenient enum"],
)
def test_classes_that_fit_read_each_other(written: Any, value: Any, read: Any, got: Any, codec: str) -> None:
    """Missing fields take their defaults, unknown fields are ignored, and names of fields may be stated."""
    assert sent(written, value, read, codec) == ([got], [])


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("written", "value", "read", "says"),
    [
        (First, First(1), Longer, "b"),
        (Real, Real(1.0), First, "Expected `int`, got `float`"),
        (First, First(1), Renamed, "alpha"),
        (First, First(1), AliasOnly, "the field 'alpha' of"),
        (HasLarge, HasLarge(Large.Y), HasSmall, "'y'"),
        (A | B | C, C(1), A | B, "expected one of 'a', 'b'"),
    ],
    ids=["a new field", "float to int", "a renamed field", "an alias", "an unknown enum value", "a union that grew"],
)
def test_classes_that_do_not_fit_are_refused_by_the_reader(
    written: Any, value: Any, read: Any, says: str, codec: str
) -> None:
    """A body that lacks a field, or has a value that the class does not know, is a DecodeError that names it."""
    got, failures = sent(written, value, read, codec)
    assert (got, [type(error) for error in failures]) == ([], [DecodeError])
    assert says in str(failures[0])


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_an_older_reader_of_a_union_may_take_the_rest_as_bytes(codec: str) -> None:
    """`A | B | bytes` gets the raw body of a type it does not know; a dict in its place would be ambiguous."""
    got, failures = sent(A | B | C, C(1), A | B | bytes, codec)
    assert failures == []
    assert [type(body) for body in got] == [bytes]
    assert b"z" in got[0]
    with pytest.raises(SchemaError, match=r"a map could be any of A \| B \| dict"):
        sent(A | B | C, C(1), A | B | dict, codec)
